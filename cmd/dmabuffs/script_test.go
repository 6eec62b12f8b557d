package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// The scripts in testdata/script are sessions at a shell: each has a dmabuffs of its
// own, mounted at $MNT by another process, and the commands as this binary.
func TestMain(m *testing.M) {
	main := func() { os.Exit(dispatch(os.Args)) }
	testscript.Main(m, map[string]func(){
		"dmabuffs":            main,
		"mount.fuse.dmabuffs": main,
	})
}

// needFUSE skips where nothing can be mounted, and fails there in CI.
func needFUSE(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		f.Close()
		return
	}
	if os.Getenv("DMABUFFS_NEED_FUSE") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

// scriptTime bounds a script; its processes get a signal when it has passed.
const scriptTime = 90 * time.Second

func TestScripts(t *testing.T) {
	needFUSE(t)
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Files:               []string{file},
				Setup:               mountForScript,
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				Deadline:            time.Now().Add(scriptTime),
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits": exits,
				},
			})
		})
	}
}

// mountForScript mounts at $WORK/mnt with a daemon that is ended, and waited for, when the script ends.
func mountForScript(env *testscript.Env) error {
	dir := filepath.Join(env.WorkDir, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	env.Setenv("MNT", dir)
	env.Setenv("TMPDIR", env.WorkDir)
	for _, key := range []string{"DMABUFFS_RUN", "GOCACHE", "GOMODCACHE"} { // the mark of a test run, see scripts/leftovers
		env.Setenv(key, os.Getenv(key))
	}
	// The race detector's processes sleep a second before they exit, unless told not to.
	env.Setenv("GORACE", "atexit_sleep_ms=0")
	program, err := exec.LookPath("dmabuffs")
	if err != nil {
		return err
	}
	cmd := exec.Command(program, "mount", "-o", "size=64m,contiguous=1m", dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	env.Defer(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		var err error
		select {
		case err = <-ended:
		case <-time.After(20 * time.Second):
			_ = fs.Unmount(dir, true)
			_ = cmd.Process.Kill()
			<-ended
			err = errors.New("did not end within 20 s of SIGTERM")
		}
		if err != nil { // 66 is the race detector's
			env.T().Fatal("the daemon: ", err)
		}
		if fs.IsMounted(dir) {
			env.T().Fatal(dir, " is still mounted")
		}
	})
	for start := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		if answers(dir) {
			return nil
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("dmabuffs mount ended: %v", err)
		default:
		}
		if time.Since(start) > 20*time.Second {
			return errors.New("the mount does not answer")
		}
	}
}

// exits checks an exit status: exits STATUS PROGRAM [ARG]...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM [ARG]...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
}
