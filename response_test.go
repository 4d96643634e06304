package requestmirror

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What is kept of a response, and how it is written. What a client and a backend see of
// it, on real connections and with compiled ResponseWriters, is test/engine's.

// answered is what an event says of the response.
type answered struct {
	Status   *int                `json:"status_code"`
	Header   map[string][]string `json:"header"`
	Body     *wireBody           `json:"body"`
	Duration *float64            `json:"-"`
}

// responseOf decodes it, strictly; nil if there is none.
func responseOf(t testing.TB, payload []byte) *answered {
	t.Helper()
	whole := struct {
		Data struct {
			HTTP struct {
				Response json.RawMessage `json:"response"`
			} `json:"http"`
			Duration *float64 `json:"duration_ms"`
		} `json:"data"`
	}{}
	if err := json.Unmarshal(payload, &whole); err != nil {
		t.Fatalf("got a payload that is no JSON: %v in %s", err, payload)
	}
	if whole.Data.HTTP.Response == nil {
		if whole.Data.Duration != nil {
			t.Errorf("got duration_ms %v without a response; want none", *whole.Data.Duration)
		}
		return nil
	}
	got := &answered{Duration: whole.Data.Duration}
	decoder := json.NewDecoder(bytes.NewReader(whole.Data.HTTP.Response))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(got); err != nil {
		t.Fatalf("got a response that is none: %v in %s", err, payload)
	}
	if got.Duration == nil || *got.Duration <= 0 {
		t.Errorf("got no duration_ms above 0 in %s", payload)
	}
	return got
}

// written is what is kept of a response to a GET, and of what the client got.
func written(t testing.TB, p *pipeline, next http.HandlerFunc) (*capture, *httptest.ResponseRecorder) {
	t.Helper()
	return writtenTo(t, p, get("/"), next)
}

func writtenTo(t testing.TB, p *pipeline, req *http.Request, next http.HandlerFunc) (*capture, *httptest.ResponseRecorder) {
	t.Helper()
	rw := httptest.NewRecorder()
	newMirror(next, p.set, []*pipeline{p}).ServeHTTP(rw, req)
	if len(p.queue) != 1 {
		t.Fatalf("got %d events for one request; want 1", len(p.queue))
	}
	c := <-p.queue
	if c.response == nil {
		t.Fatal("got no response in the capture; want one")
	}
	return c, rw
}

// keptResponse encodes the body of a response and gives all of it back.
func keptResponse(t testing.TB, p *pipeline, c *capture) (w *wireBody, content []byte) {
	t.Helper()
	if c.response.body == nil {
		t.Fatal("got no body of the response; want one")
	}
	w = encodeBody(c, c.response.body, c.response.header)
	content = contentOf(t, w)
	discharge(p, c)
	if held := bytesHeld(p); held != 0 {
		t.Errorf("got %d bytes of the budget held after the event's end; want 0", held)
	}
	return w, content
}

func TestResponseIsDescribedAsFarAsItIsWanted(t *testing.T) {
	next := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		rw.Header().Set("Content-Type", "text/plain")
		rw.Header().Add("Set-Cookie", "session=s3cr3t")
		rw.Header().Add("Set-Cookie", "other=s3cr3t")
		rw.Header().Set("X-Vault-Token", "s3cr3t")
		rw.Header().Set("X-Answer", `"quoted"`)
		rw.WriteHeader(http.StatusTeapot)
		_, _ = io.WriteString(rw, "hello ")
		_, _ = io.WriteString(rw, "<world>")
	})
	for mode, want := range map[string]answered{
		"none":    {},
		"status":  {},
		"headers": {Header: map[string][]string{}},
		"body":    {Header: map[string][]string{}, Body: &wireBody{}},
	} {
		t.Run(mode, func(t *testing.T) {
			rec := newReceiver(t)
			handler := mirrorOf(t, next, opts{"watchURL": rec.url, "captureResponse": mode, "attributes": map[string]string{"environment": "test"}})
			server := httptest.NewServer(handler) // whose ResponseWriter keeps the status
			defer server.Close()
			for i, text := range []string{"", "a body"} {
				resp, err := http.Post(server.URL, "text/plain", strings.NewReader(text))
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusTeapot || string(body) != "hello <world>" || resp.Header.Get("Content-Length") != "13" {
					t.Errorf("got answer %d %q, length %q; want the backend's, 418 hello <world>, 13", resp.StatusCode, body, resp.Header.Get("Content-Length"))
				}
				payload := rec.wait(t, i+1)[i].payload
				if strings.Contains(string(payload), "s3cr3t") || !strings.Contains(string(payload), `,"attributes":{"environment":"test"}}}`) {
					t.Errorf("got %s; want no secret, and the attributes at its end", payload)
				}
				got := responseOf(t, payload)
				if mode == "none" {
					if got != nil {
						t.Errorf("got response %+v; want none", got)
					}
					continue
				}
				if got == nil || got.Status == nil || *got.Status != http.StatusTeapot {
					t.Fatalf("got %s; want a response with status 418", payload)
				}
				if (got.Header != nil) != (want.Header != nil) || (got.Body != nil) != (want.Body != nil) {
					t.Fatalf("got %s; want header %v, body %v", payload, want.Header != nil, want.Body != nil)
				}
				if want.Header != nil {
					if two := strings.Join(got.Header["set-cookie"], ","); two != "REDACTED,REDACTED" || got.Header["x-vault-token"][0] != "REDACTED" {
						t.Errorf("got header %v; want what is secret redacted, value by value", got.Header)
					}
					if got.Header["x-answer"][0] != `"quoted"` || got.Header["content-type"][0] != "text/plain" {
						t.Errorf("got header %v; want the rest as it was", got.Header)
					}
				}
				if want.Body != nil && (got.Body.Content == nil || *got.Body.Content != "hello <world>" || got.Body.Size != 13 || got.Body.Truncated) {
					t.Errorf("got body %+v; want hello <world>, whole", got.Body)
				}
			}
		})
	}
}

func TestRequestWithoutBodyIsMirroredAfterTheResponse(t *testing.T) {
	for _, mode := range []string{"status", "headers", "body"} {
		p := stillPipeline(t, opts{"captureResponse": mode})
		written(t, p, func(rw http.ResponseWriter, req *http.Request) {
			if len(p.queue) != 0 {
				t.Errorf("%s: got an event while the backend works; want none", mode)
			}
		})
	}
}

func TestOnlyTheBodyTakesAnotherResponseWriter(t *testing.T) {
	for mode, same := range map[string]bool{"none": true, "status": true, "headers": true, "body": false} {
		for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodConnect} {
			p := stillPipeline(t, opts{"captureResponse": mode})
			rw := httptest.NewRecorder()
			var came http.ResponseWriter
			newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { came = rw }), p.set, []*pipeline{p}).
				ServeHTTP(rw, httptest.NewRequest(method, "/", nil))
			if got := came == http.ResponseWriter(rw); got != (same || method == http.MethodConnect) {
				t.Errorf("%s %s: got the same ResponseWriter: %v; want %v", mode, method, got, !got)
			}
		}
	}
}

func TestClientGetsEveryByteAndTheEventTheFirstOnes(t *testing.T) {
	for _, limit := range []int{0, 1, firstPart, 100000} {
		p := stillPipeline(t, opts{"maxBodySize": limit, "captureResponse": "body"})
		for _, size := range bodySizes {
			for _, sized := range []bool{true, false} {
				name := fmt.Sprintf("a response of %d bytes, limit %d, sized %v", size, limit, sized)
				sent := textOf(size)
				announced := sized
				c, rw := written(t, p, func(rw http.ResponseWriter, req *http.Request) {
					if announced {
						rw.Header().Set("Content-Length", strconv.Itoa(len(sent)))
					}
					u := &upload{rest: sent, step: 5000, end: io.EOF}
					_, _ = io.CopyBuffer(rw, u, make([]byte, 7001))
				})
				if !bytes.Equal(rw.Body.Bytes(), sent) {
					t.Errorf("%s: the client got %d bytes; want the ones sent", name, rw.Body.Len())
				}
				kept := sent
				reason := ""
				if size > limit {
					kept = sent[:limit]
					reason = cutLimit
				}
				w, content := keptResponse(t, p, c)
				if !bytes.Equal(content, kept) || w.Size != int64(size) || w.Reason != reason || w.Truncated != (reason != "") {
					t.Errorf("%s: got %d bytes, size %d, reason %q; want %d, %d, %q", name, len(content), w.Size, w.Reason, len(kept), size, reason)
				}
			}
		}
	}
}

var cutResponses = []struct {
	name    string
	options opts
	kind    string // content type
	length  int    // as declared; -1 not at all
	size    int    // of what the handler writes
	panics  bool
	want    string
	kept    int
}{
	{name: "a panic in the middle", length: -1, size: 3000, panics: true, want: cutAborted, kept: 3000},
	{name: "a panic in the middle of what is over the limit", options: opts{"maxBodySize": 100}, length: -1, size: 3000, panics: true, want: cutAborted, kept: 100},
	{name: "less than was announced", length: 5000, size: 3000, want: cutAborted, kept: 3000},
	{name: "nothing of what was announced", length: 5000, size: 0, want: cutAborted},
	{name: "a content type that is not wanted", options: opts{"bodyContentTypes": "text/*"}, kind: "image/png", length: 3000, size: 3000, want: cutContentType},
	{name: "no content type where one is wanted", options: opts{"bodyContentTypes": "text/*"}, length: -1, size: 3000, want: cutContentType},
	{name: "a content type that is wanted", options: opts{"bodyContentTypes": "text/*"}, kind: "Text/HTML; charset=utf-8", length: -1, size: 3000, kept: 3000},
	{name: "no memory", options: opts{"memoryLimit": 1}, length: -1, size: 3000, want: cutMemory},
	{name: "memory that ends midway", options: opts{"memoryLimit": firstPart + nextPart}, length: -1, size: 300000, want: cutMemory, kept: firstPart + nextPart},
	{name: "without mirrorBody, which is the request's", options: opts{"mirrorBody": false}, length: -1, size: 3000, kept: 3000},
	{name: "nothing, as announced", length: 0, size: 0},
}

func TestCutResponses(t *testing.T) {
	for _, c := range cutResponses {
		options := opts{"captureResponse": "body"}
		for name, value := range c.options {
			options[name] = value
		}
		p := stillPipeline(t, options)
		of := c
		handler := newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			if of.kind != "" {
				rw.Header().Set("Content-Type", of.kind)
			}
			if of.length >= 0 {
				rw.Header().Set("Content-Length", strconv.Itoa(of.length))
			}
			rw.WriteHeader(http.StatusOK)
			for rest := textOf(of.size); len(rest) > 0; {
				n := len(rest)
				if n > 1000 {
					n = 1000
				}
				_, _ = rw.Write(rest[:n])
				rest = rest[n:]
			}
			if of.panics {
				panic(http.ErrAbortHandler)
			}
		}), p.set, []*pipeline{p})
		var next http.Handler = handler
		if got := panicOf(next, get("/")); (got != nil) != c.panics {
			t.Errorf("%s: got panic %v; want %v", c.name, got, c.panics)
		}
		got := <-p.queue
		if got.response.status != http.StatusOK {
			t.Errorf("%s: got status %d; want 200", c.name, got.response.status)
		}
		w, content := keptResponse(t, p, got)
		if w.Reason != c.want || w.Size != int64(c.size) || !bytes.Equal(content, textOf(c.size)[:c.kept]) {
			t.Errorf("%s: got %d bytes, size %d, reason %q; want %d, %d, %q", c.name, len(content), w.Size, w.Reason, c.kept, c.size, c.want)
		}
	}
}

// brokenWriter is that of a client who leaves after some bytes.
type brokenWriter struct {
	header http.Header
	left   int
}

func (b *brokenWriter) Header() http.Header { return b.header }
func (b *brokenWriter) WriteHeader(int)     {}
func (b *brokenWriter) Write(p []byte) (int, error) {
	if len(p) <= b.left {
		b.left -= len(p)
		return len(p), nil
	}
	n := b.left
	b.left = 0
	return n, errGone
}

func TestResponseToAClientWhoLeavesIsAborted(t *testing.T) {
	p := stillPipeline(t, opts{"captureResponse": "body"})
	handler := newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		n, err := io.Copy(rw, bytes.NewReader(textOf(3000)))
		if n != 1000 || err != errGone {
			t.Errorf("the handler wrote %d bytes, error %v; want 1000, %v", n, err, errGone)
		}
	}), p.set, []*pipeline{p})
	handler.ServeHTTP(&brokenWriter{http.Header{}, 1000}, get("/"))
	c := <-p.queue
	w, content := keptResponse(t, p, c)
	if string(content) != string(textOf(1000)) || w.Size != 1000 || w.Reason != cutAborted {
		t.Errorf("got %d bytes, size %d, reason %q; want 1000, 1000, aborted", len(content), w.Size, w.Reason)
	}
}

func TestResponsesThatHaveNoBody(t *testing.T) {
	for _, c := range []struct {
		name   string
		method string
		status []int
		want   int
	}{
		{"HEAD", http.MethodHead, []int{200}, 200},
		{"204", http.MethodGet, []int{204}, 204},
		{"304", http.MethodGet, []int{304}, 304},
		{"101", http.MethodGet, []int{101}, 101},
		{"what comes first is not the status", http.MethodHead, []int{100, 103, 103, 404}, 404},
		{"the first that is one stays", http.MethodHead, []int{201, 500}, 201},
		{"none at all", http.MethodGet, nil, 200},
	} {
		p := stillPipeline(t, opts{"captureResponse": "body"})
		statuses := c.status
		got, _ := writtenTo(t, p, httptest.NewRequest(c.method, "/", nil), func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Content-Length", "100")
			for _, status := range statuses {
				rw.WriteHeader(status)
			}
		})
		if got.response.status != c.want || got.response.body != nil {
			t.Errorf("%s: got status %d, body %v; want %d and none", c.name, got.response.status, got.response.body, c.want)
		}
	}
}

func TestStatusThatWasNotSentIsAbsent(t *testing.T) {
	for _, mode := range []string{"status", "headers", "body"} {
		p := stillPipeline(t, opts{"captureResponse": mode})
		var handler http.Handler = newMirror(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(errGone) }), p.set, []*pipeline{p})
		if got := panicOf(handler, get("/")); fmt.Sprint(got) != errGone.Error() {
			t.Errorf("%s: got panic %v; want %v", mode, got, errGone)
		}
		c := <-p.queue
		got := responseOf(t, encode(p, c, &delivery{}))
		if got == nil || got.Status != nil || got.Body != nil || (got.Header != nil) != (mode != "status") {
			t.Errorf("%s: got response %+v; want one without status and body", mode, got)
		}
	}
	// A ResponseWriter that nobody knows.
	p := stillPipeline(t, opts{"captureResponse": "status"})
	handler := newMirror(answer("ok"), p.set, []*pipeline{p})
	handler.ServeHTTP(&brokenWriter{http.Header{}, 100}, get("/"))
	c := <-p.queue
	if got := responseOf(t, encode(p, c, &delivery{})); got == nil || got.Status != nil {
		t.Errorf("got response %+v; want one without status", got)
	}
}

// withHeader is a backend whose answers have a header of that value.
func withHeader(value string) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { rw.Header().Set("X-Large", value) })
}

func TestTheHeaderOfAResponseTakesRoom(t *testing.T) {
	for _, receivers := range []int{1, 2} {
		one, other := stillTwo(t, opts{"captureResponse": "headers"})
		room := one.spare
		pipes := []*pipeline{one, other}[:receivers]
		for _, size := range []int{1000, 100000, largestHeader} {
			newMirror(withHeader(string(textOf(size))), one.set, pipes).ServeHTTP(httptest.NewRecorder(), get("/"))
		}
		for _, p := range pipes {
			if got, want := bookOf(t, p, 3), "dropped.memory=1 enqueued=2"; got != want {
				t.Errorf("%d receivers: got %s; want %s", receivers, got, want)
			}
		}
		if taken := room - one.spare; taken < 101000 || taken > 110000 {
			t.Errorf("%d receivers: got %d bytes taken for responses of 1000 and of 100,000; want little more than that", receivers, taken)
		}
	}
}

// A handler that is called without a server, as tests of middlewares do.
func TestStatusOfARecorder(t *testing.T) {
	for _, mode := range []string{"status", "headers", "body"} {
		p := stillPipeline(t, opts{"captureResponse": mode})
		for want, next := range map[int]http.HandlerFunc{
			200: func(http.ResponseWriter, *http.Request) {},
			201: func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusCreated) },
			404: http.NotFound,
		} {
			newMirror(next, p.set, []*pipeline{p}).ServeHTTP(httptest.NewRecorder(), get("/"))
			c := <-p.queue
			if got := responseOf(t, encode(p, c, &delivery{})); got == nil || got.Status == nil || *got.Status != want {
				t.Errorf("%s: got response %+v; want status %d", mode, got, want)
			}
		}
	}
}

func TestUnannouncedTrailersAreNotTheHeader(t *testing.T) {
	for _, mode := range []string{"headers", "body"} {
		p := stillPipeline(t, opts{"captureResponse": mode})
		c, rw := written(t, p, func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Content-Type", "text/plain")
			_, _ = io.WriteString(rw, "text")
			rw.Header().Set(http.TrailerPrefix+"X-Sum", "6")
		})
		if want := (http.Header{"Content-Type": {"text/plain"}}); !reflect.DeepEqual(c.response.header, want) {
			t.Errorf("%s: got header %v; want %v", mode, c.response.header, want)
		}
		if rw.Header().Get(http.TrailerPrefix+"X-Sum") != "6" {
			t.Errorf("%s: got header %v at the client's; want the trailer kept", mode, rw.Header())
		}
	}
}

// A body of the response that is in the way of maxEventSize goes before that of the
// request.
func TestResponseIsTrimmedBeforeTheRequest(t *testing.T) {
	p := stillPipeline(t, opts{"captureResponse": "body"})
	of := func(in, out []byte) *capture {
		c := bodyOf(p, in, 0, "")
		b := bodyOf(p, out, 0, "").body
		c.response = &response{status: 200, header: http.Header{"X-A": {"1"}}, body: b, took: time.Millisecond}
		return c
	}
	for name, text := range hardText(5 << 10) {
		limited(p, 1<<30)
		whole := len(encode(p, of(text, text), &delivery{}))
		alone := len(encode(p, of(text, nil), &delivery{}))
		for _, limit := range []int{whole, whole - 1, whole - 100, alone + 200, alone + 60, alone, alone - 1000, 4096} {
			limited(p, limit)
			c := of(text, text)
			payload := encode(p, c, &delivery{})
			if len(payload) > limit || payload[len(payload)-1] != '}' {
				t.Errorf("%s, limit %d: got %d bytes; want at most as many", name, limit, len(payload))
			}
			got := responseOf(t, payload)
			request := struct {
				Data struct {
					HTTP struct{ Request struct{ Body *wireBody } }
				}
			}{}
			_ = json.Unmarshal(payload, &request)
			asked := request.Data.HTTP.Request.Body
			if got == nil || got.Status == nil || *got.Status != 200 || asked == nil || got.Body == nil {
				t.Fatalf("%s, limit %d: got %s; want both bodies and the status", name, limit, payload)
			}
			if got.Body.Truncated != (limit < whole) || got.Body.Size != int64(len(text)) || got.Body.Truncated != c.shorn {
				t.Errorf("%s, limit %d of %d: got the response's body truncated %v, size %d", name, limit, whole, got.Body.Truncated, got.Body.Size)
			}
			if asked.Truncated && len(contentOf(t, got.Body)) > 0 {
				t.Errorf("%s, limit %d: got a cut request next to %d bytes of the response; want these gone first", name, limit, len(contentOf(t, got.Body)))
			}
			if limit >= alone+200 && (asked.Truncated || c.trimmed) {
				t.Errorf("%s, limit %d: got a cut request; want it whole, as there is room without the response's body", name, limit)
			}
			if !bytes.HasPrefix(text, contentOf(t, got.Body)) || !bytes.HasPrefix(text, contentOf(t, asked)) {
				t.Errorf("%s, limit %d: got content that is no beginning of the body", name, limit)
			}
		}
	}
}

func TestResponsesInTheLedger(t *testing.T) {
	rec := newReceiver(t)
	handler := mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = rw.Write(textOf(5000))
		if req.URL.Path == "/abort" {
			panic(http.ErrAbortHandler)
		}
	}), opts{"watchURL": rec.url, "captureResponse": "body", "maxBodySize": 1000})
	serve(handler, get("/"))
	serve(handler, send("/", string(textOf(3000))))
	var next http.Handler = handler
	panicOf(next, get("/abort"))
	posts := rec.wait(t, 3)
	for _, p := range posts {
		got := responseOf(t, p.payload)
		want := cutLimit
		if p.event.Subject == "/abort" {
			want = cutAborted
		}
		if got.Body == nil || got.Body.Reason != want || got.Body.Size != 5000 || len(*got.Body.Content) != 1000 {
			t.Errorf("%s: got body %+v; want 1000 bytes of 5000, reason %s", p.event.Subject, got.Body, want)
		}
	}
	waitFor(t, "the deliveries", func() bool { return tallyOf(t).Delivered == 3 })
	if n := tallyOf(t); n.Truncated[cutLimit] != 3 || n.Truncated[cutAborted] != 1 || n.BytesHeld != 0 {
		t.Errorf("got %+v; want 3 bodies cut for the limit, one aborted, nothing held", n)
	}
}

func TestReceiversShareTheResponse(t *testing.T) {
	one := newReceiver(t)
	two := newReceiver(t)
	text := string(textOf(300000))
	handler := mirrorOf(t, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		_, _ = io.WriteString(rw, text)
	}), opts{"watchURL": one.url, "watchURLs": two.url, "captureResponse": "body"})
	serve(handler, get("/"))
	serve(handler, send("/", text))
	for _, rec := range []*receiver{one, two} {
		for _, p := range rec.wait(t, 2) {
			if got := responseOf(t, p.payload); got == nil || got.Body == nil || got.Body.Content == nil || *got.Body.Content != text {
				t.Error("got another response; want the same at both receivers")
			}
		}
	}
	waitFor(t, "both to be settled", func() bool {
		all := talliesOf(t)
		for _, n := range all {
			if n.Delivered != 2 || n.BytesHeld != 0 {
				return false
			}
		}
		return len(all) == 2
	})
}

func TestResponseOfADroppedEventHoldsNothing(t *testing.T) {
	p := stillPipeline(t, opts{"captureResponse": "body", "queueSize": 1})
	handler := newMirror(answer(string(textOf(200000))), p.set, []*pipeline{p})
	for i := 0; i < 3; i++ {
		serve(handler, send("/", "abc"))
	}
	c := <-p.queue
	if got, want := bytesHeld(p), c.response.body.charged+c.body.charged; got != want {
		t.Errorf("got %d bytes held with one event in the queue; want its %d", got, want)
	}
	discharge(p, c)
	if got := bytesHeld(p); got != 0 {
		t.Errorf("got %d bytes held; want 0", got)
	}
}
