package main

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// told is gaps as text: numbers, state, reasons.
func told(l gapList) string {
	var list []string
	for _, g := range l.List {
		text := fmt.Sprintf("%d-%d before %d %s", g.First, g.Last, g.Row, g.State)
		for _, r := range g.Reasons {
			text += fmt.Sprintf(" %s:%d", r.Reason, r.Count)
		}
		if g.Among > g.Last-g.First+1 {
			text += fmt.Sprintf(" among %d of %d-%d", g.Among, g.From, g.To)
		}
		list = append(list, text)
	}
	return strings.Join(list, "; ")
}

func TestGaps(t *testing.T) {
	type step func(*bench, *mirror)
	event := func(b *bench, m *mirror) { b.deliver(m.request(b.clock.now(), "/")) }
	report := func(b *bench, m *mirror) { b.deliver(m.report(b.clock.now())) }
	drop := func(b *bench, m *mirror) { m.lose("queue_full", false) }
	fail := func(b *bench, m *mirror) { m.lose("timeout", true) }
	later := func(b *bench, m *mirror) { b.clock.add(5 * time.Second) }
	var late object
	hold := func(b *bench, m *mirror) { late = m.request(b.clock.now(), "/late") }
	arrive := func(b *bench, m *mirror) { b.deliver(late) }
	wait := func(b *bench, m *mirror) { m.wait() }
	for _, tc := range []struct {
		name  string
		began time.Duration // of the pipeline, after the inspector
		steps []step
		want  string
	}{
		{"nothing is missing", 1, []step{event, event, report, event}, ""},
		{"what is late is not missing yet", 1, []step{event, hold, event}, ""},
		{"it is after a while", 1, []step{event, hold, event, later}, "2-2 before 2 unreported"},
		{"and no more when it has come", 1, []step{event, hold, event, later, arrive}, ""},
		{"a drop that is reported", 1, []step{event, drop, event, report}, "2-2 before 2 explained queue_full:1"},
		{"the first numbers are missed, too", 1, []step{drop, drop, event, report}, "1-2 before 1 explained queue_full:2"},
		{"the last ones, which only the report knows of", 1, []step{event, drop, drop, report}, "2-3 before 2 explained queue_full:2"},
		{"two gaps that share reasons", 1, []step{event, drop, event, fail, event, report},
			"2-2 before 2 explained queue_full:1 timeout:1 among 2 of 1-5; 4-4 before 3 explained queue_full:1 timeout:1 among 2 of 1-5"},
		{"each report has reasons of its own", 1, []step{event, drop, event, report, event, fail, event, report},
			"2-2 before 2 explained queue_full:1; 5-5 before 5 explained timeout:1"},
		{"a gap over two reports", 1, []step{event, drop, report, drop, event, report}, "2-3 before 3 explained queue_full:2"},
		{"waited when it was reported", 1, []step{event, wait, event, report, later}, "2-2 before 2 underway"},
		{"waited, and failed in the next report", 1, []step{
			event, wait, event, report, event,
			func(b *bench, m *mirror) { m.counts.waiting--; m.lost[true]["expired"]++ },
			report,
		}, "2-2 before 2 explained expired:1"},
		{"waited over two reports, and failed in the third", 1, []step{
			event, wait, event, report, wait, event, report,
			func(b *bench, m *mirror) { m.counts.waiting -= 2; m.lost[true]["expired"] += 2 },
			report,
		}, "2-2 before 2 explained expired:1; 4-4 before 4 explained expired:1"},
		{"delivered, as the report says, and not here", 1, []step{
			event, func(b *bench, m *mirror) { m.request(b.clock.now(), "/elsewhere") }, event, report,
		}, "2-2 before 2 unexplained"},
		{"more is missing than lost", 1, []step{
			event, drop, func(b *bench, m *mirror) { m.request(b.clock.now(), "/elsewhere") }, event, report,
		}, "2-3 before 2 unexplained queue_full:1"},
		{"an older pipeline, whose first numbers others had", -time.Hour, []step{drop, event, drop, event, later}, "3-3 before 2 unreported"},
		{"of an older pipeline, the first report says too much", -time.Hour, []step{drop, event, drop, event, report, drop, event, report},
			"3-3 before 2 unknown; 5-5 before 4 explained queue_full:1"},
		{"an old report that comes late", 1, []step{
			event, drop, event, func(b *bench, m *mirror) { late = m.report(b.clock.now()) }, drop, event, report, arrive,
		}, "2-2 before 2 explained queue_full:2 among 2 of 1-5; 4-4 before 3 explained queue_full:2 among 2 of 1-5"},
		{"a report before any event", 1, []step{report, event, drop, event, report}, "2-2 before 3 explained queue_full:1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, nil)
			m := newMirror(b.clock.now().Add(tc.began))
			for _, s := range tc.steps {
				s(b, m)
			}
			if got := told(b.gaps()); got != tc.want {
				t.Errorf("got %q; want %q", got, tc.want)
			}
		})
	}
}

func TestStreamsOfDifferentPipelinesAreApart(t *testing.T) {
	b := newBench(t, nil)
	one, two := newMirror(b.clock.now().Add(time.Second)), newMirror(b.clock.now().Add(2*time.Second))
	b.deliver(one.request(b.clock.now(), "/"), two.request(b.clock.now(), "/"))
	one.lose("memory", false)
	b.deliver(one.request(b.clock.now(), "/"), two.request(b.clock.now(), "/"), one.report(b.clock.now()), two.report(b.clock.now()))
	if got, want := told(b.gaps()), "2-2 before 3 explained memory:1"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

func TestGapsAreBounded(t *testing.T) {
	b := newBench(t, func(s *settings) { s.keep = 800 })
	m := newMirror(b.clock.now().Add(time.Second))
	for range 1000 {
		b.deliver(m.request(b.clock.now(), "/"))
		m.lose("queue_full", false)
	}
	for range maxWindows + 50 {
		m.lose("queue_full", false)
		b.deliver(m.report(b.clock.now()))
	}
	for i := range maxStreams + 20 {
		other := newMirror(b.clock.now().Add(time.Duration(i+5) * time.Second))
		other.lose("queue_full", false)
		b.clock.add(time.Millisecond)
		b.deliver(other.request(b.clock.now(), "/"))
		if i == 50 {
			b.deliver(m.request(b.clock.now(), "/")) // so that it is not the oldest
		}
	}
	ss := b.kept.streams
	s := ss.list[key{m.source, m.boot}]
	if s == nil || ss.spans > 800 || len(s.windows) > maxWindows || len(ss.list) != maxStreams {
		t.Fatalf("got %d streams, %+v", len(ss.list), s)
	}
	n := 0
	for _, s := range ss.list {
		n += len(s.received)
	}
	if n != ss.spans {
		t.Errorf("got %d spans, counted %d", n, ss.spans)
	}
	b.clock.add(time.Minute)
	got := b.gaps()
	listed := uint64(0)
	for _, g := range got.List {
		listed += g.Last - g.First + 1
		if g.Source == m.source && g.Boot == m.boot && g.State != explained {
			t.Errorf("a gap whose reports were put together is %s", g.State)
		}
	}
	// Each of the others lacks one: of those that are forgotten, too.
	const want = 1000 + maxWindows + 50 + maxStreams + 20
	if got.Missing != want || got.Open != maxStreams+20 || listed+got.MoreOf+got.Forgotten != want {
		t.Errorf("got %d missing, %d without a reason, %d listed, %d more, %d forgotten; want %d, %d, and that these are all", got.Missing, got.Open, listed, got.MoreOf, got.Forgotten, want, maxStreams+20)
	}
}

// What is no longer kept was missing all the same, and its reasons are not for others.
func TestGapsBeforeWhatIsKeptAreCounted(t *testing.T) {
	b := newBench(t, func(s *settings) { s.keep = 1200 })
	m := newMirror(b.clock.now().Add(time.Second))
	for range 3000 {
		b.deliver(m.request(b.clock.now(), "/"))
		m.lose("queue_full", false)
	}
	b.deliver(m.report(b.clock.now()))
	b.clock.add(time.Minute)
	got := b.gaps()
	type sums struct{ missing, open, moreOf, forgotten, listed, more uint64 }
	count := func() sums {
		return sums{got.Missing, got.Open, got.MoreOf, got.Forgotten, uint64(len(got.List)), uint64(got.More)}
	}
	// Of 1199 rows with events, each has a gap before it but the last, which has one after it, too.
	if want := (sums{3000, 0, 1200 - maxGaps, 1800, maxGaps, 1200 - maxGaps}); count() != want {
		t.Errorf("got %+v; want %+v", count(), want)
	}
	if first := got.List[0]; first.First != 5002 || first.State != explained || first.Among != 3000 {
		t.Errorf("the first gap in the list: got %+v; want that before number 5003, one of 3000", first)
	}

	// Two are missing, and the report knows of one: that the other is forgotten does not
	// make it the reason of both.
	b = newBench(t, func(s *settings) { s.keep = 3 })
	m = newMirror(b.clock.now().Add(time.Second))
	request := func() { b.deliver(m.request(b.clock.now(), "/")) }
	m.request(b.clock.now(), "/elsewhere")
	request()
	request()
	m.lose("timeout", true)
	request()
	b.deliver(m.report(b.clock.now()))
	request() // and the first row is gone
	b.clock.add(time.Minute)
	got = b.gaps()
	if want := (sums{missing: 2, open: 2, forgotten: 1, listed: 1}); count() != want || told(got) != "4-4 before 3 unexplained timeout:1 among 2 of 1-5" {
		t.Errorf("got %+v, %s; want %+v, and that it is not explained", count(), told(got), want)
	}
	// Of an older pipeline, the first report cannot tell, and the second is not of what is
	// forgotten before it.
	b = newBench(t, func(s *settings) { s.keep = 4 })
	m = newMirror(b.clock.now().Add(-time.Hour))
	request()
	m.lose("timeout", true)
	for range 5 {
		request()
	}
	b.deliver(m.report(b.clock.now()))
	m.lose("queue_full", false)
	request()
	b.deliver(m.report(b.clock.now()))
	b.clock.add(time.Minute)
	got = b.gaps()
	if want := (sums{missing: 2, open: 1, forgotten: 1, listed: 1}); count() != want || told(got) != "8-8 before 8 explained queue_full:1" {
		t.Errorf("an older pipeline: got %+v, %s; want %+v, and that it is explained", count(), told(got), want)
	}
	b.kept.clear(b.clock.now())
	if got = b.gaps(); got.Missing != 0 || got.Forgotten != 0 {
		t.Errorf("when it was cleared: got %d missing, %d forgotten", got.Missing, got.Forgotten)
	}
}

// Spans hold what a set would, in whatever order numbers come.
func TestSpans(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var list spans
	set := map[uint64]bool{}
	for range 3000 {
		n := r.Uint64N(400) + 1
		list.add(span{first: n, last: n})
		set[n] = true
		for i, s := range list {
			if s.first > s.last || i > 0 && list[i-1].last+1 >= s.first {
				t.Fatalf("after %d: %v", n, list)
			}
		}
	}
	for range 200 {
		first := r.Uint64N(400)
		last := first + r.Uint64N(100)
		var want uint64
		for n := range set {
			if n >= first && n <= last {
				want++
			}
		}
		if got := list.between(first, last); got != want {
			t.Fatalf("%d to %d: got %d; want %d", first, last, got, want)
		}
	}
}
