package run

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs/uapi"
)

// Only what may be ours is looked at more closely; whatever is ours is.
func TestMayBe(t *testing.T) {
	w := &world{byPath: map[string]*device{}, base: map[string]bool{}}
	for _, d := range devices() {
		w.byPath[d.path] = d
		w.base[filepath.Base(d.path)] = true
	}
	for _, d := range devices() {
		base := filepath.Base(d.path)
		for _, p := range []string{d.path, d.path + "/", d.path + "//", "/" + d.path, base, "./" + base, "/x/.." + d.path, d.path + "/.", d.path + "/x/.."} {
			if !w.mayBe(p) {
				t.Errorf("%s passes by", p)
			}
		}
	}
	for _, p := range []string{"", "/", "/etc/passwd", "lib", "..", "/dev/null", "/dev/udmabuf0", "/dev/xudmabuf", "udmabuf/x", "/usr/lib/libc.so.6"} {
		if w.mayBe(p) {
			t.Errorf("%q is looked at", p)
		}
	}
}

func TestFdPath(t *testing.T) {
	var b [64]byte
	for _, c := range []struct {
		tid uint32
		fd  int32
	}{{1, 0}, {4194304, 1048576}, {^uint32(0), 1<<31 - 1}} {
		if got := string(fdPath(b[:], c.tid, c.fd)); got != fmt.Sprintf("%d/fd/%d\x00", c.tid, c.fd) {
			t.Errorf("%q", got)
		}
	}
}

func TestMemory(t *testing.T) {
	self := uint32(os.Getpid())
	m, err := unix.Mmap(-1, 0, 2*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)
	copy(m[pageSize-2:], "abcd")
	addr := addrOf(m)
	got := make([]byte, 4)
	if n, e := readMemory(self, addr+pageSize-2, got); n != 4 || e != 0 || string(got) != "abcd" {
		t.Errorf("%d, %v, %q", n, e, got)
	}
	if n, e := writeMemory(self, addr+pageSize-1, []byte("xy")); n != 2 || e != 0 || string(m[pageSize-2:pageSize+2]) != "axyd" {
		t.Errorf("%d, %v, %q", n, e, m[pageSize-2:pageSize+2])
	}
	if err := unix.Mprotect(m[pageSize:], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	if n, e := readMemory(self, addr+pageSize-2, got); e != syscall.EFAULT && (e != 0 || n != 2) {
		t.Errorf("half of it unreadable: %d, %v", n, e)
	}
	if _, e := readMemory(self, 8, got); e != syscall.EFAULT {
		t.Errorf("nothing there: %v", e)
	}
	if n, e := readMemory(self, 8, nil); n != 0 || e != 0 {
		t.Errorf("nothing of it: %d, %v", n, e)
	}
}

func TestCopied(t *testing.T) {
	var c call
	for _, r := range []struct {
		n, want int
		e       syscall.Errno
		err     error
	}{
		{8, 8, 0, nil}, {4, 8, 0, syscall.EFAULT}, {0, 8, syscall.EFAULT, syscall.EFAULT},
		{0, 8, syscall.ESRCH, errGone}, {0, 8, syscall.EPERM, errContinue}, {0, 8, syscall.ENOMEM, syscall.EFAULT},
	} {
		if err := c.copied(r.n, r.want, r.e); err != r.err {
			t.Errorf("%+v: %v", r, err)
		}
	}
}

func TestNoRoom(t *testing.T) {
	for e, want := range map[error]error{
		syscall.ENOSPC: syscall.ENOMEM, syscall.EFBIG: syscall.ENOMEM, syscall.ENFILE: syscall.ENOMEM, syscall.EMFILE: syscall.ENOMEM,
		syscall.EINVAL: syscall.EINVAL, syscall.EBADFD: syscall.EBADFD, nil: nil,
	} {
		if got := noRoom(e); got != want {
			t.Errorf("%v: %v", e, got)
		}
	}
}

func TestLookPath(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	for _, f := range []struct {
		path string
		mode os.FileMode
	}{{dir + "/plain", 0o644}, {other + "/plain", 0o755}, {dir + "/only", 0o644}, {other + "/tool", 0o755}} {
		if err := os.WriteFile(f.path, nil, f.mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir+"/tool", 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+other)
	for name, want := range map[string]struct {
		path string
		err  error
	}{
		"plain": {other + "/plain", nil}, "tool": {other + "/tool", nil}, "only": {"", syscall.EACCES},
		"none": {"", syscall.ENOENT}, "": {"", syscall.ENOENT}, "./x": {"./x", nil}, "/none": {"/none", nil},
	} {
		if got, err := lookPath(name); got != want.path || err != want.err {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	t.Chdir(other)
	t.Setenv("PATH", ":"+dir)
	if got, err := lookPath("tool"); got != "./tool" || err != nil {
		t.Errorf("in the current directory: %q, %v", got, err)
	}
}

func TestMessages(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	sent := failure(fmt.Errorf("outer: %w", &mountError{fmt.Errorf("inner: %w", syscall.EBUSY), "do this"}))
	if err := send(pair[0], sent, int(r.Fd()), int(w.Fd())); err != nil {
		t.Fatal(err)
	}
	if err := send(pair[0], message{Exited: true, Status: 300}); err != nil {
		t.Fatal(err)
	}
	unix.Close(pair[0])
	var got message
	fds, err := receive(pair[1], &got)
	var m *mountError
	if err != nil || len(fds) != 2 || !errors.As(got.err(), &m) || m.hint != "do this" || !errors.Is(m, syscall.EBUSY) || m.Error() != "outer: inner: device or resource busy" {
		t.Errorf("%v, %d descriptors, %+v", err, len(fds), got)
	}
	for _, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %d: %#x, %v", fd, flags, err)
		}
		unix.Close(fd)
	}
	got = message{}
	if _, err := receive(pair[1], &got); err != nil || !got.Exited || got.Status != 300 || got.err() != nil {
		t.Errorf("%v, %+v", err, got)
	}
	if _, err := receive(pair[1], &got); !errors.Is(err, unix.EPIPE) {
		t.Errorf("at the end: %v", err)
	}
}

func TestGroupSignals(t *testing.T) {
	var g groupSignals
	c := make(chan os.Signal)
	go g.collect(c)
	if g.takeNow(syscall.SIGINT) {
		t.Error("nothing came")
	}
	c <- syscall.SIGINT
	c <- syscall.SIGTERM
	c <- syscall.SIGHUP // taken only when those before it are stored
	if !g.take(syscall.SIGINT) || g.takeNow(syscall.SIGINT) {
		t.Error("one came, and is used up")
	}
	g.forget()
	if g.takeNow(syscall.SIGTERM) {
		t.Error("it was before CMD")
	}
	g.got = map[syscall.Signal][]time.Time{syscall.SIGINT: {time.Now().Add(-2 * groupFresh)}}
	if g.takeNow(syscall.SIGINT) {
		t.Error("an old one")
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		err       error
		why, what string
	}{
		{explainSeccomp(syscall.EPERM), "seccomp refused", "seccomp=unconfined"},
		{explainSeccomp(syscall.ENOSYS), "seccomp refused", "container"},
		{explainSeccomp(syscall.EBUSY), "supervises", "outside"},
		{explainSeccomp(syscall.EINVAL), "no user notification in this kernel", "5.14"},
		{explainMount(&os.PathError{Op: "open", Path: "/dev/fuse", Err: syscall.ENOENT}), "no /dev/fuse", "modprobe"},
		{explainMount(&os.PathError{Op: "open", Path: "/dev/fuse", Err: syscall.EACCES}), "no /dev/fuse", "chmod 0666"},
		{explainMount(os.NewSyscallError("fsopen", syscall.ENODEV)), "no FUSE in this kernel", "modprobe"},
		{explainMount(os.NewSyscallError("fsopen", syscall.EPERM)), "mount refused", "--mount"},
		{explainMount(os.NewSyscallError("fsopen", syscall.EIO)), "mount refused", "doctor"},
	} {
		var m *mountError
		if !errors.As(c.err, &m) || !strings.Contains(m.Error(), c.why) || !strings.Contains(m.hint, c.what) {
			t.Errorf("%v: want %q, %q", c.err, c.why, c.what)
		}
	}
	if explainMount(nil) != nil {
		t.Error("nothing is wrong")
	}
}

func TestTracer(t *testing.T) {
	seven := int32(7)
	var b strings.Builder
	tr := &tracer{w: &b}
	at := uint64(0xffffff9c)
	for _, c := range []struct {
		c    call
		val  int64
		err  error
		want string
	}{
		{call{nr: unix.SYS_OPENAT, args: [6]uint64{at, 0, 0, 0, 0, unix.O_RDWR | unix.O_CLOEXEC}, note: "/dev/udmabuf"}, 3, nil, `openat(AT_FDCWD, "/dev/udmabuf", O_RDWR|O_CLOEXEC) = 3`},
		{call{nr: unix.SYS_OPENAT2, args: [6]uint64{4}, note: "a\nb"}, 0, syscall.EISDIR, `openat2(4, "a\nb", {flags=O_RDONLY}) = -1 EISDIR (is a directory)`},
		{call{nr: unix.SYS_IOCTL, args: [6]uint64{3, uapi.DMA_HEAP_IOCTL_ALLOC, 0x10}, put: &seven}, 0, nil, `ioctl(3, DMA_HEAP_IOCTL_ALLOC, 0x10) = 0 {fd=7}`},
		{call{nr: unix.SYS_IOCTL, args: [6]uint64{3, 0xc0104800, 0x10}}, 0, syscall.EINVAL, `ioctl(3, DMA_HEAP_IOCTL_ALLOC /* 16 bytes */, 0x10) = -1 EINVAL (invalid argument)`},
		{call{nr: unix.SYS_FACCESSAT, args: [6]uint64{at, 0, unix.R_OK | unix.W_OK}, note: "x"}, 0, nil, `faccessat(AT_FDCWD, "x", R_OK|W_OK) = 0`},
	} {
		b.Reset()
		c.c.tid = 12
		tr.call(&c.c, c.val, c.err)
		if want := "[pid 12] " + c.want + "\n"; b.String() != want {
			t.Errorf("%q, want %q", b.String(), want)
		}
	}
}
