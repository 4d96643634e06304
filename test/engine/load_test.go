package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/mitchellh/mapstructure"
	"github.com/opencommit/requestmirror"
	"github.com/traefik/yaegi/interp"
	"github.com/traefik/yaegi/stdlib"
)

const importPath = "github.com/opencommit/requestmirror"

// engine is a plugin that is loaded, and what it logged. Its methods do what
// yaegiMiddlewareBuilder does in Traefik v3.7.9, pkg/plugins/middlewareyaegi.go.
type engine struct {
	name           string
	fnNew          reflect.Value
	fnCreateConfig reflect.Value
	debug, errors  *sink // what Traefik logs at these levels
}

func (e *engine) createConfig(config map[string]any) (reflect.Value, error) {
	results := e.fnCreateConfig.Call(nil)
	if len(results) != 1 {
		return reflect.Value{}, fmt.Errorf("CreateConfig returned %d values", len(results))
	}
	vConfig := results[0]
	if len(config) == 0 {
		return vConfig, nil
	}
	decoder, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		DecodeHook:       mapstructure.StringToSliceHookFunc(","),
		WeaklyTypedInput: true,
		Result:           vConfig.Interface(),
	})
	if err != nil {
		return reflect.Value{}, err
	}
	return vConfig, decoder.Decode(config)
}

func (e *engine) newHandler(ctx context.Context, next http.Handler, cfg reflect.Value, name string) (http.Handler, error) {
	args := []reflect.Value{reflect.ValueOf(ctx), reflect.ValueOf(next), cfg, reflect.ValueOf(name)}
	results := e.fnNew.Call(args)
	if len(results) > 1 && results[1].Interface() != nil {
		err, ok := results[1].Interface().(error)
		if !ok {
			return nil, fmt.Errorf("New: invalid error type %T", results[1].Interface())
		}
		return nil, err
	}
	handler, ok := results[0].Interface().(http.Handler)
	if !ok {
		return nil, fmt.Errorf("New: invalid handler type %T", results[0].Interface())
	}
	return handler, nil
}

// engines are loaded once per process, as Traefik does, so that package
// variables are shared by all cases.
var engines = sync.OnceValues(func() ([]*engine, error) {
	// Compiled code logs errors to the standard logger. What it prints for the
	// debug level goes to the test's own output.
	compiled := &engine{
		name:  "compiled",
		fnNew: reflect.ValueOf(requestmirror.New), fnCreateConfig: reflect.ValueOf(requestmirror.CreateConfig),
		debug: &sink{}, errors: &sink{},
	}
	log.SetOutput(compiled.errors)

	gopath, err := os.MkdirTemp("", "requestmirror-gopath")
	if err != nil {
		return nil, err
	}
	if err := copyPlugin(filepath.Join("..", ".."), filepath.Join(gopath, "src", filepath.FromSlash(importPath))); err != nil {
		return nil, err
	}
	interpreted, err := load(gopath, importPath, "requestmirror")
	if err != nil {
		return nil, err
	}
	interpreted.name = "yaegi"
	return []*engine{compiled, interpreted}, os.RemoveAll(gopath)
})

// load interprets a plugin as Traefik's newInterpreter does.
func load(gopath, imp, basePkg string) (*engine, error) {
	e := &engine{name: basePkg, debug: &sink{}, errors: &sink{}}
	i := interp.New(interp.Options{GoPath: gopath, Env: os.Environ(), Stdout: e.debug, Stderr: e.errors})
	if err := i.Use(stdlib.Symbols); err != nil {
		return nil, err
	}
	if _, err := i.Eval(fmt.Sprintf(`import "%s"`, imp)); err != nil {
		return nil, fmt.Errorf("import %s: %w", imp, err)
	}
	var err error
	if e.fnNew, err = i.Eval(basePkg + `.New`); err != nil {
		return nil, fmt.Errorf("eval New: %w", err)
	}
	if e.fnCreateConfig, err = i.Eval(basePkg + `.CreateConfig`); err != nil {
		return nil, fmt.Errorf("eval CreateConfig: %w", err)
	}
	return e, nil
}

// copyPlugin copies what the catalog serves of the root module and the
// interpreter reads. Tests stay behind.
func copyPlugin(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		source := filepath.Ext(name) == ".go" && !strings.HasSuffix(name, "_test.go")
		if !source && name != "go.mod" && name != ".traefik.yml" {
			continue
		}
		raw, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // an editor's passing file
		}
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, name), raw, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func loaded(tb testing.TB) []*engine {
	tb.Helper()
	all, err := engines()
	if err != nil {
		tb.Fatal(err)
	}
	return all
}

// sink keeps what is logged.
type sink struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *sink) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *sink) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Len()
}

// since is what was logged after the mark.
func (s *sink) since(mark int) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.buf.Bytes()[mark:])
}
