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
	"sync"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
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

// noChart says why no values are rendered.
const noChart = "Traefik's Helm chart is not here, or Helm is not; see test/kubernetes/chart.sh"

// rendering is what Helm made of each installation of charted, once for all tests.
var rendering struct {
	once sync.Once
	list []rendered
	err  error
}

type rendered struct {
	installation
	args    []string // for Helm, behind its command
	objects []*unstructured.Unstructured
}

// helm runs it, for the cluster of Traefik.
func helm(args ...string) (string, error) {
	home, err := os.MkdirTemp(lab.dir, "helm-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(home)
	config, err := lab.cluster.kubeconfig(home)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(os.Getenv("HELM_BIN"), args...)
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + config}
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("helm %v: %w: %s", args, err, problems.String())
	}
	return out.String(), nil
}

// renderValues renders what users get, with the chart that HELM_CHART is. Without one the
// list is empty.
func renderValues(t *testing.T) []rendered {
	t.Helper()
	chart := os.Getenv("HELM_CHART")
	if chart == "" || os.Getenv("HELM_BIN") == "" {
		return nil
	}
	rendering.once.Do(func() {
		sources := filepath.Join(lab.dir, "plugin-values.yaml")
		if rendering.err = os.Rename(generated(t, "helm"), sources); rendering.err != nil {
			return
		}
		for _, one := range charted {
			r := rendered{installation: one, args: []string{"traefik", chart, "--namespace=traefik", "--skip-crds"}}
			for _, name := range one.values {
				r.args = append(r.args, "--values="+filepath.Join(examples, "helm", name))
			}
			if one.generated {
				r.args = append(r.args, "--values="+sources)
			}
			if r.objects, rendering.err = r.template(); rendering.err != nil {
				return
			}
			rendering.list = append(rendering.list, r)
		}
	})
	if rendering.err != nil {
		t.Fatal(rendering.err)
	}
	return rendering.list
}

func (r rendered) template() ([]*unstructured.Unstructured, error) {
	version, err := lab.cluster.client.Discovery().ServerVersion()
	if err != nil {
		return nil, err
	}
	text, err := helm(append([]string{"template", "--kube-version=" + version.GitVersion}, r.args...)...)
	if err != nil {
		return nil, err
	}
	return objects([]byte(text))
}

// valuesUsed says whether a values file is rendered in this run, or would be if there were
// a chart, of which the log tells then.
func valuesUsed(t *testing.T, file string) bool {
	t.Helper()
	if len(renderValues(t)) == 0 {
		t.Logf("NOT TESTED: %s, as %s", filepath.Base(file), noChart)
		return slices.ContainsFunc(charted, func(c installation) bool { return slices.Contains(c.values, filepath.Base(file)) })
	}
	return slices.ContainsFunc(renderValues(t), func(r rendered) bool {
		return len(r.objects) > 0 && slices.Contains(r.values, filepath.Base(file))
	})
}

// TestTheChartTakesTheValues has the API server look at all that comes of each rendering,
// installs it, and runs what is then there.
func TestTheChartTakesTheValues(t *testing.T) {
	list := renderValues(t)
	if len(list) == 0 {
		if os.Getenv("KUBERNETES_CHART") == "required" {
			t.Fatal(noChart + ", and KUBERNETES_CHART=required")
		}
		t.Skip("NOT TESTED: the values of the chart, as " + noChart)
	}
	run := func(args ...string) {
		t.Helper()
		if _, err := helm(args...); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range list {
		t.Run(strings.Join(test.values, "+"), func(t *testing.T) {
			applyOne(t, lab.cluster, namespace("traefik"))
			policy := &networking.NetworkPolicy{}
			typed(t, only(t, shipped(t, "networkpolicy.yaml"), "NetworkPolicy"), policy)
			letsIn(t, policy, deployment(t, test.objects))
			for _, o := range test.objects {
				if _, err := lab.cluster.apply(t.Context(), o, true); err != nil && !apierrors.IsAlreadyExists(err) {
					t.Errorf("%s %s: %v", o.GetKind(), o.GetName(), err)
				}
			}
			if !test.runs {
				return
			}
			needSandbox(t)
			run(append([]string{"install"}, test.args...)...)
			t.Cleanup(func() { run("uninstall", "traefik", "--namespace=traefik") })
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
			for _, said := range []string{"Loading plugins...", "Plugins loaded."} {
				if !strings.Contains(traefik.log.String(), said) {
					t.Errorf("Traefik's log: got no %q, which the page has", said)
				}
			}
			for _, line := range strings.Split(traefik.log.String(), "\n") {
				if strings.Contains(line, "requestmirror") && !strings.Contains(line, "Loading plugins...") && !strings.Contains(line, "Plugins loaded.") {
					t.Errorf("Traefik's log has more of the plugin than the page says: %s", line)
				}
			}
		})
	}
}

// chartCommands are those of Helm on a page, for the chart that is here. Traefik's own
// resources are there already.
func chartCommands(t *testing.T, name string, count int) []string {
	t.Helper()
	var list []string
	for _, block := range blocks(page(t, name), "sh") {
		for _, line := range strings.Split(strings.TrimSpace(block), "\n") {
			if strings.HasPrefix(line, "helm ") {
				list = append(list, strings.Replace(line, " traefik/traefik ", " '"+os.Getenv("HELM_CHART")+"' ", 1)+" --skip-crds")
			}
		}
	}
	if len(list) != count {
		t.Fatalf("%s: got %q; want %d commands of Helm", name, list, count)
	}
	return list
}

// TestTheCommandsOfHelmKeepWhatARunningTraefikHas runs those of the page for a release that
// has values of its own, which Helm drops if it is not told otherwise, and one where there
// is no release.
func TestTheCommandsOfHelmKeepWhatARunningTraefikHas(t *testing.T) {
	t.Parallel()
	if len(renderValues(t)) == 0 {
		t.Skip("NOT TESTED: the commands of Helm, as " + noChart)
	}
	c := policed(t) // no other test has a Traefik there
	dir, home := repository(t), t.TempDir()
	config, err := c.kubeconfig(home)
	if err == nil {
		err = os.Symlink(os.Getenv("HELM_BIN"), filepath.Join(home, "helm"))
	}
	if err != nil {
		t.Fatal(err)
	}
	run := func(line string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "bash", "-e", "-o", "pipefail", "-c", line)
		cmd.Dir, cmd.Env = dir, []string{"PATH=" + home + ":" + os.Getenv("PATH"), "KUBECONFIG=" + config, "HOME=" + home}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", line, err, out)
		}
	}
	traefik := func() (*apps.Deployment, string) {
		t.Helper()
		d, err := c.client.AppsV1().Deployments("traefik").Get(t.Context(), "traefik", meta.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		var ways []string
		for _, way := range []string{"plugins", "localPlugins"} {
			if slices.Contains(d.Spec.Template.Spec.Containers[0].Args, "--experimental."+way+".requestmirror.moduleName=github.com/opencommit/requestmirror") {
				ways = append(ways, way)
			}
		}
		return d, strings.Join(ways, "+")
	}
	run("examples/kubernetes/plugin-source.sh helm > plugin-values.yaml")
	commands := chartCommands(t, "how-to/install-on-kubernetes.md", 3)
	removal := chartCommands(t, "how-to/roll-out-safely.md", 1)[0]
	run(commands[0])
	if _, way := traefik(); way != "plugins" {
		t.Errorf("%s, where no release is: got the plugin in %q; want it in plugins", commands[0], way)
	}
	run(removal)
	if _, way := traefik(); way != "" {
		t.Errorf("%s: got the plugin in %q; want it nowhere", removal, way)
	}
	run("helm uninstall traefik -n traefik")

	// One way after the other, in a release with values of its own. The chart must not mix the
	// first two.
	const out = "--set experimental.plugins.requestmirror=null"
	if !strings.Contains(page(t, "how-to/install-on-kubernetes.md"), "`"+out+"`") {
		t.Errorf("the page has no %s", out)
	}
	run("helm install traefik '" + os.Getenv("HELM_CHART") + "' -n traefik --skip-crds --set deployment.labels.team=kept" +
		" --set deployment.additionalVolumes[0].name=own,deployment.additionalVolumes[0].emptyDir.medium=Memory")
	for _, step := range []struct {
		line, way string
		volume    bool // of the release: the last way has a list of volumes, and the page says that lists are not merged
	}{
		{commands[0], "plugins", true},
		{commands[1] + " " + out, "localPlugins", true},
		{commands[2], "localPlugins", false},
	} {
		run(step.line)
		d, way := traefik()
		if way != step.way {
			t.Errorf("%s: got the plugin in %q; want it in %s", step.line, way, step.way)
		}
		if d.Labels["team"] != "kept" {
			t.Errorf("%s: got the label %q; want that of the release", step.line, d.Labels["team"])
		}
		own := slices.ContainsFunc(d.Spec.Template.Spec.Volumes, func(v core.Volume) bool { return v.Name == "own" })
		if own != step.volume {
			t.Errorf("%s: got the volume of the release: %v; want %v", step.line, own, step.volume)
		}
		if strings.Contains(step.line, "plugin-values.yaml") && d.Spec.Template.Annotations["requestmirror/sources"] == "" {
			t.Errorf("%s: the pods have no annotation that changes with the sources", step.line)
		}
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

// kubeconfig writes one for an administrator into a directory.
func (c *cluster) kubeconfig(dir string) (string, error) {
	name := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: lab, contexts: [{name: lab, context: {cluster: lab, user: lab}}],
clusters: [{name: lab, cluster: {server: "%s", certificate-authority: "%s"}}], users: [{name: lab, user: {token: "%s"}}]}`,
		c.config.Host, c.ca, c.config.BearerToken)
	return name, os.WriteFile(name, []byte(text), 0o600)
}

// TestEveryValuesFileIsRendered looks for a rendering of each, and at what needs no Helm.
func TestEveryValuesFileIsRendered(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(examples, "helm", "values-*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no values", err)
	}
	for _, file := range files {
		if !valuesUsed(t, file) {
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
