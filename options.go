package requestmirror

import (
	"fmt"
	"reflect"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// reader reads options one by one and notes what it was asked for, with default, and
// what was wrong. After the last option, whatever was not asked for is unknown.
type reader struct {
	values   map[string]interface{} // as written; sections are inlined: "retry.attempts"
	names    map[string]string      // path in lower case → path as written
	twice    map[string]bool        // paths in lower case that were written more than once
	known    []knownOption
	opened   []string // sections that were written, with a dot
	problems []string
	secrets  []string          // options that hold secrets, as they were written
	files    map[string]string // what is in the files that they name, by path
	before   map[string]string // what is taken for it instead; may be nil
}

// knownOption is one option as the reference lists it.
type knownOption struct {
	path     string
	standard string // the default, as one would write it
}

// sections are the options whose parts are options themselves. The names under open
// sections are the user's.
var sections = []string{"headers", "queryParameters", "batch", "retry", "circuitBreaker", "tls", "authenticate"}

func newReader(config *Config) *reader {
	r := &reader{values: map[string]interface{}{}, names: map[string]string{}, twice: map[string]bool{}, files: map[string]string{}}
	for name, value := range config.written() {
		r.write(name, value)
	}
	for name, value := range config.Rest {
		r.write(name, value)
	}
	return r
}

func (r *reader) write(path string, value interface{}) {
	if value == nil {
		return
	}
	for _, section := range sections {
		if strings.EqualFold(path, section) {
			r.writeSection(section, value)
			return
		}
	}
	r.note(path, value)
}

// note keeps what was written for an option. Traefik's decoder puts one of two that
// differ in case only into the field of the option, whichever comes first, and the other
// one into Rest.
func (r *reader) note(path string, value interface{}) {
	key := strings.ToLower(path)
	before, ok := r.names[key]
	if ok {
		r.twice[key] = true
		if before < path {
			path = before // so that messages are the same each time
		}
	}
	r.values[path] = value
	r.names[key] = path
}

func (r *reader) writeSection(path string, value interface{}) {
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Map {
		r.problem(path, show(path, value), "options under it, such as "+path+"."+partsOf[path])
		return
	}
	r.opened = append(r.opened, path+".")
	for _, key := range v.MapKeys() {
		full := path + "." + fmt.Sprint(key.Interface())
		if item := v.MapIndex(key).Interface(); item != nil {
			r.note(full, item)
		}
	}
}

// partsOf names one part of each section, for messages.
var partsOf = map[string]string{
	"headers": "defaultMode", "queryParameters": "defaultMode", "batch": "maxEvents", "retry": "attempts",
	"circuitBreaker": "failures", "tls": "ca", "authenticate": "secrets",
}

func (r *reader) problem(path, given, wanted string) {
	r.problems = append(r.problems, printable(path)+": "+given+", want "+wanted)
}

// printable keeps a name that the user made up from writing log lines of its own.
func printable(name string) string {
	if strconv.CanBackquote(name) {
		return name
	}
	quoted := strconv.Quote(name)
	return quoted[1 : len(quoted)-1]
}

// value is what was written for an option; names count without regard to case, as
// Traefik's decoder has it. An option that was written twice has none: which of both
// counted would differ from one reload to the next.
func (r *reader) value(path, standard string) (interface{}, bool) {
	r.known = append(r.known, knownOption{path, standard})
	key := strings.ToLower(path)
	name, ok := r.names[key]
	if !ok {
		return nil, false
	}
	delete(r.names, key)
	if r.twice[key] {
		r.problem(path, "given twice", "each option once, whatever its case")
		return nil, false
	}
	return r.values[name], true
}

// has says whether anything was written whose name begins so.
func (r *reader) has(prefix string) bool {
	for path := range r.values {
		if strings.HasPrefix(strings.ToLower(path), prefix) {
			return true
		}
	}
	for _, section := range r.opened {
		if section == prefix {
			return true
		}
	}
	return false
}

func (r *reader) text(path, standard string) string {
	value, ok := r.value(path, standard)
	if !ok {
		return standard
	}
	given, ok := r.spell(path, value, "a text")
	if !ok {
		return standard
	}
	return strings.TrimSpace(given)
}

func (r *reader) choice(path, standard string, choices ...string) string {
	given := r.text(path, standard)
	for _, c := range choices {
		if strings.EqualFold(given, c) {
			return c
		}
	}
	r.problem(path, strconv.Quote(given), "one of "+strings.Join(choices, ", "))
	return standard
}

func (r *reader) boolean(path string, standard bool) bool {
	value, ok := r.value(path, strconv.FormatBool(standard))
	if !ok {
		return standard
	}
	b, err := strconv.ParseBool(strings.TrimSpace(fmt.Sprint(value)))
	if err != nil {
		r.problem(path, show(path, value), "true or false")
		return standard
	}
	return b
}

// integer reads a number; one of the words, if there are any, is zero.
func (r *reader) integer(path string, standard, lowest, highest int, words ...string) int {
	value, ok := r.value(path, strconv.Itoa(standard))
	if !ok {
		return standard
	}
	for _, word := range words {
		if strings.EqualFold(strings.TrimSpace(fmt.Sprint(value)), word) {
			return 0
		}
	}
	n, whole := wholeNumber(value)
	if !whole {
		r.problem(path, show(path, value), strings.Join(append([]string{"a whole number"}, words...), " or "))
	} else if n < int64(lowest) {
		r.problem(path, show(path, value), fmt.Sprintf("at least %d", lowest))
	} else if n > int64(highest) {
		r.problem(path, show(path, value), fmt.Sprintf("at most %d", highest))
	} else {
		return int(n)
	}
	return standard
}

// wholeNumber reads a number of any type, or a string with one. JSON brings every
// number as a float.
func wholeNumber(value interface{}) (int64, bool) {
	v := reflect.ValueOf(value)
	if v.Kind() == reflect.Float64 || v.Kind() == reflect.Float32 {
		f := v.Float()
		return int64(f), f == float64(int64(f)) && f < 1<<62 && f > -1<<62
	}
	n, err := strconv.ParseInt(strings.TrimSpace(fmt.Sprint(value)), 10, 64)
	return n, err == nil
}

// fraction reads a number from 0 to 1.
func (r *reader) fraction(path string, standard float64) float64 {
	value, ok := r.value(path, strconv.FormatFloat(standard, 'g', -1, 64))
	if !ok {
		return standard
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(fmt.Sprint(value)), 64)
	if err != nil || !(f >= 0 && f <= 1) { // nor NaN
		r.problem(path, show(path, value), "a number from 0 to 1")
		return standard
	}
	return f
}

// patterns reads a list of regular expressions as one that finds any of them; nil if
// nothing was written.
func (r *reader) patterns(path, standard string) *regexp.Regexp {
	list, _ := r.list(path, standard)
	forms := make([]string, 0, len(list))
	for i, item := range list {
		if _, err := regexp.Compile(item); err != nil {
			r.problem(fmt.Sprintf("%s[%d]", path, i), strconv.Quote(item), "a regular expression: "+err.Error())
			continue
		}
		if _, err := regexp.Compile("(?:" + item + ")"); err != nil {
			item += `\E` // it is quoted to its end
		}
		forms = append(forms, "(?:"+item+")")
	}
	if len(forms) == 0 {
		return nil
	}
	all, err := regexp.Compile(strings.Join(forms, "|"))
	if err != nil {
		r.problem(path, "too much", "fewer or smaller expressions: "+err.Error())
	}
	return all
}

// duration reads a Go duration such as "1m30s"; a bare number is seconds, as in
// Traefik.
func (r *reader) duration(path, standard string, lowest, highest time.Duration) time.Duration {
	value, ok := r.value(path, standard)
	if !ok {
		value = standard
	}
	text := strings.TrimSpace(fmt.Sprint(value))
	if n, whole := wholeNumber(value); whole && n < 1<<31 && n > -1<<31 {
		text = strconv.FormatInt(n, 10) + "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		r.problem(path, show(path, value), `a duration such as "5s"`)
	} else if d < lowest {
		r.problem(path, show(path, value), "at least "+lowest.String())
	} else if d > highest {
		r.problem(path, show(path, value), "at most "+highest.String())
	}
	return d
}

// units of sizes. Longer ones first, as "1MiB" ends in "B", too.
var units = []struct {
	Name  string
	Bytes int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"k", 1e3}, {"K", 1e3}, {"M", 1e6}, {"G", 1e9}, {"B", 1},
}

// off is how a limit that there may not be is switched off; it is zero.
const off = "off"

// size reads a number of bytes, or one with a unit as in Kubernetes ("1Mi", "1M") or
// as people write it ("1MiB", "1MB"). What is off by default may be written as off.
func (r *reader) size(path, standard string, lowest, highest int64) int64 {
	value, ok := r.value(path, standard)
	if !ok {
		value = standard
	}
	n, whole := wholeNumber(value)
	text := strings.TrimSpace(fmt.Sprint(value))
	if standard == off && strings.EqualFold(text, off) {
		return 0
	}
	for _, unit := range units {
		if !whole && strings.HasSuffix(text, unit.Name) {
			n, whole = wholeNumber(strings.TrimSuffix(text, unit.Name))
			if n > highest || n < 0 {
				break // out of bounds already, and could overflow
			}
			n *= unit.Bytes
			break
		}
	}
	if !whole {
		r.problem(path, show(path, value), `a size such as 65536, "512Ki" or "1MB"`)
	} else if n < lowest {
		r.problem(path, show(path, value), fmt.Sprintf("at least %d", lowest))
	} else if n > highest {
		r.problem(path, show(path, value), fmt.Sprintf("at most %d", highest))
	}
	return n
}

// list reads a list or a string with commas. given is false if nothing was written,
// so that an empty list can mean none.
func (r *reader) list(path, standard string) (items []string, given bool) {
	items = nil
	value, ok := r.value(path, standard)
	if !ok {
		return nil, false
	}
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Slice {
		text, ok := r.spell(path, value, "a list")
		if !ok {
			return nil, false
		}
		for _, item := range strings.Split(text, ",") {
			if item = strings.TrimSpace(item); item != "" {
				items = append(items, item)
			}
		}
		return items, true
	}
	for i := 0; i < v.Len(); i++ {
		if item, ok := r.spell(fmt.Sprintf("%s[%d]", path, i), v.Index(i).Interface(), "a text"); ok {
			items = append(items, strings.TrimSpace(item))
		}
	}
	return items, true
}

// table reads a map of names to texts, which are not shown if they are wrong.
func (r *reader) table(path string) map[string]string {
	out := map[string]string{}
	value, ok := r.value(path, "{}")
	if !ok {
		return out
	}
	v := reflect.ValueOf(value)
	if v.Kind() != reflect.Map {
		r.problem(path, "a "+v.Kind().String(), "a map of names to texts")
		return out
	}
	for _, key := range v.MapKeys() {
		name := fmt.Sprint(key.Interface())
		if item, ok := r.spell(path+"."+name, v.MapIndex(key).Interface(), "a text"); ok {
			out[name] = item
		}
	}
	return out
}

// spell writes a single value as its author did, or notes that it is none.
func (r *reader) spell(path string, value interface{}, wanted string) (string, bool) {
	text := fmt.Sprint(value)
	if f, ok := value.(float64); ok {
		text = strconv.FormatFloat(f, 'f', -1, 64) // as JSON brings 12345678
	}
	if k := reflect.ValueOf(value).Kind(); k == reflect.Invalid || k == reflect.Map || k == reflect.Slice || k == reflect.Struct || k == reflect.Pointer {
		r.problem(path, show(path, value), wanted)
		return "", false
	}
	if !utf8.ValidString(text) {
		r.problem(path, "bytes that are not UTF-8", wanted)
		return "", false
	}
	return text, true
}

// secretOptions hold secrets, so what was written for them is never shown.
var secretOptions = map[string]bool{
	"watchURL": true, "watchURLs": true, "hashKey": true, "signingSecrets": true, "customRequestHeaders": true,
	"tls": true, "tls.ca": true, "tls.cert": true, "tls.key": true, "authenticate": true, "authenticate.secrets": true,
}

func show(path string, value interface{}) string {
	option := path
	if i := strings.IndexByte(path, '['); i >= 0 {
		option = path[:i]
	}
	if secretOptions[option] || strings.HasPrefix(option, "customRequestHeaders.") {
		return "a value that is not shown"
	}
	if s, ok := value.(string); ok {
		return strconv.Quote(s)
	}
	return fmt.Sprint(value)
}

// validHeaderName says whether a name is a token (RFC 9110, 5.6.2).
func validHeaderName(name string) bool { return tokenForm.MatchString(name) }

// tokenForm is that of a token (RFC 9110, 5.6.2).
var tokenForm = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

// canonicalModes reads names with modes, without regard to the case of names.
func canonicalModes(r *reader, path string, canonical func(string) string, into map[string]string) {
	table := r.table(path)
	names := make([]string, 0, len(table))
	for name := range table {
		names = append(names, name)
	}
	sort.Strings(names)
	given := map[string]bool{}
	for _, name := range names {
		mode := strings.ToLower(strings.TrimSpace(table[name]))
		key := canonical(name)
		if given[key] {
			r.problem(path+"."+name, "given twice", "each name once, whatever its case")
		}
		given[key] = true
		if mode != modeKeep && mode != modeRedact && mode != modeHash && mode != modeDrop {
			r.problem(path+"."+name, strconv.Quote(table[name]), "one of keep, redact, hash, drop")
		}
		into[key] = mode
	}
}
