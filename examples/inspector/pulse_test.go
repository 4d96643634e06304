package main

import (
	"testing"
	"time"
)

func TestPulse(t *testing.T) {
	c := newClock()
	p := newPulse(c.now())
	enter := func(latencies ...float64) {
		for _, ms := range latencies {
			p.event(c.now(), &row{Kind: "request", Latency: &ms})
		}
	}
	enter(1, 2, 3, 4, 100)
	p.delivery(c.now(), 500)
	p.refuse(c.now(), "signature")
	if got := p.since(c.now(), 0).Points; len(got) != 0 {
		t.Errorf("a second that is not over: got %+v", got)
	}
	c.add(time.Second)
	got := p.since(c.now(), 0).Points
	if len(got) != 1 || got[0].Events != 5 || got[0].Bytes != 500 || got[0].Refused != 1 || *got[0].Middle != 3 || *got[0].High != 100 || *got[0].Worst != 100 {
		t.Errorf("got %+v", got)
	}
	c.add(2 * time.Second)
	enter(7)
	c.add(time.Second)
	if got := p.since(c.now(), got[0].At+1).Points; len(got) != 2 || got[0].Events != 0 || got[1].Events != 1 {
		t.Errorf("since the second after: got %+v", got)
	}
	c.add((seconds + 5) * time.Second)
	if got := p.since(c.now(), 0).Points; len(got) != 0 {
		t.Errorf("after %d seconds without anything: got %+v", seconds, got)
	}
}

func TestPulseIsBounded(t *testing.T) {
	c := newClock()
	p := newPulse(c.now())
	for range 2 * seconds {
		for range 3 * maxSamples {
			ms := 1.0
			p.event(c.now(), &row{Kind: "request", Latency: &ms})
		}
		for range 10 {
			p.report(progress{Delivered: 1})
		}
		c.add(time.Second)
	}
	for i := range p.ring {
		if n := cap(p.ring[i].latencies); n > 2*maxSamples {
			t.Fatalf("a second has room for %d latencies", n)
		}
	}
	list := p.since(c.now(), 0)
	if len(list.Points) != seconds-1 || len(p.progress) != maxProgress {
		t.Errorf("got %d points, %d reports", len(list.Points), len(p.progress))
	}
	if got := list.Totals.Events; got != 2*seconds*3*maxSamples {
		t.Errorf("got %d events in all", got)
	}
}

// A clock that is set back does not write into seconds that were told.
func TestAClockThatIsSetBack(t *testing.T) {
	c := newClock()
	p := newPulse(c.now())
	c.add(10 * time.Second)
	told := p.since(c.now(), 0).Now / 1000
	c.add(-8 * time.Second)
	p.event(c.now(), &row{Kind: "request"})
	c.add(20 * time.Second)
	n := 0
	for _, point := range p.since(c.now(), told).Points {
		n += point.Events
	}
	if n != 1 {
		t.Errorf("got %d events after the time that was told; want 1", n)
	}
}
