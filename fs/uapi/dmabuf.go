package uapi

// include/uapi/linux/dma-buf.h. SET_NAME's argument is a pointer to a string;
// its encoded size tells nothing.
const (
	DMA_BUF_BASE = 'b'

	DMA_BUF_IOCTL_SYNC             = 0x40086200
	DMA_BUF_SET_NAME_A             = 0x40046201
	DMA_BUF_SET_NAME_B             = 0x40086201
	DMA_BUF_IOCTL_EXPORT_SYNC_FILE = 0xc0086202
	DMA_BUF_IOCTL_IMPORT_SYNC_FILE = 0x40086203

	DMA_BUF_SYNC_READ             = 1 << 0
	DMA_BUF_SYNC_WRITE            = 2 << 0
	DMA_BUF_SYNC_RW               = DMA_BUF_SYNC_READ | DMA_BUF_SYNC_WRITE
	DMA_BUF_SYNC_START            = 0 << 2
	DMA_BUF_SYNC_END              = 1 << 2
	DMA_BUF_SYNC_VALID_FLAGS_MASK = DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END

	// DMA_BUF_NAME_LEN is the size of a name in bytes, its NUL included.
	DMA_BUF_NAME_LEN = 32
)

// Sync is struct dma_buf_sync, 8 bytes.
type Sync struct {
	Flags uint64 // DMA_BUF_SYNC_…
}

// SizeSync is the size of Sync in bytes.
const SizeSync = 8

// DecodeSync reads a Sync.
func DecodeSync(p []byte) (s Sync, ok bool) {
	if len(p) < SizeSync {
		return s, false
	}
	return Sync{Flags: native.Uint64(p)}, true
}

// Encode writes s.
func (s Sync) Encode(p []byte) { native.PutUint64(p, s.Flags) }

// SyncFile is struct dma_buf_export_sync_file and dma_buf_import_sync_file, 8 bytes.
type SyncFile struct {
	Flags uint32 // DMA_BUF_SYNC_READ, _WRITE
	FD    int32  // of the caller's table
}

// SizeSyncFile is the size of SyncFile in bytes.
const SizeSyncFile = 8

// DecodeSyncFile reads a SyncFile.
func DecodeSyncFile(p []byte) (s SyncFile, ok bool) {
	if len(p) < SizeSyncFile {
		return s, false
	}
	return SyncFile{Flags: native.Uint32(p), FD: int32(native.Uint32(p[4:]))}, true
}

// Encode writes s.
func (s SyncFile) Encode(p []byte) {
	native.PutUint32(p, s.Flags)
	native.PutUint32(p[4:], uint32(s.FD))
}
