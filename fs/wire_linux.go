package fs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// The wire: this file alone reads and writes /dev/fuse.
//
// One reader at a time takes a request, handles it, and takes the next: nothing is
// faster for requests that need microseconds. What may wait (Done, notifications,
// our own fsync) or moves much memory calls handOff first: another reader takes
// over, and this one ends with its request. A request that blocks therefore costs
// one parked goroutine and starves nobody, and a notification, whose write(2)
// may wait for WRITEs that we have to answer (deadlock rule 3), may be sent from
// any request. Where a request blocks unforeseen, the watch hands off for it.
//
// POLL, INTERRUPT, and what is hot (OPEN, READ, WRITE, IOCTL, RELEASE, FLUSH, FSYNC)
// are decoded here; go-fuse's protocol server does all the rest.

// Opcodes and layouts of include/uapi/linux/fuse.h that go-fuse keeps to itself.
const (
	opGetattr    = 3
	opOpen       = 14
	opRead       = 15
	opWrite      = 16
	opRelease    = 18
	opFsync      = 20
	opFlush      = 25
	opInit       = 26
	opInterrupt  = 36
	opIoctl      = 39
	opPoll       = 40
	opForget     = 2
	opBatchForge = 42

	inHeaderSize  = 40
	outHeaderSize = 16

	// maxWrite is the largest WRITE and READ, in bytes: 256 pages, what the kernel allows.
	maxWrite = 1 << 20
	// bufSize holds any request: the kernel refuses shorter reads.
	bufSize = maxWrite + 4096

	notifyPoll       = 1
	notifyInvalInode = 2
	notifyInvalEntry = 3
	notifyDelete     = 6

	writeCache      = 1 << 0 // fuse_write_in.write_flags: write-back
	readLockOwner   = 1 << 1 // fuse_read_in.read_flags: only read(2) of a direct-I/O file has it
	pollScheduleNot = 1 << 0

	// bigTransfer is from where on another reader takes over while memory is copied, in bytes.
	bigTransfer = 128 << 10
	// yieldEvery is after how many requests the reader yields, at the next one that
	// nobody waits behind, and yieldLatest after how many in any case: a yield takes
	// as long as several requests. A goroutine that has not for 10 ms is taken for one that
	// hogs its processor: the runtime's monitor then wakes every 20 us to take that
	// away from it in its next system call.
	yieldEvery  = 64
	yieldLatest = 512
	// watchEvery is how long a request may keep the reader before the watch takes over,
	// watchIdle after how many quiet rounds the watch sleeps.
	watchEvery = 30 * time.Millisecond
	watchIdle  = 10

	// include/uapi/asm-generic/poll.h
	pollIn     = 0x1
	pollOut    = 0x4
	pollRdNorm = 0x40
	pollWrNorm = 0x100
)

var native = binary.NativeEndian

// conn is one FUSE connection: the descriptor of /dev/fuse and the requests under way.
type conn struct {
	fd     int
	write  func(iov [][]byte) error // a variable for the fuzzer
	server *fuse.ProtocolServer
	fsys   *fileSystem
	log    *slog.Logger

	readers  sync.WaitGroup
	bufs     sync.Pool
	current  atomic.Pointer[reading] // who reads now
	watching atomic.Bool

	initialized chan struct{}
	initOnce    sync.Once
	ended       chan struct{} // closed when the connection is gone
	endOnce     sync.Once

	mu      sync.Mutex
	blocked map[uint64]*request // requests that can be interrupted, by unique
	early   map[uint64]struct{} // interrupted before they could be, by unique
	nEarly  atomic.Int32        // len(early)

	requests [64]atomic.Uint64 // answered, by opcode
	errors   atomic.Uint64
}

func newConn(fd int, fsys *fileSystem, log *slog.Logger) *conn {
	c := &conn{
		fd:          fd,
		fsys:        fsys,
		log:         log,
		blocked:     map[uint64]*request{},
		early:       map[uint64]struct{}{},
		initialized: make(chan struct{}),
		ended:       make(chan struct{}),
	}
	c.bufs.New = func() any { return &buffers{in: make([]byte, bufSize), out: make([]byte, bufSize)} }
	c.write = func(iov [][]byte) error {
		var err error
		if len(iov) == 1 {
			_, err = unix.Write(c.fd, iov[0])
		} else {
			_, err = unix.Writev(c.fd, iov)
		}
		return err
	}
	return c
}

type buffers struct{ in, out []byte }

// reading is one reader's term.
type reading struct {
	c    *conn
	over atomic.Bool   // somebody else reads now
	n    atomic.Uint64 // odd while a request is handled
	req  request

	quiet bool // the request just answered leaves nobody in a hurry
}

// handOff lets another reader take over; once.
func (rd *reading) handOff() {
	if rd != nil && !rd.over.Swap(true) {
		rd.c.spawn()
	}
}

// request is one request of the kernel, and the context of its handling: an
// INTERRUPT cancels it.
type request struct {
	c      *conn
	by     *reading
	op     uint32
	unique uint64
	node   uint64
	uid    uint32
	gid    uint32
	pid    uint32 // the calling thread; 0 for the kernel's write-back
	body   []byte // behind the header
	out    []byte // the answer's place, header included

	once sync.Once
	done chan struct{}
	cut  atomic.Bool
}

var _ context.Context = (*request)(nil)

// Deadline is part of context.Context: there is none.
func (r *request) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value is part of context.Context.
func (r *request) Value(any) any { return nil }

// Done is closed when the caller was interrupted or the connection ended. Asking
// for it is what makes the request known to INTERRUPT, so that requests which
// never wait pay nothing.
func (r *request) Done() <-chan struct{} {
	r.once.Do(func() {
		r.handOff()
		r.done = make(chan struct{})
		r.c.mu.Lock()
		defer r.c.mu.Unlock()
		_, early := r.c.early[r.unique]
		select {
		case <-r.c.ended:
			early = true
		default:
		}
		if early {
			r.cut.Store(true)
			close(r.done)
			return
		}
		r.c.blocked[r.unique] = r
	})
	return r.done
}

// handOff says that this request may take its time.
func (r *request) handOff() { r.by.handOff() }

// quiet says whether the reader may yield after this request.
func (r *request) quiet(yes bool) {
	if r.by != nil {
		r.by.quiet = yes
	}
}

// Err is part of context.Context.
func (r *request) Err() error {
	if r.cut.Load() {
		return context.Canceled
	}
	return nil
}

// finish forgets a request that had asked for Done, or was interrupted.
func (r *request) finish() {
	r.once.Do(func() {})
	if r.done == nil && r.c.nEarly.Load() == 0 {
		return
	}
	r.c.mu.Lock()
	defer r.c.mu.Unlock()
	delete(r.c.blocked, r.unique)
	r.c.forgetEarlyLocked(r.unique)
}

// interrupt cancels the request with that unique number. False: there is none that waits.
func (c *conn) interrupt(unique uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.blocked[unique]
	if r == nil {
		return false
	}
	if !r.cut.Swap(true) {
		close(r.done)
	}
	return true
}

// maxEarly bounds what is remembered of requests that were answered while their INTERRUPT came.
const maxEarly = 1024

// interruptLater remembers that a request was interrupted which does not wait, or not
// yet. It must not be asked for again (EAGAIN): the kernel would do so at once, and
// hands out INTERRUPTs before any other request, such as the WRITE that this one waits for.
func (c *conn) interruptLater(unique uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.early) >= maxEarly { // the oldest: numbers grow
		c.forgetEarlyLocked(slices.Min(slices.Collect(maps.Keys(c.early))))
	}
	c.early[unique] = struct{}{}
	c.nEarly.Store(int32(len(c.early)))
}

func (c *conn) forgetEarlyLocked(unique uint64) {
	delete(c.early, unique)
	c.nEarly.Store(int32(len(c.early)))
}

// start begins serving.
func (c *conn) start() { c.spawn() }

func (c *conn) spawn() {
	c.readers.Add(1)
	go c.read()
}

// read is one reader's term: until the connection ends or another takes over.
func (c *conn) read() {
	defer c.readers.Done()
	rd := &reading{c: c}
	c.current.Store(rd)
	b := c.bufs.Get().(*buffers)
	defer c.bufs.Put(b)
	for since := 0; !rd.over.Load(); {
		n, err := unix.Read(c.fd, b.in)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOENT):
			continue // ENOENT: that request was interrupted before we took it
		default:
			// ENODEV: unmounted. ECONNABORTED: aborted, or unmounted with a request in hand.
			if !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ECONNABORTED) {
				c.log.Error("reading /dev/fuse", "err", err)
			}
			c.end()
			return
		}
		if !c.watching.Load() && !c.watching.Swap(true) {
			go c.watch()
		}
		rd.n.Add(1)
		c.handleBy(rd, b.in[:n], b.out)
		rd.n.Add(1)
		if since++; since >= yieldLatest || since >= yieldEvery && rd.quiet {
			runtime.Gosched()
			since = 0
		}
		rd.quiet = false
	}
}

// handOff lets another reader take over from one that is at work: whoever calls it
// is about to wait for something that may need requests answered, and may be that reader.
func (c *conn) handOff() {
	if rd := c.current.Load(); rd != nil && rd.n.Load()%2 == 1 {
		rd.handOff()
	}
}

// watch hands off for a request that keeps the reader too long. It ends when nothing happens.
func (c *conn) watch() {
	t := time.NewTicker(watchEvery)
	defer t.Stop()
	var last *reading
	var n uint64
	for quiet := 0; quiet < watchIdle; {
		select {
		case <-t.C:
		case <-c.ended:
			return
		}
		rd := c.current.Load()
		now := rd.n.Load()
		switch {
		case rd != last || now != n:
			quiet = 0
		case now%2 == 1:
			rd.handOff()
			quiet = 0
		default:
			quiet++
		}
		last, n = rd, now
	}
	c.watching.Store(false)
	// A request that came in between found the watch still there; the next one
	// starts it, and a blocked one has to be looked at now.
	if rd := c.current.Load(); rd.n.Load()%2 == 1 && !c.watching.Swap(true) {
		go c.watch()
	}
}

// end cancels everything that waits: nobody can be answered any more.
func (c *conn) end() {
	c.endOnce.Do(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		close(c.ended)
		for _, r := range c.blocked {
			if !r.cut.Swap(true) {
				close(r.done)
			}
		}
	})
}

// handle answers one packet. Malformed ones are answered with an errno where
// they have a header, and dropped where they have none.
func (c *conn) handle(in, out []byte) { c.handleBy(nil, in, out) }

func (c *conn) handleBy(rd *reading, in, out []byte) {
	if len(in) < inHeaderSize {
		c.log.Error("short request", "bytes", len(in))
		return
	}
	r := new(request)
	if rd != nil {
		if rd.req.done == nil { // nobody kept the last one
			r = &rd.req
		}
		*r = request{}
	}
	r.c, r.by = c, rd
	r.op = native.Uint32(in[4:])
	r.unique = native.Uint64(in[8:])
	r.node = native.Uint64(in[16:])
	r.uid = native.Uint32(in[24:])
	r.gid = native.Uint32(in[28:])
	r.pid = native.Uint32(in[32:])
	r.body = in[inHeaderSize:]
	r.out = out
	defer r.finish()
	if int(r.op) < len(c.requests) {
		c.requests[r.op].Add(1)
	}
	if f := inPlace(r.op); f != nil {
		n, err := c.safely(f, r)
		if n < 0 {
			return // answered already, or nothing to answer
		}
		r.reply(n, err)
		return
	}
	n, code := c.server.HandleRequest([][]byte{in}, [][]byte{out})
	switch {
	case code != fuse.OK:
		r.reply(0, syscall.Errno(code))
	case n > 0:
		c.send(out[:n])
	}
	if r.op == opInit {
		c.initOnce.Do(func() { close(c.initialized) })
	}
}

// safely keeps one request's panic from ending everybody's mount.
func (c *conn) safely(f handler, r *request) (n int, err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("panic", "op", r.op, "node", r.node, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			n, err = 0, syscall.EIO
		}
	}()
	return f(c.fsys, r)
}

// reply sends an errno, or the n bytes that were put behind the header in r.out.
func (r *request) reply(n int, err error) {
	code := errno(r.c.log, err)
	if code != 0 {
		n = 0
		r.c.errors.Add(1)
	}
	native.PutUint32(r.out, uint32(outHeaderSize+n))
	native.PutUint32(r.out[4:], uint32(-int32(code)))
	native.PutUint64(r.out[8:], r.unique)
	r.c.send(r.out[:outHeaderSize+n])
}

func (c *conn) send(p []byte) {
	err := c.write([][]byte{p})
	switch {
	case err == nil:
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EPERM):
		// the caller is gone, or everybody is
	default:
		c.log.Error("answering a request", "err", err)
	}
}

// notify sends a notification (unique 0, its code in the place of the errno).
// Errors: ENOENT when the kernel does not know the node, entry or poll handle.
func (c *conn) notify(code int32, payload ...[]byte) error {
	var h [outHeaderSize]byte
	n := len(h)
	iov := [][]byte{h[:]}
	for _, p := range payload {
		n += len(p)
		iov = append(iov, p)
	}
	native.PutUint32(h[:], uint32(n))
	native.PutUint32(h[4:], uint32(code))
	return c.write(iov)
}

// notifyPoll wakes everybody who polls the file with that poll handle
// (fuse_poll_in.kh). No lock may be held (deadlock rule 5).
func (c *conn) notifyPoll(kh uint64) {
	var p [8]byte
	native.PutUint64(p[:], kh)
	_ = c.notify(notifyPoll, p[:]) // ENOENT: nobody polls it any more
}

// invalInode drops cached pages, off and n in bytes (0, 0: all of them), unmapping
// them from every process; n < 0 drops only the attributes. It waits for pages
// that are being read, and launders dirty ones: WRITEs come while it waits.
func (c *conn) invalInode(node uint64, off, n int64) error {
	c.handOff()
	var p [24]byte
	native.PutUint64(p[:], node)
	native.PutUint64(p[8:], uint64(off))
	native.PutUint64(p[16:], uint64(n))
	err := c.notify(notifyInvalInode, p[:])
	if errors.Is(err, unix.ENOENT) {
		return nil // not cached at all
	}
	return err
}

// invalEntry makes the kernel look a name up again. It waits for the directory's lock.
func (c *conn) invalEntry(parent uint64, name string) {
	c.handOff()
	var p [16]byte
	native.PutUint64(p[:], parent)
	native.PutUint32(p[8:], uint32(len(name)))
	_ = c.notify(notifyInvalEntry, p[:], append([]byte(name), 0))
}

// deleteEntry says that a name went away with what it named, the node child: to
// those who are in that directory, or watch it, as rmdir(2) would. It waits for both
// directories' locks.
func (c *conn) deleteEntry(parent, child uint64, name string) {
	c.handOff()
	var p [24]byte
	native.PutUint64(p[:], parent)
	native.PutUint64(p[8:], child)
	native.PutUint32(p[16:], uint32(len(name)))
	_ = c.notify(notifyDelete, p[:], append([]byte(name), 0))
}

// handler answers a request: it puts n bytes behind the header in r.out. n < 0: no answer.
type handler func(*fileSystem, *request) (n int, err error)

func inPlace(op uint32) handler {
	switch op {
	case opOpen:
		return (*fileSystem).wireOpen
	case opRead:
		return (*fileSystem).wireRead
	case opWrite:
		return (*fileSystem).wireWrite
	case opRelease:
		return (*fileSystem).wireRelease
	case opFlush:
		return (*fileSystem).wireFlush
	case opFsync:
		return (*fileSystem).wireFsync
	case opIoctl:
		return (*fileSystem).wireIoctl
	case opPoll:
		return (*fileSystem).wirePoll
	case opInterrupt:
		return (*fileSystem).wireInterrupt
	}
	return nil
}

// short reports a body that is too small for its request.
func (r *request) short(n int) bool { return len(r.body) < n }

func (fsys *fileSystem) wireInterrupt(r *request) (int, error) {
	if r.short(8) {
		return 0, syscall.EINVAL
	}
	if unique := native.Uint64(r.body); !r.c.interrupt(unique) {
		r.c.interruptLater(unique)
	}
	return -1, nil
}

func (fsys *fileSystem) wireOpen(r *request) (int, error) {
	if r.short(8) {
		return 0, syscall.EINVAL
	}
	flags := native.Uint32(r.body)
	n, err := fsys.node(r.node)
	if err != nil {
		return 0, err
	}
	h, err := n.open(r, flags)
	if err != nil {
		return 0, err
	}
	fh := fsys.handles.add(h)
	o := h.openOut()
	out := r.out[outHeaderSize:]
	native.PutUint64(out, fh)
	native.PutUint32(out[8:], o.flags)
	native.PutUint32(out[12:], uint32(o.backing))
	return 16, nil
}

func (fsys *fileSystem) wireRelease(r *request) (int, error) {
	if r.short(8) {
		return 0, syscall.EINVAL
	}
	if h := fsys.handles.remove(native.Uint64(r.body)); h != nil {
		h.release()
	}
	r.quiet(true) // close(2) did not wait for it
	return 0, nil
}

func (fsys *fileSystem) wireRead(r *request) (int, error) {
	if r.short(24) {
		return 0, syscall.EINVAL
	}
	size := native.Uint32(r.body[16:])
	off := int64(native.Uint64(r.body[8:]))
	if off < 0 || int(size) > len(r.out)-outHeaderSize {
		return 0, syscall.EINVAL
	}
	h, err := fsys.handles.get(native.Uint64(r.body))
	if err != nil {
		return 0, err
	}
	rd, ok := h.(reader)
	if !ok {
		return 0, syscall.EINVAL
	}
	if size >= bigTransfer {
		r.handOff()
	}
	return rd.read(r, r.out[outHeaderSize:outHeaderSize+size], off, native.Uint32(r.body[20:])&readLockOwner != 0)
}

func (fsys *fileSystem) wireWrite(r *request) (int, error) {
	if r.short(40) {
		return 0, syscall.EINVAL
	}
	size := native.Uint32(r.body[16:])
	off := int64(native.Uint64(r.body[8:]))
	data := r.body[40:]
	if off < 0 || int(size) > len(data) {
		return 0, syscall.EINVAL
	}
	h, err := fsys.handles.get(native.Uint64(r.body))
	if err != nil {
		return 0, err
	}
	w, ok := h.(writer)
	if !ok {
		return 0, syscall.EINVAL
	}
	if size >= bigTransfer {
		r.handOff()
	}
	n, err := w.write(r, data[:size], off, native.Uint32(r.body[20:])&writeCache != 0)
	if err != nil {
		return 0, err
	}
	native.PutUint64(r.out[outHeaderSize:], uint64(n))
	return 8, nil
}

func (fsys *fileSystem) wireFlush(r *request) (int, error) {
	if r.short(8) {
		return 0, syscall.EINVAL
	}
	h, err := fsys.handles.get(native.Uint64(r.body))
	if err != nil {
		return 0, err
	}
	if f, ok := h.(flusher); ok {
		return 0, f.flush(r)
	}
	return 0, nil
}

func (fsys *fileSystem) wireFsync(r *request) (int, error) {
	if r.short(8) {
		return 0, syscall.EINVAL
	}
	h, err := fsys.handles.get(native.Uint64(r.body))
	if err != nil {
		return 0, err
	}
	if f, ok := h.(fsyncer); ok {
		return 0, f.fsync(r)
	}
	return 0, nil
}

// ioctlIn is the argument of an ioctl as FUSE hands it over.
type ioctlIn struct {
	cmd  uint32
	arg  uint64 // the caller's argument, an address for what has a payload
	data []byte // what was copied in: the encoded size where the number has the write direction
	out  []byte // the place for what is copied out; its length is the encoded size where the number has the read direction
}

func (fsys *fileSystem) wireIoctl(r *request) (int, error) {
	if r.short(32) {
		return 0, syscall.EINVAL
	}
	h, err := fsys.handles.get(native.Uint64(r.body))
	if err != nil {
		return 0, err
	}
	in := ioctlIn{cmd: native.Uint32(r.body[12:]), arg: native.Uint64(r.body[16:])}
	inSize, outSize := int(native.Uint32(r.body[24:])), int(native.Uint32(r.body[28:]))
	if inSize > len(r.body)-32 || outSize > len(r.out)-outHeaderSize-16 {
		return 0, syscall.EINVAL
	}
	in.data = r.body[32 : 32+inSize]
	in.out = r.out[outHeaderSize+16 : outHeaderSize+16+outSize]
	copy(in.out, in.data)
	i, ok := h.(ioctler)
	if !ok {
		return 0, syscall.ENOTTY
	}
	res, err := i.ioctl(r, &in)
	if err != nil {
		return 0, err
	}
	out := r.out[outHeaderSize:]
	clear(out[:16])
	native.PutUint32(out, uint32(res))
	return 16 + outSize, nil
}

func (fsys *fileSystem) wirePoll(r *request) (int, error) {
	if r.short(24) {
		return 0, syscall.EINVAL
	}
	h, err := fsys.handles.get(native.Uint64(r.body))
	if err != nil {
		return 0, err
	}
	// The wanted events stand at byte 60 of the packet, which go-fuse takes for padding.
	want := native.Uint32(r.body[20:])
	var kh uint64
	if native.Uint32(r.body[16:])&pollScheduleNot != 0 {
		kh = native.Uint64(r.body[8:])
	}
	revents := uint32(pollIn|pollOut|pollRdNorm|pollWrNorm) & want
	if p, ok := h.(poller); ok {
		revents = p.poll(want, kh)
		r.quiet(revents == 0) // he goes to sleep
	}
	out := r.out[outHeaderSize:]
	native.PutUint32(out, revents)
	native.PutUint32(out[4:], 0)
	return 8, nil
}
