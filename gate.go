package requestmirror

import (
	"context"
	"time"
)

// gate is what keeps attempts from a receiver: its own wish (Retry-After, the rate of
// the handshake) and the circuit breaker. The pipeline's lock guards it.
type gate struct {
	guarded  bool      // whether an attempt needs a look here
	pausedTo time.Time // Retry-After: no attempt before

	// breaker.go
	state    string        // breakerClosed, breakerOpen, breakerHalfOpen
	failures int           // in a row
	timer    *time.Timer   // half-opens
	probes   int           // so far
	probe    chan struct{} // closed when the outcome of the last one is known; nil while there is none

	// handshake.go
	permitted bool
	interval  time.Duration // between attempts; zero: any
	slot      time.Time     // of the next attempt
}

// await waits before an attempt, for the backoff or as the receiver asked, and says
// whether there is to be one. If not, all events of the delivery have failed; those
// that got too old have in any case.
func await(w *worker, wait time.Duration) bool {
	p := w.pipe
	start := time.Now().Add(wait)
	for {
		if p.life.Err() != nil {
			fail(w, verdict{reason: reasonRetired})
			return false
		}
		until, probe, open := approach(w, start)
		if open {
			fail(w, verdict{reason: reasonCircuitOpen})
			return false
		}
		if probe != nil {
			<-probe // for one attempt at most
			continue
		}
		if !weed(w, until) {
			return false
		}
		now := time.Now()
		if !until.After(now) {
			return !needsHandshake(w) || shakeHands(w)
		}
		pause(p, until.Sub(now))
	}
}

// approach says when the attempt may begin; if that is now, it has its slot, and is the
// probe if the circuit is half open. Or it says whose outcome is to be waited for, or
// that the circuit is open.
func approach(w *worker, start time.Time) (until time.Time, probe chan struct{}, open bool) {
	p := w.pipe
	g := &p.gate
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	until = start
	if g.pausedTo.After(until) {
		until = g.pausedTo
	}
	if g.slot.After(until) {
		until = g.slot
	}
	if p.pace.Err() != nil {
		until = now // nobody waits any more
	}
	if g.state == breakerOpen {
		return until, nil, true
	}
	if g.state == breakerHalfOpen && w.probe == 0 && g.probe != nil {
		return until, g.probe, false
	}
	if until.After(now) {
		return until, nil, false
	}
	if g.state == breakerHalfOpen && w.probe == 0 {
		g.probes++
		g.probe = make(chan struct{})
		w.probe = g.probes
	}
	if g.interval > 0 {
		g.slot = now.Add(g.interval)
	}
	watch(g, now)
	return now, nil, false
}

// watch notes whether the next attempt needs a look at the gate. The pipeline is locked.
func watch(g *gate, now time.Time) {
	g.guarded = g.state != breakerClosed || g.failures > 0 || g.interval > 0 || now.Before(g.pausedTo)
}

// pause waits for d, or until it is of no use to wait: the pipeline ends, or Traefik does.
func pause(p *pipeline, d time.Duration) {
	ctx, cancel := context.WithTimeout(p.pace, d)
	defer cancel()
	<-ctx.Done()
}

// weed fails the events of the delivery that will be older than maxAge at the given
// time, and says whether some are left. A report has no age.
func weed(w *worker, by time.Time) bool {
	d := w.delivery
	p := w.pipe
	if now := time.Now(); by.Before(now) {
		by = now
	}
	oldest := by.Add(-p.set.maxAge)
	old := []*capture{}
	for _, c := range d.events {
		if readySince(c).Before(oldest) {
			old = append(old, c)
		}
	}
	if len(old) == 0 {
		return true
	}
	if len(old) == len(d.events) {
		fail(w, verdict{reason: reasonExpired})
		return false
	}
	settleAll(p, old, reasonExpired)
	w.delivery = excerpt(d, func(i int) bool { return !d.events[i].settled })
	w.delivery.attempts = d.attempts
	endText(w.delivery)
	return true
}
