package engine

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
)

// reported waits for a report that says all that the ledger has, and returns it.
func (c *run) reported(r *receiver) event.Report {
	c.Helper()
	var last event.Report
	c.until("a report says it all", func() bool {
		l, all := c.ledgerOf(r), c.checkReports(r, c.ledgerOf(r))
		if len(all) == 0 {
			return false
		}
		last = all[len(all)-1]
		return last.Seen == l.Seen && last.Delivered == l.Delivered && sum(last.Failed) == l.Failed.sum() && sum(last.Dropped) == l.Dropped.sum()
	})
	return last
}

func sum(counts map[string]int64) int64 { return counters(counts).sum() }

// end ends the middleware, and waits until nothing of it is left.
func (c *run) end() {
	c.Helper()
	for _, end := range c.ends {
		end()
	}
	c.until("the middleware is gone", func() bool { _, there := globals().Middlewares[c.name]; return !there })
	c.gone = true
}

// checkFinal compares what the last report says with the ledger before the end.
func (c *run) checkFinal(r *receiver, l ledger) {
	c.Helper()
	c.checkDeliveries(r, l)
	all := c.checkReports(r, l)
	if len(all) == 0 {
		c.Fatal("reports: got none; want a final one")
	}
	last := all[len(all)-1]
	c.eq("final report", inReport(last), l.inReport())
	c.eq("final", last.Final, true)
}

// inReport is what a report has of a ledger.
func (l ledger) inReport() string {
	l.Retried = 0
	return l.String()
}

func inReport(r event.Report) string {
	return ledger{Seen: r.Seen, Filtered: r.Filtered, SampledOut: r.SampledOut, Enqueued: r.Enqueued(), Delivered: r.Delivered,
		Waiting: r.Waiting, InFlight: r.InFlight, Dropped: r.Dropped, Failed: r.Failed, Truncated: r.Truncated}.String()
}

func TestReports(t *testing.T) {
	runTable(t, []scenario{
		{name: "reports say what was filtered, delivered, dropped, failed and cut", config: "{reportInterval: 20ms, methods: [GET, POST], workers: 1, queueSize: 2, maxBodySize: 3, retry: {attempts: 1}}", answers: []answer{{hang: true}, {status: 404}, {}},
			want: "*", do: func(c *run) {
				c.send("PUT", "/", lorem)
				c.send("POST", "/", lorem)
				c.attempts(1)
				for range 4 {
					c.send("POST", "/", lorem)
				}
				c.send("PUT", "/", lorem)
				c.passed()
				c.recv.release()
				l := c.settled()
				r := c.reported(c.recv)
				c.eq("report", inReport(r), l.inReport())
				c.eq("some of each", l.Filtered > 0 && l.Delivered > 0 && l.Dropped["queue_full"] > 0 && l.Failed["rejected"] > 0 && l.Truncated["limit"] > 0, true)
				c.eq("final", r.Final, false)
				c.eq("boot", r.Boot, c.events(2)[0].Boot)
				c.eq("source", r.Source, c.events(2)[0].Source)
			}},
		{name: "a report is only sent when there is something new", config: "reportInterval: 5ms", want: "seen=20 enqueued=20 delivered=20", do: func(c *run) {
			for range 20 {
				c.get("/")
				c.settled()
			}
			c.reported(c.recv)
			// Time for a hundred reports. One may repeat another that was under way.
			n, idle := len(c.recv.told()), time.Now()
			c.until("time passes", func() bool { return time.Since(idle) > 500*time.Millisecond })
			c.eq("no more reports", len(c.recv.told()) <= n+2, true)
		}},
		{name: "each receiver is told of itself", config: "{watchURLs: [$URL2], reportInterval: 20ms, retry: {attempts: 1}}", answers: statuses(204), also: []also{{answers: statuses(404), want: "seen=5 enqueued=5 failed.rejected=5"}},
			want: "seen=5 enqueued=5 delivered=5", do: func(c *run) {
				for range 5 {
					c.get("/")
				}
				c.settled()
				a, b := c.reported(c.recv), c.reported(c.more[0])
				c.eq("reports", fmt.Sprint(a.Delivered, a.Failed, b.Delivered, b.Failed), "5 map[] 0 map[rejected:5]")
				c.eq("boots differ", a.Boot == b.Boot, false)
			}},
		{name: "reports are signed, and with batches they are a batch of one", config: "{reportInterval: 20ms, signingSecrets: [" + secretA + "], batch: {maxEvents: 10, flushInterval: 1ms}}", want: "seen=3 enqueued=3 delivered=3", do: func(c *run) {
			for range 3 {
				c.get("/")
			}
			c.settled()
			c.reported(c.recv)
			for _, d := range c.recv.told() {
				if err := event.Verify(secretA, d.header, d.raw); err != nil {
					c.Error(err)
				}
				c.eq("content type", d.header.Get("Content-Type"), event.BatchContentType)
			}
		}},
		{name: "format json sends reports as application/json", config: "{reportInterval: 20ms, format: json}", want: one, do: func(c *run) {
			c.get("/")
			c.settled()
			c.reported(c.recv)
		}},
		{name: "a report is an attempt, but no event", config: "{reportInterval: 5ms, requestOrigin: mirror.example.com}", prepare: func(r *receiver) { r.consents = []answer{consent("*", "")} }, want: "seen=3 enqueued=3 delivered=3", do: func(c *run) {
			for range 3 {
				c.send("POST", "/", lorem)
				c.settled()
				c.reported(c.recv)
			}
		}},
	})
}

// checker is the example of a receiver that proves what is missing.
var checker = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "requestmirror-checker")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "checker")
	build := exec.Command("go", "build", "-o", path, ".")
	build.Dir = filepath.Join("..", "..", "examples", "checker")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// judged runs the checker on what a receiver has stored.
func judged(c *run, lines [][]byte) (code int, out string) {
	c.Helper()
	path, err := checker()
	if err != nil {
		c.Fatal(err)
	}
	cmd := exec.Command(path, "-final")
	cmd.Stdin = bytes.NewReader(bytes.Join(lines, []byte("\n")))
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		c.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(text)
}

// TestProof ends pipelines, which takes a grace, so all of it runs at once.
func TestProof(t *testing.T) {
	const faulty = "{queueSize: 30, maxAge: 3s, memoryLimit: 64Ki, reportInterval: 10ms, retry: {attempts: 2, initialInterval: 1ms, maxInterval: 5ms}, circuitBreaker: {failures: 3, openFor: 5ms}"
	// Some of what a receiver may do, without a timeout that could meet an answer on its way.
	script := func(n int) (out []answer) {
		for i := range n {
			out = append(out, []answer{{}, {status: 500}, {}, {cut: true}, {}, {}, {status: 404}, {}, {status: 429}, {status: 413}, {}, {status: 503}, {status: 503}}[i%13])
		}
		return append(out, answer{})
	}
	prove := func(c *run) {
		checker() // So that building it is over when the cases are.
		parallel(400, func(i int) { c.send([]string{"GET", "POST"}[i%2], "/", strings.Repeat("x", i%2*1000)) })
		l := c.settled()
		c.end()
		c.checkFinal(c.recv, l)
		var lines [][]byte
		events := 0
		for _, d := range c.recv.deliveries() {
			if d.accepted {
				lines = append(lines, d.plain)
				events++
			}
		}
		for _, d := range c.recv.told() {
			lines = append(lines, d.plain)
		}
		if l.Failed.sum() == 0 || l.Delivered == 0 {
			c.Fatalf("test: got a run without failures: %s", l)
		}
		code, out := judged(c, lines)
		if code != 0 || !strings.Contains(out, "streams: 1 explained, 0 open, 0 unexplained") {
			c.Errorf("checker: got %d; want 0, as the reports explain all that is missing\nledger: %s\n%s", code, l, out)
		}
		for _, lost := range []int{0, events / 2, events - 1} {
			left := append(append([][]byte{}, lines[:lost]...), lines[lost+1:]...)
			if code, out := judged(c, left); code != 1 {
				c.Errorf("checker: got %d without delivery %d; want 1\n%s", code, lost, out)
			}
		}
		if code, out := judged(c, lines[:events]); code != 1 {
			c.Errorf("checker: got %d without reports; want 1\n%s", code, out)
		}
	}
	runParallel(t, []scenario{
		{name: "the reports of a faulty run explain all that is missing, and one event that is lost later is found", config: faulty + "}", answers: script(500), do: prove},
		{name: "so they do with batches and gzip", config: faulty + ", compression: gzip, maxEventSize: 4Ki, batch: {maxEvents: 5, flushInterval: 1ms}}", answers: script(500), do: prove},
		{name: "the last report is sent when the pipeline ends, and is final", config: "reportInterval: 24h", do: func(c *run) {
			for range 5 {
				c.send("POST", "/", lorem)
			}
			l := c.settled()
			c.end()
			c.checkFinal(c.recv, l)
			c.eq("reports", len(c.recv.told()), 1)
		}},
		{name: "with reportInterval 0 there is none", config: "reportInterval: 0", do: func(c *run) {
			c.send("POST", "/", lorem)
			l := c.settled()
			c.end()
			c.checkDeliveries(c.recv, l)
			c.eq("reports", len(c.recv.told()), 0)
		}},
		{name: "a pipeline that never had a request has nothing but zeros to tell", config: "reportInterval: 10ms", do: func(c *run) {
			c.end()
			for _, r := range c.checkReports(c.recv, ledger{}) {
				c.eq("report", inReport(r), "")
			}
			c.eq("deliveries", len(c.recv.deliveries()), 0)
		}},
	})
}
