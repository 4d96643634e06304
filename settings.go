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
	name    string // of the middleware, as Traefik calls it
	source  string // of its events
	key     string // equal for settings that may share a pipeline
	enabled bool
	strict  bool

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
	attributes         map[string]string
	requestID          string // lower-case name of a header
	trustForwardHeader bool

	// How it is delivered. Pipelines are shared by these.
	url             *url.URL // without userinfo
	basicAuth       string   // from the userinfo
	format          string
	memoryLimit     int64
	queueSize       int
	dropOldest      bool
	workers         int
	timeout         time.Duration
	maxAge          time.Duration
	attempts        int
	initialInterval time.Duration
	maxInterval     time.Duration
	tls             *tls.Config
	requestHeaders  http.Header
	secrets         [][]byte
	drainTimeout    time.Duration
}

// readSettings checks a configuration. Problems make it unusable, unknown names do
// not; both tell of all there is, by option path.
func readSettings(config *Config, name string) (set *settings, problems, unknown []string) {
	if config == nil {
		config = CreateConfig()
	}
	r := newReader(config)
	s := &settings{name: name, source: sourceOf(name)}
	s.strict = r.boolean("strict", false)
	s.enabled = r.boolean("enabled", true)

	readReceiver(r, s)
	readCapture(r, s)
	readDelivery(r, s)
	pem := readTLS(r, s)
	readRequestHeaders(r, s)
	readSecrets(r, s)
	s.key = keyOf(s, pem)
	if !s.enabled {
		// What is switched off must not shout, however unfinished it is.
		return s, nil, nil
	}
	sort.Strings(r.problems)
	return s, r.problems, r.unknown()
}

// sourceOf names the middleware of this process in the events.
func sourceOf(name string) string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return "//" + url.PathEscape(host) + "/middlewares/" + url.PathEscape(name)
}

func readReceiver(r *reader, s *settings) {
	given := r.text("watchURL", "")
	u, err := url.Parse(given)
	switch {
	case given == "":
		r.problem("watchURL", "missing", "the http or https URL of the receiver")
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		r.problem("watchURL", strconv.Quote(openPart(given)), "an absolute http or https URL")
	default:
		if u.User != nil {
			password, _ := u.User.Password()
			s.basicAuth = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.User.Username()+":"+password))
			u.User = nil
		}
		u.Fragment = ""
		s.url = u
	}
	s.format = r.choice("format", formatCloudEvents, formatCloudEvents, formatJSON)
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
	s.names = &nameTable{}
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
		s.hashKey = []byte(key)
	}
	s.mirrorBody = r.boolean("mirrorBody", true)
	s.maxBodySize = r.size("maxBodySize", "1Mi", 0, 1<<30)
	s.attributes = r.table("attributes")
	s.requestID = strings.ToLower(r.text("requestID", "X-Request-Id"))
	if s.requestID != "" && !validHeaderName(s.requestID) {
		r.problem("requestID", strconv.Quote(s.requestID), "the name of a header")
	}
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

func readDelivery(r *reader, s *settings) {
	s.memoryLimit = r.size("memoryLimit", "64Mi", 1, 1<<40)
	s.queueSize = r.integer("queueSize", 1000, 1, 1000000)
	s.dropOldest = r.choice("overflow", "dropNewest", "dropNewest", "dropOldest") == "dropOldest"
	s.workers = r.integer("workers", 4, 1, 256)
	s.timeout = r.duration("timeout", "5s", time.Millisecond, 10*time.Minute)
	s.maxAge = r.duration("maxAge", "60s", time.Millisecond, 24*time.Hour)
	s.attempts = r.integer("retry.attempts", 3, 1, 100)
	s.initialInterval = r.duration("retry.initialInterval", "100ms", time.Millisecond, time.Hour)
	s.maxInterval = r.duration("retry.maxInterval", "5s", time.Millisecond, time.Hour)
	s.drainTimeout = r.duration("drainTimeout", "5s", 0, 10*time.Minute)
}

// readTLS returns the PEM texts, which tell settings apart when a file has changed.
func readTLS(r *reader, s *settings) string {
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
	return ca + "\x00" + cert + "\x00" + key
}

// readPEM reads an option that is PEM itself or the path of a file with it.
func readPEM(r *reader, path string) string {
	given := r.text(path, "")
	if given == "" || strings.Contains(given, "-----BEGIN") {
		return given
	}
	content, err := os.ReadFile(given)
	if err != nil {
		// The value is not shown: it may be a key that lost its first line.
		r.problem(path, "neither PEM nor the path of a file that can be read", "one of both")
		return ""
	}
	return string(content)
}

// reserved headers of a delivery are the plugin's or the connection's.
var reserved = map[string]bool{
	"Content-Type": true, "Content-Length": true, "Content-Encoding": true, "Transfer-Encoding": true, "Connection": true,
	"Trailer": true, "Upgrade": true, "Te": true, "Expect": true, "Traceparent": true, "Webhook-Id": true,
	"Webhook-Timestamp": true, "Webhook-Signature": true, markerHeader: true,
}

func readRequestHeaders(r *reader, s *settings) {
	s.requestHeaders = http.Header{}
	for name, value := range r.table("customRequestHeaders") {
		path := "customRequestHeaders." + name
		key := http.CanonicalHeaderKey(name)
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
		// Standard Webhooks, signature scheme: 24 to 64 random bytes.
		secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
		if !strings.HasPrefix(text, "whsec_") || err != nil || len(secret) < 24 || len(secret) > 64 {
			r.problem(fmt.Sprintf("signingSecrets[%d]", i), "a secret that is not shown", "whsec_ and the base64 of 24 to 64 bytes")
		}
		s.secrets = append(s.secrets, secret)
	}
}

// keyOf tells the delivery settings of a middleware from others. It is a hash, as
// there are secrets among them.
func keyOf(s *settings, pem string) string {
	hash := sha256.New()
	headers := make([]string, 0, len(s.requestHeaders))
	for name := range s.requestHeaders {
		headers = append(headers, name+"="+s.requestHeaders.Get(name))
	}
	sort.Strings(headers)
	fmt.Fprintf(hash, "%q %q %q %q %d %d %v %d %v %v %d %v %v %v %q %v %q", s.name, fmt.Sprint(s.url), s.basicAuth, s.format,
		s.memoryLimit, s.queueSize, s.dropOldest, s.workers, s.timeout, s.maxAge, s.attempts, s.initialInterval,
		s.maxInterval, s.drainTimeout, pem, s.tls.InsecureSkipVerify, s.tls.ServerName)
	fmt.Fprintf(hash, " %q %x", headers, s.secrets)
	return hex.EncodeToString(hash.Sum(nil))
}
