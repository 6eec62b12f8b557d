package fs

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Holder is one thing that keeps a mount busy.
type Holder struct {
	PID  int    `json:"pid"`  // 0: another mount
	Comm string `json:"comm"` // /proc/<pid>/comm
	What string `json:"what"` // "working directory", "root directory", "program", "fd 3", "mapping", "mounted on it"
	Path string `json:"path"` // what it holds, as /proc shows it
}

// BusyError says who keeps a mount from being unmounted. It is an EBUSY.
type BusyError struct {
	Dir     string
	Holders []Holder // those that /proc shows us: not other users', nor descriptors in flight
}

// Unwrap makes it an EBUSY.
func (e *BusyError) Unwrap() error { return syscall.EBUSY }

// busyShown is how many holders an error's text has.
const busyShown = 8

// Error names the holders by pid and command.
func (e *BusyError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s is busy", e.Dir)
	if len(e.Holders) == 0 {
		b.WriteString(", and /proc does not show us who holds it (another user, another namespace, a descriptor on its way)")
		return b.String()
	}
	for i, h := range e.Holders {
		switch {
		case i == busyShown:
			fmt.Fprintf(&b, ", and %d more", len(e.Holders)-i)
			return b.String()
		case i == 0:
			b.WriteString(": held by ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(h.String())
	}
	return b.String()
}

func (h Holder) String() string {
	if h.PID == 0 {
		return fmt.Sprintf("the mount on %s", h.Path)
	}
	return fmt.Sprintf("pid %d (%s: %s %s)", h.PID, h.Comm, h.What, h.Path)
}

// Holders looks through /proc for what keeps the mount busy: working and root directories,
// running programs, open files, mappings, and mounts on top. The file system itself
// is asked nothing, so a daemon may call it about its own mount; this process does not count.
func (m *MountInfo) Holders() []Holder {
	var out []Holder
	if all, err := readMountinfo(); err == nil {
		for _, o := range all {
			if o.Parent == m.ID && o.ID != m.ID {
				out = append(out, Holder{What: "mounted on it", Path: o.Dir})
			}
		}
	}
	for _, pid := range pids() {
		out = append(out, m.heldBy(pid)...)
	}
	return out
}

// pids lists the others' pids.
func pids() []int {
	d, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer d.Close()
	names, _ := d.Readdirnames(-1)
	var out []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

// heldBy is what one process holds; nothing where we may not look.
func (m *MountInfo) heldBy(pid int) []Holder {
	var out []Holder
	proc := fmt.Sprintf("/proc/%d", pid)
	add := func(what, path string) {
		out = append(out, Holder{PID: pid, What: what, Path: path})
	}
	for _, l := range []struct{ name, what string }{
		{"cwd", "working directory"}, {"root", "root directory"}, {"exe", "program"},
	} {
		if path, ok := m.linkOn(proc + "/" + l.name); ok {
			add(l.what, path)
		}
	}
	fds := names(proc + "/fd")
	for _, fd := range fds {
		if id, err := fdMountID(strconv.Itoa(pid), fd); err == nil && id == m.ID {
			path, _ := os.Readlink(proc + "/fd/" + fd)
			add("fd "+fd, path)
		}
	}
	for _, path := range m.mappedBy(proc) {
		add("mapping", path)
	}
	if len(out) > 0 {
		comm, _ := os.ReadFile(proc + "/comm")
		for i := range out {
			out[i].Comm = strings.TrimSpace(string(comm))
		}
	}
	return out
}

func names(dir string) []string {
	d, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer d.Close()
	out, _ := d.Readdirnames(-1)
	return out
}

// linkOn reports whether a link of /proc leads onto the mount. O_PATH asks the
// file system nothing.
func (m *MountInfo) linkOn(link string) (path string, ok bool) {
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	if id, err := fdMountID("self", strconv.Itoa(fd)); err != nil || id != m.ID {
		return "", false
	}
	path, _ = os.Readlink(link)
	return path, true
}

// fdMountID is the mount that a descriptor was opened through.
func fdMountID(pid, fd string) (int, error) {
	v, err := fdinfo(pid, fd, "mnt_id:")
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(v)
}

// fdinfo is one row of what the kernel knows of a descriptor (proc_pid_fdinfo(5)).
func fdinfo(pid, fd, row string) (string, error) {
	name := "/proc/" + pid + "/fdinfo/" + fd
	raw, err := os.ReadFile(name)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(raw)) {
		if v, ok := strings.CutPrefix(line, row); ok {
			return strings.TrimSpace(v), nil
		}
	}
	return "", fmt.Errorf("%s has no %s %w", name, row, syscall.EINVAL)
}

// mappedBy lists the files of this file system that a process has mapped, each once.
// A line is "start-end perms offset dev inode path", dev in hex.
func (m *MountInfo) mappedBy(proc string) []string {
	raw, err := os.ReadFile(proc + "/maps")
	if err != nil {
		return nil
	}
	dev := fmt.Sprintf("%02x:%02x", m.Major, m.Minor)
	var out []string
	for line := range strings.Lines(string(raw)) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), " ", 6)
		if len(f) < 6 || f[3] != dev {
			continue
		}
		if path := strings.TrimSpace(f[5]); !slices.Contains(out, path) {
			out = append(out, path)
		}
	}
	return out
}
