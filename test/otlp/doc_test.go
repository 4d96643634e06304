// Package otlp has the readers of OpenTelemetry look at what the plugin sends with format
// otlp: their library reads log records, and a Collector that is built here takes them
// from a plugin in a real Traefik. It is a module of its own, as what a Collector requires
// must not decide what the other tests require.
//
//	go test ./...                 in this directory
//
// The Collector is of the newest version of which the module proxy has every part.
package otlp
