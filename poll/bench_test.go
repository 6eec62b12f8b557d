package poll_test

import (
	"fmt"
	"testing"

	"github.com/dmabuffs/dmabuffs/poll"
)

// BenchmarkSignal signals one fence with n pending on the same reservation, in
// order, as contexts of their own and as points of one timeline. The cost per
// signal must not depend on n.
func BenchmarkSignal(b *testing.B) {
	for _, n := range []int{10, 10000} {
		b.Run(fmt.Sprintf("contexts/pending=%d", n), func(b *testing.B) {
			for done := 0; done < b.N; done += n {
				b.StopTimer()
				r, fs := poll.NewReservation(), make([]*poll.Fence, n)
				for i := range fs {
					fs[i] = leaf()
					r.Add(fs[i], poll.Write)
				}
				b.StartTimer()
				for _, f := range fs[:min(n, b.N-done)] {
					_ = f.Signal()
				}
			}
		})
		b.Run(fmt.Sprintf("timeline/pending=%d", n), func(b *testing.B) {
			for done := 0; done < b.N; done += n {
				b.StopTimer()
				r, tl := poll.NewReservation(), poll.NewTimeline("d", "t")
				for i := range n {
					r.Add(point(b, tl, uint64(n-i)), poll.Write)
				}
				b.StartTimer()
				for range min(n, b.N-done) {
					_ = tl.Advance(1)
				}
			}
		})
	}
}

// BenchmarkReady asks with n fences pending.
func BenchmarkReady(b *testing.B) {
	for _, n := range []int{0, 10, 10000} {
		b.Run(fmt.Sprintf("pending=%d", n), func(b *testing.B) {
			r := poll.NewReservation()
			for range n {
				r.Add(leaf(), poll.Read)
			}
			for b.Loop() {
				r.Ready(both)
			}
		})
	}
}

// BenchmarkAdd adds the next point of a context that has a slot, with n fences
// of other contexts pending, and of the same context.
func BenchmarkAdd(b *testing.B) {
	for _, n := range []int{10, 10000} {
		for _, own := range []bool{false, true} {
			b.Run(fmt.Sprintf("pending=%d/own=%v", n, own), func(b *testing.B) {
				r, ctx := poll.NewReservation(), poll.NewContext()
				for i := range uint64(n) {
					f := leaf()
					if own {
						f = poll.NewFence("d", "t", ctx, uint64(n)-i)
					}
					r.Add(f, poll.Write)
				}
				seqno := uint64(n)
				for b.Loop() {
					seqno++
					r.Add(poll.NewFence("d", "t", ctx, seqno), poll.Write)
				}
			})
		}
	}
}

// BenchmarkWake signals a fence that n waiters wait for: ns a waiter.
func BenchmarkWake(b *testing.B) {
	for _, n := range []int{1, 1000} {
		b.Run(fmt.Sprintf("waiters=%d", n), func(b *testing.B) {
			r, told := poll.NewReservation(), 0
			for range n {
				r.Watch(poll.NewWaiter(poll.In, func() { told++ }))
			}
			for b.Loop() {
				f := leaf()
				r.Add(f, poll.Write)
				_ = f.Signal()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(told), "ns/waiter")
		})
	}
}

// BenchmarkPoint makes and passes a point.
func BenchmarkPoint(b *testing.B) {
	tl := poll.NewTimeline("d", "t")
	var seqno uint64
	for b.Loop() {
		seqno++
		_, _ = tl.Point(seqno)
		_ = tl.Advance(1)
	}
}
