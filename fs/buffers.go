package fs

import (
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// Flags of renameat2(2).
const (
	renameNoReplace = 1 << 0
	renameExchange  = 1 << 1
)

// bufferDir has the names of all buffers: buffers/ shows them all, exporters/<e>/ those of one exporter.
//
// Lock order: bufferDir.mu, then bufferNode.mu.
type bufferDir struct {
	fsys *fileSystem

	mu    sync.RWMutex
	names map[string]*bufferNode
}

func newBufferDir(fsys *fileSystem) *bufferDir {
	return &bufferDir{fsys: fsys, names: map[string]*bufferNode{}}
}

// find returns the buffer of that name, nil when there is none.
func (t *bufferDir) find(name string) *bufferNode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.names[name]
}

func (t *bufferDir) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.names)
}

// all returns the names in order, of one exporter or ("") of all.
func (t *bufferDir) all(exporterName string) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]string, 0, len(t.names))
	for name, n := range t.names {
		if exporterName == "" || n.exp == exporterName {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// nameOf returns a name of the buffer with that number, "" when it has none left.
// It is for reports: it looks at every name.
func (t *bufferDir) nameOf(id uint64) string {
	n, _ := t.fsys.nodes.get(id).(*bufferNode)
	if n == nil {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.name
}

// create exports a new, empty buffer under a name. EEXIST, ENOSPC over nr_buffers.
func (t *bufferDir) create(exporterName, name string, c caller, mode uint32) (*bufferNode, error) {
	e, err := t.fsys.registry.Lookup(exporterName)
	if err != nil {
		return nil, err
	}
	if t.find(name) != nil {
		return nil, syscall.EEXIST
	}
	buf, err := e.Create(0)
	if err != nil {
		return nil, err
	}
	n, err := t.adopt(buf, name, c, mode)
	if err != nil {
		buf.Put()
		return nil, err
	}
	t.fsys.events.add("export", "buffer", name, "exporter", exporterName, "pid", c.pid)
	return n, nil
}

// adopt names a buffer that exists; the name takes over the caller's reference. EEXIST.
func (t *bufferDir) adopt(buf *exporter.Buffer, name string, c caller, mode uint32) (*bufferNode, error) {
	n := newBufferNode(t.fsys, buf, c, mode)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names[name] != nil {
		return nil, syscall.EEXIST
	}
	t.names[name] = n
	n.nameAdded(name)
	t.fsys.nodes.pin(n)
	return n, nil
}

// adoptUnnamed makes a buffer that never has a name; the caller's reference stays the caller's.
func (t *bufferDir) adoptUnnamed(buf *exporter.Buffer, c caller, mode uint32) *bufferNode {
	n := newBufferNode(t.fsys, buf, c, mode)
	t.fsys.nodes.pin(n)
	return n
}

// remove drops a name. The buffer goes with its last reference. ENOENT.
func (t *bufferDir) remove(name string) (*bufferNode, error) {
	t.mu.Lock()
	n := t.names[name]
	if n == nil {
		t.mu.Unlock()
		return nil, syscall.ENOENT
	}
	delete(t.names, name)
	other := ""
	for alias, m := range t.aliasesLocked(n) {
		if m == n {
			other = alias
			break
		}
	}
	t.mu.Unlock()
	n.nameDropped(name, other)
	return n, nil
}

// aliasesLocked finds other names of a linked buffer; most have none, and cost nothing. t.mu is held.
func (t *bufferDir) aliasesLocked(n *bufferNode) map[string]*bufferNode {
	n.mu.Lock()
	linked := n.names > 1
	n.mu.Unlock()
	if !linked {
		return nil
	}
	return t.names
}

func (t *bufferDir) removeAll() {
	for _, name := range t.all("") {
		_, _ = t.remove(name)
	}
}

// rename moves a name; an existing target is unlinked (returned, to drop), or exchanged.
func (t *bufferDir) rename(name, newName string, flags uint32) error {
	t.mu.Lock()
	n, old := t.names[name], t.names[newName]
	switch {
	case n == nil, flags&renameExchange != 0 && old == nil:
		t.mu.Unlock()
		return syscall.ENOENT
	case flags&renameNoReplace != 0 && old != nil:
		t.mu.Unlock()
		return syscall.EEXIST
	case n == old:
		t.mu.Unlock()
		return nil // two names of one buffer: rename(2) does nothing
	}
	t.names[newName] = n
	if flags&renameExchange != 0 {
		t.names[name] = old
		n.renamed(name, newName)
		old.renamed(newName, name)
		t.mu.Unlock()
		return nil
	}
	delete(t.names, name)
	n.renamed(name, newName)
	t.mu.Unlock()
	if old != nil {
		old.nameDropped(newName, "")
	}
	return nil
}

// link gives a buffer another name, and that name a reference. EEXIST, EMLINK never.
func (t *bufferDir) link(n *bufferNode, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.names[name] != nil {
		return syscall.EEXIST
	}
	n.mu.Lock()
	gone := n.names == 0 // its last name went meanwhile
	n.mu.Unlock()
	if gone {
		return syscall.ENOENT
	}
	n.buf.Get()
	t.names[name] = n
	n.nameAdded(name)
	return nil
}

// changed makes the kernel forget names that went away in d by its own request: those
// in state/, and in buffers/ where d is one exporter's directory. Directories of
// exporters and devices need nothing: they are volatile. Were they not, two clients
// that each hold one directory's lock could have us wait for both. Nobody holds the
// lock of state/ while we have to answer him: nothing can be made there.
func (d *dir) changed(names ...string) {
	for _, name := range names {
		d.fsys.conn.invalEntry(idState, name)
		if d.ident != idBuffers {
			d.fsys.conn.invalEntry(idBuffers, name)
		}
	}
}

// exporterOf is the exporter of what is created in d: buffers/ has the default.
func (d *dir) exporterOf() string {
	if name, ok := d.obj.(string); ok {
		return name
	}
	return d.fsys.opts.Exporter
}

// shows reports whether d shows buffer n.
func (d *dir) shows(n *bufferNode) bool {
	name, one := d.obj.(string)
	return !one || name == n.exp
}

// findBuffer looks a name up in buffers/ or in one exporter's directory.
func findBuffer(d *dir, name string) (*bufferNode, error) {
	if n := d.fsys.buffers.find(name); n != nil && d.shows(n) {
		return n, nil
	}
	return nil, syscall.ENOENT
}

// buffersOps serves buffers/, and exporterOps, which is the same, exporters/<e>/.
var (
	buffersOps, exporterOps dirOps
)

func init() {
	buffersOps, exporterOps = newBuffersOps(false), newBuffersOps(true)
}

func newBuffersOps(volatile bool) dirOps {
	return dirOps{
		volatile: volatile,
		lookup: func(d *dir, _ caller, name string) (node, error) {
			n, err := findBuffer(d, name)
			if err != nil {
				return nil, err
			}
			return n, nil
		},
		list: func(d *dir) []fuse.DirEntry {
			exp, _ := d.obj.(string)
			t := d.fsys.buffers
			t.mu.RLock()
			defer t.mu.RUnlock()
			out := make([]fuse.DirEntry, 0, len(t.names))
			for name, n := range t.names {
				if exp == "" || n.exp == exp {
					out = append(out, fuse.DirEntry{Name: name, Mode: syscall.S_IFREG, Ino: n.id()})
				}
			}
			slices.SortFunc(out, func(a, b fuse.DirEntry) int { return strings.Compare(a.Name, b.Name) })
			return out
		},
		create: func(d *dir, c caller, name string, mode, flags uint32) (node, handle, error) {
			n, err := d.fsys.buffers.create(d.exporterOf(), name, c, mode)
			if err != nil {
				return nil, nil, err
			}
			h, err := n.openView(c, flags&^syscall.O_TRUNC)
			if err != nil {
				_, _ = d.fsys.buffers.remove(name)
				return nil, nil, err
			}
			return n, h, nil
		},
		unlink: func(d *dir, c caller, name string) error {
			if _, err := findBuffer(d, name); err != nil {
				return err
			}
			if _, err := d.fsys.buffers.remove(name); err != nil {
				return err
			}
			d.fsys.events.add("unlink", "buffer", name, "pid", c.pid)
			d.changed(name)
			return nil
		},
		rename: func(d *dir, c caller, name string, to *dir, newName string, flags uint32) error {
			if to.ops != &buffersOps && to.ops != &exporterOps {
				return syscall.EXDEV
			}
			n, err := findBuffer(d, name)
			if err != nil {
				return err
			}
			if !to.shows(n) {
				return syscall.EXDEV // the exporter is fixed
			}
			if old := d.fsys.buffers.find(newName); old != nil && (!to.shows(old) || flags&renameExchange != 0 && !d.shows(old)) {
				return syscall.EXDEV
			}
			if err := d.fsys.buffers.rename(name, newName, flags); err != nil {
				return err
			}
			d.fsys.events.add("rename", "buffer", name, "to", newName, "pid", c.pid)
			if to == d {
				d.changed(name, newName)
			} else { // the kernel holds both directories until we have answered
				go d.fsys.dirs.byExporter[n.exp].changed(name, newName)
			}
			return nil
		},
		link: func(d *dir, c caller, target node, name string) (node, error) {
			n, ok := target.(*bufferNode)
			if !ok {
				return nil, syscall.EPERM
			}
			if !d.shows(n) {
				return nil, syscall.EXDEV
			}
			old := n.label()
			if err := d.fsys.buffers.link(n, name); err != nil {
				return nil, err
			}
			d.fsys.events.add("link", "buffer", old, "to", name, "pid", c.pid)
			return n, nil
		},
	}
}
