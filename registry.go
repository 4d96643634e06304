package requestmirror

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"reflect"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// gracePeriod is how long a pipeline without leases lives on. Traefik ends the
// leases of the old configuration before it makes those of the new one.
const gracePeriod = 5 * time.Second

// The registry holds the pipelines of this process: one interpreter serves all
// instances of a plugin, so package variables outlive handlers and reloads.
var (
	registryMu sync.Mutex               // guards all here, and the leases of pipelines
	pipelines  = map[string]*pipeline{} // live ones, by the key of their delivery settings
	existing   = []*pipeline{}          // live ones and those that drain
	ledgers    = map[string]*ledger{}   // by middleware name and receiver, as long as there is a pipeline
	told       = map[string]string{}    // what the log knows to be wrong, by middleware name
	lastBoot   int64                    // of the pipeline made last
	signals    chan os.Signal           // nil while there is no pipeline
	ending     bool                     // Traefik was told to end

	// markerKeys are the keys that deliveries of this process are marked with:
	// [][]byte, replaced under the lock, read by requests without it.
	markerKeys atomic.Value
)

// lease returns the pipelines to the receivers of these settings, new ones where none
// lives, and holds them until ctx ends.
func lease(ctx context.Context, set *settings) []*pipeline {
	pipes := leased(set)
	for _, p := range pipes {
		endWith(ctx, p)
	}
	publish()
	return pipes
}

func leased(set *settings) []*pipeline {
	registryMu.Lock()
	defer registryMu.Unlock()
	pipes := make([]*pipeline, 0, len(set.targets))
	for _, to := range set.targets {
		p, ok := pipelines[to.key]
		if !ok {
			p = enlist(set, to)
		}
		p.leases++
		if p.grace != nil {
			p.grace.Stop()
		}
		atomic.StoreInt64(&p.receivers, int64(len(set.targets)))
		p.mu.Lock()
		p.latest = set
		p.mu.Unlock()
		pipes = append(pipes, p)
	}
	return pipes
}

// enlist makes a pipeline known. The registry is locked.
func enlist(set *settings, to target) *pipeline {
	// Two pipelines never share a boot, or their sequences would look like one.
	boot := time.Now().UnixMilli()
	if boot <= lastBoot {
		boot = lastBoot + 1
	}
	lastBoot = boot
	l := ledgerFor(set.name, to.url)
	p := newPipeline(set, to, l, budgetFor(set), boot)
	pipelines[to.key] = p
	existing = append(existing, p)
	l.mu.Lock()
	l.live = append(l.live, p.counts)
	l.mu.Unlock()
	startReports(p)
	noteMarkerKeys()
	if ending {
		p.endPaces()
	}
	if signals == nil {
		watchSignals()
	}
	return p
}

// ledgerFor finds or opens the ledger of a middleware and a receiver. What it calls the
// receiver has no path, as that is the secret of many a webhook. The registry is locked.
func ledgerFor(name string, u *url.URL) *ledger {
	key := name + " " + u.String()
	if l, ok := ledgers[key]; ok {
		return l
	}
	taken := map[string]bool{}
	for _, l := range ledgers {
		if l.name == name {
			taken[l.receiver] = true
		}
	}
	receiver := u.Scheme + "://" + u.Host
	for n := 2; taken[receiver]; n++ {
		receiver = fmt.Sprintf("%s://%s#%d", u.Scheme, u.Host, n)
	}
	l := newLedger(name, receiver)
	ledgers[key] = l
	return l
}

// budgetFor finds or makes the budget that the pipelines of a middleware have in
// common. The registry is locked.
func budgetFor(set *settings) *budget {
	for _, p := range existing {
		if p.set.name == set.name && p.set.memoryLimit == set.memoryLimit {
			return p.budget
		}
	}
	return newBudget(set.memoryLimit)
}

// inCommon is what another router of the middleware, or the same before a reload, has read
// already, if that is the same: workers write the events of one group with the same settings,
// and remember with them what headers look like, which takes memory.
func inCommon(set *settings) *settings {
	registryMu.Lock()
	defer registryMu.Unlock()
	for _, p := range existing {
		if p.set.name != set.name {
			continue
		}
		latest := latestSettings(p)
		if reflect.DeepEqual(latest.config, set.config) && reflect.DeepEqual(latest.files, set.files) {
			return latest
		}
	}
	return set
}

// lastFiles is what was in the files of a middleware's secrets when all was well with
// them; nil if there is no such time.
func lastFiles(name string) map[string]string {
	registryMu.Lock()
	defer registryMu.Unlock()
	for _, p := range existing {
		if p.set.name == name {
			return latestSettings(p).files
		}
	}
	return nil
}

func latestSettings(p *pipeline) *settings {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.latest
}

// replaceSender makes the pipeline deliver with other secrets, as they are in set.
func replaceSender(p *pipeline, s *sender, set *settings) {
	registryMu.Lock()
	defer registryMu.Unlock()
	p.mu.Lock()
	p.sender = s
	p.latest = set
	p.mu.Unlock()
	noteMarkerKeys()
}

// isNews says whether the log does not know yet what is wrong with a middleware's
// configuration. An empty text is nothing.
func isNews(name, text string) bool {
	registryMu.Lock()
	defer registryMu.Unlock()
	known := told[name]
	if text == "" {
		delete(told, name)
		return false
	}
	told[name] = text
	return text != known
}

// noteMarkerKeys is called whenever pipelines come or go. The registry is locked.
func noteMarkerKeys() {
	keys := [][]byte{processKey}
	for _, p := range existing {
		keys = append(keys, currentSender(p).secrets...)
	}
	markerKeys.Store(keys)
}

// endWith is a function of its own because Yaegi keeps every closure of a function
// that runs for long.
func endWith(ctx context.Context, p *pipeline) {
	context.AfterFunc(ctx, func() { release(p) })
}

func release(p *pipeline) {
	defer contain()
	registryMu.Lock()
	defer registryMu.Unlock()
	p.leases--
	if p.leases == 0 {
		p.grace = time.AfterFunc(gracePeriod, func() { retireUnused(p) })
	}
}

func retireUnused(p *pipeline) {
	defer contain()
	registryMu.Lock()
	unused := p.leases == 0 && pipelines[p.to.key] == p
	if unused {
		delete(pipelines, p.to.key)
	}
	registryMu.Unlock()
	if unused {
		retire(p)
	}
}

// forget removes a pipeline that is gone, and with the last one of a middleware its
// ledger, and with the last of all the watch for signals.
func forget(p *pipeline) {
	registryMu.Lock()
	defer registryMu.Unlock()
	others := []*pipeline{}
	siblings := 0
	for _, other := range existing {
		if other == p {
			continue
		}
		others = append(others, other)
		if other.ledger == p.ledger {
			siblings++
		}
	}
	existing = others
	noteMarkerKeys()
	retireCounts(p)
	for key, l := range ledgers {
		if siblings == 0 && l == p.ledger {
			delete(ledgers, key)
		}
	}
	if len(existing) == 0 && signals != nil {
		signal.Stop(signals)
		close(signals)
		signals = nil
	}
}

// retireCounts adds what a pipeline counted to the ledger's past, where late requests
// are counted, too.
func retireCounts(p *pipeline) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.forgotten {
		return
	}
	p.forgotten = true
	l := p.ledger
	bookEarly(l, p.counts)
	p.counts.offered = p.sequence
	addTotals(l.past, p.counts)
	live := []*counts{}
	for _, c := range l.live {
		if c != p.counts {
			live = append(live, c)
		}
	}
	l.live = live
	p.counts = l.past
}

// takeOverview reads the state of the middleware with this name, or of all.
func takeOverview(name string) *overview {
	registryMu.Lock()
	defer registryMu.Unlock()
	names := map[string]bool{}
	for _, l := range ledgers {
		if name == "" || name == l.name {
			names[l.name] = true
		}
	}
	o := &overview{}
	for found := range names {
		o.middlewares = append(o.middlewares, readMiddleware(found))
	}
	sort.Slice(o.middlewares, func(i, j int) bool { return o.middlewares[i].name < o.middlewares[j].name })
	return o
}

// readMiddleware reads the state of a middleware. The registry is locked.
func readMiddleware(name string) *middlewareReading {
	m := &middlewareReading{name: name}
	var seen []*budget
	for _, p := range existing {
		if p.set.name != name {
			continue
		}
		known := false
		for _, b := range seen {
			known = known || b == p.budget
		}
		if !known {
			seen = append(seen, p.budget)
			m.bytesHeld += atomic.LoadInt64(&p.budget.held)
			m.bytesLimit += p.budget.limit
			m.memoryLimit += p.set.memoryLimit
		}
	}
	for _, l := range ledgers {
		if l.name == name {
			m.receivers = append(m.receivers, readLedger(l))
		}
	}
	sort.Slice(m.receivers, func(i, j int) bool { return m.receivers[i].receiver < m.receivers[j].receiver })
	return m
}

// readLedger reads the state of a receiver. What waits is the rest of the second
// equation, so a lost event would wait for ever. The registry is locked.
func readLedger(l *ledger) *reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := &reading{receiver: l.receiver, breaker: breakerClosed}
	for _, p := range existing {
		if p.ledger != l {
			continue
		}
		if !p.forgotten {
			p.counts.offered = p.sequence
		}
		r.pipelines++
		r.queueLength += len(p.queue)
		r.queueCapacity += p.set.queueSize
		r.breaker = p.gate.state // the newest one comes last
		r.concurrency = p.allowed
	}
	c := total(l)
	r.counts = c
	r.waiting = c.offered - sum(c.dropped) - c.delivered - sum(c.failed) - c.inFlight
	return r
}

// watchSignals makes the pipelines hurry when Traefik is told to end: it lives on
// for a moment (requestAcceptGraceTimeout, requests in flight), but tells plugins
// nothing. Traefik's own handling of the signal is not changed by ours.
func watchSignals() {
	signals = make(chan os.Signal, 1)
	// Package syscall is not there in Yaegi; this is its SIGTERM.
	v := reflect.New(reflect.TypeOf(os.Interrupt)).Elem()
	v.SetInt(15)
	if sig, ok := v.Interface().(os.Signal); ok {
		signal.Notify(signals, sig)
	}
	go awaitSignal(signals)
}

func awaitSignal(c chan os.Signal) {
	defer contain()
	_, told := <-c
	if !told {
		return
	}
	registryMu.Lock()
	defer registryMu.Unlock()
	ending = true
	for _, p := range existing {
		p.endPaces()
		p.mu.Lock()
		askReport(p)
		p.mu.Unlock()
	}
}
