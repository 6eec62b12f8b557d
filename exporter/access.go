package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/dmabuffs/dmabuffs/poll"
)

type callerKey struct{}

// WithCaller says who calls, such as "1234 ffmpeg": the label by which CPU brackets
// and conflicts are counted. Without one it is "kernel".
func WithCaller(ctx context.Context, label string) context.Context {
	return context.WithValue(ctx, callerKey{}, label)
}

// Caller is the label of WithCaller.
func Caller(ctx context.Context) string {
	if s, ok := ctx.Value(callerKey{}).(string); ok {
		return s
	}
	return "kernel"
}

// BeginCPUAccess opens a bracket of CPU access (dma_buf_begin_cpu_access, SYNC START):
// the exporter makes the CPU see what devices wrote, and then the fences there are
// are waited for: with FromDevice (reading) those of usage Kernel and Write, else
// all but Bookkeep. Brackets nest and are never refused; they are counted by caller.
//
// EINVAL: direction None. EINTR: ctx ended. Else the exporter's error, and then
// fences are not waited for. After an error no bracket is open.
func (b *Buffer) BeginCPUAccess(ctx context.Context, dir Direction) error {
	if !dir.valid() {
		return fmt.Errorf("exporter: begin_cpu_access %v: %w", dir, ErrInvalid)
	}
	if op := b.ops.BeginCPUAccess; op != nil {
		if err := op(ctx, b, dir); err != nil {
			return err
		}
	}
	usage := poll.Read
	if dir == FromDevice {
		usage = poll.Write
	}
	if !b.resv.Idle(usage) {
		if err := b.resv.Wait(ctx, usage); err != nil {
			return eintr(ctx, "begin_cpu_access", err)
		}
	}
	if b.borrowed() {
		if err := b.Shootdown(ctx); err != nil {
			return err
		}
	}
	b.dom.begin(Caller(ctx))
	return nil
}

// EndCPUAccess closes a bracket (dma_buf_end_cpu_access, SYNC END): the exporter makes
// devices see what the CPU wrote. It never waits for fences; without a bracket it
// does just the same. EINVAL: direction None. Else the exporter's error.
func (b *Buffer) EndCPUAccess(ctx context.Context, dir Direction) error {
	if !dir.valid() {
		return fmt.Errorf("exporter: end_cpu_access %v: %w", dir, ErrInvalid)
	}
	b.dom.end(Caller(ctx))
	if op := b.ops.EndCPUAccess; op != nil {
		if err := op(ctx, b, dir); err != nil {
			return err
		}
	}
	if dir != FromDevice && b.borrowed() {
		return b.launder(ctx)
	}
	return nil
}

// ForgetBrackets closes what a caller left open, when it is gone.
func (b *Buffer) ForgetBrackets(label string) {
	b.dom.mu.Lock()
	defer b.dom.mu.Unlock()
	delete(b.dom.brackets, label)
}

// SyncForDevice begins one piece of device work (dma_sync_sgtable_for_device): what
// the CPU wrote is in the memory when it returns, no process has a page mapped any
// more, and the buffer is in the device's domain. Each CPU bracket that is open is a
// conflict, counted with its holder, and not refused.
//
// EINVAL: not mapped for DMA, or direction None. EINTR: ctx ended. After an error
// the domain is what it was.
func (b *Buffer) SyncForDevice(ctx context.Context, imp Importer, dir Direction) error {
	if n, _ := b.MappedBy(imp); n == 0 || !dir.valid() {
		return fmt.Errorf("exporter: sync %v for a device that has not mapped it: %w", dir, ErrInvalid)
	}
	if op := b.ops.SyncForDevice; op != nil {
		if err := op(ctx, b, imp, dir); err != nil {
			return err
		}
	} else if err := b.Shootdown(ctx); err != nil {
		return err
	}
	b.dom.conflicts()
	b.dom.enter(imp)
	return nil
}

// SyncForCPU ends a piece of device work (dma_sync_sgtable_for_cpu): the next page
// that the CPU touches has what the device wrote. Pages that it touched meanwhile
// are shot down again, unless the device only read (ToDevice). It may be called twice.
//
// EINVAL: not attached as a device, or direction None. EINTR: ctx ended; the buffer
// then stays in the device's domain, to be tried again or to Detach.
func (b *Buffer) SyncForCPU(ctx context.Context, imp Importer, dir Direction) error {
	b.mu.Lock()
	l := b.linkLocked(imp)
	b.mu.Unlock()
	if l == nil || l.cpu || !dir.valid() {
		return fmt.Errorf("exporter: sync %v by a device that is not attached: %w", dir, ErrInvalid)
	}
	if op := b.ops.SyncForCPU; op != nil {
		if err := op(ctx, b, imp, dir); err != nil {
			return err
		}
	} else if dir != ToDevice {
		if err := b.Shootdown(ctx); err != nil {
			return err
		}
	}
	b.dom.leave(imp)
	return nil
}

// clip is how many of n bytes at off the buffer has. EINVAL: off is negative.
func (b *Buffer) clip(n int, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("exporter: offset %d: %w", off, ErrInvalid)
	}
	return int(min(int64(n), max(0, b.Size()-off))), nil
}

// pageRange is the pages that n bytes at off touch.
func pageRange(off int64, n int) (first, count int64) {
	if n == 0 {
		return 0, 0
	}
	first = off / PageSize
	return first, (off+int64(n)-1)/PageSize - first + 1
}

// Fault gives the bytes of pages that a process touched, and the pages to the CPU:
// the answer to a READ of the page cache. pid is who touched them, 0 for nobody.
// n is smaller than len(p) at the end of the buffer. The CPU bits are set before the
// memory is read. ENOMEM: no memory for a copy. It waits for nothing.
func (b *Buffer) Fault(p []byte, off int64, pid uint32) (n int, err error) {
	if n, err = b.clip(len(p), off); n == 0 {
		return 0, err
	}
	if b.mapKind() == MapPassthrough {
		b.NoPassthrough()
	}
	first, count := pageRange(off, n)
	b.dom.fault(first, count, pid)
	if op := b.ops.Fault; op != nil {
		return op(b, p[:n], off)
	}
	return b.ReadPages(p[:n], off)
}

// Launder takes what the kernel writes back of pages that processes dirtied. All of
// p is taken: what lies behind the end of the buffer is dropped, with its page. It
// waits for nothing.
func (b *Buffer) Launder(p []byte, off int64) (n int, err error) {
	if n, err = b.clip(len(p), off); err != nil {
		return 0, err
	}
	if n > 0 {
		if op := b.ops.Launder; op != nil {
			n, err = op(b, p[:n], off)
		} else {
			n, err = b.WritePages(p[:n], off)
		}
		b.dom.laundered(n)
		if err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// Read is read(2): bracketed access to the current contents, without a wait for
// fences. n is smaller than len(p) at the end, 0 behind it.
func (b *Buffer) Read(ctx context.Context, p []byte, off int64) (n int, err error) {
	if n, err = b.clip(len(p), off); err != nil {
		return 0, err
	}
	b.dom.touch(&b.dom.stats.Reads)
	if n == 0 {
		return 0, nil
	}
	if op := b.ops.ReadAt; op != nil {
		return op(ctx, b, p[:n], off)
	}
	want := n
	n = 0
	err = b.bracketed(ctx, FromDevice, func() error {
		n, err = b.ReadPages(p[:want], off)
		return err
	})
	return n, err
}

// Write is write(2) inside the size, which it does not change: n is smaller than
// len(p) at the end (EFBIG behind it). The pages come to the CPU's domain first where
// processes map them through the page cache, which keeps what is written. ENOSPC,
// ENOMEM: n bytes were written.
func (b *Buffer) Write(ctx context.Context, p []byte, off int64) (n int, err error) {
	if n, err = b.clip(len(p), off); err != nil {
		return 0, err
	}
	b.dom.touch(&b.dom.stats.Writes)
	if n == 0 {
		if len(p) > 0 {
			return 0, ErrTooBig
		}
		return 0, nil
	}
	if op := b.ops.WriteAt; op != nil {
		return op(ctx, b, p[:n], off)
	}
	if b.mapKind() == MapCached {
		first, count := pageRange(off, n)
		b.dom.bring(first, count)
	}
	want := n
	n = 0
	err = b.bracketed(ctx, Bidirectional, func() error {
		n, err = b.WritePages(p[:want], off)
		return err
	})
	return n, err
}

// bracketed does an access between the exporter's begin and end.
func (b *Buffer) bracketed(ctx context.Context, dir Direction, access func() error) error {
	if op := b.ops.BeginCPUAccess; op != nil {
		if err := op(ctx, b, dir); err != nil {
			return err
		}
	}
	err := access()
	if op := b.ops.EndCPUAccess; op != nil {
		if e := op(ctx, b, dir); err == nil {
			err = e
		}
	}
	return err
}

// Flush is fsync(2) and msync(2): what the CPU wrote is where devices see it.
// Only a noncoherent buffer has anything to do.
func (b *Buffer) Flush(ctx context.Context) error {
	if op := b.ops.Flush; op != nil {
		return op(ctx, b)
	}
	return nil
}

// PunchHole zeroes bytes [off, off+n), cut off at the size, and frees whole pages of
// them: fallocate(2) with FALLOC_FL_PUNCH_HOLE. EINVAL: negative, or n is 0.
// EOPNOTSUPP: the exporter has no memory.
func (b *Buffer) PunchHole(off, n int64) error {
	if off < 0 || n <= 0 {
		return fmt.Errorf("exporter: hole %d+%d: %w", off, n, ErrInvalid)
	}
	if n = min(n, b.Size()-off); n <= 0 {
		return nil
	}
	if op := b.ops.PunchHole; op != nil {
		return op(b, off, n)
	}
	m := b.memory()
	if m == nil {
		return errNoMemfd
	}
	return m.PunchHole(off, n)
}

// Allocate gives bytes [off, off+n) memory now, inside the size. ENOMEM, ENOSPC: it
// is not to be had. EINVAL, EOPNOTSUPP as PunchHole.
func (b *Buffer) Allocate(off, n int64) error {
	if off < 0 || n <= 0 || off > MaxSize-n || off+n > b.Size() {
		return fmt.Errorf("exporter: allocate %d+%d: %w", off, n, ErrInvalid)
	}
	m := b.memory()
	if m == nil {
		return errNoMemfd
	}
	return m.Allocate(off, n)
}

func (b *Buffer) memory() *Memory {
	if b.ops.Memory == nil {
		return nil
	}
	return b.ops.Memory(b)
}

// ReadPages copies the memory's bytes as a device sees them: from the memory, or
// page by page from Kmap. n is smaller than len(p) at the end. ENOMEM: Kmap gave nothing.
func (b *Buffer) ReadPages(p []byte, off int64) (n int, err error) {
	if n, err = b.clip(len(p), off); n == 0 {
		return 0, err
	}
	if m := b.memory(); m != nil {
		if n, err = m.ReadAt(p[:n], off); errors.Is(err, io.EOF) {
			err = nil // it shrank meanwhile
		}
		return n, err
	}
	return b.kmapped(p[:n], off, func(page, p []byte) int { return copy(p, page) })
}

// WritePages stores bytes into the memory as a device does. n is smaller than
// len(p) at the end. ENOSPC, ENOMEM.
func (b *Buffer) WritePages(p []byte, off int64) (n int, err error) {
	if n, err = b.clip(len(p), off); n == 0 {
		return 0, err
	}
	if m := b.memory(); m != nil {
		return m.WriteAt(p[:n], off)
	}
	return b.kmapped(p[:n], off, func(page, p []byte) int { return copy(page, p) })
}

// kmapped goes through pages by Kmap.
func (b *Buffer) kmapped(p []byte, off int64, move func(page, p []byte) int) (n int, err error) {
	for n < len(p) {
		at := off + int64(n)
		page := b.Kmap(at / PageSize)
		if int64(len(page)) <= at%PageSize {
			return n, fmt.Errorf("exporter: %s has no page %d: %w", b.expName, at/PageSize, ErrNoMemory)
		}
		k := move(page[at%PageSize:], p[n:])
		b.Kunmap(at/PageSize, page)
		n += k
	}
	return n, nil
}

// ignoreEOF makes a read that ends early one that is short.
func ignoreEOF(n int, err error) (int, error) {
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
