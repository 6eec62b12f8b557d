package fs

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Bits of fuse_init_in's flags and flags2, include/uapi/linux/fuse.h.
const (
	initDirectIOAllowMmap = 1 << 36
	initPassthrough       = 1 << 37
	initHasResend         = 1 << 39
)

// Features is what a trial mount showed of this kernel and user.
type Features struct {
	MountedBy         string `json:"mounted_by"`  // "mount(2)" or "fusermount3"
	Major             uint32 `json:"major"`       // of the FUSE protocol
	Minor             uint32 `json:"minor"`       //
	Flags             uint64 `json:"flags"`       // FUSE_INIT's flags, flags2 in the upper half
	Passthrough       bool   `json:"passthrough"` // FUSE_PASSTHROUGH (Linux 6.9); using it is for root
	DirectIOAllowMmap bool   `json:"direct_io_allow_mmap"`
	Resend            bool   `json:"resend"`
}

// Probe mounts on a temporary directory, reads the kernel's first request (FUSE_INIT,
// which says what it can do), and unmounts. Errors: those of Mount.
func Probe() (*Features, error) {
	dir, err := os.MkdirTemp("", "dmabuffs-probe-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	fd, by, err := mountSomehow(dir, &Options{})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	defer detachPath(dir)
	f, err := readInit(fd)
	if err != nil {
		return nil, err
	}
	f.MountedBy = by
	return f, nil
}

// initPatience is how long the kernel may take to send its first request.
const initPatience = 10 * time.Second

func readInit(fd int) (*Features, error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(initPatience); ; {
		n, err := unix.Poll(p, int(initPatience.Milliseconds()))
		if errors.Is(err, unix.EINTR) && time.Now().Before(end) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("poll %s: %w", fuseDevice, err)
		}
		if n == 0 {
			return nil, fmt.Errorf("the kernel sent no first request: %w", unix.ETIMEDOUT)
		}
		break
	}
	buf := make([]byte, bufSize)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", fuseDevice, err)
	}
	return parseInit(buf[:n])
}

// parseInit decodes struct fuse_init_in behind a header: major, minor,
// max_readahead, flags, flags2.
func parseInit(p []byte) (*Features, error) {
	if len(p) < inHeaderSize+16 || native.Uint32(p[4:]) != opInit {
		return nil, fmt.Errorf("the kernel's first request is not FUSE_INIT: %w", unix.EPROTO)
	}
	b := p[inHeaderSize:]
	f := &Features{Major: native.Uint32(b), Minor: native.Uint32(b[4:]), Flags: uint64(native.Uint32(b[12:]))}
	if len(b) >= 20 {
		f.Flags |= uint64(native.Uint32(b[16:])) << 32
	}
	f.Passthrough = f.Flags&initPassthrough != 0
	f.DirectIOAllowMmap = f.Flags&initDirectIOAllowMmap != 0
	f.Resend = f.Flags&initHasResend != 0
	return f, nil
}
