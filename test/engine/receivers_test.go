package engine

import (
	"fmt"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror/test/event"
)

const two = "watchURLs: [$URL2]"

func ids(events []event.Event) map[string]bool {
	out := map[string]bool{}
	for _, e := range events {
		out[e.ID] = true
	}
	return out
}

func TestReceivers(t *testing.T) {
	runTable(t, []scenario{
		{name: "several receivers get the same events under the same ids, each with numbers from 1", config: "watchURLs: [$URL2, $URL3]",
			also: []also{{want: "seen=20 enqueued=20 delivered=20"}, {want: "seen=20 enqueued=20 delivered=20"}}, want: "seen=20 enqueued=20 delivered=20", do: func(c *run) {
				for i := range 20 {
					c.send([]string{"GET", "POST"}[i%2], fmt.Sprintf("/%d", i), strings.Repeat(lorem, i%2*40))
				}
				first := c.events(20)
				for _, r := range c.more {
					other := c.eventsAt(r, 20)
					c.eq("ids", ids(other), ids(first))
					for i, e := range other {
						c.eq("number", e.Sequence, int64(i+1))
						c.eq("id, path and time of the same number", e.ID+e.Path+e.Time.String(), first[i].ID+first[i].Path+first[i].Time.String())
						if e.Body != nil {
							c.eq("body", string(e.Body.Content), strings.Repeat(lorem, 40))
						}
					}
					c.eq("boots of two pipelines", other[0].Boot == first[0].Boot, false)
				}
			}},
		{name: "watchURLs are enough without watchURL", config: "{watchURL: null, watchURLs: '$URL,$URL2'}", also: []also{{want: one}}, want: one, do: func(c *run) {
			c.send("POST", "/", lorem)
		}},
		{name: "what is filtered is filtered for all of them", config: "{watchURLs: [$URL2], methods: [POST]}",
			also: []also{{want: "seen=3 filtered=2 enqueued=1 delivered=1"}}, want: "seen=3 filtered=2 enqueued=1 delivered=1", do: func(c *run) {
				c.get("/")
				c.get("/")
				c.send("POST", "/", lorem)
			}},
		{name: "two receivers on one host have counters of their own", config: "{watchURL: $URL/a, watchURLs: [$URL/b], retry: {attempts: 1}}", want: "*", prepare: func(r *receiver) {
			r.choose = func(d delivery) answer { return answer{status: map[string]int{"/a": 204, "/b": 404}[d.path]} }
		}, do: func(c *run) {
			for range 3 {
				c.get("/")
			}
			c.settled()
			all := c.ledgers()
			c.eq("first", all[c.recv.URL].String(), "seen=3 enqueued=3 delivered=3")
			c.eq("second", all[c.recv.URL+"#2"].String(), "seen=3 enqueued=3 failed.rejected=3")
			c.recv.mu.Lock() // The numbers of two pipelines are each from 1, which the check for one of them must not see.
			c.recv.got = nil
			c.recv.mu.Unlock()
			c.sc.loose = true
			c.gone = true
		}},
		{name: "one that hangs and one that is down cost the others nothing", config: "-", want: "seen=30 enqueued=30 delivered=30",
			also: []also{{answers: []answer{{hang: true}}, want: "seen=30 dropped.queue_full=24 enqueued=6 delivered=6"}}, do: func(c *run) {
				down := closedPort(c)
				c.use(c.mustNew("{watchURLs: [$URL2, 'http://" + down + "'], workers: 1, queueSize: 5, retry: {attempts: 1}, circuitBreaker: {failures: 3, openFor: 1h}}"))
				for i := range 30 {
					c.eq("answer", c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat("x", i%2*1000)).body, "backend")
					// The one worker of the hanging receiver has taken the first event.
					c.more[0].awaitDelivery(c, 1)
					c.events(i + 1)
					c.until("the one that is down is done", func() bool {
						l := c.ledgers()["http://"+down]
						return l.Seen == int64(i+1) && l.Waiting+l.InFlight == 0
					})
				}
				c.eq("the hanging one's", c.ledgerOf(c.more[0]).String(), "seen=30 dropped.queue_full=24 enqueued=6 waiting=5 inFlight=1")
				c.eq("the dead one's", c.ledgers()["http://"+down].String(), "seen=30 dropped.circuit_open=27 enqueued=3 failed.network_error=3")
				c.more[0].release()
			}},
		{name: "410 of one receiver is no matter of the others", config: two, answers: statuses(204),
			also: []also{{answers: statuses(410), want: "seen=5 dropped.circuit_open=4 enqueued=1 failed.gone=1"}}, want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
				for i := range 5 {
					c.send("POST", "/", lorem)
					c.events(i + 1)
					c.settled()
				}
			}},
		{name: "bytes that several receivers wait for are held once, until the last one has them", config: two + "\nworkers: 1", answers: []answer{{hang: true}},
			also: []also{{answers: []answer{{hang: true}}, want: "seen=3 enqueued=3 delivered=3"}}, want: "seen=3 enqueued=3 delivered=3", do: func(c *run) {
				body := strings.Repeat("m", 20<<10)
				for range 3 {
					c.send("POST", "/", body)
				}
				held := c.passedLedger().Held
				c.eq("held once", held >= 60<<10 && held < 80<<10, true)
				c.recv.release()
				c.events(3)
				c.until("delivered to the first", func() bool { return c.ledger().Delivered == 3 })
				c.eq("held for the second", c.ledger().Held, held)
				c.more[0].release()
				for _, e := range c.eventsAt(c.more[0], 3) {
					c.eq("body", len(e.Body.Content), 20<<10)
				}
			}},
		{name: "one that hangs holds its share of the memory and leaves the others theirs", config: "{watchURLs: [$URL2], workers: 1, memoryLimit: 200Ki, maxBodySize: 20Ki}",
			also: []also{{answers: []answer{{hang: true}}, want: "seen=30 enqueued=30 delivered=30 truncated.memory="}}, want: "seen=30 enqueued=30 delivered=30", do: func(c *run) {
				for i := range 30 {
					c.send("POST", "/", strings.Repeat("m", 20<<10))
					c.events(i + 1)
					c.until("delivered", func() bool { return c.ledger().Delivered == int64(i+1) })
				}
				held := c.ledger().Held
				c.eq("held is the share", held > 50<<10 && held <= 100<<10, true)
				for _, e := range c.events(30) {
					c.eq("whole", e.Body.Truncated, false)
				}
				c.more[0].release()
				cut := 0
				for _, e := range c.eventsAt(c.more[0], 30) {
					if e.Body.Truncated {
						c.eq("reason and size", fmt.Sprint(e.Body.Reason, e.Body.Size), "memory20480")
						cut++
					}
				}
				c.eq("whole ones", cut >= 25 && cut <= 27, true)
				c.sc.also = []also{{want: c.sc.also[0].want + fmt.Sprint(cut)}}
			}},
		{name: "each receiver gets batches of its own", config: two + "\nbatch: {maxEvents: 5, flushInterval: 20ms}",
			also: []also{{want: "seen=20 enqueued=20 delivered=20"}}, want: "seen=20 enqueued=20 delivered=20", do: func(c *run) {
				for range 20 {
					c.send("POST", "/", lorem)
				}
				c.eq("ids", ids(c.events(20)), ids(c.eventsAt(c.more[0], 20)))
			}},
		{name: "a receiver that is added at a reload leaves the first one its pipeline", config: "-", also: []also{{want: one}}, want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			h, cancel, err := c.newRouter("{}")
			if err != nil {
				c.Fatal(err)
			}
			c.use(h)
			c.get("/")
			c.events(1)
			cancel()
			c.use(c.mustNew(two))
			c.get("/")
			e := c.events(2)
			c.eq("numbers", sequence(e), "1 2")
			c.eq("boot", e[0].Boot, e[1].Boot)
			c.eq("pipelines", c.ledger().Pipelines, int64(1))
		}},
		{name: "under every fault at once each ledger adds up", loose: true,
			config:  "{watchURLs: [$URL2, $URL3], workers: 4, queueSize: 20, timeout: 100ms, maxAge: 2s, memoryLimit: 64Ki, retry: {attempts: 2, initialInterval: 1ms, maxInterval: 5ms}, circuitBreaker: {failures: 3, openFor: 5ms}}",
			answers: faults(200), also: []also{{answers: []answer{{hang: true}}, want: "*"}, {answers: faults(300)[3:], want: "*"}}, want: "*", do: func(c *run) {
				stop := c.watch()
				parallel(300, func(i int) {
					c.eq("answer", c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat("x", i%2*1000)).status, 200)
				})
				c.settled()
				stop()
				for name, l := range c.ledgers() {
					c.eq("seen by "+name, l.Seen, int64(300))
				}
			}},
	})
}

// TestRemovedReceiver waits for graces to pass, so all of it runs at once.
func TestRemovedReceiver(t *testing.T) {
	runParallel(t, []scenario{
		{name: "a receiver that is removed at a reload gets what waits for it, and is gone", config: "-", want: "seen=4 enqueued=4 delivered=4", do: func(c *run) {
			old := newReceiver([]answer{{hang: true}}, false)
			defer old.Close()
			defer old.release()
			h, cancel, err := c.newRouter("watchURLs: ['" + old.URL + "']\nworkers: 1")
			if err != nil {
				c.Fatal(err)
			}
			c.use(h)
			for range 3 {
				c.send("POST", "/", lorem)
			}
			c.events(3)
			cancel()
			c.use(c.mustNew("workers: 1"))
			c.get("/")
			c.events(4)
			c.eq("receivers", len(c.ledgers()), 2)
			old.release()
			c.until("one receiver", func() bool { return len(c.ledgers()) == 1 })
			c.eq("events of the removed one", len(c.eventsAt(old, 3)), 3)
			told := old.told()
			c.eq("reports to the removed one", len(told), 1)
			r, err := event.ReadReport(told[0].raw)
			c.eq("report", fmt.Sprint(err, r.Final, r.Delivered, r.Seen), "<nil> true 3 3")
		}},
	})
}

func (r *receiver) awaitDelivery(c *run, n int) {
	c.Helper()
	c.until(fmt.Sprintf("%d deliveries", n), func() bool { return len(r.deliveries()) >= n })
}

// watch looks at the ledgers all the time, as they add up at every moment.
func (c *run) watch() (stop func()) {
	end, looked := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(looked)
		for {
			select {
			case <-end:
				return
			default:
				c.ledgers()
			}
		}
	}()
	return func() { close(end); <-looked }
}
