package event

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// full is the event of the contract with every optional part.
const full = `{
  "specversion": "1.0",
  "id": "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913",
  "source": "//traefik-7c9d5/middlewares/default-request-mirror@kubernetescrd",
  "type": "io.opencommit.requestmirror.request.v1",
  "subject": "/api/comments",
  "time": "2026-09-18T09:41:07.184503Z",
  "datacontenttype": "application/json",
  "dataschema": "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/request.v1.schema.json",
  "sequence": "01992f5e00c1-00000000000000004711",
  "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
  "tracestate": "vendor=1",
  "sampledrate": 4,
  "data": {
    "http": {
      "request": {
        "method": "POST",
        "header": { "accept": ["application/json"], "authorization": ["REDACTED"], "x-a": ["1", "2"] },
        "cookie": { "visitor_id": ["v-82f1"] },
        "body": { "content": "{\"text\":\"<b>cheap</b>\"}", "size": 23, "truncated": false }
      },
      "response": { "status_code": 201, "header": { "set-cookie": ["REDACTED"] }, "body": { "content_base64": "/w==", "size": 9, "truncated": true, "truncated_reason": "limit" } }
    },
    "url": { "scheme": "https", "path": "/api/comments", "query": "lang=en&sig=REDACTED" },
    "network": { "protocol": { "name": "http", "version": "2" }, "peer": { "address": "10.42.0.9", "port": 51514 } },
    "client": { "address": "203.0.113.7" },
    "server": { "address": "blog.example.com", "port": 443 },
    "user_agent": { "original": "curl/8.7.1" },
    "tls": { "protocol": { "version": "1.3" } },
    "request_id": "r-1",
    "attributes": { "environment": "production" },
    "duration_ms": 1.5
  }
}`

func TestParseReadsEveryField(t *testing.T) {
	e, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"id", e.ID, "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913"},
		{"source", e.Source, "//traefik-7c9d5/middlewares/default-request-mirror@kubernetescrd"},
		{"type", e.Type, Type},
		{"subject", e.Subject, "/api/comments"},
		{"time", e.Time, time.Date(2026, 9, 18, 9, 41, 7, 184503000, time.UTC)},
		{"boot", e.Boot, "01992f5e00c1"},
		{"sequence", e.Sequence, int64(4711)},
		{"traceparent", e.Traceparent, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		{"tracestate", e.Tracestate, "vendor=1"},
		{"sampledrate", e.SampledRate, 4},
		{"method", e.Method, "POST"},
		{"header", strings.Join(e.Header["x-a"], ","), "1,2"},
		{"cookie", strings.Join(e.Cookie["visitor_id"], ","), "v-82f1"},
		{"body", string(e.Body.Content), `{"text":"<b>cheap</b>"}`},
		{"body is text", e.Body.Text, true},
		{"body size", e.Body.Size, int64(23)},
		{"scheme", e.Scheme, "https"},
		{"path", e.Path, "/api/comments"},
		{"query", e.Query, "lang=en&sig=REDACTED"},
		{"protocol", e.Proto, "2"},
		{"peer", e.Peer, Address{"10.42.0.9", 51514}},
		{"client", e.Client, "203.0.113.7"},
		{"server", e.Server, Address{"blog.example.com", 443}},
		{"user agent", e.UserAgent, "curl/8.7.1"},
		{"tls", e.TLS, "1.3"},
		{"request id", e.RequestID, "r-1"},
		{"attributes", e.Attributes["environment"], "production"},
		{"status", e.Response.Status, 201},
		{"response body", e.Response.Body.Content[0], byte(0xff)},
		{"response body reason", e.Response.Body.Reason, "limit"},
		{"duration", e.Duration, 1.5},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v; want %v", c.what, c.got, c.want)
		}
	}
}

// edit returns the full event with one member changed: path is dotted, a nil
// value deletes.
func edit(t *testing.T, path string, value any) []byte {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal([]byte(full), &root); err != nil {
		t.Fatal(err)
	}
	keys := strings.Split(path, ".")
	m := root
	for _, k := range keys[:len(keys)-1] {
		m = m[k].(map[string]any)
	}
	if last := keys[len(keys)-1]; value == nil {
		delete(m, last)
	} else {
		m[last] = value
	}
	raw, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type obj = map[string]any

const body1 = "data.http.request.body"

func TestParseAcceptsWhatTheContractAllows(t *testing.T) {
	for _, c := range []struct {
		name, path string
		value      any
	}{
		{"a request without a body", body1, nil},
		{"no response was captured", "data.http.response", nil},
		{"a status that cannot be told", "data.http.response", obj{}},
		{"nothing answered, with headers", "data.http.response", obj{"header": obj{}}},
		{"no optional extension", "tracestate", nil},
		{"bytes that are not text", body1, obj{"content_base64": "/w==", "size": 1, "truncated": false}},
		{"a body of unknown length that turned out empty", body1, obj{"size": 0, "truncated": false}},
		{"an empty text", body1, obj{"content": "", "size": 0, "truncated": false}},
		{"nothing kept because memory was spent", body1, obj{"size": 9, "truncated": true, "truncated_reason": "memory"}},
		{"nothing read by the backend", body1, obj{"size": 0, "truncated": true, "truncated_reason": "unread"}},
		{"not looked at, length announced", body1, obj{"size": 9, "truncated": true, "truncated_reason": "content-type"}},
		{"not looked at, length unknown", body1, obj{"truncated": true, "truncated_reason": "disabled"}},
		{"a request without any header", "data.http.request.header", obj{}},
		{"an extension method", "data.http.request.method", "M-SEARCH"},
		{"a method that only HTTP/2 lets through", "data.http.request.method", "GE T"},
		{"a minor version that a client made up", "data.network.protocol.version", "1.2"},
		{"a header name with every token character", "data.http.request.header", obj{"!#$%&'*+-.^_`|~09az": []string{""}}},
		{"an IPv6 peer on a unix socket, without port", "data.network.peer", obj{"address": "2001:db8::1"}},
		{"a request that names no host, as HTTP/1.0 may", "data.server", nil},
		{"time without a fraction", "time", "2026-09-18T09:41:07Z"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Parse(edit(t, c.path, c.value)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("an empty path has no subject", func(t *testing.T) {
		raw := edit(t, "data.url.path", "")
		if _, err := Parse([]byte(strings.Replace(string(raw), `"subject":"/api/comments",`, "", 1))); err != nil {
			t.Error(err)
		}
	})
}

func TestParseRejectsWhatTheContractForbids(t *testing.T) {
	for _, c := range []struct {
		name, path string
		value      any
	}{
		{"both contents", body1, obj{"content": "a", "content_base64": "YQ==", "size": 1, "truncated": false}},
		{"truncated without a reason", body1, obj{"content": "a", "size": 2, "truncated": true}},
		{"a reason without truncated", body1, obj{"content": "a", "size": 1, "truncated": false, "truncated_reason": "limit"}},
		{"an unknown reason", body1, obj{"content": "a", "size": 2, "truncated": true, "truncated_reason": "tired"}},
		{"a whole body that is not there", body1, obj{"size": 2, "truncated": false}},
		{"a whole body of another size", body1, obj{"content": "abc", "size": 2, "truncated": false}},
		{"more kept than seen", body1, obj{"content": "abc", "size": 2, "truncated": true, "truncated_reason": "limit"}},
		{"a body without size", body1, obj{"content": "a", "truncated": false}},
		{"a cut body without size", body1, obj{"content": "a", "truncated": true, "truncated_reason": "limit"}},
		{"a body without truncated", body1, obj{"content": "a", "size": 1}},
		{"a body that was disabled and kept", body1, obj{"content": "a", "size": 1, "truncated": true, "truncated_reason": "disabled"}},
		{"a body of the wrong content type and kept", body1, obj{"content": "a", "size": 1, "truncated": true, "truncated_reason": "content-type"}},
		{"a negative size", body1, obj{"content": "", "size": -1, "truncated": true, "truncated_reason": "limit"}},
		{"base64 of the URL alphabet", body1, obj{"content_base64": "_w==", "size": 1, "truncated": false}},
		{"base64 without padding", body1, obj{"content_base64": "/w", "size": 1, "truncated": false}},
		{"base64 of a whole text", body1, obj{"content_base64": "YQ==", "size": 1, "truncated": false}},
		{"an exported private field of the interpreter", body1 + ".Xsize", 1},
		{"an unknown member of data", "data.hostname", "x"},
		{"an unknown member of the request", "data.http.request.url", "/"},
		{"an unknown member of the envelope", "comexampleextension", "x"},
		{"an upper-case header name", "data.http.request.header", obj{"Accept": []string{"a"}}},
		{"a header name with a space", "data.http.request.header", obj{"a b": []string{"a"}}},
		{"the raw cookie header", "data.http.request.header", obj{"cookie": []string{"a=b"}}},
		{"a header value that is not a list", "data.http.request.header", obj{"accept": "a"}},
		{"a header without values", "data.http.request.header", obj{"accept": []string{}}},
		{"a null header list", "data.http.request.header", obj{"accept": json.RawMessage("null")}},
		{"no cookie at all but the member", "data.http.request.cookie", obj{}},
		{"no method", "data.http.request.method", nil},
		{"an empty method", "data.http.request.method", ""},
		{"no header member", "data.http.request.header", nil},
		{"no url", "data.url", nil},
		{"no client", "data.client", nil},
		{"a server without port", "data.server", obj{"address": "a"}},
		{"a port that is a string", "data.server.port", "443"},
		{"a port out of range", "data.server.port", 65536},
		{"a protocol version with its name", "data.network.protocol.version", "HTTP/1.1"},
		{"a TLS version with its name", "data.tls.protocol.version", "TLS 1.3"},
		{"an attribute that is not a string", "data.attributes.environment", 1},
		{"an id that is no UUID", "id", "req_1"},
		{"a UUID of version 4", "id", "01992f6a-7c4e-4d2b-9a51-6f0c2b7de913"},
		{"an upper-case UUID", "id", "01992F6A-7C4E-7D2B-9A51-6F0C2B7DE913"},
		{"a sequence without boot", "sequence", "00000000000000004711"},
		{"a sequence without padding", "sequence", "01992f5e00c1-4711"},
		{"no sequence", "sequence", nil},
		{"another specversion", "specversion", "0.3"},
		{"another type", "type", "io.opencommit.requestmirror.report.v1"},
		{"another schema", "dataschema", "https://example.com/schema.json"},
		{"a source without middleware", "source", "//host"},
		{"a time with an offset", "time", "2026-09-18T09:41:07+02:00"},
		{"a day that does not exist", "time", "2026-02-30T09:41:07Z"},
		{"a subject that is not the path", "subject", "/api"},
		{"no subject although there is a path", "subject", nil},
		{"an empty subject", "subject", ""},
		{"a forbidden traceparent version", "traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		{"a traceparent without trace id", "traceparent", "00-00000000000000000000000000000000-00f067aa0ba902b7-01"},
		{"a tracestate without traceparent", "traceparent", nil},
		{"a sample rate of a string", "sampledrate", "4"},
		{"a status code that is a string", "data.http.response.status_code", "200"},
		{"a status code that stands for none", "data.http.response.status_code", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if e, err := Parse(edit(t, c.path, c.value)); err == nil {
				t.Errorf("got an event %s; want an error", e.Raw)
			}
		})
	}
	for name, raw := range map[string]string{
		"nothing":                "",
		"two events":             full + full,
		"a name used twice":      strings.Replace(full, `"sequence":`, `"id": "01992f6a-7c4e-7d2b-9a51-6f0c2b7de913", "sequence":`, 1),
		"bytes that are no text": strings.Replace(full, "cheap", "\xff", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Parse([]byte(raw)); err == nil {
				t.Error("got an event; want an error")
			}
		})
	}
}

func TestFromRequestChecksTheContentType(t *testing.T) {
	for ct, ok := range map[string]bool{
		ContentType:                    true,
		"application/cloudevents+json": false, // readable, but not what the contract says
		"application/json":             false,
		"":                             false,
		"application/cloudevents-batch+json; charset=utf-8": false,
	} {
		h := http.Header{}
		h.Set("Content-Type", ct)
		e, err := FromRequest(h, []byte(full))
		if (err == nil) != ok || ok && e.Sequence != 4711 {
			t.Errorf("content type %q: got %v; want accepted: %t", ct, err, ok)
		}
	}
}

func TestVerify(t *testing.T) {
	const secret, other = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_plJ3nmyCDGBKInavdOK15jsl"
	sign := func(at time.Time, body string) http.Header {
		wh, err := standardwebhooks.NewWebhook(secret)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := wh.Sign("id-1", at, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		h := http.Header{}
		h.Set("webhook-id", "id-1")
		h.Set("webhook-timestamp", strconv.FormatInt(at.Unix(), 10))
		h.Set("webhook-signature", "v1,AAAA "+sig)
		return h
	}
	now := time.Now()
	for _, c := range []struct {
		name   string
		secret string
		at     time.Time
		body   string
		ok     bool
	}{
		{"a signature among others", secret, now, "body", true},
		{"another secret", other, now, "body", false},
		{"another body", secret, now, "b0dy", false},
		{"an old timestamp", secret, now.Add(-time.Hour), "body", false},
		{"a secret that is not base64", "whsec_%%%", now, "body", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := Verify(c.secret, sign(c.at, "body"), []byte(c.body)); (err == nil) != c.ok {
				t.Errorf("got %v; want accepted: %t", err, c.ok)
			}
		})
	}
	if Verify(secret, http.Header{}, nil) == nil {
		t.Error("got accepted; want an error without headers")
	}
}
