package requestmirror

import (
	"bytes"
	"context"
	"fmt"
	"math/rand"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// worker sees one event after the other through. All is its own goroutine's.
type worker struct {
	pipe     *pipeline
	event    *capture // what it is at; nil between events
	delivery *delivery
	left     bool // whether it was told to leave
}

// delivery is an event on its way.
type delivery struct {
	id          string // the same over all attempts: the receiver's idempotency key
	traceparent string // empty if the request had none
	payload     []byte
	attempts    int
}

// verdict is what one attempt came to. An empty reason is delivered.
type verdict struct {
	reason string
	retry  bool          // whether another attempt may help
	after  time.Duration // the receiver's wish; zero if it has none
	detail string        // for the log
}

// work is the life of a worker; a panic costs the event that it was at.
func work(p *pipeline) {
	w := &worker{pipe: p}
	for !w.left {
		run(w)
	}
}

// run is the way of an event from the queue to the receiver, as long as all goes
// well; what needs a second look is in functions of its own. It is one long function
// on purpose: in Yaegi each call allocates all variables and expressions of the
// callee, and a loop none. As a dozen functions it cost twice the CPU.
func run(w *worker) {
	defer rescue(w)
	p := w.pipe
	s := p.sender
	for {
		if w.event == nil {
			p.mu.Lock()
			p.idle++
			if p.short {
				staff(p)
			}
			p.mu.Unlock()
			c := <-p.queue
			p.mu.Lock()
			p.idle--
			if c == nil {
				w.left = leave(p)
				p.mu.Unlock()
				if w.left {
					return
				}
				continue
			}
			p.ledger.inFlight++
			if p.short {
				staff(p)
			}
			cautious := p.cautious
			p.mu.Unlock()
			w.event = c
			w.delivery = &delivery{}
			if cautious || time.Since(c.at) > p.set.maxAge {
				if !await(w, 0) {
					continue
				}
			}
		}
		c := w.event
		d := w.delivery
		if d.payload == nil {
			// The event is written in two strokes, see payload.go. Each part that a request
			// may not have is looked for here and made elsewhere.
			set := c.set
			// A UUIDv7 (RFC 9562, 5.7). The random part need not be secret, and Go's global
			// generator is seeded by the system.
			ms := c.at.UnixMilli()
			random := rand.Uint64()
			d.id = fmt.Sprintf(idForm, ms>>16, ms&0xffff, random>>52, random&0x3fff|0x8000, rand.Uint64()>>16)
			path, query, _ := strings.Cut(c.uri, "?")
			if !strings.HasPrefix(path, "/") {
				path = pathOfOther(path)
			}
			if query != "" {
				query = queryField(set, query)
			}
			trace := ""
			if c.header["Traceparent"] != nil {
				d.traceparent = traceparentOf(c.header)
				trace = traceField(d.traceparent)
			}
			peer, digits, _ := net.SplitHostPort(c.remote)
			port, _ := strconv.Atoi(digits)
			plain := path + peer
			if !strconv.CanBackquote(plain) || strings.ContainsAny(plain, oddBytes) {
				path = escape(path)
				peer = escape(peer)
			}
			client := peer
			if set.trustForwardHeader {
				client = forwardedFor(c.header, peer)
			}
			header := make(map[string][]string, len(c.header))
			kept := keptNames(set.names)
			for name, values := range c.header {
				lower := kept[name]
				if lower != "" && len(values) > 0 {
					header[lower] = values
				} else if !redactOther(set, header, name, values) {
					header = redactStrange(set, c.header)
					break
				}
			}
			data := &wireData{Attributes: set.attributes, HTTP: wireHTTP{Request: wireRequest{Method: c.method, Header: header}}}
			if set.cookieNames != nil {
				data.HTTP.Request.Cookie = selectCookies(set, c.header)
			}
			if c.body != nil {
				data.HTTP.Request.Body = encodeBody(c.body)
			}
			scheme := "http"
			if c.secure != nil {
				scheme = "https"
				data.TLS = tlsOf(c.secure)
			}
			if c.host != "" {
				data.Server = &wireServer{c.host, ports[scheme]}
				if strings.IndexByte(c.host, ':') >= 0 {
					takePort(data.Server)
				}
			}
			// From the redacted header, so that redaction holds here, too.
			agent := header["user-agent"]
			if agent != nil {
				data.UserAgent = &wireUserAgent{agent[0]}
			}
			id := header[set.requestID]
			if id != nil {
				data.RequestID = id[0]
			}
			buffer := &bytes.Buffer{}
			fmt.Fprintf(buffer, p.form, d.id, path, c.at.UTC().Format(timeForm), c.sequence, trace,
				scheme, path, query, versions[c.proto], peer, port, client)
			d.payload = secondStroke(buffer, data)
		}
		d.attempts++
		now := time.Now().Unix()
		head, _ := s.stamp.Load().(*stamp)
		if head.second != now {
			head = newStamp(s, now)
			s.stamp.Store(head)
		}
		ctx, cancel := context.WithTimeout(p.life, p.set.timeout)
		// With a bytes.Reader the transport can send again on a connection that the
		// receiver had closed meanwhile, which is no attempt.
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(d.payload))
		if err != nil {
			panic(err) // the URL was parsed before
		}
		// Set by index, with canonical names: a call costs more.
		header := head.header.Clone()
		header["Webhook-Id"] = []string{d.id}
		if s.secrets != nil {
			header["Webhook-Signature"] = []string{sign(s.secrets, d.id, head.timestamp, d.payload)}
		}
		if d.traceparent != "" {
			header["Traceparent"] = []string{d.traceparent}
		}
		req.Header = header
		if s.host != "" {
			req.Host = s.host
		}
		// The transport is used without http.Client: redirects are answers like others,
		// and there are no cookies.
		resp, err := s.transport.RoundTrip(req)
		if err != nil {
			v := judgeError(ctx, p, err)
			cancel()
			goOn(w, v)
			continue
		}
		// 101 hands over the connection, which has no end to read to.
		if resp.ContentLength != 0 && resp.StatusCode >= 200 {
			drain(resp)
		}
		cancel()
		if resp.StatusCode < 200 || resp.StatusCode > 299 {
			_ = resp.Body.Close()
			goOn(w, judge(resp.StatusCode, resp.Header))
			continue
		}
		w.event = nil
		p.mu.Lock()
		p.ledger.delivered++
		p.ledger.inFlight--
		c.settled = true
		if c.body != nil || c.weight > 0 {
			settleBody(p, c)
		}
		p.mu.Unlock()
	}
}

// goOn decides what follows a failed attempt: the event is tried again after a wait,
// up to retry.attempts attempts within maxAge, or it has failed.
func goOn(w *worker, v verdict) {
	p := w.pipe
	d := w.delivery
	holdBack(p, v)
	v.detail = fmt.Sprintf("attempt %d of %d: %s", d.attempts, p.set.attempts, v.detail)
	if !v.retry || d.attempts >= p.set.attempts {
		fail(w, v)
		return
	}
	p.mu.Lock()
	p.ledger.lastError = v.detail
	p.mu.Unlock()
	wait := v.after
	if wait == 0 {
		wait = backoff(p.set, d.attempts)
	}
	if await(w, wait) {
		countRetry(p.ledger)
	}
}

// await waits before an attempt, for the backoff or as the receiver asked, and says
// whether there is to be one. If not, the event has failed.
func await(w *worker, wait time.Duration) bool {
	p := w.pipe
	deadline := w.event.at.Add(p.set.maxAge)
	start := time.Now().Add(wait)
	for {
		until, gone := heldBack(p)
		if gone {
			fail(w, verdict{reason: reasonCircuitOpen, detail: "the receiver answered 410 Gone less than ten minutes ago"})
			return false
		}
		if until.Before(start) {
			until = start
		}
		now := time.Now()
		if p.pace.Err() != nil {
			until = now // nobody waits any more
		}
		if now.After(deadline) || until.After(deadline) {
			fail(w, verdict{reason: reasonExpired})
			return false
		}
		if p.life.Err() != nil {
			fail(w, verdict{reason: reasonRetired})
			return false
		}
		if !until.After(now) {
			return true
		}
		pause(p, until.Sub(now))
	}
}

// pause waits for d, or until it is of no use to wait: the pipeline ends, or Traefik does.
func pause(p *pipeline, d time.Duration) {
	ctx, cancel := context.WithTimeout(p.pace, d)
	defer cancel()
	<-ctx.Done()
}

// heldBack says until when the receiver wants no attempts, and whether it is gone.
func heldBack(p *pipeline) (until time.Time, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	gone = now.Before(p.goneUntil)
	p.cautious = gone || now.Before(p.pausedTo)
	return p.pausedTo, gone
}

// holdBack makes all workers heed what an answer asks for.
func holdBack(p *pipeline, v verdict) {
	if v.after == 0 && v.reason != reasonGone {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if v.reason == reasonGone {
		p.goneUntil = now.Add(goneFor)
	}
	if until := now.Add(v.after); until.After(p.pausedTo) {
		p.pausedTo = until
	}
	p.cautious = true
}

// fail counts the worker's event as failed. A reason without a detail leaves the last
// error that the log tells as it was, which is why the event came so far.
func fail(w *worker, v verdict) {
	c := w.event
	w.event = nil
	p := w.pipe
	p.mu.Lock()
	if !c.settled {
		c.settled = true
		p.ledger.failed[v.reason]++
		p.ledger.inFlight--
		if v.detail != "" {
			p.ledger.lastError = v.detail
		}
		lose(p.ledger)
		settleBody(p, c)
	}
	p.mu.Unlock()
}

// settleBody lets go of what an event held that is counted. The pipeline is locked.
func settleBody(p *pipeline, c *capture) {
	if c.body != nil && c.body.cut != "" {
		p.ledger.truncated[c.body.cut]++
	}
	discharge(p.budget, c)
}

// rescue counts the event of a worker that panicked; the worker goes on.
func rescue(w *worker) {
	if r := recover(); r != nil {
		countPanic(r)
		if w.event != nil {
			fail(w, verdict{reason: reasonInternal, detail: "a fault of the plugin"})
		}
	}
}
