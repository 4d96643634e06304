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
	random   uint64 // of the event's id, if it goes to several receivers; the worker gives it otherwise
	sequence uint64 // given by offer, under the ledger's lock
	weight   int64  // bytes of the header, if they are charged to the pipeline
	held     int64  // bytes of the body in the pipeline's share of the budget, if there are several
	encoded  int64  // bytes of the budget for what a worker wrote of a shared body
	refused  bool   // whether the header found no room
	trimmed  bool   // whether maxEventSize took from the body; the worker's, as is all below
	settled  bool   // whether the outcome was counted
}

// wanted says whether the request is to be mirrored, and counts it as filtered if not.
func wanted(m *Mirror, req *http.Request) bool {
	if m.screened && !m.set.methods[req.Method] || req.Header[markerHeader] != nil && isDelivery(req) {
		countFiltered(m.pipe)
		for _, other := range m.others {
			countFiltered(other)
		}
		return false
	}
	return true
}

// backlog is the number of waiting events from which on the header is weighed, too.
// A receiver that keeps up spares every request the loop over its header; and a few
// headers, each bounded by the server, are no danger to memory.
const backlog = 8
