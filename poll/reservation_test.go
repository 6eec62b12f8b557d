package poll_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/dmabuffs/dmabuffs/poll"
)

const both = poll.In | poll.Out

// What each usage holds up while pending (reference 2.6 and 3.3).
func TestReady(t *testing.T) {
	for _, c := range []struct {
		name   string
		usages []poll.Usage
		want   poll.Events
	}{
		{"B72 no fence", nil, both},
		{"B73 B74 read", []poll.Usage{poll.Read}, poll.In},
		{"B75 write", []poll.Usage{poll.Write}, 0},
		{"kernel", []poll.Usage{poll.Kernel}, 0},
		{"B85 bookkeep", []poll.Usage{poll.Bookkeep}, both},
		{"B86 exclusive and shared: the exclusive one is looked at", []poll.Usage{poll.Exclusive, poll.Shared}, 0},
		{"read and bookkeep", []poll.Usage{poll.Bookkeep, poll.Read}, poll.In},
	} {
		t.Run(c.name, func(t *testing.T) {
			var r poll.Reservation
			var fs []*poll.Fence
			for _, u := range c.usages {
				f := leaf()
				r.Add(f, u)
				fs = append(fs, f)
			}
			for _, ask := range []poll.Events{both, poll.In, poll.Out, 0, poll.In | 0x2, both | 0x40 | 0x10} {
				eq(t, "Ready", r.Ready(ask), c.want&ask)
				eq(t, "Poll", r.Poll(ask), c.want&ask)
			}
			for u := poll.Kernel; u <= poll.Bookkeep; u++ {
				upTo := 0
				for _, have := range c.usages {
					if have <= u {
						upTo++
					}
				}
				eq(t, "Idle "+u.String(), r.Idle(u), upTo == 0)
				eq(t, "Pending "+u.String(), len(r.Pending(u)), upTo)
				eq(t, "Slots "+u.String(), len(r.Slots(u)), upTo)
			}
			for _, f := range fs {
				signal(t, f)
			}
			eq(t, "Ready when done", r.Ready(both), both)
			eq(t, "Slots when done", len(r.Slots(poll.Bookkeep)), len(fs))
		})
	}
}

func TestPoll(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, r *poll.Reservation)
	}{
		{"B76 write fence done", func(t *testing.T, r *poll.Reservation) {
			tl := poll.NewSWSync("p")
			r.Add(point(t, tl, 1), poll.Write)
			ok(t, tl.Advance(1))
			eq(t, "Ready", r.Ready(both), both)
		}},
		{"B77 B82 every waiter is told once", func(t *testing.T, r *poll.Reservation) {
			f := leaf()
			r.Add(f, poll.Write)
			a, b, out := watch(t, r, poll.In), watch(t, r, poll.In), watch(t, r, both)
			none := watch(t, r, 0x2)
			signal(t, f)
			eq(t, "first", a.Load(), 1)
			eq(t, "second", b.Load(), 1)
			eq(t, "for both", out.Load(), 1)
			eq(t, "for POLLPRI", none.Load(), 0)
		}},
		{"B78 32 reads done in reverse", func(t *testing.T, r *poll.Reservation) {
			var fs []*poll.Fence
			for range 32 {
				f := leaf()
				r.Add(f, poll.Read)
				fs = append(fs, f)
			}
			in, out := watch(t, r, poll.In), watch(t, r, poll.Out)
			for i, f := range slices.Backward(fs) {
				eq(t, "Ready", r.Ready(both), poll.In)
				eq(t, "told", out.Load(), 0)
				signal(t, f)
				same(t, "Pending", r.Pending(poll.Read), fs[:i]...)
			}
			eq(t, "Ready", r.Ready(both), both)
			eq(t, "told of OUT", out.Load(), 1)
			eq(t, "told of IN, which always was", in.Load(), 0)
		}},
		{"B79 B100 a fence that failed is done", func(t *testing.T, r *poll.Reservation) {
			tl := poll.NewSWSync("p")
			r.Add(point(t, tl, 1), poll.Write)
			told := watch(t, r, poll.In)
			tl.End()
			eq(t, "Ready", r.Ready(both), both)
			eq(t, "told", told.Load(), 1)
			ok(t, r.Wait(bounded(t), poll.Write))
		}},
		{"B80 B81 other events and none", func(t *testing.T, r *poll.Reservation) {
			eq(t, "POLLPRI", r.Poll(0x2), 0)
			eq(t, "none", r.Poll(0), 0)
			eq(t, "Armed", r.Armed(), 0)
		}},
		{"B83 a poll in vain arms, once for each direction", func(t *testing.T, r *poll.Reservation) {
			refs := 1
			r.Hold(func() { refs++ }, func() { refs-- })
			w, rd := leaf(), leaf()
			r.Add(w, poll.Write)
			r.Add(rd, poll.Read)
			eq(t, "Ready arms nothing", r.Ready(both), 0)
			eq(t, "references", refs, 1)
			for range 3 {
				eq(t, "Poll", r.Poll(poll.Out), 0)
				eq(t, "references", refs, 2)
				eq(t, "Armed", r.Armed(), poll.Out)
			}
			eq(t, "Poll", r.Poll(both), 0)
			eq(t, "references", refs, 3)
			signal(t, w)
			eq(t, "references after the write", refs, 2)
			signal(t, rd)
			eq(t, "references after both", refs, 1)
			eq(t, "Armed", r.Armed(), 0)
			eq(t, "Poll", r.Poll(both), both)
			eq(t, "references", refs, 1)
		}},
		{"B84 released only after the signal", func(t *testing.T, r *poll.Reservation) {
			refs := 1
			r.Hold(func() { refs++ }, func() { refs-- })
			f := leaf()
			r.Add(f, poll.Write)
			r.Poll(poll.In)
			refs-- // the descriptor is closed
			eq(t, "references", refs, 1)
			signal(t, f)
			eq(t, "references", refs, 0)
		}},
		{"B87 two reads: one event, after the second", func(t *testing.T, r *poll.Reservation) {
			a, b := leaf(), leaf()
			r.Add(a, poll.Read)
			r.Add(b, poll.Read)
			told := watch(t, r, poll.Out)
			signal(t, a)
			eq(t, "told after one", told.Load(), 0)
			signal(t, b)
			eq(t, "told after both", told.Load(), 1)
		}},
		{"IN, then OUT", func(t *testing.T, r *poll.Reservation) {
			w, rd := leaf(), leaf()
			r.Add(rd, poll.Read)
			r.Add(w, poll.Write)
			told := watch(t, r, both)
			signal(t, w)
			eq(t, "told of IN", told.Load(), 1)
			eq(t, "Ready", r.Ready(both), poll.In)
			signal(t, rd)
			eq(t, "told of OUT", told.Load(), 2)
		}},
		{"a fence that comes while somebody waits", func(t *testing.T, r *poll.Reservation) {
			a, b := leaf(), leaf()
			r.Add(a, poll.Write)
			told := watch(t, r, poll.In)
			r.Add(b, poll.Write)
			signal(t, a)
			eq(t, "told", told.Load(), 0)
			signal(t, b)
			eq(t, "told", told.Load(), 1)
		}},
		{"edge after edge", func(t *testing.T, r *poll.Reservation) {
			told := watch(t, r, poll.In)
			for i := range int32(5000) {
				f := leaf()
				r.Add(f, poll.Write)
				eq(t, "Ready", r.Ready(poll.In), 0)
				signal(t, f)
				eq(t, "told", told.Load(), i+1)
			}
			eq(t, "slots", len(r.Slots(poll.Bookkeep)), 1)
		}},
		{"many points at once: told once", func(t *testing.T, r *poll.Reservation) {
			tl := poll.NewTimeline("d", "t")
			for i := range uint64(100) {
				r.Add(point(t, tl, 100-i), poll.Write)
			}
			eq(t, "pending", len(r.Pending(poll.Write)), 100)
			told := watch(t, r, both)
			ok(t, tl.Set(100))
			eq(t, "told", told.Load(), 1)
		}},
		{"asked before it was told", func(t *testing.T, r *poll.Reservation) {
			// The fence's first callback asks the reservation, whose own is
			// still to come: ready already, and the waiter is told all the same.
			f, told := leaf(), watch(t, r, both)
			ok(t, f.AddCallback(poll.NewCallback(func(*poll.Fence) {
				eq(t, "Ready inside", r.Ready(both), both)
				eq(t, "Idle inside", r.Idle(poll.Bookkeep), true)
				eq(t, "told inside", told.Load(), 0)
			})))
			r.Add(f, poll.Write)
			signal(t, f)
			eq(t, "told", told.Load(), 1)
		}},
		{"the waiter may use the reservation", func(t *testing.T, r *poll.Reservation) {
			f, next := leaf(), leaf()
			r.Add(f, poll.Write)
			var w *poll.Waiter
			w = poll.NewWaiter(poll.In, func() {
				eq(t, "Ready in the waiter", r.Ready(both), both)
				r.Unwatch(w)
				r.Add(next, poll.Write)
			})
			r.Watch(w)
			signal(t, f)
			eq(t, "Ready", r.Ready(both), 0)
			signal(t, next)
		}},
		{"a waiter taken away", func(t *testing.T, r *poll.Reservation) {
			n := 0
			f, w := leaf(), poll.NewWaiter(both, func() { n++ })
			r.Add(f, poll.Write)
			r.Watch(w)
			r.Watch(w) // once is enough
			r.Unwatch(w)
			r.Unwatch(w)
			signal(t, f)
			eq(t, "told", n, 0)
			g := leaf()
			r.Add(g, poll.Write)
			r.Watch(w)
			signal(t, g)
			eq(t, "told when back", n, 1)
		}},
		{"a waiter on two reservations", func(t *testing.T, r *poll.Reservation) {
			w := poll.NewWaiter(both, func() {})
			r.Watch(w)
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			new(poll.Reservation).Watch(w)
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.do(t, poll.NewReservation()) })
	}
}

// slots is r's table as text.
func slots(r *poll.Reservation, names map[*poll.Fence]string) (out []string) {
	for _, s := range r.Slots(poll.Bookkeep) {
		out = append(out, names[s.Fence]+" "+s.Usage.String())
	}
	return out
}

func TestSlots(t *testing.T) {
	type step struct {
		add    string // a fence to add
		usage  poll.Usage
		signal string // or a fence to signal
	}
	add := func(f string, u poll.Usage) step { return step{add: f, usage: u} }
	sig := func(f string) step { return step{signal: f} }
	K, W, R, B := poll.Kernel, poll.Write, poll.Read, poll.Bookkeep
	for _, c := range []struct {
		name  string
		steps []step
		want  []string
		ready poll.Events
	}{
		{"the same twice as read folds", []step{add("a1", R), add("a1", R)}, []string{"a1 read"}, poll.In},
		{"B114 read is promoted to write", []step{add("a1", R), add("a1", W)}, []string{"a1 write"}, 0},
		{"B115 write is never weakened", []step{add("a1", W), add("a1", R)}, []string{"a1 write", "a1 read"}, 0},
		{"bookkeep beside write", []step{add("a1", W), add("a2", B)}, []string{"a1 write", "a2 bookkeep"}, 0},
		{"bookkeep promoted to kernel", []step{add("a1", B), add("a2", K)}, []string{"a2 kernel"}, 0},
		{"B116 a later point replaces", []step{add("a1", W), add("a2", W), sig("a1")}, []string{"a2 write"}, 0},
		{"an earlier point does not", []step{add("a2", W), add("a1", W)}, []string{"a2 write", "a1 write"}, 0},
		{"of several, the latest it covers", []step{add("a3", W), add("a2", W), add("a1", W), add("a2", W)},
			[]string{"a3 write", "a2 write", "a1 write"}, 0},
		{"over usages, the first slot", []step{add("b1", R), add("a2", W), add("a1", R), add("a3", W)},
			[]string{"b1 read", "a3 write", "a1 read"}, 0},
		{"B117 read survives another's write", []step{add("a1", R), add("b1", W), sig("b1")},
			[]string{"a1 read", "b1 write"}, poll.In},
		{"signaled ones stay", []step{add("a1", W), sig("a1")}, []string{"a1 write"}, both},
		{"signaled ones are replaced, the first first",
			[]step{add("a1", W), add("b1", W), add("c1", R), sig("b1"), sig("a1"), add("d1", W), add("e1", R)},
			[]string{"d1 write", "e1 read", "c1 read"}, 0},
		{"a signaled fence added takes a slot, and gives it away",
			[]step{sig("a1"), add("a1", W), add("b1", R)}, []string{"b1 read"}, poll.In},
		{"a signaled fence that covers a pending one frees it",
			[]step{add("a1", W), sig("a2"), add("a2", W)}, []string{"a2 write"}, both},
		{"a signaled point is no ground for folding",
			[]step{add("a1", W), sig("a1"), add("b1", W), add("a2", R)}, []string{"b1 write", "a2 read"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, byName, names := poll.NewReservation(), map[string]*poll.Fence{}, map[*poll.Fence]string{}
			for _, ctx := range []string{"a", "b", "c", "d", "e"} {
				id := poll.NewContext()
				for seqno := uint64(1); seqno < 4; seqno++ {
					name := ctx + string(rune('0'+seqno))
					f := poll.NewFence("d", ctx, id, seqno)
					byName[name], names[f] = f, name
				}
			}
			told := watch(t, r, both)
			toldThen, readyThen := int32(0), both
			for _, s := range c.steps {
				if s.add != "" {
					r.Add(byName[s.add], s.usage)
				} else {
					signal(t, byName[s.signal])
				}
				if ready := r.Ready(both); ready&^readyThen != 0 {
					toldThen++
				}
				readyThen = r.Ready(both)
				eq(t, "told", told.Load(), toldThen)
			}
			if got := slots(r, names); !slices.Equal(got, c.want) {
				t.Fatalf("slots %q, want %q", got, c.want)
			}
			eq(t, "Ready", r.Ready(both), c.ready)
		})
	}
	t.Run("B113 containers are unwrapped", func(t *testing.T) {
		r, a, b := poll.NewReservation(), leaf(), leaf()
		r.Add(poll.NewChain(nil, poll.NewArray([]*poll.Fence{a, b}, false), 1), poll.Write)
		r.Add(nil, poll.Write)
		same(t, "Pending", r.Pending(poll.Write), a, b)
	})
	t.Run("usages that do not exist", func(t *testing.T) {
		for _, u := range []poll.Usage{-1, 4} {
			eq(t, "String", u.String(), "invalid")
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("usage %d: no panic", u)
					}
				}()
				new(poll.Reservation).Add(leaf(), u)
			}()
		}
	})
}

// What EXPORT_SYNC_FILE needs.
func TestSingleton(t *testing.T) {
	r, w, rd := poll.NewReservation(), leaf(), leaf()
	eq(t, "B106 of nothing", r.Singleton(poll.Read), nil)
	r.Add(rd, poll.Read)
	eq(t, "B108 for readers", r.Singleton(poll.Write), nil)
	eq(t, "B108 for writers", r.Singleton(poll.Read), rd)
	r.Add(w, poll.Write)
	arr := r.Singleton(poll.Read)
	same(t, "B110 two", poll.Unwrap(arr), rd, w)
	late := leaf()
	r.Add(late, poll.Write)
	signal(t, w)
	eq(t, "after one", arr.Signaled(), false)
	signal(t, rd)
	eq(t, "B109 a snapshot", arr.Signaled(), true)
	eq(t, "what pends", r.Singleton(poll.Read), late)
}

func TestReservationWait(t *testing.T) {
	for _, c := range []struct {
		name   string
		have   poll.Usage
		wait   poll.Usage
		blocks bool
	}{
		{"B92 a reader waits for a write", poll.Write, poll.Write, true},
		{"B93 a reader does not wait for a read", poll.Read, poll.Write, false},
		{"B94 a writer waits for a read", poll.Read, poll.Read, true},
		{"nobody implicit waits for bookkeep", poll.Bookkeep, poll.Read, false},
		{"everybody waits for kernel", poll.Kernel, poll.Kernel, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, f, errs := poll.NewReservation(), leaf(), make(chan error, 1)
				r.Add(f, c.have)
				go func() { errs <- r.Wait(t.Context(), c.wait) }()
				synctest.Wait()
				eq(t, "blocked", len(errs) == 0, c.blocks)
				signal(t, f)
				ok(t, <-errs)
			})
		})
	}
	t.Run("not for fences that come later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, a, b, errs := poll.NewReservation(), leaf(), leaf(), make(chan error, 1)
			r.Add(a, poll.Write)
			r.Add(b, poll.Write)
			go func() { errs <- r.Wait(t.Context(), poll.Write) }()
			synctest.Wait()
			r.Add(leaf(), poll.Write)
			signal(t, b)
			synctest.Wait()
			eq(t, "ended after one", len(errs), 0)
			signal(t, a)
			ok(t, <-errs)
			eq(t, "Ready", r.Ready(poll.In), 0)
		})
	})
	t.Run("B96 interrupted", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r, f, errs := poll.NewReservation(), leaf(), make(chan error, 1)
			r.Add(f, poll.Write)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { errs <- r.Wait(ctx, poll.Read) }()
			synctest.Wait()
			cancel()
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Fatalf("Wait: %v", err)
			}
			signal(t, f)
			eq(t, "Ready", r.Ready(both), both)
		})
	})
}
