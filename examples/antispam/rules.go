package main

import (
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"
	"time"
	"unicode"
)

// spamFrom is the sum of weights from which on a comment is spam.
const spamFrom = 5

// rule looks at a comment. Its function returns the reason why it looks like spam, or
// nothing if it does not. It may read what is remembered of earlier requests; it
// changes nothing.
type rule struct {
	name   string
	weight int
	ofText bool // it has no say if the text is not known
	find   func(*comment, *memory) string
}

// rules of the judge that need no word list. To add one, write a function and a line.
var rules = []rule{
	{"odd_method", 1, false, oddMethod},
	{"odd_path", 1, false, oddPath},
	{"user_agent", 2, false, userAgent},
	{"content_type", 1, false, contentType},
	{"other_site", 3, false, otherSite},
	{"visitor", 1, false, visitor},
	{"read_nothing", 2, false, readNothing},
	{"too_fast", 3, false, tooFast},
	{"links", 3, true, links},
	{"repeated", 2, true, repeated},
	{"seen_before", 4, true, seenBefore},
}

// oddMethod: the site's own pages post comments.
func oddMethod(c *comment, _ *memory) string {
	if c.method != "POST" {
		return "written with " + cut(c.method)
	}
	return ""
}

// needless is what no browser makes of a link to comments: //, dots, and letters or digits
// with a percent sign, as in /api/%63omments.
var needless = regexp.MustCompile(`(?i)//|/\.{1,2}(/|$)|%(2[de]|3\d|[46][1-9a-f]|[57][\da]|5f|7e)`)

// oddPath: the event has the path as the middleware got it. What Traefik has made plain
// before, as it does by default, is not to be seen any more.
func oddPath(c *comment, _ *memory) string {
	if needless.MatchString(c.path) {
		return "the path is written as " + cut(c.path)
	}
	return ""
}

// programs call themselves so, unless they pretend.
var programs = regexp.MustCompile(`(?i)^(curl|wget|python|go-http-client|java|okhttp|axios|node|ruby|php|perl|libwww)`)

func userAgent(c *comment, _ *memory) string {
	switch agent, known := c.header("user-agent"); {
	case !known:
		return ""
	case agent == "":
		return "no user agent"
	case programs.MatchString(agent):
		return "the user agent is " + cut(agent)
	}
	return ""
}

func contentType(c *comment, _ *memory) string {
	switch given, known := c.header("content-type"); {
	case !known:
		return ""
	case given == "":
		return "no content type"
	case kindOf(given) == "":
		return "the content type is " + cut(given)
	}
	return ""
}

// otherSite: browsers tell from which page a comment is posted, and pages cannot lie.
func otherSite(c *comment, _ *memory) string {
	if c.server == "" {
		return "" // HTTP/1.0 may name none
	}
	for _, name := range []string{"origin", "referer"} {
		from, known := c.header(name)
		if !known {
			return ""
		}
		if from == "" {
			continue
		}
		if page, err := url.Parse(from); err != nil || !strings.EqualFold(page.Hostname(), c.server) {
			return "sent from " + cut(from)
		}
		return ""
	}
	return "neither origin nor referer"
}

// visitor: the site gives each visitor a cookie with the first page.
func visitor(c *comment, m *memory) string {
	if len(c.visitors) == 0 {
		return "no " + visitorCookie
	}
	for _, id := range c.visitors {
		if _, known := m.visitors.get(fingerprintOf(id)); known {
			return ""
		}
	}
	return "nobody has read anything with this " + visitorCookie
}

// readNothing: who comments has read something before. It needs events of GET, too.
func readNothing(c *comment, m *memory) string {
	if past, _ := m.clients.get(c.client); !past.read {
		return "the client has read nothing before"
	}
	return ""
}

// A client may write mostComments within a period.
const (
	mostComments = 5
	period       = time.Minute
)

// tooFast counts by the time of the requests, not of their delivery, which may come
// late, and in another order.
func tooFast(c *comment, m *memory) string {
	past, _ := m.clients.get(c.client)
	n := 1
	for _, at := range past.wrote {
		if c.at.Sub(at).Abs() < period {
			n++
		}
	}
	if n > mostComments {
		return fmt.Sprintf("more than %d comments of the client within %s", mostComments, period)
	}
	return ""
}

const mostLinks = 2

var link = regexp.MustCompile(`(?i)https?://(www\.)?|\bwww\.`)

func links(c *comment, _ *memory) string {
	if n := len(link.FindAllStringIndex(c.text, -1)); n > mostLinks {
		return fmt.Sprintf("%d links", n)
	}
	return ""
}

const mostRepeated = 5

// repeated: "soooooo cheap!!!!!!". Only letters and marks of emphasis: lines of dashes are
// how people write a line.
func repeated(c *comment, _ *memory) string {
	n, last := 0, rune(-1)
	for _, r := range c.text {
		if r != last {
			n, last = 0, r
		}
		if n++; n > mostRepeated && (unicode.IsLetter(r) || strings.ContainsRune("!?$", r)) {
			return fmt.Sprintf("%q more than %d times in a row", r, mostRepeated)
		}
	}
	return ""
}

// leastText is how many letters a text has that two people do not write by chance.
const leastText = 20

func seenBefore(c *comment, m *memory) string {
	if len(c.letters) < leastText {
		return ""
	}
	if at, known := m.texts.get(fingerprintOf(c.letters)); known {
		return "the same text was written at " + at.UTC().Format(time.RFC3339)
	}
	return ""
}

// someWords are for trying it out.
var someWords = map[string]bool{"casino": true, "jackpot": true, "payday": true, "pills": true, "viagra": true}

// listedWords is the rule that needs a list.
func listedWords(list map[string]bool) rule {
	return rule{"listed_word", 3, true, func(c *comment, _ *memory) string {
		for _, word := range strings.FieldsFunc(strings.ToLower(c.text), notInWord) {
			if list[word] {
				return fmt.Sprintf("the word %q", word)
			}
		}
		return ""
	}}
}

func notInWord(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }

// plain is a path as a server understands it: decoded, without // and dots.
func plain(sent string) string {
	decoded, err := url.PathUnescape(sent)
	if err != nil {
		decoded = sent
	}
	return path.Clean("/" + decoded)
}
