package exporter

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// TestCarveout compares the allocator with a plain array of pages: first fit, nothing
// given twice, neighbours joined, and after a refusal everything as it was.
func TestCarveout(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(0, 64).Draw(t, "pages")
		c := newCarveout(size*PageSize + rapid.Int64Range(0, PageSize-1).Draw(t, "rest"))
		taken := make([]bool, size)
		var live []Run
		mark := func(r Run, v bool) {
			for p := r.First; p < r.First+r.N; p++ {
				if taken[p] == v {
					t.Fatalf("page %d twice", p)
				}
				taken[p] = v
			}
		}
		// fits is where n pages go, by trying each place.
		fits := func(n need) (int64, bool) {
			for at := int64(0); at+n.pages <= size; at++ {
				addr := c.addr(at)
				if n.align > 1 && addr/PageSize%uint64(n.align) != 0 || addr+uint64(n.pages)*PageSize-1 > n.last {
					continue
				}
				if !slices.Contains(taken[at:at+n.pages], true) {
					return at, true
				}
			}
			return 0, false
		}
		move := func(t *rapid.T, old Run) Run {
			n := need{
				pages: rapid.Int64Range(1, max(1, size)).Draw(t, "n"),
				align: rapid.SampledFrom([]int64{0, 1, 2, 8}).Draw(t, "align"),
				last:  rapid.SampledFrom([]uint64{1<<64 - 1, c.addr(size / 2)}).Draw(t, "last"),
			}
			mark(old, false)
			want, ok := fits(n)
			got, err := c.move(old, n)
			if ok != (err == nil) || ok && got != (Run{want, n.pages}) || !ok && got != old {
				t.Fatalf("%v for %+v: %v, %v; want page %d, %v", old, n, got, err, want, ok)
			}
			if err != nil && !errors.Is(err, syscall.ENOMEM) {
				t.Fatal(err)
			}
			mark(got, true)
			return got
		}
		t.Repeat(map[string]func(*rapid.T){
			"take": func(t *rapid.T) {
				if r := move(t, Run{}); r.N > 0 {
					live = append(live, r)
				}
			},
			"move": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("none")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				live[i] = move(t, live[i])
			},
			"give": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("none")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				mark(live[i], false)
				if r, err := c.move(live[i], need{}); r != (Run{}) || err != nil {
					t.Fatal(r, err)
				}
				live = slices.Delete(live, i, i+1)
			},
			"": func(t *rapid.T) {
				var want []Run
				for p, v := range taken {
					if !v {
						want = addRun(want, int64(p), 1)
					}
				}
				if !slices.Equal(c.holes, want) {
					t.Fatalf("holes %v, want %v", c.holes, want)
				}
				free, longest := c.free()
				if free != total(want) || longest > free || len(want) > 0 && longest == 0 {
					t.Fatal(free, longest)
				}
			},
		})
	})
}

func TestCarveoutTwice(t *testing.T) {
	c := newCarveout(4 * PageSize)
	r, err := c.move(Run{}, need{pages: 2, last: 1<<64 - 1})
	must(t, err)
	_, err = c.move(r, need{})
	must(t, err)
	wantPanic(t, "giving back twice", func() { _, _ = c.move(r, need{}) })
}

// TestContiguousFragments: no hole is large enough though the sum would be.
func TestContiguousFragments(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 4 * PageSize})
	e, err := r.Lookup("contiguous")
	must(t, err)
	var bufs []*Buffer
	for range 4 {
		b, err := e.Create(PageSize)
		must(t, err)
		bufs = append(bufs, b)
	}
	_, err = e.Create(1)
	wantErrno(t, err, syscall.ENOMEM)
	bufs[0].Put()
	bufs[2].Put()
	if _, free, longest := r.Carveout(); free != 2*PageSize || longest != PageSize {
		t.Fatal(free, longest)
	}
	_, err = e.Create(2 * PageSize)
	wantErrno(t, err, syscall.ENOMEM)
	wantErrno(t, bufs[1].Resize(4*PageSize), syscall.ENOMEM)
	if bufs[1].Size() != PageSize {
		t.Fatal("changed by a refusal")
	}
	must(t, bufs[1].Resize(3*PageSize)) // its own page and both neighbours
	must(t, bufs[1].Resize(PageSize))
	bufs[1].Put()
	b, err := e.Create(3 * PageSize) // joined
	must(t, err)
	b.Put()
	bufs[3].Put()
	if size, free, longest := r.Carveout(); size != 4*PageSize || free != size || longest != size {
		t.Fatal(size, free, longest)
	}
	_, err = e.Create(5 * PageSize)
	wantErrno(t, err, syscall.ENOMEM)
	if r.Len() != 0 {
		t.Fatal("left behind")
	}
}
