package requestmirror

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
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

// The wire format is CloudEvents 1.0 in structured JSON, with the names of
// OpenTelemetry's semantic conventions in data; docs/reference/request.v1.schema.json
// describes it. An event is written in two strokes, because each field of a struct
// costs several allocations in Yaegi: what every event has by one Fprintf, and the
// rest of data, which may need escapes, by encoding/json. The worker does it (run).
const (
	// %% are the arguments of each event: id, subject, time, sequence, traceparent,
	// scheme, path, query, version, peer's address and port, client's address.
	eventForm = `{"specversion":"1.0","id":"%%s","source":%s,"type":"` + eventType + `","subject":"%%s","time":"%%s",` +
		`"datacontenttype":"application/json","dataschema":"` + dataSchema + `","sequence":"%s-%%020d"%%s,` +
		`"data":{"url":{"scheme":"%%s","path":"%%s"%%s},"network":{"protocol":{"name":"http","version":"%%s"},` +
		`"peer":{"address":"%%s","port":%%d}},"client":{"address":"%%s"}`
	timeForm = "2006-01-02T15:04:05.000000Z"
	idForm   = "%08x-%04x-7%03x-%04x-%012x" // time in ms, random
)

// wireData is the second stroke. Under Yaegi encoding/json sees unexported fields,
// ignores encoding methods of nested values and does not flatten embedded structs:
// hence plain structs of exported fields.
type wireData struct {
	HTTP       wireHTTP          `json:"http"`
	Server     *wireServer       `json:"server,omitempty"`
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

type wireServer struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
}

type wireUserAgent struct {
	Original string `json:"original"`
}

type wireTLS struct {
	Protocol wireProtocol `json:"protocol"`
}

type wireProtocol struct {
	Version string `json:"version"`
}

// formOf is the first stroke of a pipeline's events, for Fprintf.
func formOf(source, boot string) string {
	return fmt.Sprintf(eventForm, strings.ReplaceAll(quote(source), "%", "%%"), boot)
}

// secondStroke adds the rest of data to the first stroke, and returns the event.
func secondStroke(buffer *bytes.Buffer, data *wireData) []byte {
	joint := buffer.Len()
	encodeJSON(buffer, data)
	// The braces of the second stroke become those of the whole: the first one a
	// comma, and the line break after the last one the end of the event.
	payload := buffer.Bytes()
	payload[joint] = ','
	payload[len(payload)-1] = '}'
	return payload
}

// encodeJSON writes v and a line break. Every event gets a buffer of its own: the
// transport may read it after an answer came, so it cannot be used for the next one.
func encodeJSON(buffer *bytes.Buffer, v interface{}) {
	encoder := json.NewEncoder(buffer)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		panic(err) // contained by the worker: internal_error
	}
}

// oddBytes need an escape in JSON although strconv.CanBackquote lets them pass; it
// refuses all others that do, and what is not UTF-8.
const oddBytes = "\"\\\t"

// quote is a text as JSON, and escape what is between its quotes.
func quote(s string) string {
	buffer := &bytes.Buffer{}
	encodeJSON(buffer, s)
	return strings.TrimSuffix(buffer.String(), "\n")
}

func escape(s string) string {
	q := quote(s)
	return q[1 : len(q)-1]
}

// queryField is the query as it may leave.
func queryField(set *settings, query string) string {
	if set.queryDefault != modeKeep || set.queryNames.MatchString(query) {
		query = redactQuery(set, query)
	}
	if query == "" {
		return ""
	}
	if !strconv.CanBackquote(query) || strings.ContainsAny(query, oddBytes) {
		query = escape(query)
	}
	return `,"query":"` + query + `"`
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

// pathOfOther is the path of a request target that is not in origin form: absolute,
// as for a proxy, "*", or nothing, which is "/" (RFC 3986, 6.2.3).
func pathOfOther(target string) string {
	_, rest, absolute := strings.Cut(target, "://")
	if !absolute && target != "" {
		return target
	}
	if slash := strings.IndexByte(rest, '/'); slash >= 0 {
		return rest[slash:]
	}
	return "/"
}

// versions are OpenTelemetry's network.protocol.version: from HTTP/2 on without a
// minor version.
var versions = map[string]string{"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2", "HTTP/3.0": "3"}

func tlsOf(state *tls.ConnectionState) *wireTLS {
	return &wireTLS{wireProtocol{strings.TrimPrefix(tls.VersionName(state.Version), "TLS ")}}
}

// ports are those of a server whom the client named without one.
var ports = map[string]int{"http": 80, "https": 443}

// takePort moves the port from the address to where it belongs.
func takePort(server *wireServer) {
	address, digits, err := net.SplitHostPort(server.Address)
	if err != nil {
		address = strings.Trim(server.Address, "[]")
	} else if n, err := strconv.ParseUint(digits, 10, 16); err == nil && n > 0 {
		server.Port = int(n)
	}
	server.Address = address
}

// forwardedFor is whom the first proxy named, if the operator trusts that: the left
// end of X-Forwarded-For, else X-Real-Ip, else the peer.
func forwardedFor(h http.Header, peer string) string {
	first, _, _ := strings.Cut(h.Get("X-Forwarded-For"), ",")
	for _, address := range []string{first, h.Get("X-Real-Ip")} {
		if ip := net.ParseIP(strings.Trim(strings.TrimSpace(address), "[]")); ip != nil {
			return ip.String()
		}
	}
	return peer
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

func traceField(traceparent string) string {
	if traceparent == "" {
		return ""
	}
	return `,"traceparent":"` + traceparent + `"`
}
