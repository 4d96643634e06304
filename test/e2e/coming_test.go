package e2e

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
	"gopkg.in/yaml.v3"
)

// Those who come from another tool find a configuration on a page of docs/how-to. It is
// run here as it is written there, but for addresses and the places of files.

// pageYAML is the n-th configuration in YAML for the file provider on a page, from 0.
func pageYAML(t *testing.T, page string, n int) string {
	t.Helper()
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "how-to", page))
	if err != nil {
		t.Fatal(err)
	}
	found := yamlBlock.FindAllSubmatch(text, -1)
	if len(found) <= n {
		t.Fatalf("%s: got %d configurations; want number %d", page, len(found), n)
	}
	return string(found[n][1])
}

var yamlBlock = regexp.MustCompile("(?s)\n```yaml\n(http:\n.*?)```\n")

// configured is a Traefik with the configuration of a page, in which each odd text is
// replaced by the even one after it, and all that stands for something else must be.
func configured(t *testing.T, middleware, text string, replace ...string) *site {
	t.Helper()
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Errorf("got no %s on the page; want it in\n%s", replace[i], text)
		}
	}
	text = strings.NewReplacer(replace...).Replace(text)
	if left := regexp.MustCompile(`127\.0\.0\.1:90\d\d|/run/secrets\S*`).FindString(text); left != "" {
		t.Fatalf("got %s left on the page; want it replaced", left)
	}
	var tree map[string]any
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	w := ownWorld(t, lab.Setup{})
	s := newSite(t, w, middleware)
	w.change(t, func(d *lab.Dynamic) { d.Extra = tree })
	if n, err := w.traefik.Counters(soon(t)); err != nil || n.ConfigErrors != 0 {
		t.Fatalf("got %d configuration errors, %v; want none; log:\n%s", n.ConfigErrors, err, logged(w, "requestmirror"))
	}
	return s
}

// set changes options of the page's middleware; nil removes one.
func (s *site) set(t *testing.T, options lab.Options) {
	t.Helper()
	s.world.change(t, func(d *lab.Dynamic) {
		now := any(d.Extra)
		for _, name := range []string{"http", "middlewares", s.name, "plugin", "requestmirror"} {
			now = now.(map[string]any)[name]
		}
		for name, value := range options {
			if value == nil {
				delete(now.(map[string]any), name)
			} else {
				now.(map[string]any)[name] = value
			}
		}
	})
}

// fileWith is a file of a secret.
func fileWith(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// webhook is a request as GitHub sends it.
func (s *site) webhook(t *testing.T, body []byte, signature string) *http.Request {
	t.Helper()
	r, id := s.request(t, http.MethodPost, "https", "/", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "GitHub-Hookshot/044aadd")
	r.Header.Set("X-GitHub-Event", "push")
	r.Header.Set("X-GitHub-Delivery", id)
	r.Header.Set("X-Hub-Signature-256", signature)
	return r
}

func signed(secret string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// copies are the requests that a receiver got, by the id of the original.
func copies(r *lab.Receiver) map[string][]lab.Attempt {
	all := map[string][]lab.Attempt{}
	for _, a := range r.Attempts() {
		id := a.Header.Get(lab.RequestHeader)
		all[id] = append(all[id], a)
	}
	return all
}

func TestComingFromSprayproxy(t *testing.T) {
	t.Parallel()
	// The example of GitHub's documentation, "Validating webhook deliveries".
	const secret, documented = "It's a Secret to Everybody", "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
	hello := []byte("Hello, World!")
	first, second, third := aReceiver(t), aReceiver(t), aReceiver(t)
	s := configured(t, "spray", pageYAML(t, "coming-from-sprayproxy.md", 0),
		"http://127.0.0.1:9000", origin(first), "http://127.0.0.1:9002", origin(second), "/run/secrets/github-webhook", fileWith(t, secret+"\n"))

	s.send(t, s.webhook(t, hello, documented), http.StatusOK)
	for i, r := range []*lab.Receiver{first, second} {
		all, err := r.Wait(soon(t), 1)
		if err != nil {
			t.Fatal(err)
		}
		got := all[0]
		if got.Method != http.MethodPost || got.Path != "/" || !bytes.Equal(got.Body, hello) || got.Header.Get("X-Hub-Signature-256") != documented ||
			got.Header.Get("X-Github-Event") != "push" || got.Header.Get("User-Agent") != "GitHub-Hookshot/044aadd" || got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("cluster %d: got %s %s, %q with %q; want GitHub's request", i+1, got.Method, got.Path, got.Header, got.Body)
		}
		if "http://"+got.Header.Get("Host") != origin(r) || got.Header.Get("X-Forwarded-Host") != s.name+".test" || got.Header.Get("X-Forwarded-Proto") != "https" {
			t.Errorf("cluster %d: got %q; want its own Host, and the original's forwarded", i+1, got.Header)
		}
	}

	// Nobody gets what is forged, too large, or broken off.
	s.send(t, s.webhook(t, []byte("Hello, world?"), documented), http.StatusUnauthorized)
	r := s.webhook(t, hello, "")
	r.Header.Del("X-Hub-Signature-256")
	s.send(t, r, http.StatusUnauthorized)
	largest := text(25 << 20)
	s.send(t, s.webhook(t, largest, signed(secret, largest)), http.StatusOK)
	larger := append(largest, 'x')
	s.send(t, s.webhook(t, larger, signed(secret, larger)), http.StatusRequestEntityTooLarge)
	r = s.webhook(t, nil, signed(secret, larger))
	r.Body = io.NopCloser(chunked(larger))
	r.ContentLength = -1
	s.send(t, r, http.StatusRequestEntityTooLarge)
	r, _ = s.request(t, http.MethodGet, "http", "/", nil)
	s.send(t, r, http.StatusNotFound)
	for i, r := range []*lab.Receiver{first, second} {
		all, err := r.Wait(soon(t), 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) != 2 || lab.Hash(all[1].Body) != lab.Hash(largest) {
			t.Errorf("cluster %d: got %d webhooks, the last with %d bytes; want the second with 25 MiB", i+1, len(all), len(all[len(all)-1].Body))
		}
	}
	const filtered, incomplete, before = 2, 2, 2

	// A cluster comes and another one goes under load.
	var load sync.WaitGroup
	var sent atomic.Int64
	stop := make(chan struct{})
	halt := sync.OnceFunc(func() { close(stop); load.Wait() })
	defer halt()
	for range 2 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				a, err := s.do(s.webhook(t, hello, documented))
				if err != nil || a.StatusCode != http.StatusOK {
					t.Errorf("a webhook under load: got %v, %v; want 200", a.Response, err)
					return
				}
				sent.Add(1)
			}
		})
	}
	more := func(r *lab.Receiver) {
		t.Helper()
		if _, err := r.Wait(soon(t), len(r.Attempts())+100); err != nil {
			t.Fatal(err)
		}
	}
	more(first)
	s.set(t, lab.Options{"watchURLs": []any{origin(first), origin(second), origin(third)}})
	more(third)
	answered := int(sent.Load()) + before // so many must be at the cluster that goes
	s.set(t, lab.Options{"watchURLs": []any{origin(first), origin(third)}})
	more(third)
	halt()

	total := sent.Load() + before
	all := s.settleAll(t, 1)
	l := all[origin(first)]
	if l.Delivered != total || l.Seen != total+filtered+incomplete || l.Filtered != filtered || l.Dropped["incomplete"] != incomplete || l.Truncated["limit"] != incomplete || l.Lost() != incomplete {
		t.Errorf("the cluster that stayed: got %s; want %d delivered, %d filtered, %d incomplete", l, total, filtered, incomplete)
	}
	if l := all[origin(third)]; l.Lost() != 0 || l.Delivered != l.Seen {
		t.Errorf("the cluster that came: got %s; want all delivered", l)
	}
	// The counters of the cluster that went are gone by now, or will be; its numbers are not.
	if all, err := second.Wait(soon(t), answered); err != nil {
		t.Errorf("the cluster that went: got %d webhooks; want the %d that were answered before it went: %v", len(all), answered, err)
	}
	of := copies(first)
	for i, r := range []*lab.Receiver{first, second, third} {
		missing := []int{incomplete, incomplete, 0}[i]
		if _, err := r.WaitFor(soon(t), "the webhooks without a gap", func(all []lab.Attempt) bool { return copiesMissing(t, all) == missing }); err != nil {
			t.Errorf("cluster %d: got %d numbers missing; want %d, as so many were incomplete: %v", i+1, copiesMissing(t, r.Attempts()), missing, err)
		}
		got := copies(r)
		if i == 0 && int64(len(got)) != total {
			t.Errorf("the cluster that stayed: got %d webhooks; want %d", len(got), total)
		}
		for id, attempts := range got {
			if len(attempts) != 1 || len(of[id]) != 1 || attempts[0].Header.Get("X-Mirrored-Id") != of[id][0].Header.Get("X-Mirrored-Id") {
				t.Errorf("cluster %d, webhook %s: got %d copies; want one, with the same X-Mirrored-Id as the first cluster's", i+1, id, len(attempts))
			}
		}
		expectCopyNumbers(t, fmt.Sprintf("cluster %d", i+1), r)
	}
	t.Logf("%d webhooks; the cluster that went got %d, the one that came %d", total, len(second.Attempts()), len(third.Attempts()))
}

// expectCopyNumbers wants the numbers of what a receiver got to be different and of one boot.
func expectCopyNumbers(t *testing.T, what string, r *lab.Receiver) {
	t.Helper()
	boots, numbers := map[string]bool{}, map[string]bool{}
	for _, a := range r.Attempts() {
		boot, number, _ := strings.Cut(a.Header.Get("X-Mirrored-Sequence"), "-")
		boots[boot] = true
		numbers[number] = true
	}
	if len(boots) != 1 || len(numbers) != len(r.Attempts()) {
		t.Errorf("%s: got boots %v and %d numbers of %d copies; want one boot, and each number once", what, boots, len(numbers), len(r.Attempts()))
	}
}

// copiesMissing is how many numbers are missing up to the last of those that are there,
// each of which is there once.
func copiesMissing(t *testing.T, all []lab.Attempt) int {
	t.Helper()
	last := 0
	for _, a := range all {
		_, number, _ := strings.Cut(a.Header.Get("X-Mirrored-Sequence"), "-")
		n, err := strconv.Atoi(number)
		if err != nil {
			t.Errorf("X-Mirrored-Sequence: %v", err)
		}
		last = max(last, n)
	}
	return last - len(all)
}

func TestComingFromK8sreqDuplicator(t *testing.T) {
	t.Parallel()
	const host, trace = "webhook-receiver.example.com", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	hangs, works := aReceiver(t), aReceiver(t)
	s := configured(t, "fan-out", pageYAML(t, "coming-from-k8sreq-duplicator.md", 0), "http://127.0.0.1:9000", origin(hangs), "http://127.0.0.1:9002", origin(works))
	open := make(chan struct{})
	hangs.Become(lab.Gate(open))

	const n = 3
	for i := range n {
		r, _ := s.request(t, http.MethodPost, "http", "/hook?a=b", strings.NewReader(fmt.Sprintf("webhook %d", i)))
		r.Host = host
		r.Header.Set("X-Gitlab-Token", "a token")
		if i > 0 {
			r.Header.Set("Traceparent", trace)
			r.Header.Set("Tracestate", "vendor=1")
		}
		s.send(t, r, http.StatusAccepted)
		// One target has it while the other one holds all it got.
		if _, err := works.Wait(soon(t), i+1); err != nil {
			t.Fatal(err)
		}
	}
	r, _ := s.request(t, http.MethodPost, "http", "/hook", strings.NewReader("another host"))
	s.send(t, r, http.StatusNotFound)
	if l := s.ledgers(t)[origin(hangs)]; l.Delivered != 0 || l.Seen != n {
		t.Errorf("the target that hangs: got %s; want %d seen, none delivered", l, n)
	}
	close(open)
	all := s.settleAll(t, n)
	other := copies(hangs)
	for id, attempts := range copies(works) {
		got := attempts[0].Header
		if len(attempts) != 1 || len(other[id]) == 0 {
			t.Fatalf("%s: got %d and %d copies; want one each", id, len(attempts), len(other[id]))
		}
		if got.Get("Host") != host || got.Get("X-Gitlab-Token") != "a token" || attempts[0].Path != "/hook?a=b" || !bytes.Equal(attempts[0].Body, other[id][0].Body) {
			t.Errorf("%s: got %s, %q, %q; want the request", id, attempts[0].Path, got, attempts[0].Body)
		}
		twin := other[id][0].Header
		if got.Get("Traceparent") != twin.Get("Traceparent") || got.Get("X-Mirrored-Id") != twin.Get("X-Mirrored-Id") {
			t.Errorf("%s: got trace and id %s, %s; want the same at both targets", id, got.Get("Traceparent"), got.Get("X-Mirrored-Id"))
		}
		begun := string(attempts[0].Body) == "webhook 0"
		if begun == (got.Get("Traceparent") == trace) || begun == (got.Get("Tracestate") == "vendor=1") || !traceparent.MatchString(got.Get("Traceparent")) {
			t.Errorf("%s: got trace %q, %q; want the request's, or a new one where it has none", id, got.Get("Traceparent"), got.Get("Tracestate"))
		}
	}
	for what, r := range map[string]*lab.Receiver{"that hung": hangs, "that works": works} {
		if l := all[origin(r)]; l.Seen != n || l.Delivered != n || l.Lost() != 0 {
			t.Errorf("the target %s: got %s; want %d delivered", what, l, n)
		}
	}

	// Nor is the answer another one when a target's queue is full: its copy is dropped.
	s.set(t, lab.Options{"queueSize": 1, "workers": 1})
	hangs.Become(lab.Hang())
	const more = 5
	for i := range more {
		r, _ := s.request(t, http.MethodPost, "http", "/hook", strings.NewReader("a webhook more"))
		r.Host = host
		s.send(t, r, http.StatusAccepted)
		if _, err := works.Wait(soon(t), n+i+1); err != nil {
			t.Fatal(err)
		}
	}
	all = s.ledgers(t)
	if l := all[origin(works)]; l.Delivered+l.InFlight != n+more || l.Lost() != 0 {
		t.Errorf("the target that works: got %s; want all %d", l, n+more)
	}
	if l := all[origin(hangs)]; l.Seen != n+more || l.Dropped["queue_full"] < more-2 || l.Lost() != l.Dropped["queue_full"] {
		t.Errorf("the target whose queue is full: got %s; want %d dropped at least, and counted", l, more-2)
	}
}

var traceparent = regexp.MustCompile(`^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

func TestComingFromHAProxySPOE(t *testing.T) {
	t.Parallel()
	backend, err := lab.NewBackend()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	r := aReceiver(t)
	s := configured(t, "mirror", pageYAML(t, "coming-from-haproxy-spoe.md", 0), "http://127.0.0.1:9000", origin(r), "http://127.0.0.1:9001", backend.URL)

	// The agent's copy: all of the request, with its credentials.
	body := text(40 << 10) // more than a buffer of HAProxy
	req, id := s.request(t, http.MethodPut, "http", "/a%2Fb?c=%64", bytes.NewReader(body))
	req.Header.Set("Authorization", "Bearer a")
	req.Header.Set("Cookie", "session=b; theme=c")
	report := s.send(t, req, http.StatusOK).report(t)
	all, err := r.Wait(soon(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	got := all[0]
	if got.Method != http.MethodPut || got.Path != "/a%2Fb?c=%64" || lab.Hash(got.Body) != report.SHA256 || got.Header.Get(lab.RequestHeader) != id ||
		got.Header.Get("Authorization") != "Bearer a" || got.Header.Get("Cookie") != "session=b; theme=c" || got.Header.Get("X-Mirrored-From") == "" {
		t.Errorf("got %s %s, %q, %d bytes; want what the backend got", got.Method, got.Path, got.Header, len(got.Body))
	}
	if l := s.settle(t, 1); l.Seen != 1 || l.Delivered != 1 {
		t.Errorf("ledger: got %s; want 1 delivered", l)
	}
}

// TestComingFromHAProxySPOEWithResponses runs the second configuration of the page: what
// agents send of requests and responses to an event processor.
func TestComingFromHAProxySPOEWithResponses(t *testing.T) {
	t.Parallel()
	backend, err := lab.NewBackend()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	r := aReceiver(t)
	s := configured(t, "mirror", pageYAML(t, "coming-from-haproxy-spoe.md", 1), "http://127.0.0.1:9000", origin(r), "http://127.0.0.1:9001", backend.URL)
	const most = 64 << 10
	long := append(append([]byte(`{"text":"`), text(most)...), '"', '}')
	took := make(chan time.Duration, 1)
	backend.Handle("login", func(w http.ResponseWriter, req *http.Request) {
		begun := time.Now()
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Set-Cookie", "session=SECRET")
		w.Header().Set("X-App", "v1")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, `{"user":1,"access_token":"SECRET"}`)
		took <- time.Since(begun)
	})
	backend.Handle("long", func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(long)
	})
	backend.Handle("page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = io.WriteString(w, "<p>SECRET</p>")
	})

	received := func(n int) event.Event {
		t.Helper()
		all, err := r.Wait(soon(t), n)
		if err != nil {
			t.Fatalf("%v; ledger: %s", err, s.ledger(t))
		}
		got := all[n-1]
		e, err := event.Parse(got.Body)
		if err != nil {
			t.Fatalf("%v\n%s", err, got.Body)
		}
		if got.Path != "/http-events" || got.Header.Get("Content-Type") != "application/json" || e.Attributes["environment"] != "production" ||
			e.Response == nil || e.Duration <= 0 || bytes.Contains(e.Raw, []byte("SECRET")) {
			t.Fatalf("got %s, %q: %s; want JSON of a request and its response, with the attributes, and nothing secret", got.Path, got.Header, got.Body)
		}
		return e
	}

	// Both in one event, with the time between them.
	req, id := s.request(t, http.MethodPost, "https", "/lab/login?a=b", strings.NewReader(`{"name":"a","password":"SECRET"}`))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer SECRET")
	req.Header.Set("Cookie", "session=SECRET")
	s.send(t, req, http.StatusCreated)
	e := received(1)
	if e.Method != http.MethodPost || e.Path != "/lab/login" || e.Query != "a=b" || e.Proto != "2" || requestOf(e) != id || string(e.Body.Content) != `{"name":"a","password":"REDACTED"}` {
		t.Errorf("got %s; want the request, without the password", e.Raw)
	}
	if e.Response.Status != http.StatusCreated || e.Response.Body == nil || string(e.Response.Body.Content) != `{"user":1,"access_token":"REDACTED"}` || strings.Join(e.Response.Header["x-app"], ",") != "v1" {
		t.Errorf("got response %+v with body %+v; want the backend's, without the token", e.Response, e.Response.Body)
	}
	if least := <-took; e.Duration < float64(least)/float64(time.Millisecond) {
		t.Errorf("got duration_ms %v; want the backend's %v at least", e.Duration, least)
	}

	// What is longer, or of another type, is not there, and says so.
	req, _ = s.request(t, http.MethodPost, "http", "/lab/long", bytes.NewReader(long))
	req.Header.Set("Content-Type", "application/json")
	s.send(t, req, http.StatusOK)
	e = received(2)
	for what, b := range map[string]*event.Body{"request": e.Body, "response": e.Response.Body} {
		if b == nil || b.Reason != "limit" || len(b.Content) != most || b.Size != int64(len(long)) {
			t.Errorf("%s: got %d bytes of %d, cut for %q; want %d of %d, for the limit", what, len(b.Content), b.Size, b.Reason, most, len(long))
		}
	}
	req, _ = s.request(t, http.MethodGet, "http", "/lab/page", nil)
	s.send(t, req, http.StatusOK)
	if e = received(3); e.Body != nil || e.Response.Body == nil || e.Response.Body.Kept || e.Response.Body.Reason != "content-type" {
		t.Errorf("got %s; want no page in it", e.Raw)
	}
	if l := s.settle(t, 3); l.Seen != 3 || l.Delivered != 3 || l.Lost() != 0 {
		t.Errorf("ledger: got %s; want 3 delivered", l)
	}
}

// usage is what the receiver shows.
type usage struct {
	Requests int64
	Clients  []struct {
		Client   string
		KnownBy  string `json:"known_by"`
		Requests int64
		Scopes   []struct {
			Scope    string
			Requests int64
		}
	}
}

func usageAt(ctx context.Context, url string) (u usage, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/usage", nil)
	if err != nil {
		return u, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return u, err
	}
	defer res.Body.Close()
	return u, json.NewDecoder(res.Body).Decode(&u)
}

func TestComingFromGitHubProxy(t *testing.T) {
	t.Parallel()
	const secret, key = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr", "a long random text"
	board := startExample(t, "usage", secret, "-listen", "127.0.0.1:0").url
	var instances []*site
	for range 2 {
		backend, err := lab.NewBackend()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(backend.Close)
		instances = append(instances, configured(t, "usage", pageYAML(t, "coming-from-github-proxy.md", 0), "http://127.0.0.1:9000", board, "http://127.0.0.1:9001", backend.URL,
			"/run/secrets/mirror-signing", fileWith(t, secret), "/run/secrets/mirror-hash-key", fileWith(t, key)))
	}
	// What each client asks for, and how often; the page's scopes have the first of these.
	scoped := map[string]map[string]int64{
		"token nightly":   {"GET /repos/octocat/hello": 5, "POST /graphql": 2},
		"token dashboard": {"GET /repos/octocat/hello": 3, "GET /repos/octocat/world/issues?page=2": 1},
	}
	others := []string{"GET /rate_limit", "DELETE /repos/octocat/hello", "GET /repos/internal/x", "GET /graphql/x"}
	want := map[string]map[string]int64{} // by client and scope, from both instances
	var seen, filtered int64              // by one of them
	round := func(allAreCounted bool) {
		t.Helper()
		for token, wanted := range scoped {
			if want[token] == nil {
				want[token] = map[string]int64{}
			}
			for what, n := range wanted {
				for range n {
					for _, s := range instances {
						s.ask(t, token, what)
					}
				}
				want[token][scopeOf(what)] += 2 * n
				seen += n
			}
			for _, what := range others {
				for _, s := range instances {
					s.ask(t, token, what)
				}
				seen++
				if allAreCounted {
					want[token][scopeOf(what)] += 2
				} else {
					filtered++
				}
			}
		}
		for _, s := range instances {
			if l := s.settle(t, int(seen)); l.Filtered != filtered || l.Delivered != seen-filtered || l.Lost() != 0 {
				t.Errorf("ledger: got %s; want %d delivered, %d filtered", l, seen-filtered, filtered)
			}
		}
		u, err := usageAt(soon(t), board)
		if err != nil {
			t.Fatal(err)
		}
		if u.Requests != 2*(seen-filtered) || len(u.Clients) != len(scoped) {
			t.Fatalf("got %d requests of %d clients; want %d of %d: %+v", u.Requests, len(u.Clients), 2*(seen-filtered), len(scoped), u)
		}
		got := map[string]map[string]int64{}
		for _, c := range u.Clients {
			got[c.Client] = map[string]int64{}
			for _, one := range c.Scopes {
				got[c.Client][one.Scope] = one.Requests
			}
		}
		for token := range scoped {
			// As the page computes it with openssl.
			mac := hmac.New(sha256.New, []byte(key))
			mac.Write([]byte(token))
			if name := "hmac-sha256:" + hex.EncodeToString(mac.Sum(nil)); !maps.Equal(got[name], want[token]) {
				t.Errorf("%s, which is %s: got %v; want %v of all: %+v", token, name, got[name], want[token], u)
			}
		}
	}
	round(true)

	scopes := optionsOf(t, "usage", pageYAML(t, "coming-from-github-proxy.md", 1))
	delete(scopes, "watchURL")
	if len(scopes) != 3 {
		t.Errorf("got %v on the page; want methods, includePaths and excludePaths", scopes)
	}
	for _, s := range instances {
		s.set(t, scopes)
	}
	round(false)
}

// scopeOf is the method and the first segment of a path.
func scopeOf(what string) string {
	return regexp.MustCompile(`^\S+ /[^/?]+`).FindString(what)
}

// optionsOf are those of a middleware in a configuration.
func optionsOf(t *testing.T, middleware, text string) lab.Options {
	t.Helper()
	var config struct {
		HTTP struct {
			Middlewares map[string]struct {
				Plugin struct{ Requestmirror lab.Options }
			}
		}
	}
	if err := yaml.Unmarshal([]byte(text), &config); err != nil {
		t.Fatal(err)
	}
	return config.HTTP.Middlewares[middleware].Plugin.Requestmirror
}

// ask sends a request of a client with a token to the page's route.
func (s *site) ask(t *testing.T, token, what string) {
	t.Helper()
	method, path, _ := strings.Cut(what, " ")
	r, _ := s.request(t, method, "https", path, nil)
	r.Header.Set("Authorization", token)
	s.send(t, r, http.StatusOK)
}

func TestComingFromMirroring(t *testing.T) {
	t.Parallel()
	backend, err := lab.NewBackend()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	r := aReceiver(t)
	s := configured(t, "shadow", pageYAML(t, "coming-from-mirroring.md", 0), "http://127.0.0.1:9000", origin(r), "http://127.0.0.1:9001", backend.URL)

	// A tenth, at random: of 500 the chance of less than 20 or more than 90 is below 1e-6.
	const n = 500
	for i := range n {
		req, _ := s.request(t, http.MethodPost, protocols[i%2].scheme, "/", strings.NewReader("a body"))
		s.send(t, req, http.StatusOK)
	}
	l := s.settle(t, n)
	if l.Seen != n || l.SampledOut+l.Delivered != n || l.Lost() != 0 || l.Delivered < 20 || l.Delivered > 90 {
		t.Errorf("ledger: got %s; want about a tenth delivered, the rest sampled out", l)
	}
	if got := len(r.Attempts()); int64(got) != l.Delivered {
		t.Errorf("shadow: got %d requests; want %d", got, l.Delivered)
	}
	for _, a := range r.Attempts() {
		if a.Method != http.MethodPost || string(a.Body) != "a body" || a.Header.Get("X-Mirrored-Id") == "" {
			t.Errorf("shadow: got %s with %q, %q; want the request", a.Method, a.Body, a.Header)
		}
	}

	// A shadow that hangs holds up nobody: all are answered while it has answered none.
	open := make(chan struct{})
	r.Become(lab.Gate(open))
	s.set(t, lab.Options{"sampleRate": 1})
	large := text(300 << 10)
	const held = 60
	for range held {
		req, _ := s.request(t, http.MethodPost, "http", "/", bytes.NewReader(large))
		if got := s.send(t, req, http.StatusOK).report(t); got.SHA256 != lab.Hash(large) {
			t.Errorf("backend: got %d bytes; want all", got.Length)
		}
	}
	if now := s.ledger(t); now.Delivered != l.Delivered || now.Seen != n+held {
		t.Errorf("ledger while the shadow hangs: got %s; want %d seen, no more delivered", now, n+held)
	}
	close(open)
	before := l.Delivered
	l = s.settle(t, n+held)
	if l.Delivered != before+held || l.Lost() != 0 {
		t.Errorf("ledger: got %s; want the %d that were held delivered", l, held)
	}

	// A client that leaves while the backend works: all of its request came, so it is copied.
	// Of the page's configuration only the sample is another one.
	working, gone := make(chan string), make(chan string)
	backend.Handle("works", func(_ http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		working <- req.Header.Get(lab.RequestHeader)
		<-req.Context().Done()
	})
	left := map[string]string{} // what was sent, by id
	for _, p := range protocols {
		for what, body := range map[string]io.Reader{"": nil, "a body": strings.NewReader("a body"), "a body in chunks": chunked([]byte("a body in chunks"))} {
			method := http.MethodGet
			if body != nil {
				method = http.MethodPost
			}
			req, id := s.request(t, method, p.scheme, "/lab/works", body)
			ctx, leave := context.WithCancel(req.Context())
			go func() {
				if a, err := s.do(req.WithContext(ctx)); err == nil {
					t.Errorf("%s, %q: got %s; want the client to have left", p.name, what, a.Status)
				}
				gone <- id
			}()
			select {
			case got := <-working:
				if got != id {
					t.Errorf("backend: got request %q; want %q", got, id)
				}
			case <-req.Context().Done():
				t.Fatalf("%s, %q: the backend did not get it", p.name, what)
			}
			leave()
			<-gone
			left[id] = what
		}
	}
	before = l.Delivered
	seen := int(l.Seen) + len(left)
	l = s.settle(t, seen)
	if l.Delivered != before+int64(len(left)) || l.Lost() != 0 {
		t.Errorf("ledger: got %s; want the %d delivered whose client left", l, len(left))
	}
	copied := copies(r)
	for id, what := range left {
		if len(copied[id]) != 1 || string(copied[id][0].Body) != what {
			t.Errorf("%s: got %d copies; want one, with %q", id, len(copied[id]), what)
		}
	}
	// One that leaves before all of its body is there: that is no request to repeat.
	rawUpload(t, s, s.name, "/", "shadow-broke-off", "Transfer-Encoding: chunked\r\n\r\n", "d\r\nthe beginning\r\n").Close()
	seen++
	l = s.settle(t, seen)
	if l.Dropped["incomplete"] != 1 || l.Truncated["aborted"] != 1 || l.Lost() != 1 || len(copies(r)["shadow-broke-off"]) != 0 {
		t.Errorf("ledger: got %s; want one incomplete, as it was aborted, and no copy of it", l)
	}

	// With events: what each of them stands for, and requests whose client went away.
	s.set(t, lab.Options{"format": nil, "sampleRate": 0.25})
	var e []event.Event
	for len(e) == 0 {
		s.get(t)
		seen++
		s.settle(t, seen)
		for _, a := range r.Attempts()[l.Delivered:] {
			e = append(e, read(t, a))
		}
	}
	if e[0].SampledRate != 4 {
		t.Errorf("got sampledrate %d; want 4", e[0].SampledRate)
	}
	s.set(t, lab.Options{"sampleRate": nil})
	const id = "shadow-left"
	conn := rawUpload(t, s, s.name, "/", id, "Transfer-Encoding: chunked\r\n\r\n", "d\r\nthe beginning\r\n")
	conn.Close()
	mine := func(a lab.Attempt) bool { return bytes.Contains(a.Body, []byte(`"`+id+`"`)) }
	all, err := r.WaitFor(soon(t), "the event of the request that was given up", func(all []lab.Attempt) bool { return mine(all[len(all)-1]) })
	if err != nil {
		t.Fatalf("%v; ledger: %s", err, s.ledger(t))
	}
	if got := read(t, all[len(all)-1]).Body; got == nil || !got.Truncated || got.Reason != "aborted" {
		t.Errorf("got body %+v; want it cut, as the client was gone", got)
	}
	before = l.Lost()
	if l := s.settle(t, seen+1); l.Lost() != before || l.Seen != int64(seen)+1 || l.Truncated["aborted"] != 2 {
		t.Errorf("ledger: got %s; want no more lost of %d, one more body cut", l, seen+1)
	}
}

func TestComingFromHTTPLog(t *testing.T) {
	t.Parallel()
	for i, from := range []struct {
		tool, middleware, secretFile, header string
		batch                                int
	}{
		{"Kong's http-log", "http-log", "/run/secrets/log-token", "X-Token", 200},
		{"APISIX's http-logger", "http-logger", "/run/secrets/log-authorization", "Authorization", 1000},
	} {
		t.Run(from.tool, func(t *testing.T) {
			t.Parallel()
			backend, err := lab.NewBackend()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(backend.Close)
			r := aReceiver(t)
			s := configured(t, from.middleware, pageYAML(t, "coming-from-http-log.md", i),
				"http://127.0.0.1:9000", origin(r), "http://127.0.0.1:9001", backend.URL, from.secretFile, fileWith(t, "a token\n"))
			const each = 30
			var all []event.Event
			paths := map[string]bool{}
			// As on the page, and then with what it says of attributes.
			for _, attributes := range []map[string]string{nil, {"service": "app", "route": "main"}} {
				if attributes != nil {
					s.set(t, lab.Options{"attributes": attributes})
				}
				before, n := len(r.Attempts()), len(all)+each
				for k := range each {
					req, _ := s.request(t, http.MethodPost, "http", fmt.Sprintf("/log/%d?a=b", len(all)+k), strings.NewReader(`{"user":"u","password":"SECRETPW"}`))
					req.Header.Set("Content-Type", "application/json")
					req.Header.Add("X-Many", "1")
					req.Header.Add("X-Many", "2")
					s.send(t, req, http.StatusOK)
				}
				if l := s.settle(t, n); l.Seen != int64(n) || l.Delivered != int64(n) || l.Lost() != 0 {
					t.Errorf("ledger: got %s; want %d delivered", l, n)
				}
				var mine []event.Event
				deliveries := r.Attempts()[before:]
				for _, a := range deliveries {
					if a.Path != "/logs" || a.Header.Get("Content-Type") != "application/json" || a.Header.Get(from.header) != "a token" {
						t.Errorf("got %s, %q; want JSON with the token", a.Path, a.Header)
					}
					b, err := event.ReadBatch(a.Body)
					if err != nil {
						t.Fatalf("%v\n%s", err, a.Body)
					}
					mine = append(mine, b.Events...)
				}
				if len(deliveries) >= each {
					t.Errorf("got %d deliveries of %d entries; want batches", len(deliveries), each)
				}
				for _, e := range mine {
					paths[e.Path] = true
					many := strings.Join(e.Header["x-many"], ",")
					if e.Method != "POST" || e.Query != "a=b" || many != "1,2" || e.Server.Address != s.name+".test" || e.Client != "127.0.0.1" ||
						!maps.Equal(e.Attributes, attributes) || e.Duration <= 0 ||
						e.Response == nil || e.Response.Status != http.StatusOK || e.Response.Header["content-type"] == nil || bytes.Contains(e.Raw, []byte("SECRET")) {
						t.Errorf("got %s; want the fields of a log entry, attributes %v, and no password", e.Raw, attributes)
					}
				}
				all = append(all, mine...)
			}
			const n = 2 * each
			expectNumbers(t, "the log server", all, n)
			if len(paths) != n {
				t.Errorf("got %d paths; want %d", len(paths), n)
			}
		})
	}
}
