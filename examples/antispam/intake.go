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
	requestType = "io.opencommit.requestmirror.request.v1"

	maxPayload = 8 << 20         // bytes, compressed or not; maxBodySize, plus base64, plus headers; batch.maxSize
	maxWork    = 32              // deliveries that are read, wait or are judged: what bounds the memory
	tolerance  = 5 * time.Minute // how old a delivery may be: Standard Webhooks' value
	maxID      = 64              // bytes; those of the middleware have 36
)

type webhook = standardwebhooks.Webhook

// webhooksOf takes secrets as in the option signingSecrets: whsec_…,whsec_….
func webhooksOf(secrets string) (list []*webhook, err error) {
	for _, secret := range strings.FieldsFunc(secrets, func(c rune) bool { return c == ',' || c == ' ' }) {
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil || strings.TrimPrefix(secret, "whsec_") == "" {
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

	// Who puts something into room may put a delivery into queue, and never has to wait
	// for that: both have as many places. It is taken out when the delivery is judged.
	room  chan struct{}
	queue chan []request
}

func newIntake(now func() time.Time, webhooks []*webhook) *intake {
	return &intake{now: now, webhooks: webhooks, room: make(chan struct{}, maxWork), queue: make(chan []request, maxWork)}
}

// ServeHTTP answers 204 if all of a delivery is in work, or was before. If there is no
// room, it says so before it reads the body, and the middleware sends it again later.
func (in *intake) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	select {
	case in.room <- struct{}{}:
	default:
		w.Header().Set("Retry-After", "1") // all workers of the middleware wait so long
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	requests, status := in.read(w, req)
	if status == http.StatusNoContent && len(requests) > 0 {
		in.queue <- requests
	} else {
		<-in.room
	}
	w.WriteHeader(status)
}

// work judges deliveries, in the order in which they were taken.
func (in *intake) work(j *judge) {
	for requests := range in.queue {
		j.judge(requests)
		<-in.room
	}
}

// drain waits until all that was taken is judged. Nothing is taken any more.
func (in *intake) drain() {
	for range cap(in.room) {
		in.room <- struct{}{}
	}
	close(in.queue)
}

// read returns what is in a delivery, all of it or nothing, and the answer.
func (in *intake) read(w http.ResponseWriter, req *http.Request) ([]request, int) {
	switch mediaType, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type")); mediaType {
	case "application/cloudevents+json", "application/cloudevents-batch+json", "application/json":
	default:
		return nil, http.StatusUnsupportedMediaType
	}
	payload, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxPayload))
	if large := (*http.MaxBytesError)(nil); errors.As(err, &large) {
		return nil, http.StatusRequestEntityTooLarge // a batch is sent again in halves
	} else if err != nil {
		return nil, http.StatusRequestTimeout // the sender was cut off or too slow: it may try again
	}
	// The signature is over the bytes as they came: verify before decompressing and parsing.
	if len(in.webhooks) > 0 && !in.verified(payload, req.Header) {
		return nil, http.StatusUnauthorized
	}
	switch req.Header.Get("Content-Encoding") {
	case "":
	case "gzip":
		if payload, err = gunzip(payload); err != nil {
			return nil, http.StatusBadRequest
		}
		if len(payload) > maxPayload {
			return nil, http.StatusRequestEntityTooLarge
		}
	default:
		return nil, http.StatusUnsupportedMediaType
	}
	requests, err := parse(payload)
	if err != nil {
		return nil, http.StatusBadRequest // it would not get better by coming again
	}
	return requests, http.StatusNoContent
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

// request is what an event says of a request.
type request struct {
	id   string // of the event: the same when it comes again
	at   time.Time
	data data
}

// data is the part of an event's data that is looked at.
type data struct {
	HTTP struct {
		Request struct {
			Method string              `json:"method"`
			Header map[string][]string `json:"header"` // lower-case names
			Cookie map[string][]string `json:"cookie"`
			Body   *body               `json:"body"`
		} `json:"request"`
	} `json:"http"`
	URL       struct{ Path string }    `json:"url"`
	Client    struct{ Address string } `json:"client"`
	Server    struct{ Address string } `json:"server"`
	RequestID string                   `json:"request_id"`
}

type body struct {
	Content   string `json:"content"`
	Base64    string `json:"content_base64"`
	Truncated bool   `json:"truncated"`
	Reason    string `json:"truncated_reason"`
}

// parse returns the requests in a payload, which has one event or a batch.
func parse(payload []byte) ([]request, error) {
	type event struct {
		ID   string          `json:"id"`
		Type string          `json:"type"`
		Time time.Time       `json:"time"`
		Data json.RawMessage `json:"data"`
	}
	events := make([]event, 1)
	into := any(&events[0])
	if trimmed := bytes.TrimLeft(payload, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '[' {
		into = &events
	}
	if err := json.Unmarshal(payload, into); err != nil {
		return nil, err
	}
	requests := make([]request, 0, len(events))
	for _, e := range events {
		switch e.Type {
		case requestType:
		case "":
			return nil, errors.New("no type")
		default:
			continue // a report, or of another program: there is nothing to judge
		}
		r := request{id: e.ID, at: e.Time}
		if err := json.Unmarshal(e.Data, &r.data); err != nil {
			return nil, err
		}
		if e.ID == "" || len(e.ID) > maxID || e.Time.IsZero() || r.data.HTTP.Request.Method == "" {
			return nil, errors.New("no id, time or method")
		}
		requests = append(requests, r)
	}
	return requests, nil
}
