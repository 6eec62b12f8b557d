package fs

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmabuffs/dmabuffs/exporter"
)

func TestStateFiles(t *testing.T) {
	c, fsys, a := testConn(t)
	id, fh := openNew(t, c, a, "frame", 2)
	out := make([]byte, bufSize)
	n := fsys.buffers.find("frame")
	get := func(file string) string { return readPath(t, c, a, "state/frame/"+file) }
	check := func(file, want string) {
		t.Helper()
		if got := get(file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	check("size", "0\n")
	check("exporter_name", "system\n")
	check("refcount", "2\n") // its name, its open file
	check("vmapping_counter", "0\n")
	check("sg_table", "")
	check("mappings", "")
	check("write_fences", "")
	check("read_fences", "")
	check("name", "")
	for name, want := range map[string]string{"": "\n", "two words": "two words\n", "a\nb": `a\012b` + "\n"} {
		if err := n.buf.SetName(name); err != nil {
			t.Fatal(err)
		}
		check("name", want)
	}
	if got := get("domain"); !strings.HasPrefix(got, "none\n") {
		t.Errorf("domain is %q, want none first", got)
	}
	// packets come from thread 4242, whoever that is
	label := func() string { return fmt.Sprintf("%d %s", processOf(4242), commOf(4242, "")) }
	check("attachments", "cpu "+label()+" rw\n")

	c.handle(packet(opWrite, 4, id, u64s(fh, 0), u32s(5000, 0), u64s(0), u32s(2, 0), make([]byte, 5000)), out)
	if e, _ := a.last(t); e != 0 {
		t.Fatal(e)
	}
	check("size", "5000\n")
	if got := get("domain"); !strings.HasPrefix(got, "cpu\n") {
		t.Errorf("domain after a write is %q, want cpu first", got)
	}
	stats := get("stats")
	for _, row := range []string{"writes 1\n", "reads 0\n", "shootdowns 0\n", "pages_zapped 0\n", "bytes_laundered 0\n", "faults 0\n", "conflicts 0\n"} {
		if !strings.Contains("\n"+stats, "\n"+row) {
			t.Errorf("stats lack %q:\n%s", row, stats)
		}
	}
	// a page fault: a READ without a lock owner
	c.handle(packet(opRead, 4, id, u64s(fh, 0), u32s(4096, 0), u64s(0), u32s(2, 0)), out)
	if stats = get("stats"); !strings.Contains(stats, "\nfaults 1\n") || !strings.Contains(stats, "\nfault_by "+label()+" 1\n") {
		t.Errorf("stats after a fault:\n%s", stats)
	}

	// two names, one directory
	if err := fsys.buffers.link(n, "alias"); err != nil {
		t.Fatal(err)
	}
	if got := readPath(t, c, a, "state/alias/refcount"); got != "3\n" {
		t.Errorf("refcount through the second name is %q, want 3", got)
	}
	if x, y := fsys.stateDir(n), fsys.stateDir(n); x != y {
		t.Error("two directories for one buffer")
	}
}

// A device at work shows in every file, and odd names keep their rows whole.
func TestStateOfADevice(t *testing.T) {
	c, _, a := testConn(t)
	const odd = "dev 1\nx\\"
	const escaped = `dev\0401\012x\134`
	id, fh := openNew(t, c, a, "frame", 2)
	out := make([]byte, bufSize)
	c.handle(packet(opWrite, 4, id, u64s(fh, 0), u32s(5000, 0), u64s(0), u32s(2, 0), make([]byte, 5000)), out)
	c.handle(packet(9, 6, idDevices, u32s(0755, 0), []byte(odd+"\x00")), out) // MKDIR
	if e, _ := a.last(t); e != 0 {
		t.Fatal(e)
	}
	view := openPath(t, c, a, "devices/"+odd+"/buffers/frame", syscall.O_RDWR)
	owner := fmt.Sprintf("%d %s", processOf(4242), commOf(4242, ""))
	for file, want := range map[string]string{
		"attachments": "cpu " + owner + " rw\ndevice " + escaped + " " + owner + " DMA_BIDIRECTIONAL\n",
		"mappings":    "dma " + escaped + " DMA_BIDIRECTIONAL " + owner + "\n",
		"domain":      "device " + escaped + "\ncpu_pages 0\ndevice_pages 2\n",
		"refcount":    "3\n",
	} {
		if got := readPath(t, c, a, "state/frame/"+file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := readPath(t, c, a, "devices/"+odd+"/attachments"); got != "frame DMA_BIDIRECTIONAL "+owner+"\n" {
		t.Errorf("the device's attachments are %q", got)
	}
	var pages, bytes int64
	var addr uint64
	for row := range strings.Lines(readPath(t, c, a, "state/frame/sg_table")) {
		var off, n int64
		if k, err := fmt.Sscanf(row, "%d 0x%x %d\n", &off, &addr, &n); k != 3 || off != pages {
			t.Fatalf("sg_table row %q: %v", row, err)
		}
		pages, bytes = pages+n/exporter.PageSize, bytes+n
	}
	if bytes != 2*exporter.PageSize || addr%exporter.PageSize != 0 || addr == 0 {
		t.Errorf("sg_table of %d bytes, last at %#x, want 8192 in whole pages", bytes, addr)
	}
	if stats := readPath(t, c, a, "state/frame/stats"); !strings.Contains(stats, "shootdowns 1\npages_zapped 2\n") {
		t.Errorf("stats: %s", stats)
	}
	c.handle(packet(opFlush, 8, view.id, u64s(view.fh, 0, 0)), out)
	view.close()
	if got := readPath(t, c, a, "state/frame/domain"); !strings.HasPrefix(got, "cpu\n") {
		t.Errorf("domain after the device's close is %q", got)
	}
	if got := readPath(t, c, a, "state/frame/attachments"); got != "cpu "+owner+" rw\n" {
		t.Errorf("attachments after the device's close are %q", got)
	}
}

// The rights are the buffer's own.
func TestStateRights(t *testing.T) {
	c, fsys, a := testConn(t)
	openNew(t, c, a, "frame", 2)
	n := fsys.buffers.find("frame")
	n.meta.set(&fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE | fuse.FATTR_UID, Mode: 0642, Owner: fuse.Owner{Uid: 1234}}})
	var got []string
	for _, e := range stateBufferOps.list(nil) {
		got = append(got, e.Name)
		f, err := stateBufferOps.lookup(fsys.stateDir(n).(*dir), caller{}, e.Name)
		if err != nil {
			t.Fatal(err)
		}
		var attr fuse.Attr
		f.attr(&attr)
		want := uint32(syscall.S_IFREG | 0440)
		if strings.HasSuffix(e.Name, "_fences") {
			want = syscall.S_IFREG | 0642
		}
		if attr.Mode != want || attr.Uid != 1234 {
			t.Errorf("%s: mode %o of %d, want %o of 1234", e.Name, attr.Mode, attr.Uid, want)
		}
	}
	want := strings.Fields("size exporter_name name domain refcount vmapping_counter attachments mappings sg_table stats write_fences read_fences")
	if !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
	if _, err := stateBufferOps.lookup(fsys.stateDir(n).(*dir), caller{}, "nothing"); err != syscall.ENOENT {
		t.Errorf("an unknown file: %v, want ENOENT", err)
	}
	if _, err := stateOps.lookup(fsys.dirs.state, caller{}, "nothing"); err != syscall.ENOENT {
		t.Errorf("an unknown buffer: %v, want ENOENT", err)
	}
}

// An open state file of a buffer that is gone says so, and nothing else happens.
func TestStateOfAReleasedBuffer(t *testing.T) {
	c, fsys, a := testConn(t)
	id, fh := openNew(t, c, a, "frame", 2)
	f := openPath(t, c, a, "state/frame/stats", syscall.O_RDONLY)
	if _, err := fsys.buffers.remove("frame"); err != nil {
		t.Fatal(err)
	}
	if _, e := f.read(4096); e != 0 {
		t.Errorf("unlinked but open: %v", e)
	}
	c.handle(packet(opRelease, 6, id, u64s(fh, 0, 0)), f.out)
	if _, e := f.read(4096); e != syscall.ENODEV {
		t.Errorf("released: %v, want ENODEV", e)
	}
}

func TestParseMaps(t *testing.T) {
	const text = `559d4a000000-559d4a002000 r--p 00000000 fe:01 42 /usr/bin/cat
7f0000000000-7f0000004000 rw-s 00002000 00:2f 77 /mnt/buffers/a b
7f0000004000-7f0000005000 r--s 00000000 00:2f 78 /mnt/buffers/other
7f0000005000-7f0000006000 r--p 00000000 00:2f 281474976710660 /mnt/devices/gpu0/buffers/a (deleted)
7f0000006000-7f0000007000 rw-p 00000000 00:00 0
garbage
`
	got := parseMaps(text, "00:2f", 9, map[uint64]string{77: "cpu", 1<<48 + 4: "view gpu0", 42: "cpu"})
	want := []vma{{9, "rw-s", 2, 4, 77}, {9, "r--p", 0, 1, 1<<48 + 4}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(vma{})); diff != "" {
		t.Error(diff)
	}
}

// mapsOf finds this process' own mapping of an ordinary file.
func TestMapsOf(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(3 * exporter.PageSize); err != nil {
		t.Fatal(err)
	}
	m, err := syscall.Mmap(int(f.Fd()), exporter.PageSize, 2*exporter.PageSize, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Munmap(m)
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	ino := st.Sys().(*syscall.Stat_t).Ino
	fsys := &fileSystem{dir: f.Name()}
	got := mapsOf(fsys.dev(), map[uint64]string{ino: "cpu"})
	want := []vma{{uint32(os.Getpid()), "r--s", 1, 2, ino}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(vma{})); diff != "" {
		t.Errorf("mappings of %s (device %s): %s", f.Name(), fsys.dev(), diff)
	}
	if got := (&fileSystem{}).dev(); got != "" || mapsOf("", map[uint64]string{ino: "cpu"}) != nil {
		t.Errorf("a mount that cannot be named has device %q", got)
	}
}
