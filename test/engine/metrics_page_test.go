package engine

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// scrape gets the page and parses it as Prometheus does.
func (c *run) scrape(target string) map[string]*dto.MetricFamily {
	c.Helper()
	r := c.get(target)
	c.eq("status", r.status, 200)
	c.eq("content type", r.header.Get("Content-Type"), "text/plain; version=0.0.4; charset=utf-8")
	parser := expfmt.NewTextParser(model.LegacyValidation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(r.body))
	if err != nil {
		c.Fatalf("page: got one that Prometheus cannot read: %v\n%s", err, r.body)
	}
	return all
}

// onPage is the sum of the samples of a family that have the labels of the middleware and these.
func (c *run) onPage(all map[string]*dto.MetricFamily, name string, labels ...string) int64 {
	labels = append(labels, "middleware", c.name)
	sum := 0.0
samples:
	for _, m := range all["requestmirror_"+name].GetMetric() {
		has := map[string]string{}
		for _, l := range m.GetLabel() {
			has[l.GetName()] = l.GetValue()
		}
		for i := 0; i+1 < len(labels); i += 2 {
			if has[labels[i]] != labels[i+1] {
				continue samples
			}
		}
		sum += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
	}
	return int64(sum)
}

// checkPage compares the page with the ledger of each receiver.
func (c *run) checkPage(all map[string]*dto.MetricFamily) {
	c.Helper()
	ledgers := c.ledgers()
	for receiver, l := range ledgers {
		at := func(name string, labels ...string) int64 {
			return c.onPage(all, name, append(labels, "receiver", receiver)...)
		}
		reasons := func(name string, labels ...string) counters {
			out := counters{}
			for _, reason := range []string{"queue_full", "memory", "expired", "circuit_open", "retired", "network_error", "timeout", "rejected", "server_error", "gone", "too_large", "internal_error",
				"limit", "event", "aborted", "unread", "content-type", "disabled"} {
				if n := at(name, append(labels, "reason", reason)...); n > 0 {
					out[reason] = n
				}
			}
			return out
		}
		got := ledger{
			Seen: at("requests_seen_total"), Filtered: at("events_total", "outcome", "filtered"), SampledOut: at("events_total", "outcome", "sampled_out"),
			Delivered: at("events_total", "outcome", "delivered"), Dropped: reasons("events_total", "outcome", "dropped"), Failed: reasons("events_total", "outcome", "failed"),
			Retried: at("retries_total"), Waiting: at("events_waiting"), InFlight: at("events_in_flight"), Truncated: reasons("bodies_truncated_total"),
		}
		got.Enqueued = got.Delivered + got.Failed.sum() + got.Waiting + got.InFlight
		c.eq("page of "+receiver, got.String(), l.String())
		c.eq("queue", fmt.Sprint(at("queue_length"), at("queue_capacity")), fmt.Sprint(l.QueueLen, l.QueueCap))
		c.eq("breaker", at("circuit_breaker_state", "state", l.Breaker), int64(1))
		c.eq("one state", at("circuit_breaker_state"), int64(1))
		c.eq("concurrency and pipelines", fmt.Sprint(at("concurrency_limit"), at("pipelines")), fmt.Sprint(l.Workers, l.Pipelines))
		c.eq("memory", c.onPage(all, "memory_held_bytes"), l.Held)
	}
	c.eq("receivers", c.onPage(all, "pipelines"), int64(len(ledgers)))
}

func TestMetricsPage(t *testing.T) {
	runTable(t, []scenario{
		{name: "the page has the numbers of the ledger", config: "{metricsPath: /metrics, watchURLs: [$URL2], methods: [GET, POST], workers: 1, queueSize: 3, maxBodySize: 3, retry: {attempts: 2, initialInterval: 1ms}, circuitBreaker: {failures: 4, openFor: 1h}}",
			answers: []answer{{status: 500}, {}, {status: 404}, {status: 413}, {}}, also: []also{{answers: []answer{{hang: true, status: 500}, {status: 500}}, want: "*"}},
			want: "seen=12 filtered=2 enqueued=10 delivered=8 failed.rejected=1 failed.too_large=1 retried=1 truncated.limit=10", do: func(c *run) {
				for i := range 10 {
					c.send("POST", "/", lorem)
					c.until("the first receiver has it", func() bool { l := c.ledger(); return l.Delivered+l.Failed.sum() == int64(i+1) })
					c.more[0].awaitDelivery(c, 1)
				}
				c.send("PUT", "/", lorem)
				c.send("PUT", "/", lorem)
				c.passed()
				during := c.scrape("/metrics")
				c.checkPage(during)
				c.eq("waiting and in flight at the other", fmt.Sprint(c.onPage(during, "events_waiting"), c.onPage(during, "events_in_flight")), "3 1")
				c.more[0].release()
				c.settled()
				after := c.scrape("/metrics")
				c.checkPage(after)
				c.eq("attempts", c.onPage(after, "attempt_duration_seconds"), int64(len(c.recv.deliveries())+len(c.more[0].deliveries())))
				c.eq("the other's circuit", c.onPage(after, "circuit_breaker_state", "receiver", c.more[0].URL, "state", "open"), int64(1))
				c.eq("pages are no requests", c.ledger().Seen, int64(12))
			}},
		{name: "the page is at exactly its path, and everything else passes", config: "metricsPath: /a/metrics", want: "seen=7 enqueued=7 delivered=7", do: func(c *run) {
			for i, target := range []string{"/a/metrics/", "/a/metricsx", "/a/Metrics", "/metrics", "/", "//a/metrics"} {
				c.eq("backend at "+target, c.get(target).body, "backend")
				c.events(i + 1)
			}
			c.send("POST", "/x", lorem)
			c.settled()
			c.checkPage(c.scrape("/a/metrics"))
			c.checkPage(c.scrape("/a/metrics?name=x"))
		}},
		{name: "the page is read with GET or HEAD only", config: "metricsPath: /metrics", want: "", do: func(c *run) {
			c.eq("HEAD", c.roundTrip(c.request("HEAD", "/metrics", http.NoBody)).status, 200)
			for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
				r := c.send(method, "/metrics", "")
				c.eq(method, fmt.Sprintf("%d %s", r.status, r.header.Get("Allow")), "405 GET, HEAD")
			}
			for _, p := range c.passed() {
				c.eq("reached the backend", p.reached, false)
			}
		}},
		{name: "a middleware may have nothing but the page", config: "{watchURL: null, metricsPath: /metrics}", want: "", do: func(c *run) {
			c.eq("other paths", c.send("POST", "/", lorem).body, "backend")
			all := c.scrape("/metrics")
			if all["requestmirror_build_info"] == nil {
				c.Error("page: got no build_info; want it")
			}
			c.eq("mirrored", c.onPage(all, "requests_seen_total"), int64(0))
		}},
		{name: "the page adds up under load", config: "{metricsPath: /metrics, workers: 4, queueSize: 20, batch: {maxEvents: 5, flushInterval: 1ms}, retry: {attempts: 1}, circuitBreaker: {failures: 3, openFor: 5ms}}", answers: append(statuses(204, 500, 404, 204, 503, 503, 503, 204), answer{}), want: "*", do: func(c *run) {
			parallel(300, func(i int) {
				if i%10 != 0 {
					c.send("POST", "/", lorem)
					return
				}
				all := c.scrape("/metrics")
				sum := c.onPage(all, "events_total") + c.onPage(all, "events_waiting") + c.onPage(all, "events_in_flight")
				c.eq("outcomes, waiting and in flight", sum, c.onPage(all, "requests_seen_total"))
			})
			c.settled()
			c.checkPage(c.scrape("/metrics"))
		}},
	})
}
