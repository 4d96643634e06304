package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	tolerated = 10 * time.Millisecond // how late a request may be; clocks and schedulers are not exact
	maxErrors = 10                    // that are printed of the input
)

// summary counts what came of a run. Its size does not depend on the length of the run.
type summary struct {
	stderr io.Writer

	// These belong to the goroutine that reads and plans.
	unreadable int
	skipped    map[string]int
	sent       int
	disordered int
	notes      struct{ withheld, replaced, cut, padded int }
	took       time.Duration

	mu       sync.Mutex // guards what answers change
	statuses map[int]int
	failed   map[string]int
	lastErr  error
	latency  histogram
	lateness histogram
	busy     int // requests that were late because connections were
	own      int // or because this program was
}

func newSummary(stderr io.Writer) *summary {
	return &summary{stderr: stderr, skipped: map[string]int{}, statuses: map[int]int{}, failed: map[string]int{}}
}

func (s *summary) skip(reason string) { s.skipped[reason]++ }

func (s *summary) complain(text string) {
	if s.unreadable++; s.unreadable <= maxErrors {
		fmt.Fprintln(s.stderr, printable(text))
	}
}

func (s *summary) sending(n notes) {
	s.sent++
	for _, one := range []struct {
		is    bool
		count *int
	}{{n.withheld, &s.notes.withheld}, {n.replaced, &s.notes.replaced}, {n.cut && !n.padded, &s.notes.cut}, {n.padded, &s.notes.padded}} {
		if one.is {
			*one.count++
		}
	}
}

func (s *summary) late(busy, own time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lateness.add(busy + own)
	switch {
	case busy+own <= tolerated:
	case busy >= own:
		s.busy++
	default:
		s.own++
	}
}

func (s *summary) answer(status int, err error, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed[kindOf(err)]++
		s.lastErr = err
		return
	}
	s.statuses[status]++
	s.latency.add(took)
}

// kindOf is one of a few words for an error.
func kindOf(err error) string {
	var network net.Error
	var operation *net.OpError
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return "timeout"
	case errors.As(err, &operation) && operation.Op == "dial":
		return "no connection"
	}
	return "broken off"
}

func (s *summary) print(w io.Writer, o options) {
	s.mu.Lock()
	defer s.mu.Unlock()
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-10s "+format+"\n", append([]any{name}, args...)...)
	}
	if s.unreadable > 0 {
		row("unreadable", "%d", s.unreadable)
	}
	if o.dryRun {
		row("to send", "%d", s.sent)
	} else {
		row("sent", "%d in %s, %.1f per second", s.sent, rounded(s.took), float64(s.sent)/max(s.took.Seconds(), 1e-6))
	}
	row("skipped", "%s", counts(s.skipped))
	if n := s.notes; n.withheld+n.replaced > 0 {
		row("withheld", "%d without values that were redacted or hashed, %d with others in their place", n.withheld, n.replaced)
	}
	if n := s.notes; n.cut+n.padded > 0 {
		row("bodies", "%d sent as far as they are there, %d padded", n.cut, n.padded)
	}
	if s.disordered > 0 {
		row("disorder", "%d came before the one that was sent before them, by more than the window", s.disordered)
	}
	if o.dryRun {
		return
	}
	row("statuses", "%s", counts(s.statuses))
	if len(s.failed) > 0 {
		row("no answer", "%s; the last: %s", counts(s.failed), printable(s.lastErr.Error()))
	}
	row("latency", "%s", &s.latency)
	if o.speed == 0 {
		return
	}
	row("lateness", "%s", &s.lateness)
	if s.busy > 0 {
		row("", "%d were more than %s late as all %d connections were busy: the target is slower than the plan, or -connections too few", s.busy, tolerated, o.connections)
	}
	if s.own > 0 {
		row("", "%d were more than %s late as this program could not keep the pace: a lower -speed, or a faster machine", s.own, tolerated)
	}
}

// counts lists numbers by name, the sum first.
func counts[K cmp.Ordered](m map[K]int) string {
	keys := make([]K, 0, len(m))
	sum := 0
	for key, n := range m {
		keys = append(keys, key)
		sum += n
	}
	if sum == 0 {
		return "none"
	}
	slices.Sort(keys)
	var list []string
	for _, key := range keys {
		list = append(list, fmt.Sprintf("%s %d", printable(fmt.Sprint(key)), m[key]))
	}
	return fmt.Sprintf("%d: %s", sum, strings.Join(list, ", "))
}

// rounded is a duration with as many digits as anybody wants to read.
func rounded(d time.Duration) time.Duration {
	unit := time.Duration(1)
	for d/1000 >= unit {
		unit *= 10
	}
	return d.Round(unit)
}

// histogram counts durations in buckets, each 1/64 wide of where it is, or a microsecond.
type histogram struct {
	buckets [64 * 59]uint64
	n       uint64
	longest time.Duration
}

func (h *histogram) add(d time.Duration) {
	h.buckets[bucketOf(uint64(max(0, d.Microseconds())))]++
	h.n++
	h.longest = max(h.longest, d)
}

func bucketOf(v uint64) int {
	shift := max(0, bits.Len64(v)-7)
	return shift*64 + int(v>>shift)
}

// quantile is the duration that a part of all do not exceed, as far as the buckets tell.
func (h *histogram) quantile(q float64) time.Duration {
	rank := uint64(math.Ceil(q * float64(h.n)))
	seen := uint64(0)
	for i, n := range h.buckets {
		if seen += n; seen >= rank && n > 0 {
			shift := max(0, i/64-1)
			highest := uint64(i-shift*64+1)<<shift - 1
			return min(time.Duration(min(highest, math.MaxInt64/1000))*time.Microsecond, h.longest)
		}
	}
	return 0
}

func (h *histogram) String() string {
	if h.n == 0 {
		return "none"
	}
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s, longest %s", rounded(h.quantile(0.5)), rounded(h.quantile(0.9)), rounded(h.quantile(0.99)), rounded(h.longest))
}
