package fs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MountInfo is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type MountInfo struct {
	ID           int    `json:"id"`      // unique among the mounts there are
	Parent       int    `json:"parent"`  // the ID of the mount below
	Major        uint32 `json:"major"`   // st_dev of its files
	Minor        uint32 `json:"minor"`   // also the number in /sys/fs/fuse/connections
	Dir          string `json:"dir"`     // the mount point, seen from this process' root
	Options      string `json:"options"` // of the mount
	FSType       string `json:"fstype"`  // "fuse.dmabuffs"
	Source       string `json:"source"`  // fsname=
	SuperOptions string `json:"super_options"`
}

// Mounts lists the dmabuffs mounts that this process can see, oldest first.
func Mounts() ([]MountInfo, error) {
	all, err := readMountinfo()
	if err != nil {
		return nil, err
	}
	var out []MountInfo
	for _, m := range all {
		if m.FSType == fsType {
			out = append(out, m)
		}
	}
	return out, nil
}

// IsMounted reports whether dir is the root of a dmabuffs, dead or alive.
func IsMounted(dir string) bool {
	m, err := mountAt(dir)
	return err == nil && m != nil && m.FSType == fsType
}

// deadPatience is how long a file system may take to say whether it lives.
const deadPatience = 5 * time.Second

// Dead reports whether the mount's daemon is gone: statfs(2), which is never answered
// from a cache, says ENOTCONN ("Transport endpoint is not connected"). A daemon that does
// not answer within 5 s counts as alive.
func (m *MountInfo) Dead() bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(m.Dir, &st)
	}()
	select {
	case err := <-answer:
		return isDead(err)
	case <-time.After(deadPatience):
		return false
	}
}

// isDead: ECONNABORTED is what a request gets that was under way when the daemon died.
func isDead(err error) bool {
	return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
}

// clearDead takes away what killed daemons left on dir, and nobody else's mounts.
// Errors: EBUSY where a dmabuffs lives there, ENOTCONN where something else is dead.
func clearDead(dir string, log *slog.Logger) error {
	for {
		m, err := mountAt(dir)
		if err != nil || m == nil {
			return err
		}
		if m.FSType != fsType {
			if strings.HasPrefix(m.FSType, "fuse") && m.Dead() {
				return fmt.Errorf("%s: a dead mount of type %s, which is not ours to clear (umount -l %s): %w", dir, m.FSType, dir, unix.ENOTCONN)
			}
			return nil
		}
		if !m.Dead() {
			return fmt.Errorf("%s: a dmabuffs is mounted there already: %w", dir, unix.EBUSY)
		}
		log.Warn("clearing a mount point whose daemon died", "dir", m.Dir)
		if err := umount(m.Dir, true); err != nil {
			return fmt.Errorf("clearing the dead mount: %w", err)
		}
	}
}

func readMountinfo() ([]MountInfo, error) {
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMountinfo(raw), nil
}

func parseMountinfo(raw []byte) []MountInfo {
	var out []MountInfo
	for line := range bytes.Lines(raw) {
		if m, ok := parseMountLine(strings.Fields(string(line))); ok {
			out = append(out, m)
		}
	}
	return out
}

// parseMountLine reads
//
//	36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 … - ext3 /dev/root rw,errors=continue
func parseMountLine(f []string) (m MountInfo, ok bool) {
	sep := -1
	for i := 6; i < len(f); i++ {
		if f[i] == "-" {
			sep = i
			break
		}
	}
	if sep < 0 || len(f) < sep+3 {
		return m, false
	}
	m.ID, _ = strconv.Atoi(f[0])
	m.Parent, _ = strconv.Atoi(f[1])
	if n, _ := fmt.Sscanf(f[2], "%d:%d", &m.Major, &m.Minor); n != 2 {
		return m, false
	}
	m.Dir, m.Options = Unescape(f[4]), f[5]
	m.FSType, m.Source = f[sep+1], Unescape(f[sep+2])
	if len(f) > sep+3 {
		m.SuperOptions = f[sep+3]
	}
	return m, true
}

// Unescape undoes \040 and the like: the kernel's mangle_path in mountinfo, and ours in
// the rows of state/.
func Unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
