package docs

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/mitchellh/mapstructure"
	"github.com/opencommit/requestmirror"
	"github.com/traefik/paerser/file"
	"github.com/traefik/paerser/parser"
	"go.yaml.in/yaml/v3"
)

// aSecret stands for what the environment or a Kubernetes Secret has.
const aSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"

// wrong marks an example that shows a mistake. The block after it is what the log says.
const wrong = "# Wrong on purpose."

// dynamic is the part of Traefik's dynamic configuration that plugins are in.
type dynamic struct {
	HTTP *struct {
		Routers map[string]*struct {
			EntryPoints []string
			Middlewares []string
			Rule        string
			Service     string
		}
		Middlewares map[string]*struct {
			Plugin map[string]map[string]any
		}
		Services map[string]*struct {
			LoadBalancer *struct{ Servers []struct{ URL string } }
		}
	}
}

// TestEveryConfigurationIsTakenByThePlugin decodes each middleware in each YAML block as
// Traefik does, and gives it to the plugin in strict mode.
func TestEveryConfigurationIsTakenByThePlugin(t *testing.T) {
	forms := map[string]int{}
	mistakes := 0
	eachBlock(t, "yaml", func(t *testing.T, b block) {
		for i, doc := range documents(t, b.text) {
			form, configs := middlewares(t, doc)
			if len(configs) == 0 && !isStatic(doc.tree) && !isOther(doc.tree) {
				t.Errorf("document %d: neither a middleware nor a static configuration", i+1)
			}
			for name, options := range configs {
				forms[form]++
				if strings.HasPrefix(b.text, wrong) {
					mistakes++
					checkMistake(t, b, name, options)
				} else {
					checkTaken(t, name, options)
				}
			}
		}
	})
	for form, least := range map[string]int{"file": 12, "labels": 2, "kubernetes": 2} {
		if forms[form] < least {
			t.Errorf("%s: got %d middlewares; want at least %d: were they recognised?", form, forms[form], least)
		}
	}
	if mistakes < 2 {
		t.Errorf("got %d mistakes; want at least 2", mistakes)
	}
}

// document is one of the YAML documents of a block.
type document struct {
	text string
	tree map[string]any
}

func documents(t *testing.T, text string) []document {
	t.Helper()
	var list []document
	for _, part := range strings.Split(rendered(t, text), "\n---\n") {
		d := document{text: part}
		if err := yaml.Unmarshal([]byte(part), &d.tree); err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
	return list
}

// rendered is the file as the file provider's templates make it.
func rendered(t *testing.T, text string) string {
	t.Helper()
	parsed, err := template.New("").Funcs(template.FuncMap{"env": func(string) string { return aSecret }}).Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := parsed.Execute(&out, nil); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// middlewares finds the options of all middlewares of this plugin, by name.
func middlewares(t *testing.T, d document) (form string, configs map[string]map[string]any) {
	t.Helper()
	conf := &dynamic{}
	switch {
	case d.tree["http"] != nil:
		form = "file"
		if err := file.DecodeContent(d.text, ".yml", conf); err != nil {
			t.Fatal(err)
		}
		checkNames(t, conf)
	case d.tree["services"] != nil:
		form = "labels"
		for _, service := range d.tree["services"].(map[string]any) {
			labels := map[string]string{}
			given, _ := service.(map[string]any)["labels"].(map[string]any)
			for name, value := range given {
				labels[name] = fmt.Sprint(value)
			}
			one := &dynamic{}
			if err := parser.Decode(labels, one, parser.DefaultRootName, "traefik.http.middlewares", "traefik.http.routers"); err != nil {
				t.Fatal(err)
			}
			if one.HTTP != nil {
				checkNames(t, one)
				conf = one
			}
		}
	case d.tree["kind"] == "Middleware":
		form = "kubernetes"
		if d.tree["apiVersion"] != "traefik.io/v1alpha1" {
			t.Errorf("apiVersion: got %v", d.tree["apiVersion"])
		}
		configs = map[string]map[string]any{}
		plugin, _ := d.tree["spec"].(map[string]any)["plugin"].(map[string]any)
		// By way of JSON, as the API server has it.
		raw, err := json.Marshal(plugin)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(raw, &configs); err != nil {
			t.Fatal(err)
		}
		if len(configs) != 1 || configs["requestmirror"] == nil {
			t.Fatalf("plugin: got %s; want requestmirror only", raw)
		}
		return form, map[string]map[string]any{"apps-request-mirror@kubernetescrd": resolved(configs["requestmirror"]).(map[string]any)}
	}
	configs = map[string]map[string]any{}
	if conf.HTTP != nil {
		for name, m := range conf.HTTP.Middlewares {
			options, ok := m.Plugin["requestmirror"]
			if !ok || len(m.Plugin) != 1 {
				t.Errorf("middleware %s: no plugin, or another one", name)
				continue
			}
			configs[name+"@file"] = options
		}
	}
	return form, configs
}

// checkNames sees to it that routers name middlewares that are there.
func checkNames(t *testing.T, conf *dynamic) {
	t.Helper()
	for name, router := range conf.HTTP.Routers {
		if router.Rule == "" || len(router.Middlewares) == 0 {
			t.Errorf("router %s: got rule %q, middlewares %q; want both", name, router.Rule, router.Middlewares)
		}
		for _, m := range router.Middlewares {
			if conf.HTTP.Middlewares[m] == nil {
				t.Errorf("router %s: middleware %s is not there", name, m)
			}
		}
	}
}

// resolved replaces Kubernetes secrets, as Traefik's provider does.
func resolved(value any) any {
	switch v := value.(type) {
	case string:
		if strings.HasPrefix(v, "urn:k8s:secret:") && strings.Count(v, ":") == 4 {
			return aSecret
		}
	case []any:
		for i := range v {
			v[i] = resolved(v[i])
		}
	case map[string]any:
		for key := range v {
			v[key] = resolved(v[key])
		}
	}
	return value
}

// isStatic says whether a document is a part of Traefik's static configuration, or of
// the values of its Helm chart, which have the same form.
func isStatic(tree map[string]any) bool {
	for key := range tree {
		if !slices.Contains([]string{"entryPoints", "api", "providers", "experimental", "log", "volumes",
			"additionalArguments", "deployment", "gateway", "image", "ports"}, key) {
			return false
		}
	}
	return len(tree) > 0
}

// isOther says whether a document is a Kubernetes object that plugins are not in, which
// the Kubernetes suite applies whatever page it is on, or the configuration of an OpenTelemetry Collector, which
// the tests of OTLP run.
func isOther(tree map[string]any) bool {
	kind, ok := tree["kind"]
	return ok && kind != "Middleware" || tree["exporters"] != nil
}

// decode does what Traefik does to make a Config: pkg/plugins/middlewareyaegi.go.
func decode(options map[string]any) (*requestmirror.Config, error) {
	config := requestmirror.CreateConfig()
	decoder, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		DecodeHook:       mapstructure.StringToSliceHookFunc(","),
		WeaklyTypedInput: true,
		Result:           config,
	})
	if err != nil {
		return nil, err
	}
	return config, decoder.Decode(options)
}

var next = http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})

func checkTaken(t *testing.T, name string, options map[string]any) {
	t.Helper()
	config, err := decode(withFiles(t, options))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	config.Strict = true
	handler, err := requestmirror.New(canceled(t), next, config, name)
	if err != nil {
		t.Error(err)
	} else if _, ok := handler.(*requestmirror.Mirror); !ok && config.MetricsPath == nil {
		t.Errorf("%s: nothing is mirrored; got %T", name, handler)
	}
}

// withFiles has files of its own where the options name some, with what is to be in them.
func withFiles(t *testing.T, options map[string]any) map[string]any {
	t.Helper()
	cert, key := certificate(t)
	contents := map[string]string{
		"watchURL": "https://receiver.example.com/events", "watchURLs": "https://other.example.com/events",
		"signingSecrets": aSecret, "ca": cert, "cert": cert, "key": key,
	}
	dir := t.TempDir()
	var moved func(option string, value any) any
	moved = func(option string, value any) any {
		switch v := value.(type) {
		case string:
			path, named := strings.CutPrefix(v, "file:")
			if !named && !(strings.HasPrefix(v, "/") && (option == "ca" || option == "cert" || option == "key")) {
				return v
			}
			if !strings.HasPrefix(path, "/run/secrets/") && !strings.HasPrefix(path, "/etc/mirror/") {
				t.Errorf("%s: got the file %s; want one in /run/secrets or /etc/mirror", option, path)
			}
			content := contents[option]
			if content == "" {
				content = "a long random text"
			}
			name := filepath.Join(dir, strings.ReplaceAll(path, "/", "-"))
			if err := os.WriteFile(name, []byte(content+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return strings.TrimSuffix(v, path) + name
		case []any:
			list := []any{}
			for _, one := range v {
				list = append(list, moved(option, one))
			}
			return list
		case map[string]any:
			return withEach(v, moved)
		}
		return value
	}
	return withEach(options, moved)
}

func withEach(options map[string]any, change func(option string, value any) any) map[string]any {
	out := map[string]any{}
	for option, value := range options {
		out[option] = change(option, value)
	}
	return out
}

// certificate is one that is signed by itself, and its key, in PEM.
func certificate(t *testing.T) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	signed, err := x509.CreateCertificate(rand.Reader, form, form, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// canceled is the context of a test that lets go of pipelines at its end.
func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return ctx
}

// checkMistake compares what is logged with what the page says is logged.
func checkMistake(t *testing.T, b block, name string, options map[string]any) {
	t.Helper()
	said := b.next
	if said == nil || said.lang != "text" {
		t.Error("a mistake without the text of the log after it")
		return
	}
	config, err := decode(options)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	var logged bytes.Buffer
	log.SetOutput(&logged)
	defer log.SetOutput(io.Discard)
	if _, err := requestmirror.New(canceled(t), next, config, name); err != nil {
		t.Error(err)
	}
	if logged.String() != said.text {
		t.Errorf("got log\n%s\nwant\n%s", logged.String(), said.text)
	}
}

// TestStaticConfigurationNamesThePlugin looks at each part of a static configuration, in
// YAML and as arguments.
func TestStaticConfigurationNamesThePlugin(t *testing.T) {
	const module = "github.com/opencommit/requestmirror"
	type descriptor struct {
		ModuleName, Version string
		// Of the Helm chart, which makes static configuration of it.
		MountPath, Type, VolumeName, SubPath string
		Source                               map[string]string
	}
	type static struct {
		Experimental *struct {
			AbortOnPluginFailure  bool
			Plugins, LocalPlugins map[string]*descriptor
		}
	}
	found := 0
	eachBlock(t, "yaml", func(t *testing.T, b block) {
		for _, d := range documents(t, b.text) {
			experimental, ok := d.tree["experimental"].(map[string]any)
			if !ok {
				continue
			}
			found++
			for key := range experimental {
				if !slices.Contains([]string{"plugins", "localPlugins", "abortOnPluginFailure"}, key) {
					t.Errorf("experimental.%s: not known to this test", key)
				}
			}
			s := &static{}
			if err := file.DecodeContent(d.text, ".yml", s); err != nil {
				t.Fatal(err)
			}
			plugin := s.Experimental.Plugins["requestmirror"]
			local := s.Experimental.LocalPlugins["requestmirror"]
			switch {
			case plugin != nil && (plugin.ModuleName != module || plugin.Version != "v0.1.0"):
				t.Errorf("plugins.requestmirror: got %+v", *plugin)
			case local != nil && (local.ModuleName != module || local.Version != "" || local.MountPath != "" && local.MountPath != "/plugins-local/src/"+module):
				t.Errorf("localPlugins.requestmirror: got %+v", *local)
			case (plugin == nil) == (local == nil):
				t.Error("got none or two plugins; want one")
			}
		}
	})
	if found < 4 {
		t.Errorf("got %d static configurations; want at least 4", found)
	}

	arguments := 0
	for _, p := range pages(t) {
		for _, line := range strings.Split(p.text, "\n") {
			line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "- "))
			if !strings.HasPrefix(line, "--experimental") {
				continue
			}
			arguments++
			name, value, _ := strings.Cut(line, "=")
			want := map[string]string{
				"--experimental.plugins.requestmirror.moduleName": module, "--experimental.plugins.requestmirror.version": "v0.1.0",
				"--experimental.localPlugins.requestmirror.moduleName": module, "--experimental.abortOnPluginFailure": "true",
			}[name]
			if want == "" || value != want {
				t.Errorf("%s: got %s; want the name or version of the plugin", p.name, line)
			}
		}
	}
	if arguments < 4 {
		t.Errorf("got %d arguments; want at least 4", arguments)
	}
}

// TestIngressNamesTheMiddleware compares the annotation with the object.
func TestIngressNamesTheMiddleware(t *testing.T) {
	names := map[string]bool{}
	found := 0
	for _, kind := range []string{"Middleware", "Ingress"} {
		eachBlock(t, "yaml", func(t *testing.T, b block) {
			for _, d := range documents(t, b.text) {
				if d.tree["kind"] != kind {
					continue
				}
				meta := d.tree["metadata"].(map[string]any)
				if kind == "Middleware" {
					names[fmt.Sprintf("%s-%s@kubernetescrd", meta["namespace"], meta["name"])] = true
					continue
				}
				found++
				named := meta["annotations"].(map[string]any)["traefik.ingress.kubernetes.io/router.middlewares"]
				if !names[fmt.Sprint(named)] {
					t.Errorf("got annotation %v; want one of %v", named, names)
				}
			}
		})
	}
	if found < 2 {
		t.Errorf("got %d objects with the annotation; want 2", found)
	}
}
