package requestmirror

import (
	"bytes"
	"sync"
	"sync/atomic"
)

// budget bounds the bytes of bodies, from their capture to the end of their event. The
// pipelines of a middleware have one in common, as they hold the same bytes; each may
// hold its share of it, so that a receiver that hangs leaves the others theirs.
//
// What a worker writes of a body takes the place of the body. Of a large one that other
// pipelines hold, too, it comes on top, and counts.
//
// Headers are weighed apart from that, so that events still go out when bodies have
// taken all there is for bodies. On top come only the deliveries that workers are at,
// encoded: one for each worker.
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

// What the headers of a pipeline's events may take: perPlace for each place of the queue, which
// is more than those of a browser do, and leastHeaders in a short queue. None may take more than
// largestHeader: it would have thousands of names, each of which costs a worker microseconds, and
// few servers take a tenth of it.
const (
	perPlace      = 4 << 10
	leastHeaders  = 1 << 20
	largestHeader = 256 << 10
	noRoomAtAll   = 1 << 40
)

func mostHeaders(queueSize int) int64 {
	n := int64(queueSize) * perPlace
	if n < leastHeaders {
		n = leastHeaders
	}
	return n
}

// charge takes n bytes for a body if they are there, and says whether they were.
func charge(b *budget, n int64) bool {
	if atomic.AddInt64(&b.held, n) <= b.limit {
		return true
	}
	atomic.AddInt64(&b.held, -n)
	return false
}

// What the texts of a header are kept in takes more than they do: a name its place in a map,
// and a value the string that says where it is.
const (
	perName  = 128 // bytes
	perValue = 16
	unusual  = 16 << 10 // bytes from which on values are counted, too
)

// scales are buffers to weigh headers with. Items are *bytes.Buffer.
var scales = sync.Pool{New: func() interface{} { return &bytes.Buffer{} }}

// weigh sets what the capture's texts take. Every event is weighed, because a header of a
// megabyte may have 300,000 values; by a call of compiled code, because a loop would cost the
// request path more than all the rest.
func weigh(c *capture) {
	scale := scales.Get().(*bytes.Buffer)
	_ = c.header.Write(scale)
	c.texts = int64(scale.Len() + len(c.header)*perName + len(c.uri) + len(c.host) + len(c.method))
	scale.Reset()
	scales.Put(scale)
	if c.texts > unusual {
		weighMore(c)
	}
}

// weighMore adds what is little in most headers.
func weighMore(c *capture) {
	if c.texts <= largestHeader {
		for _, values := range c.header {
			c.texts += int64(len(values) * perValue)
		}
	}
	limitTexts(c)
}

// weighResponse weighs a capture that has a response; a backend has no reason to send many
// values.
func weighResponse(c *capture) {
	weigh(c)
	scale := scales.Get().(*bytes.Buffer)
	_ = c.response.header.Write(scale)
	c.texts += int64(scale.Len() + len(c.response.header)*perName)
	scale.Reset()
	scales.Put(scale)
	limitTexts(c)
}

func limitTexts(c *capture) {
	if c.texts > largestHeader {
		c.texts = noRoomAtAll
	}
}

// load takes what the capture's texts take, or notes that there is no room for them. The
// pipeline is locked.
func load(p *pipeline, c *capture) {
	c.refused = c.texts > p.spare
	p.spare -= c.texts
}

// discharge gives back all that the capture holds. The pipeline is locked.
func discharge(p *pipeline, c *capture) {
	p.spare += c.texts
	c.texts = 0
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
