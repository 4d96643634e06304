package otlp

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror"
	"github.com/opencommit/requestmirror/test/event"
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"
	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// request is one that a client sends through two middlewares at once: one makes events of
// it, the other log records.
type request struct {
	method, target, body string
	header               http.Header
}

const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"

var requests = []request{
	{method: "GET", target: "/"},
	{method: "GET", target: "/a%2Fb//c?d=%zz&sig=secret"},
	{method: "POST", target: "/", body: `{"post":42,"text":"buy <b>cheap</b> pills"}`, header: http.Header{"Content-Type": {"application/json"}}},
	{method: "PUT", target: "/binary", body: "\xff\x00\xfe\""},
	{method: "POST", target: "/cut", body: strings.Repeat("é", 2000)},
	{method: "PROPFIND", target: "/another-method"},
	{method: "DELETE", target: "/traced", header: http.Header{"Traceparent": {traceparent}}},
	{method: "GET", target: "/headers", header: http.Header{
		"Authorization": {"Bearer secret"}, "X-Many": {"2", "", "1"}, "Cookie": {"theme=dark; sid=secret; theme=light"}, "User-Agent": {""},
	}},
	{method: "POST", target: "/{{.}}?{{template}}", body: `{{template "text" .}} "\u0022 ` + "\u2028\U0001f600\x00", header: http.Header{"X-Odd": {`"\{{.}}<>&é` + "\xff\t"}}},
}

var options = func(c *requestmirror.Config) {
	c.CookieNames = "theme"
	c.MaxBodySize = 1000
	c.SampleRate = 1
	c.CaptureResponse = "body"
	c.Attributes = map[string]string{"deployment.environment.name": "test", `odd "name" {{.}}`: "", "team": `"core" & <more>`}
}

func TestRecordsSayWhatEventsSay(t *testing.T) {
	backend := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		rw.Header().Add("Set-Cookie", "sid=secret")
		rw.Header().Add("X-Backend", "a")
		rw.Header().Add("X-Backend", "b")
		rw.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(rw, "answer <é>")
	})
	for _, secure := range []bool{false, true} {
		for _, most := range []int{1, 4} {
			for _, compression := range []string{"none", "gzip"} {
				t.Run(fmt.Sprintf("tls %v, %d in a batch, %s", secure, most, compression), func(t *testing.T) {
					events, logs := newSink(t, nil), newSink(t, nil)
					records := newMirror(t, backend, "records", logs.url, options, func(c *requestmirror.Config) {
						c.Format, c.Compression = "otlp", compression
						c.Batch = map[string]any{"maxEvents": most, "flushInterval": "5ms"}
					})
					site := httptest.NewUnstartedServer(newMirror(t, records, "events", events.url, options))
					if secure {
						site.EnableHTTP2 = true
						site.StartTLS()
					} else {
						site.Start()
					}
					t.Cleanup(site.Close)
					for i, r := range requests {
						send(t, site, r, fmt.Sprint("r-", i))
					}
					wanted := map[string]event.Event{}
					for _, raw := range events.wait(t, "events", len(requests), one) {
						e, err := event.Parse(raw.body)
						if err != nil {
							t.Fatal(err)
						}
						wanted[e.RequestID] = e
					}
					seen := map[int64]bool{}
					for _, raw := range logs.wait(t, "records", len(requests), recordsOf) {
						for _, got := range read(t, raw.body) {
							id, _ := got.Attributes().Get("requestmirror.request_id")
							compare(t, got, wanted[id.Str()])
							seen[numberOf(got)] = true
						}
					}
					if len(seen) != len(requests) || !seen[1] || !seen[int64(len(requests))] {
						t.Errorf("got numbers %v; want 1 to %d", seen, len(requests))
					}
				})
			}
		}
	}
}

// read has the Collector's library read a delivery, and compares the text with the one
// that the library writes of it: names and the form of values are as OTLP's JSON has them.
func read(t *testing.T, payload []byte) []plog.LogRecord {
	t.Helper()
	all := plogotlp.NewExportRequest()
	if err := all.UnmarshalJSON(payload); err != nil {
		t.Fatalf("the Collector's library: %v in %s", err, payload)
	}
	back, err := all.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if ours, theirs := decoded(t, payload), decoded(t, back); !reflect.DeepEqual(ours, theirs) {
		t.Errorf("got %s; want %s, as OpenTelemetry's library writes it", payload, back)
	}
	if n := all.Logs().ResourceLogs().Len(); n != 1 {
		t.Fatalf("got %d resources; want 1", n)
	}
	resource := all.Logs().ResourceLogs().At(0)
	if got, want := resource.Resource().Attributes().AsRaw(), map[string]any{string(semconv.ServiceNameKey): "traefik"}; !reflect.DeepEqual(got, want) {
		t.Errorf("got resource %v; want %v", got, want)
	}
	if n := resource.ScopeLogs().Len(); n != 1 {
		t.Fatalf("got %d scopes; want 1", n)
	}
	scope := resource.ScopeLogs().At(0)
	if scope.Scope().Name() != "github.com/opencommit/requestmirror" || scope.Scope().Version() == "" {
		t.Errorf("got scope %q %q; want the plugin, with its version", scope.Scope().Name(), scope.Scope().Version())
	}
	var list []plog.LogRecord
	for _, r := range scope.LogRecords().All() {
		list = append(list, r)
	}
	return list
}

func decoded(t *testing.T, text []byte) (v any) {
	t.Helper()
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

// compare holds a record against the event of the same request, but for what each
// middleware gives by itself: id, source, number, time and duration.
func compare(t *testing.T, got plog.LogRecord, e event.Event) {
	t.Helper()
	values := got.Attributes().AsRaw()
	if len(values) != got.Attributes().Len() {
		t.Errorf("got an attribute twice in %v", values)
	}
	var want []attribute.KeyValue
	text := func(key attribute.Key, value string) {
		if value != "" {
			want = append(want, key.String(value))
		}
	}
	address := func(address, port attribute.Key, a event.Address) {
		text(address, a.Address)
		if a.Port > 0 {
			want = append(want, port.Int(a.Port))
		}
	}
	body := func(size attribute.Key, name string, b *event.Body) {
		if b == nil {
			return
		}
		want = append(want, size.Int64(b.Size))
		if b.Text {
			want = append(want, attribute.String(name+".content", string(b.Content)))
		} else {
			text(attribute.Key(name+".content_base64"), base64.StdEncoding.EncodeToString(b.Content))
		}
		text(attribute.Key(name+".truncated_reason"), b.Reason)
	}
	text(semconv.CloudEventsEventTypeKey, e.Type)
	text(semconv.CloudEventsEventSubjectKey, e.Subject)
	if e.Method == "PROPFIND" {
		want = append(want, semconv.HTTPRequestMethodOther)
		text(semconv.HTTPRequestMethodOriginalKey, e.Method)
	} else {
		text(semconv.HTTPRequestMethodKey, e.Method)
	}
	text(semconv.URLSchemeKey, e.Scheme)
	text(semconv.URLPathKey, e.Path)
	text(semconv.URLQueryKey, e.Query)
	text(semconv.NetworkProtocolNameKey, "http")
	text(semconv.NetworkProtocolVersionKey, e.Proto)
	address(semconv.NetworkPeerAddressKey, semconv.NetworkPeerPortKey, e.Peer)
	text(semconv.ClientAddressKey, e.Client)
	address(semconv.ServerAddressKey, semconv.ServerPortKey, e.Server)
	text(semconv.UserAgentOriginalKey, e.UserAgent)
	text(semconv.TLSProtocolVersionKey, e.TLS)
	text("requestmirror.request_id", e.RequestID)
	for name, list := range e.Header {
		want = append(want, semconv.HTTPRequestHeader(name, list...))
	}
	for name, list := range e.Cookie {
		want = append(want, attribute.StringSlice("requestmirror.http.request.cookie."+name, list))
	}
	body(semconv.HTTPRequestBodySizeKey, "requestmirror.http.request.body", e.Body)
	want = append(want, semconv.HTTPResponseStatusCode(e.Response.Status))
	for name, list := range e.Response.Header {
		want = append(want, semconv.HTTPResponseHeader(name, list...))
	}
	body(semconv.HTTPResponseBodySizeKey, "requestmirror.http.response.body", e.Response.Body)
	for name, value := range e.Attributes {
		want = append(want, attribute.String(name, value))
	}
	wanted := map[string]any{}
	for _, pair := range want {
		if list := pair.Value.AsStringSlice(); list != nil {
			texts := []any{}
			for _, one := range list {
				texts = append(texts, one)
			}
			wanted[string(pair.Key)] = texts
			continue
		}
		wanted[string(pair.Key)] = pair.Value.AsInterface()
	}

	own := func(key string) any {
		v := values[key]
		delete(values, key)
		return v
	}
	id, _ := own(string(semconv.CloudEventsEventIDKey)).(string)
	// The id has the milliseconds of the arrival in it, and the time has them, too.
	at := got.Timestamp().AsTime()
	if hex := strings.ReplaceAll(id, "-", ""); len(hex) != 32 || hex[:12] != fmt.Sprintf("%012x", at.UnixMilli()) || at.Nanosecond()%1000 != 0 {
		t.Errorf("got id %q, time %v; want a UUIDv7 of this time, in microseconds", id, at)
	}
	if got.ObservedTimestamp() != got.Timestamp() {
		t.Errorf("got observed time %v; want %v", got.ObservedTimestamp(), got.Timestamp())
	}
	if source, _ := own(string(semconv.CloudEventsEventSourceKey)).(string); !strings.HasSuffix(source, "/middlewares/records@file") {
		t.Errorf("got source %q", source)
	}
	if took, ok := own("requestmirror.duration_ms").(float64); !ok || took <= 0 {
		t.Errorf("got duration %v; want milliseconds", took)
	}
	delete(values, "requestmirror.sequence")
	if !reflect.DeepEqual(values, wanted) {
		for name := range wanted {
			if !reflect.DeepEqual(values[name], wanted[name]) {
				t.Errorf("%s %s: %s: got %#v; want %#v", e.Method, e.Path, name, values[name], wanted[name])
			}
		}
		for name := range values {
			if _, ok := wanted[name]; !ok {
				t.Errorf("%s %s: got attribute %s, which the event does not have", e.Method, e.Path, name)
			}
		}
	}

	trace, span, flags := "", "", uint32(0)
	if e.Traceparent != "" {
		trace, span, flags = e.Traceparent[3:35], e.Traceparent[36:52], 3
	}
	if got.TraceID().String() != trace || got.SpanID().String() != span || uint32(got.Flags()) != flags {
		t.Errorf("got trace %s, span %s, flags %d; want those of %q", got.TraceID(), got.SpanID(), got.Flags(), e.Traceparent)
	}
	if got.SeverityNumber() != plog.SeverityNumberInfo || got.SeverityText() != "INFO" || got.EventName() != event.Type {
		t.Errorf("got severity %v %q, event %q; want INFO, %s", got.SeverityNumber(), got.SeverityText(), got.EventName(), event.Type)
	}
	if got.Body().Type() != pcommon.ValueTypeStr || got.Body().Str() != e.Method+" "+e.Path {
		t.Errorf("got body %v; want method and path", got.Body().AsRaw())
	}
}

// numberOf is the number in sequence; 0 of a report.
func numberOf(r plog.LogRecord) (n int64) {
	sequence, ok := r.Attributes().Get("requestmirror.sequence")
	if !ok {
		return 0
	}
	_, digits, _ := strings.Cut(sequence.Str(), "-")
	_, _ = fmt.Sscanf(strings.TrimLeft(digits, "0"), "%d", &n)
	return n
}

// A receiver of OTLP may refuse records in the answer 200; the plugin does not read it.
func TestPartialSuccessIsDelivered(t *testing.T) {
	logs := newSink(t, func(rw http.ResponseWriter) {
		answer := plogotlp.NewExportResponse()
		answer.PartialSuccess().SetRejectedLogRecords(2)
		answer.PartialSuccess().SetErrorMessage("too old")
		text, err := answer.MarshalJSON()
		if err != nil {
			t.Error(err)
		}
		rw.Header().Set("Content-Type", "application/json")
		_, _ = rw.Write(text)
	})
	site := httptest.NewServer(newMirror(t, http.NotFoundHandler(), "partial", logs.url, func(c *requestmirror.Config) {
		c.Format, c.MetricsPath = "otlp", "/metrics"
		c.Batch = map[string]any{"maxEvents": 3, "flushInterval": "1m"}
	}))
	t.Cleanup(site.Close)
	for range 3 {
		send(t, site, request{method: "GET", target: "/"}, "r")
	}
	logs.wait(t, "records", 3, recordsOf)
	waitFor(t, "3 delivered", func() bool {
		for line := range strings.SplitSeq(send(t, site, request{method: "GET", target: "/metrics"}, ""), "\n") {
			if strings.HasPrefix(line, "requestmirror_events_total{") && strings.Contains(line, `"partial@file"`) && strings.Contains(line, `outcome="delivered"`) {
				return strings.HasSuffix(line, " 3")
			}
		}
		return false
	})
	if n := len(logs.all()); n != 1 {
		t.Errorf("got %d deliveries; want 1, as what was refused is not sent again", n)
	}
}

func TestReportIsARecord(t *testing.T) {
	logs := newSink(t, nil)
	site := httptest.NewServer(newMirror(t, http.NotFoundHandler(), "reports", logs.url, func(c *requestmirror.Config) {
		c.Format, c.ReportInterval = "otlp", "10ms"
	}))
	t.Cleanup(site.Close)
	send(t, site, request{method: "GET", target: "/"}, "r")
	waitFor(t, "a report of the delivery", func() bool {
		for _, d := range logs.all() {
			list := read(t, d.body)
			if len(list) != 1 {
				t.Fatalf("got %d records; want each in a request of its own", len(list))
			}
			values := list[0].Attributes().AsRaw()
			if list[0].EventName() != event.ReportType || values[string(semconv.CloudEventsEventTypeKey)] != event.ReportType {
				continue
			}
			if len(values) != 3 || values[string(semconv.CloudEventsEventIDKey)] != d.header.Get("Webhook-Id") {
				t.Errorf("got attributes %v of a report; want id, source and type", values)
			}
			var data struct{ Seen, Delivered int }
			if err := json.Unmarshal([]byte(list[0].Body().Str()), &data); err != nil {
				t.Fatal(err)
			}
			if data.Seen == 1 && data.Delivered == 1 {
				return true
			}
		}
		return false
	})
}

// newMirror is a middleware, until the test ends.
func newMirror(t *testing.T, next http.Handler, name, url string, edits ...func(*requestmirror.Config)) http.Handler {
	t.Helper()
	config := requestmirror.CreateConfig()
	config.WatchURL, config.Strict = url, true
	for _, edit := range edits {
		edit(config)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	handler, err := requestmirror.New(ctx, next, config, name+"@file")
	if err != nil {
		t.Fatal(err)
	}
	return handler
}

// send sends the request as it is, and returns what is answered.
func send(t *testing.T, site *httptest.Server, r request, id string) string {
	t.Helper()
	var body io.Reader
	if r.body != "" {
		body = strings.NewReader(r.body)
	}
	req, err := http.NewRequest(r.method, site.URL, body)
	if err != nil {
		t.Fatal(err)
	}
	path, query, _ := strings.Cut(r.target, "?")
	req.URL.Opaque, req.URL.RawQuery = path, query
	for name, values := range r.header {
		req.Header[name] = values
	}
	if id != "" {
		req.Header.Set("X-Request-Id", id)
	}
	res, err := site.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if secure := res.TLS != nil && res.TLS.Version >= tls.VersionTLS12; secure != strings.HasPrefix(site.URL, "https") {
		t.Errorf("got TLS %v of %s", res.TLS, site.URL)
	}
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}
