package poll

import "sync/atomic"

// Callback is a function that a fence calls when it is signaled (struct
// dma_fence_cb). It is on one fence at a time, and may be added again, to any
// fence, once it has run or was removed.
type Callback struct {
	fn         func(*Fence)
	on         atomic.Pointer[Fence] // nil when on none; changed under that fence's mu
	next, prev *Callback             // guarded by the mu of the fence it is on
}

// NewCallback makes a callback that runs fn with the fence that was signaled.
// fn runs in the goroutine that signaled the fence, with no lock held; until it
// returns, so does not Signal: it should be short.
func NewCallback(fn func(*Fence)) *Callback { return &Callback{fn: fn} }

// AddCallback has cb run, once, when f is signaled (dma_fence_add_callback). On
// a signaled fence it returns ErrDone (ENOENT) and cb does not run. A nil
// callback, or one that is on a fence, is ErrCallback (EINVAL).
func (f *Fence) AddCallback(cb *Callback) error {
	if cb == nil {
		return ErrCallback
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.checkLocked() {
		return ErrDone
	}
	if !cb.on.CompareAndSwap(nil, f) {
		return ErrCallback
	}
	f.linkLocked(cb)
	if f.parts != nil && !f.armedLocked() {
		f.unlinkLocked(cb)
		if f.first == nil { // else a part is about to tell the others
			f.parts.disarmLocked()
		}
		return ErrDone
	}
	return nil
}

// RemoveCallback takes cb off f (dma_fence_remove_callback). It reports true
// when cb will not run, and false when cb was not on f, or when f was signaled:
// then cb has run, or is about to.
func (f *Fence) RemoveCallback(cb *Callback) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if cb == nil || cb.on.Load() != f {
		return false
	}
	f.unlinkLocked(cb)
	if f.parts != nil && f.first == nil {
		f.parts.disarmLocked()
	}
	return true
}

// linkLocked appends cb, whose on is f already. A timeline's point with
// callbacks is kept from being collected.
//
// +checklocks:f.mu
func (f *Fence) linkLocked(cb *Callback) {
	cb.prev = f.last
	if f.last != nil {
		f.last.next = cb
	} else {
		f.first = cb
	}
	f.last = cb
	if f.point != nil {
		f.point.keep = f
	}
}

// unlinkLocked takes cb out of f's list.
//
// +checklocks:f.mu
func (f *Fence) unlinkLocked(cb *Callback) {
	if cb.prev != nil {
		cb.prev.next = cb.next
	} else {
		f.first = cb.next
	}
	if cb.next != nil {
		cb.next.prev = cb.prev
	} else {
		f.last = cb.prev
	}
	cb.next, cb.prev = nil, nil
	cb.on.Store(nil)
	if f.point != nil && f.first == nil {
		f.point.keep = nil
	}
}

// run is a callback that is due.
type run struct {
	cb *Callback
	f  *Fence
}

// takeLocked moves f's callbacks, in order, to runs.
//
// +checklocks:f.mu
func (f *Fence) takeLocked(runs []run) []run {
	for cb := f.first; cb != nil; cb = f.first {
		runs = append(runs, run{cb, f})
		f.unlinkLocked(cb)
	}
	return runs
}

// runAll runs callbacks that are due. No lock is held.
func runAll(runs []run) {
	for _, r := range runs {
		r.cb.fn(r.f)
	}
}
