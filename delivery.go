package requestmirror

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

const (
	version = "0.1.0"

	maxAnswer   = 64 << 10         // bytes of an answer that are read, and of its header
	idleTimeout = 30 * time.Second // of connections to the receiver
	goneFor     = 10 * time.Minute // how long 410 keeps events away from the receiver
)

// sender holds what all deliveries of a pipeline have in common; it never changes.
type sender struct {
	transport *http.Transport
	request   *http.Request // cloned for each attempt
	markerKey []byte
}

func newSender(set *settings) *sender {
	s := &sender{transport: newTransport(set), markerKey: processKey}
	if len(set.secrets) > 0 {
		s.markerKey = set.secrets[0]
	}
	header := set.requestHeaders.Clone()
	host := header.Get("Host")
	header.Del("Host")
	header.Set("Content-Type", contentTypes[set.format])
	if header.Get("User-Agent") == "" {
		header.Set("User-Agent", "requestmirror/"+version)
	}
	if set.basicAuth != "" && header.Get("Authorization") == "" {
		header.Set("Authorization", set.basicAuth)
	}
	s.request = &http.Request{
		Method: http.MethodPost, URL: set.url, Host: host, Header: header,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	return s
}

// newTransport makes the connections to the receiver. Proxies from the environment
// and transparent decompression are off: a delivery goes where watchURL says, and an
// answer is never larger than what came over the wire.
func newTransport(set *settings) *http.Transport {
	dialer := &net.Dialer{Timeout: set.timeout}
	return &http.Transport{
		// A literal, as Yaegi takes no method value of compiled code here.
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		},
		TLSClientConfig:        set.tls,
		TLSHandshakeTimeout:    set.timeout,
		MaxIdleConnsPerHost:    set.workers,
		MaxConnsPerHost:        set.workers,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxAnswer,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
	}
}

// delivery is one event on its way.
type delivery struct {
	id          string // the same over all attempts: the receiver's idempotency key
	traceparent string // empty if the request had none
	payload     []byte
	attempts    int
}

// verdict is what one attempt came to. An empty reason is delivered.
type verdict struct {
	reason string
	retry  bool          // whether another attempt may help
	after  time.Duration // the receiver's wish; zero if it has none
	detail string        // for the log
}

// attempt posts the event once. The transport is used without http.Client: redirects
// are answers like others, and there are no cookies.
func attempt(p *pipeline, d *delivery) verdict {
	ctx, cancel := context.WithTimeout(p.life, p.set.timeout)
	defer cancel()
	now := time.Now()
	timestamp := strconv.FormatInt(now.Unix(), 10)

	req := p.sender.request.WithContext(ctx)
	req.Header = p.sender.request.Header.Clone()
	// Set by index: the names are canonical, and a call is expensive in Yaegi.
	req.Header["Webhook-Id"] = []string{d.id}
	req.Header["Webhook-Timestamp"] = []string{timestamp}
	req.Header[markerHeader] = []string{marker(p.sender.markerKey, d.id, timestamp)}
	if len(p.set.secrets) > 0 {
		req.Header["Webhook-Signature"] = []string{sign(p.set.secrets, d.id, timestamp, d.payload)}
	}
	if d.traceparent != "" {
		req.Header["Traceparent"] = []string{d.traceparent}
	}
	req.ContentLength = int64(len(d.payload))
	req.Body = io.NopCloser(bytes.NewReader(d.payload))
	payload := d.payload
	// Lets the transport send again on a connection that the receiver had closed
	// meanwhile, which is no attempt.
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(payload)), nil }

	resp, err := p.sender.transport.RoundTrip(req)
	if err != nil {
		return judgeError(p, ctx, err)
	}
	// Read to the end, so that the connection can be used again, but never more than
	// maxAnswer and never longer than timeout. What the body says changes nothing.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close()
	return judge(resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), now))
}

func judgeError(p *pipeline, ctx context.Context, err error) verdict {
	if p.life.Err() != nil {
		return verdict{reason: reasonRetired, detail: "drainTimeout passed"}
	}
	v := verdict{reason: reasonNetwork, retry: true, detail: err.Error()}
	netErr, ok := err.(net.Error)
	if ctx.Err() != nil || ok && netErr.Timeout() {
		v.reason = reasonTimeout
		v.detail = "no answer within " + p.set.timeout.String()
	}
	return v
}

// judge says what an answer means.
func judge(status int, after time.Duration) verdict {
	if status >= 200 && status <= 299 {
		return verdict{}
	}
	v := verdict{reason: reasonRejected, detail: fmt.Sprintf("the receiver answered %d %s", status, http.StatusText(status))}
	switch {
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status == http.StatusTooManyRequests:
		v.retry = true
		v.after = after
	case status == http.StatusGone:
		v.reason = reasonGone
	case status == http.StatusRequestEntityTooLarge:
		v.reason = reasonTooLarge
	case status >= 500:
		v.reason = reasonServerError
		v.retry = true
		v.after = after
	}
	return v
}
