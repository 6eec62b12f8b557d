package exporter

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dmabuffs/dmabuffs/poll"
)

// The Bnn are the behaviours of the kernel's dma-buf that a test holds to.

func TestExport(t *testing.T) { // B01, B07, B09, B12
	x := newThird()
	x.ops.Attach, x.ops.Detach = nil, nil
	o := NewOwner("third")
	info := DefineInfo(o)
	info.Ops, info.Priv, info.Size = &x.ops, x, 12345
	b, err := Export(info)
	must(t, err)
	if b.Size() != 12345 || b.ExpName() != "third" || b.Priv() != x || b.Owner() != o || b.Ops() != &x.ops || b.Refs() != 1 || o.Live() != 1 {
		t.Fatalf("fields were not kept: %+v", b)
	}
	if b.Flags() != syscall.O_RDONLY {
		t.Fatalf("flags %#x by default", b.Flags())
	}
	b.Put()
	x.want(t, "release", 1)
	if o.Live() != 0 {
		t.Fatal("the owner is still counted")
	}
	info.Size = 0
	b, err = Export(info)
	must(t, err)
	wantErrno(t, b.Mmap(&VMA{Length: 1}), syscall.EINVAL)
	b.Put()
}

func TestExportRefuses(t *testing.T) { // B02..B06, B11
	for name, spoil := range map[string]func(*Info, *Ops){
		"priv":                  func(i *Info, _ *Ops) { i.Priv = nil },
		"ops":                   func(i *Info, _ *Ops) { i.Ops = nil },
		"map_dma_buf":           func(_ *Info, o *Ops) { o.MapDMABuf = nil },
		"unmap_dma_buf":         func(_ *Info, o *Ops) { o.UnmapDMABuf = nil },
		"release":               func(_ *Info, o *Ops) { o.Release = nil },
		"mmap":                  func(_ *Info, o *Ops) { o.Mmap = nil },
		"kmap":                  func(_ *Info, o *Ops) { o.Kmap = nil },
		"kmap_atomic":           func(_ *Info, o *Ops) { o.KmapAtomic = nil },
		"both of pin and unpin": func(_ *Info, o *Ops) { o.Pin = func(*Buffer, Importer) error { return nil } },
		"bytes":                 func(i *Info, _ *Ops) { i.Size = -1 },
	} {
		x, o := newThird(), NewOwner("third")
		info := DefineInfo(o)
		info.Ops, info.Priv = &x.ops, x
		spoil(&info, &x.ops)
		_, err := Export(info)
		if !errors.Is(err, syscall.EINVAL) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
		if o.Live() != 0 {
			t.Errorf("%s: the owner is counted after a refusal", name)
		}
	}
}

func TestExportFlags(t *testing.T) { // B10
	x := newThird()
	info := DefineInfo(nil)
	info.Ops, info.Priv, info.Flags = &x.ops, x, syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_APPEND|syscall.O_CLOEXEC
	b, err := Export(info)
	must(t, err)
	defer b.Put()
	if b.Flags() != syscall.O_RDWR|syscall.O_NONBLOCK {
		t.Fatalf("flags %#x", b.Flags())
	}
}

// thirdExporter registers a third.
type thirdExporter struct {
	x *third
	o *Owner
}

func (e thirdExporter) Name() string  { return "third" }
func (e thirdExporter) Owner() *Owner { return e.o }
func (e thirdExporter) Create(size int64) (*Buffer, error) {
	info := DefineInfo(e.o)
	info.Ops, info.Priv, info.Size = &e.x.ops, e.x, size
	return Export(info)
}

func TestUnregister(t *testing.T) { // B08
	r := NewRegistry(Config{})
	e := thirdExporter{newThird(), NewOwner("third")}
	must(t, r.Register(e))
	wantErrno(t, r.Register(e), syscall.EEXIST)
	b, err := e.Create(PageSize)
	must(t, err)
	wantErrno(t, r.Unregister("third"), syscall.EBUSY)
	if got := r.Buffers(); len(got) != 1 || got[0] != b || r.Buffer(b.ID()) != b {
		t.Fatal("the buffer is not listed")
	}
	b.Put()
	must(t, r.Unregister("third"))
	wantErrno(t, r.Unregister("third"), syscall.ENOENT)
	_, err = e.Create(PageSize)
	wantErrno(t, err, syscall.ENOENT)
	if e.o.Live() != 0 {
		t.Fatal("counted after a refusal")
	}
	must(t, r.Register(e)) // loaded again
	b, err = e.Create(PageSize)
	must(t, err)
	b.Put()
	wantErrno(t, NewRegistry(Config{}).Register(e), syscall.EBUSY)
	for _, bad := range []string{"", ".", "..", "a/b", "a\x00b", strings.Repeat("x", 256)} {
		if validName(bad) {
			t.Errorf("%q is a name", bad)
		}
	}
}

func TestRegistryOrder(t *testing.T) {
	r := NewRegistry(Config{})
	if got := fmt.Sprint(r.Names()); got != "[coherent contiguous noncoherent system]" {
		t.Fatal(got)
	}
	var made []*Buffer
	for range 5 {
		made = append(made, create(t, r, "system", 0))
	}
	b, err := r.exporters["coherent"].Create(0)
	must(t, err)
	b.Put()
	got := r.Buffers()
	if len(got) != 5 || r.Len() != 5 {
		t.Fatalf("%d listed", len(got))
	}
	for i, b := range got {
		if b != made[4-i] {
			t.Fatal("not newest first")
		}
		if i > 0 && b.ID() >= got[i-1].ID() {
			t.Fatal("numbers do not grow")
		}
	}
	_, err = r.Lookup("nobody")
	wantErrno(t, err, syscall.ENOENT)
}

func TestReferences(t *testing.T) { // B15
	x := newThird()
	b := x.export(t)
	b.Get()
	b.Put()
	x.want(t, "release", 0)
	var wg sync.WaitGroup
	for range 8 {
		b.Get()
		wg.Go(func() {
			for range 1000 {
				if !b.TryGet() {
					t.Error("TryGet of a live buffer")
				}
				b.Put()
			}
			b.Put()
		})
	}
	b.Put()
	wg.Wait()
	x.want(t, "release", 1)
	if b.TryGet() {
		t.Fatal("TryGet of a released buffer")
	}
	wantPanic(t, "put below zero", b.Put)
	wantPanic(t, "get of a released buffer", b.Get)
	x.want(t, "release", 1)
}

func TestSetName(t *testing.T) {
	b := newThird().export(t)
	defer b.Put()
	if _, named := b.Name(); named {
		t.Fatal("named")
	}
	must(t, b.SetName(""))
	if s, named := b.Name(); s != "" || !named {
		t.Fatal("an empty name is a name")
	}
	long := strings.Repeat("\n", 31)
	must(t, b.SetName(long))
	wantErrno(t, b.SetName(long+"x"), syscall.EINVAL)
	if s, _ := b.Name(); s != long {
		t.Fatalf("%q", s)
	}
}

func TestAttachOp(t *testing.T) { // B19, B20
	x := newThird()
	x.ops.Attach = func(*Buffer, Importer) error { return syscall.EBUSY }
	b := x.export(t)
	defer b.Put()
	d := &device{name: "gpu0"}
	wantErrno(t, b.Attach(d), syscall.EBUSY)
	if len(b.Attachments()) != 0 {
		t.Fatal("on the list after a refusal")
	}
	x.want(t, "detach", 0)
	wantErrno(t, b.Attach(nil), syscall.EINVAL) // B21
	x.ops.Attach, x.ops.Detach = nil, nil
	must(t, b.Attach(d))
	wantErrno(t, b.Attach(d), syscall.EINVAL)
	if got := b.Attachments(); len(got) != 1 || got[0] != d {
		t.Fatal("not on the list")
	}
	b.Detach(d)
	b.Detach(d) // WARN
	if len(b.Attachments()) != 0 {
		t.Fatal("still on the list")
	}
}

func TestAttachCPU(t *testing.T) {
	x := newThird()
	b := x.export(t)
	defer b.Put()
	p := &device{name: "process"}
	b.AttachCPU(p)
	if len(b.Attachments()) != 1 || len(b.Devices()) != 0 {
		t.Fatal("a process is no device")
	}
	_, err := b.Map(bounded(t), p, ToDevice)
	wantErrno(t, err, syscall.EINVAL)
	wantErrno(t, b.SyncForCPU(bounded(t), p, ToDevice), syscall.EINVAL)
	b.Detach(p)
	x.want(t, "attach", 0)
	x.want(t, "detach", 0)
}

func TestMap(t *testing.T) { // B22, B23, B27, B29, B30
	ctx := bounded(t)
	x := newThird()
	mapOp := x.ops.MapDMABuf
	b := x.export(t)
	defer b.Put()
	d, d2 := &device{name: "gpu0"}, &device{name: "gpu0"}

	_, err := b.Map(ctx, d, ToDevice)
	wantErrno(t, err, syscall.EINVAL) // not attached
	must(t, b.Attach(d))
	must(t, b.Attach(d2))
	_, err = b.Map(ctx, d, None)
	wantErrno(t, err, syscall.EINVAL)
	_, err = b.Map(ctx, nil, ToDevice)
	wantErrno(t, err, syscall.EINVAL)
	x.want(t, "map", 0)

	for _, c := range []struct {
		op   func(context.Context, *Buffer, Importer, Direction) (*SGTable, error)
		want syscall.Errno
	}{
		{func(context.Context, *Buffer, Importer, Direction) (*SGTable, error) { return nil, nil }, syscall.ENOMEM},
		{func(context.Context, *Buffer, Importer, Direction) (*SGTable, error) { return nil, syscall.EINTR }, syscall.EINTR},
	} {
		x.ops.MapDMABuf = c.op
		_, err = b.Map(ctx, d, ToDevice)
		wantErrno(t, err, c.want)
		if n, _ := b.MappedBy(d); n != 0 || b.Mapped() != 0 {
			t.Fatal("counted after an error")
		}
	}
	x.ops.MapDMABuf = mapOp
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = b.Map(ended, d, ToDevice)
	wantErrno(t, err, syscall.EINTR)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("%v is not the context's", err)
	}
	x.want(t, "map", 0)

	s1, err := b.Map(ctx, d, ToDevice)
	must(t, err)
	_, err = b.Map(ctx, d, FromDevice)
	wantErrno(t, err, syscall.EBUSY)
	s2, err := b.Map(ctx, d, ToDevice)
	must(t, err)
	s3, err := b.Map(ctx, d2, FromDevice) // another attachment of the same device
	must(t, err)
	x.want(t, "map", 3)
	if s1 == s2 || s1 == s3 || b.Mapped() != 3 || b.SGTableOf() != s3 {
		t.Fatal("tables are not independent")
	}
	if n, dir := b.MappedBy(d); n != 2 || dir != ToDevice {
		t.Fatal(n, dir)
	}
	wantPanic(t, "detach while mapped", func() { b.Detach(d) })
	b.Unmap(d, s3, ToDevice) // not its table: WARN
	x.want(t, "unmap", 0)
	b.Unmap(d, s1, ToDevice)
	b.Unmap(d, s1, ToDevice) // twice: WARN
	b.Unmap(d, nil, ToDevice)
	x.want(t, "unmap", 1)
	b.Unmap(d, s2, Bidirectional) // WARN, but it is unmapped
	x.want(t, "unmap", 2)
	s1, err = b.Map(ctx, d, FromDevice) // another direction, now that none is mapped (B26 is PRIME's cache)
	must(t, err)
	b.Unmap(d, s1, FromDevice)
	b.Unmap(d2, s3, FromDevice)
	if b.Mapped() != 0 {
		t.Fatal(b.Mapped())
	}
	b.Detach(d)
	b.Detach(d2)
}

func TestMapWaitsForKernelFences(t *testing.T) {
	x := newThird()
	b := x.export(t)
	defer b.Put()
	d := &device{name: "gpu0"}
	must(t, b.Attach(d))
	defer b.Detach(d)
	f := poll.NewFence("test", "move", poll.NewContext(), 1)
	b.Resv().Add(f, poll.Kernel)

	ctx, cancel := context.WithCancel(bounded(t))
	waiting := make(chan struct{})
	mapOp := x.ops.MapDMABuf
	x.ops.MapDMABuf = func(c context.Context, b *Buffer, i Importer, dir Direction) (*SGTable, error) {
		defer close(waiting)
		return mapOp(c, b, i, dir)
	}
	done := make(chan error, 1)
	go func() { _, err := b.Map(ctx, d, ToDevice); done <- err }()
	<-waiting
	cancel()
	wantErrno(t, <-done, syscall.EINTR)
	x.want(t, "unmap", 1)
	if b.Mapped() != 0 {
		t.Fatal("counted after an interrupt")
	}
	x.ops.MapDMABuf = mapOp
	go func() {
		sgt, err := b.Map(bounded(t), d, ToDevice)
		if err == nil {
			b.Unmap(d, sgt, ToDevice)
		}
		done <- err
	}()
	select {
	case err := <-done:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	must(t, f.Signal())
	must(t, <-done)
}

func TestPin(t *testing.T) {
	x := newThird()
	x.ops.Pin = func(*Buffer, Importer) error { x.count("pin"); return nil }
	x.ops.Unpin = func(*Buffer, Importer) { x.count("unpin") }
	b := x.export(t)
	defer b.Put()
	d := &device{name: "gpu0"}
	must(t, b.Attach(d))
	defer b.Detach(d)
	sgt, err := b.Map(bounded(t), d, ToDevice)
	must(t, err)
	x.want(t, "unpin", 0)
	b.Unmap(d, sgt, ToDevice)
	x.want(t, "pin", 1)
	x.want(t, "unpin", 1)
	x.ops.MapDMABuf = func(context.Context, *Buffer, Importer, Direction) (*SGTable, error) { return nil, nil }
	_, err = b.Map(bounded(t), d, ToDevice)
	wantErrno(t, err, syscall.ENOMEM)
	x.want(t, "unpin", 2)
}

func TestVmap(t *testing.T) { // B31..B36
	x := newThird()
	b := x.export(t)
	_, err := b.Vmap()
	wantErrno(t, err, syscall.EINVAL) // B34

	fail := true
	x.ops.Vmap = func(*Buffer) ([]byte, error) {
		x.count("vmap")
		if fail {
			return nil, syscall.ENOMEM
		}
		return x.page[:], nil
	}
	_, err = b.Vmap()
	wantErrno(t, err, syscall.ENOMEM) // B33
	if b.VmappingCounter() != 0 || b.VmapPtr() != nil {
		t.Fatal("counted after an error")
	}
	fail = false
	p, err := b.Vmap()
	must(t, err)
	x.want(t, "vmap", 2)
	q, err := b.Vmap()
	must(t, err)
	if &p[0] != &q[0] || &b.VmapPtr()[0] != &p[0] || b.VmappingCounter() != 2 {
		t.Fatal("another address")
	}
	x.ops.Vunmap = func(*Buffer, []byte) { x.count("vunmap") }
	b.Vunmap(q)
	q, err = b.Vmap() // B32
	must(t, err)
	x.want(t, "vmap", 2)
	wantPanic(t, "vunmap of another address", func() { b.Vunmap(p[1:]) })
	b.Vunmap(q)
	x.want(t, "vunmap", 0)
	b.Vunmap(p)
	x.want(t, "vunmap", 1)
	if b.VmapPtr() != nil || b.VmappingCounter() != 0 {
		t.Fatal("still mapped")
	}
	wantPanic(t, "vunmap with counter 0", func() { b.Vunmap(p) }) // B35
	_, err = b.Vmap()
	must(t, err)
	wantPanic(t, "release with a vmap", b.Put) // B36
	x.want(t, "release", 0)

	x = newThird() // without vunmap the pointer goes all the same
	x.ops.Vmap = func(*Buffer) ([]byte, error) { return x.page[:], nil }
	b = x.export(t)
	p, err = b.Vmap()
	must(t, err)
	b.Vunmap(p)
	if b.VmapPtr() != nil {
		t.Fatal("still mapped")
	}
	b.Put()
}

func TestMmapBounds(t *testing.T) { // reference 2.3
	x := newThird()
	b := x.export(t)
	defer b.Put()
	for _, c := range []struct {
		off, n int64
		want   syscall.Errno
	}{
		{0, 2 * PageSize, 0}, {0, 1, 0}, {PageSize, PageSize, 0}, {PageSize, 1, 0}, {0, 0, 0},
		{0, 2*PageSize + 1, syscall.EINVAL},
		{2 * PageSize, 1, syscall.EINVAL},
		{PageSize, PageSize + 1, syscall.EINVAL},
		{1, PageSize, syscall.EINVAL},
		{-PageSize, PageSize, syscall.EOVERFLOW},
		{-2 * PageSize, PageSize, syscall.EINVAL},
		{0x7ffffffffffff000, PageSize, syscall.EINVAL},
		{0, -1, syscall.EINVAL},
		{0, 1<<63 - 1, syscall.EINVAL},
	} {
		err := b.Mmap(&VMA{Offset: c.off, Length: c.n, Shared: true})
		if c.want == 0 && err != nil || c.want != 0 && !errors.Is(err, c.want) {
			t.Errorf("%#x+%#x: %v, want %v", c.off, c.n, err, c.want)
		}
	}
	wantErrno(t, b.Mmap(nil), syscall.EINVAL)
	x.want(t, "mmap", 5)
}

func TestKmap(t *testing.T) {
	x := newThird()
	x.page[PageSize] = 7
	b := x.export(t)
	defer b.Put()
	p := b.Kmap(1)
	if p[0] != 7 {
		t.Fatal("another page")
	}
	b.Kunmap(1, p) // optional
	b.KunmapAtomic(1, b.KmapAtomic(1))
	x.ops.Kunmap = func(*Buffer, int64, []byte) { x.count("kunmap") }
	x.ops.KunmapAtomic = func(*Buffer, int64, []byte) { x.count("kunmap_atomic") }
	b.Kunmap(1, b.Kmap(1))
	b.KunmapAtomic(1, b.KmapAtomic(1))
	x.want(t, "kunmap", 1)
	x.want(t, "kunmap_atomic", 1)

	// read(2), write(2) and faults go page by page.
	data := fill(PageSize+100, 3)
	n, err := b.Write(bounded(t), data, 50)
	if n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, 3*PageSize)
	n, err = b.Read(bounded(t), got, 50)
	if n != 2*PageSize-50 || err != nil {
		t.Fatal(n, err)
	}
	wantBytes(t, "read", got[:len(data)], data)
	n, err = b.Fault(got, PageSize, 1)
	if n != PageSize || err != nil {
		t.Fatal(n, err)
	}
	wantBytes(t, "fault", got[:n], x.page[PageSize:])
	wantErrno(t, b.Resize(1), syscall.EINVAL)
	wantErrno(t, b.PunchHole(0, 1), syscall.EOPNOTSUPP)
	wantErrno(t, b.Allocate(0, 1), syscall.EOPNOTSUPP)
}

func TestBeginWaitsForFences(t *testing.T) { // reference 2.7
	for _, c := range []struct {
		dir   Direction
		usage poll.Usage
		waits bool
	}{
		{FromDevice, poll.Kernel, true}, {FromDevice, poll.Write, true}, {FromDevice, poll.Read, false},
		{ToDevice, poll.Kernel, true}, {ToDevice, poll.Write, true}, {ToDevice, poll.Read, true},
		{Bidirectional, poll.Write, true}, {Bidirectional, poll.Read, true}, {Bidirectional, poll.Bookkeep, false},
	} {
		t.Run(fmt.Sprint(c.dir, c.usage), func(t *testing.T) {
			x := newThird()
			x.ops.BeginCPUAccess = func(context.Context, *Buffer, Direction) error { x.count("begin"); return nil }
			b := x.export(t)
			defer b.Put()
			f := poll.NewFence("test", "t", poll.NewContext(), 1)
			b.Resv().Add(f, c.usage)
			done := make(chan error, 1)
			ctx, cancel := context.WithCancel(bounded(t))
			defer cancel()
			go func() { done <- b.BeginCPUAccess(ctx, c.dir) }()
			if c.waits {
				select {
				case err := <-done:
					t.Fatalf("it did not wait: %v", err)
				case <-time.After(20 * time.Millisecond):
				}
				cancel()
				wantErrno(t, <-done, syscall.EINTR)
				if len(b.dom.brackets) != 0 {
					t.Fatal("an interrupted bracket is open")
				}
				go func() { done <- b.BeginCPUAccess(bounded(t), c.dir) }()
				must(t, f.Signal())
			}
			must(t, <-done)
			must(t, b.EndCPUAccess(bounded(t), c.dir))
		})
	}
}

func TestBeginError(t *testing.T) {
	x := newThird()
	x.ops.BeginCPUAccess = func(context.Context, *Buffer, Direction) error { return syscall.EAGAIN }
	x.ops.EndCPUAccess = func(context.Context, *Buffer, Direction) error { return syscall.EIO }
	b := x.export(t)
	defer b.Put()
	b.Resv().Add(poll.NewFence("test", "t", poll.NewContext(), 1), poll.Write)
	wantErrno(t, b.BeginCPUAccess(bounded(t), Bidirectional), syscall.EAGAIN) // and no wait
	wantErrno(t, b.EndCPUAccess(bounded(t), Bidirectional), syscall.EIO)
	wantErrno(t, b.BeginCPUAccess(bounded(t), None), syscall.EINVAL)
	wantErrno(t, b.EndCPUAccess(bounded(t), None), syscall.EINVAL)
}

func TestQuota(t *testing.T) {
	q := NewQuota(4*PageSize, 3)
	r := NewRegistry(Config{Quota: q})
	b := create(t, r, "system", 5000)
	if q.Used() != 2*PageSize || q.Buffers() != 1 {
		t.Fatal(q.Used(), q.Buffers())
	}
	wantErrno(t, b.Resize(4*PageSize+1), syscall.ENOSPC)
	if b.Size() != 5000 || q.Used() != 2*PageSize {
		t.Fatal("changed by a refusal")
	}
	must(t, b.Resize(4*PageSize))
	must(t, b.Resize(1))
	if q.Used() != PageSize {
		t.Fatal(q.Used())
	}
	wantErrno(t, b.Resize(-1), syscall.EINVAL)
	wantErrno(t, b.Resize(1<<63-1), syscall.EFBIG)
	e, _ := r.Lookup("system")
	_, err := e.Create(4 * PageSize)
	wantErrno(t, err, syscall.ENOSPC)
	if q.Buffers() != 1 || r.Len() != 1 {
		t.Fatal("left behind by a refusal")
	}
	create(t, r, "system", 0)
	create(t, r, "coherent", 0)
	_, err = e.Create(0)
	wantErrno(t, err, syscall.ENOSPC)

	// An exporter of fixed size is charged at export.
	o := thirdExporter{newThird(), NewOwner("third")}
	q2 := NewQuota(PageSize, 0)
	must(t, NewRegistry(Config{Quota: q2}).Register(o))
	_, err = o.Create(PageSize + 1)
	wantErrno(t, err, syscall.ENOSPC)
	if q2.Used() != 0 || q2.Buffers() != 0 || o.o.Live() != 0 {
		t.Fatal("left behind by a refusal")
	}
	c, err := o.Create(PageSize)
	must(t, err)
	c.Put()
	if q2.Used() != 0 || q2.Buffers() != 0 {
		t.Fatal("not given back")
	}
	wantPanic(t, "release of what was not reserved", func() { q2.Release(1) })
}
