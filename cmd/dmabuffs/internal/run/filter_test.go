package run

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

// decide runs a filter as the kernel does, on the instructions that ours has. It also says whether an
// argument was looked at: the kernel remembers only what was decided without.
func decide(t *testing.T, prog []unix.SockFilter, arch, nr uint32, args [6]uint64) (ret uint32, looked bool) {
	t.Helper()
	var data [64]byte
	le := binary.LittleEndian
	le.PutUint32(data[offNr:], nr)
	le.PutUint32(data[offArch:], arch)
	for i, a := range args {
		le.PutUint64(data[16+8*i:], a)
	}
	var a uint32
	for pc := 0; pc < len(prog); pc++ {
		in := prog[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = le.Uint32(data[in.K:])
			looked = looked || in.K >= 16
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= in.K
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == in.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&in.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return in.K, looked
		default:
			t.Fatalf("instruction %d: %#x", pc, in.Code)
		}
	}
	t.Fatal("the program runs off its end")
	return 0, false
}

func TestFilter(t *testing.T) {
	const (
		allow  = unix.SECCOMP_RET_ALLOW
		notify = unix.SECCOMP_RET_USER_NOTIF
		x32    = 0x40000000
		i386   = unix.AUDIT_ARCH_I386
	)
	prog := filter()
	ours, byArgument := map[uint32]bool{}, map[uint32]bool{unix.SYS_IOCTL: true}
	for _, nr := range pathCalls {
		ours[nr] = true
	}
	for _, c := range passed {
		ours[c.nr], byArgument[c.nr] = true, true
	}
	for nr := range uint32(600) {
		want := uint32(allow)
		if ours[nr] {
			want = notify
		}
		got, looked := decide(t, prog, auditArch, nr, [6]uint64{})
		if got != want {
			t.Errorf("call %d: %#x, want %#x", nr, got, want)
		}
		if looked != byArgument[nr] {
			t.Errorf("call %d: arguments are looked at: %v", nr, looked)
		}
		for _, other := range []struct{ arch, nr uint32 }{{auditArch, nr | x32}, {i386, nr}, {0, nr}} {
			if got, looked := decide(t, prog, other.arch, other.nr, [6]uint64{}); got != allow || looked {
				t.Errorf("call %d of another architecture: %#x", nr, got)
			}
		}
	}
	size := func(req, n uint32) uint64 { return uint64(req&^(uapi.SizeMax<<16) | n<<16) }
	for req, want := range map[uint64]uint32{
		uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE:       notify,
		uapi.SYNC_IOC_MERGE:                       notify,
		uapi.SW_SYNC_IOC_CREATE_FENCE:             notify,
		uapi.UDMABUF_CREATE:                       notify,
		uapi.UDMABUF_CREATE_LIST:                  notify,
		uapi.DMA_HEAP_IOCTL_ALLOC:                 notify,
		size(uapi.DMA_HEAP_IOCTL_ALLOC, 16):       notify,
		size(uapi.DMA_HEAP_IOCTL_ALLOC, 16383):    notify,
		'H' << 8:                                  notify,
		1<<63 | uapi.UDMABUF_CREATE:               notify, // the kernel takes 32 bits
		'H'<<8 | 1:                                allow,
		uapi.DMA_BUF_IOCTL_SYNC:                   allow,
		uapi.DMA_BUF_SET_NAME_B:                   allow,
		uapi.DMA_BUF_IOCTL_IMPORT_SYNC_FILE:       allow,
		uapi.SYNC_IOC_FILE_INFO:                   allow,
		uapi.SW_SYNC_IOC_INC:                      allow,
		unix.TCGETS:                               allow,
		size(uapi.UDMABUF_CREATE, 32):             allow,
		uapi.DMA_BUF_IOCTL_EXPORT_SYNC_FILE &^ 15: allow,
	} {
		if got, _ := decide(t, prog, auditArch, unix.SYS_IOCTL, [6]uint64{3, req}); got != want {
			t.Errorf("ioctl %#x: %#x, want %#x", req, got, want)
		}
	}
	const cwd = 0xffffff9c
	for _, c := range []struct {
		what string
		nr   uint32
		args [6]uint64
		want uint32
	}{
		{"fstat", sysFstatat, [6]uint64{3, 1, 1, unix.AT_EMPTY_PATH}, allow},
		{"fstatat", sysFstatat, [6]uint64{3, 1, 1, unix.AT_SYMLINK_NOFOLLOW}, notify},
		{"statx of a descriptor", unix.SYS_STATX, [6]uint64{3, 1, unix.AT_EMPTY_PATH | unix.AT_STATX_DONT_SYNC, 0xfff}, allow},
		{"statx", unix.SYS_STATX, [6]uint64{cwd, 1, 0, unix.STATX_BTIME | unix.STATX_MNT_ID}, notify},
		{"gcc's open", unix.SYS_OPENAT, [6]uint64{cwd, 1, unix.O_RDONLY | unix.O_NOCTTY}, allow},
		{"a device's", unix.SYS_OPENAT, [6]uint64{cwd, 1, unix.O_RDWR | unix.O_NOCTTY | unix.O_CLOEXEC}, notify},
		{"ld.so's", unix.SYS_OPENAT, [6]uint64{cwd, 1, unix.O_RDONLY | unix.O_CLOEXEC}, notify},
		{"opendir", unix.SYS_OPENAT, [6]uint64{cwd, 1, unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC | unix.O_NONBLOCK}, notify},
		{"gcc's old open", sysOpen, [6]uint64{1, unix.O_RDONLY | unix.O_NOCTTY}, allow},
		{"open", sysOpen, [6]uint64{1, unix.O_RDWR}, notify},
		{"realpath", sysReadlink, [6]uint64{1, 1, realpathSize}, allow},
		{"readlink", sysReadlink, [6]uint64{1, 1, 4096}, notify},
		{"readlinkat", unix.SYS_READLINKAT, [6]uint64{cwd, 1, 1, 128}, notify},
	} {
		if got, _ := decide(t, prog, auditArch, c.nr, c.args); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.what, got, c.want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	prog := filter()
	f.Add(uint32(auditArch), uint32(unix.SYS_IOCTL), uint64(3), uint64(uapi.UDMABUF_CREATE), uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, arch, nr uint32, a, b, c, d uint64) {
		got, _ := decide(t, prog, arch, nr, [6]uint64{a, b, c, d})
		if got != unix.SECCOMP_RET_ALLOW && (got != unix.SECCOMP_RET_USER_NOTIF || arch != auditArch) {
			t.Fatalf("%#x", got)
		}
	})
}
