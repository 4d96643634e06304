package requestmirror

import (
	"context"
	"os"
	"os/signal"
	"reflect"
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
	ledgers    = map[string]*ledger{}   // by middleware name, as long as it has a pipeline
	told       = map[string]string{}    // what the log knows to be wrong, by middleware name
	lastBoot   int64                    // of the pipeline made last
	signals    chan os.Signal           // nil while there is no pipeline
	ending     bool                     // Traefik was told to end

	// markerKeys are the keys that deliveries of this process are marked with:
	// [][]byte, replaced under the lock, read by requests without it.
	markerKeys atomic.Value
)

// lease returns the pipeline for these settings, a new one if none lives, and holds
// it until ctx ends.
func lease(ctx context.Context, set *settings) *pipeline {
	p := leased(set)
	endWith(ctx, p)
	publish()
	return p
}

func leased(set *settings) *pipeline {
	registryMu.Lock()
	defer registryMu.Unlock()
	p, ok := pipelines[set.key]
	if !ok {
		p = enlist(set)
	}
	p.leases++
	if p.grace != nil {
		p.grace.Stop()
	}
	return p
}

// enlist makes a pipeline known. The registry is locked.
func enlist(set *settings) *pipeline {
	l, ok := ledgers[set.name]
	if !ok {
		l = newLedger(set.name)
		ledgers[set.name] = l
	}
	// Two pipelines never share a boot, or their sequences would look like one.
	boot := time.Now().UnixMilli()
	if boot <= lastBoot {
		boot = lastBoot + 1
	}
	lastBoot = boot
	p := newPipeline(set, l, boot)
	pipelines[set.key] = p
	existing = append(existing, p)
	noteMarkerKeys()
	if ending {
		p.endPaces()
	}
	if signals == nil {
		watchSignals()
	}
	return p
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
		keys = append(keys, p.set.secrets...)
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
	unused := p.leases == 0 && pipelines[p.set.key] == p
	if unused {
		delete(pipelines, p.set.key)
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
	p.mu.Lock()
	if !p.forgotten {
		p.forgotten = true
		p.ledger.past += p.sequence
	}
	p.mu.Unlock()
	if siblings == 0 && ledgers[p.ledger.name] == p.ledger {
		delete(ledgers, p.ledger.name)
	}
	if len(existing) == 0 && signals != nil {
		signal.Stop(signals)
		close(signals)
		signals = nil
	}
}

// snapshot is what expvar shows of a middleware: its ledger and the state of its
// pipelines, of which there is more than one while a replaced one drains.
func snapshot(l *ledger) map[string]interface{} {
	registryMu.Lock()
	defer registryMu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	offered := l.past
	length, capacity, number := 0, 0, 0
	var held, limit int64
	for _, p := range existing {
		if p.ledger == l {
			number++
			offered += p.sequence
			length += len(p.queue)
			capacity += p.set.queueSize
			held += atomic.LoadInt64(&p.budget.held)
			limit += p.set.memoryLimit
		}
	}
	shown := counts(l, offered)
	shown["pipelines"] = number
	shown["queueLength"] = length
	shown["queueCapacity"] = capacity
	shown["bytesHeld"] = held
	shown["memoryLimit"] = limit
	return shown
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
	}
}
