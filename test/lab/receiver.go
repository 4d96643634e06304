package lab

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/opencommit/requestmirror/test/event"
)

// Receiver takes deliveries, remembers each attempt, and behaves as it is
// told, which may change at any time. Its methods may be called from any
// goroutine.
type Receiver struct {
	URL string // http://127.0.0.1:PORT/events, the same for life

	address string
	cert    *Certificate // serves TLS when set
	clients *Authority   // asks clients for a certificate when set
	closing context.Context
	close   context.CancelFunc

	mu        sync.Mutex
	server    *http.Server // nil while down
	behaviour Behaviour
	attempts  []*Attempt
	reports   []*Attempt // of reports, which are answered with 204 whatever the behaviour
	conns     map[net.Conn]struct{}
	changed   chan struct{} // closed and replaced whenever attempts change
}

// Behaviour answers a delivery whose body has been read. The request's context
// ends when the sender hangs up or the receiver goes down.
type Behaviour func(http.ResponseWriter, *http.Request)

// Attempt is one POST as it arrived.
type Attempt struct {
	Time   time.Time // when its body was complete
	Proto  string
	Method string
	Path   string
	Header http.Header
	Body   []byte // as sent, so perhaps packed: see Payload
	Answer int    // status that was answered completely; 0 until then
}

// Payload is the body without its content encoding.
func (a Attempt) Payload() ([]byte, error) {
	switch encoding := a.Header.Get("Content-Encoding"); encoding {
	case "":
		return a.Body, nil
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(a.Body))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	default:
		return nil, fmt.Errorf("content encoding %q", encoding)
	}
}

// NewReceiver starts a receiver that answers 204.
func NewReceiver() (*Receiver, error) { return newReceiver(nil, nil) }

// NewTLSReceiver starts a receiver that speaks TLS, and HTTP/2 to those who can.
func NewTLSReceiver(c Certificate) (*Receiver, error) { return newReceiver(&c, nil) }

// NewMutualTLSReceiver starts one that speaks only to clients with a certificate of
// the authority.
func NewMutualTLSReceiver(c Certificate, clients Authority) (*Receiver, error) {
	return newReceiver(&c, &clients)
}

func newReceiver(cert *Certificate, clients *Authority) (*Receiver, error) {
	r := &Receiver{cert: cert, clients: clients, address: "127.0.0.1:0", behaviour: OK(), conns: map[net.Conn]struct{}{}, changed: make(chan struct{})}
	if err := r.Up(); err != nil {
		return nil, err
	}
	scheme := "http"
	if cert != nil {
		scheme = "https"
	}
	r.URL = scheme + "://" + r.address + "/events"
	return r, nil
}

// Up listens, on the same port as ever.
func (r *Receiver) Up() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server != nil {
		return nil
	}
	listener, err := net.Listen("tcp", r.address)
	if err != nil {
		return fmt.Errorf("receiver: %w", err)
	}
	r.address = listener.Addr().String()
	r.closing, r.close = context.WithCancel(context.Background())
	base := r.closing
	r.server = &http.Server{
		Handler:     http.HandlerFunc(r.serve),
		BaseContext: func(net.Listener) context.Context { return base },
		ConnState:   r.count,
		ErrorLog:    quiet,
	}
	if r.cert != nil {
		if r.server.TLSConfig, err = r.cert.serverTLS(); err != nil {
			return err
		}
	}
	if r.clients != nil {
		r.server.TLSConfig.ClientAuth = tls.RequireAndVerifyClientCert
		r.server.TLSConfig.ClientCAs = r.clients.Pool()
	}
	go func(server *http.Server, secure bool) {
		if secure {
			_ = server.ServeTLS(listener, "", "")
			return
		}
		_ = server.Serve(listener)
	}(r.server, r.cert != nil)
	return nil
}

// Down closes the port and every connection: who connects is refused.
func (r *Receiver) Down() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.server == nil {
		return
	}
	r.close()
	_ = r.server.Close()
	r.server = nil
}

func (r *Receiver) count(c net.Conn, state http.ConnState) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch state {
	case http.StateNew:
		r.conns[c] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(r.conns, c)
	}
}

// Connections is how many connections senders hold open.
func (r *Receiver) Connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.conns)
}

// Close ends the receiver.
func (r *Receiver) Close() { r.Down() }

// Become changes the behaviour for the attempts to come.
func (r *Receiver) Become(b Behaviour) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.behaviour = b
}

func (r *Receiver) serve(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return // the sender gave up half-way: not a delivery
	}
	attempt := &Attempt{
		Time: time.Now(), Proto: req.Proto, Method: req.Method, Path: req.URL.RequestURI(), Header: req.Header.Clone(), Body: body,
	}
	attempt.Header.Set("Host", req.Host)
	if payload, err := attempt.Payload(); err == nil && event.IsReport(payload) {
		attempt.Answer = http.StatusNoContent
		r.mu.Lock()
		r.reports = append(r.reports, attempt)
		r.announce()
		r.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
		return
	}
	r.mu.Lock()
	behaviour := r.behaviour
	r.attempts = append(r.attempts, attempt)
	r.announce()
	r.mu.Unlock()

	seen := &statusWriter{ResponseWriter: w, status: http.StatusOK}
	behaviour(seen, req)
	if req.Context().Err() != nil {
		return
	}
	r.mu.Lock()
	attempt.Answer = seen.status
	r.announce()
	r.mu.Unlock()
}

func (r *Receiver) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Reports returns the deliveries of reports that arrived so far, oldest first.
func (r *Receiver) Reports() []Attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	reports := make([]Attempt, len(r.reports))
	for i, a := range r.reports {
		reports[i] = *a
	}
	return reports
}

// WaitForReport returns the reports as soon as enough says so of one of them.
func (r *Receiver) WaitForReport(ctx context.Context, what string, enough func(event.Report) bool) ([]event.Report, error) {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		var all []event.Report
		found := false
		for _, a := range r.Reports() {
			payload, err := a.Payload()
			if err != nil {
				return nil, err
			}
			b, err := event.ReadDelivery(a.Header, payload)
			if err != nil {
				return nil, fmt.Errorf("report: %w: %s", err, payload)
			}
			all = append(all, b.Reports...)
			found = found || slices.ContainsFunc(b.Reports, enough)
		}
		if found {
			return all, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return all, fmt.Errorf("receiver: waiting for a report %s: %w; got %d reports", what, ctx.Err(), len(all))
		}
	}
}

// Attempts returns the deliveries of events that arrived so far, oldest first.
func (r *Receiver) Attempts() []Attempt {
	r.mu.Lock()
	defer r.mu.Unlock()
	attempts := make([]Attempt, len(r.attempts))
	for i, a := range r.attempts {
		attempts[i] = *a
	}
	return attempts
}

// Wait returns the attempts as soon as there are n of them.
func (r *Receiver) Wait(ctx context.Context, n int) ([]Attempt, error) {
	return r.WaitFor(ctx, fmt.Sprintf("%d attempts", n), func(a []Attempt) bool { return len(a) >= n })
}

// WaitFor returns the attempts as soon as enough says so.
func (r *Receiver) WaitFor(ctx context.Context, what string, enough func([]Attempt) bool) ([]Attempt, error) {
	for {
		r.mu.Lock()
		changed := r.changed
		r.mu.Unlock()
		attempts := r.Attempts()
		if enough(attempts) {
			return attempts, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return attempts, fmt.Errorf("receiver: waiting for %s: %w; got %d attempts", what, ctx.Err(), len(attempts))
		}
	}
}

// OK answers 204.
func OK() Behaviour { return Status(http.StatusNoContent, nil) }

// Status answers with a code and headers.
func Status(code int, header map[string]string) Behaviour {
	return func(w http.ResponseWriter, _ *http.Request) {
		for name, value := range header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(code)
	}
}

// Redirect answers 302 to another place.
func Redirect(to string) Behaviour {
	return Status(http.StatusFound, map[string]string{"Location": to})
}

// Hang never answers.
func Hang() Behaviour {
	return func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
}

// Gate answers 204 once the channel is closed or has something for it.
func Gate(open <-chan struct{}) Behaviour {
	return func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-open:
			w.WriteHeader(http.StatusNoContent)
		case <-r.Context().Done():
		}
	}
}

// Slow answers 204 after d.
func Slow(d time.Duration) Behaviour {
	return func(w http.ResponseWriter, r *http.Request) {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			w.WriteHeader(http.StatusNoContent)
		case <-r.Context().Done():
		}
	}
}

// Drip answers 200 at once and then one byte per interval, for ever.
func Drip(interval time.Duration) Behaviour {
	return func(w http.ResponseWriter, r *http.Request) {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for flush(w, []byte(".")) {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
		}
	}
}

// DripHeader answers one byte of a header per interval, for ever.
func DripHeader(interval time.Duration) Behaviour {
	return func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, err = io.WriteString(conn, "HTTP/1.1 200 OK\r\nX-Drip: ")
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for err == nil {
			<-tick.C
			_, err = io.WriteString(conn, ".")
		}
	}
}

// Flood answers 200 and then as much as the sender takes, for ever.
func Flood() Behaviour {
	chunk := make([]byte, 64<<10)
	return func(w http.ResponseWriter, _ *http.Request) {
		for flush(w, chunk) {
		}
	}
}

// FloodHeaders answers with a header of n bytes.
func FloodHeaders(n int) Behaviour {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Flood", string(slices.Repeat([]byte("x"), n)))
		w.WriteHeader(http.StatusOK)
	}
}

// Script behaves as each of its parts in turn, then as the last one.
func Script(parts ...Behaviour) Behaviour {
	var mu sync.Mutex
	next := 0
	return func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		part := parts[next]
		if next < len(parts)-1 {
			next++
		}
		mu.Unlock()
		part(w, r)
	}
}

// RetryAfter are the headers of a receiver that wants to be left alone for
// some seconds.
func RetryAfter(seconds int) map[string]string {
	return map[string]string{"Retry-After": strconv.Itoa(seconds)}
}

func flush(w http.ResponseWriter, p []byte) bool {
	if _, err := w.Write(p); err != nil {
		return false
	}
	return http.NewResponseController(w).Flush() == nil
}

// statusWriter sees the status that a behaviour answers.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(code int) {
	w.status = code
	w.ResponseWriter.WriteHeader(code)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Reasons is a count per reason as text, in a fixed order: what reports print.
func Reasons(counts map[string]int64) string {
	text := ""
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		if counts[reason] != 0 {
			text += fmt.Sprintf(" %s=%d", reason, counts[reason])
		}
	}
	if text == "" {
		return "none"
	}
	return text[1:]
}
