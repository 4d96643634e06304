//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Every status that an answer may have, and what it must mean.
func verdictOf(status int) (reason string, retried bool) {
	switch {
	case status < 300:
		return "", false
	case status == 408, status == 425, status == 429:
		return reasonRejected, true
	case status == 410:
		return reasonGone, false
	case status == 413:
		return reasonTooLarge, false
	case status >= 500:
		return reasonServerError, true
	default:
		return reasonRejected, false
	}
}

func TestVerdictOfEveryStatus(t *testing.T) {
	logged(func() {
		for status := 200; status <= 599; status++ {
			onStage(t, opts{"retry.attempts": 2}, []reply{{status: status}}, func(t *testing.T, s *stage) {
				s.send(1)
				s.wait(time.Minute)
				reason, retried := verdictOf(status)
				want := map[string]uint64{"delivered": 1}
				if reason != "" {
					want = map[string]uint64{"failed " + reason: 1}
				}
				attempts := 1
				if retried {
					want["retried"] = 1
					attempts = 2
				}
				s.is(want)
				if got := len(s.times()); got != attempts {
					t.Errorf("status %d: got %d attempts; want %d", status, got, attempts)
				}
			})
		}
	})
}

// rawReceiver answers by hand, on connections that are counted.
type rawReceiver struct {
	t      *testing.T
	url    string
	mu     sync.Mutex
	opened int
	closed int
	heads  []string // of the requests, as they were on the wire
	bodies []string
	open   map[net.Conn]bool
	done   sync.WaitGroup
}

// newRawReceiver serves each connection with a function that gets the number of the
// connection and of the request on it, and writes the answer; false ends the connection.
func newRawReceiver(t *testing.T, serve func(conn net.Conn, number, request int) bool) *rawReceiver {
	r := &rawReceiver{t: t, open: map[net.Conn]bool{}}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.url = "http://" + listener.Addr().String()
	r.done.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			r.mu.Lock()
			r.opened++
			number := r.opened
			r.open[conn] = true
			r.mu.Unlock()
			r.done.Go(func() { r.serve(conn, number, serve) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		r.mu.Lock()
		for conn := range r.open {
			_ = conn.Close()
		}
		r.mu.Unlock()
		r.done.Wait()
	})
	return r
}

func (r *rawReceiver) serve(conn net.Conn, number int, serve func(conn net.Conn, number, request int) bool) {
	defer func() {
		_ = conn.Close()
		r.mu.Lock()
		r.closed++
		delete(r.open, conn)
		r.mu.Unlock()
	}()
	reader := bufio.NewReader(conn)
	for request := 1; ; request++ {
		head := ""
		length := 0
		for {
			line, err := reader.ReadString('\n')
			if err != nil {
				return
			}
			if name, value, _ := strings.Cut(line, ":"); strings.EqualFold(name, "Content-Length") {
				length, _ = strconv.Atoi(strings.TrimSpace(value))
			}
			head += line
			if line == "\r\n" {
				break
			}
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(reader, body); err != nil {
			return
		}
		r.mu.Lock()
		r.heads = append(r.heads, head)
		r.bodies = append(r.bodies, string(body))
		r.mu.Unlock()
		if !serve(conn, number, request) {
			return
		}
	}
}

func (r *rawReceiver) connections() (opened, closed int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.opened, r.closed
}

func noContent(conn net.Conn, _, _ int) bool {
	_, err := io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	return err == nil
}

func TestRequestOnTheWire(t *testing.T) {
	first, second := strings.Repeat("f", 24), strings.Repeat("s", 32)
	rec := newRawReceiver(t, noContent)
	handler := mirrorOf(t, answer(""), opts{
		"watchURL":       strings.Replace(rec.url, "://", "://user:pass@", 1) + "/in%2Fbox?a=%20b#fragment",
		"signingSecrets": []string{secretOf(first), secretOf(second)}, "customRequestHeaders": map[string]string{"X-Tenant": "a"},
	})
	req := send("/watched", "body")
	req.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	serve(handler, req)
	waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == 1 })
	lines := strings.Split(strings.TrimSpace(rec.heads[0]), "\r\n")
	if want := "POST /in%2Fbox?a=%20b HTTP/1.1"; lines[0] != want {
		t.Errorf("got %q; want %q", lines[0], want)
	}
	header := map[string]string{}
	names := []string{}
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ": ")
		header[name] = value
		names = append(names, name)
	}
	slices.Sort(names)
	want := []string{"Authorization", "Content-Length", "Content-Type", "Host", markerHeader, "Traceparent", "User-Agent", "Webhook-Id", "Webhook-Signature", "Webhook-Timestamp", "X-Tenant"}
	if !slices.Equal(names, want) {
		t.Errorf("got header %v; want %v", names, want)
	}
	e := eventOf(t, []byte(rec.bodies[0]))
	host, _ := url.Parse(rec.url)
	for name, want := range map[string]string{
		"Authorization": "Basic dXNlcjpwYXNz", "Host": host.Host, "Traceparent": e.Traceparent, "Webhook-Id": e.ID,
		"Content-Length": strconv.Itoa(len(rec.bodies[0])), "Content-Type": "application/cloudevents+json; charset=utf-8", "X-Tenant": "a",
	} {
		if header[name] != want {
			t.Errorf("%s: got %q; want %q", name, header[name], want)
		}
	}
	seconds, err := strconv.ParseInt(header["Webhook-Timestamp"], 10, 64)
	if age := time.Since(time.Unix(seconds, 0)); err != nil || age > time.Minute || age < -time.Minute {
		t.Errorf("got webhook-timestamp %q; want now", header["Webhook-Timestamp"])
	}
	signatures := strings.Split(header["Webhook-Signature"], " ")
	for i, key := range []string{first, second} {
		mac := hmac.New(sha256.New, []byte(key))
		_, _ = io.WriteString(mac, e.ID+"."+header["Webhook-Timestamp"]+"."+rec.bodies[0])
		if want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil)); len(signatures) != 2 || signatures[i] != want {
			t.Errorf("got webhook-signature %q; want %q as number %d", header["Webhook-Signature"], want, i+1)
		}
	}
}

func TestTimestampIsTheAttempts(t *testing.T) {
	// In virtual time; what the receiver is sent is looked at in the stage.
	onStage(t, nil, []reply{{status: 503, after: "3"}, {status: 204}}, func(t *testing.T, s *stage) {
		var stamps, ids []string
		s.inspect = func(req *http.Request) {
			stamps = append(stamps, req.Header.Get("Webhook-Timestamp"))
			ids = append(ids, req.Header.Get("Webhook-Id"))
			body, err := req.GetBody()
			if err != nil {
				t.Fatal(err)
			}
			again, _ := io.ReadAll(body)
			if int64(len(again)) != req.ContentLength || eventOf(t, again).ID != ids[0] {
				t.Error("got another body from GetBody; want the same, so that the transport can send it again")
			}
		}
		s.send(1)
		s.wait(time.Minute)
		if want := []string{"946684800", "946684803"}; !slices.Equal(stamps, want) || ids[0] != ids[1] {
			t.Errorf("got timestamps %v, ids %v; want %v, and one id", stamps, ids, want)
		}
	})
}

func TestRedirectsAndCookiesAreNotFollowed(t *testing.T) {
	other := newReceiver(t)
	rec := newRawReceiver(t, func(conn net.Conn, _, _ int) bool {
		_, err := io.WriteString(conn, "HTTP/1.1 307 Temporary Redirect\r\nLocation: "+other.url+"\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
		return err == nil
	})
	logged(func() {
		handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url})
		for i := range uint64(2) {
			serve(handler, get("/"))
			waitFor(t, "the failure", func() bool { return tallyOf(t).Failed[reasonRejected] == i+1 })
		}
		dissolveAfterLog(t)
	})
	if other.count() != 0 || len(rec.heads) != 2 || strings.Contains(rec.heads[1], "Cookie") {
		t.Errorf("got %d deliveries elsewhere, %q; want each event once, without a cookie", other.count(), rec.heads)
	}
}

func TestProxyOfTheEnvironmentIsNotUsed(t *testing.T) {
	proxy := newReceiver(t)
	t.Setenv("HTTP_PROXY", proxy.url)
	t.Setenv("http_proxy", proxy.url)
	if set := settingsOf(t, nil); newTransport(set).Proxy != nil {
		t.Error("got a proxy; want none")
	}
}

func TestConnectionsAreReusedAndClosedWhenThePipelineIsGone(t *testing.T) {
	rec := newRawReceiver(t, func(conn net.Conn, _, _ int) bool {
		_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		return err == nil
	})
	t.Run("router", func(t *testing.T) {
		handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "workers": 2})
		for i := range uint64(50) {
			serve(handler, get("/"))
			waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == i+1 })
		}
		if opened, _ := rec.connections(); opened > 2 {
			t.Errorf("got %d connections for 50 events; want no more than workers, 2", opened)
		}
	})
	waitFor(t, "connections to be closed", func() bool {
		opened, closed := rec.connections()
		return opened == closed
	})
}

func TestAnswersThatAreTooMuch(t *testing.T) {
	for _, c := range []struct {
		name, head string
		attempts   int
		want       string
	}{
		{"an endless body after a success is a success", "HTTP/1.1 200 OK\r\n\r\n", 1, ""},
		{"an endless chunked body, too", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", 1, ""},
		{"an endless body after a refusal is a refusal", "HTTP/1.1 400 Bad Request\r\nContent-Length: 999999999999\r\n\r\n", 1, reasonRejected},
		{"an endless header is an error", "HTTP/1.1 200 OK\r\nA: ", 1, reasonNetwork},
		{"what is no HTTP is an error", "SSH-2.0-OpenSSH_9.9\r\n", 1, reasonNetwork},
	} {
		t.Run(c.name, func(t *testing.T) {
			sent := make(chan int, 10)
			rec := newRawReceiver(t, func(conn net.Conn, _, _ int) bool {
				n, err := io.WriteString(conn, c.head)
				for filler := strings.Repeat("a", 16<<10); err == nil; {
					var more int
					more, err = io.WriteString(conn, filler)
					n += more
				}
				sent <- n
				return false
			})
			logged(func() {
				handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "retry.attempts": c.attempts, "timeout": "10s"})
				serve(handler, get("/"))
				waitFor(t, "the outcome", func() bool { n := tallyOf(t); return n.Delivered+sum(n.Failed) == 1 })
				if n := tallyOf(t); n.Failed[c.want] != 1 && c.want != "" || c.want == "" && n.Delivered != 1 {
					t.Errorf("got %+v; want %q", n, c.want)
				}
				dissolveAfterLog(t)
			})
			// What the sockets' buffers take comes on top of the 64 KiB; far from endless it is.
			if n := <-sent; n > 32<<20 {
				t.Errorf("got rid of %d bytes; want the connection closed after 64 KiB", n)
			}
		})
	}
}

func TestAnswerIsReadUpTo64KiB(t *testing.T) {
	body := &countingBody{}
	drain(&http.Response{Body: body})
	if body.read != 64<<10 || !body.closed {
		t.Errorf("got %d bytes read, closed %v; want 65536, true", body.read, body.closed)
	}
}

type countingBody struct {
	read   int
	closed bool
}

func (b *countingBody) Read(p []byte) (int, error) { b.read += len(p); return len(p), nil }
func (b *countingBody) Close() error               { b.closed = true; return nil }

func TestSwitchedProtocolsLeakNoConnection(t *testing.T) {
	const events = 5
	rec := newRawReceiver(t, func(conn net.Conn, _, _ int) bool {
		if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"); err != nil {
			return false
		}
		_, _ = io.Copy(io.Discard, conn) // until the plugin lets go
		return false
	})
	logged(func() {
		handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "workers": 1})
		for i := range uint64(events) {
			serve(handler, get("/"))
			waitFor(t, "the failure", func() bool { return tallyOf(t).Failed[reasonRejected] == i+1 })
		}
		dissolveAfterLog(t)
	})
	waitFor(t, "connections to be closed", func() bool {
		opened, closed := rec.connections()
		return opened == events && closed == events
	})
}

func TestConnectionThatTheReceiverClosedIsNoLoss(t *testing.T) {
	t.Run("between two events", func(t *testing.T) {
		rec := newRawReceiver(t, func(conn net.Conn, _, _ int) bool {
			noContent(conn, 0, 0)
			return false // keep-alive was promised
		})
		handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "workers": 1})
		for i := range uint64(30) {
			serve(handler, get("/"))
			waitFor(t, "the delivery", func() bool { return tallyOf(t).Delivered == i+1 })
		}
		ids := map[string]bool{}
		for _, body := range rec.bodies {
			ids[eventOf(t, []byte(body)).ID] = true
		}
		if len(ids) != 30 {
			t.Errorf("got %d events; want 30", len(ids))
		}
	})
	t.Run("when it had read the second", func(t *testing.T) {
		rec := newRawReceiver(t, func(conn net.Conn, number, request int) bool {
			return !(number == 1 && request == 2) && noContent(conn, 0, 0)
		})
		handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "workers": 1, "retry.initialInterval": "1ms"})
		serve(handler, get("/1"))
		waitFor(t, "the first delivery", func() bool { return tallyOf(t).Delivered == 1 })
		serve(handler, get("/2"))
		waitFor(t, "the second delivery", func() bool { return tallyOf(t).Delivered == 2 })
		second, third := eventOf(t, []byte(rec.bodies[1])), eventOf(t, []byte(rec.bodies[2]))
		if second.ID != third.ID || second.Data.URL.Path != "/2" {
			t.Errorf("got events %s and %s; want the same one again", second.ID, third.ID)
		}
	})
}

func TestTLS(t *testing.T) {
	for _, c := range []struct {
		name    string
		options func(ca string) opts
		want    string
		http2   bool
	}{
		{name: "a certificate of an unknown authority", options: func(string) opts { return nil }, want: reasonNetwork},
		{name: "one of our authority", options: func(ca string) opts { return opts{"tls.ca": ca} }},
		{name: "one for another name", options: func(ca string) opts { return opts{"tls.ca": ca, "tls.serverName": "other.test"} }, want: reasonNetwork},
		{name: "one for the name we say", options: func(ca string) opts { return opts{"tls.ca": ca, "tls.serverName": "example.com"} }},
		{name: "not verified", options: func(string) opts { return opts{"tls.insecureSkipVerify": "true"} }},
		{name: "HTTP/2 where it is offered", options: func(ca string) opts { return opts{"tls.ca": ca} }, http2: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			protocols := make(chan string, 10)
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) { protocols <- req.Proto }))
			server.EnableHTTP2 = c.http2
			server.Config.ErrorLog = quiet()
			server.StartTLS()
			t.Cleanup(server.Close)
			options := opts{}
			for name, value := range c.options(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))) {
				options[name] = value
			}
			options["watchURL"] = server.URL
			options["retry.attempts"] = 1
			logged(func() {
				handler := mirrorOf(t, answer(""), options)
				serve(handler, get("/"))
				waitFor(t, "the outcome", func() bool { n := tallyOf(t); return n.Delivered+sum(n.Failed) == 1 })
				if n := tallyOf(t); c.want != "" && n.Failed[c.want] != 1 || c.want == "" && n.Delivered != 1 {
					t.Errorf("got %+v; want %q", n, c.want)
				}
				dissolveAfterLog(t)
			})
			if c.want == "" {
				if got := <-protocols; (got == "HTTP/2.0") != c.http2 {
					t.Errorf("got %s; want HTTP/2 %v", got, c.http2)
				}
			}
		})
	}
}

func TestSlowAnswersEndWithTheTimeout(t *testing.T) {
	// Over a pipe, so that time is virtual while everything else is the transport's.
	for name, head := range map[string]string{"no answer": "", "half a header": "HTTP/1.1 200 OK\r\nA: b", "half a body": "HTTP/1.1 500 No\r\nContent-Length: 10\r\n\r\nabc"} {
		synctest.Test(t, func(t *testing.T) {
			logged(func() {
				ctx, cancel := context.WithCancel(context.Background())
				handler, err := New(ctx, answer(""), configOf(opts{"retry.attempts": 1, "timeout": "3s", "reportInterval": 0}), t.Name())
				if err != nil {
					t.Fatal(err)
				}
				p := handler.(*Mirror).pipe
				p.sender.transport.(*http.Transport).DialContext = func(context.Context, string, string) (net.Conn, error) {
					ours, theirs := net.Pipe()
					go func() {
						_, _ = http.ReadRequest(bufio.NewReader(theirs))
						_, _ = io.WriteString(theirs, head)
						_, _ = io.Copy(io.Discard, theirs)
						_ = theirs.Close()
					}()
					return ours, nil
				}
				serve(handler, get("/"))
				time.Sleep(3*time.Second - 1)
				synctest.Wait()
				if n := tallyIn(t, p); n.InFlight != 1 {
					t.Errorf("%s: got %+v before the timeout; want 1 in flight", name, n)
				}
				time.Sleep(time.Nanosecond)
				synctest.Wait()
				if n := tallyIn(t, p); n.InFlight != 0 || sum(n.Failed) != 1 {
					t.Errorf("%s: got %+v at the timeout; want one failed", name, n)
				}
				cancel()
				time.Sleep(gracePeriod)
				synctest.Wait()
			})
		})
	}
}

func TestUserinfoIsNotPartOfTheURL(t *testing.T) {
	set := settingsOf(t, opts{"watchURL": "https://us%65r:p%40ss@receiver.test/a?b#c"})
	s := newSender(set, set.targets[0])
	if s.url != "https://receiver.test/a?b" {
		t.Errorf("got URL %q; want no userinfo in it", s.url)
	}
	if got, want := s.header.Get("Authorization"), "Basic "+base64.StdEncoding.EncodeToString([]byte("user:p@ss")); got != want {
		t.Errorf("got %q; want %q", got, want)
	}
	set = settingsOf(t, opts{"watchURL": "https://user@receiver.test", "customRequestHeaders": map[string]string{"authorization": "Bearer x"}})
	if got := newSender(set, set.targets[0]).header.Get("Authorization"); got != "Bearer x" {
		t.Errorf("got %q; want the header that was written", got)
	}
	if strings.Contains(fmt.Sprint(set.targets[0].url), "user") {
		t.Errorf("got %v; want no userinfo in it", set.targets[0].url)
	}
}

// The end of an answer without a body may be a frame of its own.
func TestTheEndOfAnAnswerInHTTP2IsRead(t *testing.T) {
	end := &upload{rest: []byte("x"), step: 1, end: io.EOF}
	onStage(t, nil, []reply{{status: 200, proto: 2, body: end}}, func(t *testing.T, s *stage) {
		s.send(1)
		s.is(map[string]uint64{"delivered": 1})
		if len(end.rest) > 0 || end.closed == 0 {
			t.Errorf("got %d bytes left, closed %d times; want it read and closed, or the stream is reset", len(end.rest), end.closed)
		}
	})
}

// What net/http has in quotes is what the receiver sent, and that may be what it got.
func TestWhatAReceiverSendsBackIsNotLogged(t *testing.T) {
	for _, c := range []struct {
		name  string
		serve func(conn net.Conn)
		cause string
	}{
		{"all as it came", func(conn net.Conn) { _, _ = io.Copy(conn, conn) }, "malformed HTTP"},
		{"a header in one that is none", func(conn net.Conn) {
			req, err := http.ReadRequest(bufio.NewReader(conn))
			if err == nil {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nyou sent %s\r\n\r\n", req.Header.Get("Authorization"))
			}
		}, "malformed MIME header"},
		{"a header as a length", func(conn net.Conn) {
			req, err := http.ReadRequest(bufio.NewReader(conn))
			if err == nil {
				_, _ = fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %s\r\n\r\n", req.Header.Get("Authorization"))
			}
		}, "bad Content-Length"},
	} {
		t.Run(c.name, func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = listener.Close() }()
			go func() {
				if conn, err := listener.Accept(); err == nil {
					c.serve(conn)
					_ = conn.Close()
				}
			}()
			text := logged(func() {
				m := mirrorOf(t, answer(""), opts{
					"watchURL": "http://" + listener.Addr().String() + "/s3cr3t", "retry.attempts": 1,
					"customRequestHeaders": map[string]string{"Authorization": "Bearer s3cr3t"},
				}).(*Mirror)
				serve(m, send("/", "s3cr3t"))
				waitFor(t, "the event to fail", func() bool { return tallyOf(t).Failed[reasonNetwork] == 1 })
				tell(m.pipe.ledger)
			})
			if strings.Contains(text, "s3cr3t") || !strings.Contains(text, c.cause) {
				t.Errorf("got %q; want %s, and nothing of what was sent", text, c.cause)
			}
		})
	}
}

func TestErrorsOfTheNetworkAreShort(t *testing.T) {
	for given, want := range map[string]string{
		"dial tcp 127.0.0.1:9: connect: connection refused":                                                     "dial tcp 127.0.0.1:9: connect: connection refused",
		`malformed HTTP status code "/s3cr3t"`:                                                                  "malformed HTTP status code …",
		`http2: server sent GOAWAY and closed the connection; LastStreamID=1, ErrCode=NO_ERROR, debug="s3cr3t"`: "http2: server sent GOAWAY and closed the connection; LastStreamID=1, ErrCode=NO_ERROR, debug …",
		strings.Repeat("é", 200):                                                                                strings.Repeat("é", 150) + " …",
	} {
		if got := withoutQuotes(given); got != want {
			t.Errorf("%s: got %q; want %q", given, got, want)
		}
	}
}
