// Package engine runs one table of behaviour against two engines: the compiled
// package, and the package as Traefik's interpreter runs it. What holds for both
// is what the contract promises; what differs is a bug, in the plugin or in our
// knowledge of Yaegi.
//
//	go test -race ./engine             the table
//	go test -bench . ./engine          what the request path costs, interpreted
package engine
