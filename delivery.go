package requestmirror

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	version = "0.1.0"

	maxAnswer   = 64 << 10         // bytes of an answer that are read, and of its header
	idleTimeout = 30 * time.Second // of connections to the receiver
	goneFor     = 10 * time.Minute // how long 410 keeps events away from the receiver
)

// sender holds what all deliveries of a pipeline have in common.
type sender struct {
	transport http.RoundTripper // an *http.Transport, but for tests
	url       string
	host      string      // other than the URL's, if the operator wants that
	header    http.Header // cloned for each attempt
	secrets   [][]byte    // of signatures, nil for none
	markerKey []byte
	stamp     atomic.Value // *stamp of the current second; any worker may replace it
}

// stamp is the part of a delivery's header that changes by the second.
type stamp struct {
	second    int64
	timestamp string
	header    http.Header // cloned for each attempt
}

func newSender(set *settings) *sender {
	s := &sender{transport: newTransport(set), url: set.url.String(), markerKey: processKey,
		secrets: set.secrets, header: set.requestHeaders.Clone()}
	if len(set.secrets) > 0 {
		s.markerKey = set.secrets[0]
	}
	s.host = s.header.Get("Host")
	s.header.Del("Host")
	s.header.Set("Content-Type", contentTypes[set.format])
	if s.header.Get("User-Agent") == "" {
		s.header.Set("User-Agent", "requestmirror/"+version)
	}
	if set.basicAuth != "" && s.header.Get("Authorization") == "" {
		s.header.Set("Authorization", set.basicAuth)
	}
	s.stamp.Store(newStamp(s, 0))
	return s
}

func newStamp(s *sender, second int64) *stamp {
	timestamp := strconv.FormatInt(second, 10)
	header := s.header.Clone()
	header.Set("Webhook-Timestamp", timestamp)
	header.Set(markerHeader, marker(s.markerKey, timestamp))
	return &stamp{second: second, timestamp: timestamp, header: header}
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

// drain reads an answer to the end, so that the connection can be used again, but
// never more than maxAnswer and never longer than timeout. What it says changes nothing.
func drain(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
	_ = resp.Body.Close()
}

func judgeError(ctx context.Context, p *pipeline, err error) verdict {
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

// judge says what an answer other than a success means.
func judge(status int, header http.Header) verdict {
	v := verdict{reason: reasonRejected, detail: fmt.Sprintf("the receiver answered %d %s", status, http.StatusText(status))}
	// A switch without a tag looks at the first of several conditions only in Yaegi.
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		v.retry = true
	case http.StatusGone:
		v.reason = reasonGone
	case http.StatusRequestEntityTooLarge:
		v.reason = reasonTooLarge
	}
	if status >= 500 {
		v.reason = reasonServerError
		v.retry = true
	}
	if v.retry {
		v.after = retryAfter(header.Get("Retry-After"), time.Now())
	}
	return v
}
