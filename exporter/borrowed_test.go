package exporter

import (
	"context"
	"testing"

	"golang.org/x/sys/unix"
)

// A memfd whose buffer is mapped through the page cache shows the same bytes
// between begin and end, both ways; outside of them nothing is written back.
func TestBorrowedMemory(t *testing.T) {
	ctx := context.Background()
	r := NewRegistry(Config{Quota: NewQuota(1<<20, 0)})
	f := memfd(t, 2*PageSize, unix.F_SEAL_SHRINK)
	whole, err := r.CreateFromMemfd(Part{f, 0, 2 * PageSize})
	must(t, err)
	whole.NoPassthrough()
	part, err := r.CreateFromMemfd(Part{f, PageSize, PageSize})
	must(t, err)
	for _, c := range []struct {
		b   *Buffer
		off int64 // of the buffer in the memfd
	}{{whole, 0}, {part, PageSize}} {
		cache := mapped(c.b)
		for round := byte(1); round < 3; round++ {
			_, err := f.WriteAt([]byte{round}, c.off+5)
			must(t, err)
			must(t, c.b.BeginCPUAccess(ctx, Bidirectional))
			got, err := cache.load(5)
			wantByte(t, "the mapping's", got, err, round)
			must(t, cache.store(6, 10+round))
			must(t, c.b.EndCPUAccess(ctx, Bidirectional))
			var p [1]byte
			_, err = f.ReadAt(p[:], c.off+6)
			wantByte(t, "the memfd's", p[0], err, 10+round)
		}
		cache.shots()
		must(t, c.b.EndCPUAccess(ctx, FromDevice))
		if _, calls := cache.shots(); calls != 0 {
			t.Fatal("who only read has nothing to write back")
		}
		c.b.Put()
	}
	own, err := r.Lookup("system")
	must(t, err)
	b, err := own.Create(PageSize)
	must(t, err)
	cache := mapped(b)
	must(t, cache.store(1, 1))
	cache.shots()
	must(t, b.BeginCPUAccess(ctx, Bidirectional))
	must(t, b.EndCPUAccess(ctx, Bidirectional))
	if _, calls := cache.shots(); calls != 0 {
		t.Fatal("a bracket on memory of our own shot")
	}
	b.Put()
}
