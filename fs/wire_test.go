package fs

import (
	"context"
	"log/slog"
	"sync"
	"syscall"
	"testing"
	"time"
)

// testConn is a connection without a kernel: packets go in by handle, answers are kept.
func testConn(t testing.TB) (*conn, *fileSystem, *answers) {
	t.Helper()
	log := slog.New(slog.DiscardHandler)
	fsys, err := newFileSystem(Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	c := newConn(-1, fsys, log)
	fsys.serve(c)
	fsys.passthrough.Store(false)
	a := &answers{}
	c.write = a.take
	t.Cleanup(func() {
		c.end()
		fsys.shutdown()
	})
	return c, fsys, a
}

type answers struct {
	mu   sync.Mutex
	sent [][]byte
}

func (a *answers) take(iov [][]byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var p []byte
	for _, b := range iov {
		p = append(p, b...)
	}
	a.sent = append(a.sent, p)
	return nil
}

// last is the errno and payload of the newest answer.
func (a *answers) last(t testing.TB) (syscall.Errno, []byte) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.sent) == 0 {
		t.Fatal("nothing was answered")
	}
	p := a.sent[len(a.sent)-1]
	if int(native.Uint32(p)) != len(p) {
		t.Fatalf("an answer of %d bytes says %d", len(p), native.Uint32(p))
	}
	return syscall.Errno(-int32(native.Uint32(p[4:]))), p[outHeaderSize:]
}

func (a *answers) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.sent)
}

// packet builds a request.
func packet(op uint32, unique, node uint64, body ...[]byte) []byte {
	p := make([]byte, inHeaderSize)
	for _, b := range body {
		p = append(p, b...)
	}
	native.PutUint32(p, uint32(len(p)))
	native.PutUint32(p[4:], op)
	native.PutUint64(p[8:], unique)
	native.PutUint64(p[16:], node)
	native.PutUint32(p[32:], 4242) // pid
	return p
}

func u32s(v ...uint32) []byte {
	p := make([]byte, 4*len(v))
	for i, x := range v {
		native.PutUint32(p[4*i:], x)
	}
	return p
}

func u64s(v ...uint64) []byte {
	p := make([]byte, 8*len(v))
	for i, x := range v {
		native.PutUint64(p[8*i:], x)
	}
	return p
}

const (
	opLookup = 1
	opCreate = 35
)

// initPacket is what Linux 6.18 sends first.
func initPacket() []byte {
	return packet(opInit, 2, 0, u32s(7, 45, 128<<10, 0xffffffff, 0xffffffff), make([]byte, 44))
}

func TestWireInit(t *testing.T) {
	c, _, a := testConn(t)
	out := make([]byte, bufSize)
	c.handle(initPacket(), out)
	e, p := a.last(t)
	if e != 0 || native.Uint32(p) != 7 {
		t.Fatalf("INIT: errno %d, major %d", e, native.Uint32(p))
	}
	select {
	case <-c.initialized:
	default:
		t.Error("the connection does not know that it is initialized")
	}
	flags := native.Uint32(p[12:])
	if flags&(1<<3) == 0 || flags&(1<<16) != 0 {
		t.Errorf("flags %#x: want ATOMIC_O_TRUNC, and no write-back cache, which would take sizes away from us", flags)
	}
}

// openNew creates a buffer through the wire and returns its node id and handle.
func openNew(t testing.TB, c *conn, a *answers, name string, unique uint64) (id, fh uint64) {
	t.Helper()
	out := make([]byte, bufSize)
	c.handle(packet(opCreate, unique, idBuffers, u32s(syscall.O_RDWR, 0644, 022, 0), append([]byte(name), 0)), out)
	e, p := a.last(t)
	if e != 0 {
		t.Fatalf("CREATE %s: %v", name, e)
	}
	return native.Uint64(p), native.Uint64(p[128:])
}

func TestWirePoll(t *testing.T) {
	c, _, a := testConn(t)
	id, fh := openNew(t, c, a, "b", 2)
	out := make([]byte, bufSize)
	for _, tc := range []struct{ want, got uint32 }{
		{1, 1}, {4, 4}, {5, 5}, {0, 0}, {2, 0}, {0x40, 0}, {0x45, 5},
	} {
		c.handle(packet(opPoll, 4, id, u64s(fh, 77), u32s(1, tc.want)), out)
		e, p := a.last(t)
		if e != 0 || native.Uint32(p) != tc.got {
			t.Errorf("poll for %#x of a buffer without fences: errno %d, %#x, want %#x", tc.want, e, native.Uint32(p), tc.got)
		}
	}
	c.handle(packet(opPoll, 4, id, u64s(999, 77), u32s(1, 1)), out)
	if e, _ := a.last(t); e != syscall.EBADF {
		t.Errorf("poll of an unknown handle: %v, want EBADF", e)
	}
}

// An INTERRUPT that comes before its request waits is remembered, not asked for
// again; one that names a waiting request cancels it.
func TestWireInterrupt(t *testing.T) {
	c, _, a := testConn(t)
	out := make([]byte, bufSize)
	n := a.count()
	c.handle(packet(opInterrupt, 13, 0, u64s(12)), out)
	if a.count() != n {
		t.Fatal("an INTERRUPT was answered: the kernel takes that for EAGAIN, and hands out nothing else before the next")
	}
	busy := &request{c: c, unique: 12}
	select {
	case <-busy.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("a request that was interrupted before it waits goes on waiting")
	}
	if errno(c.log, busy.Err()) != syscall.EINTR {
		t.Errorf("it ends with %v, want EINTR", busy.Err())
	}
	busy.finish()
	for i := range uint64(3 * maxEarly) { // of requests that were answered already
		c.handle(packet(opInterrupt, 2*i+15, 0, u64s(2*i+14)), out)
	}
	if k := len(c.early); k != maxEarly {
		t.Errorf("%d INTERRUPTs are remembered, want the last %d", k, maxEarly)
	}
	over := &request{c: c, unique: 2*(3*maxEarly-1) + 14}
	over.finish()
	if k := len(c.early); k != maxEarly-1 {
		t.Errorf("%d INTERRUPTs are remembered after one of their requests ended", k)
	}
	r := &request{c: c, unique: 10}
	waited := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		d := r.Done()
		close(started)
		<-d
		waited <- r.Err()
	}()
	<-started
	n = a.count()
	c.handle(packet(opInterrupt, 11, 0, u64s(10)), out)
	select {
	case err := <-waited:
		if errno(c.log, err) != syscall.EINTR {
			t.Errorf("the interrupted request ends with %v, want EINTR", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the interrupted request goes on waiting")
	}
	if a.count() != n {
		t.Error("an INTERRUPT that was obeyed needs no answer")
	}
	r.finish()
	if c.interrupt(10) {
		t.Error("a finished request can still be interrupted")
	}
}

// fuse_notify_delete_out: parent, child, length of the name, padding; then the name and a NUL.
func TestWireDelete(t *testing.T) {
	c, _, a := testConn(t)
	c.deleteEntry(7, 9, "gpu0")
	p := a.sent[len(a.sent)-1]
	want := append(u64s(7, 9), append(u32s(4, 0), "gpu0\x00"...)...)
	if int(native.Uint32(p)) != len(p) || native.Uint32(p[4:]) != notifyDelete || native.Uint64(p[8:]) != 0 || string(p[outHeaderSize:]) != string(want) {
		t.Errorf("NOTIFY_DELETE is % x", p)
	}
}

// When the connection ends, everything that waits is let go, also what asks later.
func TestWireEnd(t *testing.T) {
	c, _, _ := testConn(t)
	before, after := &request{c: c, unique: 1}, &request{c: c, unique: 3}
	d := before.Done()
	c.end()
	for _, ch := range []<-chan struct{}{d, after.Done()} {
		select {
		case <-ch:
		case <-time.After(10 * time.Second):
			t.Fatal("a request waits for a dead connection")
		}
	}
	if before.Err() != context.Canceled || after.Err() != context.Canceled {
		t.Error("Err does not say Canceled")
	}
}

// Every truncation of every request is answered with an errno, or is a complete request.
func TestWireTruncated(t *testing.T) {
	c, _, a := testConn(t)
	out := make([]byte, bufSize)
	id, fh := openNew(t, c, a, "b", 2)
	full := [][]byte{
		packet(opOpen, 4, id, u32s(2, 0)),
		packet(opRead, 4, id, u64s(fh, 0), u32s(4096, 0), u64s(0), u32s(2, 0)),
		packet(opWrite, 4, id, u64s(fh, 0), u32s(16, 0), u64s(0), u32s(2, 0), make([]byte, 16)),
		packet(opIoctl, 4, id, u64s(fh), u32s(0, 0x40086200), u64s(0x1000), u32s(8, 0), u64s(1)),
		packet(opPoll, 4, id, u64s(fh, 1), u32s(1, 5)),
		packet(opFsync, 4, id, u64s(fh), u32s(0, 0)),
		packet(opFlush, 4, id, u64s(fh, 0, 0)),
		packet(opInterrupt, 5, 0, u64s(4)),
		packet(opLookup, 4, idBuffers, []byte("b\x00")),
		packet(opGetattr, 4, id, make([]byte, 16)),
	}
	for _, p := range full {
		for n := inHeaderSize; n < len(p); n++ {
			before := a.count()
			q := append([]byte(nil), p[:n]...)
			native.PutUint32(q, uint32(n))
			c.handle(q, out)
			if a.count() != before+1 && native.Uint32(p[4:]) != opInterrupt {
				t.Fatalf("opcode %d cut to %d of %d bytes got %d answers", native.Uint32(p[4:]), n, len(p), a.count()-before)
			}
		}
	}
	for n := 0; n < inHeaderSize; n++ {
		c.handle(make([]byte, n), out) // nobody to answer
	}
}

// FuzzWire: whatever arrives is answered with an errno or dropped, never a panic
// that ends the daemon, and never more than one answer each.
func FuzzWire(f *testing.F) {
	f.Add(initPacket())
	f.Add(packet(opLookup, 2, 1, []byte("buffers\x00")))
	f.Add(packet(opCreate, 2, idBuffers, u32s(2, 0644, 022, 0), []byte("x\x00")))
	f.Add(packet(opOpen, 2, idBuffers, u32s(2, 0)))
	f.Add(packet(opRead, 2, idRoot, u64s(1, 0), u32s(1<<31, 0), u64s(0), u32s(2, 0)))
	f.Add(packet(opWrite, 2, idRoot, u64s(1, 1<<62), u32s(16, 1), u64s(0), u32s(2, 0), make([]byte, 16)))
	f.Add(packet(opIoctl, 2, idRoot, u64s(1), u32s(0, 0x40086200), u64s(0), u32s(1<<31, 1<<31)))
	f.Add(packet(opPoll, 2, idRoot, u64s(1, 1), u32s(1, 5)))
	f.Add(packet(opBatchForge, 2, 0, u32s(1<<30, 0)))
	f.Add(packet(9, 2, idDevices, u32s(0755, 0), []byte("gpu\x00")))
	f.Add(packet(9, 2, idTimelines, u32s(0755, 0), []byte("t\x00")))
	f.Add(packet(12, 2, idBuffers, u64s(idBuffers), []byte("a\x00b\x00")))
	f.Add(packet(28, 2, 1, u64s(1, 0), u32s(4096, 0), u64s(0), u32s(0, 0)))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, _, a := testConn(t)
		if len(in) > bufSize {
			return
		}
		out := make([]byte, bufSize)
		openNew(t, c, a, "b", 2)
		before := a.count()
		if len(in) >= inHeaderSize && native.Uint32(in[4:]) == opIoctl {
			return // may rightly wait for fences that nobody signals
		}
		c.handle(in, out)
		// one answer; INVAL_ENTRY and the like have unique 0
		n := 0
		for _, p := range a.sent[before:] {
			if native.Uint64(p[8:]) != 0 {
				n++
			}
		}
		if n > 1 {
			t.Errorf("%d answers", n)
		}
	})
}

// What of a request's time is ours: the same packets without the kernel and its two
// thread switches.
func BenchmarkWire(b *testing.B) {
	c, _, a := testConn(b)
	id, fh := openNew(b, c, a, "b", 2)
	last := make([]byte, 64)
	c.write = func(iov [][]byte) error { copy(last, iov[0]); return nil }
	rd := &reading{c: c}
	rd.over.Store(true) // no kernel to hand off to
	out := make([]byte, bufSize)
	open := packet(opOpen, 4, id, u32s(2, 0))
	release := packet(opRelease, 6, id, u64s(0, 0, 0))
	b.Run("open+release", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.handleBy(rd, open, out)
			copy(release[inHeaderSize:], last[outHeaderSize:outHeaderSize+8])
			c.handleBy(rd, release, out)
		}
	})
	for name, p := range map[string][]byte{
		"poll": packet(opPoll, 4, id, u64s(fh, 0), u32s(0, 5)),
		"sync": packet(opIoctl, 4, id, u64s(fh), u32s(0, 0x40086200), u64s(0x1000), u32s(8, 0), u64s(3)),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c.handleBy(rd, p, out)
			}
		})
	}
}
