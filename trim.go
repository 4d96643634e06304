package requestmirror

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// trimEvent makes an event fit into limit bytes: it cuts the body of the response, and
// if that is not enough that of the request. It says whether that was enough.
func trimEvent(buffer *bytes.Buffer, c *capture, start, bodyAt, bodyEnd, responseAt, responseEnd, limit int) bool {
	responded := responseEnd > responseAt
	if responded && trim(buffer, c.response.body, start, responseAt, responseEnd, limit) {
		c.shorn = true
		return true
	}
	c.trimmed = trim(buffer, c.body, start, bodyAt, bodyEnd, limit)
	c.shorn = c.trimmed && responded
	return c.trimmed
}

// trim makes the event that begins at start fit into limit bytes: it takes as much from
// the end of its body, which is from bodyAt to bodyEnd, as it must. It says whether that
// was enough.
//
// The body is cut where it is already encoded, because a character takes between one
// byte and six there, and to look for the place takes no loop.
func trim(buffer *bytes.Buffer, b *body, start, bodyAt, bodyEnd, limit int) bool {
	if bodyAt == bodyEnd {
		return false
	}
	field := string(buffer.Bytes()[bodyAt:bodyEnd])
	tail := string(buffer.Bytes()[bodyEnd:])
	reason := b.cut
	if reason == "" || reason == cutLimit {
		reason = cutEvent
	}
	rest := fmt.Sprintf(`"size":%d,"truncated":true,"truncated_reason":"%s"}`, b.kept+b.beyond, reason) + tail
	opening := `,"body":{`
	name := `"content":"`
	if strings.HasPrefix(field, opening+`"content_base64":"`) {
		name = `"content_base64":"`
	}
	buffer.Truncate(bodyAt)
	room := limit - (bodyAt - start) - len(opening) - len(name) - len(`",`) - len(rest)
	kept := ""
	if room > 0 && strings.HasPrefix(field, opening+name) {
		// There is more content than room, or the event would have fitted.
		content := field[len(opening)+len(name):]
		kept = cutEncoded(content[:room], name)
	}
	_, _ = buffer.WriteString(opening)
	if kept != "" {
		_, _ = buffer.WriteString(name + kept + `",`)
	}
	_, _ = buffer.WriteString(rest)
	return buffer.Len()-start <= limit
}

// cutEncoded is the beginning of an encoded body, up to the last whole character, or
// the last whole group of base64.
func cutEncoded(s, name string) string {
	if name != `"content":"` {
		return s[:len(s)/4*4]
	}
	// An escape is \n or \u000a; a backslash itself is \\, so of several in a row only
	// an odd one begins something.
	from := len(s) - len(`\u000`)
	if from < 0 {
		from = 0
	}
	if i := strings.LastIndexByte(s[from:], '\\'); i >= 0 {
		at := from + i
		run := at + 1 - len(strings.TrimRight(s[:at+1], `\`))
		whole := at + len(`\n`)
		if strings.HasPrefix(s[at:], `\u`) {
			whole = at + len(`\u000a`)
		}
		if run%2 == 1 && whole > len(s) {
			return s[:at]
		}
	}
	for i := 1; i < utf8.UTFMax && i <= len(s); i++ {
		if start := len(s) - i; utf8.RuneStart(s[start]) {
			if !utf8.FullRuneInString(s[start:]) {
				return s[:start]
			}
			break
		}
	}
	return s
}
