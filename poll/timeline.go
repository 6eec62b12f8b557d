package poll

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Timeline is a value that grows, and the fences that wait for it to: points
// (struct sync_timeline of sw_sync). A point is signaled when the value reaches
// its seqno; all points of a timeline are of one context, and change state in
// the order of their seqno.
type Timeline struct {
	driver  string
	name    string
	context uint64
	seqno32 bool          // values wrap at 32 bits, as sw_sync's
	count   *atomic.Int64 // pending points of all that share it; or nil

	mu      sync.Mutex
	pos     uint64            // the value, as if it had never wrapped
	points  map[uint64]*point // pending, by the pos that signals them
	order   minHeap[uint64]   // the keys of points, and some no longer there
	sweepAt int               // how many points there may be before the next sweep
	timeout time.Duration
	ended   bool
}

// NewTimeline makes a timeline with value 0. Values have 64 bits and only grow.
func NewTimeline(driver, name string) *Timeline {
	return &Timeline{driver: driver, name: name, context: NewContext(), points: make(map[uint64]*point)}
}

// NewSWSync makes a timeline as an open of debugfs sync/sw_sync does
// (drivers/dma-buf/sw_sync.c): driver "sw_sync", values of 32 bits that wrap. A
// point counts as passed when (int32)(seqno - value) <= 0.
func NewSWSync(name string) *Timeline {
	t := NewTimeline("sw_sync", name)
	t.seqno32 = true
	t.pos = 1 << 32 // reads as 0, with room below for points that have passed
	return t
}

// Name is the timeline's name, as its fences show it.
func (t *Timeline) Name() string { return t.name }

// Driver is the driver name that its fences show.
func (t *Timeline) Driver() string { return t.driver }

// Context is the context of its fences.
func (t *Timeline) Context() uint64 { return t.context }

// Value is the current value.
func (t *Timeline) Value() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.valueLocked()
}

// +checklocks:t.mu
func (t *Timeline) valueLocked() uint64 {
	if t.seqno32 {
		return uint64(uint32(t.pos))
	}
	return t.pos
}

// placeLocked is the pos at which the value is v, and whether v has been
// reached. ErrValue: v does not fit.
//
// +checklocks:t.mu
func (t *Timeline) placeLocked(v uint64) (pos uint64, reached bool, err error) {
	if !t.seqno32 {
		return v, v <= t.pos, nil
	}
	if v > math.MaxUint32 {
		return 0, false, ErrValue
	}
	d := int32(uint32(v) - uint32(t.pos))
	return t.pos + uint64(d), d <= 0, nil
}

// Set raises the value to v and signals every pending point up to it, in order.
// Its own value again changes nothing. A smaller one, or one that does not fit
// 32 bits on a sw_sync timeline, is ErrValue (EINVAL); an ended timeline
// ErrEnded (ENOENT).
func (t *Timeline) Set(v uint64) error {
	t.mu.Lock()
	pos, reached, err := t.placeLocked(v)
	switch {
	case t.ended:
		err = ErrEnded
	case err == nil && reached && v != t.valueLocked():
		err = ErrValue
	}
	return t.raiseUnlock(pos, err)
}

// Advance raises the value by n (SW_SYNC_IOC_INC) and signals as Set does; n
// may be 0. A 64-bit value that would overflow, or an n above 2^32-1 on a sw_sync
// timeline, is ErrValue (EINVAL); an ended timeline ErrEnded (ENOENT).
func (t *Timeline) Advance(n uint64) error {
	t.mu.Lock()
	var err error
	switch {
	case t.ended:
		err = ErrEnded
	case t.seqno32 && n > math.MaxUint32, t.pos+n < t.pos:
		err = ErrValue
	}
	return t.raiseUnlock(t.pos+n, err)
}

// raiseUnlock ends Set and Advance: it raises the value to pos, unless there
// was an error, drops mu, and runs what is due. Precondition: t.mu is held.
//
// +checklocksrelease:t.mu
func (t *Timeline) raiseUnlock(pos uint64, err error) error {
	var buf [4]run
	runs := buf[:0]
	if err == nil {
		t.pos = pos
		runs = t.passLocked(pos, 0, runs)
	}
	t.mu.Unlock()
	runAll(runs)
	return err
}

// passLocked signals the pending points up to pos, in order, and appends their
// callbacks to runs.
//
// +checklocks:t.mu
func (t *Timeline) passLocked(pos uint64, err syscall.Errno, runs []run) []run {
	ts := uint64(now())
	for len(t.order) > 0 && t.order[0] <= pos {
		p := t.points[t.order.pop()]
		if p == nil {
			continue // forgotten or timed out before
		}
		if f := t.dropLocked(p); f != nil {
			runs, _ = f.finish(err, ts, runs)
		}
	}
	return runs
}

// End ends the timeline: its pending points are signaled with error ENOENT, so
// that nobody waits for a dead producer (sw_sync's release). Ending twice
// changes nothing.
func (t *Timeline) End() {
	t.mu.Lock()
	t.ended = true
	runs := t.passLocked(math.MaxUint64, syscall.ENOENT, nil)
	t.mu.Unlock()
	runAll(runs)
}

// Ended reports whether End was called.
func (t *Timeline) Ended() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ended
}

// SetTimeout gives points made from now on d to be reached: one that is still
// pending then is signaled with error ETIMEDOUT. Zero, or less, is no limit. Each
// point has its own time, whatever its neighbours do.
func (t *Timeline) SetTimeout(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timeout = d
}

// Count has n count the timeline's pending points, along with those of others.
// Points that nobody uses any more count until the garbage collector has found
// them and they were swept. Count is called before the first Point.
func (t *Timeline) Count(n *atomic.Int64) { t.count = n }

// Sweep drops the pending points that the garbage collector has found to be used
// by nobody. They go by themselves too, when many more have come.
func (t *Timeline) Sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.sweepLocked()
}

// +checklocks:t.mu
func (t *Timeline) sweepLocked() {
	for _, p := range t.points {
		if p.fence.Value() == nil {
			t.dropLocked(p)
		}
	}
}

// Pending is the points that are pending and still in use, lowest first.
func (t *Timeline) Pending() []*Fence {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := make([]uint64, 0, len(t.points))
	for pos := range t.points {
		at = append(at, pos)
	}
	slices.Sort(at)
	fs := make([]*Fence, 0, len(at))
	for _, pos := range at {
		if f := t.points[pos].fence.Value(); f != nil {
			fs = append(fs, f)
		}
	}
	return fs
}
