package main

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

// The files of a mount are opened with plain system calls: os.Open would ask the
// daemon whether each of them polls, and hand those that do to the runtime's epoll.

// open is open(2) with O_CLOEXEC.
func open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
		return fd, nil
	}
}

// readText reads a small file of the mount.
func readText(path string) (string, error) {
	fd, err := open(path, unix.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var out []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return "", &fs.PathError{Op: "read", Path: path, Err: err}
		case n == 0:
			return string(out), nil
		default:
			out = append(out, buf[:n]...)
		}
	}
}

// writeText writes a value into a file of the mount, in one write.
func writeText(path, text string) error {
	fd, err := open(path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	n, err := unix.Write(fd, []byte(text))
	if err == nil && n < len(text) {
		err = io.ErrShortWrite
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return &fs.PathError{Op: "write " + strconv.Quote(strings.TrimSpace(text)) + " to", Path: path, Err: err}
	}
	return nil
}

// readInt reads a file that holds one number.
func readInt(path string) (int64, error) {
	text, err := readText(path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return 0, &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return n, nil
}

// readRows reads a file of rows and splits them at blanks.
func readRows(path string) ([][]string, error) {
	text, err := readText(path)
	if err != nil {
		return nil, err
	}
	rows := [][]string{}
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 0 {
			rows = append(rows, fields)
		}
	}
	return rows, nil
}

// readNames lists a directory of the mount, sorted.
func readNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// gone tells that a buffer, a device or a timeline went away while it was listed.
func gone(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ESTALE)
}

// errTimeout is a wait that ended before what it waited for.
var errTimeout = errors.New("timed out")

// pollFile waits until fd has one of events. A negative timeout waits for ever; zero
// asks once. The error is errTimeout, or poll's.
func pollFile(fd int, events int16, timeout time.Duration) error {
	end := time.Now().Add(timeout)
	for {
		ms := -1
		if timeout >= 0 {
			left := max(time.Until(end), 0)
			ms = int(min((left+time.Millisecond-1)/time.Millisecond, 1<<30))
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, ms)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case n > 0 && fds[0].Revents&events != 0:
			return nil
		case n > 0:
			return os.NewSyscallError("poll", syscall.ENOTCONN) // POLLERR: the connection ended
		case ms == 0 || timeout >= 0 && !time.Now().Before(end):
			return errTimeout
		}
	}
}

// printJSON writes v as one indented JSON value and a newline.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// printTable writes rows in columns; the first is the heading.
func printTable(w io.Writer, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range rows {
		if _, err := io.WriteString(tw, strings.Join(row, "\t")+"\n"); err != nil {
			return err
		}
	}
	return tw.Flush()
}

// sizeSuffixes are those of dd and truncate, in powers of 1024.
const sizeSuffixes = "KMGTPE"

// parseSize reads a number of bytes, with K, M, G, T, P or E for powers of 1024.
func parseSize(s string) (int64, error) {
	digits, shift := s, 0
	if n := len(s); n > 0 {
		if i := strings.IndexByte(sizeSuffixes, s[n-1]&^0x20); i >= 0 && s[n-1] >= 'A' {
			digits, shift = s[:n-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange) || err == nil && n > (1<<63-1)>>shift:
		return 0, &fs.PathError{Op: "size", Path: s, Err: syscall.EFBIG}
	case err != nil:
		return 0, usagef("size %q: is no number of bytes (K, M, G, … may follow)", s)
	}
	return int64(n << shift), nil
}

// formatSize writes a number of bytes as parseSize reads it, where nothing is lost.
func formatSize(n int64) string {
	for i := len(sizeSuffixes); i > 0; i-- {
		if unit := int64(1) << (10 * i); n >= unit && n%unit == 0 {
			return strconv.FormatInt(n/unit, 10) + sizeSuffixes[i-1:i]
		}
	}
	return strconv.FormatInt(n, 10)
}

// printable shows a name on a terminal: what is not printable is quoted as in Go.
func printable(name string) string {
	if q := strconv.Quote(name); q != `"`+name+`"` {
		return q
	}
	return name
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// plural is "1 page", "2 pages".
func plural(n int64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return strconv.FormatInt(n, 10) + " " + what + "s"
}
