package main

import (
	"encoding/json"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	maxVerdicts = 10000 // that can be asked for
	maxShown    = 1000  // at once
)

// verdict is what became of a comment. Its text is not in it: who has the comment finds it
// by the id of the request.
type verdict struct {
	Event     string    `json:"event"`
	RequestID string    `json:"request_id,omitempty"`
	Time      time.Time `json:"time"` // of the request
	Client    string    `json:"client"`
	Method    string    `json:"method"`
	Path      string    `json:"path"`
	Verdict   string    `json:"verdict"`
	Score     int       `json:"score"`
	Findings  []finding `json:"findings"`
	Unread    string    `json:"unread,omitempty"` // why the text was not looked at
}

type finding struct {
	Rule   string `json:"rule"`
	Weight int    `json:"weight"`
	Reason string `json:"reason"`
}

// verdicts has the last ones.
type verdicts struct {
	mu   sync.Mutex
	ring []verdict      // the oldest is replaced when it is full
	n    int            // that were ever added
	at   map[string]int // places in the ring, by event
}

func newVerdicts(most int) *verdicts {
	return &verdicts{ring: make([]verdict, 0, most), at: map[string]int{}}
}

func (s *verdicts) add(v verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place := s.n % cap(s.ring)
	if s.n++; place == len(s.ring) {
		s.ring = append(s.ring, v)
	} else {
		delete(s.at, s.ring[place].Event)
		s.ring[place] = v
	}
	s.at[v.Event] = place
}

func (s *verdicts) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// last returns the newest ones of a client, or of all if it is empty, the newest first.
func (s *verdicts) last(client string, limit int) []verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	found := []verdict{}
	for i := 1; i <= len(s.ring) && len(found) < limit; i++ {
		if v := s.ring[(s.n-i)%cap(s.ring)]; client == "" || v.Client == client {
			found = append(found, v)
		}
	}
	return found
}

func (s *verdicts) of(event string) (verdict, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place, ok := s.at[event]
	if !ok {
		return verdict{}, false
	}
	return s.ring[place], true
}

func (s *verdicts) showLast(w http.ResponseWriter, req *http.Request) {
	limit := 100
	if given := req.FormValue("limit"); given != "" {
		n, err := strconv.Atoi(given)
		if err != nil || n < 1 || n > maxShown {
			http.Error(w, "limit: want a number from 1 to "+strconv.Itoa(maxShown), http.StatusBadRequest)
			return
		}
		limit = n
	}
	show(w, s.last(req.FormValue("client"), limit))
}

func (s *verdicts) showOne(w http.ResponseWriter, req *http.Request) {
	v, ok := s.of(req.PathValue("event"))
	if !ok {
		http.Error(w, "no verdict: not a comment, not judged yet, or too long ago", http.StatusNotFound)
		return
	}
	show(w, v)
}

func show(w http.ResponseWriter, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff") // reasons quote what clients sent
	_ = json.NewEncoder(w).Encode(value)                // the client may be gone
}
