package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"html/template"
	"log"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	shownClients = 100 // on the page; all are in the JSON
	shownScopes  = 10  // of one client, likewise
)

// picture is what the book says of some minutes.
type picture struct {
	From     time.Time     `json:"from"` // the beginning of the first minute
	To       time.Time     `json:"to"`   // in the last minute
	Began    time.Time     `json:"began"`
	Minutes  int           `json:"minutes"`
	Scope    string        `json:"scope,omitempty"` // if only one was asked for
	Requests uint64        `json:"requests"`
	Clients  []clientUsage `json:"clients"` // most requests first, the others last
	Missing  missing       `json:"missing"`
}

type clientUsage struct {
	Client    string       `json:"client"`
	KnownBy   string       `json:"known_by"`
	Requests  uint64       `json:"requests"`
	PerMinute []uint64     `json:"per_minute"` // the oldest first
	Scopes    []scopeUsage `json:"scopes"`     // most requests first
}

type scopeUsage struct {
	Scope    string `json:"scope"`
	Requests uint64 `json:"requests"`
}

// missing is what the picture does not have, as far as is known. Reports know no
// scopes, so it is always that of all scopes.
type missing struct {
	TooOld      uint64       `json:"too_old"` // events, since the beginning
	Middlewares []middleware `json:"middlewares"`
}

// middleware is what the reports of one say. A report is counted in its minute, with
// what has happened since the one before.
type middleware struct {
	Source     string `json:"source"`
	Reports    uint64 `json:"reports"`
	Seen       uint64 `json:"seen"`        // requests
	Filtered   uint64 `json:"filtered"`    // of them, on purpose
	SampledOut uint64 `json:"sampled_out"` // of them; the others count for them
	LostEvents []lost `json:"lost_events"`
}

type lost struct {
	Reason string `json:"reason"`
	Count  uint64 `json:"count"`
}

// Peak is the most requests in a minute.
func (c clientUsage) Peak() uint64 { return slices.Max(c.PerMinute) }

// look returns the picture of the last minutes, the present one included.
func (b *book) look(now time.Time, minutes int, scope string) picture {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turn(now)
	p := picture{
		From: time.Unix((b.latest-int64(minutes-1))*60, 0).UTC(), To: now.UTC(), Began: b.began.UTC(),
		Minutes: minutes, Scope: scope, Clients: []clientUsage{},
		Missing: missing{TooOld: b.tooOld, Middlewares: []middleware{}},
	}
	for client, scopes := range b.requests.rows {
		one := clientUsage{Client: client.name, KnownBy: client.knownBy, PerMinute: make([]uint64, minutes)}
		for name, s := range scopes {
			if scope != "" && name != scope {
				continue
			}
			here := scopeUsage{Scope: name}
			for i, n := range s.past(b.latest, minutes) {
				one.PerMinute[i] += n
				here.Requests += n
			}
			if here.Requests > 0 {
				one.Requests += here.Requests
				one.Scopes = append(one.Scopes, here)
			}
		}
		if one.Requests == 0 {
			continue
		}
		slices.SortFunc(one.Scopes, func(a, b scopeUsage) int {
			return cmp.Or(cmp.Compare(b.Requests, a.Requests), strings.Compare(a.Scope, b.Scope))
		})
		p.Requests += one.Requests
		p.Clients = append(p.Clients, one)
	}
	slices.SortFunc(p.Clients, func(a, b clientUsage) int {
		if last := a.KnownBy == inOthers; last != (b.KnownBy == inOthers) {
			return map[bool]int{true: 1, false: -1}[last]
		}
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), strings.Compare(a.Client, b.Client))
	})
	for source, columns := range b.reports.rows {
		counts := map[string]uint64{}
		for name, s := range columns {
			for _, n := range s.past(b.latest, minutes) {
				counts[name] += n
			}
		}
		if counts["reports"] > 0 {
			p.Missing.Middlewares = append(p.Missing.Middlewares, middlewareOf(source, counts))
		}
	}
	slices.SortFunc(p.Missing.Middlewares, func(a, b middleware) int { return strings.Compare(a.Source, b.Source) })
	return p
}

func middlewareOf(source who, counts map[string]uint64) middleware {
	m := middleware{
		Source: source.name, Reports: counts["reports"],
		Seen: counts["seen"], Filtered: counts["filtered"], SampledOut: counts["sampled out"], LostEvents: []lost{},
	}
	for name, n := range counts {
		if reason, ok := strings.CutPrefix(name, lostPrefix); ok && n > 0 {
			m.LostEvents = append(m.LostEvents, lost{reason, n})
		}
	}
	slices.SortFunc(m.LostEvents, func(a, b lost) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Reason, b.Reason))
	})
	return m
}

// asked reads the filters of a request.
func asked(req *http.Request) (minutes int, scope string, err error) {
	query := req.URL.Query()
	minutes = hour
	if text := query.Get("minutes"); text != "" {
		if minutes, err = strconv.Atoi(text); err != nil || minutes < 1 || minutes > hour {
			return 0, "", errors.New("minutes: want a number from 1 to 60")
		}
	}
	return minutes, query.Get("scope"), nil
}

func showJSON(w http.ResponseWriter, req *http.Request, b *book, now time.Time) {
	minutes, scope, err := asked(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	body, err := json.MarshalIndent(b.look(now, minutes, scope), "", "  ")
	send(w, "application/json", append(body, '\n'), err)
}

func showPage(w http.ResponseWriter, req *http.Request, b *book, now time.Time) {
	minutes, scope, err := asked(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var body bytes.Buffer
	err = page.Execute(&body, b.look(now, minutes, scope))
	send(w, "text/html; charset=utf-8", body.Bytes(), err)
}

func send(w http.ResponseWriter, contentType string, body []byte, err error) {
	if err != nil {
		log.Print(err)
		http.Error(w, "internal error", http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("Cache-Control", "no-store")
	// Names come from clients. They are escaped; should one not be, it can still do nothing.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	_, _ = w.Write(body)
}

var page = template.Must(template.New("page").Funcs(template.FuncMap{
	"clock":       func(t time.Time) string { return t.Format("15:04") },
	"firstClient": func(list []clientUsage) []clientUsage { return list[:min(len(list), shownClients)] },
	"firstScope":  func(list []scopeUsage) []scopeUsage { return list[:min(len(list), shownScopes)] },
}).Parse(`<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>API usage</title>
<style>
body { font-family: sans-serif; margin: 2em }
table { border-collapse: collapse }
th, td { border-bottom: 1px solid #ccc; padding: .3em .8em; text-align: left; vertical-align: top; overflow-wrap: anywhere }
.n { text-align: right; white-space: nowrap }
</style>
</head>
<body>
<h1>API usage</h1>
<form>
<label>Scope <input name="scope" value="{{.Scope}}" placeholder="all, or GET /api"></label>
<label>Minutes <input name="minutes" type="number" min="1" max="60" value="{{.Minutes}}"></label>
<button>Show</button>
</form>
<p>{{.Requests}} requests of {{len .Clients}} clients from {{clock .From}} to {{clock .To}} UTC{{if .Scope}}, {{.Scope}} only: <a href="/?minutes={{.Minutes}}">all scopes</a>{{end}}.
{{if .Began.After .From}}Counting began at {{clock .Began}}.{{end}}
<a href="/usage?minutes={{.Minutes}}&amp;scope={{.Scope}}">JSON</a></p>
<table>
<tr><th>client</th><th>known by</th><th class="n">requests</th><th class="n">most in a minute</th><th>scopes</th></tr>
{{range firstClient .Clients}}<tr><td>{{.Client}}</td><td>{{.KnownBy}}</td><td class="n">{{.Requests}}</td><td class="n">{{.Peak}}</td><td>
{{range firstScope .Scopes}}<a href="/?minutes={{$.Minutes}}&amp;scope={{.Scope}}">{{.Scope}}</a> {{.Requests}}<br>
{{end}}{{if gt (len .Scopes) 10}}and more, in the JSON{{end}}</td></tr>
{{else}}<tr><td colspan="5">none</td></tr>
{{end}}</table>
{{if gt (len .Clients) 100}}<p>And more, in the JSON.</p>{{end}}
<h2>What is missing</h2>
{{if .Missing.Middlewares}}<table>
<tr><th>middleware</th><th class="n">reports</th><th class="n">requests it saw</th><th class="n">left out on purpose</th><th class="n">sampled out, and counted by the others</th><th>events lost</th></tr>
{{range .Missing.Middlewares}}<tr><td>{{.Source}}</td><td class="n">{{.Reports}}</td><td class="n">{{.Seen}}</td><td class="n">{{.Filtered}}</td><td class="n">{{.SampledOut}}</td><td>
{{range .LostEvents}}{{.Reason}} {{.Count}}<br>
{{else}}none{{end}}</td></tr>
{{end}}</table>
{{else}}<p>No report has come in these minutes, so it is not known what was lost.</p>
{{end}}{{if .Missing.TooOld}}<p>{{.Missing.TooOld}} events came more than an hour late, and are not counted.</p>
{{end}}</body>
</html>
`))
