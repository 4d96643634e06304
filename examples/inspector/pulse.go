package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"
)

const (
	seconds     = 300  // that are kept
	maxSamples  = 200  // latencies of a second; of more, a random choice
	maxProgress = 3000 // reports: of 100 pipelines, each ten seconds
)

// pulse counts what happens in each second.
type pulse struct {
	ring     [seconds]second
	current  int64 // second since 1970
	progress []progress
	totals   totals
}

// second is what came in one.
type second struct {
	at        int64
	events    int
	bytes     int
	refused   int
	latencies []float64
	measured  int
}

// totals are counts since the beginning, or since everything was cleared.
type totals struct {
	Began      int64             `json:"began"` // milliseconds since 1970
	Events     uint64            `json:"events"`
	Reports    uint64            `json:"reports"`
	Deliveries uint64            `json:"deliveries"`
	Repeated   uint64            `json:"repeated"`
	Invalid    uint64            `json:"invalid"`
	Refused    map[string]uint64 `json:"refused"` // by why
	Lost       map[string]uint64 `json:"lost"`    // by reason, as the reports say
}

// point is a second, for the chart.
type point struct {
	At      int64    `json:"at"` // seconds since 1970
	Events  int      `json:"events"`
	Bytes   int      `json:"bytes"`
	Refused int      `json:"refused,omitempty"`
	Middle  *float64 `json:"p50,omitempty"` // latency in milliseconds
	High    *float64 `json:"p95,omitempty"`
	Worst   *float64 `json:"max,omitempty"`
}

// pulseList is what the chart is drawn of.
type pulseList struct {
	Now      int64      `json:"now"` // milliseconds since 1970
	Points   []point    `json:"points"`
	Progress []progress `json:"progress"`
	Totals   totals     `json:"totals"`
}

func newPulse(now time.Time) pulse {
	return pulse{current: now.Unix(), totals: totals{Began: now.UnixMilli(), Refused: map[string]uint64{}, Lost: map[string]uint64{}}}
}

// at returns the second that is now.
func (p *pulse) at(now time.Time) *second {
	t := max(now.Unix(), p.current) // a clock that is set back does not undo what was told
	p.current = t
	s := &p.ring[t%seconds]
	if s.at != t {
		*s = second{at: t, latencies: s.latencies[:0]}
	}
	return s
}

func (p *pulse) delivery(now time.Time, bytes int) {
	p.at(now).bytes += bytes
	p.totals.Deliveries++
}

func (p *pulse) repeat() { p.totals.Repeated++ }

func (p *pulse) refuse(now time.Time, why string) {
	p.at(now).refused++
	p.totals.Refused[why]++ // a few words of the intake's
}

func (p *pulse) event(now time.Time, r *row) {
	if r.Problems > 0 {
		p.totals.Invalid++
	}
	if r.Kind == "report" {
		p.totals.Reports++
		return
	}
	p.totals.Events++
	s := p.at(now)
	s.events++
	if r.Latency == nil {
		return
	}
	s.measured++
	if len(s.latencies) < maxSamples {
		s.latencies = append(s.latencies, *r.Latency)
	} else if i := rand.IntN(s.measured); i < maxSamples {
		s.latencies[i] = *r.Latency
	}
}

func (p *pulse) report(one progress) {
	if len(p.progress) == maxProgress {
		p.progress = slices.Delete(p.progress, 0, 1)
	}
	p.progress = append(p.progress, one)
	for _, m := range []map[string]uint64{one.Dropped, one.Failed} {
		for reason, n := range m {
			p.totals.Lost[reason] += n
		}
	}
}

// since returns the seconds that are over, from one of them on, and the reports that
// came in these.
func (p *pulse) since(now time.Time, from int64) pulseList {
	p.at(now)
	list := pulseList{Now: now.UnixMilli(), Points: []point{}, Progress: []progress{}, Totals: p.totals}
	list.Totals.Refused, list.Totals.Lost = sums(p.totals.Refused), sums(p.totals.Lost)
	for t := max(from, p.current-seconds+1); t < p.current; t++ {
		if s := &p.ring[t%seconds]; s.at == t {
			list.Points = append(list.Points, s.point())
		}
	}
	for _, one := range p.progress {
		if one.To >= from*1000 && one.To < p.current*1000 {
			list.Progress = append(list.Progress, one)
		}
	}
	return list
}

func (s *second) point() point {
	p := point{At: s.at, Events: s.events, Bytes: s.bytes, Refused: s.refused}
	if n := len(s.latencies); n > 0 {
		sorted := slices.Sorted(slices.Values(s.latencies))
		quantile := func(q float64) *float64 { return &sorted[int(math.Ceil(q*float64(n)))-1] }
		p.Middle, p.High, p.Worst = quantile(0.5), quantile(0.95), quantile(1)
	}
	return p
}
