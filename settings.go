package requestmirror

import (
	"crypto/sha256"
	"crypto/tls"
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
	guards  bool // a mistake must not open what authenticate is to check

	metricsPath string            // empty: none
	files       map[string]string // what was in the files of the delivery's secrets, by path

	// What is captured, and what of it may leave.
	methods            map[string]bool // nil: all
	includePaths       *regexp.Regexp  // nil: all
	excludePaths       *regexp.Regexp  // nil: none
	sampleRate         float64
	sampledField       string // of the events, as JSON; empty if all requests are mirrored
	mirrorBody         bool
	maxBodySize        int64
	bodyTypes          *regexp.Regexp // nil: all
	cookieNames        *regexp.Regexp // nil: none
	cookieMarks        []string       // what begins the cookies, if they are a few without wildcards: name=
	headerDefault      string
	headerModes        map[string]string // by canonical name
	names              *nameTable
	queryDefault       string
	queryModes         map[string]string // by lower-case name
	queryHints         []string          // what, in lower case, is in a query that has one of these names, or hides one
	queryNames         *regexp.Regexp    // finds a hint
	hashKey            []byte
	hashFile           *secretFile // nil unless the key is in a file
	attributesField    string      // as JSON
	requestID          string      // lower-case name of a header
	requestIDKey       string      // canonical
	trustForwardHeader bool
	bodyFields         *bodyFields     // to be blanked in bodies; nil: none
	response           string          // how much of the response is captured
	authentication     *authentication // nil: none
	answer             int             // status; 0: requests are passed on

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
	unknown = r.unknown()
	s.strict = s.strict || s.guards && (len(r.problems) > 0 || anyBegins(unknown, "authenticate."))
	return s, r.problems, unknown
}

func anyBegins(texts []string, prefix string) bool {
	for _, text := range texts {
		if strings.HasPrefix(strings.ToLower(text), prefix) {
			return true
		}
	}
	return false
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
	readAuthentication(r, s)
	readAnswer(r, s)
	checkTogether(r, s)
}

// checkTogether finds options that contradict each other.
func checkTogether(r *reader, s *settings) {
	if s.format == formatRequest {
		refuse(r, s.batchEvents > 1, "batch.maxEvents", "more than 1", "1 with format request, which sends one request for each")
		refuse(r, s.gzip, "compression", "gzip", "none with format request")
		refuse(r, s.maxEventSize > 0, "maxEventSize", "given", "none with format request, whose bodies are never cut")
		refuse(r, s.bodyFields != nil, "redactBodyFields", "given", "none with format request, whose bodies are never changed")
		refuse(r, s.response != responseNone, "captureResponse", strconv.Quote(s.response), "none with format request, which has no place for it")
		s.reportInterval = 0 // a report is no request
	}
	refuse(r, s.format == formatOTLP && s.maxEventSize > 0, "maxEventSize", "given", "none with format otlp, which makes more of an event; limit the body by maxBodySize")
	refuse(r, s.answer > 0 && s.response != responseNone, "captureResponse", strconv.Quote(s.response), "none with answer, as there is no response to capture")
	whole := ""
	if s.format == formatRequest {
		whole = "format request"
	} else if s.authentication != nil && s.authentication.reject && s.answer == 0 {
		whole = "authenticate.onFailure reject, which holds bodies until they are checked"
	}
	refuse(r, whole != "" && !s.mirrorBody, "mirrorBody", "false", "true with "+whole)
	refuse(r, whole != "" && s.bodyTypes != nil, "bodyContentTypes", "given", "none with "+whole)
}

func refuse(r *reader, wrong bool, path, given, wanted string) {
	if wrong {
		r.problem(path, given, wanted)
	}
}

// sourceOf names the middleware of this process in the events.
func sourceOf(name string) string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	return "//" + url.PathEscape(host) + "/middlewares/" + url.PathEscape(name)
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
