// The Yaegi that Traefik v3.7 embeds, as a tool for the unit tests.
module github.com/opencommit/requestmirror/test/yaegi

go 1.26.0

tool github.com/traefik/yaegi/cmd/yaegi

// v0.16.1 is what Traefik v3.0 to v3.7 embed; Yaegi's master behaves differently.
require github.com/traefik/yaegi v0.16.1 // indirect
