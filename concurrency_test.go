package requestmirror

import (
	"bytes"
	"encoding/json"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var concurrencyEpoch = time.Date(2026, 9, 18, 9, 41, 7, 0, time.UTC)

// scenario is a receiver, a load and what must come of them: a file of testdata/concurrency.
type scenario struct {
	About   string          `json:"about"`
	Seed    int64           `json:"seed"`
	Highest int             `json:"highest"`
	Phases  []scenarioPhase `json:"phases"`
	Limits  []limitAt       `json:"limits"`
}

// scenarioPhase is a stretch of time in which receiver and load are of one kind.
// Lengths of time are texts such as "150ms".
type scenarioPhase struct {
	Name      string  `json:"name"`
	For       string  `json:"for"`
	PerSecond float64 `json:"perSecond"` // events that come, at random; 0 is always busy
	RTT       string  `json:"rtt"`
	DriftsTo  string  `json:"driftsTo"` // the rtt at the end of the phase; empty if it stays
	Jitter    float64 `json:"jitter"`   // the share of the rtt that is random, exponentially distributed
	Knee      int     `json:"knee"`     // with more in flight, the rtt grows in proportion; 0 is never
	Connect   string  `json:"connect"`  // what an attempt takes longer that needs one connection more than there are
	Timeout   string  `json:"timeout"`  // 5s if empty
	// What goes wrong: "429", "503", "reset" or "hang", and with which attempts: a share
	// of all, those that find Capacity others under way, those after the first Rate of
	// each second. "400" goes wrong, too, but is the event's fault.
	Error    string  `json:"error"`
	Share    float64 `json:"share"`
	Capacity int     `json:"capacity"`
	Rate     int     `json:"rate"`

	Want phaseWant `json:"want"`
}

// phaseWant is what must hold for a phase; zero is nothing asked.
type phaseWant struct {
	MeanLimitMin float64 `json:"meanLimitMin"` // over time
	MeanLimitMax float64 `json:"meanLimitMax"`
	AttemptsMax  int     `json:"attemptsMax"`
	ErrorsMax    float64 `json:"errorsMax"`    // the share of the attempts that go wrong
	DeliveredMin float64 `json:"deliveredMin"` // the share of the events that came; of what highest would allow, if always busy
}

type limitAt struct {
	At  string `json:"at"`
	Min int    `json:"min"`
	Max int    `json:"max"`
}

// lasts reads a length of time of a scenario, or what is meant if there is none.
func lasts(t *testing.T, text, otherwise string) time.Duration {
	t.Helper()
	if text == "" {
		text = otherwise
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// simulated is an attempt under way.
type simulated struct {
	start, end time.Duration
	wrong      string
}

// virtualReceiver is what a phase's texts mean.
type virtualReceiver struct {
	phase       scenarioPhase
	from, to    time.Duration // of the phase, since the beginning
	rtt, drift  time.Duration
	connect     time.Duration
	timeout     time.Duration
	random      *rand.Rand
	connections int           // so far
	second      time.Duration // the present one, and what was taken in it
	taken       int
}

// meet begins an attempt while others are under way.
func meet(r *virtualReceiver, now time.Duration, others []simulated) simulated {
	p := r.phase
	inFlight := len(others) + 1
	busy := 0 // with attempts that it did not refuse
	for i := range others {
		if others[i].wrong == "" {
			busy++
		}
	}
	rtt := float64(r.rtt) + float64(r.drift)*float64(now-r.from)/float64(r.to-r.from)
	if p.Knee > 0 && inFlight > p.Knee {
		rtt *= float64(inFlight) / float64(p.Knee)
	}
	rtt *= 1 - p.Jitter + p.Jitter*r.random.ExpFloat64()
	if inFlight > r.connections {
		r.connections = inFlight
		rtt += float64(r.connect)
	}
	a := simulated{start: now, end: now + time.Duration(rtt)}
	if second := now / time.Second; second != r.second {
		r.second = second
		r.taken = 0
	}
	if p.Error != "" && (r.random.Float64() < p.Share || p.Capacity > 0 && busy >= p.Capacity || p.Rate > 0 && r.taken >= p.Rate) {
		r.taken--
		a.wrong = p.Error
		if p.Error == "hang" {
			a.end = now + r.timeout
		} else if p.Error != "400" {
			a.end = now + time.Duration(rtt)/4 // refused before the work
		}
	}
	r.taken++
	if a.end-now > r.timeout {
		a.wrong = "hang"
		a.end = now + r.timeout
	}
	return a
}

// course is what came of a scenario: the limit over time, and counts for each phase.
type course struct {
	times  []time.Duration // when the limit changed
	limits []int
	phases []phaseCourse
}

type phaseCourse struct {
	from, to                            time.Duration
	offered, attempts, wrong, delivered int
	possible                            float64 // deliveries, with highest under way all the time
}

// simulate drives adapt as a pipeline does: a delivery starts when an event waits
// and fewer than limit are under way.
func simulate(t *testing.T, s *scenario) *course {
	t.Helper()
	result := &course{}
	random := rand.New(rand.NewSource(s.Seed))
	c := newConcurrency(s.Highest)
	result.times = append(result.times, 0)
	result.limits = append(result.limits, c.limit)
	var flying []simulated
	now := time.Duration(0)
	waiting := 0
	r := &virtualReceiver{random: random}
	for _, phase := range s.Phases {
		r.phase = phase
		r.from = now
		r.to = now + lasts(t, phase.For, "")
		r.rtt = lasts(t, phase.RTT, "")
		r.drift = lasts(t, phase.DriftsTo, phase.RTT) - r.rtt
		r.connect = lasts(t, phase.Connect, "0s")
		r.timeout = lasts(t, phase.Timeout, "5s")
		count := phaseCourse{from: r.from, to: r.to, possible: float64(s.Highest) * float64(r.to-r.from) / float64(r.rtt+r.drift/2)}
		next := r.to // when an event comes
		if phase.PerSecond > 0 {
			next = now + time.Duration(random.ExpFloat64()/phase.PerSecond*float64(time.Second))
		}
		for {
			for len(flying) < c.limit && (waiting > 0 || phase.PerSecond == 0) {
				if phase.PerSecond > 0 {
					waiting--
				}
				flying = append(flying, meet(r, now, flying))
				count.attempts++
			}
			first := 0
			for i := 1; i < len(flying); i++ {
				if flying[i].end < flying[first].end {
					first = i
				}
			}
			if len(flying) == 0 || next < flying[first].end {
				if next >= r.to {
					break
				}
				now = next
				waiting++
				count.offered++
				next = now + time.Duration(random.ExpFloat64()/phase.PerSecond*float64(time.Second))
				continue
			}
			a := flying[first]
			if a.end >= r.to {
				break
			}
			now = a.end
			if a.wrong == "" {
				count.delivered++
			} else {
				count.wrong++
			}
			before := c.limit
			adapt(c, concurrencyEpoch.Add(now), now-a.start, len(flying), a.wrong != "" && a.wrong != "400")
			if c.limit < 1 || c.limit > s.Highest {
				t.Fatalf("%s: got a limit of %d after %v; want 1 to %d", s.About, c.limit, now, s.Highest)
			}
			if c.limit != before {
				result.times = append(result.times, now)
				result.limits = append(result.limits, c.limit)
			}
			flying[first] = flying[len(flying)-1]
			flying = flying[:len(flying)-1]
		}
		now = r.to
		result.phases = append(result.phases, count)
	}
	return result
}

// limitOf is the limit at a time.
func limitOf(c *course, at time.Duration) int {
	limit := 1
	for i, changed := range c.times {
		if changed > at {
			break
		}
		limit = c.limits[i]
	}
	return limit
}

// meanLimit is the limit's mean over time.
func meanLimit(c *course, from, to time.Duration) float64 {
	sum := 0.0
	for i, changed := range c.times {
		until := to
		if i+1 < len(c.times) && c.times[i+1] < to {
			until = c.times[i+1]
		}
		if changed < from {
			changed = from
		}
		if until > changed {
			sum += float64(c.limits[i]) * float64(until-changed)
		}
	}
	return sum / float64(to-from)
}

func TestConcurrencyScenarios(t *testing.T) {
	names, err := filepath.Glob(filepath.Join("testdata", "concurrency", "*.json"))
	if err != nil || len(names) < 9 {
		t.Fatalf("got %d scenarios (%v); want at least 9", len(names), err)
	}
	for _, name := range names {
		s := &scenario{}
		text, err := os.ReadFile(name)
		if err == nil {
			d := json.NewDecoder(bytes.NewReader(text))
			d.DisallowUnknownFields() // a misspelled want would ask for nothing
			err = d.Decode(s)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		label := strings.TrimSuffix(filepath.Base(name), ".json")
		c := simulate(t, s)
		for i, phase := range s.Phases {
			checkPhase(t, label, c, c.phases[i], phase)
		}
		for _, want := range s.Limits {
			at := lasts(t, want.At, "")
			if got := limitOf(c, at); got < want.Min || got > want.Max {
				t.Errorf("%s: got a limit of %d after %v; want %d to %d", label, got, at, want.Min, want.Max)
			}
		}
	}
}

func checkPhase(t *testing.T, label string, c *course, got phaseCourse, phase scenarioPhase) {
	t.Helper()
	want := phase.Want
	label += ", " + phase.Name
	mean := meanLimit(c, got.from, got.to)
	events := float64(got.offered)
	if phase.PerSecond == 0 {
		events = got.possible
	}
	delivered := 1.0
	if events > 0 {
		delivered = float64(got.delivered) / events
	}
	wrong := 0.0
	if got.attempts > 0 {
		wrong = float64(got.wrong) / float64(got.attempts)
	}
	t.Logf("%s: limit %d, mean %.1f; %d attempts, %.0f%% went wrong; %.0f%% delivered", label, limitOf(c, got.to), mean, got.attempts, 100*wrong, 100*delivered)
	if mean < want.MeanLimitMin {
		t.Errorf("%s: got a mean limit of %.1f; want at least %.1f", label, mean, want.MeanLimitMin)
	}
	if want.MeanLimitMax > 0 && mean > want.MeanLimitMax {
		t.Errorf("%s: got a mean limit of %.1f; want at most %.1f", label, mean, want.MeanLimitMax)
	}
	if want.AttemptsMax > 0 && got.attempts > want.AttemptsMax {
		t.Errorf("%s: got %d attempts; want at most %d", label, got.attempts, want.AttemptsMax)
	}
	if want.ErrorsMax > 0 && wrong > want.ErrorsMax {
		t.Errorf("%s: got %.2f of the attempts wrong; want at most %.2f", label, wrong, want.ErrorsMax)
	}
	if delivered < want.DeliveredMin {
		t.Errorf("%s: got %.2f of the events delivered; want at least %.2f", label, delivered, want.DeliveredMin)
	}
}

// endAnswered ends an attempt with an answer after took, and says when that is.
func endAnswered(c *concurrency, now time.Time, took time.Duration, inFlight int) time.Time {
	now = now.Add(took)
	adapt(c, now, took, inFlight, false)
	return now
}

// endRefused ends an attempt with a refusal.
func endRefused(c *concurrency, now time.Time, took time.Duration, inFlight int) time.Time {
	now = now.Add(took)
	adapt(c, now, took, inFlight, true)
	return now
}

func TestConcurrencyStartsAtOne(t *testing.T) {
	if c := newConcurrency(8); c.limit != 1 {
		t.Errorf("got a limit of %d; want 1", c.limit)
	}
}

func TestConcurrencyKeepsWithinOneAndTheHighest(t *testing.T) {
	for _, highest := range []int{1, 2, 7} {
		c := newConcurrency(highest)
		now := concurrencyEpoch
		for i := 0; i < 20; i++ {
			now = endAnswered(c, now, 100*time.Millisecond, c.limit)
			if c.limit < 1 || c.limit > highest {
				t.Errorf("highest %d: got a limit of %d; want 1 to %d", highest, c.limit, highest)
			}
		}
		if c.limit != highest {
			t.Errorf("got a limit of %d after 20 answers; want %d", c.limit, highest)
		}
		for i := 0; i < 20; i++ {
			now = endRefused(c, now, 100*time.Millisecond, c.limit)
			if c.limit < 1 || c.limit > highest {
				t.Errorf("highest %d: got a limit of %d; want 1 to %d", highest, c.limit, highest)
			}
		}
		if c.limit != 1 {
			t.Errorf("got a limit of %d after 20 refusals; want 1", c.limit)
		}
	}
}

func TestConcurrencyStaysWhereItIsWithoutNeed(t *testing.T) {
	c := newConcurrency(16)
	now := concurrencyEpoch
	for c.limit < 4 {
		now = endAnswered(c, now, 100*time.Millisecond, c.limit)
	}
	for i := 0; i < 20; i++ {
		now = endAnswered(c, now.Add(time.Hour), 100*time.Millisecond, 3)
		if c.limit != 4 {
			t.Fatalf("got a limit of %d with three under way; want 4", c.limit)
		}
	}
}

func TestConcurrencyChangesOncePerInterval(t *testing.T) {
	c := newConcurrency(100)
	now := concurrencyEpoch
	for c.limit < 40 {
		now = endAnswered(c, now, 100*time.Millisecond, c.limit)
	}
	for i := 0; i < 40; i++ {
		adapt(c, now.Add(99*time.Millisecond), 100*time.Millisecond, 40, i%2 == 0)
	}
	if c.limit != 40 {
		t.Errorf("got a limit of %d within a round trip; want 40", c.limit)
	}
	for i := 0; i < 40; i++ {
		adapt(c, now.Add(100*time.Millisecond), 100*time.Millisecond, 40, i%2 == 0)
	}
	if c.limit != 36 {
		t.Errorf("got a limit of %d after an interval with refusals; want 36", c.limit)
	}
}

func TestConcurrencyFallsToOneInFewTimeouts(t *testing.T) {
	c := newConcurrency(64)
	now := concurrencyEpoch
	for c.limit < 64 {
		now = endAnswered(c, now, 100*time.Millisecond, c.limit)
	}
	timeouts := 0
	for c.limit > 1 && timeouts < 1000 {
		now = now.Add(5 * time.Second)
		for i := c.limit; i > 0; i-- { // all under way at once
			adapt(c, now, 5*time.Second, i, true)
			timeouts++
		}
	}
	// Half of them each time: 64, 32, 16, 8, 4, 2.
	if timeouts != 126 {
		t.Errorf("got a limit of %d after %d timeouts; want 1 after 126", c.limit, timeouts)
	}
}

func TestConcurrencyDoesNotTakeARefusalForAnAnswer(t *testing.T) {
	c := newConcurrency(16)
	now := endRefused(c, concurrencyEpoch, time.Millisecond, 1)
	for i := 0; i < 3; i++ {
		now = endAnswered(c, now, 200*time.Millisecond, c.limit)
	}
	if c.limit != 4 {
		t.Errorf("got a limit of %d after a quick refusal and three answers; want 4", c.limit)
	}
}
