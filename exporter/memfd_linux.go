package exporter

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Memory is what a buffer's bytes lie in: a memfd, made at the first use that needs
// one (until then all is zero, and neither pages nor a descriptor are spent), or
// ranges of memfds that somebody brought (Adopt). The zero value is an empty memory.
//
// The memfd has the buffer's size to the byte, as passthrough lets the kernel read its
// size. Only Truncate changes that, and no client has a descriptor of it, so it needs
// no seals against resizing while its buffer may still be resized by a sole user.
type Memory struct {
	mu      sync.RWMutex
	size    int64
	file    *os.File // the memfd; of an adopted memory the one whole file, or nil
	extents []extent // adopted ranges
	closed  bool
	pins    atomic.Int32 // mappings in this process
}

// extent is a range of a file.
type extent struct {
	file   *os.File
	at     int64 // where in the memory, bytes
	off, n int64 // in the file, bytes
}

// Part is a range of a memfd, in bytes: whole pages.
type Part struct {
	File      *os.File
	Offset, N int64
}

// Adopt makes a memory of ranges of memfds, as udmabuf does: no copy, both see the
// same bytes. The files stay the caller's; the memory has duplicates. It asks what
// udmabuf asks (drivers/dma-buf/udmabuf.c):
//
//   - EBADFD: not a memfd.
//   - EINVAL: no parts; a part that is no whole pages, or ends behind the file; a file
//     without F_SEAL_SHRINK, or with F_SEAL_WRITE or F_SEAL_FUTURE_WRITE.
//   - EMFILE as ENOMEM.
func Adopt(parts ...Part) (*Memory, error) {
	if len(parts) == 0 {
		return nil, fmt.Errorf("exporter: adopt nothing: %w", ErrInvalid)
	}
	m := &Memory{}
	for _, p := range parts {
		if err := m.adopt(p); err != nil {
			m.Close()
			return nil, err
		}
	}
	if e := m.extents[0]; len(m.extents) == 1 && e.off == 0 {
		// The whole file, or a mapping of it would reach more than the buffer.
		if st, err := e.file.Stat(); err == nil && st.Size() == e.n {
			m.file = e.file
		}
	}
	return m, nil
}

func (m *Memory) adopt(p Part) error {
	fd := int(p.File.Fd())
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("exporter: adopt %s: %w", p.File.Name(), syscall.EBADFD)
	}
	if seals&unix.F_SEAL_SHRINK == 0 || seals&(unix.F_SEAL_WRITE|unix.F_SEAL_FUTURE_WRITE) != 0 {
		return fmt.Errorf("exporter: adopt %s with seals %#x: %w", p.File.Name(), seals, ErrInvalid)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("exporter: adopt: %w", err)
	}
	if p.Offset < 0 || p.N <= 0 || p.Offset%PageSize != 0 || p.N%PageSize != 0 || p.Offset > st.Size-p.N || m.size > MaxSize-p.N {
		return fmt.Errorf("exporter: adopt %d+%d of a file of %d bytes: %w", p.Offset, p.N, st.Size, ErrInvalid)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("%w: %v", ErrNoMemory, err)
	}
	m.extents = append(m.extents, extent{os.NewFile(uintptr(dup), "adopted"), m.size, p.Offset, p.N})
	m.size += p.N
	return nil
}

// newMemfd makes a file in memory, of no size. Executing it is sealed off where the kernel can.
func newMemfd() (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("dmabuffs", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, syscall.EINVAL) { // before 6.3
		fd, err = unix.MemfdCreate("dmabuffs", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: memfd_create: %v", ErrNoMemory, err)
	}
	return os.NewFile(uintptr(fd), "memfd:dmabuffs"), nil
}

// Adopted reports whether the memory is somebody else's.
func (m *Memory) Adopted() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.extents != nil
}

// Size in bytes.
func (m *Memory) Size() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.size
}

// File is the memfd, made now if there was none; it stays the memory's, which closes
// it at release. nil without an error: an adopted memory that is not one whole
// file. ENOMEM: no descriptor or no memory. ENODEV: closed.
func (m *Memory) File() (*os.File, error) {
	m.mu.RLock()
	f, made := m.file, m.file != nil || m.extents != nil
	closed := m.closed
	m.mu.RUnlock()
	switch {
	case closed:
		return nil, ErrClosed
	case made:
		return f, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.file, m.makeLocked()
}

// makeLocked makes the memfd. m.mu is held for writing.
func (m *Memory) makeLocked() error {
	switch {
	case m.closed:
		return ErrClosed
	case m.file != nil || m.extents != nil:
		return nil
	}
	f, err := newMemfd()
	if err != nil {
		return err
	}
	if err := unix.Ftruncate(int(f.Fd()), m.size); err != nil {
		f.Close()
		return fmt.Errorf("exporter: memfd of %d bytes: %w", m.size, err)
	}
	m.file = f
	return nil
}

// eachLocked calls do for the ranges of files that [off, off+n) lies in, at the given place of it. m.mu is held.
func (m *Memory) eachLocked(off, n int64, do func(f *os.File, off, at, n int64) error) error {
	if m.extents == nil {
		return do(m.file, off, 0, n)
	}
	for _, e := range m.extents {
		from, to := max(off, e.at), min(off+n, e.at+e.n)
		if from < to {
			if err := do(e.file, e.off+from-e.at, from-off, to-from); err != nil {
				return err
			}
		}
	}
	return nil
}

// ReadAt implements io.ReaderAt.
func (m *Memory) ReadAt(p []byte, off int64) (n int, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off < 0 {
		return 0, ErrInvalid
	}
	if m.closed {
		return 0, ErrClosed
	}
	want := int(min(int64(len(p)), max(0, m.size-off)))
	if want > 0 {
		if m.file == nil && m.extents == nil {
			clear(p[:want])
			n = want
		} else if n, err = m.transferLocked(p[:want], off, unix.Pread); err != nil {
			return n, err
		}
	}
	if n < len(p) {
		err = io.EOF
	}
	return n, err
}

// WriteAt implements io.WriterAt, inside the size: EFBIG where p would go past it.
// ENOSPC, ENOMEM: n bytes were written, the rest is what it was.
func (m *Memory) WriteAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, ErrInvalid
	}
	if len(p) == 0 {
		return 0, nil
	}
	if err := m.room(off, int64(len(p))); err != nil {
		return 0, err
	}
	for {
		m.mu.RLock()
		if m.closed || m.file != nil || m.extents != nil {
			defer m.mu.RUnlock()
			return m.writeLocked(p, off)
		}
		m.mu.RUnlock()
		if _, err := m.File(); err != nil {
			return 0, err
		}
	}
}

func (m *Memory) writeLocked(p []byte, off int64) (n int, err error) {
	if m.closed {
		return 0, ErrClosed
	}
	want := int(min(int64(len(p)), max(0, m.size-off)))
	if n, err = m.transferLocked(p[:want], off, unix.Pwrite); err == nil && n < len(p) {
		err = ErrTooBig
	}
	return n, err
}

// transferLocked is the one place where bytes move: pread and pwrite over the extents.
func (m *Memory) transferLocked(p []byte, off int64, move func(fd int, p []byte, off int64) (int, error)) (done int, err error) {
	err = m.eachLocked(off, int64(len(p)), func(f *os.File, off, at, n int64) error {
		for n > 0 {
			k, err := move(int(f.Fd()), p[at:at+n], off)
			switch {
			case errors.Is(err, syscall.EINTR):
				continue
			case err != nil:
				return fmt.Errorf("exporter: memfd: %w", err)
			case k == 0: // somebody truncated an adopted file, in spite of its seal
				return fmt.Errorf("exporter: memfd: %w", io.ErrUnexpectedEOF)
			}
			off, at, n, done = off+int64(k), at+int64(k), n-int64(k), done+k
		}
		return nil
	})
	return done, err
}

// Truncate sets the size, in bytes; what is added is zero. EBUSY: mapped in this
// process (Kmap, Vmap). EINVAL: adopted. EFBIG: above MaxSize.
func (m *Memory) Truncate(size int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return ErrClosed
	case m.extents != nil:
		return ErrFixed
	case size < 0 || size > MaxSize:
		return ErrTooBig
	case m.pins.Load() > 0:
		return fmt.Errorf("exporter: truncate a mapped memory: %w", ErrBusy)
	}
	if m.file == nil {
		m.size = size
		return nil
	}
	fd := int(m.file.Fd())
	if tail := m.size % PageSize; size > m.size && tail != 0 {
		// Stores into a mapping may have gone behind the end, within the last page.
		if err := punch(fd, m.size, PageSize-tail); err != nil {
			return err
		}
	}
	if err := unix.Ftruncate(fd, size); err != nil {
		return fmt.Errorf("exporter: truncate to %d bytes: %w", size, err)
	}
	m.size = size
	return nil
}

func punch(fd int, off, n int64) error {
	for {
		err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		if err == nil {
			return nil
		}
		if !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("exporter: punch %d+%d: %w", off, n, err)
		}
	}
}

// PunchHole makes [off, off+n) zero, cut off at the size, and frees its whole pages.
func (m *Memory) PunchHole(off, n int64) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if off < 0 || n <= 0 {
		return ErrInvalid
	}
	if m.closed {
		return ErrClosed
	}
	if n = min(n, m.size-off); n <= 0 || m.file == nil && m.extents == nil {
		return nil
	}
	return m.eachLocked(off, n, func(f *os.File, off, _, n int64) error { return punch(int(f.Fd()), off, n) })
}

// Allocate gives [off, off+n) pages now, inside the size (EINVAL). ENOMEM, ENOSPC:
// there are none, and none was taken.
func (m *Memory) Allocate(off, n int64) error {
	if off < 0 || n <= 0 || off > m.Size()-n {
		return ErrInvalid
	}
	if err := m.room(off, n); err != nil {
		return err
	}
	if _, err := m.File(); err != nil {
		return err
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.closed {
		return ErrClosed
	}
	return m.eachLocked(off, n, func(f *os.File, off, _, n int64) error {
		for {
			err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, off, n)
			if err == nil {
				return nil
			}
			if !errors.Is(err, syscall.EINTR) {
				return fmt.Errorf("exporter: allocate %d+%d: %w", off, n, err)
			}
		}
	})
}

// room asks whether pages for the holes in [off, off+n) can be had, before the OOM
// killer would be asked: it counts against the cgroup that this process is in.
func (m *Memory) room(off, n int64) error {
	if memoryLimit().take(n) {
		return nil
	}
	holes := m.holes(off, n)
	if holes == 0 || memoryLimit().fits(holes) {
		return nil
	}
	return fmt.Errorf("exporter: %d bytes near the memory limit: %w", holes, ErrNoMemory)
}

// holes is how many bytes of [off, off+n) have no pages, rounded up to pages.
func (m *Memory) holes(off, n int64) int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	first, count := pageRange(off, int(min(n, math.MaxInt)))
	if m.file == nil && m.extents == nil || m.closed {
		return count * PageSize
	}
	var holes int64
	_ = m.eachLocked(off, min(n, max(0, m.size-off)), func(f *os.File, off, _, n int64) error {
		holes += fileHoles(int(f.Fd()), off&^(PageSize-1), off+n)
		return nil
	})
	return min(holes, (first+count)*PageSize)
}

func fileHoles(fd int, off, end int64) (holes int64) {
	for off < end {
		hole, err := unix.Seek(fd, off, unix.SEEK_HOLE)
		if err != nil || hole >= end {
			return holes
		}
		data, err := unix.Seek(fd, hole, unix.SEEK_DATA)
		if err != nil || data > end { // ENXIO: holes up to the end
			data = (end + PageSize - 1) &^ (PageSize - 1)
		}
		holes += data - hole
		off = data
	}
	return holes
}

// Blocks is what stat(2) calls st_blocks: pages that are there, in units of 512 bytes.
// Of an adopted memory it is its size.
func (m *Memory) Blocks() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.extents != nil {
		return m.size / 512
	}
	if m.file == nil || m.closed {
		return 0
	}
	var st unix.Stat_t
	if unix.Fstat(int(m.file.Fd()), &st) != nil {
		return 0
	}
	return st.Blocks
}

// Mapped reports whether somebody still has a writable mapping of the memfd. It asks
// by sealing it (F_SEAL_WRITE is EBUSY with such a mapping), so after a no the memory
// can be read only: ask when nobody will write any more, before release. Of adopted
// memory the answer is no: it is not ours to seal, and its owner keeps it.
func (m *Memory) Mapped() bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.file == nil || m.extents != nil || m.closed {
		return false
	}
	_, err := unix.FcntlInt(m.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE)
	return errors.Is(err, syscall.EBUSY)
}

// Close gives the memory back. Mappings of other processes keep theirs.
func (m *Memory) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return
	}
	m.closed = true
	if m.extents == nil && m.file != nil {
		m.file.Close()
	}
	for _, e := range m.extents {
		e.file.Close()
	}
	m.file = nil
}
