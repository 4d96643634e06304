//go:build ignore
// +build ignore

// Command backend stands for the service that is watched: it answers with what it got.
//
//	go run backend.go -listen :9001
package main

import (
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
)

func main() {
	listen := flag.String("listen", ":9001", "address to listen on")
	flag.Parse()
	http.HandleFunc("/", func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		fmt.Fprintf(w, "the backend got %s %s with %d bytes\n", req.Method, req.URL, len(body))
	})
	log.Fatal(http.ListenAndServe(*listen, nil))
}
