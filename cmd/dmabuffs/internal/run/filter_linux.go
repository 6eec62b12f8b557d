package run

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h); of arguments, the
// lower half on a little-endian machine.
const (
	offNr   = 0
	offArch = 4
)

func offArg(i uint32) uint32 { return 16 + 8*i }

// notified are the requests of ioctl(2) that are ours. All of them but heapBase are
// compared whole.
var notified = []uint32{
	uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE,
	uapi.SYNC_IOC_MERGE,
	uapi.SW_SYNC_IOC_CREATE_FENCE,
	uapi.UDMABUF_CREATE,
	uapi.UDMABUF_CREATE_LIST,
}

// heapBase is DMA_HEAP_IOCTL_ALLOC without direction and size, of which
// dma_heap_ioctl takes any.
const heapBase = uapi.DMA_HEAP_IOC_MAGIC << 8

// pathCalls are notified whatever their arguments.
var pathCalls = []uint32{
	sysCreat, unix.SYS_OPENAT2, sysStat, sysLstat, sysAccess, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2,
	unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR, // ls -l
}

// passed are path calls that are let through by an argument: where what they mean by it is not a path,
// or what a compiler does some thousand times and no client of a driver.
var passed = []struct {
	nr, arg    uint32
	mask, want uint32 // let through when arg & mask is want
}{
	// stat(2) of a descriptor
	{sysFstatat, 3, unix.AT_EMPTY_PATH, unix.AT_EMPTY_PATH},
	{unix.SYS_STATX, 2, unix.AT_EMPTY_PATH, unix.AT_EMPTY_PATH},
	// gcc opens headers like this
	{sysOpen, 1, unix.O_ACCMODE | unix.O_NOCTTY, unix.O_RDONLY | unix.O_NOCTTY},
	{unix.SYS_OPENAT, 2, unix.O_ACCMODE | unix.O_NOCTTY, unix.O_RDONLY | unix.O_NOCTTY},
	// and has glibc's realpath(3) ask about each directory above each of them
	{sysReadlink, 2, ^uint32(0), realpathSize},
	{unix.SYS_READLINKAT, 3, ^uint32(0), realpathSize},
}

// realpathSize is the buffer of glibc's realpath(3), in bytes.
const realpathSize = 1023

// filter is the program that decides on each system call of CMD:
//
//	other architecture                 ALLOW (i386; x32's numbers are nobody's here)
//	a path call                        USER_NOTIF, unless its arguments say otherwise (passed)
//	ioctl, a request that is ours      USER_NOTIF
//	everything else                    ALLOW
//
// What needs no argument to be allowed, the kernel remembers by number, and does not
// run the filter at all.
func filter() []unix.SockFilter {
	var f program
	f.load(offArch)
	f.unless(auditArch, "allow")
	f.load(offNr)
	f.when(unix.SYS_IOCTL, "ioctl")
	for _, c := range passed {
		f.when(c.nr, argLabel(c.nr))
	}
	for _, nr := range pathCalls {
		f.when(nr, "notify")
	}
	f.label("allow")
	f.ret(unix.SECCOMP_RET_ALLOW)
	for _, c := range passed {
		f.label(argLabel(c.nr))
		f.load(offArg(c.arg))
		if c.mask != ^uint32(0) {
			f.and(c.mask)
		}
		f.when(c.want, "allow")
		f.ret(unix.SECCOMP_RET_USER_NOTIF)
	}
	f.label("ioctl")
	f.load(offArg(1))
	for _, req := range notified {
		f.when(req, "notify")
	}
	f.and(0xffff)
	f.when(heapBase, "notify")
	f.label("allow")
	f.ret(unix.SECCOMP_RET_ALLOW)
	f.label("notify")
	f.ret(unix.SECCOMP_RET_USER_NOTIF)
	return f.assemble()
}

func argLabel(nr uint32) string { return fmt.Sprintf("arguments of %d", nr) }

// program is BPF with labels. A jump goes forward, as everywhere in BPF: a label
// means its next place behind.
type program struct {
	ins    []unix.SockFilter
	jumps  []jump
	labels map[string][]int
}

// jump is one that is not bound yet: from is its instruction, yes whether it goes there when the test holds.
type jump struct {
	from int
	to   string
	yes  bool
}

func (p *program) add(code uint16, k uint32) {
	p.ins = append(p.ins, unix.SockFilter{Code: code, K: k})
}

func (p *program) load(off uint32) { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }
func (p *program) and(k uint32)    { p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, k) }
func (p *program) ret(k uint32)    { p.add(unix.BPF_RET|unix.BPF_K, k) }

func (p *program) jump(code uint16, k uint32, to string, yes bool) {
	p.jumps = append(p.jumps, jump{len(p.ins), to, yes})
	p.add(unix.BPF_JMP|code|unix.BPF_K, k)
}

func (p *program) when(k uint32, to string)   { p.jump(unix.BPF_JEQ, k, to, true) }
func (p *program) unless(k uint32, to string) { p.jump(unix.BPF_JEQ, k, to, false) }

func (p *program) label(name string) {
	if p.labels == nil {
		p.labels = map[string][]int{}
	}
	p.labels[name] = append(p.labels[name], len(p.ins))
}

// assemble binds the jumps. A label that is missing is a bug here.
func (p *program) assemble() []unix.SockFilter {
	for _, j := range p.jumps {
		at := p.labels[j.to]
		i := slices.IndexFunc(at, func(n int) bool { return n > j.from })
		if i < 0 || at[i]-j.from-1 > 255 {
			panic("run: no label " + j.to)
		}
		off := uint8(at[i] - j.from - 1)
		if j.yes {
			p.ins[j.from].Jt = off
		} else {
			p.ins[j.from].Jf = off
		}
	}
	return p.ins
}
