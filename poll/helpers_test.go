package poll_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dmabuffs/dmabuffs/poll"
)

// hang is how long a test waits for what must come; it is never waited out.
const hang = 30 * time.Second

// bounded is a context for a wait that must end.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	t.Cleanup(cancel)
	return ctx
}

// leaf makes a pending fence of a context of its own.
func leaf() *poll.Fence { return poll.NewFence("drv", "tl", poll.NewContext(), 1) }

// signal signals a fence that must be pending.
func signal(t testing.TB, f *poll.Fence) {
	t.Helper()
	if err := f.Signal(); err != nil {
		t.Fatalf("Signal: %v", err)
	}
}

// point makes a point that must be possible.
func point(t testing.TB, tl *poll.Timeline, seqno uint64) *poll.Fence {
	t.Helper()
	f, err := tl.Point(seqno)
	if err != nil {
		t.Fatalf("Point(%d): %v", seqno, err)
	}
	return f
}

// ok fails on an error.
func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eq fails unless got is want.
func eq[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("%s: %v, want %v", what, got, want)
	}
}

// watch counts how often a waiter for want is told.
func watch(t testing.TB, r *poll.Reservation, want poll.Events) *atomic.Int32 {
	told := new(atomic.Int32)
	w := poll.NewWaiter(want, func() { told.Add(1) })
	r.Watch(w)
	t.Cleanup(func() { r.Unwatch(w) })
	return told
}

// same fails unless got is exactly want.
func same(t testing.TB, what string, got []*poll.Fence, want ...*poll.Fence) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%s: %d fences, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: fence %d is %s:%d, want %s:%d", what, i,
				got[i].TimelineName(), got[i].Seqno(), want[i].TimelineName(), want[i].Seqno())
		}
	}
}
