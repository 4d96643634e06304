package kubernetes

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// kubernetesPages are those with objects of Kubernetes or with kubectl. The tests of all
// pages are in test/docs.
func kubernetesPages(t *testing.T) []string {
	t.Helper()
	var list []string
	docs := filepath.Join(root, "docs")
	err := filepath.WalkDir(docs, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(name) != ".md" {
			return err
		}
		name, err = filepath.Rel(docs, name)
		if err != nil {
			return err
		}
		text := page(t, name)
		if strings.Contains(strings.Join(blocks(text, "ya?ml"), "\n"), "apiVersion:") || strings.Contains(strings.Join(blocks(text, "sh"), "\n"), "kubectl ") {
			list = append(list, name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 3 {
		t.Fatalf("got %q; want at least 3 pages", list)
	}
	return list
}

func page(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pageObjects are the objects of Kubernetes that a page has, each as its text.
func pageObjects(t *testing.T, name string) []string {
	t.Helper()
	var list []string
	for _, block := range blocks(page(t, name), "ya?ml") {
		for _, text := range strings.Split(block, "\n---\n") {
			if strings.HasPrefix(text, "apiVersion:") || strings.Contains(text, "\napiVersion:") {
				list = append(list, text)
			}
		}
	}
	return list
}

// elsewhere are the parts of a configuration of Traefik or of a compose file, which the
// tests of all pages run.
var elsewhere = []string{"api", "entryPoints", "experimental", "http", "log", "providers", "services"}

// blocks are the fenced ones of a language, also those under the items of lists.
func blocks(text, lang string) []string {
	var list []string
	for _, found := range regexp.MustCompile("(?ms)^( *)```"+lang+"\n(.*?)^ *```$").FindAllStringSubmatch(text, -1) {
		list = append(list, strings.TrimPrefix(strings.ReplaceAll("\n"+found[2], "\n"+found[1], "\n"), "\n"))
	}
	return list
}

// TestThePagesShowWhatIsShipped compares each YAML of a page with the shipped files, which
// other tests apply. What is on a page only is applied here, against the policy.
func TestThePagesShowWhatIsShipped(t *testing.T) {
	t.Parallel()
	var files []any
	err := filepath.WalkDir(examples, func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(name) != ".yaml" {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for _, part := range strings.Split(string(text), "\n---\n") {
			var tree any
			if err := yaml.Unmarshal([]byte(part), &tree); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			files = append(files, tree)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	shown, applied := 0, 0
	for _, name := range kubernetesPages(t) {
		for _, text := range strings.Split(strings.Join(blocks(page(t, name), "ya?ml"), "\n---\n"), "\n---\n") {
			var tree map[string]any
			if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
				t.Errorf("%s: %v:\n%s", name, err, text)
				continue
			}
			if tree["http"] != nil || tree["entryPoints"] != nil {
				continue // for the file provider: the other half of a page that is not only about Kubernetes
			}
			if slices.ContainsFunc(files, func(file any) bool { return reflect.DeepEqual(file, any(tree)) }) {
				shown++
				continue
			}
			if tree["apiVersion"] == nil {
				if !slices.ContainsFunc(elsewhere, func(part string) bool { return tree[part] != nil }) {
					t.Errorf("%s: this is in no shipped file:\n%s", name, text)
				}
				continue
			}
			applied++
			c := policed(t)
			o := parsed(t, text)[0]
			applyOne(t, c, namespace(namespaceOf(o)))
			if o.GetKind() == "Middleware" {
				if said := verdict(t, c, o); said != "" {
					t.Errorf("%s: the policy says %q of\n%s", name, said, text)
				}
			} else if _, err := c.apply(t.Context(), o, true); err != nil {
				t.Errorf("%s: %v:\n%s", name, err, text)
			}
		}
	}
	if shown < 8 || applied < 3 {
		t.Errorf("got %d blocks that are shipped and %d that were applied; want at least 8 and 3", shown, applied)
	}
}

// TestThePagesNameWhatIsThere goes through the commands. Those of kubectl another test runs.
func TestThePagesNameWhatIsThere(t *testing.T) {
	gateway, err := pinned("../traefik/go.mod", regexp.MustCompile(`(?m)^\s*sigs\.k8s\.io/gateway-api (v\S+)`))
	if err != nil {
		t.Fatal(err)
	}
	traefik, err := pinned("../traefik/go.mod", traefikPin)
	if err != nil {
		t.Fatal(err)
	}
	minor := traefik[:strings.LastIndex(traefik, ".")]
	n := 0
	for _, name := range kubernetesPages(t) {
		for _, block := range blocks(page(t, name), "sh") {
			for _, line := range strings.Split(strings.TrimSpace(block), "\n") {
				n++
				words := strings.Fields(line)
				for i, word := range words {
					value := ""
					if i+1 < len(words) {
						value = words[i+1]
					}
					switch {
					case strings.HasPrefix(word, "examples/"):
						if _, err := os.Stat(filepath.Join(root, strings.TrimSuffix(word, "/plugins-local"))); err != nil {
							t.Errorf("%s: %s: %v", name, line, err)
						}
					case strings.HasPrefix(word, "https://raw.githubusercontent.com/traefik/"):
						if !strings.Contains(word, "/"+minor+"/") {
							t.Errorf("%s: %s: want %s, as tested", name, word, minor)
						}
						if _, err := os.Stat(filepath.Join("bin", "traefik-"+traefik, filepath.Base(word))); err != nil {
							t.Errorf("%s: %s: the tests apply no such file: %v", name, word, err)
						}
					case strings.HasPrefix(word, "https://"):
						if !strings.Contains(word, "/kubernetes-sigs/gateway-api/releases/download/"+gateway+"/") {
							t.Errorf("%s: %s: want the Gateway API %s, as tested", name, word, gateway)
						}
					}
					if word == "-f" && words[0] == "docker" {
						recipe, err := os.ReadFile(filepath.Join(root, value))
						if err != nil || !strings.Contains(string(recipe), "# "+line+"\n") {
							t.Errorf("%s: %s: not what %s says (%v)", name, line, value, err)
						}
					}
					if word == "-f" && words[0] == "helm" && value != "plugin-values.yaml" {
						if !valuesUsed(t, value) {
							t.Errorf("%s: %s: rendered by no test", name, line)
						}
					}
				}
			}
		}
	}
	if n < 15 {
		t.Errorf("got %d commands; want at least 15", n)
	}
}

// TestTheCompatibilityPageHasTheVersionsOfTheseTests reads them where they are pinned.
func TestTheCompatibilityPageHasTheVersionsOfTheseTests(t *testing.T) {
	text := page(t, "reference/compatibility.md")
	for _, row := range []struct{ file, pin, want string }{
		{"go.mod", `(?m)^\s*k8s\.io/kubernetes v(\S+)`, "| Kubernetes | tested: the API server %s and, by its emulation, " + oldest + ","},
		{"../traefik/go.mod", `(?m)^\s*sigs\.k8s\.io/gateway-api (v\S+)`, "| Gateway API | tested: %s,"},
		{"chart.sh", `(?m)^version=(\S+)`, "| Helm | tested: Traefik's chart %s,"},
		{"helm/go.mod", `(?m)^\s*helm\.sh/helm/v3 v(\S+)`, ", with Helm %s."},
	} {
		version, err := pinned(row.file, regexp.MustCompile(row.pin))
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf(row.want, version); !strings.Contains(text, want) {
			t.Errorf("docs/reference/compatibility.md: got no %q; want the version of %s", want, row.file)
		}
	}
}

// row is one of a table with two columns of code.
var row = regexp.MustCompile("(?m)^\\| `(.+?)` \\| (`.+`) \\|$")

func TestTheMessagesInTheReferenceAreThoseOfThePolicy(t *testing.T) {
	t.Parallel()
	c := policed(t)
	_, table, _ := strings.Cut(page(t, "reference/admission-policy.md"), "\n| options | message |\n")
	rows := row.FindAllStringSubmatch(table, -1)
	for _, r := range rows {
		options := fromYAML(t, r[1])
		if m, ok := options.(map[string]any); ok && !strings.Contains(r[1], "watchURL:") {
			m["watchURL"] = "http://receiver.example.com/"
		}
		said := verdict(t, c, middleware("default", "probe", options))
		want := strings.Trim(r[2], "`")
		if strings.HasPrefix(r[2], "``") { // as there is a ` in it, too
			want = strings.TrimSpace(r[2][2 : len(r[2])-2])
		}
		if !strings.HasSuffix(said, ": "+want) {
			t.Errorf("%s: got %q; want %q", r[1], said, want)
		}
	}
	if len(rows) < 40 {
		t.Errorf("got %d rows; want at least 40", len(rows))
	}

	// The whole of it, as kubectl shows it behind its own words.
	_, err := c.apply(context.Background(), middleware("default", "probe", map[string]any{
		"watchURL": "http://receiver.example.com/", "queueSzie": int64(5), "timeout": "1d",
	}), true)
	_, want, _ := strings.Cut(blocks(page(t, "reference/admission-policy.md"), "text")[0], ": : ")
	if err == nil || !strings.HasSuffix(err.Error(), strings.TrimSpace(want)) {
		t.Errorf("got %v; want %s", err, want)
	}
}

// shownLogs are the pieces of log that a table says, without what differs.
func shownLogs(t *testing.T) []string {
	t.Helper()
	_, table, found := strings.Cut(page(t, "how-to/install-on-kubernetes.md"), "| in the `Middleware` | requests |")
	if !found {
		t.Fatal("no table of mistakes")
	}
	table, _, _ = strings.Cut(table, "\n\n")
	var pieces []string
	for _, line := range strings.Split(table, "\n")[2:] {
		columns := strings.Split(line, " | ")
		for _, code := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(columns[2], -1) {
			for _, piece := range strings.Split(code[1], "…") {
				if piece = strings.TrimSpace(piece); len(piece) > 3 {
					pieces = append(pieces, piece)
				}
			}
		}
	}
	if len(pieces) < 7 {
		t.Fatalf("got %q; want at least 7 pieces of log", pieces)
	}
	return pieces
}
