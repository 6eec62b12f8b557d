package fs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"syscall"
)

// errno is the single door by which errors leave: nil is 0, a wrapped errno is
// that errno, a cancelled wait is EINTR; anything else is logged and EIO. It
// never says ENOSYS, after which the kernel would stop asking.
func errno(log *slog.Logger, err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var e syscall.Errno
	switch {
	case errors.As(err, &e):
		if e == syscall.ENOSYS {
			return syscall.EOPNOTSUPP
		}
		return e
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return syscall.EINTR
	case errors.Is(err, fs.ErrClosed):
		return syscall.EBADF
	}
	log.Error("an error without an errno", "err", err)
	return syscall.EIO
}
