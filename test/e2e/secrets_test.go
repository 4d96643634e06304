package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/event"
	"github.com/opencommit/requestmirror/test/lab"
)

func TestSecretsInFilesAreRotatedWithoutAReload(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	signing, token := filepath.Join(dir, "signing"), filepath.Join(dir, "token")
	put := func(file, secret string) {
		t.Helper()
		// Replaced at once, as Kubernetes and careful operators do.
		if err := os.WriteFile(file+".new", []byte(secret+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(file+".new", file); err != nil {
			t.Fatal(err)
		}
	}
	put(signing, oldSecret)
	put(token, "Bearer SECRET-OLD")
	// A Traefik of its own: a reload would find the wrong secret, and stop the mirror.
	s := mirrors(t, ownWorld(t, lab.Setup{}), lab.Options{
		"signingSecrets":       []string{"file:" + signing},
		"customRequestHeaders": map[string]string{"Authorization": "file:" + token},
	})[0]
	s.get(t)
	attempts, err := s.receiver.Wait(soon(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	expectSecrets(t, attempts[0], oldSecret, newSecret, "Bearer SECRET-OLD")

	put(signing, newSecret)
	put(token, "Bearer SECRET-NEW")
	written := time.Now().Unix()
	deliverAt(t, s, written+2)
	for _, a := range s.receiver.Attempts() {
		if stamp(t, a) >= written+2 {
			expectSecrets(t, a, newSecret, oldSecret, "Bearer SECRET-NEW")
		}
	}

	// What is no secret is told, once, and the old one stays.
	put(signing, "whsec_SECRET-WRONG")
	written = time.Now().Unix()
	deliverAt(t, s, written+2)
	deliverAt(t, s, written+3)
	last := s.receiver.Attempts()
	expectSecrets(t, last[len(last)-1], newSecret, oldSecret, "Bearer SECRET-NEW")
	if got := count(s, "a secret has changed"); got != 1 || count(s, "signingSecrets") != 1 {
		t.Errorf("Traefik's log: got %d lines about the wrong secret; want one:\n%s", got, logged(s.world, s.name+"@file"))
	}
	if l := s.settle(t, len(last)); l.Delivered != l.Seen || l.Pipelines != 1 {
		t.Errorf("ledger: got %s; want all delivered, by one pipeline", l)
	}
	expectNumbers(t, "deliveries", events(t, s.receiver.Attempts()), int64(len(last)))

	res, api := ask(t, s, http.MethodGet, s.world.traefik.API()+"/api/http/middlewares/"+s.name+"@file")
	if res.StatusCode != http.StatusOK || !strings.Contains(string(api), "file:"+signing) || !strings.Contains(string(api), "file:"+token) {
		t.Errorf("Traefik's API: got %s %s; want the names of the files", res.Status, api)
	}
	_, list := ask(t, s, http.MethodGet, s.world.traefik.API()+"/api/http/middlewares")
	if !strings.Contains(string(list), "file:"+signing) {
		t.Errorf("Traefik's API: the list of middlewares lacks file:%s", signing)
	}
	for _, secret := range []string{oldSecret, newSecret, "SECRET-OLD", "SECRET-NEW", "SECRET-WRONG"} {
		if strings.Contains(string(api)+string(list), secret) {
			t.Errorf("Traefik's API shows a secret: %.12s…", secret)
		}
		if lines := logged(s.world, secret); lines != "" {
			t.Errorf("Traefik's log has a secret: %s", lines)
		}
	}
}

func expectSecrets(t *testing.T, a lab.Attempt, signs, not, token string) {
	t.Helper()
	if err := event.Verify(signs, a.Header, a.Body); err != nil {
		t.Errorf("delivery at %d: %v", stamp(t, a), err)
	}
	if event.Verify(not, a.Header, a.Body) == nil {
		t.Errorf("delivery at %d: signed with a secret that is not in the file", stamp(t, a))
	}
	if got := a.Header.Get("Authorization"); got != token {
		t.Errorf("delivery at %d: Authorization: got %q; want %q", stamp(t, a), got, token)
	}
}

// stamp is the second in which an attempt was made.
func stamp(t *testing.T, a lab.Attempt) int64 {
	t.Helper()
	second, err := strconv.ParseInt(a.Header.Get("Webhook-Timestamp"), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return second
}

// deliverAt makes deliveries until one is made in this second or later.
func deliverAt(t *testing.T, s *site, second int64) {
	t.Helper()
	await(t, fmt.Sprintf("a delivery at %d", second), func() (bool, any, error) {
		n := len(s.receiver.Attempts())
		s.get(t)
		attempts, err := s.receiver.Wait(soon(t), n+1)
		if err != nil {
			t.Fatalf("%v; ledger: %s", err, s.ledger(t))
		}
		last := stamp(t, attempts[len(attempts)-1])
		return last >= second, last, nil
	})
}

func TestReceiversThatWantACertificate(t *testing.T) {
	t.Parallel()
	must := func(c lab.Certificate, err error) lab.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	authorities := make([]lab.Authority, 3)
	for i := range authorities {
		var err error
		if authorities[i], err = lab.NewAuthority(); err != nil {
			t.Fatal(err)
		}
	}
	servers, clients, strangers := authorities[0], authorities[1], authorities[2]
	client := must(clients.Issue(lab.Client))
	dir := t.TempDir()
	pem := func(name string, content []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	with := func(ca lab.Authority, c lab.Certificate) map[string]any {
		return map[string]any{"ca": string(ca.Cert), "cert": string(c.Cert), "key": string(c.Key)}
	}
	good := with(servers, client)
	elsewhere := with(servers, client)
	elsewhere["serverName"] = "elsewhere.test"
	named := with(servers, client)
	named["serverName"] = "named.test"
	// In TLS 1.3 a client has begun to write when its certificate is refused, and may
	// hear of the closed connection first.
	refused := func(why string) []string {
		return []string{why, "broken pipe", "connection reset by peer", "client conn could not be established", "client connection force closed"}
	}
	cases := []struct {
		name   string
		server lab.Certificate
		tls    map[string]any
		told   []string // why it was not delivered: any of these, as TLS has it; nil if it was
	}{
		{"get events from a client with one", must(servers.Issue(lab.Server)), good, nil},
		{"get events when all is in files", must(servers.Issue(lab.Server)), map[string]any{
			"ca": pem("ca.pem", servers.Cert), "cert": "file:" + pem("cert.pem", client.Cert), "key": "file:" + pem("key.pem", client.Key),
		}, nil},
		{"get events under another name", must(servers.Issue(lab.Server, lab.Named("named.test"))), named, nil},
		{"refuse a client without", must(servers.Issue(lab.Server)), map[string]any{"ca": string(servers.Cert)}, refused("certificate required")},
		{"refuse a client with one of another authority", must(servers.Issue(lab.Server)), with(servers, must(strangers.Issue(lab.Client))),
			refused("unknown certificate authority")},
		{"refuse a client with one that has expired", must(servers.Issue(lab.Server)), with(servers, must(clients.Issue(lab.Client, lab.Expired))),
			refused("expired certificate")},
		{"are refused if theirs is of another authority", must(strangers.Issue(lab.Server)), good, []string{"certificate signed by unknown authority"}},
		{"are refused if theirs has expired", must(servers.Issue(lab.Server, lab.Expired)), good, []string{"certificate has expired"}},
		{"are refused if theirs is for another name", must(servers.Issue(lab.Server)), elsewhere, []string{"wanted to match elsewhere.test"}},
	}
	var options []lab.Options
	receivers := make([]*lab.Receiver, len(cases))
	for i, c := range cases {
		var err error
		if receivers[i], err = lab.NewMutualTLSReceiver(c.server, clients); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(receivers[i].Close)
		options = append(options, lab.Options{"watchURL": receivers[i].URL, "tls": c.tls, "retry": map[string]any{"attempts": 1}, "strict": true})
	}
	made := mirrors(t, shared, options...)
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			const n = 2
			s := made[i]
			for range n {
				s.post(t, "a body")
			}
			l := s.settle(t, n)
			attempts := receivers[i].Attempts()
			if c.told == nil {
				if l.Delivered != n || len(attempts) != n || attempts[0].Proto != "HTTP/2.0" {
					t.Errorf("ledger: got %s, %d attempts; want %d delivered in HTTP/2", l, len(attempts), n)
				}
				return
			}
			if l.Failed["network_error"] != n || len(attempts) != 0 {
				t.Errorf("ledger: got %s, %d attempts; want %d failed for network_error", l, len(attempts), n)
			}
			await(t, "Traefik's log to tell", func() (bool, any, error) { return count(s, "events lost") > 0, nil, nil })
			line := logged(s.world, s.name+"@file")
			clear := false
			for _, why := range c.told {
				clear = clear || strings.Contains(line, why)
			}
			if count(s, "") != 1 || !clear || !strings.Contains(line, origin(receivers[i])) || !strings.Contains(line, "network_error: 2") {
				t.Errorf("Traefik's log: got %s; want one line with %s, network_error: 2 and one of %q", line, origin(receivers[i]), c.told)
			}
		})
	}
}
