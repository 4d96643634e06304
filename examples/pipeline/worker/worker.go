// Package worker judges the events of a stream, as one of a group of workers. Each
// partition is followed by one of them (partition.go), which judges its events in order
// (judge.go).
package worker

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
)

// Workers tell each other that they are alive, by messages that nobody keeps. Who is wrong
// about the others does work in vain, and no harm: see partition.
const (
	alive = "workers.alive"
	gone  = "workers.gone"
	beat  = 500 * time.Millisecond
	dead  = 4 * beat // after so long without a word
)

// Worker is one of a group.
type Worker struct {
	nc               *nats.Conn
	js               jetstream.JetStream
	events, verdicts jetstream.Stream
	id               string
	judged           atomic.Int64

	mu    sync.Mutex
	heard map[string]time.Time // workers, and when they last said something
}

// New opens the streams, or makes them.
func New(ctx context.Context, nc *nats.Conn, replicas int) (*Worker, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	w := &Worker{nc: nc, js: js, id: nuid.Next(), heard: map[string]time.Time{}}
	w.events, w.verdicts, err = stream.Open(ctx, js, replicas)
	return w, err
}

// Run judges until ctx ends, and returns when all that has begun is done.
func (w *Worker) Run(ctx context.Context) error {
	for subject, hear := range map[string]func(string){
		alive: func(id string) { w.heard[id] = time.Now() },
		gone:  func(id string) { delete(w.heard, id) },
	} {
		s, err := w.nc.Subscribe(subject, func(m *nats.Msg) {
			w.mu.Lock()
			defer w.mu.Unlock()
			hear(string(m.Data))
		})
		if err != nil {
			return err
		}
		defer func() { _ = s.Unsubscribe() }()
	}
	var working sync.WaitGroup
	stop := make([]context.CancelFunc, stream.Partitions) // nil: not followed here
	ticker := time.NewTicker(beat)
	defer ticker.Stop()
	for beats := 0; ; beats++ {
		_ = w.nc.Publish(alive, []byte(w.id)) // if it does not arrive, the others take over
		// Who has just come does not know the others yet.
		if beats >= 2 {
			for p, mine := range w.mine() {
				switch {
				case mine && stop[p] == nil:
					following, cancel := context.WithCancel(ctx)
					stop[p] = cancel
					working.Add(1)
					go func() {
						defer working.Done()
						(&partition{Worker: w, number: p}).work(following)
					}()
				case !mine && stop[p] != nil:
					stop[p]()
					stop[p] = nil
				}
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			working.Wait()
			_ = w.nc.Publish(gone, []byte(w.id))
			return w.nc.FlushTimeout(time.Second)
		}
	}
}

// Judged is how many events it has written a verdict on.
func (w *Worker) Judged() int64 { return w.judged.Load() }

// mine says which partitions are this worker's: those who are alive share them evenly.
func (w *Worker) mine() []bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	group := []string{w.id}
	for id, at := range w.heard {
		if time.Since(at) > dead {
			delete(w.heard, id)
		} else if id != w.id {
			group = append(group, id)
		}
	}
	slices.Sort(group)
	mine := make([]bool, stream.Partitions)
	for p := range mine {
		mine[p] = group[p%len(group)] == w.id
	}
	return mine
}
