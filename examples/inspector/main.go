// Command inspector is a receiver with a page: it shows the events of Request Mirror as
// they come, whether they are signed and valid, what is missing, and why.
//
//	SIGNING_SECRETS=whsec_… go run . -listen 127.0.0.1:9000
//
// A delivery is verified, read and judged (intake.go, judge.go) and kept in a journal of
// bounded size (journal.go), which follows the sequence of each stream (streams.go) and
// counts what happens in a second (pulse.go). The page and its stream are in web.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

const (
	patience = 5 * time.Second // for requests to end when the program is told to
	slow     = 5 * time.Second // for a browser to take one message of the live stream
)

func main() {
	// Not on all addresses: whoever reaches it sees what the site's clients send.
	listen := flag.String("listen", "127.0.0.1:9000", "address to listen on; port 0 is any free one")
	path := flag.String("path", "/events", "path that takes deliveries")
	keep := flag.Int("keep", 10000, "events that are kept, at most")
	memory := flag.Int64("memory", 64, "MiB of events that are kept, at most")
	hosts := flag.String("hosts", "", "names by which browsers may ask for the page, with commas between; addresses and localhost always may")
	flag.Parse()
	if *keep < 1 || *memory < 1 || *memory > 1<<20 || !strings.HasPrefix(*path, "/") || *path == "/" || strings.ContainsAny(*path, "{} ") || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	webhooks, err := webhooksOf(os.Getenv("SIGNING_SECRETS"))
	if err != nil {
		log.Fatal(err)
	}
	if len(webhooks) == 0 {
		log.Print("no SIGNING_SECRETS: what anybody sends is shown, and no signature is checked")
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// On standard output, for programs that start this one: the rest is in the log.
	fmt.Printf("http://%s/\n", reachable(listener.Addr()))
	log.Printf("takes deliveries at %s, checks them with %d signing secrets", *path, len(webhooks))
	page := newWeb(settings{
		now: time.Now, path: *path, hosts: strings.FieldsFunc(*hosts, func(c rune) bool { return c == ',' || c == ' ' }),
		webhooks: webhooks, keep: *keep, memory: *memory << 20, slow: slow,
	}, newJournal(time.Now(), *keep, *memory<<20))
	if err := serve(ended, listener, page.handler()); err != nil {
		log.Print(err)
		stop() // not deferred functions: Exit runs none
		os.Exit(1)
	}
}

// reachable is the address to type into a browser on this machine.
func reachable(a net.Addr) string {
	if tcp, ok := a.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return fmt.Sprintf("localhost:%d", tcp.Port)
	}
	return a.String()
}

// serve answers requests until ctx is done, then lets those under way end.
func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	// Live streams have no end of their own.
	requests, cancel := context.WithCancel(context.Background())
	defer cancel()
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second, // the live stream and the download set their own
		IdleTimeout:       time.Minute,      // longer than the middleware keeps connections, so that it is the one who closes them
		MaxHeaderBytes:    64 << 10,
		BaseContext:       func(net.Listener) context.Context { return requests },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	cancel()
	limited, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(limited); err != nil {
		return errors.Join(err, server.Close())
	}
	return nil
}
