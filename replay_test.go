package requestmirror

import (
	"bytes"
	"crypto/tls"
	"io"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// repeated are the options of a mirror that sends requests on.
func repeated(more opts) opts {
	all := opts{"format": "request"}
	for name, value := range more {
		all[name] = value
	}
	return all
}

// drained is a backend that reads the body and answers.
var drained = http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
	_, _ = io.Copy(io.Discard, req.Body)
})

func TestPathAndQueryOfACopyStandBehindTheReceivers(t *testing.T) {
	for _, c := range []struct {
		name    string
		options opts
		base    string // behind the receiver's host
		uri     string
		want    string
	}{
		{name: "a path", uri: "/a/b", want: "/a/b"},
		{name: "the root", uri: "/", want: "/"},
		{name: "behind a path", base: "/in", uri: "/a", want: "/in/a"},
		{name: "behind a path with a slash at its end", base: "/in/", uri: "/a", want: "/in/a"},
		{name: "behind a slash", base: "/", uri: "/a", want: "/a"},
		{name: "the root behind a path", base: "/in", uri: "/", want: "/in/"},
		{name: "a slash at the end stays", base: "/in", uri: "/a/", want: "/in/a/"},
		{name: "an escaped slash stays", uri: "/a%2Fb", want: "/a%2Fb"},
		{name: "an escaped slash behind an escaped slash", base: "/x%2fy", uri: "/a%2Fb", want: "/x%2fy/a%2Fb"},
		{name: "two slashes are no host", uri: "//x", want: "//x"},
		{name: "two slashes behind a path", base: "/in", uri: "//x//y", want: "/in//x//y"},
		{name: "what need not be escaped but was", uri: "/%7Euser/%41", want: "/%7Euser/%41"},
		{name: "escapes in lower case", uri: "/%c3%a9%2f", want: "/%c3%a9%2f"},
		{name: "odd but valid characters", uri: "/a;b:c@d&e=f+g$h,i!j*k'l(m)n~o-p_q.r[s]", want: "/a;b:c@d&e=f+g$h,i!j*k'l(m)n~o-p_q.r[s]"},
		{name: "dots are no business of ours", uri: "/a/../b/./c", want: "/a/../b/./c"},
		{name: "an escaped percent sign", uri: "/100%25", want: "/100%25"},
		{name: "an escaped null byte", uri: "/a%00b", want: "/a%00b"},
		{name: "an escaped question mark", uri: "/a%3Fb", want: "/a%3Fb"},
		{name: "what may not be in a path is escaped, and only that", uri: "/a|b\"c{d}%2F%7E", want: "/a%7Cb%22c%7Bd%7D%2F%7E"},
		{name: "bytes beyond ASCII", uri: "/caf\xc3\xa9%2F\xff", want: "/caf%C3%A9%2F%FF"},
		{name: "two slashes and what may not be in a path", uri: "//x|%2F", want: "//x%7C%2F"},
		{name: "a space, which HTTP/2 lets pass", uri: "/a b?c d", want: "/a%20b?c%20d"},
		{name: "a query", uri: "/?a=1&b=%20&c&=&&d==+;e", want: "/?a=1&b=%20&c&=&&d==+;e"},
		{name: "a query with question marks", uri: "/?a?b=c?", want: "/?a?b=c?"},
		{name: "a query that is no UTF-8 and not well escaped", uri: "/?a=\xff&b=%zz&c=\"|\"", want: "/?a=\xff&b=%zz&c=\"|\""},
		{name: "a query that is empty", uri: "/a?", want: "/a?"},
		{name: "a query behind the receiver's", base: "/in?token=x", uri: "/a?b=c", want: "/in/a?token=x&b=c"},
		{name: "no query behind the receiver's", base: "/in?token=x", uri: "/a", want: "/in/a?token=x"},
		{name: "an empty query behind the receiver's", base: "/in?token=x", uri: "/a?", want: "/in/a?token=x"},
		{name: "no path but a query of the receiver's", base: "?token=x", uri: "/a?b", want: "/a?token=x&b"},
		{name: "the fragment of the receiver's URL is not sent", base: "/in#here", uri: "/a", want: "/in/a"},
		{name: "an absolute target", base: "/in", uri: "http://other.test/a%2Fb?c=d", want: "/in/a%2Fb?c=d"},
		{name: "an absolute target without a path", base: "/in", uri: "http://other.test?c=d", want: "/in/?c=d"},
		{name: "a target that is neither", base: "/in", uri: "urn:x", want: "/in/urn:x"},
		{name: "a target that is neither, and not well escaped", base: "/in", uri: "urn:%/%zz%2F%4", want: "/in/urn:%25/%25zz%252F%254"},
		{name: "the whole server", base: "/in", uri: "*", want: "/in"},
		{name: "a signature in the query is hidden unless the operator lets it go", uri: "/?sig=abc&a=1", want: "/?sig=REDACTED&a=1"},
		{name: "a signature that the operator keeps", options: opts{"queryParameters.names": map[string]string{"sig": "keep"}}, uri: "/?sig=abc", want: "/?sig=abc"},
		{name: "a parameter that is dropped", options: opts{"queryParameters.names": map[string]string{"key": "drop"}}, uri: "/?key=abc&a=1", want: "/?a=1"},
		{name: "the only parameter is dropped", options: opts{"queryParameters.names": map[string]string{"key": "drop"}}, uri: "/?key=abc", want: "/"},
		{name: "a parameter that is hashed", options: opts{"queryParameters.names": map[string]string{"key": "hash"}, "hashKey": "k"}, uri: "/?key=abc",
			want: "/?key=" + pseudonym([]byte("k"), "abc")},
	} {
		options := repeated(c.options)
		options["watchURL"] = "http://receiver.test" + c.base
		set := settingsOf(t, options)
		to := behind(set.targets[0].url, &capture{set: set, uri: c.uri})
		if got := to.RequestURI(); got != c.want {
			t.Errorf("%s: %s behind %s: got %q; want %q", c.name, c.uri, c.base, got, c.want)
		}
		if to.Host != "receiver.test" || to.Scheme != "http" {
			t.Errorf("%s: got %s://%s; want the receiver", c.name, to.Scheme, to.Host)
		}
		again, err := url.ParseRequestURI(to.RequestURI())
		if err != nil || again.Path != to.Path && to.Path != "" {
			t.Errorf("%s: got a target that reads as %v, %v; want %q", c.name, again, err, to.Path)
		}
	}
}

func TestHeaderOfACopy(t *testing.T) {
	key := []byte("k")
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	// What is added to every header below.
	added := map[string]string{"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "example.com", "X-Forwarded-Proto": "http", "User-Agent": ""}
	for _, c := range []struct {
		name    string
		options opts
		header  http.Header
		tls     bool
		remote  string
		want    http.Header // with nil for what is not there though it is added otherwise
	}{
		{name: "all values in their order", header: http.Header{"Accept": {"b", "a", "b"}, "X-Empty": {""}}, want: http.Header{"Accept": {"b", "a", "b"}, "X-Empty": {""}}},
		{name: "what is of the connection stays there", header: http.Header{
			"Connection": {"close, X-Private ,", "x-also"}, "X-Private": {"1"}, "X-Also": {"1"}, "Keep-Alive": {"1"}, "Proxy-Connection": {"1"}, "Te": {"trailers"},
			"Trailer": {"X-Sum"}, "Transfer-Encoding": {"chunked"}, "Upgrade": {"h2c"}, "Proxy-Authenticate": {"1"}, "Proxy-Authorization": {"1"},
			"Expect": {"100-continue"}, "X-Kept": {"1"},
		}, want: http.Header{"X-Kept": {"1"}}},
		{name: "a user agent", header: http.Header{"User-Agent": {"curl/8"}}, want: http.Header{"User-Agent": {"curl/8"}}},
		{name: "an empty user agent", header: http.Header{"User-Agent": {""}}, want: http.Header{}},
		{name: "a user agent that is dropped", options: opts{"headers.names": map[string]string{"user-agent": "drop"}}, header: http.Header{"User-Agent": {"curl/8"}}, want: http.Header{}},
		{name: "credentials are hidden", header: http.Header{"Authorization": {"Bearer a", "Basic b"}, "X-Api-Key": {"c"}},
			want: http.Header{"Authorization": {"REDACTED", "REDACTED"}, "X-Api-Key": {"REDACTED"}}},
		{name: "credentials that the operator keeps", options: opts{"headers.names": map[string]string{"authorization": "keep"}}, header: http.Header{"Authorization": {"Bearer a"}},
			want: http.Header{"Authorization": {"Bearer a"}}},
		{name: "credentials that are dropped", options: opts{"headers.names": map[string]string{"AUTHORIZATION": "drop"}}, header: http.Header{"Authorization": {"Bearer a"}}, want: http.Header{}},
		{name: "credentials that are hashed", options: opts{"headers.names": map[string]string{"Authorization": "hash"}, "hashKey": "k"}, header: http.Header{"Authorization": {"Bearer a"}},
			want: http.Header{"Authorization": {pseudonym(key, "Bearer a")}}},
		{name: "drop all but some", options: opts{"headers.defaultMode": "drop", "headers.names": map[string]string{"Accept": "keep"}}, header: http.Header{"Accept": {"a"}, "X-Other": {"b"}},
			want: http.Header{"Accept": {"a"}, "X-Forwarded-For": nil, "X-Forwarded-Host": nil, "X-Forwarded-Proto": nil}},
		{name: "no cookie", header: http.Header{"Cookie": {"a=1; b=2"}}, want: http.Header{}},
		{name: "cookies by name, as they were sent", options: opts{"cookieNames": "a,v*"}, header: http.Header{"Cookie": {"a=1; session=SECRET; visitor=\"x y\"", "b=2;a=3;; a", "SECRET"}},
			want: http.Header{"Cookie": {"a=1; visitor=\"x y\"; a=3; a"}}},
		{name: "a cookie whose name only ends in one", options: opts{"cookieNames": "a"}, header: http.Header{"Cookie": {"ba=1; a%3D=2; A=3"}}, want: http.Header{}},
		{name: "over TLS", tls: true, want: http.Header{"X-Forwarded-Proto": {"https"}}},
		{name: "behind other proxies", header: http.Header{"X-Forwarded-For": {"203.0.113.7", "198.51.100.2, 198.51.100.3"}, "X-Forwarded-Host": {"outer.test"}, "X-Forwarded-Proto": {"wss"}},
			want: http.Header{"X-Forwarded-For": {"203.0.113.7, 198.51.100.2, 198.51.100.3, 192.0.2.1"}, "X-Forwarded-Host": {"outer.test"}, "X-Forwarded-Proto": {"wss"}}},
		{name: "IPv6", remote: "[2001:db8::1]:1234", want: http.Header{"X-Forwarded-For": {"2001:db8::1"}}},
		{name: "a peer without an address", remote: "@", want: http.Header{"X-Forwarded-For": nil}},
		{name: "a handler that wants no X-Forwarded-For", header: http.Header{"X-Forwarded-For": nil}, want: http.Header{"X-Forwarded-For": nil}},
		{name: "the address of the client is dropped", options: opts{"headers.names": map[string]string{"X-Forwarded-For": "drop"}}, header: http.Header{"X-Forwarded-For": {"203.0.113.7"}},
			want: http.Header{"X-Forwarded-For": nil}},
		{name: "the address of the client is hashed", options: opts{"headers.names": map[string]string{"X-Forwarded-For": "hash"}, "hashKey": "k"},
			want: http.Header{"X-Forwarded-For": {pseudonym(key, "192.0.2.1")}}},
		{name: "a trace is kept with its state", header: http.Header{"Traceparent": {trace}, "Tracestate": {"a=1", "b=2"}}, want: http.Header{"Traceparent": {trace}, "Tracestate": {"a=1", "b=2"}}},
		{name: "the state of a trace that is not valid goes", header: http.Header{"Traceparent": {trace[:50]}, "Tracestate": {"a=1"}}, want: http.Header{"Traceparent": {trace[:50]}}},
		{name: "state without a trace", header: http.Header{"Tracestate": {"a=1"}}, want: http.Header{}},
		{name: "webhooks of the sender keep their headers", header: http.Header{"Webhook-Id": {"msg_1"}, "Webhook-Timestamp": {"1"}, "Webhook-Signature": {"v1,a"}, "X-Hub-Signature-256": {"sha256=ab"}},
			want: http.Header{"Webhook-Id": {"msg_1"}, "Webhook-Timestamp": {"1"}, "Webhook-Signature": {"v1,a"}, "X-Hub-Signature-256": {"sha256=ab"}}},
	} {
		set := settingsOf(t, repeated(c.options))
		captured := &capture{set: set, host: "example.com", remote: "192.0.2.1:1234", header: c.header}
		if captured.header == nil {
			captured.header = http.Header{}
		}
		if c.remote != "" {
			captured.remote = c.remote
		}
		if c.tls {
			captured.secure = tls.VersionTLS13
		}
		before := captured.header.Clone()
		want := c.want.Clone()
		for name, value := range added {
			if _, given := want[name]; !given {
				want[name] = []string{value}
			}
		}
		got := headerOf(captured)
		for name, values := range want {
			if len(values) == 0 {
				delete(want, name)
			}
		}
		for name, values := range got {
			if len(values) == 0 {
				delete(got, name) // nothing is sent of it
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q; want %q", c.name, got, want)
		}
		if !reflect.DeepEqual(captured.header, before) {
			t.Errorf("%s: got the captured header changed to %q; want it as it was for other receivers", c.name, captured.header)
		}
	}
}

func TestCopyOnTheWire(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{
		"watchURL":             strings.Replace(rec.url, "://", "://user:pass@", 1) + "/in?token=x",
		"customRequestHeaders": map[string]string{"X-Tenant": "a", "Accept": "text/plain"}, "signingSecrets": secretOf(strings.Repeat("s", 24)),
	}))
	req := httptest.NewRequest("PROPFIND", "http://example.com/a%2Fb?c=d", strings.NewReader("body"))
	req.Header = http.Header{
		"Accept": {"text/html"}, "X-Tenant": {"of the client"}, "X-Many": {"2", "1"}, "Authorization": {"Bearer of the client"}, "Content-Type": {"text/x"},
		"Webhook-Id": {"msg_1"}, "X-Mirrored-Id": {"forged"}, "Requestmirror-Delivery": {"forged"},
	}
	serve(handler, req)
	got := rec.wait(t, 1)[0]
	at, _ := url.Parse(rec.url)
	if got.method != "PROPFIND" || got.uri != "/in/a%2Fb?token=x&c=d" || got.host != at.Host || string(got.payload) != "body" {
		t.Errorf("got %s %s at %s with %q; want the request behind the receiver's path", got.method, got.uri, got.host, got.payload)
	}
	sequence := got.header.Get(mirroredSequence)
	if sequence != pipelineOf(t).boot+"-00000000000000000001" {
		t.Errorf("got %s %q; want the first of this boot", mirroredSequence, sequence)
	}
	mark := got.header.Get(markerHeader)
	if seconds, _, _ := strings.Cut(mark, ",v1,"); seconds == "" || len(seconds) == len(mark) {
		t.Errorf("got marker %q; want one with its time", mark)
	}
	want := http.Header{
		"Accept": {"text/plain"}, "X-Tenant": {"a"}, "X-Many": {"2", "1"}, "Authorization": {"Basic dXNlcjpwYXNz"}, "Content-Type": {"text/x"}, "Content-Length": {"4"},
		"Webhook-Id": {"msg_1"}, "X-Forwarded-For": {"192.0.2.1"}, "X-Forwarded-Host": {"example.com"}, "X-Forwarded-Proto": {"http"},
		mirroredFrom: {pipelineOf(t).set.source}, mirroredID: {got.header.Get(mirroredID)}, mirroredSequence: {sequence},
		markerHeader: {mark}, "Traceparent": {got.header.Get("Traceparent")},
	}
	if !reflect.DeepEqual(got.header, want) {
		t.Errorf("got header\n%q; want\n%q", got.header, want)
	}
	if id := got.header.Get(mirroredID); len(id) != idLength || id[14] != '7' {
		t.Errorf("got id %q; want a UUIDv7", id)
	}
	waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == 1 })
}

// pipelineOf is the test's only pipeline.
func pipelineOf(t *testing.T) *pipeline {
	t.Helper()
	registryMu.Lock()
	defer registryMu.Unlock()
	if len(existing) != 1 {
		t.Fatalf("got %d pipelines; want one", len(existing))
	}
	return existing[0]
}

func TestHostOfACopyIsWhatTheOperatorSays(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url, "customRequestHeaders": map[string]string{"host": "shadow.test"}}))
	serve(handler, get("/"))
	if got := rec.wait(t, 1)[0]; got.host != "shadow.test" || got.header.Get("X-Forwarded-Host") != "example.com" {
		t.Errorf("got host %q, X-Forwarded-Host %q; want shadow.test, and the original's", got.host, got.header.Get("X-Forwarded-Host"))
	}
}

func TestCopyHasTheWholeBody(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url}))
	random := rand.New(rand.NewSource(1))
	n := 0
	for _, size := range append([]int{0, 1 << 20}, bodySizes...) {
		for _, length := range []int64{int64(size), -1} {
			content := make([]byte, size)
			_, _ = random.Read(content)
			req := uploadOf(&upload{rest: content, step: 30000, end: io.EOF}, length)
			serve(handler, req)
			n++
			got := rec.wait(t, n)[n-1]
			if !bytes.Equal(got.payload, content) {
				t.Fatalf("a body of %d bytes, announced as %d: got %d bytes, not those; want them all", size, length, len(got.payload))
			}
			if announced := got.header.Get("Content-Length"); announced != strconv.Itoa(size) {
				t.Errorf("a body of %d bytes, announced as %d: got Content-Length %q", size, length, announced)
			}
		}
	}
	waitFor(t, "all deliveries", func() bool { return tallyOf(t).Delivered == uint64(n) })
	if held := tallyOf(t).BytesHeld; held != 0 {
		t.Errorf("got %d bytes held at the end; want none", held)
	}
}

func TestCopyWithoutABodyHasNone(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url}))
	for i, method := range []string{"GET", "HEAD", "DELETE", "OPTIONS"} {
		serve(handler, httptest.NewRequest(method, "/", nil))
		got := rec.wait(t, i+1)[i]
		if got.method != method || len(got.payload) > 0 || got.header.Get("Transfer-Encoding") != "" || got.header.Get("Content-Length") != "" {
			t.Errorf("got %s with %q and %q; want %s without a body", got.method, got.header, got.payload, method)
		}
	}
}

func TestEveryAttemptSendsTheWholeCopy(t *testing.T) {
	rec := newReceiver(t, 503, 429, 500, 200)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url, "retry.attempts": 4, "retry.initialInterval": "1ms"}))
	content := textOf(300 << 10)
	serve(handler, uploadOf(&upload{rest: content, step: 1 << 20, end: io.EOF}, int64(len(content))))
	posts := rec.wait(t, 4)
	waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == 1 })
	for i, got := range posts {
		if !bytes.Equal(got.payload, content) {
			t.Errorf("attempt %d: got %d bytes; want the whole body", i+1, len(got.payload))
		}
		for _, name := range []string{mirroredID, mirroredSequence, "Traceparent"} {
			if got.header.Get(name) != posts[0].header.Get(name) || got.header.Get(name) == "" {
				t.Errorf("attempt %d: got %s %q; want the first one's, %q", i+1, name, got.header.Get(name), posts[0].header.Get(name))
			}
		}
	}
	if n := tallyOf(t); n.Retried != 3 || n.BytesHeld != 0 {
		t.Errorf("got %+v; want 3 retried and no bytes held", n)
	}
}

func TestCopiesForSeveralReceivers(t *testing.T) {
	recs := []*receiver{newReceiver(t), newReceiver(t, 503, 200), newReceiver(t)}
	handler := mirrorOf(t, drained, repeated(opts{
		"watchURL": nil, "watchURLs": []string{recs[0].url, recs[1].url, recs[2].url}, "retry.initialInterval": "1ms",
	}))
	content := textOf(200 << 10)
	for i := 0; i < 5; i++ {
		serve(handler, uploadOf(&upload{rest: content, step: 1 << 20, end: io.EOF}, int64(len(content))))
	}
	ids := map[string]string{} // with the trace
	for i, rec := range recs {
		waitFor(t, "five deliveries to each", func() bool { return talliesOf(t)[rec.url].Delivered == 5 })
		own := map[string]bool{}
		for _, got := range rec.wait(t, 5) {
			if !bytes.Equal(got.payload, content) {
				t.Errorf("receiver %d: got %d bytes; want the whole body", i+1, len(got.payload))
			}
			own[got.header.Get(mirroredSequence)] = true
			if i == 0 {
				ids[got.header.Get(mirroredID)] = got.header.Get("Traceparent")
			} else if trace := ids[got.header.Get(mirroredID)]; trace == "" || trace != got.header.Get("Traceparent") {
				t.Errorf("receiver %d: got id %s in trace %s; want both as at the first one, %v", i+1, got.header.Get(mirroredID), got.header.Get("Traceparent"), ids)
			}
		}
		if len(own) != 5 {
			t.Errorf("receiver %d: got sequence numbers %v; want five", i+1, own)
		}
	}
	if len(ids) != 5 {
		t.Errorf("got ids %v; want five", ids)
	}
}

func TestTraceOfACopy(t *testing.T) {
	const given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url}))
	begun := map[string]bool{}
	for i, header := range []http.Header{
		{"Traceparent": {given}, "Tracestate": {"a=1"}},
		{},
		{"Traceparent": {"00-00000000000000000000000000000000-00f067aa0ba902b7-01"}, "Tracestate": {"a=1"}},
		{"Traceparent": {given, given}, "Tracestate": {"a=1"}},
		{"Traceparent": {"ff" + given[2:]}, "Tracestate": {"a=1"}},
		{"Tracestate": {"a=1"}},
	} {
		req := get("/")
		req.Header = header
		serve(handler, req)
		got := rec.wait(t, i+1)[i].header
		if i == 0 {
			if got.Get("Traceparent") != given || got.Get("Tracestate") != "a=1" {
				t.Errorf("got trace %q, state %q; want the request's", got.Get("Traceparent"), got.Get("Tracestate"))
			}
			continue
		}
		trace := traceparentOf(got)
		if trace == "" || trace[:3] != "00-" || trace[52:] != "-01" || got["Tracestate"] != nil || begun[trace[:35]] {
			t.Errorf("header %q: got trace %q, state %q; want a new one that is valid and recorded, without state", header, got["Traceparent"], got["Tracestate"])
		}
		begun[got.Get("Traceparent")[:35]] = true
	}
}

func TestCutBodyIsNotSentOn(t *testing.T) {
	for _, c := range []struct {
		name    string
		options opts
		req     *http.Request
		next    http.Handler
		cut     string
	}{
		{"over the limit", opts{"maxBodySize": 1000}, uploadOf(&upload{rest: textOf(1001), step: 100, end: io.EOF}, 1001), drained, cutLimit},
		{"over the limit, of unknown length", opts{"maxBodySize": 1000}, uploadOf(&upload{rest: textOf(1001), step: 100, end: io.EOF}, -1), drained, cutLimit},
		{"nothing may be kept", opts{"maxBodySize": 0}, uploadOf(&upload{rest: textOf(1), step: 100, end: io.EOF}, 1), drained, cutLimit},
		{"no memory", opts{"memoryLimit": 1000}, uploadOf(&upload{rest: textOf(2000), step: 100, end: io.EOF}, 2000), drained, cutMemory},
		{"unread", nil, uploadOf(&upload{rest: textOf(1000), step: 100, end: io.EOF}, 1000), http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), cutUnread},
		{"broken off", nil, uploadOf(&upload{rest: textOf(1000), step: 100, end: io.ErrUnexpectedEOF}, 2000), drained, cutUnread},
		{"broken off, of unknown length", nil, uploadOf(&upload{rest: textOf(1000), step: 100, end: io.ErrUnexpectedEOF}, -1), drained, cutUnread},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := newReceiver(t)
			logged(func() {
				options := repeated(c.options)
				options["watchURL"] = rec.url
				handler := mirrorOf(t, c.next, options)
				serve(handler, c.req)
				n := tallyOf(t)
				if n.Seen != 1 || n.Dropped[reasonIncomplete] != 1 || n.Truncated[c.cut] != 1 || n.BytesHeld != 0 {
					t.Errorf("got %+v; want it dropped as incomplete, cut by %s, and no bytes held", n, c.cut)
				}
				serve(handler, get("/after"))
				got := rec.wait(t, 1)
				waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == 1 })
				if len(got) != 1 || got[0].uri != "/after" || !strings.HasSuffix(got[0].header.Get(mirroredSequence), "-00000000000000000002") {
					t.Errorf("got %s as %s; want only the request after it, as number 2", got[0].uri, got[0].header.Get(mirroredSequence))
				}
				dissolveAfterLog(t)
			})
		})
	}
}

// early is a transport to a receiver that answers before it has read the body, which the
// transport goes on to send.
type early struct {
	mu     sync.Mutex
	bodies []io.Reader
	again  []io.Reader // what the transport would send on another connection
}

func (e *early) RoundTrip(req *http.Request) (*http.Response, error) {
	again, err := req.GetBody()
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.bodies = append(e.bodies, req.Body)
	e.again = append(e.again, again)
	e.mu.Unlock()
	return &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody}, nil
}

func TestAnEarlyAnswerLeavesTheBodyAlone(t *testing.T) {
	const clients, each, size = 4, 10, 700 << 10
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": "http://receiver.test"}))
	e := &early{}
	var transport http.RoundTripper = e
	pipelineOf(t).sender.transport = transport
	group := &sync.WaitGroup{}
	for i := 0; i < clients; i++ {
		group.Add(1)
		go uploadFilled(handler, group, i*each, each, size)
	}
	group.Wait()
	waitFor(t, "all to be delivered", func() bool { return tallyOf(t).Delivered == clients*each })
	fills := map[byte]int{}
	for _, body := range append(e.bodies, e.again...) {
		content, err := io.ReadAll(body)
		if err != nil || len(content) != size || bytes.Count(content, content[:1]) != size {
			t.Fatalf("got %d bytes, error %v, with bytes of other requests; want the %d bytes of one", len(content), err, size)
		}
		fills[content[0]]++
	}
	if len(fills) != clients*each {
		t.Errorf("got %d bodies; want %d", len(fills), clients*each)
	}
	if held := tallyOf(t).BytesHeld; held != 0 {
		t.Errorf("got %d bytes held; want none", held)
	}
}

// uploadFilled sends bodies, each of one byte's repetition.
func uploadFilled(handler http.Handler, group *sync.WaitGroup, fill, times, size int) {
	defer group.Done()
	for i := 0; i < times; i++ {
		content := bytes.Repeat([]byte{byte(fill + i)}, size)
		handler.ServeHTTP(httptest.NewRecorder(), uploadOf(&upload{rest: content, step: 64 << 10, end: io.EOF}, int64(size)))
	}
}

func TestCopyThatComesBackIsPassedOnAndNotSentAgain(t *testing.T) {
	each := func(t *testing.T, secrets interface{}) {
		received := make(chan *http.Request, 100)
		var handler http.Handler
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { handler.ServeHTTP(rw, req) }))
		defer server.Close()
		handler = mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { received <- req }),
			repeated(opts{"watchURL": server.URL + "/copy", "signingSecrets": secrets}))
		serve(handler, get("/watched"))
		var delivery *http.Request
		for i := 0; i < 2; i++ {
			req := <-received
			if req.URL.Path == "/copy/watched" {
				delivery = req
			} else if req.URL.Path != "/watched" {
				t.Errorf("got %s; want the request, or its copy", req.URL)
			}
		}
		if delivery == nil {
			t.Fatal("got no copy; want one that is passed on")
		}
		waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == 1 })
		if n := tallyOf(t); n.Seen != 2 || n.Filtered != 1 {
			t.Errorf("got %+v; want 2 seen, 1 of them filtered", n)
		}
		mark := delivery.Header.Get(markerHeader)
		seconds, mac, _ := strings.Cut(mark, ",")
		now, _ := strconv.ParseInt(seconds, 10, 64)
		for i, forged := range []string{
			strconv.FormatInt(now+1, 10) + "," + mac, seconds + ",v1," + strings.Repeat("A", 43) + "=", mac, seconds, "," + mac, seconds + "," + mac + "x", ",v1,",
		} {
			req := get("/forged")
			req.Header.Set(markerHeader, forged)
			serve(handler, req)
			waitFor(t, "the request with marker "+forged, func() bool { return tallyOf(t).Delivered == uint64(i+2) })
		}
	}
	t.Run("with a key of the process", func(t *testing.T) { each(t, nil) })
	t.Run("with a signing secret", func(t *testing.T) { each(t, secretOf(strings.Repeat("s", 24))) })
	t.Run("of another replica", func(t *testing.T) {
		shared := secretOf(strings.Repeat("s", 24))
		rec := newReceiver(t)
		handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url, "signingSecrets": shared}))
		for i, secret := range []string{shared, secretOf(strings.Repeat("t", 24))} {
			req := markedBy(t, repeated(opts{"signingSecrets": secret}), time.Minute)
			req.Header.Set("Webhook-Timestamp", "1") // the original's
			serve(handler, req)
			if n := tallyOf(t); n.Filtered != 1 || n.Seen != uint64(i+1) {
				t.Errorf("got %+v; want only the copy of a replica with the same secret filtered", n)
			}
		}
		rec.wait(t, 1)
	})
}

func TestRequestsThatCannotBeSentAgainAreFiltered(t *testing.T) {
	rec := newReceiver(t)
	passed := 0
	handler := mirrorOf(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { passed++ }), repeated(opts{"watchURL": rec.url}))
	before := published().Get("panics").String()
	tunnel := httptest.NewRequest(http.MethodConnect, "http://db.test:5432", nil)
	tunnel.RequestURI = "db.test:5432"
	odd := get("/")
	odd.Method = "G ET" // over HTTP/2 anything may come
	for _, req := range []*http.Request{tunnel, odd} {
		serve(handler, req)
	}
	waitFor(t, "nothing to be under way", func() bool { return tallyOf(t).Waiting+tallyOf(t).InFlight == 0 })
	if n := tallyOf(t); n.Filtered != 2 || n.Seen != 2 || passed != 2 || published().Get("panics").String() != before {
		t.Errorf("got %+v, %d passed on, panics %s; want both filtered and passed on, and panics %s", n, passed, published().Get("panics"), before)
	}
}

func TestUpgradeIsRepeatedAsAPlainRequest(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url}))
	req := get("/socket")
	req.Header = http.Header{"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}, "Sec-Websocket-Version": {"13"}}
	serve(handler, req)
	got := rec.wait(t, 1)[0]
	if got.method != "GET" || got.header["Upgrade"] != nil || got.header["Connection"] != nil || got.header.Get("Sec-Websocket-Version") != "13" {
		t.Errorf("got %s with %q; want a GET that asks for no upgrade", got.method, got.header)
	}
	waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == 1 })
}

func TestNoReportsGoToWhoGetsCopies(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url, "reportInterval": "1ms"}))
	for i := 0; i < 20; i++ {
		serve(handler, get("/"))
		rec.wait(t, i+1)
	}
	if p := pipelineOf(t); p.set.reportInterval != 0 {
		t.Errorf("got a report every %v; want none", p.set.reportInterval)
	}
	waitFor(t, "all deliveries", func() bool { return tallyOf(t).Delivered == 20 })
	t.Cleanup(func() { // when the pipeline has retired, which is when the last report is due
		for _, got := range rec.posts {
			if got.method != "GET" {
				t.Errorf("got %s %s %s; want nothing but copies", got.method, got.uri, got.payload)
			}
		}
		if len(rec.posts) != 20 {
			t.Errorf("got %d deliveries; want 20", len(rec.posts))
		}
	})
}

func TestWhatCopiesCannotHaveIsRefused(t *testing.T) {
	_, problems, unknown := readSettings(configOf(repeated(opts{
		"batch.maxEvents": 10, "compression": "gzip", "maxEventSize": "1Mi", "redactBodyFields": "password", "captureResponse": "status",
		"mirrorBody": false, "bodyContentTypes": "text/*", "workers": 0,
	})), t.Name())
	want := []string{
		"batch.maxEvents: ", "bodyContentTypes: ", "captureResponse: ", "compression: ", "maxEventSize: ", "mirrorBody: ", "redactBodyFields: ", "workers: ",
	}
	if len(problems) != len(want) || len(unknown) > 0 {
		t.Fatalf("got problems\n%s\n%q; want one for each of %q", strings.Join(problems, "\n"), unknown, want)
	}
	for i, path := range want {
		if !strings.HasPrefix(problems[i], path) || path != "workers: " && !strings.Contains(problems[i], "format request") {
			t.Errorf("got problem %q; want %s and that it is for format request", problems[i], path)
		}
	}
	for _, options := range []opts{
		{"batch.maxEvents": 1}, {"batch.flushInterval": "1s"}, {"compression": "none"}, {"maxEventSize": "off"}, {"captureResponse": "none"}, {"mirrorBody": true}, {"reportInterval": "1s"},
	} {
		if _, problems, _ := readSettings(configOf(repeated(options)), t.Name()); len(problems) > 0 {
			t.Errorf("%v: got problems %q; want none", options, problems)
		}
	}
}

func TestUploadOf25MiBIsSentOn(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 75 MiB")
	}
	rec := newReceiver(t)
	handler := mirrorOf(t, drained, repeated(opts{"watchURL": rec.url, "maxBodySize": "25Mi", "memoryLimit": "128Mi", "timeout": "1m"}))
	content := bytes.Repeat([]byte("0123456789abcdef"), 25<<20/16)
	for i, length := range []int64{25 << 20, -1} {
		serve(handler, uploadOf(&upload{rest: content, step: 1 << 20, end: io.EOF}, length))
		got := rec.wait(t, i+1)[i]
		if !bytes.Equal(got.payload, content) {
			t.Errorf("announced as %d: got %d bytes; want all %d", length, len(got.payload), len(content))
		}
		waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == uint64(i+1) })
	}
	logged(func() {
		serve(handler, uploadOf(&upload{rest: append(content, 'x'), step: 1 << 20, end: io.EOF}, -1))
		if n := tallyOf(t); n.Dropped[reasonIncomplete] != 1 || n.Truncated[cutLimit] != 1 || n.BytesHeld != 0 {
			t.Errorf("got %+v; want one byte more dropped as incomplete", n)
		}
		dissolveAfterLog(t)
	})
}

func TestLongestTargetIsSoonWritten(t *testing.T) {
	set := settingsOf(t, repeated(nil))
	odd := strings.Repeat("|", 1<<20) // what a header of a request may have by default
	begun := time.Now()
	to := behind(set.targets[0].url, &capture{set: set, uri: "/" + odd})
	if want := "/events/" + strings.Repeat("%7C", len(odd)); to.RequestURI() != want {
		t.Error("got another target; want each byte escaped")
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("took %v; want next to nothing", took)
	}
}

// Any target that a server takes leads to the receiver, below its path.
func FuzzCopyTarget(f *testing.F) {
	for _, uri := range []string{"/", "/a%2Fb|c?d=%zz", "//x", "*", "http://h/a?b", "urn:x", "urn:%", "/a b\xff%7E"} {
		f.Add(uri)
	}
	set := settingsOf(f, repeated(opts{"watchURL": "http://receiver.test/in%2Fbox?token=x"}))
	f.Fuzz(func(t *testing.T, uri string) {
		asked, err := url.ParseRequestURI(uri)
		if err != nil {
			return
		}
		to := behind(set.targets[0].url, &capture{set: set, uri: uri})
		line := to.RequestURI()
		got, err := url.ParseRequestURI(line)
		if err != nil || strings.ContainsAny(line, " \r\n") || to.Host != "receiver.test" {
			t.Fatalf("%q: got %q at %s, which reads as %v; want a target", uri, line, to.Host, err)
		}
		path, query, _ := strings.Cut(line, "?")
		if path != "/in%2Fbox" && !strings.HasPrefix(path, "/in%2Fbox/") || query != "token=x" && !strings.HasPrefix(query, "token=x&") {
			t.Errorf("%q: got %q; want it behind the receiver's path and query", uri, line)
		}
		if uri[0] == '/' && got.Path != "/in/box"+asked.Path {
			t.Errorf("%q: got path %q; want that of the request, %q", uri, got.Path, asked.Path)
		}
	})
}
