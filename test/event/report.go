package event

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloudevents/sdk-go/v2/binding"
	ce "github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
)

const (
	// ReportType of the events that ReadReport reads.
	ReportType = "io.opencommit.requestmirror.report.v1"
	// ReportSchemaURL is what every report names as its dataschema.
	ReportSchemaURL = "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/report.v1.schema.json"
	// BatchContentType of a delivery of a batch. Without a charset, unlike
	// ContentType: the SDK's IsHTTPBatch would not know it by another text.
	BatchContentType = "application/cloudevents-batch+json"

	reportSchemaFile = "docs/reference/report.v1.schema.json"
)

// IsReport says whether a payload has a report, without reading it. What a request
// holds cannot look like one, as its quotes are escaped in an event.
func IsReport(payload []byte) bool {
	return bytes.Contains(payload, []byte(`"type":"`+ReportType+`"`))
}

// Report is a valid report, whose counts add up.
type Report struct {
	ID     string
	Source string
	Type   string
	Time   time.Time

	Since      time.Time
	Boot       string // the part of data.sequence before the dash
	Sequence   int64  // the number after it: so many events had one
	Seen       int64
	Filtered   int64
	SampledOut int64
	Delivered  int64
	Waiting    int64
	InFlight   int64
	Dropped    map[string]int64 // by reason
	Failed     map[string]int64
	Truncated  map[string]int64
	Final      bool

	Raw []byte // as delivered
}

// Enqueued is how many events went into the queue.
func (r Report) Enqueued() int64 { return r.Sequence - sum(r.Dropped) }

// Batch is what came together, by type, each in the order in which it came.
type Batch struct {
	Events  []Event
	Reports []Report
}

// reportData is written from the schema, independently of the plugin's own types.
type reportData struct {
	Since      time.Time     `json:"since"`
	Sequence   string        `json:"sequence"`
	Seen       int64         `json:"seen"`
	Filtered   int64         `json:"filtered"`
	SampledOut int64         `json:"sampled_out"`
	Delivered  int64         `json:"delivered"`
	Waiting    int64         `json:"waiting"`
	InFlight   int64         `json:"in_flight"`
	Dropped    []reasonCount `json:"dropped"`
	Failed     []reasonCount `json:"failed"`
	Truncated  []reasonCount `json:"truncated"`
	Final      bool          `json:"final"`
}

type reasonCount struct {
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
}

var reportSchema = compileOnce(reportSchemaFile, ReportSchemaURL)

// ReadReport reads one report, and only if Parse's rules hold for it, with its
// own schema, and its counts add up.
func ReadReport(raw []byte) (Report, error) {
	e, err := parse(raw, reportSchema)
	if err != nil {
		return Report{}, err
	}
	if err := e.Validate(); err != nil {
		return Report{}, fmt.Errorf("cloudevents: %w", err)
	}
	var d reportData
	if err := e.DataAs(&d); err != nil {
		return Report{}, fmt.Errorf("cloudevents: data: %w", err)
	}
	boot, digits, _ := strings.Cut(d.Sequence, "-")
	number, err := strconv.ParseInt(digits, 10, 64)
	if err != nil {
		return Report{}, fmt.Errorf("data.sequence: %w", err)
	}
	out := Report{
		ID: e.ID(), Source: e.Source(), Type: e.Type(), Time: e.Time(),
		Since: d.Since, Boot: boot, Sequence: number,
		Seen: d.Seen, Filtered: d.Filtered, SampledOut: d.SampledOut,
		Delivered: d.Delivered, Waiting: d.Waiting, InFlight: d.InFlight, Final: d.Final, Raw: raw,
	}
	for _, list := range []struct {
		name string
		from []reasonCount
		to   *map[string]int64
	}{{"dropped", d.Dropped, &out.Dropped}, {"failed", d.Failed, &out.Failed}, {"truncated", d.Truncated, &out.Truncated}} {
		counts := map[string]int64{}
		for _, one := range list.from {
			if counts[one.Reason] != 0 {
				return Report{}, fmt.Errorf("%s: reason %s is there twice", list.name, one.Reason)
			}
			counts[one.Reason] = one.Count
		}
		*list.to = counts
	}
	return out, out.check()
}

// check is what a schema can't say.
func (r Report) check() error {
	if got := r.Filtered + r.SampledOut + r.Sequence; got != r.Seen {
		return fmt.Errorf("report: got %d filtered, sampled out and numbered; want the %d seen", got, r.Seen)
	}
	if got := r.Delivered + sum(r.Failed) + r.Waiting + r.InFlight; got != r.Enqueued() {
		return fmt.Errorf("report: got %d delivered, failed, waiting and in flight; want the %d enqueued", got, r.Enqueued())
	}
	// Of delivered and failed events only: those in flight are not counted, yet.
	if got, most := sum(r.Truncated), r.Delivered+sum(r.Failed); got > most {
		return fmt.Errorf("report: got %d truncated; want at most the %d delivered and failed", got, most)
	}
	if r.Time.Before(r.Since) {
		return fmt.Errorf("report: written at %s, before %s", r.Time, r.Since)
	}
	return nil
}

func sum(counts map[string]int64) (n int64) {
	for _, count := range counts {
		n += count
	}
	return n
}

// Read reads one event of either type.
func Read(raw []byte) (Batch, error) {
	var b Batch
	return b, b.add(raw)
}

// ReadBatch reads a JSON array of events of either type, as Read reads each.
func ReadBatch(raw []byte) (Batch, error) {
	if err := checkJSON(raw); err != nil {
		return Batch{}, err
	}
	var members []json.RawMessage
	if err := json.Unmarshal(raw, &members); err != nil {
		return Batch{}, fmt.Errorf("batch: %w", err)
	}
	if len(members) == 0 {
		return Batch{}, errors.New("batch: empty, or null")
	}
	var b Batch
	for i, member := range members {
		if err := b.add(member); err != nil {
			return Batch{}, fmt.Errorf("batch: event %d: %w", i, err)
		}
	}
	return b, nil
}

func (b *Batch) add(raw []byte) error {
	var head struct {
		Type string `json:"type"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return fmt.Errorf("json: %w", err)
	}
	if head.Type == ReportType {
		r, err := ReadReport(raw)
		if err != nil {
			return err
		}
		b.Reports = append(b.Reports, r)
		return nil
	}
	e, err := Parse(raw)
	if err != nil {
		return err
	}
	b.Events = append(b.Events, e)
	return nil
}

// ids are those of events and reports.
func (b Batch) ids() map[string]bool {
	ids := map[string]bool{}
	for _, e := range b.Events {
		ids[e.ID] = true
	}
	for _, r := range b.Reports {
		ids[r.ID] = true
	}
	return ids
}

// ReadDelivery reads a delivery, of one event of either type or of a batch, the
// way a receiver with the CloudEvents SDK does: its HTTP binding recognises
// which by the content type.
func ReadDelivery(h http.Header, raw []byte) (Batch, error) {
	ct := h.Values("Content-Type")
	if len(ct) != 1 || ct[0] != ContentType && ct[0] != BatchContentType {
		return Batch{}, fmt.Errorf("content type: got %q; want %q or %q", ct, ContentType, BatchContentType)
	}
	var events []ce.Event
	var b Batch
	msg := cehttp.NewMessage(h, io.NopCloser(bytes.NewReader(raw)))
	switch enc := msg.ReadEncoding(); enc {
	case binding.EncodingStructured:
		e, err := binding.ToEvent(context.Background(), msg)
		if err != nil {
			return Batch{}, fmt.Errorf("cloudevents: %w", err)
		}
		events = append(events, *e)
		if b, err = Read(raw); err != nil {
			return Batch{}, err
		}
	case binding.EncodingBatch:
		var err error
		if events, err = binding.ToEvents(context.Background(), msg, msg.BodyReader); err != nil {
			return Batch{}, fmt.Errorf("cloudevents: %w", err)
		}
		if b, err = ReadBatch(raw); err != nil {
			return Batch{}, err
		}
	default:
		return Batch{}, fmt.Errorf("cloudevents: encoding %s, want structured or batch", enc)
	}
	ids := b.ids()
	if len(events) != len(b.Events)+len(b.Reports) || len(ids) != len(events) {
		return Batch{}, fmt.Errorf("cloudevents: the binding read %d events with %d ids; want %d", len(events), len(ids), len(b.Events)+len(b.Reports))
	}
	for _, e := range events {
		if !ids[e.ID()] {
			return Batch{}, errors.New("cloudevents: the binding and the format read different events")
		}
	}
	return b, nil
}
