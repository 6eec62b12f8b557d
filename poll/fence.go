package poll

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
)

// lastContext is the last context id given out.
var lastContext atomic.Uint64

// NewContext allocates an execution context (dma_fence_context_alloc). Fences
// of one context signal in the order of their seqno. The first id is 1.
func NewContext() uint64 { return lastContext.Add(1) }

// Fence is one thing that will complete, once (struct dma_fence). It is pending
// until it is signaled, and then stays signaled.
//
// Arrays and chains ([NewArray], [NewChain]) are fences too: containers, whose
// parts signal them. A container looks at its parts when it is asked, and has a
// callback on them only while somebody has a callback on it.
type Fence struct {
	driver   string
	timeline string
	context  uint64
	seqno    uint64
	order    uint64 // seqno as if it had never wrapped
	parts    parts  // nil unless a container
	point    *point // nil unless made by a Timeline

	done atomic.Bool // set under mu, after err and timestamp, which stay from then on

	mu          sync.Mutex
	err         syscall.Errno
	timestamp   uint64
	first, last *Callback // in the order they were added
	deadline    uint64
	hasDeadline bool
}

// parts is what a container's fence is made of.
type parts interface {
	// checkLocked works out from the parts whether the container is done,
	// and how. Preconditions: the container's mu is held; it is not done.
	checkLocked() (done bool, err syscall.Errno, timestamp uint64)
	// armLocked sees that the container hears of the next part to complete.
	// It reports false when no part is left to wait for. Precondition: the
	// container's mu is held.
	armLocked() bool
	// disarmLocked undoes armLocked. Precondition: the container's mu is held.
	disarmLocked()
	// each calls fn for every part not known to be done. The container's mu
	// is not held.
	each(fn func(*Fence))
	// unwrap appends the leaves to to.
	unwrap(to []*Fence) []*Fence
}

// NewFence makes a pending fence (dma_fence_init64). driver and timeline are
// its names as FILE_INFO and bufinfo show them; seqno orders it among the fences
// of its context, all 64 bits of it.
func NewFence(driver, timeline string, context, seqno uint64) *Fence {
	return &Fence{driver: driver, timeline: timeline, context: context, seqno: seqno, order: seqno}
}

// Driver is the fence's driver name (dma_fence_ops.get_driver_name). It stays
// after the signal, as in kernels before 6.18.
func (f *Fence) Driver() string { return f.driver }

// TimelineName is the name of the fence's timeline (get_timeline_name).
func (f *Fence) TimelineName() string { return f.timeline }

// Context is the execution context the fence belongs to; 0 for stubs alone.
func (f *Fence) Context() uint64 { return f.context }

// Seqno is the fence's place in its context.
func (f *Fence) Seqno() uint64 { return f.seqno }

// later reports whether f comes after o in their common context
// (dma_fence_is_later). Where seqnos of 32 bits wrap, the kernel compares them by
// (int32)(a - b); the order kept here says the same of fences that live at one
// time, and never contradicts itself.
func (f *Fence) later(o *Fence) bool { return f.order > o.order }

// Signal completes the fence and runs its callbacks in the order they were
// added, before it returns (dma_fence_signal). From the second call on, and on
// a container, it does nothing and returns ErrSignaled (EINVAL).
func (f *Fence) Signal() error {
	switch {
	case f.parts != nil:
		return ErrSignaled
	case f.point != nil:
		return f.point.tl.signalPoint(f, 0)
	}
	var buf [4]run
	runs, ok := f.finish(0, uint64(now()), buf[:0])
	if !ok {
		return ErrSignaled
	}
	runAll(runs)
	return nil
}

// SetError says why the fence will complete: call it before Signal
// (dma_fence_set_error). By convention ENODATA: only this operation failed,
// ECANCELED: its whole context was cancelled, ETIME: it took too long. Status
// stays 0 until the signal. On a signaled fence, on a container, and with a
// value outside 1..4095 it has no effect.
func (f *Fence) SetError(e syscall.Errno) {
	if e < 1 || e > 4095 || f.parts != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done.Load() {
		f.err = e
	}
}

// Signaled reports whether the fence has completed (dma_fence_is_signaled).
func (f *Fence) Signaled() bool {
	if f.done.Load() {
		return true
	}
	if f.parts == nil {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.checkLocked()
}

// Status is 0 while the fence is pending, then 1, or the negative errno it
// completed with (dma_fence_get_status).
func (f *Fence) Status() int {
	switch {
	case !f.Signaled():
		return 0
	case f.err != 0:
		return -int(f.err)
	}
	return 1
}

// Timestamp is when the fence was signaled, in nanoseconds of CLOCK_MONOTONIC,
// and 0 until then. A container has the time of the part that completed it.
func (f *Fence) Timestamp() uint64 {
	if !f.Signaled() {
		return 0
	}
	return f.timestamp
}

// Wait waits until the fence is signaled or ctx ends, and then returns nil or
// ctx.Err() (dma_fence_wait). The fence's own error is not Wait's: see Status.
// A signaled fence wins over a ctx that has ended too.
func (f *Fence) Wait(ctx context.Context) error {
	if f.Signaled() {
		return nil
	}
	done := make(chan struct{})
	cb := NewCallback(func(*Fence) { close(done) })
	if f.AddCallback(cb) != nil {
		return nil // signaled meanwhile
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		if !f.RemoveCallback(cb) || f.Signaled() {
			return nil
		}
		return ctx.Err()
	}
}

// SetDeadline hints that somebody needs the fence by ns, a time of
// CLOCK_MONOTONIC in nanoseconds (dma_fence_set_deadline, 6.12). The earliest
// hint counts; one that has passed means now. Containers hand it on to their
// parts. On a signaled fence it has no effect.
func (f *Fence) SetDeadline(ns uint64) {
	if f.Signaled() {
		return
	}
	if f.parts != nil {
		f.parts.each(func(p *Fence) { p.SetDeadline(ns) })
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.done.Load() && (!f.hasDeadline || ns < f.deadline) {
		f.deadline, f.hasDeadline = ns, true
	}
}

// Deadline is the earliest deadline given, in nanoseconds of CLOCK_MONOTONIC,
// and whether there was one. For a container it is the earliest of its parts
// that are still pending.
func (f *Fence) Deadline() (ns uint64, ok bool) {
	if f.parts != nil {
		f.parts.each(func(p *Fence) {
			if d, has := p.Deadline(); has && !p.Signaled() && (!ok || d < ns) {
				ns, ok = d, true
			}
		})
		return ns, ok
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.deadline, f.hasDeadline
}

// checkLocked reports whether f is done, asking the parts of a container.
// Callbacks are left in place: the container hears of its parts when they have
// told everybody, and runs them then. Precondition: f.mu is held.
//
// +checklocks:f.mu
func (f *Fence) checkLocked() bool {
	if f.done.Load() {
		return true
	}
	if f.parts == nil {
		return false
	}
	done, err, ts := f.parts.checkLocked()
	if done {
		f.markLocked(err, ts)
	}
	return done
}

// markLocked makes f signaled at ts; err, unless 0, is its error.
// Preconditions: f.mu is held; f is not signaled.
//
// +checklocks:f.mu
func (f *Fence) markLocked(err syscall.Errno, ts uint64) {
	if err != 0 {
		f.err = err
	}
	f.timestamp = ts
	f.done.Store(true)
}

// finish signals f, which is no container, and appends its callbacks to runs.
// It reports whether f was pending.
func (f *Fence) finish(err syscall.Errno, ts uint64, runs []run) ([]run, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.done.Load() {
		return runs, false
	}
	f.markLocked(err, ts)
	return f.takeLocked(runs), true
}

// partDone is the callback that a container has on its parts: it looks whether
// the container is done, and else goes on to the next part.
func (f *Fence) partDone(*Fence) {
	var buf [4]run
	runs := buf[:0]
	f.mu.Lock()
	if f.checkLocked() || f.first != nil && !f.armedLocked() {
		f.parts.disarmLocked()
		runs = f.takeLocked(runs)
	}
	f.mu.Unlock()
	runAll(runs)
}

// armedLocked makes a container hear of its parts. It reports false when they
// are done, and then so is f. Preconditions: f.mu is held; f is a container.
//
// +checklocks:f.mu
func (f *Fence) armedLocked() bool {
	for !f.parts.armLocked() {
		if f.checkLocked() {
			return false
		}
	}
	return true
}
