package run

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

// Module parameters of udmabuf, at their defaults.
const (
	udmabufListLimit = 1024
	udmabufSizeLimit = 64 << 20 // bytes
)

const pageSize = 4096

// udmabufCreate is UDMABUF_CREATE (drivers/dma-buf/udmabuf.c, udmabuf_ioctl_create): its result is the
// descriptor.
func (w *worker) udmabufCreate(c *call) (int64, error) {
	p := w.buf[:uapi.SizeUdmabufCreate]
	if err := c.read(c.args[2], p); err != nil {
		return 0, err
	}
	u, _ := uapi.DecodeUdmabufCreate(p)
	return w.makeUdmabuf(c, u.Flags, []uapi.UdmabufCreate{u})
}

// udmabufCreateList is UDMABUF_CREATE_LIST.
func (w *worker) udmabufCreateList(c *call) (int64, error) {
	p := w.buf[:uapi.SizeUdmabufList]
	if err := c.read(c.args[2], p); err != nil {
		return 0, err
	}
	l, _ := uapi.DecodeUdmabufList(p)
	if l.Count > udmabufListLimit {
		return 0, syscall.EINVAL
	}
	p = w.buf[:l.Count*uapi.SizeUdmabufCreate]
	if err := c.read(c.args[2]+uapi.SizeUdmabufList, p); err != nil {
		return 0, err
	}
	items := make([]uapi.UdmabufCreate, l.Count)
	for i := range items {
		items[i], _ = uapi.DecodeUdmabufCreate(p[i*uapi.SizeUdmabufCreate:])
	}
	return w.makeUdmabuf(c, l.Flags, items)
}

// makeUdmabuf is udmabuf_create. EINVAL: not aligned, more than 64 MiB, nothing at all; then for
// each item EBADFD: closed or no memfd, EINVAL: seals, or beyond its end; ENOMEM, EMFILE.
func (w *worker) makeUdmabuf(c *call, flags uint32, items []uapi.UdmabufCreate) (int64, error) {
	var pages uint64
	for _, i := range items {
		if i.Offset%pageSize != 0 || i.Size%pageSize != 0 {
			return 0, syscall.EINVAL
		}
		if pages += i.Size / pageSize; pages > udmabufSizeLimit/pageSize {
			return 0, syscall.EINVAL
		}
	}
	if pages == 0 {
		return 0, syscall.EINVAL
	}
	held := memfds{c: c, fds: map[uint32]int{}}
	defer held.close()
	parts := make([]uapi.ControlItem, len(items))
	for n, i := range items {
		fd, err := held.get(i.Memfd)
		if err == nil {
			parts[n] = uapi.ControlItem{FD: int32(fd), Offset: i.Offset, Size: i.Size}
			continue
		}
		// Of several wrong items the first one counts.
		if e := checkItems(parts[:n]); e != nil {
			return 0, e
		}
		return 0, err
	}
	fd, err := w.udmabuf(parts)
	if err != nil {
		if e := checkItems(parts); e != nil && len(parts) > 1 {
			err = e
		}
		return 0, err
	}
	return c.send(fd, flags&uapi.UDMABUF_FLAGS_CLOEXEC != 0)
}

// memfds are a caller's memfds, held by descriptors of ours that are O_PATH: to hold one does
// nothing to what it is of.
type memfds struct {
	c   *call
	fds map[uint32]int
}

// get holds one. EBADFD: it is closed. ENOMEM: we are out of descriptors.
func (m *memfds) get(theirs uint32) (int, error) {
	if fd, ok := m.fds[theirs]; ok {
		return fd, nil
	}
	if int32(theirs) < 0 {
		return -1, syscall.EBADFD
	}
	w := m.c.w
	fd, e := openAt(w.s.proc, fdPath(w.name[:], m.c.tid, int32(theirs)), unix.O_PATH|unix.O_CLOEXEC)
	switch {
	case e == unix.EMFILE || e == unix.ENFILE:
		return -1, syscall.ENOMEM
	case e != 0:
		return -1, syscall.EBADFD
	}
	m.fds[theirs] = fd
	return fd, nil
}

func (m *memfds) close() {
	for _, fd := range m.fds {
		unix.Close(fd)
	}
}

// checkItems says what the kernel would of the first item that is wrong, nil when none is.
func checkItems(items []uapi.ControlItem) error {
	for _, i := range items {
		if err := checkItem(i); err != nil {
			return err
		}
	}
	return nil
}

// checkItem is check_memfd_seals and memfd_pin_folios.
func checkItem(i uapi.ControlItem) error {
	self := fmt.Sprintf("/proc/thread-self/fd/%d", i.FD)
	name, err := os.Readlink(self)
	if err != nil || !strings.HasPrefix(name, "/memfd:") {
		return syscall.EBADFD
	}
	fd, err := unix.Open(self, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return errnoOf(err)
	}
	defer unix.Close(fd)
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return syscall.EBADFD
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return errnoOf(err)
	}
	if seals&unix.F_SEAL_SHRINK == 0 || seals&(unix.F_SEAL_WRITE|unix.F_SEAL_FUTURE_WRITE) != 0 ||
		i.Size == 0 || i.Size > uint64(st.Size) || i.Offset > uint64(st.Size)-i.Size {
		return syscall.EINVAL
	}
	return nil
}

func errnoOf(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return syscall.EIO
}
