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
	reasonInternal    = "internal_error" // a fault of this plugin
)

// ledger accounts for every request of one middleware, over all its routers and
// reloads. Under its lock, and so whenever anybody looks,
//
//	seen = filtered + sampledOut + enqueued + dropped
//	enqueued = delivered + failed + waiting + inFlight
type ledger struct {
	name string // of the middleware, as Traefik calls it

	mu         sync.Mutex // held for a few instructions, never over I/O
	filtered   uint64
	sampledOut uint64
	past       uint64 // events offered to pipelines that are forgotten
	delivered  uint64
	retried    uint64
	inFlight   uint64
	early      uint64            // dropped as queue_full without being captured; not yet in dropped
	dropped    map[string]uint64 // by reason
	failed     map[string]uint64 // by reason
	truncated  map[string]uint64 // events with a cut body, by reason

	untold    uint64      // drops and failures that the log does not know of
	teller    *time.Timer // tells the log of them; nil while there are none
	lastTold  time.Time
	lastError string
}

func newLedger(name string) *ledger {
	return &ledger{name: name, dropped: map[string]uint64{}, failed: map[string]uint64{}, truncated: map[string]uint64{}}
}

func countFiltered(l *ledger) {
	l.mu.Lock()
	l.filtered++
	l.mu.Unlock()
}

func countRetry(l *ledger) {
	l.mu.Lock()
	l.retried++
	l.mu.Unlock()
}

// counts is the ledger as expvar shows it, where offered is the number of events that
// came to the queue. What waits is the rest of the second equation, so a lost event
// would wait for ever. The ledger is locked.
func counts(l *ledger, offered uint64) map[string]interface{} {
	bookEarly(l)
	enqueued := offered - sum(l.dropped)
	return map[string]interface{}{
		"seen": l.filtered + l.sampledOut + offered, "filtered": l.filtered, "sampledOut": l.sampledOut,
		"enqueued": enqueued, "dropped": copyCounts(l.dropped),
		"delivered": l.delivered, "failed": copyCounts(l.failed), "inFlight": l.inFlight,
		"waiting": enqueued - l.delivered - sum(l.failed) - l.inFlight,
		"retried": l.retried, "truncated": copyCounts(l.truncated),
	}
}

// bookEarly moves the early drops to where all others are. The request path only
// counts them, as it would cost more there. The ledger is locked.
func bookEarly(l *ledger) {
	if l.early > 0 {
		l.dropped[reasonQueueFull] += l.early
		l.untold += l.early
		l.early = 0
	}
}

func sum(counts map[string]uint64) uint64 {
	var n uint64
	for _, count := range counts {
		n += count
	}
	return n
}

func copyCounts(counts map[string]uint64) map[string]uint64 {
	c := make(map[string]uint64, len(counts))
	for reason, n := range counts {
		c[reason] = n
	}
	return c
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
	bookEarly(l)
	if l.untold == 0 {
		l.mu.Unlock()
		return
	}
	text := fmt.Sprintf("requestmirror %q: %d events lost since the last such line; in all: dropped {%s}, failed {%s}",
		l.name, l.untold, listCounts(l.dropped), listCounts(l.failed))
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
		list = append(list, fmt.Sprintf("%s: %d", reason, n))
	}
	sort.Strings(list)
	return strings.Join(list, ", ")
}
