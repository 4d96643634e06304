package requestmirror

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var goldenTime = time.Date(2026, 9, 18, 11, 41, 7, 184503999, time.FixedZone("CEST", 7200))

// wholeBody is a captured body of which nothing is missing.
func wholeBody(content string) *body {
	return &body{declared: int64(len(content)), kept: int64(len(content)), last: []byte(content), closed: true}
}

var payloadCases = []struct {
	golden  string
	options opts
	capture capture
}{
	{"get", nil, capture{
		method: "GET", uri: "/", host: "blog.example.com", proto: "HTTP/1.1", remote: "10.42.0.9:51514", sequence: 1,
	}},
	{"full", opts{
		"cookieNames": "visitor_id", "attributes": map[string]string{"environment": "production", "team": `"core" & <more>`},
		"trustForwardHeader": true,
	}, capture{
		method: "POST", uri: "/api/comments?lang=en&sig=abc", host: "blog.example.com", proto: "HTTP/2.0", remote: "10.42.0.9:51514",
		secure: tls.VersionTLS13, sequence: 4711,
		header: http.Header{
			"Accept": {"application/json"}, "Authorization": {"Bearer abc"}, "Content-Type": {"application/json"}, "Cookie": {"visitor_id=v-82f1; sid=1"},
			"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}, "User-Agent": {"curl/8.7.1"},
			"X-Forwarded-For": {"203.0.113.7, 10.0.0.1"}, "X-Request-Id": {"r-1"},
		},
		body: wholeBody(`{"post":42,"text":"buy <b>cheap</b> pills"}`),
	}},
	{"binary-cut", opts{"requestID": "X-Trace"}, capture{
		method: "PUT", uri: "/f%2Fo?a=%zz\"\\\t", host: "[2001:db8::1]:8443", proto: "HTTP/1.0", remote: "[fe80::1%eth0]:9", sequence: 18446744073709551615,
		header: http.Header{"X-Trace": {"\xffoo"}},
		body:   &body{declared: -1, kept: 4, beyond: 1000, last: []byte{0xff, 0, 0xfe, '"'}, closed: true, cut: cutLimit},
	}},
	{"nothing-kept", opts{"format": "json"}, capture{
		method: "PATCH", uri: "*", host: "", proto: "HTTP/3.0", remote: "10.42.0.9:51514", sequence: 2,
		body: &body{declared: 9, beyond: 9, closed: true, cut: cutDisabled},
	}},
}

func TestGoldenPayloads(t *testing.T) {
	for _, c := range payloadCases {
		p := stillPipeline(t, c.options)
		set := *p.set
		set.source = "//host/middlewares/mirror@file"
		p.set = &set
		p.form = fmt.Sprintf(numbersForm, "01992f5e00c1")
		p.origin = fmt.Sprintf(originForm, quote(set.source))
		taken := c.capture
		taken.set = p.set
		taken.at = goldenTime
		payload := encode(p, &taken, &delivery{id: "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913"})
		eventOf(t, payload)
		indented := &bytes.Buffer{}
		if err := json.Indent(indented, payload, "", "  "); err != nil {
			t.Fatal(err)
		}
		golden(t, "payload-"+c.golden+".json", append(indented.Bytes(), '\n'))
	}
}

func TestSourceIsQuoted(t *testing.T) {
	for _, name := range []string{"mirror@file", `a"b\c%s 100% ü`, "default-mirror@kubernetescrd"} {
		set, _, _ := readSettings(configOf(nil), name)
		p := newPipeline(set, set.targets[0], newLedger(name, ""), newBudget(set.memoryLimit), 1)
		e := eventFrom(t, p, &capture{set: set, method: "GET", uri: "/", proto: "HTTP/1.1"})
		if e.Source != set.source || !strings.HasPrefix(e.Source, "//") || e.Sequence != "000000000001-00000000000000000000" {
			t.Errorf("middleware %q: got source %q, sequence %q; want %q", name, e.Source, e.Sequence, set.source)
		}
	}
}

// RFC 9562, 5.7.
var uuidForm = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

func TestIDIsUUIDv7OfTheArrival(t *testing.T) {
	p := stillPipeline(t, nil)
	seen := map[string]bool{}
	variants := map[byte]bool{}
	for _, ms := range []int64{0, 1, 0xffff, 0x10000, 1758188467184, 1<<48 - 1} {
		for i := 0; i < 200; i++ {
			d := &delivery{}
			encode(p, &capture{set: p.set, at: time.UnixMilli(ms), method: "GET", uri: "/", proto: "HTTP/1.1"}, d)
			id := d.id
			if !uuidForm.MatchString(id) {
				t.Fatalf("got %q; want a UUIDv7", id)
			}
			if got, want := strings.ReplaceAll(id, "-", "")[:12], fmt.Sprintf("%012x", ms); got != want {
				t.Fatalf("got time %s in %s; want %s", got, id, want)
			}
			if seen[id] {
				t.Fatalf("got %s twice", id)
			}
			seen[id] = true
			variants[id[19]] = true
		}
	}
	if len(variants) != 4 {
		t.Errorf("got %d forms of the variant; want 4, as its other bits are random", len(variants))
	}
}

var uriCases = []struct{ uri, path, query string }{
	{"/", "/", ""},
	{"/a%2Fb?c=d", "/a%2Fb", "c=d"},
	{"/a?b?c", "/a", "b?c"},
	{"/a?", "/a", ""},
	{"//a/b", "//a/b", ""},
	{"/a//b/../c", "/a//b/../c", ""},
	{"/http://x/y", "/http://x/y", ""},
	{"/a?u=http://x/y", "/a", "u=http://x/y"},
	{"http://example.com/a/b?c", "/a/b", "c"},
	{"https://example.com:8443/a", "/a", ""},
	{"http://example.com", "/", ""},
	{"http://example.com?c", "/", "c"},
	{"*", "*", ""},
	{"example.com:443", "example.com:443", ""},
	{"", "/", ""},
	{"?a=1", "/", "a=1"},
}

func TestPathAndQueryAreAsTheyWereSent(t *testing.T) {
	p := stillPipeline(t, nil)
	for _, c := range uriCases {
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: c.uri, proto: "HTTP/1.1"})
		query := ""
		if e.Data.URL.Query != nil {
			query = *e.Data.URL.Query
		}
		if e.Data.URL.Path != c.path || query != c.query || e.Subject != c.path {
			t.Errorf("%q: got path %q, query %q, subject %q; want %q, %q", c.uri, e.Data.URL.Path, query, e.Subject, c.path, c.query)
		}
	}
}

// A strict receiver refuses an event with another subject, and the whole batch that it is in.
func TestSubjectIsAStringOfCloudEvents(t *testing.T) {
	for given, want := range map[string]string{
		"/caf\u00e9/\U0001f600":         "/caf\u00e9/\U0001f600",
		"/a\u0085b\u009fc":              "/a%C2%85b%C2%9Fc",
		"/\u007f":                       "/%7F",
		"/\ufdd0\uffff\U0010ffff":       "/%EF%B7%90%EF%BF%BF%F4%8F%BF%BF",
		"/\u00a0\ufffd\ufeff\U0001fffd": "/\u00a0\ufffd\ufeff\U0001fffd",
		"/%C2%85":                       "/%C2%85",
	} {
		p := stillPipeline(t, nil)
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: given + "?\u0085", proto: "HTTP/1.1"})
		if e.Subject != want || e.Data.URL.Path != given {
			t.Errorf("%q: got subject %q, path %q; want %q, and the path as it was sent", given, e.Subject, e.Data.URL.Path, want)
		}
	}
}

func TestWhatIsNotThereIsNotSent(t *testing.T) {
	p := stillPipeline(t, nil)
	for _, uri := range []string{"", "?a=1"} {
		payload := string(encode(p, &capture{set: p.set, method: "GET", uri: uri, proto: "HTTP/1.1"}, &delivery{id: "1"}))
		for _, name := range []string{"traceparent", "cookie", "body", "server", "user_agent", "tls", "request_id", "attributes"} {
			if strings.Contains(payload, `"`+name+`":`) {
				t.Errorf("request target %q: got %s in %s; want none, as there is none", uri, name, payload)
			}
		}
		if uri == "" && strings.Contains(payload, `"query":`) {
			t.Errorf("got a query in %s; want none", payload)
		}
	}
}

func TestProtocolVersion(t *testing.T) {
	p := stillPipeline(t, nil)
	for proto, want := range map[string]string{"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2", "HTTP/3.0": "3", "HTTP/1.2": "1.2"} {
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: proto})
		if got := e.Data.Network.Protocol; got.Name != "http" || got.Version != want {
			t.Errorf("%s: got %+v; want http %s", proto, got, want)
		}
	}
	for version, want := range map[uint16]string{tls.VersionTLS10: "1.0", tls.VersionTLS12: "1.2", tls.VersionTLS13: "1.3"} {
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/2.0", secure: version})
		if e.Data.TLS == nil || e.Data.TLS.Protocol.Version != want || e.Data.URL.Scheme != "https" {
			t.Errorf("TLS %x: got %+v, scheme %s; want %s, https", version, e.Data.TLS, e.Data.URL.Scheme, want)
		}
	}
}

func TestServerAddress(t *testing.T) {
	p := stillPipeline(t, nil)
	for _, c := range []struct {
		host, address string
		port, secured int
	}{
		{"example.com", "example.com", 80, 443},
		{"example.com:8080", "example.com", 8080, 8080},
		{"10.0.0.1:1", "10.0.0.1", 1, 1},
		{"[::1]:65535", "::1", 65535, 65535},
		{"[::1]", "::1", 80, 443},
		{"::1", "::1", 80, 443},
		{"example.com:", "example.com", 80, 443},
		{"example.com:0", "example.com", 80, 443},
		{"example.com:65536", "example.com", 80, 443},
		{"example.com:+80", "example.com", 80, 443},
		{"example.com:http", "example.com", 80, 443},
		{`a"b`, `a"b`, 80, 443},
	} {
		for port, secure := range map[int]uint16{c.port: 0, -c.secured: tls.VersionTLS13} {
			if port < 0 {
				port = -port
			}
			e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", host: c.host, secure: secure})
			if got := e.Data.Server; got == nil || got.Address != c.address || got.Port == nil || *got.Port != port {
				t.Errorf("Host %q: got %+v; want %s, %d", c.host, got, c.address, port)
			}
		}
	}
}

func TestPeerAndClientAddress(t *testing.T) {
	for _, c := range []struct {
		name      string
		trust     bool
		remote    string
		forwarded []string
		real      string
		peer      string
		client    string
	}{
		{name: "the peer", remote: "10.0.0.1:5", peer: "10.0.0.1", client: "10.0.0.1"},
		{name: "an IPv6 peer", remote: "[2001:db8::1]:5", peer: "2001:db8::1", client: "2001:db8::1"},
		{name: "headers are not trusted by default", remote: "10.0.0.1:5", forwarded: []string{"1.2.3.4"}, real: "1.2.3.5", peer: "10.0.0.1", client: "10.0.0.1"},
		{name: "the left end of X-Forwarded-For", trust: true, remote: "10.0.0.1:5", forwarded: []string{" 1.2.3.4 , 5.6.7.8"}, real: "1.2.3.5", peer: "10.0.0.1", client: "1.2.3.4"},
		{name: "the first of several lines", trust: true, remote: "10.0.0.1:5", forwarded: []string{"1.2.3.4", "5.6.7.8"}, peer: "10.0.0.1", client: "1.2.3.4"},
		{name: "IPv6 in brackets", trust: true, remote: "10.0.0.1:5", forwarded: []string{"[2001:DB8::1]"}, peer: "10.0.0.1", client: "2001:db8::1"},
		{name: "an address with a port, as Azure's gateway has it", trust: true, remote: "10.0.0.1:5", forwarded: []string{"1.2.3.4:5678, 10.0.0.2:80"}, peer: "10.0.0.1", client: "1.2.3.4"},
		{name: "IPv6 with a port", trust: true, remote: "10.0.0.1:5", forwarded: []string{"[2001:db8::1]:5678"}, peer: "10.0.0.1", client: "2001:db8::1"},
		{name: "IPv6 without brackets", trust: true, remote: "10.0.0.1:5", forwarded: []string{"2001:db8::1"}, peer: "10.0.0.1", client: "2001:db8::1"},
		{name: "X-Real-Ip when there is no other", trust: true, remote: "10.0.0.1:5", real: "1.2.3.5", peer: "10.0.0.1", client: "1.2.3.5"},
		{name: "X-Real-Ip when the other is no address", trust: true, remote: "10.0.0.1:5", forwarded: []string{"unknown"}, real: "1.2.3.5", peer: "10.0.0.1", client: "1.2.3.5"},
		{name: "the peer when headers hold no address", trust: true, remote: "10.0.0.1:5", forwarded: []string{`"},{`}, real: "", peer: "10.0.0.1", client: "10.0.0.1"},
	} {
		p := stillPipeline(t, opts{"trustForwardHeader": c.trust})
		header := http.Header{}
		if c.forwarded != nil {
			header["X-Forwarded-For"] = c.forwarded
		}
		if c.real != "" {
			header.Set("X-Real-Ip", c.real)
		}
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", remote: c.remote, header: header})
		peer := e.Data.Network.Peer
		client := e.Data.Client
		if peer == nil || peer.Address != c.peer || peer.Port == nil || *peer.Port != 5 {
			t.Errorf("%s: got peer %+v; want %s, 5", c.name, peer, c.peer)
		}
		if client == nil || client.Address != c.client {
			t.Errorf("%s: got client %+v; want %s", c.name, client, c.client)
		}
	}
}

// Middlewares are tested with requests that no server has read.
func TestARequestThatWasMadeHasTheTargetOfItsURL(t *testing.T) {
	for _, body := range []string{"", "text"} {
		for _, o := range []opts{nil, {"captureResponse": "status"}, {"includePaths": "^/api/"}} {
			p := stillPipeline(t, o)
			req, err := http.NewRequest("POST", "http://localhost/api/a%20b?lang=en", strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			newMirror(answer(""), p.set, []*pipeline{p}).ServeHTTP(httptest.NewRecorder(), req)
			if len(p.queue) != 1 {
				t.Fatalf("%v, body %q: got %d events; want 1", o, body, len(p.queue))
			}
			e := eventFrom(t, p, <-p.queue)
			if e.Data.URL.Path != "/api/a%20b" || e.Data.URL.Query == nil || *e.Data.URL.Query != "lang=en" {
				t.Errorf("%v, body %q: got %+v; want /api/a%%20b and lang=en", o, body, e.Data.URL)
			}
		}
	}
}

func TestTraceparent(t *testing.T) {
	const valid = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	p := stillPipeline(t, nil)
	for _, c := range []struct {
		values []string
		want   string
	}{
		{[]string{valid}, valid},
		{nil, ""},
		{[]string{""}, ""},
		{[]string{valid, valid}, ""},
		{[]string{strings.ToUpper(valid)}, ""},
		{[]string{"ff" + valid[2:]}, ""},
		{[]string{"00-00000000000000000000000000000000-00f067aa0ba902b7-01"}, ""},
		{[]string{"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"}, ""},
		{[]string{valid + "-x"}, ""},
		{[]string{valid + "\n"}, ""},
		{[]string{`00-"`}, ""},
	} {
		d := &delivery{id: "1"}
		e := eventOf(t, encode(p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: http.Header{"Traceparent": c.values}}, d))
		if e.Traceparent != c.want || d.traceparent != c.want {
			t.Errorf("%q: got %q in the event, %q in the header; want %q", c.values, e.Traceparent, d.traceparent, c.want)
		}
	}
}

func TestCutTextEndsOnACharacterBoundary(t *testing.T) {
	for _, text := range []string{"aé", "é", "x€y", "€", "a😀", "😀é€a", "a\u0301", "\ufffd"} {
		for i := 0; i <= len(text); i++ {
			want := text[:i]
			for !utf8.ValidString(want) {
				want = want[:len(want)-1]
			}
			if got := wholeRunes(text[:i]); got != want {
				t.Errorf("%q cut at %d: got %q; want %q", text, i, got, want)
			}
		}
	}
	for _, binary := range []string{"\xff\xfe\xe2\x82", "\x80\x80\x80\x80", "abc\xff", "\xff"} {
		if got := wholeRunes(binary); got != binary {
			t.Errorf("%q, which is no text: got %q; want it as it is", binary, got)
		}
	}
}

func TestEncodeBody(t *testing.T) {
	for _, c := range []struct {
		name string
		body *body
		want string
	}{
		{"text", wholeBody("abc"), `{"content":"abc","size":3,"truncated":false}`},
		{"nothing, of a chunked body", &body{declared: -1, closed: true, ended: true}, `{"content":"","size":0,"truncated":false}`},
		{"a whole body that ends within a character is no text", wholeBody("a\xe2\x82"), `{"content_base64":"YeKC","size":3,"truncated":false}`},
		{"a zero byte is text", wholeBody("\x00"), `{"content":"\u0000","size":1,"truncated":false}`},
		{"a cut text", &body{kept: 3, beyond: 7, last: []byte("a\xe2\x82"), closed: true, cut: cutLimit}, `{"content":"a","size":10,"truncated":true,"truncated_reason":"limit"}`},
		{"a cut of which not one character is left", &body{kept: 2, beyond: 7, last: []byte("\xe2\x82"), closed: true, cut: cutLimit}, `{"size":9,"truncated":true,"truncated_reason":"limit"}`},
		{"parts", &body{kept: 3, full: [][]byte{[]byte("a"), []byte("b")}, last: []byte("c"), closed: true}, `{"content":"abc","size":3,"truncated":false}`},
		{"a character over two parts", &body{kept: 3, full: [][]byte{[]byte("\xe2\x82")}, last: []byte("\xac"), closed: true}, `{"content":"€","size":3,"truncated":false}`},
	} {
		got, err := json.Marshal(encodeBody(&capture{set: &settings{}}, c.body, nil))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: got %s, %v; want %s", c.name, got, err, c.want)
		}
	}
}
