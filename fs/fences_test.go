package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/poll"
)

var lastUnique atomic.Uint64

// asker makes requests of this process, whose memory and descriptors there are.
func asker(c *conn, node uint64) *request {
	return &request{c: c, node: node, unique: 2 * lastUnique.Add(1), uid: uint32(os.Getuid()), pid: uint32(os.Getpid()), out: make([]byte, bufSize)}
}

func mustTimeline(t testing.TB, fsys *fileSystem, name string) *timeline {
	t.Helper()
	n, err := fsys.timelines.create(name, caller{}, 0755)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustOpen(t testing.TB, c *conn, n node, flags uint32) handle {
	t.Helper()
	h, err := n.open(asker(c, n.id()), flags)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// contents reads a handle's first 4 KiB.
func contents(t testing.TB, h handle) string {
	t.Helper()
	p := make([]byte, 4096)
	n, err := h.(reader).read(nil, p, 0, true)
	if err != nil {
		t.Fatal(err)
	}
	return string(p[:n])
}

func TestTimelineValue(t *testing.T) {
	_, fsys, _ := testConn(t)
	n := mustTimeline(t, fsys, "tl")
	for _, s := range []struct {
		in    string
		err   error
		value uint64
	}{
		{"+1", nil, 1},
		{"7", nil, 7},
		{"7", nil, 7}, // its own value again changes nothing
		{"+0", nil, 7},
		{" +2\t", nil, 9},
		{"8", syscall.EINVAL, 9}, // only grows
		{"", syscall.EINVAL, 9},
		{"+", syscall.EINVAL, 9},
		{"++1", syscall.EINVAL, 9},
		{"-1", syscall.EINVAL, 9},
		{"+-1", syscall.EINVAL, 9},
		{"0x10", syscall.EINVAL, 9},
		{"1_0", syscall.EINVAL, 9},
		{"10 11", syscall.EINVAL, 9},
		{"10\n11", syscall.EINVAL, 9},
		{"18446744073709551616", syscall.EINVAL, 9},
		{"+18446744073709551615", syscall.EINVAL, 9}, // would overflow
		{"18446744073709551615", nil, 1<<64 - 1},
	} {
		if err := n.store(caller{}, s.in); !errors.Is(err, s.err) {
			t.Errorf("writing %q: %v, want %v", s.in, err, s.err)
		}
		if v := n.tl.Value(); v != s.value {
			t.Errorf("after writing %q the value is %d, want %d", s.in, v, s.value)
		}
	}
	n.tl.End()
	if err := n.store(caller{}, "+0"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("an ended timeline: %v, want ENOENT", err)
	}
}

func TestTimelineDir(t *testing.T) {
	c, fsys, a := testConn(t)
	d := fsys.dirs.timelines
	if _, err := d.ops.mkdir(d, caller{uid: 7, gid: 8}, "gpu0", 0751); err != nil {
		t.Fatal(err)
	}
	if _, err := d.ops.mkdir(d, caller{}, "gpu0", 0755); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("a second mkdir: %v, want EEXIST", err)
	}
	n := fsys.timelines.find("gpu0")
	modes := func() map[string]string {
		got := map[string]string{}
		for _, name := range []string{"value", "owner", "points"} {
			child, err := timelineOps.lookup(n.dir().(*dir), caller{}, name)
			if err != nil {
				t.Fatal(err)
			}
			var at fuse.Attr
			child.attr(&at)
			got[name] = fmt.Sprintf("%o %d:%d", at.Mode, at.Uid, at.Gid)
		}
		var at fuse.Attr
		n.point(3).attr(&at)
		got["3"] = fmt.Sprintf("%o %d:%d", at.Mode, at.Uid, at.Gid)
		return got
	}
	want := map[string]string{"value": "100640 7:8", "owner": "100600 7:8", "points": "40751 7:8", "3": "100440 7:8"}
	if diff := cmp.Diff(want, modes()); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
	// chmod and chown of the directory, and its files follow
	in := &fuse.SetAttrIn{}
	in.Valid, in.Mode, in.Owner.Uid = fuse.FATTR_MODE|fuse.FATTR_UID, 0777, 9
	if err := n.dir().(*dir).setattr(caller{}, in); err != nil {
		t.Fatal(err)
	}
	want = map[string]string{"value": "100666 9:8", "owner": "100666 9:8", "points": "40777 9:8", "3": "100444 9:8"}
	if diff := cmp.Diff(want, modes()); diff != "" {
		t.Errorf("modes after chmod 777 and chown 9 (-want +got):\n%s", diff)
	}

	h := mustOpen(t, c, n.point(3), syscall.O_RDONLY)
	if got := readPath(t, c, a, "timelines/gpu0/points/3"); got != "pending\n" {
		t.Errorf("a pending point reads %q", got)
	}
	if err := d.ops.rmdir(d, caller{}, "gpu0"); err != nil {
		t.Fatal(err)
	}
	if got := contents(t, h); got != "error -ENOENT\n" {
		t.Errorf("a point of a removed timeline reads %q", got)
	}
	if err := d.ops.rmdir(d, caller{}, "gpu0"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a second rmdir: %v, want ENOENT", err)
	}
	if _, err := n.point(4).open(asker(c, 1), syscall.O_RDONLY); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a point of an ended timeline: %v, want ENOENT", err)
	}
	h.release()
}

func TestTimelineOwner(t *testing.T) {
	type step struct {
		who, do string
		alive   bool
	}
	for name, steps := range map[string][]step{
		"one owner":                       {{"a", "w", true}, {"a", "close", false}},
		"a reader owns too":               {{"a", "r", true}, {"a", "close", false}},
		"the last of two":                 {{"a", "w", true}, {"b", "r", true}, {"a", "close", true}, {"b", "close", false}},
		"a look owns nothing":             {{"a", "r", true}, {"a", "read", true}, {"a", "close", true}},
		"a look beside an owner":          {{"a", "w", true}, {"b", "r", true}, {"b", "read", true}, {"b", "close", true}, {"a", "close", false}},
		"an owner that closes under one":  {{"a", "w", true}, {"b", "r", true}, {"a", "close", true}, {"b", "read", false}, {"b", "close", false}},
		"a writer may read and stays one": {{"a", "rw", true}, {"a", "read", true}, {"a", "close", false}},
	} {
		t.Run(name, func(t *testing.T) {
			c, fsys, _ := testConn(t)
			n := mustTimeline(t, fsys, "tl")
			child, err := timelineOps.lookup(n.dir().(*dir), caller{}, "owner")
			if err != nil {
				t.Fatal(err)
			}
			flags := map[string]uint32{"r": syscall.O_RDONLY, "w": syscall.O_WRONLY, "rw": syscall.O_RDWR}
			open := map[string]handle{}
			for _, s := range steps {
				switch s.do {
				case "close":
					open[s.who].release()
				case "read":
					contents(t, open[s.who])
				default:
					open[s.who] = mustOpen(t, c, child, flags[s.do])
				}
				if alive := fsys.timelines.find("tl") != nil; alive != s.alive || n.tl.Ended() == s.alive {
					t.Fatalf("after %s %s: found %v, ended %v; want alive %v", s.who, s.do, alive, n.tl.Ended(), s.alive)
				}
			}
		})
	}
}

func TestPointNames(t *testing.T) {
	_, fsys, _ := testConn(t)
	n := mustTimeline(t, fsys, "tl")
	d, err := timelineOps.lookup(n.dir().(*dir), caller{}, "points")
	if err != nil {
		t.Fatal(err)
	}
	find := func(name string) (node, error) { return pointsOps.lookup(d.(*dir), caller{}, name) }
	for _, name := range []string{"0", "7", "18446744073709551615"} {
		if _, err := find(name); err != nil {
			t.Errorf("points/%s: %v", name, err)
		}
	}
	for _, name := range []string{"abc", "-1", "+1", "18446744073709551616", " 7", "7 ", "0x7", "1e3", "000000000000000000007"} {
		if _, err := find(name); !errors.Is(err, syscall.ENOENT) {
			t.Errorf("points/%s: %v, want ENOENT", name, err)
		}
	}
	a, _ := find("7")
	b, _ := find("7")
	if a != b {
		t.Error("one point, two inodes")
	}
}

// notified counts the wakeups that went to the kernel for a poll handle.
func notified(a *answers, kh uint64) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.sent {
		if len(p) == outHeaderSize+8 && int32(native.Uint32(p[4:])) == notifyPoll && native.Uint64(p[outHeaderSize:]) == kh {
			n++
		}
	}
	return n
}

func TestPointPoll(t *testing.T) {
	c, fsys, a := testConn(t)
	n := mustTimeline(t, fsys, "tl")
	h := mustOpen(t, c, n.point(2), syscall.O_RDONLY).(*syncHandle)
	const all = unix.POLLIN | unix.POLLOUT | unix.POLLPRI | 0x40
	for range 3 {
		if got := h.poll(all, 55); got != 0 {
			t.Fatalf("a pending point is ready for %#x", got)
		}
	}
	if err := n.tl.Set(1); err != nil {
		t.Fatal(err)
	}
	if got := notified(a, 55); got != 0 {
		t.Errorf("%d wakeups for another point", got)
	}
	if err := n.tl.Set(2); err != nil {
		t.Fatal(err)
	}
	if got := notified(a, 55); got != 1 {
		t.Errorf("%d wakeups, want 1", got)
	}
	if got := h.poll(all, 55); got != unix.POLLIN {
		t.Errorf("a signaled point is ready for %#x, want POLLIN alone", got)
	}
	if got := h.poll(unix.POLLOUT, 55); got != 0 {
		t.Errorf("POLLOUT alone gives %#x", got)
	}
	h.release()

	// closed while it waits: nobody is woken
	h = mustOpen(t, c, n.point(3), syscall.O_RDONLY).(*syncHandle)
	h.poll(unix.POLLIN, 56)
	h.release()
	if err := n.tl.Set(3); err != nil {
		t.Fatal(err)
	}
	if got := notified(a, 56); got != 0 {
		t.Errorf("%d wakeups of a closed file", got)
	}
	if _, err := n.point(9).open(asker(c, 1), syscall.O_RDWR); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a point for writing: %v, want EACCES", err)
	}
}

func fencesNode(t testing.TB, fsys *fileSystem, n *bufferNode, name string) node {
	t.Helper()
	return fencesNodeOf(t, fsys, n, name, uint32(os.Getpid()))
}

// fencesNodeOf is what a thread finds.
func fencesNodeOf(t testing.TB, fsys *fileSystem, n *bufferNode, name string, tid uint32) node {
	t.Helper()
	f, err := stateBufferOps.lookup(fsys.stateDir(n).(*dir), caller{pid: tid}, name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFencesFile(t *testing.T) {
	c, fsys, a := testConn(t)
	openNew(t, c, a, "frame", 2)
	n := fsys.buffers.find("frame")
	mustTimeline(t, fsys, "gpu0")
	mustTimeline(t, fsys, "odd:name with blanks")
	w := mustOpen(t, c, fencesNode(t, fsys, n, "write_fences"), syscall.O_WRONLY).(writer)
	r := mustOpen(t, c, fencesNode(t, fsys, n, "read_fences"), syscall.O_WRONLY).(writer)
	for _, bad := range []string{
		"", "\n", ":", "gpu0", "gpu0:", ":7", "gpu0:abc", "gpu0:-1", "gpu0:+1", "gpu0: 7", "gpu0 :7", "gpu1:7",
		"gpu0:18446744073709551616", "gpu0:7:8", "gpu0:7\ngpu0:8\n", "gpu0:7 8", strings.Repeat("x", 4096) + ":1",
	} {
		if _, err := w.write(asker(c, 1), []byte(bad), 0, false); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("writing %.40q: %v, want EINVAL", bad, err)
		}
	}
	if got := len(n.buf.Resv().Slots(poll.Bookkeep)); got != 0 {
		t.Fatalf("%d fences came from bad rows", got)
	}
	for _, row := range []string{"gpu0:7\n", "odd:name with blanks:18446744073709551615"} {
		if k, err := w.write(asker(c, 1), []byte(row), 4711, false); err != nil || k != len(row) {
			t.Errorf("writing %q: %d, %v", row, k, err)
		}
	}
	if _, err := r.write(asker(c, 1), []byte("gpu0:9"), 0, false); err != nil {
		t.Error(err)
	}
	read := func(name string) string { return readPath(t, c, a, "state/frame/"+name) }
	const odd = `odd:name\040with\040blanks`
	if got, want := read("write_fences"), "gpu0 7 pending dmabuffs\n"+odd+" 18446744073709551615 pending dmabuffs\n"; got != want {
		t.Errorf("write_fences is %q, want %q", got, want)
	}
	if got, want := read("read_fences"), "gpu0 9 pending dmabuffs\n"; got != want {
		t.Errorf("read_fences is %q, want %q", got, want)
	}
	// a snapshot stays what it was, and tells how each fence ended
	snap := mustOpen(t, c, fencesNode(t, fsys, n, "write_fences"), syscall.O_RDWR)
	if got := snap.(poller).poll(unix.POLLIN|unix.POLLOUT, 0); got != unix.POLLOUT {
		t.Errorf("a pending snapshot opened O_RDWR is ready for %#x, want POLLOUT", got)
	}
	if _, err := w.write(asker(c, 1), []byte("gpu0:100"), 0, false); err != nil {
		t.Error(err)
	}
	if err := fsys.timelines.find("gpu0").tl.Set(7); err != nil {
		t.Fatal(err)
	}
	d := fsys.dirs.timelines
	if err := d.ops.rmdir(d, caller{}, "odd:name with blanks"); err != nil {
		t.Fatal(err)
	}
	if got, want := contents(t, snap), "gpu0 7 signaled dmabuffs\n"+odd+" 18446744073709551615 error -ENOENT dmabuffs\n"; got != want {
		t.Errorf("the snapshot is %q, want %q", got, want)
	}
	if got := snap.(poller).poll(unix.POLLIN, 0); got != unix.POLLIN {
		t.Errorf("a snapshot whose fences are done is ready for %#x", got)
	}
	snap.release()
	if got := n.buf.Resv().Ready(poll.In); got != 0 {
		t.Error("the fence that came after the snapshot does not hold the buffer up")
	}
	// removed, with a descriptor of its state still open
	if _, err := fsys.buffers.remove("frame"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.write(asker(c, 1), []byte("gpu0:200"), 0, false); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a fence for a removed buffer: %v, want ENOENT", err)
	}
}

// Each reader of a snapshot file has an inode of its own, so that an ioctl which
// names a descriptor means one snapshot.
func TestSnapshotInodes(t *testing.T) {
	c, fsys, a := testConn(t)
	openNew(t, c, a, "frame", 2)
	n := fsys.buffers.find("frame")
	mustTimeline(t, fsys, "tl")
	add := func(row string) {
		w := mustOpen(t, c, fencesNode(t, fsys, n, "write_fences"), syscall.O_WRONLY)
		if _, err := w.(writer).write(asker(c, 1), []byte(row), 0, false); err != nil {
			t.Fatal(err)
		}
		w.release()
	}
	fences := func(ino uint64) int {
		sf := fsys.syncs.find(ino, uint32(os.Getpid()))
		if sf == nil {
			return -1
		}
		return len(poll.Unwrap(sf.Fence()))
	}
	first := fencesNode(t, fsys, n, "write_fences")
	h1 := mustOpen(t, c, first, syscall.O_RDONLY) // nothing: a stub
	add("tl:1")
	if fencesNode(t, fsys, n, "write_fences") != first {
		t.Error("writers got an inode of their own")
	}
	if _, err := first.open(asker(c, first.id()), syscall.O_RDONLY); !errors.Is(err, syscall.ESTALE) {
		t.Fatalf("a second reader of one inode: %v, want ESTALE", err)
	}
	second := fencesNode(t, fsys, n, "write_fences")
	if second == first {
		t.Fatal("looking again gives the same inode")
	}
	h2 := mustOpen(t, c, second, syscall.O_RDONLY)
	one, two := fsys.syncs.find(first.id(), 1).Fence(), fsys.syncs.find(second.id(), 1).Fence()
	if !one.Signaled() || two.Signaled() || two.Seqno() != 1 {
		t.Errorf("the inodes lead to the wrong snapshots: %d %v, %d %v", one.Seqno(), one.Signaled(), two.Seqno(), two.Signaled())
	}
	// by /proc/<pid>/fd there is no name to look up again: the same inode it is
	if _, err := first.open(asker(c, first.id()), syscall.O_RDONLY); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("opened by its descriptor at once: %v", err)
	}
	h3, err := first.open(asker(c, first.id()), syscall.O_RDONLY)
	if err != nil {
		t.Fatalf("opened by its descriptor: %v", err)
	}
	if got := fences(first.id()); got != -1 {
		t.Errorf("two snapshots of one process on one inode: %d fences, want none found", got)
	}
	h3.release()
	if got := fences(first.id()); got != 1 {
		t.Errorf("one of them closed: %d fences, want the other's stub", got)
	}
	h1.release()
	h2.release()
	if got := fences(second.id()); got != -1 {
		t.Error("a closed snapshot is found")
	}
	if len(fsys.syncs.open)+len(fsys.syncs.snaps)+len(fsys.syncs.keys)+len(fsys.syncs.sent)+len(fsys.syncs.kept) != 0 {
		t.Errorf("left behind: %+v", &fsys.syncs)
	}
	// and one reader after another needs no new inode
	now := fencesNode(t, fsys, n, "write_fences")
	for range 3 {
		h := mustOpen(t, c, fencesNode(t, fsys, n, "write_fences"), syscall.O_RDONLY)
		h.release()
	}
	if fencesNode(t, fsys, n, "write_fences") != now {
		t.Error("a new inode although nobody reads")
	}
}

// Readers who come at once are each sent to an inode of their own, which nobody takes from them.
func TestSnapshotRace(t *testing.T) {
	c, fsys, a := testConn(t)
	openNew(t, c, a, "frame", 2)
	n := fsys.buffers.find("frame")
	by := func(n node, tid uint32) *request { r := asker(c, n.id()); r.pid = tid; return r }
	first := fencesNodeOf(t, fsys, n, "read_fences", 100)
	if _, err := first.open(by(first, 100), syscall.O_RDONLY); err != nil {
		t.Fatal(err)
	}
	const many = 50
	for tid := uint32(101); tid < 101+many; tid++ {
		if _, err := first.open(by(first, tid), syscall.O_RDONLY); !errors.Is(err, syscall.ESTALE) {
			t.Fatalf("thread %d opens a taken inode: %v", tid, err)
		}
	}
	inodes := map[uint64]bool{}
	for tid := uint32(101); tid < 101+many; tid++ {
		kept := fencesNodeOf(t, fsys, n, "read_fences", tid)
		if _, err := kept.open(by(kept, 99), syscall.O_RDONLY); !errors.Is(err, syscall.ESTALE) {
			t.Errorf("somebody else opens the inode that thread %d was sent to: %v", tid, err)
		}
		other := fencesNodeOf(t, fsys, n, "read_fences", 99)
		h, err := other.open(by(other, 99), syscall.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		h.release()
		if _, err := kept.open(by(kept, tid), syscall.O_RDONLY); err != nil {
			t.Errorf("thread %d, the second time: %v", tid, err)
		}
		inodes[kept.id()] = true
	}
	if len(inodes) != many || inodes[first.id()] {
		t.Errorf("%d readers have %d inodes", many, len(inodes))
	}
	// Those who never come back are not remembered for ever.
	for tid := uint32(1000); tid < 1000+2*maxAskers; tid++ {
		_, _ = first.open(by(first, tid), syscall.O_RDONLY)
	}
	if k := len(fsys.syncs.sent); k > maxAskers {
		t.Errorf("%d are remembered", k)
	}
}

func TestFenceBudget(t *testing.T) {
	c, _, _ := testConn(t)
	const limit = 8
	b := newFenceBudget(limit)
	tl := poll.NewTimeline(timelineDriver, "tl")
	sw := poll.NewSWSync("sw")
	for _, x := range []*poll.Timeline{tl, sw} {
		if err := b.join(x); err != nil {
			t.Fatal(err)
		}
	}
	r := asker(c, 1)
	held := map[uint64]*poll.Fence{}
	for i := uint64(1); i < limit; i++ {
		f, err := b.point(r, tl, 10*i)
		if err != nil {
			t.Fatal(err)
		}
		held[10*i] = f
	}
	swf, err := b.point(r, sw, 5)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []*poll.Timeline{tl, sw} {
		if _, err := b.point(r, x, 77); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("one too many of %s: %v, want ENOSPC", x.Name(), err)
		}
	}
	if f, err := b.point(r, tl, 20); err != nil || f != held[20] {
		t.Errorf("a point that is there: %v", err)
	}
	if f, err := b.point(r, tl, 0); err != nil || !f.Signaled() {
		t.Errorf("a point that has passed: %v", err)
	}
	if err := tl.Set(20); err != nil { // signals two: room for two
		t.Fatal(err)
	}
	for _, s := range []uint64{91, 92} {
		if held[s], err = b.point(r, tl, s); err != nil {
			t.Errorf("after a signal: %v", err)
		}
	}
	// what nobody holds makes room, however often
	for i := range uint64(5) {
		delete(held, 30)
		delete(held, 1000+i-1)
		if held[1000+i], err = b.point(r, tl, 1000+i); err != nil {
			t.Fatalf("after closing: %v", err)
		}
	}
	if got := b.pending.Load(); got != limit {
		t.Errorf("%d pending, want %d", got, limit)
	}
	if swf.Signaled() {
		t.Error("somebody signaled it")
	}
	// interrupted while there is no room
	cut := asker(c, 1)
	cut.Done()
	c.interrupt(cut.unique)
	b.collecting <- struct{}{} // somebody else collects
	if _, err := b.point(cut, tl, 5000); errno(c.log, err) != syscall.EINTR {
		t.Errorf("interrupted: %v, want EINTR", err)
	}
	<-b.collecting
	tl.End()
	sw.End()
	if got := b.pending.Load(); got != 0 {
		t.Errorf("%d pending after the end of all timelines", got)
	}
	for _, f := range held {
		if !f.Signaled() {
			t.Error("a point outlives its timeline")
		}
	}
}

func TestTimelineLimit(t *testing.T) {
	b := newFenceBudget(1)
	for range maxTimelines {
		if err := b.join(poll.NewSWSync("x")); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.join(poll.NewSWSync("x")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("one too many: %v, want ENOSPC", err)
	}
}

func TestStatusText(t *testing.T) {
	for status, want := range map[int]string{0: "pending", 1: "signaled", -2: "error -ENOENT", -110: "error -ETIMEDOUT", -4000: "error -4000"} {
		if got := statusText(status); got != want {
			t.Errorf("status %d is %q, want %q", status, got, want)
		}
	}
}
