package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
)

// output is a terminal for tests.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func TestSamples(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute) // Traefik may have to be built
	defer cancel()
	out := &output{}
	err := run(ctx, config{once: true, out: out})
	got := out.String()
	if err != nil {
		t.Fatalf("%v; printed:\n%s", err, got)
	}
	for _, want := range []string{
		`#1 \S+ GET /articles/42\?lang=en&sig=REDACTED  ✓ signature ✓ schema  \S+ m?s after the request`,
		`cookies  visitor_id=v-82f1\n`,
		`#2 \S+ POST /api/comments `,
		`redacted authorization\n`,
		`body     43 bytes of application/json\n +\{"post":42,"text":"buy <b>cheap</b> pills"\}`,
		`body     31 bytes of application/x-www-form-urlencoded\n +name=Ada&message=Hello%2C\+world`,
		`3000 bytes of text/plain, truncated to 1024: limit`,
		`base64 of 89 50 4e 47`,
		`#6 \S+ GET /stream `,
		`#7 \S+ GET /socket `,
		`id \S+ is known`,
		`ledger seen 8 = delivered 8, nothing lost; retried 1`,
		`report the plugin says: 8 delivered, 0 under way, none lost; ✓ 8 are here\n`,
		`The receiver got 8 events in 9 deliveries; it refused 0\.`,
	} {
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("not printed: %s", want)
		}
	}
	for _, never := range []string{"c2VjcmV0", "session=", "9f86d081884c", "\x1b"} {
		if strings.Contains(got, never) {
			t.Errorf("printed, and must not be: %q", never)
		}
	}
	if t.Failed() {
		t.Logf("printed:\n%s", got)
	}
}

// A receiver that hangs costs the site nothing, and the end comes at once, with
// nothing left behind.
func TestPauseAndEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	out := &output{}
	ended := make(chan error, 1)
	opened := filepath.Join(t.TempDir(), "opened")
	browser := filepath.Join(t.TempDir(), "browser") // is at its end seconds before it is looked for
	if err := os.WriteFile(browser, []byte("#!/bin/sh\nprintf %s \"$1\" >'"+opened+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- run(ctx, config{out: out, browser: browser}) }()
	see := func(pattern string) []string {
		t.Helper()
		re := regexp.MustCompile(pattern)
		for {
			if m := re.FindStringSubmatch(out.String()); m != nil {
				return m
			}
			select {
			case err := <-ended:
				t.Fatalf("ended with %v before it printed %s:\n%s", err, pattern, out)
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	ask := func(method, url string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, method, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return string(body)
	}

	receiver := see(`curl -X POST (\S+)/pause`)[1]
	site := see(`curl (\S+)/hello`)[1]
	ask("POST", receiver+"/pause")
	if got := ask("GET", site+"/still-fast"); got != "The site got GET /still-fast with 0 bytes.\n" {
		t.Errorf("the site answered %q while the receiver was paused", got)
	}
	see(`ledger seen 9 = delivered 8 \+ in flight 1, nothing lost`)
	ask("POST", receiver+"/resume")
	see(`#9 \S+ GET /still-fast `)
	see(`ledger seen 9 = delivered 9, nothing lost`)
	see(`report the plugin says: 9 delivered, 0 under way, none lost; ✓ 9 are here\n`)
	ask("POST", receiver+"/events")
	see(`refused signature`)
	inspector := see(`inspector (http://\S+)`)[1]
	if last := see(`live, in a browser:\s+(\S+)\s`)[1]; last != inspector+"/" {
		t.Errorf("got %s as the last word; want the page, %s/", last, inspector)
	}
	if got, err := os.ReadFile(opened); err != nil || string(got) != inspector+"/" {
		t.Errorf("got %q, %v opened in the browser; want %s/", got, err, inspector)
	}
	if got := ask("GET", inspector+"/"); !strings.Contains(got, "<title>") {
		t.Errorf("the inspector's page is %q", got)
	}
	// The page shows what came, and what comes while it is open.
	if browser := findBrowser(); browser == "" {
		noBrowser(t)
	} else {
		until := open(ctx, t, browser, inspector+"/")
		row := func(texts string) string {
			return `[...document.querySelectorAll('#rows .row:not([hidden])')].some(row => ` + texts + `.every(text => row.innerText.includes(text)))`
		}
		until(`document.getElementById('state')?.dataset.state === 'live'`)
		until(row(`['/still-fast', 'GET', '200']`))
		ask("PUT", site+"/while-it-is-open")
		until(row(`['/while-it-is-open', 'PUT', '200']`))
		until(row(`['report', 'none lost']`))
		until(`document.querySelector('#rows .is-verified') !== null && document.querySelector('#rows .bad') === null`)
	}
	var events []string
	for len(events) < 9 { // 8 samples, and one since
		events = nil
		for line := range strings.Lines(ask("GET", inspector+"/api/events.jsonl")) {
			got, err := event.Read([]byte(line)) // by the schemas in docs/reference
			if err != nil {
				t.Fatalf("the inspector has %q: %v", line, err)
			}
			for _, e := range got.Events {
				status := 0
				if e.Response != nil {
					status = e.Response.Status
				}
				events = append(events, fmt.Sprintf("%s %s %d", e.Method, e.Path, status))
			}
		}
		if ctx.Err() != nil {
			t.Fatalf("the inspector has got %q", events)
		}
	}
	for _, want := range []string{"GET /articles/42 200", "POST /api/comments 200", "GET /socket 101", "GET /still-fast 200"} {
		if !slices.Contains(events, want) {
			t.Errorf("got events %q; want %s among them", events, want)
		}
	}

	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still runs")
	}
	for _, url := range []string{site, receiver, inspector} {
		if conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://")); err == nil {
			_ = conn.Close()
			t.Errorf("%s still listens", url)
		}
	}
}

func TestBrowserOpensWhereSomebodyLooks(t *testing.T) {
	for _, c := range []struct {
		name, system string
		env          map[string]string
		watched      bool
		want         string
	}{
		{"a Mac", "darwin", nil, true, "open"},
		{"a Linux desktop", "linux", map[string]string{"DISPLAY": ":0"}, true, "xdg-open"},
		{"a Linux desktop with Wayland", "linux", map[string]string{"WAYLAND_DISPLAY": "wayland-0"}, true, "xdg-open"},
		{"a Linux server", "linux", nil, true, ""},
		{"output that goes into a file, or a demo that ends by itself", "darwin", nil, false, ""},
		{"a user who does not want it", "darwin", map[string]string{"DEMO_BROWSER": "none"}, true, ""},
		{"a browser of the user's choice", "linux", map[string]string{"DEMO_BROWSER": "firefox"}, false, "firefox"},
	} {
		if got := browserOf(c.system, func(name string) string { return c.env[name] }, c.watched); got != c.want {
			t.Errorf("%s: got %q; want %q", c.name, got, c.want)
		}
	}
}

func TestPortInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if _, err := listen(port, "DEMO_PORT"); err == nil || !strings.Contains(err.Error(), "DEMO_PORT="+port) {
		t.Errorf("a port in use: got error %v", err)
	}
}
