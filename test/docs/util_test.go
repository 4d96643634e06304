package docs

import (
	"encoding/json"
	"expvar"
	"io"
	"testing"
)

// counters are what the plugin shows of a middleware.
func counters(t *testing.T, name string) map[string]any {
	t.Helper()
	var all struct{ Middlewares map[string]map[string]any }
	if err := json.Unmarshal([]byte(expvar.Get("requestmirror").String()), &all); err != nil {
		t.Fatal(err)
	}
	return all.Middlewares[name]
}

func readAll(t *testing.T, r io.Reader) []byte {
	content, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return content
}
