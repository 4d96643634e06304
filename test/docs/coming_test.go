package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestEveryCellOfTheComparisonHasASource is what the page says of itself.
func TestEveryCellOfTheComparisonHasASource(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "explanation", "comparison.md"))
	if err != nil {
		t.Fatal(err)
	}
	var tools []string
	cells := 0
	for i, line := range strings.Split(string(text), "\n") {
		row := strings.Split(strings.Trim(line, "| "), " | ")
		if strings.HasPrefix(line, "| | Request Mirror | ") { // the first of the tools
			tools = row
		} else if !strings.HasPrefix(line, "|") {
			tools = nil
		}
		if tools == nil || !strings.HasPrefix(line, "| **") || strings.HasPrefix(line, "| **runs in** ") {
			continue
		}
		if len(row) != len(tools)+1 {
			t.Errorf("line %d: got %d cells; want %d", i+1, len(row), len(tools)+1)
			continue
		}
		for j, cell := range row[2:] {
			cells++
			source := regexp.MustCompile(`\]\[([a-z0-9-]+)\]`).FindStringSubmatch(cell)
			if cell != "not found" && (source == nil || !strings.Contains(string(text), "\n["+source[1]+"]: https://")) {
				t.Errorf("line %d, %s: got %s, %q; want a link to a source", i+1, tools[j+1], row[0], cell)
			}
		}
	}
	if cells < 150 {
		t.Errorf("got %d cells; want at least 150", cells)
	}
}

// TestTheSameInKubernetesIsTheSame compares the options of the object on a page with those
// of the file above it, which run in a real Traefik.
func TestTheSameInKubernetesIsTheSame(t *testing.T) {
	compared := 0
	for _, p := range pages(t) {
		if !strings.HasPrefix(p.name, "docs/how-to/coming-from-") {
			continue
		}
		var inFile, inKubernetes map[string]any
		for _, b := range p.blocks {
			if b.lang != "yaml" {
				continue
			}
			for _, d := range documents(t, b.text) {
				form, configs := middlewares(t, d)
				for _, options := range configs {
					// Addresses, and the places of files, are others.
					for _, name := range []string{"watchURL", "watchURLs"} {
						delete(options, name)
					}
					if a, ok := options["authenticate"].(map[string]any); ok {
						delete(a, "secrets")
					}
					if form == "file" && inFile == nil {
						inFile = options
					} else if form == "kubernetes" {
						inKubernetes = options
					}
				}
			}
		}
		if inKubernetes == nil {
			continue
		}
		compared++
		if file, object := fmt.Sprint(inFile), fmt.Sprint(inKubernetes); file != object {
			t.Errorf("%s: got in Kubernetes\n%s\nand in the file\n%s\nwant the same", p.name, object, file)
		}
	}
	if compared < 2 {
		t.Errorf("got %d pages with objects; want at least 2", compared)
	}
}

// TestEachReceiverHasTheFormatOfItsRow compares the table of what stores and routes events
// with the configurations below it.
func TestEachReceiverHasTheFormatOfItsRow(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "how-to", "grow-past-one-machine.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(text), "\n| | `format` | ")
	table, after, _ := strings.Cut(after, "\n\n```yaml\n")
	below, _, _ := strings.Cut(after, "```")
	rows := regexp.MustCompile(`(?m)^\| (\w.*?) \| (.*?) \|`).FindAllStringSubmatch(table, -1)
	receivers := regexp.MustCompile(`(?m)^    (to-[a-z-]+):\n(?:      .*\n)+`).FindAllStringSubmatch(below, -1)
	if len(rows) != len(receivers) || len(rows) < 8 {
		t.Fatalf("got %d rows and %d configurations; want as many, and 8 at least", len(rows), len(receivers))
	}
	for i, r := range receivers {
		want := regexp.MustCompile("^`([a-z]+)`").FindStringSubmatch(rows[i][2])
		if rows[i][2] == "either" {
			want = []string{"", "cloudevents"}
		}
		got := regexp.MustCompile(`(?m)^          format: (\w+)$`).FindStringSubmatch(r[0])
		if got == nil {
			got = []string{"", "cloudevents"}
		}
		if want == nil || got[1] != want[1] {
			t.Errorf("%s: got format %s; want that of %s, %s", r[1], got[1], rows[i][1], rows[i][2])
		}
	}
}
