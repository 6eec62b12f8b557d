package poll_test

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/dmabuffs/dmabuffs/poll"
)

// resvModel is a reservation as the reference words it: a table that is searched.
type resvModel struct {
	slots []poll.Slot
	done  map[*poll.Fence]bool
}

func (m *resvModel) add(f *poll.Fence, u poll.Usage) {
	best := -1
	// The latest pending fence of the context that f covers, of each usage;
	// of these the first.
	for l := u; l <= poll.Bookkeep; l++ {
		of := -1
		for i, s := range m.slots {
			if s.Usage == l && !m.done[s.Fence] && s.Fence.Context() == f.Context() && s.Fence.Seqno() <= f.Seqno() &&
				(of < 0 || s.Fence.Seqno() > m.slots[of].Fence.Seqno()) {
				of = i
			}
		}
		if of >= 0 && (best < 0 || of < best) {
			best = of
		}
	}
	if best < 0 {
		best = slices.IndexFunc(m.slots, func(s poll.Slot) bool { return m.done[s.Fence] })
	}
	if best < 0 {
		best = len(m.slots)
		m.slots = append(m.slots, poll.Slot{})
	}
	m.slots[best] = poll.Slot{Fence: f, Usage: u}
}

func (m *resvModel) upTo(u poll.Usage) (all []poll.Slot, pending []*poll.Fence) {
	for _, s := range m.slots {
		if s.Usage <= u {
			all = append(all, s)
			if !m.done[s.Fence] {
				pending = append(pending, s.Fence)
			}
		}
	}
	return all, pending
}

func (m *resvModel) ready() (e poll.Events) {
	if _, p := m.upTo(poll.Write); len(p) == 0 {
		e |= poll.In
	}
	if _, p := m.upTo(poll.Read); len(p) == 0 {
		e |= poll.Out
	}
	return e
}

// TestReservationModel adds and signals fences in any order and compares the
// reservation with the model: its table, its answers, and whom it tells.
func TestReservationModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := poll.NewReservation()
		m := &resvModel{done: map[*poll.Fence]bool{}}
		var fs []*poll.Fence
		for range rapid.IntRange(1, 4).Draw(t, "contexts") {
			ctx := poll.NewContext()
			for seqno := range uint64(4) {
				fs = append(fs, poll.NewFence("d", "t", ctx, seqno+1))
			}
		}
		refs := 0
		r.Hold(func() { refs++ }, func() { refs-- })
		told := map[poll.Events]int{poll.In: 0, poll.Out: 0, both: 0}
		for want := range told {
			r.Watch(poll.NewWaiter(want, func() { told[want]++ }))
		}
		var armed poll.Events
		before, toldBefore := both, map[poll.Events]int{poll.In: 0, poll.Out: 0, both: 0}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				f := rapid.SampledFrom(fs).Draw(t, "fence")
				u := rapid.SampledFrom([]poll.Usage{poll.Kernel, poll.Write, poll.Read, poll.Bookkeep}).Draw(t, "usage")
				r.Add(f, u)
				m.add(f, u)
			},
			"signal": func(t *rapid.T) {
				f := rapid.SampledFrom(fs).Draw(t, "fence")
				err := f.Signal()
				if (err == nil) == m.done[f] {
					t.Fatalf("Signal: %v", err)
				}
				m.done[f] = true
			},
			"poll": func(t *rapid.T) {
				want := rapid.SampledFrom([]poll.Events{poll.In, poll.Out, both}).Draw(t, "want")
				if got := r.Poll(want); got != m.ready()&want {
					t.Fatalf("Poll %v: %v", want, got)
				}
				armed |= want &^ m.ready()
			},
			"": func(t *rapid.T) {
				now := m.ready()
				armed &^= now
				if r.Armed() != armed || refs != bits.OnesCount32(uint32(armed)) {
					t.Fatalf("armed %v with %d references, want %v", r.Armed(), refs, armed)
				}
				if got := r.Ready(both); got != now {
					t.Fatalf("Ready %v, want %v", got, now)
				}
				for want := range told {
					if now&^before&want != 0 {
						toldBefore[want]++
					}
					if told[want] != toldBefore[want] {
						t.Fatalf("waiter for %v told %d times, want %d", want, told[want], toldBefore[want])
					}
				}
				before = now
				for u := poll.Kernel; u <= poll.Bookkeep; u++ {
					all, pending := m.upTo(u)
					if got := r.Slots(u); !slices.Equal(got, all) {
						t.Fatalf("Slots(%v) %v, want %v", u, show(got), show(all))
					}
					if !slices.Equal(r.Pending(u), pending) || r.Idle(u) != (len(pending) == 0) {
						t.Fatalf("Pending(%v), Idle: not the model's", u)
					}
					if s := r.Singleton(u); !slices.Equal(poll.Unwrap(s), pending) {
						t.Fatalf("Singleton(%v): not the model's", u)
					}
				}
			},
		})
	})
}

func show(slots []poll.Slot) (out []string) {
	for _, s := range slots {
		out = append(out, fmt.Sprintf("%d:%d %v", s.Fence.Context(), s.Fence.Seqno(), s.Usage))
	}
	return out
}

// TestTimelineModel drives timelines of both widths against what the reference
// says of a single point: signaled iff the value has come to it.
func TestTimelineModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		wraps := rapid.Bool().Draw(t, "sw_sync")
		tl := poll.NewTimeline("d", "t")
		reached := func(value, seqno uint64) bool { return seqno <= value }
		if wraps {
			tl = poll.NewSWSync("t")
			reached = func(value, seqno uint64) bool { return int32(uint32(seqno)-uint32(value)) <= 0 }
		}
		var value uint64
		ended := false
		status := map[*poll.Fence]int{}
		var order []*poll.Fence // as they told
		check := func(t *rapid.T, what string, err error, want error) {
			if ended {
				want = syscall.ENOENT
			}
			if want == nil && err != nil || want != nil && !errors.Is(err, want) {
				t.Fatalf("%s: %v, want %v", what, err, want)
			}
		}
		// What the value passes is signaled; in order.
		raise := func(t *rapid.T, by uint64) {
			to := value + by
			var due []*poll.Fence
			for f, s := range status {
				if s == 0 && reached(to, f.Seqno()) {
					status[f] = 1
					due = append(due, f)
				}
			}
			old := value
			slices.SortFunc(due, func(a, b *poll.Fence) int {
				da, db := a.Seqno()-old, b.Seqno()-old
				if wraps {
					da, db = uint64(uint32(da)), uint64(uint32(db))
				}
				return int(int64(da) - int64(db))
			})
			if !slices.Equal(order, due) {
				t.Fatalf("told %d fences, want %d, or in another order", len(order), len(due))
			}
			order = nil
			value = to
			if wraps {
				value = uint64(uint32(to))
			}
		}
		step := rapid.OneOf(rapid.Uint64Range(0, 5), rapid.Uint64Range(0, 1<<20), rapid.Uint64Range(1<<31-3, 1<<31-1))
		t.Repeat(map[string]func(*rapid.T){
			"point": func(t *rapid.T) {
				seqno := value + step.Draw(t, "ahead") - rapid.Uint64Range(0, min(3, value)).Draw(t, "behind")
				if wraps {
					seqno = uint64(uint32(seqno))
				}
				f, err := tl.Point(seqno)
				check(t, "Point", err, nil)
				if err != nil {
					return
				}
				if reached(value, seqno) {
					status[f] = 1
					return
				}
				for g, s := range status {
					if s == 0 && g.Seqno() == seqno && g != f {
						t.Fatal("a pending point is not shared")
					}
				}
				if _, known := status[f]; !known {
					status[f] = 0
					if err := f.AddCallback(poll.NewCallback(func(f *poll.Fence) { order = append(order, f) })); err != nil {
						t.Fatal(err)
					}
				}
			},
			"set": func(t *rapid.T) {
				by := step.Draw(t, "by")
				v := value + by
				if wraps {
					v = uint64(uint32(v))
				}
				err := tl.Set(v)
				check(t, "Set", err, nil)
				if err == nil {
					raise(t, by)
				}
			},
			"set back": func(t *rapid.T) {
				if value == 0 && !wraps {
					return
				}
				v := value - 1
				if wraps {
					v = uint64(uint32(v))
				}
				check(t, "Set", tl.Set(v), syscall.EINVAL)
			},
			"advance": func(t *rapid.T) {
				n := step.Draw(t, "by")
				err := tl.Advance(n)
				check(t, "Advance", err, nil)
				if err == nil {
					raise(t, n)
				}
			},
			"end": func(t *rapid.T) {
				if rapid.IntRange(0, 20).Draw(t, "really") > 0 {
					return
				}
				tl.End()
				ended = true
				for f, s := range status {
					if s == 0 {
						status[f] = -int(syscall.ENOENT)
					}
				}
				order = nil
			},
			"": func(t *rapid.T) {
				if tl.Value() != value || tl.Ended() != ended {
					t.Fatalf("value %d, want %d; ended %v", tl.Value(), value, tl.Ended())
				}
				pending := 0
				for f, s := range status {
					if f.Status() != s || (s == 0) != (f.Timestamp() == 0) {
						t.Fatalf("point %d at %d: status %d, want %d", f.Seqno(), value, f.Status(), s)
					}
					if s == 0 {
						pending++
					}
				}
				if got := len(tl.Pending()); got != pending {
					t.Fatalf("%d pending, want %d", got, pending)
				}
			},
		})
	})
}

// node is a fence and what it should be.
type node struct {
	f    *poll.Fence
	done func() bool
}

// TestContainerModel builds arrays and chains of each other, watches and
// unwatches some, signals the leaves in any order, and compares with what the
// leaves say.
func TestContainerModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var leaves []*poll.Fence
		done := map[*poll.Fence]bool{}
		var nodes []node
		for range rapid.IntRange(1, 5).Draw(t, "leaves") {
			f := leaf()
			leaves = append(leaves, f)
			nodes = append(nodes, node{f, func() bool { return done[f] }})
		}
		type watcher struct {
			node
			cb  *poll.Callback
			ran int
			on  bool
		}
		var watchers []*watcher
		pick := func(t *rapid.T) node { return rapid.SampledFrom(nodes).Draw(t, "node") }
		t.Repeat(map[string]func(*rapid.T){
			"array": func(t *rapid.T) {
				any := rapid.Bool().Draw(t, "any")
				var of []node
				var fs []*poll.Fence
				for range rapid.IntRange(1, 3).Draw(t, "members") {
					n := pick(t)
					of, fs = append(of, n), append(fs, n.f)
				}
				nodes = append(nodes, node{poll.NewArray(fs, any), func() bool {
					if any {
						return slices.ContainsFunc(of, func(n node) bool { return n.done() })
					}
					return !slices.ContainsFunc(of, func(n node) bool { return !n.done() })
				}})
			},
			"chain": func(t *rapid.T) {
				prev, f := pick(t), pick(t)
				nodes = append(nodes, node{poll.NewChain(prev.f, f.f, rapid.Uint64Range(1, 9).Draw(t, "seqno")),
					func() bool { return prev.done() && f.done() }})
			},
			"watch": func(t *rapid.T) {
				w := &watcher{node: pick(t)}
				w.cb = poll.NewCallback(func(*poll.Fence) { w.ran++ })
				w.on = w.f.AddCallback(w.cb) == nil
				if w.on == w.done() {
					t.Fatalf("AddCallback on a fence with done %v: %v", w.done(), w.on)
				}
				watchers = append(watchers, w)
			},
			"unwatch": func(t *rapid.T) {
				if len(watchers) == 0 {
					return
				}
				w := rapid.SampledFrom(watchers).Draw(t, "watcher")
				if got := w.f.RemoveCallback(w.cb); got != (w.on && w.ran == 0) {
					t.Fatalf("RemoveCallback %v of one that ran %d times", got, w.ran)
				}
				w.on = w.on && w.ran > 0
			},
			"signal": func(t *rapid.T) {
				f := rapid.SampledFrom(leaves).Draw(t, "leaf")
				_ = f.Signal()
				done[f] = true
			},
			"look": func(t *rapid.T) {
				n := pick(t)
				if n.f.Signaled() != n.done() {
					t.Fatalf("Signaled %v, want %v", n.f.Signaled(), n.done())
				}
			},
			"": func(t *rapid.T) {
				for _, w := range watchers {
					want := 0
					if w.on && w.done() {
						want = 1
					}
					if w.ran != want {
						t.Fatalf("callback ran %d times, want %d", w.ran, want)
					}
				}
			},
		})
	})
}
