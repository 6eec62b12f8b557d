package run

import (
	"encoding/binary"
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

var native = binary.NativeEndian

// Directions of an ioctl's number: the kernel copies in, copies out.
const (
	iocIn  = 1 << 30
	iocOut = 2 << 30
)

// heapAlloc is DMA_HEAP_IOCTL_ALLOC (drivers/dma-buf/dma-heap.c, dma_heap_ioctl). The caller's struct is as large
// as its number tells: what is missing is zero, what is too much is ignored, and all of it is copied back,
// whether it went well or not. EFAULT; EINVAL: fd, fd_flags, heap_flags or
// len; ENOMEM; EMFILE.
func (w *worker) heapAlloc(c *call, d *device) (int64, error) {
	req := uint32(c.args[1])
	in, out := uapi.Size(req), uapi.Size(req)
	if req&iocIn == 0 {
		in = 0
	}
	if req&iocOut == 0 {
		out = 0
	}
	p := w.buf[:max(in, out, uapi.SizeHeapAlloc)]
	clear(p)
	if err := c.read(c.args[2], p[:in]); err != nil {
		return 0, err
	}
	fd, cloexec, err := w.heapBuffer(d, p)
	if err != nil {
		if e := c.write(c.args[2], p[:out]); e != nil {
			err = e
		}
		return 0, err
	}
	return c.result(fd, cloexec, c.args[2], p[:out], func(n int32) { native.PutUint32(p[8:], uint32(n)) })
}

// heapBuffer checks the struct in p and makes the buffer.
func (w *worker) heapBuffer(d *device, p []byte) (fd int, cloexec bool, err error) {
	a, _ := uapi.DecodeHeapAlloc(p)
	size := (a.Len + pageSize - 1) &^ (pageSize - 1)
	switch {
	case a.FD != 0,
		a.FDFlags&^(unix.O_CLOEXEC|unix.O_ACCMODE) != 0,
		a.HeapFlags&^uapi.DMA_HEAP_VALID_HEAP_FLAGS != 0,
		size == 0:
		return -1, false, syscall.EINVAL
	}
	fd, err = w.newBuffer(d.heap, size, int(a.FDFlags&unix.O_ACCMODE))
	if errors.Is(err, syscall.ENOENT) {
		err = syscall.ENOMEM // the mount has no such exporter
	}
	return fd, a.FDFlags&unix.O_CLOEXEC != 0, err
}
