//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

//go:debug asynctimerchan=0

package requestmirror

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
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
	status  int
	after   string        // Retry-After
	err     error         // of the network
	delay   time.Duration // before the answer
	hang    bool          // until the attempt is given up
	proto   int           // the major version of HTTP
	body    io.ReadCloser // of the answer; nil is none
	allowed string        // WebHook-Allowed-Origin
	rate    string        // WebHook-Allowed-Rate
}

// call is one attempt as it came to the receiver of a stage.
type call struct {
	at        time.Duration // since the stage began
	id        string
	sequence  int   // of the event, the first one of a batch
	sequences []int // of all events
	events    []event
	payload   []byte // as it was sent
	header    http.Header
	answer    chan reply
	answered  bool       // by hand
	taken     bool       // whether the attempt ended with a 2xx
	done      bool       // whether it ended
	mu        sync.Mutex // guards taken and done
}

func (c *call) outcome() (done, taken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.done, c.taken
}

// reported is a report as it came.
type reported struct {
	at  time.Duration
	id  string
	was wireReport
}

// peer is a receiver. It stands where the transport would open a connection, and
// follows a script, or is led by hand. Handshakes and reports have scripts of their own.
type peer struct {
	t       *testing.T
	began   time.Time
	inspect func(*http.Request) // what is sent; may be nil

	mu      sync.Mutex
	script  []reply // the last one stays
	byHand  bool
	calls   []*call
	active  map[int]*call // under way, by sequence
	highest int           // attempts at the same time

	consent []reply // to handshakes, the last one stays; none is 404
	asked   []time.Duration
	asking  http.Header // of the last handshake

	reply   []reply    // to reports, the last one stays; none is 204
	reports []reported // all that came, whatever the answer
}

// stage is a middleware in a bubble with virtual time, and its receivers, of which the
// one at watchURL is embedded.
type stage struct {
	*peer
	t      *testing.T
	mirror *Mirror
	pipe   *pipeline
	ledger *ledger
	cancel context.CancelFunc // ends the router's lease

	peers   map[string]*peer // by host
	pipes   []*pipeline      // all that there ever were
	senders map[*sender]bool // that lead to a peer
}

// onStage runs do in a bubble, at the end of which nothing may be left.
func onStage(t *testing.T, options opts, script []reply, do func(t *testing.T, s *stage)) {
	t.Helper()
	if !registryIsEmpty() {
		t.Fatal("got pipelines of other tests; want none")
	}
	synctest.Test(t, func(t *testing.T) {
		s := &stage{t: t, peers: map[string]*peer{}, senders: map[*sender]bool{}}
		s.peer = newPeer(t, script)
		s.peers["receiver.test"] = s.peer
		s.mirror, s.cancel = s.router(options)
		s.pipe = s.mirror.pipe
		s.ledger = s.pipe.ledger
		defer s.end()
		do(t, s)
	})
}

func newPeer(t *testing.T, script []reply) *peer {
	return &peer{t: t, began: time.Now(), script: script, byHand: script == nil, active: map[int]*call{}}
}

// at is the receiver with this host. One that is new does what the first one does.
func (s *stage) at(host string) *peer {
	p := s.peers[host]
	if p == nil {
		p = newPeer(s.t, slices.Clone(s.script))
		p.began = s.began
		p.byHand = s.byHand
		s.peers[host] = p
	}
	return p
}

// end ends the lease, and checks that nothing is left.
func (s *stage) end() {
	for _, p := range s.peers {
		p.play()
		p.answerAll(reply{status: 204})
	}
	s.cancel()
	synctest.Wait()
	s.wait(gracePeriod + s.pipe.set.drainTimeout)
	s.addsUp()
	if !registryIsEmpty() {
		s.t.Error("got a pipeline after grace and drainTimeout; want none")
	}
	for _, p := range s.pipes {
		n := tallyIn(s.t, p)
		if held := bytesHeld(p); held != 0 || p.spare != mostHeaders(p.set.queueSize) || p.bodies != 0 {
			s.t.Errorf("%s: got %d bytes, a share of %d, and %d of headers held at the end; want 0", n.Receiver, held, p.bodies, mostHeaders(p.set.queueSize)-p.spare)
		}
		if p.running+p.idle != 0 {
			s.t.Errorf("%s: got %d workers, %d of them idle at the end; want none", n.Receiver, p.running, p.idle)
		}
		if n.Waiting+n.InFlight != 0 {
			s.t.Errorf("%s: got %+v at the end; want nothing waiting, nothing in flight", n.Receiver, n)
		}
		for i, timer := range []*time.Timer{p.grace, p.drain, p.reporting.timer, p.gathering.timer, p.gate.timer} {
			if timer != nil && timer.Stop() {
				s.t.Errorf("%s: got a timer (%d) that still runs; want none", n.Receiver, i)
			}
		}
	}
}

// router makes another router with the options, whose lease ends with the function.
func (s *stage) router(options opts) (*Mirror, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	// What comes by itself comes only where a test asks for it.
	all := opts{"reportInterval": 0, "circuitBreaker.failures": 0}
	maps.Copy(all, options)
	handler, err := New(ctx, http.HandlerFunc(readAllOf), configOf(all), s.t.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	m, ok := handler.(*Mirror)
	if !ok {
		s.t.Fatalf("got handler %T; want a mirror", handler)
	}
	for _, p := range append([]*pipeline{m.pipe}, m.others...) {
		if !slices.Contains(s.pipes, p) {
			s.pipes = append(s.pipes, p)
		}
		if to := currentSender(p); !s.senders[to] {
			s.senders[to] = true
			to.transport.(*http.Transport).RegisterProtocol("http", s.at(p.to.url.Host))
		}
	}
	return m, cancel
}

// readAllOf is a backend that reads the body and answers nothing.
func readAllOf(_ http.ResponseWriter, req *http.Request) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
	}
}

// next takes the next reply from a script.
func next(script *[]reply, otherwise reply) reply {
	if len(*script) == 0 {
		return otherwise
	}
	r := (*script)[0]
	if len(*script) > 1 {
		*script = (*script)[1:]
	}
	return r
}

// RoundTrip is the receiver.
func (p *peer) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err // as the transport does, before it connects
	}
	p.mu.Lock()
	inspect := p.inspect
	p.mu.Unlock()
	if inspect != nil {
		inspect(req)
	}
	if req.Method == http.MethodOptions {
		p.mu.Lock()
		p.asked = append(p.asked, p.time())
		p.asking = req.Header.Clone()
		r := next(&p.consent, reply{status: 404})
		p.mu.Unlock()
		return r.give(req)
	}
	payload, _ := io.ReadAll(req.Body)
	c := &call{at: p.time(), id: req.Header.Get("Webhook-Id"), payload: payload, header: req.Header.Clone(), answer: make(chan reply, 1)}
	clear := payload
	if req.Header.Get("Content-Encoding") == "gzip" {
		clear = unzip(p.t, payload)
	}
	list := []json.RawMessage{clear}
	if clear[0] == '[' {
		list = nil // or Unmarshal writes into clear
		if err := json.Unmarshal(clear, &list); err != nil {
			p.t.Errorf("got a batch that is no JSON: %v", err)
		}
	}
	if strings.Contains(string(list[0]), `"type":"`+reportType) {
		return p.takeReport(req, list[0])
	}
	for _, text := range list {
		e := eventOf(p.t, text)
		_, digits, _ := strings.Cut(e.Sequence, "-")
		sequence, _ := strconv.Atoi(digits)
		c.events = append(c.events, e)
		c.sequences = append(c.sequences, sequence)
	}
	c.sequence = c.sequences[0]
	p.mu.Lock()
	p.calls = append(p.calls, c)
	p.active[c.sequence] = c
	p.highest = max(p.highest, len(p.active))
	if !p.byHand {
		c.answer <- next(&p.script, reply{status: 204})
	}
	p.mu.Unlock()
	taken := false
	defer func() {
		p.mu.Lock()
		delete(p.active, c.sequence)
		p.mu.Unlock()
		c.mu.Lock()
		c.taken = taken
		c.done = true
		c.mu.Unlock()
	}()
	var r reply
	select {
	case r = <-c.answer:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	resp, err := r.give(req)
	taken = err == nil && r.status/100 == 2
	return resp, err
}

func (p *peer) takeReport(req *http.Request, text []byte) (*http.Response, error) {
	n := reported{at: p.time(), id: req.Header.Get("Webhook-Id")}
	if err := json.Unmarshal(text, &n.was); err != nil {
		p.t.Errorf("got a report that is no JSON: %v", err)
	}
	p.mu.Lock()
	p.reports = append(p.reports, n)
	r := next(&p.reply, reply{status: 204})
	p.mu.Unlock()
	return r.give(req)
}

// give is what the receiver's connection gives.
func (r reply) give(req *http.Request) (*http.Response, error) {
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
	for name, value := range map[string]string{"Retry-After": r.after, "Webhook-Allowed-Origin": r.allowed, "Webhook-Allowed-Rate": r.rate} {
		if value != "" {
			header.Set(name, value)
		}
	}
	if r.body == nil {
		r.body = http.NoBody
	}
	return &http.Response{StatusCode: r.status, ProtoMajor: r.proto, Header: header, Body: r.body, Request: req}, nil
}

func unzip(t testing.TB, payload []byte) []byte {
	r, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		t.Fatalf("got a payload that is no gzip: %v", err)
	}
	clear, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("got a payload that is no gzip: %v", err)
	}
	return clear
}

func (s *peer) time() time.Duration { return time.Since(s.began) }

// unanswered are the events that wait for an answer by hand.
func (s *peer) unanswered() (list []int) {
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

func (s *peer) attemptsOf(sequence int) (n int) {
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
func (s *peer) answer(sequence int, r reply) {
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

func (s *peer) answerAll(r reply) {
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
	registryMu.Lock()
	r := readLedger(p.ledger)
	registryMu.Unlock()
	c := r.counts
	n := tally{
		Seen: c.filtered + c.sampledOut + c.offered, Filtered: c.filtered, SampledOut: c.sampledOut,
		Enqueued: c.offered - sum(c.dropped), Delivered: c.delivered, InFlight: c.inFlight, Waiting: r.waiting,
		Retried: c.retried, Dropped: c.dropped, Failed: c.failed, Truncated: c.truncated, CircuitBreaker: r.breaker,
		Concurrency: r.concurrency, Receiver: r.receiver,
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

// eventsIn counts the events in a queue that nobody is at; the rest are notices.
func eventsIn(p *pipeline) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for range len(p.queue) {
		c := <-p.queue
		if c != nil {
			n++
		}
		p.queue <- c
	}
	return n
}

// addsUp checks the ledgers against the queues and the receivers.
func (s *stage) addsUp() {
	s.t.Helper()
	_, all := registered()
	for _, p := range s.pipes {
		if all > len(s.mirror.others)+1 || p.forgotten && all > 0 {
			continue // a ledger has several pipelines
		}
		n := tallyIn(s.t, p)
		if waiting := eventsIn(p); int(n.Waiting) != waiting {
			s.t.Errorf("at %v: got %d events waiting by the ledger of %s; want %d, as in the queue: %+v", s.time(), n.Waiting, n.Receiver, waiting, n)
		}
		if under := s.at(p.to.url.Host).underWay(); int(n.InFlight) < under {
			s.t.Errorf("at %v: got %d events in flight by the ledger of %s; want at least the %d at the receiver", s.time(), n.InFlight, n.Receiver, under)
		}
	}
}

// underWay is the number of events that the receiver is at.
func (s *peer) underWay() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.active {
		n += len(c.sequences)
	}
	return n
}

// is checks the counts that are not zero: "delivered", and reasons.
func (s *stage) is(want map[string]uint64) {
	s.t.Helper()
	s.pipeIs(s.pipe, want)
}

// pipeIs is is for any of the receivers.
func (s *stage) pipeIs(p *pipeline, want map[string]uint64) {
	s.t.Helper()
	s.addsUp()
	n := tallyIn(s.t, p)
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
func (s *peer) times() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []time.Duration{}
	for _, c := range s.calls {
		list = append(list, c.at)
	}
	return list
}

func (s *peer) cameAt(want ...time.Duration) {
	s.t.Helper()
	if got := s.times(); !slices.Equal(got, want) {
		s.t.Errorf("got attempts at %v; want %v", got, want)
	}
}

// came are the attempts so far. What is of the peer's is read and written under its lock,
// as a timer orders nothing.
func (s *peer) came() []*call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *peer) told() []reported {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reports)
}

// play gives the receiver another script.
func (s *peer) play(script ...reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byHand = false
	s.script = script
}

// batches are the sequences of each attempt, in the order in which they came.
func (s *peer) batches() [][]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := [][]int{}
	for _, c := range s.calls {
		list = append(list, c.sequences)
	}
	return list
}

func (s *peer) cameAs(want ...[]int) {
	s.t.Helper()
	if got := s.batches(); !slices.EqualFunc(got, want, slices.Equal) {
		s.t.Errorf("at %v: got batches %v; want %v", s.time(), got, want)
	}
}

// upTo is 1 to n, or from to n.
func upTo(n int) []int { return fromTo(1, n) }

func fromTo(from, to int) (list []int) {
	for i := from; i <= to; i++ {
		list = append(list, i)
	}
	return list
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
	for _, after := range []string{"40", "86400", "99999999999999999999"} {
		onStage(t, opts{"maxAge": "30s", "workers": 1}, []reply{{status: 503, after: after}, {status: 204}}, func(t *testing.T, s *stage) {
			s.send(1)
			s.is(map[string]uint64{"failed expired": 1})
			// Others wait as long as an event may, and then one of them asks again.
			s.wait(10 * time.Second)
			s.send(2)
			s.wait(20 * time.Second)
			s.cameAt(0, 30*time.Second, 30*time.Second)
			s.is(map[string]uint64{"failed expired": 1, "delivered": 2})
		})
	}
}

func TestARequestThatTakesLongerThanMaxAgeIsMirrored(t *testing.T) {
	for name, c := range map[string]struct {
		options opts
		length  int64
	}{
		"a body":                     {nil, 5},
		"a captured response":        {opts{"captureResponse": "status"}, 0},
		"both":                       {opts{"captureResponse": "headers"}, 5},
		"both, in a batch":           {opts{"captureResponse": "body", "batch": opts{"maxEvents": 10}}, 5},
		"no body, before the answer": {nil, 0},
	} {
		options := opts{"maxAge": "1s"}
		maps.Copy(options, c.options)
		onStage(t, options, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.mirror.next = http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				readAllOf(rw, req)
				time.Sleep(time.Minute)
			})
			req := uploadOf(&upload{rest: textOf(int(c.length)), step: 1000, end: io.EOF}, c.length)
			s.mirror.ServeHTTP(httptest.NewRecorder(), req)
			s.wait(time.Second)
			if n := s.tally(); n.Delivered != 1 {
				t.Errorf("%s: got %+v; want it delivered", name, n)
			}
		})
	}
}

func TestTrustThatWasEndedIsNotRemembered(t *testing.T) {
	onStage(t, opts{"trustForwardHeader": true, "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		distrustful, end := s.router(opts{"workers": 1})
		defer end()
		if distrustful.pipe != s.pipe {
			t.Fatal("got a pipeline of its own for a router that does not trust; want one for both")
		}
		for range 2 {
			for _, m := range []*Mirror{s.mirror, distrustful} {
				m.ServeHTTP(nil, &http.Request{
					Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", RemoteAddr: "10.0.0.1:5",
					Header: http.Header{"X-Forwarded-For": {"192.0.2.7"}},
				})
				synctest.Wait()
			}
		}
		var got []string
		for _, c := range s.came() {
			got = append(got, c.events[0].Data.Client.Address)
		}
		if want := []string{"192.0.2.7", "10.0.0.1", "192.0.2.7", "10.0.0.1"}; !slices.Equal(got, want) {
			t.Errorf("got clients %v; want %v", got, want)
		}
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
		s.is(map[string]uint64{"failed gone": 1, "dropped circuit_open": 4})
		s.wait(1)
		s.send(2)
		s.is(map[string]uint64{"failed gone": 1, "dropped circuit_open": 4, "delivered": 2})
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
		if n := tallyIn(t, later.pipe); n.Delivered != 1 {
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
	panicsTold = 0
	text := logged(func() {
		onStage(t, opts{"workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			before := panics()
			for _, pause := range []time.Duration{0, tellEvery - time.Second, time.Second} {
				s.wait(pause)
				s.send(1)
				offer(s.pipe, &capture{at: time.Now(), method: "GET", uri: "/", body: &body{budget: s.pipe.budget}}) // without settings
				s.send(1)
				synctest.Wait()
			}
			s.is(map[string]uint64{"delivered": 6, "failed internal_error": 3})
			if running, _ := s.workers(); panics()-before != 3 || running != 1 {
				t.Errorf("got %d panics counted, %d workers; want 3, 1", panics()-before, running)
			}
		})
	})
	if got := strings.Count(text, "requestmirror: internal error, traffic is not affected: "); got != 2 {
		t.Errorf("got log %q with %d lines of the panics; want 2, one in ten seconds at most", text, got)
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

func TestHeadersThatAreHeldAreBounded(t *testing.T) {
	for name, events := range map[string]int{"single events": 1, "batches": 100} {
		onStage(t, opts{"workers": 1, "queueSize": 1000, "batch": opts{"maxEvents": events}}, nil, func(t *testing.T, s *stage) {
			header := http.Header{"X-Large": {strings.Repeat("a", 200<<10)}}
			for range 100 {
				s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", Header: header})
			}
			synctest.Wait()
			n := s.tally()
			if n.Dropped[reasonMemory] == 0 || n.InFlight+n.Waiting > uint64(mostHeaders(1000)/(200<<10)) {
				t.Errorf("%s: got %+v; want no more headers held than there is memory for", name, n)
			}
			// Those that are let go make room for others.
			s.byHand = false
			s.answerAll(reply{status: 204})
			synctest.Wait()
			s.wait(time.Minute)
			s.send(1)
			s.wait(time.Minute)
			if after := s.tally(); after.Dropped[reasonMemory] != n.Dropped[reasonMemory] || after.Delivered != after.Enqueued {
				t.Errorf("%s: got %+v; want all the rest delivered", name, after)
			}
		})
	}
}

func TestAHeaderThatIsTooLargeIsNotMirrored(t *testing.T) {
	onStage(t, nil, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		for _, size := range []int{largestHeader - 1000, largestHeader} {
			header := http.Header{"X-Large": {strings.Repeat("a", size)}}
			s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", Header: header})
			synctest.Wait()
		}
		s.is(map[string]uint64{"delivered": 1, "dropped memory": 1})
	})
}

// TestAHeaderWeighsWhatItTakes has the headers that take the most memory for what a client
// has to send: an event of them must not count for less than it is.
func TestAHeaderWeighsWhatItTakes(t *testing.T) {
	many := func(n int, line func(i int) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(line(i) + "\n")
		}
		return b.String()
	}
	for name, lines := range map[string]string{
		"one large value": "a:" + strings.Repeat("v", 1<<20) + "\n",
		"many values":     many(10_000, func(int) string { return "a:" }),
		"many names":      many(1500, func(i int) string { return strconv.FormatInt(int64(i)+46656, 36) + ":" }),
		"a few names":     many(15, func(i int) string { return strconv.Itoa(i) + ":" }),
	} {
		req, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET / HTTP/1.1\nHost: a\n" + lines + "\n")))
		if err != nil {
			t.Fatal(err)
		}
		const copies, around = 5, 512 // bytes of a capture itself
		held := make([]*capture, copies)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.GC() // what pools had
		runtime.ReadMemStats(&before)
		texts := int64(0)
		for i := range held {
			held[i] = &capture{uri: req.RequestURI, header: req.Header.Clone()}
			weigh(held[i])
			texts += held[i].texts
		}
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&after)
		if took := int64(after.HeapAlloc) - int64(before.HeapAlloc) - copies*around; texts < took {
			t.Errorf("%s: %d copies weigh %d bytes; want at least the %d that they take", name, copies, texts, took)
		}
		runtime.KeepAlive(held)
	}
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

func TestWorkersFollowTheReceiver(t *testing.T) {
	for name, options := range map[string]opts{"single": {}, "batches": {"batch.maxEvents": 2, "batch.flushInterval": "1ms"}} {
		t.Run(name, func(t *testing.T) {
			options["workers"] = "auto"
			options["queueSize"] = 120
			options["retry.attempts"] = 1
			logged(func() {
				onStage(t, options, []reply{{status: 204, delay: 500 * time.Millisecond}}, func(t *testing.T, s *stage) {
					// load keeps the queue full for a while, and says how many attempts there were at a time.
					load := func(d time.Duration) (least, most int) {
						least = 1000
						for end := s.time() + d; s.time() < end; {
							for len(s.pipe.queue) < 100 {
								s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1"})
							}
							s.wait(250 * time.Millisecond)
							s.mu.Lock()
							under := len(s.active)
							s.mu.Unlock()
							s.pipe.mu.Lock()
							running, allowed, limit := s.pipe.running, s.pipe.allowed, s.pipe.adaptive.limit
							s.pipe.mu.Unlock()
							if allowed != limit || limit > 32 {
								t.Fatalf("at %v: got %d workers allowed, a limit of %d; want the same, at most 32", s.time(), allowed, limit)
							}
							if running > 32 || under > running {
								t.Fatalf("at %v: got %d attempts by %d workers, %d allowed; want no more than there are, at most 32", s.time(), under, running, allowed)
							}
							least, most = min(least, under), max(most, under)
						}
						return least, most
					}
					if _, most := load(25 * time.Second); most != 32 {
						t.Errorf("got at most %d attempts at a time at a receiver that is as fast with many; want 32", most)
					}
					s.play(reply{status: 503, delay: 500 * time.Millisecond})
					if least, _ := load(25 * time.Second); least != 1 {
						t.Errorf("got at least %d attempts at a time during an outage; want 1", least)
					}
					if running, _ := s.workers(); running != 1 {
						t.Errorf("got %d workers during an outage; want one, as the rest has left", running)
					}
					s.play(reply{status: 204, delay: 500 * time.Millisecond})
					if _, most := load(25 * time.Second); most < 25 {
						t.Errorf("got at most %d attempts at a time after the outage; want about 32", most)
					}
					s.play(reply{status: 503})
					s.wait(30 * time.Second) // what waits fails, and makes most workers surplus
					if running, idle := s.workers(); running != s.pipe.allowed || idle != running {
						t.Errorf("got %d workers, %d of them idle; want the %d allowed, all idle", running, idle, s.pipe.allowed)
					}
					if n := s.tally(); n.Waiting+n.InFlight != 0 || n.Concurrency != s.pipe.allowed {
						t.Errorf("got %+v; want nothing left, and the limit shown", n)
					}
				})
			})
		})
	}
}
