package main

import (
	"fmt"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	here  = "//traefik-1/middlewares/mirror@file"
	there = "//traefik-2/middlewares/mirror@file"
	boot1 = "01992f5e00c1"
	boot2 = "01992f5e00c2"
)

// ev is an event, as a line.
func ev(source, boot string, number uint64) string {
	return fmt.Sprintf(`{"specversion":"1.0","type":%q,"source":%q,"sequence":"%s-%020d","data":{"url":{"path":"/"}}}`, requestType, source, boot, number)
}

// evs are the events of a range.
func evs(source, boot string, first, last uint64) []string {
	var list []string
	for n := first; n <= last; n++ {
		list = append(list, ev(source, boot, n))
	}
	return list
}

// ledger is what a pipeline counts.
type ledger struct {
	seen, filtered, sampledOut, numbered, delivered, waiting, inFlight, full, timeout uint64
	final                                                                             bool
}

// rep is a report, as a line.
func rep(source, boot string, l ledger) string {
	list := func(reason string, n uint64) string {
		if n == 0 {
			return "[]"
		}
		return fmt.Sprintf(`[{"reason":%q,"count":%d}]`, reason, n)
	}
	return fmt.Sprintf(`{"specversion":"1.0","type":%q,"source":%q,"data":{"since":"2026-11-21T13:30:00.000000Z","sequence":"%s-%020d",`+
		`"seen":%d,"filtered":%d,"sampled_out":%d,"delivered":%d,"waiting":%d,"in_flight":%d,"dropped":%s,"failed":%s,"truncated":[],"final":%t}}`,
		reportType, source, boot, l.numbered, l.seen, l.filtered, l.sampledOut, l.delivered, l.waiting, l.inFlight,
		list("queue_full", l.full), list("timeout", l.timeout), l.final)
}

func lines(parts ...any) string {
	var b strings.Builder
	for _, part := range parts {
		switch p := part.(type) {
		case string:
			b.WriteString(p + "\n")
		case []string:
			b.WriteString(strings.Join(p, "\n") + "\n")
		}
	}
	return b.String()
}

func batch(parts ...string) string { return "[" + strings.Join(parts, ",") + "]" }

// check runs the program on an input.
func check(input string, final bool) (code int, out, errs string) {
	var stdout, stderr strings.Builder
	code = run(nil, final, strings.NewReader(input), &stdout, &stderr)
	return code, stdout.String(), stderr.String()
}

// tenOfTwelve lost one in the queue and one at the receiver.
var tenOfTwelve = ledger{seen: 13, filtered: 1, numbered: 12, delivered: 10, full: 1, timeout: 1, final: true}

var table = []struct {
	name  string
	input string
	final bool
	code  int
	out   []string // each is there, in this order
	errs  string
}{
	{"nothing is missing", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3, final: true})), true, 0,
		[]string{"received   events 3, duplicates 0, reports 1, highest number 3\n", "missing    none\n", "verdict    explained\n", "streams: 1 explained, 0 open, 0 unexplained\n"}, ""},
	{"two are missing and the report says why", lines(evs(here, boot1, 1, 5), evs(here, boot1, 7, 9), evs(here, boot1, 11, 12), rep(here, boot1, tenOfTwelve)), true, 0,
		[]string{"missing    2: 6, 10\n", "requests   seen 13, filtered 1, sampled out 0\n", "numbered   12: delivered 10, waiting 0, in flight 0\n", "dropped    queue_full 1\n", "failed     timeout 1\n", "truncated  none\n", "verdict    explained\n"}, ""},
	{"the report comes before the events", lines(rep(here, boot1, tenOfTwelve), evs(here, boot1, 1, 10)), true, 0,
		[]string{"missing    2: 11-12\n", "verdict    explained\n"}, ""},
	{"the last events were lost, which only the report knows", lines(evs(here, boot1, 1, 10), rep(here, boot1, tenOfTwelve)), false, 0,
		[]string{"highest number 12\n", "missing    2: 11-12\n", "verdict    explained\n"}, ""},
	{"one more is missing than the report says", lines(evs(here, boot1, 1, 9), rep(here, boot1, tenOfTwelve)), false, 1,
		[]string{"missing    3: 10-12\n", "verdict    unexplained: 1 delivered, as the plugin says, and not here\n", "streams: 0 explained, 0 open, 1 unexplained\n"}, ""},
	{"an event that timed out has come nevertheless", lines(evs(here, boot1, 1, 11), rep(here, boot1, tenOfTwelve)), false, 0,
		[]string{"missing    1: 12\n", "verdict    explained\n"}, ""},
	{"an event that was dropped has come, which cannot be", lines(evs(here, boot1, 1, 12), rep(here, boot1, tenOfTwelve)), false, 1,
		[]string{"verdict    unexplained: 12 events came of those up to 12; the report says that only 11 were not dropped\n"}, ""},
	{"a delivery was lost, and an earlier report knows it, though the last has room for it", lines(evs(here, boot1, 2, 9),
		rep(here, boot1, ledger{seen: 4, numbered: 4, delivered: 4}), rep(here, boot1, ledger{seen: 9, numbered: 9, delivered: 8, timeout: 1, final: true})), false, 1,
		[]string{"verdict    unexplained: 1 delivered, as the plugin says, and not here\n"}, ""},
	{"events come twice, and in any order", lines(ev(here, boot1, 3), ev(here, boot1, 1), ev(here, boot1, 3), ev(here, boot1, 2), ev(here, boot1, 1), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3, final: true})), false, 0,
		[]string{"events 3, duplicates 2,", "missing    none\n"}, ""},
	{"a report comes twice, and the older after the newer", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3, final: true}),
		rep(here, boot1, ledger{seen: 2, numbered: 2, delivered: 1, inFlight: 1}), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3, final: true})), true, 0,
		[]string{"reports 3,", "numbered   3: delivered 3, waiting 0, in flight 0\n", "verdict    explained\n"}, ""},
	{"reports at the same number: what is under way has become less", lines(evs(here, boot1, 1, 3),
		rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3}), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 1, waiting: 1, inFlight: 1})), false, 0,
		[]string{"verdict    explained: up to 3; this is not the final report\n"}, ""},
	{"what is missing was under way when the report was written", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 5, numbered: 5, delivered: 3, waiting: 1, inFlight: 1})), false, 0,
		[]string{"verdict    open: 2 of the missing not yet in a report, or under way when it was written\n", "streams: 0 explained, 1 open, 0 unexplained\n"}, ""},
	{"a gap beyond the last report", lines(evs(here, boot1, 1, 3), ev(here, boot1, 6), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3})), false, 0,
		[]string{"missing    2: 4-5\n", "verdict    open: 2 of"}, ""},
	{"a gap beyond the last report is not excused by an event that timed out and came", lines(evs(here, boot1, 1, 3), ev(here, boot1, 5), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 2, timeout: 1})), false, 0,
		[]string{"missing    1: 4\n", "verdict    open: 1 of"}, ""},
	{"no report yet", lines(evs(here, boot1, 1, 3), ev(here, boot1, 5)), false, 0,
		[]string{"missing    1: 4\n", "verdict    open: there is no report yet\n"}, ""},
	{"Traefik has ended, and no report is the final one", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3})), true, 1,
		[]string{"verdict    unexplained: there is no final report\n"}, ""},
	{"Traefik has ended, and there is no report at all", lines(evs(here, boot1, 1, 3)), true, 1,
		[]string{"verdict    unexplained: there is no final report\n"}, ""},
	{"all events were lost", lines(rep(here, boot1, ledger{seen: 5, numbered: 5, full: 2, timeout: 3, final: true})), true, 0,
		[]string{"received   events 0,", "missing    5: 1-5\n", "verdict    explained\n"}, ""},
	{"all requests were filtered, so that there was no event", lines(rep(here, boot1, ledger{seen: 5, filtered: 5, final: true})), true, 0,
		[]string{"highest number 0\n", "missing    none\n", "verdict    explained\n"}, ""},
	{"nine of ten requests were sampled out, and have no number", lines(evs(here, boot1, 1, 10), rep(here, boot1, ledger{seen: 100, sampledOut: 90, numbered: 10, delivered: 10, final: true})), true, 0,
		[]string{"missing    none\n", "requests   seen 100, filtered 0, sampled out 90\n", "verdict    explained\n"}, ""},
	{"two replicas and two boots are told apart", lines(evs(there, boot1, 1, 2), evs(here, boot2, 1, 3), evs(here, boot1, 1, 3), ev(there, boot1, 4),
		rep(here, boot2, ledger{seen: 3, numbered: 3, delivered: 3, final: true}), rep(here, boot1, ledger{seen: 4, numbered: 4, delivered: 4, final: true}),
		rep(there, boot1, ledger{seen: 4, numbered: 4, delivered: 3, full: 1})), false, 1,
		[]string{"source \"" + here + "\", boot \"" + boot1 + "\"\n  received   events 3, duplicates 0, reports 1, highest number 4\n", "boot \"" + boot2, "source \"" + there, "streams: 2 explained, 0 open, 1 unexplained\n"}, ""},
	{"batches, with events and reports of two middlewares", lines(batch(ev(here, boot1, 1), rep(here, boot1, ledger{seen: 2, numbered: 2, delivered: 2, final: true}), ev(there, boot1, 1)),
		batch(), batch(rep(there, boot1, ledger{seen: 1, numbered: 1, delivered: 1, final: true}), ev(here, boot1, 2))), true, 0,
		[]string{"streams: 2 explained"}, ""},
	{"the requests of a report do not add up", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 4, numbered: 3, delivered: 3})), false, 1,
		[]string{"verdict    unexplained: the report at 3 does not add up: 4 seen; filtered, sampled out and numbered are 3\n"}, ""},
	{"the events of a report do not add up", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 2})), false, 1,
		[]string{"verdict    unexplained: the report at 3 does not add up: delivered, dropped, failed, waiting and in flight are 2\n"}, ""},
	{"a final report with events under way", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 2, waiting: 1, final: true})), false, 1,
		[]string{"verdict    unexplained: the final report at 3 has events that are under way\n"}, ""},
	{"an event after the final report", lines(evs(here, boot1, 1, 4), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3, final: true})), false, 1,
		[]string{"verdict    unexplained: event 4 came; the final report says that 3 was the last\n"}, ""},
	{"a report after the final one", lines(evs(here, boot1, 1, 4), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3, final: true}), rep(here, boot1, ledger{seen: 4, numbered: 4, delivered: 4})), false, 1,
		[]string{"verdict    unexplained: the report at 4 comes after the final one\n"}, ""},
	{"two pipelines under one name, whose reports contradict each other", lines(evs(here, boot1, 1, 5), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 2, timeout: 1}), rep(here, boot1, ledger{seen: 5, numbered: 5, delivered: 5})), false, 1,
		[]string{"verdict    unexplained: the reports at 3 and 5 contradict each other\n"}, ""},
	{"reports that contradict each other in what was delivered", lines(rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3}), evs(here, boot1, 1, 5), rep(here, boot1, ledger{seen: 5, numbered: 5, delivered: 2, timeout: 3})), false, 1,
		[]string{"verdict    unexplained: the reports at 3 and 5 contradict each other\n"}, ""},
	{"reports that contradict each other in what was dropped", lines(rep(here, boot1, ledger{seen: 3, numbered: 3, full: 1, delivered: 2}), evs(here, boot1, 2, 5), rep(here, boot1, ledger{seen: 5, numbered: 5, delivered: 4, timeout: 1})), false, 1,
		[]string{"verdict    unexplained: the reports at 3 and 5 contradict each other\n"}, ""},
	{"the report with the most requests is the last, where no event came between", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 9, filtered: 6, numbered: 3, delivered: 3}), rep(here, boot1, ledger{seen: 5, filtered: 2, numbered: 3, delivered: 3})), false, 0,
		[]string{"requests   seen 9, filtered 6, sampled out 0\n"}, ""},
	{"the final report comes before one that says the same and is not final", lines(evs(here, boot1, 1, 3), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3, final: true}), rep(here, boot1, ledger{seen: 3, numbered: 3, delivered: 3})), true, 0,
		[]string{"verdict    explained\n"}, ""},
	{"two deliveries were lost, of which the last report has room for one", lines(evs(here, boot1, 3, 9),
		rep(here, boot1, ledger{seen: 4, numbered: 4, delivered: 4}), rep(here, boot1, ledger{seen: 9, numbered: 9, delivered: 8, timeout: 1, final: true})), false, 1,
		[]string{"verdict    unexplained: 2 delivered,"}, ""},
	{"more gaps than fit on a line", lines(func() (list []string) {
		for n := uint64(2); n <= 28; n += 2 {
			list = append(list, ev(here, boot1, n))
		}
		return list
	}(), rep(here, boot1, ledger{seen: 28, numbered: 28, delivered: 14, full: 14, final: true})), false, 0,
		[]string{"missing    14: 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, and 4 more ranges\n"}, ""},
	{"a number as high as they get", lines(ev(here, boot1, 1<<63-1)), false, 0, []string{"missing    9223372036854775806: 1-9223372036854775806\n"}, ""},
	{"a reason that would move the cursor", lines(strings.Replace(rep(here, boot1, ledger{seen: 1, numbered: 1, full: 1}), "queue_full", `\u001b[2J`, 1)), false, 0, []string{`dropped    \x1b[2J 1`}, ""},
	{"events of other types are counted only", lines(`{"type":"com.example"}`, ev(here, boot1, 1), `{"type":"io.opencommit.requestmirror.request.v2"}`), false, 0,
		[]string{"events of other types: 2\n"}, ""},
	{"empty lines and Windows' line ends", "\r\n" + ev(here, boot1, 1) + "\r\n\n", false, 0, []string{"events 1,"}, ""},

	{"a line that is cut has its number, and the rest is judged", lines(ev(here, boot1, 1), "", ev(here, boot1, 2)[:80], ev(here, boot1, 3)), false, 2,
		[]string{"events 2,"}, "standard input:3: unexpected end of JSON input\n"},
	{"a line that cannot be read may be what is missing, so it comes first", lines("{", rep(here, boot1, ledger{seen: 1, numbered: 1, delivered: 1})), false, 2,
		[]string{"unexplained: 1 delivered"}, "standard input:1: "},
	{"of a batch with a mistake nothing is taken", lines(ev(here, boot1, 1), batch(ev(here, boot1, 2), `{}`)), false, 2,
		[]string{"events 1,"}, "standard input:2: not a CloudEvent: no type\n"},
	{"a number instead of an event", "7\n", false, 2, nil, "standard input:1: "},
	{"null instead of an event", "null\n", false, 2, nil, "not a CloudEvent"},
	{"two events on a line", ev(here, boot1, 1) + ev(here, boot1, 2), false, 2, nil, "standard input:1: "},
	{"no source", lines(ev("", boot1, 1)), false, 2, nil, "no source"},
	{"no sequence", lines(fmt.Sprintf(`{"type":%q,"source":"//a/middlewares/b"}`, requestType)), false, 2, nil, `sequence: ""`},
	{"a sequence with a sign", lines(strings.Replace(ev(here, boot1, 1), "-00", "-+0", 1)), false, 2, nil, "sequence: "},
	{"number 0", lines(ev(here, boot1, 0)), false, 2, nil, "want numbers from 1"},
	{"a number that is too high", lines(strings.Replace(ev(here, boot1, 1), "-00000000000000000001", "-99999999999999999999", 1)), false, 2, nil, "sequence: "},
	{"a report without data", lines(fmt.Sprintf(`{"type":%q,"source":"//a/middlewares/b"}`, reportType)), false, 2, nil, "report: data: "},
	{"a negative count", lines(strings.Replace(rep(here, boot1, ledger{}), `"seen":0`, `"seen":-1`, 1)), false, 2, nil, "report: data: "},
	{"more mistakes than are shown", strings.Repeat("x\n", 12), false, 2, nil, "and 2 more\n"},
	{"no input", "", false, 2, []string{"streams: 0 explained"}, "no event of Request Mirror in the input\n"},
	{"the input of something else", lines(`{"type":"com.example"}`), false, 2, nil, "no event of Request Mirror in the input\n"},
}

func TestVerdicts(t *testing.T) {
	for _, tc := range table {
		t.Run(tc.name, func(t *testing.T) {
			code, out, errs := check(tc.input, tc.final)
			if code != tc.code || !strings.Contains(errs, tc.errs) || (errs == "") != (code != 2) {
				t.Errorf("got code %d, errors %q; want %d, %q", code, errs, tc.code, tc.errs)
			}
			rest := out
			for _, want := range tc.out {
				i := strings.Index(rest, want)
				if i < 0 {
					t.Fatalf("got\n%s\nwant %q in it, in this order", out, want)
				}
				rest = rest[i:]
			}
		})
	}
}

func TestFilesAreReadTogether(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	first := write("first", lines(evs(here, boot1, 1, 2)))
	second := write("second", lines(evs(here, boot1, 3, 4), rep(here, boot1, ledger{seen: 4, numbered: 4, delivered: 4, final: true})))
	broken := write("broken", "{}\n")
	for _, tc := range []struct {
		name  string
		files []string
		code  int
		errs  string
	}{
		{"one file has the numbers that another lacks", []string{second, first}, 0, ""},
		{"without it they are missing", []string{second}, 1, ""},
		{"a line is named with its file", []string{second, first, broken}, 2, broken + ":1: "},
		{"a file that is not there", []string{second, first, filepath.Join(dir, "none")}, 2, "none"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var stdout, stderr strings.Builder
			if code := run(tc.files, true, nil, &stdout, &stderr); code != tc.code || !strings.Contains(stderr.String(), tc.errs) {
				t.Errorf("got code %d, errors %q; want %d, %q\n%s", code, stderr.String(), tc.code, tc.errs, stdout.String())
			}
		})
	}
}

// pipeline does at random what the plugin's does, and reports it honestly.
type pipeline struct {
	source, boot string
	ledger
	queue  []uint64
	flying []uint64

	lines   []string // what its receiver stores
	arrived []uint64 // the numbers among them
	luck    uint64   // events that arrived and count as failed
}

// step is something that happens to a pipeline. If late, an event that timed out may have arrived.
func (p *pipeline) step(r *rand.Rand, late bool) {
	deliver := func(n uint64) {
		for range 1 + r.Intn(8)/7 {
			p.lines = append(p.lines, ev(p.source, p.boot, n))
		}
		p.arrived = append(p.arrived, n)
	}
	switch r.Intn(12) {
	case 0, 1, 2, 3, 4: // a request
		p.seen++
		switch r.Intn(10) {
		case 0:
			p.filtered++
		case 1:
			p.sampledOut++
		default:
			p.numbered++
			if len(p.queue) == 10 || r.Intn(20) == 0 {
				p.full++
				return
			}
			p.queue = append(p.queue, p.numbered)
			p.waiting++
		}
	case 5, 6, 7: // a worker takes an event
		if len(p.queue) > 0 && len(p.flying) < 4 {
			p.flying, p.queue = append(p.flying, p.queue[0]), p.queue[1:]
			p.waiting--
			p.inFlight++
		}
	case 8, 9, 10: // an attempt ends, of any of them
		if len(p.flying) == 0 {
			return
		}
		i := r.Intn(len(p.flying))
		n := p.flying[i]
		p.flying = slices.Delete(p.flying, i, i+1)
		p.inFlight--
		if r.Intn(6) > 0 {
			p.delivered++
			deliver(n)
			return
		}
		p.timeout++
		if late && r.Intn(2) == 0 {
			p.luck++
			deliver(n)
		}
	case 11:
		if r.Intn(5) == 0 {
			p.lines = append(p.lines, rep(p.source, p.boot, p.ledger))
		}
	}
}

// end drains the pipeline. Its last report is at the end of its lines.
func (p *pipeline) end() {
	for _, n := range append(p.flying, p.queue...) {
		p.delivered++
		p.lines = append(p.lines, ev(p.source, p.boot, n))
		p.arrived = append(p.arrived, n)
	}
	p.waiting, p.inFlight, p.final = 0, 0, true
	p.lines = append(p.lines, rep(p.source, p.boot, p.ledger))
}

// shuffled are the lines of all pipelines, mixed, and some of them as batches.
func shuffled(r *rand.Rand, all ...*pipeline) string {
	var mixed []string
	for _, p := range all {
		mixed = append(mixed, p.lines...)
	}
	r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
	var b strings.Builder
	for len(mixed) > 0 {
		n := min(1+r.Intn(5), len(mixed))
		if n == 1 {
			b.WriteString(mixed[0] + "\n")
		} else {
			b.WriteString(batch(mixed[:n]...) + "\n")
		}
		mixed = mixed[n:]
	}
	return b.String()
}

// TestHonestReportsExplainEverything, and what is taken away from the stream they do not: for
// random histories of two pipelines.
func TestHonestReportsExplainEverything(t *testing.T) {
	for seed := range int64(200) {
		r := rand.New(rand.NewSource(seed))
		p, other := &pipeline{source: here, boot: boot1}, &pipeline{source: there, boot: boot1}
		late := seed%2 == 1
		for range 50 + r.Intn(400) {
			p.step(r, late)
			other.step(r, late)
		}
		if code, out, errs := check(shuffled(r, p, other), false); code != 0 {
			t.Fatalf("seed %d: while it runs: got code %d; want 0\n%s%s", seed, code, out, errs)
		}
		p.end()
		other.end()
		if code, out, errs := check(shuffled(r, p, other), true); code != 0 || !strings.Contains(out, "2 explained") {
			t.Fatalf("seed %d: at the end: got code %d; want 0\n%s%s", seed, code, out, errs)
		}

		// Events that arrived though they count as failed leave room for as many that are lost.
		if uint64(len(p.arrived)) <= p.luck {
			continue
		}
		r.Shuffle(len(p.arrived), func(i, j int) { p.arrived[i], p.arrived[j] = p.arrived[j], p.arrived[i] })
		for _, n := range p.arrived[:p.luck+1] {
			gone := ev(here, boot1, n)
			p.lines = slices.DeleteFunc(p.lines, func(line string) bool { return line == gone })
		}
		code, out, _ := check(shuffled(r, p, other), true)
		if code != 1 || !strings.Contains(out, "1 explained, 0 open, 1 unexplained") || !late && !strings.Contains(out, "unexplained: 1 delivered") {
			t.Fatalf("seed %d: %d removed: got code %d; want 1\n%s", seed, p.luck+1, code, out)
		}
	}
}

// TestRangesAreASet compares them with a map.
func TestRangesAreASet(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	for range 200 {
		var got ranges
		want := map[uint64]bool{}
		for range r.Intn(80) {
			n := uint64(1 + r.Intn(60))
			if isNew := got.add(n); isNew == want[n] {
				t.Fatalf("add %d: got new: %t; want %t", n, isNew, !want[n])
			}
			want[n] = true
		}
		for i := 1; i < len(got); i++ {
			if got[i].first <= got[i-1].last+1 {
				t.Fatalf("got %v; want spans that are sorted and do not touch", got)
			}
		}
		n := uint64(r.Intn(70))
		count, missing := uint64(0), uint64(0)
		for i := uint64(1); i <= n; i++ {
			if want[i] {
				count++
			}
		}
		for _, g := range got.gaps(n) {
			missing += g.last - g.first + 1
			for i := g.first; i <= g.last; i++ {
				if want[i] {
					t.Fatalf("gaps up to %d: got %v; but %d is there", n, got.gaps(n), i)
				}
			}
		}
		if got.upTo(n) != count || count+missing != n {
			t.Fatalf("up to %d: got %d there, %d missing; want %d, %d", n, got.upTo(n), missing, count, n-count)
		}
	}
}

// FuzzChecker gives it anything: it ends with one of its codes, and the order of the lines changes nothing.
func FuzzChecker(f *testing.F) {
	for _, tc := range table {
		f.Add(tc.input)
	}
	f.Fuzz(func(t *testing.T, input string) {
		code, out, errs := check(input, false)
		if code < 0 || code > 2 || (code == 2) != (errs != "") {
			t.Errorf("got code %d, errors %q", code, errs)
		}
		reversed := strings.Split(input, "\n")
		slices.Reverse(reversed)
		if again, other, _ := check(strings.Join(reversed, "\n"), false); again != code || verdicts(other) != verdicts(out) {
			t.Errorf("got code %d; want %d as without reversing\n%s\n%s", again, code, out, other)
		}
	})
}

// verdicts is the last line.
func verdicts(out string) string { return out[strings.LastIndex(out, "streams:"):] }
