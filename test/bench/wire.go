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
	"time"
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
	m, err := readHead(c.r)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(m.first, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("answer: %q", m.first)
	}
	_, err = c.r.Discard(m.length)
	return err
}

// message is what is known of one before its body is read.
type message struct {
	first  []byte // of its first line, at most 32 bytes
	length int    // of its body
	batch  bool   // whether the body is a batch of events
}

// readHead reads a message up to its body.
func readHead(r *bufio.Reader) (m message, err error) {
	for n := 0; ; n++ {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return m, err
		}
		name, value, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(":"))
		switch {
		case n == 0:
			m.first = bytes.Clone(line[:min(len(line), 32)])
		case len(name) == 0:
			return m, nil
		case bytes.EqualFold(name, []byte("content-length")):
			if m.length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return m, err
			}
		case bytes.EqualFold(name, []byte("content-type")):
			m.batch = string(bytes.TrimSpace(value)) == "application/cloudevents-batch+json"
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			return m, errors.New("chunked messages are not expected here")
		}
	}
}

// eventMark is in each event once: within a value its quotes would be escaped.
var eventMark = []byte(`"specversion"`)

// countEvents reads a batch to its end and counts its events, without the work of
// parsing it. What a piece ends with is looked at again with the next one, as a mark
// may be in both.
func countEvents(r *bufio.Reader, length int) (events int64, err error) {
	for {
		piece, err := r.Peek(min(length, r.Size()))
		if err != nil {
			return events, err
		}
		events += int64(bytes.Count(piece, eventMark))
		done := len(piece)
		if done < length {
			done -= len(eventMark) - 1
		}
		if _, err := r.Discard(done); err != nil || done == length {
			return events, err
		}
		length -= done
	}
}

// When a sink answers: after so long, at once, or never.
const (
	answers time.Duration = 0
	never   time.Duration = -1
)

// sink is a server that answers every request with 200.
type sink struct {
	listener net.Listener
	delay    time.Duration // before an answer
	events   atomic.Int64  // that arrived completely; a request is one, unless it is a batch

	mu     sync.Mutex
	conns  map[net.Conn]bool
	closed bool
}

func newSink(delay time.Duration) (*sink, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &sink{listener: l, delay: delay, conns: map[net.Conn]bool{}}
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
	r := bufio.NewReaderSize(c, 32<<10)
	for {
		events, err := readEvents(r)
		if err != nil {
			return
		}
		s.events.Add(events)
		if s.delay == never {
			_, _ = io.Copy(io.Discard, r) // until the sender hangs up
			return
		}
		if s.delay > 0 {
			time.Sleep(s.delay)
		}
		if _, err := c.Write(answer); err != nil {
			return
		}
	}
}

// readEvents reads a request and says how many events it carries.
func readEvents(r *bufio.Reader) (int64, error) {
	m, err := readHead(r)
	if err != nil {
		return 0, err
	}
	if m.batch {
		return countEvents(r, m.length)
	}
	_, err = r.Discard(m.length)
	return 1, err
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
