package event

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"
)

// fullReport is a report with every list in use.
const fullReport = `{
  "specversion": "1.0",
  "id": "01992f6a-7c4e-7d2b-9a51-6f0c2b7de914",
  "source": "//traefik-7c9d5/middlewares/default-request-mirror@kubernetescrd",
  "type": "io.opencommit.requestmirror.report.v1",
  "time": "2026-11-21T13:40:07.184503Z",
  "datacontenttype": "application/json",
  "dataschema": "https://raw.githubusercontent.com/opencommit/requestmirror/main/docs/reference/report.v1.schema.json",
  "data": {
    "since": "2026-11-21T13:30:00.000000Z",
    "sequence": "01992f5e00c1-00000000000000004711",
    "seen": 4807,
    "filtered": 89,
    "sampled_out": 7,
    "delivered": 4650,
    "waiting": 3,
    "in_flight": 2,
    "dropped": [{ "reason": "queue_full", "count": 38 }, { "reason": "memory", "count": 2 }],
    "failed": [{ "reason": "timeout", "count": 16 }],
    "truncated": [{ "reason": "limit", "count": 2 }],
    "final": false
  }
}`

func TestReadReportReadsEveryField(t *testing.T) {
	r, err := ReadReport([]byte(fullReport))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"id", r.ID, "01992f6a-7c4e-7d2b-9a51-6f0c2b7de914"},
		{"source", r.Source, "//traefik-7c9d5/middlewares/default-request-mirror@kubernetescrd"},
		{"type", r.Type, ReportType},
		{"time", r.Time, time.Date(2026, 11, 21, 13, 40, 7, 184503000, time.UTC)},
		{"since", r.Since, time.Date(2026, 11, 21, 13, 30, 0, 0, time.UTC)},
		{"boot", r.Boot, "01992f5e00c1"},
		{"sequence", r.Sequence, int64(4711)},
		{"seen", r.Seen, int64(4807)},
		{"filtered", r.Filtered, int64(89)},
		{"sampled out", r.SampledOut, int64(7)},
		{"enqueued", r.Enqueued(), int64(4671)},
		{"delivered", r.Delivered, int64(4650)},
		{"waiting", r.Waiting, int64(3)},
		{"in flight", r.InFlight, int64(2)},
		{"dropped", maps.Equal(r.Dropped, map[string]int64{"queue_full": 38, "memory": 2}), true},
		{"failed", maps.Equal(r.Failed, map[string]int64{"timeout": 16}), true},
		{"truncated", maps.Equal(r.Truncated, map[string]int64{"limit": 2}), true},
		{"final", r.Final, false},
		{"raw", string(r.Raw), fullReport},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %v; want %v", c.what, c.got, c.want)
		}
	}
}

// editReport returns the full report with members changed: name, value, name, value.
// Names are of data, or with a dot in front of the envelope; nil deletes.
func editReport(t *testing.T, edits ...any) []byte {
	t.Helper()
	var root map[string]any
	if err := json.Unmarshal([]byte(fullReport), &root); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(edits); i += 2 {
		m := root["data"].(map[string]any)
		name, envelope := strings.CutPrefix(edits[i].(string), ".")
		if envelope {
			m = root
		}
		if m[name] = edits[i+1]; edits[i+1] == nil {
			delete(m, name)
		}
	}
	raw, err := json.Marshal(root)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func losses(reason string, count any) []any { return []any{obj{"reason": reason, "count": count}} }

func TestReadReportAcceptsWhatTheContractAllows(t *testing.T) {
	none := []any{}
	type edit = []any
	for _, c := range []struct {
		name  string
		edits edit
	}{
		{"the last report of a pipeline", edit{"final", true, "waiting", 0, "in_flight", 0, "delivered", 4655}},
		{"before the first request", edit{"sequence", "01992f5e00c1-00000000000000000000", "seen", 0, "filtered", 0, "sampled_out", 0, "delivered", 0,
			"waiting", 0, "in_flight", 0, "dropped", none, "failed", none, "truncated", none}},
		{"times without a fraction", edit{".time", "2026-11-21T13:40:07Z", "since", "2026-11-21T13:30:00Z"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := ReadReport(editReport(t, c.edits...)); err != nil {
				t.Error(err)
			}
		})
	}
	for _, reason := range []string{
		"queue_full", "memory", "expired", "circuit_open", "retired", "network_error", "timeout",
		"rejected", "server_error", "gone", "too_large", "incomplete", "internal_error",
	} {
		t.Run("lost by "+reason, func(t *testing.T) {
			if _, err := ReadReport(editReport(t, "failed", losses(reason, 16), "dropped", losses(reason, 40))); err != nil {
				t.Error(err)
			}
		})
	}
	for _, reason := range []string{"limit", "event", "memory", "aborted", "unread", "content-type", "disabled"} {
		t.Run("cut by "+reason, func(t *testing.T) {
			if _, err := ReadReport(editReport(t, "truncated", losses(reason, 4666))); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestReadReportRejectsWhatTheContractForbids(t *testing.T) {
	type edit = []any
	for _, c := range []struct {
		name  string
		edits edit
	}{
		{"requests that do not add up", edit{"seen", 4808}},
		{"events that do not add up", edit{"delivered", 4651}},
		{"a drop that is not counted as seen", edit{"dropped", losses("queue_full", 41)}},
		{"more cut bodies than events that are done", edit{"truncated", losses("limit", 4667)}},
		{"a final report with events in the queue", edit{"final", true, "in_flight", 0, "delivered", 4652}},
		{"a final report with events in flight", edit{"final", true, "waiting", 0, "delivered", 4653}},
		{"a reason twice", edit{"dropped", []any{obj{"reason": "memory", "count": 20}, obj{"reason": "memory", "count": 20}}}},
		{"an unknown reason of a loss", edit{"failed", losses("tired", 16)}},
		{"an unknown reason of a cut body", edit{"truncated", losses("queue_full", 2)}},
		{"a body's reason of a loss", edit{"failed", losses("limit", 16)}},
		{"a reason that nothing has", edit{"failed", []any{obj{"reason": "timeout", "count": 16}, obj{"reason": "gone", "count": 0}}}},
		{"a count that is a string", edit{"failed", losses("timeout", "16")}},
		{"a count with a fraction", edit{"delivered", 4650.5}},
		{"a negative count", edit{"filtered", -1, "seen", 4717}},
		{"a count that JavaScript would round", edit{"filtered", 9007199254740992, "seen", 9007199254740992 + 4718}},
		{"losses by name, not as a list", edit{"dropped", obj{"queue_full": 40}}},
		{"null, as a nil slice is written, where a list is due", edit{"truncated", json.RawMessage("null")}},
		{"no list of what was dropped", edit{"dropped", nil, "delivered", 4690}},
		{"no number of what waits", edit{"waiting", nil, "delivered", 4653}},
		{"no word on whether it is final", edit{"final", nil}},
		{"no since", edit{"since", nil}},
		{"no sequence in data", edit{"sequence", nil}},
		{"a sequence without boot", edit{"sequence", "00000000000000004711"}},
		{"a number that is too high", edit{"sequence", "01992f5e00c1-99999999999999999999"}},
		{"a sequence of its own, as if it were one of the events", edit{".sequence", "01992f5e00c1-00000000000000004712"}},
		{"a subject", edit{".subject", "/"}},
		{"a traceparent", edit{".traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}},
		{"an unknown member of data", edit{"retried", 1}},
		{"an exported private field of the interpreter", edit{"Xseen", 1}},
		{"the schema of the other type", edit{".dataschema", SchemaURL}},
		{"the other type", edit{".type", Type}},
		{"an id that is no UUIDv7", edit{".id", "01992f6a-7c4e-4d2b-9a51-6f0c2b7de914"}},
		{"a source without middleware", edit{".source", "//host"}},
		{"a time with an offset", edit{".time", "2026-11-21T13:40:07+02:00"}},
		{"written before the pipeline began", edit{".time", "2026-11-21T13:29:59Z"}},
		{"a since that is no time", edit{"since", "today"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if r, err := ReadReport(editReport(t, c.edits...)); err == nil {
				t.Errorf("got a report %s; want an error", r.Raw)
			}
		})
	}
	for name, raw := range map[string]string{
		"nothing":           "",
		"two reports":       fullReport + fullReport,
		"a batch":           "[" + fullReport + "]",
		"a request event":   full,
		"a name used twice": strings.Replace(fullReport, `"seen":`, `"delivered": 4650, "seen":`, 1),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := ReadReport([]byte(raw)); err == nil {
				t.Error("got a report; want an error")
			}
		})
	}
	t.Run("a report given to Parse, which reads events", func(t *testing.T) {
		if _, err := Parse([]byte(fullReport)); err == nil {
			t.Error("got an event; want an error")
		}
	})
}

func TestReadDelivery(t *testing.T) {
	another := strings.Replace(full, "6f0c2b7de913", "6f0c2b7de915", 1)
	for _, c := range []struct {
		name            string
		contentType     string
		raw             string
		events, reports int
		ok              bool
	}{
		{"an event", ContentType, full, 1, 0, true},
		{"a report", ContentType, fullReport, 0, 1, true},
		{"a batch of one", BatchContentType, "[" + full + "]", 1, 0, true},
		{"a batch of both types", BatchContentType, "[" + full + "," + fullReport + "," + another + "]", 2, 1, true},
		{"a batch of reports", BatchContentType, "[" + fullReport + "]", 0, 1, true},

		{"a batch that is called an event", ContentType, "[" + full + "]", 0, 0, false},
		{"an event that is called a batch", BatchContentType, full, 0, 0, false},
		{"a batch with a charset, which the SDK does not take for one", BatchContentType + "; charset=utf-8", "[" + full + "]", 0, 0, false},
		{"an empty batch", BatchContentType, "[]", 0, 0, false},
		{"a batch with an event twice", BatchContentType, "[" + full + "," + full + "]", 0, 0, false},
		{"a batch with an event that is not valid", BatchContentType, "[" + full + "," + strings.Replace(fullReport, "4807", "4808", 1) + "]", 0, 0, false},
		{"a batch with something else", BatchContentType, "[" + full + ",7]", 0, 0, false},
		{"two batches", BatchContentType, "[" + full + "][" + fullReport + "]", 0, 0, false},
		{"a batch in a batch", BatchContentType, "[[" + full + "]]", 0, 0, false},
		{"null", BatchContentType, "null", 0, 0, false},
		{"JSON", "application/json", full, 0, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := http.Header{}
			h.Set("Content-Type", c.contentType)
			b, err := ReadDelivery(h, []byte(c.raw))
			if (err == nil) != c.ok || c.ok && (len(b.Events) != c.events || len(b.Reports) != c.reports) {
				t.Errorf("got %d events, %d reports, %v; want %d, %d, accepted: %t", len(b.Events), len(b.Reports), err, c.events, c.reports, c.ok)
			}
		})
	}
}
