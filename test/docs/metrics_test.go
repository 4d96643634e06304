package docs

import (
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror"
)

// TestTheMetricsInTheReferenceAreThoseOfThePlugin compares names, types, labels and reasons with a real page.
func TestTheMetricsInTheReferenceAreThoseOfThePlugin(t *testing.T) {
	shown := families(metricsPage(t))
	text := readPage(t, "docs/reference/metrics.md")
	documented := map[string]family{}
	row := regexp.MustCompile("(?m)^\\| (`[a-z_`, ]+`) \\| ([a-z]+) \\| ([^|]*)\\|")
	for _, r := range row.FindAllStringSubmatch(text, -1) {
		labels := []string{}
		for _, label := range strings.Split(strings.TrimSpace(r[3]), ", ") {
			switch label {
			case "":
			case "receiver":
				labels = append(labels, "middleware", "receiver")
			default:
				labels = append(labels, strings.Trim(label, "`"))
			}
		}
		slices.Sort(labels)
		for _, name := range strings.Split(r[1], ", ") {
			documented[strings.Trim(name, "`")] = family{kind: r[2], labels: strings.Join(labels, ",")}
		}
	}
	for name, real := range shown {
		if said := documented[name]; said.kind != real.kind || said.labels != real.labels {
			t.Errorf("%s: got type %q, labels %q in metrics.md; want %q, %q", name, said.kind, said.labels, real.kind, real.labels)
		}
	}
	for name := range documented {
		if shown[name].kind == "" {
			t.Errorf("%s: a row in metrics.md, but not on the page of the plugin", name)
		}
	}

	_, reasons, _ := strings.Cut(text, "## Reasons\n")
	for what, real := range map[string][]string{
		"dropped":   shown["events_total"].reasons["dropped"],
		"failed":    shown["events_total"].reasons["failed"],
		"truncated": shown["bodies_truncated_total"].reasons[""],
	} {
		_, list, _ := strings.Cut(reasons, "\n- "+what+": ")
		if end := regexp.MustCompile(`\n(- |\n)`).FindStringIndex(list); end != nil {
			list = list[:end[0]]
		}
		said := strings.Split(strings.ReplaceAll(strings.Join(strings.Fields(list), " "), "`", ""), ", ")
		if !slices.Equal(said, real) {
			t.Errorf("%s: got reasons %q in metrics.md; want %q", what, said, real)
		}
	}
}

// TestEveryAlertIsExplained is for the table of what to do.
func TestEveryAlertIsExplained(t *testing.T) {
	text := readPage(t, "docs/how-to/monitor-the-mirror.md")
	said := []string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `(RequestMirror[A-Za-z]+)` \\|").FindAllStringSubmatch(text, -1) {
		said = append(said, row[1])
	}
	alerts := []string{}
	for _, rule := range regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(readPage(t, "examples/monitoring/alerts.yml"), -1) {
		alerts = append(alerts, rule[1])
	}
	slices.Sort(said)
	slices.Sort(alerts)
	if len(alerts) < 5 || !slices.Equal(said, alerts) {
		t.Errorf("got %q in monitor-the-mirror.md; want those of alerts.yml, %q", said, alerts)
	}
}

// family is a metric: all labels but le of its samples, and their reasons by outcome.
type family struct {
	kind    string
	labels  string
	reasons map[string][]string
}

func families(page string) map[string]family {
	all := map[string]family{}
	name := ""
	for _, line := range strings.Split(page, "\n") {
		if rest, ok := strings.CutPrefix(line, "# TYPE requestmirror_"); ok {
			var kind string
			name, kind, _ = strings.Cut(rest, " ")
			all[name] = family{kind: kind, reasons: map[string][]string{}}
			continue
		}
		if line == "" || line[0] == '#' {
			continue
		}
		f := all[name]
		values := map[string]string{}
		names := []string{}
		for _, label := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(line, -1) {
			values[label[1]] = label[2]
			names = append(names, label[1])
		}
		slices.Sort(names)
		if f.labels == "" {
			f.labels = strings.Join(names, ",")
		}
		if reason := values["reason"]; reason != "" {
			f.reasons[values["outcome"]] = append(f.reasons[values["outcome"]], reason)
		}
		all[name] = f
	}
	return all
}

// metricsPage is what the plugin shows while there is one middleware with a receiver, if not more.
func metricsPage(t *testing.T) string {
	t.Helper()
	config, err := decode(map[string]any{"watchURL": "http://127.0.0.1:1", "metricsPath": "/metrics", "strict": true})
	if err != nil {
		t.Fatal(err)
	}
	handler, err := requestmirror.New(canceled(t), next, config, t.Name()+"@file")
	if err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	page := w.Body.String()
	// Of other tests' middlewares there may be more.
	lines := []string{}
	for _, line := range strings.Split(page, "\n") {
		if !strings.Contains(line, `middleware="`) || strings.Contains(line, `middleware="`+t.Name()+`@file"`) {
			lines = append(lines, line)
		}
	}
	return strings.Join(lines, "\n")
}

func readPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
