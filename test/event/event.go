// Package event reads deliveries of the plugin with code that is not the
// plugin's: the JSON Schema of the product, the CloudEvents SDK and the
// Standard Webhooks library. What they all accept, a receiver can rely on.
package event

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/cloudevents/sdk-go/v2/binding"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/santhosh-tekuri/jsonschema/v6"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const (
	// Type of the events that Parse reads.
	Type = "io.opencommit.requestmirror.request.v1"
	// SchemaURL is what every event names as its dataschema.
	SchemaURL = "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/request.v1.schema.json"
	// ContentType of a delivery in the default format.
	ContentType = "application/cloudevents+json; charset=utf-8"

	schemaFile = "docs/reference/request.v1.schema.json"
)

// Event is a valid event, flattened for tests.
type Event struct {
	ID          string
	Source      string
	Type        string
	Subject     string
	Time        time.Time
	Boot        string // the part of sequence before the dash
	Sequence    int64  // the number after it
	Traceparent string
	Tracestate  string
	SampledRate int // 0 when all requests are mirrored

	Method     string
	Header     map[string][]string // lower-case names
	Cookie     map[string][]string
	Body       *Body // nil for a request without one
	Scheme     string
	Path       string
	Query      string
	Proto      string // "1.1", "2"
	Peer       Address
	Client     string
	Server     Address
	UserAgent  string
	TLS        string // "1.3"; empty when the connection was not encrypted
	RequestID  string
	Attributes map[string]string
	Response   *Response // nil unless captured
	Duration   float64   // milliseconds; 0 without a response

	Raw []byte // as delivered, to look for what must not be in it
}

// Body is what was kept of a body.
type Body struct {
	Content   []byte
	Text      bool  // came as content, not as content_base64
	Kept      bool  // one of the two was there
	Size      int64 // -1 when it was not given
	Truncated bool
	Reason    string
}

// Response is the captured answer.
type Response struct {
	Status int                 // 0 when it was not given
	Header map[string][]string // lower-case names
	Body   *Body
}

// Address of one end of a connection.
type Address struct {
	Address string `json:"address"`
	Port    int    `json:"port"`
}

// body, message and data mirror the wire format. They are written from the
// schema, independently of the plugin's own types.
type body struct {
	Content   *string `json:"content"`
	Base64    *string `json:"content_base64"`
	Size      *int64  `json:"size"`
	Truncated bool    `json:"truncated"`
	Reason    string  `json:"truncated_reason"`
}

type data struct {
	HTTP struct {
		Request struct {
			Method string              `json:"method"`
			Header map[string][]string `json:"header"`
			Cookie map[string][]string `json:"cookie"`
			Body   *body               `json:"body"`
		} `json:"request"`
		Response *struct {
			Status int                 `json:"status_code"`
			Header map[string][]string `json:"header"`
			Body   *body               `json:"body"`
		} `json:"response"`
	} `json:"http"`
	URL struct {
		Scheme string `json:"scheme"`
		Path   string `json:"path"`
		Query  string `json:"query"`
	} `json:"url"`
	Network struct {
		Protocol struct {
			Version string `json:"version"`
		} `json:"protocol"`
		Peer Address `json:"peer"`
	} `json:"network"`
	Client    Address `json:"client"`
	Server    Address `json:"server"`
	UserAgent struct {
		Original string `json:"original"`
	} `json:"user_agent"`
	TLS struct {
		Protocol struct {
			Version string `json:"version"`
		} `json:"protocol"`
	} `json:"tls"`
	RequestID  string            `json:"request_id"`
	Attributes map[string]string `json:"attributes"`
	Duration   float64           `json:"duration_ms"`
}

var schema = compileOnce(schemaFile, SchemaURL)

// compileOnce compiles a schema when it is first asked for. Formats and content
// encodings are asserted, so that "date-time" and "base64" are rules and not only
// remarks.
func compileOnce(file, url string) func() (*jsonschema.Schema, error) {
	return sync.OnceValues(func() (*jsonschema.Schema, error) {
		raw, err := readUpwards(file)
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			return nil, err
		}
		c := jsonschema.NewCompiler()
		c.AssertFormat()
		c.AssertContent()
		// The URL is the $id: a schema with another one does not compile here.
		if err := c.AddResource(url, doc); err != nil {
			return nil, err
		}
		return c.Compile(url)
	})
}

// readUpwards finds a file of the repository from any package's directory.
func readUpwards(name string) ([]byte, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			return raw, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return nil, fmt.Errorf("%s is in no directory above: %w", name, err)
		}
		dir = parent
	}
}

// Parse reads one event in structured JSON, and only if its bytes are UTF-8,
// no name is used twice, the JSON Schema accepts it and the CloudEvents SDK
// finds a valid event in it.
func Parse(raw []byte) (Event, error) {
	e, err := parse(raw, schema)
	if err != nil {
		return Event{}, err
	}
	return flatten(e, raw)
}

func parse(raw []byte, schema func() (*jsonschema.Schema, error)) (ce.Event, error) {
	var e ce.Event
	if err := checkJSON(raw); err != nil {
		return e, err
	}
	s, err := schema()
	if err != nil {
		return e, fmt.Errorf("schema: %w", err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return e, err
	}
	if err := s.Validate(doc); err != nil {
		return e, fmt.Errorf("schema: %w", err)
	}
	if err := json.Unmarshal(raw, &e); err != nil {
		return e, fmt.Errorf("cloudevents: %w", err)
	}
	return e, nil
}

// FromRequest reads a delivery the way a receiver with the CloudEvents SDK
// does: its HTTP binding recognises the structured mode by the content type.
func FromRequest(h http.Header, raw []byte) (Event, error) {
	if got := h.Values("Content-Type"); len(got) != 1 || got[0] != ContentType {
		return Event{}, fmt.Errorf("content type: got %q; want %q", got, ContentType)
	}
	msg := cehttp.NewMessage(h, io.NopCloser(bytes.NewReader(raw)))
	if enc := msg.ReadEncoding(); enc != binding.EncodingStructured {
		return Event{}, fmt.Errorf("cloudevents: encoding %s, want structured", enc)
	}
	e, err := binding.ToEvent(context.Background(), msg)
	if err != nil {
		return Event{}, fmt.Errorf("cloudevents: %w", err)
	}
	parsed, err := Parse(raw)
	if err != nil {
		return Event{}, err
	}
	if e.ID() != parsed.ID || !bytes.Equal(compact(e.Data()), compact(parsed.data())) {
		return Event{}, errors.New("cloudevents: the binding and the format read two different events")
	}
	return parsed, nil
}

// Verify checks the signature as a receiver with the Standard Webhooks library
// does, including the age of the timestamp.
func Verify(secret string, h http.Header, body []byte) error {
	wh, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		return err
	}
	return wh.Verify(body, h)
}

func flatten(e ce.Event, raw []byte) (Event, error) {
	if err := e.Validate(); err != nil {
		return Event{}, fmt.Errorf("cloudevents: %w", err)
	}
	var d data
	if err := e.DataAs(&d); err != nil {
		return Event{}, fmt.Errorf("cloudevents: data: %w", err)
	}
	ext := e.Extensions()
	text := func(name string) string { s, _ := ext[name].(string); return s }
	boot, number, _ := strings.Cut(text("sequence"), "-")
	seq, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return Event{}, fmt.Errorf("sequence: %w", err)
	}
	rate, _ := ext["sampledrate"].(int32)
	if e.Subject() != d.URL.Path {
		return Event{}, fmt.Errorf("subject: got %q; want the path %q", e.Subject(), d.URL.Path)
	}
	out := Event{
		ID: e.ID(), Source: e.Source(), Type: e.Type(), Subject: e.Subject(), Time: e.Time(),
		Boot: boot, Sequence: seq, Traceparent: text("traceparent"), Tracestate: text("tracestate"), SampledRate: int(rate),
		Method: d.HTTP.Request.Method, Header: d.HTTP.Request.Header, Cookie: d.HTTP.Request.Cookie,
		Scheme: d.URL.Scheme, Path: d.URL.Path, Query: d.URL.Query,
		Proto: d.Network.Protocol.Version, Peer: d.Network.Peer, Client: d.Client.Address, Server: d.Server,
		UserAgent: d.UserAgent.Original, TLS: d.TLS.Protocol.Version,
		RequestID: d.RequestID, Attributes: d.Attributes, Duration: d.Duration, Raw: raw,
	}
	if out.Body, err = d.HTTP.Request.Body.read(); err != nil {
		return Event{}, err
	}
	if r := d.HTTP.Response; r != nil {
		out.Response = &Response{Status: r.Status, Header: r.Header}
		if out.Response.Body, err = r.Body.read(); err != nil {
			return Event{}, err
		}
	}
	return out, nil
}

func (b *body) read() (*Body, error) {
	if b == nil {
		return nil, nil
	}
	out := &Body{Size: -1, Truncated: b.Truncated, Reason: b.Reason, Kept: b.Content != nil || b.Base64 != nil}
	if b.Size != nil {
		out.Size = *b.Size
	}
	switch {
	case b.Content != nil:
		out.Content, out.Text = []byte(*b.Content), true
	case b.Base64 != nil:
		raw, err := base64.StdEncoding.DecodeString(*b.Base64)
		if err != nil {
			return nil, fmt.Errorf("content_base64: %w", err)
		}
		if utf8.Valid(raw) && !b.Truncated {
			return nil, errors.New("content_base64: is valid UTF-8 and belongs into content")
		}
		out.Content = raw
	}
	// What a schema can't say: a whole body has its size, a cut one is not
	// longer than what was seen. Fields that are blanked are of another length.
	blanked := bytes.Contains(out.Content, []byte("REDACTED"))
	if n := int64(len(out.Content)); !blanked && out.Size >= 0 && (n > out.Size || !out.Truncated && n != out.Size) {
		return nil, fmt.Errorf("body: %d bytes kept of %d, truncated %t", n, out.Size, out.Truncated)
	}
	return out, nil
}

// data is the data member as it came.
func (e Event) data() []byte {
	var m map[string]json.RawMessage
	if json.Unmarshal(e.Raw, &m) != nil {
		return nil
	}
	return m["data"]
}

func compact(raw []byte) []byte {
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return raw
	}
	return b.Bytes()
}

// checkJSON finds what decoders forgive: bytes that are not UTF-8 and a name
// that is used twice, where two readers see two different events.
func checkJSON(raw []byte) error {
	if !utf8.Valid(raw) {
		return errors.New("json: not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := checkValue(dec); err != nil {
		return fmt.Errorf("json: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return errors.New("json: more than one value")
	}
	return nil
}

func checkValue(dec *json.Decoder) error {
	tok, err := dec.Token()
	if err != nil {
		return err
	}
	delim, ok := tok.(json.Delim)
	if !ok {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			name, err := dec.Token()
			if err != nil {
				return err
			}
			s, _ := name.(string)
			if seen[s] {
				return fmt.Errorf("name %q is used twice", s)
			}
			seen[s] = true
		}
		if err := checkValue(dec); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}
