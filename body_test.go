package requestmirror

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// upload is a request's body as a server has it: it gives at most step bytes at a
// time, and what comes after the last is end.
type upload struct {
	rest   []byte
	step   int
	end    error
	closed int
}

func (u *upload) Read(p []byte) (int, error) {
	if len(u.rest) == 0 {
		return 0, u.end
	}
	if len(p) > u.step {
		p = p[:u.step]
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

func (u *upload) Close() error {
	u.closed++
	return nil
}

// request with a body; a length of -1 is unknown, as with chunks.
func uploadOf(u *upload, length int64) *http.Request {
	var source io.ReadCloser = u
	req := httptest.NewRequest(http.MethodPost, "/upload", nil)
	req.Body = source
	req.ContentLength = length
	return req
}

// textOf is the first n bytes of a text in which no stretch looks like another.
func textOf(n int) []byte { return longText[:n:n] }

var longText = makeText(512 << 10)

func makeText(n int) []byte {
	out := make([]byte, 0, n+16)
	for i := int64(1); len(out) < n; i++ {
		out = strconv.AppendInt(append(out, ' '), i*7919, 10)
	}
	return out
}

// contentOf is what a receiver decodes of a body.
func contentOf(t testing.TB, w *wireBody) []byte {
	t.Helper()
	if w.Content != nil && w.ContentBase64 != "" {
		t.Fatal("got content and content_base64; want one of them at most")
	}
	if w.Content != nil {
		return []byte(*w.Content)
	}
	content, err := base64.StdEncoding.DecodeString(w.ContentBase64)
	if err != nil {
		t.Fatalf("got content_base64 that is none: %v", err)
	}
	return content
}

// keptBody encodes what was captured and gives all of it back.
func keptBody(t testing.TB, p *pipeline, c *capture) (w *wireBody, content []byte) {
	t.Helper()
	if c.body == nil {
		t.Fatal("got no body in the capture; want one")
	}
	w = encodeBody(c, c.body, c.header)
	if w.Truncated != (w.Reason != "") {
		t.Errorf("got truncated %v with reason %q; want both or none", w.Truncated, w.Reason)
	}
	content = contentOf(t, w)
	discharge(p, c)
	if held := bytesHeld(p); held != 0 {
		t.Errorf("got %d bytes of the budget held after the event's end; want 0", held)
	}
	return w, content
}

// The edges of how bodies are kept: in one piece, in a first part, in parts.
var bodySizes = []int{
	1, 2, firstPart - 1, firstPart, firstPart + 1, firstPart + largePart, firstPart + largePart + 1, firstPart + nextPart - 1, firstPart + nextPart, firstPart + nextPart + 1,
	largePart - 1, largePart, largePart + 1, firstPart + 4*nextPart + largePart, 3*largePart + 17,
}

func TestBackendSeesEveryByteAndTheEventTheFirstOnes(t *testing.T) {
	for _, limit := range []int{0, 1, firstPart, firstPart + nextPart, 100000, 1 << 20} {
		p := stillPipeline(t, opts{"maxBodySize": limit})
		for _, size := range bodySizes {
			for _, sized := range []bool{true, false} {
				checkBody(t, p, limit, size, sized)
			}
		}
	}
}

func checkBody(t *testing.T, p *pipeline, limit, size int, sized bool) {
	t.Helper()
	name := fmt.Sprintf("a body of %d bytes, limit %d, sized %v", size, limit, sized)
	sent := textOf(size)
	u := &upload{rest: sent, step: 5000, end: io.EOF}
	length := int64(-1)
	if sized {
		length = int64(size)
	}
	req := uploadOf(u, length)
	var seen []byte
	c := captured(t, p, req, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		if req.ContentLength != length {
			t.Errorf("%s: got ContentLength %d; want %d", name, req.ContentLength, length)
		}
		buffer := make([]byte, 7001)
		for {
			n, err := req.Body.Read(buffer)
			seen = append(seen, buffer[:n]...)
			if err != nil {
				if err != io.EOF {
					t.Errorf("%s: got error %v at the end; want EOF", name, err)
				}
				break
			}
		}
		_ = req.Body.Close()
	}))
	if !bytes.Equal(seen, sent) {
		t.Errorf("%s: the backend got %d bytes; want the ones sent", name, len(seen))
	}
	if u.closed != 1 {
		t.Errorf("%s: got %d closes; want 1", name, u.closed)
	}
	kept := sent
	reason := ""
	if size > limit {
		kept = sent[:limit]
		reason = cutLimit
	}
	w, content := keptBody(t, p, c)
	if !bytes.Equal(content, kept) {
		t.Errorf("%s: got %d bytes kept; want the first %d", name, len(content), len(kept))
	}
	if w.Size != int64(size) || w.Reason != reason {
		t.Errorf("%s: got size %d, reason %q; want %d, %q", name, w.Size, w.Reason, size, reason)
	}
}

var errGone = errors.New("client gone")

var cutCases = []struct {
	name    string
	options opts
	method  string
	kind    string // content type
	size    int    // of what the client sends
	length  int64  // as declared
	end     error
	abort   bool // the server cancels the context, as it does when the client is gone
	read    int  // bytes that the backend reads; -1 all
	want    string
	kept    int
	seen    int64
}{
	{name: "a body that the backend never looks at is unread", size: 5000, length: 5000, end: io.EOF, want: cutUnread},
	{name: "a chunked body that the backend never looks at is unread", size: 5000, length: -1, end: io.EOF, want: cutUnread},
	{name: "a body that is read in part is kept as far", size: 9000, length: 9000, end: io.EOF, read: 4500, want: cutUnread, kept: 4500, seen: 4500},
	{name: "a small body that is read in part is kept as far", size: 100, length: 100, end: io.EOF, read: 60, want: cutUnread, kept: 60, seen: 60},
	{name: "a chunked body that is read in part is kept as far", size: 9000, length: -1, end: io.EOF, read: 4500, want: cutUnread, kept: 4500, seen: 4500},
	{name: "a sized body needs no look at its end to be whole", size: 9000, length: 9000, end: io.EOF, read: 9000, kept: 9000, seen: 9000},
	{name: "of a body over the limit that is read in part, unread says most", options: opts{"maxBodySize": 100}, size: 9000, length: 9000, end: io.EOF, read: 4500, want: cutUnread, kept: 100, seen: 4500},
	{name: "an upload that breaks off is aborted", size: 3000, length: 9000, end: errGone, abort: true, read: -1, want: cutAborted, kept: 3000, seen: 3000},
	{name: "a small upload that breaks off is aborted", size: 30, length: 90, end: errGone, abort: true, read: -1, want: cutAborted, kept: 30, seen: 30},
	{name: "a chunked upload that breaks off is aborted", size: 3000, length: -1, end: errGone, abort: true, read: -1, want: cutAborted, kept: 3000, seen: 3000},
	{name: "an upload over the limit that breaks off is aborted", options: opts{"maxBodySize": 100}, size: 3000, length: -1, end: errGone, abort: true, read: -1, want: cutAborted, kept: 100, seen: 3000},
	{name: "a client that is gone after its last byte was read sent all", size: 3000, length: 3000, end: errGone, abort: true, read: 3000, kept: 3000, seen: 3000},
	{name: "without mirrorBody only the size is told", options: opts{"mirrorBody": false}, size: 9000, length: 9000, end: io.EOF, read: -1, want: cutDisabled, seen: 9000},
	{name: "without mirrorBody a chunked body is counted", options: opts{"mirrorBody": false}, size: 9000, length: -1, end: io.EOF, read: -1, want: cutDisabled, seen: 9000},
	{name: "a content type that is not wanted is not kept", options: opts{"bodyContentTypes": "text/*,application/json"}, kind: "image/png", size: 90, length: 90, end: io.EOF, read: -1, want: cutContentType, seen: 90},
	{name: "a body without content type is not wanted either", options: opts{"bodyContentTypes": "text/*"}, size: 90, length: -1, end: io.EOF, read: -1, want: cutContentType, seen: 90},
	{name: "a content type that is wanted is kept, whatever its case and parameters", options: opts{"bodyContentTypes": []string{"Application/JSON"}}, kind: "application/Json ; charset=utf-8", size: 90, length: 90, end: io.EOF, read: -1, kept: 90, seen: 90},
	{name: "a glob is a whole name", options: opts{"bodyContentTypes": "text/*"}, kind: "application/text/plain", size: 90, length: 90, end: io.EOF, read: -1, want: cutContentType, seen: 90},
	{name: "without memory only the size is told", options: opts{"memoryLimit": 1}, size: 9000, length: 9000, end: io.EOF, read: -1, want: cutMemory, seen: 9000},
	{name: "without memory a small body is not kept", options: opts{"memoryLimit": 1}, size: 90, length: 90, end: io.EOF, read: -1, want: cutMemory, seen: 90},
	{name: "memory that ends midway cuts", options: opts{"memoryLimit": firstPart + largePart}, size: 300000, length: 300000, end: io.EOF, read: -1, want: cutMemory, kept: firstPart + largePart, seen: 300000},
	{name: "memory that ends midway cuts a chunked body", options: opts{"memoryLimit": firstPart + 1}, size: 100000, length: -1, end: io.EOF, read: -1, want: cutMemory, kept: firstPart, seen: 100000},
	{name: "a tunnel is not a body", method: http.MethodConnect, size: 100, length: -1, end: io.EOF, read: -1, want: cutUnread},
}

func TestCutBodies(t *testing.T) {
	for _, c := range cutCases {
		p := stillPipeline(t, c.options)
		sent := textOf(c.size)
		u := &upload{rest: sent, step: 700, end: c.end}
		req := uploadOf(u, c.length)
		if c.method != "" {
			req.Method = c.method
		}
		if c.kind != "" {
			req.Header.Set("Content-Type", c.kind)
		}
		ctx, cancel := context.WithCancel(req.Context())
		req = req.WithContext(ctx)
		aborts := c.abort
		want := c.read
		wantErr := c.end
		name := c.name
		got := captured(t, p, req, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			var seen []byte
			var err error
			if want >= 0 {
				seen = make([]byte, want)
				_, err = io.ReadFull(req.Body, seen)
				wantErr = nil
			} else {
				seen, err = io.ReadAll(req.Body)
				if wantErr == io.EOF {
					wantErr = nil
				}
			}
			if err != wantErr {
				t.Errorf("%s: the backend got error %v; want %v", name, err, wantErr)
			}
			if !bytes.Equal(seen, sent[:len(seen)]) || want < 0 && len(seen) != len(sent) {
				t.Errorf("%s: the backend got %d bytes; want the ones sent", name, len(seen))
			}
			if aborts {
				cancel()
			}
		}))
		cancel()
		w, content := keptBody(t, p, got)
		if w.Reason != c.want || w.Size != c.seen {
			t.Errorf("%s: got reason %q, size %d; want %q, %d", c.name, w.Reason, w.Size, c.want, c.seen)
		}
		if !bytes.Equal(content, sent[:c.kept]) {
			t.Errorf("%s: got %d bytes kept; want the first %d", c.name, len(content), c.kept)
		}
		if w.Truncated && c.kept == 0 && w.Content != nil {
			t.Errorf("%s: got content %q; want none", c.name, *w.Content)
		}
	}
}

func TestBodyIsPassedOnWhenItComes(t *testing.T) {
	// The backend answers each chunk before the client sends the next: whoever reads
	// ahead, or holds back, waits for ever.
	for _, length := range []int64{-1, 12, 12000} {
		p := stillPipeline(t, opts{"maxBodySize": 6})
		reader, writer := io.Pipe()
		req := httptest.NewRequest(http.MethodPost, "/", nil)
		req.Body = reader
		req.ContentLength = length
		acks := make(chan string)
		go func() {
			for _, chunk := range []string{"abcd", "efgh", "ijkl"} {
				_, _ = writer.Write([]byte(chunk))
				got := <-acks
				if got != chunk {
					t.Errorf("got chunk %q; want %q", got, chunk)
				}
			}
			_ = writer.Close()
			close(acks)
		}()
		c := captured(t, p, req, http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			buffer := make([]byte, 100)
			chunk := ""
			for {
				n, err := req.Body.Read(buffer)
				chunk += string(buffer[:n])
				if len(chunk) == 4 {
					acks <- chunk
					chunk = ""
				}
				if err != nil {
					break
				}
			}
			<-acks
		}))
		if _, content := keptBody(t, p, c); string(content) != "abcdef" && length != 12000 {
			t.Errorf("length %d: got %q kept; want abcdef", length, content)
		}
	}
}

func TestLateReadsOfTheTransportAreNotTheEvents(t *testing.T) {
	for _, length := range []int64{60, 20000, -1} {
		p := stillPipeline(t, nil)
		sent := textOf(20000)
		if length == 60 {
			sent = sent[:60]
		}
		u := &upload{rest: sent, step: 30, end: io.EOF}
		var late io.Reader
		c := captured(t, p, uploadOf(u, length), http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			_, _ = io.ReadFull(req.Body, make([]byte, 30))
			late = req.Body
		}))
		rest, err := io.ReadAll(late)
		if err != nil || !bytes.Equal(rest, sent[30:]) {
			t.Errorf("length %d: late reads got %d bytes, error %v; want the remaining %d", length, len(rest), err, len(sent)-30)
		}
		if w, content := keptBody(t, p, c); !bytes.Equal(content, sent[:30]) || w.Size != 30 || w.Reason != cutUnread {
			t.Errorf("length %d: got %d bytes, size %d, reason %q; want 30, 30, unread", length, len(content), w.Size, w.Reason)
		}
	}
}

// A transport that reads on in a goroutine of its own while the handler returns is
// what happens at an early answer; the race detector watches.
func TestLateReadsAtTheSameTimeConcurrentSafe(t *testing.T) {
	p := stillPipeline(t, nil)
	for _, length := range []int64{4000, 200000, -1} {
		for i := 0; i < 20; i++ {
			sent := textOf(200000)
			if length == 4000 {
				sent = sent[:4000]
			}
			u := &upload{rest: sent, step: 500, end: io.EOF}
			done := make(chan int64, 1)
			c := captured(t, p, uploadOf(u, length), http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				body := req.Body
				_, _ = io.ReadFull(body, make([]byte, 1000))
				go func() {
					n, _ := io.Copy(io.Discard, body)
					done <- n
				}()
			}))
			w := encodeBody(c, c.body, c.header)
			content := contentOf(t, w)
			if int64(len(content)) != w.Size || w.Size < 1000 || !bytes.Equal(content, sent[:len(content)]) {
				t.Errorf("length %d: got %d bytes, size %d; want a beginning of what was sent, from 1000 on", length, len(content), w.Size)
			}
			n := <-done
			if n != int64(len(sent))-1000 {
				t.Errorf("length %d: late reads got %d bytes; want %d", length, n, len(sent)-1000)
			}
			discharge(p, c)
		}
	}
	if held := bytesHeld(p); held != 0 {
		t.Errorf("got %d bytes held; want 0", held)
	}
}

func TestManyBodiesConcurrentSafe(t *testing.T) {
	const limit = 300000
	p := stillPipeline(t, opts{"memoryLimit": limit, "queueSize": 10000})
	var group sync.WaitGroup
	for g := 0; g < 4; g++ {
		group.Add(1)
		go uploadMany(t, p, int64(g), &group)
	}
	whole := 0
	cut := 0
	for i := 0; i < 4*60; i++ {
		c := <-p.queue
		if held := bytesHeld(p); held > limit+4*largePart {
			t.Errorf("got %d bytes held; want no more than memoryLimit, %d", held, limit)
		}
		size := int(c.body.kept + c.body.beyond)
		w := encodeBody(c, c.body, c.header)
		content := contentOf(t, w)
		if !bytes.Equal(content, textOf(size)[:len(content)]) {
			t.Errorf("got other bytes kept than were sent in a body of %d", size)
		}
		if w.Reason == "" && len(content) == size {
			whole++
		} else if w.Reason == cutMemory && len(content) < size {
			cut++
		} else {
			t.Errorf("got %d of %d bytes, reason %q; want all, or memory", len(content), size, w.Reason)
		}
		p.mu.Lock()
		discharge(p, c)
		p.mu.Unlock()
	}
	group.Wait()
	if held := bytesHeld(p); held != 0 {
		t.Errorf("got %d bytes held after %d whole and %d cut bodies; want 0", held, whole, cut)
	}
	if whole == 0 {
		t.Error("got no whole body; want some")
	}
}

func uploadMany(t *testing.T, p *pipeline, seed int64, group *sync.WaitGroup) {
	defer group.Done()
	random := rand.New(rand.NewSource(seed))
	handler := newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
	}), p.set, []*pipeline{p})
	for i := 0; i < 60; i++ {
		size := 1 + random.Intn(150000)
		length := int64(size)
		if i%2 == 0 {
			length = -1
		}
		u := &upload{rest: textOf(size), step: 4096, end: io.EOF}
		handler.ServeHTTP(httptest.NewRecorder(), uploadOf(u, length))
	}
}

func TestMemoryComesBackWhenAnEventIsDropped(t *testing.T) {
	p := stillPipeline(t, opts{"queueSize": 1, "memoryLimit": "1Mi"})
	next := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { _, _ = io.Copy(io.Discard, req.Body) })
	for i := 0; i < 5; i++ {
		u := &upload{rest: textOf(100000), step: 4096, end: io.EOF}
		m := newMirror(next, p.set, []*pipeline{p})
		m.full = 100 // as if the queue had room when the request came
		m.ServeHTTP(httptest.NewRecorder(), uploadOf(u, 100000))
	}
	if got := p.counts.dropped[reasonQueueFull]; got != 4 {
		t.Errorf("got %d events dropped; want 4", got)
	}
	if held := bytesHeld(p); held < 100000 || held > 100000+largePart {
		t.Errorf("got %d bytes held by one waiting event; want about 100000", held)
	}
	c := <-p.queue
	if w, content := keptBody(t, p, c); len(content) != 100000 || w.Truncated {
		t.Errorf("got %d bytes, truncated %v; want all", len(content), w.Truncated)
	}
}

func TestPartsAreRecycledOnce(t *testing.T) {
	for i := 0; i < 50; i++ {
		p := stillPipeline(t, nil)
		next := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { _, _ = io.Copy(io.Discard, req.Body) })
		first := captured(t, p, uploadOf(&upload{rest: textOf(300000), step: 4096, end: io.EOF}, -1), next)
		content(first.body)
		recycle(first.body)
		discharge(p, first)
		// A part that was given back twice would now be in two bodies.
		a := captured(t, p, uploadOf(&upload{rest: bytes.Repeat([]byte("a"), 300000), step: 4096, end: io.EOF}, -1), next)
		b := captured(t, p, uploadOf(&upload{rest: bytes.Repeat([]byte("b"), 300000), step: 4096, end: io.EOF}, -1), next)
		if got := strings.Count(content(a.body), "a"); got != 300000 {
			t.Fatalf("got %d bytes of the first body; want 300000", got)
		}
		if got := strings.Count(content(b.body), "b"); got != 300000 {
			t.Fatalf("got %d bytes of the second body; want 300000", got)
		}
	}
}

func TestClientThatAnnouncesMuchAndSendsLittleHoldsLittle(t *testing.T) {
	p := stillPipeline(t, opts{"maxBodySize": "100Mi", "memoryLimit": "1Gi"})
	u := &upload{rest: textOf(10), step: 10, end: errGone}
	c := captured(t, p, uploadOf(u, 100<<20), http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		if held := bytesHeld(p); held > firstPart {
			t.Errorf("got %d bytes held for 10 that came; want at most %d", held, firstPart)
		}
	}))
	keptBody(t, p, c)
}

func TestBodyOfAPanickingHandler(t *testing.T) {
	p := stillPipeline(t, nil)
	var value interface{}
	next := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		_, _ = io.ReadFull(req.Body, make([]byte, 3))
		panic(http.ErrAbortHandler)
	})
	func() {
		defer func() { value = recover() }()
		newMirror(next, p.set, []*pipeline{p}).ServeHTTP(httptest.NewRecorder(), uploadOf(&upload{rest: []byte("abcdef"), step: 9, end: io.EOF}, 6))
	}()
	if value == nil {
		t.Fatal("got no panic; want the handler's")
	}
	if len(p.queue) != 1 {
		t.Fatalf("got %d events; want 1", len(p.queue))
	}
	c := <-p.queue
	if w, got := keptBody(t, p, c); string(got) != "abc" || w.Reason != cutUnread {
		t.Errorf("got %q, reason %q; want abc, unread", got, w.Reason)
	}
}
