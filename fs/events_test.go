package fs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stream opens a stream that is closed with the test.
func stream(t *testing.T, l *eventLog, c *conn) *eventStream {
	t.Helper()
	s, err := l.open(c, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.release)
	return s
}

// drain reads everything that is there, n bytes a read.
func drain(t *testing.T, s *eventStream, n int) []byte {
	t.Helper()
	var all []byte
	p := make([]byte, n)
	for {
		k, err := s.readLines(context.Background(), p, true)
		if errors.Is(err, syscall.EAGAIN) {
			return all
		}
		if err != nil || k == 0 {
			t.Fatalf("read: %d bytes, %v", k, err)
		}
		all = append(all, p[:k]...)
	}
}

// events decodes lines.
func events(t *testing.T, text []byte) []map[string]any {
	t.Helper()
	var out []map[string]any
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() {
		var m map[string]any
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v", sc.Bytes(), err)
		}
		out = append(out, m)
	}
	return out
}

func TestEventFields(t *testing.T) {
	l := newEventLog()
	early := newEventLog()
	early.add("before", "n", 1)
	before := time.Now()
	s := stream(t, l, nil)
	l.add("open", "buffer", "a\"b\\c\nd\x7f\xff é", "pid", uint32(os.Getpid()), "n", -3, "size", int64(1)<<40, "seqno", uint64(1)<<63, "flags", uint32(7), "ok", true, "bad", 1.5)
	text := drain(t, s, 4096)
	if !bytes.HasSuffix(text, []byte("}\n")) || bytes.Count(text, []byte("\n")) != 1 {
		t.Fatalf("not one line: %q", text)
	}
	got := events(t, text)[0]
	at, err := time.Parse(time.RFC3339Nano, got["time"].(string))
	if err != nil || at.Before(before.Truncate(time.Nanosecond)) || at.After(time.Now()) {
		t.Errorf("time %v (%v), want between the call and now", got["time"], err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{
		"event": "open", "buffer": "a\"b\\c\nd\x7f\ufffd é", "pid": float64(os.Getpid()),
		"comm": strings.TrimSuffix(string(comm), "\n"), "n": -3.0, "size": float64(1 << 40),
		"seqno": float64(1 << 63), "flags": 7.0, "ok": true, "bad": "!BADVALUE",
	} {
		if got[key] != want {
			t.Errorf("%s: %#v, want %#v", key, got[key], want)
		}
	}
}

// Each open is its own stream, and sees what comes after it.
func TestEventStreams(t *testing.T) {
	l := newEventLog()
	l.add("unheard")
	a := stream(t, l, nil)
	l.add("one")
	b := stream(t, l, nil)
	l.add("two")
	names := func(s *eventStream, n int) (out []string) {
		for _, e := range events(t, drain(t, s, n)) {
			out = append(out, e["event"].(string))
		}
		return out
	}
	// a read of a few bytes gets a part of a line, the next one the rest
	if got := fmt.Sprint(names(a, 7)); got != "[one two]" {
		t.Errorf("the first stream read %v", got)
	}
	if got := fmt.Sprint(names(b, 4096)); got != "[two]" {
		t.Errorf("the second stream read %v", got)
	}
	a.release()
	b.release()
	if n := l.listening.Load(); n != 0 {
		t.Errorf("%d listeners left", n)
	}
	a.release() // t.Cleanup's too: once is enough
}

// A read returns whole lines where one fits.
func TestEventWholeLines(t *testing.T) {
	l := newEventLog()
	s := stream(t, l, nil)
	for i := range 3 {
		l.add("e", "i", i)
	}
	p := make([]byte, 150) // two lines of about 60 bytes, and a piece
	n, err := s.readLines(context.Background(), p, true)
	if err != nil || n == 0 || p[n-1] != '\n' {
		t.Fatalf("read %q, %v: want whole lines", p[:n], err)
	}
	if got := len(events(t, p[:n])) + len(events(t, drain(t, s, 150))); got != 3 {
		t.Errorf("%d events, want 3", got)
	}
}

// A reader that is too slow loses the oldest, learns how many, and then goes on in order.
func TestEventsLost(t *testing.T) {
	l := newEventLog()
	s := stream(t, l, nil)
	const over = 100
	for i := range eventsKept + over {
		l.add("e", "i", i)
	}
	got := events(t, drain(t, s, 1000))
	if len(got) != eventsKept+1 {
		t.Fatalf("%d events, want %d and one that says lost", len(got), eventsKept)
	}
	if got[0]["event"] != "lost" || got[0]["count"] != float64(over) {
		t.Errorf("first %v, want lost, count %d", got[0], over)
	}
	for i, e := range got[1:] {
		if e["i"] != float64(i+over) {
			t.Fatalf("event %d is %v, want i %d", i, e, i+over)
		}
	}
	// again, after a partial read left the ring in the middle
	for i := range eventsKept + 5 {
		l.add("e", "i", i)
	}
	p := make([]byte, 200)
	n, err := s.readLines(context.Background(), p, true)
	if err != nil {
		t.Fatal(err)
	}
	text := append([]byte(nil), p[:n]...)
	for i := range 10 {
		l.add("late", "i", eventsKept+5+i)
	}
	text = append(text, drain(t, s, 1<<20)...)
	last, lost := -1.0, 0.0
	for _, e := range events(t, text) {
		if e["event"] == "lost" {
			lost += e["count"].(float64)
			continue
		}
		if e["i"].(float64) <= last {
			t.Fatalf("%v after %v", e["i"], last)
		}
		last = e["i"].(float64)
	}
	if last != eventsKept+5+9 || lost < 5 {
		t.Errorf("last %v, %v lost", last, lost)
	}
}

func TestEventsWait(t *testing.T) {
	l := newEventLog()
	s := stream(t, l, nil)
	if _, err := s.readLines(context.Background(), make([]byte, 99), true); err != syscall.EAGAIN {
		t.Errorf("O_NONBLOCK with nothing there: %v, want EAGAIN", err)
	}
	type result struct {
		n   int
		err error
	}
	read := func(ctx context.Context) chan result {
		done := make(chan result, 1)
		go func() {
			n, err := s.readLines(ctx, make([]byte, 4096), false)
			done <- result{n, err}
		}()
		waitFor(t, "a reader that waits", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.more != nil
		})
		return done
	}
	get := func(done chan result) result {
		select {
		case r := <-done:
			return r
		case <-time.After(20 * time.Second):
			t.Fatal("the read goes on waiting")
			panic("unreachable")
		}
	}
	done := read(context.Background())
	l.add("e")
	if r := get(done); r.n == 0 || r.err != nil {
		t.Errorf("after an event: %d bytes, %v", r.n, r.err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done = read(ctx)
	cancel()
	if r := get(done); errno(nil, r.err) != syscall.EINTR {
		t.Errorf("interrupted: %v, want EINTR", r.err)
	}
	s.mu.Lock()
	s.more = nil // of the interrupted one, which nobody has closed
	s.mu.Unlock()
	done = read(context.Background())
	l.close()
	if r := get(done); r.n != 0 || r.err != nil {
		t.Errorf("after close: %d bytes, %v, want the end of the file", r.n, r.err)
	}
}

// The wire: O_NONBLOCK is what the request says, INTERRUPT ends a read, POLL is
// answered and every edge is told to the poll handle.
func TestEventsOnTheWire(t *testing.T) {
	c, fsys, a := testConn(t)
	out := make([]byte, bufSize)
	id := fsys.dirs.files["events"].id()
	c.handle(packet(opOpen, 2, id, u32s(syscall.O_WRONLY, 0)), out)
	if e, _ := a.last(t); e != syscall.EACCES {
		t.Errorf("opening events to write: %v, want EACCES", e)
	}
	c.handle(packet(opOpen, 2, id, u32s(syscall.O_RDONLY, 0)), out)
	e, p := a.last(t)
	if e != 0 {
		t.Fatal(e)
	}
	fh := native.Uint64(p)
	readPacket := func(unique uint64, flags uint32) []byte {
		return packet(opRead, unique, id, u64s(fh, 0), u32s(4096, 0), u64s(0), u32s(flags, 0))
	}
	c.handle(readPacket(4, syscall.O_NONBLOCK), out)
	if e, _ := a.last(t); e != syscall.EAGAIN {
		t.Errorf("O_NONBLOCK: %v, want EAGAIN", e)
	}
	polls := func() uint32 {
		c.handle(packet(opPoll, 6, id, u64s(fh, 77), u32s(1, unix.POLLIN|unix.POLLOUT)), out)
		e, p := a.last(t)
		if e != 0 {
			t.Fatal(e)
		}
		return native.Uint32(p)
	}
	if got := polls(); got != 0 {
		t.Errorf("poll of an empty stream: %#x", got)
	}
	notified := func() (n int) {
		a.mu.Lock()
		defer a.mu.Unlock()
		for _, p := range a.sent {
			if native.Uint64(p[8:]) == 0 && native.Uint32(p[4:]) == notifyPoll && native.Uint64(p[outHeaderSize:]) == 77 {
				n++
			}
		}
		return n
	}
	fsys.events.add("e", "i", 1)
	waitFor(t, "the first wakeup", func() bool { return notified() == 1 })
	if got := polls(); got != unix.POLLIN {
		t.Errorf("poll with an event there: %#x, want POLLIN", got)
	}
	fsys.events.add("e", "i", 2)
	waitFor(t, "the second wakeup", func() bool { return notified() == 2 })
	c.handle(readPacket(8, syscall.O_NONBLOCK), out)
	if e, p := a.last(t); e != 0 || len(events(t, p)) != 2 {
		t.Errorf("read: %v, %q, want two events", e, p)
	}
	answered := a.count()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.handle(readPacket(10, 0), make([]byte, bufSize))
	}()
	waitFor(t, "a request that waits", func() bool { return c.interrupt(10) })
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Fatal("an interrupted read goes on waiting")
	}
	if e, _ := a.last(t); e != syscall.EINTR || a.count() != answered+1 {
		t.Errorf("interrupted: %v, want EINTR", e)
	}
	c.handle(packet(opRelease, 12, id, u64s(fh, 0, 0)), out)
	if n := fsys.events.listening.Load(); n != 0 {
		t.Errorf("%d listeners after the close", n)
	}
}

// Nobody listens: no memory.
func TestEventsUnheardCostNothing(t *testing.T) {
	l := newEventLog()
	name, pid, size := strings.Repeat("x", 100), uint32(os.Getpid()), int64(1)<<40
	if n := testing.AllocsPerRun(1000, func() { l.add("open", "buffer", name, "pid", pid, "size", size) }); n != 0 {
		t.Errorf("%v allocations for an event that nobody hears, want none", n)
	}
}

// waitFor asks again until cond holds; 20 s is a guard against hanging.
func waitFor(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for %s", what)
		}
	}
}
