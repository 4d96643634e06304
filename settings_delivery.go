package requestmirror

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

func readReceivers(r *reader, s *settings) {
	s.metricsPath = r.text("metricsPath", "")
	if s.metricsPath != "" && s.metricsPath[0] != '/' {
		r.problem("metricsPath", strconv.Quote(s.metricsPath), "a path such as /metrics")
	}
	given := r.text("watchURL", "")
	more, _ := r.list("watchURLs", "[]")
	if given == "" && len(more) == 0 && (s.metricsPath == "" || r.has("authenticate.") || r.has("answer")) {
		r.problem("watchURL", "missing", "the http or https URL of the receiver")
	}
	if given != "" {
		readTarget(r, s, "watchURL", given)
	}
	for i, item := range more {
		readTarget(r, s, fmt.Sprintf("watchURLs[%d]", i), item)
	}
	s.format = r.choice("format", formatCloudEvents, formatCloudEvents, formatJSON, formatRequest, formatOTLP)
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

// mostAdaptive is the most workers of "auto". Each may hold an event of the largest
// size, encoded.
const mostAdaptive = 32

func readDelivery(r *reader, s *settings) {
	s.batchEvents = r.integer("batch.maxEvents", 1, 1, 10000)
	s.batchSize = int(r.size("batch.maxSize", "1Mi", 1<<10, 64<<20))
	s.flushInterval = r.duration("batch.flushInterval", "200ms", time.Millisecond, time.Hour)
	s.gzip = r.choice("compression", "none", "none", "gzip") == "gzip"
	s.maxEventSize = int(r.size("maxEventSize", off, 1<<10, 1<<30))
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
	s.attempts = r.integer("retry.attempts", 3, 1, 1000)
	s.initialInterval = r.duration("retry.initialInterval", "100ms", time.Millisecond, time.Hour)
	s.maxInterval = r.duration("retry.maxInterval", "5s", time.Millisecond, time.Hour)
	s.failures = r.integer("circuitBreaker.failures", 10, 0, 10000)
	s.openFor = r.duration("circuitBreaker.openFor", "10s", time.Millisecond, 24*time.Hour)
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
