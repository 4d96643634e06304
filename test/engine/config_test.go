package engine

import (
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

// unwrap returns the handler that Traefik has in hand: for compiled code the
// interface, for Yaegi what the reflect call gave, which is the same value when
// the plugin returns what it was given.
func unwrap(h http.Handler) any { return h }

func TestConfig(t *testing.T) {
	// Every one of these is reported with its path and what was given.
	bad := []struct{ path, yaml, given string }{
		{"watchURL", "watchURL: null", "missing"},
		{"watchURL", "watchURL: ''", "missing"},
		{"watchURL", "watchURL: collector:8080", `"collector:8080"`},
		{"watchURL", "watchURL: ftp://x/", `"ftp://x/"`},
		{"watchURL", "watchURL: /events", `"/events"`},
		{"methods[1]", "methods: [GET, 'P OST']", `"P OST"`},
		{"headers.defaultMode", "headers: {defaultMode: hide}", `"hide"`},
		{"headers.names.X-A", "headers: {names: {X-A: hide}}", `"hide"`},
		{"headers.names.Cookie", "headers: {names: {Cookie: keep}}", `"keep"`},
		{"queryParameters.defaultMode", "queryParameters: {defaultMode: hide}", `"hide"`},
		{"queryParameters.names.sig", "queryParameters: {names: {sig: hide}}", `"hide"`},
		{"headers", "headers: keep", `"keep"`},
		{"mirrorBody", "mirrorBody: sometimes", `"sometimes"`},
		{"maxBodySize", "maxBodySize: 1Zi", `"1Zi"`},
		{"maxBodySize", "maxBodySize: -1", "-1"},
		{"maxBodySize", "maxBodySize: 1.5", "1.5"},
		{"maxBodySize", "maxBodySize: 99999999999999999999Mi", `"99999999999999999999Mi"`},
		{"maxBodySize", "maxBodySize: 9999999999Gi", `"9999999999Gi"`},
		{"memoryLimit", "memoryLimit: 0", "0"},
		{"memoryLimit", "memoryLimit: lots", `"lots"`},
		{"format", "format: xml", `"xml"`},
		{"queueSize", "queueSize: 0", "0"},
		{"queueSize", "queueSize: many", `"many"`},
		{"queueSize", "queueSize: 1.5", "1.5"},
		{"queueSize", "queueSize: '99999999999999999999'", "99999999999999999999"},
		{"overflow", "overflow: newest", `"newest"`},
		{"workers", "workers: 0", "0"},
		{"workers", "workers: [1]", "1"},
		{"timeout", "timeout: 5 parsecs", `"5 parsecs"`},
		{"timeout", "timeout: 0", "0"},
		{"timeout", "timeout: -1s", `"-1s"`},
		{"maxAge", "maxAge: 0s", `"0s"`},
		{"retry.attempts", "retry: {attempts: 0}", "0"},
		{"retry.initialInterval", "retry: {initialInterval: soon}", `"soon"`},
		{"retry.maxInterval", "retry: {maxInterval: -5}", "-5"},
		{"retry", "retry: 3", "3"},
		{"drainTimeout", "drainTimeout: -1", "-1"},
		{"tls.ca", "tls: {ca: /no/such/file}", ""},
		{"tls", "tls: {cert: '-----BEGIN CERTIFICATE-----'}", ""},
		{"tls.insecureSkipVerify", "tls: {insecureSkipVerify: perhaps}", `"perhaps"`},
		{"customRequestHeaders.X A", "customRequestHeaders: {X A: v}", ""},
		{"customRequestHeaders.Content-Type", "customRequestHeaders: {Content-Type: text/plain}", ""},
		{"customRequestHeaders", "customRequestHeaders: [a]", ""},
		{"signingSecrets[1]", "signingSecrets: [" + secretA + ", whsec_c2hvcnQ=]", ""},
		{"attributes.a", "attributes: {a: [b]}", ""},
		{"requestID", "requestID: 'X A'", `"x a"`},
		{"trustForwardHeader", "trustForwardHeader: 2", "2"},
		{"enabled", "enabled: maybe", `"maybe"`},
		{"watchURLs[1]", "watchURLs: [http://a.example/, b.example]", `"b.example"`},
		{"watchURLs[0]", "watchURL: http://a.example/\nwatchURLs: [http://a.example/]", "given twice"},
		{"watchURLs[0]", "watchURLs: ['file:/no/such/file']", "/no/such/file"},
		{"hashKey", "hashKey: 'file:/no/such/file'", "/no/such/file"},
		{"signingSecrets[0]", "signingSecrets: ['file:/no/such/file']", "/no/such/file"},
		{"customRequestHeaders.X-Token", "customRequestHeaders: {X-Token: 'file:/no/such/file'}", "/no/such/file"},
		{"customRequestHeaders.Content-Encoding", "customRequestHeaders: {Content-Encoding: gzip}", ""},
		{"batch", "batch: 100", "100"},
		{"batch.maxEvents", "batch: {maxEvents: 0}", "0"},
		{"batch.maxEvents", "batch: {maxEvents: 10001}", "10001"},
		{"batch.maxSize", "batch: {maxSize: 10}", "10"},
		{"batch.flushInterval", "batch: {flushInterval: 0}", "0"},
		{"compression", "compression: brotli", `"brotli"`},
		{"maxEventSize", "maxEventSize: 10", "10"},
		{"maxEventSize", "maxEventSize: small", `"small"`},
		{"circuitBreaker", "circuitBreaker: 'on'", `"on"`},
		{"circuitBreaker.failures", "circuitBreaker: {failures: -1}", "-1"},
		{"circuitBreaker.openFor", "circuitBreaker: {openFor: a while}", `"a while"`},
		{"reportInterval", "reportInterval: often", `"often"`},
		{"reportInterval", "reportInterval: 25h", `"25h"`},
		{"requestOrigin", "requestOrigin: a b", `"a b"`},
		{"requestOrigin", "requestOrigin: 'https://mirror.example.com'", `"https://mirror.example.com"`},
		{"metricsPath", "metricsPath: metrics", `"metrics"`},
		{"workers", "workers: many", `"many"`},
		{"tls.cert", "tls: {cert: '/no/such/file', key: '/no/such/file'}", ""},
	}
	var table []scenario
	for _, b := range bad {
		table = append(table, scenario{name: "a problem is reported by path: " + b.yaml, config: "-", problem: []string{"\n  " + b.path + ": "}, do: func(c *run) {
			h := c.mustNew(b.yaml)
			c.eq("New returned the next handler itself", unwrap(h) == any(c.next), true)
			_, _, err := c.newRouter(b.yaml + "\nstrict: true")
			if err == nil {
				c.Fatal("New with strict: got no error; want one")
			}
			line := ""
			for _, l := range strings.Split(err.Error(), "\n") {
				if strings.HasPrefix(strings.TrimSpace(l), b.path+": ") {
					line = l
				}
			}
			if line == "" || !strings.Contains(strings.ToLower(line), strings.ToLower(b.given)) || !strings.Contains(line, "want ") {
				c.Errorf("error: got %q; want a line of %s with %s and what is wanted", err, b.path, b.given)
			}
		}})
	}

	// Secrets that ended up in the wrong place or form are in no message.
	for _, text := range []string{
		"watchURL: http://user:s3cr3t@",
		"watchURL: '://user:s3cr3t@host'",
		"watchURL: 'http://user:s3cr3t@host:port/'",
		"watchURL: ['http://user:s3cr3t@host/', 'http://user:s3cr3t@host/']",
		"watchURL: {url: 'http://user:s3cr3t@host/'}",
		"signingSecrets: [s3cr3t]",
		"signingSecrets: s3cr3t",
		"signingSecrets: {a: s3cr3t}",
		"signingSecrets: [[s3cr3t]]",
		"signingSecrets: [{a: s3cr3t}]",
		"signingSecret: s3cr3t",
		"hashKey: [s3cr3t]",
		"hashKey: {a: s3cr3t}",
		"customRequestHeaders: {Authorization: \"Bearer s3cr3t\\nX: y\"}",
		"customRequestHeaders: {Authorization: [s3cr3t]}",
		"customRequestHeaders: ['Authorization: s3cr3t']",
		"customRequestHeaders: 'Authorization: s3cr3t'",
		"tls: {key: s3cr3t, cert: s3cr3t}",
		"tls: {key: [s3cr3t]}",
		"tls: {cert: \"-----BEGIN CERTIFICATE-----\\ns3cr3t\", key: \"-----BEGIN PRIVATE KEY-----\\ns3cr3t\"}",
		"tls: s3cr3t",
	} {
		table = append(table, scenario{name: "a secret in the wrong form is not shown: " + strings.ReplaceAll(text, "\n", " "), config: "-", secret: []string{"s3cr3t"}, problem: []string{":"}, do: func(c *run) {
			c.use(c.mustNew(text))
			_, _, err := c.newRouter(text + "\nstrict: true")
			if err == nil || strings.Contains(err.Error(), "s3cr3t") {
				c.Errorf("error: got %v; want one without the secret", err)
			}
		}})
	}

	runTable(t, append(table, []scenario{
		{name: "enabled false costs nothing: New returns the next handler", config: "enabled: false", do: func(c *run) {
			c.eq("the next handler itself", unwrap(c.handler) == any(c.next), true)
			c.eq("answer", c.send("POST", "/", lorem).body, "backend")
		}},
		{name: "enabled false makes no noise about the rest", config: "{enabled: false, watchURL: null, timeout: soon, nonsense: 1}", do: func(c *run) {
			c.eq("the next handler itself", unwrap(c.handler) == any(c.next), true)
		}},
		{name: "an empty list of methods mirrors nothing", config: "methods: []", do: func(c *run) {
			c.eq("the next handler itself", unwrap(c.handler) == any(c.next), true)
		}},
		{name: "no configuration at all passes traffic through", config: "-", problem: []string{"watchURL: missing"}, do: func(c *run) {
			cfg, err := c.eng.createConfig(nil)
			if err != nil {
				c.Fatal(err)
			}
			h, err := c.eng.newHandler(context.Background(), c.next, cfg, c.name)
			c.eq("error", err, nil)
			c.eq("the next handler itself", unwrap(h) == any(c.next), true)
		}},
		{name: "a bad configuration passes traffic through and tells every problem at once", config: "{timeout: soon, workers: 0, headers: {defaultMode: hide}, overflow: x, wokers: 3}",
			problem: []string{"timeout: ", "workers: ", "headers.defaultMode: ", "overflow: ", "wokers: ", "workers"}, do: func(c *run) {
				c.eq("the next handler itself", unwrap(c.handler) == any(c.next), true)
				c.eq("answer", c.send("POST", "/", lorem).body, "backend")
			}},
		{name: "every problem of the delivery is told at once, and no secret", secret: []string{"s3cr3t"},
			config: "{watchURLs: ['https://ok.example/', 'nothing://user:s3cr3t@b.example/'], batch: {maxEvents: 0, maxSize: 1}, circuitBreaker: {openFor: soon}, reportInterval: often, metricsPath: metrics, workers: many, maxEventSize: 10, compression: zip, requestOrigin: a b, hashKey: 'file:/no/such/key', signingSecrets: [s3cr3t], customRequestHeaders: {X-Token: 'file:/no/such/token', X-B: \"s3cr3t\\nX: y\"}, tls: {key: s3cr3t, cert: s3cr3t}, circuitBraker: {failures: 1}}",
			problem: []string{"\n  watchURLs[1]: ", "\n  batch.maxEvents: 0, want ", "\n  batch.maxSize: 1, want ", "\n  circuitBreaker.openFor: \"soon\", want ", "\n  reportInterval: \"often\", want ", "\n  metricsPath: \"metrics\", want ", "\n  workers: \"many\", want ", "auto",
				"\n  maxEventSize: 10, want ", "\n  compression: \"zip\", want ", "\n  requestOrigin: \"a b\", want ", "\n  hashKey: ", "/no/such/key", "\n  signingSecrets[0]: ", "\n  customRequestHeaders.X-Token: ", "/no/such/token", "\n  customRequestHeaders.X-B: ", "\n  tls.cert: ", "\n  tls.key: ", "circuitBraker", "circuitBreaker"},
			do: func(c *run) {
				c.eq("the next handler itself", unwrap(c.handler) == any(c.next), true)
				c.eq("answer", c.send("POST", "/", lorem).body, "backend")
				c.eq("messages", len(c.logged("")), 1)
			}},
		{name: "strict refuses a bad configuration with every problem at once", config: "-", do: func(c *run) {
			_, _, err := c.newRouter("{strict: true, timeout: soon, workers: 0, headers: {defaultMod: keep}}")
			if err == nil {
				c.Fatal("got no error; want one")
			}
			for _, want := range []string{c.name, "timeout: ", "workers: ", "headers.defaultMod: ", "headers.defaultMode"} {
				if !strings.Contains(err.Error(), want) {
					c.Errorf("error: got %q; want %q in it", err, want)
				}
			}
		}, want: "*", problem: nil, strict: true},
		{name: "strict as a string is strict", config: "-", strict: true, do: func(c *run) {
			if _, _, err := c.newRouter("{strict: 'true', timeout: soon}"); err == nil {
				c.Error("got no error; want one")
			}
		}},
		{name: "strict accepts what is right", config: "strict: true", want: one, do: func(c *run) { c.get("/") }},
		{name: "an unknown option is named with the closest one, and mirroring goes on", config: "{maxBodySizes: 1, retry: {attempt: 2}, completely: different}", want: one,
			problem: []string{"maxBodySizes: ", "did you mean maxBodySize?", "retry.attempt: ", "did you mean retry.attempts?", "completely: "}, do: func(c *run) {
				c.send("POST", "/", lorem)
				c.eq("body", string(c.event().Body.Content), lorem)
			}},
		{name: "names of options count without case", config: "{MAXBODYSIZE: 3, Retry: {ATTEMPTS: 1}, headers: {DefaultMode: drop}}", answers: statuses(500), want: "seen=1 enqueued=1 failed.server_error=1 truncated.limit=1", do: func(c *run) {
			c.send("POST", "/", lorem)
			e := c.event()
			c.eq("body and headers", string(e.Body.Content)+" "+show(len(e.Header)), "abc 0")
		}},
		{name: "container labels bring everything as text", want: "seen=3 filtered=1 enqueued=2 delivered=2 retried=1 truncated.limit=2", answers: statuses(500, 200),
			config: `{"methods":"GET, post","cookieNames":"a,b*","headers":{"defaultMode":"drop","names":{"Accept":"keep"}},"mirrorBody":"true","maxBodySize":"3","memoryLimit":"1Mi","queueSize":"10","workers":"1","timeout":"5","maxAge":"60s","retry":{"attempts":"2","initialInterval":"1ms","maxInterval":"1ms"},"signingSecrets":"` + secretA + `,` + secretB + `","attributes":{"n":"1"},"trustForwardHeader":"false","strict":"true","enabled":"true","tls":{"insecureSkipVerify":"false"}}`,
			do: func(c *run) {
				c.send("POST", "/", lorem, "Accept", "x", "X-B", "y", "Cookie", "a=1; bb=2; c=3")
				c.send("POST", "/", lorem)
				c.send("PUT", "/", lorem)
				e := c.events(2)[0]
				c.eq("header", e.Header, map[string][]string{"accept": {"x"}})
				c.eq("cookies", len(e.Cookie), 2)
				c.eq("body", string(e.Body.Content), "abc")
				c.eq("signatures", len(strings.Split(c.attempts(1)[0].header.Get("Webhook-Signature"), " ")), 2)
			}},
		{name: "Kubernetes brings numbers as floats", want: "seen=1 enqueued=1 failed.server_error=1 retried=1 truncated.limit=1", answers: statuses(503),
			config: `{"methods":["POST"],"maxBodySize":3,"memoryLimit":1048576,"queueSize":10,"workers":1,"timeout":5,"maxAge":60,"retry":{"attempts":2,"initialInterval":"1ms","maxInterval":"1ms"},"attributes":{"n":1,"f":1.5,"b":true},"strict":true}`,
			do: func(c *run) {
				c.send("POST", "/", lorem)
				e := c.event()
				c.eq("body", string(e.Body.Content), "abc")
				c.eq("attributes", e.Attributes, map[string]string{"n": "1", "f": "1.5", "b": "true"})
			}},
		{name: "large numbers that Kubernetes brings as floats keep their digits", want: one, config: `{"attributes":{"build":12345678},"maxBodySize":10000000,"memoryLimit":100000000,"strict":true}`, do: func(c *run) {
			c.get("/")
			c.eq("attributes", c.event().Attributes, map[string]string{"build": "12345678"})
		}},
		{name: "sizes are read with units", config: "{maxBodySize: 1kB, memoryLimit: 1 MiB, strict: true}", want: "seen=1 enqueued=1 delivered=1 truncated.limit=1", do: func(c *run) {
			c.send("POST", "/", strings.Repeat("x", 2000))
			c.eq("kept", len(c.event().Body.Content), 1000)
			c.eq("memory limit", c.ledger().Limit, int64(1<<20))
		}},
		{name: "a setting of one middleware does not change another's", config: "-", want: "seen=2 enqueued=2 delivered=2 truncated.limit=1", do: func(c *run) {
			h := c.mustNew("{maxBodySize: 3, headers: {names: {X-A: drop}}, signingSecrets: [" + secretA + "]}")
			c.use(c.mustNew("{}"))
			c.send("POST", "/", lorem, "X-A", "1")
			c.events(1)
			c.use(h)
			c.send("POST", "/", lorem, "X-A", "1")
			bodies := map[int]bool{}
			for _, e := range c.events(2) {
				bodies[len(e.Body.Content)] = len(e.Header["x-a"]) == 1
			}
			c.eq("kept bytes and X-A", bodies, map[int]bool{26: true, 3: false})
		}},
	}...))
}

// TestManifest does what the plugin catalog does with .traefik.yml: its testData is
// the snippet that users copy.
func TestManifest(t *testing.T) {
	raw, err := os.ReadFile(filepath.Join("..", "..", ".traefik.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var manifest struct {
		Type     string         `yaml:"type"`
		Import   string         `yaml:"import"`
		BasePkg  string         `yaml:"basePkg"`
		Summary  string         `yaml:"summary"`
		TestData map[string]any `yaml:"testData"`
	}
	if err := yaml.Unmarshal(raw, &manifest); err != nil {
		t.Fatal(err)
	}
	if got := manifest.Type + " " + manifest.Import + " " + manifest.BasePkg; strings.TrimSpace(got) != "middleware "+importPath {
		t.Errorf("manifest: got %q; want a middleware of %s, whose package has its name", got, importPath)
	}
	if manifest.Summary == "" || len(manifest.TestData) == 0 {
		t.Error("manifest: got no summary or no testData; want both")
	}
	manifest.TestData["strict"] = true
	for _, eng := range loaded(t) {
		cfg, err := eng.createConfig(manifest.TestData)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		next := http.NotFoundHandler()
		h, err := eng.newHandler(ctx, next, cfg, eng.name+"-manifest@file")
		if err != nil || h == nil {
			t.Errorf("%s: New with testData: got %v, %v; want a handler", eng.name, h, err)
		}
	}
}
