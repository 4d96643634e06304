package engine

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
)

const (
	secretA = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="
	secretB = "whsec_plJ3nmyCDGBKInavdOK15jslplJ3nmyCDGBKInavdOI="
	fast    = "retry: {initialInterval: 1ms, maxInterval: 5ms}"
)

func statuses(codes ...int) []answer {
	var out []answer
	for _, code := range codes {
		out = append(out, answer{status: code})
	}
	return out
}

// closedPort is an address on which nobody listens.
func closedPort(c *run) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestDelivery(t *testing.T) {
	var table []scenario
	for _, code := range []int{408, 425, 429, 500, 502, 503, 504, 599} {
		table = append(table, scenario{name: fmt.Sprintf("%d is retried with the same event", code), config: fast, answers: statuses(code, 200),
			want: "seen=1 enqueued=1 delivered=1 retried=1", do: func(c *run) {
				c.send("POST", "/", lorem)
				d := c.attempts(2)
				c.eq("webhook-id", d[0].header.Get("Webhook-Id"), d[1].header.Get("Webhook-Id"))
				c.eq("webhook-id is the event's", d[0].header.Get("Webhook-Id"), c.event().ID)
				c.eq("bytes", bytes.Equal(d[0].raw, d[1].raw), true)
			}})
	}
	for code, reason := range map[int]string{400: "rejected", 401: "rejected", 404: "rejected", 422: "rejected", 301: "rejected", 302: "rejected", 307: "rejected", 308: "rejected", 304: "rejected", 413: "too_large"} {
		table = append(table, scenario{name: fmt.Sprintf("%d is not tried again", code), config: fast,
			answers: []answer{{status: code, header: http.Header{"Location": {"/elsewhere"}}}, {}},
			want:    "seen=2 enqueued=2 delivered=1 failed." + reason + "=1", do: func(c *run) {
				c.get("/1")
				c.attempts(1)
				c.get("/2")
				d := c.attempts(2)
				c.settled()
				c.eq("attempts", len(d), 2)
				c.eq("targets", d[0].path+" "+d[1].path, "/ /") // a redirect is not followed
			}})
	}
	runTable(t, append(table, []scenario{
		{name: "the path and the query of watchURL are the receiver's", config: "watchURL: $URL/hooks/a%2Fb?x=1#fragment", want: one, do: func(c *run) {
			c.get("/")
			c.eq("target", c.attempts(1)[0].path, "/hooks/a%2Fb?x=1")
		}},
		{name: "userinfo becomes Basic auth and is seen nowhere else", config: "watchURL: http://us%40er:pa55word@$HOST/\nretry: {attempts: 1}", answers: []answer{{status: 500}}, want: "seen=1 enqueued=1 failed.server_error=1", secret: []string{"pa55word", base64.StdEncoding.EncodeToString([]byte("us@er:pa55word"))}, do: func(c *run) {
			c.get("/")
			c.eq("authorization", c.attempts(1)[0].header.Get("Authorization"), "Basic "+base64.StdEncoding.EncodeToString([]byte("us@er:pa55word")))
			c.settled()
		}},
		{name: "customRequestHeaders go with every delivery", config: "customRequestHeaders: {authorization: Bearer t0ken, X-Tenant: a}", want: one, secret: []string{"t0ken"}, do: func(c *run) {
			c.get("/")
			h := c.attempts(1)[0].header
			c.eq("headers", h.Get("Authorization")+"|"+h.Get("X-Tenant"), "Bearer t0ken|a")
		}},
		{name: "a delivery is signed by Standard Webhooks", config: "signingSecrets: [" + secretA + "]", answers: statuses(500, 200), want: "seen=1 enqueued=1 delivered=1 retried=1", secret: []string{secretA[6:]}, do: func(c *run) {
			c.send("POST", "/", lorem)
			for _, d := range c.attempts(2) {
				if err := event.Verify(secretA, d.header, d.raw); err != nil {
					c.Error(err)
				}
				if event.Verify(secretB, d.header, d.raw) == nil || event.Verify(secretA, d.header, append(d.raw, ' ')) == nil {
					c.Error("verify: got accepted with another secret or body; want an error")
				}
			}
		}},
		{name: "while secrets rotate all of them sign, the first one first", config: "signingSecrets: [" + secretA + ", " + secretB + "]", want: one, do: func(c *run) {
			c.get("/")
			d := c.attempts(1)[0]
			for _, secret := range []string{secretA, secretB} {
				if err := event.Verify(secret, d.header, d.raw); err != nil {
					c.Error(err)
				}
			}
			sigs := strings.Split(d.header.Get("Webhook-Signature"), " ")
			c.eq("signatures", len(sigs), 2)
			only := http.Header{"Webhook-Id": d.header["Webhook-Id"], "Webhook-Timestamp": d.header["Webhook-Timestamp"], "Webhook-Signature": sigs[:1]}
			if err := event.Verify(secretA, only, d.raw); err != nil {
				c.Errorf("the first signature: got %v; want it of the first secret", err)
			}
		}},
		{name: "without secrets there is no signature", want: one, do: func(c *run) {
			c.get("/")
			c.eq("signature", c.attempts(1)[0].header["Webhook-Signature"], []string(nil))
		}},
		{name: "an outage longer than all attempts is a server error", config: "retry: {attempts: 3, initialInterval: 1ms, maxInterval: 2ms}", answers: statuses(503), want: "seen=1 enqueued=1 failed.server_error=1 retried=2", do: func(c *run) {
			c.get("/")
			c.settled()
			c.eq("attempts", len(c.recv.deliveries()), 3)
		}},
		{name: "one attempt means no retry", config: "retry: {attempts: 1}", answers: statuses(429), want: "seen=1 enqueued=1 failed.rejected=1", do: func(c *run) { c.get("/") }},
		{name: "410 keeps later events away from the receiver", config: "workers: 1", answers: statuses(410), want: "seen=4 dropped.circuit_open=3 enqueued=1 failed.gone=1", do: func(c *run) {
			c.get("/")
			c.settled()
			for range 3 {
				c.send("POST", "/", lorem)
			}
			c.settled()
			c.eq("attempts", len(c.recv.deliveries()), 1)
		}},
		{name: "no answer within timeout is a timeout, and is tried again", config: "{timeout: 50ms, retry: {attempts: 2, initialInterval: 1ms}}", answers: []answer{{hang: true}}, want: "seen=1 enqueued=1 failed.timeout=1 retried=1", do: func(c *run) {
			c.get("/")
			c.settled()
			c.eq("attempts", len(c.recv.deliveries()), 2)
		}},
		{name: "a receiver that was slow once gets the event again", config: "{timeout: 100ms, retry: {attempts: 3, initialInterval: 1ms}}", answers: []answer{{hang: true}, {}}, want: "seen=1 enqueued=1 delivered=1 retried=1", do: func(c *run) {
			c.get("/")
			c.attempts(2)
		}},
		{name: "nobody listening is a network error", config: "-", want: "seen=1 enqueued=1 failed.network_error=1 retried=1", secret: []string{"pa55word"}, do: func(c *run) {
			c.use(c.mustNew("watchURL: http://user:pa55word@" + closedPort(c) + "\nretry: {attempts: 2, initialInterval: 1ms}"))
			c.get("/")
			c.settled()
		}},
		{name: "a connection that is cut is tried again", config: fast, answers: []answer{{cut: true}, {}}, want: "seen=1 enqueued=1 delivered=1 retried=1", do: func(c *run) {
			c.send("POST", "/", lorem)
			c.attempts(2)
		}},
		{name: "an event that waits longer than maxAge is expired", config: "{workers: 1, maxAge: 150ms, timeout: 300ms, retry: {attempts: 1}}", answers: []answer{{hang: true}, {}}, want: "seen=2 enqueued=2 failed.expired=1 failed.timeout=1", do: func(c *run) {
			c.get("/1")
			c.attempts(1)
			c.get("/2")
			c.settled()
			c.eq("attempts", len(c.recv.deliveries()), 1)
		}},
		{name: "a receiver that asks to wait longer than maxAge lets events expire at once", config: "{maxAge: 60s, workers: 1}", answers: []answer{{status: 503, after: "100"}, {}}, want: "seen=1 enqueued=1 failed.expired=1", do: func(c *run) {
			c.get("/")
			c.settled() // has less patience than maxAge
		}},
		{name: "a Retry-After that overflows is only long", config: "maxAge: 1s", answers: statuses(503), want: "seen=2 enqueued=2 failed.expired=2", do: func(c *run) {
			c.recv.mu.Lock()
			c.recv.script = []answer{{status: 503, after: "99999999999999999999"}}
			c.recv.mu.Unlock()
			c.get("/1")
			c.settled()
			begun := time.Now()
			c.until("the first pause is a good part over", func() bool { return time.Since(begun) > 400*time.Millisecond })
			c.get("/2") // waits for as long as it may, and then asks again
			c.settled()
			c.eq("attempts", len(c.recv.deliveries()), 2)
		}},
		{name: "the certificate of the receiver is verified", secure: true, config: "retry: {attempts: 1}", want: "seen=1 enqueued=1 failed.network_error=1", do: func(c *run) { c.get("/") }},
		{name: "tls.insecureSkipVerify does not verify it, and HTTP/2 is used where it is offered", secure: true, config: "tls: {insecureSkipVerify: true}", want: one, do: func(c *run) {
			c.get("/")
			c.eq("protocol", c.attempts(1)[0].proto, "HTTP/2.0")
		}},
		{name: "tls.ca trusts a certificate of one's own", secure: true, config: "-", want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.recv.Certificate().Raw}))
			file := filepath.Join(c.TempDir(), "ca.pem")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				c.Fatal(err)
			}
			for i, ca := range []string{text, file} {
				c.use(c.mustNew(fmt.Sprintf("tls: {ca: %q, serverName: example.com}\ntimeout: %ds", ca, i+3)))
				c.get("/")
				c.events(i + 1)
			}
		}},
		{name: "a full queue drops the newest", config: "{workers: 1, queueSize: 2}", answers: []answer{{hang: true}}, want: "seen=6 dropped.queue_full=3 enqueued=3 delivered=3", do: func(c *run) {
			c.get("/1")
			c.attempts(1)
			for i := 2; i <= 6; i++ {
				c.send("POST", fmt.Sprintf("/%d", i), lorem)
			}
			c.passed()
			c.recv.release()
			c.eq("sequence", sequence(c.events(3)), "1 2 3")
		}},
		{name: "with overflow dropOldest a full queue drops the oldest that waits", config: "{workers: 1, queueSize: 2, overflow: dropOldest}", answers: []answer{{hang: true}}, want: "seen=6 enqueued=6 delivered=3 failed.queue_full=3", do: func(c *run) {
			c.get("/1")
			c.attempts(1)
			for i := 2; i <= 6; i++ {
				c.send("POST", fmt.Sprintf("/%d", i), lorem)
			}
			l := c.passedLedger()
			c.eq("held are the bytes of two bodies", l.Held <= 2*26+200, true)
			c.recv.release()
			c.eq("sequence", sequence(c.events(3)), "1 5 6")
		}},
		{name: "headers are bounded by what they take, not by what they say", config: "{workers: 1, queueSize: 100}", answers: []answer{{hang: true}}, want: "seen=5 dropped.memory=4 enqueued=1 delivered=1", do: func(c *run) {
			c.get("/1")
			c.attempts(1)
			for range 4 { // each of 60,000 empty values, which are a quarter of a megabyte on the wire, and more than one in memory
				io.Copy(io.Discard, c.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"+strings.Repeat("a:\r\n", 60_000)+"\r\n"))
			}
			c.passed()
			c.recv.release()
			c.eq("delivered", c.event().Path, "/1")
		}},
		{name: "memory is bounded in bytes over all that waits, events go out without body", config: "{workers: 1, memoryLimit: 100Ki, queueSize: 100}", answers: []answer{{hang: true}},
			want: "seen=20 enqueued=20 delivered=20 truncated.memory=", do: func(c *run) {
				for range 20 {
					c.send("POST", "/", strings.Repeat("m", 20<<10))
				}
				l := c.passedLedger()
				c.eq("held of the limit", l.Held > 50<<10 && l.Held <= 100<<10 && l.Limit == 100<<10, true)
				c.recv.release()
				whole, cut := 0, 0
				for _, e := range c.events(20) {
					if e.Body.Truncated {
						c.eq("reason and size", fmt.Sprint(e.Body.Reason, e.Body.Size), "memory20480")
						cut++
					} else {
						whole++
					}
				}
				c.eq("whole ones", whole >= 3 && whole <= 5, true)
				c.sc.want += strconv.Itoa(cut)
				c.settled()
				c.eq("held at the end", c.ledger().Held, int64(0))
				c.send("POST", "/", strings.Repeat("m", 20<<10))
				c.eq("memory that came back is used again", c.events(21)[20].Body.Truncated, false)
				c.sc.want = strings.ReplaceAll(c.sc.want, "=20", "=21")
			}},
		{name: "an answer without end is cut off", answers: []answer{{status: 200, endless: true}}, want: "seen=3 enqueued=3 delivered=3", do: func(c *run) {
			for range 3 {
				c.get("/")
			}
			c.attempts(3)
		}},
		{name: "cookies of the receiver are not kept", answers: []answer{{header: http.Header{"Set-Cookie": {"a=b"}}}}, want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			c.get("/")
			c.attempts(1)
			c.get("/")
		}},
		{name: "connections are used again", config: "workers: 2", answers: []answer{{status: 200, header: http.Header{"Content-Type": {"text/plain"}}}}, want: "seen=30 enqueued=30 delivered=30", do: func(c *run) {
			for range 30 {
				c.get("/")
			}
			conns := map[string]bool{}
			for _, d := range c.attempts(30) {
				conns[d.remote] = true
			}
			c.eq("at most two connections", len(conns) <= 2, true)
		}},
		{name: "a delivery that comes back through the middleware is not mirrored again", want: "seen=2 filtered=1 enqueued=1 delivered=1", do: func(c *run) {
			c.send("POST", "/", lorem)
			r := c.replay(c.attempts(1)[0], nil)
			c.eq("answer", r.status, 200)
			c.eq("the backend has it", string(c.passed()[1].content), string(c.recv.deliveries()[0].raw))
		}},
		{name: "a client cannot hide a request by forging the marker", want: "seen=6 enqueued=6 delivered=6", do: func(c *run) {
			c.send("POST", "/", lorem)
			d := c.attempts(1)[0]
			for i, forged := range []string{"", "1", "v1,AAAA", "v1,"} {
				c.replay(d, func(h http.Header) {
					for _, name := range markers(d.header) {
						h[name] = []string{forged}
					}
				})
				c.events(2 + i)
			}
			// A marker that leaked is worth nothing under another time.
			sent, _ := strconv.ParseInt(d.header.Get("Webhook-Timestamp"), 10, 64)
			c.replay(d, func(h http.Header) { h.Set("Webhook-Timestamp", strconv.FormatInt(sent-1, 10)) })
			c.eq("one marker header", len(markers(d.header)), 1)
		}},
		{name: "with a signing secret another replica knows the delivery", config: "signingSecrets: [" + secretA + "]", want: one, do: func(c *run) {
			c.get("/")
			d := c.attempts(1)[0]
			// The other engine shares no variable with this one: it is the other replica.
			for _, other := range loaded(c) {
				if other == c.eng {
					continue
				}
				sc := scenario{name: "replica", config: c.sc.config, want: "seen=1 filtered=1", do: func(r *run) { r.replay(d, nil) }}
				c.Run(other.name, func(t *testing.T) { runScenario(t, other, &sc) })
			}
		}},
		{name: "without a signing secret the marker is this process's alone", want: one, do: func(c *run) {
			c.get("/")
			d := c.attempts(1)[0]
			for _, other := range loaded(c) {
				if other == c.eng {
					continue
				}
				sc := scenario{name: "stranger", want: one, do: func(r *run) { r.replay(d, nil); r.attempts(1) }}
				c.Run(other.name, func(t *testing.T) { runScenario(t, other, &sc) })
			}
		}},
		{name: "many requests at once are each mirrored once", config: "{workers: 8, queueSize: 1000}", want: "seen=400 enqueued=400 delivered=400", do: func(c *run) {
			stop, looked := make(chan struct{}), make(chan struct{})
			go func() { // The ledger adds up at every moment.
				defer close(looked)
				for {
					select {
					case <-stop:
						return
					default:
						c.ledger()
					}
				}
			}()
			parallel(400, func(i int) {
				if i%4 == 0 {
					c.send("POST", fmt.Sprintf("/%d", i), lorem)
				} else {
					c.get(fmt.Sprintf("/%d", i))
				}
			})
			paths := map[string]bool{}
			for i, e := range c.events(400) {
				paths[e.Path] = true
				c.eq("sequence", e.Sequence, int64(i+1))
			}
			close(stop)
			<-looked
			c.eq("requests", len(paths), 400)
		}},
		{name: "under every fault at once the ledger adds up", loose: true,
			config:  "{workers: 4, queueSize: 20, timeout: 100ms, maxAge: 2s, memoryLimit: 64Ki, retry: {attempts: 2, initialInterval: 1ms, maxInterval: 5ms}}",
			answers: faults(200), want: "*", do: func(c *run) {
				stop, looked := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(looked)
					for {
						select {
						case <-stop:
							return
						default:
							c.ledger()
						}
					}
				}()
				parallel(300, func(i int) {
					c.eq("answer", c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat("x", i%2*1000)).status, 200)
				})
				c.settled()
				close(stop)
				<-looked
			}},
	}...))
}

// faults is a script of everything a receiver may do.
func faults(n int) (out []answer) {
	for i := range n {
		out = append(out, []answer{{}, {status: 500}, {}, {cut: true}, {status: 404}, {}, {hang: true}, {status: 429}, {status: 413}, {status: 302}}[i%10])
	}
	return append(out, answer{})
}

func sequence(events []event.Event) string {
	var out []string
	for _, e := range events {
		out = append(out, strconv.FormatInt(e.Sequence, 10))
	}
	return strings.Join(out, " ")
}

// replay sends a delivery to the middleware, as a receiver behind it gets it.
func (c *run) replay(d delivery, change func(http.Header)) response {
	c.Helper()
	req := c.request("POST", "/receiver", bytes.NewReader(d.raw))
	req.Header = d.header.Clone()
	req.Header.Del("Content-Length")
	if change != nil {
		change(req.Header)
	}
	return c.roundTrip(req)
}

// markers are the headers of a delivery that no document but the plugin's knows.
func markers(h http.Header) (names []string) {
	for name := range h {
		switch name {
		case "Content-Type", "Content-Length", "User-Agent", "Accept-Encoding", "Webhook-Id", "Webhook-Timestamp", "Webhook-Signature", "Traceparent":
		default:
			names = append(names, name)
		}
	}
	return names
}

// TestRetryAfter takes seconds, so all of it runs at once.
func TestRetryAfter(t *testing.T) {
	wait := func(least time.Duration) func(*run) {
		return func(c *run) {
			c.get("/")
			d := c.attempts(2)
			if got := d[1].at.Sub(d[0].at); got < least {
				c.Errorf("second attempt after %s; want none before %s", got, least)
			}
		}
	}
	soon := func() string { return time.Now().Add(2 * time.Second).UTC().Format(http.TimeFormat) }
	const retried = "seen=1 enqueued=1 delivered=1 retried=1"
	runParallel(t, []scenario{
		{name: "Retry-After in seconds is obeyed", config: fast, answers: []answer{{status: 429, after: "1"}, {}}, want: retried, do: wait(time.Second)},
		{name: "Retry-After of a 503 is obeyed", config: fast, answers: []answer{{status: 503, after: "1"}, {}}, want: retried, do: wait(time.Second)},
		{name: "Retry-After as a date is obeyed", config: fast, want: retried, do: func(c *run) {
			c.recv.mu.Lock()
			c.recv.script = []answer{{status: 503, after: soon()}, {}}
			c.recv.mu.Unlock()
			wait(500 * time.Millisecond)(c) // dates have whole seconds
		}},
		{name: "Retry-After that is no number and no date is none", config: fast, answers: []answer{{status: 503, after: "soon"}, {}}, want: retried, do: wait(0)},
		{name: "Retry-After keeps all workers away", config: "{workers: 4, retry: {initialInterval: 1ms, maxInterval: 1ms}}", answers: []answer{{status: 429, after: "1"}, {}}, want: "seen=4 enqueued=4 delivered=4 retried=1", do: func(c *run) {
			c.get("/1")
			c.attempts(1)
			c.until("the answer is judged", func() bool { return c.ledger().Retried == 1 })
			for range 3 {
				c.get("/2")
			}
			d := c.attempts(5)
			for _, later := range d[1:] {
				if got := later.at.Sub(d[0].at); got < time.Second {
					c.Errorf("attempt after %s; want none before 1s", got)
				}
			}
		}},
	})
}
