package kubernetes

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// needsANode are the commands that nobody here can carry out.
var needsANode = []string{"kubectl -n apps logs ", "kubectl -n traefik logs ", "kubectl -n traefik rollout status ", "kubectl -n traefik port-forward "}

// podMonitors stand for those of the Prometheus Operator, which is not here.
const podMonitors = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: podmonitors.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  names: {kind: PodMonitor, plural: podmonitors}
  scope: Namespaced
  versions:
    - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`

// TestTheCommandsOfThePagesWork runs what the pages tell with kubectl, in the oldest
// Kubernetes, of which nothing but the namespaces is there, and sends a request through
// what is there then. Of the tests that run at the same time, which begin when all others
// have ended, only this one has a Traefik and so its ports.
func TestTheCommandsOfThePagesWork(t *testing.T) {
	t.Parallel()
	c := newCluster(t, "commands", oldest)
	t.Cleanup(c.stop) // after all that is cleaned up in it
	bin, err := findProgram("kubectl")
	if err != nil {
		t.Fatal(err)
	}
	dir, home := repository(t), t.TempDir()
	config, err := c.kubeconfig(home)
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=" + filepath.Dir(bin) + ":" + os.Getenv("PATH"), "KUBECONFIG=" + config, "HOME=" + home}
	run := func(line string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-e", "-o", "pipefail", "-c", line)
		cmd.Dir, cmd.Env = dir, env
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
		return string(out)
	}
	run("kubectl create namespace apps")
	run("kubectl create namespace traefik")
	run("kubectl apply -f - <<'END'" + podMonitors + "END")
	run("kubectl wait --for=condition=Established crd/podmonitors.monitoring.coreos.com")

	// The section without Helm is the last one, and what it begins with the others need.
	var first, then []string
	for _, name := range kubernetesPages(t) {
		for _, block := range blocks(page(t, name), "sh") {
			for _, line := range strings.Split(strings.TrimSpace(block), "\n") {
				switch {
				case slices.ContainsFunc(needsANode, func(prefix string) bool { return strings.HasPrefix(line, prefix) }):
				case strings.HasPrefix(line, "kubectl apply ") && strings.Contains(line, "https://"):
					first = append(first, published(t, dir, line))
				case strings.Contains(line, "kubectl "), strings.HasPrefix(line, "examples/"):
					then = append(then, line)
				}
			}
		}
	}
	if len(first) < 4 || len(then) < 10 {
		t.Fatalf("got %d and %d commands; want at least 4 and 10: %q", len(first), len(then), then)
	}
	for _, line := range append(first, then...) {
		t.Logf("%s: %.200s", line, run(line))
	}
	var files []string
	for _, pattern := range []string{"*.yaml", "*/*.yaml"} {
		found, err := filepath.Glob(filepath.Join(dir, "examples", "kubernetes", pattern))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	var list []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, told := range regexp.MustCompile(`(?m)^#\s+(kubectl apply .*)$`).FindAllStringSubmatch(string(text), -1) {
			if !slices.Contains(then, told[1]) {
				t.Logf("%s: %.200s", told[1], run(told[1]))
			}
		}
		if filepath.Base(file) != "kustomization.yaml" && filepath.Base(filepath.Dir(file)) != "helm" {
			list = append(list, file)
		}
	}
	// Those that the pages have no command for, and what is on the pages.
	for _, name := range kubernetesPages(t) {
		for i, text := range pageObjects(t, name) {
			file := filepath.Join(dir, fmt.Sprintf("%s-%d.yaml", strings.ReplaceAll(name, "/", "-"), i))
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			list = append(list, file)
		}
	}
	if len(list) < 25 {
		t.Errorf("got %d files and objects; want at least 25", len(list))
	}
	run("kubectl apply --dry-run=server -f '" + strings.Join(list, "' -f '") + "'")

	// Who has the role of the page may change this middleware, and no other.
	for i, text := range pageObjects(t, "how-to/coming-from-sprayproxy.md") {
		if strings.Contains(text, "\nkind: Role\n") {
			run(fmt.Sprintf("kubectl apply -f how-to-coming-from-sprayproxy.md-%d.yaml", i))
		}
	}
	for name, want := range map[string]string{"webhook-spray": "yes\n", "request-mirror": "no\n"} {
		got := run("kubectl -n apps auth can-i patch middlewares.traefik.io/" + name + " --as=somebody --as-group=webhook-admins || true")
		if got != want {
			t.Errorf("%s: may they change it: got %q; want %q", name, got, want)
		}
	}

	if !lab.sandbox {
		return
	}
	lab.dns.lend(t, c)
	site(t, c, "apps", "blog")
	targets := []<-chan string{listening(t, c, "webhook-receiver-app-1"), listening(t, c, "webhook-receiver-app-2")}
	for i, text := range pageObjects(t, "how-to/coming-from-k8sreq-duplicator.md") {
		file := filepath.Join(dir, fmt.Sprintf("fan-out-%d.yaml", i))
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		run("kubectl apply -f '" + file + "'")
	}
	receiver := runDeployment(t, c, "apps", "receiver")
	runDeployment(t, c, "traefik", "traefik")
	awaitRoute(t, "blog.example.com")
	status, answer, err := post("blog.example.com", "/by-commands", "a body")
	if err != nil || status != http.StatusOK || answer != "the site" {
		t.Fatalf("got %d %q %v; want the site's answer", status, answer, err)
	}
	await(t, "the event", func() (bool, any) {
		return strings.Contains(receiver.log.String(), ` POST /by-commands from 127.0.0.1, 6 bytes "a body"`), receiver.log.String()
	})
	await(t, "a webhook to be accepted", func() (bool, any) {
		status, answer, err := post("webhook-receiver.example.com", "/webhook", `{"a": "webhook"}`)
		return status == http.StatusAccepted, fmt.Sprint(status, answer, err)
	})
	for _, target := range targets {
		await(t, "the webhook at each target", func() (bool, any) {
			select {
			case got := <-target:
				return got == `POST webhook-receiver.example.com/webhook {"a": "webhook"}`, got
			default:
				return false, "nothing"
			}
		})
	}
}

// listening is a Service at whose address somebody listens who is no pod, as a receiver
// may be. It says what came in.
func listening(t *testing.T, c *cluster, name string) <-chan string {
	t.Helper()
	site(t, c, "apps", name)
	service, err := c.client.CoreV1().Services("apps").Get(t.Context(), name, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", service.Spec.ClusterIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	came := make(chan string, 10)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		came <- fmt.Sprint(r.Method, " ", r.Host, r.URL.Path, " ", string(body))
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return came
}

// repository is a copy of what the commands are for.
func repository(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(filepath.Join(dir, "examples", "kubernetes"), os.DirFS(examples)); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, filepath.Join(root, "go.mod"), filepath.Join(root, ".traefik.yml")) {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// published puts a file in the place of an address.
func published(t *testing.T, dir, line string) string {
	t.Helper()
	address := regexp.MustCompile(`https://\S+`).FindString(line)
	name := filepath.Base(address)
	if name == "standard-install.yaml" {
		name = "gateway-*.yml" // of which it is made; the roles of Traefik are called otherwise
	}
	files, err := definitions(name)
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, string(text))
	}
	to := filepath.Join(dir, filepath.Base(address))
	if err := os.WriteFile(to, []byte(strings.Join(parts, "\n---\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	return strings.Replace(line, address, fmt.Sprintf("'%s'", to), 1)
}
