//go:build linux

// Bench measures what the plugin costs in a real Traefik, and writes the numbers
// into docs/explanation/performance.md. It needs Linux, a Traefik (make traefik) and
// a machine with nothing else to do.
//
//	make bench             all of it, six minutes; updates the page
//	make bench-quick       a minute, for a first look; prints only
//	go run ./bench -help   parts of it
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
	rate    int           // requests per second of the open loop
	open    time.Duration // of each open loop
	clients int           // of the closed loop
	closed  time.Duration // of each closed loop
	memory  time.Duration // of each load whose memory is measured
	bodies  []int         // bytes of the requests of these loads
}

var (
	full  = plan{rounds: 5, rate: 1000, open: 2 * time.Second, clients: 16, closed: 1200 * time.Millisecond, memory: 5 * time.Second, bodies: []int{0, 1 << 10, 16 << 10, 1 << 20}}
	quick = plan{rounds: 1, rate: 1000, open: time.Second, clients: 16, closed: 500 * time.Millisecond, memory: time.Second, bodies: []int{1 << 20}}
)

const page = "docs/explanation/performance.md"

func main() {
	short := flag.Bool("quick", false, "a minute instead of six; numbers are printed and not kept")
	onlyTraffic := flag.Bool("traffic", false, "CPU, latency and throughput only; numbers are printed and not kept")
	onlyMemory := flag.Bool("memory", false, "memory only; numbers are printed and not kept")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	p := full
	if *short {
		p = quick
	}
	err := measure(ctx, p, *onlyTraffic || !*onlyMemory, *onlyMemory || !*onlyTraffic, !*short && !*onlyTraffic && !*onlyMemory)
	stop()
	if err != nil {
		say("%v", err)
		os.Exit(1)
	}
}

func measure(ctx context.Context, p plan, traffic, memory, keep bool) error {
	// A load that hangs must not run for ever: this is twice what all should take.
	ctx, cancel := context.WithTimeout(ctx, 12*time.Minute)
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
	if traffic {
		rounds, err := b.traffic(ctx, p)
		if err != nil {
			return err
		}
		r.traffic(rounds, p)
	}
	if memory {
		table, err := b.memory(ctx, p)
		if err != nil {
			return err
		}
		r.memory(table)
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
