// Package stream is what gateways and workers agree on: two streams of NATS JetStream,
// the names in them, and how a batch is written to one of them, all of it or nothing.
//
//	EVENTS       events.0 … events.15   one for each partition of the clients
//	             events.reports         loss reports
//	KV_verdicts  verdict.<event id>     what became of an event
//	             client.<key>           what is remembered of a client
//	             cursor.<partition>     the last event of a partition that is in all this
package stream

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

const (
	Events   = "EVENTS"
	Reports  = "events.reports"
	Bucket   = "verdicts"
	Verdicts = "KV_" + Bucket // the stream under the bucket

	// Partitions is how many workers can be busy at most. A client must not change its
	// partition while events of it wait, so empty the stream before this is changed.
	Partitions = 16

	// ClientHeader is the header of an event's message that has the key of its client.
	ClientHeader = "Client"

	// MaxBatch is how many messages a server takes as one batch.
	MaxBatch = 1000

	// window is how long the stream knows an event again by its id. The middleware makes
	// no attempt after maxAge, which must be shorter.
	window = 10 * time.Minute
)

// Subject is where the events of a partition are.
func Subject(partition int) string { return "events." + strconv.Itoa(partition) }

// Partition is that of a client.
func Partition(client string) int {
	h := fnv.New32a()
	_, _ = h.Write([]byte(client))
	return int(h.Sum32() % Partitions)
}

// Key is the subject of a key in the bucket of verdicts.
func Key(kind, name string) string { return "$KV." + Bucket + "." + kind + "." + name }

// Connect connects to one of the servers, and to another one when it is gone.
func Connect(urls, name string) (*nats.Conn, error) {
	return nats.Connect(urls, nats.Name(name),
		nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.Timeout(time.Second),
		nats.PingInterval(2*time.Second), nats.MaxPingsOutstanding(2),
		// Without a connection nothing can be stored, and who asks is to know at once. What
		// waited for one would come late, and maybe after what was sent again.
		nats.ReconnectBufSize(-1),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Print(err) }))
}

// Open returns the two streams, and makes those that are missing. It tries until ctx
// ends, as a cluster that has just been started has no leader yet.
func Open(ctx context.Context, js jetstream.JetStream, replicas int) (events, verdicts jetstream.Stream, err error) {
	for {
		if events, verdicts, err = open(ctx, js, replicas); err == nil {
			return events, verdicts, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("the streams: %w", err)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func open(ctx context.Context, js jetstream.JetStream, replicas int) (events, verdicts jetstream.Stream, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	events, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: Events, Subjects: []string{"events.>"},
		Replicas: replicas, Storage: jetstream.FileStorage,
		// Workers remove what they have judged. If they don't come along, the stream gets full,
		// and gateways say so, rather than that old events go for new ones in silence.
		MaxAge: 24 * time.Hour, MaxBytes: 1 << 30, Discard: jetstream.DiscardNew,
		Duplicates: window, AllowAtomicPublish: true,
	})
	if err != nil {
		return nil, nil, err
	}
	// As JetStream makes the stream of a bucket, so that all clients can read it as one; but
	// with atomic batches, and without answers of replicas that may not be up to date.
	verdicts, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name: Verdicts, Subjects: []string{"$KV." + Bucket + ".>"},
		Replicas: replicas, Storage: jetstream.FileStorage,
		MaxMsgsPerSubject: 1, AllowRollup: true, DenyDelete: true, Discard: jetstream.DiscardNew,
		MaxAge: 24 * time.Hour, AllowAtomicPublish: true,
	})
	return events, verdicts, err
}

// Commit writes messages to the stream of their subjects: all of them, without others in
// between, or none. It returns the sequence of the first. If the answer is lost, or ctx
// ends before it comes, they may be written all the same.
//
// The client library has no function for it yet; the protocol is that of
// https://github.com/nats-io/nats-architecture-and-design/blob/main/adr/ADR-50.md.
func Commit(ctx context.Context, nc *nats.Conn, batch []*nats.Msg) (first uint64, err error) {
	id, last := nuid.Next(), len(batch)-1
	for i, m := range batch {
		m.Header.Set("Nats-Batch-Id", id)
		m.Header.Set("Nats-Batch-Sequence", strconv.Itoa(i+1))
		if i < last {
			if err := nc.PublishMsg(m); err != nil {
				return 0, err
			}
		}
	}
	batch[last].Header.Set("Nats-Batch-Commit", "1")
	answer, err := nc.RequestMsgWithContext(ctx, batch[last])
	if err != nil {
		return 0, err
	}
	var ack struct {
		Error *jetstream.APIError `json:"error"`
		Seq   uint64              `json:"seq"`
		Count int                 `json:"count"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil {
		return 0, fmt.Errorf("the answer of the stream: %w", err)
	}
	if ack.Error != nil {
		return 0, ack.Error
	}
	if ack.Count != len(batch) {
		return 0, fmt.Errorf("the stream has written %d of %d messages; does it know atomic batches?", ack.Count, len(batch))
	}
	return ack.Seq - uint64(last), nil
}

// Append commits events, each with its id as Nats-Msg-Id. Those that the stream has
// already stay as they are.
func Append(ctx context.Context, nc *nats.Conn, js jetstream.JetStream, batch []*nats.Msg) error {
	_, err := Commit(ctx, nc, batch)
	if !Is(err, containsDuplicate, duplicateInProgress) {
		return err
	}
	// A batch with an event that is known is refused as a whole: its answer was lost, or it
	// was put together anew. So one by one, each after the one before it, to keep the order.
	for _, m := range batch {
		for _, name := range []string{"Nats-Batch-Id", "Nats-Batch-Sequence", "Nats-Batch-Commit"} {
			m.Header.Del(name)
		}
		if _, err := js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0)); err != nil {
			return err
		}
	}
	return nil
}

// Codes of errors of JetStream.
const (
	wrongLastSequence      = 10071 // of a subject, on which a message depends
	wrongLastSequenceOther = 10164 // likewise, and somebody else is just writing it
	duplicateInProgress    = 10158
	containsDuplicate      = 10201
)

// IsConflict says whether a message was refused as another one came before it.
func IsConflict(err error) bool { return Is(err, wrongLastSequence, wrongLastSequenceOther) }

// Is says whether an error is JetStream's, with one of the codes.
func Is(err error, codes ...jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	for _, code := range codes {
		if api.ErrorCode == code {
			return true
		}
	}
	return false
}
