package requestmirror

import (
	"fmt"
	"sort"
	"time"
)

// What becomes of a delivery: it is counted, tried again, or has failed. That all goes
// well is counted by run itself.

// noteSuccess does what a success seldom has to do, and returns what the log should
// know. The pipeline is locked.
func noteSuccess(w *worker, d *delivery) (news string) {
	news = ""
	p := w.pipe
	if d.report != "" {
		p.reporting.told = d.report
	}
	if p.gate.guarded {
		news = passed(w)
		abandonProbe(w)
		watch(&p.gate, time.Now())
	}
	follow(p, d, false)
	return news
}

// goOn decides what follows a failed attempt: the delivery is tried again after a wait,
// up to retry.attempts attempts within maxAge, or it has failed.
func goOn(w *worker, v verdict) {
	p := w.pipe
	d := w.delivery
	v.detail = fmt.Sprintf("attempt %d of %d: %s", d.attempts, p.set.attempts, v.detail)
	noteFailure(w, v)
	if v.reason == reasonTooLarge && len(d.events) > 1 {
		split(w)
		return
	}
	if !v.retry || d.attempts >= p.set.attempts || d.report != "" {
		fail(w, v)
		return
	}
	wait := v.after
	if wait == 0 {
		wait = backoff(p.set, d.attempts)
	}
	if await(w, wait) {
		p.mu.Lock()
		p.counts.retried++
		p.mu.Unlock()
	}
}

// noteFailure counts an attempt that failed, and has the gate heed it.
func noteFailure(w *worker, v verdict) {
	p := w.pipe
	d := w.delivery
	took := time.Since(d.begun).Seconds()
	p.mu.Lock()
	p.counts.attempts[sort.SearchFloat64s(attemptBounds, took)]++
	p.counts.seconds += took
	p.ledger.lastError = v.detail
	news := heed(w, v)
	follow(p, d, v.retry)
	p.mu.Unlock()
	if news != "" {
		logError(news)
	}
}

// fail counts the events of the worker's delivery as failed. A reason without a detail
// leaves the last error that the log tells as it was, which is why they came so far.
func fail(w *worker, v verdict) {
	d := w.delivery
	w.delivery = nil
	p := w.pipe
	settleAll(p, d.events, v.reason)
	p.mu.Lock()
	if v.detail != "" {
		p.ledger.lastError = v.detail
	}
	abandonProbe(w)
	p.mu.Unlock()
}

// giveUp counts one event as failed.
func giveUp(w *worker, c *capture, v verdict) {
	p := w.pipe
	p.mu.Lock()
	p.ledger.lastError = v.detail
	settleFailed(p, c, v.reason)
	p.mu.Unlock()
}

// atOnce is how many events are counted under one hold of the lock at most, as requests take
// it, too: in Yaegi, a batch of thousands would keep them for a tenth of a second.
const atOnce = 16

// settleAll counts events as failed. The pipeline is not locked.
func settleAll(p *pipeline, events []*capture, reason string) {
	for len(events) > 0 {
		events = settleSome(p, events, reason)
	}
}

// settleSome counts the first of the events, and returns the others.
func settleSome(p *pipeline, events []*capture, reason string) []*capture {
	n := len(events)
	if n > atOnce {
		n = atOnce
	}
	p.mu.Lock()
	for _, c := range events[:n] {
		settleFailed(p, c, reason)
	}
	p.mu.Unlock()
	return events[n:]
}

// settleFailed counts an event that a worker was at as failed. The pipeline is locked.
func settleFailed(p *pipeline, c *capture, reason string) {
	if c.settled {
		return
	}
	c.settled = true
	p.counts.failed[reason]++
	p.counts.inFlight--
	lose(p.ledger)
	settleBody(p, c)
}

// settleBodies lets go of what events held that are delivered. The pipeline is not locked.
func settleBodies(p *pipeline, events []*capture) {
	for len(events) > 0 {
		n := len(events)
		if n > atOnce {
			n = atOnce
		}
		p.mu.Lock()
		for _, c := range events[:n] {
			settleBody(p, c)
		}
		p.mu.Unlock()
		events = events[n:]
	}
}

// settleBody lets go of what an event held that is counted. The pipeline is locked.
func settleBody(p *pipeline, c *capture) {
	countCut(p, c.body, c.trimmed, c.withheld)
	if c.response != nil {
		countCut(p, c.response.body, c.shorn, c.hushed)
	}
	discharge(p, c)
}

// countCut counts a body that is not whole, by the reason that its event gives. The pipeline
// is locked.
func countCut(p *pipeline, b *body, trimmed, withheld bool) {
	if b == nil {
		return
	}
	if withheld {
		p.counts.truncated[cutContentType]++
	} else if trimmed && (b.cut == "" || b.cut == cutLimit) {
		p.counts.truncated[cutEvent]++
	} else if b.cut != "" {
		p.counts.truncated[b.cut]++
	}
}

// rescue counts what a worker was at that panicked; the worker goes on.
func rescue(w *worker) {
	r := recover()
	if r == nil {
		return
	}
	countPanic(r)
	v := verdict{reason: reasonInternal, detail: "a fault of the plugin"}
	d := w.delivery
	if w.end > 0 {
		several := w.end > w.next+1 && !w.careful
		w.end = 0
		if d != nil {
			d.text.Truncate(w.start)
		}
		if several {
			w.careful = true // which one it was will be seen when each is written by itself
			return
		}
		c := w.taken[w.next]
		w.taken[w.next] = nil
		w.next++
		giveUp(w, c, v)
		if d != nil && d.open {
			return
		}
	}
	if d != nil {
		fail(w, v)
	}
}
