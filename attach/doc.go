// Package attach records who uses a buffer, and how: devices, with their limits and
// their DMA mappings, and processes.
//
// A buffer promises nothing about where its bytes lie. A device attaches first, which
// moves nothing, and maps only while it works:
//
//	dev := attach.NewDevice("gpu0")
//	a, err := attach.Attach(buf, dev)        // the exporter may refuse: EBUSY
//	sgt, err := a.Map(ctx, exporter.ToDevice)
//	err = a.Begin(ctx, exporter.ToDevice)    // the CPU's pages are shot down
//	...                                      // the device reads
//	err = a.End(ctx, exporter.ToDevice)
//	a.Unmap(sgt, exporter.ToDevice)
//	a.Detach()
//
// Until the first Map of all, and while no mapping lives, the exporter may still move
// the bytes; while one lives they stay. Detaching with a live mapping is the caller's
// bug: panic. An Attachment takes no reference of its buffer: whoever attaches has one.
//
// # Locks
//
// Device.mu and Attachment.mu guard their own fields; neither is held while package
// exporter is called, nor while the other is.
package attach
