// Package ext stands in for the module that Traefik's go.mod replaces by a
// directory of its own tree: a replace counts only in the main module, so
// whoever builds Traefik as a dependency has to bring the two types.
package ext

// HTTP is Traefik's extension point of the HTTP configuration, empty upstream.
type HTTP struct{}

// Router is Traefik's extension point of a router, empty upstream.
type Router struct{}
