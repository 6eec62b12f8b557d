package poll_test

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/poll"
)

// monotonic is CLOCK_MONOTONIC from the system, to compare timestamps with.
func monotonic(t testing.TB) uint64 {
	t.Helper()
	var ts unix.Timespec
	ok(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return uint64(ts.Nano())
}

func TestFence(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, f *poll.Fence)
	}{
		{"B118 signaled twice", func(t *testing.T, f *poll.Fence) {
			signal(t, f)
			ts := f.Timestamp()
			err := f.Signal()
			if !errors.Is(err, poll.ErrSignaled) || !errors.Is(err, syscall.EINVAL) {
				t.Fatalf("second Signal: %v", err)
			}
			eq(t, "timestamp after the second", f.Timestamp(), ts)
		}},
		{"B119 callback runs once, with the fence", func(t *testing.T, f *poll.Fence) {
			var got []*poll.Fence
			ok(t, f.AddCallback(poll.NewCallback(func(f *poll.Fence) { got = append(got, f) })))
			signal(t, f)
			_ = f.Signal()
			same(t, "calls", got, f)
		}},
		{"B120 callback on a signaled fence", func(t *testing.T, f *poll.Fence) {
			signal(t, f)
			err := f.AddCallback(poll.NewCallback(func(*poll.Fence) { t.Error("callback ran") }))
			if !errors.Is(err, poll.ErrDone) || !errors.Is(err, syscall.ENOENT) {
				t.Fatalf("AddCallback: %v", err)
			}
		}},
		{"B121 callback removed", func(t *testing.T, f *poll.Fence) {
			cb := poll.NewCallback(func(*poll.Fence) { t.Error("callback ran") })
			ok(t, f.AddCallback(cb))
			eq(t, "RemoveCallback", f.RemoveCallback(cb), true)
			eq(t, "RemoveCallback again", f.RemoveCallback(cb), false)
			signal(t, f)
		}},
		{"B122 callback removed after it ran", func(t *testing.T, f *poll.Fence) {
			cb := poll.NewCallback(func(*poll.Fence) {})
			ok(t, f.AddCallback(cb))
			signal(t, f)
			eq(t, "RemoveCallback", f.RemoveCallback(cb), false)
		}},
		{"B123 error", func(t *testing.T, f *poll.Fence) {
			f.SetError(syscall.EIO)
			eq(t, "Status while pending", f.Status(), 0)
			signal(t, f)
			eq(t, "Status", f.Status(), -int(syscall.EIO))
			f.SetError(syscall.EPERM)
			eq(t, "Status after a late SetError", f.Status(), -int(syscall.EIO))
		}},
		{"B124 a wait without time asks", func(t *testing.T, f *poll.Fence) {
			over, cancel := context.WithCancel(context.Background())
			cancel()
			if err := f.Wait(over); !errors.Is(err, context.Canceled) {
				t.Fatalf("Wait on a pending fence: %v", err)
			}
			signal(t, f)
			ok(t, f.Wait(over))
		}},
		{"error out of range", func(t *testing.T, f *poll.Fence) {
			f.SetError(4096)
			f.SetError(0)
			signal(t, f)
			eq(t, "Status", f.Status(), 1)
		}},
		{"a wait does not report the fence's error", func(t *testing.T, f *poll.Fence) {
			f.SetError(syscall.EIO)
			signal(t, f)
			ok(t, f.Wait(bounded(t)))
		}},
		{"timestamp is CLOCK_MONOTONIC at the signal", func(t *testing.T, f *poll.Fence) {
			eq(t, "Timestamp while pending", f.Timestamp(), 0)
			before := monotonic(t)
			signal(t, f)
			if ts := f.Timestamp(); ts < before || ts > monotonic(t) {
				t.Fatalf("timestamp %d is not in [%d, now]", ts, before)
			}
		}},
		{"state is set before callbacks run", func(t *testing.T, f *poll.Fence) {
			ran := false
			ok(t, f.AddCallback(poll.NewCallback(func(f *poll.Fence) {
				ran = f.Signaled() && f.Status() == 1 && f.Timestamp() != 0
			})))
			signal(t, f)
			eq(t, "state seen by the callback", ran, true)
		}},
		{"callbacks run in the order they were added", func(t *testing.T, f *poll.Fence) {
			var got, want []int
			cbs := make([]*poll.Callback, 20)
			for i := range cbs {
				cbs[i] = poll.NewCallback(func(*poll.Fence) { got = append(got, i) })
				ok(t, f.AddCallback(cbs[i]))
			}
			for i, cb := range cbs {
				if i%3 == 0 || i == len(cbs)-1 { // the first and the last too
					eq(t, "RemoveCallback", f.RemoveCallback(cb), true)
				} else {
					want = append(want, i)
				}
			}
			ok(t, f.AddCallback(cbs[0]))
			signal(t, f)
			if want = append(want, 0); !slices.Equal(got, want) {
				t.Fatalf("order %v, want %v", got, want)
			}
		}},
		{"a callback may use the fence and itself again", func(t *testing.T, f *poll.Fence) {
			g, ran := leaf(), 0
			var cb *poll.Callback
			cb = poll.NewCallback(func(done *poll.Fence) {
				ran++
				if done == f {
					eq(t, "RemoveCallback inside", f.RemoveCallback(cb), false)
					ok(t, g.AddCallback(cb))
					_ = g.Signal()
				}
			})
			ok(t, f.AddCallback(cb))
			signal(t, f)
			eq(t, "calls", ran, 2)
		}},
		{"callbacks that cannot be added", func(t *testing.T, f *poll.Fence) {
			cb := poll.NewCallback(func(*poll.Fence) {})
			ok(t, leaf().AddCallback(cb))
			for what, err := range map[string]error{"nil": f.AddCallback(nil), "in use": f.AddCallback(cb)} {
				if !errors.Is(err, syscall.EINVAL) {
					t.Errorf("%s: %v", what, err)
				}
			}
			eq(t, "RemoveCallback of another fence's", f.RemoveCallback(cb), false)
			eq(t, "RemoveCallback of nil", f.RemoveCallback(nil), false)
		}},
		{"names and numbers", func(t *testing.T, _ *poll.Fence) {
			f := poll.NewFence("d", "t", 9, 1<<40)
			eq(t, "Driver", f.Driver(), "d")
			eq(t, "TimelineName", f.TimelineName(), "t")
			eq(t, "Context", f.Context(), 9)
			eq(t, "Seqno", f.Seqno(), 1<<40)
		}},
		{"stub", func(t *testing.T, _ *poll.Fence) {
			s := poll.Stub()
			eq(t, "Status", s.Status(), 1)
			eq(t, "names", s.Driver()+s.TimelineName(), "stubstub")
			eq(t, "context and seqno", s.Context()+s.Seqno(), 0)
			if s.Timestamp() == 0 {
				t.Error("no timestamp")
			}
		}},
		{"contexts are never given twice", func(t *testing.T, _ *poll.Fence) {
			a, b := poll.NewContext(), poll.NewContext()
			if a == 0 || b <= a {
				t.Fatalf("contexts %d and %d", a, b)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.do(t, leaf()) })
	}
}

func TestFenceWait(t *testing.T) {
	t.Run("blocks until the signal", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, errs := leaf(), make(chan error, 2)
			for range 2 {
				go func() { errs <- f.Wait(t.Context()) }()
			}
			synctest.Wait()
			eq(t, "waits that ended early", len(errs), 0)
			signal(t, f)
			ok(t, <-errs)
			ok(t, <-errs)
		})
	})
	t.Run("interrupted, and leaves nothing behind", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, errs := leaf(), make(chan error)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { errs <- f.Wait(ctx) }()
			synctest.Wait()
			cancel()
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Fatalf("Wait: %v", err)
			}
			eq(t, "Signaled", f.Signaled(), false)
			signal(t, f)
		})
	})
}

func TestDeadline(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(t *testing.T, f *poll.Fence)
	}{
		{"B149 the earliest counts", func(t *testing.T, f *poll.Fence) {
			for _, ns := range []uint64{200, 100, 300} {
				f.SetDeadline(ns)
			}
			ns, err := poll.GetDeadline(f)
			ok(t, err)
			eq(t, "deadline", ns, 100)
		}},
		{"B150 none given", func(t *testing.T, f *poll.Fence) {
			if _, err := poll.GetDeadline(f); !errors.Is(err, syscall.ENOENT) {
				t.Fatalf("GetDeadline: %v", err)
			}
			_, has := f.Deadline()
			eq(t, "Deadline", has, false)
		}},
		{"B150 not a single point", func(t *testing.T, f *poll.Fence) {
			g := point(t, poll.NewSWSync("other"), 1)
			for what, f := range map[string]*poll.Fence{"merged": poll.Merge(f, g), "foreign": leaf(), "nil": nil} {
				if _, err := poll.GetDeadline(f); !errors.Is(err, syscall.EINVAL) {
					t.Errorf("%s: %v", what, err)
				}
			}
		}},
		{"zero is a deadline", func(t *testing.T, f *poll.Fence) {
			f.SetDeadline(0)
			ns, has := f.Deadline()
			eq(t, "has", has, true)
			eq(t, "ns", ns, 0)
		}},
		{"none after the signal", func(t *testing.T, f *poll.Fence) {
			signal(t, f)
			f.SetDeadline(5)
			if _, err := poll.GetDeadline(f); !errors.Is(err, syscall.ENOENT) {
				t.Fatalf("GetDeadline: %v", err)
			}
		}},
		{"containers hand it on", func(t *testing.T, f *poll.Fence) {
			g, h := leaf(), leaf()
			g.SetDeadline(50)
			poll.NewChain(poll.NewChain(nil, poll.NewArray([]*poll.Fence{f, g}, false), 1), h, 2).SetDeadline(70)
			for i, want := range map[*poll.Fence]uint64{f: 70, g: 50, h: 70} {
				ns, has := i.Deadline()
				eq(t, "has", has, true)
				eq(t, "deadline", ns, want)
			}
			arr := poll.NewArray([]*poll.Fence{f, g, h}, false)
			ns, _ := arr.Deadline()
			eq(t, "the array's", ns, 50)
			signal(t, g)
			ns, _ = arr.Deadline()
			eq(t, "the array's after the most urgent", ns, 70)
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.do(t, point(t, poll.NewSWSync("tl"), 1)) })
	}
}
