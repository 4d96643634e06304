//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// isTrue checks that a report adds up, by what the contract says of it.
func (r reported) isTrue(t *testing.T) {
	t.Helper()
	d := r.was.Data
	_, digits, _ := strings.Cut(d.Sequence, "-")
	sequence, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		t.Errorf("got sequence %q; want that of the last event", d.Sequence)
	}
	if want := d.Filtered + d.SampledOut + sequence; d.Seen != want {
		t.Errorf("at %v: got %d seen; want %d = filtered + sampled out + the number in sequence: %+v", r.at, d.Seen, want, d)
	}
	if want := d.Delivered + sumOf(d.Dropped) + sumOf(d.Failed) + d.Waiting + d.InFlight; sequence != want {
		t.Errorf("at %v: got number %d; want %d = delivered + dropped + failed + waiting + in flight: %+v", r.at, sequence, want, d)
	}
	if d.Final && d.Waiting+d.InFlight != 0 {
		t.Errorf("at %v: got a final report with %d waiting, %d in flight; want none", r.at, d.Waiting, d.InFlight)
	}
	if r.id != r.was.ID || r.was.Type != reportType || r.was.SpecVersion != "1.0" {
		t.Errorf("at %v: got webhook-id %s of %+v; want the report's id", r.at, r.id, r.was)
	}
}

func sumOf(list []wireCount) (n uint64) {
	for _, c := range list {
		n += c.Count
	}
	return n
}

// reportsAt checks when reports came, and that each is true.
func (s *stage) reportsAt(want ...time.Duration) {
	s.t.Helper()
	got := []time.Duration{}
	for _, r := range s.told() {
		r.isTrue(s.t)
		got = append(got, r.at)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		s.t.Errorf("at %v: got reports at %v; want %v", s.time(), got, want)
	}
}

func (s *stage) lastReport() wireReportData {
	s.t.Helper()
	if len(s.told()) == 0 {
		s.t.Fatalf("at %v: got no report", s.time())
	}
	return s.told()[len(s.told())-1].was.Data
}

// modes are the ways of delivery, all of which reports must fit in with.
var modes = map[string]opts{
	"single, one worker": {"workers": 1}, "single": {"workers": 4}, "single, auto": {"workers": "auto"},
	"batches, one worker": {"workers": 1, "batch.maxEvents": 10}, "batches": {"workers": 4, "batch.maxEvents": 10}, "batches, auto": {"workers": "auto", "batch.maxEvents": 10},
}

// inEachMode runs do with each mode and the options.
func inEachMode(t *testing.T, options opts, script []reply, do func(t *testing.T, s *stage)) {
	for name, mode := range modes {
		all := opts{}
		for _, part := range []opts{mode, options} {
			for key, value := range part {
				all[key] = value
			}
		}
		t.Run(name, func(t *testing.T) { logged(func() { onStage(t, all, script, do) }) })
	}
}

func TestReportsComeWhenCountsHaveChanged(t *testing.T) {
	const m = time.Minute
	inEachMode(t, opts{"reportInterval": "1m"}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.send(3)
		s.wait(m - 1)
		s.reportsAt()
		s.wait(1)
		s.reportsAt(m)
		if d := s.lastReport(); d.Seen != 3 || d.Delivered != 3 || d.Final {
			t.Errorf("got %+v; want 3 seen, 3 delivered", d)
		}
		s.wait(10 * m) // in which nothing changes
		s.reportsAt(m)
		for range 180 {
			s.send(1)
			s.wait(time.Second)
		}
		s.reportsAt(m, 12*m, 13*m, 14*m)
		s.send(2)
		s.cancel()
		s.wait(gracePeriod)
		if d := s.lastReport(); !d.Final || d.Delivered != 185 || len(s.told()) != 5 {
			t.Errorf("got %d reports, the last %+v; want a fifth, final one with all 185 delivered", len(s.told()), d)
		}
		s.wait(10 * m)
		if len(s.told()) != 5 {
			t.Errorf("got %d reports; want none after the final one", len(s.told()))
		}
		s.send(1) // a late request
		s.wait(10 * m)
		if len(s.told()) != 5 {
			t.Errorf("got %d reports; want none after the final one", len(s.told()))
		}
		for _, r := range s.told() {
			r.isTrue(t)
		}
	})
}

func TestNoReportOfNothing(t *testing.T) {
	inEachMode(t, opts{"reportInterval": "1m"}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.wait(10 * time.Minute)
		s.reportsAt()
		s.cancel()
		s.wait(gracePeriod)
		s.reportsAt()
	})
}

func TestReportsCanBeSwitchedOff(t *testing.T) {
	inEachMode(t, opts{"reportInterval": 0}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.send(3)
		s.wait(time.Hour)
		s.cancel()
		s.wait(gracePeriod)
		s.reportsAt()
	})
}

func TestReportOfRequestsThatWereFilteredOnly(t *testing.T) {
	inEachMode(t, opts{"reportInterval": "1m", "methods": "POST"}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.send(7)
		s.wait(time.Minute)
		s.reportsAt(time.Minute)
		if d := s.lastReport(); d.Seen != 7 || d.Filtered != 7 || !strings.HasSuffix(d.Sequence, "-00000000000000000000") {
			t.Errorf("got %+v; want 7 filtered and number 0", d)
		}
	})
}

func TestReportThatGetsLostDoesNoHarm(t *testing.T) {
	for name, r := range map[string]reply{"refused": {err: errors.New("refused")}, "503": {status: 503}, "400": {status: 400}, "hang": {hang: true}, "413": {status: 413}} {
		t.Run(name, func(t *testing.T) {
			inEachMode(t, opts{"reportInterval": "1m"}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
				s.peer.reply = []reply{r, {status: 204}}
				s.send(3)
				s.wait(time.Minute)
				s.wait(30 * time.Second)
				if got := len(s.told()); got != 1 {
					t.Errorf("got %d attempts of a report; want one", got)
				}
				s.wait(30 * time.Second)
				s.reportsAt(time.Minute, 2*time.Minute) // as the first did not arrive
				s.wait(10 * time.Minute)
				s.reportsAt(time.Minute, 2*time.Minute)
				s.is(map[string]uint64{"delivered": 3})
			})
		})
	}
}

func TestNoReportWhileTheCircuitIsOpen(t *testing.T) {
	inEachMode(t, opts{"reportInterval": "1m", "circuitBreaker.failures": 1, "circuitBreaker.openFor": "30m", "retry.attempts": 1}, []reply{{status: 503}, {status: 204}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.wait(time.Second)
		s.state(breakerOpen)
		s.send(10)
		s.wait(29 * time.Minute)
		s.reportsAt()
		s.wait(2 * time.Minute)
		if len(s.told()) == 0 || s.told()[0].at < 30*time.Minute {
			t.Errorf("got reports %v; want the first when the circuit is half open", s.told())
			return
		}
		s.state(breakerClosed)
		if d := s.lastReport(); d.Seen != 11 || sumOf(d.Dropped) != 10 {
			t.Errorf("got %+v; want the ten that were dropped", d)
		}
	})
}

func TestReportTakesNoEventsPlace(t *testing.T) {
	t.Run("in the queue", func(t *testing.T) {
		for _, overflow := range []string{"dropNewest", "dropOldest"} {
			for _, size := range []int{1, 2, 10} {
				options := opts{"reportInterval": "1m", "queueSize": size, "overflow": overflow, "timeout": "10m", "maxAge": "1h", "workers": 1}
				t.Run(fmt.Sprint(overflow, " ", size), func(t *testing.T) {
					for _, batch := range []int{1, 2} {
						options["batch.maxEvents"] = batch
						logged(func() {
							onStage(t, options, nil, func(t *testing.T, s *stage) {
								for range batch {
									s.send(1)
								}
								s.wait(90 * time.Second) // a report is due
								s.send(size)
								s.is(map[string]uint64{"inFlight": uint64(batch), "waiting": uint64(size)})
								s.play()
								s.answerAll(reply{status: 204})
								s.wait(time.Second)
								s.gotEach(upTo(batch + size))
								if len(s.told()) != 1 {
									t.Errorf("got %d reports; want one", len(s.told()))
								}
							})
						})
					}
				})
			}
		}
	})
	t.Run("at a receiver that hangs with the report only", func(t *testing.T) {
		for name, options := range map[string]opts{"single": {"workers": 2}, "batches": {"workers": 2, "batch.maxEvents": 5}} {
			t.Run(name, func(t *testing.T) {
				options["reportInterval"] = "1m"
				options["queueSize"] = 10
				onStage(t, options, []reply{{status: 204}}, func(t *testing.T, s *stage) {
					s.peer.reply = []reply{{hang: true}}
					s.send(1)
					s.wait(time.Minute)
					if len(s.told()) != 1 {
						t.Fatalf("got %d reports; want one under way", len(s.told()))
					}
					for range 20 {
						s.send(5)
						s.wait(flush)
					}
					s.gotEach(upTo(101))
				})
			})
		}
	})
	t.Run("and while a batch is gathered, it neither ends it nor gets lost", func(t *testing.T) {
		onStage(t, opts{"reportInterval": "1m", "batch.maxEvents": 10, "batch.flushInterval": "10s", "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.wait(55 * time.Second)
			s.send(3)
			s.wait(7 * time.Second)
			s.send(3)
			s.wait(10 * time.Second)
			s.cameAs(upTo(6))
			s.cameAt(65 * time.Second)
			if len(s.told()) != 1 {
				t.Errorf("got %d reports; want one", len(s.told()))
			}
		})
	})
}

// It is under load that a report says most.
func TestReportsComeUnderLoad(t *testing.T) {
	inEachMode(t, opts{"reportInterval": "1s", "queueSize": 12}, []reply{{status: 204, delay: time.Second}}, func(t *testing.T, s *stage) {
		for s.time() < 10*time.Second {
			s.sendNow(12)
			s.wait(90 * time.Millisecond)
		}
		if len(s.told()) < 5 || len(s.told()) > 10 {
			t.Errorf("got %d reports in ten seconds; want one each, or when a worker is free", len(s.told()))
		}
		for _, r := range s.told() {
			r.isTrue(t)
		}
		if d := s.lastReport(); sumOf(d.Dropped) == 0 {
			t.Errorf("got %+v; want events dropped", d)
		}
	})
}

func TestReportTellsOfEarlyDrops(t *testing.T) {
	// Within a second, in which nobody else looks: looking books them.
	inEachMode(t, opts{"reportInterval": "500ms", "queueSize": 2, "timeout": "10m", "maxAge": "1h"}, nil, func(t *testing.T, s *stage) {
		s.send(200)
		s.play(reply{status: 204})
		s.answerAll(reply{status: 204})
		s.wait(500 * time.Millisecond)
		d := s.lastReport()
		s.reportsAt(500 * time.Millisecond)
		if n := s.tally(); d.Seen != 200 || sumOf(d.Dropped) != sum(n.Dropped) || sumOf(d.Dropped) < 50 {
			t.Errorf("got %+v; want the %d that were dropped", d, sum(n.Dropped))
		}
	})
}

func TestReportAtTheEndOfTraefik(t *testing.T) {
	defer func() { ending = false }()
	inEachMode(t, opts{"reportInterval": "1h"}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		ending = false
		s.send(3)
		s.wait(time.Second)
		signals <- syscall.SIGTERM
		synctest.Wait()
		s.reportsAt(time.Second)
		if d := s.lastReport(); d.Final || d.Delivered != 3 {
			t.Errorf("got %+v; want 3 delivered, and no end, as requests may still come", d)
		}
		ending = false
	})
}

func TestReportOnTheWire(t *testing.T) {
	inEachMode(t, opts{"reportInterval": "1m", "signingSecrets": secretOf(strings.Repeat("k", 24))}, []reply{{status: 400}, {status: 204}}, func(t *testing.T, s *stage) {
		var seen http.Header
		s.send(1)
		s.wait(time.Second)
		s.send(1)
		s.wait(time.Second)
		s.mu.Lock()
		s.inspect = func(req *http.Request) { seen = req.Header.Clone() }
		s.mu.Unlock()
		s.wait(time.Minute)
		want := contentTypes[formatCloudEvents]
		if s.pipe.set.batchEvents > 1 {
			want = batchType
		}
		if got := seen.Get("Content-Type"); got != want || seen.Get("Webhook-Signature") == "" {
			t.Errorf("got header %v; want %s and a signature", seen, want)
		}
		r := s.told()[0].was
		if fmt.Sprint(r.Data.Failed) != "[{rejected 1}]" || fmt.Sprint(r.Data.Dropped, r.Data.Truncated) != "[] []" {
			t.Errorf("got %+v; want one rejected", r.Data)
		}
		if since, err := time.Parse(time.RFC3339Nano, r.Data.Since); err != nil || !since.Equal(s.began) {
			t.Errorf("got since %s; want when the pipeline began, %v", r.Data.Since, s.began)
		}
	})
}
