package fs

import (
	"os"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What programs under `dmabuffs run` see of devices that this machine lacks, in the
// hidden directory .control:
//
//	.control/open/{udmabuf,system,reserved}     what their descriptors are: files that do nothing. Their
//	                                            ioctls are answered by run; any other is the driver's refusal
//	.control/tree/dev, .control/tree/debug      what stat(2) and readdir(3) say of /dev and /sys/kernel/debug
//
// A device node cannot be opened as a file of ours: the kernel would look for the
// driver. So open/ has regular files, and tree/ nodes that nobody opens.

// inertNode is one of .control/open.
type inertNode struct {
	ident uint64
	errno syscall.Errno // of an ioctl that the driver does not know
}

var _ node = (*inertNode)(nil)

func (n *inertNode) id() uint64 { return n.ident }

func (n *inertNode) attr(a *fuse.Attr) {
	a.Mode, a.Nlink = syscall.S_IFREG, 1
	ownPrivate(a)
}

func (n *inertNode) open(*request, uint32) (handle, error) { return &inertHandle{n.errno}, nil }

// inertHandle: read(2) and write(2) are EINVAL, lseek(2) ESPIPE, as on a device without them.
type inertHandle struct{ errno syscall.Errno }

var _ ioctler = (*inertHandle)(nil)

func (h *inertHandle) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_STREAM}
}

func (h *inertHandle) release() {}

func (h *inertHandle) ioctl(*request, *ioctlIn) (int32, error) { return 0, h.errno }

// inertErrno: udmabuf_ioctl says ENOTTY, dma_heap_ioctl EINVAL.
var inertErrno = map[string]syscall.Errno{
	"udmabuf": syscall.ENOTTY, "system": syscall.EINVAL, "reserved": syscall.EINVAL,
}

var inertOps = &dirOps{
	list: listNothing,
	lookup: func(d *dir, c caller, name string) (node, error) {
		e, ok := inertErrno[name]
		if !ok || !mayControl(c) {
			return nil, syscall.ENOENT
		}
		return d.fsys.nodes.secondary(nodeKey{"control/open/" + name, 0, 0}, func(id uint64) node {
			return &inertNode{id, e}
		}), nil
	},
}

// shown is an entry of .control/tree: a directory where it has entries.
type shown struct {
	name    string
	mode    uint32
	rdev    uint64
	entries []*shown
}

// Device numbers are made up where the kernel hands them out at boot.
var shownTree = &shown{mode: syscall.S_IFDIR | 0555, entries: []*shown{
	{name: "dev", mode: syscall.S_IFDIR | 0755, entries: []*shown{
		{name: "udmabuf", mode: syscall.S_IFCHR | 0666, rdev: unix.Mkdev(10, 125)},
		{name: "dma_heap", mode: syscall.S_IFDIR | 0755, entries: []*shown{
			{name: "system", mode: syscall.S_IFCHR | 0666, rdev: unix.Mkdev(252, 0)},
			{name: "reserved", mode: syscall.S_IFCHR | 0666, rdev: unix.Mkdev(252, 1)},
		}},
	}},
	{name: "debug", mode: syscall.S_IFDIR | 0755, entries: []*shown{
		{name: "sync", mode: syscall.S_IFDIR | 0755, entries: []*shown{
			{name: "sw_sync", mode: syscall.S_IFREG | 0666},
			{name: "info", mode: syscall.S_IFREG | 0444},
		}},
		{name: "dma_buf", mode: syscall.S_IFDIR | 0755, entries: []*shown{
			{name: "bufinfo", mode: syscall.S_IFREG | 0444},
		}},
	}},
}}

// shownNode is one that is no directory.
type shownNode struct {
	ident uint64
	what  *shown
}

var _ node = (*shownNode)(nil)

func (n *shownNode) id() uint64 { return n.ident }

func (n *shownNode) attr(a *fuse.Attr) {
	a.Mode, a.Nlink = n.what.mode, 1
	a.Rdev = uint32(n.what.rdev) // 32 bits of dev_t are what FUSE has
	a.Uid, a.Gid = uint32(os.Getuid()), uint32(os.Getgid())
}

// open is never asked of a device node.
func (n *shownNode) open(*request, uint32) (handle, error) { return nil, syscall.ENXIO }

// shownNode returns the node of an entry; path tells it from others.
func (fsys *fileSystem) shownNode(path string, s *shown) node {
	return fsys.nodes.secondary(nodeKey{"control/" + path, 0, 0}, func(id uint64) node {
		if s.entries == nil {
			return &shownNode{id, s}
		}
		return &dir{ident: id, fsys: fsys, ops: shownOps(path, s), meta: newMeta(s.mode, uint32(os.Getuid()), uint32(os.Getgid()))}
	})
}

// shownOps are of a directory. It is looked into by whoever was given it.
func shownOps(path string, s *shown) *dirOps {
	return &dirOps{
		list: func(*dir) []fuse.DirEntry {
			var out []fuse.DirEntry
			for _, e := range s.entries {
				out = append(out, fuse.DirEntry{Name: e.name, Mode: e.mode & syscall.S_IFMT})
			}
			return out
		},
		lookup: func(d *dir, _ caller, name string) (node, error) {
			for _, e := range s.entries {
				if e.name == name {
					return d.fsys.shownNode(path+"/"+name, e), nil
				}
			}
			return nil, syscall.ENOENT
		},
	}
}
