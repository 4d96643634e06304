package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"
	"github.com/opencommit/requestmirror/test/lab"
)

// findBrowser is where Chromium is, if it is installed.
func findBrowser() string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	return ""
}

// noBrowser says that the page was not tested, as the tests of examples/inspector say it.
func noBrowser(t *testing.T) {
	t.Helper()
	const what = "the page of the running demo: there is no Chromium (Debian's package chromium)"
	if os.Getenv("INSPECTOR_BROWSER") == "required" {
		t.Errorf("not tested: %s, and INSPECTOR_BROWSER=required", what)
	}
	t.Log("NOT TESTED: " + what)
	if err := lab.NotTested(what); err != nil {
		t.Error(err)
	}
}

// open shows a page in Chromium, and returns a function that waits in it for a condition.
func open(ctx context.Context, t *testing.T, browser, url string) (until func(condition string)) {
	t.Helper()
	cmd := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--remote-debugging-port=0", "--user-data-dir="+t.TempDir(), url)
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	told, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(said)
		for lines.Scan() {
			if _, at, ok := strings.Cut(lines.Text(), "DevTools listening on ws://"); ok {
				told <- at
			}
		}
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		<-ended
		late.Stop()
	})
	var address string
	select {
	case address = <-told:
	case <-ended:
		t.Fatal("Chromium does not start")
	}
	host, _, _ := strings.Cut(address, "/")
	conn, _, err := websocket.Dial(ctx, pageOf(ctx, t, host, url), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.CloseNow() })
	conn.SetReadLimit(1 << 20)
	return func(condition string) {
		t.Helper()
		ask := map[string]any{"id": 1, "method": "Runtime.evaluate", "params": map[string]any{
			"awaitPromise": true, "returnByValue": true,
			"expression": `new Promise(done => {
				const end = performance.now() + 60000
				const look = () => {
					if (` + condition + `) done('')
					else if (performance.now() > end) done('the page: ' + document.body.innerText.slice(0, 3000))
					else setTimeout(look, 10)
				}
				look()
			})`,
		}}
		for end := time.Now().Add(time.Minute); ; {
			var answer struct {
				Result struct {
					Result    struct{ Value *string }
					Exception json.RawMessage `json:"exceptionDetails"`
				}
				Error json.RawMessage
			}
			if err := errors.Join(wsjson.Write(ctx, conn, ask), wsjson.Read(ctx, conn, &answer)); err != nil {
				t.Fatal(err)
			}
			if answer.Error != nil && time.Now().Before(end) {
				select { // the page is still on its way
				case <-ctx.Done():
				case <-time.After(20 * time.Millisecond):
				}
				continue
			}
			if value := answer.Result.Result.Value; value == nil || *value != "" {
				got, _ := json.Marshal(answer)
				t.Fatalf("never so: %s; got %s", condition, got)
			}
			return
		}
	}
}

// pageOf waits until Chromium has a page and returns where it takes commands.
func pageOf(ctx context.Context, t *testing.T, host, url string) string {
	t.Helper()
	for {
		req, err := http.NewRequestWithContext(ctx, "GET", "http://"+host+"/json/list", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var pages []struct{ Type, URL, WebSocketDebuggerURL string }
		err = json.NewDecoder(res.Body).Decode(&pages)
		_ = res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, page := range pages {
			if page.Type == "page" && strings.HasPrefix(page.URL, url) {
				return page.WebSocketDebuggerURL
			}
		}
		select {
		case <-ctx.Done():
			t.Fatalf("Chromium has no page of %s, but %+v", url, pages)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
