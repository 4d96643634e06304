// Package policy writes the ValidatingAdmissionPolicy that refuses a Middleware whose
// options the plugin would not take.
//
// What it knows of the options is read from the plugin's sources: each call that reads
// an option says its name, its type and its bounds, as constants. So the policy cannot
// fall behind without a test failing, and nothing is written down twice.
package policy

import (
	"fmt"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Option is one option of the plugin, as its sources have it.
type Option struct {
	Name  string   // such as retry.attempts
	Kind  string   // the reader's method: text, choice, boolean, integer, fraction, patterns, duration, size, list, table
	Least int64    // of integers, sizes (bytes) and durations (nanoseconds)
	Most  int64    // likewise
	Words []string // the choices, or what may be written instead of a number
}

// Plugin is what the sources say.
type Plugin struct {
	Options  []Option // in the order of their names
	Sections []string // the options whose parts are options
	Reserved []string // headers that customRequestHeaders may not have
	Secrets  []string // options whose values are never shown
	Origin   string   // expression that requestOrigin matches
	Wanted   []string // what problems want, or how that begins, as far as it is constant
}

// wrappers are the functions that read the option of their argument, by the method
// that they do it with.
var wrappers = map[string]string{"readPEM": "text", "canonicalModes": "table"}

// methods of reader that read an option.
var methods = []string{"text", "choice", "boolean", "integer", "fraction", "patterns", "duration", "size", "list", "table"}

// others are those of its methods that read none.
var others = []string{"content", "has", "problem", "secret", "secretIn", "spell", "unknown", "write"}

// Read reads the sources of the plugin in a directory.
func Read(dir string) (*Plugin, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	fset := token.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, name, nil, 0)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	// Types are there for the values of constants. Those of time are all that the
	// options need of other packages, so what else is imported stays unknown, and the
	// errors that follow from that say nothing.
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: onlyTime{importer.ForCompiler(fset, "source", nil)}, Error: func(error) {}}
	_, _ = conf.Check("requestmirror", fset, files, info)

	s := &source{fset: fset, info: info, plugin: &Plugin{}}
	for _, file := range files {
		for _, decl := range file.Decls {
			s.declaration(decl)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				s.problem(call)
			}
			return true
		})
	}
	if len(s.problems) > 0 {
		return nil, fmt.Errorf("options of the plugin:\n  %s", strings.Join(s.problems, "\n  "))
	}
	slices.SortFunc(s.plugin.Options, func(a, b Option) int { return strings.Compare(a.Name, b.Name) })
	for i, option := range s.plugin.Options[1:] {
		if option.Name == s.plugin.Options[i].Name {
			return nil, fmt.Errorf("option %s is read twice", option.Name)
		}
	}
	if len(s.plugin.Sections) == 0 || len(s.plugin.Reserved) == 0 || len(s.plugin.Secrets) == 0 || s.plugin.Origin == "" {
		return nil, fmt.Errorf("sections, reserved, secretOptions or dnsName: not found where they were")
	}
	return s.plugin, nil
}

// onlyTime knows no other package.
type onlyTime struct{ types.Importer }

func (o onlyTime) Import(path string) (*types.Package, error) {
	if path != "time" {
		return nil, fmt.Errorf("%s is not needed", path)
	}
	return o.Importer.Import(path)
}

type source struct {
	fset     *token.FileSet
	info     *types.Info
	plugin   *Plugin
	problems []string
}

func (s *source) declaration(decl ast.Decl) {
	switch d := decl.(type) {
	case *ast.GenDecl:
		for _, spec := range d.Specs {
			if v, ok := spec.(*ast.ValueSpec); ok && len(v.Names) == 1 && len(v.Values) == 1 {
				s.variable(v.Names[0].Name, v.Values[0])
			}
		}
	case *ast.FuncDecl:
		if d.Body == nil || wrappers[d.Name.Name] != "" || d.Recv != nil {
			return // wrappers and the reader itself take the name from who calls them
		}
		ast.Inspect(d.Body, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				s.call(call)
			}
			return true
		})
	}
}

// variable takes the tables that are variables of the package.
func (s *source) variable(name string, value ast.Expr) {
	switch name {
	case "sections":
		for _, item := range value.(*ast.CompositeLit).Elts {
			s.plugin.Sections = append(s.plugin.Sections, s.text(item))
		}
	case "reserved":
		for _, item := range value.(*ast.CompositeLit).Elts {
			s.plugin.Reserved = append(s.plugin.Reserved, strings.ToLower(s.text(item.(*ast.KeyValueExpr).Key)))
		}
		slices.Sort(s.plugin.Reserved)
	case "secretOptions":
		for _, item := range value.(*ast.CompositeLit).Elts {
			s.plugin.Secrets = append(s.plugin.Secrets, s.text(item.(*ast.KeyValueExpr).Key))
		}
		slices.Sort(s.plugin.Secrets)
	case "dnsName":
		s.plugin.Origin = s.text(value.(*ast.CallExpr).Args[0])
	}
}

// call takes the option that a call reads, if it reads one.
func (s *source) call(call *ast.CallExpr) {
	kind := ""
	var args []ast.Expr
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		if t := s.info.Types[f.X].Type; t == nil || !strings.HasSuffix(t.String(), "requestmirror.reader") || slices.Contains(others, f.Sel.Name) {
			return
		}
		if !slices.Contains(methods, f.Sel.Name) {
			s.problems = append(s.problems, s.fset.Position(call.Pos()).String()+": reader."+f.Sel.Name+" is neither in methods nor in others; the policy cannot know what it reads")
			return
		}
		kind = f.Sel.Name
		args = call.Args
	case *ast.Ident:
		if kind = wrappers[f.Name]; kind == "" {
			return
		}
		args = call.Args[1:] // behind the reader
	default:
		return
	}
	name := s.text(args[0])
	if name == "" {
		return
	}
	o := Option{Name: name, Kind: kind}
	switch kind {
	case "integer":
		o.Least, o.Most = s.number(args[2]), s.number(args[3])
		o.Words = s.texts(args[4:])
	case "duration":
		o.Least, o.Most = s.number(args[2]), s.number(args[3])
	case "size":
		o.Least, o.Most = s.number(args[2]), s.number(args[3])
		if standard := s.text(args[1]); standard == "off" {
			o.Words = []string{standard}
		}
	case "choice":
		o.Words = s.texts(args[2:])
	}
	s.plugin.Options = append(s.plugin.Options, o)
}

// problem takes what is wanted instead, of a call that notes a problem.
func (s *source) problem(call *ast.CallExpr) {
	name := ""
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		name = f.Sel.Name
	case *ast.Ident:
		name = f.Name
	}
	if name != "problem" && name != "refuse" {
		return
	}
	last := call.Args[len(call.Args)-1]
	for {
		if v := s.info.Types[last].Value; v != nil && v.Kind() == constant.String {
			text, _, _ := strings.Cut(constant.StringVal(v), "%")
			if !slices.Contains(s.plugin.Wanted, text) {
				s.plugin.Wanted = append(s.plugin.Wanted, text)
			}
			return
		}
		switch e := last.(type) {
		case *ast.BinaryExpr: // what is added to it differs
			last = e.X
		case *ast.CallExpr: // of fmt.Sprintf
			if len(e.Args) == 0 {
				return
			}
			last = e.Args[0]
		default:
			return
		}
	}
}

func (s *source) texts(list []ast.Expr) []string {
	var out []string
	for _, item := range list {
		out = append(out, s.text(item))
	}
	return out
}

func (s *source) text(e ast.Expr) string {
	v := s.info.Types[e].Value
	if v == nil || v.Kind() != constant.String {
		s.problems = append(s.problems, s.fset.Position(e.Pos()).String()+": no constant text; the policy cannot know it")
		return ""
	}
	return constant.StringVal(v)
}

func (s *source) number(e ast.Expr) int64 {
	v := s.info.Types[e].Value
	n, exact := int64(0), false
	if v != nil {
		n, exact = constant.Int64Val(constant.ToInt(v))
	}
	if !exact {
		s.problems = append(s.problems, s.fset.Position(e.Pos()).String()+": no constant number; the policy cannot know it")
	}
	return n
}

// Bounds are the bounds as they are written in messages and in the policy.
func (o Option) Bounds() (least, most string) {
	if o.Kind == "duration" {
		return shortDuration(o.Least), shortDuration(o.Most)
	}
	return fmt.Sprint(o.Least), fmt.Sprint(o.Most)
}

// shortDuration is 10m instead of 10m0s.
func shortDuration(n int64) string {
	text := time.Duration(n).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
