package requestmirror

import (
	"crypto/tls"
	"net/http"
	"time"
)

// capture is what was taken of one request. The request's goroutine writes it until
// offer; from then on it belongs to the queue and to the worker that takes it.
type capture struct {
	set      *settings // what may leave, as configured when the request came
	at       time.Time // arrival
	method   string
	uri      string // as in the request line, undecoded
	host     string
	proto    string
	remote   string
	secure   *tls.ConnectionState // nil without TLS
	header   http.Header
	body     *body  // nil for a request without a body
	sequence uint64 // given by offer, under the ledger's lock
	weight   int64  // bytes of the header that are charged to the budget
	refused  bool   // whether the header found no room in the budget
	settled  bool   // whether the outcome was counted; the worker's
}

// wanted says whether the request is to be mirrored, and counts it as filtered if not.
func wanted(m *Mirror, req *http.Request) (mirrored bool) {
	if m.screened && !m.set.methods[req.Method] {
		countFiltered(m.pipe.ledger)
		return false
	}
	if req.Header[markerHeader] != nil && isDelivery(req) {
		countFiltered(m.pipe.ledger)
		return false
	}
	return true
}

// teeRequest starts the capture of a request with a body and puts the tee into it.
// It returns nil if that failed; the request then goes on as it came.
func teeRequest(m *Mirror, req *http.Request) *capture {
	defer contain()
	c := newCapture(m, req)
	c.body = newBody(m, req)
	req.Body = around(c.body, req.Body)
	return c
}

// mirrorTeed mirrors a request with a body once the backend has answered, given up
// or panicked.
func mirrorTeed(m *Mirror, req *http.Request, c *capture) {
	defer contain()
	if c == nil {
		return
	}
	// The server cancels the context when a read from the client fails, on HTTP/1
	// and HTTP/2 alike; it does so for its own reasons only after we have returned.
	closeBody(c.body, req.Context().Err() != nil)
	offer(m.pipe, c)
}

// backlog is the number of waiting events from which on the header is weighed, too.
// A receiver that keeps up spares every request the loop over its header; and a few
// headers, each bounded by the server, are no danger to memory.
const backlog = 8

// weigh charges the header to the budget of the pipeline.
func weigh(p *pipeline, c *capture) {
	n := int64(len(c.uri))
	for name, values := range c.header {
		n += int64(len(name))
		for _, value := range values {
			n += int64(len(value))
		}
	}
	if charge(p.budget, n) {
		c.weight = n
	} else {
		c.refused = true
	}
}
