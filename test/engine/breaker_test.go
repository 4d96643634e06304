package engine

import (
	"fmt"
	"strings"
	"testing"
)

// breakerIs waits for a state of the circuit breaker.
func (c *run) breakerIs(state string) {
	c.Helper()
	c.until("the circuit is "+state, func() bool { return c.ledger().Breaker == state })
}

// circuitLog compares how often the log tells of the circuit.
func (c *run) circuitLog(opened, closed int) {
	c.Helper()
	c.eq("lines that tell of an opened circuit", len(c.logged("circuit opened")), opened)
	c.eq("lines that tell of a closed circuit", len(c.logged("circuit closed")), closed)
}

const (
	longOpen  = "{workers: 1, retry: {attempts: 1}, circuitBreaker: {failures: 3, openFor: 1h}}"
	shortOpen = "{workers: 1, retry: {attempts: 1}, circuitBreaker: {failures: 2, openFor: 30ms}}"
)

func TestBreaker(t *testing.T) {
	opens := func(c *run) {
		for i := range 8 {
			c.eq("answer", c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat(lorem, i%2)).status, 200)
			c.settled()
		}
		c.eq("state", c.ledger().Breaker, "open")
		c.circuitLog(1, 0)
	}
	runTable(t, []scenario{
		{name: "failures in a row open the circuit, and events are dropped", config: longOpen, answers: statuses(500), want: "seen=8 dropped.circuit_open=5 enqueued=3 failed.server_error=3", do: func(c *run) {
			opens(c)
			c.eq("attempts", len(c.recv.deliveries()), 3)
			if line := c.logged("circuit opened")[0]; !strings.Contains(line, c.recv.URL) || !strings.Contains(line, "3 failures") || !strings.Contains(line, "500") {
				c.Errorf("log: got %q; want the receiver, the failures and the answer in it", line)
			}
		}},
		{name: "connections that are cut open the circuit", config: longOpen, answers: []answer{{cut: true}}, want: "seen=8 dropped.circuit_open=5 enqueued=3 failed.network_error=3", do: opens},
		{name: "timeouts open the circuit", config: "{workers: 1, timeout: 20ms, retry: {attempts: 1}, circuitBreaker: {failures: 3, openFor: 1h}}", answers: []answer{{hang: true}}, want: "seen=8 dropped.circuit_open=5 enqueued=3 failed.timeout=3", do: opens},
		{name: "attempts count, not events", config: "{workers: 1, retry: {attempts: 3, initialInterval: 1ms, maxInterval: 1ms}, circuitBreaker: {failures: 2, openFor: 1h}}", answers: statuses(500), want: "seen=2 dropped.circuit_open=1 enqueued=1 failed.circuit_open=1 retried=1", do: func(c *run) {
			c.get("/")
			c.settled()
			c.get("/")
			c.settled()
			c.eq("attempts", len(c.recv.deliveries()), 2)
			c.circuitLog(1, 0)
		}},
		{name: "failures that are not in a row do not open it", config: "{workers: 1, retry: {attempts: 1}, circuitBreaker: {failures: 2, openFor: 1h}}", answers: statuses(500, 404, 500, 204, 500, 429, 500, 408, 500, 302, 500, 413), want: "seen=12 enqueued=12 delivered=1 failed.rejected=4 failed.server_error=6 failed.too_large=1", do: func(c *run) {
			for range 12 {
				c.get("/")
				c.settled()
			}
			c.eq("state", c.ledger().Breaker, "closed")
			c.circuitLog(0, 0)
		}},
		{name: "answers that refuse never open it", config: "{workers: 1, retry: {attempts: 1}, circuitBreaker: {failures: 1, openFor: 1h}}", answers: statuses(429, 401, 413, 301), want: "seen=9 enqueued=9 failed.rejected=8 failed.too_large=1", do: func(c *run) {
			for range 9 {
				c.get("/")
				c.settled()
			}
			c.circuitLog(0, 0)
		}},
		{name: "with failures 0 it opens for 410 only", config: "{workers: 1, retry: {attempts: 1}, circuitBreaker: {failures: 0}}", answers: append(append([]answer{}, many(30, 500)...), answer{status: 410}), want: "seen=33 dropped.circuit_open=2 enqueued=31 failed.gone=1 failed.server_error=30", do: func(c *run) {
			for range 33 {
				c.get("/")
				c.settled()
			}
			c.circuitLog(1, 0)
			if line := c.logged("circuit opened")[0]; !strings.Contains(line, "10m") || !strings.Contains(line, "410") {
				c.Errorf("log: got %q; want ten minutes and the answer in it", line)
			}
		}},
		{name: "a success closes it again, and both are told once", config: shortOpen, answers: statuses(500, 500, 204), want: "seen=6 enqueued=6 delivered=4 failed.server_error=2", do: func(c *run) {
			c.get("/")
			c.get("/")
			c.settled()
			c.breakerIs("half_open")
			c.eq("told before the probe", len(c.logged("circuit closed")), 0)
			c.get("/")
			c.settled()
			c.breakerIs("closed")
			for range 3 {
				c.send("POST", "/", lorem)
			}
			c.settled()
			c.circuitLog(1, 1)
		}},
		{name: "any answer but 5xx to the probe closes it", config: shortOpen, answers: statuses(500, 500, 404, 204), want: "seen=4 enqueued=4 delivered=1 failed.rejected=1 failed.server_error=2", do: func(c *run) {
			c.get("/")
			c.get("/")
			c.settled()
			c.breakerIs("half_open")
			c.get("/")
			c.settled()
			c.breakerIs("closed")
			c.get("/")
			c.settled()
			c.circuitLog(1, 1)
		}},
		{name: "a probe that fails opens it again, which is not told again", config: shortOpen, answers: append(many(5, 503), answer{}), want: "seen=6 enqueued=6 delivered=1 failed.server_error=5", do: func(c *run) {
			c.get("/")
			c.get("/")
			c.settled()
			for range 4 {
				c.breakerIs("half_open")
				c.get("/")
				c.settled()
			}
			c.breakerIs("closed")
			c.circuitLog(1, 1)
		}},
		{name: "it opens anew after it was closed, and that is told again", config: shortOpen, answers: statuses(500, 500, 204, 500, 500, 204), want: "seen=6 enqueued=6 delivered=2 failed.server_error=4", do: func(c *run) {
			for range 2 {
				c.get("/")
				c.get("/")
				c.settled()
				c.breakerIs("half_open")
				c.get("/")
				c.settled()
			}
			c.circuitLog(2, 2)
		}},
		{name: "events that wait when it opens fail", config: "{workers: 1, retry: {attempts: 1}, circuitBreaker: {failures: 1, openFor: 1h}}", answers: []answer{{hang: true, status: 500}}, want: "seen=7 dropped.circuit_open=1 enqueued=6 failed.circuit_open=5 failed.server_error=1", do: func(c *run) {
			for i := range 6 {
				c.send("POST", "/", lorem)
				if i == 0 {
					c.attempts(1)
				}
			}
			c.passed()
			c.recv.release()
			c.settled()
			c.get("/")
			c.eq("attempts", len(c.recv.deliveries()), 1)
		}},
		{name: "while it is half open one delivery is the probe, and the others wait for its outcome", config: "{workers: 4, retry: {attempts: 1}, circuitBreaker: {failures: 1, openFor: 10ms}}", answers: []answer{{status: 500}, {hang: true}, {}}, want: "seen=9 enqueued=9 delivered=8 failed.server_error=1", do: func(c *run) {
			c.get("/")
			c.settled()
			c.breakerIs("half_open")
			for range 8 {
				c.get("/")
			}
			c.passed()
			c.until("all workers have one", func() bool { l := c.ledger(); return l.InFlight == 4 && l.Waiting == 4 })
			c.eq("attempts", len(c.recv.deliveries()), 2)
			c.eq("state", c.ledger().Breaker, "half_open")
			c.recv.release()
			c.settled()
			c.breakerIs("closed")
		}},
		{name: "a batch is one attempt, and one probe", config: "{workers: 2, retry: {attempts: 1}, batch: {maxEvents: 3, flushInterval: 1ms}, circuitBreaker: {failures: 2, openFor: 20ms}}", answers: statuses(500, 500, 204), want: "*", do: func(c *run) {
			for len(c.recv.deliveries()) < 2 {
				c.get("/")
				c.settled()
			}
			c.breakerIs("half_open")
			parallel(10, func(int) { c.get("/") })
			c.settled()
			c.breakerIs("closed")
			l := c.ledger()
			c.eq("delivered and failed", fmt.Sprint(l.Delivered, l.Failed["server_error"]), "10 2")
			c.circuitLog(1, 1)
		}},
	})
}

func many(n, status int) (out []answer) {
	for range n {
		out = append(out, answer{status: status})
	}
	return out
}
