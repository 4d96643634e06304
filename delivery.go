package requestmirror

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
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
	base      *url.URL    // the same
	repeats   bool        // whether deliveries are requests themselves
	host      string      // other than the URL's, if the operator wants that
	header    http.Header // cloned for each attempt
	secrets   [][]byte    // of signatures, nil for none
	markerKey []byte
	stamp     atomic.Value      // *stamp of the current second; any worker may replace it
	files     map[string]string // what was in the files of secrets
}

// stamp is the part of a delivery's header that changes by the second.
type stamp struct {
	second    int64
	timestamp string
	header    http.Header // cloned for each attempt
}

func newSender(set *settings, to target) *sender {
	s := &sender{transport: newTransport(set), url: to.url.String(), markerKey: processKey, files: map[string]string{},
		secrets: set.secrets, header: set.requestHeaders.Clone()}
	for name, text := range set.files {
		s.files[name] = text // its own, as it is noted here when one changes
	}
	if len(set.secrets) > 0 {
		s.markerKey = set.secrets[0]
	}
	s.base = to.url
	s.repeats = set.format == formatRequest
	s.host = s.header.Get("Host")
	s.header.Del("Host")
	if to.basicAuth != "" && s.header.Get("Authorization") == "" {
		s.header.Set("Authorization", to.basicAuth)
	}
	if set.requestOrigin != "" {
		s.header.Set("Webhook-Request-Origin", set.requestOrigin) // CloudEvents' webhook specification, 2.1
	}
	if !s.repeats {
		introduce(s, set)
	}
	s.stamp.Store(newStamp(s, 0))
	return s
}

// introduce says what the deliveries of events are.
func introduce(s *sender, set *settings) {
	s.header.Set("Content-Type", contentTypes[set.format])
	if set.batchEvents > 1 && set.format == formatCloudEvents {
		s.header.Set("Content-Type", batchType)
	}
	if s.header.Get("User-Agent") == "" {
		s.header.Set("User-Agent", "requestmirror/"+version)
	}
}

func currentSender(p *pipeline) *sender {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sender
}

// freshSender is the sender with the stamp of the current second; another one, if the
// file of a secret has changed.
func freshSender(p *pipeline, second int64) *sender {
	p.renewal.Lock()
	defer p.renewal.Unlock()
	s := currentSender(p)
	if head, _ := s.stamp.Load().(*stamp); head.second == second {
		return s
	}
	s = renewed(p, s)
	s.stamp.Store(newStamp(s, second))
	return s
}

// renewed is the sender, or another one with the secrets that are in the files now, for
// which the whole configuration is read again. If something is wrong with them, the old
// sender stays.
func renewed(p *pipeline, old *sender) *sender {
	latest := latestSettings(p)
	news, err := changed(latest.files, old.files)
	if news == nil || err != nil {
		return old
	}
	for name, content := range news {
		old.files[name] = content // tried once
	}
	set, problems, _ := readSettings(latest.config, latest.name)
	text := strings.Join(problems, "\n  ")
	for _, to := range set.targets {
		if text == "" && to.written == p.to.written {
			s := newSender(set, to)
			replaceSender(p, s, set)
			closeIdle(old)
			old = s
		}
	}
	if text != "" {
		text = fmt.Sprintf("requestmirror %q: a secret has changed, but the old one stays in use:\n  %s", latest.name, text)
	}
	if isNews(latest.name+" "+p.to.key, text) {
		logError(text)
	}
	return old
}

func closeIdle(s *sender) {
	if t, ok := s.transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

func newStamp(s *sender, second int64) *stamp {
	timestamp := strconv.FormatInt(second, 10)
	header := s.header.Clone()
	mark := marker(s.markerKey, timestamp)
	if s.repeats {
		mark = timestamp + "," + mark // as webhook-timestamp may be the original's
	} else {
		header.Set("Webhook-Timestamp", timestamp)
	}
	header.Set(markerHeader, mark)
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
		TLSClientConfig:        set.tls.Clone(), // it is changed for HTTP/2
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
	v := verdict{reason: reasonNetwork, retry: true, detail: withoutQuotes(err.Error())}
	netErr, ok := err.(net.Error)
	if ctx.Err() != nil || ok && netErr.Timeout() {
		v.reason = reasonTimeout
		v.detail = "no answer within " + p.set.timeout.String()
	}
	return v
}

// mostDetail is how much of an error the log gets.
const mostDetail = 300

// withoutQuotes is an error's text up to where it has what the receiver sent, which net/http
// puts in quotes: some receivers send back what they got, be it a secret or a body.
func withoutQuotes(text string) string {
	told := text
	if i := strings.IndexByte(told, '"'); i >= 0 {
		told = strings.TrimRight(told[:i], " :=(")
	}
	if len(told) > mostDetail {
		told = strings.ToValidUTF8(told[:mostDetail], "")
	}
	if told == text {
		return text
	}
	return told + " …"
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
