package requestmirror

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A receiver can be asked whether it wants the events, before it gets any: the abuse
// protection of CloudEvents' HTTP webhook specification (chapter 4), which
// requestOrigin turns on. The probe of a half-open circuit does it, so a receiver that
// has not agreed is one whose circuit is open.

func needsHandshake(w *worker) bool {
	p := w.pipe
	if p.set.requestOrigin == "" {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.gate.permitted
}

// shakeHands asks the receiver for permission and says whether it gave it. If not, the
// events of the delivery have failed.
func shakeHands(w *worker) bool {
	p := w.pipe
	v, interval := ask(p)
	p.mu.Lock()
	if v.reason == "" {
		p.gate.permitted = true
		p.gate.interval = interval
		p.gate.slot = time.Now().Add(interval) // of the delivery after this one
		if p.gate.timer == nil {
			// The circuit was never open, so the delivery is one like any other.
			p.gate.state = breakerClosed
			abandonProbe(w)
			watch(&p.gate, time.Now())
		}
		p.mu.Unlock()
		return true
	}
	news := openCircuit(p, p.set.openFor, v)
	p.mu.Unlock()
	fail(w, v)
	if news != "" {
		logError(news)
	}
	return false
}

// ask makes the validation request. The verdict's reason is empty if the receiver
// agrees, and interval is then the least time between deliveries that it allows.
func ask(p *pipeline) (verdict, time.Duration) {
	v := verdict{}
	s := freshSender(p, time.Now().Unix())
	ctx, cancel := context.WithTimeout(p.life, p.set.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, s.url, nil)
	if err != nil {
		panic(err) // the URL was parsed before
	}
	head, _ := s.stamp.Load().(*stamp)
	req.Header = head.header.Clone()
	req.Header.Del("Content-Type")
	if s.host != "" {
		req.Host = s.host
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		v = judgeError(ctx, p, err)
		v.detail = "handshake: " + v.detail
		return v, 0
	}
	drain(resp)
	allowed := strings.TrimSpace(resp.Header.Get("Webhook-Allowed-Origin"))
	if resp.StatusCode < 200 || resp.StatusCode > 299 || allowed != "*" && !strings.EqualFold(allowed, p.set.requestOrigin) {
		v.reason = reasonRejected
		if len(allowed) > mostDetail {
			allowed = allowed[:mostDetail]
		}
		v.detail = fmt.Sprintf("handshake: the receiver answered %d and WebHook-Allowed-Origin %q, so it does not allow events from %q",
			resp.StatusCode, allowed, p.set.requestOrigin)
		return v, 0
	}
	return v, intervalOf(resp.Header.Get("Webhook-Allowed-Rate"))
}

// intervalOf is the time between requests at a rate in requests per minute; zero for
// "*", which is any rate, and for none.
func intervalOf(rate string) time.Duration {
	n, err := strconv.ParseUint(strings.TrimSpace(rate), 10, 31)
	if err != nil || n == 0 {
		return 0
	}
	return time.Minute / time.Duration(n)
}
