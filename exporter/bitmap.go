package exporter

import "math/bits"

// bitmap is a set of page numbers. Three levels, the lowest made where somebody sets
// a bit: an empty one costs nothing, taking everything costs what is set, whatever
// the size. The zero value is empty. Its owner locks.
type bitmap struct {
	top    []uint64 // a bit for each chunk that is not empty
	chunks []*bitmapChunk
	n      int64 // bits set
}

// chunkPages is how many pages a chunk has: 16 MiB of buffer.
const chunkPages = 64 * 64

type bitmapChunk struct {
	sum  uint64 // a bit for each word that is not 0
	word [64]uint64
	n    int
}

// count is the number of pages in the set.
func (m *bitmap) count() int64 { return m.n }

func (m *bitmap) has(page int64) bool {
	c := page / chunkPages
	if c >= int64(len(m.chunks)) || m.chunks[c] == nil {
		return false
	}
	i := page % chunkPages
	return m.chunks[c].word[i/64]>>(i%64)&1 != 0
}

// wordMask is the bits of word w that lie in [first, last), in bits of the chunk.
func wordMask(w, first, last int64) uint64 {
	mask := ^uint64(0)
	if lo := first - w*64; lo > 0 {
		mask <<= lo
	}
	if hi := (w+1)*64 - last; hi > 0 {
		mask &= ^uint64(0) >> hi
	}
	return mask
}

// set adds n pages from first.
func (m *bitmap) set(first, n int64) {
	for end := first + n; first < end; {
		c := first / chunkPages
		stop := min(end, (c+1)*chunkPages)
		m.chunk(c).set(m, first-c*chunkPages, stop-c*chunkPages)
		m.top[c/64] |= 1 << (c % 64)
		first = stop
	}
}

// chunk makes room for chunk c.
func (m *bitmap) chunk(c int64) *bitmapChunk {
	if need := c + 1 - int64(len(m.chunks)); need > 0 {
		m.chunks = append(m.chunks, make([]*bitmapChunk, need)...)
	}
	if need := c/64 + 1 - int64(len(m.top)); need > 0 {
		m.top = append(m.top, make([]uint64, need)...)
	}
	if m.chunks[c] == nil {
		m.chunks[c] = &bitmapChunk{}
	}
	return m.chunks[c]
}

func (k *bitmapChunk) set(m *bitmap, first, last int64) {
	for w := first / 64; w*64 < last; w++ {
		add := bits.OnesCount64(wordMask(w, first, last) &^ k.word[w])
		k.word[w] |= wordMask(w, first, last)
		k.sum |= 1 << w
		k.n += add
		m.n += int64(add)
	}
}

// clear removes n pages from first.
func (m *bitmap) clear(first, n int64) {
	end := min(first+n, int64(len(m.chunks))*chunkPages)
	for first < end {
		c := first / chunkPages
		stop := min(end, (c+1)*chunkPages)
		if k := m.chunks[c]; k != nil {
			for w := (first - c*chunkPages) / 64; c*chunkPages+w*64 < stop; w++ {
				m.drop(c, w, wordMask(w, first-c*chunkPages, stop-c*chunkPages))
			}
		}
		first = stop
	}
}

// drop removes the masked bits of a word, and the chunk when that was its last.
func (m *bitmap) drop(c, w int64, mask uint64) {
	k := m.chunks[c]
	gone := bits.OnesCount64(k.word[w] & mask)
	if k.word[w] &^= mask; k.word[w] == 0 {
		k.sum &^= 1 << w
	}
	k.n -= gone
	m.n -= int64(gone)
	if k.n == 0 {
		m.top[c/64] &^= 1 << (c % 64)
	}
}

// runs is the set as runs, ascending.
func (m *bitmap) runs() []Run {
	if m.n == 0 {
		return nil
	}
	var out []Run
	for t, top := range m.top {
		for ; top != 0; top &= top - 1 {
			c := int64(t*64 + bits.TrailingZeros64(top))
			out = m.chunks[c].runs(c*chunkPages, out)
		}
	}
	return out
}

func (k *bitmapChunk) runs(base int64, out []Run) []Run {
	for sum := k.sum; sum != 0; sum &= sum - 1 {
		w := int64(bits.TrailingZeros64(sum))
		for word, at := k.word[w], int64(0); word != 0; {
			skip := int64(bits.TrailingZeros64(word))
			n := int64(bits.TrailingZeros64(^(word >> skip)))
			out = addRun(out, base+w*64+at+skip, n)
			if skip+n == 64 {
				break
			}
			word >>= skip + n
			at += skip + n
		}
	}
	return out
}

// addRun appends pages, to the last run where they follow it.
func addRun(runs []Run, first, n int64) []Run {
	if i := len(runs) - 1; i >= 0 && runs[i].First+runs[i].N == first {
		runs[i].N += n
		return runs
	}
	return append(runs, Run{first, n})
}

// take empties the set and gives what was in it. Chunks are kept for the next time,
// up to keepChunks of them.
func (m *bitmap) take() []Run {
	if m.n == 0 {
		return nil
	}
	out := m.runs()
	for t, top := range m.top {
		for ; top != 0; top &= top - 1 {
			c := t*64 + bits.TrailingZeros64(top)
			if len(m.chunks) > keepChunks {
				m.chunks[c] = nil
			} else {
				*m.chunks[c] = bitmapChunk{}
			}
		}
		m.top[t] = 0
	}
	m.n = 0
	return out
}

const keepChunks = 128 // 64 KiB of bits: 2 GiB of buffer

// setRuns adds runs, as far as they lie below limit.
func (m *bitmap) setRuns(runs []Run, limit int64) {
	for _, r := range runs {
		if n := min(r.N, limit-r.First); n > 0 {
			m.set(r.First, n)
		}
	}
}

// nextClear is the first page from page that is not in the set, at most limit.
func (m *bitmap) nextClear(page, limit int64) int64 {
	for page < limit && m.has(page) {
		page++
	}
	return page
}

// nextSet is the first page from page that is in the set, at most limit.
func (m *bitmap) nextSet(page, limit int64) int64 {
	for page < limit && !m.has(page) {
		page++
	}
	return page
}

// total is the number of pages in the runs.
func total(runs []Run) (n int64) {
	for _, r := range runs {
		n += r.N
	}
	return n
}
