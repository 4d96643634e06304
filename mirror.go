// Package requestmirror is a Traefik middleware that lets other services watch
// the traffic of a router: every request is described in a CloudEvent and posted
// to watchURL, while the request itself goes on untouched.
//
//	request ─▶ capture ─▶ offer ─▶ queue ─▶ worker ─▶ event ─▶ attempt ─▶ POST
//	mirror.go  capture.go  pipeline.go      worker.go  payload.go  delivery.go
//	           body.go     registry.go                 redact.go   signing.go
//	           budget.go   ledger.go                               retry.go
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
	"math"
	"net/http"
	"time"
)

// Mirror is the middleware of one router. It is made by New and never changes. The
// fields below set are copies of what the request path would else have to look up.
type Mirror struct {
	next     http.Handler
	pipe     *pipeline   // shared by the routers of the middleware, and kept over reloads
	others   []*pipeline // of more receivers
	set      *settings
	queue    chan *capture // the pipeline's, as is shut
	shut     chan struct{}
	full     int   // events in the queue from which on there is more to look at
	small    int64 // bodies of up to this size are kept in one piece
	screened bool  // whether a request is more than mirrored and passed on: screen.go
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
	if b.handler == nil {
		return next, nil
	}
	return b.handler, nil
}

// built is what build came to: both fields empty when traffic is to pass unmirrored.
type built struct {
	handler http.Handler
	problem string
}

func build(ctx context.Context, b *built, next http.Handler, config *Config, name string) {
	// A panic in New would leave all of Traefik without routes.
	defer contain()

	set, problems, unknown := readSettings(config, name)
	text := ""
	if len(problems)+len(unknown) > 0 {
		text = describeProblems(name, set.strict, problems, unknown)
		countConfigError()
		// What is wrong may be in a file that is being replaced: a reload in that moment
		// must not end what works.
		old, others, _ := readSettingsBefore(config, name, lastFiles(name))
		if len(problems) > 0 && len(others) == 0 {
			text += "\n  (with what was in the files of secrets before, requests are mirrored)"
			set = old
			problems = nil
		} else if set.strict {
			b.problem = text
			return
		}
	}
	// Once, not for each router at each reload.
	if isNews(name, text) {
		logError(text)
	}
	if len(problems) > 0 {
		return
	}
	b.handler = next
	if set.enabled && len(set.targets) > 0 && !isIdle(set) {
		set = inCommon(set)
		b.handler = newMirror(next, set, lease(ctx, set))
	}
	if set.enabled && set.metricsPath != "" {
		b.handler = newMetricsPage(b.handler, set.metricsPath)
	}
}

// isIdle says whether there is nothing to do for any request.
func isIdle(set *settings) bool {
	return set.methods != nil && len(set.methods) == 0 && set.answer == 0 && set.authentication == nil
}

// newMirror mirrors to the pipelines, of which there is at least one.
func newMirror(next http.Handler, set *settings, pipes []*pipeline) *Mirror {
	p := pipes[0]
	m := &Mirror{next: next, pipe: p, set: set, queue: p.queue, shut: p.shut, full: set.queueSize, screened: isScreened(set)}
	if set.dropOldest {
		m.full = math.MaxInt
	}
	if len(pipes) > 1 {
		m.others = pipes[1:]
		m.full = 0 // always more to look at
	}
	if set.mirrorBody && set.bodyTypes == nil {
		m.small = firstPart
		if m.small > set.maxBodySize {
			m.small = set.maxBodySize
		}
	}
	return m
}

// ServeHTTP mirrors the request and passes it on. It never waits and hands rw and, but
// for a tee in its body, req to the next handler as they came. What options make more
// of a request is in screen.go.
func (m *Mirror) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	if m.screened || req.Header[markerHeader] != nil {
		serveScreened(m, rw, req)
		return
	}
	if len(m.queue) >= m.full || len(m.shut) > 0 {
		serveCrowded(m, rw, req)
		return
	}
	if req.ContentLength != 0 {
		serveBody(m, rw, req)
		return
	}
	mirrorBare(m, req)
	m.next.ServeHTTP(rw, req)
}

// mirrorBare mirrors a request without a body, before the backend answers, so that
// WebSockets and event streams are seen when they begin. Strings are shared, which
// is safe as they never change; the header is cloned, as other middlewares change it.
func mirrorBare(m *Mirror, req *http.Request) {
	c := &capture{
		set: m.set, at: time.Now(), method: req.Method, uri: req.RequestURI, host: req.Host,
		proto: req.Proto, remote: req.RemoteAddr, header: req.Header.Clone(),
	}
	if req.TLS != nil {
		c.secure = req.TLS.Version
	}
	if c.uri == "" {
		c.uri = targetOf(req)
	}
	if m.others != nil {
		offerAll(m, c)
		return
	}
	offer(m.pipe, c)
}

// serveBody serves a request with a body, which is mirrored when the backend has
// answered. The mirroring is deferred, so that it happens when the handler panics,
// too. Nothing is recovered here: the panic belongs to Traefik, which must see the
// same value.
func serveBody(m *Mirror, rw http.ResponseWriter, req *http.Request) {
	c := &capture{
		set: m.set, at: time.Now(), method: req.Method, uri: req.RequestURI, host: req.Host,
		proto: req.Proto, remote: req.RemoteAddr, header: req.Header.Clone(),
	}
	if req.TLS != nil {
		c.secure = req.TLS.Version
	}
	if c.uri == "" {
		c.uri = targetOf(req)
	}
	tee(m, req, c)
	defer finish(m, req, c)
	m.next.ServeHTTP(rw, req)
}

// serveCrowded serves a request where one look does not do: the queue is full, or the
// circuit open, or there are several receivers. What nobody can take is not captured.
// It does what dropEarly does, as a call more is felt when a receiver is down.
func serveCrowded(m *Mirror, rw http.ResponseWriter, req *http.Request) {
	p := m.pipe
	if m.others != nil {
		serveMany(m, rw, req)
		return
	}
	p.mu.Lock()
	if len(m.shut) > 0 {
		p.counts.shut++
	} else if len(m.queue)-p.notices >= m.full {
		p.counts.full++
	} else {
		p.mu.Unlock()
		serveMirrored(m, rw, req) // there is room after all
		return
	}
	p.sequence++
	if p.forgotten || p.ledger.teller == nil {
		noteEarly(p)
	}
	p.mu.Unlock()
	m.next.ServeHTTP(rw, req)
}

func serveMany(m *Mirror, rw http.ResponseWriter, req *http.Request) {
	if noRoom(m) {
		m.next.ServeHTTP(rw, req)
		return
	}
	serveMirrored(m, rw, req)
}

func serveMirrored(m *Mirror, rw http.ResponseWriter, req *http.Request) {
	if req.ContentLength != 0 {
		serveBody(m, rw, req)
		return
	}
	mirrorBare(m, req)
	m.next.ServeHTTP(rw, req)
}
