package poll

import (
	"cmp"
	"slices"
)

// stub is the fence of Stub.
var stub = newStub(uint64(now()))

// newStub makes a fence signaled at ts (dma_fence_allocate_private_stub).
func newStub(ts uint64) *Fence {
	f := NewFence("stub", "stub", 0, 0)
	f.timestamp = ts
	f.done.Store(true)
	return f
}

// Stub is a fence that is always signaled (dma_fence_get_stub): context 0,
// seqno 0, both names "stub".
func Stub() *Fence { return stub }

// Unwrap is the fences that f contains (dma_fence_unwrap): the members of an
// array, those of each node of a chain from the head on, without nodes before
// it that are done, or f itself. Of nil it is nothing.
func Unwrap(f *Fence) []*Fence { return unwrap(nil, f) }

func unwrap(to []*Fence, f *Fence) []*Fence {
	switch {
	case f == nil:
		return to
	case f.parts == nil:
		return append(to, f)
	}
	return f.parts.unwrap(to)
}

// Merge is one fence for all of fs (dma_fence_unwrap_merge). Containers are
// unwrapped, signaled fences left out, and of each context the latest alone
// kept. What is left is that fence, or an array ordered by context, or, if
// nothing is, a signaled stub with the latest timestamp: errors are lost.
func Merge(fs ...*Fence) *Fence {
	var pending []*Fence
	var latest uint64
	for _, f := range fs {
		for _, leaf := range Unwrap(f) {
			if leaf.Signaled() {
				latest = max(latest, leaf.timestamp)
			} else {
				pending = append(pending, leaf)
			}
		}
	}
	pending = latestEach(pending)
	switch len(pending) {
	case 0:
		if latest == 0 {
			latest = uint64(now())
		}
		return newStub(latest)
	case 1:
		return pending[0]
	}
	return NewArray(pending, false)
}

// latestEach sorts fs by context and leaves the latest of each.
func latestEach(fs []*Fence) []*Fence {
	slices.SortStableFunc(fs, func(a, b *Fence) int {
		switch {
		case a.context != b.context:
			return cmp.Compare(a.context, b.context)
		case a.later(b):
			return -1
		case b.later(a):
			return 1
		}
		return 0
	})
	return slices.CompactFunc(fs, func(a, b *Fence) bool { return a.context == b.context })
}
