//go:build unix

package docs

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// TestThePageOnReplays runs its commands but the first, which the page on missing events has,
// too, on the event of the reference.
func TestThePageOnReplays(t *testing.T) {
	const name = "docs/how-to/replay-recorded-requests.md"
	commands, said := blocksOf(t, name, "sh"), blocksOf(t, name, "text")
	if len(commands) != 5 || len(said) != 2 || commands[0] != blocksOf(t, "docs/how-to/prove-nothing-is-missing.md", "sh")[0] {
		t.Fatalf("%s: got %d commands, %d texts; want 5, 2, and the first command that of the page on missing events", name, len(commands), len(said))
	}
	var mu sync.Mutex
	got := []string{}
	host := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		body := string(readAll(t, req.Body))
		mu.Lock()
		defer mu.Unlock()
		got = append(got, req.Method+" "+req.RequestURI+" "+req.Header.Get("Authorization")+" "+body)
	}))
	defer host.Close()
	var event bytes.Buffer
	if err := json.Compact(&event, []byte(blocksOf(t, "docs/reference/event.md", "json")[0])); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "events.jsonl")
	if err := os.WriteFile(file, append(event.Bytes(), '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	const request, body = "POST /api/comments?lang=en&sig=REDACTED ", ` {"post":42,"text":"buy <b>cheap</b> pills"}`
	for i, want := range []struct{ text, request string }{
		{said[0], ""}, {said[1], request + "Bearer test" + body}, {said[1], request + body}, {said[1], request + body},
	} {
		cmd := exec.Command("sh", "-c", strings.NewReplacer(" events.jsonl", " "+file, "http://127.0.0.1:8080", host.URL).Replace(commands[i+1]))
		cmd.Dir = root
		out, err := cmd.CombinedOutput()
		mu.Lock()
		if sent := strings.Join(got, "\n"); err != nil || !strings.Contains(string(out), want.text) || sent != want.request {
			t.Errorf("%sgot %v, sent %q and\n%s\nwant %q and\n%s", commands[i+1], err, sent, out, want.request, want.text)
		}
		got = nil
		mu.Unlock()
	}
}
