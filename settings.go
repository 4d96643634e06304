package requestmirror

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
)

// settings is a checked configuration. It never changes, so all may read it.
type settings struct {
	name    string  // of the middleware, as Traefik calls it
	source  string  // of its events
	config  *Config // as it was written, to be read again when a secret's file has changed
	enabled bool
	strict  bool

	metricsPath string            // empty: none
	files       map[string]string // what was in the files of the delivery's secrets, by path

	// What is captured, and what of it may leave.
	methods            map[string]bool // nil: all
	mirrorBody         bool
	maxBodySize        int64
	bodyTypes          *regexp.Regexp // nil: all
	cookieNames        *regexp.Regexp // nil: none
	headerDefault      string
	headerModes        map[string]string // by canonical name
	names              *nameTable
	queryDefault       string
	queryModes         map[string]string // by lower-case name
	queryNames         *regexp.Regexp    // finds what may be one of these names, or hide one
	hashKey            []byte
	hashFile           *secretFile // nil unless the key is in a file
	attributesField    string      // as JSON
	requestID          string      // lower-case name of a header
	requestIDKey       string      // canonical
	trustForwardHeader bool

	// How it is delivered. Pipelines are shared by these.
	targets         []target
	format          string
	batchEvents     int // 1: each event alone
	batchSize       int // bytes of a batch
	flushInterval   time.Duration
	gzip            bool
	maxEventSize    int // bytes of a delivery; 0: any
	memoryLimit     int64
	queueSize       int
	dropOldest      bool
	workers         int  // at most
	adaptive        bool // workers follow the receiver
	timeout         time.Duration
	maxAge          time.Duration
	attempts        int
	initialInterval time.Duration
	maxInterval     time.Duration
	failures        int // in a row, which open the circuit; 0: never
	openFor         time.Duration
	requestOrigin   string // of the handshake; empty: none
	reportInterval  time.Duration
	tls             *tls.Config
	requestHeaders  http.Header
	secrets         [][]byte
	drainTimeout    time.Duration
}

// target is one receiver.
type target struct {
	written   string   // the option as it was written
	url       *url.URL // without userinfo
	basicAuth string   // from the userinfo
	key       string   // equal for receivers of several configurations that may share a pipeline
}

// readSettings checks a configuration. Problems make it unusable, unknown names do
// not; both tell of all there is, by option path.
func readSettings(config *Config, name string) (set *settings, problems, unknown []string) {
	return readSettingsBefore(config, name, nil)
}

// readSettingsBefore does so with what was in some files of secrets before.
func readSettingsBefore(config *Config, name string, before map[string]string) (set *settings, problems, unknown []string) {
	if config == nil {
		config = CreateConfig()
	}
	r := newReader(config)
	r.before = before
	s := &settings{name: name, source: sourceOf(name), config: config}
	readOptions(r, s)
	s.files = r.files
	giveKeys(r, s)
	if !s.enabled {
		// What is switched off must not shout, however unfinished it is.
		return s, nil, nil
	}
	sort.Strings(r.problems)
	return s, r.problems, r.unknown()
}

// readOptions reads every option there is.
func readOptions(r *reader, s *settings) {
	s.strict = r.boolean("strict", false)
	s.enabled = r.boolean("enabled", true)
	readReceivers(r, s)
	readCapture(r, s)
	readDelivery(r, s)
	readTLS(r, s)
	readRequestHeaders(r, s)
	readSecrets(r, s)
}

// sourceOf names the middleware of this process in the events.
func sourceOf(name string) string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return "//" + url.PathEscape(host) + "/middlewares/" + url.PathEscape(name)
}

func readReceivers(r *reader, s *settings) {
	s.metricsPath = r.text("metricsPath", "")
	if s.metricsPath != "" && s.metricsPath[0] != '/' {
		r.problem("metricsPath", strconv.Quote(s.metricsPath), "a path such as /metrics")
	}
	given := r.text("watchURL", "")
	more, _ := r.list("watchURLs", "[]")
	if given == "" && len(more) == 0 && s.metricsPath == "" {
		r.problem("watchURL", "missing", "the http or https URL of the receiver")
	}
	if given != "" {
		readTarget(r, s, "watchURL", given)
	}
	for i, item := range more {
		readTarget(r, s, fmt.Sprintf("watchURLs[%d]", i), item)
	}
	s.format = r.choice("format", formatCloudEvents, formatCloudEvents, formatJSON)
	s.requestOrigin = r.text("requestOrigin", "")
	if s.requestOrigin != "" && !dnsName.MatchString(s.requestOrigin) {
		r.problem("requestOrigin", strconv.Quote(s.requestOrigin), "the name of this system, such as mirror.example.com")
	}
}

// dnsName is what CloudEvents' HTTP webhook specification calls a DNS expression (3.1.1).
var dnsName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$`)

func readTarget(r *reader, s *settings, path, given string) {
	for _, other := range s.targets {
		if other.written == given {
			r.problem(path, "given twice", "each receiver once")
		}
	}
	written := given
	given = r.secretIn(path, given)
	u, err := url.Parse(given)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		shown := strconv.Quote(openPart(given))
		if written != given {
			shown = "no URL in " + written
		}
		r.problem(path, shown, "an absolute http or https URL")
		return
	}
	t := target{written: written, url: u}
	if u.User != nil {
		password, _ := u.User.Password()
		t.basicAuth = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
		u.User = nil
	}
	u.Fragment = ""
	s.targets = append(s.targets, t)
}

// openPart is what may be shown of a URL that could not be read: its beginning, but
// no more where a password may be, nor path and query, which are the secret of many a
// webhook.
func openPart(given string) string {
	if strings.Contains(given, "@") {
		return "…"
	}
	host := 0
	if i := strings.Index(given, "://"); i >= 0 {
		host = i + 3
	}
	if host < len(given) {
		host++ // whatever is there, "/events" is told apart from nothing
	}
	if i := strings.IndexAny(given[host:], "/?#"); i >= 0 && host+i+1 < len(given) {
		return given[:host+i+1] + "…"
	}
	return given
}

func readCapture(r *reader, s *settings) {
	if methods, given := r.list("methods", "all"); given {
		s.methods = map[string]bool{}
		for i, method := range methods {
			if !validHeaderName(method) {
				r.problem(fmt.Sprintf("methods[%d]", i), strconv.Quote(method), "an HTTP method")
			}
			s.methods[strings.ToUpper(method)] = true
		}
	}
	cookies, _ := r.list("cookieNames", "[]")
	s.cookieNames = globs(cookies)
	types, _ := r.list("bodyContentTypes", "all")
	s.bodyTypes = globs(lowered(types))

	s.headerDefault = r.choice("headers.defaultMode", modeKeep, modeKeep, modeRedact, modeHash, modeDrop)
	s.headerModes = map[string]string{}
	for _, name := range credentialHeaders {
		s.headerModes[name] = stricter(modeRedact, s.headerDefault)
	}
	canonicalModes(r, "headers.names", http.CanonicalHeaderKey, s.headerModes)
	s.names = newNameTable()
	if mode := s.headerModes["Cookie"]; mode != "" && mode != modeDrop {
		r.problem("headers.names.Cookie", strconv.Quote(mode), "drop, as cookies leave by cookieNames only")
	}
	s.headerModes["Cookie"] = modeDrop

	s.queryDefault = r.choice("queryParameters.defaultMode", modeKeep, modeKeep, modeRedact, modeHash, modeDrop)
	s.queryModes = map[string]string{}
	for _, name := range signingParameters {
		s.queryModes[name] = stricter(modeRedact, s.queryDefault)
	}
	canonicalModes(r, "queryParameters.names", strings.ToLower, s.queryModes)
	s.queryNames = anyOf(s.queryModes)

	s.hashKey = processKey
	if key := r.text("hashKey", ""); key != "" {
		s.hashKey = []byte(r.secretIn("hashKey", key))
		if name, named := strings.CutPrefix(key, filePrefix); named {
			s.hashFile = &secretFile{name: name, text: string(s.hashKey)}
			if len(s.hashKey) == 0 {
				r.problem("hashKey", "nothing in "+name, "a key in it")
			}
		}
	}
	s.mirrorBody = r.boolean("mirrorBody", true)
	s.maxBodySize = r.size("maxBodySize", "1Mi", 0, 1<<30)
	if attributes := r.table("attributes"); len(attributes) > 0 {
		s.attributesField = `,"attributes":` + asJSON(attributes)
	}
	s.requestID = strings.ToLower(r.text("requestID", "X-Request-Id"))
	if s.requestID != "" && !validHeaderName(s.requestID) {
		r.problem("requestID", strconv.Quote(s.requestID), "the name of a header")
	}
	s.requestIDKey = http.CanonicalHeaderKey(s.requestID)
	s.trustForwardHeader = r.boolean("trustForwardHeader", false)
}

// stricter is the mode of a credential that the user does not name: what the default
// mode drops is dropped.
func stricter(mode, standard string) string {
	if standard == modeDrop {
		return modeDrop
	}
	return mode
}

func lowered(list []string) []string {
	out := make([]string, 0, len(list))
	for _, item := range list {
		out = append(out, strings.ToLower(item))
	}
	return out
}

// globs is an expression for any of some names, in which * is any text; nil for none.
func globs(names []string) *regexp.Regexp {
	if len(names) == 0 {
		return nil
	}
	forms := make([]string, 0, len(names))
	for _, name := range names {
		forms = append(forms, strings.ReplaceAll(regexp.QuoteMeta(name), `\*`, ".*"))
	}
	return regexp.MustCompile(`^(?s:` + strings.Join(forms, "|") + `)$`)
}

// anyOf is an expression for one of some names anywhere in a query. Any escaped
// character is a match, too, as it could be part of a name.
func anyOf(names map[string]string) *regexp.Regexp {
	forms := []string{"[%+]"}
	for name := range names {
		forms = append(forms, regexp.QuoteMeta(name))
	}
	return regexp.MustCompile("(?i:" + strings.Join(forms, "|") + ")")
}

// mostAdaptive is the most workers of "auto". Each may hold an event of the largest
// size, encoded.
const mostAdaptive = 32

func readDelivery(r *reader, s *settings) {
	s.batchEvents = r.integer("batch.maxEvents", 1, 1, 10000)
	s.batchSize = int(r.size("batch.maxSize", "1Mi", 1<<10, 64<<20))
	s.flushInterval = r.duration("batch.flushInterval", "200ms", time.Millisecond, time.Minute)
	s.gzip = r.choice("compression", "none", "none", "gzip") == "gzip"
	s.maxEventSize = int(r.size("maxEventSize", off, 4<<10, 1<<30))
	s.memoryLimit = r.size("memoryLimit", "64Mi", 1, 1<<40)
	s.queueSize = r.integer("queueSize", 1000, 1, 1000000)
	s.dropOldest = r.choice("overflow", "dropNewest", "dropNewest", "dropOldest") == "dropOldest"
	s.workers = r.integer("workers", 4, 1, 256, "auto")
	if s.workers == 0 {
		s.adaptive = true
		s.workers = mostAdaptive
	}
	s.timeout = r.duration("timeout", "5s", time.Millisecond, 10*time.Minute)
	s.maxAge = r.duration("maxAge", "60s", time.Millisecond, 24*time.Hour)
	s.attempts = r.integer("retry.attempts", 3, 1, 100)
	s.initialInterval = r.duration("retry.initialInterval", "100ms", time.Millisecond, time.Hour)
	s.maxInterval = r.duration("retry.maxInterval", "5s", time.Millisecond, time.Hour)
	s.failures = r.integer("circuitBreaker.failures", 10, 0, 10000)
	s.openFor = r.duration("circuitBreaker.openFor", "10s", time.Millisecond, time.Hour)
	s.reportInterval = r.duration("reportInterval", "60s", 0, 24*time.Hour)
	s.drainTimeout = r.duration("drainTimeout", "5s", 0, 10*time.Minute)
}

func readTLS(r *reader, s *settings) {
	ca := readPEM(r, "tls.ca")
	cert := readPEM(r, "tls.cert")
	key := readPEM(r, "tls.key")
	s.tls = &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         r.text("tls.serverName", ""),
		InsecureSkipVerify: r.boolean("tls.insecureSkipVerify", false),
	}
	if ca != "" {
		s.tls.RootCAs = x509.NewCertPool()
		if !s.tls.RootCAs.AppendCertsFromPEM([]byte(ca)) {
			r.problem("tls.ca", "no certificate in it", "PEM certificates, or the path of a file with them")
		}
	}
	if (cert == "") != (key == "") {
		r.problem("tls", "only one of cert and key", "both or none")
	} else if cert != "" {
		pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			r.problem("tls.cert", err.Error(), "a certificate that belongs to tls.key, both PEM")
		}
		s.tls.Certificates = []tls.Certificate{pair}
	}
}

// readPEM reads an option that is PEM itself or names a file with it, with file: or
// without, as ForwardAuth has it.
func readPEM(r *reader, path string) string {
	given := r.text(path, "")
	r.secrets = append(r.secrets, path+"="+given)
	if given == "" || strings.Contains(given, "-----BEGIN") {
		return given
	}
	name := strings.TrimPrefix(given, filePrefix)
	text, err := r.content(name)
	if err != nil {
		// The value is not shown: it may be a key that lost its first line.
		r.problem(path, "neither PEM nor the path of a file that can be read", "one of both")
	}
	return text
}

// reserved headers of a delivery are the plugin's or the connection's.
var reserved = map[string]bool{
	"Content-Type": true, "Content-Length": true, "Content-Encoding": true, "Transfer-Encoding": true, "Connection": true,
	"Trailer": true, "Upgrade": true, "Te": true, "Expect": true, "Traceparent": true, "Webhook-Id": true,
	"Webhook-Timestamp": true, "Webhook-Signature": true, "Webhook-Request-Origin": true, markerHeader: true,
}

func readRequestHeaders(r *reader, s *settings) {
	s.requestHeaders = http.Header{}
	for name, value := range r.table("customRequestHeaders") {
		path := "customRequestHeaders." + name
		key := http.CanonicalHeaderKey(name)
		value = r.secret(path, value)
		if !validHeaderName(name) {
			r.problem(path, "not a header name", "a name such as X-Token")
		} else if reserved[key] {
			r.problem(path, "a header of the delivery itself", "another header")
		} else if strings.ContainsAny(value, "\r\n\x00") {
			r.problem(path, "a line break in the value", "one line")
		}
		s.requestHeaders.Set(name, value)
	}
}

func readSecrets(r *reader, s *settings) {
	list, _ := r.list("signingSecrets", "[]")
	for i, text := range list {
		path := fmt.Sprintf("signingSecrets[%d]", i)
		text = r.secret(path, text)
		// Standard Webhooks, signature scheme: 24 to 64 random bytes.
		secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
		if !strings.HasPrefix(text, "whsec_") || err != nil || len(secret) < 24 || len(secret) > 64 {
			r.problem(path, "a secret that is not shown", "whsec_ and the base64 of 24 to 64 bytes")
		}
		s.secrets = append(s.secrets, secret)
	}
}

// giveKeys gives each receiver a key that tells its delivery from others. It is a
// hash, as there are secrets in it: as they were written, so that a pipeline outlives
// another secret in the same file.
func giveKeys(r *reader, s *settings) {
	sort.Strings(r.secrets)
	headers := make([]string, 0, len(s.requestHeaders))
	for name := range s.requestHeaders {
		headers = append(headers, name)
	}
	sort.Strings(headers)
	common := fmt.Sprintf("%q %q %q %q %v %v", s.name, s.format, s.requestOrigin, s.tls.ServerName, s.tls.InsecureSkipVerify, s.gzip)
	common += fmt.Sprintln(s.memoryLimit, s.maxEventSize, s.queueSize, s.dropOldest, s.workers, s.adaptive, s.timeout, s.maxAge,
		s.attempts, s.initialInterval, s.maxInterval, s.drainTimeout, s.reportInterval, s.failures, s.openFor,
		s.batchEvents, s.batchSize, s.flushInterval)
	common += fmt.Sprintf("%q %q", headers, r.secrets)
	for i := range s.targets {
		hash := sha256.Sum256([]byte(common + " " + s.targets[i].written))
		s.targets[i].key = hex.EncodeToString(hash[:])
	}
}
