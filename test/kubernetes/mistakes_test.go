package kubernetes

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// api asks Traefik's.
func api(t *testing.T, path string) (status int, answer string) {
	t.Helper()
	res, err := plain.Get("http://127.0.0.1:8080" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(content)
}

// TestWhatUsersSeeOfMistakes has no policy: what gets past it, and where it shows.
func TestWhatUsersSeeOfMistakes(t *testing.T) {
	needSandbox(t)
	receiver := newRecorder(t)
	mistakes := map[string]struct {
		spec     string // of the Middleware; RECEIVER is one
		status   int
		mirrored bool
		log      string // somewhere in Traefik's log
		api      string // what the API says of the middleware; "absent" if it does not know it
	}{
		"strict": {
			"plugin: {requestmirror: {watchURL: RECEIVER, queueSize: 0, timeout: 1d, strict: true}}", 404, false,
			`queueSize: 0, want at least 1`, `timeout: \"1d\", want a duration`,
		},
		"not-strict": {
			"plugin: {requestmirror: {watchURL: RECEIVER, queueSize: lots}}", 200, false,
			`"mistakes-not-strict@kubernetescrd": invalid configuration (requests pass unmirrored`, `"status":"enabled"`,
		},
		"unknown-option": {
			"plugin: {requestmirror: {watchURL: RECEIVER, queueSzie: 5}}", 200, true,
			"queueSzie: unknown option, did you mean queueSize?", `"status":"enabled"`,
		},
		"unknown-option-strict": {
			"plugin: {requestmirror: {watchURL: RECEIVER, queueSzie: 5, strict: true}}", 404, false,
			"queueSzie: unknown option, did you mean queueSize?", "unknown option",
		},
		"no-options": {
			"plugin: {requestmirror: {}}", 200, false,
			`"mistakes-no-options@kubernetescrd": invalid configuration`, `"status":"enabled"`,
		},
		"null-options":   {"plugin: {requestmirror: null}", 404, false, "no configuration or too many plugin definition", "no configuration or too many plugin definition"},
		"other-key":      {"plugin: {requestmiror: {watchURL: RECEIVER}}", 404, false, "unknown plugin type: requestmiror", "unknown plugin type: requestmiror"},
		"two-plugins":    {"plugin: {requestmirror: {watchURL: RECEIVER}, other: {a: b}}", 404, false, "no configuration or too many plugin definition", "no configuration or too many plugin definition"},
		"text":           {"plugin: {requestmirror: 'yes'}", 404, false, "cannot unmarshal string", "absent"},
		"missing-secret": {"plugin: {requestmirror: {watchURL: 'urn:k8s:secret:nowhere:url'}}", 404, false, "secret mistakes/nowhere is not found", "absent"},
		"missing-key":    {"plugin: {requestmirror: {watchURL: 'urn:k8s:secret:here:nothing'}}", 404, false, `key \"nothing\" not found in secret mistakes/here`, "absent"},
		"malformed-urn":  {"plugin: {requestmirror: {watchURL: 'urn:k8s:secret:here'}}", 404, false, "malformed secret URN", "absent"},
		"missing-file":   {"plugin: {requestmirror: {watchURL: 'file:/run/secrets/nothing'}}", 200, false, "/run/secrets/nothing", `"status":"enabled"`},
		"switched-off":   {"plugin: {requestmirror: {enabled: false, queueSize: 0}}", 200, false, "", `"status":"enabled"`},
		"emptied":        {"plugin: {requestmirror: {watchURL: RECEIVER}}", 404, false, "no configuration or too many plugin definition", "no configuration or too many plugin definition"},
	}
	apply(t, secret("mistakes", "here", "nothing"))
	site(t, lab.cluster, "mistakes", "site")
	for name, mistake := range mistakes {
		m := withSpec(t, strings.ReplaceAll(mistake.spec, "RECEIVER", "'"+receiver.url+"'"))
		m.SetNamespace("mistakes")
		m.SetName(name)
		apply(t, m)
		if name == "emptied" {
			// Server-side apply of the same owner, without the last option.
			set(t, m, map[string]any{}, "spec", "plugin", "requestmirror")
			applyOne(t, lab.cluster, m)
		}
		route := ingress(t, "mistakes", "site", name+".mistakes.test", "mistakes-"+name+"@kubernetescrd")
		route.SetName(name)
		apply(t, route)
	}
	nowhere := ingress(t, "mistakes", "site", "nowhere.mistakes.test", "mistakes-nowhere@kubernetescrd")
	nowhere.SetName("nowhere")
	apply(t, nowhere, ingress(t, "mistakes", "site", "good.mistakes.test", ""))
	elsewhere := ingress(t, "mistakes", "site", "elsewhere.mistakes.test", "elsewhere-mirror@kubernetescrd")
	elsewhere.SetName("elsewhere")
	crossing := shipped(t, "ingressroute.yaml")[0]
	crossing.SetNamespace("mistakes")
	set(t, crossing, []any{map[string]any{
		"kind": "Rule", "match": "Host(`crossing.mistakes.test`)", "services": []any{map[string]any{"name": "site", "port": int64(80)}},
		"middlewares": []any{map[string]any{"name": "mirror", "namespace": "elsewhere"}},
	}}, "spec", "routes")
	apply(t, middleware("elsewhere", "mirror", map[string]any{"watchURL": receiver.url}), elsewhere, crossing)
	traefik := installed(t, "traefik", watched...)
	awaitRoute(t, "good.mistakes.test")
	// Ingresses come by another provider than Middlewares, and may be there before.
	awaitRoute(t, "switched-off.mistakes.test")

	for name, mistake := range mistakes {
		t.Run(name, func(t *testing.T) {
			status, _, err := post(name+".mistakes.test", "/"+name, "")
			if err != nil || status != mistake.status {
				t.Errorf("request: got %d %v; want %d", status, err, mistake.status)
			}
			if mistake.mirrored {
				receiver.awaitEvent(t, "/"+name)
			}
			// As plugins write several lines, and Traefik quotes some.
			said := strings.ReplaceAll(traefik.log.String(), `\\"`, `\"`)
			if !strings.Contains(said, mistake.log) {
				t.Errorf("log: want %q in it", mistake.log)
			}
			code, answer := api(t, "/api/http/middlewares/mistakes-"+name+"@kubernetescrd")
			if mistake.api == "absent" {
				if code != http.StatusNotFound {
					t.Errorf("API: got %d %s; want 404", code, answer)
				}
			} else if !strings.Contains(answer, mistake.api) {
				t.Errorf("API: got %d %s; want %q in it", code, answer, mistake.api)
			}
		})
	}
	for _, piece := range shownLogs(t) {
		if !strings.Contains(traefik.log.String(), piece) {
			t.Errorf("log: want %q in it, as the page says", piece)
		}
	}
	for name, mistake := range mistakes {
		if got := len(receiver.have(func(e event) bool { return e.Data.URL.Path == "/"+name })); got > 0 && !mistake.mirrored {
			t.Errorf("%s: got %d events; want none", name, got)
		}
	}
	if status, _, err := post("nowhere.mistakes.test", "/", ""); err != nil || status != http.StatusNotFound {
		t.Errorf("a middleware that is not there: got %d %v; want 404", status, err)
	}
	// Middlewares of other namespaces: by annotation only.
	if status, _, err := post("elsewhere.mistakes.test", "/elsewhere", ""); err != nil || status != http.StatusOK {
		t.Errorf("a middleware of another namespace, by annotation: got %d %v; want 200", status, err)
	}
	receiver.awaitEvent(t, "/elsewhere")
	if status, _, err := post("crossing.mistakes.test", "/crossing", ""); err != nil || status != http.StatusNotFound {
		t.Errorf("a middleware of another namespace, in an IngressRoute: got %d %v; want 404", status, err)
	}
	if want := `middleware \"mistakes-nowhere@kubernetescrd\" does not exist`; !strings.Contains(traefik.log.String(), want) {
		t.Errorf("log: want %s in it", want)
	}
}

// TestAPluginThatDoesNotLoad shows what abortOnPluginFailure is for.
func TestAPluginThatDoesNotLoad(t *testing.T) {
	needSandbox(t)
	for _, abort := range []bool{true, false} {
		t.Run(fmt.Sprint("abortOnPluginFailure=", abort), func(t *testing.T) {
			broken := &core.ConfigMap{ObjectMeta: meta.ObjectMeta{Name: "request-mirror-plugin", Namespace: "traefik"}, Data: map[string]string{
				".traefik.yml": "displayName: a\ntype: middleware\nimport: github.com/opencommit/requestmirror\nsummary: a\ntestData: {a: b}\n",
				"go.mod":       "module github.com/opencommit/requestmirror\n", "mirror.go": "package requestmirror\nfunc broken( {\n",
			}}
			applyOne(t, lab.cluster, namespace("traefik"))
			_ = lab.cluster.client.CoreV1().ConfigMaps("traefik").Delete(context.Background(), broken.Name, meta.DeleteOptions{})
			if _, err := lab.cluster.client.CoreV1().ConfigMaps("traefik").Create(context.Background(), broken, meta.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				_ = lab.cluster.client.CoreV1().ConfigMaps("traefik").Delete(context.Background(), broken.Name, meta.DeleteOptions{})
			})
			apply(t, shippedTraefik(t, "rbac.yaml", "classes.yaml", "deployment.yaml")...)
			apply(t, middleware("mistakes", "broken", map[string]any{"watchURL": "http://a/"}))
			site(t, lab.cluster, "mistakes", "site")
			apply(t, ingress(t, "mistakes", "site", "broken.mistakes.test", "mistakes-broken@kubernetescrd"))
			good := ingress(t, "mistakes", "site", "good.mistakes.test", "")
			good.SetName("good")
			apply(t, good)
			d, err := lab.cluster.client.AppsV1().Deployments("traefik").Get(context.Background(), "traefik", meta.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if abort {
				p := newPod(t, lab.cluster, d)
				await(t, "Traefik to give up", func() (bool, any) { return p.ended(), p.log.tail() })
				if code := p.cmd.ProcessState.ExitCode(); code == 0 {
					t.Error("got exit code 0; want another")
				}
				if !strings.Contains(p.log.String(), "plugin") {
					t.Errorf("no word of the plugin: %s", p.log.tail())
				}
				return
			}
			p := newPod(t, lab.cluster, d, "--experimental.abortOnPluginFailure=false", "--log.noColor=true")
			p.awaitReady(t)
			awaitRoute(t, "good.mistakes.test")
			status, _, err := post("broken.mistakes.test", "/", "")
			if err != nil || status != http.StatusNotFound {
				t.Errorf("got %d %v; want 404", status, err)
			}
			if !strings.Contains(p.log.String(), "Plugins are disabled") {
				t.Errorf("no word of it: %s", p.log.tail())
			}
		})
	}
}

// TestTwoPluginsOfOneNameKeepTraefikFromStarting is what comes of values for two ways to give
// it the plugin.
func TestTwoPluginsOfOneNameKeepTraefikFromStarting(t *testing.T) {
	needSandbox(t)
	text, err := built(filepath.Join(copied(t), "traefik"))
	if err != nil {
		t.Fatal(err)
	}
	apply(t, parsed(t, string(text))...)
	d, err := lab.cluster.client.AppsV1().Deployments("traefik").Get(t.Context(), "traefik", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t, lab.cluster, d, "--experimental.plugins.requestmirror.moduleName=github.com/opencommit/requestmirror", "--experimental.plugins.requestmirror.version=v0.1.0")
	await(t, "Traefik to give up", func() (bool, any) { return p.ended(), p.log.tail() })
	if code := p.cmd.ProcessState.ExitCode(); code == 0 || !strings.Contains(p.log.String(), "must be unique") {
		t.Errorf("got exit code %d; want another, and a word of the name: %s", code, p.log.tail())
	}
}

// TestAMiddlewareThatTheEntryPointMissesTakesAllRoutesDown takes it away, and brings it back.
func TestAMiddlewareThatTheEntryPointMissesTakesAllRoutesDown(t *testing.T) {
	needSandbox(t)
	site(t, lab.cluster, "mistakes", "site")
	hosts := []string{"one.mistakes.test", "other.mistakes.test"}
	for _, host := range hosts {
		route := ingress(t, "mistakes", "site", host, "")
		route.SetName(host)
		apply(t, route)
	}
	installed(t, "entrypoint")
	there := func() {
		t.Helper()
		for _, host := range hosts {
			awaitRoute(t, host)
		}
	}
	there()
	mirror := shipped(t, "entrypoint/middleware.yaml")[0]
	if err := lab.cluster.remove(t.Context(), mirror); err != nil {
		t.Fatal(err)
	}
	for _, host := range hosts {
		await(t, "404 of "+host, func() (bool, any) {
			status, _, err := post(host, "/", "")
			return err == nil && status == http.StatusNotFound, fmt.Sprint(status, err)
		})
	}
	applyOne(t, lab.cluster, mirror)
	there()
}

// TestATraefikOutsideTakesKUBECONFIGOverItsOptions gives it an address where nothing is, and
// the way to the cluster in its environment.
func TestATraefikOutsideTakesKUBECONFIGOverItsOptions(t *testing.T) {
	needSandbox(t)
	site(t, lab.cluster, "mistakes", "site")
	apply(t, append(shippedTraefik(t, "classes.yaml"), ingress(t, "mistakes", "site", "outside.mistakes.test", ""))...)
	config, err := lab.cluster.kubeconfig(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(lab.traefik, "--entryPoints.web.address=:8000", "--providers.kubernetesIngress.endpoint=https://127.0.0.1:1", "--providers.kubernetesIngress.token=nobody")
	cmd.Env = []string{"KUBECONFIG=" + config}
	p, err := start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Log(p.log.tail())
		}
	})
	awaitRoute(t, "outside.mistakes.test")
}

// shippedTraefik reads files of examples/kubernetes/traefik.
func shippedTraefik(t *testing.T, names ...string) []*unstructured.Unstructured {
	t.Helper()
	var list []*unstructured.Unstructured
	for _, name := range names {
		list = append(list, shipped(t, "traefik/"+name)...)
	}
	return list
}
