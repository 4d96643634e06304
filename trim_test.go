package requestmirror

import (
	"bytes"
	"encoding/base64"
	"math/bits"
	"math/rand"
	"net/http"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// encodedLength is how many bytes a text takes between the quotes of JSON.
func encodedLength(s string) int {
	b := &bytes.Buffer{}
	encodeJSON(b, s)
	return b.Len() - len("\"\"\n")
}

// bodyOf is a capture of a request with this body, of which more was not kept.
func bodyOf(p *pipeline, kept []byte, more int64, cut string) *capture {
	n := int64(len(kept))
	b := &body{budget: p.budget, declared: n + more, limit: n, kept: n, beyond: more, last: kept, closed: true, cut: cut}
	return &capture{set: p.set, at: time.Now(), method: "POST", uri: "/a?b=c", host: "a.test", proto: "HTTP/1.1", remote: "192.0.2.1:99",
		header: http.Header{"Content": {`"content":"`}, "Body": {`"body":{"content":"`}}, body: b, sequence: 1}
}

// checkTrimmed checks a payload against its limit: it has as much of the body as fits,
// and not a character more.
func checkTrimmed(t testing.TB, label string, payload, whole []byte, limit int, size int64, reason string) {
	t.Helper()
	if len(payload) > limit {
		t.Errorf("%s: got %d bytes; want at most %d", label, len(payload), limit)
	}
	text := payload
	if payload[0] == '[' {
		text = payload[1 : len(payload)-1]
	}
	w := eventOf(t, text).Data.HTTP.Request.Body
	if !w.Truncated || w.Reason != reason || w.Size != size {
		t.Errorf("%s: got truncated %v, reason %q, size %d; want true, %q, %d", label, w.Truncated, w.Reason, w.Size, reason, size)
	}
	room := limit - len(payload)
	if w.Content != nil {
		kept := *w.Content
		if !utf8.Valid(whole) {
			t.Errorf("%s: got content for bytes that are no text; want content_base64", label)
		}
		if !strings.HasPrefix(string(whole), kept) || len(kept) == len(whole) {
			t.Errorf("%s: got %d bytes of content that are not a part of the body's beginning", label, len(kept))
			return
		}
		_, n := utf8.DecodeRune(whole[len(kept):])
		if more := encodedLength(string(whole[len(kept) : len(kept)+n])); room >= more {
			t.Errorf("%s: got %d bytes left; want less than the %d of the next character", label, room, more)
		}
		return
	}
	kept, err := base64.StdEncoding.DecodeString(w.ContentBase64)
	if err != nil || len(kept) == 0 || !bytes.HasPrefix(whole, kept) {
		t.Errorf("%s: got %d bytes of content_base64 (%v) that are not the body's beginning", label, len(kept), err)
	}
	if room >= 4 {
		t.Errorf("%s: got %d bytes left; want less than four", label, room)
	}
}

// hardText are bodies whose encoding is longer than they are, each about n bytes.
func hardText(n int) map[string][]byte {
	random := make([]byte, n)
	rand.New(rand.NewSource(1)).Read(random)
	random[0] = 0xff // no text from the beginning
	list := map[string][]byte{"random bytes": random}
	for name, part := range map[string]string{
		"quotes": `"`, "newlines": "\n", "control bytes": "\x01", "tags": "<", "emoji": "😀", "line separators": "\u2028",
		"backslashes": `\`, "deletes": "\x7f", "accents": "é", "letters": "a", "escapes in a text": `\\u20"\n`,
		"all of it": "a\\\"\n\x02<é€😀\u2028\\\\u", "an odd beginning": "\\\u2029", "null": "\x00b",
	} {
		list[name] = []byte(strings.Repeat(part, n/len(part)+1))
	}
	return list
}

// limited is the pipeline with another maxEventSize.
func limited(p *pipeline, limit int) *pipeline {
	set := *p.set
	set.maxEventSize = limit
	p.set = &set
	return p
}

func trimmedAt(t testing.TB, p *pipeline, limit int, whole []byte, size int64, cut, reason string) {
	t.Helper()
	limited(p, limit)
	c := bodyOf(p, whole, size-int64(len(whole)), cut)
	payload := encode(p, c, &delivery{})
	if !c.trimmed {
		t.Errorf("limit %d: got an event that counts as whole; want it trimmed", limit)
	}
	checkTrimmed(t, t.Name(), payload, whole, limit, size, reason)
}

func TestEventIsTrimmedToTheLastCharacterThatFits(t *testing.T) {
	p := stillPipeline(t, nil)
	for name, whole := range hardText(5 << 10) {
		t.Run(name, func(t *testing.T) {
			for limit := 4096; limit <= 4120; limit++ {
				trimmedAt(t, p, limit, whole, int64(len(whole)), "", cutEvent)
			}
		})
	}
}

func TestLargeBodyIsTrimmed(t *testing.T) {
	p := stillPipeline(t, nil)
	for name, whole := range hardText(1 << 20) {
		t.Run(name, func(t *testing.T) {
			for _, limit := range []int{65537, 1<<20 - 1} {
				trimmedAt(t, p, limit, whole, int64(len(whole)), "", cutEvent)
			}
		})
	}
}

func TestTrimmedBodyThatWasCutBefore(t *testing.T) {
	for cut, want := range map[string]string{cutLimit: cutEvent, cutAborted: cutAborted, cutMemory: cutMemory, cutUnread: cutUnread} {
		t.Run(cut, func(t *testing.T) {
			p := stillPipeline(t, nil)
			for limit := 4096; limit < 4099; limit++ {
				for _, whole := range hardText(5 << 10) {
					trimmedAt(t, p, limit, whole, 1<<20, cut, want)
				}
			}
		})
	}
}

// The reason of a cut takes place itself, so an event that is whole by a byte is whole,
// and one that is a byte too long loses more than one.
func TestEventThatJustFitsIsWhole(t *testing.T) {
	p := stillPipeline(t, nil)
	for name, whole := range hardText(5 << 10) {
		t.Run(name, func(t *testing.T) {
			limited(p, 0)
			length := len(encode(p, bodyOf(p, whole, 0, ""), &delivery{}))
			for over := 0; over < 40; over += 1 + over/9*3 {
				limited(p, length-over)
				c := bodyOf(p, whole, 0, "")
				payload := encode(p, c, &delivery{})
				if over == 0 {
					if w := eventOf(t, payload).Data.HTTP.Request.Body; w.Truncated || c.trimmed || !bytes.Equal(contentOf(t, w), whole) {
						t.Errorf("got a cut body (%v) for an event that fits; want it whole", w.Reason)
					}
					continue
				}
				checkTrimmed(t, name, payload, whole, length-over, int64(len(whole)), cutEvent)
			}
		})
	}
}

func TestIntervalOfARate(t *testing.T) {
	for rate, want := range map[string]time.Duration{
		"60": time.Second, "120": 500 * time.Millisecond, "1": time.Minute, " 6 ": 10 * time.Second, "600000": 100 * time.Microsecond,
		"": 0, "*": 0, "0": 0, "-1": 0, "abc": 0, "1.5": 0, "99999999999999999999": 0,
	} {
		if got := intervalOf(rate); got != want {
			t.Errorf("rate %q: got an interval of %v; want %v", rate, got, want)
		}
	}
}

func TestCountsOfAReport(t *testing.T) {
	got := wireCounts(map[string]uint64{"b": 2, "c": 0, "a": 1})
	if len(got) != 2 || got[0] != (wireCount{"a", 1}) || got[1] != (wireCount{"b", 2}) {
		t.Errorf("got %v; want a and b, sorted", got)
	}
	if got := wireCounts(nil); got == nil || len(got) != 0 {
		t.Errorf("got %v; want an empty list, which is [] in JSON", got)
	}
}

func TestExcerptOfABatch(t *testing.T) {
	for n := 1; n < 6; n++ {
		for wanted := 1; wanted < 1<<n; wanted++ {
			for _, ended := range []bool{false, true} {
				d := &delivery{}
				d.text.WriteByte('[')
				want := ""
				for i := 0; i < n; i++ {
					text := strings.Repeat("x", i+1)
					d.text.WriteString(text + batchBreak)
					d.events = append(d.events, &capture{sequence: uint64(i)})
					if wanted>>i&1 == 1 {
						want += text + batchBreak
					}
				}
				if ended {
					endText(d)
				}
				e := excerpt(d, func(i int) bool { return wanted>>i&1 == 1 })
				endText(e)
				if got := string(e.payload); got != "["+want[:len(want)-1]+"]" {
					t.Errorf("%d events, wanted %b: got %q; want [%q]", n, wanted, got, want[:len(want)-1])
				}
				if got, want := len(e.events), bits.OnesCount(uint(wanted)); got != want {
					t.Errorf("%d events, wanted %b: got %d of them; want %d", n, wanted, got, want)
				}
			}
		}
	}
}

func FuzzTrim(f *testing.F) {
	f.Add([]byte(`a\"`+"\n\x01<é€😀\u2028"), 4096, false)
	f.Add([]byte{0xff, 0}, 4100, false)
	f.Add([]byte(`\\\u202`), 4099, true)
	f.Fuzz(func(t *testing.T, part []byte, limit int, aborted bool) {
		if len(part) == 0 || limit < 4096 || limit > 16384 {
			return
		}
		whole := bytes.Repeat(part, 17000/len(part)+1)
		cut, reason := "", cutEvent
		if aborted {
			cut, reason = cutAborted, cutAborted
		}
		p := limited(stillPipeline(t, nil), limit)
		c := bodyOf(p, whole, 0, cut)
		payload := encode(p, c, &delivery{})
		if aborted {
			whole = []byte(wholeRunes(string(whole)))
		}
		checkTrimmed(t, "fuzz", payload, whole, limit, int64(len(part))*int64(17000/len(part)+1), reason)
	})
}
