package requestmirror

import "sync/atomic"

// budget bounds the memory of a pipeline: every byte of a body, from its capture to
// the end of its event, and the headers of what waits in a queue that grows.
type budget struct {
	limit int64 // memoryLimit
	held  int64 // atomic
}

// headerReserve is what headers may take beyond the limit, so that events still go out
// when bodies have taken it all.
const headerReserve = 8 << 20

// charge takes n bytes if no more than limit are held then, and says whether it did.
func charge(b *budget, n, limit int64) bool {
	if atomic.AddInt64(&b.held, n) <= limit {
		return true
	}
	atomic.AddInt64(&b.held, -n)
	return false
}

// chargeEncoded charges what an encoded event takes beyond what was kept of its body:
// base64 and escapes make it longer. Nothing is refused here, but what is captured
// meanwhile finds less room.
func chargeEncoded(b *budget, c *capture, size int) {
	if extra := int64(size) - c.body.charged; extra > partSize {
		c.weight += extra
		atomic.AddInt64(&b.held, extra)
	}
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
