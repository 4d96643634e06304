package engine

import (
	"strings"
	"testing"
)

func TestWorkersAuto(t *testing.T) {
	all := func(c *run) {
		stop := c.watch()
		parallel(400, func(i int) { c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat(lorem, i%2)) })
		c.settled()
		stop()
		if n := c.ledger().Workers; n < 1 || n > 32 {
			c.Errorf("concurrency: got %d; want 1 to 32", n)
		}
		for i, e := range c.events(400) {
			c.eq("number", e.Sequence, int64(i+1))
		}
	}
	var sometimes []answer
	for range 80 {
		sometimes = append(sometimes, answer{}, answer{}, answer{status: 429}, answer{}, answer{status: 503})
	}
	runTable(t, []scenario{
		{name: "workers auto delivers everything", config: "workers: auto", want: "seen=400 enqueued=400 delivered=400", do: all},
		{name: "workers auto delivers everything in batches", config: "{workers: auto, batch: {maxEvents: 10, flushInterval: 1ms}}", want: "seen=400 enqueued=400 delivered=400", do: all},
		{name: "workers auto delivers everything to a receiver that pushes back", config: "{workers: Auto, retry: {attempts: 50, initialInterval: 1ms, maxInterval: 1ms}, circuitBreaker: {failures: 0}}", answers: append(sometimes, answer{}), want: "seen=400 enqueued=400 delivered=400 retried=160", do: all},
		{name: "workers auto is one worker at first", config: "workers: auto", answers: []answer{{hang: true}}, want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
			for range 5 {
				c.get("/")
			}
			c.passed()
			c.attempts(1)
			l := c.ledger()
			c.eq("under way, waiting, allowed", []int64{l.InFlight, l.Waiting, l.Workers}, []int64{1, 4, 1})
			c.recv.release()
		}},
	})
}
