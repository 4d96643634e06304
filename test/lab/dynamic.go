package lab

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"

	"gopkg.in/yaml.v3"
)

// Options are those of one requestmirror middleware, as an operator writes
// them in YAML.
type Options = map[string]any

// Route leads what is asked of its host to a backend.
type Route struct {
	Rule    string   // Host(`NAME.test`) when empty, with the route's name
	Through []string // names of mirrors, outermost first
	Backend string   // URL; h2c://… for HTTP/2 without TLS
}

// Dynamic is a dynamic configuration: middlewares and routes by name. Each
// route is on both entry points, so Traefik makes two routers of it.
type Dynamic struct {
	Mirrors map[string]Options
	Routes  map[string]Route
	Extra   map[string]any // laid over the whole, map by map
}

// Apply replaces the dynamic configuration and returns when all entry points
// serve the new one.
func (t *Traefik) Apply(ctx context.Context, d Dynamic) error {
	t.applying.Lock()
	defer t.applying.Unlock()
	if err := t.writeDynamic(d); err != nil {
		return err
	}
	return t.waitUntilLive(ctx)
}

// marker is the name of a router that only the current configuration has.
func (t *Traefik) marker() string { return fmt.Sprintf("revision-%d", t.revision) }

func (t *Traefik) writeDynamic(d Dynamic) error {
	t.revision++
	routers := map[string]any{
		t.marker(): map[string]any{
			"rule":        fmt.Sprintf("Host(`%s.lab`)", t.marker()),
			"entryPoints": []string{"web", "websecure"},
			"service":     "noop@internal",
		},
	}
	services := map[string]any{}
	for name, r := range d.Routes {
		rule := r.Rule
		if rule == "" {
			rule = fmt.Sprintf("Host(`%s.test`)", name)
		}
		router := map[string]any{"rule": rule, "entryPoints": []string{"web", "websecure"}, "service": name}
		if len(r.Through) > 0 {
			router["middlewares"] = r.Through
		}
		routers[name] = router
		services[name] = map[string]any{"loadBalancer": map[string]any{
			"servers": []any{map[string]any{"url": r.Backend}},
		}}
	}
	config := map[string]any{"routers": routers}
	if len(services) > 0 {
		config["services"] = services
	}
	middlewares := map[string]any{}
	for name, options := range d.Mirrors {
		middlewares[name] = map[string]any{"plugin": map[string]any{"requestmirror": options}}
	}
	if len(middlewares) > 0 {
		config["middlewares"] = middlewares
	}
	return writeYAML(filepath.Join(t.dir, "dynamic.yml"), merge(map[string]any{
		"http": config,
		"tls": map[string]any{"stores": map[string]any{"default": map[string]any{"defaultCertificate": map[string]any{
			"certFile": filepath.Join(t.dir, certFile), "keyFile": filepath.Join(t.dir, keyFile),
		}}}},
	}, d.Extra))
}

// waitUntilLive asks each entry point for the marker: Traefik switches them
// one after the other.
func (t *Traefik) waitUntilLive(ctx context.Context) error {
	looks := []struct {
		url  string
		want int
	}{
		{t.API() + "/ping", http.StatusOK},
		{t.API() + "/api/http/routers/" + t.marker() + "@file", http.StatusOK},
		{"http://" + t.marker() + ".lab/", http.StatusTeapot},
		{"https://" + t.marker() + ".lab/", http.StatusTeapot},
	}
	for _, look := range looks {
		err := Poll(ctx, look.url, func() (bool, any, error) {
			select {
			case <-t.exited:
				return false, nil, fmt.Errorf("traefik ended: %v", t.exit)
			default:
			}
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, look.url, nil)
			if err != nil {
				return false, nil, err
			}
			res, err := t.control.Do(req)
			if err != nil {
				return false, err, nil // not listening yet
			}
			defer res.Body.Close()
			_, _ = io.Copy(io.Discard, res.Body)
			return res.StatusCode == look.want, res.Status, nil
		})
		if err != nil {
			return fmt.Errorf("%w; %s", err, t.log.tail())
		}
	}
	return nil
}

// merge returns base with over laid on it. Maps are merged, all else is replaced.
func merge(base, over map[string]any) map[string]any {
	merged := maps.Clone(base)
	for key, value := range over {
		below, ok := merged[key].(map[string]any)
		above, isMap := value.(map[string]any)
		if ok && isMap {
			merged[key] = merge(below, above)
			continue
		}
		merged[key] = value
	}
	return merged
}

// writeYAML replaces path at once, so that Traefik never reads half a file.
func writeYAML(path string, v any) error {
	text, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
