package requestmirror

import "sync/atomic"

// budget bounds the memory of a pipeline: every byte of a body, from its capture to
// the end of its event, and the headers of what waits in a queue that grows.
type budget struct {
	limit int64 // memoryLimit
	held  int64 // atomic
}

// charge takes n bytes from the budget and says whether they were there.
func charge(b *budget, n int64) bool {
	if atomic.AddInt64(&b.held, n) <= b.limit {
		return true
	}
	atomic.AddInt64(&b.held, -n)
	return false
}

// discharge gives back all that the capture holds of the budget.
func discharge(b *budget, c *capture) {
	n := c.weight
	if c.body != nil {
		n += c.body.charged
		recycle(c.body)
	}
	if n > 0 {
		atomic.AddInt64(&b.held, -n)
	}
}
