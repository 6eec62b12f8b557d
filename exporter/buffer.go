package exporter

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dmabuffs/dmabuffs/poll"
)

// NameLen is DMA_BUF_NAME_LEN less its NUL: the longest name of SetName, in bytes.
const NameLen = 31

// Buffer is a shared buffer (struct dma_buf). Where the header's fields are:
//
//	size                  Size; fixed but for Resize, which only a sole user calls
//	file                  the count of references: Get, Put, Refs
//	attachments           Attachments, in the order in which they came
//	ops                   Ops
//	lock                  mu (lists) and vmapMu (vmap)
//	vmapping_counter      VmappingCounter
//	vmap_ptr              VmapPtr
//	exp_name, owner       ExpName, Owner
//	list_node             prev and next, in the Registry's list
//	priv                  Priv
//	resv                  Resv; the buffer's own unless the exporter brought one
//	poll, cb_excl, cb_shared   inside the Reservation: its list of Waiters, and its
//	                      counts of pending fences, from which Ready is worked out
type Buffer struct {
	id       uint64
	size     atomic.Int64
	refs     atomic.Int32
	kind     atomic.Int32 // how the CPU's view is mapped: 0 not asked, else 1 + MapKind
	flags    int
	ops      *Ops
	expName  string
	owner    *Owner
	registry *Registry
	priv     any
	resv     *poll.Reservation
	ownResv  poll.Reservation

	prev, next *Buffer // guarded by registry.mu
	uncharged  bool

	mapping atomic.Pointer[Mapping]
	sgt     atomic.Pointer[SGTable]

	sizeMu sync.Mutex

	vmapMu   sync.Mutex
	vmapping int
	vmapPtr  []byte
	mu       sync.Mutex
	links    []*link
	mapped   int
	name     *string

	dom domain
}

// ID is unique and never given again while the program runs; it is the inode number too.
func (b *Buffer) ID() uint64 { return b.id }

// Size in bytes.
func (b *Buffer) Size() int64 { return b.size.Load() }

// ExpName is the exporter's name.
func (b *Buffer) ExpName() string { return b.expName }

// Owner is the exporter's module; nil when it has none.
func (b *Buffer) Owner() *Owner { return b.owner }

// Ops is the exporter's table.
func (b *Buffer) Ops() *Ops { return b.ops }

// Flags is the file's mode: O_ACCMODE and O_NONBLOCK of Info.Flags.
func (b *Buffer) Flags() int { return b.flags }

// Resv is the reservation object with the buffer's fences.
func (b *Buffer) Resv() *poll.Reservation { return b.resv }

// Priv is the exporter's own data.
func (b *Buffer) Priv() any { return b.priv }

// Name is what SetName said; named is false until it was called, and then an empty name is one too.
func (b *Buffer) Name() (name string, named bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.name == nil {
		return "", false
	}
	return *b.name, true
}

// SetName is DMA_BUF_SET_NAME: any bytes, at most NameLen of them; more is EINVAL and changes nothing.
func (b *Buffer) SetName(name string) error {
	if len(name) > NameLen {
		return fmt.Errorf("exporter: a name of %d bytes, %d at most: %w", len(name), NameLen, ErrInvalid)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.name = &name
	return nil
}

// Get takes one more reference (get_dma_buf). The caller must have one already.
func (b *Buffer) Get() {
	if b.refs.Add(1) < 2 {
		panic("exporter: get_dma_buf on a released buffer")
	}
}

// TryGet takes a reference unless the last is gone, for those who found the buffer in a list.
func (b *Buffer) TryGet() bool {
	for {
		n := b.refs.Load()
		if n <= 0 {
			return false
		}
		if b.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Refs is the number of references.
func (b *Buffer) Refs() int { return int(b.refs.Load()) }

// Put gives a reference back (dma_buf_put). With the last the buffer leaves the
// list, Ops.Release runs, once, and the owner is let go. It panics below zero, and
// where the kernel has a BUG: at the last one with a vmap outstanding.
func (b *Buffer) Put() {
	n := b.refs.Add(-1)
	if n > 0 {
		return
	}
	if n < 0 {
		panic("exporter: dma_buf_put below zero")
	}
	b.vmapMu.Lock()
	vmaps := b.vmapping
	b.vmapMu.Unlock()
	if vmaps != 0 {
		panic(fmt.Sprintf("exporter: buffer %d released with vmapping_counter %d", b.id, vmaps))
	}
	if n := len(b.Attachments()); n > 0 {
		b.warn("buffer released with attachments", "attachments", n)
	}
	b.mapping.Store(nil)
	if b.registry != nil {
		b.registry.unlink(b)
	}
	b.ops.Release(b)
	if q := b.quota(); q != nil {
		if !b.uncharged {
			q.Release(pages(b.Size()) * PageSize)
		}
		q.dropBuffer()
	}
	if b.owner != nil {
		b.owner.put()
	}
}

// Resize changes the size, in bytes: a new export in place, for a buffer with one
// user. What is cut off is gone, what is added is zero.
//
// EINVAL: negative, or the exporter's buffers have a fixed size. EFBIG: above MaxSize.
// ENOSPC: over the quota. EBUSY: mapped for DMA or by vmap or kmap. ENOMEM: no
// memory, or no place in the carve-out. After an error nothing has changed.
func (b *Buffer) Resize(size int64) error {
	b.sizeMu.Lock()
	defer b.sizeMu.Unlock()
	old := b.Size()
	switch {
	case size == old:
		return nil
	case size < 0:
		return fmt.Errorf("exporter: resize to %d bytes: %w", size, ErrInvalid)
	case b.ops.Resize == nil:
		return ErrFixed
	case size > MaxSize:
		return ErrTooBig
	case b.Mapped() > 0 || b.VmappingCounter() > 0:
		return fmt.Errorf("exporter: resize of a mapped buffer: %w", ErrBusy)
	}
	delta := (pages(size) - pages(old)) * PageSize
	q := b.quota()
	if q == nil || b.uncharged {
		delta = 0
	}
	if delta > 0 {
		if err := q.Reserve(delta); err != nil {
			return err
		}
	}
	if err := b.ops.Resize(b, size); err != nil {
		if delta > 0 {
			q.Release(delta)
		}
		return err
	}
	if delta < 0 {
		q.Release(-delta)
	}
	b.size.Store(size)
	b.sgt.Store(nil)
	b.dom.truncate(pages(size))
	return nil
}

// Vmap maps the whole buffer (dma_buf_vmap). Only the first of several calls
// reaches the exporter; each needs its Vunmap. EINVAL without the op or with an
// empty buffer, ENOMEM when the op gives nothing, else the op's error.
func (b *Buffer) Vmap() ([]byte, error) {
	if b.ops.Vmap == nil {
		return nil, fmt.Errorf("exporter: %s has no vmap: %w", b.expName, ErrInvalid)
	}
	b.vmapMu.Lock()
	defer b.vmapMu.Unlock()
	if b.vmapping > 0 {
		b.vmapping++
		return b.vmapPtr, nil
	}
	p, err := b.ops.Vmap(b)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, ErrNoMemory
	}
	b.vmapping, b.vmapPtr = 1, p
	return p, nil
}

// Vunmap ends a Vmap; the last one reaches the exporter. It panics, as the kernel
// has a BUG there, without a Vmap or with bytes that are not that Vmap's.
func (b *Buffer) Vunmap(p []byte) {
	b.vmapMu.Lock()
	defer b.vmapMu.Unlock()
	if b.vmapping == 0 || b.vmapPtr == nil || len(p) == 0 || &p[0] != &b.vmapPtr[0] {
		panic(fmt.Sprintf("exporter: vunmap of what vmap did not give (vmapping_counter %d)", b.vmapping))
	}
	if b.vmapping--; b.vmapping > 0 {
		return
	}
	if b.ops.Vunmap != nil {
		b.ops.Vunmap(b, p)
	}
	b.vmapPtr = nil
}

// VmappingCounter counts the Vmaps that were not undone (vmapping_counter).
func (b *Buffer) VmappingCounter() int {
	b.vmapMu.Lock()
	defer b.vmapMu.Unlock()
	return b.vmapping
}

// VmapPtr is the current mapping, nil while the counter is 0 (vmap_ptr).
func (b *Buffer) VmapPtr() []byte {
	b.vmapMu.Lock()
	defer b.vmapMu.Unlock()
	return b.vmapPtr
}

// Kmap gives the bytes of one page; the number is the exporter's to check, nil is
// its no. Bytes past the buffer's end within the last page must not be relied on.
func (b *Buffer) Kmap(page int64) []byte { return b.ops.Kmap(b, page) }

// Kunmap ends a Kmap.
func (b *Buffer) Kunmap(page int64, p []byte) {
	if b.ops.Kunmap != nil {
		b.ops.Kunmap(b, page, p)
	}
}

// KmapAtomic is Kmap for callers that must not sleep until KunmapAtomic.
func (b *Buffer) KmapAtomic(page int64) []byte { return b.ops.KmapAtomic(b, page) }

// KunmapAtomic ends a KmapAtomic.
func (b *Buffer) KunmapAtomic(page int64, p []byte) {
	if b.ops.KunmapAtomic != nil {
		b.ops.KunmapAtomic(b, page, p)
	}
}

// Mmap asks how a process is to map v.Length bytes at v.Offset, and fills in v.Kind
// and v.File. It checks as dma_buf_mmap does: EINVAL for an offset that is no page's
// or a range that ends behind the last whole page, EOVERFLOW where it wraps around.
// With v.Length 0 nothing is checked: it asks how any mapping would be made.
func (b *Buffer) Mmap(v *VMA) error {
	if v == nil || v.Length < 0 || v.Offset%PageSize != 0 {
		return fmt.Errorf("exporter: mmap: %w", ErrInvalid)
	}
	if v.Length > 0 {
		off, n := uint64(v.Offset), uint64(pages(v.Length)) // unsigned, as in the kernel
		if off+n*PageSize < off {
			return errOverflow
		}
		if has := uint64(b.Size() / PageSize); off/PageSize+n > has {
			return fmt.Errorf("exporter: mmap of pages %d+%d of %d: %w", off/PageSize, n, has, ErrInvalid)
		}
	}
	return b.ops.Mmap(b, v)
}
