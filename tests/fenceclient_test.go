package tests

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// Fences again: what takes a client of its own (clients/fenceclient.c), and what happens between
// users, process tables, names that come again, and crowds.

// fenceclient runs it on a mount, and returns what it counted.
func fenceclient(t *testing.T, mnt, command string, args ...any) (counted int) {
	t.Helper()
	all := []string{command, mnt}
	for _, a := range args {
		all = append(all, fmt.Sprint(a))
	}
	r := run(t, 4*patience, mnt, cProgram(t, "clients/fenceclient.c"), all...)
	rest, ok := strings.CutPrefix(r.out, "ok")
	if r.code != 0 || !ok {
		t.Fatalf("fenceclient %s: status %d: %s%s", command, r.code, r.out, r.err)
	}
	if rest = strings.TrimSpace(rest); rest != "" {
		n, err := strconv.Atoi(rest)
		if err != nil {
			t.Fatal(err)
		}
		counted = n
	}
	return counted
}

// often is n, or a part of it where the tests are to be short.
func often(n int) int {
	if testing.Short() {
		return n/8 + 1
	}
	return n
}

// Edge-triggered, one-shot and level-triggered epoll of a buffer, a point, a snapshot and the
// stream of events at once: every edge arrives, a sync file's exactly once.
func TestFencesEdges(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/tl")
	n := often(3000)
	before := pollRequests(t, mnt)
	looks := fenceclient(t, mnt, "edges", "a", "tl", n)
	if looks > 14*n {
		t.Errorf("%d rounds of 7 edges took %d waits", n, looks)
	}
	if polls := pollRequests(t, mnt) - before; polls > 80*n {
		t.Errorf("%d rounds of 7 edges took %d POLL requests", n, polls)
	}
}

// One open file, polled by many threads for different events: each wakes when its own is so.
func TestFencesShared(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 4096)
		sh(t, mnt, "mkdir timelines/w timelines/r")
		fenceclient(t, mnt, "shared", "a", "w", "r", often(300), 12)
	})
}

// Thousands of points in one epoll wake in their turn.
func TestFencesManyPoints(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	sh(t, mnt, "mkdir timelines/tl")
	n := often(4000)
	before := pollRequests(t, mnt)
	fenceclient(t, mnt, "points", "tl", n)
	if polls := pollRequests(t, mnt) - before; polls > 8*n {
		t.Errorf("%d points took %d POLL requests", n, polls)
	}
	if got := sh(t, mnt, "ls timelines/tl/points; cat timelines/tl/value"); got != fmt.Sprintln(n) {
		t.Errorf("then there are %q", got)
	}
}

// START waits for write fences (READ) or all (WRITE, RW), though signals come down like rain; END never waits.
func TestFencesSyncStorm(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 8192)
		for flags := 1; flags <= 3; flags++ {
			sh(t, mnt, fmt.Sprintf("mkdir timelines/t%d", flags))
			n := often(400)
			if got := fenceclient(t, mnt, "syncs", "a", fmt.Sprint("t", flags), n, flags); got < n/16 {
				t.Errorf("flags %d: of %d rounds %d were interrupted", flags, n, got)
			}
		}
	})
}

func TestFencesNames(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir devices/gpu0")
	fenceclient(t, mnt, "names", "a", "gpu0")
}

func TestFencesFileInfo(t *testing.T) {
	t.Parallel()
	d := mountDaemon(t)
	sh(t, d.dir, "mkdir timelines/tl")
	fenceclient(t, d.dir, "info", "tl")
	fenceclient(t, d.dir, "info", "tl")
	hint(t, d, "SYNC_IOC_MERGE")
}

// hint checks that the log says once what to do instead of an ioctl.
func hint(t *testing.T, d *daemon, ioctl string) {
	t.Helper()
	waitUntil(t, "the log speaks of "+ioctl, func() bool { return strings.Contains(d.log.String(), ioctl) })
	if said := strings.Count(d.log.String(), ioctl); said != 1 || !strings.Contains(d.log.String(), "dmabuffs run -- CMD") {
		t.Errorf("the log speaks %d times of %s: %s", said, ioctl, d.log)
	}
}

func TestFencesImportWhat(t *testing.T) {
	t.Parallel()
	d, other := mountDaemon(t), mount(t)
	for _, mnt := range []string{d.dir, other} {
		newBuffer(t, mnt+"/buffers", "a", 4096)
		sh(t, mnt, "mkdir timelines/tl")
	}
	fenceclient(t, d.dir, "import", "a", "tl", other)
	hint(t, d, "DMA_BUF_IOCTL_EXPORT_SYNC_FILE")
	if got := cat(t, other+"/state/a/write_fences") + cat(t, other+"/state/a/read_fences"); got != "" {
		t.Errorf("on the other mount: %q", got)
	}
}

// A descriptor is the calling thread's, whatever table of descriptors and namespace of processes it has.
func TestFencesTables(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/w timelines/r timelines/ns")
	fenceclient(t, mnt, "tables", "a", "w", "r")
	r := run(t, patience, mnt, "unshare", "--fork", "--pid", dbclient(t), "open f buffers/a r", "open p timelines/ns/points/5 r",
		"import f p 1", "info p 1", "setname f b inside")
	if lines := strings.Split(r.out, "\n"); r.code != 0 || len(lines) != 6 || lines[2] != "ok" || !strings.HasSuffix(lines[3], " 0 1 dmabuffs/ns/0/0") || lines[4] != "ok" {
		t.Errorf("in a namespace of processes: %q %s", r.out, r.err)
	}
	if got := cat(t, mnt+"/state/a/read_fences") + cat(t, mnt+"/state/a/name"); got != "r 1 pending dmabuffs\nns 5 pending dmabuffs\ninside\n" {
		t.Errorf("after that: %q", got)
	}
}

// One process opens and imports fence after fence, none of which ever signals: what nobody can see any more goes.
func TestFencesChurn(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "nr_fences=500")
	newBuffer(t, mnt+"/buffers", "a", 4096)
	newBuffer(t, mnt+"/buffers", "b", 4096)
	sh(t, mnt, "mkdir timelines/tl timelines/t2")
	n := often(6000)
	greedy := background(t, mnt, cProgram(t, "clients/fenceclient.c"), "churn", mnt, "a", "tl", strconv.Itoa(n))
	served := 0
	for p := start(t, mnt, "other"); !greedy.over() || served == 0; served++ { // the others are served meanwhile
		if served == 0 {
			p.do("open f buffers/b rw")
		}
		sh(t, mnt, fmt.Sprintf("echo t2:%d > state/b/write_fences; echo %[1]d > timelines/t2/value", served+1))
		p.want("ok in", "poll f in 30000")
	}
	if code := greedy.wait(4 * patience); code != 0 {
		t.Fatalf("churn: status %d: %s", code, greedy.err)
	}
	if got := cat(t, mnt+"/state/a/read_fences"); got != fmt.Sprintf("tl %d pending dmabuffs\n", n) {
		t.Errorf("read fences: %q", got)
	}
	if k := metric(t, mnt, "dmabuffs_fences_pending"); k > 500 {
		t.Errorf("%v fences pend", k)
	}
}

func metric(t *testing.T, mnt, name string) float64 {
	t.Helper()
	for _, row := range rows(t, mnt+"/metrics") {
		if len(row) == 2 && row[0] == name {
			v, err := strconv.ParseFloat(row[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			return v
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// Two buffers give each other their fences, round and round: each has all of them, once.
func TestFencesLoopOfImports(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "nr_fences=100")
	newBuffer(t, mnt+"/buffers", "a", 4096)
	newBuffer(t, mnt+"/buffers", "b", 4096)
	sh(t, mnt, "for i in $(seq 30); do mkdir timelines/t$i; echo t$i:1 > state/$([ $((i % 2)) = 0 ] && echo a || echo b)/write_fences; done")
	p := start(t, mnt, "p")
	p.do("open a buffers/a rw")
	p.do("open b buffers/b rw")
	for i := range often(160) {
		from, to := "a", "b"
		if i%2 == 1 {
			from, to = to, from
		}
		p.do("open s state/%s/write_fences r", from)
		p.do("import %s s 2", to)
		p.do("import %s s 2", from)
		p.do("close s")
	}
	for _, b := range []string{"a", "b"} {
		if got := rows(t, mnt+"/state/"+b+"/write_fences"); len(got) != 30 {
			t.Errorf("%s has %d fences", b, len(got))
		}
	}
	p.want("ok", "poll a in,out 0")
	sh(t, mnt, "for i in $(seq 2 30); do echo 1 > timelines/t$i/value; done")
	p.want("ok", "poll a in,out 0")
	p.want("ok", "poll b in,out 0")
	sh(t, mnt, "echo 1 > timelines/t1/value")
	p.want("ok in out", "poll a in,out 30000")
	p.want("ok in out", "poll b in,out 30000")
}

// Fences are as open to others as the buffer is; the ioctls ask for no rights but the descriptor, as the kernel's.
func TestFencesOtherUsers(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "allow_other")
	sh(t, mnt, "mkdir timelines/tl; for b in closed shown open; do head -c 4096 /dev/zero > buffers/$b; done; chmod 600 buffers/closed; chmod 644 buffers/shown; chmod 666 buffers/open")
	for b, mode := range map[string]string{"closed": "600", "shown": "644", "open": "666"} {
		if got := strings.TrimSpace(sh(t, mnt, "stat -c %a state/"+b+"/write_fences")); got != mode {
			t.Errorf("the fences of %s have mode %s, it has %s", b, got, mode)
		}
	}
	nobody := func(commands ...string) []string {
		t.Helper()
		r := run(t, patience, mnt, "setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", dbclient(t)}, commands...)...)
		if r.code != 0 {
			t.Fatal(r.err)
		}
		return strings.Split(strings.TrimSpace(r.out), "\n")
	}
	want := func(answer, last string, before ...string) {
		t.Helper()
		if got := nobody(append(before, last)...); got[len(got)-1] != answer {
			t.Errorf("nobody does %s: %q, want %q", last, got, answer)
		}
	}
	sh(t, mnt, "echo tl:1 > state/shown/write_fences")
	for _, f := range []string{"write_fences", "read_fences"} {
		want("error EACCES", "open x state/closed/"+f+" r")
		want("error EACCES", "open x state/closed/"+f+" w")
		want("error EACCES", "open x state/shown/"+f+" w")
		want("error EACCES", "open x state/shown/"+f+" rw")
		want("ok 5", "say x tl:1", "open x state/open/"+f+" w")
	}
	want("ok", "poll f in,out 0", "open f buffers/shown r")
	want("ok tl 1 pending dmabuffs|", "text s", "open s state/shown/write_fences r")
	want("ok", "poll s in 0", "open s state/shown/write_fences r")
	want("ok pending|", "text p", "open p timelines/tl/points/4 r")
	want("error EACCES", "open v timelines/tl/value w")
	want("error EACCES", "open v timelines/tl/owner w")
	want("error EACCES", "open v timelines/tl/owner r")
	if got := nobody("open f buffers/shown r", "open p timelines/tl/points/2 r", "import f p 2", "setname f b mine", "info p 1", "sync f 6"); got[2] != "ok" || got[3] != "ok" ||
		!strings.HasSuffix(got[4], "dmabuffs/tl/0/0") || got[5] != "ok" {
		t.Errorf("nobody's ioctls: %q", got)
	}
	if got := cat(t, mnt+"/state/shown/write_fences"); got != "tl 2 pending dmabuffs\n" {
		t.Errorf("the fences then: %q", got)
	}
	// A timeline of one's own, and what the buffer's owner takes away.
	if got := sh(t, mnt, "setpriv --reuid=65534 --regid=65534 --clear-groups sh -euc 'mkdir timelines/own; echo own:2 > state/open/read_fences; echo 2 > timelines/own/value; cat timelines/own/value; rmdir timelines/own'"); got != "2\n" {
		t.Errorf("nobody's timeline: %q", got)
	}
	sh(t, mnt, "chmod 600 buffers/open")
	want("error EACCES", "open x state/open/read_fences r")
	refuse(t, mnt, "chmod 666 state/closed/write_fences", "not permitted")
	refuse(t, mnt, "chown 65534 state/closed/write_fences", "not permitted")
	sh(t, mnt, "chmod 700 timelines/tl")
	want("error EACCES", "open p timelines/tl/points/2 r")
}

// A buffer that loses its name takes no fences any more, and whoever waits for it is served; one that gets the name is another.
func TestFencesRemovedBuffer(t *testing.T) {
	eachExporter(t, func(t *testing.T, mnt, exporter, dir string) {
		newBuffer(t, dir, "a", 4096)
		sh(t, mnt, "mkdir timelines/tl; echo tl:1 > state/a/write_fences")
		p, q := start(t, dir, "p"), start(t, dir, "q")
		p.do("open f a rw")
		p.do("open w %s/state/a/write_fences w", mnt)
		p.do("open s %s/state/a/write_fences r", mnt)
		q.do("open f a rw")
		p.send("poll f in,out -1")
		q.send("sync f 3")
		p.quiet()
		q.quiet()
		sh(t, dir, "rm a")
		refuse(t, mnt, "echo tl:2 > state/a/write_fences", "No such file")
		newBuffer(t, dir, "a", 4096)
		sh(t, mnt, "echo tl:1 > timelines/tl/value 2> /dev/null && exit 1; echo 1 > timelines/tl/value")
		if got := p.answer(patience); !strings.HasPrefix(got, "ok ") {
			t.Error(got)
		}
		if got := q.answer(patience); got != "ok" {
			t.Error(got)
		}
		p.want("error ENOENT", "say w tl:3")
		p.want("ok tl 1 signaled dmabuffs|", "text s")
		p.want("ok in", "poll s in 30000")
		if got := cat(t, mnt+"/state/a/write_fences"); got != "" {
			t.Errorf("the new buffer has %q", got)
		}
	})
}

// A timeline that comes again under its name is another one: old files mean the old one, for ever.
func TestFencesReborn(t *testing.T) {
	t.Parallel()
	mnt := mount(t)
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/tl; echo 4 > timelines/tl/value")
	p := start(t, mnt, "p")
	p.do("open owner timelines/tl/owner w")
	p.do("open v timelines/tl/value rw")
	p.do("open nine timelines/tl/points/9 r")
	p.do("open three timelines/tl/points/3 r")
	p.do("open f buffers/a rw")
	sh(t, mnt, "echo tl:9 > state/a/write_fences")
	p.do("open s state/a/write_fences r")
	p.send("poll f in -1")
	p.quiet()
	sh(t, mnt, "rmdir timelines/tl; mkdir timelines/tl; [ $(cat timelines/tl/value) = 0 ]")
	if got := p.answer(patience); got != "ok in" {
		t.Errorf("the waiter of the old: %q", got)
	}
	p.want("ok error -ENOENT|", "text nine")
	p.want("ok signaled|", "text three")
	p.want("ok tl 9 error -ENOENT dmabuffs|", "text s")
	p.want("error ENOENT", "say v +1")
	p.do("open again timelines/tl/points/9 r")
	p.want("ok pending|", "text again")
	p.do("close owner") // of the old one
	p.want("ok pending|", "text again")
	sh(t, mnt, "echo 9 > timelines/tl/value")
	p.want("ok signaled|", "text again")
	p.want("ok error -ENOENT|", "text nine")
	// The largest value, and not beyond.
	sh(t, mnt, "mkdir timelines/t2; echo 18446744073709551614 > timelines/t2/value; echo +1 > timelines/t2/value")
	refuse(t, mnt, "echo +1 > timelines/t2/value", "Invalid argument")
	sh(t, mnt, "echo +0 > timelines/t2/value; [ $(cat timelines/t2/value) = 18446744073709551615 ]; echo t2:18446744073709551615 > state/a/read_fences; [ \"$(cat state/a/read_fences | grep -c pending)\" = 0 ]")
	// Steps that many take at once are all counted.
	sh(t, mnt, "mkdir timelines/t3; for p in 1 2 3 4 5 6; do for i in $(seq 100); do echo +1; done > /dev/null & (for i in $(seq 100); do echo +1 > timelines/t3/value; done) & done; wait; [ $(cat timelines/t3/value) = 600 ]")
}

// Crowds at the points, the snapshots, the buffer and the stream of events; the producer dies, or its timeline is removed.
func TestFencesCrowds(t *testing.T) {
	for _, how := range []string{"killed", "removed", "signaled"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			mnt := mount(t)
			newBuffer(t, mnt+"/buffers", "a", 4096)
			each := often(400)
			sh(t, mnt, "mkdir timelines/tl")
			owner := start(t, mnt, "owner")
			owner.do("open o timelines/tl/owner w")
			sh(t, mnt, "echo tl:1 > state/a/write_fences")
			crowds := map[string]*proc{}
			closers := map[string]*proc{}
			// That of the events is the last: it would hear the others come.
			for _, c := range []string{"timelines/tl/points/1 in", "state/a/write_fences in", "buffers/a out", "events in"} {
				file, ev, _ := strings.Cut(c, " ")
				p, closer := start(t, mnt, c), start(t, mnt, "closer of "+c)
				closer.do("open f %s r", file) // and closed while it is polled
				closer.do("closing f 50")
				closer.send("poll f %s 60000", ev)
				p.do("limit 4096")
				p.do("waiters %d %s", each, c)
				crowds[c], closers[c] = p, closer
			}
			for _, p := range crowds {
				p.want("ok 0 0", "woken")
			}
			switch how {
			case "killed":
				owner.kill()
			case "removed":
				sh(t, mnt, "rmdir timelines/tl")
			case "signaled":
				sh(t, mnt, "echo 1 > timelines/tl/value")
			}
			for c, p := range crowds {
				if got := p.do("join"); got != fmt.Sprintf("%d 0", each) {
					t.Errorf("%s: of %d: %s", c, each, got)
				}
				_, ev, _ := strings.Cut(c, " ")
				if got := closers[c].answer(patience); got != "ok other:20" && got != "ok "+ev { // POLLNVAL, or awake before
					t.Errorf("%s: polling a descriptor that another thread closes: %q", c, got)
				}
			}
		})
	}
}

// fence_timeout: a fence that was late stays failed, whatever comes; those after it have their own time.
func TestFencesLate(t *testing.T) {
	t.Parallel()
	mnt := mount(t, "fence_timeout=400ms")
	newBuffer(t, mnt+"/buffers", "a", 4096)
	sh(t, mnt, "mkdir timelines/tl")
	p := start(t, mnt, "p")
	p.do("open f buffers/a rw")
	for round := 1; round <= 2; round++ {
		p.do("open p%d timelines/tl/points/%d r", round, round)
		sh(t, mnt, fmt.Sprintf("echo tl:%d > state/a/read_fences", round))
		p.want("ok", "sync f 3") // waits for it
		p.want("ok out", "poll f out 30000")
		p.want("ok in", "poll p%d in 30000", round)
		p.want("ok error -ETIMEDOUT|", "text p%d", round)
		if got := strings.Fields(p.do("info p%d 1", round)); len(got) != 4 || got[1] != "-110" {
			t.Errorf("FILE_INFO of a late fence: %q", got)
		}
		sh(t, mnt, fmt.Sprintf("echo %d > timelines/tl/value", round))
		p.want("ok error -ETIMEDOUT|", "text p%d", round)
	}
	sh(t, mnt, "echo 3 > timelines/tl/value")
	p.do("open p3 timelines/tl/points/3 r") // passed: it cannot be late any more
	p.want("ok in", "poll p3 in 0")
	p.want("ok signaled|", "text p3")
}
