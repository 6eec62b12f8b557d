package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// event is one line of MNT/events: time and event, then what the kind of event has, in its order.
type event struct {
	Time   time.Time
	Name   string
	Keys   []string
	Values map[string]string
	line   string
}

// parseEvent reads one line; numbers stay as they were written.
func parseEvent(line string) (event, error) {
	e := event{Values: map[string]string{}, line: line}
	dec := json.NewDecoder(strings.NewReader(line))
	dec.UseNumber()
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return e, fmt.Errorf("no JSON object: %q", line)
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return e, err
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return e, err
		}
		k, v := key.(string), fmt.Sprint(value)
		switch k {
		case "time":
			if e.Time, err = time.Parse(time.RFC3339Nano, v); err != nil {
				return e, err
			}
		case "event":
			e.Name = v
		default:
			e.Keys = append(e.Keys, k)
			e.Values[k] = v
		}
	}
	_, err := dec.Token() // the closing brace
	return e, err
}

// follower is what events and trace have in common: which events, and how many.
type follower struct {
	buffers, processes, kinds []string
	count                     int
	timeout                   time.Duration
}

func (f *follower) flags(cmd *cobra.Command) {
	cmd.Flags().StringSliceVarP(&f.buffers, "buffer", "b", nil, "only events of this `BUFFER` (may be repeated)")
	cmd.Flags().StringSliceVarP(&f.processes, "process", "p", nil, "only events of this `PROCESS`, by pid or by command (may be repeated)")
	cmd.Flags().StringSliceVarP(&f.kinds, "event", "e", nil, "only events of this `KIND` (may be repeated)")
	cmd.Flags().IntVarP(&f.count, "count", "n", 0, "end after `N` events (default: when the mount ends)")
	cmd.Flags().DurationVar(&f.timeout, "timeout", -1, "end with exit status 124 when `D` has passed (default: never)")
	cmd.Flags().Lookup("timeout").DefValue = ""
}

func (f *follower) wants(e event) bool {
	one := func(list []string, values ...string) bool {
		if len(list) == 0 {
			return true
		}
		for _, want := range list {
			for _, v := range values {
				if v != "" && v == want {
					return true
				}
			}
		}
		return false
	}
	return one(f.kinds, e.Name) &&
		one(f.buffers, e.Values["buffer"], e.Values["to"]) &&
		one(f.processes, e.Values["pid"], e.Values["comm"])
}

// follow reads the stream of events until the mount ends, count is reached or the time is up.
func (f *follower) follow(mnt string, show func(event) error) error {
	path := filepath.Join(mnt, "events")
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := bufio.NewReaderSize(&pollReader{fd: fd, path: path, timeout: f.timeout, end: time.Now().Add(f.timeout)}, 256<<10)
	for seen := 0; ; {
		line, err := r.ReadString('\n')
		switch {
		case err == io.EOF:
			return nil // unmounted
		case errors.Is(err, errTimeout):
			return exitError{status: exitTimeout}
		case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, syscall.ENODEV):
			return nil // so is this
		case err != nil:
			return err
		}
		e, err := parseEvent(strings.TrimRight(line, "\n"))
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if !f.wants(e) {
			continue
		}
		if err := show(e); err != nil {
			return err
		}
		if seen++; seen == f.count {
			return nil
		}
	}
}

// pollReader waits with poll, which a time-out can end, then reads.
type pollReader struct {
	fd      int
	path    string
	timeout time.Duration
	end     time.Time
}

func (p *pollReader) Read(buf []byte) (int, error) {
	left := p.timeout
	if left >= 0 {
		left = max(time.Until(p.end), 0)
	}
	if err := pollFile(p.fd, unix.POLLIN, left); err != nil {
		return 0, err
	}
	for {
		n, err := unix.Read(p.fd, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, &fs.PathError{Op: "read", Path: p.path, Err: err}
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func newEventsCmd() *cobra.Command {
	var (
		f      follower
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "events [MNT]",
		Short: "Follow what happens on a mount",
		Long:  "Print what happens from now on, one line an event, until the mount ends or you interrupt it. docs/events.md lists the events.",
		Args:  usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.print(cmd, args, asJSON, event.pretty)
		},
	}
	f.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the lines as they come: one JSON object each")
	return cmd
}

// print follows the mount that args name, and prints each event: as it came, or as text makes it.
func (f *follower) print(cmd *cobra.Command, args []string, asJSON bool, text func(event) string) error {
	mnt, err := mountOf(args)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	return f.follow(mnt, func(e event) error {
		line := e.line
		if !asJSON {
			line = text(e)
		}
		_, err := fmt.Fprintln(out, line)
		return err
	})
}

// pretty is one event for people: local time, kind, then key=value.
func (e event) pretty() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %-12s", e.Time.Local().Format("15:04:05.000000"), e.Name)
	for _, k := range e.Keys {
		fmt.Fprintf(&b, " %s=%s", k, wordOf(e.Values[k]))
	}
	return strings.TrimRight(b.String(), " ")
}

// wordOf quotes a value that would not stay one word.
func wordOf(v string) string {
	if q := printable(v); q != v || v == "" || strings.ContainsAny(v, " =") {
		return fmt.Sprintf("%q", v)
	}
	return v
}
