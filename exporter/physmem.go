package exporter

import (
	"fmt"
	"slices"
	"sync"
)

// physmem is the machine's simulated physical memory, from which scattered buffers
// get their addresses. It is handed out like the kernel's system heap does
// (drivers/dma-buf/heaps/system_heap.c): chunks of 1 MiB, 64 KiB and 4 KiB, the
// largest that fits first, and no two chunks of 1 MiB that follow each other but by
// chance. It has a zone below 4 GiB and one above, which is used first:
//
//	0x0000_0010_0000 ..  0x0000_c000_0000   low (3 GiB less 1 MiB)
//	0x0000_c000_0000 ..  0x0001_0000_0000   the carve-out, where it fits (carveout.go)
//	0x0001_0000_0000 ..                     high
type physmem struct {
	mu   sync.Mutex
	low  zone
	high zone
}

// Orders of chunks: 2^order pages.
const (
	orderMax = 8 // 1 MiB, a block
	orderMid = 4 // 64 KiB
	orderMin = 0 // a page

	blockSize  = PageSize << orderMax
	blockPages = 1 << orderMax

	lowFirst, lowEnd = 1, 3 << 10 // in blocks
	highFirst        = 4 << 10
	highMin, highMax = 16 << 10, 16 << 20 // 16 GiB, 16 TiB
)

// chunk is what physmem gives: 2^order pages from addr.
type chunk struct {
	addr  uint64
	order uint8
}

// newPhysmem makes a memory with room above 4 GiB for twice as many bytes, as
// fragments and moves need some.
func newPhysmem(bytes int64) *physmem {
	n := int64(highMin)
	if bytes > 0 {
		n = min(max(n, bytes/blockSize*2), highMax)
	}
	return &physmem{
		low:  zone{first: lowFirst, n: lowEnd - lowFirst},
		high: zone{first: highFirst, n: n},
	}
}

// alloc gives chunks for so many pages, all of their bytes at last or below. big asks
// for as few chunks as can be, where some may be larger than what is left to cover.
// ErrNoRoom; unreachable says that even an empty memory had not enough.
func (m *physmem) alloc(n int64, last uint64, big bool) (got []chunk, unreachable bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if (m.low.reachable(last)+m.high.reachable(last))*blockPages < n {
		return nil, true, fmt.Errorf("%w for %d pages at addresses up to %#x", ErrNoRoom, n, last)
	}
	for left := n; left > 0; {
		c, ok := m.chunkLocked(left, last, big)
		if !ok {
			m.freeLocked(got)
			return nil, false, fmt.Errorf("%w for %d pages at addresses up to %#x", ErrNoRoom, n, last)
		}
		got = append(got, c)
		left -= 1 << c.order
	}
	return got, false, nil
}

func (m *physmem) chunkLocked(left int64, last uint64, big bool) (chunk, bool) {
	for _, order := range []uint8{orderMax, orderMid, orderMin} {
		if fits := int64(1) << order; fits > left {
			// Too large, unless few chunks are wanted and the next smaller would be too small.
			if !big || order == orderMin || fits>>4 >= left {
				continue
			}
		}
		for _, z := range []*zone{&m.high, &m.low} {
			if addr, ok := z.take(order, last); ok {
				return chunk{addr, order}, true
			}
		}
	}
	return chunk{}, false
}

// free takes chunks back.
func (m *physmem) free(chunks []chunk) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.freeLocked(chunks)
}

func (m *physmem) freeLocked(chunks []chunk) {
	for _, c := range chunks {
		if z := &m.low; int64(c.addr/blockSize) < z.first+z.n {
			z.give(c)
		} else {
			m.high.give(c)
		}
	}
}

// used is the number of pages given out.
func (m *physmem) used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.low.usedPages() + m.high.usedPages()
}

// zone is a range of blocks. A block is free, given as a whole, or split into pages.
type zone struct {
	first, n int64  // blocks
	used     bitmap // blocks that are not free, counted from first
	split    map[int64]*splitBlock
	open     []int64 // split blocks with a free page, ascending
	step     int64   // how often a block was looked for
}

// splitBlock has a bit for each of its pages that is taken.
type splitBlock struct {
	page [blockPages / 64]uint64
	n    int
}

// reachable is how many blocks end at last or below.
func (z *zone) reachable(last uint64) int64 {
	blocks := int64(min(last/blockSize, 1<<62))
	if last%blockSize == blockSize-1 {
		blocks++
	}
	return min(max(blocks-z.first, 0), z.n)
}

// take gives a chunk of the order.
func (z *zone) take(order uint8, last uint64) (uint64, bool) {
	r := z.reachable(last)
	if order == orderMax {
		i, ok := z.block(r)
		return z.addr(i), ok
	}
	for _, i := range z.open {
		if i >= r {
			break
		}
		if page, ok := z.split[i].find(order); ok {
			return z.addr(i) + uint64(z.carve(i, page, order))*PageSize, true
		}
	}
	i, ok := z.block(r)
	if !ok {
		return 0, false
	}
	if z.split == nil {
		z.split = map[int64]*splitBlock{}
	}
	z.split[i] = &splitBlock{}
	at, _ := slices.BinarySearch(z.open, i)
	z.open = slices.Insert(z.open, at, i)
	return z.addr(i) + uint64(z.carve(i, 0, order))*PageSize, true
}

func (z *zone) addr(i int64) uint64 { return uint64(z.first+i) * blockSize }

// block takes a free block of the first r. They are gone through in leaps, so that
// what is given one after the other does not lie side by side.
func (z *zone) block(r int64) (int64, bool) {
	if r == 0 || r == z.n && z.used.count() == z.n {
		return 0, false
	}
	leap := leapFor(r)
	for range r {
		z.step++
		if i := z.step % r * leap % r; !z.used.has(i) {
			z.used.set(i, 1)
			return i, true
		}
	}
	return 0, false
}

// leapFor is a number near the golden section of r with no common divisor.
func leapFor(r int64) int64 {
	for leap := max(1, r*618/1000); ; leap++ {
		if gcd(leap, r) == 1 {
			return leap
		}
	}
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// find is the first free chunk of the order, in pages.
func (s *splitBlock) find(order uint8) (int, bool) {
	mask := uint64(1)<<(1<<order) - 1
	for page := 0; page < blockPages; page += 1 << order {
		if s.page[page/64]>>(page%64)&mask == 0 {
			return page, true
		}
	}
	return 0, false
}

// carve marks pages of a split block as taken.
func (z *zone) carve(i int64, page int, order uint8) int {
	s := z.split[i]
	s.page[page/64] |= (uint64(1)<<(1<<order) - 1) << (page % 64)
	if s.n += 1 << order; s.n == blockPages {
		at, _ := slices.BinarySearch(z.open, i)
		z.open = slices.Delete(z.open, at, at+1)
	}
	return page
}

// give takes a chunk back; a split block without a taken page is whole again.
func (z *zone) give(c chunk) {
	i := int64(c.addr/blockSize) - z.first
	if c.order == orderMax {
		z.used.clear(i, 1)
		return
	}
	s, page := z.split[i], int(c.addr/PageSize%blockPages)
	if s.n == blockPages {
		at, _ := slices.BinarySearch(z.open, i)
		z.open = slices.Insert(z.open, at, i)
	}
	s.page[page/64] &^= (uint64(1)<<(1<<c.order) - 1) << (page % 64)
	if s.n -= 1 << c.order; s.n == 0 {
		at, _ := slices.BinarySearch(z.open, i)
		z.open = slices.Delete(z.open, at, at+1)
		delete(z.split, i)
		z.used.clear(i, 1)
	}
}

func (z *zone) usedPages() int64 {
	n := (z.used.count() - int64(len(z.split))) * blockPages
	for _, s := range z.split {
		n += int64(s.n)
	}
	return n
}

// chunkSegments is the chunks as the exporter's list of segments for a buffer of so many pages.
func chunkSegments(chunks []chunk, n int64) []Segment {
	out := make([]Segment, 0, len(chunks))
	at := int64(0)
	for _, c := range chunks {
		k := min(int64(1)<<c.order, n-at)
		out = append(out, Segment{Offset: at, Addr: c.addr, Len: k * PageSize})
		at += k
	}
	return out
}
