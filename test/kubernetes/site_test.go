package kubernetes

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	webhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// entry is the entry point web of every Traefik here.
const entry = "http://127.0.0.1:8000"

// plain keeps no connections, as Traefiks come and go.
var plain = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}

func dial(address string) (net.Conn, error) { return net.DialTimeout("tcp", address, time.Second) }

// post sends a request by way of Traefik.
func post(host, path, body string) (status int, answer string, err error) {
	req, err := http.NewRequest(http.MethodPost, entry+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	res, err := plain.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	content, err := io.ReadAll(res.Body)
	return res.StatusCode, string(content), err
}

// awaitRoute waits until Traefik has a route: it answers 404 until then, also while the
// Ingress is there and the middleware is not yet.
func awaitRoute(t *testing.T, host string) {
	t.Helper()
	await(t, "the route "+host, func() (bool, any) {
		status, answer, err := post(host, "/probe", "probe")
		return err == nil && status == http.StatusOK && answer == "the site", fmt.Sprint(status, answer, err)
	})
}

// site is a Service with one pod, which the test itself plays.
func site(t *testing.T, c *cluster, namespace, name string) {
	t.Helper()
	siteMu.Lock()
	next++
	address := fmt.Sprintf("198.18.0.%d", 10+next%200)
	siteMu.Unlock()
	listener, err := net.Listen("tcp", address+":8081")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, "the site")
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	applyTo(t, c, parsed(t, fmt.Sprintf(`
apiVersion: v1
kind: Service
metadata: {name: %[2]s, namespace: %[1]s}
spec: {ports: [{name: http, port: 80, targetPort: 8081}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: %[2]s-1, namespace: %[1]s, labels: {kubernetes.io/service-name: %[2]s}}
addressType: IPv4
ports: [{name: http, port: 8081, protocol: TCP}]
endpoints: [{addresses: ["%[3]s"], conditions: {ready: true}}]
`, namespace, name, address))...)
}

var (
	siteMu sync.Mutex
	next   int
)

// ingress is one for a site, with the annotation.
func ingress(t *testing.T, namespace, name, host, middlewares string) *unstructured.Unstructured {
	t.Helper()
	return parsed(t, fmt.Sprintf(`
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: %[2]s
  namespace: %[1]s
  annotations: {traefik.ingress.kubernetes.io/router.middlewares: "%[4]s"}
spec:
  ingressClassName: traefik
  rules:
    - host: %[3]s
      http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: %[2]s, port: {number: 80}}}}]}
`, namespace, name, host, middlewares))[0]
}

// recorder is a receiver that verifies and remembers.
type recorder struct {
	url string

	mu      sync.Mutex
	secrets []string
	events  []event
	bad     []string // what was wrong with a delivery
	seen    map[string]bool
}

type event struct {
	ID     string
	Secret string // the one that verified it; the first in the order of secrets
	Type   string `json:"type"`
	Source string `json:"source"`
	Data   struct {
		HTTP struct {
			Request struct {
				Method string `json:"method"`
				Body   struct {
					Content string `json:"content"`
				} `json:"body"`
			} `json:"request"`
		} `json:"http"`
		URL        struct{ Path string } `json:"url"`
		Server     struct{ Address string }
		Attributes map[string]string `json:"attributes"`
	} `json:"data"`
}

func newRecorder(t *testing.T, secrets ...string) *recorder {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{url: "http://" + listener.Addr().String() + "/events", secrets: secrets, seen: map[string]bool{}}
	server := &http.Server{Handler: r}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	return r
}

func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	e := event{ID: req.Header.Get("webhook-id")}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, secret := range r.secrets {
		hook, err := webhooks.NewWebhook(secret)
		if err == nil && hook.Verify(body, req.Header) == nil {
			e.Secret = secret
			break
		}
	}
	if err := json.Unmarshal(body, &e); err != nil || len(r.secrets) > 0 && e.Secret == "" {
		r.bad = append(r.bad, fmt.Sprintf("%s: %v, signature %q", e.ID, err, req.Header.Get("webhook-signature")))
	} else if strings.HasSuffix(e.Type, ".request.v1") && !r.seen[e.ID] {
		r.seen[e.ID] = true
		r.events = append(r.events, e)
	}
	w.WriteHeader(http.StatusNoContent)
}

// have returns the events that a test asks for, in the order of arrival.
func (r *recorder) have(wanted func(event) bool) []event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(func(yield func(event) bool) {
		for _, e := range r.events {
			if wanted(e) && !yield(e) {
				return
			}
		}
	})
}

// awaitEvent waits for the event of a request, which is told by its path.
func (r *recorder) awaitEvent(t *testing.T, path string) event {
	t.Helper()
	var found []event
	await(t, "the event of "+path, func() (bool, any) {
		found = r.have(func(e event) bool { return e.Data.URL.Path == path })
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(found) > 0, fmt.Sprintf("%d other events, refused: %v", len(r.events), r.bad)
	})
	return found[0]
}

// check fails the test for what came unsigned or wrongly so.
func (r *recorder) check(t *testing.T) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, bad := range r.bad {
		t.Errorf("a delivery that does not verify: %s", bad)
	}
}
