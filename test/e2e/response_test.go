package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

// captures are the modes of captureResponse that add something to an event.
var captures = []string{"status", "headers", "body"}

// watchers are sites with each captureResponse, through whatever else is given.
func watchers(t *testing.T, w *world, options lab.Options) []*site {
	t.Helper()
	var all []lab.Options
	for _, mode := range captures {
		o := lab.Options{"captureResponse": mode}
		for name, value := range options {
			o[name] = value
		}
		all = append(all, o)
	}
	return mirrors(t, w, all...)
}

// through puts other middlewares of Traefik into the routes of sites, around the mirror
// or behind it, and into those that have none.
func through(t *testing.T, sites []*site, middleware map[string]any, outside bool) {
	t.Helper()
	w := sites[0].world
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.dynamic.Extra = nil
	})
	w.change(t, func(d *lab.Dynamic) {
		for _, s := range sites {
			name := "other-" + s.name
			d.Extra = merged(d.Extra, map[string]any{"http": map[string]any{"middlewares": map[string]any{name: middleware}}})
			chain := []string{s.name, name}
			if outside {
				chain = []string{name, s.name}
			}
			d.Routes[s.name] = lab.Route{Through: chain, Backend: s.backend.URL}
			d.Routes[s.bare()] = lab.Route{Through: []string{name}, Backend: s.backend.URL}
		}
	})
}

func merged(base, over map[string]any) map[string]any {
	all := map[string]any{}
	for name, value := range base {
		all[name] = value
	}
	for name, value := range over {
		below, _ := all[name].(map[string]any)
		above, isMap := value.(map[string]any)
		if isMap {
			value = merged(below, above)
		}
		all[name] = value
	}
	return all
}

// seen is all that a client sees of an answer.
func (s *site) seen(t *testing.T, r *http.Request) string {
	t.Helper()
	early := ""
	r = r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			early += fmt.Sprintln(code, header)
			return nil
		},
	}))
	res, err := s.client.Do(r)
	if err != nil {
		return early + "no answer"
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if res.Header.Get("Date") != "" {
		res.Header.Set("Date", "now")
	}
	var trailer http.Header
	if len(res.Trailer) > 0 {
		trailer = res.Trailer
	}
	return fmt.Sprintf("%s%s %s, header %v, length %d, encoding %v, body %d %s, trailer %v, broken %v",
		early, res.Proto, res.Status, res.Header, res.ContentLength, res.TransferEncoding, len(body), lab.Hash(body), trailer, err != nil)
}

// response is what the event of a request says of the answer.
func (s *site) response(t *testing.T, id string) (event.Event, *event.Response) {
	t.Helper()
	e := s.event(t, id)
	if e.Response == nil {
		t.Fatalf("got no response in %s", e.Raw)
	}
	if e.Duration <= 0 {
		t.Errorf("duration: got %v ms; want more than none", e.Duration)
	}
	return e, e.Response
}

// fast is a Traefik with the other proxy that it has.
func fast(t *testing.T) *world {
	return ownWorld(t, lab.Setup{Static: map[string]any{"experimental": map[string]any{"fastProxy": map[string]any{}}}})
}

// observed is a Traefik that wraps every ResponseWriter, to write of it.
func observed(t *testing.T) *world {
	return ownWorld(t, lab.Setup{Static: map[string]any{
		"accessLog": map[string]any{"format": "json", "filePath": "access.log"},
		"metrics":   map[string]any{"prometheus": map[string]any{"addRoutersLabels": true, "addServicesLabels": true}},
	}})
}

func sharedWorld(*testing.T) *world { return shared }

var answers = []struct {
	name   string
	method string
	do     http.HandlerFunc
	status int
	size   int    // of its body; -1 if it has none
	reason string // why less than the whole of it was captured
}{
	{name: "a sized answer", do: sized(text(100)), status: 200, size: 100},
	{name: "a long sized answer", do: sized(text(300_000)), status: 200, size: 300_000},
	{name: "a short answer in chunks", do: inChunks(text(100)), status: 200, size: 100},
	{name: "a long answer in chunks", do: inChunks(text(300_000)), status: 200, size: 300_000},
	{name: "an empty answer", do: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(202) }, status: 202},
	{name: "an error", do: func(w http.ResponseWriter, r *http.Request) { http.Error(w, "sorry", 500) }, status: 500, size: 6},
	{name: "HEAD", method: "HEAD", do: sized(text(100)), status: 200, size: -1},
	{name: "204", do: func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) }, status: 204, size: -1},
	{name: "304", do: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Etag", `"1"`)
		w.WriteHeader(304)
	}, status: 304, size: -1},
	{name: "a redirect", do: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "http://b.test/", 302) }, status: 302, size: 37},
	{name: "early hints", do: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(103)
		sized(text(100))(w, r)
	}, status: 200, size: 100},
	{name: "announced trailers after a short body", do: func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Write(text(100))
		w.Header().Set("X-Sum", "6")
	}, status: 200, size: 100},
	{name: "unannounced trailers after a short body", do: func(w http.ResponseWriter, r *http.Request) {
		inChunks(text(100))(w, r)
		w.Header().Set(http.TrailerPrefix+"X-Sum", "6")
	}, status: 200, size: 100},
	{name: "headers of all kinds", do: func(w http.ResponseWriter, r *http.Request) {
		w.Header()["Set-Cookie"] = []string{"a=SECRET", "b=SECRET"}
		w.Header()["X-Many"] = []string{"1", "", "2"}
		sized(text(100))(w, r)
	}, status: 200, size: 100},
	{name: "an answer in chunks that breaks off", do: func(w http.ResponseWriter, r *http.Request) {
		inChunks(text(100))(w, r)
		panic(http.ErrAbortHandler)
	}, status: 200, size: 100, reason: "aborted"},
	{name: "no answer", method: "POST", do: func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) }, status: 502, size: 11},
}

func sized(p []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(p)))
		w.Header().Set("Content-Type", "text/plain")
		w.Write(p)
	}
}

func inChunks(p []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain")
		for from := 0; from < len(p); from += 50_000 {
			w.Write(p[from:min(len(p), from+50_000)])
			w.(http.Flusher).Flush()
		}
	}
}

func TestTheClientSeesTheSameAsWithoutTheCapture(t *testing.T) {
	for _, c := range []struct {
		name  string
		world func(*testing.T) *world
	}{{"httputil", sharedWorld}, {"fastProxy", fast}, {"with access log and metrics", observed}} {
		t.Run(c.name, func(t *testing.T) {
			for i, s := range watchers(t, c.world(t), nil) {
				for n, a := range answers {
					if c.name == "fastProxy" && (a.name == "no answer" || a.reason != "") {
						// Without a plugin, too, it may never answer the one, and ends the other
						// regularly with an error message of its own behind it.
						continue
					}
					s.backend.Handle(fmt.Sprint(n), a.do)
					for _, p := range protocols {
						t.Run(fmt.Sprintf("%s %s, captured as %s", p.name, a.name, captures[i]), func(t *testing.T) {
							var got [2]string
							var id string
							for j, host := range []string{s.bare(), s.name} {
								var r *http.Request
								method := a.method
								if method == "" {
									method = "GET"
								}
								r, id = s.request(t, method, p.scheme, "/lab/"+fmt.Sprint(n), nil)
								r.Header.Set("Te", "trailers")
								got[j] = s.seen(t, to(r, host))
							}
							if got[0] != got[1] {
								t.Errorf("client:\n got %s;\nwant %s, as without the plugin", got[1], got[0])
							}
							e, r := s.response(t, id)
							if r.Status != a.status {
								t.Errorf("status: got %d; want %d", r.Status, a.status)
							}
							if (r.Header != nil) != (captures[i] != "status") || bytes.Contains(e.Raw, []byte("SECRET")) {
								t.Errorf("header: got %v; want one unless only the status is captured, without secrets", r.Header)
							}
							if captures[i] != "body" || a.size < 0 {
								if r.Body != nil {
									t.Errorf("body: got %+v; want none", r.Body)
								}
								return
							}
							if r.Body == nil {
								t.Fatal("got no body; want one")
							}
							want := text(a.size)
							if a.size < 100 {
								want = r.Body.Content // some other text
							}
							expectBody(t, event.Event{Body: r.Body}, event.Body{Content: want, Text: true, Size: int64(a.size), Truncated: a.reason != "", Reason: a.reason})
						})
					}
				}
			}
		})
	}
}

// Traefik's own middlewares wrap the ResponseWriter that the mirror gets, or the one that
// it gives on.
func TestCaptureAmongOtherMiddlewares(t *testing.T) {
	compress := map[string]any{"compress": map[string]any{"minResponseBodyBytes": 200, "encodings": []string{"gzip"}}}
	for _, c := range []struct {
		name       string
		middleware map[string]any
		outside    bool
		packed     bool // whether what is captured is compressed
	}{
		{"in compress", compress, true, false},
		{"around compress", compress, false, true},
		{"in headers", map[string]any{"headers": map[string]any{"customResponseHeaders": map[string]any{"X-Added": "1"}}}, true, false},
		{"around headers", map[string]any{"headers": map[string]any{"customResponseHeaders": map[string]any{"X-Added": "1"}}}, false, false},
		{"in buffering", map[string]any{"buffering": map[string]any{"maxResponseBodyBytes": 1 << 20}}, true, false},
		{"around buffering", map[string]any{"buffering": map[string]any{"maxResponseBodyBytes": 1 << 20}}, false, false},
		{"in retry", map[string]any{"retry": map[string]any{"attempts": 3}}, true, false},
		{"around retry", map[string]any{"retry": map[string]any{"attempts": 3}}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			sites := watchers(t, shared, nil)
			through(t, sites, c.middleware, c.outside)
			for i, s := range sites {
				for _, a := range []struct {
					name   string
					do     http.HandlerFunc
					status int
					size   int
				}{
					{"short", sized(text(100)), 200, 100},
					{"long", sized(text(100_000)), 200, 100_000},
					{"chunks", inChunks(text(100_000)), 200, 100_000},
					{"teapot", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(418); w.Write(text(300)) }, 418, 300},
					{"empty", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }, 404, 0},
				} {
					s.backend.Handle(a.name, a.do)
					for _, p := range protocols {
						t.Run(fmt.Sprintf("%s %s, captured as %s", p.name, a.name, captures[i]), func(t *testing.T) {
							var got [2]answer
							var id string
							for j, host := range []string{s.bare(), s.name} {
								var r *http.Request
								r, id = s.request(t, "GET", p.scheme, "/lab/"+a.name, nil)
								r.Header.Set("Accept-Encoding", "gzip")
								got[j] = s.send(t, to(r, host), a.status)
								got[j].Header.Del("Date")
								// How a compressed answer is divided follows from when it is flushed.
								got[j].Header.Del("Content-Length")
							}
							if !reflect.DeepEqual(got[0].Header, got[1].Header) || got[0].Header.Get("Content-Encoding") == "" && !bytes.Equal(got[0].body, got[1].body) {
								t.Errorf("client: got %v, %d bytes; want %v, %d bytes, as without the plugin", got[1].Header, len(got[1].body), got[0].Header, len(got[0].body))
							}
							if plain := unpacked(t, got[1]); len(plain) != a.size || a.size > 0 && !bytes.Equal(plain, text(a.size)) {
								t.Errorf("client: got %d bytes; want %d", len(plain), a.size)
							}
							_, r := s.response(t, id)
							if r.Status != a.status {
								t.Errorf("status: got %d; want %d", r.Status, a.status)
							}
							if captures[i] != "body" {
								return
							}
							want := a.size
							if c.packed && got[1].Header.Get("Content-Encoding") != "" {
								want = len(got[1].body)
							}
							if r.Body == nil || r.Body.Truncated || len(r.Body.Content) != want {
								t.Errorf("body: got %+.100v; want %d bytes", r.Body, want)
							}
						})
					}
				}
			}
		})
	}
}

func unpacked(t *testing.T, a answer) []byte {
	t.Helper()
	plain, err := lab.Attempt{Header: a.Header, Body: a.body}.Payload()
	if err != nil {
		t.Fatal(err)
	}
	return plain
}

// A backend that cannot be reached is tried again: the 502 of the first attempts must not
// leave, nor may a flush send anything in its place.
func TestRetryAroundTheCapture(t *testing.T) {
	sites := watchers(t, shared, nil)
	through(t, sites, map[string]any{"retry": map[string]any{"attempts": 3, "initialInterval": "10ms"}}, true)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close() // nobody listens there
	shared.change(t, func(d *lab.Dynamic) {
		for _, s := range sites {
			for _, name := range []string{s.name, s.bare()} {
				route := d.Routes[name]
				route.Backend = "http://" + listener.Addr().String()
				d.Routes[name] = route
			}
		}
	})
	for i, s := range sites {
		for _, p := range protocols {
			t.Run(p.name+" captured as "+captures[i], func(t *testing.T) {
				before := len(s.receiver.Attempts())
				var got [2]string
				for j, host := range []string{s.bare(), s.name} {
					r, _ := s.request(t, "GET", p.scheme, "/", nil)
					got[j] = s.seen(t, to(r, host))
				}
				if got[0] != got[1] || !strings.Contains(got[1], "502 Bad Gateway") {
					t.Errorf("client: got %s; want %s, as without the plugin", got[1], got[0])
				}
				// Each attempt passes through the mirror.
				attempts, err := s.receiver.Wait(soon(t), before+3)
				if err != nil {
					t.Fatal(err)
				}
				var statuses []int
				for _, e := range events(t, attempts[before:]) {
					statuses = append(statuses, e.Response.Status)
				}
				slices.Sort(statuses)
				want := []int{502, 502, 502}
				if captures[i] != "body" {
					want = []int{0, 0, 502} // what retry keeps back cannot be told
				}
				if !slices.Equal(statuses, want) {
					t.Errorf("statuses: got %v; want %v", statuses, want)
				}
			})
		}
	}
}

func TestWebSocketWithCapture(t *testing.T) {
	for _, c := range []struct {
		name  string
		world func(*testing.T) *world
	}{{"httputil", sharedWorld}, {"fastProxy", fast}, {"with access log and metrics", observed}} {
		for i, s := range watchers(t, c.world(t), nil) {
			t.Run(c.name+" captured as "+captures[i], func(t *testing.T) {
				s.backend.Handle("ws", lab.WebSocketEcho)
				ctx := soon(t)
				conn, res, err := websocket.Dial(ctx, "ws://"+s.name+".test/lab/ws", &websocket.DialOptions{
					HTTPClient: s.client, HTTPHeader: http.Header{lab.RequestHeader: {"ws"}},
				})
				if err != nil {
					t.Fatalf("dial: %v, %v", res, err)
				}
				defer conn.CloseNow()
				for _, message := range []string{"one", strings.Repeat("long", 5000)} {
					if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
						t.Fatal(err)
					}
					if _, got, err := conn.Read(ctx); err != nil || string(got) != message {
						t.Fatalf("echo: got %q, %v; want %q", got, err, message)
					}
				}
				if got := s.receiver.Attempts(); len(got) != 0 {
					t.Errorf("got %d events while the connection is open; want none", len(got))
				}
				if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
					t.Errorf("close: %v", err)
				}
				if _, r := s.response(t, "ws"); r.Status != http.StatusSwitchingProtocols || r.Body != nil {
					t.Errorf("event: got status %d, body %v; want 101 and none", r.Status, r.Body)
				}
			})
		}
	}
}

func TestStreamsComeOneByOneWithCapture(t *testing.T) {
	compress := map[string]any{"compress": map[string]any{"encodings": []string{"gzip"}}}
	for _, c := range []struct {
		name    string
		world   func(*testing.T) *world
		through map[string]any
		outside bool
	}{
		{"httputil", sharedWorld, nil, false},
		{"fastProxy", fast, nil, false},
		{"in compress", sharedWorld, compress, true}, // which leaves event streams alone
		{"around compress", sharedWorld, compress, false},
	} {
		sites := watchers(t, c.world(t), nil)
		if c.through != nil {
			through(t, sites, c.through, c.outside)
		}
		for i, s := range sites {
			for _, p := range protocols {
				for _, kind := range []string{"text/event-stream", "application/x-ndjson"} {
					t.Run(fmt.Sprintf("%s %s %s, captured as %s", c.name, p.name, kind, captures[i]), func(t *testing.T) {
						// fastProxy sends the header with the first event only.
						events := make(chan string, 1)
						events <- "one"
						path := strings.ReplaceAll(kind, "/", "-") + p.scheme
						s.backend.Handle(path, func(w http.ResponseWriter, r *http.Request) {
							w.Header().Set("Content-Type", kind)
							http.NewResponseController(w).Flush()
							for e := range events {
								io.WriteString(w, e+"\n")
								http.NewResponseController(w).Flush()
							}
						})
						r, id := s.request(t, http.MethodGet, p.scheme, "/lab/"+path, nil)
						res, err := s.client.Do(r)
						if err != nil {
							t.Fatal(err)
						}
						defer res.Body.Close()
						lines := bufio.NewReader(res.Body)
						for _, want := range []string{"one", "two", "three"} {
							if want != "one" {
								events <- want
							}
							if line, err := lines.ReadString('\n'); err != nil || line != want+"\n" {
								t.Fatalf("got %q, %v; want %q before the next is sent", line, err, want)
							}
						}
						close(events)
						if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
							t.Errorf("end of the stream: got %q, %v; want nothing", rest, err)
						}
						_, got := s.response(t, id)
						if got.Status != 200 || captures[i] == "body" && string(got.Body.Content) != "one\ntwo\nthree\n" {
							t.Errorf("event: got status %d, body %+v; want 200 and all lines", got.Status, got.Body)
						}
					})
				}
			}
		}
	}
}

// A server is slower than its answer is short: what has a length comes by and by, too.
func TestSlowAnswersAreNotHeldBack(t *testing.T) {
	for i, s := range watchers(t, shared, nil) {
		for _, p := range protocols {
			t.Run(p.name+" captured as "+captures[i], func(t *testing.T) {
				free := make(chan struct{})
				s.backend.Handle("slow"+p.scheme, func(w http.ResponseWriter, r *http.Request) {
					w.Header().Set("Content-Length", "10")
					io.WriteString(w, "first")
					http.NewResponseController(w).Flush()
					<-free
					io.WriteString(w, "other")
				})
				r, id := s.request(t, http.MethodGet, p.scheme, "/lab/slow"+p.scheme, nil)
				res, err := s.client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				first := make([]byte, 5)
				if _, err := io.ReadFull(res.Body, first); err != nil || string(first) != "first" {
					t.Errorf("got %q, %v; want what the backend has sent so far", first, err)
				}
				close(free)
				if rest, err := io.ReadAll(res.Body); err != nil || string(rest) != "other" || res.ContentLength != 10 {
					t.Errorf("got %q, %v, length %d; want the rest, and the length", rest, err, res.ContentLength)
				}
				s.response(t, id)
			})
		}
	}
}

// StreamingOutputCall sends its messages one after the other, each when it is there, until
// an empty one.
func (g grpcStreams) StreamingOutputCall(in *testgrpc.StreamingOutputCallRequest, stream testgrpc.TestService_StreamingOutputCallServer) error {
	for text := <-g.texts; text != ""; text = <-g.texts {
		if err := stream.Send(&testgrpc.StreamingOutputCallResponse{Payload: &testgrpc.Payload{Body: []byte(text)}}); err != nil {
			return err
		}
	}
	stream.SetTrailer(metadata.Pairs("x-trailer", "kept"))
	return nil
}

type grpcStreams struct {
	grpcService
	texts chan string
}

func TestGRPCWithCapture(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	service := grpcStreams{texts: make(chan string)}
	server := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(server, service)
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	sites := watchers(t, shared, nil)
	shared.change(t, func(d *lab.Dynamic) {
		for _, s := range sites {
			d.Routes[s.name] = lab.Route{Through: []string{s.name}, Backend: "h2c://" + listener.Addr().String()}
		}
	})
	for i, s := range sites {
		conn, err := grpc.NewClient("passthrough:///"+s.name+".test:443",
			grpc.WithTransportCredentials(credentials.NewTLS(s.world.traefik.TLS())),
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return s.world.traefik.Dial(ctx, "tcp", address)
			}))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := testgrpc.NewTestServiceClient(conn)
		call := func(id string) context.Context {
			return metadata.AppendToOutgoingContext(soon(t), lab.RequestHeader, id)
		}
		body := func(t *testing.T, id, want string) {
			t.Helper()
			_, r := s.response(t, id)
			if r.Status != 200 || captures[i] == "body" && (r.Body == nil || r.Body.Truncated || !bytes.Contains(r.Body.Content, []byte(want))) {
				t.Errorf("event: got status %d, body %+v; want 200 and %q in it", r.Status, r.Body, want)
			}
		}
		t.Run("a unary call, captured as "+captures[i], func(t *testing.T) {
			var trailer metadata.MD
			res, err := client.UnaryCall(call("unary"), &testgrpc.SimpleRequest{Payload: &testgrpc.Payload{Body: []byte("ping")}}, grpc.Trailer(&trailer))
			if err != nil || string(res.GetPayload().GetBody()) != "ping" || !slices.Equal(trailer["x-trailer"], []string{"kept"}) {
				t.Fatalf("got %v, trailer %v, %v; want the payload and the trailer", res, trailer, err)
			}
			body(t, "unary", "ping")
		})
		// What fails before its first message is answered by trailers only.
		t.Run("calls that fail keep their status, captured as "+captures[i], func(t *testing.T) {
			for n := range 20 {
				id := fmt.Sprint("failing-", n)
				_, err := client.UnaryCall(call(id), &testgrpc.SimpleRequest{
					ResponseStatus: &testgrpc.EchoStatus{Code: int32(codes.NotFound), Message: "no such thing"},
				})
				if got := status.Convert(err); got.Code() != codes.NotFound || got.Message() != "no such thing" {
					t.Errorf("got %v; want NotFound: no such thing", err)
				}
				body(t, id, "")
			}
		})
		t.Run("a method that is not there, captured as "+captures[i], func(t *testing.T) {
			err := conn.Invoke(call("unknown"), "/grpc.testing.TestService/None", &testgrpc.SimpleRequest{}, &testgrpc.SimpleResponse{})
			if got := status.Code(err); got != codes.Unimplemented {
				t.Errorf("got %v; want Unimplemented", err)
			}
			s.event(t, "unknown")
		})
		t.Run("a stream of the server, captured as "+captures[i], func(t *testing.T) {
			stream, err := client.StreamingOutputCall(call("stream"), &testgrpc.StreamingOutputCallRequest{})
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{"one", "two", "three"} {
				service.texts <- text
				if in, err := stream.Recv(); err != nil || string(in.GetPayload().GetBody()) != text {
					t.Fatalf("got %v, %v; want %q before the next is sent", in, err, text)
				}
			}
			service.texts <- ""
			if _, err := stream.Recv(); err != io.EOF || !slices.Equal(stream.Trailer()["x-trailer"], []string{"kept"}) {
				t.Fatalf("end of the stream: got %v, trailer %v; want EOF and the trailer", err, stream.Trailer())
			}
			body(t, "stream", "three")
		})
	}
}

func TestAClientThatLeavesAStreamWithCapture(t *testing.T) {
	for i, s := range watchers(t, shared, nil) {
		for _, p := range protocols {
			t.Run(p.name+" captured as "+captures[i], func(t *testing.T) {
				gone := make(chan struct{})
				s.backend.Handle("leave"+p.scheme, func(w http.ResponseWriter, r *http.Request) {
					io.WriteString(w, "a beginning")
					http.NewResponseController(w).Flush()
					<-r.Context().Done()
					close(gone)
				})
				r, id := s.request(t, http.MethodGet, p.scheme, "/lab/leave"+p.scheme, nil)
				ctx, leave := context.WithCancel(r.Context())
				res, err := s.client.Do(r.WithContext(ctx))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(res.Body, make([]byte, len("a beginning"))); err != nil {
					t.Fatal(err)
				}
				leave()
				res.Body.Close()
				select {
				case <-gone:
				case <-soon(t).Done():
					t.Fatal("the backend is not told")
				}
				_, got := s.response(t, id)
				if got.Status != 200 || captures[i] == "body" && (string(got.Body.Content) != "a beginning" || got.Body.Reason != "aborted") {
					t.Errorf("event: got status %d, body %+v; want 200, and what was sent, aborted", got.Status, got.Body)
				}
			})
		}
	}
	if got := logged(shared, "abort Handler"); got != "" {
		t.Errorf("log: got %.500s; want nothing of aborted requests", got)
	}
}

// A download is as long as it likes: the process holds no more of it than maxBodySize.
func TestADownloadLeavesMemoryAlone(t *testing.T) {
	const (
		length    = 100 << 20
		allowance = 32 << 20 // for Go's collector: the same for an upload of a few MiB
	)
	w := ownWorld(t, lab.Setup{})
	s := mirrors(t, w, lab.Options{"captureResponse": "body"})[0]
	block := text(1 << 20)
	want := sha256.New()
	for range length / len(block) {
		want.Write(block)
	}
	for _, framing := range []string{"sized", "chunked"} {
		s.backend.Handle(framing, func(w http.ResponseWriter, r *http.Request) {
			if framing == "sized" {
				w.Header().Set("Content-Length", fmt.Sprint(length))
			}
			for range length / len(block) {
				w.Write(block)
			}
		})
	}
	// Both protocols and connections have their buffers before it is looked at.
	s.backend.Handle("warm", sized(text(8<<20)))
	for _, p := range protocols {
		for range 4 {
			r, _ := s.request(t, http.MethodGet, p.scheme, "/lab/warm", nil)
			s.send(t, r, http.StatusOK)
		}
	}
	_, before, err := w.traefik.Usage()
	if err != nil {
		t.Skipf("cannot read the memory of a process here: %v", err)
	}
	for _, p := range protocols {
		for _, framing := range []string{"sized", "chunked"} {
			t.Run(p.name+" "+framing, func(t *testing.T) {
				r, id := s.request(t, http.MethodGet, p.scheme, "/lab/"+framing, nil)
				res, err := s.client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				defer res.Body.Close()
				got, peak := sha256.New(), int64(0)
				for n := int64(0); ; {
					m, err := io.CopyN(got, res.Body, 4<<20)
					n += m
					_, rss, _ := w.traefik.Usage()
					peak = max(peak, rss)
					if errors.Is(err, io.EOF) && n == length {
						break
					}
					if err != nil {
						t.Fatalf("after %d bytes: %v; want %d", n, err, length)
					}
				}
				if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
					t.Errorf("client: got %s; want %s", hex.EncodeToString(got.Sum(nil)), hex.EncodeToString(want.Sum(nil)))
				}
				if peak > before+allowance {
					t.Errorf("memory: got %d MiB at the peak, %d before; want at most %d more", peak>>20, before>>20, allowance>>20)
				}
				_, answer := s.response(t, id)
				if answer.Body.Size != length || answer.Body.Reason != "limit" || len(answer.Body.Content) != 1<<20 {
					t.Errorf("event: got %d bytes of %d, %q; want 1 MiB of %d, limit", len(answer.Body.Content), answer.Body.Size, answer.Body.Reason, length)
				}
			})
		}
	}
	s.settle(t, len(s.receiver.Attempts()))
	if held, err := w.traefik.Counters(soon(t)); err != nil || held.Middlewares[s.name+"@file"].BytesHeld != 0 {
		t.Errorf("counters: got %d bytes held, %v; want none", held.Middlewares[s.name+"@file"].BytesHeld, err)
	}
}
