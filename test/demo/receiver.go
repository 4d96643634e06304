package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/opencommit/requestmirror/test/event"
)

// receiver is what a user of the plugin writes: it checks the signature, reads the
// event, ignores what it has seen, and answers 204.
type receiver struct {
	screen *screen
	secret string
	mux    *http.ServeMux

	mu         sync.Mutex
	seen       map[string]bool // ids
	deliveries int
	reported   int64 // events that the last report says were delivered
	repeated   int
	refused    int
	closed     chan struct{} // not nil while paused; closed by resume
	changed    chan struct{} // closed and replaced at each delivery, of reports, too
}

func newReceiver(s *screen, secret string) *receiver {
	r := &receiver{screen: s, secret: secret, mux: http.NewServeMux(), seen: map[string]bool{}, changed: make(chan struct{})}
	r.mux.HandleFunc("POST /events", r.receive)
	r.mux.HandleFunc("POST /pause", r.pause)
	r.mux.HandleFunc("POST /resume", r.resume)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) { r.mux.ServeHTTP(w, req) }

func (r *receiver) receive(w http.ResponseWriter, req *http.Request) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, req.Body, 1<<20))
	if err != nil {
		http.Error(w, "cannot read the body", http.StatusBadRequest)
		return
	}
	// After the body, as the server does not notice a sender that hangs up before.
	if !r.wait(req) {
		return // the delivery was given up and comes again
	}
	arrived := time.Now()
	// The signature first: what is not from the plugin is not even parsed.
	if err := event.Verify(r.secret, req.Header, raw); err != nil {
		r.refuse(w, http.StatusUnauthorized, "signature", err)
		return
	}
	b, err := event.ReadDelivery(req.Header, raw)
	if err != nil {
		r.refuse(w, http.StatusBadRequest, "event", err)
		return
	}
	status := http.StatusNoContent
	for _, e := range b.Events {
		status = r.take(e, arrived)
	}
	for _, report := range b.Reports {
		r.takeReport(report)
	}
	w.WriteHeader(status)
}

func (r *receiver) refuse(w http.ResponseWriter, status int, what string, err error) {
	r.mu.Lock()
	r.refused++
	r.announce()
	r.mu.Unlock()
	r.screen.print("%s %s: %v", r.screen.red("refused"), what, err)
	http.Error(w, what+" refused", status)
}

// take notes the event, prints it if it is new, and says what to answer.
func (r *receiver) take(e event.Event, arrived time.Time) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.announce()
	r.deliveries++
	if r.seen[e.ID] {
		r.repeated++
		r.screen.print("   %s id %s is known: the retry is not processed twice", r.screen.green("✓"), e.ID)
		return http.StatusNoContent
	}
	r.seen[e.ID] = true
	r.screen.print("%s", r.screen.event(len(r.seen), e, arrived))
	if e.Path == "/flaky" {
		r.screen.print("   %s answered 503 to this one, although it was processed", r.screen.yellow("!"))
		return http.StatusServiceUnavailable
	}
	return http.StatusNoContent
}

// takeReport compares what came with what the plugin says that came.
func (r *receiver) takeReport(p event.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer r.announce()
	r.reported = p.Delivered
	var lost int64
	var reasons []string
	for _, counts := range []map[string]int64{p.Dropped, p.Failed} {
		for reason, n := range counts {
			lost += n
			reasons = append(reasons, fmt.Sprintf("%d %s", n, reason))
		}
	}
	slices.Sort(reasons)
	said := fmt.Sprintf("the plugin says: %d delivered, %d under way, ", p.Delivered, p.Waiting+p.InFlight)
	if lost == 0 {
		said += "none lost"
	} else {
		said += r.screen.red(fmt.Sprintf("%d lost", lost)) + " (" + strings.Join(reasons, ", ") + ")"
	}
	here := r.screen.green(fmt.Sprintf("✓ %d are here", len(r.seen)))
	if int64(len(r.seen)) < p.Delivered {
		here = r.screen.red(fmt.Sprintf("only %d are here", len(r.seen)))
	}
	r.screen.print("%s %s; %s\n", r.screen.bold("report"), said, here)
}

// reports is how many events the last report says were delivered.
func (r *receiver) reports() (delivered int64, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.reported, r.changed
}

// announce wakes who waits for deliveries. The receiver is locked.
func (r *receiver) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// counts are deliveries with a good signature, and other ones.
func (r *receiver) counts() (deliveries, refused int, changed <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.deliveries, r.refused, r.changed
}

func (r *receiver) summary() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("The receiver got %d events in %d deliveries; it refused %d.", len(r.seen), r.deliveries, r.refused)
}

func (r *receiver) pause(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed == nil {
		r.closed = make(chan struct{})
	}
	r.screen.print("%s The receiver accepts and does not answer, until POST /resume.", r.screen.yellow("paused"))
	_, _ = fmt.Fprintln(w, "Paused. The site goes on as before; try it.")
}

func (r *receiver) resume(w http.ResponseWriter, _ *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed != nil {
		close(r.closed)
		r.closed = nil
	}
	r.screen.print("%s What waits is delivered now.", r.screen.green("resumed"))
	_, _ = fmt.Fprintln(w, "Resumed.")
}

// wait waits while the receiver is paused; false means that the sender has gone.
func (r *receiver) wait(req *http.Request) bool {
	r.mu.Lock()
	closed := r.closed
	r.mu.Unlock()
	if closed == nil {
		return true
	}
	select {
	case <-closed:
		return true
	case <-req.Context().Done():
		return false
	}
}

// screen prints whole blocks of text, from any goroutine.
type screen struct {
	out     io.Writer
	colours bool
	mu      sync.Mutex
}

func (s *screen) print(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = fmt.Fprintf(s.out, format+"\n", args...)
}

func (s *screen) colour(code, text string) string {
	if !s.colours {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

func (s *screen) bold(text string) string   { return s.colour("1", text) }
func (s *screen) dim(text string) string    { return s.colour("2", text) }
func (s *screen) red(text string) string    { return s.colour("31", text) }
func (s *screen) green(text string) string  { return s.colour("32", text) }
func (s *screen) yellow(text string) string { return s.colour("33", text) }

// event is what the terminal shows of an event.
func (s *screen) event(n int, e event.Event, arrived time.Time) string {
	target := e.Path
	if e.Query != "" {
		target += "?" + e.Query
	}
	lines := []string{fmt.Sprintf("%s %s  %s %s  %s after the request",
		s.dim(fmt.Sprintf("#%d %s", n, e.Time.Local().Format("15:04:05.000"))), s.bold(e.Method+" "+shorten(target, 60)),
		s.green("✓ signature"), s.green("✓ schema"), latency(arrived.Sub(e.Time)))}
	add := func(name, value string) {
		if value != "" {
			lines = append(lines, fmt.Sprintf("   %s %s", s.dim(fmt.Sprintf("%-8s", name)), value))
		}
	}
	from := e.Client
	if e.UserAgent != "" {
		from += ", " + shorten(e.UserAgent, 50)
	}
	add("client", from+s.dim(" over "+e.Scheme+"/"+e.Proto))
	add("cookies", pairs(e.Cookie))
	add("redacted", redacted(e.Header))
	if b := e.Body; b != nil {
		about := fmt.Sprintf("%d bytes", b.Size)
		if t := e.Header["content-type"]; len(t) > 0 {
			about += " of " + t[0]
		}
		if b.Truncated {
			about += ", " + s.yellow(fmt.Sprintf("truncated to %d: %s", len(b.Content), b.Reason))
		}
		add("body", about)
		add("", preview(b))
	}
	return strings.Join(lines, "\n")
}

// preview is the beginning of a body, on one line.
func preview(b *event.Body) string {
	const width = 72
	if !b.Text {
		n := min(len(b.Content), 12)
		text := fmt.Sprintf("base64 of % x", b.Content[:n])
		if n < len(b.Content) {
			text += " …"
		}
		return text
	}
	text := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '·' // what is not to reach a terminal
		}
		return r
	}, string(b.Content))
	return shorten(text, width)
}

func redacted(header map[string][]string) string {
	var names []string
	for name, values := range header {
		if slices.Contains(values, "REDACTED") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

func pairs(cookies map[string][]string) string {
	var list []string
	for name, values := range cookies {
		for _, value := range values {
			list = append(list, name+"="+shorten(value, 30))
		}
	}
	slices.Sort(list)
	return strings.Join(list, "; ")
}

func shorten(text string, width int) string {
	runes := []rune(text)
	if len(runes) <= width {
		return text
	}
	return string(runes[:width-1]) + "…"
}

func latency(d time.Duration) string {
	if d < 10*time.Millisecond {
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	}
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}
