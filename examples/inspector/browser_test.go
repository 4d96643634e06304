package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"image"
	_ "image/png"
	"math"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

var update = flag.Bool("update", false, "write the pictures of the documentation anew")

// browserNeeded names a variable that makes it a failure if a program is missing that a
// test needs: in CI, a test that is left out proves nothing.
const browserNeeded = "INSPECTOR_BROWSER"

// notTestedFile names a file that what was not tested is added to, line by line: of a
// package that passes, go test ./... shows nothing.
const notTestedFile = "NOT_TESTED"

var notTested []string

// leaveOut ends a test that cannot be made here. What was not tested is said in the end.
func leaveOut(t *testing.T, what, why string) {
	t.Helper()
	if os.Getenv(browserNeeded) == "required" {
		t.Fatalf("%s: not tested, as %s, and %s=required", what, why, browserNeeded)
	}
	if line := what + ": " + why; !slices.Contains(notTested, line) {
		notTested = append(notTested, line)
	}
	t.Skipf("%s: not tested: %s", what, why)
}

// sayWhatWasNotTested says it to whoever sees the output, and in the file.
func sayWhatWasNotTested() error {
	for _, line := range notTested {
		fmt.Println("NOT TESTED:", line)
	}
	name := os.Getenv(notTestedFile)
	if name == "" || len(notTested) == 0 {
		return nil
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strings.Join(notTested, "\n") + "\n")
	return errors.Join(err, f.Close())
}

const noBrowser = "there is no Chromium (Debian's package chromium)"

// findBrowser is where Chromium is, if it is installed.
func findBrowser() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// A browser is started once for all tests, as that takes a second or more.
var shared struct {
	once sync.Once
	ctx  context.Context
	end  func()
	err  error
}

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if shared.end != nil {
		shared.end()
	}
	if err := sayWhatWasNotTested(); err != nil {
		fmt.Println(err)
		code = 1
	}
	os.Exit(code)
}

func startBrowser(path string) {
	dir, err := os.MkdirTemp("", "inspector-browser-")
	if err != nil {
		shared.err = err
		return
	}
	options := append([]chromedp.ExecAllocatorOption{
		chromedp.ExecPath(path), chromedp.UserDataDir(dir), chromedp.NoSandbox, chromedp.Headless, chromedp.NoFirstRun, chromedp.DisableGPU,
	}, chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.Flag("font-render-hinting", "none"), chromedp.Flag("force-color-profile", "srgb"),
		// For garbage collection on demand, so that what the heap has is what is held.
		chromedp.Flag("js-flags", "--expose-gc"), chromedp.Flag("enable-precise-memory-info", true))
	allocator, endAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, endBrowser := chromedp.NewContext(allocator)
	shared.err = chromedp.Do(ctx)
	shared.ctx = ctx
	shared.end = func() {
		_ = chromedp.Cancel(ctx)
		endBrowser()
		endAllocator()
		_ = os.RemoveAll(dir)
	}
}

// tab is a page in the browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	problems []string // exceptions, errors in the console, violations of the policy
}

// open opens the page of an inspector in a tab of its own, in the light or dark theme,
// and fails the test in the end if anything was wrong in it.
func (b *bench) open(t *testing.T, width, height int64, dark bool) (*tab, *httptest.Server) {
	t.Helper()
	path := findBrowser()
	if path == "" {
		leaveOut(t, "the page of the inspector", noBrowser)
	}
	shared.once.Do(func() { startBrowser(path) })
	if shared.err != nil {
		t.Fatalf("Chromium does not start: %v", shared.err)
	}
	server := httptest.NewServer(b.handler)
	ctx, cancel := chromedp.NewContext(shared.ctx)
	ctx, cancelTime := context.WithTimeout(ctx, 10*time.Minute)
	p := &tab{t: t, ctx: ctx}
	t.Cleanup(func() {
		p.check()
		_ = chromedp.Cancel(ctx)
		cancelTime()
		cancel()
		server.CloseClientConnections()
		server.Close()
	})
	listening := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			p.note("exception: " + describe(e.ExceptionDetails))
		case *log.EventEntryAdded:
			if e.Entry.Level == log.EntryLevelError || e.Entry.Source == log.EntrySourceSecurity {
				p.note(fmt.Sprintf("%s: %s %s", e.Entry.Source, e.Entry.Text, e.Entry.URL))
			}
		case *page.EventJavascriptDialogOpening:
			p.note("a dialog opened: " + e.Message)
			go func() {
				_, _ = chromedp.Call(ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: true})
			}()
		}
	})
	if listening != nil {
		t.Fatal(listening)
	}
	scheme := "light"
	if dark {
		scheme = "dark"
	}
	// What an injection would call; and every violation of the policy is an attempt.
	call(p, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: `
		window.sentinel = []
		window.hit = (...what) => { window.sentinel.push(what.join(' ') || 'called') }
		addEventListener('securitypolicyviolation', e => window.sentinel.push('policy: ' + e.violatedDirective + ' ' + e.blockedURI + ' ' + e.sample))`})
	call(p, emulation.SetTimezoneOverride, emulation.SetTimezoneOverrideParams{TimezoneID: "UTC"})
	call(p, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	p.size(width, height)
	call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: "reduce"},
	}})
	if err := chromedp.Do(ctx, chromedp.Navigate(server.URL+"/")); err != nil {
		t.Fatal(err)
	}
	p.until(`document.getElementById('state').dataset.state === 'live'`)
	return p, server
}

func describe(e *runtime.ExceptionDetails) string {
	if e.Exception != nil && e.Exception.Description != "" {
		return e.Exception.Description
	}
	return e.Text
}

// call gives the browser a command.
func call[P, R any](p *tab, command cdp.Command[P, R], params P) R {
	p.t.Helper()
	result, err := chromedp.Call(p.ctx, command, params)
	if err != nil {
		p.t.Fatalf("%s: %v", command.Method, err)
	}
	return result
}

func (p *tab) size(width, height int64) {
	p.t.Helper()
	call(p, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: width, Height: height, DeviceScaleFactor: 1})
}

func (p *tab) note(problem string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problems = append(p.problems, problem)
}

// check fails the test if the page did what it must not do.
func (p *tab) check() {
	p.t.Helper()
	hits, err := chromedp.Run(p.ctx, chromedp.Evaluate[[]string](`window.sentinel`))
	if err != nil {
		p.t.Errorf("the page does not answer: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, hit := range append(hits, p.problems...) {
		p.t.Errorf("in the page: %.500s", hit)
	}
}

// eval returns what a script comes to.
func eval[T any](p *tab, script string) T {
	p.t.Helper()
	value, err := chromedp.Run(p.ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	if err != nil {
		p.t.Fatalf("%.200s: %v", script, err)
	}
	return value
}

// until waits for a condition.
func (p *tab) until(condition string) {
	p.t.Helper()
	met := eval[bool](p, `new Promise(done => {
		const end = performance.now() + 60000
		const look = () => {
			if (`+condition+`) done(true)
			else if (performance.now() > end) done(false)
			else setTimeout(look, 10)
		}
		look()
	})`)
	if !met {
		p.t.Fatalf("never so: %s\nthe page:\n%s", condition, eval[string](p, `document.body.innerText.slice(0, 3000)`))
	}
}

// press presses keys, one after the other.
func (p *tab) press(keys ...string) {
	p.t.Helper()
	for _, key := range keys {
		if err := chromedp.Do(p.ctx, chromedp.KeyEvent(key)); err != nil {
			p.t.Fatal(err)
		}
	}
}

func (p *tab) picture() []byte {
	p.t.Helper()
	png, err := chromedp.Run(p.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Fatal(err)
	}
	return png
}

// detail waits for the details of what is selected and returns their text.
func (p *tab) detail(has string) string {
	p.t.Helper()
	quoted, _ := json.Marshal(has)
	p.until(`!document.getElementById('detail').hidden && document.getElementById('detail').innerText.includes(` + string(quoted) + `)`)
	return eval[string](p, `document.getElementById('detail').innerText`)
}

// settled waits until everything that was drawn is on the screen.
func (p *tab) settled() {
	p.t.Helper()
	eval[bool](p, `new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))`)
}

const rowCount = `Number(document.getElementById('list').getAttribute('aria-rowcount')) - 1`

// The pictures of the documentation are made of fixed events at fixed times. Beside them
// are the sum of what they show, so that they are made anew when that is another page, and
// those of themselves, so that they are what was made then.
func TestPictures(t *testing.T) {
	dir := filepath.Join("..", "..", "docs", "images")
	sum := filepath.Join(dir, "inspector.sha256")
	b := newBench(t, nil)
	b.day()
	shown := b.shown()
	const anew = "Make them anew, and look at them: cd examples/inspector && go test -run TestPictures -update ."
	content, err := os.ReadFile(sum)
	sums := strings.Split(strings.TrimSuffix(string(content), "\n"), "\n")
	if !*update && (err != nil || sums[0] != shown+"  page and events") {
		t.Errorf("the pictures in docs/images show another page, or other events: %v, got sum %q; want %q. %s", err, sums[0], shown, anew)
	}
	lines := []string{shown + "  page and events"}
	for _, scheme := range []string{"light", "dark"} {
		p, _ := b.open(t, 1200, 740, scheme == "dark")
		p.until(rowCount + ` > 1000`)
		p.until(`document.getElementById('lost-now').innerText !== ''`)
		p.press("G")
		p.detail("buy <b>cheap</b> pills")
		p.settled()
		picture := p.picture()
		if len(picture) > 200000 {
			t.Errorf("the picture has %d bytes; want at most 200000", len(picture))
		}
		name := filepath.Join(dir, "inspector-"+scheme+".png")
		if *update {
			if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(name, picture, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		stored, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		size, _, err := image.DecodeConfig(bytes.NewReader(stored))
		if err != nil || size.Width != 1200 || size.Height != 740 {
			t.Errorf("%s: got %v, %d by %d; want a picture of 1200 by 740", name, err, size.Width, size.Height)
		}
		line := fmt.Sprintf("%x  %s", sha256.Sum256(stored), filepath.Base(name))
		lines = append(lines, line)
		if !*update && !slices.Contains(sums[1:], line) {
			t.Errorf("%s is not the picture that was made: got sums %q; want %q among them. %s", name, sums[1:], line, anew)
		}
	}
	if *update && !t.Failed() { // last, so that it is never beside pictures that are older
		if err := os.WriteFile(sum, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// shown is a sum of everything that a page is made of: its files, and what the inspector
// tells it of the events.
func (b *bench) shown() string {
	b.t.Helper()
	sum := sha256.New()
	add := func(name string, content []byte) { fmt.Fprintf(sum, "%s %d\n%s\n", name, len(content), content) }
	files, err := assets.ReadDir("page")
	if err != nil {
		b.t.Fatal(err)
	}
	for _, file := range files {
		content, err := assets.ReadFile("page/" + file.Name())
		if err != nil {
			b.t.Fatal(err)
		}
		add(file.Name(), content)
	}
	rows, _, _, _ := b.kept.since(place{}, math.MaxInt)
	add("rows", bytes.Join(rows, nil))
	gaps, counts, kept := b.kept.state(b.clock.now(), 0)
	add("state", encode([]any{gaps, counts, kept}))
	lines := b.lines()
	add("last event", []byte(lines[len(lines)-1])) // the details are of it
	return hex.EncodeToString(sum.Sum(nil))
}
