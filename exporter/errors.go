package exporter

import (
	"context"
	"fmt"
	"syscall"
)

// Errors of this package. Each wraps the errno that a system call would give.
var (
	// ErrInvalid: an argument that no caller may pass (EINVAL).
	ErrInvalid = fmt.Errorf("exporter: invalid argument: %w", syscall.EINVAL)
	// ErrOwnerGone: the exporter is being unregistered (ENOENT), as dma_buf_export
	// says of a module that is unloading.
	ErrOwnerGone = fmt.Errorf("exporter: owner is going away: %w", syscall.ENOENT)
	// ErrBusy: somebody uses it (EBUSY).
	ErrBusy = fmt.Errorf("exporter: in use: %w", syscall.EBUSY)
	// ErrQuota: over the mount's size= or nr_buffers= (ENOSPC).
	ErrQuota = fmt.Errorf("exporter: over quota: %w", syscall.ENOSPC)
	// ErrNoRoom: the simulated physical memory, or the carve-out, has no place (ENOMEM).
	ErrNoRoom = fmt.Errorf("exporter: no room: %w", syscall.ENOMEM)
	// ErrNoMemory: allocating would reach a memory limit, or there is no descriptor left (ENOMEM).
	ErrNoMemory = fmt.Errorf("exporter: out of memory: %w", syscall.ENOMEM)
	// ErrTooBig: a size that cannot be (EFBIG).
	ErrTooBig = fmt.Errorf("exporter: size too big: %w", syscall.EFBIG)
	// ErrExists and ErrUnknown are about names of exporters (EEXIST, ENOENT).
	ErrExists  = fmt.Errorf("exporter: name taken: %w", syscall.EEXIST)
	ErrUnknown = fmt.Errorf("exporter: no such exporter: %w", syscall.ENOENT)
	// ErrFixed: the size of this buffer cannot change (EINVAL, as ftruncate(2) on a dma-buf).
	ErrFixed = fmt.Errorf("exporter: fixed size: %w", syscall.EINVAL)
	// ErrClosed: the memory was given back by release (ENODEV).
	ErrClosed = fmt.Errorf("exporter: memory is gone: %w", syscall.ENODEV)
)

// LimitError says which limit of which device a placement does not meet (EBUSY).
type LimitError struct {
	Device string // name of the importer
	Limit  string // dma_mask, max_segments, max_segment_size or segment_boundary
	Value  uint64 // what the limit is set to
	Why    string // what there is instead
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("exporter: device %s: %s=%d: %s: %v", e.Device, e.Limit, e.Value, e.Why, syscall.EBUSY)
}

// Unwrap gives EBUSY.
func (e *LimitError) Unwrap() error { return syscall.EBUSY }

// interrupted is the error of a wait that its context ended: EINTR, and the context's own.
func interrupted(ctx context.Context, what string) error {
	return fmt.Errorf("exporter: %s: %w (%w)", what, syscall.EINTR, context.Cause(ctx))
}

// eintr makes EINTR of an error that is only the context's.
func eintr(ctx context.Context, what string, err error) error {
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("exporter: %s: %w (%w)", what, syscall.EINTR, err)
	}
	return err
}

// errOverflow: offset and length of a mapping wrap around (EOVERFLOW).
var errOverflow = fmt.Errorf("exporter: mmap: %w", syscall.EOVERFLOW)

// errNoMemfd: the exporter makes its pages itself (EOPNOTSUPP).
var errNoMemfd = fmt.Errorf("exporter: no memory to allocate or free: %w", syscall.EOPNOTSUPP)
