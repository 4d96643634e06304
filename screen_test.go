package requestmirror

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"sort"
	"strconv"
	"strings"
	"testing"
	"time"
)

// bookOf is what a pipeline without workers counted of so many requests, all of which
// must be in it.
func bookOf(t testing.TB, p *pipeline, requests int) string {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.counts
	bookEarly(p.ledger, c)
	if p.ledger.teller != nil {
		p.ledger.teller.Stop() // or it would tell of it in the log of a later test
	}
	if got := c.filtered + c.sampledOut + p.sequence; got != uint64(requests) {
		t.Errorf("got %d requests counted; want %d", got, requests)
	}
	parts := []string{}
	note := func(name string, n uint64) {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", name, n))
		}
	}
	note("filtered", c.filtered)
	note("unauthenticated", c.unauthenticated)
	note("sampledOut", c.sampledOut)
	for _, reason := range reasonsIn(c.dropped) {
		note("dropped."+reason, c.dropped[reason])
	}
	note("enqueued", p.sequence-sum(c.dropped))
	for _, reason := range reasonsIn(c.truncated) {
		note("truncated."+reason, c.truncated[reason])
	}
	return strings.Join(parts, " ")
}

func reasonsIn(counts map[string]uint64) []string {
	list := []string{}
	for reason := range counts {
		list = append(list, reason)
	}
	sort.Strings(list)
	return list
}

// letGoOfAll takes all that waits, as if it was delivered.
func letGoOfAll(p *pipeline) []*capture {
	list := []*capture{}
	for len(p.queue) > 0 {
		c := <-p.queue
		list = append(list, c)
		discharge(p, c)
	}
	return list
}

// emptied takes all that waits, and checks that nothing is held then.
func emptied(t testing.TB, p *pipeline) []*capture {
	t.Helper()
	list := letGoOfAll(p)
	if held := bytesHeld(p); held != 0 {
		t.Errorf("got %d bytes held when nothing waits; want 0", held)
	}
	return list
}

// to is a request for a target as it is in the request line.
func to(method, target string) *http.Request {
	req := httptest.NewRequest(method, "/", nil)
	req.RequestURI = target
	return req
}

// through sends a request through a middleware, as Yaegi has no *Mirror for the
// http.Handler that serve takes.
func through(m *Mirror, req *http.Request) *httptest.ResponseRecorder {
	rw := httptest.NewRecorder()
	m.ServeHTTP(rw, req)
	return rw
}

func panicIn(m *Mirror, req *http.Request) (value interface{}) {
	defer func() { value = recover() }()
	through(m, req)
	return nil
}

var nobody = http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { rw.WriteHeader(http.StatusNoContent) })

func TestPathsDecideWhatIsMirrored(t *testing.T) {
	const ab = "^/a/b$"
	for _, c := range []struct {
		name             string
		include, exclude interface{}
		target           string
		want             bool
	}{
		{"a path that is included", ab, nil, "/a/b", true},
		{"a path that is not", ab, nil, "/a/c", false},
		{"an escaped slash is none", ab, nil, "/a%2Fb", false},
		{"an escaped slash is what was sent", "^/a%2Fb$", nil, "/a%2Fb", true},
		{"an escape is matched as its client spelled it", "^/a%2Fb$", nil, "/a%2fb", false},
		{"an escaped letter is not that letter", ab, nil, "/%61/b", false},
		{"dots are not resolved", ab, nil, "/x/../a/b", false},
		{"two slashes are not one", ab, nil, "//a/b", false},
		{"the query is not the path", "secret", nil, "/a?secret", false},
		{"a path with a query", ab, nil, "/a/b?c=/x", true},
		{"a question mark alone", ab, nil, "/a/b?", true},
		{"an expression is found anywhere", "b", nil, "/abc", true},
		{"the case counts", "^/A", nil, "/a", false},
		{"unless the expression says otherwise", "(?i)^/A", nil, "/a", true},
		{"the first of several", []string{"^/a$", "^/b$"}, nil, "/a", true},
		{"the last of several", []string{"^/a$", "^/b$"}, nil, "/b", true},
		{"none of several", []string{"^/a$", "^/b$"}, nil, "/ab", false},
		{"several in a text", "^/a$, ^/b$", nil, "/b", true},
		{"none of several in a text", "^/a$, ^/b$", nil, "/c", false},
		{"a list as YAML brings it", []interface{}{"^/a$", "^/b$"}, nil, "/b", true},
		{"alternatives stay in their expression", []string{"^/a|x$", "^/b$"}, nil, "/c", false},
		{"a flag stays in its expression", []string{"(?i)^/a$", "^/b$"}, nil, "/B", false},
		{"a path that is excluded", nil, "^/health", "/healthz", false},
		{"one that is not", nil, "^/health", "/", true},
		{"one of several that are excluded", nil, []string{"^/health", `\.css$`}, "/a.css", false},
		{"what is in both lists is excluded", "^/api/", "^/api/internal", "/api/internal/x", false},
		{"what is in the first only is not", "^/api/", "^/api/internal", "/api/x", true},
		{"what is in neither is not mirrored", "^/api/", "^/api/internal", "/", false},
		{"an absolute target", ab, nil, "http://example.com/a/b?c", true},
		{"the host is no path", "example", nil, "http://example.com/a", false},
		{"an absolute target without a path", "^/$", nil, "http://example.com", true},
		{"an absolute target with a query only", "^/$", nil, "http://example.com?/a/b", true},
		{"an absolute target that is excluded", nil, ab, "https://example.com/a/b", false},
		{"the whole server", `^\*$`, nil, "*", true},
		{"the whole server is no path", "^/", nil, "*", false},
		{"a tunnel", "^/", nil, "example.com:443", false},
		{"nothing is the root", "^/$", nil, "", true},
		{"an empty list leaves nothing out", "", "", "/a", true},
	} {
		options := opts{}
		if c.include != nil {
			options["includePaths"] = c.include
		}
		if c.exclude != nil {
			options["excludePaths"] = c.exclude
		}
		p := stillPipeline(t, options)
		rw := through(newMirror(nobody, p.set, []*pipeline{p}), to("GET", c.target))
		if rw.Code != http.StatusNoContent {
			t.Errorf("%s: got status %d; want the backend's", c.name, rw.Code)
		}
		want := "filtered=1"
		if c.want {
			want = "enqueued=1"
		}
		if got := bookOf(t, p, 1); got != want {
			t.Errorf("%s: include %v, exclude %v, target %q: got %s; want %s", c.name, c.include, c.exclude, c.target, got, want)
		}
		emptied(t, p)
	}
}

func TestBodyOfAFilteredRequestIsLeftAlone(t *testing.T) {
	p := stillPipeline(t, opts{"excludePaths": "^/upload"})
	req := uploadOf(&upload{}, 100)
	body := req.Body
	through(newMirror(nobody, p.set, []*pipeline{p}), req)
	if fmt.Sprintf("%p", req.Body) != fmt.Sprintf("%p", body) {
		t.Errorf("got body %T; want the one that came", req.Body)
	}
	if got := bookOf(t, p, 1); got != "filtered=1" {
		t.Errorf("got %s; want filtered=1", got)
	}
}

func TestEveryBadPathIsNamed(t *testing.T) {
	_, problems, _ := readSettings(configOf(opts{"includePaths": []string{"(", "^/a", "[z-a]"}, "excludePaths": "^/b,a**"}), t.Name())
	text := strings.Join(problems, "\n")
	for _, part := range []string{
		"includePaths[0]: \"(\", want a regular expression: error parsing regexp: missing closing ): `(`",
		"includePaths[2]: \"[z-a]\", want a regular expression: error parsing regexp: invalid character class range: `z-a`",
		"excludePaths[1]: \"a**\", want a regular expression: error parsing regexp: invalid nested repetition operator: `**`",
	} {
		if !strings.Contains(text, part) {
			t.Errorf("got problems\n%s\nwant in it\n%s", text, part)
		}
	}
	if len(problems) != 3 {
		t.Errorf("got %d problems; want 3", len(problems))
	}
	for _, value := range []interface{}{map[string]string{"a": "b"}, []interface{}{map[string]string{"a": "b"}}, "\xff"} {
		if _, problems, _ := readSettings(configOf(opts{"includePaths": value}), t.Name()); len(problems) != 1 || !strings.HasPrefix(problems[0], "includePaths") {
			t.Errorf("%v: got problems %q; want one of includePaths", value, problems)
		}
	}
}

// \Q quotes to the end of an expression, which must not be that of all of them.
func TestPathThatIsQuotedToItsEnd(t *testing.T) {
	before := variable("panics")
	handler := mirrorOf(t, nobody, opts{"includePaths": []string{`^\Q/a.b`, "^/c"}})
	if got := variable("panics") - before; got != 0 {
		t.Fatalf("got %d panics; want none", got)
	}
	m, ok := handler.(*Mirror)
	if !ok {
		t.Fatalf("got handler %T; want a mirror", handler)
	}
	for target, want := range map[string]bool{"/a.b": true, "/axb": false, "/c": true} {
		if got := m.set.includePaths.MatchString(target); got != want {
			t.Errorf("%s: got %v; want %v", target, got, want)
		}
	}
}

func TestSampleRateDecidesHowManyAreMirrored(t *testing.T) {
	const n = 8000
	for _, c := range []struct {
		rate         interface{}
		least, most  int
		alsoFiltered bool
	}{
		{rate: 0, least: 0, most: 0},
		{rate: 1, least: n, most: n},
		{rate: "1.0", least: n, most: n},
		// Hoeffding: the number is farther from n·rate than √(n·ln(2·10⁹)/2) = 293 with a
		// probability of less than 10⁻⁹.
		{rate: 0.3, least: n*3/10 - 293, most: n*3/10 + 293},
		{rate: "0.5", least: n/2 - 293, most: n/2 + 293},
		{rate: 0.9, least: n*9/10 - 293, most: n*9/10 + 293, alsoFiltered: true},
	} {
		options := opts{"sampleRate": c.rate, "queueSize": n}
		filtered := 0
		if c.alsoFiltered {
			options["methods"] = "GET"
			filtered = 100
		}
		p := stillPipeline(t, options)
		served := 0
		m := newMirror(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { served++ }), p.set, []*pipeline{p})
		req := get("/")
		for i := 0; i < n; i++ {
			m.ServeHTTP(nil, req)
		}
		for i := 0; i < filtered; i++ {
			m.ServeHTTP(nil, to("PUT", "/"))
		}
		mirrored := len(p.queue)
		if mirrored < c.least || mirrored > c.most {
			t.Errorf("rate %v: got %d of %d mirrored; want from %d to %d", c.rate, mirrored, n, c.least, c.most)
		}
		if served != n+filtered {
			t.Errorf("rate %v: got %d requests at the backend; want all %d", c.rate, served, n+filtered)
		}
		bookOf(t, p, n+filtered)
		if c := p.counts; int(c.sampledOut) != n-mirrored || int(c.filtered) != filtered || int(p.sequence) != mirrored {
			t.Errorf("got %d sampled out, %d filtered, %d numbers; want %d, %d, %d", c.sampledOut, c.filtered, p.sequence, n-mirrored, filtered, mirrored)
		}
	}
}

func TestSampledOutForAllReceivers(t *testing.T) {
	one, other := stillTwo(t, opts{"sampleRate": 0.5})
	m := newMirror(nobody, one.set, []*pipeline{one, other})
	for i := 0; i < 200; i++ {
		through(m, get("/"))
		if len(one.queue) != len(other.queue) || one.counts.sampledOut != other.counts.sampledOut {
			t.Fatalf("got %d and %d events, %d and %d sampled out; want the same", len(one.queue), len(other.queue), one.counts.sampledOut, other.counts.sampledOut)
		}
	}
	bookOf(t, one, 200)
	bookOf(t, other, 200)
}

// stillTwo are the pipelines of two receivers, without workers.
func stillTwo(t testing.TB, options opts) (one, other *pipeline) {
	t.Helper()
	one = stillPipeline(t, options)
	other = newPipeline(one.set, one.to, newLedger(one.set.name, "http://second.test"), one.budget, 0x01992f5e00c2)
	one.receivers = 2
	for _, p := range []*pipeline{one, other} {
		p.receivers = 2
		p.running = p.set.workers
		p.room = p.set.queueSize
	}
	return one, other
}

func TestEventsSayHowManyRequestsTheyStandFor(t *testing.T) {
	const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	for _, c := range []struct {
		rate float64
		want int64 // 0: not said
	}{
		{1, 0}, {0.5, 2}, {0.1, 10}, {0.01, 100}, {0.001, 1000}, {0.3, 3}, {0.7, 1}, {0.999, 1}, {1.0 / 3, 3}, {0.4, 3}, {1e-9, 1e9},
		{1e-10, math.MaxInt32}, {5e-324, math.MaxInt32}, // CloudEvents' integers have 32 bits
	} {
		for _, traceparent := range []string{"", trace, "none"} {
			for _, response := range []bool{false, true} {
				name := fmt.Sprintf("rate %v, traceparent %q, response %v", c.rate, traceparent, response)
				p := stillPipeline(t, opts{"sampleRate": c.rate})
				taken := &capture{set: p.set, at: time.Now(), method: "GET", uri: "/", host: "a.test", proto: "HTTP/1.1", header: http.Header{"Accept": {"*/*"}}}
				if traceparent != "" {
					taken.header.Set("Traceparent", traceparent)
				}
				if response {
					taken.response = &responseTaken
				}
				payload := encode(p, taken, &delivery{})
				got := struct {
					Sampledrate *int64
					Traceparent string
				}{}
				if err := json.Unmarshal(payload, &got); err != nil {
					t.Errorf("%s: got a payload that is no event: %v", name, err)
					continue
				}
				if c.want == 0 && got.Sampledrate != nil {
					t.Errorf("%s: got sampledrate %d; want none", name, *got.Sampledrate)
				}
				if c.want > 0 && (got.Sampledrate == nil || *got.Sampledrate != c.want) {
					t.Errorf("%s: got another sampledrate; want %d", name, c.want)
				}
				want := traceparent
				if want == "none" {
					want = ""
				}
				if got.Traceparent != want {
					t.Errorf("%s: got traceparent %q; want %q", name, got.Traceparent, want)
				}
			}
		}
	}
}

var responseTaken = response{status: 200}

func TestBadSampleRates(t *testing.T) {
	for _, value := range []interface{}{-0.1, 1.1, "half", "NaN", "Inf", "50%", []int{1}} {
		_, problems, _ := readSettings(configOf(opts{"sampleRate": value}), t.Name())
		if len(problems) != 1 || !strings.HasPrefix(problems[0], "sampleRate: ") || !strings.HasSuffix(problems[0], ", want a number from 0 to 1") {
			t.Errorf("%v: got problems %q; want one of sampleRate", value, problems)
		}
	}
}

// marked is a delivery of this process, as it comes back to a router.
func marked(p *pipeline, req *http.Request) *http.Request {
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("Webhook-Timestamp", timestamp)
	req.Header.Set(markerHeader, marker(currentSender(p).markerKey, timestamp))
	return req
}

func TestEveryProblemOfWhatIsScreened(t *testing.T) {
	for _, c := range []struct {
		name    string
		options opts
		want    []string
	}{
		{"authenticate without secrets", opts{"authenticate.header": "X-Signature"}, []string{"authenticate.secrets: missing, want the secret that requests are signed with"}},
		{"an empty list of secrets", opts{"authenticate.secrets": []string{}}, []string{"authenticate.secrets: missing, want the secret that requests are signed with"}},
		{"an empty text", opts{"authenticate.secrets": ""}, []string{"authenticate.secrets: missing, want the secret that requests are signed with"}},
		{"an empty secret", opts{"authenticate.secrets": []string{"t0p", ""}}, []string{"authenticate.secrets[1]: nothing in it, want a secret"}},
		{"a section that is none", opts{"authenticate": "t0psecret"}, []string{"authenticate: a value that is not shown, want options under it, such as authenticate.secrets"}},
		{"secrets that are no texts", opts{"authenticate.secrets": map[string]interface{}{"a": "t0psecret"}}, []string{
			"authenticate.secrets: a value that is not shown, want a list", "authenticate.secrets: missing, want the secret that requests are signed with",
		}},
		{"a secret that is no text", opts{"authenticate.secrets": []interface{}{[]string{"t0psecret"}}}, []string{
			"authenticate.secrets: missing, want the secret that requests are signed with", "authenticate.secrets[0]: a value that is not shown, want a text",
		}},
		{"a secret that is no UTF-8", opts{"authenticate.secrets": "t0psecret\xff"}, []string{
			"authenticate.secrets: bytes that are not UTF-8, want a list", "authenticate.secrets: missing, want the secret that requests are signed with",
		}},
		{"a header that is none", opts{"authenticate": map[string]interface{}{"header": "X A", "secrets": "t0psecret"}}, []string{`authenticate.header: "X A", want the name of a header`}},
		{"another consequence", opts{"authenticate": map[string]interface{}{"onFailure": "deny", "secrets": "t0psecret"}}, []string{`authenticate.onFailure: "deny", want one of skip, reject`}},
		{"no status", opts{"answer": "accepted"}, []string{`answer: "accepted", want a whole number`}},
		{"a status below zero", opts{"answer": -1}, []string{"answer: -1, want at least 0"}},
		{"an interim status", opts{"answer": 101}, []string{"answer: 101, want a status such as 202, or 0"}},
		{"the last that is too low", opts{"answer": "199"}, []string{"answer: 199, want a status such as 202, or 0"}},
		{"a status that is too high", opts{"answer": 600}, []string{"answer: 600, want at most 599"}},
		{"a status in part", opts{"answer": 202.5}, []string{"answer: 202.5, want a whole number"}},
		{"a response that there is none of", opts{"answer": 202, "captureResponse": "status"}, []string{`captureResponse: "status", want none with answer, as there is no response to capture`}},
		{"bodies that are held, and not kept", opts{"authenticate": map[string]interface{}{"onFailure": "reject", "secrets": "t0psecret"}, "mirrorBody": false, "bodyContentTypes": "text/*"}, []string{
			"bodyContentTypes: given, want none with authenticate.onFailure reject, which holds bodies until they are checked",
			"mirrorBody: false, want true with authenticate.onFailure reject, which holds bodies until they are checked",
		}},
		{"all at once", opts{
			"authenticate": map[string]interface{}{"secrets": []string{"", "t0psecret"}, "header": "", "onFailure": "t"}, "answer": 99, "includePaths": "(", "excludePaths": ")",
			"sampleRate": 2, "captureResponse": "body", "format": "request", "mirrorBody": false, "compression": "gzip", "maxEventSize": "1Mi", "batch.maxEvents": 2,
			"bodyContentTypes": "text/*", "redactBodyFields": "password", "watchURL": nil,
		}, []string{
			"answer: 99, want a status such as 202, or 0", `authenticate.header: "", want the name of a header`, `authenticate.onFailure: "t", want one of skip, reject`,
			"authenticate.secrets[0]: nothing in it, want a secret", "batch.maxEvents: more than 1, want 1 with format request, which sends one request for each",
			"bodyContentTypes: given, want none with format request", `captureResponse: "body", want none with answer, as there is no response to capture`,
			`captureResponse: "body", want none with format request, which has no place for it`, "compression: gzip, want none with format request",
			"excludePaths[0]: \")\", want a regular expression: error parsing regexp: unexpected ): `)`", "includePaths[0]: \"(\", want a regular expression: error parsing regexp: missing closing ): `(`",
			"maxEventSize: given, want none with format request, whose bodies are never cut", "mirrorBody: false, want true with format request",
			"redactBodyFields: given, want none with format request, whose bodies are never changed", "sampleRate: 2, want a number from 0 to 1",
			"watchURL: missing, want the http or https URL of the receiver",
		}},
	} {
		_, problems, unknown := readSettings(configOf(c.options), t.Name())
		if got, want := strings.Join(problems, "\n"), strings.Join(c.want, "\n"); got != want {
			t.Errorf("%s: got problems\n%s\nwant\n%s", c.name, got, want)
		}
		if strings.Contains(strings.Join(append(problems, unknown...), "\n"), "t0p") {
			t.Errorf("%s: got a secret in %q, %q; want none", c.name, problems, unknown)
		}
	}
}

func TestOptionsThatGoTogether(t *testing.T) {
	for _, options := range []opts{
		{"answer": 0}, {"answer": 200}, {"answer": "599"}, {"answer": 202.0},
		{"answer": 202, "mirrorBody": false, "bodyContentTypes": "text/*"},
		{"answer": 202, "mirrorBody": false, "authenticate": map[string]interface{}{"secrets": "a", "onFailure": "reject"}},
		{"authenticate": map[string]interface{}{"secrets": "a, b", "prefix": "", "header": "x-a", "onFailure": "SKIP"}, "mirrorBody": false, "captureResponse": "body"},
		{"authenticate": map[string]interface{}{"secrets": "a", "onFailure": "reject"}, "captureResponse": "body"},
		{"answer": 202, "format": "request"},
		{"enabled": false, "answer": 1, "authenticate": "a"},
	} {
		if _, problems, unknown := readSettings(configOf(options), t.Name()); len(problems)+len(unknown) > 0 {
			t.Errorf("%v: got problems %q, %q; want none", options, problems, unknown)
		}
	}
}
