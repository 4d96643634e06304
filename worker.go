package requestmirror

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand"
	"net/http"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// worker sees one delivery after the other through. All is its own goroutine's.
type worker struct {
	pipe     *pipeline
	taken    []*capture  // out of the queue
	next     int         // the first of them that is not yet written
	writing  *capture    // what is being written; nil between events
	delivery *delivery   // what it is at; nil between deliveries
	rest     []*delivery // what comes next: parts of a batch that was too large
	gathers  bool        // whether it is its turn to make batches
	probe    int         // the number of the probe that the delivery is; 0: none
	left     bool        // whether there is no more use for it
}

// delivery is what one POST carries: an event, a batch of them, or a report.
type delivery struct {
	id          string // the same over all attempts: the receiver's idempotency key
	traceparent string // empty if the request had none, and of a batch
	events      []*capture
	ends        []int // of a batch: where the text of each event ends
	text        bytes.Buffer
	payload     []byte // what is sent; nil while it is not all written
	attempts    int
	begun       time.Time // of the last attempt
	packed      bool      // whether the payload is what is sent
	compressed  bool      // and was of use
	open        bool      // whether it is a batch that may take more events
	earliest    int64     // of a batch: arrival of its oldest event, in microseconds
	report      string    // what a report says; empty if it is none
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
	batched := p.set.batchEvents > 1
	repeated := p.set.format == formatRequest
	packed := p.set.gzip || p.set.format == formatOTLP
	eventLimit, batchLimit := sizeLimits(p.set)
	s := currentSender(p)
	wary := false // whether the next attempt needs a look at the gate

	// For the writing of events.
	var c *capture
	var set *settings
	var known *knownNames
	var buffer *bytes.Buffer
	var day, path, query, trace, key, from, instead, method, agent, named, header, plain, cookies string
	var values []string
	var random uint64
	var us, second, released int64
	var mark, lines, start, bodyAt, bodyEnd, size, responseAt, responseEnd int
	var fits bool
	var cookie *http.Cookie
	var wanted map[string][]string
	jar := &http.Request{}
	var b *body
	var req *http.Request
	var err error
	series := rand.Uint64()
	scratch := &bytes.Buffer{}
	encoder := json.NewEncoder(scratch)
	encoder.SetEscapeHTML(false)
	contexts := map[string]string{} // by remote address, protocol and host
	wire := bytes.NewBufferString("\r\n")
	tail := eventTail
	oldest := p.set.maxAge.Microseconds()
	if batched {
		tail += ","
	}
	for {
		d := w.delivery
		if d == nil && len(w.rest) > 0 {
			d = w.rest[len(w.rest)-1]
			w.rest = w.rest[:len(w.rest)-1]
			w.delivery = d
			wary = true
		}
		if w.next == len(w.taken) && (d == nil || d.open) {
			if batched {
				gather(w)
				if w.left {
					return
				}
				d = w.delivery
			} else {
				p.mu.Lock()
				if p.reporting.due {
					w.delivery = takeReport(p)
					p.mu.Unlock()
					wary = true
					continue
				}
				p.idle++
				if p.short {
					staff(p)
				}
				if p.adaptive != nil && surplus(p) {
					p.idle--
					p.mu.Unlock()
					w.left = true
					return
				}
				p.mu.Unlock()
				taken := <-p.queue
				p.mu.Lock()
				p.idle--
				if taken == nil {
					lookUp(w)
					p.mu.Unlock()
					if w.left {
						return
					}
					wary = true
					continue
				}
				p.counts.inFlight++
				if p.short {
					staff(p)
				}
				wary = p.gate.guarded
				p.mu.Unlock()
				w.taken = append(w.taken, taken)
				if wary || time.Since(taken.at) > p.set.maxAge {
					if !admitted(w) {
						continue
					}
				}
			}
		}
		if d != nil {
			buffer = &d.text
			size = buffer.Len()
		}
		for w.next < len(w.taken) && (d == nil || d.open) {
			// What every event has is written in two strokes, see payload.go; what only some
			// have is looked for here and written elsewhere. Variables are not declared here, as
			// that would allocate them for each event.
			c = w.taken[w.next]
			w.taken[w.next] = nil
			w.next++
			w.writing = c
			if repeated {
				d = copyOf(c)
				w.delivery = d
				w.writing = nil
				continue
			}
			if d == nil {
				d = &delivery{}
				if batched {
					d = beginBatch(w)
				}
				w.delivery = d
				buffer = &d.text
				size = buffer.Len()
				known = nil // others may have learnt more
			}
			if set != c.set || known == nil {
				set = c.set
				known, _ = set.names.known.Load().(*knownNames)
			}
			// Knuth's generator; the random part of an id need not be secret (payload.go).
			series = series*6364136223846793005 + 1442695040888963407
			random = c.random
			if random == 0 {
				random = series
			}
			us = c.at.UnixMicro()
			if us/1e6 != second {
				second = us / 1e6
				day = c.at.UTC().Format(secondForm)
			}
			path = c.uri
			query = ""
			mark = strings.IndexByte(path, '?')
			if mark >= 0 {
				query = path[mark+1:]
				path = path[:mark]
				if set.queryDefault != modeKeep || set.queryNames.MatchString(query) {
					query = redactQuery(set, query)
				}
			}
			if path == "" || path[0] != '/' {
				path = pathOfOther(path)
			}
			trace = set.sampledField
			if c.header["Traceparent"] != nil {
				trace = traceparentOf(c.header)
				d.traceparent = trace
				trace = set.sampledField + traceField(trace)
			}
			key = c.remote + c.proto + c.host
			from = contexts[key]
			if from == "" || c.secure != nil || set.trustForwardHeader {
				from = contextFields(set, c)
				if len(contexts) == mostRemembered {
					contexts = map[string]string{}
				}
				contexts[key] = from
			}

			// The header as it goes over the wire becomes JSON by one replacement, if all of its
			// names are known to be kept and each has one value; anything else takes a loop.
			agent = ""
			named = ""
			cookies = ""
			wire.Truncate(2)
			_ = c.header.WriteSubset(wire, known.absent)
			header = wire.String()
			lines = strings.Count(header, "\r\n") - 1
			instead = ""
			for mark = range known.hidden {
				values = c.header[known.hidden[mark]]
				if len(values) != 1 {
					continue
				}
				lines++
				if known.fields[mark] == hashed {
					instead += hashedField(set, known.hidden[mark], values[0])
				} else {
					instead += known.fields[mark]
				}
			}
			if c.header["Cookie"] != nil {
				lines++
				if set.cookieNames != nil {
					jar.Header = c.header
					wanted = nil
					for _, cookie = range jar.Cookies() {
						if set.cookieNames.MatchString(cookie.Name) {
							if wanted == nil {
								wanted = map[string][]string{}
							}
							wanted[cookie.Name] = append(wanted[cookie.Name], cookie.Value)
						}
					}
					if wanted != nil {
						scratch.Reset()
						_ = encoder.Encode(wanted)
						cookies = scratch.String()
						cookies = `,"cookie":` + cookies[:len(cookies)-1]
					}
				}
			}
			fits = lines == len(c.header) && len(header) > 2
			if fits {
				header = known.form.Replace(header[:len(header)-2])
				fits = !strings.Contains(header, "\r\n")
			}
			if fits {
				header = header[3:] + `"]` + instead
				// Of the redacted header, so that redaction holds here, too.
				values = c.header["User-Agent"]
				if values != nil {
					agent = values[0]
					if known.absent["User-Agent"] {
						agent = veiled(set, "User-Agent", agent)
					}
				}
				values = c.header[set.requestIDKey]
				if values != nil {
					named = values[0]
					if known.absent[set.requestIDKey] {
						named = veiled(set, set.requestIDKey, named)
					}
				}
			} else {
				header, agent, named = headerFields(set, c.header)
				known = nil
			}
			method = c.method
			plain = path + query + method + agent + named
			if !strconv.CanBackquote(header+plain) || strings.ContainsAny(plain, oddBytes) {
				header = strings.ToValidUTF8(header, "\ufffd")
				path = escape(path)
				query = escape(query)
				method = escape(method)
				agent = escape(agent)
				named = escape(named)
			}
			if query != "" {
				query = `,"query":"` + query + `"`
			}
			if agent != "" {
				agent = `,"user_agent":{"original":"` + agent + `"}`
			}
			if named != "" {
				named = `,"request_id":"` + named + `"`
			}

			start = size
			mark, _ = fmt.Fprintf(buffer, p.form, us/1000>>16, us/1000&0xffff, random>>52, random>>38&0x3fff|0x8000, random*spread>>16,
				path, day, us%1e6, c.sequence, trace, query, from, method, header, cookies)
			bodyAt = start + mark
			bodyEnd = bodyAt
			b = c.body
			if b != nil && b.cut == "" && b.full == nil && set.bodyFields == nil && utf8.Valid(b.last) {
				// What most bodies are: whole, in one piece, and text.
				scratch.Reset()
				_ = encoder.Encode(string(b.last))
				plain = scratch.String()
				mark, _ = fmt.Fprintf(buffer, bodyForm, plain[:len(plain)-1], b.kept)
				bodyEnd += mark
			} else if b != nil {
				writeBody(buffer, p, c, b, c.header)
				bodyEnd = buffer.Len()
			}
			responseAt = 0
			responseEnd = 0
			if c.response == nil {
				mark, _ = fmt.Fprintf(buffer, tail, agent, named, set.attributesField)
				size = bodyEnd + mark
			} else {
				responseAt, responseEnd = writeTail(buffer, p, c, tail, agent, named)
				size = buffer.Len()
			}
			if size-start > eventLimit {
				fits = trimEvent(buffer, c, start, bodyAt, bodyEnd, responseAt, responseEnd, eventLimit)
				size = buffer.Len()
				if !fits {
					buffer.Truncate(start)
					size = start
					w.writing = nil
					giveUp(w, c, verdict{reason: reasonTooLarge, detail: "an event is larger than maxEventSize even without its body"})
					continue
				}
			}
			w.writing = nil
			d.events = append(d.events, c)
			if !batched {
				d.payload = buffer.Bytes()
				d.id = string(d.payload[idAt : idAt+idLength])
				continue
			}
			d.ends = append(d.ends, size-1)
			if d.earliest == 0 || us < d.earliest {
				d.earliest = us // the queue is not in the order of arrival
			}
			if size > batchLimit && len(d.events) > 1 {
				carryOver(w)
				d.open = false
			} else if len(d.events) == p.set.batchEvents || size >= batchLimit {
				d.open = false
			}
		}
		if w.next == len(w.taken) {
			w.taken = w.taken[:0]
			w.next = 0
		}
		if d == nil || d.open {
			continue
		}
		if d.payload == nil {
			if batched {
				wary = seal(w)
			}
			if len(d.events) == 0 {
				fail(w, verdict{}) // nothing of it could be written
				continue
			}
		}
		if d.attempts == 0 && (d.report != "" || batched && (wary || time.Now().UnixMicro()-d.earliest > oldest)) {
			if !await(w, 0) {
				continue
			}
			d = w.delivery
		}
		if packed && !d.packed {
			pack(p.set, d)
		}
		d.attempts++
		begun := time.Now()
		d.begun = begun
		now := begun.Unix()
		head, _ := s.stamp.Load().(*stamp)
		if head.second != now {
			s = freshSender(p, now)
			head, _ = s.stamp.Load().(*stamp)
		}
		ctx, cancel := context.WithTimeout(p.life, p.set.timeout)
		if repeated {
			req, err = repeat(ctx, p, s, head, d)
			if err != nil {
				panic(err) // the server has read its URI, so this cannot be
			}
		} else {
			// With a bytes.Reader the transport can send again on a connection that the
			// receiver had closed meanwhile, which is no attempt.
			req, err = http.NewRequestWithContext(ctx, http.MethodPost, s.url, bytes.NewReader(d.payload))
			if err != nil {
				panic(err) // the URL was parsed before
			}
			// Set by index, with canonical names: a call costs more.
			marks := head.header.Clone()
			marks["Webhook-Id"] = []string{d.id}
			if s.secrets != nil {
				marks["Webhook-Signature"] = []string{sign(s.secrets, d.id, head.timestamp, d.payload)}
			}
			if d.traceparent != "" && !batched {
				marks["Traceparent"] = []string{d.traceparent}
			}
			if d.compressed {
				marks["Content-Encoding"] = []string{"gzip"}
			}
			req.Header = marks
		}
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
			wary = true
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
			wary = true
			continue
		}
		w.delivery = nil
		took := time.Since(begun).Seconds()
		p.mu.Lock()
		counts := p.counts
		counts.attempts[sort.SearchFloat64s(attemptBounds, took)]++
		counts.seconds += took
		counts.delivered += uint64(len(d.events))
		counts.inFlight -= uint64(len(d.events))
		released = 0
		for _, c = range d.events {
			c.settled = true
			b = c.body
			if b != nil && c.weight == 0 && c.response == nil && b.cut == "" && b.full == nil && !b.shared && !c.trimmed {
				released += b.charged // what settleBody does with most bodies
			} else if b != nil || c.weight > 0 || c.response != nil {
				settleBody(p, c)
			}
		}
		if released > 0 {
			atomic.AddInt64(&p.budget.held, -released)
		}
		news := ""
		if p.gate.guarded || p.adaptive != nil || d.report != "" {
			news = noteSuccess(w, d)
		}
		p.mu.Unlock()
		if news != "" {
			logError(news)
		}
	}
}

// admitted says whether the event that was taken may be tried at once; it is counted
// if not.
func admitted(w *worker) bool {
	c := w.taken[0]
	w.taken = w.taken[:0]
	w.delivery = &delivery{events: []*capture{c}}
	if !await(w, 0) {
		return false
	}
	w.delivery = nil
	w.taken = append(w.taken, c)
	return true
}
