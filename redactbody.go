package requestmirror

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/textproto"
	"net/url"
	"regexp"
	"sort"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// bodyFields are the fields that are blanked in bodies. It never changes.
//
// A body is read by regular expressions, not by a parser: they do not mind that a body
// was cut or is wrong, they leave every other byte as it was, and they are compiled code.
type bodyFields struct {
	json *notation
	form *notation
	word *regexp.Regexp // one of the names anywhere
}

// notation is a way to write the names of the fields.
type notation struct {
	words   [][]byte       // of which one is in every text with a field, in lower case
	escape  *regexp.Regexp // or this
	plain   *regexp.Regexp // a name without escapes, and what is around it, up to the value
	escaped *regexp.Regexp // any name, likewise, for several times the work
}

const (
	spaces  = `[\s\v\x{85}\p{Z}\x{feff}]`
	between = `(?:[.:$\[\]\x00]|%%(?:00|24|2e|3a|5b|5d))` // the names that a form's name consists of
)

// newBodyFields returns nil for no names.
func newBodyFields(names []string) *bodyFields {
	given := []string{}
	literal := []string{}
	for _, name := range names {
		if name != "" {
			given = append(given, name)
			literal = append(literal, regexp.QuoteMeta(name))
		}
	}
	if len(given) == 0 {
		return nil
	}
	return &bodyFields{
		// Comments are nothing to Rails and to Newtonsoft's parser, nor are all of Unicode's
		// spaces to the latter. Those with a quote or a star in them are not looked for here:
		// each could go on to the end of the body.
		json: newNotation(given, inKey, "", `\\`, `"(?:%s)"(?:`+spaces+`|/\*[^*"]*\*/|//[^\n"]*\n)*:`+spaces+`*`),
		// password is also the name of what is written user[password], user.password,
		// password[0] or, by a library of pages, page:password or page$password. PHP ends a
		// name at a zero. Spaces before a name are nothing to some backends.
		form: newNotation(given, inForm, " _", "%", `(?i:(?:^|[&;])(?:[^&;=]*`+between+`)?(?:[\s+]|%%20)*(?:%s)(?:`+between+`[^&;=]*)?=)`),
		word: regexp.MustCompile("(?i:" + strings.Join(literal, "|") + ")"),
	}
}

// newNotation is one whose escapes begin with lead; around is what is before and after a
// name. spell says how a character may be written: as it is, which for those in gaps is not
// the only way, with an escape, and what may follow lead then.
func newNotation(names []string, spell func(rune) (plain, escaped string, escapes []string), gaps, lead, around string) *notation {
	words := map[string]bool{}
	plain := []string{}
	escaped := []string{}
	escapes := []string{}
	for _, name := range names {
		words[longestWord(strings.ToLower(name), gaps)] = true
		some := ""
		all := ""
		for _, r := range name {
			without := ""
			with := ""
			for _, c := range casesOf(r) {
				p, e, others := spell(c)
				without += "|" + p
				with += "|" + e
				escapes = append(escapes, others...)
				if unicode.ToLower(c) != unicode.ToLower(r) {
					words[strings.ToLower(string(c))] = true
				}
			}
			some += "(?:" + without[1:] + ")"
			all += "(?:" + without[1:] + with + ")"
		}
		plain = append(plain, some)
		escaped = append(escaped, all)
	}
	sort.Strings(escapes) // what begins alike becomes one branch
	n := &notation{
		escape:  regexp.MustCompile(lead + "(?i:" + strings.Join(escapes, "|") + ")"),
		plain:   regexp.MustCompile(fmt.Sprintf(around, strings.Join(plain, "|"))),
		escaped: regexp.MustCompile(fmt.Sprintf(around, strings.Join(escaped, "|"))),
	}
	for word := range words {
		n.words = append(n.words, []byte(word))
	}
	return n
}

// longestWord is the longest part of a name without gaps.
func longestWord(name, gaps string) string {
	longest := ""
	for _, word := range strings.FieldsFunc(name, func(r rune) bool { return strings.ContainsRune(gaps, r) }) {
		if len(word) > len(longest) {
			longest = word
		}
	}
	return longest
}

// casesOf are all cases of a character by Unicode, as for Go's encoding/json: a long s
// is an s.
func casesOf(r rune) []rune {
	cases := []rune{r}
	for c := unicode.SimpleFold(r); c != r; c = unicode.SimpleFold(c) {
		cases = append(cases, c)
	}
	return cases
}

// never is an expression for no character.
const never = `[^\x00-\x{10ffff}]`

// shortEscapes are those of JSON (RFC 8259, 7), by character, without their backslash.
var shortEscapes = map[rune]string{'"': `"`, '\\': `\\`, '/': "/", '\b': "b", '\f': "f", '\n': "n", '\r': "r", '\t': "t"}

// inKey is how a character may be written in a JSON string.
func inKey(r rune) (plain, escaped string, escapes []string) {
	plain = regexp.QuoteMeta(string(r))
	if r == '"' || r == '\\' {
		plain = never
	}
	code := fmt.Sprintf("u%04x", r)
	if high, low := utf16.EncodeRune(r); high != unicode.ReplacementChar {
		code = fmt.Sprintf(`u%04x\\u%04x`, high, low)
	}
	escapes = []string{code}
	if short, ok := shortEscapes[r]; ok {
		escapes = append(escapes, short)
	}
	return plain, `\\(?i:` + strings.Join(escapes, "|") + ")", escapes
}

// inForm is how a character may be written in the name of a form's field. Some of its
// bytes may be escaped and some not: alone, these are no UTF-8.
func inForm(r rune) (plain, escaped string, escapes []string) {
	escaped = ""
	escapes = nil
	plain = regexp.QuoteMeta(string(r))
	if r == ' ' {
		plain = `[ +]`
	} else if r == '_' { // which PHP makes of these
		plain = `(?:[_ +.\[]|%20|%2e|%5b)`
	}
	for _, b := range []byte(string(r)) {
		code := fmt.Sprintf("%02x", b)
		escapes = append(escapes, code)
		if r < utf8.RuneSelf {
			escaped += "%" + code
		} else {
			escaped += "(?:%" + code + `|\x{fffd})`
		}
	}
	return plain, escaped, escapes
}

// find returns where the names are; nil for none.
func find(n *notation, content []byte, most int) [][]int {
	if n.escape.Match(content) {
		return n.escaped.FindAllIndex(content, most)
	}
	lower := bytes.ToLower(content)
	for _, word := range n.words {
		if bytes.Contains(lower, word) {
			return n.plain.FindAllIndex(content, most)
		}
	}
	return nil
}

const (
	formType      = "application/x-www-form-urlencoded"
	multipartType = "multipart/"
	redactedJSON  = `"` + redacted + `"`

	// mostParts of a body are more than servers take: each is some work that is interpreted.
	mostParts = 4000

	// valueFields are the fields that are as much work as a form's value that may be JSON.
	valueFields = 4

	// deepest is how deep parts may be in parts: OData has three levels.
	deepest = 3
)

var (
	// structured are content types of bodies that are looked into, whatever they begin with. A
	// request as a part is a header and often JSON.
	structured = regexp.MustCompile("json|^text/event-stream$|^application/http$|^" + formType + "$|^" + multipartType)
	jsonTypes  = regexp.MustCompile("json|^text/event-stream$|^application/http$")

	// jsonStart is that of a JSON text, whatever its content type says: curl -d says it is a
	// form. A form may begin so, too.
	jsonStart = regexp.MustCompile(`^[\s\x{feff}]*(?:\{|\[\s*(?:["{\[\]\-0-9]|true|false|null))`)

	// jsonValue is a string, which may be cut, a number or a word. Single quotes, and what
	// comes between a value and the next comma or bracket, are no JSON, but could be a part of
	// it.
	jsonValue = regexp.MustCompile(`^(?s:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)?[^\s,\]}]*(?:[ \t]+[^\s,\]}]+)*`)

	// comments before a value. One that has no end takes the rest.
	comments = regexp.MustCompile(`^(?s:` + spaces + `|/\*.*?(?:\*/|$)|//[^\n]*)*`)

	// valueStart is that of a form's value that is JSON, as GitHub and Slack send it.
	valueStart = regexp.MustCompile(`(?i)=(?:[\s+]|%(?:20|09|0a|0d))*(?:[{\[]|%7b|%5b)`)
	cutEscape  = regexp.MustCompile(`%[0-9A-Fa-f]?$`)

	identity      = regexp.MustCompile(`^(?i:[\s,]|identity)*$`)
	untransferred = regexp.MustCompile(`^(?i:[78]-?bit|binary|)$`) // Content-Transfer-Encoding
	charsetOf     = regexp.MustCompile(`(?i)(?:^|[;,\s])charset\s*=\s*["']?([^\s"';]*)`)
	asciiCharset  = regexp.MustCompile(`^(?i:utf-?8|(?:us-)?ascii|iso-8859-\d+|latin-?\d+|(?:windows-|cp)125\d|)$`)

	// wideStart is that of texts in UTF-16 or UTF-32, which some backends take, too: there is
	// a zero in the first four bytes, with and without a byte order mark. So it is in many
	// files: wideJSON is what begins as JSON.
	wideStart = regexp.MustCompile(`^(?s:.{0,3})\x00`)
	wideJSON  = regexp.MustCompile(`^(?:\x{fffd}{2})?(?:\x00+(?:\x{fffd}{2}\x00*)?(?:\s\x00+)*[{\[]|(?:\s\x00+)*[{\[]\x00)`)

	partHead  = regexp.MustCompile(`\n\r?\n`)
	partBegin = regexp.MustCompile(`^(?:--)?[ \t]*\r?(?:\n|$)`) // after a delimiter

	// encodedHead is that of a part whose content may not be what it looks like.
	encodedHead = regexp.MustCompile(`(?i)encoding|charset|multipart|urlencoded`)

	// unquoted takes away what some take for quotes and escapes in a part's name.
	unquoted = strings.NewReplacer("'", "", `\`, "")
)

// effort is what may still be done for a body. The work for each field and part is
// interpreted, so that bodies with nothing else could keep a processor busy: they are
// withheld. One worker uses it.
type effort struct {
	fields int
	parts  int
}

// redactBody is a body as it may leave. header is that of the request or response with
// the body, which stays as it is. withheld is true if the body may hide fields that cannot
// be looked for, as when it is compressed. Then none of it may leave.
//
// It looks into JSON, forms and JSON in them, and forms with files and what is in them.
// What it does not look into: JSON as the text of a JSON string, keys without double
// quotes, which are no JSON, and other content types, unless the body begins as JSON does.
// A key that ends with a quote and the name counts as the name.
func redactBody(f *bodyFields, header http.Header, content []byte) (out []byte, withheld bool) {
	if f == nil || len(content) == 0 {
		return content, false
	}
	left := &effort{fields: 1000 + len(content)/64, parts: mostParts}
	return redactContent(f, left, typeOf(header), header, content, 1)
}

// typeOf is the content type up to a comma or space, at which it ends for PHP and Rails.
func typeOf(header http.Header) string {
	kind := mediaType(header)
	if i := strings.IndexAny(kind, ", \t"); i >= 0 {
		kind = kind[:i]
	}
	return kind
}

// redactContent is redactBody for a body, or a part at a depth of more than one.
func redactContent(f *bodyFields, left *effort, kind string, header http.Header, content []byte, depth int) (out []byte, withheld bool) {
	if isUnreadable(kind, header, content) {
		return nil, true
	}
	if strings.HasPrefix(kind, multipartType) {
		return redactParts(f, left, header, content, depth)
	}
	if isJSON(kind, content) && (kind != formType || json.Valid(content)) {
		return redactFields(f.json, left, content, redactedJSON, lengthOfJSON)
	}
	if kind == formType || kind == "" { // Rails takes what has no type for a form
		return redactForm(f, left, content)
	}
	return content, false
}

// redactForm is for a form, which may begin as JSON does, or be JSON that was cut or is
// wrong.
func redactForm(f *bodyFields, left *effort, content []byte) (out []byte, withheld bool) {
	out, withheld = redactFields(f.form, left, content, redacted, lengthInForm)
	if !withheld && (bytes.IndexByte(out, '{') >= 0 || bytes.Contains(out, []byte("%7B")) || bytes.Contains(out, []byte("%7b"))) {
		out, withheld = redactValues(f, left, out)
	}
	if withheld || !jsonStart.Match(content) {
		return out, withheld
	}
	likeJSON, much := redactFields(f.json, left, content, redactedJSON, lengthOfJSON)
	if bytes.Equal(likeJSON, content) {
		return out, false
	}
	if much || !bytes.Equal(out, content) { // a field may end in the middle of one of the other notation
		return nil, true
	}
	return likeJSON, false
}

// redactValues is for JSON in the values of a form.
func redactValues(f *bodyFields, left *effort, content []byte) (out []byte, withheld bool) {
	found := valueStart.FindAllIndex(content, left.fields/valueFields+1)
	left.fields -= len(found) * valueFields
	if left.fields < 0 {
		return nil, true
	}
	out = make([]byte, 0, len(content))
	withheld = false
	done := 0
	for _, at := range found {
		if at[0] < done {
			continue // in a value that was looked into
		}
		value := content[at[0]+1:]
		value = value[:lengthInForm(value)]
		out = append(out, content[done:at[0]+1]...)
		done = at[0] + 1 + len(value)
		value, withheld = redactValue(f, left, value)
		if withheld {
			return nil, true
		}
		out = append(out, value...)
	}
	return append(out, content[done:]...), false
}

// redactValue leaves a value as it is if there is nothing to hide.
func redactValue(f *bodyFields, left *effort, value []byte) (out []byte, withheld bool) {
	text, err := url.QueryUnescape(string(cutEscape.ReplaceAll(value, nil)))
	if err != nil { // who can tell what a backend makes of it
		if f.word.Match(value) || f.form.escape.Match(value) || f.json.escape.Match(value) {
			return []byte(redacted), false
		}
		return value, false
	}
	out, withheld = redactFields(f.json, left, []byte(text), redactedJSON, lengthOfJSON)
	if withheld || string(out) == text {
		return value, withheld
	}
	return []byte(url.QueryEscape(string(out))), false
}

func isJSON(kind string, content []byte) bool {
	return jsonTypes.MatchString(kind) || jsonStart.Match(content)
}

// isPlain says whether a content type says nothing: the body may be JSON.
func isPlain(kind string) bool { return kind == "" || kind == "text/plain" }

// isUnreadable says whether the bytes of a text are not its characters, or at least
// ASCII's.
func isUnreadable(kind string, header http.Header, content []byte) bool {
	if wideJSON.Match(content) {
		return true
	}
	declared := !isPlain(kind)
	if declared && !structured.MatchString(kind) {
		return false
	}
	charset := charsetOf.FindStringSubmatch(header.Get("Content-Type"))
	return header["Content-Encoding"] != nil && !identity.MatchString(strings.Join(header["Content-Encoding"], ",")) ||
		charset != nil && !asciiCharset.MatchString(charset[1]) || declared && wideStart.Match(content)
}

// redactFields puts another value into all fields. lengthOf is that of the value that a
// text begins with.
func redactFields(n *notation, left *effort, content []byte, value string, lengthOf func(text []byte) int) (out []byte, withheld bool) {
	found := find(n, content, left.fields+1)
	if found == nil {
		return content, false
	}
	left.fields -= len(found)
	if left.fields < 0 {
		return nil, true
	}
	return replaceFields(found, content, value, lengthOf), false
}

func replaceFields(found [][]int, content []byte, value string, lengthOf func(text []byte) int) []byte {
	out := make([]byte, 0, len(content)+len(found)*len(value))
	done := 0
	for _, at := range found {
		if at[1] < done {
			continue // in a value that is gone
		}
		if length := lengthOf(content[at[1]:]); length >= 0 {
			out = append(append(out, content[done:at[1]]...), value...)
			done = at[1] + length
		}
	}
	return append(out, content[done:]...)
}

// lengthOfJSON is negative if there is no value.
func lengthOfJSON(text []byte) int {
	nested := 0
	if len(text) > 0 && text[0] == '/' {
		nested = comments.FindIndex(text)[1]
	}
	if nested < len(text) && (text[nested] == '{' || text[nested] == '[') {
		nested += lengthOfNested(text[nested:])
	}
	length := nested + jsonValue.FindIndex(text[nested:])[1]
	if length == 0 {
		return -1
	}
	return length
}

// lengthOfNested is that of an object or array. If it is cut or wrong, it is all of the
// text.
func lengthOfNested(text []byte) int {
	var value json.RawMessage
	decoder := json.NewDecoder(bytes.NewReader(text))
	if decoder.Decode(&value) != nil {
		return len(text)
	}
	return int(decoder.InputOffset())
}

// lengthInForm is that of a value. A semicolon separates for some backends, and is a part of
// the value for most.
func lengthInForm(text []byte) int {
	if i := bytes.IndexByte(text, '&'); i >= 0 {
		return i
	}
	return len(text)
}

// redactParts is for multipart/form-data (RFC 7578) and its kin.
func redactParts(f *bodyFields, left *effort, header http.Header, content []byte, depth int) (out []byte, withheld bool) {
	_, params, err := mime.ParseMediaType(header.Get("Content-Type"))
	if err != nil || params["boundary"] == "" || depth > deepest {
		return nil, true
	}
	// The line break before a boundary belongs to it; that before the first may be missing.
	delimiter := "\n--" + params["boundary"]
	parts := bytes.SplitN(append([]byte("\n"), content...), []byte(delimiter), left.parts+1)
	left.parts -= len(parts)
	if left.parts < 0 {
		return nil, true
	}
	out = make([]byte, 0, len(content)+len(redacted))
	withheld = false
	hidden := false
	read := false
	for i, part := range parts {
		if (hidden || read) && !partBegin.Match(part) { // it only looks like a delimiter, so the content goes on
			if read {
				return nil, true
			}
			continue
		}
		if i > 0 {
			if bytes.HasSuffix(parts[i-1], []byte("\r")) {
				out = append(out, '\r')
			}
			out = append(out, delimiter...)
		}
		if i < len(parts)-1 {
			part = bytes.TrimSuffix(part, []byte("\r"))
		}
		at := partHead.FindIndex(part)
		hidden = false
		read = i > 0 && at == nil
		if i > 0 && at != nil {
			out = append(out, part[:at[1]]...)
			part, hidden, read, withheld = redactPart(f, left, part[:at[1]], part[at[1]:], depth+1)
			if withheld {
				return nil, true
			}
		}
		out = append(out, part...)
	}
	return out[1:], false
}

// redactPart is the content of a part as it may leave, whether it is one of the fields,
// and whether it was looked into. head begins with what is left of the delimiter's line.
func redactPart(f *bodyFields, left *effort, head, content []byte, depth int) (out []byte, hidden, read, withheld bool) {
	out = nil
	withheld = false
	_, lines, _ := bytes.Cut(head, []byte("\n"))
	fields, err := textproto.NewReader(bufio.NewReader(bytes.NewReader(lines))).ReadMIMEHeader()
	header := http.Header(fields)
	odd := err != nil || len(header["Content-Disposition"]) > 1
	if disposition := header.Get("Content-Disposition"); disposition != "" {
		_, params, wrong := mime.ParseMediaType(disposition)
		odd = odd || wrong != nil
		if name := params["name"]; find(f.form, []byte(name+"=&"+unquoted.Replace(name)+"="), 1) != nil {
			return []byte(redacted), true, false, false
		}
	}
	if odd && f.word.Match(lines) { // who can tell what a backend makes of it
		return []byte(redacted), true, false, false
	}
	kind := typeOf(header)
	if kind == "" {
		kind = "text/plain" // RFC 7578, 4.4
	}
	read = structured.MatchString(kind)
	encoded := (read || isPlain(kind)) && !untransferred.MatchString(strings.TrimSpace(header.Get("Content-Transfer-Encoding")))
	if encoded || err != nil && encodedHead.Match(lines) {
		return nil, false, false, true
	}
	read = read || jsonStart.Match(content)
	out, withheld = redactContent(f, left, kind, header, content, depth)
	return out, false, read, withheld
}
