package exporter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// wantDomain compares the first line and the numbers of pages.
func wantDomain(t *testing.T, b *Buffer, first string, cpu, device int64) {
	t.Helper()
	want := fmt.Sprintf("%s\ncpu_pages %d\ndevice_pages %d\n", first, cpu, device)
	if got := b.Domain(); got != want {
		t.Fatalf("domain %q, want %q", got, want)
	}
}

func TestShootdown(t *testing.T) {
	for _, exp := range []string{"system", "contiguous"} {
		t.Run(exp, func(t *testing.T) {
			ctx := bounded(t)
			r := NewRegistry(Config{ContiguousSize: 1 << 20})
			b := create(t, r, exp, 20*PageSize)
			c := mapped(b)
			d := &device{name: "gpu0"}
			wantDomain(t, b, "none", 0, 0)
			wantErrno(t, b.SyncForDevice(ctx, d, ToDevice), syscall.EINVAL) // not attached
			must(t, b.Attach(d))
			wantErrno(t, b.SyncForDevice(ctx, d, ToDevice), syscall.EINVAL) // not mapped
			sgt, err := b.Map(ctx, d, Bidirectional)
			must(t, err)
			wantErrno(t, b.SyncForDevice(ctx, d, None), syscall.EINVAL)
			wantErrno(t, b.SyncForCPU(ctx, d, None), syscall.EINVAL)

			must(t, c.store(3*PageSize, 30))
			must(t, c.store(4*PageSize, 40))
			_, err = c.load(19 * PageSize)
			must(t, err)
			wantDomain(t, b, "cpu", 3, 0)
			wantByte(t, "before the shootdown", memoryByte(t, b, 3*PageSize), nil, 0)

			must(t, b.SyncForDevice(ctx, d, Bidirectional))
			runs, calls := c.shots()
			wantRuns(t, runs, Run{3, 2}, Run{19, 1})
			if calls != 1 {
				t.Fatalf("%d calls of Shoot", calls)
			}
			wantDomain(t, b, "device gpu0", 0, 20)
			wantByte(t, "what the device sees", memoryByte(t, b, 3*PageSize), nil, 30)
			setMemory(t, b, 3*PageSize, 31)

			// A CPU page comes back while the device works, and goes again at its end.
			v, err := c.load(3 * PageSize)
			wantByte(t, "fault during device work", v, err, 31)
			wantDomain(t, b, "device gpu0", 1, 19)
			setMemory(t, b, 3*PageSize, 32)
			must(t, b.SyncForCPU(ctx, d, Bidirectional))
			runs, _ = c.shots()
			wantRuns(t, runs, Run{3, 1})
			wantDomain(t, b, "cpu", 0, 0)
			v, err = c.load(3 * PageSize)
			wantByte(t, "after device work", v, err, 32)

			s := b.Stats()
			if s.Shootdowns != 2 || s.PagesZapped != 4 || s.BytesLaundered != 2*PageSize || s.Faults != 5 || s.PagesFaulted != 5 || s.FaultsBy[42] != 5 || s.Conflicts != 0 {
				t.Fatalf("%+v", s)
			}
			// A device that only read has made nothing stale.
			must(t, b.SyncForDevice(ctx, d, ToDevice))
			c.shots()
			_, err = c.load(5 * PageSize)
			must(t, err)
			must(t, b.SyncForCPU(ctx, d, ToDevice))
			if runs, _ := c.shots(); runs != nil {
				t.Fatalf("shot %v for a reader", runs)
			}
			// Nothing to do costs no call.
			must(t, b.Shootdown(ctx))
			c.shots()
			must(t, b.SyncForDevice(ctx, d, ToDevice))
			must(t, b.SyncForDevice(ctx, d, ToDevice))
			if _, calls := c.shots(); calls != 0 {
				t.Fatal("shot down nothing")
			}
			wantDomain(t, b, "device gpu0", 0, 20)
			b.Unmap(d, sgt, Bidirectional)
			b.Detach(d) // in the middle of its work
			wantDomain(t, b, "cpu", 0, 0)
		})
	}
}

func TestTwoDevicesAtWork(t *testing.T) {
	ctx := bounded(t)
	b := create(t, NewRegistry(Config{}), "system", 4*PageSize)
	d, e := &device{name: "gpu0"}, &device{name: "vpu\n0"}
	attached(t, b, d, ToDevice)
	attached(t, b, e, ToDevice)
	must(t, b.SyncForDevice(ctx, d, ToDevice))
	must(t, b.SyncForDevice(ctx, e, ToDevice))
	wantDomain(t, b, `device vpu\0120`, 0, 4)
	must(t, b.SyncForCPU(ctx, e, ToDevice))
	wantDomain(t, b, "device gpu0", 0, 4)
	must(t, b.SyncForCPU(ctx, d, ToDevice))
	must(t, b.SyncForCPU(ctx, d, ToDevice)) // twice
	wantDomain(t, b, "cpu", 0, 0)
}

func TestShootFails(t *testing.T) {
	ctx := bounded(t)
	b := create(t, NewRegistry(Config{}), "system", 4*PageSize)
	c := mapped(b)
	d := &device{name: "gpu0"}
	attached(t, b, d, Bidirectional)
	must(t, c.store(0, 1))
	c.fail = syscall.ENOTCONN
	wantErrno(t, b.SyncForDevice(ctx, d, Bidirectional), syscall.ENOTCONN)
	wantDomain(t, b, "cpu", 1, 0) // its page is not forgotten
	ended, cancel := context.WithCancel(ctx)
	cancel()
	wantErrno(t, b.SyncForDevice(ended, d, Bidirectional), syscall.EINTR)
	c.fail = nil
	must(t, b.SyncForDevice(ctx, d, Bidirectional))
	wantByte(t, "laundered at last", memoryByte(t, b, 0), nil, 1)
	if s := b.Stats(); s.Shootdowns != 1 || s.PagesZapped != 1 {
		t.Fatalf("%+v", s)
	}
}

// blockedShoot blocks until released.
type blockedShoot struct {
	once           sync.Once
	entered, leave chan struct{}
}

func blocking() *blockedShoot {
	return &blockedShoot{entered: make(chan struct{}), leave: make(chan struct{})}
}

func (s *blockedShoot) Shoot(ctx context.Context, _ []Run, _ bool) error {
	s.once.Do(func() { close(s.entered) })
	select {
	case <-s.leave:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestTransitionsTakeTurns: while one is under way a second waits, until interrupted,
// and faults, write-back, read(2) and write(2) wait for neither.
func TestTransitionsTakeTurns(t *testing.T) {
	for _, exp := range []string{"system", "noncoherent"} {
		t.Run(exp, func(t *testing.T) {
			ctx := bounded(t)
			b := create(t, NewRegistry(Config{}), exp, 4*PageSize)
			c := mapped(b)
			must(t, c.store(0, 1))
			s := blocking()
			b.SetMapping(s)
			transition := func(ctx context.Context) error {
				if exp == "noncoherent" {
					return b.BeginCPUAccess(ctx, FromDevice)
				}
				return b.Shootdown(ctx)
			}
			first := make(chan error, 1)
			go func() { first <- transition(ctx) }()
			<-s.entered
			second, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
			defer cancel()
			wantErrno(t, transition(second), syscall.EINTR)

			p := make([]byte, PageSize)
			_, err := b.Fault(p, PageSize, 7)
			must(t, err)
			_, err = b.Launder(p, 0)
			must(t, err)
			_, err = b.Read(ctx, p, 0)
			must(t, err)
			_, err = b.Write(ctx, p, 0)
			must(t, err)
			_ = b.Domain()
			_ = b.Stats()
			close(s.leave)
			must(t, <-first)
			b.SetMapping(nil)
			must(t, transition(ctx))
		})
	}
}

func TestInterruptedShoot(t *testing.T) {
	b := create(t, NewRegistry(Config{}), "system", PageSize)
	must(t, mapped(b).store(0, 1))
	s := blocking()
	b.SetMapping(s)
	ctx, cancel := context.WithCancel(bounded(t))
	done := make(chan error, 1)
	go func() { done <- b.Shootdown(ctx) }()
	<-s.entered
	cancel()
	wantErrno(t, <-done, syscall.EINTR)
	wantDomain(t, b, "cpu", 1, 0)
}

func TestConflicts(t *testing.T) {
	ctx := bounded(t)
	b := create(t, NewRegistry(Config{}), "system", PageSize)
	d := &device{name: "gpu0"}
	attached(t, b, d, Bidirectional)
	alice, bob := WithCaller(ctx, "1 alice"), WithCaller(ctx, "2 bob")
	must(t, b.BeginCPUAccess(alice, Bidirectional))
	must(t, b.BeginCPUAccess(alice, FromDevice)) // nesting
	must(t, b.BeginCPUAccess(bob, ToDevice))
	must(t, b.SyncForDevice(ctx, d, ToDevice)) // allowed
	if s := b.Stats(); s.Conflicts != 2 || s.ConflictsBy["1 alice"] != 1 || s.ConflictsBy["2 bob"] != 1 {
		t.Fatalf("%+v", s)
	}
	must(t, b.EndCPUAccess(bob, ToDevice))
	must(t, b.EndCPUAccess(bob, ToDevice)) // once too often: nothing
	must(t, b.EndCPUAccess(alice, FromDevice))
	must(t, b.SyncForDevice(ctx, d, ToDevice))
	if s := b.Stats(); s.Conflicts != 3 || s.ConflictsBy["1 alice"] != 2 {
		t.Fatalf("%+v", s)
	}
	b.ForgetBrackets("1 alice")
	must(t, b.SyncForDevice(ctx, d, ToDevice))
	if s := b.Stats(); s.Conflicts != 3 {
		t.Fatalf("%+v", s)
	}
	if Caller(ctx) != "kernel" || Caller(alice) != "1 alice" {
		t.Fatal("labels")
	}
}

func TestStatsAreBounded(t *testing.T) {
	b := create(t, NewRegistry(Config{}), "system", PageSize)
	p := make([]byte, 1)
	for pid := range uint32(10000) {
		_, err := b.Fault(p, 0, pid)
		must(t, err)
	}
	s := b.Stats()
	if len(s.FaultsBy) != maxWho+1 || s.FaultsBy[^uint32(0)] != 10000-maxWho || s.Faults != 10000 {
		t.Fatal(len(s.FaultsBy), s.FaultsBy[^uint32(0)])
	}
	s.FaultsBy[5] = 99
	if b.Stats().FaultsBy[5] != 1 {
		t.Fatal("not a copy")
	}
}

// TestCoherent: nothing is shot down, as the CPU maps the memory itself; and where it
// cannot, the buffer is kept coherent as system is.
func TestCoherent(t *testing.T) {
	ctx := bounded(t)
	r := NewRegistry(Config{})
	b := create(t, r, "coherent", 3*PageSize)
	c := mapped(b)
	d := &device{name: "gpu0"}
	attached(t, b, d, Bidirectional)
	v := VMA{Shared: true, Length: PageSize}
	must(t, b.Mmap(&v))
	if v.Kind != MapPassthrough || v.File == nil {
		t.Fatalf("%+v", v)
	}
	wantDomain(t, b, "none", 0, 0)
	_, err := b.Write(ctx, []byte{1}, 0)
	must(t, err)
	wantDomain(t, b, "cpu", 3, 0)
	must(t, b.SyncForDevice(ctx, d, Bidirectional))
	wantDomain(t, b, "device gpu0", 0, 3)
	must(t, b.SyncForCPU(ctx, d, Bidirectional))
	if _, calls := c.shots(); calls != 0 || b.Stats().Shootdowns != 0 {
		t.Fatal("shot down what is coherent")
	}

	for name, fall := range map[string]func(b *Buffer, c *pageCache){
		"told":    func(b *Buffer, _ *pageCache) { b.NoPassthrough() },
		"faulted": func(_ *Buffer, c *pageCache) { _, _ = c.load(0) },
	} {
		t.Run(name, func(t *testing.T) {
			b := create(t, r, "coherent", 3*PageSize)
			c := mapped(b)
			attached(t, b, d, Bidirectional)
			fall(b, c)
			v := VMA{Shared: true, Length: PageSize}
			must(t, b.Mmap(&v))
			if v.Kind != MapCached || !b.PassthroughRefused() || !strings.HasSuffix(b.Domain(), "\nfallback page cache\n") {
				t.Fatalf("%+v, %q", v, b.Domain())
			}
			must(t, c.store(PageSize, 5))
			must(t, b.SyncForDevice(ctx, d, Bidirectional))
			wantByte(t, "device", memoryByte(t, b, PageSize), nil, 5)
			setMemory(t, b, PageSize, 6)
			must(t, b.SyncForCPU(ctx, d, Bidirectional))
			got, err := c.load(PageSize)
			wantByte(t, "cpu", got, err, 6)
		})
	}
}

func TestNoPassthroughOnlyForPassthrough(t *testing.T) {
	b := create(t, NewRegistry(Config{}), "system", PageSize)
	b.NoPassthrough()
	if b.PassthroughRefused() || strings.Contains(b.Domain(), "fallback") {
		t.Fatal("system never had it")
	}
}

// TestReadWrite is read(2) and write(2), on every exporter.
func TestReadWrite(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 1 << 20})
	for _, exp := range r.Names() {
		t.Run(exp, func(t *testing.T) {
			ctx := bounded(t)
			b := create(t, r, exp, 10000)
			data := fill(5000, 2)
			n, err := b.Write(ctx, data, 3000)
			if n != 5000 || err != nil {
				t.Fatal(n, err)
			}
			n, err = b.Write(ctx, data, 9000)
			if n != 1000 || err != nil {
				t.Fatal(n, err)
			}
			_, err = b.Write(ctx, data, 10000)
			wantErrno(t, err, syscall.EFBIG)
			n, err = b.Write(ctx, nil, 10000)
			if n != 0 || err != nil {
				t.Fatal(n, err)
			}
			want := make([]byte, 10000)
			copy(want[3000:], data)
			copy(want[9000:], data)
			got := make([]byte, 20000)
			for what, read := range map[string]func() (int, error){
				"read":   func() (int, error) { return b.Read(ctx, got, 0) },
				"fault":  func() (int, error) { return b.Fault(got, 0, 1) },
				"device": func() (int, error) { return b.ReadPages(got, 0) },
			} {
				n, err := read()
				must(t, err)
				wantBytes(t, what, got[:n], want)
			}
			for _, off := range []int64{10000, 1 << 62} {
				if n, err := b.Read(ctx, got, off); n != 0 || err != nil {
					t.Fatal(n, err)
				}
				if n, err := b.Fault(got, off, 1); n != 0 || err != nil {
					t.Fatal(n, err)
				}
				if n, err := b.Launder(got, off); n != len(got) || err != nil {
					t.Fatal(n, err)
				}
			}
			n, err = b.Launder(fill(8192, 5), 4096) // the end is dropped
			if n != 8192 || err != nil {
				t.Fatal(n, err)
			}
			must(t, b.Flush(ctx))
			copy(want[4096:], fill(8192, 5))
			n, err = b.ReadPages(got, 0)
			must(t, err)
			wantBytes(t, "laundered", got[:n], want)
			for _, err := range []error{
				second(b.Read(ctx, got, -1)), second(b.Write(ctx, got, -1)), second(b.Fault(got, -1, 0)), second(b.Launder(got, -1)),
				second(b.ReadPages(got, -1)), second(b.WritePages(got, -1)), b.PunchHole(-1, 1), b.PunchHole(0, 0), b.Allocate(0, 10001),
			} {
				wantErrno(t, err, syscall.EINVAL)
			}
			must(t, b.PunchHole(5000, 1<<40))
			clear(want[5000:])
			n, err = b.Read(ctx, got, 0)
			must(t, err)
			wantBytes(t, "after a hole", got[:n], want)
			must(t, b.Allocate(0, 10000))
			must(t, b.Resize(6000))
			must(t, b.Resize(12000))
			n, err = b.Read(ctx, got, 0)
			must(t, err)
			wantBytes(t, "resized", got[:n], append(want[:6000:6000], make([]byte, 6000)...))
			if s := b.Stats(); s.Writes != 4 || s.Reads != 5 {
				t.Fatalf("%+v", s)
			}
		})
	}
}

func TestTruncateForgetsPages(t *testing.T) {
	b := create(t, NewRegistry(Config{}), "system", 10*PageSize)
	c := mapped(b)
	for i := range int64(10) {
		must(t, c.store(i*PageSize, 1))
	}
	must(t, b.Resize(4*PageSize+1))
	wantDomain(t, b, "cpu", 5, 0)
	must(t, b.Shootdown(bounded(t)))
	runs, _ := c.shots()
	wantRuns(t, runs, Run{0, 5})
}

// TestNoncoherent: what is stale, and until when, is the same every time.
func TestNoncoherent(t *testing.T) {
	for _, evict := range []bool{false, true} { // what the kernel does with its pages must not matter
		t.Run(fmt.Sprint("evict=", evict), func(t *testing.T) {
			ctx := bounded(t)
			b := create(t, NewRegistry(Config{}), "noncoherent", 4*PageSize)
			v := VMA{Shared: true}
			must(t, b.Mmap(&v))
			if v.Kind != MapDirect {
				t.Fatal(v.Kind)
			}
			c := mapped(b)
			d := &device{name: "npu0"}
			attached(t, b, d, Bidirectional)
			kernel := func() {
				if evict {
					for i := range int64(4) {
						must(t, c.evict(i))
					}
				}
			}
			load := func(what string, off int64, want byte) {
				t.Helper()
				kernel()
				got, err := c.load(off)
				wantByte(t, what, got, err, want)
				kernel()
			}
			device := func(what string, off int64, want byte) {
				t.Helper()
				kernel()
				must(t, b.SyncForDevice(ctx, d, ToDevice))
				wantByte(t, what, memoryByte(t, b, off), nil, want)
				must(t, b.SyncForCPU(ctx, d, ToDevice))
			}
			setMemory(t, b, 0, 1)
			load("first touch", 0, 1)
			setMemory(t, b, 0, 2)
			load("no bracket: stale", 0, 1)
			must(t, b.BeginCPUAccess(ctx, ToDevice)) // for writing: nothing is dropped
			load("a bracket for writing: stale", 0, 1)
			must(t, b.EndCPUAccess(ctx, ToDevice))
			must(t, b.BeginCPUAccess(ctx, FromDevice))
			load("bracket", 0, 2)
			must(t, c.store(1, 11))
			device("before END: stale", 1, 0)
			must(t, b.EndCPUAccess(ctx, FromDevice))
			device("after END", 1, 11)

			must(t, c.store(PageSize, 20))
			device("no bracket: stale", PageSize, 0)
			kernel()
			must(t, b.Flush(ctx))
			device("after fsync", PageSize, 20)
			setMemory(t, b, PageSize, 21)
			must(t, b.Flush(ctx))
			load("fsync drops nothing: stale", PageSize, 20)

			// read(2) and write(2) have brackets of their own.
			must(t, c.store(2*PageSize, 30))
			must(t, c.evict(2)) // the kernel writes the range back first
			var p [1]byte
			_, err := b.Read(ctx, p[:], 2*PageSize)
			wantByte(t, "read(2)", p[0], err, 30)
			device("after read(2)", 2*PageSize, 30)
			setMemory(t, b, 2*PageSize, 31)
			_, err = b.Read(ctx, p[:], 2*PageSize)
			wantByte(t, "read(2) of a device's write", p[0], err, 31)
			load("mapped: stale", 2*PageSize, 30)
			_, err = b.Write(ctx, []byte{32}, 2*PageSize+1)
			must(t, err)
			must(t, c.evict(2)) // the kernel drops the range
			device("after write(2)", 2*PageSize+1, 32)
			load("mapped, what was written", 2*PageSize+1, 32)
			load("mapped, beside it: stale", 2*PageSize, 30)
			must(t, b.BeginCPUAccess(ctx, Bidirectional))
			load("bracket", 2*PageSize, 31)
			load("bracket", PageSize, 21)
			must(t, b.EndCPUAccess(ctx, Bidirectional))

			// START hands over what was not handed over.
			must(t, c.store(3*PageSize, 40))
			must(t, b.BeginCPUAccess(ctx, FromDevice))
			wantByte(t, "handed over", memoryByte(t, b, 3*PageSize), nil, 40)
			load("bracket", 3*PageSize, 40)
			must(t, b.EndCPUAccess(ctx, FromDevice))
			must(t, b.Resize(4*PageSize)) // same size
		})
	}
}

func TestNoncoherentFailedBegin(t *testing.T) {
	ctx := bounded(t)
	b := create(t, NewRegistry(Config{}), "noncoherent", PageSize)
	c := mapped(b)
	must(t, c.store(0, 1))
	c.fail = syscall.EIO
	wantErrno(t, b.BeginCPUAccess(ctx, FromDevice), syscall.EIO)
	wantErrno(t, b.EndCPUAccess(ctx, FromDevice), syscall.EIO)
	wantErrno(t, b.Flush(ctx), syscall.EIO)
	c.fail = nil
	must(t, b.EndCPUAccess(ctx, FromDevice))
	wantByte(t, "handed over", memoryByte(t, b, 0), nil, 1)
}

// TestDomainModel goes through random steps of CPU and device on one buffer and
// compares every byte seen with a plain model; each exporter is coherent under the brackets.
func TestDomainModel(t *testing.T) {
	for _, exp := range []string{"system", "contiguous", "noncoherent"} {
		t.Run(exp, func(t *testing.T) { rapid.Check(t, func(t *rapid.T) { domainModel(t, exp) }) })
	}
}

func domainModel(t *rapid.T, exp string) {
	const n = 6
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	r := NewRegistry(Config{ContiguousSize: 1 << 20})
	e, _ := r.Lookup(exp)
	b, err := e.Create(n * PageSize)
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(err)
	c := mapped(b)
	d := &device{name: "gpu0"}
	check(b.Attach(d))
	sgt, err := b.Map(ctx, d, Bidirectional)
	check(err)
	var model [n]byte
	cpu := map[int64]bool{} // pages that must be the CPU's
	atWork := false
	page := rapid.Int64Range(0, n-1)
	touch := func(p int64) { cpu[p] = true }
	t.Repeat(map[string]func(*rapid.T){
		"cpu stores": func(t *rapid.T) {
			if atWork {
				t.Skip("the device works")
			}
			p := page.Draw(t, "page")
			model[p] = byte(rapid.IntRange(0, 255).Draw(t, "value"))
			check(b.BeginCPUAccess(ctx, Bidirectional))
			check(c.store(p*PageSize, model[p]))
			check(b.EndCPUAccess(ctx, Bidirectional))
			touch(p)
		},
		"cpu loads": func(t *rapid.T) {
			p := page.Draw(t, "page")
			if exp != "noncoherent" || !atWork {
				check(b.BeginCPUAccess(ctx, FromDevice))
				got, err := c.load(p * PageSize)
				check(err)
				if got != model[p] && !atWork {
					t.Fatalf("the CPU sees %d in page %d, want %d", got, p, model[p])
				}
				check(b.EndCPUAccess(ctx, FromDevice))
				touch(p)
			}
		},
		"cpu writes": func(t *rapid.T) {
			if atWork {
				t.Skip("the device works")
			}
			p := page.Draw(t, "page")
			model[p]++
			check(c.write(ctx, []byte{model[p]}, p*PageSize))
			touch(p)
		},
		"kernel evicts": func(t *rapid.T) { check(c.evict(page.Draw(t, "page"))) },
		"device begins": func(t *rapid.T) {
			if !atWork {
				check(b.SyncForDevice(ctx, d, Bidirectional))
				atWork = true
				clear(cpu)
			}
		},
		"device writes": func(t *rapid.T) {
			if !atWork {
				t.Skip("not at work")
			}
			p := page.Draw(t, "page")
			var got [1]byte
			_, err := b.ReadPages(got[:], p*PageSize)
			check(err)
			if got[0] != model[p] {
				t.Fatalf("the device sees %d in page %d, want %d", got[0], p, model[p])
			}
			model[p] += 3
			_, err = b.WritePages([]byte{model[p]}, p*PageSize)
			check(err)
		},
		"device ends": func(t *rapid.T) {
			if atWork {
				check(b.SyncForCPU(ctx, d, Bidirectional))
				atWork = false
				clear(cpu)
			}
		},
		"": func(t *rapid.T) {
			if exp == "noncoherent" {
				return
			}
			for p := range int64(n) { // exactly the pages touched since the last transition
				if b.dom.cpu.has(p) != cpu[p] {
					t.Fatalf("page %d with the CPU: %v", p, !cpu[p])
				}
			}
		},
	})
	b.Unmap(d, sgt, Bidirectional)
	b.Detach(d)
	b.Put()
	if r.phys.used() != 0 || r.Len() != 0 {
		t.Fatal("left behind")
	}
}

// TestNeverStale has one writer that is now the CPU, now a device, and readers that
// map and fault all the time: no load that begins after a write was done sees less.
func TestNeverStale(t *testing.T) {
	const n, steps = 8, 3000
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	ctx := bounded(t)
	b := create(t, NewRegistry(Config{}), "system", n*PageSize)
	c := mapped(b)
	d := &device{name: "gpu0"}
	attached(t, b, d, Bidirectional)
	var done [n]atomic.Uint64 // what was written, and by then must be seen
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range uint64(3) {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, i))
			for {
				select {
				case <-stop:
					return
				default:
				}
				p := rnd.Int64N(n)
				least := done[p].Load()
				got, err := c.load64(p * PageSize)
				if err != nil || got < least {
					t.Errorf("page %d: %d, %v; %d was written before", p, got, err, least)
					return
				}
				if rnd.IntN(8) == 0 {
					if err := c.evict(p); err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	rnd := rand.New(rand.NewPCG(seed, 99))
	for step := uint64(1); step <= steps; step++ {
		p := rnd.Int64N(n)
		if rnd.IntN(2) == 0 {
			must(t, c.store64(p*PageSize, step))
			done[p].Store(step)
			continue
		}
		must(t, b.SyncForDevice(ctx, d, Bidirectional))
		var q [8]byte
		_, err := b.ReadPages(q[:], p*PageSize)
		must(t, err)
		if got := binary.LittleEndian.Uint64(q[:]); got != done[p].Load() {
			t.Fatalf("step %d: the device sees %d in page %d, want %d", step, got, p, done[p].Load())
		}
		binary.LittleEndian.PutUint64(q[:], step)
		_, err = b.WritePages(q[:], p*PageSize)
		must(t, err)
		must(t, b.SyncForCPU(ctx, d, Bidirectional))
		done[p].Store(step)
	}
	close(stop)
	wg.Wait()
	if s := b.Stats(); s.Shootdowns == 0 || s.Faults == 0 || s.BytesLaundered == 0 {
		t.Fatalf("nothing happened: %+v", s)
	}
}

func (c *pageCache) load64(off int64) (uint64, error) {
	p := c.page(off / PageSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	err := c.faultLocked(p, off/PageSize)
	return binary.LittleEndian.Uint64(p.data[off%PageSize:]), err
}

func (c *pageCache) store64(off int64, v uint64) error {
	p := c.page(off / PageSize)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := c.faultLocked(p, off/PageSize); err != nil {
		return err
	}
	binary.LittleEndian.PutUint64(p.data[off%PageSize:], v)
	p.dirty = true
	return nil
}

// TestCrowd: everything at once, on every exporter. It fails by the race detector, by
// a panic, or by not ending.
func TestCrowd(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 1 << 20, Quota: NewQuota(1<<30, 0)})
	for _, exp := range r.Names() {
		t.Run(exp, func(t *testing.T) {
			ctx := bounded(t)
			b := create(t, r, exp, 64*PageSize)
			c := mapped(b)
			var wg sync.WaitGroup
			for i := range uint64(6) {
				wg.Go(func() {
					rnd := rand.New(rand.NewPCG(i, 1))
					d := &device{fmt.Sprint("dev", i), Limits{DMAMask: uint(24 + 8*i)}}
					for range 150 {
						if err := crowdStep(WithCaller(ctx, d.name), b, c, d, rnd); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if b.Mapped() != 0 || len(b.Attachments()) != 0 {
				t.Fatal("left behind")
			}
		})
	}
	if r.phys.used() != 0 {
		t.Fatal("addresses left behind")
	}
}

func crowdStep(ctx context.Context, b *Buffer, c *pageCache, d *device, rnd *rand.Rand) error {
	off := rnd.Int64N(64) * PageSize
	switch rnd.IntN(9) {
	case 0:
		return c.store(off, 1)
	case 1:
		_, err := c.load(off)
		return err
	case 2:
		return c.evict(off / PageSize)
	case 3:
		return c.write(ctx, []byte{1, 2}, off)
	case 4:
		_, err := b.Read(ctx, make([]byte, 3*PageSize), off)
		return err
	case 5:
		return errors.Join(b.BeginCPUAccess(ctx, Bidirectional), b.EndCPUAccess(ctx, Bidirectional))
	case 6:
		_, _ = b.Domain(), b.Stats()
		return b.Flush(ctx)
	case 7: // a resize is refused while mapped, and else goes
		if err := b.Resize(64*PageSize - rnd.Int64N(2)); err != nil && !errors.Is(err, syscall.EBUSY) {
			return err
		}
		return nil
	}
	dir := Direction(rnd.IntN(3))
	if err := b.Attach(d); err != nil {
		if errors.Is(err, syscall.EBUSY) {
			return nil
		}
		return err
	}
	defer b.Detach(d)
	sgt, err := b.Map(ctx, d, dir)
	if err != nil {
		if errors.Is(err, syscall.EBUSY) {
			return nil
		}
		return err
	}
	defer b.Unmap(d, sgt, dir)
	return errors.Join(b.SyncForDevice(ctx, d, dir), b.SyncForCPU(ctx, d, dir))
}
