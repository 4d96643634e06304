package requestmirror

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// writeSecret replaces a file as one that is mounted is: at once.
func writeSecret(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

func secretNamed(letter string) string { return secretOf(strings.Repeat(letter, 24)) }

func TestSecretsComeFromFiles(t *testing.T) {
	dir := t.TempDir()
	url, secret, token := filepath.Join(dir, "url"), filepath.Join(dir, "secret"), filepath.Join(dir, "token")
	writeSecret(t, url, "http://user:one@receiver.test/one\r\n")
	writeSecret(t, secret, secretNamed("a")+"\n")
	writeSecret(t, token, "Bearer one\n")
	p := stillPipeline(t, opts{"watchURL": "file:" + url, "signingSecrets": []string{"file:" + secret, secretNamed("z")}, "customRequestHeaders": map[string]string{"X-Token": "file:" + token}})
	s := freshSender(p, 1)
	if s.url != "http://receiver.test/one" || string(s.secrets[0]) != strings.Repeat("a", 24) || s.header.Get("X-Token") != "Bearer one" {
		t.Errorf("got %s, %s, %s; want what is in the files", s.url, s.secrets, s.header)
	}
	basic := s.header.Get("Authorization")

	writeSecret(t, secret, secretNamed("b"))
	if again := freshSender(p, 1); again != s {
		t.Error("got another sender within the second; want the files looked at once a second")
	}
	next := freshSender(p, 2)
	if next == s || string(next.secrets[0]) != strings.Repeat("b", 24) || string(next.secrets[1]) != strings.Repeat("z", 24) || string(next.markerKey) != strings.Repeat("b", 24) {
		t.Errorf("got secrets %s; want the new one first", next.secrets)
	}
	if head := next.stamp.Load().(*stamp); head.second != 2 || head.header.Get("X-Token") != "Bearer one" {
		t.Errorf("got stamp %v; want that of second 2 with the old token", head)
	}
	if again := freshSender(p, 3); again != next || currentSender(p) != next {
		t.Error("got another sender though nothing changed; want the same")
	}

	writeSecret(t, token, "Bearer two")
	writeSecret(t, url, "https://user:two@other.test:8443/two")
	next = freshSender(p, 4)
	if next.url != "https://other.test:8443/two" || next.header.Get("X-Token") != "Bearer two" || next.header.Get("Authorization") == basic {
		t.Errorf("got %s, %s; want the new URL, token and password", next.url, next.header)
	}
}

func TestBadSecretLeavesTheOldOneInUse(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, secretNamed("a"))
	p := stillPipeline(t, opts{"signingSecrets": "file:" + name})
	text := logged(func() {
		for second := int64(1); second < 5; second++ {
			writeSecret(t, name, "whsec_topsecret")
			if s := freshSender(p, second); string(s.secrets[0]) != strings.Repeat("a", 24) {
				t.Errorf("got secret %s; want the old one", s.secrets[0])
			}
		}
	})
	if n := strings.Count(text, "the old one stays in use"); n != 1 || strings.Contains(text, "topsecret") || !strings.Contains(text, "signingSecrets[0]") {
		t.Errorf("got log %q; want one line that names the option and shows no secret", text)
	}
	text = logged(func() {
		writeSecret(t, name, secretNamed("b"))
		if s := freshSender(p, 5); string(s.secrets[0]) != strings.Repeat("b", 24) {
			t.Errorf("got secret %s; want the good one", s.secrets[0])
		}
	})
	if text != "" {
		t.Errorf("got log %q; want nothing", text)
	}
}

func TestFileOfASecretVanishes(t *testing.T) {
	dir := t.TempDir()
	secret, token := filepath.Join(dir, "secret"), filepath.Join(dir, "token")
	writeSecret(t, secret, secretNamed("a"))
	writeSecret(t, token, "one")
	p := stillPipeline(t, opts{"signingSecrets": "file:" + secret, "customRequestHeaders": map[string]string{"X-Token": "file:" + token}})
	s := freshSender(p, 1)
	if err := os.Remove(token); err != nil {
		t.Fatal(err)
	}
	text := logged(func() {
		if freshSender(p, 2) != s {
			t.Error("got another sender; want the old one while a file is away")
		}
	})
	if text != "" {
		t.Errorf("got log %q; want nothing, as the file may be being replaced", text)
	}
	logged(func() {
		writeSecret(t, secret, secretNamed("b"))
		freshSender(p, 3) // cannot be read as a whole
		writeSecret(t, token, "one")
		if s := freshSender(p, 4); string(s.secrets[0]) != strings.Repeat("b", 24) {
			t.Errorf("got secret %s; want the new one as soon as all files are there", s.secrets[0])
		}
	})
}

// certificate is one that signed itself, and its key, in PEM.
func certificate(t *testing.T, serial int64) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	form := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, form, form, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret}))
}

func TestCertificateAndKeyChangeTogether(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	cert, key := certificate(t, 1)
	writeSecret(t, certFile, cert)
	writeSecret(t, keyFile, key)
	p := stillPipeline(t, opts{"tls.cert": certFile, "tls.key": "file:" + keyFile})
	old := freshSender(p, 1)
	cert, key = certificate(t, 2)
	text := logged(func() {
		writeSecret(t, certFile, cert)
		if freshSender(p, 2) != old {
			t.Error("got another sender with half of a pair; want the old one")
		}
		writeSecret(t, keyFile, key)
		next := freshSender(p, 3)
		if next == old || next.transport == old.transport {
			t.Fatal("got the old sender or transport; want others, as connections are made with the certificate")
		}
		pair := next.transport.(*http.Transport).TLSClientConfig.Certificates[0]
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil || leaf.SerialNumber.Int64() != 2 {
			t.Errorf("got certificate %v (%v); want the second", leaf, err)
		}
	})
	if strings.Count(text, "the old one stays in use") > 1 || strings.Contains(text, "PRIVATE") {
		t.Errorf("got log %q; want one line at most, without the key", text)
	}
}

func TestMarkersFollowTheSecret(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, secretNamed("a"))
	m := mirrorOf(t, http.NotFoundHandler(), opts{"signingSecrets": "file:" + name}).(*Mirror)
	writeSecret(t, name, secretNamed("b"))
	freshSender(m.pipe, 1)
	timestamp := strconv.FormatInt(time.Now().Unix(), 10)
	req := httptest.NewRequest(http.MethodPost, "/", nil)
	req.Header.Set("Webhook-Timestamp", timestamp)
	req.Header.Set(markerHeader, marker([]byte(strings.Repeat("b", 24)), timestamp))
	if !isDelivery(req) {
		t.Error("got a delivery with the new secret that is not known as one; want it known")
	}
}

func TestHashKeyFromAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	writeSecret(t, name, "one\n")
	set := settingsOf(t, opts{"hashKey": "file:" + name})
	if got := currentText(set.hashFile); got != "one" {
		t.Errorf("got key %q; want that in the file", got)
	}
	for _, c := range []struct{ text, want string }{{"two\n", "two"}, {"", "two"}, {"three", "three"}} {
		writeSecret(t, name, c.text)
		set.hashFile.checked-- // as if it was a second ago
		if got := currentText(set.hashFile); got != c.want {
			t.Errorf("file %q: got key %q; want %q", c.text, got, c.want)
		}
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	set.hashFile.checked--
	if got := currentText(set.hashFile); got != "three" {
		t.Errorf("got key %q; want the last one, as the file is away", got)
	}
}

func TestSecretOfAReceiverThatIsNoMoreIsNotMissed(t *testing.T) {
	dir := t.TempDir()
	secret, gone := filepath.Join(dir, "secret"), filepath.Join(dir, "url")
	writeSecret(t, secret, secretNamed("a"))
	writeSecret(t, gone, "http://gone.test/")
	ctx, cancel := context.WithCancel(context.Background())
	_, err := New(ctx, http.NotFoundHandler(), configOf(opts{"signingSecrets": "file:" + secret, "watchURLs": "file:" + gone}), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	m := mirrorOf(t, http.NotFoundHandler(), opts{"signingSecrets": "file:" + secret}).(*Mirror)
	cancel()
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	writeSecret(t, secret, secretNamed("b"))
	logged(func() {
		if s := freshSender(m.pipe, 1); string(s.secrets[0]) != strings.Repeat("b", 24) {
			t.Errorf("got secret %s; want the new one, as the present configuration does not name the missing file", s.secrets[0])
		}
	})
}

func TestSecretIsRotatedWhileEventsAreDelivered(t *testing.T) {
	name := filepath.Join(t.TempDir(), "secret")
	writeSecret(t, name, secretNamed("a"))
	r := newReceiver(t)
	handler := mirrorOf(t, answer(""), opts{"watchURL": r.url, "signingSecrets": "file:" + name})
	serve(handler, get("/"))
	r.wait(t, 1)
	writeSecret(t, name, secretNamed("b"))
	key := []byte(strings.Repeat("b", 24))
	n := 1
	waitFor(t, "a delivery that is signed with the new secret", func() bool {
		n++
		serve(handler, get("/"))
		last := r.wait(t, n)[n-1]
		return last.header.Get("Webhook-Signature") == sign([][]byte{key}, last.header.Get("Webhook-Id"), last.header.Get("Webhook-Timestamp"), last.payload)
	})
	if got := tallyOf(t); got.Pipelines != 1 || got.Seen != uint64(n) {
		t.Errorf("got %+v; want the same pipeline", got)
	}
}

func TestReloadWhileASecretIsBadGoesOnWithTheOldOne(t *testing.T) {
	rec := newReceiver(t)
	dir := t.TempDir()
	secret, key := filepath.Join(dir, "secret"), filepath.Join(dir, "key")
	writeSecret(t, secret, secretNamed("a"))
	writeSecret(t, key, "a key")
	for _, strict := range []bool{false, true} {
		options := opts{"watchURL": rec.url, "signingSecrets": []string{"file:" + secret}, "hashKey": "file:" + key, "strict": strict, "reportInterval": 0}
		before := mirrorOf(t, answer(""), options)
		writeSecret(t, secret, "whsec_topsecret")
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
		var after http.Handler
		text := logged(func() { after = mirrorOf(t, answer(""), options) })
		old, ok := before.(*Mirror)
		reloaded, mirrors := after.(*Mirror)
		if !ok || !mirrors || reloaded.pipe != old.pipe {
			t.Fatalf("strict %v: got %T after the reload; want a mirror with the same pipeline", strict, after)
		}
		if strings.Contains(text, "topsecret") || !strings.Contains(text, "signingSecrets[0]") || !strings.Contains(text, "requests are mirrored") {
			t.Errorf("strict %v: got log %q; want the option, what follows, and no secret", strict, text)
		}
		count := rec.count()
		serve(after, get("/"))
		got := rec.wait(t, count+1)[count]
		if want := sign([][]byte{[]byte(strings.Repeat("a", 24))}, got.header.Get("Webhook-Id"), got.header.Get("Webhook-Timestamp"), got.payload); got.header.Get("Webhook-Signature") != want {
			t.Errorf("strict %v: got signature %q; want one with the secret of before", strict, got.header.Get("Webhook-Signature"))
		}
		writeSecret(t, secret, secretNamed("a"))
		writeSecret(t, key, "a key")
	}
	// What is wrong apart from the files is as wrong as ever.
	logged(func() {
		writeSecret(t, secret, "whsec_topsecret")
		handler := mirrorOf(t, answer(""), opts{"watchURL": rec.url, "signingSecrets": []string{"file:" + secret}, "workers": 0})
		if _, mirrors := handler.(*Mirror); mirrors {
			t.Error("got a mirror with workers: 0; want none")
		}
	})
}
