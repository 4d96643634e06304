package requestmirror

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"text/template"
	"time"
)

// With format otlp events are sent as OpenTelemetry log records, in OTLP's JSON encoding:
// the same data, its semantic conventions as attributes. What they have no name for is
// called requestmirror. and its path in the event. Records are made of events when a
// delivery is whole, by a template, as that is compiled code: nothing that is done for
// each event is interpreted.

// otlpEvent is an event as it is read for that. Values stay as they are in its JSON.
type otlpEvent struct {
	ID, Source, Sequence, SampledRate json.RawMessage
	Type, Subject, Time, Traceparent  string
	Data                              otlpData
	Report                            string // the data of a report, as JSON; empty of others
}

type otlpData struct {
	URL     struct{ Scheme, Path, Query json.RawMessage }
	Network struct {
		Protocol struct{ Name, Version json.RawMessage }
		Peer     otlpAddress
	}
	Client, Server otlpAddress
	HTTP           struct {
		Request, Response otlpMessage
	}
	UserAgent struct{ Original json.RawMessage } `json:"user_agent"`
	TLS       struct {
		Protocol struct{ Version json.RawMessage }
	}
	RequestID  json.RawMessage `json:"request_id"`
	Duration   json.RawMessage `json:"duration_ms"`
	Attributes map[string]json.RawMessage
}

type otlpAddress struct{ Address, Port json.RawMessage }

type otlpMessage struct {
	Method         string
	Status         json.RawMessage `json:"status_code"`
	Header, Cookie map[string][]json.RawMessage
	Body           struct {
		Content       json.RawMessage
		ContentBase64 json.RawMessage `json:"content_base64"`
		Size          json.RawMessage
		Reason        json.RawMessage `json:"truncated_reason"`
	}
}

// otlpAttributes are attributes of one value, with OTLP's name of its type, and where it
// is in the event. One that is not there has no attribute.
var otlpAttributes = [][]string{
	{"cloudevents.event_id", "stringValue", ".ID"},
	{"cloudevents.event_source", "stringValue", ".Source"},
	{"requestmirror.sequence", "stringValue", ".Sequence"},
	{"requestmirror.sampledrate", "intValue", ".SampledRate"},
	{"url.scheme", "stringValue", ".Data.URL.Scheme"},
	{"url.path", "stringValue", ".Data.URL.Path"},
	{"url.query", "stringValue", ".Data.URL.Query"},
	{"network.protocol.name", "stringValue", ".Data.Network.Protocol.Name"},
	{"network.protocol.version", "stringValue", ".Data.Network.Protocol.Version"},
	{"network.peer.address", "stringValue", ".Data.Network.Peer.Address"},
	{"network.peer.port", "intValue", ".Data.Network.Peer.Port"},
	{"client.address", "stringValue", ".Data.Client.Address"},
	{"server.address", "stringValue", ".Data.Server.Address"},
	{"server.port", "intValue", ".Data.Server.Port"},
	{"user_agent.original", "stringValue", ".Data.UserAgent.Original"},
	{"tls.protocol.version", "stringValue", ".Data.TLS.Protocol.Version"},
	{"http.request.body.size", "intValue", ".Data.HTTP.Request.Body.Size"},
	{"requestmirror.http.request.body.content", "stringValue", ".Data.HTTP.Request.Body.Content"},
	{"requestmirror.http.request.body.content_base64", "stringValue", ".Data.HTTP.Request.Body.ContentBase64"},
	{"requestmirror.http.request.body.truncated_reason", "stringValue", ".Data.HTTP.Request.Body.Reason"},
	{"http.response.status_code", "intValue", ".Data.HTTP.Response.Status"},
	{"http.response.body.size", "intValue", ".Data.HTTP.Response.Body.Size"},
	{"requestmirror.http.response.body.content", "stringValue", ".Data.HTTP.Response.Body.Content"},
	{"requestmirror.http.response.body.content_base64", "stringValue", ".Data.HTTP.Response.Body.ContentBase64"},
	{"requestmirror.http.response.body.truncated_reason", "stringValue", ".Data.HTTP.Response.Body.Reason"},
	{"requestmirror.request_id", "stringValue", ".Data.RequestID"},
	{"requestmirror.duration_ms", "doubleValue", ".Data.Duration"},
}

// otlpLists are those of lists, with what their names begin with.
var otlpLists = [][]string{
	{"http.request.header.", ".Data.HTTP.Request.Header"},
	{"requestmirror.http.request.cookie.", ".Data.HTTP.Request.Cookie"},
	{"http.response.header.", ".Data.HTTP.Response.Header"},
}

const (
	// Records, each but the first with a comma before it. LISTS and ATTRIBUTES are made of the
	// tables; a method that the conventions do not know is _OTHER there.
	otlpForm = `{"resourceLogs":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"traefik"}}]},` +
		`"scopeLogs":[{"scope":{"name":"github.com/opencommit/requestmirror","version":"` + version + `"},"logRecords":[
{{- range $i, $e := .}}{{if $i}},{{end}}{{$at := (time "` + time.RFC3339Nano + `" .Time).UnixNano}}{"timeUnixNano":"{{$at}}","observedTimeUnixNano":"{{$at}}","severityNumber":9,"severityText":"INFO","eventName":"{{.Type}}",
{{- with .Traceparent}}"traceId":"{{slice . 3 35}}","spanId":"{{slice . 36 52}}","flags":{{number (slice . 53) 16 8}},{{end -}}
"attributes":[{"key":"cloudevents.event_type","value":{"stringValue":"{{.Type}}"}}
{{- with .Subject}},{"key":"cloudevents.event_subject","value":{"stringValue":{{json . | printf "%s"}}}}{{end}}
{{- with .Data.HTTP.Request.Method}}{{if eq . "GET" "HEAD" "POST" "PUT" "DELETE" "CONNECT" "OPTIONS" "TRACE" "PATCH" "QUERY"}},{"key":"http.request.method","value":{"stringValue":"{{.}}"}}
{{- else}},{"key":"http.request.method","value":{"stringValue":"_OTHER"}},{"key":"http.request.method_original","value":{"stringValue":{{json . | printf "%s"}}}}{{end}}{{end -}}
ATTRIBUTES LISTS
{{- range $name, $value := .Data.Attributes}},{"key":{{json $name | printf "%s"}},"value":{"stringValue":{{printf "%s" $value}}}}{{end -}}
],"body":{"stringValue":{{if .Report}}{{json .Report | printf "%s"}}{{else}}{{json (print .Data.HTTP.Request.Method " " .Subject) | printf "%s"}}{{end}}}}{{end -}}
]}]}]}`

	otlpAttributeForm = `{{with FROM}}{{printf ",{\"key\":\"NAME\",\"value\":{\"TYPE\":QUOTE%sQUOTE}}" .}}{{end}}`

	otlpListForm = `{{range $name, $values := FROM}}{{json (print "NAME" $name) | printf ",{\"key\":%s,\"value\":{\"arrayValue\":{\"values\":["}}
{{- range $i, $value := $values}}{{if $i}},{{end}}{{printf "{\"stringValue\":%s}" $value}}{{end}}]}}}{{end}}`
)

var otlpTemplate = template.Must(template.New("otlp").Funcs(template.FuncMap{
	"json": json.Marshal, "time": time.Parse, "number": strconv.ParseUint,
}).Parse(otlpForms()))

func otlpForms() string {
	attributes := ""
	for _, a := range otlpAttributes {
		quote := ""
		if a[1] == "intValue" {
			quote = `\"` // 64 bits are more than the numbers of JSON
		}
		attributes += strings.NewReplacer("NAME", a[0], "TYPE", a[1], "FROM", a[2], "QUOTE", quote).Replace(otlpAttributeForm)
	}
	lists := ""
	for _, l := range otlpLists {
		lists += strings.NewReplacer("NAME", l[0], "FROM", l[1]).Replace(otlpListForm)
	}
	return strings.Replace(otlpForm, "ATTRIBUTES LISTS\n", attributes+lists, 1)
}

// logRecords is the payload of a delivery, one event or an array of them, as the request
// of an OTLP/HTTP exporter for logs.
func logRecords(payload []byte) []byte {
	if payload[0] != '[' {
		payload = append(append([]byte("["), payload...), ']')
	}
	var events []otlpEvent
	if err := json.Unmarshal(payload, &events); err != nil {
		panic(err) // contained by the worker: internal_error
	}
	if events[0].Type == reportType { // always alone
		var reports []struct{ Data json.RawMessage }
		_ = json.Unmarshal(payload, &reports)
		events[0].Report = string(reports[0].Data)
	}
	out := &bytes.Buffer{}
	if err := otlpTemplate.Execute(out, events); err != nil {
		panic(err)
	}
	return out.Bytes()
}
