// Command checker tells from the events and reports of Request Mirror which events
// are missing, and whether the plugin says why. It reads JSON lines, each an event
// or a batch, from files or standard input:
//
//	go run . events.jsonl
//
// Its exit code is 0 when nothing is unexplained, 1 when something is, 2 when the
// input could not be read.
package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"sort"
	"strconv"
	"strings"
)

const (
	requestType = "io.opencommit.requestmirror.request.v1"
	reportType  = "io.opencommit.requestmirror.report.v1"

	maxLine   = 64 << 20 // bytes of an event or a batch
	maxRanges = 10       // printed of a stream
	maxErrors = 10       // printed of the input
)

func main() {
	final := flag.Bool("final", false, "Traefik has ended: a stream without its final report is unexplained")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: checker [-final] [file of JSON lines ...]")
		flag.PrintDefaults()
	}
	flag.Parse()
	os.Exit(run(flag.Args(), *final, os.Stdin, os.Stdout, os.Stderr))
}

func run(files []string, final bool, stdin io.Reader, stdout, stderr io.Writer) int {
	c := checker{streams: map[key]*stream{}, stderr: stderr}
	if len(files) == 0 {
		c.read("standard input", stdin)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			c.complain(err.Error())
			continue
		}
		c.read(name, f)
		_ = f.Close()
	}
	if len(c.streams) == 0 && c.errors == 0 {
		c.complain("no event of Request Mirror in the input")
	}
	if c.errors > maxErrors {
		fmt.Fprintf(stderr, "and %d more\n", c.errors-maxErrors)
	}
	unexplained := c.print(stdout, final)
	switch {
	case c.errors > 0:
		return 2 // what could not be read may be what is missing
	case unexplained:
		return 1
	}
	return 0
}

// checker holds what it has read, by stream.
type checker struct {
	streams map[key]*stream
	others  int // events of other types
	errors  int
	stderr  io.Writer
}

// key names a stream: numbers are counted from 1 for each pipeline. Boots of different
// pipelines of one process differ, sources of different hosts or middlewares do.
type key struct{ source, boot string }

func (c *checker) complain(text string) {
	if c.errors++; c.errors <= maxErrors {
		fmt.Fprintln(c.stderr, text)
	}
}

func (c *checker) read(name string, r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		if line := bytes.TrimSpace(lines.Bytes()); len(line) > 0 {
			if err := c.line(line); err != nil {
				c.complain(fmt.Sprintf("%s:%d: %v", name, n, err))
			}
		}
	}
	if err := lines.Err(); err != nil {
		c.complain(fmt.Sprintf("%s:%d: %v", name, n+1, err))
	}
}

// event is the part of an event that tells what it proves.
type event struct {
	Type     string          `json:"type"`
	Source   string          `json:"source"`
	Sequence string          `json:"sequence"`
	Data     json.RawMessage `json:"data"`

	number uint64
	report report
}

// line takes the event or the batch on a line, all of it or nothing.
func (c *checker) line(line []byte) error {
	events := make([]event, 1)
	into := any(&events[0])
	if line[0] == '[' {
		into = &events
	}
	if err := json.Unmarshal(line, into); err != nil {
		return err
	}
	keys := make([]key, len(events))
	for i := range events {
		var err error
		if keys[i], err = events[i].parse(); err != nil {
			return err
		}
	}
	for i, e := range events {
		if keys[i] == (key{}) {
			c.others++
			continue
		}
		s := c.streams[keys[i]]
		if s == nil {
			s = &stream{}
			c.streams[keys[i]] = s
		}
		if e.Type == reportType {
			s.takeReport(e.report)
		} else {
			s.takeEvent(e.number)
		}
	}
	return nil
}

// parse fills in number or report. Events of other types have no key.
func (e *event) parse() (key, error) {
	sequence := e.Sequence
	switch e.Type {
	case "":
		return key{}, errors.New("not a CloudEvent: no type")
	case requestType:
	case reportType:
		if err := json.Unmarshal(e.Data, &e.report); err != nil {
			return key{}, fmt.Errorf("report: data: %w", err)
		}
		sequence = e.report.Sequence
	default:
		return key{}, nil
	}
	boot, digits, _ := strings.Cut(sequence, "-")
	number, err := strconv.ParseUint(digits, 10, 63)
	switch {
	case e.Source == "":
		return key{}, errors.New("no source")
	case err != nil || len(boot) != 12 || len(digits) != 20:
		return key{}, fmt.Errorf("sequence: %q, want 12 hex digits, a dash and 20 digits", sequence)
	case number == 0 && e.Type == requestType: // but a report may come before the first event
		return key{}, fmt.Errorf("sequence: %q, want numbers from 1", sequence)
	}
	e.number, e.report.numbered = number, number
	return key{e.Source, boot}, nil
}

// print writes what is known of each stream, and returns whether something is unexplained.
func (c *checker) print(w io.Writer, final bool) (unexplained bool) {
	keys := make([]key, 0, len(c.streams))
	for k := range c.streams {
		keys = append(keys, k)
	}
	sort.Slice(keys, func(i, j int) bool {
		if keys[i].source != keys[j].source {
			return keys[i].source < keys[j].source
		}
		return keys[i].boot < keys[j].boot
	})
	counts := map[string]int{}
	for _, k := range keys {
		s := c.streams[k]
		v := s.judge(final)
		counts[v.word]++
		fmt.Fprintf(w, "source %q, boot %q\n", k.source, k.boot)
		row(w, "received", "events %d, duplicates %d, reports %d, highest number %d", s.received.upTo(v.highest), s.duplicates, len(s.reports), v.highest)
		row(w, "missing", "%s", missing(s.received, v.highest))
		if n := len(s.reports); n > 0 {
			r := s.reports[n-1] // judge has put the last one there
			row(w, "requests", "seen %d, filtered %d, sampled out %d", r.Seen, r.Filtered, r.SampledOut)
			row(w, "numbered", "%d: delivered %d, waiting %d, in flight %d", r.numbered, r.Delivered, r.Waiting, r.InFlight)
			row(w, "dropped", "%s", r.Dropped)
			row(w, "failed", "%s", r.Failed)
			row(w, "truncated", "%s", r.Truncated)
		}
		row(w, "verdict", "%s", v)
	}
	if c.others > 0 {
		fmt.Fprintf(w, "events of other types: %d\n", c.others)
	}
	fmt.Fprintf(w, "streams: %d explained, %d open, %d unexplained\n", counts[explained], counts[open], counts[notExplained])
	return counts[notExplained] > 0
}

func row(w io.Writer, name, format string, args ...any) {
	fmt.Fprintf(w, "  %-10s "+format+"\n", append([]any{name}, args...)...)
}

// missing lists the first of the gaps up to a number.
func missing(received ranges, highest uint64) string {
	gaps := received.gaps(highest)
	if len(gaps) == 0 {
		return "none"
	}
	var list []string
	for _, g := range gaps[:min(len(gaps), maxRanges)] {
		if g.first == g.last {
			list = append(list, strconv.FormatUint(g.first, 10))
		} else {
			list = append(list, fmt.Sprintf("%d-%d", g.first, g.last))
		}
	}
	if more := len(gaps) - maxRanges; more > 0 {
		list = append(list, fmt.Sprintf("and %d more ranges", more))
	}
	return fmt.Sprintf("%d: %s", highest-received.upTo(highest), strings.Join(list, ", "))
}
