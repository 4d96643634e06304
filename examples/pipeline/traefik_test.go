//go:build unix

package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	repository = "../.."
	plugin     = "github.com/opencommit/requestmirror"
)

// findTraefik returns the Traefik to run: TRAEFIK_BIN, or what test/traefik/build.sh built.
func findTraefik(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("TRAEFIK_BIN")
	if bin == "" {
		pins, err := os.ReadFile(filepath.Join(repository, "test", "traefik", "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		pin := regexp.MustCompile(`(?m)^\s*(?:require )?github\.com/traefik/traefik/v3 (\S+)`).FindSubmatch(pins)
		if pin == nil {
			t.Fatal("test/traefik/go.mod: got no version of Traefik; want one")
		}
		bin = filepath.Join(repository, "test", "traefik", "bin", "traefik-"+string(pin[1]))
	}
	path, err := exec.LookPath(bin)
	if err != nil {
		t.Fatalf("no Traefik to test with (%v): build it with test/traefik/build.sh, or set TRAEFIK_BIN", err)
	}
	if path, err = filepath.Abs(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// traefik is a real Traefik with the plugin of this repository in it.
type traefik struct {
	web, api string // addresses
}

// startTraefik starts one whose only route goes through the middleware mirror, which a file
// for Traefik has. It is ready when the route is.
func startTraefik(t *testing.T, bin, name, backend, middleware string) *traefik {
	t.Helper()
	dir := t.TempDir()
	copyPlugin(t, filepath.Join(dir, "plugins-local", "src", filepath.FromSlash(plugin)))
	tr := &traefik{web: freeAddress(t), api: freeAddress(t)}
	static := map[string]any{
		"global": map[string]any{"checkNewVersion": false, "sendAnonymousUsage": false},
		"log":    map[string]any{"level": "ERROR"},
		"api":    map[string]any{"insecure": true, "debug": true, "dashboard": false},
		"entryPoints": map[string]any{
			// Its only clients are those of the test, who say which address they have.
			"web":     map[string]any{"address": tr.web, "forwardedHeaders": map[string]any{"insecure": true}},
			"traefik": map[string]any{"address": tr.api},
		},
		"providers":    map[string]any{"file": map[string]any{"directory": filepath.Join(dir, "dynamic")}},
		"experimental": map[string]any{"localPlugins": map[string]any{"requestmirror": map[string]any{"moduleName": plugin}}},
	}
	dynamic := map[string]any{"http": map[string]any{
		"routers": map[string]any{"site": map[string]any{
			"rule": "PathPrefix(`/`)", "entryPoints": []string{"web"}, "middlewares": []string{"mirror"}, "service": "site",
		}},
		"services": map[string]any{"site": map[string]any{"loadBalancer": map[string]any{"servers": []any{map[string]any{"url": backend}}}}},
	}}
	if err := os.Mkdir(filepath.Join(dir, "dynamic"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "dynamic", "page.yml"), []byte(middleware), 0o600); err != nil {
		t.Fatal(err)
	}
	// JSON is YAML.
	for file, content := range map[string]any{"static.json.yml": static, "dynamic/site.json.yml": dynamic} {
		raw, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, file), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out safeBuffer
	cmd := exec.Command(bin, "--configFile="+filepath.Join(dir, "static.json.yml"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		if t.Failed() {
			for _, path := range []string{"/debug/vars", "/debug/pprof/goroutine?debug=1"} {
				t.Logf("%s, %s\n%s", name, path, get("http://"+tr.api+path))
			}
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(15 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if t.Failed() {
			t.Logf("%s wrote\n%s", name, out.String())
		}
	})
	await(t, name+" to serve", time.Minute, func() (bool, any) {
		select {
		case <-ended:
			t.Fatalf("%s ended: %s", name, out.String())
		default:
		}
		resp, err := http.Get("http://" + tr.api + "/api/http/routers/site@file")
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode == http.StatusOK && strings.Contains(string(body), `"enabled"`), string(body)
	})
	return tr
}

// get returns what is at a URL, or why it is not known.
func get(url string) string {
	client := http.Client{Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

func copyPlugin(t *testing.T, to string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(repository, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("got %d files, %v; want those of the plugin", len(files), err)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, filepath.Join(repository, "go.mod"), filepath.Join(repository, ".traefik.yml")) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// ledger is what the plugin counts for its receiver.
type ledger struct {
	Seen, Filtered, SampledOut, Enqueued, Delivered, Waiting, InFlight, Retried int64
	Unauthenticated                                                             int64
	Dropped, Failed                                                             map[string]int64
	CircuitBreaker                                                              string
}

// ledger reads the counters, which add up whenever they are read.
func (tr *traefik) ledger(t *testing.T) ledger {
	t.Helper()
	resp, err := http.Get("http://" + tr.api + "/debug/vars")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var vars struct {
		Plugin struct {
			Middlewares map[string]struct{ Receivers map[string]ledger }
		} `json:"requestmirror"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&vars); err != nil {
		t.Fatal(err)
	}
	for _, l := range vars.Plugin.Middlewares["mirror@file"].Receivers {
		if l.Seen != l.Filtered+l.SampledOut+l.Enqueued+sum(l.Dropped) || l.Enqueued != l.Delivered+sum(l.Failed)+l.Waiting+l.InFlight {
			t.Fatalf("the counters do not add up: %+v", l)
		}
		return l
	}
	return ledger{}
}

func sum(counts map[string]int64) (n int64) {
	for _, count := range counts {
		n += count
	}
	return n
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// await looks again and again until it is so.
func await(t *testing.T, what string, patience time.Duration, look func() (ok bool, seen any)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		ok, seen := look()
		if ok {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("waiting for %s: %s; last seen: %v", what, patience, fmt.Sprint(seen))
		case <-ticker.C:
		}
	}
}

type safeBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
