package main

import (
	"crypto/sha256"
	"time"
)

const (
	rememberedIDs  = 100000 // at least, and at most twice as many; likewise the others
	rememberedKeys = 20000
)

// memory is what the judge remembers of earlier requests. Its size is bounded, and
// it has no texts or cookies in it, only fingerprints.
type memory struct {
	ids      recent[string, bool]           // of events that were seen
	clients  recent[string, history]        // by address
	visitors recent[fingerprint, bool]      // who have read something
	texts    recent[fingerprint, time.Time] // when they were written first
}

// history is what one client has done.
type history struct {
	read  bool
	wrote []time.Time // the last comments, at most mostComments
}

func newMemory() *memory {
	return &memory{
		ids:      recent[string, bool]{most: rememberedIDs},
		clients:  recent[string, history]{most: rememberedKeys},
		visitors: recent[fingerprint, bool]{most: rememberedKeys},
		texts:    recent[fingerprint, time.Time]{most: rememberedKeys},
	}
}

type fingerprint [sha256.Size]byte

func fingerprintOf(s string) fingerprint { return sha256.Sum256([]byte(s)) }

// recent is a map that forgets what was put in long ago.
type recent[K comparable, V any] struct {
	most       int
	young, old map[K]V
}

func (r *recent[K, V]) get(key K) (V, bool) {
	if value, ok := r.young[key]; ok {
		return value, true
	}
	value, ok := r.old[key]
	return value, ok
}

func (r *recent[K, V]) put(key K, value V) {
	if _, ok := r.young[key]; !ok && len(r.young) >= r.most || r.young == nil {
		r.old, r.young = r.young, map[K]V{}
	}
	r.young[key] = value
}
