package engine

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// The example of GitHub's documentation, "Validating webhook deliveries".
const (
	githubSecret    = "It's a Secret to Everybody"
	githubPayload   = "Hello, World!"
	githubSignature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

	hubHeader = "X-Hub-Signature-256"
	hookKey   = "h00k-k3y"
	rejecting = "authenticate: {secrets: [" + hookKey + "], onFailure: reject}"
	skipping  = "authenticate: {secrets: [" + hookKey + "]}"
)

func hubSignature(secret, payload string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(payload))
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// unauthenticated is the counter, which the ledger does without.
func (c *run) unauthenticated() (n int) {
	c.Helper()
	var all struct {
		Middlewares map[string]struct {
			Receivers map[string]struct{ Unauthenticated int }
		}
	}
	if err := json.Unmarshal([]byte(expvar.Get("requestmirror").String()), &all); err != nil {
		c.Fatal(err)
	}
	return all.Middlewares[c.name].Receivers[c.recv.URL].Unauthenticated
}

// reached are the passages that came to the backend.
func (c *run) reached() (list []*passage) {
	c.Helper()
	for _, p := range c.passed() {
		if p.reached {
			list = append(list, p)
		}
	}
	return list
}

// answered is the answer to a request that was written by hand.
func (c *run) answered(conn net.Conn) *http.Response {
	c.Helper()
	conn.SetReadDeadline(time.Now().Add(patience))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		c.Fatalf("answer: got error %v; want one", err)
	}
	c.Cleanup(func() { resp.Body.Close() })
	return resp
}

func TestScreened(t *testing.T) {
	runTable(t, []scenario{
		{name: "paths are matched as they were sent", config: "{includePaths: ['^/a/b$', '^/c', '^\\*$'], excludePaths: '^/c/no,secret'}", want: "seen=9 filtered=5 enqueued=4 delivered=4", do: func(c *run) {
			for _, target := range []string{"/a/b?secret", "/a%2Fb", "/%61/b", "/c%2Fno", "/c/no", "/c/secret", "/"} {
				c.eq("answer to "+target, c.get(target).status, 200)
			}
			io.Copy(io.Discard, c.raw("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
			io.Copy(io.Discard, c.raw("GET http://secret.example/c/d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
			var paths []string
			for _, e := range c.events(4) {
				paths = append(paths, e.Path)
			}
			c.eq("mirrored", paths, []string{"/a/b", "/c%2Fno", "*", "/c/d"})
		}},
		{name: "a part of the requests is mirrored, and the events say how many they stand for", config: "{sampleRate: 0.25, queueSize: 2000}", want: "*", do: func(c *run) {
			// The number is outside of these bounds with a probability of less than 10⁻⁹ (Hoeffding).
			const n, spread = 600, 81
			parallel(n, func(i int) {
				var header []string
				if i%2 == 0 {
					header = []string{"Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
				}
				c.eq("answer", c.send([]string{"GET", "POST"}[i/2%2], "/", strings.Repeat("x", i/2%2), header...).status, 200)
			})
			l := c.settled()
			c.eq("seen", l.Seen, int64(n))
			c.eq("within the bounds", l.Enqueued >= n/4-spread && l.Enqueued <= n/4+spread, true)
			c.eq("the others", l.SampledOut, n-l.Enqueued)
			traced := 0
			for _, e := range c.events(int(l.Delivered)) {
				c.eq("sampledrate", e.SampledRate, 4)
				if e.Traceparent != "" {
					traced++
				}
			}
			c.eq("with and without a trace", traced > 0 && traced < int(l.Delivered), true)
		}},
		{name: "of 1/3, three are told of", config: "sampleRate: '0.333'", want: "*", do: func(c *run) {
			c.until("an event", func() bool { c.get("/"); return len(c.recv.deliveries()) > 0 })
			c.eq("sampledrate", c.events(1)[0].SampledRate, 3)
		}},
		{name: "when all are mirrored, nothing is said of samples", config: "sampleRate: 1", want: one, do: func(c *run) {
			c.get("/")
			e := c.event()
			c.eq("sampledrate", strings.Contains(string(e.Raw), "sampledrate"), false)
		}},
		{name: "sampleRate 0 mirrors nothing", config: "sampleRate: 0", want: "seen=20 sampledOut=20", do: func(c *run) {
			for range 20 {
				c.send("POST", "/", lorem)
			}
		}},
		{name: "GitHub's example is genuine, and others are not", config: `{"authenticate": {"secrets": ["` + githubSecret + `"]}}`, secret: []string{githubSecret},
			want: "seen=7 filtered=4 enqueued=3 delivered=3", do: func(c *run) {
				for i, header := range [][]string{
					{hubHeader, githubSignature}, {hubHeader, strings.ToLower(githubSignature)}, {}, {hubHeader, githubSignature[:len(githubSignature)-1] + "8"},
					{hubHeader, githubSignature[7:]}, {"X-Hub-Signature", "sha1=" + githubSignature[7:]},
				} {
					c.eq("answer", c.send("POST", fmt.Sprint("/", i), githubPayload, header...).status, 200)
				}
				c.eq("answer to chunks", c.chunked("/chunks", githubPayload, hubHeader, githubSignature).status, 200)
				for _, e := range c.events(3) {
					c.eq("body", string(e.Body.Content), githubPayload)
					c.eq("signed", e.Header["x-hub-signature-256"], []string{githubSignature})
				}
				for _, p := range c.passed() {
					c.eq("the backend has all of them", string(p.content), githubPayload)
					c.eq("the ResponseWriter and the request are the same", p.same, true)
				}
				c.eq("unauthenticated", c.unauthenticated(), 4)
			}},
		{name: "Shopify's signature is in base64", config: "authenticate: {secrets: [" + hookKey + "], header: x-shopify-hmac-sha256, prefix: ''}", want: "seen=2 filtered=1 enqueued=1 delivered=1", do: func(c *run) {
			sum, _ := hex.DecodeString(hubSignature(hookKey, lorem)[7:])
			c.send("POST", "/", lorem, "X-Shopify-Hmac-Sha256", base64.StdEncoding.EncodeToString(sum))
			c.send("POST", "/", lorem+"x", "X-Shopify-Hmac-Sha256", base64.StdEncoding.EncodeToString(sum))
			c.event()
		}},
		{name: "the signature covers what the event has no room for", config: "{" + skipping + ", maxBodySize: 10}", want: "seen=4 filtered=2 enqueued=2 delivered=2 truncated.limit=2", do: func(c *run) {
			body := strings.Repeat(lorem, 10000)
			c.send("POST", "/", body, hubHeader, hubSignature(hookKey, body))
			c.chunked("/", body, hubHeader, hubSignature(hookKey, body))
			c.send("POST", "/", body, hubHeader, hubSignature(hookKey, body[:10]))
			c.send("POST", "/", body[:len(body)-1]+"Z", hubHeader, hubSignature(hookKey, body))
			for _, e := range c.events(2) {
				c.eq("kept, size", fmt.Sprint(string(e.Body.Content), e.Body.Size), fmt.Sprint(lorem[:10], len(body)))
			}
			for _, p := range c.passed() {
				c.eq("bytes at the backend", len(p.content), len(body))
			}
		}},
		{name: "what the backend does not read to its end is not genuine", config: skipping, want: "seen=3 filtered=2 enqueued=1 delivered=1", do: func(c *run) {
			c.backend = func(_ http.ResponseWriter, req *http.Request) {
				io.CopyN(io.Discard, req.Body, int64(len(req.URL.Path)-1)*1000)
			}
			body := strings.Repeat("x", 3000)
			for _, target := range []string{"/", "/12", "/123"} {
				c.send("POST", target, body, hubHeader, hubSignature(hookKey, body))
			}
			c.eq("path", c.event().Path, "/123")
		}},
		{name: "an upload that breaks off is not genuine", config: skipping, want: "seen=1 filtered=1", do: func(c *run) {
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n" + hubHeader + ": " + hubSignature(hookKey, "abc") + "\r\n\r\nabc")
			c.until("the backend has it", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return len(c.passages) == 1 && c.passages[0].reached })
			conn.Close()
			c.passed()
		}},
		{name: "a genuine request over HTTP/2 is mirrored", tls: true, config: skipping, want: "seen=3 filtered=1 enqueued=2 delivered=2", do: func(c *run) {
			body := strings.Repeat(lorem, 5000)
			c.send("POST", "/", body, hubHeader, hubSignature(hookKey, body))
			c.chunked("/", body, hubHeader, hubSignature(hookKey, body))
			c.chunked("/", body, hubHeader, hubSignature(hookKey, lorem))
			for _, e := range c.events(2) {
				c.eq("body", string(e.Body.Content), body)
			}
		}},

		{name: "what is not genuine is turned down, and the backend does not see it", config: rejecting, secret: []string{hookKey}, want: "seen=5 filtered=5", do: func(c *run) {
			for _, header := range [][]string{{}, {hubHeader, hubSignature("other", lorem)}, {hubHeader, "sha256="}} {
				r := c.send("POST", "/", lorem, header...)
				c.eq("answer", fmt.Sprint(r.status, r.header.Get("WWW-Authenticate") != ""), "401 true")
			}
			c.eq("answer to chunks", c.chunked("/", strings.Repeat(lorem, 20000), hubHeader, hubSignature(hookKey, lorem)).status, 401)
			c.eq("answer to a GET", c.get("/").status, 401)
			c.eq("at the backend", len(c.reached()), 0)
			c.eq("unauthenticated", c.unauthenticated(), 5)
		}},
		{name: "what is genuine reaches the backend as it came", config: "{" + rejecting + ", maxBodySize: 300000}", want: "seen=10 enqueued=10 delivered=10", do: func(c *run) {
			sizes := []int{0, 1, 4096, 4097, 300000}
			text := strings.Repeat(lorem, 300000/26+1)
			for _, size := range sizes {
				body := text[:size]
				c.eq("answer", c.send("POST", "/", body, hubHeader, hubSignature(hookKey, body)).body, "backend")
				c.eq("answer to chunks", c.chunked("/", body, hubHeader, hubSignature(hookKey, body)).body, "backend")
			}
			for i, p := range c.passed() {
				size := sizes[i/2]
				c.eq("body at the backend", string(p.content) == text[:size] && p.err == nil, true)
				c.eq("length at the backend", p.got, p.length)
				c.eq("the ResponseWriter and the request are the same", p.same, true)
			}
			for i, e := range c.events(10) {
				if size := sizes[i/2]; size > 0 {
					c.eq("body in the event", string(e.Body.Content) == text[:size] && !e.Body.Truncated, true)
				}
			}
		}},
		{name: "over HTTP/2, too", tls: true, config: rejecting, want: "seen=3 filtered=1 enqueued=2 delivered=2", do: func(c *run) {
			body := strings.Repeat(lorem, 20000)
			c.eq("answer", c.send("POST", "/", body, hubHeader, hubSignature(hookKey, body)).body, "backend")
			c.eq("answer without a length", c.chunked("/", body, hubHeader, hubSignature(hookKey, body)).body, "backend")
			c.eq("answer to a forged one", c.chunked("/", body, hubHeader, hubSignature(hookKey, lorem)).status, 401)
			for _, p := range c.reached() {
				c.eq("body at the backend", string(p.content) == body, true)
			}
		}},
		{name: "trailers of a held request are there", config: rejecting, want: one, do: func(c *run) {
			got := make(chan string, 1)
			c.backend = func(_ http.ResponseWriter, req *http.Request) {
				content, err := io.ReadAll(req.Body)
				got <- fmt.Sprint(string(content), " ", err, " ", req.Trailer.Get("X-Sum"), " ", req.TransferEncoding)
			}
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n" + hubHeader + ": " + hubSignature(hookKey, "abc") + "\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 6\r\n\r\n")
			io.Copy(io.Discard, conn)
			c.eq("body, trailer and encoding", <-got, "abc <nil> 6 [chunked]")
		}},
		{name: "a held body that is too large is answered with 413", config: "{" + rejecting + ", maxBodySize: 1000}", want: "seen=3 dropped.incomplete=3 truncated.limit=3", do: func(c *run) {
			body := strings.Repeat("x", 1001)
			c.eq("answer", c.send("POST", "/", body, hubHeader, hubSignature(hookKey, body)).status, 413)
			c.eq("answer to chunks", c.chunked("/", body, hubHeader, hubSignature(hookKey, body)).status, 413)
			// Nobody is asked for what would be refused.
			r := c.answered(c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n" + hubHeader + ": " + hubSignature(hookKey, body) + "\r\n\r\n"))
			c.eq("answer before the body", r.StatusCode, 413)
			c.eq("at the backend", len(c.reached()), 0)
		}},
		{name: "Expect: 100-continue is answered, as the body is read", config: rejecting, want: one, do: func(c *run) {
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n" + hubHeader + ": " + hubSignature(hookKey, "abc") + "\r\n\r\n")
			conn.SetReadDeadline(time.Now().Add(patience))
			reader := bufio.NewReader(conn)
			line, _ := reader.ReadString('\n')
			c.eq("interim answer", line, "HTTP/1.1 100 Continue\r\n")
			reader.ReadString('\n')
			fmt.Fprint(conn, "abc")
			resp, err := http.ReadResponse(reader, nil)
			if err != nil {
				c.Fatal(err)
			}
			resp.Body.Close()
			c.eq("answer", resp.StatusCode, 200)
			c.eq("body at the backend", string(c.passed()[0].content), "abc")
		}},
		{name: "a held body that breaks off is nothing for the backend", config: rejecting, want: "seen=2 filtered=2", do: func(c *run) {
			signed := hubHeader + ": " + hubSignature(hookKey, "abc") + "\r\n\r\n"
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n" + signed + "abc")
			conn.(*net.TCPConn).CloseWrite()
			c.eq("answer", c.answered(conn).StatusCode, 400)
			conn = c.raw("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + signed + "3\r\nabc\r\n")
			conn.(*net.TCPConn).CloseWrite()
			c.eq("answer to chunks", c.answered(conn).StatusCode, 400)
			c.eq("at the backend", len(c.reached()), 0)
		}},
		{name: "chunks that are none are nothing for the backend", config: rejecting, want: "seen=1 filtered=1", do: func(c *run) {
			r := c.answered(c.raw("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n" + hubHeader + ": " + hubSignature(hookKey, "abc") + "\r\n\r\n3\r\nabc\r\nxyz\r\n"))
			c.eq("answer", r.StatusCode, 400)
			c.eq("at the backend", len(c.reached()), 0)
		}},
		{name: "without memory a request is turned down for the moment", config: "{" + rejecting + ", memoryLimit: 20000, workers: 1}", answers: []answer{{hang: true}}, want: "seen=3 dropped.incomplete=1 enqueued=2 delivered=2 truncated.memory=1", do: func(c *run) {
			body := strings.Repeat("x", 15000)
			signed := []string{hubHeader, hubSignature(hookKey, body)}
			c.eq("answer", c.send("POST", "/", body, signed...).status, 200)
			c.attempts(1)
			r := c.send("POST", "/", body, signed...)
			c.eq("answer without memory", fmt.Sprint(r.status, r.header.Get("Retry-After") != ""), "503 true")
			c.recv.release()
			c.settled()
			c.eq("answer with memory", c.send("POST", "/", body, signed...).status, 200)
			c.eq("at the backend", len(c.reached()), 2)
		}},
		{name: "a request that is left out is checked all the same", config: "{" + rejecting + ", includePaths: '^/hooks', methods: [POST, PUT]}", want: "seen=5 filtered=4 enqueued=1 delivered=1", do: func(c *run) {
			c.eq("answer to another path", c.send("POST", "/h%6Foks", lorem).status, 401)
			c.eq("answer to another method", c.get("/hooks").status, 401)
			c.eq("answer to another path, signed", c.send("POST", "/", lorem, hubHeader, hubSignature(hookKey, lorem)).body, "backend")
			c.eq("answer to another method, signed", c.get("/hooks", hubHeader, hubSignature(hookKey, "")).body, "backend")
			c.send("PUT", "/hooks", lorem, hubHeader, hubSignature(hookKey, lorem))
			c.eq("unauthenticated", c.unauthenticated(), 2)
			c.eq("at the backend", len(c.reached()), 3)
		}},
		{name: "a delivery of ours is checked, too, as its receiver could send another with its marker", config: rejecting, want: "seen=3 filtered=2 enqueued=1 delivered=1", do: func(c *run) {
			c.send("POST", "/", lorem, hubHeader, hubSignature(hookKey, lorem))
			d := c.attempts(1)[0]
			c.eq("answer", c.replay(d, nil).status, 401)
			c.eq("answer to a signed one", c.replay(d, func(h http.Header) { h.Set(hubHeader, hubSignature(hookKey, string(d.raw))) }).status, 200)
			c.eq("at the backend", len(c.reached()), 2)
		}},
		{name: "a response is captured of a held request, too", config: "{" + rejecting + ", captureResponse: status}", want: "seen=2 filtered=1 enqueued=1 delivered=1", do: func(c *run) {
			c.send("POST", "/", lorem, hubHeader, hubSignature(hookKey, lorem))
			c.send("POST", "/", lorem)
			e := c.event()
			c.eq("status", e.Response != nil && e.Response.Status == 200, true)
			c.eq("body", string(e.Body.Content), lorem)
		}},
		{name: "WebSockets pass where requests are checked", config: rejecting, want: one, do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, _ *http.Request) {
				conn, buf, err := rw.(http.Hijacker).Hijack()
				if err != nil {
					panic(err)
				}
				defer conn.Close()
				fmt.Fprint(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: Upgrade\r\n\r\n")
				line, _ := buf.ReadString('\n')
				fmt.Fprint(conn, line)
			}
			conn := c.raw("GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: echo\r\nConnection: Upgrade\r\n" + hubHeader + ": " + hubSignature(hookKey, "") + "\r\n\r\nping\n")
			got, _ := io.ReadAll(conn)
			c.eq("echo", strings.HasSuffix(string(got), "\r\n\r\nping\n"), true)
		}},

		{name: "the middleware answers itself, whatever the method", config: "answer: 202", want: "seen=9 enqueued=9 delivered=9", do: func(c *run) {
			methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"}
			for _, method := range methods {
				r := c.send(method, "/", lorem)
				c.eq("answer to "+method, fmt.Sprint(r.status, r.body, r.err), "202<nil>")
			}
			c.eq("answer to chunks", c.chunked("/", lorem).status, 202)
			for i, e := range c.events(9) {
				c.eq("method, body", e.Method+" "+string(e.Body.Content), append(methods, "POST")[i]+" "+lorem)
			}
			c.eq("at the backend", len(c.reached()), 0)
		}},
		{name: "what is not mirrored is answered all the same", config: "{answer: 204, methods: [POST], excludePaths: '^/no', sampleRate: 0}", want: "seen=3 filtered=2 sampledOut=1", do: func(c *run) {
			c.eq("answer to another method", c.get("/").status, 204)
			c.eq("answer to another path", c.send("POST", "/no", lorem).status, 204)
			c.eq("answer to one that is sampled out", c.send("POST", "/", lorem).status, 204)
			c.eq("at the backend", len(c.reached()), 0)
		}},
		{name: "a delivery that comes back is answered, and not mirrored", config: "answer: 202", want: "seen=2 filtered=1 enqueued=1 delivered=1", do: func(c *run) {
			c.send("POST", "/", lorem)
			c.eq("answer", c.replay(c.attempts(1)[0], nil).status, 202)
		}},
		{name: "several receivers get what is answered", config: "{answer: 202, watchURLs: [$URL2, $URL3]}", also: []also{{want: "seen=5 enqueued=5 delivered=5"}, {want: "seen=5 enqueued=5 delivered=5"}}, want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
			for range 5 {
				c.eq("answer", c.send("POST", "/", strings.Repeat(lorem, 1000)).status, 202)
			}
			for _, r := range c.receivers() {
				for _, e := range c.eventsAt(r, 5) {
					c.eq("body", len(e.Body.Content), 26000)
				}
			}
		}},
		{name: "receivers that hang or are down do not delay the answer", config: "-", want: "*", also: []also{{answers: []answer{{hang: true}}, want: "seen=20 dropped.queue_full=15 enqueued=5 delivered=5"}}, do: func(c *run) {
			c.use(c.mustNew("{answer: 202, watchURLs: [$URL2, 'http://" + closedPort(c) + "'], workers: 1, queueSize: 4, timeout: 1m, retry: {attempts: 1}}"))
			for i := range 20 {
				begun := time.Now()
				c.eq("answer", c.send("POST", "/", strings.Repeat("x", i*100+1)).status, 202)
				c.eq("at once", time.Since(begun) < 5*time.Second, true)
				c.events(i + 1)
				c.more[0].awaitDelivery(c, 1)
			}
			c.eq("seen by all", c.ledger().Seen, int64(20))
			c.more[0].release()
		}},
		{name: "a body that is too large is cut in its event, and answered", config: "{answer: 202, maxBodySize: 10}", want: "seen=3 enqueued=3 delivered=3 truncated.limit=3", do: func(c *run) {
			body := strings.Repeat(lorem, 20000)
			c.eq("answer", c.send("POST", "/", body).status, 202)
			c.eq("answer to chunks", c.chunked("/", body).status, 202)
			c.eq("answer to a little more", c.chunked("/", lorem).status, 202)
			for i, e := range c.events(3) {
				c.eq("kept, size, reason", fmt.Sprint(string(e.Body.Content), e.Body.Size, e.Body.Reason), fmt.Sprint(lorem[:10], []int{len(body), len(body), 26}[i], "limit"))
			}
		}},
		{name: "a copy that would be too large is refused", config: "{answer: 202, format: request, maxBodySize: 10, watchURLs: [$URL2]}", also: []also{{want: "seen=3 dropped.incomplete=3 truncated.limit=3"}}, want: "seen=3 dropped.incomplete=3 truncated.limit=3", do: func(c *run) {
			c.eq("answer", c.send("POST", "/", lorem).status, 413)
			c.eq("answer to chunks", c.chunked("/", lorem).status, 413)
			r := c.answered(c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\nExpect: 100-continue\r\n\r\n"))
			c.eq("answer before the body", r.StatusCode, 413)
		}},
		{name: "Expect: 100-continue is answered where the middleware answers", config: "answer: 202", want: one, do: func(c *run) {
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
			conn.SetReadDeadline(time.Now().Add(patience))
			line, _ := bufio.NewReader(conn).ReadString('\n')
			c.eq("interim answer", line, "HTTP/1.1 100 Continue\r\n")
			fmt.Fprint(conn, "abc")
			c.eq("body", string(c.event().Body.Content), "abc")
		}},
		{name: "an upload that breaks off is in its event as far as it came", config: "answer: 202", want: "seen=1 enqueued=1 delivered=1 truncated.aborted=1", do: func(c *run) {
			conn := c.raw("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabc")
			conn.(*net.TCPConn).CloseWrite()
			c.eq("answer", c.answered(conn).StatusCode, 400)
			e := c.event()
			c.eq("body", fmt.Sprint(string(e.Body.Content), e.Body.Size, e.Body.Reason), "abc3aborted")
		}},
		{name: "answers to what is not genuine, by onFailure", config: "-", want: "seen=4 filtered=2 enqueued=2 delivered=2", do: func(c *run) {
			for _, onFailure := range []string{"skip", "reject"} {
				c.use(c.mustNew("{answer: 202, authenticate: {secrets: [" + hookKey + "], onFailure: " + onFailure + "}}"))
				c.eq("answer to a genuine one", c.send("POST", "/", lorem, hubHeader, hubSignature(hookKey, lorem)).status, 202)
				c.eq("answer to a forged one", c.send("POST", "/", lorem).status, map[string]int{"skip": 202, "reject": 401}[onFailure])
			}
			c.eq("at the backend", len(c.reached()), 0)
		}},
		{name: "a tunnel is answered while it is open", tls: true, config: "answer: 202", want: "seen=1 enqueued=1 delivered=1 truncated.unread=1", do: func(c *run) {
			reader, writer := io.Pipe()
			defer writer.Close()
			req := c.request("CONNECT", "/", reader)
			req.URL.Opaque = ""
			c.sent.Add(1)
			resp, err := c.client.Do(req)
			if err != nil {
				c.Fatal(err)
			}
			resp.Body.Close()
			c.eq("answer", resp.StatusCode, 202)
		}},
		{name: "under everything at once the ledger adds up", loose: true, config: "{watchURLs: [$URL2], " + rejecting + ", methods: [POST], excludePaths: '^/no', sampleRate: 0.5, maxBodySize: 3000, memoryLimit: 64Ki, queueSize: 20, timeout: 200ms, retry: {attempts: 2, initialInterval: 1ms, maxInterval: 5ms}}",
			answers: statuses(204, 500, 204, 429, 204), also: []also{{answers: faults(200), want: "*"}}, want: "*", do: func(c *run) {
				stop := c.watch()
				parallel(300, func(i int) {
					body := strings.Repeat("x", i%40*100)
					signature := hubSignature([]string{hookKey, "other"}[i%3/2], body)
					want := 200
					if i%3 == 2 {
						want = 401
					}
					if len(body) > 3000 {
						want = 413
					}
					method, target := "POST", "/"
					if i%10 == 0 {
						method = "PUT"
					}
					if i%10 == 1 {
						target = "/no"
					}
					var r response
					if i%4 == 0 && method == "POST" {
						r = c.chunked(target, body, hubHeader, signature)
					} else {
						r = c.send(method, target, body, hubHeader, signature)
					}
					if r.status != want && r.status != 503 {
						c.Errorf("answer to %d: got %d, %v; want %d, or 503", i, r.status, r.err, want)
					}
				})
				c.settled()
				stop()
				for name, l := range c.ledgers() {
					c.eq("seen by "+name, l.Seen, int64(300))
				}
			}},
	})
}

// What the backend panics with is Traefik's, and the very same.
func TestScreenedPanics(t *testing.T) {
	var table []scenario
	for _, config := range []string{rejecting, skipping, "{" + rejecting + ", captureResponse: status}", "{" + rejecting + ", sampleRate: 0}"} {
		for _, value := range []any{http.ErrAbortHandler, errors.New("boom"), "boom", &identity{}} {
			want := "seen=2 enqueued=2 delivered=2"
			if strings.Contains(config, "sampleRate") {
				want = "seen=2 sampledOut=2"
			}
			table = append(table, scenario{name: fmt.Sprintf("a panic with %T goes on as it is with %s", value, config), config: config, want: want, do: func(c *run) {
				c.backend = func(_ http.ResponseWriter, req *http.Request) {
					io.Copy(io.Discard, req.Body)
					panic(value)
				}
				c.send("POST", "/", lorem, hubHeader, hubSignature(hookKey, lorem))
				c.get("/", hubHeader, hubSignature(hookKey, ""))
				for _, p := range c.passed() {
					if p.panicked != value {
						c.Errorf("panic: got %T %v; want the identical %T %v", p.panicked, p.panicked, value, value)
					}
				}
			}})
		}
	}
	runTable(t, table)
}

// TestAuthenticationSecretFile waits for seconds to pass, so all of it runs at once.
func TestAuthenticationSecretFile(t *testing.T) {
	runParallel(t, []scenario{
		{name: "a secret in a file is replaced without a reload", config: "-", secret: []string{"s3cr3t"}, want: "*", do: func(c *run) {
			file := c.file("hook", "s3cr3t-one\n")
			c.use(c.mustNew("authenticate: {secrets: ['file:" + file + "'], onFailure: reject}"))
			status := func(secret string) int {
				return c.send("POST", "/", lorem, hubHeader, hubSignature(secret, lorem)).status
			}
			c.eq("answer to the first", status("s3cr3t-one"), 200)
			c.eq("answer to another", status("s3cr3t-two"), 401)
			c.file("hook", "s3cr3t-two")
			c.until("the second one counts", func() bool { return status("s3cr3t-two") == 200 })
			c.eq("answer to the first, which is of no use any more", status("s3cr3t-one"), 401)
			c.settled()
			c.eq("pipelines", c.ledger().Pipelines, int64(1))
		}},
	})
}

func TestScreenedConfig(t *testing.T) {
	var table []scenario
	for _, b := range []struct {
		yaml  string
		paths []string
	}{
		{"{includePaths: ['(', '^/a', '[z-a]'], excludePaths: '*'}", []string{"includePaths[0]", "includePaths[2]", "excludePaths[0]"}},
		{"includePaths: {a: b}", []string{"includePaths"}},
		{"sampleRate: 1.01", []string{"sampleRate"}},
		{"sampleRate: often", []string{"sampleRate"}},
		{"authenticate: {onFailure: reject}", []string{"authenticate.secrets"}},
		{"authenticate: {secrets: []}", []string{"authenticate.secrets"}},
		{"authenticate: {secrets: ['file:/no/such/file']}", []string{"authenticate.secrets[0]"}},
		{"authenticate: s3cr3t", []string{"authenticate"}},
		{"authenticate: {secrets: {a: s3cr3t}}", []string{"authenticate.secrets"}},
		{"authenticate: {secrets: [s3cr3t], onFailure: deny, header: 'a b'}", []string{"authenticate.onFailure", "authenticate.header"}},
		{"authenticate: {secrets: [s3cr3t], secret: s3cr3t}", []string{"authenticate.secret"}},
		{"answer: 99", []string{"answer"}},
		{"answer: 600", []string{"answer"}},
		{"{answer: 202, captureResponse: body}", []string{"captureResponse"}},
		{"{" + rejecting + ", mirrorBody: false, bodyContentTypes: text/*}", []string{"mirrorBody", "bodyContentTypes"}},
		{"{format: request, mirrorBody: false, compression: gzip, maxEventSize: 1Mi, batch: {maxEvents: 2}, captureResponse: status}", []string{"mirrorBody", "compression", "maxEventSize", "batch.maxEvents", "captureResponse"}},
	} {
		var problems []string
		for _, path := range b.paths {
			problems = append(problems, "\n  "+path+": ")
		}
		if strings.Contains(b.yaml, "reject") || strings.Contains(b.yaml, "deny") {
			// A mistake must not open what is to be checked, so these are strict.
			table = append(table, scenario{name: "every problem is in the error: " + b.yaml, config: "-", strict: true, do: func(c *run) {
				_, _, err := c.newRouter(b.yaml)
				if err == nil {
					c.Fatal("New: got no error; want one")
				}
				for _, p := range problems {
					c.eq("the error has "+p, strings.Contains(err.Error(), p), true)
				}
				c.eq("the error has a secret", strings.Contains(err.Error(), "s3cr3t") || strings.Contains(err.Error(), hookKey), false)
			}})
			continue
		}
		table = append(table, scenario{name: "every problem is reported by path: " + b.yaml, config: "-", problem: problems, secret: []string{"s3cr3t", hookKey}, do: func(c *run) {
			c.mustNew(b.yaml)
			c.gone = len(c.ledgers()) == 0
			// Without a pipeline the end of the case looks at nothing.
			logged := c.eng.errors.since(c.errMark)
			for _, p := range problems {
				c.eq("the log has "+p, strings.Contains(logged, p), true)
			}
			c.eq("the log has a secret", strings.Contains(logged, "s3cr3t") || strings.Contains(logged, hookKey), false)
		}})
	}
	runTable(t, table)
}
