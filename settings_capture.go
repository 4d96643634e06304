package requestmirror

import (
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

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
	s.includePaths = r.patterns("includePaths", "all")
	s.excludePaths = r.patterns("excludePaths", "none")
	s.sampleRate = r.fraction("sampleRate", 1)
	if s.sampleRate > 0 && s.sampleRate < 1 {
		// How many requests this one stands for: a CloudEvents integer, so of 32 bits.
		s.sampledField = fmt.Sprintf(`,"sampledrate":%.0f`, math.Min(math.Round(1/s.sampleRate), math.MaxInt32))
	}
	cookies, _ := r.list("cookieNames", "[]")
	s.cookieNames = globs(cookies)
	if len(cookies) <= fewCookies && !strings.Contains(strings.Join(cookies, ""), "*") {
		known := map[string]bool{}
		for _, name := range cookies {
			if !known[name] {
				s.cookieMarks = append(s.cookieMarks, name+"=")
			}
			known[name] = true
		}
	}
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
	s.queryHints = hintsOf(s.queryModes)
	s.queryNames = anyOf(s.queryHints)

	s.hashKey = processKey
	if key := r.text("hashKey", ""); key != "" {
		s.hashKey = []byte(r.secretIn("hashKey", key))
		if name, named := strings.CutPrefix(key, filePrefix); named {
			s.hashFile = newSecretFile(name, string(s.hashKey))
			if len(s.hashKey) == 0 {
				r.problem("hashKey", "nothing in "+name, "a key in it")
			}
		}
	}
	fields, _ := r.list("redactBodyFields", "[]")
	for i, name := range fields {
		if strings.IndexFunc(name, isWordRune) < 0 {
			r.problem(fmt.Sprintf("redactBodyFields[%d]", i), strconv.Quote(name), "a name with a letter or digit in it")
		}
	}
	s.bodyFields = newBodyFields(fields)
	s.response = r.choice("captureResponse", responseNone, responseNone, responseStatus, responseHeaders, responseBody)
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

// fewCookies is how many are looked for one by one, which is cheaper than to read all.
const fewCookies = 3

// hintsOf are texts of which at least one is in a query, in lower case, that has one of
// the names. Any escaped character is a hint, too, as it could be part of a name.
func hintsOf(names map[string]string) []string {
	hints := []string{"%", "+"}
	for name := range names {
		needed := true
		for other := range names {
			needed = needed && (other == name || !strings.Contains(name, other))
		}
		if needed {
			hints = append(hints, name)
		}
	}
	return hints
}

// anyOf is an expression for one of the hints anywhere in a query.
func anyOf(hints []string) *regexp.Regexp {
	forms := make([]string, 0, len(hints))
	for _, hint := range hints {
		forms = append(forms, regexp.QuoteMeta(hint))
	}
	return regexp.MustCompile("(?i:" + strings.Join(forms, "|") + ")")
}

func isWordRune(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }

// readAuthentication reads how requests prove that they are genuine. Its secrets are
// not the delivery's, so a pipeline outlives another secret.
func readAuthentication(r *reader, s *settings) {
	a := &authentication{}
	a.header = http.CanonicalHeaderKey(r.text("authenticate.header", "X-Hub-Signature-256"))
	a.prefix = r.text("authenticate.prefix", "sha256=")
	problems := len(r.problems)
	a.reject = r.choice("authenticate.onFailure", "skip", "skip", "reject") == "reject"
	if a.reject || len(r.problems) > problems {
		s.guards = true
	}
	secrets, given := r.list("authenticate.secrets", "[]")
	for i, item := range secrets {
		path := fmt.Sprintf("authenticate.secrets[%d]", i)
		text := r.secretIn(path, item)
		if text == "" {
			r.problem(path, "nothing in it", "a secret")
		}
		name, named := strings.CutPrefix(item, filePrefix)
		if !named {
			name = ""
		}
		a.secrets = append(a.secrets, newSecretFile(name, text))
	}
	if !validHeaderName(a.header) {
		r.problem("authenticate.header", strconv.Quote(a.header), "the name of a header")
	}
	if len(secrets) > 0 {
		s.authentication = a
	} else if given || r.has("authenticate.") {
		r.problem("authenticate.secrets", "missing", "the secret that requests are signed with")
	}
}

func readAnswer(r *reader, s *settings) {
	s.answer = r.integer("answer", 0, 0, 599)
	if s.answer > 0 && s.answer < 200 {
		r.problem("answer", strconv.Itoa(s.answer), "a status such as 202, or 0")
	}
}
