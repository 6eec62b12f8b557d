package poll

import "cmp"

// minHeap gives the smallest of its values first.
type minHeap[T cmp.Ordered] []T

func (h *minHeap[T]) push(v T) {
	s := append(*h, v)
	i := len(s) - 1
	for i > 0 {
		up := (i - 1) / 2
		if s[up] <= v {
			break
		}
		s[i] = s[up]
		i = up
	}
	s[i] = v
	*h = s
}

// pop takes the smallest value. Precondition: there is one.
func (h *minHeap[T]) pop() T {
	s := *h
	least, n := s[0], len(s)-1
	v := s[n]
	s = s[:n]
	*h = s
	if n == 0 {
		return least
	}
	i := 0
	for {
		down := 2*i + 1
		if down >= n {
			break
		}
		if down+1 < n && s[down+1] < s[down] {
			down++
		}
		if v <= s[down] {
			break
		}
		s[i] = s[down]
		i = down
	}
	s[i] = v
	return least
}
