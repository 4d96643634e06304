package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
)

// The load generator, the backend and the receiver share two cores with the
// Traefik they measure, so they speak just enough HTTP/1.1 to cost little:
// net/http on this side would use more CPU than Traefik itself.

// conn is one kept-alive connection of a client.
type conn struct {
	net.Conn
	r *bufio.Reader
}

func dial(ctx context.Context, address string) (*conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// exchange writes a request and reads the answer, which must be 200.
func (c *conn) exchange(request []byte) error {
	if _, err := c.Write(request); err != nil {
		return err
	}
	return c.answer()
}

func (c *conn) answer() error {
	first, err := readMessage(c.r)
	if err == nil && !bytes.HasPrefix(first, []byte("HTTP/1.1 200 ")) {
		err = fmt.Errorf("answer: %q", first)
	}
	return err
}

// readMessage reads a message to its end and returns the first 32 bytes of it.
func readMessage(r *bufio.Reader) (first []byte, err error) {
	length := 0
	for n := 0; ; n++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return nil, err
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		switch {
		case n == 0:
			first = bytes.Clone(line[:min(len(line), 32)])
		case len(name) == 0:
			_, err := r.Discard(length)
			return first, err
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return nil, err
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			return nil, errors.New("chunked messages are not expected here")
		}
	}
}

// sink is a server that answers every request with 200, or never when it hangs.
type sink struct {
	listener net.Listener
	hangs    bool
	requests atomic.Int64 // that arrived completely

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

func newSink(hangs bool) (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{listener: l, hangs: hangs, conns: map[net.Conn]bool{}}
	go s.accept()
	return s, nil
}

func (s *sink) url() string { return "http://" + s.listener.Addr().String() + "/" }

func (s *sink) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = true
		if s.closed {
			_ = c.Close()
		}
		s.mu.Unlock()
		go s.serve(c)
	}
}

func (s *sink) serve(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nok\n")
	r := bufio.NewReader(c)
	for {
		if _, err := readMessage(r); err != nil {
			return
		}
		s.requests.Add(1)
		if s.hangs {
			_, _ = io.Copy(io.Discard, r) // until the sender hangs up
			return
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

func (s *sink) close() {
	_ = s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for c := range s.conns {
		_ = c.Close()
	}
}
