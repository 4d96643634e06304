package engine

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestHandshake(t *testing.T) {
	const origin = "requestOrigin: mirror.example.com"
	consents := func(all ...answer) func(*receiver) { return func(r *receiver) { r.consents = all } }
	agreed := func(c *run) {
		for range 5 {
			c.send("POST", "/", lorem)
		}
		c.settled()
		asked := c.recv.handshakes()
		c.eq("asked", len(asked), 1)
		h := asked[0].header
		c.eq("origin", h.Values("Webhook-Request-Origin"), []string{"mirror.example.com"})
		c.eq("content", len(asked[0].raw), 0)
		c.eq("content type", h.Get("Content-Type"), "")
		for _, d := range c.recv.deliveries() {
			c.eq("asked before", asked[0].at.Before(d.at), true)
			c.eq("target", d.path, asked[0].path)
			c.eq("origin in a delivery", d.header.Get("Webhook-Request-Origin"), "mirror.example.com")
		}
	}
	table := []scenario{
		{name: "a receiver is asked once, before its first delivery", config: "{" + origin + ", watchURL: '$URL/hook?x=1', customRequestHeaders: {X-Token: t0ken}}", prepare: consents(consent("mirror.example.com", "*")), want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
			agreed(c)
			c.eq("token", c.recv.handshakes()[0].header.Get("X-Token"), "t0ken")
		}},
		{name: "consent to anybody is consent, and so is the name in another case", config: origin, prepare: consents(consent("*", "")), want: "seen=6 enqueued=6 delivered=6", do: func(c *run) {
			agreed(c)
			c.recv.mu.Lock()
			c.recv.consents = []answer{consent("Mirror.Example.COM", "")}
			c.recv.mu.Unlock()
			c.use(c.mustNew(origin + "\ntimeout: 4s"))
			c.get("/")
			c.events(6)
			c.eq("asked", len(c.recv.handshakes()), 2)
		}},
		{name: "without requestOrigin nobody is asked", want: one, do: func(c *run) {
			c.get("/")
			c.settled()
			c.eq("asked", len(c.recv.handshakes()), 0)
		}},
		{name: "batches are asked for, too", config: "{" + origin + ", batch: {maxEvents: 5, flushInterval: 5ms}}", prepare: consents(consent("*", "")), want: "seen=5 enqueued=5 delivered=5", do: agreed},
		{name: "each receiver is asked", config: "{" + origin + ", watchURLs: [$URL2]}", prepare: consents(consent("*", "")), also: []also{{want: "*"}}, want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
			agreed(c)
			c.settled()
			c.eq("asked", len(c.more[0].handshakes()), 1)
			c.eq("deliveries without consent", len(c.more[0].deliveries()), 0)
			c.eq("delivered without consent", c.ledgerOf(c.more[0]).Delivered, int64(0))
		}},
		{name: "a consent that comes later closes the circuit", config: "{" + origin + ", workers: 1, circuitBreaker: {openFor: 20ms}}", prepare: consents(answer{status: 403}, answer{}, consent("*", "")), want: "seen=6 enqueued=6 delivered=4 failed.rejected=2", do: func(c *run) {
			for range 2 {
				c.get("/")
				c.settled()
				c.breakerIs("half_open")
			}
			c.eq("deliveries without consent", len(c.recv.deliveries()), 0)
			for range 4 {
				c.get("/")
				c.settled()
			}
			c.breakerIs("closed")
			c.eq("asked", len(c.recv.handshakes()), 3)
			c.circuitLog(1, 1)
		}},
		{name: "a receiver that allows a rate gets no more than that", config: "{" + origin + ", workers: 4}", prepare: consents(consent("*", "600")), want: "seen=6 enqueued=6 delivered=6", do: func(c *run) {
			for range 6 {
				c.get("/")
			}
			d := c.attempts(6)
			// The first ones may be on the way a little longer than the last one.
			if took := d[5].at.Sub(d[0].at); took < 380*time.Millisecond {
				c.Errorf("six deliveries: got them within %s; want one in 100ms", took)
			}
		}},
		{name: "the rate is one of deliveries, not of events", config: "{" + origin + ", workers: 4, batch: {maxEvents: 10, flushInterval: 1ms}}", prepare: consents(consent("*", "600")), want: "seen=50 enqueued=50 delivered=50", do: func(c *run) {
			for range 50 {
				c.get("/")
			}
			c.settled()
			d := c.recv.deliveries()
			for i := range d[1:] {
				if gap := d[i+1].at.Sub(d[i].at); i > 0 && gap < 50*time.Millisecond {
					c.Errorf("delivery %d: got it %s after the one before; want about 100ms", i+1, gap)
				}
			}
		}},
		{name: "nobody listening fails the first event, and drops the others", config: "-", want: "*", do: func(c *run) {
			c.use(c.mustNew("{watchURL: 'http://" + closedPort(c) + "', " + origin + ", circuitBreaker: {openFor: 1h}}"))
			c.get("/")
			c.settled()
			for range 3 {
				c.get("/")
			}
			c.eq("ledger", c.settled().String(), "seen=4 dropped.circuit_open=3 enqueued=1 failed.network_error=1")
			c.circuitLog(1, 0)
		}},
	}
	for name, refusal := range map[string]answer{
		"no header": {}, "another origin": consent("other.example.com", "*"), "an error": {status: 405, header: http.Header{"Webhook-Allowed-Origin": {"*"}}},
		"a redirect": {status: 307, header: http.Header{"Location": {"/elsewhere"}, "Webhook-Allowed-Origin": {"*"}}},
	} {
		table = append(table, scenario{name: "no consent, no delivery: " + name, config: "{" + origin + ", workers: 1, circuitBreaker: {openFor: 1h}}", prepare: consents(refusal), want: "seen=4 dropped.circuit_open=3 enqueued=1 failed.rejected=1", do: func(c *run) {
			c.get("/")
			c.settled()
			for range 3 {
				c.send("POST", "/", lorem)
			}
			c.settled()
			c.eq("deliveries", len(c.recv.deliveries()), 0)
			c.eq("asked", len(c.recv.handshakes()), 1)
			c.circuitLog(1, 0)
			if line := c.logged("circuit opened")[0]; !strings.Contains(line, "handshake") || !strings.Contains(line, "mirror.example.com") {
				c.Errorf("log: got %q; want that it was the handshake, and the origin", line)
			}
		}})
	}
	runTable(t, table)
}
