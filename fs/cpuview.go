package fs

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/attach"
	"github.com/dmabuffs/dmabuffs/exporter"
	"github.com/dmabuffs/dmabuffs/poll"
)

// bufferNode is a buffer as CPUs see it: the file buffers/<buffer>.
type bufferNode struct {
	fsys *fileSystem
	buf  *exporter.Buffer
	exp  string
	meta *meta
	x    xattrs

	mu      sync.Mutex
	name    string // one of its names, for reports; kept after unlink
	names   int
	views   map[*cpuHandle]struct{}
	dma     int // open DMA views
	backing backing

	// parked READs (fault=wait) are let go by closing and replacing it.
	unpark   chan struct{}
	looked   atomic.Int64 // when a parked READ last looked for the killed, in ns
	shooting atomic.Int32
	shoot    atomic.Pointer[shoot] // what the flusher's fsync(2) is to shoot down
	dropping atomic.Bool           // the flusher's file is about to be closed

	unnamed  bool        // never had a name: .control/buffers/<id> only
	unopened atomic.Bool // made by .control/ctl, whose reference waits for the first open(2)
}

var (
	_ node             = (*bufferNode)(nil)
	_ setattrer        = (*bufferNode)(nil)
	_ allocator        = (*bufferNode)(nil)
	_ xattrer          = (*bufferNode)(nil)
	_ exporter.Mapping = (*bufferNode)(nil)
)

func newBufferNode(fsys *fileSystem, buf *exporter.Buffer, c caller, mode uint32) *bufferNode {
	n := &bufferNode{fsys: fsys, buf: buf, exp: buf.ExpName(), meta: newMeta(mode, c.uid, c.gid)}
	buf.SetMapping(n)
	buf.Resv().Hold(buf.Get, buf.Put) // a direction polled in vain keeps the buffer, as in dma_buf_poll
	return n
}

func (n *bufferNode) id() uint64 { return n.buf.ID() }

func (n *bufferNode) attr(a *fuse.Attr) {
	a.Mode = syscall.S_IFREG
	n.meta.attr(a)
	a.Size = uint64(n.buf.Size())
	if m := n.memory(); m != nil {
		a.Blocks = uint64(m.Blocks())
	}
	n.mu.Lock()
	a.Nlink = uint32(2 * n.names) // in buffers/ and in exporters/<e>/
	n.mu.Unlock()
}

func (n *bufferNode) memory() *exporter.Memory {
	if ops := n.buf.Ops(); ops.Memory != nil {
		return ops.Memory(n.buf)
	}
	return nil
}

func (n *bufferNode) xattrs() *xattrs { return &n.x }

func (n *bufferNode) nameAdded(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names++
	n.name = name
}

func (n *bufferNode) renamed(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.name == from {
		n.name = to
	}
}

// nameDropped gives that name's reference back; other is a name that is left, or "".
func (n *bufferNode) nameDropped(name, other string) {
	n.mu.Lock()
	n.names--
	if n.name == name && other != "" {
		n.name = other
	}
	n.mu.Unlock()
	n.put(false)
}

// put gives one reference back, and forgets the node with the last. A writable
// passthrough mapping outlives its close, unseen by FUSE: where mapped says that
// there may be one, release waits until the memory can be sealed.
func (n *bufferNode) put(mapped bool) {
	n.mu.Lock()
	idle := n.names == 0 && len(n.views) == 0 && n.dma == 0
	n.mu.Unlock()
	if !idle {
		n.buf.Put()
		return
	}
	n.fsys.nodes.unpin(n.id())
	m := n.memory()
	if !mapped || m == nil || !m.Mapped() {
		n.release()
		return
	}
	go func() {
		for t := time.NewTicker(mappedEvery); m.Mapped(); {
			select {
			case <-t.C:
			case <-n.fsys.conn.ended:
				t.Stop()
				n.release()
				return
			}
		}
		n.release()
	}()
}

// mappedEvery is how often a memory with a mapping left is asked whether it is gone.
const mappedEvery = 50 * time.Millisecond

func (n *bufferNode) release() {
	n.fsys.events.add("release", "buffer", n.label())
	if n.unnamed {
		n.fsys.uncache(madeDir("buffers"), strconv.FormatUint(n.id(), 10))
	}
	n.fsys.metrics.put(n.buf)
}

// open attaches the caller: it is an importer until the last close and munmap.
func (n *bufferNode) open(r *request, flags uint32) (handle, error) {
	if n.fsys.flushers.owns(r.pid) {
		return &flushHandle{n}, nil
	}
	h, err := n.openView(r.caller(), flags)
	if err != nil {
		return nil, err
	}
	n.firstOpen()
	return h, nil
}

func (n *bufferNode) openView(c caller, flags uint32) (*cpuHandle, error) {
	h := &cpuHandle{node: n, flags: flags, caller: c}
	h.ph.c = n.fsys.conn
	if flags&syscall.O_TRUNC != 0 {
		if err := n.resize(c, nil, 0); err != nil {
			return nil, err
		}
	}
	vma := exporter.VMA{Shared: true, Write: wants(flags, syscall.O_WRONLY)}
	if err := n.buf.Mmap(&vma); err != nil {
		return nil, err
	}
	if vma.Kind == exporter.MapPassthrough {
		id, err := n.takeBacking()
		if err != nil {
			return nil, err
		}
		if id == 0 {
			vma.Kind = exporter.MapCached
			n.fallBack()
		}
		h.backing = id
	}
	h.kind = vma.Kind
	n.mu.Lock()
	if n.views == nil {
		n.views = map[*cpuHandle]struct{}{}
	}
	n.views[h] = struct{}{}
	n.mu.Unlock()
	n.buf.Get()
	h.att = attach.AttachCPU(n.buf, c.pid, "")
	n.fsys.events.add("open", "buffer", n.label(), "access", access(flags), "pid", c.pid)
	return h, nil
}

// fallBack serves a buffer that was to be mapped directly through the page cache.
func (n *bufferNode) fallBack() {
	n.buf.NoPassthrough()
	n.fsys.toldNoPass.Do(func() {
		n.fsys.log.Warn("no passthrough here: coherent buffers go through the page cache, and are kept coherent by shooting it down",
			"hint", "mount as root, outside a user namespace, for memory speed")
	})
}

// busyForLocked reports whether somebody else uses the buffer, so that its size is
// fixed: another opener, a device, or a pending fence. n.mu is held.
func (n *bufferNode) busyForLocked(c caller, self *cpuHandle) bool {
	if n.dma > 0 || !n.buf.Resv().Idle(poll.Read) {
		return true
	}
	for h := range n.views {
		if h != self && !sameProcess(h.caller.pid, c.pid) {
			return true
		}
	}
	return false
}

// resize is grow, told to those who listen.
func (n *bufferNode) resize(c caller, self *cpuHandle, size int64) error {
	was := n.buf.Size()
	if err := n.grow(c, self, size); err != nil {
		return err
	}
	if size != was {
		n.fsys.events.add("resize", "buffer", n.label(), "size", size, "pid", c.pid)
	}
	return nil
}

// grow is a new export in place, of any size. EBUSY while shared, ENOSPC, EFBIG, ENOMEM: nothing changes.
func (n *bufferNode) grow(c caller, self *cpuHandle, size int64) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if size == n.buf.Size() {
		return nil
	}
	if n.busyForLocked(c, self) {
		return syscall.EBUSY
	}
	if err := n.buf.Resize(size); err != nil {
		return err
	}
	n.meta.touch()
	return nil
}

func (n *bufferNode) setattr(c caller, in *fuse.SetAttrIn) error {
	if size, ok := in.GetSize(); ok {
		var self *cpuHandle
		if fh, ok := in.GetFh(); ok {
			h, _ := n.fsys.handles.get(fh)
			self, _ = h.(*cpuHandle)
		}
		if int64(size) < 0 {
			return syscall.EFBIG
		}
		if err := n.resize(c, self, int64(size)); err != nil {
			return err
		}
	}
	n.meta.set(in)
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		for _, id := range n.fsys.nodes.about(n.id()) { // whose rights are the buffer's
			_ = n.fsys.conn.invalInode(id, -1, 0)
		}
	}
	return nil
}

// Modes of fallocate(2).
const (
	fallocKeepSize  = 1 << 0
	fallocPunchHole = 1 << 1
)

func (n *bufferNode) fallocate(c caller, fh, off, size uint64, mode uint32) error {
	end := off + size
	if int64(off) < 0 || int64(end) < 0 || end < off {
		return syscall.EFBIG
	}
	switch mode {
	case 0:
		h, _ := n.fsys.handles.get(fh)
		self, _ := h.(*cpuHandle)
		if int64(end) > n.buf.Size() {
			if err := n.resize(c, self, int64(end)); err != nil {
				return err
			}
		}
		return n.buf.Allocate(int64(off), int64(size))
	case fallocKeepSize:
		if int64(off) >= n.buf.Size() {
			return nil
		}
		return n.buf.Allocate(int64(off), min(int64(size), n.buf.Size()-int64(off)))
	case fallocKeepSize | fallocPunchHole:
		return n.buf.PunchHole(int64(off), int64(size))
	}
	return syscall.EOPNOTSUPP
}

// parked returns the channel whose closing lets a parked READ go.
func (n *bufferNode) parked() chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.unpark == nil {
		n.unpark = make(chan struct{})
	}
	return n.unpark
}

// letGo answers every parked READ, before its pages are shot down (deadlock rule 1).
func (n *bufferNode) letGo() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.unpark != nil {
		close(n.unpark)
		n.unpark = nil
	}
}

// cpuHandle is one open(2) of a buffer.
type cpuHandle struct {
	node      *bufferNode
	caller    caller
	flags     uint32
	kind      exporter.MapKind
	backing   int32
	att       *attach.Attachment
	ph        pollHandle
	watch     sync.Once
	waiter    *poll.Waiter
	bracketer string // who last began CPU access through it; guarded by node.mu
}

var (
	_ reader  = (*cpuHandle)(nil)
	_ writer  = (*cpuHandle)(nil)
	_ fsyncer = (*cpuHandle)(nil)
	_ ioctler = (*cpuHandle)(nil)
	_ poller  = (*cpuHandle)(nil)
)

// openOut: the page cache for what is coherent through it; passthrough mappings
// with read(2) and write(2) by way of us where writing could change the size;
// read(2) and write(2) by way of us and cached mappings for noncoherent buffers.
func (h *cpuHandle) openOut() openOut {
	switch h.kind {
	case exporter.MapPassthrough:
		o := openOut{flags: fuse.FOPEN_PASSTHROUGH | fuse.FOPEN_NOFLUSH, backing: h.backing}
		if wants(h.flags, syscall.O_WRONLY) {
			o.flags |= fuse.FOPEN_DIRECT_IO
		}
		return o
	case exporter.MapDirect:
		return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_KEEP_CACHE}
	default:
		return openOut{flags: fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH}
	}
}

func (h *cpuHandle) release() {
	n := h.node
	h.watch.Do(func() {})
	if h.waiter != nil {
		n.buf.Resv().Unwatch(h.waiter)
	}
	h.att.Detach()
	n.mu.Lock()
	delete(n.views, h)
	forget := h.bracketer
	for v := range n.views {
		if v.bracketer == forget {
			forget = ""
			break
		}
	}
	n.mu.Unlock()
	if forget != "" {
		n.buf.ForgetBrackets(forget) // it is gone without having ended them all
	}
	if h.backing != 0 {
		n.dropBacking()
	}
	n.fsys.events.add("close", "buffer", n.label(), "size", n.buf.Size(), "pid", h.caller.pid)
	n.put(h.backing != 0 && wants(h.flags, syscall.O_WRONLY))
}

// begun notes who brackets through this open file.
func (h *cpuHandle) begun(label string) {
	h.node.mu.Lock()
	defer h.node.mu.Unlock()
	h.bracketer = label
}

func (h *cpuHandle) ctx(r *request) context.Context {
	return exporter.WithCaller(r, callerLabel(r.pid))
}

func (h *cpuHandle) read(r *request, p []byte, off int64, direct bool) (int, error) {
	if h.kind == exporter.MapCached || !direct {
		if err := h.node.waitFault(r); err != nil {
			return 0, err
		}
		return h.node.buf.Fault(p, off, processOf(r.pid))
	}
	return h.node.buf.Read(h.ctx(r), p, off)
}

// waitFault parks a page fault until the write fences are done, where fault=wait
// asks for it. A shootdown lets it go: a locked page would make that wait for us. So
// does a process that was killed while it waits for the page. EINTR: who faulted is gone.
func (n *bufferNode) waitFault(r *request) error {
	if n.fsys.opts.Fault != "wait" || n.buf.Resv().Idle(poll.Write) {
		return nil
	}
	ctx, cancel := context.WithCancel(r)
	defer cancel()
	unpark := n.parked()
	if n.shooting.Load() > 0 {
		return nil
	}
	done := make(chan error, 1)
	go func() { done <- n.buf.Resv().Wait(ctx, poll.Write) }()
	look := time.NewTicker(parkedEvery)
	defer look.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-unpark:
			return nil
		case <-look.C:
		}
		switch kept, err := n.lookAround(r); {
		case err != nil:
			return err
		case kept:
			n.letGo()
			return nil
		}
	}
}

func (h *cpuHandle) write(r *request, p []byte, off int64, cached bool) (int, error) {
	n := h.node
	if cached {
		return n.buf.Launder(p, off)
	}
	end := off + int64(len(p))
	if end < 0 {
		return 0, syscall.EFBIG
	}
	if end > n.buf.Size() {
		if err := n.grow(h.caller, h, end); err != nil {
			return 0, err
		}
	}
	w, err := n.buf.Write(inodeLocked(h.ctx(r)), p, off)
	if err == nil {
		n.meta.touch()
	}
	return w, err
}

// fsync runs with the inode locked and everything dirty written back by the kernel.
func (h *cpuHandle) fsync(r *request) error { return h.node.buf.Flush(inodeLocked(h.ctx(r))) }

// poll answers by the fences: POLLIN without pending write fences, POLLOUT without any.
// Only these two bits exist, whatever the descriptor's mode, as in the kernel.
func (h *cpuHandle) poll(want uint32, kh uint64) uint32 {
	if kh != 0 {
		h.ph.register(kh)
		h.watch.Do(func() { // registered before anybody asks, and until release
			h.waiter = poll.NewWaiter(poll.In|poll.Out, h.ph.wake)
			h.node.buf.Resv().Watch(h.waiter)
		})
	}
	return uint32(h.node.buf.Resv().Poll(poll.Events(want) & (poll.In | poll.Out)))
}

// xattrs are the user.* attributes of a buffer, kept while it lives.
type xattrs struct {
	mu sync.Mutex
	m  map[string][]byte
	n  int // bytes of names and values
}

// Limits of attributes, in bytes: a value's is the kernel's XATTR_SIZE_MAX, the sum that of a list.
const (
	xattrValueMax = 64 << 10
	xattrSumMax   = 256 << 10
)

func (x *xattrs) get(name string) ([]byte, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	v, ok := x.m[name]
	if !ok {
		return nil, syscall.ENODATA
	}
	return v, nil
}

// set stores a copy. EEXIST and ENODATA as setxattr(2) has them; E2BIG, ENOSPC over the limits.
func (x *xattrs) set(name string, v []byte, flags uint32) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	old, ok := x.m[name]
	switch {
	case flags&unix.XATTR_CREATE != 0 && ok:
		return syscall.EEXIST
	case flags&unix.XATTR_REPLACE != 0 && !ok:
		return syscall.ENODATA
	case len(v) > xattrValueMax:
		return syscall.E2BIG
	}
	n := x.n + len(name) + len(v)
	if ok {
		n -= len(name) + len(old)
	}
	if n > xattrSumMax {
		return syscall.ENOSPC
	}
	if x.m == nil {
		x.m = map[string][]byte{}
	}
	x.m[name], x.n = slices.Clone(v), n
	return nil
}

func (x *xattrs) remove(name string) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	v, ok := x.m[name]
	if !ok {
		return syscall.ENODATA
	}
	delete(x.m, name)
	x.n -= len(name) + len(v)
	return nil
}

// list is the names, each ended by a NUL.
func (x *xattrs) list() []byte {
	x.mu.Lock()
	defer x.mu.Unlock()
	names := make([]string, 0, len(x.m))
	for name := range x.m {
		names = append(names, name+"\x00")
	}
	slices.Sort(names)
	return []byte(strings.Join(names, ""))
}
