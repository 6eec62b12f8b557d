package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// child is the other process of a measurement: it polls and tells when it woke.
//
//	bench child poll FILE N     for each of N lines "\n" on stdin: poll FILE for POLLIN,
//	                            then write the time (CLOCK_MONOTONIC ns, 8 bytes) to stdout
//	bench child eventfd N       the same on descriptor 3, an eventfd, which it reads
//	bench child crowd FILE N    N descriptors, each polled by a thread of its own; one time when the last woke
func child(args []string) {
	if err := childRun(args); err != nil {
		fmt.Fprintln(os.Stderr, "bench child:", err)
		os.Exit(1)
	}
}

func childRun(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("usage")
	}
	n, err := strconv.Atoi(args[len(args)-1])
	if err != nil {
		return err
	}
	fd := 3
	if args[0] != "eventfd" {
		if fd, err = unix.Open(args[1], unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
	}
	var line [1]byte
	for range n {
		if _, err := io.ReadFull(os.Stdin, line[:]); err != nil {
			return err
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			r, err := unix.Poll(p, 20000)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			if r == 0 {
				return fmt.Errorf("no wakeup within 20 s")
			}
			break
		}
		var t [8]byte
		binary.NativeEndian.PutUint64(t[:], monotonic())
		if args[0] == "eventfd" {
			var v [8]byte
			if _, err := unix.Read(fd, v[:]); err != nil {
				return err
			}
		}
		if _, err := os.Stdout.Write(t[:]); err != nil {
			return err
		}
	}
	return nil
}

func monotonic() uint64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return uint64(ts.Nano())
}

// waiter is a child that polls.
type waiter struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser
}

func newWaiter(extra *os.File, args ...string) (*waiter, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	w := &waiter{cmd: exec.Command(self, append([]string{"child"}, args...)...)}
	w.cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
	w.cmd.Stderr = os.Stderr
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if extra != nil {
		w.cmd.ExtraFiles = []*os.File{extra}
	}
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if w.out, err = w.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	return w, w.cmd.Start()
}

func (w *waiter) close() {
	w.in.Close()
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait()
}

// arm lets the child poll, and waits until it sleeps.
func (w *waiter) arm() error {
	if _, err := w.in.Write([]byte("\n")); err != nil {
		return err
	}
	time.Sleep(150 * time.Microsecond)
	return nil
}

// woke returns when it woke, CLOCK_MONOTONIC ns.
func (w *waiter) woke() (uint64, error) {
	var t [8]byte
	_, err := io.ReadFull(w.out, t[:])
	return binary.NativeEndian.Uint64(t[:]), err
}

// latency is the time from signal() to the wakeup in microseconds, n times.
func latency(w *waiter, n int, reset, signal func() error) ([]float64, error) {
	v := make([]float64, 0, n)
	for range n {
		if err := reset(); err != nil {
			return nil, err
		}
		if err := w.arm(); err != nil {
			return nil, err
		}
		t := monotonic()
		if err := signal(); err != nil {
			return nil, err
		}
		at, err := w.woke()
		if err != nil {
			return nil, err
		}
		v = append(v, float64(at-t)/1e3)
	}
	return v, nil
}

// timeline makes one and returns a function that advances it by one through an open file.
func (b *bench) timeline(name string) (advance func() error, err error) {
	dir := filepath.Join(b.mnt, "timelines", name)
	if err := os.Mkdir(dir, 0755); err != nil {
		return nil, err
	}
	fd, err := unix.Open(filepath.Join(dir, "value"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return func() error { _, err := unix.Write(fd, []byte("+1")); return err }, nil
}

func (b *bench) state(buffer, file string) string {
	return filepath.Join(b.mnt, "state", buffer, file)
}

// wakeup: from the write that signals to the return of poll(2) in another process.
func (b *bench) wakeup() error {
	const n = 2000
	path, err := b.buffer("system", "wake", 4096)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	advance, err := b.timeline("wake")
	if err != nil {
		return err
	}
	defer os.Remove(filepath.Join(b.mnt, "timelines", "wake"))
	fences, err := unix.Open(b.state("wake", "write_fences"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fences)
	bare, err := unix.Open(filepath.Join(b.bare, "f"), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(bare)
	ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return err
	}
	evFile := os.NewFile(uintptr(ev), "eventfd")
	defer evFile.Close()
	seq := 0
	side := func(where string) error {
		ours, err := newWaiter(nil, "poll", path, strconv.Itoa(n))
		if err != nil {
			return err
		}
		defer ours.close()
		peer, err := newWaiter(nil, "poll", filepath.Join(b.bare, "f"), strconv.Itoa(n))
		if err != nil {
			return err
		}
		defer peer.close()
		event, err := newWaiter(evFile, "eventfd", strconv.Itoa(n))
		if err != nil {
			return err
		}
		defer event.close()
		p, err := latency(peer, n,
			func() error { _, err := unix.Write(bare, []byte("0")); return err },
			func() error { _, err := unix.Write(bare, []byte("1")); return err })
		if err != nil {
			return err
		}
		o, err := latency(ours, n,
			func() error {
				seq++
				_, err := unix.Write(fences, fmt.Appendf(nil, "wake:%d", seq))
				return err
			}, advance)
		if err != nil {
			return err
		}
		e, err := latency(event, n, func() error { return nil },
			func() error { _, err := unix.Write(ev, []byte{1, 0, 0, 0, 0, 0, 0, 0}); return err })
		if err != nil {
			return err
		}
		b.add("wakeup, median / bare NOTIFY_POLL and POLL, "+where, percentile(o, 0.5), percentile(p, 0.5), "us", "<= 1.2")
		b.add("wakeup, 99th percentile / bare, "+where, percentile(o, 0.99), percentile(p, 0.99), "us", "<= 1.2")
		b.add("wakeup, median / eventfd, "+where, percentile(o, 0.5), percentile(e, 0.5), "us", "")
		return nil
	}
	if err := b.pin(func() error { return side("one CPU") }); err != nil {
		return err
	}
	return side("any CPU")
}

// pendingFences: the cost of a signal with 10,000 fences pending on one buffer,
// against that with 10 pending. Each fence has a timeline of its own: fences of
// one timeline replace each other.
func (b *bench) pendingFences() error {
	const many, few = 10000, 10
	path, err := b.buffer("system", "pending", 4096)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	dir := filepath.Join(b.mnt, "timelines")
	values := make([]int, many)
	for i := range many {
		name := filepath.Join(dir, "p"+strconv.Itoa(i))
		if err := os.Mkdir(name, 0755); err != nil {
			return err
		}
		if values[i], err = unix.Open(filepath.Join(name, "value"), unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
			return err
		}
	}
	defer func() {
		for i, fd := range values {
			unix.Close(fd)
			os.Remove(filepath.Join(dir, "p"+strconv.Itoa(i)))
		}
	}()
	fences, err := unix.Open(b.state("pending", "read_fences"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fences)
	seq := 0
	// The same 10,000 files either way, so that only what pends differs.
	cost := func(batch int) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			seq++
			var sum time.Duration
			for first := 0; first < many; first += batch {
				for i := first; i < first+batch; i++ {
					if _, err := unix.Write(fences, fmt.Appendf(nil, "p%d:%d", i, seq)); err != nil {
						return 0, err
					}
				}
				d, err := timed(func() error {
					for i := first; i < first+batch; i++ {
						if _, err := unix.Write(values[i], []byte("+1")); err != nil {
							return err
						}
					}
					return nil
				})
				if err != nil {
					return 0, err
				}
				sum += d
			}
			return sum / many, nil
		}
	}
	o, p, err := versus(cost(many), cost(few))
	if err != nil {
		return err
	}
	b.add("a signal with 10,000 fences pending / with 10", o*1e6, p*1e6, "us", "<= 1.5")
	return nil
}

// waiters: 1,000 threads of one process poll one fence; until the last one woke.
func (b *bench) waiters() error {
	const n = 1000
	path, err := b.buffer("system", "crowd", 4096)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	advance, err := b.timeline("crowd")
	if err != nil {
		return err
	}
	defer os.Remove(filepath.Join(b.mnt, "timelines", "crowd"))
	fences, err := unix.Open(b.state("crowd", "write_fences"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fences)
	prog := filepath.Join(b.dir, "crowd")
	if out, err := exec.Command("gcc", "-O2", "-pthread", "-o", prog, filepath.Join(*source, "peers", "crowd.c")).CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w: %s", err, out)
	}
	crowd := func(file *os.File, signal func() error) (time.Duration, error) {
		w := &waiter{cmd: exec.Command(prog, strconv.Itoa(n))}
		w.cmd.ExtraFiles = []*os.File{file}
		w.cmd.Stderr = os.Stderr
		w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if w.out, err = w.cmd.StdoutPipe(); err != nil {
			return 0, err
		}
		if w.in, err = w.cmd.StdinPipe(); err != nil {
			return 0, err
		}
		if err := w.cmd.Start(); err != nil {
			return 0, err
		}
		defer w.close()
		if _, err := w.woke(); err != nil { // all threads are about to poll
			return 0, err
		}
		time.Sleep(100 * time.Millisecond)
		t := monotonic()
		if err := signal(); err != nil {
			return 0, err
		}
		at, err := w.woke()
		return time.Duration(at - t), err
	}
	seq := 0
	ours := func() (time.Duration, error) {
		seq++
		if _, err := unix.Write(fences, fmt.Appendf(nil, "crowd:%d", seq)); err != nil {
			return 0, err
		}
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		defer f.Close()
		return crowd(f, advance)
	}
	peer := func() (time.Duration, error) {
		ev, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return 0, err
		}
		f := os.NewFile(uintptr(ev), "eventfd")
		defer f.Close()
		return crowd(f, func() error { _, err := unix.Write(ev, []byte{1, 0, 0, 0, 0, 0, 0, 0}); return err })
	}
	o, p, err := versus(ours, peer)
	if err != nil {
		return err
	}
	b.add("1,000 waiters of one fence, last wakeup / eventfd", o*1e3, p*1e3, "ms", "<= 6")
	return nil
}

// addFence: open, write, close of a fences file, against the same of a bare FUSE file.
func (b *bench) addFence() error {
	path, err := b.buffer("system", "add", 4096)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	if _, err := b.timeline("add"); err != nil {
		return err
	}
	defer os.Remove(filepath.Join(b.mnt, "timelines", "add"))
	write := func(path string, text func() []byte) func() error {
		return func() error {
			fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			_, err = unix.Write(fd, text())
			return err
		}
	}
	seq := 0
	ours := times(2000, write(b.state("add", "read_fences"), func() []byte { seq++; return fmt.Appendf(nil, "add:%d", seq) }))
	peer := times(2000, write(filepath.Join(b.bare, "f"), func() []byte { return []byte("x") }))
	return b.both("add a fence / bare FUSE open+write+close", "us", "<= 1.2", 1e6, ours, peer)
}
