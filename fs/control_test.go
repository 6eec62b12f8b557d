package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
	"github.com/dmabuffs/dmabuffs/poll"
)

// supervisor is a client of .control, as `dmabuffs run` is one.
type supervisor struct {
	t    testing.TB
	c    *conn
	fsys *fileSystem
	ctl  *ctlHandle
}

func newSupervisor(t testing.TB) *supervisor {
	t.Helper()
	c, fsys, _ := testConn(t)
	s := &supervisor{t: t, c: c, fsys: fsys}
	s.ctl = s.open("ctl", syscall.O_RDWR).(*ctlHandle)
	return s
}

// find resolves a path below .control.
func (s *supervisor) find(path string) (node, error) {
	n, err := s.fsys.hidden(caller{}, controlName)
	for name := range strings.SplitSeq(path, "/") {
		if err != nil {
			return nil, err
		}
		d := n.(*dir)
		n, err = d.ops.lookup(d, caller{}, name)
	}
	return n, err
}

func (s *supervisor) open(path string, flags uint32) handle {
	s.t.Helper()
	n, err := s.find(path)
	if err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	return mustOpen(s.t, s.c, n, flags)
}

func (s *supervisor) gone(path string) {
	s.t.Helper()
	if _, err := s.find(path); !errors.Is(err, syscall.ENOENT) {
		s.t.Errorf("%s: %v, want ENOENT", path, err)
	}
}

func (s *supervisor) export(ino uint64, flags uint32) (uint64, error) {
	out, err := ask(s.c, s.ctl, uapi.CONTROL_EXPORT, 0, bytesOf(uapi.SizeControlExport, uapi.ControlExport{Ino: ino, Flags: flags}))
	c, _ := uapi.DecodeControlExport(out)
	return c.ID, err
}

func (s *supervisor) merge(a, b uint64, name string) (uint64, error) {
	out, err := ask(s.c, s.ctl, uapi.CONTROL_MERGE, 0, bytesOf(uapi.SizeControlMerge, uapi.ControlMerge{Ino1: a, Ino2: b, Name: name}))
	c, _ := uapi.DecodeControlMerge(out)
	return c.ID, err
}

func (s *supervisor) swSync(name string) uint64 {
	s.t.Helper()
	out, err := ask(s.c, s.ctl, uapi.CONTROL_SW_SYNC_NEW, 0, bytesOf(uapi.SizeControlSWSyncNew, uapi.ControlSWSyncNew{Name: name}))
	if err != nil {
		s.t.Fatal(err)
	}
	c, _ := uapi.DecodeControlSWSyncNew(out)
	return c.ID
}

func (s *supervisor) swFence(ino uint64, value uint32) (uint64, error) {
	out, err := ask(s.c, s.ctl, uapi.CONTROL_SW_SYNC_FENCE, 0, bytesOf(uapi.SizeControlSWSyncFence, uapi.ControlSWSyncFence{Ino: ino, Value: value}))
	c, _ := uapi.DecodeControlSWSyncFence(out)
	return c.ID, err
}

func (s *supervisor) buffer(exporter string, size uint64) (uint64, error) {
	out, err := ask(s.c, s.ctl, uapi.CONTROL_BUFFER_NEW, 0, bytesOf(uapi.SizeControlBufferNew, uapi.ControlBufferNew{Exporter: exporter, Size: size}))
	c, _ := uapi.DecodeControlBufferNew(out)
	return c.ID, err
}

func (s *supervisor) udmabuf(flags uint32, id uint64, items ...uapi.ControlItem) (uint64, error) {
	n := uapi.SizeControlUdmabuf + len(items)*uapi.SizeControlItem
	out, err := ask(s.c, s.ctl, uapi.ControlUdmabufNumber(len(items)), 0, bytesOf(n, uapi.ControlUdmabuf{Flags: flags, ID: id, Items: items}))
	c, _ := uapi.DecodeControlUdmabuf(out)
	return c.ID, err
}

func (s *supervisor) live(id uint64) bool { return s.fsys.nodes.get(id) != nil }

func TestControlIsHidden(t *testing.T) {
	_, fsys, _ := testConn(t)
	for _, e := range rootOps.list(fsys.dirs.root) {
		if strings.HasPrefix(e.Name, ".") {
			t.Errorf("the root lists %s", e.Name)
		}
	}
	stranger := caller{uid: uint32(os.Getuid()) + 4711}
	if _, err := fsys.hidden(stranger, controlName); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a stranger: %v, want ENOENT", err)
	}
	n, err := fsys.hidden(caller{uid: uint32(os.Getuid())}, controlName)
	if err != nil {
		t.Fatal(err)
	}
	// the kernel remembers names for everybody: what is below asks again
	d := n.(*dir)
	for _, name := range []string{"ctl", "sync", "sync_info"} {
		if _, err := d.ops.lookup(d, stranger, name); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("%s for a stranger: %v, want ENOENT", name, err)
		}
	}
	if _, err := fsys.openCtl(stranger); !errors.Is(err, syscall.EACCES) {
		t.Errorf("ctl, known to a stranger: %v, want EACCES", err)
	}
	if _, err := d.ops.lookup(d, caller{}, "other"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("another name: %v", err)
	}
}

func TestControlBuffer(t *testing.T) {
	s := newSupervisor(t)
	id, err := s.buffer("coherent", 8192)
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("buffers/%d", id)
	h := s.open(path, syscall.O_RDONLY)
	n := s.fsys.nodes.get(id).(*bufferNode)
	if n.buf.Size() != 8192 || n.buf.ExpName() != "coherent" {
		t.Errorf("%s of %d bytes", n.buf.ExpName(), n.buf.Size())
	}
	if got := n.buf.Refs(); got != 1 {
		t.Errorf("%d references of one open file", got)
	}
	s.gone(path) // an id is good once
	again := mustOpen(t, s.c, n, syscall.O_RDWR)
	s.ctl.release()
	h.release()
	if !s.live(id) {
		t.Fatal("gone with an open file left")
	}
	again.release()
	if s.live(id) {
		t.Error("lives without open files")
	}
}

func TestControlUnopened(t *testing.T) {
	s := newSupervisor(t)
	id, err := s.buffer("", 4096)
	if err != nil {
		t.Fatal(err)
	}
	sw := s.swSync("prog")
	sync, err := s.export(id, uapi.DMA_BUF_SYNC_RW)
	if err != nil {
		t.Fatal(err)
	}
	paths := []string{fmt.Sprintf("buffers/%d", id), fmt.Sprintf("sw_sync/%d", sw), fmt.Sprintf("sync/%d", sync)}
	for _, p := range paths {
		if _, err := s.find(p); err != nil {
			t.Errorf("%s: %v", p, err)
		}
	}
	s.ctl.release()
	for _, p := range paths {
		s.gone(p)
	}
	if s.live(id) {
		t.Error("the buffer lives on")
	}
	if len(s.fsys.control.m)+len(s.fsys.control.sw)+len(s.fsys.timelines.budget.timelines) != 0 {
		t.Error("something is left behind")
	}
	// and nobody can have more than so many of them
	s.ctl = &ctlHandle{fsys: s.fsys}
	for range maxUnopened {
		s.swSync("x")
	}
	if _, err := s.buffer("", 4096); !errors.Is(err, syscall.ENFILE) {
		t.Errorf("one too many: %v, want ENFILE", err)
	}
	if got := len(s.fsys.registry.Buffers()); got != 0 {
		t.Errorf("%d buffers of a refused call", got)
	}
	s.ctl.release()
}

func TestControlErrors(t *testing.T) {
	s := newSupervisor(t)
	id, err := s.buffer("", 4096)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	for _, flags := range []uint32{0, 4, 7} {
		_, err = s.export(id, flags)
		check(fmt.Sprintf("export with flags %d", flags), err, syscall.EINVAL)
	}
	for _, ino := range []uint64{0, idRoot, idTimelines, 1 << 60} {
		_, err = s.export(ino, 1)
		check(fmt.Sprintf("export of inode %d", ino), err, syscall.EBADF)
		_, err = s.swFence(ino, 1)
		check(fmt.Sprintf("a fence of inode %d", ino), err, syscall.EBADF)
		_, err = s.merge(ino, ino, "")
		check(fmt.Sprintf("merge of inode %d", ino), err, syscall.EINVAL)
	}
	_, err = s.buffer("nope", 4096)
	check("an unknown exporter", err, syscall.ENOENT)
	_, err = s.buffer("", 1<<63)
	check("a huge size", err, syscall.EFBIG)
	_, err = s.buffer("contiguous", 1<<40)
	if err == nil {
		t.Error("a buffer larger than its pool")
	}
	for cmd, want := range map[uint32]error{
		uapi.CONTROL_EXPORT + 1<<16:                           syscall.ENOTTY,
		uapi.Number(3, 'B', 0x90, 8):                          syscall.ENOTTY,
		uapi.DMA_BUF_IOCTL_SYNC:                               syscall.ENOTTY,
		uapi.CONTROL_UDMABUF:                                  syscall.EINVAL,
		uapi.ControlUdmabufNumber(uapi.CONTROL_UDMABUF_ITEMS): syscall.EINVAL, // count 0
	} {
		_, err := ask(s.c, s.ctl, cmd, 0, make([]byte, uapi.Size(cmd)))
		check(fmt.Sprintf("%#x", cmd), err, want)
	}
	s.ctl.release()
}

func TestControlSWSync(t *testing.T) {
	s := newSupervisor(t)
	id := s.swSync("prog")
	n, err := s.find(fmt.Sprintf("sw_sync/%d", id))
	if err != nil {
		t.Fatal(err)
	}
	h := mustOpen(t, s.c, n, syscall.O_RDWR)
	fence := func(value uint32) *syncHandle {
		t.Helper()
		id, err := s.swFence(n.id(), value)
		if err != nil {
			t.Fatal(err)
		}
		return s.open(fmt.Sprintf("sync/%d", id), syscall.O_RDONLY).(*syncHandle)
	}
	f3, f7 := fence(3), fence(7)
	if got, want := f7.sf.Name(), fmt.Sprintf("sw_sync-prog%d-7", f7.sf.Fence().Context()); got != want {
		t.Errorf("the name is %q, want %q", got, want)
	}
	if _, err := f7.read(nil, make([]byte, 10), 0, true); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("read: %v, want EINVAL", err)
	}
	info := contents(t, s.open("sync_info", syscall.O_RDONLY))
	want := "objs:\n--------------\nprog: 0\n  fence active: 3 / 0\n  fence active: 7 / 0\n\nfences:\n--------------\n"
	if info != want {
		t.Errorf("sync_info is %q, want %q", info, want)
	}
	inc := func(by uint32) error {
		_, err := ask(s.c, h, uapi.SW_SYNC_IOC_INC, 0, bytesOf(uapi.SizeInc, uapi.Inc{By: by}))
		return err
	}
	if err := inc(3); err != nil || f3.sf.Fence().Status() != 1 || f7.sf.Fence().Status() != 0 {
		t.Errorf("INC 3: %v; status %d and %d", err, f3.sf.Fence().Status(), f7.sf.Fence().Status())
	}
	if f := fence(3); f.poll(unix.POLLIN, 0) != unix.POLLIN {
		t.Error("a fence that has passed is not ready")
	}
	if f := fence(0x80000003); f.poll(unix.POLLIN, 0) != unix.POLLIN {
		t.Error("a fence 2^31 ahead has not passed")
	}
	if _, err := ask(s.c, h, uapi.SW_SYNC_IOC_CREATE_FENCE, 0, make([]byte, uapi.SizeCreateFence)); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("CREATE_FENCE: %v, want EOPNOTSUPP", err)
	}
	if _, err := ask(s.c, h, uapi.SYNC_IOC_MERGE, 0, make([]byte, uapi.SizeMerge)); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("MERGE on sw_sync: %v, want ENOTTY", err)
	}
	// the last close ends it
	h2 := mustOpen(t, s.c, n, syscall.O_RDONLY)
	h.release()
	if got := f7.sf.Fence().Status(); got != 0 {
		t.Errorf("status %d with one file left", got)
	}
	h2.release()
	if got := f7.sf.Fence().Status(); got != -int(syscall.ENOENT) {
		t.Errorf("status %d after the last close, want -ENOENT", got)
	}
	if got := f3.sf.Fence().Status(); got != 1 {
		t.Errorf("what had signaled has status %d", got)
	}
	if _, err := n.open(asker(s.c, n.id()), syscall.O_RDWR); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("opened after its end: %v, want ENOENT", err)
	}
	if _, err := s.swFence(n.id(), 99); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a fence after its end: %v, want ENOENT", err)
	}
}

func TestControlSync(t *testing.T) {
	s := newSupervisor(t)
	id, err := s.buffer("", 4096)
	if err != nil {
		t.Fatal(err)
	}
	view := s.open(fmt.Sprintf("buffers/%d", id), syscall.O_RDWR)
	defer view.release()
	resv := s.fsys.nodes.get(id).(*bufferNode).buf.Resv()
	open := func(id uint64, err error) *syncHandle {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s.open(fmt.Sprintf("sync/%d", id), syscall.O_RDONLY).(*syncHandle)
	}
	export := func(flags uint32) *syncHandle {
		t.Helper()
		return open(s.export(id, flags))
	}
	if st := export(3).sf.Info(); st.Status != 1 || len(st.Fences) != 1 {
		t.Errorf("an idle buffer: %+v", st)
	}
	a, b := mustTimeline(t, s.fsys, "a"), mustTimeline(t, s.fsys, "b")
	fa, _ := a.tl.Point(1)
	fb, _ := b.tl.Point(1)
	resv.Add(fa, poll.Write)
	resv.Add(fb, poll.Read)
	reads, writes := export(uapi.DMA_BUF_SYNC_READ), export(uapi.DMA_BUF_SYNC_WRITE)
	if f := reads.sf.Fence(); f != fa {
		t.Errorf("EXPORT READ has %s:%d", f.TimelineName(), f.Seqno())
	}
	if got := len(writes.sf.Info().Fences); got != 2 {
		t.Errorf("EXPORT WRITE has %d fences, want 2", got)
	}
	both := open(s.merge(reads.ino, writes.ino, strings.Repeat("m", 40)))
	if info := both.sf.Info(); info.Name != strings.Repeat("m", 31) || len(info.Fences) != 2 {
		t.Errorf("merged: %+v", info)
	}
	self := open(s.merge(reads.ino, reads.ino, ""))
	if len(self.sf.Info().Fences) != 1 {
		t.Error("a merge with itself has more than one fence")
	}
	if _, err := s.merge(reads.ino, id, ""); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("merge with a buffer: %v, want ENOENT", err)
	}
	if _, err := s.merge(id, reads.ino, ""); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("merge of a buffer: %v, want EINVAL", err)
	}
	if err := a.tl.Set(1); err != nil {
		t.Fatal(err)
	}
	for what, h := range map[string]*syncHandle{"READ": reads, "WRITE": writes, "merged": both, "self": self} {
		want := uint32(0)
		if what == "READ" || what == "self" {
			want = unix.POLLIN
		}
		if got := h.poll(unix.POLLIN|unix.POLLOUT, 0); got != want {
			t.Errorf("%s is ready for %#x, want %#x", what, got, want)
		}
		h.release()
	}
	if _, err := s.merge(reads.ino, writes.ino, ""); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("merge of closed files: %v, want EINVAL", err)
	}
	n, err := s.find(fmt.Sprintf("sync/%d", func() uint64 { id, _ := s.export(id, 1); return id }()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.open(asker(s.c, n.id()), syscall.O_RDWR); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a sync file for writing: %v, want EACCES", err)
	}
}

func TestControlUdmabuf(t *testing.T) {
	s := newSupervisor(t)
	memfd := func(seals int) *os.File {
		t.Helper()
		fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "memfd")
		t.Cleanup(func() { f.Close() })
		if err := f.Truncate(4 * 4096); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
		return f
	}
	m := memfd(unix.F_SEAL_SHRINK)
	open, bad := memfd(0), memfd(unix.F_SEAL_SHRINK|unix.F_SEAL_WRITE)
	item := func(f *os.File, off, size uint64) uapi.ControlItem {
		return uapi.ControlItem{FD: int32(f.Fd()), Offset: off, Size: size}
	}
	file, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for what, c := range map[string]struct {
		item uapi.ControlItem
		want error
	}{
		"closed":          {uapi.ControlItem{FD: 1 << 20, Size: 4096}, syscall.EBADFD},
		"-1":              {uapi.ControlItem{FD: -1, Size: 4096}, syscall.EBADFD},
		"a file":          {item(file, 0, 4096), syscall.EBADFD},
		"a pipe":          {item(r, 0, 4096), syscall.EBADFD},
		"no seal":         {item(open, 0, 4096), syscall.EINVAL},
		"sealed writing":  {item(bad, 0, 4096), syscall.EINVAL},
		"offset":          {item(m, 2048, 4096), syscall.EINVAL},
		"size":            {item(m, 0, 2048), syscall.EINVAL},
		"size 0":          {item(m, 0, 0), syscall.EINVAL},
		"too long":        {item(m, 0, 5*4096), syscall.EINVAL},
		"a huge offset":   {item(m, 1<<63, 4096), syscall.EINVAL},
		"a huge size":     {item(m, 0, 1<<63), syscall.EINVAL},
		"wraps around":    {item(m, 4096, 1<<64-4096), syscall.EINVAL},
		"bad after a try": {item(m, 4096, 4*4096), syscall.EINVAL},
	} {
		if _, err := s.udmabuf(0, 0, c.item); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		// and as the second of a list, whose first is good
		if _, err := s.udmabuf(0, 0, item(m, 0, 4096), c.item); !errors.Is(err, c.want) {
			t.Errorf("%s, second: %v, want %v", what, err, c.want)
		}
	}
	if got := len(s.fsys.registry.Buffers()); got != 0 {
		t.Fatalf("%d buffers of bad calls", got)
	}

	// two calls, three parts, one buffer; it shows the memfd's bytes, and the other way round
	for i := range 4 {
		if _, err := m.WriteAt([]byte{byte('0' + i)}, int64(i*4096)); err != nil {
			t.Fatal(err)
		}
	}
	list, err := s.udmabuf(uapi.CONTROL_UDMABUF_MORE, 0, item(m, 3*4096, 4096), item(m, 4096, 4096))
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.udmabuf(0, list, item(m, 0, 4096))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.udmabuf(0, list, item(m, 0, 4096)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a list that is done: %v, want EINVAL", err)
	}
	h := s.open(fmt.Sprintf("buffers/%d", id), syscall.O_RDWR)
	n := s.fsys.nodes.get(id).(*bufferNode)
	if n.buf.Size() != 3*4096 {
		t.Errorf("%d bytes", n.buf.Size())
	}
	got := ""
	p := make([]byte, 1)
	for i := range int64(3) {
		if _, err := n.buf.Read(asker(s.c, 1), p, i*4096); err != nil {
			t.Fatal(err)
		}
		got += string(p)
	}
	if got != "310" {
		t.Errorf("pages %s, want 310", got)
	}
	if _, err := n.buf.Write(asker(s.c, 1), []byte("W"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAt(p, 3*4096); err != nil || p[0] != 'W' {
		t.Errorf("the memfd has %q, %v", p, err)
	}
	h.release()

	// lists are bounded, and go with ctl
	before := openFiles(t)
	for range maxLists {
		if _, err := s.udmabuf(uapi.CONTROL_UDMABUF_MORE, 0, item(m, 0, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.udmabuf(uapi.CONTROL_UDMABUF_MORE, 0, item(m, 0, 4096)); !errors.Is(err, syscall.ENFILE) {
		t.Errorf("one list too many: %v, want ENFILE", err)
	}
	s.ctl.release()
	if after := openFiles(t); after != before {
		t.Errorf("%d descriptors, before the lists %d", after, before)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}
