//go:build unix

// Package pipeline has the tests of the whole: real Traefiks, servers, gateways and workers.
package pipeline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"github.com/opencommit/requestmirror/examples/pipeline/lab"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
	"github.com/opencommit/requestmirror/examples/pipeline/worker"
	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"
)

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYqr"

// options of a middleware that bridges outages, as on the page.
func options(watchURL string, more map[string]any) map[string]any {
	o := map[string]any{
		"watchURL": watchURL, "signingSecrets": []string{secret}, "strict": true,
		"trustForwardHeader": true, "headers": map[string]any{"names": map[string]any{"Authorization": "hash"}}, "hashKey": "of the test",
		"workers": 1, "queueSize": 20000, "maxAge": "5m", "retry": map[string]any{"attempts": 100}, "circuitBreaker": map[string]any{"failures": 0},
		"maxEventSize": "1000Ki",
	}
	for name, value := range more {
		o[name] = value
	}
	return o
}

// build is what all tests here share.
var build struct {
	bin  string
	once sync.Once
	err  error
}

func TestMain(m *testing.M) {
	var err error
	if build.bin, err = os.MkdirTemp("", "requestmirror-pipeline-bin-"); err != nil {
		panic(err)
	}
	code := m.Run()
	_ = os.RemoveAll(build.bin)
	os.Exit(code)
}

func newLab(t *testing.T, servers int) (*lab.Lab, []*lab.Process) {
	t.Helper()
	build.once.Do(func() { build.err = lab.Build(context.Background(), build.bin) })
	if build.err != nil {
		t.Fatal(build.err)
	}
	l, err := lab.New(build.bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all, err := l.StartServers(ctx, servers)
	if err != nil {
		t.Fatal(err)
	}
	return l, all
}

func startGateway(t *testing.T, l *lab.Lab, args ...string) (*lab.Process, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, url, err := l.StartGateway(ctx, secret, append([]string{"-listen", "127.0.0.1:0"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { logIfFailed(t, "a gateway", p) })
	return p, url
}

func startWorker(t *testing.T, l *lab.Lab, args ...string) *lab.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	p, err := l.StartWorker(ctx, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { logIfFailed(t, "a worker", p) })
	return p
}

func logIfFailed(t *testing.T, name string, p *lab.Process) {
	if text := p.Log(); t.Failed() {
		t.Logf("%s wrote, in its last life\n%s", name, text[max(0, len(text)-3000):])
	}
}

// aSite is what Traefik protects: it reads what it gets.
func aSite(t *testing.T) string {
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(site.Close)
	return site.URL
}

// TestEveryDeliveredEventIsJudgedOnceAndInOrder sends 50,000 requests through two Traefiks,
// while a server and a worker are killed, and started again.
func TestEveryDeliveredEventIsJudgedOnceAndInOrder(t *testing.T) {
	const (
		clients = 200 // of each Traefik
		rounds  = 25
		each    = 5 // requests of a client in a round
		all     = 2 * clients * rounds * each
	)
	bin := findTraefik(t)
	l, servers := newLab(t, 3)
	site := aSite(t)
	var traefiks []*traefik
	for i := range 2 {
		_, watchURL := startGateway(t, l)
		traefiks = append(traefiks, startTraefik(t, bin, fmt.Sprintf("edge-%d", i), site, options(watchURL, map[string]any{
			"batch": map[string]any{"maxEvents": 100}, "compression": []string{"none", "gzip"}[i],
		})))
	}
	workers := []*lab.Process{startWorker(t, l), startWorker(t, l)}
	js := connect(t, l)

	leader, before := -1, uint64(0)
	began := time.Now()
	for round := range rounds {
		switch round {
		case rounds * 2 / 5:
			leader = leaderOf(t, js, stream.Events)
			servers[leader].Kill()
			workers[0].Kill()
			await(t, "a new leader", time.Minute, func() (ok bool, _ any) {
				var err error
				before, err = written(t, js)
				return err == nil, err
			})
			t.Logf("after %s: killed server-%d, which led the stream of events, and a worker", time.Since(began).Round(time.Second), leader)
		case rounds * 3 / 5:
			await(t, "the others to go on without them", time.Minute, func() (bool, any) {
				now, err := written(t, js)
				return err == nil && now >= before+1000, fmt.Sprint(now, err)
			})
			for _, p := range []*lab.Process{servers[leader], workers[0]} {
				if err := p.Start(); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("after %s: both started again", time.Since(began).Round(time.Second))
		}
		aRound(t, traefiks, clients, round*each, each)
		// The queues of the middlewares are long, and yet not endless.
		for _, tr := range traefiks {
			await(t, "the queue to get shorter", 2*time.Minute, func() (bool, any) { l := tr.ledger(t); return l.Waiting < 10_000, l })
		}
	}
	t.Logf("after %s: all sent", time.Since(began).Round(time.Second))

	var delivered, retried int64
	for _, tr := range traefiks {
		await(t, "all to be delivered", 2*time.Minute, func() (bool, any) { l := tr.ledger(t); return l.Waiting+l.InFlight == 0, l })
		got := tr.ledger(t)
		if got.Seen != all/2 || got.Delivered != all/2 {
			t.Errorf("ledger: got %+v; want %d seen and delivered", got, all/2)
		}
		delivered += got.Delivered
		retried += got.Retried
	}
	if retried == 0 {
		t.Error("got no event that was tried again; want some, while the stream had no leader")
	}
	verdicts := readVerdicts(t, l).await(t, int(delivered))
	t.Logf("after %s: all judged; %d events were tried again", time.Since(began).Round(time.Second), retried)
	checkVerdicts(t, verdicts, delivered, clients*2, rounds*each)
}

// aRound has each client send its next requests, one after the other.
func aRound(t *testing.T, traefiks []*traefik, clients, first, n int) {
	t.Helper()
	const connections = 16 // for each Traefik
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: connections}}
	defer client.CloseIdleConnections()
	var working sync.WaitGroup
	for edge, tr := range traefiks {
		for c := range connections {
			working.Add(1)
			go func() {
				defer working.Done()
				for who := c; who < clients; who += connections {
					for i := first; i < first+n; i++ {
						send(t, client, tr, edge*clients+who, i)
					}
				}
			}()
		}
	}
	working.Wait()
}

// send sends request i of a client, whom an address tells or a token. It has to be
// answered at once, whatever is dead behind the middleware.
func send(t *testing.T, client *http.Client, tr *traefik, who, i int) {
	method, path, body := http.MethodGet, fmt.Sprintf("/pages/%d/%d", who, i), ""
	if i%3 == 2 {
		method, path, body = http.MethodPost, fmt.Sprintf("/comments/%d/%d", who, i), fmt.Sprintf(`{"text":"Comment %d of client %d"}`, i, who)
	}
	req, err := http.NewRequest(method, "http://"+tr.web+path, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	req.Header.Set("X-Forwarded-For", fmt.Sprintf("203.0.%d.%d", who/250, who%250))
	if who%2 == 1 {
		req.Header.Set("X-Forwarded-For", fmt.Sprintf("198.51.100.%d", i%250)) // on the move
		req.Header.Set("Authorization", fmt.Sprintf("Bearer token-%d", who))
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("%s %s: got %s; want 204", method, path, resp.Status)
	}
}

// checkVerdicts sees to it that there is one for each event, and that of each client the
// first request was judged first, the second one second, and so on.
func checkVerdicts(t *testing.T, verdicts []worker.Verdict, delivered int64, clients, each int) {
	t.Helper()
	ids := map[string]bool{}
	numbers := map[string]bool{}      // source and sequence are unique, too
	byClient := map[string][][2]int{} // who: the number of the verdict, and of the request
	for _, v := range verdicts {
		ids[v.Event] = true
		numbers[v.Source+" "+v.Sequence] = true
		parts := strings.Split(v.Path, "/")
		if len(parts) != 4 {
			t.Fatalf("got a verdict on %s; want none but those of the test", v.Path)
		}
		i, err := strconv.Atoi(parts[3])
		if err != nil {
			t.Fatal(err)
		}
		byClient[parts[2]] = append(byClient[parts[2]], [2]int{v.Number, i})
	}
	if int64(len(verdicts)) != delivered || int64(len(ids)) != delivered || int64(len(numbers)) != delivered {
		t.Errorf("got %d verdicts on %d events with %d numbers; want %d of each, as were delivered", len(verdicts), len(ids), len(numbers), delivered)
	}
	if len(byClient) != clients {
		t.Errorf("got %d clients; want %d", len(byClient), clients)
	}
	wrong := 0
	for who, list := range byClient {
		sort.Slice(list, func(a, b int) bool { return list[a][0] < list[b][0] })
		for i, got := range list {
			if got != [2]int{i + 1, i} {
				if wrong++; wrong <= 5 {
					t.Errorf("client %s: got request %d judged as number %d; want request %d as number %d", who, got[1], got[0], i, i+1)
				}
				break
			}
		}
		if len(list) != each {
			t.Errorf("client %s: got %d verdicts; want %d", who, len(list), each)
		}
	}
}

// TestAGatewayThatIsFullIsObeyed has a gateway with room for one delivery, and a stream
// that stands still, until deliveries were pushed back.
func TestAGatewayThatIsFullIsObeyed(t *testing.T) {
	const all = 300
	bin := findTraefik(t)
	l, servers := newLab(t, 1)
	_, watchURL := startGateway(t, l, "-replicas=1", "-deliveries=1")
	startWorker(t, l, "-replicas=1")
	tr := startTraefik(t, bin, "edge-0", aSite(t), options(watchURL, map[string]any{"workers": 4, "batch": map[string]any{"maxEvents": 20}}))

	if err := servers[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	aRound(t, []*traefik{tr}, 20, 0, all/20)
	await(t, "deliveries to be tried again", time.Minute, func() (bool, any) { got := tr.ledger(t); return got.Retried > 4, got })
	// One of the four has the room, so everybody else is told to come later.
	var status int
	var after string
	await(t, "429", time.Minute, func() (bool, any) {
		status, after = postUnsigned(t, watchURL)
		return status == http.StatusTooManyRequests, status
	})
	if after != "1" {
		t.Errorf("Retry-After: got %q; want 1", after)
	}
	if err := servers[0].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	await(t, "all to be delivered", 2*time.Minute, func() (bool, any) { got := tr.ledger(t); return got.Waiting+got.InFlight == 0, got })
	got := tr.ledger(t)
	if got.Seen != all || got.Delivered != all || got.CircuitBreaker != "closed" {
		t.Errorf("ledger: got %+v; want all %d delivered, and the circuit closed", got, all)
	}
	if n := len(readVerdicts(t, l).await(t, all)); n != all {
		t.Errorf("got %d verdicts; want %d", n, all)
	}
	t.Logf("%d events were tried again", got.Retried)
}

// TestWithoutAMajorityNothingIsTaken kills two of three servers.
func TestWithoutAMajorityNothingIsTaken(t *testing.T) {
	l, servers := newLab(t, 3)
	_, watchURL := startGateway(t, l)
	if status, _ := post(t, watchURL, "1"); status != http.StatusNoContent {
		t.Fatalf("all is well: got %d; want 204", status)
	}
	servers[0].Kill()
	servers[1].Kill()
	if status, after := post(t, watchURL, "2"); status != http.StatusServiceUnavailable || after != "1" {
		t.Errorf("one server: got %d, Retry-After %q; want 503, 1", status, after)
	}
	if err := servers[0].Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "two servers to be enough", time.Minute, func() (bool, any) {
		status, _ := post(t, watchURL, "2")
		return status == http.StatusNoContent, status
	})
	startWorker(t, l)
	if got := readVerdicts(t, l).await(t, 2); len(got) != 2 {
		t.Errorf("got %d verdicts; want 2", len(got))
	}
}

// TestAGatewayEndsWhenTheStreamHasWhatItTook tells it to end in the midst of a delivery.
func TestAGatewayEndsWhenTheStreamHasWhatItTook(t *testing.T) {
	l, servers := newLab(t, 1)
	gateway, watchURL := startGateway(t, l, "-replicas=1", "-deliveries=1")
	if err := servers[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	answered := make(chan int, 1)
	go func() {
		status := http.StatusTooManyRequests
		for status == http.StatusTooManyRequests { // one that is not signed is just looked at
			status, _ = post(t, watchURL, "1")
		}
		answered <- status
	}()
	await(t, "the delivery to be under way", time.Minute, func() (bool, any) {
		status, _ := postUnsigned(t, watchURL)
		return status == http.StatusTooManyRequests, status
	})
	if err := gateway.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	await(t, "nothing more to be taken", time.Minute, func() (bool, any) {
		conn, err := net.Dial("tcp", strings.Split(watchURL, "/")[2])
		if err == nil {
			_ = conn.Close()
		}
		return err != nil, err
	})
	if err := servers[0].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if status := <-answered; status != http.StatusNoContent {
		t.Errorf("the delivery: got %d; want 204", status)
	}
	if err := gateway.Stop(); err != nil {
		t.Errorf("the gateway ended with %v; want nothing to complain about", err)
	}
	startWorker(t, l, "-replicas=1")
	if got := readVerdicts(t, l).await(t, 1); len(got) != 1 || got[0].Event != "1" {
		t.Errorf("got %+v; want a verdict on 1", got)
	}
}

// postUnsigned finds out whether there is room, without an event.
func postUnsigned(t *testing.T, watchURL string) (status int, retryAfter string) {
	t.Helper()
	resp, err := http.Post(watchURL, "application/cloudevents+json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Retry-After")
}

// post delivers an event of spam as the middleware does.
func post(t *testing.T, watchURL, id string) (status int, retryAfter string) {
	payload := []byte(`{"specversion":"1.0","type":"io.opencommit.requestmirror.request.v1","id":"` + id + `","source":"//edge-1/middlewares/mirror@file",` +
		`"time":"2026-09-18T09:41:07.184503Z","sequence":"01992f5e00c1-00000000000000000001","datacontenttype":"application/json",` +
		`"data":{"url":{"path":"/api/comments"},"client":{"address":"203.0.113.7"},"http":{"request":{"method":"POST","header":{},` +
		`"body":{"content":"{\"text\":\"cheap pills: https://a.example https://b.example www.c.example\"}","size":77,"truncated":false}}}}}`)
	webhook, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	now := time.Now()
	signature, err := webhook.Sign(id, now, payload)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	req, err := http.NewRequest(http.MethodPost, watchURL, bytes.NewReader(payload))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	req.Header.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
	req.Header.Set("webhook-id", id)
	req.Header.Set("webhook-timestamp", strconv.FormatInt(now.Unix(), 10))
	req.Header.Set("webhook-signature", signature)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	_ = resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Retry-After")
}

// reader reads verdicts as any other program would, from the first one on.
type reader struct {
	js  jetstream.JetStream
	mu  sync.Mutex
	all []worker.Verdict
}

// connect returns what asks the servers.
func connect(t *testing.T, l *lab.Lab) jetstream.JetStream {
	t.Helper()
	nc, err := stream.Connect(l.NATS, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func readVerdicts(t *testing.T, l *lab.Lab) *reader {
	t.Helper()
	js := connect(t, l)
	consumer, err := js.OrderedConsumer(t.Context(), stream.Verdicts, jetstream.OrderedConsumerConfig{FilterSubjects: []string{stream.Key("verdict", ">")}})
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{js: js}
	reading, err := consumer.Consume(func(m jetstream.Msg) {
		var v worker.Verdict
		if err := json.Unmarshal(m.Data(), &v); err != nil {
			t.Error(err)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.all = append(r.all, v)
	}, jetstream.PullExpiry(4*time.Second), jetstream.PullHeartbeat(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reading.Stop)
	return r
}

func (r *reader) verdicts() []worker.Verdict {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// await waits for n verdicts, and until the reader has all that there are.
func (r *reader) await(t *testing.T, n int) []worker.Verdict {
	t.Helper()
	await(t, "all to be judged", 2*time.Minute, func() (bool, any) {
		got := len(r.verdicts())
		return got >= n, got
	})
	s, err := r.js.Stream(t.Context(), stream.Verdicts)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(stream.Key("verdict", ">")))
	if err != nil {
		t.Fatal(err)
	}
	if len(info.State.Subjects) != n {
		t.Errorf("got %d verdicts in the store; want %d", len(info.State.Subjects), n)
	}
	return r.verdicts()
}

// leaderOf is the server that the others follow.
func leaderOf(t *testing.T, js jetstream.JetStream, name string) int {
	t.Helper()
	s, err := js.Stream(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	leader, err := strconv.Atoi(strings.TrimPrefix(s.CachedInfo().Cluster.Leader, "server-"))
	if err != nil {
		t.Fatal(err)
	}
	return leader
}

// written is how many messages were ever written to the store, or why that is not known now.
func written(t *testing.T, js jetstream.JetStream) (uint64, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	s, err := js.Stream(ctx, stream.Verdicts)
	if err != nil {
		return 0, err
	}
	return s.CachedInfo().State.LastSeq, nil
}
