// Command dmabuffs mounts dma-bufs as files, and works with them.
//
// Each command is one file and one constructor, newXxxCmd, and decides nothing
// about buffers: commands read and write the mounted tree as any program could.
// Only mount, run and demo have a file system of their own.
//
// Exit status: 0 done, 1 failed, 2 wrong usage, 124 a wait that timed out; run
// passes on its command's. Errors go to stderr as "dmabuffs: what: why", and where
// there is something to do about it, a second line says so.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/dmabuffs/dmabuffs/fs"
)

// Exit statuses.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitTimeout = 124 // as timeout(1)
)

// guardArg has the program be a mount's guard: fs.GuardCommand.
const guardArg = "guard-of-a-mount"

func main() {
	if self, err := os.Executable(); err == nil {
		fs.GuardCommand = []string{self, guardArg}
	}
	os.Exit(dispatch(os.Args))
}

// dispatch picks what to be by the name it was called by, as busybox does: mount(8)
// looks for mount.fuse.dmabuffs and calls it with a command line of its own.
func dispatch(args []string) int {
	if len(args) > 0 {
		switch filepath.Base(args[0]) {
		case "mount.fuse.dmabuffs", "mount.dmabuffs":
			return report(os.Stderr, runMountHelper(args))
		}
	}
	if len(args) > 1 && args[1] == guardArg {
		return report(os.Stderr, fs.Guard(args[2:]))
	}
	root := newRootCmd()
	if len(args) > 0 {
		root.SetArgs(args[1:])
	}
	return report(os.Stderr, root.Execute())
}

// generators are commands that only builds with the tag docs have.
var generators []func() *cobra.Command

func newRootCmd() *cobra.Command {
	root := &cobra.Command{
		Use:   "dmabuffs",
		Short: "dma-bufs as files: share memory between processes and devices, with fences",
		Long: `dmabuffs mounts a file system on which every file is a shared buffer: a dma-buf in
user space. Programs share them with open and mmap, devices attach to them, fences
order their work. The commands here work through the mounted files.`,
		Args:          usageArgs(cobra.NoArgs),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.DisableDefaultCmd = true // newCompletionCmd is ours
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(
		newMountCmd(), newUmountCmd(), newRunCmd(), newDoctorCmd(),
		newLsCmd(), newInfoCmd(), newCreateCmd(), newRmCmd(),
		newDeviceCmd(), newTimelineCmd(), newFenceCmd(),
		newEventsCmd(), newTopCmd(), newTraceCmd(),
		newDemoCmd(), newDemoProducerCmd(), newDemoConsumerCmd(), newDemoDeviceCmd(),
		newVersionCmd(), newCompletionCmd(),
	)
	for _, generate := range generators {
		root.AddCommand(generate())
	}
	return root
}

// usageError is a command line that means nothing: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// usageArgs makes a failed check of arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usageError{err}
		}
		return nil
	}
}

// exitError ends the program with a status of its own; err may be nil: say nothing.
type exitError struct {
	status int
	err    error
}

func (e exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e exitError) Unwrap() error { return e.err }

// hintError adds what to do to an error.
type hintError struct {
	error
	hint string
}

func (e hintError) Unwrap() error { return e.error }

// hint adds what to do about err; nil stays nil.
func hint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return hintError{err, fmt.Sprintf(format, args...)}
}

// report prints err as users see it and returns the exit status that it stands for.
// Of several errors (errors.Join) each has its line, and the first decides the status.
func report(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		status := 0
		for _, err := range joined.Unwrap() {
			if s := report(w, err); status == 0 {
				status = s
			}
		}
		return status
	}
	var exit exitError
	isExit := errors.As(err, &exit)
	if isExit && exit.err == nil {
		return exit.status
	}
	fmt.Fprintf(w, "dmabuffs: %s\n", strings.TrimRight(err.Error(), "\n"))
	if h := hintFor(err); h != "" {
		fmt.Fprintf(w, "  %s\n", h)
	}
	var usage usageError
	switch {
	case isExit:
		return exit.status
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(w, "  see dmabuffs --help\n")
		return exitUsage
	}
	return exitFailed
}

// hintFor is what to do about err: what its maker said, or what its errno means here.
func hintFor(err error) string {
	var h hintError
	switch {
	case errors.As(err, &h):
		return h.hint
	case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED):
		return "the daemon of this mount is gone: dmabuffs umount the mount point, then mount it again"
	}
	return ""
}
