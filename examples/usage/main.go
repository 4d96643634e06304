// Command usage takes the events of Request Mirror and shows who uses an API, how
// much and within which scopes: the requests of the past hour by client, on a page
// and as JSON.
//
//	SIGNING_SECRETS=whsec_… go run . -listen 127.0.0.1:9000
//
// A delivery is verified, read and counted (intake.go) in the book of the past hour
// (book.go), which the page shows (page.go).
package main

import (
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// patience is how long requests may take to end when the program is told to.
const patience = 5 * time.Second

func main() {
	// Not on all addresses: whoever reaches it sees the clients.
	listen := flag.String("listen", "127.0.0.1:9000", "address to listen on")
	header := flag.String("header", "authorization", "header whose pseudonym tells clients apart")
	depth := flag.Int("depth", 1, "segments of the path that are the scope, 0 to 10")
	clients := flag.Int("clients", 1000, "clients that are counted by themselves, at most")
	flag.Parse()
	if *depth < 0 || *depth > 10 || *clients < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	webhooks, err := webhooksOf(os.Getenv("SIGNING_SECRETS"))
	if err != nil {
		log.Fatal(err)
	}
	if len(webhooks) == 0 {
		log.Print("no SIGNING_SECRETS: what anybody sends is counted")
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log.Printf("listening on %s, %d signing secrets", listener.Addr(), len(webhooks))
	handler := newHandler(time.Now, webhooks, newReader(*header, *depth), newBook(time.Now(), *clients))
	if err := serve(ended, listener, handler); err != nil {
		log.Print(err)
		stop() // not deferred functions: Exit runs none
		os.Exit(1)
	}
}

// newHandler puts the intake and the pages under their paths.
func newHandler(now func() time.Time, webhooks []*webhook, r *reader, b *book) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /events", &intake{now: now, webhooks: webhooks, reader: r, book: b, room: make(chan struct{}, atOnce)})
	mux.HandleFunc("GET /usage", func(w http.ResponseWriter, req *http.Request) { showJSON(w, req, b, now()) })
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, req *http.Request) { showPage(w, req, b, now()) })
	return mux
}

// serve answers requests until ctx is done, then lets those under way end.
func serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      20 * time.Second,
		IdleTimeout:       time.Minute, // longer than the middleware keeps connections, so that it is the one who closes them
		MaxHeaderBytes:    64 << 10,
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	limited, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := server.Shutdown(limited); err != nil {
		return errors.Join(err, server.Close())
	}
	return nil
}
