package requestmirror

import (
	"context"
	"math"
	"strings"
	"time"
)

// Batches are made by one worker at a time, whose turn it is, while others send
// theirs: if each gathered for itself, there would be as many small batches as
// workers. Events wait in the queue, and the one who gathers sleeps until the bell
// rings: for the first event, for every few more, and when the batch's time is over.
// So the queue of a receiver that keeps up stays short, and a request seldom has to
// wake anybody.
type gathering struct {
	bell   chan struct{} // nil unless events go in batches; sent to under the pipeline's lock, never closed
	turn   chan struct{} // its only item is with the worker that gathers
	timer  *time.Timer   // rings when the batch's time is over
	due    time.Time     // when that is
	asleep bool          // whether the worker that gathers waits for the bell
	lacks  int           // events that it waits for: one to begin with, or what makes the batch full
	enough int           // events that ring the bell
	begin  *delivery     // the beginning of a batch, that did not fit into the one before
	left   []*capture    // taken, but not yet written when the batch before was full
}

// handful is how many events ring the bell, and are taken out of the queue at once. Fewer
// do if the queue is short, so that it has room until the worker is awake.
const handful = 64

func startGathering(p *pipeline) {
	p.gathering.enough = (p.set.queueSize + 1) / 2
	if p.gathering.enough > handful {
		p.gathering.enough = handful
	}
	p.gathering.bell = make(chan struct{}, 1)
	p.gathering.turn = make(chan struct{}, 1)
	p.gathering.turn <- struct{}{}
	context.AfterFunc(p.pace, func() { wake(p) })
}

func wake(p *pipeline) {
	defer contain()
	p.mu.Lock()
	ring(p)
	p.mu.Unlock()
}

// ring wakes the worker that gathers, or makes it look again before it sleeps. The
// pipeline is locked.
func ring(p *pipeline) {
	p.gathering.asleep = false
	p.room = roomToGather(p)
	if len(p.gathering.bell) == 0 {
		p.gathering.bell <- struct{}{}
	}
}

// roomToGather is how many events may wait before the next look. The pipeline is locked.
func roomToGather(p *pipeline) int {
	g := &p.gathering
	if p.retired || len(p.shut) > 0 {
		return 0
	}
	if g.asleep && g.lacks < g.enough {
		return g.lacks - 1
	}
	if g.asleep {
		return g.enough - 1
	}
	return g.enough
}

// gather waits for events for the worker's batch and takes them out of the queue; or
// seals the batch, whose time is over; or finds something else to do.
func gather(w *worker) {
	p := w.pipe
	g := &p.gathering
	if !w.gathers {
		p.mu.Lock()
		p.idle++
		p.mu.Unlock()
		<-g.turn
		w.gathers = true
		takeOver(w)
	}
	p.mu.Lock()
	for !takeEvents(w) {
		g.asleep = true
		g.lacks = 1
		if w.delivery != nil {
			g.lacks = p.set.batchEvents - len(w.delivery.events)
		}
		p.room = roomToGather(p)
		p.mu.Unlock()
		<-g.bell
		p.mu.Lock()
		g.asleep = false
	}
	if w.left {
		passTurn(w)
		staff(p)
	}
	p.mu.Unlock()
}

// takeEvents says whether there is something to do. The pipeline is locked.
func takeEvents(w *worker) bool {
	p := w.pipe
	d := w.delivery
	if d == nil && p.reporting.due {
		// Before the next batch, and while another worker gathers it.
		w.delivery = takeReport(p)
		leaveRest(w)
		passTurn(w)
		staff(p)
		return true
	}
	if d == nil && surplus(p) {
		leaveRest(w)
		w.left = true
		return true
	}
	if len(w.taken) > 0 {
		return true
	}
	n := p.set.batchEvents
	if d != nil {
		n -= len(d.events)
	}
	if n > handful {
		n = handful
	}
	if len(p.shut) > 0 && len(p.queue) > 0 {
		turnAway(p)
		return true // to come back soon, when requests had the lock
	}
	var c *capture
	if n > len(p.queue) {
		n = len(p.queue)
	}
	p.counts.inFlight += uint64(n)
	for n > 0 {
		n--
		c = <-p.queue
		w.taken = append(w.taken, c)
	}
	if len(w.taken) > 0 {
		return true
	}
	if d != nil {
		d.open = !p.retired && p.pace.Err() == nil && time.Now().Before(p.gathering.due)
		return !d.open
	}
	if p.retired {
		w.left = leave(p)
		return w.left || takeEvents(w)
	}
	return false
}

// turnAway counts some of what waits while the circuit is open. The pipeline is locked.
func turnAway(p *pipeline) {
	n := len(p.queue)
	if n > atOnce {
		n = atOnce
	}
	for n > 0 {
		n--
		c := <-p.queue
		p.counts.inFlight++
		settleFailed(p, c, reasonCircuitOpen)
	}
}

// passTurn lets another worker gather. The pipeline is locked.
func passTurn(w *worker) {
	if w.gathers {
		w.gathers = false
		w.pipe.idle--
		w.pipe.gathering.turn <- struct{}{}
	}
}

// beginBatch is an empty batch, to which events are added until it is sealed.
func beginBatch(w *worker) *delivery {
	d := &delivery{open: true}
	d.text.Grow(w.usual)
	d.text.WriteByte('[')
	p := w.pipe
	p.mu.Lock()
	setAlarm(p)
	p.mu.Unlock()
	return d
}

// setAlarm has the bell ring when the time of the batch that begins is over. The
// pipeline is locked.
func setAlarm(p *pipeline) {
	g := &p.gathering
	g.due = time.Now().Add(p.set.flushInterval)
	if g.timer == nil {
		g.timer = time.AfterFunc(p.set.flushInterval, func() { wake(p) })
	} else {
		g.timer.Reset(p.set.flushInterval)
	}
}

// seal ends a batch and lets another worker gather.
//
// It returns whether the gate is to be looked at.
func seal(w *worker) bool {
	d := w.delivery
	d.id = newID(time.Now())
	endText(d)
	w.usual = len(d.payload) + len(d.payload)/8
	p := w.pipe
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(w.rest) > 0 {
		p.gathering.begin = w.rest[0] // carried over
		w.rest = nil
	}
	leaveRest(w)
	passTurn(w)
	staff(p)
	return p.gate.guarded
}

// leaveRest leaves what the worker has taken, but not written, to the next one that
// gathers. The pipeline is locked.
func leaveRest(w *worker) {
	g := &w.pipe.gathering
	g.left = append(g.left, w.taken[w.next:]...)
	w.taken = nil
	w.next = 0
}

// leftOver is how much the worker that gathered last has left for the next one. The
// pipeline is locked.
func leftOver(p *pipeline) int {
	n := len(p.gathering.left)
	if p.gathering.begin != nil {
		n++
	}
	return n
}

// takeOver goes on where the worker that gathered before was when its batch was full.
func takeOver(w *worker) {
	p := w.pipe
	g := &p.gathering
	p.mu.Lock()
	defer p.mu.Unlock()
	w.taken = g.left
	g.left = nil
	if g.begin != nil {
		w.delivery = g.begin
		g.begin = nil
		setAlarm(p)
	}
}

// sizeLimits are the most bytes of an event and of a batch.
func sizeLimits(set *settings) (event, batch int) {
	event = math.MaxInt
	batch = set.batchSize
	if set.maxEventSize > 0 {
		event = set.maxEventSize
		if set.batchEvents > 1 {
			event -= len("[]") - len(",") // each event has a comma behind it
		}
		if batch > set.maxEventSize {
			batch = set.maxEventSize
		}
	}
	return event, batch
}

// endText makes the payload: each event is followed by a byte, of which the last one
// becomes the end of the batch.
func endText(d *delivery) {
	d.open = false
	d.payload = d.text.Bytes()
	d.payload[len(d.payload)-1] = ']'
}

// carryOver takes the last event, which begins at start, out of a batch that it made too
// large, and begins the next one with it.
func carryOver(w *worker, start int) {
	d := w.delivery
	next := &delivery{open: true, earliest: d.earliest}
	_ = next.text.WriteByte('[')
	_, _ = next.text.Write(d.text.Bytes()[start:])
	last := len(d.events) - 1
	addEvent(next, d.events[last])
	w.rest = append(w.rest, next)
	d.text.Truncate(start)
	d.events = d.events[:last]
	d.holders = d.holders[:len(d.holders)-len(next.holders)]
}

// addEvent notes that the delivery carries the event.
func addEvent(d *delivery, c *capture) {
	d.events = append(d.events, c)
	if c.body != nil || c.response != nil {
		d.holders = append(d.holders, c)
	}
}

// excerpt is a batch of some of another's events. It has an id of its own, as its
// content is another.
func excerpt(d *delivery, wanted func(i int) bool) *delivery {
	e := &delivery{id: newID(time.Now())}
	_ = e.text.WriteByte('[')
	texts := strings.Split(d.text.String()[1:], batchBreak[:1])
	for i, c := range d.events {
		if wanted(i) {
			_, _ = e.text.WriteString(strings.TrimPrefix(texts[i], batchBreak[1:]) + batchBreak)
			addEvent(e, c)
		}
	}
	return e
}

// split halves a batch that the receiver found too large. The halves are deliveries of
// their own, so each has all attempts.
func split(w *worker) {
	d := w.delivery
	half := len(d.events) / 2
	first := excerpt(d, func(i int) bool { return i < half })
	second := excerpt(d, func(i int) bool { return i >= half })
	endText(first)
	endText(second)
	w.rest = append(w.rest, second)
	w.delivery = first
}
