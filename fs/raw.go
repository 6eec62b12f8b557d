package fs

import (
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// rawFS is what go-fuse's protocol server calls: everything that is not answered
// in place by the wire. Nothing here blocks.
type rawFS struct {
	fuse.RawFileSystem // ENOSYS for what a file system may lack
	fsys               *fileSystem
}

var _ fuse.RawFileSystem = (*rawFS)(nil)

const (
	// entryTTL is long: names change through the kernel, or it is told.
	entryTTL = time.Hour
	// attrTTL bounds how long a change that the kernel did not make, such as the mtime
	// of a buffer that another inode's write changed, stays unseen. Without it every
	// step of every path would cost a GETATTR, for the check of its mode.
	attrTTL = time.Second
	nameMax = 255
)

func (fs *rawFS) String() string { return "dmabuffs" }

func (fs *rawFS) status(err error) fuse.Status { return fuse.Status(errno(fs.fsys.log, err)) }

func (fs *rawFS) dir(id uint64) (*dir, error) {
	n, err := fs.fsys.node(id)
	if err != nil {
		return nil, err
	}
	d, ok := n.(*dir)
	if !ok {
		return nil, syscall.ENOTDIR
	}
	return d, nil
}

// entry answers a lookup with n.
func (fs *rawFS) entry(d *dir, n node, out *fuse.EntryOut) {
	fs.fsys.nodes.looked(n.id())
	out.NodeId = n.id()
	out.Generation = 1
	n.attr(&out.Attr)
	out.Attr.Ino = n.id()
	out.Attr.Blksize = 4096
	if !d.ops.volatile {
		out.SetEntryTimeout(entryTTL)
	}
	out.SetAttrTimeout(attrTTL)
}

func checkName(name string) error {
	if len(name) > nameMax {
		return syscall.ENAMETOOLONG
	}
	if name == "" || name == "." || name == ".." || strings.Contains(name, "/") {
		return syscall.EINVAL
	}
	return nil
}

// named finds the directory and checks the name.
func (fs *rawFS) named(id uint64, name string) (*dir, error) {
	d, err := fs.dir(id)
	if err != nil {
		return nil, err
	}
	return d, checkName(name)
}

func (fs *rawFS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	d, err := fs.named(h.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	n, err := d.ops.lookup(d, callerOf(h), name)
	if err != nil {
		return fs.status(err)
	}
	fs.entry(d, n, out)
	return fuse.OK
}

func (fs *rawFS) Forget(id, n uint64) { fs.fsys.nodes.forget(id, n) }

func (fs *rawFS) attr(n node, out *fuse.AttrOut) {
	n.attr(&out.Attr)
	out.Attr.Ino = n.id()
	out.Attr.Blksize = 4096
	out.SetTimeout(attrTTL)
}

func (fs *rawFS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := fs.fsys.node(in.NodeId)
	if err != nil {
		return fs.status(err)
	}
	fs.attr(n, out)
	return fuse.OK
}

func (fs *rawFS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := fs.fsys.node(in.NodeId)
	if err != nil {
		return fs.status(err)
	}
	s, ok := n.(setattrer)
	if !ok {
		return fuse.EPERM
	}
	if err := s.setattr(callerOf(&in.InHeader), in); err != nil {
		return fs.status(err)
	}
	fs.attr(n, out)
	return fuse.OK
}

func (fs *rawFS) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (fs *rawFS) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}

func (fs *rawFS) Readlink(<-chan struct{}, *fuse.InHeader) ([]byte, fuse.Status) {
	return nil, fuse.EINVAL
}

func (fs *rawFS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	d, err := fs.named(in.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	if d.ops.mkdir == nil {
		return fuse.EPERM
	}
	n, err := d.ops.mkdir(d, callerOf(&in.InHeader), name, in.Mode)
	if err != nil {
		return fs.status(err)
	}
	d.meta.touch()
	fs.entry(d, n, out)
	return fuse.OK
}

func (fs *rawFS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	d, err := fs.named(h.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	if d.ops.unlink == nil {
		return fuse.EPERM
	}
	if err = d.ops.unlink(d, callerOf(h), name); err == nil {
		d.meta.touch()
	}
	return fs.status(err)
}

func (fs *rawFS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	d, err := fs.named(h.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	if d.ops.rmdir == nil {
		return fuse.EPERM
	}
	if err = d.ops.rmdir(d, callerOf(h), name); err == nil {
		d.meta.touch()
	}
	return fs.status(err)
}

func (fs *rawFS) Rename(_ <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	d, err := fs.named(in.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	to, err := fs.named(in.Newdir, newName)
	if err != nil {
		return fs.status(err)
	}
	if d.ops.rename == nil {
		return fuse.EPERM
	}
	if err = d.ops.rename(d, callerOf(&in.InHeader), name, to, newName, in.Flags); err == nil {
		d.meta.touch()
		to.meta.touch()
	}
	return fs.status(err)
}

func (fs *rawFS) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	d, err := fs.named(in.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	if d.ops.link == nil {
		return fuse.EPERM
	}
	target, err := fs.fsys.node(in.Oldnodeid)
	if err != nil {
		return fs.status(err)
	}
	n, err := d.ops.link(d, callerOf(&in.InHeader), target, name)
	if err != nil {
		return fs.status(err)
	}
	d.meta.touch()
	fs.entry(d, n, out)
	return fuse.OK
}

func (fs *rawFS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	d, err := fs.named(in.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	if d.ops.create == nil {
		return fuse.EACCES
	}
	n, h, err := d.ops.create(d, callerOf(&in.InHeader), name, in.Mode, in.Flags)
	if err != nil {
		return fs.status(err)
	}
	d.meta.touch()
	fs.entry(d, n, &out.EntryOut)
	o := h.openOut()
	out.OpenOut = fuse.OpenOut{Fh: fs.fsys.handles.add(h), OpenFlags: o.flags, BackingID: o.backing}
	return fuse.OK
}

func (fs *rawFS) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}

func (fs *rawFS) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, err := fs.fsys.node(in.NodeId)
	if err != nil {
		return fs.status(err)
	}
	a, ok := n.(allocator)
	if !ok {
		return fuse.Status(syscall.EOPNOTSUPP)
	}
	return fs.status(a.fallocate(callerOf(&in.InHeader), in.Fh, in.Offset, in.Length, in.Mode))
}

func (fs *rawFS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

func (fs *rawFS) xattrs(id uint64, name string) (*xattrs, error) {
	n, err := fs.fsys.node(id)
	if err != nil {
		return nil, err
	}
	x, ok := n.(xattrer)
	if !ok || !strings.HasPrefix(name, "user.") {
		return nil, syscall.EOPNOTSUPP
	}
	return x.xattrs(), nil
}

func (fs *rawFS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	x, err := fs.xattrs(h.NodeId, name)
	if err != nil {
		return 0, fs.status(err)
	}
	v, err := x.get(name)
	if err != nil {
		return 0, fs.status(err)
	}
	return fill(dest, v)
}

func (fs *rawFS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	x, err := fs.xattrs(h.NodeId, "user.")
	if err != nil {
		return 0, fuse.OK // no attributes, as on any file without them
	}
	return fill(dest, x.list())
}

// fill copies v out; a size of 0 asks for the length, a short buffer is ERANGE.
func fill(dest, v []byte) (uint32, fuse.Status) {
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (fs *rawFS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	x, err := fs.xattrs(in.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	if int(in.Size) > len(data) {
		return fuse.EINVAL
	}
	return fs.status(x.set(name, data[:in.Size], in.Flags))
}

func (fs *rawFS) RemoveXAttr(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	x, err := fs.xattrs(h.NodeId, name)
	if err != nil {
		return fs.status(err)
	}
	return fs.status(x.remove(name))
}

func (fs *rawFS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	fs.fsys.statfs(out)
	return fuse.OK
}

// dirHandle is a directory as it was at opendir(3): names that come or go later do not shift the rest.
type dirHandle struct {
	dir     *dir
	entries []fuse.DirEntry
}

func (h *dirHandle) openOut() openOut { return openOut{} }
func (h *dirHandle) release()         {}

func (fs *rawFS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	d, err := fs.dir(in.NodeId)
	if err != nil {
		return fs.status(err)
	}
	h := &dirHandle{dir: d}
	h.entries = append([]fuse.DirEntry{
		{Name: ".", Mode: syscall.S_IFDIR, Ino: d.ident},
		{Name: "..", Mode: syscall.S_IFDIR, Ino: fuse.FUSE_ROOT_ID},
	}, d.ops.list(d)...)
	out.Fh = fs.fsys.handles.add(h)
	return fuse.OK
}

func (fs *rawFS) dirHandle(fh uint64) (*dirHandle, error) {
	h, err := fs.fsys.handles.get(fh)
	if err != nil {
		return nil, err
	}
	d, ok := h.(*dirHandle)
	if !ok {
		return nil, syscall.EBADF
	}
	return d, nil
}

func (fs *rawFS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h, err := fs.dirHandle(in.Fh)
	if err != nil {
		return fs.status(err)
	}
	for i := in.Offset; i < uint64(len(h.entries)); i++ {
		if !out.AddDirEntry(h.at(i)) {
			break
		}
	}
	return fuse.OK
}

func (h *dirHandle) at(i uint64) fuse.DirEntry {
	e := h.entries[i]
	e.Off = i + 1
	return e
}

func (fs *rawFS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	h, err := fs.dirHandle(in.Fh)
	if err != nil {
		return fs.status(err)
	}
	c := callerOf(&in.InHeader)
	for i := in.Offset; i < uint64(len(h.entries)); i++ {
		e := h.at(i)
		out1 := out.AddDirLookupEntry(e)
		if out1 == nil {
			break
		}
		if e.Name == "." || e.Name == ".." {
			continue
		}
		if n, err := h.dir.ops.lookup(h.dir, c, e.Name); err == nil {
			fs.entry(h.dir, n, out1)
		}
	}
	return fuse.OK
}

func (fs *rawFS) ReleaseDir(in *fuse.ReleaseIn) { fs.fsys.handles.remove(in.Fh) }
