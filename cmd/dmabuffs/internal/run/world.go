package run

import (
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// device is a path that programs find although this machine may lack it.
type device struct {
	path string
	show string // below .control: what stat(2) says; a directory is opened there, too
	open string // below .control: what open(2) gives; empty: a directory, or made anew
	dir  bool

	udmabuf bool
	heap    string // the exporter of a dma-heap
	swSync  bool   // each open(2) is a new timeline

	st  unix.Stat_t // what stat(2) and statx(2) say
	stx unix.Statx_t
}

// devices has them all. Directories that every kernel has (/dev, /sys/kernel/debug) are
// not among them.
func devices() []*device {
	return []*device{
		{path: "/dev/udmabuf", show: "tree/dev/udmabuf", open: "open/udmabuf", udmabuf: true},
		{path: "/dev/dma_heap", show: "tree/dev/dma_heap", dir: true},
		{path: "/dev/dma_heap/system", show: "tree/dev/dma_heap/system", open: "open/system", heap: "system"},
		{path: "/dev/dma_heap/reserved", show: "tree/dev/dma_heap/reserved", open: "open/reserved", heap: "contiguous"},
		{path: "/sys/kernel/debug/sync", show: "tree/debug/sync", dir: true},
		{path: "/sys/kernel/debug/sync/sw_sync", show: "tree/debug/sync/sw_sync", swSync: true},
		{path: "/sys/kernel/debug/sync/info", show: "tree/debug/sync/info", open: "sync_info"},
		{path: "/sys/kernel/debug/dma_buf", show: "tree/debug/dma_buf", dir: true},
		{path: "/sys/kernel/debug/dma_buf/bufinfo", show: "tree/debug/dma_buf/bufinfo", open: "../bufinfo"},
	}
}

// world is what paths and inodes mean. It does not change.
type world struct {
	byPath map[string]*device
	base   map[string]bool    // last elements of the paths
	opened map[uint64]*device // by the inode of what open(2) gives: the drivers
	shown  map[uint64]*device // by the inode of what stat(2) sees: directories that were given out
}

// newWorld looks at what the mount has for each device. Nothing is closed: it keeps the inodes.
func newWorld(ctl *controlDir) (*world, error) {
	w := &world{byPath: map[string]*device{}, base: map[string]bool{}, opened: map[uint64]*device{}, shown: map[uint64]*device{}}
	for _, d := range devices() {
		held, err := unix.Openat(ctl.dir, d.show, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf(".control/%s: %w", d.show, err)
		}
		if err := unix.Fstatat(held, "", &d.st, unix.AT_EMPTY_PATH); err != nil {
			return nil, fmt.Errorf(".control/%s: %w", d.show, err)
		}
		if err := unix.Statx(held, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &d.stx); err != nil {
			return nil, fmt.Errorf(".control/%s: %w", d.show, err)
		}
		d.st.Uid, d.st.Gid, d.stx.Uid, d.stx.Gid = 0, 0, 0, 0 // root's, as the real ones
		w.byPath[d.path] = d
		w.base[path.Base(d.path)] = true
		w.shown[d.st.Ino] = d
		if d.udmabuf || d.heap != "" {
			held, err := unix.Openat(ctl.dir, d.open, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf(".control/%s: %w", d.open, err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(held, &st); err != nil {
				return nil, fmt.Errorf(".control/%s: %w", d.open, err)
			}
			w.opened[st.Ino] = d
		}
	}
	return w, nil
}

// mayBe is false for the paths of nearly every call: their last element is none of ours.
func (w *world) mayBe(p string) bool {
	p = strings.TrimRight(p, "/")
	base := p[strings.LastIndexByte(p, '/')+1:]
	return w.base[base] || base == "." || base == ".." && p != ".."
}
