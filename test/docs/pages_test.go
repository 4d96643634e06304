package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// page is a file of documentation, or an example.
type page struct {
	name   string // from the root of the repository
	text   string
	blocks []block
}

// block is a fenced block of a page, or the whole of an example.
type block struct {
	page string
	line int
	lang string
	text string
	next *block // on the same page
}

// pages reads README.md and the like, docs/ and examples/.
func pages(t *testing.T) []*page {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(root, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"docs", "examples"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(name string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			// The tutorial was followed here, and the page of the inspector tested.
			if entry.IsDir() && (entry.Name() == "plugins-local" || entry.Name() == "node_modules") {
				return filepath.SkipDir
			}
			switch filepath.Ext(name) {
			case ".yml", ".yaml":
				// What is there is for Prometheus, and looked at in test/metrics.
				if filepath.Base(filepath.Dir(name)) != "monitoring" {
					names = append(names, name)
				}
			case ".md":
				names = append(names, name)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	list := []*page{}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			t.Fatal(err)
		}
		p := &page{name: filepath.ToSlash(rel), text: string(text)}
		if filepath.Ext(name) == ".md" {
			p.blocks = fenced(t, p)
		} else {
			p.blocks = []block{{page: p.name, line: 1, lang: "yaml", text: p.text}}
		}
		list = append(list, p)
	}
	if len(list) < 20 {
		t.Fatalf("got %d pages; want at least 20", len(list))
	}
	return list
}

// fenced finds the blocks of a page, those in lists, too.
func fenced(t *testing.T, p *page) []block {
	t.Helper()
	var blocks []block
	var open *block
	indent := ""
	for i, line := range strings.Split(p.text, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		fence := strings.HasPrefix(trimmed, "```")
		switch {
		case fence && open == nil:
			indent = line[:len(line)-len(trimmed)]
			open = &block{page: p.name, line: i + 1, lang: strings.TrimPrefix(trimmed, "```")}
			if open.lang == "" {
				t.Errorf("%s:%d: a block without a language", p.name, i+1)
			}
		case fence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.text += strings.TrimPrefix(line, indent) + "\n"
		}
	}
	if open != nil {
		t.Errorf("%s:%d: a block without an end", p.name, open.line)
	}
	for i := range blocks[:max(0, len(blocks)-1)] {
		blocks[i].next = &blocks[i+1]
	}
	return blocks
}

// eachBlock runs a subtest for every block in one of the languages, and returns how many there were.
func eachBlock(t *testing.T, lang string, check func(t *testing.T, b block)) int {
	t.Helper()
	n := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang == lang {
				n++
				t.Run(b.where(), func(t *testing.T) { check(t, b) })
			}
		}
	}
	return n
}

func (b block) where() string { return b.page + ":" + strconv.Itoa(b.line) }
