package main

import (
	"cmp"
	"maps"
	"slices"
	"sort"
	"strconv"
	"time"
)

const (
	maxStreams = 100
	maxSpans   = 500 // of a stream; what is further back is forgotten
	maxWindows = 200 // of a stream; older ones are put together
	maxGaps    = 500 // that are shown
	grace      = 2 * time.Second
)

// key names a stream: numbers are counted from 1 for each pipeline.
type key struct{ source, boot string }

// streams follows the sequence of each stream, and what its reports say of the numbers
// that are missing.
type streams struct {
	began time.Time
	list  map[key]*stream
	made  uint64 // streams so far
}

// stream is what is known of one pipeline.
type stream struct {
	id       uint64 // for the page, in place of the key
	base     uint64 // numbers from here on are expected
	whole    bool   // it began after this program
	received spans
	last     *report
	lastAt   time.Time
	lastRow  uint64
	windows  []window // between reports, the oldest first
	touched  time.Time
}

// window is what two reports in succession say of the numbers between them.
type window struct {
	from, to uint64 // numbers after from, up to to
	row      uint64 // in the journal, of the later report
	at       time.Time
	dropped  map[string]uint64 // by reason; all of these numbers
	failed   map[string]uint64 // by reason; of these numbers or earlier ones
}

// span is numbers that came.
type span struct {
	first, last uint64
	row         uint64    // in the journal, of the event with the first number
	at          time.Time // when that came
}

func newStreams(now time.Time) streams { return streams{began: now, list: map[key]*stream{}} }

// clear makes everything known what came so far. Reports go on from the last one.
func (ss *streams) clear() {
	for _, s := range ss.list {
		s.base = max(s.base, s.received.last()+1)
		if s.last != nil {
			s.base = max(s.base, s.last.number+1)
		}
		s.received, s.windows = nil, nil
	}
}

// of returns a stream, a new one if it is not known.
func (ss *streams) of(k key, now time.Time, next uint64) *stream {
	s := ss.list[k]
	if s == nil {
		if len(ss.list) >= maxStreams {
			delete(ss.list, ss.oldest())
		}
		// Of a pipeline that began earlier than this program, it is not known what came
		// to others before: all that is missing there is not missing here.
		ss.made++
		s = &stream{id: ss.made, base: next}
		if began, err := strconv.ParseInt(k.boot, 16, 64); err == nil && !time.UnixMilli(began).Before(ss.began) {
			s.base, s.whole = 1, true
		}
		ss.list[k] = s
	}
	s.touched = now
	return s
}

func (ss *streams) oldest() (k key) {
	var least time.Time
	for one, s := range ss.list {
		if least.IsZero() || s.touched.Before(least) {
			k, least = one, s.touched
		}
	}
	return k
}

// event notes that a number came.
func (ss *streams) event(k key, row uint64, at time.Time, number uint64) {
	s := ss.of(k, at, number)
	if number < s.base {
		return
	}
	s.received.add(span{number, number, row, at})
	if len(s.received) > maxSpans {
		s.received = slices.Delete(s.received, 0, 1)
		s.base = s.received[0].first
	}
}

// progress is what became of events between two reports.
type progress struct {
	Pipeline  uint64            `json:"pipeline"`
	From      int64             `json:"from"` // milliseconds since 1970, when the reports came
	To        int64             `json:"to"`
	Delivered uint64            `json:"delivered"`
	Dropped   map[string]uint64 `json:"dropped,omitempty"`
	Failed    map[string]uint64 `json:"failed,omitempty"`
}

// report notes what a report says, and returns what is new in it. A report that was
// overtaken by a later one has nothing new.
func (ss *streams) report(k key, row uint64, at time.Time, r *report) (progress, bool) {
	s := ss.of(k, at, r.number+1)
	last := s.last
	if last == nil {
		last = &report{}
	}
	if r.number < last.number || r.Seen < last.Seen || r.Delivered < last.Delivered || r.Dropped.sum() < last.Dropped.sum() || r.Failed.sum() < last.Failed.sum() {
		return progress{}, false
	}
	w := window{from: last.number, to: r.number, row: row, at: at, dropped: increase(last.Dropped, r.Dropped), failed: increase(last.Failed, r.Failed)}
	p := progress{Pipeline: s.id, From: s.lastAt.UnixMilli(), To: at.UnixMilli(), Delivered: r.Delivered - last.Delivered, Dropped: w.dropped, Failed: w.failed}
	first := s.last == nil
	s.last, s.lastAt, s.lastRow = r, at, row
	if first {
		// What it says is of all the time before: news only if that is all known here.
		if !s.whole {
			return progress{}, false
		}
		p.From = max(ss.began.UnixMilli(), p.To-time.Minute.Milliseconds())
	}
	s.windows = append(s.windows, w)
	if len(s.windows) > maxWindows {
		s.windows[1] = together(s.windows[0], s.windows[1])
		s.windows = slices.Delete(s.windows, 0, 1)
	}
	return p, true
}

func increase(before, after counts) map[string]uint64 {
	more := map[string]uint64{}
	for _, c := range after {
		more[c.Reason] += c.Count
	}
	for _, c := range before {
		if more[c.Reason] -= min(c.Count, more[c.Reason]); more[c.Reason] == 0 {
			delete(more, c.Reason)
		}
	}
	return more
}

func together(a, b window) window {
	b.from, b.dropped, b.failed = a.from, sums(a.dropped, b.dropped), sums(a.failed, b.failed)
	return b
}

func sums(list ...map[string]uint64) map[string]uint64 {
	all := map[string]uint64{}
	for _, m := range list {
		for reason, n := range m {
			all[reason] += n
		}
	}
	return all
}

func total(m map[string]uint64) (n uint64) {
	for _, count := range m {
		n += count
	}
	return n
}

// What is known of a gap.
const (
	explained   = "explained"   // the reports have reasons for all that is missing there
	unreported  = "unreported"  // no report yet
	underway    = "underway"    // waited or was being sent when the last report was written
	unexplained = "unexplained" // reports have no reason, and it is not under way
	unknown     = "unknown"     // was reported together with what was before this program
)

// gap is numbers that did not come.
type gap struct {
	Source  string   `json:"source"`
	Boot    string   `json:"boot"`
	First   uint64   `json:"first"`
	Last    uint64   `json:"last"`
	Row     uint64   `json:"row"` // it is shown before this one
	State   string   `json:"state"`
	Reasons []reason `json:"reasons,omitempty"`
	Among   uint64   `json:"among,omitempty"` // missing numbers that share these reasons
	From    uint64   `json:"from,omitempty"`  // and are between these
	To      uint64   `json:"to,omitempty"`
	At      int64    `json:"at,omitempty"` // when the last of these reports came
}

type reason struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
	Failed bool   `json:"failed,omitempty"` // left the queue; or else was never in it
}

// gapList is the gaps of all streams.
type gapList struct {
	List    []gap  `json:"list"`
	Missing uint64 `json:"missing"` // events in all gaps, those that are not listed, too
	Open    uint64 `json:"open"`    // those of them without a reason
	More    int    `json:"more,omitempty"`
}

// gaps lists what is missing, in the order of the rows.
func (ss *streams) gaps(now time.Time) gapList {
	all := gapList{List: []gap{}}
	for k, s := range ss.list {
		for _, g := range s.gaps(now) {
			g.Source, g.Boot = k.source, k.boot
			all.Missing += g.Last - g.First + 1
			if g.State != explained {
				all.Open += g.Last - g.First + 1
			}
			all.List = append(all.List, g)
		}
	}
	slices.SortFunc(all.List, func(a, b gap) int {
		return cmp.Or(cmp.Compare(a.Row, b.Row), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Boot, b.Boot), cmp.Compare(a.First, b.First))
	})
	if more := len(all.List) - maxGaps; more > 0 {
		all.List, all.More = all.List[more:], more
	}
	return all
}

// share is what one window comes to: how many of its numbers are missing, and the
// reasons that go with them.
type share struct {
	missing uint64
	unmet   uint64 // without a reason
	failed  map[string]uint64
}

// shares divides the reasons of the reports among their windows. What was dropped was so
// when it got its number, so it belongs to its own window. What failed may have waited
// since an earlier one, and goes to the earliest that still lacks a reason.
func (s *stream) shares() (list []share, pending uint64) {
	list = make([]share, len(s.windows))
	var lacking []int
	for i, w := range s.windows {
		missing := s.missingIn(w.from+1, w.to)
		list[i] = share{missing: missing, unmet: missing - min(missing, total(w.dropped)), failed: map[string]uint64{}}
		if list[i].unmet > 0 {
			lacking = append(lacking, i)
		}
		failed := maps.Clone(w.failed)
		names := slices.Sorted(maps.Keys(failed))
		for len(lacking) > 0 && len(names) > 0 {
			one, name := &list[lacking[0]], names[0]
			n := min(one.unmet, failed[name])
			one.unmet -= n
			one.failed[name] += n
			if failed[name] -= n; failed[name] == 0 {
				names = names[1:]
			}
			if one.unmet == 0 {
				lacking = lacking[1:]
			}
		}
	}
	if s.last != nil {
		pending = s.last.Waiting + s.last.InFlight
	}
	return list, pending
}

func (s *stream) missingIn(first, last uint64) uint64 {
	first = max(first, s.base)
	if last < first {
		return 0
	}
	return last - first + 1 - s.received.between(first, last)
}

func (s *stream) gaps(now time.Time) []gap {
	list := s.holes()
	if len(list) == 0 {
		return nil
	}
	shares, pending := s.shares()
	// The latest are those that are under way.
	open := make([]bool, len(shares))
	for i := len(shares) - 1; i >= 0; i-- {
		n := min(pending, shares[i].unmet)
		pending -= n
		open[i] = shares[i].unmet > n
	}
	shown := list[:0]
	for _, h := range list {
		g := h.gap
		switch {
		case s.last == nil || g.Last > s.last.number:
			g.State = unreported
			// Workers overtake each other: what is late is not yet missing.
			if now.Sub(h.since) < grace {
				continue
			}
		case len(s.windows) == 0 || g.First <= s.windows[0].from:
			g.State = unknown
		default:
			s.explain(&g, shares, open)
			if g.State == underway && now.Sub(h.since) < grace {
				continue
			}
		}
		shown = append(shown, hole{gap: g})
	}
	gaps := make([]gap, len(shown))
	for i := range shown {
		gaps[i] = shown[i].gap
	}
	return gaps
}

// hole is a gap, and since when it is one.
type hole struct {
	gap
	since time.Time
}

// holes are the gaps, of which nothing else is known yet.
func (s *stream) holes() (list []hole) {
	next := s.base
	for _, one := range s.received {
		if one.first > next {
			list = append(list, hole{gap{First: next, Last: one.first - 1, Row: one.row}, one.at})
		}
		next = one.last + 1
	}
	if s.last != nil && s.last.number >= next {
		list = append(list, hole{gap{First: next, Last: s.last.number, Row: s.lastRow}, s.lastAt})
	}
	return list
}

// explain puts the reasons to a gap that reports know of.
func (s *stream) explain(g *gap, shares []share, open []bool) {
	g.State = explained
	begin := sort.Search(len(s.windows), func(i int) bool { return s.windows[i].to >= g.First })
	dropped, failed := map[string]uint64{}, map[string]uint64{}
	for i := begin; i < len(s.windows) && s.windows[i].from < g.Last; i++ {
		w := s.windows[i]
		dropped, failed = sums(dropped, w.dropped), sums(failed, shares[i].failed)
		g.Among += shares[i].missing
		g.At = w.at.UnixMilli()
		if i == begin {
			g.From = w.from + 1
		}
		g.To = w.to
		switch {
		case open[i]:
			g.State = unexplained
		case shares[i].unmet > 0 && g.State == explained:
			g.State = underway
		}
	}
	for _, name := range slices.Sorted(maps.Keys(dropped)) {
		g.Reasons = append(g.Reasons, reason{Reason: name, Count: dropped[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		g.Reasons = append(g.Reasons, reason{Reason: name, Count: failed[name], Failed: true})
	}
}

// spans are numbers that came, sorted, and none touches the next: they take as much
// memory as there are gaps.
type spans []span

// add takes a number.
func (list *spans) add(one span) {
	l, n := *list, one.first
	i := sort.Search(len(l), func(i int) bool { return n <= l[i].last }) // the first that n is in, or before
	if i < len(l) && n >= l[i].first {
		return
	}
	before, after := i > 0 && l[i-1].last+1 == n, i < len(l) && n+1 == l[i].first
	switch {
	case before && after:
		l[i-1].last = l[i].last
		l = slices.Delete(l, i, i+1)
	case before:
		l[i-1].last = n
	case after:
		l[i].first, l[i].row, l[i].at = n, one.row, one.at
	default:
		l = slices.Insert(l, i, one)
	}
	*list = l
}

func (list spans) last() uint64 {
	if len(list) == 0 {
		return 0
	}
	return list[len(list)-1].last
}

// between counts the numbers from first to last.
func (list spans) between(first, last uint64) (count uint64) {
	for i := sort.Search(len(list), func(i int) bool { return first <= list[i].last }); i < len(list) && list[i].first <= last; i++ {
		count += min(list[i].last, last) - max(list[i].first, first) + 1
	}
	return count
}
