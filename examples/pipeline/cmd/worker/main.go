// Command worker judges the events of the stream that gateways fill, as one of as many
// workers as are started.
//
//	worker -nats nats://127.0.0.1:4222
package main

import (
	"context"
	"flag"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/nats-io/nats.go"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
	"github.com/opencommit/requestmirror/examples/pipeline/worker"
)

func main() {
	urls := flag.String("nats", nats.DefaultURL, "URLs of the servers, with commas between")
	replicas := flag.Int("replicas", 3, "servers that have each event; one of a single server")
	flag.Parse()
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ended, *urls, *replicas); err != nil {
		log.Fatal(err)
	}
}

func run(ended context.Context, urls string, replicas int) error {
	nc, err := stream.Connect(urls, "worker")
	if err != nil {
		return err
	}
	defer nc.Close()
	w, err := worker.New(ended, nc, replicas)
	if err != nil {
		return err
	}
	log.Print("working")
	err = w.Run(ended)
	log.Printf("ended, %d events judged", w.Judged())
	return err
}
