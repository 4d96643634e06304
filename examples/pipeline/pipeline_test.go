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
	"regexp"
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

// onThePage is the file for Traefik that the page has, for another receiver, with more
// options, each a line, and with each odd text replaced by the even one after it.
func onThePage(t *testing.T, watchURL, more string, replace ...string) string {
	t.Helper()
	text := blocks(t, "yaml")[0]
	replace = append(replace, "http://127.0.0.1:9000/events", watchURL)
	for i := 0; i < len(replace); i += 2 {
		if strings.Count(text, replace[i]) != 1 {
			t.Fatalf("got not once %q on the page; want it in\n%s", replace[i], text)
		}
	}
	text = strings.NewReplacer(replace...).Replace(text)
	before, after, found := strings.Cut(text, "        requestmirror:\n")
	if !found {
		t.Fatalf("got no options on the page; want them in\n%s", text)
	}
	return before + "        requestmirror:\n          strict: true\n" + indent(more) + after
}

// byToken tells clients by their token, as the page says, or else by the address that
// they say they have.
const byToken = `trustForwardHeader: true
headers: { names: { Authorization: hash } }
hashKey: of the test
`

func indent(lines string) string {
	return regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(lines, "          $1")
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
	t.Cleanup(func() {
		if t.Failed() {
			dump(t, l)
		}
		l.Close()
	})
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
	return p
}

// dump tells of the streams, and where the goroutines of gateways and workers are, of
// which it is the end.
func dump(t *testing.T, l *lab.Lab) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for _, p := range l.Processes() {
		_ = p.Signal(syscall.SIGCONT) // or it could not answer
	}
	nc, err := stream.Connect(l.NATS, "dump")
	if err != nil {
		t.Log("the streams: ", err)
	} else {
		defer nc.Close()
		if js, err := jetstream.New(nc); err == nil {
			for _, name := range []string{stream.Events, stream.Verdicts} {
				dumpStream(ctx, t, js, name)
			}
		}
	}
	for _, p := range l.Processes() {
		const most = 60_000
		text := p.Log()
		if name := p.Name(); name == "gateway" || name == "worker" {
			_ = p.Signal(syscall.SIGQUIT) // has a program in Go print its goroutines
			if p.Ended(ctx) {
				text = p.Log()
			}
		} else {
			text = text[max(0, len(text)-3000):]
		}
		t.Logf("%s wrote, in its last life\n%s", p.Name(), text[max(0, len(text)-most):])
	}
}

func dumpStream(ctx context.Context, t *testing.T, js jetstream.JetStream, name string) {
	s, err := js.Stream(ctx, name)
	if err != nil {
		t.Logf("stream %s: %v", name, err)
		return
	}
	asJSON := func(v any) string {
		raw, _ := json.Marshal(v)
		return string(raw)
	}
	// With the first and the last of each partition; not with each verdict.
	filter := stream.Key("cursor", ">")
	if name == stream.Events {
		filter = "events.>"
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	t.Logf("stream %s: %s, %v", name, asJSON(info), err)
	consumers := s.ListConsumers(ctx)
	for c := range consumers.Info() {
		t.Logf("consumer of %s: %s", name, asJSON(c))
	}
	if err := consumers.Err(); err != nil {
		t.Logf("consumers of %s: %v", name, err)
	}
	if name == stream.Verdicts {
		for p := range stream.Partitions {
			m, err := s.GetLastMsgForSubject(ctx, stream.Key("cursor", strconv.Itoa(p)))
			if err != nil {
				t.Logf("cursor %d: %v", p, err)
				continue
			}
			t.Logf("cursor %d: %s", p, m.Data)
		}
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

// TestEveryDeliveredEventIsJudgedOnceAndInOrder sends 50,000 requests through two Traefiks
// with the configuration of the page, while a worker joins, a server and another worker are
// killed and started again, and the one that joined leaves.
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
		traefiks = append(traefiks, startTraefik(t, bin, fmt.Sprintf("edge-%d", i), site, onThePage(t, watchURL, byToken)))
	}
	workers := []*lab.Process{startWorker(t, l), startWorker(t, l)}
	js := connect(t, l)

	leader, before := -1, uint64(0)
	var joined *lab.Process
	began := time.Now()
	for round := range rounds {
		switch round {
		case rounds / 5:
			joined = startWorker(t, l)
			t.Logf("after %s: one more worker", time.Since(began).Round(time.Second))
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
		case rounds * 4 / 5:
			// It ends while the next requests are sent. The others take over what it had.
			if err := joined.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
		aRound(t, traefiks, clients, round*each, each)
		// The queues of the middlewares are long, and yet not endless.
		for _, tr := range traefiks {
			await(t, "the queue to get shorter", 2*time.Minute, func() (bool, any) { l := tr.ledger(t); return l.Waiting < 10_000, l })
		}
	}
	t.Logf("after %s: all sent", time.Since(began).Round(time.Second))
	checkJoined(t, joined)

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

// checkJoined sees to it that a worker that came later, and is told to end, had its part.
func checkJoined(t *testing.T, p *lab.Process) {
	t.Helper()
	if err := p.Stop(); err != nil {
		t.Errorf("the worker that joined ended with %v; want nothing to complain about", err)
	}
	ended := regexp.MustCompile(`ended, (\d+) events judged`).FindStringSubmatch(p.Log())
	if ended == nil || ended[1] == "0" {
		t.Errorf("the worker that joined: got %q; want events that it judged", p.Log())
		return
	}
	t.Logf("the worker that joined judged %s events", ended[1])
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
	const first, all = 40, 300
	bin := findTraefik(t)
	l, servers := newLab(t, 1)
	_, gateway := startGateway(t, l, "-replicas=1", "-deliveries=1")
	startWorker(t, l, "-replicas=1")
	between := recordBefore(t, gateway)
	// As on the page, but for more workers, smaller batches, and a circuit that can open.
	tr := startTraefik(t, bin, "edge-0", aSite(t), onThePage(t, between.url, "metricsPath: /metrics-of-the-mirror\n",
		"workers: 1", "workers: 4", "maxEvents: 100", "maxEvents: 20", "circuitBreaker:\n            failures: 0\n", ""))

	if err := servers[0].Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// One of the four workers has the room, and another one is told to come later.
	aRound(t, []*traefik{tr}, 20, 0, first/20)
	var known map[string]int // events of deliveries
	await(t, "the first deliveries to be there, and one to be pushed back", time.Minute, func() (bool, any) {
		known = map[string]int{}
		sum := 0
		got := between.attempts()
		for _, a := range got {
			sum += a.events - known[a.id]
			known[a.id] = a.events
		}
		return sum == first && len(pushedBack(got)) > 0, got
	})
	full := pushedBack(between.attempts())[0].answered
	// What the plugin knows of, it has heeded: both are one step.
	await(t, "the plugin to know", time.Minute, func() (bool, any) {
		n := regexp.MustCompile(`(?m)^requestmirror_attempt_duration_seconds_count\{.*\} ([0-9]+)$`).FindStringSubmatch(get("http://" + tr.web + "/metrics-of-the-mirror"))
		return n != nil && n[1] != "0", n
	})
	aRound(t, []*traefik{tr}, 20, first/20, (all-first)/20)
	await(t, "three deliveries to be pushed back, and one of them again", time.Minute, func() (bool, any) {
		got := pushedBack(between.attempts())
		ids := map[string]bool{}
		for _, a := range got {
			ids[a.id] = true
		}
		return len(ids) >= 3 && len(got) > len(ids), got
	})
	if err := servers[0].Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}

	await(t, "all to be delivered", 2*time.Minute, func() (bool, any) { got := tr.ledger(t); return got.Waiting+got.InFlight == 0, got })
	got := tr.ledger(t)
	if got.Seen != all || got.Delivered != all || got.CircuitBreaker != "closed" {
		t.Errorf("ledger: got %+v; want all %d delivered, and the circuit closed", got, all)
	}
	checkObeyed(t, between.attempts(), known, full)
	if n := len(readVerdicts(t, l).await(t, all)); n != all {
		t.Errorf("got %d verdicts; want %d", n, all)
	}
	t.Logf("%d deliveries were pushed back, %d events were tried again", len(pushedBack(between.attempts())), got.Retried)
}

// checkObeyed wants no delivery to come again before it was told to, and none to come for
// the first time in the second after it was known that the gateway is full.
func checkObeyed(t *testing.T, attempts []attempt, known map[string]int, full time.Time) {
	t.Helper()
	last := map[string]attempt{}
	for _, a := range attempts {
		before, again := last[a.id]
		last[a.id] = a
		if !a.signed || a.answer != http.StatusNoContent && a.answer != http.StatusTooManyRequests && a.answer != http.StatusServiceUnavailable {
			t.Errorf("got %+v; want a signed delivery, taken or told to come later", a)
		}
		if a.answer != http.StatusNoContent && a.after != "1" {
			t.Errorf("got %+v; want Retry-After: 1", a)
		}
		if wait := a.at.Sub(before.answered); again && wait < time.Second {
			t.Errorf("delivery %s: told to come in a second, came after %v", a.id, wait)
		}
	}
	for _, a := range attempts {
		if _, ok := known[a.id]; ok {
			continue
		}
		if wait := a.at.Sub(full); wait < time.Second {
			t.Errorf("delivery %s: another one was told to come in a second, and this one came after %v", a.id, wait)
		}
		return
	}
	t.Error("got no deliveries after the gateway was full; want some")
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
