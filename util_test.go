package requestmirror

import (
	"bytes"
	"context"
	"encoding/json"
	"expvar"
	"flag"
	"io"
	"log"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"
)

// The tests' vocabulary. Files without a build tag run compiled and, by
// test/yaegi/run.sh, interpreted, so they are written in Yaegi's Go; what needs
// testing/synctest or a newer language is compiled only.

var update = flag.Bool("update", false, "write the golden files in testdata")

// opts are options as users write them, by path.
type opts map[string]interface{}

// configOf is the Config that Traefik would decode the options into; a receiver is
// there unless one is given.
func configOf(options opts) *Config {
	config := CreateConfig()
	config.WatchURL = "http://receiver.test/events"
	fields := reflect.ValueOf(config).Elem()
	for path, value := range options {
		name, part, nested := strings.Cut(path, ".")
		field := fields.FieldByNameFunc(func(field string) bool { return strings.EqualFold(field, name) })
		if !field.IsValid() || name == "rest" {
			if config.Rest == nil {
				config.Rest = map[string]interface{}{}
			}
			config.Rest[path] = value
			continue
		}
		if nested {
			section := map[string]interface{}{}
			if !field.IsNil() {
				section = field.Interface().(map[string]interface{})
			}
			section[part] = value
			value = section
		}
		if value == nil {
			field.Set(reflect.Zero(field.Type()))
		} else {
			field.Set(reflect.ValueOf(value))
		}
	}
	return config
}

func settingsOf(t testing.TB, options opts) *settings {
	t.Helper()
	set, problems, unknown := readSettings(configOf(options), t.Name())
	if len(problems)+len(unknown) > 0 {
		t.Fatalf("got problems %q, %q; want none", problems, unknown)
	}
	return set
}

// stillPipeline starts no workers: what is offered stays in its queue.
func stillPipeline(t testing.TB, options opts) *pipeline {
	t.Helper()
	set := settingsOf(t, options)
	p := newPipeline(set, set.targets[0], newLedger(set.name, "http://receiver.test"), newBudget(set.memoryLimit), 0x01992f5e00c1)
	p.running = set.workers
	p.room = set.queueSize
	return p
}

// unsay has the mistakes of the test's middleware logged again, when the test runs again.
func unsay(t testing.TB) { isNews(t.Name(), "") }

// captured is what a pipeline takes of a request that next serves.
func captured(t testing.TB, p *pipeline, req *http.Request, next http.Handler) *capture {
	t.Helper()
	waiting := len(p.queue)
	newMirror(next, p.set, []*pipeline{p}).ServeHTTP(httptest.NewRecorder(), req)
	if got := len(p.queue) - waiting; got != 1 {
		t.Fatalf("got %d events for one request; want 1", got)
	}
	c := <-p.queue // Yaegi cannot receive in a return
	return c
}

func bytesHeld(p *pipeline) int64 { return atomic.LoadInt64(&p.budget.held) }

// routers that mirrorOf made for the running test.
var routers int

// mirrorOf is what New makes of the options; when the test ends its pipelines are gone.
func mirrorOf(t *testing.T, next http.Handler, options opts) http.Handler {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	routers++
	t.Cleanup(func() {
		cancel()
		routers--
		if routers == 0 {
			dissolveAll(t)
		}
	})
	handler, err := New(ctx, next, configOf(options), t.Name())
	if err != nil {
		t.Fatalf("got error %q; want none", err)
	}
	return handler
}

// dissolveAll retires what no router holds any more, without the grace period.
func dissolveAll(t *testing.T) {
	t.Helper()
	waitFor(t, "leases to end", retireAll)
	waitFor(t, "pipelines to be gone", registryIsEmpty)
}

func retireAll() bool {
	registryMu.Lock()
	list := append([]*pipeline{}, existing...)
	leases := 0
	for _, p := range list {
		leases += p.leases
		if p.grace != nil {
			p.grace.Stop()
		}
	}
	registryMu.Unlock()
	if leases > 0 {
		return false
	}
	for _, p := range list {
		retireUnused(p)
	}
	return true
}

func registryIsEmpty() bool {
	registryMu.Lock()
	defer registryMu.Unlock()
	return len(existing)+len(pipelines)+len(ledgers) == 0 && signals == nil
}

// waitFor is for what other goroutines do in real time. It fails only for what never
// happens.
func waitFor(t *testing.T, what string, happened func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !happened() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-tick.C
	}
}

// tally is the ledger of a receiver as expvar shows it, and what it shows of the
// middleware.
type tally struct {
	Seen, Filtered, SampledOut, Enqueued, Delivered, InFlight, Waiting, Retried uint64

	Dropped, Failed, Truncated map[string]uint64

	Pipelines, QueueLength, QueueCapacity, BytesHeld, MemoryLimit int64

	CircuitBreaker string
	Concurrency    int
	Receiver       string `json:"-"`
}

// tallyOf reads the ledger of the middleware that has the name of the test, and of its
// only receiver, and checks that it adds up.
func tallyOf(t testing.TB) tally {
	t.Helper()
	all := talliesOf(t)
	if len(all) > 1 {
		t.Fatalf("got %d receivers; want one", len(all))
	}
	for _, n := range all {
		return n
	}
	return tally{}
}

// talliesOf reads the ledgers by receiver.
func talliesOf(t testing.TB) map[string]tally {
	t.Helper()
	type middleware struct {
		BytesHeld, MemoryLimit int64
		Receivers              map[string]tally
	}
	shown := struct{ Middlewares map[string]middleware }{}
	if err := json.Unmarshal([]byte(expvar.Get("requestmirror").String()), &shown); err != nil {
		t.Fatalf("got expvar that is no JSON: %v", err)
	}
	found := shown.Middlewares[t.Name()]
	out := map[string]tally{}
	for receiver, n := range found.Receivers {
		n.BytesHeld = found.BytesHeld
		n.MemoryLimit = found.MemoryLimit
		addsUp(t, n)
		out[receiver] = n
	}
	return out
}

func addsUp(t testing.TB, n tally) {
	t.Helper()
	if want := n.Filtered + n.SampledOut + n.Enqueued + sum(n.Dropped); n.Seen != want {
		t.Errorf("got %d requests seen; want %d = filtered + sampled out + enqueued + dropped in %+v", n.Seen, want, n)
	}
	if want := n.Delivered + sum(n.Failed) + n.Waiting + n.InFlight; n.Enqueued != want {
		t.Errorf("got %d events enqueued; want %d = delivered + failed + waiting + in flight in %+v", n.Enqueued, want, n)
	}
	if int64(n.Waiting) < 0 || int64(n.InFlight) < 0 || n.BytesHeld < 0 {
		t.Errorf("got a count below zero: %+v", n)
	}
}

// post is a delivery as a receiver gets it.
type post struct {
	method, uri, host string
	header            http.Header
	payload           []byte
	event             event
}

// event is what a receiver reads of a payload, by the names of the contract.
type event struct {
	SpecVersion     string `json:"specversion"`
	ID              string `json:"id"`
	Source          string `json:"source"`
	Type            string `json:"type"`
	Subject         string `json:"subject"`
	Time            string `json:"time"`
	DataContentType string `json:"datacontenttype"`
	DataSchema      string `json:"dataschema"`
	Sequence        string `json:"sequence"`
	Traceparent     string `json:"traceparent"`
	Data            struct {
		HTTP struct {
			Request struct {
				Method string              `json:"method"`
				Header map[string][]string `json:"header"`
				Cookie map[string][]string `json:"cookie"`
				Body   *wireBody           `json:"body"`
			} `json:"request"`
			Response json.RawMessage `json:"response"` // responseOf reads it
		} `json:"http"`
		Duration json.RawMessage `json:"duration_ms"`
		URL      struct {
			Scheme string  `json:"scheme"`
			Path   string  `json:"path"`
			Query  *string `json:"query"`
		} `json:"url"`
		Network struct {
			Protocol struct {
				Name    string `json:"name"`
				Version string `json:"version"`
			} `json:"protocol"`
			Peer *address `json:"peer"`
		} `json:"network"`
		Client    *address `json:"client"`
		Server    *address `json:"server"`
		UserAgent *struct {
			Original string `json:"original"`
		} `json:"user_agent"`
		TLS *struct {
			Protocol struct {
				Version string `json:"version"`
			} `json:"protocol"`
		} `json:"tls"`
		RequestID  string            `json:"request_id"`
		Attributes map[string]string `json:"attributes"`
	} `json:"data"`
}

type address struct {
	Address string `json:"address"`
	Port    *int   `json:"port"`
}

// eventOf decodes a payload, strictly: a name that the contract does not have is an error.
func eventOf(t testing.TB, payload []byte) event {
	t.Helper()
	var e event
	decoder := json.NewDecoder(bytes.NewReader(payload))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&e); err != nil {
		t.Fatalf("got a payload that is no event: %v in %s", err, payload)
	}
	if decoder.More() || !utf8.Valid(payload) {
		t.Fatalf("got more than one value, or no UTF-8: %q", payload)
	}
	return e
}

// recorder is a transport that keeps what it is to send.
type recorder struct {
	payload []byte
	header  http.Header
}

func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	r.payload, _ = io.ReadAll(req.Body)
	r.header = req.Header
	return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil
}

// encode has a worker see the capture through and returns what it posts, with the id
// of d if it has one; the id and the trace that the worker found are left in d.
func encode(p *pipeline, c *capture, d *delivery) []byte {
	r := &recorder{}
	var transport http.RoundTripper = r
	p.sender.transport = transport
	set := *p.set
	set.maxAge = math.MaxInt64 // goldens are old
	p.set = &set
	p.running = 2 // so that the one that leaves here is not the last
	p.retired = true
	p.queue <- c
	p.queue <- nil
	p.notices = 1
	run(&worker{pipe: p})
	p.notices = 0
	p.retired = false
	<-p.queue // its notice to the other
	d.traceparent = r.header.Get("Traceparent")
	id := r.header.Get("Webhook-Id")
	if d.id == "" {
		d.id = id
	}
	return bytes.Replace(r.payload, []byte(id), []byte(d.id), 1)
}

// eventFrom is what a receiver gets of the capture.
func eventFrom(t testing.TB, p *pipeline, c *capture) event {
	t.Helper()
	return eventOf(t, encode(p, c, &delivery{id: "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913"}))
}

// receiver takes deliveries, on a real connection.
type receiver struct {
	url     string
	mu      sync.Mutex
	posts   []*post
	answers []int         // statuses, the last one for all that follow; 204 if there is none
	hold    chan struct{} // if not nil, answers wait until it is closed
}

func newReceiver(t testing.TB, answers ...int) *receiver {
	r := &receiver{answers: answers}
	var handler http.Handler = r
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func (r *receiver) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	payload, _ := io.ReadAll(req.Body)
	got := &post{method: req.Method, uri: req.RequestURI, host: req.Host, header: req.Header, payload: payload}
	_ = json.Unmarshal(payload, &got.event)
	r.mu.Lock()
	r.posts = append(r.posts, got)
	answer := http.StatusNoContent
	if len(r.answers) > 0 {
		answer = r.answers[0]
	}
	if len(r.answers) > 1 {
		r.answers = r.answers[1:]
	}
	hold := r.hold
	r.mu.Unlock()
	if hold != nil {
		<-hold
	}
	rw.WriteHeader(answer)
}

func (r *receiver) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.posts)
}

// wait returns the first n deliveries when they are there.
func (r *receiver) wait(t *testing.T, n int) []*post {
	t.Helper()
	waitFor(t, "deliveries", func() bool { return r.count() >= n })
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.posts
}

func quiet() *log.Logger { return log.New(io.Discard, "", 0) }

// golden compares with a file in testdata, or writes it.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; -update writes it", err)
	}
	if string(got) != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}
