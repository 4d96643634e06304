package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
)

// Counters is what the plugin publishes at /debug/vars.
type Counters struct {
	ConfigErrors int64                 `json:"configErrors"`
	Panics       int64                 `json:"panics"`
	Middlewares  map[string]Middleware `json:"middlewares"` // by Traefik's name of it, NAME@file
}

// Middleware is what the receivers of a middleware have in common, and their ledgers.
type Middleware struct {
	BytesHeld   int64             `json:"bytesHeld"`
	MemoryLimit int64             `json:"memoryLimit"`
	Receivers   map[string]Ledger `json:"receivers"` // by scheme and host
}

// Only is the ledger of a middleware with one receiver; nothing if there is none yet.
func (m Middleware) Only() (Ledger, error) {
	if len(m.Receivers) > 1 {
		return Ledger{}, fmt.Errorf("got %d receivers, want one: %v", len(m.Receivers), m.Receivers)
	}
	for _, l := range m.Receivers {
		l.BytesHeld = m.BytesHeld
		l.MemoryLimit = m.MemoryLimit
		return l, l.Check()
	}
	return Ledger{}, nil
}

// All are the ledgers by receiver.
func (m Middleware) All() (map[string]Ledger, error) {
	for name, l := range m.Receivers {
		if err := l.Check(); err != nil {
			return m.Receivers, fmt.Errorf("%s: %w", name, err)
		}
	}
	return m.Receivers, nil
}

// Ledger accounts for every request that a middleware saw, and what became of it on
// the way to one receiver.
type Ledger struct {
	Seen       int64 `json:"seen"`
	Filtered   int64 `json:"filtered"`
	SampledOut int64 `json:"sampledOut"`

	Enqueued int64            `json:"enqueued"`
	Dropped  map[string]int64 `json:"dropped"`

	Delivered int64            `json:"delivered"`
	Failed    map[string]int64 `json:"failed"`
	Waiting   int64            `json:"waiting"`
	InFlight  int64            `json:"inFlight"`

	Retried       int64            `json:"retried"`
	Truncated     map[string]int64 `json:"truncated"`
	QueueLength   int64            `json:"queueLength"`
	QueueCapacity int64            `json:"queueCapacity"`
	Pipelines     int64            `json:"pipelines"`

	CircuitBreaker string `json:"circuitBreaker"`
	Concurrency    int64  `json:"concurrency"`

	BytesHeld   int64 `json:"-"` // of the middleware
	MemoryLimit int64 `json:"-"`
}

// Lost is how many events were dropped or failed.
func (l Ledger) Lost() int64 { return sum(l.Dropped) + sum(l.Failed) }

// Settled says that nothing is on its way.
func (l Ledger) Settled() bool { return l.Waiting+l.InFlight == 0 }

// Check returns an error when the ledger does not add up.
func (l Ledger) Check() error {
	if out := l.Filtered + l.SampledOut + l.Enqueued + sum(l.Dropped); l.Seen != out {
		return fmt.Errorf("ledger: seen %d is not filtered + sampled out + enqueued + dropped %d: %s", l.Seen, out, l)
	}
	if out := l.Delivered + sum(l.Failed) + l.Waiting + l.InFlight; l.Enqueued != out {
		return fmt.Errorf("ledger: enqueued %d is not delivered + failed + waiting + in flight %d: %s", l.Enqueued, out, l)
	}
	return nil
}

// String is the ledger in one line.
func (l Ledger) String() string {
	return fmt.Sprintf("seen=%d filtered=%d sampledOut=%d enqueued=%d dropped{%s} delivered=%d failed{%s} waiting=%d inFlight=%d retried=%d truncated{%s} bytesHeld=%d pipelines=%d",
		l.Seen, l.Filtered, l.SampledOut, l.Enqueued, Reasons(l.Dropped), l.Delivered, Reasons(l.Failed),
		l.Waiting, l.InFlight, l.Retried, Reasons(l.Truncated), l.BytesHeld, l.Pipelines)
}

func sum(counts map[string]int64) int64 {
	var total int64
	for _, n := range counts {
		total += n
	}
	return total
}

// Counters reads the counters of the plugin.
func (t *Traefik) Counters(ctx context.Context) (Counters, error) {
	body, err := t.get(ctx, "/debug/vars")
	if err != nil {
		return Counters{}, err
	}
	var vars struct {
		Plugin *Counters `json:"requestmirror"`
	}
	if err := json.Unmarshal(body, &vars); err != nil {
		return Counters{}, fmt.Errorf("/debug/vars: %w", err)
	}
	if vars.Plugin == nil {
		return Counters{}, fmt.Errorf("/debug/vars: no key requestmirror; %s", t.log.tail())
	}
	return *vars.Plugin, nil
}

// Ledger reads the ledger of one middleware that has one receiver. One that does not
// add up is an error, at whatever moment it is read.
func (t *Traefik) Ledger(ctx context.Context, mirror string) (Ledger, error) {
	c, err := t.Counters(ctx)
	if err != nil {
		return Ledger{}, err
	}
	// A middleware that saw nothing yet may not be listed.
	return c.Middlewares[mirror+"@file"].Only()
}

// Ledgers reads the ledgers of one middleware, by receiver: scheme://host.
func (t *Traefik) Ledgers(ctx context.Context, mirror string) (map[string]Ledger, error) {
	c, err := t.Counters(ctx)
	if err != nil {
		return nil, err
	}
	return c.Middlewares[mirror+"@file"].All()
}

// Settle waits until a middleware has seen so many requests and none of them
// is on its way, and returns the ledger of that moment.
func (t *Traefik) Settle(ctx context.Context, mirror string, seen int64) (Ledger, error) {
	var l Ledger
	err := Poll(ctx, fmt.Sprintf("%s to see %d and settle", mirror, seen), func() (bool, any, error) {
		var err error
		l, err = t.Ledger(ctx, mirror)
		return l.Seen >= seen && l.Settled(), l, err
	})
	return l, err
}

// Goroutines counts Traefik's goroutines, and those among them that run
// interpreted code: what a plugin leaks is there.
func (t *Traefik) Goroutines(ctx context.Context) (all, interpreted int, err error) {
	profile, err := t.get(ctx, "/debug/pprof/goroutine?debug=1")
	if err != nil {
		return 0, 0, err
	}
	for stack := range strings.SplitSeq(string(profile), "\n\n") {
		match := goroutineCount.FindStringSubmatch(stack)
		if match == nil {
			continue
		}
		n, err := strconv.Atoi(match[1])
		if err != nil {
			return 0, 0, err
		}
		all += n
		if strings.Contains(stack, "github.com/traefik/yaegi/interp.") {
			interpreted += n
		}
	}
	return all, interpreted, nil
}

var goroutineCount = regexp.MustCompile(`(?m)^(\d+) @ `)

func (t *Traefik) get(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, t.API()+path, nil)
	if err != nil {
		return nil, err
	}
	// The error of the client names the URL.
	res, err := t.control.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s: %.200s", path, res.Status, body)
	}
	return body, nil
}
