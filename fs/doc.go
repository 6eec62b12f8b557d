// Package fs shows dma-bufs as files: it is the only package that knows FUSE.
//
// # The tree
//
//	buffers/<buffer>               a buffer's CPU view           buffers.go, cpuview.go
//	exporters/<exporter>/<buffer>  the same inodes               buffers.go
//	devices/<device>/…             devices, and their DMA views  devices.go, dmaview.go
//	timelines/<timeline>/…         fences to come                timelines.go, syncfile.go
//	state/<buffer>/…               what is known of a buffer     state.go
//	bufinfo events metrics version                               report.go, events.go
//
// # Nodes and handles
//
// A node id is our object's number and a handle our attachment's: OPEN is attach,
// RELEASE is detach. Directories are a dirOps table over an object; small files
// are a textNode with show and store, as in sysfs. Nodes translate and decide
// nothing; what they call is in packages exporter, attach and poll.
//
// # Requests
//
// wire_linux.go owns /dev/fuse. Each request is handled to its end by the reader
// that took it, which lets another take over before it waits; a request is a
// context.Context that an INTERRUPT cancels. Everything that may block takes it.
//
// # Coherency
//
// The page cache of buffers/<buffer> is the CPU's domain, the memfd behind it the
// devices'. exporter decides which runs of pages have to leave the CPU's domain
// and calls Mapping.Shoot; flusher_linux.go does it.
//
// # Locks
//
//	bufferDir.mu, deviceDir.mu, timelineDir.mu
//		bufferNode.mu
//			exporter's and poll's own
//	nodeTable.mu, handleTable.mu, conn.mu: leaves; nothing is called under them
//
// (nodeTable.secondary calls a constructor under its lock, which only builds a value.)
// No lock is held across a notification, an fsync of our own files, or any wait.
//
// # What FUSE cannot copy
//
// A file here is a regular file, has no /dmabuf: name and no dma-buf lines in its
// fdinfo; mmap beyond the end is allowed and faults with SIGBUS; descriptors cannot
// be put into a caller, so EXPORT_SYNC_FILE and SYNC_IOC_MERGE need `dmabuffs run`;
// read(2) and write(2) work, which a dma-buf refuses.
package fs
