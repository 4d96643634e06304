package requestmirror

import (
	"expvar"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// The counters are at expvar's "requestmirror", which Traefik serves at /debug/vars
// of its API when api.debug is set:
//
//	{"configErrors": 0, "panics": 0, "middlewares": {"<name>": {"receivers": {"<receiver>": {…}}, …}}}
//
// The variables are shared by all interpreters of the process, so they are looked
// up each time and made only where they are missing.
var (
	// publishMu is taken before the registry's lock, never while it is held: whoever
	// reads the variables holds expvar's lock and waits for the registry's.
	publishMu sync.Mutex
	shown     = map[string]bool{} // names of what was published; guarded by publishMu
)

func published() *expvar.Map {
	root, ok := expvar.Get("requestmirror").(*expvar.Map)
	if !ok {
		root = expvar.NewMap("requestmirror")
		root.Add("configErrors", 0)
		root.Add("panics", 0)
	}
	return root
}

func publishedMiddlewares() *expvar.Map {
	root := published()
	all, ok := root.Get("middlewares").(*expvar.Map)
	if !ok {
		all = new(expvar.Map).Init()
		root.Set("middlewares", all)
	}
	return all
}

// publish shows the middlewares that are there now, and no others.
func publish() {
	publishMu.Lock()
	defer publishMu.Unlock()
	now := currentNames()
	all := publishedMiddlewares()
	for name := range shown {
		if !now[name] {
			all.Delete(name)
			delete(shown, name)
		}
	}
	for name := range now {
		if !shown[name] {
			all.Set(name, variableOf(name))
			shown[name] = true
		}
	}
}

func currentNames() map[string]bool {
	registryMu.Lock()
	defer registryMu.Unlock()
	now := make(map[string]bool, len(ledgers))
	for _, l := range ledgers {
		now[l.name] = true
	}
	return now
}

func variableOf(name string) expvar.Func {
	return expvar.Func(func() interface{} { return asVariables(takeOverview(name)) })
}

// asVariables is the reading of a middleware as expvar shows it.
func asVariables(o *overview) map[string]interface{} {
	receivers := map[string]interface{}{}
	all := map[string]interface{}{"receivers": receivers}
	for _, m := range o.middlewares {
		all["bytesHeld"] = m.bytesHeld
		all["memoryLimit"] = m.memoryLimit
		for _, r := range m.receivers {
			receivers[r.receiver] = receiverVariables(r)
		}
	}
	return all
}

func receiverVariables(r *reading) map[string]interface{} {
	c := r.counts
	return map[string]interface{}{
		"seen": c.filtered + c.sampledOut + c.offered, "filtered": c.filtered, "unauthenticated": c.unauthenticated, "sampledOut": c.sampledOut,
		"enqueued": c.offered - sum(c.dropped), "dropped": c.dropped,
		"delivered": c.delivered, "failed": c.failed, "inFlight": c.inFlight, "waiting": r.waiting,
		"retried": c.retried, "truncated": c.truncated,
		"pipelines": r.pipelines, "queueLength": r.queueLength, "queueCapacity": r.queueCapacity,
		"circuitBreaker": r.breaker, "concurrency": r.concurrency,
	}
}

func countConfigError() { published().Add("configErrors", 1) }

// panicsTold is when the last panic was logged, in Unix seconds. Atomic.
var panicsTold int64

// countPanic counts a fault of the plugin, and logs it unless one was logged a moment ago:
// one that each request meets must not fill the log.
func countPanic(r interface{}) {
	published().Add("panics", 1)
	now := time.Now().Unix()
	last := atomic.LoadInt64(&panicsTold)
	if (now < last || now-last >= int64(tellEvery/time.Second)) && atomic.CompareAndSwapInt64(&panicsTold, last, now) {
		logError("requestmirror: internal error, traffic is not affected: " + fmt.Sprint(r))
	}
}

// newMetricsPage answers requests for the path with the state of all mirroring in this
// process; next gets all others.
func newMetricsPage(next http.Handler, path string) http.Handler {
	return &metricsPage{next: next, path: path, read: readAll}
}

func readAll() *overview {
	o := takeOverview("")
	o.configErrors = variable("configErrors")
	o.panics = variable("panics")
	return o
}

func variable(name string) int64 {
	if n, ok := published().Get(name).(*expvar.Int); ok {
		return n.Value()
	}
	return 0
}
