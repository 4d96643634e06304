package e2e

import (
	"bytes"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

func TestPayloadsAreCompressedIfThatHelps(t *testing.T) {
	t.Parallel()
	random := make([]byte, 20_000)
	for i := range random {
		random[i] = byte(rand.Uint32())
	}
	s := mirror(t, lab.Options{"compression": "gzip", "signingSecrets": []string{newSecret}})
	for _, c := range []struct {
		name  string
		sent  []byte
		ratio int // that the payload shrinks by at least
	}{
		{"a text is a fraction of what it was", text(200_000), 4},
		{"a binary body comes back as it was", random, 1},
		{"an event without body is smaller, too", nil, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := len(s.receiver.Attempts())
			r, id := s.request(t, http.MethodPost, "https", "/", bytes.NewReader(c.sent))
			if got := s.send(t, r, http.StatusOK).report(t); got.SHA256 != lab.Hash(c.sent) {
				t.Error("backend: got another body than was sent")
			}
			attempts, err := s.receiver.Wait(soon(t), before+1)
			if err != nil {
				t.Fatal(err)
			}
			a := attempts[before]
			// Over the bytes as sent: verify first, unpack then.
			if err := event.Verify(newSecret, a.Header, a.Body); err != nil {
				t.Errorf("signature: %v", err)
			}
			payload, err := a.Payload()
			if err != nil {
				t.Fatal(err)
			}
			if got := a.Header.Get("Content-Encoding"); got != "gzip" {
				t.Fatalf("content encoding of %d bytes: got %q; want gzip", len(payload), got)
			}
			if len(a.Body)*c.ratio >= len(payload) {
				t.Errorf("size: got %d bytes of %d; want a %dth at most", len(a.Body), len(payload), c.ratio)
			}
			e := events(t, []lab.Attempt{a})[0]
			if requestOf(e) != id {
				t.Errorf("event: got that of %s; want %s", requestOf(e), id)
			}
			if c.sent != nil {
				expectBody(t, e, event.Body{Content: c.sent, Text: c.ratio > 1, Size: int64(len(c.sent))})
			}
		})
	}
}

// Of all bodies, control bytes take the most in an event: six bytes each.
func TestNoPostIsLargerThanMaxEventSize(t *testing.T) {
	t.Parallel()
	sent := bytes.Repeat([]byte{1}, 1<<20)
	const limit = 1 << 20
	made := mirrors(t, shared,
		lab.Options{"maxEventSize": "1Mi"},
		lab.Options{"maxEventSize": "1Mi", "batch": map[string]any{"maxEvents": 2, "maxSize": "4Mi", "flushInterval": "200ms"}})
	for i, name := range []string{"each by itself", "in batches"} {
		t.Run(name, func(t *testing.T) {
			s := made[i]
			const n = 3
			for range n {
				r, _ := s.request(t, http.MethodPost, "http", "/", bytes.NewReader(sent))
				if got := s.send(t, r, http.StatusOK).report(t); got.SHA256 != lab.Hash(sent) {
					t.Errorf("backend: got %d bytes, not those that were sent; want %d", got.Length, len(sent))
				}
			}
			l := s.settle(t, n)
			if l.Delivered != n || l.Truncated["event"] != n {
				t.Errorf("ledger: got %s; want %d delivered, and all truncated for event", l, n)
			}
			attempts := s.receiver.Attempts()
			for _, a := range attempts {
				// The end of the body is all that is left out.
				if len(a.Body) > limit || len(a.Body) < limit-100 {
					t.Errorf("size: got %d; want at most %d, and little less", len(a.Body), limit)
				}
			}
			for _, e := range events(t, attempts) {
				expectCut(t, e, "event")
				if e.Body.Size != int64(len(sent)) || !e.Body.Text || !bytes.HasPrefix(sent, e.Body.Content) || len(e.Body.Content) < limit/6-1000 {
					t.Errorf("body: got %d bytes, size %d, text %t; want the beginning of %d bytes of text", len(e.Body.Content), e.Body.Size, e.Body.Text, len(sent))
				}
			}
		})
	}
}

func TestAnEventThatIsTooLargeWithoutItsBodyFails(t *testing.T) {
	t.Parallel()
	s := mirror(t, lab.Options{"maxEventSize": "4Ki"})
	r, _ := s.request(t, http.MethodPost, "http", "/", strings.NewReader("a body"))
	r.Header.Set("X-Large", strings.Repeat("x", 5000))
	s.send(t, r, http.StatusOK)
	fits := s.post(t, "another")
	if e := s.event(t, fits); e.Body.Truncated {
		t.Error("an event that fits is truncated")
	}
	if l := s.settle(t, 2); l.Failed["too_large"] != 1 || l.Delivered != 1 || len(s.receiver.Attempts()) != 1 {
		t.Errorf("ledger: got %s, %d attempts; want one failed for too_large without an attempt, and one delivered", l, len(s.receiver.Attempts()))
	}
}
