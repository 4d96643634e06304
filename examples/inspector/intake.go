package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	maxPayload = 8 << 20         // bytes, compressed or not; maxBodySize, plus base64, plus headers; batch.maxSize
	atOnce     = 16              // deliveries under way, so 128 MiB of payloads, and as much again decompressed
	tolerance  = 5 * time.Minute // how old a delivery may be: Standard Webhooks' value
	maxID      = 128             // bytes; those of the middleware have 36
)

type webhook = standardwebhooks.Webhook

// webhooksOf takes secrets as in the option signingSecrets: whsec_…,whsec_….
func webhooksOf(secrets string) (list []*webhook, err error) {
	for _, secret := range strings.FieldsFunc(secrets, func(c rune) bool { return c == ',' || c == ' ' }) {
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			// Not the cause, which has a part of the secret.
			return nil, errors.New("SIGNING_SECRETS: not whsec_ and base64")
		}
		list = append(list, w)
	}
	return list, nil
}

// intake takes deliveries: events, batches of them, and reports.
type intake struct {
	now      func() time.Time
	webhooks []*webhook // one for each secret, of which there are two while they are rotated; none: what anybody sends is taken
	judge    *judge
	journal  *journal
	room     chan struct{} // has one of each delivery under way
}

// What a signature came to. A delivery whose signature does not match is refused.
const (
	verified  = "verified"
	unchecked = "unchecked" // there is one, and no secret to check it with
	unsigned  = "unsigned"
)

// delivery is what came in one POST.
type delivery struct {
	at        time.Time
	signature string
	webhookID string
	encoding  string // Content-Encoding
	bytes     int    // as sent
	batch     bool
	events    []event
}

func (in *intake) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	// The middleware is no browser. A page of another site could make one post here.
	if req.Header.Get("Origin") != "" || req.Header.Get("Sec-Fetch-Site") != "" {
		http.Error(w, "deliveries from browsers are not taken", http.StatusForbidden)
		return
	}
	select {
	case in.room <- struct{}{}:
		defer func() { <-in.room }()
	default:
		w.Header().Set("Retry-After", "1") // all workers of the middleware wait so long
		in.refuse(w, http.StatusTooManyRequests, "busy")
		return
	}
	status, why := in.take(w, req)
	if why == "" {
		w.WriteHeader(status)
		return
	}
	in.refuse(w, status, why)
}

func (in *intake) refuse(w http.ResponseWriter, status int, why string) {
	in.journal.refuse(in.now(), why)
	http.Error(w, why, status)
}

// consent answers the handshake that the option requestOrigin asks for.
func consent(w http.ResponseWriter, req *http.Request) {
	if origin := req.Header.Get("WebHook-Request-Origin"); origin != "" {
		w.Header().Set("WebHook-Allowed-Origin", origin)
	}
	w.WriteHeader(http.StatusNoContent)
}

// take enters what is in a delivery, all of it or nothing, and returns the answer, with
// the reason if it is a refusal.
func (in *intake) take(w http.ResponseWriter, req *http.Request) (status int, why string) {
	switch mediaType, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type")); mediaType {
	case "application/cloudevents+json", "application/cloudevents-batch+json", "application/json":
	default:
		return http.StatusUnsupportedMediaType, "content type"
	}
	sent, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxPayload))
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return http.StatusRequestEntityTooLarge, "too large" // a batch is sent again in halves
	} else if err != nil {
		return http.StatusBadRequest, "incomplete"
	}
	d := delivery{
		at: in.now(), webhookID: cut(req.Header.Get(standardwebhooks.HeaderWebhookID), maxID), bytes: len(sent),
		encoding: cut(req.Header.Get("Content-Encoding"), maxShort),
	}
	// The signature is over the bytes as they came: verify before decompressing and parsing.
	switch signed := req.Header.Get(standardwebhooks.HeaderWebhookSignature) != ""; {
	case len(in.webhooks) > 0 && !in.verified(sent, req.Header):
		return http.StatusUnauthorized, "signature"
	case len(in.webhooks) > 0:
		d.signature = verified
	case signed:
		d.signature = unchecked
	default:
		d.signature = unsigned
	}
	payload := sent
	switch d.encoding {
	case "":
	case "gzip":
		if payload, err = gunzip(sent); err != nil {
			return http.StatusBadRequest, "gzip"
		}
		if len(payload) > maxPayload {
			return http.StatusRequestEntityTooLarge, "too large"
		}
	default:
		return http.StatusUnsupportedMediaType, "content encoding"
	}
	if d.events, d.batch, err = in.judge.read(payload); err != nil {
		return http.StatusBadRequest, "not an event"
	}
	in.journal.enter(d)
	return http.StatusNoContent, ""
}

// verified says whether a delivery was signed with one of the secrets, lately. The
// library would look at the time itself, but only at that of the system.
func (in *intake) verified(payload []byte, h http.Header) bool {
	seconds, err := strconv.ParseInt(h.Get(standardwebhooks.HeaderWebhookTimestamp), 10, 64)
	if age := in.now().Sub(time.Unix(seconds, 0)); err != nil || age > tolerance || age < -tolerance {
		return false
	}
	for _, w := range in.webhooks {
		if w.VerifyIgnoringTimestamp(payload, h) == nil {
			return true
		}
	}
	return false
}

// gunzip decompresses no more than it takes to see that it is too much.
func gunzip(payload []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, maxPayload+1))
}

// read returns the events of a payload, which has one or a batch.
func (j *judge) read(payload []byte) (events []event, batch bool, err error) {
	list := []json.RawMessage{payload}
	if trimmed := bytes.TrimLeft(payload, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '[' {
		batch = true
		if err := json.Unmarshal(payload, &list); err != nil {
			return nil, true, err
		}
	}
	for _, one := range list {
		e, err := j.event(one)
		if err != nil {
			return nil, batch, err
		}
		events = append(events, e)
	}
	return events, batch, nil
}
