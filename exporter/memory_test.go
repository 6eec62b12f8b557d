package exporter

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// openFiles is the number of descriptors of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(dir)
}

func TestMemoryIsLazy(t *testing.T) {
	r := NewRegistry(Config{})
	before := openFiles(t)
	for _, exp := range []string{"system", "coherent", "noncoherent"} {
		b := create(t, r, exp, 1<<30)
		m := b.memory()
		p := bytes.Repeat([]byte{1}, 100)
		n, err := b.Read(bounded(t), p, 1<<30-50)
		if n != 50 || err != nil || !bytes.Equal(p[:50], make([]byte, 50)) {
			t.Fatal(n, err)
		}
		if m.Blocks() != 0 || openFiles(t) != before {
			t.Fatalf("%s: %d blocks, %d files more", exp, m.Blocks(), openFiles(t)-before)
		}
		must(t, b.PunchHole(0, 1<<20))
		must(t, b.Resize(1<<29))
		if m.file != nil {
			t.Fatal("made without need")
		}
	}
	b := create(t, r, "system", 1<<30)
	_, err := b.WritePages([]byte{1}, 1<<29)
	must(t, err)
	if n := b.memory().Blocks(); n != 8 {
		t.Fatalf("%d blocks for one page", n)
	}
}

func TestMemoryBytes(t *testing.T) {
	m := &Memory{}
	defer m.Close()
	must(t, m.Truncate(10000))
	data := fill(5000, 9)
	n, err := m.WriteAt(data, 3000)
	if n != 5000 || err != nil {
		t.Fatal(n, err)
	}
	n, err = m.WriteAt(data, 9000)
	if n != 1000 || !errors.Is(err, syscall.EFBIG) {
		t.Fatal(n, err)
	}
	got, err := io.ReadAll(io.NewSectionReader(m, 0, 1<<20))
	must(t, err)
	want := make([]byte, 10000)
	copy(want[3000:], data)
	copy(want[9000:], data)
	wantBytes(t, "all of it", got, want)

	must(t, m.PunchHole(4000, 200))
	clear(want[4000:4200])
	must(t, m.PunchHole(9990, 1<<40))
	clear(want[9990:])
	got, err = io.ReadAll(io.NewSectionReader(m, 0, 1<<20))
	must(t, err)
	wantBytes(t, "with holes", got, want)

	// What goes away and comes back is zero, even where a mapping stored behind the end.
	must(t, m.Truncate(5000))
	p, err := m.mapRange(0, 2*PageSize)
	must(t, err)
	wantErrno(t, m.Truncate(1), syscall.EBUSY)
	p[5001] = 99
	m.unmapRange(p)
	must(t, m.Truncate(10000))
	clear(want[5000:])
	got, err = io.ReadAll(io.NewSectionReader(m, 0, 1<<20))
	must(t, err)
	wantBytes(t, "grown again", got, want)

	for _, err := range []error{
		second(m.ReadAt(make([]byte, 1), -1)), second(m.WriteAt(make([]byte, 1), -1)),
		m.PunchHole(-1, 5), m.PunchHole(0, 0), m.Allocate(0, 10001), m.Allocate(-1, 1), m.Allocate(0, 0),
	} {
		wantErrno(t, err, syscall.EINVAL)
	}
	wantErrno(t, m.Truncate(-1), syscall.EFBIG)
	must(t, m.Allocate(0, 10000))
	if m.Blocks() != 3*8 {
		t.Fatal(m.Blocks())
	}
	m.Close()
	m.Close()
	for _, err := range []error{
		second(m.ReadAt(make([]byte, 1), 0)), second(m.WriteAt(make([]byte, 1), 0)), m.Truncate(1), m.PunchHole(0, 1), m.Allocate(0, 1),
	} {
		wantErrno(t, err, syscall.ENODEV)
	}
	_, err = m.File()
	wantErrno(t, err, syscall.ENODEV)
}

func second(_ int, err error) error { return err }

// TestMemoryWriteFails: a write that runs into a limit says how far it came, and all
// that is stored stays.
func TestMemoryWriteFails(t *testing.T) {
	m := &Memory{}
	defer m.Close()
	must(t, m.Truncate(8*PageSize))
	data := fill(2*PageSize, 1)
	_, err := m.WriteAt(data, 0)
	must(t, err)
	f, err := m.File()
	must(t, err)
	// As near as a test comes to a full memory: the kernel refuses every further write.
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	must(t, err)
	n, err := m.WriteAt(data, 4*PageSize)
	if n != 0 || !errors.Is(err, syscall.EPERM) {
		t.Fatal(n, err)
	}
	got := make([]byte, 8*PageSize)
	_, err = m.ReadAt(got, 0)
	must(t, err)
	wantBytes(t, "stored", got[:len(data)], data)
	wantBytes(t, "not stored", got[len(data):], make([]byte, 6*PageSize))
}

func TestMemoryMapped(t *testing.T) {
	m := &Memory{}
	defer m.Close()
	if m.Mapped() {
		t.Fatal("mapped without a file")
	}
	must(t, m.Truncate(PageSize))
	p, err := m.mapRange(0, PageSize)
	must(t, err)
	if !m.Mapped() {
		t.Fatal("a writable mapping is not seen")
	}
	p[0] = 5
	m.unmapRange(p)
	if m.Mapped() {
		t.Fatal("still mapped")
	}
	var q [1]byte
	_, err = m.ReadAt(q[:], 0)
	wantByte(t, "read", q[0], err, 5)
}

func TestVmapKmap(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 1 << 20})
	for _, exp := range r.Names() {
		b := create(t, r, exp, 2*PageSize+100)
		p, err := b.Vmap()
		must(t, err)
		if len(p) != 3*PageSize {
			t.Fatal(len(p))
		}
		k := b.Kmap(2)
		k[99] = 42
		wantByte(t, "vmap", p[2*PageSize+99], nil, 42)
		wantByte(t, "memory", memoryByte(t, b, 2*PageSize+99), nil, 42)
		wantErrno(t, b.Resize(PageSize), syscall.EBUSY)
		b.Vunmap(p)
		wantErrno(t, b.Resize(PageSize), syscall.EBUSY)
		b.Kunmap(2, k)
		if b.Kmap(3) != nil || b.KmapAtomic(-1) != nil {
			t.Fatal("a page behind the end")
		}
		must(t, b.Resize(PageSize))
		must(t, b.Resize(0))
		_, err = b.Vmap()
		wantErrno(t, err, syscall.EINVAL)
		wantErrno(t, b.Mmap(&VMA{}), syscall.EINVAL) // private
	}
}

// memfd is somebody else's memory, sealed as udmabuf wants it.
func memfd(t *testing.T, size int64, seals int) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("client", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	must(t, err)
	f := os.NewFile(uintptr(fd), "client")
	t.Cleanup(func() { f.Close() })
	must(t, f.Truncate(size))
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	must(t, err)
	return f
}

func TestCreateFromMemfd(t *testing.T) {
	q := NewQuota(PageSize, 0)
	r := NewRegistry(Config{Quota: q})
	before := openFiles(t)
	f := memfd(t, 4*PageSize, unix.F_SEAL_SHRINK)
	b, err := r.CreateFromMemfd(Part{f, 0, 4 * PageSize})
	must(t, err)
	if b.Size() != 4*PageSize || q.Used() != 0 || q.Buffers() != 1 || b.ExpName() != "coherent" {
		t.Fatal(b.Size(), q.Used())
	}
	v := VMA{Length: PageSize, Shared: true}
	must(t, b.Mmap(&v))
	if v.Kind != MapPassthrough || v.File == nil {
		t.Fatalf("%+v", v)
	}
	setMemory(t, b, 5000, 3)
	var p [1]byte
	_, err = f.ReadAt(p[:], 5000)
	wantByte(t, "the client's", p[0], err, 3)
	_, err = f.WriteAt([]byte{4}, 5001)
	must(t, err)
	wantByte(t, "the buffer's", memoryByte(t, b, 5001), nil, 4)
	wantErrno(t, b.Resize(PageSize), syscall.EINVAL)
	if b.memory().Mapped() {
		t.Fatal("asked by sealing what is not ours")
	}
	b.Put()
	_, err = f.WriteAt([]byte{4}, 5001) // not sealed, not closed
	must(t, err)

	// Pages of two files, in another order.
	g := memfd(t, 3*PageSize, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	b, err = r.CreateFromMemfd(Part{g, PageSize, 2 * PageSize}, Part{f, 3 * PageSize, PageSize}, Part{g, 0, PageSize})
	must(t, err)
	v = VMA{Length: PageSize, Shared: true}
	must(t, b.Mmap(&v))
	if v.Kind != MapCached || b.Size() != 4*PageSize {
		t.Fatalf("%+v", v)
	}
	if file, err := b.memory().File(); file != nil || err != nil {
		t.Fatal(file, err)
	}
	data := fill(4*PageSize, 5)
	_, err = b.WritePages(data, 0)
	must(t, err)
	for i, where := range []struct {
		f   *os.File
		off int64
	}{{g, PageSize}, {g, 2 * PageSize}, {f, 3 * PageSize}, {g, 0}} {
		got := make([]byte, PageSize)
		_, err := where.f.ReadAt(got, where.off)
		must(t, err)
		wantBytes(t, fmt.Sprint("page ", i), got, data[i*PageSize:][:PageSize])
	}
	vm, err := b.Vmap()
	must(t, err)
	wantBytes(t, "vmap", vm, data)
	b.Vunmap(vm)
	must(t, b.PunchHole(PageSize+1, 2*PageSize))
	clear(data[PageSize+1 : 3*PageSize+1])
	got := make([]byte, 4*PageSize)
	_, err = b.ReadPages(got, 0)
	must(t, err)
	wantBytes(t, "after a hole", got, data)
	b.Put()

	// One range that is not the whole file is no passthrough: a mapping would reach further.
	b, err = r.CreateFromMemfd(Part{f, 0, PageSize})
	must(t, err)
	v = VMA{Shared: true}
	must(t, b.Mmap(&v))
	if v.Kind != MapCached {
		t.Fatal(v.Kind)
	}
	b.Put()

	// What udmabuf refuses.
	plain, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	must(t, err)
	defer plain.Close()
	must(t, plain.Truncate(PageSize))
	for name, c := range map[string]struct {
		parts []Part
		want  syscall.Errno
	}{
		"nothing":       {nil, syscall.EINVAL},
		"no seal":       {[]Part{{memfd(t, PageSize, 0), 0, PageSize}}, syscall.EINVAL},
		"sealed":        {[]Part{{memfd(t, PageSize, unix.F_SEAL_SHRINK|unix.F_SEAL_WRITE), 0, PageSize}}, syscall.EINVAL},
		"future":        {[]Part{{memfd(t, PageSize, unix.F_SEAL_SHRINK|unix.F_SEAL_FUTURE_WRITE), 0, PageSize}}, syscall.EINVAL},
		"offset":        {[]Part{{f, 1, PageSize}}, syscall.EINVAL},
		"length":        {[]Part{{f, 0, PageSize + 1}}, syscall.EINVAL},
		"no length":     {[]Part{{f, 0, 0}}, syscall.EINVAL},
		"past the end":  {[]Part{{f, 0, PageSize}, {f, PageSize, 4 * PageSize}}, syscall.EINVAL},
		"wrap":          {[]Part{{f, 1<<63 - PageSize, PageSize}}, syscall.EINVAL},
		"negative":      {[]Part{{f, -PageSize, PageSize}}, syscall.EINVAL},
		"not in memory": {[]Part{{plain, 0, PageSize}}, syscall.EBADFD},
	} {
		if _, err := r.CreateFromMemfd(c.parts...); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	if r.Len() != 0 || q.Buffers() != 0 {
		t.Fatal("left behind")
	}
	runtime.GC()
	if n := openFiles(t); n > before+8 { // the files of this test itself
		t.Fatalf("%d files more", n-before)
	}
}

// TestReleaseFrees: release closes the memories.
func TestReleaseFrees(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 1 << 20})
	before := openFiles(t)
	for _, exp := range r.Names() {
		e, _ := r.Lookup(exp)
		b, err := e.Create(PageSize)
		must(t, err)
		c := mapped(b)
		must(t, c.store(0, 1))
		must(t, c.evict(0))
		must(t, b.EndCPUAccess(bounded(t), Bidirectional))
		if openFiles(t) == before {
			t.Fatalf("%s has no memory", exp)
		}
		b.Put()
		if n := openFiles(t); n != before {
			t.Fatalf("%s: %d files left", exp, n-before)
		}
	}
}

// fakeLimiter is a limiter over files in a directory of its own.
func fakeLimiter(t *testing.T, files map[string]string) *limiter {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	mounts := fmt.Sprintf("30 1 0:1 / %s/v2 rw - cgroup2 cgroup2 rw\n31 1 0:2 /outer %s/v1 rw shared:1 - cgroup cgroup rw,memory\n", dir, dir)
	return newLimiter("4:cpu,memory:/outer/job\n0::/a/b\n", mounts, filepath.Join(dir, "meminfo"))
}

func TestLimiter(t *testing.T) {
	const mib = 1 << 20
	n := func(v int64) string { return fmt.Sprintln(v) }
	for name, c := range map[string]struct {
		files map[string]string
		want  int64 // MiB left
	}{
		"nothing known": {nil, 1<<43 - 1},
		"no limit":      {map[string]string{"v2/a/b/memory.max": "max\n", "v2/a/b/memory.current": n(5)}, 1<<43 - 1},
		"own group": {map[string]string{
			"v2/a/b/memory.max": n(1024 * mib), "v2/a/b/memory.current": n(24 * mib),
		}, 1000 - 32},
		"group above": {map[string]string{
			"v2/a/b/memory.max": "max\n", "v2/a/b/memory.current": n(24 * mib),
			"v2/a/memory.max": n(160 * mib), "v2/a/memory.current": n(100 * mib),
		}, 60 - 10},
		"reclaimable": {map[string]string{
			"v2/a/b/memory.max": n(160 * mib), "v2/a/b/memory.current": n(150 * mib),
			"v2/a/b/memory.stat": fmt.Sprintf("anon 1\nfile 9\ninactive_file %d\nactive_file %d\n", 40*mib, 2*mib),
		}, 42},
		"full": {map[string]string{
			"v2/a/b/memory.max": n(160 * mib), "v2/a/b/memory.current": n(159 * mib),
		}, 0},
		"version 1": {map[string]string{
			"v1/job/memory.limit_in_bytes": n(160 * mib), "v1/job/memory.usage_in_bytes": n(100 * mib),
		}, 50},
		"machine": {map[string]string{"meminfo": "MemTotal:  327680 kB\nMemFree: 5 kB\nMemAvailable:  102400 kB\n"}, 80},
	} {
		if got := fakeLimiter(t, c.files).left() / mib; got != c.want {
			t.Errorf("%s: %d MiB left, want %d", name, got, c.want)
		}
	}
}

// TestLimiterRefuses: ENOMEM instead of the OOM killer, for what would need pages;
// what is stored can be read, and written again.
func TestLimiterRefuses(t *testing.T) {
	const mib = 1 << 20
	l := fakeLimiter(t, map[string]string{
		"v2/a/b/memory.max": fmt.Sprintln(160 * mib), "v2/a/b/memory.current": fmt.Sprintln(100 * mib),
	})
	real := memoryLimit
	memoryLimit = func() *limiter { return l }
	defer func() { memoryLimit = real }()

	m := &Memory{}
	defer m.Close()
	must(t, m.Truncate(1<<40))
	wantErrno(t, m.Allocate(0, 51*mib), syscall.ENOMEM)
	if m.file != nil && m.Blocks() != 0 {
		t.Fatal("allocated by a refusal")
	}
	must(t, m.Allocate(0, 1*mib))
	data := fill(4*mib, 1)
	_, err := m.WriteAt(data, 0)
	must(t, err)

	full := filepath.Join(l.v2[0], "memory.current")
	must(t, os.WriteFile(full, []byte(fmt.Sprintln(159*mib)), 0o644))
	l.credit = 0
	blocks := m.Blocks()
	_, err = m.WriteAt(data, 8*mib)
	wantErrno(t, err, syscall.ENOMEM)
	if m.Blocks() != blocks {
		t.Fatal("allocated by a refusal")
	}
	_, err = m.WriteAt(data, 0) // no new pages
	must(t, err)
	got := make([]byte, len(data))
	_, err = m.ReadAt(got, 0)
	must(t, err)
	wantBytes(t, "stored", got, data)
	wantErrno(t, m.Allocate(0, 4*mib+1), syscall.ENOMEM)
	must(t, m.Allocate(0, 4*mib))

	must(t, os.WriteFile(full, []byte(fmt.Sprintln(100*mib)), 0o644))
	_, err = m.WriteAt(data, 8*mib)
	must(t, err)
}

func TestHoles(t *testing.T) {
	m := &Memory{}
	defer m.Close()
	must(t, m.Truncate(100*PageSize))
	if n := m.holes(10, 2*PageSize); n != 3*PageSize {
		t.Fatal(n)
	}
	for _, page := range []int64{2, 3, 7} {
		_, err := m.WriteAt([]byte{1}, page*PageSize)
		must(t, err)
	}
	for _, c := range []struct{ off, n, want int64 }{
		{0, 10 * PageSize, 7 * PageSize}, {2 * PageSize, 2 * PageSize, 0}, {2*PageSize + 5, PageSize, 0},
		{3 * PageSize, PageSize + 1, PageSize}, {8 * PageSize, 92 * PageSize, 92 * PageSize}, {7 * PageSize, 1, 0},
	} {
		if n := m.holes(c.off, c.n); n != c.want {
			t.Errorf("%d bytes of holes in %d+%d, want %d", n, c.off, c.n, c.want)
		}
	}
}

// TestIdleSize is what a buffer costs while nobody uses it: the aim is 4 KiB with all
// that package fs has for it.
func TestIdleSize(t *testing.T) {
	r := NewRegistry(Config{})
	e, _ := r.Lookup("system")
	const n = 20000
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	bufs := make([]*Buffer, n)
	for i := range bufs {
		b, err := e.Create(1 << 20)
		must(t, err)
		bufs[i] = b
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int64(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%d bytes of heap for an idle buffer", each)
	if each > 2048 {
		t.Errorf("%d bytes for an idle buffer", each)
	}
	for _, b := range bufs {
		b.Put()
	}
	if r.Len() != 0 {
		t.Fatal("still listed")
	}
}
