package tests

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Several processes share one buffer.

// newBuffer makes a buffer of n zero bytes.
func newBuffer(t *testing.T, dir, name string, n int) {
	t.Helper()
	sh(t, dir, fmt.Sprintf("truncate -s %d %s", n, name))
}

// Stores of one process are there for all others at once, through mappings, read(2) and write(2).
func TestSharing(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		const size = 64 << 10
		newBuffer(t, dir, "a", size)
		var all []*proc
		for i := range 4 {
			p := start(t, dir, fmt.Sprint("p", i))
			p.do("open f a rw")
			p.do("map m f %d 0 rw", size)
			all = append(all, p)
		}
		for round := range 50 {
			w := all[round%len(all)]
			at, v := round*1304%(size-8)&^7, uint64(round)<<32|0xabcd
			w.do("set m %d 0x%x", at, v)
			for _, r := range all {
				if got := r.number("get m %d", at); got != v {
					t.Fatalf("round %d: %s reads %#x at %d, %s wrote %#x", round, r.name, got, at, w.name, v)
				}
			}
		}
		// read(2) of what was stored, load of what was written.
		if exporter != "noncoherent" { // there read(2) is a bracket of its own, and stores need theirs
			all[0].do("set m 4096 0x1122334455667788")
			all[1].want("ok 8877665544332211", "pread f 8 4096")
			all[2].do("pwrite f 0807060504030201 8192")
			all[3].want("ok 0x102030405060708", "get m 8192")
			if got := sh(t, dir, "dd if=a bs=8 skip=1024 count=1 status=none | od -An -tx8 | tr -d ' '"); got != "0102030405060708\n" {
				t.Errorf("dd reads %q", got)
			}
		}
		if got := attachments(t, mnt, "a"); len(got) != 4 {
			t.Errorf("attachments: %q", got)
		}
		maps := 0
		for _, row := range rows(t, mnt+"/state/a/mappings") {
			if row[0] == "cpu" && row[3] == "rw-s" && row[4] == "0" && row[5] == "16" {
				maps++
			}
		}
		if maps != 4 {
			t.Errorf("mappings:\n%s", cat(t, mnt+"/state/a/mappings"))
		}
		// Private mappings are everybody's own.
		all[0].do("map own f 4096 0 rw private")
		all[0].do("set own 64 0x77")
		if got := all[1].number("get m 64"); got == 0x77 {
			t.Error("a private store is seen by others")
		}
	})
}

func TestSharingHandedOver(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 16384)
		sock := t.TempDir() + "/s"
		a, b := start(t, dir, "sender"), start(t, dir, "receiver")
		b.do("bind s %s", sock)
		a.do("open f a rw")
		a.do("map m f 16384 0 rw")
		a.do("set m 0 0x11")
		inode := func(fstat string) string { return strings.Fields(fstat)[3] }
		ino := inode(a.do("fstat f"))
		a.do("send %s f", sock)
		b.do("recv s f")
		a.do("close f")
		a.do("unmap m")
		if got := inode(b.do("fstat f")); got != ino {
			t.Errorf("sent %s, received %s", ino, got)
		}
		// One descriptor is in the receiver: it is still the sender's attachment.
		if got := attachments(t, mnt, "a"); len(got) != 1 || !strings.HasPrefix(got[0], fmt.Sprintf("cpu %d dbclient rw", a.pid())) {
			t.Errorf("attachments: %q", got)
		}
		b.do("map m f 16384 0 rw")
		b.want("ok 0x11", "get m 0")
		b.do("set m 8 0x22")
		b.want("ok 0x22", "fork get m 8")
		b.do("fork set m 16 0x33")
		b.want("ok 0x33", "get m 16")
		// dup: the same open file.
		b.do("dup f g")
		b.do("close f")
		b.do("map n g 4096 4096 rw")
		b.do("set n 0 0x44")
		b.want("ok 0x44", "get m 4096")
		b.do("close g")
		if exporter != "coherent" { // FUSE does not tell of passthrough mappings
			if got := attachments(t, mnt, "a"); len(got) != 1 {
				t.Errorf("mapped without a descriptor: attachments %q", got)
			}
		}
		// A child that holds the mappings, after the parent has let go.
		child := b.do("hold")
		b.do("unmap m")
		b.do("unmap n")
		if exporter != "coherent" {
			if got := attachments(t, mnt, "a"); len(got) != 1 {
				t.Errorf("mapped in a child: attachments %q", got)
			}
		}
		b.do("kill %s", child)
		waitUntil(t, "the last mapping's end is known", func() bool { return len(attachments(t, mnt, "a")) == 0 })
		if got := strings.TrimSpace(cat(t, mnt+"/state/a/refcount")); got != "1" {
			t.Errorf("refcount %s, of a name alone", got)
		}
		a.do("open f a r")
		a.do("map m f 16384 0 r")
		if exporter == "noncoherent" {
			a.do("sync f 1")
		}
		for at, v := range map[int]uint64{0: 0x11, 8: 0x22, 16: 0x33, 4096: 0x44} {
			if got := a.number("get m %d", at); got != v {
				t.Errorf("%#x at %d, want %#x", got, at, v)
			}
		}
	})
}

// A mapping outlives its descriptors and the name; the buffer goes with it, once.
func TestSharingOutlives(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 8192)
		p, q := start(t, dir, "p"), start(t, dir, "q")
		p.do("open f a rw")
		p.do("map m f 8192 0 rw")
		q.do("open f a rw")
		q.do("map m f 8192 0 rw")
		p.do("set m 0 0x5150")
		sh(t, dir, "rm a; echo other > a") // another buffer of that name
		p.do("close f")
		q.do("close f")
		q.want("ok 0x5150", "get m 0")
		q.do("set m 4096 0x99")
		p.want("ok 0x99", "get m 4096")
		p.do("unmap m")
		q.want("ok 0x99", "get m 4096")
		if text := cat(t, mnt+"/bufinfo"); !strings.Contains(text, "Total 2 objects, 8198 bytes") {
			t.Errorf("while it is mapped:\n%s", text)
		}
		q.do("unmap m")
		waitUntil(t, "the buffer goes with its last mapping", func() bool {
			return strings.Contains(cat(t, mnt+"/bufinfo"), "Total 1 objects, 6 bytes")
		})
		if got := cat(t, dir+"/a"); got != "other\n" {
			t.Errorf("the new buffer has %q", got)
		}
	})
}

// The mode of the descriptor bounds the mapping, and what lies behind the end raises SIGBUS.
func TestSharingBounds(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 4096+100)
		p := start(t, dir, "p")
		p.do("open r a r")
		p.do("open w a w")
		p.do("open f a rw")
		p.want("error EACCES", "map m r 4096 0 rw")
		p.want("error EACCES", "map m w 4096 0 r")
		p.do("map ro r 4096 0 r")
		p.want("error SIGSEGV", "set ro 0 1")
		p.want("error EINVAL", "map m f 0 0 rw")
		p.want("error EINVAL", "map m f 4096 1 rw")
		p.do("map m f 16384 0 rw")
		p.do("set m 4096 0x1234")
		p.do("set m 8184 0x1") // behind the end, on the last page
		p.want("error SIGBUS", "get m 8192")
		p.want("error SIGBUS", "set m 12288 1")
		p.want("ok 0x1234", "get m 4096")
		if got := sh(t, dir, "stat -c %s a; tail -c 100 a | head -c 2 | od -An -tx1"); exporter != "noncoherent" && got != "4196\n 34 12\n" {
			t.Errorf("the file has %q", got)
		}
		p.want("error EBADF", "pread w 4 0")
		p.want("error EBADF", "pwrite r 00 0")
		p.want("ok ", "pread f 4 4196")
		p.want("ok 4196", "lseek f 0 2")
	})
}

// Clients are killed in the middle of everything; the state is right again, and nothing stays.
func TestSharingKilled(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		const pages = 64
		newBuffer(t, dir, "a", pages*4096)
		sh(t, mnt, "mkdir devices/gpu0 timelines/tl; echo tl:1 > state/a/write_fences")
		stays := start(t, dir, "stays")
		stays.do("open f a rw")
		stays.do("map m f %d 0 rw", pages*4096)
		stays.do("set m 0 0x1")
		for round := range 8 {
			var victims []*proc
			for i, cmd := range []string{
				"sync f 1",                       // waits for the fence
				"poll f in 60000",                // as well
				"fill m 0 %d 0x6b696c6c6b696c6c", // is storing
				"touch m 0 %d",                   // is faulting
				"map n f 4096 0 r",               // holds
				"open v " + mnt + "/devices/gpu0/buffers/a rw", // a device at work
			} {
				p := start(t, dir, fmt.Sprintf("victim %d", i))
				p.do("open f a rw")
				p.do("map m f %d 0 rw", pages*4096)
				if strings.Contains(cmd, "%d") {
					cmd = fmt.Sprintf(cmd, pages*4096)
				}
				p.send("%s", cmd)
				if i >= 4 || round%2 == 0 && i >= 2 {
					p.answer(patience)
				}
				victims = append(victims, p)
			}
			if len(attachments(t, mnt, "a")) < 1+len(victims) {
				t.Errorf("attachments: %q", attachments(t, mnt, "a"))
			}
			if round%2 == 1 {
				slices.Reverse(victims)
			}
			for _, p := range victims {
				_ = syscall.Kill(p.pid(), syscall.SIGKILL)
			}
			for _, p := range victims {
				p.kill()
			}
			waitUntil(t, "only the one that stays is attached", func() bool {
				got := attachments(t, mnt, "a")
				return len(got) == 1 && strings.HasPrefix(got[0], fmt.Sprintf("cpu %d ", stays.pid()))
			})
			if got := cat(t, mnt+"/state/a/domain"); !strings.HasPrefix(got, "cpu\n") {
				t.Errorf("the domain after all died: %q", got)
			}
			if got := cat(t, mnt+"/devices/gpu0/attachments"); got != "" {
				t.Errorf("the device's attachments: %q", got)
			}
			stays.do("set m 0 0x%x", round+2)
			stays.want(fmt.Sprintf("ok 0x%x", round+2), "get m 0")
		}
		// As in the kernel, a poll in vain keeps a reference until the fence is done.
		if got := strings.TrimSpace(cat(t, mnt+"/state/a/refcount")); got != "3" {
			t.Errorf("refcount %s, of a name, an open file and an armed poll", got)
		}
		sh(t, mnt, "rmdir devices/gpu0 timelines/tl")
		if got := strings.TrimSpace(cat(t, mnt+"/state/a/refcount")); got != "2" {
			t.Errorf("refcount %s, of a name and an open file", got)
		}
	})
}
