package fs

import (
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is what a node id of the kernel means. Nodes stay thin: they decode, make
// one domain call, and encode.
type node interface {
	id() uint64
	// attr fills everything but the inode number.
	attr(a *fuse.Attr)
	// open attaches the caller. flags are those of open(2). Directories answer EISDIR.
	open(r *request, flags uint32) (handle, error)
}

// What a node may be besides. Missing ones are EPERM, as on a file system that cannot.
type (
	setattrer interface {
		setattr(c caller, in *fuse.SetAttrIn) error
	}
	allocator interface {
		fallocate(c caller, fh, off, n uint64, mode uint32) error
	}
	xattrer interface {
		xattrs() *xattrs
	}
)

// caller is who asks: ids in the mount's user namespace, pid the calling thread (0: the kernel).
type caller struct{ uid, gid, pid uint32 }

func callerOf(h *fuse.InHeader) caller { return caller{h.Uid, h.Gid, h.Pid} }

func (r *request) caller() caller { return caller{r.uid, r.gid, r.pid} }

// meta is what stat(2) says of a node that nobody else keeps: owner, mode, times.
type meta struct {
	mu                  sync.Mutex
	mode                uint32 // permission bits
	uid, gid            uint32
	atime, mtime, ctime time.Time
}

func newMeta(mode, uid, gid uint32) *meta {
	now := time.Now()
	return &meta{mode: mode & 07777, uid: uid, gid: gid, atime: now, mtime: now, ctime: now}
}

func (m *meta) attr(a *fuse.Attr) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a.Mode = a.Mode&syscall.S_IFMT | m.mode
	a.Uid, a.Gid = m.uid, m.gid
	a.SetTimes(&m.atime, &m.mtime, &m.ctime)
}

// touch says that contents (or names) changed.
func (m *meta) touch() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mtime = time.Now()
	m.ctime = m.mtime
}

// set applies chmod, chown and utimens. The kernel has checked the rights (default_permissions).
func (m *meta) set(in *fuse.SetAttrIn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if mode, ok := in.GetMode(); ok {
		m.mode = mode & 07777
	}
	if uid, ok := in.GetUID(); ok {
		m.uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		m.gid = gid
	}
	if t, ok := in.GetATime(); ok {
		m.atime = t
	}
	if t, ok := in.GetMTime(); ok {
		m.mtime = t
	}
	m.ctime = time.Now()
	if t, ok := in.GetCTime(); ok {
		m.ctime = t
	}
}

// Node ids: 1 is the root, buffers have their own numbers, everything else counts from here.
const firstSecondary = 1 << 48

// nodeKey identifies a secondary node: looked up twice it is the same one.
type nodeKey struct {
	kind string
	a, b uint64
}

type nodeRef struct {
	node    node
	key     nodeKey
	lookups uint64 // what the kernel will give back by FORGET; unused where pinned
	pinned  bool
}

// nodeTable has every node that the kernel may name.
type nodeTable struct {
	mu    sync.RWMutex
	byID  map[uint64]*nodeRef
	byKey map[nodeKey]*nodeRef
	next  atomic.Uint64
}

func newNodeTable() *nodeTable {
	t := &nodeTable{byID: map[uint64]*nodeRef{}, byKey: map[nodeKey]*nodeRef{}}
	t.next.Store(firstSecondary)
	return t
}

// get returns the node with that id, nil when the kernel names one that is gone.
func (t *nodeTable) get(id uint64) node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.byID[id]; r != nil {
		return r.node
	}
	return nil
}

// pin puts a node in for as long as its object lives, whatever the kernel remembers.
func (t *nodeTable) pin(n node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byID[n.id()] = &nodeRef{node: n, pinned: true}
}

func (t *nodeTable) unpin(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byID, id)
}

// secondary returns the node for key, made by make if the kernel does not know it yet.
// It is kept until the kernel forgets it; see looked.
func (t *nodeTable) secondary(key nodeKey, make func(id uint64) node) node {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.byKey[key]; r != nil {
		return r.node
	}
	id := t.next.Add(1)
	r := &nodeRef{node: make(id), key: key}
	t.byID[id] = r
	t.byKey[key] = r
	return r.node
}

// looked counts one lookup that was answered with the node.
func (t *nodeTable) looked(id uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if r := t.byID[id]; r != nil && !r.pinned {
		r.lookups++
	}
}

// forget takes n lookups back.
func (t *nodeTable) forget(id, n uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.byID[id]
	if r == nil || r.pinned {
		return
	}
	if r.lookups > n {
		r.lookups -= n
		return
	}
	delete(t.byID, id)
	delete(t.byKey, r.key)
}

// about returns the secondary nodes that the kernel knows of a buffer: its state.
func (t *nodeTable) about(buffer uint64) (ids []uint64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for i := range stateFiles {
		f := &stateFiles[i]
		for gen := uint64(0); ; gen++ {
			r := t.byKey[nodeKey{"state/" + f.name, buffer, gen}]
			if r == nil {
				break
			}
			ids = append(ids, r.node.id())
		}
	}
	return ids
}

func (t *nodeTable) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.byID)
}

// node resolves an id. ESTALE: the object is gone.
func (fsys *fileSystem) node(id uint64) (node, error) {
	if n := fsys.nodes.get(id); n != nil {
		return n, nil
	}
	return nil, syscall.ESTALE
}

// dirOps is one kind of directory. A nil entry is EPERM, except lookup and list.
type dirOps struct {
	lookup   func(d *dir, c caller, name string) (node, error)
	list     func(d *dir) []fuse.DirEntry
	create   func(d *dir, r caller, name string, mode, flags uint32) (node, handle, error)
	mkdir    func(d *dir, c caller, name string, mode uint32) (node, error)
	unlink   func(d *dir, c caller, name string) error
	rmdir    func(d *dir, c caller, name string) error
	rename   func(d *dir, c caller, name string, to *dir, newName string, flags uint32) error
	link     func(d *dir, c caller, target node, name string) (node, error)
	volatile bool // names change behind the kernel's back: it must ask each time
}

// dir is a directory: a kind, and the object that it shows.
type dir struct {
	ident uint64
	fsys  *fileSystem
	ops   *dirOps
	obj   any
	meta  *meta
}

var _ node = (*dir)(nil)

func (d *dir) id() uint64 { return d.ident }

func (d *dir) attr(a *fuse.Attr) {
	a.Mode = syscall.S_IFDIR
	a.Nlink = 2
	d.meta.attr(a)
}

func (d *dir) open(*request, uint32) (handle, error) { return nil, syscall.EISDIR }

func (d *dir) setattr(_ caller, in *fuse.SetAttrIn) error {
	d.meta.set(in)
	return nil
}

// staticDir makes lookup and list for a directory with fixed children; the names of
// those that are directories end in a slash. Listing makes no nodes: nobody would
// forget them.
func staticDir(names []string, child func(d *dir, name string) node) *dirOps {
	entries := make([]fuse.DirEntry, 0, len(names))
	for _, n := range names {
		e := fuse.DirEntry{Name: strings.TrimSuffix(n, "/"), Mode: syscall.S_IFREG}
		if e.Name != n {
			e.Mode = syscall.S_IFDIR
		}
		entries = append(entries, e)
	}
	return &dirOps{
		lookup: func(d *dir, _ caller, name string) (node, error) {
			for _, e := range entries {
				if e.Name == name {
					return child(d, name), nil
				}
			}
			return nil, syscall.ENOENT
		},
		list: func(*dir) []fuse.DirEntry { return entries },
	}
}

func entryOf(name string, n node) fuse.DirEntry {
	var a fuse.Attr
	n.attr(&a)
	return fuse.DirEntry{Name: name, Mode: a.Mode & syscall.S_IFMT, Ino: n.id()}
}
