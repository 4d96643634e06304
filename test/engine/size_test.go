package engine

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestMaxEventSize(t *testing.T) {
	const mega = 1 << 20
	bodies := []struct {
		name  string
		body  string
		slack int // bytes that may stay free: less than the encoding of one character more
	}{
		{"quotes", strings.Repeat(`"`, mega), 1},
		{"backslashes", strings.Repeat(`\`, mega), 1},
		{"line breaks", strings.Repeat("\r\n", mega/2), 1},
		{"control bytes", strings.Repeat("\x00\x01\x1f\x7f", mega/4), 5},
		{"less-than signs", strings.Repeat("<&>", mega/3), 0},
		{"emoji", strings.Repeat("\U0001F600", mega/4), 3},
		{"line separators", strings.Repeat("\u2028\u2029", mega/6), 5},
		{"all of them in turn", strings.Repeat("a\"\\\n\x01<\U0001F600é\u2028€", mega/22), 5},
		{"random bytes", string(random(mega)), 3},
		{"letters", strings.Repeat("x", mega), 0},
	}
	limits := []struct {
		text string
		n    int
	}{{"4Ki", 4 << 10}, {"50001", 50001}, {"1Mi", mega}}
	var table []scenario
	for _, b := range bodies {
		for _, shape := range []string{"", ", batch: {maxEvents: 2, maxSize: 64Mi, flushInterval: 1ms}"} {
			name, extra := "", 0
			if shape != "" {
				name, extra = " in a batch", len("[]")
			}
			table = append(table, scenario{name: "1 MiB of " + b.name + name + " is cut so that the POST just fits", config: "-", want: "seen=3 enqueued=3 delivered=3 truncated.event=3", do: func(c *run) {
				if shape != "" {
					c.sc.config = "batch: {maxEvents: 2}"
				}
				for i, limit := range limits {
					c.use(c.mustNew("{maxBodySize: 2Mi, maxEventSize: " + limit.text + shape + "}"))
					c.send("POST", "/", b.body)
					c.attempts(i + 1)
					d := c.recv.deliveries()[i]
					e := c.batch(d)[0]
					if n := len(d.raw); n > limit.n || n < limit.n-b.slack-extra {
						c.Errorf("limit %s: got a POST of %d bytes; want at most %d bytes less", limit.text, n, b.slack)
					}
					kept := e.Body.Content
					if len(kept) == 0 || !strings.HasPrefix(b.body, string(kept)) {
						c.Errorf("limit %s: got %d bytes that are not the beginning of the body", limit.text, len(kept))
					}
					if b.name != "random bytes" && (!e.Body.Text || !utf8.Valid(kept)) {
						c.Errorf("limit %s: got a text that ends within a character", limit.text)
					}
					c.eq("size and reason", fmt.Sprint(e.Body.Size, e.Body.Truncated, e.Body.Reason), fmt.Sprint(len(b.body), true, "event"))
				}
			}})
		}
	}
	runTable(t, append(table, []scenario{
		{name: "an event that just fits is whole, and one byte less cuts it", config: "-", want: "seen=3 enqueued=3 delivered=3 truncated.event=1", do: func(c *run) {
			body := strings.Repeat("x", 5000)
			c.use(c.mustNew("{}"))
			c.send("POST", "/", body)
			length := len(c.attempts(1)[0].raw)
			for i, limit := range []int{length, length - 1} {
				c.use(c.mustNew(fmt.Sprintf("maxEventSize: %d", limit)))
				c.send("POST", "/", body)
				d := c.attempts(i + 2)[i+1]
				c.eq("cut", c.batch(d)[0].Body.Truncated, i == 1)
				c.eq("fits", len(d.raw) <= limit, true)
			}
		}},
		{name: "an event that does not fit without its body fails without an attempt", config: "maxEventSize: 4Ki", want: "seen=4 enqueued=4 delivered=1 failed.too_large=3", do: func(c *run) {
			long := strings.Repeat("h", 5000)
			c.get("/", "X-Long", long)
			c.send("POST", "/", lorem, "X-Long", long)
			c.get("/?" + long)
			c.settled()
			c.eq("attempts", len(c.recv.deliveries()), 0)
			c.get("/")
			c.events(1)
		}},
		{name: "an event that does not fit is left out of its batch", config: "{workers: 1, maxEventSize: 8Ki, batch: {maxEvents: 100, maxSize: 1Mi, flushInterval: 30ms}}", want: "seen=20 enqueued=20 delivered=15 failed.too_large=5", do: func(c *run) {
			for i := range 20 {
				c.send("POST", "/", lorem, "X-Long", strings.Repeat("h", 9000*(i%4/3)))
			}
			c.settled()
			for _, d := range c.recv.deliveries() {
				c.eq("fits", len(d.raw) <= 8<<10, true)
			}
		}},
		{name: "it is the size before compression that counts", config: "{maxEventSize: 4Ki, compression: gzip}", want: "seen=1 enqueued=1 delivered=1 truncated.event=1", do: func(c *run) {
			c.send("POST", "/", strings.Repeat("x", 50000))
			d := c.attempts(1)[0]
			c.eq("before compression", len(d.plain), 4<<10)
			c.eq("compressed", len(d.raw) < len(d.plain), true)
		}},
		{name: "a body that was cut for another reason keeps it, unless it was maxBodySize", config: "{maxEventSize: 4Ki, maxBodySize: 20000}", want: "seen=2 enqueued=2 delivered=2 truncated.event=1 truncated.limit=1", do: func(c *run) {
			c.send("POST", "/", strings.Repeat("x", 30000))
			c.eq("reason", c.event().Body.Reason, "event")
			c.use(c.mustNew("{maxEventSize: 4Ki, maxBodySize: 100}"))
			c.send("POST", "/", strings.Repeat("x", 30000))
			c.eq("reason", c.events(2)[1].Body.Reason, "limit")
		}},
		{name: "names and texts that look like a body do not mislead the cut", config: "maxEventSize: 4Ki", want: "seen=1 enqueued=1 delivered=1 truncated.event=1", do: func(c *run) {
			body := []byte(`{"content":"` + strings.Repeat(`"body":{"content":"`, 5000))
			c.roundTrip(c.request("POST", `/"body":{"content":"`, bytes.NewReader(body), "X-A", `"body":{`, "X-B", `"content":"`, "Content", `"body":{"content":"x"`))
			e := c.event()
			c.eq("beginning", bytes.HasPrefix(body, e.Body.Content) && len(e.Body.Content) > 1000, true)
		}},
	}...))
}
