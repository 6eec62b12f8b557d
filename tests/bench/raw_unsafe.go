package main

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// syncIoctl is DMA_BUF_IOCTL_SYNC.
func syncIoctl(fd int, flags uint64) error {
	for {
		_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlSync, uintptr(unsafe.Pointer(&flags)))
		switch e {
		case 0:
			return nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return os.NewSyscallError("DMA_BUF_IOCTL_SYNC", e)
		}
	}
}
