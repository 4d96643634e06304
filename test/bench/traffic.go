//go:build linux

package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// variant is a way to serve the same traffic.
type variant struct {
	key       string // for -only
	name      string
	plugin    string   // directory of the plugin that Traefik loads; the real one when empty
	through   bool     // whether the route goes through that plugin
	native    bool     // whether the route goes through Traefik's own mirroring service
	batched   bool     // whether events go in batches
	receivers []string // where copies go: up, late, hangs or down
	aside     bool     // whether its cost need not be known as exactly as that of others
}

const (
	up    = "up"
	late  = "late" // answers after 20 ms
	hangs = "hangs"
	down  = "down"
)

// The batches of the rows that have some.
const (
	batchEvents   = 100
	flushInterval = 200 * time.Millisecond
)

var (
	plain = variant{key: "plain", name: "no middleware"}
	idle  = variant{key: "noop", name: "do-nothing plugin", plugin: "testdata/noop", through: true, aside: true}

	variants = []variant{
		plain,
		idle,
		{key: "mirroring", name: "Traefik's `mirroring` service", native: true, receivers: []string{up}},
		{key: "single", name: "Request Mirror", through: true, receivers: []string{up}},
		{key: "batches", name: "Request Mirror, batches", through: true, batched: true, receivers: []string{up}},
		{key: "hangs", name: "Request Mirror, receiver hangs", through: true, receivers: []string{hangs}, aside: true},
		{key: "down", name: "Request Mirror, receiver is down", through: true, receivers: []string{down}, aside: true},
	}
)

type method struct {
	key, name string
	request   []byte
}

var methods = []method{{"get", "GET", get}, {"post", "POST 1 KiB", post}}

// bench is what the measured Traefiks talk to.
type bench struct {
	backend *sink
	hanging *sink
	refused string // address of the receiver that is down
	release func()
}

func newBench() (*bench, error) {
	b := &bench{}
	var err error
	if b.refused, b.release, err = refusing(); err != nil {
		return nil, err
	}
	if b.backend, err = newSink(answers); err != nil {
		return nil, err
	}
	b.hanging, err = newSink(never)
	return b, err
}

func (b *bench) close() {
	b.release()
	b.backend.close()
	b.hanging.close()
}

// host is a Traefik of its own for a variant, so that its CPU time and memory are those
// of this variant only, and so are the copies that arrive.
type host struct {
	*lab.Traefik
	variant
	receiver *sink // counts the copies
}

func (h *host) stop() {
	_ = h.Stop()
	h.receiver.close()
}

// stopAll stops all at the same time, as each waits a while for its connections.
func stopAll(hosts []*host) {
	var wg sync.WaitGroup
	for _, h := range hosts {
		wg.Go(h.stop)
	}
	wg.Wait()
}

func (b *bench) start(ctx context.Context, v variant) (*host, error) {
	setup := lab.Setup{
		Plugin: v.plugin,
		// With api.debug Traefik profiles every lock and wait, which is most of what it
		// would do then; so receivers count the copies, not the plugin's counters.
		Static: map[string]any{"api": map[string]any{"debug": false}},
	}
	delay := answers
	if slices.Contains(v.receivers, late) {
		delay = lateness
	}
	receiver, err := newSink(delay)
	if err != nil {
		return nil, err
	}
	urls := map[string]string{up: receiver.url(), late: receiver.url(), hangs: b.hanging.url(), down: "http://" + b.refused + "/"}
	var targets []string
	for _, r := range v.receivers {
		targets = append(targets, urls[r])
	}
	route := lab.Route{Backend: b.backend.url()}
	if v.through {
		route.Through = []string{"mirror"}
		setup.Dynamic.Mirrors = map[string]lab.Options{"mirror": options(v, targets)}
	}
	setup.Dynamic.Routes = map[string]lab.Route{"bench": route, "other": {Backend: b.backend.url()}}
	if v.native {
		setup.Dynamic.Extra = map[string]any{"http": map[string]any{
			"routers": map[string]any{"bench": map[string]any{"service": "mirrored"}},
			"services": map[string]any{
				"mirrored": map[string]any{"mirroring": map[string]any{
					"service": "bench", "mirrors": []any{map[string]any{"name": "copy", "percent": 100}},
				}},
				"copy": map[string]any{"loadBalancer": map[string]any{"servers": []any{map[string]any{"url": targets[0]}}}},
			},
		}}
	}
	t, err := lab.Start(ctx, setup)
	if err != nil {
		receiver.close()
		return nil, err
	}
	return &host{Traefik: t, variant: v, receiver: receiver}, nil
}

// options are those of a production that signs its events.
func options(v variant, targets []string) lab.Options {
	o := lab.Options{
		"cookieNames":    []string{"visitor_id"},
		"signingSecrets": []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"},
		// A report is no copy of a request, and receivers here cannot tell them apart.
		"reportInterval": 0,
	}
	switch len(targets) {
	case 0:
	case 1:
		o["watchURL"] = targets[0]
	default:
		o["watchURLs"] = targets
	}
	if v.batched {
		o["batch"] = map[string]any{"maxEvents": batchEvents, "flushInterval": flushInterval.String()}
	}
	return o
}

// traffic is what was measured of all variants.
type traffic struct {
	selection
	variants []variant
	methods  []method
	rounds   [][][]cell // by round, variant and method
}

// cell is what was measured of one variant and method in one round.
type cell struct{ open, closed sample }

// sample is a load and what it cost.
type sample struct {
	result
	cpu       time.Duration // of all threads of Traefik, delivery included
	delivered int64         // copies
}

// perRequest is the CPU time for a request in µs.
func (s sample) perRequest() float64 {
	return float64(s.cpu.Nanoseconds()) / 1000 / float64(len(s.latencies))
}

// add puts another part of the load to it.
func (s *sample) add(part sample) {
	s.latencies = append(s.latencies, part.latencies...)
	slices.Sort(s.latencies)
	s.took += part.took
	s.cpu += part.cpu
	s.delivered += part.delivered
}

// traffic measures all variants, round after round, each with Traefiks that are started
// anew: which memory a process happens to get makes a difference that stays as long as
// it lives. Within a round they are loaded in turns of a second or two, so that a slow
// minute of the machine hits all of them alike, and differences are those of neighbours.
func (b *bench) traffic(ctx context.Context, p plan, sel selection) (traffic, error) {
	t := traffic{selection: sel, variants: sel.variants(), methods: sel.chosenMethods()}
	for i := range p.rounds {
		cells, err := b.round(ctx, p, t, i)
		if err != nil {
			return t, err
		}
		t.rounds = append(t.rounds, cells)
	}
	return t, nil
}

func (b *bench) round(ctx context.Context, p plan, t traffic, i int) ([][]cell, error) {
	begun := time.Now()
	var hosts []*host
	defer func() { stopAll(hosts) }()
	cells := make([][]cell, len(t.variants))
	for j, v := range t.variants {
		h, err := b.start(ctx, v)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", v.name, err)
		}
		hosts = append(hosts, h)
		cells[j] = make([]cell, len(t.methods))
		if err := h.warmUp(ctx, p, t.methods); err != nil {
			return nil, fmt.Errorf("%s: warm-up: %w", v.name, err)
		}
	}
	say("round %d of %d: %d Traefiks are ready after %.0f s", i+1, p.rounds, len(hosts), time.Since(begun).Seconds())
	for m, method := range t.methods {
		for turn := range p.turns {
			for j := range hosts {
				j = (i + turn + j) % len(hosts) // nobody is always first
				h, c := hosts[j], &cells[j][m]
				if t.rate {
					d := p.open
					if h.aside {
						d = p.aside
					}
					s, err := h.sample(ctx, func() (result, error) {
						return openLoop(ctx, h.Web(), method.request, p.rate, d/time.Duration(p.turns))
					})
					if err != nil {
						return nil, fmt.Errorf("%s: %s, fixed rate: %w", h.name, method.name, err)
					}
					c.open.add(s)
				}
				if t.full {
					s, err := h.sample(ctx, func() (result, error) {
						return closedLoop(ctx, h.Web(), method.request, p.clients, p.closed/time.Duration(p.turns))
					})
					if err != nil {
						return nil, fmt.Errorf("%s: %s, full speed: %w", h.name, method.name, err)
					}
					c.closed.add(s)
				}
			}
		}
		say("round %d of %d: %s done after %.0f s", i+1, p.rounds, method.name, time.Since(begun).Seconds())
	}
	return cells, nil
}

// warmUp brings connections, workers and heap to the size that they keep.
func (h *host) warmUp(ctx context.Context, p plan, methods []method) error {
	for _, m := range methods {
		if _, err := closedLoop(ctx, h.Web(), m.request, p.clients, 300*time.Millisecond); err != nil {
			return err
		}
		if _, err := openLoop(ctx, h.Web(), m.request, p.rate, 200*time.Millisecond); err != nil {
			return err
		}
	}
	return h.settle(ctx)
}

// sample is what the load costs. Traefik is at rest before it, as the last one to load
// it has waited for that.
func (h *host) sample(ctx context.Context, load func() (result, error)) (s sample, err error) {
	copies := h.receiver.events.Load()
	cpu, err := cpuTime(h.PID())
	if err != nil {
		return s, err
	}
	if s.result, err = load(); err != nil {
		return s, err
	}
	// Delivering the last copies is part of it, and so is collecting the garbage.
	if err := h.settle(ctx); err != nil {
		return s, err
	}
	cpuAfter, err := cpuTime(h.PID())
	if err != nil {
		return s, err
	}
	s.cpu = cpuAfter - cpu
	s.delivered = h.receiver.events.Load() - copies
	return s, nil
}

// settle waits until no more copies come and Traefik is at rest: for longer than it
// may hold back a batch, it used less than a fiftieth of a core.
func (h *host) settle(ctx context.Context) error {
	const step, rest = 25 * time.Millisecond, 25 * time.Millisecond / 50
	quiet := 150 * time.Millisecond
	if h.batched {
		quiet += flushInterval
	}
	since := time.Now()
	give := since.Add(5 * time.Second)
	copies := h.receiver.events.Load()
	cpu, err := cpuTime(h.PID())
	for err == nil && time.Since(since) < quiet {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(step):
		}
		copiesNow := h.receiver.events.Load()
		var cpuNow time.Duration
		cpuNow, err = cpuTime(h.PID())
		if copiesNow != copies || cpuNow-cpu > rest {
			since = time.Now()
		}
		copies, cpu = copiesNow, cpuNow
		if time.Now().After(give) {
			say("%s: does not come to rest", h.name)
			break
		}
	}
	return err
}
