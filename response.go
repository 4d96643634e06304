package requestmirror

import (
	"bufio"
	"bytes"
	"net"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"
)

// How much of a response is captured. Only its body needs another ResponseWriter: what
// status and headers were is there to be read when the handler has returned.
const (
	responseNone    = "none"
	responseStatus  = "status"
	responseHeaders = "headers"
	responseBody    = "body"
)

// response is what was captured of a response. It never changes once it is offered.
type response struct {
	status int         // 0: none was sent, or it cannot be told
	header http.Header // nil unless it is wanted
	body   *body       // nil: none
	took   time.Duration
}

// record begins the capture of a response and returns what the next handler writes to.
func record(w *watched, rw http.ResponseWriter) http.ResponseWriter {
	w.rw = rw
	if w.m.set.response != responseBody || w.req.Method == http.MethodConnect { // a tunnel stays untouched
		return rw
	}
	w.tap = &responseTap{m: w.m, rw: rw, bodiless: w.req.Method == http.MethodHead}
	return w.tap
}

// closeResponse ends the capture when the handler has returned or panicked.
func closeResponse(w *watched) *response {
	r := &response{took: time.Since(w.c.at)}
	if w.tap == nil {
		r.status = statusOf(w.rw, w.returned)
	} else {
		closeTap(w.tap, w.returned)
		r.status = w.tap.status
		r.body = w.tap.body
	}
	if w.m.set.response != responseStatus {
		r.header = w.rw.Header().Clone()
		for name := range r.header {
			if isTrailer(name) {
				delete(r.header, name)
			}
		}
	}
	return r
}

// hasTrailer says whether a handler that had not announced trailers has set some.
func hasTrailer(header http.Header) bool {
	for name := range header {
		if isTrailer(name) {
			return true
		}
	}
	return false
}

func isTrailer(name string) bool { return strings.HasPrefix(name, http.TrailerPrefix) }

// Names of fields in the ResponseWriters of net/http, Traefik, what Yaegi makes of an
// interpreted one, httptest, and that of this file: of the status, and of the one inside. In
// codes, 200 is also what is there before anything was answered.
var (
	statuses = []string{"status", "Xstatus"}
	codes    = []string{"statusCode", "code", "Code"}
	inner    = []string{"rw", "ResponseWriter", "responseWriter", "rws", "w", "IValue", "Xrw"}
)

// shape is where a type of ResponseWriter has these fields: the ways to them, nil where
// there is none. Searching a type for names costs more than all else here.
type shape struct {
	status, code, conn, next []int
	last                     bool // whether it answers 200 if the handler wrote nothing
	retry                    bool // whether it may be Traefik's retry
}

// shapes are those of the types that were seen, *shape by reflect.Type.
var shapes sync.Map

func shapeOf(t reflect.Type) *shape {
	known, _ := shapes.Load(t)
	if s, ok := known.(*shape); ok {
		return s
	}
	s := &shape{}
	s.status, _ = wayTo(t, statuses)
	s.code, _ = wayTo(t, codes)
	s.conn, _ = wayTo(t, []string{"conn"})
	name := ""
	s.next, name = wayTo(t, inner)
	recorded, _ := wayTo(t, []string{"HeaderMap"}) // httptest's
	s.last = s.status != nil || recorded != nil && s.code != nil
	s.retry = s.status == nil && s.code == nil && name == "responseWriter"
	shapes.Store(t, s)
	return s
}

// wayTo is the way to the first of some fields that there is, with its name.
func wayTo(t reflect.Type, names []string) ([]int, string) {
	for _, name := range names {
		if f, ok := t.FieldByName(name); ok {
			return f.Index, name
		}
	}
	return nil, ""
}

// statusOf reads the status that was sent out of the ResponseWriter, which has no method
// for it: the outermost one that kept it says what it was. These are private names, so it
// may come to 0, which says that the status cannot be told, but never to a wrong one.
func statusOf(rw http.ResponseWriter, returned bool) int {
	defer contain()
	v := reflect.ValueOf(rw)
	found := false
	withheld := false
	for depth := 0; depth < 16; depth++ {
		for v.Kind() == reflect.Interface || v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			break
		}
		s := shapeOf(v.Type())
		status := numberAt(v, s.status)
		code := numberAt(v, s.code)
		found = found || s.last
		if isFinal(status) {
			return status
		}
		if isFinal(code) && code != http.StatusOK {
			return code
		}
		if status == 0 && s.conn != nil && wasHijacked(v.FieldByIndex(s.conn)) {
			return http.StatusSwitchingProtocols
		}
		if s.next == nil {
			break
		}
		// Traefik's retry does not pass on what it will not send, and keeps no status.
		withheld = withheld || s.retry
		v = v.FieldByIndex(s.next)
	}
	if found && !withheld && returned {
		return http.StatusOK // what net/http sends for a handler that wrote nothing
	}
	return 0
}

// isFinal says whether a status ends a response's header: others may come after it.
func isFinal(status int) bool { return status >= 200 || status == http.StatusSwitchingProtocols }

// numberAt is the number in a field, or -1 if there is none.
func numberAt(v reflect.Value, way []int) int {
	if way == nil || !v.FieldByIndex(way).CanInt() {
		return -1
	}
	return int(v.FieldByIndex(way).Int())
}

// wasHijacked says whether net/http's response gave away its connection.
func wasHijacked(conn reflect.Value) bool {
	if conn.Kind() != reflect.Pointer || conn.IsNil() || conn.Elem().Kind() != reflect.Struct {
		return false
	}
	f := conn.Elem().FieldByName("hijackedv")
	return f.IsValid() && f.Kind() == reflect.Bool && f.Bool()
}

// responseTap is the ResponseWriter of a response whose body is captured. Compiled code
// does not see methods of interpreted code beyond those of http.ResponseWriter and
// http.Hijacker, so nobody can flush it; it flushes by itself when httputil's
// ReverseProxy would have: a stream at once, and everything else a moment after it was
// written.
type responseTap struct {
	m  *Mirror
	rw http.ResponseWriter

	// mu is held over writes, as a ResponseWriter bears one call at a time, and the timer
	// flushes. Nobody else waits for it.
	mu       sync.Mutex // guards all below
	status   int        // final; 0 before it is known
	bodiless bool
	stream   bool
	body     *body
	broken   bool // whether something could not be sent
	pending  bool // whether the timer is to flush
	timer    *time.Timer
	over     bool
}

// flushDelay is Traefik's default of responseForwarding.flushInterval.
const flushDelay = 100 * time.Millisecond

// Header is that of the response.
func (r *responseTap) Header() http.Header { return r.rw.Header() }

// WriteHeader sends the status on.
func (r *responseTap) WriteHeader(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == 0 && isFinal(status) {
		begin(r, status)
	}
	r.rw.WriteHeader(status)
	if isFinal(status) {
		pushOn(r, false)
	}
}

// Write sends p on and keeps what was sent.
func (r *responseTap) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.status == 0 {
		begin(r, http.StatusOK)
	}
	n, err := r.rw.Write(p)
	r.broken = r.broken || err != nil
	if n > 0 && r.body != nil {
		keepWritten(r.body, p[:n])
	}
	pushOn(r, true)
	return n, err
}

// Hijack hands over the connection; what goes over it is not captured.
func (r *responseTap) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	conn, buffered, err := http.NewResponseController(r.rw).Hijack()
	if err == nil {
		r.status = http.StatusSwitchingProtocols
		r.bodiless = true
	}
	return conn, buffered, err
}

// begin notes what the header says of the body. The tap is locked.
func begin(r *responseTap, status int) {
	defer contain()
	r.status = status
	header := r.rw.Header()
	declared := int64(-1)
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil && n >= 0 {
		declared = n
	}
	// Those that have no body whatever the header says (RFC 9110, 6.4.1).
	r.bodiless = r.bodiless || status < 200 || status == http.StatusNoContent || status == http.StatusNotModified
	media := mediaType(header)
	r.stream = isStream(header, media, declared)
	if r.bodiless {
		return
	}
	set := r.m.set
	r.body = &body{budget: r.m.pipe.budget, declared: declared, limit: set.maxBodySize}
	if set.bodyTypes != nil && !set.bodyTypes.MatchString(media) {
		r.body.cut = cutContentType
		r.body.limit = 0
	}
}

// isStream says whether ReverseProxy flushes each write: what is of unknown length, and
// events. What a middleware answers is of unknown length, too, but nobody flushes that: to
// do so would cost it its Content-Length, and send a 200 where Traefik's retry holds back
// a 502. Unlike what an origin sends it has no Date (RFC 9110, 6.6.1); gRPC has none
// either, and its answers that consist of trailers have to end with the header.
func isStream(header http.Header, media string, declared int64) bool {
	if strings.HasPrefix(media, "application/grpc") {
		return header["Grpc-Status"] == nil
	}
	return media == "text/event-stream" || declared < 0 && header["Date"] != nil
}

// keepWritten is Write of a body that may be over its limit.
func keepWritten(b *body, p []byte) {
	defer contain()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	if b.cut == "" || b.cut == cutMemory {
		keepRest(b, p)
		return
	}
	b.beyond += int64(len(p))
}

// pushOn does what ReverseProxy would have done. The tap is locked.
func pushOn(r *responseTap, written bool) {
	if r.bodiless || r.over {
		return
	}
	if r.stream && written {
		if r.pending {
			r.pending = false
			r.timer.Stop()
		}
		_ = http.NewResponseController(r.rw).Flush()
		return
	}
	if r.pending {
		return
	}
	r.pending = true
	delay := flushDelay
	if r.stream {
		delay = 0 // the header, but with the first bytes if they are there
	}
	if r.timer == nil {
		r.timer = flushLater(r, delay)
	} else {
		r.timer.Reset(delay)
	}
}

func flushLater(r *responseTap, delay time.Duration) *time.Timer {
	return time.AfterFunc(delay, func() { flushNow(r) })
}

func flushNow(r *responseTap) {
	defer contain()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.pending && !r.over {
		r.pending = false
		_ = http.NewResponseController(r.rw).Flush()
	}
}

// closeTap ends the capture: the ResponseWriter is not touched from here on.
func closeTap(r *responseTap, returned bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.over = true
	if r.timer != nil {
		r.timer.Stop()
	}
	if r.status == 0 && returned {
		r.status = http.StatusOK // net/http's
	}
	if returned && !r.bodiless && hasTrailer(r.rw.Header()) {
		// ReverseProxy's, too: with a Content-Length, which net/http gives to what is short
		// and was not flushed, there are no trailers.
		_ = http.NewResponseController(r.rw).Flush()
	}
	b := r.body
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.last = b.part
	b.part = nil
	b.kept += int64(len(b.last))
	if b.cut != "" {
		return
	}
	if !returned || r.broken || b.declared > b.kept+b.beyond {
		b.cut = cutAborted
	} else if b.beyond > 0 {
		b.cut = cutLimit
	}
}

// writeTail writes the end of an event with a response, and returns where its body
// is in the buffer.
func writeTail(buffer *bytes.Buffer, p *pipeline, c *capture, agent, named, closing string) (from, to int) {
	r := c.response
	_, _ = buffer.WriteString(`},"response":{`)
	separator := ""
	if r.status > 0 {
		_, _ = buffer.WriteString(`"status_code":` + strconv.Itoa(r.status))
		separator = ","
	}
	if r.header != nil {
		fields, _, _ := headerFields(c.set, r.header)
		_, _ = buffer.WriteString(separator + `"header":{` + fields + `}`)
	}
	from = buffer.Len()
	if r.body != nil {
		writeBody(buffer, p, c, r.body, r.header) // behind the header, so with a comma
	}
	to = buffer.Len()
	took := strconv.FormatFloat(float64(r.took.Nanoseconds())/1e6, 'f', -1, 64)
	_, _ = buffer.WriteString("}}" + agent + named + `,"duration_ms":` + took + c.set.attributesField + closing)
	return from, to
}
