package exporter

import (
	"context"
	"math/bits"
	"os"
)

// PageSize is the unit of everything that is counted in pages, in bytes.
const PageSize = 4096

// MaxSize is the largest size of a buffer, in bytes: a whole number of pages below 2^63.
const MaxSize = 1<<63 - PageSize

// pages is the number of pages that size bytes take.
func pages(size int64) int64 { return int64((uint64(size) + PageSize - 1) / PageSize) }

// Direction of a transfer (enum dma_data_direction, same values).
type Direction int

const (
	Bidirectional Direction = iota // DMA_BIDIRECTIONAL
	ToDevice                       // DMA_TO_DEVICE: the device reads
	FromDevice                     // DMA_FROM_DEVICE: the device writes
	None                           // DMA_NONE: nothing takes it, EINVAL
)

// String is the kernel's name, such as DMA_TO_DEVICE.
func (d Direction) String() string {
	switch d {
	case Bidirectional:
		return "DMA_BIDIRECTIONAL"
	case ToDevice:
		return "DMA_TO_DEVICE"
	case FromDevice:
		return "DMA_FROM_DEVICE"
	}
	return "DMA_NONE"
}

func (d Direction) valid() bool { return d >= Bidirectional && d < None }

// Limits is what a device can reach (struct device: dma_mask and dma_parms).
// A field of 0 is no limit.
type Limits struct {
	DMAMask         uint   // bits of address it has, 1 to 64: the last byte of a segment must lie below 2^DMAMask
	MaxSegments     uint64 // segments of one mapping
	MaxSegmentSize  uint64 // bytes of one segment; used rounded down to whole pages
	SegmentBoundary uint64 // no segment crosses a multiple of it: a power of two, or the mask just below one, as dma_get_seg_boundary has it
}

// last is the highest address that the device reaches.
func (l Limits) last() uint64 {
	if l.DMAMask == 0 || l.DMAMask >= 64 {
		return 1<<64 - 1
	}
	return 1<<l.DMAMask - 1
}

// boundary is the distance of the addresses that no segment crosses, 0 for none.
func (l Limits) boundary() uint64 {
	v := l.SegmentBoundary
	if bits.OnesCount64(v) <= 1 {
		return v
	}
	return v + 1 // a mask: the power above it; all ones: none
}

// segmentSize is the largest segment, in bytes, a multiple of the page size.
func (l Limits) segmentSize() uint64 {
	if l.MaxSegmentSize == 0 {
		return 1 << 63
	}
	return max(l.MaxSegmentSize&^(PageSize-1), PageSize)
}

// Importer is who uses a buffer, a device or a process; attach.Attachment is one.
// Importers are compared by ==, so one must be a pointer.
type Importer interface {
	Name() string
	Limits() Limits
}

// Segment is one run of addresses (struct scatterlist).
type Segment struct {
	Offset int64  // where in the buffer it begins, in pages
	Addr   uint64 // its (simulated) DMA address
	Len    int64  // bytes
}

// SGTable is a mapping's list of segments (struct sg_table). The importer owns it until Unmap.
type SGTable struct {
	Segments []Segment // as the device sees them: sgl with nents
	Orig     []Segment // the exporter's chunks before merging and splitting: orig_nents
	Dir      Direction
}

// MapKind is how a process' mapping of a buffer has to be made.
type MapKind int

const (
	// MapCached: the page cache of the file; Fault and Launder move pages, Mapping shoots them down.
	MapCached MapKind = iota
	// MapPassthrough: VMA.File's own pages.
	MapPassthrough
	// MapDirect: as MapCached, but read(2) and write(2) go around the page cache, to Read and Write.
	MapDirect
)

// VMA is a request for a mapping (struct vm_area_struct) and Ops.Mmap's answer.
type VMA struct {
	Length, Offset int64    // bytes; Length 0 asks only how a mapping would be made
	Write, Shared  bool     // PROT_WRITE, MAP_SHARED
	Kind           MapKind  // answer
	File           *os.File // answer, for MapPassthrough with Length > 0; stays the exporter's
}

// Run is a run of pages.
type Run struct{ First, N int64 }

// Mapping is the address space of a buffer's CPU view (unmap_mapping_range).
type Mapping interface {
	// Shoot has every dirty page of the runs written back through Buffer.Launder and,
	// with zap, removes the pages from every page table and from the page cache. It
	// returns when that is done. It is called with no lock held, from calls with the
	// caller's context. After an error the pages may be anywhere.
	Shoot(ctx context.Context, runs []Run, zap bool) error
}

// Ops is what an exporter can do with its buffers: struct dma_buf_ops of the
// header (include/linux/dma-buf.h, 4.9), names and order kept. nil is absent.
// No lock of this package is held in any of them, except for Vmap, Vunmap and
// Resize, which take turns with themselves.
type Ops struct {
	// Attach may refuse an importer: EBUSY when storage is allocated where it cannot reach. Optional.
	Attach func(*Buffer, Importer) error
	// Detach is called for what Attach accepted. Optional.
	Detach func(*Buffer, Importer)
	// MapDMABuf pins the storage and gives it addresses. A nil table is ENOMEM. May sleep; EINTR.
	MapDMABuf func(context.Context, *Buffer, Importer, Direction) (*SGTable, error)
	// UnmapDMABuf takes back a table of MapDMABuf.
	UnmapDMABuf func(*Buffer, Importer, *SGTable, Direction)
	// Release frees what the buffer has; once, after the last Put.
	Release func(*Buffer)
	// BeginCPUAccess makes the CPU see what devices wrote. Optional. An error skips the wait for fences.
	BeginCPUAccess func(context.Context, *Buffer, Direction) error
	// EndCPUAccess makes devices see what the CPU wrote. Optional.
	EndCPUAccess func(context.Context, *Buffer, Direction) error
	// KmapAtomic gives the bytes of one page, and does not sleep. The page number is not checked by the core.
	KmapAtomic func(*Buffer, int64) []byte
	// KunmapAtomic ends it. Optional.
	KunmapAtomic func(*Buffer, int64, []byte)
	// Kmap gives the bytes of one page; may sleep.
	Kmap func(*Buffer, int64) []byte
	// Kunmap ends it. Optional.
	Kunmap func(*Buffer, int64, []byte)
	// Mmap says how a process maps the buffer (VMA.Kind, VMA.File), or refuses.
	Mmap func(*Buffer, *VMA) error
	// Vmap maps the whole buffer. Optional: EINVAL without it.
	Vmap func(*Buffer) ([]byte, error)
	// Vunmap ends it. Optional.
	Vunmap func(*Buffer, []byte)

	// Pin and Unpin (later headers) come together or not at all. Pin is called before
	// MapDMABuf and Unpin after UnmapDMABuf, as for importers that are not dynamic.
	Pin   func(*Buffer, Importer) error
	Unpin func(*Buffer, Importer)

	// What follows has no counterpart in the header: in user space somebody has to
	// say what the kernel's DMA API, page faults and page cache do. All are optional.

	// SyncForDevice and SyncForCPU begin and end one piece of device work
	// (dma_sync_sgtable_for_device, _for_cpu). Without them the CPU's pages are
	// shot down, as Buffer.Shootdown does; an exporter that has its own calls that
	// where it wants it.
	SyncForDevice func(context.Context, *Buffer, Importer, Direction) error
	SyncForCPU    func(context.Context, *Buffer, Importer, Direction) error
	// Resize prepares for a new size, in bytes. Without it the size is fixed.
	Resize func(*Buffer, int64) error
	// Memory is what the bytes lie in; nil: pages come from Kmap.
	Memory func(*Buffer) *Memory
	// Fault reads what the CPU is to see in pages that it touched. Without it: the memory's bytes.
	Fault func(b *Buffer, p []byte, off int64) (int, error)
	// Launder takes a page that the CPU dirtied. Without it: into the memory.
	Launder func(b *Buffer, p []byte, off int64) (int, error)
	// ReadAt and WriteAt are read(2) and write(2), with what brackets they need.
	// Without them: BeginCPUAccess, the memory's bytes, EndCPUAccess.
	ReadAt  func(ctx context.Context, b *Buffer, p []byte, off int64) (int, error)
	WriteAt func(ctx context.Context, b *Buffer, p []byte, off int64) (int, error)
	// Flush is fsync(2) and msync(2).
	Flush func(ctx context.Context, b *Buffer) error
	// PunchHole zeroes whole bytes [off, off+n) and may free their pages. Without it: the memory's.
	PunchHole func(b *Buffer, off, n int64) error
}
