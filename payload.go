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
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

const (
	eventType  = "io.opencommit.requestmirror.request.v1"
	dataSchema = "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/request.v1.schema.json"

	formatCloudEvents = "cloudevents"
	formatJSON        = "json"
	formatRequest     = "request" // replay.go
	formatOTLP        = "otlp"    // otlp.go
)

// contentTypes of a delivery, by format.
var contentTypes = map[string]string{
	formatCloudEvents: "application/cloudevents+json; charset=utf-8",
	formatJSON:        "application/json",
	formatOTLP:        "application/json",
}

// batchType is that of several CloudEvents at once.
const batchType = "application/cloudevents-batch+json" // as it is: the SDK for Go compares the whole

// The wire format is CloudEvents 1.0 in structured JSON, with the names of
// OpenTelemetry's semantic conventions in data; docs/reference/request.v1.schema.json
// describes it. The worker (run) puts an event together of parts that are JSON already,
// of which these are the ones that all events have.
const (
	eventHead = `{"specversion":"1.0","id":"`

	// What lies between the id, subject (and path), time to the second, and the rest.
	originForm = `","source":%s,"type":"` + eventType + `","subject":"`

	// The numbers of an event, in two lines: its id, and microseconds with what comes up to
	// the sequence.
	numbersForm = idForm2 + "\n" + `%%06dZ","datacontenttype":"application/json","dataschema":"` + dataSchema + `","sequence":"%s-%%020d"` + "\n"

	// Between the events of a batch; a tab is nowhere else in it, nor is a line break.
	batchBreak = "\t,"

	// Lines of a header on the wire, and between the headers of several events.
	lineEnd   = "\r\n"
	headerEnd = "\n\r\n"

	secondForm   = "2006-01-02T15:04:05."
	timeForm     = secondForm + "000000Z"
	sequenceForm = "%s-%020d"

	// A UUIDv7 (RFC 9562, 5.7): milliseconds and 64 random bits. They need not be secret,
	// and Go's global generator is seeded by the system.
	idForm   = "%08x-%04x-7%03x-%04x-%012x"
	idForm2  = "%%08x-%%04x-7%%03x-%%04x-%%012x"
	idAt     = len(eventHead)
	idLength = 36
	spread   = 0x9e3779b97f4a7c15 // makes the last part of the id from all random bits

	// mostRemembered is how many bytes of contexts a worker remembers, some 700 connections of
	// them, and longest what one may take, so that a client who makes them long fills nothing.
	mostRemembered = 256 << 10
	longest        = 1 << 10
)

// plainBody is a body that is whole, and text.
type plainBody struct {
	Content   string `json:"content"`
	Size      int64  `json:"size"`
	Truncated bool   `json:"truncated"`
}

type wireBody struct {
	Content       *string `json:"content,omitempty"`
	ContentBase64 string  `json:"content_base64,omitempty"`
	Size          int64   `json:"size"`
	Truncated     bool    `json:"truncated"`
	Reason        string  `json:"truncated_reason,omitempty"`
}

// newID is an id for a time.
func newID(at time.Time) string { return idOf(at, rand.Uint64()) }

func idOf(at time.Time, random uint64) string {
	ms := at.UnixMilli()
	return fmt.Sprintf(idForm, ms>>16, ms&0xffff, random>>52, random>>38&0x3fff|0x8000, random*spread>>16)
}

// encodeJSON writes v and a line break. Every delivery gets a buffer of its own: the
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

func asJSON(v interface{}) string {
	buffer := &bytes.Buffer{}
	encodeJSON(buffer, v)
	return strings.TrimSuffix(buffer.String(), "\n")
}

// quote is a text as JSON, and escape what is between its quotes.
func quote(s string) string { return asJSON(s) }

func escape(s string) string {
	q := quote(s)
	return q[1 : len(q)-1]
}

// writeBody adds a body to the event, behind what is there.
func writeBody(buffer *bytes.Buffer, p *pipeline, c *capture, b *body, header http.Header) {
	start := buffer.Len()
	_, _ = buffer.WriteString(`,"body":`)
	encodeJSON(buffer, encodeBody(c, b, header))
	buffer.Truncate(buffer.Len() - 1) // the line break
	if n := buffer.Len() - start; b.shared && n > largePart {
		charged := 3 * int64(n) // with what it takes to write it
		c.encoded += charged
		atomic.AddInt64(&p.budget.held, charged)
	}
}

func encodeBody(c *capture, b *body, header http.Header) *wireBody {
	kept := content(b)
	w := &wireBody{Size: b.kept + b.beyond, Truncated: b.cut != "", Reason: b.cut}
	if fields := c.set.bodyFields; fields != nil && len(kept) > 0 {
		redacted, withheld := redactBody(fields, header, []byte(kept))
		if withheld {
			if b == c.body {
				c.withheld = true
			} else {
				c.hushed = true
			}
			return &wireBody{Size: w.Size, Truncated: true, Reason: cutContentType}
		}
		kept = string(redacted)
	}
	if w.Truncated {
		kept = wholeRunes(kept)
	}
	if w.Truncated && len(kept) == 0 {
		return w
	}
	if utf8.ValidString(kept) {
		w.Content = &kept
	} else {
		w.ContentBase64 = base64.StdEncoding.EncodeToString([]byte(kept))
	}
	return w
}

// wholeRunes takes the first bytes of a character off the end of a cut text. Bytes
// that are no text are left as they are.
func wholeRunes(content string) string {
	for i := 1; i < utf8.UTFMax && i <= len(content); i++ {
		start := len(content) - i
		if utf8.RuneStart(content[start]) {
			if !utf8.FullRuneInString(content[start:]) && utf8.ValidString(content[:start]) {
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

// notInStrings is what no String of a CloudEvent may have (CloudEvents 1.0, Type System),
// although a server reads it: control characters, and what is no character.
var notInStrings = regexp.MustCompile(`[\x{0}-\x{1f}\x{7f}-\x{9f}\x{fdd0}-\x{fdef}` + noncharacters() + `]`)

func noncharacters() string {
	list := ""
	for plane := 0; plane <= 16; plane++ {
		list += fmt.Sprintf(`\x{%x}\x{%x}`, plane<<16|0xfffe, plane<<16|0xffff)
	}
	return list
}

// subjectOf is the path as an event's subject, with escapes for what may not be there: a
// strict receiver would refuse the event, and with it all others of a batch.
func subjectOf(path string) string {
	return notInStrings.ReplaceAllStringFunc(path, url.PathEscape)
}

// versions are OpenTelemetry's network.protocol.version: from HTTP/2 on without a
// minor version.
var versions = map[string]string{"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2.0": "2", "HTTP/3.0": "3"}

// contextFields is what the requests of one connection to one host have in common: the
// rest of url, and network, client, server and tls.
func contextFields(set *settings, c *capture) string {
	peer, digits, _ := net.SplitHostPort(c.remote)
	port, _ := strconv.Atoi(digits)
	client := peer
	if set.trustForwardHeader {
		client = forwardedFor(c.header, peer)
	}
	version := versions[c.proto]
	if version == "" {
		version = strings.TrimPrefix(c.proto, "HTTP/") // net/http takes any 1.x
	}
	scheme := "http"
	secure := ""
	if c.secure != 0 {
		scheme = "https"
		secure = fmt.Sprintf(`,"tls":{"protocol":{"version":"%s"}}`, strings.TrimPrefix(tls.VersionName(c.secure), "TLS "))
	}
	server := ""
	if c.host != "" {
		server = serverField(scheme, c.host)
	}
	return fmt.Sprintf(`"scheme":"%s"},"network":{"protocol":{"name":"http","version":%s},"peer":{"address":%s,"port":%d}},`+
		`"client":{"address":%s}%s%s`, scheme, quote(version), quote(peer), port, quote(client), server, secure)
}

// ports are those of a server whom the client named without one.
var ports = map[string]int{"http": 80, "https": 443}

// serverField is the server that the client named.
func serverField(scheme, host string) string {
	port := ports[scheme]
	address, digits, err := net.SplitHostPort(host)
	if err != nil {
		address = strings.Trim(host, "[]")
	} else if n, err := strconv.ParseUint(digits, 10, 16); err == nil && n > 0 {
		port = int(n)
	}
	return fmt.Sprintf(`,"server":{"address":%s,"port":%d}`, quote(address), port)
}

// forwardedFor is whom the first proxy named, if the operator trusts that: the left
// end of X-Forwarded-For, else X-Real-Ip, else the peer.
func forwardedFor(h http.Header, peer string) string {
	first, _, _ := strings.Cut(h.Get("X-Forwarded-For"), ",")
	for _, address := range []string{first, h.Get("X-Real-Ip")} {
		address = strings.TrimSpace(address)
		if host, _, err := net.SplitHostPort(address); err == nil {
			address = host // some proxies name the port, too
		}
		if ip := net.ParseIP(strings.Trim(address, "[]")); ip != nil {
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
