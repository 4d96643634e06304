package requestmirror

import (
	"bytes"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// secretOf is a signing secret with the bytes of key.
func secretOf(key string) string { return "whsec_" + base64.StdEncoding.EncodeToString([]byte(key)) }

func TestSignIsStandardWebhooks(t *testing.T) {
	// The vector that the libraries of Standard Webhooks publish.
	set := settingsOf(t, opts{"signingSecrets": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"})
	got := sign(set.secrets, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`))
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

func TestAllSecretsSignDuringRotationTheFirstOneFirst(t *testing.T) {
	fresh := strings.Repeat("f", 24)
	old := strings.Repeat("o", 24)
	both := settingsOf(t, opts{"signingSecrets": []string{secretOf(fresh), secretOf(old)}}).secrets
	payload := []byte("payload")
	want := sign([][]byte{[]byte(fresh)}, "id", "1", payload) + " " + sign([][]byte{[]byte(old)}, "id", "1", payload)
	if got := sign(both, "id", "1", payload); got != want {
		t.Errorf("got %s; want %s", got, want)
	}
	if a, b := sign(both, "id", "1", payload), sign(both, "id", "2", payload); a == b {
		t.Error("got the same signature for another timestamp; want another")
	}
	if a, b := sign(both, "id", "1", payload), sign(both, "ix", "1", payload); a == b {
		t.Error("got the same signature for another id; want another")
	}
}

func TestPseudonym(t *testing.T) {
	a := pseudonym([]byte("key"), "value")
	// printf value | openssl dgst -sha256 -hmac key
	if want := "hmac-sha256:90fbfcf15e74a36b89dbdb2a721d9aecffdfdddc5c83e27f7592594f71932481"; a != want {
		t.Errorf("got %s; want %s", a, want)
	}
	if b := pseudonym([]byte("other"), "value"); a == b {
		t.Error("got the same pseudonym with another key; want another")
	}
	if !bytes.Equal(settingsOf(t, nil).hashKey, settingsOf(t, nil).hashKey) {
		t.Error("got another key for each router; want one for the process")
	}
	if string(settingsOf(t, opts{"hashKey": "k"}).hashKey) != "k" {
		t.Error("got another hashKey than the one given")
	}
}

// markedBy is a request that a sender with these options marks as its delivery.
func markedBy(t *testing.T, options opts, age time.Duration) *http.Request {
	set := settingsOf(t, options)
	s := newSender(set, set.targets[0])
	req := get("/")
	req.Header = newStamp(s, time.Now().Add(-age).Unix()).header.Clone()
	return req
}

func TestMarker(t *testing.T) {
	ours := secretOf(strings.Repeat("o", 24))
	retired := secretOf(strings.Repeat("r", 24))
	theirs := secretOf(strings.Repeat("t", 24))
	mirrorOf(t, answer(""), opts{"signingSecrets": []string{ours, retired}})
	for _, c := range []struct {
		name    string
		options opts
		age     time.Duration
		change  func(http.Header)
		want    bool
	}{
		{name: "a delivery without a secret counts in its process", want: true},
		{name: "a delivery of another replica with our secret counts", options: opts{"signingSecrets": ours}, want: true},
		{name: "a delivery of a replica that still signs with the old secret counts", options: opts{"signingSecrets": retired}, want: true},
		{name: "a delivery with a secret of others does not count", options: opts{"signingSecrets": theirs}},
		{name: "a marker of four minutes ago counts", age: 4 * time.Minute, want: true},
		{name: "a marker of six minutes ago does not", age: 6 * time.Minute},
		{name: "a marker from a clock that is four minutes ahead counts", age: -4 * time.Minute, want: true},
		{name: "a marker from the far future does not", age: -6 * time.Minute},
		{name: "a marker with another timestamp does not", change: func(h http.Header) {
			h.Set("Webhook-Timestamp", strconv.FormatInt(time.Now().Unix()-1, 10))
		}},
		{name: "a marker without timestamp does not", change: func(h http.Header) { h.Del("Webhook-Timestamp") }},
		{name: "a timestamp that is none does not", change: func(h http.Header) { h.Set("Webhook-Timestamp", "9223372036854775808") }},
		{name: "the lowest timestamp does not", change: func(h http.Header) { h.Set("Webhook-Timestamp", "-9223372036854775808") }},
		{name: "an empty marker does not", change: func(h http.Header) { h.Set(markerHeader, "") }},
		{name: "a cut marker does not", change: func(h http.Header) { h.Set(markerHeader, h.Get(markerHeader)[:20]) }},
		{name: "a marker made with an empty key does not", change: func(h http.Header) {
			h.Set(markerHeader, marker(nil, h.Get("Webhook-Timestamp")))
		}},
	} {
		req := markedBy(t, c.options, c.age)
		if c.change != nil {
			c.change(req.Header)
		}
		if got := isDelivery(req); got != c.want {
			t.Errorf("%s: got %v; want %v", c.name, got, c.want)
		}
	}
}
