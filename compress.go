package requestmirror

import (
	"bytes"
	"compress/gzip"
	"sync"
)

// leastGzip is what a payload has at least that is compressed: less is not worth it. An
// event with the headers of a browser or a program has more.
const leastGzip = 768

// zippers are *gzip.Writer, of which each is most of a megabyte.
var zippers sync.Pool

// pack makes of a payload what is sent, once for all attempts.
func pack(set *settings, d *delivery) {
	d.packed = true
	if set.format == formatOTLP {
		d.payload = logRecords(d.payload)
	}
	if set.gzip && len(d.payload) >= leastGzip {
		compress(d)
	}
}

// compress compresses the payload, if that makes it smaller.
func compress(d *delivery) {
	out := &bytes.Buffer{}
	z, ok := zippers.Get().(*gzip.Writer)
	if !ok {
		z = gzip.NewWriter(out)
	}
	z.Reset(out)
	_, err := z.Write(d.payload)
	if z.Close() != nil || err != nil {
		return // never seen of a buffer
	}
	zippers.Put(z)
	if out.Len() < len(d.payload) {
		d.payload = out.Bytes()
		d.compressed = true
	}
}
