package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestWhoMayAsk(t *testing.T) {
	b := newBench(t, func(s *settings) { s.hosts = []string{"inspector.internal"} })
	for _, tc := range []struct {
		name         string
		method, path string
		host         string
		header       []string
		want         int
	}{
		{"an address", "GET", "/", "127.0.0.1:9000", nil, 200},
		{"an address of version 6", "GET", "/", "[::1]:9000", nil, 200},
		{"localhost", "GET", "/", "localhost:9000", nil, 200},
		{"a name under localhost", "GET", "/", "mirror.localhost", nil, 200},
		{"a name that was allowed", "GET", "/", "Inspector.internal:80", nil, 200},
		{"a name that somebody has lead here", "GET", "/", "evil.example:9000", nil, 421},
		{"one that ends like localhost", "GET", "/api/events.jsonl", "evillocalhost:9000", nil, 421},
		{"one that begins like an address", "GET", "/api/events.jsonl", "127.0.0.1.evil.example", nil, 421},
		{"the page", "GET", "/api/events.jsonl", "localhost", []string{"Sec-Fetch-Site", "same-origin"}, 200},
		{"a link on another site", "GET", "/", "localhost", []string{"Sec-Fetch-Site", "cross-site"}, 200},
		{"an image on another site", "GET", "/api/events.jsonl", "localhost", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		{"another port of this machine", "GET", "/api/events.jsonl", "localhost:9000", []string{"Sec-Fetch-Site", "same-site"}, 403},
		{"clear, by the page", "POST", "/api/clear", "localhost:9000", []string{"Sec-Fetch-Site", "same-origin", "Origin", "http://localhost:9000"}, 204},
		{"clear, by the page in an old browser", "POST", "/api/clear", "localhost:9000", []string{"Origin", "http://localhost:9000"}, 204},
		{"clear, by a form of another site", "POST", "/api/clear", "localhost:9000", []string{"Sec-Fetch-Site", "cross-site", "Origin", "http://evil.example"}, 403},
		{"clear, by another site in an old browser", "POST", "/api/clear", "localhost:9000", []string{"Origin", "http://evil.example"}, 403},
		{"clear, by a page without an origin", "POST", "/api/clear", "localhost:9000", []string{"Origin", "null"}, 403},
		{"clear, by who says nothing", "POST", "/api/clear", "localhost:9000", nil, 403},
		{"clear, typed into a browser", "POST", "/api/clear", "localhost:9000", []string{"Sec-Fetch-Site", "none"}, 403},
		{"clear by GET", "GET", "/api/clear", "localhost:9000", nil, 405},
		{"no such page", "GET", "/other", "localhost:9000", nil, 404},
		{"no such file", "GET", "/page/..%2Fweb.go", "localhost:9000", nil, 404},
	} {
		t.Run(tc.name, func(t *testing.T) {
			req := httptest.NewRequest(tc.method, tc.path, nil)
			req.Host = tc.host
			for i := 0; i < len(tc.header); i += 2 {
				req.Header.Set(tc.header[i], tc.header[i+1])
			}
			w := b.answer(req)
			if w.Code != tc.want {
				t.Errorf("got status %d %s; want %d", w.Code, w.Body, tc.want)
			}
			h := w.Header()
			if h.Get("Content-Security-Policy") != policy || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" || h.Get("Access-Control-Allow-Origin") != "" {
				t.Errorf("got headers %v", h)
			}
		})
	}
	const least = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
	if !strings.HasPrefix(policy, least) {
		t.Errorf("the policy is weaker: %s", policy)
	}
}

// Deliveries come by any name: that of a container, say.
func TestDeliveriesMayUseAnyName(t *testing.T) {
	b := newBench(t, nil)
	m := newMirror(b.clock.now())
	req := posted(secret, "a", b.clock.now(), encode(m.request(b.clock.now(), "/")))
	req.Host = "inspector:9000"
	if w := b.answer(req); w.Code != 204 {
		t.Errorf("got status %d", w.Code)
	}
}

func TestAssets(t *testing.T) {
	b := newBench(t, nil)
	index := b.get("/")
	if got := index.Header().Get("Content-Type"); got != "text/html; charset=utf-8" {
		t.Errorf("got %s", got)
	}
	for name, want := range map[string]string{"app.js": "text/javascript; charset=utf-8", "style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"} {
		if w := b.get("/page/" + name); w.Code != 200 || w.Header().Get("Content-Type") != want || w.Body.Len() == 0 {
			t.Errorf("%s: got status %d, %s", name, w.Code, w.Header().Get("Content-Type"))
		}
	}
	// What the policy forbids is not in the page, and what makes HTML of texts is nowhere.
	entries, err := assets.ReadDir("page")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		text := b.get("/page/" + entry.Name()).Body.String()
		for _, never := range []string{"innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function", " style=\"", " onclick", "srcdoc", "http://", "https://"} {
			if entry.Name() == "icon.svg" || never == "http://" && entry.Name() == "curl.js" {
				continue
			}
			if strings.Contains(text, never) {
				t.Errorf("%s has %q", entry.Name(), never)
			}
		}
	}
}

func TestHostileIdsAreFound(t *testing.T) {
	b := newBench(t, nil)
	for _, id := range []string{"a/b", "../../x", "a%2Fb", "events.jsonl", "<script>", "ä 漢", "?a=b#c", "a\\b", strings.Repeat("x", maxID)} {
		e := object{"id": id, "type": "com.example.other"}
		b.deliver(e)
		req := httptest.NewRequest("GET", "/api/events/"+pathEscape(id), nil)
		req.Host = "localhost"
		w := b.answer(req)
		var f found
		if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil || !strings.Contains(string(f.Event), "com.example.other") {
			t.Errorf("%q: got status %d %s", id, w.Code, w.Body)
			continue
		}
		var got object
		if err := json.Unmarshal(f.Event, &got); err != nil || got["id"] != id {
			t.Errorf("%q: got %q", id, got["id"])
		}
	}
}

// pathEscape is JavaScript's encodeURIComponent.
func pathEscape(text string) string {
	var out strings.Builder
	for _, c := range []byte(text) {
		if strings.IndexByte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.!~*'()", c) >= 0 {
			out.WriteByte(c)
		} else {
			fmt.Fprintf(&out, "%%%02X", c)
		}
	}
	return out.String()
}

func TestTheDownloadHasEveryEventOnALine(t *testing.T) {
	b := newBench(t, nil)
	m := newMirror(b.clock.now().Add(time.Second))
	first := m.request(b.clock.now(), "/\n<b>")
	b.deliver(first, m.report(b.clock.now()))
	w := b.get("/api/events.jsonl")
	if got := w.Header().Get("Content-Disposition"); got != `attachment; filename="events-20260918T093600Z.jsonl"` {
		t.Errorf("got %s", got)
	}
	lines := strings.Split(strings.TrimSuffix(w.Body.String(), "\n"), "\n")
	if len(lines) != 2 || lines[0] != string(encode(first)) {
		t.Errorf("got %q", lines)
	}
}

// blocked is a browser that takes nothing until it is released.
type blocked struct {
	*httptest.ResponseRecorder
	begun    chan<- struct{}
	released <-chan struct{}
}

func (w blocked) Write(p []byte) (int, error) {
	w.begun <- struct{}{}
	<-w.released
	return w.ResponseRecorder.Write(p)
}

// Each holds the events that there were when it began.
func TestThereAreNotEndlessDownloads(t *testing.T) {
	b := newBench(t, nil)
	b.deliver(newMirror(b.clock.now()).request(b.clock.now(), "/"))
	begun, released, ended := make(chan struct{}), make(chan struct{}), make(chan struct{})
	for range maxDownloads {
		req := httptest.NewRequest("GET", "/api/events.jsonl", nil)
		req.Host = "localhost"
		go func() {
			b.handler.ServeHTTP(blocked{httptest.NewRecorder(), begun, released}, req)
			ended <- struct{}{}
		}()
		<-begun
	}
	if w := b.get("/api/events.jsonl"); w.Code != 503 || w.Header().Get("Retry-After") == "" {
		t.Errorf("one more: got status %d, Retry-After %q; want 503 and a time", w.Code, w.Header().Get("Retry-After"))
	}
	close(released)
	for range maxDownloads {
		<-ended
	}
	if w := b.get("/api/events.jsonl"); w.Code != 200 {
		t.Errorf("when these have ended: got status %d; want 200", w.Code)
	}
}

// sse is a message of the live stream.
type sse struct{ id, event, data string }

// reader is a browser with a live stream.
type reader struct {
	t    *testing.T
	res  *http.Response
	scan *bufio.Scanner
}

func (b *bench) listen(url string, header ...string) *reader {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 2*time.Minute)
	b.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", url+"/api/stream", nil)
	if err != nil {
		b.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = res.Body.Close() })
	scan := bufio.NewScanner(res.Body)
	scan.Buffer(nil, 16<<20)
	return &reader{b.t, res, scan}
}

// next is the next message of a kind.
func (r *reader) next(event string) sse {
	r.t.Helper()
	var m sse
	for r.scan.Scan() {
		name, value, _ := strings.Cut(r.scan.Text(), ": ")
		switch name {
		case "id":
			m.id = value
		case "event":
			m.event = value
		case "data":
			m.data = value
		case "":
			if m.event == event {
				return m
			}
			m = sse{}
		}
	}
	r.t.Fatalf("the stream ended before %s: %v", event, r.scan.Err())
	return m
}

// rows reads rows up to one with a number, and returns their numbers and the last id.
func (r *reader) rows(last uint64) (numbers []uint64, id string) {
	r.t.Helper()
	for len(numbers) == 0 || numbers[len(numbers)-1] < last {
		m := r.next("rows")
		var rows []row
		if err := json.Unmarshal([]byte(m.data), &rows); err != nil {
			r.t.Fatal(err)
		}
		for _, one := range rows {
			numbers = append(numbers, one.N)
		}
		id = m.id
	}
	return numbers, id
}

func TestTheLiveStreamGoesOnAfterTheLastEventID(t *testing.T) {
	b := newBench(t, func(s *settings) { s.keep = 300 })
	server := httptest.NewServer(b.handler)
	defer server.Close()
	defer server.CloseClientConnections()
	m := newMirror(b.clock.now().Add(time.Second))
	more := func(n int) {
		for range n {
			b.deliver(m.request(b.clock.now(), "/"))
		}
	}
	more(260) // more than one message
	r := b.listen(server.URL)
	if got := r.res.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("got %s", got)
	}
	r.next("reset")
	numbers, id := r.rows(260)
	if len(numbers) != 260 || numbers[0] != 1 {
		t.Errorf("the backlog: got %d rows from %d", len(numbers), numbers[0])
	}
	more(1)
	if numbers, id = r.rows(261); len(numbers) != 1 {
		t.Errorf("live: got %d rows", len(numbers))
	}
	_ = r.res.Body.Close()
	more(20)
	r = b.listen(server.URL, "Last-Event-ID", id)
	if numbers, id = r.rows(281); len(numbers) != 20 || numbers[0] != 262 {
		t.Errorf("resumed: got rows %v", numbers)
	}
	_ = r.res.Body.Close()
	more(301) // so that what comes next for it is dropped
	r = b.listen(server.URL, "Last-Event-ID", id)
	r.next("reset")
	if numbers, _ = r.rows(582); len(numbers) != 300 || numbers[0] != 283 {
		t.Errorf("too late: got %d rows from %d", len(numbers), numbers[0])
	}
	req, _ := http.NewRequest("POST", server.URL+"/api/clear", nil)
	req.Header.Set("Origin", server.URL)
	res, err := http.DefaultClient.Do(req)
	if err != nil || res.StatusCode != 204 {
		t.Fatalf("clear: %v %v", res, err)
	}
	_ = res.Body.Close()
	r.next("reset")
	more(1)
	if numbers, _ = r.rows(1); len(numbers) != 1 {
		t.Errorf("after it was cleared: got rows %v", numbers)
	}
}

func TestTheLiveStreamTellsGapsAndCounts(t *testing.T) {
	b := newBench(t, nil)
	server := httptest.NewServer(b.handler)
	defer server.Close()
	defer server.CloseClientConnections()
	m := newMirror(b.clock.now().Add(time.Second))
	b.deliver(m.request(b.clock.now(), "/"))
	m.lose("queue_full", false)
	b.deliver(m.request(b.clock.now(), "/"), m.report(b.clock.now()))
	b.clock.add(2 * time.Second)
	r := b.listen(server.URL)
	var pulse struct {
		pulseList
		Missing, Open, Last uint64
	}
	if err := json.Unmarshal([]byte(r.next("pulse").data), &pulse); err != nil {
		t.Fatal(err)
	}
	if pulse.Missing != 1 || pulse.Open != 0 || pulse.Last != 3 || len(pulse.Points) != 1 || pulse.Points[0].Events != 2 || len(pulse.Progress) != 1 || pulse.Progress[0].Dropped["queue_full"] != 1 || pulse.Totals.Lost["queue_full"] != 1 {
		t.Errorf("got %+v", pulse)
	}
	var gaps gapList
	if err := json.Unmarshal([]byte(r.next("gaps").data), &gaps); err != nil {
		t.Fatal(err)
	}
	if got := told(gaps); got != "2-2 before 2 explained queue_full:1" {
		t.Errorf("got %s", got)
	}
}

// A browser that takes nothing costs the receiver nothing, and is cut off.
func TestASlowBrowserIsCutOff(t *testing.T) {
	b := newBench(t, func(s *settings) { s.slow = 100 * time.Millisecond })
	server := httptest.NewServer(b.handler)
	defer server.Close()
	m := newMirror(b.clock.now().Add(time.Second))
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if err := conn.(*net.TCPConn).SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	// It takes the beginning, and then no more.
	if _, err := io.ReadFull(conn, make([]byte, 15)); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(2 * time.Minute)
	long := strings.Repeat("/a", maxLong)
	n := 0
	for ; len(b.web.readers) > 0; n += 400 {
		if time.Now().After(deadline) {
			t.Fatalf("after %d events, the stream of a browser that reads nothing is still open", n)
		}
		var batch []object
		for range 400 {
			batch = append(batch, m.request(b.clock.now(), long))
		}
		if w := b.answer(posted(secret, fmt.Sprint(n), b.clock.now(), encode(batch))); w.Code != 204 {
			t.Fatalf("a delivery was answered with %d", w.Code)
		}
	}
	// Back again, it is told to start anew or goes on.
	r := b.listen(server.URL)
	r.next("reset")
	r.rows(uint64(n))
	server.CloseClientConnections()
}

func TestThereAreNotEndlessStreams(t *testing.T) {
	b := newBench(t, nil)
	server := httptest.NewServer(b.handler)
	defer server.Close()
	defer server.CloseClientConnections()
	for range maxReaders {
		b.listen(server.URL).next("hello")
	}
	if got := b.listen(server.URL).res.StatusCode; got != 503 {
		t.Errorf("got status %d; want 503", got)
	}
}

// The limits of the server for other requests do not end a stream, but the program's
// end does.
func TestServe(t *testing.T) {
	b := newBench(t, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, listener, b.handler) }()
	r := b.listen("http://" + listener.Addr().String())
	r.next("hello")
	cancel()
	if err := <-ended; err != nil { // it lost its patience
		t.Error(err)
	}
}

func TestAStreamOutlivesTheReadTimeout(t *testing.T) {
	b := newBench(t, nil)
	server := httptest.NewUnstartedServer(b.handler)
	server.Config.ReadTimeout = 50 * time.Millisecond
	server.Config.WriteTimeout = 50 * time.Millisecond
	server.Start()
	defer server.Close()
	defer server.CloseClientConnections()
	r := b.listen(server.URL)
	for range 2 { // a beat is much longer
		r.next("pulse")
	}
	m := newMirror(b.clock.now().Add(time.Second))
	b.deliver(m.request(b.clock.now(), "/"))
	r.rows(1)
}
