//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// get and post are what clients send: a browser's GET, and a POST of 1 KiB of JSON.
var (
	get  = request("GET", nil)
	post = request("POST", text(1<<10))
)

// request is a request with about fifteen headers.
func request(method string, body []byte) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "%s /api/articles/42/comments?page=2&sort=new HTTP/1.1\r\nHost: bench.test\r\n", method)
	b.WriteString("User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:142.0) Gecko/20100101 Firefox/142.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
		"Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n" +
		"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
		"Referer: https://blog.example.com/articles/42\r\n" +
		"Cookie: visitor_id=v-82f1; theme=dark; session=2b1c9f0e5d7a4e6f\r\n" +
		"Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl\r\n" +
		"Upgrade-Insecure-Requests: 1\r\n" +
		"Sec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\n" +
		"Priority: u=0, i\r\nCache-Control: no-cache\r\nPragma: no-cache\r\n")
	if body != nil {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	return append([]byte(b.String()+"\r\n"), body...)
}

// text is JSON of n bytes.
func text(n int) []byte {
	const open, end = `{"text":"`, `"}`
	words := strings.Repeat(`buy <b>cheap</b> pills, \"now\" & here; `, n/40+1)
	return []byte(open + strings.ReplaceAll(words[:n-len(open)-len(end)], `\`, "/") + end)
}

// result is what a load came to.
type result struct {
	latencies []time.Duration // sorted
	took      time.Duration
}

func (r result) percentile(p float64) time.Duration {
	return r.latencies[min(int(p*float64(len(r.latencies))), len(r.latencies)-1)]
}

func (r result) rate() float64 { return float64(len(r.latencies)) / r.took.Seconds() }

// closedLoop sends on each of the connections as fast as answers come.
func closedLoop(ctx context.Context, address string, request []byte, clients int, d time.Duration) (result, error) {
	start := time.Now()
	end := start.Add(d)
	return run(ctx, address, clients, start, func(c *conn, note func(time.Duration)) error {
		for now := time.Now(); now.Before(end); {
			if err := c.exchange(request); err != nil {
				return err
			}
			done := time.Now()
			note(done.Sub(now))
			now = done
		}
		return nil
	})
}

// openLoop sends at a fixed rate, whatever the answers do: requests fall due every
// 1/rate seconds and their latency counts from then, also for one that had to wait
// for a free connection.
func openLoop(ctx context.Context, address string, request []byte, rate int, d time.Duration) (result, error) {
	const clients = 64
	due := make(chan time.Time, int(d.Seconds()+1)*rate) // never full: what falls due is never held back
	start := time.Now().Add(10 * time.Millisecond)
	go func() {
		defer close(due)
		for at := start; at.Before(start.Add(d)) && ctx.Err() == nil; at = at.Add(time.Second / time.Duration(rate)) {
			sleepUntil(at)
			due <- at
		}
	}()
	return run(ctx, address, clients, start, func(c *conn, note func(time.Duration)) error {
		for at := range due {
			if err := c.exchange(request); err != nil {
				return err
			}
			note(time.Since(at))
		}
		return nil
	})
}

// run runs a client on each of some connections. The first error ends them all, as
// numbers of a load with errors mean nothing.
func run(ctx context.Context, address string, clients int, start time.Time, client func(*conn, func(time.Duration)) error) (result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	for range clients {
		c, err := dial(ctx, address)
		if err != nil {
			cancel(err)
			break
		}
		defer func() { _ = c.Close() }()
		context.AfterFunc(ctx, func() { _ = c.Close() })
		wg.Go(func() {
			var own []time.Duration
			if err := client(c, func(d time.Duration) { own = append(own, d) }); err != nil {
				cancel(err)
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, own...)
		})
	}
	wg.Wait()
	r := result{latencies: all, took: time.Since(start)}
	slices.Sort(r.latencies)
	if err := context.Cause(ctx); err != nil {
		return r, err
	}
	if len(all) == 0 {
		return r, fmt.Errorf("no request was answered")
	}
	return r, nil
}
