package run

import (
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signals. CMD is in run's process group, so that a terminal's go to both, and stop and continue both. What
// somebody sends to run alone is passed on; what was sent to the group (the
// supervisor has it, too) is not, or CMD would get it twice.
//
// Which is which only siginfo tells, that is signalfd(2), for which a signal has to be blocked in
// every thread. A Go program's threads are what the mask was when it was executed: so run
// blocks them and executes itself once more.

// forwarded are the signals that run passes on. Those that stop and continue do what they do to everybody.
var forwarded = []unix.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTERM,
	unix.SIGWINCH, unix.SIGIO, unix.SIGPWR,
}

func forwardedMask() (m uint64) {
	for _, s := range forwarded {
		m |= signalBit(int(s))
	}
	return m
}

func signalBit(n int) uint64 { return 1 << (n - 1) }

// BlockSignals executes this program again with the signals blocked that run
// passes on, and with the flag --NAME=MASK put behind the argument command: MASK, hexadecimal, is for
// Options.SignalMask. It returns only with an error.
func BlockSignals(command, name string) error {
	i := slices.Index(os.Args, command)
	if i < 1 {
		return os.ErrInvalid
	}
	runtime.LockOSThread()
	old, err := setMask(0)
	if err == nil {
		_, err = setMask(old | forwardedMask())
	}
	if err != nil {
		return os.NewSyscallError("rt_sigprocmask", err)
	}
	args := slices.Insert(slices.Clone(os.Args), i+1, "--"+name+"="+strconv.FormatUint(old, 16))
	return &os.PathError{Op: "exec", Path: self(), Err: syscall.Exec(self(), args, os.Environ())}
}

// signal is one that came.
type signal struct {
	n        int
	terminal bool // made by the kernel: the whole group has it
}

const (
	siKernel         = 0x80
	sizeSignalfdInfo = 128
)

// openSignals delivers the forwarded signals, which are blocked.
func openSignals() (<-chan signal, error) {
	set := unix.Sigset_t{}
	set.Val[0] = forwardedMask()
	fd, err := unix.Signalfd(-1, &set, unix.SFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("signalfd", err)
	}
	out := make(chan signal, 16)
	go func() {
		var p [sizeSignalfdInfo]byte
		for {
			n, err := unix.Read(fd, p[:])
			if err == unix.EINTR {
				continue
			}
			if err != nil || n < len(p) {
				return
			}
			out <- signal{int(native.Uint32(p[:])), int32(native.Uint32(p[8:])) == siKernel}
		}
	}()
	return out, nil
}
