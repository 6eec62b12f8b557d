package exporter

import (
	"context"
	"fmt"
	"slices"

	"github.com/dmabuffs/dmabuffs/poll"
)

// link is an importer in a buffer's list of attachments.
type link struct {
	imp    Importer
	cpu    bool // a process: no device, the exporter is not asked
	mapped int  // live mappings, and those being made
	dir    Direction
	tables []*SGTable
}

func (b *Buffer) linkLocked(imp Importer) *link {
	for _, l := range b.links {
		if l.imp == imp {
			return l
		}
	}
	return nil
}

// Attach puts a device on the list (dma_buf_attach) after the exporter agreed. The
// error is the exporter's, EBUSY where storage is out of the device's reach; EINVAL
// for nil, or an importer that is attached already (a device attaches again by
// another attachment). No reference is taken: the caller has one.
func (b *Buffer) Attach(imp Importer) error {
	if imp == nil {
		return fmt.Errorf("exporter: attach without a device: %w", ErrInvalid)
	}
	if op := b.ops.Attach; op != nil {
		if err := op(b, imp); err != nil {
			return err
		}
	}
	if b.link(&link{imp: imp, dir: None}) {
		return nil
	}
	if op := b.ops.Detach; op != nil {
		op(b, imp)
	}
	return fmt.Errorf("exporter: %s is attached already: %w", imp.Name(), ErrInvalid)
}

// AttachCPU puts a process on the list. It is shown, and that is all: the exporter
// is not asked, and it cannot map for DMA.
func (b *Buffer) AttachCPU(imp Importer) {
	if !b.link(&link{imp: imp, cpu: true, dir: None}) {
		panic("exporter: attached twice")
	}
}

// link appends to the list, unless it is on it.
func (b *Buffer) link(l *link) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.linkLocked(l.imp) != nil {
		return false
	}
	b.links = append(b.links, l)
	return true
}

// Detach takes an importer off the list (dma_buf_detach). What it was working on is
// the CPU's again. Not attached: WARN, and nothing happens. It panics with a live
// mapping: addresses would be left behind that nobody unmaps.
func (b *Buffer) Detach(imp Importer) {
	b.mu.Lock()
	l := b.linkLocked(imp)
	switch {
	case l == nil:
		b.mu.Unlock()
		b.warn("detach of what is not attached")
		return
	case l.mapped > 0:
		b.mu.Unlock()
		panic(fmt.Sprintf("exporter: detach of %s with %d live mappings", imp.Name(), l.mapped))
	}
	i := slices.Index(b.links, l)
	b.links = slices.Delete(b.links, i, i+1)
	b.mu.Unlock()
	if l.cpu {
		return
	}
	b.dom.leave(imp)
	if op := b.ops.Detach; op != nil {
		op(b, imp)
	}
}

// Attachments is everybody on the list, devices and processes, oldest first.
func (b *Buffer) Attachments() []Importer {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make([]Importer, len(b.links))
	for i, l := range b.links {
		out[i] = l.imp
	}
	return out
}

// Devices is the devices on the list, oldest first.
func (b *Buffer) Devices() []Importer {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []Importer
	for _, l := range b.links {
		if !l.cpu {
			out = append(out, l.imp)
		}
	}
	return out
}

// Mapped is the number of live DMA mappings, of all devices.
func (b *Buffer) Mapped() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mapped
}

// MappedBy is the number of live mappings of one importer, and their direction (None without one).
func (b *Buffer) MappedBy(imp Importer) (int, Direction) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if l := b.linkLocked(imp); l != nil && l.mapped > 0 {
		return l.mapped, l.dir
	}
	return 0, None
}

// Map gives an attached device addresses of the buffer (dma_buf_map_attachment), and
// waits for fences of usage Kernel (as 6.1 does for importers that are not dynamic).
// The table is the caller's until Unmap.
//
// The core keeps no tables (6.18): each call reaches the exporter, and each
// attachment has tables of its own. While an attachment is mapped another direction
// is EBUSY, as DRM PRIME has it; after Unmap any direction goes.
//
// EINVAL: not attached as a device, or direction None. EINTR: ctx ended. ENOMEM: no
// room, or the exporter gave nothing. EBUSY: a *LimitError where no placement suits.
func (b *Buffer) Map(ctx context.Context, imp Importer, dir Direction) (*SGTable, error) {
	if imp == nil || !dir.valid() {
		return nil, fmt.Errorf("exporter: map %v: %w", dir, ErrInvalid)
	}
	if ctx.Err() != nil {
		return nil, interrupted(ctx, "map")
	}
	if err := b.claim(imp, dir); err != nil {
		return nil, err
	}
	sgt, err := b.mapPinned(ctx, imp, dir)
	b.mu.Lock()
	l := b.linkLocked(imp)
	if err != nil {
		l.mapped--
		b.mapped--
	} else {
		l.tables = append(l.tables, sgt)
	}
	b.mu.Unlock()
	if err != nil {
		return nil, err
	}
	b.sgt.Store(sgt)
	return sgt, nil
}

// claim counts a mapping that is about to be made.
func (b *Buffer) claim(imp Importer, dir Direction) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := b.linkLocked(imp)
	if l == nil || l.cpu {
		return fmt.Errorf("exporter: map by %s, which is not attached: %w", imp.Name(), ErrInvalid)
	}
	if l.mapped > 0 && l.dir != dir {
		return fmt.Errorf("exporter: %s has it mapped %v, not %v: %w", imp.Name(), l.dir, dir, ErrBusy)
	}
	l.mapped++
	l.dir = dir
	b.mapped++
	return nil
}

func (b *Buffer) mapPinned(ctx context.Context, imp Importer, dir Direction) (*SGTable, error) {
	if op := b.ops.Pin; op != nil {
		if err := op(b, imp); err != nil {
			return nil, err
		}
	}
	sgt, err := b.mapAndWait(ctx, imp, dir)
	if err != nil && b.ops.Unpin != nil {
		b.ops.Unpin(b, imp)
	}
	return sgt, err
}

func (b *Buffer) mapAndWait(ctx context.Context, imp Importer, dir Direction) (*SGTable, error) {
	sgt, err := b.ops.MapDMABuf(ctx, b, imp, dir)
	if err != nil {
		return nil, err
	}
	if sgt == nil {
		return nil, fmt.Errorf("exporter: %s: map_dma_buf gave nothing: %w", b.expName, ErrNoMemory)
	}
	if b.resv.Idle(poll.Kernel) {
		return sgt, nil
	}
	if err := b.resv.Wait(ctx, poll.Kernel); err != nil {
		b.ops.UnmapDMABuf(b, imp, sgt, dir)
		return nil, eintr(ctx, "map", err)
	}
	return sgt, nil
}

// Unmap ends a mapping (dma_buf_unmap_attachment). A table that Map did not give
// this importer, or that was unmapped before: WARN, and nothing happens. The
// direction is the one it was mapped with, whatever the caller says (WARN).
func (b *Buffer) Unmap(imp Importer, sgt *SGTable, dir Direction) {
	b.mu.Lock()
	l := b.linkLocked(imp)
	i := -1
	if l != nil {
		i = slices.Index(l.tables, sgt)
	}
	if i < 0 {
		b.mu.Unlock()
		b.warn("unmap of what is not mapped")
		return
	}
	l.tables = slices.Delete(l.tables, i, i+1)
	was := l.dir
	b.mu.Unlock()
	if was != dir {
		b.warn("unmap in another direction", "mapped", was.String(), "unmap", dir.String())
	}
	b.ops.UnmapDMABuf(b, imp, sgt, was)
	if op := b.ops.Unpin; op != nil {
		op(b, imp)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l.mapped--
	b.mapped--
}

// SGTableOf is the table of the newest Map, with the placement that holds until the
// size changes or the buffer is moved by another Map. nil: nothing is placed.
func (b *Buffer) SGTableOf() *SGTable { return b.sgt.Load() }
