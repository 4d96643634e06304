package requestmirror

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
)

// twoMiddlewares is an overview with everything that a page can show.
func twoMiddlewares() *overview {
	busy := &counts{
		offered: 1000, filtered: 20, unauthenticated: 5, sampledOut: 3, delivered: 950, inFlight: 4, retried: 9,
		dropped:   map[string]uint64{reasonQueueFull: 12, reasonMemory: 1, reasonIncomplete: 2},
		failed:    map[string]uint64{reasonTimeout: 3},
		truncated: map[string]uint64{cutLimit: 5},
		attempts:  []uint64{600, 200, 100, 30, 10, 5, 5, 4, 3, 2, 1, 1, 0, 0, 3},
		seconds:   38.0625,
	}
	fresh := &counts{dropped: map[string]uint64{}, failed: map[string]uint64{}, truncated: map[string]uint64{}}
	return &overview{
		configErrors: 2, panics: 1,
		middlewares: []*middlewareReading{
			{name: "apps-mirror@kubernetescrd", bytesHeld: 0, bytesLimit: 8 << 20, memoryLimit: 8 << 20, receivers: []*reading{
				{receiver: "https://audit.apps.svc:8443", counts: fresh, pipelines: 1, queueCapacity: 10, breaker: breakerClosed, concurrency: 1},
			}},
			{name: "mirror@file", bytesHeld: 20480, bytesLimit: 27962026, memoryLimit: 64 << 20, receivers: []*reading{
				{receiver: "http://127.0.0.1:9000", counts: busy, waiting: 28, pipelines: 2,
					queueLength: 28, queueCapacity: 2000, breaker: breakerHalfOpen, concurrency: 8},
				{receiver: "http://127.0.0.1:9000#2", counts: fresh, pipelines: 1, queueCapacity: 1000, breaker: breakerOpen, concurrency: 4},
			}},
		},
	}
}

func metricsOf(o *overview) string {
	b := &bytes.Buffer{}
	writeMetrics(b, o)
	return b.String()
}

func TestMetrics(t *testing.T) {
	page := metricsOf(twoMiddlewares())
	golden(t, "metrics.txt", []byte(strings.Replace(page, `version="`+version+`"`, `version="0.0.0"`, 1)))
}

func TestThePageIsTheSameForTheSameCounts(t *testing.T) {
	want := metricsOf(twoMiddlewares())
	for i := 0; i < 10; i++ {
		if got := metricsOf(twoMiddlewares()); got != want {
			t.Fatalf("got another page:\n%s\nwant\n%s", got, want)
		}
	}
}

func TestEveryFamilyIsInOnePieceWithOneHeadOfItsOwn(t *testing.T) {
	begun := map[string]bool{}
	sample := regexp.MustCompile(`^requestmirror_([a-z_]+)(\{.*\})? [0-9.e+-]+$`)
	name, kind := "", ""
	for i, line := range strings.Split(strings.TrimSuffix(metricsOf(twoMiddlewares()), "\n"), "\n") {
		if strings.HasPrefix(line, "# HELP ") {
			name = strings.TrimPrefix(strings.Fields(line)[2], "requestmirror_")
			if begun[name] {
				t.Errorf("line %d: got %s a second time; want each family once", i+1, name)
			}
			begun[name] = true
			continue
		}
		if strings.HasPrefix(line, "# TYPE ") {
			words := strings.Fields(line)
			kind = words[3]
			if words[2] != "requestmirror_"+name || (kind == "counter") != strings.HasSuffix(name, "_total") {
				t.Errorf("line %d: got %q; want the type of %s, and _total for counters only", i+1, line, name)
			}
			continue
		}
		parts := sample.FindStringSubmatch(line)
		if parts == nil {
			t.Errorf("line %d: got %q; want a sample", i+1, line)
			continue
		}
		family := parts[1]
		if kind == "histogram" {
			family = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(family, "_bucket"), "_sum"), "_count")
		}
		if family != name {
			t.Errorf("line %d: got a sample of %s; want one of %s", i+1, family, name)
		}
	}
}

// constants are the values of the string constants of a file whose names begin with prefix.
func constants(t *testing.T, file, prefix string) []string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	values := []string{}
	for _, found := range regexp.MustCompile(`(?m)^\t`+prefix+`[A-Z]\w* += "([^"]+)"`).FindAllStringSubmatch(string(text), -1) {
		values = append(values, found[1])
	}
	if len(values) < 3 {
		t.Fatalf("%s: got constants %q; want more: were they recognised?", file, values)
	}
	return values
}

func TestEveryReasonIsThereBeforeItsFirstLoss(t *testing.T) {
	fresh := &overview{middlewares: []*middlewareReading{{name: "m", receivers: []*reading{{receiver: "r", counts: &counts{}}}}}}
	page := metricsOf(fresh)
	for _, reason := range constants(t, "ledger.go", "reason") {
		if !regexp.MustCompile(`outcome="(dropped|failed)",reason="` + reason + `"} 0\n`).MatchString(page) {
			t.Errorf("got no events_total for reason %q; want 0, see droppedReasons and failedReasons", reason)
		}
	}
	for _, reason := range constants(t, "body.go", "cut") {
		if !strings.Contains(page, `bodies_truncated_total{middleware="m",receiver="r",reason="`+reason+`"} 0`+"\n") {
			t.Errorf("got no bodies_truncated_total for reason %q; want 0, see cutReasons", reason)
		}
	}
	for _, state := range constants(t, "breaker.go", "breaker") {
		if !strings.Contains(page, `circuit_breaker_state{middleware="m",receiver="r",state="`+state+`"} 0`+"\n") {
			t.Errorf("got no circuit_breaker_state for state %q; want 0, see breakerStates", state)
		}
	}
}

func TestAReasonThatNobodyListedIsCountedToo(t *testing.T) {
	c := &counts{failed: map[string]uint64{"unheard_of": 2, reasonTimeout: 1, "again_another": 4}}
	page := metricsOf(&overview{middlewares: []*middlewareReading{{name: "m", receivers: []*reading{{receiver: "r", counts: c}}}}})
	timeout := strings.Index(page, `outcome="failed",reason="timeout"} 1`+"\n")
	other := strings.Index(page, `outcome="failed",reason="unheard_of"} 2`+"\n")
	another := strings.Index(page, `outcome="failed",reason="again_another"} 4`+"\n")
	if another < 0 || timeout < another || other < timeout {
		t.Errorf("got\n%s; want 4 again_another, 1 timeout and 2 unheard_of, in this order", page)
	}
	if n := valueOf(page, "events_total", ""); n != 7 {
		t.Errorf("got %d events; want 7", n)
	}
}

// valueOf is the sum of the samples of a family, of those whose labels contain part.
func valueOf(page, name, part string) int {
	total := 0
	for _, line := range strings.Split(page, "\n") {
		if strings.HasPrefix(line, "requestmirror_"+name+"{") && strings.Contains(line, part) {
			n := 0
			_, _ = fmt.Sscan(line[strings.LastIndex(line, " ")+1:], &n)
			total += n
		}
	}
	return total
}

func TestThePageAddsUp(t *testing.T) {
	page := metricsOf(twoMiddlewares())
	mine := `receiver="http://127.0.0.1:9000"`
	got := valueOf(page, "events_total", mine) + valueOf(page, "events_waiting", mine) + valueOf(page, "events_in_flight", mine)
	if want := valueOf(page, "requests_seen_total", mine); got != want || want != 1023 {
		t.Errorf("got %d events of all outcomes, waiting and in flight; want %d requests seen, which are 1023", got, want)
	}
}

func TestBucketsCountAllAttemptsUpToTheirBound(t *testing.T) {
	cases := []struct {
		name     string
		attempts []uint64
		want     []string
	}{
		{"no attempt yet", nil, []string{`le="0.005"} 0`, `le="10"} 0`, `le="+Inf"} 0`, `_count{} 0`}},
		{"one within the first bound", []uint64{1}, []string{`le="0.005"} 1`, `le="10"} 1`, `le="+Inf"} 1`, `_count{} 1`}},
		{"one beyond the last bound", []uint64{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, []string{`le="0.005"} 0`, `le="10"} 0`, `le="+Inf"} 1`, `_count{} 1`}},
		{"some of both", []uint64{2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 4}, []string{`le="0.005"} 2`, `le="7.5"} 2`, `le="10"} 5`, `le="+Inf"} 9`, `_count{} 9`}},
	}
	for _, c := range cases {
		b := &bytes.Buffer{}
		writeHistogram(b, "d", "", &counts{attempts: c.attempts})
		got := strings.Replace(b.String(), "_count ", "_count{} ", 1)
		for _, want := range c.want {
			if !strings.Contains(got, want+"\n") {
				t.Errorf("%s: got\n%s; want a line with %s", c.name, got, want)
			}
		}
		if n := strings.Count(got, "\n"); n != len(attemptBounds)+3 {
			t.Errorf("%s: got %d lines; want %d", c.name, n, len(attemptBounds)+3)
		}
	}
}

func TestLabelValuesAreEscaped(t *testing.T) {
	cases := []struct{ name, value, want string }{
		{"plain text stays as it is", "mirror@file", `mirror@file`},
		{"a quote does not end the value", `a"b`, `a\"b`},
		{"a backslash stays one", `a\b`, `a\\b`},
		{"a newline does not end the line", "a\nb", `a\nb`},
		{"what looks like an escape is not one", `a\nb`, `a\\nb`},
		{"other characters stay as they are", "ü,={}\t\r", "ü,={}\t\r"},
		{"bytes that are not UTF-8 are replaced", "a\xff\xfeb", "a\uFFFDb"},
	}
	for _, c := range cases {
		if got := labelValue(c.value); got != c.want {
			t.Errorf("%s: got %q; want %q", c.name, got, c.want)
		}
		o := twoMiddlewares()
		o.middlewares[0].name = c.value
		o.middlewares[0].receivers[0].receiver = c.value
		want := `requestmirror_events_waiting{middleware="` + c.want + `",receiver="` + c.want + `"} 0` + "\n"
		if got := metricsOf(o); !strings.Contains(got, want) || !strings.Contains(got, `requestmirror_memory_limit_bytes{middleware="`+c.want+`"} 8388608`+"\n") {
			t.Errorf("%s: got\n%s\nwant in it %s", c.name, got, want)
		}
	}
}

func TestAnEmptyOverviewHasTheCountersOfTheProcess(t *testing.T) {
	samples := []string{}
	for _, line := range strings.Split(metricsOf(&overview{}), "\n") {
		if line != "" && !strings.HasPrefix(line, "#") {
			samples = append(samples, line)
		}
	}
	want := "requestmirror_config_errors_total 0\nrequestmirror_panics_total 0\nrequestmirror_build_info{version=\"" + version + "\"} 1"
	if got := strings.Join(samples, "\n"); got != want {
		t.Errorf("got samples\n%s\nwant\n%s", got, want)
	}
}

// onward is a next handler that remembers what came to it.
type onward struct {
	rw    http.ResponseWriter
	req   *http.Request
	panic interface{}
}

func (h *onward) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	h.rw = rw
	h.req = req
	if h.panic != nil {
		panic(h.panic)
	}
	rw.WriteHeader(http.StatusTeapot)
}

func pageOf(next *onward, read func() *overview) *metricsPage {
	var handler http.Handler = next
	return &metricsPage{next: handler, path: "/metrics", read: read}
}

func TestThePageIsForGETAndHEAD(t *testing.T) {
	want := metricsOf(twoMiddlewares())
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get", "BREW"} {
		next := &onward{}
		rw := httptest.NewRecorder()
		pageOf(next, twoMiddlewares).ServeHTTP(rw, httptest.NewRequest(method, "/metrics?debug=1", nil))
		if next.req != nil {
			t.Errorf("%s: got it passed on; want an answer", method)
		}
		if got := rw.Header().Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: got Cache-Control %q; want no-store", method, got)
		}
		if method != "GET" && method != "HEAD" {
			if rw.Code != http.StatusMethodNotAllowed || rw.Header().Get("Allow") != "GET, HEAD" || strings.Contains(rw.Body.String(), "# ") {
				t.Errorf("%s: got %d, Allow %q and %q; want 405, \"GET, HEAD\" and no metrics", method, rw.Code, rw.Header().Get("Allow"), rw.Body)
			}
			continue
		}
		if got := rw.Header().Get("Content-Type"); rw.Code != http.StatusOK || got != "text/plain; version=0.0.4; charset=utf-8" {
			t.Errorf("%s: got %d and %q; want 200 and the text format", method, rw.Code, got)
		}
		if got := rw.Header().Get("Content-Length"); got != fmt.Sprint(len(want)) {
			t.Errorf("%s: got Content-Length %q; want %d", method, got, len(want))
		}
		if got := rw.Body.String(); method == "GET" && got != want || method == "HEAD" && got != "" {
			t.Errorf("%s: got %q; want the page for GET and nothing for HEAD", method, got)
		}
	}
}

func TestOtherPathsReachNextAsTheyCame(t *testing.T) {
	for _, path := range []string{"/", "/metrics/", "/metric", "/metrics/x", "//metrics", "/Metrics", "/x/metrics", "/?/metrics", "/x?path=/metrics", "/%6detrics", "/metrics%2F"} {
		next := &onward{}
		rw := httptest.NewRecorder()
		req := httptest.NewRequest(http.MethodGet, path, nil)
		pageOf(next, func() *overview { panic("read for another path") }).ServeHTTP(rw, req)
		if next.rw != http.ResponseWriter(rw) || next.req != req {
			t.Errorf("%s: got another ResponseWriter or request; want the very same", path)
		}
		if rw.Code != http.StatusTeapot || len(rw.Header()) != 0 {
			t.Errorf("%s: got %d and %v; want next's own answer", path, rw.Code, rw.Header())
		}
	}
}

func TestAPanicOfNextGoesOn(t *testing.T) {
	defer func() {
		if got := recover(); fmt.Sprint(got) != "of the backend" {
			t.Errorf("got panic %v; want that of next", got)
		}
	}()
	pageOf(&onward{panic: "of the backend"}, twoMiddlewares).ServeHTTP(httptest.NewRecorder(), get("/"))
}

func TestAFaultOfThePageIsA500AndIsCounted(t *testing.T) {
	broken := twoMiddlewares()
	broken.middlewares[1].receivers[0].counts = nil
	before := published().Get("panics").String()
	rw := httptest.NewRecorder()
	logger := log.Writer()
	log.SetOutput(io.Discard)
	pageOf(&onward{}, func() *overview { return broken }).ServeHTTP(rw, get("/metrics"))
	log.SetOutput(logger)
	if rw.Code != http.StatusInternalServerError || strings.Contains(rw.Body.String(), "# ") {
		t.Errorf("got %d and %q; want 500 and no half a page", rw.Code, rw.Body)
	}
	if after := published().Get("panics").String(); after == before {
		t.Errorf("got %s panics before and after; want one more", after)
	}
}
