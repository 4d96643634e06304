package requestmirror

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"
)

// What an operator sees: New, requests, and a receiver on a real connection.

func answer(text string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		rw.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(rw, text)
	})
}

func get(path string) *http.Request { return httptest.NewRequest(http.MethodGet, path, nil) }

func send(path, text string) *http.Request {
	return httptest.NewRequest(http.MethodPost, path, strings.NewReader(text))
}

// serve answers one request in memory.
func serve(handler http.Handler, req *http.Request) *httptest.ResponseRecorder {
	rw := httptest.NewRecorder()
	handler.ServeHTTP(rw, req)
	return rw
}

// logged is what do writes to the log.
//
// The writer is compiled, as a timer of an earlier test may write to it, too, which in
// Yaegi would run this test's code at the same time.
func logged(do func()) string {
	reader, writer := io.Pipe()
	text := make(chan string)
	go readText(reader, text)
	before := log.Writer()
	log.SetOutput(writer)
	do()
	log.SetOutput(before)
	_ = writer.Close()
	whole := <-text
	return whole
}

func readText(r io.Reader, text chan string) {
	all, _ := io.ReadAll(r)
	text <- string(all)
}

func TestRequestsAreDescribedToTheReceiver(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, answer("hello"), opts{
		"watchURL": rec.url + "/events?tenant=7", "cookieNames": "visitor_*", "attributes": map[string]string{"environment": "test"},
	})
	req := send("https://blog.example.com/a%2Fb/c?q=1&sig=s3cr3t&q=%zz", `{"text":"<b>"}`)
	req.RequestURI = "/a%2Fb/c?q=1&sig=s3cr3t&q=%zz"
	req.Header = http.Header{
		"Accept": {"text/html", "*/*"}, "Authorization": {"Bearer s3cr3t"}, "Content-Type": {"application/json"},
		"Cookie": {"visitor_id=v-1; session=s3cr3t", "visitor_id=v-2"}, "User-Agent": {"curl/8.7.1"}, "X-Request-Id": {"r-1"},
		"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
	}
	rw := serve(handler, req)
	if rw.Code != http.StatusTeapot || rw.Body.String() != "hello" {
		t.Errorf("got answer %d %q; want the backend's, 418 hello", rw.Code, rw.Body)
	}
	got := rec.wait(t, 1)[0]
	if got.method != "POST" || got.uri != "/events?tenant=7" {
		t.Errorf("got %s %s; want POST /events?tenant=7", got.method, got.uri)
	}
	if strings.Contains(string(got.payload), "s3cr3t") {
		t.Errorf("got a secret in %s; want none", got.payload)
	}
	e := got.event
	data := e.Data
	for _, c := range []struct{ what, got, want string }{
		{"content type", got.header.Get("Content-Type"), "application/cloudevents+json; charset=utf-8"},
		{"user agent", got.header.Get("User-Agent"), "requestmirror/" + version},
		{"webhook-id", got.header.Get("Webhook-Id"), e.ID},
		{"traceparent", got.header.Get("Traceparent"), "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		{"specversion", e.SpecVersion, "1.0"},
		{"type", e.Type, "io.opencommit.requestmirror.request.v1"},
		{"subject", e.Subject, "/a%2Fb/c"},
		{"method", data.HTTP.Request.Method, "POST"},
		{"path", data.URL.Path, "/a%2Fb/c"},
		{"query", *data.URL.Query, "q=1&sig=REDACTED&q=%zz"},
		{"scheme", data.URL.Scheme, "https"},
		{"accept", strings.Join(data.HTTP.Request.Header["accept"], "|"), "text/html|*/*"},
		{"authorization", strings.Join(data.HTTP.Request.Header["authorization"], "|"), "REDACTED"},
		{"cookie", strings.Join(data.HTTP.Request.Cookie["visitor_id"], "|"), "v-1|v-2"},
		{"request id", data.RequestID, "r-1"},
		{"attribute", data.Attributes["environment"], "test"},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %q; want %q", c.what, c.got, c.want)
		}
	}
	if len(data.HTTP.Request.Cookie) != 1 || data.HTTP.Request.Header["cookie"] != nil {
		t.Errorf("got cookies %v; want visitor_id only", data.HTTP.Request.Cookie)
	}
	if body := data.HTTP.Request.Body; body == nil || body.Content == nil || *body.Content != `{"text":"<b>"}` || body.Truncated {
		t.Errorf("got body %+v; want the one sent", body)
	}
	if !strings.Contains(string(got.payload), `<b>`) {
		t.Errorf("got %s; want no HTML escapes", got.payload)
	}
	if n := tallyOf(t); n.Seen != 1 || n.Enqueued != 1 || n.Pipelines != 1 {
		t.Errorf("got %+v; want one seen", n)
	}
}

func TestRequestWithoutBodyIsMirroredBeforeTheBackendAnswers(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { rec.wait(t, 1) }), opts{"watchURL": rec.url})
	serve(handler, get("/events"))
	if got := rec.wait(t, 1)[0].event.Data.HTTP.Request.Body; got != nil {
		t.Errorf("got body %+v; want none", got)
	}
}

func TestRequestWithBodyIsMirroredWhenTheBackendHasAnswered(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		if n := tallyOf(t); n.Seen != 0 {
			t.Errorf("got %d events while the backend works; want none", n.Seen)
		}
	}), opts{"watchURL": rec.url})
	serve(handler, send("/", "abc"))
	rec.wait(t, 1)
}

func TestResponseWriterAndRequestGoOnAsTheyCame(t *testing.T) {
	rec := newReceiver(t)
	var gotWriter http.ResponseWriter
	var gotRequest *http.Request
	handler := mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		gotWriter = rw
		gotRequest = req
	}), opts{"watchURL": rec.url, "methods": "GET,POST"})
	for _, req := range []*http.Request{get("/"), send("/", "abc"), httptest.NewRequest("PURGE", "/", nil)} {
		rw := httptest.NewRecorder()
		body := req.Body
		header := req.Header.Clone()
		handler.ServeHTTP(rw, req)
		if gotWriter != http.ResponseWriter(rw) {
			t.Errorf("%s: got ResponseWriter %T; want the one that came", req.Method, gotWriter)
		}
		if gotRequest != req || !reflect.DeepEqual(req.Header, header) {
			t.Errorf("%s: got another request; want the one that came", req.Method)
		}
		if req.Method != "POST" && gotRequest.Body != body {
			t.Errorf("%s: got another body; want the one that came", req.Method)
		}
	}
	rec.wait(t, 2)
}

func TestPanicOfTheBackendPassesThrough(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		panic(http.ErrAbortHandler)
	}), opts{"watchURL": rec.url})
	var next http.Handler = handler
	for i, req := range []*http.Request{get("/"), send("/", "abc")} {
		if got := fmt.Sprint(panicOf(next, req)); got != fmt.Sprint(http.ErrAbortHandler) {
			t.Errorf("got panic %v; want %v", got, http.ErrAbortHandler)
		}
		rec.wait(t, i+1)
	}
	waitFor(t, "both to be counted", func() bool { return tallyOf(t).Delivered == 2 })
}

func panicOf(handler http.Handler, req *http.Request) (value interface{}) {
	defer func() { value = recover() }()
	serve(handler, req)
	return nil
}

func TestMethodsThatAreNotWantedPassUnmirrored(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, answer("ok"), opts{"watchURL": rec.url, "methods": []string{"post", "PURGE"}})
	for _, method := range []string{"GET", "POST", "post", "PURGE", "HEAD"} {
		if rw := serve(handler, httptest.NewRequest(method, "/", nil)); rw.Code != http.StatusTeapot {
			t.Errorf("%s: got status %d; want the backend's 418", method, rw.Code)
		}
	}
	rec.wait(t, 2)
	if n := tallyOf(t); n.Seen != 5 || n.Filtered != 3 || n.Enqueued != 2 {
		t.Errorf("got %+v; want 5 seen, 3 filtered, 2 enqueued", n)
	}
}

func TestNewPassesTrafficThroughWhenThereIsNothingToMirror(t *testing.T) {
	next := http.NewServeMux()
	for _, c := range []struct {
		name    string
		options opts
		logs    string
	}{
		{"switched off", opts{"enabled": "false"}, ""},
		{"switched off and unfinished", opts{"enabled": false, "watchURL": nil, "workers": "many"}, ""},
		{"an empty list of methods", opts{"methods": ""}, ""},
		{"a bad configuration", opts{"watchURL": nil, "workers": 0}, "watchURL: missing"},
	} {
		text := logged(func() {
			if got := mirrorOf(t, next, c.options); got != http.Handler(next) {
				t.Errorf("%s: got handler %T; want next itself", c.name, got)
			}
		})
		if c.logs == "" && text != "" || !strings.Contains(text, c.logs) {
			t.Errorf("%s: got log %q; want %q in it", c.name, text, c.logs)
		}
	}
	if !registryIsEmpty() {
		t.Error("got a pipeline; want none")
	}
}

func TestBadConfigurationIsLoggedInFull(t *testing.T) {
	unsay(t)
	before := configErrors()
	text := logged(func() { mirrorOf(t, answer(""), opts{"watchURL": "receiver:8080", "workers": 0, "timeuot": "5s"}) })
	want := `requestmirror "` + t.Name() + `": invalid configuration (requests pass unmirrored until this is mended):
  watchURL: ` // how the value is shown is config_test.go's
	for _, part := range []string{want, "\n  workers: 0, want at least 1\n", "\n  timeuot: unknown option, did you mean timeout?\n"} {
		if !strings.Contains(text, part) {
			t.Errorf("got log\n%s\nwant in it\n%s", text, part)
		}
	}
	if got := configErrors() - before; got != 1 {
		t.Errorf("got %d configErrors more; want 1", got)
	}
}

func configErrors() int64 {
	var n int64
	_, _ = fmt.Sscan(published().Get("configErrors").String(), &n)
	return n
}

func TestUnknownOptionIsReportedAndRequestsAreMirrored(t *testing.T) {
	unsay(t)
	rec := newReceiver(t)
	var handler http.Handler
	text := logged(func() { handler = mirrorOf(t, answer(""), opts{"watchURL": rec.url, "retry.atempts": 5}) })
	if want := "(requests are mirrored as if these were not there):\n  retry.atempts: unknown option, did you mean retry.attempts?\n"; !strings.HasSuffix(text, want) {
		t.Errorf("got log %q; want %q at its end", text, want)
	}
	serve(handler, get("/"))
	rec.wait(t, 1)
}

func TestStrictReturnsEveryProblem(t *testing.T) {
	next := answer("")
	text := logged(func() {
		_, err := New(context.Background(), next, configOf(opts{"strict": true, "workers": 0, "timeout": "x", "foo": 1}), "m@file")
		want := `requestmirror "m@file": invalid configuration (strict, so the router is not set up):
  timeout: "x", want a duration such as "5s"
  workers: 0, want at least 1
  foo: unknown option`
		if err == nil || err.Error() != want {
			t.Errorf("got error\n%v\nwant\n%s", err, want)
		}
	})
	if text != "" {
		t.Errorf("got log %q; want none besides the error", text)
	}
	if !registryIsEmpty() {
		t.Error("got a pipeline; want none")
	}
}

func TestNewWithoutConfiguration(t *testing.T) {
	next := http.NewServeMux()
	logged(func() {
		got, err := New(context.Background(), next, nil, t.Name())
		if err != nil || got != http.Handler(next) {
			t.Errorf("got %T, error %v; want next itself", got, err)
		}
	})
}

func TestRequestsDoNotWaitForAReceiverThatHangs(t *testing.T) {
	rec := newReceiver(t)
	rec.hold = make(chan struct{})
	handler := mirrorOf(t, answer("ok"), opts{"watchURL": rec.url, "workers": 1, "queueSize": 2})
	serve(handler, get("/0"))
	rec.wait(t, 1)
	for i := 0; i < 10; i++ {
		// The receiver answers nothing until all of these are through.
		serve(handler, get("/1"))
		serve(handler, send("/2", "abc"))
	}
	if n := tallyOf(t); n.Seen != 21 || n.InFlight != 1 || n.Waiting != 2 || n.Dropped[reasonQueueFull] != 18 {
		t.Errorf("got %+v; want 1 in flight, 2 waiting, 18 dropped for a full queue", n)
	}
	close(rec.hold)
	posts := rec.wait(t, 3)
	for i, want := range []string{"00000000000000000001", "00000000000000000002", "00000000000000000003"} {
		if got := posts[i].event.Sequence; !strings.HasSuffix(got, "-"+want) {
			t.Errorf("got sequence %q; want one that ends in %s", got, want)
		}
	}
	serve(handler, get("/3"))
	if got := rec.wait(t, 4)[3].event.Sequence; !strings.HasSuffix(got, "-00000000000000000022") {
		t.Errorf("after 18 drops: got sequence %q; want one that ends in 22, so that the gap shows", got)
	}
}

func TestReceiverThatIsDownCostsNothingButTheEvent(t *testing.T) {
	server := httptest.NewServer(nil)
	server.Close()
	var handler http.Handler
	text := logged(func() {
		handler = mirrorOf(t, answer("ok"), opts{"watchURL": "http://user:s3cr3t@" + server.Listener.Addr().String(), "retry.attempts": 2, "retry.initialInterval": "1ms"})
		if rw := serve(handler, send("/", "b0dy")); rw.Code != http.StatusTeapot {
			t.Errorf("got status %d; want the backend's 418", rw.Code)
		}
		waitFor(t, "the failure", func() bool { return tallyOf(t).Failed[reasonNetwork] == 1 })
		dissolveAfterLog(t)
	})
	if !strings.Contains(text, "1 events lost") || !strings.Contains(text, "network_error: 1") || !strings.Contains(text, "attempt 2 of 2") {
		t.Errorf("got log %q; want the loss in it", text)
	}
	for _, secret := range []string{"s3cr3t", "user:", "b0dy", "dXNlcjpzM2NyM3Q"} {
		if strings.Contains(text, secret) {
			t.Errorf("got log %q; want no %q in it", text, secret)
		}
	}
}

// dissolveAfterLog waits until the workers are idle, and has the log told of what was
// lost, for which a timer would take a second.
func dissolveAfterLog(t *testing.T) {
	waitFor(t, "idle workers", func() bool {
		registryMu.Lock()
		defer registryMu.Unlock()
		for _, p := range existing {
			p.mu.Lock()
			busy := p.running - p.idle
			p.mu.Unlock()
			if busy > 0 {
				return false
			}
		}
		return true
	})
	registryMu.Lock()
	all := existing
	registryMu.Unlock()
	for _, p := range all {
		tell(p.ledger)
	}
}

func TestEventIsSentAgainAndKeepsItsID(t *testing.T) {
	rec := newReceiver(t, 503, 500, 204)
	handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "retry.initialInterval": "1ms"})
	serve(handler, send("/", "abc"))
	posts := rec.wait(t, 3)
	waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == 1 })
	for _, p := range posts {
		if p.header.Get("Webhook-Id") != posts[0].event.ID || string(p.payload) != string(posts[0].payload) {
			t.Errorf("got id %q; want the same event, %q", p.header.Get("Webhook-Id"), posts[0].event.ID)
		}
	}
	if n := tallyOf(t); n.Retried != 2 || len(n.Failed) != 0 || n.BytesHeld != 0 {
		t.Errorf("got %+v; want 2 retried, none failed, no bytes held", n)
	}
}

func TestRoutersShareAPipelineAndReloadsKeepIt(t *testing.T) {
	rec := newReceiver(t)
	options := opts{"watchURL": rec.url}
	ctx, reload := context.WithCancel(context.Background())
	first, err := New(ctx, answer(""), configOf(options), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	// Options of the capture may differ between routers of one pipeline.
	second := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "mirrorBody": false})
	serve(first, send("/", "abc"))
	serve(second, send("/", "abc"))
	reload()
	third := mirrorOf(t, answer(""), options)
	serve(third, send("/", "abc"))
	serve(first, send("/", "abc")) // of the replaced configuration
	rec.wait(t, 4)
	if n := tallyOf(t); n.Pipelines != 1 || n.Seen != 4 || n.Enqueued != 4 {
		t.Errorf("got %+v; want 4 requests over one pipeline", n)
	}
	waitFor(t, "two cut bodies", func() bool { return tallyOf(t).Truncated[cutDisabled] == 1 })
}

func TestOtherDeliverySettingsAreAnotherPipelineOfTheSameLedger(t *testing.T) {
	rec := newReceiver(t)
	first := mirrorOf(t, answer(""), opts{"watchURL": rec.url})
	second := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "timeout": "1s"})
	serve(first, get("/"))
	serve(second, get("/"))
	rec.wait(t, 2)
	if n := tallyOf(t); n.Pipelines != 2 || n.Seen != 2 || n.QueueCapacity != 2000 {
		t.Errorf("got %+v; want 2 requests over two pipelines", n)
	}
}

func TestDeliveryIsPassedOnAndNotMirrored(t *testing.T) {
	each := func(t *testing.T, secrets interface{}) {
		received := make(chan *http.Request, 10)
		var handler http.Handler
		// The receiver stands behind the very middleware that watches.
		server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { handler.ServeHTTP(rw, req) }))
		handler = mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { received <- req }),
			opts{"watchURL": server.URL, "signingSecrets": secrets})
		before := tallyOf(t)
		serve(handler, get("/watched"))
		var delivery *http.Request
		for i := 0; i < 2; i++ { // the receiver may be faster than the backend
			req := <-received
			if req.Header.Get(markerHeader) != "" {
				delivery = req
			} else if req.URL.Path != "/watched" {
				t.Errorf("got %s; want the request, or its delivery", req.URL)
			}
		}
		if delivery == nil {
			t.Fatal("got no delivery; want one that is passed on")
		}
		waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == before.Delivered+1 })
		if n := tallyOf(t); n.Seen != before.Seen+2 || n.Filtered != before.Filtered+1 {
			t.Errorf("got %+v; want 2 seen, 1 of them filtered", n)
		}
		// Nobody hides a request by a header of his own.
		forged := get("/forged")
		forged.Header.Set(markerHeader, "v1,"+strings.Repeat("A", 43)+"=")
		forged.Header.Set("Webhook-Id", delivery.Header.Get("Webhook-Id"))
		forged.Header.Set("Webhook-Timestamp", delivery.Header.Get("Webhook-Timestamp"))
		serve(handler, forged)
		waitFor(t, "the forged request", func() bool { return tallyOf(t).Delivered == before.Delivered+2 })
		server.Close()
	}
	t.Run("with a key of the process", func(t *testing.T) { each(t, nil) })
	t.Run("with a signing secret", func(t *testing.T) { each(t, "whsec_"+strings.Repeat("QUJD", 8)) })
}

func TestCredentialsOfTheReceiver(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, answer(""), opts{
		"watchURL":             strings.Replace(rec.url, "://", "://us%40er:p%3Ass@", 1),
		"customRequestHeaders": map[string]interface{}{"x-tenant": 7, "user-agent": "ours", "Host": "events.internal"},
	})
	serve(handler, get("/"))
	got := rec.wait(t, 1)[0]
	if want := "Basic dXNAZXI6cDpzcw=="; got.header.Get("Authorization") != want {
		t.Errorf("got Authorization %q; want %q", got.header.Get("Authorization"), want)
	}
	if got.header.Get("X-Tenant") != "7" || got.header.Get("User-Agent") != "ours" || got.host != "events.internal" {
		t.Errorf("got header %v, host %q; want the custom ones", got.header, got.host)
	}
}

func TestUploadOverARealConnection(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(rw, req.Body)
		_, _ = io.WriteString(rw, "|"+req.Trailer.Get("X-Sum"))
	}), opts{"watchURL": rec.url})
	server := httptest.NewServer(handler)
	defer server.Close()
	reader, writer := io.Pipe()
	req, err := http.NewRequest(http.MethodPut, server.URL+"/up", reader)
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"X-Sum": nil}
	go func() {
		_, _ = writer.Write([]byte("abc"))
		_, _ = writer.Write([]byte("def"))
		req.Trailer.Set("X-Sum", "6")
		_ = writer.Close()
	}()
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	echo, _ := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if string(echo) != "abcdef|6" {
		t.Errorf("the backend got %q; want abcdef and the trailer", echo)
	}
	e := rec.wait(t, 1)[0].event
	if body := e.Data.HTTP.Request.Body; body == nil || body.Content == nil || *body.Content != "abcdef" || body.Size != 6 || body.Truncated {
		t.Errorf("got body %+v; want abcdef", body)
	}
	if peer := e.Data.Network.Peer; peer == nil || peer.Address != "127.0.0.1" || peer.Port == nil || *peer.Port == 0 {
		t.Errorf("got peer %+v; want the client's address", peer)
	}
	if at, err := time.Parse(time.RFC3339Nano, e.Time); err != nil || time.Since(at) > time.Minute || time.Since(at) < -time.Minute {
		t.Errorf("got time %q; want now", e.Time)
	}
}
