//go:build unix

package docs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// TestThePageOnMissingEvents runs its commands, on the event of the reference and the report of
// the page, and compares what the checker prints.
func TestThePageOnMissingEvents(t *testing.T) {
	const name = "docs/how-to/prove-nothing-is-missing.md"
	commands, said := blocksOf(t, name, "sh"), blocksOf(t, name, "text")
	report := blocksOf(t, name, "json")[0]
	if len(commands) != 4 || len(said) != 2 {
		t.Fatalf("%s: got %d commands, %d texts; want 4, 2", name, len(commands), len(said))
	}
	repository, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	port := freePorts(t, "9000")["9000"]
	file := filepath.Join(t.TempDir(), "events.jsonl")
	var out output
	command := func(text string) *exec.Cmd {
		text = strings.NewReplacer(" events.jsonl", " "+file, ":9000", "127.0.0.1:"+port).Replace(text)
		cmd := exec.Command("sh", "-c", text)
		cmd.Dir, cmd.Stdout, cmd.Stderr = repository, &out, &out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that it ends as by Ctrl-C
		return cmd
	}

	receiver := command(commands[0])
	if err := receiver.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop := func(signal syscall.Signal) {
		if !stopped {
			stopped = true
			_ = syscall.Kill(-receiver.Process.Pid, signal)
			_ = receiver.Wait()
		}
	}
	t.Cleanup(func() {
		stop(syscall.SIGKILL)
		if t.Failed() {
			t.Logf("the commands wrote\n%s", out.String())
		}
	})
	eventually(t, "the receiver to listen", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})

	lost := map[int]bool{7: true, 12: true, 13: true, 14: true}
	for n := 1; n <= 20; n++ {
		if !lost[n] {
			postSigned(t, port, numbered(t, blocksOf(t, "docs/reference/event.md", "json")[0], n))
		}
	}
	postSigned(t, port, []byte(report))
	stop(syscall.SIGINT)
	stored, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if lines := bytes.Count(stored, []byte("\n")); lines != 17 {
		t.Fatalf("got %d lines; want 17\n%s", lines, stored)
	}

	for i, want := range []struct {
		text string
		code int
	}{{said[0], 0}, {said[1], 1}, {"  verdict    unexplained: there is no final report\n", 1}} {
		out = output{}
		cmd := command(commands[i+1])
		_ = cmd.Run()
		if code := cmd.ProcessState.ExitCode(); code != want.code || !strings.Contains(out.String(), want.text) {
			t.Errorf("%sgot code %d and\n%s\nwant %d and\n%s", commands[i+1], code, out.String(), want.code, want.text)
		}
	}
}

// blocksOf are the texts of the blocks of a page in one language.
func blocksOf(t *testing.T, name, lang string) []string {
	t.Helper()
	var texts []string
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if p.name == name && b.lang == lang {
				texts = append(texts, b.text)
			}
		}
	}
	if len(texts) == 0 {
		t.Fatalf("%s: got no block in %s; want one", name, lang)
	}
	return texts
}

// numbered is an event with another id and number.
func numbered(t *testing.T, text string, n int) []byte {
	t.Helper()
	e, err := event.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var members map[string]any
	if err := json.Unmarshal([]byte(text), &members); err != nil {
		t.Fatal(err)
	}
	members["id"] = e.ID[:len(e.ID)-2] + fmt.Sprintf("%02x", n)
	members["sequence"] = fmt.Sprintf("%s-%020d", e.Boot, n)
	raw, err := json.Marshal(members)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// postSigned delivers what the readers of the tests take.
func postSigned(t *testing.T, port string, raw []byte) {
	t.Helper()
	h := http.Header{"Content-Type": {event.ContentType}}
	b, err := event.ReadDelivery(h, raw)
	if err != nil {
		t.Fatal(err)
	}
	id := ""
	for _, e := range b.Events {
		id = e.ID
	}
	for _, r := range b.Reports {
		id = r.ID
	}
	webhook, err := standardwebhooks.NewWebhook(aSecret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	signature, err := webhook.Sign(id, now, raw)
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:"+port+"/events", bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = h
	req.Header.Set("Webhook-Id", id)
	req.Header.Set("Webhook-Timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("Webhook-Signature", signature)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Fatalf("the receiver: got %s; want 204", resp.Status)
	}
}
