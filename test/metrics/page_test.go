package metrics

import (
	"bytes"
	"context"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// root is the directory of the repository.
const root = "../.."

const contentType = "text/plain; version=0.0.4; charset=utf-8"

// families parses a page as Prometheus does, by name.
func families(t *testing.T, page []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	all, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("got a page that Prometheus cannot read: %v\n%s", err, page)
	}
	return all
}

// goldenPage is the page that the root's tests compare with, of an overview where
// everything has a value.
func goldenPage(t *testing.T) []byte {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(root, "testdata", "metrics.txt"))
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// checkPage is what holds for every page.
func checkPage(t *testing.T, page []byte) map[string]*dto.MetricFamily {
	t.Helper()
	problems, err := promlint.New(bytes.NewReader(page)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("promlint: %s: %s", p.Metric, p.Text)
	}
	all := families(t, page)
	for name, family := range all {
		if !strings.HasPrefix(name, "requestmirror_") || family.GetHelp() == "" {
			t.Errorf("%s: got help %q; want the prefix requestmirror_ and a help", name, family.GetHelp())
		}
		series := map[string]bool{}
		for _, m := range family.GetMetric() {
			key := labelsOf(m).String()
			if series[key] {
				t.Errorf("%s: got %s twice; Prometheus would refuse the page", name, key)
			}
			series[key] = true
			if h := m.GetHistogram(); h != nil {
				checkHistogram(t, name+key, h)
			}
		}
	}
	checkSums(t, all)
	return all
}

func checkHistogram(t *testing.T, where string, h *dto.Histogram) {
	t.Helper()
	count, bound := uint64(0), math.Inf(-1)
	for _, b := range h.GetBucket() {
		if b.GetCumulativeCount() < count || b.GetUpperBound() <= bound {
			t.Errorf("%s: got bucket %v with %d after %v with %d; want both to grow", where, b.GetUpperBound(), b.GetCumulativeCount(), bound, count)
		}
		count, bound = b.GetCumulativeCount(), b.GetUpperBound()
	}
	if !math.IsInf(bound, 1) || count != h.GetSampleCount() {
		t.Errorf("%s: got %d up to %v; want all %d up to +Inf", where, count, bound, h.GetSampleCount())
	}
}

// checkSums holds the page against the ledger: every request has one outcome, or is
// on its way.
func checkSums(t *testing.T, all map[string]*dto.MetricFamily) {
	t.Helper()
	for _, m := range all["requestmirror_requests_seen_total"].GetMetric() {
		labels := labelsOf(m)
		sum := 0.0
		for _, name := range []string{"events_total", "events_waiting", "events_in_flight"} {
			sum += value(all, name, "middleware", string(labels["middleware"]), "receiver", string(labels["receiver"]))
		}
		if seen := m.GetCounter().GetValue(); seen != sum {
			t.Errorf("%s: got %v requests seen; want %v, as many as have an outcome, wait or are in flight", labels, seen, sum)
		}
	}
}

func labelsOf(m *dto.Metric) model.LabelSet {
	set := model.LabelSet{}
	for _, l := range m.GetLabel() {
		set[model.LabelName(l.GetName())] = model.LabelValue(l.GetValue())
	}
	return set
}

// value is the sum of the samples of a family that have these labels, given as name, value.
func value(all map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	sum := 0.0
samples:
	for _, m := range all["requestmirror_"+name].GetMetric() {
		set := labelsOf(m)
		for i := 0; i+1 < len(labels); i += 2 {
			if string(set[model.LabelName(labels[i])]) != labels[i+1] {
				continue samples
			}
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return sum
}

func TestPrometheusReadsTheGoldenPage(t *testing.T) {
	all := checkPage(t, goldenPage(t))
	want := map[string]dto.MetricType{
		"requests_seen_total": dto.MetricType_COUNTER, "events_total": dto.MetricType_COUNTER, "retries_total": dto.MetricType_COUNTER,
		"bodies_truncated_total": dto.MetricType_COUNTER, "config_errors_total": dto.MetricType_COUNTER, "panics_total": dto.MetricType_COUNTER,
		"events_waiting": dto.MetricType_GAUGE, "events_in_flight": dto.MetricType_GAUGE, "queue_length": dto.MetricType_GAUGE,
		"queue_capacity": dto.MetricType_GAUGE, "memory_held_bytes": dto.MetricType_GAUGE, "memory_limit_bytes": dto.MetricType_GAUGE,
		"circuit_breaker_state": dto.MetricType_GAUGE, "concurrency_limit": dto.MetricType_GAUGE, "pipelines": dto.MetricType_GAUGE,
		"build_info": dto.MetricType_GAUGE, "attempt_duration_seconds": dto.MetricType_HISTOGRAM,
	}
	got := map[string]dto.MetricType{}
	for name, family := range all {
		got[strings.TrimPrefix(name, "requestmirror_")] = family.GetType()
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got families %v; want %v", got, want)
	}
	for _, m := range all["requestmirror_circuit_breaker_state"].GetMetric() {
		labels := labelsOf(m)
		if n := value(all, "circuit_breaker_state", "middleware", string(labels["middleware"]), "receiver", string(labels["receiver"])); n != 1 {
			t.Errorf("%s: got %v states that are current; want 1", labels, n)
		}
	}
}

// withMetrics is a configuration with a page. Options are set by name, because that is
// how this test says that a build lacks one, instead of not compiling.
func withMetrics(t *testing.T, options map[string]any) *requestmirror.Config {
	t.Helper()
	config := requestmirror.CreateConfig()
	fields := reflect.ValueOf(config).Elem()
	if !fields.FieldByName("MetricsPath").IsValid() {
		t.Fatal("got no option metricsPath; want one")
	}
	options["MetricsPath"], options["Strict"] = "/metrics", true
	for name, v := range options {
		fields.FieldByName(name).Set(reflect.ValueOf(v))
	}
	return config
}

// newMirror is a middleware as Traefik makes it, until the test ends.
func newMirror(t *testing.T, options map[string]any, next http.Handler) http.Handler {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	handler, err := requestmirror.New(ctx, next, withMetrics(t, options), t.Name()+"@file")
	if err != nil {
		t.Fatalf("got error %v; want none", err)
	}
	return handler
}

// scrape reads the page over a connection, as Prometheus does.
func scrape(t *testing.T, site string) map[string]*dto.MetricFamily {
	t.Helper()
	resp, err := http.Get(site + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || got != contentType {
		t.Fatalf("got %d and %q; want 200 and %q", resp.StatusCode, got, contentType)
	}
	return checkPage(t, page)
}

func TestPrometheusReadsTheLivePage(t *testing.T) {
	receiver := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body)
		rw.WriteHeader(http.StatusNoContent)
	}))
	defer receiver.Close()
	backend := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body)
		rw.WriteHeader(http.StatusTeapot)
	})
	site := httptest.NewServer(newMirror(t, map[string]any{"WatchURL": receiver.URL + "/events", "Methods": []string{"GET", "POST"}, "MaxBodySize": 4}, backend))
	defer site.Close()

	before := scrape(t, site.URL)
	me := []string{"middleware", t.Name() + "@file", "receiver", receiver.URL}
	for _, name := range []string{"requests_seen_total", "events_total", "attempt_duration_seconds"} {
		if n := value(before, name, me...); n != 0 {
			t.Errorf("%s: got %v before the first request; want 0: the page itself is not mirrored", name, n)
		}
	}
	if n := len(before["requestmirror_events_total"].GetMetric()); n < 15 {
		t.Errorf("got %d samples of events_total before the first request; want every outcome and reason", n)
	}
	for range 3 {
		request(t, http.MethodGet, site.URL+"/a", "")
	}
	request(t, http.MethodPost, site.URL+"/b", "more than 4 bytes")
	request(t, http.MethodDelete, site.URL+"/c", "")

	var after map[string]*dto.MetricFamily
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		after = scrape(t, site.URL)
		if value(after, "events_total", append(me, "outcome", "delivered")...) == 4 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("waited in vain for 4 deliveries")
		}
	}
	for _, want := range []struct {
		name   string
		labels []string
		value  float64
	}{
		{"requests_seen_total", nil, 5},
		{"events_total", nil, 5},
		{"events_total", []string{"outcome", "filtered"}, 1},
		{"events_waiting", nil, 0},
		{"events_in_flight", nil, 0},
		{"retries_total", nil, 0},
		{"bodies_truncated_total", []string{"reason", "limit"}, 1},
		{"bodies_truncated_total", nil, 1},
		{"queue_length", nil, 0},
		{"queue_capacity", nil, 1000},
		{"attempt_duration_seconds", nil, 4},
		{"circuit_breaker_state", []string{"state", "closed"}, 1},
		{"circuit_breaker_state", nil, 1},
		{"pipelines", nil, 1},
	} {
		if got := value(after, want.name, append(me, want.labels...)...); got != want.value {
			t.Errorf("%s%q: got %v; want %v", want.name, want.labels, got, want.value)
		}
	}
	if n := value(after, "concurrency_limit", me...); n < 1 {
		t.Errorf("concurrency_limit: got %v; want at least 1", n)
	}
	if got := value(after, "memory_limit_bytes", me[:2]...); got <= 0 || value(after, "memory_held_bytes", me[:2]...) != 0 {
		t.Errorf("got a memory limit of %v; want one, and nothing held at the end", got)
	}
	checkSameAsGolden(t, after)
}

// checkSameAsGolden lets nothing be checked against the golden page that a live one
// does not have: families, types, labels, and the values of labels that are closed sets.
func checkSameAsGolden(t *testing.T, live map[string]*dto.MetricFamily) {
	t.Helper()
	if got, want := shapeOf(live), shapeOf(families(t, goldenPage(t))); !reflect.DeepEqual(got, want) {
		t.Errorf("got a live page of the shape\n%v\nwant that of testdata/metrics.txt\n%v", got, want)
	}
}

func TestAMiddlewareMayHaveNothingButThePage(t *testing.T) {
	site := httptest.NewServer(newMirror(t, map[string]any{}, http.NotFoundHandler()))
	defer site.Close()
	all := scrape(t, site.URL)
	if n := value(all, "build_info"); n != 1 {
		t.Errorf("build_info: got %v; want 1", n)
	}
	if n := value(all, "requests_seen_total", "middleware", t.Name()+"@file"); n != 0 {
		t.Errorf("requests_seen_total: got %v; want none", n)
	}
	if status := request(t, http.MethodPost, site.URL+"/metrics", "x"); status != http.StatusMethodNotAllowed {
		t.Errorf("POST: got %d; want 405", status)
	}
	if status := request(t, http.MethodGet, site.URL+"/metrics/", ""); status != http.StatusNotFound {
		t.Errorf("another path: got %d; want 404, which is the next handler's", status)
	}
}

func request(t *testing.T, method, url, body string) int {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode
}
