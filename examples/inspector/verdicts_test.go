package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp"
)

// What is known of a signature is in the row and in the details.
func TestVerdictsOnSignatures(t *testing.T) {
	for _, tc := range []struct {
		name         string
		checks       bool
		secret       string
		mark, words  string // of the row
		verdict, has string // class and text, in the details
	}{
		{"verified", true, secret, "✓", "signature verified; valid", "verdict ok", "✓ signature verified"},
		{"with a signature, and no secret here", false, secret, "?", "signature not checked, as there is no secret; valid", "verdict warn", "signature not checked: the inspector has no secret"},
		{"without a signature", false, "", "–", "not signed; valid", "verdict warn", "not signed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, func(s *settings) {
				if !tc.checks {
					s.webhooks = nil
				}
			})
			p, _ := b.open(t, 1280, 800, false)
			m := newMirror(b.clock.now().Add(time.Second))
			if w := b.answer(posted(tc.secret, "a", b.clock.now(), encode(m.request(b.clock.now(), "/signed?")))); w.Code != http.StatusNoContent {
				t.Fatalf("a delivery was answered with %d %s", w.Code, w.Body)
			}
			p.shows(1)
			p.settled()
			type text struct{ Text, Label, Title string }
			if got, want := eval[text](p, `(({ innerText, ariaLabel, title }) => ({ text: innerText.trim(), label: ariaLabel, title }))(document.querySelector('#rows .c-marks'))`),
				(text{tc.mark, tc.words, tc.words}); got != want {
				t.Errorf("in the row: got %+v; want %+v", got, want)
			}
			p.press("G")
			p.detail("/signed?")
			p.until(`document.querySelector('#detail .verdicts') !== null`)
			got := eval[[][]string](p, `[...document.querySelectorAll('#detail .verdict')].map(one => [one.className, one.innerText]).slice(0, 2)`)
			if want := [][]string{{tc.verdict, tc.has}, {"verdict ok", "✓ valid by the schema"}}; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("in the details: got %q; want %q", got, want)
			}
		})
	}
}

// The link saves all events that are kept, as lines of JSON, whatever the list shows.
func TestDownload(t *testing.T) {
	b := newBench(t, nil)
	p, server := b.open(t, 1280, 800, false)
	m := newMirror(b.clock.now().Add(time.Second))
	var want [][]byte
	for _, e := range []object{m.request(b.clock.now(), "/a\n\u2028<b>"), m.request(b.clock.now(), "/b"), m.report(b.clock.now())} {
		b.deliver(e)
		want = append(want, encode(e))
	}
	p.shows(3)
	check := func(when, name string, got []byte) {
		t.Helper()
		if want := "events-20260918T093600Z.jsonl"; name != want {
			t.Errorf("%s: the file is %s; want %s", when, name, want)
		}
		lines := bytes.SplitAfter(got, []byte("\n"))
		if last := len(lines) - 1; len(lines[last]) == 0 {
			lines = lines[:last]
		}
		for i, line := range lines {
			var e object
			if err := json.Unmarshal(line, &e); err != nil || !bytes.HasSuffix(line, []byte("}\n")) {
				t.Errorf("%s: line %d is no JSON and a line's end: %v in %q", when, i+1, err, line)
			}
		}
		if wanted := append(bytes.Join(want, []byte("\n")), '\n'); !bytes.Equal(got, wanted) {
			t.Errorf("%s: got\n%s; want\n%s", when, got, wanted)
		}
	}
	fetched := func(when string) {
		t.Helper()
		got := eval[struct{ Name, Type, Text string }](p, `fetch(document.getElementById('download').href).then(async answer => ({
			name: answer.headers.get('content-disposition').match(/^attachment; filename="(.*)"$/)[1],
			type: answer.headers.get('content-type'),
			text: await answer.text(),
		}))`)
		if want := "application/jsonl"; got.Type != want {
			t.Errorf("%s: got type %s; want %s", when, got.Type, want)
		}
		check(when, got.Name, []byte(got.Text))
	}
	fetched("without a filter")
	p.fill("path", "/b")
	p.shows(1)
	fetched("with a filter")

	dir := t.TempDir()
	saved := make(chan string, 8)
	if err := chromedp.Listen(p.ctx, func(event any) {
		switch e := event.(type) {
		case *browser.EventDownloadWillBegin:
			saved <- e.SuggestedFilename
		case *browser.EventDownloadProgress:
			if e.State != browser.DownloadProgressStateInProgress {
				saved <- string(e.State)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	events := true
	call(p, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorAllow, DownloadPath: dir, EventsEnabled: &events})
	t.Cleanup(func() {
		call(p, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{Behavior: browser.SetDownloadBehaviorBehaviorDefault})
	})
	p.click("#download")
	var said []string
	for len(said) < 2 {
		select {
		case what := <-saved:
			said = append(said, what)
		case <-time.After(30 * time.Second):
			t.Fatalf("nothing was saved: the browser said %q", said)
		}
	}
	if !slices.Equal(said, []string{"events-20260918T093600Z.jsonl", "completed"}) {
		t.Fatalf("the browser said %q", said)
	}
	got, err := os.ReadFile(filepath.Join(dir, said[0]))
	if err != nil {
		t.Fatal(err)
	}
	check("saved", said[0], got)
	if at := eval[string](p, `location.href`); at != server.URL+"/" {
		t.Errorf("the page went to %s", at)
	}
}

// refused returns what ran that should not, and what the policy refused, and forgets it:
// here, it is wanted.
func (p *tab) refused() []string {
	p.t.Helper()
	p.settled()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems = nil
	return eval[[]string](p, `sentinel.splice(0)`)
}

// Nothing of an event gets into the page as more than text. If it did, the policy would
// be what is left.
func TestThePolicyHoldsByItself(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 1280, 800, false)
	// add is JavaScript that puts an element into the page.
	add := func(tag, rest string) string {
		return fmt.Sprintf(`const one = document.createElement('%s'); %s; document.body.append(one)`, tag, rest)
	}
	for _, tc := range []struct{ name, script, want string }{
		{"an inline script", add("script", `one.append("hit('script')")`), "require-trusted-types-for"},
		{"a handler", add("b", `one.setAttribute('onclick', "hit('handler')")`) + "; one.click()", "require-trusted-types-for"},
		{"HTML", `document.getElementById('detail').innerHTML = '<img src="/page/icon.svg" onload="hit()">'`, "require-trusted-types-for"},
		{"eval", `eval("hit('eval')")`, "require-trusted-types-for"},
		{"a function of a text", `new Function("hit('function')")()`, "require-trusted-types-for"},
		{"a timer of a text", `setTimeout("hit('timer')", 0)`, "require-trusted-types-for"},
		{"a policy that lets texts be HTML", `trustedTypes.createPolicy('own', { createHTML: text => text })`, "trusted-types"},
		{"a link with a script", add("a", `one.href = "javascript:hit('link')"`) + "; one.click()", "script-src-elem"},
		{"a module of a text", `import("data:text/javascript,hit('module')").catch(() => {})`, "script-src-elem"},
		{"a request to another site", `fetch('http://127.0.0.1:9/').catch(() => {})`, "connect-src"},
		{"a stream of another site", `new EventSource('http://127.0.0.1:9/')`, "connect-src"},
		{"an image of another site", `new Image().src = 'http://127.0.0.1:9/'`, "img-src"},
		{"a frame", add("iframe", `one.src = '/'`), "frame-src"},
		{"a style", add("style", `one.append('b { color: red }')`), "style-src-elem"},
		{"a style of another site", add("link", `one.rel = 'stylesheet'; one.href = 'http://127.0.0.1:9/'`), "style-src-elem"},
		{"a style of one element", add("b", `one.setAttribute('style', 'color: red')`), "style-src-attr"},
		{"a form", add("form", `one.action = '/elsewhere'`) + "; one.submit()", "form-action"},
		{"another base", add("base", `one.href = '/elsewhere/'`), "base-uri"},
	} {
		// In a task of its own: what the test itself evaluates may do more.
		eval[bool](p, fmt.Sprintf(`new Promise(done => {
			const end = setTimeout(done, 10000, false)
			addEventListener('securitypolicyviolation', () => {
				clearTimeout(end)
				setTimeout(done, 0, true)
			}, { once: true })
			setTimeout(() => {
				try { %s } catch { /* some are refused in so many words */ }
			})
		})`, tc.script))
		if got := p.refused(); len(got) != 1 || !strings.HasPrefix(got[0], "policy: "+tc.want+" ") {
			t.Fatalf("%s: got %q; want one violation of %s, and nothing that ran", tc.name, got, tc.want)
		}
	}
}

// The same for what is in the page from the start, which the rules for texts do not reach.
func TestThePolicyHoldsForMarkup(t *testing.T) {
	const markup = `<script>hit('script')</script><img src="/page/icon.svg" onload="hit('load')"><b style="color: red">x</b>` +
		`<style>b { color: red }</style><iframe srcdoc="<script>parent.hit('frame')</script>"></iframe><embed src="/page/icon.svg"></body>`
	what := regexp.MustCompile(` (inline|http:).*`)
	for _, tc := range []struct {
		name, policy string
		want         []string
	}{
		{"with the policy", policy, []string{"policy: object-src", "policy: script-src-attr", "policy: script-src-elem", "policy: style-src-attr", "policy: style-src-elem"}},
		{"without it, all of that runs", "", []string{"frame", "load", "script"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, nil)
			inspector := b.handler
			b.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/" {
					inspector.ServeHTTP(w, r)
					return
				}
				page := httptest.NewRecorder()
				inspector.ServeHTTP(page, r)
				w.Header().Set("Content-Type", page.Header().Get("Content-Type"))
				if tc.policy != "" {
					w.Header().Set("Content-Security-Policy", page.Header().Get("Content-Security-Policy"))
				}
				_, _ = w.Write(bytes.Replace(page.Body.Bytes(), []byte("</body>"), []byte(markup), 1))
			})
			p, _ := b.open(t, 1280, 800, false)
			p.until(`document.readyState === 'complete'`)
			got := p.refused()
			for i := range got {
				got[i] = what.ReplaceAllString(got[i], "") // the directive is left
			}
			slices.Sort(got)
			if got = slices.Compact(got); !slices.Equal(got, tc.want) {
				t.Errorf("got %q; want %q", got, tc.want)
			}
		})
	}
}
