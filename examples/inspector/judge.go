package main

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/text/language"
	"golang.org/x/text/message"
)

const (
	requestType = "io.opencommit.requestmirror.request.v1"
	reportType  = "io.opencommit.requestmirror.report.v1"

	maxShort    = 100 // bytes of a method, a client, a content type in a row
	maxLong     = 400 // bytes of a path, a query, a source in a row
	maxProblems = 20  // that are kept of one event

	// Numbers above this are no longer exact in JavaScript, and no middleware gets there.
	maxNumber = 1<<53 - 1
)

//go:embed schema/*.json
var schemas embed.FS

// event is an event that was read and judged.
type event struct {
	raw      []byte // on one line
	id       string
	problems []string // what the schema, or the sums of a report, have against it
	row      row
	stream   key
	number   uint64
	report   *report // of a report whose problems are none
}

// row is what the list of the page has of an event. Its strings are cut, so that it is
// bounded whatever the event has; they are somebody else's words all the same.
type row struct {
	N         uint64   `json:"n"` // counts what was entered
	ID        string   `json:"id"`
	Kind      string   `json:"kind"` // request, report or other
	Time      int64    `json:"time,omitempty"`
	At        int64    `json:"at"` // both in milliseconds since 1970
	Source    string   `json:"source,omitempty"`
	Boot      string   `json:"boot,omitempty"`
	Number    uint64   `json:"number,omitempty"`
	Method    string   `json:"method,omitempty"`
	Path      string   `json:"path,omitempty"`
	Query     string   `json:"query,omitempty"`
	Host      string   `json:"host,omitempty"`
	Client    string   `json:"client,omitempty"`
	Status    int      `json:"status,omitempty"`
	Duration  float64  `json:"duration,omitempty"`
	Media     string   `json:"media,omitempty"`
	Size      *int64   `json:"size,omitempty"`
	Cut       string   `json:"cut,omitempty"`
	Latency   *float64 `json:"latency,omitempty"` // milliseconds from the request to its receipt
	Delivered uint64   `json:"delivered,omitempty"`
	Lost      uint64   `json:"lost,omitempty"` // both of a report
	Signature string   `json:"signature"`
	Problems  int      `json:"problems,omitempty"`
}

// judge knows the schemas.
type judge struct{ request, report *jsonschema.Schema }

func newJudge() (*judge, error) {
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat() // that "date-time" and "base64" are rules and not only remarks
	compiler.AssertContent()
	compile := func(name string) (*jsonschema.Schema, error) {
		raw, err := schemas.ReadFile("schema/" + name)
		if err != nil {
			return nil, err
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		// The URL is the $id: a schema with another one does not compile here.
		url := "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/" + name
		if err := compiler.AddResource(url, doc); err != nil {
			return nil, err
		}
		return compiler.Compile(url)
	}
	request, err := compile("request.v1.schema.json")
	if err != nil {
		return nil, err
	}
	report, err := compile("report.v1.schema.json")
	return &judge{request, report}, err
}

// wire is the part of an event that is looked at here. The page reads the rest.
type wire struct {
	ID       *string `json:"id"`
	Type     *string `json:"type"`
	Source   string  `json:"source"`
	Time     string  `json:"time"`
	Sequence string  `json:"sequence"`
	Data     struct {
		HTTP struct {
			Request struct {
				Method string              `json:"method"`
				Header map[string][]string `json:"header"`
				Body   *wireBody           `json:"body"`
			} `json:"request"`
			Response struct {
				Status int `json:"status_code"`
			} `json:"response"`
		} `json:"http"`
		URL      struct{ Path, Query string } `json:"url"`
		Client   struct{ Address string }     `json:"client"`
		Server   struct{ Address string }     `json:"server"`
		Duration float64                      `json:"duration_ms"`
		report
	} `json:"data"`
}

type wireBody struct {
	Size   *int64 `json:"size"`
	Reason string `json:"truncated_reason"`
}

// event reads one event. It takes what has an id and a type, however wrong the rest is:
// what is wrong is what somebody who opens an inspector wants to see.
func (j *judge) event(raw json.RawMessage) (event, error) {
	var w wire
	// A field of another type than it should have is left out, and the schema says so.
	if err := json.Unmarshal(raw, &w); err != nil && !isWrongType(err) {
		return event{}, err
	}
	switch {
	case w.ID == nil || w.Type == nil || *w.Type == "":
		return event{}, errors.New("no id or type")
	case *w.ID == "" || *w.ID == "." || *w.ID == ".." || len(*w.ID) > maxID || strings.ContainsFunc(*w.ID, unicode.IsControl):
		return event{}, errors.New("an id that has no place in a URL")
	}
	var line bytes.Buffer
	if err := json.Compact(&line, raw); err != nil {
		return event{}, err
	}
	e := event{raw: bytes.Clone(line.Bytes()), id: *w.ID} // of its own size, which counts
	e.row = row{ID: e.id, Kind: "other", Source: cut(w.Source, maxLong)}
	if at, err := time.Parse(time.RFC3339Nano, w.Time); err == nil {
		e.row.Time = at.UnixMilli()
	}
	switch *w.Type {
	case requestType:
		e.problems = j.problems(j.request, e.raw)
		e.describe(&w)
		if e.stream, e.number = streamOf(w.Source, w.Sequence); e.number > 0 {
			e.row.Boot, e.row.Number = e.stream.boot, e.number
		}
	case reportType:
		e.row.Kind = "report"
		e.problems = j.problems(j.report, e.raw)
		r := w.Data.report
		if e.stream, r.number = streamOf(w.Source, r.Sequence); len(e.problems) == 0 {
			if problem := r.check(); problem != "" {
				e.problems = []string{problem}
			} else {
				e.report = &r
			}
		}
		e.row.Boot, e.row.Number = e.stream.boot, r.number
		e.row.Delivered, e.row.Lost = r.Delivered, r.Dropped.sum()+r.Failed.sum()
	}
	e.row.Problems = len(e.problems)
	return e, nil
}

func (e *event) describe(w *wire) {
	d, r := &w.Data, &e.row
	r.Kind = "request"
	r.Method = cut(d.HTTP.Request.Method, maxShort)
	r.Path, r.Query = cut(d.URL.Path, maxLong), cut(d.URL.Query, maxLong)
	r.Host, r.Client = cut(d.Server.Address, maxShort), cut(d.Client.Address, maxShort)
	r.Status, r.Duration = d.HTTP.Response.Status, d.Duration
	if media := d.HTTP.Request.Header["content-type"]; len(media) > 0 {
		r.Media = cut(media[0], maxShort)
	}
	if b := d.HTTP.Request.Body; b != nil {
		r.Size, r.Cut = b.Size, cut(b.Reason, maxShort)
		if r.Size == nil {
			r.Size = new(int64)
			*r.Size = -1 // there is a body, of unknown length
		}
	}
}

func isWrongType(err error) bool {
	wrong := new(json.UnmarshalTypeError)
	return errors.As(err, &wrong)
}

// streamOf takes a sequence apart: 12 hex digits, a dash and 20 digits.
func streamOf(source, sequence string) (key, uint64) {
	boot, digits, _ := strings.Cut(sequence, "-")
	number, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || len(boot) != 12 || len(digits) != 20 || number > maxNumber || len(source) > maxLong {
		return key{}, 0
	}
	return key{source, boot}, number
}

// problems is what a schema has against an event.
func (j *judge) problems(schema *jsonschema.Schema, raw []byte) (list []string) {
	if !utf8.Valid(raw) {
		list = append(list, "/: not UTF-8")
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		return []string{cut(err.Error(), maxLong)}
	}
	err = schema.Validate(doc)
	invalid, ok := err.(*jsonschema.ValidationError)
	if !ok {
		return list
	}
	english := message.NewPrinter(language.English)
	var collect func(*jsonschema.ValidationError)
	collect = func(e *jsonschema.ValidationError) {
		if len(e.Causes) == 0 && len(list) < maxProblems {
			where := ""
			for _, part := range e.InstanceLocation {
				where += "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(part)
			}
			if where == "" {
				where = "/"
			}
			if text := cut(cut(where, maxLong/2)+": "+e.ErrorKind.LocalizedString(english), maxLong); !slices.Contains(list, text) {
				list = append(list, text)
			}
		}
		for _, cause := range e.Causes {
			collect(cause)
		}
	}
	collect(invalid)
	return list
}

// report is the data of a report. Counts are those since the pipeline began.
type report struct {
	Sequence   string `json:"sequence"`
	Seen       uint64 `json:"seen"`
	Filtered   uint64 `json:"filtered"`
	SampledOut uint64 `json:"sampled_out"`
	Delivered  uint64 `json:"delivered"`
	Waiting    uint64 `json:"waiting"`
	InFlight   uint64 `json:"in_flight"`
	Dropped    counts `json:"dropped"`
	Failed     counts `json:"failed"`
	Final      bool   `json:"final"`

	number uint64 // that in Sequence
}

type counts []struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

func (c counts) sum() (n uint64) {
	for _, one := range c {
		n += one.Count
	}
	return n
}

// check says what does not add up, if anything.
func (r *report) check() string {
	requests := r.Filtered + r.SampledOut + r.number
	events := r.Delivered + r.Dropped.sum() + r.Failed.sum() + r.Waiting + r.InFlight
	switch {
	case r.Seen != requests:
		return fmt.Sprintf("/data: does not add up: seen is %d; filtered, sampled_out and the number are %d", r.Seen, requests)
	case r.number != events:
		return fmt.Sprintf("/data: does not add up: the number is %d; delivered, dropped, failed, waiting and in_flight are %d", r.number, events)
	}
	return ""
}

// cut shortens a text to a number of bytes, at the end of a character.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	end := most
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "…"
}
