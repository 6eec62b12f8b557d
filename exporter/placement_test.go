package exporter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"pgregory.net/rapid"
)

// checkTable fails unless the segments are the chunks in order, within the limits,
// and no two could be one.
func checkTable(t interface{ Fatalf(string, ...any) }, segs, orig []Segment, l Limits) {
	pageAddr := map[int64]uint64{}
	for _, c := range orig {
		for i := int64(0); i < c.Len/PageSize; i++ {
			pageAddr[c.Offset+i] = c.Addr + uint64(i)*PageSize
		}
	}
	next := int64(0)
	for i, s := range segs {
		if s.Offset != next || s.Len <= 0 || s.Len%PageSize != 0 {
			t.Fatalf("segment %d is %+v, page %d is next", i, s, next)
		}
		for k := int64(0); k < s.Len/PageSize; k++ {
			if a := s.Addr + uint64(k)*PageSize; pageAddr[s.Offset+k] != a {
				t.Fatalf("page %d at %#x, want %#x", s.Offset+k, a, pageAddr[s.Offset+k])
			}
		}
		next += s.Len / PageSize
		if l.MaxSegmentSize != 0 && uint64(s.Len) > l.MaxSegmentSize {
			t.Fatalf("segment %+v is longer than %d", s, l.MaxSegmentSize)
		}
		if b := l.boundary(); b != 0 && s.Addr/b != (s.Addr+uint64(s.Len)-1)/b {
			t.Fatalf("segment %+v crosses a multiple of %#x", s, b)
		}
		if i > 0 {
			p := segs[i-1]
			grow := l
			grow.MaxSegments = 0
			if p.Addr+uint64(p.Len) == s.Addr && uint64(p.Len) < grow.segmentSize() && (l.boundary() == 0 || s.Addr%l.boundary() != 0) {
				t.Fatalf("segments %+v and %+v could be one", p, s)
			}
		}
	}
	if next != int64(len(pageAddr)) {
		t.Fatalf("%d pages in the table, want %d", next, len(pageAddr))
	}
}

func drawLimits(t *rapid.T) Limits {
	return Limits{
		MaxSegmentSize:  rapid.SampledFrom([]uint64{0, PageSize, PageSize + 1, 3 * PageSize, 1 << 16, 1<<20 + 5}).Draw(t, "max_segment_size"),
		SegmentBoundary: rapid.SampledFrom([]uint64{0, PageSize, PageSize - 1, 1 << 16, 1<<16 - 1, 1 << 32, 1<<64 - 1}).Draw(t, "segment_boundary"),
	}
}

func TestSegments(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var orig []Segment
		addr, off := uint64(rapid.IntRange(1, 20).Draw(t, "first"))*PageSize, int64(0)
		for range rapid.IntRange(0, 12).Draw(t, "chunks") {
			n := int64(rapid.SampledFrom([]int{1, 2, 16, 17}).Draw(t, "pages"))
			orig = append(orig, Segment{off, addr, n * PageSize})
			off, addr = off+n, addr+uint64(n)*PageSize
			if !rapid.Bool().Draw(t, "neighbour") {
				addr += uint64(rapid.IntRange(1, 9).Draw(t, "gap")) * PageSize
			}
		}
		l := drawLimits(t)
		checkTable(t, segments(orig, l), orig, l)
	})
}

// TestPhysmem: nothing is given twice, all is below the limit, and what came back is there again.
func TestPhysmem(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newPhysmem(0)
		m.high.n, m.low.n = 6, 5 // small, so that it fills up
		reachable := func(last uint64) (pages int64) {
			for _, z := range []zone{m.low, m.high} {
				for i := range z.n {
					if z.addr(i)+blockSize-1 <= last {
						pages += blockPages
					}
				}
			}
			return pages
		}
		taken := map[uint64]bool{}
		var live [][]chunk
		total := int64(0)
		t.Repeat(map[string]func(*rapid.T){
			"alloc": func(t *rapid.T) {
				n := rapid.OneOf(rapid.Int64Range(0, 40), rapid.Int64Range(200, 900)).Draw(t, "pages")
				last := rapid.SampledFrom([]uint64{1<<64 - 1, 1<<32 - 1, 3<<20 - 1, 3<<20 - 2, 1<<20 - 1}).Draw(t, "last")
				big := rapid.Bool().Draw(t, "big")
				got, unreachable, err := m.alloc(n, last, big)
				if err != nil {
					if !errors.Is(err, syscall.ENOMEM) || unreachable != (reachable(last) < n) {
						t.Fatalf("%d pages to %#x: unreachable %v, %v", n, last, unreachable, err)
					}
					return
				}
				have := int64(0)
				for i, c := range got {
					for p := range uint64(1) << c.order {
						a := c.addr + p*PageSize
						if taken[a] || a+PageSize-1 > last {
							t.Fatalf("page %#x, given twice or beyond %#x", a, last)
						}
						taken[a] = true
					}
					have += 1 << c.order
					if have > n && !(big && i == len(got)-1) {
						t.Fatalf("%d pages for %d", have, n)
					}
				}
				if have < n {
					t.Fatalf("%d pages for %d", have, n)
				}
				total += have
				live = append(live, got)
			},
			"free": func(t *rapid.T) {
				if len(live) == 0 {
					t.Skip("none")
				}
				i := rapid.IntRange(0, len(live)-1).Draw(t, "which")
				m.free(live[i])
				for _, c := range live[i] {
					for p := range uint64(1) << c.order {
						delete(taken, c.addr+p*PageSize)
					}
					total -= 1 << c.order
				}
				live = slices.Delete(live, i, i+1)
			},
			"": func(t *rapid.T) {
				if m.used() != total || int64(len(taken)) != total {
					t.Fatalf("%d used, want %d", m.used(), total)
				}
			},
		})
		for _, c := range live {
			m.free(c)
		}
		got, _, err := m.alloc(11*blockPages, 1<<64-1, false)
		if err != nil || len(got) != 11 {
			t.Fatalf("not whole again: %d chunks, %v", len(got), err)
		}
	})
}

func TestPlacementIsLate(t *testing.T) {
	r := NewRegistry(Config{})
	b := create(t, r, "system", 3<<20)
	d := &device{name: "gpu0", limits: Limits{DMAMask: 64}}
	must(t, b.Attach(d))
	if b.SGTableOf() != nil || r.phys.used() != 0 {
		t.Fatal("placed before the first map")
	}
	sgt, err := b.Map(bounded(t), d, ToDevice)
	must(t, err)
	checkTable(t, sgt.Segments, sgt.Orig, d.limits)
	if len(sgt.Segments) < 2 || b.SGTableOf() != sgt || r.phys.used() != 3<<20/PageSize {
		t.Fatalf("%d segments", len(sgt.Segments))
	}
	if sgt.Segments[0].Addr < 4<<30 {
		t.Fatal("not above 4 GiB")
	}
	wantErrno(t, b.Resize(1), syscall.EBUSY)
	b.Unmap(d, sgt, ToDevice)
	again, err := b.Map(bounded(t), d, ToDevice) // it stays where it is
	must(t, err)
	if fmt.Sprint(again.Segments) != fmt.Sprint(sgt.Segments) {
		t.Fatal("moved for nothing")
	}
	b.Unmap(d, again, ToDevice)
	b.Detach(d)
	must(t, b.Resize(1))
	if r.phys.used() != 0 || b.SGTableOf() != nil {
		t.Fatal("a new size keeps the old place")
	}
}

func TestPlacementMeetsAll(t *testing.T) {
	r := NewRegistry(Config{})
	b := create(t, r, "system", 5<<20+4096*3)
	devs := []*device{
		{"any", Limits{}},
		{"low", Limits{DMAMask: 32}},
		{"short", Limits{DMAMask: 40, MaxSegmentSize: 256 << 10}},
		{"few", Limits{MaxSegments: 6}},
		{"cut", Limits{SegmentBoundary: 1<<19 - 1}},
	}
	for _, d := range devs {
		must(t, b.Attach(d))
		t.Cleanup(func() { b.Detach(d) })
	}
	for _, d := range devs { // the first one already places for all
		sgt, err := b.Map(bounded(t), d, ToDevice)
		must(t, err)
		t.Cleanup(func() { b.Unmap(d, sgt, ToDevice) })
		checkTable(t, sgt.Segments, sgt.Orig, d.limits)
		for _, s := range sgt.Segments {
			if s.Addr+uint64(s.Len) > 1<<32 {
				t.Fatalf("%s: %+v is out of reach of 32 bits", d.name, s)
			}
		}
		if m := d.limits.MaxSegments; m != 0 && uint64(len(sgt.Segments)) > m {
			t.Fatalf("%d segments", len(sgt.Segments))
		}
	}
}

// wantLimit fails unless err is EBUSY and names the device and the limit.
func wantLimit(t *testing.T, err error, device, limit string) {
	t.Helper()
	wantErrno(t, err, syscall.EBUSY)
	var e *LimitError
	if !errors.As(err, &e) || e.Device != device || e.Limit != limit {
		t.Fatalf("%v, want limit %s of %s", err, limit, device)
	}
	if s := err.Error(); !strings.Contains(s, device) || !strings.Contains(s, fmt.Sprint(limit, "=", e.Value)) {
		t.Fatalf("%q does not say it", s)
	}
}

func TestPlacementConflicts(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 1 << 20})
	ctx := bounded(t)
	for _, c := range []struct {
		exporter string
		size     int64
		limits   Limits
		limit    string // "": it works
	}{
		{"system", 1 << 20, Limits{MaxSegments: 1}, ""}, // one chunk of 1 MiB
		{"system", 12 << 10, Limits{MaxSegments: 1}, ""},
		{"system", 1<<20 + 1, Limits{MaxSegments: 1}, "max_segments"},
		{"coherent", 64 << 20, Limits{MaxSegments: 1}, "max_segments"},
		{"system", 64 << 20, Limits{MaxSegments: 64}, ""},
		{"system", 64 << 20, Limits{MaxSegments: 63}, "max_segments"},
		{"system", 1 << 20, Limits{MaxSegments: 1, MaxSegmentSize: 1 << 19}, "max_segment_size"},
		{"system", 1 << 20, Limits{MaxSegments: 1, SegmentBoundary: 1 << 19}, "segment_boundary"},
		{"system", 1 << 20, Limits{DMAMask: 20}, "dma_mask"},
		{"system", 1 << 20, Limits{DMAMask: 21}, ""},
		{"system", 2 << 20, Limits{DMAMask: 21}, "dma_mask"},
		{"contiguous", 1 << 20, Limits{MaxSegments: 1}, ""},
		{"contiguous", 1 << 19, Limits{DMAMask: 32}, ""},
		{"contiguous", 1 << 19, Limits{DMAMask: 31}, "dma_mask"},
		{"contiguous", 1 << 19, Limits{MaxSegments: 3, MaxSegmentSize: 1 << 17}, "max_segment_size"},
	} {
		t.Run(fmt.Sprintf("%s %d %+v", c.exporter, c.size, c.limits), func(t *testing.T) {
			b := create(t, r, c.exporter, c.size)
			d := &device{"gpu0", c.limits}
			must(t, b.Attach(d))
			defer b.Detach(d)
			sgt, err := b.Map(ctx, d, Bidirectional)
			if c.limit != "" {
				wantLimit(t, err, "gpu0", c.limit)
				if b.Mapped() != 0 {
					t.Fatal("counted after a refusal")
				}
				return
			}
			must(t, err)
			checkTable(t, sgt.Segments, sgt.Orig, c.limits)
			if c.limits.MaxSegments != 0 && uint64(len(sgt.Segments)) > c.limits.MaxSegments {
				t.Fatal(sgt.Segments)
			}
			b.Unmap(d, sgt, Bidirectional)
		})
	}
	if r.phys.used() != 0 {
		t.Fatalf("%d pages are still taken", r.phys.used())
	}
}

// TestPlacementMoves: a device that cannot reach the placement is refused while
// somebody has it mapped, and else the buffer moves, its contents kept.
func TestPlacementMoves(t *testing.T) {
	for _, exp := range []string{"system", "coherent", "noncoherent"} {
		t.Run(exp, func(t *testing.T) {
			r := NewRegistry(Config{})
			b := create(t, r, exp, 2<<20)
			data := fill(2<<20, 1)
			_, err := b.WritePages(data, 0)
			must(t, err)
			gpu, old := &device{"gpu0", Limits{}}, &device{"isa", Limits{DMAMask: 24}}
			must(t, b.Attach(gpu))
			sgt, err := b.Map(bounded(t), gpu, ToDevice)
			must(t, err)
			wantLimit(t, b.Attach(old), "isa", "dma_mask")
			if len(b.Attachments()) != 1 {
				t.Fatal("on the list after a refusal")
			}
			b.Unmap(gpu, sgt, ToDevice)
			must(t, b.Attach(old))
			moved, err := b.Map(bounded(t), old, ToDevice)
			must(t, err)
			for _, s := range moved.Segments {
				if s.Addr+uint64(s.Len) > 1<<24 {
					t.Fatalf("%+v is out of reach", s)
				}
			}
			if fmt.Sprint(moved.Segments) == fmt.Sprint(sgt.Segments) || r.phys.used() != 512 {
				t.Fatal("not moved, or both places are taken")
			}
			got := make([]byte, len(data))
			_, err = b.ReadPages(got, 0)
			must(t, err)
			wantBytes(t, "after the move", got, data)
			again, err := b.Map(bounded(t), gpu, ToDevice) // meets both now
			must(t, err)
			b.Unmap(gpu, again, ToDevice)
			b.Unmap(old, moved, ToDevice)
			b.Detach(old)
			b.Detach(gpu)
		})
	}
}

func TestContiguousMoves(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 1 << 20})
	pad := create(t, r, "contiguous", PageSize)
	b := create(t, r, "contiguous", 64<<10) // pages 1 to 16
	before := *storeOf(b)
	d := &device{"gpu0", Limits{MaxSegments: 1, SegmentBoundary: 64 << 10}}
	sgt := attached(t, b, d, Bidirectional)
	checkTable(t, sgt.Segments, sgt.Orig, d.limits)
	if len(sgt.Segments) != 1 || sgt.Segments[0].Addr == before.orig[0].Addr {
		t.Fatalf("%+v, was at %#x", sgt.Segments, before.orig[0].Addr)
	}
	wantLimit(t, b.Attach(&device{"isa", Limits{DMAMask: 24}}), "isa", "dma_mask")
	if _, free, _ := r.Carveout(); free != 1<<20-PageSize-64<<10 {
		t.Fatal(free)
	}
	_ = pad
}

// TestNoRoom: the addresses that a device reaches are finite.
func TestNoRoom(t *testing.T) {
	r := NewRegistry(Config{})
	d := &device{"isa", Limits{DMAMask: 24}} // 15 MiB
	b := create(t, r, "system", 10<<20)
	attached(t, b, d, ToDevice)
	c := create(t, r, "system", 6<<20)
	e := &device{"isa", Limits{DMAMask: 24}}
	must(t, c.Attach(e))
	defer c.Detach(e)
	_, err := c.Map(bounded(t), e, ToDevice)
	wantErrno(t, err, syscall.ENOMEM)
	if r.phys.used() != 10<<20/PageSize {
		t.Fatal("a refusal keeps pages")
	}
}

func TestMapEmpty(t *testing.T) {
	r := NewRegistry(Config{ContiguousSize: 1 << 20})
	for _, exp := range r.Names() {
		b := create(t, r, exp, 0)
		if sgt := attached(t, b, &device{"gpu0", Limits{MaxSegments: 1}}, ToDevice); len(sgt.Segments) != 0 {
			t.Fatalf("%s: %+v", exp, sgt)
		}
	}
}
