package poll

import _ "unsafe" // for go:linkname

// now is CLOCK_MONOTONIC in nanoseconds, the clock of fence timestamps
// (ktime_get) and of deadlines. The runtime reads it without a system call;
// package time has it too, but not its origin.
//
//go:linkname now runtime.nanotime
func now() int64
