package docs

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// TestTheTutorial does what the tutorial says, with examples/quickstart and a real
// Traefik, and compares what is seen with the blocks of text on the page.
func TestTheTutorial(t *testing.T) {
	traefikBin, err := lab.FindTraefik()
	if err != nil {
		t.Fatal(err) // it says how to get one
	}
	said := textBlocks(t, "docs/tutorial/first-mirror.md")
	dir := t.TempDir()
	ports := freePorts(t, "8000", "8080", "9000", "9001")
	copyWithPorts(t, dir, ports, "traefik.yml", "dynamic.yml")
	plugin := filepath.Join(dir, "plugins-local", "src", "github.com", "opencommit")
	if err := os.MkdirAll(plugin, 0o755); err != nil {
		t.Fatal(err)
	}
	repository, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(repository, filepath.Join(plugin, "requestmirror")); err != nil {
		t.Fatal(err)
	}

	// Steps 2 to 4.
	backendBin := build(t, dir, filepath.Join(root, "examples", "quickstart"), "backend.go")
	receiverBin := build(t, dir, filepath.Join(root, "examples", "receiver"), ".")
	start(t, dir, backendBin, "-listen", "127.0.0.1:"+ports["9001"])
	receiver := start(t, dir, receiverBin, "-listen", "127.0.0.1:"+ports["9000"])
	traefik := start(t, dir, traefikBin, "--configFile=traefik.yml")
	web := "http://127.0.0.1:" + ports["8000"]
	eventually(t, "the backend to answer through Traefik", func() bool {
		return post(web+"/ready", "") != ""
	})

	// Step 5. The first event was that of the look above.
	if got, want := post(web+"/api?lang=en", `{"hello":"mirror"}`), said[0]; got != want {
		t.Errorf("the answer: got %q; want %q", got, want)
	}
	_, line, _ := strings.Cut(said[1], " ")
	eventually(t, "the receiver to print "+line, func() bool { return strings.Contains(receiver.out.String(), " "+line) })
	if !regexp.MustCompile(`(?m)^[0-9a-f]{12}-0{19}[1-9] POST /api`).MatchString(receiver.out.String()) {
		t.Errorf("the receiver: got %q; want a sequence first", receiver.out.String())
	}

	// Step 7, while the receiver is there.
	resp, err := http.Post("http://127.0.0.1:"+ports["9000"]+"/events", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("not signed: got %s; want 401", resp.Status)
	}

	// Step 6.
	receiver.stop()
	if got := post(web+"/api?lang=en", `{"hello":"mirror"}`); got != said[0] {
		t.Errorf("the answer without a receiver: got %q; want %q", got, said[0])
	}
	lost := strings.ReplaceAll(strings.TrimSpace(said[2]), ":9000", ":"+ports["9000"])
	eventually(t, "the log to say "+lost, func() bool {
		plain := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(traefik.out.String(), "")
		return strings.Contains(strings.ReplaceAll(plain, `\"`, `"`), lost)
	})
	var vars struct {
		Requestmirror struct {
			Middlewares map[string]struct {
				Receivers map[string]struct{ Failed map[string]int }
			}
		}
	}
	if err := json.Unmarshal([]byte(get("http://127.0.0.1:"+ports["8080"]+"/debug/vars")), &vars); err != nil {
		t.Fatal(err)
	}
	if got := vars.Requestmirror.Middlewares["mirror@file"].Receivers["http://127.0.0.1:"+ports["9000"]].Failed["network_error"]; got != 1 {
		t.Errorf("failed.network_error: got %d; want 1", got)
	}
}

func textBlocks(t *testing.T, name string) []string {
	t.Helper()
	var texts []string
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if p.name == name && b.lang == "text" {
				texts = append(texts, b.text)
			}
		}
	}
	if len(texts) != 3 {
		t.Fatalf("%s: got %d blocks of text; want the answer, the receiver's line and the log's", name, len(texts))
	}
	return texts
}

// freePorts gives each port of the example another one, which is free.
func freePorts(t *testing.T, names ...string) map[string]string {
	t.Helper()
	ports := map[string]string{}
	for _, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, ports[name], _ = net.SplitHostPort(l.Addr().String())
	}
	return ports
}

func copyWithPorts(t *testing.T, dir string, ports map[string]string, names ...string) {
	t.Helper()
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(root, "examples", "quickstart", name))
		if err != nil {
			t.Fatal(err)
		}
		changed := regexp.MustCompile(`:(\d{4})\b`).ReplaceAllStringFunc(string(text), func(port string) string { return ":" + ports[port[1:]] })
		if err := os.WriteFile(filepath.Join(dir, name), []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func build(t *testing.T, dir, from, what string) string {
	t.Helper()
	bin := filepath.Join(dir, "bin-"+filepath.Base(from))
	cmd := exec.Command("go", "build", "-o", bin, what)
	cmd.Dir = from
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", from, err, out)
	}
	return bin
}

// process is a program of the tutorial, with all that it writes.
type process struct {
	cmd  *exec.Cmd
	out  output
	once sync.Once
}

func start(t *testing.T, dir, bin string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(bin, args...)}
	p.cmd.Dir = dir
	p.cmd.Env = append(os.Environ(), "SIGNING_SECRETS="+aSecret)
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("%s wrote\n%s", filepath.Base(bin), p.out.String())
		}
	})
	return p
}

func (p *process) stop() {
	p.once.Do(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
}

// output is a buffer that may be read while it is written.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 45*time.Second)
	defer cancel()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited 45 s in vain for %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// post returns the body of a good answer, else nothing.
func post(url, body string) string {
	resp, err := http.Post(url, "application/x-www-form-urlencoded", strings.NewReader(body))
	return answer(resp, err)
}

func get(url string) string {
	resp, err := http.Get(url)
	return answer(resp, err)
}

func answer(resp *http.Response, err error) string {
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	content, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(content)
}
