package main

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// The verdicts.
const (
	explained    = "explained"
	open         = "open"
	notExplained = "unexplained"
)

// stream is what came of one pipeline.
type stream struct {
	received   ranges
	duplicates uint64
	reports    []report // those that add up
	problem    string   // the first that was found in a report
}

// report is the data of a report. Counts are those since the pipeline began.
type report struct {
	Sequence   string `json:"sequence"`
	Seen       uint64 `json:"seen"`
	Filtered   uint64 `json:"filtered"`
	SampledOut uint64 `json:"sampled_out"`
	Delivered  uint64 `json:"delivered"`
	Waiting    uint64 `json:"waiting"`
	InFlight   uint64 `json:"in_flight"`
	Dropped    counts `json:"dropped"`
	Failed     counts `json:"failed"`
	Truncated  counts `json:"truncated"`
	Final      bool   `json:"final"`

	numbered uint64 // the number in Sequence: so many events had one
}

type counts []struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

func (c counts) sum() (n uint64) {
	for _, one := range c {
		n += one.Count
	}
	return n
}

func (c counts) String() string {
	list := []string{}
	for _, one := range c {
		list = append(list, fmt.Sprintf("%s %d", strings.Trim(strconv.Quote(one.Reason), `"`), one.Count))
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// check says what does not add up, if anything.
func (r report) check() string {
	requests := r.Filtered + r.SampledOut + r.numbered
	events := r.Delivered + r.Dropped.sum() + r.Failed.sum() + r.Waiting + r.InFlight
	switch {
	case r.Seen != requests:
		return fmt.Sprintf("the report at %d does not add up: %d seen; filtered, sampled out and numbered are %d", r.numbered, r.Seen, requests)
	case r.numbered != events:
		return fmt.Sprintf("the report at %d does not add up: delivered, dropped, failed, waiting and in flight are %d", r.numbered, events)
	case r.Final && r.Waiting+r.InFlight > 0:
		return fmt.Sprintf("the final report at %d has events that are under way", r.numbered)
	}
	return ""
}

func (s *stream) takeEvent(number uint64) {
	if !s.received.add(number) {
		s.duplicates++
	}
}

func (s *stream) takeReport(r report) {
	if problem := r.check(); problem == "" {
		s.reports = append(s.reports, r)
	} else if s.problem == "" {
		s.problem = problem
	}
}

// verdict is what can be said of a stream.
type verdict struct {
	word    string
	why     string
	highest uint64 // number that is known of, by an event or a report
}

func (v verdict) String() string {
	if v.why == "" {
		return v.word
	}
	return v.word + ": " + v.why
}

// judge compares what came with what the reports say, and puts the reports in order.
//
// Every report has its own say, not only the last one: of the numbers it knows, at
// least as many must have come as it calls delivered. More may have, as a delivery
// whose answer was lost counts as failed. But what was dropped never comes.
func (s *stream) judge(final bool) verdict {
	// All counts of a later report are at least those of an earlier one, in whatever order they came.
	slices.SortFunc(s.reports, func(a, b report) int {
		return cmp.Or(cmp.Compare(a.numbered, b.numbered), cmp.Compare(a.Seen, b.Seen), cmp.Compare(b.Waiting+b.InFlight, a.Waiting+a.InFlight))
	})
	v := verdict{highest: s.received.last()}
	var last report
	var lost uint64 // delivered, and not here
	problem := s.problem
	for _, r := range s.reports {
		came := s.received.upTo(r.numbered)
		switch enqueued := r.numbered - r.Dropped.sum(); {
		case problem != "":
		case r.Delivered < last.Delivered || r.Dropped.sum() < last.Dropped.sum() || r.Failed.sum() < last.Failed.sum():
			problem = fmt.Sprintf("the reports at %d and %d contradict each other", last.numbered, r.numbered)
		case last.Final && r.Seen > last.Seen:
			problem = fmt.Sprintf("the report at %d comes after the final one", r.numbered)
		case came > enqueued:
			problem = fmt.Sprintf("%d events came of those up to %d; the report says that only %d were not dropped", came, r.numbered, enqueued)
		}
		if came < r.Delivered {
			lost = max(lost, r.Delivered-came)
		}
		r.Final = r.Final || last.Final
		last = r
	}
	if problem == "" && last.Final && v.highest > last.numbered {
		problem = fmt.Sprintf("event %d came; the final report says that %d was the last", v.highest, last.numbered)
	}
	v.highest = max(v.highest, last.numbered)

	missing := last.numbered - s.received.upTo(last.numbered)
	beyond := v.highest - s.received.upTo(v.highest) - missing
	if known := last.Dropped.sum() + last.Failed.sum(); missing > known {
		beyond += missing - known // they were under way when it was written
	}
	switch {
	case problem != "":
		v.word, v.why = notExplained, problem
	case lost > 0:
		v.word, v.why = notExplained, fmt.Sprintf("%d delivered, as the plugin says, and not here", lost)
	case final && !last.Final:
		v.word, v.why = notExplained, "there is no final report"
	case len(s.reports) == 0:
		v.word, v.why = open, "there is no report yet"
	case beyond > 0:
		v.word, v.why = open, fmt.Sprintf("%d of the missing not yet in a report, or under way when it was written", beyond)
	default:
		v.word = explained
		if !last.Final {
			v.why = fmt.Sprintf("up to %d; this is not the final report", last.numbered)
		}
	}
	return v
}

// ranges are numbers, as spans that are sorted and do not touch: a stream takes as
// much memory as it has gaps.
type ranges []span

type span struct{ first, last uint64 }

// add takes a number, and says whether it is new.
func (r *ranges) add(n uint64) bool {
	list := *r
	// The first span that n belongs into, or before.
	i := len(list)
	if i > 0 && n <= list[i-1].last {
		i = sort.Search(len(list), func(i int) bool { return n <= list[i].last })
		if n >= list[i].first {
			return false
		}
	}
	before, after := i > 0 && list[i-1].last+1 == n, i < len(list) && n+1 == list[i].first
	switch {
	case before && after:
		list[i-1].last = list[i].last
		list = slices.Delete(list, i, i+1)
	case before:
		list[i-1].last = n
	case after:
		list[i].first = n
	default:
		list = slices.Insert(list, i, span{n, n})
	}
	*r = list
	return true
}

// last is the highest number, or 0.
func (r ranges) last() uint64 {
	if len(r) == 0 {
		return 0
	}
	return r[len(r)-1].last
}

// upTo counts the numbers up to n.
func (r ranges) upTo(n uint64) (count uint64) {
	for _, s := range r {
		if s.first > n {
			break
		}
		count += min(s.last, n) - s.first + 1
	}
	return count
}

// gaps are the numbers from 1 to n that are not there.
func (r ranges) gaps(n uint64) (gaps ranges) {
	next := uint64(1)
	for _, s := range r {
		if s.first > n {
			break
		}
		if s.first > next {
			gaps = append(gaps, span{next, s.first - 1})
		}
		next = s.last + 1
	}
	if next <= n {
		gaps = append(gaps, span{next, n})
	}
	return gaps
}
