package fs

import (
	"context"
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmabuffs/dmabuffs/attach"
	"github.com/dmabuffs/dmabuffs/exporter"
)

// dmaNode is a buffer as one device sees it: devices/<device>/buffers/<buffer>.
// It is an inode of its own: its bytes are the backing memory, never the CPU's cache.
type dmaNode struct {
	ident uint64
	dev   *deviceNode
	buf   *bufferNode
}

var (
	_ node      = (*dmaNode)(nil)
	_ setattrer = (*dmaNode)(nil)
)

func (n *dmaNode) id() uint64 { return n.ident }

func (n *dmaNode) attr(a *fuse.Attr) {
	n.buf.attr(a)
	a.Nlink = 1
}

// setattr: owner, mode and times are the buffer's, to be changed there; a device
// cannot resize. `dd of=` without conv=notrunc asks for size 0: EBUSY says no.
func (n *dmaNode) setattr(c caller, in *fuse.SetAttrIn) error {
	if size, ok := in.GetSize(); ok && int64(size) != n.buf.buf.Size() {
		return syscall.EBUSY
	}
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return syscall.EPERM
	}
	n.buf.meta.set(in)
	return nil
}

// open attaches the device, maps the buffer for DMA, and begins one piece of
// device work. ENOENT: the buffer was removed. EBUSY, ENOMEM: its placement.
// EINTR: while waiting for another transition.
func (n *dmaNode) open(r *request, flags uint32) (handle, error) {
	b := n.buf
	if flags&syscall.O_TRUNC != 0 && b.buf.Size() != 0 {
		return nil, syscall.EBUSY
	}
	b.mu.Lock()
	if b.names == 0 {
		b.mu.Unlock()
		return nil, syscall.ENOENT
	}
	b.dma++ // fixes the size
	b.buf.Get()
	b.mu.Unlock()
	h := &dmaHandle{node: n, flags: flags, dir: direction(flags)}
	if err := h.attach(r); err != nil {
		h.drop()
		var limit *exporter.LimitError
		if errors.As(err, &limit) {
			b.fsys.log.Warn("a device cannot reach a buffer", "device", n.dev.dev.Name(), "buffer", b.label(), "limit", limit.Limit, "why", err)
		}
		return nil, err
	}
	b.fsys.events.add("map", "buffer", b.label(), "device", n.dev.dev.Name(), "direction", h.dir.String(), "pid", r.pid)
	return h, nil
}

// direction is what opening a DMA view says of the transfer.
func direction(flags uint32) exporter.Direction {
	switch flags & syscall.O_ACCMODE {
	case syscall.O_RDONLY:
		return exporter.ToDevice
	case syscall.O_WRONLY:
		return exporter.FromDevice
	}
	return exporter.Bidirectional
}

// dmaHandle is one open(2) of a DMA view: an attachment with its mapping.
type dmaHandle struct {
	node    *dmaNode
	flags   uint32
	dir     exporter.Direction
	att     *attach.Attachment
	sgt     *exporter.SGTable
	backing int32
	working atomic.Bool // between START and END
}

var (
	_ reader  = (*dmaHandle)(nil)
	_ writer  = (*dmaHandle)(nil)
	_ flusher = (*dmaHandle)(nil)
	_ fsyncer = (*dmaHandle)(nil)
	_ ioctler = (*dmaHandle)(nil)
)

// attach does the three steps; what was done of them is undone by drop.
func (h *dmaHandle) attach(r *request) (err error) {
	b, dev := h.node.buf, h.node.dev.dev
	if h.att, err = attach.Attach(b.buf, dev); err != nil {
		return err
	}
	h.att.SetOwner(r.pid, "")
	ctx := exporter.WithCaller(r, callerLabel(r.pid))
	if h.sgt, err = h.att.Map(ctx, h.dir); err != nil {
		return err
	}
	if h.backing, err = b.takeBacking(); err != nil {
		return err
	}
	return h.begin(ctx, h.dir)
}

func (h *dmaHandle) begin(ctx context.Context, dir exporter.Direction) error {
	if err := h.att.Begin(ctx, dir); err != nil {
		return err
	}
	h.working.Store(true)
	if h.backing == 0 {
		return h.node.zap()
	}
	return nil
}

// end hands the buffer back to the CPU.
func (h *dmaHandle) end(ctx context.Context, dir exporter.Direction) error {
	if h.backing == 0 {
		if err := h.node.zap(); err != nil {
			return err
		}
	}
	h.working.Store(false)
	return h.att.End(ctx, dir)
}

// zap launders and drops what is cached of a view without passthrough.
func (n *dmaNode) zap() error { return n.buf.fsys.conn.invalInode(n.ident, 0, 0) }

// sync is DMA_BUF_IOCTL_SYNC on a DMA view.
func (h *dmaHandle) sync(r *request, end bool, dir exporter.Direction) error {
	ctx := exporter.WithCaller(r, callerLabel(r.pid))
	if end {
		return h.end(ctx, dir)
	}
	return h.begin(ctx, dir)
}

func (h *dmaHandle) openOut() openOut {
	if h.backing == 0 {
		return openOut{flags: fuse.FOPEN_DIRECT_IO}
	}
	o := openOut{flags: fuse.FOPEN_PASSTHROUGH, backing: h.backing}
	if wants(h.flags, syscall.O_WRONLY) {
		o.flags |= fuse.FOPEN_DIRECT_IO // a write past the end must not grow the memory
	}
	return o
}

// flush runs at the close(2) of each duplicate, before it returns: what the
// device wrote is there for whoever looks next. A duplicate that stays open goes
// on; its own close ends its work.
func (h *dmaHandle) flush(r *request) error {
	err := h.end(r, h.dir)
	b := h.node.buf
	b.mu.Lock()
	last := b.dma == 1
	b.mu.Unlock()
	if last {
		b.fsys.flushers.drop(r, b) // do not hold the mount longer than the device does
	}
	return err
}

func (h *dmaHandle) fsync(*request) error { return nil }

func (h *dmaHandle) release() {
	if h.working.Load() { // the process died without a close we saw
		if err := h.end(context.Background(), h.dir); err != nil {
			h.node.buf.fsys.log.Debug("ending a dead device's work", "err", err)
		}
	}
	h.drop()
	h.node.buf.fsys.events.add("unmap", "buffer", h.node.buf.label(), "device", h.node.dev.dev.Name())
}

// drop undoes attach, as far as it came.
func (h *dmaHandle) drop() {
	b := h.node.buf
	if h.backing != 0 {
		b.dropBacking()
	}
	if h.sgt != nil {
		h.att.Unmap(h.sgt, h.dir)
	}
	if h.att != nil {
		h.att.Detach()
	}
	b.mu.Lock()
	b.dma--
	last := b.dma == 0
	b.mu.Unlock()
	if last {
		b.fsys.flushers.dropLater(b)
	}
	b.put(h.backing != 0 && wants(h.flags, syscall.O_WRONLY))
}

// read gives the memory's bytes.
func (h *dmaHandle) read(_ *request, p []byte, off int64, _ bool) (int, error) {
	b := h.node.buf
	if m := b.memory(); m != nil {
		if size := b.buf.Size(); off >= size {
			return 0, nil
		} else if int64(len(p)) > size-off {
			p = p[:size-off]
		}
		return m.ReadAt(p, off)
	}
	return b.buf.ReadPages(p, off)
}

// write stores into the memory. EBUSY past the end: a device cannot resize.
func (h *dmaHandle) write(_ *request, p []byte, off int64, cached bool) (int, error) {
	b := h.node.buf
	size := b.buf.Size()
	if cached && off < size && off+int64(len(p)) > size {
		p = p[:size-off]
	}
	if off+int64(len(p)) > size {
		return 0, syscall.EBUSY
	}
	if m := b.memory(); m != nil {
		return m.WriteAt(p, off)
	}
	return b.buf.WritePages(p, off)
}
