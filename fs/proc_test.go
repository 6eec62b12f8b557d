package fs

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func TestEscape(t *testing.T) {
	for _, tc := range []struct{ in, field, line string }{
		{"frame", "frame", "frame"},
		{"", "-", ""},
		{"-", `\055`, "-"},
		{"--", "--", "--"},
		{"a b", `a\040b`, "a b"},
		{"a\nb\tc", `a\012b\011c`, `a\012b\011c`},
		{`a\012b`, `a\134012b`, `a\134012b`},
		{"é\u00a0\u2028", "é\\302\\240\\342\\200\\250", "é\u00a0\\342\\200\\250"},
		{"\xff\x00\x7f\x1b[1m", `\377\000\177\033[1m`, `\377\000\177\033[1m`},
	} {
		if got := escape(tc.in); got != tc.field {
			t.Errorf("escape(%q) = %s, want %s", tc.in, got, tc.field)
		}
		if got := escapeLine(tc.in); got != tc.line {
			t.Errorf("escapeLine(%q) = %s, want %s", tc.in, got, tc.line)
		}
	}
}

// secondThread is a thread of this process that is not its first; end ends it.
func secondThread(t *testing.T) (tid uint32, end func()) {
	t.Helper()
	for range 2 { // the process' first thread may be the first that we get, and is kept
		tids, ended := make(chan uint32), make(chan struct{})
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
			tids <- uint32(syscall.Gettid())
			<-ended
		}()
		tid := <-tids
		if tid != uint32(os.Getpid()) {
			return tid, func() { close(ended) }
		}
		t.Cleanup(func() { close(ended) })
	}
	t.Fatal("two threads with one number")
	panic("unreachable")
}

// FUSE names threads; what counts is their process.
func TestThreadsOfAProcess(t *testing.T) {
	self := uint32(os.Getpid())
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	name := strings.TrimSuffix(string(comm), "\n")
	tid, end := secondThread(t)
	if !sameProcess(self, tid) || !sameProcess(tid, tid) {
		t.Error("two threads of one process are not the same process")
	}
	if got, want := callerLabel(tid), name+"("+strconv.Itoa(int(self))+")"; got != want {
		t.Errorf("label %s, want %s", got, want)
	}
	end()
	waitFor(t, "the thread's end", func() bool {
		_, err := os.Stat("/proc/self/task/" + strconv.Itoa(int(tid)))
		return os.IsNotExist(err)
	})
	if got := threads.of(tid, 0); got.pid != self || got.comm != name {
		t.Errorf("a thread that has ended belongs to %+v, want %d", got, self)
	}

	child := exec.Command("sleep", "60")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	pid := uint32(child.Process.Pid)
	if sameProcess(self, pid) {
		t.Error("a child is the same process")
	}
	if got := commOf(pid, ""); got != "sleep" {
		t.Errorf("the child's command is %s", got)
	}
	_ = child.Process.Kill()
	_ = child.Wait()
	if got := commOf(pid, ""); got != "sleep" {
		t.Errorf("a dead process' command is %s, want what it was", got)
	}
	if got := commOf(1<<30, ""); got != "-" {
		t.Errorf("nobody's command is %s, want -", got)
	}
	if pid, comm := unlabel(callerLabel(pid)); pid != strconv.Itoa(child.Process.Pid) || comm != "sleep" {
		t.Errorf("unlabel gives %s %s", pid, comm)
	}
	if pid, comm := unlabel("odd (name)(7)"); pid != "7" || comm != "odd (name)" {
		t.Errorf("unlabel gives %s %s", pid, comm)
	}
}

// The table of threads does not grow without end.
func TestThreadsBounded(t *testing.T) {
	table := &processes{m: map[uint32]process{}}
	for tid := uint32(1 << 30); tid < 1<<30+procMax+100; tid++ {
		table.of(tid, procFresh)
	}
	if n := len(table.m); n > procMax {
		t.Errorf("%d entries, want at most %d", n, procMax)
	}
}
