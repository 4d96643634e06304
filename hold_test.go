package requestmirror

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// rejecting are options of a middleware that turns down what is not signed with "key".
func rejecting(more opts) opts {
	options := opts{"authenticate.onFailure": "reject"}
	for path, value := range more {
		options[path] = value
	}
	return authenticated("key", options)
}

// site is a backend that notes what it saw.
type site struct {
	visits  int
	content []byte
	err     error
	length  int64
	closed  error
}

func (s *site) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	s.visits++
	s.length = req.ContentLength
	s.content, s.err = io.ReadAll(req.Body)
	s.closed = req.Body.Close()
	rw.WriteHeader(http.StatusTeapot)
}

func handlerOf(s *site) http.Handler {
	var handler http.Handler = s
	return handler
}

func TestHeldRequestReachesTheBackendAsItCame(t *testing.T) {
	const limit = 600000
	for _, size := range append([]int{0}, bodySizes...) {
		for _, length := range []int64{int64(size), -1} {
			for _, c := range []struct {
				options opts
				book    string
			}{{nil, "enqueued=1"}, {opts{"maxBodySize": size}, "enqueued=1"}, {opts{"sampleRate": 0}, "sampledOut=1"}, {opts{"format": "request"}, "enqueued=1"}, {opts{"captureResponse": "status"}, "enqueued=1"}} {
				options := opts{"maxBodySize": limit}
				for path, value := range c.options {
					options[path] = value
				}
				name := fmt.Sprintf("%d bytes, length %d, %v", size, length, c.options)
				p := stillPipeline(t, rejecting(options))
				u := &upload{rest: textOf(size), step: 5000, end: io.EOF}
				backend := &site{}
				rw := through(newMirror(handlerOf(backend), p.set, []*pipeline{p}), signedBy("key", u, length))
				if rw.Code != http.StatusTeapot || backend.visits != 1 {
					t.Errorf("%s: got status %d and %d visits; want the backend's 418", name, rw.Code, backend.visits)
				}
				if !bytes.Equal(backend.content, textOf(size)) || backend.err != nil || backend.length != length || backend.closed != nil || u.closed != 1 {
					t.Errorf("%s: got %d bytes, error %v, length %d, %d closes at the backend; want the request as it came", name, len(backend.content), backend.err, backend.length, u.closed)
				}
				if got := bookOf(t, p, 1); got != c.book {
					t.Errorf("%s: got %s; want %s", name, got, c.book)
				}
				if length != 0 && len(p.queue) == 1 {
					taken := <-p.queue
					if w, kept := keptBody(t, p, taken); !bytes.Equal(kept, textOf(size)) || w.Truncated || w.Size != int64(size) {
						t.Errorf("%s: got %d bytes in the event, size %d, reason %q; want all", name, len(kept), w.Size, w.Reason)
					}
				}
				emptied(t, p)
			}
		}
	}
}

const incomplete = "dropped.incomplete=1 truncated."

var turnedDownCases = []struct {
	name    string
	options opts
	size    int
	length  int64
	end     error
	secret  string
	status  int
	taken   int // bytes that may be read of it at most
	want    string
}{
	{name: "a forged one", size: 9000, length: 9000, secret: "other", status: 401, want: forged},
	{name: "a forged one in chunks", size: 9000, length: -1, secret: "other", status: 401, want: forged},
	{name: "a small forged one", size: 9, length: 9, secret: "other", status: 401, want: forged},
	{name: "a forged one without a body", secret: "other", status: 401, want: forged},
	{name: "a forged one of no chunks", length: -1, secret: "other", status: 401, want: forged},
	{name: "a forged one that would be sampled out", options: opts{"sampleRate": 0}, size: 9, length: 9, secret: "other", status: 401, want: forged},
	{name: "a forged one that would be sent on", options: opts{"format": "request"}, size: 9, length: 9, secret: "other", status: 401, want: forged},
	{name: "a forged one whose response would be captured", options: opts{"captureResponse": "body"}, size: 9, length: 9, secret: "other", status: 401, want: forged},
	{name: "one above maxBodySize, of which nothing is read", size: 10001, length: 10001, secret: "key", status: 413, want: incomplete + cutLimit + "=1"},
	{name: "one in chunks above maxBodySize", size: 10001, length: -1, secret: "key", status: 413, taken: 10001, want: incomplete + cutLimit + "=1"},
	{name: "one far above maxBodySize, of which not all is read", size: 400000, length: -1, secret: "key", status: 413, taken: 10001, want: incomplete + cutLimit + "=1"},
	{name: "one in chunks without any room", options: opts{"maxBodySize": 0}, size: 1, length: -1, secret: "key", status: 413, taken: 1, want: incomplete + cutLimit + "=1"},
	{name: "one that breaks off", size: 5000, length: 9000, end: errGone, secret: "key", status: 400, want: forged},
	{name: "one that breaks off when all of it is here", size: 9000, length: 9000, end: errGone, secret: "key", status: 400, want: "enqueued=1"},
	{name: "one in chunks that breaks off", size: 5000, length: -1, end: errGone, secret: "key", status: 400, want: forged},
	{name: "one that ends too early", size: 5000, length: 9000, end: io.ErrUnexpectedEOF, secret: "key", status: 400, want: forged},
	{name: "one for which there is no memory", options: opts{"memoryLimit": 5000}, size: 9000, length: 9000, secret: "key", status: 503, want: incomplete + cutMemory + "=1"},
	{name: "a small one for which there is no memory", options: opts{"memoryLimit": 5}, size: 9, length: 9, secret: "key", status: 503, want: incomplete + cutMemory + "=1"},
	{name: "one in chunks for which there is no memory", options: opts{"memoryLimit": 5000}, size: 9000, length: -1, secret: "key", status: 503, want: incomplete + cutMemory + "=1"},
}

func TestHeldRequestIsTurnedDown(t *testing.T) {
	for _, c := range turnedDownCases {
		for _, receivers := range []int{1, 2} {
			options := opts{"maxBodySize": 10000}
			for path, value := range c.options {
				options[path] = value
			}
			one, other := stillTwo(t, rejecting(options))
			pipes := []*pipeline{one, other}[:receivers]
			end := c.end
			if end == nil {
				end = io.EOF
			}
			u := &upload{rest: textOf(c.size), step: 700, end: end}
			backend := &site{}
			rw := through(newMirror(handlerOf(backend), one.set, pipes), signedBy(c.secret, u, c.length))
			if backend.visits != 0 {
				t.Errorf("%s: got %d visits of the backend; want none", c.name, backend.visits)
			}
			if rw.Code != c.status {
				t.Errorf("%s: got status %d; want %d", c.name, rw.Code, c.status)
			}
			if got := rw.Header().Get("WWW-Authenticate") != ""; got != (c.status == 401) {
				t.Errorf("%s: got WWW-Authenticate %v with %d; want it with 401", c.name, got, c.status)
			}
			if got := rw.Header().Get("Retry-After") != ""; got != (c.status == 503) {
				t.Errorf("%s: got Retry-After %v with %d; want it with 503", c.name, got, c.status)
			}
			if strings.Contains(rw.Body.String(), "key") || rw.Body.Len() == 0 {
				t.Errorf("%s: got text %q; want one, without the secret", c.name, rw.Body)
			}
			if taken := c.size - len(u.rest); c.status == 413 && taken > c.taken {
				t.Errorf("%s: got %d bytes read; want at most %d", c.name, taken, c.taken)
			}
			for _, p := range pipes {
				if got := bookOf(t, p, 1); got != c.want {
					t.Errorf("%s, %d receivers: got %s; want %s", c.name, receivers, got, c.want)
				}
				letGoOfAll(p)
			}
			emptied(t, one)
		}
	}
}

// At the cap is not above it, and the budget is no smaller than what it takes.
func TestHeldBodyAtItsLimits(t *testing.T) {
	for _, c := range []struct {
		options opts
		size    int
		want    int
	}{
		{opts{"maxBodySize": 9000}, 9000, 418}, {opts{"maxBodySize": 9000}, 9001, 413}, {opts{"maxBodySize": 9}, 9, 418}, {opts{"maxBodySize": 9}, 10, 413},
		{opts{"maxBodySize": 0}, 0, 418}, {opts{"memoryLimit": 9000}, 9000, 418}, {opts{"memoryLimit": 8999}, 9000, 503},
	} {
		for _, sized := range []bool{true, false} {
			if !sized && c.options["memoryLimit"] != nil {
				continue // room is taken in parts, which are larger
			}
			p := stillPipeline(t, rejecting(c.options))
			length := int64(-1)
			if sized {
				length = int64(c.size)
			}
			backend := &site{}
			rw := through(newMirror(handlerOf(backend), p.set, []*pipeline{p}), signedBy("key", &upload{rest: textOf(c.size), step: 1000, end: io.EOF}, length))
			if rw.Code != c.want || backend.visits == 1 != (c.want == 418) {
				t.Errorf("%v, %d bytes, sized %v: got status %d, %d visits; want %d", c.options, c.size, sized, rw.Code, backend.visits, c.want)
			}
			bookOf(t, p, 1)
			emptied(t, p)
		}
	}
}

func TestMemoryOfHeldRequestsIsThereForOthers(t *testing.T) {
	p := stillPipeline(t, rejecting(opts{"memoryLimit": 20000}))
	for i := 0; i < 50; i++ {
		secret := "key"
		if i%2 == 0 {
			secret = "other"
		}
		backend := &site{}
		rw := through(newMirror(handlerOf(backend), p.set, []*pipeline{p}), signedBy(secret, &upload{rest: textOf(15000), step: 1000, end: io.EOF}, 15000))
		if want := 401 + i%2*17; rw.Code != want {
			t.Fatalf("request %d: got status %d; want %d", i, rw.Code, want)
		}
		emptied(t, p)
	}
	bookOf(t, p, 50)
}

// What is left out is only not mirrored.
func TestRequestsThatAreLeftOutAreChecked(t *testing.T) {
	for _, c := range []struct {
		method, target, secret string
		size                   int
		status                 int
		want                   string
	}{
		{"GET", "/", "key", 0, 418, "filtered=1"}, {"GET", "/", "other", 0, 401, forged}, {"PUT", "/", "key", 9000, 418, "filtered=1"}, {"PUT", "/", "other", 9000, 401, forged},
		{"POST", "/open", "key", 9000, 418, "filtered=1"}, {"POST", "/open", "other", 9000, 401, forged}, {"POST", "/", "key", 9000, 418, "enqueued=1"},
		{"PUT", "/", "key", 10001, 413, "filtered=1"}, {"PUT", "/", "other", 10001, 413, "filtered=1"},
	} {
		for _, sized := range []bool{true, false} {
			p := stillPipeline(t, rejecting(opts{"methods": "POST", "excludePaths": "^/open$", "maxBodySize": 10000, "sampleRate": 1}))
			length := int64(-1)
			if sized {
				length = int64(c.size)
			}
			req := signedBy(c.secret, &upload{rest: textOf(c.size), step: 999, end: io.EOF}, length)
			req.Method = c.method
			req.RequestURI = c.target
			backend := &site{}
			rw := through(newMirror(handlerOf(backend), p.set, []*pipeline{p}), req)
			if got := bookOf(t, p, 1); rw.Code != c.status || got != c.want {
				t.Errorf("%v, sized %v: got status %d, %s; want %d, %s", c, sized, rw.Code, got, c.status, c.want)
			}
			if c.status == 418 && !bytes.Equal(backend.content, textOf(c.size)) || backend.visits == 1 != (c.status == 418) {
				t.Errorf("%v, sized %v: got %d bytes in %d visits; want all in one, or none", c, sized, len(backend.content), backend.visits)
			}
			emptied(t, p)
		}
	}
}

// Every receiver knows a marker, which must not be a way around the check.
func TestDeliveryIsCheckedLikeOthers(t *testing.T) {
	live := mirrorOf(t, nobody, nil).(*Mirror) // its key counts
	for _, c := range []struct {
		secret  string
		options opts
		status  int
		want    string
	}{
		{"other", nil, 401, forged}, {"key", nil, 418, "filtered=1"}, {"key", opts{"format": "request"}, 418, "filtered=1"}, {"key", opts{"sampleRate": 0}, 418, "filtered=1"},
		{"other", opts{"excludePaths": "^/upload"}, 401, forged}, {"key", opts{"excludePaths": "^/upload"}, 418, "filtered=1"},
	} {
		p := stillPipeline(t, rejecting(c.options))
		backend := &site{}
		req := marked(live.pipe, signedBy(c.secret, &upload{rest: textOf(5000), step: 999, end: io.EOF}, 5000))
		rw := through(newMirror(handlerOf(backend), p.set, []*pipeline{p}), req)
		if got := bookOf(t, p, 1); rw.Code != c.status || got != c.want {
			t.Errorf("signed with %q, %v: got status %d, %s; want %d, %s", c.secret, c.options, rw.Code, got, c.status, c.want)
		}
		emptied(t, p)
	}
}

func TestPanicOfTheBackendOfAHeldRequest(t *testing.T) {
	for _, c := range []struct {
		options opts
		size    int
		want    string
	}{{nil, 0, "enqueued=1"}, {nil, 300000, "enqueued=1"}, {opts{"captureResponse": "headers"}, 9, "enqueued=1"}, {opts{"sampleRate": 0}, 9000, "sampledOut=1"}} {
		p := stillPipeline(t, rejecting(c.options))
		m := newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			readSome(req, 3)
			panic(http.ErrAbortHandler)
		}), p.set, []*pipeline{p})
		req := signedBy("key", &upload{rest: textOf(c.size), step: 9000, end: io.EOF}, int64(c.size))
		if got := fmt.Sprint(panicIn(m, req)); got != fmt.Sprint(http.ErrAbortHandler) {
			t.Errorf("got panic %v; want %v", got, http.ErrAbortHandler)
		}
		if got := bookOf(t, p, 1); got != c.want {
			t.Errorf("got %s; want %s", got, c.want)
		}
		for _, taken := range emptied(t, p) {
			if taken.body != nil && taken.body.cut != "" {
				t.Errorf("got a body that is cut (%s); want it whole, as it was here before the backend was asked", taken.body.cut)
			}
		}
	}
}

// A transport reads the body it was lent when the event is long over and its memory in
// use again.
func TestHeldBodyIsReadAfterItsEvent(t *testing.T) {
	for _, options := range []opts{nil, {"sampleRate": 0}, {"format": "request"}} {
		const size = 500000
		p := stillPipeline(t, rejecting(options))
		var late io.Reader
		through(newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			readSome(req, 1000)
			late = req.Body
		}), p.set, []*pipeline{p}), signedBy("key", &upload{rest: textOf(size), step: 9000, end: io.EOF}, size))
		for len(p.queue) > 0 {
			c := <-p.queue
			content(c.body)
			discharge(p, c)
		}
		plain := stillPipeline(t, nil)
		for i := 0; i < 4; i++ {
			captured(t, plain, uploadOf(&upload{rest: bytes.Repeat([]byte("x"), size), step: 9000, end: io.EOF}, size), answer(""))
		}
		rest, err := io.ReadAll(late)
		if err != nil || !bytes.Equal(rest, textOf(size)[1000:]) {
			t.Errorf("%v: got %d bytes, error %v, not as sent; want the rest of the body", options, len(rest), err)
		}
	}
}

func TestHeldBodyIsReadAtTheSameTimeConcurrentSafe(t *testing.T) {
	p := stillPipeline(t, rejecting(nil))
	for i := 0; i < 20; i++ {
		sent := textOf(200000)
		done := make(chan int64, 1)
		c := captured(t, p, signedBy("key", &upload{rest: sent, step: 9000, end: io.EOF}, -1), http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			go readLate(req.Body, done)
		}))
		_, kept := keptBody(t, p, c)
		n := <-done
		if n != int64(len(sent)) || !bytes.Equal(kept, sent) {
			t.Errorf("got %d bytes late and %d in the event; want all %d in both", n, len(kept), len(sent))
		}
	}
}

// answering is a middleware that answers itself, and must not ask its backend.
func answering(t *testing.T, p *pipeline, more ...*pipeline) *Mirror {
	t.Helper()
	return newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		t.Errorf("%s %s: got a visit of the backend; want none", req.Method, req.RequestURI)
	}), p.set, append([]*pipeline{p}, more...))
}

var answerCases = []struct {
	name    string
	options opts
	size    int
	length  int64
	end     error
	secret  string // the request is signed with
	mark    bool   // it is a delivery of ours
	status  int    // 202 if 0
	want    string // "enqueued=1" if empty
	reason  string // of the cut body in the event
	kept    int
}{
	{name: "no body"},
	{name: "a body", size: 9000, length: 9000, kept: 9000},
	{name: "a small body", size: 9, length: 9, kept: 9},
	{name: "chunks", size: 9000, length: -1, kept: 9000},
	{name: "no chunks", length: -1},
	{name: "a body above maxBodySize", options: opts{"maxBodySize": 100}, size: 9000, length: 9000, reason: cutLimit, kept: 100},
	{name: "chunks above maxBodySize", options: opts{"maxBodySize": 100}, size: 9000, length: -1, reason: cutLimit, kept: 100},
	{name: "a body that is not kept", options: opts{"mirrorBody": false}, size: 9000, length: 9000, reason: cutDisabled},
	{name: "chunks that are not kept", options: opts{"mirrorBody": false}, size: 9000, length: -1, reason: cutDisabled},
	{name: "a body of another type", options: opts{"bodyContentTypes": "text/*"}, size: 9000, length: 9000, reason: cutContentType},
	{name: "no memory", options: opts{"memoryLimit": 1}, size: 9000, length: 9000, reason: cutMemory},
	{name: "a body that breaks off", size: 5000, length: 9000, end: errGone, status: 400, reason: cutAborted, kept: 5000},
	{name: "chunks that break off", size: 5000, length: -1, end: errGone, status: 400, reason: cutAborted, kept: 5000},
	{name: "chunks that break off above maxBodySize", options: opts{"maxBodySize": 100}, size: 5000, length: -1, end: errGone, status: 400, reason: cutAborted, kept: 100},
	{name: "another method", options: opts{"methods": "GET"}, size: 9, length: 9, want: "filtered=1"},
	{name: "another path", options: opts{"includePaths": "^/hooks"}, size: 9, length: 9, want: "filtered=1"},
	{name: "sampled out", options: opts{"sampleRate": 0}, size: 9000, length: 9000, want: "sampledOut=1"},
	{name: "sampled out without a body", options: opts{"sampleRate": 0}, want: "sampledOut=1"},
	{name: "a delivery of ours", size: 9, length: 9, mark: true, want: "filtered=1"},
	{name: "a genuine one", options: skipping, size: 9, length: 9, secret: "key", kept: 9},
	{name: "a forged one", options: skipping, size: 9, length: 9, secret: "other", want: forged},
	{name: "a genuine one of which the beginning is kept", options: opts{"authenticate": skipping["authenticate"], "maxBodySize": 100}, size: 9000, length: -1, secret: "key", reason: cutLimit, kept: 100},
	{name: "a genuine one where others are turned down", options: turning, size: 9, length: 9, secret: "key", kept: 9},
	{name: "a forged one where it is turned down", options: turning, size: 9, length: 9, secret: "other", status: 401, want: forged},
	{name: "a forged one where it is turned down, and nothing kept", options: opts{"authenticate": turning["authenticate"], "mirrorBody": false}, size: 9000, length: -1, secret: "other", status: 401, want: forged},
	{name: "a forged one of another method where it is turned down", options: opts{"authenticate": turning["authenticate"], "methods": "GET"}, size: 9, length: 9, secret: "other", status: 401, want: forged},
	{name: "a genuine one of another method where others are turned down", options: opts{"authenticate": turning["authenticate"], "methods": "GET"}, size: 9, length: 9, secret: "key", want: "filtered=1"},
	{name: "a forged one of another method where it is not", options: opts{"authenticate": skipping["authenticate"], "methods": "GET"}, size: 9, length: 9, secret: "other", want: "filtered=1"},
	{name: "a forged delivery of ours where it is turned down", options: turning, size: 9, length: 9, secret: "other", mark: true, status: 401, want: forged},
	{name: "a genuine delivery of ours", options: turning, size: 9, length: 9, secret: "key", mark: true, want: "filtered=1"},
	{name: "one that is to be sent on", options: opts{"format": "request"}, size: 9000, length: 9000, kept: 9000},
	{name: "one above maxBodySize that is to be sent on", options: opts{"format": "request", "maxBodySize": 100}, size: 9000, length: 9000, status: 413, want: incomplete + cutLimit + "=1"},
	{name: "chunks above maxBodySize that are to be sent on", options: opts{"format": "request", "maxBodySize": 100}, size: 9000, length: -1, status: 413, want: incomplete + cutLimit + "=1"},
	{name: "no memory for what is to be sent on", options: opts{"format": "request", "memoryLimit": 1}, size: 9000, length: 9000, status: 503, want: incomplete + cutMemory + "=1"},
	{name: "a body that breaks off and is to be sent on", options: opts{"format": "request"}, size: 5000, length: 9000, end: errGone, status: 400, want: incomplete + cutAborted + "=1"},
	{name: "a genuine one in chunks above maxBodySize that is to be sent on", options: opts{"authenticate": turning["authenticate"], "format": "request", "maxBodySize": 100}, size: 9000, length: -1, secret: "key", status: 413, want: incomplete + cutLimit + "=1"},
}

var (
	skipping = authenticated("key", nil)
	turning  = rejecting(nil)
)

func TestMiddlewareAnswersItself(t *testing.T) {
	for _, c := range answerCases {
		for _, receivers := range []int{1, 2} {
			options := opts{"answer": 202}
			for path, value := range c.options {
				options[path] = value
			}
			one, other := stillTwo(t, options)
			pipes := []*pipeline{one, other}[:receivers]
			if receivers == 1 {
				one.receivers = 1
			}
			end := c.end
			if end == nil {
				end = io.EOF
			}
			req := uploadOf(&upload{rest: textOf(c.size), step: 700, end: end}, c.length)
			if c.secret != "" {
				req.Header.Set(hubHeader, hubSignature(c.secret, textOf(c.size)))
			}
			m := answering(t, one, pipes[1:]...)
			if c.mark {
				// The key of a pipeline counts when its middleware is there.
				live := mirrorOf(t, nobody, nil).(*Mirror)
				marked(live.pipe, req)
			}
			rw := through(m, req)
			want := c.status
			if want == 0 {
				want = 202
			}
			if rw.Code != want || want == 202 && rw.Body.Len() > 0 {
				t.Errorf("%s: got %d %q; want %d", c.name, rw.Code, rw.Body, want)
			}
			book := c.want
			if book == "" {
				book = "enqueued=1"
			}
			for i, p := range pipes {
				if got := bookOf(t, p, 1); got != book {
					t.Errorf("%s, receiver %d of %d: got %s; want %s", c.name, i, receivers, got, book)
				}
				if len(p.queue) == 0 {
					continue
				}
				taken := <-p.queue
				if c.length != 0 {
					w := encodeBody(taken, taken.body, taken.header)
					if kept := contentOf(t, w); !bytes.Equal(kept, textOf(c.kept)) || w.Reason != c.reason || w.Size != int64(c.size) {
						t.Errorf("%s: got %d bytes, size %d, reason %q in the event; want %d, %d, %q", c.name, len(kept), w.Size, w.Reason, c.kept, c.size, c.reason)
					}
				}
				discharge(p, taken)
			}
			emptied(t, one)
		}
	}
}

func TestEveryMethodIsAnswered(t *testing.T) {
	for _, format := range []string{"cloudevents", "request"} {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE", "CONNECT"} {
			p := stillPipeline(t, opts{"answer": 204, "format": format})
			if rw := through(answering(t, p), to(method, "/")); rw.Code != 204 {
				t.Errorf("%s: got status %d; want 204", method, rw.Code)
			}
			want := "enqueued=1"
			if method == "CONNECT" && format == "request" {
				want = "filtered=1"
			}
			if got := bookOf(t, p, 1); got != want {
				t.Errorf("%s, format %s: got %s; want %s", method, format, got, want)
			}
		}
	}
}

// What goes through a tunnel is no body, so there is no end of it to wait for.
func TestTunnelIsNotWaitedFor(t *testing.T) {
	for _, c := range []struct {
		options opts
		status  int
		book    string
	}{
		{opts{"answer": 202}, 202, "enqueued=1"}, {opts{"answer": 202, "format": "request"}, 202, "filtered=1"}, {rejecting(nil), 401, forged},
	} {
		p := stillPipeline(t, c.options)
		reader, writer := io.Pipe()
		req := uploadOf(&upload{}, -1)
		req.Method = http.MethodConnect
		req.Body = reader
		req.Header.Set(hubHeader, hubSignature("key", nil))
		served := make(chan int, 1)
		var handler http.Handler = answering(t, p)
		go serveTo(handler, req, served)
		waitFor(t, "an answer while the tunnel is open", func() bool { return len(served) == 1 })
		_ = writer.Close()
		status := <-served
		if status != c.status {
			t.Errorf("got status %d; want %d", status, c.status)
		}
		if got := bookOf(t, p, 1); got != c.book {
			t.Errorf("got %s; want %s", got, c.book)
		}
		emptied(t, p)
	}
}

func serveTo(handler http.Handler, req *http.Request, served chan int) {
	served <- serve(handler, req).Code
}

func TestAnswerWithoutMethodsThatAreMirrored(t *testing.T) {
	handler := mirrorOf(t, nobody, opts{"answer": 202, "methods": ""})
	if rw := serve(handler, get("/")); rw.Code != 202 {
		t.Errorf("got status %d; want 202, as nothing is passed on", rw.Code)
	}
}

// A route that checks or answers requests must not be left open by a mistake that is
// about mirroring only.
func TestWhoAnswersOrChecksNeedsAReceiver(t *testing.T) {
	for _, options := range []opts{{"answer": 202}, rejecting(nil)} {
		options["watchURL"] = nil
		options["metricsPath"] = "/metrics"
		if _, problems, _ := readSettings(configOf(options), t.Name()); len(problems) != 1 || !strings.HasPrefix(problems[0], "watchURL: missing") {
			t.Errorf("%v: got problems %q; want that watchURL is missing", options, problems)
		}
	}
}

func TestReceiversDoNotDelayTheAnswer(t *testing.T) {
	hangs, works, down := newReceiver(t), newReceiver(t), newReceiver(t, 503)
	hangs.hold = make(chan struct{})
	handler := mirrorOf(t, nobody, opts{"answer": 202, "watchURL": hangs.url, "watchURLs": []string{works.url, down.url}, "timeout": "5m", "maxAge": "5m", "reportInterval": 0,
		"workers": 1, "retry.attempts": 2, "retry.initialInterval": "1ms", "queueSize": 4, "circuitBreaker.failures": 0})
	const n = 12
	for i := 0; i < n; i++ {
		served := make(chan int, 1)
		go serveTo(handler, send(fmt.Sprint("/", i), strings.Repeat("x", i*100)), served)
		waitFor(t, "an answer", func() bool { return len(served) == 1 })
		status := <-served
		if status != 202 {
			t.Fatalf("request %d: got status %d; want 202", i, status)
		}
		works.wait(t, i+1)
	}
	waitFor(t, "what works and what fails to be done", func() bool {
		all := talliesOf(t)
		return all[works.url].Delivered == n && all[down.url].Failed[reasonServerError]+sum(all[down.url].Dropped) == n
	})
	all := talliesOf(t)
	if got := all[hangs.url]; got.Seen != n || got.InFlight != 1 || got.Waiting != 4 || got.Dropped[reasonQueueFull] != n-5 {
		t.Errorf("got %+v at the one that hangs; want one in flight, four waiting, the others dropped", got)
	}
	for i, p := range works.wait(t, n) {
		if p.event.Subject != fmt.Sprint("/", i) {
			t.Errorf("got event %d of %s; want it of /%d", i, p.event.Subject, i)
		}
	}
	close(hangs.hold)
	waitFor(t, "the rest to be delivered", func() bool { return talliesOf(t)[hangs.url].Delivered == 5 })
	waitFor(t, "the memory to come back", func() bool { return talliesOf(t)[works.url].BytesHeld == 0 })
}

// All ways through what is screened at once; the ledger has every request.
func TestEveryWayConcurrentSafe(t *testing.T) {
	for _, c := range []struct {
		name    string
		options opts
	}{
		{"skip", authenticated("key", nil)}, {"reject", rejecting(nil)}, {"answer", authenticated("key", opts{"answer": 202})},
		{"answer and reject", rejecting(opts{"answer": 202})}, {"captureResponse", rejecting(opts{"captureResponse": "headers"})},
	} {
		options := opts{"methods": "POST,GET", "excludePaths": "^/no", "sampleRate": 0.5, "memoryLimit": 400000, "maxBodySize": 60000, "queueSize": 1000}
		for path, value := range c.options {
			options[path] = value
		}
		one, other := stillTwo(t, options)
		m := newMirror(answer(""), one.set, []*pipeline{one, other})
		const workers, each = 4, 60
		var group sync.WaitGroup
		for i := 0; i < workers; i++ {
			group.Add(1)
			go sendMixed(m, each, &group)
		}
		group.Wait()
		for _, p := range []*pipeline{one, other} {
			bookOf(t, p, workers*each)
			letGoOfAll(p)
		}
		if one.counts.filtered != other.counts.filtered || one.counts.sampledOut != other.counts.sampledOut {
			t.Errorf("%s: got %d and %d filtered, %d and %d sampled out; want the same at both", c.name, one.counts.filtered, other.counts.filtered, one.counts.sampledOut, other.counts.sampledOut)
		}
		if held := bytesHeld(one); held != 0 || one.bodies != 0 || other.bodies != 0 {
			t.Errorf("%s: got %d bytes held, shares of %d and %d, when all were done; want none", c.name, held, one.bodies, other.bodies)
		}
	}
}

func sendMixed(m *Mirror, n int, group *sync.WaitGroup) {
	defer group.Done()
	for i := 0; i < n; i++ {
		size := i * 1700
		length := int64(size)
		end := io.EOF
		if i%3 == 0 {
			length = -1
		}
		if i%11 == 0 {
			end = errGone
		}
		secret := "key"
		if i%4 == 0 {
			secret = "other"
		}
		req := signedBy(secret, &upload{rest: textOf(size), step: 4096, end: end}, length)
		if i%7 == 0 {
			req.RequestURI = "/no"
		}
		if i%13 == 0 {
			req.Method = "DELETE"
		}
		through(m, req)
	}
}

func TestLedgerOfWhatIsScreened(t *testing.T) {
	one, other := newReceiver(t), newReceiver(t)
	handler := mirrorOf(t, answer(""), rejecting(opts{"watchURL": one.url, "watchURLs": []string{other.url}, "methods": "POST", "sampleRate": 0.5, "maxBodySize": 1000, "reportInterval": 0}))
	filtered, large, wanted := 0, 0, 0
	for i := 0; i < 120; i++ {
		secret := "key"
		size := 10 + i%6/5*2000
		if i%3 == 0 {
			secret = "other"
		}
		req := signedBy(secret, &upload{rest: textOf(size), step: 500, end: io.EOF}, int64(size))
		if i%10 == 9 {
			req.Method = "GET"
		}
		status := 418
		if size > 1000 {
			status = 413
		} else if secret == "other" {
			status = 401
		}
		if got := serve(handler, req).Code; got != status {
			t.Errorf("request %d: got status %d; want %d", i, got, status)
		}
		if req.Method == "GET" || status == 401 {
			filtered++
		} else if status == 413 {
			large++
		} else {
			wanted++
		}
		talliesOf(t) // adds up at any moment
	}
	delivered := uint64(0)
	waitFor(t, "all to be delivered", func() bool {
		all := talliesOf(t)
		delivered = all[one.url].Delivered
		return all[one.url].InFlight+all[one.url].Waiting+all[other.url].InFlight+all[other.url].Waiting == 0
	})
	for receiver, n := range talliesOf(t) {
		if n.Seen != 120 || n.Delivered != delivered || n.BytesHeld != 0 {
			t.Errorf("%s: got %+v; want 120 seen, %d delivered, nothing held", receiver, n, delivered)
		}
		if int(n.Filtered) != filtered || int(n.Dropped[reasonIncomplete]) != large || int(n.Truncated[cutLimit]) != large || int(n.SampledOut+n.Enqueued) != wanted {
			t.Errorf("%s: got %+v; want %d filtered, %d incomplete, %d others", receiver, n, filtered, large, wanted)
		}
	}
	if filtered == 0 || large == 0 || wanted == 0 {
		t.Errorf("got %d, %d, %d of each kind; want some", filtered, large, wanted)
	}
	if one.count() != int(delivered) || other.count() != int(delivered) {
		t.Errorf("got %d and %d deliveries; want %d", one.count(), other.count(), delivered)
	}
}

// On a real connection: the server hands over what comes, and the middleware waits.
func TestNothingOfAHeldRequestIsSeenBeforeItsEnd(t *testing.T) {
	p := stillPipeline(t, rejecting(nil))
	backend := &site{}
	var handler http.Handler = newMirror(handlerOf(backend), p.set, []*pipeline{p})
	server := httptest.NewServer(handler)
	defer server.Close()
	reader, writer := io.Pipe()
	req, err := http.NewRequest(http.MethodPost, server.URL, reader)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set(hubHeader, hubSignature("key", []byte("onetwo")))
	done := make(chan int, 1)
	go roundTrip(req, done)
	_, _ = io.WriteString(writer, "one")
	waitFor(t, "the first half to be held", func() bool { return bytesHeld(p) > 0 })
	p.mu.Lock()
	seen := p.sequence
	p.mu.Unlock()
	if seen != 0 || len(done) > 0 {
		t.Error("got the request mirrored or answered before its end; want it held")
	}
	_, _ = io.WriteString(writer, "two")
	_ = writer.Close()
	status := <-done
	if status != 418 || string(backend.content) != "onetwo" || backend.visits != 1 {
		t.Errorf("got status %d, %q in %d visits; want 418, onetwo in one", status, backend.content, backend.visits)
	}
	waitFor(t, "its event", func() bool { return len(p.queue) == 1 })
	bookOf(t, p, 1)
	emptied(t, p)
}

func roundTrip(req *http.Request, done chan int) {
	client := &http.Client{Transport: &http.Transport{}, Timeout: 30 * time.Second}
	status := 0
	resp, err := client.Do(req)
	if err == nil {
		status = resp.StatusCode
		_ = resp.Body.Close()
	}
	client.CloseIdleConnections()
	done <- status
}
