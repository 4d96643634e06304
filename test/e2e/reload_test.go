package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

func TestReloadsUnderLoadLoseNothingAndLeakNothing(t *testing.T) {
	const reloads, clients = 30, 4
	cases := []struct {
		name string
		// options of the mirror in the n-th configuration
		options   func(n int) lab.Options
		pipelines int // that may have lived
	}{
		{"with the mirror's settings unchanged", func(int) lab.Options { return lab.Options{"queueSize": 50_000} }, 1},
		{"with other settings of what is captured", func(n int) lab.Options {
			return lab.Options{"queueSize": 50_000, "attributes": map[string]string{"revision": fmt.Sprint(n)}}
		}, 1},
		{"with other settings of the delivery", func(n int) lab.Options {
			return lab.Options{"queueSize": 50_000 + n, "drainTimeout": "30s"}
		}, reloads + 1},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // a Traefik of its own each
			w := ownWorld(t, lab.Setup{})
			idle := settledGoroutines(t, w, 0)
			s := mirrors(t, w, c.options(0))[0]
			for range 20 {
				s.post(t, "warm up")
			}
			s.settle(t, 20)

			// Slower than the clients, so that every reload meets a queue.
			s.receiver.Become(lab.Slow(50 * time.Millisecond))
			var (
				load    sync.WaitGroup
				sent    atomic.Int64
				stopped = make(chan struct{})
			)
			sent.Store(20)
			load.Go(func() {
				// Whoever looks meanwhile must neither see a ledger that
				// does not add up nor stop anything.
				for {
					select {
					case <-stopped:
						return
					default:
						if _, err := w.traefik.Ledger(t.Context(), s.name); err != nil {
							t.Errorf("ledger during reloads: %v", err)
							return
						}
					}
				}
			})
			for i := range clients {
				load.Go(func() {
					for {
						select {
						case <-stopped:
							return
						default:
						}
						r, _ := s.request(t, http.MethodPost, protocols[i%2].scheme, "/", strings.NewReader("under load"))
						a, err := s.do(r)
						if err != nil || a.StatusCode != http.StatusOK {
							t.Errorf("a request during reloads: got %v, %v; want 200", a.Response, err)
							return
						}
						sent.Add(1)
					}
				})
			}
			for n := 1; n <= reloads; n++ {
				w.change(t, func(d *lab.Dynamic) {
					d.Mirrors[s.name] = s.options(c.options(n))
					d.Routes["unrelated"] = lab.Route{Rule: fmt.Sprintf("Host(`unrelated-%d.test`)", n), Backend: s.backend.URL}
				})
			}
			close(stopped)
			load.Wait()

			total := sent.Load()
			s.receiver.Become(lab.OK())
			l := s.settle(t, int(total))
			if l.Seen != total || l.Delivered != total || l.Lost() != 0 {
				t.Errorf("ledger after %d requests: got %s; want all delivered", total, l)
			}
			// Per boot, that is per pipeline, numbers are contiguous.
			boots, last := map[string]map[int64]bool{}, map[string]int64{}
			for _, a := range s.receiver.Attempts() {
				e := read(t, a)
				if boots[e.Boot] == nil {
					boots[e.Boot] = map[int64]bool{}
				}
				boots[e.Boot][e.Sequence] = true
				last[e.Boot] = max(last[e.Boot], e.Sequence)
			}
			var events int64
			for boot, numbers := range boots {
				events += int64(len(numbers))
				if int64(len(numbers)) != last[boot] {
					t.Errorf("sequence %s: got %d of 1 to %d; want all", boot, len(numbers), last[boot])
				}
			}
			if events != total {
				t.Errorf("receiver: got %d events; want %d", events, total)
			}
			if len(boots) > c.pipelines {
				t.Errorf("pipelines: got %d over all reloads; want at most %d", len(boots), c.pipelines)
			}
			t.Logf("%d requests, %d pipelines in all", total, len(boots))

			await(t, "one pipeline", func() (bool, any, error) {
				l := s.ledger(t)
				return l.Pipelines == 1, l, nil
			})

			// Without the mirror nothing of it is left.
			w.change(t, func(d *lab.Dynamic) {
				delete(d.Mirrors, s.name)
				d.Routes[s.name] = lab.Route{Backend: s.backend.URL}
			})
			settledGoroutines(t, w, idle)
			// Closed, and not only given up when they have been idle for long.
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
			defer cancel()
			if err := lab.Poll(ctx, "no connection to the receiver", func() (bool, any, error) {
				n := s.receiver.Connections()
				return n == 0, n, nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
}

// settledGoroutines waits until Traefik runs no more than so many goroutines of
// interpreted code, and says how many there are.
func settledGoroutines(t *testing.T, w *world, atMost int) int {
	t.Helper()
	var interpreted int
	await(t, fmt.Sprintf("at most %d interpreted goroutines", atMost), func() (bool, any, error) {
		var err error
		_, interpreted, err = w.traefik.Goroutines(soon(t))
		return interpreted <= atMost, interpreted, err
	})
	return interpreted
}

func TestRoutersThatShareAMirrorShareItsPipeline(t *testing.T) {
	s := mirror(t, lab.Options{"workers": 2})
	s.world.change(t, func(d *lab.Dynamic) {
		for i := range 5 {
			d.Routes[fmt.Sprintf("%s-%d", s.name, i)] = lab.Route{
				Rule: fmt.Sprintf("Host(`%s.test`) && Path(`/%d`)", s.name, i), Through: []string{s.name}, Backend: s.backend.URL,
			}
		}
	})
	defer func() {
		s.world.mu.Lock()
		defer s.world.mu.Unlock()
		for i := range 5 {
			delete(s.world.dynamic.Routes, fmt.Sprintf("%s-%d", s.name, i))
		}
	}()
	for i := range 5 {
		r, _ := s.request(t, http.MethodGet, protocols[i%2].scheme, fmt.Sprintf("/%d", i), nil)
		s.send(t, r, http.StatusOK)
	}
	l := s.settle(t, 5)
	if l.Pipelines != 1 || l.Delivered != 5 {
		t.Errorf("ledger: got %s; want 5 delivered by 1 pipeline", l)
	}
	expectGaps(t, s.receiver.Attempts(), l)
}
