package requestmirror

// Config is what users write. docs/reference/options.md describes every option.
//
// The fields take any value, and sections are maps, because the types differ by
// where a configuration comes from (YAML, container labels, Kubernetes JSON), and
// because Traefik takes down the route of a value that it cannot decode, with its
// first problem as the only message. New reads them all and reports every problem.
type Config struct {
	WatchURL             interface{} `json:"watchURL,omitempty"`
	WatchURLs            interface{} `json:"watchURLs,omitempty"`
	Methods              interface{} `json:"methods,omitempty"`
	IncludePaths         interface{} `json:"includePaths,omitempty"`
	ExcludePaths         interface{} `json:"excludePaths,omitempty"`
	SampleRate           interface{} `json:"sampleRate,omitempty"`
	CookieNames          interface{} `json:"cookieNames,omitempty"`
	Headers              interface{} `json:"headers,omitempty"`         // defaultMode, names
	QueryParameters      interface{} `json:"queryParameters,omitempty"` // defaultMode, names
	HashKey              interface{} `json:"hashKey,omitempty"`
	RedactBodyFields     interface{} `json:"redactBodyFields,omitempty"`
	MirrorBody           interface{} `json:"mirrorBody,omitempty"`
	MaxBodySize          interface{} `json:"maxBodySize,omitempty"`
	BodyContentTypes     interface{} `json:"bodyContentTypes,omitempty"`
	MaxEventSize         interface{} `json:"maxEventSize,omitempty"`
	MemoryLimit          interface{} `json:"memoryLimit,omitempty"`
	CaptureResponse      interface{} `json:"captureResponse,omitempty"`
	Format               interface{} `json:"format,omitempty"`
	Batch                interface{} `json:"batch,omitempty"` // maxEvents, maxSize, flushInterval
	Compression          interface{} `json:"compression,omitempty"`
	QueueSize            interface{} `json:"queueSize,omitempty"`
	Overflow             interface{} `json:"overflow,omitempty"`
	Workers              interface{} `json:"workers,omitempty"`
	Timeout              interface{} `json:"timeout,omitempty"`
	MaxAge               interface{} `json:"maxAge,omitempty"`
	Retry                interface{} `json:"retry,omitempty"`          // attempts, initialInterval, maxInterval
	CircuitBreaker       interface{} `json:"circuitBreaker,omitempty"` // failures, openFor
	TLS                  interface{} `json:"tls,omitempty"`            // ca, cert, key, insecureSkipVerify, serverName
	CustomRequestHeaders interface{} `json:"customRequestHeaders,omitempty"`
	SigningSecrets       interface{} `json:"signingSecrets,omitempty"`
	Attributes           interface{} `json:"attributes,omitempty"`
	RequestID            interface{} `json:"requestID,omitempty"`
	TrustForwardHeader   interface{} `json:"trustForwardHeader,omitempty"`
	Authenticate         interface{} `json:"authenticate,omitempty"` // header, secrets, prefix, onFailure
	Answer               interface{} `json:"answer,omitempty"`
	RequestOrigin        interface{} `json:"requestOrigin,omitempty"`
	MetricsPath          interface{} `json:"metricsPath,omitempty"`
	ReportInterval       interface{} `json:"reportInterval,omitempty"`
	DrainTimeout         interface{} `json:"drainTimeout,omitempty"`
	Strict               interface{} `json:"strict,omitempty"`
	Enabled              interface{} `json:"enabled,omitempty"`

	// Rest takes the names that are no options, which Traefik's decoder would
	// silently drop otherwise.
	Rest map[string]interface{} `json:"-" mapstructure:",remain"`
}

// CreateConfig returns the configuration that Traefik decodes the user's into. It is
// empty: defaults are where options are read, in settings.go.
func CreateConfig() *Config { return &Config{} }

// written is the configuration as it was written, by option name.
func (c *Config) written() map[string]interface{} {
	return map[string]interface{}{
		"watchURL": c.WatchURL, "watchURLs": c.WatchURLs, "methods": c.Methods,
		"includePaths": c.IncludePaths, "excludePaths": c.ExcludePaths, "sampleRate": c.SampleRate,
		"cookieNames": c.CookieNames, "headers": c.Headers, "queryParameters": c.QueryParameters, "hashKey": c.HashKey,
		"redactBodyFields": c.RedactBodyFields, "mirrorBody": c.MirrorBody, "maxBodySize": c.MaxBodySize,
		"bodyContentTypes": c.BodyContentTypes, "maxEventSize": c.MaxEventSize, "memoryLimit": c.MemoryLimit,
		"captureResponse": c.CaptureResponse, "format": c.Format, "batch": c.Batch, "compression": c.Compression,
		"queueSize": c.QueueSize, "overflow": c.Overflow, "workers": c.Workers, "timeout": c.Timeout, "maxAge": c.MaxAge,
		"retry": c.Retry, "circuitBreaker": c.CircuitBreaker, "tls": c.TLS, "customRequestHeaders": c.CustomRequestHeaders,
		"signingSecrets": c.SigningSecrets, "attributes": c.Attributes, "requestID": c.RequestID,
		"trustForwardHeader": c.TrustForwardHeader, "authenticate": c.Authenticate, "answer": c.Answer,
		"requestOrigin": c.RequestOrigin, "metricsPath": c.MetricsPath, "reportInterval": c.ReportInterval,
		"drainTimeout": c.DrainTimeout, "strict": c.Strict, "enabled": c.Enabled,
	}
}
