package attach

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dmabuffs/dmabuffs/exporter"
)

func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func create(t *testing.T, size int64) *exporter.Buffer {
	t.Helper()
	e, err := exporter.NewRegistry(exporter.Config{}).Lookup("system")
	must(t, err)
	b, err := e.Create(size)
	must(t, err)
	t.Cleanup(b.Put)
	return b
}

func wantPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Fatalf("%s did not panic", what)
		}
	}()
	f()
}

func TestLimits(t *testing.T) {
	d := NewDevice("gpu0")
	for name, want := range map[string]uint64{"dma_mask": 64, "max_segments": 0, "max_segment_size": 0, "segment_boundary": 0} {
		if got, err := d.Limit(name); got != want || err != nil {
			t.Errorf("%s is %d, %v by default", name, got, err)
		}
	}
	for _, c := range []struct {
		name, value string
		want        uint64
		errno       syscall.Errno
	}{
		{"dma_mask", "32", 32, 0}, {"dma_mask", "0x20\n", 32, 0}, {"dma_mask", " 1 ", 1, 0}, {"dma_mask", "64", 64, 0}, {"dma_mask", "+5", 5, 0},
		{"dma_mask", "0", 0, syscall.ERANGE}, {"dma_mask", "65", 0, syscall.ERANGE}, {"dma_mask", "-1", 0, syscall.ERANGE},
		{"dma_mask", "", 0, syscall.EINVAL}, {"dma_mask", "x", 0, syscall.EINVAL}, {"dma_mask", "3 2", 0, syscall.EINVAL},
		{"dma_mask", "0x", 0, syscall.EINVAL}, {"dma_mask", "1_0", 0, syscall.EINVAL}, {"dma_mask", "32.0", 0, syscall.EINVAL}, {"dma_mask", "--1", 0, syscall.EINVAL},
		{"dma_mask", "-", 0, syscall.EINVAL}, {"dma_mask", "99999999999999999999999", 0, syscall.ERANGE},
		{"max_segments", "0", 0, 0}, {"max_segments", "1", 1, 0}, {"max_segments", "4294967295", 1<<32 - 1, 0}, {"max_segments", "4294967296", 0, syscall.ERANGE},
		{"max_segments", "-0", 0, 0},
		{"max_segment_size", "0", 0, 0}, {"max_segment_size", "4096", 4096, 0}, {"max_segment_size", "5000", 5000, 0},
		{"max_segment_size", "4095", 0, syscall.ERANGE}, {"max_segment_size", "0x8000000000000000", 0, syscall.ERANGE},
		{"segment_boundary", "0", 0, 0}, {"segment_boundary", "4096", 4096, 0}, {"segment_boundary", "4095", 4095, 0},
		{"segment_boundary", "0xffffffff", 1<<32 - 1, 0}, {"segment_boundary", "18446744073709551615", 1<<64 - 1, 0},
		{"segment_boundary", "0x8000000000000000", 1 << 63, 0},
		{"segment_boundary", "2048", 0, syscall.ERANGE}, {"segment_boundary", "2047", 0, syscall.ERANGE}, {"segment_boundary", "12288", 0, syscall.ERANGE},
		{"segment_boundary", "1", 0, syscall.ERANGE},
		{"speed", "1", 0, syscall.ENOENT},
	} {
		before, _ := d.Limit(c.name)
		err := d.SetLimit(c.name, c.value)
		got, _ := d.Limit(c.name)
		switch {
		case c.errno == 0 && (err != nil || got != c.want):
			t.Errorf("%s=%q: %d, %v", c.name, c.value, got, err)
		case c.errno != 0 && (!errors.Is(err, c.errno) || got != before):
			t.Errorf("%s=%q: %d, %v, want %v and no change", c.name, c.value, got, err, c.errno)
		}
	}
	_, err := d.Limit("speed")
	wantErrno(t, err, syscall.ENOENT)
	if got := fmt.Sprint(LimitNames()); got != "[dma_mask max_segments max_segment_size segment_boundary]" {
		t.Fatal(got)
	}
	must(t, d.SetLimit("dma_mask", "40"))
	must(t, d.SetLimit("max_segments", "7"))
	must(t, d.SetLimit("max_segment_size", "8192"))
	must(t, d.SetLimit("segment_boundary", "65535"))
	if got := d.Limits(); got != (exporter.Limits{DMAMask: 40, MaxSegments: 7, MaxSegmentSize: 8192, SegmentBoundary: 65535}) {
		t.Fatalf("%+v", got)
	}
}

func TestAttach(t *testing.T) {
	b := create(t, 3*exporter.PageSize)
	d := NewDevice("gpu0")
	_, err := Attach(nil, d)
	wantErrno(t, err, syscall.EINVAL)
	_, err = Attach(b, nil) // B21
	wantErrno(t, err, syscall.EINVAL)
	a, err := Attach(b, d)
	must(t, err)
	a.Priv = 5
	a.SetOwner(7, "cat")
	if pid, comm := a.Owner(); pid != 7 || comm != "cat" || a.Dmabuf() != b || a.Dev() != d || a.Name() != "gpu0" || a.Mapped() || a.Direction() != exporter.None {
		t.Fatalf("%+v", a)
	}
	a2, err := Attach(b, d) // one device, two attachments
	must(t, err)
	if got := d.Attachments(); len(got) != 2 || got[0] != a || got[1] != a2 || d.Attached() != 2 || a2.Node() <= a.Node() {
		t.Fatal("not both on the device's list")
	}
	if got := b.Attachments(); len(got) != 2 || got[0] != a {
		t.Fatal("not both on the buffer's list")
	}
	wantErrno(t, d.SetLimit("max_segments", "3"), syscall.EBUSY)
	wantErrno(t, d.SetLimit("max_segments", "three"), syscall.EINVAL)
	wantErrno(t, d.Close(), syscall.EBUSY)
	a2.Detach()
	wantErrno(t, d.Close(), syscall.EBUSY)
	a.Detach()
	wantPanic(t, "detaching twice", a.Detach)
	must(t, d.SetLimit("max_segments", "3"))
	must(t, d.Close())
	_, err = Attach(b, d)
	wantErrno(t, err, syscall.ENODEV)
	if d.Attached() != 0 || len(b.Attachments()) != 0 {
		t.Fatal("left behind")
	}
}

func TestAttachRefused(t *testing.T) { // B19
	ctx := bounded(t)
	b := create(t, 1<<20)
	gpu, isa := NewDevice("gpu0"), NewDevice("isa0")
	must(t, isa.SetLimit("dma_mask", "24"))
	a, err := Attach(b, gpu)
	must(t, err)
	sgt, err := a.Map(ctx, exporter.ToDevice)
	must(t, err)
	_, err = Attach(b, isa)
	wantErrno(t, err, syscall.EBUSY)
	var limit *exporter.LimitError
	if !errors.As(err, &limit) || limit.Device != "isa0" || limit.Limit != "dma_mask" {
		t.Fatalf("%v", err)
	}
	if isa.Attached() != 0 || len(b.Attachments()) != 1 {
		t.Fatal("on a list after a refusal")
	}
	must(t, isa.SetLimit("dma_mask", "64")) // not busy
	a.Unmap(sgt, exporter.ToDevice)
	a.Detach()
}

func TestMapping(t *testing.T) { // B26..B30
	ctx := bounded(t)
	b := create(t, 3<<20)
	d := NewDevice("gpu0")
	must(t, d.SetLimit("max_segment_size", "65536"))
	a, err := Attach(b, d)
	must(t, err)
	a2, err := Attach(b, d)
	must(t, err)
	wantErrno(t, a.Begin(ctx, exporter.ToDevice), syscall.EINVAL) // not mapped
	_, err = a.Map(ctx, exporter.None)
	wantErrno(t, err, syscall.EINVAL)
	sgt, err := a.Map(ctx, exporter.ToDevice)
	must(t, err)
	if !a.Mapped() || a2.Mapped() || a.Direction() != exporter.ToDevice || len(sgt.Segments) != 48 {
		t.Fatalf("mapped %v, %v, %d segments", a.Mapped(), a.Direction(), len(sgt.Segments))
	}
	_, err = a.Map(ctx, exporter.FromDevice)
	wantErrno(t, err, syscall.EBUSY)
	again, err := a.Map(ctx, exporter.ToDevice)
	must(t, err)
	other, err := a2.Map(ctx, exporter.FromDevice)
	must(t, err)
	if again == sgt || other == sgt {
		t.Fatal("tables are not independent")
	}
	must(t, a.Begin(ctx, exporter.ToDevice))
	must(t, a.End(ctx, exporter.ToDevice))
	wantPanic(t, "detaching while mapped", a.Detach)
	a.Unmap(again, exporter.ToDevice)
	a.Unmap(sgt, exporter.ToDevice)
	sgt, err = a.Map(ctx, exporter.FromDevice)
	must(t, err)
	a.Unmap(sgt, exporter.FromDevice)
	a2.Unmap(other, exporter.FromDevice)
	a.Detach()
	a2.Detach()
	must(t, d.Close())

	ended, cancel := context.WithCancel(ctx)
	cancel()
	e := NewDevice("gpu1")
	a, err = Attach(b, e)
	must(t, err)
	_, err = a.Map(ended, exporter.ToDevice)
	wantErrno(t, err, syscall.EINTR)
	a.Detach()
}

func TestAttachCPU(t *testing.T) {
	b := create(t, exporter.PageSize)
	a := AttachCPU(b, 42, "cat")
	if pid, comm := a.Owner(); pid != 42 || comm != "cat" || a.Dev() != nil || a.Name() != "cpu:42" || a.Limits() != (exporter.Limits{}) {
		t.Fatalf("%+v", a)
	}
	if len(b.Attachments()) != 1 || len(b.Devices()) != 0 {
		t.Fatal("lists")
	}
	_, err := a.Map(bounded(t), exporter.ToDevice)
	wantErrno(t, err, syscall.EINVAL)
	a.Detach()
	if len(b.Attachments()) != 0 {
		t.Fatal("still on the list")
	}
}

// TestCrowd attaches, maps and detaches two devices from many goroutines, and closes them at last.
func TestCrowd(t *testing.T) {
	ctx := bounded(t)
	b := create(t, 1<<20)
	devs := []*Device{NewDevice("gpu0"), NewDevice("gpu1")}
	must(t, devs[1].SetLimit("dma_mask", "32"))
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			d := devs[i%2]
			for range 100 {
				a, err := Attach(b, d)
				if errors.Is(err, syscall.EBUSY) {
					continue // the other one has it mapped above 4 GiB
				}
				if err != nil {
					t.Error(err)
					return
				}
				sgt, err := a.Map(ctx, exporter.Bidirectional)
				if err == nil {
					if err := errors.Join(a.Begin(ctx, exporter.Bidirectional), a.End(ctx, exporter.Bidirectional)); err != nil {
						t.Error(err)
					}
					a.Unmap(sgt, exporter.Bidirectional)
				} else if !errors.Is(err, syscall.EBUSY) {
					t.Error(err)
				}
				a.Detach()
				if err := d.SetLimit("max_segments", "0"); err != nil && !errors.Is(err, syscall.EBUSY) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, d := range devs {
		must(t, d.Close())
	}
}
