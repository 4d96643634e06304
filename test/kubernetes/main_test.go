package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"
)

const root = "../.."

// boxed tells the test binary that it runs in the sandbox.
const boxed = "REQUESTMIRROR_SANDBOX"

// lab is what all tests share. Each test has objects of its own in it and takes them
// away, so none depends on another.
var lab struct {
	dir      string   // for all that is written
	sandbox  bool     // everything can be tested
	cluster  *cluster // the one of Traefik
	policed  *cluster // the one with the policy, when a test has asked for it
	policing sync.Once
	dns      *nameServer
	traefik  string // programs
	mirror   string // the example receiver
}

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv(boxed) == "" {
		dir, err := os.MkdirTemp("", "requestmirror-kubernetes-")
		if err != nil {
			return fail(err)
		}
		defer os.RemoveAll(dir)
		if err := prepare(dir); err != nil {
			return fail(err)
		}
		os.Setenv(boxed, dir)
		// Without it, the tests do what they can, unless it is required.
		sandbox := os.Getenv("KUBERNETES_SANDBOX")
		if sandbox != "off" {
			if code, ran := rerun(dir); ran {
				return code
			}
		}
		if sandbox == "required" {
			return fail(errors.New("NO SANDBOX, as the system allows no user namespaces, and KUBERNETES_SANDBOX=required"))
		}
		fmt.Fprintln(os.Stderr, "kubernetes: NO SANDBOX, as the system allows no user namespaces: Traefik is not run, and what needs it is skipped")
	} else {
		lab.sandbox = true
		if err := furnish(); err != nil {
			return fail(fmt.Errorf("sandbox: %w", err))
		}
	}
	lab.dir = os.Getenv(boxed)
	lab.mirror = filepath.Join(lab.dir, "receiver")
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	var err error
	if lab.traefik, err = findTraefik(); err != nil {
		return fail(err)
	}
	if lab.cluster, err = startCluster(ctx, filepath.Join(lab.dir, "cluster"), ""); err != nil {
		return fail(err)
	}
	defer lab.cluster.stop()
	if err := lab.cluster.define(); err != nil {
		return fail(err)
	}
	if lab.sandbox {
		if lab.dns, err = startNameServer(lab.cluster); err != nil {
			return fail(err)
		}
		defer lab.dns.close()
	}
	defer func() {
		if lab.policed != nil {
			lab.policed.stop()
		}
	}()
	return m.Run()
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "kubernetes:", err)
	return 1
}

// prepare does what cannot be done inside, where there is no network.
func prepare(dir string) error {
	if _, err := findProgram("etcd"); err != nil {
		return err
	}
	if _, err := findTraefik(); err != nil {
		return err
	}
	// As examples/kubernetes/receiver/Dockerfile builds it.
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(dir, "receiver"), ".")
	build.Dir = filepath.Join(root, "examples", "receiver")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("examples/receiver: %w: %s", err, out)
	}
	return nil
}

// needSandbox skips what cannot be tested without one.
func needSandbox(t *testing.T) {
	t.Helper()
	if !lab.sandbox {
		t.Skip("NOT TESTED: this needs user namespaces, which the system forbids")
	}
}

var (
	kubernetesPin = regexp.MustCompile(`(?m)^\s*k8s\.io/kubernetes (v\S+)`)
	traefikPin    = regexp.MustCompile(`(?m)^\s*(?:require )?github\.com/traefik/traefik/v3 (\S+)`)
)

// findProgram returns the path of etcd or kube-apiserver: in KUBERNETES_BIN, or what
// build.sh built.
func findProgram(name string) (string, error) {
	dir := os.Getenv("KUBERNETES_BIN")
	if dir == "" {
		version, err := pinned("go.mod", kubernetesPin)
		if err != nil {
			return "", err
		}
		dir = filepath.Join("bin", version)
	}
	return executable(filepath.Join(dir, name), "build it with test/kubernetes/build.sh, or set KUBERNETES_BIN to a directory")
}

// findTraefik returns the path of the Traefik to run: TRAEFIK_BIN, or what
// test/traefik/build.sh built.
func findTraefik() (string, error) {
	bin := os.Getenv("TRAEFIK_BIN")
	if bin == "" {
		version, err := pinned("../traefik/go.mod", traefikPin)
		if err != nil {
			return "", err
		}
		bin = filepath.Join("..", "traefik", "bin", "traefik-"+version)
	}
	return executable(bin, "build it with test/traefik/build.sh, or set TRAEFIK_BIN to an executable")
}

func pinned(file string, pin *regexp.Regexp) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	found := pin.FindSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("no version in %s", file)
	}
	return string(found[1]), nil
}

func executable(path, advice string) (string, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, advice)
	}
	return filepath.Abs(found)
}
