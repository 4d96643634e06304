package main

import (
	"bytes"
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
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	if err != nil {
		panic(err)
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(id + "." + timestamp + "." + payload))
	req := httptest.NewRequest("POST", "/events", strings.NewReader(payload))
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", timestamp)
	req.Header.Set("webhook-signature", "v1,AAAA v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)))
	return req
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
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			r.ServeHTTP(w, tc.req)
			if w.Code != tc.status || len(r.work) != tc.waiting {
				t.Errorf("got status %d, %d events in work; want %d, %d", w.Code, len(r.work), tc.status, tc.waiting)
			}
		})
	}

	t.Run("no room", func(t *testing.T) {
		r.work = make(chan []byte)
		w := httptest.NewRecorder()
		r.ServeHTTP(w, signed(newSecret, "d", time.Now()))
		if w.Code != 503 || w.Header().Get("Retry-After") != "1" {
			t.Errorf("got status %d, Retry-After %q; want 503, 1", w.Code, w.Header().Get("Retry-After"))
		}
		r.work = make(chan []byte, 1)
		w = httptest.NewRecorder()
		r.ServeHTTP(w, signed(newSecret, "d", time.Now()))
		if w.Code != 204 || len(r.work) != 1 {
			t.Errorf("sent again: got status %d, %d events in work; want 204, 1", w.Code, len(r.work))
		}
	})
}

func TestPrintEvent(t *testing.T) {
	var out strings.Builder
	printEvent(&out, []byte(payload))
	want := "01992f5e00c1-00000000000000000001 POST /api?a=1 from 203.0.113.7, 2 bytes \"{}\"\n"
	if out.String() != want {
		t.Errorf("got %q; want %q", out.String(), want)
	}
}
