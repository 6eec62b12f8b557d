package poll

import (
	"syscall"
	"time"
	"weak"
)

// point is a timeline's side of a fence. The timeline does not keep a
// fence alive by itself: one that is in no reservation and no sync file, and
// that nobody waits for, goes, as in the kernel (timeline_fence_release), so that
// opening a billion points leaves nothing behind: those that the garbage
// collector has found are dropped whenever there are twice as many as were left
// the last time.
type point struct {
	tl    *Timeline
	pos   uint64
	fence weak.Pointer[Fence]
	keep  *Fence      // the fence while it has callbacks; guarded by its mu
	timer *time.Timer // or nil; guarded by tl.mu
}

// Point is the fence of seqno (SW_SYNC_IOC_CREATE_FENCE). Whoever asks for the
// same pending point gets the same fence. One that the value has passed is a
// fence signaled at this moment, without an error. An ended timeline is ErrEnded
// (ENOENT), a seqno above 32 bits on a sw_sync timeline ErrSeqno (EINVAL).
func (t *Timeline) Point(seqno uint64) (*Fence, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return nil, ErrEnded
	}
	pos, reached, err := t.placeLocked(seqno)
	if err != nil {
		return nil, ErrSeqno
	}
	if p := t.points[pos]; p != nil && !reached {
		if f := p.fence.Value(); f != nil {
			return f, nil
		}
	}
	f := NewFence(t.driver, t.name, t.context, seqno)
	f.order = pos
	f.point = &point{tl: t, pos: pos}
	if reached {
		f.timestamp = uint64(now())
		f.done.Store(true)
		return f, nil
	}
	t.addLocked(f)
	return f, nil
}

// addLocked makes f a pending point.
//
// +checklocks:t.mu
func (t *Timeline) addLocked(f *Fence) {
	p := f.point
	p.fence = weak.Make(f)
	if len(t.points) >= t.sweepAt {
		t.sweepLocked()
		t.sweepAt = 2*len(t.points) + 64
	}
	if t.points[p.pos] == nil {
		t.order.push(p.pos)
		if t.count != nil {
			t.count.Add(1)
		}
	}
	t.points[p.pos] = p
	if t.timeout > 0 {
		p.timer = time.AfterFunc(t.timeout, func() { _ = t.signalPoint(f, syscall.ETIMEDOUT) })
	}
}

// dropLocked takes p out of the timeline; its fence is returned, nil if that
// is gone.
//
// +checklocks:t.mu
func (t *Timeline) dropLocked(p *point) *Fence {
	delete(t.points, p.pos)
	if t.count != nil {
		t.count.Add(-1)
	}
	if p.timer != nil {
		p.timer.Stop()
	}
	// Keys of dropped points stay in order until they come up; not for ever.
	if len(t.order) > 2*len(t.points)+64 {
		t.order = t.order[:0]
		for pos := range t.points {
			t.order.push(pos)
		}
	}
	return p.fence.Value()
}

// signalPoint signals one point by itself, whatever the value. ErrSignaled: it
// is signaled already.
func (t *Timeline) signalPoint(f *Fence, err syscall.Errno) error {
	var buf [4]run
	t.mu.Lock()
	if t.points[f.point.pos] == f.point {
		t.dropLocked(f.point)
	}
	runs, ok := f.finish(err, uint64(now()), buf[:0])
	t.mu.Unlock()
	if !ok {
		return ErrSignaled
	}
	runAll(runs)
	return nil
}

// GetDeadline is the earliest deadline that f, a point of a timeline, was given
// (SW_SYNC_GET_DEADLINE), in nanoseconds of CLOCK_MONOTONIC. ErrNoPoint (EINVAL):
// f is something else, such as a merge of several. ErrNoDeadline (ENOENT): it
// has none.
func GetDeadline(f *Fence) (uint64, error) {
	if f == nil || f.point == nil {
		return 0, ErrNoPoint
	}
	ns, ok := f.Deadline()
	if !ok {
		return 0, ErrNoDeadline
	}
	return ns, nil
}
