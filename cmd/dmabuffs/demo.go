package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// demo is one run of the command.
type demo struct {
	out      io.Writer
	mnt      string
	exporter string
	input    string
	frames   uint64
	ring     int
	size     int // of a frame, bytes
	about    string

	interrupted atomic.Bool

	mu       sync.Mutex
	children []*child
}

func newDemoCmd() *cobra.Command {
	var d demo
	var existing string
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Stream real frames between processes, and check every one",
		Long: `Mount a dmabuffs in a temporary directory, then stream frames through a ring of
buffers: one producer, two consumers, each a process of its own, which wait for each
other with poll and fences. Then the same with a device between them, which changes
every frame through its DMA view. The SHA-256 of every frame is checked at every
consumer. Nothing stays mounted.

Frames are made of a picture that the machine has, or of --input FILE (PNG, JPEG,
GIF or WAV).`,
		Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			d.out = cmd.OutOrStdout()
			if d.frames < 1 || d.ring < 1 || d.ring > 64 {
				return usagef("demo: want at least 1 frame, and 1 to 64 buffers")
			}
			if status, ok, err := reexecInNamespace(existing); ok {
				if err != nil {
					return err
				}
				return exitError{status: status}
			}
			return d.run(existing)
		},
	}
	cmd.Flags().StringVar(&d.input, "input", "", "make the frames of `FILE`: PNG, JPEG, GIF or WAV")
	cmd.Flags().Uint64Var(&d.frames, "frames", 300, "how many frames to stream (the device's part: a quarter of it)")
	cmd.Flags().IntVar(&d.ring, "buffers", 4, "how many buffers the ring has")
	cmd.Flags().StringVar(&d.exporter, "exporter", "system", "who backs the buffers")
	cmd.Flags().StringVar(&existing, "mount", "", "use the dmabuffs at `MNT`, which stays, instead of mounting one")
	return cmd
}

// inNamespace marks the demo that runs in a user namespace of its own.
const inNamespace = "DMABUFFS_DEMO_NAMESPACE"

// reexecInNamespace runs the demo again inside a user and mount namespace, when an
// ordinary user without fusermount3 could not mount otherwise; ok says that it did.
func reexecInNamespace(existing string) (status int, ok bool, err error) {
	if os.Geteuid() == 0 || existing != "" || os.Getenv(inNamespace) != "" {
		return 0, false, nil
	}
	if _, err := exec.LookPath("fusermount3"); err == nil {
		return 0, false, nil
	}
	runtime.LockOSThread()
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Args[0] = os.Args[0]
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.Env = append(os.Environ(), inNamespace+"=1")
	again.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGTERM,
	}
	err = again.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), true, nil
	}
	return 0, true, hint(err, "an ordinary user needs fusermount3 (package fuse3) or user namespaces to mount")
}

// run is the whole demo. Whatever happens, what it started ends and what it mounted goes.
func (d *demo) run(existing string) (err error) {
	runtime.LockOSThread() // children die with the thread that started them
	source, err := openFrames(d.input)
	if err != nil {
		return err
	}
	d.size, d.about = source.size, source.about

	interrupted := make(chan os.Signal, 2)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(interrupted)
	go func() {
		for range interrupted {
			d.interrupted.Store(true)
			d.kill()
		}
	}()
	defer func() { // also what a failed part left running
		d.kill()
		d.reap()
		if d.interrupted.Load() {
			err = exitError{130, errors.New("demo: interrupted")} // as a shell reports SIGINT
		}
	}()

	fmt.Fprintf(d.out, "frames from %s\n", d.about)
	if existing != "" {
		if d.mnt, err = mountOf([]string{existing}); err != nil {
			return err
		}
	} else {
		unmount, err := d.mountTemp()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, unmount()) }()
	}

	if err := d.streamToConsumers(); err != nil {
		return err
	}
	return d.streamThroughDevice()
}

// mountTemp mounts a dmabuffs of its own, served by a process of its own.
func (d *demo) mountTemp() (unmount func() error, err error) {
	dir, err := os.MkdirTemp("", "dmabuffs-demo-")
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	start := time.Now()
	daemon, err := d.start(false, "mount", dir)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	for !answers(dir) {
		select {
		case <-daemon.ended:
			os.Remove(dir)
			return nil, fmt.Errorf("mount: %w", daemon.failure())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Since(start) > patience {
			daemon.cmd.Process.Kill()
			os.Remove(dir)
			return nil, fmt.Errorf("mount: %s does not answer after %v", dir, patience)
		}
	}
	fmt.Fprintf(d.out, "mounted at %s, answered after %.0f ms\n", dir, time.Since(start).Seconds()*1000)
	d.mnt = dir
	return func() error {
		d.kill()
		d.reap()
		_ = daemon.cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-daemon.ended:
		case <-time.After(10 * time.Second):
			_ = daemon.cmd.Process.Kill()
			<-daemon.ended
		}
		if fs.IsMounted(dir) { // a daemon that was killed left it
			if err := fs.Unmount(dir, true); err != nil {
				return fmt.Errorf("unmount: %w", err)
			}
		}
		if err := os.Remove(dir); err != nil {
			return err
		}
		fmt.Fprintln(d.out, "unmounted; nothing is left")
		return nil
	}, nil
}

// answers says whether the one at dir answers. Unlike looking into dir it asks the
// kernel first: a directory that is not mounted yet is nobody's.
func answers(dir string) bool {
	if !fs.IsMounted(dir) {
		return false
	}
	_, err := readText(filepath.Join(dir, "version"))
	return err == nil
}

// child is a process of the demo.
type child struct {
	cmd    *exec.Cmd
	name   string
	stdin  io.WriteCloser
	lines  chan string // its standard output; closed at its end
	stderr bytes.Buffer
	ended  chan struct{} // closed when it was waited for
	err    error         // valid then
}

// failure is what a child that ended too early said.
func (c *child) failure() error {
	text := strings.TrimSpace(c.stderr.String())
	text = strings.TrimPrefix(text, "dmabuffs: ")
	if text == "" {
		return fmt.Errorf("%s: %v", c.name, c.err)
	}
	return errors.New(text)
}

// start runs this program again. It is killed when we die.
func (d *demo) start(pipes bool, args ...string) (*child, error) {
	c := &child{cmd: exec.Command("/proc/self/exe", args...), name: args[0], ended: make(chan struct{})}
	c.cmd.Args[0] = os.Args[0]
	c.cmd.Stderr = &c.stderr
	death := unix.SIGKILL
	if !pipes {
		death = unix.SIGTERM // the daemon: unmount
	}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: death, Setpgid: true}
	var stdout io.ReadCloser
	var err error
	if pipes {
		c.lines = make(chan string, 1024)
		if c.stdin, err = c.cmd.StdinPipe(); err != nil {
			return nil, err
		}
		if stdout, err = c.cmd.StdoutPipe(); err != nil {
			return nil, err
		}
	}
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.children = append(d.children, c)
	d.mu.Unlock()
	if pipes && d.interrupted.Load() { // kill may have come before this one
		_ = c.cmd.Process.Kill()
	}
	go func() {
		if pipes {
			in := bufio.NewScanner(stdout)
			for in.Scan() {
				c.lines <- in.Text()
			}
			close(c.lines)
		}
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// kill ends every client, which ends what waits for them; the daemon stays.
func (d *demo) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.children {
		if c.lines != nil {
			_ = c.cmd.Process.Kill()
		}
	}
}

// reap waits for the killed clients; what they printed is nobody's any more.
func (d *demo) reap() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.children {
		if c.lines == nil {
			continue
		}
		for range c.lines {
		}
		<-c.ended
	}
}

// streamToConsumers is the first part: a producer and two consumers.
func (d *demo) streamToConsumers() error {
	p := part{demo: d, prefix: "frame", frames: d.frames, consumers: []string{"consumer-a", "consumer-b"}, producer: "producer", showAt: d.frames / 2}
	return p.run()
}

// streamThroughDevice is the second: a device between a producer and a consumer.
func (d *demo) streamThroughDevice() error {
	p := part{demo: d, prefix: "pipe", frames: max(d.frames/4, 1), consumers: []string{"sink"}, producer: "cpu", device: "gpu0", showAt: max(d.frames/8, 1)}
	return p.run()
}

// part is one stream.
type part struct {
	*demo
	prefix    string
	frames    uint64
	producer  string
	device    string // "": none
	consumers []string
	showAt    uint64

	procs  []*child
	digest map[uint64]string // by frame, of the producer
	seen   []map[uint64]string
}

// run prepares the mount, starts the processes and watches them to the end.
func (p *part) run() (err error) {
	if err := p.prepare(); err != nil {
		return err
	}
	defer func() { // after a failure only the failure counts
		if rerr := p.remove(); err == nil {
			err = rerr
		}
	}()
	if err := p.startAll(); err != nil {
		return err
	}
	what := fmt.Sprintf("%d frames of %d bytes, producer -> %d buffers (%s) -> %d consumers", p.frames, p.size, p.ring, p.exporter, len(p.consumers))
	if p.device != "" {
		what = fmt.Sprintf("%d frames of %d bytes, producer -> %d buffers (%s) -> device %s -> consumer", p.frames, p.size, p.ring, p.exporter, p.device)
	}
	fmt.Fprintln(p.out, what)
	start := time.Now()
	if err := p.watch(start); err != nil {
		p.kill()
		return err
	}
	return p.verdict(time.Since(start))
}

func (p *part) bufferName(i int) string { return fmt.Sprintf("%s-%d", p.prefix, i) }

// timelines are everybody's who signals.
func (p *part) timelines() []string {
	list := append([]string{p.producer}, p.consumers...)
	if p.device != "" {
		list = append(list, p.device)
	}
	return list
}

func (p *part) prepare() error {
	for i := range p.ring {
		path := filepath.Join(p.mnt, "buffers", p.bufferName(i))
		if err := createBuffer(path, p.exporter, int64(p.size)); err != nil {
			return err
		}
	}
	if p.device != "" {
		if err := os.Mkdir(filepath.Join(p.mnt, "devices", p.device), 0o777); err != nil {
			return err
		}
	}
	for _, name := range p.timelines() {
		if err := os.Mkdir(filepath.Join(p.mnt, "timelines", name), 0o777); err != nil {
			return err
		}
	}
	return nil
}

// remove takes away what prepare made. Timelines went with their owners.
func (p *part) remove() error {
	var errs []error
	for _, c := range p.procs {
		c.stdin.Close()
		select {
		case <-c.ended:
		case <-time.After(patience):
			_ = c.cmd.Process.Kill()
			<-c.ended
		}
	}
	for i := range p.ring {
		errs = append(errs, os.Remove(filepath.Join(p.mnt, "buffers", p.bufferName(i))))
	}
	if p.device != "" {
		errs = append(errs, os.Remove(filepath.Join(p.mnt, "devices", p.device)))
	}
	for _, name := range p.timelines() {
		if err := os.Remove(filepath.Join(p.mnt, "timelines", name)); err != nil && !gone(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// startAll starts consumers and device first, then the producer.
func (p *part) startAll() error {
	common := func(name string) []string {
		return []string{"--mnt", p.mnt, "--prefix", p.prefix, "--ring", strconv.Itoa(p.ring), "--name", name}
	}
	size := []string{"--frame-size", strconv.Itoa(p.size)}
	commands := [][]string{}
	for _, name := range p.consumers {
		commands = append(commands, slices.Concat([]string{"demo-consumer"}, common(name), size))
	}
	if p.device != "" {
		commands = append(commands, slices.Concat([]string{"demo-device"}, common(p.device), size, []string{"--device", p.device, "--after", p.producer}))
	}
	producer := slices.Concat([]string{"demo-producer"}, common(p.producer),
		[]string{"--input", p.input, "--frames", strconv.FormatUint(p.frames, 10), "--readers", strings.Join(p.consumers, ",")})
	if p.device != "" {
		producer = append(producer, "--writers", p.device, "--transformed")
	}
	for _, args := range append(commands, producer) {
		c, err := p.start(true, args...)
		if err != nil {
			return err
		}
		p.procs = append(p.procs, c)
	}
	return nil
}

// report is a line of a child.
type reportLine struct {
	from int // index into procs; the producer is last
	text string
	end  bool
}

// watch hands submitted frames on, collects digests, and shows what goes on, until
// all processes are done. A process that fails, or nothing for a while, ends it.
func (p *part) watch(start time.Time) error {
	lines := make(chan reportLine, 1024)
	for i, c := range p.procs {
		go func() {
			for text := range c.lines {
				lines <- reportLine{from: i, text: text}
			}
			<-c.ended
			lines <- reportLine{from: i, end: true}
		}()
	}
	p.digest = map[uint64]string{}
	p.seen = make([]map[uint64]string, len(p.consumers))
	for i := range p.seen {
		p.seen[i] = map[uint64]string{}
	}
	producer := len(p.procs) - 1
	progress := newProgress(p.out, p.frames, p.size, start)
	defer progress.end()
	for running := len(p.procs); running > 0; {
		var l reportLine
		select {
		case l = <-lines:
		case <-time.After(2 * patience):
			return fmt.Errorf("demo: nothing happened for %v", 2*patience)
		}
		if l.end {
			if c := p.procs[l.from]; c.err != nil {
				return c.failure()
			}
			running--
			if l.from == producer { // no more frames to hand on
				for _, c := range p.procs[:producer] {
					c.stdin.Close()
				}
			}
			continue
		}
		f := strings.Fields(l.text)
		if len(f) < 2 {
			return fmt.Errorf("demo: %s said %q", p.procs[l.from].name, l.text)
		}
		no, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			return err
		}
		switch {
		case f[0] == "submit":
			for _, c := range p.procs[:producer] {
				if _, err := fmt.Fprintln(c.stdin, no); err != nil && !errors.Is(err, syscall.EPIPE) {
					return err
				}
			}
			if no == p.showAt {
				progress.clear()
				p.show()
			}
		case l.from == producer:
			p.digest[no] = f[2]
		default:
			p.seen[l.from][no] = f[2]
			progress.at(slices.Min(lengths(p.seen)))
		}
	}
	return nil
}

func lengths(seen []map[uint64]string) []int {
	out := make([]int, len(seen))
	for i, m := range seen {
		out[i] = len(m)
	}
	return out
}

// verdict compares every digest that a consumer reported with the producer's.
func (p *part) verdict(took time.Duration) error {
	wrong, checked := 0, 0
	for no := range p.frames {
		want, ok := p.digest[no]
		if !ok {
			return fmt.Errorf("demo: the producer never reported frame %d", no)
		}
		for i, seen := range p.seen {
			checked++
			if got := seen[no]; got != want {
				wrong++
				if wrong <= 5 {
					fmt.Fprintf(p.out, "frame %d: %s got %.12q…, want %.12s…\n", no, p.consumers[i], got, want)
				}
			}
		}
	}
	seconds := took.Seconds()
	fmt.Fprintf(p.out, "%d frames in %.2f s: %.0f frames/s, %.0f MB/s to %s; %d SHA-256 checked, %d wrong\n",
		p.frames, seconds, float64(p.frames)/seconds, float64(p.frames)*float64(p.size)/1e6/seconds, strings.Join(p.consumers, " and to "), checked, wrong)
	if wrong > 0 {
		return fmt.Errorf("demo: %d of %d frames were not what the producer wrote", wrong, checked)
	}
	return nil
}

// show prints the tree and bufinfo while frames are under way.
func (p *part) show() {
	fmt.Fprintf(p.out, "\nwhile frame %d is under way:\n", p.showAt)
	printTree(p.out, p.mnt, filepath.Base(p.mnt), p.prefix+"-0")
	text, err := readText(filepath.Join(p.mnt, "bufinfo"))
	if err != nil {
		text = err.Error() + "\n"
	}
	fmt.Fprintf(p.out, "\n$ cat bufinfo\n%s\n", strings.TrimLeft(text, "\n"))
}

// printTree draws the mounted tree; of state/ and of a device's or an exporter's
// buffers only one buffer, which stands for the others.
func printTree(w io.Writer, dir, name, sample string) {
	fmt.Fprintf(w, "%s\n", name)
	var walk func(dir, indent string, depth int)
	walk = func(dir, indent string, depth int) {
		names, err := readNames(dir)
		if err != nil {
			return
		}
		if n := len(names); n > 1 && (filepath.Base(dir) == "state" || depth >= 2) && slices.Contains(names, sample) {
			names = []string{sample, fmt.Sprintf("… and %d more", n-1)}
		}
		for i, name := range names {
			branch, below := "├── ", "│   "
			if i == len(names)-1 {
				branch, below = "└── ", "    "
			}
			path := filepath.Join(dir, name)
			var st unix.Stat_t
			if unix.Lstat(path, &st) != nil {
				fmt.Fprintf(w, "%s%s%s\n", indent, branch, name)
				continue
			}
			note := ""
			if st.Size > 0 && st.Mode&unix.S_IFMT == unix.S_IFREG && depth == 1 {
				note = fmt.Sprintf("  %d bytes", st.Size)
			}
			fmt.Fprintf(w, "%s%s%s%s\n", indent, branch, name, note)
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				walk(path, indent+below, depth+1)
			}
		}
	}
	walk(dir, "", 0)
}

// progress is the line that counts frames: rewritten in place on a terminal, a new
// one at every quarter elsewhere.
type progress struct {
	out      io.Writer
	terminal bool
	frames   uint64
	size     int
	start    time.Time
	last     time.Time
	quarter  uint64
	drawn    bool
}

func newProgress(out io.Writer, frames uint64, size int, start time.Time) *progress {
	return &progress{out: out, terminal: isTerminal(out), frames: frames, size: size, start: start, last: start}
}

func (p *progress) at(done int) {
	now := time.Now()
	seconds := now.Sub(p.start).Seconds()
	line := fmt.Sprintf("frame %d of %d, %.0f frames/s, %.0f MB/s", done, p.frames, float64(done)/seconds, float64(done)*float64(p.size)/1e6/seconds)
	if p.terminal {
		if now.Sub(p.last) < 100*time.Millisecond && uint64(done) != p.frames {
			return
		}
		p.last = now
		fmt.Fprintf(p.out, "\r\x1b[K%s", line)
		p.drawn = true
	} else if q := 4 * uint64(done) / p.frames; q > p.quarter {
		p.quarter = q
		fmt.Fprintln(p.out, line)
	}
}

// clear makes room for other lines.
func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.out)
		p.drawn = false
	}
}
