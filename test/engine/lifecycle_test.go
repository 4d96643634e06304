package engine

import (
	"flag"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain sees to it that nothing is left: every pipeline of every case retires
// when its last context has ended, and its goroutines, timers and connections go.
func TestMain(m *testing.M) {
	flag.Parse()
	// The cases that run in parallel do nothing but wait.
	if err := flag.Set("test.parallel", "32"); err != nil {
		panic(err)
	}
	code := m.Run()
	if code == 0 {
		if left := leftovers(20 * time.Second); left != "" {
			fmt.Println("left behind:\n" + left)
			code = 1
		}
	}
	os.Exit(code)
}

// leftovers waits until no goroutine of the plugin and no published middleware is
// there any more, and tells what is.
func leftovers(patience time.Duration) (left string) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		list := strings.Join(goroutines(), "\n\n")
		p := globals()
		if list == "" && len(p.Middlewares) == 0 {
			return ""
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return fmt.Sprintf("%d middlewares\n%s", len(p.Middlewares), list)
		}
	}
}

// goroutines lists those that run the plugin, interpreted or not, or a connection.
func goroutines() (list []string) {
	buf := make([]byte, 8<<20)
	for i, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if i > 0 && (strings.Contains(g, importPath+".") || strings.Contains(g, "yaegi/interp.") || strings.Contains(g, "net/http.(*persistConn)")) {
			list = append(list, g)
		}
	}
	return list
}

func TestLifecycle(t *testing.T) {
	runTable(t, []scenario{
		{name: "routers with the same middleware share one pipeline", config: "-", want: "seen=9 enqueued=9 delivered=9", do: func(c *run) {
			var routers []http.Handler
			for range 3 {
				routers = append(routers, c.mustNew("workers: 1"))
			}
			for i := range 9 {
				c.use(routers[i%3])
				c.get("/")
			}
			e := c.events(9)
			c.eq("one row of numbers", sequence(e), "1 2 3 4 5 6 7 8 9")
			c.eq("one boot", e[0].Boot, e[8].Boot)
			c.eq("pipelines", c.ledger().Pipelines, int64(1))
			conns := map[string]bool{}
			for _, d := range c.recv.deliveries() {
				conns[d.remote] = true
			}
			c.eq("connections of one worker", len(conns), 1)
		}},
		{name: "a reload without change keeps the pipeline, its numbers and its connection", config: "-", want: "seen=6 enqueued=6 delivered=6", do: func(c *run) {
			var before func()
			for range 3 {
				if before != nil {
					before() // Traefik ends the old configuration before it makes the new one.
				}
				h, cancel, err := c.newRouter("workers: 1")
				if err != nil {
					c.Fatal(err)
				}
				before = cancel
				c.use(h)
				c.get("/")
				c.send("POST", "/", lorem)
			}
			e := c.events(6)
			c.eq("one row of numbers", sequence(e), "1 2 3 4 5 6")
			c.eq("one boot", e[0].Boot, e[5].Boot)
			c.eq("pipelines", c.ledger().Pipelines, int64(1))
			remote := c.recv.deliveries()[0].remote
			for _, d := range c.recv.deliveries() {
				c.eq("connection", d.remote, remote)
			}
		}},
		{name: "what waits outlives a reload", config: "-", answers: []answer{{hang: true}}, want: "seen=4 enqueued=4 delivered=4", do: func(c *run) {
			h, cancel, _ := c.newRouter("workers: 1")
			c.use(h)
			for range 3 {
				c.get("/")
			}
			cancel()
			c.use(c.mustNew("workers: 1"))
			c.get("/")
			c.recv.release()
			c.eq("numbers", sequence(c.events(4)), "1 2 3 4")
		}},
		{name: "a change of what is captured does not need another pipeline", config: "maxBodySize: 3", want: "seen=2 enqueued=2 delivered=2 truncated.limit=1", do: func(c *run) {
			c.send("POST", "/", lorem)
			c.use(c.mustNew("maxBodySize: 26"))
			c.send("POST", "/", lorem)
			e := c.events(2)
			c.eq("bodies", string(e[0].Body.Content)+" "+string(e[1].Body.Content), "abc "+lorem)
			c.eq("numbers", sequence(e), "1 2")
			c.eq("pipelines", c.ledger().Pipelines, int64(1))
		}},
		{name: "a change of delivery gets a pipeline of its own, in the same ledger", config: "timeout: 4s", want: "seen=2 enqueued=2 delivered=2", do: func(c *run) {
			c.get("/")
			c.use(c.mustNew("timeout: 3s"))
			c.get("/")
			c.events(2)
			c.eq("pipelines", c.ledger().Pipelines, int64(2))
		}},
		{name: "a request in flight at a reload is mirrored by the configuration it came to", config: "-", want: "seen=1 enqueued=1 delivered=1 truncated.unread=1", do: func(c *run) {
			h, cancel, _ := c.newRouter("attributes: {v: old}")
			c.use(h)
			free, inside := make(chan struct{}), make(chan struct{})
			c.backend = func(rw http.ResponseWriter, req *http.Request) { close(inside); <-free }
			done := make(chan response)
			go func() { done <- c.send("POST", "/", lorem) }()
			<-inside
			cancel()
			c.use(c.mustNew("attributes: {v: new}"))
			close(free)
			c.eq("answer", (<-done).status, 200)
			c.eq("attributes", c.event().Attributes["v"], "old")
		}},
		{name: "a context that has ended already does not keep New from mirroring", config: "-", want: one, do: func(c *run) {
			h, cancel, _ := c.newRouter("workers: 2")
			cancel()
			c.use(h)
			c.get("/")
			c.event()
		}},
	})
}

// TestRetired waits for graces to pass, so all of it runs at once.
func TestRetired(t *testing.T) {
	gone := func(c *run, n int64) {
		c.until("old pipelines are gone", func() bool { return c.ledger().Pipelines == n })
	}
	runParallel(t, []scenario{
		{name: "a superseded pipeline drains and is gone", config: "-", answers: []answer{{hang: true}}, want: "seen=4 enqueued=4 delivered=4", do: func(c *run) {
			h, cancel, _ := c.newRouter("{workers: 1, timeout: 7s}")
			c.use(h)
			for range 3 {
				c.send("POST", "/old", lorem)
			}
			cancel()
			c.use(c.mustNew("{workers: 1, timeout: 8s}"))
			c.get("/new")
			c.attempts(2) // One of each pipeline: they do not wait for each other.
			c.eq("pipelines", c.ledger().Pipelines, int64(2))
			c.recv.release()
			c.events(4)
			gone(c, 1)
			c.until("its connection is closed, the other's is kept", func() bool { return c.recv.open() == 1 })
		}},
		{name: "what does not drain in time is counted as retired", config: "-", answers: []answer{{hang: true}}, want: "seen=4 enqueued=4 delivered=1 failed.retired=3", do: func(c *run) {
			h, cancel, _ := c.newRouter("{workers: 1, timeout: 60s, drainTimeout: 100ms}")
			c.use(h)
			for range 3 {
				c.send("POST", "/old", lorem)
			}
			c.attempts(1)
			cancel()
			c.use(c.mustNew("{workers: 2, timeout: 60s, drainTimeout: 100ms}"))
			gone(c, 1)
			c.get("/new")
			c.attempts(2)
			c.recv.release()
			c.settled()
		}},
		{name: "a request that comes to a pipeline long gone is counted", config: "-", want: "*", do: func(c *run) {
			keep := c.mustNew("timeout: 4s")
			h, cancel, _ := c.newRouter("timeout: 3s")
			c.use(h)
			c.get("/")
			c.event()
			cancel()
			gone(c, 1)
			for range 3 {
				c.eq("answer", c.get("/late").status, 200)
			}
			l := c.settled()
			c.eq("seen", l.Seen, int64(4))
			c.eq("delivered or dropped", l.Delivered+l.Dropped.sum(), int64(4))
			c.use(keep)
			c.get("/")
			c.settled()
			gone(c, 1)
		}},
		{name: "a middleware that no router uses any more leaves nothing behind", config: "-", want: "", do: func(c *run) {
			h, cancel, _ := c.newRouter("timeout: 3s")
			c.use(h)
			c.get("/")
			c.event()
			cancel()
			c.until("no counters", func() bool { _, there := globals().Middlewares[c.name]; return !there })
			c.until("no connection", func() bool { return c.recv.open() == 0 })
			c.gone = true
		}},
	})
}
