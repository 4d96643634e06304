package kubernetes

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/yaml"
)

type installation struct {
	values    []string
	generated bool   // with what plugin-source.sh helm prints
	runs      bool   // here; not with a plugin from the catalog or in an image of Traefik's
	entry     bool   // the middleware is that of the entry point
	gateway   bool   // the route is one of the Gateway API
	volumes   string // what the plugin comes by
}

// charted is each values file that users get, with what else it takes.
var charted = []installation{
	{values: []string{"values-inline.yaml"}, generated: true, runs: true, volumes: "configMap"},
	{values: []string{"values-init-container.yaml"}, runs: true, volumes: "emptyDir"},
	{values: []string{"values-image-volume.yaml"}, runs: true, volumes: "image"},
	{values: []string{"values-inline.yaml", "values-secret-file.yaml", "values-entrypoint.yaml"}, generated: true, runs: true, entry: true, volumes: "configMap"},
	{values: []string{"values-inline.yaml", "values-gateway.yaml"}, generated: true, runs: true, gateway: true, volumes: "configMap"},
	{values: []string{"values-catalog.yaml"}},
	{values: []string{"values-baked-image.yaml"}},
}

// TestTheChartTakesTheValues renders each of them, has the API server look at all that
// comes of it, installs it, and runs what is then there.
func TestTheChartTakesTheValues(t *testing.T) {
	chart, helm := os.Getenv("HELM_CHART"), os.Getenv("HELM_BIN")
	if chart == "" || helm == "" {
		t.Skip("NOT TESTED: Traefik's Helm chart, as HELM_CHART (a directory) and HELM_BIN (the program) are not both set")
	}
	needSandbox(t)
	config := lab.cluster.kubeconfig(t)
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(helm, args...)
		cmd.Env = []string{"HOME=" + t.TempDir(), "PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + config}
		var out, problems bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &problems
		if err := cmd.Run(); err != nil {
			t.Fatalf("helm %v: %v: %s", args, err, problems.String())
		}
		return out.String()
	}
	for _, test := range charted {
		t.Run(strings.Join(test.values, "+"), func(t *testing.T) {
			args := []string{"traefik", chart, "--namespace=traefik", "--skip-crds"}
			for _, name := range test.values {
				args = append(args, "--values="+filepath.Join(examples, "helm", name))
			}
			if test.generated {
				args = append(args, "--values="+generated(t, "helm"))
			}
			applyOne(t, lab.cluster, namespace("traefik"))
			rendered := parsed(t, run(append([]string{"template"}, args...)...))
			policy := &networking.NetworkPolicy{}
			typed(t, only(t, shipped(t, "networkpolicy.yaml"), "NetworkPolicy"), policy)
			letsIn(t, policy, deployment(t, rendered))
			for _, o := range rendered {
				if _, err := lab.cluster.apply(t.Context(), o, true); err != nil && !apierrors.IsAlreadyExists(err) {
					t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
			if !test.runs {
				return
			}
			run(append([]string{"install"}, args...)...)
			t.Cleanup(func() { run("uninstall", "traefik", "--namespace=traefik", "--wait=hookOnly") })
			site(t, lab.cluster, "apps", "blog")
			for _, file := range []string{"secret.yaml", "secret-for-files.yaml", "middleware.yaml", "receiver.yaml"} {
				apply(t, shipped(t, file)...)
			}
			switch {
			case test.entry:
				apply(t, append(shipped(t, "entrypoint/middleware.yaml"), ingress(t, "apps", "blog", "blog.example.com", ""))...)
			case test.gateway:
				apply(t, shipped(t, "httproute.yaml")...)
			default:
				apply(t, shipped(t, "ingress.yaml")...)
			}
			receiver := runDeployment(t, lab.cluster, "apps", "receiver")
			traefik := runDeployment(t, lab.cluster, "traefik", "traefik", "--log.noColor=true")
			if !slices.ContainsFunc(traefik.spec.Volumes, func(v core.Volume) bool {
				return test.volumes == "configMap" && v.ConfigMap != nil || test.volumes == "emptyDir" && v.EmptyDir != nil && v.Name == "request-mirror" ||
					test.volumes == "image" && v.Image != nil
			}) {
				t.Errorf("no volume of the kind %s", test.volumes)
			}
			awaitRoute(t, "blog.example.com")
			status, answer, err := post("blog.example.com", "/by-chart", "a body")
			if err != nil || status != http.StatusOK || answer != "the site" {
				t.Fatalf("got %d %q %v; want the site's answer", status, answer, err)
			}
			await(t, "the event", func() (bool, any) {
				return strings.Contains(receiver.log.String(), ` POST /by-chart from 127.0.0.1, 6 bytes "a body"`), receiver.log.String()
			})
		})
	}
}

// generated is what plugin-source.sh prints, as a file.
func generated(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(examples, "plugin-source.sh"), args...).Output()
	if err != nil {
		t.Fatalf("plugin-source.sh: %v", err)
	}
	name := filepath.Join(t.TempDir(), "generated.yaml")
	if err := os.WriteFile(name, out, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// kubeconfig is a file for an administrator.
func (c *cluster) kubeconfig(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: lab, contexts: [{name: lab, context: {cluster: lab, user: lab}}],
clusters: [{name: lab, cluster: {server: "%s", certificate-authority: "%s"}}], users: [{name: lab, user: {token: "%s"}}]}`,
		c.config.Host, c.ca, c.config.BearerToken)
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestEveryValuesFileIsRendered needs no Helm.
func TestEveryValuesFileIsRendered(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(examples, "helm", "values-*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no values", err)
	}
	for _, file := range files {
		if !slices.ContainsFunc(charted, func(c installation) bool {
			return slices.Contains(c.values, filepath.Base(file))
		}) {
			t.Errorf("%s: not in charted", file)
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var values map[string]any
		if err := yaml.UnmarshalStrict(text, &values); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		for _, found := range regexp.MustCompile(`version: (v\S+)`).FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(page(t, "how-to/install.md"), "version: "+found[1]+"\n") {
				t.Errorf("%s: got version %s, which docs/how-to/install.md has not", file, found[1])
			}
		}
	}
}

// TestGeneratedSourcesAreThoseOfThePlugin compares each form that plugin-source.sh makes
// with the files of this repository, and runs Traefik with the one that needs neither
// Helm nor kustomize.
func TestGeneratedSourcesAreThoseOfThePlugin(t *testing.T) {
	want := map[string]string{}
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range append(files, filepath.Join(root, "go.mod"), filepath.Join(root, ".traefik.yml")) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		want[filepath.Base(file)] = string(text)
	}
	same := func(how string, got map[string]string) {
		t.Helper()
		for name, text := range want {
			if got[name] != text {
				t.Errorf("%s: %s is not the same", how, name)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: got %d files; want %d", how, len(got), len(want))
		}
	}

	var values struct {
		Experimental struct {
			LocalPlugins map[string]struct{ Source map[string]string }
		}
		Deployment struct{ PodAnnotations map[string]string }
	}
	text, err := os.ReadFile(generated(t, "helm"))
	if err == nil {
		err = yaml.UnmarshalStrict(text, &values)
	}
	if err != nil {
		t.Fatal(err)
	}
	same("helm", values.Experimental.LocalPlugins["requestmirror"].Source)
	if values.Deployment.PodAnnotations["requestmirror/sources"] == "" {
		t.Error("helm: no annotation that changes with the sources, so the chart would not restart Traefik")
	}

	text, err = os.ReadFile(generated(t, "configmap", "traefik"))
	if err != nil {
		t.Fatal(err)
	}
	made := parsed(t, string(text))
	apply(t, made...)
	data := map[string]string{}
	for name, content := range made[0].Object["data"].(map[string]any) {
		data[name] = content.(string)
	}
	same("configmap", data)
	if !lab.sandbox {
		return
	}
	apply(t, shippedTraefik(t, "rbac.yaml", "classes.yaml", "deployment.yaml", "service.yaml")...)
	runDeployment(t, lab.cluster, "traefik", "traefik")
}
