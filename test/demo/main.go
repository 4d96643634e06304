// Demo shows the plugin at work on this machine: a real Traefik with Request Mirror
// in front of a small site, a receiver that prints every event it gets, and one that
// shows them on a page.
//
//	you, samples ──▶ Traefik ──▶ site
//	                    ├ events ──▶ receiver ──▶ this terminal
//	                    └ events, with responses ──▶ inspector ──▶ your browser
//
// It listens on loopback only, keeps nothing but a temporary directory, and ends with
// Ctrl-C. See usage for the environment variables.
package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

const usage = `Usage: demo [-once]

  -once                  end after the sample requests

Environment:
  DEMO_PORT              port of the site, as Traefik serves it      (any free one)
  DEMO_RECEIVER_PORT     port of the receiver of the events          (any free one)
  DEMO_INSPECTOR_PORT    port of the page that shows the events      (any free one)
  DEMO_BROWSER           a program that opens the page; none: nothing does   (open, xdg-open)
  DEMO_ONCE=1            like -once
  NO_COLOR=1             no colours
  TRAEFIK_BIN            a Traefik to use instead of building one
`

// config is what the user may choose.
type config struct {
	port, receiverPort, inspectorPort string
	browser                           string // opens the page; empty: nothing does
	once                              bool
	out                               io.Writer
	colours                           bool
}

func main() {
	c := config{port: os.Getenv("DEMO_PORT"), receiverPort: os.Getenv("DEMO_RECEIVER_PORT"), inspectorPort: os.Getenv("DEMO_INSPECTOR_PORT"), out: os.Stdout}
	flag.BoolVar(&c.once, "once", os.Getenv("DEMO_ONCE") != "", "")
	flag.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	flag.Parse()
	if info, err := os.Stdout.Stat(); err == nil {
		terminal := info.Mode()&os.ModeCharDevice != 0
		c.colours = terminal && os.Getenv("NO_COLOR") == ""
		c.browser = browserOf(runtime.GOOS, os.Getenv, terminal && !c.once)
	}
	// SIGPIPE, too: a reader of the output that leaves ends the demo, but cleanly.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	err := run(ctx, c)
	stop()
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// run is the whole demo. It returns when ctx ends, or after the samples, and leaves
// nothing running.
func run(ctx context.Context, c config) (err error) {
	s := &screen{out: c.out, colours: c.colours}
	s.print("%s\n", s.bold("Request Mirror: every request to a site becomes an event, which a receiver prints here"))
	if err := findTraefik(ctx); err != nil {
		return err
	}
	secret := newSecret()
	receiver, err := listen(c.receiverPort, "DEMO_RECEIVER_PORT")
	if err != nil {
		return err
	}
	events := newReceiver(s, secret)
	defer serve(receiver, events)()
	inspector, endInspector, err := startInspector(ctx, c.inspectorPort, secret)
	if err != nil {
		return err
	}
	defer endInspector()
	backend, err := listen("", "")
	if err != nil {
		return err
	}
	defer serve(backend, site())()
	front, err := listen(c.port, "DEMO_PORT")
	if err != nil {
		return err
	}
	_ = front.Close() // found free; Traefik takes it

	receiverURL := "http://" + receiver.Addr().String()
	options := lab.Options{
		"watchURL":       receiverURL + "/events",
		"cookieNames":    []string{"visitor_*"},
		"maxBodySize":    "1Ki",
		"signingSecrets": []string{secret},
		"attributes":     map[string]string{"environment": "demo"},
		"reportInterval": "3s",
		"strict":         true,
	}
	mirrors := map[string]lab.Options{"mirror": options, "inspect": inspected(inspector, secret)}
	traefik, err := lab.Start(ctx, setup(front.Addr().String(), "http://"+backend.Addr().String(), mirrors))
	if err != nil {
		return err
	}
	defer func() {
		s.print("\nStopping Traefik …")
		if stopped := traefik.Stop(); stopped != nil && err == nil {
			err = stopped
		}
		s.print("Done. %s", events.summary())
	}()

	d := &demo{screen: s, traefik: traefik, events: events, site: "http://" + front.Addr().String(), receiver: receiverURL, inspector: inspector}
	d.introduce(backend.Addr().String())
	d.open(c.browser)
	if err := d.samples(ctx); err != nil {
		return err
	}
	if c.once {
		return nil
	}
	d.invite()
	return d.watch(ctx)
}

// browserOf is the program that opens a page in the user's browser, if there is somebody
// to look at it, on a desktop of which that is known.
func browserOf(system string, env func(string) string, watched bool) string {
	chosen := env("DEMO_BROWSER")
	switch {
	case chosen == "none":
		return ""
	case chosen != "":
		return chosen
	case watched && system == "darwin":
		return "open"
	case watched && system == "linux" && env("DISPLAY")+env("WAYLAND_DISPLAY") != "":
		return "xdg-open"
	}
	return ""
}

// setup adds an entry point of the demo's own to the lab's, so that no host name is
// needed to reach the site.
func setup(front, backend string, mirrors map[string]lab.Options) lab.Setup {
	return lab.Setup{
		Static: map[string]any{"entryPoints": map[string]any{"demo": map[string]any{
			"address": front,
			// Streams that are still open shall not hold up the end for long.
			"transport": map[string]any{"lifeCycle": map[string]any{"graceTimeOut": "1s"}},
		}}},
		Dynamic: lab.Dynamic{
			Mirrors: mirrors,
			Routes:  map[string]lab.Route{"site": {Rule: "PathPrefix(`/`)", Through: []string{"mirror", "inspect"}, Backend: backend}},
			Extra: map[string]any{"http": map[string]any{"routers": map[string]any{
				"site": map[string]any{"entryPoints": []string{"demo"}},
			}}},
		},
	}
}

// findTraefik has build.sh find or build the Traefik, which tells of its progress.
func findTraefik(ctx context.Context) error {
	root, err := lab.Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, filepath.Join(root, "test", "traefik", "build.sh"))
	cmd.Stderr = os.Stderr
	// Politely, so that it takes the compiler and its files with it.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("no Traefik: %w", err)
	}
	return os.Setenv("TRAEFIK_BIN", strings.TrimSpace(string(out)))
}

// listen listens on loopback, on the port that the variable named, or a free one.
func listen(port, variable string) (net.Listener, error) {
	if port == "" {
		port = "0"
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port))
	if err != nil && variable != "" {
		return nil, fmt.Errorf("%s=%s cannot be used: %w", variable, port, err)
	}
	return l, err
}

// serve serves until the returned function is called.
func serve(l net.Listener, h http.Handler) (stop func()) {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			fmt.Fprintln(os.Stderr, "demo:", err)
		}
		close(done)
	}()
	return func() {
		_ = server.Close()
		<-done
	}
}

// newSecret is a new secret in the form of Standard Webhooks.
func newSecret() string {
	key := make([]byte, 24)
	_, _ = rand.Read(key) // never fails
	return "whsec_" + base64.StdEncoding.EncodeToString(key)
}
