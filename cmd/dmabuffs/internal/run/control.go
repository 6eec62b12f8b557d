package run

import (
	"errors"
	"fmt"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

// controlDir is the mount's .control: see fs/control.go. Its directories are O_PATH.
type controlDir struct {
	dir, sync, swSync, buffers int
}

// openControl opens it below the mount's root. ENOENT: the mount is somebody else's, or no dmabuffs.
func openControl(root int) (*controlDir, error) {
	d := &controlDir{}
	for _, o := range []struct {
		to   *int
		path string
	}{{&d.dir, ".control"}, {&d.sync, ".control/sync"}, {&d.swSync, ".control/sw_sync"}, {&d.buffers, ".control/buffers"}} {
		var err error
		if *o.to, err = unix.Openat(root, o.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return nil, fmt.Errorf("%s: %w", o.path, err)
		}
	}
	return d, nil
}

func (d *controlDir) file() *ctlFile { return &ctlFile{dir: d, fd: -1} }

// ctlFile is an open .control/ctl. What was asked for through it and never opened
// goes when it is closed.
type ctlFile struct {
	dir *controlDir
	mu  sync.Mutex
	fd  int
}

// ioctl asks for something. Its errno is the daemon's.
func (f *ctlFile) ioctl(req uint32, p []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		fd, err := unix.Openat(f.dir.dir, "ctl", unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return noRoom(err)
		}
		f.fd = fd
	}
	if e := ioctlBytes(f.fd, req, p); e != 0 {
		return e
	}
	return nil
}

// drop lets go of what was made and could not be opened.
func (f *ctlFile) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

// open opens what was made, by its id.
func (f *ctlFile) open(dir int, id uint64, flags int) (int, error) {
	var name [24]byte
	p := append(strconv.AppendUint(name[:0], id, 10), 0)
	fd, e := openAt(dir, p, flags|unix.O_CLOEXEC)
	if e != 0 {
		f.drop()
		return -1, noRoom(e)
	}
	return fd, nil
}

// noRoom makes ENOMEM of what a limit of the mount or of ours says: drivers know no other.
func noRoom(err error) error {
	for _, e := range []syscall.Errno{syscall.ENOSPC, syscall.EFBIG, syscall.ENFILE, syscall.EMFILE, syscall.EDQUOT} {
		if errors.Is(err, e) {
			return syscall.ENOMEM
		}
	}
	return err
}

// exportSyncFile is CONTROL_EXPORT, opened. EBADF: the inode is no buffer's.
func (w *worker) exportSyncFile(ino uint64, flags uint32) (int, error) {
	p := w.arg[:uapi.SizeControlExport]
	uapi.ControlExport{Ino: ino, Flags: flags}.Encode(p)
	if err := w.ctl.ioctl(uapi.CONTROL_EXPORT, p); err != nil {
		return -1, err
	}
	c, _ := uapi.DecodeControlExport(p)
	return w.ctl.open(w.s.ctl.sync, c.ID, unix.O_RDONLY)
}

// mergeSyncFiles is CONTROL_MERGE, opened. EINVAL: the first is no sync file. ENOENT: the second.
func (w *worker) mergeSyncFiles(ino1, ino2 uint64, name string) (int, error) {
	p := w.arg[:uapi.SizeControlMerge]
	uapi.ControlMerge{Ino1: ino1, Ino2: ino2, Name: name}.Encode(p)
	if err := w.ctl.ioctl(uapi.CONTROL_MERGE, p); err != nil {
		return -1, err
	}
	c, _ := uapi.DecodeControlMerge(p)
	return w.ctl.open(w.s.ctl.sync, c.ID, unix.O_RDONLY)
}

// newSWSync is CONTROL_SW_SYNC_NEW, opened.
func (w *worker) newSWSync(name string, flags int) (int, error) {
	p := w.arg[:uapi.SizeControlSWSyncNew]
	uapi.ControlSWSyncNew{Name: name}.Encode(p)
	if err := w.ctl.ioctl(uapi.CONTROL_SW_SYNC_NEW, p); err != nil {
		return -1, noRoom(err)
	}
	c, _ := uapi.DecodeControlSWSyncNew(p)
	return w.ctl.open(w.s.ctl.swSync, c.ID, flags)
}

// swSyncFence is CONTROL_SW_SYNC_FENCE, opened. EBADF: the inode is no sw_sync's.
func (w *worker) swSyncFence(ino uint64, value uint32) (int, error) {
	p := w.arg[:uapi.SizeControlSWSyncFence]
	uapi.ControlSWSyncFence{Ino: ino, Value: value}.Encode(p)
	if err := w.ctl.ioctl(uapi.CONTROL_SW_SYNC_FENCE, p); err != nil {
		return -1, err
	}
	c, _ := uapi.DecodeControlSWSyncFence(p)
	return w.ctl.open(w.s.ctl.sync, c.ID, unix.O_RDONLY)
}

// newBuffer is CONTROL_BUFFER_NEW, opened with an access mode.
func (w *worker) newBuffer(exporter string, size uint64, flags int) (int, error) {
	p := w.arg[:uapi.SizeControlBufferNew]
	uapi.ControlBufferNew{Exporter: exporter, Size: size}.Encode(p)
	if err := w.ctl.ioctl(uapi.CONTROL_BUFFER_NEW, p); err != nil {
		return -1, noRoom(err)
	}
	c, _ := uapi.DecodeControlBufferNew(p)
	return w.ctl.open(w.s.ctl.buffers, c.ID, flags)
}

// udmabuf is CONTROL_UDMABUF, opened. The items' descriptors are ours. EBADFD, EINVAL.
func (w *worker) udmabuf(items []uapi.ControlItem) (int, error) {
	var list uint64
	for {
		n := min(len(items), uapi.CONTROL_UDMABUF_ITEMS)
		u := uapi.ControlUdmabuf{ID: list, Items: items[:n]}
		if items = items[n:]; len(items) > 0 {
			u.Flags = uapi.CONTROL_UDMABUF_MORE
		}
		p := w.arg[:uapi.SizeControlUdmabuf+n*uapi.SizeControlItem]
		u.Encode(p)
		if err := w.ctl.ioctl(uapi.ControlUdmabufNumber(n), p); err != nil {
			return -1, noRoom(err)
		}
		got, _ := uapi.DecodeControlUdmabuf(p[:uapi.SizeControlUdmabuf]) // its items do not come back
		if len(items) == 0 {
			return w.ctl.open(w.s.ctl.buffers, got.ID, unix.O_RDWR)
		}
		list = got.ID
	}
}
