package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	requestType = "io.opencommit.requestmirror.request.v1"
	reportType  = "io.opencommit.requestmirror.report.v1"

	maxPayload = 8 << 20         // bytes, compressed or not; maxBodySize, plus base64, plus headers; batch.maxSize
	atOnce     = 32              // deliveries under way, so 256 MiB of payloads, and as much again decompressed
	tolerance  = 5 * time.Minute // how old a delivery may be: Standard Webhooks' value
	maxID      = 64              // bytes; those of the middleware have 36
	maxName    = 100             // bytes of a client or a scope; what is longer is cut
	maxReasons = 100             // of a report; there are not twenty
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
	reader   *reader
	book     *book
	room     chan struct{} // has one of each delivery under way
}

func (in *intake) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	select {
	case in.room <- struct{}{}:
		defer func() { <-in.room }()
	default:
		w.Header().Set("Retry-After", "1") // all workers of the middleware wait so long
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	w.WriteHeader(in.take(w, req))
}

// take counts what is in a delivery, all of it or nothing, and returns the answer.
func (in *intake) take(w http.ResponseWriter, req *http.Request) int {
	switch mediaType, _, _ := mime.ParseMediaType(req.Header.Get("Content-Type")); mediaType {
	case "application/cloudevents+json", "application/cloudevents-batch+json", "application/json":
	default:
		return http.StatusUnsupportedMediaType
	}
	payload, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxPayload))
	if err != nil {
		return http.StatusRequestEntityTooLarge // a batch is sent again in halves
	}
	// The signature is over the bytes as they came: verify before decompressing and parsing.
	if len(in.webhooks) > 0 && !in.verified(payload, req.Header) {
		return http.StatusUnauthorized
	}
	switch req.Header.Get("Content-Encoding") {
	case "":
	case "gzip":
		if payload, err = gunzip(payload); err != nil {
			return http.StatusBadRequest
		}
		if len(payload) > maxPayload {
			return http.StatusRequestEntityTooLarge
		}
	default:
		return http.StatusUnsupportedMediaType
	}
	entries, err := in.reader.read(payload)
	if err != nil {
		return http.StatusBadRequest
	}
	in.book.enter(in.now(), entries)
	return http.StatusNoContent
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

// entry is what is known of an event: a request, or else a report.
type entry struct {
	id     string
	at     time.Time
	client who
	scope  string
	weight uint64 // requests that it stands for
	report *report
}

// report is what a middleware says of one pipeline, with counts since it began.
type report struct {
	stream stream
	since  time.Time
	counts map[string]uint64 // by name; those of lost events begin with lostPrefix
}

const lostPrefix = "lost: "

// reader makes entries of payloads. It decides what of an event is looked at at all:
// nothing else is ever kept.
type reader struct {
	header string // lower-case name
	depth  int
}

func newReader(header string, depth int) *reader {
	return &reader{header: strings.ToLower(header), depth: depth}
}

// event is an event of any type.
type event struct {
	ID          string          `json:"id"`
	Type        string          `json:"type"`
	Source      string          `json:"source"`
	Time        time.Time       `json:"time"`
	SampledRate int32           `json:"sampledrate"`
	Data        json.RawMessage `json:"data"`
}

// read returns the entries of a payload, which has one event or a batch.
func (r *reader) read(payload []byte) ([]entry, error) {
	events := make([]event, 1)
	into := any(&events[0])
	if trimmed := bytes.TrimLeft(payload, " \t\r\n"); len(trimmed) > 0 && trimmed[0] == '[' {
		into = &events
	}
	if err := json.Unmarshal(payload, into); err != nil {
		return nil, err
	}
	entries := make([]entry, 0, len(events))
	for _, e := range events {
		var one entry
		var err error
		switch e.Type {
		case requestType:
			one, err = r.request(e)
		case reportType:
			one, err = readReport(e)
		case "":
			err = errors.New("no type")
		default:
			continue // of another program
		}
		if err == nil && (e.ID == "" || len(e.ID) > maxID || e.Time.IsZero()) {
			err = errors.New("no id or time")
		}
		if err != nil {
			return nil, err
		}
		one.id, one.at = e.ID, e.Time
		entries = append(entries, one)
	}
	return entries, nil
}

func (r *reader) request(e event) (entry, error) {
	var data struct {
		HTTP struct {
			Request struct {
				Method string              `json:"method"`
				Header map[string][]string `json:"header"`
			} `json:"request"`
		} `json:"http"`
		URL    struct{ Path string }    `json:"url"`
		Client struct{ Address string } `json:"client"`
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return entry{}, err
	}
	if data.HTTP.Request.Method == "" || e.SampledRate < 0 {
		return entry{}, errors.New("no method, or a negative rate")
	}
	return entry{
		client: clientOf(data.HTTP.Request.Header[r.header], data.Client.Address),
		scope:  scopeOf(data.HTTP.Request.Method, data.URL.Path, r.depth),
		weight: uint64(max(1, e.SampledRate)),
	}, nil
}

// pseudonym is how the mode hash writes a value. Nothing else of that header is taken:
// it could be a credential that somebody has chosen to keep.
var pseudonym = regexp.MustCompile(`^hmac-sha256:[0-9a-f]{64}$`)

func clientOf(values []string, address string) who {
	for _, value := range values {
		if pseudonym.MatchString(value) {
			return who{byPseudonym, value}
		}
	}
	return who{byAddress, cut(address)}
}

// scopeOf is the method and the first segments of the path, as they were sent.
func scopeOf(method, path string, depth int) string {
	segments := strings.SplitN(strings.TrimPrefix(path, "/"), "/", depth+1)
	first := strings.Join(segments[:min(depth, len(segments))], "/")
	return cut(method + " /" + strings.TrimSuffix(first, "/"))
}

// cut shortens a name, at the end of a character.
func cut(name string) string {
	if len(name) <= maxName {
		return name
	}
	return strings.ToValidUTF8(name[:maxName], "") + "…"
}

func readReport(e event) (entry, error) {
	type count struct {
		Reason string `json:"reason"`
		Count  uint64 `json:"count"`
	}
	var data struct {
		Since      time.Time `json:"since"`
		Sequence   string    `json:"sequence"`
		Seen       uint64    `json:"seen"`
		Filtered   uint64    `json:"filtered"`
		SampledOut uint64    `json:"sampled_out"`
		Dropped    []count   `json:"dropped"`
		Failed     []count   `json:"failed"`
	}
	if err := json.Unmarshal(e.Data, &data); err != nil {
		return entry{}, err
	}
	boot, _, found := strings.Cut(data.Sequence, "-")
	if !found || len(data.Dropped)+len(data.Failed) > maxReasons {
		return entry{}, fmt.Errorf("sequence %.40q, or too many reasons", data.Sequence)
	}
	r := &report{
		stream: stream{cut(e.Source), cut(boot)},
		since:  data.Since,
		counts: map[string]uint64{"seen": data.Seen, "filtered": data.Filtered, "sampled out": data.SampledOut},
	}
	for _, lost := range append(data.Dropped, data.Failed...) {
		r.counts[lostPrefix+cut(lost.Reason)] += lost.Count
	}
	return entry{report: r}, nil
}
