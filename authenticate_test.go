package requestmirror

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// The example of GitHub's documentation, "Validating webhook deliveries".
const (
	githubSecret    = "It's a Secret to Everybody"
	githubPayload   = "Hello, World!"
	githubSignature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"

	hubHeader = "X-Hub-Signature-256"
)

func macOf(secret string, payload []byte) []byte {
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = mac.Write(payload)
	return mac.Sum(nil)
}

// hubSignature is what GitHub would send.
func hubSignature(secret string, payload []byte) string {
	return "sha256=" + hex.EncodeToString(macOf(secret, payload))
}

// authenticated are options with these secrets.
func authenticated(secrets interface{}, more opts) opts {
	section := map[string]interface{}{"secrets": secrets}
	options := opts{}
	for path, value := range more {
		part, ok := strings.CutPrefix(path, "authenticate.")
		if ok {
			section[part] = value
		} else {
			options[path] = value
		}
	}
	options["authenticate"] = section
	return options
}

// signedBy is a request with a body as a sender with that secret makes it.
func signedBy(secret string, u *upload, length int64) *http.Request {
	req := uploadOf(u, length)
	req.Header.Set(hubHeader, hubSignature(secret, u.rest))
	return req
}

var authenticateCases = []struct {
	name    string
	secrets interface{} // GitHub's if nil
	options opts
	header  string // X-Hub-Signature-256 if empty
	given   []string
	payload string // GitHub's if empty, none if "-"
	chunked bool
	end     error
	read    int // bytes that the backend reads, and no further; -1 all
	want    string
}{
	{name: "GitHub's example", given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "GitHub's example in chunks", given: []string{githubSignature}, chunked: true, read: -1, want: "enqueued=1"},
	{name: "hexadecimal in upper case", given: []string{"sha256=" + strings.ToUpper(githubSignature[7:])}, read: -1, want: "enqueued=1"},
	{name: "another digit", given: []string{githubSignature[:70] + "8"}, read: -1, want: forged},
	{name: "another payload", given: []string{githubSignature}, payload: "Hello, World?", read: -1, want: forged},
	{name: "a payload with a byte more", given: []string{githubSignature}, payload: "Hello, World!\n", read: -1, want: forged},
	{name: "another secret", secrets: "It's a secret to everybody", given: []string{githubSignature}, read: -1, want: forged},
	{name: "no header", read: -1, want: forged},
	{name: "an empty header", given: []string{""}, read: -1, want: forged},
	{name: "a prefix without a signature", given: []string{"sha256="}, read: -1, want: forged},
	{name: "another prefix", given: []string{"sha1=" + githubSignature[7:]}, read: -1, want: forged},
	{name: "a prefix in another case", given: []string{"SHA256=" + githubSignature[7:]}, read: -1, want: forged},
	{name: "no prefix", given: []string{githubSignature[7:]}, read: -1, want: forged},
	{name: "half of a signature", given: []string{githubSignature[:39]}, read: -1, want: forged},
	{name: "a signature and more", given: []string{githubSignature + "00"}, read: -1, want: forged},
	{name: "no hexadecimal", given: []string{"sha256=" + strings.Repeat("zz", 32)}, read: -1, want: forged},
	{name: "a space before it", given: []string{" " + githubSignature}, read: -1, want: forged},
	{name: "the signature of nothing", given: []string{hubSignature(githubSecret, nil)}, read: -1, want: forged},
	{name: "one that an empty secret would make", given: []string{hubSignature("", []byte(githubPayload))}, read: -1, want: forged},
	{name: "the first of two headers counts", given: []string{githubSignature, "sha256=00"}, read: -1, want: "enqueued=1"},
	{name: "and not the second", given: []string{"sha256=00", githubSignature}, read: -1, want: forged},
	{name: "base64, as Shopify has it", options: shopify, header: "X-Shopify-Hmac-Sha256", given: []string{base64.StdEncoding.EncodeToString(macOf(githubSecret, []byte(githubPayload)))}, read: -1, want: "enqueued=1"},
	{name: "base64 of another payload", options: shopify, header: "X-Shopify-Hmac-Sha256", given: []string{base64.StdEncoding.EncodeToString(macOf(githubSecret, []byte("x")))}, read: -1, want: forged},
	{name: "base64 of less", options: shopify, header: "X-Shopify-Hmac-Sha256", given: []string{base64.StdEncoding.EncodeToString(macOf(githubSecret, []byte(githubPayload))[:31])}, read: -1, want: forged},
	{name: "base64 behind the prefix", given: []string{"sha256=" + base64.StdEncoding.EncodeToString(macOf(githubSecret, []byte(githubPayload)))}, read: -1, want: "enqueued=1"},
	{name: "hexadecimal without a prefix", options: shopify, header: "X-Shopify-Hmac-Sha256", given: []string{githubSignature[7:]}, read: -1, want: "enqueued=1"},
	{name: "the header that is not asked for", options: shopify, given: []string{githubSignature}, read: -1, want: forged},
	{name: "a header in another case", options: opts{"authenticate.header": "x-hub-signature-256"}, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "the second of two secrets", secrets: []string{"new", githubSecret}, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "the first of two secrets", secrets: []string{githubSecret, "old"}, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "none of two secrets", secrets: []string{"new", "old"}, given: []string{githubSignature}, read: -1, want: forged},
	{name: "two secrets in a text", secrets: "new," + githubSecret, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "no body", given: []string{hubSignature(githubSecret, nil)}, payload: "-", read: -1, want: "enqueued=1"},
	{name: "no body, and a signature of another", given: []string{githubSignature}, payload: "-", read: -1, want: forged},
	{name: "no body, and no header", payload: "-", read: -1, want: forged},
	{name: "an empty body in chunks", given: []string{hubSignature(githubSecret, nil)}, payload: "-", chunked: true, read: -1, want: "enqueued=1"},
	{name: "an empty body in chunks that nobody reads", given: []string{hubSignature(githubSecret, nil)}, payload: "-", chunked: true, want: forged},
	{name: "a body that is not kept", options: opts{"mirrorBody": false}, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "a body in chunks that is not kept", options: opts{"mirrorBody": false}, given: []string{githubSignature}, chunked: true, read: -1, want: "enqueued=1"},
	{name: "a body whose type is not kept", options: opts{"bodyContentTypes": "text/*"}, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "a body for which there is no memory", options: opts{"memoryLimit": 1}, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "a body of which the beginning is kept", options: opts{"maxBodySize": 5}, given: []string{githubSignature}, read: -1, want: "enqueued=1"},
	{name: "a body in chunks of which the beginning is kept", options: opts{"maxBodySize": 5}, given: []string{githubSignature}, chunked: true, read: -1, want: "enqueued=1"},
	{name: "a forged body of which the beginning is kept", options: opts{"maxBodySize": 5}, given: []string{githubSignature}, payload: "Hello, world!", read: -1, want: forged},
	{name: "a body that nobody reads", given: []string{githubSignature}, want: forged},
	{name: "a body that is not read to its end", given: []string{githubSignature}, read: len(githubPayload) - 1, want: forged},
	{name: "a body that is read to the byte", given: []string{githubSignature}, read: len(githubPayload), want: "enqueued=1"},
	{name: "a body in chunks whose end is not read", given: []string{githubSignature}, chunked: true, read: len(githubPayload), want: forged},
	{name: "a body that breaks off where the signed one ends", given: []string{githubSignature}, chunked: true, end: errGone, read: -1, want: forged},
	{name: "a request that is filtered anyway", options: opts{"methods": "GET"}, given: []string{githubSignature}, read: -1, want: "filtered=1"},
	{name: "a genuine one that is sampled out", options: opts{"sampleRate": 0}, given: []string{githubSignature}, read: -1, want: "sampledOut=1"},
}

const forged = "filtered=1 unauthenticated=1"

var shopify = opts{"authenticate.header": "X-Shopify-Hmac-Sha256", "authenticate.prefix": ""}

func TestOnlyGenuineRequestsAreMirrored(t *testing.T) {
	for _, c := range authenticateCases {
		for _, receivers := range []int{1, 2} {
			secrets := c.secrets
			if secrets == nil {
				secrets = githubSecret
			}
			payload := c.payload
			if payload == "" {
				payload = githubPayload
			} else if payload == "-" {
				payload = ""
			}
			end := c.end
			if end == nil {
				end = io.EOF
			}
			length := int64(len(payload))
			if c.chunked {
				length = -1
			}
			header := c.header
			if header == "" {
				header = hubHeader
			}
			req := uploadOf(&upload{rest: []byte(payload), step: 5, end: end}, length)
			for _, value := range c.given {
				req.Header.Add(header, value)
			}
			one, other := stillTwo(t, authenticated(secrets, c.options))
			pipes := []*pipeline{one, other}
			if receivers == 1 {
				pipes = pipes[:1]
				one.receivers = 1
			}
			read := c.read
			seen := ""
			rw := through(newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				seen = readSome(req, read)
				rw.WriteHeader(http.StatusNoContent)
			}), one.set, pipes), req)
			want := payload
			if read >= 0 {
				want = payload[:read]
			}
			if rw.Code != http.StatusNoContent || seen != want {
				t.Errorf("%s: got status %d, and %q at the backend; want its 204, and %q", c.name, rw.Code, seen, want)
			}
			for _, p := range pipes {
				if got := bookOf(t, p, 1); got != c.want {
					t.Errorf("%s, %d receivers: got %s; want %s", c.name, receivers, got, c.want)
				}
			}
			for _, p := range pipes[1:] {
				letGoOfAll(p)
			}
			emptied(t, one)
		}
	}
}

// readSome reads so many bytes of the body, or all for -1.
func readSome(req *http.Request, n int) string {
	var content []byte
	if n < 0 {
		content, _ = io.ReadAll(req.Body)
	} else {
		content = make([]byte, n)
		_, _ = io.ReadFull(req.Body, content)
	}
	return string(content)
}

// The HMAC covers what the event has no room for.
func TestGenuineBodyThatIsCutInItsEvent(t *testing.T) {
	for _, size := range bodySizes {
		for _, chunked := range []bool{false, true} {
			for _, c := range []struct {
				options opts
				kept    int
				reason  string
			}{{opts{"maxBodySize": 1000}, 1000, cutLimit}, {opts{"maxBodySize": 0}, 0, cutLimit}, {opts{"mirrorBody": false}, 0, cutDisabled}, {opts{"memoryLimit": 1}, 0, cutMemory}, {nil, size, ""}} {
				if c.reason == cutMemory && size == 1 {
					continue
				}
				p := stillPipeline(t, authenticated("key", c.options))
				sent := textOf(size)
				length := int64(size)
				if chunked {
					length = -1
				}
				name := fmt.Sprintf("%d bytes, chunked %v, %v", size, chunked, c.options)
				taken := captured(t, p, signedBy("key", &upload{rest: sent, step: 5000, end: io.EOF}, length), answer(""))
				kept := c.kept
				reason := c.reason
				if size <= kept {
					kept = size
					reason = ""
				}
				if w, content := keptBody(t, p, taken); !bytes.Equal(content, sent[:kept]) || w.Size != int64(size) || w.Reason != reason {
					t.Errorf("%s: got %d bytes, size %d, reason %q; want %d, %d, %q", name, len(content), w.Size, w.Reason, kept, size, reason)
				}
			}
		}
	}
}

func TestRequestWithoutABodyReader(t *testing.T) {
	for _, length := range []int64{0, -1} {
		p := stillPipeline(t, authenticated("key", nil))
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.Body = nil
		req.ContentLength = length
		req.Header.Set(hubHeader, hubSignature("key", nil))
		through(newMirror(nobody, p.set, []*pipeline{p}), req)
		want := "enqueued=1"
		if length < 0 {
			want = forged
		}
		if got := bookOf(t, p, 1); got != want {
			t.Errorf("length %d: got %s; want %s", length, got, want)
		}
		emptied(t, p)
	}
}

// A transport that reads on while the handler returns and the proof is judged: the race
// detector watches.
func TestLateReadsOfWhatIsProvenConcurrentSafe(t *testing.T) {
	p := stillPipeline(t, authenticated("key", nil))
	const rounds = 30
	n := 0
	for _, length := range []int64{4000, 200000, -1} {
		for i := 0; i < rounds; i++ {
			sent := textOf(200000)
			if length == 4000 {
				sent = sent[:4000]
			}
			done := make(chan int64, 1)
			through(newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
				body := req.Body
				_, _ = io.ReadFull(body, make([]byte, 1000))
				go readLate(body, done)
			}), p.set, []*pipeline{p}), signedBy("key", &upload{rest: sent, step: 500, end: io.EOF}, length))
			n++
			late := <-done
			if late != int64(len(sent))-1000 {
				t.Errorf("length %d: late reads got %d bytes; want %d", length, late, len(sent)-1000)
			}
		}
	}
	bookOf(t, p, n)
	for _, c := range emptied(t, p) {
		if c.body.cut != "" {
			t.Errorf("got a body that is cut (%s) in a genuine request; want it whole, or the request left out", c.body.cut)
		}
	}
}

func readLate(body io.Reader, done chan int64) {
	n, _ := io.Copy(io.Discard, body)
	done <- n
}

// What is read after the handler returned is too late, whenever that is.
func TestProofEndsWithTheHandler(t *testing.T) {
	p := stillPipeline(t, authenticated("key", nil))
	var late io.Reader
	through(newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		late = req.Body
	}), p.set, []*pipeline{p}), signedBy("key", &upload{rest: textOf(5000), step: 999, end: io.EOF}, 5000))
	rest, err := io.ReadAll(late)
	if err != nil || !bytes.Equal(rest, textOf(5000)) {
		t.Errorf("got %d bytes, error %v; want all 5000", len(rest), err)
	}
	if got := bookOf(t, p, 1); got != forged {
		t.Errorf("got %s; want %s", got, forged)
	}
	emptied(t, p)
}

func TestGenuineRequestWhoseBackendPanics(t *testing.T) {
	for _, c := range []struct {
		read int
		want string
	}{{-1, "enqueued=1"}, {3, forged}} {
		p := stillPipeline(t, authenticated("key", nil))
		read := c.read
		m := newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			readSome(req, read)
			panic(http.ErrAbortHandler)
		}), p.set, []*pipeline{p})
		if got := fmt.Sprint(panicIn(m, signedBy("key", &upload{rest: textOf(5000), step: 999, end: io.EOF}, 5000))); got != fmt.Sprint(http.ErrAbortHandler) {
			t.Errorf("got panic %v; want %v", got, http.ErrAbortHandler)
		}
		if got := bookOf(t, p, 1); got != c.want {
			t.Errorf("%d bytes read: got %s; want %s", c.read, got, c.want)
		}
		emptied(t, p)
	}
}

func TestAuthenticationSecretFromAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, "one\r\n")
	p := stillPipeline(t, authenticated([]string{"file:" + name, "inline"}, nil))
	m := newMirror(answer(""), p.set, []*pipeline{p})
	file := p.set.authentication.secrets[0]
	n := 0
	genuine := func(secret string) bool {
		n++
		before := len(p.queue)
		through(m, signedBy(secret, &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
		return len(p.queue) > before
	}
	if !genuine("one") || !genuine("inline") || genuine("two") {
		t.Error("got other requests mirrored than those signed with what is in the file, or inline")
	}
	for _, c := range []struct{ text, now, before string }{{"two", "two", "one"}, {"", "two", "one"}, {"\n", "two", "one"}, {" three ", " three ", "two"}} {
		writeSecret(t, name, c.text)
		file.checked-- // as if it was a second ago
		if !genuine(c.now) || genuine(c.before) || !genuine("inline") {
			t.Errorf("file %q: got other requests mirrored than those signed with %q", c.text, c.now)
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	file.checked--
	if !genuine(" three ") {
		t.Error("got a genuine request left out while the file is away; want the last secret to count")
	}
	bookOf(t, p, n)
	emptied(t, p)
}

// A secret is rotated while requests come, on real time, and from several goroutines.
func TestAuthenticationSecretIsReplacedConcurrentSafe(t *testing.T) {
	rec := newReceiver(t)
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, "one")
	handler := mirrorOf(t, answer(""), authenticated("file:"+name, opts{"watchURL": rec.url, "reportInterval": 0}))
	m := handler.(*Mirror)
	serve(handler, signedBy("one", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
	rec.wait(t, 1)
	writeSecret(t, name, "two")
	replaced := time.Now()
	n := 1
	waitFor(t, "a request that is signed with the new secret to be mirrored", func() bool {
		var group sync.WaitGroup
		for i := 0; i < 4; i++ {
			group.Add(1)
			go serveSigned(handler, "two", &group)
		}
		group.Wait()
		n += 4
		return tallyOf(t).Enqueued > 1
	})
	if took := time.Since(replaced); took > 10*time.Second {
		t.Errorf("got the new secret in use after %v; want it within a second, or a few on a slow machine", took)
	}
	before := tallyOf(t)
	serve(handler, signedBy("one", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
	serve(handler, signedBy("two", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
	n += 2
	if got := tallyOf(t); got.Enqueued != before.Enqueued+1 || got.Filtered != before.Filtered+1 || got.Seen != uint64(n) || got.Pipelines != 1 {
		t.Errorf("got %+v after %d requests; want one more mirrored and one filtered than in %+v, by the same pipeline", got, n, before)
	}
	m.pipe.mu.Lock()
	defer m.pipe.mu.Unlock()
	if c := m.pipe.counts; c.unauthenticated != c.filtered {
		t.Errorf("got %d unauthenticated; want all %d that were filtered", c.unauthenticated, c.filtered)
	}
}

func serveSigned(handler http.Handler, secret string, group *sync.WaitGroup) {
	defer group.Done()
	serve(handler, signedBy(secret, &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
}

// It is not the delivery's secret: the receiver, its queue and its connections stay.
func TestAnotherAuthenticationSecretKeepsThePipeline(t *testing.T) {
	rec := newReceiver(t)
	options := authenticated("one", opts{"watchURL": rec.url})
	one := mirrorOf(t, answer(""), options).(*Mirror)
	two := mirrorOf(t, answer(""), authenticated("two", opts{"watchURL": rec.url})).(*Mirror)
	if one.pipe != two.pipe {
		t.Error("got another pipeline with another secret; want the same")
	}
	for i, secret := range []string{"one", "two"} {
		through([]*Mirror{one, two}[i], signedBy(secret, &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
		rec.wait(t, i+1)
	}
	through(two, signedBy("one", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
	if n := tallyOf(t); n.Seen != 3 || n.Filtered != 1 {
		t.Errorf("got %+v; want three seen and one filtered", n)
	}
}

func TestReloadWhileAnAuthenticationSecretIsAway(t *testing.T) {
	rec := newReceiver(t)
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, "t0psecret")
	options := authenticated("file:"+name, opts{"watchURL": rec.url})
	before := mirrorOf(t, answer(""), options).(*Mirror)
	for i, away := range []bool{false, true} {
		writeSecret(t, name, "")
		if away {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
		var after http.Handler
		log := logged(func() { after = mirrorOf(t, answer(""), options) })
		m, ok := after.(*Mirror)
		if !ok || m.pipe != before.pipe {
			t.Fatalf("got %T after the reload; want a mirror with the same pipeline", after)
		}
		if strings.Contains(log, "t0p") || !strings.Contains(log, "authenticate.secrets[0]") {
			t.Errorf("got log %q; want the option in it, and no secret", log)
		}
		serve(after, signedBy("t0psecret", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
		serve(after, signedBy("", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
		if n := tallyOf(t); n.Seen != uint64(2*i+2) || n.Filtered != uint64(i+1) {
			t.Errorf("got %+v; want the secret of before in use", n)
		}
	}
}

// A secret that was replaced is out of use, whatever happens to the file then.
func TestReloadAfterARotationWhileTheFileIsAway(t *testing.T) {
	rec := newReceiver(t)
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, "one")
	options := authenticated("file:"+name, opts{"watchURL": rec.url, "reportInterval": 0})
	before := mirrorOf(t, answer(""), options).(*Mirror)
	writeSecret(t, name, "two")
	waitFor(t, "the worker to have seen the new secret", func() bool {
		through(before, signedBy("two", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
		before.pipe.renewal.Lock()
		defer before.pipe.renewal.Unlock()
		return currentSender(before.pipe).files[name] == "two"
	})
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	var after http.Handler
	logged(func() { after = mirrorOf(t, answer(""), options) })
	filtered := tallyOf(t).Filtered
	serve(after, signedBy("two", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
	if n := tallyOf(t).Filtered - filtered; n != 0 {
		t.Error("got a genuine request left out; want the secret in use that was in the file last")
	}
	serve(after, signedBy("one", &upload{rest: []byte("abc"), step: 3, end: io.EOF}, 3))
	if n := tallyOf(t).Filtered - filtered; n != 1 {
		t.Errorf("got %d requests left out; want the one with the secret that was replaced", n)
	}
}

func TestMissingAuthenticationSecretIsReported(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	_, problems, _ := readSettings(configOf(authenticated("file:"+name, nil)), t.Name())
	if text := strings.Join(problems, "\n"); !strings.HasPrefix(text, "authenticate.secrets[0]: ") || !strings.Contains(text, name) {
		t.Errorf("got problems %q; want the option and the file", problems)
	}
}

// With reject a mistake must not open what is to be checked; a name that nobody knows opens
// nothing, unless it was meant to be one of authenticate.
func TestMistakesBesidesRejectTakeTheRouteDown(t *testing.T) {
	for _, c := range []struct {
		onFailure string
		wrong     opts
		down      bool
	}{
		{"reject", opts{"queueSize": 0}, true},
		{"reject", opts{"authenticate.prefixx": "sha1="}, true},
		{"reject", opts{"queueSiz": 3}, false},
		{"rejct", nil, true},
		{"skip", opts{"queueSize": 0}, false},
		{"skip", opts{"authenticate.prefixx": "sha1="}, false},
	} {
		options := opts{"authenticate.onFailure": c.onFailure}
		for path, value := range c.wrong {
			options[path] = value
		}
		set, problems, unknown := readSettings(configOf(authenticated("one", options)), t.Name())
		if len(problems)+len(unknown) != 1 || set.strict != c.down {
			t.Errorf("%s, %v: got problems %q, unknown %q, strict %v; want one, and %v", c.onFailure, c.wrong, problems, unknown, set.strict, c.down)
		}
	}
}
