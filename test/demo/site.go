package main

import (
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// site is the backend: it tells what it got, streams at /stream and echoes
// WebSocket messages at /socket.
func site() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/socket", lab.WebSocketEcho)
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for n := range 3 {
			_, _ = fmt.Fprintf(w, "data: tick %d\n\n", n+1)
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(300 * time.Millisecond):
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, "the body did not end", http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintf(w, "The site got %s %s with %d bytes.\n", r.Method, r.RequestURI, n)
	})
	return mux
}
