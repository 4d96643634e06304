package docs

import (
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
