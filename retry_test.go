package requestmirror

import (
	"testing"
	"time"
)

var retryAfterNow = time.Date(2026, 9, 18, 9, 41, 7, 0, time.UTC)

var retryAfterCases = []struct {
	value string
	want  time.Duration
}{
	{"", 0},
	{"0", 0},
	{"1", time.Second},
	{" 7 ", 7 * time.Second},
	{"120", 2 * time.Minute},
	{"172800", 48 * time.Hour},
	{"172801", 48 * time.Hour},
	{"9223372036854775807", 48 * time.Hour},
	{"99999999999999999999999999", 48 * time.Hour},
	{"-1", 0},
	{"1.5", 0},
	{"0x10", 0},
	{"1e3", 0},
	{"soon", 0},
	{"Fri, 18 Sep 2026 09:41:08 GMT", time.Second},
	{"Friday, 18-Sep-26 09:42:07 GMT", time.Minute},
	{"Fri Sep 18 10:41:07 2026", time.Hour},
	{"Fri, 18 Sep 2026 09:41:07 GMT", 0},
	{"Fri, 18 Sep 2020 09:41:07 GMT", 0},
	{"Fri, 18 Sep 2099 09:41:07 GMT", 48 * time.Hour},
	{"Fri, 99 Sep 2026 09:41:07 GMT", 0},
}

func TestRetryAfter(t *testing.T) {
	for _, c := range retryAfterCases {
		if got := retryAfter(c.value, retryAfterNow); got != c.want {
			t.Errorf("Retry-After %q: got %v; want %v", c.value, got, c.want)
		}
	}
}

func TestBackoffIsFullJitterUnderADoublingCeiling(t *testing.T) {
	set := settingsOf(t, opts{"retry.initialInterval": "100ms", "retry.maxInterval": "1s"})
	for n, ceiling := range []time.Duration{
		0, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond, time.Second, time.Second,
	} {
		if n == 0 {
			continue
		}
		longest := time.Duration(0)
		shortest := ceiling
		for i := 0; i < 500; i++ {
			wait := backoff(set, n)
			if wait > longest {
				longest = wait
			}
			if wait < shortest {
				shortest = wait
			}
		}
		// That none of 500 falls into a tenth has a chance of 10⁻²³.
		if longest > ceiling || longest < ceiling*9/10 || shortest < 0 || shortest > ceiling/10 {
			t.Errorf("after attempt %d: got waits of %v to %v; want 0 to %v", n, shortest, longest, ceiling)
		}
	}
}

func TestBackoffNeverExceedsMaxInterval(t *testing.T) {
	set := settingsOf(t, opts{"retry.initialInterval": "1h", "retry.maxInterval": "1ms"})
	for n := 1; n <= 100; n++ {
		if got := backoff(set, n); got < 0 || got > time.Millisecond {
			t.Errorf("after attempt %d: got %v; want at most 1ms", n, got)
		}
	}
	set = settingsOf(t, opts{"retry.initialInterval": "1ms", "retry.maxInterval": "1h", "retry.attempts": 100})
	for n := 1; n <= 100; n++ {
		if got := backoff(set, n); got < 0 || got > time.Hour {
			t.Errorf("after attempt %d: got %v; want at most 1h", n, got)
		}
	}
}
