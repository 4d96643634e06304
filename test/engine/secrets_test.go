package engine

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror/test/event"
)

// file writes a file of the case, as a Secret volume or an editor does: all of it at once.
func (c *run) file(name, text string) string {
	c.Helper()
	if c.dir == "" {
		c.dir = c.TempDir()
	}
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		c.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		c.Fatal(err)
	}
	return path
}

// sendUntil sends requests until a delivery is as wanted. Files are looked at once a second.
func (c *run) sendUntil(what string, ok func(delivery) bool) delivery {
	c.Helper()
	var last delivery
	n := len(c.recv.deliveries())
	c.until(what, func() bool {
		c.send("POST", "/", lorem, "X-Client", "alice")
		n++
		last = c.attempts(n)[n-1]
		return ok(last)
	})
	c.sc.want = strings.ReplaceAll("seen=N enqueued=N delivered=N", "N", strconv.Itoa(n))
	return last
}

func pseudonym(key, value string) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(value))
	return "hmac-sha256:" + hex.EncodeToString(mac.Sum(nil))
}

// TestSecretFiles waits for seconds to pass, so all of it runs at once.
func TestSecretFiles(t *testing.T) {
	// onePipeline is what a rotation leaves alone.
	onePipeline := func(c *run) {
		c.Helper()
		c.settled()
		c.eq("pipelines", c.ledger().Pipelines, int64(1))
		for i, e := range c.read(c.recv.deliveries()) {
			c.eq("number", e.Sequence, int64(i+1))
		}
	}
	verifies := func(secret string) func(delivery) bool {
		return func(d delivery) bool { return event.Verify(secret, d.header, d.raw) == nil }
	}
	runParallel(t, []scenario{
		{name: "a signing secret in a file rotates without a reload", config: "-", secret: []string{secretA[6:], secretB[6:]}, do: func(c *run) {
			file := c.file("secret", secretA+"\r\n")
			c.use(c.mustNew("signingSecrets: ['file:" + file + "']"))
			c.sendUntil("signed with the first one", verifies(secretA))
			c.file("secret", secretB)
			d := c.sendUntil("signed with the second one", verifies(secretB))
			c.eq("the first one is of no use any more", verifies(secretA)(d), false)
			for _, d := range c.recv.deliveries() {
				if !verifies(secretA)(d) && !verifies(secretB)(d) {
					c.Errorf("signature: got %q, which is of neither secret", d.header["Webhook-Signature"])
				}
			}
			onePipeline(c)
		}},
		{name: "tokens and the receiver's URL rotate without a reload", config: "-", secret: []string{"first-t0ken", "second-t0ken", "pa55word"}, do: func(c *run) {
			token, u := c.file("token", "Bearer first-t0ken\n"), c.file("url", c.recv.URL+"/first\n")
			c.use(c.mustNew("{watchURL: 'file:" + u + "', customRequestHeaders: {X-Token: 'file:" + token + "'}}"))
			d := c.sendUntil("delivered", func(delivery) bool { return true })
			c.eq("first", d.path+" "+d.header.Get("X-Token"), "/first Bearer first-t0ken")
			c.file("token", "Bearer second-t0ken\n")
			c.sendUntil("the second token", func(d delivery) bool { return d.header.Get("X-Token") == "Bearer second-t0ken" })
			c.file("url", strings.Replace(c.recv.URL, "://", "://user:pa55word@", 1)+"/second")
			d = c.sendUntil("the second URL", func(d delivery) bool { return d.path == "/second" })
			c.eq("authorization", d.header.Get("Authorization"), "Basic "+base64.StdEncoding.EncodeToString([]byte("user:pa55word")))
			onePipeline(c)
		}},
		{name: "one of watchURLs may be a file, and rotates alone", config: "-", secret: []string{"s3cret-path"}, do: func(c *run) {
			u := c.file("url", c.recv.URL+"/s3cret-path-1")
			other := newReceiver(nil, false)
			defer other.Close()
			c.use(c.mustNew("{watchURL: '" + other.URL + "/other', watchURLs: ['file:" + u + "']}"))
			c.sendUntil("the first path", func(d delivery) bool { return d.path == "/s3cret-path-1" })
			c.file("url", c.recv.URL+"/s3cret-path-2")
			c.sendUntil("the second path", func(d delivery) bool { return d.path == "/s3cret-path-2" })
			c.settled()
			for _, d := range other.deliveries() {
				c.eq("the other's path", d.path, "/other")
			}
			c.eq("events of both", ids(c.read(other.deliveries())), ids(c.read(c.recv.deliveries())))
			c.eq("receivers", len(c.ledgers()), 2)
		}},
		{name: "the key of pseudonyms may be in a file, and rotates", config: "-", secret: []string{"first key", "second key"}, do: func(c *run) {
			file := c.file("key", "first key\n")
			c.use(c.mustNew("{hashKey: 'file:" + file + "', headers: {names: {X-Client: hash}}}"))
			is := func(key string) func(delivery) bool {
				return func(d delivery) bool { return c.batch(d)[0].Header["x-client"][0] == pseudonym(key, "alice") }
			}
			c.sendUntil("of the first key", is("first key"))
			c.file("key", "second key")
			c.sendUntil("of the second key", is("second key"))
			onePipeline(c)
		}},
		{name: "a bad new secret is told once, is not shown, and the old one stays in use", config: "-", secret: []string{secretA[6:], "n0nsense"}, do: func(c *run) {
			file := c.file("secret", secretA)
			c.use(c.mustNew("signingSecrets: ['file:" + file + "']"))
			c.sendUntil("signed", verifies(secretA))
			c.file("secret", "n0nsense")
			told := c.sendUntil("told", func(delivery) bool { return len(c.logged("a secret has changed")) > 0 })
			second, _ := strconv.Atoi(told.header.Get("Webhook-Timestamp"))
			c.sendUntil("the file was looked at again", func(d delivery) bool {
				now, _ := strconv.Atoi(d.header.Get("Webhook-Timestamp"))
				return now >= second+2
			})
			c.eq("lines", len(c.logged("a secret has changed")), 1)
			for _, d := range c.recv.deliveries() {
				c.eq("signed with the old one", verifies(secretA)(d), true)
			}
			c.file("secret", secretB)
			c.sendUntil("a good one is taken again", verifies(secretB))
			c.eq("lines", len(c.logged("a secret has changed")), 1)
			onePipeline(c)
		}},
		{name: "a file that is away for a while is no news", config: "-", do: func(c *run) {
			file := c.file("secret", secretA)
			c.use(c.mustNew("signingSecrets: ['file:" + file + "']"))
			first := c.sendUntil("signed", verifies(secretA))
			if err := os.Remove(file); err != nil {
				c.Fatal(err)
			}
			second, _ := strconv.Atoi(first.header.Get("Webhook-Timestamp"))
			c.sendUntil("the file was looked for", func(d delivery) bool {
				now, _ := strconv.Atoi(d.header.Get("Webhook-Timestamp"))
				return now >= second+2 && verifies(secretA)(d)
			})
			c.file("secret", secretB)
			c.sendUntil("the new one", verifies(secretB))
			c.eq("lines", c.logged(""), []string(nil))
			onePipeline(c)
		}},
		{name: "batches are signed with the new secret, too", config: "-", do: func(c *run) {
			file := c.file("secret", secretA)
			c.use(c.mustNew("{signingSecrets: ['file:" + file + "'], compression: gzip, batch: {maxEvents: 2, flushInterval: 1ms}}"))
			c.sendUntil("signed with the first one", verifies(secretA))
			c.file("secret", secretB)
			c.sendUntil("signed with the second one", verifies(secretB))
			onePipeline(c)
		}},
	})
}
