//go:build linux

// Bench measures what the plugin costs in a real Traefik, and writes the numbers
// into docs/explanation/performance.md. It needs Linux, a Traefik (make traefik) and
// a machine with nothing else to do.
//
//	make bench                          all of it, ten minutes; updates the page
//	make bench-quick                    a minute, for a first look; prints only
//	go run ./bench -only batches,post   one row of the tables for POST; prints only
//	go run ./bench -help                what else can be left out
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// plan is how long the parts take.
type plan struct {
	rounds  int
	turns   int           // into which each load of a round is divided
	rate    int           // requests per second of the open loop
	open    time.Duration // of the open loop in each round, for rows whose cost is looked at
	aside   time.Duration // and for the others
	clients int           // of the closed loop
	closed  time.Duration // of the closed loop in each round
	memory  time.Duration // of each load whose memory is measured
	bodies  []int         // bytes of the requests of these loads
	slow    time.Duration // of each load for a slow receiver
}

var (
	full = plan{
		rounds: 5, turns: 2, rate: 1000, open: 4 * time.Second, aside: 1500 * time.Millisecond, clients: 16, closed: 1200 * time.Millisecond,
		memory: 5 * time.Second, bodies: []int{0, 1 << 10, 16 << 10, 1 << 20}, slow: 2 * time.Second,
	}
	quick = plan{
		rounds: 1, turns: 1, rate: 1000, open: time.Second, aside: 500 * time.Millisecond, clients: 16, closed: 400 * time.Millisecond,
		memory: time.Second, bodies: []int{1 << 20}, slow: time.Second,
	}
)

const page = "docs/explanation/performance.md"

func main() {
	short := flag.Bool("quick", false, "a minute instead of ten; numbers are printed and not kept")
	only := flag.String("only", "", "some tables and rows; numbers are printed and not kept. Words with commas between them:\n"+selectionHelp)
	rounds := flag.Int("rounds", 0, "another number of rounds; numbers are printed and not kept")
	load := flag.Duration("load", 0, "another time for each load of a round at the fixed rate; numbers are printed and not kept")
	against := flag.String("against", "", "a `directory` with another state of the plugin, which gets rows of its own; numbers are printed and not kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := full
	if *short {
		p = quick
	}
	if *rounds > 0 {
		p.rounds = *rounds
	}
	if *load > 0 {
		p.open, p.aside = *load, *load
	}
	sel, err := parseSelection(*only)
	if err == nil && *against != "" {
		sel.against, err = filepath.Abs(*against)
	}
	if err == nil {
		err = measure(ctx, p, sel, flag.NFlag() == 0)
	}
	stop()
	if err != nil {
		say("%v", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, p plan, sel selection, keep bool) error {
	// A load that hangs must not run for ever: this is more than twice what all should take.
	ctx, cancel := context.WithTimeout(ctx, 25*time.Minute)
	defer cancel()
	start := time.Now()
	version, err := traefikVersion()
	if err != nil {
		return err
	}
	root, err := lab.Root()
	if err != nil {
		return err
	}
	// The lab copies plugins from directories that are given from here.
	if err := os.Chdir(filepath.Join(root, "test", "bench")); err != nil {
		return err
	}
	b, err := newBench()
	if err != nil {
		return err
	}
	defer b.close()

	busy := loadAverage()
	if busy > 0.5 {
		say("the machine is busy (load average %.1f): what this prints will be noise", busy)
	}
	var r report
	r.place(version, busy, p)
	if sel.rate || sel.full {
		t, err := b.traffic(ctx, p, sel)
		if err != nil {
			return err
		}
		r.traffic(t, p)
	}
	if sel.latency {
		rows, err := b.latency(ctx, p, sel)
		if err != nil {
			return err
		}
		r.latency(rows)
	}
	if sel.memory || sel.receivers {
		rows, err := b.memory(ctx, p, sel)
		if err != nil {
			return err
		}
		r.memory(rows, sel)
	}
	fmt.Println(r.String())
	say("done in %s", time.Since(start).Round(time.Second))
	if !keep {
		return nil
	}
	say("writing %s", page)
	return r.writeTo(filepath.Join(root, page))
}

// say tells of the progress; standard output is for the report.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
