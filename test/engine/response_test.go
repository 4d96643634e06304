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
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"
)

// captures are the modes of captureResponse that add something to an event.
var captures = []string{"status", "headers", "body"}

// proxied has the run's requests go on to a backend as Traefik's do.
func (c *run) proxied(h http.HandlerFunc) {
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = quiet
	server.Start()
	c.Cleanup(server.Close)
	c.proxyTo(server.URL)
}

func (c *run) proxyTo(to string) {
	c.Helper()
	target, err := url.Parse(to)
	if err != nil {
		c.Fatal(err)
	}
	transport := &http.Transport{}
	c.Cleanup(transport.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport:     transport,
		FlushInterval: 100 * time.Millisecond, // Traefik's default
		ErrorLog:      quiet,
		ErrorHandler: func(rw http.ResponseWriter, req *http.Request, err error) {
			rw.WriteHeader(http.StatusBadGateway) // as Traefik's does
			io.WriteString(rw, http.StatusText(http.StatusBadGateway))
		},
	}
	c.backend = proxy.ServeHTTP
}

var streamID = regexp.MustCompile(`stream ID \d+`)

// exchange is all that a client sees of the answer to one request: over HTTP/1 as it
// is framed, else over HTTP/2.
func (c *run) exchange(method, proto string) string {
	c.Helper()
	var all []string
	add := func(resp *http.Response) {
		body, err := io.ReadAll(resp.Body)
		if resp.Header.Get("Date") != "" {
			resp.Header.Set("Date", "now")
		}
		var trailer http.Header
		if len(resp.Trailer) > 0 {
			trailer = resp.Trailer
		}
		all = append(all, fmt.Sprintf("%s %s, header %v, length %d, encoding %v, close %v, body %d %.40q, trailer %v, error %v",
			resp.Proto, resp.Status, resp.Header, resp.ContentLength, resp.TransferEncoding, resp.Close, len(body), body, trailer, streamID.ReplaceAllString(fmt.Sprint(err), "stream")))
	}
	if c.sc.tls {
		req := c.request(method, "/", nil, "Te", "trailers")
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
				all = append(all, fmt.Sprint(code, " ", header))
				return nil
			},
		}))
		c.sent.Add(1)
		resp, err := c.client.Do(req)
		if err != nil {
			return fmt.Sprint(all, "no answer: ", strings.Contains(err.Error(), "INTERNAL_ERROR"))
		}
		defer resp.Body.Close()
		add(resp)
		return strings.Join(all, "\n")
	}
	conn := c.raw(method + " / " + proto + "\r\nHost: a\r\nTe: trailers\r\n\r\n")
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(patience))
	for from := bufio.NewReader(conn); ; {
		resp, err := http.ReadResponse(from, &http.Request{Method: method})
		if err != nil {
			all = append(all, fmt.Sprint("no answer: ", err))
			break
		}
		add(resp)
		if resp.StatusCode >= 200 {
			break
		}
	}
	return strings.Join(all, "\n")
}

// A client must see the same of every answer, whatever is captured of it, down to how
// its length is told. What answers here are the middlewares behind ours, and backends
// behind a proxy; the answers are the same, the way they are written is not.
func TestResponsesAreTheSameAsWithoutTheMiddleware(t *testing.T) {
	long := strings.Repeat(lorem, 4000)
	write := func(text string, header ...string) http.HandlerFunc {
		return func(rw http.ResponseWriter, req *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				rw.Header().Add(header[i], header[i+1])
			}
			io.WriteString(rw, text)
		}
	}
	answers := []struct {
		name   string
		do     http.HandlerFunc
		method string
		proto  string
		status int
		size   int    // of the body that was sent; -1 for an answer that has none
		reason string // why it is not whole
		direct bool   // makes no sense, or another one, from behind a proxy
		behind bool   // makes no sense without a proxy
	}{
		{name: "a short answer", do: write(lorem), size: 26},
		{name: "a long answer", do: write(long), size: len(long)},
		{name: "a short answer with its length", do: write(lorem, "Content-Length", "26", "Content-Type", "text/x"), size: 26},
		{name: "a long answer with its length", do: write(long, "Content-Length", fmt.Sprint(len(long))), size: len(long)},
		{name: "a short answer to HTTP/1.0", proto: "HTTP/1.0", do: write(lorem), size: 26},
		{name: "a long answer to HTTP/1.0", proto: "HTTP/1.0", do: write(long), size: len(long)},
		{name: "a long answer over ReadFrom", do: func(rw http.ResponseWriter, req *http.Request) { io.Copy(rw, strings.NewReader(long)) }, size: len(long)},
		{name: "an answer of no bytes", do: func(rw http.ResponseWriter, req *http.Request) { rw.WriteHeader(202) }, status: 202},
		{name: "no answer at all, which is a 200", do: func(http.ResponseWriter, *http.Request) {}},
		{name: "HEAD", method: "HEAD", do: write(lorem), size: -1},
		{name: "HEAD with a length", method: "HEAD", do: write("", "Content-Length", "26"), size: -1},
		{name: "204", do: func(rw http.ResponseWriter, req *http.Request) { rw.WriteHeader(204) }, status: 204, size: -1},
		{name: "304 with a length", do: func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Content-Length", "26")
			rw.Header().Set("Etag", `"1"`)
			rw.WriteHeader(304)
		}, status: 304, size: -1},
		{name: "an error", do: func(rw http.ResponseWriter, req *http.Request) { http.Error(rw, "sorry", 503) }, status: 503, size: 6},
		{name: "a redirect", do: func(rw http.ResponseWriter, req *http.Request) { http.Redirect(rw, req, "http://b.test/", 302) }, status: 302, size: 37},
		{name: "early hints, twice", do: func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Link", "</a>")
			rw.WriteHeader(103)
			rw.Header().Add("Link", "</b>")
			rw.WriteHeader(103)
			rw.WriteHeader(404)
			io.WriteString(rw, lorem)
		}, status: 404, size: 26},
		{name: "early hints before an implicit 200", do: func(rw http.ResponseWriter, req *http.Request) {
			rw.WriteHeader(103)
			io.WriteString(rw, lorem)
		}, size: 26},
		{name: "announced trailers after a short body", do: func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Trailer", "X-Sum")
			io.WriteString(rw, lorem)
			rw.Header().Set("X-Sum", "6")
		}, size: 26},
		{name: "announced trailers after a long body", do: func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Trailer", "X-Sum")
			io.WriteString(rw, long)
			rw.Header().Set("X-Sum", "6")
		}, size: len(long)},
		{name: "unannounced trailers after a short body", behind: true, do: func(rw http.ResponseWriter, req *http.Request) {
			io.WriteString(rw, lorem)
			rw.(http.Flusher).Flush()
			rw.Header().Set(http.TrailerPrefix+"X-Sum", "6")
		}, size: 26},
		{name: "unannounced trailers of a server without a clock", behind: true, do: func(rw http.ResponseWriter, req *http.Request) {
			rw.Header()["Date"] = nil
			rw.Header().Set("Content-Type", "text/x")
			io.WriteString(rw, lorem)
			rw.(http.Flusher).Flush()
			rw.Header().Set(http.TrailerPrefix+"X-Sum", "6")
		}, size: 26},
		{name: "unannounced trailers after a long body", do: func(rw http.ResponseWriter, req *http.Request) {
			io.WriteString(rw, long)
			rw.Header().Set(http.TrailerPrefix+"X-Sum", "6")
		}, size: len(long)},
		{name: "a short answer in chunks", behind: true, do: func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Content-Type", "text/x") // which is guessed if the header leaves with the first bytes
			rw.(http.Flusher).Flush()
			io.WriteString(rw, lorem)
		}, size: 26},
		{name: "an event stream", do: write("data: 1\n\ndata: 2\n\n", "Content-Type", "text/event-stream"), size: 18, behind: true},
		{name: "more than the length", proto: "HTTP/1.1", direct: true, do: func(rw http.ResponseWriter, req *http.Request) {
			rw.Header().Set("Content-Length", "26")
			io.WriteString(rw, lorem)
			if _, err := io.WriteString(rw, lorem); !errors.Is(err, http.ErrContentLength) {
				panic(fmt.Sprint("got error ", err))
			}
		}, size: 26, reason: "aborted"},
		{name: "less than the length", do: write(lorem, "Content-Length", "100"), size: 26, reason: "aborted"},
		{name: "a second status", direct: true, do: func(rw http.ResponseWriter, req *http.Request) {
			rw.WriteHeader(201)
			rw.WriteHeader(500)
			io.WriteString(rw, lorem)
		}, status: 201, size: 26},
		{name: "a panic in the middle of chunks", do: func(rw http.ResponseWriter, req *http.Request) {
			io.WriteString(rw, long)
			http.NewResponseController(rw).Flush()
			panic(http.ErrAbortHandler)
		}, size: len(long), reason: "aborted"},
		{name: "a connection of the backend that breaks", behind: true, do: func(rw http.ResponseWriter, req *http.Request) { panic(http.ErrAbortHandler) }, status: 502, size: 11},
	}
	var table []scenario
	for _, a := range answers {
		for _, where := range []string{"from a middleware", "from a backend"} {
			for _, version := range []string{"1", "2"} {
				if a.direct && where == "from a backend" || a.behind && where != "from a backend" || a.proto != "" && version == "2" {
					continue
				}
				sc := scenario{name: a.name + " " + where + " over HTTP/" + version, config: "-", tls: version == "2", want: "seen=3 enqueued=3 delivered=3"}
				if a.reason != "" {
					sc.want += " truncated." + a.reason + "=1"
				}
				sc.do = func(c *run) {
					c.backend = a.do
					if where == "from a backend" {
						c.proxied(a.do)
					}
					method, proto, status := a.method, a.proto, a.status
					if method == "" {
						method = "GET"
					}
					if proto == "" {
						proto = "HTTP/1.1"
					}
					if status == 0 {
						status = 200
					}
					c.use(c.next)
					want := c.exchange(method, proto)
					for i, mode := range captures {
						c.use(c.mustNew("captureResponse: " + mode))
						c.eq(mode+": what the client sees", c.exchange(method, proto), want)
						e := c.events(i + 1)[i]
						if e.Response == nil {
							c.Fatalf("%s: got no response in %s", mode, e.Raw)
						}
						c.eq(mode+": status", e.Response.Status, status)
						c.eq(mode+": a duration", e.Duration > 0, true)
						c.eq(mode+": a header", e.Response.Header != nil, mode != "status")
						b := e.Response.Body
						if mode != "body" || a.size < 0 {
							c.eq(mode+": a body", b != nil, false)
							continue
						}
						if b == nil { // no handler wrote, nor announced, any
							c.eq(mode+": size", 0, a.size)
							continue
						}
						c.eq(mode+": size and reason", fmt.Sprint(b.Size, b.Truncated, b.Reason), fmt.Sprint(a.size, a.reason != "", a.reason))
						c.eq(mode+": bytes kept", len(b.Content), a.size)
					}
					for _, p := range c.passed() {
						c.eq("panic", p.panicked == nil || p.panicked == http.ErrAbortHandler, true)
					}
				}
				table = append(table, sc)
			}
		}
	}
	runTable(t, table)
}

// first reads as much of a response as there is now, while its handler waits.
func (c *run) first(resp *http.Response, want string) {
	c.Helper()
	got := make([]byte, len(want))
	read := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(resp.Body, got)
		read <- err
	}()
	select {
	case err := <-read:
		c.eq("what has come", fmt.Sprintf("%s %v", got, err), want+" <nil>")
	case <-time.After(patience):
		c.Fatalf("got nothing within %s; want %q before the backend goes on", patience, want)
	}
}

func TestStreamsAreNotHeldBack(t *testing.T) {
	var table []scenario
	for _, s := range []struct{ name, head, first, second string }{
		{"an event stream", "Content-Type: text/event-stream\r\nDate: now\r\nTransfer-Encoding: chunked\r\n", "9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n0\r\n\r\n"},
		{"an event stream without a date", "Content-Type: Text/Event-Stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n", "9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n0\r\n\r\n"},
		{"a stream of unknown length", "Date: now\r\nTransfer-Encoding: chunked\r\n", "9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n0\r\n\r\n"},
		{"a stream of unknown length without a date", "Transfer-Encoding: chunked\r\n", "9\r\ndata: 1\n\n\r\n", "9\r\ndata: 2\n\n\r\n0\r\n\r\n"},
		{"a stream of HTTP/1.0", "Date: now\r\nConnection: close\r\n", "data: 1\n\n", "data: 2\n\n"},
		{"a slow answer with a length", "Date: now\r\nContent-Length: 18\r\n", "data: 1\n\n", "data: 2\n\n"},
	} {
		for _, mode := range captures {
			for _, tls := range []bool{false, true} {
				name := fmt.Sprintf("%s, captured as %s, HTTP/2 %t", s.name, mode, tls)
				table = append(table, scenario{name: name, config: "captureResponse: " + mode, tls: tls, want: one, do: func(c *run) {
					listener, err := net.Listen("tcp", "127.0.0.1:0")
					if err != nil {
						c.Fatal(err)
					}
					defer listener.Close()
					free := make(chan string)
					go func() {
						conn, err := listener.Accept()
						if err != nil {
							return
						}
						defer conn.Close()
						if _, err := http.ReadRequest(bufio.NewReader(conn)); err != nil {
							return
						}
						fmt.Fprint(conn, "HTTP/1.1 200 OK\r\n", s.head, "\r\n")
						for text := range free {
							fmt.Fprint(conn, text)
						}
					}()
					c.proxyTo("http://" + listener.Addr().String())
					c.sent.Add(1)
					resp, err := c.client.Do(c.request("GET", "/", nil)) // with the header only
					if err != nil {
						c.Fatal(err)
					}
					defer resp.Body.Close()
					free <- s.first
					c.first(resp, "data: 1\n\n")
					c.eq("events before the end", len(c.recv.deliveries()), 0)
					free <- s.second
					close(free)
					rest, err := io.ReadAll(resp.Body)
					c.eq("the rest", fmt.Sprint(string(rest), err), "data: 2\n\n<nil>")
					e := c.event()
					c.eq("status", e.Response.Status, 200)
					if mode == "body" {
						c.eq("body", string(e.Response.Body.Content), "data: 1\n\ndata: 2\n\n")
					}
				}})
			}
		}
	}
	runTable(t, table)
}

func TestUpgradesAreNotCaptured(t *testing.T) {
	var table []scenario
	for _, mode := range captures {
		table = append(table, scenario{name: "an upgraded connection, captured as " + mode, config: "captureResponse: " + mode, want: one, do: func(c *run) {
			c.proxied(func(rw http.ResponseWriter, req *http.Request) {
				conn, buf, err := http.NewResponseController(rw).Hijack()
				if err != nil {
					panic(err)
				}
				defer conn.Close()
				fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\nX-Answer: 1\r\n\r\n")
				line, _ := buf.ReadString('\n')
				fmt.Fprint(conn, line)
			})
			conn := c.raw("GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
			from := bufio.NewReader(conn)
			conn.SetReadDeadline(time.Now().Add(patience))
			resp, err := http.ReadResponse(from, nil)
			if err != nil {
				c.Fatal(err)
			}
			c.eq("status and header", fmt.Sprint(resp.StatusCode, resp.Header["X-Answer"]), "101 [1]")
			fmt.Fprint(conn, "ping\n")
			got, _ := io.ReadAll(from)
			c.eq("echo", string(got), "ping\n")
			conn.Close()
			e := c.event()
			c.eq("status and body", fmt.Sprint(e.Response.Status, e.Response.Body == nil), "101 true")
			if mode != "status" {
				c.eq("header", e.Response.Header["x-answer"], []string{"1"})
			}
		}})
		table = append(table, scenario{name: "a connection that cannot be taken over, captured as " + mode, tls: true, config: "captureResponse: " + mode, want: one, do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				if _, _, err := http.NewResponseController(rw).Hijack(); !errors.Is(err, http.ErrNotSupported) {
					c.Errorf("Hijack over HTTP/2: got error %v; want %v", err, http.ErrNotSupported)
				}
				rw.WriteHeader(400)
			}
			c.eq("status", c.get("/").status, 400)
			c.eq("status in the event", c.event().Response.Status, 400)
		}})
	}
	runTable(t, table)
}

// These are Traefik's ResponseWriters, as far as a status is to be read out of them.
type (
	tracked struct { // access log, metrics
		rw     http.ResponseWriter
		status int
	}
	recovering struct {
		rw          http.ResponseWriter
		headersSent bool
	}
	compressing struct { // holds back its header
		rw         http.ResponseWriter
		statusCode int
	}
	buffering struct { // holds back everything
		header         http.Header
		code           int
		responseWriter http.ResponseWriter
	}
	modifying struct {
		rw          http.ResponseWriter
		headersSent bool
		code        int
	}
	retrying struct { // does not send what it will try again
		responseWriter http.ResponseWriter
		headers        http.Header
		shouldNotWrite bool
	}
	embedding struct{ *recovering }
)

func (w *tracked) Header() http.Header { return w.rw.Header() }
func (w *tracked) WriteHeader(s int)   { w.rw.WriteHeader(s); w.status = s }
func (w *tracked) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = 200
	}
	return w.rw.Write(p)
}
func (w *tracked) Flush()                                       { w.rw.(http.Flusher).Flush() }
func (w *tracked) Hijack() (net.Conn, *bufio.ReadWriter, error) { return w.rw.(http.Hijacker).Hijack() }
func (w *recovering) Header() http.Header                       { return w.rw.Header() }
func (w *recovering) WriteHeader(s int)                         { w.rw.WriteHeader(s) }
func (w *recovering) Write(p []byte) (int, error)               { return w.rw.Write(p) }
func (w *recovering) Flush()                                    { w.rw.(http.Flusher).Flush() }
func (w *recovering) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.rw.(http.Hijacker).Hijack()
}
func (w *compressing) Header() http.Header         { return w.rw.Header() }
func (w *compressing) WriteHeader(s int)           { w.statusCode = s }
func (w *compressing) Write(p []byte) (int, error) { return len(p), nil }
func (w *compressing) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.rw.(http.Hijacker).Hijack()
}
func (w *modifying) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return w.rw.(http.Hijacker).Hijack()
}
func (w *buffering) Header() http.Header         { return w.header }
func (w *buffering) WriteHeader(s int)           { w.code = s }
func (w *buffering) Write(p []byte) (int, error) { return len(p), nil }
func (w *modifying) Header() http.Header         { return w.rw.Header() }
func (w *modifying) WriteHeader(s int)           { w.code = s; w.rw.WriteHeader(s) }
func (w *modifying) Write(p []byte) (int, error) { return w.rw.Write(p) }
func (w *retrying) Header() http.Header          { return w.headers }
func (w *retrying) WriteHeader(s int) {
	w.shouldNotWrite = s >= 500
	if !w.shouldNotWrite {
		w.responseWriter.WriteHeader(s)
	}
}
func (w *retrying) Write(p []byte) (int, error) { return len(p), nil }
func (w *retrying) Flush()                      { w.responseWriter.(http.Flusher).Flush() }

func TestStatusIsReadOutOfTraefiksResponseWriters(t *testing.T) {
	type rw = http.ResponseWriter
	hijack := func(rw rw, req *http.Request) {
		conn, _, err := http.NewResponseController(rw).Hijack()
		if err != nil {
			panic(err)
		}
		fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		conn.Close()
	}
	status := func(s ...int) http.HandlerFunc {
		return func(rw rw, req *http.Request) {
			for _, s := range s {
				rw.WriteHeader(s)
			}
		}
	}
	wraps := map[string]func(rw) rw{
		"nothing":    func(w rw) rw { return w },
		"access log": func(w rw) rw { return &tracked{rw: w} },
		"recovery":   func(w rw) rw { return &recovering{rw: w} },
		"embedded":   func(w rw) rw { return embedding{&recovering{rw: w}} },
		"compress":   func(w rw) rw { return &compressing{rw: w, statusCode: 200} },
		"buffering":  func(w rw) rw { return &buffering{header: http.Header{}, responseWriter: w} },
		"headers":    func(w rw) rw { return &modifying{rw: w, code: 200} },
		"retry":      func(w rw) rw { return &retrying{responseWriter: w, headers: http.Header{}} },
		"several": func(w rw) rw {
			return &tracked{rw: &compressing{rw: &modifying{rw: &recovering{rw: w}, code: 200}, statusCode: 200}}
		},
		"one unknown": func(w rw) rw { return struct{ http.ResponseWriter }{w} },
		"one hidden":  func(w rw) rw { return &hidden{of: w} },
	}
	answers := []struct {
		name   string
		do     http.HandlerFunc
		want   int
		except map[string]int // where it is another one
	}{
		{"an error", status(404), 404, map[string]int{"one hidden": 0}},
		{"an error that may be tried again", status(502), 502, map[string]int{"one hidden": 0, "retry": 0}},
		{"a 200", status(200), 200, map[string]int{"one hidden": 0}},
		{"nothing", status(), 200, map[string]int{"one hidden": 0, "retry": 0}},
		{"a 201 after early hints", status(103, 201), 201, map[string]int{"one hidden": 0}},
		{"a panic before an answer", func(rw, *http.Request) { panic(http.ErrAbortHandler) }, 0, nil},
		{"a panic after one", func(w rw, _ *http.Request) { w.WriteHeader(418); panic(http.ErrAbortHandler) }, 418, map[string]int{"one hidden": 0}},
		{"an upgrade", hijack, 101, nil},
	}
	var table []scenario
	for name, wrap := range wraps {
		seen := answers
		if strings.Contains("buffering retry one unknown one hidden", name) {
			seen = answers[:len(answers)-1] // these hand over no connection here
		}
		table = append(table, scenario{name: name, config: "captureResponse: status", want: fmt.Sprintf("seen=%d enqueued=%[1]d delivered=%[1]d", len(seen)), do: func(c *run) {
			h := c.handler
			c.use(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { h.ServeHTTP(wrap(w), req) }))
			for i, a := range seen {
				c.backend = a.do
				// A client of net/http would ask again after a panic.
				io.Copy(io.Discard, c.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
				want := a.want
				if other, differs := a.except[name]; differs {
					want = other
				}
				c.eq("status of "+a.name, c.events(i + 1)[i].Response.Status, want)
			}
		}})
	}
	runTable(t, table)
}

// hidden is a ResponseWriter that nobody knows.
type hidden struct{ of http.ResponseWriter }

func (h *hidden) Header() http.Header         { return h.of.Header() }
func (h *hidden) WriteHeader(s int)           { h.of.WriteHeader(s) }
func (h *hidden) Write(p []byte) (int, error) { return h.of.Write(p) }

func TestResponseCapture(t *testing.T) {
	aborted := func(rw http.ResponseWriter, req *http.Request) {
		io.WriteString(rw, lorem)
		http.NewResponseController(rw).Flush()
		panic(http.ErrAbortHandler)
	}
	echo := func(rw http.ResponseWriter, req *http.Request) {
		text, _ := io.ReadAll(req.Body)
		rw.Write(text)
	}
	boom := errors.New("boom")
	table := []scenario{
		{name: "none, status and headers leave the ResponseWriter alone", config: "-", want: "seen=6 enqueued=6 delivered=6", do: func(c *run) {
			for _, mode := range []string{"none", "status", "headers"} {
				c.use(c.mustNew("captureResponse: " + mode))
				c.get("/")
				c.send("POST", "/", lorem)
			}
			for _, p := range c.passed() {
				c.eq("the ResponseWriter and the request are the same", p.same, true)
			}
		}},
		{name: "none says nothing of the response", config: "captureResponse: none", want: one, do: func(c *run) {
			c.get("/")
			e := c.event()
			c.eq("response and duration", fmt.Sprint(e.Response, e.Duration), "<nil> 0")
		}},
		{name: "a body in chunks is mirrored with its response", config: "captureResponse: body", want: one, do: func(c *run) {
			c.backend = echo
			c.eq("echo", c.chunked("/", lorem).body, lorem)
			e := c.event()
			c.eq("both bodies", string(e.Body.Content)+"|"+string(e.Response.Body.Content), lorem+"|"+lorem)
		}},
		{name: "bytes that are no text are base64", config: "captureResponse: body", want: one, do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) { rw.Write([]byte{0xff, 0, 1}) }
			c.get("/")
			b := c.event().Response.Body
			c.eq("body", fmt.Sprint(b.Content, b.Text), fmt.Sprint([]byte{0xff, 0, 1}, false))
		}},
		{name: "a backend that breaks off is aborted", config: "captureResponse: body", want: "seen=1 enqueued=1 delivered=1 truncated.aborted=1", do: func(c *run) {
			c.proxied(aborted)
			r := c.get("/")
			c.eq("what the client sees", fmt.Sprintf("%s %v", r.body, r.err), lorem+" unexpected EOF")
			b := c.event().Response.Body
			c.eq("body", fmt.Sprint(string(b.Content), b.Size, b.Reason), fmt.Sprint(lorem, 26, "aborted"))
			c.eq("panic", c.passed()[0].panicked, any(http.ErrAbortHandler))
		}},
		{name: "a client that leaves ends a stream for the backend, too", config: "captureResponse: body", want: "seen=1 enqueued=1 delivered=1 truncated.aborted=1", do: func(c *run) {
			gone := make(chan struct{})
			c.proxied(func(rw http.ResponseWriter, req *http.Request) {
				io.WriteString(rw, lorem)
				rw.(http.Flusher).Flush()
				<-req.Context().Done()
				close(gone)
			})
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			c.sent.Add(1)
			resp, err := c.client.Do(c.request("GET", "/", nil).WithContext(ctx))
			if err != nil {
				c.Fatal(err)
			}
			c.first(resp, lorem)
			cancel()
			resp.Body.Close()
			<-gone
			b := c.event().Response.Body
			c.eq("body", fmt.Sprint(string(b.Content), b.Size, b.Reason), fmt.Sprint(lorem, 26, "aborted"))
		}},
		{name: "headers of the response are redacted like those of the request", config: "{captureResponse: headers, headers: {names: {X-Gone: drop, X-Hash: hash}}}", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				for _, name := range []string{"Set-Cookie", "X-Api-Key", "X-Gone", "X-Hash"} {
					rw.Header()[name] = []string{"s3cr3t", "s3cr3t=2"}
				}
				rw.Header()["x-lower"] = []string{"kept"}
			}
			c.get("/")
			h := c.event().Response.Header
			c.eq("redacted", fmt.Sprint(h["set-cookie"], h["x-api-key"], h["x-gone"] == nil, len(h["x-hash"]), h["x-lower"]), "[REDACTED REDACTED] [REDACTED REDACTED] true 2 [kept]")
		}},
		{name: "content types, limits and memory are those of the request's body", config: "-", want: "seen=3 enqueued=3 delivered=3 truncated.content-type=1 truncated.limit=1 truncated.memory=1", do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) { io.WriteString(rw, strings.Repeat(lorem, 1000)) }
			for i, r := range []struct {
				config, reason string
				kept           int
			}{{"bodyContentTypes: [application/json]", "content-type", 0}, {"maxBodySize: 100", "limit", 100}, {"memoryLimit: 1", "memory", 0}} {
				c.use(c.mustNew("{captureResponse: body, " + r.config + "}"))
				c.get("/")
				b := c.events(i + 1)[i].Response.Body
				c.eq(r.config, fmt.Sprint(len(b.Content), b.Size, b.Reason), fmt.Sprint(r.kept, 26000, r.reason))
			}
		}},
		{name: "maxEventSize takes from the response's body first", config: "{captureResponse: body, maxEventSize: 5000}", want: "seen=2 enqueued=2 delivered=2 truncated.event=3", do: func(c *run) {
			c.backend = echo
			for i, n := range []int{100, 300} {
				text := strings.Repeat(lorem, n)
				c.send("POST", "/", text)
				e := c.events(i + 1)[i]
				c.eq("size of the event", len(e.Raw) <= 5000, true)
				c.eq("the request is cut", e.Body.Truncated, n == 300)
				c.eq("the response is cut", fmt.Sprint(e.Response.Body.Truncated, e.Response.Body.Size), fmt.Sprint(true, len(text)))
				c.eq("room is used", len(e.Raw) > 4900, true)
				c.eq("a part of the response", len(e.Response.Body.Content) > 0, n == 100)
			}
		}},
		{name: "receivers share a response", config: "{captureResponse: body, watchURLs: [$URL2]}", also: []also{{want: "seen=2 enqueued=2 delivered=2"}}, want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			text := strings.Repeat(lorem, 40000)
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				io.Copy(io.Discard, req.Body)
				io.WriteString(rw, text)
			}
			c.get("/")
			c.send("POST", "/", text)
			for _, r := range c.receivers() {
				for _, e := range c.eventsAt(r, 2) {
					c.eq("body", string(e.Response.Body.Content), text)
				}
			}
		}},
		{name: "batches have responses", config: "{captureResponse: body, batch: {maxEvents: 4, flushInterval: 10ms}}", want: "seen=8 enqueued=8 delivered=8", do: func(c *run) {
			parallel(8, func(i int) { c.get(fmt.Sprint("/", i)) })
			for _, e := range c.events(8) {
				c.eq("body", string(e.Response.Body.Content), "backend")
			}
		}},
		{name: "many at once, on HTTP/2", tls: true, config: "{captureResponse: body, workers: 4}", want: "seen=30 enqueued=30 delivered=30", do: func(c *run) {
			c.proxied(func(rw http.ResponseWriter, req *http.Request) {
				text := strings.Repeat(req.URL.Path+" ", 3000)
				for from := 0; from < len(text); from += 5000 {
					io.WriteString(rw, text[from:min(len(text), from+5000)])
				}
			})
			parallel(30, func(i int) {
				path := fmt.Sprint("/", i)
				c.eq("body", c.get(path).body == strings.Repeat(path+" ", 3000), true)
			})
			for _, e := range c.events(30) {
				c.eq("body", string(e.Response.Body.Content) == strings.Repeat(e.Path+" ", 3000), true)
			}
		}},
		{name: "a handler that writes after it has returned does not change the event", config: "captureResponse: body", want: one, do: func(c *run) {
			late := make(chan http.ResponseWriter, 1)
			c.backend = func(rw http.ResponseWriter, req *http.Request) {
				io.WriteString(rw, lorem)
				late <- rw
			}
			h := c.handler
			c.use(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				h.ServeHTTP(rw, req)
				io.WriteString(<-late, lorem)
			}))
			c.eq("body", c.get("/").body, lorem+lorem)
			b := c.event().Response.Body
			c.eq("body in the event", fmt.Sprint(string(b.Content), b.Size), fmt.Sprint(lorem, 26))
		}},
	}
	for _, value := range []any{http.ErrAbortHandler, boom, "boom", &identity{}} {
		for _, mode := range captures {
			table = append(table, scenario{name: fmt.Sprintf("a panic with %T goes on as it is, captured as %s", value, mode), config: "captureResponse: " + mode, want: "*", do: func(c *run) {
				c.backend = func(rw http.ResponseWriter, req *http.Request) {
					if req.URL.Path == "/answered" {
						rw.WriteHeader(418)
						io.WriteString(rw, lorem)
					}
					panic(value)
				}
				c.get("/")
				c.send("POST", "/answered", lorem)
				for _, p := range c.passed() {
					if p.panicked != value {
						c.Errorf("panic: got %T %v; want the identical %T %v", p.panicked, p.panicked, value, value)
					}
				}
				e := c.events(2)
				c.eq("statuses", fmt.Sprint(e[0].Response.Status, e[1].Response.Status), "0 418")
				if mode == "body" {
					c.eq("bodies", fmt.Sprint(e[0].Response.Body == nil, string(e[1].Response.Body.Content), e[1].Response.Body.Reason), fmt.Sprint(true, lorem, "aborted"))
				}
			}})
		}
	}
	for _, outer := range captures {
		for _, inner := range captures {
			table = append(table, scenario{name: "two in a chain, captured as " + outer + " and as " + inner, config: "-", want: "seen=4 enqueued=4 delivered=4", do: func(c *run) {
				free := make(chan struct{})
				c.proxied(func(rw http.ResponseWriter, req *http.Request) {
					rw.WriteHeader(418)
					if req.URL.Path == "/stream" {
						io.WriteString(rw, lorem)
						rw.(http.Flusher).Flush()
						<-free
					}
				})
				second := c.mustNew("captureResponse: " + inner)
				cfg, err := c.eng.createConfig(c.decode("captureResponse: " + outer))
				if err != nil {
					c.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				c.ends = append(c.ends, cancel)
				first, err := c.eng.newHandler(ctx, second, cfg, c.name)
				if err != nil {
					c.Fatal(err)
				}
				c.use(first)
				c.eq("status", c.get("/").status, 418)
				c.sent.Add(1)
				resp, err := c.client.Do(c.request("GET", "/stream", nil))
				if err != nil {
					c.Fatal(err)
				}
				defer resp.Body.Close()
				c.first(resp, lorem)
				close(free)
				rest, _ := io.ReadAll(resp.Body)
				c.eq("the rest", string(rest), "")
				for _, e := range c.events(4) {
					c.eq("status", e.Response.Status, 418)
					if e.Response.Body != nil && e.Path == "/stream" {
						c.eq("body", string(e.Response.Body.Content), lorem)
					}
				}
			}})
		}
	}
	runTable(t, table)
}

// BenchmarkCaptureResponse prints what a request pays with each captureResponse, all of
// them by turns in the same process, while the receiver hangs: of the rounds the quickest
// counts. The handler answers 1 KiB.
//
//	go test -run - -bench CaptureResponse -benchtime 1x ./engine
func BenchmarkCaptureResponse(b *testing.B) {
	const rounds, n = 25, 400
	text := bytes.Repeat([]byte("x"), 1<<10)
	answer := http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		rw.Header()["Content-Length"] = []string{"1024"}
		rw.Write(text)
	})
	modes := append([]string{"none"}, captures...)
	tmpl := loads[0].template()
	for _, eng := range loaded(b) {
		b.Run("engine="+eng.name, func(b *testing.B) {
			stands := map[string]*stand{}
			for _, mode := range modes {
				stands[mode] = newCaptureStand(b, eng, mode, answer)
			}
			least, allocs := map[string]float64{}, map[string]uint64{}
			for range b.N * rounds {
				for _, mode := range modes {
					s := stands[mode]
					s.prepare("waiting")
					took, mallocs := timed(func() {
						for range n {
							req := *tmpl
							s.handlers[0].ServeHTTP(&sized{header: http.Header{}}, &req)
						}
					})
					s.clear()
					if least[mode] == 0 || took/n < least[mode] {
						least[mode], allocs[mode] = took/n, mallocs/n
					}
				}
			}
			b.ReportMetric(0, "ns/op") // of the rounds: of no meaning
			for _, mode := range modes {
				b.ReportMetric(least[mode], mode+"-ns")
				b.ReportMetric(float64(allocs[mode]), mode+"-allocs")
			}
		})
	}
}

// newCaptureStand is a stand with another handler behind it.
func newCaptureStand(b *testing.B, eng *engine, mode string, next http.Handler) *stand {
	recv := newReceiver(nil, false)
	s := &stand{tb: b, gate: &gate{in: make(chan struct{}, 2*lanes)}, names: []string{fmt.Sprintf("bench-%d@file", serial.Add(1))}}
	recv.Config.Handler = s.gate
	b.Cleanup(recv.Close)
	cfg, err := eng.createConfig(map[string]any{"watchURL": recv.URL, "captureResponse": mode, "workers": 1, "queueSize": 5000,
		"maxAge": "1ms", "timeout": "10m", "retry": map[string]any{"attempts": 1}, "strict": true})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(func() {
		s.clear()
		cancel()
	})
	h, err := eng.newHandler(ctx, next, cfg, s.names[0])
	if err != nil {
		b.Fatal(err)
	}
	s.handlers = []http.Handler{h}
	return s
}

// sized is a ResponseWriter with a status where net/http has it.
type sized struct {
	header http.Header
	status int
}

func (s *sized) Header() http.Header         { return s.header }
func (s *sized) WriteHeader(status int)      { s.status = status }
func (s *sized) Write(p []byte) (int, error) { s.status = 200; return len(p), nil }
