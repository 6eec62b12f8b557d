package tests

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Plain tools on buffers, byte for byte, on each exporter. In the scripts $D is the
// exporter's directory, $B is buffers/, $R an ordinary directory with three files to
// compare with: small (13 bytes), odd (1 MiB and a bit) and pages (64 KiB).

// toolPrelude: no CMD fails when the command succeeds, which `!` would not make a script fail for.
const toolPrelude = `export LC_ALL=C; no() { if "$@"; then return 1; fi; }; `

var toolScripts = []struct{ name, script string }{
	{"cp", `
		for f in small odd pages; do cp $R/$f $D/$f; cmp $R/$f $D/$f; cmp $R/$f $B/$f; cp $D/$f $R/back; cmp $R/$f $R/back; done
		: > $R/empty; cp $R/empty $D/empty; cmp $R/empty $D/empty; [ "$(stat -c %s $D/empty)" = 0 ]
		cp $R/odd $D/small; cmp $R/odd $D/small # over an existing one
		cp $D/odd $D/copy; cmp $D/odd $D/copy
		cp -p $R/small $D/kept; [ "$(stat -c '%a %Y' $D/kept)" = "$(stat -c '%a %Y' $R/small)" ]
		cp --sparse=always $R/odd $D/sparse; cmp $R/odd $D/sparse
		mkdir $R/out; cp -a $D/. $R/out/; for f in small odd pages; do cmp $D/$f $R/out/$f; done`},
	{"cmp", `
		cp $R/odd $D/a; cp $R/odd $D/b; cmp $D/a $D/b
		printf X | dd of=$D/b bs=1 seek=700001 conv=notrunc status=none
		no cmp $D/a $D/b > $R/said; grep -q ' 700002,' $R/said`},
	{"dd odd sizes", `
		for bs in 1000 4095 4097 65537 1000003; do
			dd if=$R/odd of=$D/d bs=$bs status=none; cmp $R/odd $D/d
			dd if=$D/d of=$R/back bs=$bs status=none; cmp $R/odd $R/back
		done
		dd if=$R/odd of=$D/sync bs=64k oflag=dsync conv=fsync status=none; cmp $R/odd $D/sync`},
	{"dd notrunc seek", `
		cp $R/odd $D/d; cp $R/odd $R/model
		for at in 0 1 4095 4096 4097 99999 1048575; do
			for to in $D/d $R/model; do dd if=$R/small of=$to bs=1 seek=$at conv=notrunc status=none; done
			cmp $R/model $D/d
		done
		for to in $D/d $R/model; do dd if=$R/pages of=$to bs=4k seek=300 conv=notrunc status=none; done # beyond the end
		cmp $R/model $D/d
		for to in $D/d $R/model; do dd if=$R/pages of=$to bs=3000 skip=2 seek=5 count=3 conv=notrunc status=none; done
		cmp $R/model $D/d`},
	{"truncate", `
		for size in 0 1 4095 4096 4097 1000000; do
			truncate -s $size $D/t; [ "$(stat -c %s $D/t)" = $size ]
			head -c $size /dev/zero | cmp - $D/t
		done
		cp $R/odd $D/t; truncate -s 5000 $D/t; head -c 5000 $R/odd | cmp - $D/t
		truncate -s 9000 $D/t # what was cut off does not come back
		{ head -c 5000 $R/odd; head -c 4000 /dev/zero; } | cmp - $D/t
		truncate -s +10 $D/t; [ "$(stat -c %s $D/t)" = 9010 ]; truncate -s 0 $D/t; [ ! -s $D/t ]`},
	{"fallocate", `
		fallocate -l 100000 $D/f; [ "$(stat -c %s $D/f)" = 100000 ]; head -c 100000 /dev/zero | cmp - $D/f
		[ "$(stat -c %b $D/f)" -ge 195 ]
		cp $R/odd $D/h; cp $R/odd $R/model
		for to in $D/h $R/model; do fallocate -p -o 8192 -l 16384 $to; done; cmp $R/model $D/h
		for to in $D/h $R/model; do fallocate -p -o 5000 -l 100 $to; done; cmp $R/model $D/h
		fallocate -n -l 2000000 $D/h; cmp $R/model $D/h`},
	{"redirections", `
		cat $R/odd > $D/c; cmp $R/odd $D/c
		cat $R/small > $D/c; cmp $R/small $D/c
		cat $R/pages >> $D/c; cat $R/small $R/pages | cmp - $D/c
		for i in 1 2 3 4 5 6 7 8 9; do echo line $i >> $D/log; done; [ "$(tail -1 $D/log)" = 'line 9' ]; [ "$(wc -l < $D/log)" = 9 ]
		{ cat $R/small; cat $R/odd; } > $D/both; cat $R/small $R/odd | cmp - $D/both
		exec 3<> $D/both; head -c 13 <&3 | cmp - $R/small; exec 3>&-`},
	{"head and tail", `
		cp $R/odd $D/h
		for n in 1 13 4096 4097 1000000; do cmp <(head -c $n $D/h) <(head -c $n $R/odd); cmp <(tail -c $n $D/h) <(tail -c $n $R/odd); done
		head -c 700000 /dev/urandom > $D/r; [ "$(stat -c %s $D/r)" = 700000 ]`},
	{"split", `
		split -b 100001 $R/odd $D/part.; cat $D/part.* | cmp - $R/odd
		split -n 7 $D/part.aa $R/again.; cat $R/again.* | cmp - $D/part.aa`},
	{"tar", `
		tar -C $R -cf $D/all.tar small odd pages; tar -xf $D/all.tar -C $D
		for f in small odd pages; do cmp $R/$f $D/$f; [ "$(stat -c '%a %Y' $R/$f)" = "$(stat -c '%a %Y' $D/$f)" ]; done
		mkdir $R/out; tar -C $D -cf - small odd pages | tar -C $R/out -xf -; for f in small odd pages; do cmp $R/$f $R/out/$f; done
		tar -C $R -czf - odd | tee $D/z.tgz | tar -tzf - > /dev/null; gzip -t < $D/z.tgz`},
	{"checksums", `
		for f in small odd pages; do cp $R/$f $D/$f; done
		(cd $R; sha256sum small odd pages; md5sum odd) > $R/sums; (cd $D; grep -v ' odd' $R/sums | sha256sum -c --quiet -)
		[ "$(sha256sum < $R/odd)" = "$(sha256sum < $D/odd)" ]`},
	{"mv", `
		cp $R/odd $D/a; ino=$(stat -c %i $D/a); mv $D/a $D/b; [ ! -e $D/a ]; [ ! -e $B/a ]; cmp $R/odd $D/b; [ "$(stat -c %i $B/b)" = $ino ]
		cp $R/small $D/c; mv $D/b $D/c; cmp $R/odd $D/c; [ "$(ls $D)" = c ]
		mv $D/c $R/away; cmp $R/odd $R/away; [ -z "$(ls $D)" ]; mv $R/away $D/home; cmp $R/odd $D/home
		odd=$'a name\twith \\ every\nthing \xff in it'; mv $D/home "$D/$odd"; cmp $R/odd "$B/$odd"; ls "$M/state/$odd" > /dev/null
		[ "$(ls -N $D | head -c 100)" = "$odd" ]; mv "$D/$odd" $D/-dash; cmp $R/odd $D/-dash; cp $R/small $D/stays; mv -n $D/-dash $D/stays; cmp $R/small $D/stays`},
	{"ln", `
		cp $R/small $D/a; ln $D/a $D/b; [ $D/a -ef $D/b ]; [ $D/a -ef $B/b ]; [ "$(stat -c %i $D/a)" = "$(stat -c %i $D/b)" ]
		echo more >> $D/b; cmp $D/a $D/b; n=$(stat -c %h $D/a); rm $D/a; [ "$(stat -c %h $D/b)" -lt $n ]; [ "$(tail -1 $D/b)" = more ]
		ln -f $D/b $D/c; ln -sf $D/b $R/sym; cmp $R/sym $D/c`},
	{"rm while open", `
		cp $R/odd $D/a; exec 3< $D/a; rm $D/a; [ ! -e $D/a ]; [ ! -e $B/a ]; cmp $R/odd <(cat <&3); exec 3<&-
		cp $R/odd $D/a; exec 3<> $D/a; rm $D/a; printf hello >&3; exec 4< /proc/self/fd/3; [ "$(head -c 5 <&4)" = hello ]; exec 3>&- 4<&-
		cp $R/small $D/a; cmp $R/small $D/a; rm -f $D/a $D/none; [ -z "$(ls $D)" ]`},
	{"chmod chown touch", `
		cp $R/small $D/a; for m in 600 444 755 640; do chmod $m $D/a; [ "$(stat -c %a $D/a)" = $m ]; [ "$(stat -c %a $B/a)" = $m ]; done
		chmod u+x,g-r $D/a; [ "$(stat -c %a $D/a)" = 700 ]
		chown 1234:4321 $D/a; [ "$(stat -c '%u %g' $D/a)" = '1234 4321' ]
		touch -d @1000000000.5 $D/a; [ "$(stat -c %.1Y $D/a)" = 1000000000.5 ]; touch -a -d @5 $D/a; [ "$(stat -c '%X %Y' $D/a)" = '5 1000000000' ]
		touch $D/new; [ "$(stat -c '%s %F' $D/new)" = '0 regular empty file' ]; now=$(date +%s); t=$(stat -c %Y $D/new); [ $((now - t)) -lt 60 ]
		umask 077; : > $D/private; [ "$(stat -c %a $D/private)" = 600 ]`},
	{"stat", `
		cp $R/odd $D/a; [ "$(stat -c '%s %F %h' $D/a | cut -d' ' -f1-3)" = "$(stat -c %s $R/odd) regular file" ]
		[ "$(stat -c %i $D/a)" = "$(stat -c %i $B/a)" ]; [ "$(stat -c %d $D/a)" = "$(stat -c %d $M)" ]
		[ "$(($(stat -c %b $D/a) * 512))" -ge "$(stat -c %s $R/odd)" ]; stat -f -c '%T %S' $M | grep -q fuse`},
	{"ls", `
		cp $R/small $D/one; cp $R/odd $D/two
		[ "$(ls $D)" = "$(printf 'one\ntwo')" ]
		ls -li $D | awk 'NR > 1 {print $1, $6, $NF}' > $R/said
		{ echo "$(stat -c %i $D/one) 13 one"; echo "$(stat -c '%i %s' $R/odd | cut -d' ' -f2 | sed "s/^/$(stat -c %i $D/two) /") two"; } | cmp - $R/said
		[ "$(ls -lR $M/exporters | grep -c ' one$')" = 1 ]`},
	{"find", `
		for i in 1 2 3; do cp $R/small $D/f$i; done; cp $R/odd $D/big
		[ "$(find $D -type f | wc -l)" = 4 ]; [ "$(find $D -type f -size +100k)" = $D/big ]; [ "$(find $M/buffers -name 'f*' | sort | tail -1)" = $M/buffers/f3 ]
		find $D -name 'f*' -delete; [ "$(ls $D)" = big ]; find $D -inum $(stat -c %i $D/big) | grep -q big
		find $M -path '*/events' -prune -o -type f -print > /dev/null; [ "$(grep -rl hello $D)" = '' ]`},
	{"du and df", `
		before=$(df -B1 --output=used $M | tail -1); head -c 8000000 /dev/urandom > $D/a
		du=$(du -B1 $D/a | cut -f1); [ $du -ge 8000000 ]; [ $du -lt 9000000 ]; [ "$(du -b $D/a | cut -f1)" = 8000000 ]
		used=$(df -B1 --output=used $M | tail -1); [ $((used - before)) -ge 8000000 ]; [ $((used - before)) -lt 9000000 ]
		rm $D/a; for i in 1 2 3 4 5 6 7 8 9; do used=$(df -B1 --output=used $M | tail -1); [ $used != $before ] || break; sleep .2; done; [ $used = $before ]
		df -i $M > /dev/null; [ "$(df --output=fstype $M | tail -1)" = fuse.dmabuffs ]; [ "$(df -B1 --output=size $M | tail -1)" = $((512 << 20)) ]`},
	{"attributes", `
		cp $R/small $D/a; setfattr -n user.note -v 'hello world' $D/a; setfattr -n user.other -v 0x00ff00 $D/a
		[ "$(getfattr --only-values -n user.note $D/a)" = 'hello world' ]; [ "$(getfattr --only-values -n user.note $B/a)" = 'hello world' ]
		getfattr -e hex -n user.other --absolute-names $D/a | grep -q 0x00ff00
		[ "$(getfattr --absolute-names -d -m - $D/a | grep -c '^user')" = 2 ]
		setfattr -x user.note $D/a; no getfattr -n user.note $D/a 2>/dev/null
		mv $D/a $D/b; getfattr -n user.other --absolute-names $D/b > /dev/null; no setfattr -n trusted.x -v y $D/b 2>/dev/null
		cp --preserve=xattr $D/b $D/c; getfattr -n user.other --absolute-names $D/c > /dev/null`},
	{"editors", `
		printf 'one\ntwo\n' > $D/text; sed -i s/two/three/ $D/text; [ "$(cat $D/text)" = "$(printf 'one\nthree')" ]; [ "$(ls -A $D)" = text ]
		sed -i.bak s/one/1/ $D/text; [ "$(cat $D/text.bak)" = "$(printf 'one\nthree')" ]; [ "$(head -1 $B/text)" = 1 ]
		printf '1s/1/first/\nw\nq\n' | ed -s $D/text; [ "$(head -1 $D/text)" = first ]
		sort -o $D/text $D/text; tee -a $D/text < $R/small > /dev/null; tail -c 13 $D/text | cmp - $R/small`},
	{"copy within and python", `
		cp $R/odd $D/a
		python3 - $D/a <<-'PY'
			import mmap, os, sys
			f = os.open(sys.argv[1], os.O_RDWR)
			m = mmap.mmap(f, 0)
			m[4096:4101] = b"hello"
			assert os.pread(f, 5, 4096) == b"hello"
			os.pwrite(f, b"world", 8192)
			assert m[8192:8197] == b"world"
			m.flush()
			m.close()
			os.close(f)
		PY
		cp $R/odd $R/model; printf hello | dd of=$R/model bs=1 seek=4096 conv=notrunc status=none; printf world | dd of=$R/model bs=1 seek=8192 conv=notrunc status=none
		cmp $R/model $D/a`},
}

// content is n bytes that do not repeat.
func content(n int, seed uint64) []byte {
	p := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		p[i] = byte(x >> 32)
	}
	return p
}

func TestTools(t *testing.T) {
	for _, e := range exporters {
		t.Run(e, func(t *testing.T) {
			t.Parallel()
			mnt := mount(t, "size=512m", "contiguous=64m")
			dir := mnt + "/exporters/" + e
			for _, tool := range toolScripts {
				t.Run(tool.name, func(t *testing.T) {
					ref := t.TempDir()
					for name, data := range map[string][]byte{
						"small": []byte("hello, world\n"),
						"odd":   content(1<<20+12345, 1),
						"pages": content(64<<10, 2),
					} {
						if err := os.WriteFile(filepath.Join(ref, name), data, 0o640); err != nil {
							t.Fatal(err)
						}
					}
					sh(t, "/", toolPrelude+fmt.Sprintf("M=%s D=%s B=%s/buffers R=%s\n%s", mnt, dir, mnt, ref, tool.script))
					sh(t, dir, "rm -f -- * .[!.]*")
				})
			}
			if left := strings.TrimSpace(sh(t, mnt, "ls buffers")); left != "" {
				t.Errorf("left in buffers/: %q", left)
			}
			if text := cat(t, mnt+"/bufinfo"); !strings.Contains(text, "Total 0 objects, 0 bytes") {
				t.Errorf("buffers outlive their names:\n%s", text)
			}
		})
	}
}

// rm while a buffer is mapped, and while a device has it.
func TestRemoveWhileUsed(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		sh(t, mnt, "mkdir devices/gpu0; head -c 16384 /dev/zero | tr '\\0' A > exporters/"+exporter+"/a")
		c := start(t, dir, "mapper")
		c.do("open f a rw")
		c.do("map m f 16384 0 rw")
		c.do("open v %s/devices/gpu0/buffers/a rw", mnt)
		sh(t, dir, "rm a")
		refuse(t, mnt, "cat buffers/a", "No such file")
		refuse(t, mnt, "cat devices/gpu0/buffers/a", "No such file")
		refuse(t, mnt, "cat state/a/size", "No such file")
		c.want("ok 0", "check m 0 16384 0x4141414141414141")
		c.do("fill m 4096 4096 0x4242424242424242")
		c.do("sync f 7") // noncoherent hands over
		c.do("sync v 3")
		c.want("ok 4242", "pread v 2 4096")
		c.do("close v")
		c.do("close f")
		if exporter != "coherent" { // FUSE does not tell of the last munmap of a passthrough mapping
			c.want("ok 0", "check m 4096 4096 0x4242424242424242")
		}
		c.do("unmap m")
		waitUntil(t, "the buffer is released", func() bool {
			return strings.Contains(cat(t, mnt+"/bufinfo"), "Total 0 objects")
		})
		sh(t, mnt, "rmdir devices/gpu0")
	})
}
