package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newTimelineCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "timeline",
		Short: "Create, advance, wait for, list and end timelines",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  needSubcommand,
	}
	cmd.AddCommand(newTimelineCreateCmd(), newTimelineAdvanceCmd(), newTimelineWaitCmd(), newTimelineLsCmd(), newTimelineRmCmd())
	return cmd
}

func newTimelineCreateCmd() *cobra.Command {
	var hold bool
	cmd := &cobra.Command{
		Use:   "create PATH...",
		Short: "Make timelines, at value 0",
		Long: `Make a timeline at each PATH, MNT/timelines/NAME. With --hold the command stays, as the
timelines' owner, until it gets a signal or is killed; the timelines end with it, and
what is still pending on them signals with error -ENOENT.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			err := forEach(args, func(path string) error {
				mnt, name, err := entryOf(path, "timelines")
				if err != nil {
					return err
				}
				dir := filepath.Join(mnt, "timelines", name)
				if err := unix.Mkdir(dir, 0o777); err != nil {
					return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
				}
				if hold {
					if _, err := open(filepath.Join(dir, "owner"), unix.O_RDONLY, 0); err != nil {
						_ = unix.Rmdir(dir)
						return err // the descriptor stays open: it is the point
					}
				}
				return nil
			})
			if err != nil || !hold {
				return err
			}
			stop := make(chan os.Signal, 1)
			signal.Notify(stop, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
			<-stop
			return nil
		},
	}
	cmd.Flags().BoolVar(&hold, "hold", false, "stay as the owner; the timelines end with this process")
	return cmd
}

func newTimelineAdvanceCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "advance PATH +N|N",
		Short:   "Advance a timeline by N, or set it to N",
		Long:    "Advance a timeline by N (+N) or set it to N, which is no less than its value. The fences up to there signal.",
		Example: "  dmabuffs timeline advance /mnt/dmabuffs/timelines/gpu0 +1",
		Args:    usageArgs(cobra.ExactArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			mnt, name, err := entryOf(args[0], "timelines")
			if err != nil {
				return err
			}
			if _, err := strconv.ParseUint(strings.TrimPrefix(args[1], "+"), 10, 64); err != nil {
				return usagef("timeline advance: %q: want N or +N, of 64 bits", args[1])
			}
			err = writeText(filepath.Join(mnt, "timelines", name, "value"), args[1]+"\n")
			if errors.Is(err, syscall.EINVAL) {
				value, rerr := readText(filepath.Join(mnt, "timelines", name, "value"))
				if rerr == nil {
					return hint(err, "the value is %s and only grows, to 2^64-1 at most", strings.TrimSpace(value))
				}
			}
			return err
		},
	}
}

func newTimelineWaitCmd() *cobra.Command {
	w := &waiting{}
	cmd := &cobra.Command{
		Use:   "wait PATH SEQNO",
		Short: "Wait until a timeline reaches a point",
		Long: `Wait until the timeline's value reaches SEQNO. Exit status 124: it did not within the
time-out. Exit status 1: the timeline ended before it.`,
		Example: "  dmabuffs timeline wait --timeout 10s /mnt/dmabuffs/timelines/gpu0 7",
		Args:    usageArgs(cobra.ExactArgs(2)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mnt, name, err := entryOf(args[0], "timelines")
			if err != nil {
				return err
			}
			if _, err := strconv.ParseUint(args[1], 10, 64); err != nil {
				return usagef("timeline wait: %q: is no seqno of 64 bits", args[1])
			}
			return w.run(cmd, []string{filepath.Join(mnt, "timelines", name, "points", args[1])}, unix.POLLIN)
		},
	}
	w.flags(cmd)
	return cmd
}

// timelineInfo is a row of timeline ls.
type timelineInfo struct {
	Name   string `json:"name"`
	Value  uint64 `json:"value"`
	Points int    `json:"points"` // points that somebody has, pending
}

func newTimelineLsCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls [MNT]",
		Short: "List timelines, their values and how many points of each are listed as pending",
		Args:  usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mnt, err := mountOf(args)
			if err != nil {
				return err
			}
			names, err := readNames(filepath.Join(mnt, "timelines"))
			if err != nil {
				return err
			}
			list := []timelineInfo{}
			for _, name := range names {
				t, err := readTimeline(filepath.Join(mnt, "timelines", name), name)
				if gone(err) {
					continue
				}
				if err != nil {
					return err
				}
				list = append(list, t)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			rows := [][]string{{"NAME", "VALUE", "PENDING"}}
			for _, t := range list {
				rows = append(rows, []string{printable(t.Name), strconv.FormatUint(t.Value, 10), strconv.Itoa(t.Points)})
			}
			return printTable(cmd.OutOrStdout(), rows)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func readTimeline(dir, name string) (timelineInfo, error) {
	text, err := readText(filepath.Join(dir, "value"))
	if err != nil {
		return timelineInfo{}, err
	}
	value, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return timelineInfo{}, &fs.PathError{Op: "read", Path: filepath.Join(dir, "value"), Err: err}
	}
	points, err := readNames(filepath.Join(dir, "points"))
	return timelineInfo{name, value, len(points)}, err
}

func newTimelineRmCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rm PATH...",
		Short: "End timelines; what is pending on them signals with error -ENOENT",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return forEach(args, func(path string) error {
				mnt, name, err := entryOf(path, "timelines")
				if err != nil {
					return err
				}
				dir := filepath.Join(mnt, "timelines", name)
				if err := unix.Rmdir(dir); err != nil {
					return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
				}
				return nil
			})
		},
	}
}

// parsePoint checks "<timeline>:<seqno>".
func parsePoint(s string) error {
	i := strings.LastIndexByte(s, ':')
	if i <= 0 {
		return usagef("%q: want TIMELINE:SEQNO", s)
	}
	if _, err := strconv.ParseUint(s[i+1:], 10, 64); err != nil {
		return usagef("%q: %q is no seqno of 64 bits", s, s[i+1:])
	}
	return nil
}

// statusError is what a sync file's text says when its fence failed; nil for "signaled" and "pending".
func statusError(path, status string) error {
	code, ok := strings.CutPrefix(status, "error ")
	if !ok {
		return nil
	}
	// a name (-ENOENT) or a number (-2)
	name := strings.TrimPrefix(code, "-")
	for e := syscall.Errno(1); e < 134; e++ {
		if unix.ErrnoName(e) == name || strconv.Itoa(int(e)) == name {
			return &fs.PathError{Op: "wait for", Path: path, Err: e}
		}
	}
	return fmt.Errorf("wait for %s: %s", path, status)
}
