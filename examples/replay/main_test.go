package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 9, 18, 12, 0, 0, 0, time.UTC)

// recorded is a request as it is stored. Empty fields are the usual.
type recorded struct {
	id, method, path, query string
	at                      time.Duration // since noon
	header, cookie          map[string][]string
	body                    string // JSON of it
	scheme                  string
	server                  string // JSON of it
}

func line(r recorded) string {
	or := func(value, usual string) string {
		if value == "" {
			return usual
		}
		return value
	}
	raw := func(value any) string {
		text, err := json.Marshal(value)
		if err != nil {
			panic(err)
		}
		return string(text)
	}
	request := `"method":` + raw(or(r.method, "GET")) + `,"header":` + raw(r.header)
	if r.cookie != nil {
		request += `,"cookie":` + raw(r.cookie)
	}
	if r.body != "" {
		request += `,"body":` + r.body
	}
	url := `"scheme":` + raw(or(r.scheme, "http")) + `,"path":` + raw(or(r.path, "/"))
	if r.query != "" {
		url += `,"query":` + raw(r.query)
	}
	return fmt.Sprintf(`{"specversion":"1.0","type":%q,"id":%q,"time":%q,"data":{"http":{"request":{%s}},"url":{%s},"server":%s}}`+"\n",
		requestType, or(r.id, r.at.String()), noon.Add(r.at).Format(time.RFC3339Nano), request, url, or(r.server, `{"address":"blog.example.com","port":80}`))
}

// got is a request as the test host has it.
type got struct {
	method, target, host string
	header               http.Header
	body                 string
	length               int64
}

// host is one that takes whatever comes.
type host struct {
	*httptest.Server
	mu   sync.Mutex
	list []got
}

func newHost(t *testing.T, answer http.HandlerFunc) *host {
	h := &host{}
	h.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			t.Error(err)
		}
		h.mu.Lock()
		h.list = append(h.list, got{req.Method, req.RequestURI, req.Host, req.Header.Clone(), string(body), req.ContentLength})
		h.mu.Unlock()
		if answer != nil {
			answer(w, req)
		}
	}))
	h.Config.DisableGeneralOptionsHandler = true // which would answer OPTIONS * itself
	h.Start()
	t.Cleanup(h.Close)
	return h
}

func (h *host) requests() []got {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.list)
}

// replay runs the program, as fast as it can unless args say otherwise.
func replay(input string, args ...string) (code int, out, errs string) {
	var stdout, stderr strings.Builder
	code = run(context.Background(), append([]string{"-speed", "max", "-connections", "1"}, args...), strings.NewReader(input), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

func TestARequestIsTheOneThatWasRecorded(t *testing.T) {
	body := func(content string) string {
		text, _ := json.Marshal(content)
		return fmt.Sprintf(`{"content":%s,"size":%d,"truncated":false}`, text, len(content))
	}
	const cutBody = `{"content":"abc","size":7,"truncated":true,"truncated_reason":"limit"}`
	hashed := "hmac-sha256:" + strings.Repeat("0a", 32)
	bytesOf := strings.Repeat("\xff\x00", 3)
	for _, tc := range []struct {
		name string
		is   recorded
		args []string
		want string // as the host sees it
		says string // what is in the summary
	}{
		{"plain", recorded{path: "/api"}, nil, "GET /api", "statuses   1: 200 1\n"},
		{"a query", recorded{path: "/api", query: "a=1&b=%20;c"}, nil, "GET /api?a=1&b=%20;c", ""},
		{"a path that is encoded", recorded{path: "/a%2Fb/%41"}, nil, "GET /a%2Fb/%41", ""},
		{"two slashes first", recorded{path: "//x"}, nil, "GET //x", ""},
		{"two slashes first, and an encoded one", recorded{path: "//x%2Fy//", query: "//q"}, nil, "GET //x%2Fy//?//q", ""},
		{"dots", recorded{path: "/a/../b/./c"}, nil, "GET /a/../b/./c", ""},
		{"what looks like a URL", recorded{path: "/http://x/", query: "u=http://y?z"}, nil, "GET /http://x/?u=http://y?z", ""},
		{"what should be encoded and is not", recorded{path: `/a"b|c`, query: `{"}`}, nil, `GET /a"b|c?{"}`, ""},
		{"a query with a bad percent sign", recorded{path: "/", query: "%zz"}, nil, "GET /?%zz", ""},
		{"two slashes and what should be encoded", recorded{path: `//x"y`}, nil, "", "skipped    1: path that cannot be sent 1\n"},
		{"two slashes and a bad percent sign", recorded{path: `//x%zz`}, nil, "", "path that cannot be sent 1\n"},
		{"a line break", recorded{path: "/ HTTP/1.1\r\nX: y\r\n"}, nil, "", "path that cannot be sent 1\n"},
		{"a space in the query", recorded{query: "a b"}, nil, "", "path that cannot be sent 1\n"},
		{"a path without a slash", recorded{path: "x"}, nil, "", "path that cannot be sent 1\n"},
		{"HEAD", recorded{method: "HEAD", path: "/x"}, nil, "HEAD /x", ""},
		{"OPTIONS *", recorded{method: "OPTIONS", path: "*"}, nil, "OPTIONS *", ""},
		{"a method of its own", recorded{method: "PROPFIND", path: "/dav"}, nil, "PROPFIND /dav", ""},
		{"CONNECT", recorded{method: "CONNECT", path: "x:443"}, nil, "", "skipped    1: CONNECT 1\n"},

		{"headers", recorded{header: map[string][]string{"accept": {"a", "b"}, "x-y": {""}}}, nil, "GET / Accept=a Accept=b X-Y=", ""},
		{"a user agent", recorded{header: map[string][]string{"user-agent": {"curl/8"}}}, nil, "GET / User-Agent=curl/8", ""},
		{"headers of the connection", recorded{header: map[string][]string{
			"connection": {"keep-alive, X-Mine", "upgrade"}, "x-mine": {"1"}, "keep-alive": {"1"}, "te": {"trailers"}, "upgrade": {"websocket"}, "proxy-authorization": {"x"},
			"transfer-encoding": {"chunked"}, "expect": {"100-continue"}, "host": {"evil"}, "content-length": {"9"}, "x-other": {"1"},
		}}, nil, "GET / X-Other=1", ""},
		{"the mark of an earlier replay", recorded{header: map[string][]string{"requestmirror-replay": {"old"}}}, nil, "GET /", ""},
		{"cookies", recorded{cookie: map[string][]string{"b": {"2", "3"}, "a": {"1"}}, header: map[string][]string{"cookie": {"c=4"}}}, nil, "GET / Cookie=a=1; b=2; b=3", ""},
		{"values that were withheld", recorded{header: map[string][]string{"authorization": {"REDACTED"}, "x-id": {"1", hashed, "2"}, "user-agent": {hashed}}}, nil,
			"GET / X-Id=1 X-Id=2", "withheld   1 without values that were redacted or hashed, 0 with others in their place\n"},
		{"other values for them", recorded{header: map[string][]string{"authorization": {"REDACTED"}}}, []string{"-header", "Authorization: Bearer test"},
			"GET / Authorization=Bearer test", "withheld   0 without values that were redacted or hashed, 1 with others in their place\n"},
		{"no other value where nothing was withheld", recorded{header: map[string][]string{"accept": {"x"}}}, []string{"-header", "Authorization: Bearer test", "-header", "accept: y"}, "GET / Accept=x", ""},

		{"a text", recorded{method: "POST", body: body("é\n")}, nil, "POST / \"é\\n\"", ""},
		{"an empty body", recorded{method: "POST", body: body("")}, nil, "POST /", ""},
		{"bytes", recorded{method: "PUT", body: `{"content_base64":"` + base64.StdEncoding.EncodeToString([]byte(bytesOf)) + `","size":6,"truncated":false}`}, nil, "PUT / " + fmt.Sprintf("%q", bytesOf), ""},
		{"GET with a body", recorded{body: body("x")}, nil, "GET / \"x\"", ""},
		{"a body that is cut", recorded{method: "POST", body: cutBody}, nil, "", "skipped    1: body cut: limit 1\n"},
		{"what there is of it", recorded{method: "POST", body: cutBody}, []string{"-truncated", "send"}, "POST / \"abc\"", "bodies     1 sent as far as they are there, 0 padded\n"},
		{"padded", recorded{method: "POST", body: cutBody}, []string{"-truncated", "pad"}, "POST / \"abc    \"", "bodies     0 sent as far as they are there, 1 padded\n"},
		{"nothing of it is there", recorded{method: "POST", body: `{"size":3,"truncated":true,"truncated_reason":"memory"}`}, []string{"-truncated", "send"}, "POST /", ""},
		{"nothing, padded", recorded{method: "POST", body: `{"size":3,"truncated":true,"truncated_reason":"disabled"}`}, []string{"-truncated", "pad"}, "POST / \"   \"", ""},
		{"nothing, and of no known size", recorded{method: "POST", body: `{"truncated":true,"truncated_reason":"disabled"}`}, []string{"-truncated", "pad"}, "", "body cut: disabled, size not known 1\n"},

		{"the host that was asked for", recorded{}, []string{"-keep-host"}, "GET / Host=blog.example.com", ""},
		{"with its port", recorded{server: `{"address":"a.example","port":8443}`, scheme: "https"}, []string{"-keep-host"}, "GET / Host=a.example:8443", ""},
		{"with the port of the scheme", recorded{server: `{"address":"a.example","port":443}`, scheme: "https"}, []string{"-keep-host"}, "GET / Host=a.example", ""},
		{"an address", recorded{server: `{"address":"2001:db8::1","port":80}`}, []string{"-keep-host"}, "GET / Host=[2001:db8::1]", ""},
		{"an address with a port", recorded{server: `{"address":"2001:db8::1","port":81}`}, []string{"-keep-host"}, "GET / Host=[2001:db8::1]:81", ""},
		{"none", recorded{server: `{}`}, []string{"-keep-host"}, "GET /", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, nil)
			tc.is.id = "the-id"
			_, out, errs := replay(line(tc.is), append([]string{"-to", h.URL}, tc.args...)...)
			text := ""
			for _, r := range h.requests() {
				text = r.method + " " + r.target
				if r.host != strings.TrimPrefix(h.URL, "http://") {
					text += " Host=" + r.host
				}
				if r.header.Get(replayHeader) != "the-id" || len(r.header[replayHeader]) != 1 {
					t.Errorf("got %s %q; want the id of the event", replayHeader, r.header[replayHeader])
				}
				r.header.Del(replayHeader)
				r.header.Del("Content-Length")
				for _, name := range sortedKeys(r.header) {
					for _, value := range r.header[name] {
						text += " " + name + "=" + value
					}
				}
				if r.body != "" {
					text += fmt.Sprintf(" %q", r.body)
				}
				if r.length != int64(len(r.body)) {
					t.Errorf("got a length of %d; want %d", r.length, len(r.body))
				}
			}
			if text != tc.want || errs != "" || !strings.Contains(out, tc.says) {
				t.Errorf("got  %s\nwant %s\nand %q in\n%s%s", text, tc.want, tc.says, out, errs)
			}
		})
	}
}

func TestNothingIsSentButTheRequest(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	sent := make(chan string, 1)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		var all strings.Builder
		for !strings.HasSuffix(all.String(), "\r\n\r\n") {
			text, err := r.ReadString('\n')
			if err != nil {
				break
			}
			all.WriteString(text)
		}
		sent <- all.String()
		_, _ = io.WriteString(conn, "HTTP/1.1 204 No Content\r\n\r\n")
	}()
	code, out, errs := replay(line(recorded{id: "7", path: "//a%2Fb"}), "-to", "http://"+listener.Addr().String())
	want := "GET //a%2Fb HTTP/1.1\r\nHost: " + listener.Addr().String() + "\r\nRequestmirror-Replay: 7\r\n\r\n"
	if got := <-sent; got != want || code != 0 || !strings.Contains(out, "204 1") {
		t.Errorf("got %q, code %d; want %q, 0\n%s%s", got, code, want, out, errs)
	}
}

func TestAnAnswerIsOnlyCounted(t *testing.T) {
	h := newHost(t, func(w http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/redirect":
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "1"})
			http.Redirect(w, req, "/elsewhere", http.StatusFound)
		case "/broken":
			panic(http.ErrAbortHandler)
		case "/early":
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
		}
	})
	h.Config.ErrorLog = nil
	var input strings.Builder
	for i, path := range []string{"/redirect", "/ok", "/broken", "/early", "/missing"} {
		input.WriteString(line(recorded{path: path, method: "POST", at: time.Duration(i)}))
	}
	code, out, errs := replay(input.String(), "-to", h.URL)
	var targets []string
	for _, r := range h.requests() {
		targets = append(targets, r.target)
		if r.header.Get("Cookie") != "" {
			t.Errorf("got cookie %q; want none", r.header.Get("Cookie"))
		}
	}
	if fmt.Sprint(targets) != "[/redirect /ok /broken /early /missing]" {
		t.Errorf("got %s; want each once, and no redirect", targets)
	}
	if code != 0 || !strings.Contains(out, "statuses   4: 200 2, 302 1, 418 1\n") || !strings.Contains(out, "no answer  1: broken off 1; the last: ") {
		t.Errorf("got code %d; want 0, three statuses and one that was broken off\n%s%s", code, out, errs)
	}
}

func TestNobodyIsThere(t *testing.T) {
	h := httptest.NewServer(nil)
	h.Close()
	code, out, _ := replay(line(recorded{}), "-to", h.URL)
	if code != 0 || !strings.Contains(out, "statuses   none\nno answer  1: no connection 1; the last: ") {
		t.Errorf("got code %d; want 0 and no connection\n%s", code, out)
	}
}

func TestWhatIsReadAndWhatIsNot(t *testing.T) {
	one := func(n int) string { return strings.TrimSuffix(line(recorded{at: time.Duration(n)}), "\n") }
	for _, tc := range []struct {
		name, input string
		code, sent  int
		says, errs  string
	}{
		{"events", one(1) + "\n\r\n" + one(2) + "\r\n" + one(3), 0, 3, "skipped    none\n", ""},
		{"batches", "[" + one(1) + "," + one(2) + "]\n[]\n" + one(3) + "\n", 0, 3, "skipped    none\n", ""},
		{"an event that is there twice", one(1) + "\n[" + one(2) + "," + one(1) + "]\n", 0, 2, "skipped    1: duplicate 1\n", ""},
		{"reports and events of others", `{"type":"` + reportType + `","id":"1","data":{"url":7}}` + "\n" + `{"type":"com.example"}` + "\n" + one(1), 0, 1, "skipped    2: of another type 1, report 1\n", ""},
		{"a line that is cut", one(1) + "\n" + one(2)[:50] + "\n" + one(3), 1, 2, "unreadable 1\n", "standard input:2: unexpected end of JSON input\n"},
		{"no event", one(1) + "\n{}\nnull\n7\n[null]\n", 1, 1, "unreadable 4\n", "standard input:2: not a CloudEvent: no type\n"},
		{"no time", strings.Replace(one(1), `"time"`, `"emit"`, 1), 1, 0, "unreadable 1\n", "standard input:1: no id or time\n"},
		{"no data", `{"type":"` + requestType + `","id":"1","time":"2026-09-18T12:00:00Z"}`, 1, 0, "unreadable 1\n", "standard input:1: unexpected end"},
		{"no method", strings.Replace(one(1), `"GET"`, `"G T"`, 1), 1, 0, "unreadable 1\n", "standard input:1: no method\n"},
		{"data of another shape", strings.Replace(one(1), `"path":"/"`, `"path":7`, 1), 1, 0, "unreadable 1\n", "standard input:1: json: "},
		{"base64 that is none", strings.Replace(one(1), `"header"`, `"body":{"content_base64":"!"},"header"`, 1), 1, 0, "unreadable 1\n", "standard input:1: illegal base64"},
		{"endlessly deep", strings.Repeat("[", 1<<20) + "\n" + one(1), 1, 1, "unreadable 1\n", "standard input:1: invalid character '[' exceeded max depth\n"},
		{"a reason that nobody knows", strings.Replace(one(1), `"header"`, `"body":{"size":1,"truncated":true,"truncated_reason":"\u001b[2J"},"header"`, 1), 1, 0, "skipped    1: body cut: for another reason 1\n", ""},
		{"more mistakes than are shown", strings.Repeat("x\n", 12) + one(1), 1, 1, "unreadable 12\n", "standard input:10: "},
		{"nothing", "", 1, 0, "sent       0 in 0s, 0.0 per second\nskipped    none\nstatuses   none\nlatency    none\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, nil)
			code, out, errs := replay(tc.input, "-to", h.URL)
			if got := len(h.requests()); code != tc.code || got != tc.sent || !strings.Contains(out, tc.says) || !strings.Contains(errs, tc.errs) || (tc.errs == "") != (errs == "") {
				t.Errorf("got code %d, %d requests; want %d, %d, %q and %q\n%s%.2000s", code, got, tc.code, tc.sent, tc.says, tc.errs, out, errs)
			}
			if strings.Contains(errs, "\x1b") || strings.Contains(errs, ":11: ") {
				t.Errorf("got errors %q; want ten, printable", errs)
			}
		})
	}
}

func TestRequestsAreSentInTheOrderInWhichTheyCame(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	const events = 300
	order := make([]int, events)
	for i := range order {
		order[i] = i
	}
	// Each is at most a few places from where it belongs.
	for i := 0; i+8 <= events; i += 8 {
		random.Shuffle(8, func(a, b int) { order[i+a], order[i+b] = order[i+b], order[i+a] })
	}
	var input strings.Builder
	for _, n := range order {
		input.WriteString(line(recorded{path: fmt.Sprintf("/%03d", n), at: time.Duration(n) * time.Microsecond}))
	}
	paths := func(h *host) (list []string) {
		for _, r := range h.requests() {
			list = append(list, r.target)
		}
		return list
	}
	t.Run("within the window", func(t *testing.T) {
		h := newHost(t, nil)
		_, out, _ := replay(input.String(), "-to", h.URL, "-window", "8")
		if got := paths(h); len(got) != events || !slices.IsSorted(got) || strings.Contains(out, "disorder") {
			t.Errorf("got %v; want all in order\n%s", got, out)
		}
	})
	t.Run("not without one, and that is said", func(t *testing.T) {
		h := newHost(t, nil)
		_, out, _ := replay(input.String(), "-to", h.URL, "-window", "1")
		wrong := 0
		highest := ""
		for _, path := range paths(h) {
			if path < highest {
				wrong++
			}
			highest = max(highest, path)
		}
		if want := fmt.Sprintf("disorder   %d came before", wrong); wrong == 0 || !strings.Contains(out, want) {
			t.Errorf("got\n%s\nwant %q", out, want)
		}
	})
	t.Run("of one moment in the order of the file", func(t *testing.T) {
		h := newHost(t, nil)
		var input strings.Builder
		for n := range 50 {
			input.WriteString(line(recorded{id: fmt.Sprint(n), path: fmt.Sprintf("/%03d", n)}))
		}
		_, _, _ = replay(input.String(), "-to", h.URL)
		if got := paths(h); len(got) != 50 || !slices.IsSorted(got) {
			t.Errorf("got %v; want all in order", got)
		}
	})
	t.Run("out of several files", func(t *testing.T) {
		h := newHost(t, nil)
		dir := t.TempDir()
		files := make([]*os.File, 3)
		for i := range files {
			file, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
			if err != nil {
				t.Fatal(err)
			}
			files[i] = file
		}
		for n := range events {
			if _, err := files[random.Intn(3)].WriteString(line(recorded{path: fmt.Sprintf("/%03d", n), at: time.Duration(n)})); err != nil {
				t.Fatal(err)
			}
		}
		args := []string{"-to", h.URL, "-window", "1"}
		for _, file := range files {
			args = append(args, file.Name())
			_ = file.Close()
		}
		_, _, _ = replay("", args...)
		if got := paths(h); len(got) != events || !slices.IsSorted(got) {
			t.Errorf("got %v; want all in order", got)
		}
		if code, _, errs := replay("", append(args, filepath.Join(dir, "none"))...); code != 1 || !strings.Contains(errs, "none") || len(h.requests()) != events {
			t.Errorf("with a file that is not there: got code %d, %q; want 1, its name, and nothing sent", code, errs)
		}
	})
}

// TestAFileIsNotReadAhead gives ten thousand lines one by one.
func TestAFileIsNotReadAhead(t *testing.T) {
	const events, window = 10000, 100
	filler := strings.Repeat("x", 400)
	given, next := 0, []byte(nil)
	input := readerFunc(func(p []byte) (int, error) {
		if len(next) == 0 {
			if given == events {
				return 0, io.EOF
			}
			next = []byte(line(recorded{at: time.Duration(given), header: map[string][]string{"x": {filler}}}))
			given++
		}
		n := copy(p, next)
		next = next[n:]
		return n, nil
	})
	sum := newSummary(io.Discard)
	most, sent := 0, 0
	p := &player{options: options{connections: 1, timeout: time.Minute, window: window}, sum: sum, stderr: io.Discard}
	p.to = mustTarget(t, "http://127.0.0.1")
	p.transport = roundTripper(func(*http.Request) (*http.Response, error) {
		sent++
		return &http.Response{StatusCode: 200, Body: http.NoBody}, nil
	})
	s := newStream("input", input, window, sum)
	inner := merge([]*stream{s})
	p.play(context.Background(), func() (*event, bool) {
		most = max(most, given-sum.sent)
		return inner()
	})
	if sent != events || sum.sent != events || sum.statuses[200] != events {
		t.Errorf("got %d, %d, %d; want %d", sent, sum.sent, sum.statuses[200], events)
	}
	if most > window+20 { // and what is in the buffer of the reader
		t.Errorf("got %d events read ahead; want about %d", most, window)
	}
}

func TestALineThatIsTooLongIsPassedOver(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for name, tc := range map[string]struct {
		input, errs string
		events      int
	}{
		"the first":       {long + "\n" + line(recorded{}), "input:1: too long\n", 1},
		"the last":        {line(recorded{}) + long, "input:2: too long\n", 1},
		"one in between":  {line(recorded{at: 1}) + long + "\n" + line(recorded{at: 2}), "input:2: too long\n", 2},
		"one by one byte": {strings.Repeat(" ", 1000) + "\n" + line(recorded{}), "input:1: too long\n", 1},
		"almost":          {strings.Repeat(" ", 999) + "\n" + line(recorded{}), "", 1},
	} {
		var errs strings.Builder
		s := newStream("input", strings.NewReader(tc.input), 10, newSummary(&errs))
		if s.maxLine != 64<<20 || s.maxHeld != 64<<20 {
			t.Errorf("got limits of %d and %d; want 64 MiB", s.maxLine, s.maxHeld)
		}
		s.maxLine = 1000
		events := 0
		for _, ok := s.next(); ok; _, ok = s.next() {
			events++
		}
		if events != tc.events || errs.String() != tc.errs || cap(s.line) > 1<<16 {
			t.Errorf("%s: got %d events, %q, %d bytes kept; want %d, %q, few", name, events, errs.String(), cap(s.line), tc.events, tc.errs)
		}
	}
}

func TestWhatWaitsToBeSortedIsBounded(t *testing.T) {
	var input strings.Builder
	for n := range 20 {
		input.WriteString(line(recorded{at: time.Duration(n), body: `{"content":"` + strings.Repeat("x", 1000) + `","size":1000}`}))
	}
	s := newStream("input", strings.NewReader(input.String()), 1000, newSummary(io.Discard))
	s.maxHeld = 5000
	events, most := 0, 0
	for _, ok := s.next(); ok; _, ok = s.next() {
		events++
		most = max(most, len(s.held))
		if s.bytes > s.maxHeld || s.bytes < 0 {
			t.Fatalf("got %d bytes held; want at most %d", s.bytes, s.maxHeld)
		}
	}
	if events != 20 || most != 4 || s.bytes != 0 {
		t.Errorf("got %d events, at most %d held, %d bytes at the end; want 20, 4, 0", events, most, s.bytes)
	}
}

func TestIdsTakeABoundedMemory(t *testing.T) {
	s := newStream("input", strings.NewReader(""), 1, newSummary(io.Discard))
	take := func(n int) { s.take(&event{ID: fmt.Sprint(n), Type: requestType, Time: noon}) }
	for n := range 2*remember + 1 {
		take(n)
		s.held = s.held[:0]
	}
	if got := len(s.ids) + len(s.old); got > 2*remember {
		t.Errorf("got %d ids; want at most %d", got, 2*remember)
	}
	take(2 * remember)
	take(remember + 1)
	if s.sum.skipped["duplicate"] != 2 {
		t.Errorf("got %d duplicates; want 2: the last ones are known", s.sum.skipped["duplicate"])
	}
}

func TestOptions(t *testing.T) {
	for _, tc := range []struct {
		args string
		code int
		errs string
	}{
		{"", 2, "-to: nothing was given"},
		{"-to http://shop.example.com", 2, "shop.example.com is not this machine"},
		{"-to http://localhost.example.com:80", 2, "is not this machine"},
		{"-to http://10.0.0.1:80", 2, "10.0.0.1 is not this machine"},
		{"-to http://0.0.0.0:80", 2, "0.0.0.0 is not this machine"},
		{"-to http://[2001:db8::1]:80", 2, "is not this machine"},
		{"-to http://127.0.0.1.example.com/", 2, "is not this machine"},
		{"-to http://127.0.0.1@example.com/", 2, "want a scheme and a host only"},
		{"-to http://127.0.0.1/api", 2, "want a scheme and a host only"},
		{"-to ftp://127.0.0.1", 2, "want an http or https URL"},
		{"-to 127.0.0.1:80", 2, "-to"},
		{"-to http://127.0.0.1 -speed 0", 2, "want a number above 0, or max"},
		{"-to http://127.0.0.1 -speed -1", 2, "want a number above 0, or max"},
		{"-to http://127.0.0.1 -speed NaN", 2, "want a number above 0, or max"},
		{"-to http://127.0.0.1 -speed Inf", 2, "want a number above 0, or max"},
		{"-to http://127.0.0.1 -connections 0", 2, "-connections: 0"},
		{"-to http://127.0.0.1 -window 0", 2, "-window: 0"},
		{"-to http://127.0.0.1 -timeout 0", 2, "-timeout"},
		{"-to http://127.0.0.1 -limit -1", 2, "-limit"},
		{"-to http://127.0.0.1 -truncated cut", 2, `-truncated: "cut"`},
		{"-to http://127.0.0.1 -header x", 2, "want a name, a colon and a value"},
		{"-to http://127.0.0.1 -header a\u00a0b:c", 2, "want a name, a colon and a value"},
		{"-no-such", 2, "no-such"},
		{"-h", 0, "usage: replay -to"},
		// These are taken: there is only nothing to send.
		{"-to http://localhost:1", 1, ""},
		{"-to https://127.8.8.8:1/", 1, ""},
		{"-to http://[::1]:1", 1, ""},
		{"-to http://shop.example.com -host-is-mine", 1, ""},
		{"-to http://shop.example.com -dry-run", 1, ""},
		{"-dry-run -speed 2.5 -for 1h", 1, ""},
	} {
		var stdout, stderr strings.Builder
		code := run(context.Background(), strings.Fields(tc.args), strings.NewReader(""), &stdout, &stderr)
		if code != tc.code || !strings.Contains(stderr.String(), tc.errs) {
			t.Errorf("%s: got code %d, %q; want %d, %q", tc.args, code, stderr.String(), tc.code, tc.errs)
		}
	}
}

func TestANameThatLeadsElsewhereIsNotConnectedTo(t *testing.T) {
	for address, want := range map[string]bool{"127.0.0.1:80": true, "[::1]:80": true, "[::ffff:127.0.0.1]:80": true, "10.0.0.1:80": false, "[2001:db8::1]:80": false, "0.0.0.0:80": false} {
		if err := refuseOthers("tcp", address, nil); (err == nil) != want {
			t.Errorf("%s: got %v; want it allowed: %t", address, err, want)
		}
	}
	// As if localhost were somewhere else. 192.0.2.0/24 is for documentation: nobody is there.
	p := &player{options: options{timeout: time.Minute}, transport: newTransport(options{connections: 1})}
	req, err := http.NewRequest("GET", "http://192.0.2.1:9/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.send(req); err == nil || !strings.Contains(err.Error(), "192.0.2.1:9 is not this machine") {
		t.Errorf("got %v; want a refusal", err)
	}
}

func TestADryRunShowsWhatWouldBeSent(t *testing.T) {
	h := newHost(t, nil)
	input := line(recorded{id: "1", method: "POST", path: "/api/comments", query: "lang=en", header: map[string][]string{"authorization": {"REDACTED"}, "accept": {"a", "b"}}, cookie: map[string][]string{"v": {"1"}},
		body: `{"content":"{\"post\":42}","size":11,"truncated":false}`}) +
		line(recorded{id: "2", at: 3 * time.Second, path: "/x", header: map[string][]string{"x": {"\x1b[2J"}}}) +
		line(recorded{id: "3", at: 9 * time.Second})
	code, out, errs := replay(input, "-to", h.URL, "-dry-run", "-speed", "2", "-limit", "2")
	want := `# after 0.000s, body of 11 bytes
POST /api/comments?lang=en HTTP/1.1
Host: HOST
Accept: a
Accept: b
Cookie: v=1
Requestmirror-Replay: 1

# after 1.500s, body of 0 bytes
GET /x HTTP/1.1
Host: HOST
Requestmirror-Replay: 2
X: "\x1b[2J"

to send    2
skipped    none
withheld   1 without values that were redacted or hashed, 0 with others in their place
`
	if out = strings.ReplaceAll(out, strings.TrimPrefix(h.URL, "http://"), "HOST"); out != want || code != 0 || errs != "" || len(h.requests()) > 0 {
		t.Errorf("got code %d, %d requests and\n%s%s\nwant 0, none and\n%s", code, len(h.requests()), out, errs, want)
	}
	if _, out, _ := replay(input, "-dry-run"); !strings.Contains(out, "# at once, body of 0 bytes\nGET /x HTTP/1.1\nHost: localhost\n") {
		t.Errorf("without a target: got\n%s", out)
	}
}

func TestQuantilesAreNearlyExact(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	var h histogram
	var all []time.Duration
	for range 5000 {
		d := time.Duration(1) << random.Intn(38)
		d += time.Duration(random.Int63n(int64(d)))
		h.add(d)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 1} {
		want := all[max(0, int(q*float64(len(all)))-1)]
		got := h.quantile(q)
		if diff := (got - want).Abs(); diff > want/60+time.Microsecond {
			t.Errorf("quantile %v: got %s; want %s", q, got, want)
		}
	}
	var none, one, extreme histogram
	one.add(1234567 * time.Microsecond)
	extreme.add(1<<63 - 1)
	extreme.add(-1)
	if none.quantile(0.5) != 0 || none.String() != "none" || one.quantile(0.5) != 1234567*time.Microsecond || extreme.quantile(1) != 1<<63-1 && extreme.quantile(1) < 1<<62 || extreme.quantile(0.5) != 0 {
		t.Errorf("got %s, %s, %s; want nothing, the only one, the extremes", none.String(), one.String(), extreme.String())
	}
}

func mustTarget(t *testing.T, text string) *url.URL {
	t.Helper()
	to, err := parseTarget(text)
	if err != nil {
		t.Fatal(err)
	}
	return to
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }
