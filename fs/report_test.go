package fs

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/dmabuffs/dmabuffs/attach"
	"github.com/dmabuffs/dmabuffs/exporter"
	"github.com/dmabuffs/dmabuffs/poll"
)

// openFile is an open file of a file system without a mount.
type openFile struct {
	t   *testing.T
	c   *conn
	a   *answers
	id  uint64
	fh  uint64
	out []byte
}

// openPath walks from the root and opens what it finds, over the wire.
func openPath(t *testing.T, c *conn, a *answers, path string, flags uint32) *openFile {
	t.Helper()
	f := &openFile{t: t, c: c, a: a, id: idRoot, out: make([]byte, bufSize)}
	for name := range strings.SplitSeq(path, "/") {
		c.handle(packet(opLookup, 100, f.id, append([]byte(name), 0)), f.out)
		e, p := a.last(t)
		if e != 0 {
			t.Fatalf("LOOKUP %s of %s: %v", name, path, e)
		}
		f.id = native.Uint64(p)
	}
	c.handle(packet(opOpen, 102, f.id, u32s(flags, 0)), f.out)
	e, p := a.last(t)
	if e != 0 {
		t.Fatalf("OPEN %s: %v", path, e)
	}
	f.fh = native.Uint64(p)
	return f
}

func (f *openFile) read(size uint32) (string, syscall.Errno) {
	f.t.Helper()
	f.c.handle(packet(opRead, 104, f.id, u64s(f.fh, 0), u32s(size, 0), u64s(0), u32s(0, 0)), f.out)
	e, p := f.a.last(f.t)
	return string(p), e
}

func (f *openFile) close() {
	f.c.handle(packet(opRelease, 106, f.id, u64s(f.fh, 0, 0)), f.out)
}

// readPath is cat.
func readPath(t *testing.T, c *conn, a *answers, path string) string {
	t.Helper()
	f := openPath(t, c, a, path, syscall.O_RDONLY)
	defer f.close()
	text, e := f.read(1 << 20)
	if e != 0 {
		t.Fatalf("READ %s: %v", path, e)
	}
	return text
}

// newBuffers is a registry with nothing in it.
func newBuffers(t *testing.T) *exporter.Registry {
	t.Helper()
	return exporter.NewRegistry(exporter.Config{Quota: exporter.NewQuota(1<<30, 100)})
}

func create(t *testing.T, r *exporter.Registry, name string, size int64) *exporter.Buffer {
	t.Helper()
	e, err := r.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	b, err := e.Create(size)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What the kernel's bufinfo (6.12, a buffer of the heap "system") says in these
// situations, with the inode and the count left open: a raw count there has other
// references in it than ours.
func TestBufinfoIsTheKernels(t *testing.T) {
	const (
		head  = "\nDma-buf Objects:\nsize    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n"
		none  = "\tAttached Devices:\nTotal 0 devices attached\n\n"
		total = "\nTotal %d objects, %d bytes\n"
	)
	r := newBuffers(t)
	row := func(b *exporter.Buffer, size, name string) string {
		return fmt.Sprintf("%s\t00000002\t00080007\t%08d\tsystem\t%08d\t%s\n", size, b.Refs(), b.ID(), name)
	}
	check := func(what, want string) {
		t.Helper()
		if diff := cmp.Diff(want, bufinfo(r.Buffers())); diff != "" {
			t.Errorf("%s (-kernel +ours):\n%s", what, diff)
		}
	}
	check("no buffer", head+fmt.Sprintf(total, 0, 0))

	b := create(t, r, "system", 16384)
	one := fmt.Sprintf(total, 1, 16384)
	check("one fresh buffer", head+row(b, "00016384", "<none>")+none+one)
	if err := b.SetName("hello"); err != nil {
		t.Fatal(err)
	}
	check("named", head+row(b, "00016384", "hello")+none+one)
	b.Get()
	if b.Refs() != 2 {
		t.Fatalf("%d references, want 2", b.Refs())
	}
	check("another reference", head+strings.Replace(row(b, "00016384", "hello"), "\t00000001\t", "\t00000002\t", 1)+none+one)
	b.Put()

	context := poll.NewContext()
	w := poll.NewFence("vgem", "unbound", context, 1)
	b.Resv().Add(w, poll.Write)
	check("a write fence pending", head+row(b, "00016384", "hello")+"\twrite fence:vgem unbound seq 1 unsignalled\n"+none+one)
	if err := w.Signal(); err != nil {
		t.Fatal(err)
	}
	check("signalled", head+row(b, "00016384", "hello")+"\twrite fence:vgem unbound seq 1 signalled\n"+none+one)

	r1, r2 := poll.NewFence("vgem", "unbound", poll.NewContext(), 1), poll.NewFence("vgem", "unbound", poll.NewContext(), 1)
	c := create(t, r, "system", 4096)
	c.Resv().Add(r1, poll.Read)
	c.Resv().Add(r2, poll.Read)
	c.Resv().Add(poll.NewFence("vgem", "unbound", poll.NewContext(), 7), poll.Bookkeep)
	if err := r1.Signal(); err != nil {
		t.Fatal(err)
	}
	if err := c.SetName(""); err != nil {
		t.Fatal(err)
	}
	dev := attach.NewDevice("vgem")
	att, err := attach.Attach(c, dev)
	if err != nil {
		t.Fatal(err)
	}
	cpu := attach.AttachCPU(c, uint32(os.Getpid()), "me")
	check("a second one, with two read fences and a device; newest first", head+
		row(c, "00004096", "")+
		"\tread fence:vgem unbound seq 1 signalled\n\tread fence:vgem unbound seq 1 unsignalled\n"+
		"\tAttached Devices:\n\tvgem\nTotal 1 devices attached\n\n"+
		row(b, "00016384", "hello")+"\twrite fence:vgem unbound seq 1 signalled\n"+none+
		fmt.Sprintf(total, 2, 20480))
	att.Detach()
	cpu.Detach()
	if err := r2.Signal(); err != nil {
		t.Fatal(err)
	}
	b.Put()
	c.Put()
	check("everything closed", head+fmt.Sprintf(total, 0, 0))
}

func TestFMode(t *testing.T) {
	for flags, want := range map[int]uint32{syscall.O_RDONLY: 0x80005, syscall.O_WRONLY: 0x80006, syscall.O_RDWR: 0x80007, syscall.O_RDWR | syscall.O_CLOEXEC: 0x80007} {
		if got := fMode(flags); got != want {
			t.Errorf("f_mode of flags %#x: %#x, want %#x", flags, got, want)
		}
	}
}

// The files are there, everybody may read them, nobody write.
func TestReportFiles(t *testing.T) {
	c, fsys, a := testConn(t)
	for _, name := range []string{"bufinfo", "events", "metrics", "version"} {
		n := fsys.dirs.files[name]
		if n == nil {
			t.Fatalf("no file %s", name)
		}
		out := make([]byte, bufSize)
		c.handle(packet(opOpen, 2, n.id(), u32s(syscall.O_RDWR, 0)), out)
		if e, _ := a.last(t); e != syscall.EACCES {
			t.Errorf("opening %s to write: %v, want EACCES", name, e)
		}
	}
	openNew(t, c, a, "frame", 2)
	if got := readPath(t, c, a, "bufinfo"); !strings.Contains(got, "\tsystem\t") || !strings.HasSuffix(got, "\nTotal 1 objects, 0 bytes\n") {
		t.Errorf("bufinfo: %s", got)
	}
}

// The version that is said is the one that INIT answers.
func TestVersionText(t *testing.T) {
	c, _, a := testConn(t)
	c.handle(initPacket(), make([]byte, bufSize))
	_, p := a.last(t)
	got := readPath(t, c, a, "version")
	want := fmt.Sprintf("dmabuffs %s (%s, FUSE protocol %d.%d)\n", BuildVersion(), runtime.Version(), native.Uint32(p), native.Uint32(p[4:]))
	if got != want {
		t.Errorf("version: %q, want %q", got, want)
	}
	defer func(v string) { Version = v }(Version)
	Version = "v9.8.7"
	if got := versionText(); !strings.HasPrefix(got, "dmabuffs v9.8.7 (go") {
		t.Errorf("a release says %q", got)
	}
}

// sample is one value of the text, -1 when it is not there.
func sample(t *testing.T, text, name string, labels ...string) float64 {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("metrics are no Prometheus text: %v", err)
	}
	f := families[name]
	if f == nil {
		return -1
	}
next:
	for _, m := range f.GetMetric() {
		for i := 0; i+1 < len(labels); i += 2 {
			found := false
			for _, l := range m.GetLabel() {
				found = found || l.GetName() == labels[i] && l.GetValue() == labels[i+1]
			}
			if !found {
				continue next
			}
		}
		if m.Counter != nil {
			return m.Counter.GetValue()
		}
		return m.Gauge.GetValue()
	}
	return -1
}

func TestMetrics(t *testing.T) {
	c, fsys, a := testConn(t)
	id, fh := openNew(t, c, a, "frame", 2)
	out := make([]byte, bufSize)
	write := func(n int) {
		c.handle(packet(opWrite, 4, id, u64s(fh, 0), u32s(uint32(n), 0), u64s(0), u32s(2, 0), make([]byte, n)), out)
		if e, _ := a.last(t); e != 0 {
			t.Fatal(e)
		}
	}
	write(5000)
	write(5000)
	text := readPath(t, c, a, "metrics")
	for _, tc := range []struct {
		want   float64
		name   string
		labels []string
	}{
		{1, "dmabuffs_buffers", []string{"exporter", "system"}},
		{0, "dmabuffs_buffers", []string{"exporter", "coherent"}},
		{5000, "dmabuffs_buffer_bytes", []string{"exporter", "system"}},
		{8192, "dmabuffs_quota_used_bytes", nil},
		{float64(fsys.opts.Size), "dmabuffs_quota_bytes", nil},
		{1, "dmabuffs_buffer_names", nil},
		{2, "dmabuffs_writes_total", []string{"exporter", "system"}},
		{2, "dmabuffs_requests_total", []string{"op", "WRITE"}},
		{1, "dmabuffs_requests_total", []string{"op", "CREATE"}},
		{1, "dmabuffs_attachments", []string{"kind", "cpu"}},
		{0, "dmabuffs_attachments", []string{"kind", "device"}},
		{0, "dmabuffs_request_errors_total", nil},
		{2, "dmabuffs_handles", nil}, // frame and metrics
		{0, "dmabuffs_fences_pending", nil},
		{1, "dmabuffs_build_info", []string{"version", BuildVersion()}},
	} {
		if got := sample(t, text, tc.name, tc.labels...); got != tc.want {
			t.Errorf("%s%v is %v, want %v", tc.name, tc.labels, got, tc.want)
		}
	}
	if got := sample(t, text, "process_resident_memory_bytes"); got <= 0 {
		t.Errorf("resident memory %v", got)
	}
	for _, row := range regexp.MustCompile(`(?m)^dmabuffs_\w+_total.*$`).FindAllString(text, -1) {
		if strings.Contains(row, "-") {
			t.Errorf("a counter below zero: %s", row)
		}
	}

	// what a released buffer counted stays counted
	c.handle(packet(opRelease, 6, id, u64s(fh, 0, 0)), out)
	c.handle(packet(10, 8, idBuffers, []byte("frame\x00")), out) // UNLINK
	if e, _ := a.last(t); e != 0 {
		t.Fatal(e)
	}
	text = readPath(t, c, a, "metrics")
	for name, want := range map[string]float64{"dmabuffs_buffers": 0, "dmabuffs_writes_total": 2, "dmabuffs_buffer_bytes": 0} {
		if got := sample(t, text, name, "exporter", "system"); got != want {
			t.Errorf("after the release %s is %v, want %v", name, got, want)
		}
	}
}

func TestOpcodeNames(t *testing.T) {
	for op, want := range map[int]string{opRead: "READ", opPoll: "POLL", opIoctl: "IOCTL", opBatchForge: "BATCH_FORGET", opCreate: "CREATE", 7: "opcode_7", 63: "opcode_63"} {
		if got := opcodeName(op); got != want {
			t.Errorf("opcode %d is %s, want %s", op, got, want)
		}
	}
}
