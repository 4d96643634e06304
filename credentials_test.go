package requestmirror

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"expvar"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// credential is one that a request or its answer has, and that must not leave. None is
// anybody's.
type credential struct{ name, value string }

const (
	fakeJWT  = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJmYWtlLXVzZXIiLCJpYXQiOjE1MTYyMzkwMjJ9.c2lnbmF0dXJlLW9mLW5vYm9keS1hdC1hbGw"
	fakeAWS4 = "AWS4-HMAC-SHA256 Credential=AKIAFAKEFAKEFAKE0000/20260918/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc963176630326f1024"
)

// What is hidden without an option.
var (
	secretHeaders = []credential{
		{"Authorization", "Bearer " + fakeJWT},
		{"Authorization", "Basic ZmFrZS11c2VyOmZha2UtcGFzc3dvcmQtMTIz"},
		{"Authorization", fakeAWS4},
		{"Authorization", "token ghp_FakeFakeFakeFakeFakeFakeFakeFake0000"},
		{"Proxy-Authorization", "Basic cHJveHktdXNlcjpmYWtlLXByb3h5LXBhc3N3b3Jk"},
		{"X-Api-Key", "sk_live_FakeFakeFakeFake00000001"},
		{"X-API-KEY", "sk_live_FakeFakeFakeFake00000002"}, // as another middleware may write it
		{"api-key", "sk_live_FakeFakeFakeFake00000003"},
		{"x-auth-token", "sk_live_FakeFakeFakeFake00000004"},
		{"Apikey", "sk_live_FakeFakeFakeFake00000005"},
		{"X-Access-Token", "xoxb-000000000001-000000000002-FakeFakeFakeFakeFakeFake"},
		{"X-Session-Token", "fake-session-token-d8e8fca2dc0f896f"},
		{"X-Csrf-Token", "fake-csrf-token-68b329da9893e34099c7"},
		{"X-Xsrf-Token", "fake-xsrf-token-7c211433f02071597741"},
		{"Private-Token", "glpat-FakeFakeFakeFake0000"},
		{"Job-Token", "glcbt-64_FakeFakeFakeFake0001"},
		{"X-Gitlab-Token", "fake-gitlab-hook-token-0123456789"},
		{"X-Amz-Security-Token", "IQoJb3JpZ2luX2VjFake//////////wEaCWV1LXdlc3QtMSJHMEUCIQDFake="},
		{"X-Goog-Api-Key", "AIzaFakeFakeFakeFakeFakeFakeFakeFake000"},
		{"X-Vault-Token", "hvs.FakeFakeFakeFakeFakeFakeFakeFake"},
		{"Cf-Access-Client-Secret", "fake-cloudflare-secret-5f4dcc3b5aa765d6"},
		{"X-Forwarded-Access-Token", "fake-forwarded-token-1d8327deb882cf99"},
		{"X-Forwarded-Tls-Client-Cert", "MIIFakeCertificateOfNobodyAtAllFakeFake"},
		{"Set-Cookie", "session=fake-set-cookie-in-a-request-0007"},
	}
	secretCookies = []credential{
		{"session", "s%3Afake-session-0001.4Tb5Fake%2BSig"},
		{"JSESSIONID", "FAKE1B3C5D7E9F00FAKE1B3C5D7E9F02"},
		{"jwt", fakeJWT},
	}
	secretParameters = []credential{
		{"X-Amz-Signature", "fe5f80f77d5fa3beca038a248ff027d0445342fe2855ddc963176630326f0001"},
		{"X-Amz-Credential", "AKIAFAKEFAKEFAKE0001%2F20260918%2Feu-west-1%2Fs3%2Faws4_request"},
		{"x-amz-security-token", "IQoJb3JpZ2luX2VjFakeQuery%2F%2F%2FwEaCWV1LXdlc3QtMSJ%3D"},
		{"X-Goog-Signature", "fakegoogsignature247a2aa45f169edf4d187d54e7cc46e4731b1e6273242c4f"},
		{"AWSAccessKeyId", "AKIAFAKEFAKEFAKE0002"},
		{"Signature", "vjbyPxybdZaNmGa%2ByT272YEAiv4Fake%3D"},
		{"si%67", "fakeSharedAccessSignature%2B0123456789%3D"},
	}
	// In bodies, and with the option only.
	secretFields = []credential{
		{"password", "correct-horse-battery-staple-0001"},
		{"newPassword", `p4ss "quoted" \ & <fake> = ünïcode 0002`},
		{"client_secret", "fake~client~secret~8Q~0003"},
		{"access_token", fakeJWT},
		{"refresh_token", "1//fake-refresh-token-0004-AbCdEfGh"},
		{"apiKey", "sk_live_FakeFakeFakeFake00000006"},
		{"card number", "4000 0000 0000 0002"},
	}
	// In what the backend answers.
	secretAnswers = []credential{
		{"Set-Cookie", "session=fake-set-cookie-of-an-answer-0005; HttpOnly"},
		{"access_token", "fake-access-token-of-an-answer-0006"},
	}
)

// The operator's own, some of which go to the receiver: on purpose, and in one header.
const (
	receiverPassword = "fake-receiver-password-0001"
	receiverToken    = "fake-receiver-token-0002"
	hookSecret       = "fake-hook-secret-0003"
	hashSecret       = "fake-hash-key-0004"
	signingKey       = "fake-signing-key-of-24-b"
)

func namesOf(credentials []credential) []string {
	names := []string{}
	for _, c := range credentials {
		names = append(names, c.name)
	}
	return names
}

// secret is a value that must not be found anywhere, and how it would look.
type secret struct {
	value string
	forms []string
}

func allSecrets() []secret {
	values := []string{receiverPassword, receiverToken, hookSecret, hashSecret, signingKey,
		"fake-user:fake-password-123", "proxy-user:fake-proxy-password", "fake-userinfo-password-0008"}
	for _, list := range [][]credential{secretHeaders, secretCookies, secretParameters, secretFields, secretAnswers} {
		for _, c := range list {
			_, value, _ := strings.Cut(c.value, " ") // without the scheme
			if value == "" || c.name != "Authorization" && c.name != "Proxy-Authorization" {
				value = c.value
			}
			values = append(values, value)
		}
	}
	return secretsOf(values...)
}

func secretsOf(values ...string) []secret {
	secrets := []secret{}
	for _, value := range values {
		secrets = append(secrets, secret{value: value, forms: sightings(value)})
	}
	return secrets
}

// sightings are the forms of a value that would be a leak.
func sightings(value string) []string {
	forms := []string{value, url.QueryEscape(value), url.PathEscape(value), hex.EncodeToString([]byte(value))}
	if plain, err := url.QueryUnescape(value); err == nil {
		forms = append(forms, plain)
	}
	quoted, _ := json.Marshal(value)
	forms = append(forms, string(quoted[1:len(quoted)-1]), escape(value))
	if len(value) > 24 { // a part is a leak, too
		forms = append(forms, value[:12], value[len(value)-12:])
	}
	// Base64 of a text with the value anywhere in it, but for the characters that depend on
	// what is next to it.
	for shift := 0; shift < 3; shift++ {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			encoded := encoding.EncodeToString([]byte("xx"[:shift] + value))
			forms = append(forms, encoded[(shift*8+5)/6:(shift+len(value))*8/6])
		}
	}
	return forms
}

var escapedByte = regexp.MustCompile(`%[0-9A-Fa-f]{2}`)

// seen are the values of the secrets that are in a text, in whatever form.
func seen(secrets []secret, text string) []string {
	plain := escapedByte.ReplaceAllStringFunc(text, func(code string) string {
		b, _ := hex.DecodeString(code[1:])
		return string(b)
	})
	found := []string{}
	for _, s := range secrets {
		for _, form := range s.forms {
			if strings.Contains(text, form) || strings.Contains(plain, form) {
				found = append(found, s.value)
				break
			}
		}
	}
	return found
}

func TestACredentialIsSeenInEveryForm(t *testing.T) {
	const value = `fake "password" & 0123456789`
	for _, text := range []string{
		value, "a" + value + "b", url.QueryEscape(value), url.PathEscape(value), strings.ToLower(url.QueryEscape(value)), fmt.Sprintf("%q", value), asJSON([]string{value}),
		base64.StdEncoding.EncodeToString([]byte(value)), base64.StdEncoding.EncodeToString([]byte("a" + value + "b")),
		base64.URLEncoding.EncodeToString([]byte("ab" + value + "abc")), hex.EncodeToString([]byte(value)), value[:12], value[len(value)-12:],
	} {
		if found := seen(secretsOf("another value", value), "text "+text+" text"); len(found) != 1 || found[0] != value {
			t.Errorf("%s: got %q seen; want the value", text, found)
		}
	}
	if found := seen(allSecrets(), "REDACTED fake Bearer Basic session="); len(found) > 0 {
		t.Errorf("got %q seen where there is nothing", found)
	}
}

// requestsWithSecrets are requests that have all of them, each in its place, and are signed.
// Some bodies end in the middle, and maxBodySize cuts others.
func requestsWithSecrets() []*http.Request {
	document := map[string]interface{}{"user": "ann"}
	nested := map[string]interface{}{}
	form := url.Values{"user": {"ann"}}
	buffer := &bytes.Buffer{}
	var sink io.Writer = buffer
	parts := multipart.NewWriter(sink)
	for i, c := range secretFields {
		if i%2 == 0 {
			document[c.name] = c.value
		} else {
			nested[c.name] = []interface{}{1, map[string]string{"value": c.value}}
		}
		form.Add(c.name, c.value)
		form.Add("login["+c.name+"]", c.value)
		_ = parts.WriteField(c.name, c.value)
	}
	document["logins"] = []interface{}{nested}
	_ = parts.Close()
	text := asJSON(document)

	requests := []*http.Request{}
	for _, body := range []struct{ kind, text string }{
		{"", ""},
		{"application/json", text},
		{"application/json; charset=utf-8", text[:len(text)/2]},
		{"application/x-www-form-urlencoded", form.Encode()},
		{"application/x-www-form-urlencoded", text}, // as curl -d says
		{parts.FormDataContentType(), buffer.String()},
		{parts.FormDataContentType(), buffer.String()[:buffer.Len()*2/3]},
		{"text/plain", text},
		{"application/x-www-form-urlencoded", "[0].user=ann&" + form.Encode()}, // which begins as JSON does
		{"multipart/mixed; boundary=outer", "--outer\r\nContent-Type: " + parts.FormDataContentType() + "\r\n\r\n" + buffer.String() + "\r\n--outer\r\n" +
			"Content-Type: application/x-www-form-urlencoded\r\n\r\n" + form.Encode() + "\r\n--outer\r\nContent-Type: application/http\r\n\r\n" +
			"POST / HTTP/1.1\r\nContent-Type: application/json\r\n\r\n" + text + "\r\n--outer--\r\n"},
	} {
		req := send("/upload", body.text)
		if body.text == "" {
			req = get("/download")
		}
		if body.kind != "" {
			req.Header.Set("Content-Type", body.kind)
		}
		req.Header.Set(hubHeader, hubSignature(hookSecret, []byte(body.text)))
		requests = append(requests, req)
	}
	compressed := send("/upload", text) // which says so, but is not
	compressed.Header = http.Header{"Content-Type": {"application/json"}, "Content-Encoding": {"gzip"}, hubHeader: requests[1].Header[hubHeader]}
	requests = append(requests, compressed)
	for i, req := range requests {
		dress(req, i)
	}
	return requests
}

// requestsWithoutBodies are some that have their secrets elsewhere, and are signed.
func requestsWithoutBodies() []*http.Request {
	requests := []*http.Request{}
	for i, method := range []string{http.MethodGet, http.MethodDelete, http.MethodOptions, http.MethodPost} {
		req := httptest.NewRequest(method, "/download", nil)
		req.Header.Set(hubHeader, hubSignature(hookSecret, nil))
		dress(req, i)
		requests = append(requests, req)
	}
	return requests
}

// dress gives a request all that is secret but for the body. The first one is as for a
// proxy, with a user in the URL.
func dress(req *http.Request, i int) {
	query := "?page=1"
	for _, c := range secretParameters {
		query += "&" + c.name + "=" + c.value
	}
	req.RequestURI = req.URL.Path + query
	if i == 0 {
		req.RequestURI = "http://ann:fake-userinfo-password-0008@shop.example.com" + req.RequestURI
	}
	for _, c := range secretHeaders {
		req.Header[c.name] = append(req.Header[c.name], c.value)
	}
	for _, c := range secretCookies {
		req.Header.Add("Cookie", c.name+"="+c.value+"; theme=dark")
	}
}

// leakyReceiver keeps what comes, and says all of it in its answer.
type leakyReceiver struct {
	mu     sync.Mutex
	status int
	texts  []string // of deliveries
}

func (r *leakyReceiver) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	payload, _ := io.ReadAll(req.Body)
	user, password, _ := req.BasicAuth()
	token := req.Header.Get("X-Receiver-Token")
	text := ""
	if user != "mirror" || password != receiverPassword || token != receiverToken {
		text = "got no credentials for the receiver: " + receiverToken // which the test finds
	}
	req.Header.Del("Authorization")
	req.Header.Del("X-Receiver-Token")
	text += fmt.Sprint(req.Method, req.RequestURI, req.Host, req.Header, string(payload))
	for _, encoded := range regexp.MustCompile(`"content_base64":"([^"]*)"`).FindAllStringSubmatch(text, -1) {
		decoded, _ := base64.StdEncoding.DecodeString(encoded[1])
		text += string(decoded)
	}
	r.mu.Lock()
	r.texts = append(r.texts, text)
	r.mu.Unlock()
	rw.Header().Set("Location", "https://mirror:"+password+"@receiver.test/"+token)
	rw.WriteHeader(r.status)
	_, _ = io.WriteString(rw, password+" "+token)
}

func (r *leakyReceiver) deliveries() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.texts
}

// leakyBackend answers with secrets, and keeps what it got.
type leakyBackend struct {
	mu  sync.Mutex
	got []string
}

func (b *leakyBackend) ServeHTTP(rw http.ResponseWriter, req *http.Request) {
	body, _ := io.ReadAll(req.Body)
	b.mu.Lock()
	b.got = append(b.got, fmt.Sprint(req.RequestURI, req.Header, string(body)))
	b.mu.Unlock()
	answers := map[string]string{}
	for _, c := range secretAnswers {
		if c.name == "Set-Cookie" {
			rw.Header().Add(c.name, c.value)
		}
		answers[c.name] = c.value
	}
	delete(answers, "Set-Cookie")
	rw.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(rw, asJSON(answers))
}

func TestNoCredentialLeaves(t *testing.T) {
	down := httptest.NewServer(nil)
	down.Close()
	secrets := allSecrets()
	for _, c := range []struct {
		name     string
		status   int
		secure   bool // whether its certificate is one that nobody trusts
		bodiless bool // whether requests have none, as with format request bodies are never changed
		options  opts
		outcome  string
	}{
		{name: "a receiver that takes all", status: http.StatusNoContent},
		{name: "a receiver that gets answers, too", status: http.StatusNoContent, options: opts{"captureResponse": "body", "maxBodySize": 100}},
		{name: "a receiver of batches and pseudonyms", status: http.StatusOK, options: opts{
			"batch.maxEvents": len(requestsWithSecrets()), "captureResponse": "headers", "maxEventSize": "4Ki", "format": "json",
			"headers.names": map[string]string{"X-Api-Key": "hash", "Authorization": "hash"}, "queryParameters.names": map[string]string{"signature": "hash"},
		}},
		{name: "a receiver of pseudonyms only", status: http.StatusOK, options: opts{
			"captureResponse": "body", "headers.defaultMode": "hash", "queryParameters.defaultMode": "hash", "cookieNames": "theme",
		}},
		{name: "a receiver of log records", status: http.StatusOK, options: opts{
			"format": "otlp", "captureResponse": "body", "batch.maxEvents": 4, "cookieNames": "theme",
		}},
		{name: "a receiver of log records that refuses", status: http.StatusBadRequest, outcome: reasonRejected, options: opts{
			"format": "otlp", "headers.defaultMode": "hash", "maxBodySize": 100,
		}},
		{name: "a receiver of the requests themselves", status: http.StatusOK, bodiless: true, options: opts{
			"format": "request", "redactBodyFields": nil, "cookieNames": "theme",
		}},
		{name: "a receiver of the requests with pseudonyms, which fails", status: http.StatusInternalServerError, bodiless: true, outcome: reasonServerError, options: opts{
			"format": "request", "redactBodyFields": nil, "headers.defaultMode": "hash", "queryParameters.defaultMode": "hash",
		}},
		{name: "a receiver that fails", status: http.StatusInternalServerError, outcome: reasonServerError},
		{name: "a receiver that refuses", status: http.StatusUnauthorized, outcome: reasonRejected},
		{name: "a receiver that redirects", status: http.StatusFound, outcome: reasonRejected},
		{name: "a receiver with a wrong certificate", secure: true, outcome: reasonNetwork},
		{name: "a receiver that is down", outcome: reasonNetwork, options: opts{"watchURL": "http://mirror:" + receiverPassword + "@" + down.Listener.Addr().String()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rec := &leakyReceiver{status: c.status}
			var handler http.Handler = rec
			server := httptest.NewUnstartedServer(handler)
			if c.secure {
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			options := opts{
				"watchURL":             strings.Replace(server.URL, "://", "://mirror:"+receiverPassword+"@", 1) + "/events",
				"redactBodyFields":     namesOf(secretFields),
				"customRequestHeaders": map[string]string{"X-Receiver-Token": receiverToken},
				"signingSecrets":       secretOf(signingKey),
				"hashKey":              hashSecret,
				"authenticate":         map[string]interface{}{"secrets": hookSecret},
				"metricsPath":          "/metrics",
				"retry.attempts":       2, "retry.initialInterval": "1ms", "circuitBreaker.failures": 0,
				"drainTimeout": "24 hours or so", // a mistake, below
			}
			for path, value := range c.options {
				options[path] = value
			}
			_, err := New(context.Background(), nil, configOf(with(options, "strict", true)), t.Name())
			if err == nil || !strings.Contains(err.Error(), "24 hours") {
				t.Fatalf("got error %v; want one for drainTimeout", err)
			}
			report(t, "the error", secrets, err.Error())
			delete(options, "drainTimeout")

			sent := requestsWithSecrets()
			expected := [][]credential{secretHeaders, secretCookies, secretParameters, secretFields}
			if c.bodiless {
				sent = requestsWithoutBodies()
				expected = expected[:3]
			}
			backend := &leakyBackend{}
			var next http.Handler = backend
			unsay(t)
			said := logged(func() {
				mirror := mirrorOf(t, next, with(options, "unheardOf", receiverToken))
				for _, req := range sent {
					serve(mirror, req)
				}
				waitFor(t, "all to be settled", func() bool { return isSettled(tallyOf(t)) })
				n := tallyOf(t)
				if got := n.Failed[c.outcome] + n.Delivered; got != uint64(len(sent)) || (c.outcome != "") == (n.Delivered > 0) {
					t.Errorf("got %+v; want %d with outcome %q", n, len(sent), c.outcome)
				}
				report(t, "expvar", secrets, expvar.Get("requestmirror").String())
				report(t, "the metrics", secrets, serve(mirror, get("/metrics")).Body.String())
				dissolveAfterLog(t)
			})
			report(t, "the log", secrets, said)
			if !strings.Contains(said, "unheardOf") || !strings.Contains(said, c.outcome) {
				t.Errorf("got log %q; want the mistake and the losses in it", said)
			}
			report(t, "a delivery", secrets, strings.Join(rec.deliveries(), "\n"))
			if len(rec.deliveries()) == 0 && c.outcome != reasonNetwork {
				t.Error("got no deliveries; want some to look at")
			}
			// The backend has all: what is looked for was there.
			there := strings.Join(seen(secrets, strings.Join(backend.got, "\n")), "\n")
			for _, list := range expected {
				for _, secret := range list {
					if _, value, _ := strings.Cut(secret.value, " "); !strings.Contains(there, secret.value) && !strings.Contains(there, value) {
						t.Errorf("got no %s at the backend; want every secret to come through", secret.name)
					}
				}
			}
		})
	}
}

func isSettled(n tally) bool { return n.Delivered+sum(n.Failed) == n.Enqueued }

func with(options opts, path string, value interface{}) opts {
	out := opts{path: value}
	for name, value := range options {
		out[name] = value
	}
	return out
}

func report(t *testing.T, where string, secrets []secret, text string) {
	t.Helper()
	for _, value := range seen(secrets, text) {
		at := strings.Index(text, value)
		t.Errorf("got %q in %s; want no credential in it: …%.300s", value, where, text[most(0, at-100):])
	}
}

func most(a, b int) int {
	if a > b {
		return a
	}
	return b
}
