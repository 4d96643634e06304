package requestmirror

import "time"

// How many workers a pipeline has: they are started when events wait, and leave when
// the pipeline is retired or the receiver bears fewer.

// staff starts a worker if more events wait than workers, and sets room and short.
// The pipeline is locked.
func staff(p *pipeline) {
	waiting := len(p.queue)
	if p.gathering.bell != nil {
		waiting += leftOver(p)
		if p.idle > 0 {
			waiting = 0 // one worker takes them all
		}
	}
	if p.running < p.allowed && waiting > p.idle {
		if p.retired && p.running == 0 {
			notify(p)
		}
		p.running++
		go work(p)
	}
	p.short = p.running < p.allowed
	p.room = p.set.queueSize
	if p.short {
		p.room = p.idle
	}
	if p.gathering.bell != nil && (p.gathering.asleep || !p.short) {
		p.room = roomToGather(p)
	}
	if p.room > p.set.queueSize {
		p.room = p.set.queueSize
	}
	if p.retired || len(p.shut) > 0 {
		p.room = 0 // a late offer may have to start a worker, and an open circuit takes none
	}
}

// surplus says whether there are more workers than allowed, one of which then leaves.
// The pipeline is locked.
func surplus(p *pipeline) bool {
	if p.running <= p.allowed || p.retired {
		return false
	}
	p.running--
	return true
}

// dismiss has an idle worker leave, if there are more than allowed. The pipeline is
// locked.
func dismiss(p *pipeline) {
	if p.running > p.allowed && p.idle > 0 && len(p.queue) == 0 {
		notify(p)
	}
}

// follow has the number of workers follow the receiver. The pipeline is locked.
func follow(p *pipeline, d *delivery, pushedBack bool) {
	if p.adaptive == nil {
		return
	}
	now := time.Now()
	adapt(p.adaptive, now, now.Sub(d.begun), p.running-p.idle, pushedBack)
	p.allowed = p.adaptive.limit
	staff(p)
	dismiss(p)
}

// notify has an idle worker look up. The pipeline is locked.
func notify(p *pipeline) {
	if p.gathering.bell != nil {
		ring(p)
	} else if len(p.queue) < cap(p.queue) {
		p.notices++
		p.queue <- nil
	}
}

// lookUp does what a worker was notified of. The pipeline is locked.
func lookUp(w *worker) {
	p := w.pipe
	p.notices--
	if p.reporting.due {
		w.delivery = takeReport(p)
	} else if p.retired {
		w.left = leave(p)
	} else {
		w.left = surplus(p)
		dismiss(p)
	}
}

// leave says whether the worker that was told of the pipeline's retirement may leave;
// it tells the others, once nothing waits any more. The last worker leaves nothing
// behind, and a last report before. The pipeline is locked.
func leave(p *pipeline) bool {
	if len(p.queue)-p.notices+leftOver(p) > 0 {
		notify(p)
		return false
	}
	if p.running == 1 && !p.reporting.closed {
		p.reporting.closed = true
		p.reporting.told = "" // the last one is sent whatever was told before
		if askReport(p) {
			return false
		}
	}
	p.running--
	if p.running > 0 {
		notify(p)
	} else {
		dissolve(p)
	}
	return true
}
