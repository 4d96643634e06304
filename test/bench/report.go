//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// report is Markdown in the making.
type report struct{ strings.Builder }

func (r *report) line(format string, args ...any) { _, _ = fmt.Fprintf(r, format+"\n", args...) }

func (r *report) place(traefik string, busy float64, p plan) {
	r.line("Measured on %s, on %s, %d cores (%s), with Traefik %s and %s; load average before: %.1f. "+
		"Rounds: %d, with loads of %s at the fixed rate and %s at full speed.\n",
		time.Now().UTC().Format(time.DateOnly), runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU(), machine(), traefik, runtime.Version(), busy,
		p.rounds, p.open, p.closed)
}

// traefikVersion is what the Traefik that is measured calls itself.
func traefikVersion() (string, error) {
	bin, err := lab.FindTraefik()
	if err != nil {
		return "", err
	}
	out, err := exec.Command(bin, "version").Output()
	if err != nil {
		return "", err
	}
	if m := regexp.MustCompile(`(?m)^Version:\s+(\S+)`).FindSubmatch(out); m != nil {
		return string(m[1]), nil
	}
	return "of unknown version", nil
}

func (r *report) traffic(rounds [][][]cell, p plan) {
	for m, method := range methods {
		// of is the sorted values of a variant over the rounds, each next to the cells
		// of no middleware and of the do-nothing plugin in the same round.
		of := func(j int, f func(c, plain, idle cell) float64) []float64 {
			var values []float64
			for _, round := range rounds {
				values = append(values, f(round[j][m], round[0][m], round[1][m]))
			}
			slices.Sort(values)
			return values
		}
		delivered := func(j int, f func(cell) sample) string {
			if variants[j].receiver == "" {
				return "–"
			}
			return fmt.Sprintf("%.0f %%", 100*median(of(j, func(c, _, _ cell) float64 { return f(c).delivered })))
		}
		percentile := func(j int, format string, p float64, f func(cell) sample) string {
			return spread(format, of(j, func(c, _, _ cell) float64 {
				return float64(f(c).percentile(p)) / float64(time.Millisecond)
			}))
		}
		open := func(c cell) sample { return c.open }
		closed := func(c cell) sample { return c.closed }

		r.line("### %s, %d requests per second\n", method.name, p.rate)
		r.line("| | CPU of Traefik per request, µs | of it added, µs | p50, ms | p99, ms | copies delivered |")
		r.line("|---|---|---|---|---|---|")
		for j, v := range variants {
			added := "–"
			if j > 0 {
				added = spread("%+.0f", of(j, func(c, plain, _ cell) float64 { return c.open.cpu - plain.open.cpu }))
			}
			r.line("| %s | %.0f | %s | %s | %s | %s |", v.name,
				median(of(j, func(c, _, _ cell) float64 { return c.open.cpu })), added,
				percentile(j, "%.2f", .5, open), percentile(j, "%.1f", .99, open), delivered(j, open))
		}
		r.line("\n### %s, %d clients as fast as they can\n", method.name, p.clients)
		r.line("| | requests per second | relative to the do-nothing plugin | p50, ms | p99, ms | copies delivered |")
		r.line("|---|---|---|---|---|---|")
		for j, v := range variants {
			relative := "1"
			if j != 1 {
				relative = spread("%.2f", of(j, func(c, _, idle cell) float64 { return c.closed.rate() / idle.closed.rate() }))
			}
			r.line("| %s | %.0f | %s | %s | %s | %s |", v.name,
				median(of(j, func(c, _, _ cell) float64 { return c.closed.rate() })), relative,
				percentile(j, "%.2f", .5, closed), percentile(j, "%.1f", .99, closed), delivered(j, closed))
		}
		r.line("")
	}
}

func (r *report) memory(table []growth) {
	r.line("### Memory, with a receiver that accepts and never answers\n")
	r.line("| load | body | peak without the plugin, MiB | peak with it, MiB | growth, MiB | never above %d MiB |", (memoryLimit+allowance)/mib)
	r.line("|---|---|---|---|---|---|")
	for _, g := range table {
		verdict := "yes"
		if g.mirror-g.plain > memoryLimit+allowance {
			verdict = "**no**"
		}
		r.line("| %s | %s | %d | %d | %d | %s |", g.pattern, g.body, g.plain/mib, g.mirror/mib, (g.mirror-g.plain)/mib, verdict)
	}
	r.line("")
}

// writeTo replaces what is between the markers of the page.
func (r *report) writeTo(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(content, []byte("<!-- bench:begin -->\n"))
	_, after, ok2 := bytes.Cut(rest, []byte("<!-- bench:end -->\n"))
	if !ok || !ok2 {
		return fmt.Errorf("%s: no lines <!-- bench:begin --> and <!-- bench:end -->", path)
	}
	text := fmt.Sprintf("%s<!-- bench:begin -->\n\n%s\n<!-- bench:end -->\n%s", before, strings.TrimSpace(r.String()), after)
	return os.WriteFile(path, []byte(text), 0o644)
}

// median of sorted values.
func median(sorted []float64) float64 {
	n := len(sorted)
	return (sorted[n/2] + sorted[(n-1)/2]) / 2
}

// spread is the median and, of several rounds, the least and the most.
func spread(format string, sorted []float64) string {
	if len(sorted) == 1 {
		return fmt.Sprintf(format, sorted[0])
	}
	return fmt.Sprintf(format+" ("+format+" – "+format+")", median(sorted), sorted[0], sorted[len(sorted)-1])
}
