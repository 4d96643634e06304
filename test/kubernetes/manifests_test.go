package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const examples = root + "/examples/kubernetes"

// shipped reads a file of the examples, or builds a directory of them as kubectl
// apply -k does.
func shipped(t *testing.T, name string) []*unstructured.Unstructured {
	t.Helper()
	path := filepath.Join(examples, name)
	var text []byte
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		text, err = built(path)
	} else if err == nil {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return parsed(t, string(text))
}

func built(dir string) ([]byte, error) {
	all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, err
	}
	return all.AsYaml()
}

func parsed(t *testing.T, text string) []*unstructured.Unstructured {
	t.Helper()
	list, err := objects([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		t.Fatal("no objects")
	}
	return list
}

// apply applies objects for the time of a test. Namespaces stay: nobody here would
// finish their deletion.
func apply(t *testing.T, list ...*unstructured.Unstructured) {
	t.Helper()
	applyTo(t, lab.cluster, list...)
}

func applyTo(t *testing.T, c *cluster, list ...*unstructured.Unstructured) {
	t.Helper()
	for _, o := range list {
		if o.GetNamespace() != "" {
			applyOne(t, c, namespace(o.GetNamespace()))
		}
		if o.GetKind() != "Namespace" {
			t.Cleanup(func() {
				if err := c.remove(context.Background(), o); err != nil && !apierrors.IsNotFound(err) {
					t.Errorf("remove %s %s: %v", o.GetKind(), o.GetName(), err)
				}
			})
		}
		applyOne(t, c, o)
	}
}

func applyOne(t *testing.T, c *cluster, o *unstructured.Unstructured) {
	t.Helper()
	if err := applyServed(c, o); err != nil {
		t.Fatal(err)
	}
}

// applyServed waits for a definition that was just made to be served.
func applyServed(c *cluster, o *unstructured.Unstructured) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var failure error
	err := poll(ctx, "its kind to be served", func() (bool, any) {
		_, failure = c.apply(ctx, o, false)
		missing := failure != nil && (strings.Contains(failure.Error(), "no matches for kind") ||
			strings.Contains(failure.Error(), "the server could not find the requested resource"))
		return !missing, failure
	})
	if err := errors.Join(err, failure); err != nil {
		return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
	}
	return nil
}

func namespace(name string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Namespace", "metadata": map[string]any{"name": name},
	}}
}

// define applies what users of Traefik do before anything else. It stays.
func (c *cluster) define() error {
	files, err := definitions("*.yml")
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		list, err := objects(text)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, o := range list {
			if err := applyServed(c, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// definitions are the files of a pattern that Traefik and the Gateway API publish: see
// build.sh.
func definitions(pattern string) ([]string, error) {
	version, err := pinned("../traefik/go.mod", traefikPin)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join("bin", "traefik-"+version, pattern))
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no definitions of Traefik, %s: take them with test/kubernetes/build.sh", pattern)
	}
	return files, err
}

// middleware is one of the plugin with some options.
func middleware(namespace, name string, options any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "traefik.io/v1alpha1", "kind": "Middleware",
		"metadata": map[string]any{"namespace": namespace, "name": name},
		"spec":     map[string]any{"plugin": map[string]any{"requestmirror": options}},
	}}
}
