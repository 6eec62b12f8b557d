package poll_test

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"github.com/dmabuffs/dmabuffs/poll"
)

func TestArray(t *testing.T) {
	all := func(fs ...*poll.Fence) *poll.Fence { return poll.NewArray(fs, false) }
	first := func(fs ...*poll.Fence) *poll.Fence { return poll.NewArray(fs, true) }
	for _, c := range []struct {
		name string
		do   func(t *testing.T, a, b *poll.Fence)
	}{
		{"all", func(t *testing.T, a, b *poll.Fence) {
			arr := all(a, b)
			signal(t, b)
			eq(t, "after one", arr.Status(), 0)
			eq(t, "timestamp after one", arr.Timestamp(), 0)
			signal(t, a)
			eq(t, "after both", arr.Status(), 1)
			eq(t, "timestamp", arr.Timestamp(), a.Timestamp())
		}},
		{"any", func(t *testing.T, a, b *poll.Fence) {
			arr := first(a, b)
			eq(t, "before", arr.Signaled(), false)
			signal(t, b)
			eq(t, "after one", arr.Signaled(), true)
			eq(t, "timestamp", arr.Timestamp(), b.Timestamp())
		}},
		{"the error is of the member that failed first", func(t *testing.T, a, b *poll.Fence) {
			c := leaf()
			arr := all(a, b, c)
			signal(t, c)
			a.SetError(syscall.EIO)
			b.SetError(syscall.ENODATA)
			signal(t, b)
			for b.Timestamp() >= monotonic(t) { // a must fail later
			}
			signal(t, a)
			eq(t, "Status", arr.Status(), -int(syscall.ENODATA))
		}},
		{"any has the error of the first, and keeps it", func(t *testing.T, a, b *poll.Fence) {
			b.SetError(syscall.EIO)
			arr := first(a, b)
			signal(t, b)
			eq(t, "Status", arr.Status(), -int(syscall.EIO))
			signal(t, a)
			eq(t, "Status later", arr.Status(), -int(syscall.EIO))
		}},
		{"any, asked late, still has the first's", func(t *testing.T, a, b *poll.Fence) {
			arr := first(a, b)
			b.SetError(syscall.EIO)
			signal(t, b)
			for b.Timestamp() >= monotonic(t) {
			}
			signal(t, a)
			eq(t, "Status", arr.Status(), -int(syscall.EIO))
			eq(t, "Timestamp", arr.Timestamp(), b.Timestamp())
		}},
		{"callbacks", func(t *testing.T, a, b *poll.Fence) {
			ran, arr := 0, all(a, b)
			ok(t, arr.AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })))
			signal(t, a)
			eq(t, "calls after one", ran, 0)
			signal(t, b)
			eq(t, "calls after both", ran, 1)
			if err := arr.AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })); !errors.Is(err, syscall.ENOENT) {
				t.Fatalf("AddCallback: %v", err)
			}
		}},
		{"any runs callbacks once", func(t *testing.T, a, b *poll.Fence) {
			ran, arr := 0, first(a, b)
			ok(t, arr.AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })))
			signal(t, b)
			signal(t, a)
			eq(t, "calls", ran, 1)
		}},
		{"asked before it was told, tells all the same", func(t *testing.T, a, b *poll.Fence) {
			// The first callback of b asks arr before b has told arr.
			ran, arr := 0, all(a, b)
			ok(t, b.AddCallback(poll.NewCallback(func(*poll.Fence) {
				eq(t, "arr in b's callback", arr.Signaled(), true)
				eq(t, "calls yet", ran, 0)
			})))
			signal(t, a)
			ok(t, arr.AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })))
			signal(t, b)
			eq(t, "calls", ran, 1)
		}},
		{"callback removed and added again", func(t *testing.T, a, b *poll.Fence) {
			ran, arr := 0, all(a, b)
			cb := poll.NewCallback(func(*poll.Fence) { ran++ })
			ok(t, arr.AddCallback(cb))
			eq(t, "RemoveCallback", arr.RemoveCallback(cb), true)
			signal(t, a)
			ok(t, arr.AddCallback(cb))
			signal(t, b)
			eq(t, "calls", ran, 1)
		}},
		{"the same fence twice", func(t *testing.T, a, _ *poll.Fence) {
			ran := 0
			for _, arr := range []*poll.Fence{all(a, a), first(a, a)} {
				ok(t, arr.AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })))
			}
			signal(t, a)
			eq(t, "calls", ran, 2)
		}},
		{"arrays of arrays", func(t *testing.T, a, b *poll.Fence) {
			ran, arr := 0, first(all(a, b), all(b, leaf()))
			ok(t, arr.AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })))
			signal(t, b)
			eq(t, "calls", ran, 0)
			signal(t, a)
			eq(t, "calls", ran, 1)
		}},
		{"of nothing", func(t *testing.T, _, _ *poll.Fence) {
			eq(t, "all", all().Status(), 1)
			eq(t, "any", first().Status(), 1)
			if all().AddCallback(poll.NewCallback(func(*poll.Fence) {})) == nil {
				t.Error("callback added")
			}
		}},
		{"its parts signal it, nobody else", func(t *testing.T, a, b *poll.Fence) {
			arr := all(a, b)
			if err := arr.Signal(); !errors.Is(err, syscall.EINVAL) {
				t.Fatalf("Signal: %v", err)
			}
			arr.SetError(syscall.EIO)
			signal(t, a)
			signal(t, b)
			eq(t, "Status", arr.Status(), 1)
		}},
		{"names and numbers", func(t *testing.T, a, b *poll.Fence) {
			arr, arr2 := all(a, b), all(a, b)
			eq(t, "names", arr.Driver()+" "+arr.TimelineName(), "dma_fence_array unbound")
			eq(t, "seqno", arr.Seqno(), 1)
			if arr.Context() == arr2.Context() {
				t.Error("two arrays of one context")
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) { c.do(t, leaf(), leaf()) })
	}
}

// makeChain makes a chain with nodes step, 2*step, ... n*step.
func makeChain(n int, step uint64) (nodes, fences []*poll.Fence) {
	var head *poll.Fence
	for i := range n {
		f := leaf()
		head = poll.NewChain(head, f, uint64(i+1)*step)
		nodes, fences = append(nodes, head), append(fences, f)
	}
	return nodes, fences
}

func TestChain(t *testing.T) {
	find := func(t *testing.T, head *poll.Fence, seqno uint64) *poll.Fence {
		t.Helper()
		f, err := poll.FindSeqno(head, seqno)
		ok(t, err)
		return f
	}
	t.Run("B125 find_seqno", func(t *testing.T) {
		nodes, _ := makeChain(64, 1)
		head := nodes[63]
		for i, n := range nodes {
			eq(t, "node", find(t, head, uint64(i+1)), n)
		}
		eq(t, "node of 0", find(t, head, 0), head)
		for what, err := range map[string]error{
			"beyond the head": second(poll.FindSeqno(head, 65)),
			"no chain":        second(poll.FindSeqno(leaf(), 1)),
			"nil":             second(poll.FindSeqno(nil, 1)),
		} {
			if !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
	t.Run("B126 gaps give the next node", func(t *testing.T) {
		nodes, _ := makeChain(32, 2)
		for i, n := range nodes {
			eq(t, "odd", find(t, nodes[31], uint64(2*i+1)), n)
			eq(t, "even", find(t, nodes[31], uint64(2*i+2)), n)
		}
	})
	for _, watched := range []bool{false, true} {
		name := "B127 done when all before are"
		if watched {
			name += ", watched"
		}
		t.Run(name, func(t *testing.T) {
			nodes, fences := makeChain(64, 1)
			ran := 0
			if watched {
				ok(t, nodes[63].AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })))
			}
			signal(t, fences[63])
			eq(t, "after the last fence", nodes[63].Signaled(), false)
			for i := 62; i > 0; i-- {
				signal(t, fences[i])
				eq(t, "with one before pending", nodes[63].Signaled(), false)
			}
			eq(t, "calls", ran, 0)
			signal(t, fences[0])
			eq(t, "at the end", nodes[63].Status(), 1)
			eq(t, "timestamp", nodes[63].Timestamp(), fences[0].Timestamp())
			if watched {
				eq(t, "calls", ran, 1)
			}
		})
	}
	t.Run("point 2 done before point 1", func(t *testing.T) {
		nodes, fences := makeChain(3, 1)
		signal(t, fences[1])
		eq(t, "node for 2", find(t, nodes[2], 2), nodes[0])
		same(t, "Unwrap", poll.Unwrap(nodes[2]), fences[2], fences[0])
	})
	t.Run("a point passed is no fence", func(t *testing.T) {
		nodes, fences := makeChain(3, 1)
		signal(t, fences[0])
		signal(t, fences[1])
		eq(t, "node for 1", find(t, nodes[2], 1), nil)
	})
	t.Run("contexts", func(t *testing.T) {
		a := poll.NewChain(nil, leaf(), 5)
		b := poll.NewChain(a, leaf(), 9)
		eq(t, "a later seqno's", b.Context(), a.Context())
		c := poll.NewChain(b, leaf(), 7)
		if c.Context() == b.Context() {
			t.Error("an earlier seqno continues the context")
		}
		eq(t, "its seqno", c.Seqno(), 9)
		eq(t, "node for 6 stops where the context begins", find(t, c, 6), c)
	})
	t.Run("on a fence that is no chain", func(t *testing.T) {
		f, g := leaf(), leaf()
		n := poll.NewChain(f, g, 4)
		same(t, "Unwrap", poll.Unwrap(n), g, f)
		eq(t, "node for 2", find(t, n, 2), n)
		ran := 0
		ok(t, n.AddCallback(poll.NewCallback(func(*poll.Fence) { ran++ })))
		signal(t, g)
		eq(t, "with prev pending", n.Signaled(), false)
		signal(t, f)
		eq(t, "calls", ran, 1)
	})
	t.Run("errors are not the chain's", func(t *testing.T) {
		nodes, fences := makeChain(2, 1)
		fences[0].SetError(syscall.EIO)
		signal(t, fences[0])
		signal(t, fences[1])
		eq(t, "Status", nodes[1].Status(), 1)
	})
	t.Run("long", func(t *testing.T) {
		nodes, fences := makeChain(20000, 1)
		head := nodes[len(nodes)-1]
		done := make(chan struct{})
		ok(t, head.AddCallback(poll.NewCallback(func(*poll.Fence) { close(done) })))
		nodes = nil
		for _, f := range slices.Backward(fences) {
			signal(t, f)
		}
		<-done
	})
}

func second[A, B any](_ A, b B) B { return b }

func TestMerge(t *testing.T) {
	tl, tl2 := poll.NewSWSync("a"), poll.NewSWSync("b")
	for _, c := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"B129 one timeline: the latest", func(t *testing.T) {
			f3 := point(t, tl, 3)
			eq(t, "Merge", poll.Merge(point(t, tl, 1), f3, point(t, tl, 2)), f3)
		}},
		{"B131 with itself", func(t *testing.T) {
			f := leaf()
			eq(t, "Merge", poll.Merge(f, f), f)
		}},
		{"B135 both signaled: a stub with the later time", func(t *testing.T) {
			a, b := leaf(), leaf()
			signal(t, b)
			signal(t, a)
			m := poll.Merge(a, b)
			eq(t, "Status", m.Status(), 1)
			eq(t, "Timestamp", m.Timestamp(), a.Timestamp())
			eq(t, "Driver", m.Driver(), "stub")
			eq(t, "fences", len(poll.Unwrap(m)), 1)
		}},
		{"B136 errors are lost", func(t *testing.T) {
			a, b := leaf(), leaf()
			for _, f := range []*poll.Fence{a, b} {
				f.SetError(syscall.EIO)
				signal(t, f)
			}
			eq(t, "Status", poll.Merge(a, b).Status(), 1)
		}},
		{"B145 a point made twice", func(t *testing.T) {
			a, b := point(t, tl, 9), point(t, tl, 9)
			eq(t, "points", a, b)
			eq(t, "Merge", poll.Merge(a, b), a)
		}},
		{"contexts in order, signaled left out", func(t *testing.T) {
			a, b, done := point(t, tl, 5), point(t, tl2, 5), leaf()
			signal(t, done)
			m := poll.Merge(b, done, a)
			same(t, "Unwrap", poll.Unwrap(m), a, b)
			eq(t, "one left", poll.Merge(done, b), b)
		}},
		{"containers are unwrapped", func(t *testing.T) {
			a, b, c := leaf(), leaf(), leaf()
			m := poll.Merge(poll.NewChain(poll.NewChain(nil, c, 1), b, 2), poll.NewArray([]*poll.Fence{a, b}, true), poll.Merge(b, a))
			same(t, "Unwrap", poll.Unwrap(m), a, b, c)
		}},
		{"a merge of merges stays small", func(t *testing.T) {
			m := poll.Merge(point(t, tl, 5), point(t, tl2, 5))
			for range 1000 {
				m = poll.Merge(m, m)
			}
			eq(t, "fences", len(poll.Unwrap(m)), 2)
		}},
		{"seqnos that wrap", func(t *testing.T) {
			w := poll.NewSWSync("w")
			ok(t, w.Set(0x7fffffff))
			ok(t, w.Set(0xfffffff0))
			before, after := point(t, w, 0xfffffff8), point(t, w, 8)
			eq(t, "Merge", poll.Merge(after, before), after)
		}},
		{"of nothing", func(t *testing.T) {
			eq(t, "Status", poll.Merge().Status(), 1)
			eq(t, "Unwrap", len(poll.Unwrap(nil)), 0)
		}},
	} {
		t.Run(c.name, c.do)
	}
}
