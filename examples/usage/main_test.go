package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	newSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"
	oldSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc"
)

var (
	ada   = "hmac-sha256:" + strings.Repeat("0a", 32)
	grace = "hmac-sha256:" + strings.Repeat("0b", 32)
	noon  = time.Date(2026, 9, 18, 12, 0, 0, 0, time.UTC)
)

// program is all of it, with a clock that is moved by hand.
type program struct {
	handler http.Handler
	book    *book

	mu  sync.Mutex
	now time.Time
	ids int
}

func newProgram(secrets string, depth, clients int) *program {
	webhooks, err := webhooksOf(secrets)
	if err != nil {
		panic(err)
	}
	p := &program{now: noon, book: newBook(noon, clients)}
	p.handler = newHandler(p.clock, webhooks, newReader("Authorization", depth), p.book)
	return p
}

func (p *program) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (p *program) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

// id is one that was not there before.
func (p *program) id() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ids++
	return fmt.Sprintf("01992f6a-7c4e-7d2b-9a51-%012x", p.ids)
}

// requestEvent is an event as the middleware writes it. Empty fields of the options are the usual.
type requestEvent struct {
	id, authorization, address, method, path string
	at                                       time.Time
	rate                                     int
}

func (p *program) event(e requestEvent) string {
	header := map[string][]string{"accept": {"*/*"}}
	if e.authorization != "" {
		header["authorization"] = []string{e.authorization}
	}
	one := map[string]any{
		"specversion": "1.0", "id": e.id, "source": "//edge-1/middlewares/mirror@file", "type": requestType, "time": e.at, "sampledrate": e.rate,
		"data": map[string]any{
			"http":   map[string]any{"request": map[string]any{"method": e.method, "header": header, "body": map[string]any{"content": "{}", "size": 2}}},
			"url":    map[string]any{"scheme": "https", "path": e.path, "query": "token=REDACTED"},
			"client": map[string]any{"address": e.address},
		},
	}
	if e.id == "" {
		one["id"] = p.id()
	}
	if e.at.IsZero() {
		one["time"] = p.clock()
	}
	if e.rate == 0 {
		delete(one, "sampledrate")
	}
	if e.method == "" {
		one["data"].(map[string]any)["http"].(map[string]any)["request"].(map[string]any)["method"] = "GET"
	}
	raw, err := json.Marshal(one)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func (p *program) report(boot string, seen, filtered, sampledOut uint64, since time.Time, lostEvents map[string]int) string {
	failed := []any{}
	for reason, count := range lostEvents {
		failed = append(failed, map[string]any{"reason": reason, "count": count})
	}
	raw, err := json.Marshal(map[string]any{
		"specversion": "1.0", "id": p.id(), "source": "//edge-1/middlewares/mirror@file", "type": reportType, "time": p.clock(),
		"data": map[string]any{
			"since": since, "sequence": boot + "-00000000000000000001", "seen": seen, "filtered": filtered, "sampled_out": sampledOut,
			"dropped": []any{}, "failed": failed,
		},
	})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func (p *program) do(req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.handler.ServeHTTP(w, req)
	return w
}

func delivery(payload string) *http.Request {
	req := httptest.NewRequest("POST", "/events", strings.NewReader(payload))
	req.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
	return req
}

// deliver posts what must be taken.
func (p *program) deliver(t *testing.T, payload string) {
	t.Helper()
	if w := p.do(delivery(payload)); w.Code != http.StatusNoContent {
		t.Fatalf("got status %d; want 204", w.Code)
	}
}

// usage is the JSON of a query.
func (p *program) usage(t *testing.T, query string) picture {
	t.Helper()
	w := p.do(httptest.NewRequest("GET", "/usage"+query, nil))
	var got picture
	if err := json.Unmarshal(w.Body.Bytes(), &got); w.Code != http.StatusOK || err != nil {
		t.Fatalf("got status %d, %v; want 200 and JSON", w.Code, err)
	}
	return got
}

// shown has a client with its scopes on each line.
func shown(p picture) string {
	var lines []string
	for _, c := range p.Clients {
		line := fmt.Sprintf("%s %.16s %d:", c.KnownBy, c.Client, c.Requests)
		for _, s := range c.Scopes {
			line += fmt.Sprintf(" %s %d,", s.Scope, s.Requests)
		}
		lines = append(lines, strings.TrimSuffix(line, ","))
	}
	return strings.Join(lines, "\n")
}

func TestRequestsAreCountedByClientAndScope(t *testing.T) {
	p := newProgram("", 1, 10)
	for _, e := range []requestEvent{
		{authorization: ada, address: "203.0.113.7", path: "/api/comments"},
		{authorization: ada, address: "203.0.113.8", path: "/api/"},
		{authorization: ada, address: "203.0.113.7", path: "/admin", method: "DELETE"},
		{authorization: grace, address: "203.0.113.7", path: "/"},
		{address: "203.0.113.7", path: "/api"},
		{authorization: "REDACTED", address: "203.0.113.7", path: "/api"},
	} {
		p.deliver(t, p.event(e))
	}
	got := p.usage(t, "")
	want := "pseudonym hmac-sha256:0a0a 3: GET /api 2, DELETE /admin 1\n" +
		"address 203.0.113.7 2: GET /api 2\n" +
		"pseudonym hmac-sha256:0b0b 1: GET / 1"
	if shown(got) != want || got.Requests != 6 {
		t.Errorf("got %d requests\n%s\nwant 6\n%s", got.Requests, shown(got), want)
	}
	if got.Clients[0].Client != ada {
		t.Errorf("got client %s; want all of the pseudonym", got.Clients[0].Client)
	}

	for _, tc := range []struct{ query, want string }{
		{"?scope=GET+/api", "address 203.0.113.7 2: GET /api 2\npseudonym hmac-sha256:0a0a 2: GET /api 2"},
		{"?scope=DELETE%20/admin&minutes=1", "pseudonym hmac-sha256:0a0a 1: DELETE /admin 1"},
		{"?scope=GET", ""},
	} {
		if got := shown(p.usage(t, tc.query)); got != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tc.query, got, tc.want)
		}
	}
}

func TestScopeOf(t *testing.T) {
	for _, tc := range []struct {
		path  string
		depth int
		want  string
	}{
		{"/api/comments/42", 1, "GET /api"},
		{"/api/comments/42", 2, "GET /api/comments"},
		{"/api/comments/42", 0, "GET /"},
		{"/api/comments/42", 10, "GET /api/comments/42"},
		{"/api/", 2, "GET /api"},
		{"/", 1, "GET /"},
		{"", 1, "GET /"},
		{"//api", 1, "GET /"},
		{"/a%2Fb/c", 1, "GET /a%2Fb"},
		{"/" + strings.Repeat("é", 100), 1, "GET /" + strings.Repeat("é", 47) + "…"},
	} {
		if got := scopeOf("GET", tc.path, tc.depth); got != tc.want {
			t.Errorf("%.20q, depth %d: got %q; want %q", tc.path, tc.depth, got, tc.want)
		}
	}
}

func TestMinutesPassAndAreForgottenAfterAnHour(t *testing.T) {
	p := newProgram("", 1, 10)
	p.deliver(t, p.event(requestEvent{address: "a", path: "/x"}))
	p.pass(59 * time.Second)
	p.deliver(t, p.event(requestEvent{address: "a", path: "/x"}))
	if got := p.usage(t, "?minutes=1"); got.Requests != 2 || !got.From.Equal(noon) {
		t.Errorf("within a minute: got %d requests from %s; want 2 from %s", got.Requests, got.From, noon)
	}
	p.pass(time.Second)
	p.deliver(t, p.event(requestEvent{address: "a", path: "/x"}))
	for query, want := range map[string]string{"?minutes=1": "[1]", "?minutes=2": "[2 1]", "?minutes=4": "[0 0 2 1]"} {
		if got := fmt.Sprint(p.usage(t, query).Clients[0].PerMinute); got != want {
			t.Errorf("%s: got %s requests per minute; want %s", query, got, want)
		}
	}
	p.pass(58*time.Minute + 59*time.Second)
	if got := p.usage(t, "").Requests; got != 3 {
		t.Errorf("at 12:59:59: got %d requests; want all 3", got)
	}
	p.pass(time.Second)
	if got := p.usage(t, "").Requests; got != 1 {
		t.Errorf("at 13:00:00: got %d requests; want the one of 12:01", got)
	}
	p.pass(time.Minute)
	if got := shown(p.usage(t, "")); got != "" || len(p.book.requests.rows) != 0 {
		t.Errorf("at 13:01: got %q, %d clients held; want none", got, len(p.book.requests.rows))
	}
	p.deliver(t, p.event(requestEvent{address: "a", path: "/x"}))
	p.pass(48*time.Hour + 59*time.Minute)
	if got := p.usage(t, "").Requests; got != 0 {
		t.Errorf("after two days: got %d requests; want 0", got)
	}
}

func TestAnEventIsCountedInTheMinuteOfItsRequest(t *testing.T) {
	for _, tc := range []struct {
		name   string
		at     time.Duration // from now
		want   uint64
		tooOld uint64
		past   uint64 // of the last ten minutes
	}{
		{"at once", 0, 1, 0, 1},
		{"half an hour late", -30 * time.Minute, 1, 0, 0},
		{"almost an hour late", -59*time.Minute - 59*time.Second, 1, 0, 0},
		{"an hour late", -60 * time.Minute, 0, 1, 0},
		{"days late", -100 * time.Hour, 0, 1, 0},
		{"by a clock that is ahead", 30 * time.Minute, 1, 0, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProgram("", 1, 10)
			p.pass(59 * time.Second) // the last second of a minute
			p.deliver(t, p.event(requestEvent{address: "a", path: "/x", at: p.clock().Add(tc.at)}))
			all, past := p.usage(t, ""), p.usage(t, "?minutes=10")
			if all.Requests != tc.want || all.Missing.TooOld != tc.tooOld || past.Requests != tc.past {
				t.Errorf("got %d requests, %d of late, %d too old; want %d, %d, %d", all.Requests, past.Requests, all.Missing.TooOld, tc.want, tc.past, tc.tooOld)
			}
		})
	}
	t.Run("when the clock goes back, nothing is forgotten, or counted twice", func(t *testing.T) {
		p := newProgram("", 1, 10)
		p.deliver(t, p.event(requestEvent{address: "a", path: "/x"}))
		p.pass(-2 * time.Hour)
		p.deliver(t, p.event(requestEvent{address: "a", path: "/x", at: noon.Add(-time.Minute)}))
		if got := p.usage(t, "").Requests; got != 2 {
			t.Errorf("got %d requests; want 2", got)
		}
	})
}

func TestAnEventThatComesAgainIsCountedOnce(t *testing.T) {
	p := newProgram("", 1, 10)
	one := p.event(requestEvent{address: "a", path: "/x"})
	p.deliver(t, one)
	p.deliver(t, one)
	p.deliver(t, "["+one+","+p.event(requestEvent{address: "a", path: "/x"})+","+one+"]")
	if got := p.usage(t, "").Requests; got != 2 {
		t.Errorf("got %d requests; want 2", got)
	}
}

func TestIdsTakeABoundedMemory(t *testing.T) {
	b := newBook(noon, 10)
	enter := func(n int) {
		b.enter(noon, []entry{{id: strconv.Itoa(n), at: noon, client: who{byAddress, "a"}, scope: "GET /", weight: 1}})
	}
	const all = 2*remember + 1
	for n := range all {
		enter(n)
	}
	if got := len(b.ids) + len(b.old); got > 2*remember {
		t.Errorf("got %d ids; want at most %d", got, 2*remember)
	}
	enter(all - 1)
	enter(all - remember)
	if got := b.look(noon, hour, "").Requests; got != all {
		t.Errorf("got %d requests; want the last ones known, so %d", got, all)
	}
}

func TestASampledEventCountsForAllThatWereLeftOut(t *testing.T) {
	p := newProgram("", 1, 10)
	p.deliver(t, p.event(requestEvent{address: "a", path: "/x", rate: 10}))
	p.deliver(t, p.event(requestEvent{address: "a", path: "/x", rate: 1}))
	p.deliver(t, p.event(requestEvent{address: "b", path: "/x", rate: 2147483647}))
	want := "address b 2147483647: GET /x 2147483647\naddress a 11: GET /x 11"
	if got := shown(p.usage(t, "")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestTheSmallestClientsAreFoldedIntoOthers(t *testing.T) {
	p := newProgram("", 1, 4)
	for i, name := range []string{"a", "b", "c", "d"} {
		p.deliver(t, p.event(requestEvent{address: name, path: "/x", rate: 100 - i}))
	}
	if got := len(p.usage(t, "").Clients); got != 4 {
		t.Fatalf("got %d clients; want 4", got)
	}
	p.pass(time.Minute)
	p.deliver(t, p.event(requestEvent{address: "e", path: "/y", rate: 99}))
	want := "address a 100: GET /x 100\naddress b 99: GET /x 99\naddress e 99: GET /y 99\nothers others 195: GET /x 195"
	if got := shown(p.usage(t, "")); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := p.usage(t, "?minutes=1").Requests; got != 99 {
		t.Errorf("got %d requests in the last minute; want 99: the others keep their minutes", got)
	}
	p.pass(59 * time.Minute)
	want = "address e 99: GET /y 99"
	if got := shown(p.usage(t, "")); got != want {
		t.Errorf("an hour later: got\n%s\nwant\n%s", got, want)
	}
}

func TestTheSmallestScopesOfAClientAreFoldedIntoOthers(t *testing.T) {
	p := newProgram("", 1, 4)
	for n := range 1000 {
		p.deliver(t, p.event(requestEvent{address: "a", path: fmt.Sprintf("/%d", n)}))
		p.deliver(t, p.event(requestEvent{address: "a", path: "/large"}))
		p.deliver(t, p.event(requestEvent{address: "b", path: "/small"}))
	}
	got := p.usage(t, "")
	if got.Requests != 3000 || got.Clients[0].Requests != 2000 || len(got.Clients[0].Scopes) > maxScopes+1 {
		t.Errorf("got %d requests, %d of a in %d scopes; want 3000, 2000 in at most %d", got.Requests, got.Clients[0].Requests, len(got.Clients[0].Scopes), maxScopes+1)
	}
	if first := got.Clients[0].Scopes[0]; first != (scopeUsage{"GET /large", 1000}) {
		t.Errorf("got %+v first; want all of GET /large", first)
	}
	if want := "address b 1000: GET /small 1000"; !strings.HasSuffix(shown(got), want) {
		t.Errorf("got\n%s\nwant last\n%s", shown(got), want)
	}
}

// TestNothingIsLostByFolding holds the counts of each minute against a list of all requests.
func TestNothingIsLostByFolding(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	const most = 8
	b := newBook(noon, most)
	now := noon
	byMinute := map[int64]uint64{}
	for n := range 20000 {
		if random.Intn(50) == 0 {
			now = now.Add(time.Duration(random.Intn(200)) * time.Second)
		}
		e := entry{
			id: strconv.Itoa(n), at: now.Add(-time.Duration(random.Intn(3000)) * time.Second), weight: uint64(1 + random.Intn(5)),
			client: who{byAddress, strconv.Itoa(random.Intn(40))}, scope: "GET /" + strconv.Itoa(random.Intn(200)),
		}
		b.enter(now, []entry{e})
		byMinute[minuteOf(e.at)] += e.weight
		if n%100 != 0 {
			continue
		}
		minutes := 1 + random.Intn(hour)
		want := uint64(0)
		for m := minuteOf(now) - int64(minutes) + 1; m <= minuteOf(now); m++ {
			want += byMinute[m]
		}
		got := b.look(now, minutes, "")
		sum := uint64(0)
		for _, c := range got.Clients {
			for _, s := range c.Scopes {
				sum += s.Requests
			}
		}
		if got.Requests != want || sum != want || len(got.Clients) > most+1 {
			t.Fatalf("after %d: got %d requests, %d by scopes, of %d clients in %d minutes; want %d, of at most %d", n, got.Requests, sum, len(got.Clients), minutes, want, most+1)
		}
	}
}

func TestNoCredentialIsKept(t *testing.T) {
	p := newProgram("", 5, 10)
	for _, value := range []string{
		"Bearer s3cret", "Basic czNjcmV0OnMzY3JldA==", "hmac-sha256:s3cret", ada + " s3cret", strings.ToUpper(ada), "hmac-sha256:" + strings.Repeat("0a", 31),
	} {
		p.deliver(t, p.event(requestEvent{authorization: value, address: "203.0.113.7", path: "/x"}))
	}
	if got, want := shown(p.usage(t, "")), "address 203.0.113.7 6: GET /x 6"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, path := range []string{"/", "/usage"} {
		if got := p.do(httptest.NewRequest("GET", path, nil)).Body.String(); strings.Contains(got, "s3cret") || strings.Contains(got, "czNjcmV0") || strings.Contains(got, "REDACTED") {
			t.Errorf("%s: got a credential, or a query, in\n%s", path, got)
		}
	}
}

func TestHostileNamesAreEscaped(t *testing.T) {
	p := newProgram("", 1, 10)
	const hostile = `"><script>alert(1)</script><a href='javascript:alert(1)'>{{.Requests}}`
	p.deliver(t, p.event(requestEvent{address: hostile, method: hostile, path: "/" + hostile}))
	p.deliver(t, strings.Replace(p.report("01992f5e00c1", 1, 0, 0, noon, map[string]int{hostile: 1}), "//edge-1/", `//\"><script>alert(1)</script>`, 1))
	got := p.usage(t, "")
	if got.Clients[0].Client != hostile || got.Missing.Middlewares[0].LostEvents[0].Reason != hostile {
		t.Errorf("got client %q; want it as it came: JSON needs no mercy", got.Clients[0].Client)
	}
	w := p.do(httptest.NewRequest("GET", "/?scope="+"%22%3E%3Cscript%3Ealert(1)%3C/script%3E", nil))
	body := w.Body.String() + p.do(httptest.NewRequest("GET", "/", nil)).Body.String()
	for _, forbidden := range []string{"<script", "<a href='", "{{"} {
		if strings.Contains(strings.ReplaceAll(body, "{{.Requests}}", ""), forbidden) {
			t.Errorf("got %s in\n%s", forbidden, body)
		}
	}
	if !strings.Contains(body, "&lt;script&gt;alert(1)") {
		t.Errorf("got no escaped name in\n%s", body)
	}
	if policy := w.Header().Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") {
		t.Errorf("got policy %q; want one that allows no script", policy)
	}
	links := strings.Count(body, "<a ")
	if want := strings.Count(body, `<a href="/`); links != want || links == 0 {
		t.Errorf("got %d links, %d to here; want no others", links, want)
	}
}

func TestDeliveries(t *testing.T) {
	// The clock is years away from the system's: the signature's age is told by it.
	p := newProgram(newSecret+","+oldSecret, 1, 10)
	one := func() string { return p.event(requestEvent{address: "a", path: "/x"}) }
	signed := func(secret, payload string, at time.Time, change func(*http.Request)) *http.Request {
		webhooks, err := webhooksOf(secret)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := webhooks[0].Sign("msg", at, []byte(payload))
		if err != nil {
			t.Fatal(err)
		}
		req := delivery(payload)
		req.Header.Set("webhook-id", "msg")
		req.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
		req.Header.Set("webhook-signature", "v1,AAAA "+signature)
		if change != nil {
			change(req)
		}
		return req
	}
	header := func(name, value string) func(*http.Request) {
		return func(req *http.Request) { req.Header.Set(name, value) }
	}
	for _, tc := range []struct {
		name   string
		req    *http.Request
		status int
		more   uint64 // requests that are counted
	}{
		{"an event", signed(newSecret, one(), noon, nil), 204, 1},
		{"signed with the other secret, during rotation", signed(oldSecret, one(), noon, nil), 204, 1},
		{"signed five minutes ago", signed(newSecret, one(), noon.Add(-tolerance), nil), 204, 1},
		{"signed before that", signed(newSecret, one(), noon.Add(-tolerance-time.Second), nil), 401, 0},
		{"signed in the future", signed(newSecret, one(), noon.Add(tolerance+time.Second), nil), 401, 0},
		{"signed with another secret", signed("whsec_AAAA", one(), noon, nil), 401, 0},
		{"signed for another id", signed(newSecret, one(), noon, header("webhook-id", "other")), 401, 0},
		{"without a time", signed(newSecret, one(), noon, header("webhook-timestamp", "")), 401, 0},
		{"not signed", delivery(one()), 401, 0},
		{"a batch", signed(newSecret, " [\n"+one()+","+one()+"]", noon, header("Content-Type", "application/cloudevents-batch+json")), 204, 2},
		{"an empty batch", signed(newSecret, "[]", noon, nil), 204, 0},
		{"with format: json", signed(newSecret, one(), noon, header("Content-Type", "application/json")), 204, 1},
		{"a batch with format: json", signed(newSecret, "["+one()+"]", noon, header("Content-Type", "application/json")), 204, 1},
		{"as a form, which a browser could send", signed(newSecret, one(), noon, header("Content-Type", "text/plain")), 415, 0},
		{"compressed", signed(newSecret, compressed(one()), noon, header("Content-Encoding", "gzip")), 204, 1},
		{"not as compressed as it says", signed(newSecret, one(), noon, header("Content-Encoding", "gzip")), 400, 0},
		{"compressed in a way that is not known", signed(newSecret, one(), noon, header("Content-Encoding", "br")), 415, 0},
		{"too large", signed(newSecret, strings.Repeat(" ", maxPayload)+one(), noon, nil), 413, 0},
		{"too large once it is decompressed", signed(newSecret, compressed(strings.Repeat(" ", maxPayload)+one()), noon, header("Content-Encoding", "gzip")), 413, 0},
		{"not JSON", signed(newSecret, "hello", noon, nil), 400, 0},
		{"nothing", signed(newSecret, "", noon, nil), 400, 0},
		{"no event", signed(newSecret, `{"hello":"mirror"}`, noon, nil), 400, 0},
		{"an event without an id", signed(newSecret, strings.Replace(one(), `"id"`, `"di"`, 1), noon, nil), 400, 0},
		{"an event with an endless id", signed(newSecret, strings.Replace(one(), `"id":"`, `"id":"`+strings.Repeat("0", maxID), 1), noon, nil), 400, 0},
		{"an event with a negative rate", signed(newSecret, p.event(requestEvent{path: "/x", rate: -1}), noon, nil), 400, 0},
		{"a batch of which one is no event: nothing of it", signed(newSecret, "["+one()+`,{"type":"`+requestType+`"}]`, noon, nil), 400, 0},
		{"an event of another program", signed(newSecret, `{"type":"com.example","id":"1","data":"hello"}`, noon, nil), 204, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := p.usage(t, "").Requests
			w := p.do(tc.req)
			if got := p.usage(t, "").Requests - before; w.Code != tc.status || got != tc.more {
				t.Errorf("got status %d, %d more requests; want %d, %d", w.Code, got, tc.status, tc.more)
			}
		})
	}
}

func compressed(text string) string {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := io.WriteString(z, text); err != nil {
		panic(err)
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return out.String()
}

func TestSecretsAreNotInErrors(t *testing.T) {
	if _, err := webhooksOf(newSecret + ",whsec_s3cret!"); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got error %v; want one without the secret", err)
	}
}

func TestTooManyDeliveriesAtOnceAreSentLater(t *testing.T) {
	p := newProgram("", 1, 10)
	// Deliveries whose bodies have begun, and no more.
	reached := make(chan struct{})
	var under sync.WaitGroup
	release := make(chan struct{})
	for range atOnce {
		under.Add(1)
		one := p.event(requestEvent{address: "a", path: "/x"})
		go func() {
			defer under.Done()
			req := delivery("")
			req.Body = io.NopCloser(io.MultiReader(readerFunc(func([]byte) (int, error) {
				reached <- struct{}{}
				<-release
				return 0, io.EOF
			}), strings.NewReader(one)))
			if w := p.do(req); w.Code != http.StatusNoContent {
				t.Errorf("got status %d; want 204", w.Code)
			}
		}()
	}
	for range atOnce {
		<-reached
	}
	one := p.event(requestEvent{address: "a", path: "/x"})
	if w := p.do(delivery(one)); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
		t.Errorf("got status %d, Retry-After %q; want 429, 1", w.Code, w.Header().Get("Retry-After"))
	}
	close(release)
	under.Wait()
	p.deliver(t, one)
	if got := p.usage(t, "").Requests; got != atOnce+1 {
		t.Errorf("got %d requests; want %d", got, atOnce+1)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func TestReportsSayWhatIsMissing(t *testing.T) {
	const boot, next = "01992f5e00c1", "01992f5e00c2"
	type step struct {
		wait   time.Duration
		report func(p *program) string
	}
	say := func(boot string, seen, filtered, sampledOut uint64, since time.Time, lostEvents map[string]int) func(*program) string {
		return func(p *program) string { return p.report(boot, seen, filtered, sampledOut, since, lostEvents) }
	}
	for _, tc := range []struct {
		name  string
		steps []step
		want  string // reports, seen, filtered, sampled out, lost
	}{
		{"no report", nil, "[]"},
		{"a pipeline that is new", []step{{0, say(boot, 100, 10, 50, noon, map[string]int{"timeout": 3, "queue_full": 4})}},
			"[{//edge-1/middlewares/mirror@file 1 100 10 50 [{queue_full 4} {timeout 3}]}]"},
		{"what was before the first report of an old one is not known", []step{{0, say(boot, 100, 10, 0, noon.Add(-time.Hour), map[string]int{"timeout": 3})}},
			"[{//edge-1/middlewares/mirror@file 1 0 0 0 []}]"},
		{"but what has happened since then is", []step{
			{0, say(boot, 100, 10, 0, noon.Add(-2*time.Hour), map[string]int{"timeout": 3})},
			{time.Minute, say(boot, 150, 11, 0, noon.Add(-2*time.Hour), map[string]int{"timeout": 5, "gone": 1})}},
			"[{//edge-1/middlewares/mirror@file 2 50 1 0 [{timeout 2} {gone 1}]}]"},
		{"a report that comes late says nothing new", []step{
			{0, say(boot, 100, 0, 0, noon, map[string]int{"timeout": 3})},
			{0, say(boot, 90, 0, 0, noon, map[string]int{"timeout": 2})},
			{0, say(boot, 100, 0, 0, noon, map[string]int{"timeout": 4})}},
			"[{//edge-1/middlewares/mirror@file 2 100 0 0 [{timeout 4}]}]"},
		{"another boot begins anew", []step{
			{0, say(boot, 100, 0, 0, noon, map[string]int{"timeout": 3})},
			{0, say(next, 7, 0, 0, noon, nil)}},
			"[{//edge-1/middlewares/mirror@file 2 107 0 0 [{timeout 3}]}]"},
		{"an hour later it is forgotten, but not what was said", []step{
			{0, say(boot, 100, 0, 0, noon, map[string]int{"timeout": 3})},
			{time.Hour, say(boot, 101, 0, 0, noon, map[string]int{"timeout": 3})}},
			"[{//edge-1/middlewares/mirror@file 1 1 0 0 []}]"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProgram("", 1, 10)
			for _, s := range tc.steps {
				p.pass(s.wait)
				p.deliver(t, s.report(p))
			}
			got := p.usage(t, "")
			if text := fmt.Sprint(got.Missing.Middlewares); text != tc.want || got.Requests != 0 {
				t.Errorf("got %s, %d requests; want %s, 0", text, got.Requests, tc.want)
			}
			page := p.do(httptest.NewRequest("GET", "/", nil)).Body.String()
			if unknown := strings.Contains(page, "No report has come"); unknown != (len(tc.steps) == 0) {
				t.Errorf("got a page that says that no report has come: %t; want %t", unknown, !unknown)
			}
		})
	}
	t.Run("a report that comes twice counts once", func(t *testing.T) {
		p := newProgram("", 1, 10)
		again := p.report(boot, 5, 0, 0, noon, nil)
		p.deliver(t, again)
		p.deliver(t, again)
		if got := p.usage(t, "").Missing.Middlewares[0]; got.Reports != 1 || got.Seen != 5 {
			t.Errorf("got %d reports, %d seen; want 1, 5", got.Reports, got.Seen)
		}
	})
	t.Run("pipelines without end take a bounded memory", func(t *testing.T) {
		p := newProgram("", 1, 10)
		for n := range maxStreams + 10 {
			p.pass(time.Millisecond)
			p.deliver(t, p.report(fmt.Sprintf("%012x", n), 1, 0, 0, noon, nil))
		}
		if got := p.usage(t, "").Missing.Middlewares[0].Seen; len(p.book.heard) != maxStreams || got != maxStreams+10 {
			t.Errorf("got %d pipelines, %d seen; want %d, %d", len(p.book.heard), got, maxStreams, maxStreams+10)
		}
		for n, want := range map[int]bool{0: false, 9: false, 10: true, maxStreams + 9: true} {
			if got := p.book.heard[stream{"//edge-1/middlewares/mirror@file", fmt.Sprintf("%012x", n)}] != nil; got != want {
				t.Errorf("number %d is known: got %t; want %t", n, got, want)
			}
		}
	})
}

func TestPages(t *testing.T) {
	p := newProgram("", 1, 1000)
	for n := range shownClients + 1 {
		p.deliver(t, p.event(requestEvent{address: fmt.Sprintf("client-%03d", n), path: "/x"}))
	}
	for n := range shownScopes + 1 {
		p.deliver(t, p.event(requestEvent{address: "client-000", path: fmt.Sprintf("/scope-%03d", n)}))
	}
	for _, tc := range []struct {
		method, target string
		status         int
		has            []string
	}{
		{"GET", "/", 200, []string{"112 requests of 101 clients from 11:01 to 12:00 UTC", "Counting began at 12:00", "client-099", "And more, in the JSON.", "and more, in the JSON</td>"}},
		{"GET", "/?scope=GET+/scope-001&minutes=5", 200, []string{"1 requests of 1 clients from 11:56", `value="GET /scope-001"`, `href="/usage?minutes=5&amp;scope=GET%20%2fscope-001"`}},
		{"HEAD", "/", 200, nil},
		{"GET", "/?minutes=0", 400, []string{"minutes: want a number from 1 to 60"}},
		{"GET", "/?minutes=61", 400, nil},
		{"GET", "/usage?minutes=ten", 400, nil},
		{"GET", "/usage", 200, []string{`"known_by": "address"`, `"client": "client-100"`}},
		{"POST", "/usage", 405, nil},
		{"GET", "/events", 405, nil},
		{"GET", "/favicon.ico", 404, nil},
	} {
		t.Run(tc.method+" "+tc.target, func(t *testing.T) {
			w := p.do(httptest.NewRequest(tc.method, tc.target, nil))
			if w.Code != tc.status {
				t.Errorf("got status %d; want %d", w.Code, tc.status)
			}
			for _, want := range tc.has {
				if !strings.Contains(w.Body.String(), want) {
					t.Errorf("got no %q in\n%s", want, w.Body.String())
				}
			}
		})
	}
	if body := p.do(httptest.NewRequest("GET", "/", nil)).Body.String(); strings.Contains(body, "client-100") || strings.Contains(body, "scope-010") {
		t.Errorf("got more than %d clients, or %d scopes, on the page\n%s", shownClients, shownScopes, body)
	}
}

func TestConcurrentPostsAreAllCounted(t *testing.T) {
	p := newProgram("", 1, 5)
	const workers, each = 8, 100
	var running sync.WaitGroup
	for worker := range workers {
		running.Add(1)
		go func() {
			defer running.Done()
			for n := range each {
				one := p.event(requestEvent{address: strconv.Itoa(worker), path: "/" + strconv.Itoa(n)})
				for range 2 {
					if w := p.do(delivery(one)); w.Code != http.StatusNoContent {
						t.Errorf("got status %d; want 204", w.Code)
					}
				}
				if n%10 == 0 {
					p.pass(time.Second)
					if w := p.do(httptest.NewRequest("GET", "/", nil)); w.Code != http.StatusOK {
						t.Errorf("got status %d; want 200", w.Code)
					}
				}
			}
		}()
	}
	running.Wait()
	if got := p.usage(t, "").Requests; got != workers*each {
		t.Errorf("got %d requests; want %d", got, workers*each)
	}
}

func TestWhatIsUnderWayEndsBeforeTheProgram(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	under, release := make(chan struct{}), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(under)
		<-release
		w.WriteHeader(http.StatusNoContent)
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, listener, handler) }()
	answered := make(chan string, 1)
	go func() {
		resp, err := http.Post("http://"+listener.Addr().String(), "application/json", nil)
		if err != nil {
			answered <- err.Error()
			return
		}
		_ = resp.Body.Close()
		answered <- resp.Status
	}()
	<-under
	cancel()
	for listening := true; listening; {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if listening = err == nil; listening {
			_ = conn.Close()
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("it has ended, with %v, while a request was under way", err)
	default:
	}
	close(release)
	if got := <-answered; got != "204 No Content" {
		t.Errorf("got answer %q; want 204", got)
	}
	if err := <-ended; err != nil {
		t.Errorf("got %v; want a good end", err)
	}
}

func TestSmallest(t *testing.T) {
	totals := map[string]uint64{"a": 3, "b": 1, "c": 2, "d": 2, "e": 9}
	for _, tc := range []struct {
		most int
		want string
	}{{4, "[b c]"}, {1, "[b c d a]"}} {
		if got := fmt.Sprint(smallest(totals, tc.most, strings.Compare)); got != tc.want {
			t.Errorf("at most %d: got %s; want %s", tc.most, got, tc.want)
		}
	}
	if got := smallest(totals, 4, strings.Compare); slices.Contains(got, "e") {
		t.Errorf("got %s; want the largest to stay", got)
	}
}
