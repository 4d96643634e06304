package kubernetes

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	authentication "k8s.io/api/authentication/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

// services is where Services get their addresses. Linux has all of 127.0.0.0/8 on the
// loopback device, so whoever listens there is the Service.
const services = "127.96.0.0/16"

// cluster is a kube-apiserver with its etcd.
type cluster struct {
	port     int
	ca       string // file
	config   *rest.Config
	client   *kubernetes.Clientset
	dynamic  *dynamic.DynamicClient
	mapper   *restmapper.DeferredDiscoveryRESTMapper
	warnings *warnings
	etcd     *process
	server   *process
}

// startCluster starts one with nothing in it, that behaves as Kubernetes of the version, such as 1.33; of its own if that
// is empty. All it writes is in dir, but for what more arguments say.
func startCluster(ctx context.Context, dir, version string, more ...string) (*cluster, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	etcd, err := findProgram("etcd")
	if err != nil {
		return nil, err
	}
	server, err := findProgram("kube-apiserver")
	if err != nil {
		return nil, err
	}
	ports, err := freePorts(3)
	if err != nil {
		return nil, err
	}
	token, err := secrets(dir)
	if err != nil {
		return nil, err
	}
	c := &cluster{port: ports[2], ca: filepath.Join(dir, "apiserver.crt"), warnings: &warnings{}}

	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	c.etcd, err = start(exec.Command(etcd, "--data-dir="+filepath.Join(dir, "etcd"), "--name=lab", "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls="+client, "--advertise-client-urls="+client,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=lab="+peer))
	if err != nil {
		return nil, err
	}
	args := []string{
		"--etcd-servers=" + client, "--bind-address=127.0.0.1", fmt.Sprint("--secure-port=", c.port),
		"--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none", "--cert-dir=" + dir,
		"--service-cluster-ip-range=" + services, "--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount",
		"--token-auth-file=" + filepath.Join(dir, "tokens.csv"), "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + filepath.Join(dir, "sa.key"), "--service-account-signing-key-file=" + filepath.Join(dir, "sa.key"),
	}
	if version != "" {
		args = append(args, "--emulated-version="+version)
	}
	c.server, err = start(exec.Command(server, append(args, more...)...))
	if err == nil {
		err = c.connect(ctx, token)
	}
	if err != nil {
		c.stop()
		return nil, err
	}
	return c, nil
}

// secrets writes the key that signs tokens, and the administrator's token.
func secrets(dir string) (token string, err error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", err
	}
	block := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	if err := os.WriteFile(filepath.Join(dir, "sa.key"), pem.EncodeToMemory(block), 0o600); err != nil {
		return "", err
	}
	random := make([]byte, 16)
	if _, err := rand.Read(random); err != nil {
		return "", err
	}
	token = hex.EncodeToString(random)
	return token, os.WriteFile(filepath.Join(dir, "tokens.csv"), []byte(token+`,admin,admin,"system:masters"`+"\n"), 0o600)
}

// connect waits until the server is ready.
func (c *cluster) connect(ctx context.Context, token string) error {
	c.config = &rest.Config{
		Host: fmt.Sprintf("https://127.0.0.1:%d", c.port), BearerToken: token, QPS: -1, Timeout: 20 * time.Second,
		TLSClientConfig: rest.TLSClientConfig{CAFile: c.ca}, WarningHandler: c.warnings,
	}
	err := poll(ctx, "kube-apiserver to be ready", func() (bool, any) {
		if c.server.ended() {
			return true, nil
		}
		err := c.ready()
		return err == nil, err
	})
	if err == nil && c.server.ended() {
		err = errors.New("kube-apiserver ended")
	}
	if err != nil {
		return fmt.Errorf("%w: %s", err, c.server.log.tail())
	}
	if c.client, err = kubernetes.NewForConfig(c.config); err != nil {
		return err
	}
	if c.dynamic, err = dynamic.NewForConfig(c.config); err != nil {
		return err
	}
	c.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(c.client.Discovery()))
	return nil
}

// ready asks once, with a connection of its own: one that comes too early may never be
// answered, and a certificate may be half written when it is read.
func (c *cluster) ready() error {
	ca, err := os.ReadFile(c.ca)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool},
	}}
	req, err := http.NewRequest(http.MethodGet, c.config.Host+"/readyz", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.config.BearerToken)
	res, err := client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, text)
	}
	return err
}

// stop kills both: all state is in a directory that goes away, and a server whose etcd
// is gone ends late.
func (c *cluster) stop() {
	c.server.kill()
	c.etcd.kill()
}

// resource is the API of a kind of objects.
func (c *cluster) resource(o *unstructured.Unstructured) (dynamic.ResourceInterface, error) {
	kind := o.GroupVersionKind()
	mapping, err := c.mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		c.mapper.Reset() // a definition may be newer than what is known
		if mapping, err = c.mapper.RESTMapping(kind.GroupKind(), kind.Version); err != nil {
			return nil, err
		}
	}
	api := c.dynamic.Resource(mapping.Resource)
	if mapping.Scope.Name() == "namespace" {
		return api.Namespace(namespaceOf(o)), nil
	}
	return api, nil
}

func namespaceOf(o *unstructured.Unstructured) string {
	if o.GetNamespace() == "" {
		return "default"
	}
	return o.GetNamespace()
}

// apply is kubectl apply --server-side; dry runs store nothing.
func (c *cluster) apply(ctx context.Context, o *unstructured.Unstructured, dry bool) (*unstructured.Unstructured, error) {
	api, err := c.resource(o)
	if err != nil {
		return nil, err
	}
	options := meta.ApplyOptions{FieldManager: "kubectl", Force: true}
	if dry {
		options.DryRun = []string{meta.DryRunAll}
	}
	return api.Apply(ctx, o.GetName(), o, options)
}

func (c *cluster) remove(ctx context.Context, o *unstructured.Unstructured) error {
	api, err := c.resource(o)
	if err != nil {
		return err
	}
	now := int64(0)
	return api.Delete(ctx, o.GetName(), meta.DeleteOptions{GracePeriodSeconds: &now})
}

// tokenOf is a token of a service account, as pods get it.
func (c *cluster) tokenOf(ctx context.Context, namespace, account string) (string, error) {
	answer, err := c.client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, account, &authentication.TokenRequest{}, meta.CreateOptions{})
	if err != nil {
		return "", err
	}
	return answer.Status.Token, nil
}

// objects reads the documents of YAML.
func objects(text []byte) ([]*unstructured.Unstructured, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	var list []*unstructured.Unstructured
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(o)
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, err
		}
		if len(o.Object) > 0 {
			list = append(list, o)
		}
	}
}

// warnings keeps what the server says besides its answers, as kubectl prints it.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) HandleWarningHeader(_ int, _ string, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, text)
}

// take returns what was said since the last time.
func (w *warnings) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.list
	w.list = nil
	return list
}

// process is a program that runs.
type process struct {
	cmd  *exec.Cmd
	log  *logBuffer
	done chan struct{} // closed when it has ended
}

func start(cmd *exec.Cmd) (*process, error) {
	p := &process{cmd: cmd, log: &logBuffer{}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.log, p.log
	if cmd.Env == nil {
		cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) kill() {
	if p != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// logBuffer keeps the log of a process.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *logBuffer) tail() string {
	s := strings.TrimSpace(l.String())
	if cut := len(s) - 3000; cut > 0 {
		s = "…" + s[cut:]
	}
	return "its log ends with\n" + s
}

// poll waits until done says true, which also says what it saw.
func poll(ctx context.Context, what string, done func() (ok bool, seen any)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, seen := done()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; last seen: %v", what, ctx.Err(), seen)
		case <-tick.C:
		}
	}
}

// freePorts returns ports that it did not return before, as two clusters may start at once.
func freePorts(n int) ([]int, error) {
	portsMu.Lock()
	defer portsMu.Unlock()
	var ports []int
	for len(ports) < n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		// Closed at the end, so that they differ.
		defer l.Close()
		if port := l.Addr().(*net.TCPAddr).Port; !portsGiven[port] {
			portsGiven[port] = true
			ports = append(ports, port)
		}
	}
	return ports, nil
}

var (
	portsMu    sync.Mutex
	portsGiven = map[int]bool{}
)
