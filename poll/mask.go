package poll

// Events is a set of poll(2) events.
type Events uint32

// The events there are. POLLERR and POLLHUP are never reported, and other bits
// never become ready.
const (
	In  Events = 0x1 // POLLIN: safe to read
	Out Events = 0x4 // POLLOUT: safe to write
)

// Usage says what a fence in a reservation is for, and so who waits for it
// (enum dma_resv_usage). Asking for a usage means all fences up to it: readers
// ask for Write, writers for Read.
type Usage int

// The usages, in the kernel's order.
const (
	Kernel   Usage = iota // memory management: everybody waits
	Write                 // implicit writes: readers and writers wait
	Read                  // implicit reads: writers wait
	Bookkeep              // no implicit sync: memory management alone waits
	usages
)

// Exclusive and Shared are what kernels before 5.19 called fences of usage Write
// and Read. Unlike there, shared fences survive an exclusive one, and there may
// be several exclusive ones.
const (
	Exclusive = Write
	Shared    = Read
)

// String is the usage's name in lower case.
func (u Usage) String() string {
	if u < 0 || u >= usages {
		return "invalid"
	}
	return [...]string{"kernel", "write", "read", "bookkeep"}[u]
}

// PollCB is one direction of a buffer's readiness: struct dma_buf_poll_cb_t of
// the header. A reservation has two, by the header's names cb_excl, which is In
// and looks at the fences that exclude readers, and cb_shared, which is Out and
// looks at the shared ones as well.
//
// The header's cb is one fence callback, moved from fence to fence as they
// complete. Here each fence has its own, which calls done, so that no fence is
// ever searched for; pending says how many calls are still to come. poll is the
// queue that the last of them wakes. active is what somebody has polled for in
// vain, until it becomes ready.
type PollCB struct {
	events  Events // In or Out
	active  Events // events, if polled for and not ready
	pending int    // fences of its class not yet done
	poll    *Queue

	held     bool // a reference is held for active
	settling bool // somebody is changing held
}

// done counts one fence as complete; it reports the events that became ready.
func (p *PollCB) done() Events {
	p.pending--
	if p.pending > 0 {
		return 0
	}
	p.active = 0
	return p.events
}

// holdsUp reports which of cb_excl and cb_shared a fence of usage u concerns.
func (u Usage) holdsUp() (excl, shared bool) { return u <= Write, u <= Read }
