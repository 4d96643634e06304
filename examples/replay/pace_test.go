//go:build go1.25

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// lines are requests at times since noon.
func lines(at ...time.Duration) string {
	var all strings.Builder
	for i, d := range at {
		all.WriteString(line(recorded{id: fmt.Sprint(i), at: d}))
	}
	return all.String()
}

const ms = time.Millisecond

// TestPace runs where time passes only when all are waiting, so every moment is exact.
func TestPace(t *testing.T) {
	every := func(n int, d time.Duration) (list []time.Duration) {
		for i := range n {
			list = append(list, time.Duration(i)*d)
		}
		return list
	}
	for _, tc := range []struct {
		name    string
		at      []time.Duration
		options options       // speed 1 and 16 connections, if empty; max is -1
		service time.Duration // that an answer takes
		reading time.Duration // that a line takes
		want    string        // when requests were sent
		most    int           // under way at once
		says    []string      // in the summary
		not     string
	}{
		{"as they came", []time.Duration{0, 100 * ms, 100 * ms, 2 * time.Second}, options{}, ms, 0,
			"[0s 100ms 100ms 2s]", 2, []string{"sent       4 in 2s, 2.0 per second\n", "latency    p50 1ms,", "lateness   p50 0s, p90 0s, p99 0s, longest 0s\n"}, "more than 10ms"},
		{"ten times as fast", []time.Duration{0, 100 * ms, 2 * time.Second}, options{speed: 10}, ms, 0, "[0s 10ms 200ms]", 1, nil, "more than 10ms"},
		{"half as fast", []time.Duration{0, 100 * ms, 2 * time.Second}, options{speed: 0.5}, ms, 0, "[0s 200ms 4s]", 1, nil, "more than 10ms"},
		{"not in order in the file", []time.Duration{100 * ms, 0, 300 * ms, 200 * ms}, options{}, ms, 0, "[0s 100ms 200ms 300ms]", 1, nil, "disorder"},
		{"out of order by more than the window: at once", []time.Duration{0, 300 * ms, 100 * ms, 400 * ms}, options{window: 1}, ms, 0,
			"[0s 300ms 300ms 400ms]", 2, []string{"disorder   1 came"}, "more than 10ms"},
		{"as fast as the connections allow", every(9, time.Hour), options{speed: -1, connections: 3}, 10 * ms, 0,
			"[0s 0s 0s 10ms 10ms 10ms 20ms 20ms 20ms]", 3, []string{"sent       9 in 30ms, 300.0 per second\n"}, "lateness"},
		{"a slow target, which many connections make up for", every(20, 100*ms), options{}, 950 * ms, 0, fmt.Sprint(every(20, 100*ms)), 10, nil, "more than 10ms"},
		{"a slow target and one connection", every(4, 100*ms), options{connections: 1}, 300 * ms, 0,
			"[0s 300ms 600ms 900ms]", 1, []string{"longest 600ms\n", "3 were more than 10ms late as all 1 connections were busy"}, "keep the pace"},
		{"late because of those before, on a connection that is free", []time.Duration{0, 100 * ms, 299 * ms}, options{connections: 1}, 150 * ms, 0,
			"[0s 150ms 300ms]", 1, []string{"1 were more than 10ms late as all"}, "keep the pace"},
		{"a pause makes up for it", []time.Duration{0, 100 * ms, 200 * ms, 5 * time.Second}, options{connections: 1}, 300 * ms, 0,
			"[0s 300ms 600ms 5s]", 1, []string{"2 were more than 10ms late as all"}, "keep the pace"},
		{"a slow file", every(4, 100*ms), options{window: 1}, ms, 250 * ms,
			"[0s 250ms 500ms 750ms]", 1, []string{"longest 450ms\n", "3 were more than 10ms late as this program could not keep the pace"}, "busy"},
		{"for a time", every(100, 100*ms), options{period: 250 * ms}, ms, 0, "[0s 100ms 200ms]", 1, []string{"sent       3 in 201ms"}, ""},
		{"for a time, which a slow target uses up", every(100, 100*ms), options{period: 700 * ms, connections: 1}, 300 * ms, 0, "[0s 300ms 600ms]", 1, nil, ""},
		{"for a time, as fast as it can", every(100, 100*ms), options{period: 250 * ms, speed: -1, connections: 1}, 100 * ms, 0, "[0s 100ms 200ms]", 1, nil, ""},
		{"some", every(100, 100*ms), options{limit: 2}, ms, 0, "[0s 100ms]", 1, []string{"sent       2 in"}, ""},
		{"an answer that does not come", every(2, 100*ms), options{timeout: 2 * time.Second}, time.Hour, 0,
			"[0s 100ms]", 2, []string{"sent       2 in 2.1s,", "statuses   none\nno answer  2: timeout 2; the last: "}, "more than 10ms"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := tc.options
				switch o.speed {
				case 0:
					o.speed = 1
				case -1:
					o.speed = 0
				}
				if o.connections == 0 {
					o.connections = 16
				}
				if o.window == 0 {
					o.window = 1000
				}
				if o.timeout == 0 {
					o.timeout = time.Minute
				}
				o.to = mustTarget(t, "http://127.0.0.1")
				target := &slowTarget{began: time.Now(), service: tc.service}
				sum := newSummary(io.Discard)
				p := &player{options: o, sum: sum, stderr: io.Discard, transport: target}
				s := newStream("input", strings.NewReader(lines(tc.at...)), o.window, sum)
				source := merge([]*stream{s})
				read := 0
				p.play(context.Background(), func() (*event, bool) {
					if read++; read > 1 {
						time.Sleep(tc.reading)
					}
					return source()
				})
				var out strings.Builder
				sum.print(&out, o)
				slices.Sort(target.at)
				if got := fmt.Sprint(target.at); got != tc.want || target.most != tc.most || target.now != 0 {
					t.Errorf("got %s, %d at once, %d still under way; want %s, %d, none", got, target.most, target.now, tc.want, tc.most)
				}
				for _, want := range tc.says {
					if !strings.Contains(out.String(), want) {
						t.Errorf("got\n%s\nwant %q in it", out.String(), want)
					}
				}
				if tc.not != "" && strings.Contains(out.String(), tc.not) {
					t.Errorf("got\n%s\nwant no %q in it", out.String(), tc.not)
				}
			})
		})
	}
}

// slowTarget answers after a while.
type slowTarget struct {
	began   time.Time
	service time.Duration

	mu        sync.Mutex
	at        []time.Duration // when requests came
	now, most int             // under way
}

func (s *slowTarget) RoundTrip(req *http.Request) (*http.Response, error) {
	s.mu.Lock()
	s.at = append(s.at, time.Since(s.began))
	s.now++
	s.most = max(s.most, s.now)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.now--
	}()
	select {
	case <-time.After(s.service):
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
}

func TestTheFirstSignalEndsTheRunWell(t *testing.T) {
	for _, tc := range []struct {
		name        string
		connections int
		want        string
		took        time.Duration
	}{
		{"while it waits for the next request", 16, "[0s 1s]", 4 * time.Second},
		{"while it waits for a connection", 1, "[0s]", 3 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(context.Background())
				target := &slowTarget{began: time.Now(), service: 3 * time.Second}
				sum := newSummary(io.Discard)
				o := options{to: mustTarget(t, "http://127.0.0.1"), speed: 1, connections: tc.connections, timeout: time.Minute, window: 10}
				p := &player{options: o, sum: sum, stderr: io.Discard, transport: target}
				time.AfterFunc(1500*ms, cancel)
				p.play(ctx, merge([]*stream{newStream("input", strings.NewReader(lines(0, time.Second, 10*time.Second)), 10, sum)}))
				if got := fmt.Sprint(target.at); got != tc.want || target.now != 0 || time.Since(target.began) != tc.took || sum.statuses[200] != len(target.at) {
					t.Errorf("got %s, %d still under way after %s, %d answers; want %s, none after %s, all", got, target.now, time.Since(target.began), sum.statuses[200], tc.want, tc.took)
				}
			})
		})
	}
}

func TestALongRunSaysHowFarItIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told strings.Builder
		target := &slowTarget{began: time.Now(), service: 6 * time.Second}
		sum := newSummary(io.Discard)
		o := options{to: mustTarget(t, "http://127.0.0.1"), speed: 1, connections: 1, timeout: time.Minute, window: 10}
		p := &player{options: o, sum: sum, stderr: &told, transport: target}
		p.play(context.Background(), merge([]*stream{newStream("input", strings.NewReader(lines(0, time.Second, 19*time.Second)), 10, sum)}))
		want := "6s: 2 sent, 1 under way, 5s late\n11s: 2 sent, 1 under way, 5s late\n16s: 2 sent, 0 under way, 5s late\n"
		if got := told.String(); got != want {
			t.Errorf("got\n%s\nwant\n%s", got, want)
		}
	})
}

func TestLatenessHasTwoCauses(t *testing.T) {
	at := func(d time.Duration) time.Time { return noon.Add(d) }
	var p pace
	for i, tc := range []struct{ due, ready, acquired, busy, own time.Duration }{
		{0, 0, 0, 0, 0},
		{100, 100, 100, 0, 0},
		{200, 200, 500, 300, 0},  // waited for a connection
		{300, 500, 500, 200, 0},  // and so does the next one, though it did not
		{400, 500, 600, 200, 0},  // and this one waited, too
		{500, 750, 750, 200, 50}, // the program has lost something as well
		{700, 760, 760, 60, 0},   // the plan has made up for it
		{800, 790, 800, 10, 0},   // ready before it was due
		{900, 900, 900, 0, 0},
		{1000, 1300, 1300, 0, 300},
		{1100, 1300, 1400, 100, 200},
	} {
		busy, own := p.late(at(tc.due), at(tc.ready), at(tc.acquired))
		if busy != tc.busy || own != tc.own {
			t.Errorf("%d: got %d for connections, %d for the program; want %d, %d", i, busy, own, tc.busy, tc.own)
		}
	}
}

func TestKindsOfErrors(t *testing.T) {
	for want, err := range map[string]error{
		"timeout":    fmt.Errorf("read: %w", context.DeadlineExceeded),
		"broken off": errors.New("unexpected EOF"),
	} {
		if got := kindOf(err); got != want {
			t.Errorf("%v: got %s; want %s", err, got, want)
		}
	}
}
