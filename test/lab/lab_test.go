package lab_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/opencommit/requestmirror/test/lab"
)

// The lab is tested with a plugin that does nothing, so that a red end-to-end
// test can be trusted to be about the plugin.
func TestLab(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	backend := must(lab.NewBackend())(t)
	defer backend.Close()

	through := func(name string) lab.Dynamic {
		return lab.Dynamic{
			Mirrors: map[string]lab.Options{"even": {"watchURL": "http://127.0.0.1:9"}},
			Routes:  map[string]lab.Route{name: {Through: []string{"even"}, Backend: backend.URL}},
		}
	}
	traefik := must(lab.Start(ctx, lab.Setup{Plugin: "testdata/passthrough", Dynamic: through("first")}))(t)
	stopped := false
	defer func() {
		if !stopped {
			_ = traefik.Stop()
		}
	}()

	client := traefik.Client()
	get := func(url string) (int, lab.Report) {
		t.Helper()
		res := must(client.Get(url))(t)
		defer res.Body.Close()
		body := must(io.ReadAll(res.Body))(t)
		var report lab.Report
		if res.StatusCode == http.StatusOK {
			if err := json.Unmarshal(body, &report); err != nil {
				t.Fatal(err)
			}
		}
		return res.StatusCode, report
	}

	for _, url := range []string{"http://first.test/a%2Fb?c=d", "https://first.test/a%2Fb?c=d"} {
		if code, report := get(url); code != 200 || report.RequestURI != "/a%2Fb?c=d" || report.SHA256 != lab.Hash(nil) {
			t.Errorf("%s: got %d %+v; want 200 and /a%%2Fb?c=d with no body", url, code, report)
		}
	}

	for i := range 5 {
		name := fmt.Sprintf("next-%d", i)
		if err := traefik.Apply(ctx, through(name)); err != nil {
			t.Fatal(err)
		}
		for _, scheme := range []string{"http", "https"} {
			if code, _ := get(scheme + "://" + name + ".test/"); code != 200 {
				t.Fatalf("%s route %s right after Apply: got %d; want 200", scheme, name, code)
			}
		}
	}
	if code, _ := get("http://first.test/"); code != 404 {
		t.Errorf("a route that is gone: got %d; want 404", code)
	}

	counters := must(traefik.Counters(ctx))(t)
	// Two entry points make two routers, on each of the six configurations.
	if counters.ConfigErrors != 12 {
		t.Errorf("New ran %d times; want 12", counters.ConfigErrors)
	}
	if _, err := traefik.Settle(ctx, "even", 3); err != nil {
		t.Error(err)
	}
	if _, err := traefik.Ledger(ctx, "odd"); err == nil || !strings.Contains(err.Error(), "seen 3") {
		t.Errorf("a ledger that does not add up: got error %v", err)
	}
	if _, err := traefik.Ledger(ctx, "two"); err == nil || !strings.Contains(err.Error(), "2 receivers") {
		t.Errorf("the ledger of two receivers: got error %v", err)
	}
	if _, err := traefik.Ledgers(ctx, "two"); err == nil || !strings.Contains(err.Error(), "http://b: ledger: seen 3") {
		t.Errorf("one of two ledgers that does not add up: got error %v", err)
	}
	if all, err := traefik.Ledgers(ctx, "even"); err != nil || all["http://a"].Delivered != 2 {
		t.Errorf("ledgers by receiver: got %v, error %v", all, err)
	}
	if all, interpreted, err := traefik.Goroutines(ctx); err != nil || all < 10 || interpreted != 0 {
		t.Errorf("goroutines: got %d, %d interpreted, error %v; want some, none interpreted", all, interpreted, err)
	}
	if cpu, rss, err := traefik.Usage(); err != nil || cpu <= 0 || rss < 10<<20 {
		t.Errorf("usage: got %v CPU, %d bytes, error %v", cpu, rss, err)
	}

	stopped = true
	if err := traefik.Stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestReceiver(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	receiver := must(lab.NewReceiver())(t)
	defer receiver.Close()
	post := func(body string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, receiver.URL, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			res.Body.Close()
		}
		return res, err
	}

	receiver.Become(lab.Script(lab.Status(500, nil), lab.Status(429, lab.RetryAfter(7)), lab.OK()))
	for i, want := range []int{500, 429, 204, 204} {
		res, err := post(fmt.Sprint(i))
		if err != nil || res.StatusCode != want {
			t.Fatalf("attempt %d: got %v, %v; want %d", i, res, err, want)
		}
	}
	receiver.Down()
	if _, err := post("refused"); err == nil {
		t.Error("a receiver that is down answered")
	}
	if err := receiver.Up(); err != nil {
		t.Fatal(err)
	}
	if _, err := post("again"); err != nil {
		t.Errorf("a receiver that is up again: %v", err)
	}
	attempts := must(receiver.Wait(ctx, 5))(t)
	if got := attempts[4]; string(got.Body) != "again" {
		t.Errorf("last attempt: got %q; want %q", got.Body, "again")
	}
}

// A receiver tells reports from events, whatever it answers and however they are packed.
func TestReceiverOfReports(t *testing.T) {
	receiver := must(lab.NewReceiver())(t)
	defer receiver.Close()
	receiver.Become(lab.Status(503, nil))
	report := []byte(`{"type":"io.opencommit.requestmirror.report.v1"}`)
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = z.Write(report)
	_ = z.Close()
	for _, c := range []struct {
		encoding string
		body     []byte
		answer   int
	}{{"", report, 204}, {"gzip", packed.Bytes(), 204}, {"gzip", []byte("not gzip"), 503}, {"", []byte("an event"), 503}} {
		req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, receiver.URL, bytes.NewReader(c.body)))(t)
		if c.encoding != "" {
			req.Header.Set("Content-Encoding", c.encoding)
		}
		res := must(http.DefaultClient.Do(req))(t)
		res.Body.Close()
		if res.StatusCode != c.answer {
			t.Errorf("%s %.20q: got %d; want %d", c.encoding, c.body, res.StatusCode, c.answer)
		}
	}
	reports := receiver.Reports()
	if len(reports) != 2 || len(receiver.Attempts()) != 2 {
		t.Fatalf("got %d reports and %d other attempts; want 2 and 2", len(reports), len(receiver.Attempts()))
	}
	for _, a := range reports {
		if got := must(a.Payload())(t); !bytes.Equal(got, report) {
			t.Errorf("payload: got %q; want the report", got)
		}
	}
	if _, err := receiver.Attempts()[0].Payload(); err == nil {
		t.Error("a payload that is not gzip, though its header says so, was unpacked")
	}
}

func TestAuthority(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	authority := must(lab.NewAuthority())(t)
	server := must(authority.Issue(lab.Server))(t)
	receiver := must(lab.NewMutualTLSReceiver(server, authority))(t)
	defer receiver.Close()
	for _, c := range []struct {
		name   string
		client *lab.Certificate
		works  bool
	}{
		{"a client with a certificate is answered", new(must(authority.Issue(lab.Client))(t)), true},
		{"a client without one is not", nil, false},
		{"a client with a server's is not", &server, false},
		{"a client with an expired one is not", new(must(authority.Issue(lab.Client, lab.Expired))(t)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := &tls.Config{RootCAs: authority.Pool()}
			if c.client != nil {
				config.Certificates = []tls.Certificate{must(tls.X509KeyPair(c.client.Cert, c.client.Key))(t)}
			}
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			req := must(http.NewRequestWithContext(ctx, http.MethodPost, receiver.URL, http.NoBody))(t)
			res, err := transport.RoundTrip(req)
			if err == nil {
				res.Body.Close()
			}
			if (err == nil) != c.works {
				t.Errorf("got error %v; want it to work: %t", err, c.works)
			}
		})
	}
}

// must returns a function that fails the test with the error, if there is one.
func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
