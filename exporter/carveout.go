package exporter

import (
	"fmt"
	"slices"
	"sync"
)

// carveout is a finite pool of simulated physical memory, given in single runs of
// pages: first fit, and what comes back joins its neighbours.
type carveout struct {
	base uint64 // its address
	size int64  // pages

	mu    sync.Mutex
	holes []Run // ascending, apart from each other
}

const carveoutLow = 0xc0000000 // below 4 GiB, up to 1 GiB of it; larger ones lie at 1<<44

// newCarveout makes a pool of so many bytes, of which whole pages count.
func newCarveout(bytes int64) *carveout {
	c := &carveout{base: carveoutLow, size: bytes / PageSize}
	if c.size > 1<<30/PageSize {
		c.base = 1 << 44
	}
	if c.size > 0 {
		c.holes = []Run{{0, c.size}}
	}
	return c
}

// need says where a run may lie.
type need struct {
	pages int64
	align int64  // pages, a power of two; 0 or 1: anywhere
	last  uint64 // the last byte at most there
}

// move gives old back and takes a run for n in one step, so that the two may
// overlap; N 0 is none. ErrNoRoom: no hole is large enough, and old is still taken.
func (c *carveout) move(old Run, n need) (Run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.giveLocked(old)
	if n.pages == 0 {
		return Run{}, nil
	}
	for _, h := range c.holes {
		if first, ok := c.fit(h, n); ok {
			c.takeLocked(Run{first, n.pages})
			return Run{first, n.pages}, nil
		}
	}
	c.takeLocked(old)
	return old, fmt.Errorf("%w for %d pages in one piece: %d free in %d holes", ErrNoRoom, n.pages, c.freeLocked(), len(c.holes))
}

// fit is where in the hole the run would begin.
func (c *carveout) fit(h Run, n need) (int64, bool) {
	first := h.First
	if n.align > 1 {
		page := int64(c.base / PageSize)
		first = (page+first+n.align-1)&^(n.align-1) - page
	}
	if first+n.pages > h.First+h.N {
		return 0, false
	}
	return first, c.addr(first+n.pages)-1 <= n.last
}

func (c *carveout) addr(page int64) uint64 { return c.base + uint64(page)*PageSize }

// takeLocked cuts a run out of the hole that it lies in.
func (c *carveout) takeLocked(r Run) {
	if r.N == 0 {
		return
	}
	i, found := c.searchLocked(r.First)
	if !found {
		i--
	}
	h := c.holes[i]
	var left []Run
	if n := r.First - h.First; n > 0 {
		left = append(left, Run{h.First, n})
	}
	if n := h.First + h.N - r.First - r.N; n > 0 {
		left = append(left, Run{r.First + r.N, n})
	}
	c.holes = slices.Replace(c.holes, i, i+1, left...)
}

// giveLocked makes a run a hole, joined with its neighbours.
func (c *carveout) giveLocked(r Run) {
	if r.N == 0 {
		return
	}
	i, found := c.searchLocked(r.First)
	if found || i < len(c.holes) && c.holes[i].First < r.First+r.N || i > 0 && c.holes[i-1].First+c.holes[i-1].N > r.First {
		panic("exporter: carve-out given back twice")
	}
	if i < len(c.holes) && c.holes[i].First == r.First+r.N {
		r.N += c.holes[i].N
		c.holes = slices.Delete(c.holes, i, i+1)
	}
	if i > 0 && c.holes[i-1].First+c.holes[i-1].N == r.First {
		c.holes[i-1].N += r.N
		return
	}
	c.holes = slices.Insert(c.holes, i, r)
}

func (c *carveout) searchLocked(first int64) (int, bool) {
	return slices.BinarySearchFunc(c.holes, first, func(h Run, first int64) int {
		switch {
		case h.First < first:
			return -1
		case h.First > first:
			return 1
		}
		return 0
	})
}

func (c *carveout) freeLocked() int64 { return total(c.holes) }

// free is the number of pages that are free, and of them the longest run.
func (c *carveout) free() (pages, longest int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.holes {
		longest = max(longest, h.N)
	}
	return c.freeLocked(), longest
}
