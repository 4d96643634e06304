//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// state is the circuit breaker's, as the counters show it.
func (s *stage) state(want string) {
	s.t.Helper()
	if got := s.tally().CircuitBreaker; got != want {
		s.t.Errorf("at %v: got a circuit that is %s; want %s", s.time(), got, want)
	}
}

// failing are answers that count as failures of the receiver.
var failing = map[string]reply{
	"500": {status: 500}, "503": {status: 503}, "599": {status: 599}, "no connection": {err: errors.New("refused")}, "no answer": {hang: true},
}

// working are answers that tell of a receiver that works.
var working = map[string]reply{
	"200": {status: 200}, "204": {status: 204}, "302": {status: 302}, "400": {status: 400}, "404": {status: 404},
	"408": {status: 408}, "413": {status: 413}, "425": {status: 425}, "429": {status: 429},
	"503 with Retry-After": {status: 503, after: "1"},
}

func TestCircuitOpensAfterFailuresInARow(t *testing.T) {
	for name, r := range failing {
		t.Run(name, func(t *testing.T) {
			logged(func() {
				onStage(t, opts{"circuitBreaker.failures": 3, "retry.attempts": 1, "workers": 1, "timeout": "1s"}, []reply{r}, func(t *testing.T, s *stage) {
					for range 2 {
						s.send(1)
						s.wait(time.Second)
						s.state(breakerClosed)
					}
					s.send(1)
					s.wait(time.Second)
					s.state(breakerOpen)
					s.send(5)
					if got := len(s.times()); got != 3 {
						t.Errorf("got %d attempts; want none after the third", got)
					}
					if n := s.tally(); n.Dropped[reasonCircuitOpen] != 5 || sum(n.Failed) != 3 {
						t.Errorf("got %+v; want 3 failed and 5 dropped", n)
					}
				})
			})
		})
	}
}

func TestAnythingButAFailureIsASuccessToTheCircuit(t *testing.T) {
	for name, r := range working {
		t.Run(name+" between failures begins the count anew", func(t *testing.T) {
			logged(func() {
				onStage(t, opts{"circuitBreaker.failures": 3, "retry.attempts": 1, "workers": 1}, nil, func(t *testing.T, s *stage) {
					for i, answer := range []reply{{status: 500}, {status: 500}, r, {status: 500}, {status: 500}} {
						s.send(1)
						s.answer(i+1, answer)
						s.state(breakerClosed)
						s.wait(time.Second) // as Retry-After wants
					}
					s.send(1)
					s.answer(6, reply{status: 500})
					s.state(breakerOpen)
				})
			})
		})
		t.Run(name+" closes a half-open circuit", func(t *testing.T) {
			logged(func() {
				onStage(t, opts{"circuitBreaker.failures": 1, "retry.attempts": 1, "workers": 1}, nil, func(t *testing.T, s *stage) {
					s.send(1)
					s.answer(1, reply{status: 500})
					s.wait(10*time.Second - 1)
					s.state(breakerOpen)
					s.wait(1)
					s.state(breakerHalfOpen)
					s.send(1)
					s.state(breakerHalfOpen)
					s.answer(2, r)
					s.state(breakerClosed)
				})
			})
		})
	}
}

func TestCircuitThatFailuresNeverOpen(t *testing.T) {
	logged(func() {
		onStage(t, opts{"circuitBreaker.failures": 0, "retry.attempts": 1}, []reply{{status: 500}}, func(t *testing.T, s *stage) {
			for range 50 {
				s.send(1)
			}
			s.state(breakerClosed)
			s.is(map[string]uint64{"failed server_error": 50})
			s.play(reply{status: 410})
			s.send(1) // which opens it, whatever failures says
			s.state(breakerOpen)
			s.wait(10*time.Minute - 1)
			s.state(breakerOpen)
			s.wait(1)
			s.state(breakerHalfOpen)
		})
	})
}

func TestOpenCircuitCapturesNothing(t *testing.T) {
	logged(func() {
		onStage(t, opts{"circuitBreaker.failures": 1, "retry.attempts": 1}, []reply{{status: 500}}, func(t *testing.T, s *stage) {
			s.send(1)
			s.state(breakerOpen)
			at := s.time()
			source := &upload{rest: textOf(5000), step: 1000}
			req := uploadOf(source, 5000)
			given := req.Body
			var seen *http.Request
			s.mirror.next = http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) { seen = req })
			s.mirror.ServeHTTP(nil, req)
			if seen == nil || seen.Body != given {
				t.Error("got a tee in the body; want the body as it came, as nothing is captured")
			}
			if held := bytesHeld(s.pipe); held != 0 || s.time() != at {
				t.Errorf("got %d bytes held, %v spent; want none", held, s.time()-at)
			}
			s.is(map[string]uint64{"failed server_error": 1, "dropped circuit_open": 1})
		})
	})
}

func TestOneProbeDecidesForAllThatWait(t *testing.T) {
	for _, passes := range []bool{true, false} {
		t.Run(fmt.Sprint("the probe passes: ", passes), func(t *testing.T) {
			logged(func() {
				onStage(t, opts{"circuitBreaker.failures": 1, "retry.attempts": 1, "workers": 4, "queueSize": 10}, nil, func(t *testing.T, s *stage) {
					s.send(1)
					s.answer(1, reply{status: 500})
					s.wait(10 * time.Second)
					s.send(8)
					s.is(map[string]uint64{"failed server_error": 1, "inFlight": 4, "waiting": 4})
					if got := s.unanswered(); len(got) != 1 {
						t.Fatalf("got attempts for %v; want one probe", got)
					}
					s.wait(time.Second)
					probe := s.unanswered()[0]
					if !passes {
						s.answer(probe, reply{status: 503})
						s.state(breakerOpen)
						s.is(map[string]uint64{"failed server_error": 2, "failed circuit_open": 7})
						s.wait(10*time.Second - 1)
						s.state(breakerOpen)
						s.wait(1)
						s.state(breakerHalfOpen)
						return
					}
					s.answer(probe, reply{status: 204})
					s.state(breakerClosed)
					s.is(map[string]uint64{"failed server_error": 1, "inFlight": 4, "waiting": 3, "delivered": 1})
					for range 7 {
						s.answer(s.unanswered()[0], reply{status: 204})
					}
					s.is(map[string]uint64{"failed server_error": 1, "delivered": 8})
				})
			})
		})
	}
}

func TestRetriesFailWhenTheCircuitOpens(t *testing.T) {
	logged(func() {
		onStage(t, opts{"circuitBreaker.failures": 3, "retry.attempts": 10, "retry.initialInterval": "5s", "workers": 3}, nil, func(t *testing.T, s *stage) {
			s.send(3)
			for _, sequence := range upTo(3) {
				s.answer(sequence, reply{status: 503})
			}
			s.state(breakerOpen)
			s.wait(time.Minute)
			s.is(map[string]uint64{"failed circuit_open": 3})
			s.cameAt(0, 0, 0)
		})
	})
}

// An attempt that began before the circuit opened may end while it is half open.
func TestOldAttemptAndProbe(t *testing.T) {
	options := opts{"circuitBreaker.failures": 1, "circuitBreaker.openFor": "1s", "retry.attempts": 1, "workers": 4, "timeout": "1m"}
	// 1 is old, 2 opens the circuit, one of 3 and 4 is the probe and the other waits for it.
	half := func(s *stage) (probe int) {
		s.send(2)
		s.answer(2, reply{status: 503})
		s.wait(time.Second)
		s.send(2)
		for _, sequence := range s.unanswered() {
			if sequence > 2 {
				probe += sequence
			}
		}
		if probe > 4 || probe < 3 {
			s.t.Fatalf("got attempts for %v; want one probe, of 3 or 4", s.unanswered())
		}
		return probe
	}
	t.Run("an old success closes the circuit, the probe passes and those that waited go on", func(t *testing.T) {
		logged(func() {
			onStage(t, options, nil, func(t *testing.T, s *stage) {
				probe := half(s)
				s.answer(1, reply{status: 204})
				s.state(breakerClosed)
				s.answer(probe, reply{status: 204})
				if got := s.unanswered(); len(got) != 1 || got[0] != 7-probe {
					t.Errorf("got attempts for %v; want one for %d, which waited for the probe", got, 7-probe)
					close(s.pipe.gate.probe) // so that the bubble can end
					return
				}
				s.answer(7-probe, reply{status: 204})
				s.is(map[string]uint64{"delivered": 3, "failed server_error": 1})
			})
		})
	})
	t.Run("an old failure is not the probe's", func(t *testing.T) {
		logged(func() {
			onStage(t, options, nil, func(t *testing.T, s *stage) {
				probe := half(s)
				s.answer(1, reply{status: 503})
				s.state(breakerHalfOpen)
				s.answer(probe, reply{status: 204})
				s.state(breakerClosed)
				s.answer(7-probe, reply{status: 204})
				s.is(map[string]uint64{"delivered": 2, "failed server_error": 2})
			})
		})
	})
	t.Run("410 to an old attempt counts for ten minutes, whatever becomes of the probe", func(t *testing.T) {
		for _, r := range []reply{{status: 503}, {status: 204}} {
			logged(func() {
				onStage(t, options, nil, func(t *testing.T, s *stage) {
					probe := half(s)
					s.answer(1, reply{status: 410})
					s.state(breakerOpen)
					s.answer(probe, r)
					s.state(breakerOpen)
					s.wait(10*time.Minute - 1)
					s.state(breakerOpen)
					s.wait(1)
					s.state(breakerHalfOpen)
				})
			})
		}
	})
}

func TestOthersGoOnWhileTheProbeWaitsForAnotherAttempt(t *testing.T) {
	logged(func() {
		onStage(t, opts{"circuitBreaker.failures": 1, "workers": 2, "retry.attempts": 2, "retry.initialInterval": "1h", "retry.maxInterval": "1h", "maxAge": "24h"}, nil, func(t *testing.T, s *stage) {
			s.send(1)
			s.answer(1, reply{status: 410})
			s.wait(10 * time.Minute)
			s.send(2)
			probe := s.unanswered()[0]
			s.answer(probe, reply{status: 408})
			s.state(breakerClosed)
			if got := s.unanswered(); len(got) != 1 || got[0] != 5-probe {
				t.Errorf("got attempts for %v; want one for %d at once", got, 5-probe)
			}
		})
	})
}

func TestProbeThatIsNeverSentLeavesTheProbeToTheNext(t *testing.T) {
	logged(func() {
		onStage(t, opts{"circuitBreaker.failures": 1, "retry.attempts": 1, "workers": 2, "maxEventSize": "4Ki"}, nil, func(t *testing.T, s *stage) {
			s.send(1)
			s.answer(1, reply{status: 500})
			s.wait(10 * time.Second)
			s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/" + strings.Repeat("a", 9000), Proto: "HTTP/1.1"})
			synctest.Wait()
			s.is(map[string]uint64{"failed server_error": 1, "failed too_large": 1})
			s.state(breakerHalfOpen)
			s.send(1)
			s.answer(3, reply{status: 204})
			s.state(breakerClosed)
		})
	})
}

func TestGoneKeepsTheCircuitOpenForTenMinutes(t *testing.T) {
	for _, failures := range []int{0, 1, 100} {
		logged(func() {
			onStage(t, opts{"circuitBreaker.failures": failures, "circuitBreaker.openFor": "1s"}, []reply{{status: 410}, {status: 410}, {status: 204}}, func(t *testing.T, s *stage) {
				for range 2 { // the probe is gone, too
					s.send(1)
					s.state(breakerOpen)
					s.wait(10*time.Minute - 1)
					s.state(breakerOpen)
					s.wait(1)
					s.state(breakerHalfOpen)
				}
				s.send(1)
				s.state(breakerClosed)
				s.is(map[string]uint64{"failed gone": 2, "delivered": 1})
			})
		})
	}
}

func TestEachChangeOfTheCircuitIsLoggedOnce(t *testing.T) {
	text := logged(func() {
		onStage(t, opts{"circuitBreaker.failures": 4, "retry.attempts": 1, "workers": 4}, []reply{{status: 503}}, func(t *testing.T, s *stage) {
			s.send(40)
			for range 5 { // probes that fail
				s.wait(10 * time.Second)
				s.send(3)
			}
			s.play(reply{status: 204})
			s.wait(10 * time.Second)
			s.send(10)
		})
	})
	opened, closed := strings.Count(text, "circuit opened"), strings.Count(text, "circuit closed")
	if opened != 1 || closed != 1 {
		t.Errorf("got %d lines of an opened circuit and %d of a closed one; want 1 of each:\n%s", opened, closed, text)
	}
}

// An outage of an hour at 100 requests a second.
func TestAttemptsDuringAnOutageAreBounded(t *testing.T) {
	const (
		outage   = time.Hour
		failures = 10
		workers  = 4
		openFor  = 10 * time.Second
	)
	for name, c := range map[string]struct {
		answer reply
		takes  time.Duration // a failing attempt
	}{
		"a receiver that refuses connections": {reply{err: errors.New("refused")}, 0},
		"a receiver that hangs":               {reply{hang: true}, 5 * time.Second},
		"a receiver that answers 503":         {reply{status: 503}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			logged(func() {
				options := opts{"circuitBreaker.failures": failures, "circuitBreaker.openFor": openFor, "workers": workers}
				onStage(t, options, []reply{c.answer}, func(t *testing.T, s *stage) {
					offered := 0
					for s.time() < outage {
						// A twentieth of the load is as good as all of it: more than is tried.
						for range 5 {
							s.mirror.ServeHTTP(nil, &http.Request{Method: "GET", RequestURI: "/", Proto: "HTTP/1.1"})
							offered++
						}
						s.wait(time.Second)
					}
					// Until it opens, one for each failure and those that are under way
					// meanwhile; then a probe after each openFor.
					most := failures + workers - 1 + int(outage/(openFor+c.takes)) + 1
					least := int(outage/(openFor+c.takes+time.Second)) - 1
					if got := len(s.times()); got > most || got < least {
						t.Errorf("got %d attempts in an hour; want %d to %d", got, least, most)
					}
					if n := s.tally(); int(n.Seen) != offered || n.Delivered != 0 || n.Dropped[reasonQueueFull] > 0 {
						t.Errorf("got %+v; want all %d accounted for", n, offered)
					}
				})
			})
		})
	}
	t.Run("without a breaker, backoff and attempts bound them", func(t *testing.T) {
		logged(func() {
			onStage(t, opts{"workers": workers, "retry.attempts": 3, "queueSize": 50}, []reply{{status: 503}}, func(t *testing.T, s *stage) {
				for range 60 {
					s.send(20)
					s.wait(time.Second)
				}
				if got := len(s.times()); got > 3*60*20 {
					t.Errorf("got %d attempts; want three for each event at most", got)
				}
			})
		})
	})
}
