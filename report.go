package requestmirror

import (
	"bytes"
	"fmt"
	"sort"
	"time"
)

const (
	reportType   = "io.opencommit.requestmirror.report.v1"
	reportSchema = "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/report.v1.schema.json"
)

// reporting is how a receiver learns what it did not get. A report does not go through
// the queue, so it takes no event's place; a worker that is free sends it, once. It
// counts from the birth of the pipeline, so one that gets lost does no harm.
// The pipeline's lock guards it.
type reporting struct {
	timer  *time.Timer
	due    bool
	closed bool   // whether the last report was made, before the last worker leaves
	told   string // what the last report said that arrived
}

type wireReport struct {
	SpecVersion     string         `json:"specversion"`
	ID              string         `json:"id"`
	Source          string         `json:"source"`
	Type            string         `json:"type"`
	Time            string         `json:"time"`
	DataContentType string         `json:"datacontenttype"`
	DataSchema      string         `json:"dataschema"`
	Data            wireReportData `json:"data"`
}

type wireReportData struct {
	Since      string      `json:"since"`
	Sequence   string      `json:"sequence"` // the last one given
	Seen       uint64      `json:"seen"`
	Filtered   uint64      `json:"filtered"`
	SampledOut uint64      `json:"sampled_out"`
	Delivered  uint64      `json:"delivered"`
	Waiting    uint64      `json:"waiting"`
	InFlight   uint64      `json:"in_flight"`
	Dropped    []wireCount `json:"dropped"`
	Failed     []wireCount `json:"failed"`
	Truncated  []wireCount `json:"truncated"`
	Final      bool        `json:"final"`
}

type wireCount struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

// startReports begins to report, if the operator wants that.
func startReports(p *pipeline) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.set.reportInterval > 0 {
		p.reporting.told = countsOf(p)
		p.reporting.timer = time.AfterFunc(p.set.reportInterval, func() { reportAgain(p) })
	}
}

func reportAgain(p *pipeline) {
	defer contain()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.retired {
		return
	}
	p.reporting.timer.Reset(p.set.reportInterval)
	if askReport(p) && p.running == 0 {
		p.running++
		go work(p)
	}
}

// askReport has a worker send a report, if there is news. The pipeline is locked.
func askReport(p *pipeline) bool {
	if p.set.reportInterval == 0 || p.forgotten || countsOf(p) == p.reporting.told {
		return false
	}
	p.reporting.due = true
	if p.idle > 0 || p.retired {
		notify(p) // a worker that is busy looks by itself when it is done
	}
	return true
}

// countsOf is equal as long as there is nothing new to report. The pipeline is locked.
func countsOf(p *pipeline) string {
	bookEarly(p.ledger, p.counts)
	c := p.counts
	return fmt.Sprint(p.sequence, c.filtered, c.sampledOut, c.delivered, sum(c.dropped), sum(c.failed), sum(c.truncated))
}

// takeReport is the report that is due, as a delivery. The pipeline is locked.
func takeReport(p *pipeline) *delivery {
	p.reporting.due = false
	if p.retired {
		notify(p) // what the notice that led here would have said
	}
	now := time.Now()
	d := &delivery{id: newID(now), report: countsOf(p)}
	c := p.counts
	enqueued := p.sequence - sum(c.dropped)
	e := &wireReport{
		SpecVersion: "1.0", ID: d.id, Source: p.set.source, Type: reportType, Time: now.UTC().Format(timeForm),
		DataContentType: "application/json", DataSchema: reportSchema,
	}
	e.Data = wireReportData{
		Since: p.born.UTC().Format(timeForm), Sequence: fmt.Sprintf(sequenceForm, p.boot, p.sequence),
		Seen: c.filtered + c.sampledOut + p.sequence, Filtered: c.filtered, SampledOut: c.sampledOut,
		Delivered: c.delivered, Waiting: enqueued - c.delivered - sum(c.failed) - c.inFlight, InFlight: c.inFlight,
		Dropped: wireCounts(c.dropped), Failed: wireCounts(c.failed), Truncated: wireCounts(c.truncated),
		Final: p.reporting.closed,
	}
	encodeJSON(&d.text, e)
	d.payload = bytes.TrimSuffix(d.text.Bytes(), []byte("\n"))
	if p.set.batchEvents > 1 {
		d.payload = append(append([]byte("["), d.payload...), ']')
	}
	return d
}

func wireCounts(counts map[string]uint64) []wireCount {
	list := []wireCount{}
	for reason, n := range counts {
		if n > 0 {
			list = append(list, wireCount{reason, n})
		}
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Reason < list[j].Reason })
	return list
}
