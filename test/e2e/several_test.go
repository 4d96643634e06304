package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

func TestEveryReceiverGetsTheSameEvents(t *testing.T) {
	t.Parallel()
	const n = 20
	second, third := aReceiver(t), aReceiver(t)
	s := mirror(t, lab.Options{"watchURLs": []string{second.URL, third.URL}})
	for i := range n {
		r, _ := s.request(t, http.MethodPost, protocols[i%2].scheme, fmt.Sprintf("/%d?a=b", i), strings.NewReader(fmt.Sprintf("body %d", i)))
		s.send(t, r, http.StatusOK)
	}
	all := s.settleAll(t, n)
	if len(all) != 3 {
		t.Fatalf("ledgers: got %v; want one for each of three receivers", all)
	}
	byRequest := map[string]map[string]any{} // of the first receiver
	for i, receiver := range []*lab.Receiver{s.receiver, second, third} {
		name := fmt.Sprintf("receiver %d", i+1)
		if l := all[origin(receiver)]; l.Seen != n || l.Delivered != n {
			t.Errorf("%s: ledger: got %s; want %d seen and delivered", name, l, n)
		}
		got := events(t, receiver.Attempts())
		expectNumbers(t, name, got, n)
		for _, e := range got {
			// What is left is to be the same for all: id and time, too.
			var members map[string]any
			if err := json.Unmarshal(e.Raw, &members); err != nil {
				t.Fatal(err)
			}
			delete(members, "sequence")
			if i == 0 {
				byRequest[requestOf(e)] = members
			} else if !reflect.DeepEqual(members, byRequest[requestOf(e)]) {
				t.Errorf("%s, request %s: got %v; want %v as the first receiver", name, requestOf(e), members, byRequest[requestOf(e)])
			}
		}
	}
}

func TestAReceiverThatFailsCostsTheOthersNothing(t *testing.T) {
	t.Parallel()
	const n = 40
	hangs, down := aReceiver(t), aReceiver(t)
	hangs.Become(lab.Hang())
	down.Down()
	s := mirror(t, lab.Options{
		"watchURLs": []string{hangs.URL, down.URL}, "queueSize": 10, "workers": 2,
		"timeout": "1s", "retry": map[string]any{"attempts": 1},
		"circuitBreaker": map[string]any{"failures": 4, "openFor": "500ms"},
	})
	for i := 1; i <= n; i++ {
		s.post(t, "a body")
		// So that its queue, which is as short as the others', is never full.
		if _, err := s.receiver.Wait(soon(t), i); err != nil {
			t.Fatal(err)
		}
	}
	all := s.settleAll(t, n)
	if l := all[origin(s.receiver)]; l.Delivered != n || l.Lost() != 0 {
		t.Errorf("the receiver that works: ledger: got %s; want %d delivered", l, n)
	}
	expectNumbers(t, "the receiver that works", events(t, s.receiver.Attempts()), n)
	for what, c := range map[string]struct {
		receiver *lab.Receiver
		reason   string
	}{"that hangs": {hangs, "timeout"}, "that is down": {down, "network_error"}} {
		if l := all[origin(c.receiver)]; l.Seen != n || l.Delivered != 0 || l.Lost() != n || l.Failed[c.reason] == 0 {
			t.Errorf("the receiver %s: ledger: got %s; want all %d lost, some for %s", what, l, n, c.reason)
		}
	}

	// Each recovers by itself.
	hangs.Become(lab.OK())
	if err := down.Up(); err != nil {
		t.Fatal(err)
	}
	before := len(hangs.Attempts())
	sent := int64(n)
	await(t, "both to be delivered to again", func() (bool, any, error) {
		s.get(t)
		sent++
		all, err := s.world.traefik.Ledgers(soon(t), s.name)
		return all[origin(hangs)].Delivered > 0 && all[origin(down)].Delivered > 0, all, err
	})
	all = s.settleAll(t, sent)
	for what, r := range map[string]*lab.Receiver{"that hung": hangs, "that was down": down} {
		l := all[origin(r)]
		if l.CircuitBreaker != "closed" {
			t.Errorf("the receiver %s: circuit breaker: got %s; want closed", what, l.CircuitBreaker)
		}
		attempts := r.Attempts()
		if r == hangs {
			attempts = attempts[before:]
		}
		if got := int64(len(taken(attempts))); got != l.Delivered {
			t.Errorf("the receiver %s: got %d events; want the %d delivered", what, got, l.Delivered)
		}
	}
}

func TestReceiversComeAndGoUnderLoad(t *testing.T) {
	t.Parallel()
	const step = 150
	stays, leaves, comes := (*lab.Receiver)(nil), aReceiver(t), aReceiver(t)
	options := func(s *site, more ...*lab.Receiver) lab.Options {
		var urls []string
		for _, r := range more {
			urls = append(urls, r.URL)
		}
		return s.options(lab.Options{"watchURLs": urls, "queueSize": 50_000, "drainTimeout": "30s"})
	}
	s := mirror(t, lab.Options{"watchURLs": []string{leaves.URL}, "queueSize": 50_000, "drainTimeout": "30s"})
	stays = s.receiver

	sent, halt := s.underLoad(t)
	defer halt()
	more := func(r *lab.Receiver) { // events than there are
		t.Helper()
		if _, err := r.Wait(soon(t), len(r.Attempts())+step); err != nil {
			t.Fatal(err)
		}
	}
	more(leaves)
	for _, next := range [][]*lab.Receiver{{leaves, comes}, {comes}, {comes, leaves}, {leaves}} {
		s.world.change(t, func(d *lab.Dynamic) { d.Mirrors[s.name] = options(s, next...) })
		for _, r := range next {
			more(r)
		}
	}
	halt()

	total := sent.Load()
	await(t, "all to be delivered", func() (bool, any, error) {
		all, err := s.world.traefik.Ledgers(soon(t), s.name)
		done := all[origin(stays)].Seen == total
		for _, l := range all {
			done = done && l.Settled()
		}
		return done, all, err
	})
	all := s.ledgers(t)
	if l := all[origin(stays)]; l.Delivered != total {
		t.Errorf("the receiver that stayed: ledger: got %s; want the %d that were sent", l, total)
	}
	expectNumbers(t, "the receiver that stayed", events(t, stays.Attempts()), total)
	// It came back before its pipeline was given up, so that went on.
	if l := all[origin(leaves)]; l.Delivered != l.Seen || l.Seen == 0 {
		t.Errorf("the receiver that left and came back: ledger: got %s; want all delivered", l)
	}
	expectNumbers(t, "the receiver that left and came back", events(t, leaves.Attempts()), all[origin(leaves)].Seen)

	// The one that came and left is told at the end how many it ought to have.
	reports, err := comes.WaitForReport(soon(t), "that is final", func(r event.Report) bool { return r.Final })
	if err != nil {
		t.Fatal(err)
	}
	last := reports[len(reports)-1]
	got := events(t, comes.Attempts())
	if last.Delivered != last.Sequence || len(last.Dropped)+len(last.Failed) != 0 || last.Boot != got[0].Boot {
		t.Errorf("the receiver that came and left: final report: got %s; want all delivered, of boot %s", last.Raw, got[0].Boot)
	}
	expectNumbers(t, "the receiver that came and left", got, last.Sequence)
	t.Logf("%d requests; the receiver that came and left got %d", total, last.Sequence)
}
