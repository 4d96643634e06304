package kubernetes

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mitchellh/mapstructure"
	"github.com/opencommit/requestmirror"
	"github.com/opencommit/requestmirror/test/kubernetes/policy"
	admission "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/version"
	"k8s.io/apiserver/pkg/admission/plugin/cel"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/matchconditions"
	"k8s.io/apiserver/pkg/cel/environment"
	"sigs.k8s.io/yaml"
)

// verdict is what the API server says to a Middleware; empty if it takes it.
func verdict(t *testing.T, c *cluster, m *unstructured.Unstructured) string {
	t.Helper()
	_, err := c.apply(context.Background(), m, true)
	if err == nil {
		return ""
	}
	_, message, ours := strings.Cut(err.Error(), "denied request: ")
	if !ours {
		t.Fatalf("an error that is not the policy's: %v", err)
	}
	return message
}

// policed is a cluster in which the policy is in effect. It is not the one of the tests
// of Traefik, which gets bad Middlewares on purpose. Tests of the policy run at the same
// time, after those that share Traefik's ports: nothing that they do is stored.
func policed(t *testing.T) *cluster {
	t.Helper()
	lab.policing.Do(func() {
		lab.policed = newCluster(t, "policed", "")
		if err := lab.policed.define(); err != nil {
			t.Fatal(err)
		}
		enforce(t, lab.policed, "policy")
	})
	if lab.policed == nil {
		t.Fatal("the policy is not in effect: see the test that wanted it first")
	}
	return lab.policed
}

// newCluster is startCluster for tests.
func newCluster(t *testing.T, name, version string, more ...string) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	c, err := startCluster(ctx, filepath.Join(lab.dir, name), version, more...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// enforce applies the policy and waits until it counts.
func enforce(t *testing.T, c *cluster, dir string) {
	t.Helper()
	for _, o := range shipped(t, dir) {
		if o.GetNamespace() != "" {
			applyOne(t, c, namespace(o.GetNamespace()))
		}
		applyOne(t, c, o)
	}
	await(t, "the policy to count", func() (bool, any) {
		c.warnings.take()
		_, err := c.apply(context.Background(), middleware("default", "probe", map[string]any{"watchURL": "nowhere"}), true)
		said := strings.Join(c.warnings.take(), "\n") + fmt.Sprint(err)
		return strings.Contains(said, "absolute http or https URL"), said
	})
}

// await is poll for tests.
func await(t *testing.T, what string, done func() (ok bool, seen any)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := poll(ctx, what, done); err != nil {
		t.Fatal(err)
	}
}

// pluginVerdict is what the plugin itself says, given what Traefik would give it.
func pluginVerdict(t *testing.T, options any) error {
	t.Helper()
	raw, err := json.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	written := map[string]any{}
	if err := json.Unmarshal(raw, &written); err != nil {
		return err // as Traefik's provider says
	}
	config := requestmirror.CreateConfig()
	decoder, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		DecodeHook: mapstructure.StringToSliceHookFunc(","), WeaklyTypedInput: true, Result: config,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := decoder.Decode(written); err != nil {
		return err
	}
	// Strict, so that it says what is wrong. Where that is the option in question, what
	// New returns shows whether it took the options.
	given := config.Strict != nil
	if !given {
		config.Strict = true
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	handler, err := requestmirror.New(ctx, http.NotFoundHandler(), config, "policy@kubernetescrd")
	if _, mirrors := handler.(*requestmirror.Mirror); err == nil && given && !mirrors {
		return errors.New("nothing is mirrored")
	}
	return err
}

// configurations are options as one would write them. Those that begin with an option
// get a receiver, too, unless they are about one.
var configurations = map[string]struct{ good, bad []string }{
	"receivers": {
		good: []string{
			"watchURL: http://receiver.example.com:9000/events", "watchURL: HTTPS://user:password@receiver/", "WATCHurl: http://[::1]:80",
			"watchURL: ' http://receiver/ '", "watchURLs: [http://a/, http://b/]", "watchURLs: http://a/,http://b/,", "metricsPath: /metrics",
			"watchURL: ''\nmetricsPath: /metrics", "metricsPath: /metrics\nanswer: null\nauthenticate: null", "metricsPath: \"/a\\nb\"",
			"watchURL: http://a/\nmetricsPath: /metrics\nanswer: 202",
		},
		bad: []string{
			"{}", "watchURL: ''", "watchURL: ' '", "watchURLs: ','", "watchURL: null", "watchURL: receiver", "watchURL: /events", "watchURL: ftp://receiver/", "watchURL: http://",
			"watchURL: 'http://re ceiver/'", "watchURL: http://a:port/", "watchURL: [http://a/]", "watchURL: {a: b}", "watchURL: 9000",
			"watchURLs: [http://a/, http://a/]", "watchURL: http://a/\nwatchURLs: [http://a/]", "watchURLs: [http://a/, '']", "watchURLs: []",
			"watchURLs: {a: http://a/}", "watchURLs: [[http://a/]]", "metricsPath: metrics", "methods: [POST]",
			"watchURL: http://a/\nmetricsPath: metrics", "metricsPath: /metrics\nanswer: 202", "metricsPath: /metrics\nANSWER: 0", "metricsPath: /metrics\nauthenticate: {secrets: [a]}",
			"watchURL: 'file:'", "watchURLs: ['file:']",
		},
	},
	"names": {
		good: []string{
			"QUEUEsize: 5", "RETRY: {Attempts: 4}", "queueSize: null", "retry: {}", "retry: {attempts: null}", "retry: null", "zzz: null",
			"queueSize: null\nQUEUESIZE: 5", "retry: null\nRETRY: {attempts: 4}", "retry: {attempts: 4}\nRETRY: {maxInterval: 1s}", "retry.attempts: 4",
		},
		bad: []string{
			"watchUrls2: [http://a/]", "zzz: 1", "retry: {attempt: 3}", "retry: 3", "retry: [3]", "headers: {X-A: drop}", "tls: on", "url: http://a/", "'': 1",
			"queueSize: 5\nQUEUESIZE: 7", "queueSize: 5\nqueuesize: 5", "retry: {attempts: 4, Attempts: 7}", "retry: {attempts: 4}\nRETRY: {ATTEMPTS: 4}",
			"retry: {attempts: 4}\nretry.attempts: 7", "retry: {attempts: 4}\nRETRY: 7", "watchURL: http://a/\nWATCHURL: http://a/",
		},
	},
	"booleans": {
		good: []string{"mirrorBody: false", "mirrorBody: 'true'", "mirrorBody: 1", "mirrorBody: 0", "mirrorBody: T", "mirrorBody: ' false '"},
		bad:  []string{"mirrorBody: yes please", "mirrorBody: 2", "mirrorBody: 'yes'", "mirrorBody: [true]", "mirrorBody: {a: true}", "mirrorBody: ''"},
	},
	"integers": {
		good: []string{"queueSize: 5", "queueSize: '5'", "queueSize: ' 5 '", "queueSize: '+5'", "queueSize: 5.0", "queueSize: 1e3", "queueSize: '007'", "workers: auto", "workers: AUTO"},
		bad: []string{
			"queueSize: 5.5", "queueSize: lots", "queueSize: '5.0'", "queueSize: '1e3'", "queueSize: 5k", "queueSize: true", "queueSize: -1", "queueSize: ''",
			"queueSize: '99999999999999999999999'", "queueSize: 1e300", "queueSize: [5]", "queueSize: {a: 5}", "queueSize: auto", "workers: automatic",
		},
	},
	"sizes": {
		good: []string{
			"maxBodySize: 65536", "maxBodySize: '65536'", "maxBodySize: 512Ki", "maxBodySize: 512 Ki", "maxBodySize: \"1\\tKi\"", "maxBodySize: 1MB", "maxBodySize: 1k", "maxBodySize: 1K",
			"maxBodySize: 1kB", "maxBodySize: 1KB", "maxBodySize: 100B", "maxBodySize: 1GiB", "maxBodySize: 1G", "maxBodySize: 0", "maxBodySize: 0Gi",
			"maxBodySize: '+1Mi'", "maxBodySize: '-0'", "maxBodySize: '-0Ki'", "maxEventSize: 'off'", "maxEventSize: 'OFF'", "maxEventSize: 1Mi", "memoryLimit: 1024Gi", "maxBodySize: 1e6",
		},
		bad: []string{
			"maxBodySize: 1kb", "maxBodySize: 1Kb", "maxBodySize: 1b", "maxBodySize: 1.5Mi", "maxBodySize: 1 megabyte", "maxBodySize: Mi", "maxBodySize: -1",
			"maxBodySize: -1Ki", "maxBodySize: 2Gi", "maxBodySize: 99999999999Gi", "maxBodySize: 1T", "maxBodySize: 1Ti", "maxBodySize: off", "maxBodySize: true",
			"maxBodySize: ''", "maxBodySize: unlimited", "maxEventSize: 0" /* YAML 1.1, which kubectl reads, has it as false */, "maxEventSize: off", "maxEventSize: 1023", "memoryLimit: 1025Gi", "maxBodySize: [1]", "maxBodySize: 1BB",
		},
	},
	"durations": {
		good: []string{
			"timeout: 5s", "timeout: 5", "timeout: '5'", "timeout: 1m30s", "timeout: 1.5s", "timeout: .5s", "timeout: 250ms", "timeout: 1000us", "timeout: 1000µs",
			"timeout: ' 5s '", "timeout: '+5s'", "timeout: 5.0", "reportInterval: 0", "reportInterval: '0'", "reportInterval: 0s", "drainTimeout: 0", "maxAge: 24h",
		},
		bad: []string{
			"timeout: 5 s", "timeout: 5sec", "timeout: 1d", "timeout: s", "timeout: 0", "timeout: -5s", "timeout: 11m", "timeout: 5S", "timeout: 1.5", "timeout: true",
			"timeout: ''", "timeout: forever", "timeout: 99999999999999h", "timeout: 9999999999s", "timeout: [5s]", "timeout: 1us", "maxAge: 25h", "timeout: 1e300",
		},
	},
	"fractions": {
		good: []string{"sampleRate: 0", "sampleRate: 1", "sampleRate: 0.25", "sampleRate: '0.25'", "sampleRate: .5", "sampleRate: 1e-2", "sampleRate: '1e-2'", "sampleRate: 1.0"},
		bad:  []string{"sampleRate: 1.1", "sampleRate: -0.1", "sampleRate: 25%", "sampleRate: half", "sampleRate: true", "sampleRate: ''", "sampleRate: [0.5]", "sampleRate: 1/4"},
	},
	"choices": {
		good: []string{"format: json", "format: JSON", "format: ' json '", "overflow: dropoldest", "compression: GZIP", "captureResponse: body", "headers: {defaultMode: drop}"},
		bad:  []string{"format: xml", "format: ''", "format: 1", "format: [json]", "overflow: drop", "compression: br", "captureResponse: true", "headers: {defaultMode: remove}", "queryParameters: {defaultMode: 1}"},
	},
	"lists": {
		good: []string{
			"methods: [POST, get]", "methods: POST,get", "methods: POST", "methods: []", "methods: ''", "methods: [M-SEARCH]", "cookieNames: ['*']", "cookieNames: a,b",
			"cookieNames: [1, true]", "bodyContentTypes: [text/*]", "redactBodyFields: [password]", "redactBodyFields: ['пароль', a-b, '٣']", "includePaths: ['^/api/']", "excludePaths: '^/a,^/b'", "includePaths: []",
		},
		bad: []string{
			"methods: [PO ST]", "methods: [POST, '']", "methods: ['GET/']", "methods: {POST: true}", "methods: [[POST]]", "methods: [null]", "methods: [{a: b}]",
			"cookieNames: {a: b}", "bodyContentTypes: {a: b}", "includePaths: ['(']", "excludePaths: ['[a', b]", "includePaths: {a: b}", "redactBodyFields: {a: b}",
			"redactBodyFields: ['*']", "redactBodyFields: ['']", "redactBodyFields: '*'", "redactBodyFields: [password, --]",
		},
	},
	"tables": {
		good: []string{
			"attributes: {environment: production, shard: 1, live: true}", "attributes: {}", "headers: {names: {X-A: drop, x-b: HASH, X-C: ' keep '}}",
			"queryParameters: {names: {token: redact}}", "headers: {names: {Cookie: drop}}", "customRequestHeaders: {X-Token: a}", "headers: {names: {}}",
		},
		bad: []string{
			"attributes: [a]", "attributes: a", "attributes: {a: {b: c}}", "attributes: {a: [b]}", "attributes: {a: null}", "headers: {names: {X-A: remove}}", "headers: {names: [X-A]}",
			"headers: {names: {X-A: drop, x-a: keep}}", "queryParameters: {names: {a: drop, A: keep}}", "queryParameters: {names: {a: true}}", "headers: {names: {Cookie: keep}}",
			"headers: {names: {cookie: hash}}", "customRequestHeaders: {'X Token': a}", "customRequestHeaders: {Content-Type: a}", "customRequestHeaders: {webhook-id: a}",
			"customRequestHeaders: {X-Token: \"a\\nb\"}", "customRequestHeaders: {X-Token: [a]}", "customRequestHeaders: [a]",
			"customRequestHeaders: {X-Token: 'file:'}",
		},
	},
	"forms": {
		good: []string{
			"requestID: X-Trace", "requestID: ''", "requestOrigin: mirror.example.com", "requestOrigin: ''", "hashKey: a long random text", "hashKey: 5",
			"tls: {serverName: a}", "tls: {insecureSkipVerify: true}", "metricsPath: /a b",
		},
		bad: []string{"requestID: 'X Trace'", "requestOrigin: '*'", "requestOrigin: -a", "requestOrigin: a b", "hashKey: [a]", "tls: {insecureSkipVerify: maybe}", "tls: {serverName: {a: b}}", "hashKey: 'file:'", "tls: {ca: 'file:'}"},
	},
	"signing secrets": {
		good: []string{
			"signingSecrets: [whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr]", "signingSecrets: whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
			"signingSecrets: [" + whsec(24) + ", " + whsec(25) + ", " + whsec(26) + "]", "signingSecrets: [" + whsec(62) + ", " + whsec(63) + ", " + whsec(64) + "]", "signingSecrets: []",
		},
		bad: []string{
			"signingSecrets: [MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw]", "signingSecrets: [whsec_]", "signingSecrets: [whsec_short]", "signingSecrets: ['']",
			"signingSecrets: [" + whsec(23) + "]", "signingSecrets: [" + whsec(65) + "]", "signingSecrets: [" + whsec(66) + "]", "signingSecrets: ['" + whsec(24) + "=']",
			"signingSecrets: {a: b}", "signingSecrets: ['whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa-_']", "signingSecrets: 'file:'",
		},
	},
	"authentication and answers": {
		good: []string{
			"authenticate: {secrets: [a]}", "authenticate: {secrets: 'a,b', header: X-Signature, prefix: '', onFailure: reject}", "answer: 202", "answer: 0", "answer: '204'",
			"authenticate: null", "captureResponse: none\nanswer: 202",
		},
		bad: []string{
			"authenticate: {header: X-Signature}", "authenticate: {secrets: []}", "authenticate: {}", "AUTHENTICATE: {secrets: null}", "authenticate: {secrets: ','}", "authenticate: {secrets: ['']}", "authenticate: {secrets: [a], header: 'a b'}",
			"authenticate: {secrets: [a], onFailure: drop}", "authenticate: {secrets: [a], header: ''}", "answer: 100", "answer: 7", "answer: 600", "answer: accepted", "answer: -1",
			"answer: 202\ncaptureResponse: status", "authenticate: yes", "authenticate: {secret: a}",
			"authenticate: {secrets: ['file:']}", "authenticate: {secrets: 'a,file:'}",
		},
	},
	"contradictions": {
		good: []string{
			"format: request", "format: request\nbatch: {maxEvents: 1}", "format: request\nmaxEventSize: 'off'", "format: request\nbodyContentTypes: []", "format: request\nbodyContentTypes: ','", "format: request\nredactBodyFields: ','",
			"authenticate: {secrets: [a]}\nmirrorBody: false", "authenticate: {secrets: [a], onFailure: reject}\nanswer: 202\nmirrorBody: false",
		},
		bad: []string{
			"format: request\nbatch: {maxEvents: 2}", "format: request\ncompression: gzip", "format: request\nmaxEventSize: 1Mi", "format: otlp\nmaxEventSize: 1Mi", "format: request\nredactBodyFields: [a]",
			"format: request\ncaptureResponse: body", "format: request\nmirrorBody: false", "format: request\nbodyContentTypes: [text/*]",
			"authenticate: {secrets: [a], onFailure: reject}\nmirrorBody: false", "authenticate: {secrets: [a], onFailure: reject}\nbodyContentTypes: text/*",
			"tls: {cert: '-----BEGIN'}", "tls: {key: '-----BEGIN'}",
		},
	},
	"switched off": {
		good: []string{"enabled: false\nqueueSize: 0\nzzz: 1\nwatchURL: nothing", "enabled: 'f'\nincludePaths: '('", "ENABLED: 0\nformat: xml", "enabled: true"},
		bad:  []string{"enabled: true\nqueueSize: 0", "enabled: maybe", "enabled: [false]", "enabled: false\nENABLED: true"},
	},
}

// whsec is a signing secret of so many bytes.
func whsec(n int) string {
	const bytes = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789"
	return "whsec_" + base64Text(bytes[:n])
}

func withReceiver(group, text string) string {
	if group == "receivers" || strings.Contains(text, "watchURL") || strings.HasPrefix(text, "{}") {
		return text
	}
	return "watchURL: http://receiver.example.com/\n" + text
}

func TestThePolicySaysWhatThePluginSays(t *testing.T) {
	t.Parallel()
	c := policed(t)
	for group, list := range configurations {
		for _, text := range list.good {
			compare(t, c, withReceiver(group, text), true)
		}
		for _, text := range list.bad {
			compare(t, c, withReceiver(group, text), false)
		}
	}
}

// compare gives options to the plugin and to the policy.
func compare(t *testing.T, c *cluster, text string, good bool) {
	t.Helper()
	options := fromYAML(t, text)
	if err := pluginVerdict(t, options); (err == nil) != good {
		t.Errorf("%q: the plugin says %v; want good %v", text, err, good)
	}
	if said := verdict(t, c, middleware("default", "probe", options)); (said == "") != good {
		t.Errorf("%q: the policy says %q; want good %v", text, said, good)
	}
}

// numbers are int64 where they are whole, as the client has them.
func numbers(value any) any {
	switch v := value.(type) {
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	case map[string]any:
		for key := range v {
			v[key] = numbers(v[key])
		}
	case []any:
		for i := range v {
			v[i] = numbers(v[i])
		}
	}
	return value
}

// TestTheBoundsOfEveryOptionAreThoseOfThePlugin goes to each bound and one step beyond.
func TestTheBoundsOfEveryOptionAreThoseOfThePlugin(t *testing.T) {
	t.Parallel()
	c := policed(t)
	plugin := sources(t)
	checked := 0
	for _, o := range plugin.Options {
		var good, bad []any
		switch o.Kind {
		case "integer", "size":
			good = []any{o.Least, o.Most, fmt.Sprint(o.Least), fmt.Sprint(o.Most)}
			bad = []any{o.Least - 1, o.Most + 1, "much", []any{o.Least}, map[string]any{"a": o.Least}}
		case "duration":
			good = []any{time.Duration(o.Least).String(), time.Duration(o.Most).String()}
			bad = []any{time.Duration(o.Least - 1).String(), time.Duration(o.Most + 1).String(), "long", []any{"5s"}}
		case "boolean":
			good = []any{true, false, "true"}
			bad = []any{"perhaps", []any{true}}
		case "choice":
			for _, word := range o.Words {
				good = append(good, word)
			}
			bad = []any{"neither", []any{o.Words[0]}}
		default:
			continue
		}
		checked++
		for _, value := range good {
			compareValue(t, c, o.Name, value, true)
		}
		for _, value := range bad {
			compareValue(t, c, o.Name, value, false)
		}
	}
	if checked < 30 {
		t.Errorf("got %d options with bounds; want at least 30", checked)
	}
}

// samples are values of options whose type says none.
var samples = map[string]any{
	"watchURL": "http://other.example.com/", "watchURLs": []any{"http://more.example.com/"}, "metricsPath": "/metrics", "requestID": "X-Id",
	"requestOrigin": "mirror.example.com", "hashKey": "a", "signingSecrets": []any{whsec(32)}, "authenticate.header": "X-Signature",
	"authenticate.prefix": "v1=", "authenticate.secrets": []any{"a"}, "methods": []any{"POST"}, "cookieNames": []any{"a"}, "bodyContentTypes": []any{"text/*"},
	"redactBodyFields": []any{"password"}, "includePaths": []any{"^/"}, "excludePaths": []any{"^/a"}, "attributes": map[string]any{"a": "b"},
	"headers.names": map[string]any{"X-A": "hash"}, "queryParameters.names": map[string]any{"a": "drop"}, "customRequestHeaders": map[string]any{"X-A": "b"},
	"tls.serverName": "a", "sampleRate": 0.5,
	// What is in them only the plugin can read.
	"tls.ca": "", "tls.cert": "", "tls.key": "",
}

// TestOptionsThatContradictEachOther sets two options at a time, one of them to each value
// that changes what others mean.
func TestOptionsThatContradictEachOther(t *testing.T) {
	t.Parallel()
	c := policed(t)
	plugin := sources(t)
	values := func(o policy.Option) []any {
		switch o.Kind {
		case "integer", "size":
			return []any{o.Most}
		case "duration":
			return []any{time.Duration(o.Most).String()}
		case "boolean":
			return []any{true, false}
		case "choice":
			list := []any{}
			for _, word := range o.Words {
				list = append(list, word)
			}
			return list
		}
		sample, ok := samples[o.Name]
		if !ok {
			t.Errorf("%s: no sample", o.Name)
		}
		return []any{sample}
	}
	pairs, refused := 0, 0
	pair := func(base, value string, first, second policy.Option, a, b any) {
		options := map[string]any{base: value}
		place(options, first.Name, a)
		place(options, second.Name, b)
		text, err := yaml.Marshal(options)
		if err != nil {
			t.Fatal(err)
		}
		plugin := pluginVerdict(t, fromYAML(t, string(text)))
		said := verdict(t, c, middleware("default", "probe", fromYAML(t, string(text))))
		if (plugin == nil) != (said == "") {
			t.Errorf("%q: the plugin says %v; the policy says %q", text, plugin, said)
		}
		pairs++
		if plugin != nil {
			refused++
		}
	}
	for _, first := range plugin.Options {
		if !slices.Contains([]string{"format", "captureResponse", "answer", "authenticate.onFailure", "mirrorBody", "enabled"}, first.Name) {
			continue
		}
		for _, a := range values(first) {
			for _, second := range plugin.Options {
				for _, b := range values(second) {
					if first.Name == second.Name || second.Name == "strict" {
						continue
					}
					pair("watchURL", "http://receiver.example.com/", first, second, a, b)
					// Without a receiver, which these two need.
					if first.Name == "answer" || first.Name == "authenticate.onFailure" {
						pair("metricsPath", "/metrics", first, second, a, b)
					}
				}
			}
		}
	}
	if pairs < 1000 || refused < 100 {
		t.Errorf("got %d pairs, of which the plugin refuses %d; want at least 1000 and 100", pairs, refused)
	}
}

// place sets an option, with what belongs to it.
func place(options map[string]any, name string, value any) {
	section, part, nested := strings.Cut(name, ".")
	if !nested {
		options[name] = value
		return
	}
	parts, _ := options[section].(map[string]any)
	if parts == nil {
		parts = map[string]any{}
	}
	if section == "authenticate" && parts["secrets"] == nil {
		parts["secrets"] = []any{"a"}
	}
	parts[part] = value
	options[section] = parts
}

func compareValue(t *testing.T, c *cluster, name string, value any, good bool) {
	t.Helper()
	options := map[string]any{"watchURL": "http://receiver.example.com/"}
	place(options, name, value)
	text, err := yaml.Marshal(options)
	if err != nil {
		t.Fatal(err)
	}
	compare(t, c, string(text), good)
}

// TestThePolicyRefusesALittleMoreThanThePlugin has what docs/reference/admission-policy.md
// says of it.
func TestThePolicyRefusesALittleMoreThanThePlugin(t *testing.T) {
	t.Parallel()
	c := policed(t)
	for _, text := range []string{
		"queueSize: '0000000000000000005'", "maxBodySize: '0000000000000000005'", "timeout: 9999999999ns", "timeout: 000001m", "timeout: 0.0000000001h1s",
		"timeout: 1s1s1s1s1s1s1s", "sampleRate: 1e-120", "sampleRate: '0x1p-2'", "watchURL: 'http://receiver#a'",
	} {
		options := fromYAML(t, withReceiver("", text))
		if err := pluginVerdict(t, options); err != nil {
			t.Errorf("%q: the plugin says %v; want no objection", text, err)
		}
		if said := verdict(t, c, middleware("default", "probe", options)); said == "" {
			t.Errorf("%q: got no objection: take it from the page", text)
		}
	}
}

// unseen are the problems that no bad configuration has, and why not.
var unseen = map[string]string{
	"a certificate that belongs to tls.key, both PEM":   "what is in PEM, the policy cannot see",
	"PEM certificates, or the path of a file with them": "likewise",
	"fewer or smaller expressions: ":                    "hundreds of expressions are more work than the API server lets a policy do",
}

// TestABadConfigurationHasEachProblemOfThePlugin keeps what the plugin learns to refuse
// from being forgotten here, and so in the policy.
func TestABadConfigurationHasEachProblemOfThePlugin(t *testing.T) {
	t.Parallel()
	var said []string
	for group, list := range configurations {
		for _, text := range list.bad {
			said = append(said, fmt.Sprintln(pluginVerdict(t, fromYAML(t, withReceiver(group, text)))))
		}
	}
	all := strings.Join(said, "")
	wanted := sources(t).Wanted
	for _, text := range wanted {
		if seen := strings.Contains(all, ", want "+text); seen == (unseen[text] != "") {
			t.Errorf("want %s: got a bad configuration that has this problem: %v; want %v, or another word in unseen", text, seen, !seen)
		}
	}
	for text := range unseen {
		if !slices.Contains(wanted, text) {
			t.Errorf("unseen: the plugin has no problem that wants %q", text)
		}
	}
	if len(wanted) < 30 {
		t.Errorf("got %d problems in the sources; want at least 30: %q", len(wanted), wanted)
	}
}

func sources(t *testing.T) *policy.Plugin {
	t.Helper()
	plugin, err := policy.Read(root)
	if err != nil {
		t.Fatal(err)
	}
	return plugin
}

func base64Text(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// TestLargeConfigurationsPass has every option at once, and long lists and maps: the API
// server stops a policy that is too much work.
func TestLargeConfigurationsPass(t *testing.T) {
	t.Parallel()
	c := policed(t)
	_, text, _ := strings.Cut(page(t, "reference/options.md"), "## Everything at once")
	all := fromYAML(t, blocks(text, "yaml")[0]).(map[string]any)
	options, found, err := unstructured.NestedMap(all, "http", "middlewares", "mirror", "plugin", "requestmirror")
	if err != nil || !found || len(options) < 25 {
		t.Fatalf("got %d options of the page; want most of them (%v)", len(options), err)
	}
	table, names, urls := map[string]any{}, map[string]any{}, []any{}
	for i := range 200 {
		table[fmt.Sprintf("some-name-%d", i)] = "some value"
		names[fmt.Sprintf("X-Some-Name-%d", i)] = "drop"
		urls = append(urls, fmt.Sprintf("http://receiver-%d.example.com:9000/events", i))
	}
	for name, options := range map[string]map[string]any{
		"every option": options, "attributes": {"attributes": table}, "headers": {"headers": map[string]any{"names": names}},
		"custom headers": {"customRequestHeaders": table}, "receivers": {"watchURLs": urls},
	} {
		options["watchURL"] = "http://receiver.example.com/"
		if said := verdict(t, c, middleware("default", "probe", options)); said != "" {
			t.Errorf("%s: got %q; want no objection", name, said)
		}
	}
}

// TestPolicyMessages checks what users read: every problem at once, and no secret.
func TestPolicyMessages(t *testing.T) {
	t.Parallel()
	c := policed(t)
	for name, test := range map[string]struct {
		options string
		want    []string
		never   string
	}{
		"all problems at once": {
			options: "watchURL: receiver\nqueueSize: 0\nmaxBodySize: lots\ntimeout: 1d\nformat: xml\nmirrorBody: maybe\nsampleRate: 2\nmethods: [G ET]\nretries: 3\nheaders: {names: {X-A: remove}}",
			want: []string{
				"spec.plugin.requestmirror: retries: unknown option, perhaps retry.attempts, perhaps retry.initialInterval, perhaps retry.maxInterval; ",
				`mirrorBody: "maybe", want true or false; `,
				`queueSize: "0", want a whole number from 1 to 1000000; `,
				`sampleRate: "2", want a number from 0 to 1; `,
				`maxBodySize: "lots", want a size such as 65536, 512Ki or 1MB, from 0 to 1073741824 bytes; `,
				`timeout: "1d", want a duration such as 5s, from 1ms to 10m; `,
				`format: "xml", want one of cloudevents, json, request, otlp; `,
				`methods: "G ET", want an HTTP method; `,
				"watchURL: a value that is not shown, want an absolute http or https URL; ",
				"headers.names.X-A: want one of keep, redact, hash, drop",
			},
		},
		"nothing at all": {options: "{}", want: []string{"watchURL: missing, want the http or https URL of the receiver, or watchURLs, or metricsPath"}},
		"secrets": {
			options: "watchURL: hunter2\nwatchURLs: [hunter2]\nsigningSecrets: [hunter2]\nhashKey: [hunter2]\ncustomRequestHeaders: {Content-Type: hunter2}\nauthenticate: {secrets: {a: hunter2}}\ntls: {key: [hunter2]}",
			want:    []string{"signingSecrets: a value that is not shown, want whsec_ and the base64 of 24 to 64 bytes", "watchURLs: a receiver that is given twice"},
			never:   "hunter2",
		},
		"names that could write lines of their own": {
			options: "watchURL: http://a/\n\"a\\nb\": 1\n\"é\": 1\nformat: \"x\\ny\"",
			want:    []string{"a name that is not shown: unknown option", "format: a text that is not shown"},
			never:   "é",
		},
		"what Traefik could not resolve": {
			options: "watchURL: urn:k8s:secret:mirror\nsigningSecrets: [urn:k8s:secret:a:b:c]\ncustomRequestHeaders: {X-A: 'urn:k8s:secret:'}",
			want:    []string{"watchURL: want urn:k8s:secret:<secret>:<key>", "signingSecrets: want urn:k8s:secret:<secret>:<key>", "customRequestHeaders: want urn:k8s:secret:<secret>:<key>"},
		},
		"an expression that does not compile": {
			options: "watchURL: http://a/\nincludePaths: ['(']",
			want:    []string{"missing closing ): `(`"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			said := verdict(t, c, middleware("default", "probe", fromYAML(t, test.options)))
			for _, want := range test.want {
				if !strings.Contains(said, want) {
					t.Errorf("got %q; want %q in it", said, want)
				}
			}
			if test.never != "" && strings.Contains(said, test.never) {
				t.Errorf("got %q; want no %q in it", said, test.never)
			}
		})
	}
}

func TestThePolicyLeavesTheRestToTraefik(t *testing.T) {
	t.Parallel()
	c := policed(t)
	for name, spec := range map[string]string{
		"another plugin":              "plugin: {other: {queueSize: 0, zzz: 1}}",
		"a middleware of Traefik's":   "stripPrefix: {prefixes: [/api]}",
		"values from Secrets":         "plugin: {requestmirror: {watchURL: 'urn:k8s:secret:mirror:url', queueSize: 'urn:k8s:secret:mirror:size', signingSecrets: ['urn:k8s:secret:mirror:signing'], attributes: {a: 'urn:k8s:secret:mirror:a'}, tls: {cert: 'urn:k8s:secret:mirror:cert', key: 'urn:k8s:secret:mirror:key'}}}",
		"files that only Traefik has": "plugin: {requestmirror: {watchURL: 'file:/run/secrets/url', watchURLs: ['file:/run/secrets/more'], signingSecrets: ['file:/run/secrets/signing'], authenticate: {secrets: 'file:/run/secrets/a'}, tls: {ca: /etc/ca.pem}}}",
	} {
		t.Run(name, func(t *testing.T) {
			if said := verdict(t, c, withSpec(t, spec)); said != "" {
				t.Errorf("got %q; want no objection", said)
			}
		})
	}
	for name, test := range map[string]struct{ spec, want string }{
		"no options":  {"plugin: {requestmirror: null}", "no option is left in it"},
		"no plugin":   {"plugin: {}", "no option is left in it"},
		"two plugins": {"plugin: {requestmirror: {watchURL: http://a/}, other: {a: b}}", "more than one plugin"},
		"a text":      {"plugin: {requestmirror: on please}", "want options under it"},
		"a list":      {"plugin: {requestmirror: [a]}", "want options under it"},
	} {
		t.Run(name, func(t *testing.T) {
			if said := verdict(t, c, withSpec(t, test.spec)); !strings.Contains(said, test.want) {
				t.Errorf("got %q; want %q in it", said, test.want)
			}
		})
	}
}

// oldest is the oldest Kubernetes that this API server can behave as.
const oldest = "1.33"

// audited has the API server log what concerns Middlewares, with what policies say of it.
const audited = `
apiVersion: audit.k8s.io/v1
kind: Policy
rules: [{level: Metadata, resources: [{group: traefik.io}]}]
`

// TestRollingThePolicyOutOnTheOldestKubernetes does what docs/how-to/roll-out-safely.md
// says, in that order: the trial, the policy, the trial again, without it, and with it
// again. Each time it takes the ConfigMap away, too, and brings it back.
func TestRollingThePolicyOutOnTheOldestKubernetes(t *testing.T) {
	t.Parallel()
	audit := t.TempDir()
	rules, log := filepath.Join(audit, "policy.yaml"), filepath.Join(audit, "log")
	if err := os.WriteFile(rules, []byte(audited), 0o644); err != nil {
		t.Fatal(err)
	}
	c := newCluster(t, "oldest", oldest, "--audit-policy-file="+rules, "--audit-log-path="+log)
	defer c.stop()
	if err := c.define(); err != nil {
		t.Fatal(err)
	}
	version, err := c.client.Discovery().ServerVersion()
	if err != nil || "1."+version.EmulationMinor != oldest {
		t.Fatalf("got version %+v %v; want an emulated %s", version, err, oldest)
	}
	applyOne(t, c, namespace("default"))
	old := middleware("default", "old", map[string]any{"watchURL": "http://a/", "queueSize": int64(0)})
	applyOne(t, c, old)
	bad := middleware("default", "bad", map[string]any{"watchURL": "http://a/", "queueSize": int64(0)})
	const problem = `queueSize: "0", want a whole number from 1 to 1000000`
	// As the page has it, where kubectl writes a word before.
	shown := strings.TrimPrefix(strings.TrimSpace(blocks(page(t, "how-to/roll-out-safely.md"), "text")[0]), "Warning: ")
	warned := func() (bool, any) {
		c.warnings.take()
		_, err := c.apply(context.Background(), bad, true)
		said := c.warnings.take()
		return err == nil && slices.Contains(said, shown), fmt.Sprint(said, err)
	}
	refused := func() (bool, any) {
		_, err := c.apply(context.Background(), bad, true)
		return err != nil && strings.Contains(err.Error(), problem), err
	}

	parameters := only(t, shipped(t, "policy"), "ConfigMap")
	deleteParameters := func() {
		t.Helper()
		if err := c.remove(t.Context(), parameters); err != nil {
			t.Fatal(err)
		}
	}
	silent := func() (bool, any) {
		c.warnings.take()
		_, err := c.apply(context.Background(), bad, true)
		said := c.warnings.take()
		return err == nil && len(said) == 0, fmt.Sprint(said, err)
	}

	enforce(t, c, "policy-trial")
	await(t, "a warning", warned)
	await(t, "the audit log", func() (bool, any) {
		text, err := os.ReadFile(log)
		return err == nil && slices.ContainsFunc(strings.Split(string(text), "\n"), func(line string) bool {
			return strings.Contains(line, "validation.policy.admission.k8s.io/validation_failure") && strings.Contains(line, "want a whole number from 1 to 1000000")
		}), fmt.Sprint(len(text), " bytes ", err)
	})
	// The trial refuses nothing, not even where it does not know what to look at.
	deleteParameters()
	await(t, "the trial to say nothing without its parameters", silent)
	applyOne(t, c, parameters)
	await(t, "a warning with them", warned)

	enforce(t, c, "policy")
	await(t, "an objection", refused)

	// Another name in Traefik is another one here.
	renamed := parameters.DeepCopy()
	set(t, renamed, "mirror", "data", "pluginName")
	applyOne(t, c, renamed)
	other := withSpec(t, "plugin: {mirror: {watchURL: http://a/, queueSize: 0}}")
	await(t, "an objection to the plugin mirror", func() (bool, any) {
		_, err := c.apply(context.Background(), other, true)
		return err != nil && strings.Contains(err.Error(), "denied request: spec.plugin.mirror: "+problem), err
	})
	if said := verdict(t, c, bad); said != "" {
		t.Errorf("the plugin requestmirror, where it is called mirror: got %q; want no objection", said)
	}
	deleteParameters()
	missing := strings.TrimSpace(blocks(page(t, "reference/admission-policy.md"), "text")[1])
	await(t, "an objection to everything", func() (bool, any) {
		_, err := c.apply(context.Background(), middleware("default", "good", map[string]any{"watchURL": "http://a/"}), true)
		return err != nil && strings.HasSuffix(err.Error(), missing), err
	})
	applyOne(t, c, parameters)
	await(t, "an objection with them", refused)

	// One from before may change, but not to something that is wrong, too.
	old.SetLabels(map[string]string{"team": "a"})
	if _, err := c.apply(context.Background(), old, false); err != nil {
		t.Errorf("a label: %v", err)
	}
	set(t, old, int64(-1), "spec", "plugin", "requestmirror", "queueSize")
	if said := verdict(t, c, old); !strings.Contains(said, "queueSize") {
		t.Errorf("another mistake: got %q; want an objection", said)
	}
	set(t, old, int64(10), "spec", "plugin", "requestmirror", "queueSize")
	if said := verdict(t, c, old); said != "" {
		t.Errorf("mended: got %q; want no objection", said)
	}
	// The last option is taken away by its owner: nothing of the map is left.
	last := middleware("default", "last", map[string]any{"watchURL": "http://a/"})
	applyOne(t, c, last)
	set(t, last, map[string]any{}, "spec", "plugin", "requestmirror")
	if said := verdict(t, c, last); !strings.Contains(said, "no option is left in it") {
		t.Errorf("an emptied map: got %q; want an objection", said)
	}

	enforce(t, c, "policy-trial")
	await(t, "a warning again", warned)

	// The binding alone is the switch. The ConfigMap stays: once no binding asks for one,
	// the API server does not see new ones (kubernetes/kubernetes#130887).
	if err := c.remove(context.Background(), only(t, shipped(t, "policy"), "ValidatingAdmissionPolicyBinding")); err != nil {
		t.Fatal(err)
	}
	await(t, "the policy to be without effect", silent)
	enforce(t, c, "policy")
	await(t, "an objection again", refused)

	for group, list := range configurations {
		if said := verdict(t, c, middleware("default", "probe", fromYAML(t, withReceiver(group, list.good[0])))); said != "" {
			t.Errorf("%q: got %q; want no objection", list.good[0], said)
		}
		if said := verdict(t, c, middleware("default", "probe", fromYAML(t, withReceiver(group, list.bad[0])))); said == "" {
			t.Errorf("%q: got no objection", list.bad[0])
		}
	}
	// What a Gateway and an Ingress need is there, too.
	for _, dir := range []string{".", "ingressroute.yaml", "httproute.yaml"} {
		for _, o := range shipped(t, dir) {
			applyOne(t, c, namespace(namespaceOf(o)))
			applyOne(t, c, o)
		}
	}
}

// TestTheLanguageOfKubernetes130IsEnough compiles the expressions as the API server of
// 1.30 does, the first one with such policies, which is too old to be emulated.
func TestTheLanguageOfKubernetes130IsEnough(t *testing.T) {
	t.Parallel()
	p := &admission.ValidatingAdmissionPolicy{}
	typed(t, only(t, shipped(t, "policy/policy.yaml"), "ValidatingAdmissionPolicy"), p)
	compiler, err := cel.NewCompositedCompiler(environment.MustBaseEnvSet(version.MajorMinor(1, 30)))
	if err != nil {
		t.Fatal(err)
	}
	declared := cel.OptionalVariableDeclarations{HasParams: true}
	compile := func(name string, e cel.ExpressionAccessor) {
		if result := compiler.CompileCELExpression(e, declared, environment.NewExpressions); result.Error != nil {
			t.Errorf("%s: %v", name, result.Error)
		}
	}
	for _, c := range p.Spec.MatchConditions {
		compile(c.Name, &matchconditions.MatchCondition{Name: c.Name, Expression: c.Expression})
	}
	for _, v := range p.Spec.Variables {
		result := compiler.CompileAndStoreVariable(&validating.Variable{Name: v.Name, Expression: v.Expression}, declared, environment.NewExpressions)
		if result.Error != nil {
			t.Errorf("%s: %v", v.Name, result.Error)
		}
	}
	for _, v := range p.Spec.Validations {
		compile("validation", &validating.ValidationCondition{Expression: v.Expression})
		if v.MessageExpression != "" {
			compile("message", &validating.MessageExpressionCondition{MessageExpression: v.MessageExpression})
		}
	}
	// That the language is the old one, this one shows, which came with 1.34.
	young := &validating.ValidationCondition{Expression: "[[1]].flatten().size() == 1"}
	if result := compiler.CompileCELExpression(young, declared, environment.NewExpressions); result.Error == nil {
		t.Error("flatten is known: the language is not that of 1.30")
	}
}

func fromYAML(t *testing.T, text string) any {
	t.Helper()
	var value any
	if err := yaml.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return numbers(value)
}

func withSpec(t *testing.T, spec string) *unstructured.Unstructured {
	t.Helper()
	m := middleware("default", "probe", nil)
	m.Object["spec"] = fromYAML(t, spec)
	return m
}

func set(t *testing.T, o *unstructured.Unstructured, value any, path ...string) {
	t.Helper()
	if err := unstructured.SetNestedField(o.Object, value, path...); err != nil {
		t.Fatal(err)
	}
}
