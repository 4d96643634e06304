// Package docs checks that no page of this repository lies, as far as a program
// can tell: configurations are given to the plugin as Traefik does it, events go
// through the schema, programs compile, links lead somewhere.
package docs
