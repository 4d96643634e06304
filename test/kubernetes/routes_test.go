package kubernetes

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"
)

// installed is Traefik as examples/kubernetes/traefik has it, or an overlay of that, with
// the sources of this repository. It is applied as it is; more arguments are for what
// only a test wants to see.
func installed(t *testing.T, overlay string, more ...string) *pod {
	t.Helper()
	needSandbox(t)
	text, err := built(filepath.Join(copied(t), overlay))
	if err != nil {
		t.Fatal(err)
	}
	apply(t, parsed(t, string(text))...)
	return runDeployment(t, lab.cluster, "traefik", "traefik", more...)
}

// copied is a copy of the examples, with the sources of the plugin where plugin-source.sh
// puts them.
func copied(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(examples)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(examples, "plugin-source.sh"), "directory", filepath.Join(dir, "plugins-local")).CombinedOutput()
	if err != nil {
		t.Fatalf("plugin-source.sh: %v: %s", err, out)
	}
	return dir
}

// TestTheShippedManifests applies what users are told to apply, and sends a request along
// each way to the plugin. The receiver takes nothing that is not signed.
func TestTheShippedManifests(t *testing.T) {
	needSandbox(t)
	for name, test := range map[string]struct {
		traefik string
		apply   []string
	}{
		"Ingress with the annotation":            {"traefik", []string{"secret.yaml", "."}},
		"IngressRoute":                           {"traefik", []string{"secret.yaml", "middleware.yaml", "receiver.yaml", "ingressroute.yaml"}},
		"Gateway API":                            {"traefik", []string{"secret.yaml", "middleware.yaml", "receiver.yaml", "httproute.yaml"}},
		"the secret in a file":                   {"traefik", []string{"secret.yaml", "secret-for-files.yaml", "middleware-secret-file.yaml", "receiver.yaml", "ingress.yaml"}},
		"a middleware for the whole entry point": {"entrypoint", []string{"secret.yaml", "secret-for-files.yaml", "receiver.yaml", "an Ingress without it"}},
	} {
		t.Run(name, func(t *testing.T) {
			site(t, lab.cluster, "apps", "blog")
			for _, file := range test.apply {
				if file == "an Ingress without it" {
					apply(t, ingress(t, "apps", "blog", "blog.example.com", ""))
					continue
				}
				apply(t, shipped(t, file)...)
			}
			receiver := runDeployment(t, lab.cluster, "apps", "receiver")
			traefik := installed(t, test.traefik)
			awaitRoute(t, "blog.example.com")

			status, answer, err := post("blog.example.com", "/api/comments?lang=en", `{"text":"hello"}`)
			if err != nil || status != http.StatusOK || answer != "the site" {
				t.Fatalf("got %d %q %v; want the site's answer", status, answer, err)
			}
			want := ` POST /api/comments?lang=en from 127.0.0.1, 16 bytes "{\"text\":\"hello\"}"`
			await(t, "the event", func() (bool, any) {
				return strings.Contains(receiver.log.String(), want), receiver.log.String()
			})
			for _, line := range strings.Split(traefik.log.String(), "\n") {
				if strings.Contains(line, "requestmirror") {
					t.Errorf("Traefik's log has something of the plugin: %s", line)
				}
			}
		})
	}
}

// TestTheMetricsOfAPod reads the counters where podmonitor.yaml has the Prometheus Operator
// read them, and not from outside. The operator itself is not here: the monitor is held
// against the pods.
func TestTheMetricsOfAPod(t *testing.T) {
	needSandbox(t)
	site(t, lab.cluster, "apps", "blog")
	for _, file := range []string{"secret.yaml", ".", "metrics.yaml"} {
		apply(t, shipped(t, file)...)
	}
	runDeployment(t, lab.cluster, "apps", "receiver")
	traefik := installed(t, "traefik")
	awaitRoute(t, "blog.example.com")

	var monitor struct {
		Metadata meta.ObjectMeta
		Spec     struct {
			Selector            meta.LabelSelector
			PodMetricsEndpoints []struct{ Port, Path string }
		}
	}
	text, err := os.ReadFile(filepath.Join(examples, "podmonitor.yaml"))
	if err == nil {
		err = yaml.Unmarshal(text, &monitor)
	}
	if err != nil {
		t.Fatal(err)
	}
	d := deployment(t, shipped(t, "traefik/deployment.yaml"))
	for label, value := range monitor.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[label] != value {
			t.Errorf("the pods of Traefik have not the label %s=%s", label, value)
		}
	}
	if monitor.Metadata.Namespace != d.Namespace || len(monitor.Spec.PodMetricsEndpoints) != 1 {
		t.Fatalf("got %+v; want one endpoint, in the namespace %s", monitor, d.Namespace)
	}
	endpoint := monitor.Spec.PodMetricsEndpoints[0]
	await(t, "the metrics", func() (bool, any) {
		res, err := plain.Get("http://127.0.0.1:" + port(endpoint.Port, traefik.spec.Containers[0]) + endpoint.Path)
		if err != nil {
			return false, err
		}
		defer res.Body.Close()
		content, err := io.ReadAll(res.Body)
		return err == nil && res.StatusCode == http.StatusOK &&
			strings.Contains(string(content), `requestmirror_requests_seen_total{middleware="apps-request-mirror@kubernetescrd"`), res.Status
	})
	if status, answer, err := post("blog.example.com", endpoint.Path, ""); err != nil || answer != "the site" {
		t.Errorf("from outside: got %d %q %v; want the site's answer", status, answer, err)
	}
	service := only(t, shipped(t, "traefik/service.yaml"), "Service")
	if ports := fmt.Sprint(service.Object["spec"].(map[string]any)["ports"]); strings.Contains(ports, endpoint.Port) {
		t.Errorf("the Service has the port %s: %s", endpoint.Port, ports)
	}
}

// TestTheReceiverRefusesWhatIsNotSigned shows that the test above proves signatures.
func TestTheReceiverRefusesWhatIsNotSigned(t *testing.T) {
	needSandbox(t)
	apply(t, append(shipped(t, "secret.yaml"), shipped(t, "receiver.yaml")...)...)
	runDeployment(t, lab.cluster, "apps", "receiver")
	service, err := lab.cluster.client.CoreV1().Services("apps").Get(context.Background(), "receiver", meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := plain.Post("http://"+service.Spec.ClusterIP+":9000/events", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("got %s; want 401", res.Status)
	}
}

// TestEveryShippedFileIsUsed keeps files from lying around that no test applies.
func TestEveryShippedFileIsUsed(t *testing.T) {
	used := map[string]bool{}
	for _, name := range []string{
		"secret.yaml", "secret-for-files.yaml", "middleware.yaml", "middleware-secret-file.yaml", "receiver.yaml", "ingress.yaml", "ingressroute.yaml", "httproute.yaml",
		"metrics.yaml", "podmonitor.yaml",
	} {
		used[name] = true
	}
	for _, dir := range []string{".", "traefik", "entrypoint", "policy", "policy-trial"} {
		name := filepath.Join(dir, "kustomization.yaml")
		used[name] = true
		var k struct{ Resources []string }
		text, err := os.ReadFile(filepath.Join(examples, name))
		if err == nil {
			err = yaml.Unmarshal(text, &k)
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, resource := range k.Resources {
			used[filepath.Join(dir, resource)] = true
		}
	}
	found := 0
	err := filepath.WalkDir(examples, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.Name() == "plugins-local" { // plugin-source.sh was tried here
			return fs.SkipDir
		}
		rel, err := filepath.Rel(examples, name)
		if err == nil && filepath.Ext(name) == ".yaml" {
			found++
			if filepath.Dir(rel) == "helm" {
				used[rel] = valuesUsed(t, rel)
			}
			if !used[rel] {
				t.Errorf("%s: applied by no test", rel)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if found < 25 {
		t.Errorf("got %d files; want at least 25", found)
	}
}

// TestNewSourcesRestartTraefik is what the name of the ConfigMap is for.
func TestNewSourcesRestartTraefik(t *testing.T) {
	names := map[string]bool{}
	for _, change := range []string{"", "// changed"} {
		dir := copied(t)
		if err := appendTo(filepath.Join(dir, "plugins-local", "mirror.go"), change); err != nil {
			t.Fatal(err)
		}
		text, err := built(filepath.Join(dir, "traefik"))
		if err != nil {
			t.Fatal(err)
		}
		list := parsed(t, string(text))
		name := only(t, list, "ConfigMap").GetName()
		names[name] = true
		if got := deployment(t, list).Spec.Template.Spec.Volumes[0].ConfigMap.Name; got != name {
			t.Errorf("the Deployment mounts %s; want %s", got, name)
		}
	}
	if len(names) != 2 {
		t.Errorf("got %v; want another name for other sources", names)
	}
}

// TestNewSourcesRestartTraefikOfTheChart is what the annotation is for.
func TestNewSourcesRestartTraefikOfTheChart(t *testing.T) {
	annotations := map[string]bool{}
	dir := repository(t)
	for _, change := range []string{"", "// changed", ""} {
		if err := appendTo(filepath.Join(dir, "mirror.go"), change); err != nil {
			t.Fatal(err)
		}
		text, err := exec.Command(filepath.Join(dir, "examples", "kubernetes", "plugin-source.sh"), "helm").Output()
		if err != nil {
			t.Fatal(err)
		}
		var values struct {
			Deployment struct{ PodAnnotations map[string]string }
		}
		if err := yaml.Unmarshal(text, &values); err != nil {
			t.Fatal(err)
		}
		annotations[values.Deployment.PodAnnotations["requestmirror/sources"]] = true
	}
	if len(annotations) != 2 || annotations[""] {
		t.Errorf("got %v; want one annotation for the same sources, and another for others", annotations)
	}
}

func appendTo(file, text string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(content, text...), 0o644)
}

// TestTheNetworkPolicyLetsTraefikIn compares labels, as no network here enforces any.
func TestTheNetworkPolicyLetsTraefikIn(t *testing.T) {
	p := &networking.NetworkPolicy{}
	typed(t, only(t, shipped(t, "networkpolicy.yaml"), "NetworkPolicy"), p)
	receiver := deployment(t, shipped(t, "receiver.yaml"))
	traefik := deployment(t, shipped(t, "traefik/deployment.yaml"))
	from := p.Spec.Ingress[0].From[0]
	letsIn(t, p, traefik)
	if from.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] != traefik.Namespace {
		t.Errorf("got namespace %v; want %s", from.NamespaceSelector.MatchLabels, traefik.Namespace)
	}
	for label, value := range p.Spec.PodSelector.MatchLabels {
		if receiver.Spec.Template.Labels[label] != value {
			t.Errorf("the receiver has not the label %s=%s", label, value)
		}
	}
	if got, want := p.Spec.Ingress[0].Ports[0].Port.String(), receiver.Spec.Template.Spec.Containers[0].Ports[0].Name; got != want {
		t.Errorf("got port %s; want %s", got, want)
	}
}

func letsIn(t *testing.T, p *networking.NetworkPolicy, traefik *apps.Deployment) {
	t.Helper()
	for label, value := range p.Spec.Ingress[0].From[0].PodSelector.MatchLabels {
		if traefik.Spec.Template.Labels[label] != value {
			t.Errorf("the pods of Traefik have not the label %s=%s", label, value)
		}
	}
}

// only finds the object of a kind.
func only(t *testing.T, list []*unstructured.Unstructured, kind string) *unstructured.Unstructured {
	t.Helper()
	for _, o := range list {
		if o.GetKind() == kind {
			return o
		}
	}
	t.Fatalf("no %s", kind)
	return nil
}
