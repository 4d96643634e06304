// Package e2e is what an operator, a client, a backend and a receiver see of
// the plugin in a real Traefik. Each test is one promise of the contract; what
// several promise together ("as without the plugin") is compared with a second
// route that has no plugin.
//
// One Traefik serves them all, except where it is reloaded or ended. Every test
// has routes, a backend and a receiver of its own, so each of them also runs
// while the configuration of others comes and goes.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

// shared is the Traefik of all tests but those that end or reload it.
var shared *world

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	w, err := newWorld(lab.Setup{})
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e: no test was run:", err)
		return 1
	}
	shared = w
	code := m.Run()
	if err := w.traefik.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "e2e: Traefik did not end well:", err)
		return 1
	}
	return code
}

// world is a Traefik and the dynamic configuration that it has.
type world struct {
	traefik *lab.Traefik

	mu      sync.Mutex
	dynamic lab.Dynamic
}

func newWorld(s lab.Setup) (*world, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	traefik, err := lab.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	return &world{traefik: traefik, dynamic: lab.Dynamic{Mirrors: map[string]lab.Options{}, Routes: map[string]lab.Route{}}}, nil
}

// ownWorld starts a Traefik for one test.
func ownWorld(t *testing.T, s lab.Setup) *world {
	t.Helper()
	w, err := newWorld(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.traefik.Stop(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// change edits the dynamic configuration and returns when it is live.
func (w *world) change(t *testing.T, edit func(*lab.Dynamic)) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	edit(&w.dynamic)
	if err := w.traefik.Apply(soon(t), w.dynamic); err != nil {
		t.Fatal(err)
	}
}

// site is a route through a mirror, with a backend and a receiver of its own,
// and a second route to the same backend without the plugin.
type site struct {
	world    *world
	name     string // of the route and of the mirror
	backend  *lab.Backend
	receiver *lab.Receiver
	client   *http.Client
	requests atomic.Int64 // for the ids of requests
}

// bare is the name of the route without the plugin.
func (s *site) bare() string { return s.name + "-bare" }

var (
	sites   atomic.Int64
	notSlug = regexp.MustCompile(`[^a-z0-9]+`)
)

// mirror makes a site on the shared Traefik. What the options lack is said by
// the contract's defaults; watchURL is the site's receiver unless given.
func mirror(t *testing.T, options lab.Options) *site {
	t.Helper()
	return mirrors(t, shared, options)[0]
}

// mirrors makes one site per options, live at once.
func mirrors(t *testing.T, w *world, options ...lab.Options) []*site {
	t.Helper()
	made := make([]*site, len(options))
	for i := range options {
		slug := strings.Trim(notSlug.ReplaceAllString(strings.ToLower(t.Name()), "-"), "-")
		made[i] = newSite(t, w, fmt.Sprintf("s%d-%.40s", sites.Add(1), slug))
	}
	w.change(t, func(d *lab.Dynamic) {
		for i, s := range made {
			d.Mirrors[s.name] = s.options(options[i])
			d.Routes[s.name] = lab.Route{Through: []string{s.name}, Backend: s.backend.URL}
			d.Routes[s.bare()] = lab.Route{Backend: s.backend.URL}
		}
	})
	return made
}

func newSite(t *testing.T, w *world, name string) *site {
	t.Helper()
	backend, err := lab.NewBackend()
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := lab.NewReceiver()
	if err != nil {
		t.Fatal(err)
	}
	s := &site{world: w, name: name, backend: backend, receiver: receiver, client: w.traefik.Client()}
	t.Cleanup(func() {
		// Live no longer than until the next change; a reload only to
		// remove a route would cost more than it shows.
		w.mu.Lock()
		delete(w.dynamic.Mirrors, name)
		delete(w.dynamic.Routes, name)
		delete(w.dynamic.Routes, s.bare())
		w.mu.Unlock()
		s.client.CloseIdleConnections()
		receiver.Close()
		backend.Close()
	})
	t.Cleanup(func() { s.expectNoPanic(t) })
	return s
}

func (s *site) options(given lab.Options) lab.Options {
	all := lab.Options{"watchURL": s.receiver.URL}
	for name, value := range given {
		all[name] = value
	}
	return all
}

func (s *site) expectNoPanic(t *testing.T) {
	t.Helper()
	select {
	case <-s.world.traefik.Exited():
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := s.world.traefik.Counters(ctx)
	if err != nil {
		t.Error(err)
	} else if c.Panics != 0 {
		t.Errorf("panics inside the plugin: got %d; want 0; see Traefik's log:\n%.2000s", c.Panics, logged(s.world, "internal error"))
	}
	for _, l := range c.Middlewares[s.name+"@file"].Receivers {
		if err := l.Check(); err != nil {
			t.Error(err)
		}
	}
}

// protocols are the two that each promise is looked at over.
var protocols = []struct {
	name, scheme string
	major        int
}{
	{"HTTP/1.1", "http", 1},
	{"HTTP/2", "https", 2},
}

// request is a request for the site's mirrored route under an id of its own, by
// which its report and its event are found.
func (s *site) request(t *testing.T, method, scheme, path string, body io.Reader) (r *http.Request, id string) {
	t.Helper()
	r, err := http.NewRequestWithContext(soon(t), method, scheme+"://"+s.name+".test"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	id = fmt.Sprintf("%s-%d", s.name, s.requests.Add(1))
	r.Header.Set(lab.RequestHeader, id)
	return r, id
}

// to leads a request to another route.
func to(r *http.Request, route string) *http.Request {
	r.URL.Host = route + ".test"
	r.Host = r.URL.Host
	return r
}

// answer is a response that was read to its end.
type answer struct {
	*http.Response
	body []byte
}

// report is what the backend answered that it saw.
func (a answer) report(t *testing.T) lab.Report {
	t.Helper()
	var r lab.Report
	if err := json.Unmarshal(a.body, &r); err != nil {
		t.Fatalf("answer %s: no report: %v: %.200q", a.Status, err, a.body)
	}
	return r
}

func (s *site) do(r *http.Request) (answer, error) {
	res, err := s.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return answer{res, body}, err
}

// send sends the request and wants this status.
func (s *site) send(t *testing.T, r *http.Request, status int) answer {
	t.Helper()
	a, err := s.do(r)
	if err != nil {
		t.Fatalf("%s %s: %v", r.Method, r.URL, err)
	}
	if a.StatusCode != status {
		t.Fatalf("%s %s: got status %d; want %d; body %.200q", r.Method, r.URL, a.StatusCode, status, a.body)
	}
	return a
}

// get sends a GET that is to be answered with 200 and returns its id.
func (s *site) get(t *testing.T) (id string) {
	t.Helper()
	r, id := s.request(t, http.MethodGet, "http", "/", nil)
	s.send(t, r, http.StatusOK)
	return id
}

// post sends a POST that is to be answered with 200 and returns its id.
func (s *site) post(t *testing.T, body string) (id string) {
	t.Helper()
	r, id := s.request(t, http.MethodPost, "http", "/", strings.NewReader(body))
	s.send(t, r, http.StatusOK)
	return id
}

// event waits for the event of a request and reads it as a receiver would.
func (s *site) event(t *testing.T, id string) event.Event {
	t.Helper()
	field := []byte(`"` + id + `"`)
	mine := func(a lab.Attempt) bool { return bytes.Contains(a.Body, field) }
	attempts, err := s.receiver.WaitFor(soon(t), "the event of "+id, func(all []lab.Attempt) bool {
		return slices.ContainsFunc(all, mine)
	})
	if err != nil {
		t.Fatalf("%v; ledger: %s", err, s.ledger(t))
	}
	return read(t, attempts[slices.IndexFunc(attempts, mine)])
}

// read reads a delivery with the receivers' libraries and the product's schema.
func read(t *testing.T, a lab.Attempt) event.Event {
	t.Helper()
	e, err := event.FromRequest(a.Header, a.Body)
	if err != nil {
		t.Fatalf("delivery: %v\n%s", err, a.Body)
	}
	return e
}

// events reads deliveries of events as a receiver would: packed or not, in batches or
// each by itself, in the order in which they came.
func events(t *testing.T, attempts []lab.Attempt) []event.Event {
	t.Helper()
	var all []event.Event
	for _, a := range attempts {
		payload, err := a.Payload()
		if err != nil {
			t.Fatalf("delivery: %v", err)
		}
		b, err := event.ReadDelivery(a.Header, payload)
		if err != nil {
			t.Fatalf("delivery: %v\n%s", err, payload)
		}
		all = append(all, b.Events...)
	}
	return all
}

// taken are the attempts that were answered with a success.
func taken(attempts []lab.Attempt) []lab.Attempt {
	return slices.DeleteFunc(attempts, func(a lab.Attempt) bool { return a.Answer/100 != 2 })
}

// requestOf is the id of the request that an event is of.
func requestOf(e event.Event) string {
	return strings.Join(e.Header[strings.ToLower(lab.RequestHeader)], ",")
}

// expectNumbers wants the events, in whatever order, to be numbered from 1 to n under
// one boot, each number once.
func expectNumbers(t *testing.T, what string, all []event.Event, n int64) {
	t.Helper()
	boots, numbers := map[string]bool{}, map[int64]int{}
	for _, e := range all {
		boots[e.Boot] = true
		numbers[e.Sequence]++
		if e.Sequence < 1 || e.Sequence > n {
			t.Errorf("%s: got number %d; want 1 to %d", what, e.Sequence, n)
		}
	}
	if len(boots) > 1 {
		t.Errorf("%s: got %d boots; want one", what, len(boots))
	}
	if int64(len(all)) != n || int64(len(numbers)) != n {
		t.Errorf("%s: got %d events with %d numbers; want 1 to %d", what, len(all), len(numbers), n)
	}
}

// aReceiver is one more receiver for a test.
func aReceiver(t *testing.T) *lab.Receiver {
	t.Helper()
	r, err := lab.NewReceiver()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// origin is what the counters call a receiver.
func origin(r *lab.Receiver) string { return strings.TrimSuffix(r.URL, "/events") }

// ledgers are those of now by receiver, which must add up.
func (s *site) ledgers(t *testing.T) map[string]lab.Ledger {
	t.Helper()
	all, err := s.world.traefik.Ledgers(soon(t), s.name)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// settleAll waits until nothing is on its way to any of the receivers, each of which
// has seen n requests.
func (s *site) settleAll(t *testing.T, n int64) map[string]lab.Ledger {
	t.Helper()
	var all map[string]lab.Ledger
	await(t, fmt.Sprintf("all receivers to see %d and settle", n), func() (bool, any, error) {
		var err error
		all, err = s.world.traefik.Ledgers(soon(t), s.name)
		settled := len(all) > 0
		for _, l := range all {
			settled = settled && l.Settled() && l.Seen >= n
		}
		return settled, all, err
	})
	return all
}

// settle waits until the mirror has seen n requests and none is on its way.
func (s *site) settle(t *testing.T, n int) lab.Ledger {
	t.Helper()
	l, err := s.world.traefik.Settle(soon(t), s.name, int64(n))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// ledger is the ledger of now, which must add up.
func (s *site) ledger(t *testing.T) lab.Ledger {
	t.Helper()
	l, err := s.world.traefik.Ledger(soon(t), s.name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// await polls until done says true.
func await(t *testing.T, what string, done func() (ok bool, seen any, err error)) {
	t.Helper()
	if err := lab.Poll(soon(t), what, done); err != nil {
		t.Fatal(err)
	}
}

// soon is a context for one step of a test. The bound is generous, because the
// machine may be busy; nothing is expected to come near it.
func soon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// logged are the lines of Traefik's log that hold the text.
func logged(w *world, text string) string {
	var lines []string
	for line := range strings.Lines(w.traefik.Log()) {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "")
}

// text is n bytes of readable text that is different everywhere.
func text(n int) []byte {
	b := make([]byte, 0, n+16)
	for i := 0; len(b) < n; i++ {
		b = fmt.Appendf(b, "line %d\n", i)
	}
	return b[:n]
}

// chunked hides the length of a body, so that it is sent in chunks.
func chunked(p []byte) io.Reader { return struct{ io.Reader }{bytes.NewReader(p)} }

// underLoad has two clients, one over each protocol, send requests until halt, which
// waits for them.
func (s *site) underLoad(t *testing.T) (sent *atomic.Int64, halt func()) {
	var load sync.WaitGroup
	sent = &atomic.Int64{}
	stop := make(chan struct{})
	for _, p := range protocols {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				r, _ := s.request(t, http.MethodPost, p.scheme, "/", strings.NewReader("under load"))
				if a, err := s.do(r); err != nil || a.StatusCode != http.StatusOK {
					t.Errorf("a request under load: got %v, %v; want 200", a.Response, err)
					return
				}
				sent.Add(1)
			}
		})
	}
	return sent, sync.OnceFunc(func() {
		close(stop)
		load.Wait()
	})
}
