package engine

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// BenchmarkThroughputBatches prints how many events a second get through to a receiver
// that takes 20 ms for each POST, with the interpreted plugin and four workers: one by
// one, and in batches of 100.
//
//	go test -run - -bench ThroughputBatches -benchtime 1x ./engine
func BenchmarkThroughputBatches(b *testing.B) {
	const (
		latency = 20 * time.Millisecond
		workers = 4
		size    = 100
	)
	var single, batched float64
	for range b.N {
		single += throughput(b, latency, 600, map[string]any{"workers": workers})
		batched += throughput(b, latency, 10_000, map[string]any{"workers": workers, "batch": map[string]any{"maxEvents": size}})
	}
	single /= float64(b.N)
	batched /= float64(b.N)
	b.ReportMetric(0, "ns/op") // of both together: of no meaning
	b.ReportMetric(single, "single-events/s")
	b.ReportMetric(batched, "batched-events/s")
	b.ReportMetric(batched/single, "ratio")
}

// throughput is how many events a second are delivered of n that wait.
func throughput(b *testing.B, latency time.Duration, n int, config map[string]any) float64 {
	eng := loaded(b)[1]
	recv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body)
		time.Sleep(latency)
		rw.WriteHeader(http.StatusNoContent)
	}))
	defer recv.Close()
	config["watchURL"], config["queueSize"], config["strict"], config["reportInterval"] = recv.URL, n, true, 0
	cfg, err := eng.createConfig(config)
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	name := fmt.Sprintf("bench-%d@file", serial.Add(1))
	h, err := eng.newHandler(ctx, consumer{}, cfg, name)
	if err != nil {
		b.Fatal(err)
	}
	tmpl := loads[0].template()
	start := time.Now()
	for range n {
		req := *tmpl
		h.ServeHTTP(nowhere{http.Header{}}, &req)
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(time.Minute); ; <-tick.C {
		l := globals().Middlewares[name].only()
		if l.Delivered == int64(n) {
			return float64(n) / time.Since(start).Seconds()
		}
		if l.Dropped.sum()+l.Failed.sum() > 0 || time.Now().After(deadline) {
			b.Fatalf("got %s; want all %d delivered", l, n)
		}
	}
}
