package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"expvar"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	"gopkg.in/yaml.v3"
)

// patience bounds every wait. Nothing takes that long; a slow machine may.
const patience = 8 * time.Second

var quiet = log.New(io.Discard, "", 0)

// scenario is one row of the behaviour table.
type scenario struct {
	name    string   // what happens, as a sentence
	config  string   // YAML, or JSON when it starts with {"; $URL is the receiver, and the default watchURL
	answers []answer // of the receiver; none: 204
	also    []also   // more receivers, which are $URL2, $URL3 …
	prepare func(*receiver)
	tls     bool // the client speaks HTTP/2 over TLS
	secure  bool // the receiver has a certificate that nobody knows
	do      func(*run)
	want    string   // the ledger at the end, complete; "*": any that adds up
	secret  []string // what must be in no event and no log line
	// problem is what the log must say of the configuration; without it nothing may be wrong with it.
	problem []string
	loose   bool // answers and timeouts overlap: an answer may be sent that nobody reads any more
	strict  bool // a problem is returned, so it is counted but not logged
}

// also is one more receiver of a scenario, and the ledger that it has at the end.
type also struct {
	answers []answer
	want    string
}

// run is a scenario that is executed on one engine: a client, a server with the
// middleware, a backend behind it, and the receiver.
type run struct {
	*testing.T
	eng    *engine
	sc     *scenario
	name   string // of the middleware
	next   *next
	recv   *receiver
	more   []*receiver // of the scenario's also
	front  *httptest.Server
	client *http.Client
	ends   []context.CancelFunc

	backend http.HandlerFunc       // set it before the first request
	parsed  map[string]event.Batch // by payload; the test's goroutine reads and writes it
	gone    bool                   // the case ends without a pipeline, and so without counters
	errMark int                    // where its part of the log begins
	dir     string                 // of the files that the case writes

	sent   atomic.Int64 // requests on their way to the middleware
	served atomic.Int64 // requests the middleware has returned from

	mu       sync.Mutex
	handler  http.Handler
	passages []*passage
}

// passage is one request on its way through the middleware.
type passage struct {
	rw       http.ResponseWriter
	req      *http.Request
	body     io.ReadCloser
	length   int64
	panicked any

	// What the backend saw.
	reached bool
	same    bool // the ResponseWriter and the request are the ones that came
	noBody  bool
	method  string
	uri     string
	header  http.Header
	content []byte
	err     error
	got     int64 // ContentLength
}

type passageKey struct{}

// next is the handler behind the middleware: a pointer, so that it can be compared.
type next struct{ c *run }

func (n *next) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	p, _ := req.Context().Value(passageKey{}).(*passage)
	n.c.mu.Lock()
	p.reached = true
	p.same = p.rw == rw && p.req == req
	p.noBody = req.Body == http.NoBody
	p.method, p.uri, p.header, p.got = req.Method, req.RequestURI, req.Header.Clone(), req.ContentLength
	n.c.mu.Unlock()
	n.c.backend(rw, req)
}

// readAll is the backend of most cases.
func (c *run) readAll(rw http.ResponseWriter, req *http.Request) {
	content, err := io.ReadAll(req.Body)
	p := req.Context().Value(passageKey{}).(*passage)
	c.mu.Lock()
	p.content, p.err = content, err
	c.mu.Unlock()
	fmt.Fprint(rw, "backend")
}

// ServeHTTP is the server in front of the middleware: it compares what it hands
// over with what arrives behind.
func (c *run) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	p := &passage{rw: rw}
	req = req.WithContext(context.WithValue(req.Context(), passageKey{}, p))
	p.req, p.body, p.length = req, req.Body, req.ContentLength
	c.mu.Lock()
	c.passages = append(c.passages, p)
	h := c.handler
	c.mu.Unlock()
	defer func() {
		v := recover()
		c.mu.Lock()
		p.panicked = v
		c.mu.Unlock()
		c.served.Add(1)
		if v != nil {
			panic(http.ErrAbortHandler)
		}
	}()
	h.ServeHTTP(rw, req)
}

var serial atomic.Int64

func runTable(t *testing.T, table []scenario) {
	t.Helper()
	for _, eng := range loaded(t) {
		t.Run(eng.name, func(t *testing.T) {
			for i := range table {
				sc := table[i] // A copy: a case may complete what it wants.
				t.Run(sc.name, func(t *testing.T) { runScenario(t, eng, &sc) })
			}
		})
	}
}

// runParallel runs a table that takes its time, all cases of both engines at once.
// Its cases must leave the counters of the whole process alone.
func runParallel(t *testing.T, table []scenario) {
	t.Helper()
	for _, eng := range loaded(t) {
		for i := range table {
			t.Run(eng.name+"/"+table[i].name, func(t *testing.T) {
				t.Parallel()
				sc := table[i]
				runScenario(t, eng, &sc)
			})
		}
	}
}

func runScenario(t *testing.T, eng *engine, sc *scenario) {
	c := &run{T: t, eng: eng, sc: sc, name: fmt.Sprintf("%s-%d@file", eng.name, serial.Add(1)), parsed: map[string]event.Batch{}}
	var options []func(*receiver)
	if sc.prepare != nil {
		options = append(options, sc.prepare)
	}
	c.recv = newReceiver(sc.answers, sc.secure, options...)
	for _, other := range sc.also {
		c.more = append(c.more, newReceiver(other.answers, false))
	}
	c.next = &next{c}
	c.backend = c.readAll
	c.front = httptest.NewUnstartedServer(c)
	c.front.Config.ErrorLog = quiet
	c.front.Config.DisableGeneralOptionsHandler = true
	if sc.tls {
		c.front.EnableHTTP2 = true
		c.front.StartTLS()
	} else {
		c.front.Start()
	}
	c.client = c.front.Client()
	c.client.Timeout = 2 * patience
	c.client.Transport.(*http.Transport).DisableCompression = true
	c.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

	debugMark, before := eng.debug.len(), globals()
	c.errMark = eng.errors.len()
	t.Cleanup(func() {
		if !t.Failed() {
			c.finish(before, debugMark)
		}
		for _, r := range c.receivers() {
			r.release() // After the look at what was accepted: nobody listens any more.
		}
		for _, end := range c.ends {
			end()
		}
		c.client.CloseIdleConnections()
		c.front.Close()
		for _, r := range c.receivers() {
			r.Close()
		}
	})
	if sc.config != "-" {
		c.use(c.mustNew(sc.config))
	}
	sc.do(c)
}

func (c *run) receivers() []*receiver { return append([]*receiver{c.recv}, c.more...) }

// decode reads a configuration as a provider does: a map of what YAML or JSON holds.
func (c *run) decode(text string) map[string]any {
	c.Helper()
	for i, r := range c.more {
		text = strings.ReplaceAll(text, fmt.Sprintf("$URL%d", i+2), r.URL)
	}
	text = strings.ReplaceAll(text, "$URL", c.recv.URL)
	text = strings.ReplaceAll(text, "$HOST", strings.TrimPrefix(c.recv.URL, "http://"))
	m := map[string]any{}
	var err error
	if strings.HasPrefix(text, `{"`) {
		err = json.Unmarshal([]byte(text), &m)
	} else {
		err = yaml.Unmarshal([]byte(text), &m)
	}
	if err != nil {
		c.Fatalf("test: config: %v", err)
	}
	if _, ok := m["watchURL"]; !ok {
		m["watchURL"] = c.recv.URL
	}
	if m["watchURL"] == nil {
		delete(m, "watchURL") // "watchURL: null" is a configuration without it
	}
	return m
}

// newRouter does what Traefik does for one router. The context ends with the case.
func (c *run) newRouter(config string) (http.Handler, context.CancelFunc, error) {
	c.Helper()
	cfg, err := c.eng.createConfig(c.decode(config))
	if err != nil {
		return nil, nil, fmt.Errorf("decoder: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.ends = append(c.ends, cancel)
	h, err := c.eng.newHandler(ctx, c.next, cfg, c.name)
	return h, cancel, err
}

func (c *run) mustNew(config string) http.Handler {
	c.Helper()
	h, _, err := c.newRouter(config)
	if err != nil {
		c.Fatalf("New: got error %v; want none", err)
	}
	return h
}

func (c *run) use(h http.Handler) {
	c.mu.Lock()
	c.handler = h
	c.mu.Unlock()
}

// The client's side.

type response struct {
	status int
	header http.Header
	body   string
	err    error
}

// request makes a request whose target goes out as it is written here. Headers
// are given as name, value, name, value.
func (c *run) request(method, target string, body io.Reader, header ...string) *http.Request {
	c.Helper()
	if b, ok := body.(*strings.Reader); ok && b.Len() == 0 {
		body = http.NoBody
	}
	req, err := http.NewRequest(method, c.front.URL, body)
	if err != nil {
		c.Fatal(err)
	}
	path, query, _ := strings.Cut(target, "?")
	req.URL = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Opaque: path, RawQuery: query}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header[http.CanonicalHeaderKey(header[i])] = append(req.Header[http.CanonicalHeaderKey(header[i])], header[i+1])
	}
	return req
}

func (c *run) roundTrip(req *http.Request) response {
	c.sent.Add(1)
	resp, err := c.client.Do(req)
	if err != nil {
		return response{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, string(body), err}
}

func (c *run) send(method, target, body string, header ...string) response {
	c.Helper()
	return c.roundTrip(c.request(method, target, strings.NewReader(body), header...))
}

// chunked sends a body without announcing its length.
func (c *run) chunked(target, body string, header ...string) response {
	c.Helper()
	return c.roundTrip(c.request("POST", target, io.MultiReader(strings.NewReader(body)), header...))
}

func (c *run) get(target string, header ...string) response {
	c.Helper()
	return c.send("GET", target, "", header...)
}

// raw opens a connection and writes bytes that no client library would.
func (c *run) raw(text string) net.Conn {
	c.Helper()
	conn, err := net.Dial("tcp", c.front.Listener.Addr().String())
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { conn.Close() })
	c.sent.Add(1)
	if _, err := io.WriteString(conn, text); err != nil {
		c.Fatal(err)
	}
	return conn
}

// Waiting.

// until polls for a condition; it is the only way to wait for something that
// has no channel.
func (c *run) until(what string, ok func() bool) {
	c.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			c.Fatalf("not within %s: %s; ledger: %s, deliveries: %d", patience, what, c.ledger(), len(c.recv.deliveries()))
		}
	}
}

// passed waits until the middleware has returned from everything that was sent.
func (c *run) passed() []*passage {
	c.Helper()
	c.until("the middleware returns", func() bool { return c.served.Load() >= c.sent.Load() })
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]*passage(nil), c.passages...)
}

// settled waits until nothing is on its way any more, to whichever receiver.
func (c *run) settled() ledger {
	c.Helper()
	c.passed()
	c.until("every event has an outcome", func() bool {
		for _, l := range c.ledgers() {
			if l.Waiting != 0 || l.InFlight != 0 {
				return false
			}
		}
		return true
	})
	return c.ledger()
}

// attempts waits for n deliveries, successful or not.
func (c *run) attempts(n int) []delivery {
	c.Helper()
	c.until(strconv.Itoa(n)+" deliveries", func() bool { return len(c.recv.deliveries()) >= n })
	return c.recv.deliveries()
}

// events waits for n different events and returns them in the order of their sequence.
func (c *run) events(n int) []event.Event {
	c.Helper()
	return c.eventsAt(c.recv, n)
}

func (c *run) eventsAt(r *receiver, n int) []event.Event {
	c.Helper()
	var out []event.Event
	c.until(strconv.Itoa(n)+" events", func() bool {
		if len(r.deliveries()) == 0 {
			return n == 0
		}
		out = c.read(r.deliveries())
		return len(out) >= n
	})
	return out
}

func (c *run) event() event.Event {
	c.Helper()
	return c.events(1)[0]
}

// batch reads one delivery, of one event or more.
func (c *run) batch(d delivery) []event.Event {
	c.Helper()
	key := d.header.Get("Content-Type") + string(d.plain)
	b, known := c.parsed[key]
	if !known {
		var err error
		switch {
		case d.header.Get("Content-Type") == event.ContentType:
			var e event.Event
			e, err = event.FromRequest(d.header, d.plain)
			b.Events = []event.Event{e}
		case d.header.Get("Content-Type") != "application/json":
			b, err = event.ReadDelivery(d.header, d.plain)
		case bytes.HasPrefix(d.plain, []byte("[")):
			b, err = event.ReadBatch(d.plain)
		default:
			b, err = event.Read(d.plain)
		}
		if err != nil {
			c.Fatalf("delivery: %v\n%s", err, show(d.plain))
		}
		c.parsed[key] = b
	}
	return b.Events
}

// read parses what was delivered, each event once.
func (c *run) read(all []delivery) []event.Event {
	c.Helper()
	var out []event.Event
	seen := map[string]bool{}
	for _, d := range all {
		for _, e := range c.batch(d) {
			if !seen[e.ID] {
				seen[e.ID] = true
				out = append(out, e)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].Boot != out[j].Boot {
			return out[i].Boot < out[j].Boot
		}
		return out[i].Sequence < out[j].Sequence
	})
	return out
}

// eq compares anything.
func (c *run) eq(what string, got, want any) {
	c.Helper()
	if !reflect.DeepEqual(got, want) {
		c.Errorf("%s: got %v; want %v", what, show(got), show(want))
	}
}

func show(v any) string {
	s := fmt.Sprintf("%+v", v)
	if b, ok := v.([]byte); ok {
		s = fmt.Sprintf("%q", b)
	} else if t, ok := v.(string); ok {
		s = fmt.Sprintf("%q", t)
	}
	if len(s) > 300 {
		s = fmt.Sprintf("%s… (%d bytes)", s[:300], len(s))
	}
	return s
}

// The ledger.

type counters map[string]int64

func (m counters) sum() (n int64) {
	for _, v := range m {
		n += v
	}
	return n
}

// ledger is the part of the published counters that belongs to one middleware.
type ledger struct {
	Seen       int64    `json:"seen"`
	Filtered   int64    `json:"filtered"`
	SampledOut int64    `json:"sampledOut"`
	Enqueued   int64    `json:"enqueued"`
	Dropped    counters `json:"dropped"`
	Delivered  int64    `json:"delivered"`
	Failed     counters `json:"failed"`
	Retried    int64    `json:"retried"`
	Waiting    int64    `json:"waiting"`
	InFlight   int64    `json:"inFlight"`
	Truncated  counters `json:"truncated"`
	QueueLen   int64    `json:"queueLength"`
	QueueCap   int64    `json:"queueCapacity"`
	Pipelines  int64    `json:"pipelines"`
	Breaker    string   `json:"circuitBreaker"`
	Workers    int64    `json:"concurrency"`

	Held  int64 `json:"-"` // of the middleware
	Limit int64 `json:"-"`
}

type published struct {
	ConfigErrors int64                 `json:"configErrors"`
	Panics       int64                 `json:"panics"`
	Middlewares  map[string]middleware `json:"middlewares"`
}

type middleware struct {
	Held      int64             `json:"bytesHeld"`
	Limit     int64             `json:"memoryLimit"`
	Receivers map[string]ledger `json:"receivers"` // by scheme and host
}

// of is the ledger of one receiver, or of the only one whatever it is called, or nothing.
func (m middleware) of(receiver string) ledger {
	l, there := m.Receivers[receiver]
	if !there && len(m.Receivers) == 1 {
		for _, l = range m.Receivers {
		}
	}
	l.Held = m.Held
	l.Limit = m.Limit
	return l
}

func (m middleware) only() ledger { return m.of("") }

func globals() published {
	var p published
	v := expvar.Get("requestmirror")
	if v == nil {
		return p
	}
	if err := json.Unmarshal([]byte(v.String()), &p); err != nil {
		panic(fmt.Sprintf("expvar: %v in %s", err, v))
	}
	return p
}

// ledger looks at the counters, and they must add up whenever one looks.
func (c *run) ledger() ledger {
	c.Helper()
	return c.ledgerOf(c.recv)
}

func (c *run) ledgerOf(r *receiver) ledger {
	c.Helper()
	c.ledgers()
	return globals().Middlewares[c.name].of(r.URL)
}

// ledgers are those of all receivers, each of which must add up, by name.
func (c *run) ledgers() map[string]ledger {
	c.Helper()
	m := globals().Middlewares[c.name]
	all := map[string]ledger{}
	for name := range m.Receivers {
		l := m.of(name)
		if err := l.check(); err != nil {
			c.Errorf("ledger of %s: %v: %s", name, err, l)
		}
		all[name] = l
	}
	return all
}

// logged are the lines of the error log that name the middleware and have the text.
func (c *run) logged(text string) (lines []string) {
	for _, line := range strings.Split(c.eng.errors.since(c.errMark), "\n") {
		if strings.Contains(line, strconv.Quote(c.name)) && strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

func (l ledger) check() error {
	if got := l.Filtered + l.SampledOut + l.Enqueued + l.Dropped.sum(); got != l.Seen {
		return fmt.Errorf("%d seen, but filtered + sampled out + enqueued + dropped = %d", l.Seen, got)
	}
	if got := l.Delivered + l.Failed.sum() + l.Waiting + l.InFlight; got != l.Enqueued {
		return fmt.Errorf("%d enqueued, but delivered + failed + waiting + in flight = %d", l.Enqueued, got)
	}
	if l.Held < 0 || l.Waiting < 0 || l.InFlight < 0 || l.Held > l.Limit {
		return fmt.Errorf("%d bytes held of %d, %d waiting, %d in flight", l.Held, l.Limit, l.Waiting, l.InFlight)
	}
	return nil
}

// String has every counter that is not zero, in the order of a request's life.
func (l ledger) String() string {
	var parts []string
	add := func(name string, n int64) {
		if n != 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", name, n))
		}
	}
	all := func(name string, m counters) {
		keys := make([]string, 0, len(m))
		for k := range m {
			keys = append(keys, k)
		}
		sort.Strings(keys)
		for _, k := range keys {
			add(name+"."+k, m[k])
		}
	}
	add("seen", l.Seen)
	add("filtered", l.Filtered)
	add("sampledOut", l.SampledOut)
	all("dropped", l.Dropped)
	add("enqueued", l.Enqueued)
	add("waiting", l.Waiting)
	add("inFlight", l.InFlight)
	add("delivered", l.Delivered)
	all("failed", l.Failed)
	add("retried", l.Retried)
	all("truncated", l.Truncated)
	return strings.Join(parts, " ")
}

// finish checks what holds at the end of every case, whatever happened in it.
func (c *run) finish(before published, debugMark int) {
	l := c.settled()
	if c.Failed() || c.gone {
		return
	}
	if c.sc.want != "*" {
		c.eq("ledger", l.String(), c.sc.want)
	}
	for i, other := range c.sc.also {
		if got := c.ledgerOf(c.more[i]).String(); other.want != "*" {
			c.eq(fmt.Sprintf("ledger of receiver %d", i+2), got, other.want)
		}
	}
	for _, l := range c.ledgers() {
		if l.Held != 0 || l.QueueLen != 0 {
			c.Errorf("at the end: got %d bytes held, %d in the queue; want none", l.Held, l.QueueLen)
		}
	}
	now := globals()
	c.eq("panics", now.Panics-before.Panics, int64(0))
	for _, r := range c.receivers() {
		c.checkDeliveries(r, c.ledgerOf(r))
	}

	logged, debug := c.eng.errors.since(c.errMark), c.eng.debug.since(debugMark)
	for _, s := range c.sc.secret {
		for what, text := range map[string]string{"error log": logged, "debug log": debug} {
			if strings.Contains(text, s) {
				c.Errorf("%s: has the secret %q:\n%s", what, s, text)
			}
		}
		for _, d := range append(c.recv.deliveries(), c.recv.told()...) {
			if bytes.Contains(d.plain, []byte(s)) {
				c.Errorf("event: has the secret %q:\n%s", s, d.plain)
			}
		}
	}
	if wrong := now.ConfigErrors - before.ConfigErrors; (wrong > 0) != (len(c.sc.problem) > 0 || c.sc.strict) {
		c.Errorf("configErrors: got %d more; want problems %q; log:\n%s", wrong, c.sc.problem, logged)
	}
	for _, p := range c.sc.problem {
		if !strings.Contains(logged, p) {
			c.Errorf("log: got no %q; want it in\n%s", p, logged)
		}
	}
	if len(c.sc.problem) > 0 && !strings.Contains(logged, c.name) {
		c.Errorf("log: got no name of the middleware; want %q in\n%s", c.name, logged)
	}
}

// checkDeliveries holds every attempt against part 5 of the contract, and the
// events against the ledger.
func (c *run) checkDeliveries(r *receiver, l ledger) {
	config := c.decode(orEmpty(c.sc.config))
	contentTypes := map[string]bool{event.ContentType: true}
	if batch, _ := config["batch"].(map[string]any); batch != nil {
		contentTypes = map[string]bool{event.BatchContentType: true}
	}
	if config["format"] == "json" {
		contentTypes = map[string]bool{"application/json": true}
	}
	if c.sc.config == "-" {
		contentTypes[event.BatchContentType] = true // whatever the case has used since
	}
	batched := contentTypes[event.BatchContentType] || config["batch"] != nil
	first := map[string]delivery{}
	accepted := map[string]bool{} // ids of events
	all := r.deliveries()
	for _, d := range append(r.told(), all...) {
		id := d.header.Get("Webhook-Id")
		stamp, err := strconv.ParseInt(d.header.Get("Webhook-Timestamp"), 10, 64)
		if err != nil || d.at.Sub(time.Unix(stamp, 0)) > patience || time.Unix(stamp, 0).Sub(d.at) > time.Second {
			c.Errorf("webhook-timestamp: got %q; want the time of this attempt", d.header.Get("Webhook-Timestamp"))
		}
		c.eq("method", d.method, "POST")
		if ct := d.header.Values("Content-Type"); len(ct) != 1 || !contentTypes[ct[0]] {
			c.Errorf("content type: got %q; want one of %v", ct, contentTypes)
		}
		if ua := d.header.Get("User-Agent"); !strings.HasPrefix(ua, "requestmirror/") || len(ua) == len("requestmirror/") {
			c.Errorf("user agent: got %q; want requestmirror/<version>", ua)
		}
		if d.header.Get("Cookie") != "" {
			c.Errorf("cookie: got %q; want none in a delivery", d.header.Get("Cookie"))
		}
		if encoding := d.header.Get("Content-Encoding"); encoding != "" && (encoding != "gzip" || config["compression"] != "gzip" && c.sc.config != "-") {
			c.Errorf("content encoding: got %q with compression %v", encoding, config["compression"])
		}
		if !uuid7.MatchString(id) {
			c.Errorf("webhook-id: got %q; want a UUIDv7", id)
		}
		if f, again := first[id]; again && !bytes.Equal(f.raw, d.raw) {
			c.Errorf("attempts of %s: got two bodies; want the same bytes", id)
		} else if !again {
			first[id] = d
		}
	}
	for _, d := range all {
		if !d.accepted {
			continue
		}
		for _, e := range c.batch(d) {
			if accepted[e.ID] && !c.sc.loose {
				c.Errorf("event %s was accepted twice", e.ID)
			}
			accepted[e.ID] = true
		}
	}
	events := c.read(all)
	numbers := map[string]string{}
	for i, e := range events {
		if !batched {
			d := first[e.ID]
			if d.raw == nil {
				c.Errorf("webhook-id: got none that is %s; want the id of the event", e.ID)
			}
			c.eq("traceparent header", d.header.Get("Traceparent"), e.Traceparent)
		}
		if !strings.HasSuffix(e.Source, "/middlewares/"+c.name) {
			c.Errorf("source: got %q; want it to end with the middleware %q", e.Source, c.name)
		}
		number := fmt.Sprintf("%s-%d", e.Boot, e.Sequence)
		if other, used := numbers[number]; used {
			c.Errorf("sequence %s: got it in %s and %s; want it once", number, other, e.ID)
		}
		numbers[number] = e.ID
		// Numbers are given from 1 on: the n-th event of a boot can't have less than n.
		if i == 0 && e.Sequence < 1 {
			c.Errorf("sequence: got %d; want 1 or more", e.Sequence)
		}
		if e.Sequence > l.Seen-l.Filtered-l.SampledOut {
			c.Errorf("sequence: got %d with only %d numbers given", e.Sequence, l.Seen-l.Filtered-l.SampledOut)
		}
	}
	for _, d := range all {
		for _, e := range c.batch(d) {
			if age := d.at.Sub(e.Time); age < 0 || age > 3*patience {
				c.Errorf("time: got %s, %s before its delivery", e.Time, age)
			}
		}
	}
	if n := int64(len(accepted)); n < l.Delivered || n > l.Delivered && !c.sc.loose {
		c.Errorf("delivered: got %d; want %d, which the receiver accepted", l.Delivered, len(accepted))
	}
	if gaps := l.Seen - l.Filtered - l.SampledOut - int64(len(events)); gaps < 0 || gaps > l.Dropped.sum()+l.Failed.sum() {
		c.Errorf("gaps: got %d in the sequence; want at most dropped + failed of %s", gaps, l)
	}
	c.checkReports(r, l)
}

// data is the part of a report that counts.
func data(raw []byte) []byte {
	_, after, _ := bytes.Cut(raw, []byte(`"data":`))
	return after
}

var uuid7 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// checkReports holds reports against the ledger, which is newer than all of them.
func (c *run) checkReports(r *receiver, l ledger) []event.Report {
	c.Helper()
	var out []event.Report
	last := map[string]event.Report{} // by boot
	all := r.told()
	// By id, which begins with the time: a report may be overtaken by the next one.
	sort.Slice(all, func(i, j int) bool { return all[i].header.Get("Webhook-Id") < all[j].header.Get("Webhook-Id") })
	for _, d := range all {
		b, err := event.ReadDelivery(d.header, d.plain)
		if d.header.Get("Content-Type") == "application/json" {
			b, err = event.Read(bytes.Trim(d.plain, "[]"))
		}
		if err != nil || len(b.Reports) != 1 || len(b.Events) != 0 {
			c.Errorf("report: got %v, %d events; want a report alone in its delivery:\n%s", err, len(b.Events), d.plain)
			continue
		}
		rep := b.Reports[0]
		if rep.ID != d.header.Get("Webhook-Id") {
			c.Errorf("webhook-id: got %s; want the report's %s", d.header.Get("Webhook-Id"), rep.ID)
		}
		before := last[rep.Boot]
		if rep.Time.After(before.Time) && (rep.Seen < before.Seen || rep.Delivered < before.Delivered || before.Final) {
			c.Errorf("reports: got %s after %s; want counts that grow, and none after the final one", data(rep.Raw), data(before.Raw))
		}
		last[rep.Boot] = rep
		out = append(out, rep)
	}
	var seen int64
	for _, rep := range last {
		seen += rep.Seen
	}
	if seen > l.Seen {
		c.Errorf("reports: got %d seen; want at most the %d of the ledger", seen, l.Seen)
	}
	return out
}

func orEmpty(config string) string {
	if config == "-" {
		return ""
	}
	return config
}
