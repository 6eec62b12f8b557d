package run

import (
	"bytes"
	"fmt"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Paths: which of a program's are ours.
//
// A path is taken as it reads, with dots and doubled slashes; symbolic links are not followed, so that a link
// to a device that is not there leads nowhere. A program that has changed its root is shown
// the same devices.

// find reads the path of a call and returns the device that it means: nil, errContinue
// for nearly all.
func (c *call) find(dirfd int32, addr uint64) (*device, error) {
	p, err := c.path(addr)
	if err != nil {
		return nil, errContinue // EFAULT, ENAMETOOLONG: the kernel says it better
	}
	c.note = p
	w := c.w.s.world
	if !w.mayBe(p) {
		return nil, errContinue
	}
	full := p
	if !strings.HasPrefix(p, "/") {
		dir, ok := c.dir(dirfd)
		if !ok {
			return nil, errContinue
		}
		full = dir + "/" + p
	}
	d := w.byPath[path.Clean(full)]
	switch {
	case d == nil:
		return nil, errContinue
	case !d.dir && (strings.HasSuffix(p, "/") || strings.HasSuffix(p, "/.")):
		return d, syscall.ENOTDIR
	}
	return d, nil
}

// path reads a path of the caller: up to a NUL, page by page. ENAMETOOLONG, EFAULT.
func (c *call) path(addr uint64) (string, error) {
	p := c.w.buf[:0]
	for len(p) < unix.PathMax {
		n := int(min(pageSize-addr%pageSize, 256))
		got := p[len(p) : len(p)+n]
		if err := c.read(addr, got); err != nil {
			return "", err
		}
		if i := bytes.IndexByte(got, 0); i >= 0 {
			return string(p[:len(p)+i]), nil
		}
		p = p[:len(p)+n]
		addr += uint64(n)
	}
	return "", syscall.ENAMETOOLONG
}

// dir is the directory that a relative path begins at. One of ours that was given out is known by
// its inode.
func (c *call) dir(fd int32) (string, bool) {
	if fd == unix.AT_FDCWD {
		dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", c.tid))
		return dir, err == nil
	}
	if ino := c.file(fd); ino != 0 {
		if d := c.w.s.world.shown[ino]; d != nil {
			return d.path, d.dir
		}
		return "", false
	}
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", c.tid, fd))
	return dir, err == nil
}

// sizeOpenHow is struct open_how of include/uapi/linux/openat2.h: u64 flags, mode, resolve.
const sizeOpenHow = 24

// open is open(2), creat(2), openat(2) and openat2(2).
func (w *worker) open(c *call) (int64, error) {
	dirfd, addr, flags := int32(unix.AT_FDCWD), c.args[0], c.args[1]
	switch c.nr {
	case sysCreat:
		flags = unix.O_CREAT | unix.O_WRONLY | unix.O_TRUNC
	case unix.SYS_OPENAT, unix.SYS_OPENAT2:
		dirfd, addr, flags = int32(c.args[0]), c.args[1], c.args[2]
	}
	c.args[5] = flags // for the tracer
	d, err := c.find(dirfd, addr)
	if err != nil {
		return 0, err
	}
	if c.nr == unix.SYS_OPENAT2 {
		if flags, err = c.openHow(); err != nil {
			return 0, err
		}
	}
	f := int(uint32(flags))
	c.args[5] = uint64(f)
	switch {
	case f&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL:
		return 0, syscall.EEXIST
	case d.dir && (f&unix.O_ACCMODE != unix.O_RDONLY || f&unix.O_CREAT != 0):
		return 0, syscall.EISDIR
	case !d.dir && f&unix.O_DIRECTORY != 0:
		return 0, syscall.ENOTDIR
	}
	fd, err := w.openDevice(c, d, f&(unix.O_ACCMODE|unix.O_NONBLOCK|unix.O_APPEND))
	if err != nil {
		return 0, err
	}
	return c.send(fd, f&unix.O_CLOEXEC != 0)
}

// openHow reads the flags of openat2(2). What its resolve asks for beyond links, the kernel
// shall refuse or grant by the files that there are.
func (c *call) openHow() (uint64, error) {
	if c.args[3] != sizeOpenHow {
		return 0, errContinue // EINVAL, or a younger struct than ours
	}
	p := c.w.buf[:sizeOpenHow]
	if err := c.read(c.args[2], p); err != nil {
		return 0, err
	}
	if native.Uint64(p[16:])&^(unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_MAGICLINKS) != 0 {
		return 0, errContinue
	}
	return native.Uint64(p), nil
}

// openDevice opens what the caller will have.
func (w *worker) openDevice(c *call, d *device, flags int) (int, error) {
	switch {
	case d.swSync:
		return w.newSWSync(c.comm(), flags)
	case d.dir:
		return w.openControl(d.show, flags|unix.O_DIRECTORY)
	}
	return w.openControl(d.open, flags)
}

func (w *worker) openControl(name string, flags int) (int, error) {
	fd, err := unix.Openat(w.s.ctl.dir, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, noRoom(err)
	}
	return fd, nil
}

// stat is stat(2), lstat(2), newfstatat(2) and statx(2).
func (w *worker) stat(c *call) (int64, error) {
	dirfd, addr, out := int32(unix.AT_FDCWD), c.args[0], c.args[1]
	switch c.nr {
	case sysFstatat:
		dirfd, addr, out = int32(c.args[0]), c.args[1], c.args[2]
	case unix.SYS_STATX:
		dirfd, addr, out = int32(c.args[0]), c.args[1], c.args[4]
	}
	d, err := c.find(dirfd, addr)
	if err != nil {
		return 0, err
	}
	if c.nr == unix.SYS_STATX {
		return 0, c.write(out, bytesOf(&d.stx))
	}
	return 0, c.write(out, bytesOf(&d.st))
}

// access is access(2), faccessat(2) and faccessat2(2): everybody may read and write the devices.
func (w *worker) access(c *call) (int64, error) {
	dirfd, addr, mode := int32(unix.AT_FDCWD), c.args[0], c.args[1]
	if c.nr != sysAccess {
		dirfd, addr, mode = int32(c.args[0]), c.args[1], c.args[2]
	}
	if uint32(mode)&^7 != 0 {
		return 0, errContinue // EINVAL
	}
	d, err := c.find(dirfd, addr)
	if err != nil {
		return 0, err
	}
	if mode&unix.W_OK != 0 && d.st.Mode&0002 == 0 || mode&unix.X_OK != 0 && d.st.Mode&0001 == 0 {
		return 0, syscall.EACCES
	}
	return 0, nil
}

// readlink: none of ours is a link.
func (w *worker) readlink(c *call) (int64, error) {
	dirfd, addr := int32(unix.AT_FDCWD), c.args[0]
	if c.nr == unix.SYS_READLINKAT {
		dirfd, addr = int32(c.args[0]), c.args[1]
	}
	if _, err := c.find(dirfd, addr); err != nil {
		return 0, err
	}
	return 0, syscall.EINVAL
}

// xattr is getxattr(2), listxattr(2) and those of links: there are none.
func (w *worker) xattr(c *call) (int64, error) {
	if _, err := c.find(unix.AT_FDCWD, c.args[0]); err != nil {
		return 0, err
	}
	if c.nr == unix.SYS_LISTXATTR || c.nr == unix.SYS_LLISTXATTR {
		return 0, nil
	}
	return 0, syscall.ENODATA
}
