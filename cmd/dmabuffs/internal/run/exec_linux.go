package run

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Statuses of a command that does not start, as the shell has them.
const (
	statusNotExecutable = 126
	statusNotFound      = 127
)

// execStage becomes CMD: args are the socket, CMD and its arguments. It installs the filter, passes the listener on, and executes when it is told to.
func execStage(args []string) int {
	runtime.LockOSThread() // what a filter is on
	sock, err := strconv.Atoi(args[0])
	if err != nil {
		return fail(err)
	}
	unix.CloseOnExec(sock)
	argv := args[1:]
	path, err := lookPath(argv[0])
	if err != nil {
		return failExec(argv[0], err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		_ = send(sock, failure(os.NewSyscallError("prctl(PR_SET_NO_NEW_PRIVS)", err)))
		return 1
	}
	listener, err := listen()
	if err != nil {
		_ = send(sock, failure(err))
		return 1
	}
	if err := send(sock, message{}, listener); err != nil {
		return fail(err)
	}
	unix.Close(listener)
	var m message
	if _, err := receive(sock, &m); err != nil || m.Error != "" {
		return 1 // the supervisor has said why
	}
	// CMD may outlive the supervisor: its emulated calls then get ENOSYS.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return fail(os.NewSyscallError("prctl(PR_SET_PDEATHSIG)", err))
	}
	err = syscall.Exec(path, argv, os.Environ())
	if errors.Is(err, syscall.ENOEXEC) { // a script without #!, as execvp(3) has it
		err = syscall.Exec("/bin/sh", append([]string{"/bin/sh", path}, argv[1:]...), os.Environ())
	}
	return failExec(argv[0], err)
}

// listen installs the filter on this thread.
func listen() (int, error) {
	prog := filter()
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	// A call that we have begun to answer is not interrupted any more (Linux 5.19): else a signal
	// would have it made twice.
	fd, e := installFilter(prog, flags|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if e == unix.EINVAL {
		fd, e = installFilter(prog, flags)
	}
	if e == 0 {
		return fd, nil
	}
	return -1, explainSeccomp(e)
}

// explainSeccomp says which refusal it is.
func explainSeccomp(e syscall.Errno) error {
	switch e {
	case unix.EINVAL, unix.EOPNOTSUPP:
		return &mountError{fmt.Errorf("no user notification in this kernel: seccomp: %w", e), "use Linux 5.14 or newer, with CONFIG_SECCOMP_FILTER"}
	case unix.EBUSY:
		return &mountError{fmt.Errorf("seccomp refused: somebody supervises this process already: %w", e), "only one supervisor can: start `dmabuffs run` outside the other one"}
	case unix.EPERM, unix.ENOSYS, unix.EACCES:
		return &mountError{fmt.Errorf("seccomp refused: %w", e), "a filter forbids it, as in a container: allow seccomp(2), such as by --security-opt seccomp=unconfined"}
	}
	return &mountError{fmt.Errorf("seccomp: %w", e), "dmabuffs doctor says what is missing"}
}

// lookPath finds a command as execvp(3) does. ENOENT, EACCES.
func lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil // execve(2) says what is wrong
	}
	if name == "" {
		return "", syscall.ENOENT
	}
	path, ok := os.LookupEnv("PATH")
	if !ok {
		path = "/bin:/usr/bin"
	}
	err := error(syscall.ENOENT)
	for _, dir := range filepath.SplitList(path) {
		p := filepath.Join(dir, name)
		if dir == "" || dir == "." {
			p = "./" + name
		}
		fi, e := os.Stat(p)
		switch {
		case errors.Is(e, syscall.EACCES):
			err = syscall.EACCES
		case e != nil:
		case fi.IsDir() || unix.Access(p, unix.X_OK) != nil:
			err = syscall.EACCES
		default:
			return p, nil
		}
	}
	return "", err
}

// failExec says why CMD was not executed, and gives its status.
func failExec(name string, err error) int {
	status := statusNotExecutable
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ENOTDIR) {
		status = statusNotFound
	}
	fmt.Fprintf(os.Stderr, "dmabuffs: run: %s: %v\n", name, err)
	return status
}

func fail(err error) int {
	fmt.Fprintf(os.Stderr, "dmabuffs: run: %v\n", err)
	return 1
}
