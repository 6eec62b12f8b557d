package run

import (
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Raw system calls: seccomp's ioctls, and what reaches into a caller's memory
// without making garbage.

// include/uapi/linux/seccomp.h
const (
	iocRecv     = 0xc0502100
	iocSend     = 0xc0182101
	iocIDValid  = 0x40082102
	iocAddFD    = 0x40182103
	iocSetFlags = 0x40082104
)

// notif is struct seccomp_notif.
type notif struct {
	ID    uint64
	PID   uint32 // a thread
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

// notifResp is struct seccomp_notif_resp.
type notifResp struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

// notifAddFD is struct seccomp_notif_addfd.
type notifAddFD struct {
	ID         uint64
	Flags      uint32
	SrcFD      uint32
	NewFD      uint32
	NewFDFlags uint32
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) (int, syscall.Errno) {
	n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	return int(n), e
}

func ioctlRecv(fd int, n *notif) syscall.Errno {
	*n = notif{}
	_, e := ioctl(fd, iocRecv, unsafe.Pointer(n))
	return e
}

func ioctlSend(fd int, r *notifResp) syscall.Errno {
	_, e := ioctl(fd, iocSend, unsafe.Pointer(r))
	return e
}

func ioctlIDValid(fd int, id *uint64) syscall.Errno {
	_, e := ioctl(fd, iocIDValid, unsafe.Pointer(id))
	return e
}

func ioctlAddFD(fd int, a *notifAddFD) (int, syscall.Errno) {
	return ioctl(fd, iocAddFD, unsafe.Pointer(a))
}

// ioctlSetFlags sets SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP and the like (Linux 6.6).
func ioctlSetFlags(fd int, flags uint64) syscall.Errno {
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), iocSetFlags, uintptr(flags))
	return e
}

// ioctlBytes is an ioctl whose argument is p.
func ioctlBytes(fd int, req uint32, p []byte) syscall.Errno {
	_, e := ioctl(fd, uintptr(req), unsafe.Pointer(unsafe.SliceData(p)))
	return e
}

// installFilter puts a filter on this thread and returns its listener.
func installFilter(ins []unix.SockFilter, flags uintptr) (int, syscall.Errno) {
	prog := unix.SockFprog{Len: uint16(len(ins)), Filter: unsafe.SliceData(ins)}
	fd, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(ins)
	return int(fd), e
}

// seccompAvailable asks whether filters may return an action.
func seccompAvailable(action uint32) syscall.Errno {
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	return e
}

type iovec struct {
	base uintptr
	len  uintptr
}

// readMemory reads len(p) bytes at addr of a thread's memory, or those before the
// first page that cannot be read.
func readMemory(tid uint32, addr uint64, p []byte) (int, syscall.Errno) {
	return vm(unix.SYS_PROCESS_VM_READV, tid, addr, p)
}

func writeMemory(tid uint32, addr uint64, p []byte) (int, syscall.Errno) {
	return vm(unix.SYS_PROCESS_VM_WRITEV, tid, addr, p)
}

func vm(nr uintptr, tid uint32, addr uint64, p []byte) (int, syscall.Errno) {
	if len(p) == 0 {
		return 0, 0
	}
	local := unix.Iovec{Base: unsafe.SliceData(p), Len: uint64(len(p))}
	remote := iovec{uintptr(addr), uintptr(len(p))}
	n, _, e := unix.Syscall6(nr, uintptr(tid), uintptr(unsafe.Pointer(&local)), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	if e != 0 {
		return 0, e
	}
	return int(n), 0
}

// statxAt is statx(2) with a path that ends in a NUL. No file system is asked
// what it has told before.
func statxAt(dirfd int, path []byte, st *unix.Statx_t) syscall.Errno {
	_, _, e := unix.Syscall6(unix.SYS_STATX, uintptr(dirfd), uintptr(unsafe.Pointer(unsafe.SliceData(path))),
		unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_INO, uintptr(unsafe.Pointer(st)), 0)
	return e
}

// openAt is openat(2) with a path that ends in a NUL.
func openAt(dirfd int, path []byte, flags int) (int, syscall.Errno) {
	fd, _, e := unix.Syscall6(unix.SYS_OPENAT, uintptr(dirfd), uintptr(unsafe.Pointer(unsafe.SliceData(path))), uintptr(flags), 0, 0, 0)
	return int(fd), e
}

// fdPath puts "TID/fd/N" and a NUL into p: a descriptor of a thread, in /proc.
func fdPath(p []byte, tid uint32, fd int32) []byte {
	p = strconv.AppendUint(p[:0], uint64(tid), 10)
	p = append(p, "/fd/"...)
	p = strconv.AppendInt(p, int64(fd), 10)
	return append(p, 0)
}

// bytesOf is the memory of a struct that the kernel's ABI lays out.
func bytesOf[T unix.Stat_t | unix.Statx_t](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

// setMask sets this thread's signal mask. The runtime is not told: only for threads
// that are locked, and die with it.
func setMask(mask uint64) error {
	_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&mask)), 0, 8, 0, 0)
	if e != 0 {
		return os.NewSyscallError("rt_sigprocmask", e)
	}
	return nil
}
