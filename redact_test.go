package requestmirror

import (
	"net/http"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"
)

// queryOf is the query that leaves, nil for none.
func queryOf(t testing.TB, p *pipeline, query string) string {
	t.Helper()
	e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/?" + query, proto: "HTTP/1.1"})
	if e.Data.URL.Query == nil {
		return ""
	}
	return *e.Data.URL.Query
}

var queryCases = []struct {
	name    string
	options opts
	query   string
	want    string
}{
	{"nothing to hide", nil, "a=1&b=%20&c&=&&d==", "a=1&b=%20&c&=&&d=="},
	{"a signature is hidden, and the rest is as it was sent", nil, "a=%7E&sig=abc&b=+", "a=%7E&sig=REDACTED&b=+"},
	{"OpenTelemetry's parameters", nil, "AWSAccessKeyId=a&Signature=b&sig=c&X-Goog-Signature=d", "AWSAccessKeyId=REDACTED&Signature=REDACTED&sig=REDACTED&X-Goog-Signature=REDACTED"},
	{"those of AWS's signature version 4", nil, "X-Amz-Signature=a&X-Amz-Credential=b&X-Amz-Security-Token=c&X-Amz-Date=d", "X-Amz-Signature=REDACTED&X-Amz-Credential=REDACTED&X-Amz-Security-Token=REDACTED&X-Amz-Date=d"},
	{"every occurrence", nil, "sig=a&sig=b", "sig=REDACTED&sig=REDACTED"},
	{"an escaped name", nil, "s%69g=abc&%73%69%67=abc", "s%69g=REDACTED&%73%69%67=REDACTED"},
	{"a name in another case", nil, "SIG=abc&Sig=abc&S%49G=a", "SIG=REDACTED&Sig=REDACTED&S%49G=REDACTED"},
	{"a value with = in it", nil, "sig=a=b=c", "sig=REDACTED"},
	{"an empty value tells as little as another", nil, "sig=", "sig=REDACTED"},
	{"a name without value has none to hide", nil, "sig&a=1", "sig&a=1"},
	{"a semicolon separates", nil, "a=1;sig=abc;b=2", "a=1;sig=REDACTED;b=2"},
	{"a name that only contains another", nil, "signal=1&resig=2", "signal=1&resig=2"},
	{"a name with a broken escape is taken as it is", opts{"queryParameters.names": map[string]string{"a%zz": "redact"}}, "a%zz=1&b%zz=2", "a%zz=REDACTED&b%zz=2"},
	{"a name with a plus", opts{"queryParameters.names": map[string]string{"my key": "redact"}}, "my+key=1&my%20key=2", "my+key=REDACTED&my%20key=REDACTED"},
	{"a name of the operator", opts{"queryParameters.names": map[string]string{"Token": "redact"}}, "token=1&a=2", "token=REDACTED&a=2"},
	{"a signature that the operator keeps", opts{"queryParameters.names": map[string]string{"SIG": "keep"}}, "sig=1&signature=2", "sig=1&signature=REDACTED"},
	{"drop takes name and value", opts{"queryParameters.names": map[string]string{"a": "drop"}}, "a=1&b=2&a&c=3", "b=2&c=3"},
	{"drop of the last", opts{"queryParameters.names": map[string]string{"a": "drop"}}, "b=2&a=1", "b=2"},
	{"a separator at the end stays", opts{"queryParameters.names": map[string]string{"a": "drop"}}, "b=2&sig=1&a=1&", "b=2&sig=REDACTED&"},
	{"drop of all", opts{"queryParameters.names": map[string]string{"a": "drop"}}, "a=1", ""},
	{"redact all but some", opts{"queryParameters.defaultMode": "redact", "queryParameters.names": map[string]string{"page": "keep"}}, "page=1&q=x&sig=y", "page=1&q=REDACTED&sig=REDACTED"},
	{"drop all but some", opts{"queryParameters.defaultMode": "drop", "queryParameters.names": map[string]string{"page": "keep"}}, "q=x&page=1&sig=y", "page=1"},
	{"hash", opts{"queryParameters.names": map[string]string{"user": "hash"}, "hashKey": "key"}, "user=value", "user=" + pseudonym([]byte("key"), "value")},
	{"bytes that are no UTF-8 do not break the event", nil, "a=\xff\xfe&sig=\xff", "a=\ufffd\ufffd&sig=REDACTED"},
	{"quotes and backslashes do not either", nil, `a="\&sig="`, `a="\&sig=REDACTED`},
	{"percent signs do not either", nil, "a=%s%d&b=%!", "a=%s%d&b=%!"},
}

func TestQueryParameters(t *testing.T) {
	for _, c := range queryCases {
		if got := queryOf(t, stillPipeline(t, c.options), c.query); got != c.want {
			t.Errorf("%s: %q: got %q; want %q", c.name, c.query, got, c.want)
		}
	}
}

var headerCases = []struct {
	name    string
	options opts
	header  http.Header
	want    map[string][]string
}{
	{"every value is kept, in order, under a lower-case name", nil,
		http.Header{"Accept": {"b", "a", ""}, "X-Y": {"1"}}, map[string][]string{"accept": {"b", "a", ""}, "x-y": {"1"}}},
	{"credentials are redacted, each value of them", nil,
		http.Header{"Authorization": {"a", "b"}, "X-Api-Key": {"c"}, "X-Csrf-Token": {"d"}, "X-Vault-Token": {"e"}},
		map[string][]string{"authorization": {"REDACTED", "REDACTED"}, "x-api-key": {"REDACTED"}, "x-csrf-token": {"REDACTED"}, "x-vault-token": {"REDACTED"}}},
	{"cookies leave by cookieNames only", nil, http.Header{"Cookie": {"a=1"}, "A": {"1"}}, map[string][]string{"a": {"1"}}},
	{"even when all headers are kept", opts{"headers.defaultMode": "keep"}, http.Header{"Cookie": {"a=1"}}, map[string][]string{}},
	{"a header that a handler left without values is not there", nil, http.Header{"X-Forwarded-For": nil, "X-A": {}}, map[string][]string{}},
	{"a credential that the operator keeps", opts{"headers.names": map[string]string{"authorization": "keep"}},
		http.Header{"Authorization": {"a"}}, map[string][]string{"authorization": {"a"}}},
	{"a name of the operator, in any case", opts{"headers.names": map[string]interface{}{"x-REAL-ip": "Redact", "X-B": "drop"}},
		http.Header{"X-Real-Ip": {"a"}, "X-B": {"b"}}, map[string][]string{"x-real-ip": {"REDACTED"}}},
	{"redact all but some", opts{"headers.defaultMode": "redact", "headers.names": map[string]string{"Accept": "keep"}},
		http.Header{"Accept": {"a"}, "X-Y": {"b"}}, map[string][]string{"accept": {"a"}, "x-y": {"REDACTED"}}},
	{"drop all but some: credentials go, too", opts{"headers.defaultMode": "drop", "headers.names": map[string]string{"Accept": "keep"}},
		http.Header{"Accept": {"a"}, "X-Y": {"b"}, "Authorization": {"c"}, "Cookie": {"d=1"}}, map[string][]string{"accept": {"a"}}},
	{"hash", opts{"headers.names": map[string]string{"Authorization": "hash"}, "hashKey": "key"},
		http.Header{"Authorization": {"value", "value"}},
		map[string][]string{"authorization": {pseudonym([]byte("key"), "value"), pseudonym([]byte("key"), "value")}}},
	{"hash by default spares no credential that is not named", opts{"headers.defaultMode": "hash", "hashKey": "key"},
		http.Header{"Authorization": {"a"}, "X-Y": {"value"}},
		map[string][]string{"authorization": {"REDACTED"}, "x-y": {pseudonym([]byte("key"), "value")}}},
	{"bytes that are no UTF-8 do not break the event", nil, http.Header{"X-Y": {"a\xff", `"\`, "<&>"}}, map[string][]string{"x-y": {"a\ufffd", `"\`, "<&>"}}},
}

func TestHeaders(t *testing.T) {
	for _, c := range headerCases {
		p := stillPipeline(t, c.options)
		// More than once: what was learnt of the first event must not change the next.
		for i := 0; i < 3; i++ {
			e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: c.header.Clone()})
			if got := e.Data.HTTP.Request.Header; !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s: event %d: got %v; want %v", c.name, i+1, got, c.want)
			}
		}
	}
}

func TestHeaderThatIsLearntAndThenWithoutValues(t *testing.T) {
	p := stillPipeline(t, nil)
	for i, c := range []struct {
		values []string
		want   map[string][]string
	}{
		{[]string{"a"}, map[string][]string{"x-y": {"a"}}},
		{nil, map[string][]string{}},
		{[]string{}, map[string][]string{}},
		{[]string{"b"}, map[string][]string{"x-y": {"b"}}},
	} {
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: http.Header{"X-Y": c.values}})
		if got := e.Data.HTTP.Request.Header; !reflect.DeepEqual(got, c.want) {
			t.Errorf("event %d: got %v; want %v", i+1, got, c.want)
		}
	}
}

func TestHeaderInTwoSpellingsKeepsAllValues(t *testing.T) {
	p := stillPipeline(t, nil)
	for i := 0; i < 50; i++ {
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: http.Header{"X-Y": {"a"}, "x-y": {"b"}}})
		got := e.Data.HTTP.Request.Header["x-y"]
		sort.Strings(got)
		if strings.Join(got, " ") != "a b" {
			t.Fatalf("event %d: got %v; want a and b", i+1, got)
		}
	}
}

func TestOtherSpellingHidesNoCredential(t *testing.T) {
	p := stillPipeline(t, nil)
	header := http.Header{"cookie": {"s3cr3t"}, "COOKIE": {"s3cr3t"}, "authorization": {"s3cr3t"}, "x-API-key": {"s3cr3t"}}
	e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: header})
	want := map[string][]string{"authorization": {redacted}, "x-api-key": {redacted}}
	if got := e.Data.HTTP.Request.Header; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v; want %v", got, want)
	}
}

func TestMadeUpHeaderNamesFillNothing(t *testing.T) {
	p := stillPipeline(t, nil)
	for i := 0; i < 1000; i++ {
		name := http.CanonicalHeaderKey("x-" + strings.Repeat("a", i%100+1) + string(rune('a'+i/100)))
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: http.Header{name: {"v"}}})
		if got := e.Data.HTTP.Request.Header[strings.ToLower(name)]; len(got) != 1 || got[0] != "v" {
			t.Fatalf("header %s: got %v; want v", name, got)
		}
	}
	known, _ := p.set.names.known.Load().(*knownNames)
	if got := len(known.modes); got != mostNames {
		t.Errorf("got %d names remembered; want %d", got, mostNames)
	}
	for name := range known.modes {
		if len(name) > longestName {
			t.Errorf("got %s remembered; want no name of more than %d bytes", name, longestName)
		}
	}
	// A minute later there is room for others.
	for _, c := range []struct {
		age  time.Duration
		want string
	}{{time.Minute - time.Second, ""}, {time.Minute, modeKeep}} {
		p.set.names.begun = time.Now().Add(-c.age)
		eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: http.Header{"Accept": {"*/*"}}})
		known, _ = p.set.names.known.Load().(*knownNames)
		if got := known.modes["Accept"]; got != c.want {
			t.Errorf("%v after the names were begun: got %q for Accept; want %q", c.age, got, c.want)
		}
	}
}

func TestEveryCredentialIsRedactedByDefault(t *testing.T) {
	p := stillPipeline(t, nil)
	header := http.Header{}
	for _, name := range credentialHeaders {
		if http.CanonicalHeaderKey(name) != name {
			t.Errorf("got %s in the list; want it canonical", name)
		}
		header.Set(name, "s3cr3t")
	}
	e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: header})
	for name, values := range e.Data.HTTP.Request.Header {
		if len(values) != 1 || values[0] != redacted {
			t.Errorf("%s: got %v; want REDACTED", name, values)
		}
	}
	if got := len(e.Data.HTTP.Request.Header); got != len(credentialHeaders) {
		t.Errorf("got %d headers; want %d", got, len(credentialHeaders))
	}
}

func TestRedactionHoldsWhereAHeaderIsShownTwice(t *testing.T) {
	for mode, want := range map[string]string{"redact": redacted, "drop": "", "keep": "s3cr3t"} {
		p := stillPipeline(t, opts{"headers.names": map[string]string{"User-Agent": mode, "X-Request-Id": mode}})
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: http.Header{"User-Agent": {"s3cr3t"}, "X-Request-Id": {"s3cr3t"}}})
		agent := ""
		if e.Data.UserAgent != nil {
			agent = e.Data.UserAgent.Original
		}
		if agent != want || e.Data.RequestID != want {
			t.Errorf("%s: got user agent %q, request id %q; want %q", mode, agent, e.Data.RequestID, want)
		}
	}
}

func TestCookies(t *testing.T) {
	for _, c := range []struct {
		name   string
		wanted interface{}
		header []string
		want   map[string][]string
	}{
		{"none is wanted", nil, []string{"a=1"}, nil},
		{"an empty list wants none", []string{}, []string{"a=1"}, nil},
		{"some are wanted", "a, b", []string{"a=1; b=2; c=3"}, map[string][]string{"a": {"1"}, "b": {"2"}}},
		{"a name that comes twice", "a", []string{"a=1; a=2", "a=3"}, map[string][]string{"a": {"1", "2", "3"}}},
		{"a glob", "visitor_*", []string{"visitor_id=1; xvisitor_id=2; visitor_=3"}, map[string][]string{"visitor_id": {"1"}, "visitor_": {"3"}}},
		{"all", "*", []string{"a=1;b=2"}, map[string][]string{"a": {"1"}, "b": {"2"}}},
		{"names have a case", "a", []string{"A=1"}, nil},
		{"a dot is a dot", "a.b", []string{"a.b=1; axb=2"}, map[string][]string{"a.b": {"1"}}},
		{"no cookie header", "*", nil, nil},
	} {
		p := stillPipeline(t, opts{"cookieNames": c.wanted})
		header := http.Header{}
		if c.header != nil {
			header["Cookie"] = c.header
		}
		e := eventFrom(t, p, &capture{set: p.set, method: "GET", uri: "/", proto: "HTTP/1.1", header: header})
		if got := e.Data.HTTP.Request.Cookie; len(got)+len(c.want) > 0 && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v; want %v", c.name, got, c.want)
		}
		if got := e.Data.HTTP.Request.Header; len(got) != 0 {
			t.Errorf("%s: got header %v; want none", c.name, got)
		}
	}
}
