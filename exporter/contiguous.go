package exporter

import (
	"errors"
	"fmt"
	"math/bits"
)

// newContiguous makes the exporter `contiguous`: as `system`, but every buffer is one
// run of pages of the carve-out, taken when its size is set. ENOMEM when no hole is
// large enough.
func newContiguous(r *Registry) *builtin {
	e := newBuiltin(r, "contiguous", MapCached)
	e.place = carved{r.carve}
	return e
}

// carved places buffers in the carve-out.
type carved struct{ mem *carveout }

func (p carved) resize(s *store, n int64) error {
	run, err := p.mem.move(s.run, need{pages: n, last: 1<<64 - 1})
	if err != nil {
		return err
	}
	p.set(s, run)
	return nil
}

func (p carved) set(s *store, run Run) {
	s.run, s.orig = run, nil
	if run.N > 0 {
		s.orig = []Segment{{Addr: p.mem.addr(run.First), Len: run.N * PageSize}}
	}
}

func (p carved) drop(s *store) {
	_, _ = p.mem.move(s.run, need{}) // nothing fits everywhere
	p.set(s, Run{})
}

// fit moves a buffer that is out of a device's reach, or that a boundary cuts too
// often, to another hole of the carve-out.
func (p carved) fit(s *store, n int64, imps []Importer) error {
	if n == 0 {
		return nil
	}
	misfit := meets(s.orig, imps)
	if misfit == nil {
		return nil
	}
	last, least := reach(imps)
	if end := p.mem.addr(n) - 1; end > last {
		return &LimitError{least.Name(), "dma_mask", uint64(least.Limits().DMAMask), fmt.Sprintf("the carve-out begins at address %#x", p.mem.base)}
	}
	var err error
	for _, align := range []int64{1, 1 << bits.Len64(uint64(n-1))} {
		var run Run
		if run, err = p.mem.move(s.run, need{n, align, last}); err != nil {
			continue
		}
		p.set(s, run)
		if misfit = meets(s.orig, imps); misfit == nil {
			return nil
		}
	}
	var limit *LimitError
	if err != nil && errors.As(misfit, &limit) && limit.Limit == "dma_mask" {
		return err // it would fit, were there room
	}
	return misfit
}
