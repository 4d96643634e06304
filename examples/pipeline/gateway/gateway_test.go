package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	secret      = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"
	otherSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc"

	single = "application/cloudevents+json; charset=utf-8"
	batch  = "application/cloudevents-batch+json"
)

// An event of the middleware, and what a test changes in it.
func anEvent(id string, change ...string) string {
	text := `{"specversion":"1.0","type":"io.opencommit.requestmirror.request.v1","id":"` + id + `","source":"//edge-1/middlewares/mirror@file",` +
		`"subject":"/api/comments","time":"2026-09-18T09:41:07.184503Z","sequence":"01992f5e00c1-00000000000000004711","datacontenttype":"application/json",` +
		`"data":{"url":{"scheme":"http","path":"/api/comments"},"client":{"address":"203.0.113.7"},"http":{"request":{"method":"POST","header":{"accept":["*/*"]},` +
		`"body":{"content":"{\"text\":\"buy <b>cheap</b> pills\"}","size":33,"truncated":false}}}}}`
	return strings.NewReplacer(change...).Replace(text)
}

func webhook(t *testing.T, secret string) *standardwebhooks.Webhook {
	t.Helper()
	w, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// delivery is signed as the middleware does it, over the bytes as they are sent.
func delivery(t *testing.T, secret, kind string, payload []byte) *http.Request {
	t.Helper()
	now := time.Now()
	signature, err := webhook(t, secret).Sign("msg_1", now, payload)
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest(http.MethodPost, "/events", bytes.NewReader(payload))
	req.Header.Set("Content-Type", kind)
	req.Header.Set("webhook-id", "msg_1")
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", signature)
	return req
}

func packed(t *testing.T, payload string) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := io.WriteString(z, payload); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAnswers(t *testing.T) {
	many := "[" + strings.TrimSuffix(strings.Repeat(anEvent("1")+",", stream.MaxBatch+1), ",") + "]"
	bomb := packed(t, strings.Repeat(" ", maxPayload+1))
	lie := packed(t, strings.Repeat(" ", 1<<20)+anEvent("1"))
	binary.LittleEndian.PutUint32(lie[len(lie)-4:], 100)
	for _, tc := range []struct {
		name     string
		kind     string
		payload  string
		encoding string
		with     string // secret
		fails    error  // what the stream says
		change   func(*http.Request)
		want     int
		stored   int
	}{
		{name: "an event", kind: single, payload: anEvent("1"), want: 204, stored: 1},
		{name: "a batch", kind: batch, payload: "[" + anEvent("1") + "," + anEvent("2") + "]", want: 204, stored: 2},
		{name: "an empty batch", kind: batch, payload: "[]", want: 204},
		{name: "an event that is compressed", kind: single, encoding: "gzip", payload: string(packed(t, anEvent("1"))), want: 204, stored: 1},
		{name: "a batch that is compressed", kind: batch, encoding: "gzip", payload: string(packed(t, "["+anEvent("1")+"]")), want: 204, stored: 1},
		{name: "a report", kind: single, payload: anEvent("1", "request.v1", "report.v1"), want: 204, stored: 1},
		{name: "the old secret, while it is rotated", kind: single, payload: anEvent("1"), with: otherSecret, want: 204, stored: 1},
		{name: "another secret", kind: single, payload: anEvent("1"), with: "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", want: 401},
		{name: "no signature", kind: single, payload: anEvent("1"), change: func(r *http.Request) { r.Header.Del("webhook-signature") }, want: 401},
		{name: "an old delivery", kind: single, payload: anEvent("1"), change: func(r *http.Request) { r.Header.Set("webhook-timestamp", "1700000000") }, want: 401},
		{name: "not JSON", kind: single, payload: "{", want: 400},
		{name: "an event without an id", kind: single, payload: anEvent(""), want: 400},
		{name: "an id that is no part of a subject", kind: single, payload: anEvent("a.b"), want: 400},
		{name: "one of a batch is no event", kind: batch, payload: "[" + anEvent("1") + `,{"id":"2"}]`, want: 400},
		{name: "another type", kind: single, payload: anEvent("1", "request.v1", "request.v2"), want: 400},
		{name: "another kind", kind: "text/plain", payload: anEvent("1"), want: 415},
		{name: "another encoding", kind: single, encoding: "br", payload: anEvent("1"), want: 415},
		{name: "not gzip", kind: single, encoding: "gzip", payload: anEvent("1") + "\x01\x00\x00\x00", want: 400},
		{name: "more than it says", kind: single, encoding: "gzip", payload: string(lie), want: 400},
		{name: "a bomb", kind: single, encoding: "gzip", payload: string(bomb), want: 413},
		{name: "too large", kind: single, payload: strings.Repeat(" ", maxPayload+1), want: 413},
		{name: "an event that is larger than a message", kind: batch, payload: "[" + anEvent("1", "cheap", strings.Repeat("cheap", 210_000)) + "]", want: 413},
		{name: "more than the stream takes at once", kind: batch, payload: many, want: 413},
		{name: "of unknown length", kind: single, payload: anEvent("1"), change: func(r *http.Request) { r.ContentLength = -1 }, want: 411},
		{name: "cut off", kind: single, payload: anEvent("1"), change: func(r *http.Request) { r.Body = io.NopCloser(iotest.ErrReader(io.ErrUnexpectedEOF)) }, want: 408},
		{name: "no leader", kind: single, payload: anEvent("1"), fails: nats.ErrNoResponders, want: 503},
		{name: "no answer in time", kind: single, payload: anEvent("1"), fails: context.DeadlineExceeded, want: 503},
		{name: "no space", kind: single, payload: anEvent("1"), fails: &jetstream.APIError{Code: 503, ErrorCode: 10077}, want: 503},
		{name: "the stream is busy", kind: single, payload: anEvent("1"), fails: &jetstream.APIError{Code: 429, ErrorCode: 10210}, want: 429},
		{name: "the stream finds it too large", kind: single, payload: anEvent("1"), fails: &jetstream.APIError{Code: 400, ErrorCode: 10054}, want: 413},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stored := 0
			g := &Gateway{
				Webhooks: []*standardwebhooks.Webhook{webhook(t, secret), webhook(t, otherSecret)}, MaxMessage: 1 << 20,
				Room: &Room{Deliveries: 1, Bytes: 64 << 20},
				Append: func(_ context.Context, messages []*nats.Msg) error {
					if tc.fails == nil {
						stored += len(messages)
					}
					for _, m := range messages {
						if report := strings.Contains(string(m.Data), "report.v1"); report != (m.Subject == stream.Reports) {
							t.Errorf("got it in %s; report: %v", m.Subject, report)
						}
					}
					return tc.fails
				},
			}
			with := secret
			if tc.with != "" {
				with = tc.with
			}
			req := delivery(t, with, tc.kind, []byte(tc.payload))
			if tc.encoding != "" {
				req.Header.Set("Content-Encoding", tc.encoding)
			}
			if tc.change != nil {
				tc.change(req)
			}
			w := httptest.NewRecorder()
			g.ServeHTTP(w, req)
			if w.Code != tc.want || stored != tc.stored {
				t.Errorf("got %d, %d stored; want %d, %d", w.Code, stored, tc.want, tc.stored)
			}
			later := tc.want == 429 || tc.want == 503
			if got := w.Header().Get("Retry-After"); (got == "1") != later {
				t.Errorf("Retry-After: got %q with %d", got, w.Code)
			}
			if g.Room.deliveries != 0 || g.Room.bytes != 0 {
				t.Errorf("got %d deliveries and %d bytes under way; want none", g.Room.deliveries, g.Room.bytes)
			}
		})
	}
}

func TestWhatIsUnderWayIsBounded(t *testing.T) {
	event := []byte(anEvent("1"))
	squeezed := packed(t, anEvent("1"))
	for _, tc := range []struct {
		name    string
		room    *Room
		payload []byte
		want    int
	}{
		{"by count", &Room{Deliveries: 1, Bytes: 1 << 20}, event, 429},
		{"by bytes", &Room{Deliveries: 9, Bytes: int64(2*len(event) - 1)}, event, 429},
		{"there is room for both", &Room{Deliveries: 2, Bytes: int64(2 * len(event))}, event, 204},
		{"by bytes that are unpacked", &Room{Deliveries: 9, Bytes: int64(2*len(event) + len(squeezed) - 1)}, squeezed, 429},
		{"there is room to unpack", &Room{Deliveries: 9, Bytes: int64(2*len(event) + len(squeezed))}, squeezed, 204},
		{"it would not fit alone", &Room{Deliveries: 9, Bytes: int64(len(event))}, append(event, ' '), 413},
	} {
		t.Run(tc.name, func(t *testing.T) {
			inside, leave := make(chan struct{}, 2), make(chan struct{})
			g := &Gateway{Room: tc.room, MaxMessage: 1 << 20, Append: func(context.Context, []*nats.Msg) error {
				inside <- struct{}{}
				<-leave
				return nil
			}}
			do := func(payload []byte) int {
				req := httptest.NewRequest(http.MethodPost, "/events", bytes.NewReader(payload))
				req.Header.Set("Content-Type", single)
				if bytes.HasPrefix(payload, []byte("\x1f\x8b")) {
					req.Header.Set("Content-Encoding", "gzip")
				}
				w := httptest.NewRecorder()
				g.ServeHTTP(w, req)
				return w.Code
			}
			first, second := make(chan int, 1), make(chan int, 1)
			go func() { first <- do(event) }()
			<-inside
			go func() { second <- do(tc.payload) }()
			if tc.want == 204 {
				<-inside
			}
			status := 0
			if tc.want == 204 {
				close(leave)
				status = <-second
			} else {
				status = <-second
				close(leave)
			}
			if got := <-first; got != 204 || status != tc.want {
				t.Errorf("got %d, %d; want 204, %d", got, status, tc.want)
			}
		})
	}
}

func TestEventsOfAClientAreInOnePartition(t *testing.T) {
	token := "hmac-sha256:" + strings.Repeat("0a", 32)
	withToken := []string{`"accept":["*/*"]`, `"authorization":["` + token + `"]`}
	for _, tc := range []struct {
		name string
		a, b string
		same bool
	}{
		{"the same address", anEvent("1"), anEvent("2", "/api/comments", "/other"), true},
		{"another address", anEvent("1"), anEvent("2", "203.0.113.7", "203.0.113.8"), false},
		{"a token from two addresses", anEvent("1", withToken...), anEvent("2", append(withToken, "203.0.113.7", "203.0.113.8")...), true},
		{"another token from the same address", anEvent("1", withToken...), anEvent("2", `"accept":["*/*"]`, `"authorization":["`+token[:75]+`b"]`), false},
		{"a token that is redacted is of everybody", anEvent("1", `"accept":["*/*"]`, `"authorization":["REDACTED"]`), anEvent("2"), true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var keys, subjects []string
			g := &Gateway{Room: &Room{Deliveries: 1, Bytes: 1 << 20}, MaxMessage: 1 << 20, Append: func(_ context.Context, messages []*nats.Msg) error {
				for i, m := range messages {
					keys = append(keys, m.Header.Get(stream.ClientHeader))
					subjects = append(subjects, m.Subject)
					if got, want := m.Header.Get(jetstream.MsgIDHeader), strconv.Itoa(i+1); got != want {
						t.Errorf("Nats-Msg-Id: got %s; want %s", got, want)
					}
				}
				return nil
			}}
			req := httptest.NewRequest(http.MethodPost, "/events", strings.NewReader("["+tc.a+","+tc.b+"]"))
			req.Header.Set("Content-Type", batch)
			g.ServeHTTP(httptest.NewRecorder(), req)
			if len(keys) != 2 || (keys[0] == keys[1]) != tc.same || tc.same && subjects[0] != subjects[1] {
				t.Errorf("got %v in %v; want the same: %v", keys, subjects, tc.same)
			}
		})
	}
}

// The SDK writes an event anew. What it says must not change.
func TestAnEventIsStoredAsItCame(t *testing.T) {
	var stored []byte
	g := &Gateway{Room: &Room{Deliveries: 1, Bytes: 1 << 20}, MaxMessage: 1 << 20, Append: func(_ context.Context, messages []*nats.Msg) error {
		stored = messages[0].Data
		return nil
	}}
	req := httptest.NewRequest(http.MethodPost, "/events", strings.NewReader(anEvent("1")))
	req.Header.Set("Content-Type", single)
	g.ServeHTTP(httptest.NewRecorder(), req)
	var got, want any
	if err := errors.Join(json.Unmarshal(stored, &got), json.Unmarshal([]byte(anEvent("1")), &want)); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}
