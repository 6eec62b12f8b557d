// Package tests has everything that mounts: the program as a daemon of its own,
// and clients that are processes of their own, never this one. A Go process that
// opened, polled or mapped files of the mount could wait for itself.
//
// tests/clients/*.c are the clients. All of them, and the program, are built once
// by TestMain. Every process that is started here dies with this one, and every
// wait ends: a watchdog aborts the FUSE connections of a suite that hangs.
package tests

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// programs is the directory of what TestMain's run has built.
var programs struct {
	dir   string
	mu    sync.Mutex
	built map[string]error
}

// guardBefore is how long before `go test`'s own timeout the watchdog acts: a panic
// there would leave mounts behind.
const guardBefore = 20 * time.Second

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "dmabuffs-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	_ = os.Chmod(dir, 0o755) // other users run them too
	_ = os.Setenv("LC_ALL", "C")
	programs.dir, programs.built = dir, map[string]error{}
	if f := flag.Lookup("test.timeout"); f != nil {
		if d, err := time.ParseDuration(f.Value.String()); err == nil && d > 2*guardBefore {
			time.AfterFunc(d-guardBefore, func() { watchdog(d - guardBefore) })
		}
	}
	code := m.Run()
	_ = os.RemoveAll(dir)
	if left := mounted(); code == 0 && len(left) > 0 {
		fmt.Fprintln(os.Stderr, "still mounted:", left)
		code = 1
	}
	os.Exit(code)
}

// live has the daemons that serve at this moment.
var live struct {
	mu sync.Mutex
	m  map[*daemon]bool
}

func mounted() (dirs []string) {
	live.mu.Lock()
	defer live.mu.Unlock()
	for d := range live.m {
		if fs.IsMounted(d.dir) {
			dirs = append(dirs, d.dir)
		}
	}
	return dirs
}

// watchdog ends what hangs, by the connection and by process id, so that the tests fail and end.
func watchdog(after time.Duration) {
	fmt.Fprintf(os.Stderr, "watchdog: not done after %v\n", after)
	live.mu.Lock()
	all := make([]*daemon, 0, len(live.m))
	for d := range live.m {
		all = append(all, d)
	}
	live.mu.Unlock()
	for _, d := range all {
		d.destroy()
		fmt.Fprintf(os.Stderr, "watchdog: %s: the daemon said\n%s\n", d.dir, d.log)
	}
	children.mu.Lock()
	defer children.mu.Unlock()
	for pid := range children.m {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
	time.AfterFunc(guardBefore/2, func() {
		fmt.Fprintln(os.Stderr, "watchdog: giving up")
		os.Exit(3)
	})
}

// children are the process groups of clients that run.
var children struct {
	mu sync.Mutex
	m  map[int]bool
}

// source is this package's directory.
func source(elem ...string) string {
	dir, err := os.Getwd()
	if err != nil {
		panic(err)
	}
	return filepath.Join(append([]string{dir}, elem...)...)
}

// program builds a program at its first use and returns its path.
func program(t *testing.T, name string, build func(out string) *exec.Cmd) string {
	t.Helper()
	programs.mu.Lock()
	defer programs.mu.Unlock()
	out := filepath.Join(programs.dir, name)
	err, ok := programs.built[name]
	if !ok {
		cmd := build(out)
		if said, e := cmd.CombinedOutput(); e != nil {
			err = fmt.Errorf("%v: %w\n%s", cmd.Args, e, said)
		}
		programs.built[name] = err
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// buildBinary builds the program: static, or with the race detector if this test has it.
// DMABUFFS_BINARY names one that is built already.
func buildBinary(t *testing.T) string {
	t.Helper()
	if bin := os.Getenv("DMABUFFS_BINARY"); bin != "" {
		return bin
	}
	return program(t, "dmabuffs", func(out string) *exec.Cmd {
		args := []string{"build", "-o", out}
		cgo := "CGO_ENABLED=0"
		if raceEnabled {
			args, cgo = append(args, "-race"), "CGO_ENABLED=1"
		}
		cmd := exec.Command("go", append(args, "github.com/dmabuffs/dmabuffs/cmd/dmabuffs")...)
		cmd.Env = append(os.Environ(), cgo)
		return cmd
	})
}

// cProgram builds a C program of this directory, such as "clients/dbclient.c".
func cProgram(t *testing.T, path string) string {
	t.Helper()
	return program(t, strings.TrimSuffix(filepath.Base(path), ".c"), func(out string) *exec.Cmd {
		return exec.Command("gcc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", out, source(path))
	})
}

func dbclient(t *testing.T) string { return cProgram(t, "clients/dbclient.c") }

// needFUSE skips where nothing can be mounted; with DMABUFFS_NEED_FUSE=1, as in CI, it fails.
func needFUSE(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "mounting here needs root"
	} else if f, err := os.OpenFile("/dev/fuse", os.O_RDWR|syscall.O_CLOEXEC, 0); err != nil {
		why = err.Error()
	} else {
		f.Close()
	}
	switch {
	case why == "":
	case os.Getenv("DMABUFFS_NEED_FUSE") == "1":
		t.Fatal("DMABUFFS_NEED_FUSE=1, but " + why)
	default:
		t.Skip(why)
	}
}

// daemon is a `dmabuffs mount` in the foreground.
type daemon struct {
	t    *testing.T
	dir  string
	log  *syncBuffer
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	dev  uint32        // minor number of the mount: its directory in fusectl
}

// mount mounts with these options and returns the mount point. At the end of the test
// it is unmounted, which the daemon has to do quickly and with status 0.
func mount(t *testing.T, opts ...string) string {
	t.Helper()
	return mountDaemon(t, opts...).dir
}

func mountDaemon(t *testing.T, opts ...string) *daemon {
	t.Helper()
	needFUSE(t)
	base, err := os.MkdirTemp("", "dmabuffs-test-")
	if err != nil {
		t.Fatal(err)
	}
	_ = os.Chmod(base, 0o755)
	d := &daemon{t: t, dir: filepath.Join(base, "mnt"), log: &syncBuffer{}, done: make(chan struct{})}
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	args := []string{"mount"}
	if len(opts) > 0 {
		args = append(args, "-o", strings.Join(opts, ","))
	}
	d.cmd = exec.Command(buildBinary(t), append(args, d.dir)...)
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	d.cmd.Stderr = d.log
	out, err := d.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ready := make(chan string, 1)
	go func() {
		r := bufio.NewReader(out)
		line, _ := r.ReadString('\n')
		ready <- line
		_, _ = io.Copy(io.Discard, r)
		_ = d.cmd.Wait()
		close(d.done)
	}()
	live.mu.Lock()
	if live.m == nil {
		live.m = map[*daemon]bool{}
	}
	live.m[d] = true
	live.mu.Unlock()
	t.Cleanup(func() {
		d.stop()
		live.mu.Lock()
		delete(live.m, d)
		live.mu.Unlock()
		if !fs.IsMounted(d.dir) {
			_ = os.RemoveAll(base)
		}
	})
	select {
	case line := <-ready:
		if !strings.HasPrefix(line, "dmabuffs: mounted on ") {
			t.Fatalf("the daemon said %q, and %s", line, d.log)
		}
	case <-time.After(patience):
		t.Fatalf("not mounted within %v: %s", patience, d.log)
	}
	mounts, err := fs.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.IndexFunc(mounts, func(m fs.MountInfo) bool { return m.Dir == d.dir }); i >= 0 {
		d.dev = uint32(mounts[i].Minor)
	}
	return d
}

// stop unmounts. A test that failed shows the log.
func (d *daemon) stop() {
	d.t.Helper()
	select {
	case <-d.done:
		d.t.Errorf("the daemon has ended by itself: %v", d.cmd.ProcessState)
	default:
		_ = d.cmd.Process.Signal(syscall.SIGTERM)
	}
	select {
	case <-d.done:
		if code := d.cmd.ProcessState.ExitCode(); code != 0 {
			d.t.Errorf("the daemon ended with status %d", code)
		}
	case <-time.After(3 * patience): // a mount namespace of another test keeps a copy of the mount while it lives
		d.t.Errorf("the daemon did not end within %v of SIGTERM; its stacks are below", 3*patience)
		d.destroy()
	}
	if fs.IsMounted(d.dir) {
		d.t.Errorf("%s is still mounted", d.dir)
		d.abort()
		_ = unix.Unmount(d.dir, unix.MNT_DETACH)
	}
	if strings.Contains(d.log.String(), "DATA RACE") || strings.Contains(d.log.String(), "panic:") {
		d.t.Error("the daemon's log has a race or a panic")
	}
	if d.t.Failed() {
		d.t.Logf("the daemon's log:\n%s", d.log)
	}
}

// destroy ends a daemon that hangs: it prints its stacks, and its connection is aborted.
func (d *daemon) destroy() {
	_ = d.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-d.done:
	case <-time.After(2 * time.Second):
	}
	d.abort()
	_ = d.cmd.Process.Kill()
	select {
	case <-d.done:
	case <-time.After(2 * time.Second):
	}
	_ = unix.Unmount(d.dir, unix.MNT_DETACH)
}

const fusectl = "/sys/fs/fuse/connections"

// abort aborts the mount's connection, so that nobody waits for its daemon any more.
func (d *daemon) abort() {
	file := fmt.Sprintf("%s/%d/abort", fusectl, d.dev)
	if _, err := os.Stat(file); err != nil {
		_ = unix.Mount("none", fusectl, "fusectl", 0, "")
	}
	_ = os.WriteFile(file, []byte("1"), 0o200)
}

// command is a client: a process that dies with us, and its process group with the test.
func command(t *testing.T, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.WaitDelay = patience
	t.Cleanup(func() {
		if cmd.Process == nil {
			return
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		children.mu.Lock()
		delete(children.m, cmd.Process.Pid)
		children.mu.Unlock()
	})
	return cmd
}

func started(cmd *exec.Cmd) {
	children.mu.Lock()
	defer children.mu.Unlock()
	if children.m == nil {
		children.m = map[int]bool{}
	}
	children.m[cmd.Process.Pid] = true
}

// run runs a program in dir to its end, within limit.
func run(t *testing.T, limit time.Duration, dir, name string, args ...string) result {
	t.Helper()
	return runWith(t, limit, command(t, dir, name, args...))
}

func runWith(t *testing.T, limit time.Duration, cmd *exec.Cmd) result {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started(cmd)
	pid := cmd.Process.Pid
	guard := time.AfterFunc(limit, func() { _ = syscall.Kill(-pid, syscall.SIGKILL) })
	err := cmd.Wait()
	if !guard.Stop() {
		t.Fatalf("%v did not end within %v; it said %s%s", cmd.Args, limit, &out, &stderr)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// sh runs a shell script in dir, which must succeed, and returns what it printed.
func sh(t *testing.T, dir, script string) string {
	t.Helper()
	r := run(t, patience, dir, "bash", "-euo", "pipefail", "-c", script)
	if r.code != 0 {
		t.Fatalf("%s\nexit status %d: %s%s", script, r.code, r.out, r.err)
	}
	return r.out
}

// refuse runs a shell script in dir, which must fail and say why.
func refuse(t *testing.T, dir, script, why string) {
	t.Helper()
	r := run(t, patience, dir, "bash", "-c", "export LC_ALL=C; "+script)
	if r.code == 0 || !strings.Contains(r.err, why) {
		t.Errorf("%s\nexit status %d, it said %q; want %q", script, r.code, r.out+r.err, why)
	}
}

// cli runs the program in dir.
func cli(t *testing.T, dir string, args ...string) result {
	t.Helper()
	return run(t, patience, dir, buildBinary(t), args...)
}

// proc is a dbclient that lives on and does one command after the other.
type proc struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
	ended chan struct{}
	said  *syncBuffer
}

// start starts a dbclient in dir.
func start(t *testing.T, dir, name string) *proc {
	t.Helper()
	p := &proc{t: t, name: name, lines: make(chan string, 64), ended: make(chan struct{}), said: &syncBuffer{}}
	p.cmd = command(t, dir, dbclient(t))
	p.cmd.Stderr = p.said
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started(p.cmd)
	go func() {
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			p.lines <- s.Text()
		}
		close(p.lines)
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		p.in.Close()
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		select {
		case <-p.ended:
		case <-time.After(patience):
			t.Errorf("client %s (pid %d) cannot be killed", name, p.pid())
		}
	})
	return p
}

func (p *proc) pid() int { return p.cmd.Process.Pid }

// send gives a command without waiting for its answer.
func (p *proc) send(format string, args ...any) {
	p.t.Helper()
	if _, err := fmt.Fprintf(p.in, format+"\n", args...); err != nil {
		p.t.Fatalf("client %s: %v; %s", p.name, err, p.said)
	}
}

// answer waits for the answer to the oldest command.
func (p *proc) answer(limit time.Duration) string {
	p.t.Helper()
	select {
	case line, ok := <-p.lines:
		if !ok {
			p.t.Fatalf("client %s has ended: %s", p.name, p.said)
		}
		return line
	case <-time.After(limit):
		p.t.Fatalf("client %s did not answer within %v", p.name, limit)
	}
	return ""
}

// quiet checks that no answer comes for a little while: the command is blocked.
func (p *proc) quiet() {
	p.t.Helper()
	select {
	case line := <-p.lines:
		p.t.Fatalf("client %s was to wait, and answered %q", p.name, line)
	case <-time.After(100 * time.Millisecond):
	}
}

// try does a command and returns its answer: "ok …" or "error …".
func (p *proc) try(format string, args ...any) string {
	p.t.Helper()
	p.send(format, args...)
	return p.answer(patience)
}

// do does a command that must succeed, and returns what it gives.
func (p *proc) do(format string, args ...any) string {
	p.t.Helper()
	got := p.try(format, args...)
	rest, ok := strings.CutPrefix(got, "ok")
	if !ok {
		p.t.Fatalf("client %s: %s: %s", p.name, fmt.Sprintf(format, args...), got)
	}
	return strings.TrimPrefix(rest, " ")
}

// want does a command and compares its answer.
func (p *proc) want(want, format string, args ...any) {
	p.t.Helper()
	if got := p.try(format, args...); got != want {
		p.t.Errorf("client %s: %s: %q, want %q", p.name, fmt.Sprintf(format, args...), got, want)
	}
}

func (p *proc) number(format string, args ...any) uint64 {
	p.t.Helper()
	v, err := strconv.ParseUint(p.do(format, args...), 0, 64)
	if err != nil {
		p.t.Fatal(err)
	}
	return v
}

// kill ends the client with SIGKILL and waits for it.
func (p *proc) kill() {
	p.t.Helper()
	_ = syscall.Kill(p.pid(), syscall.SIGKILL)
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("client %s (pid %d) cannot be killed: %s", p.name, p.pid(), stateOf(p.pid()))
	}
}

// end closes its commands: the client ends by itself.
func (p *proc) end() {
	p.t.Helper()
	p.in.Close()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("client %s does not end", p.name)
	}
}

// stateOf is a process' state as /proc has it: "D (disk sleep)".
func stateOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err.Error()
	}
	for line := range strings.Lines(string(text)) {
		if s, ok := strings.CutPrefix(line, "State:"); ok {
			return strings.TrimSpace(s)
		}
	}
	return "?"
}

// cat is a file's text, read by another process.
func cat(t *testing.T, path string) string {
	t.Helper()
	r := run(t, patience, "/", "cat", path)
	if r.code != 0 {
		t.Fatal(r.err)
	}
	return r.out
}

// rows are a file's lines, split at blanks.
func rows(t *testing.T, path string) (out [][]string) {
	t.Helper()
	for line := range strings.Lines(cat(t, path)) {
		out = append(out, strings.Fields(line))
	}
	return out
}

// stats are the counters of state/<buffer>/stats.
func stats(t *testing.T, mnt, buffer string) map[string]uint64 {
	t.Helper()
	out := map[string]uint64{}
	for _, row := range rows(t, mnt+"/state/"+buffer+"/stats") {
		if len(row) == 2 {
			v, err := strconv.ParseUint(row[1], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			out[row[0]] = v
		}
	}
	return out
}

// attachments are the rows of state/<buffer>/attachments.
func attachments(t *testing.T, mnt, buffer string) []string {
	t.Helper()
	text := cat(t, mnt+"/state/"+buffer+"/attachments")
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

var exporters = []string{"system", "coherent", "noncoherent", "contiguous"}

// eachExporter runs a test on each exporter, each on a mount of its own; dir is its exporters/<name>.
func eachExporter(t *testing.T, test func(t *testing.T, mnt, exporter, dir string)) {
	for _, e := range exporters {
		t.Run(e, func(t *testing.T) {
			t.Parallel()
			mnt := mount(t, "size=512m", "contiguous=64m")
			test(t, mnt, e, mnt+"/exporters/"+e)
		})
	}
}

// task is a client that runs beside the test.
type task struct {
	t        *testing.T
	cmd      *exec.Cmd
	out, err *syncBuffer
	ended    chan struct{}
}

// background starts a program in dir.
func background(t *testing.T, dir, name string, args ...string) *task {
	t.Helper()
	p := &task{t: t, cmd: command(t, dir, name, args...), out: &syncBuffer{}, err: &syncBuffer{}, ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started(p.cmd)
	go func() {
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		select {
		case <-p.ended:
		case <-time.After(patience):
			t.Errorf("%v (pid %d) cannot be killed: %s", p.cmd.Args, p.cmd.Process.Pid, stateOf(p.cmd.Process.Pid))
		}
	})
	return p
}

// over reports whether it has ended.
func (p *task) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// wait waits for its end and returns its exit status, -1 when it was killed.
func (p *task) wait(limit time.Duration) int {
	p.t.Helper()
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(limit):
		p.t.Fatalf("%v did not end within %v (%s); it said %s%s", p.cmd.Args, limit, stateOf(p.cmd.Process.Pid), p.out, p.err)
		return -1
	}
}
