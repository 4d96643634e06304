package docs

import (
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)|\b(?:src|srcset)="([^"]+)"`)
	heading = regexp.MustCompile(`(?m)^#{1,6} (.+)$`)
	code    = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
)

// TestLinksLeadSomewhere follows every link into this repository, to the heading.
func TestLinksLeadSomewhere(t *testing.T) {
	const blob = "https://github.com/opencommit/requestmirror/blob/main/"
	const tree = "https://github.com/opencommit/requestmirror/tree/main/"
	linked := map[string]bool{}
	for _, p := range pages(t) {
		if filepath.Ext(p.name) != ".md" {
			continue
		}
		for _, found := range link.FindAllStringSubmatch(code.ReplaceAllString(p.text, ""), -1) {
			target := found[1] + found[2]
			absolute := strings.HasPrefix(target, blob) || strings.HasPrefix(target, tree)
			if p.name == "README.md" && !strings.Contains(target, "://") {
				t.Errorf("README.md: %s: a relative link, which leads nowhere in the catalog", target)
			}
			if strings.Contains(target, "://") && !absolute {
				continue
			}
			file, anchor, _ := strings.Cut(target, "#")
			if absolute {
				file = strings.TrimPrefix(strings.TrimPrefix(file, blob), tree)
			} else if file == "" {
				file = p.name
			} else {
				file = path.Join(path.Dir(p.name), file)
			}
			info, err := os.Stat(filepath.Join(root, file))
			if err != nil {
				t.Errorf("%s: %s: %v", p.name, target, err)
				continue
			}
			if absolute && info.IsDir() != strings.HasPrefix(target, tree) {
				t.Errorf("%s: %s: a directory is under tree, a file under blob", p.name, target)
			}
			linked[file] = true
			if anchor != "" && !anchors(t, file)[anchor] {
				t.Errorf("%s: %s: no such heading", p.name, target)
			}
		}
	}
	for _, p := range pages(t) {
		if strings.HasPrefix(p.name, "docs/") && p.name != "docs/README.md" && !linked[p.name] {
			t.Errorf("%s: no link leads to it", p.name)
		}
	}
}

// TestTheMapHasEveryPage is what docs/README.md is for.
func TestTheMapHasEveryPage(t *testing.T) {
	index, err := os.ReadFile(filepath.Join(root, "docs", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages(t) {
		rel, inside := strings.CutPrefix(p.name, "docs/")
		if inside && rel != "README.md" && !strings.Contains(string(index), "]("+rel) {
			t.Errorf("docs/README.md: got no link to %s; want one", rel)
		}
	}
}

// TestContributingHasEveryFile is for the table of layers.
func TestContributingHasEveryFile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if !strings.HasSuffix(name, "_test.go") && !strings.Contains(string(text), "["+name+"]("+name+")") {
			t.Errorf("CONTRIBUTING.md: got no responsibility for %s; want one", name)
		}
	}
}

// anchors are the headings of a page as GitHub names them.
func anchors(t *testing.T, file string) map[string]bool {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, h := range heading.FindAllStringSubmatch(regexp.MustCompile("(?s)```.*?```").ReplaceAllString(string(text), ""), -1) {
		names[slug(h[1])] = true
	}
	return names
}

func slug(heading string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(heading) {
		switch {
		case r == ' ':
			b.WriteByte('-')
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '-' || r == '_':
			b.WriteRune(r)
		}
	}
	return b.String()
}

// forbidden is what no page may have in it.
var forbidden = regexp.MustCompile(`/root/|/home/|/work/|/tmp/|TODO|FIXME`)

func TestNothingOfAMachineIsInThePages(t *testing.T) {
	for _, p := range pages(t) {
		for i, line := range strings.Split(p.text, "\n") {
			if found := forbidden.FindString(line); found != "" {
				t.Errorf("%s:%d: got %q", p.name, i+1, found)
			}
		}
	}
}
