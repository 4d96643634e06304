package requestmirror

import (
	"net/http"
	"time"
)

// capture is what was taken of one request. The request's goroutine writes it until
// offer; from then on it belongs to the queue and to the worker that takes it.
type capture struct {
	set      *settings // what may leave, as configured when the request came
	at       time.Time // arrival
	over     time.Time // when the request had ended, if it was offered only then
	method   string
	uri      string // as in the request line, undecoded
	host     string
	proto    string
	remote   string
	secure   uint16 // the version of TLS; 0 without
	header   http.Header
	body     *body     // nil for a request without a body
	response *response // nil if it is not captured
	unwanted bool      // whether it turned out that it is not to be mirrored
	random   uint64    // of the event's id, if it goes to several receivers; the worker gives it otherwise
	sequence uint64    // given by offer, under the ledger's lock
	texts    int64     // what request line and headers take, in bytes; 0 before they are weighed
	held     int64     // bytes of the body in the pipeline's share of the budget, if there are several
	encoded  int64     // bytes of the budget for what a worker wrote of a shared body
	refused  bool      // whether the header found no room
	trimmed  bool      // whether maxEventSize took from the body; the worker's, as is all below
	shorn    bool      // whether it took from the response's
	withheld bool      // whether the body could not be redacted, and does not leave
	hushed   bool      // whether that is so of the response's
	settled  bool      // whether the outcome was counted
}

// captureOf takes what is known of the request when it comes. The request path does
// the same in mirrorBare and serveBody, where a call more is felt.
func captureOf(m *Mirror, req *http.Request) *capture {
	c := &capture{
		set: m.set, at: time.Now(), method: req.Method, uri: targetOf(req), host: req.Host,
		proto: req.Proto, remote: req.RemoteAddr, header: req.Header.Clone(),
	}
	if req.TLS != nil {
		c.secure = req.TLS.Version // and not all of it, as the client's certificates may be large
	}
	return c
}

// targetOf is the request target as it came; what a program made, and no server read, has
// only what it was made from.
func targetOf(req *http.Request) string {
	if req.RequestURI == "" && req.URL != nil {
		return req.URL.RequestURI()
	}
	return req.RequestURI
}

// readySince is from when on an event ages: what a request took until it could be offered
// is not the queue's.
func readySince(c *capture) time.Time {
	if c.over.IsZero() {
		return c.at
	}
	return c.over
}
