package run

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

// ioctl is one of the requests that the filter names. What the descriptor is
// decides: the numbers are other drivers' too.
func (w *worker) ioctl(c *call) (int64, error) {
	req := uint32(c.args[1])
	ino := c.file(int32(c.args[0]))
	if ino == 0 {
		return 0, errContinue
	}
	d := w.s.world.opened[ino]
	switch {
	case d != nil && d.heap != "":
		if req&0xff == heapBase&0xff {
			return w.heapAlloc(c, d)
		}
		return 0, errContinue // EINVAL, as of any other number
	case d != nil && d.udmabuf:
		switch req {
		case uapi.UDMABUF_CREATE:
			return w.udmabufCreate(c)
		case uapi.UDMABUF_CREATE_LIST:
			return w.udmabufCreateList(c)
		}
		return 0, errContinue
	}
	switch req {
	case uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE:
		return w.export(c, ino)
	case uapi.SYNC_IOC_MERGE:
		return w.merge(c, ino)
	case uapi.SW_SYNC_IOC_CREATE_FENCE:
		return w.createFence(c, ino)
	}
	return 0, errContinue
}

// result gives the caller fd by its number in a struct: p, which is written to addr once the number is put
// in. Before, it is written as it is: EFAULT leaves no descriptor behind.
func (c *call) result(fd int, cloexec bool, addr uint64, p []byte, put func(n int32)) (int64, error) {
	c.made = fd
	if err := c.write(addr, p); err != nil {
		return 0, err
	}
	n, err := c.add(fd, cloexec)
	if err != nil {
		return 0, err
	}
	put(n)
	return 0, c.write(addr, p)
}

// export is DMA_BUF_IOCTL_EXPORT_SYNC_FILE (drivers/dma-buf/dma-buf.c,
// dma_buf_export_sync_file). EFAULT; EINVAL: flags; EMFILE; ENOMEM.
func (w *worker) export(c *call, ino uint64) (int64, error) {
	p := w.buf[:uapi.SizeSyncFile]
	if err := c.read(c.args[2], p); err != nil {
		return 0, err
	}
	s, _ := uapi.DecodeSyncFile(p)
	if s.Flags&^uapi.DMA_BUF_SYNC_RW != 0 || s.Flags&uapi.DMA_BUF_SYNC_RW == 0 {
		return 0, w.orNotOurs(ino, syscall.EINVAL)
	}
	fd, err := w.exportSyncFile(ino, s.Flags)
	if errors.Is(err, syscall.EBADF) {
		return 0, errContinue // of this mount, but no buffer: ENOTTY
	} else if err != nil {
		return 0, noRoom(err)
	}
	return c.result(fd, true, c.args[2], p, func(n int32) {
		s.FD = n
		s.Encode(p)
	})
}

// orNotOurs is errno for a buffer, and for other files lets the kernel say ENOTTY.
func (w *worker) orNotOurs(ino uint64, errno syscall.Errno) error {
	fd, err := w.exportSyncFile(ino, uapi.DMA_BUF_SYNC_READ)
	if errors.Is(err, syscall.EBADF) {
		return errContinue
	}
	if err == nil {
		unix.Close(fd)
	}
	return errno
}

// merge is SYNC_IOC_MERGE (drivers/dma-buf/sync_file.c, sync_file_ioctl_merge). EFAULT; EINVAL:
// flags or pad; ENOENT: fd2; EMFILE; ENOMEM. (The kernel looks for a free number first: there
// EMFILE goes before EFAULT.)
func (w *worker) merge(c *call, ino uint64) (int64, error) {
	p := w.buf[:uapi.SizeMerge]
	if err := c.read(c.args[2], p); err != nil {
		return 0, err
	}
	m, _ := uapi.DecodeMerge(p)
	if m.Flags != 0 || m.Pad != 0 {
		return 0, w.orNoSyncFile(ino, syscall.EINVAL)
	}
	ino2 := c.file(m.FD2)
	if ino2 == 0 {
		return 0, w.orNoSyncFile(ino, syscall.ENOENT)
	}
	fd, err := w.mergeSyncFiles(ino, ino2, m.Name)
	if errors.Is(err, syscall.EINVAL) {
		return 0, errContinue // no sync file: ENOTTY
	} else if err != nil {
		return 0, noRoom(err)
	}
	return c.result(fd, true, c.args[2], p, func(n int32) {
		m.Fence = n
		uapi.Merge{Name: m.Name, FD2: m.FD2, Fence: n}.Encode(p)
	})
}

// orNoSyncFile is errno for a sync file, and for other files lets the kernel say ENOTTY.
func (w *worker) orNoSyncFile(ino uint64, errno syscall.Errno) error {
	fd, err := w.mergeSyncFiles(ino, ino, "")
	if errors.Is(err, syscall.EINVAL) {
		return errContinue
	}
	if err == nil {
		unix.Close(fd)
	}
	return errno
}

// createFence is SW_SYNC_IOC_CREATE_FENCE (drivers/dma-buf/sw_sync.c,
// sw_sync_ioctl_create_fence). EFAULT; EMFILE; ENOMEM.
func (w *worker) createFence(c *call, ino uint64) (int64, error) {
	p := w.buf[:uapi.SizeCreateFence]
	if err := c.read(c.args[2], p); err != nil {
		return 0, err
	}
	f, _ := uapi.DecodeCreateFence(p)
	fd, err := w.swSyncFence(ino, f.Value)
	if errors.Is(err, syscall.EBADF) {
		return 0, errContinue // no sw_sync: ENOTTY
	} else if err != nil {
		return 0, noRoom(err)
	}
	return c.result(fd, true, c.args[2], p, func(n int32) {
		native.PutUint32(p[uapi.SizeCreateFence-4:], uint32(n))
	})
}
