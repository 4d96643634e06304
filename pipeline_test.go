//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

//go:debug asynctimerchan=0

package requestmirror

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand"
	"net/http"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// reply is what the receiver of a stage does with one attempt.
type reply struct {
	status int
	after  string        // Retry-After
	err    error         // of the network
	delay  time.Duration // before the answer
	hang   bool          // until the attempt is given up
}

// call is one attempt as it came to the receiver of a stage.
type call struct {
	at       time.Duration // since the stage began
	id       string
	sequence int // of the event
	answer   chan reply
	answered bool // by hand
}

// stage is a middleware in a bubble with virtual time. Its receiver stands where the
// transport would open a connection; it follows a script, or is led by hand.
type stage struct {
	t      *testing.T
	began  time.Time
	mirror *Mirror
	pipe   *pipeline
	ledger *ledger
	cancel context.CancelFunc // ends the router's lease

	inspect func(*http.Request) // what is sent; may be nil

	mu      sync.Mutex
	script  []reply // the last one stays
	byHand  bool
	calls   []*call
	active  map[int]*call // under way, by sequence
	highest int           // attempts at the same time
}

// onStage runs do in a bubble, at the end of which nothing may be left.
func onStage(t *testing.T, options opts, script []reply, do func(t *testing.T, s *stage)) {
	t.Helper()
	if !registryIsEmpty() {
		t.Fatal("got pipelines of other tests; want none")
	}
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t, began: time.Now(), script: script, byHand: script == nil, active: map[int]*call{}}
		s.mirror, s.cancel = s.router(options)
		s.pipe = s.mirror.pipe
		s.ledger = s.pipe.ledger
		defer s.end()
		do(t, s)
	})
}

// end ends the lease, and checks that nothing is left.
func (s *stage) end() {
	s.byHand = false
	s.answerAll(reply{status: 204})
	s.cancel()
	synctest.Wait()
	s.wait(gracePeriod + s.pipe.set.drainTimeout)
	s.addsUp()
	if !registryIsEmpty() {
		s.t.Error("got a pipeline after grace and drainTimeout; want none")
	}
	if held := bytesHeld(s.pipe); held != 0 || s.pipe.budget.headers != 0 {
		s.t.Errorf("got %d bytes and %d of headers held at the end; want 0", held, s.pipe.budget.headers)
	}
	if running, idle := s.workers(); running+idle != 0 {
		s.t.Errorf("got %d workers, %d of them idle at the end; want none", running, idle)
	}
	if s.pipe.grace != nil && s.pipe.grace.Stop() || s.pipe.drain != nil && s.pipe.drain.Stop() {
		s.t.Error("got a timer that still runs; want none")
	}
}

// router makes another router with the options, whose lease ends with the function.
func (s *stage) router(options opts) (*Mirror, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	handler, err := New(ctx, http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), configOf(options), s.t.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	m, ok := handler.(*Mirror)
	if !ok {
		s.t.Fatalf("got handler %T; want a mirror", handler)
	}
	if m.pipe != s.pipe {
		m.pipe.sender.transport.(*http.Transport).RegisterProtocol("http", s)
	}
	return m, cancel
}

// RoundTrip is the receiver.
func (s *stage) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err // as the transport does, before it connects
	}
	if s.inspect != nil {
		s.inspect(req)
	}
	payload, _ := io.ReadAll(req.Body)
	_, digits, _ := strings.Cut(eventOf(s.t, payload).Sequence, "-")
	sequence, _ := strconv.Atoi(digits)
	c := &call{at: s.time(), id: req.Header.Get("Webhook-Id"), sequence: sequence, answer: make(chan reply, 1)}
	s.mu.Lock()
	s.calls = append(s.calls, c)
	s.active[sequence] = c
	s.highest = max(s.highest, len(s.active))
	if !s.byHand {
		r := reply{status: 204}
		if len(s.script) > 0 {
			r = s.script[0]
		}
		if len(s.script) > 1 {
			s.script = s.script[1:]
		}
		c.answer <- r
	}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.active, sequence)
		s.mu.Unlock()
	}()
	var r reply
	select {
	case r = <-c.answer:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	late := time.After(r.delay)
	if r.hang {
		late = nil
	}
	select {
	case <-late:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if r.err != nil {
		return nil, r.err
	}
	header := http.Header{}
	if r.after != "" {
		header.Set("Retry-After", r.after)
	}
	return &http.Response{StatusCode: r.status, Header: header, Body: http.NoBody, Request: req}, nil
}

func (s *stage) time() time.Duration { return time.Since(s.began) }

// unanswered are the events that wait for an answer by hand.
func (s *stage) unanswered() (list []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sequence, c := range s.active {
		if !c.answered {
			list = append(list, sequence)
		}
	}
	slices.Sort(list)
	return list
}

func (s *stage) attemptsOf(sequence int) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.calls {
		if c.sequence == sequence {
			n++
		}
	}
	return n
}

// answer ends the attempt of an event, by hand.
func (s *stage) answer(sequence int, r reply) {
	s.t.Helper()
	s.mu.Lock()
	c := s.active[sequence]
	s.mu.Unlock()
	if c == nil || c.answered {
		s.t.Fatalf("at %v: event %d is not under way", s.time(), sequence)
	}
	c.answered = true
	c.answer <- r
	synctest.Wait()
}

func (s *stage) answerAll(r reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.script = []reply{r}
	for _, c := range s.active {
		select {
		case c.answer <- r:
		default:
		}
	}
}

// request sends n requests without a body through a router.
func (s *stage) request(m *Mirror, n int) {
	for range n {
		m.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", Header: http.Header{"X-A": {"b"}}})
	}
	synctest.Wait()
}

func (s *stage) send(n int) { s.request(s.mirror, n) }

func (s *stage) wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// tally is the ledger, checked; it is there after the pipeline is gone, too.
func (s *stage) tally() tally { return tallyIn(s.t, s.pipe) }

func tallyIn(t *testing.T, p *pipeline) tally {
	shown := snapshot(p.ledger)
	n := tally{
		Seen: shown["seen"].(uint64), Filtered: shown["filtered"].(uint64), SampledOut: shown["sampledOut"].(uint64),
		Enqueued: shown["enqueued"].(uint64), Delivered: shown["delivered"].(uint64), InFlight: shown["inFlight"].(uint64),
		Waiting: shown["waiting"].(uint64), Retried: shown["retried"].(uint64),
		Dropped: shown["dropped"].(map[string]uint64), Failed: shown["failed"].(map[string]uint64),
	}
	addsUp(t, n)
	return n
}

// registered is the number of pipelines that new routers may share, and of all.
func registered() (live, all int) {
	registryMu.Lock()
	defer registryMu.Unlock()
	return len(pipelines), len(existing)
}

// workers says how many there are, and how many of them wait for work.
func (s *stage) workers() (running, idle int) {
	s.pipe.mu.Lock()
	defer s.pipe.mu.Unlock()
	return s.pipe.running, s.pipe.idle
}

// addsUp checks the ledger against the queue and the receiver.
func (s *stage) addsUp() {
	s.t.Helper()
	n := s.tally()
	s.pipe.mu.Lock()
	waiting := len(s.pipe.queue)
	if s.pipe.retired && s.pipe.running > 0 {
		waiting-- // the notice to leave
	}
	s.pipe.mu.Unlock()
	if _, all := registered(); all <= 1 && int(n.Waiting) != waiting {
		s.t.Errorf("at %v: got %d events waiting by the ledger; want %d, as in the queue: %+v", s.time(), n.Waiting, waiting, n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if int(n.InFlight) < len(s.active) {
		s.t.Errorf("at %v: got %d events in flight by the ledger; want at least the %d at the receiver", s.time(), n.InFlight, len(s.active))
	}
}

// is checks the counts that are not zero: "delivered", and reasons.
func (s *stage) is(want map[string]uint64) {
	s.t.Helper()
	s.addsUp()
	n := s.tally()
	got := map[string]uint64{"delivered": n.Delivered, "inFlight": n.InFlight, "waiting": n.Waiting, "retried": n.Retried}
	for reason, count := range n.Failed {
		got["failed "+reason] = count
	}
	for reason, count := range n.Dropped {
		got["dropped "+reason] = count
	}
	maps.DeleteFunc(got, func(_ string, n uint64) bool { return n == 0 })
	if !maps.Equal(got, want) {
		s.t.Errorf("at %v: got %v; want %v", s.time(), got, want)
	}
}

// times are when attempts came.
func (s *stage) times() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []time.Duration{}
	for _, c := range s.calls {
		list = append(list, c.at)
	}
	return list
}

func (s *stage) cameAt(want ...time.Duration) {
	s.t.Helper()
	if got := s.times(); !slices.Equal(got, want) {
		s.t.Errorf("got attempts at %v; want %v", got, want)
	}
}

func TestRetriesAreBounded(t *testing.T) {
	for range 20 {
		onStage(t, opts{"retry.attempts": 4, "retry.maxInterval": "300ms"}, []reply{{status: 503}, {err: errors.New("reset")}, {status: 429}, {status: 500}}, func(t *testing.T, s *stage) {
			s.send(1)
			s.wait(time.Second)
			times := s.times()
			if len(times) != 4 {
				t.Fatalf("got %d attempts; want 4", len(times))
			}
			for i, longest := range []time.Duration{100, 200, 300} {
				if wait := times[i+1] - times[i]; wait < 0 || wait > longest*time.Millisecond {
					t.Errorf("got a wait of %v after attempt %d; want at most %vms", wait, i+1, longest)
				}
			}
			for _, c := range s.calls {
				if c.id != s.calls[0].id {
					t.Errorf("got id %s; want the same over all attempts, %s", c.id, s.calls[0].id)
				}
			}
			s.is(map[string]uint64{"failed server_error": 1, "retried": 3})
		})
	}
}

func TestLastAnswerIsTheReason(t *testing.T) {
	for _, c := range []struct {
		last reply
		want string
	}{
		{reply{status: 500}, reasonServerError}, {reply{status: 429}, reasonRejected}, {reply{err: errors.New("reset")}, reasonNetwork},
		{reply{hang: true}, reasonTimeout}, {reply{status: 404}, reasonRejected}, {reply{status: 413}, reasonTooLarge},
	} {
		onStage(t, opts{"retry.attempts": 2}, []reply{{status: 502}, c.last}, func(t *testing.T, s *stage) {
			s.send(1)
			s.wait(time.Minute)
			s.is(map[string]uint64{"failed " + c.want: 1, "retried": 1})
		})
	}
}

func TestRetryAfterIsObeyed(t *testing.T) {
	const second = time.Second
	onStage(t, nil, []reply{{status: 429, after: "7"}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(3 * second)
		s.send(2) // the receiver asked all to wait
		s.is(map[string]uint64{"inFlight": 3})
		s.wait(4*second - 1)
		s.cameAt(0)
		s.wait(1)
		s.cameAt(0, 7*second, 7*second, 7*second)
		s.is(map[string]uint64{"delivered": 3, "retried": 1})
	})
	onStage(t, nil, []reply{{status: 503, after: "Sat, 01 Jan 2000 00:00:10 GMT"}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(10 * second)
		s.cameAt(0, 10*second)
	})
	onStage(t, opts{"retry.initialInterval": "1h", "retry.maxInterval": "1h"}, []reply{{status: 503, after: "1"}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(second)
		s.cameAt(0, second) // Retry-After wins over the backoff
	})
	onStage(t, nil, []reply{{status: 204, after: "30"}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.send(1)
		s.cameAt(0, 0) // of a success it means nothing
	})
	onStage(t, nil, []reply{{status: 400, after: "30"}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.send(1)
		s.cameAt(0, 0) // nor where there is no other attempt
	})
}

func TestRetryAfterBeyondMaxAgeExpiresTheEventAtOnce(t *testing.T) {
	onStage(t, opts{"maxAge": "30s"}, []reply{{status: 503, after: "40"}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.is(map[string]uint64{"failed expired": 1})
		s.send(1)
		s.is(map[string]uint64{"failed expired": 2})
		s.wait(10 * time.Second)
		s.send(1) // may wait for 30 seconds, which is until then
		s.wait(30 * time.Second)
		s.cameAt(0, 40*time.Second)
		s.is(map[string]uint64{"failed expired": 2, "delivered": 1})
	})
}

func TestEventsExpire(t *testing.T) {
	onStage(t, opts{"maxAge": "30s", "workers": 1, "retry.attempts": 100}, []reply{{status: 503}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(30 * time.Second)
		if got := s.times(); len(got) > 101 || got[len(got)-1] > 30*time.Second {
			t.Errorf("got the last of %d attempts at %v; want it within maxAge", len(got), got[len(got)-1])
		}
		n := s.tally()
		if n.Failed[reasonExpired]+n.Failed[reasonServerError] != 1 {
			t.Errorf("got %+v; want the event failed after maxAge", n)
		}
	})
	onStage(t, opts{"maxAge": "3s", "workers": 1, "retry.attempts": 1}, []reply{{hang: true}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(time.Second)
		s.send(1) // is 4 seconds old when the worker is free
		s.wait(time.Second)
		s.send(1) // is 3 seconds old: just not too old
		s.wait(4 * time.Second)
		s.cameAt(0, 5*time.Second)
		s.is(map[string]uint64{"failed timeout": 1, "failed expired": 1, "delivered": 1})
	})
}

func TestAttemptEndsAtItsTimeout(t *testing.T) {
	onStage(t, opts{"timeout": "2s", "retry.attempts": 1}, []reply{{hang: true}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(2*time.Second - 1)
		s.is(map[string]uint64{"inFlight": 1})
		s.wait(1)
		s.is(map[string]uint64{"failed timeout": 1})
	})
	onStage(t, opts{"timeout": "2s"}, []reply{{status: 204, delay: 2*time.Second - 1}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(2 * time.Second)
		s.is(map[string]uint64{"delivered": 1})
	})
}

func TestGoneKeepsEventsAwayForTenMinutes(t *testing.T) {
	onStage(t, opts{"maxAge": "1h"}, []reply{{status: 410}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.is(map[string]uint64{"failed gone": 1})
		s.send(3)
		s.wait(10*time.Minute - 1)
		s.send(1)
		s.is(map[string]uint64{"failed gone": 1, "failed circuit_open": 4})
		s.wait(1)
		s.send(2)
		s.is(map[string]uint64{"failed gone": 1, "failed circuit_open": 4, "delivered": 2})
		s.cameAt(0, 10*time.Minute, 10*time.Minute)
	})
	onStage(t, nil, nil, func(t *testing.T, s *stage) {
		s.send(2) // one is at its first attempt when the other learns that it is of no use
		s.answer(1, reply{status: 410})
		s.answer(2, reply{status: 503})
		s.wait(time.Second)
		s.is(map[string]uint64{"failed gone": 1, "failed circuit_open": 1})
	})
}

func TestFullQueue(t *testing.T) {
	for overflow, want := range map[string][]int{"dropNewest": {1, 2, 3, 4}, "dropOldest": {1, 5, 6, 7}} {
		onStage(t, opts{"workers": 1, "queueSize": 3, "overflow": overflow}, nil, func(t *testing.T, s *stage) {
			s.send(1)
			s.send(3)
			s.is(map[string]uint64{"inFlight": 1, "waiting": 3})
			s.send(3)
			if overflow == "dropNewest" {
				s.is(map[string]uint64{"inFlight": 1, "waiting": 3, "dropped queue_full": 3})
			} else {
				s.is(map[string]uint64{"inFlight": 1, "waiting": 3, "failed queue_full": 3})
			}
			for _, sequence := range want {
				s.answer(sequence, reply{status: 204})
			}
			if n := s.tally(); n.Delivered != 4 || n.Waiting+n.InFlight != 0 {
				t.Errorf("%s: got %+v; want 4 delivered", overflow, n)
			}
			s.send(1)
			s.answer(8, reply{status: 204})
		})
	}
}

func TestWorkersComeWithTheWork(t *testing.T) {
	onStage(t, opts{"workers": 3}, nil, func(t *testing.T, s *stage) {
		s.send(1)
		if running, _ := s.workers(); running != 1 {
			t.Errorf("got %d workers for one event; want 1", running)
		}
		s.answer(1, reply{status: 204})
		s.send(1)
		if running, _ := s.workers(); running != 1 {
			t.Errorf("got %d workers where one is idle; want 1", running)
		}
		s.send(1)
		s.send(20)
		if running, _ := s.workers(); running != 3 || s.highest != 3 {
			t.Errorf("got %d workers, %d attempts at a time; want 3", running, s.highest)
		}
		for sequence := 2; sequence <= 23; sequence++ {
			s.answer(sequence, reply{status: 204})
		}
		s.is(map[string]uint64{"delivered": 23})
		if s.highest != 3 {
			t.Errorf("got %d attempts at a time; want at most 3", s.highest)
		}
	})
	onStage(t, opts{"workers": 3}, nil, func(t *testing.T, s *stage) {
		for range 3 {
			s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1"})
		}
		synctest.Wait()
		if s.highest != 3 {
			t.Errorf("got %d attempts for 3 events at once; want 3, or one that hangs holds up the others", s.highest)
		}
	})
}

func TestGracePeriod(t *testing.T) {
	onStage(t, nil, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.cancel()
		s.wait(gracePeriod - 1)
		again, cancel := s.router(nil)
		if again.pipe != s.pipe {
			t.Error("got another pipeline within the grace period; want the same")
		}
		s.wait(time.Hour)
		s.request(again, 1)
		s.send(1) // the replaced router still serves
		s.is(map[string]uint64{"delivered": 3})
		cancel()
		s.wait(gracePeriod)
		later, cancel := s.router(nil)
		if later.pipe == s.pipe {
			t.Error("got the same pipeline after the grace period; want another")
		}
		s.request(later, 1)
		if n := snapshot(later.pipe.ledger); n["delivered"].(uint64) != 1 {
			t.Errorf("got %v; want a ledger that begins anew, as the other was forgotten", n)
		}
		cancel()
		s.wait(gracePeriod)
	})
}

func TestPipelinesOfOneInstantDoNotShareASequence(t *testing.T) {
	onStage(t, nil, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		boots := map[string]bool{}
		s.inspect = func(req *http.Request) {
			body, _ := req.GetBody()
			payload, _ := io.ReadAll(body)
			boot, _, _ := strings.Cut(eventOf(t, payload).Sequence, "-")
			boots[boot] = true
		}
		other, cancel := s.router(opts{"workers": 1})
		s.send(1)
		s.request(other, 1)
		if len(boots) != 2 {
			t.Errorf("got boots %v; want two, or a receiver takes one event for the other", boots)
		}
		cancel()
	})
}

func TestGracePeriodBeginsAnewWithEachReload(t *testing.T) {
	onStage(t, nil, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.cancel()
		s.wait(4 * time.Second)
		_, cancel := s.router(nil)
		s.wait(500 * time.Millisecond)
		cancel()
		s.wait(gracePeriod - 1) // the first grace period would have ended long ago
		if live, _ := registered(); live != 1 {
			t.Error("got no pipeline before the grace period ended; want it alive")
		}
		s.wait(1)
		if !registryIsEmpty() {
			t.Error("got a pipeline when the grace period had ended; want none")
		}
	})
}

func TestLeasesOverManyReloads(t *testing.T) {
	onStage(t, nil, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		for range 50 {
			s.cancel() // Traefik ends the old configuration before it makes the new one
			_, other := s.router(nil)
			s.mirror, s.cancel = s.router(nil)
			if _, all := registered(); s.mirror.pipe != s.pipe || all != 1 {
				t.Fatalf("got %d pipelines; want one", all)
			}
			s.send(1)
			s.wait(time.Second)
			other()
		}
		s.is(map[string]uint64{"delivered": 50})
	})
}

func TestSupersededPipelineDrains(t *testing.T) {
	onStage(t, opts{"workers": 2}, []reply{{status: 204, delay: time.Second}}, func(t *testing.T, s *stage) {
		s.send(6) // three seconds of work
		s.cancel()
		next, cancel := s.router(opts{"workers": 3})
		if next.pipe.ledger != s.ledger {
			t.Error("got another ledger; want one for the middleware")
		}
		s.wait(3 * time.Second)
		s.send(5)
		s.wait(2 * time.Second) // the grace is over while one is under way
		if live, all := registered(); all != 2 || live != 1 {
			t.Errorf("got %d pipelines, %d of them live; want the old one to drain", all, live)
		}
		s.send(1) // a late request finds it
		s.wait(time.Second)
		if _, all := registered(); s.tally().Delivered != 12 || all != 1 {
			t.Errorf("got %+v, %d pipelines; want 12 delivered, and the old one gone", s.tally(), all)
		}
		if s.pipe.drain.Stop() {
			t.Error("got a drain timer of a pipeline that is gone; want none")
		}
		s.request(next, 1)
		s.wait(time.Second)
		if n := s.tally(); n.Delivered != 13 {
			t.Errorf("got %+v; want 13 delivered in the one ledger", n)
		}
		cancel()
		s.wait(gracePeriod)
	})
}

func TestDrainTimeout(t *testing.T) {
	for _, drain := range []time.Duration{0, time.Second, 5 * time.Second} {
		onStage(t, opts{"workers": 1, "drainTimeout": drain.String(), "timeout": "1m", "maxAge": "1h"}, []reply{{hang: true}}, func(t *testing.T, s *stage) {
			s.send(3)
			s.cancel()
			s.wait(gracePeriod)
			if drain > 0 {
				s.wait(drain - 1)
				s.is(map[string]uint64{"inFlight": 1, "waiting": 2})
				s.wait(1)
			}
			s.is(map[string]uint64{"failed retired": 3})
			if !registryIsEmpty() {
				t.Error("got a pipeline after drainTimeout; want none")
			}
			s.cameAt(0)
			s.script = []reply{{status: 204}}
			s.send(1) // comes to a pipeline whose life has ended
			s.is(map[string]uint64{"failed retired": 4})
		})
	}
	onStage(t, opts{"workers": 2, "retry.initialInterval": "1h", "retry.maxInterval": "1h", "maxAge": "24h"}, []reply{{status: 503}}, func(t *testing.T, s *stage) {
		s.send(5) // two wait for another attempt
		s.wait(time.Second)
		s.cancel()
		s.wait(gracePeriod + 5*time.Second)
		if n := s.tally(); n.Waiting+n.InFlight != 0 || n.Failed[reasonRetired] == 0 {
			t.Errorf("got %+v; want nothing left, as a backoff ends with the drain", n)
		}
	})
}

func TestRequestsAfterThePipelineIsGone(t *testing.T) {
	onStage(t, opts{"workers": 2}, []reply{{status: 503}, {status: 204, delay: time.Second}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(10 * time.Second)
		s.cancel()
		s.wait(gracePeriod)
		if !registryIsEmpty() {
			t.Fatal("got a pipeline; want it gone")
		}
		s.send(3)
		s.wait(3 * time.Second)
		s.is(map[string]uint64{"delivered": 4, "retried": 1})
		if running, _ := s.workers(); running != 0 || !registryIsEmpty() {
			t.Errorf("got %d workers; want none, as the late events are through", running)
		}
		s.send(1)
		s.wait(time.Second)
		s.is(map[string]uint64{"delivered": 5, "retried": 1})
	})
}

func TestEndOfTraefikHurries(t *testing.T) {
	defer func() { ending = false }()
	onStage(t, opts{"workers": 1}, []reply{{status: 503, after: "50"}, {status: 503}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(3)
		s.wait(time.Second)
		s.is(map[string]uint64{"inFlight": 1, "waiting": 2})
		signals <- syscall.SIGTERM // as package os/signal would
		synctest.Wait()
		s.is(map[string]uint64{"delivered": 3, "retried": 2})
		if got := s.times()[1:]; len(got) != 4 || got[0] != time.Second || got[3] != time.Second {
			t.Errorf("got attempts at %v; want all at once", got)
		}
		s.script = []reply{{status: 503}, {status: 204}}
		other, cancel := s.router(opts{"workers": 2, "retry.initialInterval": "1h", "retry.maxInterval": "1h"})
		s.request(other, 1) // of a pipeline that came after the signal
		if n := s.tally(); n.Delivered != 4 {
			t.Errorf("got %+v; want the fourth event delivered at once", n)
		}
		cancel()
		s.wait(gracePeriod)
	})
}

func TestPanicCostsTheEventAndTheWorkerGoesOn(t *testing.T) {
	text := logged(func() {
		onStage(t, opts{"workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			before := panics()
			s.send(1)
			offer(s.pipe, &capture{at: time.Now(), method: "GET", uri: "/", body: &body{budget: s.pipe.budget}}) // without settings
			s.send(1)
			synctest.Wait()
			s.is(map[string]uint64{"delivered": 2, "failed internal_error": 1})
			if running, _ := s.workers(); panics()-before != 1 || running != 1 {
				t.Errorf("got %d panics counted, %d workers; want 1, 1", panics()-before, running)
			}
		})
	})
	if !strings.Contains(text, "requestmirror: internal error, traffic is not affected: ") {
		t.Errorf("got log %q; want the panic in it", text)
	}
}

func panics() int {
	n, _ := strconv.Atoi(published().Get("panics").String())
	return n
}

func TestPanicsOfTheReceiverSideDoNotEscape(t *testing.T) {
	logged(func() {
		onStage(t, opts{"workers": 2}, nil, func(t *testing.T, s *stage) {
			s.send(2)
			s.mu.Lock()
			close(s.active[1].answer)
			s.active[1].answer = nil
			s.mu.Unlock()
			synctest.Wait()
			s.answer(2, reply{status: 204})
			if n := s.tally(); n.InFlight+n.Waiting != 0 {
				t.Errorf("got %+v; want nothing left", n)
			}
		})
	})
}

func TestLossesAreLoggedEveryTenSecondsAtMost(t *testing.T) {
	text := logged(func() {
		onStage(t, nil, []reply{{status: 400}}, func(t *testing.T, s *stage) {
			for range 25 {
				s.send(2)
				s.wait(time.Second)
			}
		})
	})
	// After one second, then every ten, and what is left when the pipeline goes.
	lines := strings.Split(strings.TrimSpace(text), "\n")
	if len(lines) != 4 {
		t.Fatalf("got %d lines for 25 seconds of losses; want 4:\n%s", len(lines), text)
	}
	total := 0
	for i, line := range lines {
		_, rest, _ := strings.Cut(line, ": ")
		var lost int
		if _, err := fmt.Sscanf(rest, "%d events lost", &lost); err != nil || (i == 1 || i == 2) && lost != 20 {
			t.Errorf("line %d: got %q; want the losses of ten seconds, 20", i, line)
		}
		total += lost
	}
	if total != 50 {
		t.Errorf("got %d losses in all lines; want 50:\n%s", total, text)
	}
}

func TestHeadersOfABacklogAreBounded(t *testing.T) {
	onStage(t, opts{"workers": 1, "queueSize": 1000}, nil, func(t *testing.T, s *stage) {
		header := http.Header{"X-Large": {strings.Repeat("a", 1<<20)}}
		for range 40 {
			s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", Header: header})
		}
		synctest.Wait()
		n := s.tally()
		if n.Dropped[reasonMemory] == 0 || n.Waiting > backlog+headerLimit>>20 {
			t.Errorf("got %+v; want no more headers waiting than there is memory for", n)
		}
		// Those that are let go make room for others.
		s.byHand = false
		s.answerAll(reply{status: 204})
		synctest.Wait()
		s.send(1)
		if after := s.tally(); after.Dropped[reasonMemory] != n.Dropped[reasonMemory] || after.Delivered != after.Enqueued {
			t.Errorf("got %+v; want all the rest delivered", after)
		}
	})
}

func TestIdlePipelineSleeps(t *testing.T) {
	onStage(t, nil, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.send(10)
		before := wakeUps()
		s.wait(1000 * time.Hour)
		if got := wakeUps() - before; got > 1000 {
			t.Errorf("got %d wake-ups in 1000 idle hours; want next to none, so no ticker", got)
		}
	})
}

// wakeUps counts when goroutines began to run; the runtime counts one of eight.
func wakeUps() (n uint64) {
	sample := []metrics.Sample{{Name: "/sched/latencies:seconds"}}
	metrics.Read(sample)
	for _, count := range sample[0].Value.Float64Histogram().Counts {
		n += count
	}
	return n
}

func TestOffersFromManyRequestsConcurrentSafe(t *testing.T) {
	onStage(t, opts{"queueSize": 100000, "workers": 8}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		const requests = 500
		var group sync.WaitGroup
		for range 8 {
			group.Go(func() {
				for range requests {
					s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1"})
					addsUp(t, s.tally())
				}
			})
		}
		group.Go(func() {
			for range 50 {
				_, cancel := s.router(opts{"queueSize": 100000, "workers": 8})
				cancel()
			}
		})
		group.Wait()
		synctest.Wait()
		seen := map[int]bool{}
		for _, c := range s.calls {
			seen[c.sequence] = true
		}
		for sequence := 1; sequence <= 8*requests; sequence++ {
			if !seen[sequence] {
				t.Fatalf("got no event %d; want all from 1 on, without a gap", sequence)
			}
		}
		s.is(map[string]uint64{"delivered": 8 * requests})
	})
}

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
				if reason != reasonQueueFull && reason != reasonMemory {
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
