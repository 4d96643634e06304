package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

func TestBackendSeesTheWholeBodyAndTheEventItsBeginning(t *testing.T) {
	const limit = 1 << 10
	s := mirror(t, lab.Options{"maxBodySize": "1Ki"})
	for _, p := range protocols {
		for _, length := range []int{0, 1, limit - 1, limit, limit + 1, 10 * limit} {
			for _, framing := range []string{"sized", "chunked"} {
				t.Run(fmt.Sprintf("%s %s body of %d bytes, limit %d", p.name, framing, length, limit), func(t *testing.T) {
					sent := text(length)
					var body io.Reader = bytes.NewReader(sent)
					if framing == "chunked" {
						body = chunked(sent)
					}
					r, id := s.request(t, http.MethodPost, p.scheme, "/", body)
					r.Header.Set("Content-Type", "text/plain")
					a := s.send(t, r, http.StatusOK)
					if a.ProtoMajor != p.major {
						t.Errorf("protocol: got %s; want %s", a.Proto, p.name)
					}
					if got := a.report(t); got.Length != int64(length) || got.SHA256 != lab.Hash(sent) || got.ReadError != "" {
						t.Errorf("backend: got %d bytes, error %q; want the %d that were sent", got.Length, got.ReadError, length)
					}
					e := s.event(t, id)
					if length == 0 && e.Body == nil {
						return // a request without a body
					}
					want := event.Body{Content: sent, Text: true, Kept: true, Size: int64(length)}
					if length > limit {
						want.Content, want.Truncated, want.Reason = sent[:limit], true, "limit"
					}
					expectBody(t, e, want)
				})
			}
		}
	}
}

func expectBody(t *testing.T, e event.Event, want event.Body) {
	t.Helper()
	if e.Body == nil {
		t.Fatalf("event without body; want %d bytes", len(want.Content))
	}
	got := *e.Body
	if !bytes.Equal(got.Content, want.Content) {
		t.Errorf("body: got %d bytes %.60q…; want %d bytes %.60q…", len(got.Content), got.Content, len(want.Content), want.Content)
	}
	if got.Size != want.Size || got.Truncated != want.Truncated || got.Reason != want.Reason || got.Text != want.Text {
		t.Errorf("body: got size %d, truncated %t %q, as text %t; want %d, %t %q, %t",
			got.Size, got.Truncated, got.Reason, got.Text, want.Size, want.Truncated, want.Reason, want.Text)
	}
}

func TestBodiesThatAreNotPlainText(t *testing.T) {
	s := mirror(t, lab.Options{"maxBodySize": 1023})
	binary := bytes.Repeat([]byte{0xff, 0x00, 0xfe, '\n'}, 1000)
	twoBytes := []byte(strings.Repeat("é", 1000))
	for _, c := range []struct {
		name string
		sent []byte
		want event.Body
	}{
		{"a text is cut where a character ends", twoBytes,
			event.Body{Content: twoBytes[:1022], Text: true, Size: 2000, Truncated: true, Reason: "limit"}},
		{"a binary body is cut at the byte", binary,
			event.Body{Content: binary[:1023], Size: 4000, Truncated: true, Reason: "limit"}},
		{"a binary body comes back as it was", binary[:500],
			event.Body{Content: binary[:500], Size: 500}},
		{"markup and quotes are not escaped away", []byte(`<b>"&'</b>` + "\u2028\x00\x1f"),
			event.Body{Content: []byte(`<b>"&'</b>` + "\u2028\x00\x1f"), Text: true, Size: 15}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, id := s.request(t, http.MethodPut, "https", "/", bytes.NewReader(c.sent))
			if got := s.send(t, r, http.StatusOK).report(t); got.SHA256 != lab.Hash(c.sent) {
				t.Errorf("backend: got another body than was sent")
			}
			e := s.event(t, id)
			expectBody(t, e, c.want)
			if c.want.Text && utf8.Valid(c.sent) && bytes.ContainsAny(c.sent, "<") && !bytes.Contains(e.Raw, []byte("<b>")) {
				t.Errorf("event: HTML is escaped: %s", e.Raw)
			}
		})
	}
}

func TestBodiesThatAreNotWanted(t *testing.T) {
	sent := text(500)
	cases := []struct {
		name    string
		options lab.Options
		want    string
	}{
		{"mirrorBody is off", lab.Options{"mirrorBody": false}, "disabled"},
		{"the content type is not one of bodyContentTypes", lab.Options{"bodyContentTypes": []string{"application/*"}}, "content-type"},
		{"maxBodySize is 0", lab.Options{"maxBodySize": 0}, "limit"},
	}
	var options []lab.Options
	for _, c := range cases {
		options = append(options, c.options)
	}
	made := mirrors(t, shared, options...)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := made[i]
			r, id := s.request(t, http.MethodPost, "http", "/", bytes.NewReader(sent))
			r.Header.Set("Content-Type", "text/plain; charset=utf-8")
			if got := s.send(t, r, http.StatusOK).report(t); got.SHA256 != lab.Hash(sent) {
				t.Error("backend: got another body than was sent")
			}
			expectCut(t, s.event(t, id), c.want)
			if e := s.event(t, id); e.Body.Kept && len(e.Body.Content) > 0 {
				t.Errorf("body: got %d bytes; want none", len(e.Body.Content))
			}
		})
	}
}

func expectCut(t *testing.T, e event.Event, reason string) {
	t.Helper()
	if e.Body == nil || !e.Body.Truncated || e.Body.Reason != reason {
		t.Errorf("body: got %+v; want one truncated because of %q", e.Body, reason)
	}
}

func TestManyClientsAtOnceEachKeepTheirBody(t *testing.T) {
	const clients, each = 16, 25
	s := mirror(t, lab.Options{"maxBodySize": "64Ki", "queueSize": clients * each})
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		sent = map[string][]byte{}
	)
	for c := range clients {
		wg.Go(func() {
			for i := range each {
				body := fmt.Appendf(nil, "client %d request %d ", c, i)
				body = append(body, text(rand.IntN(100<<10))...)
				var from io.Reader = bytes.NewReader(body)
				if i%2 == 0 {
					from = chunked(body)
				}
				r, id := s.request(t, http.MethodPost, protocols[c%2].scheme, "/", from)
				a, err := s.do(r)
				if err != nil || a.StatusCode != http.StatusOK {
					t.Errorf("client %d request %d: got %v, %v; want 200", c, i, a.Response, err)
					continue
				}
				if got := a.report(t); got.SHA256 != lab.Hash(body) {
					t.Errorf("client %d request %d: the backend got another body, of %d bytes; want %d", c, i, got.Length, len(body))
				}
				mu.Lock()
				sent[id] = body
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if l := s.settle(t, clients*each); l.Delivered != clients*each {
		t.Errorf("ledger: got %s; want %d delivered", l, clients*each)
	}
	events := map[string]event.Event{}
	for _, a := range s.receiver.Attempts() {
		e := read(t, a)
		events[e.Header[strings.ToLower(lab.RequestHeader)][0]] = e
	}
	for id, body := range sent {
		e, ok := events[id]
		if !ok {
			t.Errorf("request %s has no event", id)
			continue
		}
		expectBody(t, e, cutAt(body, 64<<10))
	}
}

// cutAt is what an event has of a text under this maxBodySize.
func cutAt(sent []byte, limit int) event.Body {
	b := event.Body{Content: sent, Text: true, Size: int64(len(sent))}
	if len(sent) > limit {
		b.Content, b.Truncated, b.Reason = sent[:limit], true, "limit"
	}
	return b
}

func TestChunksReachTheBackendWhileTheUploadIsOpen(t *testing.T) {
	const limit = 100
	s := mirror(t, lab.Options{"maxBodySize": limit})
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			got := make(chan int)
			s.backend.Handle("pull-"+p.scheme, s.backend.Pull(1<<20, got))
			body, upload := io.Pipe()
			r, id := s.request(t, http.MethodPost, p.scheme, "/lab/pull-"+p.scheme, body)
			done := make(chan answer, 1)
			go func() {
				a, err := s.do(r)
				if err != nil {
					t.Errorf("upload: %v", err)
				}
				done <- a
			}()
			// Below the limit, over it, and beyond: none may be held back
			// until the next one comes.
			var sent []byte
			for _, size := range []int{10, 60, 60, 500, 5} {
				chunk := text(size)
				if _, err := upload.Write(chunk); err != nil {
					t.Fatal(err)
				}
				sent = append(sent, chunk...)
				for arrived := 0; arrived < size; {
					select {
					case n := <-got:
						arrived += n
					case <-soon(t).Done():
						t.Fatalf("a chunk of %d bytes: %d arrived before the next was sent; want all", size, arrived)
					}
				}
			}
			upload.Close()
			if report := (<-done).report(t); report.SHA256 != lab.Hash(sent) {
				t.Errorf("backend: got %d bytes, not those that were sent; want %d", report.Length, len(sent))
			}
			expectBody(t, s.event(t, id), cutAt(sent, limit))
		})
	}
}

func TestABackendThatReadsSlowlyGetsEverything(t *testing.T) {
	s := mirror(t, nil)
	got := make(chan int)
	s.backend.Handle("slow", s.backend.Pull(3000, got))
	sent := text(300_000)
	r, id := s.request(t, http.MethodPost, "http", "/lab/slow", bytes.NewReader(sent))
	go func() {
		for range got {
		}
	}()
	defer close(got)
	if report := s.send(t, r, http.StatusOK).report(t); report.SHA256 != lab.Hash(sent) {
		t.Errorf("backend: got %d bytes, not those that were sent; want %d", report.Length, len(sent))
	}
	expectBody(t, s.event(t, id), cutAt(sent, 1<<20))
}

func TestAnUploadThatIsAbortedIsAnErrorAtTheBackendAndInTheEvent(t *testing.T) {
	const announced, sent = 1 << 20, 256 << 10
	s := mirror(t, nil)
	part := text(sent)
	uploads := []struct {
		name string
		// start sends the first part of the body and returns how to give up.
		start func(t *testing.T, host, path, id string) (abort func())
	}{
		{"HTTP/1.1 sized", func(t *testing.T, host, path, id string) func() {
			conn := rawUpload(t, s, host, path, id, fmt.Sprintf("Content-Length: %d\r\n\r\n", announced), string(part))
			return func() { conn.Close() }
		}},
		{"HTTP/1.1 chunked", func(t *testing.T, host, path, id string) func() {
			conn := rawUpload(t, s, host, path, id, "Transfer-Encoding: chunked\r\n\r\n", fmt.Sprintf("%x\r\n%s\r\n", sent, part))
			return func() { conn.Close() }
		}},
		{"HTTP/2", func(t *testing.T, host, path, id string) func() {
			ctx, cancel := context.WithCancel(t.Context())
			body, upload := io.Pipe()
			r, _ := s.request(t, http.MethodPost, "https", path, body)
			r = to(r.WithContext(ctx), host)
			r.Header.Set(lab.RequestHeader, id)
			go func() {
				if a, err := s.do(r); err == nil {
					t.Errorf("an upload that was aborted is answered: %s", a.Status)
				}
			}()
			if _, err := upload.Write(part); err != nil {
				t.Fatal(err)
			}
			return cancel
		}},
	}
	for i, u := range uploads {
		t.Run(u.name, func(t *testing.T) {
			var failures [2]string
			for j, host := range []string{s.bare(), s.name} {
				id := fmt.Sprintf("abort-%d-%s", i, host)
				got := make(chan int)
				s.backend.Handle(id, s.backend.Pull(64<<10, got))
				abort := u.start(t, host, "/lab/"+id, id)
				// The tail may stay in a buffer of the proxy until more
				// comes, with or without the plugin.
				for arrived := 0; arrived < sent/2; {
					select {
					case n := <-got:
						arrived += n
					case <-soon(t).Done():
						t.Fatalf("backend: %d bytes arrived; want %d", arrived, sent/2)
					}
				}
				abort()
				go func() {
					for range got {
					}
				}()
				report, err := s.backend.WaitReport(soon(t), id)
				if err != nil {
					t.Fatal(err)
				}
				close(got)
				failures[j] = report.ReadError
			}
			if failures[1] == "" || failures[1] != failures[0] {
				t.Errorf("backend: reading ended with error %q; want %q, as without the plugin", failures[1], failures[0])
			}
			e := s.event(t, fmt.Sprintf("abort-%d-%s", i, s.name))
			expectCut(t, e, "aborted")
			if !bytes.HasPrefix(part, e.Body.Content) || len(e.Body.Content) < sent/2 || e.Body.Size != int64(len(e.Body.Content)) {
				t.Errorf("event: got %d bytes, size %d; want what was seen of the %d that were sent", len(e.Body.Content), e.Body.Size, sent)
			}
		})
	}
}

// rawUpload writes a request by hand, which net/http would not leave half-done.
// Reads from the connection end soon.
func rawUpload(t *testing.T, s *site, host, path, id, framing, body string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.world.traefik.Web())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	context.AfterFunc(soon(t), func() { conn.Close() })
	_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s.test\r\n%s: %s\r\n%s%s", path, host, lab.RequestHeader, id, framing, body)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestABackendThatAnswersWithoutReading(t *testing.T) {
	const announced, sent = 64 << 20, 1000
	s := mirror(t, nil)
	s.backend.Handle("early", s.backend.ReadSome(0, http.StatusRequestEntityTooLarge))
	// Go's proxy may keep an early answer back, with or without the plugin, when
	// an HTTP/1.1 client pauses; so this one sends as long as it is let.
	t.Run("HTTP/1.1", func(t *testing.T) {
		conn := rawUpload(t, s, s.name, "/lab/early", "early-1", fmt.Sprintf("Content-Length: %d\r\n\r\n", announced), "")
		go func() { _, _ = conn.Write(text(announced)) }()
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 413 ") {
			t.Errorf("answer: got %q, %v; want 413", line, err)
		}
		expectCut(t, s.event(t, "early-1"), "unread")
	})
	// And this one nothing more until it has the answer.
	t.Run("HTTP/2", func(t *testing.T) {
		body, upload := io.Pipe()
		defer upload.Close()
		r, id := s.request(t, http.MethodPost, "https", "/lab/early", body)
		r.ContentLength = announced
		go func() { _, _ = upload.Write(text(sent)) }()
		s.send(t, r, http.StatusRequestEntityTooLarge)
		expectCut(t, s.event(t, id), "unread")
	})
}

func TestMemoryIsBoundedAndEventsGoOutWithoutBody(t *testing.T) {
	const limit, size, n = 256 << 10, 60 << 10, 20
	s := mirror(t, lab.Options{"memoryLimit": "256Ki", "workers": 1})
	open := make(chan struct{})
	s.receiver.Become(lab.Gate(open))
	for range n {
		s.post(t, string(text(size)))
		if l := s.ledger(t); l.BytesHeld > limit {
			t.Errorf("bytes held: got %d; want at most %d", l.BytesHeld, limit)
		}
	}
	close(open)
	l := s.settle(t, n)
	if l.Delivered != n {
		t.Errorf("ledger: got %s; want %d delivered, as only bodies degrade", l, n)
	}
	if l.BytesHeld != 0 {
		t.Errorf("bytes held when all is delivered: got %d; want 0", l.BytesHeld)
	}
	var whole, cut int64
	for _, a := range s.receiver.Attempts() {
		e := read(t, a)
		if !e.Body.Truncated {
			whole++
			continue
		}
		cut++
		expectCut(t, e, "memory")
		if !bytes.HasPrefix(text(size), e.Body.Content) || e.Body.Size != size {
			t.Errorf("a body without room: got size %d; want %d and the beginning of what was sent", e.Body.Size, size)
		}
	}
	if whole < 1 || whole > limit/size || l.Truncated["memory"] != cut {
		t.Errorf("got %d whole and %d cut bodies, counted %s; want at most %d whole, and the others counted", whole, cut, lab.Reasons(l.Truncated), limit/size)
	}
}
