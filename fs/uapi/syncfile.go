package uapi

// include/uapi/linux/sync_file.h
const (
	SYNC_IOC_MAGIC = '>'

	SYNC_IOC_MERGE        = 0xc0303e03
	SYNC_IOC_FILE_INFO    = 0xc0383e04
	SYNC_IOC_SET_DEADLINE = 0x40103e05

	// SYNC_NAME_LEN is the size of its names in bytes, their NULs included.
	SYNC_NAME_LEN = 32
)

// Merge is struct sync_merge_data, 48 bytes.
type Merge struct {
	Name  string // 31 bytes
	FD2   int32
	Fence int32 // out: the new descriptor
	Flags uint32
	Pad   uint32
}

// SizeMerge is the size of Merge in bytes.
const SizeMerge = 48

// DecodeMerge reads a Merge. A name without a NUL is cut at 31 bytes, as the kernel does.
func DecodeMerge(p []byte) (m Merge, ok bool) {
	if len(p) < SizeMerge {
		return m, false
	}
	return Merge{
		Name:  text(p[:SYNC_NAME_LEN-1]),
		FD2:   int32(native.Uint32(p[32:])),
		Fence: int32(native.Uint32(p[36:])),
		Flags: native.Uint32(p[40:]),
		Pad:   native.Uint32(p[44:]),
	}, true
}

// Encode writes m.
func (m Merge) Encode(p []byte) {
	putText(p[:SYNC_NAME_LEN], m.Name)
	native.PutUint32(p[32:], uint32(m.FD2))
	native.PutUint32(p[36:], uint32(m.Fence))
	native.PutUint32(p[40:], m.Flags)
	native.PutUint32(p[44:], m.Pad)
}

// FileInfo is struct sync_file_info, 56 bytes.
type FileInfo struct {
	Name      string // out, 31 bytes
	Status    int32  // out: 0 pending, 1 signaled, or a negative errno
	Flags     uint32
	NumFences uint32 // in: room in the array; out: fences
	Pad       uint32
	Fences    uint64 // address of an array of FenceInfo
}

// SizeFileInfo is the size of FileInfo in bytes.
const SizeFileInfo = 56

// DecodeFileInfo reads a FileInfo.
func DecodeFileInfo(p []byte) (f FileInfo, ok bool) {
	if len(p) < SizeFileInfo {
		return f, false
	}
	return FileInfo{
		Name:      text(p[:SYNC_NAME_LEN-1]),
		Status:    int32(native.Uint32(p[32:])),
		Flags:     native.Uint32(p[36:]),
		NumFences: native.Uint32(p[40:]),
		Pad:       native.Uint32(p[44:]),
		Fences:    native.Uint64(p[48:]),
	}, true
}

// Encode writes f.
func (f FileInfo) Encode(p []byte) {
	putText(p[:SYNC_NAME_LEN], f.Name)
	native.PutUint32(p[32:], uint32(f.Status))
	native.PutUint32(p[36:], f.Flags)
	native.PutUint32(p[40:], f.NumFences)
	native.PutUint32(p[44:], f.Pad)
	native.PutUint64(p[48:], f.Fences)
}

// FenceInfo is struct sync_fence_info, 80 bytes.
type FenceInfo struct {
	Timeline  string // obj_name, 31 bytes
	Driver    string // driver_name, 31 bytes
	Status    int32  // 0 pending, 1 signaled, or a negative errno
	Flags     uint32
	Timestamp uint64 // nanoseconds of CLOCK_MONOTONIC, 0 while pending
}

// SizeFenceInfo is the size of FenceInfo in bytes.
const SizeFenceInfo = 80

// DecodeFenceInfo reads a FenceInfo.
func DecodeFenceInfo(p []byte) (f FenceInfo, ok bool) {
	if len(p) < SizeFenceInfo {
		return f, false
	}
	return FenceInfo{
		Timeline:  text(p[:SYNC_NAME_LEN-1]),
		Driver:    text(p[32 : 32+SYNC_NAME_LEN-1]),
		Status:    int32(native.Uint32(p[64:])),
		Flags:     native.Uint32(p[68:]),
		Timestamp: native.Uint64(p[72:]),
	}, true
}

// Encode writes f.
func (f FenceInfo) Encode(p []byte) {
	putText(p[:SYNC_NAME_LEN], f.Timeline)
	putText(p[32:32+SYNC_NAME_LEN], f.Driver)
	native.PutUint32(p[64:], uint32(f.Status))
	native.PutUint32(p[68:], f.Flags)
	native.PutUint64(p[72:], f.Timestamp)
}

// Deadline is struct sync_set_deadline, 16 bytes.
type Deadline struct {
	NS  uint64 // nanoseconds of CLOCK_MONOTONIC
	Pad uint64
}

// SizeDeadline is the size of Deadline in bytes.
const SizeDeadline = 16

// DecodeDeadline reads a Deadline.
func DecodeDeadline(p []byte) (d Deadline, ok bool) {
	if len(p) < SizeDeadline {
		return d, false
	}
	return Deadline{NS: native.Uint64(p), Pad: native.Uint64(p[8:])}, true
}

// Encode writes d.
func (d Deadline) Encode(p []byte) {
	native.PutUint64(p, d.NS)
	native.PutUint64(p[8:], d.Pad)
}
