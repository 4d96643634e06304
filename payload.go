package requestmirror

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
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
	Client     *wireAddress      `json:"client,omitempty"`
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
	Peer     *wireAddress `json:"peer,omitempty"`
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
func encode(p *pipeline, c *capture, d *delivery) []byte {
	set := c.set
	path, query := splitURI(c.uri)
	d.traceparent = traceparentOf(c.header)
	scheme, port := "http", 80
	if c.secure != nil {
		scheme, port = "https", 443
	}
	peer := addressOf(c.remote, 0)
	e := &wireEvent{
		SpecVersion: "1.0", ID: d.id, Source: p.set.source, Type: eventType, Subject: path,
		Time:            c.at.UTC().Format("2006-01-02T15:04:05.000000Z"),
		DataContentType: "application/json", DataSchema: dataSchema,
		Sequence:    fmt.Sprintf("%s-%020d", p.boot, c.sequence),
		Traceparent: d.traceparent,
	}
	e.Data.HTTP.Request.Method = c.method
	e.Data.HTTP.Request.Header = redactHeader(set, c.header)
	e.Data.HTTP.Request.Cookie = selectCookies(set, c.header)
	e.Data.URL = wireURL{Scheme: scheme, Path: path, Query: redactQuery(set, query)}
	e.Data.Network.Protocol = wireProtocol{Name: "http", Version: protocolVersion(c.proto)}
	e.Data.Network.Peer = peer
	e.Data.Client = clientOf(set, c.header, peer)
	e.Data.Server = addressOf(c.host, port)
	e.Data.Attributes = set.attributes
	// From the redacted header, so that redaction holds here, too.
	e.Data.RequestID = firstOf(e.Data.HTTP.Request.Header, set.requestID)
	if agent := firstOf(e.Data.HTTP.Request.Header, "user-agent"); agent != "" {
		e.Data.UserAgent = &wireUserAgent{Original: agent}
	}
	if c.secure != nil {
		e.Data.TLS = &wireTLS{Protocol: wireProtocol{Version: tlsVersion(c.secure.Version)}}
	}
	if c.body != nil {
		e.Data.HTTP.Request.Body = encodeBody(c.body)
	}
	return marshal(e)
}

// scratch buffers are where events are encoded before they are copied to their size.
var scratch = sync.Pool{New: newScratch}

func newScratch() interface{} { return new(bytes.Buffer) }

// keptScratch is the largest buffer that is used again.
const keptScratch = 64 << 10

// marshal returns a slice of its own for every event: the transport may read it
// after an answer came, so a buffer cannot be used for the next one.
func marshal(e *wireEvent) []byte {
	buffer := scratch.Get().(*bytes.Buffer)
	buffer.Reset()
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(e); err != nil {
		panic(err) // contained by the worker: internal_error
	}
	line := bytes.TrimRight(buffer.Bytes(), "\n")
	if buffer.Cap() > keptScratch {
		return line
	}
	payload := append([]byte(nil), line...)
	scratch.Put(buffer)
	return payload
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

// newID is a UUIDv7 (RFC 9562, 5.7) of the time of arrival.
func newID(at time.Time) string {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		panic(err) // contained by the worker: internal_error
	}
	stamp := strconv.FormatInt(at.UnixMilli()|1<<60, 16)[4:]
	tail := hex.EncodeToString(id)
	return stamp[:8] + "-" + stamp[8:] + "-7" + tail[:3] + "-" + string("89ab"[id[2]&3]) + tail[7:10] + "-" + tail[10:22]
}

// splitURI takes path and query from a request target as it was sent: in origin
// form, in absolute form (a proxy's) or "*".
func splitURI(uri string) (path, query string) {
	path = uri
	if i := strings.IndexByte(path, '?'); i >= 0 {
		query = path[i+1:]
		path = path[:i]
	}
	if i := strings.Index(path, "://"); i > 0 && path[0] != '/' {
		path = path[i+3:]
		if slash := strings.IndexByte(path, '/'); slash >= 0 {
			path = path[slash:]
		} else {
			path = "/"
		}
	}
	return path, query
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

// addressOf splits host:port; the given port stands for one that is missing or none.
func addressOf(hostport string, port int) *wireAddress {
	if hostport == "" {
		return nil
	}
	host, digits, err := net.SplitHostPort(hostport)
	if err != nil {
		return &wireAddress{Address: strings.Trim(hostport, "[]"), Port: port}
	}
	if n, err := strconv.ParseUint(digits, 10, 16); err == nil && n > 0 {
		port = int(n)
	}
	return &wireAddress{Address: host, Port: port}
}

// clientOf is the peer, or, if the operator trusts the header, whom the first proxy
// named: the left end of X-Forwarded-For, else X-Real-Ip.
func clientOf(set *settings, h http.Header, peer *wireAddress) *wireAddress {
	if set.trustForwardHeader {
		first := strings.Split(h.Get("X-Forwarded-For"), ",")[0]
		for _, address := range []string{first, h.Get("X-Real-Ip")} {
			if ip := net.ParseIP(strings.Trim(strings.TrimSpace(address), "[]")); ip != nil {
				return &wireAddress{Address: ip.String()}
			}
		}
	}
	if peer == nil {
		return nil
	}
	return &wireAddress{Address: peer.Address}
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

func firstOf(h map[string][]string, name string) string {
	if values := h[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}
