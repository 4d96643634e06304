// Command receiver takes the events of Request Mirror and prints a line for each.
// It shows the three things that every receiver should do, with the standard
// library only: verify the signature, take each event once, and answer fast.
//
//	SIGNING_SECRETS=whsec_… go run . -listen :9000
package main

import (
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
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	maxEvent  = 8 << 20         // bytes; maxBodySize of the middleware, plus base64, plus headers
	tolerance = 5 * time.Minute // how old a delivery may be: Standard Webhooks' value
	remember  = 100000          // ids, times two
)

// event is the part of an event that this receiver looks at.
type event struct {
	Sequence string `json:"sequence"`
	Data     struct {
		HTTP struct {
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
	flag.Parse()
	r, err := newReceiver(os.Getenv("SIGNING_SECRETS"))
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for payload := range r.work {
			printEvent(os.Stdout, payload)
		}
	}()
	log.Printf("listening on %s, %d signing secrets", *listen, len(r.secrets))
	server := &http.Server{Addr: *listen, Handler: r, ReadTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServe())
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
		w.WriteHeader(http.StatusRequestEntityTooLarge) // not sent again
		return
	}
	// The signature is over the bytes as they came: verify before parsing.
	if len(r.secrets) > 0 && !r.verified(req.Header, payload) {
		w.WriteHeader(http.StatusUnauthorized) // not sent again
		return
	}
	if !r.take(req.Header.Get("webhook-id"), payload) {
		w.Header().Set("Retry-After", "1") // all workers of the middleware wait so long
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
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

// take puts an event in work, unless that was done before: an event comes again, with
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

func printEvent(w io.Writer, payload []byte) {
	var e event
	if err := json.Unmarshal(payload, &e); err != nil {
		fmt.Fprintln(w, "not an event:", err)
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
