package fs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A READ that waits for fences (fault=wait) keeps its pages locked. Who else wants
// one of them waits in the kernel: by a fault so that it can be killed, by write(2)
// so that it cannot, in state D and with the inode's lock. FUSE tells us of neither,
// nor of the death of a process whose READ was readahead, so /proc is looked at.

// parkedEvery is how often a parked READ looks for processes that were killed.
const parkedEvery = 250 * time.Millisecond

// lookAround is what a parked READ does meanwhile. EINTR: who faulted is dead or
// dying. letGo: somebody who was killed is kept by a page of this buffer.
func (n *bufferNode) lookAround(r *request) (letGo bool, err error) {
	if pid := strconv.FormatUint(uint64(r.pid), 10); r.pid != 0 && (killed("/proc/"+pid) || threadState("/proc/"+pid) == 0) {
		return false, syscall.EINTR
	}
	last, now := n.looked.Load(), time.Now().UnixNano()
	if now-last < int64(parkedEvery)/2 || !n.looked.CompareAndSwap(last, now) {
		return false, nil // another parked READ did it just now
	}
	for _, pid := range pids() {
		proc := fmt.Sprintf("/proc/%d", pid)
		for _, tid := range names(proc + "/task") {
			if thread := proc + "/task/" + tid; threadState(thread) == 'D' && killed(thread) && n.heldBy(strconv.Itoa(pid)) {
				return true, nil
			}
		}
	}
	return false, nil
}

// threadState is the letter of proc_pid_stat(5), 0 for a thread that has ended.
func threadState(proc string) byte {
	raw, err := os.ReadFile(proc + "/stat")
	if err != nil {
		return 0
	}
	text := string(raw)
	if i := strings.LastIndexByte(text, ')'); i >= 0 && i+2 < len(text) && text[i+2] != 'Z' && text[i+2] != 'X' {
		return text[i+2]
	}
	return 0
}

// killed reports whether SIGKILL is on its way to a thread. Any signal that ends a
// process becomes one.
func killed(proc string) bool {
	raw, err := os.ReadFile(proc + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(raw)) {
		name, v, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		if set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64); err == nil && set&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

// heldBy reports whether a process has the buffer open. The kernel answers by itself:
// this must not become a request to ourselves.
func (n *bufferNode) heldBy(pid string) bool {
	dev := n.fsys.dev()
	for _, fd := range names("/proc/" + pid + "/fd") {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, "/proc/"+pid+"/fd/"+fd, unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
		if err == nil && st.Ino == n.id() && (dev == "" || dev == fmt.Sprintf("%02x:%02x", st.Dev_major, st.Dev_minor)) {
			return true
		}
	}
	return false
}
