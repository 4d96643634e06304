package engine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// identity is a value that is only equal to itself.
type identity struct{ _ int }

func TestTransparency(t *testing.T) {
	var panics []scenario
	boom := errors.New("boom")
	for _, c := range []struct {
		name  string
		value any
	}{
		{"http.ErrAbortHandler", http.ErrAbortHandler},
		{"an error", boom},
		{"a string", "boom"},
		{"a pointer", &identity{}},
	} {
		panics = append(panics, scenario{name: "a panic with " + c.name + " goes on as it is, and the request is mirrored", want: "seen=3 enqueued=3 delivered=3 truncated.unread=1", do: func(r *run) {
			r.backend = func(rw http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/read" {
					io.Copy(io.Discard, req.Body)
				}
				panic(c.value)
			}
			r.get("/")
			r.send("POST", "/", lorem)
			r.send("POST", "/read", lorem)
			for _, p := range r.passed() {
				if p.panicked != c.value {
					r.Errorf("panic: got %T %v; want the identical %T %v", p.panicked, p.panicked, c.value, c.value)
				}
			}
			r.eq("body that was read", string(r.events(3)[2].Body.Content), lorem)
		}})
	}
	runTable(t, append(panics, []scenario{
		{name: "a request without a body reaches the backend as the very same", want: "seen=3 enqueued=3 delivered=3", do: func(c *run) {
			c.get("/")
			c.send("POST", "/", "")
			c.send("DELETE", "/", "")
			for _, p := range c.passed() {
				c.eq("the ResponseWriter and the request are the same", p.same, true)
				c.eq("http.NoBody", p.noBody, true)
				c.eq("content length", p.got, int64(0))
				c.eq("body", p.req.Body == p.body, true)
			}
		}},
		{name: "a request with a body keeps its ResponseWriter, headers and length", want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			c.send("POST", "/", lorem, "X-A", "1")
			c.chunked("/", lorem)
			p := c.passed()
			for i, length := range []int64{26, -1} {
				c.eq("the ResponseWriter and the request are the same", p[i].same, true)
				c.eq("content length", p[i].got, length)
			}
			c.eq("no header was added", len(p[0].header), 3) // User-Agent, Content-Length and X-A
			c.eq("X-A", p[0].header["X-A"], []string{"1"})
		}},
		{name: "a request without a body is mirrored before the backend answers", want: one, do: func(c *run) {
			free := make(chan struct{})
			c.backend = func(http.ResponseWriter, *http.Request) { <-free }
			done := make(chan response)
			go func() { done <- c.get("/slow") }()
			c.eq("path", c.event().Path, "/slow")
			c.eq("requests that were answered", c.served.Load(), int64(0))
			close(free)
			c.eq("answer", (<-done).status, 200)
		}},
		{name: "an event stream is passed on event by event", want: one, do: func(c *run) {
			free := make(chan struct{})
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				rw.Header().Set("Content-Type", "text/event-stream")
				fmt.Fprint(rw, "data: 1\n\n")
				rw.(http.Flusher).Flush()
				<-free
				fmt.Fprint(rw, "data: 2\n\n")
			}
			c.sent.Add(1)
			resp, err := c.client.Do(c.request("GET", "/events", nil))
			if err != nil {
				c.Fatal(err)
			}
			defer resp.Body.Close()
			first := make([]byte, 9)
			_, err = io.ReadFull(resp.Body, first)
			c.eq("first event", fmt.Sprintf("%q %v", first, err), `"data: 1\n\n" <nil>`)
			close(free)
			rest, _ := io.ReadAll(resp.Body)
			c.eq("second event", string(rest), "data: 2\n\n")
		}},
		{name: "an upgraded connection is the backend's", want: one, do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				conn, buf, err := rw.(http.Hijacker).Hijack()
				if err != nil {
					panic(err)
				}
				defer conn.Close()
				fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
				line, _ := buf.ReadString('\n')
				fmt.Fprint(conn, line)
			}
			conn := c.raw("GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
			c.eq("mirrored before the end", c.event().Path, "/ws")
			fmt.Fprint(conn, "ping\n")
			got, _ := io.ReadAll(conn)
			c.eq("echo", bytes.HasSuffix(got, []byte("\r\n\r\nping\n")), true)
		}},
		{name: "the backend gets a body chunk by chunk, as it comes", want: one, do: func(c *run) {
			parts := make(chan string)
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				for buf := make([]byte, 100); ; {
					n, err := req.Body.Read(buf)
					if n > 0 {
						parts <- string(buf[:n])
					}
					if err != nil {
						close(parts)
						return
					}
				}
			}
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n")
			for _, part := range []string{"one", "two", "three"} {
				fmt.Fprintf(conn, "%x\r\n%s\r\n", len(part), part)
				c.eq("part", <-parts, part)
			}
			fmt.Fprint(conn, "0\r\n\r\n")
			_, more := <-parts
			c.eq("more", more, false)
			c.eq("body", string(c.event().Body.Content), "onetwothree")
		}},
		{name: "trailers are there after the body", want: one, do: func(c *run) {
			got := make(chan string, 2)
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				got <- req.Trailer.Get("X-Sum")
				io.Copy(io.Discard, req.Body)
				got <- req.Trailer.Get("X-Sum")
			}
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n")
			io.Copy(io.Discard, conn)
			c.eq("trailer before and after", <-got+"|"+<-got, "|6")
		}},
		{name: "Expect: 100-continue is answered when the backend reads, and not before", want: "seen=2 enqueued=2 delivered=2 truncated.unread=1", do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				if req.URL.Path == "/reject" {
					rw.WriteHeader(417)
					return
				}
				io.Copy(io.Discard, req.Body)
			}
			head := " HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
			status := func(conn net.Conn) string {
				conn.SetReadDeadline(time.Now().Add(patience))
				line, err := bufio.NewReader(conn).ReadString('\n')
				return fmt.Sprint(strings.TrimSpace(line), " ", err)
			}
			c.eq("rejected", status(c.raw("POST /reject"+head)), "HTTP/1.1 417 Expectation Failed <nil>")
			conn := c.raw("POST /accept" + head)
			c.eq("accepted", status(conn), "HTTP/1.1 100 Continue <nil>")
			fmt.Fprint(conn, "abc")
			c.eq("body", string(c.events(2)[1].Body.Content), "abc")
		}},
		{name: "Close of the body is passed on", want: "seen=1 enqueued=1 delivered=1 truncated.unread=1", do: func(c *run) {
			got := make(chan error, 1)
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				req.Body.Close()
				_, err := req.Body.Read(make([]byte, 1))
				got <- err
			}
			c.send("POST", "/", lorem)
			if err := <-got; !errors.Is(err, http.ErrBodyReadAfterClose) {
				c.Errorf("read after close: got %v; want %v", err, http.ErrBodyReadAfterClose)
			}
		}},
		{name: "a read after the handler has returned does not change the event and holds no memory", want: "seen=2 enqueued=2 delivered=2 truncated.unread=2", do: func(c *run) {
			// The server's own body ends with the handler, so this one is not the server's:
			// a transport may be late with one read.
			h := c.handler
			c.use(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				req.Body = io.NopCloser(strings.NewReader(strings.Repeat(lorem, 4000)))
				h.ServeHTTP(rw, req)
			}))
			late := make(chan io.Reader, 1)
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				io.ReadFull(req.Body, make([]byte, 26))
				late <- req.Body
			}
			for i, send := range []func(){func() { c.send("POST", "/", strings.Repeat(lorem, 4000)) }, func() { c.chunked("/", lorem) }} {
				send()
				c.passed()
				io.ReadAll(<-late)
				e := c.events(i + 1)[i]
				c.eq("body", fmt.Sprintf("%s %d", e.Body.Content, e.Body.Size), lorem+" 26")
			}
		}},
		{name: "an HTTP/2 client that resets its upload leaves what it sent", tls: true, want: "seen=1 enqueued=1 delivered=1 truncated.aborted=1", do: func(c *run) {
			ctx, cancel := context.WithCancel(context.Background())
			body, feed := io.Pipe()
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				io.ReadFull(req.Body, make([]byte, 26))
				cancel()
				io.Copy(io.Discard, req.Body)
			}
			go io.WriteString(feed, lorem)
			req := c.request("POST", "/", body)
			if r := c.roundTrip(req.WithContext(ctx)); r.err == nil {
				c.Errorf("answer: got %d; want an error", r.status)
			}
			e := c.event()
			c.eq("body", fmt.Sprintf("%s %d %s", e.Body.Content, e.Body.Size, e.Proto), lorem+" 26 2")
		}},
		{name: "a deadline that the server sets ends a slow upload for the backend, too", want: "seen=1 enqueued=1 delivered=1 truncated.aborted=1", do: func(c *run) {
			got := make(chan error, 1)
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				http.NewResponseController(rw).SetReadDeadline(time.Now())
				_, err := io.ReadAll(req.Body)
				got <- err
			}
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n")
			err := <-got
			var timeout net.Error
			c.eq("a timeout", errors.As(err, &timeout) && timeout.Timeout(), true)
			c.passed()
			conn.Close()
		}},
		{name: "no request waits for a receiver that hangs", answers: []answer{{hang: true}}, config: "{workers: 2, queueSize: 3}",
			want: "seen=40 dropped.queue_full=35 enqueued=5 delivered=5", do: func(c *run) {
				// The first two are in flight before the others come, so that the numbers are exact.
				c.get("/")
				c.attempts(1)
				c.send("POST", "/", lorem)
				c.attempts(2)
				parallel(38, func(i int) {
					c.eq("answer", c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat("x", i%2)).status, 200)
				})
				l := c.passedLedger()
				c.eq("while the receiver hangs", l.String(), "seen=40 dropped.queue_full=35 enqueued=5 waiting=3 inFlight=2")
				c.eq("queue", fmt.Sprint(l.QueueLen, l.QueueCap), "3 3")
				c.recv.release()
			}},
	}...))
}

// passedLedger is the ledger when the middleware has returned from all requests.
func (c *run) passedLedger() ledger {
	c.Helper()
	c.passed()
	return c.ledger()
}
