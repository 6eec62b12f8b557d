package uapi

// drivers/dma-buf/sw_sync.c, which has no header of its own.
const (
	SW_SYNC_IOC_MAGIC = 'W'

	SW_SYNC_IOC_CREATE_FENCE = 0xc0285700
	SW_SYNC_IOC_INC          = 0x40045701
	SW_SYNC_GET_DEADLINE     = 0xc0105702
)

// CreateFence is struct sw_sync_create_fence_data, 40 bytes.
type CreateFence struct {
	Value uint32
	Name  string // ignored by the kernel
	Fence int32  // out: the new descriptor
}

// SizeCreateFence is the size of CreateFence in bytes.
const SizeCreateFence = 40

// DecodeCreateFence reads a CreateFence.
func DecodeCreateFence(p []byte) (c CreateFence, ok bool) {
	if len(p) < SizeCreateFence {
		return c, false
	}
	return CreateFence{Value: native.Uint32(p), Name: text(p[4:35]), Fence: int32(native.Uint32(p[36:]))}, true
}

// Encode writes c.
func (c CreateFence) Encode(p []byte) {
	native.PutUint32(p, c.Value)
	putText(p[4:36], c.Name)
	native.PutUint32(p[36:], uint32(c.Fence))
}

// Inc is the argument of SW_SYNC_IOC_INC, 4 bytes.
type Inc struct{ By uint32 }

// SizeInc is the size of Inc in bytes.
const SizeInc = 4

// DecodeInc reads an Inc.
func DecodeInc(p []byte) (i Inc, ok bool) {
	if len(p) < SizeInc {
		return i, false
	}
	return Inc{By: native.Uint32(p)}, true
}

// Encode writes i.
func (i Inc) Encode(p []byte) { native.PutUint32(p, i.By) }

// GetDeadline is struct sw_sync_get_deadline, 16 bytes.
type GetDeadline struct {
	NS  uint64 // out: nanoseconds of CLOCK_MONOTONIC; 0 on the way in
	Pad uint32
	FD  int32 // a sync file
}

// SizeGetDeadline is the size of GetDeadline in bytes.
const SizeGetDeadline = 16

// DecodeGetDeadline reads a GetDeadline.
func DecodeGetDeadline(p []byte) (g GetDeadline, ok bool) {
	if len(p) < SizeGetDeadline {
		return g, false
	}
	return GetDeadline{NS: native.Uint64(p), Pad: native.Uint32(p[8:]), FD: int32(native.Uint32(p[12:]))}, true
}

// Encode writes g.
func (g GetDeadline) Encode(p []byte) {
	native.PutUint64(p, g.NS)
	native.PutUint32(p[8:], g.Pad)
	native.PutUint32(p[12:], uint32(g.FD))
}
