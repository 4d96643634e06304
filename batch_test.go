//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// sendNow is send without leaving the workers time in between.
func (s *stage) sendNow(n int) {
	for range n {
		s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", Header: http.Header{"X-A": {"b"}}})
	}
}

// sendLarge sends an event of about size bytes.
func (s *stage) sendLarge(size int) {
	s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1", Header: http.Header{"X-Large": {strings.Repeat("a", size)}}})
	synctest.Wait()
}

// delivered are the events that the receiver took, in the order of their sequence;
// one that it took twice is there twice.
func (s *peer) delivered() (list []int) {
	for _, c := range s.came() {
		if _, taken := c.outcome(); taken {
			list = append(list, c.sequences...)
		}
	}
	slices.Sort(list)
	return list
}

func (s *peer) gotEach(want []int) {
	s.t.Helper()
	if got := s.delivered(); !slices.Equal(got, want) {
		s.t.Errorf("at %v: got events %v; want each of %v once", s.time(), got, want)
	}
}

const flush = 200 * time.Millisecond

func TestBatchIsSentWhenItIsFull(t *testing.T) {
	t.Run("by count, at once", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 20, "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			for range 20 {
				s.send(1)
			}
			s.cameAt(0)
			s.cameAs(upTo(20))
			s.is(map[string]uint64{"delivered": 20})
		})
	})
	t.Run("by time, flushInterval after its first event", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 20, "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.wait(time.Second)
			s.send(1)
			s.wait(flush / 2)
			s.send(2)
			s.wait(flush/2 - 1)
			s.cameAt()
			if n := s.tally(); n.InFlight+n.Waiting != 3 {
				t.Errorf("got %+v; want 3 waiting or in flight", n)
			}
			s.wait(1)
			s.cameAt(time.Second + flush)
			s.cameAs(upTo(3))
			s.wait(time.Minute)
			s.send(1)
			s.wait(flush)
			s.cameAt(time.Second+flush, time.Minute+time.Second+2*flush)
		})
	})
	t.Run("by bytes, and the event that did not fit begins the next one", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 100, "batch.maxSize": "4Ki", "workers": 2}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			for range 40 {
				s.send(1)
			}
			s.wait(time.Second)
			s.gotEach(upTo(40))
			for i, c := range s.came() {
				if len(c.payload) > 4096 {
					t.Errorf("batch %d: got %d bytes; want at most 4096", i, len(c.payload))
				}
			}
			if c := s.came()[0]; len(c.payload)+len(c.payload)/len(c.events) < 4096 {
				t.Errorf("got a first batch of %d bytes in %d events; want no room for another", len(c.payload), len(c.events))
			}
		})
	})
	t.Run("a batch of exactly maxSize is whole", func(t *testing.T) {
		size := 0
		onStage(t, opts{"batch.maxEvents": 3, "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			for range 3 {
				s.sendLarge(1000)
			}
			s.wait(flush)
			size = len(s.calls[0].payload)
		})
		for more := -1; more <= 1; more++ {
			onStage(t, opts{"batch.maxEvents": 100, "batch.maxSize": size + more, "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
				for range 3 {
					s.sendLarge(1000)
				}
				s.wait(2 * flush)
				if want := 3 + min(more, 0); len(s.calls[0].events) != want {
					t.Errorf("maxSize %+d: got %d events; want %d", more, len(s.calls[0].events), want)
				}
				s.gotEach(upTo(3))
			})
		}
	})
	t.Run("an event that is larger goes alone", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 100, "batch.maxSize": "4Ki", "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.send(2)
			s.sendLarge(9000)
			s.send(2)
			s.wait(time.Second)
			s.cameAs([]int{1, 2}, []int{3}, []int{4, 5})
		})
	})
}

func TestBatchOnTheWire(t *testing.T) {
	for format, want := range map[string]string{"cloudevents": "application/cloudevents-batch+json", "json": "application/json"} {
		onStage(t, opts{"batch.maxEvents": 3, "format": format, "signingSecrets": secretOf(strings.Repeat("k", 24))}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.send(3)
			c := s.came()[0]
			if got := c.header.Get("Content-Type"); got != want {
				t.Errorf("got content type %q; want %q", got, want)
			}
			if got, want := c.header.Get("Webhook-Signature"), sign([][]byte{bytes.Repeat([]byte("k"), 24)}, c.id, c.header.Get("Webhook-Timestamp"), c.payload); got != want {
				t.Errorf("%s: got signature %s; want %s, over the bytes as they were sent, at %s", format, got, want, c.header["Webhook-Timestamp"])
			}
			ids := map[string]bool{c.id: true}
			for _, e := range c.events {
				ids[e.ID] = true
			}
			if len(ids) != 4 {
				t.Errorf("got ids %v; want one for each event and one for the batch", ids)
			}
		})
	}
}

func TestOneWorkerGathers(t *testing.T) {
	t.Run("slow traffic makes one batch in flushInterval, whatever the number of workers", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 100, "workers": 4, "batch.flushInterval": "1s"}, []reply{{status: 204, delay: 300 * time.Millisecond}}, func(t *testing.T, s *stage) {
			for range 100 {
				s.send(1)
				s.wait(100 * time.Millisecond)
			}
			s.wait(2 * time.Second)
			s.gotEach(upTo(100))
			if got := len(s.came()); got < 9 || got > 11 {
				t.Errorf("got %d batches in 10 seconds; want one each second: %v", got, s.batches())
			}
		})
	})
	t.Run("while one hangs, another gathers", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 3, "workers": 2}, nil, func(t *testing.T, s *stage) {
			s.send(3)
			s.send(3)
			s.cameAs(upTo(3), fromTo(4, 6))
			s.answer(4, reply{status: 204})
			s.send(3)
			s.answer(7, reply{status: 204})
			s.answer(1, reply{status: 204})
			s.is(map[string]uint64{"delivered": 9})
		})
	})
	t.Run("what comes at once is shared among the workers, and none holds on to another batch", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 2, "workers": 4}, nil, func(t *testing.T, s *stage) {
			s.sendNow(8)
			synctest.Wait()
			if got := s.unanswered(); len(got) != 4 {
				t.Errorf("got batches of %v under way; want four, one for each worker", s.batches())
			}
		})
	})
}

func TestBatchThatFailsIsTriedAgainAsItIs(t *testing.T) {
	for _, compression := range []string{"none", "gzip"} {
		onStage(t, opts{"batch.maxEvents": 10, "retry.attempts": 4, "compression": compression}, []reply{{status: 503}, {err: errors.New("reset")}, {status: 429}, {status: 204}}, func(t *testing.T, s *stage) {
			s.send(10)
			s.wait(time.Minute)
			if len(s.came()) != 4 {
				t.Fatalf("got %d attempts; want 4", len(s.came()))
			}
			for i, c := range s.came() {
				if c.id != s.came()[0].id || !bytes.Equal(c.payload, s.came()[0].payload) {
					t.Errorf("attempt %d: got id %s, %d bytes; want the same id and bytes as of the first", i+1, c.id, len(c.payload))
				}
				if got := c.header.Get("Content-Encoding"); (got == "gzip") != (compression == "gzip") {
					t.Errorf("got content encoding %q; want that of %s", got, compression)
				}
			}
			s.is(map[string]uint64{"delivered": 10, "retried": 3})
			s.gotEach(upTo(10))
		})
	}
	onStage(t, opts{"batch.maxEvents": 10, "retry.attempts": 2}, []reply{{status: 503}}, func(t *testing.T, s *stage) {
		s.send(10)
		s.wait(time.Minute)
		s.is(map[string]uint64{"failed server_error": 10, "retried": 1})
	})
}

// A receiver that takes no batch with a certain event, nor more than so many events.
func TestTooLargeBatchIsHalved(t *testing.T) {
	for _, c := range []struct {
		events, most, bad int
	}{{16, 16, 5}, {16, 3, 0}, {7, 1, 7}, {10, 16, 1}, {2, 1, 0}, {1, 1, 1}, {33, 5, 33}} {
		t.Run(fmt.Sprintf("%d events, at most %d, never %d", c.events, c.most, c.bad), func(t *testing.T) {
			onStage(t, opts{"batch.maxEvents": c.events, "workers": 2, "retry.attempts": 2}, nil, func(t *testing.T, s *stage) {
				s.sendNow(c.events)
				s.wait(flush)
				for range 200 {
					under := s.unanswered()
					if len(under) == 0 {
						break
					}
					call := s.active[under[0]]
					r := reply{status: 204}
					if len(call.sequences) > c.most || slices.Contains(call.sequences, c.bad) {
						r.status = 413
					}
					s.answer(under[0], r)
				}
				want := slices.DeleteFunc(upTo(c.events), func(i int) bool { return i == c.bad })
				s.gotEach(want)
				counts := map[string]uint64{"delivered": uint64(len(want))}
				if c.bad > 0 {
					counts["failed too_large"] = 1
				}
				delete(counts, map[bool]string{true: "delivered"}[len(want) == 0])
				s.is(counts)
				ids := map[string][]int{}
				events := map[int]string{}
				for _, call := range s.came() {
					if ids[call.id] != nil {
						t.Errorf("got id %s for %v and %v; want another id for other content", call.id, ids[call.id], call.sequences)
					}
					ids[call.id] = call.sequences
					for i, e := range call.events {
						if id := events[call.sequences[i]]; id != "" && id != e.ID {
							t.Errorf("got ids %s and %s for event %d; want it kept", id, e.ID, call.sequences[i])
						}
						events[call.sequences[i]] = e.ID
					}
				}
			})
		})
	}
	t.Run("one event of 64 is found in few attempts", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 64, "workers": 1}, nil, func(t *testing.T, s *stage) {
			s.sendNow(64)
			s.wait(flush)
			for under := s.unanswered(); len(under) > 0; under = s.unanswered() {
				r := reply{status: 204}
				if s.mu.Lock(); slices.Contains(s.active[under[0]].sequences, 37) {
					r.status = 413
				}
				s.mu.Unlock()
				s.answer(under[0], r)
			}
			if got := len(s.came()); got != 13 {
				t.Errorf("got %d attempts; want 13, two for each of six halvings and the first", got)
			}
		})
	})
	t.Run("the halves have all attempts", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 2, "workers": 1, "retry.attempts": 2}, []reply{{status: 503}, {status: 413}, {status: 503}, {status: 204}, {status: 503}, {status: 204}}, func(t *testing.T, s *stage) {
			s.send(2)
			s.wait(time.Minute)
			s.cameAs([]int{1, 2}, []int{1, 2}, []int{1}, []int{1}, []int{2}, []int{2})
			s.is(map[string]uint64{"delivered": 2, "retried": 3})
		})
	})
	t.Run("no half is sent while the circuit is open", func(t *testing.T) {
		logged(func() {
			onStage(t, opts{"batch.maxEvents": 2, "workers": 2}, nil, func(t *testing.T, s *stage) {
				s.send(2)
				s.send(2)
				s.answer(3, reply{status: 410})
				s.answer(1, reply{status: 413})
				if got := s.unanswered(); len(got) != 0 {
					t.Errorf("got attempts for %v; want none", got)
					return
				}
				s.is(map[string]uint64{"failed gone": 2, "failed circuit_open": 2})
			})
		})
	})
	t.Run("no half is sent before Retry-After", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 2, "workers": 2}, nil, func(t *testing.T, s *stage) {
			s.send(2)
			s.send(2)
			s.answer(3, reply{status: 429, after: "5"})
			s.answer(1, reply{status: 413})
			if got := s.unanswered(); len(got) != 0 {
				t.Errorf("got attempts for %v; want none before Retry-After", got)
			}
		})
	})
}

func TestExpiryThinsABatch(t *testing.T) {
	for _, compression := range []string{"none", "gzip"} {
		onStage(t, opts{"batch.maxEvents": 100, "batch.flushInterval": "10s", "maxAge": "15s", "workers": 1, "compression": compression}, nil, func(t *testing.T, s *stage) {
			s.send(4)
			s.wait(8 * time.Second)
			s.send(4)
			s.wait(2 * time.Second)
			s.cameAs(upTo(8))
			s.answer(1, reply{status: 503, after: "5"}) // the first ones are just not too old
			s.wait(5 * time.Second)
			s.cameAs(upTo(8), upTo(8))
			s.answer(1, reply{status: 503, after: "5"})
			s.is(map[string]uint64{"failed expired": 4, "inFlight": 4, "retried": 1})
			s.wait(5 * time.Second)
			s.cameAs(upTo(8), upTo(8), fromTo(5, 8))
			if s.came()[0].id != s.came()[1].id || s.came()[0].id == s.came()[2].id {
				t.Error("got the same id for other content, or another for the same; want an id for each content")
			}
			if s.came()[0].events[4].ID != s.came()[2].events[0].ID {
				t.Error("got another id of an event; want it kept")
			}
			s.answer(5, reply{status: 503}) // attempts are those of the batch, three in all
			s.is(map[string]uint64{"failed expired": 4, "failed server_error": 4, "retried": 2})
		})
	}
}

func TestEndFlushesTheBatchAtOnce(t *testing.T) {
	options := opts{"batch.maxEvents": 100, "batch.flushInterval": "1m", "workers": 3}
	t.Run("when the pipeline is replaced", func(t *testing.T) {
		onStage(t, options, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.send(5)
			s.cancel()
			s.wait(gracePeriod - 1)
			s.cameAt()
			s.wait(1)
			s.cameAt(gracePeriod)
			s.cameAs(upTo(5))
			if !registryIsEmpty() {
				t.Error("got a pipeline; want it gone with the batch")
			}
			s.send(3) // late ones
			s.wait(0)
			s.gotEach(upTo(8))
		})
	})
	t.Run("at SIGTERM, and what comes then does not wait", func(t *testing.T) {
		defer func() { ending = false }()
		onStage(t, options, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.send(5)
			s.wait(time.Second)
			s.cameAt()
			signals <- syscall.SIGTERM
			synctest.Wait()
			s.cameAt(time.Second)
			s.cameAs(upTo(5))
			s.send(3)
			if s.time() != time.Second {
				t.Errorf("got %v passed; want none", s.time())
			}
			s.gotEach(upTo(8))
		})
	})
}

func TestQueueSmallerThanABatch(t *testing.T) {
	for _, size := range []int{1, 2, 5, 50} {
		for _, overflow := range []string{"dropNewest", "dropOldest"} {
			t.Run(fmt.Sprint(size, " ", overflow), func(t *testing.T) {
				onStage(t, opts{"batch.maxEvents": 100, "queueSize": size, "overflow": overflow, "workers": 2}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
					for range 250 {
						s.send(1)
					}
					s.wait(flush)
					s.gotEach(upTo(250)) // none is lost, as the worker takes them out
					if got := len(s.came()); got != 3 {
						t.Errorf("got %d batches; want 100, 100 and 50 events: %v", got, s.batches())
					}
				})
			})
		}
	}
	t.Run("while all workers hang, dropOldest keeps the newest", func(t *testing.T) {
		onStage(t, opts{"batch.maxEvents": 2, "queueSize": 3, "overflow": "dropOldest", "workers": 1}, nil, func(t *testing.T, s *stage) {
			s.send(2)
			s.send(7)
			s.is(map[string]uint64{"inFlight": 2, "waiting": 3, "failed queue_full": 4})
			s.answer(1, reply{status: 204})
			s.cameAs([]int{1, 2}, []int{7, 8})
		})
	})
}

func TestPanicCostsOneEventOfABatch(t *testing.T) {
	broken := map[string]func(s *stage) *capture{
		"before anything is written": func(s *stage) *capture {
			return &capture{at: time.Now(), method: "GET", uri: "/a?b", header: http.Header{}, body: &body{budget: s.pipe.budget}} // without settings
		},
		"in the middle of it": func(s *stage) *capture {
			return &capture{set: s.pipe.set, at: time.Now(), method: "GET", uri: "/a?b", header: http.Header{}, body: &body{budget: s.pipe.budget, kept: -1, full: [][]byte{nil}}} // of less than no bytes
		},
	}
	for i := range 6 {
		at := []int{0, 3, 5}[i/2]
		when := []string{"before anything is written", "in the middle of it"}[i%2]
		t.Run(fmt.Sprint("after ", at, " events, ", when), func(t *testing.T) {
			logged(func() {
				onStage(t, opts{"batch.maxEvents": 10, "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
					for i := range 6 {
						if i == at {
							offer(s.pipe, broken[when](s))
							continue
						}
						s.send(1)
					}
					s.wait(flush)
					s.gotEach(slices.DeleteFunc(upTo(6), func(i int) bool { return i == at+1 }))
					s.is(map[string]uint64{"delivered": 5, "failed internal_error": 1})
				})
			})
		})
	}
	t.Run("one that is alone leaves nothing to send", func(t *testing.T) {
		logged(func() {
			onStage(t, opts{"batch.maxEvents": 10, "workers": 1}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
				offer(s.pipe, &capture{at: time.Now(), method: "GET", uri: "/a?b", header: http.Header{}, body: &body{budget: s.pipe.budget}})
				s.wait(flush)
				s.cameAt()
				s.is(map[string]uint64{"failed internal_error": 1})
				s.send(1)
				s.wait(flush)
				s.gotEach([]int{2})
			})
		})
	})
}

func TestCircuitOpensWhileABatchIsGathered(t *testing.T) {
	logged(func() {
		onStage(t, opts{"batch.maxEvents": 3, "workers": 2, "circuitBreaker.failures": 1, "retry.attempts": 1}, nil, func(t *testing.T, s *stage) {
			s.send(3)
			s.send(2) // in another's batch
			s.answer(1, reply{status: 503})
			s.state(breakerOpen)
			s.send(1)
			s.wait(flush)
			s.is(map[string]uint64{"failed server_error": 3, "failed circuit_open": 2, "dropped circuit_open": 1})
			s.wait(10*time.Second - flush)
			s.state(breakerHalfOpen)
			s.send(3)
			s.send(3)
			if got := s.unanswered(); !slices.Equal(got, []int{7}) {
				t.Errorf("got attempts for %v; want one probe", got)
			}
			s.answer(7, reply{status: 204})
			s.answer(10, reply{status: 204})
			s.state(breakerClosed)
		})
	})
}

func TestEventsThatWaitForABatchFailWithTheCircuit(t *testing.T) {
	logged(func() {
		onStage(t, opts{"batch.maxEvents": 3, "workers": 1, "circuitBreaker.failures": 1, "retry.attempts": 1}, nil, func(t *testing.T, s *stage) {
			s.send(3)
			s.send(5)
			s.is(map[string]uint64{"inFlight": 3, "waiting": 5})
			s.answer(1, reply{status: 503})
			s.is(map[string]uint64{"failed server_error": 3, "failed circuit_open": 5})
		})
	})
}

// More events than workers can take, for a while: nothing is lost twice or sent twice.
func TestBatchesUnderLoad(t *testing.T) {
	for _, workers := range []interface{}{1, 4, "auto"} {
		onStage(t, opts{"batch.maxEvents": 50, "workers": workers, "queueSize": 300, "batch.maxSize": "8Ki"}, []reply{{status: 204, delay: 20 * time.Millisecond}}, func(t *testing.T, s *stage) {
			for range 150 {
				s.sendNow(20)
				s.wait(3 * time.Millisecond)
			}
			s.wait(10 * time.Second)
			n := s.tally()
			if n.Delivered+n.Dropped[reasonQueueFull] != 3000 || n.Delivered < 300 {
				t.Errorf("got %+v; want 3000 events delivered or dropped", n)
			}
			got := s.delivered()
			if uniques := len(slices.Compact(got)); uniques != int(n.Delivered) {
				t.Errorf("got %d events at the receiver; want the %d delivered, each once", uniques, n.Delivered)
			}
		})
	}
}

// A worker that changes how many there may be does not touch what wakes the one that
// gathers.
func TestEventIsGatheredAfterAnotherWorkerWasDone(t *testing.T) {
	onStage(t, opts{"batch.maxEvents": 100, "workers": "auto", "timeout": "1m"}, nil, func(t *testing.T, s *stage) {
		event := 0
		post := func() int {
			event++
			s.send(1)
			s.wait(time.Second)
			return event
		}
		for s.pipe.adaptive.limit < 2 {
			s.answer(post(), reply{status: 204})
		}
		slow, quick := post(), post()
		s.answer(quick, reply{status: 204})
		s.answer(slow, reply{status: 204})
		s.answer(post(), reply{status: 204})
		s.is(map[string]uint64{"delivered": uint64(event)})
	})
}
