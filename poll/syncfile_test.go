package poll_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dmabuffs/dmabuffs/poll"
)

func TestSyncFile(t *testing.T) {
	t.Run("B147 never ready for writing", func(t *testing.T) {
		f := leaf()
		s := poll.NewSyncFile("x", f)
		eq(t, "pending", s.Ready(both), 0)
		signal(t, f)
		eq(t, "signaled", s.Ready(both), poll.In)
		eq(t, "OUT alone", s.Ready(poll.Out), 0)
	})
	t.Run("B134 names", func(t *testing.T) {
		long := strings.Repeat("n", 32)
		eq(t, "cut", poll.NewSyncFile(long, leaf()).Name(), long[:31])
		tl := poll.NewSWSync("prog")
		f := point(t, tl, 7)
		eq(t, "B152 made up", poll.NewSyncFile("", f).Name(), fmt.Sprintf("sw_sync-prog%d-7", tl.Context()))
		wide := poll.NewFence(long, "t", 1, 1)
		eq(t, "made up and cut", poll.NewSyncFile("", wide).Name(), long[:31])
	})
	t.Run("B138 info", func(t *testing.T) {
		a, b := poll.NewSWSync("a"), poll.NewSWSync("b")
		fa, fb := point(t, a, 1), point(t, b, 1)
		s := poll.NewSyncFile("x", fa).Merge("m", poll.NewSyncFile("y", fb))
		info := s.Info()
		eq(t, "Name", info.Name, "m")
		eq(t, "fences", len(info.Fences), 2)
		eq(t, "Status", info.Status, 0)
		eq(t, "first", info.Fences[0], poll.FenceInfo{Timeline: "a", Driver: "sw_sync"})
		b.End()
		info = s.Info()
		eq(t, "Status with the first pending", info.Status, 0)
		eq(t, "second", info.Fences[1], poll.FenceInfo{Timeline: "b", Driver: "sw_sync",
			Status: -int(syscall.ENOENT), Timestamp: fb.Timestamp()})
		ok(t, a.Advance(1))
		info = s.Info()
		eq(t, "Status: the first that is not 1", info.Status, -int(syscall.ENOENT))
		eq(t, "Aggregate", info.Aggregate, -int(syscall.ENOENT))
		eq(t, "inputs unchanged", len(poll.NewSyncFile("x", fa).Info().Fences), 1)
	})
	t.Run("B131 merged with itself", func(t *testing.T) {
		f := leaf()
		s := poll.NewSyncFile("x", f)
		eq(t, "fence", s.Merge("", s).Fence(), f)
	})
	t.Run("watch", func(t *testing.T) {
		a, b := leaf(), leaf()
		s := poll.NewSyncFile("x", poll.Merge(a, b))
		n, gone := 0, 0
		unwatch := s.Watch(func() { n++ })
		s.Watch(func() { gone++ })()
		signal(t, b)
		eq(t, "told after one", n, 0)
		signal(t, a)
		eq(t, "told", n, 1)
		eq(t, "told after unwatch", gone, 0)
		unwatch()
		s.Watch(func() { n++ })()
		eq(t, "told on a signaled one", n, 1)
	})
}

// The package stands at the bottom: it imports the standard library alone.
func TestImports(t *testing.T) {
	files, err := filepath.Glob("*.go")
	ok(t, err)
	n := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		n++
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		ok(t, err)
		for _, imp := range f.Imports {
			path, err := strconv.Unquote(imp.Path.Value)
			ok(t, err)
			if root, _, _ := strings.Cut(path, "/"); strings.Contains(root, ".") {
				t.Errorf("%s imports %s", name, path)
			}
			if path == "unsafe" && !strings.HasSuffix(name, "_unsafe.go") {
				t.Errorf("%s imports unsafe", name)
			}
		}
	}
	if n == 0 {
		t.Fatal("no files")
	}
}
