package requestmirror

import (
	"math/rand"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// backoff is the wait after the n-th attempt (n ≥ 1): full jitter, that is a random
// time up to initialInterval·2ⁿ⁻¹, at most maxInterval. All events of an outage would
// come back at the same moment otherwise.
func backoff(set *settings, n int) time.Duration {
	ceiling := set.initialInterval
	for i := 1; i < n && ceiling < set.maxInterval; i++ {
		ceiling *= 2
	}
	if ceiling > set.maxInterval {
		ceiling = set.maxInterval
	}
	return time.Duration(rand.Int63n(int64(ceiling) + 1))
}

// longestRetryAfter is beyond any maxAge; larger values only overflow.
const longestRetryAfter = 48 * time.Hour

// retryAfter reads a Retry-After header (RFC 9110, 10.2.3): seconds or a date. Zero
// means none, past or unreadable.
func retryAfter(value string, now time.Time) time.Duration {
	value = strings.TrimSpace(value)
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 63); err == nil {
		if seconds > uint64(longestRetryAfter/time.Second) {
			return longestRetryAfter
		}
		return time.Duration(seconds) * time.Second
	} else if isDigits(value) {
		return longestRetryAfter
	}
	at, err := http.ParseTime(value)
	if err != nil || !at.After(now) {
		return 0
	}
	if wait := at.Sub(now); wait < longestRetryAfter {
		return wait
	}
	return longestRetryAfter
}

func isDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }
