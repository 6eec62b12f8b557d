package fs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// A shootdown is an fsync(2) of our own file.
//
// NOTIFY_INVAL_INODE alone has two faults. It launders dirty pages one by one,
// and a write(2) that crosses it is lost to readers: the page goes, a fault reads
// the old bytes of the memory, and only then the WRITE arrives. fsync(2) cures
// both: it writes back in large WRITEs, and while the kernel waits for our answer
// to FSYNC it holds the inode's lock, so that no write(2) is under way. There,
// in flushHandle.fsync, the pages are dropped.
//
// The fsync runs on threads of ours that share no descriptor with the rest of the
// process: a killed daemon's /dev/fuse then closes although such a thread still
// waits for an answer, which ends the wait (nothing is left in state D).
//
// Who already holds the inode's lock (WRITE and FSYNC requests are sent under it)
// must not wait for it: see inodeLocked.

// shoot is one shootdown under way.
type shoot struct {
	runs []exporter.Run
	zap  bool
}

type inodeLockedKey struct{}

// inodeLocked marks the handling of a request that the kernel sends with the
// inode's lock held, and whose pages it has written back.
func inodeLocked(ctx context.Context) context.Context {
	return context.WithValue(ctx, inodeLockedKey{}, true)
}

// Shoot implements exporter.Mapping: it launders the CPU's dirty pages and, with
// zap, unmaps the pages of the runs from every process. When it is interrupted
// (EINTR) the pages go all the same, a little later.
func (n *bufferNode) Shoot(ctx context.Context, runs []exporter.Run, zap bool) error {
	if len(runs) == 0 || n.fsys.conn == nil {
		return nil
	}
	n.shooting.Add(1)
	defer n.shooting.Add(-1)
	n.letGo()
	s := &shoot{runs, zap}
	if zap {
		n.fsys.events.add("shootdown", "buffer", n.label(), "runs", len(runs), "pages", pagesOf(runs))
	}
	if locked, _ := ctx.Value(inodeLockedKey{}).(bool); locked {
		if !zap {
			return nil // written back already
		}
		return n.inval(s)
	}
	return n.fsys.flushers.run(ctx, n, s)
}

func pagesOf(runs []exporter.Run) (n int64) {
	for _, r := range runs {
		n += r.N
	}
	return n
}

// manyRuns is where one notification over all is cheaper than one for each run.
// Between the runs nothing is cached.
const manyRuns = 16

// inval drops the pages of s.
func (n *bufferNode) inval(s *shoot) error {
	runs := s.runs
	if len(runs) > manyRuns {
		last := runs[len(runs)-1]
		runs = []exporter.Run{{First: runs[0].First, N: last.First + last.N - runs[0].First}}
	}
	for _, r := range runs {
		if err := n.fsys.conn.invalInode(n.id(), r.First*exporter.PageSize, r.N*exporter.PageSize); err != nil {
			return fmt.Errorf("shooting down pages %d+%d: %w", r.First, r.N, err)
		}
	}
	return nil
}

// flushHandle is our own open file of a buffer.
type flushHandle struct{ node *bufferNode }

var _ fsyncer = (*flushHandle)(nil)

func (h *flushHandle) openOut() openOut {
	if h.node.kind() == exporter.MapDirect {
		return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH}
	}
	return openOut{flags: fuse.FOPEN_KEEP_CACHE | fuse.FOPEN_NOFLUSH}
}

func (h *flushHandle) release() {}

// fsync is where the shootdown happens: the kernel has written everything back
// and holds the inode's lock.
func (h *flushHandle) fsync(*request) error {
	s := h.node.shoot.Load()
	if s == nil || !s.zap {
		return nil
	}
	return h.node.inval(s)
}

// flushPrefix begins the hidden names by which the flushers open files.
const flushPrefix = ".dmabuffs-flush-"

const nFlushers = 2

// flushers are the threads that fsync our own files.
type flushers struct {
	fsys   *fileSystem
	secret string

	mu      sync.Mutex
	threads [nFlushers]chan *flushJob
	tids    sync.Map // uint32 -> true
	stopped bool

	quit chan struct{} // closed by stop; the queues never are: somebody may be sending
}

type flushJob struct {
	node *bufferNode
	s    *shoot // nil: close its file
	done chan error
}

func newFlushers(fsys *fileSystem) *flushers {
	var b [16]byte
	rand.Read(b[:])
	return &flushers{fsys: fsys, secret: hex.EncodeToString(b[:]), quit: make(chan struct{})}
}

// owns reports whether the thread is one of ours.
func (f *flushers) owns(tid uint32) bool {
	_, ok := f.tids.Load(tid)
	return ok
}

// lookup resolves a hidden name for our own threads.
func (f *flushers) lookup(c caller, name string) (node, error) {
	id, ok := strings.CutPrefix(name, flushPrefix+f.secret+"-")
	if !ok || !f.owns(c.pid) {
		return nil, syscall.ENOENT
	}
	no, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return nil, syscall.ENOENT
	}
	return f.fsys.node(no)
}

// thread returns the queue of the thread that serves the node, nil after stop.
func (f *flushers) thread(n *bufferNode) chan *flushJob {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return nil
	}
	i := n.id() % nFlushers
	if f.threads[i] == nil {
		f.threads[i] = make(chan *flushJob)
		go f.serve(f.threads[i])
	}
	return f.threads[i]
}

// run has s done. Without a path to our own mount the notification must do alone.
func (f *flushers) run(ctx context.Context, n *bufferNode, s *shoot) error {
	if f.fsys.dir == "" {
		return n.inval(s)
	}
	return f.do(ctx, &flushJob{node: n, s: s, done: make(chan error, 1)})
}

func (f *flushers) do(ctx context.Context, j *flushJob) error {
	q := f.thread(j.node)
	if q == nil {
		return syscall.ENOTCONN
	}
	f.fsys.conn.handOff()
	select {
	case q <- j:
	case <-ctx.Done():
		return ctx.Err()
	case <-f.quit:
		return syscall.ENOTCONN
	case <-f.fsys.conn.ended:
		return syscall.ENOTCONN
	}
	select {
	case err := <-j.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-f.fsys.conn.ended:
		return syscall.ENOTCONN
	}
}

// drop closes our file of a buffer, so that it does not keep the mount busy. It may
// wait for a shootdown of that or another buffer: until ctx ends.
func (f *flushers) drop(ctx context.Context, n *bufferNode) {
	if f.fsys.dir != "" {
		_ = f.do(ctx, &flushJob{node: n, done: make(chan error, 1)})
	}
}

// dropLater does so without waiting: a device that gives up must not wait for what it
// has given up waiting for.
func (f *flushers) dropLater(n *bufferNode) {
	if f.fsys.dir != "" && !n.dropping.Swap(true) {
		go f.drop(context.Background(), n)
	}
}

// dropAll does so for all.
func (f *flushers) dropAll() {
	for _, b := range f.fsys.registry.Buffers() {
		if n, ok := f.fsys.nodes.get(b.ID()).(*bufferNode); ok {
			f.mu.Lock()
			idle := f.threads[n.id()%nFlushers] == nil
			f.mu.Unlock()
			if !idle {
				f.drop(context.Background(), n)
			}
		}
	}
}

func (f *flushers) stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stopped {
		f.stopped = true
		close(f.quit)
	}
}

// serve is one thread. It never gives its thread back: with its own table of
// descriptors it is good for nothing else.
func (f *flushers) serve(q chan *flushJob) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread's table is what /proc/self/fd shows: it keeps that. This
		// goroutine holds it meanwhile, so that the other is on another thread.
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.serve(q)
		}()
		<-done
		runtime.UnlockOSThread()
		return
	}
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		f.fsys.log.Error("a flusher without its own descriptors", "err", err)
	} else if err := unix.CloseRange(3, ^uint(0), 0); err != nil {
		f.fsys.log.Error("a flusher that keeps descriptors", "err", err)
	}
	f.tids.Store(uint32(unix.Gettid()), true)
	open := map[uint64]int{}
	for {
		select {
		case j := <-q:
			j.done <- f.job(open, j)
		case <-f.quit:
			for _, fd := range open {
				unix.Close(fd)
			}
			return
		}
	}
}

func (f *flushers) job(open map[uint64]int, j *flushJob) error {
	id := j.node.id()
	fd, have := open[id]
	if j.s == nil {
		j.node.dropping.Store(false)
		if have {
			delete(open, id)
			unix.Close(fd)
		}
		return nil
	}
	if !have {
		var err error
		path := f.fsys.dir + "/" + flushPrefix + f.secret + "-" + strconv.FormatUint(id, 10)
		if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			// Moved, covered, or its owner took the right to read away.
			f.fsys.log.Debug("shootdown without fsync", "err", &os.PathError{Op: "open", Path: path, Err: err})
			return j.node.inval(j.s)
		}
	}
	j.node.shoot.Store(j.s)
	err := unix.Fsync(fd)
	j.node.shoot.Store(nil)
	if j.node.usedByDevice() {
		open[id] = fd // the device keeps the mount busy anyway
	} else {
		delete(open, id)
		unix.Close(fd)
	}
	return err
}
