package run

import (
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Signals. CMD is in run's process group, so that a terminal's go to both, and stop
// and continue both. What somebody sends to run alone is passed on; what was sent to
// the group is not, or CMD would get it twice. Which is which, the supervisor knows:
// it is in the group, and nobody sends it signals by itself.

// forwarded are the signals that run passes on. Those that stop and continue do what
// they do to everybody.
var forwarded = []os.Signal{
	unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTERM,
	unix.SIGWINCH, unix.SIGIO, unix.SIGPWR,
}

// catch takes the forwarded signals that are not ignored: what nohup(1) or a shell
// has ignored for CMD stays so.
func catch() <-chan os.Signal {
	c := make(chan os.Signal, 64)
	for _, s := range forwarded {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
	return c
}

// groupSignals are those that the supervisor has got.
type groupSignals struct {
	mu  sync.Mutex
	got map[syscall.Signal][]time.Time
}

const (
	// groupGrace is how long a signal may take to the second of two processes of a group,
	groupGrace = 20 * time.Millisecond
	// groupFresh how long it counts, if the first does not tell.
	groupFresh = time.Second
)

// collect notes what comes.
func (g *groupSignals) collect(c <-chan os.Signal) {
	for s := range c {
		n, ok := s.(syscall.Signal)
		if !ok {
			continue
		}
		g.mu.Lock()
		if g.got == nil {
			g.got = map[syscall.Signal][]time.Time{}
		}
		g.got[n] = append(g.got[n], time.Now())
		g.mu.Unlock()
	}
}

// forget drops what came before CMD was there.
func (g *groupSignals) forget() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.got = nil
}

// take waits a moment for the group's copy of a signal, and uses it up.
func (g *groupSignals) take(n syscall.Signal) bool {
	for deadline := time.Now().Add(groupGrace); ; time.Sleep(time.Millisecond) {
		if g.takeNow(n) {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
	}
}

func (g *groupSignals) takeNow(n syscall.Signal) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.got[n]) > 0 {
		came := g.got[n][0]
		g.got[n] = g.got[n][1:]
		if time.Since(came) < groupFresh {
			return true
		}
	}
	return false
}
