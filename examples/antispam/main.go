// Command antispam takes the events of Request Mirror, judges the comments among
// them by a few rules, and serves its verdicts with the reasons.
//
//	SIGNING_SECRETS=whsec_… go run . -listen 127.0.0.1:9000
//
// A delivery is verified, read and put in work (intake.go). A worker judges what is
// in it, in order (judge.go), by the rules (rules.go) and what it remembers of
// earlier requests (memory.go). The last verdicts can be asked for (verdicts.go).
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// patience is how long requests may take to end when the program is told to.
const patience = 5 * time.Second

func main() {
	// Not on all addresses: whoever reaches it sees who wrote what was judged.
	listen := flag.String("listen", "127.0.0.1:9000", "address to listen on")
	path := flag.String("path", "/api/comments", "what is written here, or below, are comments")
	words := flag.String("words", "", "file of words that spam has, one on each line, instead of a few that are built in")
	flag.Parse()
	if !strings.HasPrefix(*path, "/") || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	listed, err := readWords(*words)
	if err != nil {
		log.Fatal(err)
	}
	webhooks, err := webhooksOf(os.Getenv("SIGNING_SECRETS"))
	if err != nil {
		log.Fatal(err)
	}
	if len(webhooks) == 0 {
		log.Print("no SIGNING_SECRETS: what anybody sends is judged")
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	log.Printf("listening on %s, %d signing secrets", listener.Addr(), len(webhooks))
	j := newJudge(*path, listed)
	in := newIntake(time.Now, webhooks)
	go in.work(j)
	err = serve(ended, listener, newHandler(in, j.verdicts))
	in.drain()
	log.Printf("ended, %d verdicts", j.verdicts.count())
	if err != nil {
		log.Print(err)
		stop() // not deferred functions: Exit runs none
		os.Exit(1)
	}
}

func readWords(name string) (map[string]bool, error) {
	if name == "" {
		return someWords, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	words := map[string]bool{}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if word := strings.ToLower(strings.TrimSpace(lines.Text())); word != "" {
			words[word] = true
		}
	}
	return words, lines.Err()
}

// newHandler puts the intake and the verdicts under their paths.
func newHandler(in *intake, v *verdicts) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /events", in)
	mux.HandleFunc("GET /verdicts", v.showLast)
	mux.HandleFunc("GET /verdicts/{event}", v.showOne)
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
