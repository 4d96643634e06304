package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// watched are arguments for tests that look into Traefik. What it does they leave as it
// is shipped.
var watched = []string{"--api.insecure=true", "--log.noColor=true"}

// throttle is providersThrottleDuration, of which the shipped files say nothing: for so
// long after a change Traefik takes no other one from the same provider.
const throttle = 2 * time.Second

// awaitQuiet waits until Traefik would take a change at once. It must log at DEBUG.
func awaitQuiet(t *testing.T, traefik *pod) {
	t.Helper()
	changes, last := -1, time.Now()
	await(t, "Traefik to take changes at once", func() (bool, any) {
		if n := strings.Count(traefik.log.String(), "Configuration received"); n != changes {
			changes, last = n, time.Now()
		}
		return time.Since(last) > throttle, fmt.Sprintf("%d changes", changes)
	})
}

// secret is one with a signing secret in it.
func secret(namespace, name, signing string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"namespace": namespace, "name": name},
		"stringData": map[string]any{"signing": signing},
	}}
}

// TestUpdatesUnderLoadLoseNothing changes a Middleware five times while requests come in:
// each change makes a new pipeline.
func TestUpdatesUnderLoadLoseNothing(t *testing.T) {
	needSandbox(t)
	receiver := newRecorder(t, whsec(32))
	options := func(revision int) map[string]any {
		return map[string]any{
			"watchURL": receiver.url, "signingSecrets": []any{"urn:k8s:secret:reload:signing"}, "queueSize": int64(100000),
			// Longer than a test may take: what an old pipeline has must not be given up on a machine with much other work.
			"drainTimeout": "60s", "maxAge": "10m",
			"timeout": fmt.Sprintf("%ds", 10+revision), "attributes": map[string]any{"revision": fmt.Sprint(revision)}, "strict": true,
		}
	}
	apply(t, secret("reload", "reload", whsec(32)), middleware("reload", "mirror", options(0)))
	site(t, lab.cluster, "reload", "site")
	apply(t, ingress(t, "reload", "site", "reload.test", "reload-mirror@kubernetescrd"))
	installed(t, "traefik", watched...)
	awaitRoute(t, "reload.test")

	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var senders sync.WaitGroup
	sent := make([]int, 3)
	failed := make([]string, len(sent))
	for i := range sent {
		senders.Add(1)
		go func() {
			defer senders.Done()
			for ctx.Err() == nil && failed[i] == "" {
				status, answer, err := post("reload.test", fmt.Sprintf("/sent/%d/%d", i, sent[i]), "body")
				if err != nil || status != http.StatusOK || answer != "the site" {
					failed[i] = fmt.Sprint(status, answer, err)
				}
				sent[i]++
			}
		}()
	}
	for revision := 1; revision <= 5; revision++ {
		applyOne(t, lab.cluster, middleware("reload", "mirror", options(revision)))
		await(t, fmt.Sprintf("events of revision %d", revision), func() (bool, any) {
			n := len(receiver.have(func(e event) bool { return e.Data.Attributes["revision"] == fmt.Sprint(revision) }))
			return n > 10, n
		})
	}
	stop()
	senders.Wait()

	total := 0
	for i, n := range sent {
		total += n
		if failed[i] != "" {
			t.Errorf("a request failed: %s", failed[i])
		}
	}
	mirrored := func(e event) bool { return strings.HasPrefix(e.Data.URL.Path, "/sent/") }
	await(t, "all events", func() (bool, any) {
		n := len(receiver.have(mirrored))
		return n >= total, fmt.Sprintf("%d of %d", n, total)
	})
	paths := map[string]bool{}
	for _, e := range receiver.have(mirrored) {
		paths[e.Data.URL.Path] = true
	}
	if len(paths) != total {
		t.Errorf("got the events of %d requests; want those of all %d", len(paths), total)
	}
	receiver.check(t)
	t.Logf("%d requests over 5 updates, none failed and none lost", total)
}

// rotations is how often a secret is replaced until the new one counts in time. One that is
// late may be due to other work of the machine.
const rotations = 3

// TestANewSecretSignsWithinASecond replaces what is in a Secret, once as Traefik reads it,
// once as a file in Traefik's pod. What Traefik shows of both differs. Where another
// change came just before, Traefik waits.
func TestANewSecretSignsWithinASecond(t *testing.T) {
	needSandbox(t)
	var secrets []string // each signs once, so that none is taken for another
	for i := range rotations + 1 {
		secrets = append(secrets, whsec(32+8*i))
	}
	receiver := newRecorder(t, secrets...)
	tests := []struct {
		name      string
		reference string
		quiet     bool // no other change came just before
		change    func(traefik *pod, to string) error
		within    time.Duration // as the page says
		shown     bool
	}{
		{"urn", "urn:k8s:secret:rotation:signing", true, func(_ *pod, to string) error {
			return applyServed(lab.cluster, secret("rotation", "rotation", to))
		}, time.Second, true},
		{"busy", "urn:k8s:secret:busy:signing", false, func(_ *pod, to string) error {
			return applyServed(lab.cluster, secret("rotation", "busy", to))
		}, throttle + time.Second, true},
		// Files are looked at once a second, whatever Traefik does.
		{"file", "file:/run/secrets/request-mirror/signing", false, func(traefik *pod, to string) error {
			if err := applyServed(lab.cluster, secret("traefik", "request-mirror", to)); err != nil {
				return err
			}
			return traefik.write("secrets") // as a kubelet does within a minute
		}, time.Second, false},
	}
	apply(t, secret("rotation", "rotation", secrets[0]), secret("rotation", "busy", secrets[0]), secret("traefik", "request-mirror", secrets[0]))
	mirror := func(name, reference string, revision int) *unstructured.Unstructured {
		return middleware("rotation", name, map[string]any{
			"watchURL": receiver.url, "signingSecrets": []any{reference}, "attributes": map[string]any{"revision": fmt.Sprint(revision)}, "strict": true,
		})
	}
	for _, test := range tests {
		apply(t, mirror(test.name, test.reference, 0))
		site(t, lab.cluster, "rotation", test.name)
		apply(t, ingress(t, "rotation", test.name, test.name+".rotation.test", "rotation-"+test.name+"@kubernetescrd"))
	}
	traefik := installed(t, "traefik", append(watched, "--log.level=DEBUG")...)
	secretIn := func(text string) bool {
		return slices.ContainsFunc(secrets, func(s string) bool { return strings.Contains(text, s) })
	}

	for _, test := range tests {
		host := test.name + ".rotation.test"
		awaitRoute(t, host)
		n := 0
		awaitSigned := func(what string, wanted func(event) bool) {
			t.Helper()
			await(t, test.name+": "+what, func() (bool, any) {
				n++
				post(host, fmt.Sprintf("/%s/%d", test.name, n), "")
				signed := receiver.have(func(e event) bool { return e.Data.Server.Address == host && wanted(e) })
				return len(signed) > 0, n
			})
		}
		rotate := func(i int) time.Duration {
			t.Helper()
			if test.quiet {
				awaitQuiet(t, traefik)
			} else {
				applyOne(t, lab.cluster, mirror(test.name, test.reference, i))
			}
			awaitSigned("an event that the old secret signs", func(e event) bool {
				return e.Secret == secrets[i-1] && (test.quiet || e.Data.Attributes["revision"] == fmt.Sprint(i))
			})
			changed := time.Now()
			if err := test.change(traefik, secrets[i]); err != nil {
				t.Fatal(err)
			}
			awaitSigned("an event that the new secret signs", func(e event) bool { return e.Secret == secrets[i] })
			return time.Since(changed)
		}
		var took []time.Duration
		for i := 1; i <= rotations && (i == 1 || took[i-2] > test.within); i++ {
			took = append(took, rotate(i).Round(time.Millisecond))
		}
		t.Logf("%s: signed with the new secret after %v", test.name, took)
		if took[len(took)-1] > test.within {
			t.Errorf("%s: signed with the new secret after %v; want at most %v, once", test.name, took, test.within)
		}
		_, api := api(t, "/api/http/middlewares/rotation-"+test.name+"@kubernetescrd")
		if got := secretIn(api); got != test.shown {
			t.Errorf("%s: the secret in Traefik's API: got %v; want %v", test.name, got, test.shown)
		}
	}
	for _, line := range strings.Split(traefik.log.String(), "\n") {
		if secretIn(line) && !strings.Contains(line, "Configuration received") {
			t.Errorf("a secret in the log, beyond what Traefik shows of its configuration: %s", line)
		}
	}
	if !secretIn(traefik.log.String()) {
		t.Error("the debug log has no resolved secret any more: docs/how-to/install-on-kubernetes.md says that it has")
	}
	receiver.check(t)
}
