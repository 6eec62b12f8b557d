package fs

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A killed daemon must not live on. A notification that launders pages waits in the
// kernel for WRITEs that the daemon has to answer, and nothing interrupts that wait:
// if SIGKILL comes then, the thread stays in state D, keeps /dev/fuse open, and so
// keeps the connection from ending, which would end the wait. Only an abort from
// outside helps. The guard is that outside: a process of its own that has nothing
// of the mount but the connection's `abort`, and writes to it when the daemon dies. The
// daemon opens that file, while it has the connection: numbers are used again at
// once, and a guard that opened it too late would end somebody else's mount.
//
// It learns that from the death of the thread that started it (PR_SET_PDEATHSIG): the
// process itself does not die while a thread of it is stuck, nor do its pipes close.

// GuardCommand starts a guard; guardAbort or guardNoAbort, the mount point and our process
// id are added to it, and `abort` is descriptor 3. A program that mounts sets it to a command line of its own that calls
// Guard with them. Empty: no guard.
var GuardCommand []string

// What a guard's first argument says: whether it has the connection's `abort`.
const (
	guardAbort   = "abort"
	guardNoAbort = "umount"
)

// guardSignal is how the guard learns of the daemon's death.
const guardSignal = syscall.SIGUSR1

// guard is the running guard of a mount.
type guard struct {
	stop chan struct{}
	done chan struct{}
}

// startGuard starts one for the connection with that number; nil where there can be none.
func startGuard(minor uint32, dir string) (*guard, error) {
	if len(GuardCommand) == 0 {
		return nil, nil
	}
	how := guardAbort
	abort, err := openAbort(strconv.Itoa(int(minor)))
	if err != nil {
		how = guardNoAbort
	} else {
		defer abort.Close()
	}
	cmd := exec.Command(GuardCommand[0], append(GuardCommand[1:], how, dir, strconv.Itoa(os.Getpid()))...)
	if abort != nil {
		cmd.ExtraFiles = []*os.File{abort}
	}
	cmd.Dir = "/"
	cmd.Env = []string{"GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: guardSignal}
	g := &guard{stop: make(chan struct{}), done: make(chan struct{})}
	started := make(chan error)
	go func() {
		defer close(g.done)
		runtime.LockOSThread() // this thread waits for nothing but the end, and so dies at once when killed
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		<-g.stop
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	return g, <-started
}

// end ends the guard of a mount that is gone.
func (g *guard) end() {
	if g == nil {
		return
	}
	close(g.stop)
	<-g.done
}

// Guard is the guard's whole life; args are what startGuard added. It returns when
// the daemon has died and its connection was aborted.
func Guard(args []string) error {
	if len(args) != 3 {
		return fmt.Errorf("guard: %d arguments: %w", len(args), syscall.EINVAL)
	}
	died := make(chan os.Signal, 1)
	signal.Notify(died, guardSignal)
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT) // meant for the daemon
	if args[2] == strconv.Itoa(os.Getppid()) {                                      // else it died before we listened
		<-died
	}
	if args[0] == guardAbort {
		_, err := unix.Write(3, []byte("1")) // of a connection that has ended it does nothing
		return os.NewSyscallError("abort", err)
	}
	if err := unix.Unmount(args[1], unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("ending %s: %w", args[1], err)
	}
	return nil
}

// openAbort opens the `abort` of a connection in fusectl, mounted or not.
func openAbort(connection string) (*os.File, error) {
	name := connection + "/abort"
	f, err := os.OpenFile("/sys/fs/fuse/connections/"+name, os.O_WRONLY, 0)
	if err == nil {
		return f, nil
	}
	ctl, e := unix.Fsopen("fusectl", unix.FSOPEN_CLOEXEC)
	if e != nil {
		return nil, err
	}
	defer unix.Close(ctl)
	if unix.FsconfigCreate(ctl) != nil {
		return nil, err
	}
	mnt, e := unix.Fsmount(ctl, unix.FSMOUNT_CLOEXEC, 0)
	if e != nil {
		return nil, err
	}
	defer unix.Close(mnt)
	fd, e := unix.Openat(mnt, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if e != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
