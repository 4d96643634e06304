//go:build !yaegi
// +build !yaegi

package requestmirror

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

func readPage(t *testing.T, name string) string {
	t.Helper()
	page, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// tableRow is a row that begins with an option: path, type, default, bounds.
var tableRow = regexp.MustCompile("(?m)^\\| `([A-Za-z.]+)` \\| ([^|]*) \\| ([^|]*) \\|([^|]*)\\|")

// knownOptions is what the plugin reads, in the order in which it does.
func knownOptions() []knownOption {
	r := newReader(CreateConfig())
	s := &settings{}
	readOptions(r, s)
	return r.known
}

func TestEveryOptionIsInTheReferenceWithItsDefault(t *testing.T) {
	documented := map[string]string{}
	for _, row := range tableRow.FindAllStringSubmatch(readPage(t, "docs/reference/options.md"), -1) {
		if _, twice := documented[row[1]]; twice {
			t.Errorf("%s: two rows", row[1])
		}
		standard := strings.Trim(row[3], "`")
		if standard == "–" {
			standard = ""
		}
		documented[row[1]] = standard
	}
	topLevel := map[string]bool{}
	for _, option := range knownOptions() {
		standard, ok := documented[option.path]
		if !ok {
			t.Errorf("%s: no row in docs/reference/options.md", option.path)
		} else if standard != option.standard {
			t.Errorf("%s: got default %q in docs/reference/options.md; want %q", option.path, standard, option.standard)
		}
		delete(documented, option.path)
		topLevel[strings.Split(option.path, ".")[0]] = true
	}
	for path := range documented {
		t.Errorf("%s: a row in docs/reference/options.md, but no option", path)
	}

	// What readSettings reads is what knownOptions reads: the fields of Config show it.
	fields := reflect.TypeOf(Config{})
	for i := 0; i < fields.NumField(); i++ {
		name, _, _ := strings.Cut(fields.Field(i).Tag.Get("json"), ",")
		if name != "-" && !topLevel[name] {
			t.Errorf("%s: a field of Config that knownOptions in this test does not read", name)
		}
	}
}

// boundsOf finds "A to B" in the column of bounds.
var boundsOf = regexp.MustCompile(`^ (\S+) to (\S+) $`)

func TestBoundsInTheReferenceAreThoseOfThePlugin(t *testing.T) {
	found := 0
	for _, row := range tableRow.FindAllStringSubmatch(readPage(t, "docs/reference/options.md"), -1) {
		bounds := boundsOf.FindStringSubmatch(row[4])
		if bounds == nil {
			continue
		}
		found++
		for _, bound := range bounds[1:] {
			if problems := problemsWith(row[1], bound); len(problems) > 0 {
				t.Errorf("%s: %s is documented as allowed; got %q", row[1], bound, problems)
			}
		}
		for i, beyond := range []string{justBeyond(t, row[2], bounds[1], -1), justBeyond(t, row[2], bounds[2], 1)} {
			if len(problemsWith(row[1], beyond)) == 0 {
				t.Errorf("%s: %s is allowed, beyond the documented bound %s", row[1], beyond, bounds[i+1])
			}
		}
	}
	if found < 10 {
		t.Errorf("got %d rows with bounds; want at least 10: has the table another form?", found)
	}
}

// justBeyond is a value of the type next to the bound.
func justBeyond(t *testing.T, kind, bound string, step int64) string {
	t.Helper()
	if kind == "duration" {
		if bound == "0" {
			bound = "0s"
		}
		d, err := time.ParseDuration(bound)
		if err != nil {
			t.Fatal(err)
		}
		return (d + time.Duration(step)).String()
	}
	number, unit := bound, int64(1)
	for suffix, bytes := range map[string]int64{"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30} {
		if strings.HasSuffix(bound, suffix) {
			number = strings.TrimSuffix(bound, suffix)
			unit = bytes
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.FormatInt(n*unit+step, 10)
}

func problemsWith(path string, value interface{}) []string {
	values := map[string]interface{}{"watchURL": "http://receiver.example.com"}
	name, part, isPart := strings.Cut(path, ".")
	if isPart {
		values[name] = map[string]interface{}{part: value}
	} else {
		values[name] = value
	}
	_, problems, unknown := readSettings(&Config{Rest: values}, "doc@file")
	return append(problems, unknown...)
}

func TestListsOfNamesInTheReferenceAreThoseOfThePlugin(t *testing.T) {
	page := readPage(t, "docs/reference/options.md")
	for heading, want := range map[string][]string{
		"## Headers that are redacted":          credentialHeaders,
		"## Query parameters that are redacted": signingParameters,
	} {
		_, section, _ := strings.Cut(page, heading+"\n")
		section, _, _ = strings.Cut(section, "\n## ")
		_, list, _ := strings.Cut(section, "\n\n`")
		list, _, _ = strings.Cut(list, "`.\n")
		got := regexp.MustCompile("`,\\s+`").Split(list, -1)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %q; want %q", heading, got, want)
		}
	}

	list := readPage(t, "docs/reference/delivery.md")
	_, list, _ = strings.Cut(list, "Not to be set there")
	list, _, _ = strings.Cut(list, "\n\n")
	for name := range reserved {
		if !strings.Contains(list, "`"+name+"`") {
			t.Errorf("delivery.md: got no %s among the headers not to be set; want it there", name)
		}
	}
	if got := strings.Count(list, "`") / 2; got != len(reserved) {
		t.Errorf("delivery.md: got %d headers not to be set; want %d", got, len(reserved))
	}
}

func TestReasonsInTheReferenceAreThoseOfThePlugin(t *testing.T) {
	page := readPage(t, "docs/reference/counters-and-reasons.md")
	_, page, _ = strings.Cut(page, "## Reasons of a drop or failure\n")
	drops, cuts, _ := strings.Cut(page, "## Reasons of a cut body\n")
	cuts, _, _ = strings.Cut(cuts, "\n## ")
	source := readPage(t, "ledger.go") + readPage(t, "body.go")
	for prefix, section := range map[string]string{"reason": drops, "cut": cuts} {
		constants := regexp.MustCompile(`(?m)^\t`+prefix+`\w+ += "([a-z_-]+)"`).FindAllStringSubmatch(source, -1)
		if len(constants) < 6 {
			t.Fatalf("got %d constants that begin with %s; want at least 6", len(constants), prefix)
		}
		for _, constant := range constants {
			if !strings.Contains(section, "\n| `"+constant[1]+"` |") {
				t.Errorf("%s: no row in docs/reference/counters-and-reasons.md", constant[1])
			}
		}
		rows := map[string]bool{}
		for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(section, -1) {
			rows[row[1]] = true
		}
		if len(rows) != len(constants) {
			t.Errorf("%s: got %d in docs/reference/counters-and-reasons.md; want %d", prefix, len(rows), len(constants))
		}
	}
}

// TestNumbersInThePagesAreThoseOfThePlugin is for numbers that are constants here.
func TestNumbersInThePagesAreThoseOfThePlugin(t *testing.T) {
	sizing := readPage(t, "docs/how-to/size-the-queue.md")
	rows := regexp.MustCompile(`(?m)^\| (\d+)Mi.* \| (\d+) MiB \|$`).FindAllStringSubmatch(sizing, -1)
	if len(rows) < 3 {
		t.Errorf("size-the-queue.md: got %d rows of memory; want at least 3", len(rows))
	}
	for _, row := range rows {
		var limit int64
		if _, err := fmt.Sscan(row[1], &limit); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprint(newBudget(limit<<20).limit >> 20); row[2] != want {
			t.Errorf("size-the-queue.md: of %s MiB, bodies get %s; want %s", row[1], row[2], want)
		}
	}
	for page, phrases := range map[string][]string{
		"docs/how-to/size-the-queue.md": {
			fmt.Sprintf("%d KiB for each place of the queue, and %d MiB in a short one", perPlace>>10, leastHeaders>>20), fmt.Sprintf("its text and %d bytes", perName), fmt.Sprintf("takes more than %d KiB", largestHeader>>10),
		},
		"docs/explanation/how-it-works.md": {
			fmt.Sprintf("up to %d KiB", firstPart>>10), fmt.Sprintf("%d KiB each, and %d KiB each", nextPart>>10, largePart>>10),
			fmt.Sprintf("%d KiB for each place of the queue, and %d MiB in a short one", perPlace>>10, leastHeaders>>20),
		},
		"docs/reference/delivery.md": {
			"requestmirror/" + version, fmt.Sprintf("Up to %d KiB", maxAnswer>>10), fmt.Sprintf("kept for %.0f seconds when idle", idleTimeout.Seconds()),
			inWords(goneFor, 10*time.Minute, "for ten minutes"), inWords(markerAge, 5*time.Minute, "for five minutes before and after"),
		},
		"docs/reference/counters-and-reasons.md": {
			inWords(tellEvery, 10*time.Second, "at most every ten seconds"), fmt.Sprintf("%d KiB for each place of the queue, and %d MiB in a short one", perPlace>>10, leastHeaders>>20),
		},
		"docs/explanation/life-in-traefik.md": {
			fmt.Sprintf("%.0f s of grace", gracePeriod.Seconds()), inWords(gracePeriod, 5*time.Second, "grace of five seconds"),
		},
	} {
		text := strings.Join(strings.Fields(readPage(t, page)), " ")
		for _, phrase := range phrases {
			if phrase == "" || !strings.Contains(text, phrase) {
				t.Errorf("%s: got no %q; want it there, or another text for another number", page, phrase)
			}
		}
	}
}

// inWords is the phrase for a duration that a page spells out, empty for any other.
func inWords(d, spelled time.Duration, phrase string) string {
	if d != spelled {
		return ""
	}
	return phrase
}
