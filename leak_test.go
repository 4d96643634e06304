//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails if a goroutine outlives the tests.
func TestMain(m *testing.M) {
	// Package os/signal starts a goroutine for good, which must not begin in a bubble.
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt)
	signal.Stop(c)
	code := m.Run()
	if leaks := leaked(10 * time.Second); code == 0 && leaks != "" {
		fmt.Fprintf(os.Stderr, "got goroutines after all tests; want none:\n\n%s\n", leaks)
		code = 1
	}
	os.Exit(code)
}

// leaked waits for goroutines to end and returns the stacks of those that do not.
func leaked(patience time.Duration) string {
	deadline := time.Now().Add(patience)
	for {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		left := []string{}
		for _, stack := range stacks() {
			if !harmless(stack) {
				left = append(left, stack)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return strings.Join(left, "\n\n")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func stacks() []string {
	text := make([]byte, 4<<20)
	return strings.Split(string(text[:runtime.Stack(text, true)]), "\n\n")
}

// harmless goroutines are the runtime's, those of package testing, and this one.
func harmless(stack string) bool {
	for _, part := range []string{
		"testing.Main(", "testing.(*M).", "testing.tRunner(", "testing.(*T).Run(", "runtime.goexit0", "os/signal.signal_recv",
		"os/signal.loop", "runtime.ensureSigM", "created by runtime", "runtime.gc(", "runtime.MHeap_Scavenger", "internal/fuzz.", "TestMain(",
	} {
		if strings.Contains(stack, part) {
			return true
		}
	}
	return strings.TrimSpace(stack) == ""
}

func TestLeakIsFound(t *testing.T) {
	stop := make(chan struct{})
	done := make(chan struct{})
	go lingering(stop, done)
	found := ""
	for found == "" {
		for _, stack := range stacks() {
			if !harmless(stack) && strings.Contains(stack, "lingering(") {
				found = stack
			}
		}
	}
	close(stop)
	<-done
}

func lingering(stop, done chan struct{}) {
	<-stop
	close(done)
}
