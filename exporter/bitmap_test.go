package exporter

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// modelRuns is the runs of a plain set.
func modelRuns(set map[int64]bool) (runs []Run) {
	for _, p := range slices.Sorted(maps.Keys(set)) {
		runs = addRun(runs, p, 1)
	}
	return runs
}

// TestBitmap compares the bitmap with a plain set over random steps.
func TestBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var m bitmap
		set := map[int64]bool{}
		// Near each other and far apart: around borders of words and of chunks.
		first := rapid.Custom(func(t *rapid.T) int64 {
			base := rapid.SampledFrom([]int64{0, 64, chunkPages, 3 * chunkPages, 70 * chunkPages}).Draw(t, "base")
			return max(0, base+rapid.Int64Range(-70, 140).Draw(t, "offset"))
		})
		length := rapid.OneOf(rapid.Int64Range(0, 5), rapid.Int64Range(0, 2*chunkPages))
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				f, n := first.Draw(t, "first"), length.Draw(t, "n")
				m.set(f, n)
				for p := f; p < f+n; p++ {
					set[p] = true
				}
			},
			"clear": func(t *rapid.T) {
				f, n := first.Draw(t, "first"), length.Draw(t, "n")
				m.clear(f, n)
				for p := f; p < f+n; p++ {
					delete(set, p)
				}
			},
			"truncate": func(t *rapid.T) {
				f := first.Draw(t, "first")
				m.clear(f, 1<<62-f)
				maps.DeleteFunc(set, func(p int64, _ bool) bool { return p >= f })
			},
			"take and put back": func(t *rapid.T) {
				limit := first.Draw(t, "limit")
				got := m.take()
				if fmt.Sprint(got) != fmt.Sprint(modelRuns(set)) {
					t.Fatalf("took %v, want %v", got, modelRuns(set))
				}
				if m.count() != 0 || m.runs() != nil || m.take() != nil {
					t.Fatal("not empty after take")
				}
				m.setRuns(got, limit)
				maps.DeleteFunc(set, func(p int64, _ bool) bool { return p >= limit })
			},
			"": func(t *rapid.T) {
				if m.count() != int64(len(set)) {
					t.Fatalf("%d in the set, want %d", m.count(), len(set))
				}
				want := modelRuns(set)
				if got := m.runs(); fmt.Sprint(got) != fmt.Sprint(want) || total(got) != m.count() {
					t.Fatalf("runs %v, want %v", got, want)
				}
				p := first.Draw(t, "probe")
				if m.has(p) != set[p] {
					t.Fatalf("has(%d) is %v", p, m.has(p))
				}
				next := p
				for next < p+200 && set[next] {
					next++
				}
				if got := m.nextClear(p, p+200); got != next {
					t.Fatalf("nextClear(%d) %d, want %d", p, got, next)
				}
			},
		})
	})
}

// TestBitmapCost shows that a transition costs what is set, not what could be: the
// words looked at are few, and an untouched bitmap has none.
func TestBitmapCost(t *testing.T) {
	const gib = 1 << 30 / PageSize
	var m bitmap
	m.set(gib-1, 1)
	made := 0
	for _, c := range m.chunks {
		if c != nil {
			made++
		}
	}
	if made != 1 || len(m.top) != 1 {
		t.Fatalf("one page of a GiB takes %d chunks and %d words of top", made, len(m.top))
	}
	if allocs := testing.AllocsPerRun(100, func() {
		m.set(gib-1, 1)
		if r := m.take(); len(r) != 1 {
			t.Fatal(r)
		}
	}); allocs > 1 { // the runs
		t.Fatalf("%v allocations a transition", allocs)
	}
}

func BenchmarkTransition(b *testing.B) {
	for _, size := range []int64{1 << 20, 1 << 30} {
		b.Run(fmt.Sprintf("%dMiB", size>>20), func(b *testing.B) {
			var d domain
			last := size/PageSize - 1
			for b.Loop() {
				d.bring(last, 1)
				if len(d.take()) != 1 {
					b.Fatal("lost a page")
				}
			}
		})
	}
}
