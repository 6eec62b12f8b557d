package fs

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// FUSE names callers by thread. People think in processes: the thread group's
// number (what ps and kill call pid) and its command, /proc/<pid>/comm.

// process is who a thread belongs to.
type process struct {
	pid   uint32 // of the thread group
	comm  string // as the kernel has it, any bytes; "" when nobody knows any more
	label string // comm(pid), for counting by whom
	seen  time.Time
}

// processes remembers what /proc said of a thread, so that asking on every
// request costs a look into a map. What is remembered outlives the thread: a
// thread that opened a file may be gone while its process goes on using it.
type processes struct {
	mu sync.RWMutex
	m  map[uint32]process
}

const (
	procFresh = time.Second           // threads' numbers come round much later, commands change by exec
	procTold  = 10 * time.Millisecond // for events: a shell opens a file, and is another program when it closes it
	procMax   = 8192                  // entries
)

// threads is one table for all mounts: the numbers are the machine's.
var threads = &processes{m: map[uint32]process{}}

// of returns the process of a thread, as it was at most age ago.
func (t *processes) of(tid uint32, age time.Duration) process {
	if tid == 0 {
		return process{comm: "kernel", label: "kernel(0)"}
	}
	t.mu.RLock()
	p, known := t.m[tid]
	t.mu.RUnlock()
	now := time.Now()
	if known && now.Sub(p.seen) < age {
		return p
	}
	if read, ok := readProcess(tid); ok {
		p = read
	} else if !known {
		p = process{pid: tid}
	}
	p.seen = now
	p.label = fmt.Sprintf("%s(%d)", orNobody(p.comm), p.pid)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) >= procMax-1 {
		for k, v := range t.m {
			if now.Sub(v.seen) > time.Minute {
				delete(t.m, k)
			}
		}
		if len(t.m) >= procMax-1 {
			clear(t.m)
		}
	}
	t.m[tid] = p
	if p.pid != tid { // whoever was told the process' number asks by that
		t.m[p.pid] = p
	}
	return p
}

func readProcess(tid uint32) (process, bool) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return process{}, false
	}
	_, rest, ok := bytes.Cut(status, []byte("\nTgid:\t"))
	if !ok {
		return process{}, false
	}
	digits, _, _ := bytes.Cut(rest, []byte("\n"))
	pid, err := strconv.ParseUint(string(digits), 10, 32)
	if err != nil {
		return process{}, false
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return process{}, false
	}
	return process{pid: uint32(pid), comm: string(bytes.TrimSuffix(comm, []byte("\n")))}, true
}

// sameProcess reports whether two threads are of one process.
func sameProcess(tidA, tidB uint32) bool {
	return tidA == tidB || threads.of(tidA, procFresh).pid == threads.of(tidB, procFresh).pid
}

// callerLabel is `<comm>(<pid>)` for the process of a thread: by whom things are
// counted. It is at most a second old, and cheap.
func callerLabel(tid uint32) string { return threads.of(tid, procFresh).label }

// unlabel takes a callerLabel apart. Without a pid in it: "-".
func unlabel(label string) (pid, comm string) {
	if i := strings.LastIndexByte(label, '('); i >= 0 && strings.HasSuffix(label, ")") {
		return label[i+1 : len(label)-1], label[:i]
	}
	return "-", label
}

// processOf is the pid (thread group) of a thread.
func processOf(tid uint32) uint32 { return threads.of(tid, procFresh).pid }

// commOf is a process' command, ready for a row: comm where it is known already,
// else what /proc says now, else what it said last, else "-".
func commOf(tid uint32, comm string) string {
	if comm == "" {
		comm = threads.of(tid, 0).comm
	}
	return escape(comm)
}

func orNobody(comm string) string {
	if comm == "" {
		return "-"
	}
	return comm
}

// escape makes one field of a row out of any string: white space, backslashes,
// control characters and bytes that are no UTF-8 become \ooo, octal, as in
// /proc/mounts; nothing is "-", and a "-" is \055.
func escape(s string) string {
	switch s {
	case "":
		return "-"
	case "-":
		return `\055`
	}
	return octal(s, true)
}

// escapeLine makes one line out of any string: as escape, but spaces stay and
// nothing stays nothing.
func escapeLine(s string) string { return octal(s, false) }

func octal(s string, field bool) string {
	odd := func(r rune, n int) bool {
		return r == utf8.RuneError && n == 1 || r == '\\' || unicode.IsControl(r) || r == 0x2028 || r == 0x2029 ||
			field && unicode.IsSpace(r)
	}
	plain := true
	for i := 0; i < len(s) && plain; {
		r, n := utf8.DecodeRuneInString(s[i:])
		plain = !odd(r, n)
		i += n
	}
	if plain {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if odd(r, n) {
			for _, c := range []byte(s[i : i+n]) {
				fmt.Fprintf(&b, `\%03o`, c)
			}
		} else {
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}
