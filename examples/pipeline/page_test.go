//go:build unix

package pipeline

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// blocks are those of a language on the page.
func blocks(t *testing.T, lang string) (found []string) {
	t.Helper()
	page, err := os.ReadFile(filepath.Join(repository, "docs", "how-to", "grow-past-one-machine.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range regexp.MustCompile("(?ms)^```"+lang+"\n(.*?)^```$").FindAllStringSubmatch(string(page), -1) {
		found = append(found, b[1])
	}
	return found
}

// TestThePage runs the commands of the page, and compares what is printed.
func TestThePage(t *testing.T) {
	commands, printed := blocks(t, "sh"), blocks(t, "text")
	if len(commands) != 2 || len(printed) != 2 {
		t.Fatalf("got %d commands, %d texts; want 2, 2", len(commands), len(printed))
	}
	if !strings.Contains(commands[0], "SIGNING_SECRETS="+secret+" ") || !strings.Contains(blocks(t, "yaml")[0], secret) {
		t.Errorf("got another secret than that of the tests; want %s in the command and in the configuration", secret)
	}

	port := twoPorts(t)
	cmd := exec.Command("sh", "-c", strings.ReplaceAll(commands[0], ":9000", ":"+strconv.Itoa(port)))
	var out safeBuffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = repository, &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // so that it ends as by Ctrl-C
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop := func(signal syscall.Signal) { _ = syscall.Kill(-cmd.Process.Pid, signal) }
	t.Cleanup(func() {
		stop(syscall.SIGKILL)
		<-ended
		if t.Failed() {
			t.Logf("the command wrote\n%s", out.String())
		}
	})
	await(t, "all to be started", 5*time.Minute, func() (bool, any) {
		select {
		case <-ended:
			t.Fatal("it ended")
		default:
		}
		return strings.Contains(out.String(), "Ctrl-C ends it all"), out.String()
	})
	for i := range 2 {
		watchURL := fmt.Sprintf("http://127.0.0.1:%d/events", port+i)
		if !strings.Contains(out.String(), "gateway "+watchURL+"\n") {
			t.Errorf("got no line for %s; want one", watchURL)
		}
		// The second one has the same event again.
		if status, _ := post(t, watchURL, "1"); status != http.StatusNoContent {
			t.Errorf("%s: got %d; want 204", watchURL, status)
		}
	}
	await(t, "the verdict of the page", time.Minute, func() (bool, any) { return strings.Contains(out.String(), printed[1]), out.String() })
	stop(syscall.SIGINT)
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Error("got a program that runs after Ctrl-C; want it to end")
	}
	if n := strings.Count(out.String(), printed[1]); n != 1 {
		t.Errorf("got %d verdicts; want 1", n)
	}

	into := t.TempDir()
	build := exec.Command("sh", "-c", strings.NewReplacer("mkdir -p bin", "true", "-o bin/", "-o '"+into+"/'").Replace(commands[1]))
	build.Dir = repository
	if text, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%s%v\n%s", commands[1], err, text)
	}
	for _, name := range []string{"gateway", "worker", "nats-server"} {
		if _, err := exec.LookPath(filepath.Join(into, name)); err != nil {
			t.Errorf("%sgot %v; want %s", commands[1], err, name)
		}
	}
}

// twoPorts returns a free port, after which there is another one.
func twoPorts(t *testing.T) int {
	t.Helper()
	for range 100 {
		address := freeAddress(t)
		_, text, err := net.SplitHostPort(address)
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+1)); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("got no two ports that follow each other")
	return 0
}
