package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/coder/websocket"
)

// RequestHeader names a request, so that its report is found although its
// client never saw an answer.
const RequestHeader = "X-Lab-Request"

// Backend is what Traefik proxies to. It answers what it got as a Report, or as
// one of the handlers that were put on a path.
type Backend struct {
	URL string // for a Route

	mux    *http.ServeMux
	server *http.Server

	mu      sync.Mutex
	reports map[string]Report
	changed chan struct{} // closed and replaced whenever reports change
}

// Report is what a backend saw of a request. It is the answer to it, too.
type Report struct {
	Method           string
	RequestURI       string
	Proto            string
	Host             string
	Header           http.Header
	Trailer          http.Header
	ContentLength    int64
	TransferEncoding []string
	Length           int64  // bytes of the body that were read
	SHA256           string // of these bytes
	ReadError        string // how reading ended, if not with the end of the body
}

// NewBackend starts a backend.
func NewBackend() (*Backend, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("backend: %w", err)
	}
	b := &Backend{
		URL:     "http://" + listener.Addr().String(),
		mux:     http.NewServeMux(),
		reports: map[string]Report{},
		changed: make(chan struct{}),
	}
	b.server = &http.Server{Handler: http.HandlerFunc(b.serve), ErrorLog: quiet}
	go func() { _ = b.server.Serve(listener) }()
	return b, nil
}

// Close ends the backend and its connections.
func (b *Backend) Close() { _ = b.server.Close() }

// Handle puts a handler on /lab/NAME.
func (b *Backend) Handle(name string, h http.HandlerFunc) { b.mux.Handle("/lab/"+name, h) }

func (b *Backend) serve(w http.ResponseWriter, r *http.Request) {
	// The mux would redirect what is not a clean path; only the handlers of
	// Handle are its business.
	if handler, pattern := b.mux.Handler(r); strings.HasPrefix(pattern, "/lab/") {
		handler.ServeHTTP(w, r)
		return
	}
	b.Report(w, r)
}

// Report reads the body to its end and answers with the report of it.
func (b *Backend) Report(w http.ResponseWriter, r *http.Request) {
	digest := sha256.New()
	length, err := io.Copy(digest, r.Body)
	report := b.record(r, length, digest, err)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(report)
}

// ReadSome reports after n bytes of the body and answers with the status,
// leaving the rest unread. 0 bytes is an early answer.
func (b *Backend) ReadSome(n int64, status int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		digest := sha256.New()
		length, err := io.CopyN(digest, r.Body, n)
		b.record(r, length, digest, err)
		w.WriteHeader(status)
	}
}

// Pull reads the body in pieces of at most size bytes and says on got how long
// each was; it waits until that is taken, so the backend is as slow as the
// test wants.
func (b *Backend) Pull(size int, got chan<- int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		r.Body = io.NopCloser(&pullReader{from: r.Body, size: size, got: got, ctx: r.Context()})
		b.Report(w, r)
	}
}

// Abort reports and breaks off the answer after its first bytes, by the panic
// that a proxy passes on to its own client.
func (b *Backend) Abort(begin string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		digest := sha256.New()
		length, err := io.Copy(digest, r.Body)
		b.record(r, length, digest, err)
		if begin != "" {
			flush(w, []byte(begin))
		}
		panic(http.ErrAbortHandler)
	}
}

// SSE is a stream of what the channel gives, until it is closed.
func SSE(events <-chan string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		flush(w, nil)
		for {
			select {
			case event, ok := <-events:
				if !ok || !flush(w, []byte("data: "+event+"\n\n")) {
					return
				}
			case <-r.Context().Done():
				return
			}
		}
	}
}

// WebSocketEcho sends every message back.
func WebSocketEcho(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, message) != nil {
			return
		}
	}
}

func (b *Backend) record(r *http.Request, length int64, digest hash.Hash, err error) Report {
	report := Report{
		Method: r.Method, RequestURI: r.RequestURI, Proto: r.Proto, Host: r.Host,
		Header: r.Header.Clone(), Trailer: r.Trailer.Clone(),
		ContentLength: r.ContentLength, TransferEncoding: r.TransferEncoding,
		Length: length, SHA256: hex.EncodeToString(digest.Sum(nil)),
	}
	if err != nil && err != io.EOF {
		report.ReadError = err.Error()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reports[r.Header.Get(RequestHeader)] = report
	close(b.changed)
	b.changed = make(chan struct{})
	return report
}

// WaitReport returns the report of the request with this RequestHeader.
func (b *Backend) WaitReport(ctx context.Context, request string) (Report, error) {
	for {
		b.mu.Lock()
		report, ok := b.reports[request]
		changed := b.changed
		b.mu.Unlock()
		if ok {
			return report, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Report{}, fmt.Errorf("backend: waiting for request %q: %w", request, ctx.Err())
		}
	}
}

type pullReader struct {
	from io.Reader
	size int
	got  chan<- int
	ctx  context.Context
}

func (p *pullReader) Read(b []byte) (int, error) {
	n, err := p.from.Read(b[:min(len(b), p.size)])
	if n > 0 {
		select {
		case p.got <- n:
		case <-p.ctx.Done():
			return n, p.ctx.Err()
		}
	}
	return n, err
}

// Hash is the SHA-256 of p as reports write it.
func Hash(p []byte) string {
	sum := sha256.Sum256(p)
	return hex.EncodeToString(sum[:])
}

// quiet is for servers whose connections are broken on purpose.
var quiet = log.New(io.Discard, "", 0)
