package main

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"
)

// lane is what one chart of the strip says.
type lane struct{ Now, Keys, Label string }

func (p *tab) lane(name string) lane {
	p.t.Helper()
	return eval[lane](p, fmt.Sprintf(`({
		now: document.getElementById('%[1]s-now').innerText.trim(),
		keys: document.getElementById('%[1]s-keys').innerText.replace(/\s+/g, ' ').trim(),
		label: document.querySelector('#lane-%[1]s canvas').getAttribute('aria-label'),
	})`, name))
}

// ink is how high a colour of a lane reaches in the second so many before now, as a part
// of what the highest of all reaches; 0 if it is not there.
func (p *tab) ink(name, colour string, ago float64) float64 {
	p.t.Helper()
	return eval[float64](p, fmt.Sprintf(`(() => {
		const canvas = document.querySelector('#lane-%s canvas')
		const probe = document.createElement('i')
		probe.className = 'ink-%s'
		document.getElementById('strip').append(probe)
		const want = getComputedStyle(probe).color.match(/\d+/g).slice(0, 3).map(Number)
		probe.remove()
		const scale = canvas.width / canvas.clientWidth
		const x = Math.floor((300 - %g + 0.5) / 300 * canvas.clientWidth * scale)
		const { data } = canvas.getContext('2d').getImageData(x, 0, 1, canvas.height)
		for (let y = 0; y < canvas.height - scale; y++) {
			const at = y * 4
			if (data[at + 3] > 90 && want.every((value, i) => Math.abs(value - data[at + i]) < 40)) {
				return (canvas.clientHeight - 1 - y / scale) / (canvas.clientHeight - 12)
			}
		}
		return 0
	})()`, name, colour, ago))
}

func TestTheStripSaysWhatHappened(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 1920, 800, false)
	p.until(`document.getElementById('lost-now').innerText !== ''`)
	says := func(when string, want map[string]lane) {
		t.Helper()
		for _, name := range []string{"rate", "lost", "latency"} {
			got := p.lane(name)
			if want[name].Label == "" { // of no interest here
				got.Label = ""
			}
			if got != want[name] {
				t.Errorf("%s, %s: got %+v; want %+v", when, name, got, want[name])
			}
		}
	}
	inks := func(when string, list []struct {
		lane, colour string
		ago          float64
		want         float64
	}) {
		t.Helper()
		p.settled()
		for _, tc := range list {
			if got := p.ink(tc.lane, tc.colour, tc.ago); math.Abs(got-tc.want) > 0.05 {
				t.Errorf("%s, %s: %s reaches %.2f of the height %g seconds ago; want %.2f", when, tc.lane, tc.colour, got, tc.ago, tc.want)
			}
		}
	}
	nothing := map[string]lane{
		"rate":    {"0/s", "delivered, as reported", "Events received in each second; now 0, at most 1 in the last five minutes"},
		"lost":    {"no report yet", "", "Events lost in the last five minutes, as the reports say: none"},
		"latency": {"–", "median 95 % below", "Time from a request to the receipt of its event"},
	}
	says("at first", nothing)

	m := newMirror(b.clock.now())
	events := func(milliseconds ...int) {
		for _, late := range milliseconds {
			b.deliver(m.request(b.clock.now().Add(-time.Duration(late)*time.Millisecond), "/"))
		}
	}
	lose := func(n int, reason string, failed bool) {
		for range n {
			m.lose(reason, failed)
		}
	}
	b.deliver(m.report(b.clock.now()))
	b.clock.add(20 * time.Second) // 80 seconds before the end
	events(20, 20, 20, 20, 20, 20, 20, 20, 20, 20)
	lose(6, "queue_full", false)
	lose(2, "timeout", true)
	b.clock.add(20 * time.Second) // 60
	b.deliver(m.report(b.clock.now()))
	if w := b.answer(posted("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "x", b.clock.now(), encode(m.report(b.clock.now())))); w.Code != 401 {
		t.Errorf("a delivery with another secret was answered with %d", w.Code)
	}
	b.clock.add(20 * time.Second) // 40
	for _, reason := range []string{"queue_full", "network_error", "rejected", "server_error", "expired"} {
		lose(1, reason, reason != "queue_full")
	}
	lose(15, "network_error", true)
	events(10, 500, 20, 40, 30)
	b.clock.add(time.Second)
	events(250, 250)
	b.clock.add(19 * time.Second) // 20
	b.deliver(m.report(b.clock.now()))
	b.clock.add(19 * time.Second) // 1
	events(4, 4)
	b.clock.add(time.Second)
	p.until(`document.getElementById('rate-now').innerText === '2/s' && document.getElementById('lost-now').innerText === '28'`)
	after := map[string]lane{
		"rate":    {"2/s", "delivered 0.2/s, last report refused", "Events received in each second; now 2, at most 10 in the last five minutes"},
		"lost":    {"28", "network_error 16 queue_full 7 timeout 2 expired 1 others 2", "Events lost in the last five minutes, as the reports say: network_error 16, queue_full 7, timeout 2, expired 1, rejected 1, server_error 1"},
		"latency": {"4 ms", "median 95 % below 4 ms", "Time from a request to the receipt of its event: median 4 ms, 95 percent below 4 ms"},
	}
	says("afterwards", after)
	drawn := []struct {
		lane, colour string
		ago          float64
		want         float64
	}{
		{"rate", "main", 80, 1}, {"rate", "main", 40, 0.5}, {"rate", "main", 1, 0.2}, {"rate", "main", 50, 0},
		{"rate", "second", 70, 0.025}, {"rate", "second", 10, 0}, {"rate", "bad", 60, 0.1}, {"rate", "bad", 59, 0},
		// In the order of the reasons, from below; a report stands for the time since the one before.
		{"lost", "r0", 70, 6.0 / 20}, {"lost", "r2", 70, 8.0 / 20}, {"lost", "r3", 70, 0},
		{"lost", "r0", 30, 1.0 / 20}, {"lost", "r3", 30, 17.0 / 20}, {"lost", "r6", 30, 1}, {"lost", "r0", 10, 0},
		{"latency", "p95", 80, 20.0 / 500}, {"latency", "p95", 40, 1}, {"latency", "p50", 39, 0.5}, {"latency", "p50", 38, 0}, {"latency", "p95", 50, 0},
	}
	inks("afterwards", drawn)

	// Under the pointer is one second, and of what was lost what the report on it has.
	point := func(name string, ago float64) {
		t.Helper()
		eval[bool](p, fmt.Sprintf(`(() => {
			const canvas = document.querySelector('#lane-%s canvas')
			const { left, width } = canvas.getBoundingClientRect()
			return canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: left + (300 - %g + 0.25) / 300 * width }))
		})()`, name, ago))
	}
	point("rate", 80)
	says("80 seconds ago", map[string]lane{
		"rate": {Now: "10/s", Keys: "delivered 0.3/s refused"}, "lost": {Now: "8", Keys: "queue_full 6 timeout 2"},
		"latency": {Now: "20 ms", Keys: "median 95 % below 20 ms"},
	})
	point("latency", 40)
	says("40 seconds ago", map[string]lane{
		"rate": {Now: "5/s", Keys: "delivered 0.2/s refused"}, "lost": {Now: "20", Keys: "network_error 16 queue_full 1 expired 1 rejected 1 others 1"},
		"latency": {Now: "30 ms", Keys: "median 95 % below 500 ms"},
	})
	point("lost", 10)
	says("10 seconds ago", map[string]lane{
		"rate": {Now: "0/s", Keys: "delivered, as reported refused"}, "lost": {Now: "0"}, "latency": {Now: "–", Keys: "median 95 % below"},
	})
	eval[bool](p, `document.querySelector('#lane-lost canvas').dispatchEvent(new PointerEvent('pointerleave'))`)
	says("without a pointer", after)

	p.click("#clear")
	p.until(`document.getElementById('lost-now').innerText === 'no report yet'`)
	says("when it was cleared", nothing)
	for i := range drawn {
		drawn[i].want = 0
	}
	inks("when it was cleared", drawn)
}

// The strip is of all pipelines together, whenever each of them reports.
func TestTheStripOfTwoMirrors(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 1920, 800, false)
	p.until(`document.getElementById('lost-now').innerText !== ''`)
	one, two := newMirror(b.clock.now()), newMirror(b.clock.now().Add(time.Millisecond))
	two.source = "//edge-2/middlewares/mirror@file"
	b.deliver(one.report(b.clock.now()), two.report(b.clock.now()))
	for range 10 { // from 42 seconds before the end to 32
		b.clock.add(time.Second)
		for range 5 {
			b.deliver(one.request(b.clock.now(), "/"), two.request(b.clock.now(), "/"))
		}
	}
	for range 10 {
		one.lose("queue_full", false)
		two.lose("timeout", true)
	}
	b.clock.add(10 * time.Second) // 22
	b.deliver(one.report(b.clock.now()), two.report(b.clock.now()))
	for range 30 {
		two.lose("timeout", true)
	}
	for range 20 {
		b.deliver(two.request(b.clock.now(), "/"))
	}
	b.clock.add(10 * time.Second) // 12
	b.deliver(two.report(b.clock.now()))
	for range 20 {
		b.deliver(one.request(b.clock.now(), "/"))
	}
	b.clock.add(10 * time.Second) // 2
	b.deliver(one.report(b.clock.now()))
	b.clock.add(2 * time.Second)
	p.until(`document.getElementById('lost-now').innerText === '50'`)
	p.settled()
	for _, tc := range []struct {
		lane, colour string
		ago          float64
		want         float64
	}{
		// Of 20 in a second at most; the one says 50 in 20 seconds and so does the other.
		{"rate", "main", 22, 1}, {"rate", "second", 30, 5.0 / 20},
		// Then the other says 20 in ten seconds, and the one 20 in twenty.
		{"rate", "second", 15, 3.0 / 20},
		// And of the rest only the one has reported.
		{"rate", "second", 6, 0},
		// Lost, of 3 in a second at most: 10 in 20 seconds of each reason.
		{"lost", "r0", 30, 0.5 / 3}, {"lost", "r2", 30, 1.0 / 3}, {"lost", "r0", 15, 0}, {"lost", "r2", 15, 1}, {"lost", "r2", 6, 0},
	} {
		if got := p.ink(tc.lane, tc.colour, tc.ago); math.Abs(got-tc.want) > 0.05 {
			t.Errorf("%s: %s reaches %.2f of the height %g seconds ago; want %.2f", tc.lane, tc.colour, got, tc.ago, tc.want)
		}
	}
	if got, want := p.lane("rate").Keys, "delivered 3/s, last report"; got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

// Numbers say which time they are of.
func TestTheStripSaysOfWhen(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 1280, 800, false)
	p.until(`document.getElementById('lost-now').innerText !== ''`)
	says := func(when string, want ...string) {
		t.Helper()
		got := eval[[]string](p, `['rate', 'lost', 'latency'].map(name => ['now', 'of'].map(what => document.getElementById(name + '-' + what).innerText.trim()).join(' ').trim())`)
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %q; want %q", when, got, want)
		}
	}
	for _, got := range eval[[]string](p, `[...document.querySelectorAll('.lane .axis')].map(one => one.innerText.replace(/\s+/g, ' '))`) {
		if got != "5 min ago now" {
			t.Errorf("under a chart: got %q; want 5 min ago and now", got)
		}
	}
	says("at first", "0/s last second", "no report yet", "–")
	m := newMirror(b.clock.now())
	b.deliver(m.report(b.clock.now()))
	b.deliver(m.request(b.clock.now(), "/"))
	m.lose("timeout", true)
	b.clock.add(20 * time.Second)
	b.deliver(m.report(b.clock.now()))
	b.clock.add(10 * time.Second)
	p.until(`document.getElementById('lost-now').innerText === '1'`)
	says("afterwards", "0/s last second", "1 in 5 min", "0 ms 30 s ago")
	point := func(ago float64) {
		t.Helper()
		eval[bool](p, fmt.Sprintf(`(() => {
			const canvas = document.querySelector('#lane-rate canvas')
			const { left, width } = canvas.getBoundingClientRect()
			return canvas.dispatchEvent(new PointerEvent('pointermove', { clientX: left + (300 - %g + 0.25) / 300 * width }))
		})()`, ago))
	}
	point(30)
	says("30 seconds ago", "1/s 30 s ago", "1 in 20 s", "0 ms 30 s ago")
	point(5)
	says("5 seconds ago", "0/s 5 s ago", "0 5 s ago", "– 5 s ago")
}

// After a day of a site, all three charts are drawn, and say in numbers what is drawn.
func TestTheStripOfADay(t *testing.T) {
	b := newBench(t, nil)
	b.day()
	p, _ := b.open(t, 1280, 800, false)
	p.until(`document.getElementById('lost-now').innerText !== ''`)
	p.settled()
	for _, tc := range []struct {
		name string
		want lane
		inks map[string]int // with how many of the last 30 times ten seconds they are in; the last report came in the newest of these, and is not of all of it; where all events took as long, the median is drawn over the rest
	}{
		{"rate", lane{"3/s", "delivered 5.9/s, last report", "Events received in each second; now 3, at most 16 in the last five minutes"}, map[string]int{"main": 30, "second": 29, "bad": 0}},
		{"lost", lane{"385", "queue_full 307 timeout 78", "Events lost in the last five minutes, as the reports say: queue_full 307, timeout 78"}, map[string]int{"r0": 7, "r2": 7, "r1": 0}},
		{"latency", lane{"4 ms", "median 95 % below 6 ms", "Time from a request to the receipt of its event: median 4 ms, 95 percent below 6 ms"}, map[string]int{"p50": 30, "p95": 28}},
	} {
		if got := p.lane(tc.name); got != tc.want {
			t.Errorf("%s: got %+v; want %+v", tc.name, got, tc.want)
		}
		for colour, want := range tc.inks {
			got := 0
			for ago := 2.0; ago < 300; ago += 10 {
				if p.ink(tc.name, colour, ago) > 0 {
					got++
				}
			}
			if got != want {
				t.Errorf("%s: %s is drawn in %d of 30 places; want %d", tc.name, colour, got, want)
			}
		}
	}
}
