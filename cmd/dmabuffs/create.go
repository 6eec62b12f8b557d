package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newCreateCmd() *cobra.Command {
	var exporter, size string
	cmd := &cobra.Command{
		Use:   "create --size N [--exporter E] PATH...",
		Short: "Create buffers of a size, zero-filled",
		Long: `Create a buffer at each PATH, MNT/buffers/NAME or MNT/exporters/EXPORTER/NAME, of N
bytes (K, M, G may follow). It must not exist yet. What cannot be created whole is
not there afterwards.`,
		Example: "  dmabuffs create --size 8M /mnt/dmabuffs/buffers/frame\n  dmabuffs create --exporter contiguous --size 4M /mnt/dmabuffs/buffers/scanout",
		Args:    usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if size == "" {
				return usagef("create: --size is missing")
			}
			n, err := parseSize(size)
			if err != nil {
				return err
			}
			for _, path := range args {
				if err := createBuffer(path, exporter, n); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&size, "size", "s", "", "size in `BYTES`; K, M, G may follow")
	cmd.Flags().StringVarP(&exporter, "exporter", "e", "", "who backs it: system, coherent, noncoherent or contiguous (default: what PATH or the mount says)")
	return cmd
}

// createBuffer makes one buffer, or leaves nothing behind.
func createBuffer(path, exporter string, size int64) error {
	mnt, rel, err := locate(path)
	if err != nil {
		return err
	}
	part := strings.Split(rel, "/")
	target := filepath.Join(mnt, rel)
	switch {
	case len(part) == 2 && part[0] == "buffers" && exporter != "":
		target = filepath.Join(mnt, "exporters", exporter, part[1])
	case len(part) == 2 && part[0] == "buffers":
	case len(part) == 3 && part[0] == "exporters" && (exporter == "" || exporter == part[1]):
	case len(part) == 3 && part[0] == "exporters":
		return usagef("%s: is of exporter %s, not %s", path, part[1], exporter)
	default:
		return usagef("%s: buffers are created in %s", path, filepath.Join(mnt, "buffers"))
	}
	fd, err := open(target, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o666)
	if errors.Is(err, syscall.ENOENT) && exporter != "" {
		names, _ := readNames(filepath.Join(mnt, "exporters"))
		return hint(err, "the exporters here are: %s", strings.Join(names, ", "))
	}
	if err != nil {
		return err
	}
	err = unix.Ftruncate(fd, size)
	for err == unix.EINTR {
		err = unix.Ftruncate(fd, size)
	}
	unix.Close(fd)
	if err != nil {
		_ = unix.Unlink(target)
		err = &fs.PathError{Op: "size of " + formatSize(size) + " for", Path: target, Err: err}
		switch {
		case errors.Is(err, syscall.ENOSPC):
			return hint(err, "the mount's limit; df %s shows what is left, mount option size= sets it", mnt)
		case errors.Is(err, syscall.ENOMEM):
			return hint(err, "no hole of the carve-out is large enough; mount option contiguous= sets its size")
		}
		return err
	}
	return nil
}
