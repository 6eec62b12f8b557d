package run

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// superviseStage is the supervisor: args are the socket to run, the mount's root,
// "verbose" or "", CMD and its arguments.
func superviseStage(args []string) int {
	runtime.LockOSThread() // CMD's stage dies with the thread that starts it
	c := &command{}
	go c.group.collect(catch())
	sock, err1 := strconv.Atoi(args[0])
	root, err2 := strconv.Atoi(args[1])
	if err := errors.Join(err1, err2); err != nil {
		return fail(err)
	}
	c.sock = sock
	unix.CloseOnExec(sock)
	unix.CloseOnExec(root)
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0))) // who returns from a system call finds a free one
	}
	var m message
	if _, err := receive(sock, &m); err != nil {
		return 1 // run is gone
	}
	err := c.run(root, args[2] != "", args[3:])
	if err != nil {
		_ = send(sock, failure(err))
		return 1
	}
	return 0
}

// command is CMD's first process.
type command struct {
	sock  int
	group groupSignals
	mu    sync.Mutex
	pid   int // 0: not started, or reaped
}

// run serves until the last process of CMD has ended.
func (c *command) run(root int, verbose bool, argv []string) error {
	s, err := newSupervisor(root, verbose)
	if err != nil {
		return err
	}
	// Orphans of CMD come to us: with yama, we may look only into our descendants.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", err)
	}
	inherited := inheritedFDs()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	if err := c.start(pair[1], argv); err != nil {
		return err
	}
	for _, fd := range inherited {
		unix.Close(fd)
	}
	if err := quietStdio(); err != nil {
		return err
	}
	go c.forward()

	var m message
	fds, err := receive(pair[0], &m)
	switch {
	case err != nil: // it has ended, and said why: not found, not executable
		c.reap()
		return nil
	case m.err() != nil:
		return m.err()
	case len(fds) != 1:
		return unix.EBADMSG
	}
	if s.listener = fds[0]; s.listener < 0 {
		return unix.EBADMSG
	}
	if err := s.probe(); err != nil {
		_ = send(pair[0], failure(err))
		return err
	}
	s.start()
	if err := send(pair[0], message{}); err != nil {
		return err
	}
	unix.Close(pair[0])
	go c.reap()
	s.wait()
	c.reap() // what has ended last
	return nil
}

// start starts the stage that becomes CMD. It dies with us until then.
func (c *command) start(sock int, argv []string) error {
	defer unix.Close(sock)
	if err := closeOnExec([]int{sock}, false); err != nil {
		return err
	}
	c.group.forget()
	pid, err := syscall.ForkExec(self(), append([]string{stageExec, strconv.Itoa(sock)}, argv...), &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: []uintptr{0, 1, 2},
		Sys:   &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return fmt.Errorf("starting CMD: %w", err)
	}
	c.mu.Lock()
	c.pid = pid
	c.mu.Unlock()
	return nil
}

// forward passes signals on that were sent to run.
func (c *command) forward() {
	for {
		var m message
		if _, err := receive(c.sock, &m); err != nil {
			return
		}
		if m.Signal != 0 {
			c.kill(syscall.Signal(m.Signal))
		}
	}
}

// kill sends a signal, unless the process group has got it, and CMD with it.
func (c *command) kill(n syscall.Signal) {
	everybody := c.group.take(n)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == 0 {
		return
	}
	if everybody {
		if theirs, err := unix.Getpgid(c.pid); err == nil && theirs == unix.Getpgrp() {
			return
		}
	}
	_ = syscall.Kill(c.pid, n)
}

var reaping sync.Mutex

// reap waits for children and orphans until none is left, and tells run how CMD ended.
func (c *command) reap() {
	reaping.Lock()
	defer reaping.Unlock()
	for {
		var info unix.Siginfo
		// Look first: while it is a zombie its number is nobody else's.
		if err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil); err == unix.EINTR {
			continue
		} else if err != nil {
			return // ECHILD
		}
		c.mu.Lock()
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		first := err == nil && pid > 0 && pid == c.pid
		if first {
			c.pid = 0
		}
		c.mu.Unlock()
		if first {
			_ = send(c.sock, message{Exited: true, Status: shellStatus(ws)})
		}
	}
}

// shellStatus is the exit status, or 128+n for a signal.
func shellStatus(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// newSupervisor looks at the mount.
func newSupervisor(root int, verbose bool) (*supervisor, error) {
	s := &supervisor{root: root}
	if verbose {
		s.trace = &tracer{w: os.Stderr}
	}
	var err error
	if s.proc, err = unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, &mountError{&os.PathError{Op: "open", Path: "/proc", Err: err}, "mount proc on /proc"}
	}
	if s.ctl, err = openControl(root); err != nil {
		return nil, fmt.Errorf("the mount: %w", err)
	}
	if s.world, err = newWorld(s.ctl); err != nil {
		return nil, fmt.Errorf("the mount: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(s.ctl.dir, &st); err != nil {
		return nil, fmt.Errorf("the mount: %w", err)
	}
	s.dev = st.Dev
	return s, nil
}

// probe asks whether a descriptor can go with the answer: the kernel checks the flags before it
// looks for the notification, which is not there.
func (s *supervisor) probe() error {
	a := notifAddFD{ID: 0, Flags: unix.SECCOMP_ADDFD_FLAG_SEND, SrcFD: uint32(s.proc)}
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(null)
		a.SrcFD = uint32(null)
	}
	if _, e := ioctlAddFD(s.listener, &a); e == unix.EINVAL || e == unix.ENOTTY {
		return &mountError{fmt.Errorf("no user notification that can answer with a descriptor in this kernel: %w", e), "use Linux 5.14 or newer"}
	}
	// One processor can be enough: the caller waits, we answer (Linux 6.6).
	_ = ioctlSetFlags(s.listener, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
	return nil
}

// inheritedFDs are descriptors of the caller's that CMD shall have; we have no use for them,
// and their other ends may wait for the last one to be closed.
func inheritedFDs() (out []int) {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil
	}
	for _, e := range dir {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || fd < 3 {
			continue
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			out = append(out, fd)
		}
	}
	return out
}

// closeOnExec has descriptors closed on exec, or not.
func closeOnExec(fds []int, yes bool) error {
	flags := 0
	if yes {
		flags = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags); err != nil {
			return os.NewSyscallError("fcntl", err)
		}
	}
	return nil
}

// quietStdio gives stdin and stdout away for the same reason. Messages go to stderr.
func quietStdio() error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	defer unix.Close(null)
	for fd := range 2 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}
