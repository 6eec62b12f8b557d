package run

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxWorkers bounds the notifications under way, and with them our threads and descriptors.
	maxWorkers = 64
	// watchEvery is how long a call may keep the receiver before another one takes over,
	// watchIdle after how many quiet rounds nobody looks any more.
	watchEvery = 2 * time.Millisecond
	watchIdle  = 50
)

// What a handler may say besides a value or an errno.
var (
	errContinue = errors.New("not ours: the kernel goes on")
	errGone     = errors.New("the caller is gone")
	errAnswered = errors.New("answered, with the descriptor")
)

// supervisor answers the notifications of one listener.
type supervisor struct {
	listener int
	root     int    // the mount, O_PATH
	proc     int    // /proc
	dev      uint64 // st_dev of the mount
	ctl      *controlDir
	world    *world
	trace    *tracer // nil: quiet

	current  atomic.Pointer[term] // who receives now
	watching atomic.Bool
	workers  atomic.Int32
	spare    chan *term // workers that wait for a term
}

// term is one worker's time as the receiver. There is one at a time: the kernel wakes
// all who wait for a notification.
type term struct {
	over atomic.Bool   // somebody else receives now
	n    atomic.Uint64 // odd while a call is handled
}

// start starts the first worker.
func (s *supervisor) start() {
	s.spare = make(chan *term)
	s.workers.Add(1)
	s.begin(new(term), nil)
}

// begin gives a term to a worker, or to a new one.
func (s *supervisor) begin(t *term, w *worker) {
	s.current.Store(t)
	if w == nil {
		w = newWorker(s)
	}
	go w.serve(t)
}

// watch replaces the receiver when a call keeps it: its caller's memory may be
// backed by whom it likes. It ends when nothing is to be watched.
func (s *supervisor) watch() {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	t, n, quiet := (*term)(nil), uint64(0), 0
	for range tick.C {
		now := s.current.Load()
		count := now.n.Load()
		switch {
		case now == t && count == n && count%2 == 1:
			s.replace(now)
			quiet = 0
		case now == t && count == n:
			if quiet++; quiet >= watchIdle {
				s.watching.Store(false)
				if now.n.Load() == n || s.watching.Swap(true) {
					return
				}
				quiet = 0 // a call began meanwhile, and saw us watching
			}
		default:
			quiet = 0
		}
		t, n = now, count
	}
}

// replace lets another worker receive, unless there are too many already.
func (s *supervisor) replace(t *term) {
	next := new(term)
	select {
	case s.spare <- next:
		s.current.Store(next)
	default:
		if s.workers.Add(1) > maxWorkers {
			s.workers.Add(-1)
			return
		}
		s.begin(next, nil)
	}
	t.over.Store(true)
}

// ended reports whether no task has the filter any more.
func (s *supervisor) ended() bool {
	p := []unix.PollFd{{Fd: int32(s.listener)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0
}

// wait returns when the last task that has the filter ended.
func (s *supervisor) wait() {
	p := []unix.PollFd{{Fd: int32(s.listener)}}
	for {
		n, err := unix.Poll(p, -1)
		if err == nil && n == 1 {
			return
		}
	}
}

// worker is one thread, and the buffers of the call that it is in.
type worker struct {
	s    *supervisor
	ctl  *ctlFile
	n    notif
	resp notifResp
	st   unix.Statx_t
	buf  []byte // what is read from the caller
	arg  []byte // of our own ioctls
	name [64]byte
}

func newWorker(s *supervisor) *worker {
	return &worker{s: s, ctl: s.ctl.file(), buf: make([]byte, maxCopy), arg: make([]byte, maxCopy)}
}

// maxCopy is the most that is read of a caller in one piece, in bytes: more than an
// ioctl's number can tell, a path, and the items of UDMABUF_CREATE_LIST.
const maxCopy = udmabufListLimit*24 + 4096

// allSignals: an interrupted ADDFD that carries the answer gives 0 to the caller.
const allSignals = ^uint64(0)

func (w *worker) serve(t *term) {
	runtime.LockOSThread() // never given back: its mask is ours
	if err := setMask(allSignals); err != nil {
		panic(err)
	}
	for w.receive(t) {
		t = <-w.s.spare
	}
}

// receive answers one call after the other while the term lasts; false: the last task
// that has the filter has ended.
func (w *worker) receive(t *term) bool {
	s := w.s
	for !t.over.Load() {
		switch e := ioctlRecv(s.listener, &w.n); {
		case e == 0:
		case e == unix.EINTR:
			continue
		case s.ended(): // ENOENT
			return false
		default: // ENOENT: it was killed before we came
			continue
		}
		t.n.Add(1)
		if !s.watching.Load() && !s.watching.Swap(true) {
			go s.watch()
		}
		w.answer()
		t.n.Add(1)
	}
	return true
}

// answer handles the call in w.n.
func (w *worker) answer() {
	c := call{w: w, id: w.n.ID, tid: w.n.PID, nr: uint32(w.n.Nr), args: w.n.Args, made: -1}
	val, err := w.handle(&c)
	if w.s.trace != nil && err != errContinue && err != errGone {
		w.s.trace.call(&c, val, err) // before the caller goes on: lines are in order
	}
	w.reply(&c, val, err)
	if c.made >= 0 {
		unix.Close(c.made) // behind the answer: nobody waits for it
	}
}

// reply sends the answer, unless it went with the descriptor or nobody waits for it.
func (w *worker) reply(c *call, val int64, err error) {
	w.resp = notifResp{ID: c.id}
	switch {
	case err == errAnswered, err == errGone:
		return
	case err == errContinue:
		w.resp.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
	case err != nil:
		var e syscall.Errno
		if !errors.As(err, &e) || e == 0 {
			e = syscall.EIO
		}
		w.resp.Error = -int32(e)
	default:
		w.resp.Val = val
	}
	_ = ioctlSend(w.s.listener, &w.resp) // ENOENT: it was killed meanwhile
}

// handle decides whose a call is.
func (w *worker) handle(c *call) (int64, error) {
	switch c.nr {
	case unix.SYS_IOCTL:
		return w.ioctl(c)
	case sysOpen, sysCreat, unix.SYS_OPENAT, unix.SYS_OPENAT2:
		return w.open(c)
	case sysStat, sysLstat, sysFstatat, unix.SYS_STATX:
		return w.stat(c)
	case sysAccess, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2:
		return w.access(c)
	case sysReadlink, unix.SYS_READLINKAT:
		return w.readlink(c)
	case unix.SYS_GETXATTR, unix.SYS_LGETXATTR, unix.SYS_LISTXATTR, unix.SYS_LLISTXATTR:
		return w.xattr(c)
	}
	return 0, errContinue
}

// call is one notified system call.
type call struct {
	w    *worker
	id   uint64
	tid  uint32
	nr   uint32
	args [6]uint64

	made int    // our copy of the descriptor that the caller was given, or -1
	put  *int32 // its number, where that went into a struct
	note string // what tracing shows
}

// valid: the thread that the call's number names is still the caller.
func (c *call) valid() bool { return ioctlIDValid(c.w.s.listener, &c.id) == 0 }

// read copies len(p) bytes in. EFAULT: not all of it can be read. errContinue: the caller is
// not for us to look into.
func (c *call) read(addr uint64, p []byte) error {
	n, e := readMemory(c.tid, addr, p)
	return c.copied(n, len(p), e)
}

// write copies p out, if the caller still waits. EFAULT: not all of it could be
// written. errGone.
func (c *call) write(addr uint64, p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if !c.valid() {
		return errGone
	}
	n, e := writeMemory(c.tid, addr, p)
	return c.copied(n, len(p), e)
}

func (c *call) copied(n, want int, e syscall.Errno) error {
	switch {
	case e == syscall.EPERM || e == syscall.ENOSYS:
		return errContinue
	case e == syscall.ESRCH:
		return errGone
	case e != 0, n < want:
		return syscall.EFAULT
	}
	return nil
}

// file is the inode of one of the caller's descriptors, 0 when it is closed or not of our mount.
func (c *call) file(fd int32) uint64 {
	if fd < 0 {
		return 0
	}
	st := &c.w.st
	if statxAt(c.w.s.proc, fdPath(c.w.name[:], c.tid, fd), st) != 0 {
		return 0
	}
	if unix.Mkdev(st.Dev_major, st.Dev_minor) != c.w.s.dev {
		return 0
	}
	return st.Ino
}

// send gives the caller a descriptor, which is the call's result: in one go, unless
// it is to be traced first.
func (c *call) send(fd int, cloexec bool) (int64, error) {
	if c.w.s.trace != nil {
		n, err := c.addFD(fd, cloexec, 0)
		return int64(n), err
	}
	n, err := c.addFD(fd, cloexec, unix.SECCOMP_ADDFD_FLAG_SEND)
	if err != nil {
		return 0, err
	}
	return int64(n), errAnswered
}

// add gives the caller a descriptor, which goes into a struct: the answer comes later.
func (c *call) add(fd int, cloexec bool) (int32, error) {
	n, err := c.addFD(fd, cloexec, 0)
	if err != nil {
		return 0, err
	}
	number := int32(n)
	c.put = &number
	return number, nil
}

// addFD takes fd over. Errors: EMFILE, of the caller's limit; errGone.
func (c *call) addFD(fd int, cloexec bool, flags uint32) (int, error) {
	c.made = fd
	a := notifAddFD{ID: c.id, Flags: flags, SrcFD: uint32(fd)}
	if cloexec {
		a.NewFDFlags = unix.O_CLOEXEC
	}
	n, e := ioctlAddFD(c.w.s.listener, &a)
	switch e {
	case 0:
		return n, nil
	case unix.ENOENT:
		return 0, errGone
	}
	return 0, e
}

// comm is the command name of the caller's thread, at most 15 bytes.
func (c *call) comm() string {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.FormatUint(uint64(c.tid), 10), "comm"))
	if err != nil {
		return ""
	}
	if n := len(text); n > 0 && text[n-1] == '\n' {
		text = text[:n-1]
	}
	return string(text)
}
