//go:build go1.25 && !yaegi
// +build go1.25,!yaegi

package requestmirror

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const second = "http://second.test/events"

// upload sends a request with a body through a router.
func (s *stage) upload(m *Mirror, size int) {
	m.ServeHTTP(nil, uploadOf(&upload{rest: textOf(size), step: 1000, end: io.EOF}, int64(size)))
	synctest.Wait()
}

func TestReceiversGetTheSameEvents(t *testing.T) {
	onStage(t, opts{"watchURLs": second}, []reply{{status: 204}}, func(t *testing.T, s *stage) {
		for i := range 20 {
			s.upload(s.mirror, 100+i)
		}
		s.send(5)
		one, two := s.came(), s.at("second.test").came()
		if len(one) != 25 || len(two) != 25 {
			t.Fatalf("got %d and %d events; want 25 each", len(one), len(two))
		}
		of := map[string]*call{}
		for _, c := range one {
			of[c.events[0].ID] = c
		}
		for _, c := range two {
			same := of[c.events[0].ID]
			if same == nil {
				t.Fatalf("got id %s at one receiver only; want it at both", c.events[0].ID)
			}
			a, b := c.events[0], same.events[0]
			if a.Sequence == b.Sequence || a.Sequence[:12] == b.Sequence[:12] {
				t.Errorf("got sequences %s and %s; want one of each receiver's own", a.Sequence, b.Sequence)
			}
			if c.sequence != same.sequence {
				t.Errorf("got numbers %d and %d; want both without a gap", c.sequence, same.sequence)
			}
			if !bytes.Equal(bytes.Replace(c.payload, []byte(a.Sequence), []byte(b.Sequence), 1), same.payload) {
				t.Errorf("got %s and %s; want the same but for the sequence", c.payload, same.payload)
			}
		}
	})
}

func TestReceiverThatHangsCostsTheOtherNothing(t *testing.T) {
	onStage(t, opts{"watchURLs": second, "memoryLimit": 100000, "queueSize": 1000, "timeout": "10m", "maxAge": "1h"}, nil, func(t *testing.T, s *stage) {
		other := s.mirror.others[0]
		s.at("second.test").play(reply{status: 204})
		for range 200 {
			s.upload(s.mirror, 5000)
			if held := bytesHeld(s.pipe); held > 50000 || s.pipe.bodies > 50000 {
				t.Fatalf("got %d bytes held, of which %d by the one that hangs; want at most its share, 50000", held, s.pipe.bodies)
			}
		}
		s.pipeIs(other, map[string]uint64{"delivered": 200})
		for _, c := range s.at("second.test").came() {
			if w := c.events[0].Data.HTTP.Request.Body; w.Truncated || w.Size != 5000 {
				t.Fatalf("got body %v, %d bytes; want it whole at the receiver that works", w.Reason, w.Size)
			}
		}
		if held := bytesHeld(s.pipe); held != 50000 {
			t.Errorf("got %d bytes held; want ten bodies, once", held)
		}
		s.play(reply{status: 204})
		s.answerAll(reply{status: 204})
		synctest.Wait()
		whole := 0
		for _, c := range s.came() {
			w := c.events[0].Data.HTTP.Request.Body
			if !w.Truncated {
				whole++
			} else if w.Reason != cutMemory || w.Size != 5000 {
				t.Errorf("got reason %s, size %d; want memory and 5000", w.Reason, w.Size)
			}
		}
		if n := s.tally(); whole != 10 || n.Delivered != 200 || n.Truncated[cutMemory] != 190 {
			t.Errorf("got %d whole bodies, %+v; want 10, and 190 without", whole, n)
		}
	})
}

func TestBytesOfSeveralReceiversAreHeldOnce(t *testing.T) {
	onStage(t, opts{"watchURLs": []string{second, "http://third.test/"}, "memoryLimit": 100000}, nil, func(t *testing.T, s *stage) {
		s.upload(s.mirror, 5000)
		for i, p := range []*peer{s.peer, s.at("third.test"), s.at("second.test")} {
			if held := bytesHeld(s.pipe); held != 5000 {
				t.Errorf("got %d bytes held when %d were done; want 5000", held, i)
			}
			p.answer(1, reply{status: 204})
		}
		if held := bytesHeld(s.pipe); held != 0 {
			t.Errorf("got %d bytes held when all were done; want none", held)
		}
	})
}

func TestOneFullQueueOfTwo(t *testing.T) {
	for _, overflow := range []string{"dropNewest", "dropOldest"} {
		t.Run(overflow, func(t *testing.T) {
			onStage(t, opts{"watchURLs": second, "queueSize": 2, "workers": 1, "overflow": overflow}, nil, func(t *testing.T, s *stage) {
				other := s.mirror.others[0]
				s.at("second.test").play(reply{status: 204})
				for range 10 {
					s.upload(s.mirror, 100)
				}
				s.pipeIs(other, map[string]uint64{"delivered": 10})
				if n := s.tally(); n.Dropped[reasonQueueFull]+n.Failed[reasonQueueFull] != 7 || n.Waiting != 2 {
					t.Errorf("got %+v; want 7 lost at the one that hangs", n)
				}
			})
		})
	}
	t.Run("both are full, and nothing is captured", func(t *testing.T) {
		onStage(t, opts{"watchURLs": second, "queueSize": 2, "workers": 1}, nil, func(t *testing.T, s *stage) {
			for range 3 {
				s.upload(s.mirror, 100)
			}
			held := bytesHeld(s.pipe)
			req := uploadOf(&upload{rest: textOf(100), step: 10, end: io.EOF}, 100)
			body := req.Body
			s.mirror.ServeHTTP(nil, req)
			if req.Body != body || bytesHeld(s.pipe) != held {
				t.Error("got a tee in the body; want it as it came")
			}
			s.is(map[string]uint64{"inFlight": 1, "waiting": 2, "dropped queue_full": 1})
			s.pipeIs(s.mirror.others[0], map[string]uint64{"inFlight": 1, "waiting": 2, "dropped queue_full": 1})
		})
	})
}

func TestReceiversComeAndGoByReload(t *testing.T) {
	onStage(t, nil, []reply{{status: 204, delay: 300 * time.Millisecond}}, func(t *testing.T, s *stage) {
		boot := s.pipe.boot
		total := 0
		for i := range 12 {
			options := opts{}
			if i%2 == 0 {
				options["watchURLs"] = second
			}
			s.upload(s.mirror, 10)
			old := s.cancel
			late := s.mirror
			old()
			s.mirror, s.cancel = s.router(options)
			s.upload(late, 10) // a request that the old configuration still serves
			s.upload(s.mirror, 10)
			total += 3
			if s.mirror.pipe != s.pipe || s.pipe.boot != boot {
				t.Fatalf("got another pipeline of the receiver that stayed; want the same")
			}
			s.wait([]time.Duration{0, time.Second, gracePeriod, 2 * gracePeriod}[i%4])
		}
		s.wait(10 * time.Second)
		s.gotEach(upTo(total))
		s.is(map[string]uint64{"delivered": uint64(total)})
	})
}

func TestReceiverGivenTwiceIsRefused(t *testing.T) {
	for _, options := range []opts{
		{"watchURLs": []string{"http://receiver.test/events"}}, {"watchURLs": []string{second, second}}, {"watchURL": nil, "watchURLs": []string{second, second}},
	} {
		_, problems, _ := readSettings(configOf(options), t.Name())
		if !strings.Contains(strings.Join(problems, "\n"), "given twice") {
			t.Errorf("%v: got problems %q; want that a receiver is given twice", options, problems)
		}
	}
}

func TestWhatIsWrittenOfALargeSharedBodyCounts(t *testing.T) {
	onStage(t, opts{"watchURLs": []string{second}}, nil, func(t *testing.T, s *stage) {
		const size = 500_000
		s.upload(s.mirror, size)
		if held := bytesHeld(s.pipe); held < 7*size {
			t.Errorf("got %d bytes held while two workers send a body of %d; want the body, and three times what each wrote of it", held, size)
		}
		for _, p := range []*peer{s.peer, s.at("second.test")} {
			p.answer(1, reply{status: 204})
		}
		if held := bytesHeld(s.pipe); held != 0 {
			t.Errorf("got %d bytes held when all were done; want none", held)
		}
	})
}
