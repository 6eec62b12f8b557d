package fs

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmabuffs/dmabuffs/poll"
)

// timelineDriver is what fences of timelines/ say their driver is.
const timelineDriver = "dmabuffs"

// maxTimelines bounds what mkdir, and sw_sync under `dmabuffs run`, can make.
const maxTimelines = 1 << 16

// timelineDir is timelines/: mkdir makes a timeline, rmdir ends it. Timelines
// cannot be renamed (EPERM): their fences bear their names.
//
// Lock order: timelineDir.mu, then timeline.mu, then poll's own.
type timelineDir struct {
	fsys   *fileSystem
	budget *fenceBudget

	mu   sync.RWMutex
	m    map[string]*timeline
	last uint64
}

func newTimelineDir(fsys *fileSystem) *timelineDir {
	return &timelineDir{fsys: fsys, budget: newFenceBudget(fsys.opts.NrFences), m: map[string]*timeline{}}
}

// find returns the timeline of that name, nil when there is none.
func (t *timelineDir) find(name string) *timeline {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[name]
}

// all returns the timelines, by name.
func (t *timelineDir) all() []*timeline {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*timeline, 0, len(t.m))
	for _, tl := range t.m {
		out = append(out, tl)
	}
	slices.SortFunc(out, func(a, b *timeline) int { return strings.Compare(a.tl.Name(), b.tl.Name()) })
	return out
}

// count is how many timelines there are, and pending points of all, sw_sync's included.
func (t *timelineDir) count() (timelines, pending int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.m), int(t.budget.pending.Load())
}

// create makes a timeline with value 0. EEXIST; ENOSPC: too many.
func (t *timelineDir) create(name string, c caller, mode uint32) (*timeline, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m[name] != nil {
		return nil, syscall.EEXIST
	}
	tl := poll.NewTimeline(timelineDriver, name)
	tl.SetTimeout(t.fsys.opts.FenceTimeout)
	if err := t.budget.join(tl); err != nil {
		return nil, err
	}
	t.last++
	n := &timeline{fsys: t.fsys, no: t.last, tl: tl, meta: newMeta(mode, c.uid, c.gid)}
	t.m[name] = n
	return n, nil
}

// remove takes the timeline's name away; false when somebody did before. The
// caller ends it, with no lock held.
func (t *timelineDir) remove(n *timeline) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	name := n.tl.Name()
	if t.m[name] != n {
		return false
	}
	delete(t.m, name)
	return true
}

// endAll ends every timeline, so that nobody waits for one after the mount.
func (t *timelineDir) endAll() {
	for _, n := range t.all() {
		if t.remove(n) {
			n.end()
		}
	}
}

var timelinesOps = &dirOps{
	lookup: func(d *dir, _ caller, name string) (node, error) {
		n := d.fsys.timelines.find(name)
		if n == nil {
			return nil, syscall.ENOENT
		}
		return n.dir(), nil
	},
	list: func(d *dir) []fuse.DirEntry {
		var out []fuse.DirEntry
		for _, n := range d.fsys.timelines.all() {
			out = append(out, fuse.DirEntry{Name: n.tl.Name(), Mode: syscall.S_IFDIR})
		}
		return out
	},
	mkdir: func(d *dir, c caller, name string, mode uint32) (node, error) {
		n, err := d.fsys.timelines.create(name, c, mode)
		if err != nil {
			return nil, err
		}
		d.fsys.events.add("timeline", "timeline", name, "pid", c.pid)
		return n.dir(), nil
	},
	rmdir: func(d *dir, _ caller, name string) error {
		n := d.fsys.timelines.find(name)
		if n == nil || !d.fsys.timelines.remove(n) {
			return syscall.ENOENT
		}
		n.end()
		return nil
	},
}

// timeline is timelines/<timeline>/.
type timeline struct {
	fsys *fileSystem
	no   uint64 // never reused
	tl   *poll.Timeline
	meta *meta

	mu     sync.Mutex
	owners map[*ownerHandle]struct{}
	widow  bool // an owner has closed while others were left
}

// end signals what is pending with ENOENT. Its name is gone already.
func (n *timeline) end() {
	n.fsys.events.add("timeline_gone", "timeline", n.tl.Name())
	n.fsys.timelines.budget.leave(n.tl)
	n.tl.End()
}

// dir is the node of timelines/<timeline>/.
func (n *timeline) dir() node {
	return n.fsys.nodes.secondary(nodeKey{"timeline", n.no, 0}, func(id uint64) node {
		return &dir{ident: id, fsys: n.fsys, ops: timelineOps, obj: n, meta: n.meta}
	})
}

// file is the key of one of its files.
func (n *timeline) file(name string) nodeKey { return nodeKey{"timeline/" + name, n.no, 0} }

// own makes a file belong to the timeline's owner, with the directory's rights as far as mode has them.
func (n *timeline) own(mode uint32) func(*fuse.Attr) {
	return func(a *fuse.Attr) {
		n.meta.attr(a)
		a.Mode = a.Mode&syscall.S_IFMT | a.Mode&mode
	}
}

var timelineOps = staticDir([]string{"owner", "points/", "value"}, func(d *dir, name string) node {
	n := d.obj.(*timeline)
	return d.fsys.nodes.secondary(n.file(name), func(id uint64) node {
		switch name {
		case "points":
			return &dir{ident: id, fsys: d.fsys, ops: pointsOps, obj: n, meta: n.meta}
		case "owner":
			return &ownerNode{ident: id, tl: n}
		}
		return &textNode{
			ident: id, fsys: d.fsys, own: n.own(0666),
			show:  func() (string, error) { return strconv.FormatUint(n.tl.Value(), 10) + "\n", nil },
			store: n.store,
		}
	})
})

// store is a write to value: N sets it, +N advances it. EINVAL: malformed, beyond
// 64 bits, or smaller than the value. ENOENT: the timeline has ended.
func (n *timeline) store(c caller, text string) error {
	text = strings.TrimSpace(text)
	by, advance := strings.CutPrefix(text, "+")
	v, err := parseSeqno(by)
	if err != nil {
		return fmt.Errorf("timeline value %.40q: %w", text, err)
	}
	if advance {
		err = n.tl.Advance(v)
	} else {
		err = n.tl.Set(v)
	}
	if err != nil {
		return err
	}
	n.fsys.events.add("value", "timeline", n.tl.Name(), "value", n.tl.Value(), "pid", c.pid)
	return nil
}

// parseSeqno reads 1 to 20 decimal digits, nothing else. EINVAL: it is none, or does not fit 64 bits.
func parseSeqno(s string) (uint64, error) {
	if len(s) > 20 {
		return 0, syscall.EINVAL
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, syscall.EINVAL
	}
	return v, nil
}

// pointsOps: points/ has every seqno there can be, and lists those that are
// pending and in use.
var pointsOps = &dirOps{
	volatile: true, // or the kernel would remember each point that ever was
	lookup: func(d *dir, _ caller, name string) (node, error) {
		seqno, err := parseSeqno(name)
		if err != nil {
			return nil, syscall.ENOENT
		}
		return d.obj.(*timeline).point(seqno), nil
	},
	list: func(d *dir) []fuse.DirEntry {
		var out []fuse.DirEntry
		for _, f := range d.obj.(*timeline).tl.Pending() {
			out = append(out, fuse.DirEntry{Name: strconv.FormatUint(f.Seqno(), 10), Mode: syscall.S_IFREG})
		}
		return out
	},
}

// point is the node of timelines/<timeline>/points/<seqno>.
func (n *timeline) point(seqno uint64) node {
	return n.fsys.nodes.secondary(nodeKey{"point", n.no, seqno}, func(id uint64) node {
		return &pointNode{ident: id, tl: n, seqno: seqno}
	})
}

// ownerNode is timelines/<timeline>/owner. Who may not write to the timeline's
// directory may not open it at all: the last close ends the timeline.
type ownerNode struct {
	ident uint64
	tl    *timeline
}

var _ node = (*ownerNode)(nil)

func (o *ownerNode) id() uint64 { return o.ident }

func (o *ownerNode) attr(a *fuse.Attr) {
	a.Mode, a.Nlink = syscall.S_IFREG, 1
	o.tl.meta.attr(a)
	w := a.Mode & 0222
	a.Mode = a.Mode&syscall.S_IFMT | w | w<<1
}

// setattr lets `exec 3> owner` truncate.
func (o *ownerNode) setattr(_ caller, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return syscall.EPERM
	}
	return nil
}

// open makes the caller an owner. ENOENT: the timeline has ended.
func (o *ownerNode) open(r *request, flags uint32) (handle, error) {
	n := o.tl
	h := &ownerHandle{tl: n, pid: r.pid, flags: flags}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tl.Ended() {
		return nil, syscall.ENOENT
	}
	if n.owners == nil {
		n.owners = map[*ownerHandle]struct{}{}
	}
	n.owners[h] = struct{}{}
	return h, nil
}

// ownerHandle is one open(2) of owner. Reading it gives a row "<pid> <comm>" for
// each owner; a descriptor that was opened only for reading, and is read, was a
// look (cat, grep -r) and owns nothing.
type ownerHandle struct {
	tl    *timeline
	pid   uint32
	flags uint32

	mu   sync.Mutex
	text string
	have bool
}

var _ reader = (*ownerHandle)(nil)

func (h *ownerHandle) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH}
}

func (h *ownerHandle) read(_ *request, p []byte, off int64, _ bool) (int, error) {
	if !wants(h.flags, syscall.O_WRONLY) {
		h.disown(false)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 || !h.have {
		h.text, h.have = h.tl.showOwners(), true
	}
	if off >= int64(len(h.text)) {
		return 0, nil
	}
	return copy(p, h.text[off:]), nil
}

func (n *timeline) showOwners() string {
	n.mu.Lock()
	pids := make([]uint32, 0, len(n.owners))
	for h := range n.owners {
		pids = append(pids, h.pid)
	}
	n.mu.Unlock()
	slices.Sort(pids)
	var b strings.Builder
	for _, pid := range pids {
		fmt.Fprintf(&b, "%d %s\n", processOf(pid), commOf(pid, ""))
	}
	return b.String()
}

func (h *ownerHandle) release() { h.disown(true) }

// disown takes the handle off the owners; the last of them takes the timeline
// along, if any of them has closed and not just looked.
func (h *ownerHandle) disown(closed bool) {
	n := h.tl
	n.mu.Lock()
	_, owner := n.owners[h]
	delete(n.owners, h)
	if owner && closed {
		n.widow = true
	}
	last := owner && len(n.owners) == 0 && n.widow
	n.mu.Unlock()
	if last && n.fsys.timelines.remove(n) {
		// The kernel first: who is woken by the end may make the timeline anew at once.
		if id, ok := n.fsys.nodes.known(nodeKey{"timeline", n.no, 0}); ok {
			n.fsys.conn.deleteEntry(n.fsys.dirs.timelines.ident, id, n.tl.Name())
		}
		n.end()
	}
}

// fenceBudget holds the mount to its nr_fences pending points, those of sw_sync
// timelines included. A point counts while something uses it: an open file, a
// buffer, a wait. What nobody uses goes by garbage collection, which is asked for
// here before anybody is refused.
type fenceBudget struct {
	limit   int64
	pending atomic.Int64

	mu        sync.Mutex
	timelines map[*poll.Timeline]struct{}

	collecting chan struct{} // held while collecting
	next       time.Time     // no collection before; guarded by collecting
}

func newFenceBudget(limit int64) *fenceBudget {
	return &fenceBudget{limit: limit, timelines: map[*poll.Timeline]struct{}{}, collecting: make(chan struct{}, 1)}
}

// join counts a new timeline's points. ENOSPC: there are too many timelines.
func (b *fenceBudget) join(tl *poll.Timeline) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.timelines) >= maxTimelines {
		return syscall.ENOSPC
	}
	tl.Count(&b.pending)
	b.timelines[tl] = struct{}{}
	return nil
}

// leave forgets a timeline that ends.
func (b *fenceBudget) leave(tl *poll.Timeline) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.timelines, tl)
}

// point is a fence of the timeline. ENOENT: it has ended. ENOSPC: over nr_fences.
// EINTR: while waiting for room. EINVAL: the seqno does not fit a sw_sync timeline.
func (b *fenceBudget) point(ctx context.Context, tl *poll.Timeline, seqno uint64) (*poll.Fence, error) {
	// Twice: a close that was just made may reach us during the first collection.
	for try := 0; b.pending.Load() >= b.limit; try++ {
		if f := existing(tl, seqno); f != nil {
			return f, nil
		}
		if try == 2 {
			return nil, syscall.ENOSPC
		}
		if err := b.collect(ctx); err != nil {
			return nil, err
		}
	}
	return tl.Point(seqno)
}

// existing is a point that needs no room: pending already, or passed.
func existing(tl *poll.Timeline, seqno uint64) *poll.Fence {
	for _, f := range tl.Pending() {
		if f.Seqno() == seqno {
			return f
		}
	}
	if tl.Driver() == timelineDriver && seqno <= tl.Value() {
		f, _ := tl.Point(seqno)
		return f
	}
	return nil
}

// collectShare is how much of the time collecting may take: one part in so many.
const collectShare = 10

// collect finds points that nobody uses. Whoever asks too often waits for it.
func (b *fenceBudget) collect(ctx context.Context) error {
	select {
	case b.collecting <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-b.collecting }()
	if b.pending.Load() < b.limit {
		return nil // somebody else made room
	}
	pause := time.NewTimer(time.Until(b.next))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	runtime.GC()
	b.mu.Lock()
	all := make([]*poll.Timeline, 0, len(b.timelines))
	for tl := range b.timelines {
		all = append(all, tl)
	}
	b.mu.Unlock()
	for _, tl := range all {
		tl.Sweep()
	}
	b.next = time.Now().Add(collectShare * time.Since(began))
	return nil
}
