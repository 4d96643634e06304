//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

const (
	mib         = 1 << 20
	memoryLimit = 64 * mib // the default of the option
	allowance   = 32 * mib // for what is not a body: queue, headers, buffers, garbage
)

// pattern is a way to send requests.
type pattern struct {
	name    string
	clients int
	slow    bool
	header  string // lines that each request has besides
}

var patterns = []pattern{
	{name: "32 fast clients", clients: 32},
	{name: "500 slow uploads at once", clients: 500, slow: true},
	// What takes the most memory for its bytes, and is still mirrored.
	{name: "4 clients, each header of 12,000 empty values", clients: 4, header: strings.Repeat("a:\r\n", 12_000)},
}

// growth is the peak memory of Traefiks under the same load.
type growth struct {
	pattern, body       string
	plain, mirror, many int64 // bytes of RSS at the peak
}

var (
	// hanging has the receiver that costs the most memory: it takes everything in and
	// gives nothing back.
	hanging = variant{name: "mirrored to a receiver that hangs", through: true, receivers: []string{hangs}}
	// several shares the memory of one receiver among three of all kinds.
	several = variant{name: "mirrored to three receivers", through: true, receivers: []string{hangs, down, up}}
)

// memory measures what receivers that don't work do to Traefik's memory.
func (b *bench) memory(ctx context.Context, p plan, sel selection) ([]growth, error) {
	var table []growth
	for _, pattern := range patterns {
		for _, size := range p.bodies {
			if size == 0 && pattern.slow || size > 0 && pattern.header != "" {
				continue // there is nothing to be slow with; it is about the header
			}
			g := growth{pattern: pattern.name, body: bytesText(size)}
			say("memory: %s, body %s", g.pattern, g.body)
			for _, part := range []struct {
				variant
				wanted bool
				peak   *int64
			}{{plain, true, &g.plain}, {hanging, sel.memory, &g.mirror}, {several, sel.receivers, &g.many}} {
				if !part.wanted {
					continue
				}
				var err error
				if *part.peak, err = b.peak(ctx, part.variant, size, pattern, p.memory); err != nil {
					return nil, fmt.Errorf("%s, body %s, %s: %w", g.pattern, g.body, part.name, err)
				}
			}
			table = append(table, g)
		}
	}
	return table, nil
}

// peak is the most memory that a new Traefik has under the load.
func (b *bench) peak(ctx context.Context, v variant, size int, how pattern, d time.Duration) (int64, error) {
	t, err := b.start(ctx, v)
	if err != nil {
		return 0, err
	}
	defer t.stop()
	unanswered := b.hanging.events.Load()
	// No warm-up: it would fill the queue with small events, and a request that finds
	// the queue full is not kept at all.
	if err := resetPeak(t.PID()); err != nil {
		return 0, err
	}
	upload := get
	if size > 0 {
		upload = request("POST", text(size))
	}
	upload = bytes.Replace(upload, []byte("\r\n\r\n"), []byte("\r\n"+how.header+"\r\n"), 1)
	if how.slow {
		// Slow uploads make so little garbage that a plain Traefik would not run its
		// collector once, and any other would seem to grow by what the heap may grow
		// anyway. Traffic on a route that is not mirrored brings both to their limit.
		ctx, cancel := context.WithCancel(ctx)
		others := make(chan struct{})
		go func() {
			_, _ = closedLoop(ctx, t.Web(), bytes.Replace(get, []byte("bench.test"), []byte("other.test"), 1), 4, time.Minute)
			close(others)
		}()
		defer func() { cancel(); <-others }()
		err = slowUploads(ctx, t.Web(), upload, size, how.clients, d)
	} else {
		_, err = closedLoop(ctx, t.Web(), upload, how.clients, d)
	}
	if err != nil {
		return 0, err
	}
	// A configuration that mirrors nothing needs no memory.
	if slices.Contains(v.receivers, hangs) && b.hanging.events.Load() == unanswered {
		return 0, errors.New("nothing arrived at the receiver that hangs")
	}
	if slices.Contains(v.receivers, up) && t.receiver.events.Load() == 0 {
		return 0, errors.New("nothing arrived at the receiver that answers")
	}
	return peakRSS(t.PID())
}

// slowUploads sends the request on each of the connections, its body in twenty
// pieces over 2.5 seconds, again and again for about d.
func slowUploads(ctx context.Context, address string, request []byte, size, clients int, d time.Duration) error {
	const pieces, pause = 20, 125 * time.Millisecond
	start := time.Now()
	head, body := request[:len(request)-size], request[len(request)-size:]
	_, err := run(ctx, address, clients, start, func(c *conn, note func(time.Duration)) error {
		time.Sleep(rand.N(pause)) // out of step
		for begin := time.Now(); begin.Sub(start) < d; begin = time.Now() {
			if _, err := c.Write(head); err != nil {
				return err
			}
			for i := range pieces {
				if _, err := c.Write(body[i*size/pieces : (i+1)*size/pieces]); err != nil {
					return err
				}
				time.Sleep(pause)
			}
			if err := c.answer(); err != nil {
				return err
			}
			note(time.Since(begin))
		}
		return nil
	})
	return err
}

func bytesText(n int) string {
	switch {
	case n >= mib:
		return fmt.Sprintf("%d MiB", n/mib)
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprint(n)
}
