// Package requestmirror is a Traefik middleware that lets other services watch
// the traffic of a router: every request is described in a CloudEvent and posted
// to watchURL, while the request itself goes on untouched.
//
//	request ─▶ capture ─▶ offer ─▶ queue ─▶ worker ─▶ encode ─▶ attempt ─▶ POST
//	mirror.go  capture.go  pipeline.go               payload.go  delivery.go
//	           body.go                               redact.go   signing.go, retry.go
//
// Calls go to the right, values come back. Left of the queue is the request path:
// it copies a few fields, tees the body while the backend reads it, and never
// waits. Everything else runs in the workers of a pipeline, which the routers of
// a middleware share and which lives on when Traefik reloads (registry.go).
//
// Three promises hold whatever clients, backends and receivers do: the backend
// sees the request that came, no request waits for a receiver, and memory is
// bounded. What is not delivered is counted with a reason (ledger.go).
//
// Traefik interprets this package with Yaegi v0.16.1. That is why hot code is made
// of plain functions, and why there is no select, no wrapped ResponseWriter and
// no recover around next; docs/explanation/yaegi.md has the rules and their reasons.
package requestmirror

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// Mirror is the middleware of one router. It is made by New and never changes.
type Mirror struct {
	next     http.Handler
	pipe     *pipeline // shared by the routers of the middleware, and kept over reloads
	set      *settings
	screened bool // whether methods are filtered, copied here for the request path
}

// New makes the middleware of one router; Traefik calls it for every router that
// names the middleware, and for all of them again at each reload. When ctx ends,
// the handler's hold on the shared pipeline ends, though requests may still come.
//
// New does not fail for a bad configuration, because that would take the route
// down: it logs every problem and returns next itself, unless strict is set.
// It returns next, too, when there is nothing to mirror. It does no network I/O.
func New(ctx context.Context, next http.Handler, config *Config, name string) (http.Handler, error) {
	b := &built{}
	build(ctx, b, next, config, name)
	if b.problem != "" {
		return nil, errors.New(b.problem)
	}
	if b.mirror == nil {
		return next, nil
	}
	return b.mirror, nil
}

// built is what build came to: both fields empty when traffic is to pass unmirrored.
type built struct {
	mirror  *Mirror
	problem string
}

func build(ctx context.Context, b *built, next http.Handler, config *Config, name string) {
	// A panic in New would leave all of Traefik without routes.
	defer contain()

	set, problems, unknown := readSettings(config, name)
	if len(problems)+len(unknown) > 0 {
		text := describeProblems(name, problems, unknown)
		countConfigError()
		if set.strict {
			b.problem = text
			return
		}
		logError(text)
		if len(problems) > 0 {
			return
		}
	}
	if set.enabled && !(set.methods != nil && len(set.methods) == 0) {
		b.mirror = &Mirror{next: next, pipe: lease(ctx, set), set: set, screened: set.methods != nil}
	}
}

// ServeHTTP mirrors the request and passes it on. It never answers, never waits
// and hands rw and, but for a tee in its body, req to the next handler as they came.
func (m *Mirror) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	if req.ContentLength != 0 || m.screened || req.Header[markerHeader] != nil {
		serveOther(m, rw, req)
		return
	}
	mirrorNow(m, req)
	m.next.ServeHTTP(rw, req)
}

// serveOther serves what is not simply a request without a body.
func serveOther(m *Mirror, rw http.ResponseWriter, req *http.Request) {
	if !wanted(m, req) {
		m.next.ServeHTTP(rw, req)
		return
	}
	// The payload of CONNECT is a tunnel (RFC 9110, 9.3.6), not a body.
	if req.ContentLength == 0 || req.Method == http.MethodConnect {
		mirrorNow(m, req)
		m.next.ServeHTTP(rw, req)
		return
	}
	c := teeRequest(m, req)
	// Deferred, so that a request whose handler panics is mirrored too. Nothing is
	// recovered here: the panic belongs to Traefik, which must see the same value.
	defer mirrorTeed(m, req, c)
	m.next.ServeHTTP(rw, req)
}

// mirrorNow mirrors a request without a body before the backend answers, so that
// WebSockets and event streams are seen when they begin.
func mirrorNow(m *Mirror, req *http.Request) {
	defer contain()
	offer(m.pipe, newCapture(m, req))
}

// newCapture copies what the event will need of req. Strings are shared, which is
// safe as they never change; the header is cloned, as other middlewares change it.
func newCapture(m *Mirror, req *http.Request) *capture {
	return &capture{
		set: m.set, at: time.Now(), method: req.Method, uri: req.RequestURI, host: req.Host,
		proto: req.Proto, remote: req.RemoteAddr, secure: req.TLS, header: req.Header.Clone(),
	}
}
