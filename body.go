package requestmirror

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Why a body in an event is not the whole body of the request: the closed set of
// truncated_reason.
const (
	cutDisabled    = "disabled"     // mirrorBody is false
	cutContentType = "content-type" // not one of bodyContentTypes
	cutMemory      = "memory"       // memoryLimit was spent
	cutAborted     = "aborted"      // the client was gone before the end
	cutUnread      = "unread"       // the backend did not read to the end
	cutLimit       = "limit"        // longer than maxBodySize
	cutEvent       = "event"        // did not fit into maxEventSize
)

// A body is kept in parts, which are added as the bytes come and are the larger the
// more came, so that a client that announces much and sends little holds little.
const (
	firstPart = 4 << 10
	nextPart  = 32 << 10
	largePart = 128 << 10
)

// parts are the large ones that can be used again, so that uploads are little work
// for the garbage collector. Items are *[]byte.
var parts sync.Pool

// body is the copy of a request's body, written by whatever goroutine reads the
// request for the backend, which may be at it even after the handler has returned.
type body struct {
	budget   *budget
	declared int64 // Content-Length; -1 unknown
	limit    int64 // bytes to keep at most

	mu      sync.Mutex // guards all below until closed; then they are the worker's
	part    []byte     // what was kept last; nil once closed
	full    [][]byte   // what was kept before, in order
	kept    int64      // bytes in full, and once closed in last, too
	beyond  int64      // bytes that were read but not kept
	charged int64      // bytes of the budget
	ended   bool       // whether the end of the body was read
	closed  bool       // what is read from here on is not ours
	last    []byte     // the last part, once closed
	cut     string     // why there is less than the whole, empty if whole

	lent bool // whether a transport may still read the parts when the event has ended

	// What several pipelines hold never changes once it is closed.
	shared  bool
	holders int32 // atomic: pipelines that have not settled it yet, if shared
}

// tee puts a tee into the request's body. The tee reads only when it is read, and
// passes on every byte, error and Close when they come.
func tee(m *Mirror, req *http.Request, c *capture) {
	n := req.ContentLength
	budget := m.pipe.budget
	if n < 0 || n > m.small || atomic.AddInt64(&budget.held, n) > budget.limit {
		if n >= 0 && n <= m.small {
			atomic.AddInt64(&budget.held, -n)
		}
		teeOther(m, req, c)
		return
	}
	b := &body{budget: budget, declared: n, limit: n, charged: n, part: make([]byte, 0, n)}
	c.body = b
	req.Body = &teed{io.TeeReader(req.Body, b), req.Body}
}

func teeOther(m *Mirror, req *http.Request, c *capture) {
	defer contain()
	b := &body{budget: m.pipe.budget, declared: req.ContentLength, limit: m.set.maxBodySize}
	c.body = b
	if !m.set.mirrorBody {
		b.cut = cutDisabled
	} else if m.set.bodyTypes != nil && !m.set.bodyTypes.MatchString(mediaType(req.Header)) {
		b.cut = cutContentType
	} else if req.Method == http.MethodConnect {
		b.cut = cutUnread // a tunnel (RFC 9110, 9.3.6) is not a body, and stays untouched
	}
	if b.cut != "" {
		b.limit = 0
	}
	if b.cut != "" && b.declared >= 0 {
		b.beyond = b.declared // nothing is kept, and the size is known: no tee
		return
	}
	source := req.Body
	if source == nil || req.Method == http.MethodConnect {
		return
	}
	if b.declared >= 0 && b.declared <= b.limit {
		req.Body = &teed{io.TeeReader(source, b), source}
		return
	}
	// A length that is unknown or over the limit: what is beyond the limit is read by
	// uncopied, which counts and sees the end; what is kept is read by compiled code.
	var rest io.Reader = &uncopied{b, source}
	if b.limit > 0 {
		rest = io.MultiReader(io.TeeReader(io.LimitReader(source, b.limit), b), rest)
	}
	req.Body = &teed{rest, source}
}

// mediaType is the lower-case content type without parameters.
func mediaType(h http.Header) string {
	t := h.Get("Content-Type")
	if i := strings.IndexByte(t, ';'); i >= 0 {
		t = t[:i]
	}
	return strings.ToLower(strings.TrimSpace(t))
}

// teed is the request's body with the tee in it. It is used by pointer and gets its
// methods from the fields, so that compiled code reads and closes it directly.
type teed struct {
	io.Reader
	io.Closer
}

// Write keeps what was read for the backend. It never fails, as that would be an
// error in the backend's read.
func (b *body) Write(p []byte) (int, error) {
	b.mu.Lock()
	if len(p) <= cap(b.part)-len(b.part) {
		b.part = append(b.part, p...)
	} else {
		keepRest(b, p)
	}
	b.mu.Unlock()
	return len(p), nil
}

// uncopied reads what is not kept any more.
type uncopied struct {
	body   *body
	source io.Reader
}

func (u *uncopied) Read(p []byte) (int, error) {
	n, err := u.source.Read(p)
	pass(u.body, n, err == io.EOF)
	return n, err
}

func pass(b *body, n int, end bool) {
	b.mu.Lock()
	if !b.closed {
		b.beyond += int64(n)
		b.ended = b.ended || end
	}
	b.mu.Unlock()
}

// keepRest keeps what does not fit into the current part. The body is locked.
func keepRest(b *body, p []byte) {
	if b.closed {
		return
	}
	// Only a reader that gives more than the declared length gets here with more.
	if room := b.limit - b.kept - int64(len(b.part)); int64(len(p)) > room {
		b.beyond += int64(len(p)) - room
		p = p[:room]
	}
	for len(p) > 0 {
		if b.cut != "" || len(b.part) == cap(b.part) && !grow(b) {
			b.cut = cutMemory
			b.beyond += int64(len(p))
			return
		}
		n := len(p)
		if free := cap(b.part) - len(b.part); n > free {
			n = free
		}
		b.part = append(b.part, p[:n]...)
		p = p[n:]
	}
}

// grow begins another part, or says that the budget is spent.
func grow(b *body) bool {
	kept := b.kept + int64(len(b.part))
	n := int64(firstPart)
	if kept >= largePart || kept > 0 && b.declared > 0 {
		n = largePart
	} else if kept > 0 {
		n = nextPart
	}
	if left := b.declared - kept; left > 0 && left < n {
		n = left
	}
	if left := b.limit - kept; left < n {
		n = left
	}
	if !charge(b.budget, n) {
		return false
	}
	b.charged += n
	if b.part != nil {
		b.full = append(b.full, b.part)
		b.kept = kept
	}
	b.part = newPart(int(n))
	return true
}

func newPart(n int) []byte {
	if n == largePart {
		if used, ok := parts.Get().(*[]byte); ok {
			return (*used)[:0]
		}
	}
	return make([]byte, 0, n)
}

// finish ends the capture once the backend has answered, given up or panicked, and
// mirrors it. What the transport reads from here on is not ours.
func finish(m *Mirror, req *http.Request, c *capture) {
	b := c.body
	b.mu.Lock()
	b.closed = true
	b.last = b.part
	b.part = nil
	b.kept += int64(len(b.last))
	if b.kept != b.declared {
		explainCut(b, req)
	}
	b.mu.Unlock()
	c.over = time.Now()
	if m.screened {
		offerScreened(m, c)
		return
	}
	if m.others != nil {
		offerAll(m, c)
		return
	}
	offer(m.pipe, c)
}

// explainCut notes why less than the whole body was kept, if so. Of several reasons
// it is the one that says most: that a body was also longer than the limit shows in
// its size. The body is locked.
func explainCut(b *body, req *http.Request) {
	defer contain()
	if b.cut != "" {
		return
	}
	if !b.ended && (b.declared < 0 || b.kept+b.beyond < b.declared) {
		b.cut = cutUnread
		// The server cancels the context when a read from the client fails, on HTTP/1
		// and HTTP/2 alike; for reasons of its own it does so after we have returned.
		if req.Context().Err() != nil {
			b.cut = cutAborted
		}
	} else if b.beyond > 0 {
		b.cut = cutLimit
	}
}

// content is what was kept, in one piece; the parts are let go of. It is the worker's,
// once nothing writes any more.
func content(b *body) string {
	if len(b.full) == 0 {
		return string(b.last)
	}
	whole := &strings.Builder{}
	whole.Grow(int(b.kept))
	for _, part := range b.full {
		_, _ = whole.Write(part)
	}
	_, _ = whole.Write(b.last)
	if !b.shared {
		recycle(b)
	}
	return whole.String()
}

// recycle lets go of the kept bytes; a second call does nothing.
func recycle(b *body) {
	if !b.lent {
		for i := range b.full {
			recyclePart(b.full[i])
		}
		recyclePart(b.last)
	}
	b.full = nil
	b.last = nil
}

func recyclePart(part []byte) {
	if cap(part) == largePart {
		parts.Put(&part)
	}
}
