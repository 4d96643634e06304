// Package noop is the least a Traefik plugin can do: what it costs is Yaegi's.
package noop

import (
	"context"
	"net/http"
)

// Config has no options.
type Config struct{}

// CreateConfig returns the empty configuration.
func CreateConfig() *Config { return &Config{} }

// Handler passes requests on.
type Handler struct{ next http.Handler }

// New makes a handler.
func New(ctx context.Context, next http.Handler, config *Config, name string) (http.Handler, error) {
	return &Handler{next: next}, nil
}

// ServeHTTP passes the request on as it came.
func (h *Handler) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	h.next.ServeHTTP(rw, req)
}
