package requestmirror

import (
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
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

// redactStrange is a header as it may leave, in which another middleware wrote a name
// in its own way, so that one name may be there twice.
func redactStrange(set *settings, header http.Header) map[string][]string {
	out := make(map[string][]string, len(header))
	for name, values := range header {
		redactOther(set, out, name, values)
	}
	return out
}

// redactOther puts one name of a header into out as it may leave: in lower case, every
// value, in order, and Cookie not at all. It returns whether the name is canonical.
func redactOther(set *settings, out map[string][]string, name string, values []string) bool {
	canonical := http.CanonicalHeaderKey(name)
	mode := set.headerModes[canonical]
	if mode == "" {
		mode = set.headerDefault
	}
	if mode == modeDrop || len(values) == 0 { // none is how a handler keeps a proxy from adding the header
		return canonical == name
	}
	if mode != modeKeep {
		values = veilAll(set, mode, values)
	} else if canonical == name {
		learn(set.names, name)
	}
	lower := strings.ToLower(name)
	out[lower] = append(out[lower], values...)
	return canonical == name
}

// nameTable remembers the lower-case form of header names that are kept as they are,
// because a look-up is a third of the work. Workers read and extend it; clients who
// make names up do not fill more than it takes.
type nameTable struct {
	known atomic.Value // map[string]string, replaced as a whole
	mu    sync.Mutex   // held while it is replaced
}

const mostNames = 256

func keptNames(t *nameTable) map[string]string {
	known, _ := t.known.Load().(map[string]string)
	return known
}

func learn(t *nameTable, name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := keptNames(t)
	if len(known) >= mostNames {
		return
	}
	more := make(map[string]string, len(known)+1)
	for k, v := range known {
		more[k] = v
	}
	more[name] = strings.ToLower(name)
	t.known.Store(more)
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
		return pseudonym(set.hashKey, value)
	}
	return redacted
}

// selectCookies is the cookies that cookieNames wants; nil if none is there.
func selectCookies(set *settings, header http.Header) map[string][]string {
	if set.cookieNames == nil || header["Cookie"] == nil {
		return nil
	}
	out := map[string][]string{}
	request := &http.Request{Header: header}
	for _, cookie := range request.Cookies() {
		if set.cookieNames.MatchString(cookie.Name) {
			out[cookie.Name] = append(out[cookie.Name], cookie.Value)
		}
	}
	return out
}

// redactQuery is the query as it may leave: as it was sent, but for the values of
// some parameters. Names are compared decoded and without regard to case, and ";"
// counts as a separator, too, as it does for some backends.
func redactQuery(set *settings, query string) string {
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
