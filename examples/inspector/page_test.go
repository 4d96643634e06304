package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/chromedp/kb"
)

// shows waits until the list shows so many rows, gaps included.
func (p *tab) shows(n int) {
	p.t.Helper()
	p.until(fmt.Sprintf("%s === %d", rowCount, n))
}

// rowTexts are the rows that are elements now, from the top.
func (p *tab) rowTexts() []string {
	p.t.Helper()
	p.settled()
	return eval[[]string](p, `[...document.querySelectorAll('#rows .row')].filter(row => !row.hidden)
		.sort((a, b) => a.dataset.index - b.dataset.index).map(row => row.innerText.replace(/\s+/g, ' ').trim())`)
}

// fill writes into a field of the filter.
func (p *tab) fill(id, value string) {
	p.t.Helper()
	quoted, _ := json.Marshal(value)
	eval[bool](p, fmt.Sprintf(`(() => {
		const field = document.getElementById('f-%s')
		field.value = %s
		field.dispatchEvent(new Event('input', { bubbles: true }))
		return true
	})()`, id, quoted))
}

func (p *tab) click(selector string) {
	p.t.Helper()
	quoted, _ := json.Marshal(selector)
	eval[bool](p, fmt.Sprintf(`(document.querySelector(%s).click(), true)`, quoted))
}

func TestPageShowsEventsAsTheyCome(t *testing.T) {
	b := newBench(t, nil)
	p, server := b.open(t, 1280, 800, false)
	p.until(`document.getElementById('empty').innerText.includes('` + server.URL + `/events')`)
	m := newMirror(b.clock.now().Add(time.Second))
	event := func(method, path string, status int) object {
		e := m.request(b.clock.now(), path)
		of(e, "data", "http", "request")["method"] = method
		if status > 0 {
			of(e, "data", "http")["response"] = object{"status_code": status}
		}
		return e
	}
	b.deliver(event("GET", "/first", 200))
	p.shows(1)
	b.deliver(event("POST", "/second", 503))
	m.lose("queue_full", false)
	other := event("GET", "/third", 0)
	of(other, "data", "client")["address"] = "2001:db8::1"
	b.deliver(other, m.report(b.clock.now()))
	p.shows(5)
	rows := p.rowTexts()
	for i, want := range []string{"GET 200 /first", "POST 503 /second", "1 event missing number 3 queue_full 1", "GET /third 2001:db8::1", "report 3 events delivered, 1 lost of 4"} {
		if i >= len(rows) || !strings.Contains(rows[i], want) {
			t.Errorf("row %d: got %q; want %q", i, rows, want)
		}
	}
	p.until(`document.getElementById('totals').innerText.includes('1 missing')`)

	for _, tc := range []struct {
		field, value string
		want         int // with gaps, which no filter but that of kinds hides
	}{
		{"path", "SECOND", 2}, {"path", "nowhere", 1}, {"path", "", 5}, {"method", "POST", 2}, {"method", "", 5}, {"status", "5", 2}, {"status", "1", 1}, {"status", "none", 2}, {"status", "", 5},
		{"client", "2001", 2}, {"client", "", 5}, {"kind", "report", 1}, {"kind", "gap", 1}, {"kind", "problem", 0}, {"kind", "request", 3}, {"kind", "", 5},
	} {
		p.fill(tc.field, tc.value)
		p.until(fmt.Sprintf("%s === %d /* %s %s */", rowCount, tc.want, tc.field, tc.value))
	}

	p.click("#pause")
	b.deliver(event("GET", "/fourth", 200))
	p.until(`document.getElementById('state').innerText === 'Paused, 1 new'`)
	p.shows(5)
	p.click("#pause")
	p.shows(6)

	// A connection that is lost is made anew, and nothing is shown twice or missing.
	server.CloseClientConnections()
	b.deliver(event("GET", "/fifth", 200))
	p.shows(7)
	p.until(`document.getElementById('state').dataset.state === 'live'`)
	p.mu.Lock()
	p.problems = slices.DeleteFunc(p.problems, func(s string) bool { return strings.Contains(s, "ERR_") && strings.Contains(s, "/api/stream") })
	p.mu.Unlock()

	p.click("#clear")
	p.shows(0)
	b.deliver(event("GET", "/sixth", 200))
	p.shows(1)
}

// Without secrets the page says so, and with them, that the mirror needs one.
func TestThePageSaysWhetherSignaturesAreChecked(t *testing.T) {
	for _, tc := range []struct {
		name    string
		change  func(*settings)
		checked bool
	}{
		{"with secrets", nil, true},
		{"without", func(s *settings) { s.webhooks, s.path = nil, "/elsewhere" }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, tc.change)
			p, server := b.open(t, 1280, 800, false)
			p.until(`document.getElementById('totals').innerText.includes('0 events')`)
			p.settled()
			sample := eval[string](p, `document.getElementById('empty').innerText`)
			if got := strings.Contains(sample, "signingSecrets:"); got != tc.checked {
				t.Errorf("the sample names signingSecrets: got %t; want %t, in %q", got, tc.checked, sample)
			}
			if want := server.URL + b.web.path; !strings.Contains(sample, want) {
				t.Errorf("got %q; want %s in it", sample, want)
			}
			totals := eval[string](p, `document.getElementById('totals').innerText`)
			if got := strings.Contains(totals, "no signature is checked"); got == tc.checked {
				t.Errorf("got %q at the top; want it to say that no signature is checked: %t", totals, !tc.checked)
			}
		})
	}
}

// During a pause, what is shown stays, whatever becomes of it in the inspector.
func TestAPauseOutlivesAReset(t *testing.T) {
	b := newBench(t, nil)
	p, server := b.open(t, 1280, 800, false)
	m := newMirror(b.clock.now().Add(time.Second))
	events := func(n int) {
		for range n {
			b.deliver(m.request(b.clock.now(), fmt.Sprintf("/%d", m.number)))
		}
	}
	events(3)
	m.lose("queue_full", false)
	events(1)
	b.clock.add(time.Minute)
	p.shows(5)
	p.press("g")
	p.detail("/0")
	p.click("#pause")
	req, err := http.NewRequestWithContext(t.Context(), "POST", server.URL+"/api/clear", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Origin", server.URL)
	res, err := http.DefaultClient.Do(req) // as another page that is open
	if err != nil || res.StatusCode != http.StatusNoContent {
		t.Fatal(res, err)
	}
	_ = res.Body.Close()
	events(2)
	p.until(`document.getElementById('state').innerText === 'Paused, 2 new'`)
	p.settled()
	if rows := p.rowTexts(); len(rows) != 5 || !strings.Contains(rows[0], "/0") {
		t.Errorf("while it was paused, got rows %q; want those from before", rows)
	}
	p.detail("/0")
	p.click("#pause")
	p.shows(2)
	p.until(`document.getElementById('detail').hidden`)
	events(1)
	p.shows(3)
	// Who clears it here does not want to see it any longer.
	p.click("#pause")
	p.click("#clear")
	p.shows(0)
	events(1)
	p.until(`document.getElementById('state').innerText === 'Paused, 1 new'`)
	p.click("#pause")
	p.shows(1)
}

// A page may be paused for as long as one likes.
func TestMuchComesDuringAPause(t *testing.T) {
	const n, at = 200000, 5000
	b := newBench(t, nil)
	inspector, paused := b.handler, make(chan struct{})
	b.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/stream" {
			inspector.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		send := func(event string, v any) {
			_, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, encode(v))
			_ = http.NewResponseController(w).Flush()
		}
		send("hello", object{"keep": n})
		send("reset", "")
		<-paused
		for first := 1; first <= n; first += at {
			rows := make([]object, at)
			for i := range rows {
				rows[i] = object{"n": first + i, "id": "x", "kind": "request", "method": "GET", "path": "/"}
			}
			send("rows", rows)
		}
		<-r.Context().Done()
	})
	p, _ := b.open(t, 1280, 800, false)
	p.click("#pause")
	close(paused)
	p.until(`document.getElementById('state').innerText === 'Paused, 200,000 new'`)
	p.click("#pause")
	p.shows(n)
	p.until(`document.getElementById('state').innerText === 'Live'`)
}

// Rows between which something is missing never look as if nothing were.
func TestGapsThatAreNotListedAreSaid(t *testing.T) {
	b := newBench(t, func(s *settings) { s.keep = 1200 })
	m := newMirror(b.clock.now().Add(time.Second))
	for range 2000 {
		b.deliver(m.request(b.clock.now(), "/"))
		m.lose("queue_full", false)
	}
	b.deliver(m.report(b.clock.now()))
	b.clock.add(time.Minute)
	p, _ := b.open(t, 1280, 800, false)
	p.shows(1200 + maxGaps + 2)
	p.until(`document.getElementById('totals').innerText.includes('2,000 missing')`)
	p.press("g")
	p.detail("800 events missing before the oldest event that is kept")
	if rows := p.rowTexts(); rows[0] != "800 events missing before the oldest event that is kept" {
		t.Errorf("got %q first; want how much is missing before", rows[0])
	}
	p.fill("kind", "gap")
	p.shows(maxGaps + 2)
	p.press("g", "j")
	p.detail("700 events missing in 700 gaps above that are not in the list")
}

// The last event is what the details are opened of.
func (b *bench) look(p *tab, e object, has string) string {
	b.t.Helper()
	b.deliver(e)
	p.until(fmt.Sprintf(`document.getElementById('rows').innerText.includes(%q)`, e["subject"]))
	p.press("G")
	p.detail(e["subject"].(string))
	eval[bool](p, `(document.querySelectorAll('#detail details').forEach(one => { one.open = true }), true)`)
	return p.detail(has)
}

func TestDetails(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 1280, 900, false)
	m := newMirror(b.clock.now().Add(time.Second))
	n := 0
	body := func(media string, body object) object {
		n++
		e := m.request(b.clock.now(), fmt.Sprintf("/body/%d", n))
		r := of(e, "data", "http", "request")
		r["method"] = "POST"
		r["header"] = object{"content-type": []string{media}, "authorization": []string{"REDACTED"}, "x-client": []string{"hmac-sha256:" + strings.Repeat("0a", 32)}}
		r["cookie"] = object{"visitor": []string{"v-82f1"}}
		r["body"] = body
		return e
	}
	text := func(content string) object {
		return object{"content": content, "size": len(content), "truncated": false}
	}
	for _, tc := range []struct {
		name  string
		event object
		has   string
		want  []string
	}{
		{"JSON, whose numbers keep their digits", body("application/json", text(`{"n":12345678901234567890,"a":[1,{"b":"REDACTED"}],"a":2}`)), `"n"`,
			[]string{"12345678901234567890", `"b": REDACTED`, `"a": 2`, "authorization REDACTED", "x-client hashed", "visitor v-82f1", "signature verified", "valid by the schema"}},
		{"what says JSON and is none", body("application/json", text(`{"a":`)), "not JSON at character", []string{`{"a":`}},
		{"a form", body("application/x-www-form-urlencoded", text("name=Ada&message=Hello%2C+world")), "Field", []string{"message Hello, world"}},
		{"a form of thousands of fields", body("application/x-www-form-urlencoded", text(strings.Repeat("a=b&", 5000))), "Field", []string{"and 4,500 more"}},
		{"a multipart body of thousands of parts", body("multipart/form-data; boundary=x", text(strings.Repeat("--x\r\n\r\n\r\n", 3000))), "(no name)", []string{"The first 100 parts are shown."}},
		{"a multipart body", body("multipart/form-data; boundary=x", text("--x\r\nContent-Disposition: form-data; name=\"a\"; filename=\"b.txt\"\r\n\r\none\r\n--x--\r\n")), "file b.txt", []string{"a file b.txt", "one"}},
		{"text", body("text/plain", text("All work\nand no play")), "All work", nil},
		{"text with the line ends of forms and mails", body("text/plain", text("Dear\r\nAda"+strings.Repeat(" ", 19990)+"\r\nend")), "Show more", []string{"Dear Ada Show more"}},
		{"bytes", body("application/octet-stream", object{"content_base64": "AP+JUE5H", "size": 6, "truncated": false}), "00 ff 89 50 4e 47", []string{"····PNG"[3:]}},
		{"a body that was cut", body("text/plain", object{"content": "abc", "size": 3000, "truncated": true, "truncated_reason": "limit"}), "cut: limit, 3 B kept", []string{"3.0 kB"}},
		{"a body that was not looked at", body("text/plain", object{"truncated": true, "truncated_reason": "disabled"}), "cut: disabled, nothing kept", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p.t = t
			got := strings.Join(strings.Fields(b.look(p, tc.event, tc.has)), " ")
			for _, want := range tc.want {
				if !strings.Contains(got, want) {
					t.Errorf("got %q; want %q", got, want)
				}
			}
		})
	}
	t.Run("an image", func(t *testing.T) {
		p.t = t
		b.look(p, body("image/png", object{"content_base64": png, "size": 1, "truncated": true, "truncated_reason": "limit"}), "Image")
		p.until(`document.querySelector('#detail img')?.complete && document.querySelector('#detail img').naturalWidth === 16`)
		if got := eval[string](p, `document.querySelector('#detail img').src`); !strings.HasPrefix(got, "blob:") {
			t.Errorf("got %s", got)
		}
	})
	t.Run("an image that is a document is text", func(t *testing.T) {
		p.t = t
		b.look(p, body("image/svg+xml", text(`<svg xmlns="http://www.w3.org/2000/svg" onload="hit()"/>`)), `onload="hit()"`)
		if n := eval[int](p, `document.querySelectorAll('#detail img').length`); n != 0 {
			t.Errorf("got %d images", n)
		}
	})
	t.Run("large JSON is closed, and made when it is opened", func(t *testing.T) {
		p.t = t
		list := strings.Repeat(`{"a":"b"},`, 3000)
		b.deliver(body("application/json", text(`{"list":[`+list+`{}]}`)))
		p.until(`document.getElementById('rows').innerText.includes('json 30.0 kB')`)
		p.press("G")
		p.detail("3,001 items")
		p.click("#detail .j-box .j-box > summary")
		p.detail("Show more of 3,001")
		if n := eval[int](p, `document.getElementsByTagName('*').length`); n > 3000 {
			t.Errorf("got %d elements", n)
		}
	})
	t.Run("a problem with the schema", func(t *testing.T) {
		p.t = t
		e := m.request(b.clock.now(), "/wrong")
		e["extra"] = 1
		got := b.look(p, e, "1 problem with the schema")
		if !strings.Contains(got, "additional properties 'extra' not allowed") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a report", func(t *testing.T) {
		p.t = t
		m.lose("timeout", true)
		b.deliver(m.report(b.clock.now()))
		p.until(`document.getElementById('rows').innerText.includes('1 lost')`)
		p.press("G")
		got := strings.Join(strings.Fields(p.detail("Failed: left the queue")), " ")
		if !strings.Contains(got, "timeout 1") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("a gap", func(t *testing.T) {
		p.t = t
		p.until(`document.querySelector('#rows .k-gap') !== null`)
		p.click("#rows .k-gap")
		got := strings.Join(strings.Fields(p.detail("1 event missing")), " ")
		for _, want := range []string{"The reports have a reason for everything that is missing here.", "timeout 1 failed: left the queue", source} {
			if !strings.Contains(got, want) {
				t.Errorf("got %q; want %q", got, want)
			}
		}
	})
	p.t = t
}

// What is copied is the request once more, for a shell and a server.
func TestCopyAsCurl(t *testing.T) {
	for _, program := range []string{"bash", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			leaveOut(t, "copy as curl", "there is no "+program)
		}
	}
	type got struct {
		method, target, body string
		header               http.Header
	}
	arrived := make(chan got, 1)
	site := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		arrived <- got{r.Method, r.RequestURI, string(body), r.Header}
	}))
	defer site.Close()
	var port int
	_, _ = fmt.Sscanf(site.URL, "http://127.0.0.1:%d", &port)

	b := newBench(t, nil)
	p, server := b.open(t, 1280, 800, false)
	for _, name := range []string{"clipboard-read", "clipboard-write"} {
		call(p, browser.SetPermission, browser.SetPermissionParams{
			Permission: &browser.PermissionDescriptor{Name: name, AllowWithoutSanitization: true}, Setting: browser.PermissionSettingGranted, Origin: server.URL,
		})
	}
	m := newMirror(b.clock.now().Add(time.Second))
	for i, tc := range []struct {
		method, query, body, base64 string
	}{
		{"GET", "q=it's&x=$(id)&y=[1-3]{a,b}", "", ""},
		{"POST", "", "@/etc/hostname", ""},
		{"PUT", "", "a'b\"c\\d\n$HOME `id` !! \u202e ä 🙂\r\n", ""},
		{"DELETE", "", "\x00\xff\x00bytes", "AP8AYnl0ZXM="},
		{"HEAD", "", "", ""},
		{"HEAD", "", "with a body", ""},
	} {
		path := fmt.Sprintf("/a/../b//%%2F%d", i)
		e := m.request(b.clock.now(), path)
		data := of(e, "data")
		data["server"] = object{"address": "127.0.0.1", "port": port}
		if tc.query != "" {
			of(data, "url")["query"] = tc.query
		}
		r := of(data, "http", "request")
		r["method"] = tc.method
		r["header"] = object{"x-quote": []string{"it's \"$HOME\" `id`"}, "x-empty": []string{""}, "x-twice": []string{"1", "2"}, "x-forwarded-for": []string{"203.0.113.7"}}
		r["cookie"] = object{"visitor": []string{"v-82f1"}}
		if tc.base64 != "" {
			r["body"] = object{"content_base64": tc.base64, "size": len(tc.body), "truncated": false}
		} else if tc.body != "" {
			r["body"] = object{"content": tc.body, "size": len(tc.body), "truncated": false}
		}
		b.look(p, e, "127.0.0.1")
		eval[bool](p, `navigator.clipboard.writeText('').then(() => true)`)
		p.press("k", "j", "y") // it waits for what is copied
		p.until(`document.getElementById('said').textContent === 'Copied as curl'`)
		command := eval[string](p, `navigator.clipboard.readText()`)
		if out, err := exec.CommandContext(t.Context(), "bash", "-c", command).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s\n%s", err, out, command)
		}
		one := <-arrived
		target := path
		if tc.query != "" {
			target += "?" + tc.query
		}
		one.header.Del("Content-Length")
		one.header.Del("Connection") // so that curl does not wait for the body of an answer that has none
		want := http.Header{"X-Quote": {"it's \"$HOME\" `id`"}, "X-Empty": {""}, "X-Twice": {"1", "2"}, "Cookie": {"visitor=v-82f1"}}
		if one.method != tc.method || one.target != target || one.body != tc.body || fmt.Sprint(one.header) != fmt.Sprint(want) {
			t.Errorf("got %q; want %s %s %q %v; the command was\n%s", one, tc.method, target, tc.body, want, command)
		}
		eval[bool](p, `(document.getElementById('said').textContent = '', true)`)
	}
}

// injections are what an event may try on a page.
var injections = []string{
	`<script>hit('script')</script>`,
	`"><img src=x onerror="hit('img')">`,
	`'><svg onload=hit('svg')>`,
	`<svg><animate onbegin=hit('animate') attributeName=x dur=1s>`,
	`<details open ontoggle=hit('toggle')>`,
	`<iframe srcdoc="<script>parent.hit('frame')</script>"></iframe>`,
	`<iframe src="javascript:parent.hit('frame')"></iframe>`,
	`<a href="javascript:hit('link')" autofocus onfocus=hit('focus')>x</a>`,
	`javascript:hit('url')`,
	`data:text/html,<script>hit('data')</script>`,
	`</title></style></textarea></script><script>hit('end')</script>`,
	`<style>*{background:url(/css-was-here)}</style>`,
	`x;background:url(/css-was-here);--y:`,
	`<link rel=stylesheet href=/css-was-here>`,
	`<base href="http://127.0.0.1:9/"><meta http-equiv=refresh content="0;url=javascript:hit('meta')">`,
	`<form action="javascript:hit('form')"><button id=list name=body>x</button></form>`,
	`<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=hit('mxss')&gt;">`,
	`<noscript><p title="</noscript><img src=x onerror=hit('noscript')>">`,
	"${hit('template')} `${hit('template')}` {{hit('template')}} <%= hit('template') %>",
	`'-hit('quote')-' ";hit('quote');// \u003cscript\u003ehit('escape')\u003c/script\u003e`,
	"__proto__", "constructor", "toString", "hasOwnProperty", "length",
	"\u202egpj.exe \u2066left\u2069 \u200b\ufeff \u0007\u001b[31m\u0085",
	"]]><!--", "%3Cscript%3Ehit('percent')%3C/script%3E",
}

func TestNothingOfAnEventRuns(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 1280, 900, false)
	m := newMirror(b.clock.now().Add(time.Second))
	huge := strings.Repeat("<b onclick=hit()>\u202e", 4000)
	elements := eval[int](p, `document.querySelectorAll('script, style, link, iframe, object, embed, base, meta, form, svg, a').length`)
	n := 0
	hostile := func(x string, change func(object)) object {
		n++
		e := m.request(b.clock.now(), x)
		e["id"] = strings.Map(func(r rune) rune {
			if r < 0x20 || r >= 0x7f && r < 0xa0 {
				return -1
			}
			return r
		}, fmt.Sprintf("%d%.80s", n, x))
		e["source"] = "//" + x + "/middlewares/" + x
		for _, name := range []string{"traceparent", "tracestate", "dataschema", "datacontenttype", x} {
			e[name] = x
		}
		e["type"] = requestType
		data := of(e, "data")
		data["url"] = object{"scheme": x, "path": x, "query": x + "=" + x + "&" + x}
		data["network"] = object{"protocol": object{"name": x, "version": x}, "peer": object{"address": x, "port": 7}}
		data["client"] = object{"address": x}
		data["server"] = object{"address": x, "port": 80}
		data["user_agent"] = object{"original": x}
		data["tls"] = object{"protocol": object{"version": x}}
		data["request_id"] = x
		data["attributes"] = object{x: x}
		data["http"] = object{
			"request": object{
				"method": x, "header": object{x: []string{x, x}, "content-type": []string{"text/plain"}}, "cookie": object{x: []string{x}},
				"body": object{"content": x, "size": 1, "truncated": true, "truncated_reason": x},
			},
			"response": object{"status_code": 200, "header": object{x: []string{x}}, "body": object{"content": x, "truncated": true, "truncated_reason": x}},
		}
		if change != nil {
			change(of(data, "http", "request"))
		}
		return e
	}
	as := func(media, content string) func(object) {
		return func(r object) {
			of(r, "header")["content-type"] = []string{media}
			of(r, "body")["content"] = content
		}
	}
	list := []object{}
	for _, x := range injections {
		inJSON, _ := json.Marshal(object{x: []string{x}, "a": x})
		list = append(list,
			hostile(x, nil),
			hostile(x, as("application/json", string(inJSON))),
			hostile(x, as("application/x-www-form-urlencoded", x+"="+x)),
			hostile(x, as("multipart/form-data; boundary="+x, "--"+x+"\r\n"+x)),
			hostile(x, as("multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\""+x+"\"; filename=\""+x+"\"\r\nContent-Type: "+x+"\r\n\r\n"+x+"\r\n--b--")),
		)
	}
	list = append(list,
		hostile(huge, as("text/html", huge)),
		hostile("/svg", as("image/svg+xml", `<svg xmlns="http://www.w3.org/2000/svg"><script>hit('svg file')</script></svg>`)),
		hostile("/png", func(r object) {
			of(r, "header")["content-type"] = []string{"image/png"}
			r["body"] = object{"content_base64": "iVBORw0KGgo8c2NyaXB0PmhpdCgpPC9zY3JpcHQ+", "size": 1, "truncated": false}
		}),
		hostile("/deep", as("application/json", strings.Repeat("[", 9000)+strings.Repeat("]", 9000))),
		object{"id": "types", "type": requestType, "source": 7, "time": []int{1}, "sequence": object{}, "data": []string{injections[0]}},
		object{"id": "report", "type": reportType, "source": injections[1], "data": object{
			"since": injections[0], "sequence": injections[1], "seen": injections[2], "dropped": []object{{"reason": injections[0], "count": injections[1]}}, "failed": injections[2],
		}},
		object{"id": "other", "type": injections[0], "data": object{"http": injections[1]}},
	)
	b.deliver(list...)
	p.shows(len(list))
	for i, e := range list {
		// The details of the event before stay until this one's are here.
		eval[bool](p, `(document.querySelector('#detail .verdicts')?.classList.add('before'), true)`)
		p.press(map[bool]string{true: "g", false: "j"}[i == 0])
		// The details of this one, with all that can be opened and pressed.
		p.until(fmt.Sprintf(`document.querySelector('#rows .row[aria-selected=true]')?.dataset.index === '%d'`, i))
		p.until(`document.querySelector('#detail .verdicts:not(.before)') !== null`)
		eval[bool](p, `(async () => {
			const detail = document.getElementById('detail')
			for (let round = 0; round < 2; round++) { // what opens may have something to open in it
				await Promise.all([...detail.querySelectorAll('details:not([open])')].map(one => {
					one.open = true
					return new Promise(done => one.addEventListener('toggle', done, { once: true }))
				}))
			}
			for (const one of detail.querySelectorAll('.tabs button, .more, .image button')) one.click()
			for (const one of detail.querySelectorAll('*')) {
				one.dispatchEvent(new MouseEvent('mouseover', { bubbles: true }))
				one.dispatchEvent(new FocusEvent('focus'))
			}
			return true
		})()`)
		got := eval[struct {
			Elements, All int
			Attributes    []string
			Hits          []string
			Shown         bool
			Unseen        []string
		}](p, `({
			elements: document.querySelectorAll('script, style, link, iframe, object, embed, base, meta, form, svg, a').length,
			all: document.getElementsByTagName('*').length,
			attributes: [...document.querySelectorAll('*')].flatMap(one => [...one.attributes]).filter(one => /^(on.*|srcdoc|style)$/i.test(one.name) && one.ownerElement.closest('#rows') === null || /^(href|src|.*action|data|xlink:href)$/i.test(one.name) && !/^(\/|blob:)/.test(one.value)).map(one => one.name + '=' + one.value).slice(0, 3),
			hits: window.sentinel,
			shown: document.getElementById('detail').innerText.includes('hit('),
			// Characters that turn the direction of a text are named, wherever they are.
			unseen: (document.body.textContent.match(/.{0,20}[\u202a-\u202e\u2066-\u2069\u200b\ufeff]/g) ?? []).slice(0, 3)
		})`)
		if got.Elements != elements || len(got.Attributes) > 0 || len(got.Hits) > 0 {
			t.Fatalf("event %d: got %+v, and %d elements before; the event: %.300s", i, got, elements, encode(e))
		}
		if len(got.Unseen) > 0 {
			t.Errorf("event %d: characters that cannot be seen are in the page as they are: %+q", i, got.Unseen)
		}
		// It was not left out either.
		if want := strings.Contains(string(encode(e)), "hit('script')"); want && !got.Shown {
			t.Errorf("event %d is not shown: %.300s", i, encode(e))
		}
		if got.All > 6000 {
			t.Errorf("event %d made %d elements; want no more than 6000: %.300s", i, got.All, encode(e))
		}
		p.press("y")
	}
	p.press(kb.Escape)
}

// What the schema forbids cannot come in a report, but the page does not rely on that.
func TestNothingOfAGapRuns(t *testing.T) {
	b := newBench(t, nil)
	var rows, gaps []object
	reasons, refused := object{}, object{}
	for i, x := range injections {
		rows = append(rows, object{"n": i + 1, "id": x, "kind": x, "at": 0, "method": x, "path": x, "query": x, "client": x, "media": x, "size": 1, "cut": x, "signature": x})
		gaps = append(gaps, object{
			"source": x, "boot": x, "first": 2, "last": 9, "row": i + 1, "state": x, "among": 9, "from": 1, "to": 9,
			"reasons": []object{{"reason": x, "count": 3}, {"reason": x, "count": 1, "failed": true}},
		})
		reasons[x], refused[x] = 4, 3
	}
	inspector := b.handler
	b.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/api/stream" {
			inspector.ServeHTTP(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		send := func(event string, v any) { _, _ = fmt.Fprintf(w, "event: %s\ndata: %s\n\n", event, encode(v)) }
		send("hello", object{"keep": 100})
		send("reset", injections[0])
		send("rows", rows)
		send("gaps", object{"list": gaps})
		now := b.clock.now().UnixMilli()
		send("pulse", object{
			"now": now, "first": 1, "held": 1, "missing": 8, "open": 1, "points": []object{{"at": now/1000 - 3, "events": 3, "p50": 1, "p95": 2}},
			"progress": []object{{"from": now - 9000, "to": now - 1000, "delivered": 1, "dropped": reasons, "failed": reasons}},
			"totals":   object{"events": 1, "refused": refused},
		})
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	p, _ := b.open(t, 1280, 800, false)
	p.shows(2 * len(injections))
	p.until(`document.getElementById('lost-keys').innerText.includes('others')`)
	// A reason that nobody knows has the same colour where it is drawn and where it is named.
	p.settled()
	if got := p.ink("lost", "muted", 5); got < 0.95 {
		t.Errorf("reasons that are unknown reach %.2f of the height; want all of it", got)
	}
	if got := eval[[]string](p, `[...document.querySelectorAll('#lost-keys .key')].map(one => one.className)`); fmt.Sprint(got) != fmt.Sprint(slices.Repeat([]string{"key ink-muted"}, 5)) {
		t.Errorf("the keys of reasons that are unknown: got %q; want all to be muted", got)
	}
	p.press("g")
	for i := range 2 * len(injections) {
		if i > 0 {
			p.press("j")
		}
		p.until(fmt.Sprintf(`document.querySelector('#rows .row[aria-selected=true]')?.dataset.index === '%d'`, i))
		if i == 0 { // a gap
			if got := p.detail("8 events missing"); strings.Count(got, injections[0]) < 4 {
				t.Errorf("got %q", got)
			}
		}
		p.settled()
	}
	p.mu.Lock() // of rows that only the stream had, the details are not there
	p.problems = slices.DeleteFunc(p.problems, func(s string) bool { return strings.Contains(s, "/api/events/") && strings.Contains(s, "404") })
	p.mu.Unlock()
}

func TestKeys(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 1280, 800, false)
	m := newMirror(b.clock.now().Add(time.Second))
	for i := range 100 {
		b.deliver(m.request(b.clock.now(), fmt.Sprintf("/%03d", i)))
	}
	p.shows(100)
	selected := func(want string) {
		t.Helper()
		p.until(fmt.Sprintf(`document.querySelector('#rows .row[aria-selected=true]')?.innerText.includes(%q)`, want))
		p.detail(want)
		// It is seen, and the list says which it is.
		p.until(`(() => {
			const row = document.getElementById(document.getElementById('list').getAttribute('aria-activedescendant'))
			const { top, bottom } = row.getBoundingClientRect()
			const list = document.getElementById('list').getBoundingClientRect()
			return row.getAttribute('aria-selected') === 'true' && top >= list.top + 20 && bottom <= list.bottom + 1
		})()`)
	}
	focused := func(want string) {
		t.Helper()
		p.until(fmt.Sprintf(`document.activeElement.id === %q`, want))
	}
	p.press("j")
	selected("/099")
	p.press("k", "k")
	selected("/097")
	p.press("g")
	selected("/000")
	p.press("j")
	selected("/001")
	p.press("G")
	selected("/099")
	eval[bool](p, `(document.getElementById('list').focus(), true)`)
	p.press(kb.PageUp, kb.ArrowUp)
	p.press(kb.Home)
	selected("/000")
	p.press(kb.ArrowDown, kb.ArrowDown)
	selected("/002")
	p.press(kb.Enter)
	focused("detail")
	p.press(kb.Escape)
	focused("list")
	p.press(kb.Escape)
	p.until(`document.getElementById('detail').hidden`)
	p.press("/")
	focused("f-path")
	p.press("0", "4", "2", "j")
	p.shows(0)
	p.press(kb.Backspace)
	p.shows(1)
	p.press(kb.Escape)
	focused("list")
	p.press("p")
	p.until(`document.getElementById('state').dataset.state === 'paused'`)
	p.press("p")
	p.until(`document.getElementById('state').dataset.state === 'live'`)
	p.press("t")
	p.until(`document.documentElement.dataset.theme === 'light'`)
	p.press("t")
	p.until(`document.documentElement.dataset.theme === 'dark' && getComputedStyle(document.body).backgroundColor === 'rgb(21, 23, 27)'`)
	p.press("t")
	p.press("?")
	p.until(`document.getElementById('help-dialog').open`)
	p.press("p") // is not for the page now
	p.until(`document.getElementById('state').dataset.state === 'live'`)
	p.click("#single-keys")
	p.press(kb.Escape)
	p.until(`!document.getElementById('help-dialog').open`)
	p.press("p", kb.ArrowDown)
	p.until(`document.getElementById('state').dataset.state === 'live'`)
	p.click("#help")
	p.click("#single-keys")
	p.press(kb.Escape)

	// Everything is reached by Tab, and it is seen where the focus is.
	p.press("/")
	p.press(kb.Backspace, kb.Backspace, kb.Backspace)
	p.press(kb.Escape, "j")
	p.detail("verified")
	eval[bool](p, `(document.activeElement.blur(), true)`)
	reached := map[string]bool{}
	for range 60 {
		p.press(kb.Tab)
		at := eval[struct {
			ID      string
			Text    string
			Visible bool
		}](p, `(() => {
			const node = document.activeElement
			const style = getComputedStyle(node)
			return { id: node.id, text: node.innerText?.slice(0, 20) ?? '', visible: node === document.body || style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2 }
		})()`)
		if !at.Visible {
			t.Errorf("the focus is not seen on %s %q", at.ID, at.Text)
		}
		reached[at.ID], reached[at.Text] = true, true
	}
	for _, want := range []string{"pause", "clear", "download", "theme", "help", "f-path", "f-method", "f-status", "f-client", "f-kind", "list", "Copy as curl", "×", "Headers"} {
		if !reached[want] {
			t.Errorf("%s is not reached by Tab", want)
		}
	}
}

func TestASmallScreen(t *testing.T) {
	b := newBench(t, nil)
	p, _ := b.open(t, 360, 740, false)
	m := newMirror(b.clock.now().Add(time.Second))
	long := "/" + strings.Repeat("verylongpathwithoutanybreak", 20)
	e := m.request(b.clock.now(), long)
	of(e, "data", "http", "request")["header"] = object{strings.Repeat("x-name-", 20): []string{strings.Repeat("value", 100)}}
	m.lose("queue_full", false)
	e2 := m.request(b.clock.now(), long)
	b.deliver(e, e2, m.report(b.clock.now()))
	p.shows(4)
	fits := func(what string) {
		t.Helper()
		p.settled()
		got := eval[[]string](p, `[...document.querySelectorAll('html, body, main, .bar, .strip, .filters, .list, .detail:not([hidden]), dialog[open]')]
			.filter(one => one.scrollWidth > Math.max(one.clientWidth, 1) || one.getBoundingClientRect().right > 360.5).map(one => one.tagName + '.' + one.className)`)
		if len(got) > 0 {
			t.Errorf("%s: wider than the screen: %v", what, got)
		}
	}
	fits("the list")
	p.press("g")
	p.detail("verified")
	fits("the details")
	if got := eval[bool](p, `document.getElementById('list').offsetParent === null`); !got {
		t.Error("the list is still beside the details")
	}
	p.press("?")
	fits("the help")
}

// readAxe returns axe-core in the version of package-lock.json, which npm puts into the
// repository's cache: beside the page it would be taken for a part of the project.
func readAxe(t *testing.T) string {
	t.Helper()
	dir := filepath.Join("..", "..", ".cache", "inspector-axe")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	stale := false
	for _, name := range []string{"package.json", "package-lock.json"} {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			stale = true
			if err := os.WriteFile(filepath.Join(dir, name), want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	file := filepath.Join(dir, "node_modules", "axe-core", "axe.min.js")
	axe, err := os.ReadFile(file)
	if err != nil || stale {
		npm := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		npm.Dir = dir
		if out, failed := npm.CombinedOutput(); failed != nil {
			_ = os.Remove(filepath.Join(dir, "package-lock.json")) // so that it is tried again
			leaveOut(t, "the accessibility of the inspector's page", fmt.Sprintf("axe-core could not be installed: npm ci: %v %.300s", failed, strings.Join(strings.Fields(string(out)), " ")))
		}
		if axe, err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return string(axe)
}

// Accessibility is checked by axe-core.
func TestAccessibility(t *testing.T) {
	if findBrowser() == "" {
		leaveOut(t, "the page of the inspector", noBrowser)
	}
	axe := readAxe(t)
	for _, dark := range []bool{false, true} {
		t.Run(map[bool]string{false: "light", true: "dark"}[dark], func(t *testing.T) {
			b := newBench(t, nil)
			p, _ := b.open(t, 1280, 900, dark)
			eval[bool](p, axe+"\n;true")
			checked := 0
			check := func(what string) {
				t.Helper()
				p.settled()
				got := eval[struct {
					Passes     int
					Violations []string
				}](p, `axe.run(document, { runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'] }).then(found => ({
					passes: found.passes.length,
					violations: found.violations.flatMap(one => one.nodes.slice(0, 5).map(node => one.id + ': ' + node.html.slice(0, 200) + ' ' + node.failureSummary)),
				}))`)
				for _, violation := range got.Violations {
					t.Errorf("%s: %s", what, violation)
				}
				if got.Passes < 10 {
					t.Errorf("%s: only %d rules were looked at", what, got.Passes)
				}
				checked++
			}
			p.until(`!document.getElementById('empty').hidden`)
			check("without events")
			b.day()
			p.until(rowCount + ` > 1000 && document.querySelector('#rows .k-gap') !== null`)
			p.until(`document.getElementById('lost-keys').innerText.includes('queue_full')`)
			check("the list")
			p.press("G")
			p.detail("Copy as curl")
			eval[bool](p, `(document.querySelectorAll('#detail details').forEach(one => { one.open = true }), true)`)
			check("the details")
			p.click("#rows .k-gap")
			p.detail("missing")
			check("a gap")
			m := newMirror(b.clock.now().Add(time.Second))
			wrong := m.request(b.clock.now(), "/wrong")
			wrong["extra\u202e"] = 1
			of(wrong, "data", "http", "request")["body"] = object{"content_base64": "AP8=", "truncated": true, "truncated_reason": "limit"}
			b.deliver(wrong)
			p.until(`document.getElementById('totals').innerText.includes('1 invalid')`)
			p.click("#newer")
			p.until(`document.getElementById('rows').innerText.includes('/wrong')`)
			p.press("G")
			p.detail("2 problems")
			check("a problem")
			p.click("#pause")
			p.press("?")
			check("the help")
			p.press(kb.Escape)
			p.size(360, 740)
			check("the details on a small screen")
			p.press(kb.Escape)
			check("the list on a small screen")
			if checked != 8 {
				t.Errorf("%d states were checked; want 8", checked)
			}
		})
	}
}
