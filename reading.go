package requestmirror

// overview is the state of all mirroring in this process at one moment, as the
// counters show it: expvar.go and metrics.go write it down.
type overview struct {
	middlewares  []*middlewareReading // by name
	configErrors int64
	panics       int64
}

// middlewareReading is what the receivers of a middleware have in common.
type middlewareReading struct {
	name        string
	bytesHeld   int64
	bytesLimit  int64      // of bytesHeld
	memoryLimit int64      // as configured
	receivers   []*reading // by name
}

// reading is the state of one receiver of one middleware. It adds up (ledger.go).
type reading struct {
	receiver string // scheme and host, with #2 where a middleware has several of the same
	counts   *counts
	waiting  uint64

	pipelines     int // more than one while a replaced one drains
	queueLength   int
	queueCapacity int
	breaker       string // breakerClosed, breakerOpen, breakerHalfOpen
	concurrency   int    // deliveries that may be under way at once
}

// attemptBounds are the upper bounds of attempt durations in seconds, OpenTelemetry's
// for http.client.request.duration.
var attemptBounds = []float64{0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}
