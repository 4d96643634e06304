//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"
)

// In Yaegi a named result is not zero when a function begins: it is what the call before
// it, in the same loop of the caller, left there.
func TestNamedResultsAreSetBeforeTheyAreRead(t *testing.T) {
	checked := 0
	eachFunction(t, func(f *ast.FuncDecl, set *token.FileSet) {
		if f.Type.Results == nil {
			return
		}
		for _, field := range f.Type.Results.List {
			for _, name := range field.Names {
				checked++
				if at := readBeforeSet(f.Body.List, name.Name); at.IsValid() {
					t.Errorf("%s: %s: result %s is read or left as it is before it is set", set.Position(at), f.Name.Name, name.Name)
				}
			}
		}
	})
	if checked == 0 {
		t.Error("got no function with named results; want some to check")
	}
}

// Yaegi makes a function of a method at each call, and finds out its type at the first ones:
// in two goroutines at once, that is a data race. What may run in several is a function,
// unless compiled code calls it; what is called by New alone may be a method.
func TestMethodsAreThoseThatCompiledCodeCalls(t *testing.T) {
	compiled := map[string]bool{"ServeHTTP": true, "Read": true, "Write": true, "Header": true, "WriteHeader": true, "Hijack": true}
	configuration := map[string]bool{"reader": true, "Config": true}
	checked := 0
	eachFunction(t, func(f *ast.FuncDecl, set *token.FileSet) {
		if f.Recv == nil {
			return
		}
		checked++
		if receiver := receiverOf(f); !compiled[f.Name.Name] && !configuration[receiver] {
			t.Errorf("%s: got %s as a method of %s; want a function", set.Position(f.Pos()), f.Name.Name, receiver)
		}
	})
	if checked == 0 {
		t.Error("got no method; want some to check")
	}
}

// What most requests go through has no look at responses, which are captured for those who
// ask for it: that costs all others nothing. What is only for some requests is left out.
func TestPlainRequestsPassNoCodeForResponses(t *testing.T) {
	leftOut := map[string]bool{
		"serveScreened": true, "offerScreened": true, // for options that ask for more
		"offerAll": true, // for several receivers
		"drop":     true, // for an event that finds no place any more
		"evict":    true, // with overflow dropOldest, for the one that makes room
		"work":     true, // the worker's
		"tell":     true, // the log's
	}
	functions := map[string]*ast.FuncDecl{}
	positions := map[string]*token.FileSet{}
	eachFunction(t, func(f *ast.FuncDecl, set *token.FileSet) {
		name := f.Name.Name
		if f.Recv != nil {
			name = receiverOf(f) + "." + name
		}
		functions[name] = f
		positions[name] = set
	})
	way := []string{"Mirror.ServeHTTP", "body.Write", "uncopied.Read"}
	passed := map[string]bool{}
	for len(way) > 0 {
		name := way[0]
		way = way[1:]
		f := functions[name]
		if passed[name] || f == nil {
			continue
		}
		passed[name] = true
		ast.Inspect(f.Body, func(n ast.Node) bool {
			if call, ok := n.(*ast.CallExpr); ok {
				if callee, ok := call.Fun.(*ast.Ident); ok && !leftOut[callee.Name] {
					way = append(way, callee.Name)
				}
			}
			if ident, ok := n.(*ast.Ident); ok && strings.Contains(strings.ToLower(ident.Name), "response") && ident.Name != "ResponseWriter" {
				t.Errorf("%s: got %s in %s, which every request passes; want it where responses are captured",
					positions[name].Position(ident.Pos()), ident.Name, name)
			}
			return true
		})
	}
	for _, name := range []string{"mirrorBare", "serveBody", "serveCrowded", "tee", "finish", "offer", "offerCarefully", "weigh", "keepRest"} {
		if !passed[name] {
			t.Errorf("got no call of %s; want it on the way of a request", name)
		}
	}
}

func receiverOf(f *ast.FuncDecl) string {
	of := f.Recv.List[0].Type
	if pointer, ok := of.(*ast.StarExpr); ok {
		of = pointer.X
	}
	return of.(*ast.Ident).Name
}

// eachFunction calls check with every function and method of the package.
func eachFunction(t *testing.T, check func(f *ast.FuncDecl, set *token.FileSet)) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		set := token.NewFileSet()
		parsed, err := parser.ParseFile(set, file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, declaration := range parsed.Decls {
			if f, ok := declaration.(*ast.FuncDecl); ok {
				check(f, set)
			}
		}
	}
}

// readBeforeSet is where one of the statements mentions the name, or returns without
// values, before one of them has set it whatever happens.
func readBeforeSet(statements []ast.Stmt, name string) token.Pos {
	for _, s := range statements {
		if a, ok := s.(*ast.AssignStmt); ok && a.Tok == token.ASSIGN {
			for _, left := range a.Lhs {
				if is(left, name) {
					for _, right := range a.Rhs {
						if at := mention(right, name); at.IsValid() {
							return at
						}
						if l, ok := right.(*ast.CompositeLit); ok && isNamed(l.Type) {
							return l.Pos() // what is set in it afterwards would be lost
						}
					}
					return token.NoPos
				}
			}
		}
		if at := mention(s, name); at.IsValid() {
			return at
		}
	}
	return token.NoPos
}

// isNamed says whether a literal's type has a name, as a struct's.
func isNamed(e ast.Expr) bool {
	_, ok := e.(*ast.Ident)
	return ok
}

func is(e ast.Expr, name string) bool {
	ident, ok := e.(*ast.Ident)
	return ok && ident.Name == name
}

// mention is where the name stands as a variable, or where a function returns what it is.
func mention(n ast.Node, name string) token.Pos {
	at := token.NoPos
	ast.Inspect(n, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			if p := mention(n.X, name); p.IsValid() {
				at = p
			}
			return false
		case *ast.KeyValueExpr:
			if p := mention(n.Value, name); p.IsValid() {
				at = p
			}
			return false
		case *ast.FuncLit:
			return false // its own results are not named
		case *ast.ReturnStmt:
			if len(n.Results) == 0 {
				at = n.Pos()
			}
		case *ast.Ident:
			if n.Name == name {
				at = n.Pos()
			}
		}
		return true
	})
	return at
}
