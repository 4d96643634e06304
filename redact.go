package requestmirror

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What may happen to a header or query parameter, as in Traefik's access log, plus
// hash.
const (
	modeKeep   = "keep"
	modeRedact = "redact"
	modeHash   = "hash"
	modeDrop   = "drop"

	redacted = "REDACTED"
)

// credentialHeaders are redacted unless headers.names says otherwise. Keys are
// canonical.
var credentialHeaders = []string{
	"Authorization", "Proxy-Authorization", "X-Authorization", "Api-Key", "Apikey", "X-Api-Key", "X-Apikey", "X-Api-Token",
	"X-Access-Token", "X-Auth-Key", "X-Auth-Token", "X-Session-Token", "X-Refresh-Token", "X-Id-Token", "X-Token",
	"X-Csrf-Token", "X-Csrftoken", "X-Xsrf-Token", "Csrf-Token", "Set-Cookie",
	"X-Amz-Security-Token", "X-Amzn-Oidc-Accesstoken", "X-Amzn-Oidc-Data", "X-Goog-Api-Key", "X-Goog-Iap-Jwt-Assertion",
	"X-Serverless-Authorization", "X-Ms-Token-Aad-Access-Token", "X-Ms-Token-Aad-Id-Token", "X-Ms-Token-Aad-Refresh-Token",
	"X-Functions-Key", "Ocp-Apim-Subscription-Key", "Cf-Access-Jwt-Assertion", "Cf-Access-Client-Secret",
	"X-Vault-Token", "X-Consul-Token", "X-Nomad-Token", "Private-Token", "Job-Token", "Deploy-Token", "X-Gitlab-Token",
	"X-Shopify-Access-Token", "X-Forwarded-Access-Token", "X-Auth-Request-Access-Token",
	"X-Forwarded-Tls-Client-Cert", "X-Forwarded-Client-Cert",
}

// signingParameters are redacted unless queryParameters.names says otherwise:
// OpenTelemetry's list (semantic conventions, url.query) and its kin of AWS's
// Signature Version 4. Keys are lower-case.
var signingParameters = []string{
	"awsaccesskeyid", "signature", "sig", "x-goog-signature",
	"x-amz-signature", "x-amz-credential", "x-amz-security-token",
}

// headerFields is a header as it may leave, as the members of a JSON object, and with it
// the first values of User-Agent and of the request's id, so that redaction holds there,
// too. It is for headers that the worker cannot write at a stroke (run).
func headerFields(set *settings, header http.Header) (fields, agent, id string) {
	agent = "" // Yaegi leaves what the call before left there
	id = ""
	out := make(map[string][]string, len(header))
	eager := learns(set.names)
	for name, values := range header {
		redactOther(set, out, name, values, eager)
	}
	if values := out["user-agent"]; len(values) > 0 {
		agent = values[0]
	}
	if values := out[set.requestID]; len(values) > 0 {
		id = values[0]
	}
	fields = asJSON(out)
	return fields[1 : len(fields)-1], agent, id
}

// cookieFields are the cookies that may leave, as the members of a JSON object with a comma
// before it.
func cookieFields(set *settings, jar *http.Request) string {
	wanted := map[string][]string{}
	for _, cookie := range jar.Cookies() {
		if set.cookieNames.MatchString(cookie.Name) {
			wanted[cookie.Name] = append(wanted[cookie.Name], cookie.Value)
		}
	}
	if len(wanted) == 0 {
		return ""
	}
	fields := asJSON(wanted)
	return "," + fields[1:len(fields)-1]
}

// redactOther puts one name of a header into out as it may leave: in lower case, every
// value, in order, and Cookie not at all. Another middleware may have written a name in
// its own way, so that one name may be there twice.
func redactOther(set *settings, out map[string][]string, name string, values []string, eager bool) {
	canonical := http.CanonicalHeaderKey(name)
	mode := set.headerModes[canonical]
	if mode == "" {
		mode = set.headerDefault
	}
	if eager && canonical == name && canonical != "Cookie" && validHeaderName(name) {
		learn(set.names, name, mode)
	}
	if mode == modeDrop || len(values) == 0 { // none is how a handler keeps a proxy from adding the header
		return
	}
	if mode != modeKeep {
		values = veilAll(set, mode, values)
	}
	lower := strings.ToLower(name)
	out[lower] = append(out[lower], values...)
}

// nameTable remembers the names of headers, and how a header that has no others becomes
// JSON. Workers read and extend it. Clients who make names up do not fill more than it
// takes, nor keep others out for long: a full one is begun anew once a minute.
type nameTable struct {
	known atomic.Value // *knownNames, replaced as a whole
	mu    sync.Mutex   // held while it is replaced
	begun time.Time    // when it was empty
}

type knownNames struct {
	modes  map[string]string
	form   *strings.Replacer // makes JSON of a header as it goes over the wire, with a line break before each name
	hidden []string          // names that are not kept as they are
	fields []string          // what leaves instead, as JSON; hashed stands for a pseudonym
	absent map[string]bool   // hidden, and Cookie: what is left out before
}

const (
	mostNames   = 256
	longestName = 64
	hashed      = "hashed"
)

// jsonEscapes are for what may not stand in a JSON text as it is; a header has no line
// break in a value.
var jsonEscapes = escapesOf()

func escapesOf() []string {
	pairs := []string{`"`, `\"`, `\`, `\\`}
	for i := 0; i < ' '; i++ {
		if i != '\r' && i != '\n' {
			pairs = append(pairs, string(rune(i)), fmt.Sprintf(`\u%04x`, i))
		}
	}
	return pairs
}

func newNameTable() *nameTable {
	t := &nameTable{begun: time.Now()}
	t.known.Store(knowing(map[string]string{}))
	return t
}

func knowing(modes map[string]string) *knownNames {
	k := &knownNames{modes: modes, absent: map[string]bool{"Cookie": true}}
	pairs := append([]string{}, jsonEscapes...)
	for name, mode := range modes {
		lower := strings.ToLower(name)
		if mode == modeKeep {
			pairs = append(pairs, "\r\n"+name+": ", `"],"`+lower+`":["`)
			continue
		}
		k.absent[name] = true
		k.hidden = append(k.hidden, name)
		field := ""
		if mode == modeRedact {
			field = `,"` + lower + `":["` + redacted + `"]`
		} else if mode == modeHash {
			field = hashed
		}
		k.fields = append(k.fields, field)
	}
	k.form = strings.NewReplacer(pairs...)
	return k
}

// learns says whether there may be room for a name.
func learns(t *nameTable) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, _ := t.known.Load().(*knownNames)
	return len(known.modes) < mostNames || time.Since(t.begun) >= time.Minute
}

func learn(t *nameTable, name, mode string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, _ := t.known.Load().(*knownNames)
	full := len(known.modes) >= mostNames
	if known.modes[name] != "" || len(name) > longestName || full && time.Since(t.begun) < time.Minute {
		return
	}
	more := make(map[string]string, len(known.modes)+1)
	if full {
		t.begun = time.Now()
	} else {
		for k, v := range known.modes {
			more[k] = v
		}
	}
	more[name] = mode
	t.known.Store(knowing(more))
}

// veiled is the value of a header that is not kept as it is; empty if it is dropped.
func veiled(set *settings, name, value string) string {
	mode := set.headerModes[name]
	if mode == "" {
		mode = set.headerDefault
	}
	if mode == modeDrop {
		return ""
	}
	return veil(set, mode, value)
}

func hashedField(set *settings, name, value string) string {
	return `,"` + strings.ToLower(name) + `":["` + veil(set, modeHash, value) + `"]`
}

func veilAll(set *settings, mode string, values []string) []string {
	out := make([]string, 0, len(values))
	for _, value := range values {
		out = append(out, veil(set, mode, value))
	}
	return out
}

func veil(set *settings, mode, value string) string {
	if mode == modeHash {
		key := set.hashKey
		if set.hashFile != nil {
			key = []byte(currentText(set.hashFile))
		}
		return pseudonym(key, value)
	}
	return redacted
}

// redactQuery is the query as it may leave: as it was sent, but for the values of
// some parameters. Names are compared decoded and without regard to case, and ";"
// counts as a separator, too, as it does for some backends.
func redactQuery(set *settings, query string) string {
	if query == "" {
		return ""
	}
	out := make([]byte, 0, len(query))
	for rest := query; rest != ""; {
		pair, separator := rest, ""
		if i := strings.IndexAny(rest, "&;"); i >= 0 {
			pair = rest[:i]
			separator = rest[i : i+1]
		}
		rest = rest[len(pair)+len(separator):]
		if kept, ok := redactPair(set, pair); ok {
			out = append(out, kept...)
			out = append(out, separator...)
		}
	}
	return strings.TrimRight(string(out), trailing(query))
}

// trailing is what a dropped last parameter may leave behind.
func trailing(query string) string {
	if last := query[len(query)-1]; last == '&' || last == ';' {
		return ""
	}
	return "&;"
}

// redactPair is one name=value as it may leave; false drops it.
func redactPair(set *settings, pair string) (kept string, ok bool) {
	name := pair
	value := ""
	i := strings.IndexByte(pair, '=')
	if i >= 0 {
		name = pair[:i]
		value = pair[i+1:]
	}
	decoded, err := url.QueryUnescape(name)
	if err != nil {
		decoded = name
	}
	mode, named := set.queryModes[strings.ToLower(decoded)]
	if !named {
		mode = set.queryDefault
	}
	if mode == modeKeep || i < 0 && mode != modeDrop {
		return pair, true
	}
	return name + "=" + veil(set, mode, value), mode != modeDrop
}
