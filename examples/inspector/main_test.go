package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The program tells where its page is on standard output, for whoever starts it.
func TestProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "inspector")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, wrong := range [][]string{{"-keep", "0"}, {"-path", "/"}, {"-path", "/{x}"}, {"-memory", "0"}, {"more"}} {
		if err := exec.CommandContext(t.Context(), program, wrong...).Run(); err == nil || err.Error() != "exit status 2" {
			t.Errorf("%q: got %v; want exit status 2", wrong, err)
		}
	}
	cmd := exec.CommandContext(t.Context(), program, "-listen", "127.0.0.1:0", "-path", "/in")
	cmd.Env = append(os.Environ(), "SIGNING_SECRETS="+secret)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	url, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	url = strings.TrimSpace(url)
	now := time.Now()
	event := newMirror(now).request(now, "/real")
	req := posted(secret, "a", now, encode(event))
	out, err := http.NewRequestWithContext(t.Context(), "POST", url+"in", req.Body)
	if err != nil {
		t.Fatal(err)
	}
	out.Header = req.Header
	res, err := http.DefaultClient.Do(out)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusNoContent {
		t.Errorf("a delivery was answered with %s", res.Status)
	}
	res, err = http.Get(url + "api/events.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if string(got) != string(encode(event))+"\n" {
		t.Errorf("got %s", got)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("told to end: %v", err)
	}
}
