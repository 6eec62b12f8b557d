package tests

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Programs under `dmabuffs run`: tests/runclients, and shells.

const runFlags = "-std=gnu11 -D_GNU_SOURCE -O2 -Wall -Wextra -Werror -pthread"

func clientOfRun(t *testing.T, name string, more ...string) string {
	t.Helper()
	return program(t, name+strings.Join(more, ""), func(out string) *exec.Cmd {
		args := append(strings.Fields(runFlags), more...)
		return exec.Command("gcc", append(args, "-o", out, source("runclients", name+".c"))...)
	})
}

func runclient(t *testing.T) string { return clientOfRun(t, "runclient") }

// nobody is an ordinary user.
const nobody = "65534"

// asUser makes a command one of an ordinary user without any capability, who can open /dev/fuse.
func asUser(name string, args ...string) (string, []string) {
	const script = `
		dev=$(mktemp -d)
		mount -t tmpfs none "$dev"
		mknod -m 0666 "$dev/fuse" c 10 229
		mount --bind "$dev/fuse" /dev/fuse
		umount -l "$dev"
		rmdir "$dev"
		exec setpriv --reuid ` + nobody + ` --regid ` + nobody + ` --clear-groups --inh-caps=-all --bounding-set=-all "$@"`
	return "unshare", append([]string{"--mount", "--propagation", "private", "bash", "-euc", script, "bash", name}, args...)
}

// runCommand is `dmabuffs run ARGS`, as root or as an ordinary user.
func runCmd(t *testing.T, user bool, args ...string) *exec.Cmd {
	t.Helper()
	needFUSE(t)
	name, all := buildBinary(t), append([]string{"run"}, args...)
	if user {
		name, all = asUser(name, all...)
	}
	return command(t, "/", name, all...)
}

func underRun(t *testing.T, user bool, args ...string) result {
	t.Helper()
	return runWith(t, 2*patience, runCmd(t, user, args...))
}

// eachUser runs a test as root and as an ordinary user.
func eachUser(t *testing.T, test func(t *testing.T, user bool)) {
	t.Run("root", func(t *testing.T) { test(t, false) })
	t.Run("user", func(t *testing.T) { test(t, true) })
}

// Every device, ioctl and errno, by the C client.
func TestRunDevices(t *testing.T) {
	client := runclient(t)
	eachUser(t, func(t *testing.T, user bool) {
		for _, section := range []string{"paths", "heaps", "udmabufs", "syncs", "exports", "limits", "threads", "children", "interrupted", "arches"} {
			t.Run(section, func(t *testing.T) {
				t.Parallel()
				r := underRun(t, user, "--", client, section)
				if r.code != 0 || r.out != "ok "+section+"\n" || r.err != "" {
					t.Errorf("status %d, it said %q, %q", r.code, r.out, r.err)
				}
			})
		}
	})
}

// Nothing is preloaded: static programs and Go programs are served, too.
func TestRunStatic(t *testing.T) {
	static := clientOfRun(t, "runclient", "-static")
	goclient := program(t, "goclient", func(out string) *exec.Cmd {
		cmd := exec.Command("go", "build", "-o", out, "./runclients/goclient")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		return cmd
	})
	eachUser(t, func(t *testing.T, user bool) {
		if r := underRun(t, user, "--", static, "once", "paths", "udmabufs"); r.code != 0 {
			t.Errorf("static: status %d: %s%s", r.code, r.out, r.err)
		}
		if r := underRun(t, user, "--", goclient); r.code != 0 || r.out != "ok\n" {
			t.Errorf("go: status %d: %s%s", r.code, r.out, r.err)
		}
	})
}

func TestRunStatus(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "no-interpreter-line")
	if err := os.WriteFile(script, []byte("echo $0 $1; exit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	lost := filepath.Join(dir, "lost")
	if err := os.WriteFile(lost, []byte("#!/nowhere/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args     []string
		code     int
		out, err string
	}{
		{[]string{"--", "true"}, 0, "", ""},
		{[]string{"true"}, 0, "", ""},
		{[]string{"--", "sh", "-c", "exit 7"}, 7, "", ""},
		{[]string{"sh", "-c", "echo $1 >&2; exit 255", "sh", "--verbose"}, 255, "", "--verbose\n"},
		{[]string{"--", "sh", "-c", "kill -TERM $$"}, 128 + 15, "", ""},
		{[]string{"--", "sh", "-c", "kill -KILL $$"}, 128 + 9, "", ""},
		{[]string{"--", script, "x"}, 3, script + " x\n", ""},
		{[]string{"--", lost}, 127, "", "dmabuffs: run: " + lost + ": no such file or directory\n"},
		{[]string{"--", "no-such-command"}, 127, "", "dmabuffs: run: no-such-command: no such file or directory\n"},
		{[]string{"--", "/no/such/command"}, 127, "", "dmabuffs: run: /no/such/command: no such file or directory\n"},
		{[]string{"--", ""}, 127, "", "dmabuffs: run: : no such file or directory\n"},
		{[]string{"--", "/etc/passwd"}, 126, "", "dmabuffs: run: /etc/passwd: permission denied\n"},
		{[]string{"--", "/"}, 126, "", "dmabuffs: run: /: permission denied\n"},
	} {
		r := underRun(t, false, c.args...)
		if r.code != c.code || r.out != c.out || r.err != c.err {
			t.Errorf("run %q: status %d, %q, %q; want %d, %q, %q", c.args, r.code, r.out, r.err, c.code, c.out, c.err)
		}
	}
	for _, args := range [][]string{{}, {"--"}, {"--no-such-flag", "true"}, {"-o", "size=much", "true"}, {"--mount", "/", "-o", "size=1m", "true"}} {
		if r := underRun(t, false, args...); r.code != 2 || !strings.HasPrefix(r.err, "dmabuffs: ") {
			t.Errorf("run %q: status %d, %q; want 2", args, r.code, r.err)
		}
	}
}

// It ends with the last process, and has the status of the first.
func TestRunWaits(t *testing.T) {
	client := runclient(t)
	r := underRun(t, false, "--", "sh", "-c", "(setsid sh -c 'sleep 0.5; "+client+" once' </dev/null &) & exit 5")
	if r.code != 5 || r.out != "ok once\n" {
		t.Errorf("status %d, %q, %q", r.code, r.out, r.err)
	}
}

// CMD is where its caller is: same namespaces, ids, directory, environment, limits,
// descriptors, signals; only that no_new_privs is set.
func TestRunInherits(t *testing.T) {
	const script = `
		for n in /proc/self/ns/*; do readlink $n; done
		pwd; umask; id; ulimit -n; ulimit -c; echo "$FOO"; cat; cat <&7
		ls /proc/$$/fd
		grep -E '^(SigBlk|SigIgn|CapEff|CapInh|Seccomp:|Groups)' /proc/self/status
		nice; trap`
	ask := func(name string, args ...string) string {
		t.Helper()
		cmd := command(t, "/usr", name, args...)
		cmd.Env = append(os.Environ(), "FOO=bar baz")
		cmd.Stdin = strings.NewReader("from stdin\n")
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := w.WriteString("from 7\n"); err != nil {
			t.Fatal(err)
		}
		w.Close()
		cmd.ExtraFiles = []*os.File{nil, nil, nil, nil, r}
		got := runWith(t, patience, cmd)
		if got.code != 0 {
			t.Fatalf("%v: %d, %s%s", cmd.Args, got.code, got.out, got.err)
		}
		return got.out
	}
	needFUSE(t)
	inner := []string{"bash", "-c", "umask 027; ulimit -Sn 777; exec \"$@\"", "bash"}
	plain := ask("bash", append(inner[1:], "sh", "-c", script)...)
	under := ask("bash", append(inner[1:], buildBinary(t), "run", "--", "sh", "-c", script)...)
	if want := strings.Replace(plain, "Seccomp:\t0", "Seccomp:\t2", 1); under != want {
		t.Errorf("under run:\n%s\nwithout:\n%s", under, want)
	}
	if r := underRun(t, false, "--", "grep", "NoNewPrivs", "/proc/self/status"); r.out != "NoNewPrivs:\t1\n" {
		t.Errorf("%q", r.out)
	}
}

// Whoever reads what CMD writes sees its end when CMD closes it, not when run ends.
func TestRunClosesOutput(t *testing.T) {
	cmd := runCmd(t, false, "--", "sh", "-c", "echo first; exec >&- ; read line; exit 4")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started(cmd)
	w.Close()
	_ = r.SetReadDeadline(time.Now().Add(patience))
	if out, err := io.ReadAll(r); err != nil || string(out) != "first\n" {
		t.Errorf("%q, %v", out, err)
	}
	in.Close()
	if _ = cmd.Wait(); cmd.ProcessState.ExitCode() != 4 {
		t.Errorf("%v", cmd.ProcessState)
	}
}

// live is a run that goes on; what it says is read by line.
type liveRun struct {
	t    *testing.T
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *lines
	err  bytes.Buffer
	done chan error
}

// lines collects lines.
type lines struct{ ch chan string }

func startRun(t *testing.T, args ...string) *liveRun {
	t.Helper()
	l := &liveRun{t: t, cmd: runCmd(t, false, args...), out: &lines{make(chan string, 1024)}, done: make(chan error, 1)}
	var err error
	if l.in, err = l.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := l.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	l.cmd.Stderr = &l.err
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	started(l.cmd)
	go func() {
		data := make([]byte, 0, 4096)
		p := make([]byte, 4096)
		for {
			n, err := out.Read(p)
			data = append(data, p[:n]...)
			for {
				i := bytes.IndexByte(data, '\n')
				if i < 0 {
					break
				}
				l.out.ch <- string(data[:i])
				data = data[i+1:]
			}
			if err != nil {
				close(l.out.ch)
				l.done <- l.cmd.Wait()
				return
			}
		}
	}()
	return l
}

func (l *liveRun) line() string {
	l.t.Helper()
	select {
	case s, ok := <-l.out.ch:
		if !ok {
			l.t.Fatalf("it has ended: %s", &l.err)
		}
		return s
	case <-time.After(patience):
		l.t.Fatalf("it says nothing: %s", &l.err)
	}
	return ""
}

func (l *liveRun) want(line string) {
	l.t.Helper()
	if got := l.line(); got != line {
		l.t.Fatalf("%q, want %q", got, line)
	}
}

func (l *liveRun) wait() int {
	l.t.Helper()
	select {
	case <-l.done:
		return l.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		l.t.Fatalf("it does not end: %s", &l.err)
	}
	return -1
}

// descendant is the process below pid that was executed by that name (argv[0]).
func descendant(t *testing.T, pid int, argv0 string) int {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		for _, task := range tasks(pid) {
			more, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, task))
			raw = append(append(raw, ' '), more...)
		}
		for _, f := range strings.Fields(string(raw)) {
			child, _ := strconv.Atoi(f)
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", child))
			if name, _, _ := bytes.Cut(cmdline, []byte{0}); string(name) == argv0 {
				return child
			}
		}
	}
	t.Fatalf("%d has no child %s", pid, argv0)
	return 0
}

func tasks(pid int) (out []int) {
	dir, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, e := range dir {
		n, _ := strconv.Atoi(e.Name())
		out = append(out, n)
	}
	return out
}

func gone(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH }

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so after %v: %s", patience, what)
		}
	}
}

const supervisorName = "dmabuffs-run-supervisor"

// What is sent to run alone is passed on; what the group has got is not doubled.
func TestRunSignals(t *testing.T) {
	const script = `
import os, signal
all = [getattr(signal, "SIG" + n) for n in "USR1 USR2 HUP INT QUIT TERM ALRM WINCH IO PWR".split()]
signal.pthread_sigmask(signal.SIG_BLOCK, all)
print("ready", flush=True)
left = 3
while left:
    n = signal.sigwait(all)
    print(n.name[3:], flush=True)
    left -= n == signal.SIGPWR
os._exit(9)
`
	l := startRun(t, "--", "python3", "-c", script)
	l.want("ready")
	pid := l.cmd.Process.Pid
	for _, s := range []struct {
		n    syscall.Signal
		name string
	}{
		{syscall.SIGUSR1, "USR1"}, {syscall.SIGUSR2, "USR2"}, {syscall.SIGHUP, "HUP"}, {syscall.SIGINT, "INT"}, {syscall.SIGQUIT, "QUIT"},
		{syscall.SIGTERM, "TERM"}, {syscall.SIGALRM, "ALRM"}, {syscall.SIGWINCH, "WINCH"}, {syscall.SIGIO, "IO"}, {syscall.SIGPWR, "PWR"},
	} {
		for _, to := range []int{pid, -pid} {
			if err := syscall.Kill(to, s.n); err != nil {
				t.Fatal(err)
			}
			l.want(s.name)
		}
	}
	// A second one of a pair would have come by now, or comes before this. (The pause: a signal
	// that is still on its way to run swallows its like.)
	time.Sleep(100 * time.Millisecond)
	if err := syscall.Kill(pid, syscall.SIGPWR); err != nil {
		t.Fatal(err)
	}
	l.want("PWR")
	if code := l.wait(); code != 9 {
		t.Errorf("status %d: %s", code, &l.err)
	}

	// The default action ends CMD, and run says so.
	l = startRun(t, "--", "sh", "-c", "echo ready; exec sleep 100")
	l.want("ready")
	_ = syscall.Kill(l.cmd.Process.Pid, syscall.SIGTERM)
	if code := l.wait(); code != 128+15 {
		t.Errorf("status %d: %s", code, &l.err)
	}

	// What is left of CMD does not keep run from a signal.
	l = startRun(t, "--", "bash", "-c", "setsid sleep 100 </dev/null >/dev/null 2>&1 & echo $!; disown; exit 6")
	left, err := strconv.Atoi(l.line())
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(left, syscall.SIGKILL)
	supervisor := descendant(t, l.cmd.Process.Pid, supervisorName)
	eventually(t, "the shell is reaped", func() bool {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", supervisor, supervisor))
		return len(strings.Fields(string(raw))) <= 1 && !gone(left)
	})
	time.Sleep(50 * time.Millisecond)
	_ = syscall.Kill(l.cmd.Process.Pid, syscall.SIGTERM)
	if code := l.wait(); code != 6 {
		t.Errorf("status %d: %s", code, &l.err)
	}
}

// A terminal's Ctrl-C is CMD's, once; Ctrl-Z stops both, and fg continues them.
func TestRunTerminal(t *testing.T) {
	needFUSE(t)
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	shell := command(t, "/", "bash", "--norc", "--noprofile", "-i")
	shell.Env = append(os.Environ(), "PS1=prompt:", "BINARY="+buildBinary(t), "TERM=dumb", "HISTFILE=")
	shell.Stdin, shell.Stdout, shell.Stderr = slave, slave, slave
	shell.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	started(shell)
	slave.Close()
	said := &syncBuffer{}
	go func() { _, _ = io.Copy(said, master) }()
	expect := func(text string, times int) {
		t.Helper()
		for deadline := time.Now().Add(patience); strings.Count(said.String(), text) < times; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%q not %d times on the terminal:\n%s", text, times, said)
			}
		}
		if got := strings.Count(said.String(), text); got != times {
			t.Fatalf("%q %d times on the terminal, want %d:\n%s", text, got, times, said)
		}
	}
	typed := func(s string) {
		t.Helper()
		if _, err := master.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	typed("stty -echo\n")
	expect("prompt:", 2)
	typed(`$BINARY run -- bash -c 'trap "echo cau\"\"ght" INT; echo be"gun"; until read line; do :; done; echo "read <$line>"; exit 42'; echo status $?` + "\n")
	expect("begun", 1)
	typed("\x03")
	expect("caught", 1)
	typed("\x03")
	expect("caught", 2)
	typed("\x1a")
	expect("Stopped", 1)
	typed("fg\n")
	expect("BINARY run", 2) // the job's line, when it stopped and now
	typed("hello\n")
	expect("read <hello>", 1)
	typed("exit\n")
	_ = shell.Wait()
	expect("caught", 2)
}

// Before CMD is started, one message says what is missing and what to do.
func TestRunRefused(t *testing.T) {
	needFUSE(t)
	deny, bin := clientOfRun(t, "deny"), buildBinary(t)
	base := t.TempDir()
	if err := os.Chmod(base, 0o777); err != nil {
		t.Fatal(err)
	}
	shut := func(script string, args ...string) []string { // in a mount namespace where the script has run
		return append([]string{"unshare", "--mount", "--propagation", "private", "bash", "-euc", script + "\nexec \"$@\"", "bash"}, args...)
	}
	drop := []string{"setpriv", "--reuid", nobody, "--regid", nobody, "--clear-groups"}
	user := func(args ...string) []string {
		name, rest := asUser(args[0], args[1:]...)
		return append([]string{name}, rest...)
	}
	const noFuse = `mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mkdir /dev/shm`
	for i, c := range []struct {
		name      string
		by        []string
		args      []string
		why, what string
	}{
		{"no device", shut(noFuse), nil, "no /dev/fuse", "modprobe fuse"},
		{"no device for a user", shut(noFuse, drop...), nil, "no /dev/fuse", "--device /dev/fuse"},
		{"closed device", shut("mount -t tmpfs none /dev; mknod -m 600 /dev/fuse c 10 229; mknod -m 666 /dev/null c 1 3", drop...), nil, "no /dev/fuse", "chmod 0666 /dev/fuse"},
		{"seccomp", []string{deny, "seccomp"}, nil, "seccomp refused", "seccomp=unconfined"},
		{"mount", user(deny, "fsopen"), nil, "mount refused", "--mount"},
		{"namespaces", user(deny, "userns"), nil, "mount refused: user namespace: ", "allow user namespaces"},
		{"supervised already", []string{bin, "run", "--"}, nil, "seccomp refused: somebody supervises", "outside"},
		{"not a mount", nil, []string{"--mount", "/tmp"}, "/tmp: not a dmabuffs", "leave --mount out"},
		{"no such mount", nil, []string{"--mount", "/no/such"}, "no such file", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			mark := filepath.Join(base, strconv.Itoa(i))
			args := slices.Concat(c.by, []string{bin, "run"}, c.args, []string{"--", "touch", mark})
			r := runWith(t, patience, command(t, "/", args[0], args[1:]...))
			if r.code != 1 || r.out != "" {
				t.Errorf("status %d, %q, want 1", r.code, r.out)
			}
			if !strings.HasPrefix(r.err, "dmabuffs: run: ") || !strings.Contains(r.err, c.why) || !strings.Contains(r.err, c.what) || strings.Count("\n"+r.err, "\ndmabuffs: ") != 1 {
				t.Errorf("it said %q, want %q and %q", r.err, c.why, c.what)
			}
			if _, err := os.Stat(mark); err == nil {
				t.Error("CMD was started")
			}
		})
	}
}

// mountsOf are the FUSE mounts that a process sees.
func fuseMounts(t *testing.T) (n int) {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(raw), " - fuse.dmabuffs ")
}

// A supervisor that is killed, and a run that is killed: CMD lives on, its emulated calls get ENOSYS, and
// nothing is left.
func TestRunKilled(t *testing.T) {
	client := runclient(t)
	before := fuseMounts(t)
	for _, who := range []string{"run", "supervisor"} {
		t.Run(who, func(t *testing.T) {
			l := startRun(t, "--", client, "orphaned")
			l.want("waiting")
			if n := fuseMounts(t); n != before {
				t.Errorf("%d mounts to see, %d before", n, before)
			}
			run := l.cmd.Process.Pid
			supervisor := descendant(t, run, supervisorName)
			victim := run
			if who == "supervisor" {
				victim = supervisor
			}
			if err := syscall.Kill(victim, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the supervisor is gone", func() bool { return gone(supervisor) || strings.HasPrefix(stateOf(supervisor), "Z") })
			fmt.Fprintln(l.in, "now")
			l.want("ok orphaned")
			code := l.wait()
			if who == "supervisor" && (code != 1 || !strings.Contains(l.err.String(), "ENOSYS")) {
				t.Errorf("status %d: %s", code, &l.err)
			}
		})
	}
}

// A supervisor whose threads are sent signals all the time gives no wrong descriptor.
func TestRunSupervisorSignalled(t *testing.T) {
	l := startRun(t, "--", runclient(t), "loop")
	supervisor := descendant(t, l.cmd.Process.Pid, supervisorName)
	for {
		select {
		case err := <-l.done:
			if err != nil {
				t.Errorf("%v: %s", err, &l.err)
			}
			l.want("ok loop")
			return
		default:
		}
		for _, tid := range tasks(supervisor) {
			_ = unix.Tgkill(supervisor, tid, unix.SIGURG)
			_ = unix.Tgkill(supervisor, tid, unix.SIGCHLD)
		}
	}
}

// A caller whose memory keeps the supervisor waiting keeps nobody else waiting. (Root:
// others' kernel faults are not userfaultfd's.)
func TestRunStuck(t *testing.T) {
	if r := runWith(t, patience, runCmd(t, false, "--", runclient(t), "stuck")); r.code != 0 || r.out != "ok stuck\n" {
		t.Errorf("status %d: %s%s", r.code, r.out, r.err)
	}
}

// A thousand processes at once, and twenty thousand descriptors: the supervisor stays small, and
// serves the next one.
func TestRunBounded(t *testing.T) {
	client := runclient(t)
	for _, section := range []string{"bomb", "many"} {
		t.Run(section, func(t *testing.T) {
			l := startRun(t, "--", client, section, "once")
			supervisor := descendant(t, l.cmd.Process.Pid, supervisorName)
			most := 0
			for ended := false; !ended; time.Sleep(5 * time.Millisecond) {
				select {
				case err := <-l.done:
					ended = true
					if err != nil {
						t.Fatalf("%v: %s", err, &l.err)
					}
				default:
					fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", supervisor))
					most = max(most, len(fds), len(tasks(supervisor)))
				}
			}
			l.want("ok " + section)
			l.want("ok once")
			if most > 300 {
				t.Errorf("the supervisor had %d threads or descriptors", most)
			}
		})
	}
}

// An existing mount: what CMD makes is seen there, and files of the mount are served too.
func TestRunMount(t *testing.T) {
	mnt := mount(t)
	client := runclient(t)
	r := underRun(t, false, "--mount", mnt, "--", client, "udmabufs", "heaps", "syncs", "exports", "paths")
	if r.code != 0 {
		t.Fatalf("status %d: %s%s", r.code, r.out, r.err)
	}
	sh(t, mnt, "head -c 8192 /dev/zero > buffers/a; mkdir timelines/tl; echo tl:1 > state/a/write_fences")
	const script = `
import fcntl, os, select, struct, sys
mnt = sys.argv[1]
buf = os.open(mnt + "/buffers/a", os.O_RDWR)
arg = bytearray(struct.pack("Ii", 1, 0))
fcntl.ioctl(buf, 0xc0086202, arg)                     # EXPORT_SYNC_FILE
flags, fd = struct.unpack("Ii", arg)
point = os.open(mnt + "/timelines/tl/points/2", os.O_RDONLY)
arg = bytearray(struct.pack("32siiII", b"m", point, 0, 0, 0))
fcntl.ioctl(fd, 0xc0303e03, arg)                      # SYNC_IOC_MERGE
merged = struct.unpack("32siiII", arg)[2]
p, q = select.poll(), select.poll()
p.register(fd, select.POLLIN)
q.register(merged, select.POLLIN)
def say(): print(len(p.poll(0)), len(q.poll(0)))
say()
for n in "1", "1":
    with open(mnt + "/timelines/tl/value", "w") as f: f.write("+" + n)
    p.poll(10000)
    say()
heap = os.open("/dev/dma_heap/system", os.O_RDWR)
arg = bytearray(struct.pack("QIIQ", 12288, 0, os.O_RDWR, 0))
fcntl.ioctl(heap, 0xc0184800, arg)
print(sum("12288" in line for line in open(mnt + "/bufinfo")), sum("12288" in line for line in open("/sys/kernel/debug/dma_buf/bufinfo")))
`
	r = underRun(t, false, "--mount", mnt, "--", "python3", "-c", script, mnt)
	if r.code != 0 || r.out != "0 0\n1 0\n1 1\n1 1\n" {
		t.Errorf("status %d: %q %s", r.code, r.out, r.err)
	}
	if got := cat(t, mnt+"/bufinfo"); strings.Contains(got, "12288") {
		t.Errorf("a buffer of CMD is left:\n%s", got)
	}
}

// The private mount takes options.
func TestRunOptions(t *testing.T) {
	const script = `import fcntl, os, struct, sys
heap = os.open("/dev/dma_heap/" + sys.argv[1], os.O_RDWR)
fcntl.ioctl(heap, 0xc0184800, bytearray(struct.pack("QIIQ", int(sys.argv[2]), 0, os.O_RDWR, 0)))`
	for _, c := range []struct {
		options, heap string
		size          int
		why           string
	}{
		{"size=1m", "system", 1 << 20, ""},
		{"size=1m", "system", 1<<20 + 1, "Cannot allocate memory"},
		{"contiguous=128k", "reserved", 128 << 10, ""},
		{"contiguous=128k", "reserved", 256 << 10, "Cannot allocate memory"},
		{"contiguous=0", "reserved", 4096, "Cannot allocate memory"},
	} {
		r := underRun(t, true, "-o", c.options, "--", "python3", "-c", script, c.heap, strconv.Itoa(c.size))
		if (r.code == 0) != (c.why == "") || !strings.Contains(r.err, c.why) {
			t.Errorf("-o %s, %s, %d bytes: status %d, %s; want %q", c.options, c.heap, c.size, r.code, r.err, c.why)
		}
	}
}

// --verbose prints what was emulated, and nothing else.
func TestRunVerbose(t *testing.T) {
	r := underRun(t, false, "--verbose", "--", "python3", "-c", `
import fcntl, os, struct
heap = os.open("/dev/dma_heap/system", os.O_RDWR)
try: fcntl.ioctl(heap, 0xc0184800, bytearray(struct.pack("QIIQ", 0, 0, os.O_RDWR, 0)))
except OSError: pass
fcntl.ioctl(heap, 0xc0184800, bytearray(struct.pack("QIIQ", 1, 0, os.O_RDWR, 0)))
os.stat("/dev/udmabuf")
try: os.readlink("/dev/udmabuf")
except OSError: pass
os.open("/etc/passwd", os.O_RDONLY)
`)
	if r.code != 0 {
		t.Fatal(r.err)
	}
	want := []string{
		`openat(AT_FDCWD, "/dev/dma_heap/system", O_RDWR|O_CLOEXEC) = 3`,
		`ioctl(3, DMA_HEAP_IOCTL_ALLOC, 0x`, ` = -1 EINVAL (invalid argument)`,
		`ioctl(3, DMA_HEAP_IOCTL_ALLOC, 0x`, ` = 0 {fd=`,
		`newfstatat(AT_FDCWD, "/dev/udmabuf", 0x`,
		`"/dev/udmabuf") = -1 EINVAL (invalid argument)`,
	}
	rest := r.err
	for _, w := range want {
		_, after, ok := strings.Cut(rest, w)
		if !ok {
			t.Fatalf("no %q in order in:\n%s", w, r.err)
		}
		rest = after
	}
	for line := range strings.Lines(r.err) {
		if !strings.HasPrefix(line, "[pid ") {
			t.Errorf("%q", line)
		}
	}
	if n := strings.Count(r.err, "\n"); n != 5 {
		t.Errorf("%d lines, want 5:\n%s", n, r.err)
	}
}
