// Package lab runs the pipeline on this machine: servers of NATS, gateways and workers,
// each a process of its own, on loopback, with files in a directory that goes at the end.
// Any of them can be killed and started again.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const module = "github.com/opencommit/requestmirror/examples/pipeline"

// Lab is a directory for files, and what was started in it.
type Lab struct {
	NATS string // URLs of the servers, with commas between

	dir, bin  string
	processes []*Process
}

// Build builds the programs into a directory. The first time, that takes a minute or two.
func Build(ctx context.Context, bin string) error {
	build := exec.CommandContext(ctx, "go", "build", "-o", bin+string(filepath.Separator),
		module+"/cmd/gateway", module+"/cmd/worker", "github.com/nats-io/nats-server/v2")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	return nil
}

// New takes the programs from where they were built.
func New(bin string) (*Lab, error) {
	dir, err := os.MkdirTemp("", "requestmirror-pipeline-")
	return &Lab{dir: dir, bin: bin}, err
}

// Close ends all processes, the last one first, and removes the directory.
func (l *Lab) Close() {
	for i := len(l.processes) - 1; i >= 0; i-- {
		_ = l.processes[i].Stop()
	}
	_ = os.RemoveAll(l.dir)
}

// Processes are all that were started, in that order.
func (l *Lab) Processes() []*Process { return l.processes }

// Process is one program, over all its lives.
type Process struct {
	name, bin string
	args, env []string

	log    log
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has ended and exit is set
	exit   error
}

func (l *Lab) start(name, bin string, env []string, args ...string) (*Process, error) {
	p := &Process{name: name, bin: filepath.Join(l.bin, bin), args: args, env: env}
	if err := p.Start(); err != nil {
		return nil, err
	}
	l.processes = append(l.processes, p)
	return p, nil
}

// Start starts it, again if it was killed.
func (p *Process) Start() error {
	p.log.Reset()
	p.cmd = exec.Command(p.bin, p.args...)
	p.cmd.Env = append(os.Environ(), p.env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	dieWithParent(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	p.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) {
		p.exit = cmd.Wait()
		close(exited)
	}(p.cmd, p.exited)
	return nil
}

// Stop asks it to end, and kills it if it does not.
func (p *Process) Stop() error {
	_ = p.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
		return p.exit
	case <-time.After(20 * time.Second):
		p.Kill()
		return fmt.Errorf("%s: did not end: %s", p.name, p.Log())
	}
}

// Kill ends it at once, as a machine that fails.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// Name is what it is.
func (p *Process) Name() string { return p.name }

// Ended waits until it has ended, and says whether it has.
func (p *Process) Ended(ctx context.Context) bool {
	select {
	case <-p.exited:
		return true
	case <-ctx.Done():
		return false
	}
}

// Signal sends it a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Log is what it wrote in its present life.
func (p *Process) Log() string { return p.log.String() }

// Wait returns the rest of the line that begins with text, when it is in the log.
func (p *Process) Wait(ctx context.Context, text string) (string, error) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		if _, rest, found := strings.Cut(p.Log(), text); found {
			if line, _, whole := strings.Cut(rest, "\n"); whole {
				return line, nil
			}
		}
		select {
		case <-ticker.C:
		case <-p.exited:
			return "", fmt.Errorf("%s ended: %v: %s", p.name, p.exit, p.Log())
		case <-ctx.Done():
			return "", fmt.Errorf("%s: waiting for %q: %w: %s", p.name, text, ctx.Err(), p.Log())
		}
	}
}

// StartServers starts one server, or three that are a cluster.
func (l *Lab) StartServers(ctx context.Context, n int) ([]*Process, error) {
	// A free port is found by closing it again, so another process can be faster. It would
	// show as a server that ends at once.
	clients, err := free(n)
	if err != nil {
		return nil, err
	}
	peers, err := free(n)
	if err != nil {
		return nil, err
	}
	l.NATS = "nats://" + strings.Join(clients, ",nats://")
	var servers []*Process
	for i := range n {
		config := fmt.Sprintf("listen: %q\nserver_name: server-%d\njetstream { store_dir: %q }\n", clients[i], i, filepath.Join(l.dir, fmt.Sprint("store-", i)))
		if n > 1 {
			config += fmt.Sprintf("cluster { name: lab, listen: %q, routes: [nats://%s] }\n", peers[i], strings.Join(peers, ", nats://"))
		}
		name := fmt.Sprint("server-", i)
		file := filepath.Join(l.dir, name+".conf")
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			return nil, err
		}
		p, err := l.start(name, "nats-server", nil, "-c", file)
		if err != nil {
			return nil, err
		}
		servers = append(servers, p)
	}
	for _, p := range servers {
		if _, err := p.Wait(ctx, "Server is ready"); err != nil {
			return nil, err
		}
	}
	return servers, nil
}

// StartGateway starts a gateway and returns the URL for watchURL.
func (l *Lab) StartGateway(ctx context.Context, secrets string, args ...string) (p *Process, watchURL string, err error) {
	p, err = l.start("gateway", "gateway", []string{"SIGNING_SECRETS=" + secrets}, append([]string{"-nats", l.NATS}, args...)...)
	if err != nil {
		return nil, "", err
	}
	line, err := p.Wait(ctx, "listening on ")
	address, _, _ := strings.Cut(line, ",")
	return p, "http://" + address + "/events", err
}

// StartWorker starts a worker.
func (l *Lab) StartWorker(ctx context.Context, args ...string) (*Process, error) {
	p, err := l.start("worker", "worker", nil, append([]string{"-nats", l.NATS}, args...)...)
	if err != nil {
		return nil, err
	}
	_, err = p.Wait(ctx, "working")
	return p, err
}

// free returns addresses on loopback that nobody listens on.
func free(n int) (addresses []string, err error) {
	for range n {
		listener, e := net.Listen("tcp", "127.0.0.1:0")
		if e != nil {
			return nil, e
		}
		addresses = append(addresses, listener.Addr().String())
		defer func() { err = errors.Join(err, listener.Close()) }() // at the end, so that they differ
	}
	return addresses, nil
}

// log is written by a process and read by others.
type log struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *log) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Reset()
}
