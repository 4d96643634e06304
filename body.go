package requestmirror

import (
	"io"
	"net/http"
	"strings"
	"sync"
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
)

// A large body is kept in parts, which are added as the bytes come, so that a client
// that announces much and sends little holds little.
const (
	firstPart = 4 << 10
	partSize  = 32 << 10
)

// parts of full size are used again, so that large uploads are no work for the
// garbage collector. Items are *[]byte.
var parts sync.Pool

// body is the copy of a request's body, written by whatever goroutine reads the
// request for the backend, which may be at it even after the handler has returned.
type body struct {
	budget   *budget
	declared int64 // Content-Length; -1 unknown
	limit    int64 // bytes to keep at most

	mu      sync.Mutex // guards all below until closed, then they are the worker's
	size    int64      // bytes that the client sent, as far as they were read
	kept    int64
	charged int64    // bytes of the budget
	list    [][]byte // what was kept
	ended   bool     // whether the end of the body was read
	closed  bool     // what is read from here on is not ours
	cut     string   // why there is less than the whole, empty if whole
}

func newBody(m *Mirror, req *http.Request) *body {
	b := &body{budget: m.pipe.budget, declared: req.ContentLength, limit: m.set.maxBodySize}
	if !m.set.mirrorBody {
		b.cut = cutDisabled
	} else if m.set.bodyTypes != nil && !m.set.bodyTypes.MatchString(mediaType(req.Header)) {
		b.cut = cutContentType
	}
	if b.cut != "" {
		b.limit = 0
	}
	return b
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

// around returns source with a tee to b. It reads only when it is read, passes on
// every byte, error and Close, and keeps the reads that source sees as they were.
func around(b *body, source io.ReadCloser) io.ReadCloser {
	if source == nil || (b.cut != "" && b.declared >= 0) {
		b.size = b.declared // nothing is kept, and the size is known: no tee
		return source
	}
	if b.declared >= 0 && b.declared <= b.limit {
		return &teed{io.TeeReader(source, b), source}
	}
	// A length that is unknown or over the limit: the rest is read by uncopied, which
	// counts and sees the end; the part that is kept never meets interpreted reads.
	var rest io.Reader = &uncopied{b, source}
	if b.limit == 0 {
		return &teed{rest, source}
	}
	return &teed{io.MultiReader(io.TeeReader(io.LimitReader(source, b.limit), b), rest), source}
}

// Write takes what was read for the backend. It never fails, as that would be an
// error in the backend's read.
func (b *body) Write(p []byte) (int, error) {
	keep(b, p)
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
		b.size += int64(n)
		b.ended = b.ended || end
	}
	b.mu.Unlock()
}

func keep(b *body, p []byte) {
	b.mu.Lock()
	if !b.closed {
		b.size += int64(len(p))
		// Only a reader that gives more than the declared length gets here with more.
		if room := b.limit - b.kept; int64(len(p)) > room {
			p = p[:room]
		}
		for len(p) > 0 && b.cut == "" {
			last := len(b.list) - 1
			if last < 0 || len(b.list[last]) == cap(b.list[last]) {
				grow(b)
				continue
			}
			part := b.list[last]
			n := copy(part[len(part):cap(part)], p)
			b.list[last] = part[:len(part)+n]
			b.kept += int64(n)
			p = p[n:]
		}
	}
	b.mu.Unlock()
}

// grow adds an empty part to the list, or cuts the body if the budget is spent.
// A small body of known length gets one part that fits.
func grow(b *body) {
	n := int64(partSize)
	if left := b.declared - b.kept; left > 0 && left <= n {
		n = left
	} else if len(b.list) == 0 {
		n = firstPart
	}
	if left := b.limit - b.kept; left < n {
		n = left
	}
	if !charge(b.budget, n) {
		b.cut = cutMemory
		return
	}
	b.charged += n
	if n == partSize {
		if used, ok := parts.Get().(*[]byte); ok {
			b.list = append(b.list, (*used)[:0])
			return
		}
	}
	b.list = append(b.list, make([]byte, 0, n))
}

// closeBody ends the capture: what the transport reads from here on is not ours.
// Of several reasons for a cut the one that says most is kept; that a body was also
// longer than the limit shows in its size.
func closeBody(b *body, aborted bool) {
	b.mu.Lock()
	b.closed = true
	whole := b.ended || (b.declared >= 0 && b.size >= b.declared)
	if b.cut == "" && !whole {
		b.cut = cutUnread
		if aborted {
			b.cut = cutAborted
		}
	}
	if b.cut == "" && b.size > b.kept {
		b.cut = cutLimit
	}
	b.mu.Unlock()
}

// recycle lets go of the kept bytes. The worker calls it when nothing reads them
// any more; a second call does nothing.
func recycle(b *body) {
	list := b.list
	b.list = nil
	for i := range list {
		if cap(list[i]) == partSize {
			giveBack(list[i])
		}
	}
}

func giveBack(part []byte) { parts.Put(&part) }
