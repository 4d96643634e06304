//go:build unix

package main

import (
	"bufio"
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
	if os.Getenv("USAGE_MAIN") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestTheProgramEndsWellWhenItIsTold(t *testing.T) {
	cmd := exec.Command(os.Args[0], "-listen", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "USAGE_MAIN=1", "SIGNING_SECRETS=")
	logged, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	address := ""
	lines := bufio.NewScanner(logged)
	for address == "" && lines.Scan() {
		if found := regexp.MustCompile(`listening on (\S+),`).FindStringSubmatch(lines.Text()); found != nil {
			address = found[1]
		}
	}
	resp, err := http.Post("http://"+address+"/events", "application/json", strings.NewReader("[]"))
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
	if err := cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: got %v; want exit code 0", err)
	}
}
