package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// core is the interpreted plugin without what the capture of responses adds to requests
// whose response is not captured, and to their events: its looks at whether there is one.
var core = sync.OnceValues(func() (*engine, error) {
	gopath, err := os.MkdirTemp("", "core-gopath")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(gopath)
	dir := filepath.Join(gopath, "src", filepath.FromSlash(importPath))
	if err := copyPlugin(filepath.Join("..", ".."), dir); err != nil {
		return nil, err
	}
	looks := []string{" || c.response != nil", "c.response != nil || ", "c.response == nil && "}
	found := 0
	for _, name := range []string{"worker.go", "batch.go", "body.go", "budget.go", "capture.go", "mirror.go", "pipeline.go"} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		text := string(raw)
		for _, look := range looks {
			found += strings.Count(text, look)
			text = strings.ReplaceAll(text, look, "")
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if found == 0 {
		return nil, errors.New("the source has no look at the response that could be left out")
	}
	return load(gopath, importPath, "requestmirror")
})

func withoutCapture(tb testing.TB) *engine {
	tb.Helper()
	e, err := core()
	if err != nil {
		tb.Fatal(err)
	}
	return e
}

// BenchmarkCaptureOff prints what an event costs from the request to the receiver's answer
// with captureResponse, in terms of the same plugin without that option. Both run by turns
// in one process; the receiver's part is in both.
//
//	go test -run - -bench CaptureOff -benchtime 1x ./engine
func BenchmarkCaptureOff(b *testing.B) {
	const rounds = 15
	for _, l := range loads[:2] {
		for _, batch := range []int{1, 100} {
			for _, mode := range []string{"none", "status", "headers", "body"} {
				b.Run(fmt.Sprintf("req=%s/batch=%d/capture=%s", l.name, batch, mode), func(b *testing.B) {
					var with, without, ratios []float64
					var mallocs, coreMallocs []uint64
					for i := range b.N * rounds {
						// Whoever comes second has the garbage of the first.
						measure := []func(){
							func() {
								t, m := wholeWay(b, withoutCapture(b), l, map[string]any{"batch": map[string]any{"maxEvents": batch}})
								without, coreMallocs = append(without, t), append(coreMallocs, m)
							},
							func() {
								t, m := wholeWay(b, loaded(b)[1], l, map[string]any{"batch": map[string]any{"maxEvents": batch}, "captureResponse": mode})
								with, mallocs = append(with, t), append(mallocs, m)
							},
						}
						measure[i%2]()
						measure[1-i%2]()
						ratios = append(ratios, with[i]/without[i])
					}
					slices.Sort(ratios)
					b.ReportMetric(0, "ns/op") // of all rounds: of no meaning
					b.ReportMetric(slices.Min(without), "core-ns")
					b.ReportMetric(slices.Min(with), "ours-ns")
					b.ReportMetric(ratios[len(ratios)/2], "ratio")
					b.ReportMetric(float64(slices.Min(coreMallocs)), "core-allocs")
					b.ReportMetric(float64(slices.Min(mallocs)), "ours-allocs")
				})
			}
		}
	}
}

// wholeWay is the time, in nanoseconds, and the allocations of one of many events that are
// offered at once and delivered to a receiver that answers at once.
func wholeWay(b *testing.B, eng *engine, l traffic, config map[string]any) (float64, uint64) {
	b.Helper()
	const n = 4000
	var left atomic.Int64
	left.Store(n)
	done := make(chan struct{})
	recv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		payload, _ := io.ReadAll(req.Body)
		rw.WriteHeader(http.StatusNoContent)
		if left.Add(-int64(bytes.Count(payload, []byte(`"specversion":`)))) == 0 {
			close(done)
		}
	}))
	defer recv.Close()
	config["watchURL"], config["queueSize"], config["strict"], config["reportInterval"], config["maxAge"] = recv.URL, n, true, 0, "10m"
	cfg, err := eng.createConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	h, err := eng.newHandler(ctx, consumer{}, cfg, fmt.Sprintf("bench-%d@file", serial.Add(1)))
	if err != nil {
		b.Fatal(err)
	}
	s := &stand{handlers: []http.Handler{h}}
	ns, mallocs := timed(func() {
		s.serve(n, l.template(), l.size)
		select {
		case <-done:
		case <-time.After(time.Minute):
			b.Fatalf("got %d of %d events; want all", n-left.Load(), n)
		}
	})
	return ns / n, mallocs / n
}
