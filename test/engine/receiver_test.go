package engine

import (
	"bytes"
	"compress/gzip"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/opencommit/requestmirror/test/event"
)

// answer is what the scripted receiver does with one delivery.
type answer struct {
	status  int    // 0: 204
	after   string // Retry-After
	header  http.Header
	hang    bool // no answer until release, or until the sender gives up
	cut     bool // the connection is closed without an answer
	endless bool // the answer's body has no end
}

// consent is an answer that agrees to a handshake.
func consent(origin, rate string) answer {
	return answer{header: http.Header{"Webhook-Allowed-Origin": {origin}, "Webhook-Allowed-Rate": {rate}}}
}

// delivery is one attempt as the receiver saw it.
type delivery struct {
	at       time.Time
	method   string
	path     string
	proto    string
	remote   string
	header   http.Header
	raw      []byte // as it was sent and signed
	plain    []byte // raw, decompressed
	client   string // common name of the sender's certificate
	accepted bool   // 2xx was sent while the sender still listened
}

// receiver answers deliveries in the order of the script; its last answer is
// given to all that follow.
type receiver struct {
	*httptest.Server
	released chan struct{}
	once     sync.Once

	// Set before it is started.
	choose   func(delivery) answer // instead of the script
	consents []answer              // to OPTIONS, like the script; none: 204, which is no consent

	mu      sync.Mutex
	script  []answer
	got     []*delivery
	reports []*delivery // answered with 204, and no part of the script
	asked   []*delivery // OPTIONS
	conns   int         // open connections
}

func newReceiver(script []answer, secure bool, options ...func(*receiver)) *receiver {
	r := &receiver{script: script, released: make(chan struct{})}
	r.Server = httptest.NewUnstartedServer(r)
	r.Config.ErrorLog = quiet
	r.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		r.mu.Lock()
		defer r.mu.Unlock()
		switch state {
		case http.StateNew:
			r.conns++
		case http.StateClosed, http.StateHijacked:
			r.conns--
		}
	}
	for _, option := range options {
		option(r)
	}
	if secure {
		r.EnableHTTP2 = true
		r.StartTLS()
	} else {
		r.Start()
	}
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	raw, err := io.ReadAll(req.Body)
	if err != nil {
		return // The sender gave up while sending: nothing was delivered.
	}
	d := &delivery{at: time.Now(), method: req.Method, path: req.RequestURI, proto: req.Proto, remote: req.RemoteAddr, header: req.Header.Clone(), raw: raw, plain: raw}
	if req.TLS != nil && len(req.TLS.PeerCertificates) > 0 {
		d.client = req.TLS.PeerCertificates[0].Subject.CommonName
	}
	if d.header.Get("Content-Encoding") == "gzip" {
		if d.plain, err = unzip(raw); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	r.mu.Lock()
	a := answer{status: http.StatusNoContent}
	switch {
	case req.Method == http.MethodOptions:
		r.asked = append(r.asked, d)
		a, r.consents = following(r.consents)
	case event.IsReport(d.plain):
		r.reports = append(r.reports, d)
	default:
		r.got = append(r.got, d)
		if r.choose == nil {
			a, r.script = following(r.script)
		}
	}
	r.mu.Unlock()
	if r.choose != nil && req.Method != http.MethodOptions && !event.IsReport(d.plain) {
		a = r.choose(*d)
	}
	if a.status == 0 {
		a.status = http.StatusNoContent
	}

	if a.cut {
		panic(http.ErrAbortHandler)
	}
	if a.hang {
		select {
		case <-r.released:
		case <-req.Context().Done():
			return
		}
	}
	if a.status/100 == 2 {
		r.mu.Lock()
		d.accepted = true
		r.mu.Unlock()
	}
	for name, values := range a.header {
		w.Header()[name] = values
	}
	if a.after != "" {
		w.Header().Set("Retry-After", a.after)
	}
	w.WriteHeader(a.status)
	for chunk := make([]byte, 16<<10); a.endless; {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// following is the next answer of a script, and the rest of it.
func following(script []answer) (answer, []answer) {
	if len(script) == 0 {
		return answer{}, nil
	}
	if len(script) == 1 {
		return script[0], script
	}
	return script[0], script[1:]
}

func unzip(raw []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// release answers all that hang.
func (r *receiver) release() { r.once.Do(func() { close(r.released) }) }

func (r *receiver) open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

func (r *receiver) deliveries() []delivery { return r.copies(&r.got) }

// told are the deliveries of reports.
func (r *receiver) told() []delivery { return r.copies(&r.reports) }

func (r *receiver) handshakes() []delivery { return r.copies(&r.asked) }

func (r *receiver) copies(list *[]*delivery) []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]delivery, len(*list))
	for i, d := range *list {
		out[i] = *d
	}
	return out
}
