package engine

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
)

// sizes are the numbers of events in deliveries.
func (c *run) sizes(all []delivery) (n []int) {
	for _, d := range all {
		n = append(n, len(c.batch(d)))
	}
	return n
}

// atMost refuses batches of more than n events, and every event whose path is /huge.
func atMost(n int) func(*receiver) {
	return func(r *receiver) {
		r.choose = func(d delivery) answer {
			b, err := event.ReadBatch(d.plain)
			if primes(d) {
				return answer{hang: true}
			}
			if err != nil || len(b.Events) > n || bytes.Contains(d.plain, []byte(`"path":"/huge"`)) {
				return answer{status: 413}
			}
			return answer{}
		}
	}
}

// gathered batches have all events that waited for the end of the delivery before.
const gathered = "{workers: 1, retry: {attempts: 1}, batch: {maxEvents: 16, flushInterval: 1ms}"

func primes(d delivery) bool { return bytes.Contains(d.plain, []byte(`"path":"/prime"`)) }

// prime keeps the only worker busy until the receiver is released.
func (c *run) prime() {
	c.Helper()
	c.get("/prime")
	c.attempts(1)
}

func TestBatches(t *testing.T) {
	runTable(t, []scenario{
		{name: "a batch goes when it has enough events", config: "batch: {maxEvents: 20, flushInterval: 1m}", want: "seen=60 enqueued=60 delivered=60", do: func(c *run) {
			for i := range 60 {
				c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat(lorem, i%2), "Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
			}
			for i, e := range c.events(60) {
				c.eq("number", e.Sequence, int64(i+1))
				c.eq("traceparent in the event", e.Traceparent != "", true)
			}
			c.eq("sizes", c.sizes(c.recv.deliveries()), []int{20, 20, 20})
			seen := map[string]bool{}
			for _, d := range c.recv.deliveries() {
				c.eq("content type", d.header.Values("Content-Type"), []string{"application/cloudevents-batch+json"})
				c.eq("traceparent of the delivery", d.header.Values("Traceparent"), []string(nil))
				id := d.header.Get("Webhook-Id")
				c.eq("id of its own", seen[id] || ids(c.batch(d))[id], false)
				seen[id] = true
			}
		}},
		{name: "a batch goes when its time is over", config: "batch: {maxEvents: 1000, flushInterval: 20ms}", want: "seen=3 enqueued=3 delivered=3", do: func(c *run) {
			c.get("/")
			c.events(1) // alone, and still an array
			c.eq("array", string(c.recv.deliveries()[0].raw[:1]), "[")
			c.get("/")
			c.send("POST", "/", lorem)
			c.events(3)
		}},
		{name: "a batch goes when it has enough bytes, and an event that is larger goes alone", config: "{workers: 1, batch: {maxEvents: 1000, maxSize: 8Ki, flushInterval: 100ms}}", want: "seen=31 enqueued=31 delivered=31", do: func(c *run) {
			for i := range 30 {
				c.send("POST", "/", strings.Repeat("x", 500+97*i))
			}
			c.send("POST", "/large", strings.Repeat("x", 20<<10))
			c.events(31)
			alone, full := 0, 0
			ds := c.recv.deliveries()
			for i, d := range ds {
				if b := c.batch(d); len(d.raw) > 8<<10 {
					c.eq("too large for a batch", fmt.Sprintf("%d %s %d", len(b), b[0].Path, len(b[0].Body.Content)), "1 /large 20480")
					alone++
				} else if i+1 < len(ds) && len(d.raw)+len(c.batch(ds[i+1])[0].Raw)+1 > 8<<10 {
					full++
				}
			}
			c.eq("alone and full ones", fmt.Sprint(alone, full > 2), "1 true")
		}},
		{name: "a batch is retried as one, under the same id and with the same bytes", config: "{workers: 1, batch: {maxEvents: 3, flushInterval: 30ms}, signingSecrets: [" + secretA + "], retry: {initialInterval: 1ms, maxInterval: 1ms}}", answers: []answer{{status: 500}, {cut: true}, {}}, want: "seen=3 enqueued=3 delivered=3 retried=2", do: func(c *run) {
			for range 3 {
				c.send("POST", "/", lorem)
			}
			c.settled()
			d := c.recv.deliveries()
			c.eq("ids", d[0].header.Get("Webhook-Id") == d[1].header.Get("Webhook-Id") && bytes.Equal(d[0].raw, d[1].raw), true)
			for _, d := range d {
				if err := event.Verify(secretA, d.header, d.raw); err != nil {
					c.Error(err)
				}
				if event.Verify(secretA, d.header, d.raw[:len(d.raw)-1]) == nil {
					c.Error("verify: got another batch accepted; want an error")
				}
			}
		}},
		{name: "all events of a batch that is refused have failed", config: gathered + "}", answers: []answer{{hang: true}, {status: 404}, {status: 500}, {}}, want: "seen=49 enqueued=49 delivered=17 failed.rejected=16 failed.server_error=16", do: func(c *run) {
			c.prime()
			for range 48 {
				c.get("/")
			}
			c.passed()
			c.recv.release()
		}},
		{name: "a batch that is too large for the receiver is halved until it is not", config: gathered + "}", prepare: atMost(3), want: "seen=17 enqueued=17 delivered=17", do: func(c *run) {
			c.prime()
			for i := range 16 {
				c.send("POST", fmt.Sprintf("/%d", i), strings.Repeat("x", i))
			}
			c.passed()
			c.recv.release()
			c.settled()
			c.eq("sizes", c.sizes(c.recv.deliveries()), []int{1, 16, 8, 4, 2, 2, 4, 2, 2, 8, 4, 2, 2, 4, 2, 2})
			c.eq("ids", len(distinct(c.recv.deliveries())), 16)
		}},
		{name: "one event that is too large for the receiver fails alone", config: gathered + "}", prepare: atMost(100), want: "seen=17 enqueued=17 delivered=16 failed.too_large=1", do: func(c *run) {
			c.prime()
			for i := range 16 {
				target := "/"
				if i == 9 {
					target = "/huge"
				}
				c.get(target)
			}
			c.passed()
			c.recv.release()
			c.settled()
			c.eq("sizes", c.sizes(c.recv.deliveries()), []int{1, 16, 8, 8, 4, 2, 1, 1, 2, 4})
		}},
		{name: "halves are signed, compressed and retried on their own", config: "{workers: 1, batch: {maxEvents: 16, flushInterval: 1ms}, compression: gzip, signingSecrets: [" + secretA + "], retry: {attempts: 2, initialInterval: 1ms}}", want: "seen=17 enqueued=17 delivered=17 retried=4", prepare: func(r *receiver) {
			failed := map[string]bool{}
			r.choose = func(d delivery) answer {
				b, _ := event.ReadBatch(d.plain)
				if primes(d) {
					return answer{hang: true}
				}
				if len(b.Events) > 4 {
					return answer{status: 413}
				}
				r.mu.Lock()
				defer r.mu.Unlock()
				id := d.header.Get("Webhook-Id")
				if again := failed[id]; again {
					return answer{}
				}
				failed[id] = true
				return answer{status: 503}
			}
		}, do: func(c *run) {
			c.prime()
			for range 16 {
				c.send("POST", "/", strings.Repeat(lorem, 50))
			}
			c.passed()
			c.recv.release()
			c.settled()
			for _, d := range c.recv.deliveries() {
				c.eq("compressed", d.header.Get("Content-Encoding") == "gzip", len(d.plain) >= 768)
				if err := event.Verify(secretA, d.header, d.raw); err != nil {
					c.Error(err)
				}
			}
		}},
		{name: "format json sends batches as application/json", config: "{batch: {maxEvents: 20, flushInterval: 50ms}, format: json}", want: "seen=20 enqueued=20 delivered=20", do: func(c *run) {
			for range 20 {
				c.send("POST", "/", lorem)
			}
			c.events(20)
		}},
		{name: "an event that got too old is taken out of its batch, which then is another", config: "{workers: 1, maxAge: 500ms, retry: {attempts: 1}, batch: {maxEvents: 16, flushInterval: 1ms}}", answers: []answer{{hang: true}, {}}, want: "seen=3 enqueued=3 delivered=2 failed.expired=1", do: func(c *run) {
			c.prime()
			c.get("/old")
			begun := time.Now()
			c.until("it is too old", func() bool { return time.Since(begun) > 550*time.Millisecond })
			c.get("/young")
			c.recv.release()
			c.settled()
			for _, e := range c.read(c.recv.deliveries()) {
				c.eq("delivered", e.Path != "/old", true)
			}
		}},
		{name: "a request that took longer than maxAge is no event that is too old", config: "{workers: 1, maxAge: 200ms, retry: {attempts: 1}, batch: {maxEvents: 2, flushInterval: 10ms}}", want: one, do: func(c *run) {
			first := c.slow("/long")
			c.until("it took longer", func() bool { return time.Since(first.begun) > 250*time.Millisecond })
			first.end()
			c.eq("delivered", c.event().Path, "/long")
		}},
		{name: "under every fault at once, with batches, the ledger adds up", loose: true,
			config:  "{workers: 4, queueSize: 50, timeout: 100ms, maxAge: 2s, memoryLimit: 256Ki, batch: {maxEvents: 7, maxSize: 4Ki, flushInterval: 2ms}, compression: gzip, maxEventSize: 4Ki, retry: {attempts: 2, initialInterval: 1ms, maxInterval: 5ms}, circuitBreaker: {failures: 3, openFor: 5ms}}",
			answers: faults(200), want: "*", do: func(c *run) {
				stop := c.watch()
				parallel(500, func(i int) {
					c.eq("answer", c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat("x", i%2*rand.IntN(5000))).status, 200)
				})
				c.settled()
				stop()
				for _, d := range c.recv.deliveries() {
					if len(d.plain) > 4<<10 {
						c.Errorf("delivery: got %d bytes; want at most 4096", len(d.plain))
					}
				}
			}},
		{name: "many requests at once are each in one batch", config: "{workers: 8, batch: {maxEvents: 50, flushInterval: 5ms}}", want: "seen=400 enqueued=400 delivered=400", do: func(c *run) {
			stop := c.watch()
			parallel(400, func(i int) { c.send("POST", fmt.Sprintf("/%d", i), lorem) })
			paths := map[string]bool{}
			for i, e := range c.events(400) {
				paths[e.Path] = true
				c.eq("number", e.Sequence, int64(i+1))
			}
			stop()
			c.eq("requests", len(paths), 400)
		}},
	})
}

// TestBatchAtReload waits for a grace to pass, so all of it runs at once.
func TestBatchAtReload(t *testing.T) {
	runParallel(t, []scenario{
		{name: "what was gathered goes at once when its pipeline is replaced", config: "-", want: "seen=3 enqueued=3 delivered=3", do: func(c *run) {
			h, cancel, err := c.newRouter("batch: {maxEvents: 100, flushInterval: 1m}")
			if err != nil {
				c.Fatal(err)
			}
			c.use(h)
			for range 3 {
				c.send("POST", "/", lorem)
			}
			cancel()
			c.mustNew("batch: {maxEvents: 101, flushInterval: 1m}")
			c.events(3)
			c.eq("one batch", c.sizes(c.recv.deliveries()), []int{3})
			c.until("its pipeline is gone", func() bool { return c.ledger().Pipelines == 1 })
			c.eq("final report", len(c.recv.told()), 1)
		}},
	})
}

func distinct(all []delivery) map[string]bool {
	out := map[string]bool{}
	for _, d := range all {
		out[d.header.Get("Webhook-Id")] = true
	}
	return out
}

// slow is a request whose body ends when the case wants it.
type slow struct {
	begun time.Time
	end   func()
}

func (c *run) slow(target string) slow {
	c.Helper()
	inside, free, done := make(chan struct{}), make(chan struct{}), make(chan response)
	read := c.backend
	c.backend = func(rw http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Slow") != "" {
			close(inside)
			<-free
		}
		read(rw, req)
	}
	go func() { done <- c.send("POST", target, lorem, "Slow", "yes") }()
	<-inside
	return slow{time.Now(), func() { close(free); <-done }}
}
