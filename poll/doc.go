// Package poll says when a buffer is ready, and tells who waits for it.
//
// It is the synchronisation half of dma-buf in user space: dma_fence,
// dma_fence_array, dma_fence_chain, dma_resv, sync_file and sw_sync of the
// Linux kernel, with the kernel's words and its rules. It knows no FUSE and no
// buffer, and imports the standard library alone.
//
// A [Fence] is one thing that will complete, once. A [Timeline] makes fences
// that complete as its value grows. A [Reservation] holds the fences of one
// buffer, each with a [Usage] that says who waits for it:
//
//	tl := poll.NewTimeline("dmabuffs", "gpu0")
//	f, err := tl.Point(7)
//	var resv poll.Reservation
//	resv.Add(f, poll.Write)   // an exclusive fence, in the old words
//	resv.Ready(poll.In)       // 0: not safe to read yet
//	err = tl.Set(7)           // signals f
//	resv.Ready(poll.In)       // poll.In
//
// # Readiness
//
// [In] (safe to read) is ready when no fence of usage [Kernel] or [Write] is
// pending, [Out] (safe to write) when none of usage [Read] is either. Fences of
// usage [Bookkeep] hold nobody up. Completion alone counts: a fence that
// completed with an error is done, and nothing here reports POLLERR.
//
// A Reservation counts the pending fences of both classes in its two [PollCB],
// the header's cb_excl and cb_shared, so asking costs the same whatever their
// number. A fence completes a moment before its callback has told the
// reservation; whoever asks in that moment retires the fence himself, so the
// answer is never older than [Fence.Signaled].
//
// # Waiting
//
// Register first, then ask:
//
//	w := poll.NewWaiter(poll.In, wake)
//	resv.Watch(w)
//	defer resv.Unwatch(w)
//	for resv.Ready(poll.In) == 0 {
//		// sleep until wake is called
//	}
//
// A wakeup means "ask again". A [Waiter] stays registered until it is taken
// away, and is called each time something it wants has become ready.
// [Reservation.Wait] is different: it waits for the fences there are when it
// begins, as DMA_BUF_IOCTL_SYNC does, not for those that come later.
//
// # Locks
//
// Lock order, outermost first:
//
//	Reservation.mu         Timeline.mu      (never both)
//		Fence.mu               of a container before those of its parts
//	Queue.mu               (nothing is taken under it)
//
// Parts exist before their container, so the order among fences has no cycle.
// State changes under these locks. Callbacks of fences, notify functions of
// waiters and the functions given to [Reservation.Hold] run after all of them
// were dropped, in the goroutine that caused the change, and may call anything
// in this package.
package poll
