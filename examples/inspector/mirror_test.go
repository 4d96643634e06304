package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	secret      = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"
	otherSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc"
	source      = "//edge-1/middlewares/mirror@file"
)

// clock is a time that the test sets.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock {
	return &clock{t: time.Date(2026, 9, 18, 9, 36, 0, 0, time.UTC)}
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// mirror makes events as the middleware does, and keeps its accounts.
type mirror struct {
	source string
	boot   string
	began  time.Time
	number uint64
	seen   uint64
	ids    uint64
	counts struct{ delivered, waiting uint64 }
	lost   map[bool]map[string]uint64 // dropped at false, failed at true
}

func newMirror(began time.Time) *mirror {
	return &mirror{source: source, boot: fmt.Sprintf("%012x", began.UnixMilli()), began: began, lost: map[bool]map[string]uint64{false: {}, true: {}}}
}

func (m *mirror) id(at time.Time) string {
	m.ids++
	ms := at.UnixMilli()
	return fmt.Sprintf("%08x-%04x-7%03x-8%s-%012x", ms>>16, ms&0xffff, m.ids%0x1000, m.boot[9:], m.ids)
}

func (m *mirror) sequence() string { return fmt.Sprintf("%s-%020d", m.boot, m.number) }

// object is JSON.
type object = map[string]any

// request is the event of a GET request for a path, which the test may change.
func (m *mirror) request(at time.Time, path string) object {
	m.number++
	m.seen++
	m.counts.delivered++
	e := object{
		"specversion": "1.0", "id": m.id(at), "source": m.source, "type": requestType,
		"time": at.UTC().Format("2006-01-02T15:04:05.000000Z"), "sequence": m.sequence(), "datacontenttype": "application/json",
		"dataschema": "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/request.v1.schema.json",
		"data": object{
			"url":     object{"scheme": "http", "path": path},
			"network": object{"protocol": object{"name": "http", "version": "1.1"}, "peer": object{"address": "203.0.113.7", "port": 50526}},
			"client":  object{"address": "203.0.113.7"},
			"http":    object{"request": object{"method": "GET", "header": object{"accept": []string{"*/*"}}}},
		},
	}
	if path != "" {
		e["subject"] = path
	}
	return e
}

// lose is a request whose event does not come.
func (m *mirror) lose(reason string, failed bool) {
	m.number++
	m.seen++
	m.lost[failed][reason]++
}

// wait is a request whose event is not sent yet.
func (m *mirror) wait() {
	m.number++
	m.seen++
	m.counts.waiting++
}

func (m *mirror) report(at time.Time) object {
	list := func(counts map[string]uint64) []object {
		all := []object{}
		for reason, n := range counts {
			all = append(all, object{"reason": reason, "count": n})
		}
		slices.SortFunc(all, func(a, b object) int { return strings.Compare(a["reason"].(string), b["reason"].(string)) })
		return all
	}
	return object{
		"specversion": "1.0", "id": m.id(at), "source": m.source, "type": reportType,
		"time": at.UTC().Format("2006-01-02T15:04:05.000000Z"), "datacontenttype": "application/json",
		"dataschema": "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/report.v1.schema.json",
		"data": object{
			"since": m.began.UTC().Format("2006-01-02T15:04:05.000000Z"), "sequence": m.sequence(),
			"seen": m.seen, "filtered": 0, "sampled_out": 0, "delivered": m.counts.delivered,
			"waiting": m.counts.waiting, "in_flight": 0, "dropped": list(m.lost[false]), "failed": list(m.lost[true]),
			"truncated": []object{}, "final": false,
		},
	}
}

// of follows names into an object, down to another one.
func of(o object, names ...string) object {
	for _, name := range names {
		next, ok := o[name].(object)
		if !ok {
			next = object{}
			o[name] = next
		}
		o = next
	}
	return o
}

func encode(v any) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false) // as the middleware does
	if err := encoder.Encode(v); err != nil {
		panic(err)
	}
	return bytes.TrimSpace(out.Bytes())
}

func gzipped(payload []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(payload)
	_ = z.Close()
	return out.Bytes()
}

// posted is a delivery, signed if there is a secret.
func posted(secret, id string, at time.Time, payload []byte) *http.Request {
	req := httptest.NewRequest("POST", "/events", bytes.NewReader(payload))
	req.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
	if secret == "" {
		return req
	}
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		panic(err)
	}
	signature, err := w.Sign(id, at, payload)
	if err != nil {
		panic(err)
	}
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
	req.Header.Set("webhook-signature", signature)
	return req
}

// bench is an inspector in a test.
type bench struct {
	t       *testing.T
	clock   *clock
	web     *web
	handler http.Handler
	kept    *journal
}

func newBench(t *testing.T, change func(*settings)) *bench {
	b := &bench{t: t, clock: newClock()}
	webhooks, err := webhooksOf(secret + "," + otherSecret)
	if err != nil {
		t.Fatal(err)
	}
	s := settings{now: b.clock.now, path: "/events", webhooks: webhooks, keep: 10000, memory: 64 << 20, slow: 5 * time.Second}
	if change != nil {
		change(&s)
	}
	b.kept = newJournal(b.clock.now(), s.keep, s.memory)
	b.web = newWeb(s, b.kept)
	b.handler = b.web.handler()
	return b
}

func (b *bench) answer(req *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	b.handler.ServeHTTP(w, req)
	return w
}

// deliver delivers events as the middleware does, one by one.
func (b *bench) deliver(events ...object) {
	b.t.Helper()
	for _, e := range events {
		id, _ := e["id"].(string)
		if w := b.answer(posted(secret, id, b.clock.now(), encode(e))); w.Code != http.StatusNoContent {
			b.t.Fatalf("a delivery was answered with %d %s", w.Code, w.Body)
		}
	}
}

// get asks as the page does.
func (b *bench) get(path string) *httptest.ResponseRecorder {
	req := httptest.NewRequest("GET", path, nil)
	req.Host = "127.0.0.1:9000"
	return b.answer(req)
}

// lines are the events that the inspector has.
func (b *bench) lines() []string {
	text, _ := io.ReadAll(b.get("/api/events.jsonl").Body)
	return slices.Collect(strings.Lines(string(text)))
}

// day fills an inspector with five minutes of a site, always the same, and ends with
// what a picture is to show.
func (b *bench) day() {
	m := newMirror(b.clock.now().Add(time.Second))
	r := rand.New(rand.NewPCG(7, 11))
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	clients := []string{"203.0.113.7", "198.51.100.23", "198.51.100.91", "192.0.2.44", "2001:db8::7f3c"}
	request := func(late time.Duration) object {
		client := clients[r.IntN(len(clients))]
		path := pick("/", "/articles/42", "/articles/1207", "/api/comments", "/api/comments", "/api/search", "/static/app.js", "/avatar", "/contact", "/login")
		e := m.request(b.clock.now().Add(-late), path)
		data := of(e, "data")
		of(data, "client")["address"] = client
		of(data, "network", "peer")["address"] = client
		data["server"] = object{"address": "blog.example.com", "port": 443}
		of(data, "url")["scheme"] = "https"
		data["tls"] = object{"protocol": object{"version": "1.3"}}
		of(data, "network", "protocol")["version"] = "2"
		req := of(data, "http", "request")
		status := 200
		body := func(method, media, content string) {
			req["method"] = method
			req["header"] = object{
				"accept": []string{"application/json"}, "authorization": []string{"REDACTED"}, "content-type": []string{media},
				"user-agent": []string{"Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0"}, "x-request-id": []string{"7f3c"},
			}
			req["body"] = object{"content": content, "size": len(content), "truncated": false}
		}
		switch path {
		case "/api/comments":
			body("POST", "application/json", fmt.Sprintf(`{"post":%d,"text":"buy <b>cheap</b> pills","tags":["new","unread"],"author":{"name":"Ada","email":"REDACTED"},"score":0.9971}`, 30+r.IntN(20)))
			status = 201
		case "/contact":
			body("POST", "application/x-www-form-urlencoded", "name=Ada&message=Hello%2C+world&csrf=REDACTED")
			status = 303
		case "/login":
			body("POST", "application/x-www-form-urlencoded", "user=ada&password=REDACTED")
			status = []int{200, 401}[r.IntN(2)]
		case "/avatar":
			req["method"] = "PUT"
			req["header"] = object{"content-type": []string{"image/png"}}
			req["body"] = object{"content_base64": png, "size": 3000 + r.IntN(9000), "truncated": true, "truncated_reason": "limit"}
			status = 204
		case "/api/search":
			of(data, "url")["query"] = "q=" + pick("mirror", "traefik", "audit") + "&page=" + strconv.Itoa(1+r.IntN(3))
			if r.IntN(9) == 0 {
				status = 503
			}
		}
		if r.IntN(30) == 0 && req["body"] == nil {
			status = 404
		}
		of(data, "http")["response"] = object{"status_code": status, "header": object{"content-type": []string{"application/json"}}}
		data["duration_ms"] = float64(r.IntN(400))/10 + 1
		return e
	}
	for second := range 298 {
		b.clock.add(time.Second)
		wave := 4 + second/25%3
		busy := second >= 120 && second < 165
		if busy {
			wave += 14
		}
		for range wave + r.IntN(4) {
			late := time.Duration(2+r.IntN(5)) * time.Millisecond
			switch {
			case busy && r.IntN(3) == 0:
				m.lose("queue_full", false)
				continue
			case busy && r.IntN(8) == 0:
				m.lose("timeout", true)
				continue
			case busy:
				late += time.Duration(20+r.IntN(60)) * time.Millisecond
			}
			b.deliver(request(late))
		}
		if second%15 == 10 {
			b.deliver(m.report(b.clock.now()))
		}
	}
	// What is seen in the picture.
	for i := range 13 {
		b.clock.add(time.Duration(130+r.IntN(120)) * time.Millisecond)
		switch i {
		case 3:
			m.lose("queue_full", false)
			m.lose("queue_full", false)
			m.lose("timeout", true)
		case 8:
			b.deliver(m.report(b.clock.now()))
		}
		b.deliver(request(time.Duration(2+r.IntN(5)) * time.Millisecond))
	}
	b.clock.add(84 * time.Millisecond)
	last := m.request(b.clock.now().Add(-4*time.Millisecond), "/api/comments")
	last["traceparent"] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	data := of(last, "data")
	data["url"] = object{"scheme": "https", "path": "/api/comments", "query": "lang=en&sig=REDACTED"}
	data["server"] = object{"address": "blog.example.com", "port": 443}
	data["user_agent"] = object{"original": "curl/8.7.1"}
	data["request_id"] = "7f3c"
	data["attributes"] = object{"environment": "production"}
	content := `{"post":42,"text":"buy <b>cheap</b> pills","author":{"name":"Ada","email":"REDACTED"},"tags":["new","unread"],"score":0.9971}`
	of(data, "http")["request"] = object{
		"method": "POST",
		"header": object{
			"accept": []string{"application/json"}, "content-type": []string{"application/json"}, "user-agent": []string{"curl/8.7.1"},
			"authorization": []string{"hmac-sha256:5d41402abc4b2a76b9719d911017c5925d41402abc4b2a76b9719d911017c592"}, "x-api-key": []string{"REDACTED"}, "x-request-id": []string{"7f3c"},
		},
		"cookie": object{"visitor_id": []string{"v-82f1"}},
		"body":   object{"content": content, "size": len(content), "truncated": false},
	}
	of(data, "http")["response"] = object{"status_code": 201, "header": object{"content-type": []string{"application/json"}}}
	data["duration_ms"] = 12.4
	b.deliver(last)
	b.clock.add(time.Second)
}

// png is a small image.
const png = "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAGUlEQVR42mNk+M9AEmAcVTCqYFTBqAJsCgBkbgEfsm0i0QAAAABJRU5ErkJggg=="
