//go:build unix

package main

import (
	"bufio"
	"io"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
)

// TestMain is the program itself when the test of signals starts it.
func TestMain(m *testing.M) {
	if os.Getenv("ANTISPAM_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestTheProgramEndsWellWhenItIsTold(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "ANTISPAM_MAIN=1", "SIGNING_SECRETS=")
	logged, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	address := ""
	lines := bufio.NewReader(logged)
	for address == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("got %v before the address", err)
		}
		if found := regexp.MustCompile(`listening on (\S+),`).FindStringSubmatch(line); found != nil {
			address = found[1]
		}
	}
	p := newProgram(t, "")
	batch := []string{}
	for range 500 {
		batch = append(batch, p.event(sent{}))
	}
	resp, err := http.Post("http://"+address+"/events", "application/cloudevents-batch+json", strings.NewReader("["+strings.Join(batch, ",")+"]"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("got %s; want 204", resp.Status)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(string(rest), "ended, 500 verdicts\n") {
		t.Errorf("after SIGTERM: got %v and %q; want exit code 0 and 500 verdicts", err, rest)
	}
}
