package fs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Mounting and unmounting: mount(2) where that is allowed, which is to root and
// inside a user namespace whose root we are, fusermount3 elsewhere.

// fsType is what /proc/self/mountinfo says of our mounts.
const fsType = "fuse.dmabuffs"

// fuseDevice is the kernel's end of every connection.
const fuseDevice = "/dev/fuse"

// openMount mounts a dmabuffs on dir, or takes o.FuseFD over, and returns the
// connection: a blocking descriptor of /dev/fuse that exec closes. A mount point
// that a killed daemon left dead is cleared first. Errors: EINVAL for bad options, EBUSY
// where a dmabuffs is mounted already, and what stat(2), open(2) and mount(2) say;
// the text has what to do.
func openMount(dir string, o *Options) (fd int, err error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := o.validate(); err != nil {
		return -1, err
	}
	if o.FuseFD > 0 {
		return takeFuseFD(o.FuseFD)
	}
	if err := clearDead(dir, log); err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return -1, &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return -1, &os.PathError{Op: "mount", Path: dir, Err: unix.ENOTDIR}
	}
	fd, by, err := mountSomehow(dir, o)
	if err == nil {
		log.Debug("mounted", "dir", dir, "by", by)
	}
	return fd, err
}

// mountSomehow mounts by mount(2) or, where that is not allowed, by fusermount3.
func mountSomehow(dir string, o *Options) (fd int, by string, err error) {
	fd, err = mountDirect(dir, o)
	if err == nil || !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return fd, "mount(2)", err
	}
	fd, ferr := mountFusermount(dir, o)
	if ferr != nil && errors.Is(err, unix.EACCES) {
		return -1, "", err // /dev/fuse is closed to us, and so to fusermount3
	}
	return fd, "fusermount3", ferr
}

// takeFuseFD checks that fd is an open /dev/fuse. Errors: EBADF, EINVAL.
func takeFuseFD(fd int) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, fmt.Errorf("fuse-fd %d: %w", fd, err)
	}
	// Documentation/admin-guide/devices.txt: char 10, misc; 229 is /dev/fuse.
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(10, 229) {
		return -1, fmt.Errorf("fuse-fd %d: not an open %s: %w", fd, fuseDevice, unix.EINVAL)
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return -1, fmt.Errorf("fuse-fd %d: %w", fd, err)
	}
	unix.CloseOnExec(fd)
	return fd, nil
}

// mountDirect is open(2) of /dev/fuse and mount(2). The kernel reads the options
// of fs/fuse/inode.c, fuse_fs_parameters.
func mountDirect(dir string, o *Options) (int, error) {
	fd, err := unix.Open(fuseDevice, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, deviceError(err)
	}
	data := []string{
		fmt.Sprintf("fd=%d", fd),
		fmt.Sprintf("rootmode=%o", unix.S_IFDIR),
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
	}
	data = append(data, o.kernelOptions()...)
	source := o.FSName
	if source == "" {
		source = "dmabuffs"
	}
	err = unix.Mount(source, dir, fsType, o.mountFlags(), strings.Join(data, ","))
	if err == nil {
		return fd, nil
	}
	unix.Close(fd)
	if errors.Is(err, unix.ENODEV) {
		return -1, fmt.Errorf("mount %s: the kernel has no FUSE (modprobe fuse): %w", dir, err)
	}
	return -1, &os.PathError{Op: "mount", Path: dir, Err: err}
}

// deviceError says what to do when /dev/fuse does not open.
func deviceError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("open %s: %w (load the module as root: modprobe fuse; in a container pass the device: --device /dev/fuse)", fuseDevice, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		mode := "its mode"
		if fi, e := os.Stat(fuseDevice); e == nil {
			mode = fmt.Sprintf("mode %#o", fi.Mode().Perm())
		}
		// EACCES also where a device control group says EPERM: nothing that fusermount3 could change.
		return fmt.Errorf("open %s: %w (%s shuts you out; as root: chmod 0666 %s)", fuseDevice, unix.EACCES, mode, fuseDevice)
	}
	return fmt.Errorf("open %s: %w", fuseDevice, err)
}

// kernelOptions are the options that FUSE itself takes. max_read stays away: no limit.
func (o *Options) kernelOptions() []string {
	var out []string
	if !o.NoDefaultPermissions {
		out = append(out, "default_permissions")
	}
	if o.AllowOther {
		out = append(out, "allow_other")
	}
	return out
}

// mountFlag is one of mount(2)'s flags, as fusermount3 spells it.
type mountFlag struct {
	bit  uintptr
	name string
	on   bool
}

func (o *Options) genericFlags() []mountFlag {
	return []mountFlag{
		{unix.MS_RDONLY, "ro", o.ReadOnly},
		{unix.MS_NOSUID, "nosuid", !o.Suid},
		{unix.MS_NODEV, "nodev", !o.Dev},
		{unix.MS_NOEXEC, "noexec", o.NoExec},
		{unix.MS_NOATIME, "noatime", o.NoAtime},
		{unix.MS_NODIRATIME, "nodiratime", o.NoDirAtime},
		{unix.MS_STRICTATIME, "", o.StrictAtime}, // fusermount3 does not know it
		{unix.MS_SYNCHRONOUS, "sync", o.Sync},
		{unix.MS_DIRSYNC, "dirsync", o.DirSync},
	}
}

func (o *Options) mountFlags() (flags uintptr) {
	for _, f := range o.genericFlags() {
		if f.on {
			flags |= f.bit
		}
	}
	return flags
}

// fusermountOptions is the -o of fusermount3.
func (o *Options) fusermountOptions() string {
	name := o.FSName
	if name == "" {
		name = "dmabuffs"
	}
	out := []string{"fsname=" + escapeOption(name), "subtype=dmabuffs"}
	out = append(out, o.kernelOptions()...)
	for _, f := range o.genericFlags() {
		if f.on && f.name != "" {
			out = append(out, f.name)
		}
	}
	return strings.Join(out, ",")
}

// Fusermount finds fusermount3; PATH may lack the directories of system tools. Errors: EPERM,
// as whoever needs it may not mount.
func Fusermount() (string, error) {
	for _, name := range []string{"fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3", "/usr/local/bin/fusermount3"} {
		if p, err := exec.LookPath(name); err == nil {
			return p, nil
		}
	}
	return "", fmt.Errorf("fusermount3 not found (an ordinary user needs it outside a user namespace: install the package fuse3, or try unshare -Urm): %w", unix.EPERM)
}

// runFusermount runs fusermount3 and turns what it says into an error.
func runFusermount(files []*os.File, args ...string) error {
	bin, err := Fusermount()
	if err != nil {
		return err
	}
	cmd := exec.Command(bin, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "_FUSE_COMMFD=3")
	cmd.ExtraFiles = files
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		text := strings.ReplaceAll(strings.TrimSpace(stderr.String()), "\n", "; ")
		switch {
		case text == "":
			return fmt.Errorf("%s: %w", bin, err)
		case strings.Contains(text, "resource busy"):
			return fmt.Errorf("%s: %w", text, unix.EBUSY)
		}
		return &fusermountError{text}
	}
	return nil
}

// fusermountError is fusermount3's refusal in its own words; an EPERM.
type fusermountError struct{ text string }

func (e *fusermountError) Error() string { return e.text }
func (e *fusermountError) Unwrap() error { return unix.EPERM }

// mountFusermount has fusermount3 mount, and receives the connection over the socket
// that _FUSE_COMMFD names (libfuse, util/fusermount.c).
func mountFusermount(dir string, o *Options) (int, error) {
	for option, on := range map[string]bool{"suid": o.Suid, "dev": o.Dev, "strictatime": o.StrictAtime} {
		if on {
			return -1, &OptionError{Option: option, Reason: "only root may, fusermount3 does not"}
		}
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	remote := os.NewFile(uintptr(pair[1]), "fusermount3")
	err = runFusermount([]*os.File{remote}, "-o", o.fusermountOptions(), "--", dir)
	remote.Close()
	if err != nil {
		return -1, err
	}
	fd, err := receiveFD(pair[0])
	if err != nil {
		return -1, fmt.Errorf("fusermount3 mounted %s and gave no descriptor: %w", dir, err)
	}
	return takeFuseFD(fd)
}

// receiveFD takes one descriptor out of a socket.
func receiveFD(sock int) (int, error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(sock, b[:], oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	for _, m := range msgs {
		if fds, err := unix.ParseUnixRights(&m); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, unix.EBADMSG
}

// Unmount unmounts the dmabuffs at dir, by umount2(2) or fusermount3 -u; a dead
// mount (its daemon was killed) goes in any case. Lazy takes the mount point away at once and
// leaves the file system to those who use it. Errors: EINVAL where no dmabuffs is mounted,
// *BusyError (an EBUSY) with who holds it, EPERM.
func Unmount(dir string, lazy bool) error {
	if lazy {
		return detachPath(dir)
	}
	return unmountPath(dir)
}

// unmountTries and unmountPause: a client that is just exiting still counts.
const (
	unmountTries = 10
	unmountPause = 20 * time.Millisecond
)

func unmountPath(dir string) error {
	m, err := ourMountAt(dir)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		err = umount(m.Dir, false)
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		if m.Dead() {
			return umount(m.Dir, true) // nothing can be lost
		}
		if try == unmountTries {
			return &BusyError{Dir: m.Dir, Holders: m.Holders()}
		}
		time.Sleep(unmountPause)
	}
}

func detachPath(dir string) error {
	m, err := ourMountAt(dir)
	if err != nil {
		return err
	}
	return umount(m.Dir, true)
}

// umount is one attempt.
func umount(dir string, lazy bool) error {
	flags, args := unix.UMOUNT_NOFOLLOW, []string{"-u", "--", dir}
	if lazy {
		flags |= unix.MNT_DETACH
		args = slices.Insert(args, 1, "-z")
	}
	err := unix.Unmount(dir, flags)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EPERM):
		return runFusermount(nil, args...)
	}
	return &os.PathError{Op: "umount", Path: dir, Err: err}
}

// abortConnection ends the connection behind the mount at dir: every request fails with
// ECONNABORTED, every later one with ENOTCONN. It does what it can: root may,
// where a mount can still be named.
func abortConnection(dir string) {
	m, err := ourMountAt(dir)
	if err != nil || abortNumber(kernelDev(m.Major, m.Minor)) {
		return
	}
	_ = unix.Unmount(m.Dir, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW) // EBUSY, and aborted
}

// abortFD does so for the connection that is open as fd, whose mount may be detached.
func abortFD(fd int) {
	if n, ok := connectionNumber(fd); ok {
		abortNumber(n)
	}
}

// abortNumber asks fusectl, where it is mounted (Documentation/filesystems/fuse.rst).
func abortNumber(n uint64) bool {
	return os.WriteFile(fmt.Sprintf("/sys/fs/fuse/connections/%d/abort", n), []byte("1"), 0) == nil
}

// connectionNumber is the st_dev of the file system behind an open /dev/fuse: fdinfo says
// it, but not in older kernels (fs/fuse/dev.c, fuse_dev_show_fdinfo).
func connectionNumber(fd int) (uint64, bool) {
	v, err := fdinfo("self", fmt.Sprint(fd), "fuse_connection:")
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(v, 10, 64)
	return n, err == nil
}

// kernelDev is a device number as the kernel has it (MKDEV), which is what fusectl and fdinfo show.
func kernelDev(major, minor uint32) uint64 { return uint64(major)<<20 | uint64(minor) }

// passedInDir is where a connection that somebody else mounted can be reached: dir, if
// that is it (/proc/self/fd/N does, for a mount that is attached nowhere), or as the
// kernel says; where it does not, dir, if a dmabuffs is mounted there. "" when this process
// does not see the mount.
func passedInDir(fd int, dir string) string {
	n, known := connectionNumber(fd)
	if abs, err := filepath.Abs(dir); err == nil && dir != "" && known && isMountOf(abs, n) {
		return abs
	}
	mounts, err := Mounts()
	if err != nil {
		return ""
	}
	if !known {
		if dir != "" && IsMounted(dir) {
			return dir
		}
		return ""
	}
	for _, m := range mounts {
		if kernelDev(m.Major, m.Minor) == n && IsMounted(m.Dir) {
			return m.Dir
		}
	}
	return ""
}

// isMountOf reports whether dir is the root of a mount of the file system with that number. It
// asks nobody: the file system may not be served yet.
func isMountOf(dir string, number uint64) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 && kernelDev(st.Dev_major, st.Dev_minor) == number
}

// resolve opens dir without asking the file system that is mounted there (it may be
// dead), and returns its canonical path and the id of the mount that it is on.
func resolve(dir string) (path string, mountID int, err error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	if path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
		return "", 0, fmt.Errorf("is /proc mounted? %w", err)
	}
	mountID, err = fdMountID("self", fmt.Sprint(fd))
	return path, mountID, err
}

// mountAt is the mount whose root dir is, of whatever type; nil when dir is none.
func mountAt(dir string) (*MountInfo, error) {
	if dir == "" {
		return nil, fmt.Errorf("no directory: %w", unix.ENOENT)
	}
	if !filepath.IsAbs(dir) {
		var err error
		if dir, err = filepath.Abs(dir); err != nil {
			return nil, err
		}
	}
	path, id, err := resolve(dir)
	if err != nil {
		return nil, err
	}
	all, err := readMountinfo()
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].ID == id && all[i].Dir == path {
			return &all[i], nil
		}
	}
	return nil, nil
}

// ourMountAt is mountAt for a dmabuffs. Errors: EINVAL where none is.
func ourMountAt(dir string) (*MountInfo, error) {
	m, err := mountAt(dir)
	switch {
	case err != nil:
		return nil, err
	case m == nil:
		return nil, fmt.Errorf("%s: nothing is mounted there: %w", dir, syscall.EINVAL)
	case m.FSType != fsType:
		return nil, fmt.Errorf("%s: not a dmabuffs, but %s: %w", dir, m.FSType, syscall.EINVAL)
	}
	return m, nil
}
