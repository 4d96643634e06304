package requestmirror

import (
	"fmt"
	"time"
)

// The circuit breaker keeps events away from a receiver that does not work, so that
// they cost nothing and it can recover:
//
//	        failures in a row, or 410
//	CLOSED ──────────────────────────▶ OPEN ── openFor over ─▶ HALF OPEN
//	   ▲                                 ▲                        │
//	   │                                 └──── the probe fails ───┤
//	   └────────── the receiver answers the probe ────────────────┘
//
// While it is open, events are dropped as circuit_open. While it is half open, they
// wait for the outcome of the probe, which is one delivery like any other.
//
// An attempt has failed in this sense if there was no answer, or a 5xx without
// Retry-After. Any other answer, be it 429 or a rejection, comes from a receiver that
// works, or knows when it will.

const (
	breakerClosed   = "closed"
	breakerOpen     = "open"
	breakerHalfOpen = "half_open"
)

// heed has the gate heed what a failed attempt says of the receiver, and returns what
// the log should know. The pipeline is locked.
func heed(w *worker, v verdict) (news string) {
	news = ""
	p := w.pipe
	g := &p.gate
	now := time.Now()
	// What is answered to the copy of a request is about that request.
	repeated := p.set.format == formatRequest
	rest := v.after
	if rest > p.set.maxAge {
		rest = p.set.maxAge // by then nothing that waits now is left, and nobody knows better
	}
	if until := now.Add(rest); rest > 0 && !repeated && until.After(g.pausedTo) {
		g.pausedTo = until
	}
	reason := v.reason
	if v.after > 0 || repeated && reason == reasonGone {
		reason = reasonRejected
	}
	switch reason {
	case reasonGone:
		news = openCircuit(p, goneFor, v)
	case reasonNetwork, reasonTimeout, reasonServerError:
		g.failures++
		failed := p.set.failures > 0 && g.failures >= p.set.failures && g.state == breakerClosed
		if failed || w.probe > 0 && g.state == breakerHalfOpen {
			news = openCircuit(p, p.set.openFor, v)
		}
	case reasonRetired:
	default:
		news = passed(w)
	}
	abandonProbe(w)
	watch(g, now)
	return news
}

// passed notes that the receiver works: the circuit closes. The pipeline is locked.
func passed(w *worker) (news string) {
	news = ""
	p := w.pipe
	g := &p.gate
	g.failures = 0
	if g.state == breakerHalfOpen {
		g.state = breakerClosed
		endProbe(g)
		if g.timer != nil { // it was open before, and not only for a handshake
			news = fmt.Sprintf("requestmirror %q, receiver %s: circuit closed, events are delivered again", p.ledger.name, p.ledger.receiver)
		}
	}
	return news
}

// openCircuit drops events for a while. The log knows of an open circuit, so it is not
// told again when a probe fails. The pipeline is locked.
func openCircuit(p *pipeline, d time.Duration, v verdict) (news string) {
	news = ""
	g := &p.gate
	if g.state == breakerClosed || v.reason == reasonGone || g.timer == nil {
		news = fmt.Sprintf("requestmirror %q, receiver %s: circuit opened after %d failures in a row, events are dropped as %s for %v, then one is tried; %s",
			p.ledger.name, p.ledger.receiver, g.failures, reasonCircuitOpen, d, v.detail)
		if v.reason == reasonGone {
			news = fmt.Sprintf("requestmirror %q, receiver %s: circuit opened for %v: %s", p.ledger.name, p.ledger.receiver, d, v.detail)
		}
	}
	g.state = breakerOpen
	g.guarded = true
	g.permitted = g.permitted && v.reason != reasonGone
	p.room = 0
	if len(p.shut) == 0 {
		p.shut <- struct{}{}
	}
	if g.timer != nil {
		g.timer.Stop()
	}
	g.timer = time.AfterFunc(d, func() { halfOpen(p) })
	return news
}

// halfOpen lets events into the queue again, the first of which is the probe.
func halfOpen(p *pipeline) {
	defer contain()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gate.state != breakerOpen {
		return
	}
	p.gate.state = breakerHalfOpen
	if len(p.shut) > 0 {
		<-p.shut
	}
}

// abandonProbe lets those go on who waited for the worker's probe. The pipeline is
// locked.
func abandonProbe(w *worker) {
	g := &w.pipe.gate
	if w.probe > 0 && w.probe == g.probes {
		endProbe(g)
	}
	w.probe = 0
}

func endProbe(g *gate) {
	if g.probe != nil {
		close(g.probe)
		g.probe = nil
	}
}
