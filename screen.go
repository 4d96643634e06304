package requestmirror

import (
	"math/rand"
	"net/http"
	"strings"
	"time"
)

// Not every request is mirrored, nor simply passed on: what is here stands before
// ServeHTTP's way for the middlewares that want more.
//
//	request ─▶ filtered? ─▶ sampled out? ─▶ held until it is whole (hold.go): answer, reject
//	                                      └▶ watched until its end: authenticate, captureResponse
//	                                      └▶ mirrored as any other
//
// What is filtered or sampled out is only not mirrored: it is held, checked and answered as
// all others.

// isScreened says whether the requests of a middleware come here.
func isScreened(set *settings) bool {
	return set.methods != nil || set.includePaths != nil || set.excludePaths != nil || set.sampleRate < 1 ||
		set.response != responseNone || set.authentication != nil || set.answer > 0 || set.format == formatRequest
}

func serveScreened(m *Mirror, rw http.ResponseWriter, req *http.Request) {
	set := m.set
	mirrored := wanted(m, req)
	if set.answer > 0 || set.authentication != nil && set.authentication.reject {
		serveHeld(m, rw, req, mirrored)
		return
	}
	if !mirrored {
		m.next.ServeHTTP(rw, req)
		return
	}
	if set.sampleRate < 1 && sampledOut(m) {
		m.next.ServeHTTP(rw, req)
		return
	}
	if set.authentication == nil && set.response != responseNone && noRoom(m) {
		m.next.ServeHTTP(rw, req)
		return
	}
	if set.authentication != nil || set.response != responseNone {
		serveWatched(m, rw, req)
		return
	}
	if len(m.queue) >= m.full || len(m.shut) > 0 {
		serveCrowded(m, rw, req)
		return
	}
	serveMirrored(m, rw, req)
}

// wanted says whether the request is to be mirrored, and counts it as filtered if not.
func wanted(m *Mirror, req *http.Request) bool {
	set := m.set
	filtered := set.methods != nil && !set.methods[req.Method] || req.Header[markerHeader] != nil && isDelivery(req)
	if !filtered && (set.includePaths != nil || set.excludePaths != nil) {
		path := pathOf(targetOf(req))
		filtered = set.includePaths != nil && !set.includePaths.MatchString(path) ||
			set.excludePaths != nil && set.excludePaths.MatchString(path)
	}
	if set.format == formatRequest && (req.Method == http.MethodConnect || !validHeaderName(req.Method)) {
		filtered = true // neither a tunnel nor what HTTP/2 lets through as a method can be sent again
	}
	if filtered {
		countFiltered(m, 1, 0)
	}
	return !filtered
}

// pathOf is the path of a request target as it was sent.
func pathOf(target string) string {
	path, _, _ := strings.Cut(target, "?")
	if path == "" || path[0] != '/' {
		path = pathOfOther(path)
	}
	return path
}

// sampledOut decides whether the request is one of those that are left out, and counts
// it then.
func sampledOut(m *Mirror) bool {
	if m.set.sampleRate >= 1 || rand.Float64() < m.set.sampleRate {
		return false
	}
	for _, p := range allPipes(m) {
		p.mu.Lock()
		p.counts.sampledOut++
		p.mu.Unlock()
	}
	return true
}

func countFiltered(m *Mirror, filtered, unauthenticated uint64) {
	for _, p := range allPipes(m) {
		p.mu.Lock()
		p.counts.filtered += filtered
		p.counts.unauthenticated += unauthenticated
		p.mu.Unlock()
	}
}

// countUnauthenticated counts a request as filtered, if it is not already.
func countUnauthenticated(w *watched) {
	filtered := uint64(1)
	if w.c.unwanted {
		filtered = 0
	}
	w.c.unwanted = true
	countFiltered(w.m, filtered, 1)
}

func allPipes(m *Mirror) []*pipeline {
	return append([]*pipeline{m.pipe}, m.others...)
}

// serveWatched serves a request of which more is known at its end: whether it was
// genuine, and what was answered. It is mirrored then, whatever came of it.
func serveWatched(m *Mirror, rw http.ResponseWriter, req *http.Request) {
	w := &watched{m: m, req: req, c: captureOf(m, req)}
	if req.ContentLength != 0 {
		tee(m, req, w.c)
	}
	if m.set.authentication != nil {
		w.proof = prove(m.set.authentication, req)
	}
	passWatched(w, rw)
}

// passWatched passes the request on. Nothing is recovered here, as in serveBody.
func passWatched(w *watched, rw http.ResponseWriter) {
	if w.m.set.response != responseNone {
		rw = record(w, rw)
	}
	defer mirrorAtEnd(w)
	w.m.next.ServeHTTP(rw, w.req)
	w.returned = true
}

// watched is a request until its end. It is its own goroutine's.
type watched struct {
	m        *Mirror
	req      *http.Request
	c        *capture
	proof    *proof              // nil if none is wanted
	rw       http.ResponseWriter // as it came; nil if the response is not captured
	tap      *responseTap        // nil if the response's body is not captured
	returned bool                // whether the handler did, and did not panic
}

// mirrorAtEnd mirrors the request, or counts why not.
func mirrorAtEnd(w *watched) {
	defer contain()
	c := w.c
	if w.proof != nil && !isGenuine(w.proof) {
		countUnauthenticated(w)
	}
	if w.rw != nil {
		c.response = closeResponse(w)
	}
	if c.body != nil {
		finish(w.m, w.req, c)
		return
	}
	c.over = time.Now()
	offerScreened(w.m, c)
}

// offerScreened offers what was captured to all receivers, if it is wanted after all.
func offerScreened(m *Mirror, c *capture) {
	defer contain()
	if c.unwanted {
		letGo(c)
		return
	}
	if b := c.body; b != nil && m.set.format == formatRequest {
		if b.cut != "" {
			dropIncomplete(m, b.cut)
			letGo(c)
			return
		}
		b.lent = true
	}
	if c.response != nil {
		weighResponse(c)
	}
	if m.others != nil {
		offerAll(m, c)
		return
	}
	offer(m.pipe, c)
}

// dropIncomplete counts a request that cannot be sent on, as a part of its body is
// missing.
func dropIncomplete(m *Mirror, cut string) {
	for _, p := range allPipes(m) {
		dropCut(p, cut)
	}
}

func dropCut(p *pipeline, cut string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sequence++
	if p.forgotten {
		p.counts.offered++
	}
	p.counts.dropped[reasonIncomplete]++
	p.counts.truncated[cut]++
	lose(p.ledger)
}
