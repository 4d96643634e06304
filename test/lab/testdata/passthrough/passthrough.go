// Package requestmirror does nothing: it stands for the plugin when the lab
// itself is tested.
package requestmirror

import (
	"context"
	"expvar"
	"net/http"
	"sync/atomic"
)

type Config struct{ WatchURL string }

func CreateConfig() *Config { return &Config{} }

var news int64

func init() {
	expvar.Publish("requestmirror", expvar.Func(func() any {
		n := atomic.LoadInt64(&news)
		even := map[string]any{"seen": 3, "enqueued": 2, "dropped": map[string]int{"queue_full": 1}, "delivered": 2}
		odd := map[string]any{"seen": 3, "enqueued": 2}
		return map[string]any{"configErrors": n, "middlewares": map[string]any{
			"even@file": map[string]any{"receivers": map[string]any{"http://a": even}},
			"odd@file":  map[string]any{"receivers": map[string]any{"http://a": odd}},
			"two@file":  map[string]any{"receivers": map[string]any{"http://a": even, "http://b": odd}},
		}}
	}))
}

func New(_ context.Context, next http.Handler, _ *Config, _ string) (http.Handler, error) {
	atomic.AddInt64(&news, 1)
	return next, nil
}
