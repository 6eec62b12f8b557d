package run

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// The private mount is attached nowhere: fsmount(2) gives a descriptor of its root, and
// with the last descriptor it is gone, whoever was killed in what order.
//
// That takes CAP_SYS_ADMIN. Whoever lacks it has a process make the mount in a user and
// mount namespace of its own (stageMount), where his ids stay what they are, and pass
// the two descriptors on; FUSE wants /dev/fuse opened there, too. Where user namespaces are
// not allowed, fusermount3 mounts on a temporary directory, and takes it away again at once.

// mountError is why there is no private mount, with what to do.
type mountError struct {
	err  error
	hint string
}

func (e *mountError) Error() string { return e.err.Error() }
func (e *mountError) Unwrap() error { return e.err }

// mounted is a mount: its root, O_PATH, and who serves it.
type mounted struct {
	root int
	srv  *fs.Server // nil: somebody else
}

// close ends the mount, if it is ours: with its root it is gone, and serving ends. CMD's processes, if
// there are any left, have dead descriptors from now on.
func (m *mounted) close() {
	if m.srv != nil {
		m.srv.Abort()
	}
	if m.root >= 0 {
		unix.Close(m.root)
	}
	if m.srv == nil {
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = m.srv.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(closePatience): // exiting ends it
	}
}

// closePatience bounds the wait for a mount that is aborted.
const closePatience = time.Second

// openMount opens the root of a mount that there is.
func openMount(dir string) (*mounted, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	// Asking for .control asks the daemon: only a dmabuffs that is ours has it.
	if err := unix.Faccessat(root, ".control", unix.F_OK, 0); err != nil {
		unix.Close(root)
		switch {
		case errors.Is(err, unix.ENOTCONN), errors.Is(err, unix.ECONNABORTED):
			return nil, &mountError{&os.PathError{Op: "open", Path: dir, Err: err}, "the daemon of this mount is gone: dmabuffs umount " + dir + ", then mount it again"}
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES):
			return nil, &mountError{fmt.Errorf("%s: not a dmabuffs that user %d has mounted", dir, os.Getuid()),
				"mount one: dmabuffs mount --daemon " + dir + "; or leave --mount out"}
		}
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &mounted{root: root}, nil
}

// privateMount mounts a dmabuffs that nobody else sees. It is not served yet.
func privateMount(others bool) (root, fuse int, err error) {
	root, fuse, err = detachedMount(others)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return root, fuse, explainMount(err)
	}
	root, fuse, err = namespaceMount()
	if err == nil {
		return root, fuse, nil
	}
	return -1, -1, explainMount(err)
}

// detachedMount is open(2) of /dev/fuse, fsopen(2), fsmount(2).
func detachedMount(others bool) (root, fuse int, err error) {
	fuse, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, &os.PathError{Op: "open", Path: "/dev/fuse", Err: err}
	}
	defer func() {
		if err != nil {
			unix.Close(fuse)
			fuse = -1
		}
	}()
	ctx, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fuse, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(ctx)
	for _, p := range [][2]string{
		{"source", "dmabuffs"}, {"subtype", "dmabuffs"}, {"fd", strconv.Itoa(fuse)},
		{"rootmode", strconv.FormatUint(unix.S_IFDIR, 8)},
		{"user_id", strconv.Itoa(os.Geteuid())}, {"group_id", strconv.Itoa(os.Getegid())},
	} {
		if err := unix.FsconfigSetString(ctx, p[0], p[1]); err != nil {
			return -1, fuse, fmt.Errorf("fsconfig %s=%s: %w", p[0], p[1], err)
		}
	}
	flags := []string{"default_permissions"}
	if others {
		flags = append(flags, "allow_other")
	}
	for _, f := range flags {
		if err := unix.FsconfigSetFlag(ctx, f); err != nil {
			return -1, fuse, fmt.Errorf("fsconfig %s: %w", f, err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fuse, os.NewSyscallError("fsconfig", err)
	}
	root, err = unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return -1, fuse, os.NewSyscallError("fsmount", err)
	}
	return root, fuse, nil
}

// namespaceMount has detachedMount done in a namespace.
func namespaceMount() (root, fuse int, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	uid, gid := os.Geteuid(), os.Getegid()
	cmd := stageCommand(stageMount)
	remote := os.NewFile(uintptr(pair[1]), "socket")
	cmd.ExtraFiles = []*os.File{remote}
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: uid, HostID: uid, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: gid, HostID: gid, Size: 1}},
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN},
		Pdeathsig:   syscall.SIGKILL,
	}
	err = cmd.Start()
	remote.Close()
	if err != nil {
		return -1, -1, &namespaceError{err}
	}
	defer cmd.Wait()
	var m message
	fds, err := receive(pair[0], &m)
	switch {
	case err != nil:
		return -1, -1, &namespaceError{err}
	case m.Error != "":
		return -1, -1, &remoteError{m.Error, syscall.Errno(m.Errno)}
	case len(fds) != 2:
		return -1, -1, &namespaceError{unix.EBADMSG}
	}
	return fds[0], fds[1], nil
}

// namespaceError: there is no user namespace to be had.
type namespaceError struct{ err error }

func (e *namespaceError) Error() string { return "user namespace: " + e.err.Error() }
func (e *namespaceError) Unwrap() error { return e.err }

// remoteError is another stage's error.
type remoteError struct {
	text  string
	errno syscall.Errno
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.errno }

// mountStage is the process in the namespace: descriptor 3 is the socket.
func mountStage([]string) int {
	root, fuse, err := detachedMount(false)
	if err != nil {
		_ = send(3, failure(err))
		return 1
	}
	if err := send(3, message{}, root, fuse); err != nil {
		return 1
	}
	return 0
}

// fusermount mounts by fusermount3, which needs a directory, and takes it out of sight.
func fusermount(o fs.Options) (*mounted, error) {
	dir, err := os.MkdirTemp("", "dmabuffs-run-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	srv, err := fs.Mount(dir, o)
	if err != nil {
		return nil, err
	}
	m := &mounted{root: -1, srv: srv}
	m.root, err = unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if e := srv.Detach(); err == nil {
		err = e
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// mountPrivate mounts and serves.
func mountPrivate(o fs.Options, log *slog.Logger) (*mounted, error) {
	o.AllowOther = os.Geteuid() == 0 // CMD may become another user; for an ordinary one nobody else counts
	root, fuse, err := privateMount(o.AllowOther)
	if err != nil {
		var ns *namespaceError
		if !errors.As(err, &ns) {
			return nil, err
		}
		o.AllowOther = false
		m, ferr := fusermount(o)
		if ferr != nil {
			return nil, &mountError{fmt.Errorf("mount refused: %w; and by fusermount3: %w", err, ferr),
				"allow user namespaces (sysctl user.max_user_namespaces, kernel.apparmor_restrict_unprivileged_userns), or install fuse3, or have root mount one and use --mount"}
		}
		return m, nil
	}
	o.FuseFD = fuse
	m := &mounted{root: root}
	if m.srv, err = fs.Mount(fmt.Sprintf("/proc/self/fd/%d", root), o); err != nil {
		m.close()
		return nil, &mountError{fmt.Errorf("mount: %w", err), "is /proc mounted?"}
	}
	tuneWriteback(root, log)
	return m, nil
}

// tuneWriteback lifts the throttle of stores into mappings, which only root may.
func tuneWriteback(root int, log *slog.Logger) {
	var st unix.Statx_t
	if err := unix.Statx(root, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return
	}
	for _, k := range []struct{ file, value string }{{"strict_limit", "0"}, {"max_ratio", "100"}} {
		file := fmt.Sprintf("/sys/class/bdi/%d:%d/%s", st.Dev_major, st.Dev_minor, k.file)
		if err := os.WriteFile(file, []byte(k.value), 0); err != nil {
			log.Debug("write-back not tuned", "err", err)
		}
	}
}

// explainMount says what to do about an error of the private mount.
func explainMount(err error) error {
	var ns *namespaceError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &ns):
		return err // there is another way
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO):
		return &mountError{fmt.Errorf("no /dev/fuse: %w", err), "load the module as root: modprobe fuse; in a container pass the device: --device /dev/fuse"}
	case errors.Is(err, unix.EACCES):
		return &mountError{fmt.Errorf("no /dev/fuse: %w", err), "as root: chmod 0666 /dev/fuse; in a container pass the device: --device /dev/fuse"}
	case errors.Is(err, unix.ENODEV):
		return &mountError{fmt.Errorf("no FUSE in this kernel: %w", err), "load the module as root: modprobe fuse"}
	case errors.Is(err, unix.EPERM):
		return &mountError{fmt.Errorf("mount refused: %w", err), "a container's seccomp profile or a device control group forbids it; have root mount a dmabuffs and use --mount"}
	}
	return &mountError{fmt.Errorf("mount refused: %w", err), "dmabuffs doctor says what is missing"}
}

// stageCommand is this program in another role.
func stageCommand(stage string, args ...string) *exec.Cmd {
	cmd := exec.Command(self(), args...)
	cmd.Args[0] = stage
	cmd.Stderr = os.Stderr
	return cmd
}

// self is this program, under its name where it still is.
func self() string {
	if p, err := os.Executable(); err == nil {
		if st1, err := os.Stat(p); err == nil {
			if st2, err := os.Stat("/proc/self/exe"); err == nil && os.SameFile(st1, st2) {
				return p
			}
		}
	}
	return "/proc/self/exe"
}
