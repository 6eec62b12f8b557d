package fs

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/poll"
)

// Sync files are open files of
//
//	timelines/<timeline>/points/<seqno>             one fence
//	state/<buffer>/write_fences, read_fences        the fences there were at open(2)
//	.control/sync/<id>                              what `dmabuffs run` gives to programs
//
// An ioctl that takes one names a descriptor, of which we learn the inode but not
// which open file it is. So an inode must say which fences are meant: a point's
// does, a control file's does, and of a file in state/ each reader gets an inode of
// its own (syncTable.take).

// pointNode is timelines/<timeline>/points/<seqno>.
type pointNode struct {
	ident uint64
	tl    *timeline
	seqno uint64
}

var _ node = (*pointNode)(nil)

func (p *pointNode) id() uint64 { return p.ident }

func (p *pointNode) attr(a *fuse.Attr) {
	a.Mode, a.Nlink = syscall.S_IFREG, 1
	p.tl.own(0444)(a)
}

// open gives a sync file. EACCES: for writing. ENOENT: the timeline has ended. ENOSPC: over nr_fences.
func (p *pointNode) open(r *request, flags uint32) (handle, error) {
	if wants(flags, syscall.O_WRONLY) {
		return nil, syscall.EACCES
	}
	fsys := p.tl.fsys
	f, err := fsys.timelines.budget.point(r, p.tl.tl, p.seqno)
	if err != nil {
		return nil, err
	}
	h := newSyncHandle(fsys, r, poll.NewSyncFile("", f))
	h.text = func() string { return statusText(f.Status()) + "\n" }
	h.dir, h.name = p.tl.file("points"), strconv.FormatUint(p.seqno, 10)
	fsys.syncs.add(h)
	return h, nil
}

// statusText is a fence's status as files show it: pending, signaled, or error -ENOENT.
func statusText(status int) string {
	switch {
	case status == 0:
		return "pending"
	case status > 0:
		return "signaled"
	}
	if name := unix.ErrnoName(syscall.Errno(-status)); name != "" {
		return "error -" + name
	}
	return fmt.Sprintf("error %d", status)
}

// syncHandle is one open sync file.
type syncHandle struct {
	fsys *fileSystem
	ino  uint64
	pid  uint32 // the thread that opened it
	sf   *poll.SyncFile
	text func() string // what read(2) gives; nil: EINVAL, as a sync_file's
	ph   pollHandle

	// dir and name, unless empty, are to be forgotten with the last close.
	dir  nodeKey
	name string

	watch   sync.Once
	unwatch func()

	mu   sync.Mutex
	last string
	have bool
}

var (
	_ reader  = (*syncHandle)(nil)
	_ ioctler = (*syncHandle)(nil)
	_ poller  = (*syncHandle)(nil)
)

func newSyncHandle(fsys *fileSystem, r *request, sf *poll.SyncFile) *syncHandle {
	h := &syncHandle{fsys: fsys, ino: r.node, pid: r.pid, sf: sf}
	h.ph.c = fsys.conn
	return h
}

func (h *syncHandle) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH}
}

func (h *syncHandle) release() {
	h.watch.Do(func() {})
	if h.unwatch != nil {
		h.unwatch()
	}
	if h.fsys.syncs.remove(h) && h.name != "" {
		h.fsys.uncache(h.dir, h.name)
	}
}

func (h *syncHandle) read(_ *request, p []byte, off int64, _ bool) (int, error) {
	if h.text == nil {
		return 0, syscall.EINVAL
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 || !h.have {
		h.last, h.have = h.text(), true
	}
	if off >= int64(len(h.last)) {
		return 0, nil
	}
	return copy(p, h.last[off:]), nil
}

// poll: POLLIN once all fences are signaled, with an error or without; nothing else ever.
func (h *syncHandle) poll(want uint32, kh uint64) uint32 {
	ready := h.sf.Ready(poll.Events(want))
	if ready != 0 || kh == 0 {
		return uint32(ready)
	}
	h.ph.register(kh)
	h.watch.Do(func() { h.unwatch = h.sf.Watch(h.ph.wake) })
	return uint32(h.sf.Ready(poll.Events(want))) // asked once registered, so that none is missed
}

// fencesHandle is one open(2) of state/<buffer>/write_fences or read_fences. Opened
// for reading it is a sync file of the fences there were, else only a way to add some.
type fencesHandle struct {
	*syncHandle // nil: not opened for reading
	node        *bufferNode
	usage       poll.Usage
	writes      bool
}

var (
	_ reader  = (*fencesHandle)(nil)
	_ writer  = (*fencesHandle)(nil)
	_ ioctler = (*fencesHandle)(nil)
	_ poller  = (*fencesHandle)(nil)
)

// openFences opens a buffer's file of the fences of one usage, by the inode of this
// generation. ESTALE, which makes the kernel look the name up again: somebody reads
// this inode already, or is about to.
func (fsys *fileSystem) openFences(n *bufferNode, usage poll.Usage, generation uint64, r *request, flags uint32) (handle, error) {
	h := &fencesHandle{node: n, usage: usage, writes: wants(flags, syscall.O_WRONLY)}
	if !wants(flags, syscall.O_RDONLY) {
		return h, nil
	}
	var all, pending []*poll.Fence
	for _, s := range n.buf.Resv().Slots(usage) {
		if usage == poll.Read && s.Usage != poll.Read {
			continue // those of write_fences
		}
		all = append(all, s.Fence)
		if !s.Fence.Signaled() {
			pending = append(pending, s.Fence)
		}
	}
	h.syncHandle = newSyncHandle(fsys, r, poll.NewSyncFile("", gather(pending)))
	h.text = func() string { return fenceRows(all) }
	if !fsys.syncs.take(h.syncHandle, snapKey{n.id(), usage}, generation) {
		return nil, syscall.ESTALE
	}
	return h, nil
}

// gather is one fence for all of fs: what dma_buf_export_sync_file puts into its sync file.
func gather(fs []*poll.Fence) *poll.Fence {
	switch len(fs) {
	case 0:
		return poll.Stub()
	case 1:
		return fs[0]
	}
	return poll.NewArray(fs, false)
}

// fenceRows is one row a fence: timeline, seqno, status, driver.
func fenceRows(fs []*poll.Fence) string {
	var b strings.Builder
	for _, f := range fs {
		fmt.Fprintf(&b, "%s %d %s %s\n", escape(f.TimelineName()), f.Seqno(), statusText(f.Status()), escape(f.Driver()))
	}
	return b.String()
}

func (h *fencesHandle) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH}
}

func (h *fencesHandle) release() {
	if h.syncHandle != nil {
		h.syncHandle.release()
	}
}

// read gives the rows. It is asked of readers only.
func (h *fencesHandle) read(r *request, p []byte, off int64, direct bool) (int, error) {
	if h.syncHandle == nil {
		return 0, syscall.EBADF
	}
	return h.syncHandle.read(r, p, off, direct)
}

// write adds the fence "<timeline>:<seqno>"; one write(2), one fence. EINVAL:
// malformed, or no such timeline. ENOENT: the buffer was removed. ENOSPC: over nr_fences.
func (h *fencesHandle) write(r *request, p []byte, _ int64, _ bool) (int, error) {
	fsys := h.node.fsys
	text := strings.TrimSuffix(string(p), "\n")
	i := strings.LastIndexByte(text, ':')
	if i <= 0 {
		return 0, syscall.EINVAL
	}
	seqno, err := parseSeqno(text[i+1:])
	if err != nil {
		return 0, err
	}
	tl := fsys.timelines.find(text[:i])
	if tl == nil {
		return 0, syscall.EINVAL
	}
	if h.node.removed() {
		return 0, syscall.ENOENT
	}
	f, err := fsys.timelines.budget.point(r, tl.tl, seqno)
	switch {
	case err == poll.ErrEnded:
		return 0, syscall.EINVAL // it went this moment: no such timeline
	case err != nil:
		return 0, err
	}
	h.node.addFence(r, f, h.usage)
	return len(p), nil
}

func (h *fencesHandle) ioctl(r *request, in *ioctlIn) (int32, error) {
	if h.syncHandle == nil {
		return 0, syscall.ENOTTY
	}
	return h.syncHandle.ioctl(r, in)
}

// poll: as a sync file; writing never blocks.
func (h *fencesHandle) poll(want uint32, kh uint64) uint32 {
	var ready uint32
	if h.writes {
		ready = want & unix.POLLOUT
	}
	if h.syncHandle != nil {
		ready |= h.syncHandle.poll(want, kh)
	}
	return ready
}

// removed reports whether the last name of a buffer is gone.
func (n *bufferNode) removed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.names == 0
}

// addFence puts a fence, or the leaves of a container, into the buffer's reservation.
func (n *bufferNode) addFence(r *request, f *poll.Fence, usage poll.Usage) {
	n.buf.Resv().Add(f, usage)
	if n.fsys.events.listening.Load() == 0 {
		return
	}
	n.mu.Lock()
	name := n.name
	n.mu.Unlock()
	for _, leaf := range poll.Unwrap(f) {
		n.fsys.events.add("fence", "buffer", name, "timeline", leaf.TimelineName(), "seqno", leaf.Seqno(), "usage", usage.String(), "pid", r.pid)
	}
}

// snapKey is a file of state/ that gives snapshots.
type snapKey struct {
	buffer uint64
	usage  poll.Usage
}

// snapFile counts its snapshots.
type snapFile struct {
	generation uint64 // of the inode that was opened last: lookup gives it
	open       int
}

// snapAsker is a thread that was sent to look a snapshot file up again.
type snapAsker struct {
	key snapKey
	tid uint32
}

// maxAskers bounds those who were killed on their way back.
const maxAskers = 4096

// syncTable has the open sync files by inode. The zero value is ready.
type syncTable struct {
	dev atomic.Uint64 // st_dev of the mount, 0 when not known yet

	noExport, noMerge, noLook, noMemory sync.Once // what was said in the log

	mu    sync.Mutex
	open  map[uint64][]*syncHandle
	snaps map[snapKey]*snapFile
	keys  map[*syncHandle]snapKey

	last uint64               // generation that was given
	sent map[snapAsker]uint64 // who is to look again, and the generation made for it
	kept map[uint64]snapAsker // the same, by generation
}

// add makes an open file known.
func (t *syncTable) add(h *syncHandle) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.addLocked(h)
}

// addLocked is add. t.mu is held.
func (t *syncTable) addLocked(h *syncHandle) {
	if t.open == nil {
		t.open = map[uint64][]*syncHandle{}
	}
	t.open[h.ino] = append(t.open[h.ino], h)
}

// generation tells inodes of a snapshot file apart: the node that lookup gives the
// thread is of this one.
func (t *syncTable) generation(key snapKey, tid uint32) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g, ok := t.sent[snapAsker{key, tid}]; ok {
		return g
	}
	if s := t.snaps[key]; s != nil {
		return s.generation
	}
	return 0
}

// take makes a snapshot known, unless its inode has one already or is kept for
// another thread. Then the caller is to have the kernel look the name up again, and
// gets an inode that nobody else can open meanwhile. It comes to a wrong one a second
// time only when it opens it by /proc/<pid>/fd, where there is no name to look up:
// then so be it.
func (t *syncTable) take(h *syncHandle, key snapKey, generation uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.snaps == nil {
		t.snaps, t.keys = map[snapKey]*snapFile{}, map[*syncHandle]snapKey{}
		t.sent, t.kept = map[snapAsker]uint64{}, map[uint64]snapAsker{}
	}
	me := snapAsker{key, h.pid}
	mine, again := t.sent[me]
	keeper, isKept := t.kept[generation]
	if !again && (len(t.open[h.ino]) > 0 || isKept && keeper != me) {
		if len(t.sent) >= maxAskers {
			clear(t.sent)
			clear(t.kept)
		}
		t.last++
		t.sent[me], t.kept[t.last] = t.last, me
		return false
	}
	delete(t.sent, me)
	delete(t.kept, mine)
	s := t.snaps[key]
	if s == nil {
		s = &snapFile{}
		t.snaps[key] = s
	}
	s.generation = generation
	s.open++
	t.keys[h] = key
	t.addLocked(h)
	return true
}

// remove forgets an open file, and reports whether it was the last of its inode.
func (t *syncTable) remove(h *syncHandle) (last bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left := slices.DeleteFunc(t.open[h.ino], func(o *syncHandle) bool { return o == h })
	last = len(left) == 0
	if last {
		delete(t.open, h.ino)
	} else {
		t.open[h.ino] = left
	}
	key, ok := t.keys[h]
	if !ok {
		return last
	}
	delete(t.keys, h)
	if s := t.snaps[key]; s != nil {
		if s.open--; s.open == 0 {
			delete(t.snaps, key)
		}
	}
	return last
}

// find is the sync file of an inode, nil when there is none. Where several
// snapshots share one, it is the one that the process of thread tid opened; nil
// when that does not tell either.
func (t *syncTable) find(ino uint64, tid uint32) *poll.SyncFile {
	t.mu.Lock()
	all := slices.Clone(t.open[ino])
	_, snapshot := t.keys[first(all)]
	t.mu.Unlock()
	switch {
	case len(all) == 0:
		return nil
	case len(all) == 1 || !snapshot:
		return all[0].sf // several opens of a point are one fence
	}
	mine := slices.DeleteFunc(all, func(h *syncHandle) bool { return !sameProcess(h.pid, tid) })
	if len(mine) != 1 {
		return nil
	}
	return mine[0].sf
}

func first(all []*syncHandle) *syncHandle {
	if len(all) == 0 {
		return nil
	}
	return all[0]
}
