package requestmirror

import (
	"fmt"
	"sort"
	"strings"
	"sync"
	"time"
)

// Why an event was dropped before the queue or failed after it: a closed set, which
// receivers and alerts may rely on.
const (
	reasonQueueFull   = "queue_full"     // no room in the queue
	reasonMemory      = "memory"         // the header found no room in what there is for headers
	reasonExpired     = "expired"        // older than maxAge before it could be delivered
	reasonCircuitOpen = "circuit_open"   // not tried, as the receiver is known not to want it
	reasonRetired     = "retired"        // a replaced pipeline did not drain within drainTimeout
	reasonNetwork     = "network_error"  // no answer: refused, reset, TLS, name resolution
	reasonTimeout     = "timeout"        // no answer within timeout
	reasonRejected    = "rejected"       // an answer that is no success and not worth a retry, or 408, 425, 429 to the end
	reasonServerError = "server_error"   // 5xx to the end
	reasonGone        = "gone"           // 410
	reasonTooLarge    = "too_large"      // 413
	reasonIncomplete  = "incomplete"     // format request, and a part of the body is missing
	reasonInternal    = "internal_error" // a fault of this plugin
)

// ledger accounts for every request of one middleware and one of its receivers, over
// all routers and reloads. Under its lock, and so whenever anybody looks,
//
//	seen = filtered + sampledOut + enqueued + dropped
//	enqueued = delivered + failed + waiting + inFlight
type ledger struct {
	name     string // of the middleware, as Traefik calls it
	receiver string // as reading has it

	mu   sync.Mutex // held for a few instructions, never over I/O
	past *counts    // of pipelines that are forgotten
	live []*counts  // of the others

	untold    uint64      // drops and failures that the log does not know of
	teller    *time.Timer // tells the log of them; nil while there are none
	lastTold  time.Time
	lastError string
}

func newLedger(name, receiver string) *ledger {
	return &ledger{name: name, receiver: receiver, past: newCounts()}
}

// counts are those of one pipeline, or of those that are gone. They are guarded by the
// lock of their ledger.
type counts struct {
	offered    uint64 // events that came to the queue; of a live pipeline, that is its sequence
	filtered   uint64 // requests that were not wanted
	sampledOut uint64
	delivered  uint64

	unauthenticated uint64            // of those filtered
	inFlight        uint64            // events that workers are at; it does not only grow
	retried         uint64            // attempts after the first
	dropped         map[string]uint64 // events that found no place in the queue, by reason
	failed          map[string]uint64 // events that were in it, by reason
	truncated       map[string]uint64 // events with a cut body, by reason
	attempts        []uint64          // by duration: at most attemptBounds[i] seconds, the last one above all
	seconds         float64           // of all attempts

	// Dropped without being captured, by reason; not yet in dropped, as the request
	// path only counts.
	full uint64
	shut uint64
}

func newCounts() *counts {
	return &counts{dropped: map[string]uint64{}, failed: map[string]uint64{}, truncated: map[string]uint64{},
		attempts: make([]uint64, len(attemptBounds)+1)}
}

// addTotals puts the counts of another into c.
func addTotals(c, other *counts) {
	c.offered += other.offered
	c.filtered += other.filtered
	c.sampledOut += other.sampledOut
	c.unauthenticated += other.unauthenticated
	c.delivered += other.delivered
	c.inFlight += other.inFlight
	c.retried += other.retried
	addCounts(c.dropped, other.dropped)
	addCounts(c.failed, other.failed)
	addCounts(c.truncated, other.truncated)
	for i, n := range other.attempts {
		c.attempts[i] += n
	}
	c.seconds += other.seconds
}

func addCounts(into, from map[string]uint64) {
	for reason, n := range from {
		into[reason] += n
	}
}

// total is the sum of all counts of the ledger. The ledger is locked.
func total(l *ledger) *counts {
	all := newCounts()
	for _, c := range append([]*counts{l.past}, l.live...) {
		bookEarly(l, c)
		addTotals(all, c)
	}
	return all
}

// bookEarly moves the early drops to where all others are. The ledger is locked.
func bookEarly(l *ledger, c *counts) {
	bookAs(l, c, reasonQueueFull, c.full)
	bookAs(l, c, reasonCircuitOpen, c.shut)
	c.full = 0
	c.shut = 0
}

func bookAs(l *ledger, c *counts, reason string, n uint64) {
	if n > 0 {
		l.untold += n
		c.dropped[reason] += n
	}
}

func sum(counts map[string]uint64) uint64 {
	var n uint64
	for _, count := range counts {
		n += count
	}
	return n
}

// contain keeps a panic of this plugin from whoever called it; it is to be deferred.
// It is not for functions that call the next handler: a panic from there goes on.
func contain() {
	if r := recover(); r != nil {
		countPanic(r)
	}
}

// tellEvery is how often a middleware tells of drops and failures in the log; the
// first ones are told after a second, which is long enough to tell of a few at once.
const (
	tellEvery = 10 * time.Second
	tellFirst = time.Second
)

// lose notes a drop or failure for the log. The ledger is locked. The log is written
// by a timer, so that no request waits for it, and losses are told when all workers
// hang and when no event comes any more.
func lose(l *ledger) {
	l.untold++
	if l.teller == nil {
		l.teller = tellLater(l)
	}
}

func tellLater(l *ledger) *time.Timer {
	wait := tellEvery - time.Since(l.lastTold)
	if wait < tellFirst {
		wait = tellFirst
	}
	return time.AfterFunc(wait, func() { tell(l) })
}

// tell logs what was lost since the last time it did.
func tell(l *ledger) {
	defer contain()
	l.mu.Lock()
	if l.teller != nil {
		l.teller.Stop()
		l.teller = nil
	}
	all := total(l)
	if l.untold == 0 {
		l.mu.Unlock()
		return
	}
	text := fmt.Sprintf("requestmirror %q, receiver %s: %d events lost since the last such line; in all: dropped {%s}, failed {%s}",
		l.name, l.receiver, l.untold, listCounts(all.dropped), listCounts(all.failed))
	if l.lastError != "" {
		text += "; last error: " + l.lastError
	}
	l.untold = 0
	l.lastTold = time.Now()
	l.mu.Unlock()
	logError(text)
}

func listCounts(counts map[string]uint64) string {
	list := []string{}
	for reason, n := range counts {
		if n > 0 {
			list = append(list, fmt.Sprintf("%s: %d", reason, n))
		}
	}
	sort.Strings(list)
	return strings.Join(list, ", ")
}
