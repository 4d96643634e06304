//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// variant is a way to serve the same traffic.
type variant struct {
	name     string
	plugin   string // directory of the plugin that Traefik loads; the real one when empty
	through  bool   // whether the route goes through that plugin
	native   bool   // whether the route goes through Traefik's own mirroring service
	receiver string // where copies go: up, hangs or down
}

const (
	up    = "up"
	hangs = "hangs"
	down  = "down"
)

var (
	plain = variant{name: "no middleware"}
	idle  = variant{name: "do-nothing plugin", plugin: "testdata/noop", through: true}

	variants = []variant{
		plain,
		idle,
		{name: "Traefik's `mirroring` service", native: true, receiver: up},
		{name: "Request Mirror", through: true, receiver: up},
		{name: "Request Mirror, receiver hangs", through: true, receiver: hangs},
		{name: "Request Mirror, receiver is down", through: true, receiver: down},
	}
	methods = []struct {
		name    string
		request []byte
	}{{"GET", get}, {"POST 1 KiB", post}}
)

// bench is what the measured Traefiks talk to.
type bench struct {
	backend   *sink
	receivers map[string]*sink
	refused   string // address of the receiver that is down
	release   func()
}

func newBench() (*bench, error) {
	b := &bench{receivers: map[string]*sink{}}
	var err error
	if b.refused, b.release, err = refusing(); err != nil {
		return nil, err
	}
	if b.backend, err = newSink(false); err != nil {
		return nil, err
	}
	if b.receivers[up], err = newSink(false); err != nil {
		return nil, err
	}
	b.receivers[hangs], err = newSink(true)
	return b, err
}

func (b *bench) close() {
	b.release()
	b.backend.close()
	for _, r := range b.receivers {
		r.close()
	}
}

// start starts a Traefik of its own for a variant, so that its CPU time and memory
// are those of this variant only.
func (b *bench) start(ctx context.Context, v variant) (*lab.Traefik, error) {
	setup := lab.Setup{
		Plugin: v.plugin,
		// With api.debug Traefik profiles every lock and wait, which is most of what it
		// would do then; so receivers count the copies, not the plugin's counters.
		Static: map[string]any{"api": map[string]any{"debug": false}},
	}
	route := lab.Route{Backend: b.backend.url()}
	receiver := "http://" + b.refused + "/"
	if r := b.receivers[v.receiver]; r != nil {
		receiver = r.url()
	}
	if v.through {
		route.Through = []string{"mirror"}
		setup.Dynamic.Mirrors = map[string]lab.Options{"mirror": options(receiver)}
	}
	setup.Dynamic.Routes = map[string]lab.Route{"bench": route, "other": {Backend: b.backend.url()}}
	if v.native {
		setup.Dynamic.Extra = map[string]any{"http": map[string]any{
			"routers": map[string]any{"bench": map[string]any{"service": "mirrored"}},
			"services": map[string]any{
				"mirrored": map[string]any{"mirroring": map[string]any{
					"service": "bench", "mirrors": []any{map[string]any{"name": "copy", "percent": 100}},
				}},
				"copy": map[string]any{"loadBalancer": map[string]any{"servers": []any{map[string]any{"url": receiver}}}},
			},
		}}
	}
	return lab.Start(ctx, setup)
}

// options are those of a production that signs its events.
func options(receiver string) lab.Options {
	return lab.Options{
		"watchURL":       receiver,
		"cookieNames":    []string{"visitor_id"},
		"signingSecrets": []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"},
	}
}

// cell is what was measured of one variant and method in one round.
type cell struct{ open, closed sample }

// sample is a load and what it cost.
type sample struct {
	result
	cpu       float64 // µs of Traefik's CPU time per request, delivery included
	delivered float64 // share of the requests whose copy was delivered
}

// traffic measures all variants in turn, round after round, so that a slow minute of
// the machine hits all of them. It returns cells by round, variant and method.
func (b *bench) traffic(ctx context.Context, p plan) ([][][]cell, error) {
	rounds := make([][][]cell, p.rounds)
	for i := range rounds {
		rounds[i] = make([][]cell, len(variants))
		for j := range variants {
			j = (i + j) % len(variants) // nobody is always first
			v := variants[j]
			say("round %d of %d: %s", i+1, p.rounds, v.name)
			var err error
			if rounds[i][j], err = b.cells(ctx, v, p); err != nil {
				return nil, fmt.Errorf("%s: %w", v.name, err)
			}
		}
	}
	return rounds, nil
}

func (b *bench) cells(ctx context.Context, v variant, p plan) ([]cell, error) {
	t, err := b.start(ctx, v)
	if err != nil {
		return nil, err
	}
	defer func() { _ = t.Stop() }()
	for _, m := range methods {
		if _, err := closedLoop(ctx, t.Web(), m.request, p.clients, 300*time.Millisecond); err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
	}
	cells := make([]cell, len(methods))
	for i, m := range methods {
		cells[i].open, err = b.sample(ctx, t, v, func() (result, error) {
			return openLoop(ctx, t.Web(), m.request, p.rate, p.open)
		})
		if err != nil {
			return nil, fmt.Errorf("%s, open loop: %w", m.name, err)
		}
		cells[i].closed, err = b.sample(ctx, t, v, func() (result, error) {
			return closedLoop(ctx, t.Web(), m.request, p.clients, p.closed)
		})
		if err != nil {
			return nil, fmt.Errorf("%s, closed loop: %w", m.name, err)
		}
	}
	return cells, nil
}

func (b *bench) sample(ctx context.Context, t *lab.Traefik, v variant, load func() (result, error)) (s sample, err error) {
	delivered, err := b.copies(ctx, v)
	if err != nil {
		return s, err
	}
	cpu, err := cpuTime(t.PID())
	if err != nil {
		return s, err
	}
	if s.result, err = load(); err != nil {
		return s, err
	}
	deliveredAfter, err := b.copies(ctx, v)
	if err != nil {
		return s, err
	}
	// Read last, so that delivering the last copies is part of it.
	cpuAfter, err := cpuTime(t.PID())
	if err != nil {
		return s, err
	}
	n := int64(len(s.latencies))
	s.cpu = float64((cpuAfter - cpu).Microseconds()) / float64(n)
	s.delivered = float64(deliveredAfter-delivered) / float64(n)
	return s, nil
}

// copies says how many copies the variant has delivered, by the count of the receiver,
// once no more come.
func (b *bench) copies(ctx context.Context, v variant) (int64, error) {
	if v.receiver != up {
		return 0, nil
	}
	got := b.receivers[up].requests.Load()
	for quiet := 0; quiet < 4; {
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
		now := b.receivers[up].requests.Load()
		if quiet++; now != got {
			quiet = 0
		}
		got = now
	}
	return got, nil
}
