package main

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	hour = 60 // minutes in the book

	maxScopes  = 50     // of one client
	maxSources = 100    // middlewares that reports come from
	maxStreams = 1000   // pipelines of them
	remember   = 100000 // ids, times two
)

// How a client is known.
const (
	byPseudonym = "pseudonym"
	byAddress   = "address"
	inOthers    = "others" // it is all those who are too small to be counted by themselves
)

// others stands for the scopes of a client that are too small to be counted by themselves.
const others = "others"

// who is a client; or, where reports are counted, a middleware.
type who struct{ knownBy, name string }

var theOthers = who{inOthers, others}

// stream is what one pipeline sends. Its boot tells it from its predecessors.
type stream struct{ source, boot string }

// book has the counts of the past hour, by minute. Its size is bounded, whatever comes.
type book struct {
	began time.Time // when it began to count

	mu       sync.Mutex // guards all below
	latest   int64      // the minute until which it was kept, since 1970; never goes back
	requests *grid      // by client and scope
	reports  *grid      // by middleware and count
	heard    map[stream]*hearing
	tooOld   uint64          // events that came more than an hour late
	ids, old map[string]bool // of events that are in the book
}

// hearing is what a pipeline said last.
type hearing struct {
	counts map[string]uint64
	at     time.Time
}

func newBook(now time.Time, clients int) *book {
	return &book{
		began:    now,
		latest:   minuteOf(now),
		requests: newGrid(clients, maxScopes),
		reports:  newGrid(maxSources, maxReasons),
		heard:    map[stream]*hearing{},
		ids:      map[string]bool{},
	}
}

func minuteOf(t time.Time) int64 { return t.Unix() / 60 }

// enter counts entries, each once: an event comes again, with the same id, when the
// answer to it was lost, and then maybe in another batch.
func (b *book) enter(now time.Time, entries []entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn(now)
	for _, e := range entries {
		if b.ids[e.id] || b.old[e.id] {
			continue
		}
		if len(b.ids) >= remember {
			b.old, b.ids = b.ids, map[string]bool{}
		}
		b.ids[e.id] = true
		minute := min(minuteOf(e.at), b.latest) // clocks differ
		switch {
		case minute <= b.latest-hour:
			b.tooOld++
		case e.report != nil:
			b.hear(minute, e.at, e.report)
		default:
			b.requests.add(e.client, e.scope, minute, e.weight)
		}
	}
}

// turn forgets the minutes that are more than an hour ago.
func (b *book) turn(now time.Time) {
	minute := minuteOf(now)
	for m := max(b.latest+1, minute-hour+1); m <= minute; m++ {
		b.requests.forget(m)
		b.reports.forget(m)
	}
	b.latest = max(b.latest, minute)
}

// hear counts what has happened since the last report of the same pipeline. What
// happened before the first, more than an hour ago or not, is not known: then counting
// begins with it.
func (b *book) hear(minute int64, at time.Time, r *report) {
	last, known := b.heard[r.stream]
	if !known {
		last = &hearing{counts: r.counts}
		if minuteOf(r.since) > b.latest-hour {
			last.counts = nil
		}
		if len(b.heard) >= maxStreams {
			b.forgetStream()
		}
		b.heard[r.stream] = last
	}
	for name, count := range last.counts {
		if r.counts[name] < count {
			return // an older report, which comes late: the newer one has said it all
		}
	}
	source := who{name: r.stream.source}
	b.reports.add(source, "reports", minute, 1)
	for name, count := range r.counts {
		if since := count - last.counts[name]; since > 0 {
			b.reports.add(source, name, minute, since)
		}
	}
	last.counts, last.at = r.counts, at
}

// forgetStream forgets the one that was silent for the longest time.
func (b *book) forgetStream() {
	var oldest stream
	first := true
	for s, h := range b.heard {
		if first || h.at.Before(b.heard[oldest].at) {
			oldest, first = s, false
		}
	}
	delete(b.heard, oldest)
}

// grid counts by row and column. When it has too many, the smallest are folded into
// one that is called others.
type grid struct {
	maxRows, maxColumns int
	rows                map[who]map[string]*series
}

func newGrid(rows, columns int) *grid {
	return &grid{maxRows: rows, maxColumns: columns, rows: map[who]map[string]*series{}}
}

func (g *grid) add(row who, column string, minute int64, n uint64) {
	columns := g.rows[row]
	if columns == nil {
		columns = map[string]*series{}
		g.rows[row] = columns
	}
	s := columns[column]
	if s == nil {
		s = &series{}
		columns[column] = s
	}
	s.minutes[minute%hour] += n
	s.total += n
	if tooMany(columns, others, g.maxColumns) {
		foldColumns(columns, g.maxColumns)
	}
	if tooMany(g.rows, theOthers, g.maxRows) {
		g.foldRows()
	}
}

// tooMany says whether a map has more than most keys besides that of the others.
func tooMany[K comparable, V any](m map[K]V, others K, most int) bool {
	n := len(m)
	if _, folded := m[others]; folded {
		n--
	}
	return n > most
}

// forget makes room for a minute, where the one before it by an hour was.
func (g *grid) forget(minute int64) {
	for row, columns := range g.rows {
		for column, s := range columns {
			s.total -= s.minutes[minute%hour]
			s.minutes[minute%hour] = 0
			if s.total == 0 {
				delete(columns, column)
			}
		}
		if len(columns) == 0 {
			delete(g.rows, row)
		}
	}
}

func (g *grid) foldRows() {
	totals := map[who]uint64{}
	for row, columns := range g.rows {
		if row != theOthers {
			for _, s := range columns {
				totals[row] += s.total
			}
		}
	}
	into := g.rows[theOthers]
	if into == nil {
		into = map[string]*series{}
		g.rows[theOthers] = into
	}
	byName := func(a, b who) int { return cmp.Or(cmp.Compare(a.knownBy, b.knownBy), cmp.Compare(a.name, b.name)) }
	for _, row := range smallest(totals, g.maxRows, byName) {
		for column, s := range g.rows[row] {
			foldInto(into, column, s)
		}
		delete(g.rows, row)
	}
	if tooMany(into, others, g.maxColumns) {
		foldColumns(into, g.maxColumns)
	}
}

func foldColumns(columns map[string]*series, most int) {
	totals := map[string]uint64{}
	for column, s := range columns {
		if column != others {
			totals[column] = s.total
		}
	}
	for _, column := range smallest(totals, most, strings.Compare) {
		foldInto(columns, others, columns[column])
		delete(columns, column)
	}
}

func foldInto(columns map[string]*series, column string, from *series) {
	s := columns[column]
	if s == nil {
		s = &series{}
		columns[column] = s
	}
	for i, n := range from.minutes {
		s.minutes[i] += n
	}
	s.total += from.total
}

// smallest are those of too many that go, so that three quarters of the most remain:
// many at once, as it takes time to find them.
func smallest[K comparable](totals map[K]uint64, most int, byName func(a, b K) int) []K {
	keys := make([]K, 0, len(totals))
	for key := range totals {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b K) int {
		return cmp.Or(cmp.Compare(totals[a], totals[b]), byName(a, b))
	})
	return keys[:len(keys)-max(1, most*3/4)]
}

// series counts by minute, for an hour.
type series struct {
	minutes [hour]uint64
	total   uint64
}

// past returns the counts of the last so many minutes, the oldest first.
func (s *series) past(latest int64, minutes int) []uint64 {
	counts := make([]uint64, minutes)
	for i := range counts {
		counts[i] = s.minutes[(latest-int64(minutes-1-i))%hour]
	}
	return counts
}
