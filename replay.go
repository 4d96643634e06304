package requestmirror

import (
	"context"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/url"
	"strings"
)

// With format request a delivery is no event but the request itself, sent once more: its
// method, path behind the receiver's, query, end-to-end header and body. What may leave
// is decided by the same options as in events, so credentials and cookies stay unless
// the operator lets them go. It carries nothing that the original may have, too, such as
// webhook-id; receivers tell copies by these:
const (
	mirroredFrom     = "X-Mirrored-From"     // source, as in events
	mirroredID       = "X-Mirrored-Id"       // the event's id, the same over all attempts
	mirroredSequence = "X-Mirrored-Sequence" // as in events, to see what is missing
)

// hopByHop are header fields of one connection (RFC 9110, 7.6.1, and those that ReverseProxy
// leaves out, too). Expect is not one, but asks whether to send a body, which in a copy is
// on its way already.
var hopByHop = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect",
}

// copyOf is the delivery that repeats a request.
func copyOf(c *capture) *delivery {
	if c.random == 0 {
		c.random = rand.Uint64() | 1
	}
	d := &delivery{id: idOf(c.at, c.random), payload: []byte{}}
	addEvent(d, c)
	d.traceparent = traceparentOf(c.header)
	if d.traceparent == "" {
		// All copies of a request are of one trace. Its sender does not know of it, but
		// who began it wants it recorded (W3C Trace Context, 3.2.2.5).
		d.traceparent = fmt.Sprintf("00-%016x%016x-%016x-01", c.random, c.random*spread, (c.random>>1)*spread|1)
	}
	return d
}

// repeat is the request of one attempt.
func repeat(ctx context.Context, p *pipeline, s *sender, head *stamp, d *delivery) (*http.Request, error) {
	c := d.events[0]
	req, err := http.NewRequestWithContext(ctx, c.method, s.url, nil)
	if err != nil {
		return nil, err
	}
	req.URL = behind(s.base, c)
	req.Header = headerOf(c)
	for name, values := range head.header {
		req.Header[name] = values
	}
	req.Header[mirroredFrom] = []string{p.set.source}
	req.Header[mirroredID] = []string{d.id}
	req.Header[mirroredSequence] = []string{fmt.Sprintf(sequenceForm, p.boot, c.sequence)}
	req.Header["Traceparent"] = []string{d.traceparent}
	if c.body != nil && c.body.kept > 0 {
		req.ContentLength = c.body.kept
		lendBody(req, c.body)
	}
	return req, nil
}

// lendBody gives the request its body, also for when the transport has to send it again
// on another connection.
func lendBody(req *http.Request, b *body) {
	parts := append(append([][]byte{}, b.full...), b.last)
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(readerOf(parts)), nil }
	req.Body = io.NopCloser(readerOf(parts))
}

// behind is the URL of a copy: path and query of the request, as they were sent, behind
// those of the receiver.
func behind(base *url.URL, c *capture) *url.URL {
	path, query, asked := strings.Cut(c.uri, "?")
	if path == "" || path[0] != '/' {
		path = pathOfOther(path)
	}
	if path == "*" { // OPTIONS for the whole server
		path = ""
	} else if path[0] != '/' {
		// Neither a path nor with one: its escapes were never looked at, and it must not go
		// on where the receiver's path ends.
		path = "/" + strings.ReplaceAll(path, "%", "%25")
	}
	to := *base
	raw := strings.TrimSuffix(base.EscapedPath(), "/") + path
	if !setPath(&to, raw) {
		// With bytes that no URI has, all of the path would be escaped anew, and %2F be lost.
		setPath(&to, oddInPaths.Replace(raw))
	}
	to.ForceQuery = to.ForceQuery || asked && query == ""
	query = strings.ReplaceAll(redactQuery(c.set, query), " ", "%20") // HTTP/2 lets it pass
	if to.RawQuery != "" && query != "" {
		query = "&" + query
	}
	to.RawQuery += query
	return &to
}

// setPath says whether the path will go out as it is.
func setPath(to *url.URL, raw string) bool {
	to.Path, _ = url.PathUnescape(raw) // the server has read it
	to.RawPath = raw
	return to.EscapedPath() == raw
}

// oddInPaths escapes the bytes that may not be in a path (RFC 3986, 3.3), and no others.
// Brackets may not, either, but are let pass everywhere.
var oddInPaths = escaperOf("/%-._~!$&'()*+,;=:@[]")

func escaperOf(punctuation string) *strings.Replacer {
	pairs := []string{}
	for i := 0; i < 256; i++ {
		b := byte(i)
		if !(b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte(punctuation, b) >= 0) {
			pairs = append(pairs, string([]byte{b}), fmt.Sprintf("%%%02X", i))
		}
	}
	return strings.NewReplacer(pairs...)
}

// headerOf is the header of a request as it may leave in a copy.
func headerOf(c *capture) http.Header {
	set := c.set
	h := c.header.Clone()
	for _, list := range h["Connection"] {
		for _, name := range strings.Split(list, ",") {
			h.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopByHop {
		delete(h, name)
	}
	if traceparentOf(c.header) == "" {
		delete(h, "Tracestate") // belongs to a trace that the copy is not of (W3C Trace Context, 3.3.1.5)
	}
	forward(h, c)
	cookies := h["Cookie"]
	for name, values := range h {
		mode := set.headerModes[http.CanonicalHeaderKey(name)]
		if mode == "" {
			mode = set.headerDefault
		}
		if mode == modeDrop {
			delete(h, name)
		} else if mode != modeKeep {
			h[name] = veilAll(set, mode, values)
		}
	}
	if kept := keptCookies(set, cookies); kept != "" {
		h["Cookie"] = []string{kept}
	}
	if _, ok := h["User-Agent"]; !ok {
		h["User-Agent"] = []string{""} // or the transport would make one up
	}
	return h
}

// keptCookies is the Cookie header with the cookies that cookieNames has, as they were
// sent.
func keptCookies(set *settings, lines []string) string {
	if set.cookieNames == nil {
		return ""
	}
	kept := []string{}
	for _, line := range lines {
		for _, pair := range strings.Split(line, ";") {
			pair = strings.TrimSpace(pair)
			name, _, _ := strings.Cut(pair, "=")
			if pair != "" && set.cookieNames.MatchString(name) {
				kept = append(kept, pair)
			}
		}
	}
	return strings.Join(kept, "; ")
}

// forward says whose request it was, as a reverse proxy does. X-Forwarded-For without a
// value is how a handler keeps a proxy from adding to it.
func forward(h http.Header, c *capture) {
	before, named := h["X-Forwarded-For"]
	if peer, _, err := net.SplitHostPort(c.remote); err == nil && !(named && before == nil) {
		h["X-Forwarded-For"] = []string{strings.Join(append(before, peer), ", ")}
	}
	if h["X-Forwarded-Host"] == nil && c.host != "" {
		h["X-Forwarded-Host"] = []string{c.host}
	}
	if h["X-Forwarded-Proto"] == nil {
		proto := "http"
		if c.secure != 0 {
			proto = "https"
		}
		h["X-Forwarded-Proto"] = []string{proto}
	}
}
