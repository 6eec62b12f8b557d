// Command bench measures dmabuffs against its peers in the same run and prints
// ratios: the machines are noisy, a ratio is not. Peers are memfd, tmpfs, eventfd,
// memcpy, and barefuse.c, the least that a FUSE file system can do.
//
//	go run ./tests/bench -dmabuffs ./bin/dmabuffs [-only REGEXP] [-svg FILE] [-rounds N]
//
// It mounts what it measures, needs root (pinning, write-back tuning, barefuse)
// and gcc, and leaves nothing mounted.
package main

import (
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

var (
	dmabuffs = flag.String("dmabuffs", "bin/dmabuffs", "the program to measure")
	only     = flag.String("only", "", "measure only what matches this regular expression")
	svg      = flag.String("svg", "", "write the plot of transition cost here")
	rounds   = flag.Int("rounds", 7, "rounds of each measurement; the median counts")
	source   = flag.String("source", "tests/bench", "where barefuse.c is")
)

// result is one row: ours against the peer's, in the same unit, and the aim for the ratio.
type result struct {
	what       string
	ours, peer float64
	unit       string
	aim        string // "<= 1.3", ">= 0.95", or "" where there is none
}

func (r result) ratio() float64 { return r.ours / r.peer }

func (r result) met() string {
	op, v, ok := strings.Cut(r.aim, " ")
	if !ok {
		return "-"
	}
	aim, err := strconv.ParseFloat(v, 64)
	if err != nil {
		return "-"
	}
	if op == "<=" && r.ratio() <= aim || op == ">=" && r.ratio() >= aim {
		return "met"
	}
	return "missed"
}

// bench is what the measurements share.
type bench struct {
	dir   string // temporary
	mnt   string // a dmabuffs
	bare  string // a barefuse
	procs []*exec.Cmd
	out   []result
	pids  []int // of the daemons, to be pinned with us
}

type measurement struct {
	name string
	run  func(*bench) error
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	if len(os.Args) > 1 && os.Args[1] == "child" {
		child(os.Args[2:])
		return
	}
	flag.Parse()
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	re, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	b := &bench{}
	if b.dir, err = os.MkdirTemp("", "dmabuffs-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	defer b.close()
	if err := b.open(); err != nil {
		return err
	}
	fmt.Printf("%-58s %12s %12s  %-8s %7s  %-8s %s\n", "what", "dmabuffs", "peer", "unit", "ratio", "aim", "")
	for _, m := range measurements {
		if !re.MatchString(m.name) {
			continue
		}
		b.out = nil
		if err := m.run(b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		for _, r := range b.out {
			fmt.Printf("%-58s %12.4g %12.4g  %-8s %7.3f  %-8s %s\n", r.what, r.ours, r.peer, r.unit, r.ratio(), r.aim, r.met())
		}
	}
	return nil
}

// add keeps a row.
func (b *bench) add(what string, ours, peer float64, unit, aim string) {
	b.out = append(b.out, result{what, ours, peer, unit, aim})
}

// open starts both file systems.
func (b *bench) open() error {
	b.mnt, b.bare = filepath.Join(b.dir, "mnt"), filepath.Join(b.dir, "bare")
	for _, d := range []string{b.mnt, b.bare} {
		if err := os.Mkdir(d, 0755); err != nil {
			return err
		}
	}
	prog := filepath.Join(b.dir, "barefuse")
	if out, err := exec.Command("gcc", "-O2", "-o", prog, filepath.Join(*source, "peers", "barefuse.c")).CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w: %s", err, out)
	}
	if err := b.start(filepath.Join(b.bare, "f"), prog, b.bare); err != nil {
		return err
	}
	return b.start(filepath.Join(b.mnt, "version"), *dmabuffs, "mount", "-o", "size=8g,nr_buffers=200000", b.mnt)
}

// start runs a daemon and waits until path exists.
func (b *bench) start(path, prog string, args ...string) error {
	c := exec.Command(prog, args...)
	c.Stderr = os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		return err
	}
	b.procs = append(b.procs, c)
	b.pids = append(b.pids, c.Process.Pid)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s did not mount", prog)
		}
	}
}

func (b *bench) close() {
	for _, m := range []string{b.mnt, b.bare} {
		for range 50 {
			if err := unix.Unmount(m, 0); err == nil || errors.Is(err, unix.EINVAL) {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		_ = unix.Unmount(m, unix.MNT_DETACH)
	}
	for _, c := range b.procs {
		done := make(chan struct{})
		go func() { _ = c.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			_ = c.Process.Kill()
		}
	}
}

// pin puts this thread and the daemons on one CPU while f runs.
func (b *bench) pin(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var one, all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	for cpu := range 1024 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	b.affinity(&one)
	defer b.affinity(&all)
	return f()
}

func (b *bench) affinity(set *unix.CPUSet) {
	_ = unix.SchedSetaffinity(0, set)
	for _, pid := range b.pids {
		tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		for _, t := range tasks {
			tid, _ := strconv.Atoi(t.Name())
			_ = unix.SchedSetaffinity(tid, set)
		}
	}
}

// median of an odd number of rounds.
func median(v []float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

// percentile of v, p in 0..1.
func percentile(v []float64, p float64) float64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[min(len(s)-1, int(p*float64(len(s))))]
}

// versus runs ours and the peer's in turn and keeps the median of each, in seconds.
func versus(ours, peer func() (time.Duration, error)) (o, p float64, err error) {
	var os, ps []float64
	for range *rounds {
		d, err := peer()
		if err != nil {
			return 0, 0, fmt.Errorf("peer: %w", err)
		}
		ps = append(ps, d.Seconds())
		if d, err = ours(); err != nil {
			return 0, 0, err
		}
		os = append(os, d.Seconds())
	}
	return median(os), median(ps), nil
}

// timed measures f.
func timed(f func() error) (time.Duration, error) {
	t := time.Now()
	err := f()
	return time.Since(t), err
}

// buffer makes a buffer of size bytes and returns its path.
func (b *bench) buffer(exporter, name string, size int64) (string, error) {
	p := filepath.Join(b.mnt, "exporters", exporter, name)
	f, err := os.Create(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return filepath.Join(b.mnt, "buffers", name), f.Truncate(size)
}

// mapFile maps a whole file, shared.
func mapFile(path string, size int, write bool) ([]byte, error) {
	flags, prot := unix.O_RDONLY, unix.PROT_READ
	if write {
		flags, prot = unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return unix.Mmap(fd, 0, size, prot, unix.MAP_SHARED)
}

func memfd(size int64) ([]byte, error) {
	fd, err := unix.MemfdCreate("bench", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// ensure fails a measurement that measured the wrong thing.
func ensure(ok bool, format string, v ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, v...)
}

var sink byte // keeps readAll from being optimised away

func readAll(p []byte, scratch []byte) {
	for off := 0; off < len(p); off += len(scratch) {
		copy(scratch, p[off:])
	}
	sink += scratch[0]
	runtime.KeepAlive(&sink)
}

func fillAll(p []byte, scratch []byte) {
	for off := 0; off < len(p); off += len(scratch) {
		copy(p[off:], scratch)
	}
}
