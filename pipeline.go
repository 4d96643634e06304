package requestmirror

import (
	"context"
	"fmt"
	"net/http"
	"reflect"
	"sync"
	"time"
)

// pipeline is the way from the routers of one middleware to its receiver: a bounded
// queue, the workers that empty it, and a byte budget over everything between.
//
// Its life, which registry.go leads:
//
//	lease ─▶ LIVE ── last lease ended, grace over ─▶ RETIRED ── empty, or drainTimeout ─▶ GONE
//	          ▲ │
//	          └─┘ leased again within the grace, as Traefik does at a reload
//
// A request that a replaced configuration still serves when the pipeline is gone
// starts a worker of its own, which leaves when the event is sent; it fails as retired
// only if the pipeline did not get empty within drainTimeout.
//
// There is no select here: Yaegi keeps one case list per statement, so workers
// would take each other's events.
type pipeline struct {
	set    *settings // of delivery; never changes
	ledger *ledger   // shared by the pipelines of one middleware name
	sender *sender
	budget *budget
	form   string // of the events' first part: source and boot are the same in all

	// queue has room for set.queueSize events and one notice to leave (nil). Only
	// who holds the ledger's lock sends, after a look at the length, so that a send
	// never waits. It is never closed, so that a late request cannot panic.
	queue chan *capture

	// life ends with drainTimeout, pace with it or when Traefik ends: a worker that
	// waits for another attempt waits no longer.
	life     context.Context
	endLife  context.CancelFunc
	pace     context.Context
	endPaces context.CancelFunc

	// mu is the ledger's lock, so that counts and queue always agree. It guards all
	// below but the leases.
	mu        *sync.Mutex
	room      int    // an offer needs no second look while fewer events wait
	short     bool   // whether there could be more workers; room is then what idle ones can take
	sequence  uint64 // of the last event offered
	running   int    // workers
	idle      int    // workers that wait for work
	retired   bool
	forgotten bool        // whether the registry has let go of it
	drain     *time.Timer // ends the life of a retired pipeline
	cautious  bool        // whether one of the next two may be in the future
	pausedTo  time.Time   // Retry-After: no attempt before
	goneUntil time.Time   // 410: no attempt before, events fail at once

	// Guarded by the registry's lock.
	leases int
	grace  *time.Timer
}

func newPipeline(set *settings, l *ledger, boot int64) *pipeline {
	p := &pipeline{
		set: set, ledger: l, mu: &l.mu, sender: newSender(set), budget: newBudget(set.memoryLimit),
		form: formOf(set.source, fmt.Sprintf("%012x", boot)),
	}
	p.queue = make(chan *capture, set.queueSize+1)
	life, endLife := context.WithCancel(context.Background())
	pace, endPaces := context.WithCancel(life)
	p.life = life
	p.endLife = endLife
	p.pace = pace
	p.endPaces = endPaces
	return p
}

// offer puts the capture into the queue or counts why not. It never waits: the lock
// is held for a few instructions and by nobody who does I/O.
func offer(p *pipeline, c *capture) {
	p.mu.Lock()
	if len(p.queue) < p.room {
		p.sequence++
		c.sequence = p.sequence
		p.queue <- c
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	offerCarefully(p, c)
}

// offerCarefully is offer where there is more to look at: workers to start, a
// backlog, a full queue, a pipeline that is retired.
func offerCarefully(p *pipeline, c *capture) {
	defer contain()
	if n := len(p.queue); n >= backlog && (n < p.set.queueSize || p.set.dropOldest) {
		weigh(p.budget, c)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sequence++
	c.sequence = p.sequence
	if p.forgotten {
		p.ledger.past++
	}
	if c.refused {
		drop(p, c, reasonMemory)
	} else if len(p.queue) >= p.set.queueSize && !makeRoom(p) {
		drop(p, c, reasonQueueFull)
	} else {
		p.queue <- c
		staff(p)
	}
}

// dropEarly counts a request that found the queue full and was not captured.
func dropEarly(p *pipeline) {
	p.mu.Lock()
	p.sequence++
	l := p.ledger
	l.early++
	if p.forgotten || l.teller == nil {
		noteEarly(p)
	}
	p.mu.Unlock()
}

// noteEarly does what dropEarly seldom has to do. The pipeline is locked.
func noteEarly(p *pipeline) {
	if p.forgotten {
		p.ledger.past++
	}
	if p.ledger.teller == nil {
		p.ledger.teller = tellLater(p.ledger)
	}
}

// drop counts an event that found no place. The pipeline is locked.
func drop(p *pipeline, c *capture, reason string) {
	p.ledger.dropped[reason]++
	lose(p.ledger)
	discharge(p.budget, c)
}

// makeRoom takes the oldest event out of a full queue, if the operator wants that,
// and says whether there is room now. The pipeline is locked. The receive goes by
// reflection because it must not wait: a worker may have been faster.
func makeRoom(p *pipeline) bool {
	if !p.set.dropOldest {
		return false
	}
	v, ok := reflect.ValueOf(p.queue).TryRecv()
	if ok {
		evict(p, v.Interface())
	}
	return len(p.queue) < p.set.queueSize
}

func evict(p *pipeline, oldest interface{}) {
	c, ok := oldest.(*capture)
	if !ok || c == nil {
		p.queue <- nil // a notice to leave, which keeps
		return
	}
	lose(p.ledger)
	p.ledger.failed[reasonQueueFull]++
	c.settled = true
	discharge(p.budget, c)
}

// staff starts a worker if more events wait than workers, and sets room and short.
// The pipeline is locked.
func staff(p *pipeline) {
	if p.running < p.set.workers && len(p.queue) > p.idle {
		if p.retired && p.running == 0 {
			p.queue <- nil
		}
		p.running++
		go work(p)
	}
	p.short = p.running < p.set.workers
	p.room = backlog
	if p.short {
		p.room = p.idle
	}
	if p.room > p.set.queueSize {
		p.room = p.set.queueSize
	}
	if p.retired {
		p.room = 0 // a late offer may have to start a worker
	}
}

// leave says whether the worker that got the notice to leave may do so; it passes
// the notice on behind what still waits, or to the other workers. The last worker
// leaves nothing behind. The pipeline is locked.
func leave(p *pipeline) bool {
	if len(p.queue) > 0 {
		p.queue <- nil
		return false
	}
	p.running--
	if p.running > 0 {
		p.queue <- nil
	} else {
		dissolve(p)
	}
	return true
}

// retire lets the workers leave when the queue is empty, and ends what is still
// under way after drainTimeout.
func retire(p *pipeline) {
	p.mu.Lock()
	p.retired = true
	p.room = 0
	p.short = false
	if p.running == 0 {
		dissolve(p)
	} else {
		p.queue <- nil
		p.drain = time.AfterFunc(p.set.drainTimeout, p.endLife)
	}
	p.mu.Unlock()
}

// dissolve lets go of what a retired pipeline without workers still holds. It may
// run again, after a late request. The pipeline is locked.
func dissolve(p *pipeline) {
	if p.drain != nil {
		p.drain.Stop()
	}
	go cleanUp(p)
}

func cleanUp(p *pipeline) {
	defer contain()
	if t, ok := p.sender.transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
	forget(p)
	publish()
	tell(p.ledger)
}
