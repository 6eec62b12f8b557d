package tests

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// What is refused, by which errno, and that nothing changed then.

func TestRefusals(t *testing.T) {
	mnt := mount(t, "size=64m", "contiguous=1m")
	long := strings.Repeat("n", 256)
	sh(t, mnt, "cp /etc/passwd buffers/keep; mkdir devices/gpu0 timelines/tl")
	for _, c := range []struct{ name, script, why string }{
		{"name of 256 bytes", ": > buffers/" + long, "File name too long"},
		{"device of 256 bytes", "mkdir devices/" + long, "File name too long"},
		{"timeline of 256 bytes", "mkdir timelines/" + long, "File name too long"},
		{"link of 256 bytes", "ln buffers/keep buffers/" + long, "File name too long"},
		{"rename to 256 bytes", "mv buffers/keep buffers/" + long, "File name too long"},
		{"mkdir in buffers", "mkdir buffers/dir", "Operation not permitted"},
		{"mkfifo in buffers", "mkfifo buffers/pipe", "Operation not permitted"},
		{"mknod in buffers", "mknod buffers/null c 1 3", "Operation not permitted"},
		{"symlink in buffers", "ln -s keep buffers/sym", "Operation not permitted"},
		{"mkdir in exporters", "mkdir exporters/mine", "Operation not permitted"},
		{"mkdir in an exporter", "mkdir exporters/system/dir", "Operation not permitted"},
		{"file in the root", ": > file", "Permission denied"},
		{"directory in the root", "mkdir dir", "Operation not permitted"},
		{"file in devices", ": > devices/file", "Permission denied"},
		{"file in a device", ": > devices/gpu0/file", "Permission denied"},
		{"file in a device's buffers", ": > devices/gpu0/buffers/new", "Permission denied"},
		{"file in timelines", ": > timelines/file", "Permission denied"},
		{"file in points", ": > timelines/tl/points/x", "Permission denied"},
		{"file in state", ": > state/keep/mine", "Permission denied"},
		{"removing a state", "rmdir state/keep", "Operation not permitted"},
		{"removing a state file", "rm -f state/keep/size", "Operation not permitted"},
		{"removing bufinfo", "rm -f bufinfo", "Operation not permitted"},
		{"removing an exporter", "rmdir exporters/system", "Operation not permitted"},
		{"removing buffers", "rmdir buffers", "Operation not permitted"},
		{"another exporter's directory", `python3 -c 'import os; os.rename("exporters/system/keep", "exporters/coherent/keep")'`, "Invalid cross-device link"},
		{"a link to another exporter", `python3 -c 'import os; os.link("buffers/keep", "exporters/coherent/keep")'`, "Invalid cross-device link"},
		{"out of buffers", `python3 -c 'import os; os.rename("buffers/keep", "state/keep/size")'`, "Invalid cross-device link"},
		{"linking a state file", "ln state/keep/size buffers/size", "Operation not permitted"},
		{"resizing a state file", "truncate -s 100 bufinfo", "Permission denied"},
		{"writing what only shows", "echo 1 > state/keep/size", "Permission denied"},
		{"writing bufinfo", "echo 1 > bufinfo", "Permission denied"},
		{"no such buffer", "cat buffers/none", "No such file"},
		{"no such state", "ls state/none", "No such file"},
		{"no such view", "cat devices/gpu0/buffers/none", "No such file"},
		{"chmod of a view", "chmod 777 devices/gpu0/buffers/keep", "Operation not permitted"},
		{"trusted attribute", "setfattr -n trusted.x -v y buffers/keep", "not supported"},
		{"an exporter that is full", "head -c 2000000 /dev/zero > exporters/contiguous/big", "Cannot allocate memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := sh(t, mnt, "find . -path ./events -prune -o -printf '%p %s %m\\n' | sort; sha256sum buffers/keep")
			refuse(t, mnt, c.script, c.why)
			sh(t, mnt, "rm -f exporters/contiguous/big")
			if after := sh(t, mnt, "find . -path ./events -prune -o -printf '%p %s %m\\n' | sort; sha256sum buffers/keep"); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
		})
	}
	if code := run(t, patience, mnt, "sh", "-c", ": > buffers/"+long[:255]).code; code != 0 {
		t.Error("a name of 255 bytes is refused")
	}
}

func TestRefuseSizes(t *testing.T) {
	for _, e := range exporters {
		t.Run(e, func(t *testing.T) {
			t.Parallel()
			mnt := mount(t, "size=8m", "contiguous=16m")
			dir := mnt + "/exporters/" + e
			c := start(t, dir, "sizer")
			c.do("open f a rw,creat")
			c.want("error ENOSPC", "ftruncate f %d", 8<<20+1)
			c.want("error ENOSPC", "ftruncate f %d", int64(1<<40))
			c.want("error ENOSPC", "fallocate f 0 0 %d", 9<<20)
			c.want("error EFBIG", "ftruncate f %d", int64(1<<63-1))
			c.want("error EINVAL", "ftruncate f -1")
			if got := c.try("fallocate f 0 %d 8192", int64(1<<63-1)-4096); got != "error EFBIG" {
				t.Errorf("fallocate beyond 2^63-1: %s", got)
			}
			c.want("ok", "ftruncate f %d", 8<<20) // all there is
			if got := c.do("fstat f"); !strings.Contains(got, fmt.Sprintf("size=%d", 8<<20)) {
				t.Errorf("after all the refusals: %s", got)
			}
			refuse(t, dir, "echo x > b", "No space left")
			c.want("error ENOSPC", "pwrite f 00 %d", 8<<20)
			c.do("ftruncate f %d", 4<<20)
			c.do("pwrite f 61626364 0")
			// Over the limit half-way: what was stored stays readable.
			r := run(t, patience, dir, "dd", "if=/dev/zero", "of="+dir+"/c", "bs=1M")
			if r.code == 0 || !strings.Contains(r.err, "No space left") {
				t.Errorf("dd: %+v", r)
			}
			if got := sh(t, dir, "stat -c %s c; head -c 4 a"); got != fmt.Sprintf("%d\nabcd", 4<<20) {
				t.Errorf("after ENOSPC: %q", got)
			}
			sh(t, dir, "rm c; head -c 4194304 /dev/urandom > d; [ $(stat -c %s d) = 4194304 ]")
		})
	}
}

func TestRefuseTooManyBuffers(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "nr_buffers=3")
	sh(t, mnt, "echo 1 > buffers/a; echo 2 > exporters/coherent/b; : > buffers/c")
	refuse(t, mnt, ": > buffers/d", "No space left")
	refuse(t, mnt, "cp /etc/passwd exporters/contiguous/d", "No space left")
	sh(t, mnt, "ln buffers/a buffers/a2; mv buffers/b buffers/e; rm buffers/e; : > buffers/d; [ $(ls buffers | wc -l) = 4 ]")
	c := start(t, mnt, "holder")
	c.do("open f buffers/d r")
	sh(t, mnt, "rm buffers/d")
	refuse(t, mnt, ": > buffers/f", "No space left") // still held
	c.do("close f")
	waitUntil(t, "the closed buffer makes room", func() bool {
		return run(t, patience, mnt, "sh", "-c", ": > buffers/f").code == 0
	})
}

// A buffer that somebody else uses cannot change its size; as the only opener, one can.
func TestRefuseResizeShared(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		sh(t, mnt, "mkdir devices/gpu0 timelines/tl; head -c 8192 /dev/zero > exporters/"+exporter+"/a")
		me, other := start(t, dir, "me"), start(t, dir, "other")
		me.do("open f a rw")
		resizes := func(why string) {
			t.Helper()
			for _, c := range []string{"ftruncate f 4096", "ftruncate f 0", "ftruncate f 100000", "pwrite f 00 8192", "fallocate f 0 0 16384"} {
				if got := me.try("%s", c); got != "error EBUSY" {
					t.Errorf("%s: %s: %s", why, c, got)
				}
			}
			refuse(t, dir, "echo x > a", "Device or resource busy")
			refuse(t, dir, "truncate -s 1 a", "Device or resource busy")
			refuse(t, dir, "echo x >> a", "Device or resource busy")
			refuse(t, dir, "cp /etc/passwd a", "Device or resource busy")
			if got := me.do("fstat f"); !strings.Contains(got, "size=8192") {
				t.Errorf("%s: %s", why, got)
			}
		}
		other.do("open f a r")
		resizes("open elsewhere")
		me.want("ok", "ftruncate f 8192") // the same size changes nothing
		me.want("ok 2", "pwrite f 0000 8190")
		other.do("map m f 4096 0 r")
		other.do("touch m 0 4096")
		other.do("close f")
		if exporter != "coherent" { // FUSE does not tell of passthrough mappings
			resizes("mapped elsewhere")
		}
		other.do("unmap m")
		waitUntil(t, "the mapping's end is known", func() bool { return len(attachments(t, mnt, "a")) == 1 })
		other.do("open v %s/devices/gpu0/buffers/a r", mnt)
		resizes("a device has it")
		other.do("close v")
		waitUntil(t, "the device's end is known", func() bool { return len(attachments(t, mnt, "a")) == 1 })
		sh(t, mnt, "echo tl:1 > state/a/read_fences")
		resizes("a fence pends")
		sh(t, mnt, "echo 1 > timelines/tl/value")
		me.want("ok", "ftruncate f 12288")
		me.want("ok 1", "pwrite f 41 20000")
		me.want("ok 20001", "lseek f 0 2")
		if got := strings.TrimSpace(cat(t, mnt+"/state/a/size")); got != "20001" {
			t.Errorf("state says the size is %s", got)
		}
	})
}

func TestRefuseIoctls(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	sh(t, mnt, "mkdir devices/gpu0 timelines/tl; head -c 8192 /dev/zero > buffers/a")
	c := start(t, mnt, "caller")
	c.do("open f buffers/a rw")
	c.do("open r buffers/a r")
	c.do("open v devices/gpu0/buffers/a rw")
	pfd, err := strconv.Atoi(c.do("open p timelines/tl/points/5 r"))
	if err != nil {
		t.Fatal(err)
	}
	c.do("open s state/a/write_fences r")
	c.do("open d buffers r")
	c.do("open t state/a/size r")
	for _, file := range []string{"f", "r", "v"} {
		for _, n := range []string{"0x40086299", "0x4008621f", "0xc0086204", "0x6200", "0x80086200", "0x40046200", "0x400c6200", "0x40105501"} {
			c.want("error ENOTTY", "ioctl %s %s 0000000000000000000000000000000000000000", file, n)
		}
		for _, flags := range []string{"0", "4", "8", "0x11", "0x8000000000000000", "0x100000001", "-1"} {
			c.want("error EINVAL", "sync %s %s", file, flags)
		}
		c.want("error EFAULT", "ioctl %s 0x40086200 @8", file)
		c.want("error EFAULT", "ioctl %s 0x40086201 @8", file)
		c.want("error EFAULT", "ioctl %s 0x40086203 @8", file)
		c.want("error EINVAL", "export %s 0", file)
		c.want("error EINVAL", "export %s 4", file)
		c.want("error EOPNOTSUPP", "export %s 3", file)
		c.want("error EINVAL", "import %s #-1 1", file)
		c.want("error EINVAL", "import %s #9999 1", file)
		c.want("error EINVAL", "import %s #0 1", file) // a pipe
		c.want("error EINVAL", "import %s f 1", file)  // a buffer
		c.want("error EINVAL", "import %s p 0", file)
		c.want("error EINVAL", "import %s p 4", file)
		c.want("ok", "setname %s b %s", file, strings.Repeat("n", 31))
		c.want("error EINVAL", "setname %s a %s", file, strings.Repeat("x", 32))
		if got := cat(t, mnt+"/state/a/name"); got != strings.Repeat("n", 31)+"\n" {
			t.Errorf("the name is %q", got)
		}
	}
	for _, file := range []string{"p", "s"} {
		for _, n := range []string{"0x40086200", "0x40083e09", "0xc0303e02", "0x80383e04", "0x5401"} {
			c.want("error ENOTTY", "ioctl %s %s %s", file, n, strings.Repeat("00", 56))
		}
		c.want("error EINVAL", "ioctl %s 0xc0383e04 %s", file, strings.Repeat("00", 36)+"01"+strings.Repeat("00", 19)) // flags
		c.want("error EINVAL", "ioctl %s 0xc0383e04 %s", file, strings.Repeat("00", 44)+"01"+strings.Repeat("00", 11)) // pad
		c.want("error EINVAL", "ioctl %s 0x40103e05 %s", file, strings.Repeat("00", 8)+"01"+strings.Repeat("00", 7))
		c.want("error EFAULT", "ioctl %s 0xc0383e04 @8", file)
		merge := func(fd2 int, flags, pad uint32) string { // SYNC_IOC_MERGE
			arg := binary.NativeEndian.AppendUint32(make([]byte, 32), uint32(fd2))
			arg = binary.NativeEndian.AppendUint32(arg, 0)
			arg = binary.NativeEndian.AppendUint32(arg, flags)
			return fmt.Sprintf("ioctl %s 0xc0303e03 %x", file, binary.NativeEndian.AppendUint32(arg, pad))
		}
		c.want("error EINVAL", "%s", merge(pfd, 1, 0))
		c.want("error EINVAL", "%s", merge(pfd, 0, 1))
		c.want("error ENOENT", "%s", merge(-1, 0, 0))
		c.want("error ENOENT", "%s", merge(0, 0, 0)) // a pipe
		c.want("error EOPNOTSUPP", "%s", merge(pfd, 0, 0))
	}
	for _, file := range []string{"d", "t"} {
		c.want("error ENOTTY", "ioctl %s 0x40086200 0100000000000000", file)
	}
	c.want("error EACCES", "open x timelines/tl/points/5 rw")
	c.want("error ENOENT", "open x timelines/tl/points/5x r")
	c.want("error ENOENT", "open x timelines/tl/points/-1 r")
	c.want("error ENOENT", "open x timelines/tl/points/18446744073709551616 r")
	if text := cat(t, mnt+"/state/a/write_fences") + cat(t, mnt+"/state/a/read_fences"); text != "" {
		t.Errorf("fences after all the refusals: %q", text)
	}
}

// The modes of a buffer, its views and its state are kept by the kernel.
func TestRefuseOtherUsers(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "allow_other")
	sh(t, mnt, "chmod 755 .. 2>/dev/null || :; mkdir devices/gpu0 timelines/tl; echo secret > buffers/a; chmod 640 buffers/a; echo open > buffers/b; chmod 644 buffers/b")
	nobody := func(script string) string {
		return "setpriv --reuid=65534 --regid=65534 --clear-groups sh -c '" + script + "'"
	}
	for _, script := range []string{
		"cat buffers/a", "cat devices/gpu0/buffers/a", "cat state/a/write_fences", "echo x > buffers/a", "echo x >> buffers/b",
		"echo tl:1 > state/b/write_fences", "echo tl:1 > state/b/read_fences", "echo x > devices/gpu0/buffers/b",
		"echo +1 > timelines/tl/value", ": > timelines/tl/owner", "cat timelines/tl/owner", "echo 32 > devices/gpu0/dma_mask",
		"chmod 777 buffers/b", "touch -d @5 buffers/b", "setfattr -n user.x -v y buffers/b",
	} {
		r := run(t, patience, mnt, "sh", "-c", "export LC_ALL=C; "+nobody(script))
		if r.code == 0 || !strings.Contains(r.err, "ermission denied") && !strings.Contains(r.err, "not permitted") {
			t.Errorf("nobody does %s: %+v", script, r)
		}
	}
	refuse(t, mnt, nobody("rm -f buffers/b"), "not permitted") // sticky, as /tmp is
	refuse(t, mnt, nobody("rmdir devices/gpu0"), "not permitted")
	if got := sh(t, mnt, nobody("cat buffers/b devices/gpu0/buffers/b; echo mine > buffers/c; cat buffers/c; stat -c %u buffers/c; rm buffers/c")); got != "open\nopen\nmine\n65534\n" {
		t.Errorf("what nobody may do gave %q", got)
	}
}
