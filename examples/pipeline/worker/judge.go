package worker

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
)

// The verdicts on requests that write; Read is on all others.
const (
	Read    = "read"
	Fine    = "fine"
	Spam    = "spam"
	Neutral = "neutral" // the text is not known: somebody should look
)

// Verdict is what became of an event. The text is not in it.
type Verdict struct {
	Event    string    `json:"event"`
	Source   string    `json:"source"`
	Sequence string    `json:"sequence"`
	Time     time.Time `json:"time"` // of the request
	Client   string    `json:"client"`
	Number   int       `json:"number"` // of the events of this client, in the order in which they were judged
	Method   string    `json:"method"`
	Path     string    `json:"path"`
	Verdict  string    `json:"verdict"`
	Score    int       `json:"score"`
	Reasons  []string  `json:"reasons,omitempty"`
}

// Client is what is remembered of a client. It changes with each of its events, so an
// event that counted twice, or in another order, would show.
type Client struct {
	Number int         `json:"number"`
	Read   bool        `json:"read"`
	Wrote  []time.Time `json:"wrote,omitempty"` // the last mostComments times
	Text   uint64      `json:"text,omitempty"`  // of the last comment, a fingerprint
}

const (
	spamFrom     = 5
	mostComments = 5 // within period
	period       = time.Minute
	leastText    = 20  // letters of a text that nobody writes twice by chance
	maxShown     = 200 // bytes of what a verdict shows of a request
)

// happened is the part of an event that is looked at.
type happened struct {
	ID       string    `json:"id"`
	Source   string    `json:"source"`
	Sequence string    `json:"sequence"`
	Time     time.Time `json:"time"`
	Data     struct {
		HTTP struct {
			Request struct {
				Method string              `json:"method"`
				Header map[string][]string `json:"header"`
				Body   *struct {
					Content   string `json:"content"`
					Base64    string `json:"content_base64"`
					Truncated bool   `json:"truncated"`
				} `json:"body"`
			} `json:"request"`
		} `json:"http"`
		URL    struct{ Path string }    `json:"url"`
		Client struct{ Address string } `json:"client"`
	} `json:"data"`
}

// Judge judges an event and learns from it. It is told all it needs and asks for nothing
// else, neither the time, so that it says the same when it is asked again.
func Judge(raw []byte, c *Client) Verdict {
	var e happened
	c.Number++
	if err := json.Unmarshal(raw, &e); err != nil {
		return Verdict{Number: c.Number, Verdict: Neutral, Reasons: []string{"not an event that is known here"}}
	}
	r := e.Data.HTTP.Request
	v := Verdict{
		Event: e.ID, Source: e.Source, Sequence: e.Sequence, Time: e.Time.UTC(), Client: cut(e.Data.Client.Address), Number: c.Number,
		Method: cut(r.Method), Path: cut(e.Data.URL.Path), Verdict: Read,
	}
	if !slices.Contains([]string{"POST", "PUT", "PATCH"}, r.Method) {
		c.Read = c.Read || r.Method == "GET"
		return v
	}
	find := func(weight int, found bool, reason string, args ...any) {
		if found {
			v.Score += weight
			v.Reasons = append(v.Reasons, fmt.Sprintf(reason, args...))
		}
	}
	find(2, !c.Read, "the client has read nothing before")
	recent := 1
	for _, at := range c.Wrote {
		if e.Time.Sub(at).Abs() < period {
			recent++
		}
	}
	find(3, recent > mostComments, "more than %d comments within %s", mostComments, period)
	if c.Wrote = append(c.Wrote, e.Time); len(c.Wrote) > mostComments {
		c.Wrote = c.Wrote[1:]
	}
	v.Verdict = Neutral
	if b := r.Body; b != nil && !b.Truncated && b.Base64 == "" && !strings.Contains(b.Content, "REDACTED") {
		text, letters := textOf(b.Content)
		n := len(links.FindAllString(text, -1))
		find(3, n > 2, "%d links", n)
		for _, word := range strings.FieldsFunc(text, notInWord) {
			find(3, listed[word], "the word %q", word)
		}
		fingerprint := fingerprintOf(letters)
		find(4, len(letters) >= leastText && fingerprint == c.Text, "the same text as before")
		c.Text = fingerprint
		v.Verdict = Fine
		if v.Score >= spamFrom {
			v.Verdict = Spam
		}
	}
	return v
}

var (
	links  = regexp.MustCompile(`https?://|\bwww\.`)
	listed = map[string]bool{"casino": true, "jackpot": true, "payday": true, "pills": true, "viagra": true}
)

// textOf is a body, be it JSON or a form, in lower case, and the letters in it.
func textOf(body string) (text, letters string) {
	if decoded, err := url.QueryUnescape(body); err == nil {
		body = decoded
	}
	text = strings.ToLower(body)
	return text, strings.Join(strings.FieldsFunc(text, notInWord), "")
}

func notInWord(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }

func fingerprintOf(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text))
	return h.Sum64()
}

// cut keeps what anybody may have sent from filling the store.
func cut(text string) string {
	if len(text) > maxShown {
		text = strings.ToValidUTF8(text[:maxShown], "")
	}
	return text
}
