// Package exporter is the buffer and whoever owns its bytes: what dma-buf.c and
// its exporters are in the kernel. It knows no FUSE.
//
// An exporter fills in an Info, calls Export, and has a Buffer with one reference:
//
//	info := exporter.DefineInfo(owner)   // DEFINE_DMA_BUF_EXPORT_INFO
//	info.Ops, info.Size, info.Priv = ops, 8192, mine
//	buf, err := exporter.Export(info)
//	...
//	buf.Put()                            // the last one: Ops.Release, once
//
// Devices attach (package attach), map, work, and unmap. The CPU's side is served
// by whoever shows the buffer to processes (package fs): it asks Fault for the
// bytes of a page that a process touched, gives Launder what the kernel wrote back,
// and implements Mapping, by which pages are shot down again.
//
// # Domains
//
// Every page has a CPU bit: some process may have it in its page tables, or the
// kernel in its page cache. Fault and Write set it before they look at the memory;
// a transition clears bits and takes them as runs in one step, and only then shoots
// the runs down. A bit too many costs one needless shootdown, a bit too few would
// cost coherency. The cost of a transition grows with the pages that the CPU
// touched, never with the buffer's size.
//
// A transition may wait for the kernel, and the kernel for answers to the requests
// it makes meanwhile. So transitions of one buffer take turns by a token that a
// context can stop waiting for, and Fault, Launder, Read, Write and Flush never take it.
//
// # Locks
//
// Outermost first:
//
//	Buffer.sizeMu      one Resize at a time; Ops.Resize runs under it
//		Buffer.vmapMu   vmapping_counter and vmap_ptr; Ops.Vmap and Vunmap run under it
//		store.mu        a built-in exporter's placement
//			Buffer.mu   attachments, name
//			physmem.mu, carveout.mu
//		softCache.mu    noncoherent's bits and the copying between its two memories
//			Memory.mu
//		domain.mu       CPU bits, brackets, counters
//	Registry.mu        names, list of buffers
//		Owner.mu
//
// Of Ops only Resize, Vmap and Vunmap run with a lock of this package held. No lock
// is held when Mapping.Shoot is called or a fence is waited for.
//
// # Errors
//
// Every error carries its errno (errors.Is(err, syscall.EBUSY)). What a context
// interrupts gives EINTR, which also is the context's own error.
package exporter
