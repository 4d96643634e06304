package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// progressEvery is how often a long run says how far it is.
const progressEvery = 5 * time.Second

// player sends requests when they are due.
type player struct {
	options
	sum       *summary
	stderr    io.Writer
	transport http.RoundTripper

	flying     atomic.Int64
	toldAt     time.Time
	behind     time.Duration // of the request that was sent last
	first      time.Time     // time of the first request, as it was recorded
	begin      time.Time     // when it was sent
	lastOfPlan time.Time
}

// newTransport sends a request and nothing else: it follows no redirect, keeps no
// cookie, uses no proxy and asks for no compression.
func newTransport(o options) *http.Transport {
	dialer := &net.Dialer{}
	if !o.hostIsMine {
		dialer.Control = refuseOthers
	}
	return &http.Transport{
		DialContext:         dialer.DialContext,
		MaxConnsPerHost:     o.connections,
		MaxIdleConnsPerHost: o.connections,
		IdleConnTimeout:     30 * time.Second,
		DisableCompression:  true,
	}
}

// play sends all requests of a source, and waits for their answers. When ctx is done it
// sends no more.
func (p *player) play(ctx context.Context, next source) {
	slots := make(chan struct{}, p.connections)
	var under sync.WaitGroup
	var pace pace
	for p.limit == 0 || p.sum.sent < p.limit {
		req, due, n, ok := p.prepare(next)
		if !ok || !p.wait(ctx, due) {
			break
		}
		ready := time.Now()
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
		}
		acquired := time.Now()
		if ctx.Err() != nil || p.over(acquired) {
			break
		}
		busy, own := pace.late(due, ready, acquired)
		p.behind = busy + own
		p.sum.sending(n)
		p.flying.Add(1)
		under.Add(1)
		go func() {
			defer under.Done()
			began := time.Now()
			if p.speed > 0 {
				p.sum.late(busy, own+began.Sub(acquired))
			}
			status, err := p.send(req)
			p.sum.answer(status, err, time.Since(began))
			p.flying.Add(-1)
			<-slots
		}()
		p.tell()
	}
	under.Wait()
	if !p.begin.IsZero() {
		p.sum.took = time.Since(p.begin)
	}
	if t, ok := p.transport.(*http.Transport); ok {
		t.CloseIdleConnections()
	}
}

// rehearse prints what play would send.
func (p *player) rehearse(ctx context.Context, next source, w io.Writer) {
	for ctx.Err() == nil && (p.limit == 0 || p.sum.sent < p.limit) {
		req, due, n, ok := p.prepare(next)
		if !ok {
			break
		}
		at := "at once"
		if p.speed > 0 {
			at = fmt.Sprintf("after %.3fs", due.Sub(p.begin).Seconds())
		}
		printRequest(w, at, req)
		p.sum.sending(n)
	}
}

// prepare returns the next request that can be sent, and when it is due. It says false
// if there is none any more, or none within -for.
func (p *player) prepare(next source) (*http.Request, time.Time, notes, bool) {
	for {
		e, ok := next()
		if !ok {
			return nil, time.Time{}, notes{}, false
		}
		req, n, err := requestOf(e, p.options)
		if why := refusal(""); errors.As(err, &why) {
			p.sum.skip(string(why))
			continue
		} else if err != nil {
			p.sum.complain(e.where() + ": " + err.Error())
			continue
		}
		due := p.due(e.Time)
		return req, due, n, !p.over(due)
	}
}

// due plans a request by the time at which it came.
func (p *player) due(at time.Time) time.Time {
	if p.begin.IsZero() {
		p.first, p.lastOfPlan, p.begin = at, at, time.Now()
		p.toldAt = p.begin
	}
	if at.Before(p.lastOfPlan) {
		p.sum.disordered++
		at = p.lastOfPlan
	}
	p.lastOfPlan = at
	if p.speed == 0 {
		return p.begin
	}
	offset := float64(at.Sub(p.first)) / p.speed
	return p.begin.Add(time.Duration(min(offset, math.MaxInt64/4)))
}

// over says whether a time is later than -for allows.
func (p *player) over(at time.Time) bool { return p.period > 0 && at.Sub(p.begin) > p.period }

// wait returns at a time, or says false when ctx is done.
func (p *player) wait(ctx context.Context, until time.Time) bool {
	for {
		left := time.Until(until)
		if left <= 0 || ctx.Err() != nil {
			return ctx.Err() == nil
		}
		timer := time.NewTimer(min(left, progressEvery))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
		p.tell()
	}
}

// tell says how far a long run is.
func (p *player) tell() {
	if now := time.Now(); now.Sub(p.toldAt) >= progressEvery {
		p.toldAt = now
		text := fmt.Sprintf("%s: %d sent, %d under way", now.Sub(p.begin).Round(time.Second), p.sum.sent, p.flying.Load())
		if p.speed > 0 && p.behind > tolerated {
			text += fmt.Sprintf(", %s late", rounded(p.behind))
		}
		fmt.Fprintln(p.stderr, text)
	}
}

// send sends a request and reads the answer to its end.
func (p *player) send(req *http.Request) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), p.timeout)
	defer cancel()
	resp, err := p.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// pace tells why requests are late.
type pace struct {
	debt time.Duration // by which waiting for a connection has put back the plan
}

// late splits how late a request is: because all connections were busy, for it or for
// those before it, and for other reasons, which are this program's own. It was due, then
// ready to be sent, then had acquired a connection.
func (p *pace) late(due, ready, acquired time.Time) (busy, own time.Duration) {
	behind := max(0, ready.Sub(due))
	p.debt = min(p.debt, behind) // what the plan has made up for since then is forgotten
	own = behind - p.debt
	p.debt += acquired.Sub(ready)
	return p.debt, own
}
