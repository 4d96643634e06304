package requestmirror

import (
	"fmt"
	"sort"
	"strings"
)

// unknown lists the names that no option was asked by, each with the closest option.
func (r *reader) unknown() []string {
	list := []string{}
	for _, name := range r.names {
		text := printable(name) + ": unknown option"
		if closest := r.closest(name); closest != "" {
			text += ", did you mean " + closest + "?"
		}
		list = append(list, text)
	}
	sort.Strings(list)
	return list
}

func (r *reader) closest(name string) string {
	best, distance := "", len(name)/2+1
	for _, option := range r.known {
		if d := editDistance(strings.ToLower(name), strings.ToLower(option.path)); d < distance {
			best = option.path
			distance = d
		}
	}
	return best
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost++
			}
			diagonal = row[j]
			row[j] = least(cost, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}

func least(a, b, c int) int {
	if b < a {
		a = b
	}
	if c < a {
		a = c
	}
	return a
}

// describeProblems is the text for the log, or of the error: all problems at once.
func describeProblems(name string, strict bool, problems, unknown []string) string {
	consequence := "requests pass unmirrored until this is mended"
	if strict {
		consequence = "strict, so the router is not set up"
	} else if len(problems) == 0 {
		consequence = "requests are mirrored as if these were not there"
	}
	return fmt.Sprintf("requestmirror %q: invalid configuration (%s):\n  %s", name, consequence,
		strings.Join(append(append([]string{}, problems...), unknown...), "\n  "))
}
