package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	maxReaders = 32                     // live streams
	rowsAtOnce = 250                    // in a message of a live stream
	breath     = 100 * time.Millisecond // between two messages with rows
	beat       = time.Second            // between two looks at gaps and counts
	slowest    = 2 * time.Minute        // for the download of everything

	maxDownloads = 4 // at once: each holds what there was when it began, though the journal drops it

	// The words of an event are shown by a page that can do nothing but that. The last two
	// make the browser refuse to make HTML of a text at all.
	policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; " +
		"base-uri 'none'; frame-ancestors 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

//go:embed page
var assets embed.FS

var mediaTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// settings is what a user may choose.
type settings struct {
	now      func() time.Time
	path     string
	hosts    []string
	webhooks []*webhook
	keep     int
	memory   int64
	slow     time.Duration // a browser that takes longer for one message has to connect anew
}

// web is the page, its stream and its API.
type web struct {
	settings
	journal   *journal
	readers   chan struct{} // has one of each live stream
	downloads chan struct{} // has one of each download under way
}

func newWeb(s settings, j *journal) *web {
	return &web{s, j, make(chan struct{}, maxReaders), make(chan struct{}, maxDownloads)}
}

// handler puts the intake and the pages under their paths.
func (p *web) handler() http.Handler {
	judge, err := newJudge()
	if err != nil {
		panic(err) // the schemas are a part of the program
	}
	pages := http.NewServeMux()
	pages.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { asset(w, "index.html") })
	pages.HandleFunc("GET /page/{name}", func(w http.ResponseWriter, req *http.Request) { asset(w, req.PathValue("name")) })
	pages.HandleFunc("GET /api/stream", p.stream)
	pages.HandleFunc("GET /api/events/{id}", p.event)
	pages.HandleFunc("GET /api/events.jsonl", p.download)
	pages.HandleFunc("POST /api/clear", p.clear)

	mux := http.NewServeMux()
	mux.Handle("POST "+p.path, &intake{now: p.now, webhooks: p.webhooks, judge: judge, journal: p.journal, room: make(chan struct{}, atOnce)})
	mux.HandleFunc("OPTIONS "+p.path, consent)
	mux.Handle("/", p.guard(pages))
	return mux
}

// guard lets nobody but the page itself, and who types an address, to what came.
func (p *web) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		// Another site can have its own name lead here. But it cannot make the browser send
		// an address as Host.
		if !p.hostAllowed(req.Host) {
			http.Error(w, "this host name is not one of -hosts", http.StatusMisdirectedRequest)
			return
		}
		site := req.Header.Get("Sec-Fetch-Site")
		switch {
		case req.Method == http.MethodPost:
			if site != "same-origin" && (site != "" || !sameOrigin(req)) {
				http.Error(w, "not from this page: neither Sec-Fetch-Site nor Origin says so", http.StatusForbidden)
				return
			}
		case strings.HasPrefix(req.URL.Path, "/api/") && (site == "cross-site" || site == "same-site"):
			http.Error(w, "not from this page", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, req)
	})
}

func (p *web) hostAllowed(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if _, err := netip.ParseAddr(name); err == nil {
		return true
	}
	return name == "localhost" || strings.HasSuffix(name, ".localhost") ||
		slices.ContainsFunc(p.hosts, func(allowed string) bool { return strings.EqualFold(allowed, name) })
}

func sameOrigin(req *http.Request) bool {
	_, host, _ := strings.Cut(req.Header.Get("Origin"), "://")
	return host != "" && strings.EqualFold(host, req.Host)
}

func asset(w http.ResponseWriter, name string) {
	content, err := fs.ReadFile(assets, "page/"+name)
	if err != nil {
		http.Error(w, "there is no such file", http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", mediaTypes[path.Ext(name)])
	_, _ = w.Write(content)
}

// event answers with one event, and what is known of it.
func (p *web) event(w http.ResponseWriter, req *http.Request) {
	found, repeats, ok := p.journal.find(req.PathValue("id"))
	if !ok {
		http.Error(w, "this event is not kept, or not any more", http.StatusNotFound)
		return
	}
	answer, err := json.Marshal(map[string]any{
		"n": found.n, "delivery": found.delivery, "repeats": repeats, "problems": append([]string{}, found.problems...),
		"event": json.RawMessage(found.raw),
	})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer)
}

// download answers with all events as lines of JSON, which the checker reads, too.
func (p *web) download(w http.ResponseWriter, _ *http.Request) {
	select {
	case p.downloads <- struct{}{}:
		defer func() { <-p.downloads }()
	default:
		w.Header().Set("Retry-After", "10")
		http.Error(w, "too many downloads are under way", http.StatusServiceUnavailable)
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(slowest))
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set("Content-Disposition", fmt.Sprintf(`attachment; filename="events-%s.jsonl"`, p.now().UTC().Format("20060102T150405Z")))
	for _, line := range p.journal.all() {
		if _, err := w.Write(append(line[:len(line):len(line)], '\n')); err != nil {
			return
		}
	}
}

func (p *web) clear(w http.ResponseWriter, _ *http.Request) {
	p.journal.clear(p.now())
	w.WriteHeader(http.StatusNoContent)
}

// stream is the live stream: server-sent events, of which those with rows have an id by
// which a browser that was cut off goes on.
func (p *web) stream(w http.ResponseWriter, req *http.Request) {
	select {
	case p.readers <- struct{}{}:
		defer func() { <-p.readers }()
	default:
		http.Error(w, "too many pages are open", http.StatusServiceUnavailable)
		return
	}
	s := &subscriber{w: w, control: http.NewResponseController(w), page: p, at: placeOf(req)}
	// The server's limit for reading a request would end the stream, too.
	if err := s.control.SetReadDeadline(time.Time{}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // for who has nginx before it
	s.run(req.Context())
}

// placeOf is what a browser had, by the header when it connects again by itself, or by
// the query when the page does.
func placeOf(req *http.Request) (p place) {
	id := req.Header.Get("Last-Event-ID")
	if id == "" {
		id = req.URL.Query().Get("after")
	}
	epoch, number, _ := strings.Cut(id, "-")
	if n, err := strconv.ParseUint(number, 10, 63); err == nil {
		p = place{epoch, n}
	}
	return p
}

// subscriber writes to one browser what it does not have yet. It holds nothing but a
// place in the journal.
type subscriber struct {
	w       http.ResponseWriter
	control *http.ResponseController
	page    *web
	at      place
	told    int64  // second up to which the counts were told
	gaps    []byte // as they were told
}

func (s *subscriber) run(ctx context.Context) {
	hello, _ := json.Marshal(map[string]any{"keep": s.page.keep, "memory": s.page.memory, "path": s.page.path, "secrets": len(s.page.webhooks)})
	if s.send("hello", "", hello) != nil {
		return
	}
	beats := time.NewTicker(beat)
	defer beats.Stop()
	for first := true; ; first = false {
		rows, next, anew, changed := s.page.journal.since(s.at, rowsAtOnce)
		if anew {
			if s.send("reset", "", []byte(strconv.Quote(next.epoch))) != nil {
				return
			}
			s.told, s.gaps = 0, nil
		}
		if (anew || first) && s.tell() != nil {
			return
		}
		s.at = next
		if len(rows) > 0 {
			data := slices.Concat([]byte("["), bytes.Join(rows, []byte(",")), []byte("]"))
			if s.send("rows", fmt.Sprintf("%s-%d", s.at.epoch, s.at.n), data) != nil {
				return
			}
		}
		// With few rows, more may come at once: not a message for each of them.
		pause := changed
		var timer <-chan time.Time
		if len(rows) == rowsAtOnce {
			timer = time.After(0)
		} else if len(rows) > 0 {
			timer, pause = time.After(breath), nil
		}
		select {
		case <-ctx.Done():
			return
		case <-pause:
		case <-timer:
		case <-beats.C:
			if s.tell() != nil {
				return
			}
		}
	}
}

// tell writes what happened in the seconds that are over, and the gaps if they changed.
func (s *subscriber) tell() error {
	gaps, counts, kept := s.page.journal.state(s.page.now(), s.told)
	s.told = counts.Now / 1000
	data, err := json.Marshal(struct {
		pulseList
		bounds
		Missing uint64 `json:"missing"`
		Open    uint64 `json:"open"`
	}{counts, kept, gaps.Missing, gaps.Open})
	if err != nil {
		return err
	}
	if err := s.send("pulse", "", data); err != nil {
		return err
	}
	list, err := json.Marshal(gaps)
	if err != nil || bytes.Equal(list, s.gaps) {
		return err
	}
	s.gaps = list
	return s.send("gaps", "", list)
}

// send writes a message. Whoever does not take it in time is cut off, and goes on from
// the last id, or anew, when it is back.
func (s *subscriber) send(name, id string, data []byte) error {
	if err := s.control.SetWriteDeadline(time.Now().Add(s.page.slow)); err != nil {
		return err
	}
	if id != "" {
		id = "id: " + id + "\n"
	}
	if _, err := fmt.Fprintf(s.w, "%sevent: %s\ndata: %s\n\n", id, name, data); err != nil {
		return err
	}
	return s.control.Flush()
}
