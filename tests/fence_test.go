package tests

import (
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Fences as files: timelines, points, reservations, and everything that waits for them.

func TestFencesPoll(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 4096)
		sh(t, mnt, "mkdir timelines/tl timelines/other")
		p := start(t, dir, "p")
		p.do("open f a r") // the mode plays no part
		p.do("epoll e")
		p.do("epadd e f in,out")
		expect := func(when, ready string) {
			t.Helper()
			var in, out string
			letters := ""
			if strings.Contains(ready, "in") {
				in, letters = " in", "r"
			}
			if strings.Contains(ready, "out") {
				out, letters = " out", letters+"w"
			}
			for cmd, want := range map[string]string{
				"poll f in 0": "ok" + in, "poll f out 0": "ok" + out, "poll f in,out 0": "ok" + in + out,
				"poll f in,out,pri,rdhup 0": "ok" + in + out, "poll f none 0": "ok", "poll f pri 0": "ok", "poll f rdnorm,wrnorm 0": "ok",
				"select f rwe 0": "ok " + letters, "epwait e 0": "ok" + in + out,
			} {
				if got := p.try("%s", cmd); got != want {
					t.Errorf("%s: %s: %q, want %q", when, cmd, got, want)
				}
			}
		}
		add := func(usage, fence string) { t.Helper(); sh(t, mnt, "echo "+fence+" > state/a/"+usage+"_fences") }
		advance := func(tl string, v int) { t.Helper(); sh(t, mnt, fmt.Sprintf("echo %d > timelines/%s/value", v, tl)) }
		expect("no fence", "in out")
		add("read", "tl:1")
		expect("a read fence", "in")
		add("write", "other:1")
		expect("both", "")
		advance("other", 1)
		expect("the write fence is done", "in")
		advance("tl", 1)
		expect("both are done", "in out")
		add("write", "tl:3")
		expect("a write fence", "")
		advance("tl", 2)
		expect("not far enough", "")
		advance("tl", 5)
		expect("passed", "in out")
		add("write", "tl:4")
		expect("a fence that is done already", "in out")
		add("write", "tl:9")
		sh(t, mnt, "rmdir timelines/tl")
		expect("a fence that failed", "in out")
		if got := p.do("select f e 50"); got != "" {
			t.Errorf("select's exception set fires: %q", got)
		}
	})
}

// Whoever sleeps is woken by the last fence it waits for, and only then.
func TestFencesWake(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/t1 timelines/t2; echo t1:1 > state/a/write_fences; echo t2:1 > state/a/read_fences")
	waiters := map[string]*proc{}
	for _, cmd := range []string{"poll f in -1", "poll f out -1", "select f r -1", "select f w -1", "epwait in -1", "epwait out -1", "sync f 1", "sync f 2", "sync f 3"} {
		p := start(t, mnt, cmd)
		p.do("open f buffers/a r")
		for _, ev := range []string{"in", "out"} {
			p.do("epoll %s", ev)
			p.do("epadd %s f %s", ev, ev)
		}
		p.send("%s", cmd)
		waiters[cmd] = p
	}
	for _, p := range waiters {
		p.quiet()
	}
	other := start(t, mnt, "other") // others go on meanwhile
	other.do("open f buffers/a rw")
	other.do("sync f 7")
	other.do("setname f b busy")
	other.do("map m f 4096 0 rw")
	other.do("set m 0 1")
	sh(t, mnt, "echo 1 > timelines/t1/value")
	for cmd, want := range map[string]string{"poll f in -1": "ok in", "select f r -1": "ok r", "epwait in -1": "ok in", "sync f 1": "ok"} {
		if got := waiters[cmd].answer(patience); got != want {
			t.Errorf("%s: %q, want %q", cmd, got, want)
		}
		delete(waiters, cmd)
	}
	for _, p := range waiters {
		p.quiet()
	}
	// A fence that comes while poll sleeps is waited for as well; SYNC waits for those there were.
	sh(t, mnt, "echo t1:2 > state/a/read_fences; echo 1 > timelines/t2/value")
	for _, cmd := range []string{"sync f 2", "sync f 3"} {
		if got := waiters[cmd].answer(patience); got != "ok" {
			t.Errorf("%s: %q", cmd, got)
		}
		delete(waiters, cmd)
	}
	for _, p := range waiters {
		p.quiet()
	}
	sh(t, mnt, "echo 2 > timelines/t1/value")
	for cmd, want := range map[string]string{"poll f out -1": "ok out", "select f w -1": "ok w", "epwait out -1": "ok out"} {
		if got := waiters[cmd].answer(patience); got != want {
			t.Errorf("%s: %q, want %q", cmd, got, want)
		}
	}
}

// Edge-triggered and one-shot epoll, by the edges of a point and of a buffer.
func TestFencesEpoll(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/tl; echo tl:1 > state/a/read_fences; echo tl:2 > state/a/read_fences")
	p := start(t, mnt, "p")
	p.do("open f buffers/a r")
	p.do("open s timelines/tl/points/2 r")
	for name, file := range map[string]string{"et1": "f out,et", "one1": "f out,oneshot", "et2": "s in,et", "one2": "s in,oneshot"} {
		p.do("epoll %s", name)
		p.do("epadd %s %s", name, file)
		p.want("ok", "epwait %s 0", name)
	}
	sh(t, mnt, "echo 1 > timelines/tl/value") // the first of two
	for _, name := range []string{"et1", "one1", "et2", "one2"} {
		p.want("ok", "epwait %s 100", name)
	}
	sh(t, mnt, "echo 2 > timelines/tl/value")
	p.want("ok out", "epwait et1 30000")
	p.want("ok in", "epwait et2 30000")
	p.want("ok in", "epwait one2 30000")
	p.want("ok", "epwait et2 100") // a sync file's edge comes once
	p.want("ok out", "epwait one1 30000")
	p.want("ok", "epwait one1 100")
	p.want("ok", "epwait one2 100")
	p.do("epmod one1 f out,oneshot") // armed again: it is still so
	p.want("ok out", "epwait one1 30000")
}

// Thousands of fences, signaled at any moment around the waiter's going to sleep: no
// wakeup is lost, and none is asked for in a loop.
func TestFencesNoLostWakeup(t *testing.T) {
	rounds := 3000
	if testing.Short() {
		rounds = 500
	}
	for _, how := range []string{"poll", "select", "epoll", "et", "oneshot"} {
		for _, c := range []struct{ file, events string }{{"write_fences", "in"}, {"read_fences", "out"}} {
			t.Run(how+" "+c.events, func(t *testing.T) {
				mnt := mount(t)
				newBuffer(t, mnt+"/buffers", "a", 4096)
				sh(t, mnt, "mkdir timelines/tl")
				before := pollRequests(t, mnt)
				r := run(t, 3*patience, mnt, dbclient(t), fmt.Sprintf("rounds state/a/%s buffers/a timelines/tl %d %s %s", c.file, rounds, c.events, how))
				var woken, looks, status int
				if _, err := fmt.Sscanf(r.out, "ok %d %d %d", &woken, &looks, &status); err != nil || woken != rounds || status != 0 {
					t.Fatalf("of %d rounds: %q %q, %v", rounds, r.out, r.err, err)
				}
				if looks > 4*rounds {
					t.Errorf("%d wakeups took %d waits", woken, looks)
				}
				if n := pollRequests(t, mnt) - before; n > 12*rounds {
					t.Errorf("%d wakeups took %d POLL requests", woken, n)
				}
			})
		}
	}
}

func pollRequests(t *testing.T, mnt string) int {
	t.Helper()
	m := regexp.MustCompile(`(?m)^dmabuffs_requests_total\{op="POLL"\} (\S+)$`).FindStringSubmatch(cat(t, mnt+"/metrics"))
	if m == nil {
		return 0
	}
	n, err := strconv.ParseFloat(m[1], 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// A sleeping waiter costs nothing: no POLL requests come while nothing happens.
func TestFencesNoBusyLoop(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/tl; echo tl:1 > state/a/write_fences")
	p := start(t, mnt, "p")
	p.do("open f buffers/a r")
	p.send("poll f in,out -1")
	p.quiet()
	before := pollRequests(t, mnt)
	time.Sleep(300 * time.Millisecond)
	if n := pollRequests(t, mnt) - before; n != 0 {
		t.Errorf("%d POLL requests of a sleeping waiter", n)
	}
	sh(t, mnt, "echo 1 > timelines/tl/value")
	if got := p.answer(patience); !strings.HasPrefix(got, "ok") {
		t.Error(got)
	}
	if n := pollRequests(t, mnt) - before; n > 4 {
		t.Errorf("one wakeup took %d POLL requests", n)
	}
}

// Thousands wait for one buffer; some are killed, some descriptors are closed while they are polled.
func TestFencesCrowd(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/tl; echo tl:1 > state/a/write_fences")
	const each = 1000
	var crowd []*proc
	for i := range 3 {
		p := start(t, mnt, fmt.Sprint("crowd ", i))
		p.do("limit 4096")
		p.do("waiters %d buffers/a in", each)
		crowd = append(crowd, p)
	}
	closer := start(t, mnt, "closer")
	polled := fmt.Sprintf("/proc/%d/fd/%s", closer.pid(), closer.do("open f buffers/a r"))
	closer.do("open g buffers/a r")
	closer.do("closing f 100")
	closer.send("poll f in -1") // sleeps on, with the file, until the fence is done
	var lonely []*proc
	for i := range 20 {
		p := start(t, mnt, fmt.Sprint("lonely ", i))
		p.do("open f buffers/a r")
		p.send("poll f in,out -1")
		lonely = append(lonely, p)
	}
	for i, p := range lonely {
		if i%2 == 0 {
			p.kill()
		}
	}
	crowd[2].kill()
	for _, p := range crowd[:2] {
		p.want("ok 0 0", "woken")
	}
	waitUntil(t, "the polled descriptor is closed", func() bool {
		_, err := os.Lstat(polled)
		return err != nil
	})
	sh(t, mnt, "echo 1 > timelines/tl/value")
	for _, p := range crowd[:2] {
		if got := p.do("join"); got != fmt.Sprintf("%d 0", each) {
			t.Errorf("of %d waiters: %s", each, got)
		}
	}
	for i, p := range lonely {
		if i%2 == 1 {
			if got := p.answer(patience); !strings.HasPrefix(got, "ok ") {
				t.Errorf("%s: %q", p.name, got)
			}
		}
	}
	if got := closer.answer(patience); got != "ok other:20" { // POLLNVAL: then it looks again
		t.Errorf("polling a descriptor that another thread closes: %q", got)
	}
	closer.want("ok in", "poll g in 0")
	closer.end()
	waitUntil(t, "the others have gone", func() bool {
		return len(attachments(t, mnt, "a")) == 10 // the lonely that live
	})
}

func TestFencesPoints(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	sh(t, mnt, "mkdir timelines/gpu0")
	p := start(t, mnt, "p")
	p.do("open a timelines/gpu0/points/7 r")
	p.want("ok pending|", "text a")
	p.want("ok", "poll a in,out,pri 0")
	if got := p.do("info a 0"); !regexp.MustCompile(`^dmabuffs-gpu0\d+-7 0 1$`).MatchString(got) {
		t.Errorf("FILE_INFO without an array: %q", got)
	}
	if got := p.do("info a 1"); !regexp.MustCompile(`^dmabuffs-gpu0\d+-7 0 1 dmabuffs/gpu0/0/0$`).MatchString(got) {
		t.Errorf("FILE_INFO of a pending point: %q", got)
	}
	p.send("poll a in -1")
	p.quiet()
	sh(t, mnt, "echo +6 > timelines/gpu0/value")
	p.quiet()
	sh(t, mnt, "echo +1 > timelines/gpu0/value; [ $(cat timelines/gpu0/value) = 7 ]")
	if got := p.answer(patience); got != "ok in" {
		t.Error(got)
	}
	p.want("ok signaled|", "text a")
	p.want("ok", "poll a out 0")
	p.do("ioctl a 0x40103e05 %s", strings.Repeat("ff", 8)+strings.Repeat("00", 8)) // SET_DEADLINE
	got := strings.Fields(p.do("info a 4"))
	if len(got) != 4 || got[1] != "1" || !regexp.MustCompile(`^dmabuffs/gpu0/1/[1-9]\d*$`).MatchString(got[3]) {
		t.Errorf("FILE_INFO of a signaled point: %q", got)
	}
	p.do("open b timelines/gpu0/points/3 r") // passed already
	p.want("ok signaled|", "text b")
	p.do("open c timelines/gpu0/points/18446744073709551615 r")
	p.want("ok pending|", "text c")
	if got := strings.TrimSpace(sh(t, mnt, "ls timelines/gpu0/points")); got != "18446744073709551615" {
		t.Errorf("points/ lists %q", got)
	}
	sh(t, mnt, "rmdir timelines/gpu0")
	p.want("ok error -ENOENT|", "text c")
	p.want("ok in", "poll c in 30000")
	if got := strings.Fields(p.do("info c 1")); len(got) != 4 || got[1] != "-2" {
		t.Errorf("FILE_INFO of a failed point: %q", got)
	}
	p.want("ok signaled|", "text a")
	p.want("error ENOENT", "open d timelines/gpu0/points/8 r")
}

// A snapshot is of the fences there were at open.
func TestFencesSnapshots(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/t1 timelines/t2 timelines/t3")
	p := start(t, mnt, "p")
	p.do("open none state/a/write_fences r")
	p.want("ok in", "poll none in,out 0")
	p.want("ok stub-stub0-0 1 1", "info none 0")
	sh(t, mnt, "echo t1:1 > state/a/write_fences; echo t2:1 > state/a/read_fences")
	p.do("open w state/a/write_fences r")
	p.do("open r state/a/read_fences r")
	p.want("ok t1 1 pending dmabuffs|", "text w")
	p.want("ok t2 1 pending dmabuffs|", "text r")
	p.want("ok in", "poll none in 0")
	sh(t, mnt, "echo t3:1 > state/a/write_fences")
	p.do("open both state/a/write_fences r")
	p.want("ok", "poll both in 0")
	if got := strings.Fields(p.do("info both 0")); len(got) != 3 || got[1] != "0" || got[2] != "2" {
		t.Errorf("FILE_INFO of two, without an array: %q", got)
	}
	p.want("error EINVAL", "info both 1")
	if got := strings.Fields(p.do("info both 5")); len(got) != 5 || got[2] != "2" {
		t.Errorf("FILE_INFO of two: %q", got)
	}
	p.send("poll w in -1")
	p.quiet()
	sh(t, mnt, "echo 1 > timelines/t1/value")
	if got := p.answer(patience); got != "ok in" { // though t3:1 pends
		t.Error(got)
	}
	p.want("ok t1 1 signaled dmabuffs|", "text w")
	p.want("ok", "poll both in 0")
	p.want("ok", "poll r in 0")
	sh(t, mnt, "echo 1 > timelines/t3/value; echo 1 > timelines/t2/value")
	p.want("ok in", "poll both in 30000")
	p.want("ok in", "poll r in 30000")
	// Readers of a shell see the same, each its own.
	sh(t, mnt, "echo t1:5 > state/a/write_fences; [ \"$(cat state/a/write_fences | grep pending)\" = 't1 5 pending dmabuffs' ]")
}

// Whoever dies while it owns a timeline leaves nobody waiting.
func TestFencesDeadOwner(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	for round := range 20 {
		sh(t, mnt, "mkdir timelines/tl; [ \"$(cat timelines/tl/owner)\" = '' ]") // a look is no owner
		owner, second, waiter, reader := start(t, mnt, "owner"), start(t, mnt, "second"), start(t, mnt, "waiter"), start(t, mnt, "reader")
		owner.do("open o timelines/tl/owner rw")
		second.do("open o timelines/tl/owner w")
		if got := cat(t, mnt+"/timelines/tl/owner"); got != fmt.Sprintf("%d dbclient\n%d dbclient\n", owner.pid(), second.pid()) &&
			got != fmt.Sprintf("%d dbclient\n%d dbclient\n", second.pid(), owner.pid()) {
			t.Errorf("owners: %q", got)
		}
		sh(t, mnt, "echo tl:1 > state/a/write_fences")
		waiter.do("open p timelines/tl/points/1 r")
		waiter.do("open f buffers/a r")
		waiter.send("poll p in -1")
		reader.do("open f buffers/a r")
		reader.send("sync f 1")
		second.kill()
		waiter.quiet()
		if round%2 == 0 {
			owner.kill()
		} else {
			owner.do("close o")
		}
		if got := waiter.answer(patience); got != "ok in" {
			t.Errorf("the waiter: %q", got)
		}
		if got := reader.answer(patience); got != "ok" { // a fence that failed is done
			t.Errorf("SYNC START: %q", got)
		}
		waiter.want("ok error -ENOENT|", "text p")
		waiter.want("ok in out", "poll f in,out 30000")
		refuse(t, mnt, "cat timelines/tl/value", "No such file")
		for _, p := range []*proc{owner, second, waiter, reader} {
			p.kill()
		}
	}
}

func TestFencesImports(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	newBuffer(t, mnt+"/buffers", "b", 4096)
	sh(t, mnt, "mkdir timelines/t1 timelines/t2 timelines/t3")
	p := start(t, mnt, "p")
	p.do("open a buffers/a rw")
	p.do("open b buffers/b r") // no permission check, as in the kernel
	p.do("open p1 timelines/t1/points/1 r")
	p.do("open p2 timelines/t2/points/1 r")
	fences := func(file string) string { t.Helper(); return cat(t, mnt+"/state/"+file+"_fences") }
	p.do("import a p1 1")
	if w, r := fences("a/write"), fences("a/read"); w != "" || r != "t1 1 pending dmabuffs\n" {
		t.Errorf("imported to read: write %q, read %q", w, r)
	}
	p.do("import a p1 1") // once more: one fence
	if r := fences("a/read"); r != "t1 1 pending dmabuffs\n" {
		t.Errorf("imported twice: %q", r)
	}
	p.do("import a p1 2") // promoted
	if w, r := fences("a/write"), fences("a/read"); w != "t1 1 pending dmabuffs\n" || r != "" {
		t.Errorf("imported to read, then to write: write %q, read %q", w, r)
	}
	p.do("import a p2 2") // no conflict rule
	if w := strings.Fields(fences("a/write")); len(w) != 8 {
		t.Errorf("two writers: %q", w)
	}
	// A buffer's own fences, as a snapshot, into itself and into another.
	p.do("open s state/a/write_fences r")
	p.do("import a s 2")
	p.do("import b s 1")
	if w, r := fences("a/write"), fences("b/read"); len(strings.Fields(w)) != 8 || len(strings.Fields(r)) != 8 {
		t.Errorf("imported a snapshot of two: %q into itself, %q into another", w, r)
	}
	sh(t, mnt, "echo 1 > timelines/t1/value")
	p.want("ok", "poll b out 0")
	p.want("ok in", "poll b in 0")
	p.do("close s")
	p.do("close p2")
	sh(t, mnt, "echo 1 > timelines/t2/value")
	p.want("ok out", "poll b out 30000")
	p.want("ok in out", "poll a in,out 30000")
	// dup'ed and inherited sync files are as good.
	p.do("open p3 timelines/t3/points/9 r")
	p.do("dup p3 q3")
	p.do("close p3")
	p.want("ok", "fork import a q3 2")
	if w := fences("a/write"); !strings.Contains(w, "t3 9 pending dmabuffs\n") {
		t.Errorf("imported by a child: %q", w)
	}
}

func TestFencesBadInput(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "nr_fences=8")
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/gpu0; echo 5 > timelines/gpu0/value")
	for _, file := range []string{"state/a/write_fences", "state/a/read_fences"} {
		for _, text := range []string{"gpu0:abc", "gpu0:", "gpu0", ":7", ":", "nobody:7", "gpu0:18446744073709551616", "gpu0:-1", "gpu0:+1", "gpu0:0x7",
			"gpu0:7 gpu0:8", "gpu0:7:8", "gpu0 :7", " gpu0:7", "gpu0:7 ", "gpu0:00000000000000000000000007"} {
			refuse(t, mnt, "echo '"+text+"' > "+file, "Invalid argument")
		}
		refuse(t, mnt, "printf 'gpu0:7\\ngpu0:8\\n' | dd of="+file+" bs=100 iflag=fullblock status=none", "Invalid argument")
		refuse(t, mnt, "head -c 100000 /dev/zero | tr '\\0' 7 > "+file, "Invalid argument")
	}
	for _, text := range []string{"4", "0", "-1", "+-1", "abc", "", "++1", "1 2", "18446744073709551616", "+18446744073709551615", "0x9"} {
		refuse(t, mnt, "echo '"+text+"' > timelines/gpu0/value", "Invalid argument")
	}
	sh(t, mnt, "echo 5 > timelines/gpu0/value; echo +0 > timelines/gpu0/value; [ $(cat timelines/gpu0/value) = 5 ]")
	if got := cat(t, mnt+"/state/a/write_fences") + cat(t, mnt+"/state/a/read_fences"); got != "" {
		t.Errorf("after all the refusals: %q", got)
	}
	// nr_fences counts what pends.
	sh(t, mnt, "for i in 6 7 8 9 10 11 12 13; do echo gpu0:$i > state/a/read_fences; done")
	p := start(t, mnt, "p")
	for i := 6; i <= 13; i++ { // each is used: reads of one timeline replace each other
		if got := p.try("open p%d timelines/gpu0/points/%d r", i, i); !strings.HasPrefix(got, "ok") {
			t.Errorf("the point of %d: %s", i, got)
		}
	}
	refuse(t, mnt, "echo gpu0:14 > state/a/write_fences", "No space left")
	p.want("error ENOSPC", "open x timelines/gpu0/points/20 r")
	sh(t, mnt, "echo gpu0:13 > state/a/write_fences; echo 13 > timelines/gpu0/value; echo gpu0:14 > state/a/write_fences")
	// A buffer that is being removed.
	p.do("open w state/a/write_fences w")
	p.do("open f buffers/a rw")
	sh(t, mnt, "rm buffers/a")
	p.want("error ENOENT", "say w gpu0:15")
	refuse(t, mnt, "mkdir timelines/gpu0", "File exists")
	refuse(t, mnt, "rmdir timelines/none", "No such file")
	refuse(t, mnt, "mv timelines/gpu0 timelines/gpu1", "not permitted")
}

// SYNC START and poll are interrupted by a signal; reads of the stream as well.
func TestFencesInterrupted(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 4096)
		sh(t, mnt, "mkdir timelines/tl; echo tl:1 > state/a/write_fences")
		p := start(t, dir, "p")
		p.do("open f a rw")
		p.do("open e %s/events r", mnt)
		p.do("alarm 100")
		for _, cmd := range []string{"sync f 1", "sync f 2", "sync f 3", "poll f in -1", "select f w -1", "read e 100"} {
			p.want("error EINTR", "%s", cmd)
		}
		p.do("alarm 0")
		p.send("sync f 1")
		p.quiet()
		p.kill() // SIGKILL ends it too
		q := start(t, dir, "q")
		q.do("open f a rw")
		q.send("sync f 3")
		q.quiet()
		sh(t, mnt, "echo 1 > timelines/tl/value")
		if got := q.answer(patience); got != "ok" {
			t.Error(got)
		}
	})
}

func TestFencesTimeout(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "fence_timeout=300ms")
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/tl")
	p := start(t, mnt, "p")
	p.do("open f buffers/a rw")
	p.do("open p timelines/tl/points/1 r")
	sh(t, mnt, "echo tl:1 > state/a/write_fences")
	p.want("ok in", "poll f in 30000")
	p.want("ok error -ETIMEDOUT|", "text p")
	p.want("ok", "sync f 3")
	r := cli(t, mnt, "fence", "wait", "--timeout", "30s", mnt+"/timelines/tl/points/2")
	if r.code != 0 && r.code != 1 { // done, with an error
		t.Errorf("fence wait: %+v", r)
	}
}

func TestFencesCommands(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	for _, c := range []struct {
		code int
		args string
	}{
		{0, "timeline create M/timelines/tl"}, {1, "timeline create M/timelines/tl"},
		{0, "fence wait --timeout 0 M/buffers/a"},
		{0, "fence add M/buffers/a tl:1"}, {0, "fence add --read M/buffers/a tl:2"}, {1, "fence add M/buffers/a none:2"},
		{124, "fence wait --timeout 100ms M/buffers/a"}, {124, "fence wait --timeout 0 M/timelines/tl/points/1"},
		{124, "fence wait --timeout 50ms M/state/a/write_fences"}, {0, "fence ls --json M/buffers/a"},
		{0, "timeline advance M/timelines/tl +1"}, {1, "timeline advance M/timelines/tl 0"},
		{0, "fence wait --timeout 30s M/buffers/a"}, {124, "fence wait --for write --timeout 50ms M/buffers/a"},
		{0, "timeline advance M/timelines/tl 2"}, {0, "fence wait --for write --timeout 30s M/buffers/a"}, {0, "timeline ls M"},
		{0, "timeline rm M/timelines/tl"}, {2, "fence wait"}, {1, "fence wait M/buffers/none"},
	} {
		if r := cli(t, mnt, strings.Fields(strings.ReplaceAll(c.args, " M", " "+mnt))...); r.code != c.code {
			t.Errorf("dmabuffs %s: status %d, want %d: %s%s", c.args, r.code, c.code, r.out, r.err)
		}
	}
}

// One process imports without end; the others are served, and memory stays bounded.
func TestFencesManyImports(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "nr_fences=1000")
	newBuffer(t, mnt+"/buffers", "a", 4096)
	newBuffer(t, mnt+"/buffers", "b", 4096)
	sh(t, mnt, "mkdir timelines/tl timelines/t2")
	n := 20000
	if soak := os.Getenv("DMABUFFS_SOAK"); soak != "" {
		n = 1000000
	}
	greedy := start(t, mnt, "greedy")
	greedy.do("open f buffers/a rw")
	greedy.do("open p timelines/tl/points/1 r")
	greedy.do("open s state/a/write_fences r")
	go func() { // its answers are read below
		for i := range n {
			if _, err := fmt.Fprintf(greedy.in, "import f %s %d\n", []string{"p", "s"}[i%2], 1+i%2); err != nil {
				return
			}
		}
	}()
	other := start(t, mnt, "other")
	other.do("open f buffers/b rw")
	served := 0
	for i := range n {
		if got := greedy.answer(patience); got != "ok" {
			t.Fatalf("import %d: %s", i, got)
		}
		if i%(n/100) == 0 {
			sh(t, mnt, fmt.Sprintf("echo t2:%d > state/b/write_fences; echo %[1]d > timelines/t2/value", served+1))
			other.want("ok in", "poll f in 30000")
			served++
		}
	}
	if got := len(rows(t, mnt+"/state/a/write_fences")) + len(rows(t, mnt+"/state/a/read_fences")); got > 3 {
		t.Errorf("%d fences of one point and a snapshot of none", got)
	}
	sh(t, mnt, "echo 1 > timelines/tl/value")
	greedy.want("ok in out", "poll f in,out 30000")
}

// pipeline starts the three participants, all of whom own their timelines when it returns.
func pipeline(t *testing.T, mnt, buffer string, rounds int) (all []*pipeProc) {
	t.Helper()
	sh(t, mnt, "mkdir -p devices/gpu0 timelines/producer timelines/device timelines/consumer")
	for _, role := range []string{"producer", "device", "consumer"} {
		all = append(all, startPipe(t, role, mnt, buffer, rounds))
	}
	for _, p := range all {
		p.ready()
	}
	return all
}

// pipeProc is a dbpipe that runs.
type pipeProc struct {
	*task
	role string
}

func startPipe(t *testing.T, role, mnt, buffer string, rounds int) *pipeProc {
	t.Helper()
	return &pipeProc{background(t, mnt, cProgram(t, "clients/dbpipe.c"), role, mnt, buffer, strconv.Itoa(rounds)), role}
}

func (p *pipeProc) ready() {
	p.t.Helper()
	waitUntil(p.t, p.role+" owns its timeline", func() bool { return strings.HasPrefix(p.out.String(), "ready\n") || p.over() })
}

func TestFencesPipeline(t *testing.T) {
	rounds := 1500
	if testing.Short() {
		rounds = 300
	}
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "frame", 32<<10)
		for _, p := range pipeline(t, mnt, "frame", rounds) {
			if code := p.wait(4 * patience); code != 0 {
				t.Errorf("%s: status %d: %s", p.role, code, p.err)
			}
		}
		if got := attachments(t, mnt, "frame"); len(got) != 0 {
			t.Errorf("attachments: %q", got)
		}
	})
}

// One participant is killed at a random moment; the others notice, by their fences, and end.
func TestFencesPipelineKills(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	kills := 12
	if testing.Short() {
		kills = 4
	}
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		rng := rand.New(rand.NewPCG(seed, uint64(len(exporter))))
		newBuffer(t, dir, "frame", 32<<10)
		for round := range kills {
			all := pipeline(t, mnt, "frame", 1<<30)
			time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond)
			victim := all[rng.IntN(len(all))]
			_ = syscall.Kill(victim.cmd.Process.Pid, syscall.SIGKILL)
			for _, p := range all {
				if code := p.wait(patience); p != victim && code != 10 {
					t.Fatalf("round %d, %s killed: %s: status %d: %s", round, victim.role, p.role, code, p.err)
				}
			}
			waitUntil(t, "nobody is attached", func() bool { return len(attachments(t, mnt, "frame")) == 0 })
			waitUntil(t, "the timelines have ended", func() bool { return sh(t, mnt, "ls timelines") == "" })
			if got := sh(t, mnt, "cat state/frame/write_fences state/frame/read_fences"); strings.Contains(got, "pending") {
				t.Fatalf("fences pend: %q", got)
			}
		}
	})
}

// The same pipeline in plain shell.
func TestFencesPipelineShell(t *testing.T) {
	t.Parallel()
	rounds := 200
	if raceEnabled || testing.Short() {
		rounds = 30
	}
	if testing.Short() {
		rounds = 15
	}
	mnt := mount(t)
	sh(t, mnt, "mkdir devices/gpu0 timelines/cpu timelines/dev timelines/con; truncate -s 8192 buffers/frame")
	script := fmt.Sprintf("set -eu; N=%d; dmabuffs() { %s \"$@\"; }\n", rounds, buildBinary(t))
	producer := background(t, mnt, "bash", "-c", script+`
		for ((r = 1; r <= N; r++)); do
			dmabuffs fence wait --for write --timeout 60s buffers/frame
			for ((i = 0; i < 1024; i++)); do printf 'r%06d\n' $r; done | dd of=buffers/frame bs=8192 iflag=fullblock conv=notrunc status=none
			echo dev:$r > state/frame/write_fences
			echo con:$r > state/frame/read_fences
			echo $r > timelines/cpu/value
		done`)
	device := background(t, mnt, "bash", "-c", script+`
		for ((r = 1; r <= N; r++)); do
			dmabuffs fence wait --timeout 60s timelines/cpu/points/$r
			text=$(tr r D < devices/gpu0/buffers/frame)
			printf '%s\n' "$text" | dd of=devices/gpu0/buffers/frame bs=8192 iflag=fullblock conv=notrunc status=none
			echo $r > timelines/dev/value
		done`)
	consumer := background(t, mnt, "bash", "-c", script+`
		for ((r = 1; r <= N; r++)); do
			dmabuffs fence wait --timeout 60s timelines/cpu/points/$r
			dmabuffs fence wait --for read --timeout 60s buffers/frame
			[ "$(sort buffers/frame | uniq -c | tr -s ' ')" = "$(printf ' 1024 D%06d' $r)" ]
			echo $r > timelines/con/value
		done`)
	for name, p := range map[string]*task{"producer": producer, "device": device, "consumer": consumer} {
		if code := p.wait(4 * patience); code != 0 {
			t.Errorf("%s: status %d: %s", name, code, p.err)
		}
	}
	if got := sh(t, mnt, "cat timelines/{cpu,dev,con}/value"); got != strings.Repeat(strconv.Itoa(rounds)+"\n", 3) {
		t.Errorf("the timelines are at %q", got)
	}
}
