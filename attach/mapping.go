package attach

import (
	"context"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// Map gives the device addresses of the buffer until Unmap (dma_buf_map_attachment):
// see exporter.Buffer.Map for what it does with a second mapping, and its errors.
func (a *Attachment) Map(ctx context.Context, dir exporter.Direction) (*exporter.SGTable, error) {
	return a.dmabuf.Map(ctx, a, dir)
}

// Unmap ends a mapping (dma_buf_unmap_attachment).
func (a *Attachment) Unmap(sgt *exporter.SGTable, dir exporter.Direction) {
	a.dmabuf.Unmap(a, sgt, dir)
}

// Begin begins one piece of device work: the buffer comes to the device's domain
// (exporter.Buffer.SyncForDevice). EINVAL: not mapped. EINTR: ctx ended.
func (a *Attachment) Begin(ctx context.Context, dir exporter.Direction) error {
	return a.dmabuf.SyncForDevice(ctx, a, dir)
}

// End ends it: the buffer goes back to the CPU's (exporter.Buffer.SyncForCPU).
func (a *Attachment) End(ctx context.Context, dir exporter.Direction) error {
	return a.dmabuf.SyncForCPU(ctx, a, dir)
}

// Mapped reports whether a mapping lives.
func (a *Attachment) Mapped() bool {
	n, _ := a.dmabuf.MappedBy(a)
	return n > 0
}

// Direction is that of the live mappings, None without one.
func (a *Attachment) Direction() exporter.Direction {
	_, dir := a.dmabuf.MappedBy(a)
	return dir
}
