package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// DMA_BUF_IOCTL_SYNC and the flags of its struct dma_buf_sync, include/uapi/linux/dma-buf.h.
const (
	dmaBufIoctlSync = 0x40086200 // _IOW('b', 0, struct dma_buf_sync)

	syncRead  = 1 << 0
	syncWrite = 2 << 0
	syncStart = 0 << 2
	syncEnd   = 1 << 2
)

// bracket is DMA_BUF_IOCTL_SYNC on fd, begun again when a signal interrupts it.
func bracket(fd int, flags uint64) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), dmaBufIoctlSync, uintptr(unsafe.Pointer(&flags)))
		switch errno {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return os.NewSyscallError("DMA_BUF_IOCTL_SYNC", errno)
		}
	}
}
