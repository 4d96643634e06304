// Command lab runs the whole pipeline on this machine, and prints the verdicts as they come.
//
//	SIGNING_SECRETS=whsec_… go run ./cmd/lab -listen 127.0.0.1:9000
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/opencommit/requestmirror/examples/pipeline/lab"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
	"github.com/opencommit/requestmirror/examples/pipeline/worker"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9000", "address of the first gateway; the others have the next ports")
	servers := flag.Int("servers", 3, "servers of NATS: 1 or 3")
	gateways := flag.Int("gateways", 2, "gateways")
	workers := flag.Int("workers", 2, "workers")
	flag.Parse()
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ended, *listen, *servers, *gateways, *workers); err != nil && ended.Err() == nil {
		log.Fatal(err)
	}
}

func run(ended context.Context, listen string, servers, gateways, workers int) error {
	host, portText, err := net.SplitHostPort(listen)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return err
	}
	fmt.Println("building; the first time, that takes a minute or two")
	bin, err := os.MkdirTemp("", "requestmirror-pipeline-bin-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	if err := lab.Build(ended, bin); err != nil {
		return err
	}
	l, err := lab.New(bin)
	if err != nil {
		return err
	}
	defer l.Close()
	if _, err := l.StartServers(ended, servers); err != nil {
		return err
	}
	replicas := "-replicas=" + strconv.Itoa(servers)
	fmt.Println("servers", l.NATS)
	for i := range gateways {
		address := net.JoinHostPort(host, strconv.Itoa(port+i))
		_, watchURL, err := l.StartGateway(ended, os.Getenv("SIGNING_SECRETS"), "-listen", address, replicas)
		if err != nil {
			return err
		}
		fmt.Println("gateway", watchURL)
	}
	for range workers {
		if _, err := l.StartWorker(ended, replicas); err != nil {
			return err
		}
	}
	fmt.Println(workers, "workers; Ctrl-C ends it all")
	return printVerdicts(ended, l.NATS)
}

// printVerdicts prints them as any other program would read them.
func printVerdicts(ended context.Context, urls string) error {
	nc, err := stream.Connect(urls, "lab")
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	bucket, err := js.KeyValue(ended, stream.Bucket)
	if err != nil {
		return err
	}
	watcher, err := bucket.Watch(ended, "verdict.>")
	if err != nil {
		return err
	}
	for entry := range watcher.Updates() {
		var v worker.Verdict
		if entry == nil { // all that was there before has been sent
			continue
		}
		if err := json.Unmarshal(entry.Value(), &v); err != nil {
			return err
		}
		fmt.Printf("%s %d %s %s from %s: %s\n", v.Verdict, v.Score, v.Method, v.Path, v.Client, strings.Join(v.Reasons, "; "))
	}
	return nil // ended has ended, and the watcher with it
}
