package engine

import (
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// The benchmarks measure what a request pays, and nothing else: the receiver hangs,
// so that the one worker of a pipeline is busy with its first event and waits. Three
// states of the queue are told apart, because the request path differs:
//
//	empty    a receiver that keeps up: few events wait
//	waiting  a backlog is building up
//	full     every request is a drop
//
// Compare with
//
//	go test -run - -bench Serve -count 6 ./engine | tee new; benchstat -col /engine new
//	go test -run - -bench OverNoop -benchtime 1x ./engine

const (
	// lanes are the pipelines over which the requests of "empty" are spread, perLane
	// of them each.
	lanes   = 64
	perLane = 7
	// batchBytes bounds what is held at once, far below memoryLimit.
	batchBytes = 40 << 20
)

type traffic struct {
	name   string
	method string
	size   int
}

var loads = []traffic{{"GET-15-headers", "GET", 0}, {"POST-1KiB", "POST", 1 << 10}, {"POST-64KiB", "POST", 64 << 10}, {"POST-1MiB", "POST", 1 << 20}}

// template is a request as a browser behind a proxy sends it.
func (l traffic) template() *http.Request {
	req, _ := http.NewRequest(l.method, "http://blog.example.com/api/comments?lang=en&page=2", nil)
	req.RequestURI, req.RemoteAddr, req.Body = req.URL.RequestURI(), "10.42.0.9:51514", http.NoBody
	for i, name := range []string{"Accept", "Accept-Encoding", "Accept-Language", "Authorization", "Cache-Control", "Content-Type", "Cookie", "Origin",
		"Referer", "Sec-Fetch-Mode", "Traceparent", "User-Agent", "X-Forwarded-For", "X-Forwarded-Proto", "X-Request-Id"} {
		req.Header.Set(name, fmt.Sprintf("%02d a value of the usual length", i))
	}
	req.ContentLength = int64(l.size)
	return req
}

// content is a body that is made once and read often, in steps as a network gives them.
type content struct{ left int }

var zeros [32 << 10]byte

func (c *content) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, io.EOF
	}
	n := copy(p, zeros[:min(c.left, len(zeros))])
	c.left -= n
	return n, nil
}

func (c *content) Close() error { return nil }

// consumer is a backend that reads everything, with buffers as large as those of
// the transport that Traefik's proxy hands bodies to.
type consumer struct{}

var buffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (consumer) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	if req.Body == http.NoBody {
		return
	}
	buf := buffers.Get().(*[32 << 10]byte)
	for {
		if _, err := req.Body.Read(buf[:]); err != nil {
			break
		}
	}
	buffers.Put(buf)
}

type nowhere struct{ h http.Header }

func (n nowhere) Header() http.Header         { return n.h }
func (n nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n nowhere) WriteHeader(int)             {}

// gate is a receiver that keeps deliveries waiting while it is closed.
type gate struct {
	mu   sync.Mutex
	open chan struct{}
	in   chan struct{}
}

func (g *gate) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	io.Copy(io.Discard, req.Body)
	g.mu.Lock()
	open := g.open
	g.mu.Unlock()
	if open == nil {
		return
	}
	select {
	case g.in <- struct{}{}:
	case <-req.Context().Done():
	}
	select {
	case <-open:
	case <-req.Context().Done():
	}
}

// stand is a middleware under measurement: one handler, or one for each lane.
type stand struct {
	tb       testing.TB
	handlers []http.Handler
	names    []string
	gate     *gate
}

// newStand loads nothing: the engine is loaded. state is that of the queue; an empty
// one is for the do-nothing plugin.
func newStand(tb testing.TB, eng *engine, state string) *stand {
	s := &stand{tb: tb, gate: &gate{in: make(chan struct{}, 2*lanes)}}
	config := map[string]any{}
	n := 1
	if state != "" {
		recv := newReceiver(nil, false)
		recv.Config.Handler = s.gate
		tb.Cleanup(recv.Close)
		// Events that have waited expire without a delivery when the gate opens, so that
		// a batch is soon cleared away.
		config = map[string]any{"watchURL": recv.URL, "workers": 1, "queueSize": 5000, "maxAge": "1ms", "timeout": "10m", "retry": map[string]any{"attempts": 1}, "strict": true}
		if state == "full" {
			config["queueSize"] = 1
		}
		if state == "empty" {
			n = lanes
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	tb.Cleanup(func() {
		s.clear()
		cancel()
	})
	for range n {
		cfg, err := eng.createConfig(config)
		if err != nil {
			tb.Fatal(err)
		}
		name := fmt.Sprintf("bench-%d@file", serial.Add(1))
		h, err := eng.newHandler(ctx, consumer{}, cfg, name)
		if err != nil {
			tb.Fatal(err)
		}
		s.handlers, s.names = append(s.handlers, h), append(s.names, name)
	}
	return s
}

// prepare closes the gate and gives every worker its event, and a full queue its fill.
// Workers start anew in the first event only, and so do connections.
func (s *stand) prepare(state string) {
	if state == "" {
		return
	}
	s.gate.mu.Lock()
	s.gate.open = make(chan struct{})
	s.gate.mu.Unlock()
	for drained := false; !drained; { // An event of the batch before may still have been delivered.
		select {
		case <-s.gate.in:
		default:
			drained = true
		}
	}
	prime := loads[0].template()
	deadline := time.Now().Add(patience)
	for i, h := range s.handlers {
		// maxAge is short: an event that was not taken at once may expire, so it is sent again.
		for taken := false; !taken; {
			h.ServeHTTP(nowhere{http.Header{}}, prime)
			select {
			case <-s.gate.in:
				taken = true
			case <-time.After(20 * time.Millisecond):
				if time.Now().After(deadline) {
					s.tb.Fatalf("no event of %s comes to the receiver; ledger: %s", s.names[i], globals().Middlewares[s.names[i]].only())
				}
			}
		}
	}
	if state == "full" {
		s.handlers[0].ServeHTTP(nowhere{http.Header{}}, prime)
	}
}

// clear opens the gate and waits until nothing is queued.
func (s *stand) clear() {
	s.gate.mu.Lock()
	if s.gate.open == nil {
		s.gate.mu.Unlock()
		return
	}
	close(s.gate.open)
	s.gate.open = nil
	s.gate.mu.Unlock()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		left := int64(0)
		all := globals().Middlewares
		for _, name := range s.names {
			l := all[name].only()
			left += l.Waiting + l.InFlight
		}
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.tb.Fatalf("%d events are still there", left)
		}
	}
}

// batch is how many requests may be served before the stand is to be cleared.
func (s *stand) batch(state string, l traffic) int {
	n := 1000
	if state == "empty" {
		n = lanes * perLane
	}
	if l.size > 0 && state != "full" {
		n = min(n, batchBytes/l.size)
	}
	return n
}

// serve sends n requests. What it does itself is the same for every handler.
func (s *stand) serve(n int, tmpl *http.Request, size int) {
	rw := nowhere{http.Header{}}
	for i := range n {
		req := *tmpl
		if size > 0 {
			req.Body = &content{size}
		}
		s.handlers[i%len(s.handlers)].ServeHTTP(rw, &req)
	}
}

// noop is the interpreted plugin that does nothing.
var noop = sync.OnceValues(func() (*engine, error) {
	gopath, err := os.MkdirTemp("", "noop-gopath")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(gopath)
	imp := "github.com/opencommit/noop"
	if err := copyPlugin(filepath.Join("testdata", "noop"), filepath.Join(gopath, "src", filepath.FromSlash(imp))); err != nil {
		return nil, err
	}
	return load(gopath, imp, "noop")
})

func donothing(tb testing.TB) *engine {
	tb.Helper()
	e, err := noop()
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// BenchmarkServe is the time, bytes and allocations of one request through the
// handler, in both engines.
func BenchmarkServe(b *testing.B) {
	for _, l := range loads {
		b.Run("req="+l.name+"/engine=noop", func(b *testing.B) {
			s, tmpl := newStand(b, donothing(b), ""), l.template()
			b.ReportAllocs()
			b.SetBytes(int64(l.size))
			s.serve(10, tmpl, l.size)
			b.ResetTimer()
			s.serve(b.N, tmpl, l.size)
		})
		for _, eng := range loaded(b) {
			for _, state := range []string{"empty", "waiting", "full"} {
				b.Run("req="+l.name+"/engine="+eng.name+"/queue="+state, func(b *testing.B) {
					s, tmpl := newStand(b, eng, state), l.template()
					b.ReportAllocs()
					b.SetBytes(int64(l.size))
					b.ResetTimer()
					for left := b.N; left > 0; {
						n := min(left, s.batch(state, l))
						b.StopTimer()
						s.clear()
						s.prepare(state)
						b.StartTimer()
						s.serve(n, tmpl, l.size)
						left -= n
					}
					b.StopTimer()
				})
			}
		}
	}
}

// BenchmarkOverNoop prints what the interpreted plugin costs in terms of an
// interpreted plugin that does nothing. Both run by turns in the same process, so
// that a machine that is slow for a while is slow for both; of the rounds the
// quickest counts, which is the path itself, without the garbage collector's turns.
func BenchmarkOverNoop(b *testing.B) {
	const rounds = 25
	eng := loaded(b)[1]
	for _, l := range loads {
		for _, state := range []string{"empty", "waiting", "full"} {
			b.Run("req="+l.name+"/queue="+state, func(b *testing.B) {
				base, ours, tmpl := newStand(b, donothing(b), ""), newStand(b, eng, state), l.template()
				n := ours.batch(state, l)
				var slow, quick []float64
				var mallocs, baseMallocs uint64
				for range b.N * rounds {
					t, m := timed(func() { base.serve(n, tmpl, l.size) })
					quick, baseMallocs = append(quick, t/float64(n)), m/uint64(n)
					ours.clear()
					ours.prepare(state)
					t, m = timed(func() { ours.serve(n, tmpl, l.size) })
					slow, mallocs = append(slow, t/float64(n)), m/uint64(n)
				}
				least, leastBase := slices.Min(slow), slices.Min(quick)
				b.ReportMetric(0, "ns/op") // of the rounds: of no meaning
				b.ReportMetric(leastBase, "noop-ns")
				b.ReportMetric(least, "ours-ns")
				b.ReportMetric(least-leastBase, "added-ns")
				b.ReportMetric(least/leastBase, "ratio")
				b.ReportMetric(float64(mallocs)-float64(baseMallocs), "added-allocs")
			})
		}
	}
}

// TestTheRequestPathAllocatesLittle holds what every request pays, in terms of what decides
// about its time in Traefik, and is the same on every machine.
func TestTheRequestPathAllocatesLittle(t *testing.T) {
	eng := loaded(t)[1]
	for _, c := range []struct {
		load  traffic
		state string
		most  float64
	}{
		{loads[0], "empty", 160}, {loads[0], "waiting", 160}, {loads[0], "full", 76},
		{loads[1], "empty", 315}, {loads[1], "waiting", 315}, {loads[1], "full", 76},
	} {
		least := allocations(t, eng, c.load, c.state)
		if least > c.most {
			t.Errorf("%s, queue %s: got %.1f allocations for a request; want at most %.0f", c.load.name, c.state, least, c.most)
		}
		t.Logf("%s, queue %s: %.1f allocations", c.load.name, c.state, least)
	}
}

// allocations is how many a request makes on its way through the plugin.
func allocations(t *testing.T, eng *engine, l traffic, state string) float64 {
	t.Helper()
	s, tmpl := newStand(t, eng, state), l.template()
	n := s.batch(state, l)
	least := math.Inf(1)
	for range 5 { // as a worker may be at its event, and a timer may ring
		s.clear()
		s.prepare(state)
		_, mallocs := timed(func() { s.serve(n, tmpl, l.size) })
		least = min(least, float64(mallocs)/float64(n))
	}
	return least
}

// timed is how long f takes, in nanoseconds, and how often it allocates.
func timed(f func()) (float64, uint64) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	start := time.Now()
	f()
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	return float64(took.Nanoseconds()), after.Mallocs - before.Mallocs
}
