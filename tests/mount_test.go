package tests

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
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

// Mounting and unmounting as users do it: the program, in processes of its own.

// patience bounds every wait here. It is a guard against hanging, not a measure.
const patience = 30 * time.Second

// needRoot: mount(2), mknod(2) and mount namespaces are root's.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("DMABUFFS_NEED_FUSE") == "1" {
		t.Fatal("DMABUFFS_NEED_FUSE=1, and not root")
	}
	t.Skip("needs root")
}

// mountDir is an empty directory that every user may reach; at the end nothing is mounted on it.
func mountDir(t *testing.T) string {
	t.Helper()
	base, err := os.MkdirTemp("", "dmabuffs-mount-")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "mnt")
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for fs.IsMounted(dir) {
			t.Errorf("%s is still mounted", dir)
			if err := fs.Unmount(dir, true); err != nil {
				t.Error(err)
				return
			}
		}
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// result is how a program ended.
type result struct {
	out, err string
	code     int
}

// runProgram runs a program to its end; all its output must end with it.
func runProgram(t *testing.T, name string, args ...string) result {
	t.Helper()
	return runCommand(t, exec.Command(name, args...))
}

func runCommand(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	guard := time.AfterFunc(patience, func() { cmd.Process.Kill() })
	cmd.WaitDelay = patience
	err := cmd.Wait()
	if !guard.Stop() {
		t.Fatalf("%v did not end within %v", cmd.Args, patience)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	return result{out.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// want checks an exit status and that stderr has the text.
func (r result) want(t *testing.T, code int, text ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit status %d, want %d; it said: %s%s", r.code, code, r.out, r.err)
	}
	for _, s := range text {
		if !strings.Contains(r.err, s) {
			t.Errorf("stderr %q lacks %q", r.err, s)
		}
	}
}

// waitUntil polls for something that happens in another process.
func waitUntil(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// syncBuffer collects what a running program says.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// foreground is a `dmabuffs mount` that serves.
type foreground struct {
	t    *testing.T
	cmd  *exec.Cmd
	log  *syncBuffer
	done chan struct{}
}

// startMount runs `dmabuffs mount ARGS…` and returns when it said that it is mounted.
func startMount(t *testing.T, extra []*os.File, args ...string) *foreground {
	t.Helper()
	f := &foreground{t: t, log: &syncBuffer{}, done: make(chan struct{})}
	f.cmd = exec.Command(buildBinary(t), append([]string{"mount"}, args...)...)
	f.cmd.Stderr = f.log
	f.cmd.ExtraFiles = extra
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.kill)
	ready := make(chan string, 1)
	go func() {
		r := bufio.NewReader(out)
		line, _ := r.ReadString('\n')
		ready <- line
		_, _ = io.Copy(io.Discard, r)
		_ = f.cmd.Wait()
		close(f.done)
	}()
	select {
	case line := <-ready:
		if !strings.HasPrefix(line, "dmabuffs: mounted on ") {
			t.Fatalf("it said %q and %q", line, f.log)
		}
	case <-time.After(patience):
		t.Fatalf("not mounted within %v: %s", patience, f.log)
	}
	return f
}

// kill is for the end of a test that went wrong.
func (f *foreground) kill() {
	select {
	case <-f.done:
	default:
		f.cmd.Process.Kill()
		<-f.done
	}
}

func (f *foreground) signal(sig os.Signal) {
	f.t.Helper()
	if err := f.cmd.Process.Signal(sig); err != nil {
		f.t.Fatal(err)
	}
}

// wait returns the exit status.
func (f *foreground) wait() int {
	f.t.Helper()
	select {
	case <-f.done:
		return f.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		f.t.Fatalf("did not end within %v: %s", patience, f.log)
		return -1
	}
}

// client runs a shell line beside the mount, in another process.
func client(t *testing.T, dir, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-euc", script)
	cmd.Dir = dir
	r := runCommand(t, cmd)
	if r.code != 0 {
		t.Fatalf("%s: exit status %d: %s", script, r.code, r.err)
	}
	return r.out
}

// mountLine is mountinfo's view of dir; it must be a dmabuffs.
func mountLine(t *testing.T, dir string) fs.MountInfo {
	t.Helper()
	mounts, err := fs.Mounts()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(mounts, func(m fs.MountInfo) bool { return m.Dir == dir })
	if i < 0 {
		t.Fatalf("%s is not mounted", dir)
	}
	return mounts[i]
}

// daemonPID finds the daemon that serves dir by its command line.
func daemonPID(t *testing.T, dir string) int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range lines {
		raw, _ := os.ReadFile(file)
		args := strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00")
		if len(args) > 2 && args[1] == "mount" && slices.Contains(args, dir) {
			pid, _ := strconv.Atoi(strings.Split(file, "/")[2])
			return pid
		}
	}
	t.Fatalf("no daemon serves %s", dir)
	return 0
}

// ended: the process is gone, or a zombie that its new parent takes its time to reap.
func ended(pid int) func() bool {
	return func() bool {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.HasPrefix(string(raw[bytes.LastIndexByte(raw, ')')+1:]), " Z")
	}
}

func TestMountServesAndEnds(t *testing.T) {
	needRoot(t)
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := mountDir(t)
			f := startMount(t, nil, "-o", "size=1m,fsname=the pool,noexec", "-o", "noatime", dir)
			m := mountLine(t, dir)
			if m.Source != "the pool" || m.FSType != "fuse.dmabuffs" {
				t.Errorf("mounted as %q, %q", m.Source, m.FSType)
			}
			if m.Options != "rw,nosuid,nodev,noexec,noatime" {
				t.Errorf("mount options %q", m.Options)
			}
			if !strings.Contains(m.SuperOptions, "default_permissions") || strings.Contains(m.SuperOptions, "allow_other") {
				t.Errorf("file system's options %q", m.SuperOptions)
			}
			if got := client(t, dir, "echo hello > buffers/a; cat buffers/a"); got != "hello\n" {
				t.Errorf("read back %q", got)
			}
			f.signal(sig)
			if code := f.wait(); code != 0 {
				t.Errorf("exit status %d: %s", code, f.log)
			}
			if fs.IsMounted(dir) {
				t.Error("still mounted")
			}
		})
	}
}

func TestMountReadOnly(t *testing.T) {
	needRoot(t)
	dir := mountDir(t)
	f := startMount(t, nil, "-o", "ro", dir)
	r := runProgram(t, "sh", "-c", "echo x > "+dir+"/buffers/a")
	if r.code == 0 || !strings.Contains(r.err, "Read-only file system") {
		t.Errorf("a file was made: %+v", r)
	}
	runProgram(t, buildBinary(t), "umount", dir).want(t, 0)
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
}

// Root's mounts are not throttled by write-back, and only ours are touched.
func TestMountTunesWriteback(t *testing.T) {
	needRoot(t)
	others := knobs(t)
	dir := mountDir(t)
	startMount(t, nil, dir)
	m := mountLine(t, dir)
	ours := fmt.Sprintf("%d:%d", m.Major, m.Minor)
	now := knobs(t)
	if now[ours] != "100 0" {
		t.Errorf("max_ratio and strict_limit are %q", now[ours])
	}
	for dev, was := range others {
		if v, ok := now[dev]; ok && dev != ours && v != was {
			t.Errorf("%s had %q, has %q", dev, was, v)
		}
	}
	runProgram(t, buildBinary(t), "umount", dir).want(t, 0)
}

// knobs reads every backing device's settings, FUSE's of other mounts left out: they may
// be other tests'.
func knobs(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	dirs, err := filepath.Glob("/sys/class/bdi/*:*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		ratio, err1 := os.ReadFile(d + "/max_ratio")
		strict, err2 := os.ReadFile(d + "/strict_limit")
		if err1 == nil && err2 == nil {
			out[filepath.Base(d)] = strings.TrimSpace(string(ratio)) + " " + strings.TrimSpace(string(strict))
		}
	}
	return out
}

func TestMountDaemon(t *testing.T) {
	needRoot(t)
	bin := buildBinary(t)
	dir := mountDir(t)
	log := filepath.Join(filepath.Dir(dir), "log")
	// A pipe that the daemon must not keep: whoever reads it waits for its end.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(bin, "mount", "--daemon", "--debug", "--log", "log", "mnt") // relative
	cmd.Dir = filepath.Dir(dir)
	cmd.ExtraFiles = []*os.File{w}
	res := runCommand(t, cmd)
	w.Close()
	res.want(t, 0)
	if res.out+res.err != "" {
		t.Errorf("it said %q, %q", res.out, res.err)
	}
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the daemon keeps an inherited pipe open: %v", err)
	}
	if got := client(t, dir, "echo hello > buffers/a; cat buffers/a"); got != "hello\n" {
		t.Errorf("read back %q", got)
	}
	pid := daemonPID(t, dir)
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of pid %d, %v: not its own", sid, pid, err)
	}
	if cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); err != nil || cwd != "/" {
		t.Errorf("working directory %q, %v", cwd, err)
	}
	runProgram(t, bin, "umount", dir).want(t, 0)
	waitUntil(t, "the daemon ends", ended(pid))
	if raw, err := os.ReadFile(log); err != nil || !bytes.Contains(raw, []byte("level=DEBUG")) {
		t.Errorf("the log has %q, %v", raw, err)
	}
}

func TestMountDaemonFails(t *testing.T) {
	needRoot(t)
	bin := buildBinary(t)
	dir := mountDir(t)
	file := filepath.Join(filepath.Dir(dir), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, mode := range [][]string{{"mount"}, {"mount", "--daemon"}} {
		run := func(args ...string) result { return runProgram(t, bin, append(slices.Clone(mode), args...)...) }
		run(dir+"/absent").want(t, 1, "dmabuffs: mount: ", "absent: no such file or directory")
		run(file).want(t, 1, "file: not a directory")
		run("-o", "exporter=bogus", dir).want(t, 1, "bogus")
		run("-o", "size=64m,bogus", dir).want(t, 2, `option "bogus": unknown`)
		run("-o", "size=64q", dir).want(t, 2, `option "size=64q": want a number`)
		run("-o", "fault=never", dir).want(t, 2, `option "fault=never": want allow or wait`)
		run("--log", dir+"/absent/log", dir).want(t, 1, "absent/log: no such file or directory")
		run().want(t, 2, "which directory?")
		run("").want(t, 2, "MNT is empty")
		run(dir, dir).want(t, 2)
		run("--fuse-fd=1", dir).want(t, 2, "--fuse-fd 1")
		run("--fuse-fd=99").want(t, 1)
		run("--fuse-fd=x", dir).want(t, 2)
		run("/dev/fd/x").want(t, 2, "/dev/fd/x")
	}
	if fs.IsMounted(dir) {
		t.Error("mounted after all")
	}
}

func TestMountTwice(t *testing.T) {
	needRoot(t)
	dir := mountDir(t)
	f := startMount(t, nil, dir)
	runProgram(t, buildBinary(t), "mount", dir).want(t, 1, "a dmabuffs is mounted there already")
	client(t, dir, "cat version")
	f.signal(syscall.SIGTERM)
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
}

// A mount point's name may be anything, and lead there by a symbolic link.
func TestMountPointNames(t *testing.T) {
	needRoot(t)
	bin := buildBinary(t)
	dir := mountDir(t)
	base := filepath.Dir(dir)
	odd := filepath.Join(base, "a b\tc\\d\ne")
	link := filepath.Join(base, "link")
	if err := errors.Join(os.Mkdir(odd, 0o755), os.Symlink(odd, link)); err != nil {
		t.Fatal(err)
	}
	runProgram(t, bin, "mount", "--daemon", link).want(t, 0)
	defer fs.Unmount(odd, true)
	if !fs.IsMounted(odd) || !fs.IsMounted(link) {
		t.Error("not mounted where the link leads")
	}
	client(t, odd, "cat version")
	runProgram(t, bin, "umount", link).want(t, 0)
	if fs.IsMounted(odd) {
		t.Error("still mounted")
	}
}

func TestMountClearsDead(t *testing.T) {
	needRoot(t)
	bin := buildBinary(t)
	dir := mountDir(t)
	die := func() {
		t.Helper()
		f := startMount(t, nil, dir)
		client(t, dir, "echo x > buffers/a")
		f.signal(syscall.SIGKILL)
		f.wait()
		waitUntil(t, "the mount is dead", func() bool {
			var st unix.Statfs_t
			return unix.Statfs(dir, &st) == syscall.ENOTCONN
		})
	}

	die()
	d := doctor(t, 1, dir)
	if f := d.find(dir); f.Status != "missing" || !strings.Contains(f.Detail, "dead") || !strings.Contains(f.Do, "umount") {
		t.Errorf("doctor says %+v", f)
	}
	f := startMount(t, nil, dir) // clears
	if log := f.log.String(); !strings.Contains(log, "daemon died") || !strings.Contains(log, dir) {
		t.Errorf("the log does not say that a dead mount was cleared: %q", log)
	}
	client(t, dir, "cat version")
	runProgram(t, bin, "umount", dir).want(t, 0)
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}

	die()
	runProgram(t, bin, "umount", dir).want(t, 0)
	if fs.IsMounted(dir) {
		t.Error("umount leaves the dead mount")
	}

	// Somebody sits on the dead mount: nothing can be lost, it goes.
	f = startMount(t, nil, dir)
	sitter := startHolder(t, dir, "")
	f.signal(syscall.SIGKILL)
	f.wait()
	f = startMount(t, nil, dir)
	sitter.end()
	f.signal(syscall.SIGTERM)
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
}

// holder is a shell that sits in a directory, and does what it is told, line by line.
type holder struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startHolder(t *testing.T, dir, first string) *holder {
	t.Helper()
	h := &holder{t: t, cmd: exec.Command("sh")}
	h.cmd.Dir = dir
	var err error
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	h.out = bufio.NewReader(out)
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.cmd.Process.Kill(); h.cmd.Wait() })
	if got := h.do(first + "\necho ready"); got != "ready" {
		t.Fatalf("the holder said %q", got)
	}
	return h
}

// do has the shell run a line and returns the line that it answers.
func (h *holder) do(line string) string {
	h.t.Helper()
	if _, err := fmt.Fprintln(h.in, line); err != nil {
		h.t.Fatal(err)
	}
	answer := make(chan string, 1)
	go func() {
		s, _ := h.out.ReadString('\n')
		answer <- strings.TrimSuffix(s, "\n")
	}()
	select {
	case s := <-answer:
		return s
	case <-time.After(patience):
		h.t.Fatalf("no answer to %q within %v", line, patience)
		return ""
	}
}

func (h *holder) end() {
	h.in.Close()
	h.cmd.Wait()
}

// The first signal to a busy mount names its holders and serves on, the second
// detaches, and the daemon ends when the last user is gone.
func TestMountBusy(t *testing.T) {
	needRoot(t)
	bin := buildBinary(t)
	dir := mountDir(t)
	f := startMount(t, nil, dir)
	client(t, dir, "echo hello > buffers/a")
	h := startHolder(t, dir, "exec 7< buffers/a")
	pid := strconv.Itoa(h.cmd.Process.Pid)
	cwd, fd := "working directory "+dir, "fd 7 "+dir+"/buffers/a"

	runProgram(t, bin, "umount", dir).want(t, 1, "is busy: held by pid "+pid+" (", cwd, fd, "umount -l")
	f.signal(syscall.SIGTERM)
	waitUntil(t, "the log names the holder", func() bool { return strings.Contains(f.log.String(), "pid "+pid+" (") })
	if log := f.log.String(); !strings.Contains(log, cwd) || !strings.Contains(log, fd) {
		t.Errorf("the log says %q", log)
	}
	client(t, dir, "test $(cat buffers/a) = hello") // serves on

	f.signal(syscall.SIGTERM)
	waitUntil(t, "the mount point is free", func() bool { return !fs.IsMounted(dir) })
	if got := h.do("cat <&7"); got != "hello" {
		t.Errorf("after the detach the holder reads %q", got)
	}
	if got := h.do("echo more > buffers/b; cat buffers/b"); got != "more" {
		t.Errorf("after the detach the holder writes, and reads %q", got)
	}
	h.end()
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
}

// A program that runs from a buffer holds it by a mapping, without a descriptor.
func TestMountBusyByMapping(t *testing.T) {
	needRoot(t)
	dir := mountDir(t)
	f := startMount(t, nil, dir)
	client(t, dir, "cp $(command -v sleep) buffers/prog; chmod +x buffers/prog")
	prog := exec.Command(dir+"/buffers/prog", "1000")
	if err := prog.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { prog.Process.Kill(); prog.Wait() }()
	err := fs.Unmount(dir, false)
	var busy *fs.BusyError
	if !errors.As(err, &busy) || !errors.Is(err, syscall.EBUSY) {
		t.Fatalf("unmounting: %v", err)
	}
	var what []string
	for _, h := range busy.Holders {
		if h.PID != prog.Process.Pid || h.Comm != "prog" || h.Path != dir+"/buffers/prog" {
			t.Errorf("holder %+v", h)
		}
		what = append(what, h.What)
	}
	if got := strings.Join(what, ","); got != "program,mapping" {
		t.Errorf("held as %q", got)
	}
	prog.Process.Kill()
	prog.Wait()
	f.signal(syscall.SIGTERM)
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
}

// A mount on the mount holds it too.
func TestMountBusyByMount(t *testing.T) {
	needRoot(t)
	dir := mountDir(t)
	f := startMount(t, nil, dir)
	inner := dir + "/devices"
	if r := runProgram(t, "mount", "-t", "tmpfs", "none", inner); r.code != 0 {
		t.Fatal(r.err)
	}
	defer unix.Unmount(inner, unix.MNT_DETACH)
	runProgram(t, buildBinary(t), "umount", dir).want(t, 1, "the mount on "+inner)
	if err := unix.Unmount(inner, 0); err != nil {
		t.Fatal(err)
	}
	f.signal(syscall.SIGTERM)
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
}

// The third signal ends the mount under its users.
func TestMountAborted(t *testing.T) {
	needRoot(t)
	dir := mountDir(t)
	f := startMount(t, nil, dir)
	h := startHolder(t, dir, "")
	f.signal(syscall.SIGINT)
	waitUntil(t, "the log names the holder", func() bool { return strings.Contains(f.log.String(), "is busy") })
	f.signal(syscall.SIGINT)
	waitUntil(t, "the mount point is free", func() bool { return !fs.IsMounted(dir) })
	f.signal(syscall.SIGINT)
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
	if got := h.do("cat version 2>&1 || echo failed"); !strings.Contains(got, "not connected") {
		t.Errorf("after the abort the holder gets %q", got)
	}
}

func TestUmountLazy(t *testing.T) {
	needRoot(t)
	dir := mountDir(t)
	f := startMount(t, nil, dir)
	h := startHolder(t, dir, "")
	runProgram(t, buildBinary(t), "umount", "-l", dir).want(t, 0)
	if fs.IsMounted(dir) {
		t.Error("still mounted")
	}
	if got := h.do("echo x > buffers/a; cat buffers/a"); got != "x" {
		t.Errorf("its user reads %q", got)
	}
	h.end()
	if code := f.wait(); code != 0 {
		t.Errorf("exit status %d: %s", code, f.log)
	}
}

func TestUmountOthers(t *testing.T) {
	bin := buildBinary(t)
	dir := mountDir(t)
	runProgram(t, bin, "umount", "/proc").want(t, 1, "/proc: not a dmabuffs, but proc")
	runProgram(t, bin, "umount", "-l", "/proc").want(t, 1, "/proc: not a dmabuffs, but proc")
	runProgram(t, bin, "umount", dir).want(t, 1, "nothing is mounted there")
	runProgram(t, bin, "umount", dir+"/absent").want(t, 1, "no such file")
	runProgram(t, bin, "umount").want(t, 2)
	if _, err := os.Stat("/proc/self"); err != nil {
		t.Errorf("/proc is gone: %v", err)
	}
}

// mountForeign mounts as a container's manager would: not served by anybody yet.
func mountForeign(t *testing.T, dir string) *os.File {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions", fd)
	if err := unix.Mount("foreign", dir, "fuse.dmabuffs", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		unix.Close(fd)
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return os.NewFile(uintptr(fd), "fuse")
}

func TestMountFuseFD(t *testing.T) {
	needRoot(t)
	for name, args := range map[string]func(dir string) []string{
		"fuse-fd":              func(string) []string { return []string{"--fuse-fd=3"} },
		"dev-fd":               func(string) []string { return []string{"/dev/fd/3"} },
		"with the mount point": func(dir string) []string { return []string{"--fuse-fd=3", dir} },
	} {
		t.Run(name, func(t *testing.T) {
			dir := mountDir(t)
			conn := mountForeign(t, dir)
			f := startMount(t, []*os.File{conn}, args(dir)...)
			conn.Close()
			if got := client(t, dir, "echo hello > buffers/a; cat buffers/a"); got != "hello\n" {
				t.Errorf("read back %q", got)
			}
			f.signal(syscall.SIGTERM)
			if code := f.wait(); code != 0 {
				t.Errorf("exit status %d: %s", code, f.log)
			}
			// Without MNT it depends on the kernel whether the daemon knew where it was mounted.
			if fs.IsMounted(dir) {
				if name == "with the mount point" {
					t.Error("still mounted")
				}
				if err := fs.Unmount(dir, false); err != nil { // dead by now
					t.Error(err)
				}
			}
		})
	}
	t.Run("out of sight", func(t *testing.T) {
		dir := mountDir(t)
		conn := mountForeign(t, dir)
		// The daemon's namespace has no such mount, as in a container.
		log := &syncBuffer{}
		cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-euc",
			"umount -l \"$0\"; exec \"$1\" mount --fuse-fd=3", dir, buildBinary(t))
		cmd.ExtraFiles = []*os.File{conn}
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		conn.Close()
		waitUntil(t, "it serves", func() bool { return strings.Contains(log.String(), "mounted on descriptor 3") })
		if got := client(t, dir, "echo hello > buffers/a; cat buffers/a"); got != "hello\n" {
			t.Errorf("read back %q", got)
		}
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, log)
		}
		if !fs.IsMounted(dir) {
			t.Error("unmounted from another namespace")
		}
		runProgram(t, buildBinary(t), "umount", dir).want(t, 0) // dead by now
	})
	t.Run("daemon", func(t *testing.T) {
		dir := mountDir(t)
		conn := mountForeign(t, dir)
		cmd := exec.Command(buildBinary(t), "mount", "--daemon", "--fuse-fd=3", dir)
		cmd.ExtraFiles = []*os.File{conn}
		runCommand(t, cmd).want(t, 0)
		conn.Close()
		client(t, dir, "cat version")
		runProgram(t, buildBinary(t), "umount", dir).want(t, 0)
	})
	t.Run("no connection", func(t *testing.T) {
		null, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer null.Close()
		cmd := exec.Command(buildBinary(t), "mount", "--fuse-fd=3")
		cmd.ExtraFiles = []*os.File{null}
		runCommand(t, cmd).want(t, 1, "fuse-fd 3: not an open /dev/fuse")
	})
}

// namespaced runs a shell script as root in a mount namespace of its own, with $D the program,
// $W a directory that everybody reaches, $M a mount point of nobody's in it, and $as_nobody in
// front of a command runs it as the user nobody. /dev/fuse has the given mode there.
func namespaced(t *testing.T, fuseMode, script string) string {
	t.Helper()
	needRoot(t)
	for _, tool := range []string{"unshare", "setpriv", "mknod", "mount", "fusermount3"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v: scripts/setup installs it", err)
		}
	}
	dir := mountDir(t)
	base := filepath.Dir(dir)
	bin, err := os.ReadFile(buildBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	writeProgram(t, filepath.Join(base, "dmabuffs"), bin)
	const prelude = `
mkdir $W/dev
mount -t tmpfs -o mode=0755 none $W/dev
mknod -m $FUSE_MODE $W/dev/fuse c 10 229
mount --bind $W/dev/fuse /dev/fuse
chown 65534:65534 $M
as_nobody="setpriv --reuid 65534 --regid 65534 --clear-groups --"
fail() { echo "$*" >&2; exit 1; }
# a script that fails leaves no daemon behind
trap 'while umount -l $M 2>/dev/null; do :; done; umount -l $W/dev' EXIT
`
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "-m", "--propagation", "private", "sh", "-euc", prelude+script)
	cmd.Env = append(os.Environ(), "D="+base+"/dmabuffs", "W="+base, "M="+dir, "FUSE_MODE="+fuseMode, "LC_ALL=C")
	cmd.WaitDelay = patience
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	return string(out)
}

// writeProgram has another process write the file: a fork of ours, meanwhile, would hold it
// open for writing and make it "text file busy".
func writeProgram(t *testing.T, path string, data []byte) {
	t.Helper()
	cmd := exec.Command("sh", "-c", `cat > "$0" && chmod 755 "$0"`, path)
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// Inside a user namespace an ordinary user mounts without fusermount3.
func TestMountUserNamespace(t *testing.T) {
	out := namespaced(t, "0666", `
export PATH=$PATH
$as_nobody unshare -Urm sh -euc '
	trap "umount -l $M 2>/dev/null || :" EXIT
	PATH=/nonexistent $D mount --daemon $M
	grep " $M .* fuse.dmabuffs " /proc/self/mountinfo
	echo hello > $M/buffers/a
	echo read $(cat $M/buffers/a)
	dd if=/dev/zero of=$M/exporters/coherent/c bs=64k count=3 status=none
	stat -c "size %s" $M/buffers/c
	echo domain $(head -1 $M/state/c/domain)
	cat $M/version
	if (cd $M; $D umount $M) 2>/dev/null; then echo unmounted while busy; exit 1; fi
	$D umount $M
	! grep -q " $M " /proc/self/mountinfo
' 2>&1`)
	for _, want := range []string{"read hello", "size 196608", "default_permissions"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}

// Outside of one, fusermount3 mounts.
func TestMountFusermount(t *testing.T) {
	out := namespaced(t, "0666", `
$as_nobody $D mount --daemon -o fsname=my\\,pool,noexec $M
grep " $M " /proc/self/mountinfo
$as_nobody sh -euc 'echo hello > $M/buffers/a; echo read $(cat $M/buffers/a); stat -c "owner %U" $M/buffers $M/buffers/a'
if cat $M/version 2>/dev/null; then fail "root gets in without allow_other"; fi
# busy: by name
$as_nobody sh -c 'cd $M; exec sleep 1000' & holder=$!
until [ "$(readlink /proc/$holder/cwd)" = $M ]; do sleep 0.02; done
$as_nobody $D umount $M 2>$W/err && fail "unmounted while busy"
grep "held by pid $holder (sleep: working directory $M)" $W/err
kill $holder; wait $holder || :
$as_nobody $D umount $M
grep -q " $M " /proc/self/mountinfo && fail "still mounted"
# a killed daemon
$as_nobody $D mount $M > $W/out & daemon=$!
until grep -q mounted $W/out; do sleep 0.02; done
kill -9 $daemon; wait $daemon || :
$as_nobody ls $M 2>&1 | grep "Transport endpoint"
$as_nobody $D mount --daemon $M
$as_nobody cat $M/version
$as_nobody $D umount $M
# allow_other is the administrator's to allow
$as_nobody $D mount -o allow_other $M 2>$W/err && fail "allow_other without user_allow_other"
grep user_allow_other $W/err
echo user_allow_other > $W/fuse.conf
mount --bind $W/fuse.conf /etc/fuse.conf
$as_nobody $D mount --daemon -o allow_other,mode=0755 $M
cat $M/version
setpriv --reuid 1 --regid 1 --clear-groups sh -c 'cat $M/version && ! echo x > $M/buffers/b' 2>&1
$as_nobody $D umount $M
# what fusermount3 would drop silently
$as_nobody $D mount -o suid $M 2>$W/err && fail "suid by fusermount3"
grep 'option "suid"' $W/err
`)
	for _, want := range []string{"fuse.dmabuffs my,pool", "noexec", "read hello", "owner nobody\nowner nobody", "user_id=65534", "Permission denied"} {
		if !strings.Contains(strings.ReplaceAll(out, `\054`, ","), want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}

// A /dev/fuse that does not open is named with what to do.
func TestMountDeviceClosed(t *testing.T) {
	out := namespaced(t, "0600", `
$as_nobody $D mount $M 2>&1 && fail "mounted"
$as_nobody $D doctor && fail "doctor is content"
umount -l /dev/fuse
`)
	for _, want := range []string{"dmabuffs: mount: open /dev/fuse: permission denied", "chmod 0666 /dev/fuse", "A mount is not possible."} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}

// mount(8) finds the helper in /sbin: the namespace's own.
func TestMountHelper(t *testing.T) {
	out := namespaced(t, "0600", `
sbin=$(readlink -f /sbin)
mkdir $W/sbin
mount --bind $sbin $W/sbin
mount -t tmpfs none $sbin
for f in $W/sbin/*; do ln -s $f $sbin/; done
ln -s $D $sbin/mount.fuse.dmabuffs
ln -s $D $sbin/mount.dmabuffs
trap 'while umount -l $M 2>/dev/null; do :; done; umount -l $sbin $W/sbin $W/dev' EXIT

mount -t fuse.dmabuffs none $M -o size=64m,noexec
grep " $M " /proc/self/mountinfo
echo hello > $M/buffers/a; echo read $(cat $M/buffers/a)
df -B1 --output=size $M
umount $M
grep -q " $M " /proc/self/mountinfo && fail "still mounted"

mount -t fuse.dmabuffs pool $M -o bogus=7 2>$W/err && fail "bogus=7"
cat $W/err
mount -s -t fuse.dmabuffs pool $M -o bogus=7,ro
findmnt -n -o SOURCE,OPTIONS $M
umount $M

mount -t dmabuffs second $M
findmnt -n -o SOURCE,FSTYPE $M
umount $M

echo "tabbed $M fuse.dmabuffs noauto,user,_netdev,nofail,x-systemd.automount,size=8m,exporter=coherent 0 0" > $W/fstab
mount --fstab $W/fstab $M
findmnt -n -o SOURCE $M
echo c > $M/buffers/c
ls $M/exporters/coherent
umount $M
$D doctor | grep "mount(8) helper"
`)
	for _, want := range []string{
		"fuse.dmabuffs dmabuffs", "read hello", "67108864", `option "bogus=7": unknown`, "pool", "second fuse.dmabuffs", "tabbed", "\nc\n",
		"mount(8) helper          ok",
	} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("%q is not in:\n%s", want, out)
		}
	}
}

// doctorReport is doctor --json.
type doctorReport struct {
	MountPossible bool `json:"mount_possible"`
	FUSE          *fs.Features
	Checks        []doctorFinding
}

type doctorFinding struct{ Check, Status, Detail, Do string }

func (d doctorReport) find(check string) doctorFinding {
	for _, f := range d.Checks {
		if f.Check == check {
			return f
		}
	}
	return doctorFinding{}
}

func doctor(t *testing.T, code int, args ...string) (d doctorReport) {
	t.Helper()
	r := runProgram(t, buildBinary(t), append([]string{"doctor", "--json"}, args...)...)
	r.want(t, code)
	if err := json.Unmarshal([]byte(r.out), &d); err != nil {
		t.Fatalf("%v in %s", err, r.out)
	}
	return d
}

func TestDoctor(t *testing.T) {
	needRoot(t)
	d := doctor(t, 0)
	if !d.MountPossible || d.FUSE == nil || d.FUSE.Major != 7 || d.FUSE.MountedBy != "mount(2)" {
		t.Errorf("%+v", d)
	}
	for _, check := range []string{
		"kernel", "/dev/fuse", "fusermount3", "trial mount", "FUSE mmap of direct I/O", "passthrough", "write-back tuning",
		"user namespaces", "open files", "memfd", "seccomp notification", "mount(8) helper", "mounts",
	} {
		switch f := d.find(check); {
		case f.Check == "":
			t.Errorf("no check of %s", check)
		case f.Status != "ok" && f.Status != "note" && f.Status != "missing", f.Detail == "":
			t.Errorf("%+v", f)
		case f.Status != "ok" && f.Do == "":
			t.Errorf("%s: does not say what to do", check)
		}
	}
	dir := mountDir(t)
	doctor(t, 1, dir) // nothing is mounted there
	startMount(t, nil, dir)
	d = doctor(t, 0, dir)
	if f := d.find(dir); f.Status != "ok" {
		t.Errorf("%+v", f)
	}
	if f := d.find(dir + " write-back"); f.Status != "ok" {
		t.Errorf("%+v", f)
	}
	table := runProgram(t, buildBinary(t), "doctor", dir)
	table.want(t, 0)
	if !strings.Contains(table.out, "A mount is possible.") || !strings.Contains(table.out, "CHECK") {
		t.Errorf("the table is\n%s", table.out)
	}
	runProgram(t, buildBinary(t), "umount", dir).want(t, 0)
}
