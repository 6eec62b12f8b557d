package uapi

// include/uapi/linux/dma-heap.h. The size in the number of ALLOC is what the
// caller's struct has: 16 bytes in an old program, more than 24 in one from later.
const (
	DMA_HEAP_IOC_MAGIC = 'H'

	DMA_HEAP_IOCTL_ALLOC = 0xc0184800

	// DMA_HEAP_VALID_FD_FLAGS is O_CLOEXEC | O_ACCMODE, of x86-64.
	DMA_HEAP_VALID_FD_FLAGS   = 0x80000 | 0x3
	DMA_HEAP_VALID_HEAP_FLAGS = 0
)

// HeapAlloc is struct dma_heap_allocation_data, 24 bytes.
type HeapAlloc struct {
	Len       uint64 // bytes
	FD        uint32 // out; 0 on the way in
	FDFlags   uint32
	HeapFlags uint64
}

// SizeHeapAlloc is the size of HeapAlloc in bytes.
const SizeHeapAlloc = 24

// DecodeHeapAlloc reads a HeapAlloc.
func DecodeHeapAlloc(p []byte) (h HeapAlloc, ok bool) {
	if len(p) < SizeHeapAlloc {
		return h, false
	}
	return HeapAlloc{
		Len:       native.Uint64(p),
		FD:        native.Uint32(p[8:]),
		FDFlags:   native.Uint32(p[12:]),
		HeapFlags: native.Uint64(p[16:]),
	}, true
}

// Encode writes h.
func (h HeapAlloc) Encode(p []byte) {
	native.PutUint64(p, h.Len)
	native.PutUint32(p[8:], h.FD)
	native.PutUint32(p[12:], h.FDFlags)
	native.PutUint64(p[16:], h.HeapFlags)
}

// include/uapi/linux/udmabuf.h. CREATE_LIST's number tells the size of its head only.
const (
	UDMABUF_CREATE      = 0x40187542
	UDMABUF_CREATE_LIST = 0x40087543

	UDMABUF_FLAGS_CLOEXEC = 0x01
)

// UdmabufCreate is struct udmabuf_create, 24 bytes.
type UdmabufCreate struct {
	Memfd  uint32
	Flags  uint32
	Offset uint64 // bytes
	Size   uint64 // bytes
}

// SizeUdmabufCreate is the size of UdmabufCreate in bytes.
const SizeUdmabufCreate = 24

// DecodeUdmabufCreate reads a UdmabufCreate.
func DecodeUdmabufCreate(p []byte) (u UdmabufCreate, ok bool) {
	if len(p) < SizeUdmabufCreate {
		return u, false
	}
	return UdmabufCreate{
		Memfd:  native.Uint32(p),
		Flags:  native.Uint32(p[4:]),
		Offset: native.Uint64(p[8:]),
		Size:   native.Uint64(p[16:]),
	}, true
}

// Encode writes u.
func (u UdmabufCreate) Encode(p []byte) {
	native.PutUint32(p, u.Memfd)
	native.PutUint32(p[4:], u.Flags)
	native.PutUint64(p[8:], u.Offset)
	native.PutUint64(p[16:], u.Size)
}

// UdmabufList is the head of struct udmabuf_create_list, 8 bytes; Count items of
// struct udmabuf_create_item follow, which are laid out as UdmabufCreate, their
// pad in the place of its flags.
type UdmabufList struct {
	Flags uint32
	Count uint32
}

// SizeUdmabufList is the size of UdmabufList in bytes, without its items.
const SizeUdmabufList = 8

// DecodeUdmabufList reads a UdmabufList.
func DecodeUdmabufList(p []byte) (u UdmabufList, ok bool) {
	if len(p) < SizeUdmabufList {
		return u, false
	}
	return UdmabufList{Flags: native.Uint32(p), Count: native.Uint32(p[4:])}, true
}

// Encode writes u.
func (u UdmabufList) Encode(p []byte) {
	native.PutUint32(p, u.Flags)
	native.PutUint32(p[4:], u.Count)
}
