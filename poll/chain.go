package poll

import "syscall"

// chain is one node of a chain (struct dma_fence_chain).
type chain struct {
	node      *Fence // the node itself
	fence     *Fence // what it contains
	prevSeqno uint64 // seqno of the node before when made, 0 for a first one
	prev      *Fence // the node before; nil when all before are done; guarded by node.mu
	latest    uint64 // latest timestamp of nodes let go; guarded by node.mu
	cb        Callback
}

// NewChain makes a chain node that is signaled when f and everything in prev
// are (dma_fence_chain_init). prev is a node, any fence, or nil. The node is of
// prev's context if seqno is later than prev's; else it begins a context, with
// the larger seqno of the two. A chain completes without an error, whatever its
// fences do.
func NewChain(prev, f *Fence, seqno uint64) *Fence {
	c := &chain{fence: f, prev: prev}
	n := NewFence("dma_fence_chain", "unbound", 0, seqno)
	switch before := chainOf(prev); {
	case before == nil:
		n.context = NewContext()
	case seqno > prev.seqno:
		n.context, c.prevSeqno = prev.context, prev.seqno
	default:
		n.context, n.seqno, n.order = NewContext(), prev.seqno, prev.seqno
	}
	c.node, n.parts = n, c
	c.cb.fn = n.partDone
	return n
}

// chainOf is f as a chain node, or nil.
func chainOf(f *Fence) *chain {
	if f == nil {
		return nil
	}
	c, _ := f.parts.(*chain)
	return c
}

// FindSeqno finds the node of the chain head to wait for, so that point seqno
// is done (dma_fence_chain_find_seqno): the earliest that covers it. Where
// seqno falls between nodes that is the next one; where the nodes up to it have
// completed out of order, an earlier one that has not. seqno 0 is head itself. A
// point already passed may be no fence and no error. EINVAL: seqno is beyond
// head's, or head is no chain.
func FindSeqno(head *Fence, seqno uint64) (*Fence, error) {
	if seqno == 0 {
		return head, nil
	}
	c := chainOf(head)
	if c == nil || head.seqno < seqno {
		return nil, ErrSeqno
	}
	at := head
	for c != nil && at.context == head.context && c.prevSeqno >= seqno {
		at = c.walk()
		c = chainOf(at)
	}
	return at, nil
}

// walk is the node before, once those that are done were let go
// (dma_fence_chain_walk).
func (c *chain) walk() *Fence {
	c.node.mu.Lock()
	defer c.node.mu.Unlock()
	return c.walkLocked()
}

// walkLocked is walk. Precondition: c.node.mu is held.
func (c *chain) walkLocked() *Fence {
	for c.prev != nil {
		before := chainOf(c.prev)
		if before == nil {
			if !c.prev.Signaled() {
				break
			}
			c.latest = max(c.latest, c.prev.timestamp)
			c.prev = nil
			break
		}
		if !before.fence.Signaled() {
			break
		}
		before.node.mu.Lock()
		c.latest = max(c.latest, before.latest, before.fence.timestamp)
		c.prev = before.prev
		before.node.mu.Unlock()
	}
	return c.prev
}

// pendingLocked is some fence of the chain that is not done, or nil.
func (c *chain) pendingLocked() *Fence {
	if !c.fence.Signaled() {
		return c.fence
	}
	prev := c.walkLocked()
	if before := chainOf(prev); before != nil {
		return before.fence
	}
	return prev
}

func (c *chain) checkLocked() (done bool, err syscall.Errno, ts uint64) {
	if c.pendingLocked() != nil {
		return false, 0, 0
	}
	return true, 0, max(c.latest, c.fence.timestamp)
}

func (c *chain) armLocked() bool {
	if c.cb.on.Load() != nil {
		return true // on a fence whose call is still to come
	}
	for p := c.pendingLocked(); p != nil; p = c.pendingLocked() {
		if p.AddCallback(&c.cb) == nil {
			return true
		}
	}
	return false
}

func (c *chain) disarmLocked() {
	if f := c.cb.on.Load(); f != nil {
		f.RemoveCallback(&c.cb)
	}
}

func (c *chain) each(fn func(*Fence)) {
	for {
		fn(c.fence)
		prev := c.walk()
		before := chainOf(prev)
		if before == nil {
			if prev != nil {
				fn(prev)
			}
			return
		}
		c = before
	}
}

func (c *chain) unwrap(to []*Fence) []*Fence {
	c.each(func(f *Fence) { to = unwrap(to, f) })
	return to
}
