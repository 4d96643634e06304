package requestmirror

import (
	"bytes"
	"io"
	"net/http"
	"strconv"
)

// Two options make a request wait until all of it is here: answer, as the middleware
// itself is where it ends, and authenticate.onFailure reject, as nobody is to see it
// before it is known to be genuine. What is held is charged to memoryLimit like all
// that is captured.
//
//	read the body ─▶ too large, no memory, broken off? ─▶ 413, 503, 400
//	              ─▶ genuine?                          ─▶ 401
//	              ─▶ answered, or passed on with the body that was held
//
// What fails here fails closed: there is no contain around it.

// serveHeld serves such a request, whether it is to be mirrored or not.
func serveHeld(m *Mirror, rw http.ResponseWriter, req *http.Request, mirrored bool) {
	if !mirrored && !(m.set.authentication != nil && m.set.authentication.reject) {
		rw.WriteHeader(m.set.answer)
		return
	}
	w := &watched{m: m, req: req, c: captureOf(m, req)}
	w.c.unwanted = !mirrored
	status := hold(w)
	if status == 0 && m.set.answer == 0 {
		passBody(req, w.c.body)
		passWatched(w, rw)
		return
	}
	mirrorAtEnd(w)
	if status == 0 {
		rw.WriteHeader(m.set.answer)
		return
	}
	turnDown(rw, m.set, status)
}

// hold reads the request to its end and returns the status it is turned down with, or 0.
func hold(w *watched) int {
	m := w.m
	set := m.set
	// What goes on, to the backend or as a copy, goes on as a whole or not at all.
	whole := set.answer == 0 || set.format == formatRequest
	if w.req.ContentLength != 0 {
		tee(m, w.req, w.c)
	}
	b := w.c.body
	var claimed *proof
	if set.authentication != nil {
		claimed = prove(set.authentication, w.req)
	}
	if claimed != nil && claimed.given == nil && set.authentication.reject {
		countUnauthenticated(w) // not held, or strangers could fill the memory
		return http.StatusUnauthorized
	}
	if whole && w.req.ContentLength > set.maxBodySize {
		b.beyond = w.req.ContentLength
		return giveBack(w, cutLimit, http.StatusRequestEntityTooLarge)
	}
	var err error
	if w.req.Method != http.MethodConnect { // what goes through a tunnel has no end to wait for
		err = readThrough(w.req.Body, whole, set.maxBodySize)
	}
	if err == nil && b != nil && whole && b.cut == cutMemory {
		return giveBack(w, cutMemory, http.StatusServiceUnavailable)
	}
	if err == nil && b != nil && whole && b.beyond > 0 {
		return giveBack(w, cutLimit, http.StatusRequestEntityTooLarge)
	}
	genuine := claimed == nil || isGenuine(claimed)
	if !genuine {
		countUnauthenticated(w)
	}
	if err != nil {
		if b != nil {
			cutShort(b)
		}
		return http.StatusBadRequest
	}
	if !genuine && set.authentication.reject {
		return http.StatusUnauthorized
	}
	if !w.c.unwanted && sampledOut(m) {
		w.c.unwanted = true
	}
	return 0
}

// readThrough reads a body to its end, or to where it is known to be too large.
func readThrough(body io.Reader, whole bool, limit int64) error {
	if body == nil {
		return nil
	}
	if whole {
		body = io.LimitReader(body, limit+1)
	}
	_, err := io.Copy(io.Discard, body)
	return err
}

// giveBack counts a request as incomplete that is not held to its end.
func giveBack(w *watched, cut string, status int) int {
	if !w.c.unwanted {
		w.c.unwanted = true
		dropIncomplete(w.m, cut)
	}
	return status
}

// cutShort notes that the client broke off, whatever the length said.
func cutShort(b *body) {
	b.mu.Lock()
	if b.cut == "" {
		b.cut = cutAborted
	}
	b.mu.Unlock()
}

// passBody gives the backend the body that was held.
func passBody(req *http.Request, b *body) {
	if b == nil {
		return
	}
	b.lent = true
	req.Body = &teed{readerOf(append(append([][]byte{}, b.full...), b.part)), req.Body}
}

func readerOf(parts [][]byte) io.Reader {
	readers := make([]io.Reader, 0, len(parts))
	for _, part := range parts {
		readers = append(readers, bytes.NewReader(part))
	}
	return io.MultiReader(readers...)
}

// turnDown answers a request that is not passed on.
func turnDown(rw http.ResponseWriter, set *settings, status int) {
	text := http.StatusText(status)
	switch status {
	case http.StatusRequestEntityTooLarge:
		text = "the body is larger than " + strconv.FormatInt(set.maxBodySize, 10) + " bytes"
	case http.StatusServiceUnavailable:
		rw.Header().Set("Retry-After", "1")
		text = "no memory for the body at the moment"
	case http.StatusUnauthorized:
		rw.Header().Set("WWW-Authenticate", "Signature") // RFC 9110, 15.5.2
		text = "the signature in " + set.authentication.header + " does not match"
	}
	http.Error(rw, text, status)
}
