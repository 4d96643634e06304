package requestmirror

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

const (
	eventType  = "io.opencommit.requestmirror.request.v1"
	dataSchema = "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/request.v1.schema.json"

	formatCloudEvents = "cloudevents"
	formatJSON        = "json"
)

// contentTypes of a delivery, by format. The bytes are the same.
var contentTypes = map[string]string{
	formatCloudEvents: "application/cloudevents+json; charset=utf-8",
	formatJSON:        "application/json",
}

// The wire format: CloudEvents 1.0 in structured JSON, with the names of
// OpenTelemetry's semantic conventions in data. docs/reference/request.v1.schema.json
// describes it. Under Yaegi encoding/json sees unexported fields, ignores encoding
// methods of nested values and does not flatten embedded structs: hence plain
// structs of exported fields.
type wireEvent struct {
	SpecVersion     string   `json:"specversion"`
	ID              string   `json:"id"`
	Source          string   `json:"source"`
	Type            string   `json:"type"`
	Subject         string   `json:"subject,omitempty"`
	Time            string   `json:"time"`
	DataContentType string   `json:"datacontenttype"`
	DataSchema      string   `json:"dataschema"`
	Sequence        string   `json:"sequence"`
	Traceparent     string   `json:"traceparent,omitempty"`
	Data            wireData `json:"data"`
}

type wireData struct {
	HTTP       wireHTTP          `json:"http"`
	URL        wireURL           `json:"url"`
	Network    wireNetwork       `json:"network"`
	Client     *wireAddress      `json:"client"`
	Server     *wireAddress      `json:"server,omitempty"`
	UserAgent  *wireUserAgent    `json:"user_agent,omitempty"`
	TLS        *wireTLS          `json:"tls,omitempty"`
	RequestID  string            `json:"request_id,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
}

type wireHTTP struct {
	Request wireRequest `json:"request"`
}

type wireRequest struct {
	Method string              `json:"method"`
	Header map[string][]string `json:"header"`
	Cookie map[string][]string `json:"cookie,omitempty"`
	Body   *wireBody           `json:"body,omitempty"`
}

type wireBody struct {
	Content       *string `json:"content,omitempty"`
	ContentBase64 string  `json:"content_base64,omitempty"`
	Size          int64   `json:"size"`
	Truncated     bool    `json:"truncated"`
	Reason        string  `json:"truncated_reason,omitempty"`
}

type wireURL struct {
	Scheme string `json:"scheme"`
	Path   string `json:"path"`
	Query  string `json:"query,omitempty"`
}

type wireNetwork struct {
	Protocol wireProtocol `json:"protocol"`
	Peer     *wireAddress `json:"peer"`
}

type wireProtocol struct {
	Name    string `json:"name,omitempty"`
	Version string `json:"version"`
}

type wireAddress struct {
	Address string `json:"address"`
	Port    int    `json:"port,omitempty"`
}

type wireUserAgent struct {
	Original string `json:"original"`
}

type wireTLS struct {
	Protocol wireProtocol `json:"protocol"`
}

// encode makes the payload of an event. What was kept of the body is let go of.
//
// Each part that a request may not have is looked for here and made elsewhere: in
// Yaegi a call costs what all the branches in it would.
func encode(p *pipeline, c *capture, d *delivery) []byte {
	set := c.set
	path, query := splitURI(c.uri)
	if query != "" && (set.queryDefault != modeKeep || set.queryNames.MatchString(query)) {
		query = redactQuery(set, query)
	}
	header := redactHeader(set, c.header)
	peer := peerOf(c.remote)
	data := wireData{
		HTTP:       wireHTTP{Request: wireRequest{Method: c.method, Header: header}},
		URL:        wireURL{Scheme: "http", Path: path, Query: query},
		Network:    wireNetwork{Protocol: wireProtocol{Name: "http", Version: protocolVersion(c.proto)}, Peer: peer},
		Attributes: set.attributes,
	}
	port := 80
	if c.secure != nil {
		port = 443
		data.URL.Scheme = "https"
		data.TLS = &wireTLS{Protocol: wireProtocol{Version: tlsVersion(c.secure.Version)}}
	}
	data.Server = serverOf(c.host, port)
	data.Client = clientOf(set, c.header, peer)
	if set.cookieNames != nil {
		data.HTTP.Request.Cookie = selectCookies(set, c.header)
	}
	if c.body != nil {
		data.HTTP.Request.Body = encodeBody(c.body)
	}
	if c.header["Traceparent"] != nil {
		d.traceparent = traceparentOf(c.header)
	}
	// From the redacted header, so that redaction holds here, too.
	if id := header[set.requestID]; id != nil {
		data.RequestID = id[0]
	}
	if agent := header["user-agent"]; agent != nil {
		data.UserAgent = &wireUserAgent{Original: agent[0]}
	}
	return marshal(&wireEvent{
		SpecVersion: "1.0", ID: d.id, Source: p.set.source, Type: eventType, Subject: path,
		Time:            c.at.UTC().Format("2006-01-02T15:04:05.000000Z"),
		DataContentType: "application/json", DataSchema: dataSchema,
		Sequence:    fmt.Sprintf("%s-%020d", p.boot, c.sequence),
		Traceparent: d.traceparent,
		Data:        data,
	})
}

// marshal returns a slice of its own for every event: the transport may read it
// after an answer came, so it cannot be used for the next one.
func marshal(e *wireEvent) []byte {
	buffer := &bytes.Buffer{}
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		panic(err) // contained by the worker: internal_error
	}
	return buffer.Bytes()[:buffer.Len()-1]
}

func encodeBody(b *body) *wireBody {
	kept := content(b)
	w := &wireBody{Size: b.kept + b.beyond, Truncated: b.cut != "", Reason: b.cut}
	if w.Truncated {
		kept = wholeRunes(kept)
	}
	if w.Truncated && len(kept) == 0 {
		return w
	}
	if utf8.Valid(kept) {
		text := string(kept)
		w.Content = &text
	} else {
		w.ContentBase64 = base64.StdEncoding.EncodeToString(kept)
	}
	return w
}

// wholeRunes takes the first bytes of a character off the end of a cut text. Bytes
// that are no text are left as they are.
func wholeRunes(content []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(content); i++ {
		start := len(content) - i
		if utf8.RuneStart(content[start]) {
			if !utf8.FullRune(content[start:]) && utf8.Valid(content[:start]) {
				return content[:start]
			}
			break
		}
	}
	return content
}

// newID is a UUIDv7 (RFC 9562, 5.7) of the time of arrival. The random part need not
// be secret; Go's global generator is seeded by the system and does not repeat.
func newID(at time.Time) string {
	ms := at.UnixMilli()
	a := rand.Uint64()
	return fmt.Sprintf("%08x-%04x-7%03x-%04x-%012x", ms>>16, ms&0xffff, a>>52, 0x8000|a&0x3fff, rand.Uint64()>>16)
}

// splitURI takes path and query from a request target as it was sent: in origin
// form, in absolute form (a proxy's) or "*".
func splitURI(uri string) (path, query string) {
	path, query, _ = strings.Cut(uri, "?")
	if !strings.HasPrefix(path, "/") {
		path = pathOfAbsolute(path)
	}
	return path, query
}

func pathOfAbsolute(uri string) string {
	i := strings.Index(uri, "://")
	if i < 0 {
		return uri
	}
	uri = uri[i+3:]
	if slash := strings.IndexByte(uri, '/'); slash >= 0 {
		return uri[slash:]
	}
	return "/"
}

// protocolVersion is OpenTelemetry's: "1.1", and from HTTP/2 on without a minor version.
func protocolVersion(proto string) string {
	v := strings.TrimPrefix(proto, "HTTP/")
	if v == "2.0" || v == "3.0" {
		return v[:1]
	}
	return v
}

func tlsVersion(v uint16) string {
	return strings.TrimPrefix(tls.VersionName(v), "TLS ")
}

// peerOf is the other end of the connection, which the server wrote as host:port.
func peerOf(remote string) *wireAddress {
	address, digits, _ := net.SplitHostPort(remote)
	port, _ := strconv.Atoi(digits)
	return &wireAddress{Address: address, Port: port}
}

// serverOf is whom the client asked, with the port of the scheme if it named none.
func serverOf(host string, port int) *wireAddress {
	if host == "" {
		return nil
	}
	if strings.IndexByte(host, ':') >= 0 {
		return serverWithPort(host, port)
	}
	return &wireAddress{Address: host, Port: port}
}

func serverWithPort(host string, port int) *wireAddress {
	address, digits, err := net.SplitHostPort(host)
	if err != nil {
		address = strings.Trim(host, "[]")
	} else if n, err := strconv.ParseUint(digits, 10, 16); err == nil && n > 0 {
		port = int(n)
	}
	return &wireAddress{Address: address, Port: port}
}

// clientOf is the peer, or, if the operator trusts the header, whom the first proxy
// named: the left end of X-Forwarded-For, else X-Real-Ip.
func clientOf(set *settings, h http.Header, peer *wireAddress) *wireAddress {
	if set.trustForwardHeader {
		if forwarded := forwardedFor(h); forwarded != nil {
			return forwarded
		}
	}
	return &wireAddress{Address: peer.Address}
}

func forwardedFor(h http.Header) *wireAddress {
	first, _, _ := strings.Cut(h.Get("X-Forwarded-For"), ",")
	for _, address := range []string{first, h.Get("X-Real-Ip")} {
		if ip := net.ParseIP(strings.Trim(strings.TrimSpace(address), "[]")); ip != nil {
			return &wireAddress{Address: ip.String()}
		}
	}
	return nil
}

var traceparentForm = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)

// traceparentOf is the W3C trace context of the request; one that is not valid is
// as good as none (Trace Context, 3.2).
func traceparentOf(h http.Header) string {
	values := h["Traceparent"]
	if len(values) != 1 || !traceparentForm.MatchString(values[0]) {
		return ""
	}
	v := values[0]
	if v[:2] == "ff" || strings.Trim(v[3:35], "0") == "" || strings.Trim(v[36:52], "0") == "" {
		return ""
	}
	return v
}
