package main

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The schemas are those of the product, byte by byte.
func TestSchemasAreThoseOfTheReference(t *testing.T) {
	for _, name := range []string{"request.v1.schema.json", "report.v1.schema.json"} {
		want, err := os.ReadFile(filepath.Join("..", "..", "docs", "reference", name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := schemas.ReadFile("schema/" + name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("schema/%s is not docs/reference/%[1]s (%v): copy it", name, err)
		}
	}
}

func TestDeliveries(t *testing.T) {
	b := newBench(t, nil)
	m := newMirror(b.clock.now().Add(time.Second))
	now := b.clock.now()
	event := func() []byte { return encode(m.request(now, "/a")) }
	with := func(req *http.Request, header ...string) *http.Request {
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		return req
	}
	twice := event()
	large := encode(object{"id": "large", "type": requestType, "padding": strings.Repeat("a", maxPayload)})
	altered := posted(secret, "b", now, event())
	altered.Header.Set("webhook-id", "c")
	batch := encode([]object{m.request(now, "/b"), m.request(now, "/c")})
	for _, tc := range []struct {
		name   string
		req    *http.Request
		status int
		kept   int // events in all
		why    string
	}{
		{"a signed event", posted(secret, "a", now, twice), 204, 1, ""},
		{"the same again, as its answer was lost", posted(secret, "a", now, twice), 204, 1, ""},
		{"signed with the other secret, during rotation", posted(otherSecret, "b", now, event()), 204, 2, ""},
		{"signed for another id", altered, 401, 2, "signature"},
		{"too old", posted(secret, "d", now.Add(-6*time.Minute), event()), 401, 2, "signature"},
		{"from the future", posted(secret, "d", now.Add(6*time.Minute), event()), 401, 2, "signature"},
		{"without a signature", posted("", "", now, event()), 401, 2, "signature"},
		{"in format json", with(posted(secret, "e", now, event()), "Content-Type", "application/json"), 204, 3, ""},
		{"as plain text", with(posted(secret, "f", now, event()), "Content-Type", "text/plain"), 415, 3, "content type"},
		{"a batch", with(posted(secret, "g", now, batch), "Content-Type", "application/cloudevents-batch+json"), 204, 5, ""},
		{"an empty batch", with(posted(secret, "h", now, []byte("[]")), "Content-Type", "application/cloudevents-batch+json"), 204, 5, ""},
		{"compressed", with(posted(secret, "i", now, gzipped(event())), "Content-Encoding", "gzip"), 204, 6, ""},
		{"not as compressed as it says", with(posted(secret, "j", now, event()), "Content-Encoding", "gzip"), 400, 6, "gzip"},
		{"compressed in another way", with(posted(secret, "k", now, event()), "Content-Encoding", "br"), 415, 6, "content encoding"},
		{"too large", posted(secret, "l", now, large), 413, 6, "too large"},
		{"too large once it is decompressed", with(posted(secret, "m", now, gzipped(large)), "Content-Encoding", "gzip"), 413, 6, "too large"},
		{"no JSON", posted(secret, "n", now, []byte("hello")), 400, 6, "not an event"},
		{"a number", posted(secret, "n", now, []byte("7")), 400, 6, "not an event"},
		{"null", posted(secret, "n", now, []byte("null")), 400, 6, "not an event"},
		{"no id", posted(secret, "n", now, []byte(`{"type":"a"}`)), 400, 6, "not an event"},
		{"an id that leads elsewhere", posted(secret, "n", now, []byte(`{"id":"..","type":"a"}`)), 400, 6, "not an event"},
		{"a batch of which one is no event, all of it or nothing", posted(secret, "o", now, []byte(`[{"id":"1","type":"a"},7]`)), 400, 6, "not an event"},
		{"an event of another program", posted(secret, "p", now, []byte(`{"id":"1","type":"a"}`)), 204, 7, ""},
		{"from a page of another site", with(posted(secret, "q", now, event()), "Origin", "http://evil.example"), 403, 7, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := b.answer(tc.req)
			if got := len(b.lines()); w.Code != tc.status || got != tc.kept {
				t.Errorf("got status %d %s, %d events kept; want %d, %d", w.Code, w.Body, got, tc.status, tc.kept)
			}
			if tc.why != "" && strings.TrimSpace(w.Body.String()) != tc.why {
				t.Errorf("got %q as the reason; want %q", w.Body, tc.why)
			}
		})
	}
	if got, want := string(stats(b).Refused), `{"content encoding":1,"content type":1,"gzip":1,"not an event":6,"signature":4,"too large":2}`; got != want {
		t.Errorf("refused: got %s; want %s", got, want)
	}
	if got := stats(b); got.Repeated != 1 || got.Events != 7 {
		t.Errorf("got %d events, %d repeated; want 7, 1", got.Events, got.Repeated)
	}
}

func TestWithoutSecretsSignaturesAreNotChecked(t *testing.T) {
	b := newBench(t, func(s *settings) { s.webhooks = nil })
	m := newMirror(b.clock.now())
	for want, secret := range map[string]string{unsigned: "", unchecked: secret} {
		e := m.request(b.clock.now(), "/")
		if w := b.answer(posted(secret, "a", b.clock.now(), encode(e))); w.Code != 204 {
			t.Fatalf("%s: got status %d", want, w.Code)
		}
		if got := b.found(e["id"].(string)).Delivery.Signature; got != want {
			t.Errorf("got signature %q; want %q", got, want)
		}
	}
}

func TestSecretsAreNotShown(t *testing.T) {
	_, err := webhooksOf("whsec_not base64!")
	if err == nil || strings.Contains(err.Error(), "not base64!") {
		t.Errorf("got %v; want an error without the secret", err)
	}
}

func TestTheHandshakeIsAnswered(t *testing.T) {
	b := newBench(t, nil)
	req := httptest.NewRequest("OPTIONS", "/events", nil)
	req.Header.Set("WebHook-Request-Origin", "mirror.example.com")
	w := b.answer(req)
	if got := w.Header().Get("WebHook-Allowed-Origin"); w.Code/100 != 2 || got != "mirror.example.com" {
		t.Errorf("got status %d, allowed origin %q", w.Code, got)
	}
}

func TestAFullIntakeTellsToWait(t *testing.T) {
	b := newBench(t, nil)
	in := &intake{now: b.clock.now, journal: b.kept, room: make(chan struct{})}
	w := httptest.NewRecorder()
	in.ServeHTTP(w, posted("", "", b.clock.now(), nil))
	if w.Code != 429 || w.Header().Get("Retry-After") != "1" {
		t.Errorf("got status %d, Retry-After %q; want 429, 1", w.Code, w.Header().Get("Retry-After"))
	}
	if got, want := string(stats(b).Refused), `{"busy":1}`; got != want {
		t.Errorf("refused: got %s; want %s", got, want)
	}
}

// What is wrong with an event is shown. It has come all the same: only an event whose
// sequence is none leaves its number missing.
func TestProblems(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(object)
		want   string // in one of the problems; none if empty
	}{
		{"a valid event", func(object) {}, ""},
		{"an unknown member", func(e object) { e["extra"] = 1 }, "/: additional properties 'extra' not allowed"},
		{"a method that is a number", func(e object) { of(e, "data", "http", "request")["method"] = 7 }, "/data/http/request/method: got number, want string"},
		{"a time that is none", func(e object) { e["time"] = "yesterday" }, "/time: "},
		{"a header whose name is upper case", func(e object) { of(e, "data", "http", "request", "header")["X-A"] = []string{"b"} }, "X-A"},
		{"a body that is cut without a reason", func(e object) {
			of(e, "data", "http", "request")["body"] = object{"truncated": true, "size": 3}
		}, "truncated_reason"},
		{"an id that is no UUID", func(e object) { e["id"] = "7" }, "/id: '7' does not match pattern"},
		{"no data", func(e object) { delete(e, "data") }, "missing property 'data'"},
		{"a number above all", func(e object) { e["sequence"] = "0199baa1c000-99999999999999999999" }, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, nil)
			m := newMirror(b.clock.now().Add(time.Second))
			m.number = 6
			e := m.request(b.clock.now(), "/a")
			tc.change(e)
			b.deliver(e)
			found := b.found(e["id"].(string))
			got := strings.Join(found.Problems, "\n")
			if (tc.want == "") != (got == "") || !strings.Contains(got, tc.want) {
				t.Errorf("got problems %q; want %q", got, tc.want)
			}
			b.deliver(m.request(b.clock.now(), "/b"))
			b.clock.add(time.Minute)
			gap := "1-6 before 1 unreported"
			if tc.name == "a number above all" { // the schema allows it; it is just not followed
				gap = "1-7 before 2 unreported"
			}
			if got := told(b.gaps()); got != gap {
				t.Errorf("got gaps %q; want %q", got, gap)
			}
		})
	}
}

func TestAReportThatDoesNotAddUpIsAProblem(t *testing.T) {
	b := newBench(t, nil)
	m := newMirror(b.clock.now().Add(time.Second))
	m.request(b.clock.now(), "/")
	r := m.report(b.clock.now())
	of(r, "data")["delivered"] = 7
	b.deliver(r)
	got := b.found(r["id"].(string)).Problems
	if fmt.Sprint(got) != "[/data: does not add up: the number is 1; delivered, dropped, failed, waiting and in_flight are 7]" {
		t.Errorf("got problems %q", got)
	}
}

// Whatever is in an event, what the list gets of it is short.
func TestRowsAreShort(t *testing.T) {
	b := newBench(t, nil)
	m := newMirror(b.clock.now().Add(time.Second))
	long := strings.Repeat("ä\u202e<script>", 20000)
	e := m.request(b.clock.now(), long)
	e["source"] = "//a/middlewares/" + long
	of(e, "data", "url")["query"] = long
	of(e, "data", "client")["address"] = long
	of(e, "data")["server"] = object{"address": long, "port": 1}
	of(e, "data", "http", "request")["method"] = long
	of(e, "data", "http", "request", "header")["content-type"] = []string{long}
	of(e, "data", "http", "request")["body"] = object{"truncated": true, "truncated_reason": long, "size": 1}
	b.deliver(e)
	rows := b.rows()
	if len(rows) != 1 || len(rows[0]) > 8000 {
		t.Fatalf("got %d rows, the first with %d bytes; want 1 with at most 8000", len(rows), len(rows[0]))
	}
}
