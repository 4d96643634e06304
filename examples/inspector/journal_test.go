package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
)

// found is an event as the API has it.
type found struct {
	N        uint64          `json:"n"`
	Repeats  int             `json:"repeats"`
	Problems []string        `json:"problems"`
	Delivery about           `json:"delivery"`
	Event    json.RawMessage `json:"event"`
}

func (b *bench) found(id string) (f found) {
	b.t.Helper()
	w := b.get("/api/events/" + strings.ReplaceAll(id, "/", "%2F"))
	if err := json.Unmarshal(w.Body.Bytes(), &f); err != nil {
		b.t.Fatalf("%s: %s", id, w.Body)
	}
	return f
}

func (b *bench) gaps() gapList {
	gaps, _, _ := b.kept.state(b.clock.now(), 0)
	return gaps
}

func (b *bench) rows() [][]byte {
	rows, _, _, _ := b.kept.since(place{}, 1<<20)
	return rows
}

// stats are the totals, with the refusals as text.
func stats(b *bench) (s struct {
	totals
	Refused []byte
}) {
	_, pulse, _ := b.kept.state(b.clock.now(), 0)
	s.totals = pulse.Totals
	s.Refused = encode(pulse.Totals.Refused)
	return s
}

func TestNoMoreEventsAreKeptThanAllowed(t *testing.T) {
	b := newBench(t, func(s *settings) { s.keep = 10 })
	m := newMirror(b.clock.now().Add(time.Second))
	var ids []string
	for i := range 25 {
		e := m.request(b.clock.now(), fmt.Sprintf("/%d", i))
		ids = append(ids, e["id"].(string))
		b.deliver(e)
		lines := b.lines()
		if want := min(i+1, 10); len(lines) != want || !strings.Contains(lines[len(lines)-1], fmt.Sprintf(`"path":"/%d"`, i)) || !strings.Contains(lines[0], fmt.Sprintf(`"path":"/%d"`, max(0, i-9))) {
			t.Fatalf("after %d events: got %d lines; want the last %d", i+1, len(lines), want)
		}
	}
	if w := b.get("/api/events/" + ids[14]); w.Code != 404 {
		t.Errorf("an event that was dropped: got status %d; want 404", w.Code)
	}
	if got := b.found(ids[15]); !strings.Contains(string(got.Event), `"path":"/15"`) {
		t.Errorf("the oldest that is kept: got %s", got.Event)
	}
	// It is gone, but not forgotten.
	e := m.request(b.clock.now(), "/0")
	e["id"] = ids[0]
	b.deliver(e)
	if lines := b.lines(); strings.Contains(lines[9], `"path":"/0"`) {
		t.Error("an event that came again long after was taken twice")
	}
	j := b.kept
	if len(j.byID) != 10 || len(j.entries) != 10 {
		t.Errorf("got %d ids, %d entries; want 10, 10", len(j.byID), len(j.entries))
	}
}

func TestNoMoreBytesAreKeptThanAllowed(t *testing.T) {
	b := newBench(t, func(s *settings) { s.memory = 100 << 10 })
	m := newMirror(b.clock.now().Add(time.Second))
	for i := range 60 {
		e := m.request(b.clock.now(), "/")
		body := strings.Repeat("x", 5000*(i%4))
		of(e, "data", "http", "request")["body"] = object{"content": body, "size": len(body), "truncated": false}
		b.deliver(e)
		var sum int64
		j := b.kept
		for n := j.first; n <= j.last; n++ {
			sum += j.at(n).size()
		}
		if sum != j.held || sum > 100<<10 {
			t.Fatalf("after %d events: %d bytes are kept, %d are counted; want as many, at most %d", i+1, sum, j.held, 100<<10)
		}
		if i > 30 && sum < 50<<10 {
			t.Fatalf("after %d events: only %d bytes are kept", i+1, sum)
		}
	}
	// One that is larger than all room is kept alone.
	e := m.request(b.clock.now(), "/large")
	of(e, "data", "http", "request")["body"] = object{"content": strings.Repeat("x", 200<<10), "size": 200 << 10, "truncated": false}
	b.deliver(e)
	if lines := b.lines(); len(lines) != 1 || !strings.Contains(lines[0], "/large") {
		t.Errorf("got %d events; want the large one alone", len(lines))
	}
}

func TestAnEventThatComesAgainIsCounted(t *testing.T) {
	b := newBench(t, nil)
	m := newMirror(b.clock.now().Add(time.Second))
	e := m.request(b.clock.now(), "/")
	b.deliver(e, e, m.request(b.clock.now(), "/"), e)
	if got := b.found(e["id"].(string)); got.Repeats != 2 || got.N != 1 {
		t.Errorf("got event %d with %d repeats; want 1 with 2", got.N, got.Repeats)
	}
	if n := len(b.lines()); n != 2 {
		t.Errorf("got %d events; want 2", n)
	}
}

func TestTheGenerationsOfIdsAreBounded(t *testing.T) {
	j := newJournal(time.Now(), 1, 1<<20)
	for i := range 2*remember + 10 {
		if j.known(fmt.Sprint(i)) {
			t.Fatalf("%d is known before it came", i)
		}
	}
	if len(j.ids) != 10 || len(j.old) != remember {
		t.Errorf("got %d and %d ids; want 10 and %d", len(j.ids), len(j.old), remember)
	}
	if !j.known(fmt.Sprint(remember)) {
		t.Errorf("one of the last %d is not known", remember)
	}
}

func TestAReaderGoesOnWhereItWas(t *testing.T) {
	b := newBench(t, func(s *settings) { s.keep = 10 })
	m := newMirror(b.clock.now().Add(time.Second))
	more := func(n int) {
		for range n {
			b.deliver(m.request(b.clock.now(), "/"))
		}
	}
	j := b.kept
	read := func(p place, most int) (numbers []uint64, next place, anew bool) {
		rows, next, anew, _ := j.since(p, most)
		for _, raw := range rows {
			var r row
			if err := json.Unmarshal(raw, &r); err != nil {
				t.Fatal(err)
			}
			numbers = append(numbers, r.N)
		}
		return numbers, next, anew
	}
	expect := func(about string, p place, most int, want string) place {
		t.Helper()
		numbers, next, anew := read(p, most)
		if got := fmt.Sprintln(numbers, anew); strings.TrimSpace(got) != want {
			t.Errorf("%s: got %s; want %s", about, got, want)
		}
		return next
	}
	more(5)
	p := expect("a new reader", place{}, 3, "[1 2 3] true")
	p = expect("it goes on", p, 3, "[4 5] false")
	p = expect("nothing new", p, 3, "[] false")
	more(10)
	expect("all that came is still there", p, 100, "[6 7 8 9 10 11 12 13 14 15] false")
	more(1)
	expect("one was dropped before it was read", p, 100, "[7 8 9 10 11 12 13 14 15 16] true")
	expect("a place of another process", place{"elsewhere", 16}, 100, "[7 8 9 10 11 12 13 14 15 16] true")
	expect("a place that is not there yet", place{j.epoch, 99}, 1, "[7] true")
	p = expect("the end", place{j.epoch, 16}, 100, "[] false")
	j.clear(b.clock.now())
	expect("after it was cleared", p, 100, "[] true")
	more(2)
	expect("what came then", p, 100, "[1 2] true")
}

func TestClearForgetsEventsAndGaps(t *testing.T) {
	b := newBench(t, nil)
	m := newMirror(b.clock.now().Add(time.Second))
	b.deliver(m.request(b.clock.now(), "/1"))
	m.lose("queue_full", false)
	last := m.request(b.clock.now(), "/3")
	b.deliver(last, m.report(b.clock.now()))
	if got := b.gaps(); got.Missing != 1 {
		t.Fatalf("got %d missing; want 1", got.Missing)
	}
	b.kept.clear(b.clock.now())
	b.deliver(last, m.request(b.clock.now(), "/4"), m.report(b.clock.now()))
	b.clock.add(time.Minute)
	if got, lines := b.gaps(), b.lines(); got.Missing != 0 || len(lines) != 2 {
		t.Errorf("got %d missing, %d events; want 0, 2", got.Missing, len(lines))
	}
}
