package run

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

// tracer prints what was emulated as strace(1) would: one line a call.
type tracer struct {
	mu sync.Mutex
	w  io.Writer
}

var requestNames = map[uint32]string{
	uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE: "DMA_BUF_IOCTL_EXPORT_SYNC_FILE",
	uapi.SYNC_IOC_MERGE:                 "SYNC_IOC_MERGE",
	uapi.SW_SYNC_IOC_CREATE_FENCE:       "SW_SYNC_IOC_CREATE_FENCE",
	uapi.UDMABUF_CREATE:                 "UDMABUF_CREATE",
	uapi.UDMABUF_CREATE_LIST:            "UDMABUF_CREATE_LIST",
	uapi.DMA_HEAP_IOCTL_ALLOC:           "DMA_HEAP_IOCTL_ALLOC",
}

var xattrNames = map[uint32]string{
	unix.SYS_GETXATTR: "getxattr", unix.SYS_LGETXATTR: "lgetxattr",
	unix.SYS_LISTXATTR: "listxattr", unix.SYS_LLISTXATTR: "llistxattr",
}

// call prints one. The arguments are those that were used; a descriptor that went into a struct
// stands behind the result.
func (t *tracer) call(c *call, val int64, err error) {
	result := strconv.FormatInt(val, 10)
	switch {
	case err != nil:
		e, _ := errnoOf(err).(syscall.Errno)
		result = fmt.Sprintf("-1 %s (%s)", unix.ErrnoName(e), e.Error())
	case c.put != nil:
		result += fmt.Sprintf(" {fd=%d}", *c.put)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.w, "[pid %d] %s = %s\n", c.tid, c.String(), result)
}

// String is the call with its arguments.
func (c *call) String() string {
	at, path := atName(int32(c.args[0])), strconv.Quote(c.note)
	switch c.nr {
	case unix.SYS_IOCTL:
		req := uint32(c.args[1])
		name, ok := requestNames[req]
		switch {
		case !ok && req&0xffff == heapBase:
			name = fmt.Sprintf("DMA_HEAP_IOCTL_ALLOC /* %d bytes */", uapi.Size(req))
		case !ok:
			name = fmt.Sprintf("%#x", req)
		}
		return fmt.Sprintf("ioctl(%d, %s, %#x)", int32(c.args[0]), name, c.args[2])
	case sysOpen:
		return fmt.Sprintf("open(%s, %s)", path, openFlags(c.args[5]))
	case sysCreat:
		return fmt.Sprintf("creat(%s)", path)
	case unix.SYS_OPENAT:
		return fmt.Sprintf("openat(%s, %s, %s)", at, path, openFlags(c.args[5]))
	case unix.SYS_OPENAT2:
		return fmt.Sprintf("openat2(%s, %s, {flags=%s})", at, path, openFlags(c.args[5]))
	case sysStat:
		return fmt.Sprintf("stat(%s, %#x)", path, c.args[1])
	case sysLstat:
		return fmt.Sprintf("lstat(%s, %#x)", path, c.args[1])
	case sysFstatat:
		return fmt.Sprintf("newfstatat(%s, %s, %#x)", at, path, c.args[2])
	case unix.SYS_STATX:
		return fmt.Sprintf("statx(%s, %s, %#x)", at, path, c.args[4])
	case sysAccess:
		return fmt.Sprintf("access(%s, %s)", path, accessMode(c.args[1]))
	case unix.SYS_FACCESSAT:
		return fmt.Sprintf("faccessat(%s, %s, %s)", at, path, accessMode(c.args[2]))
	case unix.SYS_FACCESSAT2:
		return fmt.Sprintf("faccessat2(%s, %s, %s)", at, path, accessMode(c.args[2]))
	case sysReadlink:
		return fmt.Sprintf("readlink(%s)", path)
	case unix.SYS_READLINKAT:
		return fmt.Sprintf("readlinkat(%s, %s)", at, path)
	}
	if name := xattrNames[c.nr]; name != "" {
		return fmt.Sprintf("%s(%s)", name, path)
	}
	return fmt.Sprintf("syscall_%d()", c.nr)
}

func atName(fd int32) string {
	if fd == unix.AT_FDCWD {
		return "AT_FDCWD"
	}
	return strconv.Itoa(int(fd))
}

// flagName is a bit of open(2)'s flags.
var flagNames = []struct {
	bit  uint64
	name string
}{
	{unix.O_CREAT, "O_CREAT"}, {unix.O_EXCL, "O_EXCL"}, {unix.O_NOCTTY, "O_NOCTTY"}, {unix.O_TRUNC, "O_TRUNC"},
	{unix.O_APPEND, "O_APPEND"}, {unix.O_NONBLOCK, "O_NONBLOCK"}, {unix.O_DIRECTORY, "O_DIRECTORY"},
	{unix.O_NOFOLLOW, "O_NOFOLLOW"}, {unix.O_CLOEXEC, "O_CLOEXEC"}, {unix.O_PATH, "O_PATH"},
}

func openFlags(f uint64) string {
	out := []string{[]string{"O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"}[f&unix.O_ACCMODE]}
	f &^= unix.O_ACCMODE
	for _, n := range flagNames {
		if f&n.bit == n.bit {
			out = append(out, n.name)
			f &^= n.bit
		}
	}
	if f != 0 {
		out = append(out, fmt.Sprintf("%#x", f))
	}
	return strings.Join(out, "|")
}

func accessMode(m uint64) string {
	if m == 0 {
		return "F_OK"
	}
	var out []string
	for _, n := range []struct {
		bit  uint64
		name string
	}{{unix.R_OK, "R_OK"}, {unix.W_OK, "W_OK"}, {unix.X_OK, "X_OK"}} {
		if m&n.bit != 0 {
			out = append(out, n.name)
		}
	}
	return strings.Join(out, "|")
}
