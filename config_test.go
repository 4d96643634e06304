package requestmirror

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const day = 24 * time.Hour

// Each option in every form that it may come in: as Go has it, as YAML, as a label
// (a string), as JSON (float64, []interface{}, map[string]interface{}).
var optionCases = []struct {
	option string
	values []interface{}
	get    func(*settings) interface{}
	want   interface{}
}{
	{"methods", []interface{}{[]string{"get", "POST"}, []interface{}{"get", "POST"}, "get,POST", " get , post ,"}, func(s *settings) interface{} { return s.methods }, map[string]bool{"GET": true, "POST": true}},
	{"methods", []interface{}{[]string{"m-search"}}, func(s *settings) interface{} { return s.methods }, map[string]bool{"M-SEARCH": true}},
	{"methods", []interface{}{"", []string{}, []interface{}{}}, func(s *settings) interface{} { return s.methods }, map[string]bool{}},
	{"methods", []interface{}{nil}, func(s *settings) interface{} { return s.methods }, map[string]bool(nil)},
	{"mirrorBody", []interface{}{nil, true, "true", "TRUE", "1", 1, " true "}, func(s *settings) interface{} { return s.mirrorBody }, true},
	{"mirrorBody", []interface{}{false, "false", "0", 0, "f"}, func(s *settings) interface{} { return s.mirrorBody }, false},
	{"maxBodySize", []interface{}{nil, "1Mi", "1MiB", "1 Mi", 1048576, int64(1048576), float64(1048576), "1048576", "1024Ki", " 1Mi ", "1048576B"}, func(s *settings) interface{} { return s.maxBodySize }, int64(1048576)},
	{"maxBodySize", []interface{}{"1MB", "1M", "1000kB", "1000KB", "1000k", "1000K", 1e6}, func(s *settings) interface{} { return s.maxBodySize }, int64(1000000)},
	{"maxBodySize", []interface{}{0, "0", "0Mi", float64(0)}, func(s *settings) interface{} { return s.maxBodySize }, int64(0)},
	{"maxBodySize", []interface{}{"1Gi", "1GiB", 1 << 30}, func(s *settings) interface{} { return s.maxBodySize }, int64(1 << 30)},
	{"maxBodySize", []interface{}{"1G", "1GB"}, func(s *settings) interface{} { return s.maxBodySize }, int64(1e9)},
	{"memoryLimit", []interface{}{nil, "64Mi", 64 << 20}, func(s *settings) interface{} { return s.memoryLimit }, int64(64 << 20)},
	{"format", []interface{}{nil, "cloudevents", "CloudEvents"}, func(s *settings) interface{} { return s.format }, "cloudevents"},
	{"format", []interface{}{"json", "JSON"}, func(s *settings) interface{} { return s.format }, "json"},
	{"queueSize", []interface{}{7, "7", 7.0, float32(7), int64(7), uint8(7), " 7 "}, func(s *settings) interface{} { return s.queueSize }, 7},
	{"overflow", []interface{}{"dropOldest", "dropoldest"}, func(s *settings) interface{} { return s.dropOldest }, true},
	{"overflow", []interface{}{nil, "dropNewest"}, func(s *settings) interface{} { return s.dropOldest }, false},
	{"workers", []interface{}{nil, 4, "4"}, func(s *settings) interface{} { return s.workers }, 4},
	{"timeout", []interface{}{nil, "5s", 5, "5", 5.0, "5000ms", "0m5s", json.Number("5")}, func(s *settings) interface{} { return s.timeout }, 5 * time.Second},
	{"maxAge", []interface{}{nil, "60s", "1m", 60, time.Minute.String()}, func(s *settings) interface{} { return s.maxAge }, time.Minute},
	{"maxAge", []interface{}{"24h", 86400}, func(s *settings) interface{} { return s.maxAge }, day},
	{"retry.attempts", []interface{}{nil, 3, "3"}, func(s *settings) interface{} { return s.attempts }, 3},
	{"retry.initialInterval", []interface{}{nil, "100ms"}, func(s *settings) interface{} { return s.initialInterval }, 100 * time.Millisecond},
	{"retry.maxInterval", []interface{}{nil, "5s", 5}, func(s *settings) interface{} { return s.maxInterval }, 5 * time.Second},
	{"drainTimeout", []interface{}{nil, "5s"}, func(s *settings) interface{} { return s.drainTimeout }, 5 * time.Second},
	{"drainTimeout", []interface{}{"0s", 0, "0"}, func(s *settings) interface{} { return s.drainTimeout }, time.Duration(0)},
	{"requestID", []interface{}{nil, "X-Request-Id", "x-request-id"}, func(s *settings) interface{} { return s.requestID }, "x-request-id"},
	{"requestID", []interface{}{""}, func(s *settings) interface{} { return s.requestID }, ""},
	{"trustForwardHeader", []interface{}{true, "true"}, func(s *settings) interface{} { return s.trustForwardHeader }, true},
	{"strict", []interface{}{true, "true"}, func(s *settings) interface{} { return s.strict }, true},
	{"enabled", []interface{}{nil, true, "true"}, func(s *settings) interface{} { return s.enabled }, true},
	{"attributes", []interface{}{map[string]string{"a": "1"}, map[string]interface{}{"a": 1}, map[string]interface{}{"a": float64(1)}, map[interface{}]interface{}{"a": "1"}}, func(s *settings) interface{} { return s.attributesField }, `,"attributes":{"a":"1"}`},
	{"headers.defaultMode", []interface{}{"Drop"}, func(s *settings) interface{} { return s.headerDefault }, "drop"},
	{"queryParameters.defaultMode", []interface{}{"hash"}, func(s *settings) interface{} { return s.queryDefault }, "hash"},
	{"tls.insecureSkipVerify", []interface{}{true, "true"}, func(s *settings) interface{} { return s.tls.InsecureSkipVerify }, true},
	{"tls.insecureSkipVerify", []interface{}{nil, "false"}, func(s *settings) interface{} { return s.tls.InsecureSkipVerify }, false},
	{"tls.serverName", []interface{}{"a.test", " a.test "}, func(s *settings) interface{} { return s.tls.ServerName }, "a.test"},
	{"watchURL", []interface{}{"http://a.test/b?c#d", " http://a.test/b?c "}, func(s *settings) interface{} { return s.targets[0].url.String() }, "http://a.test/b?c"},
	{"watchURL", []interface{}{"https://u:p@a.test"}, func(s *settings) interface{} { return s.targets[0].basicAuth + " " + s.targets[0].url.String() }, "Basic dTpw https://a.test"},
	{"customRequestHeaders", []interface{}{map[string]string{"x-a": "1"}, map[string]interface{}{"X-A": 1}}, func(s *settings) interface{} { return s.requestHeaders }, http.Header{"X-A": {"1"}}},
}

func TestOptions(t *testing.T) {
	for _, c := range optionCases {
		for _, value := range c.values {
			set, problems, unknown := readSettings(configOf(opts{c.option: value}), "m")
			if len(problems)+len(unknown) > 0 {
				t.Errorf("%s: %#v: got problems %q, %q; want none", c.option, value, problems, unknown)
			} else if got := c.get(set); !reflect.DeepEqual(got, c.want) {
				t.Errorf("%s: %#v: got %#v; want %#v", c.option, value, got, c.want)
			}
		}
	}
}

var problemCases = []struct {
	options opts
	want    []string // all problems, in order
}{
	{opts{"watchURL": nil}, []string{`watchURL: missing, want the http or https URL of the receiver`}},
	{opts{"watchURL": ""}, []string{`watchURL: missing, want the http or https URL of the receiver`}},
	{opts{"watchURL": []string{"http://a"}}, []string{`watchURL: a value that is not shown, want a text`, `watchURL: missing, want the http or https URL of the receiver`}},
	{opts{"methods": "GET POST"}, []string{`methods[0]: "GET POST", want an HTTP method`}},
	{opts{"methods": []string{"GET", "", "a/b"}}, []string{`methods[1]: "", want an HTTP method`, `methods[2]: "a/b", want an HTTP method`}},
	{opts{"methods": []interface{}{[]string{"GET"}}}, []string{`methods[0]: [GET], want a text`}},
	{opts{"methods": map[string]string{"a": "b"}}, []string{`methods: map[a:b], want a list`}},
	{opts{"mirrorBody": "yes"}, []string{`mirrorBody: "yes", want true or false`}},
	{opts{"mirrorBody": ""}, []string{`mirrorBody: "", want true or false`}},
	{opts{"maxBodySize": "1 MB!"}, []string{`maxBodySize: "1 MB!", want a size such as 65536, "512Ki" or "1MB"`}},
	{opts{"maxBodySize": "unlimited"}, []string{`maxBodySize: "unlimited", want a size such as 65536, "512Ki" or "1MB"`}},
	{opts{"maxBodySize": ""}, []string{`maxBodySize: "", want a size such as 65536, "512Ki" or "1MB"`}},
	{opts{"maxBodySize": "Mi"}, []string{`maxBodySize: "Mi", want a size such as 65536, "512Ki" or "1MB"`}},
	{opts{"maxBodySize": "1.5Mi"}, []string{`maxBodySize: "1.5Mi", want a size such as 65536, "512Ki" or "1MB"`}},
	{opts{"maxBodySize": 1.5}, []string{`maxBodySize: 1.5, want a size such as 65536, "512Ki" or "1MB"`}},
	{opts{"maxBodySize": -1}, []string{`maxBodySize: -1, want at least 0`}},
	{opts{"maxBodySize": "2Gi"}, []string{`maxBodySize: "2Gi", want at most 1073741824`}},
	{opts{"maxBodySize": "9223372036854775807Gi"}, []string{`maxBodySize: "9223372036854775807Gi", want at most 1073741824`}},
	{opts{"maxBodySize": "9007199254740993Ki"}, []string{`maxBodySize: "9007199254740993Ki", want at most 1073741824`}},
	{opts{"maxBodySize": "-9007199254740993Ki"}, []string{`maxBodySize: "-9007199254740993Ki", want at least 0`}},
	{opts{"maxBodySize": []int{1}}, []string{`maxBodySize: [1], want a size such as 65536, "512Ki" or "1MB"`}},
	{opts{"memoryLimit": 0}, []string{`memoryLimit: 0, want at least 1`}},
	{opts{"format": "xml"}, []string{`format: "xml", want one of cloudevents, json, request, otlp`}},
	{opts{"queueSize": 0}, []string{`queueSize: 0, want at least 1`}},
	{opts{"queueSize": 1000001}, []string{`queueSize: 1000001, want at most 1000000`}},
	{opts{"queueSize": "many"}, []string{`queueSize: "many", want a whole number`}},
	{opts{"queueSize": 1.5}, []string{`queueSize: 1.5, want a whole number`}},
	{opts{"queueSize": 1e300}, []string{`queueSize: 1e+300, want a whole number`}},
	{opts{"queueSize": "99999999999999999999"}, []string{`queueSize: "99999999999999999999", want a whole number`}},
	{opts{"overflow": "block"}, []string{`overflow: "block", want one of dropNewest, dropOldest`}},
	{opts{"workers": 257}, []string{`workers: 257, want at most 256`}},
	{opts{"timeout": "5 seconds"}, []string{`timeout: "5 seconds", want a duration such as "5s"`}},
	{opts{"timeout": ""}, []string{`timeout: "", want a duration such as "5s"`}},
	{opts{"timeout": 0}, []string{`timeout: 0, want at least 1ms`}},
	{opts{"timeout": "-5s"}, []string{`timeout: "-5s", want at least 1ms`}},
	{opts{"timeout": "1h"}, []string{`timeout: "1h", want at most 10m0s`}},
	{opts{"timeout": 1 << 40}, []string{`timeout: 1099511627776, want a duration such as "5s"`}},
	{opts{"maxAge": "25h"}, []string{`maxAge: "25h", want at most 24h0m0s`}},
	{opts{"retry": "3"}, []string{`retry: "3", want options under it, such as retry.attempts`}},
	{opts{"retry.attempts": 0, "retry.maxInterval": "2h"}, []string{`retry.attempts: 0, want at least 1`, `retry.maxInterval: "2h", want at most 1h0m0s`}},
	{opts{"drainTimeout": -1}, []string{`drainTimeout: -1, want at least 0s`}},
	{opts{"requestID": "X Y"}, []string{`requestID: "x y", want the name of a header`}},
	{opts{"attributes": "a=b"}, []string{`attributes: a string, want a map of names to texts`}},
	{opts{"attributes": map[string]interface{}{"a": []string{"b"}}}, []string{`attributes.a: [b], want a text`}},
	{opts{"headers.defaultMode": "hide"}, []string{`headers.defaultMode: "hide", want one of keep, redact, hash, drop`}},
	{opts{"headers.names": map[string]string{"X-A": "hide"}}, []string{`headers.names.X-A: "hide", want one of keep, redact, hash, drop`}},
	{opts{"headers.names": map[string]string{"X-A": "keep", "x-a": "drop"}}, []string{`headers.names.x-a: given twice, want each name once, whatever its case`}},
	{opts{"headers.names": map[string]string{"cookie": "keep"}}, []string{`headers.names.Cookie: "keep", want drop, as cookies leave by cookieNames only`}},
	{opts{"queryParameters.names": []string{"a"}}, []string{`queryParameters.names: a slice, want a map of names to texts`}},
	{opts{"tls": true}, []string{`tls: a value that is not shown, want options under it, such as tls.ca`}},
	{opts{"tls.ca": "/does/not/exist"}, []string{`tls.ca: neither PEM nor the path of a file that can be read, want one of both`}},
	{opts{"tls.ca": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"}, []string{`tls.ca: no certificate in it, want PEM certificates, or the path of a file with them`}},
	{opts{"tls.cert": "-----BEGIN X-----"}, []string{`tls: only one of cert and key, want both or none`}},
	{opts{"customRequestHeaders": map[string]string{"a b": "c"}}, []string{`customRequestHeaders.a b: not a header name, want a name such as X-Token`}},
	{opts{"customRequestHeaders": map[string]string{"webhook-id": "c"}}, []string{`customRequestHeaders.webhook-id: a header of the delivery itself, want another header`}},
	{opts{"customRequestHeaders": map[string]string{"X-A": "b\r\nX-B: c"}}, []string{`customRequestHeaders.X-A: a line break in the value, want one line`}},
	{opts{"signingSecrets": "whsec_AAAA"}, []string{`signingSecrets[0]: a secret that is not shown, want whsec_ and the base64 of 24 to 64 bytes`}},
	{opts{"signingSecrets": []string{"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}}, []string{`signingSecrets[1]: a secret that is not shown, want whsec_ and the base64 of 24 to 64 bytes`}},
	{opts{"signingSecrets": "whsec_" + strings.Repeat("AAAA", 22)}, []string{`signingSecrets[0]: a secret that is not shown, want whsec_ and the base64 of 24 to 64 bytes`}},
	{opts{"strict": "maybe"}, []string{`strict: "maybe", want true or false`}},
	{
		opts{"watchURL": nil, "workers": 0, "timeout": "soon", "format": "xml", "methods": "a b", "tls.key": "x"},
		[]string{
			`format: "xml", want one of cloudevents, json, request, otlp`,
			`methods[0]: "a b", want an HTTP method`,
			`timeout: "soon", want a duration such as "5s"`,
			`tls.key: neither PEM nor the path of a file that can be read, want one of both`,
			`watchURL: missing, want the http or https URL of the receiver`,
			`workers: 0, want at least 1`,
		},
	},
}

func TestEveryProblemIsReportedAtOnce(t *testing.T) {
	for _, c := range problemCases {
		_, problems, unknown := readSettings(configOf(c.options), "m")
		if strings.Join(problems, "\n") != strings.Join(c.want, "\n") || len(unknown) > 0 {
			t.Errorf("%v: got\n  %s\n%q; want\n  %s", c.options, strings.Join(problems, "\n  "), unknown, strings.Join(c.want, "\n  "))
		}
	}
}

func TestWatchURLMustBeAbsolute(t *testing.T) {
	for _, value := range []string{"receiver:8080", "/events", "ftp://a.test", "http://", "http:a.test", "://a", "http://a b", "%zz", "http://a.test:x"} {
		_, problems, _ := readSettings(configOf(opts{"watchURL": value}), "m")
		if len(problems) != 1 || !strings.HasPrefix(problems[0], "watchURL: ") || !strings.HasSuffix(problems[0], ", want an absolute http or https URL") {
			t.Errorf("%q: got %q; want one problem", value, problems)
		}
	}
}

func TestUnknownNamesComeWithTheClosestOption(t *testing.T) {
	for name, want := range map[string]string{
		"watchUri":                  "", // the answer depends on what there is
		"timeuot":                   "timeuot: unknown option, did you mean timeout?",
		"retry.atempts":             "retry.atempts: unknown option, did you mean retry.attempts?",
		"attempts":                  "",
		"header":                    "",
		"signingSecret":             "signingSecret: unknown option, did you mean signingSecrets?",
		"zzzzzzzzzzzzzzzzzzzzzzzzz": "zzzzzzzzzzzzzzzzzzzzzzzzz: unknown option",
		"q":                         "q: unknown option",
		"":                          ": unknown option",
		"tls.caa":                   "tls.caa: unknown option, did you mean tls.ca?",
		"ünknown":                   "",
	} {
		_, problems, unknown := readSettings(configOf(opts{name: "s3cr3t"}), "m")
		if len(problems) > 0 || len(unknown) > 1 || len(unknown) == 0 && name != "watchUri" {
			t.Errorf("%q: got %q, %q; want one unknown option", name, problems, unknown)
			continue
		}
		if len(unknown) == 1 && (want != "" && unknown[0] != want || !strings.HasPrefix(unknown[0], name+": unknown option") || strings.Contains(unknown[0], "s3cr3t")) {
			t.Errorf("%q: got %q; want %q", name, unknown[0], want)
		}
	}
}

func TestNamesCountWithoutRegardToCase(t *testing.T) {
	set, problems, unknown := readSettings(configOf(opts{"Retry.ATTEMPTS": 7, "HEADERS.DefaultMode": "drop"}), "m")
	if len(problems)+len(unknown) > 0 || set.attempts != 7 || set.headerDefault != modeDrop {
		t.Errorf("got %d attempts, %s, problems %q, %q; want 7, drop", set.attempts, set.headerDefault, problems, unknown)
	}
}

// Which of both counted would differ from one reload to the next.
func TestAnOptionThatIsGivenTwiceIsAProblem(t *testing.T) {
	const wanted = ": given twice, want each option once, whatever its case"
	for _, c := range []struct {
		name    string
		written *Config
		want    []string
		unknown []string
	}{
		{"an option", &Config{QueueSize: 5, Rest: map[string]interface{}{"QUEUESIZE": 7}}, []string{"queueSize" + wanted}, nil},
		{"in the same words", &Config{Workers: 4, Rest: map[string]interface{}{"Workers": 4}}, []string{"workers" + wanted}, nil},
		{"a part of a section", &Config{Retry: map[string]interface{}{"attempts": 3, "Attempts": 7}}, []string{"retry.attempts" + wanted}, nil},
		{"three times", &Config{Retry: map[string]interface{}{"attempts": 3, "Attempts": 3, "ATTEMPTS": 3}}, []string{"retry.attempts" + wanted}, nil},
		{"in two sections", &Config{Retry: map[string]interface{}{"attempts": 3}, Rest: map[string]interface{}{"RETRY": map[string]interface{}{"attempts": 3}}}, []string{"retry.attempts" + wanted}, nil},
		{"with its section and without", &Config{Retry: map[string]interface{}{"attempts": 3}, Rest: map[string]interface{}{"retry.attempts": 7}}, []string{"retry.attempts" + wanted}, nil},
		{"a map", &Config{Attributes: map[string]interface{}{"a": "b"}, Rest: map[string]interface{}{"ATTRIBUTES": map[string]interface{}{"a": "c"}}}, []string{"attributes" + wanted}, nil},
		{"the switch", &Config{Enabled: false, Rest: map[string]interface{}{"ENABLED": true}}, []string{"enabled" + wanted}, nil},
		{"an unknown one", &Config{Rest: map[string]interface{}{"zzzzzzzz": 1, "ZZZZZZZZ": 2}}, nil, []string{"ZZZZZZZZ: unknown option"}},
		{"a null", &Config{QueueSize: nil, Rest: map[string]interface{}{"QUEUESIZE": 7}}, nil, nil},
		{"two sections without the same part", &Config{Retry: map[string]interface{}{"attempts": 7}, Rest: map[string]interface{}{"RETRY": map[string]interface{}{"maxInterval": "1s"}}}, nil, nil},
		{"no section but in other case", &Config{Rest: map[string]interface{}{"RETRY": map[string]interface{}{"Attempts": 7}}}, nil, nil},
		{"names that the user makes up", &Config{Attributes: map[string]interface{}{"a": "b", "A": "c"}}, nil, nil},
	} {
		for i := 0; i < 20; i++ { // as the order of a map differs each time
			c.written.WatchURL = "http://receiver.test/events"
			_, problems, unknown := readSettings(c.written, "m")
			if strings.Join(problems, "\n") != strings.Join(c.want, "\n") || strings.Join(unknown, "\n") != strings.Join(c.unknown, "\n") {
				t.Errorf("%s: got problems %q, unknown %q; want %q, %q", c.name, problems, unknown, c.want, c.unknown)
				break
			}
		}
	}
}

// The switches have no value then, so that a mistake cannot open what it is to guard.
func TestASwitchThatIsGivenTwiceIsNotTurned(t *testing.T) {
	reject := map[string]interface{}{"secrets": "a", "onFailure": "skip", "ONFAILURE": "reject"}
	for i := 0; i < 20; i++ {
		set, _, _ := readSettings(&Config{Enabled: false, Strict: true, Rest: map[string]interface{}{"ENABLED": true, "STRICT": false}}, "m")
		if !set.enabled || set.strict {
			t.Errorf("got enabled %v, strict %v; want the defaults, true and false", set.enabled, set.strict)
		}
		if set, _, _ := readSettings(&Config{WatchURL: "http://receiver.test", Authenticate: reject}, "m"); !set.strict {
			t.Error("authenticate.onFailure: got a configuration that is not strict; want a strict one, as it may have been reject")
		}
	}
}

// Every wrong shape of every option that may hold a secret.
func TestSecretsAreNeverShown(t *testing.T) {
	const secret = "s3cr3t"
	shapes := []interface{}{
		secret, []string{secret}, []interface{}{secret}, []interface{}{[]string{secret}}, []interface{}{map[string]string{secret: secret}},
		map[string]string{secret: secret}, map[string]interface{}{"a": []string{secret}}, map[string]interface{}{"a": map[string]string{"b": secret}},
		"http//user:" + secret + "@host", "ftp://user:" + secret + "@host", "http://user:" + secret + "@ho st", "http://" + secret + "@",
		[]string{"http://user:" + secret + "@host"}, "whsec_" + secret, "whsec_" + secret + ",whsec_" + secret, []string{"whsec_" + secret},
		"-----BEGIN CERTIFICATE-----\n" + secret, "-----BEGIN PRIVATE KEY-----\n" + secret + "\n-----END PRIVATE KEY-----",
		&struct{ A string }{secret}, secret + "\r\n", "user:" + secret + "@host",
		"hooks.example.com/services/" + secret, "htps://hooks.example.com/?token=" + secret,
	}
	seen := 0
	for _, option := range []string{"watchURL", "watchURLs", "hashKey", "signingSecrets", "customRequestHeaders", "tls", "tls.ca", "tls.cert", "tls.key", "secret", "authenticate"} {
		for _, shape := range shapes {
			word, ok := shape.(string)
			if list, isList := shape.([]string); isList {
				word = list[0]
				ok = true
			} else if list, isList := shape.([]interface{}); isList {
				word, ok = list[0].(string)
			}
			if ok && (option == "watchURL" || option == "watchURLs") && (!strings.ContainsAny(word, "@/?") || strings.Contains(word, "-----")) {
				continue // may be shown: nobody takes it for a URL with a secret in it
			}
			options := opts{option: shape}
			if option == "tls.cert" {
				options["tls.key"] = shape
			}
			set, problems, unknown := readSettings(configOf(options), "m")
			text := describeProblems("m", false, problems, unknown)
			seen += len(problems) + len(unknown)
			for _, line := range strings.Split(text, "\n") {
				// Names are the operator's own words and are shown.
				line = strings.ReplaceAll(line, option+"."+secret+":", "")
				if strings.Contains(line, secret) {
					t.Errorf("%s: %#v: got %q; want no secret in it", option, shape, line)
				}
			}
			for _, to := range set.targets {
				if strings.Contains(to.key, secret) {
					t.Errorf("%s: %#v: got key %q; want a hash", option, shape, to.key)
				}
			}
		}
	}
	if seen < 100 {
		t.Errorf("got %d problems; want many, or this test tests nothing", seen)
	}
}

func TestEmptyConfigurationIsValidButForWatchURL(t *testing.T) {
	_, problems, unknown := readSettings(CreateConfig(), "m")
	if len(problems) != 1 || problems[0] != "watchURL: missing, want the http or https URL of the receiver" || len(unknown) > 0 {
		t.Errorf("got %q, %q; want watchURL missing", problems, unknown)
	}
	if !reflect.DeepEqual(CreateConfig(), &Config{}) {
		t.Error("got defaults in CreateConfig; want them in settings.go only")
	}
}

func TestDefaultsOfTheReferenceAreTheOnesInForce(t *testing.T) {
	r := newReader(configOf(nil))
	s := &settings{}
	readOptions(r, s)
	seen := map[string]bool{}
	for _, option := range r.known {
		if seen[option.path] {
			t.Errorf("option %s is read twice; want once", option.path)
		}
		seen[option.path] = true
		if option.standard == "" || option.standard == "all" || option.standard == "none" && option.path == "excludePaths" || option.standard == "[]" || option.standard == "{}" {
			continue
		}
		given := opts{option.path: option.standard}
		if strings.HasPrefix(option.path, "authenticate.") {
			given["authenticate.secrets"] = "a secret" // without which nothing is authenticated
		}
		set, problems, _ := readSettings(configOf(given), "m")
		want, _, _ := readSettings(configOf(nil), "m")
		if len(problems) > 0 {
			t.Errorf("%s: the default %q is not valid: %q", option.path, option.standard, problems)
		} else if set.targets[0].key != want.targets[0].key {
			t.Errorf("%s: got other delivery settings with the default, %q, written out; want the same", option.path, option.standard)
		}
	}
	if len(seen) < 25 {
		t.Errorf("got %d options; want all", len(seen))
	}
}

func TestEveryFieldOfConfigIsRead(t *testing.T) {
	config := CreateConfig()
	fields := reflect.ValueOf(config).Elem()
	kind := fields.Type()
	options := 0
	for i := 0; i < kind.NumField(); i++ {
		name := kind.Field(i).Name
		if name == "Rest" {
			continue
		}
		option := strings.Split(kind.Field(i).Tag.Get("json"), ",")[0]
		if !strings.EqualFold(option, name) {
			t.Errorf("field %s: got option %s in its tag; want the same name, which is how Traefik decodes", name, option)
		}
		if _, ok := config.written()[option]; !ok {
			t.Errorf("field %s: not in written()", name)
		}
		options++
		if isSection(option) {
			continue
		}
		// A struct is wrong for every option, so whoever reads it says so.
		wrong := CreateConfig()
		reflect.ValueOf(wrong).Elem().Field(i).Set(reflect.ValueOf(map[string]interface{}{"a b": []string{"\n"}}))
		if option == "enabled" {
			continue
		}
		_, problems, unknown := readSettings(wrong, "m")
		if text := "\n" + strings.Join(problems, "\n"); !strings.Contains(text, "\n"+option) || len(unknown) > 0 {
			t.Errorf("field %s: got problems %q, %q; want one about %s", name, problems, unknown, option)
		}
	}
	if got := len(config.written()); got != options {
		t.Errorf("got %d options in written(); want %d, one for each field", got, options)
	}
}

func isSection(option string) bool {
	for _, section := range sections {
		if section == option {
			return true
		}
	}
	return false
}

func TestSettingsShareAPipelineIfTheirDeliveryIsTheSame(t *testing.T) {
	key := func(options opts) string {
		set, problems, _ := readSettings(configOf(options), "m")
		if len(problems) > 0 {
			t.Errorf("%v: got problems %q; want none", options, problems)
		}
		return set.targets[0].key
	}
	base := key(nil)
	for _, same := range []opts{
		{"methods": "GET"}, {"mirrorBody": false}, {"maxBodySize": 1}, {"headers.defaultMode": "drop"}, {"attributes": map[string]string{"a": "b"}},
		{"cookieNames": "a"}, {"requestID": "a"}, {"trustForwardHeader": true}, {"workers": "4"}, {"timeout": 5}, {"hashKey": "a"}, {"strict": true},
	} {
		if key(same) != base {
			t.Errorf("%v: got another key; want the same", same)
		}
	}
	keys := map[string]string{base: "nothing"}
	for _, other := range []opts{
		{"watchURL": "http://b.test"}, {"watchURL": "http://user@receiver.test/events"}, {"watchURL": "http://user:a@receiver.test/events"}, {"format": "json"},
		{"memoryLimit": 1}, {"queueSize": 1}, {"overflow": "dropOldest"}, {"workers": 1}, {"timeout": "1s"}, {"maxAge": "1s"}, {"retry.attempts": 1},
		{"retry.initialInterval": "1s"}, {"retry.maxInterval": "1s"}, {"drainTimeout": "1s"}, {"tls.insecureSkipVerify": true}, {"tls.serverName": "a"},
		{"customRequestHeaders": map[string]string{"A": "b"}}, {"customRequestHeaders": map[string]string{"A": "c"}}, {"customRequestHeaders": map[string]string{"A": "b", "B": "b"}},
		{"signingSecrets": secretOf(strings.Repeat("a", 24))}, {"signingSecrets": secretOf(strings.Repeat("b", 24))},
		{"signingSecrets": secretOf(strings.Repeat("a", 24)) + "," + secretOf(strings.Repeat("b", 24))},
		{"signingSecrets": secretOf(strings.Repeat("b", 24)) + "," + secretOf(strings.Repeat("a", 24))},
	} {
		got := key(other)
		if before, ok := keys[got]; ok {
			t.Errorf("%v: got the key of %s; want another", other, before)
		}
		keys[got] = fmt.Sprint(other)
	}
}

func TestFileThatChangesIsTheSamePipeline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	keys := map[string]bool{}
	for _, name := range []string{"ca-a.pem", "ca-b.pem", "ca-a.pem"} {
		pem, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, pem, 0o600); err != nil {
			t.Fatal(err)
		}
		keys[settingsOf(t, opts{"tls.ca": path}).targets[0].key] = true
		if set := settingsOf(t, opts{"tls.ca": string(pem)}); set.tls.RootCAs == nil {
			t.Error("got no roots; want the ones given")
		}
	}
	if len(keys) != 1 {
		t.Errorf("got %d keys for one path; want 1, as the file is looked at while the pipeline lives", len(keys))
	}
}

func TestCatalogTestDataIsValid(t *testing.T) {
	manifest, err := os.ReadFile(".traefik.yml")
	if err != nil {
		t.Fatal(err)
	}
	_, data, found := strings.Cut(string(manifest), "\ntestData:\n")
	if !found {
		t.Fatal("got no testData in .traefik.yml")
	}
	options := opts{"strict": true}
	last := ""
	for _, line := range strings.Split(data, "\n") {
		text := strings.TrimSpace(line)
		if text == "" || text[0] == '#' {
			continue
		}
		if item, ok := strings.CutPrefix(text, "- "); ok {
			var list []interface{} // a value that Yaegi would keep where there is none
			if before, ok := options[last].([]interface{}); ok {
				list = before
			}
			options[last] = append(list, item)
			continue
		}
		name, value, ok := strings.Cut(text, ":")
		if !ok || !strings.HasPrefix(line, "  ") || strings.HasPrefix(line, "   ") {
			t.Fatalf("got line %q; this test reads options with texts and lists only", line)
		}
		last = name
		if value = strings.TrimSpace(value); value != "" {
			options[name] = value
		}
	}
	if len(options) < 3 {
		t.Fatalf("got testData %v; want some options", options)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer dissolveAll(t)
	defer cancel()
	if _, err := New(ctx, answer(""), configOf(options), t.Name()); err != nil {
		t.Errorf("got %v; want testData to be valid", err)
	}
}
