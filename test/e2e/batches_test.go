package e2e

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

func TestEventsArriveInSignedBatches(t *testing.T) {
	t.Parallel()
	const n, most, clients = 96, 10, 8
	cert, err := lab.NewCertificate("localhost")
	if err != nil {
		t.Fatal(err)
	}
	overTLS, err := lab.NewTLSReceiver(cert)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(overTLS.Close)
	options := func(more lab.Options) lab.Options {
		o := lab.Options{
			"batch": map[string]any{"maxEvents": most, "flushInterval": "500ms"}, "signingSecrets": []string{newSecret, oldSecret},
			"retry": map[string]any{"initialInterval": "10ms"},
		}
		for name, value := range more {
			o[name] = value
		}
		return o
	}
	made := mirrors(t, shared, options(nil),
		options(lab.Options{"watchURL": overTLS.URL, "tls": map[string]any{"ca": string(cert.Cert)}}),
		options(lab.Options{"compression": "gzip"}))
	for i, c := range []struct {
		name, proto string
		receiver    *lab.Receiver
	}{{"HTTP/1.1", "HTTP/1.1", made[0].receiver}, {"HTTP/2 with TLS", "HTTP/2.0", overTLS}, {"HTTP/1.1 compressed", "HTTP/1.1", made[2].receiver}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := made[i]
			// The first one is to come again as it was.
			c.receiver.Become(lab.Script(lab.Status(503, nil), lab.OK()))
			var wg sync.WaitGroup
			sent := make([]map[string]bool, clients)
			for client := range clients {
				sent[client] = map[string]bool{}
				wg.Go(func() {
					for j := range n / clients {
						r, id := s.request(t, http.MethodPost, protocols[j%2].scheme, "/", strings.NewReader(fmt.Sprintf("body of %d %d", client, j)))
						r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
						if a, err := s.do(r); err != nil || a.StatusCode != http.StatusOK {
							t.Errorf("request %s: got %v, %v; want 200", id, a.Response, err)
						}
						sent[client][id] = true
					}
				})
			}
			wg.Wait()
			if l := s.settle(t, n); l.Delivered != n || l.Retried == 0 {
				t.Errorf("ledger: got %s; want %d delivered, some after a retry", l, n)
			}

			attempts := c.receiver.Attempts()
			eventIDs, bodies := map[string]bool{}, map[string]string{}
			for _, a := range attempts {
				id := a.Header.Get("Webhook-Id")
				if a.Proto != c.proto || a.Header.Get("Content-Type") != event.BatchContentType || a.Header.Get("Traceparent") != "" {
					t.Errorf("batch: got %s, %s, traceparent %q; want %s, %s, none", a.Proto,
						a.Header.Get("Content-Type"), a.Header.Get("Traceparent"), c.proto, event.BatchContentType)
				}
				for _, secret := range []string{newSecret, oldSecret} {
					if err := event.Verify(secret, a.Header, a.Body); err != nil {
						t.Errorf("batch %s: secret %.10s…: %v", id, secret, err)
					}
				}
				if body, again := bodies[id]; again && body != string(a.Body) {
					t.Errorf("batch %s: another attempt has another body", id)
				}
				bodies[id] = string(a.Body)
				members := events(t, []lab.Attempt{a})
				if len(members) > most {
					t.Errorf("batch %s: got %d events; want at most %d", id, len(members), most)
				}
				for _, e := range members {
					eventIDs[e.ID] = true
				}
			}
			if len(bodies) == len(attempts) {
				t.Errorf("batches: got %d ids in as many attempts; want one of them twice", len(bodies))
			}
			for id := range bodies {
				if eventIDs[id] {
					t.Errorf("the id %s is a batch's and an event's", id)
				}
			}
			all := events(t, taken(attempts))
			expectNumbers(t, "batches", all, n)
			if batches := len(taken(attempts)); batches > n/2 {
				t.Errorf("batches: got %d for %d events", batches, n)
			}
			for _, e := range all {
				if !slices.ContainsFunc(sent, func(ids map[string]bool) bool { return ids[requestOf(e)] }) {
					t.Errorf("an event of request %q; want only those that were sent", requestOf(e))
				}
			}
		})
	}
}

func TestABatchThatIsTooLargeForTheReceiverIsHalved(t *testing.T) {
	t.Parallel()
	const n, room = 40, 6000
	s := mirror(t, lab.Options{"batch": map[string]any{"maxEvents": n, "flushInterval": "1m"}})
	s.receiver.Become(func(w http.ResponseWriter, r *http.Request) {
		status := http.StatusNoContent
		if r.ContentLength > room {
			status = http.StatusRequestEntityTooLarge
		}
		w.WriteHeader(status)
	})
	for range n {
		s.get(t)
	}
	if l := s.settle(t, n); l.Delivered != n || l.Lost() != 0 {
		t.Errorf("ledger: got %s; want %d delivered", l, n)
	}
	attempts := s.receiver.Attempts()
	if got := len(events(t, attempts[:1])); got != n || attempts[0].Answer != http.StatusRequestEntityTooLarge {
		t.Errorf("first batch: got %d events, answered %d; want %d, and 413", got, attempts[0].Answer, n)
	}
	ids := map[string]bool{}
	for _, a := range attempts {
		ids[a.Header.Get("Webhook-Id")] = true
	}
	if len(ids) != len(attempts) {
		t.Errorf("ids of batches: got %d for %d batches; want one for each", len(ids), len(attempts))
	}
	expectNumbers(t, "halves", events(t, taken(attempts)), n)
}

func TestABatchThatWaitsGoesOutAtAReload(t *testing.T) {
	t.Parallel()
	const n = 3
	waits := map[string]any{"maxEvents": 100, "flushInterval": "1m"}
	s := mirror(t, lab.Options{"batch": waits})
	for range n {
		s.post(t, "waits")
	}
	await(t, "the batch to be gathered", func() (bool, any, error) {
		l := s.ledger(t)
		return l.InFlight+l.Waiting == n, l, nil
	})
	s.world.change(t, func(d *lab.Dynamic) {
		d.Mirrors[s.name] = s.options(lab.Options{"batch": waits, "queueSize": 500})
	})
	s.post(t, "after the reload")
	attempts, err := s.receiver.Wait(soon(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	expectNumbers(t, "batch", events(t, attempts), n)
	await(t, "the old pipeline to end", func() (bool, any, error) {
		l := s.ledger(t)
		return l.Pipelines == 1 && l.Delivered == n && l.InFlight+l.Waiting == 1, l, nil
	})
}

func TestABatchThatWaitsGoesOutOnSIGTERM(t *testing.T) {
	t.Parallel()
	const n = 3
	w := ownWorld(t, lab.Setup{Static: map[string]any{"entryPoints": map[string]any{
		"web": map[string]any{"transport": map[string]any{"lifeCycle": map[string]any{"requestAcceptGraceTimeout": "2s"}}},
	}}})
	s := mirrors(t, w, lab.Options{"batch": map[string]any{"maxEvents": 100, "flushInterval": "30s"}})[0]
	for range n {
		s.post(t, "waits")
	}
	await(t, "the batch to be gathered", func() (bool, any, error) {
		l := s.ledger(t)
		return l.InFlight+l.Waiting == n, l, nil
	})
	if got := len(s.receiver.Attempts()); got != 0 {
		t.Fatalf("before SIGTERM: got %d batches; want none", got)
	}
	w.traefik.Terminate()
	attempts, err := s.receiver.Wait(soon(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.traefik.Exited():
		t.Error("Traefik had ended when the batch came; want it before")
	default:
	}
	expectNumbers(t, "batch", events(t, attempts), n)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := w.traefik.Wait(ctx); err != nil {
		t.Errorf("the plugin kept Traefik from ending: %v", err)
	}
}
