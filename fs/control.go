package fs

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/exporter"
	"github.com/dmabuffs/dmabuffs/fs/uapi"
	"github.com/dmabuffs/dmabuffs/poll"
)

// The hidden directory .control, by which `dmabuffs run` has done what needs a
// descriptor in the program: it asks here for the thing, opens that, and gives the
// descriptor to the program itself. It is for the mount's user and root; nobody
// else finds it (ENOENT), and nothing of it is ever listed.
//
//	.control/ctl            open it, O_RDWR; ioctls CONTROL_… of fs/uapi make things, and answer their ids
//	.control/sync/<id>      a sync file as the kernel's: POLLIN, FILE_INFO, SET_DEADLINE; read(2) is EINVAL
//	.control/sw_sync/<id>   an open sw_sync: INC and GET_DEADLINE work on it as they are. Its last
//	                        close ends the timeline: what is pending signals with ENOENT
//	.control/buffers/<id>   a buffer without a name, with the access mode of its open(2); id is its inode
//	.control/sync_info      all sw_sync timelines, in the layout of debugfs sync/info
//	.control/open, tree     the devices that programs see: controldev.go
//
//	CONTROL_EXPORT          ino of a buffer (or of a device's view), flags -> sync id
//	                        EBADF: not a buffer. EINVAL: flags
//	CONTROL_MERGE           ino1, ino2 of open sync files, name -> sync id
//	                        EINVAL: ino1 is none. ENOENT: ino2 is none
//	CONTROL_SW_SYNC_NEW     name -> sw_sync id. ENOSPC: too many timelines
//	CONTROL_SW_SYNC_FENCE   ino of an open sw_sync, value -> sync id
//	                        EBADF: not one. ENOMEM: over nr_fences
//	CONTROL_BUFFER_NEW      exporter, size in bytes -> buffer id
//	                        ENOENT: no such exporter. ENOSPC, ENOMEM, EFBIG as any buffer
//	CONTROL_UDMABUF         parts of memfds -> buffer id. EBADFD, EINVAL as UDMABUF_CREATE
//
// An id is good for one open(2): from then on the thing lives as long as
// descriptors of it (buffers: and mappings), and its id is not found any more. What
// was not opened goes when the descriptor of ctl that asked for it is closed. One
// descriptor may have so many unopened: ENFILE beyond. Inodes are those that
// fstat(2) gives of descriptors on this mount; points/<seqno> and the snapshots in
// state/ are sync files as good as those here.

const (
	controlName = ".control"
	maxUnopened = 4096
	maxParts    = 4096 // of one udmabuf; the kernel's limit is 1024
)

// hidden finds what the root directory does not list.
func (fsys *fileSystem) hidden(c caller, name string) (node, error) {
	switch {
	case name == controlName:
		return fsys.controlDir(c)
	case strings.HasPrefix(name, flushPrefix):
		return fsys.flushers.lookup(c, name)
	}
	return nil, syscall.ENOENT
}

// mayControl: the user who runs the daemon, and root.
func mayControl(c caller) bool { return c.uid == 0 || c.uid == uint32(os.Getuid()) }

func (fsys *fileSystem) controlDir(c caller) (node, error) {
	if !mayControl(c) {
		return nil, syscall.ENOENT
	}
	return fsys.nodes.secondary(nodeKey{"control", 0, 0}, func(id uint64) node {
		return fsys.newControlDir(id, controlOps)
	}), nil
}

func (fsys *fileSystem) newControlDir(id uint64, ops *dirOps) *dir {
	return &dir{ident: id, fsys: fsys, ops: ops, meta: newMeta(0700, uint32(os.Getuid()), uint32(os.Getgid()))}
}

func listNothing(*dir) []fuse.DirEntry { return nil }

var controlOps = &dirOps{
	list: listNothing,
	lookup: func(d *dir, c caller, name string) (node, error) {
		var ops *dirOps
		switch name {
		case "sync", "sw_sync", "buffers":
			ops = madeOps[name]
		case "open":
			ops = inertOps
		case "tree":
			if !mayControl(c) {
				return nil, syscall.ENOENT
			}
			return d.fsys.shownNode("tree", shownTree), nil
		case "ctl", "sync_info":
		default:
			return nil, syscall.ENOENT
		}
		if !mayControl(c) {
			return nil, syscall.ENOENT
		}
		return d.fsys.nodes.secondary(madeDir(name), func(id uint64) node {
			if ops != nil {
				return d.fsys.newControlDir(id, ops)
			}
			t := &textNode{ident: id, fsys: d.fsys, own: ownPrivate}
			if name == "ctl" {
				t.store = func(caller, string) error { return syscall.EINVAL }
				t.opened = func(r *request, _ uint32) (handle, error) { return d.fsys.openCtl(r.caller()) }
			} else {
				t.show = d.fsys.control.info
			}
			return t
		}), nil
	},
}

// openCtl asks again: the kernel remembers the name for everybody.
func (fsys *fileSystem) openCtl(c caller) (handle, error) {
	if !mayControl(c) {
		return nil, syscall.EACCES
	}
	return &ctlHandle{fsys: fsys}, nil
}

// ownPrivate: for the mount's user alone.
func ownPrivate(a *fuse.Attr) {
	a.Mode |= 0600
	a.Uid, a.Gid = uint32(os.Getuid()), uint32(os.Getgid())
}

// madeOps are the directories of what ctl made.
var madeOps = map[string]*dirOps{"sync": newMadeOps("sync"), "sw_sync": newMadeOps("sw_sync"), "buffers": newMadeOps("buffers")}

func newMadeOps(kind string) *dirOps {
	return &dirOps{
		volatile: true, // an id is good once
		list:     listNothing,
		lookup: func(d *dir, c caller, name string) (node, error) {
			id, err := strconv.ParseUint(name, 10, 64)
			if err != nil || !mayControl(c) {
				return nil, syscall.ENOENT
			}
			return d.fsys.control.lookup(kind, id)
		},
	}
}

// madeDir is the key of .control/<kind>.
func madeDir(kind string) nodeKey { return nodeKey{"control/" + kind, 0, 0} }

// control has what was made and not opened yet, and the sw_sync timelines. The zero value is ready.
//
// Lock order: control.mu is a leaf; things are dropped after it.
type control struct {
	mu   sync.Mutex
	last uint64
	m    map[madeKey]*made
	sw   []*swSync // in the order in which they came
}

type madeKey struct {
	kind string
	id   uint64
}

// made is a thing that waits for its open(2).
type made struct {
	ctl  *ctlHandle
	node func(id uint64) node
	drop func() // when it is never opened; may be nil
}

// add keeps a thing, under a new id unless it has one. ENFILE: too many are waiting.
func (t *control) add(kind string, id uint64, m *made) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(m.ctl.waiting) >= maxUnopened {
		return 0, syscall.ENFILE
	}
	if id == 0 {
		t.last++
		id = t.last
	}
	key := madeKey{kind, id}
	if t.m == nil {
		t.m = map[madeKey]*made{}
	}
	if m.ctl.waiting == nil {
		m.ctl.waiting = map[madeKey]*made{}
	}
	t.m[key], m.ctl.waiting[key] = m, m
	return id, nil
}

func (t *control) lookup(kind string, id uint64) (node, error) {
	t.mu.Lock()
	m := t.m[madeKey{kind, id}]
	t.mu.Unlock()
	if m == nil {
		return nil, syscall.ENOENT
	}
	return m.node(id), nil
}

// opened takes a thing's id away: from now on its descriptors keep it. It reports
// whether this was the first time.
func (t *control) opened(kind string, id uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := madeKey{kind, id}
	m := t.m[key]
	if m == nil {
		return false
	}
	delete(t.m, key)
	delete(m.ctl.waiting, key)
	return true
}

// ctlHandle is one open(2) of .control/ctl.
type ctlHandle struct {
	fsys *fileSystem

	waiting map[madeKey]*made // guarded by control.mu

	mu    sync.Mutex
	lists map[uint64][]exporter.Part // of CONTROL_UDMABUF_MORE; their files are ours
	last  uint64
}

var _ ioctler = (*ctlHandle)(nil)

func (h *ctlHandle) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH}
}

func (h *ctlHandle) release() {
	t := &h.fsys.control
	t.mu.Lock()
	all := h.waiting
	h.waiting = nil
	for key := range all {
		delete(t.m, key)
	}
	t.mu.Unlock()
	for _, m := range all {
		if m.drop != nil {
			m.drop()
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, parts := range h.lists {
		closeParts(parts)
	}
	h.lists = nil
}

var ctlIoctls = map[uint32]func(h *ctlHandle, r *request, in *ioctlIn) error{
	uapi.CONTROL_EXPORT:        ctlExport,
	uapi.CONTROL_MERGE:         ctlMerge,
	uapi.CONTROL_SW_SYNC_NEW:   ctlSWSyncNew,
	uapi.CONTROL_SW_SYNC_FENCE: ctlSWSyncFence,
	uapi.CONTROL_BUFFER_NEW:    ctlBufferNew,
}

func (h *ctlHandle) ioctl(r *request, in *ioctlIn) (int32, error) {
	if uapi.Base(in.cmd) == uapi.CONTROL_UDMABUF {
		return 0, ctlUdmabuf(h, r, in)
	}
	do, ok := ctlIoctls[in.cmd]
	if !ok {
		return 0, syscall.ENOTTY
	}
	return 0, do(h, r, in)
}

// addSync keeps a sync file for its open(2).
func (h *ctlHandle) addSync(sf *poll.SyncFile) (uint64, error) {
	return h.fsys.control.add("sync", 0, &made{ctl: h, node: func(id uint64) node {
		return h.fsys.nodes.secondary(nodeKey{"sync", id, 0}, func(ino uint64) node {
			return &syncNode{ident: ino, fsys: h.fsys, no: id, sf: sf}
		})
	}})
}

// syncNode is .control/sync/<id>.
type syncNode struct {
	ident uint64
	fsys  *fileSystem
	no    uint64
	sf    *poll.SyncFile
}

var _ node = (*syncNode)(nil)

func (n *syncNode) id() uint64 { return n.ident }

func (n *syncNode) attr(a *fuse.Attr) {
	a.Mode, a.Nlink = syscall.S_IFREG, 1
	ownPrivate(a)
}

func (n *syncNode) open(r *request, flags uint32) (handle, error) {
	if wants(flags, syscall.O_WRONLY) {
		return nil, syscall.EACCES
	}
	h := newSyncHandle(n.fsys, r, n.sf)
	h.dir, h.name = madeDir("sync"), strconv.FormatUint(n.no, 10)
	n.fsys.syncs.add(h)
	n.fsys.control.opened("sync", n.no)
	return h, nil
}

// ctlExport is what EXPORT_SYNC_FILE does.
func ctlExport(h *ctlHandle, _ *request, in *ioctlIn) error {
	c, ok := uapi.DecodeControlExport(in.data)
	if !ok || !validSyncFlags(c.Flags) {
		return syscall.EINVAL
	}
	var n *bufferNode
	switch b := h.fsys.nodes.get(c.Ino).(type) {
	case *bufferNode:
		n = b
	case *dmaNode:
		n = b.buf
	default:
		return syscall.EBADF
	}
	var err error
	if c.ID, err = h.addSync(poll.NewSyncFile("", exportFences(n, c.Flags))); err == nil {
		c.Encode(in.out)
	}
	return err
}

// ctlMerge is what SYNC_IOC_MERGE does.
func ctlMerge(h *ctlHandle, r *request, in *ioctlIn) error {
	c, ok := uapi.DecodeControlMerge(in.data)
	if !ok {
		return syscall.EINVAL
	}
	a, b := h.fsys.syncs.find(c.Ino1, r.pid), h.fsys.syncs.find(c.Ino2, r.pid)
	switch {
	case a == nil:
		return syscall.EINVAL
	case b == nil:
		return syscall.ENOENT
	}
	var err error
	if c.ID, err = h.addSync(a.Merge(c.Name, b)); err == nil {
		c.Encode(in.out)
	}
	return err
}

// swSync is a sw_sync timeline, and the node of .control/sw_sync/<id>.
type swSync struct {
	fsys *fileSystem
	tl   *poll.Timeline

	mu   sync.Mutex
	open int // open files
}

// swNode is the node of .control/sw_sync/<id>.
type swNode struct {
	ident uint64
	no    uint64
	sw    *swSync
}

var _ node = (*swNode)(nil)

func (n *swNode) id() uint64 { return n.ident }

func (n *swNode) attr(a *fuse.Attr) {
	a.Mode, a.Nlink = syscall.S_IFREG, 1
	ownPrivate(a)
}

// open: any access mode, as of debugfs' file. ENOENT: it has ended.
func (n *swNode) open(*request, uint32) (handle, error) {
	sw := n.sw
	sw.mu.Lock()
	defer sw.mu.Unlock()
	if sw.tl.Ended() {
		return nil, syscall.ENOENT
	}
	sw.open++
	sw.fsys.control.opened("sw_sync", n.no)
	return &swHandle{sw, strconv.FormatUint(n.no, 10)}, nil
}

// setattr lets open(2) truncate, as debugfs does.
func (n *swNode) setattr(caller, *fuse.SetAttrIn) error { return nil }

// end is the release of sw_sync's file: what is pending signals with ENOENT.
func (sw *swSync) end() {
	sw.fsys.control.forget(sw)
	sw.fsys.timelines.budget.leave(sw.tl)
	sw.tl.End()
}

func (t *control) forget(sw *swSync) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sw = slices.DeleteFunc(t.sw, func(o *swSync) bool { return o == sw })
}

// swHandle is one open(2) of a sw_sync.
type swHandle struct {
	sw   *swSync
	name string
}

var _ ioctler = (*swHandle)(nil)

func (h *swHandle) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH}
}

func (h *swHandle) release() {
	h.sw.mu.Lock()
	h.sw.open--
	last := h.sw.open == 0
	h.sw.mu.Unlock()
	if last {
		h.sw.end()
		h.sw.fsys.uncache(madeDir("sw_sync"), h.name)
	}
}

// ioctl: INC and GET_DEADLINE are the kernel's; CREATE_FENCE makes a descriptor,
// which `dmabuffs run` does by CONTROL_SW_SYNC_FENCE.
func (h *swHandle) ioctl(r *request, in *ioctlIn) (int32, error) {
	switch in.cmd {
	case uapi.SW_SYNC_IOC_INC:
		inc, ok := uapi.DecodeInc(in.data)
		if !ok {
			return 0, syscall.EINVAL
		}
		return 0, h.sw.tl.Advance(uint64(inc.By))
	case uapi.SW_SYNC_GET_DEADLINE:
		return 0, h.getDeadline(r, in)
	case uapi.SW_SYNC_IOC_CREATE_FENCE:
		return 0, syscall.EOPNOTSUPP
	}
	return 0, syscall.ENOTTY
}

// getDeadline is SW_SYNC_GET_DEADLINE. EINVAL: deadline_ns or pad, no sync file, or
// not a single point of a sw_sync timeline. ENOENT: it has no deadline.
func (h *swHandle) getDeadline(r *request, in *ioctlIn) error {
	g, ok := uapi.DecodeGetDeadline(in.data)
	if !ok || g.NS != 0 || g.Pad != 0 {
		return syscall.EINVAL
	}
	sf := h.sw.fsys.syncFileOf(r, in.cmd, g.FD)
	if sf == nil || sf.Fence().Driver() != h.sw.tl.Driver() {
		return syscall.EINVAL
	}
	var err error
	if g.NS, err = poll.GetDeadline(sf.Fence()); err == nil {
		g.Encode(in.out)
	}
	return err
}

// ctlSWSyncNew is an open(2) of debugfs sync/sw_sync.
func ctlSWSyncNew(h *ctlHandle, _ *request, in *ioctlIn) error {
	c, ok := uapi.DecodeControlSWSyncNew(in.data)
	if !ok {
		return syscall.EINVAL
	}
	fsys := h.fsys
	sw := &swSync{fsys: fsys, tl: poll.NewSWSync(c.Name)}
	sw.tl.SetTimeout(fsys.opts.FenceTimeout)
	if err := fsys.timelines.budget.join(sw.tl); err != nil {
		return err
	}
	t := &fsys.control
	t.mu.Lock()
	t.sw = append(t.sw, sw)
	t.mu.Unlock()
	var err error
	c.ID, err = t.add("sw_sync", 0, &made{ctl: h, drop: sw.end, node: func(id uint64) node {
		return fsys.nodes.secondary(nodeKey{"sw_sync", id, 0}, func(ino uint64) node {
			return &swNode{ident: ino, no: id, sw: sw}
		})
	}})
	if err != nil {
		sw.end()
		return err
	}
	c.Encode(in.out)
	return nil
}

// ctlSWSyncFence is what SW_SYNC_IOC_CREATE_FENCE does.
func ctlSWSyncFence(h *ctlHandle, r *request, in *ioctlIn) error {
	c, ok := uapi.DecodeControlSWSyncFence(in.data)
	if !ok {
		return syscall.EINVAL
	}
	n, ok := h.fsys.nodes.get(c.Ino).(*swNode)
	if !ok {
		return syscall.EBADF
	}
	f, err := h.fsys.timelines.budget.point(r, n.sw.tl, uint64(c.Value))
	switch {
	case err == syscall.ENOSPC:
		return syscall.ENOMEM
	case err != nil:
		return err
	}
	if c.ID, err = h.addSync(poll.NewSyncFile("", f)); err == nil {
		c.Encode(in.out)
	}
	return err
}

// info is debugfs sync/info (drivers/dma-buf/sync_debug.c, sync_info_debugfs_show).
func (t *control) info() (string, error) {
	t.mu.Lock()
	all := slices.Clone(t.sw)
	t.mu.Unlock()
	var b strings.Builder
	b.WriteString("objs:\n--------------\n")
	for _, sw := range all {
		value := int32(sw.tl.Value())
		fmt.Fprintf(&b, "%s: %d\n", sw.tl.Name(), value)
		for _, f := range sw.tl.Pending() {
			fmt.Fprintf(&b, "  fence active: %d / %d\n", f.Seqno(), value)
		}
		b.WriteByte('\n')
	}
	b.WriteString("fences:\n--------------\n")
	return b.String(), nil
}

// addBuffer keeps a buffer for its open(2). The caller's reference is taken over.
func (h *ctlHandle) addBuffer(r *request, buf *exporter.Buffer) (uint64, error) {
	n := h.fsys.buffers.adoptUnnamed(buf, r.caller(), 0600)
	n.unnamed = true
	n.unopened.Store(true)
	id, err := h.fsys.control.add("buffers", n.id(), &made{
		ctl:  h,
		node: func(uint64) node { return n },
		drop: func() { n.put(false) },
	})
	if err != nil {
		n.put(false)
		return 0, err
	}
	h.fsys.events.add("export", "buffer", "", "exporter", buf.ExpName(), "pid", r.pid)
	return id, nil
}

// firstOpen gives back what kept a buffer until it was opened: h does now.
func (n *bufferNode) firstOpen() {
	if n.unopened.Load() && n.fsys.control.opened("buffers", n.id()) {
		n.unopened.Store(false)
		n.put(false)
	}
}

// uncache makes the kernel forget a name, and with it the inode, once nobody has
// it open: else it would remember each until memory runs short.
func (fsys *fileSystem) uncache(dir nodeKey, name string) {
	if id, ok := fsys.nodes.known(dir); ok {
		fsys.conn.invalEntry(id, name)
	}
}

// ctlBufferNew is what DMA_HEAP_IOCTL_ALLOC does.
func ctlBufferNew(h *ctlHandle, r *request, in *ioctlIn) error {
	c, ok := uapi.DecodeControlBufferNew(in.data)
	if !ok {
		return syscall.EINVAL
	}
	if int64(c.Size) < 0 {
		return syscall.EFBIG
	}
	name := c.Exporter
	if name == "" {
		name = h.fsys.opts.Exporter
	}
	e, err := h.fsys.registry.Lookup(name)
	if err != nil {
		return err
	}
	buf, err := e.Create(int64(c.Size))
	if err != nil {
		return err
	}
	if c.ID, err = h.addBuffer(r, buf); err == nil {
		c.Encode(in.out)
	}
	return err
}

// ctlUdmabuf is what UDMABUF_CREATE does.
func ctlUdmabuf(h *ctlHandle, r *request, in *ioctlIn) error {
	c, ok := uapi.DecodeControlUdmabuf(in.data)
	if !ok || c.Flags&^uapi.CONTROL_UDMABUF_MORE != 0 {
		return syscall.EINVAL
	}
	parts, err := openParts(r, h.fsys, c.Items)
	if err != nil {
		return err
	}
	parts, id, err := h.list(c.ID, parts, c.Flags&uapi.CONTROL_UDMABUF_MORE != 0)
	if err != nil {
		return err
	}
	if parts != nil {
		defer closeParts(parts)
		buf, err := h.fsys.registry.CreateFromMemfd(parts...)
		if err != nil {
			return err
		}
		if id, err = h.addBuffer(r, buf); err != nil {
			return err
		}
	}
	uapi.ControlUdmabuf{Flags: c.Flags, ID: id}.Encode(in.out)
	return nil
}

// maxLists is how many lists may be under way on one descriptor.
const maxLists = 64

// list adds parts to a list that earlier calls began (id 0: none did). With more it
// is kept, under the id returned; else its parts are returned. EINVAL: no such
// list, too many parts, none at all. ENFILE: too many lists. After an error all
// files are closed.
func (h *ctlHandle) list(id uint64, parts []exporter.Part, more bool) ([]exporter.Part, uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	had, ok := h.lists[id]
	delete(h.lists, id)
	parts = append(had, parts...)
	var err error
	switch {
	case id != 0 && !ok, len(parts) == 0, len(parts) > maxParts:
		err = syscall.EINVAL
	case more && len(h.lists) >= maxLists:
		err = syscall.ENFILE
	case !more:
		return parts, 0, nil
	}
	if err != nil {
		closeParts(parts)
		return nil, 0, err
	}
	if id == 0 {
		h.last++
		id = h.last
	}
	if h.lists == nil {
		h.lists = map[uint64][]exporter.Part{}
	}
	h.lists[id] = parts
	return nil, id, nil
}

// closeParts closes each file once: parts may share one.
func closeParts(parts []exporter.Part) {
	for _, p := range parts {
		_ = p.File.Close() // the second time is os.ErrClosed
	}
}

// openParts opens the memfds of a caller. EBADFD: one is closed, or no memfd.
func openParts(r *request, fsys *fileSystem, items []uapi.ControlItem) (parts []exporter.Part, err error) {
	defer func() {
		if err != nil {
			closeParts(parts)
			parts = nil
		}
	}()
	files := map[int32]*os.File{}
	for _, i := range items {
		f := files[i.FD]
		if f == nil {
			if f, err = openMemfd(r.pid, i.FD); err != nil {
				return parts, err
			}
			files[i.FD] = f
		}
		parts = append(parts, exporter.Part{File: f, Offset: int64(i.Offset), N: int64(i.Size)})
	}
	return parts, nil
}

// openMemfd opens the file behind a descriptor of a thread anew, once it has the
// looks of a memfd: anything else might be a device, a pipe, or a file of ours.
func openMemfd(tid uint32, fd int32) (*os.File, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", tid, fd)
	held, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, syscall.EBADFD)
	}
	defer unix.Close(held)
	self := fmt.Sprintf("/proc/thread-self/fd/%d", held)
	name, err := os.Readlink(self)
	if err != nil || !strings.HasPrefix(name, "/memfd:") {
		return nil, fmt.Errorf("%s: %w", path, syscall.EBADFD)
	}
	f, err := unix.Open(self, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(f), path), nil
}
