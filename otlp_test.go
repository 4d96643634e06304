package requestmirror

import (
	"bytes"
	"compress/gzip"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What becomes of an event in a log record. How a Collector reads it is test/otlp's.

// conventions are the names in an event that OpenTelemetry's registry of attributes has.
var conventions = regexp.MustCompile(`(?s)^(` + strings.Join([]string{
	`url\.(scheme|path|query)`, `network\.protocol\.(name|version)`, `(network\.peer|client|server)\.(address|port)`,
	`http\.request\.method`, `http\.response\.status_code`, `http\.(request|response)\.(header\..+|body\.size)`,
	`user_agent\.original`, `tls\.protocol\.version`,
}, "|") + `)$`)

var knownMethods = "GET HEAD POST PUT DELETE CONNECT OPTIONS TRACE PATCH QUERY"

// members decodes a JSON object; numbers stay texts.
func members(t testing.TB, text []byte) map[string]interface{} {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	out := map[string]interface{}{}
	if err := decoder.Decode(&out); err != nil {
		t.Fatalf("got no JSON object: %v in %s", err, text)
	}
	if decoder.More() {
		t.Fatalf("got more than one value: %s", text)
	}
	return out
}

// attributesOf are those that the event is to have as a record. It goes through the
// event, whatever there is in it, so nothing can be forgotten.
func attributesOf(event map[string]interface{}) map[string]interface{} {
	out := map[string]interface{}{}
	for name, value := range event {
		switch name {
		case "id", "source", "type", "subject":
			out["cloudevents.event_"+name] = value
		case "sequence", "sampledrate":
			out["requestmirror."+name] = value
		}
	}
	data := event["data"].(map[string]interface{})
	if data["http"] != nil {
		flatten(out, "", data)
	}
	return out
}

func flatten(out map[string]interface{}, path string, value interface{}) {
	if below, ok := value.(map[string]interface{}); ok {
		for name, member := range below {
			switch path {
			case "":
				flatten(out, name, member)
			case "attributes":
				out[name] = member
			default:
				flatten(out, path+"."+name, member)
			}
		}
		return
	}
	name := path
	if !conventions.MatchString(path) {
		name = "requestmirror." + path
	}
	text, _ := value.(string)
	_, isFlag := value.(bool)
	switch {
	case isFlag:
		// truncated is where there is a reason.
	case path == "http.request.method" && !strings.Contains(" "+knownMethods+" ", " "+text+" "):
		out[name] = "_OTHER"
		out["http.request.method_original"] = text
	case path == "duration_ms":
		took, _ := value.(json.Number).Float64()
		out[name] = took
	default:
		out[name] = value
	}
}

// logRecord is a record as it was read.
type logRecord struct {
	fields     map[string]interface{} // but for these:
	attributes map[string]interface{}
	body       string
}

// recordsIn reads the request of an exporter by the rules of OTLP's JSON: whatever is not
// as they say is an error.
func recordsIn(t testing.TB, payload []byte) []logRecord {
	t.Helper()
	all := members(t, payload)
	resources := only(t, all, "resourceLogs")
	if got := attributesIn(t, resources["resource"]); !reflect.DeepEqual(got, map[string]interface{}{"service.name": "traefik"}) {
		t.Fatalf("got resource %v; want service.name traefik", got)
	}
	scopes := only(t, resources, "scopeLogs")
	if got := fmt.Sprint(scopes["scope"]); got != "map[name:github.com/opencommit/requestmirror version:"+version+"]" {
		t.Fatalf("got scope %s; want the plugin, and its version", got)
	}
	list := []logRecord{}
	for _, v := range scopes["logRecords"].([]interface{}) {
		fields := v.(map[string]interface{})
		body, _ := valueIn(t, fields["body"]).(string)
		list = append(list, logRecord{fields: fields, attributes: attributesIn(t, fields), body: body})
		delete(fields, "attributes")
		delete(fields, "body")
	}
	return list
}

// only is the one object in a list.
func only(t testing.TB, in map[string]interface{}, name string) map[string]interface{} {
	t.Helper()
	list, _ := in[name].([]interface{})
	if len(list) != 1 {
		t.Fatalf("got %s %v; want one", name, in[name])
	}
	return list[0].(map[string]interface{})
}

func attributesIn(t testing.TB, in interface{}) map[string]interface{} {
	t.Helper()
	out := map[string]interface{}{}
	for _, v := range in.(map[string]interface{})["attributes"].([]interface{}) {
		pair := v.(map[string]interface{})
		key, _ := pair["key"].(string)
		if _, twice := out[key]; twice || key == "" || len(pair) != 2 {
			t.Fatalf("got attribute %v; want a key that no other has, and a value", pair)
		}
		out[key] = valueIn(t, pair["value"])
	}
	return out
}

func valueIn(t testing.TB, v interface{}) interface{} {
	t.Helper()
	value, _ := v.(map[string]interface{})
	if text, ok := value["stringValue"].(string); ok && len(value) == 1 {
		return text
	}
	if text, ok := value["intValue"].(string); ok && len(value) == 1 {
		if _, err := strconv.ParseInt(text, 10, 64); err == nil {
			return json.Number(text)
		}
	}
	if number, ok := value["doubleValue"].(json.Number); ok && len(value) == 1 {
		if f, err := number.Float64(); err == nil {
			return f
		}
	}
	if array, ok := value["arrayValue"].(map[string]interface{}); ok && len(value) == 1 && len(array) == 1 {
		out := []interface{}{}
		for _, one := range array["values"].([]interface{}) {
			out = append(out, valueIn(t, one))
		}
		return out
	}
	t.Fatalf("got value %v; want one of a type", v)
	return nil
}

// recordOf is what an event becomes, which has its attributes and no others.
func recordOf(t testing.TB, payload []byte) logRecord {
	t.Helper()
	list := recordsIn(t, logRecords(payload))
	if len(list) != 1 {
		t.Fatalf("got %d records of one event; want 1", len(list))
	}
	compareAttributes(t, list[0], members(t, payload))
	return list[0]
}

func compareAttributes(t testing.TB, r logRecord, event map[string]interface{}) {
	t.Helper()
	want := attributesOf(event)
	names := []string{}
	for name := range want {
		names = append(names, name)
	}
	for name := range r.attributes {
		if _, wanted := want[name]; !wanted {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		if !reflect.DeepEqual(r.attributes[name], want[name]) {
			t.Errorf("%s: got %#v; want %#v", name, r.attributes[name], want[name])
		}
	}
	if r.fields["eventName"] != event["type"] {
		t.Errorf("got eventName %v; want %v", r.fields["eventName"], event["type"])
	}
}

func TestOTLPRecordInFull(t *testing.T) {
	p := stillPipeline(t, opts{
		"cookieNames": "visitor_id", "attributes": map[string]string{"deployment.environment.name": "production"}, "sampleRate": 0.1, "captureResponse": "body",
	})
	c := &capture{
		set: p.set, at: goldenTime, method: "POST", uri: "/api/comments?lang=en&sig=abc", host: "blog.example.com", proto: "HTTP/2.0",
		remote: "10.42.0.9:51514", secure: tls.VersionTLS13, sequence: 4711,
		header: http.Header{
			"Accept": {"text/html", "*/*"}, "Authorization": {"Bearer abc"}, "Cookie": {"visitor_id=v-82f1; sid=1"},
			"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"}, "User-Agent": {"curl/8.7.1"}, "X-Request-Id": {"r-1"},
		},
		body: &body{declared: 12, kept: 4, beyond: 8, last: []byte{0xff, 0, 0xfe, '"'}, closed: true, cut: cutLimit},
		response: &response{
			status: 201, header: http.Header{"Set-Cookie": {"sid=1"}, "Content-Type": {"text/plain"}}, body: wholeBody("<b>hello</b>"), took: 12500 * time.Microsecond,
		},
	}
	got := recordOf(t, encode(p, c, &delivery{id: "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913"}))
	want := map[string]interface{}{
		"cloudevents.event_id": "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913", "cloudevents.event_source": p.set.source,
		"cloudevents.event_type": "io.opencommit.requestmirror.request.v1", "cloudevents.event_subject": "/api/comments",
		"requestmirror.sequence": "01992f5e00c1-00000000000000004711", "requestmirror.sampledrate": json.Number("10"),
		"url.scheme": "https", "url.path": "/api/comments", "url.query": "lang=en&sig=REDACTED",
		"network.protocol.name": "http", "network.protocol.version": "2", "network.peer.address": "10.42.0.9", "network.peer.port": json.Number("51514"),
		"client.address": "10.42.0.9", "server.address": "blog.example.com", "server.port": json.Number("443"),
		"http.request.method": "POST", "http.request.header.accept": []interface{}{"text/html", "*/*"},
		"http.request.header.authorization": []interface{}{"REDACTED"}, "http.request.header.user-agent": []interface{}{"curl/8.7.1"},
		"http.request.header.traceparent":  []interface{}{"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-03"},
		"http.request.header.x-request-id": []interface{}{"r-1"}, "requestmirror.http.request.cookie.visitor_id": []interface{}{"v-82f1"},
		"http.request.body.size": json.Number("12"), "requestmirror.http.request.body.content_base64": "/wD+Ig==",
		"requestmirror.http.request.body.truncated_reason": "limit",
		"http.response.status_code":                        json.Number("201"), "http.response.header.set-cookie": []interface{}{"REDACTED"},
		"http.response.header.content-type": []interface{}{"text/plain"}, "http.response.body.size": json.Number("12"),
		"requestmirror.http.response.body.content": "<b>hello</b>", "requestmirror.duration_ms": 12.5,
		"user_agent.original": "curl/8.7.1", "tls.protocol.version": "1.3", "requestmirror.request_id": "r-1", "deployment.environment.name": "production",
	}
	if !reflect.DeepEqual(got.attributes, want) {
		t.Errorf("got attributes %v; want %v", got.attributes, want)
	}
	fields := map[string]interface{}{
		"timeUnixNano": "1789724467184503000", "observedTimeUnixNano": "1789724467184503000", "severityNumber": json.Number("9"), "severityText": "INFO",
		"eventName": "io.opencommit.requestmirror.request.v1",
		"traceId":   "4bf92f3577b34da6a3ce929d0e0e4736", "spanId": "00f067aa0ba902b7", "flags": json.Number("3"),
	}
	if !reflect.DeepEqual(got.fields, fields) || got.body != "POST /api/comments" {
		t.Errorf("got %v, body %q; want %v", got.fields, got.body, fields)
	}
}

func TestOTLPRecordsOfGoldenEvents(t *testing.T) {
	for _, c := range payloadCases {
		event, err := os.ReadFile(filepath.Join("testdata", "payload-"+c.golden+".json"))
		if err != nil {
			t.Fatal(err)
		}
		recordOf(t, event)
	}
}

func TestOTLPTakesTextsAsTheyAre(t *testing.T) {
	p := stillPipeline(t, opts{"cookieNames": "*", "attributes": map[string]string{`a"{{.}}`: `{{template "request" .}}`, "empty": ""}})
	for _, text := range oddTexts {
		c := &capture{
			set: p.set, method: "GET", uri: "/" + text + "?" + text, host: "a.test", proto: "HTTP/1.1", remote: "10.0.0.1:5",
			header: http.Header{"X-Odd": {text, "", text}, "User-Agent": {text}, "X-Request-Id": {text}},
			body:   wholeBody(text),
		}
		r := recordOf(t, encode(p, c, &delivery{id: "1"}))
		want := inUTF8(text)
		if got := r.attributes["http.request.header.x-odd"]; !reflect.DeepEqual(got, []interface{}{want, "", want}) {
			t.Errorf("%q: got header %q", text, got)
		}
		if got := r.attributes["requestmirror.http.request.body.content"]; want == text && text != "" && got != text {
			t.Errorf("%q: got body %q", text, got)
		}
		if got := r.attributes[`a"{{.}}`]; got != `{{template "request" .}}` || r.attributes["empty"] != "" {
			t.Errorf("got attribute %q, and %q; want them as they are", got, r.attributes["empty"])
		}
		path, _, _ := strings.Cut(want, "?")
		if r.attributes["url.path"] != "/"+path || r.body != "GET "+subjectOf("/"+path) {
			t.Errorf("%q: got path %q, body of the record %q; want the path as it was sent, and method and subject", text, r.attributes["url.path"], r.body)
		}
	}
}

var oddTexts = []string{
	"", "a", `"`, `\`, `\u0022`, "{{.}}", `{{template "text" .}}`, "{{", "}}", "{{/*", "%s%!d(MISSING)", "<>&'", "\u2028\u2029\ufeff\ufffd", "\x00\x1f\x7f\t\r\n",
	"é€😀", "a\u0301", "\xff\xfe", "a\xe2\x82", "null", `{"stringValue":"x"}`, "]}]}]}", "0", "-0", "1e999", strings.Repeat("long ", 5000),
}

// inUTF8 is what a text becomes in JSON: each byte that is no UTF-8 is replaced.
func inUTF8(s string) string { return string([]rune(s)) }

// anEvent is a small event, of which some members are given.
func anEvent(envelope, data string) []byte {
	return []byte(`{"id":"1","source":"//h/m","type":"io.opencommit.requestmirror.request.v1",` + envelope + `"data":{"http":{"request":{"method":"GET","header":{}` + data +
		`,"url":{"scheme":"http","path":"/"},"network":{"protocol":{"name":"http","version":"1.1"},"peer":{"address":"::1"}},"client":{"address":"::1"}}}`)
}

func TestOTLPTimesAreExact(t *testing.T) {
	for given, want := range map[string]string{
		"2026-09-18T09:41:07.184503Z": "1789724467184503000",
		"2026-09-18T09:41:07.000001Z": "1789724467000001000",
		"2026-09-18T09:41:07.999999Z": "1789724467999999000",
		"2026-09-18T09:41:07Z":        "1789724467000000000",
		"2000-02-29T23:59:59.123456Z": "951868799123456000",
		"2262-04-11T23:47:16.854775Z": "9223372036854775000", // as late as nanoseconds go
		"1970-01-01T00:00:00.000000Z": "0",
	} {
		r := recordOf(t, anEvent(`"time":"`+given+`",`, `}}`))
		if r.fields["timeUnixNano"] != want || r.fields["observedTimeUnixNano"] != want {
			t.Errorf("%s: got %v, observed %v; want %s", given, r.fields["timeUnixNano"], r.fields["observedTimeUnixNano"], want)
		}
	}
}

func TestOTLPTraceIsThatOfTheRequest(t *testing.T) {
	const trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for _, c := range []struct{ version, flags, want string }{
		{"00", "00", "0"}, {"00", "01", "1"}, {"00", "02", "2"}, {"00", "03", "3"}, {"cc", "09", "9"}, {"00", "ff", "255"},
	} {
		r := recordOf(t, anEvent(`"time":"2026-09-18T09:41:07Z","traceparent":"`+c.version+"-"+trace+"-"+span+"-"+c.flags+`",`, `}}`))
		if r.fields["traceId"] != trace || r.fields["spanId"] != span || r.fields["flags"] != json.Number(c.want) {
			t.Errorf("flags %s: got %v; want trace %s, span %s, flags %s", c.flags, r.fields, trace, span, c.want)
		}
	}
	r := recordOf(t, anEvent(`"time":"2026-09-18T09:41:07Z",`, `}}`))
	for _, name := range []string{"traceId", "spanId", "flags"} {
		if v, there := r.fields[name]; there {
			t.Errorf("got %s %v without a trace; want none", name, v)
		}
	}
}

func TestOTLPMethodsAreThoseOfTheConventions(t *testing.T) {
	p := stillPipeline(t, nil)
	for _, method := range append(strings.Fields(knownMethods), "get", "PROPFIND", "G ET", `{{"`, "_OTHER") {
		r := recordOf(t, encode(p, &capture{set: p.set, method: method, uri: "/", proto: "HTTP/1.1"}, &delivery{id: "1"}))
		known := strings.Contains(" "+knownMethods+" ", " "+method+" ")
		if known && (r.attributes["http.request.method"] != method || r.attributes["http.request.method_original"] != nil) ||
			!known && (r.attributes["http.request.method"] != "_OTHER" || r.attributes["http.request.method_original"] != method) {
			t.Errorf("%q: got %v, original %v", method, r.attributes["http.request.method"], r.attributes["http.request.method_original"])
		}
		if r.body != method+" /" {
			t.Errorf("%q: got body %q; want it as it was sent", method, r.body)
		}
	}
}

func TestOTLPNumbersAreExact(t *testing.T) {
	for given, want := range map[string]map[string]interface{}{
		`,"body":{"content":"","size":0,"truncated":false}}}`: {"http.request.body.size": json.Number("0"), "requestmirror.http.request.body.content": ""},
		`,"body":{"size":9007199254740993,"truncated":true,"truncated_reason":"limit"}}}`: {
			"http.request.body.size": json.Number("9007199254740993"), "requestmirror.http.request.body.truncated_reason": "limit",
		},
		`,"body":{"truncated":true,"truncated_reason":"disabled"}}}`:                           {"http.request.body.size": nil},
		`},"response":{}},"duration_ms":0`:                                                     {"requestmirror.duration_ms": 0.0, "http.response.status_code": nil},
		`},"response":{"status_code":999}},"duration_ms":0.000001`:                             {"requestmirror.duration_ms": 0.000001, "http.response.status_code": json.Number("999")},
		`},"response":{}},"duration_ms":86400000.123456`:                                       {"requestmirror.duration_ms": 86400000.123456},
		`}},"server":{"address":"a.test","port":0}`:                                            {"server.port": json.Number("0")},
		`}},"server":{"address":"","port":80}`:                                                 {"server.address": "", "server.port": json.Number("80")},
		`},"response":{"header":{},"body":{"content":"","size":0,"truncated":false}}}`:         {"http.response.body.size": json.Number("0")},
		`},"response":{"body":{"truncated":true,"truncated_reason":"content-type","size":7}}}`: {"requestmirror.http.response.body.truncated_reason": "content-type"},
	} {
		r := recordOf(t, anEvent(`"time":"2026-09-18T09:41:07Z","sampledrate":2147483647,`, given))
		want["requestmirror.sampledrate"] = json.Number("2147483647")
		for name, value := range want {
			if r.attributes[name] != value {
				t.Errorf("%s: %s: got %v; want %v", given, name, r.attributes[name], value)
			}
		}
	}
}

func TestOTLPBatchIsOneRequest(t *testing.T) {
	texts := []string{}
	for n := 0; n < 25; n++ {
		texts = append(texts, string(anEvent(fmt.Sprintf(`"time":"2026-09-18T09:41:07.%06dZ","sequence":"01992f5e00c1-%020d",`, n, n), `}}`)))
		r := recordsIn(t, logRecords([]byte("["+strings.Join(texts, ",")+"]")))
		if len(r) != n+1 {
			t.Fatalf("got %d records; want %d", len(r), n+1)
		}
		for i, one := range r {
			compareAttributes(t, one, members(t, []byte(texts[i])))
		}
	}
	if alone, inBatch := logRecords([]byte(texts[0])), logRecords([]byte("["+texts[0]+"]")); !bytes.Equal(alone, inBatch) {
		t.Errorf("got %s alone, and %s in a batch; want the same", alone, inBatch)
	}
}

func TestOTLPReportIsARecordToo(t *testing.T) {
	for _, most := range []int{1, 10} {
		p := stillPipeline(t, opts{"format": "otlp", "batch.maxEvents": most})
		countDropped(p, 40)
		d := takeReport(p)
		report := bytes.Trim(d.payload, "[]")
		event := members(t, d.payload[bytes.IndexByte(d.payload, '{'):])
		pack(p.set, d)
		list := recordsIn(t, d.payload)
		if len(list) != 1 {
			t.Fatalf("got %d records; want 1 of %s", len(list), report)
		}
		compareAttributes(t, list[0], event)
		if got := members(t, []byte(list[0].body)); !reflect.DeepEqual(got, event["data"]) {
			t.Errorf("got body %v; want the data %v", got, event["data"])
		}
		at, err := time.Parse(time.RFC3339Nano, event["time"].(string))
		if err != nil || list[0].fields["timeUnixNano"] != strconv.FormatInt(at.UnixNano(), 10) {
			t.Errorf("got time %v; want that of %v", list[0].fields["timeUnixNano"], event["time"])
		}
		if !strings.Contains(list[0].body, `"dropped":[{"reason":"queue_full","count":40}]`) {
			t.Errorf("got body %s; want 40 dropped", list[0].body)
		}
	}
}

func countDropped(p *pipeline, n uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sequence = n
	p.counts.dropped = map[string]uint64{"queue_full": n}
}

func TestOTLPIsPackedOnceAndCompressed(t *testing.T) {
	event := anEvent(`"time":"2026-09-18T09:41:07Z",`, `,"body":{"content":"`+strings.Repeat("lorem ipsum ", 200)+`","size":2400,"truncated":false}}}`)
	plain := logRecords(event)
	for _, compression := range []string{"none", "gzip"} {
		p := stillPipeline(t, opts{"format": "otlp", "compression": compression})
		d := &delivery{payload: event}
		pack(p.set, d)
		sent := d.payload
		if !d.packed || d.compressed != (compression == "gzip") {
			t.Errorf("%s: got packed %v, compressed %v", compression, d.packed, d.compressed)
		}
		if d.compressed {
			z, err := gzip.NewReader(bytes.NewReader(sent))
			if err != nil {
				t.Fatal(err)
			}
			if sent, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(sent, plain) {
			t.Errorf("%s: got %s; want %s", compression, sent, plain)
		}
	}
	// Several workers use the template at once.
	done := make(chan bool, 8)
	for i := 0; i < cap(done); i++ {
		go makeRecords(event, plain, done)
	}
	for i := 0; i < cap(done); i++ {
		same := <-done
		if !same {
			t.Error("got another record of the same event, at the same time")
		}
	}
}

func makeRecords(event, want []byte, done chan bool) { done <- bytes.Equal(logRecords(event), want) }

func TestOTLPTakesNoMaxEventSize(t *testing.T) {
	_, problems, _ := readSettings(configOf(opts{"format": "otlp", "maxEventSize": "1Mi"}), "x")
	if len(problems) != 1 || !strings.Contains(problems[0], "maxEventSize: given, want none with format otlp") {
		t.Errorf("got problems %q; want one, of maxEventSize", problems)
	}
	for _, options := range []opts{
		{"batch.maxEvents": 100, "compression": "gzip", "captureResponse": "body", "bodyContentTypes": "text/*", "redactBodyFields": "password", "mirrorBody": "false"},
		{"signingSecrets": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr", "workers": "auto", "requestOrigin": "mirror.example.com"},
	} {
		options["format"] = "otlp"
		settingsOf(t, options)
	}
}

// schemaShapes makes events of all shapes that the schema allows, and of some that only
// its finer rules forbid. A member that it gets one day is made, too.
type schemaShapes struct {
	t      testing.TB
	root   map[string]interface{}
	random *rand.Rand
	texts  []string
}

func newShapes(t testing.TB, seed int64, texts ...string) *schemaShapes {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("docs", "reference", "request.v1.schema.json"))
	if err != nil {
		t.Fatal(err)
	}
	return &schemaShapes{t: t, root: members(t, text), random: rand.New(rand.NewSource(seed)), texts: texts}
}

func (s *schemaShapes) text() string { return inUTF8(s.texts[s.random.Intn(len(s.texts))]) }

// patterned are texts that a pattern describes, by the name of the member.
func (s *schemaShapes) patterned(name string) (text string, known bool) {
	switch name {
	case "id":
		return "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913", true
	case "source":
		return "//host/middlewares/" + s.text(), true
	case "time":
		return time.Unix(s.random.Int63n(1<<33), s.random.Int63n(1e6)*1000).UTC().Format(time.RFC3339Nano), true
	case "sequence":
		return fmt.Sprintf("%012x-%020d", s.random.Int63n(1<<48), s.random.Uint64()), true
	case "traceparent":
		return fmt.Sprintf("%02x-%016x%016x-%016x-%02x", s.random.Intn(255), s.random.Uint64()|1, s.random.Uint64(), s.random.Uint64()|1, s.random.Intn(256)), true
	}
	return "", false
}

func (s *schemaShapes) make(name string, shape map[string]interface{}) interface{} {
	if ref, ok := shape["$ref"].(string); ok {
		return s.make(name, s.root["$defs"].(map[string]interface{})[strings.TrimPrefix(ref, "#/$defs/")].(map[string]interface{}))
	}
	if value, ok := shape["const"]; ok {
		return value
	}
	if values, ok := shape["enum"].([]interface{}); ok {
		return values[s.random.Intn(len(values))]
	}
	switch shape["type"] {
	case "string":
		text, known := s.patterned(name)
		if !known {
			text = s.text()
		}
		if text == "" && (shape["minLength"] != nil || shape["pattern"] != nil) {
			text = "x"
		}
		return text
	case "integer":
		return json.Number(strconv.Itoa(s.random.Intn(1000)))
	case "number":
		return json.Number(strconv.FormatFloat(s.random.Float64()*1e4, 'f', -1, 64))
	case "boolean":
		return s.random.Intn(2) == 0
	case "array":
		list := []interface{}{}
		for n := 1 + s.random.Intn(3); n > 0; n-- {
			list = append(list, s.make("", shape["items"].(map[string]interface{})))
		}
		return list
	case "object":
		return s.object(shape)
	}
	s.t.Fatalf("%s: got %v in the schema; this test knows no such shape", name, shape)
	return nil
}

func (s *schemaShapes) object(shape map[string]interface{}) interface{} {
	out := map[string]interface{}{}
	required := fmt.Sprint(shape["required"])
	properties, _ := shape["properties"].(map[string]interface{})
	for name, below := range properties {
		// tracestate is never sent, nor has a record a place for it.
		if name != "tracestate" && (strings.Contains(required, name) || s.random.Intn(2) == 0) {
			out[name] = s.make(name, below.(map[string]interface{}))
		}
	}
	if more, ok := shape["additionalProperties"].(map[string]interface{}); ok {
		for n := s.random.Intn(4); n > 0; n-- {
			out["x-"+s.text()] = s.make("", more)
		}
	}
	return out
}

// checkShapes has a batch of events made into records.
func checkShapes(t testing.TB, s *schemaShapes) {
	t.Helper()
	events := []interface{}{}
	for n := 1 + s.random.Intn(3); n > 0; n-- {
		events = append(events, s.make("", s.root))
	}
	payload, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	list := recordsIn(t, logRecords(payload))
	if len(list) != len(events) {
		t.Fatalf("got %d records of %d events", len(list), len(events))
	}
	for i := range events {
		compareAttributes(t, list[i], events[i].(map[string]interface{}))
	}
}

// needsDocs skips a test where test/yaegi/run.sh has copied the package only.
func needsDocs(t *testing.T) {
	t.Helper()
	if _, err := os.Stat("go.mod"); err != nil {
		t.Skip("the documentation is not there: no schema, no pages")
	}
}

// firstJSON is the first block of JSON on a page of the reference.
func firstJSON(t *testing.T, page string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("docs", "reference", page))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "\n```json\n")
	block, _, found := strings.Cut(after, "\n```\n")
	if !found {
		t.Fatalf("%s: got no block of JSON; want one", page)
	}
	return []byte(block)
}

func TestOTLPPageShowsTheEventOfTheReference(t *testing.T) {
	needsDocs(t)
	event := firstJSON(t, "event.md")
	recordOf(t, event)
	if got, want := members(t, logRecords(event)), members(t, firstJSON(t, "otlp.md")); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v; want what docs/reference/otlp.md shows: %v", got, want)
	}
}

// The table of attributes on the page, and those of the plugin, are the same.
func TestOTLPPageHasEveryAttribute(t *testing.T) {
	needsDocs(t)
	text, err := os.ReadFile(filepath.Join("docs", "reference", "otlp.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## Attributes\n")
	table, _, _ = strings.Cut(table, "\n## ")
	documented := map[string]string{}
	for _, row := range strings.Split(table, "\n") {
		cells := strings.Split(row, "|")
		if len(cells) < 4 || !strings.Contains(cells[1], "`") {
			continue
		}
		for i, name := range strings.Split(cells[1], "`") {
			if i%2 == 1 && name != "attributes" {
				documented[name] = strings.TrimSpace(cells[2])
			}
		}
	}
	real := map[string]string{"http.request.method": "text", "cloudevents.event_type": "text", "cloudevents.event_subject": "text"}
	for _, a := range otlpAttributes {
		real[a[0]] = map[string]string{"stringValue": "text", "intValue": "int", "doubleValue": "double"}[a[1]]
	}
	for _, l := range otlpLists {
		real[l[0]+"<name>"] = "list of texts"
	}
	if !reflect.DeepEqual(documented, real) {
		t.Errorf("got attributes %v in docs/reference/otlp.md; want %v", documented, real)
	}
}

func TestOTLPTakesEveryShapeOfAnEvent(t *testing.T) {
	needsDocs(t)
	s := newShapes(t, 1, oddTexts[:len(oddTexts)-1]...)
	for i := 0; i < 300 && !t.Failed(); i++ {
		checkShapes(t, s)
	}
}

func FuzzLogRecords(f *testing.F) {
	for i, text := range oddTexts {
		f.Add(int64(i), text, "b")
	}
	f.Fuzz(func(t *testing.T, seed int64, one, other string) { checkShapes(t, newShapes(t, seed, one, other, "")) })
}
