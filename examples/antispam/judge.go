package main

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	visitorCookie = "visitor_id"

	maxText = 64 << 10 // bytes of a body that can be a comment
	maxName = 200      // bytes of what a verdict shows of a request; what is longer is cut
)

// The verdicts. A comment is neutral if its text is not known: somebody should look.
const (
	spam    = "spam"
	fine    = "fine"
	neutral = "neutral"
)

// judge judges comments, one after the other.
type judge struct {
	path     string
	rules    []rule
	memory   *memory
	verdicts *verdicts
}

func newJudge(path string, words map[string]bool) *judge {
	return &judge{path: plain(path), rules: append(slices.Clone(rules), listedWords(words)), memory: newMemory(), verdicts: newVerdicts(maxVerdicts)}
}

// judge judges the comments among requests, and learns from all of them, each once: an
// event comes again, with the same id, when the answer to it was lost, and then maybe
// in another batch.
func (j *judge) judge(requests []request) {
	for _, r := range requests {
		if _, known := j.memory.ids.get(r.id); known {
			continue
		}
		j.memory.ids.put(r.id, true)
		c := newComment(r)
		if j.isComment(c) {
			j.verdicts.add(j.weigh(c))
			j.learnWritten(c)
		} else {
			j.learnRead(c)
		}
	}
}

// isComment says whether the request writes at the path of comments, or below,
// however that is spelled.
func (j *judge) isComment(c *comment) bool {
	at := plain(c.path)
	return slices.Contains([]string{"POST", "PUT", "PATCH"}, c.method) && (at == j.path || strings.HasPrefix(at, strings.TrimSuffix(j.path, "/")+"/"))
}

// weigh asks all rules.
func (j *judge) weigh(c *comment) verdict {
	v := verdict{
		Event: c.id, RequestID: cut(c.requestID), Time: c.at.UTC(), Client: cut(c.client), Method: cut(c.method), Path: cut(c.path),
		Verdict: fine, Unread: c.unread, Findings: []finding{},
	}
	for _, r := range j.rules {
		if r.ofText && c.unread != "" {
			continue
		}
		if reason := r.find(c, j.memory); reason != "" {
			v.Score += r.weight
			v.Findings = append(v.Findings, finding{r.name, r.weight, reason})
		}
	}
	switch {
	case c.unread != "":
		v.Verdict = neutral
	case v.Score >= spamFrom:
		v.Verdict = spam
	}
	return v
}

func (j *judge) learnWritten(c *comment) {
	past, _ := j.memory.clients.get(c.client)
	if len(past.wrote) == mostComments {
		past.wrote = past.wrote[1:]
	}
	past.wrote = append(slices.Clone(past.wrote), c.at)
	j.memory.clients.put(c.client, past)
	if len(c.letters) >= leastText {
		text := fingerprintOf(c.letters)
		first, known := j.memory.texts.get(text)
		if !known {
			first = c.at
		}
		j.memory.texts.put(text, first)
	}
}

func (j *judge) learnRead(c *comment) {
	if c.method != "GET" {
		return
	}
	past, _ := j.memory.clients.get(c.client)
	past.read = true
	j.memory.clients.put(c.client, past)
	for _, id := range c.visitors {
		j.memory.visitors.put(fingerprintOf(id), true)
	}
}

// comment is a request as the rules look at it.
type comment struct {
	id, requestID  string
	at             time.Time
	client, server string
	method, path   string
	headers        map[string][]string
	visitors       []string
	text           string // all texts in the body, with line breaks between
	letters        string // of the text, in lower case
	unread         string // why the text is not known, or empty
}

func newComment(r request) *comment {
	d := r.data
	c := &comment{
		id: r.id, requestID: d.RequestID, at: r.at, client: cut(d.Client.Address), server: d.Server.Address,
		method: d.HTTP.Request.Method, path: d.URL.Path, headers: d.HTTP.Request.Header, visitors: d.HTTP.Request.Cookie[visitorCookie],
	}
	c.text, c.unread = textOf(c, d.HTTP.Request.Body)
	c.letters = strings.ToLower(strings.Join(strings.FieldsFunc(c.text, notInWord), ""))
	return c
}

// pseudonym is how the middleware writes a value that it has hashed.
var pseudonym = regexp.MustCompile(`^hmac-sha256:[0-9a-f]{64}$`)

const redacted = "REDACTED"

// header returns the first value of a header, empty if it was not sent. It is not
// known what a value was that the middleware keeps to itself.
func (c *comment) header(name string) (value string, known bool) {
	if values := c.headers[name]; len(values) > 0 {
		value = values[0]
	}
	if value == redacted || pseudonym.MatchString(value) {
		return "", false
	}
	return value, true
}

// kindOf is json, form, or empty for what is neither.
func kindOf(contentType string) string {
	mediaType, _, _ := mime.ParseMediaType(contentType)
	switch {
	case mediaType == "application/json" || strings.HasSuffix(mediaType, "+json"):
		return "json"
	case mediaType == "application/x-www-form-urlencoded":
		return "form"
	}
	return ""
}

// textOf returns all texts in a body, or else why they are not known. It does not guess:
// a part of a text is no text, and what is redacted could be the worst of it.
func textOf(c *comment, b *body) (text, unread string) {
	switch {
	case b == nil:
		return "", "no body"
	case b.Truncated:
		return "", "the body is cut: " + cut(b.Reason)
	case b.Base64 != "":
		return "", "the body is not UTF-8"
	case len(b.Content) > maxText:
		return "", fmt.Sprintf("the body is longer than %d bytes", maxText)
	}
	given, known := c.header("content-type")
	if !known {
		return "", "the content type is redacted"
	}
	var texts []string
	kind := kindOf(given)
	switch kind {
	case "json":
		var value any
		if json.Unmarshal([]byte(b.Content), &value) != nil {
			return "", "the body is not the JSON that it says it is"
		}
		texts = textsIn(nil, value)
	case "form":
		values, err := url.ParseQuery(b.Content)
		if err != nil {
			return "", "the body is not the form that it says it is"
		}
		for _, name := range sortedKeys(values) {
			texts = append(texts, values[name]...)
		}
	default:
		return "", "the body is neither JSON nor a form"
	}
	if slices.Contains(texts, redacted) {
		return "", "a field of the body is redacted"
	}
	return strings.ToValidUTF8(strings.Join(texts, "\n"), "\uFFFD"), ""
}

// textsIn adds the texts of a JSON value, at any depth, in the order of the names.
func textsIn(texts []string, value any) []string {
	switch v := value.(type) {
	case string:
		texts = append(texts, v)
	case []any:
		for _, one := range v {
			texts = textsIn(texts, one)
		}
	case map[string]any:
		for _, name := range sortedKeys(v) {
			texts = textsIn(texts, v[name])
		}
	}
	return texts
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// cut shortens a text, at the end of a character.
func cut(s string) string {
	if len(s) <= maxName {
		return s
	}
	return strings.ToValidUTF8(s[:maxName], "") + "…"
}
