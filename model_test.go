//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"errors"
	"fmt"
	"io"
	"math/rand"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A random walk through everything that can happen to a pipeline, with a model of what
// must come of each event. The seed is in the name of a failure.
func TestModel(t *testing.T) {
	for seed := range int64(150) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { logged(func() { walk(t, rand.New(rand.NewSource(seed))) }) })
	}
}

func walk(t *testing.T, random *rand.Rand) {
	const attempts = 3
	options := opts{
		"workers": 1 + random.Intn(3), "queueSize": 1 + random.Intn(12), "overflow": []string{"dropNewest", "dropOldest"}[random.Intn(2)],
		"retry.attempts": attempts, "maxAge": "20s", "timeout": "4s", "drainTimeout": []string{"0s", "3s"}[random.Intn(2)], "memoryLimit": 20000,
	}
	onStage(t, options, nil, func(t *testing.T, s *stage) {
		offered := 0
		refused := map[string]uint64{} // final by the answer, by reason
		delivered := uint64(0)
		gone := false
		for range 150 {
			under := s.unanswered()
			switch action := random.Intn(12); {
			case action < 4:
				n := 1 + random.Intn(3)
				offered += n
				s.send(n)
			case action == 4:
				offered++
				size := 1 + random.Intn(9000)
				s.mirror.ServeHTTP(nil, uploadOf(&upload{rest: textOf(size), step: 1000, end: io.EOF}, int64(size)))
				synctest.Wait()
			case action < 10 && len(under) > 0:
				sequence := under[random.Intn(len(under))]
				r := []reply{
					{status: 204}, {status: 200}, {status: 500}, {status: 503, after: "2"}, {status: 429, after: "30"}, {status: 400}, {status: 413},
					{status: 302}, {err: errors.New("reset")}, {hang: true},
				}[random.Intn(10)]
				if random.Intn(40) == 0 {
					r = reply{status: 410}
				}
				last := s.attemptsOf(sequence) == attempts
				switch {
				case r.hang:
					// Ends by the timeout, or with the pipeline.
				case r.status == 204 || r.status == 200:
					delivered++
				case r.status == 400 || r.status == 302:
					refused[reasonRejected]++
				case r.status == 413:
					refused[reasonTooLarge]++
				case r.status == 410:
					refused[reasonGone]++
					gone = true
				case last && r.status >= 500:
					refused[reasonServerError]++
				case last && r.status == 429:
					refused[reasonRejected]++
				case last:
					refused[reasonNetwork]++
				}
				s.answer(sequence, r)
			case action == 10:
				s.wait([]time.Duration{1, time.Millisecond, 50 * time.Millisecond, time.Second, 5 * time.Second, 11 * time.Minute}[random.Intn(6)])
			case action == 11 && random.Intn(8) == 0:
				s.cancel()
				s.wait([]time.Duration{0, gracePeriod, gracePeriod + 3*time.Second}[random.Intn(3)])
			}
			s.addsUp()
			n := s.tally()
			if int(n.Seen) != offered {
				t.Fatalf("at %v: got %d seen; want the %d offered", s.time(), n.Seen, offered)
			}
			if n.Delivered != delivered {
				t.Fatalf("at %v: got %d delivered; want the %d that the receiver took", s.time(), n.Delivered, delivered)
			}
			for reason := range n.Dropped {
				if reason != reasonQueueFull && reason != reasonMemory && reason != reasonCircuitOpen {
					t.Fatalf("at %v: got a drop for %s; want queue_full or memory only", s.time(), reason)
				}
			}
			for _, reason := range []string{reasonTooLarge, reasonGone} {
				if n.Failed[reason] != refused[reason] {
					t.Fatalf("at %v: got %d failed for %s; want %d", s.time(), n.Failed[reason], reason, refused[reason])
				}
			}
			// Others may come by the clock, too.
			if n.Failed[reasonRejected] < refused[reasonRejected] || !gone && n.Failed[reasonCircuitOpen] > 0 || n.Failed[reasonInternal] > 0 {
				t.Fatalf("at %v: got %v failed; want at least %v, none of them internal", s.time(), n.Failed, refused)
			}
			if held := bytesHeld(s.pipe); held > 20000 || held > 0 && n.Waiting+n.InFlight == 0 {
				t.Fatalf("at %v: got %d bytes held with %d waiting, %d in flight; want no more than memoryLimit, and none for nothing", s.time(), held, n.Waiting, n.InFlight)
			}
			if len(s.active) > s.pipe.set.workers {
				t.Fatalf("at %v: got %d attempts at a time; want at most %d", s.time(), len(s.active), s.pipe.set.workers)
			}
		}
		s.byHand = false
		s.answerAll(reply{status: 400})
		s.wait(2 * time.Minute)
		if n := s.tally(); n.Waiting+n.InFlight != 0 {
			t.Fatalf("at the end: got %+v; want nothing left", n)
		}
	})
}

// The same with all there is: several receivers, batches, breakers, reports, reloads.
// What must come of each event depends on too much to be foretold, but it must be
// counted, and the counts must be what the receivers know.
func TestConservation(t *testing.T) {
	for seed := range int64(60) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { logged(func() { wander(t, rand.New(rand.NewSource(seed))) }) })
	}
}

// books are what a walk knows of the events.
type books struct {
	*stage
	random  *rand.Rand
	routers []*Mirror // all that still get requests
	offered map[*ledger]uint64

	looked map[*peer]int     // calls that are in the books
	open   []*call           // those that had not ended then
	taken  map[string]uint64 // by boot
	once   map[string]bool   // sequences that were taken
}

func wander(t *testing.T, random *rand.Rand) {
	pick := func(list ...interface{}) interface{} { return list[random.Intn(len(list))] }
	options := opts{
		"workers": pick(1, 2, 4, "auto"), "queueSize": pick(1, 2, 5, 50), "overflow": pick("dropNewest", "dropOldest"),
		"retry.attempts": pick(1, 3), "maxAge": pick("3s", "30s"), "timeout": pick("1s", "4s"), "drainTimeout": pick("0s", "3s"), "memoryLimit": 30000,
		"batch.maxEvents": pick(1, 1, 2, 7, 100), "batch.maxSize": pick("2Ki", "1Mi"), "batch.flushInterval": pick("10ms", "2s"),
		"compression": pick("none", "gzip"), "maxEventSize": pick("off", "4Ki"),
		"circuitBreaker.failures": pick(0, 1, 3), "circuitBreaker.openFor": pick("500ms", "10s"), "reportInterval": pick("0s", "1s", "20s"),
	}
	onStage(t, options, nil, func(t *testing.T, s *stage) {
		b := &books{stage: s, random: random, routers: []*Mirror{s.mirror}, offered: map[*ledger]uint64{}, looked: map[*peer]int{}, taken: map[string]uint64{}, once: map[string]bool{}}
		b.check()
		for range 120 {
			b.step(options)
			b.check()
		}
		for _, p := range s.peers {
			p.play(reply{status: 204})
			p.answerAll(reply{status: 204})
		}
		s.wait(2 * time.Minute)
		b.check()
		for _, p := range s.pipes {
			if n := tallyIn(t, p); n.Waiting+n.InFlight != 0 {
				t.Errorf("at the end: got %+v; want nothing left", n)
			}
		}
		for _, p := range s.peers {
			for _, r := range p.told() {
				r.isTrue(t)
			}
		}
	})
}

func (b *books) step(options opts) {
	random := b.random
	switch action := random.Intn(20); {
	case action < 6:
		m := b.routers[len(b.routers)-1]
		if random.Intn(5) == 0 {
			m = b.routers[random.Intn(len(b.routers))] // one that a reload replaced
		}
		n := 1 + random.Intn(6)
		for _, p := range append([]*pipeline{m.pipe}, m.others...) {
			b.offered[p.ledger] += uint64(n)
		}
		for range n {
			if random.Intn(2) == 0 {
				b.upload(m, 1+random.Intn(9000))
			} else {
				b.request(m, 1)
			}
		}
	case action < 15:
		under := []*call{}
		for _, host := range []string{"receiver.test", "second.test", "third.test"} {
			if p := b.peers[host]; p != nil {
				under = append(under, p.pending()...)
			}
		}
		if len(under) == 0 {
			return
		}
		c := under[random.Intn(len(under))]
		c.answered = true
		c.answer <- []reply{
			{status: 204}, {status: 204}, {status: 200}, {status: 204, delay: 900 * time.Millisecond}, {status: 204, delay: 3 * time.Second}, {status: 500},
			{status: 503, after: "2"}, {status: 429, after: "5"}, {status: 400}, {status: 413}, {status: 413}, {status: 302}, {err: errors.New("reset")}, {hang: true},
			{status: 410}, {status: 408},
		}[random.Intn(16)]
		synctest.Wait()
	case action < 18:
		b.wait([]time.Duration{1, time.Millisecond, 10 * time.Millisecond, 100 * time.Millisecond, time.Second, 5 * time.Second, 30 * time.Second, 11 * time.Minute}[random.Intn(8)])
	case action == 18:
		all := opts{}
		for name, value := range options {
			all[name] = value
		}
		switch random.Intn(4) {
		case 0:
			all["watchURLs"] = second
		case 1:
			all["watchURLs"] = second + ",http://third.test/"
		case 2:
			all["timeout"] = "2s" // other pipelines
		}
		b.cancel()
		m, cancel := b.router(all)
		b.mirror, b.cancel = m, cancel
		b.routers = append(b.routers, m)
		if len(b.routers) > 3 {
			b.routers = b.routers[1:]
		}
	default:
		b.wait([]time.Duration{gracePeriod, gracePeriod + 3*time.Second}[random.Intn(2)])
	}
}

// pending are the attempts that wait for an answer by hand, of whatever pipeline.
func (s *peer) pending() (list []*call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if done, _ := c.outcome(); !done && !c.answered {
			list = append(list, c)
		}
	}
	return list
}

// check compares the ledgers with what was offered and with what the receivers took.
func (b *books) check() {
	b.t.Helper()
	under := map[string]int{} // attempts, by boot
	for _, p := range b.peers {
		calls := p.came()
		b.open = append(b.open, calls[b.looked[p]:]...)
		b.looked[p] = len(calls)
	}
	open := b.open
	b.open = nil
	for _, c := range open {
		boot, _, _ := strings.Cut(c.events[0].Sequence, "-")
		done, taken := c.outcome()
		if !done {
			under[boot]++
			b.open = append(b.open, c)
			continue
		}
		if !taken {
			continue
		}
		b.taken[boot] += uint64(len(c.events))
		for _, e := range c.events {
			if b.once[e.Sequence] {
				b.t.Fatalf("at %v: got %s taken twice; want once, as it was delivered", b.time(), e.Sequence)
			}
			b.once[e.Sequence] = true
		}
	}
	delivered := map[*ledger]uint64{}
	busy := map[*budget]uint64{}
	for _, p := range b.pipes {
		delivered[p.ledger] += b.taken[p.boot]
		if under[p.boot] > p.set.workers {
			b.t.Fatalf("at %v: got %d attempts at a time; want at most %d", b.time(), under[p.boot], p.set.workers)
		}
	}
	for _, p := range b.pipes {
		n := tallyIn(b.t, p)
		busy[p.budget] += n.Waiting + n.InFlight
		if n.Seen != b.offered[p.ledger] {
			b.t.Fatalf("at %v: got %d seen by %s; want the %d offered: %+v", b.time(), n.Seen, n.Receiver, b.offered[p.ledger], n)
		}
		if n.Delivered != delivered[p.ledger] {
			b.t.Fatalf("at %v: got %d delivered to %s; want the %d that it took: %+v", b.time(), n.Delivered, n.Receiver, delivered[p.ledger], n)
		}
		if n.Failed[reasonInternal] > 0 {
			b.t.Fatalf("at %v: got %+v; want no internal error", b.time(), n)
		}
	}
	for _, p := range b.pipes {
		if held := bytesHeld(p); held > 30000 || held < 0 || held > 0 && busy[p.budget] == 0 {
			b.t.Fatalf("at %v: got %d bytes held with %d events waiting or in flight; want no more than memoryLimit, and none for nothing", b.time(), held, busy[p.budget])
		}
	}
	if b.t.Failed() {
		b.t.FailNow()
	}
}
