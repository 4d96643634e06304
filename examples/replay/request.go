package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// replayHeader has the id of the event. By it the target can tell a replay.
const replayHeader = "Requestmirror-Replay"

// data is the part of an event's data that a request is made of.
type data struct {
	HTTP struct {
		Request struct {
			Method string              `json:"method"`
			Header map[string][]string `json:"header"`
			Cookie map[string][]string `json:"cookie"`
			Body   *body               `json:"body"`
		} `json:"request"`
	} `json:"http"`
	URL    struct{ Scheme, Path, Query string } `json:"url"`
	Server struct {
		Address string `json:"address"`
		Port    int    `json:"port"`
	} `json:"server"`
}

type body struct {
	Content   string `json:"content"`
	Base64    []byte `json:"content_base64"`
	Size      *int64 `json:"size"`
	Truncated bool   `json:"truncated"`
	Reason    string `json:"truncated_reason"`
}

// notes are what is not the same as it was in a request.
type notes struct {
	withheld bool // values that were redacted or hashed are left out
	replaced bool // or replaced
	cut      bool // the body is not whole
	padded   bool // but as long as it was
}

// refusal is why a request is not sent. Each reason is counted by itself.
type refusal string

func (r refusal) Error() string { return string(r) }

// requestOf makes the request of an event. It returns a refusal if it cannot be sent.
func requestOf(e *event, o options) (*http.Request, notes, error) {
	var d data
	var n notes
	if err := json.Unmarshal(e.Data, &d); err != nil {
		return nil, n, err
	}
	r := d.HTTP.Request
	switch {
	case !isToken(r.Method):
		return nil, n, errors.New("no method")
	case r.Method == http.MethodConnect:
		return nil, n, refusal("CONNECT")
	}
	to := o.to
	if to == nil { // a dry run
		to = &url.URL{Scheme: "http", Host: "localhost"}
	}
	target, err := targetOf(to, d.URL.Path, d.URL.Query)
	if err != nil {
		return nil, n, err
	}
	req := &http.Request{Method: r.Method, URL: target, Host: to.Host, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: headerOf(r.Header, o.header, &n)}
	if cookie := cookieOf(r.Cookie); cookie != "" {
		req.Header["Cookie"] = []string{cookie}
	}
	req.Header[replayHeader] = []string{e.ID}
	if req.Header["User-Agent"] == nil {
		req.Header["User-Agent"] = []string{""} // or the transport would make one up
	}
	if o.keepHost && d.Server.Address != "" {
		req.Host = hostOf(d.URL.Scheme, d.Server.Address, d.Server.Port)
	}
	return req, n, giveBody(req, r.Body, o.truncated, &n)
}

// targetOf is the URL whose path and query go over the wire as they were sent by the
// client: undecoded, be they well-formed or not.
func targetOf(to *url.URL, path, query string) (*url.URL, error) {
	want := path
	if query != "" {
		want += "?" + query
	}
	if strings.IndexFunc(want, func(c rune) bool { return c <= ' ' || c == 0x7f }) >= 0 || !strings.HasPrefix(path, "/") && path != "*" {
		return nil, refusal("path that cannot be sent")
	}
	target := &url.URL{Scheme: to.Scheme, Host: to.Host, Opaque: path, RawQuery: query}
	if strings.HasPrefix(path, "//") { // which net/url would take for a host
		decoded, err := url.PathUnescape(path)
		if err != nil {
			return nil, refusal("path that cannot be sent")
		}
		target = &url.URL{Scheme: to.Scheme, Host: to.Host, Path: decoded, RawPath: path, RawQuery: query}
	}
	if target.RequestURI() != want {
		return nil, refusal("path that cannot be sent")
	}
	return target, nil
}

// leftOut are headers of one connection (RFC 9110, 7.6.1), and those that follow from
// the body and the target, or would make the target wait.
var leftOut = []string{
	"connection", "proxy-connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer",
	"transfer-encoding", "upgrade", "content-length", "expect", "host", "cookie", strings.ToLower(replayHeader),
}

// pseudonym is how the middleware writes a value that it has hashed.
var pseudonym = regexp.MustCompile(`^hmac-sha256:[0-9a-f]{64}$`)

func withheld(value string) bool { return value == "REDACTED" || pseudonym.MatchString(value) }

// headerOf returns the end-to-end header, with others for what was withheld.
func headerOf(recorded, others map[string][]string, n *notes) http.Header {
	out := slices.Clone(leftOut)
	for _, list := range recorded["connection"] {
		for _, name := range strings.Split(list, ",") {
			out = append(out, strings.ToLower(strings.TrimSpace(name)))
		}
	}
	h := http.Header{}
	for name, values := range recorded {
		if name = strings.ToLower(name); slices.Contains(out, name) {
			continue
		}
		kept := slices.DeleteFunc(slices.Clone(values), withheld)
		if len(kept) < len(values) {
			if other := others[name]; len(other) > 0 {
				kept = append(kept, other...)
				n.replaced = true
			} else {
				n.withheld = true
			}
		}
		if len(kept) > 0 {
			h[http.CanonicalHeaderKey(name)] = kept
		}
	}
	return h
}

// cookieOf has the cookies in the order of their names: how they were ordered is not known.
func cookieOf(cookies map[string][]string) string {
	var pairs []string
	for _, name := range sortedKeys(cookies) {
		for _, value := range cookies[name] {
			pairs = append(pairs, name+"="+value)
		}
	}
	return strings.Join(pairs, "; ")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// hostOf is the Host that names a server; the port of the scheme needs not be said.
func hostOf(scheme, address string, port int) string {
	if port == map[string]int{"http": 80, "https": 443}[scheme] || port == 0 {
		if strings.Contains(address, ":") {
			return "[" + address + "]"
		}
		return address
	}
	return net.JoinHostPort(address, strconv.Itoa(port))
}

// reasons why a body is not whole. Others are not counted by name: there would be no end.
var reasons = []string{"limit", "event", "memory", "aborted", "unread", "content-type", "disabled"}

// giveBody gives the request the body that it had.
func giveBody(req *http.Request, b *body, truncated string, n *notes) error {
	req.Body = http.NoBody
	if b == nil {
		return nil
	}
	content := []byte(b.Content)
	if len(b.Base64) > 0 {
		content = b.Base64
	}
	missing := int64(0)
	if b.Truncated {
		why := b.Reason
		if !slices.Contains(reasons, why) {
			why = "for another reason"
		}
		if truncated == skip {
			return refusal("body cut: " + why)
		}
		n.cut = true
		if truncated == pad {
			if b.Size == nil || *b.Size < int64(len(content)) {
				return refusal("body cut: " + why + ", size not known")
			}
			missing = *b.Size - int64(len(content))
			n.padded = true
		}
	}
	req.ContentLength = int64(len(content)) + missing
	if req.ContentLength == 0 {
		return nil
	}
	// For when the transport has to send it again, on another connection.
	req.GetBody = func() (io.ReadCloser, error) {
		return io.NopCloser(io.MultiReader(bytes.NewReader(content), io.LimitReader(spaces{}, missing))), nil
	}
	req.Body, _ = req.GetBody()
	return nil
}

// spaces are as many as anybody reads.
type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// printRequest prints a request as it would be sent, but for its body.
func printRequest(w io.Writer, at string, req *http.Request) {
	fmt.Fprintf(w, "# %s, body of %d bytes\n", at, req.ContentLength)
	fmt.Fprintf(w, "%s %s HTTP/1.1\nHost: %s\n", req.Method, printable(req.URL.RequestURI()), printable(req.Host))
	for _, name := range sortedKeys(req.Header) {
		for _, value := range req.Header[name] {
			if value != "" || name != "User-Agent" {
				fmt.Fprintf(w, "%s: %s\n", printable(name), printable(value))
			}
		}
	}
	fmt.Fprintln(w)
}

// printable shows what would move the cursor of a terminal.
func printable(s string) string {
	if strings.IndexFunc(s, func(c rune) bool { return !unicode.IsPrint(c) }) >= 0 {
		return strconv.Quote(s)
	}
	return s
}
