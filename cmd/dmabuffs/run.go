package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmabuffs/dmabuffs/cmd/dmabuffs/internal/run"
	"github.com/dmabuffs/dmabuffs/fs"
)

func newRunCmd() *cobra.Command {
	var o run.Options
	var lists []string
	cmd := &cobra.Command{
		Use:   "run [--mount MNT] [--verbose] -- CMD [ARG...]",
		Short: "Run a program that needs /dev/udmabuf, /dev/dma_heap or sw_sync",
		Long: `Run CMD, unmodified, where it finds

  /dev/udmabuf                             UDMABUF_CREATE, UDMABUF_CREATE_LIST
  /dev/dma_heap/system, .../reserved       DMA_HEAP_IOCTL_ALLOC; reserved is the exporter contiguous
  /sys/kernel/debug/sync/sw_sync, .../info
  /sys/kernel/debug/dma_buf/bufinfo

and where DMA_BUF_IOCTL_EXPORT_SYNC_FILE and SYNC_IOC_MERGE work on the descriptors that it gets there. Neither root nor a
kernel module is needed, nothing is preloaded: static programs, Go programs, children and threads are covered
alike. System calls that are not about these are not slowed down, but those that take paths: opens and stats.

The buffers are those of a private mount, or of --mount MNT. Set-user-ID programs run without their
privileges (no_new_privs). Signals sent to run are passed on to CMD.

Exit status: that of CMD, or 128+n when signal n ended it; 126 when it cannot be executed, 127 when
it does not exist; 1 when run itself failed, and CMD was not started. It waits for the
last process that CMD has left behind; once CMD has ended, a signal ends the waiting.`,
		Example: `  dmabuffs run -- ./my-compositor-tests --all
  dmabuffs run --verbose -- sh -c 'ls -l /dev/dma_heap'`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			mountOptions, err := fs.ParseOptions(strings.Join(lists, ","))
			switch {
			case err != nil:
				return usageError{fmt.Errorf("run: %w", err)}
			case o.Mount != "" && len(lists) > 0:
				return usagef("run: --options are for a private mount: not with --mount")
			}
			o.Command, o.MountOptions = args, mountOptions
			return runCommand(o)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false) // what follows CMD is CMD's
	f.StringVar(&o.Mount, "mount", "", "use the dmabuffs at `MNT` instead of a private one")
	f.BoolVarP(&o.Verbose, "verbose", "v", false, "print each emulated call to stderr, as strace would")
	f.StringArrayVarP(&lists, "options", "o", nil, "mount `options` of the private mount, as for dmabuffs mount")
	_ = cmd.RegisterFlagCompletionFunc("options", completeMountOptions)
	_ = cmd.MarkFlagDirname("mount")
	return cmd
}

func runCommand(o run.Options) error {
	level := slog.LevelError // the rest is for who serves a mount; CMD's output is CMD's
	if o.MountOptions.Debug {
		level = slog.LevelDebug
	}
	o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	o.MountOptions.Log = o.Log
	o.Serving = func() { prepareProcess(o.Log) }
	status, err := run.Run(o)
	var why *run.Error
	switch {
	case errors.As(err, &why) && why.Hint != "":
		return hint(fmt.Errorf("run: %w", err), "%s", why.Hint)
	case err != nil:
		return fmt.Errorf("run: %w", err)
	case status != 0:
		return exitError{status: status}
	}
	return nil
}
