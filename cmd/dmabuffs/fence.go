package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newFenceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fence",
		Short: "Add fences to buffers, wait for them, list them",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  needSubcommand,
	}
	cmd.AddCommand(newFenceAddCmd(), newFenceWaitCmd(), newFenceLsCmd())
	return cmd
}

func newFenceAddCmd() *cobra.Command {
	var read bool
	cmd := &cobra.Command{
		Use:   "add [--read] PATH TIMELINE:SEQNO...",
		Short: "Add fences to a buffer",
		Long: `Add points of timelines to a buffer's reservation: as write (exclusive) fences, which
readers and writers wait for, or with --read as read (shared) ones, which only writers
wait for.`,
		Example: "  dmabuffs fence add /mnt/dmabuffs/buffers/frame gpu0:7",
		Args:    usageArgs(cobra.MinimumNArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			mnt, name, err := bufferOf(args[0])
			if err != nil {
				return err
			}
			for _, point := range args[1:] {
				if err := parsePoint(point); err != nil {
					return err
				}
			}
			file := filepath.Join(mnt, "state", name, "write_fences")
			if read {
				file = filepath.Join(mnt, "state", name, "read_fences")
			}
			for _, point := range args[1:] {
				err := writeText(file, point+"\n")
				switch {
				case errors.Is(err, syscall.EINVAL):
					return hint(err, "is there such a timeline? dmabuffs timeline ls %s", mnt)
				case errors.Is(err, syscall.ENOSPC):
					return hint(err, "the mount's limit of pending fences; mount option nr_fences= sets it")
				case err != nil:
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&read, "read", false, "add shared fences: they keep writers out, not readers")
	return cmd
}

func newFenceWaitCmd() *cobra.Command {
	w := &waiting{}
	var access string
	cmd := &cobra.Command{
		Use:   "wait [--for read|write] [--timeout D] PATH...",
		Short: "Wait until buffers, points or snapshots are signaled",
		Long: `Wait, as poll(2) does, for each PATH: a buffer (until it can be read: no write fence
is pending; with --for write until no fence at all is), a point of a timeline
(MNT/timelines/NAME/points/SEQNO), or a snapshot of a buffer's fences
(MNT/state/BUFFER/write_fences or read_fences).

Exit status 124: not all of it signaled within the time-out. Exit status 1: a fence
signaled with an error, where that can be seen (points and snapshots).`,
		Example: "  dmabuffs fence wait --timeout 1s /mnt/dmabuffs/buffers/frame",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			events := map[string]int16{"read": unix.POLLIN, "write": unix.POLLOUT}[access]
			if events == 0 {
				return usagef("fence wait: --for %s: want read or write", access)
			}
			return w.run(cmd, args, events)
		},
	}
	cmd.Flags().StringVar(&access, "for", "read", "what the buffers are waited for: `ACCESS` read or write")
	w.flags(cmd)
	return cmd
}

// waiting is what fence wait and timeline wait have in common.
type waiting struct {
	timeout time.Duration
	asJSON  bool
}

func (w *waiting) flags(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&w.timeout, "timeout", -1, "give up after `D` (500ms, 10s, …), with exit status 124; 0 only asks (default: never)")
	cmd.Flags().Lookup("timeout").DefValue = ""
	jsonFlag(cmd, &w.asJSON)
}

// waitResult is how waiting for one path ended.
type waitResult struct {
	Path    string `json:"path"`
	Status  string `json:"status"`    // signaled, timeout, or "error -ERRNO"
	Elapsed int64  `json:"waited_ns"` // since the wait began
}

// run waits for every path, in turn: all of them have to signal. The time-out is for all together.
func (w *waiting) run(cmd *cobra.Command, paths []string, events int16) error {
	// Open all before waiting for any: a point is taken when it is opened.
	type target struct {
		path   string
		fd     int
		events int16
		text   bool // reading it tells how it ended
	}
	targets := make([]target, 0, len(paths))
	defer func() {
		for _, t := range targets {
			unix.Close(t.fd)
		}
	}()
	for _, path := range paths {
		t := target{path: path, events: events}
		_, rel, err := locate(path)
		if err != nil {
			return err
		}
		part := strings.Split(rel, "/")
		switch {
		case len(part) == 4 && part[0] == "timelines" && part[2] == "points",
			len(part) == 3 && part[0] == "state" && strings.HasSuffix(part[2], "_fences"):
			t.text, t.events = true, unix.POLLIN
		case part[0] == "buffers" && len(part) == 2, part[0] == "exporters" && len(part) == 3,
			part[0] == "devices" && len(part) == 4 && part[2] == "buffers":
		default:
			return usagef("%s: is neither a buffer, a point nor a snapshot of fences", path)
		}
		// A buffer's mode decides who may open it how; either way polls for both.
		t.fd, err = open(path, unix.O_RDONLY, 0)
		if errors.Is(err, syscall.EACCES) && !t.text {
			t.fd, err = open(path, unix.O_WRONLY, 0)
		}
		if err != nil {
			return err
		}
		targets = append(targets, t)
	}

	start := time.Now()
	results := make([]waitResult, 0, len(targets))
	var failed error
	for _, t := range targets {
		left := w.timeout
		if left >= 0 {
			left = max(w.timeout-time.Since(start), 0)
		}
		r := waitResult{Path: t.path, Status: "signaled"}
		err := pollFile(t.fd, t.events, left)
		r.Elapsed = time.Since(start).Nanoseconds()
		switch {
		case err == errTimeout:
			r.Status = "timeout"
			if failed == nil {
				failed = exitError{exitTimeout, fmt.Errorf("%s: not signaled within %v", t.path, w.timeout)}
			}
		case err != nil:
			return fmt.Errorf("%s: %w", t.path, err)
		case t.text:
			status, err := readStatus(t.fd)
			if err != nil {
				return fmt.Errorf("read %s: %w", t.path, err)
			}
			if err := statusError(t.path, status); err != nil {
				r.Status = status
				failed = err
			}
		}
		results = append(results, r)
	}
	if w.asJSON {
		if err := printJSON(cmd.OutOrStdout(), results); err != nil {
			return err
		}
	}
	return failed
}

// readStatus reads an open sync file: a point's one word, or a snapshot's rows, of
// which the first that failed counts.
func readStatus(fd int) (string, error) {
	var out []byte
	buf := make([]byte, 64<<10)
	for off := int64(0); ; {
		n, err := unix.Pread(fd, buf, off)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return "", err
		case n > 0:
			out, off = append(out, buf[:n]...), off+int64(n)
			continue
		}
		break
	}
	text := strings.TrimSpace(string(out))
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		for i, word := range f {
			if word == "error" && i+1 < len(f) && (i == 0 || i == 2) {
				return word + " " + f[i+1], nil
			}
		}
	}
	return "signaled", nil
}

func newFenceLsCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls PATH...",
		Short: "List the fences of buffers",
		Long:  "List the fences of each buffer, or, for a mount point, of all its buffers.",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			list := []fenceInfo{}
			for _, path := range args {
				mnt, rel, err := locate(path)
				if err != nil {
					return err
				}
				var names []string
				if rel == "." {
					names, err = readNames(filepath.Join(mnt, "buffers"))
				} else {
					names = make([]string, 1)
					_, names[0], err = bufferOf(path)
				}
				if err != nil {
					return err
				}
				for _, name := range names {
					for _, usage := range fenceUsages {
						fences, err := readFences(mnt, name, usage)
						if gone(err) && rel == "." {
							continue
						}
						if err != nil {
							return err
						}
						list = append(list, fences...)
					}
				}
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			rows := [][]string{{"BUFFER", "USAGE", "FENCE", "STATUS", "DRIVER"}}
			for _, f := range list {
				rows = append(rows, []string{printable(f.Buffer), f.Usage, fmt.Sprintf("%s:%d", printable(f.Timeline), f.Seqno), f.Status, f.Driver})
			}
			return printTable(cmd.OutOrStdout(), rows)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}
