//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

// inJSON is what a text becomes in JSON: each byte that is no UTF-8 is replaced.
func inJSON(s string) string { return string([]rune(s)) }

// FuzzBody captures, encodes and decodes a body: the backend must have got every byte
// of it, and the event what was kept, with its size.
func FuzzBody(f *testing.F) {
	for _, size := range bodySizes {
		if size < 1<<17 {
			f.Add(textOf(size), true, uint32(1<<20), uint16(4096), uint32(1<<20))
			f.Add(textOf(size), false, uint32(firstPart+1), uint16(100), uint32(1<<20))
		}
	}
	for _, text := range []string{"", "a", "é€😀", "\xff\xfe", "a\xe2\x82", "\x00\x1f\"\\\u2028</script>", "\ufeff{}"} {
		for limit := range uint32(5) {
			f.Add([]byte(text), true, limit, uint16(1), uint32(1<<20))
			f.Add([]byte(text), false, limit, uint16(2), uint32(2))
		}
	}
	f.Fuzz(func(t *testing.T, sent []byte, sized bool, limit uint32, step uint16, read uint32) {
		if sized && len(sent) == 0 {
			return // no body
		}
		p := stillPipeline(t, opts{"maxBodySize": limit % (2 << 20), "memoryLimit": "8Mi"})
		length := int64(-1)
		if sized {
			length = int64(len(sent))
		}
		var seen []byte
		c := captured(t, p, uploadOf(&upload{rest: sent, step: int(step) + 1, end: io.EOF}, length), http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			seen, _ = io.ReadAll(io.LimitReader(req.Body, int64(read)))
		}))
		want := sent[:min(len(sent), int(read))]
		if !bytes.Equal(seen, want) {
			t.Fatalf("the backend got %d bytes; want %d", len(seen), len(want))
		}
		w := eventFrom(t, p, c).Data.HTTP.Request.Body
		if w == nil || w.Size != int64(len(seen)) {
			t.Fatalf("got body %+v; want size %d", w, len(seen))
		}
		content := contentOf(t, w)
		kept := min(len(seen), int(limit%(2<<20)))
		if !bytes.HasPrefix(seen, content) || len(content) > kept || len(content) < kept-utf8.UTFMax+1 {
			t.Fatalf("got %d bytes of content; want the first %d, to a character", len(content), kept)
		}
		if w.Content != nil && !utf8.ValidString(*w.Content) {
			t.Fatal("got content that is no UTF-8")
		}
		whole := len(content) == len(sent) && (sized || int(read) > len(sent))
		if whole == w.Truncated {
			t.Fatalf("got %d of %d bytes, %d read, truncated %v", len(content), len(sent), len(seen), w.Truncated)
		}
		if held := bytesHeld(p); held != 0 {
			t.Fatalf("got %d bytes held; want 0", held)
		}
	})
}

// FuzzEvent builds events of whatever a client, or another middleware, may have put
// into a request. They must be valid JSON and say the same.
func FuzzEvent(f *testing.F) {
	f.Add("GET", "/a?b", "example.com", "10.0.0.1:5", "X-A", "b", "HTTP/1.1")
	f.Add("POST", "/\xff\"\\\n%s%!d(MISSING)?\x00", "a\"b:1", "a\"b:1", "X-\xff", "\xff\"\\", "HTTP/2.0")
	f.Add("", "", "", "", "", "", "")
	f.Add("PRI", "*", "[::1]:8443", "[fe80::1%\"eth0]:9", "User-Agent", "\u2028<>&", "HTTP/9.9")
	f.Add("GET", "http://h/p?q", ":", "@", "X-Request-Id", "\x7f", "http")
	f.Fuzz(func(t *testing.T, method, uri, host, remote, name, value, proto string) {
		p := stillPipeline(t, opts{"trustForwardHeader": true})
		header := http.Header{"X-Forwarded-For": {value}, "Traceparent": {value}}
		header[name] = []string{value, ""}
		e := eventFrom(t, p, &capture{set: p.set, method: method, uri: uri, host: host, remote: remote, proto: proto, header: header})
		request := e.Data.HTTP.Request
		if request.Method != inJSON(method) {
			t.Errorf("got method %q; want %q", request.Method, method)
		}
		if e.Subject == "" || e.Subject != subjectOf(e.Data.URL.Path) {
			t.Errorf("got subject %q, path %q; want the same, but for what is escaped, and not empty", e.Subject, e.Data.URL.Path)
		}
		for _, r := range e.Subject {
			if unicode.IsControl(r) || r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe {
				t.Errorf("got subject %q; want nothing in it that a String of a CloudEvent cannot have", e.Subject)
			}
		}
		if strings.HasPrefix(uri, "/") {
			path, _, _ := strings.Cut(uri, "?")
			if e.Data.URL.Path != inJSON(path) {
				t.Errorf("got path %q; want %q", e.Data.URL.Path, path)
			}
		}
		if canonical := http.CanonicalHeaderKey(name); p.set.headerModes[canonical] == "" && canonical != "X-Forwarded-For" && canonical != "Traceparent" {
			if got, want := request.Header[inJSON(strings.ToLower(name))], []string{inJSON(value), ""}; !reflect.DeepEqual(got, want) {
				t.Errorf("header %q: got %q; want %q", name, got, want)
			}
		}
		if e.Data.Server != nil && (e.Data.Server.Port == nil || *e.Data.Server.Port < 1 || *e.Data.Server.Port > 65535) {
			t.Errorf("Host %q: got server %+v; want a port", host, e.Data.Server)
		}
	})
}

// FuzzQuery compares with a second, naive reading of which values are secrets.
func FuzzQuery(f *testing.F) {
	for _, c := range queryCases {
		f.Add(c.query)
	}
	f.Add("a=%&sig=x;s%49G=%26;=sig;sig")
	redacting := stillPipeline(f, nil)
	dropping := stillPipeline(f, opts{"queryParameters.names": map[string]string{"sig": "drop"}})
	f.Fuzz(func(t *testing.T, query string) {
		if !isASCII(query) {
			return // the plugin folds the case of other letters, too
		}
		want := ""
		for rest := query; rest != ""; {
			i := strings.IndexAny(rest, "&;")
			if i < 0 {
				want += naively(rest)
				break
			}
			want += naively(rest[:i]) + rest[i:i+1]
			rest = rest[i+1:]
		}
		if got := queryOf(t, redacting, query); got != want {
			t.Errorf("%q: got %q; want %q", query, got, want)
		}
		for _, pair := range strings.FieldsFunc(queryOf(t, dropping, query), func(r rune) bool { return r == '&' || r == ';' }) {
			if naively(pair) != pair && !strings.HasSuffix(pair, "=REDACTED") {
				t.Errorf("%q: got %q in it; want it dropped", query, pair)
			}
		}
	})
}

// naively is a pair with its value hidden, if it must be.
func naively(pair string) string {
	name, _, found := strings.Cut(pair, "=")
	plain, err := url.QueryUnescape(name)
	if err != nil {
		plain = name
	}
	for _, secret := range signingParameters {
		if found && strings.EqualFold(plain, secret) && isASCII(plain) {
			return name + "=REDACTED"
		}
	}
	return pair
}

func isASCII(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r >= utf8.RuneSelf }) < 0
}

// FuzzHeader hides a secret in headers that may not leave.
func FuzzHeader(f *testing.F) {
	f.Add("X-A", "b", byte(0))
	f.Add("Cookie", "a=b", byte(1))
	f.Add("authorization", "\xff", byte(7))
	const secret = "s3cr3t-7f0a"
	p := stillPipeline(f, opts{"cookieNames": "visitor"})
	f.Fuzz(func(t *testing.T, name, value string, which byte) {
		if strings.Contains(name+value, secret) {
			return
		}
		header := http.Header{}
		header.Set(name, value)
		header.Add("Cookie", "session="+secret+value)
		header.Add("Cookie", value+"; session="+secret)
		header.Add(credentialHeaders[int(which)%len(credentialHeaders)], value+secret+value)
		if strings.Contains(value, "visitor") {
			return // that one is wanted, and a value may go on to the next semicolon
		}
		payload := string(encode(p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: header}, &delivery{id: "1"}))
		eventOf(t, []byte(payload))
		if strings.Contains(payload, secret) {
			t.Errorf("got the secret in %s", payload)
		}
	})
}

// FuzzConfig gives every option a text that it did not expect: New must not panic, a
// problem must name its option, and secrets are not shown.
func FuzzConfig(f *testing.F) {
	for i := range 30 {
		for _, value := range []string{"", "1", "-1", "true", "5s", "1Mi", "a,b", "http://a.test", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "\xff\x00", "9223372036854775807Ki", "1e309", "*", "[", "(?"} {
			f.Add(uint8(i), value)
		}
	}
	names := []string{}
	for name := range CreateConfig().written() {
		if !isSection(name) {
			names = append(names, name)
		}
	}
	names = append(names, "headers.defaultMode", "headers.names", "queryParameters.defaultMode", "queryParameters.names", "retry.attempts",
		"retry.initialInterval", "retry.maxInterval", "tls.ca", "tls.cert", "tls.key", "tls.insecureSkipVerify", "tls.serverName")
	f.Fuzz(func(t *testing.T, which uint8, value string) {
		name := names[int(which)%len(names)]
		for _, given := range []interface{}{value, []string{value}, map[string]interface{}{value: value}, []interface{}{[]interface{}{value}}} {
			set, problems, unknown := readSettings(configOf(opts{name: given}), "m")
			for _, problem := range append(problems, unknown...) {
				if !strings.HasPrefix(problem, strings.SplitN(name, ".", 2)[0]) {
					t.Errorf("%s: %q: got %q; want a problem of this option", name, given, problem)
				}
			}
			if len(problems) == 0 && (len(set.targets) == 0 && set.metricsPath == "" || set.queueSize < 1 || set.workers < 1 || set.timeout <= 0 || set.maxAge <= 0 || set.attempts < 1 ||
				set.initialInterval <= 0 || set.maxInterval <= 0 || set.maxBodySize < 0 || set.maxBodySize > 1<<30 || set.memoryLimit < 1 || set.drainTimeout < 0) {
				t.Errorf("%s: %q: got settings out of bounds, and no problem: %+v", name, given, set)
			}
		}
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, c := range retryAfterCases {
		f.Add(c.value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got := retryAfter(value, retryAfterNow)
		if got < 0 || got > 48*time.Hour {
			t.Errorf("%q: got %v; want 0 to 48h", value, got)
		}
		if at, err := http.ParseTime(strings.TrimSpace(value)); err == nil && at.Before(retryAfterNow) != (got == 0) && !at.Equal(retryAfterNow) {
			t.Errorf("%q: got %v; want the time until then", value, got)
		}
	})
}

func FuzzURI(f *testing.F) {
	for _, c := range uriCases {
		f.Add(c.uri)
	}
	p := stillPipeline(f, opts{"queryParameters.names": map[string]string{"awsaccesskeyid": "keep", "signature": "keep", "sig": "keep", "x-goog-signature": "keep",
		"x-amz-signature": "keep", "x-amz-credential": "keep", "x-amz-security-token": "keep"}})
	f.Fuzz(func(t *testing.T, uri string) {
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: uri, proto: "HTTP/1.1"})
		whole := e.Data.URL.Path
		if e.Data.URL.Query != nil {
			whole += "?" + *e.Data.URL.Query
		}
		want := strings.TrimSuffix(inJSON(uri), "?")
		if uri != "" && uri[0] == '/' && whole != want && whole != inJSON(uri) {
			t.Errorf("%q: got %q; want it as it was", uri, whole)
		}
		if strings.Contains(e.Data.URL.Path, "?") {
			t.Errorf("%q: got path %q; want no query in it", uri, e.Data.URL.Path)
		}
	})
}
