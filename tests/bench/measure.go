package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

var measurements = []measurement{
	{"bandwidth", (*bench).bandwidth},
	{"first touch", (*bench).firstTouch},
	{"open close", (*bench).openClose},
	{"many buffers", (*bench).manyBuffers},
	{"mount", (*bench).mountTime},
	{"transition", (*bench).transition},
	{"one dirty page", (*bench).oneDirtyPage},
	{"dma view", (*bench).dmaView},
	{"sync", (*bench).syncPair},
	{"wakeup", (*bench).wakeup},
	{"pending fences", (*bench).pendingFences},
	{"waiters", (*bench).waiters},
	{"add fence", (*bench).addFence},
	{"under run", (*bench).underRun},
}

// bandwidth: stores and loads through a mapping whose pages are there.
func (b *bench) bandwidth() error {
	const size = 64 * mib
	peer, err := memfd(size)
	if err != nil {
		return err
	}
	defer unix.Munmap(peer)
	scratch := make([]byte, 256*kib)
	fillAll(peer, scratch)
	for _, exp := range []string{"system", "coherent"} {
		path, err := b.buffer(exp, "bw-"+exp, size)
		if err != nil {
			return err
		}
		ours, err := mapFile(path, size, true)
		if err != nil {
			return err
		}
		fillAll(ours, scratch)
		for _, dir := range []string{"write", "read"} {
			pass := func(p []byte) func() (time.Duration, error) {
				return func() (time.Duration, error) {
					return timed(func() error {
						for range 4 {
							if dir == "write" {
								fillAll(p, scratch)
							} else {
								readAll(p, scratch)
							}
						}
						return nil
					})
				}
			}
			o, p, err := versus(pass(ours), pass(peer))
			if err != nil {
				return err
			}
			b.add(fmt.Sprintf("mmap %s, 64 MiB, %s / memfd", dir, exp), 4*size/o/1e9, 4*size/p/1e9, "GB/s", ">= 0.95")
		}
		unix.Munmap(ours)
		os.Remove(path)
	}
	return nil
}

// firstTouch: one store into each page of a fresh mapping of a fresh buffer.
func (b *bench) firstTouch() error {
	const size = 32 * mib
	touch := func(p []byte) func() error {
		return func() error {
			for i := 0; i < len(p); i += 4096 {
				p[i] = 1
			}
			return nil
		}
	}
	for _, exp := range []string{"coherent", "system"} {
		ours := func() (time.Duration, error) {
			path, err := b.buffer(exp, "touch-"+exp, size)
			if err != nil {
				return 0, err
			}
			defer os.Remove(path)
			p, err := mapFile(path, size, true)
			if err != nil {
				return 0, err
			}
			defer unix.Munmap(p)
			return timed(touch(p))
		}
		peer := func() (time.Duration, error) {
			p, err := memfd(size)
			if err != nil {
				return 0, err
			}
			defer unix.Munmap(p)
			return timed(touch(p))
		}
		o, p, err := versus(ours, peer)
		if err != nil {
			return err
		}
		aim := "<= 1.1"
		if exp == "system" {
			aim = "<= 1.5"
		}
		b.add("first touch of a page, "+exp+" / memfd", o/size*4096*1e6, p/size*4096*1e6, "us", aim)
	}
	return nil
}

// times runs f n times and gives the mean of one.
func times(n int, f func() error) func() (time.Duration, error) {
	return func() (time.Duration, error) {
		d, err := timed(func() error {
			for range n {
				if err := f(); err != nil {
					return err
				}
			}
			return nil
		})
		return d / time.Duration(n), err
	}
}

func opener(path string) func() error {
	return func() error {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		return unix.Close(fd)
	}
}

// both measures once with everything on one CPU and once anywhere.
func (b *bench) both(what, unit, aim string, scale float64, ours, peer func() (time.Duration, error)) error {
	one := func(where string) error {
		o, p, err := versus(ours, peer)
		if err == nil {
			b.add(what+", "+where, o*scale, p*scale, unit, aim)
		}
		return err
	}
	if err := b.pin(func() error { return one("one CPU") }); err != nil {
		return err
	}
	return one("any CPU")
}

func (b *bench) openClose() error {
	path, err := b.buffer("system", "open", 4096)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	return b.both("open+close / bare FUSE", "us", "<= 1.3", 1e6,
		times(3000, opener(path)), times(3000, opener(filepath.Join(b.bare, "f"))))
}

// manyBuffers: what one buffer costs among 100,000, against 1,000.
func (b *bench) manyBuffers() error {
	dir := filepath.Join(b.mnt, "buffers")
	steps := []struct {
		name string
		do   func(n int) error
	}{
		{"create", func(n int) error {
			for i := range n {
				f, err := os.Create(filepath.Join(dir, "m"+strconv.Itoa(i)))
				if err != nil {
					return err
				}
				f.Close()
			}
			return nil
		}},
		{"stat", func(n int) error {
			for i := range n {
				if err := unix.Stat(filepath.Join(dir, "m"+strconv.Itoa(i)), &unix.Stat_t{}); err != nil {
					return err
				}
			}
			return nil
		}},
		{"list", func(n int) error {
			d, err := os.Open(dir)
			if err != nil {
				return err
			}
			defer d.Close()
			names, err := d.Readdirnames(-1)
			if err != nil {
				return err
			}
			return ensure(len(names) >= n, "listed %d of %d", len(names), n)
		}},
		{"remove", func(n int) error {
			for i := range n {
				if err := os.Remove(filepath.Join(dir, "m"+strconv.Itoa(i))); err != nil {
					return err
				}
			}
			return nil
		}},
	}
	cost := map[string]map[int]float64{}
	var bytesEach float64
	for _, n := range []int{1000, 100000, 1000} {
		before := b.rss()
		for _, s := range steps {
			if s.name == "stat" { // cold dentries, as after other work
				_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte("2"), 0)
			}
			if s.name == "remove" && n == 100000 {
				bytesEach = (b.rss() - before) / float64(n)
			}
			d, err := timed(func() error { return s.do(n) })
			if err != nil {
				return err
			}
			if cost[s.name] == nil {
				cost[s.name] = map[int]float64{}
			}
			c := d.Seconds() / float64(n) * 1e6
			if old, ok := cost[s.name][n]; !ok || c < old {
				cost[s.name][n] = c
			}
		}
	}
	for _, s := range steps {
		b.add(s.name+" one of 100,000 buffers / of 1,000", cost[s.name][100000], cost[s.name][1000], "us", "<= 2")
	}
	b.add("resident bytes of the daemon for an idle buffer / 4 KiB", bytesEach, 4096, "bytes", "<= 1")
	return nil
}

// rss of the daemon, in bytes.
func (b *bench) rss() float64 {
	p, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", b.pids[len(b.pids)-1]))
	f := strings.Fields(string(p))
	if len(f) < 2 {
		return 0
	}
	n, _ := strconv.ParseFloat(f[1], 64)
	return n * 4096
}

// mountTime: from exec to the first answer, against 100 ms, what a person calls instant.
func (b *bench) mountTime() error {
	dir := filepath.Join(b.dir, "m2")
	if err := os.Mkdir(dir, 0755); err != nil {
		return err
	}
	var v []float64
	for range *rounds {
		n := len(b.procs)
		d, err := timed(func() error { return b.start(filepath.Join(dir, "version"), *dmabuffs, "mount", dir) })
		if err != nil {
			return err
		}
		v = append(v, d.Seconds()*1e3)
		c := b.procs[n]
		b.procs, b.pids = b.procs[:n], b.pids[:n]
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			err := unix.Unmount(dir, 0) // EBUSY while the daemon still looks at its own mount point
			if err == nil {
				break
			}
			if time.Now().After(end) {
				return err
			}
		}
		if err := c.Wait(); err != nil {
			return err
		}
	}
	b.add("mount to first answer / 100 ms", median(v), 100, "ms", "<= 1")
	return nil
}

// device makes a device and returns the path of its view of a buffer.
func (b *bench) device(buffer string) (string, error) {
	dir := filepath.Join(b.mnt, "devices", "dev")
	if err := os.Mkdir(dir, 0755); err != nil && !os.IsExist(err) {
		return "", err
	}
	return filepath.Join(dir, "buffers", buffer), nil
}

const (
	ioctlSync       = 0x40086200
	syncRW, syncEnd = 3, 4
	deviceWriteMark = 0x5a
	transitionSize  = 64 * mib
)

// transition: 64 MiB go to the device, and come back.
func (b *bench) transition() error {
	path, err := b.buffer("system", "tr", transitionSize)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	view, err := b.device("tr")
	if err != nil {
		return err
	}
	p, err := mapFile(path, transitionSize, true)
	if err != nil {
		return err
	}
	defer unix.Munmap(p)
	fd, err := unix.Open(view, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	dev, err := unix.Mmap(fd, 0, transitionSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(dev)
	src, dst := make([]byte, transitionSize), make([]byte, transitionSize)
	fillAll(src, []byte(strings.Repeat("x", 4096)))
	fillAll(dst, src[:4096])
	peer := func() (time.Duration, error) {
		return timed(func() error { copy(dst, src); return nil })
	}
	var round byte
	toDevice := func() (time.Duration, error) {
		round++
		if err := syncIoctl(fd, syncRW|syncEnd); err != nil {
			return 0, err
		}
		for i := 0; i < len(p); i += 4096 {
			p[i] = round
		}
		d, err := timed(func() error { return syncIoctl(fd, syncRW) })
		if err != nil {
			return 0, err
		}
		return d, ensure(dev[0] == round && dev[len(dev)-4096] == round, "the device does not see the CPU's bytes")
	}
	o, m, err := versus(toDevice, peer)
	if err != nil {
		return err
	}
	b.add("CPU to device, 64 MiB all dirty / memcpy", o*1e3, m*1e3, "ms", "<= 2")
	toCPU := func() (time.Duration, error) {
		round++
		if err := syncIoctl(fd, syncRW); err != nil {
			return 0, err
		}
		for i := 0; i < len(dev); i += 4096 {
			dev[i] = round
		}
		var ok bool
		d, err := timed(func() error {
			if err := syncIoctl(fd, syncRW|syncEnd); err != nil {
				return err
			}
			ok = true
			for i := 0; i < len(p); i += 4096 {
				ok = ok && p[i] == round
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
		return d, ensure(ok, "the CPU does not see the device's bytes")
	}
	if o, m, err = versus(toCPU, peer); err != nil {
		return err
	}
	b.add("device to CPU, 64 MiB touched again / memcpy", o*1e3, m*1e3, "ms", "<= 2")
	return nil
}

// dirtyCost is the time of a START with n dirty pages in a buffer of size bytes.
func (b *bench) dirtyCost(name string, size int64, n int) (func() (time.Duration, error), func(), error) {
	path, err := b.buffer("system", name, size)
	if err != nil {
		return nil, nil, err
	}
	view, err := b.device(name)
	if err != nil {
		return nil, nil, err
	}
	p, err := mapFile(path, int(size), true)
	if err != nil {
		return nil, nil, err
	}
	fd, err := unix.Open(view, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	cost := func() (time.Duration, error) {
		var sum time.Duration
		const reps = 20
		for range reps {
			if err := syncIoctl(fd, syncRW|syncEnd); err != nil {
				return 0, err
			}
			for i := range n {
				p[i*4096]++
			}
			d, err := timed(func() error { return syncIoctl(fd, syncRW) })
			if err != nil {
				return 0, err
			}
			sum += d
		}
		return sum / reps, nil
	}
	done := func() {
		unix.Close(fd)
		unix.Munmap(p)
		os.Remove(path)
	}
	return cost, done, nil
}

// oneDirtyPage: a transition costs by what is dirty, not by what there is.
func (b *bench) oneDirtyPage() error {
	big, doneBig, err := b.dirtyCost("one-gib", gib, 1)
	if err != nil {
		return err
	}
	defer doneBig()
	small, doneSmall, err := b.dirtyCost("one-mib", mib, 1)
	if err != nil {
		return err
	}
	defer doneSmall()
	o, p, err := versus(big, small)
	if err != nil {
		return err
	}
	b.add("transition with one dirty page, 1 GiB / 1 MiB", o*1e6, p*1e6, "us", "<= 1.2")
	if *svg == "" {
		return nil
	}
	var points []point
	for _, size := range []int64{16 * mib, gib} {
		for n := 1; n <= 4096; n *= 4 {
			cost, done, err := b.dirtyCost(fmt.Sprintf("plot-%d-%d", size, n), size, n)
			if err != nil {
				return err
			}
			d, err := cost()
			done()
			if err != nil {
				return err
			}
			points = append(points, point{size, n, d.Seconds() * 1e6})
		}
	}
	return plot(*svg, points)
}

// dmaView: a device's mapping against memfd, and dd through the view against dd from tmpfs.
func (b *bench) dmaView() error {
	const size = 64 * mib
	path, err := b.buffer("system", "view", size)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	view, err := b.device("view")
	if err != nil {
		return err
	}
	ours, err := mapFile(view, size, true)
	if err != nil {
		return err
	}
	defer unix.Munmap(ours)
	peer, err := memfd(size)
	if err != nil {
		return err
	}
	defer unix.Munmap(peer)
	scratch := make([]byte, 256*kib)
	fillAll(ours, scratch)
	fillAll(peer, scratch)
	pass := func(p []byte) func() (time.Duration, error) {
		return times(4, func() error { fillAll(p, scratch); readAll(p, scratch); return nil })
	}
	o, p, err := versus(pass(ours), pass(peer))
	if err != nil {
		return err
	}
	b.add("DMA view mmap write and read, 64 MiB / memfd", 2*size/o/1e9, 2*size/p/1e9, "GB/s", ">= 0.95")

	tmp, err := os.MkdirTemp("/dev/shm", "dmabuffs-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, "f")
	if err := os.WriteFile(file, peer, 0600); err != nil {
		return err
	}
	dd := func(args ...string) func() (time.Duration, error) {
		return func() (time.Duration, error) {
			return timed(func() error {
				out, err := exec.Command("dd", append(args, "bs=1M", "status=none")...).CombinedOutput()
				if err != nil {
					return fmt.Errorf("dd: %w: %s", err, out)
				}
				return nil
			})
		}
	}
	if o, p, err = versus(dd("if="+view, "of=/dev/null"), dd("if="+file, "of=/dev/null")); err != nil {
		return err
	}
	b.add("dd bs=1M out of a DMA view / out of tmpfs", size/o/1e9, size/p/1e9, "GB/s", ">= 0.5")
	if o, p, err = versus(dd("if="+file, "of="+view, "conv=notrunc"), dd("if="+file, "of="+file+"2", "conv=notrunc")); err != nil {
		return err
	}
	b.add("dd bs=1M into a DMA view / into tmpfs", size/o/1e9, size/p/1e9, "GB/s", ">= 0.5")
	return nil
}

// syncPair: START and END with nothing to do, against two ioctls of a bare FUSE.
func (b *bench) syncPair() error {
	path, err := b.buffer("system", "sync", 4096)
	if err != nil {
		return err
	}
	defer os.Remove(path)
	pair := func(path string) (func() (time.Duration, error), error) {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		return times(3000, func() error {
			if err := syncIoctl(fd, syncRW); err != nil {
				return err
			}
			return syncIoctl(fd, syncRW|syncEnd)
		}), nil
	}
	ours, err := pair(path)
	if err != nil {
		return err
	}
	peer, err := pair(filepath.Join(b.bare, "f"))
	if err != nil {
		return err
	}
	return b.both("SYNC START+END / two bare ioctls", "us", "<= 1.2", 1e6, ours, peer)
}
