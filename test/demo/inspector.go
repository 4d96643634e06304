package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// startInspector builds and starts examples/inspector, which shows events on a page, and
// returns the page's URL. It is a program of its own, as users run it.
func startInspector(ctx context.Context, port, secret string) (url string, stop func(), err error) {
	root, err := lab.Root()
	if err != nil {
		return "", nil, err
	}
	program := filepath.Join(root, ".cache", "inspector")
	build := exec.CommandContext(ctx, "go", "build", "-o", program, ".")
	build.Dir = filepath.Join(root, "examples", "inspector")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return "", nil, fmt.Errorf("no inspector: %w", err)
	}
	if port == "" {
		port = "0"
	}
	cmd := exec.Command(program, "-listen", "127.0.0.1:"+port)
	cmd.Env = append(os.Environ(), "SIGNING_SECRETS="+secret)
	said := &strings.Builder{}
	cmd.Stderr = said // read when it has ended
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", nil, err
	}
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	stop = func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		late.Stop()
	}
	if err != nil {
		stop()
		return "", nil, errors.New("the inspector did not start: " + said.String())
	}
	return strings.TrimSuffix(strings.TrimSpace(line), "/"), stop, nil
}

// inspected are the options of the second middleware, whose events go to the inspector.
func inspected(url, secret string) lab.Options {
	return lab.Options{
		"watchURL":         url + "/events",
		"cookieNames":      []string{"visitor_*"},
		"redactBodyFields": []string{"password"},
		"captureResponse":  "body",
		"signingSecrets":   []string{secret},
		"attributes":       map[string]string{"environment": "demo"},
		"reportInterval":   "3s",
		"strict":           true,
	}
}
