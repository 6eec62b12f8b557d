package uapi

import (
	"bytes"
	"strings"
	"testing"
)

// Numbers are written out in the constants; here they are made as the headers do.
func TestNumbers(t *testing.T) {
	const w, r, rw = dirW, dirR, dirW | dirR
	for _, c := range []struct {
		name             string
		got              uint32
		dir, typ, nr, sz uint32
	}{
		{"DMA_BUF_IOCTL_SYNC", DMA_BUF_IOCTL_SYNC, w, DMA_BUF_BASE, 0, SizeSync},
		{"DMA_BUF_SET_NAME_A", DMA_BUF_SET_NAME_A, w, DMA_BUF_BASE, 1, 4},
		{"DMA_BUF_SET_NAME_B", DMA_BUF_SET_NAME_B, w, DMA_BUF_BASE, 1, 8},
		{"DMA_BUF_IOCTL_EXPORT_SYNC_FILE", DMA_BUF_IOCTL_EXPORT_SYNC_FILE, rw, DMA_BUF_BASE, 2, SizeSyncFile},
		{"DMA_BUF_IOCTL_IMPORT_SYNC_FILE", DMA_BUF_IOCTL_IMPORT_SYNC_FILE, w, DMA_BUF_BASE, 3, SizeSyncFile},
		{"SYNC_IOC_MERGE", SYNC_IOC_MERGE, rw, SYNC_IOC_MAGIC, 3, SizeMerge},
		{"SYNC_IOC_FILE_INFO", SYNC_IOC_FILE_INFO, rw, SYNC_IOC_MAGIC, 4, SizeFileInfo},
		{"SYNC_IOC_SET_DEADLINE", SYNC_IOC_SET_DEADLINE, w, SYNC_IOC_MAGIC, 5, SizeDeadline},
		{"SW_SYNC_IOC_CREATE_FENCE", SW_SYNC_IOC_CREATE_FENCE, rw, SW_SYNC_IOC_MAGIC, 0, SizeCreateFence},
		{"SW_SYNC_IOC_INC", SW_SYNC_IOC_INC, w, SW_SYNC_IOC_MAGIC, 1, SizeInc},
		{"SW_SYNC_GET_DEADLINE", SW_SYNC_GET_DEADLINE, rw, SW_SYNC_IOC_MAGIC, 2, SizeGetDeadline},
		{"DMA_HEAP_IOCTL_ALLOC", DMA_HEAP_IOCTL_ALLOC, rw, DMA_HEAP_IOC_MAGIC, 0, SizeHeapAlloc},
		{"UDMABUF_CREATE", UDMABUF_CREATE, w, 'u', 0x42, SizeUdmabufCreate},
		{"UDMABUF_CREATE_LIST", UDMABUF_CREATE_LIST, w, 'u', 0x43, SizeUdmabufList},
		{"CONTROL_EXPORT", CONTROL_EXPORT, rw, CONTROL_IOC_MAGIC, 0x80, SizeControlExport},
		{"CONTROL_MERGE", CONTROL_MERGE, rw, CONTROL_IOC_MAGIC, 0x81, SizeControlMerge},
		{"CONTROL_SW_SYNC_NEW", CONTROL_SW_SYNC_NEW, rw, CONTROL_IOC_MAGIC, 0x82, SizeControlSWSyncNew},
		{"CONTROL_SW_SYNC_FENCE", CONTROL_SW_SYNC_FENCE, rw, CONTROL_IOC_MAGIC, 0x83, SizeControlSWSyncFence},
		{"CONTROL_BUFFER_NEW", CONTROL_BUFFER_NEW, rw, CONTROL_IOC_MAGIC, 0x84, SizeControlBufferNew},
		{"CONTROL_UDMABUF", ControlUdmabufNumber(CONTROL_UDMABUF_ITEMS), rw, CONTROL_IOC_MAGIC, 0x85,
			SizeControlUdmabuf + CONTROL_UDMABUF_ITEMS*SizeControlItem},
	} {
		if want := Number(c.dir, c.typ, c.nr, c.sz); c.got != want {
			t.Errorf("%s is %#x, want %#x", c.name, c.got, want)
		}
		if Size(c.got) != int(c.sz) {
			t.Errorf("%s tells a size of %d, want %d", c.name, Size(c.got), c.sz)
		}
	}
	if Base(ControlUdmabufNumber(7)) != CONTROL_UDMABUF {
		t.Error("ControlUdmabufNumber changes more than the size")
	}
}

// Offsets stand in the reference; a struct decoded from bytes that differ everywhere shows them.
func TestOffsets(t *testing.T) {
	p := make([]byte, 80)
	for i := range p {
		p[i] = byte(i + 1)
	}
	u32 := func(off int) uint32 { return native.Uint32(p[off:]) }
	u64 := func(off int) uint64 { return native.Uint64(p[off:]) }
	if m, _ := DecodeMerge(p); m.Name != string(p[:31]) || m.FD2 != int32(u32(32)) || m.Fence != int32(u32(36)) || m.Flags != u32(40) || m.Pad != u32(44) {
		t.Errorf("Merge: %+v", m)
	}
	if f, _ := DecodeFileInfo(p); f.Name != string(p[:31]) || f.Status != int32(u32(32)) || f.Flags != u32(36) || f.NumFences != u32(40) || f.Pad != u32(44) || f.Fences != u64(48) {
		t.Errorf("FileInfo: %+v", f)
	}
	if f, _ := DecodeFenceInfo(p); f.Timeline != string(p[:31]) || f.Driver != string(p[32:63]) || f.Status != int32(u32(64)) || f.Flags != u32(68) || f.Timestamp != u64(72) {
		t.Errorf("FenceInfo: %+v", f)
	}
	if g, _ := DecodeGetDeadline(p); g.NS != u64(0) || g.Pad != u32(8) || g.FD != int32(u32(12)) {
		t.Errorf("GetDeadline: %+v", g)
	}
	if c, _ := DecodeCreateFence(p); c.Value != u32(0) || c.Name != string(p[4:35]) || c.Fence != int32(u32(36)) {
		t.Errorf("CreateFence: %+v", c)
	}
	if h, _ := DecodeHeapAlloc(p); h.Len != u64(0) || h.FD != u32(8) || h.FDFlags != u32(12) || h.HeapFlags != u64(16) {
		t.Errorf("HeapAlloc: %+v", h)
	}
	if u, _ := DecodeUdmabufCreate(p); u.Memfd != u32(0) || u.Flags != u32(4) || u.Offset != u64(8) || u.Size != u64(16) {
		t.Errorf("UdmabufCreate: %+v", u)
	}
	if s, _ := DecodeSyncFile(p); s.Flags != u32(0) || s.FD != int32(u32(4)) {
		t.Errorf("SyncFile: %+v", s)
	}
}

func TestNamesAreCut(t *testing.T) {
	long := strings.Repeat("n", 40)
	p := make([]byte, SizeFenceInfo)
	FenceInfo{Timeline: long, Driver: long}.Encode(p)
	if p[31] != 0 || p[63] != 0 {
		t.Error("a name without its NUL")
	}
	if f, _ := DecodeFenceInfo(p); f.Timeline != long[:31] || f.Driver != long[:31] {
		t.Errorf("names %q and %q, want 31 bytes", f.Timeline, f.Driver)
	}
}

// structs round-trips each struct: what was encoded is decoded as it was.
var structs = []struct {
	name string
	size int
	// again decodes p and encodes what it got into q; false: too short.
	again func(p, q []byte) bool
}{
	{"Sync", SizeSync, func(p, q []byte) bool { v, ok := DecodeSync(p); return put(ok, v, q) }},
	{"SyncFile", SizeSyncFile, func(p, q []byte) bool { v, ok := DecodeSyncFile(p); return put(ok, v, q) }},
	{"Merge", SizeMerge, func(p, q []byte) bool { v, ok := DecodeMerge(p); return put(ok, v, q) }},
	{"FileInfo", SizeFileInfo, func(p, q []byte) bool { v, ok := DecodeFileInfo(p); return put(ok, v, q) }},
	{"FenceInfo", SizeFenceInfo, func(p, q []byte) bool { v, ok := DecodeFenceInfo(p); return put(ok, v, q) }},
	{"Deadline", SizeDeadline, func(p, q []byte) bool { v, ok := DecodeDeadline(p); return put(ok, v, q) }},
	{"CreateFence", SizeCreateFence, func(p, q []byte) bool { v, ok := DecodeCreateFence(p); return put(ok, v, q) }},
	{"Inc", SizeInc, func(p, q []byte) bool { v, ok := DecodeInc(p); return put(ok, v, q) }},
	{"GetDeadline", SizeGetDeadline, func(p, q []byte) bool { v, ok := DecodeGetDeadline(p); return put(ok, v, q) }},
	{"HeapAlloc", SizeHeapAlloc, func(p, q []byte) bool { v, ok := DecodeHeapAlloc(p); return put(ok, v, q) }},
	{"UdmabufCreate", SizeUdmabufCreate, func(p, q []byte) bool { v, ok := DecodeUdmabufCreate(p); return put(ok, v, q) }},
	{"UdmabufList", SizeUdmabufList, func(p, q []byte) bool { v, ok := DecodeUdmabufList(p); return put(ok, v, q) }},
	{"ControlExport", SizeControlExport, func(p, q []byte) bool { v, ok := DecodeControlExport(p); return put(ok, v, q) }},
	{"ControlMerge", SizeControlMerge, func(p, q []byte) bool { v, ok := DecodeControlMerge(p); return put(ok, v, q) }},
	{"ControlSWSyncNew", SizeControlSWSyncNew, func(p, q []byte) bool { v, ok := DecodeControlSWSyncNew(p); return put(ok, v, q) }},
	{"ControlSWSyncFence", SizeControlSWSyncFence, func(p, q []byte) bool { v, ok := DecodeControlSWSyncFence(p); return put(ok, v, q) }},
	{"ControlBufferNew", SizeControlBufferNew, func(p, q []byte) bool { v, ok := DecodeControlBufferNew(p); return put(ok, v, q) }},
}

func put(ok bool, v interface{ Encode([]byte) }, q []byte) bool {
	if ok {
		v.Encode(q)
	}
	return ok
}

// FuzzStructs gives any bytes to every decoder: too few are refused; else encoding
// and decoding once more changes nothing, whatever padding and cut names did first.
func FuzzStructs(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 80))
	f.Add(append(bytes.Repeat([]byte{1, 0}, 40), 9))
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, s := range structs {
			q, q2 := make([]byte, s.size), make([]byte, s.size)
			if ok := s.again(p, q); ok != (len(p) >= s.size) {
				t.Fatalf("%s of %d bytes: decoded is %v", s.name, len(p), ok)
			} else if !ok {
				continue
			}
			if !s.again(q, q2) || !bytes.Equal(q, q2) {
				t.Fatalf("%s changes from %x to %x", s.name, q, q2)
			}
		}
	})
}

func FuzzControlUdmabuf(f *testing.F) {
	var p [SizeControlUdmabuf + 2*SizeControlItem]byte
	ControlUdmabuf{Flags: CONTROL_UDMABUF_MORE, ID: 3, Items: []ControlItem{{4, 4096, 8192}, {-1, 0, 1 << 63}}}.Encode(p[:])
	f.Add(p[:])
	f.Add(p[:20])
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, p []byte) {
		c, ok := DecodeControlUdmabuf(p)
		if !ok {
			return
		}
		n := SizeControlUdmabuf + len(c.Items)*SizeControlItem
		if n > len(p) || len(c.Items) > CONTROL_UDMABUF_ITEMS {
			t.Fatalf("%d items of %d bytes", len(c.Items), len(p))
		}
		q := make([]byte, n)
		c.Encode(q)
		c2, ok := DecodeControlUdmabuf(q)
		if !ok || c2.Flags != c.Flags || c2.ID != c.ID || len(c2.Items) != len(c.Items) {
			t.Fatalf("changes from %+v to %+v", c, c2)
		}
		for i := range c.Items {
			if c.Items[i] != c2.Items[i] {
				t.Fatalf("item %d changes from %+v to %+v", i, c.Items[i], c2.Items[i])
			}
		}
	})
}
