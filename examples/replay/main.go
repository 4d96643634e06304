// Command replay turns stored events of Request Mirror back into requests, and sends
// them to a test host at the pace at which they came, or faster:
//
//	go run . -to http://127.0.0.1:8080 -speed 10 events.jsonl
//
// It reads JSON lines, each an event or a batch, from files or standard input
// (source.go), makes a request of each event (request.go), sends it when it is due
// (player.go), and says at the end what came of it (summary.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What becomes of a request whose body is not there as a whole.
const (
	skip = "skip"
	send = "send" // what there is
	pad  = "pad"  // what there is, and spaces up to its size
)

// options of a run.
type options struct {
	to          *url.URL // scheme and host; nil only for a dry run
	hostIsMine  bool
	speed       float64 // 0: as fast as the connections allow
	connections int
	timeout     time.Duration
	period      time.Duration // 0: to the end
	limit       int           // 0: all
	window      int
	truncated   string
	keepHost    bool
	header      map[string][]string // by lower-case name: instead of values that were withheld
	dryRun      bool
}

func main() {
	// The first signal ends the run as -for does, the next one the program.
	ended, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ended, stop)
	os.Exit(run(ended, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the program. It returns 0 if all input was read and something was sent, 1 if
// not, and 2 for wrong options.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, files, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		fmt.Fprintln(stderr, "replay:", err)
		return 2
	}
	sum := newSummary(stderr)
	var streams []*stream
	if len(files) == 0 {
		streams = append(streams, newStream("standard input", stdin, o.window, sum))
	}
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			fmt.Fprintln(stderr, "replay:", err)
			return 1 // rather than half of the load
		}
		defer file.Close()
		streams = append(streams, newStream(name, file, o.window, sum))
	}
	p := &player{options: o, sum: sum, stderr: stderr, transport: newTransport(o)}
	if o.dryRun {
		p.rehearse(ctx, merge(streams), stdout)
	} else {
		p.play(ctx, merge(streams))
	}
	sum.print(stdout, o)
	if sum.unreadable > 0 || sum.sent == 0 {
		return 1
	}
	return 0
}

// parse reads the options, and refuses those that could do harm.
func parse(args []string, stderr io.Writer) (o options, files []string, err error) {
	o = options{speed: 1, header: map[string][]string{}}
	flags := flag.NewFlagSet("replay", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprintln(stderr, "usage: replay -to http://host:port [options] [file of JSON lines ...]")
		flags.PrintDefaults()
	}
	flags.Func("to", "`address` that requests are sent to: http or https, and a host", func(text string) (err error) {
		o.to, err = parseTarget(text)
		return err
	})
	flags.BoolVar(&o.hostIsMine, "host-is-mine", false, "send to a host that is not this machine: it is yours to load, and to write to")
	flags.Func("speed", "how many times as fast as they came, or `max`: as fast as the connections allow (default 1)", func(text string) (err error) {
		if text == "max" {
			o.speed = 0
			return nil
		}
		o.speed, err = strconv.ParseFloat(text, 64)
		if err != nil || !(o.speed > 0) || math.IsInf(o.speed, 0) {
			return errors.New("want a number above 0, or max")
		}
		return nil
	})
	flags.IntVar(&o.connections, "connections", 16, "connections, and so requests under way at once")
	flags.DurationVar(&o.timeout, "timeout", 10*time.Second, "for a request, from connecting to the end of the answer")
	flags.DurationVar(&o.period, "for", 0, "how long to send; 0: to the end")
	flags.IntVar(&o.limit, "limit", 0, "how many requests to send; 0: all")
	flags.IntVar(&o.window, "window", 1000, "events of a file among which the order may be mixed up")
	flags.StringVar(&o.truncated, "truncated", skip, "requests whose body is not whole: skip them, send what there is, or pad it to its size with spaces")
	flags.BoolVar(&o.keepHost, "keep-host", false, "send the Host that the client sent, not that of -to")
	flags.Func("header", "`Name: value` to send where a value of this header was redacted or hashed; can be repeated", func(text string) error {
		name, value, found := strings.Cut(text, ":")
		if name = strings.ToLower(name); !found || !isToken(name) {
			return errors.New("want a name, a colon and a value")
		}
		o.header[name] = append(o.header[name], strings.TrimSpace(value))
		return nil
	})
	flags.BoolVar(&o.dryRun, "dry-run", false, "print what would be sent")
	if err := flags.Parse(args); err != nil {
		return o, nil, err
	}
	switch {
	case o.to == nil && !o.dryRun:
		err = errors.New("-to: nothing was given; want an address, as http://127.0.0.1:8080")
	case o.to != nil && !o.dryRun && !o.hostIsMine && !isLoopback(o.to.Hostname()):
		err = fmt.Errorf("-to: %s is not this machine; add -host-is-mine if you may load it, and if what it does for these requests may be done again", o.to.Hostname())
	case o.connections < 1 || o.connections > 10000:
		err = fmt.Errorf("-connections: %d; want 1 to 10000", o.connections)
	case o.window < 1 || o.window > 1000000:
		err = fmt.Errorf("-window: %d; want 1 to 1000000", o.window)
	case o.timeout <= 0 || o.period < 0 || o.limit < 0:
		err = errors.New("-timeout, -for, -limit: want no negative ones, and some -timeout")
	case o.truncated != skip && o.truncated != send && o.truncated != pad:
		err = fmt.Errorf("-truncated: %q; want skip, send or pad", o.truncated)
	}
	return o, flags.Args(), err
}

// parseTarget takes no path: the requests have theirs.
func parseTarget(text string) (*url.URL, error) {
	to, err := url.Parse(text)
	if err != nil || to.Scheme != "http" && to.Scheme != "https" || to.Hostname() == "" {
		return nil, errors.New("want an http or https URL")
	}
	if strings.Trim(to.Path, "/") != "" || to.RawQuery != "" || to.User != nil {
		return nil, errors.New("want a scheme and a host only")
	}
	return &url.URL{Scheme: to.Scheme, Host: to.Host}, nil
}

// isLoopback says whether a host is this machine by its name. What the name leads to
// is looked at again when a connection is made.
func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return err == nil && address.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

// refuseOthers is for net.Dialer: no connection to an address that is not this machine.
func refuseOthers(_, address string, _ syscall.RawConn) error {
	if host, _, err := net.SplitHostPort(address); err != nil || !isLoopback(host) {
		return fmt.Errorf("%s is not this machine", address)
	}
	return nil
}

var token = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")

func isToken(name string) bool { return token.MatchString(name) }
