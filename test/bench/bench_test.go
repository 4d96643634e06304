//go:build linux

package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestCountEvents(t *testing.T) {
	event := `{"specversion":"1.0","data":{"body":"a \"specversion\" in a value"}}`
	batch := func(n int) string { return "[" + strings.Join(slices.Repeat([]string{event}, n), ",") + "]" }
	tests := []struct {
		name string
		body string
		want int64
	}{
		{"a batch of one event is one", batch(1), 1},
		{"a batch that fits into the buffer", batch(3), 3},
		{"a batch that is read in many pieces", batch(1000), 1000},
		{"an empty batch has none", "[]", 0},
		{"nothing has none", "", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			// Every size of buffer splits the marks elsewhere.
			for size := 16; size < 16+len(event); size++ {
				const next = "POST / HTTP/1.1"
				r := bufio.NewReaderSize(strings.NewReader(test.body+next), size)
				got, err := countEvents(r, len(test.body))
				if err != nil || got != test.want {
					t.Fatalf("buffer of %d: got %d, %v; want %d", size, got, err, test.want)
				}
				if rest, _ := r.ReadString('\n'); rest != next {
					t.Fatalf("buffer of %d: got %.40q after the batch; want %q", size, rest, next)
				}
			}
		})
	}
	t.Run("a batch that is cut off is an error", func(t *testing.T) {
		body := batch(2)
		if got, err := countEvents(bufio.NewReaderSize(strings.NewReader(body), 16), len(body)+1); err == nil {
			t.Errorf("got %d, no error; want an error", got)
		}
	})
}

func TestSink(t *testing.T) {
	const batch = `[{"specversion":"1.0"},{"specversion":"1.0"}]`
	tests := []struct {
		name, contentType string
		want              int64
	}{
		{"a batch counts as its events", "application/cloudevents-batch+json", 2},
		{"any other request counts as one", "application/json", 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, err := newSink(answers)
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			c, err := dial(t.Context(), s.listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			request := fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", test.contentType, len(batch), batch)
			for n := int64(1); n <= 2; n++ { // the second one begins where the first one ends
				if err := c.exchange([]byte(request)); err != nil {
					t.Fatal(err)
				}
				if got := s.events.Load(); got != n*test.want {
					t.Errorf("after %d requests: got %d events; want %d", n, got, n*test.want)
				}
			}
		})
	}
	t.Run("one that never answers hangs up when it is closed", func(t *testing.T) {
		s, err := newSink(never)
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", s.listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); s.events.Load() == 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		if got := s.events.Load(); got != 1 {
			t.Errorf("got %d events; want 1", got)
		}
		s.close()
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("got %d bytes of an answer; want none", n)
		}
	})
}

func TestCPUTime(t *testing.T) {
	before, err := cpuTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Far less than the 10 ms of a tick must show.
	for after := before; after == before; {
		if after, err = cpuTime(os.Getpid()); err != nil {
			t.Fatal(err)
		}
		if d := after - before; d < 0 || d > time.Minute {
			t.Fatalf("got %v between two looks; want a little more than nothing", d)
		}
	}
}

func TestParseSelection(t *testing.T) {
	tests := []struct {
		name, only string
		tables     string
		rows       string
		methods    string
	}{
		{"without words all is measured", "", "rate full latency memory receivers", "plain noop mirroring single batches hangs down", "get post"},
		{"a row alone is in the tables of traffic, with what it is compared with", "batches", "rate full", "plain noop batches", "get post"},
		{"without full speed there is no do-nothing plugin", "batches, rate", "rate", "plain batches", "get post"},
		{"a method alone has all rows", "post", "rate full", "plain noop mirroring single batches hangs down", "post"},
		{"a table of its own has no traffic", "latency", "latency", "plain noop mirroring single batches hangs down", "get post"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s, err := parseSelection(test.only)
			if err != nil {
				t.Fatal(err)
			}
			var tables, rows, methods []string
			for _, table := range []struct {
				name string
				on   bool
			}{{"rate", s.rate}, {"full", s.full}, {"latency", s.latency}, {"memory", s.memory}, {"receivers", s.receivers}} {
				if table.on {
					tables = append(tables, table.name)
				}
			}
			for _, v := range s.variants() {
				rows = append(rows, v.key)
			}
			for _, m := range s.chosenMethods() {
				methods = append(methods, m.key)
			}
			for _, c := range []struct{ what, got, want string }{
				{"tables", strings.Join(tables, " "), test.tables},
				{"rows", strings.Join(rows, " "), test.rows},
				{"methods", strings.Join(methods, " "), test.methods},
			} {
				if c.got != c.want {
					t.Errorf("%s: got %q; want %q", c.what, c.got, c.want)
				}
			}
		})
	}
	t.Run("a word that is nothing is an error", func(t *testing.T) {
		if _, err := parseSelection("rate,batch"); err == nil || !strings.Contains(err.Error(), `"batch"`) {
			t.Errorf(`got error %v; want one that names "batch"`, err)
		}
	})
	t.Run("another state of the plugin has a row after each of the plugin, and after no other", func(t *testing.T) {
		s := selection{full: true, against: "/other"}
		var got []string
		for _, v := range s.variants() {
			got = append(got, v.key+" "+v.plugin)
		}
		want := []string{"plain ", "noop " + idle.plugin, "mirroring ", "single ", "single /other", "batches ", "batches /other",
			"hangs ", "hangs /other", "down ", "down /other"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q; want %q", got, want)
		}
	})
}

func TestShare(t *testing.T) {
	tests := []struct {
		name        string
		part, whole int64
		want        string
	}{
		{"all is 100 %", 40000, 40000, "100 %"},
		{"one that is missing among many is not 100 %", 39999, 40000, "99.9 %"},
		{"a few that are missing show", 997, 1000, "99.7 %"},
		{"a part is in whole percent", 594, 1000, "59 %"},
		{"nothing is 0 %", 0, 1000, "0 %"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := share(test.part, test.whole); got != test.want {
				t.Errorf("got %s; want %s", got, test.want)
			}
		})
	}
}

func TestSpread(t *testing.T) {
	tests := []struct {
		name   string
		values []float64
		want   string
	}{
		{"one value is alone", []float64{20}, "+20"},
		{"two values are met between", []float64{10, 20}, "+15 (+12 – +18)"},
		{"a round that was spoiled moves neither median nor quartiles", []float64{18, 19, 20, 21, 900}, "+20 (+19 – +21)"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			if got := spread("%+.0f", test.values); got != test.want {
				t.Errorf("got %s; want %s", got, test.want)
			}
		})
	}
}

// load is n requests of a millisecond each, in a second, that cost so many µs each.
func load(n int, cost int64, delivered int64) sample {
	return sample{
		result:    result{latencies: slices.Repeat([]time.Duration{time.Millisecond}, n), took: time.Second},
		cpu:       time.Duration(int64(n)*cost) * time.Microsecond,
		delivered: delivered,
	}
}

func TestSampleAdd(t *testing.T) {
	var s sample
	s.add(load(100, 10, 100))
	s.add(load(300, 30, 299))
	if got := s.perRequest(); got != 25 {
		t.Errorf("got %v µs for a request; want 25, as each request counts the same", got)
	}
	if got := s.rate(); got != 200 {
		t.Errorf("got %v requests per second; want 200", got)
	}
	if s.delivered != 399 {
		t.Errorf("got %d delivered; want 399", s.delivered)
	}
}

// TestReport compares the tables of made-up measurements with testdata/report.md.
func TestReport(t *testing.T) {
	batches := variants[slices.IndexFunc(variants, func(v variant) bool { return v.key == "batches" })]
	other := batches
	other.plugin = "/other"
	other.name += ", /other"
	measured := traffic{
		selection: selection{rate: true, full: true, memory: true, receivers: true, against: "/other"},
		variants:  []variant{plain, idle, batches, other},
		methods:   methods[:1],
		rounds: [][][]cell{
			{{{load(1000, 200, 0), load(9000, 100, 0)}}, {{load(1000, 220, 0), load(8000, 110, 0)}}, {{load(1000, 320, 1000), load(4000, 180, 4000)}}, {{load(1000, 300, 999), load(5000, 160, 4000)}}},
			// All was slower in this round, which the differences do not show; an event is missing, and another one came twice.
			{{{load(1000, 300, 0), load(6000, 150, 0)}}, {{load(1000, 321, 0), load(5000, 160, 0)}}, {{load(1000, 430, 999), load(2500, 270, 2500)}}, {{load(1000, 412, 1001), load(3000, 220, 2000)}}},
		},
	}
	var r report
	r.traffic(measured, quick)
	r.latency([]pace{
		{"single posts", []float64{4000, 3990}, []float64{200, 190}, []float64{.5, .7}},
		{"batches of 100", []float64{4000, 3999}, []float64{4000, 3800}, []float64{.5, .6}},
	})
	r.memory([]growth{
		{"32 fast clients", "1 MiB", 100 * mib, 196 * mib, 150 * mib},
		{"500 slow uploads at once", "1 MiB", 100 * mib, 150 * mib, 197 * mib},
	}, measured.selection)

	want, err := os.ReadFile(filepath.Join("testdata", "report.md"))
	if err != nil {
		t.Fatal(err)
	}
	got, wanted := strings.Split(r.String(), "\n"), strings.Split(string(want), "\n")
	for i := range max(len(got), len(wanted)) {
		if i >= len(got) || i >= len(wanted) || got[i] != wanted[i] {
			t.Fatalf("line %d differs:\ngot  %q\nwant %q\nall:\n%s", i+1, at(got, i), at(wanted, i), r.String())
		}
	}
}

func at(lines []string, i int) string {
	if i >= len(lines) {
		return "(the end)"
	}
	return lines[i]
}

func TestWriteTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(path, []byte("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var r report
	r.line("new")
	if err := r.writeTo(path); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := "before\n<!-- bench:begin -->\n\nnew\n<!-- bench:end -->\nafter\n"; string(got) != want {
		t.Errorf("got %q; want %q", got, want)
	}
}
