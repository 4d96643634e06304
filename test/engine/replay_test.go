package engine

import (
	"bytes"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"regexp"
	"strings"
	"testing"
)

// Cases of format request have deliveries that are no events, so they end with
// replayed instead of the checks of all others.

// replayed waits for the outcome of all requests and checks what holds at the end.
func (c *run) replayed(want string) {
	c.Helper()
	l := c.settled()
	c.eq("ledger", l.String(), want)
	for i, other := range c.sc.also {
		c.eq(fmt.Sprintf("ledger of receiver %d", i+2), c.ledgerOf(c.more[i]).String(), other.want)
	}
	for name, l := range c.ledgers() {
		if l.Held != 0 || l.QueueLen != 0 {
			c.Errorf("%s: got %d bytes held, %d in the queue at the end; want none", name, l.Held, l.QueueLen)
		}
	}
	for _, r := range c.receivers() {
		c.eq("reports", len(r.told()), 0)
		for _, d := range r.deliveries() {
			for _, name := range []string{"X-Mirrored-From", "X-Mirrored-Id", "X-Mirrored-Sequence", "Requestmirror-Delivery"} {
				c.eq(name+" of "+d.path, len(d.header.Values(name)), 1)
			}
			if !uuid7.MatchString(d.header.Get("X-Mirrored-Id")) || !aTrace.MatchString(d.header.Get("Traceparent")) {
				c.Errorf("got id %q in trace %q; want a UUIDv7, and a valid one", d.header.Get("X-Mirrored-Id"), d.header.Get("Traceparent"))
			}
			c.eq("source", strings.HasSuffix(d.header.Get("X-Mirrored-From"), "/middlewares/"+c.name), true)
		}
	}
	for _, text := range []string{"internal error", "invalid configuration"} {
		c.eq("logged "+text, strings.Contains(c.eng.errors.since(c.errMark), text), false)
	}
	c.gone = true
}

var aTrace = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// copyOf waits for the n-th delivery, from 1.
func (c *run) copyOf(n int) delivery {
	c.Helper()
	return c.attempts(n)[n-1]
}

func TestReplay(t *testing.T) {
	random := make([]byte, 1<<20)
	_, _ = rand.New(rand.NewSource(1)).Read(random)
	runTable(t, []scenario{
		{name: "a request is sent once more: method, path, query, header and body", config: "{format: request, watchURL: '$URL/in/?token=x'}", do: func(c *run) {
			for i, target := range []string{"/a%2Fb?c=%64&d", "/x//y", "/%7Euser/%41", "/a;b:c@d&e=f+g$h,i!j*k'(l)", "/a|b%2F", "/?", "/a/../b"} {
				r := c.send("PUT", target, lorem, "X-Many", "2", "X-Many", "1", "X-Hub-Signature-256", "sha256=ab", "Webhook-Id", "msg_1")
				c.eq("answer", r.body, "backend")
				got := c.copyOf(i + 1)
				path, query, _ := strings.Cut(target, "?")
				if query != "" {
					query = "&" + query
				}
				c.eq("target", got.path, "/in"+strings.ReplaceAll(path, "|", "%7C")+"?token=x"+query)
				c.eq("method and body", got.method+string(got.raw), "PUT"+lorem)
				c.eq("values", got.header["X-Many"], []string{"2", "1"})
				c.eq("of the sender", got.header.Get("X-Hub-Signature-256")+got.header.Get("Webhook-Id"), "sha256=abmsg_1")
				c.eq("Webhook-Timestamp, -Signature", got.header.Get("Webhook-Timestamp")+got.header.Get("Webhook-Signature"), "")
				c.eq("forwarded", got.header.Get("X-Forwarded-For")+" "+got.header.Get("X-Forwarded-Host")+" "+got.header.Get("X-Forwarded-Proto"),
					"127.0.0.1 "+strings.TrimPrefix(c.front.URL, "http://")+" http")
			}
			c.replayed("seen=7 enqueued=7 delivered=7")
		}},
		{name: "over HTTP/2, too", config: "format: request", tls: true, do: func(c *run) {
			c.send("POST", "/a%2Fb?c=d", lorem)
			got := c.copyOf(1)
			c.eq("copy", got.method+" "+got.path+" "+string(got.raw)+" "+got.header.Get("X-Forwarded-Proto"), "POST /a%2Fb?c=d "+lorem+" https")
			c.replayed(one)
		}},
		{name: "bodies of every kind arrive byte by byte", config: "format: request", do: func(c *run) {
			for i, body := range [][]byte{nil, []byte("x"), []byte(lorem), random[:4096], random[:4097], random[:300_000], random} {
				if i%2 == 0 {
					c.send("POST", "/", string(body))
				} else {
					c.chunked("/", string(body))
				}
				got := c.copyOf(i + 1)
				c.eq("body", bytes.Equal(got.raw, body), true)
				c.eq("length", got.header.Get("Content-Length"), fmt.Sprint(len(body)))
				c.eq("encoding", got.header.Get("Transfer-Encoding"), "")
			}
			c.replayed("seen=7 enqueued=7 delivered=7")
		}},
		{name: "what is of the connection is not sent on, nor what the client's Connection names", config: "format: request", do: func(c *run) {
			conn := c.raw("GET //x//y HTTP/1.1\r\nHost: a.test\r\nConnection: close, X-Private\r\nX-Private: 1\r\nKeep-Alive: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nProxy-Authorization: 1\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn)
			c.eq("target", c.copyOf(1).path, "//x//y")
			got := c.copyOf(1).header
			for _, name := range []string{"X-Private", "Keep-Alive", "Te", "Upgrade", "Proxy-Authorization", "User-Agent", "Accept-Encoding", "Content-Length"} {
				c.eq(name, got[name], []string(nil))
			}
			c.eq("host", got.Get("X-Forwarded-Host"), "a.test")
			c.replayed(one)
		}},
		{name: "credentials and cookies stay unless the operator lets them go", secret: []string{"s3cr3t"}, config: "{format: request, cookieNames: [theme]}", do: func(c *run) {
			c.get("/?sig=s3cr3t&a=1", "Authorization", "Bearer s3cr3t", "Cookie", "session=s3cr3t; theme=dark")
			got := c.copyOf(1)
			c.eq("copy", got.path+" "+got.header.Get("Authorization")+" "+got.header.Get("Cookie"), "/?sig=REDACTED&a=1 REDACTED theme=dark")
			c.replayed(one)
		}},
		{name: "the operator lets them go", do: func(c *run) {
			c.get("/?sig=a", "Authorization", "Bearer a", "Cookie", "session=b", "X-Api-Key", "c", "X-Token", "d")
			got := c.copyOf(1)
			c.eq("copy", got.path+" "+got.header.Get("Authorization")+" "+got.header.Get("Cookie")+got.header.Get("X-Token"), "/?sig=a Bearer a session=b")
			c.eq("pseudonym", strings.HasPrefix(got.header.Get("X-Api-Key"), "hmac-sha256:"), true)
			c.replayed(one)
		}, config: "{format: request, cookieNames: ['*'], headers: {names: {Authorization: keep, X-Api-Key: hash, X-Token: drop}}, queryParameters: {names: {sig: keep}}}"},
		{name: "each attempt sends all of it, under one id", config: "{format: request, retry: {attempts: 3, initialInterval: 1ms}}", answers: statuses(503, 429, 204), do: func(c *run) {
			c.send("POST", "/", string(random))
			all := c.attempts(3)
			for _, d := range all {
				c.eq("body", bytes.Equal(d.raw, random), true)
				c.eq("id", d.header.Get("X-Mirrored-Id")+d.header.Get("Traceparent"), all[0].header.Get("X-Mirrored-Id")+all[0].header.Get("Traceparent"))
			}
			c.replayed("seen=1 enqueued=1 delivered=1 retried=2")
		}},
		{name: "several receivers get it under one id and in one trace", config: "{format: request, watchURLs: [$URL2]}", also: []also{{want: one}}, do: func(c *run) {
			c.send("POST", "/", string(random))
			a := c.copyOf(1)
			c.more[0].awaitDelivery(c, 1)
			b := c.more[0].deliveries()[0]
			c.eq("id and trace", b.header.Get("X-Mirrored-Id")+b.header.Get("Traceparent"), a.header.Get("X-Mirrored-Id")+a.header.Get("Traceparent"))
			c.eq("bodies", bytes.Equal(a.raw, random) && bytes.Equal(b.raw, random), true)
			c.replayed(one)
		}},
		{name: "a trace goes on with its state, and one that is not valid begins anew without", config: "format: request", do: func(c *run) {
			const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
			c.get("/", "Traceparent", trace, "Tracestate", "a=1")
			c.eq("kept", c.copyOf(1).header.Get("Traceparent")+c.copyOf(1).header.Get("Tracestate"), trace+"a=1")
			c.get("/", "Traceparent", trace[1:], "Tracestate", "a=1")
			c.eq("state", c.copyOf(2).header.Get("Tracestate"), "")
			c.eq("begun", c.copyOf(2).header.Get("Traceparent") != trace[1:], true)
			c.replayed("seen=2 enqueued=2 delivered=2")
		}},
		{name: "a body above the limit is not sent cut", config: "{format: request, maxBodySize: 1000}", do: func(c *run) {
			for i := range 4 {
				body := string(random[:1000+i%2])
				if i < 2 {
					c.send("POST", "/", body)
				} else {
					c.chunked("/", body)
				}
			}
			c.settled()
			c.eq("numbers of those that are sent", len(c.recv.deliveries()), 2)
			for _, d := range c.recv.deliveries() {
				c.eq("body", bytes.Equal(d.raw, random[:1000]), true)
			}
			c.replayed("seen=4 dropped.incomplete=2 enqueued=2 delivered=2 truncated.limit=2")
		}},
		{name: "one without memory is not sent cut, and memory is given back", config: "{format: request, memoryLimit: 1000}", do: func(c *run) {
			c.send("POST", "/", string(random[:2000]))
			c.settled()
			c.send("POST", "/", string(random[:900]))
			c.eq("body", bytes.Equal(c.copyOf(1).raw, random[:900]), true)
			c.replayed("seen=2 dropped.incomplete=1 enqueued=1 delivered=1 truncated.memory=1")
		}},
		{name: "one that the backend does not read is not sent cut", config: "format: request", do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, _ *http.Request) { fmt.Fprint(rw, "early") }
			c.send("POST", "/", string(random[:2000]))
			c.replayed("seen=1 dropped.incomplete=1 truncated.unread=1")
		}},
		{name: "one that the client breaks off is not sent cut", config: "format: request", do: func(c *run) {
			read := make(chan bool)
			c.backend = func(_ http.ResponseWriter, req *http.Request) {
				_, _ = io.ReadFull(req.Body, make([]byte, 100))
				close(read)
				_, _ = io.Copy(io.Discard, req.Body)
			}
			conn := c.raw("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2000\r\n\r\n" + strings.Repeat("x", 100))
			<-read
			conn.Close()
			c.replayed("seen=1 dropped.incomplete=1 truncated.aborted=1")
		}},
		{name: "an upgrade is sent on as a plain request", config: "format: request", do: func(c *run) {
			c.get("/", "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")
			got := c.copyOf(1).header
			c.eq("header", got.Get("Upgrade")+got.Get("Connection")+got.Get("Sec-WebSocket-Key"), "dGhlIHNhbXBsZSBub25jZQ==")
			c.replayed(one)
		}},
		{name: "a tunnel is not sent on", config: "format: request", do: func(c *run) {
			c.backend = func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusBadGateway) }
			conn := c.raw("CONNECT db.test:5432 HTTP/1.1\r\nHost: db.test:5432\r\n\r\n")
			_, _ = conn.Read(make([]byte, 1))
			c.replayed("seen=1 filtered=1")
		}},
		{name: "no report is ever sent", config: "{format: request, reportInterval: 1ms, queueSize: 1}", do: func(c *run) {
			for i := range 5 {
				c.get("/")
				c.attempts(i + 1)
				c.settled()
			}
			c.replayed("seen=5 enqueued=5 delivered=5")
		}},
		{name: "a copy that comes back is passed on and not sent again", config: "-", do: func(c *run) {
			c.use(c.mustNew("{format: request, watchURL: '" + c.front.URL + "/copy'}"))
			c.sent.Add(1) // the copy
			c.get("/a")
			var paths []string
			for _, p := range c.passed() {
				paths = append(paths, p.uri)
			}
			c.eq("passed on", len(paths) == 2 && strings.Contains(strings.Join(paths, " "), "/copy/a"), true)
			c.replayed("seen=2 filtered=1 enqueued=1 delivered=1")
		}},
		{name: "a marker that a client makes up hides nothing", config: "format: request", do: func(c *run) {
			c.get("/", "Requestmirror-Delivery", "1700000000,v1,"+strings.Repeat("A", 43)+"=")
			c.eq("marker", len(c.copyOf(1).header.Values("Requestmirror-Delivery")), 1)
			c.replayed(one)
		}},
		{name: "all that copies cannot have is refused at once", config: "{format: request, batch: {maxEvents: 5}, compression: gzip, maxEventSize: 1Mi, redactBodyFields: [a], captureResponse: body, mirrorBody: false, bodyContentTypes: [a/b]}",
			problem: []string{"batch.maxEvents: more than 1", "compression: gzip", "maxEventSize: given", "redactBodyFields: given", `captureResponse: "body"`, "mirrorBody: false", "bodyContentTypes: given"},
			do:      func(c *run) { c.eq("answer", c.send("POST", "/", lorem).body, "backend") }},
		{name: "large bodies at once each arrive whole", config: "{format: request, workers: 8, timeout: 1m, maxBodySize: 4Mi, memoryLimit: 256Mi}", do: func(c *run) {
			const n = 12
			parallel(n, func(i int) {
				c.eq("answer", c.send("POST", "/", strings.Repeat(string(rune('a'+i)), 3<<20)).body, "backend")
			})
			fills := map[byte]bool{}
			for _, d := range c.attempts(n) {
				c.eq("one byte's repetition", bytes.Count(d.raw, d.raw[:1]), 3<<20)
				fills[d.raw[0]] = true
			}
			c.eq("bodies", len(fills), n)
			c.replayed("seen=12 enqueued=12 delivered=12")
		}},
	})
}
