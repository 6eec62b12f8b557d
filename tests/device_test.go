package tests

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Devices: their limits, where buffers are placed for them, their views, and what
// becomes of the CPUs' mappings while they work.

// Flags of DMA_BUF_IOCTL_SYNC as dbclient takes them.
const (
	startR  = 1
	startW  = 2
	startRW = 3
	endR    = 5
	endW    = 6
	endRW   = 7
)

// newDevice registers a device. limits are NAME=VALUE.
func newDevice(t *testing.T, mnt, name string, limits ...string) {
	t.Helper()
	script := "mkdir devices/" + name
	for _, l := range limits {
		k, v, _ := strings.Cut(l, "=")
		script += fmt.Sprintf("; echo %s > devices/%s/%s", v, name, k)
	}
	sh(t, mnt, script)
}

// segment is a row of sg_table: a page, a DMA address, bytes.
type segment struct{ page, addr, n uint64 }

// sgTable reads a buffer's table, and checks that it is the whole buffer, once, in order.
func sgTable(t *testing.T, mnt, buffer string) (table []segment) {
	t.Helper()
	var next uint64
	for _, row := range rows(t, mnt+"/state/"+buffer+"/sg_table") {
		var s segment
		if n, err := fmt.Sscanf(strings.Join(row, " "), "%d 0x%x %d", &s.page, &s.addr, &s.n); n != 3 || err != nil || len(row) != 3 {
			t.Fatalf("sg_table has the row %q", row)
		}
		if s.page*4096 != next || s.n == 0 || s.addr%4096 != 0 {
			t.Fatalf("segment %+v does not go on at byte %d", s, next)
		}
		next += s.n
		table = append(table, s)
	}
	if size := strings.TrimSpace(cat(t, mnt+"/state/"+buffer+"/size")); len(table) > 0 && size != fmt.Sprint((next)) {
		t.Fatalf("the segments have %d bytes, the buffer %s", next, size)
	}
	return table
}

// dma has a device read the whole buffer once, so that it is mapped and unmapped.
func dma(t *testing.T, mnt, device, buffer string) {
	t.Helper()
	sh(t, mnt, fmt.Sprintf("dd if=devices/%s/buffers/%s of=/dev/null bs=1M status=none", device, buffer))
}

// domain is the first line of state/<buffer>/domain.
func domain(t *testing.T, mnt, buffer string) string {
	t.Helper()
	first, _, _ := strings.Cut(cat(t, mnt+"/state/"+buffer+"/domain"), "\n")
	return first
}

// said waits for a line of the daemon's log that has all of the words.
func (d *daemon) said(words ...string) {
	d.t.Helper()
	waitUntil(d.t, fmt.Sprintf("the log has a line with %q", words), func() bool {
		for line := range strings.Lines(d.log.String()) {
			if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
				return true
			}
		}
		return false
	})
}

func TestDeviceLimits(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newDevice(t, mnt, "gpu0")
	if got := sh(t, mnt, "ls devices/gpu0 | tr '\\n' ' '"); got != "attachments buffers dma_mask max_segment_size max_segments segment_boundary " {
		t.Errorf("a device has %s", got)
	}
	value := func(limit string) string {
		t.Helper()
		return strings.TrimSpace(cat(t, mnt+"/devices/gpu0/"+limit))
	}
	for limit, want := range map[string]string{"dma_mask": "64", "max_segments": "0", "max_segment_size": "0", "segment_boundary": "0"} {
		if got := value(limit); got != want {
			t.Errorf("%s is %q in the beginning, want %s", limit, got, want)
		}
	}
	const (
		einval = "Invalid argument"
		erange = "Numerical result out of range"
	)
	for _, c := range []struct{ limit, text, want, err string }{
		{"dma_mask", "32", "32", ""}, {"dma_mask", "0x28", "40", ""}, {"dma_mask", " 24 ", "24", ""}, {"dma_mask", "1", "1", ""}, {"dma_mask", "64", "64", ""},
		{"dma_mask", "0", "", erange}, {"dma_mask", "65", "", erange}, {"dma_mask", "-1", "", erange}, {"dma_mask", "18446744073709551616", "", erange},
		{"dma_mask", "", "", einval}, {"dma_mask", "many", "", einval}, {"dma_mask", "3.5", "", einval}, {"dma_mask", "1e3", "", einval}, {"dma_mask", "3 2", "", einval}, {"dma_mask", "0x", "", einval},
		{"max_segments", "1", "1", ""}, {"max_segments", "4294967295", "4294967295", ""}, {"max_segments", "0", "0", ""},
		{"max_segments", "4294967296", "", erange}, {"max_segments", "-2", "", erange}, {"max_segments", "one", "", einval},
		{"max_segment_size", "4096", "4096", ""}, {"max_segment_size", "65536", "65536", ""}, {"max_segment_size", "9223372036854775807", "9223372036854775807", ""}, {"max_segment_size", "0", "0", ""},
		{"max_segment_size", "4095", "", erange}, {"max_segment_size", "9223372036854775808", "", erange}, {"max_segment_size", "4k", "", einval},
		{"segment_boundary", "65536", "65536", ""}, {"segment_boundary", "0xffff", "65535", ""}, {"segment_boundary", "0", "0", ""},
		{"segment_boundary", "100000", "", erange}, {"segment_boundary", "2048", "", erange}, {"segment_boundary", "?", "", einval},
	} {
		before := value(c.limit)
		script := fmt.Sprintf("printf '%%s\\n' '%s' > devices/gpu0/%s", c.text, c.limit)
		if c.err != "" {
			refuse(t, mnt, script, c.err)
			c.want = before
		} else {
			sh(t, mnt, script)
		}
		if got := value(c.limit); got != c.want {
			t.Errorf("%s after %q is %s, want %s", c.limit, c.text, got, c.want)
		}
	}
	sh(t, mnt, "printf 33 > devices/gpu0/dma_mask") // no newline
	if got := value("dma_mask"); got != "33" {
		t.Errorf("dma_mask is %s", got)
	}
	refuse(t, mnt, "mkdir devices/gpu0", "File exists")
	refuse(t, mnt, "mkdir devices/gpu0/a", "not permitted")
	refuse(t, mnt, "mkdir devices/gpu0/buffers/a", "not permitted")
	refuse(t, mnt, "touch devices/a", "Permission denied")
	refuse(t, mnt, "rm devices/gpu0/dma_mask", "not permitted")
	refuse(t, mnt, "rmdir devices/none", "No such file")
	refuse(t, mnt, "echo x > devices/gpu0/attachments", "Permission denied")
	sh(t, mnt, "rmdir devices/gpu0; mkdir devices/gpu0")
	if got := value("dma_mask"); got != "64" { // a new device
		t.Errorf("dma_mask is %s", got)
	}
}

// While a device is attached its limits stand, and it stays.
func TestDeviceAttached(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newDevice(t, mnt, "gpu0")
		newBuffer(t, dir, "a", 65536)
		cpu, dev, other := start(t, mnt, "cpu"), start(t, mnt, "dev"), start(t, mnt, "other")
		cpu.do("open f buffers/a rw")
		dev.do("open v devices/gpu0/buffers/a rw")
		other.do("open v devices/gpu0/buffers/a r") // another attachment of the same device
		other.do("open w devices/gpu0/buffers/a w") // and one in another direction
		for _, limit := range []string{"dma_mask", "max_segments", "max_segment_size", "segment_boundary"} {
			refuse(t, mnt, "echo 8192 > devices/gpu0/"+limit, map[bool]string{true: "out of range", false: "Device or resource busy"}[limit == "dma_mask"])
			refuse(t, mnt, "echo 32 > devices/gpu0/dma_mask", "Device or resource busy")
			refuse(t, mnt, "echo x > devices/gpu0/"+limit, "Invalid argument")
		}
		refuse(t, mnt, "rmdir devices/gpu0", "Device or resource busy")
		want := []string{
			fmt.Sprintf("cpu %d dbclient rw", cpu.pid()),
			fmt.Sprintf("device gpu0 %d dbclient DMA_BIDIRECTIONAL", dev.pid()),
			fmt.Sprintf("device gpu0 %d dbclient DMA_TO_DEVICE", other.pid()),
			fmt.Sprintf("device gpu0 %d dbclient DMA_FROM_DEVICE", other.pid()),
		}
		if got := attachments(t, mnt, "a"); !slices.Equal(got, want) {
			t.Errorf("attachments are %q, want %q", got, want)
		}
		want = []string{
			fmt.Sprintf("a DMA_BIDIRECTIONAL %d dbclient\n", dev.pid()),
			fmt.Sprintf("a DMA_TO_DEVICE %d dbclient\n", other.pid()),
			fmt.Sprintf("a DMA_FROM_DEVICE %d dbclient\n", other.pid()),
		}
		if got := cat(t, mnt+"/devices/gpu0/attachments"); got != strings.Join(want, "") {
			t.Errorf("the device's attachments are %q, want %q", got, want)
		}
		mappings := cat(t, mnt+"/state/a/mappings")
		if row := fmt.Sprintf("dma gpu0 DMA_BIDIRECTIONAL %d dbclient\n", dev.pid()); !strings.Contains(mappings, row) {
			t.Errorf("mappings %q lack %q", mappings, row)
		}
		dev.do("map m v 65536 0 rw")
		mappings = cat(t, mnt+"/state/a/mappings")
		if row := fmt.Sprintf("view gpu0 %d dbclient rw-s 0 16\n", dev.pid()); !strings.Contains(mappings, row) {
			t.Errorf("mappings %q lack %q", mappings, row)
		}
		dev.do("unmap m")
		other.do("close w")
		other.kill() // detached and unmapped
		dev.do("close v")
		waitUntil(t, "the device is detached", func() bool { return cat(t, mnt+"/devices/gpu0/attachments") == "" })
		if got := attachments(t, mnt, "a"); len(got) != 1 || !strings.HasPrefix(got[0], "cpu ") {
			t.Errorf("attachments are %q, want the cpu's", got)
		}
		sh(t, mnt, "echo 40 > devices/gpu0/dma_mask; rmdir devices/gpu0")
		cpu.do("close f")
		if got := attachments(t, mnt, "a"); len(got) != 0 {
			t.Errorf("attachments are %q, and nobody has it open", got)
		}
	})
}

// Nothing is placed before the first DMA map; then the placement meets the limits.
func TestPlacement(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		const size = 1<<20 + 3*65536 + 5*4096
		devices := []struct {
			name   string
			limits []string
			ok     func(table []segment, s segment) bool
		}{
			{"any", nil, func([]segment, segment) bool { return true }},
			{"low", []string{"dma_mask=32"}, func(_ []segment, s segment) bool { return s.addr+s.n <= 1<<32 }},
			{"small", []string{"max_segment_size=8192"}, func(_ []segment, s segment) bool { return s.n <= 8192 }},
			{"split", []string{"segment_boundary=65536"}, func(_ []segment, s segment) bool { return s.addr>>16 == (s.addr+s.n-1)>>16 }},
			{"mask", []string{"segment_boundary=0xffff"}, func(_ []segment, s segment) bool { return s.addr>>16 == (s.addr+s.n-1)>>16 }},
			{"few", []string{"max_segments=64"}, func(table []segment, _ segment) bool { return len(table) <= 64 }},
			{"all", []string{"dma_mask=32", "max_segment_size=65536", "segment_boundary=131072", "max_segments=64"}, func(table []segment, s segment) bool {
				return s.addr+s.n <= 1<<32 && s.n <= 65536 && s.addr>>17 == (s.addr+s.n-1)>>17 && len(table) <= 64
			}},
		}
		for _, d := range devices {
			newDevice(t, mnt, d.name, d.limits...)
			newBuffer(t, dir, "a", size)
			sh(t, mnt, "head -c 5000 /dev/zero | tr '\\0' x > a.ref 2>/dev/null || true; printf hello | dd of=buffers/a bs=1 seek=4094 conv=notrunc status=none")
			if table := cat(t, mnt+"/state/a/sg_table"); table != "" {
				t.Errorf("%s: placed before the first map: %s", d.name, table)
			}
			dma(t, mnt, d.name, "a")
			table := sgTable(t, mnt, "a")
			if len(table) == 0 {
				t.Fatalf("%s: nothing was placed", d.name)
			}
			for i, s := range table {
				if !d.ok(table, s) {
					t.Errorf("%s %v: segment %d of %d is %#x, %d bytes", d.name, d.limits, i, len(table), s.addr, s.n)
				}
				if i > 0 && len(d.limits) == 0 && table[i-1].addr+table[i-1].n == s.addr {
					t.Errorf("%s: segments %d and %d are neighbours, and not merged", d.name, i-1, i)
				}
			}
			if exporter == "contiguous" {
				for i := 1; i < len(table); i++ {
					if table[i-1].addr+table[i-1].n != table[i].addr {
						t.Errorf("%s: not contiguous at segment %d", d.name, i)
					}
				}
			}
			sh(t, mnt, "rm buffers/a")
		}
	})
}

// Two devices: what the second cannot reach is refused while the first has it mapped,
// and moved, contents and all, when nobody does.
func TestPlacementConflict(t *testing.T) {
	for _, exporter := range []string{"system", "coherent", "noncoherent"} {
		t.Run(exporter, func(t *testing.T) {
			t.Parallel()
			d := mountDaemon(t)
			mnt := d.dir
			newDevice(t, mnt, "wide")
			newDevice(t, mnt, "narrow", "dma_mask=32")
			ref := filepath.Join(t.TempDir(), "ref")
			if err := os.WriteFile(ref, content(300<<10, 3), 0o644); err != nil {
				t.Fatal(err)
			}
			sh(t, mnt, "cp "+ref+" exporters/"+exporter+"/a")
			c, cpu := start(t, mnt, "c"), start(t, mnt, "cpu")
			cpu.do("open f buffers/a rw")
			cpu.do("map m f 307200 0 rw") // a CPU's mapping does not keep it from being moved
			cpu.do("get m 4096")
			c.do("open v devices/wide/buffers/a rw")
			high := sgTable(t, mnt, "a")
			if high[0].addr < 1<<32 {
				t.Errorf("placed at %#x, below 4 GiB, which nobody asked for", high[0].addr)
			}
			refuse(t, mnt, "cat devices/narrow/buffers/a", "Device or resource busy")
			d.said("device=narrow", "buffer=a", "limit=dma_mask", "dma_mask=32")
			if got := attachments(t, mnt, "a"); len(got) != 2 {
				t.Errorf("after a refusal attachments are %q", got)
			}
			sh(t, mnt, "echo 33 > devices/narrow/dma_mask; echo 32 > devices/narrow/dma_mask") // it is not attached
			if got := sgTable(t, mnt, "a"); !slices.Equal(got, high) {
				t.Errorf("a refusal moved the buffer: %v, %v", high, got)
			}
			sh(t, mnt, "cmp devices/wide/buffers/a "+ref)
			c.do("close v")
			sh(t, mnt, "cmp devices/narrow/buffers/a "+ref)
			for _, s := range sgTable(t, mnt, "a") {
				if s.addr+s.n > 1<<32 {
					t.Errorf("narrow got %#x, %d bytes", s.addr, s.n)
				}
			}
			low := sgTable(t, mnt, "a")
			sh(t, mnt, "cmp devices/wide/buffers/a "+ref) // who reaches it does not move it again
			if got := sgTable(t, mnt, "a"); !slices.Equal(got, low) {
				t.Errorf("moved without need: %v, %v", low, got)
			}
			sh(t, mnt, "cmp buffers/a "+ref)
			c.do("open v devices/narrow/buffers/a rw") // both reach it now
			c.do("open w devices/wide/buffers/a rw")
		})
	}
}

func TestPlacementRefused(t *testing.T) {
	t.Parallel()
	d := mountDaemon(t, "contiguous=16m")
	mnt := d.dir
	newDevice(t, mnt, "single", "max_segments=1")
	newBuffer(t, mnt+"/exporters/system", "big", 8<<20)
	newBuffer(t, mnt+"/exporters/contiguous", "one", 8<<20)
	newBuffer(t, mnt+"/exporters/system", "little", 4096)
	refuse(t, mnt, "cat devices/single/buffers/big", "Device or resource busy")
	d.said("device=single", "buffer=big", "limit=max_segments", "max_segments=1")
	if got := cat(t, mnt+"/state/big/sg_table"); got != "" {
		t.Errorf("a refused map placed the buffer: %s", got)
	}
	if got := domain(t, mnt, "big"); strings.HasPrefix(got, "device") {
		t.Errorf("after a refusal the domain is %s", got)
	}
	dma(t, mnt, "single", "one")
	dma(t, mnt, "single", "little")
	if got := sgTable(t, mnt, "one"); len(got) != 1 {
		t.Errorf("contiguous has %d segments", len(got))
	}
	// One segment, which a boundary or a largest size would cut.
	newDevice(t, mnt, "cut", "max_segments=1", "segment_boundary=65536")
	refuse(t, mnt, "cat devices/cut/buffers/one", "Device or resource busy")
	d.said("device=cut", "limit=segment_boundary")
	newDevice(t, mnt, "short", "max_segments=1", "max_segment_size=65536")
	refuse(t, mnt, "cat devices/short/buffers/one", "Device or resource busy")
	d.said("device=short", "limit=max_segment_size")

	// A device that reaches 2 MiB finds 1 MiB of memory there: no placement at all is
	// EBUSY, none at the moment is ENOMEM.
	newDevice(t, mnt, "old", "dma_mask=21")
	newBuffer(t, mnt+"/exporters/system", "a", 1<<20)
	newBuffer(t, mnt+"/exporters/system", "b", 1<<20)
	refuse(t, mnt, "cat devices/old/buffers/big", "Device or resource busy")
	d.said("device=old", "buffer=big", "limit=dma_mask")
	dma(t, mnt, "old", "a")
	refuse(t, mnt, "cat devices/old/buffers/b", "Cannot allocate memory")
	sh(t, mnt, "rm buffers/a")
	dma(t, mnt, "old", "b")
}

func TestPlacementContiguousFragmented(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "contiguous=1m")
	sh(t, mnt+"/exporters/contiguous", "for i in 0 1 2 3 4 5 6 7; do truncate -s 128k $i; done")
	refuse(t, mnt, "truncate -s 4k exporters/contiguous/more", "Cannot allocate memory")
	sh(t, mnt, "rm -f exporters/contiguous/more buffers/1 buffers/3")
	refuse(t, mnt, "truncate -s 256k exporters/contiguous/more", "Cannot allocate memory") // 256k are free, in two holes
	if got := strings.TrimSpace(cat(t, mnt+"/state/more/size")); got != "0" {
		t.Errorf("a refused size left %s bytes", got)
	}
	sh(t, mnt, "truncate -s 128k buffers/more; rm buffers/2")
	sh(t, mnt, "truncate -s 256k exporters/contiguous/large")
	newDevice(t, mnt, "gpu0", "max_segments=1")
	seen := map[uint64]string{}
	for _, name := range strings.Fields(sh(t, mnt, "ls buffers")) {
		dma(t, mnt, "gpu0", name)
		for _, s := range sgTable(t, mnt, name) {
			for a := s.addr; a < s.addr+s.n; a += 4096 {
				if seen[a] != "" {
					t.Fatalf("%s and %s both have address %#x", name, seen[a], a)
				}
				seen[a] = name
			}
		}
	}
}

// Plain tools are devices, too.
func TestDMAView(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		tmp := t.TempDir()
		for name, p := range map[string][]byte{"in": content(1<<20+777, 5), "new": content(1<<20+777, 6)} {
			if err := os.WriteFile(tmp+"/"+name, p, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		newDevice(t, mnt, "gpu0")
		sh(t, mnt, `
			in=`+tmp+`/in new=`+tmp+`/new out=`+tmp+`/out V=devices/gpu0/buffers/frame B=buffers/frame
			cp $in exporters/`+exporter+`/frame
			for bs in 1M 65536 1000 4097; do dd if=$V of=$out bs=$bs status=none; cmp $in $out; done
			cmp $in $V; [ "$(stat -c %s $V)" = 1049353 ]
			dd if=$V of=$out bs=1M iflag=direct status=none; cmp $in $out
			for bs in 1M 65536 1000; do
				dd if=$new of=$V bs=$bs conv=notrunc status=none; cmp $new $B; cmp $new $V
				dd if=$in of=$V bs=$bs conv=notrunc,fsync status=none; cmp $in $B; cmp $in $V
				dd if=$new of=$B bs=$bs conv=notrunc status=none; cmp $new $V
				cp $in $B; cmp $in $V
			done
			dd if=$new of=$V bs=100 skip=77 seek=77 count=55 conv=notrunc status=none
			dd if=$new of=$in bs=100 skip=77 seek=77 count=55 conv=notrunc status=none; cmp $in $B
			dd if=$V of=$out bs=1M skip=1048576 iflag=skip_bytes status=none; tail -c 777 $in | cmp - $out
			dd if=$V of=$out bs=1M skip=2000000 iflag=skip_bytes status=none 2>/dev/null; [ ! -s $out ]`)
		for _, script := range []string{
			"dd if=/dev/zero of=devices/gpu0/buffers/frame bs=4k count=1 status=none", // without notrunc
			": > devices/gpu0/buffers/frame",
			"truncate -s 4096 devices/gpu0/buffers/frame",
			"dd if=/dev/zero of=devices/gpu0/buffers/frame bs=1 seek=1049353 count=1 conv=notrunc status=none", // past the end
			"dd if=/dev/zero of=devices/gpu0/buffers/frame bs=4096 seek=256 count=1 conv=notrunc status=none",  // across it
		} {
			refuse(t, mnt, script, "Device or resource busy")
		}
		refuse(t, mnt, "chmod 600 devices/gpu0/buffers/frame", "not permitted")
		sh(t, mnt, "cmp buffers/frame "+tmp+"/in")
		if got := domain(t, mnt, "frame"); got != "cpu" {
			t.Errorf("with the view closed the domain is %s", got)
		}
	})
}

// A view is mapped; SYNC brackets its work, and the domain says whose the buffer is.
func TestDMAViewMapped(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newDevice(t, mnt, "gpu0")
		newDevice(t, mnt, "gpu1")
		newBuffer(t, dir, "a", 65536)
		if got := domain(t, mnt, "a"); got != "none" {
			t.Errorf("before the first access the domain is %s", got)
		}
		cpu, dev := start(t, mnt, "cpu"), start(t, mnt, "dev")
		cpu.do("open f buffers/a rw")
		cpu.do("map m f 65536 0 rw")
		cpu.do("sync f %d", startRW) // brackets that only noncoherent needs, here and below
		cpu.do("fill m 0 65536 0xc0")
		cpu.do("sync f %d", endRW)
		if got := domain(t, mnt, "a"); got != "cpu" {
			t.Errorf("the domain is %s, want cpu", got)
		}
		dev.do("open v devices/gpu0/buffers/a rw")
		dev.do("map d v 65536 0 rw")
		if got := domain(t, mnt, "a"); got != "device gpu0" {
			t.Errorf("opening a view begins its work, and the domain is %s", got)
		}
		dev.want("ok 0", "check d 0 65536 0xc0")
		dev.do("fill d 4096 8192 0xd0")
		dev.want("ok d000000000000000d000000000000000", "pread v 16 4096")
		dev.want("ok 16", "pwrite v d100000000000000d100000000000000 12288")
		dev.want("ok 0xd1", "get d 12288")
		dev.do("sync v %d", endRW)
		if got := domain(t, mnt, "a"); got != "cpu" {
			t.Errorf("after END the domain is %s", got)
		}
		cpu.do("sync f %d", startR)
		cpu.want("ok 0", "check m 0 4096 0xc0")
		cpu.want("ok 0", "check m 4096 8192 0xd0")
		cpu.want("ok 0xd1", "get m 12288")
		cpu.do("sync f %d", endR)
		dev.do("sync v %d", startRW)
		if got := domain(t, mnt, "a"); got != "device gpu0" {
			t.Errorf("after START the domain is %s", got)
		}
		second := start(t, mnt, "second")
		second.do("open v devices/gpu1/buffers/a rw")
		if got := domain(t, mnt, "a"); got != "device gpu1" { // the one that began last
			t.Errorf("with two devices at work the domain is %s", got)
		}
		second.do("close v")
		if got := domain(t, mnt, "a"); got != "device gpu0" {
			t.Errorf("the other device goes on, and the domain is %s", got)
		}
		for _, c := range []struct {
			flags uint64
			want  string
		}{{0, "error EINVAL"}, {4, "error EINVAL"}, {8, "error EINVAL"}, {11, "error EINVAL"}, {1 << 32, "error EINVAL"}, {1<<63 | 3, "error EINVAL"},
			{startR, "ok"}, {endR, "ok"}, {startW, "ok"}, {endW, "ok"}, {endRW, "ok"}, {startRW, "ok"}} {
			dev.want(c.want, "sync v %d", c.flags)
		}
		dev.do("fill d 0 4096 0xd2")
		dev.do("close v")
		if got := domain(t, mnt, "a"); got != "cpu" {
			t.Errorf("after close the domain is %s", got)
		}
		dev.want("ok 0", "check d 0 4096 0xd2") // the mapping outlives the descriptor
		cpu.do("sync f %d", startR)
		cpu.want("ok 0", "check m 0 4096 0xd2")
		dev.do("unmap d")
		dev.do("open r devices/gpu0/buffers/a r")
		dev.want("error EBADF", "pwrite r 00 0")
		dev.want("error EACCES", "map d r 4096 0 rw")
		dev.do("open w devices/gpu0/buffers/a w")
		dev.want("error EBADF", "pread w 1 0")
	})
}

// The pages that the CPU has are shot down in every process, and no others.
func TestShootdown(t *testing.T) {
	for _, exporter := range []string{"system", "contiguous"} {
		t.Run(exporter, func(t *testing.T) {
			t.Parallel()
			mnt := mount(t)
			newDevice(t, mnt, "gpu0")
			const pages = 64
			newBuffer(t, mnt+"/exporters/"+exporter, "a", pages*4096)
			a, b, dev := start(t, mnt, "a"), start(t, mnt, "b"), start(t, mnt, "dev")
			dev.do("open v devices/gpu0/buffers/a rw")
			dev.do("map d v %d 0 rw", pages*4096)
			dev.do("sync v %d", endRW)
			for _, p := range []*proc{a, b} {
				p.do("open f buffers/a rw")
				p.do("map m f %d 0 rw", pages*4096)
				p.do("madvise m 1") // MADV_RANDOM: no readahead
			}
			if s := stats(t, mnt, "a"); s["shootdowns"] != 0 || s["faults"] != 0 {
				t.Errorf("before anybody touched it: %v", s)
			}
			a.do("fill m %d %d 0xaa", 10*4096, 4*4096)
			b.do("touch m %d %d", 40*4096, 3*4096)
			b.do("touch m %d %d", 12*4096, 4096)
			touched := strings.Repeat("0", 10) + "1111" + strings.Repeat("0", 26) + "111" + strings.Repeat("0", 21)
			a.want("ok "+touched, "mincore m 0 %d", pages)
			a.want("ok 1111", "pagemap m 10 4")
			b.want("ok 111", "pagemap m 40 3")
			b.want("ok 1", "pagemap m 12 1")
			if got := cat(t, mnt+"/state/a/domain"); got != "cpu\ncpu_pages 7\ndevice_pages 0\n" {
				t.Errorf("the domain is %q", got)
			}
			before := stats(t, mnt, "a")
			if before["faults"] == 0 || before["pages_faulted"] != 7 {
				t.Errorf("7 pages were touched: %v", before)
			}

			listen := start(t, mnt, "listen")
			listen.do("open e events r")
			dev.do("sync v %d", startRW)
			none := "ok " + strings.Repeat("0", pages)
			a.want(none, "pagemap m 0 %d", pages)
			a.want(none, "mincore m 0 %d", pages)
			b.want(none, "pagemap m 0 %d", pages)
			after := stats(t, mnt, "a")
			for name, want := range map[string]uint64{"shootdowns": 1, "pages_zapped": 7, "bytes_laundered": 4 * 4096, "faults": 0, "pages_faulted": 0} {
				if got := after[name] - before[name]; got != want {
					t.Errorf("%s went up by %d, want %d", name, got, want)
				}
			}
			if got := cat(t, mnt+"/state/a/domain"); got != fmt.Sprintf("device gpu0\ncpu_pages 0\ndevice_pages %d\n", pages) {
				t.Errorf("the domain is %q", got)
			}
			told, err := hex.DecodeString(listen.do("read e 4096"))
			if got := string(told); err != nil || !strings.Contains(got, `"event":"shootdown"`) || !strings.Contains(got, `"runs":2`) || !strings.Contains(got, `"pages":7`) {
				t.Errorf("the event of 7 pages in 2 runs is not in %s", got)
			}

			// What was not touched is not shot down again.
			for range 3 {
				dev.do("sync v %d", endRW)
				dev.do("sync v %d", startRW)
			}
			if got := stats(t, mnt, "a"); got["shootdowns"] != after["shootdowns"] || got["pages_zapped"] != after["pages_zapped"] {
				t.Errorf("nothing was touched, and the counters went from %v to %v", after, got)
			}

			// The CPU wrote, the device sees it, and writes; one page comes back with that.
			dev.want("ok 0", "check d %d %d 0xaa", 10*4096, 4*4096)
			dev.do("fill d %d 4096 0xdd", 12*4096)
			dev.do("sync v %d", endRW)
			faults := a.number("faults")
			a.want("ok 0", "check m %d 4096 0xdd", 12*4096)
			if n := a.number("faults") - faults; n == 0 {
				t.Error("a page that had been shot down came back without a fault")
			}
			a.want("ok "+strings.Repeat("0", 12)+"1"+strings.Repeat("0", pages-13), "pagemap m 0 %d", pages)
			a.do("touch m %d %d", 12*4096, 4096)
			faults = a.number("faults")
			a.do("touch m %d %d", 12*4096, 4096)
			if n := a.number("faults") - faults; n != 0 {
				t.Errorf("%d faults on a page that is mapped", n)
			}
			b.want("ok 0", "check m %d 4096 0xdd", 12*4096)
			b.want("ok 0", "check m %d 4096 0xaa", 11*4096)
			by := map[string]string{}
			for _, row := range rows(t, mnt+"/state/a/stats") {
				if row[0] == "fault_by" {
					by[row[1]] = row[2]
				}
			}
			for _, p := range []*proc{a, b} {
				if by[strconv.Itoa(p.pid())] != "dbclient" {
					t.Errorf("pid %d has no faults: %v", p.pid(), by)
				}
			}

			// A page that is touched while the device works has what the device has written so far,
			// and after END what it has written in the end.
			dev.do("sync v %d", startRW)
			dev.do("fill d %d 4096 0xd1", 20*4096)
			a.want("ok 0", "check m %d 4096 0xd1", 20*4096)
			dev.do("fill d %d 4096 0xd2", 20*4096)
			dev.do("sync v %d", endRW)
			a.want("ok 0", "check m %d 4096 0xd2", 20*4096)

			// A device that only reads leaves the CPU what it touched meanwhile.
			dev.do("sync v %d", startR)
			a.do("touch m 0 4096")
			was := stats(t, mnt, "a")
			dev.do("sync v %d", endR)
			a.want("ok 1", "pagemap m 0 1")
			if got := stats(t, mnt, "a"); got["shootdowns"] != was["shootdowns"] {
				t.Error("the end of a device's reading shot pages down")
			}
		})
	}
}

// A read-only mapping, read(2), and a mapping whose process does not look: all of them follow.
func TestShootdownEverybody(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newDevice(t, mnt, "gpu0")
	newBuffer(t, mnt+"/buffers", "a", 1<<20)
	dev := start(t, mnt, "dev")
	dev.do("open v devices/gpu0/buffers/a rw")
	dev.do("map d v 1048576 0 rw")
	var all []*proc
	for i := range 8 {
		p := start(t, mnt, fmt.Sprint("reader", i))
		p.do("open f buffers/a r")
		p.do("map m f 1048576 0 r")
		if i%2 == 0 {
			p.do("close f")
			p.do("open f buffers/a r")
		}
		all = append(all, p)
	}
	for round := range 20 {
		v := fmt.Sprintf("0x%02d", round+1)
		dev.do("sync v %d", startRW)
		dev.do("fill d 0 1048576 %s", v)
		dev.do("sync v %d", endRW)
		for i, p := range all {
			if i == 7 && round%5 != 4 {
				continue
			}
			p.send("check m 0 1048576 %s", v)
			p.send("pread f 8 %d", round*4096)
		}
		for i, p := range all {
			if i == 7 && round%5 != 4 {
				continue
			}
			if got := p.answer(patience); got != "ok 0" {
				t.Fatalf("round %d, reader %d: %s stale words", round, i, got)
			}
			if got, want := p.answer(patience), fmt.Sprintf("ok %02x00000000000000", mustParse(t, v)); got != want {
				t.Fatalf("round %d, reader %d: read(2) gives %s, want %s", round, i, got, want)
			}
		}
	}
}

func mustParse(t *testing.T, s string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// coherent shows everything at once, and shoots nothing down.
func TestCoherentNoShootdown(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newDevice(t, mnt, "gpu0")
	newBuffer(t, mnt+"/exporters/coherent", "a", 65536)
	cpu, dev := start(t, mnt, "cpu"), start(t, mnt, "dev")
	cpu.do("open f buffers/a rw")
	cpu.do("map m f 65536 0 rw")
	cpu.do("fill m 0 65536 1")
	cpu.do("touch m 0 65536")
	dev.do("open v devices/gpu0/buffers/a rw")
	dev.do("map d v 65536 0 rw")
	for i := range 100 {
		dev.do("sync v %d", startRW)
		dev.do("set d 4096 %d", i)
		cpu.want(fmt.Sprintf("ok %#x", i), "get m 4096") // before END
		cpu.do("set m 8192 %d", i)
		dev.want(fmt.Sprintf("ok %#x", i), "get d 8192")
		dev.do("sync v %d", endRW)
	}
	cpu.want("ok 1111111111111111", "pagemap m 0 16")
	s := stats(t, mnt, "a")
	for _, name := range []string{"shootdowns", "pages_zapped", "bytes_laundered", "faults", "pages_faulted"} {
		if s[name] != 0 {
			t.Errorf("%s is %d", name, s[name])
		}
	}
	if got := cat(t, mnt+"/state/a/domain"); strings.Contains(got, "fallback") {
		t.Errorf("a privileged mount falls back: %s", got)
	}
}

// CPUs and devices take turns; nobody sees a stale byte, though all mappings stay in place.
func TestAlternate(t *testing.T) {
	s, turns := seed(t), 4000
	if testing.Short() {
		turns = 1000
	}
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		sh(t, mnt, "mkdir devices/d0 devices/d1")
		newBuffer(t, dir, "a", 128<<10)
		args := []string{"alternate", mnt, "a", strconv.Itoa(turns), s}
		if exporter == "noncoherent" {
			args = append(args, "bracket")
		}
		r := run(t, 2*patience+time.Minute, "/", devclient(t), args...)
		t.Log(strings.TrimSpace(r.out))
		if r.code != 0 {
			t.Fatalf("exit status %d:\n%s", r.code, r.err)
		}
		got := stats(t, mnt, "a")
		if shot := got["shootdowns"] > 0; shot == (exporter == "coherent") {
			t.Errorf("%d shootdowns", got["shootdowns"])
		}
		if exporter == "system" && got["bytes_laundered"] == 0 {
			t.Error("nothing was laundered")
		}
	})
}

// In a user namespace there is no passthrough: coherent goes through the page cache, says
// so, and stays coherent.
func TestUserNamespaceDevices(t *testing.T) {
	t.Parallel()
	needFUSE(t)
	dir := mountDir(t)
	cmd := command(t, "/", "unshare", "-Urm", "bash", "-euc", `
		$D mount $M > $W/out 2> $W/log & daemon=$!
		for i in $(seq 300); do grep -q mounted $W/out && break; kill -0 $daemon; sleep 0.1; done
		mkdir $M/devices/d{0,1,2,3} $M/timelines/tl
		for e in coherent system; do
			truncate -s 128k $M/exporters/$e/$e
			$C alternate $M $e $TURNS $SEED
			rm $M/buffers/$e
			truncate -s 128k $M/exporters/$e/$e
			$C model $M $e $TURNS 0 $SEED
		done
		echo "domain $(cat $M/state/coherent/domain | tr '\n' ' ')"
		grep '^shootdowns' $M/state/coherent/stats
		head -c 100000 /dev/urandom > $W/ref
		for e in system coherent noncoherent contiguous; do
			dd if=$W/ref of=$M/exporters/$e/dd bs=1000 status=none
			cmp $W/ref $M/devices/d0/buffers/dd
			tr a-z A-Z < $W/ref > $W/ref2
			dd if=$W/ref2 of=$M/devices/d0/buffers/dd bs=1000 conv=notrunc status=none
			cmp $W/ref2 $M/buffers/dd
			rm $M/buffers/dd
		done
		rm $M/buffers/*
		kill $daemon; wait $daemon
		echo told $(grep -c 'no passthrough here' $W/log)`)
	turns := "1500"
	if testing.Short() {
		turns = "300"
	}
	cmd.Env = append(os.Environ(), "D="+buildBinary(t), "C="+devclient(t), "M="+dir, "W="+filepath.Dir(dir), "SEED="+seed(t), "TURNS="+turns, "LC_ALL=C")
	r := runWith(t, 2*patience, cmd)
	if r.code != 0 {
		t.Fatalf("exit status %d: %s%s", r.code, r.out, r.err)
	}
	for _, want := range []string{"fallback page cache", "told 1\n"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in\n%s", want, r.out)
		}
	}
	if strings.Contains(r.out, "shootdowns 0\n") {
		t.Errorf("coherent in the page cache was never shot down:\n%s", r.out)
	}
}

// noncoherent is stale exactly where a bracket is missing, and the same in every run.
func TestNoncoherent(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newDevice(t, mnt, "gpu0")
	// who, what, and what it says; "cold" drops the kernel's page cache, which must change nothing.
	script := []struct{ who, do, want string }{
		{"cpu", "get m 0", "ok 0x0"},
		{"dev", "sync v 3", "ok"},
		{"dev", "set d 0 0xd1", "ok"},
		{"dev", "sync v 7", "ok"},
		{"cpu", "get m 0", "ok 0x0"}, // stale: no START
		{"cold", "", ""},
		{"cpu", "get m 0", "ok 0x0"}, // a CPU cache, not the page cache
		{"cpu", "sync f 2", "ok"},    // START for writing invalidates nothing
		{"cpu", "get m 0", "ok 0x0"},
		{"cpu", "sync f 6", "ok"},
		{"cpu", "sync f 1", "ok"},
		{"cpu", "get m 0", "ok 0xd1"},
		{"cpu", "sync f 5", "ok"},
		{"cpu", "set m 0 0xc1", "ok"},
		{"other", "get m 0", "ok 0xc1"}, // between CPUs it is coherent
		{"dev", "sync v 3", "ok"},
		{"dev", "get d 0", "ok 0xd1"}, // stale: no END
		{"cold", "", ""},
		{"dev", "get d 0", "ok 0xd1"}, // written back by the kernel, and not handed over
		{"cpu", "sync f 6", "ok"},
		{"dev", "get d 0", "ok 0xc1"},
		{"cpu", "set m 0 0xc2", "ok"},
		{"cpu", "msync m", "ok"},
		{"dev", "get d 0", "ok 0xc2"},
		{"cpu", "set m 0 0xc3", "ok"},
		{"dev", "get d 0", "ok 0xc2"},
		{"other", "fsync f", "ok"},
		{"dev", "get d 0", "ok 0xc3"},
		{"dev", "set d 0 0xd2", "ok"},
		{"dev", "sync v 7", "ok"},
		{"cpu", "fsync f", "ok"}, // hands over, and takes nothing
		{"cpu", "get m 0", "ok 0xc3"},
		{"dev", "get d 0", "ok 0xd2"},
		{"cpu", "pread f 8 0", "ok d200000000000000"}, // read(2) has its bracket
		{"cpu", "get m 0", "ok 0xc3"},                 // and leaves the mapping alone
		{"cpu", "pwrite f c400000000000000 0", "ok 8"},
		{"dev", "get d 0", "ok 0xc4"}, // write(2) has its bracket
		{"cpu", "get m 0", "ok 0xc4"},
		{"dev", "set d 0 0xd3", "ok"},
		{"cpu", "get m 0", "ok 0xc4"},
		{"other", "sync f 3", "ok"}, // anybody's START is everybody's
		{"cpu", "get m 0", "ok 0xd3"},
		{"cpu", "set m 0 0xc5", "ok"},
		{"other", "sync f 1", "ok"}, // START hands dirty pages over first
		{"cpu", "get m 0", "ok 0xc5"},
		{"dev", "get d 0", "ok 0xc5"},
	}
	for i := range 20 {
		name := fmt.Sprint("a", i)
		newBuffer(t, mnt+"/exporters/noncoherent", name, 65536)
		who := map[string]*proc{"cpu": start(t, mnt, "cpu"), "other": start(t, mnt, "other"), "dev": start(t, mnt, "dev")}
		for _, p := range []string{"cpu", "other"} {
			who[p].do("open f buffers/%s rw", name)
			who[p].do("map m f 65536 0 rw")
		}
		who["dev"].do("open v devices/gpu0/buffers/%s rw", name)
		who["dev"].do("map d v 65536 0 rw")
		who["dev"].do("sync v 7")
		for k, s := range script {
			if s.who == "cold" {
				sh(t, mnt, "for i in 1 2; do dd if=buffers/"+name+" iflag=nocache count=0 status=none; done") // posix_fadvise(2)
				continue
			}
			if got := who[s.who].try("%s", s.do); got != s.want {
				t.Fatalf("run %d, step %d: %s: %s: %q, want %q", i, k, s.who, s.do, got, s.want)
			}
		}
		for _, p := range who {
			p.end()
		}
	}
}

// Device work inside somebody's bracket is allowed, shoots down, and is counted.
func TestBracketConflicts(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newDevice(t, mnt, "gpu0")
		newBuffer(t, dir, "a", 65536)
		a, b, dev := start(t, mnt, "a"), start(t, mnt, "b"), start(t, mnt, "dev")
		for _, p := range []*proc{a, b} {
			p.do("open f buffers/a rw")
			p.do("map m f 65536 0 rw")
		}
		dev.do("open v devices/gpu0/buffers/a rw")
		dev.do("map d v 65536 0 rw")
		conflicts := func(want uint64, by map[int]uint64) {
			t.Helper()
			if got := stats(t, mnt, "a")["conflicts"]; got != want {
				t.Errorf("%d conflicts, want %d", got, want)
			}
			got := map[int]uint64{}
			for _, row := range rows(t, mnt+"/state/a/stats") {
				if row[0] == "conflict_by" && row[2] == "dbclient" {
					pid, _ := strconv.Atoi(row[1])
					got[pid] = mustParse(t, row[3])
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(by) {
				t.Errorf("conflicts by %v, want %v", got, by)
			}
		}
		dev.do("sync v %d", endRW)
		conflicts(0, map[int]uint64{})
		a.do("sync f %d", startRW)
		a.do("set m 0 7")
		dev.do("sync v %d", startRW)
		conflicts(1, map[int]uint64{a.pid(): 1})
		if exporter == "system" || exporter == "contiguous" {
			a.want("ok 0", "pagemap m 0 1")
			dev.want("ok 0x7", "get d 0")
		}
		dev.do("set d 4096 9")
		dev.do("sync v %d", endRW)
		b.do("sync f %d", startR)
		dev.do("sync v %d", startRW)
		conflicts(3, map[int]uint64{a.pid(): 2, b.pid(): 1})
		a.do("sync f %d", endRW)
		dev.do("sync v %d", startRW)
		conflicts(4, map[int]uint64{a.pid(): 2, b.pid(): 2})
		b.kill() // its bracket ends with it
		waitUntil(t, "the killed process is detached", func() bool { return len(attachments(t, mnt, "a")) == 2 })
		dev.do("sync v %d", startRW)
		if got := stats(t, mnt, "a")["conflicts"]; got != 4 {
			t.Errorf("%d conflicts, the last with nobody", got)
		}
		a.do("pread f 8 0") // read(2) and write(2) leave no bracket open
		a.do("pwrite f 00 100")
		dev.do("sync v %d", startRW)
		if got := stats(t, mnt, "a")["conflicts"]; got != 4 {
			t.Errorf("%d conflicts, the last with read(2) or write(2)", got)
		}
		for _, c := range []struct {
			flags uint64
			want  string
		}{{0, "error EINVAL"}, {4, "error EINVAL"}, {8, "error EINVAL"}, {11, "error EINVAL"}, {1 << 32, "error EINVAL"}, {1<<63 | 3, "error EINVAL"},
			{startR, "ok"}, {endR, "ok"}, {startW, "ok"}, {endW, "ok"}, {endRW, "ok"}, {endRW, "ok"}, {startRW, "ok"}} {
			a.want(c.want, "sync f %d", c.flags)
		}
	})
}

// With fault=wait a fault waits for the write fences. Nobody who is killed stays, and no
// shootdown waits for who waits.
func TestFaultWait(t *testing.T) {
	for _, exporter := range []string{"system", "contiguous"} {
		t.Run(exporter, func(t *testing.T) {
			t.Parallel()
			mnt := mount(t, "fault=wait")
			newDevice(t, mnt, "gpu0")
			sh(t, mnt, "mkdir timelines/tl")
			newBuffer(t, mnt+"/exporters/"+exporter, "a", 65536)
			fence := func(n int) { sh(t, mnt, fmt.Sprintf("echo tl:%d > state/a/write_fences", n)) }
			signal := func(n int) { sh(t, mnt, fmt.Sprintf("echo %d > timelines/tl/value", n)) }
			dev := start(t, mnt, "dev")
			dev.do("open v devices/gpu0/buffers/a rw")
			dev.do("map d v 65536 0 rw")
			cpu := func(name string) *proc {
				p := start(t, mnt, name)
				p.do("open f buffers/a rw")
				p.do("map m f 65536 0 rw")
				return p
			}
			a := cpu("a")
			fence(1)
			dev.do("set d 0 0xd1")
			a.send("get m 0")
			a.quiet()
			dev.do("set d 0 0xd2")
			dev.do("sync v %d", endR) // hands back, and shoots nothing down
			a.quiet()
			signal(1)
			if got := a.answer(patience); got != "ok 0xd2" {
				t.Errorf("after the fence the page has %s", got)
			}
			a.want("ok 0xd2", "get m 0")

			// A page that the CPU has makes no fault; readers' fences do not count.
			fence(2)
			a.want("ok 0xd2", "get m 0")
			signal(2)
			sh(t, mnt, "echo tl:3 > state/a/read_fences")
			a.want("ok 0x0", "get m 4096")
			signal(3)

			// A shootdown lets go of who waits, who then waits again.
			dev.do("sync v %d", startRW)
			fence(4)
			a.send("get m 0")
			a.quiet()
			dev.do("set d 0 0xd4")
			dev.do("sync v %d", endRW)
			for i := range 10 {
				dev.do("sync v %d", startRW)
				dev.do("set d 0 %d", 0x100+i)
				dev.do("sync v %d", endRW)
			}
			signal(4)
			if got := a.answer(patience); got != "ok 0x109" && got != "ok 0xd4" && !strings.HasPrefix(got, "ok 0x10") {
				t.Errorf("the page has %s", got)
			}
			a.want("ok 0x109", "get m 0")

			// A shootdown of so many runs that it goes over the locked page between them.
			newBuffer(t, mnt+"/exporters/"+exporter, "runs", 64*4096)
			sparse, parked, dev2 := start(t, mnt, "sparse"), start(t, mnt, "parked"), start(t, mnt, "dev2")
			for _, p := range []*proc{sparse, parked} {
				p.do("open f buffers/runs rw")
				p.do("map m f %d 0 rw", 64*4096)
				p.do("madvise m 1") // MADV_RANDOM: no readahead
			}
			for page := 0; page < 64; page += 2 {
				sparse.do("set m %d 1", page*4096)
			}
			sh(t, mnt, "mkdir timelines/t2; echo t2:1 > state/runs/write_fences")
			parked.send("get m %d", 33*4096)
			parked.quiet()
			dev2.do("open v devices/gpu0/buffers/runs rw")
			if got := stats(t, mnt, "runs"); got["pages_zapped"] < 32 {
				t.Errorf("%d pages were shot down, and 32 touched", got["pages_zapped"])
			}
			sh(t, mnt, "echo 1 > timelines/t2/value")
			if got := parked.answer(patience); got != "ok 0x0" {
				t.Errorf("the page has %s", got)
			}

			// Killed: by a load, by read(2), by write(2) behind somebody's load, and by the hand
			// of another who touches the same page.
			dev.do("sync v %d", startRW)
			fence(5)
			load, again, read, write := cpu("load"), cpu("again"), cpu("read"), cpu("write")
			load.send("get m 0")
			load.quiet()
			again.send("set m 0 1")
			again.quiet()
			read.send("pread f 8 0")
			read.quiet()
			write.send("pwrite f 0100000000000000 8")
			write.quiet()
			for _, p := range []*proc{write, again, read, load} {
				p.kill()
			}
			waitUntil(t, "the killed are gone, though the fence pends", func() bool { return len(attachments(t, mnt, "a")) == 2 })
			dev.do("sync v %d", startRW)
			dev.do("set d 0 0xd5")
			dev.do("sync v %d", endRW)
			b := cpu("b")
			b.send("get m 0")
			b.quiet()
			signal(5)
			if got := b.answer(patience); got != "ok 0xd5" {
				t.Errorf("the page has %s", got)
			}

			// The daemon ends while somebody waits.
			dev.do("sync v %d", startRW)
			fence(6)
			b.send("get m 0")
			b.quiet()
			b.kill()
		})
	}
}

// Without fault=wait nobody waits.
func TestFaultAllow(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "fault=allow")
	newDevice(t, mnt, "gpu0")
	sh(t, mnt, "mkdir timelines/tl")
	newBuffer(t, mnt+"/buffers", "a", 65536)
	dev, a := start(t, mnt, "dev"), start(t, mnt, "a")
	dev.do("open v devices/gpu0/buffers/a rw")
	dev.do("map d v 65536 0 rw")
	dev.do("set d 0 0xd1")
	sh(t, mnt, "echo tl:1 > state/a/write_fences")
	a.do("open f buffers/a rw")
	a.do("map m f 65536 0 rw")
	a.want("ok 0xd1", "get m 0")
	if got := stats(t, mnt, "a"); got["faults"] == 0 {
		t.Error("the fault was not counted")
	}
	a.send("sync f %d", startR) // which does wait
	a.quiet()
	sh(t, mnt, "echo 1 > timelines/tl/value")
	if got := a.answer(patience); got != "ok" {
		t.Errorf("START says %s", got)
	}
}

// A killed device is unmapped; what it wrote stays; the buffer is the CPU's.
func TestDeviceKilled(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newDevice(t, mnt, "gpu0")
		newBuffer(t, dir, "a", 65536)
		cpu := start(t, mnt, "cpu")
		cpu.do("open f buffers/a rw")
		cpu.do("map m f 65536 0 rw")
		for i := 1; i <= 5; i++ {
			cpu.do("fill m 0 65536 0xc%d", i)
			cpu.do("sync f %d", endW)
			dev := start(t, mnt, "dev")
			dev.do("open v devices/gpu0/buffers/a rw")
			dev.do("map d v 65536 0 rw")
			if i%2 == 0 {
				dev.do("sync v %d", endRW)
				dev.do("sync v %d", startRW)
			}
			dev.do("fill d 0 32768 0xd%d", i) // half of it
			if got := domain(t, mnt, "a"); got != "device gpu0" {
				t.Errorf("the domain is %s", got)
			}
			dev.kill()
			waitUntil(t, "the dead device is detached", func() bool { return len(attachments(t, mnt, "a")) == 1 })
			if got := domain(t, mnt, "a"); got != "cpu" {
				t.Errorf("with the device dead the domain is %s", got)
			}
			if got := cat(t, mnt+"/state/a/mappings"); strings.Contains(got, "dma") || strings.Contains(got, "view") {
				t.Errorf("still mapped: %s", got)
			}
			cpu.do("sync f %d", startR)
			cpu.want("ok 0", "check m 0 32768 0xd%d", i)
			cpu.want("ok 0", "check m 32768 32768 0xc%d", i)
		}
		sh(t, mnt, "echo 32 > devices/gpu0/dma_mask; rmdir devices/gpu0")
	})
}

// CPUs that are killed with dirty pages, faulting, or in a shootdown: what they wrote
// whole stays, and everybody else goes on.
func TestCPUKilled(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newDevice(t, mnt, "gpu0")
		newBuffer(t, dir, "a", 1<<20)
		dev := start(t, mnt, "dev")
		dev.do("open v devices/gpu0/buffers/a rw")
		dev.do("map d v 1048576 0 rw")
		for i := range 15 {
			dev.do("sync v %d", startRW)
			dev.do("fill d 0 1048576 0xd0")
			dev.do("sync v %d", endRW)
			cpu := start(t, mnt, "cpu")
			cpu.do("open f buffers/a rw")
			cpu.do("map m f 1048576 0 rw")
			cpu.do("sync f %d", startRW)
			cpu.do("fill m 0 65536 0xc0")
			cpu.send("fill m 65536 983040 0xc1") // and dies somewhere in it
			if i%3 > 0 {
				dev.send("sync v %d", startRW)
			}
			cpu.kill()
			if i%3 > 0 {
				if got := dev.answer(patience); got != "ok" {
					t.Fatalf("START says %s", got)
				}
			} else {
				dev.do("sync v %d", startRW)
			}
			if exporter == "noncoherent" { // nobody closed its bracket
				sh(t, mnt, "sync buffers/a")
			}
			dev.want("ok 0", "check d 0 65536 0xc0")
			dev.do("sync v %d", endRW)
		}
		waitUntil(t, "the dead are detached", func() bool { return len(attachments(t, mnt, "a")) == 1 })
	})
}

// A buffer without a name has no view, for devices neither.
func TestDMAViewRemoved(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newDevice(t, mnt, "gpu0")
		newBuffer(t, dir, "a", 65536)
		refuse(t, mnt, "cat devices/gpu0/buffers/none", "No such file")
		p, cpu := start(t, mnt, "p"), start(t, mnt, "cpu")
		cpu.do("open f buffers/a rw") // keeps the buffer
		fd := p.number("open h devices/gpu0/buffers/a path")
		sh(t, mnt, "rm buffers/a")
		refuse(t, mnt, "cat devices/gpu0/buffers/a", "No such file")
		refuse(t, mnt, "stat devices/gpu0/buffers/a", "No such file")
		p.want("error ENOENT", "open v /proc/self/fd/%d rw", fd) // by a path from before
		if got := cat(t, mnt+"/devices/gpu0/attachments"); got != "" {
			t.Errorf("attachments of a refused open: %q", got)
		}
		newBuffer(t, dir, "a", 4096) // another one
		dma(t, mnt, "gpu0", "a")
		p.want("error ENOENT", "open v /proc/self/fd/%d rw", fd)
	})
}

// A write(2) that is under way holds up a shootdown, which a device waits for: it can be
// interrupted, and killed, and leaves nothing.
func TestDeviceInterrupted(t *testing.T) {
	t.Parallel()
	mnt, slow := mount(t), mountDaemon(t)
	newDevice(t, mnt, "gpu0")
	newBuffer(t, mnt+"/buffers", "a", 65536)
	newBuffer(t, slow.dir+"/buffers", "source", 65536)
	cpu, dev, killed := start(t, mnt, "cpu"), start(t, mnt, "dev"), start(t, mnt, "killed")
	cpu.do("open f buffers/a rw")
	cpu.do("map m f 65536 0 rw")
	cpu.do("fill m 0 65536 0xcc")
	// The source of the write is a page whose daemon sleeps.
	writer := background(t, "/", devclient(t), "copy", slow.dir+"/buffers/source", mnt+"/buffers/a")
	waitUntil(t, "the writer has opened its files", func() bool { return strings.HasPrefix(stateOf(writer.cmd.Process.Pid), "T") })
	if err := slow.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	resume := func() { _ = slow.cmd.Process.Signal(syscall.SIGCONT) }
	t.Cleanup(resume)
	if err := writer.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	waitUntil(t, "the writer waits in write(2)", func() bool { return strings.HasPrefix(stateOf(writer.cmd.Process.Pid), "D") })
	dev.do("alarm 100")
	dev.want("error EINTR", "open v devices/gpu0/buffers/a rw")
	dev.do("alarm 0")
	killed.send("open v devices/gpu0/buffers/a rw")
	killed.quiet()
	killed.kill()
	waitUntil(t, "nothing of the interrupted is attached", func() bool { return cat(t, mnt+"/devices/gpu0/attachments") == "" })
	if got := domain(t, mnt, "a"); got != "cpu" {
		t.Errorf("the domain is %s", got)
	}
	dev.send("open v devices/gpu0/buffers/a rw")
	dev.quiet()
	resume()
	if got := dev.answer(patience); !strings.HasPrefix(got, "ok") {
		t.Fatalf("after the write the device gets %s", got)
	}
	if code := writer.wait(patience); code != 0 {
		t.Errorf("the writer ended with %d: %s", code, writer.err)
	}
	dev.do("map d v 65536 0 rw")
	dev.want("ok 0", "check d 0 4096 0") // written
	dev.want("ok 0", "check d 4096 61440 0xcc")
}

// The daemon is killed in the middle of shootdowns: every client ends, none in state D,
// and the next mount is as new.
func TestDaemonKilled(t *testing.T) {
	needFUSE(t)
	for _, exporter := range []string{"system", "coherent"} {
		t.Run(exporter, func(t *testing.T) {
			t.Parallel()
			dir := mountDir(t)
			rounds := 4
			if testing.Short() {
				rounds = 2
			}
			for round := range rounds {
				f := startMount(t, nil, "-o", "fault=wait", dir)
				sh(t, dir, "mkdir devices/d{0,1,2,3} timelines/tl; truncate -s 256k exporters/"+exporter+"/m; truncate -s 64k buffers/p buffers/q")
				m := background(t, "/", devclient(t), "model", dir, "m", "0", "120", strconv.Itoa(round+1))
				// One that faults and waits for a fence, and one that just has its pages.
				parked, holder := start(t, dir, "parked"), start(t, dir, "holder")
				holder.do("open f buffers/q rw")
				holder.do("map m f 65536 0 rw")
				holder.do("set m 0 5")
				sh(t, dir, "echo tl:1 > state/p/write_fences")
				parked.do("open f buffers/p rw")
				parked.do("map m f 65536 0 rw")
				parked.send("get m 4096")
				parked.quiet()
				waitUntil(t, "devices and CPUs are at work", func() bool {
					s := stats(t, dir, "m")
					return s["shootdowns"] > uint64(20+30*round) || exporter == "coherent" && s["writes"] > 50
				})
				f.signal(syscall.SIGKILL)
				f.wait()
				if code := m.wait(2 * patience); code != 1 {
					t.Errorf("the clients ended with %d: %s%s", code, m.out, m.err)
				}
				if got := parked.answer(patience); got != "error SIGBUS" {
					t.Errorf("who waited for a page gets %s", got)
				}
				holder.want("error ENOTCONN", "fsync f")
				holder.want("error ENOTCONN", "sync f 3")
				parked.end()
				holder.end()
				waitUntil(t, "no client is left", func() bool { return syscall.Kill(-m.cmd.Process.Pid, 0) == syscall.ESRCH })

				// It left a dead mount behind, which the next one clears.
				again := startMount(t, nil, dir)
				sh(t, dir, "[ -z \"$(find buffers devices timelines -mindepth 1)\" ]; mkdir devices/gpu0; echo hello > buffers/a; grep -q hello devices/gpu0/buffers/a")
				again.signal(syscall.SIGTERM)
				if code := again.wait(); code != 0 {
					t.Errorf("the next daemon ended with %d: %s", code, again.log)
				}
			}
		})
	}
}
