//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
)

const selectionHelp = `	tables  rate, full (speed), latency, memory, receivers
	methods get, post
	rows    noop, mirroring, single, batches, hangs, down
Tables at the fixed rate and at full speed, if none is named. Rows that others are
compared with are always there.`

// selection is what is to be measured.
type selection struct {
	rate, full, latency, memory, receivers bool
	methods                                []string // all, if there is none
	rows                                   []string // all, if there is none
	against                                string   // directory of another state of the plugin
}

// parseSelection reads words with commas between them; nothing is all.
func parseSelection(text string) (selection, error) {
	var s selection
	tables := map[string]*bool{"rate": &s.rate, "full": &s.full, "latency": &s.latency, "memory": &s.memory, "receivers": &s.receivers}
	if text == "" {
		for _, table := range tables {
			*table = true
		}
		return s, nil
	}
	named := false
	for word := range strings.SplitSeq(text, ",") {
		word = strings.TrimSpace(word)
		if table := tables[word]; table != nil {
			*table = true
			named = true
		} else if slices.ContainsFunc(methods, func(m method) bool { return m.key == word }) {
			s.methods = append(s.methods, word)
		} else if slices.ContainsFunc(variants, func(v variant) bool { return v.key == word }) {
			s.rows = append(s.rows, word)
		} else {
			return s, fmt.Errorf("-only: %q is unknown, want some of\n%s", word, selectionHelp)
		}
	}
	if !named {
		s.rate, s.full = true, true
	}
	return s, nil
}

// variants are the rows of the tables of traffic. A row of another state of the plugin
// comes after its own.
func (s selection) variants() []variant {
	var chosen []variant
	for _, v := range variants {
		base := v.key == plain.key || v.key == idle.key && s.full
		if !base && len(s.rows) > 0 && !slices.Contains(s.rows, v.key) {
			continue
		}
		chosen = append(chosen, s.twins(v)...)
	}
	return chosen
}

// twins are the variant and, if there is one, that of another state of the plugin.
func (s selection) twins(v variant) []variant {
	if s.against == "" || !v.through || v.plugin != "" {
		return []variant{v}
	}
	other := v
	other.plugin = s.against
	other.name += ", " + s.against
	return []variant{v, other}
}

// chosenMethods are those whose tables are wanted.
func (s selection) chosenMethods() []method {
	if len(s.methods) == 0 {
		return methods
	}
	return slices.DeleteFunc(slices.Clone(methods), func(m method) bool { return !slices.Contains(s.methods, m.key) })
}
