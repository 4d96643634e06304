package policy

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror"
)

var update = flag.Bool("update", false, "write the policy instead of comparing it")

const (
	root    = "../../.."
	shipped = root + "/examples/kubernetes/policy/policy.yaml"
)

func TestTheShippedPolicyIsThatOfTheseSources(t *testing.T) {
	plugin, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	want, err := Render(plugin)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(shipped, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("examples/kubernetes/policy/policy.yaml is not what the sources say; write it with: cd test/kubernetes && go test ./policy -update")
	}
}

// TestThePolicyKnowsEveryOption compares the names that were found in the sources with
// those that Traefik decodes, and, as the parts of sections are maps to it, with those of
// the reference, which the plugin's own tests hold equal to what it reads.
func TestThePolicyKnowsEveryOption(t *testing.T) {
	plugin, err := Read(root)
	if err != nil {
		t.Fatal(err)
	}
	var all, top []string
	for _, o := range plugin.Options {
		all = append(all, o.Name)
		section, _, nested := strings.Cut(o.Name, ".")
		if nested != slices.Contains(plugin.Sections, section) {
			t.Errorf("%s: got a part of a section %v; want %v", o.Name, nested, !nested)
		}
		top = append(top, section)
	}

	var decoded []string
	config := reflect.TypeOf(requestmirror.Config{})
	for i := range config.NumField() {
		name, _, _ := strings.Cut(config.Field(i).Tag.Get("json"), ",")
		switch {
		case name == "-" && strings.Contains(config.Field(i).Tag.Get("mapstructure"), "remain"):
		case !strings.EqualFold(name, config.Field(i).Name):
			t.Errorf("field %s: got the name %q; want that of the field", config.Field(i).Name, name)
		default:
			decoded = append(decoded, name)
		}
	}
	same(t, "top-level options", top, decoded)

	reference, err := os.ReadFile(filepath.Join(root, "docs", "reference", "options.md"))
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Za-z.]+)` \\|[^|]*\\|[^|]*\\|[^|]*\\|").FindAllStringSubmatch(string(reference), -1) {
		documented = append(documented, row[1])
	}
	same(t, "options", all, documented)
}

// same compares two sets of names.
func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	for _, name := range want {
		if !slices.Contains(got, name) {
			t.Errorf("%s: %s is missing in the policy", what, name)
		}
	}
	for _, name := range got {
		if !slices.Contains(want, name) {
			t.Errorf("%s: %s is in the policy only", what, name)
		}
	}
}

// TestAnOptionThatIsReadInANewWayIsNotLeftOut gives the sources a method that the policy
// does not know.
func TestAnOptionThatIsReadInANewWayIsNotLeftOut(t *testing.T) {
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, filepath.Base(file)), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	more := "package requestmirror\n\nfunc (r *reader) colour(path string) string { return r.text(path, \"\") }\n\nfunc readColour(r *reader) string { return r.colour(\"colour\") }\n"
	if err := os.WriteFile(filepath.Join(dir, "colour.go"), []byte(more), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(dir); err == nil || !strings.Contains(err.Error(), "reader.colour") {
		t.Errorf("got %v; want a problem with reader.colour", err)
	}
}
