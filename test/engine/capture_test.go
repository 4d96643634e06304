package engine

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencommit/requestmirror/test/event"
)

// one is the ledger of one request that was mirrored and delivered.
const one = "seen=1 enqueued=1 delivered=1"

func TestCapture(t *testing.T) {
	runTable(t, []scenario{
		{name: "a GET is described as the client sent it", want: one, do: func(c *run) {
			c.get("/a%2Fb//c;d?x=1&y=%20&<b>", "Accept", "text/html", "X-Multi", "1", "X-Multi", "2, 3", "User-Agent", "probe/1")
			e := c.event()
			c.eq("method", e.Method, "GET")
			c.eq("path", e.Path, "/a%2Fb//c;d")
			c.eq("query", e.Query, "x=1&y=%20&<b>")
			c.eq("accept", e.Header["accept"], []string{"text/html"})
			c.eq("every value, in order", e.Header["x-multi"], []string{"1", "2, 3"})
			c.eq("user agent", e.UserAgent, "probe/1")
			c.eq("body", e.Body, (*event.Body)(nil))
			c.eq("cookie", len(e.Cookie), 0)
			c.eq("scheme", e.Scheme, "http")
			c.eq("protocol", e.Proto, "1.1")
			c.eq("tls", e.TLS, "")
			c.eq("client", e.Client, "127.0.0.1")
			c.eq("peer", e.Peer.Address, "127.0.0.1")
			c.eq("a peer port", e.Peer.Port > 1024, true)
			c.eq("server", fmt.Sprintf("%s:%d", e.Server.Address, e.Server.Port), c.front.Listener.Addr().String())
			c.eq("first number", e.Sequence, int64(1))
			c.eq("written without HTML escapes", bytes.Contains(e.Raw, []byte("y=%20&<b>")), true)
		}},
		{name: "HTTP/2 over TLS is described as such", tls: true, want: one, do: func(c *run) {
			c.get("/")
			e := c.event()
			c.eq("protocol, scheme, tls", e.Proto+" "+e.Scheme+" "+e.TLS, "2 https 1.3")
		}},
		{name: "every method is mirrored by default", want: "seen=8 enqueued=8 delivered=8", do: func(c *run) {
			methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "M-SEARCH"}
			for _, m := range methods {
				c.send(m, "/", "")
			}
			for i, e := range c.events(len(methods)) {
				c.eq("method", e.Method, methods[i])
			}
		}},
		{name: "only the methods of the option are mirrored, which is read in upper case", config: "methods: [post, M-search]", want: "seen=5 filtered=3 enqueued=2 delivered=2", do: func(c *run) {
			for _, m := range []string{"GET", "POST", "post", "M-SEARCH", "M-search"} {
				c.eq("answer to "+m, c.send(m, "/", "").status, 200)
			}
			e := c.events(2)
			c.eq("methods", e[0].Method+" "+e[1].Method, "POST M-SEARCH")
		}},
		{name: "credentials are redacted without being asked for", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			names := []string{"Authorization", "Proxy-Authorization", "X-Api-Key", "X-Auth-Token", "X-Amz-Security-Token", "X-Vault-Token", "X-Csrf-Token"}
			var h []string
			for _, n := range names {
				h = append(h, n, "Bearer s3cr3t")
			}
			c.get("/", append(h, "Authorization", "second s3cr3t")...)
			e := c.event()
			for _, n := range names {
				c.eq(n, e.Header[strings.ToLower(n)][0], "REDACTED")
			}
			c.eq("values of authorization", len(e.Header["authorization"]), 2)
			c.eq("the backend's authorization", c.passed()[0].header["Authorization"], []string{"Bearer s3cr3t", "second s3cr3t"})
		}},
		{name: "header modes apply to names in any case, and leave the other defaults alone",
			config: "headers: {names: {x-SECRET: redact, X-Gone: drop, X-Hash: hash, authorization: keep, x-api-key: DROP}}",
			want:   one, secret: []string{"s3cr3t"}, do: func(c *run) {
				c.get("/", "X-Secret", "s3cr3t", "X-Gone", "s3cr3t", "X-Hash", "s3cr3t", "X-Hash", "", "X-Plain", "plain", "Authorization", "kept", "X-Api-Key", "s3cr3t", "X-Vault-Token", "s3cr3t")
				h := c.event().Header
				c.eq("redacted", h["x-secret"], []string{"REDACTED"})
				c.eq("dropped", h["x-gone"] == nil && h["x-api-key"] == nil, true)
				c.eq("hashed values", len(h["x-hash"]), 2)
				c.eq("kept", h["x-plain"], []string{"plain"})
				c.eq("kept although a credential", h["authorization"], []string{"kept"})
				c.eq("redacted by default", h["x-vault-token"], []string{"REDACTED"})
			}},
		{name: "defaultMode drop leaves only the headers that are named", config: "headers: {defaultMode: drop, names: {Accept: keep, X-A: redact}}", want: one, do: func(c *run) {
			c.get("/", "Accept", "a", "X-A", "b", "X-B", "c", "Authorization", "d")
			c.eq("header", c.event().Header, map[string][]string{"accept": {"a"}, "x-a": {"REDACTED"}})
		}},
		{name: "defaultMode redact keeps the names", config: "headers: {defaultMode: redact, names: {accept: keep}}", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/", "Accept", "a", "X-B", "s3cr3t", "User-Agent", "s3cr3t")
			h := c.event().Header
			c.eq("header", h["accept"][0]+" "+h["x-b"][0]+" "+h["user-agent"][0], "a REDACTED REDACTED")
		}},
		{name: "a hash is equal for equal values and tells others apart", config: "headers: {defaultMode: hash}", want: "seen=3 enqueued=3 delivered=3", secret: []string{"alice", "robert"}, do: func(c *run) {
			for _, v := range []string{"alice", "alice", "robert"} {
				c.get("/", "X-User", v)
			}
			e := c.events(3)
			user := func(i int) string { return e[i].Header["x-user"][0] }
			c.eq("equal values", user(0), user(1))
			c.eq("other values are equal", user(0) == user(2), false)
			plain := sha256.Sum256([]byte("alice"))
			c.eq("the hash can be made without the key", strings.Contains(user(0), fmt.Sprintf("%x", plain[:8])), false)
		}},
		{name: "with hashKey the pseudonym is the same on all replicas", config: "{headers: {defaultMode: hash}, hashKey: k3y-of-hashes}", want: "seen=2 enqueued=2 delivered=2", secret: []string{"k3y-of-hashes"}, do: func(c *run) {
			c.get("/", "X-User", "alice")
			c.use(c.mustNew("headers: {defaultMode: hash}\nhashKey: k3y-of-hashes\ntimeout: 4s"))
			c.get("/", "X-User", "alice")
			e := c.events(2)
			c.eq("two pipelines", e[0].Header["x-user"], e[1].Header["x-user"])
		}},
		{name: "cookies leave only when they are named", config: "cookieNames: [visitor_*, lang]", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/", "Cookie", "session=s3cr3t; visitor_id=v-1; lang=en", "Cookie", "lang=de; xlang=s3cr3t; visitor=s3cr3t")
			e := c.event()
			c.eq("cookies", e.Cookie, map[string][]string{"visitor_id": {"v-1"}, "lang": {"en", "de"}})
			c.eq("the backend's cookies", len(c.passed()[0].header["Cookie"]), 2)
		}},
		{name: "no cookie leaves by default", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/", "Cookie", "a=s3cr3t")
			c.eq("cookies", len(c.event().Cookie), 0)
		}},
		{name: "a glob of one star takes all cookies", config: "cookieNames: '*'", want: one, do: func(c *run) {
			c.get("/", "Cookie", "a=1; b=2")
			c.eq("cookies", c.event().Cookie, map[string][]string{"a": {"1"}, "b": {"2"}})
		}},
		{name: "signing parameters of the query are redacted in any spelling", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/?lang=en&sig=s3cr3t&SIG=s3cr3t&%73ig=s3cr3t&Signature=s3cr3t&AWSAccessKeyId=s3cr3t&X-Goog-Signature=s3cr3t&sig=&flag&last=%2F")
			q := c.event().Query
			c.eq("start and end", strings.HasPrefix(q, "lang=en&sig=REDACTED&SIG=REDACTED&%73ig=REDACTED&") && strings.HasSuffix(q, "&flag&last=%2F"), true)
			c.eq("redacted", strings.Count(q, "=REDACTED"), 7)
			c.eq("the backend's target is whole", strings.Count(c.passed()[0].uri, "s3cr3t"), 6)
		}},
		{name: "query modes apply to names in any case and encoding", config: "queryParameters: {names: {Token: drop, who: hash, x y: redact, sig: keep}}", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/?token=s3cr3t&a=1&WHO=s3cr3t&x+y=s3cr3t&x%20y=s3cr3t&sig=kept&tok%65n=s3cr3t")
			q := strings.Split(c.event().Query, "&")
			if len(q) != 5 {
				c.Fatalf("query: got %q; want five parameters", q)
			}
			c.eq("kept", q[0]+" "+q[4], "a=1 sig=kept")
			c.eq("hashed", strings.HasPrefix(q[1], "WHO=") && len(q[1]) > 20, true)
			c.eq("redacted", q[2]+" "+q[3], "x+y=REDACTED x%20y=REDACTED")
		}},
		{name: "queryParameters.defaultMode redact keeps the names", config: "queryParameters: {defaultMode: redact, names: {lang: keep}}", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/?lang=en&q=s3cr3t&q=s3cr3t")
			c.eq("query", c.event().Query, "lang=en&q=REDACTED&q=REDACTED")
		}},
		{name: "queryParameters.defaultMode drop leaves nothing else", config: "queryParameters: {defaultMode: drop, names: {lang: keep}}", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/?q=s3cr3t&lang=en&sig=s3cr3t&flag")
			c.eq("query", c.event().Query, "lang=en")
		}},
		{name: "a pair that is split by a semicolon does not smuggle a signature out", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			c.get("/?a=1;sig=s3cr3t")
		}},
		{name: "the request id is taken when the request has one", want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			c.get("/", "X-Request-Id", "r-17")
			c.get("/")
			e := c.events(2)
			c.eq("request ids", e[0].RequestID+"|"+e[1].RequestID, "r-17|")
		}},
		{name: "requestID names another header", config: "requestID: x-correlation-id", want: one, do: func(c *run) {
			c.get("/", "X-Request-Id", "no", "X-Correlation-ID", "yes")
			c.eq("request id", c.event().RequestID, "yes")
		}},
		{name: "forwarded addresses are not believed by default", want: one, do: func(c *run) {
			c.get("/", "X-Forwarded-For", "203.0.113.7", "X-Real-Ip", "203.0.113.8")
			c.eq("client", c.event().Client, "127.0.0.1")
		}},
		{name: "with trustForwardHeader the client is whom the first proxy saw", config: "trustForwardHeader: true", want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
			c.get("/", "X-Forwarded-For", "203.0.113.7, 10.0.0.1")
			c.get("/", "X-Real-Ip", "203.0.113.8")
			c.get("/", "X-Forwarded-For", " 2001:db8::1 ")
			c.get("/", "X-Forwarded-For", "<script>, 10.0.0.1")
			c.get("/")
			e := c.events(5)
			c.eq("clients", []string{e[0].Client, e[1].Client, e[2].Client, e[3].Client, e[4].Client},
				[]string{"203.0.113.7", "203.0.113.8", "2001:db8::1", "127.0.0.1", "127.0.0.1"})
			c.eq("peer", e[0].Peer.Address, "127.0.0.1")
		}},
		{name: "attributes of the operator are in every event", config: "attributes: {environment: production, team: <a&b>}", want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			c.get("/")
			c.send("POST", "/", "x")
			for _, e := range c.events(2) {
				c.eq("attributes", e.Attributes, map[string]string{"environment": "production", "team": "<a&b>"})
			}
		}},
		{name: "a valid traceparent goes into event and delivery, others do not", want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
			valid := "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
			for _, v := range []string{valid, "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "x"} {
				c.get("/", "Traceparent", v)
			}
			for i, e := range c.events(5) {
				c.eq("traceparent", e.Traceparent, map[bool]string{true: valid}[i == 0])
			}
		}},
		{name: "two traceparents are none", want: one, do: func(c *run) {
			c.get("/", "Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b8-01")
			c.eq("traceparent", c.event().Traceparent, "")
		}},
		{name: "a cookie header that another middleware wrote in lower case does not leave", want: one, secret: []string{"s3cr3t"}, do: func(c *run) {
			h := c.handler
			c.use(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				req.Header["cookie"], req.Header["authorization"] = []string{"a=s3cr3t"}, []string{"s3cr3t"}
				h.ServeHTTP(rw, req)
			}))
			c.get("/")
			c.event()
		}},
		{name: "bytes that are no text never break an event", want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			io.Copy(io.Discard, c.raw("GET /\xff\xfe?\xff HTTP/1.1\r\nHost: a\r\nX-Bytes: \xff\xc3\x28\r\nUser-Agent: \xe2\x28\r\nConnection: close\r\n\r\n"))
			io.Copy(io.Discard, c.raw("GET / HTTP/1.1\r\nHost: a\r\nCookie: \xff=\xff\r\nX-Request-Id: \xff\r\nConnection: close\r\n\r\n"))
			c.events(2)
		}},
		{name: "a strange Host does not break an event", want: "seen=7 enqueued=7 delivered=7", do: func(c *run) {
			for _, host := range []string{"a:99999", "a:0", "a:x", ":81", "[::1]:8080", "[::1]", "a:+5"} {
				io.Copy(io.Discard, c.raw("GET / HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"))
			}
			e := c.events(7)
			c.eq("IPv6", fmt.Sprint(e[4].Server), "{::1 8080}")
			c.eq("IPv6 without port", fmt.Sprint(e[5].Server), "{::1 80}")
		}},
		{name: "HTTP/1.0 without a Host is mirrored", want: one, do: func(c *run) {
			io.Copy(io.Discard, c.raw("GET /old HTTP/1.0\r\n\r\n"))
			e := c.event()
			c.eq("path and protocol", e.Path+" "+e.Proto, "/old 1.0")
		}},
		{name: "a minor version of HTTP/1 that nobody knows is in the event as it came", want: one, do: func(c *run) {
			io.Copy(io.Discard, c.raw("GET / HTTP/1.2\r\nHost: a\r\nConnection: close\r\n\r\n"))
			c.eq("protocol", c.event().Proto, "1.2")
		}},
		{name: "a target in absolute form gives its path", want: one, do: func(c *run) {
			io.Copy(io.Discard, c.raw("GET http://proxied.example/x%2Fy?q=http://z HTTP/1.1\r\nHost: proxied.example\r\nConnection: close\r\n\r\n"))
			e := c.event()
			c.eq("path and query", e.Path+" "+e.Query, "/x%2Fy q=http://z")
		}},
		{name: "OPTIONS * is mirrored", want: one, do: func(c *run) {
			io.Copy(io.Discard, c.raw("OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
			c.eq("path", c.event().Path, "*")
		}},
		{name: "a header without values, which another middleware left, is not in the event", want: one, do: func(c *run) {
			h := c.handler
			c.use(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				req.Header["X-Forwarded-For"] = nil
				h.ServeHTTP(rw, req)
			}))
			c.get("/")
			c.eq("header", c.event().Header["x-forwarded-for"], []string(nil))
		}},
		{name: "format json is the same event under another content type", config: "format: json", want: one, do: func(c *run) {
			c.send("POST", "/p", "hello")
			c.eq("body", string(c.event().Body.Content), "hello")
		}},
	})
}

const lorem = "abcdefghijklmnopqrstuvwxyz"

func TestBody(t *testing.T) {
	runTable(t, []scenario{
		{name: "a body is in the event whole, and the backend has the same", want: one, do: func(c *run) {
			text := `{"post":42,"text":"buy <b>cheap</b> & \u00e4 ä"}`
			c.eq("answer", c.send("POST", "/c", text, "Content-Type", "application/json").body, "backend")
			c.eq("body", *c.event().Body, event.Body{Content: []byte(text), Text: true, Kept: true, Size: int64(len(text))})
			p := c.passed()[0]
			c.eq("backend", string(p.content), text)
			c.eq("content length", p.got, int64(len(text)))
			c.eq("written without HTML escapes", bytes.Contains(c.event().Raw, []byte(`<b>cheap</b> &`)), true)
		}},
		{name: "a body of unknown length is whole, too", want: one, do: func(c *run) {
			c.chunked("/", lorem)
			c.eq("body", *c.event().Body, event.Body{Content: []byte(lorem), Text: true, Kept: true, Size: 26})
			c.eq("content length", c.passed()[0].got, int64(-1))
		}},
		{name: "a body of unknown length that is empty is not cut", want: one, do: func(c *run) {
			c.chunked("/", "")
			if b := c.event().Body; b != nil && (b.Size != 0 || b.Truncated) {
				c.Errorf("body: got %+v; want none, or an empty one", *b)
			}
		}},
		{name: "a body larger than the limit is cut, the backend sees all of it", config: "maxBodySize: 10", want: "seen=2 enqueued=2 delivered=2 truncated.limit=2", do: func(c *run) {
			c.send("POST", "/", lorem)
			c.chunked("/", lorem)
			for i, e := range c.events(2) {
				c.eq("body", *e.Body, event.Body{Content: []byte(lorem[:10]), Text: true, Kept: true, Size: 26, Truncated: true, Reason: "limit"})
				c.eq("backend", string(c.passed()[i].content), lorem)
			}
		}},
		{name: "a body of exactly the limit is whole", config: "maxBodySize: 26", want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			c.send("POST", "/", lorem)
			c.chunked("/", lorem)
			for _, e := range c.events(2) {
				c.eq("body", *e.Body, event.Body{Content: []byte(lorem), Text: true, Kept: true, Size: 26})
			}
		}},
		{name: "a text is cut on a character boundary", config: "maxBodySize: 5", want: "seen=3 enqueued=3 delivered=3 truncated.limit=3", do: func(c *run) {
			texts := []string{"abcdäöü", "a€€€", "a😀😀"}
			for _, text := range texts {
				c.send("POST", "/", text)
			}
			for i, want := range []string{"abcd", "a€", "a😀"} {
				b := c.events(3)[i].Body
				c.eq("text", fmt.Sprintf("%s %t %d", b.Content, b.Text, b.Size), fmt.Sprintf("%s true %d", want, len(texts[i])))
			}
		}},
		{name: "bytes that are no text come as base64, cut at the limit", config: "maxBodySize: 4", want: "seen=2 enqueued=2 delivered=2 truncated.limit=1", do: func(c *run) {
			c.send("POST", "/", "\x00\xff\x01")
			c.send("POST", "/", "\xff\xfe\xfd\xfc\xfb")
			e := c.events(2)
			c.eq("whole", *e[0].Body, event.Body{Content: []byte("\x00\xff\x01"), Kept: true, Size: 3})
			c.eq("cut", *e[1].Body, event.Body{Content: []byte("\xff\xfe\xfd\xfc"), Kept: true, Size: 5, Truncated: true, Reason: "limit"})
		}},
		{name: "maxBodySize 0 keeps nothing of a body", config: "maxBodySize: 0", want: "seen=1 enqueued=1 delivered=1 truncated.limit=1", do: func(c *run) {
			c.send("POST", "/", lorem)
			b := c.event().Body
			c.eq("kept", len(b.Content), 0)
			c.eq("size and reason", fmt.Sprintf("%d %s", b.Size, b.Reason), "26 limit")
			c.eq("backend", string(c.passed()[0].content), lorem)
		}},
		{name: "a client that goes away leaves what it sent", want: "seen=2 enqueued=2 delivered=2 truncated.aborted=2", do: func(c *run) {
			for _, head := range []string{"Content-Length: 100\r\n\r\nabcdefghij", "Transfer-Encoding: chunked\r\n\r\na\r\nabcdefghij\r\n5\r\n"} {
				conn := c.raw("POST /gone HTTP/1.1\r\nHost: a\r\n" + head)
				conn.Close()
				c.passed()
			}
			for i, e := range c.events(2) {
				c.eq("body", *e.Body, event.Body{Content: []byte("abcdefghij"), Text: true, Kept: true, Size: 10, Truncated: true, Reason: "aborted"})
				c.eq("the backend's error", errors.Is(c.passed()[i].err, io.ErrUnexpectedEOF), true)
			}
		}},
		{name: "a body that the backend does not read is not read for it", want: "seen=2 enqueued=2 delivered=2 truncated.unread=2", do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) { rw.WriteHeader(413) }
			c.eq("answer", c.send("POST", "/", lorem).status, 413)
			c.chunked("/", lorem)
			for _, e := range c.events(2) {
				c.eq("body", *e.Body, event.Body{Truncated: true, Reason: "unread"})
			}
		}},
		{name: "a body that the backend reads in part is in the event in part", want: "seen=1 enqueued=1 delivered=1 truncated.unread=1", do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) { io.ReadFull(req.Body, make([]byte, 5)) }
			c.send("POST", "/", lorem)
			c.eq("body", *c.event().Body, event.Body{Content: []byte("abcde"), Text: true, Kept: true, Size: 5, Truncated: true, Reason: "unread"})
		}},
		{name: "a body that is read to its length but not to its end is whole", want: one, do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, req *http.Request) { io.ReadFull(req.Body, make([]byte, 26)) }
			c.send("POST", "/", lorem)
			c.eq("body", *c.event().Body, event.Body{Content: []byte(lorem), Text: true, Kept: true, Size: 26})
		}},
		{name: "a body that finds no memory is not kept, the event goes out", config: "memoryLimit: 1Ki", want: "seen=2 enqueued=2 delivered=2 truncated.memory=2", do: func(c *run) {
			big := strings.Repeat("x", 64<<10)
			c.send("POST", "/", big)
			c.chunked("/", big)
			for i, e := range c.events(2) {
				b := e.Body
				c.eq("size and reason", fmt.Sprintf("%d %t %s %t", b.Size, b.Truncated, b.Reason, len(b.Content) <= 1024), "65536 true memory true")
				c.eq("backend", len(c.passed()[i].content), 64<<10)
			}
		}},
		{name: "only bodies of the wanted content types are kept", config: "bodyContentTypes: [application/json, text/*]", want: "seen=6 enqueued=6 delivered=6 truncated.content-type=3", do: func(c *run) {
			types := []string{"Application/JSON; charset=utf-8", "text/html", "application/jsonp", "image/png", "", "text/plain"}
			for _, ct := range types {
				c.send("POST", "/", lorem, "Content-Type", ct)
			}
			for i, e := range c.events(6) {
				kept := i < 2 || i == 5
				c.eq("kept of "+types[i], e.Body.Kept, kept)
				c.eq("size of "+types[i], e.Body.Size, int64(26))
				c.eq("reason of "+types[i], e.Body.Reason, map[bool]string{false: "content-type"}[kept])
				c.eq("backend", string(c.passed()[i].content), lorem)
			}
		}},
		{name: "mirrorBody false keeps no body", config: "mirrorBody: false", want: "seen=3 enqueued=3 delivered=3 truncated.disabled=2", secret: []string{lorem}, do: func(c *run) {
			c.send("POST", "/", lorem)
			c.chunked("/", lorem)
			c.send("POST", "/", "")
			e := c.events(3)
			c.eq("known length", *e[0].Body, event.Body{Size: 26, Truncated: true, Reason: "disabled"})
			c.eq("unknown length", e[1].Body.Reason, "disabled")
			c.eq("no body", e[2].Body, (*event.Body)(nil))
			c.eq("backend", string(c.passed()[0].content)+string(c.passed()[1].content), lorem+lorem)
		}},
		{name: "large bodies come whole, whatever buffers were used before", config: "maxBodySize: 2Mi", want: "seen=6 enqueued=6 delivered=6", do: func(c *run) {
			sizes := []int{1 << 20, 200<<10 + 1, 32 << 10, 4<<10 + 1, 1<<20 + 7, 4096}
			for i, n := range sizes {
				body := strings.Repeat(string(rune('a'+i)), n)
				if i%2 == 0 {
					c.send("POST", "/", body)
				} else {
					c.chunked("/", body)
				}
				e := c.events(i + 1)[i]
				c.eq("body", e.Body.Size == int64(n) && string(e.Body.Content) == body, true)
				c.eq("backend", string(c.passed()[i].content) == body, true)
			}
		}},
		{name: "bodies of many requests at once are not mixed up", config: "queueSize: 1000", want: "seen=120 enqueued=120 delivered=120", do: func(c *run) {
			body := func(i int) string { return strings.Repeat(fmt.Sprintf("<%d>", i), 1+i*200) }
			parallel(120, func(i int) {
				if i%3 == 0 {
					c.chunked(fmt.Sprintf("/%d", i), body(i))
				} else {
					c.send("POST", fmt.Sprintf("/%d", i), body(i))
				}
			})
			paths := map[string]bool{}
			for _, e := range c.events(120) {
				var i int
				fmt.Sscanf(e.Path, "/%d", &i)
				paths[e.Path] = true
				c.eq("body of "+e.Path, string(e.Body.Content) == body(i), true)
			}
			c.eq("requests", len(paths), 120)
		}},
	})
}

// parallel runs f n times, from 8 goroutines.
func parallel(n int, f func(int)) {
	var wg sync.WaitGroup
	work := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range work {
				f(i)
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	wg.Wait()
}
