package fs

import (
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// handle is one open(2). It translates; it decides nothing.
type handle interface {
	openOut() openOut
	// release runs once, after the last close and, for cached files, the last munmap.
	release()
}

// What a handle may be besides.
type (
	reader interface {
		// read fills p. direct: it is read(2) of a direct-I/O file, not a page fault.
		read(r *request, p []byte, off int64, direct bool) (int, error)
	}
	writer interface {
		// write takes p. cached: the kernel writes dirty pages back.
		write(r *request, p []byte, off int64, cached bool) (int, error)
	}
	flusher interface { // close(2) of any duplicate
		flush(r *request) error
	}
	fsyncer interface {
		fsync(r *request) error
	}
	ioctler interface {
		// ioctl returns the caller's result; what it copies out it puts into in.out.
		ioctl(r *request, in *ioctlIn) (int32, error)
	}
	poller interface {
		// poll answers which of want (POLLIN, …) are so. kh, unless 0, is to be
		// notified whenever that may have changed, until release: poll handles are sticky.
		poll(want uint32, kh uint64) uint32
	}
)

type openOut struct {
	flags   uint32 // fuse.FOPEN_…
	backing int32  // with FOPEN_PASSTHROUGH
}

// handleTable gives handles their numbers.
type handleTable struct {
	mu   sync.RWMutex
	m    map[uint64]handle
	next uint64
}

func newHandleTable() *handleTable { return &handleTable{m: map[uint64]handle{}} }

func (t *handleTable) add(h handle) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	t.m[t.next] = h
	return t.next
}

func (t *handleTable) get(fh uint64) (handle, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if h := t.m[fh]; h != nil {
		return h, nil
	}
	return nil, syscall.EBADF
}

func (t *handleTable) remove(fh uint64) handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.m[fh]
	delete(t.m, fh)
	return h
}

// drain takes all handles out: the connection is gone, nobody will release them.
func (t *handleTable) drain() []handle {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make([]handle, 0, len(t.m))
	for _, h := range t.m {
		all = append(all, h)
	}
	clear(t.m)
	return all
}

func (t *handleTable) len() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.m)
}

// pollers remembers one file's poll handle, and wakes it.
type pollHandle struct {
	c  *conn
	kh atomic.Uint64
}

// register keeps kh and says whether it is the first.
func (p *pollHandle) register(kh uint64) (first bool) {
	return kh != 0 && p.kh.Swap(kh) == 0
}

// wake notifies, with no lock held.
func (p *pollHandle) wake() {
	if kh := p.kh.Load(); kh != 0 {
		p.c.notifyPoll(kh)
	}
}

// textNode is a file of text whose contents are made when it is read: sysfs' show and store.
type textNode struct {
	ident uint64
	fsys  *fileSystem
	// own fills owner, mode and times; the type is set already.
	own func(a *fuse.Attr)
	// show gives the text. nil: not readable.
	show func() (string, error)
	// store takes one write(2) (without its trailing newline). nil: not writable, EACCES.
	store func(c caller, text string) error
	// opened replaces the default handle where opening means something.
	opened func(r *request, flags uint32) (handle, error)
}

var _ node = (*textNode)(nil)

func (t *textNode) id() uint64 { return t.ident }

func (t *textNode) attr(a *fuse.Attr) {
	a.Mode = syscall.S_IFREG
	a.Nlink = 1
	t.own(a)
}

// setattr lets `> file` truncate; owner and mode are those of the object.
func (t *textNode) setattr(_ caller, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return syscall.EPERM
	}
	return nil
}

func (t *textNode) open(r *request, flags uint32) (handle, error) {
	if wants(flags, syscall.O_WRONLY) && t.store == nil || wants(flags, syscall.O_RDONLY) && t.show == nil && t.opened == nil {
		return nil, syscall.EACCES
	}
	if t.opened != nil {
		return t.opened(r, flags)
	}
	return &textHandle{node: t}, nil
}

// wants reports whether a file opened with flags reads (O_RDONLY) or writes (O_WRONLY).
func wants(flags uint32, mode int) bool {
	acc := int(flags & syscall.O_ACCMODE)
	return acc == mode || acc == syscall.O_RDWR
}

// textHandle is a snapshot, taken anew by every read at offset 0.
type textHandle struct {
	node *textNode
	mu   sync.Mutex
	text string
	have bool
}

var (
	_ reader = (*textHandle)(nil)
	_ writer = (*textHandle)(nil)
)

func (h *textHandle) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH}
}

func (h *textHandle) release() {}

func (h *textHandle) read(_ *request, p []byte, off int64, _ bool) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if off == 0 || !h.have {
		text, err := h.node.show()
		if err != nil {
			return 0, err
		}
		h.text, h.have = text, true
	}
	if off >= int64(len(h.text)) {
		return 0, nil
	}
	return copy(p, h.text[off:]), nil
}

func (h *textHandle) write(r *request, p []byte, _ int64, _ bool) (int, error) {
	text := string(p)
	if len(text) > 0 && text[len(text)-1] == '\n' {
		text = text[:len(text)-1]
	}
	if err := h.node.store(r.caller(), text); err != nil {
		return 0, err
	}
	return len(p), nil
}
