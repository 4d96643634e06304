package docs

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencommit/requestmirror"
	"github.com/opencommit/requestmirror/test/lab"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

// TestTheReceiversOnThePage runs the programs in Node and Python of the page on signatures,
// with the official libraries, and gives them what the middleware sends, and what anybody may.
func TestTheReceiversOnThePage(t *testing.T) {
	for _, program := range []struct {
		name, lang, file string
		listen, instead  string // what it listens on, on the page and here
		command          func(*testing.T) string
	}{
		{"Node", "js", "receiver.js", "listen(9000)", `listen(%s, "127.0.0.1")`, nodeWithLibrary},
		{"Python", "python", "receiver.py", `("", 9000)`, `("127.0.0.1", %s)`, pythonWithLibrary},
	} {
		t.Run(program.name, func(t *testing.T) {
			text := ""
			for _, p := range pages(t) {
				for _, b := range p.blocks {
					if b.page == "docs/how-to/verify-signatures.md" && b.lang == program.lang {
						text = b.text
					}
				}
			}
			if !strings.Contains(text, program.listen) {
				t.Fatalf("got no program that has %s on the page; want one:\n%s", program.listen, text)
			}
			command := program.command(t)
			port := freePorts(t, "9000")["9000"]
			dir := t.TempDir()
			text = strings.Replace(text, program.listen, fmt.Sprintf(program.instead, port), 1)
			if err := os.WriteFile(filepath.Join(dir, program.file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			t.Setenv("MIRROR_SECRET", aSecret)
			receiver := start(t, dir, command, program.file)
			awaitListener(t, port)
			checkReceiverOfAPage(t, port, receiver)
		})
	}
}

// TestTheReceiverInGoOnThePage likewise. It looks at nothing but the signature, so what is
// packed is good, too.
func TestTheReceiverInGoOnThePage(t *testing.T) {
	text := ""
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.page == "docs/how-to/verify-signatures.md" && strings.Contains(b.text, "standardwebhooks.NewWebhook") {
				text = b.text
			}
		}
	}
	if !strings.Contains(text, `":9000"`) {
		t.Fatalf("got no program that listens on :9000 on the page; want one:\n%s", text)
	}
	port := freePorts(t, "9000")["9000"]
	dir := t.TempDir()
	name, program := filepath.Join(dir, "main.go"), filepath.Join(dir, "receiver")
	if err := os.WriteFile(name, []byte(strings.Replace(text, `":9000"`, `"127.0.0.1:`+port+`"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	// Here, and not there, as the module of the tests has the library.
	if out, err := exec.Command("go", "build", "-o", program, name).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	t.Setenv("MIRROR_SECRET", aSecret)
	start(t, dir, program)
	awaitListener(t, port)

	options := map[string]any{"signingSecrets": []string{aSecret}, "compression": "gzip", "batch": map[string]any{"maxEvents": 2, "flushInterval": "20s"}}
	d := deliverAll(t, options, "", "/first/"+strings.Repeat("long", 1000), "/second")[0]
	expectStatus(t, port, d, http.StatusNoContent)
	expectStatus(t, port, changed(d, func(d *delivery) { d.payload[len(d.payload)-2] ^= 1 }), http.StatusUnauthorized)
	expectStatus(t, port, changed(d, func(d *delivery) { d.header.Del("webhook-signature") }), http.StatusUnauthorized)
	expectStatus(t, port, signedDelivery(t, strings.Repeat(" ", 8<<20)), http.StatusNoContent)
	expectStatus(t, port, signedDelivery(t, strings.Repeat(" ", 8<<20+1)), http.StatusRequestEntityTooLarge)
	breakOff(t, port)
	expectStatus(t, port, d, http.StatusNoContent)
}

func awaitListener(t *testing.T, port string) {
	t.Helper()
	eventually(t, "the receiver to listen", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})
}

// breakOff begins uploads, and does not go on, as a client that is killed.
func breakOff(t *testing.T, port string) {
	t.Helper()
	for range 20 {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"); err != nil {
			t.Fatal(err)
		}
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
}

func checkReceiverOfAPage(t *testing.T, port string, receiver *process) {
	signing := map[string]any{"signingSecrets": []string{aSecret}}
	with := func(name string, value any) map[string]any {
		return map[string]any{"signingSecrets": []string{aSecret}, name: value}
	}
	printed := func(t *testing.T, line string) {
		t.Helper()
		eventually(t, "the receiver to print "+line, func() bool { return strings.Contains(receiver.out.String(), line) })
	}

	t.Run("events and batches are read", func(t *testing.T) {
		for _, d := range deliverAll(t, signing, "", "/one", "/%C3%A4 b") {
			expectStatus(t, port, d, http.StatusNoContent)
		}
		printed(t, "GET /one")
		printed(t, "GET /%C3%A4%20b")
		all := deliverAll(t, with("batch", map[string]any{"maxEvents": 3, "flushInterval": "20s"}), "", "/first", "/second", "/third")
		if len(all) != 1 {
			t.Fatalf("got %d deliveries; want a batch of three", len(all))
		}
		expectStatus(t, port, all[0], http.StatusNoContent)
		printed(t, "GET /first\nGET /second\nGET /third")
	})
	t.Run("a report is taken", func(t *testing.T) {
		report := deliverAll(t, with("reportInterval", "1s"), ".report.v1", "/before-the-report")
		expectStatus(t, port, report[len(report)-1], http.StatusNoContent)
	})
	t.Run("what is not signed as it must be is refused", func(t *testing.T) {
		d := deliverAll(t, signing, "", "/refused")[0]
		expectStatus(t, port, changed(d, func(d *delivery) { d.payload[len(d.payload)-2] ^= 1 }), http.StatusUnauthorized)
		expectStatus(t, port, changed(d, func(d *delivery) { d.payload = nil }), http.StatusUnauthorized)
		for _, signature := range []string{"", "v1", "v1,", "v1,%%%", "v1,AAAA", "v2," + strings.TrimPrefix(d.header.Get("webhook-signature"), "v1,")} {
			expectStatus(t, port, changed(d, func(d *delivery) { d.header.Set("webhook-signature", signature) }), http.StatusUnauthorized)
		}
		for _, at := range []string{"", "now", "-1", "1e400", "253402300800", fmt.Sprint(time.Now().Add(-6 * time.Minute).Unix())} {
			expectStatus(t, port, changed(d, func(d *delivery) { d.header.Set("webhook-timestamp", at) }), http.StatusUnauthorized)
		}
		other := map[string]any{"signingSecrets": []string{"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc"}}
		expectStatus(t, port, deliverAll(t, other, "", "/refused")[0], http.StatusUnauthorized)
		packed := with("compression", "gzip")
		expectStatus(t, port, deliverAll(t, packed, "", "/refused/"+strings.Repeat("long", 1000))[0], http.StatusUnauthorized)
		if strings.Contains(receiver.out.String(), "/refused") {
			t.Errorf("got %s; want nothing of what was refused", receiver.out.String())
		}
	})
	t.Run("what is signed and no event is refused", func(t *testing.T) {
		for _, payload := range []string{`{}`, `null`, `1`, `"text"`, `[[]]`, `[null]`, `{"type":1}`, `{"type":"io.opencommit.requestmirror.request.v1"}`} {
			expectStatus(t, port, signedDelivery(t, payload), http.StatusBadRequest)
		}
		expectStatus(t, port, signedDelivery(t, `{`), http.StatusUnauthorized) // the libraries parse it, too
	})
	t.Run("an upload that is broken off does no harm", func(t *testing.T) {
		breakOff(t, port)
		expectStatus(t, port, deliverAll(t, signing, "", "/after")[0], http.StatusNoContent)
		printed(t, "GET /after")
	})
	t.Run("no more is read than 8 MiB", func(t *testing.T) {
		for header, want := range map[string]string{
			"Content-Length: 8388609":    " 413 ",
			"Content-Length: -1":         " 4", // Node's parser refuses it before
			"Transfer-Encoding: chunked": " 411 ",
		} {
			conn, err := net.Dial("tcp", "127.0.0.1:"+port)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
			if _, err := io.WriteString(conn, "POST /events HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 100)
			n, err := conn.Read(answer) // while the body is still to come
			line, _, _ := strings.Cut(string(answer[:n]), "\r\n")
			if err != nil || !strings.Contains(line+" ", want) {
				t.Errorf("%s: got %q, %v; want%s", header, line, err, want)
			}
		}
		// As much as is allowed is read, and found not to be signed.
		d := signedDelivery(t, strings.Repeat(" ", 8<<20))
		d.payload[0] = 'x'
		expectStatus(t, port, d, http.StatusUnauthorized)
		expectStatus(t, port, deliverAll(t, signing, "", "/last")[0], http.StatusNoContent)
		printed(t, "GET /last")
	})
}

func expectStatus(t *testing.T, port string, d delivery, want int) {
	t.Helper()
	if got := forward(t, port, d); got != want {
		t.Errorf("%.100q with signature %q at %q: got %d; want %d", d.payload, d.header.Get("webhook-signature"), d.header.Get("webhook-timestamp"), got, want)
	}
}

// changed is a copy of a delivery with a difference.
func changed(d delivery, change func(*delivery)) delivery {
	d.header, d.payload = d.header.Clone(), bytes.Clone(d.payload)
	change(&d)
	return d
}

// signedDelivery is what the middleware would never send.
func signedDelivery(t *testing.T, payload string) delivery {
	t.Helper()
	webhook, err := standardwebhooks.NewWebhook(aSecret)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	signature, err := webhook.Sign("1", now, []byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	return delivery{http.Header{"Webhook-Id": {"1"}, "Webhook-Timestamp": {fmt.Sprint(now.Unix())}, "Webhook-Signature": {signature}}, []byte(payload)}
}

// deliverAll mirrors requests for paths and returns the deliveries up to the one that has
// the last of them, and further ones until one has the text.
func deliverAll(t *testing.T, options map[string]any, until string, paths ...string) (all []delivery) {
	t.Helper()
	got := make(chan delivery)
	ended := make(chan struct{})
	var once sync.Once
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		d := delivery{req.Header, readAll(t, req.Body)}
		select {
		case got <- d:
		case <-ended:
		}
	}))
	defer receiver.Close()
	defer once.Do(func() { close(ended) })
	options["watchURL"], options["strict"], options["workers"] = receiver.URL, true, 1
	config, err := decode(options)
	if err != nil {
		t.Fatal(err)
	}
	handler, err := requestmirror.New(canceled(t), next, config, fmt.Sprintf("%s-%s@file", t.Name(), paths[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", strings.ReplaceAll(path, " ", "%20"), nil))
	}
	late := time.After(20 * time.Second)
	for seen := 0; seen < len(paths) || until != ""; {
		select {
		case d := <-got:
			all = append(all, d)
			text := d.payload
			if d.header.Get("Content-Encoding") == "gzip" {
				text = gunzip(t, text)
			}
			if bytes.Contains(text, []byte(until)) {
				until = ""
			}
			seen += bytes.Count(text, []byte(".request.v1"))
		case <-late:
			t.Fatalf("got %d deliveries within 20 s; want all of %.50q %s", len(all), paths, until)
		}
	}
	return all
}

// leaveOut says what was not tested. In CI all is, but for what cannot be had there.
func leaveOut(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(why)
	}
	skip(t, why)
}

func skip(t *testing.T, why string) {
	t.Helper()
	if err := lab.NotTested(why); err != nil {
		t.Error(err)
	}
	t.Skip(why)
}

// nodeWithLibrary returns Node, and has it find the library as package-lock.json pins it.
func nodeWithLibrary(t *testing.T) string {
	t.Helper()
	node, err := exec.LookPath("node")
	if err != nil {
		leaveOut(t, "the program in Node was not run: Node is not installed")
	}
	dir, err := filepath.Abs(filepath.Join(root, ".cache", "docs-node"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = os.Stat(filepath.Join(dir, "node_modules", "standardwebhooks", "package.json"))
	stale := err != nil
	for _, name := range []string{"package.json", "package-lock.json"} {
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, want) {
			stale = true
			if err := os.WriteFile(filepath.Join(dir, name), want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if stale {
		npm := exec.CommandContext(t.Context(), "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		npm.Dir = dir
		if out, err := npm.CombinedOutput(); err != nil {
			_ = os.Remove(filepath.Join(dir, "package-lock.json")) // so that it is tried again
			leaveOut(t, fmt.Sprintf("the program in Node was not run: standardwebhooks could not be installed: npm ci: %v %.300s", err, out))
		}
	}
	t.Setenv("NODE_PATH", filepath.Join(dir, "node_modules"))
	return node
}

// pythonLibrary is what the program in Python imports.
const pythonLibrary = "standardwebhooks==1.1.0"

// pythonWithLibrary returns Python with the library, which pip gets. Some machines of CI
// reach no index for pip; DOCS_PYTHON=required fails there.
func pythonWithLibrary(t *testing.T) string {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		leaveOut(t, "the program in Python was not run: Python is not installed")
	}
	const look = "import standardwebhooks"
	if exec.Command(python, "-c", look).Run() == nil {
		return python
	}
	dir, err := filepath.Abs(filepath.Join(root, ".cache", "docs-python-"+pythonLibrary))
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "bin", "python3")
	if exec.Command(own, "-c", look).Run() == nil {
		return own
	}
	out, err := exec.CommandContext(t.Context(), python, "-m", "venv", dir).CombinedOutput()
	if err == nil {
		out, err = exec.CommandContext(t.Context(), own, "-m", "pip", "install", "--quiet", "--retries=1", pythonLibrary).CombinedOutput()
	}
	if err != nil {
		why := fmt.Sprintf("the program in Python was not run: %s could not be installed: %v %.300s", pythonLibrary, err, bytes.TrimSpace(out))
		if os.Getenv("DOCS_PYTHON") == "required" {
			t.Fatal(why)
		}
		skip(t, strings.ReplaceAll(why, "\n", "; "))
	}
	return own
}
