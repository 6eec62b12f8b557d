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
	minWorkers = 4
	// maxWorkers bounds the notifications under way, and with them our threads and descriptors.
	maxWorkers = 64
	// stuckAfter is how long all workers may be busy before one more is started.
	stuckAfter = 5 * time.Millisecond
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

	workers atomic.Int32
	idle    atomic.Int32
	crowded chan struct{} // room for one: all workers are busy
}

// start starts the workers. They never end.
func (s *supervisor) start() {
	s.crowded = make(chan struct{}, 1)
	for range minWorkers {
		s.startWorker()
	}
	go s.watch()
}

func (s *supervisor) startWorker() {
	s.workers.Add(1)
	s.idle.Add(1)
	go newWorker(s).serve()
}

// watch adds a worker whenever all have been busy for a while.
func (s *supervisor) watch() {
	for range s.crowded {
		time.Sleep(stuckAfter)
		if s.idle.Load() > 0 || s.workers.Load() >= maxWorkers {
			continue
		}
		s.startWorker()
	}
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

func (w *worker) serve() {
	runtime.LockOSThread() // never given back: its mask is ours
	if err := setMask(allSignals); err != nil {
		panic(err)
	}
	for {
		switch e := ioctlRecv(w.s.listener, &w.n); e {
		case 0:
		case unix.ENOENT: // it was killed before we came
			if w.s.ended() {
				return
			}
			continue
		default: // EINTR
			if e != unix.EINTR && w.s.ended() {
				return
			}
			continue
		}
		if w.s.idle.Add(-1) == 0 {
			select {
			case w.s.crowded <- struct{}{}:
			default:
			}
		}
		w.answer()
		w.s.idle.Add(1)
	}
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
