// Package requestmirror does nothing but pass requests on: what it costs is what
// Yaegi costs. It has the plugin's name because the lab loads it in its place.
package requestmirror

import (
	"context"
	"net/http"
)

// Config takes the options of the plugin, and ignores them.
type Config struct{}

func CreateConfig() *Config { return &Config{} }

type noop struct{ next http.Handler }

func New(_ context.Context, next http.Handler, _ *Config, _ string) (http.Handler, error) {
	return &noop{next}, nil
}

func (n *noop) ServeHTTP(rw http.ResponseWriter, req *http.Request) { n.next.ServeHTTP(rw, req) }
