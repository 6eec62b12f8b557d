package fs

import (
	"context"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// eventLog is what the file events tells. Nothing is kept for later: every open
// is a stream of its own from then on. docs/events.md lists the events.
//
// Lock order: eventLog.mu, then eventStream.mu. add may be called with any lock
// held: it takes only these two, and wakes pollers from another goroutine.
type eventLog struct {
	listening atomic.Int32

	mu      sync.Mutex
	streams map[*eventStream]struct{}
	closed  bool
}

const (
	// eventsKept is how many events a stream keeps for a slow reader; older ones are lost, and counted.
	eventsKept = 4096
	maxStreams = 1024

	pollReadable = unix.POLLIN | 0x40 // POLLIN | POLLRDNORM, include/uapi/asm-generic/poll.h
)

func newEventLog() *eventLog { return &eventLog{streams: map[*eventStream]struct{}{}} }

// add tells everybody who listens; when nobody does it costs one load. kv are
// keys (strings) and values: string, bool, int, int64, uint32 or uint64. The
// value of "pid" is a thread as FUSE names it: the event has its process, and
// that one's command as "comm".
func (l *eventLog) add(event string, kv ...any) {
	if l.listening.Load() != 0 {
		l.tell(event, kv)
	}
}

func (l *eventLog) tell(event string, kv []any) {
	line := eventLine(time.Now(), event, kv)
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range l.streams {
		s.push(line)
	}
}

// eventLine encodes by hand so that nothing of kv escapes: add is on everybody's
// path, and its arguments must cost no memory when nobody listens.
func eventLine(t time.Time, event string, kv []any) []byte {
	b := make([]byte, 0, 192)
	b = append(b, `{"time":"`...)
	b = t.UTC().AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00")
	b = append(b, `","event":`...)
	b = appendJSON(b, event)
	for i := 0; i+1 < len(kv); i += 2 {
		key, _ := kv[i].(string)
		b = append(b, ',')
		b = appendJSON(b, key)
		b = append(b, ':')
		switch v := kv[i+1].(type) {
		case string:
			b = appendJSON(b, v)
		case bool:
			b = strconv.AppendBool(b, v)
		case int:
			b = strconv.AppendInt(b, int64(v), 10)
		case int64:
			b = strconv.AppendInt(b, v, 10)
		case uint64:
			b = strconv.AppendUint(b, v, 10)
		case uint32:
			if key != "pid" {
				b = strconv.AppendUint(b, uint64(v), 10)
				break
			}
			p := threads.of(v, procTold)
			b = strconv.AppendUint(b, uint64(p.pid), 10)
			b = append(b, `,"comm":`...)
			b = appendJSON(b, p.comm)
		default:
			b = append(b, `"!BADVALUE"`...) // a caller's mistake
		}
	}
	return append(b, "}\n"...)
}

// appendJSON appends a JSON string. Bytes that are no UTF-8 become U+FFFD.
func appendJSON(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b = append(b, `\ufffd`...)
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r < ' ' || r == 0x7f:
			b = append(b, `\u00`...)
			b = append(b, hex[r>>4], hex[r&15])
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return append(b, '"')
}

// close ends every stream: its reader gets what is left, then the end of the file.
func (l *eventLog) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for s := range l.streams {
		s.end()
	}
}

// open begins a stream. ENFILE: there are too many.
func (l *eventLog) open(c *conn, flags uint32) (*eventStream, error) {
	s := &eventStream{log: l, flags: flags}
	s.ph.c = c
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.streams) >= maxStreams {
		return nil, syscall.ENFILE
	}
	if l.closed {
		s.ended = true
	}
	l.streams[s] = struct{}{}
	l.listening.Add(1)
	return s, nil
}

// eventStream is one open(2) of events.
type eventStream struct {
	log   *eventLog
	flags uint32 // of open(2)
	ph    pollHandle

	mu    sync.Mutex
	lines [][]byte // from first on; a ring once it has eventsKept
	first int
	lost  uint64
	rest  []byte        // of a line that did not fit into a read
	more  chan struct{} // closed when there is something; nil: nobody waits
	kick  chan struct{} // to the goroutine that wakes pollers; nil until somebody polls
	ended bool
}

var (
	_ handle = (*eventStream)(nil)
	_ reader = (*eventStream)(nil)
	_ poller = (*eventStream)(nil)
)

func (s *eventStream) openOut() openOut {
	return openOut{flags: fuse.FOPEN_DIRECT_IO | fuse.FOPEN_STREAM | fuse.FOPEN_NONSEEKABLE | fuse.FOPEN_NOFLUSH}
}

func (s *eventStream) release() {
	l := s.log
	l.mu.Lock()
	if _, ok := l.streams[s]; ok {
		delete(l.streams, s)
		l.listening.Add(-1)
	}
	l.mu.Unlock()
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kick != nil {
		close(s.kick)
		s.kick = nil
	}
}

// push queues a line, at the cost of the oldest one when the queue is full.
func (s *eventStream) push(line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	if len(s.lines) < eventsKept {
		s.lines = append(s.lines, line)
	} else {
		s.lines[s.first] = line
		s.first = (s.first + 1) % eventsKept
		s.lost++
	}
	s.tellLocked()
}

func (s *eventStream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.tellLocked()
}

// tellLocked wakes readers, and has pollers woken. s.mu is held.
func (s *eventStream) tellLocked() {
	if s.more != nil {
		close(s.more)
		s.more = nil
	}
	select {
	case s.kick <- struct{}{}: // a nil channel takes nothing
	default:
	}
}

// takeLocked moves what fits into p: whole lines, or a part of one that is
// longer than p. s.mu is held.
func (s *eventStream) takeLocked(p []byte) int {
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	if len(s.rest) > 0 {
		return n
	}
	if s.lost > 0 {
		line := eventLine(time.Now(), "lost", []any{"count", s.lost})
		if n > 0 && n+len(line) > len(p) {
			return n
		}
		s.lost = 0
		k := copy(p[n:], line)
		s.rest = line[k:]
		n += k
	}
	taken := 0
	for taken < len(s.lines) && len(s.rest) == 0 {
		line := s.lines[(s.first+taken)%len(s.lines)]
		if n > 0 && n+len(line) > len(p) {
			break
		}
		k := copy(p[n:], line)
		s.rest = line[k:]
		n += k
		taken++
	}
	s.dropLocked(taken)
	return n
}

// dropLocked takes the oldest n lines out. s.mu is held.
func (s *eventStream) dropLocked(n int) {
	switch {
	case n == 0:
	case n == len(s.lines):
		s.lines, s.first = nil, 0
	default: // in order again, so that what is left can grow
		left := make([][]byte, 0, len(s.lines)-n)
		for i := n; i < len(s.lines); i++ {
			left = append(left, s.lines[(s.first+i)%len(s.lines)])
		}
		s.lines, s.first = left, 0
	}
}

func (s *eventStream) readyLocked() bool {
	return s.ended || s.lost > 0 || len(s.rest) > 0 || len(s.lines) > 0
}

// read waits for an event. EAGAIN with O_NONBLOCK, EINTR when interrupted; 0
// (the end of the file) only when the file system is being unmounted.
func (s *eventStream) read(r *request, p []byte, _ int64, _ bool) (int, error) {
	return s.readLines(r, p, r.fileFlags(s.flags)&syscall.O_NONBLOCK != 0)
}

func (s *eventStream) readLines(ctx context.Context, p []byte, nonblock bool) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		s.mu.Lock()
		if s.readyLocked() {
			n := s.takeLocked(p)
			s.mu.Unlock()
			return n, nil
		}
		if nonblock {
			s.mu.Unlock()
			return 0, syscall.EAGAIN
		}
		if s.more == nil {
			s.more = make(chan struct{})
		}
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// fileFlags are the flags that the file has now: fcntl(2) changes O_NONBLOCK
// after open. fuse_read_in has them behind the lock owner; READ requests only.
func (r *request) fileFlags(opened uint32) uint32 {
	if r.op == opRead && len(r.body) >= 36 {
		return native.Uint32(r.body[32:])
	}
	return opened
}

func (s *eventStream) poll(want uint32, kh uint64) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ph.register(kh) && s.kick == nil && !s.ended {
		s.kick = make(chan struct{}, 1)
		go func(kick chan struct{}) {
			for range kick {
				s.ph.wake()
			}
		}(s.kick)
	}
	if s.readyLocked() {
		return want & pollReadable
	}
	return 0
}
