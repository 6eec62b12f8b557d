package exporter

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
)

// builtin is what the four exporters have in common: bytes in a memfd, simulated
// addresses that are chosen at the first DMA map, or, with a carve-out, with the size.
type builtin struct {
	name  string
	owner *Owner
	reg   *Registry
	ops   Ops
	kind  MapKind
	place placer
}

// placer chooses where buffers lie. Its methods run under the buffer's store.mu.
type placer interface {
	// resize makes ready for so many pages: ErrNoRoom, and nothing changed.
	resize(s *store, pages int64) error
	// fit places a buffer without live mapping so that all importers reach it, moving
	// it where it must. A *LimitError, or ErrNoRoom: it has a place still, if it had one.
	fit(s *store, pages int64, imps []Importer) error
	// drop gives the place back.
	drop(s *store)
}

// store is a buffer of a built-in exporter: its Priv.
type store struct {
	mem   Memory
	own   *Memory    // &mem, or what was adopted
	cache *softCache // of noncoherent buffers

	mu     sync.Mutex
	orig   []Segment // the placement; nil: none yet
	chunks []chunk   // it, as physmem gave it
	run    Run       // it, as the carve-out gave it
	live   int       // mappings
}

func storeOf(b *Buffer) *store { return b.priv.(*store) }

// newBuiltin makes the operations that all have. Kmap and Vmap give the memory as
// devices see it: whoever uses them does so between SyncForDevice and SyncForCPU.
func newBuiltin(r *Registry, name string, kind MapKind) *builtin {
	e := &builtin{name: name, owner: NewOwner(name), reg: r, kind: kind, place: scattered{r.phys}}
	e.ops = Ops{
		Attach:       e.attach,
		MapDMABuf:    e.mapDMABuf,
		UnmapDMABuf:  e.unmapDMABuf,
		Release:      e.release,
		KmapAtomic:   kmap,
		KunmapAtomic: kunmap,
		Kmap:         kmap,
		Kunmap:       kunmap,
		Mmap:         e.mmap,
		Vmap:         func(b *Buffer) ([]byte, error) { return storeOf(b).own.mapRange(0, pages(b.Size())*PageSize) },
		Vunmap:       func(b *Buffer, p []byte) { storeOf(b).own.unmapRange(p) },
		Resize:       e.resize,
		Memory:       func(b *Buffer) *Memory { return storeOf(b).own },
	}
	return e
}

func (e *builtin) Name() string  { return e.name }
func (e *builtin) Owner() *Owner { return e.owner }

// Create implements Exporter. ENOSPC, EFBIG, ENOMEM, EINVAL as Resize.
func (e *builtin) Create(size int64) (*Buffer, error) {
	s := &store{}
	s.own = &s.mem
	return e.export(s, size)
}

func (e *builtin) export(s *store, size int64) (*Buffer, error) {
	info := DefineInfo(e.owner)
	info.Ops = &e.ops
	info.Flags = syscall.O_RDWR
	info.Priv = s
	if s.own != &s.mem {
		info.Size, info.uncharged = s.own.Size(), true
		return Export(info)
	}
	b, err := Export(info)
	if err != nil {
		return nil, err
	}
	if err := b.Resize(size); err != nil {
		b.Put()
		return nil, err
	}
	return b, nil
}

func (e *builtin) release(b *Buffer) {
	s := storeOf(b)
	s.mu.Lock()
	e.place.drop(s)
	s.mu.Unlock()
	if s.cache != nil {
		s.cache.mem.Close()
	}
	s.own.Close()
}

// mmap refuses private mappings, as udmabuf and the heaps do (EINVAL).
func (e *builtin) mmap(b *Buffer, v *VMA) error {
	if !v.Shared {
		return fmt.Errorf("exporter: private mapping: %w", ErrInvalid)
	}
	v.Kind = e.kind
	if v.Kind != MapPassthrough {
		return nil
	}
	m := storeOf(b).own
	if b.PassthroughRefused() || m.scattered() {
		v.Kind = MapCached
		return nil
	}
	if v.Length == 0 {
		return nil
	}
	f, err := m.File()
	v.File = f
	return err
}

// scattered reports whether the memory has no one file that is the buffer.
func (m *Memory) scattered() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.extents != nil && m.file == nil
}

func kmap(b *Buffer, page int64) []byte {
	p, err := storeOf(b).own.mapRange(page*PageSize, PageSize)
	if err != nil {
		return nil
	}
	return p
}

func kunmap(b *Buffer, _ int64, p []byte) { storeOf(b).own.unmapRange(p) }

// attach refuses a device that does not reach where the buffer is, and cannot be
// moved to, as somebody has it mapped.
func (e *builtin) attach(b *Buffer, imp Importer) error {
	s := storeOf(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.orig == nil || s.live == 0 {
		return nil
	}
	_, err := tableFor(s.orig, imp)
	return err
}

func (e *builtin) mapDMABuf(ctx context.Context, b *Buffer, imp Importer, dir Direction) (*SGTable, error) {
	s := storeOf(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return nil, interrupted(ctx, "map")
	}
	if s.live == 0 {
		if imps := b.Devices(); s.orig == nil || meets(s.orig, imps) != nil {
			if err := e.place.fit(s, pages(b.Size()), imps); err != nil {
				return nil, err
			}
		}
	}
	segs, err := tableFor(s.orig, imp)
	if err != nil {
		return nil, err
	}
	s.live++
	return &SGTable{Segments: segs, Orig: s.orig, Dir: dir}, nil
}

func (e *builtin) unmapDMABuf(b *Buffer, _ Importer, _ *SGTable, _ Direction) {
	s := storeOf(b)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live--
}

// resize prepares place and memory for a new size. What can fail comes first: to grow
// the place, to shrink the memory.
func (e *builtin) resize(b *Buffer, size int64) error {
	s := storeOf(b)
	if s.own != &s.mem {
		return ErrFixed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live > 0 {
		return fmt.Errorf("exporter: resize of a mapped buffer: %w", ErrBusy)
	}
	old := b.Size()
	if size > old {
		if err := e.place.resize(s, pages(size)); err != nil {
			return err
		}
	}
	if err := s.truncate(size); err != nil {
		_ = e.place.resize(s, pages(old)) // not larger than what it has
		return err
	}
	if size < old {
		return e.place.resize(s, pages(size)) // a part of what it has
	}
	return nil
}

// truncate sets the size of the memory, and of the CPU cache in front of it.
func (s *store) truncate(size int64) error {
	if s.cache != nil {
		if err := s.cache.truncate(size); err != nil {
			return err
		}
	}
	return s.own.Truncate(size)
}

// scattered places buffers in chunks all over physmem, at the first DMA map.
type scattered struct{ mem *physmem }

func (p scattered) resize(s *store, _ int64) error {
	p.drop(s)
	return nil
}

func (p scattered) drop(s *store) {
	p.mem.free(s.chunks)
	s.chunks, s.orig = nil, nil
}

// fit tries chunks as they fit, and then as few as can be.
func (p scattered) fit(s *store, n int64, imps []Importer) error {
	last, least := reach(imps)
	var misfit error
	for _, big := range []bool{false, true} {
		got, unreachable, err := p.mem.alloc(n, last, big)
		switch {
		case unreachable && least != nil:
			return &LimitError{least.Name(), "dma_mask", uint64(least.Limits().DMAMask), fmt.Sprintf("there are no %d pages at addresses up to %#x", n, last)}
		case err != nil:
			return errors.Join(err, misfit)
		}
		orig := chunkSegments(got, n)
		if misfit = meets(orig, imps); misfit == nil {
			p.drop(s)
			s.chunks, s.orig = got, orig
			return nil
		}
		p.mem.free(got)
	}
	return misfit
}
