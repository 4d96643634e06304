package lab

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the process end with ours, also when ours is killed.
func dieWithParent(cmd *exec.Cmd) {
	// In a group of its own, so that Ctrl-C is for us, who end them in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
