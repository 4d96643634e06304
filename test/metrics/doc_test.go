// Package metrics holds the Prometheus page of the plugin, and the dashboard and the
// alerts in examples/monitoring that read it, against Prometheus' own parsers.
package metrics
