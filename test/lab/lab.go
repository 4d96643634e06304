// Package lab runs a real Traefik with the plugin of this repository in it, on
// loopback and ports of its own, between backends and receivers whose behaviour
// is scripted:
//
//	client ──▶ Traefik (web, websecure) ──▶ Backend
//	                │ requestmirror
//	                └──────────────────────▶ Receiver
//
// The end-to-end tests, the benchmark and the demo share it, so nothing here
// knows of testing.T: what goes wrong is returned as an error that says what
// was waited for, what was seen, and how the log ends.
//
// Start returns when the configuration is live; Apply replaces it and returns
// when the new one is. Clients reach a route by its name, NAME.test, through
// Client or Dial, which know the ports.
package lab

import (
	"bytes"
	"context"
	"crypto/tls"
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
	"time"
)

// module is the plugin's module path, under which Traefik looks for it.
const module = "github.com/opencommit/requestmirror"

// Setup says which plugin Traefik runs and with which configuration.
type Setup struct {
	Plugin  string         // directory of the plugin's sources; the root of this repository when empty
	Static  map[string]any // laid over the lab's static configuration, map by map
	Dynamic Dynamic        // live when Start returns
	Output  io.Writer      // gets Traefik's log as it comes, besides Log; may be nil
}

// Traefik is a running Traefik. Its methods may be called from any goroutine.
type Traefik struct {
	dir       string // working directory, removed by Stop
	cert      Certificate
	web       string // addresses of the entry points
	websecure string
	api       string
	control   *http.Client // for the lab's own requests, on connections that clients don't share
	log       *logBuffer

	cmd    *exec.Cmd
	exited chan struct{} // closed when the process is gone and exit is set
	exit   error

	applying sync.Mutex // held while a dynamic configuration becomes live
	revision int        // of the dynamic configuration
}

// Start starts Traefik and returns when it serves the configuration of s.
func Start(ctx context.Context, s Setup) (*Traefik, error) {
	bin, err := FindTraefik()
	if err != nil {
		return nil, err
	}
	if s.Plugin == "" {
		if s.Plugin, err = Root(); err != nil {
			return nil, err
		}
	}
	dir, err := os.MkdirTemp("", "requestmirror-lab-")
	if err != nil {
		return nil, err
	}
	t, err := startIn(ctx, dir, bin, s)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, fmt.Errorf("start Traefik: %w", err)
	}
	return t, nil
}

func startIn(ctx context.Context, dir, bin string, s Setup) (*Traefik, error) {
	if err := copyPlugin(s.Plugin, filepath.Join(dir, "plugins-local", "src", filepath.FromSlash(module))); err != nil {
		return nil, err
	}
	cert, err := NewCertificate("*.test", "*.lab", "localhost")
	if err != nil {
		return nil, err
	}
	if err := cert.write(dir); err != nil {
		return nil, err
	}

	// A free port is found by closing it again, so another process can be
	// faster; that shows as an early exit, and other ports are tried.
	for attempt := 1; ; attempt++ {
		t := &Traefik{dir: dir, cert: cert, log: &logBuffer{copy: s.Output}, exited: make(chan struct{})}
		if t.web, t.websecure, t.api, err = threeFreeAddresses(); err != nil {
			return nil, err
		}
		err = t.run(ctx, bin, s)
		if err == nil {
			return t, nil
		}
		t.kill()
		if attempt == 3 || !strings.Contains(t.log.String(), "address already in use") {
			return nil, err
		}
	}
}

// run starts the process and waits until it is ready.
func (t *Traefik) run(ctx context.Context, bin string, s Setup) error {
	t.control = t.newClient()
	if err := writeYAML(filepath.Join(t.dir, "static.yml"), merge(t.static(), s.Static)); err != nil {
		return err
	}
	if err := t.writeDynamic(s.Dynamic); err != nil {
		return err
	}
	t.cmd = exec.Command(bin, "--configFile="+filepath.Join(t.dir, "static.yml"))
	t.cmd.Dir = t.dir
	t.cmd.Stdout, t.cmd.Stderr = t.log, t.log
	// The environment's proxies and Traefik settings are not part of a lab.
	t.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.dir, "TMPDIR=" + os.TempDir()}
	dieWithParent(t.cmd)
	if err := t.cmd.Start(); err != nil {
		return err
	}
	go func() {
		t.exit = t.cmd.Wait()
		close(t.exited)
	}()
	if err := t.waitUntilLive(ctx); err != nil {
		return err
	}
	if strings.Contains(t.log.String(), "Plugins are disabled") {
		return fmt.Errorf("the plugin does not load: %s", t.log.tail())
	}
	return nil
}

// static is the static configuration of every lab.
func (t *Traefik) static() map[string]any {
	return map[string]any{
		"global": map[string]any{"checkNewVersion": false, "sendAnonymousUsage": false},
		"log":    map[string]any{"level": "INFO", "format": "json"},
		// The insecure API lives on the entry point of this name only.
		"api":  map[string]any{"insecure": true, "debug": true, "dashboard": false},
		"ping": map[string]any{"entryPoint": "traefik"},
		"entryPoints": map[string]any{
			"web":     map[string]any{"address": t.web},
			"traefik": map[string]any{"address": t.api},
			"websecure": map[string]any{
				"address": t.websecure,
				"http":    map[string]any{"tls": map[string]any{}},
			},
		},
		"providers": map[string]any{
			"providersThrottleDuration": "50ms",
			"file":                      map[string]any{"filename": filepath.Join(t.dir, "dynamic.yml"), "watch": true},
		},
		"experimental": map[string]any{
			"localPlugins": map[string]any{"requestmirror": map[string]any{"moduleName": module}},
		},
	}
}

// Stop ends Traefik, politely at first, and removes what it left.
func (t *Traefik) Stop() error {
	defer os.RemoveAll(t.dir)
	t.Terminate()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	if err := t.Wait(ctx); err != nil {
		t.kill()
		return err
	}
	return nil
}

// Terminate sends SIGTERM and does not wait.
func (t *Traefik) Terminate() { _ = t.cmd.Process.Signal(syscall.SIGTERM) }

// Wait returns when the process has ended, with an error if it ended badly or not in time.
func (t *Traefik) Wait(ctx context.Context) error {
	select {
	case <-t.exited:
		if t.exit != nil {
			return fmt.Errorf("traefik ended with %w: %s", t.exit, t.log.tail())
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("traefik still runs: %w", ctx.Err())
	}
}

func (t *Traefik) kill() {
	if t.cmd == nil || t.cmd.Process == nil {
		return
	}
	_ = t.cmd.Process.Kill()
	<-t.exited
}

// Exited is closed when the process is gone.
func (t *Traefik) Exited() <-chan struct{} { return t.exited }

// PID is the process id.
func (t *Traefik) PID() int { return t.cmd.Process.Pid }

// Web is the address of the entry point without TLS, for who writes to the
// socket or sends Traefik's own traffic through Traefik.
func (t *Traefik) Web() string { return t.web }

// API is the base URL of Traefik's API, with /debug/vars and /debug/pprof.
func (t *Traefik) API() string { return "http://" + t.api }

// Log is what Traefik wrote so far: one JSON object per line.
func (t *Traefik) Log() string { return t.log.String() }

// Client returns a client with connections of its own that reaches the route
// NAME as http://NAME.test (HTTP/1.1) and https://NAME.test (HTTP/2). It adds
// nothing to a request and follows no redirect.
func (t *Traefik) Client() *http.Client { return t.newClient() }

func (t *Traefik) newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			DialContext:         t.Dial,
			TLSClientConfig:     t.TLS(),
			ForceAttemptHTTP2:   true,
			DisableCompression:  true,
			MaxIdleConnsPerHost: 64,
			// The body of Expect: 100-continue waits for the answer, as
			// long as the test does.
			ExpectContinueTimeout: time.Minute,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// TLS is a client's TLS configuration that trusts this Traefik.
func (t *Traefik) TLS() *tls.Config { return &tls.Config{RootCAs: t.cert.Pool()} }

// Dial connects to the entry point behind NAME.test:80 or NAME.test:443; other
// addresses are dialled as they are.
func (t *Traefik) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(host, ".test") || strings.HasSuffix(host, ".lab") {
		switch port {
		case "80":
			address = t.web
		case "443":
			address = t.websecure
		}
	}
	var d net.Dialer
	return d.DialContext(ctx, network, address)
}

// FindTraefik returns the path of the Traefik to run: TRAEFIK_BIN, or what
// test/traefik/build.sh built.
func FindTraefik() (string, error) {
	const advice = "build it with test/traefik/build.sh, or set TRAEFIK_BIN to an executable"
	bin := os.Getenv("TRAEFIK_BIN")
	if bin == "" {
		root, err := Root()
		if err != nil {
			return "", err
		}
		dir := filepath.Join(root, "test", "traefik")
		pins, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err != nil {
			return "", err
		}
		pin := traefikPin.FindSubmatch(pins)
		if pin == nil {
			return "", fmt.Errorf("no version of Traefik in %s", filepath.Join("test", "traefik", "go.mod"))
		}
		bin = filepath.Join(dir, "bin", "traefik-"+string(pin[1]))
	}
	path, err := exec.LookPath(bin)
	if err != nil {
		return "", fmt.Errorf("no Traefik to test with (%w): %s", err, advice)
	}
	return filepath.Abs(path)
}

var traefikPin = regexp.MustCompile(`(?m)^\s*(?:require )?github\.com/traefik/traefik/v3 (\S+)`)

// Root is the directory of the plugin's module, found upwards from the working directory.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for start := dir; ; {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && bytes.HasPrefix(mod, []byte("module "+module+"\n")) {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", fmt.Errorf("module %s: not in %s or above it", module, start)
		}
		dir = up
	}
}

// copyPlugin copies what Traefik's loader reads of a plugin: not its tests,
// nor the nested modules.
func copyPlugin(from, to string) error {
	sources, err := filepath.Glob(filepath.Join(from, "*.go"))
	if err != nil {
		return err
	}
	if len(sources) == 0 {
		return fmt.Errorf("plugin: no Go file in %s", from)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, file := range append(sources, filepath.Join(from, "go.mod"), filepath.Join(from, ".traefik.yml")) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("plugin: %w", err)
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func threeFreeAddresses() (a, b, c string, err error) {
	var addresses [3]string
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", "", "", err
		}
		// Closed at the end, so that the three differ.
		defer l.Close()
		addresses[i] = l.Addr().String()
	}
	return addresses[0], addresses[1], addresses[2], nil
}

// Poll calls done every few milliseconds until it says true. It gives up with
// ctx or at done's first error; the error names what was waited for and what
// done saw last.
func Poll(ctx context.Context, what string, done func() (ok bool, seen any, err error)) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var last any
	for {
		ok, seen, err := done()
		switch {
		case err == nil && ok:
			return nil
		case ctx.Err() != nil:
			// An error of done is then most likely the deadline's.
			return fmt.Errorf("waiting for %s: %w; last seen: %v", what, ctx.Err(), last)
		case err != nil:
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		last = seen
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// logBuffer keeps the log of a process. Traefik writes, tests read.
type logBuffer struct {
	copy io.Writer
	mu   sync.Mutex
	buf  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.copy != nil {
		_, _ = l.copy.Write(p)
	}
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// tail is the end of the log, for error messages.
func (l *logBuffer) tail() string {
	s := l.String()
	if cut := len(s) - 4000; cut > 0 {
		s = "…" + s[cut:]
	}
	return "Traefik's log ends with\n" + s
}
