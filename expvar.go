package requestmirror

import (
	"expvar"
	"fmt"
	"sync"
)

// The counters are at expvar's "requestmirror", which Traefik serves at /debug/vars
// of its API when api.debug is set:
//
//	{"configErrors": 0, "panics": 0, "middlewares": {"<name>": {…}}}
//
// The variables are shared by all interpreters of the process, so they are looked
// up each time and made only where they are missing.
var (
	// publishMu is taken before the registry's lock, never while it is held: whoever
	// reads the variables holds expvar's lock and waits for the registry's.
	publishMu sync.Mutex
	shown     = map[string]*ledger{} // what was published, by name; guarded by publishMu
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

// publish shows the ledgers that are there now, and no others.
func publish() {
	publishMu.Lock()
	defer publishMu.Unlock()
	now := currentLedgers()
	all := publishedMiddlewares()
	for name, l := range shown {
		if now[name] != l {
			all.Delete(name)
			delete(shown, name)
		}
	}
	for name, l := range now {
		if shown[name] != l {
			all.Set(name, variableOf(l))
			shown[name] = l
		}
	}
}

func currentLedgers() map[string]*ledger {
	registryMu.Lock()
	defer registryMu.Unlock()
	now := make(map[string]*ledger, len(ledgers))
	for name, l := range ledgers {
		now[name] = l
	}
	return now
}

func variableOf(l *ledger) expvar.Func {
	return expvar.Func(func() interface{} { return snapshot(l) })
}

func countConfigError() { published().Add("configErrors", 1) }

func countPanic(r interface{}) {
	published().Add("panics", 1)
	logError("requestmirror: internal error, traffic is not affected: " + fmt.Sprint(r))
}
