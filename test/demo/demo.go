package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/opencommit/requestmirror/test/lab"
)

// demo is what goes on once everything runs.
type demo struct {
	screen   *screen
	traefik  *lab.Traefik
	events   *receiver
	site     string // URL of the site, through Traefik
	receiver string // URL of the receiver

	inspector string // URL of the page

	sent    int
	ledgers string // what was last printed of it
}

func (d *demo) introduce(backend string) {
	s := d.screen
	for _, line := range [][3]string{
		{"site", d.site, "Traefik with the middleware, and behind it"},
		{"backend", "http://" + backend, "which never notices"},
		{"receiver", d.receiver + "/events", "gets an event for each request; they are printed here"},
		{"inspector", d.inspector, "open it in a browser: the same events as a page, with responses"},
		{"counters", d.traefik.API() + "/debug/vars", "what became of each event, under \"requestmirror\""},
	} {
		s.print("  %s %-34s %s", s.bold(fmt.Sprintf("%-9s", line[0])), line[1], s.dim(line[2]))
	}
	s.print("")
}

// open has the user's browser show the page, as events begin to come. A demo without a
// browser is one, too, so nothing more comes of a failure than a word.
func (d *demo) open(browser string) {
	if browser == "" {
		return
	}
	cmd := exec.Command(browser, d.inspector+"/")
	if err := cmd.Start(); err != nil {
		d.screen.print("%s\n", d.screen.dim("the page does not open by itself: "+err.Error()))
		return
	}
	go func() { _ = cmd.Wait() }() // it may be the browser itself, which stays
}

// sample is a request that the demo sends itself.
type sample struct {
	about      string
	send       func(context.Context) error
	deliveries int // 2 when the receiver makes the plugin try again
}

func (d *demo) samples(ctx context.Context) error {
	const token = "Bearer eyJhbGciOiJIUzI1NiJ9.c2VjcmV0"
	cookies := map[string]string{"Cookie": "visitor_id=v-82f1; session=2b1c9f0e5d7a"}
	secret := map[string]string{"Cookie": cookies["Cookie"], "Authorization": token, "Content-Type": "application/json"}
	list := []sample{
		{about: "a page; only the cookie visitor_id leaves, and the signature in the query does not",
			send: d.request("GET", "/articles/42?lang=en&sig=9f86d081884c", cookies, nil)},
		{about: "JSON with credentials, which do not leave",
			send: d.request("POST", "/api/comments", secret, []byte(`{"post":42,"text":"buy <b>cheap</b> pills"}`))},
		{about: "a form",
			send: d.request("POST", "/contact", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, []byte("name=Ada&message=Hello%2C+world"))},
		{about: "3000 bytes, of which maxBodySize lets 1 KiB through; the site gets them all",
			send: d.request("PUT", "/notes/1", map[string]string{"Content-Type": "text/plain"}, bytes.Repeat([]byte("All work and no play makes Jack a dull boy. "), 69)[:3000])},
		{about: "an image, which comes in base64",
			send: d.request("POST", "/avatar", map[string]string{"Content-Type": "image/png"}, append([]byte("\x89PNG\r\n\x1a\n"), bytes.Repeat([]byte{0, 0xff}, 150)...))},
		{about: "an event stream; its event is here before it ends", send: d.stream},
		{about: "a WebSocket, which works as ever", send: d.socket},
		{about: "a receiver that fails once: the plugin tries again with the same id", deliveries: 2,
			send: d.request("GET", "/flaky", nil, nil)},
	}
	d.screen.print("%s", d.screen.bold(fmt.Sprintf("%d requests to begin with", len(list))))
	for _, sample := range list {
		d.screen.print("\n%s", d.screen.dim("── "+sample.about))
		want, refusedBefore, _ := d.events.counts()
		want += max(sample.deliveries, 1)
		if err := sample.send(ctx); err != nil {
			return fmt.Errorf("%s: %w", sample.about, err)
		}
		d.sent++
		if err := d.wait(ctx, want, refusedBefore); err != nil {
			return fmt.Errorf("%s: %w", sample.about, err)
		}
	}
	waiting, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ledger, err := d.traefik.Settle(waiting, "mirror", int64(d.sent))
	if err != nil {
		return err
	}
	d.screen.print("\n%s", d.ledger(ledger))
	d.screen.print("\n%s", d.screen.dim("── and the receiver is told every few seconds what it ought to have"))
	return d.waitForReport(waiting, ledger.Delivered)
}

// waitForReport waits until the receiver was told of so many events.
func (d *demo) waitForReport(ctx context.Context, want int64) error {
	for {
		delivered, changed := d.events.reports()
		if delivered >= want {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no report of %d events arrived: %w", want, ctx.Err())
		}
	}
}

// wait waits until the receiver has got so many deliveries.
func (d *demo) wait(ctx context.Context, want, refusedBefore int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		deliveries, refused, changed := d.events.counts()
		if refused > refusedBefore {
			return errors.New("the receiver refused the event")
		}
		if deliveries >= want {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("no event arrived: %w", ctx.Err())
		}
	}
}

func (d *demo) request(method, target string, header map[string]string, body []byte) func(context.Context) error {
	return func(ctx context.Context) error {
		res, err := d.do(ctx, method, target, header, body)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		answer, err := io.ReadAll(res.Body)
		if err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK || !strings.HasSuffix(string(answer), fmt.Sprintf(" %d bytes.\n", len(body))) {
			return fmt.Errorf("the site answered %s: %s", res.Status, answer)
		}
		return nil
	}
}

func (d *demo) do(ctx context.Context, method, target string, header map[string]string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, d.site+target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "demo/1.0")
	for name, value := range header {
		req.Header.Set(name, value)
	}
	return http.DefaultClient.Do(req)
}

// stream reads an event stream to its end, and expects its event long before.
func (d *demo) stream(ctx context.Context) error {
	before, refused, _ := d.events.counts()
	res, err := d.do(ctx, "GET", "/stream", map[string]string{"Accept": "text/event-stream"}, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if err := d.wait(ctx, before+1, refused); err != nil {
		return err
	}
	answer, err := io.ReadAll(res.Body)
	if err == nil && strings.Count(string(answer), "data: tick") != 3 {
		err = fmt.Errorf("the stream was %q", answer)
	}
	return err
}

func (d *demo) socket(ctx context.Context) error {
	conn, _, err := websocket.Dial(ctx, d.site+"/socket", nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseNow() }()
	if err := conn.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		return err
	}
	_, answer, err := conn.Read(ctx)
	if err != nil {
		return err
	}
	if string(answer) != "hello" {
		return fmt.Errorf("the echo was %q", answer)
	}
	return conn.Close(websocket.StatusNormalClosure, "")
}

// ledger is the account of all requests in a line that adds up.
func (d *demo) ledger(l lab.Ledger) string {
	d.ledgers = l.String()
	s := d.screen
	line := fmt.Sprintf("%s seen %d = delivered %d", s.bold("ledger"), l.Seen, l.Delivered)
	for _, part := range []struct {
		name string
		n    int64
	}{{"filtered", l.Filtered}, {"sampled out", l.SampledOut}, {"waiting", l.Waiting}, {"in flight", l.InFlight}} {
		if part.n > 0 {
			line += fmt.Sprintf(" + %s %d", part.name, part.n)
		}
	}
	if lost := l.Lost(); lost > 0 {
		line += " + " + s.red(fmt.Sprintf("lost %d", lost)) + fmt.Sprintf(" (dropped: %s; failed: %s)", lab.Reasons(l.Dropped), lab.Reasons(l.Failed))
	} else {
		line += ", " + s.green("nothing lost")
	}
	return line + fmt.Sprintf("; retried %d", l.Retried)
}

func (d *demo) invite() {
	s := d.screen
	s.print(`
%s (in another terminal; Ctrl-C here ends the demo)

  curl %s/hello
  curl %s/api/comments --json '{"text":"hi"}' \
    -H 'Authorization: Bearer secret' -b 'visitor_id=me; session=secret'
  head -c 5000 /dev/urandom | curl %s/upload --data-binary @-
  curl -N %s/stream

A receiver that hangs costs the site nothing. Resumed within ten seconds, it gets
all; later, the ledger and the report have what was lost, and why:

  curl -X POST %s/pause
  curl -w '%%{time_total} s\n' %s/still-fast
  curl -X POST %s/resume

%s  %s

`,
		s.bold("Now you"), d.site, d.site, d.site, d.site, d.receiver, d.site, d.receiver,
		s.bold("All of it, live, in a browser:"), s.bold(d.inspector+"/"))
}

// watch prints the ledger when it has changed, until the end.
func (d *demo) watch(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.traefik.Exited():
			// Ctrl-C reaches Traefik, too, and may do so first.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(time.Second):
				return fmt.Errorf("traefik has ended by itself: %s", d.traefik.Log())
			}
		case <-tick.C:
			l, err := d.traefik.Ledger(ctx, "mirror")
			if err != nil || l.String() == d.ledgers {
				continue // the end is near, or there is nothing to tell
			}
			d.screen.print("%s\n", d.ledger(l))
		}
	}
}
