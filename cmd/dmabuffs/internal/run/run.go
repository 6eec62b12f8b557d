package run

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// Stages are this program in other roles, by argv[0]. An init function of this package
// takes them before main sees their arguments.
const (
	stageSupervise = "dmabuffs-run-supervisor"
	stageExec      = "dmabuffs-run-exec"
	stageMount     = "dmabuffs-run-mount"
)

var stages = map[string]func(args []string) int{}

func init() {
	stages[stageSupervise], stages[stageExec], stages[stageMount] = superviseStage, execStage, mountStage
	if len(os.Args) == 0 {
		return
	}
	if stage := stages[os.Args[0]]; stage != nil {
		os.Exit(stage(os.Args[1:]))
	}
}

// Options say what to run, and where.
type Options struct {
	// Mount is an existing mount; empty: a private one.
	Mount string
	// MountOptions are those of the private mount.
	MountOptions fs.Options
	// Verbose prints each emulated call to stderr.
	Verbose bool
	// Command is CMD and its arguments.
	Command []string
	// Serving is called once the mount is to be served by this process: it may raise limits, which CMD does not
	// get to see.
	Serving func()
	// Log takes what there is to say.
	Log *slog.Logger
}

// Error is why CMD was not started: what is missing, and what to do about it.
type Error struct {
	Err  error
	Hint string
}

func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the error that it is about.
func (e *Error) Unwrap() error { return e.Err }

// Run runs a command and returns its exit status, 128+n when signal n ended it,
// 126 when it cannot be executed, 127 when it does not exist. It returns when the last process of the
// command has ended. Errors: *Error, when the command was not started.
func Run(o Options) (status int, err error) {
	runtime.LockOSThread() // the supervisor dies with the thread that starts it
	r := &runner{o: o, ended: make(chan error, 1)}
	status, err = r.run()
	var m *mountError
	if errors.As(err, &m) {
		err = &Error{err, m.hint}
	}
	return status, err
}

type runner struct {
	o     Options
	sock  int // to the supervisor
	cmd   *exec.Cmd
	ended chan error // the supervisor's end
}

func (r *runner) run() (int, error) {
	if e := seccompAvailable(unix.SECCOMP_RET_USER_NOTIF); e != 0 {
		return 0, explainSeccomp(e)
	}
	signals := catch()
	var err error
	inherited := inheritedFDs() // for CMD, and not for what serves or guards the mount
	if err := closeOnExec(inherited, true); err != nil {
		return 0, err
	}
	var mnt *mounted
	if r.o.Mount != "" {
		if mnt, err = openMount(r.o.Mount); err != nil {
			return 0, err
		}
	} else {
		limitBuffers(&r.o.MountOptions)
		if mnt, err = mountPrivate(r.o.MountOptions, r.o.Log); err != nil {
			return 0, err
		}
	}
	defer mnt.close()
	if err := closeOnExec(inherited, false); err != nil {
		return 0, err
	}
	if err := r.start(mnt.root); err != nil {
		return 0, err
	}
	for _, fd := range inherited {
		unix.Close(fd)
	}
	if err := quietStdio(); err != nil {
		return 0, err
	}
	if r.o.Serving != nil && mnt.srv != nil {
		r.o.Serving()
	}
	if err := send(r.sock, message{}); err != nil {
		return 0, err
	}
	return r.wait(signals)
}

// fewFiles is what this process needs besides a descriptor for each buffer with bytes in it.
const fewFiles = 256

// limitBuffers lets the mount refuse a buffer before its memory would find no descriptor.
func limitBuffers(o *fs.Options) {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || o.NrBuffers != 0 {
		return
	}
	most := int64(min(l.Max, uint64(fs.DefaultNrBuffers)))
	o.NrBuffers = max(most-fewFiles, most/2, 1)
}

// start starts the supervisor.
func (r *runner) start(root int) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	r.sock = pair[0]
	verbose := ""
	if r.o.Verbose {
		verbose = "verbose"
	}
	// Its two descriptors keep their numbers: those of the caller's that CMD is to have are taken.
	if err := closeOnExec([]int{pair[1], root}, false); err != nil {
		return err
	}
	args := []string{strconv.Itoa(pair[1]), strconv.Itoa(root), verbose}
	r.cmd = stageCommand(stageSupervise, append(args, r.o.Command...)...)
	r.cmd.Stdin, r.cmd.Stdout = os.Stdin, os.Stdout
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = r.cmd.Start()
	unix.Close(pair[1])
	unix.CloseOnExec(root)
	if err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	go func() { r.ended <- r.cmd.Wait() }()
	return nil
}

// wait serves until the supervisor has ended, and passes signals on meanwhile.
func (r *runner) wait(signals <-chan os.Signal) (int, error) {
	messages := make(chan message)
	go func() {
		defer close(messages)
		for {
			var m message
			if _, err := receive(r.sock, &m); err != nil {
				return
			}
			messages <- m
		}
	}()
	var cmd ending
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				messages = nil
				continue
			}
			cmd.hear(m)
		case s := <-signals:
			if n, ok := s.(syscall.Signal); cmd.exited { // only what CMD has left behind runs on: it shall not keep us
				_ = r.cmd.Process.Kill()
			} else if ok {
				_ = send(r.sock, message{Signal: int(n)})
			}
		case <-r.ended:
			if messages != nil {
				for m := range messages { // what it said last
					cmd.hear(m)
				}
			}
			return cmd.result()
		}
	}
}

// ending is how CMD ended, as far as the supervisor has said.
type ending struct {
	status int
	exited bool
	err    error
}

func (e *ending) hear(m message) {
	switch {
	case m.Error != "":
		e.err = m.err()
	case m.Exited:
		e.status, e.exited = m.Status, true
	}
}

func (e *ending) result() (int, error) {
	if e.err == nil && !e.exited {
		e.err = &mountError{errors.New("the supervisor has ended before CMD, whose emulated calls get ENOSYS from now on"), ""}
	}
	return e.status, e.err
}
