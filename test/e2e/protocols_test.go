package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
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

	"github.com/opencommit/requestmirror/test/lab"
)

func TestHeadersPathAndQueryAreThoseThatCame(t *testing.T) {
	s := mirror(t, lab.Options{"cookieNames": []string{"visitor_*", "lang"}, "attributes": map[string]string{"environment": "e2e"}})
	const path, query = "/a%2Fb/c%20d", "x=1&y=%2F&x=2&sig=SECRET-SIG"
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			r, id := s.request(t, http.MethodGet, p.scheme, path+"?"+query, nil)
			r.Header["X-Many"] = []string{"first", "", "second", "first"}
			r.Header.Set("Authorization", "Bearer SECRET-TOKEN")
			r.Header.Set("X-Api-Key", "SECRET-KEY")
			r.Header.Set("X-Latin", "caf\xe9")
			r.Header.Set("Cookie", "visitor_id=v1; session=SECRET-SESSION; lang=de; visitor_id=v2")
			r.Header.Set("User-Agent", "e2e/1 <&>")
			r.Header.Set("X-Request-Id", "request-7")
			r.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
			report := s.send(t, r, http.StatusOK).report(t)
			e := s.event(t, id)

			checks := []struct {
				what      string
				got, want any
			}{
				{"backend: path and query", report.RequestURI, path + "?" + query},
				{"backend: repeated header", report.Header["X-Many"], []string{"first", "", "second", "first"}},
				{"backend: Authorization", report.Header.Get("Authorization"), "Bearer SECRET-TOKEN"},
				{"backend: Cookie", report.Header.Get("Cookie"), "visitor_id=v1; session=SECRET-SESSION; lang=de; visitor_id=v2"},
				{"backend: bytes that are not UTF-8", report.Header.Get("X-Latin"), "caf\ufffd"}, // as its report is JSON
				{"event: method", e.Method, "GET"},
				{"event: path", e.Path, path},
				{"event: subject", e.Subject, path},
				{"event: query", e.Query, "x=1&y=%2F&x=2&sig=REDACTED"},
				{"event: scheme", e.Scheme, p.scheme},
				{"event: protocol", e.Proto, map[int]string{1: "1.1", 2: "2"}[p.major]},
				{"event: repeated header", e.Header["x-many"], []string{"first", "", "second", "first"}},
				{"event: Authorization", e.Header["authorization"], []string{"REDACTED"}},
				{"event: X-Api-Key", e.Header["x-api-key"], []string{"REDACTED"}},
				{"event: raw Cookie header", e.Header["cookie"], []string(nil)},
				{"event: cookies", e.Cookie, map[string][]string{"visitor_id": {"v1", "v2"}, "lang": {"de"}}},
				{"event: user agent", e.UserAgent, "e2e/1 <&>"},
				{"event: peer", e.Peer.Address, "127.0.0.1"},
				{"event: peer has a port", e.Peer.Port > 0, true},
				{"event: client", e.Client, "127.0.0.1"},
				{"event: server", e.Server.Address, s.name + ".test"},
				{"event: TLS", e.TLS, map[int]string{1: "", 2: "1.3"}[p.major]},
				{"event: request id", e.RequestID, "request-7"},
				{"event: traceparent", e.Traceparent, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
				{"event: attributes", e.Attributes, map[string]string{"environment": "e2e"}},
				{"event: no body", e.Body == nil, true},
				{"event: a secret leaves", bytes.Contains(e.Raw, []byte("SECRET")), false},
			}
			for _, c := range checks {
				if !reflect.DeepEqual(c.got, c.want) {
					t.Errorf("%s: got %q; want %q", c.what, c.got, c.want)
				}
			}
		})
	}
}

// What the backend reports must be the same with and without the plugin, down
// to framing, trailers and the order of values.
func TestTheBackendSeesTheSameAsWithoutThePlugin(t *testing.T) {
	s := mirror(t, lab.Options{"maxBodySize": "1Ki"})
	requests := []struct {
		name string
		edit func(*http.Request)
	}{
		{"a GET without body", func(*http.Request) {}},
		{"a HEAD", func(r *http.Request) { r.Method = http.MethodHead }},
		{"a method of the client's own", func(r *http.Request) { r.Method = "PURGE" }},
		{"a GET with a body", func(r *http.Request) { setBody(r, text(50), false) }},
		{"a DELETE with a body in chunks", func(r *http.Request) { r.Method = http.MethodDelete; setBody(r, text(50), true) }},
		{"a POST with an empty body", func(r *http.Request) { r.Method = http.MethodPost }},
		{"a sized POST over the limit", func(r *http.Request) { r.Method = http.MethodPost; setBody(r, text(5000), false) }},
		{"a chunked POST over the limit", func(r *http.Request) { r.Method = http.MethodPost; setBody(r, text(5000), true) }},
		{"request trailers", func(r *http.Request) {
			r.Method = http.MethodPost
			setBody(r, text(2000), true)
			r.Trailer = http.Header{"X-Checksum": {"abc"}, "X-Late": {"1", "2"}}
		}},
		{"Expect: 100-continue that is accepted", func(r *http.Request) {
			r.Method = http.MethodPost
			setBody(r, text(3000), false)
			r.Header.Set("Expect", "100-continue")
		}},
		{"headers about the connection", func(r *http.Request) {
			r.Header.Set("Te", "trailers")
			r.Header.Set("X-Forwarded-For", "203.0.113.7")
		}},
	}
	for _, p := range protocols {
		for _, c := range requests {
			t.Run(p.name+" "+c.name, func(t *testing.T) {
				var reports [2]lab.Report
				var answers [2]http.Header
				for i, host := range []string{s.bare(), s.name} {
					r, id := s.request(t, http.MethodGet, p.scheme, "/p?q=1", nil)
					r = to(r, host)
					c.edit(r)
					a := s.send(t, r, http.StatusOK)
					answers[i] = a.Header
					report, err := s.backend.WaitReport(soon(t), id)
					if err != nil {
						t.Fatal(err)
					}
					// What must differ, as there are two routes.
					report.Host = ""
					report.Header.Del("X-Forwarded-Host")
					report.Header.Del(lab.RequestHeader)
					answers[i].Del("Date")
					answers[i].Del("Content-Length") // the report holds the name of the route
					reports[i] = report
				}
				if got, want := reports[1], reports[0]; !reflect.DeepEqual(got, want) {
					t.Errorf("backend:\n got %+v;\nwant %+v", got, want)
				}
				if got, want := answers[1], answers[0]; !reflect.DeepEqual(got, want) {
					t.Errorf("headers of the answer: got %v; want %v", got, want)
				}
			})
		}
	}
	if l := s.settle(t, len(protocols)*len(requests)); l.Delivered != int64(len(protocols)*len(requests)) {
		t.Errorf("ledger: got %s; want all delivered", l)
	}
}

func setBody(r *http.Request, p []byte, inChunks bool) {
	r.Body = io.NopCloser(bytes.NewReader(p))
	r.ContentLength = int64(len(p))
	if inChunks {
		r.ContentLength = -1
	}
}

func TestExpectContinueThatIsRejectedSendsNoBody(t *testing.T) {
	s := mirror(t, nil)
	s.backend.Handle("reject", s.backend.ReadSome(0, http.StatusExpectationFailed))
	conn := rawUpload(t, s, s.name, "/lab/reject", "rejected", "Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n", "")
	// No body is ever sent: a plugin that reads ahead would have asked for it
	// with a 100, and waited.
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "HTTP/1.1 417 ") {
		t.Errorf("got %q, %v; want the backend's 417 at once", line, err)
	}
	e := s.event(t, "rejected")
	expectCut(t, e, "unread")
	if len(e.Body.Content) != 0 {
		t.Errorf("body: got %q; want nothing, as nothing was sent", e.Body.Content)
	}
}

func TestABackendThatPanics(t *testing.T) {
	s := mirror(t, nil)
	s.backend.Handle("before", s.backend.Abort(""))
	s.backend.Handle("midway", s.backend.Abort("the first half"))
	for _, p := range protocols {
		for _, c := range []struct {
			name, path string
			body       []byte
		}{
			{"before it answers a request without a body", "/lab/before", nil},
			{"before it answers a request with a body", "/lab/before", text(100)},
			// Here the proxy panics, too, so that its client sees no complete answer.
			{"in the middle of its answer to a request without a body", "/lab/midway", nil},
			{"in the middle of its answer to a request with a body", "/lab/midway", text(100)},
		} {
			t.Run(p.name+" "+c.name, func(t *testing.T) {
				var got [2]string
				var id string
				for i, host := range []string{s.bare(), s.name} {
					var r *http.Request
					r, id = s.request(t, http.MethodPost, p.scheme, c.path, bytes.NewReader(c.body))
					a, err := s.do(to(r, host))
					if err == nil {
						got[i] = a.Status
					} else if got[i] = fmt.Sprintf("%q and an error", a.body); a.body == nil {
						t.Fatalf("no answer at all: %v", err)
					}
				}
				if got[0] != got[1] {
					t.Errorf("client: got %s; want %s, as without the plugin", got[1], got[0])
				}
				s.event(t, id)
			})
		}
	}
}

func TestWebSocket(t *testing.T) {
	s := mirror(t, nil)
	s.backend.Handle("ws", lab.WebSocketEcho)
	ctx := soon(t)
	conn, res, err := websocket.Dial(ctx, "ws://"+s.name+".test/lab/ws", &websocket.DialOptions{
		HTTPClient: s.client, HTTPHeader: http.Header{lab.RequestHeader: {"ws"}},
	})
	if err != nil {
		t.Fatalf("dial: %v, %v", res, err)
	}
	defer conn.CloseNow()
	echo := func(message string) {
		t.Helper()
		if err := conn.Write(ctx, websocket.MessageText, []byte(message)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := conn.Read(ctx); err != nil || string(got) != message {
			t.Fatalf("echo: got %q, %v; want %q", got, err, message)
		}
	}
	echo("one")
	e := s.event(t, "ws") // while the connection is open
	if e.Method != "GET" || e.Body != nil || !slices.Equal(e.Header["upgrade"], []string{"websocket"}) {
		t.Errorf("event: got %s with body %v and upgrade %q; want the GET of the handshake", e.Method, e.Body, e.Header["upgrade"])
	}
	echo("two")
	echo(strings.Repeat("long", 5000))
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		t.Errorf("close: %v", err)
	}
}

func TestServerSentEventsComeOneByOne(t *testing.T) {
	s := mirror(t, nil)
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) {
			events := make(chan string)
			s.backend.Handle("sse-"+p.scheme, lab.SSE(events))
			r, id := s.request(t, http.MethodGet, p.scheme, "/lab/sse-"+p.scheme, nil)
			res, err := s.client.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			lines := bufio.NewReader(res.Body)
			// Each is read before the next is sent: nothing may be kept
			// until the stream ends.
			for _, want := range []string{"one", "two", "three"} {
				events <- want
				line, err := lines.ReadString('\n')
				if err != nil || line != "data: "+want+"\n" {
					t.Fatalf("got %q, %v; want event %q", line, err, want)
				}
				if _, err := lines.ReadString('\n'); err != nil {
					t.Fatal(err)
				}
				s.event(t, id) // the stream is open, the mirror has it already
			}
			close(events)
			if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
				t.Errorf("end of the stream: got %q, %v; want nothing", rest, err)
			}
		})
	}
}

// grpcService answers as gRPC's own interoperability service does, as far as
// the test needs it.
type grpcService struct {
	testgrpc.UnimplementedTestServiceServer
}

func (grpcService) UnaryCall(ctx context.Context, in *testgrpc.SimpleRequest) (*testgrpc.SimpleResponse, error) {
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-trailer", "kept"))
	if want := in.GetResponseStatus(); want != nil {
		return nil, status.Error(codes.Code(want.GetCode()), want.GetMessage())
	}
	return &testgrpc.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (grpcService) FullDuplexCall(stream testgrpc.TestService_FullDuplexCallServer) error {
	for {
		in, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&testgrpc.StreamingOutputCallResponse{Payload: in.GetPayload()}); err != nil {
			return err
		}
	}
}

func TestGRPC(t *testing.T) {
	s := mirror(t, nil)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	testgrpc.RegisterTestServiceServer(server, grpcService{})
	go func() { _ = server.Serve(listener) }()
	defer server.Stop()
	s.world.change(t, func(d *lab.Dynamic) {
		d.Routes[s.name] = lab.Route{Through: []string{s.name}, Backend: "h2c://" + listener.Addr().String()}
	})
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
	payload := func(text string) *testgrpc.Payload { return &testgrpc.Payload{Body: []byte(text)} }

	t.Run("a unary call", func(t *testing.T) {
		var trailer metadata.MD
		res, err := client.UnaryCall(call("unary"), &testgrpc.SimpleRequest{Payload: payload("ping")}, grpc.Trailer(&trailer))
		if err != nil || string(res.GetPayload().GetBody()) != "ping" || !slices.Equal(trailer["x-trailer"], []string{"kept"}) {
			t.Fatalf("got %v, trailer %v, %v; want the payload and the trailer", res, trailer, err)
		}
		e := s.event(t, "unary")
		if e.Path != "/grpc.testing.TestService/UnaryCall" || e.Body == nil || e.Body.Truncated || !bytes.Contains(e.Body.Content, []byte("ping")) {
			t.Errorf("event: got path %s, body %+v; want the whole call", e.Path, e.Body)
		}
	})
	t.Run("a call that fails keeps its status", func(t *testing.T) {
		_, err := client.UnaryCall(call("failing"), &testgrpc.SimpleRequest{
			ResponseStatus: &testgrpc.EchoStatus{Code: int32(codes.NotFound), Message: "no such thing"},
		})
		if got := status.Convert(err); got.Code() != codes.NotFound || got.Message() != "no such thing" {
			t.Errorf("got %v; want NotFound: no such thing", err)
		}
		s.event(t, "failing")
	})
	t.Run("a stream in both directions", func(t *testing.T) {
		stream, err := client.FullDuplexCall(call("stream"))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"one", "two", "three"} {
			if err := stream.Send(&testgrpc.StreamingOutputCallRequest{Payload: payload(text)}); err != nil {
				t.Fatal(err)
			}
			if in, err := stream.Recv(); err != nil || string(in.GetPayload().GetBody()) != text {
				t.Fatalf("got %v, %v; want %q before the next is sent", in, err, text)
			}
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Fatalf("end of the stream: got %v; want EOF", err)
		}
		e := s.event(t, "stream")
		if e.Body == nil || e.Body.Truncated {
			t.Fatalf("event: got body %+v; want the whole stream", e.Body)
		}
		for _, text := range []string{"one", "two", "three"} {
			if !bytes.Contains(e.Body.Content, []byte(text)) {
				t.Errorf("event: message %q is missing", text)
			}
		}
	})
}
