package exporter

import "fmt"

// segments is a device's view of chunks: neighbours merged, then split at the largest
// segment and at the boundary (what dma_map_sgtable does without an IOMMU: DMA
// addresses are physical ones).
func segments(chunks []Segment, l Limits) []Segment {
	out := make([]Segment, 0, len(chunks))
	size, boundary := l.segmentSize(), l.boundary()
	for _, c := range chunks {
		addr, off := c.Addr, c.Offset*PageSize
		for left := uint64(c.Len); left > 0; {
			take := left
			if boundary != 0 {
				take = min(take, boundary-addr%boundary)
			}
			if i := len(out) - 1; i >= 0 && out[i].joins(addr, size, boundary) {
				take = min(take, size-uint64(out[i].Len))
				out[i].Len += int64(take)
			} else {
				take = min(take, size)
				out = append(out, Segment{Offset: off / PageSize, Addr: addr, Len: int64(take)})
			}
			addr, off, left = addr+take, off+int64(take), left-take
		}
	}
	return out
}

// joins reports whether a segment can go on at addr.
func (s Segment) joins(addr, size, boundary uint64) bool {
	return s.Addr+uint64(s.Len) == addr && uint64(s.Len) < size && (boundary == 0 || addr%boundary != 0)
}

// tableFor is what importer imp sees of a placement, or the limit that is not met.
func tableFor(chunks []Segment, imp Importer) ([]Segment, error) {
	l := imp.Limits()
	last := l.last()
	for _, c := range chunks {
		if end := c.Addr + uint64(c.Len) - 1; end > last {
			return nil, &LimitError{imp.Name(), "dma_mask", uint64(l.DMAMask), fmt.Sprintf("page %d ends at address %#x", c.Offset, end)}
		}
	}
	segs := segments(chunks, l)
	if l.MaxSegments == 0 || uint64(len(segs)) <= l.MaxSegments {
		return segs, nil
	}
	e := &LimitError{imp.Name(), "max_segments", l.MaxSegments, fmt.Sprintf("the buffer is scattered over %d segments", len(segs))}
	merged := segments(chunks, Limits{})
	if uint64(len(merged)) <= l.MaxSegments { // it is the splitting that is too much
		e.Limit, e.Value = "segment_boundary", l.SegmentBoundary
		if l.MaxSegmentSize != 0 && uint64(len(segments(chunks, Limits{MaxSegmentSize: l.MaxSegmentSize}))) > l.MaxSegments {
			e.Limit, e.Value = "max_segment_size", l.MaxSegmentSize
		}
		e.Why = fmt.Sprintf("splits %d segments into %d, max_segments=%d", len(merged), len(segs), l.MaxSegments)
	}
	return nil, e
}

// meets returns the first limit of any importer that the placement does not meet.
func meets(chunks []Segment, imps []Importer) error {
	for _, imp := range imps {
		if _, err := tableFor(chunks, imp); err != nil {
			return err
		}
	}
	return nil
}

// reach is the highest address that all importers reach, and who reaches least.
func reach(imps []Importer) (last uint64, least Importer) {
	last = 1<<64 - 1
	for _, imp := range imps {
		if l := imp.Limits().last(); l < last {
			last, least = l, imp
		}
	}
	return last, least
}
