//go:build linux

package main

import (
	"context"
	"fmt"
	"time"
)

const (
	lateness = 20 * time.Millisecond // of a receiver that takes its time
	lateRate = 4000                  // requests per second, more than single posts to it can keep up with
)

// pace is what was delivered to a receiver that takes its time.
type pace struct {
	name      string
	answered  []float64 // requests per second, by round
	delivered []float64 // events per second, by round
	p50       []float64 // ms
}

// latency measures how many events single posts and batches bring to a receiver that
// takes its time, with the same number of workers.
func (b *bench) latency(ctx context.Context, p plan, sel selection) ([]pace, error) {
	var rows []variant
	for _, v := range []variant{
		{name: "single posts", through: true, receivers: []string{late}},
		{name: fmt.Sprintf("batches of %d", batchEvents), through: true, batched: true, receivers: []string{late}},
	} {
		rows = append(rows, sel.twins(v)...)
	}
	paces := make([]pace, len(rows))
	rounds := min(p.rounds, 3)
	for i := range rounds {
		for j := range rows {
			j = (i + j) % len(rows) // nobody is always first
			v := rows[j]
			say("slow receiver, round %d of %d: %s", i+1, rounds, v.name)
			if err := b.pace(ctx, v, p.slow, &paces[j]); err != nil {
				return nil, fmt.Errorf("slow receiver, %s: %w", v.name, err)
			}
		}
	}
	return paces, nil
}

func (b *bench) pace(ctx context.Context, v variant, d time.Duration, row *pace) error {
	h, err := b.start(ctx, v)
	if err != nil {
		return err
	}
	defer h.stop()
	// The queue fills up first, so that its room does not count as delivered.
	if _, err := openLoop(ctx, h.Web(), get, lateRate, time.Second); err != nil {
		return err
	}
	copies := h.receiver.events.Load()
	start := time.Now()
	r, err := openLoop(ctx, h.Web(), get, lateRate, d)
	if err != nil {
		return err
	}
	row.name = v.name
	row.delivered = append(row.delivered, float64(h.receiver.events.Load()-copies)/time.Since(start).Seconds())
	row.answered = append(row.answered, r.rate())
	row.p50 = append(row.p50, milliseconds(r.percentile(.5)))
	return nil
}
