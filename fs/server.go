package fs

import (
	"errors"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// fileSystem is what one mount shows: the tables, and the domain objects in them.
type fileSystem struct {
	opts    Options
	log     *slog.Logger
	conn    *conn
	nodes   *nodeTable
	handles *handleTable
	started time.Time
	dir     string // absolute path of the mount point, "" where it cannot be named

	registry  *exporter.Registry
	quota     *exporter.Quota
	buffers   *bufferDir
	devices   *deviceDir
	timelines *timelineDir
	events    *eventLog
	metrics   *metrics
	flushers  *flushers
	syncs     syncTable
	control   control

	passthrough atomic.Bool // the kernel takes backing files from us
	toldNoPass  sync.Once
	dirs        rootDirs
}

// Server is a mounted dmabuffs.
type Server struct {
	fsys *fileSystem
	conn *conn
	dir  string
	fd   int

	guard    *guard // nil: none
	waitOnce sync.Once
	waitErr  error

	// ballast is never touched, so it is no memory; but the collector counts it, and
	// a small heap is not collected every few milliseconds.
	ballast []byte
}

const ballastSize = 32 << 20

// Mount mounts a dmabuffs at dir and serves it until it is unmounted. When it
// returns the mount answers. Errors: those of mount(2) and open(2) of /dev/fuse,
// with what to do about them in their text; EINVAL for bad options.
func Mount(dir string, o Options) (*Server, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	fsys, err := newFileSystem(o)
	if err != nil {
		return nil, err
	}
	fd, err := openMount(abs, &o)
	if err != nil {
		return nil, err
	}
	s := &Server{fsys: fsys, dir: abs, fd: fd, ballast: make([]byte, ballastSize)}
	fsys.dir = abs
	if o.FuseFD > 0 {
		s.dir = passedInDir(fd, dir) // somebody else mounted it, somewhere
		fsys.dir = s.dir
	}
	s.conn = newConn(fd, fsys, o.Log)
	fsys.serve(s.conn)
	s.conn.start()
	select {
	case <-s.conn.initialized:
	case <-s.conn.ended:
		unix.Close(fd)
		return nil, errors.New("the kernel closed the connection before its first request")
	case <-time.After(30 * time.Second):
		_ = unmountPath(s.dir)
		unix.Close(fd)
		return nil, errors.New("no first request came from the kernel within 30 s")
	}
	if err := s.conn.probePassthrough(); err != nil {
		fsys.passthrough.Store(false)
	}
	if fsys.dir != "" {
		tuneWriteback(abs, o.Log)
	}
	s.protect()
	return s, nil
}

// protect starts the guard, where the mount can be seen.
func (s *Server) protect() {
	if s.fsys.dir == "" {
		return
	}
	var st unix.Stat_t
	err := unix.Stat(s.fsys.dir, &st)
	if err == nil {
		s.guard, err = startGuard(unix.Minor(st.Dev), s.fsys.dir)
	}
	if err != nil {
		s.fsys.log.Warn("no guard: if this process is killed at a bad moment, its mount has to be aborted by hand", "err", err)
		s.guard = nil
	}
}

// newFileSystem builds the tables; nothing is mounted yet.
func newFileSystem(o Options) (*fileSystem, error) {
	o.fill()
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	fsys := &fileSystem{
		opts:    o,
		log:     o.Log,
		nodes:   newNodeTable(),
		handles: newHandleTable(),
		started: time.Now(),
	}
	fsys.quota = exporter.NewQuota(o.Size, o.NrBuffers)
	fsys.registry = exporter.NewRegistry(exporter.Config{
		Quota:          fsys.quota,
		ContiguousSize: o.Contiguous,
		Log:            o.Log,
	})
	if _, err := fsys.registry.Lookup(o.Exporter); err != nil {
		return nil, err
	}
	fsys.events = newEventLog()
	fsys.buffers = newBufferDir(fsys)
	fsys.devices = newDeviceDir(fsys)
	fsys.timelines = newTimelineDir(fsys)
	fsys.flushers = newFlushers(fsys)
	fsys.metrics = newMetrics(fsys)
	fsys.makeRoot()
	return fsys, nil
}

// serve ties the tables to a connection.
func (fsys *fileSystem) serve(c *conn) {
	fsys.conn = c
	c.fsys = fsys
	c.server = fuse.NewProtocolServer(&rawFS{RawFileSystem: fuse.NewDefaultRawFileSystem(), fsys: fsys}, &fuse.MountOptions{
		Name:                     "dmabuffs",
		MaxWrite:                 maxWrite,
		MaxReadAhead:             maxWrite,
		MaxBackground:            64,
		MaxStackDepth:            1, // allows passthrough
		ExplicitDataCacheControl: true,
		ExtraCapabilities:        fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_READDIRPLUS_AUTO,
		Logger:                   slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	})
	fsys.passthrough.Store(true) // until the kernel says no
}

// Dir is the mount point, an absolute path; "" where Options.FuseFD is mounted out of sight.
func (s *Server) Dir() string { return s.dir }

// Wait returns when the file system was unmounted and every request is answered.
func (s *Server) Wait() error {
	s.waitOnce.Do(func() {
		<-s.conn.ended
		s.conn.readers.Wait()
		s.fsys.shutdown()
		s.guard.end()
		s.waitErr = unix.Close(s.fd)
		s.ballast = nil
	})
	return s.waitErr
}

// Unmount detaches the mount point; Wait then returns. Errors: *BusyError, with who holds it.
func (s *Server) Unmount() error {
	s.fsys.flushers.dropAll()
	return unmountPath(s.dir)
}

// Detach takes the mount point away although it is busy; serving goes on until
// the last user is gone.
func (s *Server) Detach() error { return detachPath(s.dir) }

// Abort ends the connection: every call on the mount fails from now on.
func (s *Server) Abort() {
	abortConnection(s.dir)
	abortFD(s.fd) // where it was detached
}

// shutdown lets go of everything, in the order in which a client's death would.
func (fsys *fileSystem) shutdown() {
	fsys.flushers.stop()
	for _, h := range fsys.handles.drain() {
		h.release()
	}
	fsys.timelines.endAll()
	fsys.buffers.removeAll()
	fsys.events.close()
}

// Leaked names the buffers that are still alive after Wait: none, unless somebody leaks.
func (s *Server) Leaked() []string {
	var out []string
	for _, b := range s.fsys.registry.Buffers() {
		out = append(out, b.ExpName())
	}
	return out
}

// rootDirs are the directories that are always there.
type rootDirs struct {
	root, buffers, exporters, devices, timelines, state *dir
	byExporter                                          map[string]*dir
	files                                               map[string]node
}

// Ids of what is always there. Buffers have the numbers from 2 on.
const (
	idRoot    = fuse.FUSE_ROOT_ID
	idBuffers = 1<<47 + iota
	idExporters
	idDevices
	idTimelines
	idState
	idFiles      = 1<<47 + 16
	idByExporter = 1<<47 + 64
)

func (fsys *fileSystem) makeRoot() {
	uid, gid := fsys.opts.UID, fsys.opts.GID
	mk := func(id uint64, mode uint32, ops *dirOps) *dir {
		d := &dir{ident: id, fsys: fsys, ops: ops, meta: newMeta(mode, uid, gid)}
		fsys.nodes.pin(d)
		return d
	}
	mode := fsys.opts.Mode
	d := &fsys.dirs
	d.buffers = mk(idBuffers, mode, &buffersOps)
	d.devices = mk(idDevices, mode, devicesOps)
	d.timelines = mk(idTimelines, mode, timelinesOps)
	d.state = mk(idState, mode&^0222, stateOps)
	d.exporters = mk(idExporters, mode&^0222, exportersOps)
	d.byExporter = map[string]*dir{}
	for i, name := range fsys.registry.Names() {
		e := mk(uint64(idByExporter+i), mode, &exporterOps)
		e.obj = name
		d.byExporter[name] = e
	}
	d.files = fsys.reportFiles(idFiles)
	for _, n := range d.files {
		fsys.nodes.pin(n)
	}
	d.root = mk(idRoot, mode&^0222, rootOps)
}

var rootOps = &dirOps{
	lookup: func(d *dir, c caller, name string) (node, error) {
		fsys := d.fsys
		if n := fsys.dirs.static(name); n != nil {
			return n, nil
		}
		return fsys.hidden(c, name)
	},
	list: func(d *dir) []fuse.DirEntry {
		var out []fuse.DirEntry
		for _, name := range []string{"buffers", "bufinfo", "devices", "events", "exporters", "metrics", "state", "timelines", "version"} {
			if n := d.fsys.dirs.static(name); n != nil {
				out = append(out, entryOf(name, n))
			}
		}
		return out
	},
}

func (d *rootDirs) static(name string) node {
	switch name {
	case "buffers":
		return d.buffers
	case "exporters":
		return d.exporters
	case "devices":
		return d.devices
	case "timelines":
		return d.timelines
	case "state":
		return d.state
	}
	if n, ok := d.files[name]; ok {
		return n
	}
	return nil
}

// exportersOps: exporters/ has one directory each.
var exportersOps = &dirOps{
	lookup: func(d *dir, _ caller, name string) (node, error) {
		if e := d.fsys.dirs.byExporter[name]; e != nil {
			return e, nil
		}
		return nil, syscall.ENOENT
	},
	list: func(d *dir) []fuse.DirEntry {
		var out []fuse.DirEntry
		for _, name := range d.fsys.registry.Names() {
			out = append(out, entryOf(name, d.fsys.dirs.byExporter[name]))
		}
		return out
	},
}

func (fsys *fileSystem) statfs(out *fuse.StatfsOut) {
	total, used := uint64(fsys.opts.Size), uint64(fsys.quota.Used())
	free := total - min(total, used)
	files, have := uint64(fsys.opts.NrBuffers), uint64(fsys.buffers.len())
	*out = fuse.StatfsOut{
		Bsize: 4096, Frsize: 4096, NameLen: nameMax,
		Blocks: total / 4096, Bfree: free / 4096, Bavail: free / 4096,
		Files: files, Ffree: files - min(files, have),
	}
}
