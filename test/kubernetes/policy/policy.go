package policy

import (
	"bytes"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/template"
)

// form is what a text must look like, beyond its type.
type form struct {
	Pattern string // RE2, over the text without spaces around it
	Wanted  string // how messages call it
}

const (
	tchars = "[-!#$%&'*+.^_`|~0-9A-Za-z]+" // RFC 9110, 5.6.2
	quad   = "[A-Za-z0-9+/]{4}"
	triple = "[A-Za-z0-9+/]{3}="
	double = "[A-Za-z0-9+/]{2}=="
)

// forms are those of texts and of the items of lists. The sources say them in code, so
// they are said again here; the tests hold both equal. An option of these types that is
// missing here stops the policy from being written.
var forms = map[string]form{
	"hashKey":              {"", ""},
	"tls.ca":               {"", ""},
	"tls.cert":             {"", ""},
	"tls.key":              {"", ""},
	"tls.serverName":       {"", ""},
	"authenticate.prefix":  {"", ""},
	"authenticate.header":  {"^" + tchars + "$", "the name of a header"},
	"authenticate.secrets": {"^(?s:.+)$", "a secret"},
	"requestID":            {"^(" + tchars + ")?$", "the name of a header"},
	"metricsPath":          {"^(/(?s:.*))?$", "a path such as /metrics"},
	"methods":              {"^" + tchars + "$", "an HTTP method"},
	"cookieNames":          {"", ""},
	"bodyContentTypes":     {"", ""},
	"redactBodyFields":     {`[\pL\p{Nd}]`, "a name with a letter or digit in it"},
	// 24 to 64 bytes: 8 to 21 quads, or with a shorter one at the end.
	"signingSecrets": {"^(file:.*|whsec_((" + quad + "){8,21}|(" + quad + "){8,20}" + triple + "|(" + quad + "){8,21}" + double + "))$",
		"whsec_ and the base64 of 24 to 64 bytes"},
	// What is in code there, and in the template here.
	"requestOrigin": {},
	"watchURL":      {},
	"watchURLs":     {},
}

//go:embed policy.yaml.tmpl
var text string

var page = template.Must(template.New("policy").Funcs(template.FuncMap{
	"list": celList, "token": func() string { return celString("^" + tchars + "$") }, "cel": celString,
}).Parse(text))

// Render writes the policy for a plugin.
func Render(p *Plugin) ([]byte, error) {
	scalar := []string{"text", "choice", "boolean", "integer", "fraction", "duration", "size"}
	data := struct {
		*Plugin
		Names, Scalars, Booleans, Fractions, Lists, Patterns, Tables []string
		Integers, Sizes, Durations, Choices, NumberWords, Forms      string
	}{Plugin: p}
	integers, sizes, durations, choices := map[string]string{}, map[string]string{}, map[string]string{}, map[string]string{}
	words, texts := map[string]string{}, map[string]string{}
	for _, o := range p.Options {
		data.Names = append(data.Names, o.Name)
		if slices.Contains(scalar, o.Kind) {
			data.Scalars = append(data.Scalars, o.Name)
		}
		least, most := o.Bounds()
		switch o.Kind {
		case "boolean":
			data.Booleans = append(data.Booleans, o.Name)
		case "fraction":
			data.Fractions = append(data.Fractions, o.Name)
		case "integer":
			integers[o.Name] = "[" + least + ", " + most + "]"
		case "size":
			sizes[o.Name] = "[" + least + ", " + most + "]"
		case "duration":
			durations[o.Name] = celPair(least, most)
		case "choice":
			choices[o.Name] = celList(o.Words)
		case "table":
			data.Tables = append(data.Tables, o.Name)
		case "patterns":
			data.Patterns = append(data.Patterns, o.Name)
			data.Lists = append(data.Lists, o.Name)
		case "list", "text":
			if o.Kind == "list" {
				data.Lists = append(data.Lists, o.Name)
			}
			f, ok := forms[o.Name]
			if !ok {
				return nil, fmt.Errorf("%s is a new option: say in forms which form it must have", o.Name)
			}
			if o.Name == "requestOrigin" {
				f = form{"^$|" + p.Origin, "the name of this system, such as mirror.example.com"}
			}
			if f.Pattern != "" {
				texts[o.Name] = celPair(f.Pattern, f.Wanted)
			}
		}
		if len(o.Words) == 1 && o.Kind != "choice" {
			words[o.Name] = celString(o.Words[0])
		}
	}
	data.Integers, data.Sizes, data.Durations, data.Choices = celMap(integers), celMap(sizes), celMap(durations), celMap(choices)
	data.NumberWords, data.Forms = celMap(words), celMap(texts)
	var out bytes.Buffer
	if err := page.Execute(&out, data); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// celString is a literal of CEL; strconv's escapes are CEL's, too.
func celString(s string) string {
	if strings.ContainsAny(s, `'\`) {
		return strconv.QuoteToASCII(s)
	}
	return "'" + s + "'"
}

func celList(list []string) string {
	var out []string
	for _, item := range list {
		out = append(out, celString(item))
	}
	return wrap("[", out, "]")
}

// celPair is a list on one line.
func celPair(a, b string) string { return "[" + celString(a) + ", " + celString(b) + "]" }

func celMap(m map[string]string) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, "'"+name+"': "+m[name])
	}
	return wrap("{", out, "}")
}

// wrap breaks what is long into lines, indented as the template needs it.
func wrap(open string, items []string, end string) string {
	one := open + strings.Join(items, ", ") + end
	if len(one) < 100 {
		return one
	}
	const indent = "\n          "
	lines, line := open, ""
	for i, item := range items {
		if i < len(items)-1 {
			item += ","
		}
		if line != "" && len(line)+len(item) > 105 {
			lines += indent + line
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += item
	}
	return lines + indent + line + "\n        " + end
}
