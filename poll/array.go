package poll

import "syscall"

// array is a fence made of others (struct dma_fence_array).
type array struct {
	fence   *Fence // the array itself
	members []*Fence
	any     bool
	next    int        // all: those before it are done; guarded by fence.mu
	cbs     []Callback // one for all, which moves on; one a member for any
}

// NewArray makes a fence that is signaled when all of fs are, or with any when
// the first of them is (dma_fence_array_create). It has a fresh context and
// seqno 1. Its error is that of the member that failed first, with any that of
// the member that completed first. An array of nothing is signaled. The kernel
// forbids containers as members; here they work, but Unwrap and Merge see through
// them as if their members stood there.
func NewArray(fs []*Fence, any bool) *Fence {
	f := NewFence("dma_fence_array", "unbound", NewContext(), 1)
	a := &array{fence: f, members: append([]*Fence(nil), fs...), any: any}
	n := 1
	if any {
		n = len(fs)
	}
	a.cbs = make([]Callback, n)
	for i := range a.cbs {
		a.cbs[i].fn = f.partDone
	}
	f.parts = a
	return f
}

func (a *array) checkLocked() (done bool, err syscall.Errno, ts uint64) {
	if len(a.members) == 0 {
		return true, 0, uint64(now())
	}
	if a.any {
		return a.checkAnyLocked()
	}
	for a.next < len(a.members) {
		if !a.members[a.next].Signaled() {
			return false, 0, 0
		}
		a.next++
	}
	var failed uint64 // when the first failed
	for _, m := range a.members {
		at := m.timestamp
		ts = max(ts, at)
		if m.err != 0 && (err == 0 || at < failed) {
			err, failed = m.err, at
		}
	}
	return true, err, ts
}

func (a *array) checkAnyLocked() (done bool, err syscall.Errno, ts uint64) {
	for _, m := range a.members {
		if m.Signaled() && (!done || m.timestamp < ts) {
			done, err, ts = true, m.err, m.timestamp
		}
	}
	return done, err, ts
}

func (a *array) armLocked() bool {
	if a.any {
		for i, m := range a.members {
			if a.cbs[i].on.Load() == nil && m.AddCallback(&a.cbs[i]) != nil {
				return false
			}
		}
		return true
	}
	if len(a.members) == 0 {
		return false
	}
	if a.cbs[0].on.Load() != nil {
		return true // on a member whose call is still to come
	}
	for ; a.next < len(a.members); a.next++ {
		if a.members[a.next].AddCallback(&a.cbs[0]) == nil {
			return true
		}
	}
	return false
}

func (a *array) disarmLocked() {
	for i := range a.cbs {
		if m := a.cbs[i].on.Load(); m != nil {
			m.RemoveCallback(&a.cbs[i])
		}
	}
}

func (a *array) each(fn func(*Fence)) {
	for _, m := range a.members {
		fn(m)
	}
}

func (a *array) unwrap(to []*Fence) []*Fence {
	for _, m := range a.members {
		to = unwrap(to, m)
	}
	return to
}
