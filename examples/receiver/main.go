// Command receiver takes the events of Request Mirror and prints a line for each.
// It shows the three things that every receiver should do, with the standard
// library only: verify the signature, take each event once, and answer fast.
//
//	SIGNING_SECRETS=whsec_… go run . -listen :9000
//
// With -json it prints each event as it came, on one line.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	maxEvent  = 8 << 20         // bytes, compressed or not; maxBodySize, plus base64, plus headers; batch.maxSize
	tolerance = 5 * time.Minute // how old a delivery may be: Standard Webhooks' value
	remember  = 100000          // ids, times two
)

const reportType = "io.opencommit.requestmirror.report.v1"

// event is the part of an event that this receiver looks at.
type event struct {
	Type     string `json:"type"`
	Sequence string `json:"sequence"`
	Data     struct {
		Sequence  string `json:"sequence"`  // of a report
		Seen      uint64 `json:"seen"`      // likewise
		Delivered uint64 `json:"delivered"` // likewise
		HTTP      struct {
			Request struct {
				Method string `json:"method"`
				Body   *struct {
					Content string `json:"content"`
					Size    int64  `json:"size"`
					Reason  string `json:"truncated_reason"`
				} `json:"body"`
			} `json:"request"`
		} `json:"http"`
		URL    struct{ Path, Query string } `json:"url"`
		Client struct{ Address string }     `json:"client"`
	} `json:"data"`
}

// receiver answers as soon as an event is in work, which one goroutine does in order.
type receiver struct {
	secrets [][]byte
	work    chan []byte

	mu       sync.Mutex
	ids, old map[string]bool // of events that are in work or done
}

func main() {
	listen := flag.String("listen", ":9000", "address to listen on")
	asJSON := flag.Bool("json", false, "print what comes as lines of JSON")
	flag.Parse()
	r, err := newReceiver(os.Getenv("SIGNING_SECRETS"))
	if err != nil {
		log.Fatal(err)
	}
	printed := make(chan struct{}) // closed when all that was taken is printed
	go func() {
		defer close(printed)
		for payload := range r.work {
			if *asJSON {
				printJSON(os.Stdout, payload)
			} else {
				printEvents(os.Stdout, payload)
			}
		}
	}()
	log.Printf("listening on %s, %d signing secrets", *listen, len(r.secrets))
	server := &http.Server{Addr: *listen, Handler: r, ReadTimeout: 10 * time.Second}
	// Told to end, it still prints what it has answered with 204.
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ended.Done()
		stop() // the next signal ends it at once
		_ = server.Shutdown(context.Background())
		close(r.work)
	}()
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-printed
}

// newReceiver takes secrets as in the option signingSecrets: whsec_…,whsec_….
// Without one it takes what anybody sends.
func newReceiver(secrets string) (*receiver, error) {
	r := &receiver{work: make(chan []byte, 1000), ids: map[string]bool{}}
	for _, text := range strings.FieldsFunc(secrets, func(c rune) bool { return c == ',' }) {
		secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "whsec_"))
		if err != nil {
			return nil, fmt.Errorf("SIGNING_SECRETS: %w", err)
		}
		r.secrets = append(r.secrets, secret)
	}
	return r, nil
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	payload, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxEvent))
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge) // a batch is sent again in halves
		return
	}
	// The signature is over the bytes as they came: verify before parsing.
	if len(r.secrets) > 0 && !r.verified(req.Header, payload) {
		w.WriteHeader(http.StatusUnauthorized) // not sent again
		return
	}
	if req.Header.Get("Content-Encoding") == "gzip" {
		if payload, err = gunzip(payload); err != nil {
			w.WriteHeader(http.StatusBadRequest) // not sent again
			return
		}
		if len(payload) > maxEvent {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
	}
	if !r.take(req.Header.Get("webhook-id"), payload) {
		w.Header().Set("Retry-After", "1") // all workers of the middleware wait so long
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// gunzip decompresses no more than it takes to see that it is too much.
func gunzip(payload []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(payload))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, maxEvent+1))
}

// verified says whether one of the signatures was made with one of the secrets, of
// which there are two while they are rotated.
func (r *receiver) verified(h http.Header, payload []byte) bool {
	id, timestamp := h.Get("webhook-id"), h.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(timestamp, 10, 64)
	if age := time.Since(time.Unix(seconds, 0)); err != nil || age > tolerance || age < -tolerance {
		return false
	}
	for _, secret := range r.secrets {
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(id + "." + timestamp + "."))
		mac.Write(payload)
		want := "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
		for _, given := range strings.Fields(h.Get("webhook-signature")) {
			if hmac.Equal([]byte(given), []byte(want)) {
				return true
			}
		}
	}
	return false
}

// take puts a delivery in work, unless that was done before: an event comes again, with
// the same id, when the answer to it was lost. It says false if there is no room.
func (r *receiver) take(id string, payload []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ids[id] || r.old[id] {
		return true
	}
	select {
	case r.work <- payload:
	default:
		return false
	}
	if len(r.ids) == remember {
		r.old, r.ids = r.ids, map[string]bool{}
	}
	r.ids[id] = true
	return true
}

// printJSON prints an event, or a batch of them, on one line, for other programs.
func printJSON(w io.Writer, payload []byte) {
	var line bytes.Buffer
	if err := json.Compact(&line, payload); err != nil {
		log.Print("not an event: ", err)
		return
	}
	line.WriteByte('\n')
	if _, err := line.WriteTo(w); err != nil {
		log.Fatal(err) // better refuse events than lose them
	}
}

// printEvents prints an event, or each of a batch.
func printEvents(w io.Writer, payload []byte) {
	var batch []json.RawMessage
	if json.Unmarshal(payload, &batch) != nil {
		printEvent(w, payload)
		return
	}
	for _, one := range batch {
		printEvent(w, one)
	}
}

func printEvent(w io.Writer, payload []byte) {
	var e event
	if err := json.Unmarshal(payload, &e); err != nil {
		fmt.Fprintln(w, "not an event:", err)
		return
	}
	if e.Type == reportType {
		fmt.Fprintf(w, "%s report: %d requests seen, %d events delivered\n", e.Data.Sequence, e.Data.Seen, e.Data.Delivered)
		return
	}
	target := e.Data.URL.Path
	if e.Data.URL.Query != "" {
		target += "?" + e.Data.URL.Query
	}
	fmt.Fprintf(w, "%s %s %s from %s", e.Sequence, e.Data.HTTP.Request.Method, target, e.Data.Client.Address)
	if b := e.Data.HTTP.Request.Body; b != nil {
		fmt.Fprintf(w, ", %d bytes %s%q", b.Size, b.Reason, b.Content)
	}
	fmt.Fprintln(w)
}
