package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
)

// Cases of format otlp have deliveries of log records, so they end with recorded instead
// of the checks of all others. That records say what events do is shown in otlp_test.go at
// the root, and by the readers of OpenTelemetry in test/otlp.

// otlpRequest is the request of an exporter for logs.
type otlpRequest struct {
	ResourceLogs []struct {
		ScopeLogs []struct {
			LogRecords []otlpRecord `json:"logRecords"`
		} `json:"scopeLogs"`
	} `json:"resourceLogs"`
}

type otlpRecord struct {
	EventName string    `json:"eventName"`
	Body      otlpValue `json:"body"`
	Pairs     []struct {
		Key   string    `json:"key"`
		Value otlpValue `json:"value"`
	} `json:"attributes"`
}

type otlpValue struct {
	Text  string `json:"stringValue"`
	Int   string `json:"intValue"`
	Array struct {
		Values []otlpValue `json:"values"`
	} `json:"arrayValue"`
}

// get is the value of an attribute as a text, "-" if there is none.
func (r otlpRecord) get(key string) string {
	for _, pair := range r.Pairs {
		if pair.Key == key {
			texts := []string{}
			for _, v := range pair.Value.Array.Values {
				texts = append(texts, v.Text)
			}
			return pair.Value.Text + pair.Value.Int + strings.Join(texts, "|")
		}
	}
	return "-"
}

func (r otlpRecord) number() int {
	_, digits, _ := strings.Cut(r.get("requestmirror.sequence"), "-")
	n, _ := strconv.Atoi(digits)
	return n
}

// records are those of a delivery, without those of reports.
func records(raw []byte) (list []otlpRecord, reports []otlpRecord, err error) {
	var all otlpRequest
	if err := json.Unmarshal(raw, &all); err != nil || len(all.ResourceLogs) != 1 || len(all.ResourceLogs[0].ScopeLogs) != 1 {
		return nil, nil, fmt.Errorf("no request of an exporter for logs: %v", err)
	}
	for _, r := range all.ResourceLogs[0].ScopeLogs[0].LogRecords {
		if r.EventName == event.ReportType {
			reports = append(reports, r)
		} else {
			list = append(list, r)
		}
	}
	return list, reports, nil
}

// recordsIn waits until so many different events were accepted, and returns them in the
// order of their numbers.
func (c *run) recordsIn(n int) []otlpRecord {
	c.Helper()
	found := map[string]otlpRecord{}
	c.until(strconv.Itoa(n)+" records", func() bool {
		for _, d := range c.recv.deliveries() {
			list, _, err := records(d.plain)
			if err != nil {
				c.Fatalf("delivery: %v:\n%s", err, show(d.plain))
			}
			for _, r := range list {
				if d.accepted {
					found[r.get("cloudevents.event_id")] = r
				}
			}
		}
		return len(found) >= n
	})
	list := []otlpRecord{}
	for _, r := range found {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b otlpRecord) int { return a.number() - b.number() })
	return list
}

// recordSizes are the numbers of records in deliveries.
func (c *run) recordSizes() (n []int) {
	for _, d := range c.recv.deliveries() {
		list, _, _ := records(d.plain)
		n = append(n, len(list))
	}
	return n
}

// recorded waits for the outcome of all requests and checks what holds at the end.
func (c *run) recorded(want string) {
	c.Helper()
	l := c.settled()
	c.eq("ledger", l.String(), want)
	c.eq("held", fmt.Sprint(l.Held, l.QueueLen), "0 0")
	config := c.decode(orEmpty(c.sc.config))
	first, accepted := map[string]delivery{}, map[string]bool{}
	for _, d := range c.recv.deliveries() {
		id := d.header.Get("Webhook-Id")
		if f, again := first[id]; again && !bytes.Equal(f.raw, d.raw) {
			c.Errorf("attempts of %s: got two bodies; want the same bytes", id)
		} else if !again {
			first[id] = d
		}
		c.eq("content type", d.header.Values("Content-Type"), []string{"application/json"})
		c.eq("compressed", d.header.Get("Content-Encoding") == "gzip", config["compression"] == "gzip" && len(d.plain) >= 1024)
		if !uuid7.MatchString(id) {
			c.Errorf("webhook-id: got %q; want a UUIDv7", id)
		}
		list, reports, err := records(d.plain)
		if err != nil || len(list) > 0 && len(reports) > 0 {
			c.Errorf("delivery: got %v, %d events and %d reports; want one of them", err, len(list), len(reports))
		}
		for _, r := range list {
			if config["batch"] == nil {
				c.eq("webhook-id", id, r.get("cloudevents.event_id"))
			}
			if d.accepted && accepted[r.get("requestmirror.sequence")] {
				c.Errorf("event %s was accepted twice", r.get("requestmirror.sequence"))
			}
			accepted[r.get("requestmirror.sequence")] = accepted[r.get("requestmirror.sequence")] || d.accepted
		}
		for _, secret := range c.sc.secret {
			if bytes.Contains(d.plain, []byte(secret)) {
				c.Errorf("record: has the secret %q:\n%s", secret, d.plain)
			}
		}
	}
	delivered := 0
	for _, taken := range accepted {
		if taken {
			delivered++
		}
	}
	c.eq("delivered", int64(delivered), l.Delivered)
	for _, text := range []string{"internal error", "invalid configuration"} {
		c.eq("logged "+text, strings.Contains(c.eng.errors.since(c.errMark), text), false)
	}
	c.gone = true
}

// tooMany refuses deliveries of more than n records, and each that has the path /huge. The
// one of /prime waits.
func tooMany(n int) func(*receiver) {
	return func(r *receiver) {
		r.choose = func(d delivery) answer {
			list, _, err := records(d.plain)
			if bytes.Contains(d.plain, []byte(`"stringValue":"/prime"`)) {
				return answer{hang: true}
			}
			if err != nil || len(list) > n || bytes.Contains(d.plain, []byte(`"stringValue":"/huge"`)) {
				return answer{status: 413}
			}
			return answer{}
		}
	}
}

func TestOTLP(t *testing.T) {
	const again = "retry: {initialInterval: 1ms, maxInterval: 1ms}"
	runTable(t, []scenario{
		{name: "an event is one log record", config: "{format: otlp, cookieNames: [theme], attributes: {deployment.environment.name: production}}", do: func(c *run) {
			before := time.Now()
			c.send("POST", "/a%2Fb?c=d", `{"text":"{{.}} <é>"}`, "X-Many", "1", "X-Many", "2", "Cookie", "theme=dark; sid=1", "X-Request-Id", "r-1",
				"Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
			r := c.recordsIn(1)[0]
			for key, want := range map[string]string{
				"http.request.method": "POST", "url.path": "/a%2Fb", "url.query": "c=d", "url.scheme": "http", "cloudevents.event_subject": "/a%2Fb",
				"http.request.header.x-many": "1|2", "http.request.header.cookie": "-", "requestmirror.http.request.cookie.theme": "dark",
				"http.request.body.size": "21", "requestmirror.http.request.body.content": `{"text":"{{.}} <é>"}`, "network.peer.address": "127.0.0.1",
				"client.address": "127.0.0.1", "server.address": "127.0.0.1", "requestmirror.request_id": "r-1", "deployment.environment.name": "production",
				"requestmirror.http.request.body.truncated_reason": "-", "http.response.status_code": "-",
			} {
				c.eq(key, r.get(key), want)
			}
			c.eq("number", r.number(), 1)
			var raw struct {
				ResourceLogs []struct {
					ScopeLogs []struct{ LogRecords []map[string]any }
				}
			}
			d := c.recv.deliveries()[0]
			if err := json.Unmarshal(d.plain, &raw); err != nil {
				c.Fatal(err)
			}
			fields := raw.ResourceLogs[0].ScopeLogs[0].LogRecords[0]
			c.eq("trace", fmt.Sprint(fields["traceId"], fields["spanId"], fields["flags"]), "4bf92f3577b34da6a3ce929d0e0e473600f067aa0ba902b71")
			c.eq("traceparent of the delivery", d.header.Get("Traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
			nanos, err := strconv.ParseInt(fmt.Sprint(fields["timeUnixNano"]), 10, 64)
			if at := time.Unix(0, nanos); err != nil || at.Before(before.Truncate(time.Microsecond)) || at.After(time.Now()) {
				c.Errorf("time: got %v, %v; want the arrival", fields["timeUnixNano"], err)
			}
			c.recorded(one)
		}},
		{name: "a batch is one request of many records", config: "{format: otlp, batch: {maxEvents: 20, flushInterval: 1m}}", do: func(c *run) {
			for i := range 60 {
				c.send([]string{"GET", "POST"}[i%2], fmt.Sprintf("/%d", i), strings.Repeat(lorem, i%2))
			}
			for i, r := range c.recordsIn(60) {
				c.eq("number", r.number(), i+1)
				c.eq("path", r.get("url.path"), fmt.Sprintf("/%d", i))
			}
			c.eq("sizes", c.recordSizes(), []int{20, 20, 20})
			c.recorded("seen=60 enqueued=60 delivered=60")
		}},
		{name: "the signature is over the compressed bytes", config: "{format: otlp, compression: gzip, signingSecrets: [" + secretA + "], " + again + "}",
			answers: statuses(503, 204, 204), do: func(c *run) {
				for i := range 2 {
					c.send("POST", "/", strings.Repeat(lorem, 1000))
					c.recordsIn(i + 1)
				}
				for _, d := range c.recv.deliveries() {
					if err := event.Verify(secretA, d.header, d.raw); err != nil {
						c.Error(err)
					}
					if event.Verify(secretA, d.header, d.plain) == nil || len(d.raw) > len(d.plain)/10 {
						c.Errorf("compressed: got %d bytes of %d; want a tenth, and no signature over those before", len(d.raw), len(d.plain))
					}
				}
				c.recorded("seen=2 enqueued=2 delivered=2 retried=1")
			}},
		{name: "attempts have the same id and the same bytes", config: "{format: otlp, batch: {maxEvents: 3, flushInterval: 1m}, retry: {attempts: 9, initialInterval: 1ms, maxInterval: 1ms}}",
			answers: append(statuses(429, 502, 503, 504), answer{cut: true}, answer{}), do: func(c *run) {
				for range 3 {
					c.send("POST", "/", lorem)
				}
				c.recordsIn(3)
				c.eq("ids", len(distinct(c.recv.deliveries())), 1)
				c.recorded("seen=3 enqueued=3 delivered=3 retried=5")
			}},
		{name: "what OTLP calls not retryable is not sent again", config: "{format: otlp, " + again + "}", answers: statuses(400, 401, 403, 404, 405, 415, 200), do: func(c *run) {
			for i := range 7 {
				c.get("/")
				c.attempts(i + 1)
			}
			c.recorded("seen=7 enqueued=7 delivered=1 failed.rejected=6")
		}},
		{name: "Retry-After is obeyed", config: "{format: otlp, retry: {initialInterval: 1ms, maxInterval: 1ms}}", answers: []answer{{status: 503, after: "1"}, {}}, do: func(c *run) {
			c.get("/")
			d := c.attempts(2)
			if waited := d[1].at.Sub(d[0].at); waited < 900*time.Millisecond {
				c.Errorf("second attempt: got it after %v; want a second", waited)
			}
			c.recorded("seen=1 enqueued=1 delivered=1 retried=1")
		}},
		{name: "413 halves a batch until its records are few enough", config: "{format: otlp, compression: gzip, " + gathered[1:] + "}", prepare: tooMany(3), do: func(c *run) {
			c.prime()
			for i := range 16 {
				c.send("POST", fmt.Sprintf("/%d", i), strings.Repeat("x", 100*i))
			}
			c.passed()
			c.recv.release()
			c.settled()
			c.eq("sizes", c.recordSizes(), []int{1, 16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2})
			c.eq("ids", len(distinct(c.recv.deliveries())), 16)
			c.recorded("seen=17 enqueued=17 delivered=17")
		}},
		{name: "one record that is too large fails alone", config: "{format: otlp, " + gathered[1:] + "}", prepare: tooMany(100), do: func(c *run) {
			c.prime()
			for i := range 16 {
				c.get(map[bool]string{true: "/huge", false: "/"}[i == 9])
			}
			c.passed()
			c.recv.release()
			c.recorded("seen=17 enqueued=17 delivered=16 failed.too_large=1")
		}},
		{name: "an event that got too old is taken out of its batch", config: "{format: otlp, workers: 1, maxAge: 500ms, retry: {attempts: 1}, batch: {maxEvents: 16, flushInterval: 1ms}}",
			prepare: tooMany(100), do: func(c *run) {
				c.prime()
				c.get("/old")
				begun := time.Now()
				c.until("it is too old", func() bool { return time.Since(begun) > 550*time.Millisecond })
				c.get("/young")
				c.recv.release()
				for _, r := range c.recordsIn(2) {
					c.eq("delivered", r.get("url.path") != "/old", true)
				}
				c.recorded("seen=3 enqueued=3 delivered=2 failed.expired=1")
			}},
		{name: "nothing leaves that does not leave in events", secret: []string{"s3cr3t"},
			config: "{format: otlp, captureResponse: body, redactBodyFields: [password], bodyContentTypes: [application/json], headers: {names: {X-Tenant: hash, X-Internal: drop}}, queryParameters: {names: {token: redact}}}",
			do: func(c *run) {
				c.send("POST", "/?token=s3cr3t&sig=s3cr3t&a=b", `{"password":"s3cr3t","user":"alice"}`, "Content-Type", "application/json",
					"Authorization", "Bearer s3cr3t", "Cookie", "sid=s3cr3t", "X-Tenant", "s3cr3t", "X-Internal", "s3cr3t", "X-Api-Key", "s3cr3t")
				c.send("POST", "/", "s3cr3t", "Content-Type", "text/plain")
				r := c.recordsIn(2)
				c.eq("query", r[0].get("url.query"), "token=REDACTED&sig=REDACTED&a=b")
				c.eq("content", r[0].get("requestmirror.http.request.body.content"), `{"password":"REDACTED","user":"alice"}`)
				c.eq("size", r[0].get("http.request.body.size"), "36")
				c.eq("headers", r[0].get("http.request.header.authorization")+r[0].get("http.request.header.cookie")+r[0].get("http.request.header.x-internal"), "REDACTED--")
				c.eq("pseudonym", strings.HasPrefix(r[0].get("http.request.header.x-tenant"), "hmac-sha256:"), true)
				c.eq("status", r[0].get("http.response.status_code"), "200")
				c.eq("body of a type that is not wanted", r[1].get("requestmirror.http.request.body.content")+r[1].get("requestmirror.http.request.body.truncated_reason"), "-content-type")
				c.recorded("seen=2 enqueued=2 delivered=2 truncated.content-type=3")
			}},
		{name: "a report is a record of its own", config: "{format: otlp, reportInterval: 20ms, methods: [GET], batch: {maxEvents: 5, flushInterval: 1ms}}", do: func(c *run) {
			c.get("/")
			c.send("POST", "/", lorem)
			var data struct{ Seen, Filtered, Delivered int }
			c.until("a report of both", func() bool {
				for _, d := range c.recv.deliveries() {
					_, reports, _ := records(d.plain)
					for _, r := range reports {
						if err := json.Unmarshal([]byte(r.Body.Text), &data); err != nil {
							c.Fatal(err)
						}
						c.eq("type", r.get("cloudevents.event_type"), event.ReportType)
						c.eq("request", r.get("http.request.method")+r.get("requestmirror.sequence"), "--")
					}
				}
				return data.Seen == 2 && data.Delivered == 1
			})
			c.eq("filtered", data.Filtered, 1)
			c.recorded("seen=2 filtered=1 enqueued=1 delivered=1")
		}},
		{name: "many requests at once are each one record", config: "{format: otlp, workers: 8, compression: gzip, batch: {maxEvents: 50, flushInterval: 5ms}}", do: func(c *run) {
			stop := c.watch()
			parallel(400, func(i int) { c.send("POST", fmt.Sprintf("/%d", i), strings.Repeat(lorem, i%7)) })
			paths := map[string]bool{}
			for i, r := range c.recordsIn(400) {
				paths[r.get("url.path")] = true
				c.eq("number", r.number(), i+1)
				var n int
				_, _ = fmt.Sscanf(r.get("url.path"), "/%d", &n)
				want := strings.Repeat(lorem, n%7)
				if want == "" {
					want = "-"
				}
				c.eq("content", r.get("requestmirror.http.request.body.content"), want)
			}
			stop()
			c.eq("requests", len(paths), 400)
			c.recorded("seen=400 enqueued=400 delivered=400")
		}},
		{name: "maxEventSize is refused", config: "{format: otlp, maxEventSize: 1Mi}", problem: []string{"\n  maxEventSize: given, want none with format otlp"}, do: func(c *run) {
			c.eq("answer", c.get("/").status, 200)
		}},
	})
}
