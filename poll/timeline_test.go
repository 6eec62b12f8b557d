package poll_test

import (
	"errors"
	"math"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmabuffs/dmabuffs/poll"
)

func TestTimeline(t *testing.T) {
	type tl = *poll.Timeline
	for _, c := range []struct {
		name string
		do   func(t *testing.T, tl tl)
	}{
		{"B128 a point is signaled once the value reaches it", func(t *testing.T, tl tl) {
			f := point(t, tl, 5)
			for _, step := range []struct {
				inc  uint64
				want bool
			}{{0, false}, {1, false}, {4, true}, {10, true}} {
				ok(t, tl.Advance(step.inc))
				eq(t, "Signaled", f.Signaled(), step.want)
			}
			eq(t, "Value", tl.Value(), 15)
		}},
		{"B130 three timelines merged", func(t *testing.T, tl tl) {
			tls := []*poll.Timeline{tl, poll.NewSWSync("b"), poll.NewSWSync("c")}
			var fs []*poll.Fence
			for _, tl := range tls {
				fs = append(fs, point(t, tl, 1))
			}
			sf := poll.NewSyncFile("m", poll.Merge(fs...))
			for i, tl := range append(tls, nil) {
				active := 0
				for _, f := range sf.Info().Fences {
					if f.Status == 0 {
						active++
					}
				}
				eq(t, "active", active, 3-i)
				eq(t, "ready", sf.Ready(poll.In) == poll.In, active == 0)
				if tl != nil {
					ok(t, tl.Advance(1))
				}
			}
		}},
		{"B140 timestamp", func(t *testing.T, tl tl) {
			f := point(t, tl, 1)
			eq(t, "pending", f.Timestamp(), 0)
			before := monotonic(t)
			ok(t, tl.Advance(1))
			if ts := f.Timestamp(); ts < before || ts > monotonic(t) {
				t.Fatalf("timestamp %d not in [%d, now]", ts, before)
			}
		}},
		{"B141 the end of the timeline", func(t *testing.T, tl tl) {
			f := point(t, tl, 1)
			tl.End()
			eq(t, "Status", f.Status(), -int(syscall.ENOENT))
			eq(t, "ready", poll.NewSyncFile("", f).Ready(poll.In), poll.In)
		}},
		{"B142 signaled before the end", func(t *testing.T, tl tl) {
			f := point(t, tl, 1)
			ok(t, tl.Advance(1))
			tl.End()
			eq(t, "Status", f.Status(), 1)
		}},
		{"B143 a point already passed", func(t *testing.T, tl tl) {
			ok(t, tl.Set(100))
			before := monotonic(t)
			f := point(t, tl, 1)
			eq(t, "Status", f.Status(), 1)
			if ts := f.Timestamp(); ts < before || ts > monotonic(t) {
				t.Fatalf("timestamp %d not in [%d, now]", ts, before)
			}
			eq(t, "Pending", len(tl.Pending()), 0)
		}},
		{"B145 a pending point is shared", func(t *testing.T, tl tl) {
			eq(t, "Point", point(t, tl, 3), point(t, tl, 3))
		}},
		{"in order, states first, then callbacks", func(t *testing.T, tl tl) {
			var got []uint64
			var fs []*poll.Fence
			for _, s := range []uint64{4, 2, 5, 1, 3} {
				f := point(t, tl, s)
				fs = append(fs, f)
				ok(t, f.AddCallback(poll.NewCallback(func(f *poll.Fence) {
					got = append(got, f.Seqno())
					eq(t, "4 in a callback", fs[0].Signaled(), true)
				})))
			}
			ok(t, tl.Set(4))
			if !slices.Equal(got, []uint64{1, 2, 3, 4}) {
				t.Fatalf("order %v", got)
			}
			same(t, "Pending", tl.Pending(), fs[2])
		}},
		{"pending, lowest first", func(t *testing.T, tl tl) {
			b, a := point(t, tl, 7), point(t, tl, 3)
			same(t, "Pending", tl.Pending(), a, b)
		}},
		{"a callback may use the timeline", func(t *testing.T, tl tl) {
			f, g := point(t, tl, 1), point(t, tl, 2)
			ok(t, f.AddCallback(poll.NewCallback(func(*poll.Fence) { ok(t, tl.Advance(1)) })))
			ok(t, tl.Advance(1))
			eq(t, "the next", g.Signaled(), true)
		}},
		{"values only grow", func(t *testing.T, tl tl) {
			ok(t, tl.Set(7))
			ok(t, tl.Set(7))
			if err := tl.Set(6); !errors.Is(err, syscall.EINVAL) {
				t.Fatalf("Set(6): %v", err)
			}
			eq(t, "Value", tl.Value(), 7)
		}},
		{"after the end", func(t *testing.T, tl tl) {
			eq(t, "Ended", tl.Ended(), false)
			tl.End()
			tl.End()
			eq(t, "Ended", tl.Ended(), true)
			_, err := tl.Point(1)
			for what, err := range map[string]error{"Point": err, "Set": tl.Set(1), "Advance": tl.Advance(1)} {
				if !errors.Is(err, poll.ErrEnded) || !errors.Is(err, syscall.ENOENT) {
					t.Errorf("%s: %v", what, err)
				}
			}
			eq(t, "Value", tl.Value(), 0)
		}},
		{"a point signaled by hand", func(t *testing.T, tl tl) {
			f := point(t, tl, 2)
			f.SetError(syscall.ECANCELED)
			signal(t, f)
			if err := f.Signal(); !errors.Is(err, poll.ErrSignaled) {
				t.Fatalf("second Signal: %v", err)
			}
			eq(t, "Pending", len(tl.Pending()), 0)
			g := point(t, tl, 2)
			eq(t, "made anew", g.Signaled(), false)
			ok(t, tl.Set(2))
			eq(t, "Status", f.Status(), -int(syscall.ECANCELED))
			eq(t, "Status of the new", g.Status(), 1)
		}},
		{"names", func(t *testing.T, tl tl) {
			f := point(t, tl, 7)
			eq(t, "Name", f.TimelineName(), tl.Name())
			eq(t, "Driver", f.Driver(), tl.Driver())
			eq(t, "Context", f.Context(), tl.Context())
			eq(t, "Seqno", f.Seqno(), 7)
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.do(t, poll.NewTimeline("dmabuffs", "gpu0")) })
		t.Run(c.name+", sw_sync", func(t *testing.T) { c.do(t, poll.NewSWSync("prog")) })
	}
}

func TestTimelineWidth(t *testing.T) {
	t.Run("64 bits", func(t *testing.T) {
		tl := poll.NewTimeline("d", "t")
		f, far := point(t, tl, 1<<31), point(t, tl, math.MaxUint64)
		eq(t, "2^31 on a new timeline", f.Signaled(), false)
		ok(t, tl.Advance(math.MaxUint64-1))
		eq(t, "2^31", f.Signaled(), true)
		if err := tl.Advance(2); !errors.Is(err, syscall.EINVAL) {
			t.Fatalf("overflow: %v", err)
		}
		eq(t, "Value", tl.Value(), math.MaxUint64-1)
		eq(t, "the last", far.Signaled(), false)
		ok(t, tl.Set(math.MaxUint64))
		eq(t, "the last", far.Signaled(), true)
	})
	t.Run("B144 half the circle counts as passed", func(t *testing.T) {
		tl := poll.NewSWSync("p")
		eq(t, "0x7fffffff", point(t, tl, 0x7fffffff).Signaled(), false)
		eq(t, "0x80000000", point(t, tl, 0x80000000).Signaled(), true)
		eq(t, "0xffffffff", point(t, tl, 0xffffffff).Signaled(), true)
	})
	t.Run("B146 a large INC passes everything", func(t *testing.T) {
		tl := poll.NewSWSync("p")
		f := point(t, tl, 0x7fffffff)
		ok(t, tl.Advance(0xffffffff))
		eq(t, "0x7fffffff", f.Signaled(), true)
		eq(t, "Value", tl.Value(), 0xffffffff)
		g := point(t, tl, 0)
		eq(t, "0, one further on", g.Signaled(), false)
		ok(t, tl.Advance(1))
		eq(t, "0", g.Signaled(), true)
		eq(t, "Value", tl.Value(), 0)
	})
	t.Run("what does not fit 32 bits", func(t *testing.T) {
		tl := poll.NewSWSync("p")
		_, err := tl.Point(1 << 32)
		for what, err := range map[string]error{"Point": err, "Set": tl.Set(1 << 32), "Advance": tl.Advance(1 << 32),
			"Set, half the circle": tl.Set(1 << 31)} {
			if !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s: %v", what, err)
			}
		}
		eq(t, "Value", tl.Value(), 0)
	})
	t.Run("Set across the wrap", func(t *testing.T) {
		tl := poll.NewSWSync("p")
		ok(t, tl.Advance(0xfffffff0))
		f := point(t, tl, 3)
		ok(t, tl.Set(2))
		eq(t, "3", f.Signaled(), false)
		ok(t, tl.Set(3))
		eq(t, "3", f.Signaled(), true)
		if err := tl.Set(0xffffffff); !errors.Is(err, syscall.EINVAL) {
			t.Fatalf("back across the wrap: %v", err)
		}
	})
}

func TestTimelineTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tl := poll.NewTimeline("d", "t")
		forever := point(t, tl, 9)
		tl.SetTimeout(10 * time.Second)
		late, intime := point(t, tl, 5), point(t, tl, 1)
		var resv poll.Reservation
		resv.Add(late, poll.Write)
		time.Sleep(5 * time.Second)
		ok(t, tl.Advance(1))
		later := point(t, tl, 4)
		time.Sleep(4999 * time.Millisecond)
		synctest.Wait()
		eq(t, "before its time", late.Status(), 0)
		eq(t, "Ready before its time", resv.Ready(poll.In), 0)
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		eq(t, "timed out", late.Status(), -int(syscall.ETIMEDOUT))
		eq(t, "Ready", resv.Ready(poll.In|poll.Out), poll.In|poll.Out)
		eq(t, "reached in time", intime.Status(), 1)
		eq(t, "made later", later.Status(), 0)
		eq(t, "made without", forever.Status(), 0)
		same(t, "Pending", tl.Pending(), later, forever)
		tl.SetTimeout(0)
		forever2 := point(t, tl, 8)
		time.Sleep(time.Hour)
		synctest.Wait()
		eq(t, "made later", later.Status(), -int(syscall.ETIMEDOUT))
		eq(t, "made without any more", forever2.Status(), 0)
		ok(t, tl.Set(9))
		eq(t, "value still signals", forever.Status(), 1)
		eq(t, "and changes nothing done", late.Status(), -int(syscall.ETIMEDOUT))
	})
}

// A point that nobody has any more goes from the timeline; one that somebody
// waits for does not, though only the timeline knows it.
func TestTimelineForgets(t *testing.T) {
	tl, n := poll.NewTimeline("d", "t"), new(atomic.Int64)
	tl.Count(n)
	told := make(chan uint64, 10)
	const waited = 77
	for i := range uint64(1000) {
		f := point(t, tl, i+1)
		if f.Seqno() == waited {
			ok(t, f.AddCallback(poll.NewCallback(func(f *poll.Fence) { told <- f.Seqno() })))
		}
		if f.Seqno() == 5 { // no longer waited for
			cb := poll.NewCallback(func(*poll.Fence) { told <- 5 })
			ok(t, f.AddCallback(cb))
			f.RemoveCallback(cb)
		}
	}
	left := func() (seqnos []uint64) {
		for _, f := range tl.Pending() {
			seqnos = append(seqnos, f.Seqno())
		}
		return seqnos
	}
	for end := time.Now().Add(hang); !slices.Equal(left(), []uint64{waited}); {
		if time.Now().After(end) {
			t.Fatalf("%d points are left", len(left()))
		}
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	eq(t, "counted before the sweep", n.Load() > 1, true)
	tl.Sweep()
	eq(t, "counted", n.Load(), 1)
	again := point(t, tl, 500) // forgotten, and made anew
	eq(t, "counted with a new one", n.Load(), 2)
	ok(t, tl.Set(1000))
	eq(t, "told", <-told, waited)
	eq(t, "others told", len(told), 0)
	eq(t, "made anew", again.Status(), 1)
	eq(t, "counted at the end", n.Load(), 0)
}

// Points opened and dropped without end do not pile up.
func TestTimelineSweepsItself(t *testing.T) {
	tl, n := poll.NewTimeline("d", "t"), new(atomic.Int64)
	tl.Count(n)
	seqno, most := uint64(0), int64(0)
	for range 50 {
		for range 1000 {
			seqno++
			point(t, tl, seqno)
			most = max(most, n.Load())
		}
		runtime.GC()
	}
	if most > 10000 {
		t.Fatalf("%d of %d points were kept", most, seqno)
	}
}
