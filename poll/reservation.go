package poll

import (
	"context"
	"fmt"
	"sync"
)

// Slot is one fence of a reservation and what it is there for.
type Slot struct {
	Fence *Fence
	Usage Usage
}

// Reservation is the fences of one buffer (struct dma_resv). The zero value is
// ready for use; it must not be copied.
type Reservation struct {
	mu        sync.Mutex
	slots     []*slot
	free      minHeap[int]             // slots whose fence is signaled
	byContext map[contextUsage][]*slot // pending ones, latest seqno first
	pending   [usages]slotList         // pending ones, in the order they came
	owed      Events                   // became ready; waiters not yet told
	cbExcl    PollCB                   // In
	cbShared  PollCB                   // Out
	get, put  func()                   // of Hold
	poll      Queue
}

// NewReservation makes a reservation without fences.
func NewReservation() *Reservation { return new(Reservation) }

// initLocked makes a zero Reservation usable.
//
// +checklocks:r.mu
func (r *Reservation) initLocked() {
	if r.byContext == nil {
		r.byContext = make(map[contextUsage][]*slot)
		r.cbExcl.events, r.cbExcl.poll = In, &r.poll
		r.cbShared.events, r.cbShared.poll = Out, &r.poll
	}
}

// Add adds f for u (dma_resv_add_fence); the leaves of a container one by one.
// A fence goes to
//
//   - the slot of a pending fence of its context that is the same or earlier,
//     with usage u or weaker: the slot then has usage u. Read may so be promoted
//     to Write; a stronger usage is never weakened, and both are kept. Of several
//     such slots it is, of each usage, the one with the latest fence, and of
//     these the first;
//   - else the first slot whose fence is signaled;
//   - else a new slot.
//
// There is no conflict rule, as in IMPORT_SYNC_FILE. A usage that does not exist
// panics.
func (r *Reservation) Add(f *Fence, u Usage) {
	if u < 0 || u >= usages {
		panic(fmt.Sprintf("poll: no usage %d", u))
	}
	r.mu.Lock()
	r.initLocked()
	for _, leaf := range Unwrap(f) {
		r.addLocked(leaf, u)
	}
	r.tellUnlock()
}

// tellUnlock drops mu and tells waiters what became ready and still is.
//
// +checklocksrelease:r.mu
func (r *Reservation) tellUnlock() {
	ready := r.readyLocked(In | Out) // first: it may find more that is owed
	ready &= r.owed
	r.owed &^= ready // the rest stays owed: a callback to come may find it ready
	r.mu.Unlock()
	r.settle()
	r.poll.Wake(ready)
}

// Slots is the slots with usage u or stronger, in order. Signaled fences that
// no other has replaced are among them.
func (r *Reservation) Slots(u Usage) []Slot {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []Slot
	for _, s := range r.slots {
		if s.usage <= u {
			out = append(out, Slot{s.fence, s.usage})
		}
	}
	return out
}

// Pending is the fences with usage u or stronger that are not signaled, in the
// order of their slots. A fence in two slots is there twice.
func (r *Reservation) Pending(u Usage) []*Fence {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*Fence
	if r.idleLocked(u) {
		return nil
	}
	for _, s := range r.slots {
		if s.usage <= u && s.pending && !s.fence.Signaled() {
			out = append(out, s.fence)
		}
	}
	return out
}

// Singleton is one fence for all that Pending gives (dma_resv_get_singleton):
// nil for none, the one there is, or an array of them.
func (r *Reservation) Singleton(u Usage) *Fence {
	switch fs := r.Pending(u); len(fs) {
	case 0:
		return nil
	case 1:
		return fs[0]
	default:
		return NewArray(fs, false)
	}
}

// Ready is which of want are ready, at a cost that does not depend on how many
// fences there are. It changes nothing; Poll is Ready with poll(2)'s traces.
func (r *Reservation) Ready(want Events) Events {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.readyLocked(want)
}

// readyLocked is Ready.
//
// +checklocks:r.mu
func (r *Reservation) readyLocked(want Events) Events {
	// Swept once, then counted: fences go on completing, and the two answers
	// must be of one moment. So Out is never ready without In.
	switch {
	case want&Out != 0:
		r.sweepLocked(Read)
	case want&In != 0:
		r.sweepLocked(Write)
	}
	var ready Events
	if r.cbExcl.pending == 0 {
		ready |= In
	}
	if r.cbShared.pending == 0 {
		ready |= Out
	}
	return ready & want
}

// Idle reports whether no fence with usage u or stronger is pending
// (dma_resv_test_signaled).
func (r *Reservation) Idle(u Usage) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.idleLocked(u)
}

// Wait waits until the fences with usage u or stronger that are pending now are
// signaled, or ctx ends, and returns nil or ctx.Err() (dma_resv_wait_timeout). It
// does not wait for fences added meanwhile, and says nothing of errors that
// fences completed with.
func (r *Reservation) Wait(ctx context.Context, u Usage) error {
	for _, f := range r.Pending(u) {
		if err := f.Wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Watch registers w: from now on, whenever In or Out becomes ready and w wants
// it, w is told. Ask with Ready afterwards.
func (r *Reservation) Watch(w *Waiter) { r.poll.Register(w) }

// Unwatch takes w away.
func (r *Reservation) Unwatch(w *Waiter) { r.poll.Unregister(w) }
