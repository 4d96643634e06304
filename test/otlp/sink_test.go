package otlp

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
)

// delivery is what a sink got, without its content encoding.
type delivery struct {
	header http.Header
	body   []byte
}

// sink takes deliveries on a real connection.
type sink struct {
	url    string
	answer func(http.ResponseWriter)
	mu     sync.Mutex
	got    []delivery
}

func newSink(t *testing.T, answer func(http.ResponseWriter)) *sink {
	s := &sink{answer: answer}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	s.url = server.URL + "/v1/logs"
	return s
}

func (s *sink) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	body, err := plain(req)
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.got = append(s.got, delivery{req.Header, body})
	s.mu.Unlock()
	if s.answer != nil {
		s.answer(rw)
	}
}

func (s *sink) all() []delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// one is for deliveries of one event each.
func one(*testing.T, []byte) int { return 1 }

// recordsOf is the number of records of a delivery.
func recordsOf(t *testing.T, body []byte) int {
	t.Helper()
	all := plogotlp.NewExportRequest()
	if err := all.UnmarshalJSON(body); err != nil {
		t.Fatalf("the Collector's library: %v in %s", err, body)
	}
	return all.Logs().LogRecordCount()
}

// wait returns the deliveries when there are so many of what is counted in them.
func (s *sink) wait(t *testing.T, what string, n int, count func(*testing.T, []byte) int) []delivery {
	t.Helper()
	waitFor(t, fmt.Sprint(n, " ", what), func() bool {
		sum := 0
		for _, d := range s.all() {
			sum += count(t, d.body)
		}
		return sum >= n
	})
	return s.all()
}

// waitFor fails only for what never happens.
func waitFor(t *testing.T, what string, happened func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !happened() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// plain is the body of a request without its content encoding.
func plain(req *http.Request) ([]byte, error) {
	switch encoding := req.Header.Get("Content-Encoding"); encoding {
	case "":
		return io.ReadAll(req.Body)
	case "gzip":
		z, err := gzip.NewReader(req.Body)
		if err != nil {
			return nil, err
		}
		return io.ReadAll(z)
	default:
		return nil, fmt.Errorf("content encoding %q", encoding)
	}
}
