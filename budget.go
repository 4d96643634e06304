package requestmirror

import (
	"net/http"
	"sync/atomic"
)

// budget bounds the bytes of bodies, from their capture to the end of their event. The
// pipelines of a middleware have one in common, as they hold the same bytes; each may
// hold its share of it, so that a receiver that hangs leaves the others theirs.
//
// What a worker writes of a body takes the place of the body. Of a large one that other
// pipelines hold, too, it comes on top, and counts.
//
// Headers are weighed apart from that, in a queue that grows, so that events still go
// out when bodies have taken all there is for bodies. On top come only the deliveries
// that workers are at, encoded: one for each worker.
type budget struct {
	limit int64 // of held
	held  int64 // atomic: bytes of bodies
}

// countedOnce is how many bytes of bodies count for what they are.
const countedOnce = 8 << 20

// newBudget is a budget within which the process grows by little more than
// memoryLimit. Go's collector lets the heap grow by as much again as is alive
// (GOGC=100), and around what is held there is what holds it; so beyond the first
// 8 MiB each byte counts three times, as measured: of 64 MiB, bodies get 26.
func newBudget(memoryLimit int64) *budget {
	b := &budget{limit: memoryLimit}
	if memoryLimit > countedOnce {
		b.limit = countedOnce + (memoryLimit-countedOnce)/3
	}
	return b
}

const headerLimit = 8 << 20

// charge takes n bytes for a body if they are there, and says whether they were.
func charge(b *budget, n int64) bool {
	if atomic.AddInt64(&b.held, n) <= b.limit {
		return true
	}
	atomic.AddInt64(&b.held, -n)
	return false
}

// weigh takes the bytes of the capture's headers, or notes that they were not there.
func weigh(p *pipeline, c *capture) {
	n := int64(len(c.uri)) + lengthOf(c.header)
	if c.response != nil {
		n += lengthOf(c.response.header)
	}
	c.weight = n
	if atomic.AddInt64(&p.headers, n) > headerLimit/atomic.LoadInt64(&p.receivers) {
		c.refused = true
	}
}

func lengthOf(h http.Header) int64 {
	n := 0
	for name, values := range h {
		n += len(name)
		for _, value := range values {
			n += len(value)
		}
	}
	return int64(n)
}

// discharge gives back all that the capture holds. The pipeline is locked.
func discharge(p *pipeline, c *capture) {
	if c.weight > 0 {
		atomic.AddInt64(&p.headers, -c.weight)
	}
	p.bodies -= c.held
	if c.encoded > 0 {
		atomic.AddInt64(&p.budget.held, -c.encoded)
	}
	letGo(c)
}

// letGo gives back the bodies that the capture holds.
func letGo(c *capture) {
	letGoOf(c.body)
	if c.response != nil {
		letGoOf(c.response.body)
	}
}

func letGoOf(b *body) {
	if b == nil || b.shared && atomic.AddInt32(&b.holders, -1) > 0 {
		return
	}
	if b.budget != nil {
		atomic.AddInt64(&b.budget.held, -b.charged)
	}
	if b.full != nil {
		recycle(b)
	}
}
