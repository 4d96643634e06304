package requestmirror

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"math/rand"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Events of a batch are written in groups, whose parts are looked at as a whole; whatever
// the neighbours of an event are, it is what it would be alone.

// groupHeaders are headers of which many are not written at a stroke.
var groupHeaders = []http.Header{
	{},
	{"Accept": {"*/*"}, "User-Agent": {"agent/1"}, "X-Request-Id": {"r-1"}},
	{"Accept": {"*/*"}, "User-Agent": {`agent "2" \`}, "X-Request-Id": {"r\t2"}, "X-Back": {"`"}},
	{"Accept": {"a", "b"}, "X-Empty": {}},
	{"Accept": {"a", "b"}},
	{"Accept": {"a"}, "X-Empty": {}, "X-None": nil},
	{"User-Agent": {}, "X-Request-Id": nil, "Cookie": {}, "Traceparent": {}, "Authorization": {}, "Accept": {"a", "b"}},
	{"accept": {"lower"}, "X-Once": {"only here"}},
	{"Authorization": {"Bearer secret"}, "X-Api-Key": {"k1", "k2"}, "Accept": {"*/*"}},
	{"Authorization": {"Basic secret"}, "Cookie": {"a=1; visitor=v; b=2"}},
	{"Cookie": {"visitor=v1; visitor=v2"}},
	{"Cookie": {"visitor=v1", "other=v2"}, "Accept": {"x"}},
	{"Cookie": {`visitor="quoted v"; visitor2=x; =y; ;`}},
	{"Cookie": {"xvisitor=1; visitor=;other"}},
	{"Traceparent": {"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}},
	{"Traceparent": {"00-00000000000000000000000000000000-00f067aa0ba902b7-01"}},
	{"X-Quotes": {`"],"accept":["`}, "Accept": {`a"],`}, "Via": {`":["`}},
	{"X-Lines": {"a\r\nAccept: b\n\r\nc"}, "Accept": {"\x00\x1f\x7f"}},
	{"X-Bytes": {"\xff\xfe", "\xe2\x82"}, "User-Agent": {"\xff"}},
	{"X-Bytes": {"a\xffb"}, "Accept": {"é€😀"}},
	{"Bad Name": {"x"}, "Accept": {"y"}},
	{"User-Agent": {"hidden"}, "X-Forwarded-For": {"203.0.113.7"}},
}

var groupTargets = []string{
	"/", "/a?b=c", "/a?signature=SECRET&b=c", "/a?x=%53ig&SIG=SECRET", "/a?b+c", "*", "", "http://h/p?q", "/\"\\\t?\"", "/\xff?\xff", "/a\nb?c\r\nd", "/?", "/\u0085\uffff/é?\u0085",
}

func groupBodies() []*body {
	bodies := []*body{nil, nil, nil, wholeBody(""), wholeBody("text"), wholeBody("\"\n\\\x00 <é€😀>\n"), wholeBody("\xff"), wholeBody(strings.Repeat("long\n", 1000))}
	cut := wholeBody("a cut b\xe2\x82")
	cut.cut = cutLimit
	cut.beyond = 7
	return append(bodies, cut)
}

// groupCaptures are captures that differ in all that makes a difference, in some order.
func groupCaptures(set *settings, seed int64, n int) []*capture {
	random := rand.New(rand.NewSource(seed))
	bodies := groupBodies()
	all := []*capture{}
	for i := 0; i < n; i++ {
		c := &capture{
			set: set, at: goldenTime.Add(time.Duration(i) * 7 * time.Millisecond), method: []string{"GET", "POST", `M"`}[random.Intn(9)/4], uri: groupTargets[random.Intn(len(groupTargets))],
			host: "a.test", proto: "HTTP/1.1", remote: fmt.Sprintf("192.0.2.%d:5", random.Intn(3)), random: random.Uint64() | 1, sequence: uint64(i + 1),
			header: groupHeaders[random.Intn(len(groupHeaders))].Clone(), body: bodies[random.Intn(len(bodies))],
		}
		if random.Intn(20) == 0 {
			c.response = &response{status: 201, header: http.Header{"X-Answer": {"b"}}, took: time.Second}
		}
		all = append(all, c)
	}
	return all
}

// encodeAll has a worker see the captures through, all of a batch, and returns the texts
// of its events.
func encodeAll(t *testing.T, p *pipeline, all []*capture) []json.RawMessage {
	t.Helper()
	r := &recorder{}
	var transport http.RoundTripper = r
	p.sender.transport = transport
	p.mu.Lock()   // the timer of a batch before may ring
	p.running = 2 // so that the one that leaves here is not the last
	p.idle = 0
	p.retired = true
	p.mu.Unlock()
	for _, c := range all {
		own := *c
		p.queue <- &own
	}
	run(&worker{pipe: p})
	var events []json.RawMessage
	if err := json.Unmarshal(r.payload, &events); err != nil {
		t.Fatalf("payload: %v\n%q", err, r.payload)
	}
	return events
}

func groupOptions() []opts {
	return []opts{
		{},
		{"cookieNames": "visitor"},
		{"cookieNames": "visitor,other,b", "headers.defaultMode": "redact", "headers.names": map[string]string{"Accept": "keep", "X-Request-Id": "hash"}, "hashKey": strings.Repeat("k", 32)},
		{"cookieNames": "v*,a", "queryParameters.defaultMode": "drop", "headers.names": map[string]string{"User-Agent": "redact", "Accept": "drop"}},
		{"cookieNames": "a,b,visitor,other", "queryParameters.names": map[string]string{"b": "redact"}, "attributes": map[string]string{"a": "\n\""}, "sampleRate": 0.5},
		{"redactBodyFields": "password", "trustForwardHeader": true},
	}
}

func TestAnEventOfAGroupIsWhatItIsAlone(t *testing.T) {
	const n = 60
	for i, options := range groupOptions() {
		options["batch.maxEvents"] = 100
		p := stillPipeline(t, options)
		set := *p.set
		set.maxAge = math.MaxInt64 // captures are old
		p.set = &set
		all := groupCaptures(p.set, int64(i), n)
		for round := 0; round < 2; round++ { // in the second one names of headers are known
			together := encodeAll(t, p, all)
			if len(together) != n {
				t.Fatalf("%v: got %d events; want %d", options, len(together), n)
			}
			for k, c := range all {
				alone := encodeAll(t, p, []*capture{c})
				got, want := membersOf(t, together[k]), membersOf(t, alone[0])
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("%v: event %d of %d: got\n%s\nwant\n%s", options, k, n, together[k], alone[0])
				}
				if !utf8.Valid(together[k]) {
					t.Errorf("%v: got what is not UTF-8 in\n%q", options, together[k])
				}
				if bytes.Contains(together[k], []byte("SECRET")) || bytes.Contains(together[k], []byte("Bearer secret")) {
					t.Errorf("%v: got a secret in\n%s", options, together[k])
				}
			}
		}
	}
}

func TestCookiesThatLeave(t *testing.T) {
	for _, names := range []string{"visitor,theme", "visitor,theme,visitor", "visitor,the*", "visitor,theme,x1,x2"} { // looked for one by one, or all of them
		p := stillPipeline(t, opts{"cookieNames": names})
		for _, c := range []struct {
			sent []string
			want map[string][]string
		}{
			{[]string{"visitor=v"}, map[string][]string{"visitor": {"v"}}},
			{[]string{"session=s; visitor=v; theme=dark"}, map[string][]string{"visitor": {"v"}, "theme": {"dark"}}},
			{[]string{"visitor=v1; visitor=v2"}, map[string][]string{"visitor": {"v1", "v2"}}},
			{[]string{"theme=a; visitor=v1; theme=b"}, map[string][]string{"visitor": {"v1"}, "theme": {"a", "b"}}},
			{[]string{"visitor=v1", "visitor=v2"}, map[string][]string{"visitor": {"v1", "v2"}}},
			{[]string{"xvisitor=x; visitor=v"}, map[string][]string{"visitor": {"v"}}},
			{[]string{`visitor="v w"; theme="<&>"`}, map[string][]string{"visitor": {"v w"}, "theme": {"<&>"}}},
			{[]string{`visitor=a"b; theme=a\b`}, nil},
			{[]string{"visitor="}, map[string][]string{"visitor": {""}}},
			{[]string{"session=visitor=v"}, nil},
			{[]string{"Visitor=v"}, nil},
		} {
			sent := &capture{set: p.set, at: goldenTime, method: "GET", uri: "/", proto: "HTTP/1.1", remote: "192.0.2.1:5", header: http.Header{"Cookie": c.sent}}
			membersOf(t, encode(p, sent, &delivery{}))
			e := eventFrom(t, p, sent)
			if got := e.Data.HTTP.Request.Cookie; len(got)+len(c.want) > 0 && !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s of %q: got %q; want %q", names, c.sent, got, c.want)
			}
		}
	}
}

// membersOf are the members of all objects of a text by their paths, none of which may
// be there twice.
func membersOf(t *testing.T, text []byte) map[string]interface{} {
	t.Helper()
	found := map[string]interface{}{}
	readMembers(t, json.NewDecoder(bytes.NewReader(text)), "", found)
	return found
}

var asOneLine = strings.NewReplacer("\r", " ", "\n", " ")

func readMembers(t *testing.T, d *json.Decoder, path string, found map[string]interface{}) {
	t.Helper()
	token, err := d.Token()
	if err != nil {
		t.Fatal(err)
	}
	if _, there := found[path]; there {
		t.Fatalf("member %s is there twice", path)
	}
	if text, ok := token.(string); ok && strings.Contains(path, "/header/") {
		token = asOneLine.Replace(text) // a line break in a value, which only a handler can write, may become a space
	}
	found[path] = token
	for i := 0; (token == json.Delim('{') || token == json.Delim('[')) && d.More(); i++ {
		name := fmt.Sprint(i)
		if token == json.Delim('{') {
			key, _ := d.Token()
			name = fmt.Sprint(key)
		}
		readMembers(t, d, path+"/"+name, found)
	}
	if token == json.Delim('{') || token == json.Delim('[') {
		_, _ = d.Token()
	}
}
