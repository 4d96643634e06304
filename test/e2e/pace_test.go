package e2e

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

const asker = "mirror.example.com"

// consents is a receiver that answers the question for permission with these headers.
func consents(header map[string]string) lab.Behaviour {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodOptions {
			lab.Status(http.StatusOK, header)(w, r)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

// asked splits attempts into questions and deliveries.
func asked(attempts []lab.Attempt) (questions, deliveries []lab.Attempt) {
	for _, a := range attempts {
		if a.Method == http.MethodOptions {
			questions = append(questions, a)
		} else {
			deliveries = append(deliveries, a)
		}
	}
	return questions, deliveries
}

func TestAReceiverIsAskedForPermissionFirst(t *testing.T) {
	t.Parallel()
	options := lab.Options{
		"requestOrigin": asker, "customRequestHeaders": map[string]string{"X-Token": "of the mirror"},
		"circuitBreaker": map[string]any{"openFor": "200ms"}, "retry": map[string]any{"attempts": 1},
	}
	made := mirrors(t, shared, options, options, options)

	t.Run("and gets events when it has agreed", func(t *testing.T) {
		t.Parallel()
		const n = 20
		s := made[0]
		s.receiver.Become(consents(map[string]string{"WebHook-Allowed-Origin": asker, "WebHook-Allowed-Rate": "*"}))
		for range n {
			s.post(t, "a body")
		}
		if l := s.settle(t, n); l.Delivered != n {
			t.Errorf("ledger: got %s; want %d delivered", l, n)
		}
		attempts := s.receiver.Attempts()
		questions, deliveries := asked(attempts)
		if len(questions) != 1 || attempts[0].Method != http.MethodOptions {
			t.Fatalf("got %d questions, %s first; want one, before all deliveries", len(questions), attempts[0].Method)
		}
		q := questions[0]
		if q.Header.Get("WebHook-Request-Origin") != asker || q.Header.Get("X-Token") != "of the mirror" || q.Path != "/events" || len(q.Body) != 0 {
			t.Errorf("question: got %s with %v and %d bytes; want /events, the origin %s, the operator's headers and no body", q.Path, q.Header, len(q.Body), asker)
		}
		expectNumbers(t, "deliveries", events(t, deliveries), n)
	})

	t.Run("and gets none until it agrees", func(t *testing.T) {
		t.Parallel()
		s := made[1]
		s.receiver.Become(consents(map[string]string{"WebHook-Allowed-Origin": "another.example.com"}))
		sent := 0
		await(t, "three refusals", func() (bool, any, error) {
			s.post(t, "a body")
			sent++
			l := s.settle(t, sent)
			return l.Failed["rejected"] >= 3, l, nil
		})
		l := s.settle(t, sent)
		if _, deliveries := asked(s.receiver.Attempts()); l.Delivered != 0 || len(deliveries) != 0 || l.Dropped["circuit_open"] == 0 {
			t.Errorf("ledger: got %s and %d deliveries; want none, and drops for circuit_open", l, len(deliveries))
		}
		if count(s, "does not allow events from") == 0 || count(s, "circuit opened") != 1 {
			t.Errorf("Traefik's log: got %s; want one line for the circuit, and why", logged(s.world, s.name+"@file"))
		}
		s.receiver.Become(consents(map[string]string{"WebHook-Allowed-Origin": "*"}))
		await(t, "a delivery", func() (bool, any, error) {
			s.post(t, "a body")
			sent++
			l := s.settle(t, sent)
			return l.Delivered > 0, l, nil
		})
		if _, deliveries := asked(s.receiver.Attempts()); len(deliveries) == 0 {
			t.Error("got no delivery after it agreed")
		}
		if got := count(s, "circuit closed"); got != 1 {
			t.Errorf("Traefik's log: got %d lines of the circuit closed; want one", got)
		}
	})

	t.Run("and gets no more a minute than it allows", func(t *testing.T) {
		t.Parallel()
		const n = 4
		s := made[2]
		s.receiver.Become(consents(map[string]string{"WebHook-Allowed-Origin": asker, "WebHook-Allowed-Rate": "120"}))
		for range n {
			s.post(t, "a body")
		}
		if l := s.settle(t, n); l.Delivered != n {
			t.Errorf("ledger: got %s; want %d delivered", l, n)
		}
		_, deliveries := asked(s.receiver.Attempts())
		// Half a second apart when they are sent; the first may have come a little late.
		if took := deliveries[n-1].Time.Sub(deliveries[0].Time); took < 1250*time.Millisecond {
			t.Errorf("%d deliveries within %v; want them over 1.5s, as 120 a minute are allowed", n, took)
		}
	})
}

func TestABurstIsDeliveredByAsManyWorkersAsItTakes(t *testing.T) {
	t.Parallel()
	const clients, each = 16, 30
	const n = clients * each
	s := mirror(t, lab.Options{"workers": "auto", "queueSize": n})
	s.receiver.Become(lab.Slow(20 * time.Millisecond))
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() {
			for range each {
				r, _ := s.request(t, http.MethodPost, protocols[i%2].scheme, "/", strings.NewReader("of a burst"))
				if a, err := s.do(r); err != nil || a.StatusCode != http.StatusOK {
					t.Errorf("a request of the burst: got %v, %v; want 200", a.Response, err)
				}
			}
		})
	}
	most := int64(0)
	await(t, "the burst to be delivered", func() (bool, any, error) {
		l, err := s.world.traefik.Ledger(soon(t), s.name)
		most = max(most, l.Concurrency)
		return l.Seen == n && l.Settled(), l, err
	})
	wg.Wait()
	if l := s.ledger(t); l.Delivered != n {
		t.Errorf("ledger: got %s; want %d delivered", l, n)
	}
	expectNumbers(t, "the burst", events(t, s.receiver.Attempts()), n)
	if most < 2 || most > 32 {
		t.Errorf("concurrency: got %d at most; want more than 1, up to 32", most)
	}
	if got := s.receiver.Connections(); got > 32 {
		t.Errorf("connections: got %d; want 32 at most", got)
	}
}
