//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"weak"
)

// A client's certificates may have hundreds of kilobytes, which no budget counts.
func TestWaitingEventsHoldNothingOfTheirConnection(t *testing.T) {
	for name, body := range map[string]string{"without a body": "", "with a body": "x"} {
		for _, options := range []opts{nil, {"sampleRate": 1.0, "captureResponse": "status"}} {
			p := stillPipeline(t, options)
			m := newMirror(answer(""), p.set, []*pipeline{p})
			connection := offerOver(m, body)
			runtime.GC()
			if connection.Value() != nil || len(p.queue) != 1 {
				t.Errorf("%s, %v: got the connection's state held by %d events; want one that does not", name, options, len(p.queue))
			}
			c := <-p.queue
			if c.secure != tls.VersionTLS13 {
				t.Errorf("%s, %v: got version %x; want TLS 1.3", name, options, c.secure)
			}
			runtime.KeepAlive(c)
		}
	}
}

// offerOver has a request come over a connection, to which nothing leads any more.
func offerOver(m *Mirror, body string) weak.Pointer[tls.ConnectionState] {
	req := send("/", body)
	if body == "" {
		req.Method = http.MethodGet
		req.ContentLength = 0
	}
	req.TLS = &tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{{Raw: make([]byte, 1<<10)}}}
	serve(m, req)
	return weak.Make(req.TLS)
}

// What a worker remembers of connections and hosts is in no budget.
func TestClientsDoNotFillTheMemoryOfAWorker(t *testing.T) {
	onStage(t, opts{"workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		heap := func() int64 {
			s.calls = nil
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		s.send(1)
		before := heap()
		for _, length := range []int{900, 1700} {
			for n := range 1500 {
				host := fmt.Sprintf("%05d.%s", n, strings.Repeat("a", length))
				s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", Host: host, RemoteAddr: fmt.Sprintf("10.0.0.1:%d", n)})
				if n%500 == 0 {
					s.wait(0)
					s.calls = nil
				}
			}
			s.wait(0)
			if grown := heap() - before; grown > 2<<20 {
				t.Errorf("hosts of %d bytes: got %d KiB more in use after they were delivered; want less than 2 MiB", length, grown>>10)
			}
		}
	})
}

// So that the routers of a middleware remember headers once, and their events go in one group.
func TestRoutersWithTheSameOptionsHaveThemInCommon(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	writeSecret(t, file, "one")
	options := opts{"watchURL": newReceiver(t).url, "methods": "POST", "hashKey": "file:" + file}
	router := func() *settings { return mirrorOf(t, http.NotFoundHandler(), options).(*Mirror).set }
	first := router()
	if router() != first {
		t.Error("got other settings for the second router; want those of the first")
	}
	options["methods"] = "PUT"
	changed := router()
	if changed == first || !changed.methods["PUT"] {
		t.Errorf("got methods %v after a reload with PUT; want that", changed.methods)
	}
	writeSecret(t, file, "two")
	if again := router(); again == changed || string(again.hashKey) != "two" {
		t.Errorf("got key %s after the file has changed; want what is in it", again.hashKey)
	}
}
