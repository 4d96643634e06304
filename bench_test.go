//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// Compiled numbers, for a look at a change; what ships is interpreted, and measured in
// test/engine.

func BenchmarkServe(b *testing.B) {
	next := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { _, _ = io.Copy(io.Discard, req.Body) })
	for _, size := range []int{0, 1 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprintf("body=%d", size), func(b *testing.B) {
			p := stillPipeline(b, nil)
			handler := newMirror(next, p.set, []*pipeline{p})
			content := make([]byte, size)
			b.ReportAllocs()
			for b.Loop() {
				req := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(content))
				handler.ServeHTTP(nil, req)
				discharge(p, <-p.queue)
			}
		})
	}
	b.Run("queue=full", func(b *testing.B) {
		p := stillPipeline(b, opts{"queueSize": 1})
		handler := newMirror(next, p.set, []*pipeline{p})
		req := get("/")
		handler.ServeHTTP(nil, req)
		b.ReportAllocs()
		for b.Loop() {
			handler.ServeHTTP(nil, req)
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	for _, size := range []int{0, 1 << 10, 64 << 10} {
		b.Run(fmt.Sprintf("body=%d", size), func(b *testing.B) {
			p := stillPipeline(b, nil)
			c := payloadCases[1].capture
			c.set = p.set
			content := textOf(size)
			b.ReportAllocs()
			for b.Loop() {
				c.body = wholeBody("")
				c.body.last = content
				encode(p, &c, &delivery{id: "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913"})
			}
		})
	}
}
