package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// mountArgs is what a mount was asked for.
type mountArgs struct {
	dir     string // absolute; "" with fuseFD alone
	options string // as given, a comma list
	daemon  bool
	logFile string // absolute, or ""
	debug   bool
	fuseFD  int
	readyFD int // in the daemon: where its parent waits to hear
}

func newMountCmd() *cobra.Command {
	var a mountArgs
	var lists []string
	cmd := &cobra.Command{
		Use:   "mount [-o OPTIONS] MNT",
		Short: "Mount a dmabuffs and serve it",
		Long: `Mount a dmabuffs on the directory MNT and serve it until it is unmounted.

In the foreground, a line is printed once the mount answers. SIGINT, SIGTERM and SIGHUP
unmount it. When somebody still uses it, the log says who, and it is served on; a second
signal takes the mount point away and serves until the last user is gone; a third
ends it under its users.

Root mounts by itself, and so does the root of a user namespace (unshare -Urm); other
users need fusermount3. With --fuse-fd the connection is one that somebody else has mounted and
passed in (give MNT too, as older kernels do not say where that is); a MNT of /dev/fd/N says
the same.

Options (-o, a comma list, may be repeated; the last of a kind counts):
  exporter=NAME           what backs files created in buffers/: system, coherent,
                          noncoherent, contiguous (default system)
  size=SIZE               limit of all buffers together: bytes, k, m, g, t, or % of
                          memory (default 50%)
  nr_buffers=N            limit of buffers (default 1m)
  nr_fences=N             limit of pending fences (default 1m)
  contiguous=SIZE         carve-out of the exporter contiguous (default 64m, 0 none)
  fault=allow|wait        whether a CPU access to a device's page waits for the write
                          fences (default allow)
  fence_timeout=DURATION  pending fences signal -ETIMEDOUT after it (default 0, never)
  uid=N, gid=N, mode=M    owner and octal mode of the directories (default who mounts, 1777)
  fsname=NAME             the source that df and mount show (default dmabuffs)
  allow_other             let other users in; the modes decide what they may do
  no_default_permissions  do not check modes (not with allow_other)
  debug                   log every request
and mount(8)'s ro, noexec, noatime, nodiratime, strictatime, sync, dirsync, suid, dev.`,
		Example: `  dmabuffs mount /mnt/buf
  dmabuffs mount --daemon -o size=1g,exporter=coherent /mnt/buf
  mount -t fuse.dmabuffs none /mnt/buf -o size=1g`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			a.options = strings.Join(lists, ",")
			if err := a.point(args); err != nil {
				return err
			}
			return a.run()
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveFilterDirs
		},
	}
	f := cmd.Flags()
	f.StringArrayVarP(&lists, "options", "o", nil, "mount `options`, separated by commas")
	f.BoolVar(&a.daemon, "daemon", false, "go to the background; return once the mount answers")
	f.StringVar(&a.logFile, "log", "", "append the log to `file` (default stderr; syslog for a daemon)")
	f.BoolVar(&a.debug, "debug", false, "log every request")
	f.IntVar(&a.fuseFD, "fuse-fd", 0, "serve the connection that is open as descriptor `N`")
	f.IntVar(&a.readyFD, "ready-fd", 0, "")
	_ = f.MarkHidden("ready-fd")
	_ = cmd.RegisterFlagCompletionFunc("options", completeMountOptions)
	return cmd
}

// completeMountOptions offers what may follow the last comma.
func completeMountOptions(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	before := typed[:strings.LastIndexByte(typed, ',')+1]
	var out []string
	for _, name := range fs.OptionNames() {
		out = append(out, before+name)
	}
	return out, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}

// fdMountPoint is how libfuse's tools say "already mounted, on descriptor N".
const fdMountPoint = "/dev/fd/"

// point settles where, and makes every path absolute: a daemon leaves this directory.
func (a *mountArgs) point(args []string) (err error) {
	if len(args) == 0 && a.fuseFD == 0 {
		return usagef("mount: which directory? dmabuffs mount MNT")
	}
	if a.fuseFD < 0 || a.fuseFD > 0 && a.fuseFD < 3 {
		return usagef("--fuse-fd %d: not a descriptor above stdin, stdout and stderr", a.fuseFD)
	}
	if len(args) > 0 {
		if n, ok := strings.CutPrefix(args[0], fdMountPoint); ok && a.fuseFD == 0 {
			if a.fuseFD, err = strconv.Atoi(n); err != nil || a.fuseFD < 3 {
				return usagef("%s: not a descriptor above stdin, stdout and stderr", args[0])
			}
		} else if args[0] == "" {
			return usagef("mount: which directory? MNT is empty")
		} else if a.dir, err = filepath.Abs(args[0]); err != nil {
			return err
		}
	}
	if a.logFile != "" {
		a.logFile, err = filepath.Abs(a.logFile)
	}
	return err
}

// run mounts, in the background or here.
func (a *mountArgs) run() error {
	o, err := fs.ParseOptions(a.options)
	if err != nil {
		return usageError{fmt.Errorf("mount: %w", err)}
	}
	o.FuseFD = a.fuseFD
	o.Debug = o.Debug || a.debug
	if a.daemon {
		return a.startDaemon()
	}
	if a.readyFD > 0 {
		unix.CloseOnExec(a.readyFD) // not for fusermount3
	}
	err = a.serve(o)
	if a.readyFD > 0 && err != nil {
		a.tellParent(err)
	}
	return err
}

// serve mounts and serves to the end.
func (a *mountArgs) serve(o fs.Options) error {
	log, err := a.openLog(o.Debug)
	if err != nil {
		return err
	}
	o.Log = log
	prepareProcess(log)
	// From here on a signal must not kill us: it would leave a dead mount behind.
	signal.Ignore(unix.SIGPIPE)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	srv, err := fs.Mount(a.dir, o)
	if err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	a.ready(log, srv.Dir())
	s := &serving{srv: srv, log: log, dir: srv.Dir(), passedIn: a.fuseFD > 0}
	return s.wait(signals)
}

// ready tells whoever waits that the mount answers.
func (a *mountArgs) ready(log *slog.Logger, where string) {
	if where == "" {
		where = fmt.Sprintf("descriptor %d", a.fuseFD)
	}
	if a.readyFD > 0 {
		a.tellParent(nil)
	} else {
		fmt.Printf("dmabuffs: mounted on %s\n", where)
	}
	log.Debug("serving", "on", where)
}

// mounted is what a serving needs of *fs.Server.
type mounted interface {
	Wait() error
	Unmount() error
	Detach() error
	Abort()
}

var _ mounted = (*fs.Server)(nil)

// serving is a mount and what signals did to it so far.
type serving struct {
	srv      mounted
	log      *slog.Logger
	dir      string // "": out of sight
	passedIn bool   // somebody else mounted it
	signals  int
}

// abortPatience is how long an aborted mount may take to end before the process just exits.
const abortPatience = time.Second

// wait serves until the mount is gone. Unmounting runs beside it, so that a further
// signal is heard whatever the kernel makes of the one before.
func (s *serving) wait(signals <-chan os.Signal) error {
	ended := make(chan error, 1)
	go func() { ended <- s.srv.Wait() }()
	failed := make(chan error, 8)
	for {
		select {
		case err := <-ended:
			return err
		case err := <-failed:
			if s.passedIn && errors.Is(err, unix.EPERM) {
				s.log.Info("ending; the mount point is for those to clear who mounted it")
				return nil
			}
			s.explain(err)
		case sig := <-signals:
			s.signals++
			switch {
			case s.dir == "":
				s.log.Info("ending; the mount point is for those to clear who mounted it", "signal", sig.String())
				return nil
			case s.signals == 1:
				go func() { failed <- s.srv.Unmount() }()
			case s.signals == 2:
				s.log.Warn("taking the mount point away; serving until its last user is gone", "dir", s.dir)
				go func() { failed <- s.srv.Detach() }()
			default:
				s.log.Warn("ending the mount under its users", "dir", s.dir)
				go s.srv.Abort()
				select {
				case err := <-ended:
					return err
				case <-time.After(abortPatience):
					return nil // exiting closes the connection
				}
			}
		}
	}
}

// explain logs why a signal did not end the mount.
func (s *serving) explain(err error) {
	if err == nil {
		return
	}
	var busy *fs.BusyError
	if errors.As(err, &busy) {
		s.log.Error(err.Error()+"; serving on, a second signal detaches it", "dir", s.dir)
		return
	}
	s.log.Error("unmounting failed", "dir", s.dir, "err", err)
}

// prepareProcess gives a daemon what it needs of the process it runs in.
func prepareProcess(log *slog.Logger) {
	if os.Getenv("GOMAXPROCS") == "" {
		// A reader that waits in a system call keeps its processor for a moment: with
		// few of them, the one that should answer waits.
		runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0)))
	}
	if n, err := raiseNofile(); err != nil {
		log.Warn("the limit of open files stays", "limit", n, "err", err)
	} else {
		log.Debug("open files", "limit", n)
	}
}

// raiseNofile lifts RLIMIT_NOFILE, since every buffer with bytes in it is an open
// file: to the hard limit, and the hard limit to fs.nr_open where we may.
func raiseNofile() (uint64, error) {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, err
	}
	if nr := nrOpen(); nr > r.Max {
		if up := (unix.Rlimit{Cur: nr, Max: nr}); unix.Setrlimit(unix.RLIMIT_NOFILE, &up) == nil {
			return nr, nil
		}
	}
	r.Cur = r.Max
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &r)
	return r.Cur, err
}

// nrOpen is the kernel's ceiling of RLIMIT_NOFILE, 0 when unknown.
func nrOpen() uint64 {
	raw, err := os.ReadFile("/proc/sys/fs/nr_open")
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64)
	return n
}

// runMountHelper is what mount(8) calls for the types fuse.dmabuffs and dmabuffs:
//
//	mount.fuse.dmabuffs SRC MNT [-sfnvrw] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]
//
// It returns once the mount answers. SRC becomes fsname, unless it is none.
func runMountHelper(args []string) error {
	h, err := parseHelperArgs(args[1:])
	if err != nil {
		return usageError{fmt.Errorf("%s: %w", filepath.Base(args[0]), err)}
	}
	if h.sloppy {
		h.options = dropUnknown(h.options)
	}
	o, err := fs.ParseOptions(strings.Join(h.options, ","))
	if err != nil {
		return usageError{fmt.Errorf("mount: %w", err)}
	}
	if o.FSName == "" && h.source != "none" && h.source != "" {
		h.options = append(h.options, "fsname="+strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(h.source))
	}
	if h.fake {
		return nil
	}
	a := mountArgs{options: strings.Join(h.options, ","), daemon: true}
	if err := a.point([]string{h.dir}); err != nil {
		return err
	}
	return a.run()
}

// helperArgs is mount(8)'s command line for its helpers.
type helperArgs struct {
	source, dir  string
	options      []string // lists
	sloppy, fake bool
}

func parseHelperArgs(args []string) (h helperArgs, err error) {
	var rest []string
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		if len(arg) < 2 || arg[0] != '-' {
			rest = append(rest, arg)
			continue
		}
		for i := 1; i < len(arg); i++ {
			switch arg[i] {
			case 's':
				h.sloppy = true
			case 'f':
				h.fake = true
			case 'n', 'v': // no mtab, verbose: nothing to do
			case 'r':
				h.options = append(h.options, "ro")
			case 'w':
				h.options = append(h.options, "rw")
			case 'o', 't', 'N':
				value := arg[i+1:]
				if value == "" {
					if len(args) == 0 {
						return h, fmt.Errorf("-%c needs a value", arg[i])
					}
					value, args = args[0], args[1:]
				}
				if arg[i] == 'o' {
					h.options = append(h.options, value)
				}
				i = len(arg)
			default:
				return h, fmt.Errorf("-%c: unknown", arg[i])
			}
		}
	}
	if len(rest) != 2 {
		return h, errors.New("usage: mount.fuse.dmabuffs SRC MNT [-sfnvrw] [-o OPTIONS]")
	}
	h.source, h.dir = rest[0], rest[1]
	return h, nil
}

// dropUnknown takes out the options that nobody knows, as mount -s asks for.
func dropUnknown(lists []string) []string {
	var out []string
	for _, item := range strings.Split(strings.Join(lists, ","), ",") {
		var bad *fs.OptionError
		if _, err := fs.ParseOptions(item); errors.As(err, &bad) && bad.Unknown {
			continue
		}
		out = append(out, item)
	}
	return out
}
