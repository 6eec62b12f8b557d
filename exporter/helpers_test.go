package exporter

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"
)

// wantErrno fails unless err carries the errno.
func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// bounded is a context that ends long after a test should.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// device is an importer.
type device struct {
	name   string
	limits Limits
}

func (d *device) Name() string   { return d.name }
func (d *device) Limits() Limits { return d.limits }

// create makes a buffer of one of the four exporters, and checks at the end that it is released.
func create(t *testing.T, r *Registry, exporter string, size int64) *Buffer {
	t.Helper()
	e, err := r.Lookup(exporter)
	must(t, err)
	b, err := e.Create(size)
	must(t, err)
	t.Cleanup(func() {
		b.Put()
		if r.Buffer(b.ID()) != nil {
			t.Errorf("buffer %d is still listed", b.ID())
		}
	})
	return b
}

// attached attaches and maps a device until the end of the test.
func attached(t *testing.T, b *Buffer, d *device, dir Direction) *SGTable {
	t.Helper()
	must(t, b.Attach(d))
	sgt, err := b.Map(bounded(t), d, dir)
	must(t, err)
	t.Cleanup(func() {
		b.Unmap(d, sgt, dir)
		b.Detach(d)
	})
	return sgt
}

// pageCache stands for the kernel: processes' mappings of one buffer. A page that is
// being faulted in or written back is locked, as there.
type pageCache struct {
	b *Buffer

	mu    sync.Mutex
	pages map[int64]*cachedPage
	shot  []Run
	calls int
	fail  error // what Shoot answers, before it does anything
}

type cachedPage struct {
	mu             sync.Mutex
	data           [PageSize]byte
	present, dirty bool
}

func mapped(b *Buffer) *pageCache {
	c := &pageCache{b: b, pages: map[int64]*cachedPage{}}
	b.SetMapping(c)
	return c
}

func (c *pageCache) page(i int64) *cachedPage {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pages[i]
	if p == nil {
		p = &cachedPage{}
		c.pages[i] = p
	}
	return p
}

func (c *pageCache) faultLocked(p *cachedPage, i int64) error {
	if p.present {
		return nil
	}
	n, err := c.b.Fault(p.data[:], i*PageSize, 42)
	if err != nil {
		return err
	}
	clear(p.data[n:])
	p.present = true
	return nil
}

// load and store are a process' accesses by a mapping.
func (c *pageCache) load(off int64) (byte, error) {
	p := c.page(off / PageSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := c.faultLocked(p, off/PageSize); err != nil {
		return 0, err
	}
	return p.data[off%PageSize], nil
}

func (c *pageCache) store(off int64, v byte) error {
	p := c.page(off / PageSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := c.faultLocked(p, off/PageSize); err != nil {
		return err
	}
	p.data[off%PageSize] = v
	p.dirty = true
	return nil
}

// write is write(2) through the cache, of bytes within one page.
func (c *pageCache) write(ctx context.Context, data []byte, off int64) error {
	p := c.page(off / PageSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.present {
		copy(p.data[off%PageSize:], data)
	}
	_, err := c.b.Write(ctx, data, off)
	return err
}

// evict is the kernel dropping a page of its own accord, written back where it must be.
func (c *pageCache) evict(i int64) error { return c.drop(i, true) }

func (c *pageCache) drop(i int64, zap bool) error {
	p := c.page(i)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dirty {
		if _, err := c.b.Launder(p.data[:], i*PageSize); err != nil {
			return err
		}
		p.dirty = false
	}
	if zap {
		p.present = false
	}
	return nil
}

func (c *pageCache) Shoot(ctx context.Context, runs []Run, zap bool) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	c.calls++
	c.shot = append(c.shot, runs...)
	fail := c.fail
	c.mu.Unlock()
	if fail != nil {
		return fail
	}
	for _, r := range runs {
		for i := r.First; i < r.First+r.N; i++ {
			if err := c.drop(i, zap); err != nil {
				return err
			}
		}
	}
	return nil
}

// shots is what was shot down since the last time of asking.
func (c *pageCache) shots() (runs []Run, calls int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	runs, calls = c.shot, c.calls
	c.shot, c.calls = nil, 0
	return runs, calls
}

// memoryByte is a byte as devices see it.
func memoryByte(t *testing.T, b *Buffer, off int64) byte {
	t.Helper()
	var p [1]byte
	n, err := b.ReadPages(p[:], off)
	if err != nil || n != 1 {
		t.Fatalf("reading the memory at %d: %d, %v", off, n, err)
	}
	return p[0]
}

func setMemory(t *testing.T, b *Buffer, off int64, v byte) {
	t.Helper()
	_, err := b.WritePages([]byte{v}, off)
	must(t, err)
}

func wantByte(t *testing.T, what string, got byte, err error, want byte) {
	t.Helper()
	if err != nil || got != want {
		t.Fatalf("%s: %d, %v; want %d", what, got, err, want)
	}
}

func wantRuns(t *testing.T, got []Run, want ...Run) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("runs %v, want %v", got, want)
	}
}

// fill gives bytes that are all different from their neighbours.
func fill(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7) ^ byte(i>>8) ^ seed
	}
	return p
}

func wantBytes(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Fatalf("%s: %d bytes differ from the %d wanted", what, len(got), len(want))
	}
}

// third is an exporter whose operations count themselves, with pages of its own.
type third struct {
	mu    sync.Mutex
	calls map[string]int
	page  [2 * PageSize]byte
	ops   Ops
}

func newThird() *third {
	x := &third{calls: map[string]int{}}
	x.ops = Ops{
		Attach: func(*Buffer, Importer) error { x.count("attach"); return nil },
		Detach: func(*Buffer, Importer) { x.count("detach") },
		MapDMABuf: func(_ context.Context, _ *Buffer, _ Importer, dir Direction) (*SGTable, error) {
			x.count("map")
			return &SGTable{Segments: []Segment{{Addr: 0x1000, Len: 2 * PageSize}}, Dir: dir}, nil
		},
		UnmapDMABuf: func(*Buffer, Importer, *SGTable, Direction) { x.count("unmap") },
		Release:     func(*Buffer) { x.count("release") },
		KmapAtomic:  func(_ *Buffer, i int64) []byte { x.count("kmap_atomic"); return x.page[i*PageSize:][:PageSize] },
		Kmap:        func(_ *Buffer, i int64) []byte { x.count("kmap"); return x.page[i*PageSize:][:PageSize] },
		Mmap:        func(*Buffer, *VMA) error { x.count("mmap"); return nil },
	}
	return x
}

func (x *third) count(op string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.calls[op]++
}

func (x *third) want(t *testing.T, op string, n int) {
	t.Helper()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.calls[op] != n {
		t.Fatalf("%s was called %d times, want %d", op, x.calls[op], n)
	}
}

func (x *third) export(t *testing.T) *Buffer {
	t.Helper()
	info := DefineInfo(NewOwner("third"))
	info.Ops, info.Priv, info.Size = &x.ops, x, 2*PageSize
	b, err := Export(info)
	must(t, err)
	return b
}

func wantPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Fatalf("%s did not panic", what)
		}
	}()
	f()
}
