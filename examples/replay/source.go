package main

import (
	"bufio"
	"bytes"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	requestType = "io.opencommit.requestmirror.request.v1"
	reportType  = "io.opencommit.requestmirror.report.v1"

	maxLine  = 64 << 20 // bytes of an event or a batch
	maxHeld  = 64 << 20 // bytes that wait to be sorted, of a file, on top of a line
	remember = 100000   // ids, times two
)

// event is an event of any type. What is in its data is looked at when it is its turn.
type event struct {
	ID   string          `json:"id"`
	Type string          `json:"type"`
	Time time.Time       `json:"time"`
	Data json.RawMessage `json:"data"`

	name string // of the file
	line int
	n    int // of the event in it: of two at the same time, the first comes first
}

// source gives events of requests, one after the other, and false at the end.
type source func() (*event, bool)

// stream is a file that is read bit by bit. Events are nearly in order in it, as several
// workers of the middleware deliver them at once; so the next one is the earliest of a
// window.
type stream struct {
	name             string
	lines            *bufio.Reader
	window           int
	maxLine, maxHeld int
	sum              *summary

	line     []byte
	number   int // of the line
	n        int // events
	held     waiting
	bytes    int // of what is held
	ended    bool
	ids, old map[string]bool // of events that were read: what is there twice is sent once
}

func newStream(name string, r io.Reader, window int, sum *summary) *stream {
	return &stream{name: name, lines: bufio.NewReaderSize(r, 64<<10), window: window, maxLine: maxLine, maxHeld: maxHeld, sum: sum, ids: map[string]bool{}}
}

func (s *stream) next() (*event, bool) {
	for !s.ended && len(s.held) < s.window && s.bytes < s.maxHeld {
		s.read()
	}
	if len(s.held) == 0 {
		return nil, false
	}
	e := heap.Pop(&s.held).(*event)
	s.bytes -= len(e.Data)
	return e, true
}

// read takes the next line.
func (s *stream) read() {
	s.number++
	switch err := s.readLine(); {
	case err == io.EOF:
		s.ended = true
	case errors.Is(err, errTooLong):
		s.complain(err)
		return
	case err != nil:
		s.complain(err)
		s.ended = true
		return
	}
	line := bytes.TrimSpace(s.line)
	if len(line) == 0 {
		return
	}
	events := make([]*event, 1)
	into := any(&events[0])
	if line[0] == '[' {
		into = &events
	}
	if err := json.Unmarshal(line, into); err != nil {
		s.complain(err)
		return
	}
	for _, e := range events {
		if e == nil || e.Type == "" {
			s.complain(errors.New("not a CloudEvent: no type"))
			continue
		}
		s.take(e)
	}
}

func (s *stream) take(e *event) {
	switch {
	case e.Type == reportType:
		s.sum.skip("report")
	case e.Type != requestType:
		s.sum.skip("of another type")
	case e.ID == "" || e.Time.IsZero():
		s.complain(errors.New("no id or time"))
	case s.ids[e.ID] || s.old[e.ID]:
		s.sum.skip("duplicate")
	default:
		if len(s.ids) >= remember {
			s.old, s.ids = s.ids, map[string]bool{}
		}
		s.ids[e.ID] = true
		s.n++
		e.name, e.line, e.n = s.name, s.number, s.n
		s.bytes += len(e.Data)
		heap.Push(&s.held, e)
	}
}

func (s *stream) complain(err error) { s.sum.complain(fmt.Sprintf("%s:%d: %v", s.name, s.number, err)) }

var errTooLong = errors.New("too long")

// readLine reads a line into s.line. Of one that is too long it keeps nothing.
func (s *stream) readLine() error {
	if cap(s.line) > 1<<20 {
		s.line = nil // one large batch is no reason to hold so much to the end
	}
	s.line = s.line[:0]
	long := false
	for {
		part, err := s.lines.ReadSlice('\n')
		if long = long || len(s.line)+len(part) > s.maxLine; long {
			s.line = nil
		} else {
			s.line = append(s.line, part...)
		}
		switch {
		case err == bufio.ErrBufferFull:
		case long && (err == nil || err == io.EOF):
			return errTooLong
		default:
			return err
		}
	}
}

// merge puts the streams of several middlewares or receivers into one, by time.
func merge(streams []*stream) source {
	heads := make([]*event, len(streams))
	for i, s := range streams {
		heads[i], _ = s.next()
	}
	return func() (*event, bool) {
		first := -1
		for i, e := range heads {
			if e != nil && (first < 0 || e.Time.Before(heads[first].Time)) {
				first = i
			}
		}
		if first < 0 {
			return nil, false
		}
		e := heads[first]
		heads[first], _ = streams[first].next()
		return e, true
	}
}

// waiting is a heap of events.
type waiting []*event

func (w waiting) Len() int { return len(w) }

func (w waiting) Less(i, j int) bool {
	if !w[i].Time.Equal(w[j].Time) {
		return w[i].Time.Before(w[j].Time)
	}
	return w[i].n < w[j].n
}

func (w waiting) Swap(i, j int) { w[i], w[j] = w[j], w[i] }

func (w *waiting) Push(x any) { *w = append(*w, x.(*event)) }

func (w *waiting) Pop() any {
	last := len(*w) - 1
	e := (*w)[last]
	(*w)[last] = nil
	*w = (*w)[:last]
	return e
}

func (e *event) where() string { return fmt.Sprintf("%s:%d", e.name, e.line) }
