package fs

import (
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// usableMemory is how many bytes of memory this process may use: the machine's,
// or the smallest limit of its control groups (version 2).
func usableMemory() int64 {
	var si unix.Sysinfo_t
	n := int64(1 << 30)
	if unix.Sysinfo(&si) == nil {
		n = int64(uint64(si.Totalram) * uint64(si.Unit))
	}
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return n
	}
	for line := range strings.Lines(string(raw)) {
		group, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok || !path.IsAbs(group) {
			continue
		}
		for group = path.Clean(group); ; group = path.Dir(group) {
			n = min(n, cgroupLimit("/sys/fs/cgroup"+group+"/memory.max", n))
			if group == "/" {
				break
			}
		}
	}
	return n
}

// cgroupLimit reads a memory.max; without one it is n.
func cgroupLimit(file string, n int64) int64 {
	raw, err := os.ReadFile(file)
	if err != nil {
		return n
	}
	limit, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	if err != nil || limit <= 0 { // "max"
		return n
	}
	return limit
}
