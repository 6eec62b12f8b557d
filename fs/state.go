package fs

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/attach"
	"github.com/dmabuffs/dmabuffs/exporter"
	"github.com/dmabuffs/dmabuffs/poll"
)

// stateOps: state/ has one directory for each name of buffers/.
var stateOps = &dirOps{
	lookup: func(d *dir, _ caller, name string) (node, error) {
		n := d.fsys.buffers.find(name)
		if n == nil {
			return nil, syscall.ENOENT
		}
		return d.fsys.stateDir(n), nil
	},
	list: func(d *dir) []fuse.DirEntry {
		names := d.fsys.buffers.all("")
		out := make([]fuse.DirEntry, 0, len(names))
		for _, name := range names {
			out = append(out, fuse.DirEntry{Name: name, Mode: syscall.S_IFDIR})
		}
		return out
	},
}

// stateDir is the node of state/<buffer>/. Two names of one buffer show one directory.
func (fsys *fileSystem) stateDir(n *bufferNode) node {
	return fsys.nodes.secondary(nodeKey{"state", n.id(), 0}, func(id uint64) node {
		return &dir{ident: id, fsys: fsys, ops: stateBufferOps, obj: n, meta: newMeta(0555, fsys.opts.UID, fsys.opts.GID)}
	})
}

// stateFile is one file of state/<buffer>/.
type stateFile struct {
	name string
	// show makes the text.
	show func(n *bufferNode) (string, error)
	// fences: opening the file is a snapshot of the fences of that usage, and
	// writing to it adds one. Then show is nil.
	fences bool
	usage  poll.Usage
}

// stateFiles, in the order in which they are listed. Every field of a row that
// comes from outside is escaped (see escape), so that a row stays a row.
var stateFiles = []stateFile{
	// size in bytes.
	{name: "size", show: func(n *bufferNode) (string, error) { return line(n.buf.Size()) }},
	{name: "exporter_name", show: func(n *bufferNode) (string, error) { return escapeLine(n.buf.ExpName()) + "\n", nil }},
	// name is what DMA_BUF_SET_NAME said: nothing at all until then, as there is no
	// value; an empty line for an empty name.
	{name: "name", show: showName},
	{name: "domain", show: func(n *bufferNode) (string, error) { return n.buf.Domain(), nil }},
	// refcount is what the kernel calls file_count: its names, opens and devices.
	{name: "refcount", show: func(n *bufferNode) (string, error) { return line(n.buf.Refs()) }},
	{name: "vmapping_counter", show: func(n *bufferNode) (string, error) { return line(n.buf.VmappingCounter()) }},
	{name: "attachments", show: showAttachments},
	{name: "mappings", show: showMappings},
	{name: "sg_table", show: showSGTable},
	{name: "stats", show: showStats},
	{name: "write_fences", fences: true, usage: poll.Write},
	{name: "read_fences", fences: true, usage: poll.Read},
}

func line(v any) (string, error) { return fmt.Sprintln(v), nil }

var stateBufferOps = &dirOps{
	lookup: func(d *dir, c caller, name string) (node, error) {
		for i := range stateFiles {
			if f := &stateFiles[i]; f.name == name {
				return f.node(d.fsys, d.obj.(*bufferNode), c), nil
			}
		}
		return nil, syscall.ENOENT
	},
	list: func(*dir) []fuse.DirEntry {
		out := make([]fuse.DirEntry, 0, len(stateFiles))
		for i := range stateFiles {
			out = append(out, fuse.DirEntry{Name: stateFiles[i].name, Mode: syscall.S_IFREG})
		}
		return out
	},
}

func (f *stateFile) node(fsys *fileSystem, n *bufferNode, c caller) node {
	key := nodeKey{"state/" + f.name, n.id(), 0}
	if f.fences {
		key.b = fsys.syncs.generation(snapKey{n.id(), f.usage}, c.pid) // each reader has an inode of its own
	}
	return fsys.nodes.secondary(key, func(id uint64) node {
		t := &textNode{ident: id, fsys: fsys}
		mask := uint32(0444)
		if f.fences {
			mask = 0666
			t.opened = func(r *request, flags uint32) (handle, error) { return fsys.openFences(n, f.usage, key.b, r, flags) }
			t.store = func(caller, string) error { return syscall.EACCES } // what opened returns does it
		} else {
			t.show = func() (string, error) {
				if !n.alive() {
					return "", syscall.ENODEV
				}
				return f.show(n)
			}
		}
		t.own = func(a *fuse.Attr) { // the buffer's own owner and rights
			n.meta.attr(a)
			a.Mode = a.Mode&syscall.S_IFMT | a.Mode&mask
		}
		return t
	})
}

// alive reports whether the buffer was not released yet.
func (n *bufferNode) alive() bool {
	m, _ := n.fsys.nodes.get(n.id()).(*bufferNode)
	return m == n
}

func showName(n *bufferNode) (string, error) {
	name, named := n.buf.Name()
	if !named {
		return "", nil
	}
	return escapeLine(name) + "\n", nil
}

// access is how an open file may be used.
func access(flags uint32) string {
	switch flags & syscall.O_ACCMODE {
	case syscall.O_WRONLY:
		return "w"
	case syscall.O_RDWR:
		return "rw"
	}
	return "r"
}

// showAttachments is one row an attachment, in the order in which they came:
//
//	cpu <pid> <comm> <r|w|rw>                          an open file of buffers/<buffer>
//	device <device> <pid> <comm> <direction>           an open file of devices/<device>/buffers/<buffer>
//
// pid is who opened it; a descriptor that was inherited or sent is still that one.
func showAttachments(n *bufferNode) (string, error) {
	n.mu.Lock()
	flags := make(map[*attach.Attachment]uint32, len(n.views))
	for h := range n.views {
		if h.att != nil {
			flags[h.att] = h.flags
		}
	}
	n.mu.Unlock()
	var b strings.Builder
	for _, a := range attachmentsOf(n.buf) {
		pid, comm := a.Owner()
		if dev := a.Dev(); dev != nil {
			fmt.Fprintf(&b, "device %s %d %s %s\n", escape(dev.Name()), processOf(pid), commOf(pid, comm), a.Direction())
			continue
		}
		fmt.Fprintf(&b, "cpu %d %s %s\n", processOf(pid), commOf(pid, comm), access(flags[a]))
	}
	return b.String(), nil
}

// attachmentsOf are a buffer's attachments as package attach has them.
func attachmentsOf(b *exporter.Buffer) []*attach.Attachment {
	var out []*attach.Attachment
	for _, imp := range b.Attachments() {
		if a, ok := imp.(*attach.Attachment); ok {
			out = append(out, a)
		}
	}
	return out
}

// showMappings is one row a mapping:
//
//	dma <device> <direction> <pid> <comm>              a live map_dma_buf
//	vmap <count>                                       kernel mappings (vmap), if there are
//	cpu <pid> <comm> <perms> <page> <pages>            part of buffers/<buffer> in a process' address space
//	view <device> <pid> <comm> <perms> <page> <pages>  part of a device's view in a process' address space
//
// FUSE tells nothing of mmap(2): the last two are read from /proc/<pid>/maps, of
// those processes that the daemon may look into. perms are those of maps: rw-s.
func showMappings(n *bufferNode) (string, error) {
	var b strings.Builder
	for _, a := range attachmentsOf(n.buf) {
		if dev := a.Dev(); dev != nil && a.Mapped() {
			pid, comm := a.Owner()
			fmt.Fprintf(&b, "dma %s %s %d %s\n", escape(dev.Name()), a.Direction(), processOf(pid), commOf(pid, comm))
		}
	}
	if v := n.buf.VmappingCounter(); v > 0 {
		fmt.Fprintf(&b, "vmap %d\n", v)
	}
	inodes := map[uint64]string{n.id(): "cpu"}
	for _, d := range n.fsys.devices.all() {
		if id, ok := n.fsys.nodes.known(nodeKey{"dma", d.no, n.id()}); ok {
			inodes[id] = "view " + escape(d.dev.Name())
		}
	}
	for _, m := range mapsOf(n.fsys.dev(), inodes) {
		fmt.Fprintf(&b, "%s %d %s %s %d %d\n", inodes[m.inode], m.pid, commOf(m.pid, ""), m.perms, m.page, m.pages)
	}
	return b.String(), nil
}

// known returns the id of a secondary node that the kernel may have.
func (t *nodeTable) known(key nodeKey) (uint64, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.byKey[key]; r != nil {
		return r.node.id(), true
	}
	return 0, false
}

// dev is the mount's device number as /proc/<pid>/maps prints it, "" when it is not known.
func (fsys *fileSystem) dev() string {
	if fsys.dir == "" {
		return ""
	}
	var st unix.Statx_t
	// The kernel's own answer: this must not become a request to ourselves.
	if err := unix.Statx(unix.AT_FDCWD, fsys.dir, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, 0, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%02x:%02x", st.Dev_major, st.Dev_minor)
}

// vma is a part of a file in a process' address space.
type vma struct {
	pid         uint32
	perms       string
	page, pages uint64
	inode       uint64
}

// procPatience is how long all maps may take: whoever holds a process' mmap lock
// may be waiting for us.
const procPatience = 2 * time.Second

// mapsOf looks through the address spaces of all processes for inodes of the
// device dev. A process that cannot be read (rights, or gone) has no rows.
func mapsOf(dev string, inodes map[uint64]string) []vma {
	if dev == "" {
		return nil
	}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	pids := make(chan uint32)
	var (
		mu  sync.Mutex
		out []vma
	)
	ctx, cancel := context.WithTimeout(context.Background(), procPatience)
	defer cancel()
	done := make(chan struct{})
	go func() { // one that gets stuck stays behind, alone
		defer close(done)
		for pid := range pids {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
			if err != nil {
				continue
			}
			found := parseMaps(string(text), dev, pid, inodes)
			mu.Lock()
			out = append(out, found...)
			mu.Unlock()
		}
	}()
	for _, dir := range dirs {
		pid, err := strconv.ParseUint(filepath.Base(dir), 10, 32)
		if err != nil {
			continue
		}
		select {
		case pids <- uint32(pid):
		case <-ctx.Done():
		}
	}
	close(pids)
	select {
	case <-done:
	case <-ctx.Done():
	}
	mu.Lock()
	defer mu.Unlock()
	all := slices.Clone(out)
	slices.SortStableFunc(all, func(a, b vma) int { return cmp.Compare(a.pid, b.pid) })
	return all
}

// parseMaps reads /proc/<pid>/maps: start-end perms offset dev inode path, in
// bytes and hexadecimal but for the inode.
func parseMaps(text, dev string, pid uint32, inodes map[uint64]string) (out []vma) {
	for row := range strings.Lines(text) {
		f := strings.Fields(row)
		if len(f) < 5 || f[3] != dev {
			continue
		}
		inode, err := strconv.ParseUint(f[4], 10, 64)
		if err != nil || inodes[inode] == "" {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		off, err3 := strconv.ParseUint(f[2], 16, 64)
		if err1 != nil || err2 != nil || err3 != nil {
			continue
		}
		out = append(out, vma{pid, f[1], off / exporter.PageSize, (end - start) / exporter.PageSize, inode})
	}
	return out
}

// showSGTable is one row a segment of the placement, none before the first DMA map:
//
//	<page offset> <DMA address, hex> <bytes>
func showSGTable(n *bufferNode) (string, error) {
	sgt := n.buf.SGTableOf()
	if sgt == nil {
		return "", nil
	}
	var b strings.Builder
	for _, s := range sgt.Segments {
		fmt.Fprintf(&b, "%d 0x%x %d\n", s.Offset, s.Addr, s.Len)
	}
	return b.String(), nil
}

// showStats is `<name> <value>` for each counter of the buffer, then who caused
// faults and whose brackets conflicts broke into, most of them first:
//
//	shootdowns        times that CPU mappings were shot down
//	pages_zapped      pages of 4096 bytes taken from the CPU's domain by them
//	bytes_laundered   bytes of mappings written back
//	faults            page faults answered (readahead included)
//	pages_faulted     pages that they brought to the CPU
//	conflicts         pieces of device work begun inside somebody's bracket
//	reads, writes     read(2) and write(2) calls, as far as they reach the daemon
//	fault_by <pid> <comm> <faults>
//	conflict_by <pid> <comm> <conflicts>
//
// Of more than 256 the rest shares a row with pid and comm `-`.
func showStats(n *bufferNode) (string, error) {
	s := n.buf.Stats()
	var b strings.Builder
	for _, row := range []struct {
		name  string
		value uint64
	}{
		{"shootdowns", s.Shootdowns},
		{"pages_zapped", s.PagesZapped},
		{"bytes_laundered", s.BytesLaundered},
		{"faults", s.Faults},
		{"pages_faulted", s.PagesFaulted},
		{"conflicts", s.Conflicts},
		{"reads", s.Reads},
		{"writes", s.Writes},
	} {
		fmt.Fprintf(&b, "%s %d\n", row.name, row.value)
	}
	faults := map[string]uint64{}
	for tid, k := range s.FaultsBy {
		if tid == ^uint32(0) {
			faults["- -"] += k
		} else { // FUSE counts threads, people count processes
			faults[fmt.Sprintf("%d %s", processOf(tid), commOf(tid, ""))] += k
		}
	}
	writeBy(&b, "fault_by", faults)
	conflicts := map[string]uint64{}
	for label, k := range s.ConflictsBy {
		pid, comm := unlabel(label)
		if pid == "-" {
			conflicts["- -"] += k
		} else {
			conflicts[pid+" "+escape(comm)] += k
		}
	}
	writeBy(&b, "conflict_by", conflicts)
	return b.String(), nil
}

// writeBy writes rows of who caused how many, most first.
func writeBy(b *strings.Builder, what string, by map[string]uint64) {
	who := slices.SortedFunc(maps.Keys(by), func(x, y string) int {
		return cmp.Or(cmp.Compare(by[y], by[x]), cmp.Compare(x, y))
	})
	for _, w := range who {
		fmt.Fprintf(b, "%s %s %d\n", what, w, by[w])
	}
}

// label is a name of the buffer for reports: its last one once it has none.
func (n *bufferNode) label() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.name
}
