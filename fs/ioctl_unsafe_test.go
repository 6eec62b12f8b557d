package fs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
	"github.com/dmabuffs/dmabuffs/poll"
)

// ask makes an ioctl as FUSE hands it over: data copied in, and a copy of it to be copied out.
func ask(c *conn, h handle, cmd uint32, arg uint64, data []byte) (out []byte, err error) {
	in := &ioctlIn{cmd: cmd, arg: arg, data: data, out: bytes.Clone(data)}
	_, err = h.(ioctler).ioctl(asker(c, 1), in)
	return in.out, err
}

// bytesOf encodes a struct of uapi.
func bytesOf(n int, v interface{ Encode([]byte) }) []byte {
	p := make([]byte, n)
	v.Encode(p)
	return p
}

// pages are n pages of memory and one behind them that cannot be touched.
func pages(t testing.TB, n int) []byte {
	t.Helper()
	size := os.Getpagesize()
	m, err := unix.Mmap(-1, 0, (n+1)*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(m) })
	if err := unix.Mprotect(m[n*size:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	return m[:n*size]
}

func addressOf(p []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))) }

func testView(t testing.TB, name string) (*conn, *fileSystem, *bufferNode, *cpuHandle) {
	t.Helper()
	c, fsys, a := testConn(t)
	_, fh := openNew(t, c, a, name, 2)
	h, err := fsys.handles.get(fh)
	if err != nil {
		t.Fatal(err)
	}
	return c, fsys, fsys.buffers.find(name), h.(*cpuHandle)
}

func TestIoctlNumbers(t *testing.T) {
	c, fsys, _, h := testView(t, "b")
	p := mustOpen(t, c, mustTimeline(t, fsys, "tl").point(1), syscall.O_RDONLY)
	defer p.release()
	w := mustOpen(t, c, fencesNode(t, fsys, fsys.buffers.find("b"), "write_fences"), syscall.O_WRONLY)
	defer w.release()
	for what, h := range map[string]handle{"buffer": h, "point": p, "fences opened for writing": w} {
		for _, cmd := range []uint32{
			0, 1, 0x5401,
			uapi.DMA_BUF_IOCTL_SYNC ^ 3<<30, uapi.DMA_BUF_IOCTL_SYNC + 1<<16, uapi.Number(1, 'b', 0, 4), uapi.Number(1, 'b', 4, 8),
			uapi.Number(3, 'b', 3, 8), uapi.Number(1, 'b', 1, 16), uapi.Number(1, 'b', 2, 8),
			uapi.Number(3, '>', 2, 48), uapi.Number(1, '>', 4, 56), uapi.Number(3, '>', 4, 48), uapi.Number(3, '>', 5, 16),
			uapi.SW_SYNC_IOC_INC, uapi.CONTROL_EXPORT,
		} {
			if _, err := ask(c, h, cmd, 0, make([]byte, 64)); !errors.Is(err, syscall.ENOTTY) {
				t.Errorf("%s: %#x gives %v, want ENOTTY", what, cmd, err)
			}
		}
	}
	if _, err := ask(c, h, uapi.SYNC_IOC_FILE_INFO, 0, make([]byte, 56)); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("FILE_INFO on a buffer: %v, want ENOTTY", err)
	}
	if _, err := ask(c, p, uapi.DMA_BUF_IOCTL_SYNC, 0, make([]byte, 8)); !errors.Is(err, syscall.ENOTTY) {
		t.Errorf("SYNC on a point: %v, want ENOTTY", err)
	}
}

func TestIoctlSync(t *testing.T) {
	c, fsys, n, h := testView(t, "b")
	tl := mustTimeline(t, fsys, "tl").tl
	do := func(flags uint64) error {
		_, err := ask(c, h, uapi.DMA_BUF_IOCTL_SYNC, 0, bytesOf(8, uapi.Sync{Flags: flags}))
		return err
	}
	for _, flags := range []uint64{1, 2, 3, 5, 6, 7, 7, 1, 1} { // nested and unbalanced: no state
		if err := do(flags); err != nil {
			t.Errorf("flags %d: %v", flags, err)
		}
	}
	for _, flags := range []uint64{0, 4, 8, 9, 0x11, 1 << 32, 1<<63 | 1} {
		if err := do(flags); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("flags %#x: %v, want EINVAL", flags, err)
		}
	}

	// what START waits for; bad flags are refused and END goes through at once
	const writeFence, readFence = poll.Write, poll.Read
	seqno := uint64(0)
	for _, s := range []struct {
		fence  poll.Usage
		flags  uint64
		waits  bool
		repeat uint64 // flags that do not wait meanwhile
	}{
		{writeFence, uapi.DMA_BUF_SYNC_READ, true, uapi.DMA_BUF_SYNC_END | uapi.DMA_BUF_SYNC_RW},
		{writeFence, uapi.DMA_BUF_SYNC_WRITE, true, uapi.DMA_BUF_SYNC_END | uapi.DMA_BUF_SYNC_READ},
		{readFence, uapi.DMA_BUF_SYNC_READ, false, 0},
		{readFence, uapi.DMA_BUF_SYNC_WRITE, true, uapi.DMA_BUF_SYNC_READ},
		{readFence, uapi.DMA_BUF_SYNC_RW, true, uapi.DMA_BUF_SYNC_READ},
	} {
		seqno++
		f, err := tl.Point(seqno)
		if err != nil {
			t.Fatal(err)
		}
		n.buf.Resv().Add(f, s.fence)
		done := make(chan error, 1)
		go func() { done <- do(s.flags) }()
		if !s.waits {
			if err := wait(t, done); err != nil {
				t.Errorf("START %d with a %v fence: %v", s.flags, s.fence, err)
			}
			_ = tl.Set(seqno)
			continue
		}
		if err := do(s.repeat); err != nil {
			t.Errorf("flags %d while another START waits: %v", s.repeat, err)
		}
		if err := do(8); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("bad flags with a fence pending: %v, want EINVAL", err)
		}
		select {
		case err := <-done:
			t.Errorf("START %d did not wait for a %v fence: %v", s.flags, s.fence, err)
		case <-time.After(20 * time.Millisecond):
			_ = tl.Set(seqno)
			if err := wait(t, done); err != nil {
				t.Errorf("START %d, signaled: %v", s.flags, err)
			}
		}
	}

	// interrupted
	f, _ := tl.Point(1000)
	n.buf.Resv().Add(f, poll.Write)
	r := asker(c, 1)
	done := make(chan error, 1)
	go func() {
		_, err := h.ioctl(r, &ioctlIn{cmd: uapi.DMA_BUF_IOCTL_SYNC, data: bytesOf(8, uapi.Sync{Flags: 1})})
		done <- err
	}()
	for deadline := time.Now().Add(10 * time.Second); !c.interrupt(r.unique); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("START never waited")
		}
	}
	if e := errno(c.log, wait(t, done)); e != syscall.EINTR {
		t.Errorf("interrupted: %v, want EINTR", e)
	}
	// a fence that fails ends the wait as one that succeeds
	go func() { done <- do(1) }()
	tl.End()
	if err := wait(t, done); err != nil {
		t.Errorf("START with a fence that failed: %v", err)
	}
}

// wait is a receive with a guard.
func wait(t testing.TB, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("hangs")
		return nil
	}
}

func TestIoctlSetName(t *testing.T) {
	c, _, n, h := testView(t, "b")
	m := pages(t, 2)
	size := os.Getpagesize()
	at := func(off int, s string) uint64 { // the memory behind it is no NUL
		for i := range m {
			m[i] = 'x'
		}
		copy(m[off:], s)
		return addressOf(m[off:])
	}
	end := 2 * size
	name31 := strings.Repeat("n", 31)
	want := ""
	for _, s := range []struct {
		what string
		arg  uint64
		name string
		err  error
	}{
		{"short", at(100, "x\x00"), "x", nil},
		{"31 bytes", at(0, name31+"\x00"), name31, nil},
		{"32 bytes", at(0, name31+"n\x00"), "", syscall.EINVAL},
		{"no end", at(0, ""), "", syscall.EINVAL},
		{"any bytes", at(9, "/:\n\xff\x00"), "/:\n\xff", nil},
		{"empty", at(9, "\x00"), "", nil},
		{"across pages", at(size-3, "across\x00"), "across", nil},
		{"up to the last byte", at(end-4, "end\x00"), "end", nil},
		{"31 bytes up to the last", at(end-32, name31+"\x00"), name31, nil},
		{"no NUL before the memory ends", at(end-4, "oops"), "", syscall.EFAULT},
		{"32 bytes up to the last", at(end-32, name31+"n"), "", syscall.EINVAL},
		{"NULL", 0, "", syscall.EFAULT},
		{"unmapped", 1 << 63, "", syscall.EFAULT},
	} {
		// the memory is rewritten by each at(): put this row's there again
		if s.arg >= addressOf(m) && s.arg < addressOf(m)+uint64(len(m)) {
			off := int(s.arg - addressOf(m))
			switch s.what {
			case "32 bytes", "32 bytes up to the last":
				at(off, name31+"n")
			case "no end":
				at(off, "")
			case "no NUL before the memory ends":
				at(off, "oops")
			default:
				at(off, s.name+"\x00")
			}
		}
		for _, cmd := range []uint32{uapi.DMA_BUF_SET_NAME_A, uapi.DMA_BUF_SET_NAME_B} {
			_, err := ask(c, h, cmd, s.arg, make([]byte, uapi.Size(cmd)))
			if !errors.Is(err, s.err) {
				t.Errorf("%s: %v, want %v", s.what, err, s.err)
			}
			if s.err == nil {
				want = s.name
			}
			if got, named := n.buf.Name(); !named || got != want {
				t.Errorf("%s: the name is %q (%v), want %q", s.what, got, named, want)
			}
		}
	}
	runtime.KeepAlive(m)
}

// Where the daemon may not read the caller's memory, the bytes that FUSE brings do for short names.
func TestIoctlSetNameWithoutMemory(t *testing.T) {
	c, _, n, h := testView(t, "b")
	do := func(data string) error {
		r := asker(c, 1)
		r.pid = 0 // somebody of whom we know nothing
		_, err := h.ioctl(r, &ioctlIn{cmd: uapi.DMA_BUF_SET_NAME_B, arg: 4096, data: []byte(data)})
		return err
	}
	if err := do("short\x00.."); err != nil {
		t.Error(err)
	}
	if got, _ := n.buf.Name(); got != "short" {
		t.Errorf("the name is %q", got)
	}
	if err := do("too long"); !errors.Is(err, syscall.EPERM) {
		t.Errorf("a name that cannot be seen to its end: %v, want EPERM", err)
	}
}

func TestIoctlFileInfo(t *testing.T) {
	c, fsys, n, _ := testView(t, "b")
	a, b := mustTimeline(t, fsys, "alpha"), mustTimeline(t, fsys, strings.Repeat("b", 40))
	for _, tl := range []*timeline{a, b} {
		f, err := tl.tl.Point(3)
		if err != nil {
			t.Fatal(err)
		}
		n.buf.Resv().Add(f, poll.Write)
	}
	h := mustOpen(t, c, fencesNode(t, fsys, n, "write_fences"), syscall.O_RDONLY)
	defer h.release()
	m := pages(t, 1)
	info := func(f uapi.FileInfo) (uapi.FileInfo, error) {
		out, err := ask(c, h, uapi.SYNC_IOC_FILE_INFO, 0, bytesOf(uapi.SizeFileInfo, f))
		got, _ := uapi.DecodeFileInfo(out)
		return got, err
	}
	array := addressOf(m)
	short := addressOf(m[len(m)-uapi.SizeFenceInfo:])
	for what, s := range map[string]struct {
		in  uapi.FileInfo
		err error
	}{
		"flags":                    {uapi.FileInfo{Flags: 1, NumFences: 2, Fences: array}, syscall.EINVAL},
		"pad":                      {uapi.FileInfo{Pad: 1, NumFences: 2, Fences: array}, syscall.EINVAL},
		"flags and a bad array":    {uapi.FileInfo{Flags: 1, NumFences: 2}, syscall.EINVAL},
		"one of two":               {uapi.FileInfo{NumFences: 1, Fences: array}, syscall.EINVAL},
		"one of two, no array":     {uapi.FileInfo{NumFences: 1}, syscall.EINVAL},
		"no array":                 {uapi.FileInfo{NumFences: 2}, syscall.EFAULT},
		"an array that ends early": {uapi.FileInfo{NumFences: 2, Fences: short}, syscall.EFAULT},
	} {
		if _, err := info(s.in); !errors.Is(err, s.err) {
			t.Errorf("%s: %v, want %v", what, err, s.err)
		}
	}
	fences := func(k uint32) []uapi.FenceInfo {
		var out []uapi.FenceInfo
		for i := range k {
			f, _ := uapi.DecodeFenceInfo(m[i*uapi.SizeFenceInfo:])
			out = append(out, f)
		}
		return out
	}
	check := func(status, first, second int32) {
		t.Helper()
		got, err := info(uapi.FileInfo{Fences: 1}) // no array is asked for
		if err != nil || got.Status != status || got.NumFences != 2 || !strings.HasPrefix(got.Name, "dma_fence_array-unbound") {
			t.Errorf("num_fences 0: %+v, %v, want status %d", got, err, status)
		}
		clear(m)
		got, err = info(uapi.FileInfo{NumFences: 10, Fences: array})
		if err != nil || got.Status != status || got.NumFences != 2 || got.Fences != array {
			t.Fatalf("num_fences 10: %+v, %v", got, err)
		}
		fs := fences(3)
		if fs[0].Timeline != "alpha" || fs[1].Timeline != strings.Repeat("b", 31) || fs[0].Driver != timelineDriver || fs[2].Driver != "" {
			t.Errorf("names: %+v", fs)
		}
		for i, want := range []int32{first, second} {
			if fs[i].Status != want || (fs[i].Timestamp == 0) != (want == 0) {
				t.Errorf("fence %d has status %d at %d, want %d", i, fs[i].Status, fs[i].Timestamp, want)
			}
		}
	}
	check(0, 0, 0)
	if err := a.tl.Set(3); err != nil {
		t.Fatal(err)
	}
	check(0, 1, 0)
	b.tl.End()
	check(-int32(syscall.ENOENT), 1, -int32(syscall.ENOENT))
}

func TestIoctlDeadline(t *testing.T) {
	c, fsys, _, _ := testView(t, "b")
	h := mustOpen(t, c, mustTimeline(t, fsys, "tl").point(1), syscall.O_RDONLY)
	defer h.release()
	set := func(d uapi.Deadline) error {
		_, err := ask(c, h, uapi.SYNC_IOC_SET_DEADLINE, 0, bytesOf(uapi.SizeDeadline, d))
		return err
	}
	if err := set(uapi.Deadline{NS: 1, Pad: 1}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("pad: %v, want EINVAL", err)
	}
	for _, ns := range []uint64{200, 100, 300} {
		if err := set(uapi.Deadline{NS: ns}); err != nil {
			t.Error(err)
		}
	}
	if ns, ok := h.(*syncHandle).sf.Fence().Deadline(); !ok || ns != 100 {
		t.Errorf("the deadline is %d (%v), want 100", ns, ok)
	}
}

func TestIoctlNeedsRun(t *testing.T) {
	c, fsys, _, view := testView(t, "b")
	p := mustOpen(t, c, mustTimeline(t, fsys, "tl").point(1), syscall.O_RDONLY)
	defer p.release()
	for flags, want := range map[uint32]error{1: syscall.EOPNOTSUPP, 2: syscall.EOPNOTSUPP, 3: syscall.EOPNOTSUPP, 0: syscall.EINVAL, 4: syscall.EINVAL, 5: syscall.EINVAL} {
		if _, err := ask(c, view, uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE, 0, bytesOf(8, uapi.SyncFile{Flags: flags})); !errors.Is(err, want) {
			t.Errorf("EXPORT with flags %d: %v, want %v", flags, err, want)
		}
	}
	for _, tc := range []struct {
		name string
		off  int
		want error
	}{{"flags", 40, syscall.EINVAL}, {"pad", 44, syscall.EINVAL}, {"fd2 that is no sync file", 32, syscall.ENOENT}} {
		arg := make([]byte, uapi.SizeMerge)
		native.PutUint32(arg[tc.off:], 1)
		if _, err := ask(c, p, uapi.SYNC_IOC_MERGE, 0, arg); !errors.Is(err, tc.want) {
			t.Errorf("MERGE with %s: %v, want %v", tc.name, err, tc.want)
		}
	}
}

// A file of another file system stands for the mount: what counts is that device and
// inode of a descriptor are found.
func TestIoctlImport(t *testing.T) {
	c, fsys, n, h := testView(t, "b")
	tl := mustTimeline(t, fsys, "tl")
	dir := t.TempDir()
	f, err := os.Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	fsys.syncs.dev.Store(st.Dev)
	point := func(seqno uint64) handle {
		p := tl.point(seqno)
		r := asker(c, st.Ino)
		h, err := p.open(r, syscall.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	do := func(flags uint32, fd int) error {
		_, err := ask(c, h, uapi.DMA_BUF_IOCTL_IMPORT_SYNC_FILE, 0, bytesOf(8, uapi.SyncFile{Flags: flags, FD: int32(fd)}))
		return err
	}
	fd := int(f.Fd())
	if err := do(1, fd); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a file that is no open sync file: %v, want EINVAL", err)
	}
	p := point(5)
	opath, err := unix.Open(f.Name(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(opath)
	other, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for what, s := range map[string]struct {
		flags uint32
		fd    int
	}{
		"flags 0": {0, fd}, "flags 4": {4, fd}, "-1": {1, -1}, "closed": {1, 1 << 20}, "O_PATH": {1, opath}, "another file system": {1, int(other.Fd())},
	} {
		if err := do(s.flags, s.fd); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v, want EINVAL", what, err)
		}
	}
	if got := n.buf.Resv().Slots(poll.Bookkeep); len(got) != 0 {
		t.Fatalf("refused imports added %v", got)
	}
	usages := func() (out []poll.Usage) {
		for _, s := range n.buf.Resv().Slots(poll.Bookkeep) {
			out = append(out, s.Usage)
		}
		return out
	}
	for _, s := range []struct {
		flags uint32
		want  []poll.Usage
	}{
		{1, []poll.Usage{poll.Read}},
		{1, []poll.Usage{poll.Read}},  // the same twice is one
		{2, []poll.Usage{poll.Write}}, // promoted
		{3, []poll.Usage{poll.Write}},
		{1, []poll.Usage{poll.Write, poll.Read}}, // never weakened
	} {
		if err := do(s.flags, fd); err != nil {
			t.Errorf("flags %d: %v", s.flags, err)
		}
		if got := usages(); len(got) != len(s.want) || got[0] != s.want[0] {
			t.Errorf("after flags %d: %v, want %v", s.flags, got, s.want)
		}
	}
	p.release()
	if err := do(1, fd); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a sync file that was closed: %v, want EINVAL", err)
	}
}

func TestCallerMemory(t *testing.T) {
	m := pages(t, 2)
	copy(m, "hello")
	pid := uint32(os.Getpid())
	p := make([]byte, 8)
	if n, err := readCaller(pid, addressOf(m), p); n != 8 || err != nil || string(p[:5]) != "hello" {
		t.Errorf("read %d %q, %v", n, p, err)
	}
	if n, err := readCaller(pid, addressOf(m[len(m)-3:]), p); n != 3 || err != syscall.EFAULT {
		t.Errorf("3 readable bytes: %d, %v, want 3, EFAULT", n, err)
	}
	if err := writeCaller(pid, addressOf(m[100:]), []byte("world")); err != nil || string(m[100:105]) != "world" {
		t.Errorf("write: %q, %v", m[100:105], err)
	}
	if err := writeCaller(pid, addressOf(m[len(m)-3:]), []byte("world")); err != syscall.EFAULT {
		t.Errorf("write beyond the end: %v, want EFAULT", err)
	}
	if err := writeCaller(0, addressOf(m), []byte("x")); err != syscall.EPERM {
		t.Errorf("nobody's memory: %v, want EPERM", err)
	}
	if n, err := readCaller(1<<30, addressOf(m), p); n != 0 || err != syscall.EFAULT {
		t.Errorf("a thread that is gone: %d, %v, want EFAULT", n, err)
	}
}

// FuzzIoctl gives any number and bytes to every kind of file. Whatever comes back,
// it is an errno of the contract, never ENOSYS, which would stop the kernel from
// asking, nor one without an errno.
func FuzzIoctl(f *testing.F) {
	for _, cmd := range []uint32{
		uapi.DMA_BUF_IOCTL_SYNC, uapi.DMA_BUF_SET_NAME_A, uapi.DMA_BUF_SET_NAME_B, uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE,
		uapi.DMA_BUF_IOCTL_IMPORT_SYNC_FILE, uapi.SYNC_IOC_FILE_INFO, uapi.SYNC_IOC_SET_DEADLINE, uapi.SYNC_IOC_MERGE,
		uapi.SW_SYNC_IOC_INC, uapi.SW_SYNC_GET_DEADLINE, uapi.CONTROL_EXPORT, uapi.CONTROL_MERGE, uapi.CONTROL_SW_SYNC_NEW,
		uapi.CONTROL_SW_SYNC_FENCE, uapi.CONTROL_BUFFER_NEW, uapi.ControlUdmabufNumber(1),
	} {
		f.Add(cmd, bytes.Repeat([]byte{1, 0, 0, 0, 0, 0, 0, 0}, 8))
		f.Add(cmd, bytes.Repeat([]byte{0xff}, uapi.Size(cmd)))
		f.Add(cmd, []byte{})
	}
	known := map[syscall.Errno]bool{}
	for _, e := range []syscall.Errno{
		0, syscall.EINVAL, syscall.EFAULT, syscall.ENOTTY, syscall.EOPNOTSUPP, syscall.EPERM, syscall.EBADF, syscall.EBADFD, syscall.ENOENT,
		syscall.ENOMEM, syscall.ENOSPC, syscall.EFBIG, syscall.ENFILE,
	} {
		known[e] = true
	}
	f.Fuzz(func(t *testing.T, cmd uint32, data []byte) {
		c, fsys, _, view := testView(t, "b")
		n := mustTimeline(t, fsys, "tl")
		files := []handle{view, mustOpen(t, c, n.point(1), syscall.O_RDONLY), &ctlHandle{fsys: fsys}}
		files = append(files, &swHandle{sw: &swSync{fsys: fsys, tl: poll.NewSWSync("sw"), open: 1}})
		for _, h := range files {
			r := asker(c, 1)
			r.pid = 0 // nobody's memory is to be touched
			in := &ioctlIn{cmd: cmd, arg: 4096, data: data, out: make([]byte, max(uapi.Size(cmd), len(data)))}
			_, err := h.(ioctler).ioctl(r, in)
			if e := errno(c.log, err); !known[e] {
				t.Errorf("%T: %#x gives %v", h, cmd, e)
			}
		}
		for _, h := range files[1:] {
			h.release()
		}
	})
}
