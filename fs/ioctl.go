package fs

import (
	"bytes"
	"syscall"

	"github.com/dmabuffs/dmabuffs/exporter"
	"github.com/dmabuffs/dmabuffs/fs/uapi"
	"github.com/dmabuffs/dmabuffs/poll"
)

// The ioctls of buffers and sync files. A number is taken whole, direction and
// size included, as the kernel does: any other is ENOTTY.
//
// FUSE copies the argument of a number with the write direction in, and out that
// of one with the read direction; unreadable memory is EFAULT before we are asked.
// What else an argument points at is read from, and written to, the caller's
// memory (callermem_linux.go).

// target is a buffer's open file: its CPU view or one of its DMA views.
type target interface {
	buffer() *bufferNode
	// bracket is DMA_BUF_IOCTL_SYNC with valid flags.
	bracket(r *request, flags uint64) error
}

func (h *cpuHandle) buffer() *bufferNode { return h.node }
func (h *dmaHandle) buffer() *bufferNode { return h.node.buf }

func (h *cpuHandle) ioctl(r *request, in *ioctlIn) (int32, error) { return bufferIoctl(h, r, in) }
func (h *dmaHandle) ioctl(r *request, in *ioctlIn) (int32, error) { return bufferIoctl(h, r, in) }

var bufferIoctls = map[uint32]func(t target, r *request, in *ioctlIn) error{
	uapi.DMA_BUF_IOCTL_SYNC:             ioctlSync,
	uapi.DMA_BUF_SET_NAME_A:             ioctlSetName,
	uapi.DMA_BUF_SET_NAME_B:             ioctlSetName,
	uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE: ioctlExportSyncFile,
	uapi.DMA_BUF_IOCTL_IMPORT_SYNC_FILE: ioctlImportSyncFile,
}

func bufferIoctl(t target, r *request, in *ioctlIn) (int32, error) {
	do, ok := bufferIoctls[in.cmd]
	if !ok {
		return 0, syscall.ENOTTY
	}
	return 0, do(t, r, in)
}

// ioctlSync is DMA_BUF_IOCTL_SYNC. EINVAL: bad flags. START: EINTR while waiting for fences.
func ioctlSync(t target, r *request, in *ioctlIn) error {
	s, ok := uapi.DecodeSync(in.data)
	if !ok || s.Flags&^uapi.DMA_BUF_SYNC_VALID_FLAGS_MASK != 0 || s.Flags&uapi.DMA_BUF_SYNC_RW == 0 {
		return syscall.EINVAL
	}
	if err := t.bracket(r, s.Flags); err != nil {
		return err
	}
	sayBracket(t, r, s.Flags)
	return nil
}

// sayBracket tells the event sync.
func sayBracket(t target, r *request, flags uint64) {
	phase, what := "start", "rw"
	if flags&uapi.DMA_BUF_SYNC_END != 0 {
		phase = "end"
	}
	switch flags & uapi.DMA_BUF_SYNC_RW {
	case uapi.DMA_BUF_SYNC_READ:
		what = "r"
	case uapi.DMA_BUF_SYNC_WRITE:
		what = "w"
	}
	n, device := t.buffer(), ""
	if h, ok := t.(*dmaHandle); ok {
		device = h.node.dev.dev.Name()
	}
	if device == "" {
		n.fsys.events.add("sync", "buffer", n.label(), "phase", phase, "access", what, "pid", r.pid)
	} else {
		n.fsys.events.add("sync", "buffer", n.label(), "device", device, "phase", phase, "access", what, "pid", r.pid)
	}
}

// bracket: a CPU that reads takes what a device wrote, and the other way round.
func (h *cpuHandle) bracket(r *request, flags uint64) error {
	dir := exporter.Bidirectional
	switch flags & uapi.DMA_BUF_SYNC_RW {
	case uapi.DMA_BUF_SYNC_READ:
		dir = exporter.FromDevice
	case uapi.DMA_BUF_SYNC_WRITE:
		dir = exporter.ToDevice
	}
	if flags&uapi.DMA_BUF_SYNC_END != 0 {
		return h.node.buf.EndCPUAccess(h.ctx(r), dir)
	}
	label := callerLabel(r.pid)
	h.begun(label)
	return h.node.buf.BeginCPUAccess(exporter.WithCaller(r, label), dir)
}

// bracket: here the caller is the device, so that to read is DMA_TO_DEVICE, as it
// is for open(2). Devices wait for fences by themselves.
func (h *dmaHandle) bracket(r *request, flags uint64) error {
	dir := exporter.Bidirectional
	switch flags & uapi.DMA_BUF_SYNC_RW {
	case uapi.DMA_BUF_SYNC_READ:
		dir = exporter.ToDevice
	case uapi.DMA_BUF_SYNC_WRITE:
		dir = exporter.FromDevice
	}
	return h.sync(r, flags&uapi.DMA_BUF_SYNC_END != 0, dir)
}

// ioctlSetName is DMA_BUF_SET_NAME: in.arg is the name's address. EINVAL: no NUL
// within 32 bytes. EFAULT: unreadable before its NUL. EPERM: the caller's memory is
// not ours to read, and the few bytes that FUSE brought along have no NUL.
func ioctlSetName(t target, r *request, in *ioctlIn) error {
	p := make([]byte, uapi.DMA_BUF_NAME_LEN)
	n, err := readCaller(r.pid, in.arg, p)
	p = p[:n]
	if err == syscall.EPERM {
		t.buffer().fsys.sayNoMemory("DMA_BUF_SET_NAME", r)
		if bytes.IndexByte(in.data, 0) < 0 {
			return err
		}
		p, err = in.data, nil
	}
	end := bytes.IndexByte(p, 0)
	switch {
	case end >= 0:
		name, n := string(p[:end]), t.buffer()
		if err := n.buf.SetName(name); err != nil {
			return err
		}
		n.fsys.events.add("name", "buffer", n.label(), "name", name, "pid", r.pid)
		return nil
	case err != nil:
		return err
	}
	return syscall.EINVAL
}

// validSyncFlags are those of EXPORT and IMPORT_SYNC_FILE.
func validSyncFlags(flags uint32) bool {
	return flags&^uapi.DMA_BUF_SYNC_RW == 0 && flags&uapi.DMA_BUF_SYNC_RW != 0
}

// ioctlExportSyncFile is DMA_BUF_IOCTL_EXPORT_SYNC_FILE, of which we can only check the flags.
func ioctlExportSyncFile(t target, r *request, in *ioctlIn) error {
	s, ok := uapi.DecodeSyncFile(in.data)
	if !ok || !validSyncFlags(s.Flags) {
		return syscall.EINVAL
	}
	fsys := t.buffer().fsys
	fsys.syncs.noExport.Do(func() {
		fsys.log.Warn("DMA_BUF_IOCTL_EXPORT_SYNC_FILE puts a descriptor into the caller, which FUSE cannot: start the program by `dmabuffs run -- CMD`, or open state/<buffer>/write_fences",
			"pid", processOf(r.pid))
	})
	return syscall.EOPNOTSUPP
}

// exportFences is the fence of EXPORT_SYNC_FILE with these (valid) flags.
func exportFences(n *bufferNode, flags uint32) *poll.Fence {
	usage := poll.Read
	if flags&uapi.DMA_BUF_SYNC_WRITE == 0 {
		usage = poll.Write // who reads waits for writers
	}
	return gather(n.buf.Resv().Pending(usage))
}

// ioctlImportSyncFile is DMA_BUF_IOCTL_IMPORT_SYNC_FILE. EINVAL: bad flags, a bad
// descriptor, or one that is no sync file of this mount.
func ioctlImportSyncFile(t target, r *request, in *ioctlIn) error {
	s, ok := uapi.DecodeSyncFile(in.data)
	if !ok || !validSyncFlags(s.Flags) {
		return syscall.EINVAL
	}
	n := t.buffer()
	sf := n.fsys.syncFileOf(r, in.cmd, s.FD)
	if sf == nil {
		return syscall.EINVAL
	}
	usage := poll.Read
	if s.Flags&uapi.DMA_BUF_SYNC_WRITE != 0 {
		usage = poll.Write
	}
	n.addFence(r, sf.Fence(), usage)
	return nil
}

var syncIoctls = map[uint32]func(h *syncHandle, r *request, in *ioctlIn) error{
	uapi.SYNC_IOC_FILE_INFO:    ioctlFileInfo,
	uapi.SYNC_IOC_SET_DEADLINE: ioctlSetDeadline,
	uapi.SYNC_IOC_MERGE:        ioctlMerge,
}

func (h *syncHandle) ioctl(r *request, in *ioctlIn) (int32, error) {
	do, ok := syncIoctls[in.cmd]
	if !ok {
		return 0, syscall.ENOTTY
	}
	return 0, do(h, r, in)
}

// ioctlFileInfo is SYNC_IOC_FILE_INFO. EINVAL: flags or pad, or an array that is too
// short. EFAULT: an array that cannot be written. EPERM: the caller's memory is not
// ours to write.
func ioctlFileInfo(h *syncHandle, r *request, in *ioctlIn) error {
	f, ok := uapi.DecodeFileInfo(in.data)
	if !ok || f.Flags != 0 || f.Pad != 0 {
		return syscall.EINVAL
	}
	info := h.sf.Info()
	f.Status = int32(info.Aggregate)
	if f.NumFences != 0 {
		if int(f.NumFences) < len(info.Fences) {
			return syscall.EINVAL
		}
		f.Status = int32(info.Status)
		if err := writeCaller(r.pid, f.Fences, encodeFences(info.Fences)); err != nil {
			if err == syscall.EPERM {
				h.fsys.sayNoMemory("SYNC_IOC_FILE_INFO", r)
			}
			return err
		}
	}
	f.Name, f.NumFences = info.Name, uint32(len(info.Fences))
	f.Encode(in.out)
	return nil
}

func encodeFences(fences []poll.FenceInfo) []byte {
	p := make([]byte, len(fences)*uapi.SizeFenceInfo)
	for i, f := range fences {
		uapi.FenceInfo{Timeline: f.Timeline, Driver: f.Driver, Status: int32(f.Status), Timestamp: f.Timestamp}.
			Encode(p[i*uapi.SizeFenceInfo:])
	}
	return p
}

// ioctlSetDeadline is SYNC_IOC_SET_DEADLINE. EINVAL: pad.
func ioctlSetDeadline(h *syncHandle, _ *request, in *ioctlIn) error {
	d, ok := uapi.DecodeDeadline(in.data)
	if !ok || d.Pad != 0 {
		return syscall.EINVAL
	}
	h.sf.Fence().SetDeadline(d.NS)
	return nil
}

// ioctlMerge is SYNC_IOC_MERGE, of which we can only check the arguments. EINVAL:
// flags or pad. ENOENT: fd2 is no sync file.
func ioctlMerge(h *syncHandle, r *request, in *ioctlIn) error {
	m, ok := uapi.DecodeMerge(in.data)
	if !ok || m.Flags != 0 || m.Pad != 0 {
		return syscall.EINVAL
	}
	if h.fsys.syncFileOf(r, in.cmd, m.FD2) == nil {
		return syscall.ENOENT
	}
	h.fsys.syncs.noMerge.Do(func() {
		h.fsys.log.Warn("SYNC_IOC_MERGE puts a descriptor into the caller, which FUSE cannot: start the program by `dmabuffs run -- CMD`, or wait for each sync file by itself",
			"pid", processOf(r.pid))
	})
	return syscall.EOPNOTSUPP
}

// sayNoMemory says once that callers' memory is closed to us.
func (fsys *fileSystem) sayNoMemory(what string, r *request) {
	fsys.syncs.noMemory.Do(func() {
		fsys.log.Warn("the daemon may not reach into the memory of callers (kernel.yama.ptrace_scope, or another user): it must be root, or ptrace_scope 0",
			"ioctl", what, "pid", processOf(r.pid))
	})
}
