package fs

import (
	"errors"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// include/uapi/linux/fuse.h
const (
	fuseDevIocBackingOpen  = 0x4010e501 // _IOW(229, 1, struct fuse_backing_map)
	fuseDevIocBackingClose = 0x4004e502 // _IOW(229, 2, uint32_t)
)

type fuseBackingMap struct {
	fd      int32
	flags   uint32
	padding uint64
}

// backingOpen gives a file to the kernel for passthrough. EPERM: not in this user namespace.
func (c *conn) backingOpen(fd int) (int32, error) {
	m := fuseBackingMap{fd: int32(fd)}
	id, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), fuseDevIocBackingOpen, uintptr(unsafe.Pointer(&m)))
	if e != 0 {
		return 0, e
	}
	return int32(id), nil
}

func (c *conn) backingClose(id int32) {
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(c.fd), fuseDevIocBackingClose, uintptr(unsafe.Pointer(&id)))
}

// probePassthrough asks whether the kernel takes backing files from us.
func (c *conn) probePassthrough() error {
	fd, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	id, err := c.backingOpen(fd)
	if err != nil {
		return err
	}
	c.backingClose(id)
	return nil
}

// backing is the kernel's number for a buffer's memory, while somebody has it open.
type backing struct {
	id   int32
	refs int
}

// takeBacking returns the number, 0 where there is no passthrough. An error is one of the memory.
func (n *bufferNode) takeBacking() (int32, error) {
	m := n.memory()
	if m == nil || !n.fsys.passthrough.Load() {
		return 0, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.backing.refs == 0 {
		f, err := m.File()
		if err != nil || f == nil {
			return 0, err
		}
		id, err := n.fsys.conn.backingOpen(int(f.Fd()))
		runtime.KeepAlive(f)
		if errors.Is(err, syscall.EPERM) {
			return 0, nil
		}
		if err != nil {
			return 0, err
		}
		n.backing.id = id
	}
	n.backing.refs++
	return n.backing.id, nil
}

func (n *bufferNode) dropBacking() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.backing.refs--; n.backing.refs == 0 {
		n.fsys.conn.backingClose(n.backing.id)
		n.backing.id = 0
	}
}

// kind is how the CPU's view of the buffer is mapped.
func (n *bufferNode) kind() exporter.MapKind {
	vma := exporter.VMA{Shared: true}
	if err := n.buf.Mmap(&vma); err != nil {
		return exporter.MapCached
	}
	return vma.Kind
}

func (n *bufferNode) usedByDevice() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dma > 0
}
