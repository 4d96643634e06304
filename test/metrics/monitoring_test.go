package metrics

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/promql/parser"
	"go.yaml.in/yaml/v3"
)

// scraped are the labels that Prometheus adds.
var scraped = []string{"instance", "job"}

// readExample reads a file of examples/monitoring.
func readExample(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "examples", "monitoring", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// checker holds expressions against what is on the page, and remembers what they used.
type checker struct {
	page shape
	used map[string]bool
}

func newChecker(t *testing.T) *checker {
	return &checker{page: shapeOf(families(t, goldenPage(t))), used: map[string]bool{}}
}

// check parses an expression and returns what is wrong with it.
func (c *checker) check(text string) []error {
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		return []error{err}
	}
	var wrong []error
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Errorf(format, args...)) }
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		switch n := node.(type) {
		case *parser.VectorSelector:
			c.selector(n, complain)
		case *parser.AggregateExpr:
			c.everywhere(n, n.Grouping, complain)
		case *parser.BinaryExpr:
			if n.VectorMatching != nil {
				c.everywhere(n, append(n.VectorMatching.MatchingLabels, n.VectorMatching.Include...), complain)
			}
		case *parser.Call:
			counter := regexp.MustCompile(`_(total|bucket|sum|count)$`)
			if grows := n.Func.Name == "rate" || n.Func.Name == "increase"; grows {
				for _, name := range selected(n) {
					if !counter.MatchString(name) {
						complain("%s of %s, which is no counter", n.Func.Name, name)
					}
				}
			}
		}
		return nil
	})
	return wrong
}

// selector checks one selector: the name, the labels, and the values of closed sets.
func (c *checker) selector(n *parser.VectorSelector, complain func(string, ...any)) {
	known, ok := c.page[n.Name]
	if !ok {
		complain("%q is not on the page", n.Name)
		return
	}
	c.used[n.Name] = true
	for _, m := range n.LabelMatchers {
		if m.Name == labels.MetricName || slices.Contains(scraped, m.Name) {
			continue
		}
		values, ok := known[m.Name]
		if !ok {
			complain("%s has no label %q", n.Name, m.Name)
			continue
		}
		if !slices.Contains(closed, m.Name) {
			continue
		}
		for _, value := range strings.Split(m.Value, "|") {
			if !slices.Contains(values, value) {
				complain("%s has no %s %q, only %q", n.Name, m.Name, value, values)
			}
		}
	}
}

// everywhere checks that all series below a node have the labels.
func (c *checker) everywhere(n parser.Node, names []string, complain func(string, ...any)) {
	for _, metric := range selected(n) {
		for _, label := range names {
			if _, ok := c.page[metric][label]; !ok && !slices.Contains(scraped, label) {
				complain("%s has no label %q, which %s needs", metric, label, n)
			}
		}
	}
}

// selected are the names of the metrics below a node.
func selected(n parser.Node) []string {
	var names []string
	parser.Inspect(n, func(node parser.Node, _ []parser.Node) error {
		if v, ok := node.(*parser.VectorSelector); ok {
			names = append(names, v.Name)
		}
		return nil
	})
	return names
}

func TestTheCheckerFindsMistakes(t *testing.T) {
	for _, c := range []struct{ name, expr, want string }{
		{"what is right passes", `sum by (reason) (rate(requestmirror_events_total{outcome=~"dropped|failed",middleware=~".*"}[5m]))`, ""},
		{"a histogram has buckets by le", `histogram_quantile(0.9, sum by (le) (rate(requestmirror_attempt_duration_seconds_bucket[5m])))`, ""},
		{"labels of a scrape are there", `max by (instance) (requestmirror_pipelines{job="x"})`, ""},
		{"no expression", `sum by (`, "parse error"},
		{"no such metric", `requestmirror_event_total`, "not on the page"},
		{"a histogram has no sample of its own name", `requestmirror_attempt_duration_seconds`, "not on the page"},
		{"no such label", `requestmirror_events_waiting{outcome="dropped"}`, "no label"},
		{"no such value", `requestmirror_events_total{outcome="lost"}`, `no outcome "lost"`},
		{"no such value in a list", `requestmirror_events_total{reason=~"timeout|timeuot"}`, `no reason "timeuot"`},
		{"no such label to sum by", `sum by (receiver) (requestmirror_memory_held_bytes)`, "no label"},
		{"no such label to join on", `requestmirror_events_waiting / on (outcome) requestmirror_queue_length`, "no label"},
		{"a rate of a gauge", `rate(requestmirror_queue_length[5m])`, "no counter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := fmt.Sprint(newChecker(t).check(c.expr))
			if c.want == "" && got != "[]" || !strings.Contains(got, c.want) {
				t.Errorf("got %s; want %q", got, c.want)
			}
		})
	}
}

// board is what a dashboard of Grafana has that can be wrong. Its time and layout are
// Grafana's business.
type board struct {
	UID, Title    string
	SchemaVersion int
	Templating    struct{ List []variable }
	Panels        []panel
}

type variable struct {
	Name, Type string
	Datasource datasource
	Query      json.RawMessage
}

type datasource struct{ Type, UID string }

type panel struct {
	ID                       int
	Type, Title, Description string
	Datasource               datasource
	GridPos                  struct{ X, Y, W, H int }
	Targets                  []struct {
		RefID, Expr string
		Datasource  datasource
	}
}

var grafana = strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h")

func TestTheDashboardShowsWhatIsOnThePage(t *testing.T) {
	var d board
	if err := json.Unmarshal(readExample(t, "dashboard.json"), &d); err != nil {
		t.Fatal(err)
	}
	if d.UID == "" || d.Title == "" || d.SchemaVersion == 0 {
		t.Errorf("got uid %q, title %q, schema %d; want all three", d.UID, d.Title, d.SchemaVersion)
	}
	c := newChecker(t)
	checkVariables(t, c, d)
	ids := map[int]bool{}
	for i, p := range d.Panels {
		t.Run(p.Title, func(t *testing.T) {
			if ids[p.ID] || p.ID == 0 {
				t.Errorf("got id %d; want one of its own", p.ID)
			}
			ids[p.ID] = true
			for _, other := range d.Panels[:i] {
				a, b := p.GridPos, other.GridPos
				if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
					t.Errorf("got it over %q; want each in a place of its own", other.Title)
				}
			}
			if p.Type == "row" {
				return
			}
			if p.Title == "" || p.Description == "" || len(p.Targets) == 0 {
				t.Errorf("got description %q and %d expressions; want some", p.Description, len(p.Targets))
			}
			refs := map[string]bool{}
			for _, target := range p.Targets {
				if target.Datasource.UID != "${datasource}" || p.Datasource.UID != "${datasource}" || refs[target.RefID] {
					t.Errorf("%s: got data source %q; want ${datasource}, and a refId of its own", target.RefID, target.Datasource.UID)
				}
				refs[target.RefID] = true
				for _, err := range c.check(grafana.Replace(target.Expr)) {
					t.Errorf("%s: %v in %s", target.RefID, err, target.Expr)
				}
				checkFilters(t, c, target.Expr)
			}
		})
	}
	for name := range c.page {
		if !c.used[name] && !strings.HasSuffix(name, "_sum") && !strings.HasSuffix(name, "_count") {
			t.Errorf("got no panel with %s; want every metric on the dashboard", name)
		}
	}
}

// checkFilters makes sure that the variables have an effect wherever they can.
func checkFilters(t *testing.T, c *checker, text string) {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(grafana.Replace(text))
	if err != nil {
		return
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		n, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		for _, label := range []string{"middleware", "receiver"} {
			filter := func(m *labels.Matcher) bool {
				return m.Name == label && m.Type == labels.MatchRegexp && m.Value == "$"+label
			}
			if _, has := c.page[n.Name][label]; has && !slices.ContainsFunc(n.LabelMatchers, filter) {
				t.Errorf(`got %s; want it with %s=~"$%s"`, n, label, label)
			}
		}
		return nil
	})
}

func checkVariables(t *testing.T, c *checker, d board) {
	t.Helper()
	var names []string
	values := regexp.MustCompile(`^label_values\((.+), (\w+)\)$`)
	for _, v := range d.Templating.List {
		names = append(names, v.Name)
		if v.Type != "query" {
			continue
		}
		var query struct{ Query string }
		if err := json.Unmarshal(v.Query, &query); err != nil {
			t.Errorf("%s: %v", v.Name, err)
			continue
		}
		parts := values.FindStringSubmatch(query.Query)
		if parts == nil || v.Datasource.UID != "${datasource}" {
			t.Errorf("%s: got %q from %q; want label_values(…, …) from ${datasource}", v.Name, query.Query, v.Datasource.UID)
			continue
		}
		for _, err := range c.check("count by (" + parts[2] + ") (" + parts[1] + ")") {
			t.Errorf("%s: %v", v.Name, err)
		}
	}
	if want := []string{"datasource", "middleware", "receiver"}; !slices.Equal(names, want) {
		t.Errorf("got variables %q; want %q", names, want)
	}
}

// rules is a file of rules, as far as alerts need it; what else is in one is an error.
type rules struct {
	Groups []struct {
		Name  string
		Rules []rule
	}
}

type rule struct {
	Alert, Expr, For    string
	Labels, Annotations map[string]string
}

func TestTheAlertsAreAboutWhatIsOnThePage(t *testing.T) {
	var file rules
	decoder := yaml.NewDecoder(bytes.NewReader(readExample(t, "alerts.yml")))
	decoder.KnownFields(true)
	if err := decoder.Decode(&file); err != nil {
		t.Fatal(err)
	}
	c := newChecker(t)
	names := map[string]bool{}
	for _, group := range file.Groups {
		for _, r := range group.Rules {
			t.Run(r.Alert, func(t *testing.T) { checkRule(t, c, r) })
			if names[r.Alert] || !strings.HasPrefix(r.Alert, "RequestMirror") {
				t.Errorf("%s: got this name; want one of its own that begins with RequestMirror", r.Alert)
			}
			names[r.Alert] = true
		}
	}
	if len(names) < 7 {
		t.Errorf("got %d alerts; want at least 7: were they recognised?", len(names))
	}
}

func checkRule(t *testing.T, c *checker, r rule) {
	for _, err := range c.check(r.Expr) {
		t.Errorf("%v in %s", err, r.Expr)
	}
	if _, err := model.ParseDuration(r.For); err != nil {
		t.Errorf("for: %v", err)
	}
	if r.Labels["severity"] == "" {
		t.Error("got no label severity; want one")
	}
	groupings := outermost(r.Expr)
	for _, name := range []string{"summary", "description"} {
		text := r.Annotations[name]
		if text == "" {
			t.Errorf("got no %s; want one", name)
		}
		for _, found := range regexp.MustCompile(`\$labels\.(\w+)`).FindAllStringSubmatch(text, -1) {
			label := found[1]
			for _, grouping := range groupings {
				if !slices.Contains(grouping, label) {
					t.Errorf("%s: $labels.%s is not among the labels %q that the expression keeps", name, label, grouping)
				}
			}
			if len(groupings) == 0 && !slices.Contains(scraped, label) {
				t.Errorf("%s: $labels.%s: no aggregation keeps it", name, label)
			}
		}
		checkTemplate(t, text)
	}
	if len(r.Annotations) != 2 {
		t.Errorf("got annotations %v; want summary and description", r.Annotations)
	}
}

// outermost are the labels that the aggregations keep that are in no other one.
func outermost(text string) [][]string {
	var kept [][]string
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(text)
	if err != nil {
		return nil
	}
	parser.Inspect(expr, func(node parser.Node, path []parser.Node) error {
		n, ok := node.(*parser.AggregateExpr)
		inner := slices.ContainsFunc(path, func(above parser.Node) bool {
			_, is := above.(*parser.AggregateExpr)
			return is
		})
		if ok && !inner {
			kept = append(kept, n.Grouping)
		}
		return nil
	})
	return kept
}

// checkTemplate expands an annotation as Prometheus does, which puts these variables
// before it and has these functions among others.
func checkTemplate(t *testing.T, text string) {
	t.Helper()
	format := func(any) string { return "1" }
	parsed, err := template.New("annotation").Funcs(template.FuncMap{
		"humanize": format, "humanize1024": format, "humanizePercentage": format, "humanizeDuration": format,
	}).Parse("{{$labels := .Labels}}{{$value := .Value}}" + text)
	if err != nil {
		t.Errorf("%v in %q", err, text)
		return
	}
	var out bytes.Buffer
	data := map[string]any{"Value": 0.5, "Labels": map[string]string{"middleware": "m", "receiver": "r", "instance": "i", "job": "j"}}
	if err := parsed.Execute(&out, data); err != nil || strings.Contains(out.String(), "<no value>") {
		t.Errorf("got %q, error %v, of %q; want a text", out.String(), err, text)
	}
}

func TestTheScrapeConfigurationReadsTheAlertsFromTheFileThatIsThere(t *testing.T) {
	var config struct {
		RuleFiles     []string `yaml:"rule_files"`
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			MetricsPath   string `yaml:"metrics_path"`
			StaticConfigs []struct{ Targets []string }
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal(readExample(t, "prometheus.yml"), &config); err != nil {
		t.Fatal(err)
	}
	if len(config.RuleFiles) != 1 || len(config.ScrapeConfigs) != 1 {
		t.Fatalf("got %+v; want a file of rules and a job", config)
	}
	readExample(t, config.RuleFiles[0])
	if job := config.ScrapeConfigs[0]; job.MetricsPath != "/metrics" || job.JobName == "" {
		t.Errorf("got %+v; want a job for /metrics, the path of monitor-the-mirror.md", job)
	}
}
