package e2e

import (
	"strings"
	"testing"

	"github.com/opencommit/requestmirror/test/lab"
)

func TestTheCircuitOpensAndClosesUnderLoad(t *testing.T) {
	t.Parallel()
	const failures, workers = 6, 4
	cases := []struct {
		name    string
		fail    func(*lab.Receiver)
		recover func(*lab.Receiver) error
		reason  string
	}{
		{"when the receiver is down", func(r *lab.Receiver) { r.Down() }, func(r *lab.Receiver) error { return r.Up() }, "network_error"},
		{"when the receiver answers 503", func(r *lab.Receiver) { r.Become(lab.Status(503, nil)) },
			func(r *lab.Receiver) error { r.Become(lab.OK()); return nil }, "server_error"},
	}
	options := lab.Options{
		"workers": workers, "queueSize": 50_000, "timeout": "10s",
		"retry":          map[string]any{"attempts": 1},
		"circuitBreaker": map[string]any{"failures": failures, "openFor": "150ms"},
	}
	made := mirrors(t, shared, options, options)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := made[i]
			sent, halt := s.underLoad(t)
			defer halt()
			see := func(what string, is func(lab.Ledger) bool) (l lab.Ledger) {
				t.Helper()
				await(t, what, func() (bool, any, error) {
					var err error
					l, err = s.world.traefik.Ledger(soon(t), s.name)
					return is(l), l, err
				})
				return l
			}

			if l := see("deliveries", func(l lab.Ledger) bool { return l.Delivered > 50 }); l.CircuitBreaker != "closed" {
				t.Errorf("while all is well: got circuit breaker %q; want closed", l.CircuitBreaker)
			}
			c.fail(s.receiver)
			see("the circuit to open", func(l lab.Ledger) bool { return l.CircuitBreaker == "open" && l.Dropped["circuit_open"] > 0 })
			// More than those that were under way: probes fail, too.
			see("probes to fail", func(l lab.Ledger) bool { return l.Failed[c.reason] >= failures+workers+2 })
			if err := c.recover(s.receiver); err != nil {
				t.Fatal(err)
			}
			before := see("the circuit to close", func(l lab.Ledger) bool { return l.CircuitBreaker == "closed" })
			see("deliveries again", func(l lab.Ledger) bool { return l.Delivered > before.Delivered+50 })
			halt()

			l := s.settle(t, int(sent.Load()))
			lost := l.Dropped["circuit_open"] + l.Failed["circuit_open"] + l.Failed[c.reason]
			if l.Seen != sent.Load() || l.Lost() != lost {
				t.Errorf("ledger of %d requests: got %s; want losses for circuit_open and %s only", sent.Load(), l, c.reason)
			}
			numbers := map[int64]bool{}
			for _, e := range events(t, taken(s.receiver.Attempts())) {
				numbers[e.Sequence] = true
			}
			// One that was lost on its way back is here, too.
			if got := int64(len(numbers)); got < l.Delivered || got > l.Delivered+workers || !numbers[l.Seen] {
				t.Errorf("receiver: got %d events, the last one among them: %t; want %d delivered, and the last", got, numbers[l.Seen], l.Delivered)
			}
			for word, want := range map[string]int{"circuit opened after 6 failures in a row": 1, "circuit opened": 1, "circuit closed": 1} {
				if got := count(s, word); got != want {
					t.Errorf("Traefik's log: got %d lines with %q; want %d:\n%s", got, word, want, logged(s.world, s.name+"@file"))
				}
			}
		})
	}
}

// count is how many lines of Traefik's log about a mirror have the text.
func count(s *site, text string) int {
	n := 0
	for line := range strings.Lines(logged(s.world, s.name+"@file")) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}
