//go:build unix && go1.25 && !yaegi
// +build unix,go1.25,!yaegi

package requestmirror

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A pipe that nobody writes to is as a file on a mount that hangs: to open it takes for ever.
func TestRequestsDoNotWaitForTheFileOfASecret(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, "s3cret")
	m := mirrorOf(t, http.NotFoundHandler(), opts{"authenticate.secrets": []string{"file:" + name}}).(*Mirror)
	secret := m.set.authentication.secrets[0]
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	served := make(chan bool)
	for n := 1; n <= 3; n++ {
		atomic.AddInt64(&secret.checked, -1) // as if it was a second ago
		go func() {
			req := httptest.NewRequest("POST", "/", strings.NewReader("x"))
			req.Header.Set("X-Hub-Signature-256", "sha256="+strings.Repeat("0", 64))
			m.ServeHTTP(httptest.NewRecorder(), req)
			served <- true
		}()
		select {
		case <-served:
		case <-time.After(20 * time.Second):
			t.Fatalf("got request %d that waits for the file; want none to", n)
		}
	}
	if got := currentText(secret); got != "s3cret" {
		t.Errorf("got secret %q; want the one that was there", got)
	}
	// Whoever hangs goes on, and what is in the file counts.
	pipe, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pipe.WriteString("another"); err != nil {
		t.Fatal(err)
	}
	if err := pipe.Close(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the secret that was written", func() bool {
		text, _ := secret.text.Load().(string)
		return text == "another" && atomic.LoadInt64(&secret.reading) == 0
	})
}
