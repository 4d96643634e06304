package requestmirror

import (
	"bytes"
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"strings"
)

// The reasons that are on the page though nothing was lost for them, so that the first
// loss is an increase, too: to Prometheus a counter that was not there has not grown.
// Sorted. What is counted for a reason that is missing here is written all the same.
var (
	droppedReasons = []string{reasonCircuitOpen, reasonIncomplete, reasonMemory, reasonQueueFull}
	failedReasons  = []string{
		reasonCircuitOpen, reasonExpired, reasonGone, reasonInternal, reasonNetwork, reasonQueueFull,
		reasonRejected, reasonRetired, reasonServerError, reasonTimeout, reasonTooLarge,
	}
	cutReasons    = []string{cutAborted, cutContentType, cutDisabled, cutEvent, cutLimit, cutMemory, cutUnread}
	breakerStates = []string{breakerClosed, breakerHalfOpen, breakerOpen}
)

// metricsPage answers requests for one path with the counters in Prometheus' text
// format and passes on all others as they came.
type metricsPage struct {
	next http.Handler
	path string
	read func() *overview
}

func (p *metricsPage) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	if req.URL.Path != p.path || req.URL.RawPath != "" { // no other spelling of the path
		p.next.ServeHTTP(rw, req)
		return
	}
	showMetrics(p, rw, req)
}

func showMetrics(p *metricsPage, rw http.ResponseWriter, req *http.Request) {
	header := rw.Header()
	header.Set("Cache-Control", "no-store")
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(rw, "requestmirror: metrics are read with GET or HEAD", http.StatusMethodNotAllowed)
		return
	}
	b := &bytes.Buffer{}
	renderMetrics(p, b)
	if b.Len() == 0 {
		http.Error(rw, "requestmirror: internal error, see Traefik's log", http.StatusInternalServerError)
		return
	}
	header.Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	header.Set("Content-Length", strconv.Itoa(b.Len()))
	if req.Method == http.MethodGet {
		_, _ = rw.Write(b.Bytes())
	}
}

// renderMetrics leaves nothing in the buffer when it fails: half a page would be taken
// for all there is.
func renderMetrics(p *metricsPage, b *bytes.Buffer) {
	defer contain()
	whole := &bytes.Buffer{}
	writeMetrics(whole, p.read())
	_, _ = b.Write(whole.Bytes())
}

// labelled is a reading with the labels that all its samples have.
type labelled struct {
	labels string
	r      *reading
}

// writeMetrics writes the text format, version 0.0.4. All samples of a family have to
// be next to each other, so it goes through the receivers once for each.
func writeMetrics(b *bytes.Buffer, o *overview) {
	all := []labelled{}
	for _, m := range o.middlewares {
		for _, r := range m.receivers {
			labels := `middleware="` + labelValue(m.name) + `",receiver="` + labelValue(r.receiver) + `"`
			all = append(all, labelled{labels, r})
		}
	}

	writeEach(b, all, "requests_seen_total", "counter",
		"Requests that came. Equal to events_total of all outcomes + events_waiting + events_in_flight.",
		func(r *reading) uint64 { return r.counts.filtered + r.counts.sampledOut + r.counts.offered })
	writeEvents(b, all)
	writeEach(b, all, "events_waiting", "gauge", "Events that wait in the queue.",
		func(r *reading) uint64 { return r.waiting })
	writeEach(b, all, "events_in_flight", "gauge", "Events that are being sent or wait for their next attempt.",
		func(r *reading) uint64 { return r.counts.inFlight })
	writeEach(b, all, "retries_total", "counter", "Attempts to deliver an event after the first one.",
		func(r *reading) uint64 { return r.counts.retried })

	writeHead(b, "bodies_truncated_total", "counter",
		"Bodies of requests and responses that are not whole, of events that were delivered, failed or incomplete, by reason.")
	for _, s := range all {
		writeReasons(b, "bodies_truncated_total", s.labels, cutReasons, s.r.counts.truncated)
	}

	writeEach(b, all, "queue_length", "gauge", "Events in the queues.",
		func(r *reading) uint64 { return uint64(r.queueLength) })
	writeEach(b, all, "queue_capacity", "gauge", "Events that the queues have room for (queueSize).",
		func(r *reading) uint64 { return uint64(r.queueCapacity) })
	writeMemory(b, o.middlewares)

	writeHead(b, "attempt_duration_seconds", "histogram", "How long attempts to deliver took, whatever came of them.")
	for _, s := range all {
		writeHistogram(b, "attempt_duration_seconds", s.labels, s.r.counts)
	}
	writeHead(b, "circuit_breaker_state", "gauge", "1 for the state that the circuit breaker is in, 0 for the others.")
	for _, s := range all {
		for _, state := range breakerStates {
			current := 0
			if s.r.breaker == state {
				current = 1
			}
			writeSample(b, "circuit_breaker_state", s.labels+`,state="`+state+`"`, current)
		}
	}
	writeEach(b, all, "concurrency_limit", "gauge", "Deliveries that may be under way at once.",
		func(r *reading) uint64 { return uint64(r.concurrency) })
	writeEach(b, all, "pipelines", "gauge", "Pipelines; more than 1 while a replaced one drains.",
		func(r *reading) uint64 { return uint64(r.pipelines) })

	writeHead(b, "config_errors_total", "counter", "Configurations with a mistake, for each router at each reload.")
	writeSample(b, "config_errors_total", "", o.configErrors)
	writeHead(b, "panics_total", "counter", "Faults of the plugin that were contained.")
	writeSample(b, "panics_total", "", o.panics)
	writeHead(b, "build_info", "gauge", "The version of the plugin; always 1.")
	writeSample(b, "build_info", `version="`+labelValue(version)+`"`, 1)
}

// writeEvents writes what became of requests. Those that were put into the queue are
// not there, as they are counted again by what became of them: a sum over all outcomes
// is to count each once.
func writeEvents(b *bytes.Buffer, all []labelled) {
	writeHead(b, "events_total", "counter", "What became of the requests: filtered, sampled_out, delivered, or lost, "+
		"which is dropped before the queue and failed after it, by reason. "+
		"Put into the queue: delivered + failed + events_waiting + events_in_flight.")
	for _, s := range all {
		c := s.r.counts
		writeSample(b, "events_total", s.labels+`,outcome="delivered",reason=""`, c.delivered)
		writeReasons(b, "events_total", s.labels+`,outcome="dropped"`, droppedReasons, c.dropped)
		writeReasons(b, "events_total", s.labels+`,outcome="failed"`, failedReasons, c.failed)
		writeSample(b, "events_total", s.labels+`,outcome="filtered",reason=""`, c.filtered-c.unauthenticated)
		writeSample(b, "events_total", s.labels+`,outcome="filtered",reason="unauthenticated"`, c.unauthenticated)
		writeSample(b, "events_total", s.labels+`,outcome="sampled_out",reason=""`, c.sampledOut)
	}
}

func writeMemory(b *bytes.Buffer, all []*middlewareReading) {
	writeHead(b, "memory_held_bytes", "gauge", "Bytes of bodies that are held, until their event has ended.")
	for _, m := range all {
		writeSample(b, "memory_held_bytes", `middleware="`+labelValue(m.name)+`"`, m.bytesHeld)
	}
	writeHead(b, "memory_limit_bytes", "gauge", "What bodies may take of memoryLimit: the first 8 MiB and a third of the rest.")
	for _, m := range all {
		writeSample(b, "memory_limit_bytes", `middleware="`+labelValue(m.name)+`"`, m.bytesLimit)
	}
}

func writeReasons(b *bytes.Buffer, name, labels string, known []string, counted map[string]uint64) {
	reasons := append([]string{}, known...)
	for reason := range counted {
		i := sort.SearchStrings(known, reason)
		if i == len(known) || known[i] != reason {
			reasons = append(reasons, reason)
		}
	}
	sort.Strings(reasons)
	for _, reason := range reasons {
		writeSample(b, name, labels+`,reason="`+labelValue(reason)+`"`, counted[reason])
	}
}

// writeHistogram writes all buckets as 0 before the first attempt, for the same reason
// for which all reasons are written.
func writeHistogram(b *bytes.Buffer, name, labels string, c *counts) {
	total := uint64(0)
	for i := 0; i <= len(attemptBounds); i++ {
		if i < len(c.attempts) {
			total += c.attempts[i]
		}
		bound := "+Inf"
		if i < len(attemptBounds) {
			bound = strconv.FormatFloat(attemptBounds[i], 'g', -1, 64)
		}
		writeSample(b, name+"_bucket", labels+`,le="`+bound+`"`, total)
	}
	writeSample(b, name+"_sum", labels, strconv.FormatFloat(c.seconds, 'g', -1, 64))
	writeSample(b, name+"_count", labels, total)
}

func writeEach(b *bytes.Buffer, all []labelled, name, kind, help string, value func(*reading) uint64) {
	writeHead(b, name, kind, help)
	for _, s := range all {
		writeSample(b, name, s.labels, value(s.r))
	}
}

func writeHead(b *bytes.Buffer, name, kind, help string) {
	fmt.Fprintf(b, "# HELP requestmirror_%s %s\n# TYPE requestmirror_%s %s\n", name, help, name, kind)
}

func writeSample(b *bytes.Buffer, name, labels string, value interface{}) {
	if labels == "" {
		fmt.Fprintf(b, "requestmirror_%s %v\n", name, value)
	} else {
		fmt.Fprintf(b, "requestmirror_%s{%s} %v\n", name, labels, value)
	}
}

var labelEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)

// labelValue also replaces bytes that are not UTF-8: one of them would cost the whole page.
func labelValue(s string) string {
	return labelEscapes.Replace(strings.ToValidUTF8(s, "\uFFFD"))
}
