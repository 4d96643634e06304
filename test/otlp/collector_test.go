package otlp

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
	"go.opentelemetry.io/collector/component"
	"go.opentelemetry.io/collector/confmap"
	"go.opentelemetry.io/collector/confmap/provider/fileprovider"
	"go.opentelemetry.io/collector/exporter"
	"go.opentelemetry.io/collector/exporter/otlphttpexporter"
	"go.opentelemetry.io/collector/otelcol"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/collector/processor"
	"go.opentelemetry.io/collector/processor/memorylimiterprocessor"
	"go.opentelemetry.io/collector/receiver"
	"go.opentelemetry.io/collector/receiver/otlpreceiver"
	"go.opentelemetry.io/collector/service/telemetry/otelconftelemetry"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.yaml.in/yaml/v3"
)

const page = "docs/how-to/send-to-opentelemetry.md"

// blocksOf are the YAML blocks of the page: of the plugin, and of the Collector.
func blocksOf(t *testing.T) (plugin, collector map[string]any) {
	t.Helper()
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(page)))
	if err != nil {
		t.Fatal(err)
	}
	var blocks []map[string]any
	for i, part := range strings.Split("\n"+string(text), "\n```") {
		if block, found := strings.CutPrefix(part, "yaml\n"); found && i%2 == 1 {
			tree := map[string]any{}
			if err := yaml.Unmarshal([]byte(block), &tree); err != nil {
				t.Fatal(err)
			}
			blocks = append(blocks, tree)
		}
	}
	if len(blocks) != 2 {
		t.Fatalf("%s: got %d blocks of YAML; want that of the plugin and that of the Collector", page, len(blocks))
	}
	return blocks[0], blocks[1]
}

// in goes down a tree by its keys.
func in(t *testing.T, tree map[string]any, keys ...string) map[string]any {
	t.Helper()
	for _, key := range keys {
		below, ok := tree[key].(map[string]any)
		if !ok {
			t.Fatalf("got no %s in %v", key, tree)
		}
		tree = below
	}
	return tree
}

// collector is a Collector with the components of its core, on a port that it keeps over
// restarts.
type collector struct {
	address string
	dir     string
	log     lockedBuffer
	running *otelcol.Collector
	ended   chan error
}

func newCollector(t *testing.T) *collector {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := &collector{address: l.Addr().String(), dir: t.TempDir()}
	t.Cleanup(func() {
		if c.running != nil {
			c.stop(t)
		}
		if t.Failed() {
			t.Logf("the Collector wrote\n%.5000s", c.log.String())
		}
	})
	return c
}

func (c *collector) url() string { return "http://" + c.address + "/v1/logs" }

// start runs the Collector with the YAML of the page, over which others are laid: to have
// it on the port of the test, send to the sink, and measure itself for nobody.
func (c *collector) start(t *testing.T, sink string, over ...map[string]any) {
	t.Helper()
	_, config := blocksOf(t)
	in(t, config, "exporters", "otlp_http")
	over = append(over, map[string]any{
		"receivers": map[string]any{"otlp": map[string]any{"protocols": map[string]any{"http": map[string]any{"endpoint": c.address}}}},
		"exporters": map[string]any{"otlp_http": map[string]any{"endpoint": sink}},
		"service":   map[string]any{"telemetry": map[string]any{"metrics": map[string]any{"level": "none"}, "logs": map[string]any{"level": "warn"}}},
	})
	uris := []string{}
	for i, tree := range append([]map[string]any{config}, over...) {
		text, err := yaml.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(c.dir, fmt.Sprintf("%d.yaml", i))
		if err := os.WriteFile(name, text, 0o600); err != nil {
			t.Fatal(err)
		}
		uris = append(uris, "file:"+name)
	}
	var err error
	c.running, err = otelcol.NewCollector(otelcol.CollectorSettings{
		BuildInfo:               component.BuildInfo{Command: "otelcol", Version: "test"},
		Factories:               factories,
		DisableGracefulShutdown: true,
		SkipSettingGRPCLogger:   true,
		ConfigProviderSettings: otelcol.ConfigProviderSettings{ResolverSettings: confmap.ResolverSettings{
			URIs: uris, ProviderFactories: []confmap.ProviderFactory{fileprovider.NewFactory()},
		}},
		LoggingOptions: []zap.Option{zap.WrapCore(func(zapcore.Core) zapcore.Core {
			return zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()), zapcore.AddSync(&c.log), zapcore.WarnLevel)
		})},
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	c.ended = ended
	go func() { ended <- c.running.Run(context.Background()) }()
	waitFor(t, "the Collector to run", func() bool {
		select {
		case err := <-ended:
			t.Fatalf("the Collector ended: %v", err)
		default:
		}
		return c.running.GetState() == otelcol.StateRunning
	})
}

func (c *collector) stop(t *testing.T) {
	t.Helper()
	c.running.Shutdown()
	if err := <-c.ended; err != nil {
		t.Errorf("the Collector ended with %v", err)
	}
	c.running = nil
}

func factories() (f otelcol.Factories, err error) {
	f.Telemetry = otelconftelemetry.NewFactory()
	if f.Receivers, err = otelcol.MakeFactoryMap[receiver.Factory](otlpreceiver.NewFactory()); err != nil {
		return f, err
	}
	if f.Processors, err = otelcol.MakeFactoryMap[processor.Factory](memorylimiterprocessor.NewFactory()); err != nil {
		return f, err
	}
	f.Exporters, err = otelcol.MakeFactoryMap[exporter.Factory](otlphttpexporter.NewFactory())
	return f, err
}

// backend is what the Collector sends to: it takes records, as the exporter writes them.
type backend struct {
	url    string
	mu     sync.Mutex
	choose func(http.ResponseWriter, *http.Request) bool // whether the records are taken
	taken  []plog.LogRecord
	bad    []error
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{}
	server := httptest.NewServer(b)
	t.Cleanup(server.Close)
	b.url = server.URL
	t.Cleanup(func() {
		for _, err := range b.bad {
			t.Error(err)
		}
	})
	return b
}

func (b *backend) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	body, err := plain(req)
	all := plogotlp.NewExportRequest()
	if err == nil {
		err = all.UnmarshalProto(body)
	}
	b.mu.Lock()
	choose := b.choose
	b.mu.Unlock()
	if err == nil && choose != nil && !choose(rw, req) {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil {
		b.bad = append(b.bad, err)
	}
	for _, resource := range all.Logs().ResourceLogs().All() {
		for _, scope := range resource.ScopeLogs().All() {
			for _, r := range scope.LogRecords().All() {
				b.taken = append(b.taken, r)
			}
		}
	}
}

func (b *backend) become(choose func(http.ResponseWriter, *http.Request) bool) {
	b.mu.Lock()
	b.choose = choose
	b.mu.Unlock()
}

func (b *backend) records() []plog.LogRecord {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.taken)
}

// numbers are those of the requests that arrived: how often each, by what is in sequence.
func (b *backend) numbers() map[int64]int {
	out := map[int64]int{}
	for _, r := range b.records() {
		if n := numberOf(r); n > 0 {
			out[n]++
		}
	}
	return out
}

// hasEach waits for the records of n requests, each of which is to come once.
func (b *backend) hasEach(t *testing.T, n int) {
	t.Helper()
	waitFor(t, fmt.Sprint(n, " records behind the Collector"), func() bool { return len(b.numbers()) >= n })
	got := b.numbers()
	for i := range n {
		if got[int64(i+1)] != 1 {
			t.Errorf("record %d: got it %d times; want it once", i+1, got[int64(i+1)])
		}
	}
	if len(got) != n {
		t.Errorf("got %d records; want %d", len(got), n)
	}
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// site is a route of a real Traefik, with the plugin on it.
type site struct {
	traefik *lab.Traefik
	name    string
	client  *http.Client
}

// world is the Traefik of all cases, and the routes that it has.
type world struct {
	traefik *lab.Traefik
	dynamic lab.Dynamic
}

// open adds a route whose requests are mirrored with the options of the page, over which
// others are laid.
func (w *world) open(t *testing.T, url string, over lab.Options) *site {
	t.Helper()
	config, _ := blocksOf(t)
	options := in(t, config, "http", "middlewares", "mirror", "plugin", "requestmirror")
	if got, want := options["watchURL"], "http://collector.example.com:4318/v1/logs"; got != want {
		t.Fatalf("%s: got watchURL %v; want %s", page, got, want)
	}
	options["watchURL"] = url
	for name, value := range over {
		options[name] = value
	}
	behind, err := lab.NewBackend()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(behind.Close)
	name := fmt.Sprintf("s%d", len(w.dynamic.Routes)+1)
	w.dynamic.Mirrors[name] = options
	w.dynamic.Routes[name] = lab.Route{Through: []string{name}, Backend: behind.URL}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.traefik.Apply(ctx, w.dynamic); err != nil {
		t.Fatal(err)
	}
	s := &site{traefik: w.traefik, name: name, client: w.traefik.Client()}
	t.Cleanup(s.client.CloseIdleConnections)
	return s
}

// post sends n requests, by several clients, each of which is answered.
func (s *site) post(t *testing.T, n int) {
	t.Helper()
	const clients = 4
	var wg sync.WaitGroup
	for client := range clients {
		wg.Go(func() {
			for i := client; i < n; i += clients {
				res, err := s.client.Post(fmt.Sprintf("http://%s.test/%d", s.name, i), "application/json", strings.NewReader(`{"text":"é"}`))
				if err != nil {
					t.Error(err)
					return
				}
				_ = res.Body.Close()
				if res.StatusCode != http.StatusOK {
					t.Errorf("got %s; want 200", res.Status)
				}
			}
		})
	}
	wg.Wait()
}

func (s *site) ledger(t *testing.T) lab.Ledger {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := s.traefik.Ledger(ctx, s.name)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// settle waits for the outcome of all events.
func (s *site) settle(t *testing.T, n int64) lab.Ledger {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	l, err := s.traefik.Settle(ctx, s.name, n)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// isDelivered holds the ledger against what was sent.
func (s *site) isDelivered(t *testing.T, n int64) lab.Ledger {
	t.Helper()
	l := s.settle(t, n)
	if l.Seen != n || l.Delivered != n || l.Lost() != 0 {
		t.Errorf("ledger: got %s; want %d delivered", l, n)
	}
	return l
}

// patient is for a Collector that will be there some time.
var patient = lab.Options{
	"retry": map[string]any{"attempts": 100, "initialInterval": "20ms", "maxInterval": "200ms"}, "circuitBreaker": map[string]any{"failures": 0},
	"batch": map[string]any{"maxEvents": 10, "flushInterval": "20ms"},
}

func TestCollector(t *testing.T) {
	if _, err := lab.FindTraefik(); err != nil {
		t.Fatalf("no Traefik to test with (%v): build it with test/traefik/build.sh, or set TRAEFIK_BIN", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	traefik, err := lab.Start(ctx, lab.Setup{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := traefik.Stop(); err != nil {
			t.Error(err)
		}
	})
	w := &world{traefik: traefik, dynamic: lab.Dynamic{Mirrors: map[string]lab.Options{}, Routes: map[string]lab.Route{}}}
	for _, c := range []struct {
		name string
		test func(*testing.T, *world)
	}{
		{"the configurations of the page bring every request behind the Collector", testPage},
		{"what a Collector that is down does not take comes when it is up", testDown},
		{"what a Collector without memory refuses comes when it has some", testMemory},
		{"what does not fit into the Collector's queue comes when it does", testQueue},
		{"without a queue, what is behind the Collector decides", testBehind},
		{"a request that is too large for the Collector is lost", testTooLarge},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, w) })
	}
	counters, err := traefik.Counters(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if counters.Panics != 0 || counters.ConfigErrors != 0 {
		t.Errorf("got %d panics, %d wrong configurations; want none", counters.Panics, counters.ConfigErrors)
	}
}

func testPage(t *testing.T, w *world) {
	const n = 450
	behind, c := newBackend(t), newCollector(t)
	c.start(t, behind.url)
	s := w.open(t, c.url(), nil)
	s.post(t, n)
	l := s.isDelivered(t, n)
	behind.hasEach(t, n)
	if l.Retried != 0 {
		t.Errorf("ledger: got %s; want nothing refused", l)
	}
	paths := map[string]bool{}
	for _, r := range behind.records() {
		values := r.Attributes().AsRaw()
		path, _ := values["url.path"].(string)
		paths[path] = true
		if values["deployment.environment.name"] != "production" || values["http.request.method"] != "POST" || values["http.request.body.size"] != int64(13) ||
			values["requestmirror.http.request.body.content"] != `{"text":"é"}` || values["server.address"] != s.name+".test" {
			t.Fatalf("got record %v; want that of the request", values)
		}
	}
	if len(paths) != n {
		t.Errorf("got records of %d requests; want %d", len(paths), n)
	}
}

func testDown(t *testing.T, w *world) {
	behind, c := newBackend(t), newCollector(t)
	s := w.open(t, c.url(), patient)
	for round := range 2 { // before its first start, and between two
		before := s.ledger(t).Retried
		s.post(t, 30)
		waitFor(t, "attempts in vain", func() bool { return s.ledger(t).Retried > before })
		if got := len(behind.numbers()); got != round*30 {
			t.Errorf("got %d records while the Collector was down; want %d", got, round*30)
		}
		c.start(t, behind.url)
		s.isDelivered(t, int64(round+1)*30)
		behind.hasEach(t, (round+1)*30)
		c.stop(t)
	}
}

// refusal asks the Collector until it refuses, and returns its answer.
func refusal(t *testing.T, c *collector, status int) *http.Response {
	t.Helper()
	var last *http.Response
	waitFor(t, fmt.Sprint("the Collector to answer ", status), func() bool {
		res, err := http.Post(c.url(), "application/json", strings.NewReader(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"body":{"stringValue":"a"}}]}]}]}`))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		last = res
		return res.StatusCode == status
	})
	return last
}

// noTime holds a refusal against what the page says of it.
func noTime(t *testing.T, res *http.Response) {
	t.Helper()
	if got := res.Header.Get("Retry-After"); got != "" {
		t.Errorf("got Retry-After %q; the page says there is none", got)
	}
}

func testMemory(t *testing.T, w *world) {
	const n = 50
	behind, c := newBackend(t), newCollector(t)
	c.start(t, behind.url, map[string]any{"processors": map[string]any{"memory_limiter": map[string]any{"check_interval": "20ms", "limit_mib": 2, "spike_limit_mib": 1}}})
	noTime(t, refusal(t, c, http.StatusServiceUnavailable))
	s := w.open(t, c.url(), patient)
	s.post(t, n)
	waitFor(t, "attempts in vain", func() bool { return s.ledger(t).Retried > 0 })
	if got := len(behind.numbers()); got != 0 {
		t.Errorf("got %d records of a Collector without memory; want none", got)
	}
	c.stop(t)
	c.start(t, behind.url)
	s.isDelivered(t, n)
	behind.hasEach(t, n)
}

// queue has room for one request, besides the one that is sent.
func queue(enabled bool) map[string]any {
	return map[string]any{"exporters": map[string]any{"otlp_http": map[string]any{
		"sending_queue":    map[string]any{"enabled": enabled, "queue_size": 1, "num_consumers": 1, "sizer": "requests", "batch": nil},
		"retry_on_failure": map[string]any{"enabled": false},
	}}}
}

func testQueue(t *testing.T, w *world) {
	const n = 60
	behind, c := newBackend(t), newCollector(t)
	full := make(chan struct{})
	behind.become(func(_ http.ResponseWriter, req *http.Request) bool {
		select {
		case <-full:
			return true
		case <-req.Context().Done():
			return false
		}
	})
	c.start(t, behind.url, queue(true))
	s := w.open(t, c.url(), patient)
	s.post(t, n)
	waitFor(t, "attempts in vain", func() bool { return s.ledger(t).Retried > 0 })
	noTime(t, refusal(t, c, http.StatusServiceUnavailable))
	if l := s.ledger(t); l.Delivered >= n || l.InFlight+l.Waiting == 0 || l.Lost() != 0 {
		t.Errorf("ledger: got %s; want some that wait for another attempt", l)
	}
	close(full)
	s.isDelivered(t, n)
	behind.hasEach(t, n)
}

func testBehind(t *testing.T, w *world) {
	const n = 30
	behind, c := newBackend(t), newCollector(t)
	c.start(t, behind.url, queue(false))
	behind.become(func(rw http.ResponseWriter, _ *http.Request) bool {
		rw.Header().Set("Retry-After", "1")
		rw.WriteHeader(http.StatusServiceUnavailable)
		return false
	})
	s := w.open(t, c.url(), patient)
	s.post(t, n)
	waitFor(t, "attempts in vain", func() bool { return s.ledger(t).Retried > 0 })
	noTime(t, refusal(t, c, http.StatusServiceUnavailable))
	if l := s.ledger(t); l.Delivered != 0 || l.Lost() != 0 {
		t.Errorf("ledger: got %s; want nothing delivered yet, and nothing lost", l)
	}
	behind.become(nil)
	s.isDelivered(t, n)
	behind.hasEach(t, n)
}

func testTooLarge(t *testing.T, w *world) {
	behind, c := newBackend(t), newCollector(t)
	c.start(t, behind.url, map[string]any{
		"receivers": map[string]any{"otlp": map[string]any{"protocols": map[string]any{"http": map[string]any{"max_request_body_size": 10_000}}}},
	})
	s := w.open(t, c.url(), lab.Options{"batch": map[string]any{"maxEvents": 20, "flushInterval": "1m"}})
	s.post(t, 20)
	l := s.settle(t, 20)
	if l.Failed["rejected"] != 20 || l.Retried != 0 || len(behind.numbers()) != 0 {
		t.Errorf("ledger: got %s; want 20 that were rejected by an answer of 400", l)
	}
	if got := refusal(t, c, http.StatusOK); got == nil {
		t.Error("got no answer to a small request")
	}
}
