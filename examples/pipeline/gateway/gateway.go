// Package gateway takes deliveries of Request Mirror over HTTP and puts their events
// into a stream. It says 2xx when the stream has all events of a delivery, on a
// majority of its servers, and never before.
package gateway

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	requestType = "io.opencommit.requestmirror.request.v1"
	reportType  = "io.opencommit.requestmirror.report.v1"

	maxPayload = 8 << 20 // bytes of a delivery, compressed or not
	headers    = 1 << 10 // bytes that a message has on top of its event, at most

	// patience is how long the stream may take. It is shorter than the middleware's timeout,
	// as an answer that says when to come again is better than none.
	patience = 4 * time.Second
)

// Gateway is an http.Handler.
type Gateway struct {
	Webhooks   []*standardwebhooks.Webhook // one for each secret, of which there are two while they are rotated; none: what anybody sends is taken
	Append     func(context.Context, []*nats.Msg) error
	MaxMessage int // bytes that the stream takes as one message
	Room       *Room
}

// Room bounds what is under way: what comes in addition is told to come later.
type Room struct {
	Deliveries int
	Bytes      int64 // of their payloads, compressed and not

	mu         sync.Mutex
	deliveries int
	bytes      int64
}

func (r *Room) take(deliveries int, bytes int64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deliveries+deliveries > r.Deliveries || r.bytes+bytes > r.Bytes {
		return false
	}
	r.deliveries += deliveries
	r.bytes += bytes
	return true
}

func (r *Room) give(deliveries int, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deliveries -= deliveries
	r.bytes -= bytes
}

func (g *Gateway) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	status := g.take(w, req)
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		// All workers of the middleware wait so long, and its circuit stays closed.
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
}

// take takes all events of a delivery, or none, and returns the answer.
func (g *Gateway) take(w http.ResponseWriter, req *http.Request) int {
	size := req.ContentLength
	switch {
	case size < 0:
		return http.StatusLengthRequired
	case size > min(maxPayload, g.Room.Bytes):
		return http.StatusRequestEntityTooLarge // a batch is sent again in halves
	case !g.Room.take(1, size):
		return http.StatusTooManyRequests // before the body is read
	}
	defer g.Room.give(1, size)
	payload, err := io.ReadAll(http.MaxBytesReader(w, req.Body, size))
	if err != nil {
		return http.StatusRequestTimeout // the sender was cut off or too slow: it may try again
	}
	// The signature is over the bytes as they came: verify before decompressing and parsing.
	if !g.verified(payload, req.Header) {
		return http.StatusUnauthorized
	}
	switch req.Header.Get("Content-Encoding") {
	case "":
	case "gzip":
		unpacked := int64(lengthOf(payload))
		if unpacked > min(maxPayload, g.Room.Bytes-size) {
			return http.StatusRequestEntityTooLarge
		}
		if !g.Room.take(0, unpacked) {
			return http.StatusTooManyRequests
		}
		defer g.Room.give(0, unpacked)
		if payload, err = gunzip(payload, unpacked); err != nil {
			return http.StatusBadRequest
		}
	default:
		return http.StatusUnsupportedMediaType
	}
	messages, status := g.messages(req, payload)
	if len(messages) == 0 {
		return status
	}
	ctx, cancel := context.WithTimeout(req.Context(), patience)
	defer cancel()
	err = g.Append(ctx, messages)
	if status := statusOf(err); status != http.StatusNoContent {
		log.Printf("%d events not stored: %v", len(messages), err)
		return status
	}
	return http.StatusNoContent
}

// verified says whether a delivery was signed with one of the secrets, lately.
func (g *Gateway) verified(payload []byte, h http.Header) bool {
	for _, w := range g.Webhooks {
		if w.Verify(payload, h) == nil {
			return true
		}
	}
	return len(g.Webhooks) == 0
}

// lengthOf is what a gzip member says of itself in its last four bytes.
func lengthOf(packed []byte) uint32 {
	if len(packed) < 4 {
		return 0
	}
	return binary.LittleEndian.Uint32(packed[len(packed)-4:])
}

// gunzip decompresses to what was announced; what is longer or shorter is an error.
func gunzip(packed []byte, size int64) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	payload, err := io.ReadAll(io.LimitReader(z, size+1))
	if err == nil && int64(len(payload)) != size {
		err = errors.New("gzip: not the length that it says")
	}
	return payload, err
}

// messages are those of the events in a delivery, in order.
func (g *Gateway) messages(req *http.Request, payload []byte) ([]*nats.Msg, int) {
	events, err := read(req, payload)
	switch {
	case errors.Is(err, errKind):
		return nil, http.StatusUnsupportedMediaType
	case err != nil:
		return nil, http.StatusBadRequest // it would not get better by coming again
	case len(events) > stream.MaxBatch:
		return nil, http.StatusRequestEntityTooLarge
	}
	messages := make([]*nats.Msg, 0, len(events))
	for _, e := range events {
		m, err := message(e)
		if err != nil {
			return nil, http.StatusBadRequest
		}
		if len(m.Data)+headers > g.MaxMessage {
			return nil, http.StatusRequestEntityTooLarge
		}
		messages = append(messages, m)
	}
	return messages, http.StatusNoContent
}

var errKind = errors.New("neither a CloudEvent nor a batch of them")

// read returns the events of a delivery as the CloudEvents SDK sees them.
func read(req *http.Request, payload []byte) ([]event.Event, error) {
	req.Body = io.NopCloser(bytes.NewReader(payload))
	switch kind, _, _ := strings.Cut(req.Header.Get("Content-Type"), ";"); kind {
	case event.ApplicationCloudEventsBatchJSON:
		return cehttp.NewEventsFromHTTPRequest(req)
	case event.ApplicationCloudEventsJSON:
		e, err := cehttp.NewEventFromHTTPRequest(req)
		if err != nil {
			return nil, err
		}
		return []event.Event{*e}, nil
	}
	return nil, errKind
}

// an id is part of a subject where the verdict is.
var id = regexp.MustCompile(`^[0-9A-Za-z_-]{1,64}$`)

// message puts an event where its partition is.
func message(e event.Event) (*nats.Msg, error) {
	if err := e.Validate(); err != nil {
		return nil, err
	}
	if !id.MatchString(e.ID()) {
		return nil, fmt.Errorf("the id %q", e.ID())
	}
	subject, client := "", ""
	switch e.Type() {
	case reportType:
		subject = stream.Reports
	case requestType:
		var err error
		if client, err = clientOf(e.Data()); err != nil {
			return nil, err
		}
		subject = stream.Subject(stream.Partition(client))
	default:
		return nil, fmt.Errorf("the type %q", e.Type())
	}
	raw, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	return &nats.Msg{Subject: subject, Data: raw, Header: nats.Header{
		jetstream.MsgIDHeader: {e.ID()}, stream.ClientHeader: {client},
	}}, nil
}

// clientOf is a key for who sent a request: who can be told by a token, which the
// middleware has hashed, or else by the address. All events of a key stay in order.
func clientOf(data []byte) (string, error) {
	var d struct {
		Client struct{ Address string } `json:"client"`
		HTTP   struct {
			Request struct {
				Header map[string][]string `json:"header"`
			} `json:"request"`
		} `json:"http"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return "", err
	}
	who := "address " + d.Client.Address
	if token := d.HTTP.Request.Header["authorization"]; len(token) > 0 && strings.HasPrefix(token[0], "hmac-sha256:") {
		who = "token " + token[0]
	}
	sum := sha256.Sum256([]byte(who))
	return hex.EncodeToString(sum[:12]), nil
}

// statusOf says what the stream said. All that is not known better may be over soon.
func statusOf(err error) int {
	var api *jetstream.APIError
	switch {
	case err == nil:
		return http.StatusNoContent
	case errors.Is(err, nats.ErrMaxPayload) || stream.Is(err, 10054): // larger than the stream takes
		return http.StatusRequestEntityTooLarge
	case errors.As(err, &api) && api.Code == http.StatusTooManyRequests: // too many batches at once
		return http.StatusTooManyRequests
	}
	return http.StatusServiceUnavailable // no connection, no leader, no majority, no space
}
