package poll_test

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmabuffs/dmabuffs/poll"
)

// eventually waits for wg, or fails: somebody sleeps who should have been told.
func eventually(t *testing.T, wg *sync.WaitGroup) {
	t.Helper()
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(hang):
		t.Fatal("a wakeup was lost")
	}
}

// TestNoLostWakeup: rounds in which waiters begin to wait while the fences they
// wait for are added and signaled by others. Each waiter sleeps until told, and
// may miss nothing; whoever else asks meanwhile must not swallow a wakeup.
func TestNoLostWakeup(t *testing.T) {
	const rounds, waiters, fences = 400, 8, 4
	r := poll.NewReservation()
	stop := make(chan struct{})
	var idlers sync.WaitGroup
	for range 2 { // who asks retires fences before their callbacks do
		idlers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					r.Poll(both)
					r.Idle(poll.Bookkeep)
					runtime.Gosched() // one processor may be all there is
				}
			}
		})
	}
	var refs atomic.Int64
	r.Hold(func() { refs.Add(1) }, func() { refs.Add(-1) })
	for i := range rounds {
		tl := poll.NewTimeline("d", "t")
		var wg sync.WaitGroup
		first := leaf()
		r.Add(first, poll.Write) // nobody passes before the round has begun
		for j := range waiters {
			want := []poll.Events{poll.In, poll.Out}[j%2]
			wg.Go(func() {
				told := make(chan struct{}, 1)
				w := poll.NewWaiter(want, func() {
					select {
					case told <- struct{}{}:
					default:
					}
				})
				r.Watch(w)
				defer r.Unwatch(w)
				for r.Ready(want) == 0 {
					<-told
				}
			})
		}
		for j := range fences {
			u := []poll.Usage{poll.Write, poll.Read}[(i+j)%2]
			f, g := leaf(), point(t, tl, uint64(fences-j))
			r.Add(f, u)
			r.Add(g, u)
			wg.Go(func() { _ = f.Signal() })
			wg.Go(func() { _ = tl.Advance(1) })
		}
		wg.Go(func() { _ = first.Signal() })
		eventually(t, &wg)
		eq(t, "Ready at the end of a round", r.Ready(both), both)
	}
	close(stop)
	eventually(t, &idlers)
	eq(t, "references left", refs.Load(), 0)
}

// TestEveryEdge: one sticky waiter is told of each time the buffer becomes
// ready, over thousands of edges, with several threads signaling.
func TestEveryEdge(t *testing.T) {
	r, told := poll.NewReservation(), make(chan struct{}, 1)
	w := poll.NewWaiter(poll.Out, func() { told <- struct{}{} })
	r.Watch(w)
	defer r.Unwatch(w)
	work := make(chan *poll.Fence)
	defer close(work)
	for range 4 {
		go func() {
			for f := range work {
				_ = f.Signal()
			}
		}()
	}
	late := time.After(hang)
	for i := range 5000 {
		a, b := leaf(), leaf()
		r.Add(a, poll.Read)
		r.Add(b, poll.Write)
		work <- a
		work <- b
		select {
		case <-told:
		case <-late:
			t.Fatalf("edge %d was lost", i)
		}
	}
}

// TestConcurrentContainers: arrays and chains over the same leaves, with waiters
// that come, give up and stay, while the leaves are signaled and asked for.
func TestConcurrentContainers(t *testing.T) {
	for range 200 {
		leaves := make([]*poll.Fence, 6)
		for i := range leaves {
			leaves[i] = leaf()
		}
		all, any := poll.NewArray(leaves, false), poll.NewArray(leaves, true)
		var head *poll.Fence
		for i, f := range leaves {
			head = poll.NewChain(head, f, uint64(i+1))
		}
		nested := poll.NewArray([]*poll.Fence{all, any, head}, false)
		var wg sync.WaitGroup
		for _, f := range []*poll.Fence{all, any, head, nested} {
			for range 2 {
				wg.Go(func() {
					if err := f.Wait(bounded(t)); err != nil || !f.Signaled() {
						t.Errorf("Wait: %v", err)
					}
				})
			}
			wg.Go(func() {
				ctx, cancel := context.WithCancel(context.Background())
				cancel()
				for f.Wait(ctx) != nil { // comes and gives up
					runtime.Gosched()
				}
			})
		}
		for _, f := range leaves {
			wg.Go(func() { _ = f.Signal() })
		}
		eventually(t, &wg)
	}
}

// TestSignalOnce: of many who signal a fence, time it out, or end its timeline
// at once, one does; its callback runs once, and whoever removed it knows.
func TestSignalOnce(t *testing.T) {
	for range 500 {
		tl := poll.NewTimeline("d", "t")
		tl.SetTimeout(time.Microsecond)
		f := point(t, tl, 1)
		var ran, removed, signaled atomic.Int32
		cb := poll.NewCallback(func(*poll.Fence) { ran.Add(1) })
		var wg sync.WaitGroup
		if f.AddCallback(cb) == nil {
			wg.Go(func() {
				if f.RemoveCallback(cb) {
					removed.Add(1)
				}
			})
		} else {
			removed.Add(1) // timed out already
		}
		for range 2 {
			wg.Go(func() {
				if f.Signal() == nil {
					signaled.Add(1)
				}
			})
		}
		wg.Go(func() { _ = tl.Set(1) })
		wg.Go(tl.End)
		eventually(t, &wg)
		ok(t, f.Wait(bounded(t)))
		if signaled.Load() > 1 {
			t.Fatalf("signaled %d times", signaled.Load())
		}
		if n := removed.Load(); n > 1 {
			t.Fatalf("removed %d times", n)
		}
		// Whoever signaled runs the callback a moment after the state.
		for end := time.Now().Add(hang); ran.Load()+removed.Load() != 1; {
			if time.Now().After(end) || ran.Load() > 1 {
				t.Fatalf("ran %d times, removed %d times", ran.Load(), removed.Load())
			}
			time.Sleep(time.Microsecond)
		}
	}
}
