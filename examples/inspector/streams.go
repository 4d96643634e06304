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
	maxWindows = 200 // of a stream; older ones are put together
	maxGaps    = 500 // that are listed, the newest
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
	spans int    // of all streams
	most  int    // of these, the number of events that are kept
	gone  lack   // in streams that are no longer known
}

// lack is how many events are missing, and how many of these without a reason.
type lack struct{ missing, open uint64 }

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

	// Gaps whose place in the list is not kept any more are only counted: all of their
	// numbers here, and those that reports know of in the windows of these, too.
	forgotten uint64
	early     uint64 // of these, those that no report knows of yet
}

// window is what two reports in succession say of the numbers between them.
type window struct {
	from, to uint64 // numbers after from, up to to
	row      uint64 // in the journal, of the later report
	at       time.Time
	dropped  map[string]uint64 // by reason; all of these numbers
	failed   map[string]uint64 // by reason; of these numbers or earlier ones

	forgotten uint64 // missing numbers of gaps that are only counted
}

// span is numbers that came.
type span struct {
	first, last uint64
	row         uint64    // in the journal, of the event with the first number
	at          time.Time // when that came
}

func newStreams(now time.Time, keep int) streams {
	return streams{began: now, list: map[key]*stream{}, most: keep}
}

// clear makes everything known what came so far. Reports go on from the last one.
func (ss *streams) clear() {
	for _, s := range ss.list {
		s.base = max(s.base, s.received.last()+1)
		if s.last != nil {
			s.base = max(s.base, s.last.number+1)
		}
		s.received, s.windows, s.forgotten, s.early = nil, nil, 0, 0
	}
	ss.spans, ss.gone = 0, lack{}
}

// of returns a stream, a new one if it is not known.
func (ss *streams) of(k key, now time.Time, next uint64) *stream {
	s := ss.list[k]
	if s == nil {
		if len(ss.list) >= maxStreams {
			ss.drop(ss.oldest(), now)
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

// drop forgets a stream, but not how much is missing there.
func (ss *streams) drop(k key, now time.Time) {
	s := ss.list[k]
	_, l := s.gaps(now.Add(grace)) // what is late now will not be waited for
	ss.gone.missing += l.missing
	ss.gone.open += l.open
	ss.spans -= len(s.received)
	delete(ss.list, k)
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
	before := len(s.received)
	s.received.add(span{number, number, row, at})
	ss.spans += len(s.received) - before
	// Each has a row of its own, so there are no more of them than rows, but for numbers
	// that come in an order in which nobody would send them.
	for ss.spans > ss.most {
		ss.forget(s)
	}
}

// keepFrom forgets what was before a row: gaps have their place in the list before a row
// that is kept.
func (ss *streams) keepFrom(row uint64) {
	for _, s := range ss.list {
		for len(s.received) > 0 && s.received[0].row < row {
			ss.forget(s)
		}
	}
}

// forget takes the first span away, and what is missing before it is only counted.
func (ss *streams) forget(s *stream) {
	one := s.received[0]
	if n := one.first - min(s.base, one.first); n > 0 {
		s.forgotten += n
		for i := range s.windows {
			w := &s.windows[i]
			if first, last := max(s.base, w.from+1), min(one.first-1, w.to); first <= last {
				w.forgotten += last - first + 1
			}
		}
		if reported := s.lastNumber(); one.first-1 > reported {
			s.early += one.first - 1 - max(s.base-1, reported)
		}
	}
	s.base = one.last + 1
	s.received = s.received[1:]
	ss.spans--
}

// lastNumber is the last one that a report knows of.
func (s *stream) lastNumber() uint64 {
	if s.last == nil {
		return 0
	}
	return s.last.number
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
	// What was forgotten before it was reported has lower numbers than what comes now.
	w.forgotten, s.early = s.early, 0
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
	b.forgotten += a.forgotten
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

	windows []window // that have to do with it, if reports know of it
	shares  []share  // of these
}

type reason struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
	Failed bool   `json:"failed,omitempty"` // left the queue; or else was never in it
}

// gapList is the gaps of all streams.
type gapList struct {
	List      []gap  `json:"list"`      // the newest
	Missing   uint64 `json:"missing"`   // events in all gaps, those that are not listed, too
	Open      uint64 `json:"open"`      // those of them without a reason
	More      int    `json:"more"`      // gaps before these
	MoreOf    uint64 `json:"more_of"`   // events that are missing there
	Forgotten uint64 `json:"forgotten"` // events that are missing before what is kept
}

// gaps lists what is missing, in the order of the rows.
func (ss *streams) gaps(now time.Time) gapList {
	all := gapList{List: []gap{}, Missing: ss.gone.missing, Open: ss.gone.open, Forgotten: ss.gone.missing}
	for k, s := range ss.list {
		list, l := s.gaps(now)
		for i := range list {
			list[i].Source, list[i].Boot = k.source, k.boot
		}
		all.List = append(all.List, list...)
		all.Missing += l.missing
		all.Open += l.open
		all.Forgotten += s.forgotten
	}
	slices.SortFunc(all.List, func(a, b gap) int {
		return cmp.Or(cmp.Compare(a.Row, b.Row), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Boot, b.Boot), cmp.Compare(a.First, b.First))
	})
	if more := len(all.List) - maxGaps; more > 0 {
		for _, g := range all.List[:more] {
			all.MoreOf += g.Last - g.First + 1
		}
		all.List, all.More = all.List[more:], more
	}
	for i := range all.List {
		all.List[i].explain()
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
		missing := s.missingIn(w.from+1, w.to) + w.forgotten
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

// gaps are those of one stream, without the reasons, and how much is missing there in
// all.
func (s *stream) gaps(now time.Time) (list []gap, l lack) {
	holes := s.holes()
	if len(holes) == 0 && s.forgotten == 0 {
		return nil, lack{}
	}
	shares, pending := s.shares()
	// The latest are those that are under way.
	open := make([]bool, len(shares))
	for i := len(shares) - 1; i >= 0; i-- {
		n := min(pending, shares[i].unmet)
		pending -= n
		open[i] = shares[i].unmet > n
	}
	l = lack{s.forgotten, s.forgotten}
	for i, w := range s.windows {
		if shares[i].unmet == 0 {
			l.open -= min(l.open, w.forgotten)
		}
	}
	for _, h := range holes {
		g := h.gap
		switch {
		case g.Last > s.lastNumber():
			g.State = unreported
			// Workers overtake each other: what is late is not yet missing.
			if now.Sub(h.since) < grace {
				continue
			}
		case len(s.windows) == 0 || g.First <= s.windows[0].from:
			g.State = unknown
		default:
			s.judge(&g, shares, open)
			if g.State == underway && now.Sub(h.since) < grace {
				continue
			}
		}
		l.missing += g.Last - g.First + 1
		if g.State != explained {
			l.open += g.Last - g.First + 1
		}
		list = append(list, g)
	}
	return list, l
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

// judge says of a gap that reports know of whether they explain it.
func (s *stream) judge(g *gap, shares []share, open []bool) {
	g.State = explained
	begin := sort.Search(len(s.windows), func(i int) bool { return s.windows[i].to >= g.First })
	end := begin
	for ; end < len(s.windows) && s.windows[end].from < g.Last; end++ {
		switch {
		case open[end]:
			g.State = unexplained
		case shares[end].unmet > 0 && g.State == explained:
			g.State = underway
		}
	}
	g.windows, g.shares = s.windows[begin:end], shares[begin:end]
}

// explain puts the reasons to a gap that reports know of.
func (g *gap) explain() {
	if len(g.windows) == 0 {
		return
	}
	dropped, failed := map[string]uint64{}, map[string]uint64{}
	for i, w := range g.windows {
		dropped, failed = sums(dropped, w.dropped), sums(failed, g.shares[i].failed)
		g.Among += g.shares[i].missing
		g.At, g.To = w.at.UnixMilli(), w.to
	}
	g.From = g.windows[0].from + 1
	for _, name := range slices.Sorted(maps.Keys(dropped)) {
		g.Reasons = append(g.Reasons, reason{Reason: name, Count: dropped[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		g.Reasons = append(g.Reasons, reason{Reason: name, Count: failed[name], Failed: true})
	}
	g.windows, g.shares = nil, nil
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
