package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

// What a receiver stores is enough to tell which events are missing and why: the
// example that does it agrees, and finds out when one is taken away.
func TestReportsExplainWhatIsMissing(t *testing.T) {
	t.Parallel()
	const n = 60
	checker := buildChecker(t)
	options := lab.Options{
		"reportInterval": "1s", "queueSize": 5, "workers": 1, "signingSecrets": []string{newSecret},
		"methods": []string{"POST"},
	}
	batched := lab.Options{"batch": map[string]any{"maxEvents": 3, "flushInterval": "10ms"}}
	for name, value := range options {
		batched[name] = value
	}
	made := mirrors(t, shared, options, batched)
	for i, name := range []string{"of events each by itself", "of batches"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := made[i]
			s.receiver.Become(lab.Slow(50 * time.Millisecond))
			for range n {
				s.post(t, "too fast for the receiver")
			}
			s.get(t) // filtered
			l := s.settle(t, n+1)
			if l.Dropped["queue_full"] == 0 || l.Delivered == 0 {
				t.Fatalf("ledger: got %s; want some delivered and some dropped", l)
			}
			tells := func(r event.Report) bool { return r.Seen == n+1 && r.Waiting+r.InFlight == 0 }
			reports, err := s.receiver.WaitForReport(soon(t), "that tells of all", tells)
			if err != nil {
				t.Fatal(err)
			}
			expectReport(t, reports[len(reports)-1], l)
			for _, a := range s.receiver.Reports() {
				if err := event.Verify(newSecret, a.Header, a.Body); err != nil {
					t.Errorf("signature of a report: %v", err)
				}
			}
			if code, said := checker(t, stored(t, s.receiver)); code != 0 || !strings.Contains(said, "verdict    explained") {
				t.Errorf("checker: got code %d; want 0 and explained:\n%s", code, said)
			}

			// The last one comes when the pipeline ends, and says so.
			s.post(t, "the last one")
			s.world.change(t, func(d *lab.Dynamic) {
				delete(d.Mirrors, s.name)
				d.Routes[s.name] = lab.Route{Backend: s.backend.URL}
			})
			reports, err = s.receiver.WaitForReport(soon(t), "that is final", func(r event.Report) bool { return r.Final })
			if err != nil {
				t.Fatal(err)
			}
			l.Seen, l.Delivered = l.Seen+1, l.Delivered+1
			expectReport(t, reports[len(reports)-1], l)
			lines := stored(t, s.receiver)
			if code, said := checker(t, lines, "-final"); code != 0 || !strings.Contains(said, "verdict    explained") {
				t.Errorf("checker -final: got code %d; want 0 and explained:\n%s", code, said)
			}
			_, without, _ := bytes.Cut(lines, []byte("\n"))
			if code, said := checker(t, without, "-final"); code != 1 {
				t.Errorf("checker, when the first delivery is taken away: got code %d; want 1:\n%s", code, said)
			}
		})
	}
}

func expectReport(t *testing.T, got event.Report, want lab.Ledger) {
	t.Helper()
	if got.Seen != want.Seen || got.Filtered != want.Filtered || got.Delivered != want.Delivered ||
		lab.Reasons(got.Dropped) != lab.Reasons(want.Dropped) || lab.Reasons(got.Failed) != lab.Reasons(want.Failed) {
		t.Errorf("report: got %s; want what the ledger has: %s", got.Raw, want)
	}
}

// stored is what a receiver keeps that writes each delivery on a line.
func stored(t *testing.T, r *lab.Receiver) []byte {
	t.Helper()
	var lines bytes.Buffer
	for _, a := range append(taken(r.Attempts()), r.Reports()...) {
		if err := json.Compact(&lines, a.Body); err != nil {
			t.Fatal(err)
		}
		lines.WriteByte('\n')
	}
	return lines.Bytes()
}

// buildChecker builds the example and returns how to run it.
func buildChecker(t *testing.T) func(t *testing.T, lines []byte, args ...string) (code int, said string) {
	t.Helper()
	root, err := lab.Root()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "checker")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	build.Dir = filepath.Join(root, "examples", "checker")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	return func(t *testing.T, lines []byte, args ...string) (int, string) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "stored.jsonl")
		if err := os.WriteFile(file, lines, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(soon(t), bin, append(args, file)...)
		out, _ := cmd.CombinedOutput()
		if cmd.ProcessState == nil {
			t.Fatalf("the checker does not run: %s", cmd)
		}
		return cmd.ProcessState.ExitCode(), string(out)
	}
}
