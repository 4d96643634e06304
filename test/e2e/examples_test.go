package e2e

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/opencommit/requestmirror/test/lab"
)

// Programs of examples, which get what a real Traefik sends with the configuration of
// their pages.

// example is a running one.
type example struct {
	name, url string
	cmd       *exec.Cmd
	stdout    bytes.Buffer  // to be read when it has ended
	log       bytes.Buffer  // likewise
	ended     chan struct{} // closed when all that it wrote is there
}

var listening = regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)

// buildExample returns a program.
func buildExample(t *testing.T, name string) string {
	t.Helper()
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), name)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Dir = filepath.Join(root, "examples", name)
	build.Env = append(os.Environ(), "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build examples/%s: %v\n%s", name, err, out)
	}
	return bin
}

// startExample starts one that listens, and says where.
func startExample(t *testing.T, name, secret string, args ...string) *example {
	t.Helper()
	e := &example{name: name, cmd: exec.Command(buildExample(t, name), args...), ended: make(chan struct{})}
	e.cmd.Env = []string{"SIGNING_SECRETS=" + secret}
	e.cmd.Stdout = &e.stdout
	stderr, err := e.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := e.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address := make(chan string, 1)
	go func() {
		defer close(e.ended)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			e.log.WriteString(lines.Text() + "\n")
			if at := listening.FindStringSubmatch(lines.Text()); at != nil {
				address <- at[1]
			}
		}
	}()
	t.Cleanup(func() { e.stop(t) })
	select {
	case at := <-address:
		e.url = "http://" + at
		return e
	case <-e.ended:
	case <-soon(t).Done():
	}
	t.Fatalf("examples/%s does not listen", name)
	return nil
}

// stop tells it to end, and waits until it has.
func (e *example) stop(t *testing.T) {
	t.Helper()
	if e.cmd.ProcessState != nil {
		return
	}
	_ = e.cmd.Process.Signal(syscall.SIGTERM)
	<-e.ended
	if err := e.cmd.Wait(); err != nil {
		t.Errorf("examples/%s ended with %v; log:\n%s", e.name, err, e.log.String())
	}
}

// freeAddress is one on loopback that nobody listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// verdict is what the spam filter shows of a comment.
type verdict struct {
	RequestID string `json:"request_id"`
	Client    string
	Method    string
	Path      string
	Verdict   string
	Score     int
	Findings  []struct{ Rule string }
	Unread    string
}

func (v verdict) String() string {
	var rules []string
	for _, f := range v.Findings {
		rules = append(rules, f.Rule)
	}
	return fmt.Sprintf("%s %d [%s] %s", v.Verdict, v.Score, strings.Join(rules, " "), v.Unread)
}

func verdictsAt(ctx context.Context, url string) (all map[string]verdict, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/verdicts?limit=1000", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var list []verdict
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		return nil, err
	}
	all = map[string]verdict{}
	for _, v := range list {
		all[v.RequestID] = v
	}
	if len(all) != len(list) {
		return nil, fmt.Errorf("got %d verdicts on %d requests; want one on each", len(list), len(all))
	}
	return all, nil
}

func TestTheSpamFilterJudgesWhatPassesTraefik(t *testing.T) {
	t.Parallel()
	const host = "blog.example.com"
	filter := startExample(t, "antispam", newSecret, "-listen", "127.0.0.1:0", "-path", "/api/comments")
	backend, err := lab.NewBackend()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(backend.Close)
	s := configured(t, "antispam", pageYAML(t, "../../examples/antispam/README.md", 0), "http://127.0.0.1:9000", filter.url, "http://127.0.0.1:9001", backend.URL)

	sent := 0
	request := func(id, method, path, contentType, body string, header map[string]string) {
		t.Helper()
		req, _ := s.request(t, method, protocols[sent%2].scheme, path, strings.NewReader(body))
		sent++
		req.Host = host
		req.Header.Set("X-Request-Id", id)
		req.Header.Set("User-Agent", "Mozilla/5.0 (X11; Linux x86_64)")
		req.Header.Set("Origin", protocols[(sent+1)%2].scheme+"://"+host)
		req.Header.Set("Cookie", "visitor_id=v-1; session=SECRET")
		if contentType != "" {
			req.Header.Set("Content-Type", contentType)
		}
		for name, value := range header {
			if value == "" {
				req.Header.Del(name)
			} else {
				req.Header.Set(name, value)
			}
		}
		s.send(t, req, http.StatusOK)
	}
	// Who writes at once has read nothing; the batches are judged one after the other.
	request("at-once", "POST", "/api/comments", "application/json", `{"text":"Nice post, thank you for it."}`, nil)
	request("a page", "GET", "/posts/1", "", "", nil)
	settled := func(n int) {
		t.Helper()
		if l := s.settle(t, n); l.Delivered+l.Filtered != int64(n) || l.Lost() != 0 {
			t.Fatalf("ledger: got %s; want %d delivered or filtered", l, n)
		}
	}
	settled(2)
	const json, form = "application/json; charset=utf-8", "application/x-www-form-urlencoded"
	request("fine", "POST", "/api/comments?lang=en", json, `{"post":42,"text":"I have another question, about the third part."}`, nil)
	request("form", "POST", "/api/comments/7", form, "text=So+do+I%2C+to+tell+the+truth.&post=42", nil)
	request("curl", "POST", "/api/%63omments", json, `{"text":"cheap pills at https://a.example https://b.example www.c.example"}`,
		map[string]string{"User-Agent": "curl/8.7.1", "Origin": "", "Cookie": ""})
	request("again", "PUT", "/api/comments", json, `{"text":"I have another question, about the third part!"}`, nil)
	request("password", "POST", "/api/comments", json, `{"text":"pills pills","password":"SECRET"}`, nil)
	request("long", "POST", "/api/comments", json, `{"text":"`+strings.Repeat("pills ", 20<<10)+`"}`, nil)
	request("picture", "POST", "/api/comments", "image/png", "\x89PNG", nil)
	request("deleted", "DELETE", "/api/comments/7", "", "", nil)
	request("elsewhere", "POST", "/api/likes", json, `{"text":"pills"}`, nil)
	settled(sent)
	if l := s.ledger(t); l.Filtered != 1 {
		t.Errorf("ledger: got %s; want the DELETE filtered", l)
	}

	var got map[string]verdict
	want := map[string]string{
		"at-once":  "fine 3 [visitor read_nothing] ",
		"fine":     "fine 0 [] ",
		"form":     "fine 0 [] ",
		"curl":     "spam 12 [user_agent other_site visitor links listed_word] ", // Traefik has made the path plain
		"again":    "spam 5 [odd_method seen_before] ",
		"password": "neutral 3 [too_fast] a field of the body is redacted",
		"long":     "neutral 3 [too_fast] the body is cut: limit",
		"picture":  "neutral 4 [content_type too_fast] the body is cut: content-type",
	}
	await(t, "all comments to be judged", func() (bool, any, error) {
		var err error
		got, err = verdictsAt(soon(t), filter.url)
		return len(got) >= len(want), got, err
	})
	if len(got) != len(want) {
		t.Errorf("got %d verdicts; want %d: %v", len(got), len(want), got)
	}
	for id, text := range want {
		if v := got[id]; v.String() != text || v.Client != "127.0.0.1" || !strings.HasPrefix(v.Path, "/api/comments") {
			t.Errorf("%s: got %s at %s of %s; want %s", id, v, v.Path, v.Client, text)
		}
	}
}

// testHost keeps the requests that it gets.
type testHost struct {
	*httptest.Server

	mu  sync.Mutex
	all map[string][]hostRequest // by the id of the request
}

type hostRequest struct {
	line   string // method, target and host
	header http.Header
	body   []byte
}

func newTestHost(t *testing.T) *testHost {
	h := &testHost{all: map[string][]hostRequest{}}
	h.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		id := req.Header.Get(lab.RequestHeader)
		h.all[id] = append(h.all[id], hostRequest{req.Method + " " + req.RequestURI + " " + req.Host, req.Header, body})
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *testHost) requests() map[string][]hostRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.all)
}

func TestWhatIsRecordedIsReplayed(t *testing.T) {
	t.Parallel()
	page := pageYAML(t, "replay-recorded-requests.md", 0)
	address := freeAddress(t)
	receiver := startExample(t, "receiver", newSecret, "-listen", address, "-json")
	first, second := newTestHost(t), newTestHost(t)
	// The page leaves the route to the reader.
	route := `http:
  routers:
    site:
      rule: PathPrefix("/")
      entryPoints: [web, websecure]
      middlewares: [mirror]
      service: site
  services:
    site:
      loadBalancer:
        servers:
          - url: ` + first.URL
	s := configured(t, "mirror", strings.Replace(page, "http:", route, 1), "http://127.0.0.1:9000", receiver.url)

	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(text(10 << 10))
	_ = z.Close()
	everyByte := make([]byte, 256)
	for i := range everyByte {
		everyByte[i] = byte(i)
	}
	large := text(1 << 20) // all that maxBodySize lets through
	sent := 0
	send := func(method, target string, body []byte, header http.Header) {
		t.Helper()
		for _, p := range protocols {
			var r io.Reader
			if body != nil {
				r = bytes.NewReader(body)
				if header.Get("X-Body") == "chunked" {
					r = chunked(body)
				}
			}
			req, _ := s.request(t, method, p.scheme, "/", r)
			path, query, _ := strings.Cut(target, "?")
			req.URL.Opaque, req.URL.RawQuery = "//"+s.name+".test"+path, query
			req.Header.Set("Accept-Encoding", "br, gzip;q=0.5")
			for name, values := range header {
				req.Header[name] = values
			}
			s.send(t, req, http.StatusOK)
			sent++
		}
	}
	requests := func() {
		t.Helper()
		send("GET", "/", nil, nil)
		send("GET", "/a%2Fb/%C3%A4//c.html?x=1&x=2&empty=&y=%20+z", nil, http.Header{"Accept": {"text/html", "*/*;q=0.1"}, "X-Many": {"1", "2"}})
		send("HEAD", "/head", nil, nil)
		send("DELETE", "/comments/7", nil, http.Header{"Authorization": {"Bearer of the client"}})
		send("OPTIONS", "/options", nil, http.Header{"X-Utf8": {"über"}})
		send("POST", "/json?lang=en", []byte(`{"text":"cheap <b>pills</b> ü \u0000"}`), http.Header{"Content-Type": {"application/json"}, "Cookie": {"visitor_id=v-1"}})
		send("PUT", "/bytes", everyByte, http.Header{"Content-Type": {"application/octet-stream"}})
		send("PATCH", "/packed", packed.Bytes(), http.Header{"Content-Type": {"text/plain"}, "Content-Encoding": {"gzip"}})
		send("POST", "/large", large, http.Header{"X-Body": {"chunked"}})
		send("POST", "/empty", []byte{}, http.Header{"Content-Type": {"text/plain"}})
		send("PURGE", "/own-method", nil, nil)
	}
	requests()
	if l := s.settle(t, sent); l.Delivered != int64(sent) || l.Lost() != 0 {
		t.Fatalf("ledger: got %s; want %d delivered", l, sent)
	}
	s.set(t, lab.Options{"batch": map[string]any{"maxEvents": 5}, "compression": "gzip"})
	requests()
	all := sent
	// The pipeline is another one since, with counts that go on.
	if l := s.settle(t, all); l.Delivered != int64(all) || l.Lost() != 0 {
		t.Fatalf("ledger: got %s; want %d delivered", l, all)
	}
	receiver.stop(t)
	recorded := filepath.Join(t.TempDir(), "events.jsonl")
	if err := os.WriteFile(recorded, receiver.stdout.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(receiver.stdout.Bytes(), []byte("\n")); lines >= all {
		t.Errorf("got %d lines of %d events; want some to be batches", lines, all)
	}

	replay := exec.CommandContext(soon(t), buildExample(t, "replay"), "-to", second.URL, "-speed", "max", "-keep-host", "-header", "Authorization: Bearer test", recorded)
	out, err := replay.CombinedOutput()
	if err != nil {
		t.Fatalf("replay: %v\n%s", err, out)
	}
	was, is := first.requests(), second.requests()
	if len(was) != all || len(is) != all {
		t.Errorf("got %d requests, %d replayed; want %d\n%s", len(was), len(is), all, out)
	}
	for id, a := range was {
		b := is[id]
		if len(a) != 1 || len(b) != 1 {
			t.Errorf("%s: got %d requests, %d replayed; want 1 of each", id, len(a), len(b))
			continue
		}
		expectSameRequest(t, a[0], b[0])
	}
}

// expectSameRequest compares one with what was replayed of it.
func expectSameRequest(t *testing.T, was, is hostRequest) {
	t.Helper()
	if is.line != was.line || !bytes.Equal(is.body, was.body) {
		t.Errorf("got %s with %d bytes (%s); want %s with %d bytes (%s)", is.line, len(is.body), lab.Hash(is.body), was.line, len(was.body), lab.Hash(was.body))
	}
	want := was.header.Clone()
	if want.Get("Authorization") != "" {
		want.Set("Authorization", "Bearer test")
	}
	got := is.header.Clone()
	if got.Get("Requestmirror-Replay") == "" {
		t.Errorf("%s: got no Requestmirror-Replay; want the id of the event", is.line)
	}
	got.Del("Requestmirror-Replay")
	want.Del("Content-Length") // a body that came in chunks goes as a whole
	got.Del("Content-Length")
	for name := range want {
		// What Traefik tells the backend, after the middleware.
		if strings.HasPrefix(name, "X-Forwarded-") || name == "X-Real-Ip" {
			delete(want, name)
			delete(got, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !slices.Equal(got[name], want[name]) {
			t.Errorf("%s: %s: got %q; want %q", is.line, name, got[name], want[name])
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("%s: got %v, too; want nothing else", is.line, got)
	}
}
