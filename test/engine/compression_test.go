package engine

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror/test/event"
)

func TestCompression(t *testing.T) {
	const signed = "{compression: gzip, signingSecrets: [" + secretA + "]"
	// check is what holds for every delivery.
	check := func(c *run, d delivery, compressed bool) {
		c.Helper()
		c.eq("encoding", d.header.Get("Content-Encoding") == "gzip", compressed)
		if err := event.Verify(secretA, d.header, d.raw); err != nil {
			c.Errorf("signature over the bytes as sent: %v", err)
		}
		if compressed && (event.Verify(secretA, d.header, d.plain) == nil || len(d.raw) >= len(d.plain)) {
			c.Errorf("compressed: got %d bytes of %d; want less, and no signature over those before", len(d.raw), len(d.plain))
		}
	}
	runTable(t, []scenario{
		{name: "gzip makes a payload smaller, and is what is signed", config: signed + "}", want: one, do: func(c *run) {
			body := strings.Repeat(lorem, 1000)
			c.send("POST", "/", body)
			c.eq("body", string(c.event().Body.Content), body)
			d := c.recv.deliveries()[0]
			check(c, d, true)
			c.eq("a tenth", len(d.raw) < len(d.plain)/10, true)
		}},
		{name: "a tiny payload is sent as it is", config: signed + ", headers: {defaultMode: drop}}", want: one, do: func(c *run) {
			c.get("/")
			d := c.attempts(1)[0]
			c.eq("tiny", len(d.plain) < 768, true)
			check(c, d, false)
		}},
		{name: "an event with a few headers is compressed", config: signed + "}", want: one, do: func(c *run) {
			c.get("/", "Accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "X-Forwarded-For", "192.0.2.7")
			d := c.attempts(1)[0]
			c.eq("no longer than a few lines", len(d.plain) < 1024, true)
			check(c, d, true)
		}},
		{name: "random bytes come as they were", config: signed + "}", want: one, do: func(c *run) {
			body := random(100_000)
			c.send("POST", "/", string(body))
			c.eq("body", bytes.Equal(c.event().Body.Content, body), true)
			// Base64 has six bits in a byte, so even this gets smaller.
			check(c, c.recv.deliveries()[0], true)
		}},
		{name: "the attempts of a payload have the same compressed bytes", config: signed + ", retry: {initialInterval: 1ms, maxInterval: 1ms}}", answers: statuses(500, 429, 200), want: "seen=1 enqueued=1 delivered=1 retried=2", do: func(c *run) {
			c.send("POST", "/", strings.Repeat(lorem, 100))
			d := c.attempts(3)
			for _, d := range d {
				check(c, d, true)
			}
			c.eq("bytes", bytes.Equal(d[0].raw, d[1].raw) && bytes.Equal(d[1].raw, d[2].raw), true)
		}},
		{name: "many payloads at once are each their own", config: signed + ", workers: 8}", want: "seen=200 enqueued=200 delivered=200", do: func(c *run) {
			parallel(200, func(i int) { c.send("POST", "/", strings.Repeat(string(rune('a'+i%26)), 2000+i)) })
			for _, e := range c.events(200) {
				b := e.Body.Content
				c.eq("body", string(b), strings.Repeat(string(b[:1]), len(b)))
			}
		}},
		{name: "without compression nothing is compressed", config: "signingSecrets: [" + secretA + "]", want: one, do: func(c *run) {
			c.send("POST", "/", strings.Repeat(lorem, 1000))
			check(c, c.attempts(1)[0], false)
		}},
	})
}

// random bytes, which are no text. The same in every run.
func random(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(r.Uint32())
	}
	return out
}
