package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"sync"
	"time"
)

const (
	remember = 100000 // ids, times two, of events that were dropped from the journal, too
	overhead = 512    // bytes that an entry takes beside its texts, about
)

// journal keeps the last events, bounded in number and bytes. Whoever reads it keeps a
// place in it and asks for what comes after: there is no queue for a reader, so a slow
// one takes no memory and nobody waits for it.
type journal struct {
	keep   int
	memory int64

	mu      sync.Mutex
	epoch   string           // another one after each clear, and in each process
	entries []entry          // a ring of the last ones: that with number n is at (n-1) % keep
	first   uint64           // number of the oldest, 1 at the beginning
	last    uint64           // number of the newest, 0 at the beginning
	held    int64            // bytes
	byID    map[string]entry // of those in the ring, without its texts
	ids     map[idHash]struct{}
	old     map[idHash]struct{} // the generation before
	changed chan struct{}       // closed, and another one made, when something was entered

	streams streams
	pulse   pulse
}

// entry is an event in the journal.
type entry struct {
	n        uint64
	raw      []byte
	row      []byte // JSON
	id       string
	delivery *about
	problems []string
	repeats  *int // how often it came again
}

// about is what all events of a delivery have in common.
type about struct {
	At        time.Time `json:"at"`
	Signature string    `json:"signature"`
	WebhookID string    `json:"webhook_id,omitempty"`
	Encoding  string    `json:"encoding,omitempty"`
	Bytes     int       `json:"bytes"`
	Events    int       `json:"events"`
	Batch     bool      `json:"batch"`
}

// idHash stands for an id, which may be long.
type idHash [16]byte

func hashOf(id string) idHash {
	sum := sha256.Sum256([]byte(id))
	return idHash(sum[:16])
}

func newJournal(now time.Time, keep int, memory int64) *journal {
	return &journal{
		keep: keep, memory: memory, epoch: rand.Text()[:8], first: 1,
		byID: map[string]entry{}, ids: map[idHash]struct{}{}, changed: make(chan struct{}),
		streams: newStreams(now, keep), pulse: newPulse(now),
	}
}

// enter puts the events of a delivery into the journal, each once.
func (j *journal) enter(d delivery) {
	j.mu.Lock()
	defer j.mu.Unlock()
	shared := &about{d.at, d.signature, d.webhookID, d.encoding, d.bytes, len(d.events), d.batch}
	j.pulse.delivery(d.at, d.bytes)
	for _, e := range d.events {
		if j.known(e.id) {
			j.pulse.repeat()
			if known, ok := j.byID[e.id]; ok {
				*known.repeats++
			}
			continue
		}
		j.enterOne(d, e, shared)
	}
	close(j.changed)
	j.changed = make(chan struct{})
}

func (j *journal) enterOne(d delivery, e event, shared *about) {
	j.last++
	e.row.N, e.row.At, e.row.Signature = j.last, d.at.UnixMilli(), d.signature
	if e.row.Time != 0 && e.row.Kind == "request" {
		latency := float64(e.row.At - e.row.Time)
		e.row.Latency = &latency
	}
	j.pulse.event(d.at, &e.row)
	if e.report != nil {
		if s, ok := j.streams.report(e.stream, j.last, d.at, e.report); ok {
			j.pulse.report(s)
		}
	} else if e.number > 0 && e.stream != (key{}) {
		j.streams.event(e.stream, j.last, d.at, e.number)
	}
	row, err := json.Marshal(e.row)
	if err != nil {
		panic(err) // numbers and texts: it has nothing that JSON has not
	}
	one := entry{n: j.last, raw: e.raw, row: row, id: e.id, delivery: shared, problems: e.problems, repeats: new(int)}
	for j.last-j.first >= uint64(j.keep) || j.held+one.size() > j.memory && j.first < j.last {
		j.dropOldest()
	}
	j.streams.keepFrom(j.first)
	if len(j.entries) < j.keep && int(j.last) == len(j.entries)+1 {
		j.entries = append(j.entries, one) // grows with what comes, up to keep
	} else {
		*j.at(j.last) = one
	}
	j.held += one.size()
	j.byID[e.id] = entry{n: one.n, repeats: one.repeats}
}

func (j *journal) at(n uint64) *entry { return &j.entries[(n-1)%uint64(j.keep)] }

func (e *entry) size() int64 {
	size := overhead + len(e.raw) + len(e.row) + 2*len(e.id)
	for _, p := range e.problems {
		size += len(p)
	}
	return int64(size)
}

func (j *journal) dropOldest() {
	oldest := j.at(j.first)
	j.held -= oldest.size()
	delete(j.byID, oldest.id)
	*oldest = entry{}
	j.first++
}

// known says whether an id came before, and knows it from now on.
func (j *journal) known(id string) bool {
	h := hashOf(id)
	if _, ok := j.ids[h]; ok {
		return true
	}
	if _, ok := j.old[h]; ok {
		return true
	}
	if len(j.ids) == remember {
		j.old, j.ids = j.ids, map[idHash]struct{}{}
	}
	j.ids[h] = struct{}{}
	return false
}

func (j *journal) refuse(now time.Time, why string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pulse.refuse(now, why)
}

// clear forgets the events. What came before is no gap afterwards, and what comes a
// second time is still known.
func (j *journal) clear(now time.Time) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.epoch = rand.Text()[:8]
	j.entries, j.first, j.last, j.held, j.byID = nil, 1, 0, 0, map[string]entry{}
	j.streams.clear()
	j.pulse = newPulse(now)
	close(j.changed)
	j.changed = make(chan struct{})
}

// place is a reader's place in the journal: it has what is up to n.
type place struct {
	epoch string
	n     uint64
}

// since returns what comes after a place, most rows at a time, and the place after it.
// If the reader lost its place, because what comes next was dropped or cleared, it is
// to start anew, and the rows are those from the oldest on. The channel is closed when
// there is more.
func (j *journal) since(p place, most int) (rows [][]byte, next place, anew bool, changed <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if p.epoch != j.epoch || p.n+1 < j.first || p.n > j.last {
		anew = true
		p = place{j.epoch, j.first - 1}
	}
	for n := p.n + 1; n <= j.last && len(rows) < most; n++ {
		rows = append(rows, j.at(n).row)
		p.n = n
	}
	return rows, p, anew, j.changed
}

// find returns the event with an id.
func (j *journal) find(id string) (entry, int, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	known, ok := j.byID[id]
	if !ok {
		return entry{}, 0, false
	}
	return *j.at(known.n), *known.repeats, true
}

// all returns the events, the oldest first. They do not change any more.
func (j *journal) all() [][]byte {
	j.mu.Lock()
	defer j.mu.Unlock()
	list := make([][]byte, 0, len(j.entries))
	for n := j.first; n <= j.last; n++ {
		list = append(list, j.at(n).raw)
	}
	return list
}

// bounds is what the page needs to keep no more than the journal does.
type bounds struct {
	First uint64 `json:"first"`
	Last  uint64 `json:"last"`
	Held  int64  `json:"held"`
}

// state is all that is not a row: gaps and counts.
func (j *journal) state(now time.Time, since int64) (gapList, pulseList, bounds) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.streams.gaps(now), j.pulse.since(now, since), bounds{j.first, j.last, j.held}
}
