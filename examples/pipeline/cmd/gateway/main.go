// Command gateway takes deliveries of Request Mirror and puts their events into a stream.
//
//	SIGNING_SECRETS=whsec_… gateway -listen 127.0.0.1:9000 -nats nats://127.0.0.1:4222
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
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/opencommit/requestmirror/examples/pipeline/gateway"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:9000", "address to listen on")
	urls := flag.String("nats", nats.DefaultURL, "URLs of the servers, with commas between")
	replicas := flag.Int("replicas", 3, "servers that have each event; one of a single server")
	deliveries := flag.Int("deliveries", 32, "deliveries under way at most")
	bytes := flag.Int64("bytes", 64<<20, "bytes of them at most")
	flag.Parse()
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ended, *listen, *urls, *replicas, &gateway.Room{Deliveries: *deliveries, Bytes: *bytes}); err != nil {
		log.Fatal(err)
	}
}

func run(ended context.Context, listen, urls string, replicas int, room *gateway.Room) error {
	webhooks, err := webhooksOf(os.Getenv("SIGNING_SECRETS"))
	if err != nil {
		return err
	}
	if len(webhooks) == 0 {
		log.Print("no SIGNING_SECRETS: what anybody sends is taken")
	}
	nc, err := stream.Connect(urls, "gateway")
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if _, _, err := stream.Open(ended, js, replicas); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute}
	mux := http.NewServeMux()
	mux.Handle("POST /events", &gateway.Gateway{
		Webhooks:   webhooks,
		Append:     func(ctx context.Context, batch []*nats.Msg) error { return stream.Append(ctx, nc, js, batch) },
		MaxMessage: int(nc.MaxPayload()),
		Room:       room,
	})
	server.Handler = mux
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	log.Printf("listening on %s, %d signing secrets", listener.Addr(), len(webhooks))
	select {
	case err := <-failed:
		return err
	case <-ended.Done():
	}
	// It returns when all that was taken is answered, and that is when the stream has it.
	patience, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	err = server.Shutdown(patience)
	log.Print("ended")
	return err
}

// webhooksOf takes secrets as in the option signingSecrets: whsec_…,whsec_….
func webhooksOf(secrets string) (list []*standardwebhooks.Webhook, err error) {
	for _, secret := range strings.FieldsFunc(secrets, func(c rune) bool { return c == ',' || c == ' ' }) {
		w, err := standardwebhooks.NewWebhook(secret)
		if err != nil || strings.TrimPrefix(secret, "whsec_") == "" {
			// Not the cause, which has a part of the secret.
			return nil, errors.New("SIGNING_SECRETS: not whsec_ and base64")
		}
		list = append(list, w)
	}
	return list, nil
}
