package uapi

// Our own: what `dmabuffs run` asks of MNT/.control/ctl. Ids are of this mount,
// never 0, and are opened as MNT/.control/<kind>/<id>; fs/control.go says how
// long they live. Inodes are st_ino of descriptors of this mount.
const (
	CONTROL_IOC_MAGIC = 'B'

	// CONTROL_EXPORT makes a sync file of a buffer's fences (ControlExport).
	CONTROL_EXPORT = 0xc0184280
	// CONTROL_MERGE makes a sync file of two (ControlMerge).
	CONTROL_MERGE = 0xc0384281
	// CONTROL_SW_SYNC_NEW makes a sw_sync timeline (ControlSWSyncNew).
	CONTROL_SW_SYNC_NEW = 0xc0284282
	// CONTROL_SW_SYNC_FENCE makes a sync file of one of its points (ControlSWSyncFence).
	CONTROL_SW_SYNC_FENCE = 0xc0184283
	// CONTROL_BUFFER_NEW makes a buffer without a name (ControlBufferNew).
	CONTROL_BUFFER_NEW = 0xc0304284
	// CONTROL_UDMABUF makes a buffer of parts of memfds (ControlUdmabuf). This is
	// the number without a size: ControlUdmabufNumber puts it in.
	CONTROL_UDMABUF = 0xc0004285

	// CONTROL_UDMABUF_MORE says that more items follow in the next call.
	CONTROL_UDMABUF_MORE = 1 << 0
	// CONTROL_UDMABUF_ITEMS is the most items that one call takes.
	CONTROL_UDMABUF_ITEMS = 512
)

// ControlExport is the argument of CONTROL_EXPORT, 24 bytes: u64 ino, u32 flags, u32 pad, u64 id.
type ControlExport struct {
	Ino   uint64 // of the buffer
	Flags uint32 // DMA_BUF_SYNC_READ, _WRITE
	ID    uint64 // out: .control/sync/<id>
}

// SizeControlExport is the size of ControlExport in bytes.
const SizeControlExport = 24

// DecodeControlExport reads a ControlExport.
func DecodeControlExport(p []byte) (c ControlExport, ok bool) {
	if len(p) < SizeControlExport {
		return c, false
	}
	return ControlExport{Ino: native.Uint64(p), Flags: native.Uint32(p[8:]), ID: native.Uint64(p[16:])}, true
}

// Encode writes c.
func (c ControlExport) Encode(p []byte) {
	native.PutUint64(p, c.Ino)
	native.PutUint32(p[8:], c.Flags)
	native.PutUint32(p[12:], 0)
	native.PutUint64(p[16:], c.ID)
}

// ControlMerge is the argument of CONTROL_MERGE, 56 bytes: u64 ino1, u64 ino2, char name[32], u64 id.
type ControlMerge struct {
	Ino1, Ino2 uint64 // sync files
	Name       string // 31 bytes; empty: made up from the fences
	ID         uint64 // out: .control/sync/<id>
}

// SizeControlMerge is the size of ControlMerge in bytes.
const SizeControlMerge = 56

// DecodeControlMerge reads a ControlMerge.
func DecodeControlMerge(p []byte) (c ControlMerge, ok bool) {
	if len(p) < SizeControlMerge {
		return c, false
	}
	return ControlMerge{
		Ino1: native.Uint64(p), Ino2: native.Uint64(p[8:]),
		Name: text(p[16 : 16+SYNC_NAME_LEN-1]), ID: native.Uint64(p[48:]),
	}, true
}

// Encode writes c.
func (c ControlMerge) Encode(p []byte) {
	native.PutUint64(p, c.Ino1)
	native.PutUint64(p[8:], c.Ino2)
	putText(p[16:16+SYNC_NAME_LEN], c.Name)
	native.PutUint64(p[48:], c.ID)
}

// ControlSWSyncNew is the argument of CONTROL_SW_SYNC_NEW, 40 bytes: char name[32], u64 id.
type ControlSWSyncNew struct {
	Name string // the opener's command, 31 bytes
	ID   uint64 // out: .control/sw_sync/<id>
}

// SizeControlSWSyncNew is the size of ControlSWSyncNew in bytes.
const SizeControlSWSyncNew = 40

// DecodeControlSWSyncNew reads a ControlSWSyncNew.
func DecodeControlSWSyncNew(p []byte) (c ControlSWSyncNew, ok bool) {
	if len(p) < SizeControlSWSyncNew {
		return c, false
	}
	return ControlSWSyncNew{Name: text(p[:31]), ID: native.Uint64(p[32:])}, true
}

// Encode writes c.
func (c ControlSWSyncNew) Encode(p []byte) {
	putText(p[:32], c.Name)
	native.PutUint64(p[32:], c.ID)
}

// ControlSWSyncFence is the argument of CONTROL_SW_SYNC_FENCE, 24 bytes: u64 ino, u32 value, u32 pad, u64 id.
type ControlSWSyncFence struct {
	Ino   uint64 // of the open .control/sw_sync/<id>
	Value uint32
	ID    uint64 // out: .control/sync/<id>
}

// SizeControlSWSyncFence is the size of ControlSWSyncFence in bytes.
const SizeControlSWSyncFence = 24

// DecodeControlSWSyncFence reads a ControlSWSyncFence.
func DecodeControlSWSyncFence(p []byte) (c ControlSWSyncFence, ok bool) {
	if len(p) < SizeControlSWSyncFence {
		return c, false
	}
	return ControlSWSyncFence{Ino: native.Uint64(p), Value: native.Uint32(p[8:]), ID: native.Uint64(p[16:])}, true
}

// Encode writes c.
func (c ControlSWSyncFence) Encode(p []byte) {
	native.PutUint64(p, c.Ino)
	native.PutUint32(p[8:], c.Value)
	native.PutUint32(p[12:], 0)
	native.PutUint64(p[16:], c.ID)
}

// ControlBufferNew is the argument of CONTROL_BUFFER_NEW, 48 bytes: char exporter[32], u64 size, u64 id.
type ControlBufferNew struct {
	Exporter string // "system", …; empty: the mount's default
	Size     uint64 // bytes
	ID       uint64 // out: .control/buffers/<id>, and its inode
}

// SizeControlBufferNew is the size of ControlBufferNew in bytes.
const SizeControlBufferNew = 48

// DecodeControlBufferNew reads a ControlBufferNew.
func DecodeControlBufferNew(p []byte) (c ControlBufferNew, ok bool) {
	if len(p) < SizeControlBufferNew {
		return c, false
	}
	return ControlBufferNew{Exporter: text(p[:31]), Size: native.Uint64(p[32:]), ID: native.Uint64(p[40:])}, true
}

// Encode writes c.
func (c ControlBufferNew) Encode(p []byte) {
	putText(p[:32], c.Exporter)
	native.PutUint64(p[32:], c.Size)
	native.PutUint64(p[40:], c.ID)
}

// ControlUdmabuf is the argument of CONTROL_UDMABUF, 16 bytes and 24 for each
// item: u32 count, u32 flags, u64 id, then items of s32 fd, u32 pad, u64 offset, u64 size.
//
// A list of more items than CONTROL_UDMABUF_ITEMS takes several calls: all but
// the last have CONTROL_UDMABUF_MORE, and all but the first the ID that the
// first gave.
type ControlUdmabuf struct {
	Flags uint32
	ID    uint64 // out: .control/buffers/<id>, and its inode; with MORE the list
	Items []ControlItem
}

// ControlItem is a part of a memfd.
type ControlItem struct {
	FD     int32  // of the caller's table: a memfd, open for reading and writing
	Offset uint64 // bytes
	Size   uint64 // bytes
}

// Sizes of ControlUdmabuf, in bytes, without items, and of an item.
const (
	SizeControlUdmabuf = 16
	SizeControlItem    = 24
)

// ControlUdmabufNumber is the request number for that many items.
func ControlUdmabufNumber(items int) uint32 {
	return CONTROL_UDMABUF | uint32(SizeControlUdmabuf+items*SizeControlItem)<<16
}

// DecodeControlUdmabuf reads a ControlUdmabuf: as many items as it says it has,
// which have to be there.
func DecodeControlUdmabuf(p []byte) (c ControlUdmabuf, ok bool) {
	if len(p) < SizeControlUdmabuf {
		return c, false
	}
	n := native.Uint32(p)
	c = ControlUdmabuf{Flags: native.Uint32(p[4:]), ID: native.Uint64(p[8:])}
	p = p[SizeControlUdmabuf:]
	if n > CONTROL_UDMABUF_ITEMS || int(n)*SizeControlItem > len(p) {
		return ControlUdmabuf{}, false
	}
	for range n {
		c.Items = append(c.Items, ControlItem{FD: int32(native.Uint32(p)), Offset: native.Uint64(p[8:]), Size: native.Uint64(p[16:])})
		p = p[SizeControlItem:]
	}
	return c, true
}

// Encode writes c.
func (c ControlUdmabuf) Encode(p []byte) {
	native.PutUint32(p, uint32(len(c.Items)))
	native.PutUint32(p[4:], c.Flags)
	native.PutUint64(p[8:], c.ID)
	p = p[SizeControlUdmabuf:]
	for _, i := range c.Items {
		native.PutUint32(p, uint32(i.FD))
		native.PutUint32(p[4:], 0)
		native.PutUint64(p[8:], i.Offset)
		native.PutUint64(p[16:], i.Size)
		p = p[SizeControlItem:]
	}
}
