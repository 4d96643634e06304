package e2e

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/opencommit/requestmirror/test/lab"
)

// TestComingFromSprayproxyWithABackendThatAnswers runs the second configuration of the page:
// GitHub sees the answer of one backend, and the other one has a copy.
func TestComingFromSprayproxyWithABackendThatAnswers(t *testing.T) {
	t.Parallel()
	const secret, documented = "It's a Secret to Everybody", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	hello := []byte("Hello, World!")
	var mu sync.Mutex
	var first []hostRequest
	status := http.StatusAccepted
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		first = append(first, hostRequest{req.Method + " " + req.RequestURI + " " + req.Host, req.Header, body})
		w.Header().Set("X-Backend", "first")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, "taken")
	}))
	t.Cleanup(backend.Close)
	second := aReceiver(t)
	s := configured(t, "spray", pageYAML(t, "coming-from-sprayproxy.md", 1),
		"http://127.0.0.1:9001", backend.URL, "http://127.0.0.1:9002", origin(second), "/run/secrets/github-webhook", fileWith(t, secret+"\n"))

	// The answer is that of the first, also while the second one hangs.
	open := make(chan struct{})
	second.Become(lab.Gate(open))
	taken := 0
	expect := func(body []byte, signature string, want int) {
		t.Helper()
		mu.Lock()
		status = want
		mu.Unlock()
		a := s.send(t, s.webhook(t, body, signature), want)
		taken++
		if a.Header.Get("X-Backend") != "first" || string(a.body) != "taken" {
			t.Errorf("got %q with %q; want the answer of the first backend", a.body, a.Header)
		}
	}
	largest := text(25 << 20)
	expect(hello, documented, http.StatusAccepted)
	expect(hello, documented, http.StatusInternalServerError)
	expect(largest, signed(secret, largest), http.StatusOK)

	// Neither of them gets what is forged, or too large.
	larger := append(largest, 'x')
	s.send(t, s.webhook(t, []byte("Hello, world?"), documented), http.StatusUnauthorized)
	s.send(t, s.webhook(t, larger, signed(secret, larger)), http.StatusRequestEntityTooLarge)
	get, _ := s.request(t, http.MethodGet, "http", "/", nil)
	s.send(t, get, http.StatusNotFound)
	const filtered, incomplete = 1, 1
	if l := s.ledger(t); l.Delivered != 0 || l.Seen != int64(taken+filtered+incomplete) {
		t.Errorf("while the second backend hangs: got %s; want %d seen, none delivered", l, taken+filtered+incomplete)
	}
	close(open)
	if l := s.settle(t, taken+filtered+incomplete); l.Delivered != int64(taken) || l.Filtered != filtered || l.Dropped["incomplete"] != incomplete || l.Lost() != incomplete {
		t.Errorf("ledger: got %s; want %d delivered, %d filtered, %d incomplete", l, taken, filtered, incomplete)
	}

	copied := copies(second)
	mu.Lock()
	defer mu.Unlock()
	if len(first) != taken || len(copied) != taken {
		t.Errorf("got %d webhooks at the first backend, %d copies at the second; want %d", len(first), len(copied), taken)
	}
	for i, was := range first {
		id := was.header.Get(lab.RequestHeader)
		if len(copied[id]) != 1 {
			t.Errorf("webhook %d: got %d copies; want 1", i+1, len(copied[id]))
			continue
		}
		is := copied[id][0]
		if was.line != "POST / "+s.name+".test" || is.Method+" "+is.Path != "POST /" || !bytes.Equal(is.Body, was.body) {
			t.Errorf("webhook %d: got %s with %d bytes, copied as %s %s with %d; want the same", i+1, was.line, len(was.body), is.Method, is.Path, len(is.Body))
		}
		for _, name := range []string{"X-Hub-Signature-256", "X-Github-Event", "X-Github-Delivery", "User-Agent", "Content-Type"} {
			if is.Header.Get(name) != was.header.Get(name) || was.header.Get(name) == "" {
				t.Errorf("webhook %d: %s: got %q, copied as %q; want the same", i+1, name, was.header.Get(name), is.Header.Get(name))
			}
		}
	}
}
