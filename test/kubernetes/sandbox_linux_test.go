package kubernetes

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"unsafe"
)

// rerun runs this test binary in namespaces of its own: as root of a user namespace,
// with an empty network and as the first process, whose end is the end of all. It says
// false if the system does not allow it.
func rerun(string) (code int, ran bool) {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 0, false
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	go func() {
		for s := range signals {
			_ = cmd.Process.Signal(s)
		}
	}()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintln(os.Stderr, "kubernetes:", err)
		return 1, true
	}
	return max(cmd.ProcessState.ExitCode(), -cmd.ProcessState.ExitCode()), true
}

// furnish makes the empty network usable: 127.0.0.0/8 for services, and 198.18.0.0/24
// for pods, as the API server takes no loopback address for an endpoint.
func furnish() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	up := request{flags: [16]byte{syscall.IFF_UP | syscall.IFF_LOOPBACK, 0}}
	if err := up.send(fd, syscall.SIOCSIFFLAGS, "lo"); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	address := request{flags: [16]byte{0: syscall.AF_INET}}
	copy(address.flags[4:], net.IPv4(198, 18, 0, 1).To4())
	if err := address.send(fd, syscall.SIOCSIFADDR, "lo:1"); err != nil {
		return fmt.Errorf("addresses of pods: %w", err)
	}
	return nil
}

// request is struct ifreq.
type request struct {
	name  [16]byte
	flags [16]byte
	_     [8]byte
}

func (r *request) send(fd int, what uintptr, device string) error {
	copy(r.name[:], device)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), what, uintptr(unsafe.Pointer(r))); errno != 0 {
		return errno
	}
	return nil
}

// dieWithParent makes a process end with ours, also when ours is killed.
func dieWithParent(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}
