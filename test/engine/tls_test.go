package engine

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"
)

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

// pair is a certificate and its key, in PEM.
type pair struct{ cert, key string }

func (p pair) load(tb testing.TB) tls.Certificate {
	tb.Helper()
	c, err := tls.X509KeyPair([]byte(p.cert), []byte(p.key))
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func newAuthority(tb testing.TB, name string) *authority {
	tb.Helper()
	a := &authority{}
	p := a.issue(tb, name, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	a.pem = p.cert
	return a
}

// issue makes a certificate that is good for a day, for loopback and for both ends of a
// connection, unless it is changed. The first one is the authority's own.
func (a *authority) issue(tb testing.TB, name string, change func(*x509.Certificate)) pair {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		tb.Fatal(err)
	}
	if a.cert == nil {
		if a.cert, err = x509.ParseCertificate(der); err != nil {
			tb.Fatal(err)
		}
		a.key = key
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		tb.Fatal(err)
	}
	return pair{
		string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})),
	}
}

// TestTLS waits for log lines, which come a second after the first failure, so all of it runs at once.
func TestTLS(t *testing.T) {
	ours, theirs := newAuthority(t, "our authority"), newAuthority(t, "their authority")
	client := ours.issue(t, "traefik", nil)
	// In TLS 1.3 a client is refused after it has begun to send, and may see the end of the
	// connection before the reason for it: while it writes or reads, or before its first request.
	closedFirst := []string{"connection reset by peer", "broken pipe", "client connection force closed", "client conn could not be established"}
	refused := func(reasons ...string) []string { return append(reasons, closedFirst...) }
	secret := []string{strings.Split(client.key, "\n")[1], "PRIVATE KEY"}
	// serve has a receiver show a certificate, and ask for one of ours.
	serve := func(p pair, mutual bool) func(*receiver) {
		return func(r *receiver) {
			r.TLS = &tls.Config{Certificates: []tls.Certificate{p.load(t)}}
			if mutual {
				r.TLS.ClientAuth, r.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
				r.TLS.ClientCAs.AddCert(ours.cert)
			}
		}
	}
	good := ours.issue(t, "receiver", nil)
	with := func(ca *authority, own *pair) string {
		text := fmt.Sprintf("workers: 1\nretry: {attempts: 1}\ntls: {ca: %q", ca.pem)
		if own != nil {
			text += fmt.Sprintf(", cert: %q, key: %q", own.cert, own.key)
		}
		return text + "}"
	}
	stranger := theirs.issue(t, "stranger", nil)
	var table []scenario
	for _, bad := range []struct {
		name    string
		config  string
		prepare func(*receiver)
		cause   []string // one of them is in the log
	}{
		{"a certificate of another authority", with(theirs, nil), serve(good, false), []string{"certificate signed by unknown authority"}},
		{"a certificate that is only known to the system's authorities, of which it is none", "retry: {attempts: 1}", serve(good, false), []string{"certificate signed by unknown authority"}},
		{"an expired certificate", with(ours, nil), serve(ours.issue(t, "receiver", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-24 * time.Hour) }), false), []string{"certificate has expired"}},
		{"a certificate that is not valid yet", with(ours, nil), serve(ours.issue(t, "receiver", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(12 * time.Hour) }), false), []string{"is not yet valid"}},
		{"a certificate of another name", with(ours, nil), serve(ours.issue(t, "receiver", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"receiver.internal"} }), false), []string{"127.0.0.1 because it doesn't contain any IP SANs", "not 127.0.0.1"}},
		{"a name that tls.serverName does not ask for", with(ours, nil)[:len(with(ours, nil))-1] + ", serverName: other.internal}", serve(ours.issue(t, "receiver", func(c *x509.Certificate) { c.DNSNames = []string{"receiver.internal"} }), false), []string{"valid for receiver.internal, not other.internal"}},
		{"a client without the certificate that is asked for", with(ours, nil), serve(good, true), refused("certificate required", "bad certificate")},
		{"a client with a certificate of another authority", with(ours, &stranger), serve(good, true), refused("unknown certificate authority", "bad certificate", "certificate required")},
		{"a receiver that only speaks an old TLS", with(ours, nil), func(r *receiver) {
			serve(good, false)(r)
			r.TLS.MinVersion, r.TLS.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}, []string{"protocol version"}},
	} {
		table = append(table, scenario{name: "not delivered: " + bad.name, secure: true, config: bad.config, prepare: bad.prepare, secret: secret, want: "seen=3 enqueued=3 failed.network_error=3", do: func(c *run) {
			for range 3 {
				c.send("POST", "/", lorem)
			}
			c.settled()
			c.until("the log tells", func() bool { return len(c.logged("")) > 0 })
			lines := c.logged("")
			named := false
			for _, cause := range bad.cause {
				named = named || strings.Contains(lines[0], cause)
			}
			if len(lines) != 1 || !named || !strings.Contains(lines[0], c.recv.URL) || !strings.Contains(lines[0], "network_error: 3") {
				c.Errorf("log: got %q; want one line with the receiver, network_error: 3, and one of %q", lines, bad.cause)
			}
			c.eq("delivered", len(c.recv.deliveries()), 0)
		}})
	}
	delivered := func(c *run) {
		c.send("POST", "/", lorem)
		d := c.attempts(1)[0]
		c.eq("protocol and client", d.proto+" "+d.client, "HTTP/2.0 traefik")
		c.settled()
		c.eq("log", c.logged(""), []string(nil))
	}
	runParallel(t, append(table, []scenario{
		{name: "with the right certificates on both ends events come over HTTP/2", secure: true, config: with(ours, &client), prepare: serve(good, true), secret: secret, want: one, do: delivered},
		{name: "certificates and key may be files, with file: or without", secure: true, config: "-", prepare: serve(good, true), secret: secret, want: one, do: func(c *run) {
			c.use(c.mustNew(fmt.Sprintf("tls: {ca: %q, cert: %q, key: %q}", c.file("ca.pem", ours.pem), "file:"+c.file("cert.pem", client.cert), "file:"+c.file("key.pem", client.key))))
			delivered(c)
		}},
		{name: "several authorities may be in one file", secure: true, config: "-", prepare: serve(good, true), want: one, do: func(c *run) {
			c.use(c.mustNew(fmt.Sprintf("tls: {ca: %q, cert: %q, key: %q}", c.file("ca.pem", theirs.pem+ours.pem), client.cert, client.key)))
			delivered(c)
		}},
		{name: "tls.serverName is the name that the certificate must have", secure: true, config: with(ours, &client)[:len(with(ours, &client))-1] + ", serverName: receiver.internal}", want: one, secret: secret,
			prepare: serve(ours.issue(t, "receiver", func(c *x509.Certificate) { c.IPAddresses, c.DNSNames = nil, []string{"receiver.internal"} }), true), do: delivered},
		{name: "an authority that is replaced in its file counts without a reload", secure: true, config: "-", prepare: serve(good, false), want: "*", do: func(c *run) {
			file := c.file("ca.pem", theirs.pem)
			c.use(c.mustNew("retry: {attempts: 1}\ncircuitBreaker: {failures: 0}\ntls: {ca: '" + file + "'}"))
			c.send("POST", "/", lorem)
			c.eq("first", c.settled().String(), "seen=1 enqueued=1 failed.network_error=1")
			c.file("ca.pem", ours.pem)
			c.until("delivered", func() bool {
				c.send("POST", "/", lorem)
				return c.settled().Delivered > 0
			})
			c.eq("pipelines", c.ledger().Pipelines, int64(1))
		}},
		{name: "a client certificate that is replaced in its files counts without a reload, once both are new", secure: true, config: "-", prepare: serve(good, true), want: "*", secret: secret, do: func(c *run) {
			cert, key := c.file("cert.pem", client.cert), c.file("key.pem", client.key)
			c.use(c.mustNew(fmt.Sprintf("tls: {ca: %q, cert: %q, key: %q}", ours.pem, cert, key)))
			delivered(c)
			next := ours.issue(t, "next", nil)
			c.file("cert.pem", next.cert)
			// One without the other is a mistake, which keeps the old ones in use.
			c.sendUntil("told", func(d delivery) bool {
				c.eq("client", d.client, "traefik")
				return len(c.logged("a secret has changed")) > 0
			})
			c.file("key.pem", next.key)
			c.sendUntil("the next one", func(d delivery) bool { return d.client == "next" })
			c.eq("pipelines", c.ledger().Pipelines, int64(1))
			c.eq("lines", len(c.logged("a secret has changed")), 1)
		}},
	}...))
}
