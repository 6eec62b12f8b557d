package exporter

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// limiter asks how much memory the process may still take before the kernel would
// kill something: below the memory.max (cgroup v1: memory.limit_in_bytes) of its
// control groups, and below what the machine has available. It asks once for each
// creditMax bytes or so, not at every write.
type limiter struct {
	meminfo string   // /proc/meminfo
	v2, v1  []string // directories of control groups, the process' own first

	mu     sync.Mutex
	credit int64 // bytes that may be taken without asking
}

const (
	creditMax  = 16 << 20 // bytes between two looks
	marginMax  = 32 << 20 // bytes kept free for the program itself, or
	marginPart = 16       // this part of the limit if that is less
)

// memoryLimit is this process' limiter.
var memoryLimit = sync.OnceValue(func() *limiter {
	groups, _ := os.ReadFile("/proc/self/cgroup")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	return newLimiter(string(groups), string(mounts), "/proc/meminfo")
})

// newLimiter finds the control groups in the texts of /proc/self/cgroup and mountinfo.
func newLimiter(groups, mounts, meminfo string) *limiter {
	l := &limiter{meminfo: meminfo}
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) < 3:
		case f[1] == "":
			l.v2 = groupDirs(cgroupMount(mounts, "cgroup2", ""), f[2], "memory.max")
		case strings.Contains(","+f[1]+",", ",memory,"):
			l.v1 = groupDirs(cgroupMount(mounts, "cgroup", "memory"), f[2], "memory.limit_in_bytes")
		}
	}
	return l
}

// cgroupMount is the mount point, and what of the hierarchy is mounted there.
func cgroupMount(mounts, fstype, option string) (dir [2]string) {
	for line := range strings.Lines(mounts) {
		head, tail, ok := strings.Cut(line, " - ")
		f, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(f) < 5 || len(t) < 3 || t[0] != fstype {
			continue
		}
		if option == "" || strings.Contains(","+t[2]+",", ","+option+",") {
			return [2]string{f[4], f[3]}
		}
	}
	return dir
}

// groupDirs is the group's directory and those above it that have the limit's file.
func groupDirs(mount [2]string, group, file string) (dirs []string) {
	if mount[0] == "" {
		return nil
	}
	if rel, ok := strings.CutPrefix(group, mount[1]); ok && mount[1] != "/" {
		group = rel
	}
	for dir := filepath.Join(mount[0], group); len(dir) >= len(mount[0]); dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			dirs = append(dirs, dir)
		}
		if dir == mount[0] {
			break
		}
	}
	return dirs
}

// take spends n bytes, and says whether they are there.
func (l *limiter) take(n int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.credit >= n {
		l.credit -= n
		return true
	}
	left := l.left()
	l.credit = min(max(0, left-n), creditMax)
	return n <= left
}

// fits says whether n bytes are there.
func (l *limiter) fits(n int64) bool { return n <= l.left() }

// left is how many bytes are free for buffers, below all limits.
func (l *limiter) left() int64 {
	left := int64(1<<63 - 1)
	for _, dir := range l.v2 {
		left = min(left, groupLeft(dir, "memory.max", "memory.current", "inactive_file", "active_file"))
	}
	for _, dir := range l.v1 {
		left = min(left, groupLeft(dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "total_active_file"))
	}
	if text, err := os.ReadFile(l.meminfo); err == nil {
		if total, ok := field(text, "MemTotal:"); ok {
			avail, _ := field(text, "MemAvailable:")
			left = min(left, lessMargin(total<<10, avail<<10))
		}
	}
	return max(left, 0)
}

// lessMargin is what is left of free bytes when the program keeps its own.
func lessMargin(limit, free int64) int64 { return free - min(limit/marginPart, marginMax) }

// groupLeft is the room in one group: its limit, less what is used, but for the clean
// file pages that the kernel drops first.
func groupLeft(dir, limitFile, usedFile string, reclaimable ...string) int64 {
	limit, ok := number(dir, limitFile)
	if !ok { // "max"
		return 1<<63 - 1
	}
	used, ok := number(dir, usedFile)
	if !ok {
		return 1<<63 - 1
	}
	left := lessMargin(limit, limit-used)
	if left > creditMax {
		return left
	}
	stat, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return left
	}
	for _, name := range reclaimable {
		n, _ := field(stat, name)
		left += n
	}
	return left
}

func number(dir, file string) (int64, bool) {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// field is the number behind a name at the beginning of a line.
func field(text []byte, name string) (int64, bool) {
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) >= 2 && string(f[0]) == name {
			n, err := strconv.ParseInt(string(f[1]), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
