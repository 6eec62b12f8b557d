package exporter

import (
	"context"
	"sync"
)

// newNoncoherent makes the exporter `noncoherent`: a machine whose CPU cache no
// hardware keeps coherent. Each buffer has two memories: the one that devices see, and
// the CPU cache, with a valid and a dirty bit for each page. What a process loads
// from a mapping comes from the cache, which takes a page from the memory when it is
// not valid there; what it stores goes into the cache, whenever the kernel writes
// its page cache back. Data moves only
//
//   - at BeginCPUAccess for reading (FromDevice, Bidirectional): dirty pages are
//     handed over to the memory, and all pages dropped: the next load sees what devices wrote;
//   - at EndCPUAccess and Flush: dirty pages are handed over;
//   - at read(2) and write(2), which carry their own bracket, for the pages they touch:
//     dirty ones are handed over, then the memory is read or written. A copy in the
//     cache is kept, and gets what is written.
//
// So what a missing bracket leaves stale is the same in every run, whenever the kernel
// writes back or forgets pages. SyncForDevice moves nothing.
func newNoncoherent(r *Registry) *builtin {
	e := newBuiltin(r, "noncoherent", MapDirect)
	e.ops.BeginCPUAccess = beginNoncoherent
	e.ops.EndCPUAccess = endNoncoherent
	e.ops.Fault = func(b *Buffer, p []byte, off int64) (int, error) { return cacheOf(b).load(storeOf(b).own, p, off) }
	e.ops.Launder = func(b *Buffer, p []byte, off int64) (int, error) { return cacheOf(b).store(storeOf(b).own, p, off) }
	e.ops.ReadAt = func(_ context.Context, b *Buffer, p []byte, off int64) (int, error) {
		return cacheOf(b).readThrough(storeOf(b).own, p, off)
	}
	e.ops.WriteAt = func(_ context.Context, b *Buffer, p []byte, off int64) (int, error) {
		return cacheOf(b).writeThrough(storeOf(b).own, p, off)
	}
	e.ops.Flush = flushNoncoherent
	e.ops.PunchHole = func(b *Buffer, off, n int64) error { return cacheOf(b).punch(storeOf(b).own, off, n) }
	leaveAlone := func(context.Context, *Buffer, Importer, Direction) error { return nil }
	e.ops.SyncForDevice, e.ops.SyncForCPU = leaveAlone, leaveAlone
	return e
}

// cacheOf is the buffer's CPU cache, made at its first use.
func cacheOf(b *Buffer) *softCache {
	s := storeOf(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cache == nil {
		s.cache = &softCache{}
		s.cache.mem.size = s.own.Size() // under s.mu, as resize changes it
	}
	return s.cache
}

// beginNoncoherent is the invalidation. A page that is faulted in while the first
// shootdown runs may come from a copy that is dropped only after it, so what came in
// until the copies were dropped is shot down once more; later ones are fresh.
func beginNoncoherent(ctx context.Context, b *Buffer, dir Direction) error {
	if dir == ToDevice {
		return nil
	}
	done, err := b.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	c, m := cacheOf(b), storeOf(b).own
	if err := c.drop(ctx, b, m, b.dom.take()); err != nil {
		return err
	}
	if runs := b.dom.take(); len(runs) > 0 {
		return c.drop(ctx, b, m, runs)
	}
	return nil
}

// drop shoots runs down and then drops what is cached.
func (c *softCache) drop(ctx context.Context, b *Buffer, m *Memory, runs []Run) error {
	if err := b.zap(ctx, runs); err != nil {
		return err
	}
	return c.invalidate(m)
}

// endNoncoherent is the cleaning: pages stay where they are.
func endNoncoherent(ctx context.Context, b *Buffer, _ Direction) error {
	done, err := b.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return flushNoncoherent(ctx, b)
}

// flushNoncoherent takes no turn: who asks for it (fsync) may hold what a transition waits for.
func flushNoncoherent(ctx context.Context, b *Buffer) error {
	if err := b.launder(ctx); err != nil {
		return err
	}
	return cacheOf(b).handOver(storeOf(b).own)
}

// softCache is a CPU cache with lines of a page.
type softCache struct {
	mu    sync.Mutex
	mem   Memory // what the CPU sees of valid pages
	valid bitmap
	dirty bitmap // of them those that the memory does not have yet
}

// copyBuf is what pages are copied through, in bytes.
const copyBuf = 256 << 10

var copyBufs = sync.Pool{New: func() any { return new([copyBuf]byte) }}

// copyRange copies [off, off+n), cut off at the size of both.
func copyRange(to, from *Memory, off, n int64) error {
	buf := copyBufs.Get().(*[copyBuf]byte)
	defer copyBufs.Put(buf)
	n = min(n, from.Size()-off, to.Size()-off)
	for n > 0 {
		p := buf[:min(n, copyBuf)]
		if _, err := from.ReadAt(p, off); err != nil {
			return err
		}
		if _, err := to.WriteAt(p, off); err != nil {
			return err
		}
		off, n = off+int64(len(p)), n-int64(len(p))
	}
	return nil
}

// fillLocked makes the pages of [first, first+n) valid.
func (c *softCache) fillLocked(m *Memory, first, n int64) error {
	for end := first + n; ; {
		from := c.valid.nextClear(first, end)
		if from == end {
			return nil
		}
		to := c.valid.nextSet(from, end)
		if err := copyRange(&c.mem, m, from*PageSize, (to-from)*PageSize); err != nil {
			return err
		}
		c.valid.set(from, to-from)
		first = to
	}
}

// load is a CPU's load.
func (c *softCache) load(m *Memory, p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, n := pageRange(off, len(p))
	if err := c.fillLocked(m, first, n); err != nil {
		return 0, err
	}
	return ignoreEOF(c.mem.ReadAt(p, off))
}

// store is a CPU's store. Pages that it covers only in part are filled first.
func (c *softCache) store(m *Memory, p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, n := pageRange(off, len(p))
	for _, page := range []int64{first, first + n - 1} {
		if whole := off <= page*PageSize && off+int64(len(p)) >= min((page+1)*PageSize, c.mem.Size()); whole {
			continue
		}
		if err := c.fillLocked(m, page, 1); err != nil {
			return 0, err
		}
	}
	done, err := c.mem.WriteAt(p, off)
	if done > 0 {
		first, n = pageRange(off, done)
		c.valid.set(first, n)
		c.dirty.set(first, n)
	}
	return done, err
}

// handOver copies dirty pages to the memory.
func (c *softCache) handOver(m *Memory) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.handOverLocked(m, c.dirty.runs())
}

// handOverLocked copies the runs, which are dirty, to the memory.
func (c *softCache) handOverLocked(m *Memory, runs []Run) error {
	for _, r := range runs {
		if err := copyRange(m, &c.mem, r.First*PageSize, r.N*PageSize); err != nil {
			return err
		}
		c.dirty.clear(r.First, r.N)
	}
	return nil
}

// invalidate hands dirty pages over and drops all.
func (c *softCache) invalidate(m *Memory) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.handOverLocked(m, c.dirty.runs()); err != nil {
		return err
	}
	c.valid.take()
	return nil
}

// cleanLocked hands over what is dirty of [first, first+n).
func (c *softCache) cleanLocked(m *Memory, first, n int64) error {
	if c.dirty.count() == 0 {
		return nil
	}
	var runs []Run
	for page := first; page < first+n; page++ {
		if c.dirty.has(page) {
			runs = addRun(runs, page, 1)
		}
	}
	return c.handOverLocked(m, runs)
}

// readThrough is read(2).
func (c *softCache) readThrough(m *Memory, p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, n := pageRange(off, len(p))
	if err := c.cleanLocked(m, first, n); err != nil {
		return 0, err
	}
	return ignoreEOF(m.ReadAt(p, off))
}

// writeThrough is write(2).
func (c *softCache) writeThrough(m *Memory, p []byte, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, n := pageRange(off, len(p))
	if err := c.cleanLocked(m, first, n); err != nil {
		return 0, err
	}
	done, err := m.WriteAt(p, off)
	for at := off; at < off+int64(done); {
		next := min((at/PageSize+1)*PageSize, off+int64(done))
		if c.valid.has(at / PageSize) {
			if _, e := c.mem.WriteAt(p[at-off:next-off], at); e != nil && err == nil {
				err = e
			}
		}
		at = next
	}
	return done, err
}

// punch zeroes a range in both.
func (c *softCache) punch(m *Memory, off, n int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, count := pageRange(off, int(n))
	if err := c.cleanLocked(m, first, count); err != nil {
		return err
	}
	if err := m.PunchHole(off, n); err != nil {
		return err
	}
	return c.mem.PunchHole(off, n)
}

func (c *softCache) truncate(size int64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.mem.Truncate(size); err != nil {
		return err
	}
	c.valid.clear(pages(size), 1<<62-pages(size))
	c.dirty.clear(pages(size), 1<<62-pages(size))
	return nil
}
