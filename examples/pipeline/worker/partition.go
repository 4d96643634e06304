package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
)

const (
	mostEvents   = 400 // of one commit: a verdict and a client for each, and the cursor, are one batch
	mostBytes    = 4 << 20
	mostClients  = 50_000 // that are remembered here, too, besides in the store
	slowest      = 5 * time.Second
	cleanedEvery = 10 * time.Second
	longest      = 10 * time.Second // without an event, until the consumer is made anew
)

// entry is a value of the store, with the sequence that it was written at; 0 if it is not
// there. It is replaced on the condition that this is so still.
type entry[T any] struct {
	value T
	at    uint64
}

// cursor is how far a partition has come.
type cursor struct {
	Event uint64 `json:"event"` // the sequence of the last event that is judged
}

// partition judges the events of one partition, in the order of the stream. All that a
// batch of events comes to is one commit: their verdicts, what is remembered of their
// clients, and the cursor, each on the condition that it is as it was read. So either all
// of it happens or nothing, and if two workers are at the same partition, or one that was
// given up comes back, only one of them can commit, and the other one begins anew.
type partition struct {
	*Worker
	number  int
	cursor  entry[cursor]
	clients map[string]entry[Client]
	cleaned time.Time
	careful bool // look whether there are verdicts already
}

// work is done when ctx ends. What goes wrong makes it begin anew, at the cursor.
func (p *partition) work(ctx context.Context) {
	for ctx.Err() == nil {
		err := p.follow(ctx)
		if err == nil || ctx.Err() != nil {
			continue
		}
		// Either another worker was here, or an event came once more after the stream had
		// forgotten its id.
		p.careful = stream.IsConflict(err)
		pause := 100 * time.Millisecond
		if !p.careful {
			log.Printf("partition %d: %v", p.number, err)
			pause = time.Second
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// follow judges from the cursor on.
func (p *partition) follow(ctx context.Context) error {
	p.clients = map[string]entry[Client]{}
	var err error
	if p.cursor, err = load[cursor](ctx, p.verdicts, p.key()); err != nil {
		return fmt.Errorf("the cursor: %w", err)
	}
	consumer, err := p.js.OrderedConsumer(ctx, stream.Events, jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{stream.Subject(p.number)},
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy, OptStartSeq: p.cursor.value.Event + 1,
		InactiveThreshold: 15 * time.Second, // it goes so long after it was left
	})
	if err != nil {
		return fmt.Errorf("the events: %w", err)
	}
	incoming, err := consumer.Messages(jetstream.PullMaxMessagesWithBytesLimit(mostEvents, mostBytes),
		jetstream.PullExpiry(4*time.Second), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		return fmt.Errorf("the events: %w", err)
	}
	defer incoming.Stop() // which ends the goroutine, too
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, failed := make(chan jetstream.Msg), make(chan error, 1)
	go func() {
		for {
			m, err := incoming.Next()
			if err != nil {
				failed <- err
				return
			}
			select {
			case events <- m:
			case <-ctx.Done():
				return // and none of those that come after this one is judged
			}
		}
	}()
	for {
		var batch []jetstream.Msg
		select {
		case m := <-events:
			batch = gather(m, events)
		case err := <-failed:
			return fmt.Errorf("the events: %w", err)
		case <-time.After(longest):
			// Nothing may have come, or the consumer is gone with its server, which the client
			// library finds out in its own time.
			return nil
		case <-ctx.Done():
			return nil
		}
		// A commit that has begun is not given up half-way: it would not be known what came of it.
		if err := p.commit(context.WithoutCancel(ctx), batch); err != nil {
			return err
		}
		p.clean(ctx)
	}
}

// gather takes what is there already, or comes within a moment.
func gather(first jetstream.Msg, events <-chan jetstream.Msg) []jetstream.Msg {
	batch, size := []jetstream.Msg{first}, len(first.Data())
	moment := time.NewTimer(5 * time.Millisecond)
	defer moment.Stop()
	for len(batch) < mostEvents && size < mostBytes {
		select {
		case m := <-events:
			batch = append(batch, m)
			size += len(m.Data())
		case <-moment.C:
			return batch
		}
	}
	return batch
}

// commit judges a batch and writes all that comes of it, at once.
func (p *partition) commit(ctx context.Context, batch []jetstream.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, slowest)
	defer cancel()
	var writes []*nats.Msg
	var changed []string // clients, in the order of their writes
	clients := map[string]entry[Client]{}
	next := p.cursor.value
	for _, m := range batch {
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		next.Event = meta.Sequence.Stream
		id := m.Headers().Get(jetstream.MsgIDHeader)
		if id == "" {
			continue // not of a gateway
		}
		if p.careful {
			if known, err := load[Verdict](ctx, p.verdicts, stream.Key("verdict", id)); err != nil {
				return err
			} else if known.at > 0 {
				continue
			}
		}
		name := m.Headers().Get(stream.ClientHeader)
		c, ok := clients[name]
		if !ok {
			if c, err = p.client(ctx, name); err != nil {
				return err
			}
			changed = append(changed, name)
		}
		v := Judge(m.Data(), &c.value)
		v.Event = id
		clients[name] = c
		writes = append(writes, write(stream.Key("verdict", id), entry[Verdict]{value: v}))
	}
	for _, name := range changed {
		writes = append(writes, write(stream.Key("client", name), clients[name]))
	}
	writes = append(writes, write(p.key(), entry[cursor]{next, p.cursor.at}))
	first, err := stream.Commit(ctx, p.nc, writes)
	if err != nil {
		return err
	}
	p.careful = false
	p.judged.Add(int64(len(writes) - len(changed) - 1))
	last := first + uint64(len(writes)) - 1
	p.cursor = entry[cursor]{next, last}
	for i, name := range changed {
		p.clients[name] = entry[Client]{clients[name].value, last - uint64(len(changed)-i)}
	}
	return nil
}

// client returns what is remembered of a client, from here or from the store.
func (p *partition) client(ctx context.Context, name string) (entry[Client], error) {
	if c, ok := p.clients[name]; ok {
		c.value.Wrote = append([]time.Time(nil), c.value.Wrote...) // if the commit fails, it is as it was
		return c, nil
	}
	if len(p.clients) >= mostClients {
		p.clients = map[string]entry[Client]{}
	}
	return load[Client](ctx, p.verdicts, stream.Key("client", name))
}

// clean removes what is judged from the stream, so that it has room. It is no matter if
// that fails: the next one removes it, too.
func (p *partition) clean(ctx context.Context) {
	if time.Since(p.cleaned) < cleanedEvery {
		return
	}
	p.cleaned = time.Now()
	ctx, cancel := context.WithTimeout(ctx, slowest)
	defer cancel()
	err := p.events.Purge(ctx, jetstream.WithPurgeSubject(stream.Subject(p.number)), jetstream.WithPurgeSequence(p.cursor.value.Event+1))
	if err != nil && ctx.Err() == nil {
		log.Printf("partition %d: not cleaned: %v", p.number, err)
	}
}

func (p *partition) key() string { return stream.Key("cursor", strconv.Itoa(p.number)) }

// load reads a value of the store.
func load[T any](ctx context.Context, store jetstream.Stream, key string) (e entry[T], err error) {
	ctx, cancel := context.WithTimeout(ctx, slowest)
	defer cancel()
	m, err := store.GetLastMsgForSubject(ctx, key)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return e, nil
	}
	if err != nil {
		return e, err
	}
	e.at = m.Sequence
	return e, json.Unmarshal(m.Data, &e.value)
}

// write makes the message that puts a value into the store, in place of the one that was
// read there.
func write[T any](key string, e entry[T]) *nats.Msg {
	raw, err := json.Marshal(e.value)
	if err != nil {
		panic(err) // not with these types
	}
	return &nats.Msg{Subject: key, Data: raw, Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(e.at, 10)},
	}}
}
