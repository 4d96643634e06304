package main

import (
	"bytes"
	"compress/gzip"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	newSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"
	oldSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc"
	payload   = `{"sequence":"01992f5e00c1-00000000000000000001","data":{"http":{"request":{"method":"POST","body":{"content":"{}","size":2}}},` +
		`"url":{"path":"/api","query":"a=1"},"client":{"address":"203.0.113.7"}}}`
)

func signed(secret, id string, at time.Time) *http.Request {
	return signedBytes(secret, id, at, []byte(payload))
}

func signedBytes(secret, id string, at time.Time, payload []byte) *http.Request {
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		panic(err)
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + timestamp + "."))
	mac.Write(payload)
	req := httptest.NewRequest("POST", "/events", bytes.NewReader(payload))
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", timestamp)
	req.Header.Set("webhook-signature", "v1,AAAA v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return req
}

// gzipped is signed and says that it is compressed, whether it is or not.
func gzipped(id string, payload []byte) *http.Request {
	req := signedBytes(newSecret, id, time.Now(), payload)
	req.Header.Set("Content-Encoding", "gzip")
	return req
}

func compressed(payload []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(payload); err != nil {
		panic(err)
	}
	if err := z.Close(); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func TestReceiver(t *testing.T) {
	r, err := newReceiver(newSecret + "," + oldSecret)
	if err != nil {
		t.Fatal(err)
	}
	altered := signed(newSecret, "altered", time.Now())
	altered.Header.Set("webhook-id", "other")
	for _, tc := range []struct {
		name    string
		req     *http.Request
		status  int
		waiting int
	}{
		{"a signed event", signed(newSecret, "a", time.Now()), 204, 1},
		{"the same again, as its answer was lost", signed(newSecret, "a", time.Now()), 204, 1},
		{"signed with the other secret, during rotation", signed(oldSecret, "b", time.Now()), 204, 2},
		{"signed for another id", altered, 401, 2},
		{"too old", signed(newSecret, "c", time.Now().Add(-6*time.Minute)), 401, 2},
		{"without a signature", httptest.NewRequest("POST", "/events", strings.NewReader(payload)), 401, 2},
		{"too large", httptest.NewRequest("POST", "/events", bytes.NewReader(make([]byte, maxEvent+1))), 413, 2},
		{"compressed", gzipped("e", compressed([]byte(payload))), 204, 3},
		{"too large once it is decompressed", gzipped("f", compressed(make([]byte, maxEvent+1))), 413, 3},
		{"not as compressed as it says", gzipped("g", []byte(payload)), 400, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			r.ServeHTTP(w, tc.req)
			if w.Code != tc.status || len(r.work) != tc.waiting {
				t.Errorf("got status %d, %d events in work; want %d, %d", w.Code, len(r.work), tc.status, tc.waiting)
			}
		})
	}

	for range 2 {
		<-r.work
	}
	if got := <-r.work; string(got) != payload {
		t.Errorf("compressed: got %q in work; want it decompressed", got)
	}

	t.Run("no room", func(t *testing.T) {
		r.work = make(chan []byte)
		w := httptest.NewRecorder()
		r.ServeHTTP(w, signed(newSecret, "d", time.Now()))
		if w.Code != 429 || w.Header().Get("Retry-After") != "1" {
			t.Errorf("got status %d, Retry-After %q; want 429, 1", w.Code, w.Header().Get("Retry-After"))
		}
		r.work = make(chan []byte, 1)
		w = httptest.NewRecorder()
		r.ServeHTTP(w, signed(newSecret, "d", time.Now()))
		if w.Code != 204 || len(r.work) != 1 {
			t.Errorf("sent again: got status %d, %d events in work; want 204, 1", w.Code, len(r.work))
		}
	})
}

const (
	printed = "01992f5e00c1-00000000000000000001 POST /api?a=1 from 203.0.113.7, 2 bytes \"{}\"\n"
	report  = `{"type":"io.opencommit.requestmirror.report.v1","data":{"sequence":"01992f5e00c1-00000000000000000001","seen":2,"delivered":1}}`
)

func TestPrintEvents(t *testing.T) {
	const reported = "01992f5e00c1-00000000000000000001 report: 2 requests seen, 1 events delivered\n"
	for _, tc := range []struct{ name, payload, text, json string }{
		{"an event", payload, printed, payload + "\n"},
		{"a report", report, reported, report + "\n"},
		{"a batch, which is one line of JSON", "[" + payload + "," + report + "]", printed + reported, "[" + payload + "," + report + "]\n"},
		{"an empty batch", "[]", "", "[]\n"},
		{"JSON on several lines", "{\n\t\"type\": \"a\\nb\"\r\n}", "   from \n", `{"type":"a\nb"}` + "\n"},
		{"something else", "hello", "not an event: invalid character 'h' looking for beginning of value\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var text, json strings.Builder
			printEvents(&text, []byte(tc.payload))
			printJSON(&json, []byte(tc.payload))
			if text.String() != tc.text || json.String() != tc.json {
				t.Errorf("got %q, %q; want %q, %q", text.String(), json.String(), tc.text, tc.json)
			}
		})
	}
}
