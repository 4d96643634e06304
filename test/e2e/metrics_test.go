package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/opencommit/requestmirror/test/lab"
)

const metricsPath = "/requestmirror/metrics"

// The entry point is Traefik's own, which a firewall keeps from the public.
func TestMetricsOnAnInternalEntryPoint(t *testing.T) {
	s := mirror(t, lab.Options{
		"methods": []string{"POST"}, "maxBodySize": 4, "circuitBreaker": map[string]any{"failures": 3, "openFor": "1h"},
		"workers": 1, "retry": map[string]any{"attempts": 2, "initialInterval": "1ms"},
	})
	s.world.change(t, func(d *lab.Dynamic) {
		d.Mirrors["metrics-only"] = lab.Options{"metricsPath": metricsPath}
		d.Extra = map[string]any{"http": map[string]any{"routers": map[string]any{"metrics": map[string]any{
			"rule": "Path(`" + metricsPath + "`)", "entryPoints": []string{"traefik"},
			"middlewares": []string{"metrics-only"}, "service": "noop@internal",
		}}}}
	})
	defer func() {
		s.world.mu.Lock()
		defer s.world.mu.Unlock()
		delete(s.world.dynamic.Mirrors, "metrics-only")
		s.world.dynamic.Extra = nil
	}()
	// Some of everything: delivered, filtered, rejected, failed, and dropped for
	// the circuit, which stays open.
	for range 5 {
		s.post(t, "a body")
	}
	s.get(t)
	s.settle(t, 6)
	s.receiver.Become(lab.Script(lab.Status(404, nil), lab.Status(500, nil)))
	for i := range 6 {
		s.post(t, "a body")
		s.settle(t, 7+i)
	}
	l := s.settle(t, 12)
	if l.Delivered != 5 || l.Failed["rejected"] != 1 || l.Failed["server_error"] != 1 || l.CircuitBreaker != "open" || l.Dropped["circuit_open"] == 0 {
		t.Fatalf("ledger: got %s, circuit breaker %s; want some of everything", l, l.CircuitBreaker)
	}

	res, page := ask(t, s, http.MethodGet, s.world.traefik.API()+metricsPath)
	if got := res.Header.Get("Content-Type"); res.StatusCode != http.StatusOK || got != "text/plain; version=0.0.4; charset=utf-8" {
		t.Fatalf("metrics: got %s, %s; want 200 and Prometheus' text format", res.Status, got)
	}
	expectMetrics(t, page, s, l)

	head, body := ask(t, s, http.MethodHead, s.world.traefik.API()+metricsPath)
	if head.StatusCode != http.StatusOK || len(body) != 0 || head.ContentLength <= 0 {
		t.Errorf("HEAD: got %s, %d bytes, length %d; want 200, none, and a length", head.Status, len(body), head.ContentLength)
	}
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions, "PURGE"} {
		res, body := ask(t, s, method, s.world.traefik.API()+metricsPath)
		if res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "GET, HEAD" || bytes.Contains(body, []byte("requestmirror_")) {
			t.Errorf("%s: got %s, Allow %q; want 405 and GET, HEAD", method, res.Status, res.Header.Get("Allow"))
		}
	}

	// The public does not get them, whatever it asks for.
	for _, p := range protocols {
		r, _ := s.request(t, http.MethodGet, p.scheme, metricsPath, nil)
		if got := s.send(t, r, http.StatusOK).report(t).RequestURI; got != metricsPath {
			t.Errorf("%s, the public route: the backend got %q; want %q", p.name, got, metricsPath)
		}
		r, _ = s.request(t, http.MethodGet, p.scheme, metricsPath, nil)
		if a := s.send(t, to(r, "nobody"), http.StatusNotFound); bytes.Contains(a.body, []byte("requestmirror_")) {
			t.Errorf("%s, a host without a route: got the metrics", p.name)
		}
	}
	if c, err := s.world.traefik.Counters(soon(t)); err != nil || len(c.Middlewares["metrics-only@file"].Receivers) != 0 {
		t.Errorf("the middleware that only has metricsPath: got %v, %v; want no ledger", c.Middlewares["metrics-only@file"], err)
	}
}

// ask asks an address as it is.
func ask(t *testing.T, s *site, method, url string) (*http.Response, []byte) {
	t.Helper()
	r, err := http.NewRequestWithContext(soon(t), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, body
}

// expectMetrics wants the page, read as Prometheus does, to say of the site's mirror
// what the ledger says.
func expectMetrics(t *testing.T, page []byte, s *site, l lab.Ledger) {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	if err != nil {
		t.Fatalf("Prometheus can't read the page: %v\n%s", err, page)
	}
	got := map[string]float64{}
	attempts := uint64(0)
	for name, family := range families {
		for _, m := range family.GetMetric() {
			labels, mine := labelsOf(m, s)
			if !mine {
				continue
			}
			got[strings.TrimPrefix(name, "requestmirror_")+labels] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
			attempts += m.GetHistogram().GetSampleCount()
		}
	}
	want := map[string]int64{
		"requests_seen_total":             l.Seen,
		"events_total delivered":          l.Delivered,
		"events_total filtered":           l.Filtered,
		"events_total sampled_out":        l.SampledOut,
		"events_waiting":                  l.Waiting,
		"events_in_flight":                l.InFlight,
		"retries_total":                   l.Retried,
		"queue_length":                    l.QueueLength,
		"queue_capacity":                  l.QueueCapacity,
		"concurrency_limit":               l.Concurrency,
		"pipelines":                       l.Pipelines,
		"memory_held_bytes":               l.BytesHeld,
		"circuit_breaker_state closed":    0,
		"circuit_breaker_state half_open": 0,
		"circuit_breaker_state open":      0,
	}
	want["circuit_breaker_state "+l.CircuitBreaker] = 1
	for outcome, counts := range map[string]map[string]int64{
		"events_total dropped": l.Dropped, "events_total failed": l.Failed, "bodies_truncated_total": l.Truncated,
	} {
		for reason, n := range counts {
			want[outcome+" "+reason] = n
		}
	}
	for name, n := range want {
		value, ok := got[name]
		if !ok || value != float64(n) {
			t.Errorf("%s: got %v (there: %t); want %d as in the ledger", name, value, ok, n)
		}
	}
	// What is lost for no reason of the ledger's is not lost.
	for name, value := range got {
		if _, known := want[name]; !known && value != 0 && (strings.HasPrefix(name, "events_total") || strings.HasPrefix(name, "bodies_truncated")) {
			t.Errorf("%s: got %v; want 0, as it is not in the ledger", name, value)
		}
	}
	if made := uint64(len(s.receiver.Attempts())); attempts != made {
		t.Errorf("attempt_duration_seconds: got %d attempts; want the %d that came", attempts, made)
	}
}

// labelsOf are the values of the labels that tell metrics of a mirror apart, and
// whether it is this mirror's.
func labelsOf(m *dto.Metric, s *site) (text string, mine bool) {
	values := map[string]string{}
	for _, l := range m.GetLabel() {
		values[l.GetName()] = l.GetValue()
	}
	if values["middleware"] != s.name+"@file" {
		return "", false
	}
	if r, ok := values["receiver"]; ok && r != origin(s.receiver) {
		return "", false
	}
	for _, name := range []string{"outcome", "reason", "state"} {
		if v := values[name]; v != "" {
			text += " " + v
		}
	}
	return text, true
}

func TestMetricsOfAMirrorAreAnsweredAndNotMirrored(t *testing.T) {
	t.Parallel()
	s := mirror(t, lab.Options{"metricsPath": "/metrics"})
	s.get(t)
	l := s.settle(t, 1)
	for _, p := range protocols {
		r, id := s.request(t, http.MethodGet, p.scheme, "/metrics?a=b", nil)
		a := s.send(t, r, http.StatusOK)
		expectMetrics(t, a.body, s, l)
		if got := a.Header.Get("Cache-Control"); got != "no-store" {
			t.Errorf("%s: Cache-Control: got %q; want no-store", p.name, got)
		}
		r, _ = s.request(t, http.MethodPost, p.scheme, "/metrics", strings.NewReader("a body"))
		s.send(t, r, http.StatusMethodNotAllowed)
		if got := s.ledger(t); fmt.Sprint(got) != fmt.Sprint(l) {
			t.Errorf("%s: ledger after %s: got %s; want it as before: %s", p.name, id, got, l)
		}
	}
	// Other paths are the backend's, and mirrored.
	for _, path := range []string{"/metrics/", "/metrics/x", "/Metrics"} {
		r, id := s.request(t, http.MethodGet, "http", path, nil)
		if got := s.send(t, r, http.StatusOK).report(t).RequestURI; got != path {
			t.Errorf("%s: the backend got %q", path, got)
		}
		s.event(t, id)
	}
}
