//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// consents sets the answers to handshakes.
func (s *peer) consents(script ...reply) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.consent = script
}

func (s *peer) askedAt(want ...time.Duration) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Equal(s.asked, want) {
		s.t.Errorf("got handshakes at %v; want %v", s.asked, want)
	}
}

const origin = "mirror.example.com"

func TestReceiverIsNotAskedWithoutRequestOrigin(t *testing.T) {
	onStage(t, nil, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		s.state(breakerClosed)
		s.send(3)
		s.askedAt()
		s.is(map[string]uint64{"delivered": 3})
	})
}

func TestReceiverIsAskedOnceBeforeTheFirstDelivery(t *testing.T) {
	for _, allowed := range []string{origin, "*", "MIRROR.example.com", " " + origin + " "} {
		text := logged(func() {
			onStage(t, opts{"requestOrigin": origin, "customRequestHeaders": map[string]string{"Authorization": "Bearer a"}}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
				s.consents(reply{status: 200, allowed: allowed, delay: time.Second})
				s.wait(time.Minute)
				s.askedAt() // nothing is to be sent
				s.send(5)
				s.cameAt()
				s.wait(time.Second)
				s.askedAt(time.Minute)
				s.is(map[string]uint64{"delivered": 5})
				s.state(breakerClosed)
				for _, at := range s.times() {
					if at != time.Minute+time.Second {
						t.Errorf("got a delivery at %v; want it after the consent", at)
					}
				}
				if s.asking.Get("Webhook-Request-Origin") != origin || s.asking.Get("Authorization") != "Bearer a" || s.asking.Get("Content-Type") != "" {
					t.Errorf("got header %v; want the origin and the authorization, no content", s.asking)
				}
				s.wait(time.Hour)
				s.send(5)
				s.askedAt(time.Minute)
			})
		})
		if text != "" {
			t.Errorf("got log %q; want nothing, as nothing was ever open", text)
		}
	}
}

func TestReceiverThatDoesNotConsentGetsNothing(t *testing.T) {
	for name, r := range map[string]reply{
		"no header": {status: 200}, "another origin": {status: 200, allowed: "other.example.com"}, "a longer name": {status: 200, allowed: "a." + origin},
		"405": {status: 405, allowed: "*"}, "302": {status: 302, allowed: "*"}, "500": {status: 500, allowed: "*"},
		"no answer": {hang: true}, "no connection": {err: errors.New("refused")},
	} {
		t.Run(name, func(t *testing.T) {
			r.delay = time.Second // all events that come at once wait for one handshake
			took := r.delay
			if r.hang {
				took = 5 * time.Second
			}
			text := logged(func() {
				onStage(t, opts{"requestOrigin": origin, "circuitBreaker.openFor": "30s"}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
					s.consents(r, r, reply{status: 200, allowed: origin})
					s.send(3)
					s.wait(took)
					s.state(breakerOpen)
					s.send(2)
					s.wait(30*time.Second - 1)
					s.state(breakerOpen)
					s.wait(1)
					s.state(breakerHalfOpen)
					s.askedAt(0)
					s.send(1)
					s.wait(took)
					s.state(breakerOpen)
					s.askedAt(0, 30*time.Second+took)
					s.wait(30 * time.Second)
					s.cameAt()
					s.send(2)
					s.state(breakerClosed)
					n := s.tally()
					if n.Delivered != 2 || sum(n.Failed) != 4 || n.Dropped[reasonCircuitOpen] != 2 {
						t.Errorf("got %+v; want 2 delivered, 4 failed and 2 dropped", n)
					}
				})
			})
			if opened, closed := strings.Count(text, "circuit opened"), strings.Count(text, "circuit closed"); opened != 1 || closed != 1 {
				t.Errorf("got %d lines of an opened circuit and %d of a closed one; want 1 of each:\n%s", opened, closed, text)
			}
		})
	}
}

func TestConsentEndsWith410(t *testing.T) {
	logged(func() {
		onStage(t, opts{"requestOrigin": origin}, []reply{{status: 410}, {status: 204}}, func(t *testing.T, s *stage) {
			s.consents(reply{status: 200, allowed: "*"})
			s.send(1)
			s.wait(10 * time.Minute)
			s.send(1)
			s.askedAt(0, 10*time.Minute)
			s.is(map[string]uint64{"failed gone": 1, "delivered": 1})
		})
	})
}

func TestAllowedRateSpacesDeliveries(t *testing.T) {
	const second = time.Second
	for name, options := range map[string]opts{"single": {"workers": 4}, "one worker": {"workers": 1}, "batches": {"workers": 4, "batch.maxEvents": 2, "batch.flushInterval": "1ms"}} {
		t.Run(name, func(t *testing.T) {
			options["requestOrigin"] = origin
			onStage(t, options, []reply{{status: 204}}, func(t *testing.T, s *stage) {
				s.consents(reply{status: 200, allowed: origin, rate: "60"})
				n := 8
				s.send(n)
				s.wait(20 * second)
				times := s.times()
				for i, at := range times {
					if i > 0 && at-times[i-1] != second {
						t.Errorf("got deliveries at %v; want one each second", times)
						break
					}
				}
				s.gotEach(upTo(n))
				s.wait(time.Minute)
				at := s.time()
				s.send(2) // what was not used is not saved up
				s.wait(second)
				if got := s.times(); got[len(times)] != at {
					t.Errorf("got a delivery at %v; want it at once, at %v", got[len(times)], at)
				}
			})
		})
	}
	t.Run("retries, too", func(t *testing.T) {
		onStage(t, opts{"requestOrigin": origin, "workers": 4, "retry.attempts": 2, "retry.initialInterval": "1ms"}, []reply{{status: 503}}, func(t *testing.T, s *stage) {
			s.consents(reply{status: 200, allowed: origin, rate: "60"})
			s.send(3)
			s.wait(10 * second)
			s.cameAt(0, second, 2*second, 3*second, 4*second, 5*second)
		})
	})
	t.Run("* is any rate", func(t *testing.T) {
		onStage(t, opts{"requestOrigin": origin}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
			s.consents(reply{status: 200, allowed: "*", rate: "*"})
			s.send(3)
			s.cameAt(0, 0, 0)
		})
	})
}
