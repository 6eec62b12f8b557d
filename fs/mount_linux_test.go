package fs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMountinfo(t *testing.T) {
	const text = `22 27 0:21 / /proc rw,nosuid shared:5 - proc proc rw
130 27 0:52 / /mnt/a\040b\134c rw,nosuid,nodev,relatime shared:70 master:2 - fuse.dmabuffs po\054ol rw,user_id=0,group_id=0
131 27 0:53 / /mnt/plain ro - fuse.dmabuffs dmabuffs ro
malformed
132 27 x / /mnt/bad ro - fuse.dmabuffs dmabuffs ro
133 27 0:54 / /mnt/cut ro -
`
	got := parseMountinfo([]byte(text))
	want := []MountInfo{
		{ID: 22, Parent: 27, Minor: 21, Dir: "/proc", Options: "rw,nosuid", FSType: "proc", Source: "proc", SuperOptions: "rw"},
		{ID: 130, Parent: 27, Minor: 52, Dir: `/mnt/a b\c`, Options: "rw,nosuid,nodev,relatime", FSType: "fuse.dmabuffs", Source: "po,ol", SuperOptions: "rw,user_id=0,group_id=0"},
		{ID: 131, Parent: 27, Minor: 53, Dir: "/mnt/plain", Options: "ro", FSType: "fuse.dmabuffs", Source: "dmabuffs", SuperOptions: "ro"},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestUnescapeMount(t *testing.T) {
	for in, want := range map[string]string{`a`: "a", `\040`: " ", `a\011b`: "a\tb", `\0`: `\0`, `\999`: `\999`, `x\134`: `x\`} {
		if got := Unescape(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// A directory is no mount, however it is written; the root is one, of another type.
func TestMountAt(t *testing.T) {
	dir := t.TempDir()
	if m, err := mountAt(dir); err != nil || m != nil {
		t.Errorf("%s: %+v, %v; want none", dir, m, err)
	}
	m, err := mountAt("/proc")
	if err != nil || m == nil || m.FSType != "proc" {
		t.Fatalf("/proc: %+v, %v", m, err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/proc", link); err != nil {
		t.Fatal(err)
	}
	if l, err := mountAt(link); err != nil || l == nil || l.ID != m.ID {
		t.Errorf("by a symbolic link: %+v, %v", l, err)
	}
	if IsMounted("/proc") || IsMounted(dir) || IsMounted(filepath.Join(dir, "absent")) {
		t.Error("IsMounted takes something else for a dmabuffs")
	}
}

// Only a dmabuffs is ever unmounted.
func TestUnmountOthers(t *testing.T) {
	dir := t.TempDir()
	for _, lazy := range []bool{false, true} {
		if err := Unmount(dir, lazy); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("a directory, lazy %v: %v, want EINVAL", lazy, err)
		}
		if err := Unmount("/proc", lazy); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("/proc, lazy %v: %v, want EINVAL", lazy, err)
		}
		if err := Unmount(filepath.Join(dir, "absent"), lazy); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("nothing, lazy %v: %v, want ENOENT", lazy, err)
		}
	}
}

func TestOpenMountRefused(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, tt := range map[string]struct {
		dir  string
		o    Options
		want syscall.Errno
	}{
		"absent":      {filepath.Join(dir, "absent"), Options{}, syscall.ENOENT},
		"a file":      {file, Options{}, syscall.ENOTDIR},
		"bad options": {dir, Options{Size: -1}, syscall.EINVAL},
		"not fuse":    {dir, Options{FuseFD: int(null.Fd())}, syscall.EINVAL},
		"not open":    {dir, Options{FuseFD: 1 << 20}, syscall.EBADF},
		"bad fault":   {dir, Options{Fault: "never"}, syscall.EINVAL},
	} {
		fd, err := openMount(tt.dir, &tt.o)
		if !errors.Is(err, tt.want) || fd != -1 {
			t.Errorf("%s: fd %d, %v; want %v", name, fd, err, tt.want)
		}
	}
}

// Holders of any mount are found by mount id: here, of the mount that a
// child has its working directory, a file and a mapping on.
func TestHolders(t *testing.T) {
	dir := t.TempDir()
	path, id, err := resolve(dir)
	if err != nil {
		t.Fatal(err)
	}
	if path != dir {
		t.Fatalf("%s resolves to %s", dir, path)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "exec 7<.; echo ready; read x")
	cmd.Dir = dir
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	var b [6]byte
	if _, err := out.Read(b[:]); err != nil {
		t.Fatal(err)
	}
	m := MountInfo{ID: id, Major: unix.Major(st.Dev), Minor: unix.Minor(st.Dev), Dir: "/"}
	var whats []string
	for _, h := range m.heldBy(cmd.Process.Pid) {
		if h.PID != cmd.Process.Pid || h.Comm != "sh" && h.Comm != "dash" {
			t.Errorf("%+v is not the child", h)
		}
		if h.Path == dir {
			whats = append(whats, h.What)
		}
	}
	if got := strings.Join(whats, ","); got != "working directory,fd 7" {
		t.Errorf("held as %q", got)
	}
	for _, h := range m.Holders() {
		if h.PID == os.Getpid() {
			t.Errorf("this process counts: %+v", h)
		}
	}
}

func TestBusyError(t *testing.T) {
	e := &BusyError{Dir: "/mnt"}
	if !errors.Is(e, syscall.EBUSY) {
		t.Error("no EBUSY")
	}
	if !strings.Contains(e.Error(), "/mnt is busy, and /proc does not show us who") {
		t.Error(e)
	}
	for i := range 10 {
		e.Holders = append(e.Holders, Holder{PID: 100 + i, Comm: "cat", What: "fd 3", Path: "/mnt/buffers/b"})
	}
	e.Holders[1] = Holder{What: "mounted on it", Path: "/mnt/state"}
	got := e.Error()
	for _, want := range []string{"held by pid 100 (cat: fd 3 /mnt/buffers/b), the mount on /mnt/state, pid 102", ", and 2 more"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
}

// Without a connection there is no number, and no mount.
func TestConnectionNumber(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, fd := range []int{int(null.Fd()), 1 << 20} {
		if n, ok := connectionNumber(fd); ok {
			t.Errorf("descriptor %d: %d", fd, n)
		}
		if dir := passedInDir(fd, t.TempDir()); dir != "" {
			t.Errorf("descriptor %d is mounted on %s", fd, dir)
		}
	}
}

func TestParseInit(t *testing.T) {
	p := make([]byte, inHeaderSize+64)
	native.PutUint32(p[4:], opInit)
	b := p[inHeaderSize:]
	native.PutUint32(b, 7)
	native.PutUint32(b[4:], 45)
	native.PutUint32(b[12:], 1<<30)
	native.PutUint32(b[16:], 1<<(37-32)|1<<(36-32))
	f, err := parseInit(p)
	if err != nil || f.Major != 7 || f.Minor != 45 || !f.Passthrough || !f.DirectIOAllowMmap || f.Resend {
		t.Errorf("%+v, %v", f, err)
	}
	for _, bad := range [][]byte{nil, p[:inHeaderSize+15], make([]byte, 104)} {
		if _, err := parseInit(bad); !errors.Is(err, syscall.EPROTO) {
			t.Errorf("%d bytes: %v", len(bad), err)
		}
	}
}
