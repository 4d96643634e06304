//go:build unix

package pipeline

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// attempt is one to deliver something, and what came of it.
type attempt struct {
	id           string
	events       int
	signed       bool
	at, answered time.Time // the second is before the answer is on its way
	answer       int
	after        string // Retry-After
}

// recorder stands before a gateway, and passes on what it gets, and the answers.
type recorder struct {
	url string

	mu  sync.Mutex
	all []*attempt
}

func recordBefore(t *testing.T, gateway string) *recorder {
	t.Helper()
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{}}
	r := &recorder{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		a := &attempt{at: time.Now(), id: req.Header.Get("webhook-id")}
		payload, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
			return
		}
		a.signed = webhook.Verify(payload, req.Header) == nil
		a.events = bytes.Count(unpacked(t, req.Header, payload), []byte(`"specversion"`))
		r.mu.Lock()
		r.all = append(r.all, a)
		r.mu.Unlock()
		on, err := http.NewRequestWithContext(req.Context(), req.Method, gateway, bytes.NewReader(payload))
		if err != nil {
			t.Error(err)
			return
		}
		on.Header = req.Header
		resp, err := client.Do(on)
		if err != nil {
			panic(http.ErrAbortHandler) // who asked has no answer, too
		}
		_ = resp.Body.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		a.answer, a.after, a.answered = resp.StatusCode, resp.Header.Get("Retry-After"), time.Now()
		if a.after != "" {
			w.Header().Set("Retry-After", a.after)
		}
		w.WriteHeader(a.answer)
	}))
	t.Cleanup(func() {
		server.Close()
		client.CloseIdleConnections()
	})
	r.url = server.URL + "/events"
	return r
}

func unpacked(t *testing.T, h http.Header, payload []byte) []byte {
	if h.Get("Content-Encoding") != "gzip" {
		return payload
	}
	z, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		t.Error(err)
		return nil
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Error(err)
	}
	return text
}

// attempts are all of them, in the order in which they came; those that are not answered
// yet have no answer.
func (r *recorder) attempts() (all []attempt) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, a := range r.all {
		all = append(all, *a)
	}
	slices.SortFunc(all, func(a, b attempt) int { return a.at.Compare(b.at) })
	return all
}

// pushedBack are the signed deliveries that found no room.
func pushedBack(all []attempt) []attempt {
	return slices.DeleteFunc(slices.Clone(all), func(a attempt) bool { return !a.signed || a.answer != http.StatusTooManyRequests })
}
