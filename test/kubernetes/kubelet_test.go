package kubernetes

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
)

// pod is the container of a Deployment, run as a kubelet would: with the arguments,
// environment, volumes and service account of the manifest, in a root directory of its
// own. All pods share the network of the sandbox.
type pod struct {
	*process
	cluster   *cluster
	namespace string
	root      string
	spec      core.PodSpec
	volumes   map[string]string // directories by name
	writes    int
}

// runDeployment starts the first container of a Deployment as the API server has it,
// with more arguments if a test needs them, and waits until it is ready.
func runDeployment(t *testing.T, c *cluster, namespace, name string, more ...string) *pod {
	t.Helper()
	needSandbox(t)
	d, err := c.client.AppsV1().Deployments(namespace).Get(context.Background(), name, meta.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t, c, d, more...)
	p.awaitReady(t)
	return p
}

// newPod starts it without waiting.
func newPod(t *testing.T, in *cluster, d *apps.Deployment, more ...string) *pod {
	t.Helper()
	root, err := os.MkdirTemp(lab.dir, "pod-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	p := &pod{cluster: in, namespace: d.Namespace, root: root, spec: d.Spec.Template.Spec, volumes: map[string]string{}}
	c := p.spec.Containers[0]
	program := lab.traefik
	if strings.Contains(c.Image, "receiver") {
		program = lab.mirror
	}
	if err := p.furnish(program); err != nil {
		t.Fatal(err)
	}
	for _, mount := range c.VolumeMounts {
		if err := p.mount(mount); err != nil {
			t.Fatalf("volume %s: %v", mount.Name, err)
		}
	}
	for _, init := range p.spec.InitContainers {
		if err := p.initialise(init, c); err != nil {
			t.Fatalf("container %s: %v", init.Name, err)
		}
	}
	if p.spec.AutomountServiceAccountToken == nil || *p.spec.AutomountServiceAccountToken {
		if err := p.account(); err != nil {
			t.Fatalf("service account %s: %v", p.spec.ServiceAccountName, err)
		}
	}
	cmd := exec.Command("/program", append(append([]string{}, c.Args...), more...)...)
	cmd.Dir = "/" // as in Traefik's image
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
	if cmd.Env, err = p.environment(c); err != nil {
		t.Fatal(err)
	}
	if p.process, err = start(cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s/%s: %s", d.Namespace, d.Name, p.log.tail())
		}
	})
	return p
}

// furnish gives it what is in an image: the program, the libraries it asks for, and
// the address of the cluster's name server.
func (p *pod) furnish(program string) error {
	for _, dir := range []string{"tmp", "etc"} {
		if err := os.MkdirAll(filepath.Join(p.root, dir), 0o777); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(p.root, "etc", "resolv.conf"), []byte("nameserver "+nameServerAddress+"\n"), 0o644); err != nil {
		return err
	}
	files, err := libraries(program)
	if err != nil {
		return err
	}
	files["/program"] = program
	for to, from := range files {
		to = filepath.Join(p.root, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(from, to); err != nil {
			return err
		}
	}
	return nil
}

// libraries are those of a program, by the path at which it looks for them.
func libraries(program string) (map[string]string, error) {
	file, err := elf.Open(program)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	files := map[string]string{}
	for _, part := range file.Progs {
		if part.Type == elf.PT_INTERP {
			name, err := io.ReadAll(part.Open())
			if err != nil {
				return nil, err
			}
			loader := string(bytes.TrimRight(name, "\x00"))
			files[loader] = loader
		}
	}
	names, err := file.ImportedLibraries()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		for _, pattern := range []string{"/lib/*-linux-gnu/", "/usr/lib/*-linux-gnu/", "/lib64/", "/usr/lib64/", "/lib/", "/usr/lib/"} {
			if found, _ := filepath.Glob(pattern + name); len(found) > 0 {
				files[found[0]] = found[0]
				break
			}
		}
	}
	return files, nil
}

// copyFile links where it can: programs are large.
func copyFile(from, to string) error {
	from, err := filepath.EvalSymlinks(from)
	if err != nil {
		return err
	}
	if os.Link(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

func (p *pod) mount(m core.VolumeMount) error {
	dir := filepath.Join(p.root, m.MountPath)
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	p.volumes[m.Name] = dir
	for _, volume := range p.spec.Volumes {
		if volume.Name == m.Name && volume.Image != nil {
			return pluginImage(m.SubPath, dir)
		}
	}
	return p.write(m.Name)
}

// initialise plays the container that copies the sources of the plugin out of an image
// into a volume that it shares with the main one.
func (p *pod) initialise(init, main core.Container) error {
	if got := strings.Join(init.Command, " "); got != "cp -r /plugin/. /target/" {
		return fmt.Errorf("a command that is not played here: %s", got)
	}
	for _, from := range init.VolumeMounts {
		for _, to := range main.VolumeMounts {
			if from.MountPath == "/target" && to.Name == from.Name {
				return pluginImage("plugin", filepath.Join(p.root, to.MountPath))
			}
		}
	}
	return fmt.Errorf("no volume at /target that the main container has, too")
}

// pluginImage copies what is in a directory of the image that plugin.Dockerfile makes.
func pluginImage(from, to string) error {
	recipe, err := os.ReadFile(filepath.Join(examples, "helm", "plugin.Dockerfile"))
	if err != nil {
		return err
	}
	if want := "\nCOPY go.mod .traefik.yml *.go /" + from + "/\n"; !strings.Contains(string(recipe), want) {
		return fmt.Errorf("helm/plugin.Dockerfile: no line %q", want)
	}
	out, err := exec.Command(filepath.Join(examples, "plugin-source.sh"), "directory", to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("plugin-source.sh: %w: %s", err, out)
	}
	return os.Remove(filepath.Join(to, "kustomization.yaml"))
}

// write puts into a volume what is in the API now; again when that has changed.
func (p *pod) write(name string) error {
	for _, volume := range p.spec.Volumes {
		if volume.Name != name {
			continue
		}
		ctx := context.Background()
		content := map[string][]byte{}
		switch {
		case volume.ConfigMap != nil:
			o, err := p.cluster.client.CoreV1().ConfigMaps(p.namespace).Get(ctx, volume.ConfigMap.Name, meta.GetOptions{})
			if err != nil {
				return err
			}
			for key, text := range o.Data {
				content[key] = []byte(text)
			}
		case volume.Secret != nil:
			o, err := p.cluster.client.CoreV1().Secrets(p.namespace).Get(ctx, volume.Secret.SecretName, meta.GetOptions{})
			if apierrors.IsNotFound(err) && volume.Secret.Optional != nil && *volume.Secret.Optional {
				return nil
			}
			if err != nil {
				return err
			}
			content = o.Data
		case volume.EmptyDir != nil:
			return nil
		default:
			return fmt.Errorf("a volume that is not played here: %+v", volume.VolumeSource)
		}
		return p.swap(p.volumes[name], content)
	}
	return fmt.Errorf("no such volume")
}

// swap writes files as a kubelet does: into a new directory, to which a link is turned
// in one step.
func (p *pod) swap(dir string, content map[string][]byte) error {
	p.writes++
	version := fmt.Sprintf("..version-%d", p.writes)
	if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
		return err
	}
	for key, text := range content {
		if err := os.WriteFile(filepath.Join(dir, version, key), text, 0o644); err != nil {
			return err
		}
		if err := os.Symlink(filepath.Join("..data", key), filepath.Join(dir, key)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	link := filepath.Join(dir, "..data_tmp")
	if err := os.Symlink(version, link); err != nil {
		return err
	}
	return os.Rename(link, filepath.Join(dir, "..data"))
}

// account gives it the token of its service account where client libraries look for it.
func (p *pod) account() error {
	name := p.spec.ServiceAccountName
	if name == "" {
		return nil // nobody here makes the default one
	}
	token, err := p.cluster.tokenOf(context.Background(), p.namespace, name)
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(p.cluster.ca)
	if err != nil {
		return err
	}
	dir := filepath.Join(p.root, "var", "run", "secrets", "kubernetes.io", "serviceaccount")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return p.swap(dir, map[string][]byte{"token": []byte(token), "ca.crt": ca, "namespace": []byte(p.namespace)})
}

// environment is that of the manifest, and where the API server is. Nothing of ours is
// in it: Traefik would take KUBECONFIG over all that its arguments say.
func (p *pod) environment(c core.Container) ([]string, error) {
	env := []string{"KUBERNETES_SERVICE_HOST=127.0.0.1", "KUBERNETES_SERVICE_PORT=" + strconv.Itoa(p.cluster.port)}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom != nil {
			switch {
			case e.ValueFrom.SecretKeyRef != nil:
				ref := e.ValueFrom.SecretKeyRef
				secret, err := p.cluster.client.CoreV1().Secrets(p.namespace).Get(context.Background(), ref.Name, meta.GetOptions{})
				if err != nil {
					return nil, err
				}
				if _, ok := secret.Data[ref.Key]; !ok {
					return nil, fmt.Errorf("no key %s in secret %s", ref.Key, ref.Name)
				}
				value = string(secret.Data[ref.Key])
			case e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.namespace":
				value = p.namespace
			case e.ValueFrom.FieldRef != nil && e.ValueFrom.FieldRef.FieldPath == "metadata.name":
				value = "pod-0"
			case e.ValueFrom.FieldRef != nil, e.ValueFrom.ResourceFieldRef != nil:
				continue
			default:
				return nil, fmt.Errorf("environment variable %s: a source that is not played here", e.Name)
			}
		}
		env = append(env, e.Name+"="+value)
	}
	return env, nil
}

// awaitReady does what the readiness probe says.
func (p *pod) awaitReady(t *testing.T) {
	t.Helper()
	c := p.spec.Containers[0]
	probe := c.ReadinessProbe
	if probe == nil {
		t.Fatal("no readiness probe")
	}
	check := func() error {
		if probe.TCPSocket != nil {
			return reach(probe.TCPSocket.Port.String(), c)
		}
		return get(probe.HTTPGet.Port.String(), probe.HTTPGet.Path, c)
	}
	await(t, "the pod to be ready", func() (bool, any) {
		if p.ended() {
			t.Fatalf("the program ended: %s", p.log.tail())
		}
		err := check()
		return err == nil, err
	})
}

// port is that of a container, by number or name.
func port(name string, c core.Container) string {
	for _, one := range c.Ports {
		if one.Name == name {
			return strconv.Itoa(int(one.ContainerPort))
		}
	}
	return name
}

func reach(name string, c core.Container) error {
	conn, err := dial("127.0.0.1:" + port(name, c))
	if err == nil {
		_ = conn.Close()
	}
	return err
}

func get(name, path string, c core.Container) error {
	answer, err := plain.Get("http://127.0.0.1:" + port(name, c) + path)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("status %s", answer.Status)
	}
	return nil
}

// deployment finds one in a list of objects, typed.
func deployment(t *testing.T, list []*unstructured.Unstructured) *apps.Deployment {
	t.Helper()
	for _, o := range list {
		if o.GetKind() == "Deployment" {
			d := &apps.Deployment{}
			typed(t, o, d)
			return d
		}
	}
	t.Fatal("no Deployment")
	return nil
}

func typed(t *testing.T, o *unstructured.Unstructured, into any) {
	t.Helper()
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, into); err != nil {
		t.Fatal(err)
	}
}
