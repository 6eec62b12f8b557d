package fs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/exporter"
	"github.com/dmabuffs/dmabuffs/poll"
)

// What FUSE does not bring along of a caller: its memory, and what its descriptors are.
// The thread that called waits for us, so that neither changes owner meanwhile.

// readCaller reads len(p) bytes at addr of a thread's memory, or as many as are
// readable: with EFAULT, when they are fewer. EPERM: we may not, or cannot tell who called.
func readCaller(tid uint32, addr uint64, p []byte) (int, error) {
	if tid == 0 {
		return 0, syscall.EPERM
	}
	local := []unix.Iovec{{Base: &p[0]}}
	local[0].SetLen(len(p))
	n, err := unix.ProcessVMReadv(int(tid), local, byPage(addr, len(p)), 0)
	return finishVM(n, len(p), err)
}

// writeCaller writes p there. EFAULT: not all of it could be written.
func writeCaller(tid uint32, addr uint64, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if tid == 0 {
		return syscall.EPERM
	}
	local := []unix.Iovec{{Base: &p[0]}}
	local[0].SetLen(len(p))
	n, err := unix.ProcessVMWritev(int(tid), local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(p)}}, 0)
	_, err = finishVM(n, len(p), err)
	return err
}

// byPage splits a short range where its pages meet: one that is unreadable spoils only itself.
func byPage(addr uint64, n int) []unix.RemoteIovec {
	head := int(min(uint64(n), exporter.PageSize-addr%exporter.PageSize))
	v := []unix.RemoteIovec{{Base: uintptr(addr), Len: head}}
	if head < n {
		v = append(v, unix.RemoteIovec{Base: uintptr(addr) + uintptr(head), Len: n - head})
	}
	return v
}

func finishVM(n, want int, err error) (int, error) {
	switch {
	case err == syscall.EPERM || err == syscall.EACCES || err == syscall.ENOSYS:
		return 0, syscall.EPERM
	case err != nil: // EFAULT; ESRCH: it was killed
		return 0, syscall.EFAULT
	case n < want:
		return n, syscall.EFAULT
	}
	return n, nil
}

// syncFileOf is the sync file behind a descriptor of the calling thread; nil: it
// is closed, O_PATH, or no sync file of this mount. cmd is the ioctl that asks.
func (fsys *fileSystem) syncFileOf(r *request, cmd uint32, fd int32) *poll.SyncFile {
	ino := fsys.inodeOf(r, cmd, fd)
	if ino == 0 {
		return nil
	}
	return fsys.syncs.find(ino, r.pid)
}

// inodeOf is the inode of a descriptor of the calling thread, 0 when it is closed,
// O_PATH, or not of this mount. Nothing here asks the file itself: it may be ours.
func (fsys *fileSystem) inodeOf(r *request, cmd uint32, fd int32) uint64 {
	if fd < 0 || r.pid == 0 {
		return 0
	}
	dev, ino, err := statOf(r.pid, fd)
	if err != nil {
		if err != syscall.ENOENT {
			fsys.syncs.noLook.Do(func() {
				fsys.log.Warn("a caller's descriptors cannot be looked at", "pid", processOf(r.pid), "err", err)
			})
		}
		return 0
	}
	if dev == 0 || dev != fsys.device(r, cmd) || openedPath(r.pid, fd) {
		return 0
	}
	return ino
}

// statOf is what the kernel remembers of an open file, its file system unasked.
func statOf(tid uint32, fd int32) (dev, ino uint64, err error) {
	var st unix.Statx_t
	path := fmt.Sprintf("/proc/%d/fd/%d", tid, fd)
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st); err != nil {
		return 0, 0, err
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino, nil
}

// openedPath reports whether a descriptor is O_PATH, or gone.
func openedPath(tid uint32, fd int32) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", tid, fd))
	if err != nil {
		return true
	}
	_, rest, _ := bytes.Cut(text, []byte("flags:\t"))
	word, _, _ := bytes.Cut(rest, []byte("\n"))
	flags, err := strconv.ParseUint(string(word), 8, 64)
	return err != nil || flags&unix.O_PATH != 0
}

// device is the mount's st_dev, 0 when it cannot be known. Where somebody else
// mounted (Options.FuseFD) there is no path to ask; but the caller is in ioctl(2)
// on a file of ours.
func (fsys *fileSystem) device(r *request, cmd uint32) uint64 {
	if dev := fsys.syncs.dev.Load(); dev != 0 {
		return dev
	}
	var dev uint64
	if fsys.dir != "" {
		var st unix.Statx_t
		if unix.Statx(unix.AT_FDCWD, fsys.dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, &st) == nil {
			dev = unix.Mkdev(st.Dev_major, st.Dev_minor)
		}
	} else if fd, ok := ioctlOf(r.pid, cmd); ok {
		dev, _, _ = statOf(r.pid, fd)
	}
	fsys.syncs.dev.Store(dev)
	return dev
}

// ioctlOf is the descriptor of the ioctl(2) that a thread is in (proc_pid_syscall(5)).
func ioctlOf(tid uint32, cmd uint32) (fd int32, ok bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/syscall", tid))
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(text))
	if len(f) < 3 || f[0] != strconv.Itoa(unix.SYS_IOCTL) {
		return 0, false
	}
	n, err1 := strconv.ParseUint(f[1], 0, 64)
	c, err2 := strconv.ParseUint(f[2], 0, 64)
	if err1 != nil || err2 != nil || uint32(c) != cmd {
		return 0, false
	}
	return int32(n), true
}
