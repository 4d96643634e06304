package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/opencommit/requestmirror/examples/pipeline/lab"
	"github.com/opencommit/requestmirror/examples/pipeline/stream"
)

// cluster is a server and its streams.
type cluster struct {
	nc               *nats.Conn
	js               jetstream.JetStream
	events, verdicts jetstream.Stream
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	bin := t.TempDir()
	if err := lab.Build(ctx, bin); err != nil {
		t.Fatal(err)
	}
	l, err := lab.New(bin)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	if _, err := l.StartServers(ctx, 1); err != nil {
		t.Fatal(err)
	}
	nc, err := stream.Connect(l.NATS, "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{nc: nc, js: js}
	if c.events, c.verdicts, err = stream.Open(ctx, js, 1); err != nil {
		t.Fatal(err)
	}
	return c
}

// event is number n of a client, as a gateway puts it into partition 0.
func event(client string, n int) *nats.Msg {
	id := fmt.Sprintf("%s-%d", client, n)
	return &nats.Msg{
		Subject: stream.Subject(0),
		Header:  nats.Header{jetstream.MsgIDHeader: {id}, stream.ClientHeader: {client}},
		Data: []byte(fmt.Sprintf(`{"id":%q,"source":"//edge-1","time":"2031-09-18T12:00:00Z","data":{"http":{"request":{"method":"GET"}},"url":{"path":"/%d"},"client":{"address":%q}}}`,
			id, n, client)),
	}
}

func (c *cluster) append(t *testing.T, batch ...*nats.Msg) {
	t.Helper()
	if err := stream.Append(t.Context(), c.nc, c.js, batch); err != nil {
		t.Fatal(err)
	}
}

// follow starts a worker at partition 0 that does not ask whether it is its own.
func (c *cluster) follow(t *testing.T) (stop func()) {
	t.Helper()
	w := &Worker{nc: c.nc, js: c.js, events: c.events, verdicts: c.verdicts}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		(&partition{Worker: w}).work(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	t.Cleanup(stop)
	return stop
}

// await waits until the cursor is at the last event, and returns all verdicts, oldest first.
func (c *cluster) await(t *testing.T) []Verdict {
	t.Helper()
	info, err := c.events.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for at := (entry[cursor]{}); at.value.Event < info.State.LastSeq; {
		if at, err = load[cursor](ctx, c.verdicts, stream.Key("cursor", "0")); err != nil {
			t.Fatalf("waiting for event %d to be judged: %v; last seen: %d", info.State.LastSeq, err, at.value.Event)
		}
	}
	state, err := c.verdicts.Info(t.Context(), jetstream.WithSubjectFilter(stream.Key("verdict", ">")))
	if err != nil {
		t.Fatal(err)
	}
	var all []Verdict
	for key := range state.State.Subjects {
		m, err := c.verdicts.GetLastMsgForSubject(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		var v Verdict
		if err := json.Unmarshal(m.Data, &v); err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	slices.SortFunc(all, func(a, b Verdict) int { return a.Number - b.Number })
	return all
}

// inOrder sees to it that each client's event n was judged as its number n, once.
func inOrder(t *testing.T, verdicts []Verdict, clients, each int) {
	t.Helper()
	next := map[string]int{}
	for _, v := range verdicts {
		next[v.Client]++
		if want := fmt.Sprint("/", next[v.Client]); v.Path != want || v.Number != next[v.Client] {
			t.Fatalf("client %s: got %s as number %d; want %s as number %d", v.Client, v.Path, v.Number, want, next[v.Client])
		}
	}
	if len(verdicts) != clients*each {
		t.Errorf("got %d verdicts; want %d", len(verdicts), clients*each)
	}
}

func TestWorkersAtTheSamePartitionDoNoHarm(t *testing.T) {
	const clients, rounds, each = 20, 25, 3
	c := newCluster(t)
	stops := []func(){c.follow(t), c.follow(t), c.follow(t)}
	for round := range rounds {
		var batch []*nats.Msg
		for n := range each {
			for client := range clients {
				batch = append(batch, event(fmt.Sprint(client), round*each+n+1))
			}
		}
		c.append(t, batch...)
		// One of them ends, maybe in the midst of it, and another one begins.
		i := rand.IntN(len(stops))
		stops[i]()
		stops[i] = c.follow(t)
	}
	inOrder(t, c.await(t), clients, rounds*each)
}

func TestAnEventThatTheStreamHasForgottenIsJudgedOnce(t *testing.T) {
	c := newCluster(t)
	config := c.events.CachedInfo().Config
	config.Duplicates = 100 * time.Millisecond // the shortest that there is
	if err := c.js.DeleteStream(t.Context(), config.Name); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.events, err = c.js.CreateStream(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	stop := c.follow(t)
	c.append(t, event("a", 1), event("b", 1))
	c.await(t)
	stop()
	for again := false; !again; {
		ack, err := c.js.PublishMsg(t.Context(), event("a", 1))
		if err != nil {
			t.Fatal(err)
		}
		again = !ack.Duplicate
	}
	c.append(t, event("a", 2))
	c.follow(t)
	got := c.await(t)
	if len(got) != 3 {
		t.Errorf("got %d verdicts; want 3", len(got))
	}
	inOrder(t, got[:], 1, len(got)) // a has two, and b one
}

func TestABatchThatComesAgainIsStoredOnce(t *testing.T) {
	c := newCluster(t)
	c.append(t, event("a", 1), event("a", 2))
	c.append(t, event("a", 1), event("a", 2))                               // its answer was lost
	c.append(t, event("a", 2), event("a", 3), event("b", 1), event("a", 4)) // it was put together anew
	c.append(t, event("a", 5), event("a", 5))                               // nobody does so
	info, err := c.events.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 6 {
		t.Errorf("got %d events; want 6", info.State.Msgs)
	}
	c.follow(t)
	inOrder(t, slices.DeleteFunc(c.await(t), func(v Verdict) bool { return v.Client == "b" }), 1, 5)
}

func TestABatchIsWrittenAsAWholeOrNotAtAll(t *testing.T) {
	c := newCluster(t)
	if _, err := stream.Commit(t.Context(), c.nc, []*nats.Msg{write(stream.Key("client", "a"), entry[Client]{})}); err != nil {
		t.Fatal(err)
	}
	_, err := stream.Commit(t.Context(), c.nc, []*nats.Msg{
		write(stream.Key("verdict", "1"), entry[Verdict]{}),
		write(stream.Key("client", "a"), entry[Client]{}), // which is there
		write(stream.Key("cursor", "0"), entry[cursor]{}),
	})
	if !stream.IsConflict(err) {
		t.Errorf("got %v; want a conflict", err)
	}
	info, err := c.verdicts.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.State.Msgs != 1 {
		t.Errorf("got %d messages; want the one from before", info.State.Msgs)
	}
}

func TestWhatIsJudgedLeavesTheStream(t *testing.T) {
	c := newCluster(t)
	c.append(t, event("a", 1), event("a", 2))
	c.follow(t)
	c.await(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		info, err := c.events.Info(ctx)
		if err != nil {
			t.Fatalf("waiting for the stream to be empty: %v", err)
		}
		if info.State.Msgs == 0 {
			return
		}
	}
}

func TestPartitionsAreShared(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		name  string
		heard map[string]time.Time
		want  int
	}{
		{"alone", nil, 16},
		{"two", map[string]time.Time{"b": now}, 8},
		{"five", map[string]time.Time{"b": now, "c": now, "d": now, "e": now}, 4},
		{"one is dead", map[string]time.Time{"b": now, "c": now.Add(-dead - time.Second)}, 8},
		{"hears itself", map[string]time.Time{"a": now, "b": now}, 8},
	} {
		t.Run(tc.name, func(t *testing.T) {
			heard := map[string]time.Time{}
			for id, at := range tc.heard {
				heard[id] = at
			}
			got := 0
			for _, mine := range (&Worker{id: "a", heard: heard}).mine() {
				if mine {
					got++
				}
			}
			if got != tc.want {
				t.Errorf("got %d partitions; want %d", got, tc.want)
			}
		})
	}
}

func TestVerdicts(t *testing.T) {
	at := time.Date(2031, 9, 18, 12, 0, 0, 0, time.UTC)
	reader := Client{Number: 1, Read: true}
	long := `{"text":"the same comment as all the others"}`
	_, letters := textOf(long)
	busy := Client{Number: 6, Read: true, Wrote: []time.Time{at, at, at, at, at.Add(-30 * time.Second)}}
	for _, tc := range []struct {
		name, method, body string
		before             Client
		want, reasons      string
	}{
		{"reading", "GET", `null`, Client{}, Read, ""},
		{"a comment", "POST", body(`{"text":"Thank you!"}`), reader, Fine, ""},
		{"of who has read nothing", "POST", body(`{"text":"Thank you!"}`), Client{}, Fine, "the client has read nothing before"},
		{"spam", "POST", body(`{"text":"Casino https://a https://b www.c"}`), reader, Spam, `3 links; the word "casino"`},
		{"spam in a form", "POST", body(`text=casino+https%3A%2F%2Fa+http%3A%2F%2Fb+www.c`), reader, Spam, `3 links; the word "casino"`},
		{"the same again", "POST", body(long), Client{Read: true, Text: fingerprintOf(letters)}, Fine, "the same text as before"},
		{"too fast", "POST", body(`{"text":"pills"}`), busy, Spam, `more than 5 comments within 1m0s; the word "pills"`},
		{"cut", "POST", `{"content":"{\"text\":\"casino","size":99,"truncated":true}`, reader, Neutral, ""},
		{"redacted", "POST", body(`{"text":"REDACTED casino"}`), reader, Neutral, ""},
		{"without a body", "PUT", `null`, reader, Neutral, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			raw := fmt.Sprintf(`{"id":"1","time":%q,"data":{"http":{"request":{"method":%q,"body":%s}},"url":{"path":"/comments"},"client":{"address":"a"}}}`, at.Format(time.RFC3339), tc.method, tc.body)
			after := tc.before
			v := Judge([]byte(raw), &after)
			if got := strings.Join(v.Reasons, "; "); v.Verdict != tc.want || got != tc.reasons {
				t.Errorf("got %s, %q; want %s, %q", v.Verdict, got, tc.want, tc.reasons)
			}
			if after.Number != tc.before.Number+1 || v.Number != after.Number {
				t.Errorf("got numbers %d, %d; want %d", after.Number, v.Number, tc.before.Number+1)
			}
			if len(after.Wrote) > mostComments {
				t.Errorf("got %d times remembered; want at most %d", len(after.Wrote), mostComments)
			}
		})
	}
}

func body(text string) string {
	raw, err := json.Marshal(map[string]any{"content": text, "size": len(text), "truncated": false})
	if err != nil {
		panic(err)
	}
	return string(raw)
}

func TestWhatIsNoEventHasAVerdict(t *testing.T) {
	c := newCluster(t)
	broken := event("a", 1)
	broken.Data = []byte("{")
	c.append(t, broken, event("a", 2))
	c.follow(t)
	got := c.await(t)
	if len(got) != 2 || got[0].Event != "a-1" || got[0].Verdict != Neutral || got[1].Number != 2 {
		t.Errorf("got %+v; want two verdicts, the first one neutral", got)
	}
}
