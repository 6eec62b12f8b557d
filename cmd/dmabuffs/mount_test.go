package main

import (
	"errors"
	"log/slog"
	"log/syslog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

func TestParseHelperArgs(t *testing.T) {
	for line, want := range map[string]helperArgs{
		"none /mnt":                    {source: "none", dir: "/mnt"},
		"pool /mnt -o rw,size=1m":      {source: "pool", dir: "/mnt", options: []string{"rw,size=1m"}},
		"-o ro none /mnt -o size=1m":   {source: "none", dir: "/mnt", options: []string{"ro", "size=1m"}},
		"none /mnt -sfnv":              {source: "none", dir: "/mnt", sloppy: true, fake: true},
		"none /mnt -n -v -rw":          {source: "none", dir: "/mnt", options: []string{"ro", "rw"}},
		"none /mnt -oro -t fuse.x -N7": {source: "none", dir: "/mnt", options: []string{"ro"}},
		"none /mnt -no ro":             {source: "none", dir: "/mnt", options: []string{"ro"}},
	} {
		got, err := parseHelperArgs(strings.Fields(line))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", line, got, err, want)
		}
	}
	for line, want := range map[string]string{
		"":              "usage",
		"none":          "usage",
		"none /mnt x":   "usage",
		"none /mnt -o":  "-o needs a value",
		"none /mnt -q":  "-q: unknown",
		"none /mnt -nQ": "-Q: unknown",
	} {
		if _, err := parseHelperArgs(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}

func TestDropUnknown(t *testing.T) {
	got := dropUnknown([]string{"ro,bogus=1", "size=bad,nonsense,size=1m"})
	if want := []string{"ro", "size=bad", "size=1m"}; !reflect.DeepEqual(got, want) {
		t.Errorf("%q, want %q: only what nobody knows goes", got, want)
	}
}

func TestMountHelperFake(t *testing.T) {
	if err := runMountHelper([]string{"/sbin/mount.fuse.dmabuffs", "none", "/absent", "-f"}); err != nil {
		t.Error(err)
	}
	err := runMountHelper([]string{"/sbin/mount.fuse.dmabuffs", "none", "/absent", "-f", "-o", "bogus"})
	var usage usageError
	if !errors.As(err, &usage) || !strings.Contains(err.Error(), `"bogus"`) {
		t.Errorf("%v, want a usage error that names bogus", err)
	}
}

func TestMountPoint(t *testing.T) {
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   []string
		fuseFD int
		dir    string
		fd     int
		usage  bool
	}{
		{args: []string{"/mnt"}, dir: "/mnt"},
		{args: []string{"mnt/../x"}, dir: cwd + "/x"},
		{args: []string{"/dev/fd/5"}, fd: 5},
		{args: nil, fuseFD: 4, fd: 4},
		{args: []string{"/mnt"}, fuseFD: 4, dir: "/mnt", fd: 4},
		{args: nil, usage: true},
		{args: []string{""}, usage: true},
		{args: []string{"/dev/fd/2"}, usage: true},
		{args: []string{"/dev/fd/x"}, usage: true},
		{args: []string{"/mnt"}, fuseFD: -1, usage: true},
		{args: []string{"/mnt"}, fuseFD: 2, usage: true},
	} {
		a := mountArgs{fuseFD: tt.fuseFD}
		err := a.point(tt.args)
		var usage usageError
		if errors.As(err, &usage) != tt.usage || err != nil && !tt.usage {
			t.Errorf("%q, %d: %v", tt.args, tt.fuseFD, err)
		}
		if !tt.usage && (a.dir != tt.dir || a.fuseFD != tt.fd) {
			t.Errorf("%q, %d: %q, %d; want %q, %d", tt.args, tt.fuseFD, a.dir, a.fuseFD, tt.dir, tt.fd)
		}
	}
}

// What a daemon tells its parent arrives as if it had happened there.
func TestDaemonFate(t *testing.T) {
	tell := func(err error) error {
		r, w, e := os.Pipe()
		if e != nil {
			t.Fatal(e)
		}
		defer r.Close()
		fd, e := unix.Dup(int(w.Fd()))
		w.Close()
		if e != nil {
			t.Fatal(e)
		}
		a := mountArgs{readyFD: fd}
		a.tellParent(err)
		return hear(t, r)
	}
	if err := tell(nil); err != nil {
		t.Errorf("a daemon that serves: %v", err)
	}
	if err := tell(errors.New("no room")); err == nil || err.Error() != "no room" || report(discard{}, err) != exitFailed {
		t.Errorf("a daemon that failed: %v", err)
	}
	if err := tell(usagef("what?")); report(discard{}, err) != exitUsage {
		t.Errorf("a daemon called wrongly: %v", err)
	}
	if err := tell(hint(errors.New("no room"), "make some")); hintFor(err) != "make some" {
		t.Errorf("the hint is lost: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Close()
	if err := hear(t, r); err == nil || !strings.Contains(err.Error(), "ended before the mount answered") {
		t.Errorf("a daemon that died: %v", err)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func hear(t *testing.T, r *os.File) error {
	t.Helper()
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return hearDaemon(cmd, r)
}

// fakeMount is a mount whose users we are.
type fakeMount struct {
	calls   chan string
	ended   chan struct{}
	busy    bool
	ignores bool // even an abort
	refused error
}

func (f *fakeMount) Wait() error { <-f.ended; return nil }
func (f *fakeMount) Unmount() error {
	defer func() { f.calls <- "unmount" }()
	if f.refused != nil {
		return f.refused
	}
	if f.busy {
		return &fs.BusyError{Dir: "/mnt"}
	}
	close(f.ended)
	return nil
}
func (f *fakeMount) Detach() error { f.calls <- "detach"; return nil }
func (f *fakeMount) Abort() {
	f.calls <- "abort"
	if !f.ignores {
		close(f.ended)
	}
}

func TestServingSignals(t *testing.T) {
	for _, tt := range []struct {
		name          string
		busy, ignores bool
		want          string
	}{
		{"idle", false, false, "unmount"},
		{"busy", true, false, "unmount detach abort"},
		{"busy and stuck", true, true, "unmount detach abort"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &fakeMount{calls: make(chan string, 8), ended: make(chan struct{}), busy: tt.busy, ignores: tt.ignores}
			s := &serving{srv: m, log: slog.New(slog.DiscardHandler), dir: "/mnt"}
			signals := make(chan os.Signal)
			done := make(chan error, 1)
			go func() { done <- s.wait(signals) }()
			for i, want := range strings.Fields(tt.want) {
				select {
				case signals <- syscall.SIGTERM:
				case <-time.After(20 * time.Second):
					t.Fatalf("signal %d is not taken", i+1)
				}
				select {
				case got := <-m.calls:
					if got != want {
						t.Fatalf("signal %d does %s, want %s", i+1, got, want)
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("signal %d does nothing", i+1)
				}
			}
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("it does not end")
			}
		})
	}
}

// A connection that somebody else mounted ends with the first signal, where we cannot
// see its mount or may not unmount it.
func TestServingPassedIn(t *testing.T) {
	for _, tt := range []struct{ dir, want string }{{"", ""}, {"/mnt", "unmount"}} {
		m := &fakeMount{calls: make(chan string, 8), ended: make(chan struct{}), refused: syscall.EPERM}
		s := &serving{srv: m, log: slog.New(slog.DiscardHandler), dir: tt.dir, passedIn: true}
		signals := make(chan os.Signal, 1)
		signals <- syscall.SIGTERM
		done := make(chan error, 1)
		go func() { done <- s.wait(signals) }()
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%q: it does not end", tt.dir)
		}
		close(m.calls)
		if got := <-m.calls; got != tt.want {
			t.Errorf("%q: it did %q, want %q", tt.dir, got, tt.want)
		}
	}
}

func TestRaiseNofile(t *testing.T) {
	var was, now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	low := unix.Rlimit{Cur: 64, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	n, err := raiseNofile()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	if now.Cur != now.Max || now.Cur != n || now.Max < was.Max {
		t.Errorf("%+v became %+v, said to be %d", was, now, n)
	}
}

// Each line goes to syslog with its own severity.
func TestSyslogWriter(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenPacket("unixgram", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w, err := syslog.Dial("unixgram", sock, syslog.LOG_DAEMON|syslog.LOG_INFO, "dmabuffs")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	log := slog.New(slog.NewTextHandler(syslogWriter{w}, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: dropTime}))
	for level, prefix := range map[slog.Level]string{slog.LevelDebug: "<31>", slog.LevelInfo: "<30>", slog.LevelWarn: "<28>", slog.LevelError: "<27>"} {
		log.Log(t.Context(), level, "a message", "dir", "/mnt")
		buf := make([]byte, 4096)
		if err := l.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, _, err := l.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		line := string(buf[:n])
		if !strings.HasPrefix(line, prefix) || !strings.Contains(line, ` msg="a message" dir=/mnt`) || strings.Contains(line, "level=") {
			t.Errorf("%v: %q", level, line)
		}
	}
}

func TestWithoutComments(t *testing.T) {
	if got := strings.Fields(withoutComments("# user_allow_other\nmount_max = 9 # x\nuser_allow_other\n")); !reflect.DeepEqual(got, []string{"mount_max", "=", "9", "user_allow_other"}) {
		t.Errorf("%q", got)
	}
}
