package e2e

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

func TestAWrongConfigurationIsToldAtOnceAndTrafficPasses(t *testing.T) {
	wrong := func(more lab.Options) lab.Options {
		o := lab.Options{
			"watchURL": "user:SECRET-PASSWORD@collector:8080", "timeout": "soon", "queueSize": -1, "overflow": "dropSome",
			"signingSecrets": []string{"SECRET-SIGNING"}, "maxBodySise": "1Mi",
		}
		for name, value := range more {
			o[name] = value
		}
		return o
	}
	cases := []struct {
		name     string
		options  lab.Options
		status   int
		mirrored bool
		told     []string // in one line of the log
	}{
		{"several problems and an unknown option", wrong(nil), 200, false,
			[]string{"watchURL", "timeout", "soon", "queueSize", "-1", "overflow", "dropSome", "signingSecrets", "maxBodySise", "maxBodySize"}},
		{"the same under strict", wrong(lab.Options{"strict": true}), 404, false,
			[]string{"watchURL", "timeout", "soon", "queueSize", "-1", "overflow", "dropSome", "signingSecrets", "maxBodySise", "maxBodySize"}},
		{"no receiver", lab.Options{"watchURL": ""}, 200, false, []string{"watchURL"}},
		{"an unknown option alone", lab.Options{"cookieName": "a"}, 200, true, []string{"cookieName", "cookieNames"}},
		{"an unknown option under strict", lab.Options{"cookieName": "a", "strict": "true"}, 404, false, []string{"cookieName", "cookieNames"}},
		{"an unknown nested option", lab.Options{"retry": map[string]any{"atempts": 2}}, 200, true, []string{"retry", "atempts", "attempts"}},
		{"a mirror that is switched off", lab.Options{"enabled": false}, 200, false, nil},
	}
	var options []lab.Options
	for _, c := range cases {
		options = append(options, c.options)
	}
	before, err := shared.traefik.Counters(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	made := mirrors(t, shared, options...)
	after, err := shared.traefik.Counters(soon(t))
	if err != nil {
		t.Fatal(err)
	}
	// Each wrong one is counted, once per router that uses it at least.
	if got, want := after.ConfigErrors-before.ConfigErrors, int64(len(cases)-1); got < want {
		t.Errorf("configErrors: grew by %d; want at least %d", got, want)
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := made[i]
			for _, p := range protocols {
				r, id := s.request(t, http.MethodPost, p.scheme, "/", strings.NewReader("body"))
				a := s.send(t, r, c.status)
				if c.status == http.StatusOK && a.report(t).SHA256 != lab.Hash([]byte("body")) {
					t.Error("backend: got another body than was sent")
				}
				if c.mirrored {
					s.event(t, id)
				}
			}
			if got := len(s.receiver.Attempts()); !c.mirrored && got != 0 {
				t.Errorf("events: got %d; want none", got)
			}
			expectTold(t, s, c.told)
		})
	}
	for _, secret := range []string{"SECRET-PASSWORD", "SECRET-SIGNING"} {
		if lines := logged(shared, secret); lines != "" {
			t.Errorf("Traefik's log has a secret: %s", lines)
		}
	}
}

// expectTold wants one error in Traefik's log that names the middleware and
// holds all the words; without words, it wants none.
func expectTold(t *testing.T, s *site, words []string) {
	t.Helper()
	var closest []string
	for line := range strings.Lines(s.world.traefik.Log()) {
		var entry struct{ Level, Message, Error string }
		if json.Unmarshal([]byte(line), &entry) != nil || entry.Level != "error" || !strings.Contains(line, s.name+"@file") {
			continue
		}
		text := entry.Message + entry.Error
		missing := []string{}
		for _, word := range words {
			if !strings.Contains(text, word) {
				missing = append(missing, word)
			}
		}
		if len(missing) == 0 && len(words) > 0 {
			return
		}
		closest = append(closest, text)
	}
	if len(words) > 0 || len(closest) > 0 {
		t.Errorf("errors in Traefik's log about %s: got %q; want one with all of %q", s.name, closest, words)
	}
}

// Container labels can only say strings.
func TestOptionsAsLabelsWriteThem(t *testing.T) {
	s := mirror(t, lab.Options{
		"methods":              "post, Put",
		"cookieNames":          "lang,visitor_*",
		"headers":              map[string]any{"defaultMode": "keep", "names": map[string]any{"X-Internal": "drop"}},
		"mirrorBody":           "true",
		"maxBodySize":          "16",
		"memoryLimit":          "1MB",
		"queueSize":            "10",
		"workers":              "2",
		"timeout":              "3",
		"maxAge":               "30s",
		"retry":                map[string]any{"attempts": "2", "initialInterval": "20ms", "maxInterval": "1"},
		"signingSecrets":       newSecret + ", " + oldSecret,
		"customRequestHeaders": map[string]any{"X-Tenant": "blog"},
		"attributes":           map[string]any{"environment": "labels"},
		"trustForwardHeader":   "false",
		"strict":               "true",
		"enabled":              "true",
	})
	r, id := s.request(t, http.MethodPut, "http", "/", strings.NewReader("a body of 25 bytes' length"))
	r.Header.Set("X-Internal", "gone")
	r.Header.Set("Cookie", "lang=de; visitor_id=1; session=2")
	s.send(t, r, http.StatusOK)
	e := s.event(t, id)
	expectBody(t, e, event.Body{Content: []byte("a body of 25 byt"), Text: true, Size: 26, Truncated: true, Reason: "limit"})
	if e.Header["x-internal"] != nil || len(e.Cookie) != 2 || e.Attributes["environment"] != "labels" {
		t.Errorf("event: got headers %v, cookies %v, attributes %v; want them as the options say", e.Header, e.Cookie, e.Attributes)
	}
	a := s.receiver.Attempts()[0]
	for _, secret := range []string{newSecret, oldSecret} {
		if err := event.Verify(secret, a.Header, a.Body); err != nil {
			t.Errorf("signature: %v", err)
		}
	}
	if got := a.Header.Get("X-Tenant"); got != "blog" {
		t.Errorf("X-Tenant: got %q; want %q", got, "blog")
	}
	s.get(t)
	l := s.settle(t, 2)
	if l.Filtered != 1 || l.QueueCapacity != 10 || l.MemoryLimit != 1_000_000 {
		t.Errorf("ledger: got filtered %d, queue capacity %d, memory limit %d; want 1, 10, 1000000", l.Filtered, l.QueueCapacity, l.MemoryLimit)
	}
}
