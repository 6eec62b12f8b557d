package exporter

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapRange maps [off, off+n) of the memory, whole pages, into this process, shared. Until
// unmapRange the size is fixed. ENOMEM; EINVAL for n 0.
func (m *Memory) mapRange(off, n int64) ([]byte, error) {
	if n <= 0 || off < 0 || off%PageSize != 0 {
		return nil, ErrInvalid
	}
	if _, err := m.File(); err != nil {
		return nil, err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return nil, ErrClosed
	}
	if off > (m.size+PageSize-1)&^(PageSize-1)-n {
		return nil, ErrInvalid
	}
	base, err := unix.MmapPtr(-1, 0, nil, uintptr(n), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("%w: mmap: %v", ErrNoMemory, err)
	}
	err = m.eachLocked(off, n, func(f *os.File, off, at, n int64) error {
		_, err := unix.MmapPtr(int(f.Fd()), off, unsafe.Add(base, at), uintptr(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
		runtime.KeepAlive(f)
		return err
	})
	if err != nil {
		_ = unix.MunmapPtr(base, uintptr(n))
		if errors.Is(err, syscall.ENOMEM) {
			return nil, fmt.Errorf("%w: mmap", ErrNoMemory)
		}
		return nil, fmt.Errorf("exporter: mmap: %w", err)
	}
	m.pins.Add(1)
	return unsafe.Slice((*byte)(base), n), nil
}

// unmapRange takes back what mapRange gave.
func (m *Memory) unmapRange(p []byte) {
	if err := unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(p)), uintptr(len(p))); err != nil {
		panic(fmt.Sprintf("exporter: munmap: %v", err))
	}
	if m.pins.Add(-1) < 0 {
		panic("exporter: unmapped twice")
	}
}
