package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// limitFiles are a device's limits, as its directory names them.
var limitFiles = []string{"dma_mask", "max_segments", "max_segment_size", "segment_boundary"}

func newDeviceCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "device",
		Short: "Create, list, change and remove devices",
		Args:  usageArgs(cobra.NoArgs),
		RunE:  needSubcommand,
	}
	cmd.AddCommand(newDeviceCreateCmd(), newDeviceLsCmd(), newDeviceSetCmd(), newDeviceRmCmd())
	return cmd
}

// needSubcommand is what a group of commands does by itself.
func needSubcommand(cmd *cobra.Command, _ []string) error {
	_ = cmd.Help()
	return exitError{status: exitUsage}
}

func newDeviceCreateCmd() *cobra.Command {
	limits := map[string]*string{}
	cmd := &cobra.Command{
		Use:     "create [--LIMIT N]... PATH...",
		Short:   "Register devices",
		Long:    "Register a device at each PATH, MNT/devices/NAME, with its DMA limits.",
		Example: "  dmabuffs device create --dma-mask 32 --max-segments 4 /mnt/dmabuffs/devices/gpu0",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return forEach(args, func(path string) error {
				mnt, name, err := entryOf(path, "devices")
				if err != nil {
					return err
				}
				dir := filepath.Join(mnt, "devices", name)
				if err := unix.Mkdir(dir, 0o777); err != nil {
					return &fs.PathError{Op: "mkdir", Path: dir, Err: err}
				}
				for _, file := range limitFiles {
					if *limits[file] == "" {
						continue
					}
					if err := setLimit(dir, file, *limits[file]); err != nil {
						_ = unix.Rmdir(dir)
						return err
					}
				}
				return nil
			})
		},
	}
	for _, file := range limitFiles {
		limits[file] = cmd.Flags().String(strings.ReplaceAll(file, "_", "-"), "", limitHelp[file])
	}
	return cmd
}

var limitHelp = map[string]string{
	"dma_mask":         "the device reaches addresses of `BITS` bits, 1 to 64 (default 64)",
	"max_segments":     "at most `N` segments a mapping (default 0: no limit)",
	"max_segment_size": "at most `BYTES` a segment (default 0: no limit)",
	"segment_boundary": "no segment crosses a multiple of `BYTES` (default 0: no limit)",
}

func setLimit(dir, file, value string) error {
	err := writeText(filepath.Join(dir, file), value+"\n")
	switch {
	case errors.Is(err, syscall.EBUSY):
		return hint(err, "the device has attachments: %s lists them", filepath.Join(dir, "attachments"))
	case errors.Is(err, syscall.EINVAL):
		return hint(err, "want a number")
	}
	return err
}

func newDeviceSetCmd() *cobra.Command {
	return &cobra.Command{
		Use:     "set PATH LIMIT=N...",
		Short:   "Change a device's limits",
		Long:    "Change limits of a device that nothing is attached to: " + strings.Join(limitFiles, ", ") + ".",
		Example: "  dmabuffs device set /mnt/dmabuffs/devices/gpu0 dma_mask=32 max_segments=1",
		Args:    usageArgs(cobra.MinimumNArgs(2)),
		RunE: func(_ *cobra.Command, args []string) error {
			mnt, name, err := entryOf(args[0], "devices")
			if err != nil {
				return err
			}
			for _, arg := range args[1:] {
				file, _, ok := strings.Cut(arg, "=")
				if !ok || !slices.Contains(limitFiles, file) {
					return usagef("device set: %q: want LIMIT=N, LIMIT one of %s", arg, strings.Join(limitFiles, ", "))
				}
			}
			for _, arg := range args[1:] {
				file, value, _ := strings.Cut(arg, "=")
				if err := setLimit(filepath.Join(mnt, "devices", name), file, value); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func newDeviceRmCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rm PATH...",
		Short: "Unregister devices that nothing is attached to",
		Args:  usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return forEach(args, func(path string) error {
				mnt, name, err := entryOf(path, "devices")
				if err != nil {
					return err
				}
				dir := filepath.Join(mnt, "devices", name)
				err = unix.Rmdir(dir)
				if err == nil {
					return nil
				}
				perr := &fs.PathError{Op: "rmdir", Path: dir, Err: err}
				if err == unix.EBUSY {
					return hint(perr, "it has attachments: %s lists them", filepath.Join(dir, "attachments"))
				}
				return perr
			})
		},
	}
}

// deviceInfo is a row of device ls; limits are those of the device's files.
type deviceInfo struct {
	Name            string           `json:"name"`
	DMAMask         int64            `json:"dma_mask"` // bits
	MaxSegments     uint64           `json:"max_segments"`
	MaxSegmentSize  uint64           `json:"max_segment_size"` // bytes
	SegmentBoundary uint64           `json:"segment_boundary"` // bytes
	Attachments     []map[string]any `json:"attachments"`
}

func newDeviceLsCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "ls [MNT]",
		Short: "List devices, their limits and how much is attached to them",
		Args:  usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			mnt, err := mountOf(args)
			if err != nil {
				return err
			}
			names, err := readNames(filepath.Join(mnt, "devices"))
			if err != nil {
				return err
			}
			list := []deviceInfo{}
			for _, name := range names {
				d, err := readDevice(filepath.Join(mnt, "devices", name), name)
				if gone(err) {
					continue
				}
				if err != nil {
					return err
				}
				list = append(list, d)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), list)
			}
			rows := [][]string{{"NAME", "DMA_MASK", "MAX_SEGMENTS", "MAX_SEGMENT_SIZE", "SEGMENT_BOUNDARY", "ATTACHED"}}
			for _, d := range list {
				rows = append(rows, []string{
					printable(d.Name), strconv.FormatInt(d.DMAMask, 10), limitText(d.MaxSegments),
					limitText(d.MaxSegmentSize), limitText(d.SegmentBoundary), strconv.Itoa(len(d.Attachments)),
				})
			}
			return printTable(cmd.OutOrStdout(), rows)
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

// limitText shows a limit; 0 is none.
func limitText(n uint64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

func readDevice(dir, name string) (deviceInfo, error) {
	d := deviceInfo{Name: name, Attachments: []map[string]any{}}
	values := make([]uint64, len(limitFiles))
	for i, file := range limitFiles {
		text, err := readText(filepath.Join(dir, file))
		if err != nil {
			return d, err
		}
		if values[i], err = strconv.ParseUint(strings.TrimSpace(text), 10, 64); err != nil {
			return d, &fs.PathError{Op: "read", Path: filepath.Join(dir, file), Err: err}
		}
	}
	d.DMAMask, d.MaxSegments, d.MaxSegmentSize, d.SegmentBoundary = int64(values[0]), values[1], values[2], values[3]
	rows, err := readRows(filepath.Join(dir, "attachments"))
	for _, r := range rows { // buffer, direction, pid, command
		if len(r) >= 4 {
			d.Attachments = append(d.Attachments, map[string]any{
				"buffer": unescapeOctal(r[0]), "direction": r[1], "pid": r[2], "command": unescapeOctal(r[3]),
			})
		}
	}
	return d, err
}
