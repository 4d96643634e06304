package requestmirror

import (
	"context"
	"fmt"
	"math/rand"
	"reflect"
	"sync"
	"sync/atomic"
	"time"
)

// pipeline is the way from the routers of one middleware to one of its receivers: a
// bounded queue, the workers that empty it, and a byte budget over everything between.
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
	to     target
	ledger *ledger // shared with pipelines that this one replaced
	budget *budget // shared with the pipelines to the middleware's other receivers
	boot   string  // first part of its sequence numbers
	born   time.Time
	origin string // of its events, as in their JSON
	form   string // of its events' numbers

	// queue has room for set.queueSize events and two notices to look up (nil): that
	// the pipeline is retired, and that a report is due. Only who holds the ledger's
	// lock sends, after a look at the length, so that a send never waits. It is never
	// closed, so that a late request cannot panic.
	queue chan *capture

	// shut has an item while the circuit is open, so that a request can tell without
	// a lock. Only who holds the lock puts it there and takes it.
	shut chan struct{}

	// life ends with drainTimeout, pace with it or when Traefik ends: a worker that
	// waits for another attempt waits no longer.
	life     context.Context
	endLife  context.CancelFunc
	pace     context.Context
	endPaces context.CancelFunc

	receivers int64 // atomic: how many the middleware has; the registry writes it

	renewal sync.Mutex // held by the worker that reads the files of secrets

	// mu is the ledger's lock, so that counts and queue always agree. It guards all
	// below but the leases.
	mu        *sync.Mutex
	latest    *settings    // of the newest router, for its files of secrets
	sender    *sender      // replaced when a secret is
	counts    *counts      // the ledger's past, once the registry has let go of it
	room      int          // an offer needs no second look while fewer events wait
	short     bool         // whether there could be more workers; room is then what idle ones can take
	sequence  uint64       // of the last event offered
	bodies    int64        // bytes of shared bodies that it holds
	spare     int64        // bytes that request lines and headers may still take
	running   int          // workers
	allowed   int          // workers that there may be now
	idle      int          // workers that wait for work
	notices   int          // nils in the queue, which take no event's place
	adaptive  *concurrency // decides allowed; nil if it is fixed
	retired   bool
	forgotten bool        // whether the registry has let go of it
	drain     *time.Timer // ends the life of a retired pipeline
	gathering gathering   // of batches
	gate      gate        // keeps attempts from the receiver
	reporting reporting   // to the receiver

	// Guarded by the registry's lock.
	leases int
	grace  *time.Timer
}

func newPipeline(set *settings, to target, l *ledger, budget *budget, boot int64) *pipeline {
	p := &pipeline{
		set: set, to: to, ledger: l, mu: &l.mu, sender: newSender(set, to), budget: budget,
		boot: fmt.Sprintf("%012x", boot), born: time.Now(), counts: newCounts(), receivers: 1, allowed: set.workers, latest: set,
	}
	p.origin = fmt.Sprintf(originForm, quote(set.source))
	p.form = fmt.Sprintf(numbersForm, p.boot)
	p.spare = mostHeaders(set.queueSize)
	p.queue = make(chan *capture, set.queueSize+2)
	p.shut = make(chan struct{}, 1)
	life, endLife := context.WithCancel(context.Background())
	pace, endPaces := context.WithCancel(life)
	p.life = life
	p.endLife = endLife
	p.pace = pace
	p.endPaces = endPaces
	if set.adaptive {
		p.adaptive = newConcurrency(set.workers)
		p.allowed = p.adaptive.limit
	}
	p.gate.state = breakerClosed
	if set.requestOrigin != "" {
		p.gate.state = breakerHalfOpen // the handshake is the first probe
		p.gate.guarded = true
	}
	if set.batchEvents > 1 {
		startGathering(p)
	}
	return p
}

// noRoom says that no receiver can take an event, and has counted it then.
func noRoom(m *Mirror) bool {
	if takes(m.pipe) {
		return false
	}
	for _, p := range m.others {
		if takes(p) {
			return false
		}
	}
	dropEarly(m.pipe, true)
	for _, p := range m.others {
		dropEarly(p, true)
	}
	return true
}

// takes is a look without a lock.
func takes(p *pipeline) bool {
	return (len(p.queue) < p.set.queueSize || p.set.dropOldest) && len(p.shut) == 0
}

// offerAll offers the same event to several pipelines, which share what was captured.
func offerAll(m *Mirror, c *capture) {
	defer contain()
	c.random = rand.Uint64() | 1
	if c.texts == 0 {
		weigh(c)
	}
	share(c.body, 1+len(m.others))
	if c.response != nil {
		share(c.response.body, 1+len(m.others))
	}
	for _, p := range m.others {
		own := *c
		offerShare(p, &own)
	}
	offerShare(m.pipe, c)
}

func share(b *body, holders int) {
	if b != nil {
		b.shared = true
		b.holders = int32(holders)
	}
}

// offerShare offers an event that others hold, too; without its bodies, if the pipeline
// holds its share of them already.
func offerShare(p *pipeline, c *capture) {
	if !takes(p) && dropEarly(p, false) {
		letGo(c)
		return
	}
	if charged := chargedFor(c); charged > 0 && !takeShare(p, c, charged) {
		letGo(c)
		if c.set.format == formatRequest {
			dropCut(p, cutMemory)
			return
		}
		c.body = withoutBytes(c.body)
		if c.response != nil {
			own := *c.response
			own.body = withoutBytes(own.body)
			c.response = &own
		}
	}
	offer(p, c)
}

func takeShare(p *pipeline, c *capture, charged int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One that holds nothing may take any, or a body above the share could never be sent.
	if p.bodies > 0 && p.bodies+charged > p.budget.limit/atomic.LoadInt64(&p.receivers) {
		return false
	}
	c.held = charged
	p.bodies += charged
	return true
}

// chargedFor is what the capture's bodies take of the budget.
func chargedFor(c *capture) int64 {
	n := int64(0)
	if c.body != nil {
		n = c.body.charged
	}
	if c.response != nil && c.response.body != nil {
		n += c.response.body.charged
	}
	return n
}

// withoutBytes is what is left of a body for which there is no memory.
func withoutBytes(b *body) *body {
	if b == nil {
		return nil
	}
	return &body{cut: cutMemory, beyond: b.kept + b.beyond}
}

// offer puts the capture into the queue or counts why not. It never waits: the lock
// is held for a few instructions and by nobody who does I/O.
func offer(p *pipeline, c *capture) {
	if c.texts == 0 {
		weigh(c)
	}
	p.mu.Lock()
	if len(p.queue) < p.room && c.texts <= p.spare {
		p.spare -= c.texts
		p.sequence++
		c.sequence = p.sequence
		p.queue <- c
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	offerCarefully(p, c)
}

// offerCarefully is offer where there is more to look at: workers to start, much that
// waits, a full queue, a pipeline that is retired.
func offerCarefully(p *pipeline, c *capture) {
	defer contain()
	p.mu.Lock()
	defer p.mu.Unlock()
	load(p, c)
	p.sequence++
	c.sequence = p.sequence
	if p.forgotten {
		p.counts.offered++
	}
	if len(p.shut) > 0 {
		drop(p, c, reasonCircuitOpen)
	} else if c.refused {
		drop(p, c, reasonMemory)
	} else if len(p.queue)-p.notices >= p.set.queueSize && !makeRoom(p) {
		drop(p, c, reasonQueueFull)
	} else {
		p.queue <- c
		if p.gathering.asleep {
			ring(p)
		} else {
			staff(p)
		}
	}
}

// dropEarly counts a request that found the queue full or the circuit open, and was
// not captured. Unless that is decided, it returns false if there is room after all:
// the request looked without a lock. With one receiver, serveCrowded does the same.
func dropEarly(p *pipeline, decided bool) bool {
	p.mu.Lock()
	full := len(p.queue)-p.notices >= p.set.queueSize
	if !decided && !full && len(p.shut) == 0 {
		p.mu.Unlock()
		return false
	}
	p.sequence++
	if full && len(p.shut) == 0 {
		p.counts.full++
	} else {
		p.counts.shut++
	}
	if p.forgotten || p.ledger.teller == nil {
		noteEarly(p)
	}
	p.mu.Unlock()
	return true
}

// noteEarly does what dropEarly seldom has to do. The pipeline is locked.
func noteEarly(p *pipeline) {
	if p.forgotten {
		p.counts.offered++
	}
	if p.ledger.teller == nil {
		p.ledger.teller = tellLater(p.ledger)
	}
}

// drop counts an event that found no place. The pipeline is locked.
func drop(p *pipeline, c *capture, reason string) {
	p.counts.dropped[reason]++
	lose(p.ledger)
	discharge(p, c)
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
	return len(p.queue)-p.notices < p.set.queueSize
}

func evict(p *pipeline, oldest interface{}) {
	c, ok := oldest.(*capture)
	if !ok || c == nil {
		p.queue <- nil // a notice, which keeps
		return
	}
	lose(p.ledger)
	p.counts.failed[reasonQueueFull]++
	c.settled = true
	settleBody(p, c)
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
		notify(p)
		p.drain = time.AfterFunc(p.set.drainTimeout, p.endLife)
	}
	p.mu.Unlock()
}

// dissolve lets go of what a retired pipeline without workers still holds. It may
// run again, after a late request. The pipeline is locked.
func dissolve(p *pipeline) {
	for _, timer := range []*time.Timer{p.drain, p.reporting.timer, p.gate.timer, p.gathering.timer} {
		if timer != nil {
			timer.Stop()
		}
	}
	go cleanUp(p)
}

func cleanUp(p *pipeline) {
	defer contain()
	closeIdle(currentSender(p))
	forget(p)
	publish()
	tell(p.ledger)
}
