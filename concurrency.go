package requestmirror

import "time"

// concurrency decides how many deliveries may be under way at once, for workers: auto.
// It goes by additive increase and multiplicative decrease, as TCP does, and by round
// trips, as Vector's adaptive request concurrency does. The pipeline's lock guards it
// all. It has no timer: while nothing is delivered, nothing changes.
//
// What attempts come to is gathered over an interval of about one round trip, and
// judged once, at the first attempt that ends after it. What a change of the limit does
// is not seen before the attempts that it let go, or kept back, would have ended.
type concurrency struct {
	limit   int // 1 to highest; for the pipeline to read
	highest int

	// Of the present interval, which ends at until.
	until      time.Time
	answers    int           // attempts that were not pushed back
	total      time.Duration // their round trips
	pushedBack bool          // whether another was
	reached    bool          // whether limit deliveries were under way at once

	// Round trips of the intervals so far, in nanoseconds; zero before the first answer.
	mean float64 // the newest ones weigh most
	base float64 // what the receiver takes when it is not us who make it slow
}

const (
	meanWeight    = 0.4 // of the newest interval in the mean, as in Vector: the last five make up nine tenths
	baseWeight    = 0.2 // of a mean below the base: a lucky one must not make all that follow look slow
	decreaseRatio = 0.9 // as in Vector
	// slowdown is how many times its base a receiver may take. At 1.5, a third of a
	// round trip is spent waiting in the receiver, so more at once would only wait longer.
	slowdown = 1.5
	// timingNoise is what Traefik may add to a round trip: scheduling, garbage collection.
	timingNoise = float64(2 * time.Millisecond)
	// shortestInterval is for receivers that answer at once: a change thousands of times
	// a second, each for one or two answers, would be noise.
	shortestInterval = 50 * time.Millisecond
)

// newConcurrency starts with one delivery at a time: the receiver is not known yet.
func newConcurrency(highest int) *concurrency {
	return &concurrency{limit: 1, highest: highest}
}

// adapt takes in an attempt that ended now: took is its round trip, inFlight how many
// deliveries were under way, its own included, and pushedBack whether it met a receiver
// in trouble: 429, 5xx, a timeout, no connection. It runs interpreted for each attempt,
// so what is for each interval only is not in here.
func adapt(c *concurrency, now time.Time, took time.Duration, inFlight int, pushedBack bool) {
	if pushedBack {
		c.pushedBack = true // how long it took says nothing: refusals are quick, timeouts our own
	} else {
		c.answers++
		c.total += took
	}
	if inFlight >= c.limit {
		c.reached = true
	}
	if !now.Before(c.until) {
		conclude(c, now)
	}
}

// conclude judges the interval that ends now, sets the limit and begins the next interval.
func conclude(c *concurrency, now time.Time) {
	slow := c.answers > 0 && isSlow(c, float64(c.total)/float64(c.answers))
	if c.pushedBack && c.answers == 0 {
		c.limit /= 2 // nothing gets through; steps of a tenth, each after a timeout, would take minutes
	} else if c.pushedBack || slow {
		c.limit = int(float64(c.limit) * decreaseRatio) // at least one less, as it rounds down
	} else if c.reached && c.limit < c.highest {
		c.limit++ // only if needed: nothing tells whether the receiver could take what it is not sent
	}
	if c.limit < 1 {
		c.limit = 1
	}
	c.answers = 0
	c.total = 0
	c.pushedBack = false
	c.reached = false
	length := time.Duration(c.mean)
	if length < shortestInterval {
		length = shortestInterval
	}
	c.until = now.Add(length)
}

// isSlow takes in an interval's mean round trip and says whether the receiver is slower
// than it would be with less to do.
//
// The mean alone would not do. It forgets, so that a receiver that every delivery more
// makes a little slower seems as fast as ever. The base does not rise, except with one
// delivery at a time: that is as little as there can be, so what it takes then is the
// receiver's own. A receiver that got slower by itself is sent less and less at once,
// down to one, and is known again.
func isSlow(c *concurrency, current float64) bool {
	if c.mean == 0 {
		c.mean = current
	}
	c.mean += meanWeight * (current - c.mean)
	if c.limit == 1 {
		c.base = c.mean
	} else if c.mean < c.base {
		c.base += baseWeight * (c.mean - c.base)
	}
	return c.mean > slowdown*c.base+timingNoise
}
