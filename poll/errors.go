package poll

import (
	"fmt"
	"syscall"
)

var (
	// ErrSignaled is Signal's answer from the second call on (EINVAL), as
	// dma_fence_signal's, and that of a container, which its parts signal.
	ErrSignaled = fmt.Errorf("poll: fence is signaled already: %w", syscall.EINVAL)

	// ErrDone is AddCallback's answer on a signaled fence (ENOENT), as
	// dma_fence_add_callback's: the callback was not added and will not run.
	ErrDone = fmt.Errorf("poll: fence has completed: %w", syscall.ENOENT)

	// ErrCallback is AddCallback's answer to no callback, or to one that is
	// on a fence already (EINVAL).
	ErrCallback = fmt.Errorf("poll: callback is nil or in use: %w", syscall.EINVAL)

	// ErrEnded: the timeline has ended and makes no more points (ENOENT).
	ErrEnded = fmt.Errorf("poll: timeline has ended: %w", syscall.ENOENT)

	// ErrValue: a timeline's value only grows, within its width (EINVAL).
	ErrValue = fmt.Errorf("poll: value is smaller or does not fit: %w", syscall.EINVAL)

	// ErrSeqno: the sequence number does not fit the timeline, or a chain
	// does not reach it (EINVAL).
	ErrSeqno = fmt.Errorf("poll: no such sequence number: %w", syscall.EINVAL)

	// ErrNoPoint: the fence is not one single point of a timeline (EINVAL,
	// of SW_SYNC_GET_DEADLINE).
	ErrNoPoint = fmt.Errorf("poll: not a point of a timeline: %w", syscall.EINVAL)

	// ErrNoDeadline: nobody gave the fence a deadline (ENOENT, of
	// SW_SYNC_GET_DEADLINE).
	ErrNoDeadline = fmt.Errorf("poll: fence has no deadline: %w", syscall.ENOENT)
)
