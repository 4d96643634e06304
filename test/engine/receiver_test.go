package engine

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"
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

// delivery is one attempt as the receiver saw it.
type delivery struct {
	at       time.Time
	method   string
	path     string
	proto    string
	remote   string
	header   http.Header
	raw      []byte
	accepted bool // 2xx was sent while the sender still listened
}

// receiver answers deliveries in the order of the script; its last answer is
// given to all that follow.
type receiver struct {
	*httptest.Server
	released chan struct{}
	once     sync.Once

	mu     sync.Mutex
	script []answer
	got    []*delivery
	conns  int // open connections
}

func newReceiver(script []answer, secure bool) *receiver {
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
	d := &delivery{at: time.Now(), method: req.Method, path: req.RequestURI, proto: req.Proto, remote: req.RemoteAddr, header: req.Header.Clone(), raw: raw}
	r.mu.Lock()
	a := answer{}
	if len(r.script) > 0 {
		a = r.script[0]
	}
	if len(r.script) > 1 {
		r.script = r.script[1:]
	}
	if a.status == 0 {
		a.status = http.StatusNoContent
	}
	r.got = append(r.got, d)
	r.mu.Unlock()

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

// release answers all that hang.
func (r *receiver) release() { r.once.Do(func() { close(r.released) }) }

func (r *receiver) open() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

func (r *receiver) deliveries() []delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]delivery, len(r.got))
	for i, d := range r.got {
		out[i] = *d
	}
	return out
}
