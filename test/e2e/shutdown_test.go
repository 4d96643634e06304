package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

func TestOnSIGTERMWhatIsQueuedGoesOutAtOnce(t *testing.T) {
	const n, grace = 5, 5 * time.Second
	lifeCycle := map[string]any{"requestAcceptGraceTimeout": grace.String()}
	w := ownWorld(t, lab.Setup{Static: map[string]any{"entryPoints": map[string]any{
		"web": map[string]any{"transport": map[string]any{"lifeCycle": lifeCycle}},
	}}})
	// After a failure the only worker would wait for up to an hour.
	s := mirrors(t, w, lab.Options{
		"workers": 1, "maxAge": "24h",
		"retry": map[string]any{"attempts": 3, "initialInterval": "1h", "maxInterval": "1h"},
	})[0]
	s.receiver.Become(lab.Status(503, nil))
	ids := make([]string, n)
	for i := range ids {
		ids[i] = s.post(t, "queued")
	}
	if _, err := s.receiver.Wait(soon(t), 1); err != nil {
		t.Fatal(err)
	}
	await(t, "the events to wait for the first of them", func() (bool, any, error) {
		l := s.ledger(t)
		return l.Waiting == n-1 && l.InFlight == 1 && len(s.receiver.Attempts()) == 1, l, nil
	})

	s.receiver.Become(lab.OK())
	told := time.Now()
	w.traefik.Terminate()
	attempts, err := s.receiver.Wait(soon(t), n+1)
	if err != nil {
		t.Fatal(err)
	}
	// Bounded by Traefik's life, and far from the backoff.
	if took := attempts[n].Time.Sub(told); took > grace {
		t.Errorf("the last event came %v after SIGTERM; want it at once", took)
	}
	for _, id := range ids {
		s.event(t, id)
	}
	// While it lives, Traefik still serves, and what comes is mirrored.
	late := s.post(t, "after SIGTERM")
	s.event(t, late)

	ctx, cancel := context.WithTimeout(t.Context(), 2*grace+10*time.Second)
	defer cancel()
	if err := w.traefik.Wait(ctx); err != nil {
		t.Errorf("the plugin kept Traefik from ending: %v", err)
	}
}
