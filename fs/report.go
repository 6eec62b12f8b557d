package fs

import (
	"fmt"
	"strings"
	"syscall"

	"github.com/dmabuffs/dmabuffs/exporter"
	"github.com/dmabuffs/dmabuffs/poll"
)

// reportFiles are the files of the root, everybody's to read; their node ids count from firstID.
func (fsys *fileSystem) reportFiles(firstID uint64) map[string]node {
	m := meta{mode: 0444, uid: fsys.opts.UID, gid: fsys.opts.GID, atime: fsys.started, mtime: fsys.started, ctime: fsys.started}
	files := map[string]node{}
	add := func(name string, t *textNode) {
		t.ident, t.fsys, t.own = firstID+uint64(len(files)), fsys, m.attr
		files[name] = t
	}
	add("bufinfo", &textNode{show: func() (string, error) { return bufinfo(fsys.registry.Buffers()), nil }})
	add("events", &textNode{opened: func(_ *request, flags uint32) (handle, error) { return fsys.events.open(fsys.conn, flags) }})
	add("metrics", &textNode{show: fsys.metrics.text})
	add("version", &textNode{show: func() (string, error) { return versionText(), nil }})
	return files
}

// Bits of f_mode that bufinfo shows, include/linux/fs.h.
const (
	fmodeRead   = 0x1
	fmodeWrite  = 0x2
	fmodeLseek  = 0x4
	fmodeOpened = 0x80000
)

// fMode is what the kernel's f_mode would be of a dma-buf file with these open flags.
func fMode(flags int) uint32 {
	mode := uint32(fmodeOpened | fmodeLseek)
	switch flags & syscall.O_ACCMODE {
	case syscall.O_RDONLY:
		mode |= fmodeRead
	case syscall.O_WRONLY:
		mode |= fmodeWrite
	case syscall.O_RDWR:
		mode |= fmodeRead | fmodeWrite
	}
	return mode
}

// bufinfo is the file bufinfo, byte for byte in the layout of debugfs
// dma_buf/bufinfo of Linux 6.1 to 6.19 (drivers/dma-buf/dma-buf.c,
// dma_buf_debug_show, and dma_resv_describe), newest buffer first:
//
//	size      bytes
//	flags     the exporter's Info.Flags: open flags, hexadecimal
//	mode      FMODE_OPENED, FMODE_LSEEK, and read and write as the flags say
//	count     references: a name, an open file and a device's view are one each
//	exp_name  exporter
//	ino       inode number of buffers/<buffer>
//	name      DMA_BUF_SET_NAME's, raw; <none> before the first
//
// Then the fences of usage KERNEL, WRITE and READ in their slots, signaled or
// not, and the attached devices. CPUs, attachments here, are not devices.
func bufinfo(buffers []*exporter.Buffer) string {
	var b strings.Builder
	b.WriteString("\nDma-buf Objects:\n")
	fmt.Fprintf(&b, "%-8s\t%-8s\t%-8s\t%-8s\texp_name\t%-8s\tname\n", "size", "flags", "mode", "count", "ino")
	count, bytes := 0, int64(0)
	for _, buf := range buffers {
		refs := buf.Refs()
		if refs == 0 {
			continue // released since the list was made
		}
		name, named := buf.Name()
		if !named {
			name = "<none>"
		}
		size := buf.Size()
		fmt.Fprintf(&b, "%08d\t%08x\t%08x\t%08d\t%s\t%08d\t%s\n",
			size, buf.Flags(), fMode(buf.Flags()), refs, buf.ExpName(), buf.ID(), name)
		for _, s := range buf.Resv().Slots(poll.Read) {
			describeFence(&b, s)
		}
		b.WriteString("\tAttached Devices:\n")
		devices := 0
		for _, a := range attachmentsOf(buf) {
			if dev := a.Dev(); dev != nil {
				fmt.Fprintf(&b, "\t%s\n", dev.Name())
				devices++
			}
		}
		fmt.Fprintf(&b, "Total %d devices attached\n\n", devices)
		count++
		bytes += size
	}
	fmt.Fprintf(&b, "\nTotal %d objects, %d bytes\n", count, bytes)
	return b.String()
}

// describeFence is a row of dma_resv_describe and dma_fence_describe.
func describeFence(b *strings.Builder, s poll.Slot) {
	usage := map[poll.Usage]string{poll.Kernel: "kernel", poll.Write: "write", poll.Read: "read"}[s.Usage]
	un := "un"
	if s.Fence.Signaled() {
		un = ""
	}
	fmt.Fprintf(b, "\t%s fence:%s %s seq %d %ssignalled\n", usage, s.Fence.Driver(), s.Fence.TimelineName(), s.Fence.Seqno(), un)
}
