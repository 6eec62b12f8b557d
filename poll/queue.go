package poll

import (
	"sync"
	"sync/atomic"
)

// Waiter is somebody to be told that something became ready. It is sticky:
// once registered it is told every time, until it is taken away.
type Waiter struct {
	want       Events
	notify     func()
	on         atomic.Pointer[Queue] // nil when on none; changed under that queue's mu
	next, prev *Waiter               // guarded by the mu of the queue it is on
}

// NewWaiter makes a waiter for want. notify is called with no lock held, after
// the state changed, whenever something of want became ready; it means "ask
// again". Calls may come from several goroutines at once, and one that was under
// way when the waiter was taken away may still arrive.
func NewWaiter(want Events, notify func()) *Waiter {
	return &Waiter{want: want, notify: notify}
}

// Queue is a list of waiters (wait_queue_head_t). The zero value is ready.
type Queue struct {
	mu          sync.Mutex
	first, last *Waiter
}

// Register adds w. A waiter that is on the queue already stays where it is; one
// on another queue panics.
func (q *Queue) Register(w *Waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !w.on.CompareAndSwap(nil, q) {
		if w.on.Load() == q {
			return
		}
		panic("poll: waiter registered on two queues")
	}
	w.prev = q.last
	if q.last != nil {
		q.last.next = w
	} else {
		q.first = w
	}
	q.last = w
}

// Unregister takes w away, and does nothing if it is not there.
func (q *Queue) Unregister(w *Waiter) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.on.Load() != q {
		return
	}
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		q.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		q.last = w.prev
	}
	w.next, w.prev = nil, nil
	w.on.Store(nil)
}

// Wake tells every waiter that wants something of ready, in the order they
// came. The caller holds no lock.
func (q *Queue) Wake(ready Events) {
	if ready == 0 {
		return
	}
	var buf [16]*Waiter
	due := buf[:0]
	q.mu.Lock()
	for w := q.first; w != nil; w = w.next {
		if w.want&ready != 0 {
			due = append(due, w)
		}
	}
	q.mu.Unlock()
	for _, w := range due {
		w.notify()
	}
}
