package tests

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

func devclient(t *testing.T) string { return cProgram(t, "clients/devclient.c") }

// seed is DMABUFFS_SEED, or a new one. What processes do at the same time is still
// up to the scheduler.
func seed(t *testing.T) string {
	t.Helper()
	s := os.Getenv("DMABUFFS_SEED")
	if s == "" {
		s = strconv.FormatInt(time.Now().UnixNano(), 10)
	}
	t.Logf("DMABUFFS_SEED=%s", s)
	return s
}

// soak is how long DMABUFFS_SOAK asks for, 0 without it.
func soak(t *testing.T) time.Duration {
	t.Helper()
	v := os.Getenv("DMABUFFS_SOAK")
	if v == "" {
		return 0
	}
	d, err := time.ParseDuration(v)
	if err != nil || d <= 0 {
		t.Fatalf("DMABUFFS_SOAK=%s: no duration", v)
	}
	return d
}

// Processes do random things to random pages of one buffer, as CPUs and as devices,
// and are killed at random. Each page holds who wrote it last and a number; every
// read is checked. See clients/devclient.c.
func TestModel(t *testing.T) {
	s, long := seed(t), soak(t)
	ops, limit := 30000, 2*patience+2*time.Minute
	if testing.Short() {
		ops = 2000
	}
	type row struct {
		name, exporter string
		mount, client  []string
	}
	table := []row{
		{"system", "system", nil, nil},
		{"coherent", "coherent", nil, nil},
		{"noncoherent", "noncoherent", nil, []string{"bracket"}},
		{"contiguous", "contiguous", nil, nil},
		// faults wait for fences, which come and go
		{"fault=wait", "system", []string{"fault=wait"}, []string{"fences"}},
	}
	if long > 0 { // all of them together
		ops, limit = 0, long+2*time.Minute
		long = min(long, long*time.Duration(runtime.GOMAXPROCS(0))/time.Duration(len(table)))
	}
	for _, m := range table {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			mnt := mount(t, append([]string{"contiguous=16m"}, m.mount...)...)
			sh(t, mnt, "mkdir devices/d{0,1,2,3} timelines/tl; truncate -s 256k exporters/"+m.exporter+"/m")
			args := append([]string{"model", mnt, "m", strconv.Itoa(ops), fmt.Sprint(long.Seconds()), s}, m.client...)
			r := run(t, limit, "/", devclient(t), args...)
			t.Log(strings.TrimSpace(r.out))
			if r.code != 0 {
				t.Fatalf("exit status %d:\n%s", r.code, r.err)
			}
			everythingGone(t, mnt, "m")
			if refs := strings.TrimSpace(cat(t, mnt+"/state/m/refcount")); refs != "1" {
				t.Errorf("refcount %s, and nobody has it open", refs)
			}
			sh(t, mnt, "rm buffers/m; rmdir devices/* timelines/*")
		})
	}
}

// everythingGone waits until nobody is attached to the buffer, and nothing of it is mapped:
// the kernel tells of a killed process' files a little later.
func everythingGone(t *testing.T, mnt, buffer string) {
	t.Helper()
	waitUntil(t, "attachments and mappings of processes that have ended are gone", func() bool {
		return cat(t, mnt+"/state/"+buffer+"/attachments")+cat(t, mnt+"/state/"+buffer+"/mappings") == ""
	})
}
