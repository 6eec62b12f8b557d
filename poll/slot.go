package poll

import "slices"

// slot is a place in a reservation's table with the fence that has it. A slot
// whose fence is replaced is a new one at the same index.
type slot struct {
	fence      *Fence
	usage      Usage
	index      int
	pending    bool // counted: its fence's callback is still to come
	cb         Callback
	next, prev *slot // in Reservation.pending
}

// contextUsage is a key of Reservation.byContext.
type contextUsage struct {
	context uint64
	usage   Usage
}

// slotList is a list of pending slots of one usage.
type slotList struct{ first, last *slot }

func (l *slotList) add(s *slot) {
	s.prev = l.last
	if l.last != nil {
		l.last.next = s
	} else {
		l.first = s
	}
	l.last = s
}

func (l *slotList) remove(s *slot) {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		l.first = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	} else {
		l.last = s.prev
	}
	s.next, s.prev = nil, nil
}

// addLocked adds f, which is no container.
//
// +checklocks:r.mu
func (r *Reservation) addLocked(f *Fence, u Usage) {
	s := &slot{fence: f, usage: u}
	s.cb.fn = func(*Fence) { r.done(s) }
	s.pending = f.AddCallback(&s.cb) == nil
	switch old := r.coveredLocked(f, u); {
	case old != nil:
		r.replaceLocked(old, s)
	case len(r.free) > 0:
		s.index = r.free.pop()
		r.slots[s.index] = s
		r.enterLocked(s)
	default:
		s.index = len(r.slots)
		r.slots = append(r.slots, s)
		r.enterLocked(s)
	}
}

// enterLocked counts s, which has its slot, if it is pending, and else leaves
// the slot free for the next.
//
// +checklocks:r.mu
func (r *Reservation) enterLocked(s *slot) {
	if s.pending {
		r.countLocked(s)
	} else {
		r.free.push(s.index)
	}
}

// replaceLocked gives the slot of old, which is pending, to s of the same
// context.
//
// +checklocks:r.mu
func (r *Reservation) replaceLocked(old, s *slot) {
	old.fence.RemoveCallback(&old.cb)
	s.index = old.index
	r.slots[s.index] = s
	if !s.pending || s.usage != old.usage {
		r.enterLocked(s) // first: not ready between the two
		r.uncountLocked(old)
		return
	}
	// s stands between old's neighbours in its context too: see coveredLocked.
	same := r.byContext[contextUsage{old.fence.context, old.usage}]
	same[placeOf(same, old)] = s
	r.pending[old.usage].remove(old)
	r.pending[s.usage].add(s)
	old.pending = false
}

// coveredLocked is the pending slot that f of usage u takes over, or nil: see
// Add.
//
// +checklocks:r.mu
func (r *Reservation) coveredLocked(f *Fence, u Usage) *slot {
	var found *slot
	for ; u < usages; u++ {
		same := r.byContext[contextUsage{f.context, u}]
		i := searchSeqno(same, f)
		if i < len(same) && (found == nil || same[i].index < found.index) {
			found = same[i]
		}
	}
	return found
}

// searchSeqno is the place of the first of same, latest first, that is not
// later than f.
func searchSeqno(same []*slot, f *Fence) int {
	i, _ := slices.BinarySearchFunc(same, f, func(s *slot, f *Fence) int {
		if s.fence.later(f) {
			return -1
		}
		return 1
	})
	return i
}

// placeOf is the index of s in same. There may be others with its seqno.
func placeOf(same []*slot, s *slot) int {
	i := searchSeqno(same, s.fence)
	for same[i] != s {
		i++
	}
	return i
}

// countLocked enters a pending slot everywhere it is counted.
//
// +checklocks:r.mu
func (r *Reservation) countLocked(s *slot) {
	key := contextUsage{s.fence.context, s.usage}
	same := r.byContext[key]
	r.byContext[key] = slices.Insert(same, searchSeqno(same, s.fence), s)
	r.pending[s.usage].add(s)
	excl, shared := s.usage.holdsUp()
	if excl {
		r.cbExcl.pending++
	}
	if shared {
		r.cbShared.pending++
	}
}

// uncountLocked takes a pending slot out again, and notes what became ready.
//
// +checklocks:r.mu
func (r *Reservation) uncountLocked(s *slot) {
	key := contextUsage{s.fence.context, s.usage}
	same := r.byContext[key]
	i := placeOf(same, s)
	if len(same) == 1 {
		delete(r.byContext, key)
	} else {
		r.byContext[key] = slices.Delete(same, i, i+1)
	}
	r.pending[s.usage].remove(s)
	s.pending = false
	excl, shared := s.usage.holdsUp()
	if excl {
		r.owed |= r.cbExcl.done()
	}
	if shared {
		r.owed |= r.cbShared.done()
	}
}

// retireLocked marks a slot whose fence is signaled as free for reuse.
//
// +checklocks:r.mu
func (r *Reservation) retireLocked(s *slot) {
	r.uncountLocked(s)
	r.free.push(s.index)
}

// done is a slot's fence callback.
func (r *Reservation) done(s *slot) {
	r.mu.Lock()
	if s.pending {
		r.retireLocked(s)
	}
	r.tellUnlock()
}

// sweepLocked retires fences of usage u or stronger that are signaled, but whose
// callback is still on its way, up to the first of each usage that is pending.
// What is owed for them, that callback tells.
//
// +checklocks:r.mu
func (r *Reservation) sweepLocked(u Usage) {
	for l := Kernel; l <= u && l < usages; l++ {
		list := &r.pending[l]
		for list.first != nil && list.first.fence.Signaled() {
			r.retireLocked(list.first)
		}
	}
}

// idleLocked reports whether nothing of usage u or stronger is pending.
//
// +checklocks:r.mu
func (r *Reservation) idleLocked(u Usage) bool {
	r.sweepLocked(u)
	for l := Kernel; l <= u && l < usages; l++ {
		if r.pending[l].first != nil {
			return false
		}
	}
	return true
}
