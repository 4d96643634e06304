package docs

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"go/format"
	"go/parser"
	"go/token"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror"
	"github.com/opencommit/requestmirror/test/event"
)

// TestEveryEventIsValid gives each event on a page to the reader that all tests trust.
func TestEveryEventIsValid(t *testing.T) {
	events := 0
	eachBlock(t, "json", func(t *testing.T, b block) {
		var members map[string]json.RawMessage
		if err := json.Unmarshal([]byte(b.text), &members); err != nil {
			t.Fatal(err)
		}
		if members["specversion"] == nil {
			return
		}
		events++
		if _, err := event.Read([]byte(b.text)); err != nil {
			t.Error(err)
		}
	})
	if events < 2 {
		t.Errorf("got %d events; want at least 2", events)
	}
}

// TestCountersAreThoseOfThePlugin compares the names, and whether they add up.
func TestCountersAreThoseOfThePlugin(t *testing.T) {
	var shown struct{ Middlewares map[string]map[string]any }
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang == "json" && strings.Contains(b.text, `"configErrors"`) {
				if err := json.Unmarshal([]byte(b.text), &shown); err != nil {
					t.Fatal(err)
				}
				checkCounters(t, p, shown.Middlewares["mirror@file"])
			}
		}
	}
	if shown.Middlewares == nil {
		t.Error("got no page with counters; want one")
	}
}

func checkCounters(t *testing.T, p *page, page map[string]any) {
	t.Helper()
	config, err := decode(map[string]any{"watchURL": "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := requestmirror.New(canceled(t), next, config, "counted@file"); err != nil {
		t.Fatal(err)
	}
	real := counters(t, "counted@file")
	checkNamesOfCounters(t, p, page, real)
	receivers, _ := page["receivers"].(map[string]any)
	if len(receivers) == 0 {
		t.Fatalf("%s: got no receivers; want one", p.name)
	}
	for _, one := range receivers {
		checkReceiver(t, p, one.(map[string]any), real["receivers"].(map[string]any)["http://127.0.0.1:1"].(map[string]any))
	}
}

// checkNamesOfCounters sees to it that a page shows and explains all counters, and no others.
func checkNamesOfCounters(t *testing.T, p *page, page, real map[string]any) {
	t.Helper()
	for name := range real {
		if page[name] == nil {
			t.Errorf("%s: got no %s among the counters; want it", p.name, name)
		}
		if !strings.Contains(p.text, "`"+name+"`") {
			t.Errorf("%s: got no row for %s; want one", p.name, name)
		}
	}
	for name := range page {
		if real[name] == nil {
			t.Errorf("%s: got %s among the counters, which the plugin does not have", p.name, name)
		}
	}
}

func checkReceiver(t *testing.T, p *page, page, real map[string]any) {
	t.Helper()
	checkNamesOfCounters(t, p, page, real)
	sum := func(names ...string) (n float64) {
		for _, name := range names {
			switch v := page[name].(type) {
			case float64:
				n += v
			case map[string]any:
				for _, count := range v {
					n += count.(float64)
				}
			}
		}
		return n
	}
	if sum("seen") != sum("filtered", "sampledOut", "enqueued", "dropped") ||
		sum("enqueued") != sum("delivered", "failed", "waiting", "inFlight") || sum("waiting") != sum("queueLength") {
		t.Errorf("%s: the counters do not add up: %v", p.name, page)
	}
}

// TestGoPrograms vets every whole program and parses every fragment.
func TestGoPrograms(t *testing.T) {
	programs := 0
	n := eachBlock(t, "go", func(t *testing.T, b block) {
		if !strings.HasPrefix(b.text, "package ") {
			parseFragment(t, b.text)
			return
		}
		programs++
		if got, err := format.Source([]byte(b.text)); err != nil || string(got) != b.text {
			t.Errorf("not as gofmt has it: %v", err)
		}
		text := b.text
		if !strings.Contains(text, "func main()") {
			text += "\nfunc main() {}\n"
		}
		vet(t, text)
	})
	if programs < 3 || n < 10 {
		t.Errorf("got %d programs, %d blocks; want at least 3 and 10", programs, n)
	}
}

func vet(t *testing.T, text string) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "vet", name).CombinedOutput(); err != nil {
		t.Errorf("go vet: %v\n%s", err, out)
	}
}

// parseFragment takes declarations, or statements, or a paragraph of each.
func parseFragment(t *testing.T, text string) {
	t.Helper()
	for _, paragraph := range strings.Split(text, "\n\n") {
		var first error
		for _, form := range []string{"package p\n" + paragraph, "package p\nfunc _() {\n" + paragraph + "\n}"} {
			_, err := parser.ParseFile(token.NewFileSet(), "fragment.go", form, parser.SkipObjectResolution)
			if err == nil {
				first = nil
				break
			}
			first = err
		}
		if first != nil && !mixed(paragraph) {
			t.Errorf("%v in\n%s", first, paragraph)
		}
	}
}

// mixed says whether each line of a paragraph is a declaration or a statement.
func mixed(paragraph string) bool {
	for _, line := range strings.Split(paragraph, "\n") {
		_, asStatement := parser.ParseFile(token.NewFileSet(), "", "package p\nfunc _() {\n"+line+"\n}", 0)
		_, asDeclaration := parser.ParseFile(token.NewFileSet(), "", "package p\n"+line, 0)
		if asStatement != nil && asDeclaration != nil {
			return false
		}
	}
	return true
}

// TestOtherPrograms has their own languages parse them, where these are installed.
func TestOtherPrograms(t *testing.T) {
	for _, other := range []struct{ lang, program, ext string }{{"python", "python3", ".py"}, {"js", "node", ".js"}} {
		n := eachBlock(t, other.lang, func(t *testing.T, b block) {
			name := filepath.Join(t.TempDir(), "receiver"+other.ext)
			if err := os.WriteFile(name, []byte(b.text), 0o600); err != nil {
				t.Fatal(err)
			}
			args := []string{"--check", name}
			if other.lang == "python" {
				args = []string{"-c", "import ast, sys; ast.parse(open(sys.argv[1]).read())", name}
			}
			if _, err := exec.LookPath(other.program); err != nil {
				leaveOut(t, "the program was not looked at: "+other.program+" is not installed")
			}
			if out, err := exec.Command(other.program, args...).CombinedOutput(); err != nil {
				t.Errorf("%v\n%s", err, out)
			}
		})
		if n == 0 {
			t.Errorf("got no block in %s; want one", other.lang)
		}
	}
}

// TestShellCommands has the shell parse them.
func TestShellCommands(t *testing.T) {
	eachBlock(t, "sh", func(t *testing.T, b block) {
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = strings.NewReader(b.text)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// TestTheVerifierOnThePageVerifies runs the standard-library verifier against deliveries.
func TestTheVerifierOnThePageVerifies(t *testing.T) {
	text := ""
	eachBlock(t, "go", func(t *testing.T, b block) {
		if strings.Contains(b.text, "func verified(") {
			text = b.text
		}
	})
	if text == "" {
		t.Fatal("got no page with func verified; want one")
	}
	dir := t.TempDir()
	main := `package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	payload, _ := io.ReadAll(os.Stdin)
	h := http.Header{"Webhook-Id": {os.Args[2]}, "Webhook-Timestamp": {os.Args[3]}, "Webhook-Signature": {os.Args[4]}}
	fmt.Print(verified(os.Args[1], h, payload), verified(os.Args[1], h, append(payload, ' ')))
}
`
	program := filepath.Join(dir, "verifier")
	for name, content := range map[string]string{"main.go": main, "verify.go": text, "go.mod": "module verifier\n\ngo 1.22\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = dir
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}

	d := deliver(t, map[string]any{"signingSecrets": []string{aSecret}}, httptest.NewRequest("GET", "/", nil))
	for secret, want := range map[string]string{aSecret: "true false", "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc": "false false"} {
		run := exec.Command(program, secret, d.header.Get("Webhook-Id"), d.header.Get("Webhook-Timestamp"), d.header.Get("Webhook-Signature"))
		run.Stdin = strings.NewReader(string(d.payload))
		got, err := run.Output()
		if err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
}

// TestTheHeadersOfADeliveryAreInTheReference looks at a real one.
func TestTheHeadersOfADeliveryAreInTheReference(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "reference", "delivery.md"))
	if err != nil {
		t.Fatal(err)
	}
	req := httptest.NewRequest("GET", "/", nil)
	req.Header.Set("Traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	req.Header.Set("X-Long", strings.Repeat("long ", 1000)) // worth compressing
	options := map[string]any{"signingSecrets": []string{aSecret}, "$user": "ada:lovelace@", "compression": "gzip", "requestOrigin": "mirror.example.com"}
	d := deliver(t, options, req)
	for name := range d.header {
		if name != "Content-Length" && !strings.Contains(strings.ToLower(string(text)), "| `"+strings.ToLower(name)+"` |") {
			t.Errorf("got %s in a delivery, and no row in delivery.md", name)
		}
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Za-z-]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		if d.header.Get(row[1]) == "" {
			t.Errorf("got a row for %s in delivery.md, and none in a delivery", row[1])
		}
	}
	if _, err := event.FromRequest(d.header, gunzip(t, d.payload)); err != nil {
		t.Error(err)
	}
}

// TestTheBatchReceiverOnThePageReadsDeliveries runs the function read of the page against
// deliveries: one event and a batch, compressed and not, and what is not signed.
func TestTheBatchReceiverOnThePageReadsDeliveries(t *testing.T) {
	text := ""
	eachBlock(t, "go", func(t *testing.T, b block) {
		if strings.Contains(b.text, "cehttp.IsHTTPBatch") {
			text = b.text
		}
	})
	if text == "" {
		t.Fatal("got no page with a receiver of batches; want one")
	}
	port := freePorts(t, "9000")["9000"]
	dir := t.TempDir()
	name := filepath.Join(dir, "main.go")
	if err := os.WriteFile(name, []byte(strings.Replace(text, `":9000"`, `"127.0.0.1:`+port+`"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	// Here, and not there, as the module of the tests has what the program imports.
	program := filepath.Join(dir, "receiver")
	if out, err := exec.Command("go", "build", "-o", program, name).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	t.Setenv("MIRROR_SECRET", aSecret)
	receiver := start(t, dir, program)
	eventually(t, "the receiver to listen", func() bool {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	})

	long := httptest.NewRequest("GET", "/long", nil)
	long.Header.Set("X-Long", strings.Repeat("long ", 1000))
	for _, tc := range []struct {
		name    string
		options map[string]any
		req     *http.Request
		want    string
	}{
		{"one event", map[string]any{}, httptest.NewRequest("GET", "/one", nil), " /one\n"},
		{"a batch", map[string]any{"batch": map[string]any{"maxEvents": 2}}, httptest.NewRequest("GET", "/batch", nil), " /batch\n"},
		{"a batch that is compressed", map[string]any{"batch": map[string]any{"maxEvents": 2}, "compression": "gzip"}, long, " /long\n"},
	} {
		t.Run(tc.name+" is read", func(t *testing.T) {
			tc.options["signingSecrets"] = []string{aSecret}
			d := deliver(t, tc.options, tc.req)
			if status := forward(t, port, d); status != http.StatusNoContent {
				t.Errorf("got %d; want 204", status)
			}
			eventually(t, "the receiver to print "+tc.want, func() bool { return strings.Contains(receiver.out.String(), tc.want) })
			d.payload[len(d.payload)-1] ^= 1
			if status := forward(t, port, d); status != http.StatusUnauthorized {
				t.Errorf("a changed byte: got %d; want 401", status)
			}
		})
	}
}

// forward sends a delivery to another receiver.
func forward(t *testing.T, port string, d delivery) int {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://127.0.0.1:"+port+"/events", bytes.NewReader(d.payload))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = d.header.Clone()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func gunzip(t *testing.T, payload []byte) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		t.Fatal(err)
	}
	return readAll(t, z)
}

// delivery is what a receiver gets.
type delivery struct {
	header  http.Header
	payload []byte
}

// deliver mirrors a request and returns what its receiver gets.
func deliver(t *testing.T, options map[string]any, req *http.Request) delivery {
	t.Helper()
	got := make(chan delivery, 1)
	receiver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodOptions {
			w.Header().Set("WebHook-Allowed-Origin", "*") // the handshake, if there is one
			return
		}
		var d delivery
		d.header = req.Header
		d.payload = readAll(t, req.Body)
		got <- d
	}))
	t.Cleanup(receiver.Close)
	user, _ := options["$user"].(string)
	delete(options, "$user")
	options["watchURL"] = strings.Replace(receiver.URL, "http://", "http://"+user, 1)
	options["strict"] = true
	config, err := decode(options)
	if err != nil {
		t.Fatal(err)
	}
	handler, err := requestmirror.New(canceled(t), next, config, t.Name()+"@file")
	if err != nil {
		t.Fatal(err)
	}
	handler.ServeHTTP(httptest.NewRecorder(), req)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	select {
	case d := <-got:
		return d
	case <-ctx.Done():
		t.Fatal("nothing was delivered within 20 s")
		return delivery{}
	}
}
