package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// underRun measures programs under `dmabuffs run`: what the filter costs a call that
// is not ours, what an emulated call takes, and mappings against memfd.
func (b *bench) underRun() error {
	prog := filepath.Join(b.dir, "runbench")
	if out, err := exec.Command("gcc", "-O2", "-o", prog, filepath.Join(*source, "peers", "runbench.c")).CombinedOutput(); err != nil {
		return fmt.Errorf("gcc: %w: %s", err, out)
	}
	figure := func(what string, run bool) (float64, error) {
		args := []string{prog, what}
		if run {
			args = append([]string{*dmabuffs, "run", "--"}, args...)
		}
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
		return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
	}
	both := func(ours, peer string, peerRun bool) (o, p float64, err error) {
		var v, w []float64
		for range *rounds {
			if p, err = figure(peer, peerRun); err != nil {
				return 0, 0, err
			}
			w = append(w, p)
			if o, err = figure(ours, true); err != nil {
				return 0, 0, err
			}
			v = append(v, o)
		}
		return median(v), median(w), nil
	}
	for _, r := range []struct{ what, ours, peer, unit, aim string }{
		{"getppid under run / without", "getppid", "getppid", "ns", "<= 1.3"},
		{"mmap write and read, 64 MiB, heap buffer / memfd", "heap", "memfd", "GB/s", ">= 0.95"},
		{"mmap write and read, 64 MiB, udmabuf / memfd", "udmabufmap", "memfd", "GB/s", ">= 0.95"},
	} {
		o, p, err := both(r.ours, r.peer, false)
		if err != nil {
			return err
		}
		b.add(r.what, o, p, r.unit, r.aim)
	}
	open, _, err := versus(times(3000, opener(filepath.Join(b.bare, "f"))), times(1, func() error { return nil }))
	if err != nil {
		return err
	}
	for _, what := range []string{"alloc", "udmabuf", "export"} {
		o, err := figure(what, true)
		if err != nil {
			return err
		}
		b.add("emulated "+what+" and close / bare FUSE open+close", o, open*1e6, "us", "")
	}
	return nil
}
