package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"

	"golang.org/x/sys/unix"
)

// writebackKnobs are the settings of a backing device that throttle whoever dirties
// pages of a FUSE file (Documentation/ABI/testing/sysfs-class-bdi). FUSE begins with
// max_ratio 1 (per cent of the dirty limit) and strict_limit 1, because a daemon could
// be slow in writing back; ours writes to memory.
var writebackKnobs = []struct{ file, value string }{
	{"strict_limit", "0"},
	{"max_ratio", "100"},
}

// tuneWriteback lifts the write-back throttle of the mount at dir, and of no other:
// stores into mappings then run at memory speed instead of a quarter of it. Only
// the real root may; for others it does nothing and returns false. The setting dies with the mount.
func tuneWriteback(dir string, log *slog.Logger) bool {
	m, err := ourMountAt(dir)
	if err != nil {
		log.Debug("write-back not tuned", "err", err)
		return false
	}
	for _, k := range writebackKnobs {
		file := fmt.Sprintf("/sys/class/bdi/%d:%d/%s", m.Major, m.Minor, k.file)
		err := writeKnob(file, k.value)
		switch {
		case err == nil:
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENOENT):
			// not root, or a container's /sys; strict_limit is younger than Linux 6.2
			log.Debug("write-back not tuned", "err", err)
			if k.file == "max_ratio" {
				return false
			}
		default:
			log.Warn("write-back not tuned: stores into mappings will be throttled", "err", err)
			return false
		}
	}
	return true
}

func writeKnob(file, value string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
