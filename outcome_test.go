//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"math/rand"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Requests take the lock under which events are counted, so that is let go of between a few.
func TestEventsAreCountedAFewAtATime(t *testing.T) {
	const many = 1000
	waiting := func() (*pipeline, []*capture) {
		p := stillPipeline(t, opts{"batch.maxEvents": 100, "queueSize": many, "circuitBreaker.openFor": "1h"})
		for range many {
			offer(p, &capture{set: p.set, at: time.Now()})
		}
		list := []*capture{}
		for len(p.queue) > 0 {
			list = append(list, <-p.queue)
		}
		return p, list
	}
	for _, c := range []struct {
		name  string
		count func(p *pipeline, list []*capture) (counted, left int)
	}{
		{"a batch that failed", func(p *pipeline, list []*capture) (int, int) {
			p.counts.inFlight = many
			left := settleSome(p, list, reasonNetwork)
			return int(p.counts.failed[reasonNetwork]), len(left)
		}},
		{"a queue whose circuit has opened", func(p *pipeline, list []*capture) (int, int) {
			for _, c := range list {
				p.queue <- c
			}
			logged(func() { // of a circuit that opened
				p.mu.Lock()
				defer p.mu.Unlock()
				openCircuit(p, time.Hour, verdict{reason: reasonNetwork})
				w := &worker{pipe: p, gathers: true}
				if !takeEvents(w) || len(w.taken) > 0 {
					t.Errorf("got %d events taken; want none, and to come back", len(w.taken))
				}
				p.gate.timer.Stop()
			})
			return int(p.counts.failed[reasonCircuitOpen]), len(p.queue)
		}},
	} {
		p, list := waiting()
		counted, left := c.count(p, list)
		if counted == 0 || counted > 20 || counted+left != many || p.counts.inFlight > many {
			t.Errorf("%s: got %d events counted under one lock, and %d left; want at most 20, and all others", c.name, counted, left)
		}
		if p.ledger.teller != nil {
			p.ledger.teller.Stop()
		}
	}
}

// A body is counted once, by the reason that its event gives.
func TestBodiesThatAreNotWholeAreCountedOnce(t *testing.T) {
	zipped := func(numbers int) string {
		b := &bytes.Buffer{}
		z := gzip.NewWriter(b)
		for range numbers {
			fmt.Fprint(z, rand.Int())
		}
		_ = z.Close()
		return b.String()
	}
	for _, c := range []struct {
		name, body string
		reason     string
	}{
		{"whole, and cannot be redacted", zipped(1), cutContentType},
		{"in parts, and cannot be redacted", zipped(1000), cutContentType},
		{"over the limit, and cannot be redacted", zipped(2000), cutContentType},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := newReceiver(t)
			handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "redactBodyFields": "password", "maxBodySize": "10Ki"})
			req := send("/", c.body)
			req.Header = http.Header{"Content-Encoding": {"gzip"}, "Content-Type": {"application/json"}}
			serve(handler, req)
			got := rec.wait(t, 1)[0].event.Data.HTTP.Request.Body
			waitFor(t, "the event to be counted", func() bool { return tallyOf(t).Delivered == 1 })
			if n := tallyOf(t); got.Reason != c.reason || n.Truncated[c.reason] != 1 || sum(n.Truncated) != 1 {
				t.Errorf("got %s in the event, and truncated %v; want %s, and one of it", got.Reason, n.Truncated, c.reason)
			}
		})
	}
}

func TestABodyThatIsNotWholeCountsWhenItsEventIsEvicted(t *testing.T) {
	p := stillPipeline(t, opts{"queueSize": 1, "overflow": "dropOldest", "maxBodySize": 1})
	m := newMirror(answer(""), p.set, []*pipeline{p})
	for range 2 {
		serve(m, send("/", strings.Repeat("x", 2)))
	}
	if p.counts.failed[reasonQueueFull] != 1 || p.counts.truncated[cutLimit] != 1 {
		t.Errorf("got failed %v, truncated %v; want one of each, for the event that made room", p.counts.failed, p.counts.truncated)
	}
	p.ledger.teller.Stop()
}
