//go:build !linux

package lab

import (
	"errors"
	"os/exec"
	"time"
)

func dieWithParent(*exec.Cmd) {}

// Usage is known on Linux only.
func (t *Traefik) Usage() (cpu time.Duration, rss int64, err error) {
	return 0, 0, errors.New("usage of the process: not known on this system")
}
