package tests

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What the mount tells about itself.

func TestSeeingState(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		if got := strings.Fields(sh(t, mnt, "ls exporters; ls; ls state")); !slices.Equal(got, []string{"coherent", "contiguous", "noncoherent", "system",
			"buffers", "bufinfo", "devices", "events", "exporters", "metrics", "state", "timelines", "version"}) {
			t.Errorf("the tree is %q", got)
		}
		sh(t, dir, ": > a")
		file := func(name string) string { t.Helper(); return cat(t, mnt+"/state/a/"+name) }
		expect := func(name, want string) {
			t.Helper()
			if got := file(name); got != want {
				t.Errorf("state/a/%s is %q, want %q", name, got, want)
			}
		}
		if got := strings.Join(strings.Fields(sh(t, mnt, "ls -U state/a")), " "); got != "size exporter_name name domain refcount vmapping_counter attachments mappings sg_table stats write_fences read_fences" {
			t.Errorf("state/a has %s", got)
		}
		expect("size", "0\n")
		expect("exporter_name", exporter+"\n")
		expect("name", "")
		expect("domain", "none\ncpu_pages 0\ndevice_pages 0\n")
		expect("refcount", "1\n")
		expect("vmapping_counter", "0\n")
		expect("attachments", "")
		expect("mappings", "")
		expect("sg_table", "")
		expect("write_fences", "")
		expect("read_fences", "")
		sh(t, mnt, "head -c 20000 /dev/zero >> exporters/"+exporter+"/a; mkdir devices/gpu0 timelines/tl; ln buffers/a buffers/b")
		expect("size", "20000\n")
		expect("refcount", "2\n")
		if got := cat(t, mnt+"/state/b/size"); got != "20000\n" {
			t.Errorf("by its other name it has %q bytes", got)
		}
		p := start(t, dir, "p")
		p.do("open f a rw")
		p.do("setname f b a\tb") // tabs stay in bufinfo and are escaped in state
		expect("name", "a\\011b\n")
		p.do("setname f b")
		expect("name", "\n")
		p.do("setname f a camera")
		expect("name", "camera\n")
		p.do("open r a r")
		p.do("open w a w")
		p.do("map m f 8192 4096 rw")
		p.do("set m 0 0x1")
		expect("attachments", fmt.Sprintf("cpu %[1]d dbclient rw\ncpu %[1]d dbclient r\ncpu %[1]d dbclient w\n", p.pid()))
		expect("mappings", fmt.Sprintf("cpu %d dbclient rw-s 1 2\n", p.pid()))
		if got := file("domain"); !strings.HasPrefix(got, "cpu\ncpu_pages ") {
			t.Errorf("domain %q", got)
		}
		p.do("open v %s/devices/gpu0/buffers/a rw", mnt)
		p.do("map d v 4096 0 rw")
		p.do("set d 0 0x1")
		if got, want := file("attachments"), fmt.Sprintf("device gpu0 %d dbclient DMA_BIDIRECTIONAL\n", p.pid()); !strings.HasSuffix(got, want) {
			t.Errorf("attachments %q, want at its end %q", got, want)
		}
		for _, want := range []string{fmt.Sprintf("dma gpu0 DMA_BIDIRECTIONAL %d dbclient\n", p.pid()), fmt.Sprintf("view gpu0 %d dbclient rw-s 0 1\n", p.pid())} {
			if got := file("mappings"); !strings.Contains(got, want) {
				t.Errorf("mappings %q lack %q", got, want)
			}
		}
		if got := cat(t, mnt+"/devices/gpu0/attachments"); !regexp.MustCompile(fmt.Sprintf(`^[ab] DMA_BIDIRECTIONAL %d dbclient\n$`, p.pid())).MatchString(got) {
			t.Errorf("devices/gpu0/attachments %q", got)
		}
		if got := file("domain"); !strings.HasPrefix(got, "device gpu0\n") {
			t.Errorf("domain at device's work %q", got)
		}
		var total uint64
		for i, row := range rows(t, mnt+"/state/a/sg_table") {
			page, err1 := strconv.ParseUint(row[0], 10, 64)
			addr, err2 := strconv.ParseUint(strings.TrimPrefix(row[1], "0x"), 16, 64)
			n, err3 := strconv.ParseUint(row[2], 10, 64)
			if err1 != nil || err2 != nil || err3 != nil || page*4096 != total || addr == 0 || addr%4096 != 0 || !strings.HasPrefix(row[1], "0x") {
				t.Errorf("sg_table row %d: %q", i, row)
			}
			total += n
		}
		if total != 20480 && total != 20000 {
			t.Errorf("the sg_table has %d bytes", total)
		}
		sh(t, mnt, "echo tl:1 > state/a/write_fences; echo tl:2 > state/a/read_fences; echo 1 > timelines/tl/value")
		if got := file("read_fences"); got != "tl 2 pending dmabuffs\n" {
			t.Errorf("read_fences %q", got)
		}
		refs := file("refcount")
		p.do("close r")
		p.do("close w")
		waitUntil(t, "two closes take two references", func() bool {
			before, _ := strconv.Atoi(strings.TrimSpace(refs))
			now, _ := strconv.Atoi(strings.TrimSpace(file("refcount")))
			return before-now == 2
		})
		refuse(t, mnt, "rmdir devices/gpu0", "Device or resource busy")
		p.end()
		waitUntil(t, "nobody is attached", func() bool { return file("attachments") == "" && file("mappings") == "" })
		expect("refcount", "2\n")
		sh(t, mnt, "rm buffers/a buffers/b; [ -z \"$(ls state)\" ]; rmdir devices/gpu0")
	})
}

// bufinfo is the kernel's debugfs file, byte for byte (reference: Linux 6.12).
func TestSeeingBufinfo(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	const head = "\nDma-buf Objects:\nsize    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n"
	expect := func(want string) {
		t.Helper()
		if got := cat(t, mnt+"/bufinfo"); got != want {
			t.Errorf("bufinfo is\n%q, want\n%q", got, want)
		}
	}
	expect(head + "\nTotal 0 objects, 0 bytes\n")
	sh(t, mnt, "head -c 16384 /dev/zero > buffers/a")
	ino := func(name string) string {
		n, err := strconv.Atoi(strings.TrimSpace(sh(t, mnt, "stat -c %i buffers/"+name)))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%08d", n)
	}
	a := ino("a")
	row := func(count int, name string) string {
		return "00016384\t00000002\t00080007\t" + fmt.Sprintf("%08d", count) + "\tsystem\t" + a + "\t" + name + "\n"
	}
	const none, one = "\tAttached Devices:\nTotal 0 devices attached\n\n", "\tAttached Devices:\n\tgpu0\nTotal 1 devices attached\n\n"
	expect(head + row(1, "<none>") + none + "\nTotal 1 objects, 16384 bytes\n")
	p := start(t, mnt, "p")
	p.do("open f buffers/a rw")
	p.do("setname f b hello")
	expect(head + row(2, "hello") + none + "\nTotal 1 objects, 16384 bytes\n")
	sh(t, mnt, "mkdir devices/gpu0 timelines/tl; echo tl:1 > state/a/write_fences; echo tl:2 > state/a/read_fences")
	expect(head + row(2, "hello") + "\twrite fence:dmabuffs tl seq 1 unsignalled\n\tread fence:dmabuffs tl seq 2 unsignalled\n" + none + "\nTotal 1 objects, 16384 bytes\n")
	p.want("ok", "poll f in 0") // B83: an armed poll counts
	p.want("ok", "poll f in,out 0")
	expect(head + row(4, "hello") + "\twrite fence:dmabuffs tl seq 1 unsignalled\n\tread fence:dmabuffs tl seq 2 unsignalled\n" + none + "\nTotal 1 objects, 16384 bytes\n")
	sh(t, mnt, "echo 2 > timelines/tl/value")
	expect(head + row(2, "hello") + "\twrite fence:dmabuffs tl seq 1 signalled\n\tread fence:dmabuffs tl seq 2 signalled\n" + none + "\nTotal 1 objects, 16384 bytes\n")
	p.do("open v devices/gpu0/buffers/a r")
	sh(t, mnt, "head -c 5000 /dev/zero > exporters/coherent/b")
	expect(head + "00005000\t00000002\t00080007\t00000001\tcoherent\t" + ino("b") + "\t<none>\n" + none +
		row(3, "hello") + "\twrite fence:dmabuffs tl seq 1 signalled\n\tread fence:dmabuffs tl seq 2 signalled\n" + one + "\nTotal 2 objects, 21384 bytes\n")
	p.end()
	sh(t, mnt, "rm buffers/*")
	waitUntil(t, "nothing is left", func() bool { return cat(t, mnt+"/bufinfo") == head+"\nTotal 0 objects, 0 bytes\n" })
}

func TestSeeingMetrics(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "size=64m", "nr_buffers=100", "nr_fences=10")
	value := func(series string) float64 {
		t.Helper()
		for line := range strings.Lines(cat(t, mnt+"/metrics")) {
			if v, ok := strings.CutPrefix(line, series+" "); ok {
				f, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
				if err != nil {
					t.Fatal(err)
				}
				return f
			}
		}
		t.Errorf("no series %s", series)
		return -1
	}
	expect := func(want float64, series string) {
		t.Helper()
		if got := value(series); got != want {
			t.Errorf("%s is %v, want %v", series, got, want)
		}
	}
	expect(0, `dmabuffs_buffers{exporter="system"}`)
	expect(64<<20, `dmabuffs_quota_bytes`)
	expect(100, `dmabuffs_quota_buffers`)
	expect(10, `dmabuffs_quota_fences`)
	sh(t, mnt, "mkdir devices/gpu0 timelines/tl; head -c 8192 /dev/zero > buffers/a; : > exporters/coherent/b; echo tl:1 > state/a/write_fences")
	expect(1, `dmabuffs_buffers{exporter="system"}`)
	expect(1, `dmabuffs_buffers{exporter="coherent"}`)
	expect(8192, `dmabuffs_buffer_bytes{exporter="system"}`)
	expect(8192, `dmabuffs_quota_used_bytes`)
	expect(1, `dmabuffs_devices`)
	expect(1, `dmabuffs_timelines`)
	expect(1, `dmabuffs_fences_pending`)
	p := start(t, mnt, "p")
	p.do("open f buffers/a rw")
	p.do("map m f 8192 0 rw")
	p.do("fill m 0 8192 7")
	p.do("open v devices/gpu0/buffers/a r")
	p.do("touch m 0 8192")
	expect(1, `dmabuffs_attachments{kind="cpu"}`)
	expect(1, `dmabuffs_attachments{kind="device"}`)
	expect(1, `dmabuffs_dma_mappings`)
	for series, least := range map[string]float64{
		`dmabuffs_shootdowns_total{exporter="system"}`:      1,
		`dmabuffs_zapped_pages_total{exporter="system"}`:    2,
		`dmabuffs_laundered_bytes_total{exporter="system"}`: 8192,
		`dmabuffs_faults_total{exporter="system"}`:          1,
		`dmabuffs_requests_total{op="OPEN"}`:                1,
	} {
		if got := value(series); got < least {
			t.Errorf("%s is %v, want at least %v", series, got, least)
		}
	}
	total := value(`dmabuffs_laundered_bytes_total{exporter="system"}`)
	p.end()
	sh(t, mnt, "rm buffers/a; echo 1 > timelines/tl/value")
	expect(0, `dmabuffs_fences_pending`)
	waitUntil(t, "the buffer is gone", func() bool { return value(`dmabuffs_buffers{exporter="system"}`) == 0 })
	if got := value(`dmabuffs_laundered_bytes_total{exporter="system"}`); got < total {
		t.Errorf("a total fell from %v to %v", total, got)
	}
	expect(0, `dmabuffs_quota_used_bytes`)
	// Each family is announced once, before its series.
	seen := map[string]bool{}
	for line := range strings.Lines(cat(t, mnt+"/metrics")) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "#" && f[1] == "TYPE" {
			if seen[f[2]] {
				t.Errorf("%s twice", f[2])
			}
			seen[f[2]] = true
		}
	}
	if got := cat(t, mnt+"/version"); !regexp.MustCompile(`^dmabuffs \S+ \(go1\.\S+, FUSE protocol 7\.\d+\)\n$`).MatchString(got) {
		t.Errorf("version %q", got)
	}
}

func TestSeeingEvents(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	p := start(t, mnt, "listener")
	p.do("open e events r,nonblock")
	p.want("error EAGAIN", "read e 4096")
	p.want("ok", "poll e in 0")
	p.send("poll e in 30000")
	sh(t, mnt, "echo hello > buffers/a; mkdir devices/gpu0 timelines/tl; cat devices/gpu0/buffers/a > /dev/null; echo tl:1 > state/a/read_fences; echo 1 > timelines/tl/value; mv buffers/a buffers/b; rm buffers/b; rmdir devices/gpu0 timelines/tl")
	if got := p.answer(patience); got != "ok in" {
		t.Errorf("poll of events: %s", got)
	}
	var text string
	want := []string{"export", "device", "timeline", "map", "unmap", "fence", "value", "rename", "unlink", "release", "device_gone", "timeline_gone"}
	have := map[string]map[string]any{}
	waitUntil(t, "all events are there", func() bool {
		for {
			got := p.try("read e 65536")
			hex, ok := strings.CutPrefix(got, "ok ")
			if !ok {
				break
			}
			for i := 0; i+1 < len(hex); i += 2 {
				b, _ := strconv.ParseUint(hex[i:i+2], 16, 8)
				text += string(rune(b))
			}
		}
		for line := range strings.Lines(text) {
			var e map[string]any
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v in %q", err, line)
			}
			if _, err := time.Parse(time.RFC3339Nano, e["time"].(string)); err != nil {
				t.Fatal(err)
			}
			have[e["event"].(string)] = e
		}
		return !slices.ContainsFunc(want, func(w string) bool { return have[w] == nil })
	})
	for event, fields := range map[string]map[string]any{
		"export": {"buffer": "a", "exporter": "system"},
		"map":    {"buffer": "a", "device": "gpu0"},
		"fence":  {"buffer": "a", "timeline": "tl", "seqno": 1.0, "usage": "read"},
		"value":  {"timeline": "tl", "value": 1.0},
		"rename": {"buffer": "a", "to": "b"},
		"unlink": {"buffer": "b"},
	} {
		for k, v := range fields {
			if have[event][k] != v {
				t.Errorf("event %s: %v, want %s %v", event, have[event], k, v)
			}
		}
	}
}
