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
		"Rounds: %d, with loads of %s at the fixed rate (%s for the do-nothing plugin and receivers that don't work) and %s at full speed.\n",
		time.Now().UTC().Format(time.DateOnly), runtime.GOOS+"/"+runtime.GOARCH, runtime.NumCPU(), machine(), traefik, runtime.Version(), busy,
		p.rounds, p.open, p.aside, p.closed)
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

func (r *report) traffic(t traffic, p plan) {
	for m, method := range t.methods {
		if t.rate {
			r.atRate(t, m, fmt.Sprintf("%s, %d requests per second", method.name, p.rate))
		}
		if t.full {
			r.atFullSpeed(t, m, fmt.Sprintf("%s, %d clients as fast as they can", method.name, p.clients))
		}
	}
	if t.against != "" {
		r.differences(t)
	}
}

func (r *report) atRate(t traffic, m int, title string) {
	open := func(c cell) sample { return c.open }
	cpu := func(c cell) float64 { return c.open.perRequest() }
	r.line("### %s\n", title)
	r.line("| | CPU of Traefik per request, µs | of it added, µs | added, by the least, µs | p50, ms | p99, ms | copies delivered |")
	r.line("|---|---|---|---|---|---|---|")
	for j, v := range t.variants {
		added, byLeast := "–", "–"
		if base := t.index(plain.key); j != base {
			added = spread("%+.0f", t.compare(m, j, base, func(own, other cell) float64 { return cpu(own) - cpu(other) }))
			byLeast = fmt.Sprintf("%+.0f", t.of(m, j, cpu)[0]-t.of(m, base, cpu)[0])
		}
		r.line("| %s | %.0f | %s | %s | %s | %s | %s |", v.name, median(t.of(m, j, cpu)), added, byLeast,
			t.percentile("%.2f", m, j, .5, open), t.percentile("%.1f", m, j, .99, open), t.delivered(m, j, open))
	}
	r.line("")
}

func (r *report) atFullSpeed(t traffic, m int, title string) {
	closed := func(c cell) sample { return c.closed }
	r.line("### %s\n", title)
	r.line("| | requests per second | relative to the do-nothing plugin | CPU of Traefik per request, µs | p50, ms | p99, ms | copies delivered |")
	r.line("|---|---|---|---|---|---|---|")
	for j, v := range t.variants {
		relative := "1"
		if base := t.index(idle.key); j != base {
			relative = spread("%.2f", t.compare(m, j, base, func(own, other cell) float64 { return own.closed.rate() / other.closed.rate() }))
		}
		r.line("| %s | %.0f | %s | %s | %s | %s | %s |", v.name,
			median(t.of(m, j, func(c cell) float64 { return c.closed.rate() })), relative,
			spread("%.0f", t.of(m, j, func(c cell) float64 { return c.closed.perRequest() })),
			t.percentile("%.2f", m, j, .5, closed), t.percentile("%.1f", m, j, .99, closed), t.delivered(m, j, closed))
	}
	r.line("")
}

// differences compares each row with that of another state of the plugin, which is
// the next one.
func (r *report) differences(t traffic) {
	r.line("### Against %s\n", t.against)
	r.line("| | CPU per request at the fixed rate, µs | the same at full speed, µs | requests per second at full speed |")
	r.line("|---|---|---|---|")
	for m, method := range t.methods {
		for j, v := range t.variants {
			if v.plugin != t.against {
				continue
			}
			rate, cpu, speed := "–", "–", "–"
			if t.rate {
				rate = spread("%+.1f", t.compare(m, j-1, j, func(own, other cell) float64 { return own.open.perRequest() - other.open.perRequest() }))
			}
			if t.full {
				cpu = spread("%+.1f", t.compare(m, j-1, j, func(own, other cell) float64 { return own.closed.perRequest() - other.closed.perRequest() }))
				speed = spread("× %.3f", t.compare(m, j-1, j, func(own, other cell) float64 { return own.closed.rate() / other.closed.rate() }))
			}
			r.line("| %s, %s | %s | %s | %s |", method.name, t.variants[j-1].name, rate, cpu, speed)
		}
	}
	r.line("")
}

// index is that of the first variant of this key.
func (t traffic) index(key string) int {
	return slices.IndexFunc(t.variants, func(v variant) bool { return v.key == key })
}

// of is the sorted values of a variant over the rounds.
func (t traffic) of(m, j int, f func(cell) float64) []float64 {
	return t.compare(m, j, j, func(own, _ cell) float64 { return f(own) })
}

// compare is the sorted values of a variant next to another one in the same round.
func (t traffic) compare(m, j, base int, f func(own, other cell) float64) []float64 {
	var values []float64
	for _, round := range t.rounds {
		values = append(values, f(round[j][m], round[base][m]))
	}
	slices.Sort(values)
	return values
}

func (t traffic) percentile(format string, m, j int, p float64, f func(cell) sample) string {
	return spread(format, t.of(m, j, func(c cell) float64 { return milliseconds(f(c).percentile(p)) }))
}

// delivered is the share of the requests whose copies arrived, in all rounds.
func (t traffic) delivered(m, j int, f func(cell) sample) string {
	if len(t.variants[j].receivers) == 0 {
		return "–"
	}
	var copies, requests int64
	for _, round := range t.rounds {
		s := f(round[j][m])
		// What arrived twice must not make up for what did not.
		copies += min(s.delivered, int64(len(s.latencies)))
		requests += int64(len(s.latencies))
	}
	return share(copies, requests)
}

// share is a part of a whole in percent; 100 % is all of it, and nothing less.
func share(part, whole int64) string {
	percent := 100 * float64(part) / float64(whole)
	if part < whole && percent > 99 {
		return fmt.Sprintf("%.1f %%", min(percent, 99.9))
	}
	return fmt.Sprintf("%.0f %%", percent)
}

func (r *report) latency(rows []pace) {
	r.line("### A receiver that takes %d ms, GET, %d requests per second\n", lateness.Milliseconds(), lateRate)
	r.line("| | requests answered per second | p50, ms | events delivered per second | relative to single posts |")
	r.line("|---|---|---|---|---|")
	sorted := func(values []float64) []float64 { return slices.Sorted(slices.Values(values)) }
	for j, row := range rows {
		relative := "1"
		if j > 0 {
			var ratios []float64
			for i, n := range row.delivered {
				ratios = append(ratios, n/rows[0].delivered[i])
			}
			relative = spread("%.1f", sorted(ratios))
		}
		r.line("| %s | %.0f | %s | %s | %s |", row.name, median(sorted(row.answered)), spread("%.2f", sorted(row.p50)),
			spread("%.0f", sorted(row.delivered)), relative)
	}
	r.line("")
}

func (r *report) memory(table []growth, sel selection) {
	if sel.memory {
		r.growth("Memory, with a receiver that accepts and never answers", table, func(g growth) int64 { return g.mirror })
	}
	if sel.receivers {
		r.growth("Memory, with three receivers: one never answers, one is down, one answers at once", table, func(g growth) int64 { return g.many })
	}
}

func (r *report) growth(title string, table []growth, with func(growth) int64) {
	r.line("### %s\n", title)
	r.line("| load | body | peak without the plugin, MiB | peak with it, MiB | growth, MiB | never above %d MiB |", (memoryLimit+allowance)/mib)
	r.line("|---|---|---|---|---|---|")
	for _, g := range table {
		verdict := "yes"
		if with(g)-g.plain > memoryLimit+allowance {
			verdict = "**no**"
		}
		r.line("| %s | %s | %d | %d | %d | %s |", g.pattern, g.body, g.plain/mib, with(g)/mib, (with(g)-g.plain)/mib, verdict)
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
func median(sorted []float64) float64 { return quantile(sorted, .5) }

// quantile of sorted values, between two of them in proportion.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	i := min(int(at), len(sorted)-1)
	next := min(i+1, len(sorted)-1)
	return sorted[i] + (at-float64(i))*(sorted[next]-sorted[i])
}

// spread is the median and, of several rounds, the quartiles: one round that the machine
// spoiled must not decide what a number seems to be worth.
func spread(format string, sorted []float64) string {
	if len(sorted) == 1 {
		return fmt.Sprintf(format, sorted[0])
	}
	return fmt.Sprintf(format+" ("+format+" – "+format+")", median(sorted), quantile(sorted, .25), quantile(sorted, .75))
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
