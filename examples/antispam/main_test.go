package main

import (
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
	"path/filepath"
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

	ada  = "203.0.113.7"
	good = `{"post":42,"text":"Thank you for this, it helped me a lot."}`
)

// The clock is years away from the system's: all times are told by it.
var noon = time.Date(2031, 9, 18, 12, 0, 0, 0, time.UTC)

// program is all of it but the worker, whose work a test does by itself.
type program struct {
	in      *intake
	judge   *judge
	handler http.Handler
	ids     int
}

func newProgram(t *testing.T, secrets string) *program {
	t.Helper()
	webhooks, err := webhooksOf(secrets)
	if err != nil {
		t.Fatal(err)
	}
	p := &program{in: newIntake(func() time.Time { return noon }, webhooks), judge: newJudge("/api/comments", someWords)}
	p.handler = newHandler(p.in, p.judge.verdicts)
	return p
}

// sent is a request to the site. Empty fields are those of somebody who has nothing to hide.
type sent struct {
	id, method, path, client, text string
	header                         map[string]string // on top of the usual; empty: not sent
	visitor                        string
	after                          time.Duration // since noon
	body                           string        // JSON of it, instead of text
}

func (p *program) event(s sent) string {
	p.ids++
	or := func(value, usual string) string {
		if value == "" {
			return usual
		}
		return value
	}
	header := map[string]string{"user-agent": "Mozilla/5.0", "content-type": "application/json", "origin": "https://blog.example.com"}
	maps.Copy(header, s.header)
	lists := map[string][]string{}
	for name, value := range header {
		if value != "" {
			lists[name] = []string{value}
		}
	}
	request := map[string]any{"method": or(s.method, "POST"), "header": lists}
	if s.visitor != "none" {
		request["cookie"] = map[string][]string{visitorCookie: {or(s.visitor, "v-1")}}
	}
	if s.method != "GET" {
		text := or(s.text, good)
		request["body"] = json.RawMessage(or(s.body, asJSON(map[string]any{"content": text, "size": len(text), "truncated": false})))
	}
	return asJSON(map[string]any{
		"specversion": "1.0", "type": requestType, "id": or(s.id, fmt.Sprintf("01992f6a-7c4e-7d2b-9a51-%012x", p.ids)),
		"time": noon.Add(s.after),
		"data": map[string]any{
			"http": map[string]any{"request": request}, "url": map[string]any{"path": or(s.path, "/api/comments")},
			"client": map[string]any{"address": or(s.client, ada)}, "server": map[string]any{"address": "blog.example.com", "port": 443}, "request_id": "7f3c",
		},
	})
}

func asJSON(value any) string {
	raw, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func delivery(payload string) *http.Request {
	req := httptest.NewRequest("POST", "/events", strings.NewReader(payload))
	req.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
	return req
}

func (p *program) do(req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	p.handler.ServeHTTP(w, req)
	return w
}

// step judges the delivery that was taken first, as the worker does.
func (p *program) step() {
	p.judge.judge(<-p.in.queue)
	<-p.in.room
}

// deliver posts what must be taken, and judges it.
func (p *program) deliver(t *testing.T, payload string) {
	t.Helper()
	if w := p.do(delivery(payload)); w.Code != http.StatusNoContent {
		t.Fatalf("got status %d; want 204", w.Code)
	}
	for len(p.in.queue) > 0 {
		p.step()
	}
}

// read makes a visitor of a client.
func (p *program) read(t *testing.T, client, visitor string) {
	t.Helper()
	p.deliver(t, p.event(sent{method: "GET", path: "/blog/42", client: client, visitor: visitor}))
}

func (p *program) last(t *testing.T, query string) []verdict {
	t.Helper()
	w := p.do(httptest.NewRequest("GET", "/verdicts"+query, nil))
	var got []verdict
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || w.Code != http.StatusOK {
		t.Fatalf("got status %d, %v; want 200 and JSON", w.Code, err)
	}
	return got
}

func TestRules(t *testing.T) {
	long := strings.Repeat("Lovely weather. ", 3)
	for _, tc := range []struct {
		name   string
		before []sent // after somebody has read something
		sent   sent
		want   string // rule and reason of each finding
	}{
		{"nothing to find", nil, sent{}, ""},
		{"PUT", nil, sent{method: "PUT"}, "odd_method: written with PUT"},
		{"a path below", nil, sent{path: "/api/comments/caf%C3%A9/"}, ""},
		{"a letter that is encoded", nil, sent{path: "/api/%63omments"}, "odd_path: the path is written as /api/%63omments"},
		{"two slashes", nil, sent{path: "/api//comments"}, "odd_path: the path is written as /api//comments"},
		{"dots", nil, sent{path: "/x/../api/comments"}, "odd_path: the path is written as /x/../api/comments"},
		{"encoded dots", nil, sent{path: "/x/%2E%2e/api/comments"}, "odd_path: the path is written as /x/%2E%2e/api/comments"},
		{"no user agent", nil, sent{header: map[string]string{"user-agent": ""}}, "user_agent: no user agent"},
		{"a program", nil, sent{header: map[string]string{"user-agent": "curl/8.7.1"}}, "user_agent: the user agent is curl/8.7.1"},
		{"an agent that is only like one", nil, sent{header: map[string]string{"user-agent": "Mozilla/5.0 (curl)"}}, ""},
		{"an agent that is redacted", nil, sent{header: map[string]string{"user-agent": redacted}}, ""},
		{"an agent that is hashed", nil, sent{header: map[string]string{"user-agent": "hmac-sha256:" + strings.Repeat("0a", 32)}}, ""},
		{"no content type", nil, sent{header: map[string]string{"content-type": ""}}, "content_type: no content type | the body is neither JSON nor a form"},
		{"a text", nil, sent{header: map[string]string{"content-type": "text/plain"}}, "content_type: the content type is text/plain | the body is neither JSON nor a form"},
		{"JSON of another kind", nil, sent{header: map[string]string{"content-type": "application/ld+json; charset=utf-8"}}, ""},
		{"another site", nil, sent{header: map[string]string{"origin": "https://evil.example"}}, "other_site: sent from https://evil.example"},
		{"a site whose name begins the same", nil, sent{header: map[string]string{"origin": "https://blog.example.com.evil.example"}}, "other_site: sent from https://blog.example.com.evil.example"},
		{"a page of no site", nil, sent{header: map[string]string{"origin": "null"}}, "other_site: sent from null"},
		{"a referer, where there is no origin", nil, sent{header: map[string]string{"origin": "", "referer": "https://Blog.example.com:8443/42"}}, ""},
		{"the referer of another site", nil, sent{header: map[string]string{"origin": "", "referer": "https://evil.example/42"}}, "other_site: sent from https://evil.example/42"},
		{"neither of them", nil, sent{header: map[string]string{"origin": ""}}, "other_site: neither origin nor referer"},
		{"an origin that is redacted", nil, sent{header: map[string]string{"origin": redacted}}, ""},
		{"no visitor", nil, sent{visitor: "none"}, "visitor: no visitor_id"},
		{"a visitor whom nobody knows", nil, sent{visitor: "v-2"}, "visitor: nobody has read anything with this visitor_id"},
		{"writing does not make a visitor", []sent{{visitor: "v-2", client: "x"}}, sent{visitor: "v-2", text: `"other"`}, "visitor: nobody has read anything with this visitor_id"},
		{"a client who has not read anything", nil, sent{client: "198.51.100.1"}, "read_nothing: the client has read nothing before"},
		{"HEAD is not reading", []sent{{method: "HEAD", path: "/", client: "198.51.100.1"}}, sent{client: "198.51.100.1"}, "read_nothing: the client has read nothing before"},
		{"as many comments as one may write", []sent{{}, {}, {}, {}}, sent{text: `"other"`}, ""},
		{"one more", []sent{{}, {}, {}, {}, {}}, sent{text: `"other"`}, "too_fast: more than 5 comments of the client within 1m0s"},
		{"one more, which the mirror delivers first", []sent{{}, {}, {}, {}, {after: 30 * time.Second}}, sent{text: `"other"`, after: -20 * time.Second}, "too_fast: more than 5 comments of the client within 1m0s"},
		{"one more, a minute later", []sent{{}, {}, {}, {}, {}}, sent{text: `"other"`, after: time.Minute}, ""},
		{"others do not count", []sent{{client: "a"}, {client: "b"}, {client: "c"}, {client: "d"}, {client: "e"}}, sent{text: `"other"`}, ""},
		{"nor does reading", []sent{{method: "GET"}, {method: "GET"}, {method: "GET"}, {method: "GET"}, {method: "GET"}}, sent{}, ""},
		{"two links", nil, sent{text: `["https://a.example www.b.example"]`}, ""},
		{"three links", nil, sent{text: `{"a":["https://www.a.example HTTP://b.example"],"b":{"c":"www.c.example"}}`}, "links: 3 links"},
		{"links in a form", nil, sent{header: map[string]string{"content-type": "application/x-www-form-urlencoded"}, text: "a=http%3A%2F%2Fa+http%3A%2F%2Fb&a=http%3A%2F%2Fc"}, "links: 3 links"},
		{"names of fields are no text", nil, sent{text: `{"https://a https://b https://c":"casino1"}`}, ""},
		{"five of a kind", nil, sent{text: `"sooooo good!!!!!"`}, ""},
		{"six of a kind", nil, sent{text: `"soooooo good"`}, "repeated: 'o' more than 5 times in a row"},
		{"six of a kind that is not Latin", nil, sent{text: `"дааааааа"`}, "repeated: 'а' more than 5 times in a row"},
		{"emphasis", nil, sent{text: `"cheap!!!!!!"`}, "repeated: '!' more than 5 times in a row"},
		{"a line", nil, sent{text: `"above\n----------\n          below"`}, ""},
		{"a listed word, in capitals", nil, sent{text: `"Best CASINO, here"`}, `listed_word: the word "casino"`},
		{"a word that has one in it", nil, sent{text: `"Casinos and occasino"`}, ""},
		{"a text that was there", []sent{{client: "x", text: asJSON(long)}}, sent{text: asJSON(strings.ToUpper(long) + "!?")}, "seen_before: the same text was written at 2031-09-18T12:00:00Z"},
		{"a short text that was there", []sent{{client: "x", text: `"Thank you!"`}}, sent{text: `"Thank you!"`}, ""},
		{"an event that came again was not there before", []sent{{id: "1", text: asJSON(long)}, {id: "1", text: asJSON(long)}}, sent{}, ""},
		{"a number is no text", nil, sent{text: `{"a":11111111111111111111,"b":true,"c":null}`}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProgram(t, "")
			p.read(t, ada, "v-1")
			for _, one := range tc.before {
				p.deliver(t, p.event(one))
			}
			p.deliver(t, p.event(tc.sent))
			v := p.last(t, "?limit=1")[0]
			sum, got := 0, []string{}
			for _, f := range v.Findings {
				sum += f.Weight
				got = append(got, f.Rule+": "+f.Reason)
			}
			text := strings.Join(got, "; ")
			if v.Unread != "" {
				text += " | " + v.Unread
			}
			if text != tc.want || v.Score != sum {
				t.Errorf("got %q, score %d; want %q, %d", text, v.Score, tc.want, sum)
			}
		})
	}
	t.Run("each has a name of its own and a weight", func(t *testing.T) {
		names := map[string]bool{}
		for _, r := range newJudge("/", someWords).rules {
			if names[r.name] || r.name == "" || r.weight < 1 || r.weight >= spamFrom {
				t.Errorf("got rule %q with weight %d; want another name, and no rule that decides alone", r.name, r.weight)
			}
			names[r.name] = true
		}
	})
}

func TestVerdictsAreTheSumOfTheRules(t *testing.T) {
	for _, tc := range []struct {
		name, want string
		score      int
		sent       sent
	}{
		{"nothing found", fine, 0, sent{}},
		{"one less", fine, 4, sent{text: `"aaaaaaaa"`, header: map[string]string{"user-agent": "curl/8"}}},
		{"enough", spam, 5, sent{text: `"aaaaaaaa casino"`}},
		{"more", spam, 8, sent{text: `"casino"`, header: map[string]string{"user-agent": "", "origin": ""}}},
		{"enough, but the text is not known", neutral, 6, sent{client: "x", visitor: "none", header: map[string]string{"origin": "null"}, body: `{"size":9,"truncated":true,"truncated_reason":"limit"}`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProgram(t, "")
			p.read(t, ada, "v-1")
			p.deliver(t, p.event(tc.sent))
			if v := p.last(t, "")[0]; v.Verdict != tc.want || v.Score != tc.score {
				t.Errorf("got %s, %d; want %s, %d", v.Verdict, v.Score, tc.want, tc.score)
			}
		})
	}
}

func TestATextThatIsNotKnownIsNotJudged(t *testing.T) {
	deep := strings.Repeat("[", 20000) + strings.Repeat("]", 20000)
	form := map[string]string{"content-type": "application/x-www-form-urlencoded"}
	for _, tc := range []struct {
		name string
		sent sent
		want string
	}{
		{"cut", sent{body: `{"content":"\"casino casi","size":99,"truncated":true,"truncated_reason":"limit"}`}, "the body is cut: limit"},
		{"left out", sent{body: `{"size":99,"truncated":true,"truncated_reason":"memory"}`}, "the body is cut: memory"},
		{"redacted", sent{text: `{"a":[{"password":"REDACTED"}],"text":"casino"}`}, "a field of the body is redacted"},
		{"redacted in a form", sent{header: form, text: "password=REDACTED&text=casino"}, "a field of the body is redacted"},
		{"the word, among others", sent{text: `"REDACTED by the editor"`}, ""},
		{"not UTF-8", sent{body: `{"content_base64":"//79","size":3,"truncated":false}`}, "the body is not UTF-8"},
		{"not JSON", sent{text: `{"text":`}, "the body is not the JSON that it says it is"},
		{"two values", sent{text: `"a" "b"`}, "the body is not the JSON that it says it is"},
		{"endlessly deep", sent{text: deep}, "the body is not the JSON that it says it is"},
		{"deep, as far as it goes", sent{text: deep[10001 : 30001-2]}, ""},
		{"huge", sent{text: asJSON(strings.Repeat("a ", maxText/2))}, "the body is longer than 65536 bytes"},
		{"almost huge", sent{text: asJSON(strings.Repeat("a ", maxText/2-1))}, ""},
		{"not a form", sent{header: form, text: "a=%zz"}, "the body is not the form that it says it is"},
		{"a form that is not UTF-8", sent{header: form, text: "a=%ff%fe"}, ""},
		{"half a surrogate", sent{text: `"\ud800"`}, ""},
		{"an empty body", sent{header: form, body: `{"content":"","size":0,"truncated":false}`}, ""},
		{"no body", sent{body: `null`}, "no body"},
		{"of a type that is redacted", sent{header: map[string]string{"content-type": redacted}}, "the content type is redacted"},
		{"a file", sent{header: map[string]string{"content-type": "multipart/form-data; boundary=x"}}, "the body is neither JSON nor a form"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newProgram(t, "")
			p.deliver(t, p.event(tc.sent))
			v := p.last(t, "")[0]
			if v.Unread != tc.want || (v.Verdict == neutral) != (tc.want != "") {
				t.Errorf("got %s, %q; want %q", v.Verdict, v.Unread, tc.want)
			}
			for _, f := range v.Findings {
				if tc.want != "" && slices.Contains([]string{"links", "repeated", "seen_before", "listed_word"}, f.Rule) {
					t.Errorf("got %s: %s; want nothing of the text", f.Rule, f.Reason)
				}
			}
		})
	}
}

func TestOnlyCommentsAreJudged(t *testing.T) {
	for _, tc := range []struct {
		method, path string
		want         int
	}{
		{"POST", "/api/comments", 1},
		{"PATCH", "/api/comments/7", 1},
		{"POST", "//api/./comments", 1},
		{"POST", "/api%2fcomments", 1},
		{"POST", "/api/comments%zz", 0},
		{"POST", "/api/commentsandmore", 0},
		{"POST", "/api", 0},
		{"POST", "*", 0},
		{"POST", "", 0},
		{"GET", "/api/comments", 0},
		{"DELETE", "/api/comments/7", 0},
	} {
		p := newProgram(t, "")
		p.deliver(t, p.event(sent{method: tc.method, path: tc.path}))
		if got := len(p.last(t, "")); tc.path != "" && got != tc.want {
			t.Errorf("%s %s: got %d verdicts; want %d", tc.method, tc.path, got, tc.want)
		}
	}
}

func TestDeliveries(t *testing.T) {
	p := newProgram(t, newSecret+","+oldSecret)
	one := func() string { return p.event(sent{}) }
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
		more   int // verdicts
	}{
		{"an event", signed(newSecret, one(), noon, nil), 204, 1},
		{"signed with the other secret, during rotation", signed(oldSecret, one(), noon, nil), 204, 1},
		{"signed five minutes ago", signed(newSecret, one(), noon.Add(-tolerance), nil), 204, 1},
		{"signed before that", signed(newSecret, one(), noon.Add(-tolerance-time.Second), nil), 401, 0},
		{"signed in the future", signed(newSecret, one(), noon.Add(tolerance+time.Second), nil), 401, 0},
		{"signed with another secret", signed("whsec_AAAA", one(), noon, nil), 401, 0},
		{"signed for another id", signed(newSecret, one(), noon, header("webhook-id", "other")), 401, 0},
		{"signed for another body", signed(newSecret, one(), noon, func(req *http.Request) { req.Body = io.NopCloser(strings.NewReader(one())) }), 401, 0},
		{"without a time", signed(newSecret, one(), noon, header("webhook-timestamp", "")), 401, 0},
		{"not signed", delivery(one()), 401, 0},
		{"a batch", signed(newSecret, " [\n"+one()+","+one()+"]", noon, header("Content-Type", "application/cloudevents-batch+json")), 204, 2},
		{"a batch that has an event twice", signed(newSecret, "["+p.event(sent{id: "twice"})+","+p.event(sent{id: "twice"})+"]", noon, nil), 204, 1},
		{"one of these again, by itself", signed(newSecret, p.event(sent{id: "twice"}), noon, nil), 204, 0},
		{"an empty batch", signed(newSecret, "[]", noon, nil), 204, 0},
		{"with format: json", signed(newSecret, one(), noon, header("Content-Type", "application/json")), 204, 1},
		{"a batch with format: json", signed(newSecret, "["+one()+"]", noon, header("Content-Type", "application/json")), 204, 1},
		{"as a form, which a browser could send", signed(newSecret, one(), noon, header("Content-Type", "text/plain")), 415, 0},
		{"compressed", signed(newSecret, compressed(one()), noon, header("Content-Encoding", "gzip")), 204, 1},
		{"compressed, and signed before that", func() *http.Request {
			req := signed(newSecret, one(), noon, header("Content-Encoding", "gzip"))
			text, _ := io.ReadAll(req.Body)
			req.Body = io.NopCloser(strings.NewReader(compressed(string(text))))
			return req
		}(), 401, 0},
		{"not as compressed as it says", signed(newSecret, one(), noon, header("Content-Encoding", "gzip")), 400, 0},
		{"compressed and cut", signed(newSecret, compressed(one())[:60], noon, header("Content-Encoding", "gzip")), 400, 0},
		{"compressed in a way that is not known", signed(newSecret, one(), noon, header("Content-Encoding", "br")), 415, 0},
		{"too large", signed(newSecret, strings.Repeat(" ", maxPayload)+one(), noon, nil), 413, 0},
		{"too large once it is decompressed", signed(newSecret, compressed(strings.Repeat(" ", maxPayload)+one()), noon, header("Content-Encoding", "gzip")), 413, 0},
		{"broken off", signed(newSecret, one(), noon, func(req *http.Request) {
			req.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), readerFunc(func([]byte) (int, error) { return 0, io.ErrUnexpectedEOF })))
		}), 408, 0},
		{"not JSON", signed(newSecret, "hello", noon, nil), 400, 0},
		{"nothing", signed(newSecret, "", noon, nil), 400, 0},
		{"endlessly deep", signed(newSecret, strings.Repeat("[", 1<<20), noon, nil), 400, 0},
		{"deep data", signed(newSecret, strings.Replace(one(), `"data":{`, `"data":{"x":`+strings.Repeat("[", 1<<20)+strings.Repeat("]", 1<<20)+",", 1), noon, nil), 400, 0},
		{"bytes that are not UTF-8", signed(newSecret, p.event(sent{path: "/api/comments/x"})[:20]+"\xff\xfe", noon, nil), 400, 0},
		{"a text that is not UTF-8", signed(newSecret, strings.Replace(one(), "Thank", "\xff\xfe", 1), noon, nil), 204, 1},
		{"no event", signed(newSecret, `{"hello":"mirror"}`, noon, nil), 400, 0},
		{"an event without an id", signed(newSecret, strings.Replace(one(), `"id"`, `"di"`, 1), noon, nil), 400, 0},
		{"an event without a time", signed(newSecret, strings.Replace(one(), `"time"`, `"emit"`, 1), noon, nil), 400, 0},
		{"an event without a method", signed(newSecret, strings.Replace(one(), `"method":"POST"`, `"method":""`, 1), noon, nil), 400, 0},
		{"an event without data", signed(newSecret, `{"type":"`+requestType+`","id":"1","time":"2031-09-18T12:00:00Z"}`, noon, nil), 400, 0},
		{"an event with an endless id", signed(newSecret, p.event(sent{id: strings.Repeat("0", maxID+1)}), noon, nil), 400, 0},
		{"a batch of which one is no event: nothing of it", signed(newSecret, "["+one()+`,{"type":"`+requestType+`"}]`, noon, nil), 400, 0},
		{"a report", signed(newSecret, `{"type":"io.opencommit.requestmirror.report.v1","id":"1","data":{"seen":1}}`, noon, nil), 204, 0},
		{"an event of another program", signed(newSecret, `{"type":"com.example","id":"1","data":"hello"}`, noon, nil), 204, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := p.judge.verdicts.count()
			w := p.do(tc.req)
			for len(p.in.queue) > 0 {
				p.step()
			}
			if got := p.judge.verdicts.count() - before; w.Code != tc.status || got != tc.more || len(p.in.room) != 0 {
				t.Errorf("got status %d, %d verdicts, %d places taken; want %d, %d, none", w.Code, got, len(p.in.room), tc.status, tc.more)
			}
		})
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

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
	for _, secrets := range []string{newSecret + ",whsec_s3cret!", "whsec_"} {
		if _, err := webhooksOf(secrets); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: got error %v; want one without the secret", secrets, err)
		}
	}
}

func TestWhatThereIsNoRoomForIsSentLater(t *testing.T) {
	p := newProgram(t, "")
	for range maxWork {
		if w := p.do(delivery(p.event(sent{}))); w.Code != http.StatusNoContent {
			t.Fatalf("got status %d; want 204", w.Code)
		}
	}
	unread := readerFunc(func([]byte) (int, error) {
		t.Error("the body was read; want the answer before that")
		return 0, io.EOF
	})
	late := p.event(sent{id: "late"})
	req := delivery("")
	req.Body = io.NopCloser(unread)
	if w := p.do(req); w.Code != http.StatusTooManyRequests || w.Header().Get("Retry-After") != "1" {
		t.Errorf("got status %d, Retry-After %q; want 429, 1", w.Code, w.Header().Get("Retry-After"))
	}
	p.step()
	if w := p.do(delivery(late)); w.Code != http.StatusNoContent {
		t.Errorf("when one is judged: got status %d; want 204", w.Code)
	}
	for len(p.in.queue) > 0 {
		p.step()
	}
	if _, ok := p.judge.verdicts.of("late"); !ok || p.judge.verdicts.count() != maxWork+1 {
		t.Errorf("got %d verdicts, that of the late one: %t; want %d, true", p.judge.verdicts.count(), ok, maxWork+1)
	}
}

// TestEachEventHasOneVerdictHoweverOftenItComes has many senders at once, and those who ask.
func TestEachEventHasOneVerdictHoweverOftenItComes(t *testing.T) {
	p := newProgram(t, "")
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.in.work(p.judge)
	}()
	const events = 200
	var payloads []string
	for n := range events {
		payloads = append(payloads, p.event(sent{client: strconv.Itoa(n % 7)}))
	}
	var senders sync.WaitGroup
	for range 4 {
		senders.Add(1)
		go func() {
			defer senders.Done()
			for n := 0; n < events; {
				if w := p.do(delivery(payloads[n])); w.Code == http.StatusNoContent {
					n++
				} else if w.Code != http.StatusTooManyRequests {
					t.Errorf("got status %d; want 204 or 429", w.Code)
					return
				}
				_ = p.do(httptest.NewRequest("GET", "/verdicts?client=3", nil))
			}
		}()
	}
	senders.Wait()
	p.in.drain()
	<-done
	got := p.last(t, "?limit=1000")
	if len(got) != events {
		t.Errorf("got %d verdicts; want %d", len(got), events)
	}
}

func TestVerdictsAreServedNewestFirst(t *testing.T) {
	p := newProgram(t, "")
	for n := range 250 {
		p.deliver(t, p.event(sent{id: strconv.Itoa(n), client: []string{"a", "b"}[n%2]}))
	}
	events := func(query string) (ids []string) {
		for _, v := range p.last(t, query) {
			ids = append(ids, v.Event)
		}
		return ids
	}
	for query, want := range map[string]string{
		"?limit=3":          "[249 248 247]",
		"?limit=2&client=a": "[248 246]",
		"?client=c":         "[]",
	} {
		if got := fmt.Sprint(events(query)); got != want {
			t.Errorf("%s: got %s; want %s", query, got, want)
		}
	}
	if all, ofB := len(events("")), len(events("?client=b&limit=1000")); all != 100 || ofB != 125 {
		t.Errorf("got %d of all, %d of b; want 100, 125", all, ofB)
	}
	for target, want := range map[string]int{
		"/verdicts?limit=0": 400, "/verdicts?limit=1001": 400, "/verdicts?limit=x": 400,
		"/verdicts/7": 200, "/verdicts/250": 404, "/verdicts/": 404, "/verdicts/7/x": 404, "/": 404, "/events": 405,
	} {
		if got := p.do(httptest.NewRequest("GET", target, nil)).Code; got != want {
			t.Errorf("%s: got status %d; want %d", target, got, want)
		}
	}
	w := p.do(httptest.NewRequest("GET", "/verdicts/7", nil))
	var v verdict
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if v.Event != "7" || v.Client != "b" || v.RequestID != "7f3c" || !v.Time.Equal(noon) || v.Path != "/api/comments" || strings.Contains(w.Body.String(), "helped") {
		t.Errorf("got %s; want what is known of the request, without the text", w.Body)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	t.Run("of verdicts the oldest go", func(t *testing.T) {
		s := newVerdicts(3)
		for n := range 8 {
			s.add(verdict{Event: strconv.Itoa(n)})
		}
		_, gone := s.of("4")
		last, _ := s.of("5")
		if got := s.last("", 10); len(got) != 3 || got[0].Event != "7" || got[2].Event != "5" || gone || last.Event != "5" || len(s.at) != 3 || s.count() != 8 {
			t.Errorf("got %v, %d known by event; want 7, 6, 5", got, len(s.at))
		}
	})
	t.Run("of keys those that were put in long ago", func(t *testing.T) {
		r := recent[int, int]{most: 100}
		for n := range 1001 {
			r.put(n, n)
			if n > 100 {
				r.put(7, n) // is put in again and again
			}
			if len(r.young)+len(r.old) > 200 {
				t.Fatalf("got %d keys; want at most 200", len(r.young)+len(r.old))
			}
			if got, ok := r.get(n - 99); n >= 200 && (!ok || got != n-99) {
				t.Fatalf("got %d, %t of the 100th last; want it", got, ok)
			}
		}
		if got, _ := r.get(7); got != 1000 {
			t.Errorf("got %d; want what was put in last", got)
		}
		if _, ok := r.get(500); ok {
			t.Error("got what was put in long ago; want it forgotten")
		}
	})
	t.Run("of a client a few times", func(t *testing.T) {
		p := newProgram(t, "")
		for range 100 {
			p.deliver(t, p.event(sent{}))
		}
		if past, _ := p.judge.memory.clients.get(ada); len(past.wrote) != mostComments {
			t.Errorf("got %d times; want %d", len(past.wrote), mostComments)
		}
	})
	t.Run("of what clients send a part", func(t *testing.T) {
		p := newProgram(t, "")
		long := strings.Repeat("é", 1<<16)
		p.deliver(t, p.event(sent{path: "/api/comments/" + long, client: long, method: "POST", header: map[string]string{"user-agent": "curl" + long, "origin": long, "content-type": long}}))
		if got := asJSON(p.last(t, "")); len(got) > 12*maxName {
			t.Errorf("got a verdict of %d bytes; want no more than what is cut", len(got))
		}
	})
}

func TestWordsAreReadFromAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "words")
	if err := os.WriteFile(name, []byte("Pyramid\r\n\n scheme \n"), 0o600); err != nil {
		t.Fatal(err)
	}
	words, err := readWords(name)
	if err != nil || !maps.Equal(words, map[string]bool{"pyramid": true, "scheme": true}) {
		t.Errorf("got %v, %v; want pyramid and scheme", words, err)
	}
	if _, err := readWords(name + "s"); err == nil {
		t.Error("got no error for a file that is not there")
	}
}

// TestWhatWasTakenIsJudgedBeforeTheEnd tells the program to end while the worker has not begun.
func TestWhatWasTakenIsJudgedBeforeTheEnd(t *testing.T) {
	p := newProgram(t, "")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		err := serve(ctx, listener, p.handler)
		p.in.drain()
		ended <- err
	}()
	for range 3 {
		resp, err := http.Post("http://"+listener.Addr().String()+"/events", "application/json", strings.NewReader(p.event(sent{})))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusNoContent {
			t.Fatalf("got %s; want 204", resp.Status)
		}
	}
	cancel()
	for len(p.in.room) < maxWork { // drain has taken all that is free: nothing is taken any more
		select {
		case err := <-ended:
			t.Fatalf("it ended with %v and %d verdicts; want it to wait for 3", err, p.judge.verdicts.count())
		case <-time.After(time.Millisecond):
		}
	}
	if w := p.do(delivery(p.event(sent{}))); w.Code != http.StatusTooManyRequests {
		t.Errorf("at the end: got status %d; want 429", w.Code)
	}
	p.in.work(p.judge) // returns when drain has closed the queue
	if err := <-ended; err != nil || p.judge.verdicts.count() != 3 {
		t.Errorf("got %v, %d verdicts; want none, 3", err, p.judge.verdicts.count())
	}
	http.DefaultClient.CloseIdleConnections()
}
