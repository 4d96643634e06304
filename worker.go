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
	end      int         // the first behind those that are being written; 0 between groups
	start    int         // of what they are written to
	careful  bool        // whether events are written one by one, as of a group not all may fit
	delivery *delivery   // what it is at; nil between deliveries
	rest     []*delivery // what comes next: parts of a batch that was too large
	usual    int         // bytes that a batch takes, by the last one
	gathers  bool        // whether it is its turn to make batches
	probe    int         // the number of the probe that the delivery is; 0: none
	left     bool        // whether there is no more use for it
}

// delivery is what one POST carries: an event, a batch of them, or a report.
type delivery struct {
	id          string // the same over all attempts: the receiver's idempotency key
	traceparent string // empty if the request had none, and of a batch
	events      []*capture
	holders     []*capture // those of them that hold more than memory
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
	var holders, rare []*capture
	var set *settings
	var known *knownNames
	var buffer *bytes.Buffer
	var day, path, subject, query, trace, key, from, instead, method, agent, named, header, plain, cookies, text string
	var values, plains, targets, lines, headers, heads, bodies, parts []string
	var numbers []interface{}
	var random uint64
	var us, second, released, freed int64
	var i, n, end, mark, at, count, room, start, bodyAt, bodyEnd, size, responseAt, responseEnd, remembered int
	var alone, simple, parted, several, odd, suspicious, complete, fits bool
	var cookie *http.Cookie
	var b *body
	var req *http.Request
	var err error
	jar := &http.Request{}
	series := rand.Uint64()
	scratch := &bytes.Buffer{}
	encoder := json.NewEncoder(scratch)
	encoder.SetEscapeHTML(false)
	whole := &plainBody{}
	contexts := map[string]string{} // by remote address, protocol and host
	wire := bytes.NewBufferString(lineEnd)
	gone := make([]*capture, handful)
	oldest := p.set.maxAge.Microseconds()
	mostWritten := largePart
	if mostWritten > eventLimit/2 {
		mostWritten = eventLimit / 2
	}
	closing := "}}"
	if batched {
		closing += batchBreak
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
			if repeated {
				d = copyOf(w.taken[w.next])
				w.taken[w.next] = nil
				w.next++
				w.delivery = d
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
			}
			// Events are written in groups, as a call of compiled code costs nearly the same for
			// many as for one: what is to be looked at is laid side by side, then looked at as a
			// whole, and then put together. An event of which it has to be known where its parts
			// are is a group of its own. Variables are not declared here, as that would allocate
			// them for each event.
			w.start = size
			w.end = len(w.taken)
			set = w.taken[w.next].set
			known, _ = set.names.known.Load().(*knownNames)
			wire.Truncate(len(lineEnd))
			scratch.Reset()
			targets = targets[:0]
			plains = plains[:0]
			numbers = numbers[:0]
			holders = holders[:0]
			alone = false
			room = mostWritten
			for end = w.next; end < len(w.taken) && room > 0 && !alone; end++ {
				c = w.taken[end]
				b = c.body
				simple = b == nil || b.cut == "" && b.full == nil && set.bodyFields == nil && utf8.Valid(b.last)
				alone = !batched || w.careful || !simple || c.response != nil
				if end > w.next && (alone || c.set != set) {
					alone = false
					break
				}
				if b != nil && simple {
					// What most bodies are: whole, in one piece, and text.
					whole.Content = string(b.last)
					whole.Size = b.kept
					_ = encoder.Encode(whole)
					room -= len(b.last)
				}
				room -= 1 << 10
				if c.texts > unusual {
					room -= int(c.texts)
				}
				// As it goes over the wire, but for what must not leave as it is.
				_ = c.header.WriteSubset(wire, known.absent)
				_, _ = wire.WriteString(headerEnd)
				agent = ""
				values = c.header["User-Agent"]
				if len(values) > 0 {
					agent = values[0]
				}
				named = ""
				values = c.header[set.requestIDKey]
				if len(values) > 0 {
					named = values[0]
				}
				us = c.at.UnixMicro()
				if us/1e6 != second {
					second = us / 1e6
					day = c.at.UTC().Format(secondForm)
				}
				targets = append(targets, c.uri)
				plains = append(plains, c.method, agent, named, day)
				// Knuth's generator; the random part of an id need not be secret (payload.go).
				series = series*6364136223846793005 + 1442695040888963407
				random = c.random
				if random == 0 {
					random = series
				}
				numbers = append(numbers, us/1000>>16, us/1000&0xffff, random>>52, random>>38&0x3fff|0x8000, random*spread>>16, us%1e6, c.sequence)
				if d.earliest == 0 || us < d.earliest {
					d.earliest = us // the queue is not in the order of arrival
				}
				if b != nil || c.response != nil {
					holders = append(holders, c)
				}
			}
			w.end = end
			n = end - w.next
			parted = alone && (c.body != nil || c.response != nil)

			plain = wire.String()
			header = known.form.Replace(plain)
			if !utf8.ValidString(header) {
				header = strings.ToValidUTF8(header, "\ufffd")
			}
			if n == 1 {
				query = targets[0]
				text = query + plains[0] + agent + named
				lines = append(lines[:0], plain[len(lineEnd):len(plain)-len(headerEnd)])
				headers = append(headers[:0], header[:len(header)-len(lineEnd+headerEnd)])
				plain = p.form
			} else {
				query = strings.Join(targets, "")
				text = query + strings.Join(plains, "")
				lines = strings.Split(plain[len(lineEnd):], headerEnd)
				headers = strings.Split(header, lineEnd+"\n")
				plain = strings.Repeat(p.form, n)
			}
			heads = strings.Split(fmt.Sprintf(plain, numbers...), "\n")
			if scratch.Len() > 0 {
				bodies = strings.Split(scratch.String(), "\n")
			}
			complete = strings.Count(header, lineEnd) == n+1 // all names are known
			odd = !strconv.CanBackquote(text) || strings.ContainsAny(text, oddBytes) || utf8.RuneCountInString(query) != len(query)
			suspicious = set.queryDefault != modeKeep
			if !suspicious && strings.IndexByte(query, '?') >= 0 {
				query = strings.ToLower(query)
				for _, key = range set.queryHints {
					suspicious = suspicious || strings.Contains(query, key)
				}
			}

			parts = parts[:0]
			mark = 0
			for i = 0; i < n; i++ {
				c = w.taken[w.next+i]
				path = targets[i]
				query = ""
				at = strings.IndexByte(path, '?')
				if at >= 0 {
					query = path[at+1:]
					path = path[:at]
					if suspicious && (n == 1 || set.queryDefault != modeKeep || set.queryNames.MatchString(query)) {
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
				if c.secure != 0 || set.trustForwardHeader {
					from = contextFields(set, c)
				} else {
					key = c.remote + c.proto + c.host
					from = contexts[key]
					if from == "" {
						from = contextFields(set, c)
						if remembered > mostRemembered {
							contexts = map[string]string{}
							remembered = 0
						}
						if len(key)+len(from) <= longest {
							contexts[key] = from
							remembered += len(key) + len(from)
						}
					}
				}
				method = c.method
				agent = plains[4*i+1]
				named = plains[4*i+2]

				// The header has become JSON, if all of its names are known to be kept and each has
				// one value; anything else takes a loop.
				count = strings.Count(lines[i], lineEnd)
				fits = count > 0 && (complete || !strings.Contains(headers[i], lineEnd))
				instead = ""
				for at = range known.hidden {
					values = c.header[known.hidden[at]]
					if len(values) != 1 {
						continue
					}
					count++
					if known.fields[at] == hashed {
						instead += hashedField(set, known.hidden[at], values[0])
					} else {
						instead += known.fields[at]
					}
				}
				cookies = ""
				values = c.header["Cookie"]
				if len(values) > 0 {
					count++
					if set.cookieNames != nil {
						jar.Header = c.header
						several = len(set.cookieMarks) == 0 || len(values) > 1
						for _, key = range set.cookieMarks {
							cookie, err = jar.Cookie(key[:len(key)-1])
							if err == nil {
								several = several || strings.Count(values[0], key) > 1
								// Neither a name nor a value that net/http takes needs an escape.
								cookies += `,"` + key[:len(key)-1] + `":["` + cookie.Value + `"]`
							}
						}
						if several {
							cookies = cookieFields(set, jar)
						}
						if cookies != "" {
							cookies = `,"cookie":{` + cookies[1:] + "}"
						}
					}
				}
				fits = fits && count == len(c.header)
				if fits {
					for _, values = range c.header {
						if len(values) == 0 {
							fits = false // it would make up for one with two
						}
					}
				}
				if fits {
					header = headers[i][len(`"],`):]
					instead = `"]` + instead
					// Of the redacted header, so that redaction holds here, too.
					if agent != "" && known.absent["User-Agent"] {
						agent = veiled(set, "User-Agent", agent)
					}
					if named != "" && known.absent[set.requestIDKey] {
						named = veiled(set, set.requestIDKey, named)
					}
				} else {
					header, agent, named = headerFields(set, c.header)
					instead = ""
				}
				subject = path
				if odd || !fits {
					subject = escape(subjectOf(path))
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
				parts = append(parts, eventHead, heads[2*i], p.origin, subject, `","time":"`, plains[4*i+3], heads[2*i+1], trace, `,"data":{"url":{"path":"`,
					path, `"`, query, ",", from, `,"http":{"request":{"method":"`, method, `","header":{`, header, instead, "}", cookies)
				if parted {
					break
				}
				if c.body != nil {
					parts = append(parts, `,"body":`, bodies[mark])
					mark++
				}
				parts = append(parts, "}}", agent, named, set.attributesField, closing)
			}
			text = strings.Join(parts, "")
			if !alone && (size+len(text) > batchLimit || len(text) > eventLimit) {
				w.careful = true // it has to be seen which of them fit
				continue
			}
			_, _ = buffer.WriteString(text)
			bodyAt = 0
			bodyEnd = 0
			responseAt = 0
			responseEnd = 0
			if parted {
				bodyAt = buffer.Len()
				b = c.body
				if b != nil && simple {
					_, _ = buffer.WriteString(`,"body":` + bodies[0])
				} else if b != nil {
					writeBody(buffer, p, c, b, c.header)
				}
				bodyEnd = buffer.Len()
				if c.response == nil {
					_, _ = buffer.WriteString("}}" + agent + named + set.attributesField + closing)
				} else {
					responseAt, responseEnd = writeTail(buffer, p, c, agent, named, closing)
				}
			}
			if alone && buffer.Len()-size > eventLimit && !trimEvent(buffer, c, size, bodyAt, bodyEnd, responseAt, responseEnd, eventLimit) {
				buffer.Truncate(size)
				w.taken[w.next] = nil
				w.next++
				w.end = 0
				giveUp(w, c, verdict{reason: reasonTooLarge, detail: "an event is larger than maxEventSize even without its body"})
				continue
			}
			start = size
			size = buffer.Len()
			d.events = append(d.events, w.taken[w.next:end]...)
			d.holders = append(d.holders, holders...)
			copy(w.taken[w.next:end], gone)
			w.next = end
			w.end = 0
			if !batched {
				d.payload = buffer.Bytes()
				d.id = string(d.payload[idAt : idAt+idLength])
				continue
			}
			if size > batchLimit && len(d.events) > 1 {
				carryOver(w, start)
				d.open = false
			} else if len(d.events) == p.set.batchEvents || size >= batchLimit {
				d.open = false
			}
		}
		if w.next == len(w.taken) {
			w.taken = w.taken[:0]
			w.next = 0
			w.careful = false
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
		// 101 hands over the connection, which has no end to read to. In HTTP/2, the end of an
		// answer without a body may come by itself, and the stream be reset if it is not read.
		if (resp.ContentLength != 0 || resp.ProtoMajor > 1) && resp.StatusCode >= 200 {
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
		// What takes a loop comes before the lock, for which requests wait.
		freed = 0
		for _, c = range d.events {
			freed += c.texts
			c.texts = 0
		}
		released = 0
		for _, c = range d.holders {
			c.settled = true
			b = c.body
			if b != nil && c.response == nil && b.cut == "" && b.full == nil && !b.shared && !c.trimmed && !c.withheld {
				released += b.charged // what settleBody does with most bodies
			} else if b != nil || c.response != nil {
				rare = append(rare, c)
			}
		}
		if released > 0 {
			atomic.AddInt64(&p.budget.held, -released)
		}
		if len(rare) > 0 {
			settleBodies(p, rare)
			rare = nil
		}
		p.mu.Lock()
		counts := p.counts
		counts.attempts[sort.SearchFloat64s(attemptBounds, took)]++
		counts.seconds += took
		counts.delivered += uint64(len(d.events))
		counts.inFlight -= uint64(len(d.events))
		p.spare += freed
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
