package e2e

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

func TestWhateverAReceiverDoesClientsAreServedAndLossesAreCounted(t *testing.T) {
	// Four events in two attempts each stay below the failures that open the
	// circuit breaker.
	const n = 4
	type counts = map[string]int64
	cases := []struct {
		name      string
		behaviour lab.Behaviour // nil: down
		options   lab.Options
		delivered int64
		failed    counts
		shut      int64 // events that find the circuit open, in the queue or before it
		attempts  int   // at the receiver, -1 when it depends
		cutShort  bool  // the receiver never gets to the end of its answer
		final     bool  // no event is delivered any more, also when it recovers
	}{
		{name: "is down", failed: counts{"network_error": n}},
		{name: "hangs", behaviour: lab.Hang(), failed: counts{"timeout": n}, attempts: 2 * n},
		{name: "drips the header of its answer", behaviour: lab.DripHeader(20 * time.Millisecond), failed: counts{"timeout": n}, attempts: 2 * n},
		{name: "drips its answer", behaviour: lab.Drip(20 * time.Millisecond), delivered: n, attempts: n, cutShort: true},
		{name: "floods its answer", behaviour: lab.Flood(), delivered: n, attempts: n, cutShort: true},
		{name: "floods the header of its answer", behaviour: lab.FloodHeaders(256 << 10), failed: counts{"network_error": n}, attempts: 2 * n},
		{name: "answers 500", behaviour: lab.Status(500, nil), failed: counts{"server_error": n}, attempts: 2 * n},
		{name: "answers 500 once", behaviour: lab.Script(lab.Status(500, nil), lab.OK()), delivered: n, attempts: n + 1},
		{name: "answers 429 with Retry-After once", behaviour: lab.Script(lab.Status(429, lab.RetryAfter(1)), lab.OK()), delivered: n, attempts: n + 1},
		{name: "answers 503 with Retry-After once", behaviour: lab.Script(lab.Status(503, lab.RetryAfter(1)), lab.OK()), delivered: n, attempts: n + 1},
		{name: "answers 429 for ever", behaviour: lab.Status(429, nil), failed: counts{"rejected": n}, attempts: 2 * n},
		{name: "wants to be left alone for longer than maxAge", behaviour: lab.Status(429, lab.RetryAfter(3600)),
			options: lab.Options{"maxAge": "2s"}, failed: counts{"expired": n}, attempts: -1, final: true},
		{name: "answers 410", behaviour: lab.Status(410, nil), options: lab.Options{"workers": 1},
			failed: counts{"gone": 1}, shut: n - 1, attempts: 1, final: true},
		{name: "answers 413", behaviour: lab.Status(413, nil), failed: counts{"too_large": n}, attempts: n},
		{name: "answers 404", behaviour: lab.Status(404, nil), failed: counts{"rejected": n}, attempts: n},
		{name: "redirects", behaviour: lab.Redirect("/elsewhere"), failed: counts{"rejected": n}, attempts: n},
	}
	var options []lab.Options
	for _, c := range cases {
		o := lab.Options{
			"timeout": "500ms", "workers": 2,
			"retry": map[string]any{"attempts": 2, "initialInterval": "10ms", "maxInterval": "20ms"},
		}
		maps.Copy(o, c.options)
		options = append(options, o)
	}
	made := mirrors(t, shared, options...)
	for i, c := range cases {
		t.Run("a receiver that "+c.name, func(t *testing.T) {
			t.Parallel()
			s := made[i]
			if c.behaviour == nil {
				s.receiver.Down()
			} else {
				s.receiver.Become(c.behaviour)
			}
			for range n {
				s.get(t)
			}
			l := s.settle(t, n)
			shut := l.Dropped["circuit_open"] + l.Failed["circuit_open"]
			others := maps.Clone(l.Failed)
			delete(others, "circuit_open")
			if l.Delivered != c.delivered || lab.Reasons(others) != lab.Reasons(c.failed) || shut != c.shut || l.Lost() != sum(c.failed)+c.shut {
				t.Errorf("ledger: got %s; want delivered=%d failed{%s}, %d for circuit_open and no other loss", l, c.delivered, lab.Reasons(c.failed), c.shut)
			}
			attempts := s.receiver.Attempts()
			if c.attempts >= 0 && len(attempts) != c.attempts {
				t.Errorf("attempts: got %d; want %d", len(attempts), c.attempts)
			}
			if c.behaviour != nil && c.attempts >= 0 && l.Retried != int64(c.attempts)-c.delivered-sum(c.failed) {
				t.Errorf("retried: got %d; want %d, as %d attempts were made", l.Retried, int64(c.attempts)-n, c.attempts)
			}
			for _, a := range attempts {
				if a.Path != "/events" {
					t.Errorf("a redirect was followed to %s", a.Path)
				}
			}
			expectRetryAfter(t, attempts)
			if c.final {
				return
			}

			// One more event, and the receiver sees every gap.
			s.receiver.Become(lab.OK())
			if err := s.receiver.Up(); err != nil {
				t.Fatal(err)
			}
			s.get(t)
			l = s.settle(t, n+1)
			var taken []lab.Attempt
			for i, a := range s.receiver.Attempts() {
				before := i < len(attempts)
				if a.Answer/100 == 2 && (!before || c.delivered > 0) || before && c.cutShort {
					taken = append(taken, a)
				}
			}
			expectGaps(t, taken, l)
		})
	}
}

func sum(counts map[string]int64) (n int64) {
	for _, count := range counts {
		n += count
	}
	return n
}

// expectRetryAfter wants a second to pass between the attempts of an event.
func expectRetryAfter(t *testing.T, attempts []lab.Attempt) {
	t.Helper()
	last := map[string]lab.Attempt{}
	for _, a := range attempts {
		id := a.Header.Get("Webhook-Id")
		before, again := last[id]
		// The answer to the first is the only one with Retry-After.
		if again && (before.Answer == 429 || before.Answer == 503) && a.Answer == http.StatusNoContent {
			if wait := a.Time.Sub(before.Time); wait < time.Second {
				t.Errorf("Retry-After: 1: the next attempt came after %v", wait)
			}
		}
		last[id] = a
	}
}

// expectGaps wants the numbers that the receiver did not get to be exactly the
// events that the ledger says were lost. The last event must have arrived.
func expectGaps(t *testing.T, taken []lab.Attempt, l lab.Ledger) {
	t.Helper()
	got := map[int64]bool{}
	var boots []string
	var last int64
	for _, a := range taken {
		e := read(t, a)
		got[e.Sequence] = true
		last = max(last, e.Sequence)
		if !slices.Contains(boots, e.Boot) {
			boots = append(boots, e.Boot)
		}
	}
	if len(boots) > 1 {
		t.Errorf("sequence: got %q before the dash; want one value, as there is one pipeline", boots)
	}
	if int64(len(got)) != l.Delivered || last-int64(len(got)) != l.Lost() {
		t.Errorf("sequence: got %d of 1 to %d, %d gaps; want %d delivered and %d lost: %s",
			len(got), last, last-int64(len(got)), l.Delivered, l.Lost(), l)
	}
}

func TestNoRequestWaitsForAReceiver(t *testing.T) {
	const n, queue = 50, 2
	cases := []struct {
		overflow string
		want     []int64 // sequence numbers that the receiver gets
	}{
		{"dropNewest", []int64{1, 2, 3}},
		{"dropOldest", []int64{1, n - 1, n}},
	}
	var options []lab.Options
	for _, c := range cases {
		options = append(options, lab.Options{"overflow": c.overflow, "queueSize": queue, "workers": 1, "timeout": "60s"})
	}
	made := mirrors(t, shared, options...)
	for i, c := range cases {
		t.Run(c.overflow, func(t *testing.T) {
			s := made[i]
			open := make(chan struct{})
			s.receiver.Become(lab.Gate(open))
			s.get(t)
			if _, err := s.receiver.Wait(soon(t), 1); err != nil {
				t.Fatal(err)
			}
			// The only worker now hangs in the receiver, and all others
			// are answered while it does.
			for range n - 1 {
				s.get(t)
			}
			await(t, "all requests in the ledger", func() (bool, any, error) {
				l := s.ledger(t)
				return l.Seen == n, l, nil
			})
			if l := s.ledger(t); l.Waiting != queue || l.InFlight != 1 || l.Dropped["queue_full"]+l.Failed["queue_full"] != n-queue-1 {
				t.Errorf("while the receiver hangs: got %s; want %d waiting, 1 in flight, the rest lost for queue_full", l, queue)
			}
			close(open)
			l := s.settle(t, n)
			var got []int64
			for _, a := range s.receiver.Attempts() {
				got = append(got, read(t, a).Sequence)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) || l.Delivered != int64(len(c.want)) {
				t.Errorf("delivered: got %v, counted %d; want %v", got, l.Delivered, c.want)
			}
			if c.overflow == "dropOldest" {
				expectGaps(t, s.receiver.Attempts(), l)
			}
		})
	}
}

const (
	newSecret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"
	oldSecret = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oDC2FVsBQIhrsc"
)

func TestEveryAttemptIsSignedAndCarriesWhatReceiversNeed(t *testing.T) {
	s := mirrors(t, shared, nil)[0]
	const traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	s.world.change(t, func(d *lab.Dynamic) {
		d.Mirrors[s.name] = lab.Options{
			"watchURL":             strings.Replace(s.receiver.URL, "://", "://user:SECRET-PASSWORD@", 1),
			"signingSecrets":       []string{newSecret, oldSecret},
			"customRequestHeaders": map[string]string{"X-Tenant": "blog"},
			"retry":                map[string]any{"initialInterval": "10ms"},
		}
	})
	s.receiver.Become(lab.Script(lab.Status(500, nil), lab.OK()))
	r, id := s.request(t, http.MethodPost, "http", "/", bytes.NewReader(text(100)))
	r.Header.Set("Traceparent", traceparent)
	r.Header.Set("Cookie", "session=SECRET-SESSION")
	s.send(t, r, http.StatusOK)
	attempts, err := s.receiver.Wait(soon(t), 2)
	if err != nil {
		t.Fatal(err)
	}
	first := s.event(t, id)
	for i, a := range attempts {
		want := map[string]string{
			"Content-Type":  event.ContentType,
			"Webhook-Id":    first.ID,
			"Traceparent":   traceparent,
			"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("user:SECRET-PASSWORD")),
			"X-Tenant":      "blog",
			"Cookie":        "",
		}
		for name, value := range want {
			if got := a.Header.Get(name); got != value {
				t.Errorf("attempt %d: %s: got %q; want %q", i+1, name, got, value)
			}
		}
		if a.Method != http.MethodPost || !strings.HasPrefix(a.Header.Get("User-Agent"), "requestmirror/") {
			t.Errorf("attempt %d: got %s by %q; want POST by requestmirror/VERSION", i+1, a.Method, a.Header.Get("User-Agent"))
		}
		for _, secret := range []string{newSecret, oldSecret} {
			if err := event.Verify(secret, a.Header, a.Body); err != nil {
				t.Errorf("attempt %d: secret %.10s…: %v", i+1, secret, err)
			}
			if event.Verify(secret, a.Header, append([]byte(" "), a.Body...)) == nil {
				t.Errorf("attempt %d: a changed body verifies", i+1)
			}
		}
		if !bytes.Equal(a.Body, attempts[0].Body) {
			t.Errorf("attempt %d: the body differs from the first attempt's", i+1)
		}
	}
	for _, secret := range []string{"SECRET-PASSWORD", "SECRET-SESSION", newSecret, oldSecret} {
		if lines := logged(s.world, secret); lines != "" {
			t.Errorf("Traefik's log has a secret: %s", lines)
		}
	}
}

func TestReceiversOverTLS(t *testing.T) {
	cert, err := lab.NewCertificate("localhost")
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := lab.NewTLSReceiver(cert)
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	once := map[string]any{"attempts": 1}
	cases := []struct {
		name      string
		options   lab.Options
		delivered int64
	}{
		{"are trusted by tls.ca, and spoken to in HTTP/2", lab.Options{"tls": map[string]any{"ca": string(cert.Cert)}}, 1},
		{"are trusted with insecureSkipVerify", lab.Options{"tls": map[string]any{"insecureSkipVerify": true}}, 1},
		{"are not trusted without", lab.Options{"retry": once}, 0},
		{"are not trusted under another name", lab.Options{"retry": once, "tls": map[string]any{"ca": string(cert.Cert), "serverName": "other.test"}}, 0},
	}
	var options []lab.Options
	for _, c := range cases {
		c.options["watchURL"] = receiver.URL
		options = append(options, c.options)
	}
	made := mirrors(t, shared, options...)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := len(receiver.Attempts())
			made[i].get(t)
			l := made[i].settle(t, 1)
			if l.Delivered != c.delivered || l.Failed["network_error"] != 1-c.delivered {
				t.Fatalf("ledger: got %s; want delivered=%d, else network_error", l, c.delivered)
			}
			if c.delivered == 1 {
				if got := receiver.Attempts()[before].Proto; got != "HTTP/2.0" {
					t.Errorf("protocol: got %s; want HTTP/2.0, as the receiver offers it", got)
				}
			}
		})
	}
}

func TestDeliveriesThroughTraefikAreNotMirroredAgain(t *testing.T) {
	// The receiver is behind the same mirror.
	s := mirror(t, lab.Options{"watchURL": "http://" + shared.traefik.Web() + "/events"})
	s.world.change(t, func(d *lab.Dynamic) {
		d.Routes[s.bare()] = lab.Route{Rule: "Host(`127.0.0.1`)", Through: []string{s.name}, Backend: strings.TrimSuffix(s.receiver.URL, "/events")}
	})
	id := s.get(t)
	s.event(t, id)
	expect := func(enqueued, filtered int64) {
		t.Helper()
		l := s.settle(t, int(enqueued+filtered))
		if l.Enqueued != enqueued || l.Filtered != filtered || l.Delivered != enqueued {
			t.Fatalf("ledger: got %s; want %d enqueued and delivered, %d filtered", l, enqueued, filtered)
		}
	}
	expect(1, 1)

	// A client that has seen a delivery can't use its headers later, for a
	// request that it wants to hide.
	forged, _ := s.request(t, http.MethodPost, "http", "/events", strings.NewReader("{}"))
	id = forged.Header.Get(lab.RequestHeader)
	forged.Header = s.receiver.Attempts()[0].Header.Clone()
	forged.Header.Set(lab.RequestHeader, id)
	forged.Header.Set("Webhook-Id", "another")
	sent, err := strconv.ParseInt(forged.Header.Get("Webhook-Timestamp"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	forged.Header.Set("Webhook-Timestamp", strconv.FormatInt(sent+1, 10))
	forged.URL.Host = s.world.traefik.Web()
	forged.Host = s.world.traefik.Web()
	s.send(t, forged, http.StatusNoContent)
	expect(2, 2)
}

func TestWhatIsSelectedAndWhatLeaves(t *testing.T) {
	s := mirror(t, lab.Options{
		"methods": []string{"post", "PURGE"},
		"hashKey": "key of the pseudonyms",
		"headers": map[string]any{"names": map[string]string{"X-Client": "hash", "X-Internal": "drop", "X-Token": "redact"}},
	})
	pseudonyms := map[string]string{}
	mirrored := 0
	for i, c := range []struct {
		method, client string
		want           bool
	}{
		{"POST", "alice", true}, {"PURGE", "alice", true}, {"POST", "bob", true},
		{"GET", "alice", false}, {"purge", "alice", false}, // methods are case-sensitive
	} {
		r, id := s.request(t, c.method, "http", fmt.Sprintf("/%d", i), nil)
		r.Header.Set("X-Client", c.client)
		r.Header.Set("X-Internal", "SECRET")
		r.Header.Set("X-Token", "SECRET")
		s.send(t, r, http.StatusOK)
		if !c.want {
			continue
		}
		mirrored++
		e := s.event(t, id)
		got := e.Header["x-client"]
		if len(got) != 1 || strings.Contains(got[0], c.client) {
			t.Fatalf("hashed header: got %q; want one pseudonym", got)
		}
		if before, ok := pseudonyms[c.client]; ok && before != got[0] {
			t.Errorf("pseudonym of %s: got %q and %q; want the same", c.client, before, got[0])
		}
		pseudonyms[c.client] = got[0]
		if bytes.Contains(e.Raw, []byte("SECRET")) || e.Header["x-internal"] != nil || !slices.Equal(e.Header["x-token"], []string{"REDACTED"}) {
			t.Errorf("headers: got %v; want X-Internal dropped and X-Token redacted", e.Header)
		}
	}
	if pseudonyms["alice"] == pseudonyms["bob"] {
		t.Error("two clients have one pseudonym")
	}
	if l := s.settle(t, 5); l.Filtered != int64(5-mirrored) || l.Delivered != int64(mirrored) {
		t.Errorf("ledger: got %s; want %d filtered and %d delivered", l, 5-mirrored, mirrored)
	}
}
