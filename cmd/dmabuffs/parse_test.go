package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{
		"0": 0, "1": 1, "4096": 4096, "4k": 4096, "4K": 4096, "2M": 2 << 20, "3g": 3 << 30,
		"1T": 1 << 40, "1p": 1 << 50, "7E": 7 << 60, "9223372036854775807": 1<<63 - 1,
	} {
		if got, err := parseSize(in); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"8E", "9223372036854775808", "18446744073709551616", "9007199254740992K", "99999999999999999999999K"} {
		if _, err := parseSize(in); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("parseSize(%q): %v, want EFBIG", in, err)
		}
	}
	for _, in := range []string{"", "K", "-1", "+1", "1.5M", "1KB", "0x10", " 1", "1 ", "1é"} {
		var usage usageError
		if n, err := parseSize(in); !errors.As(err, &usage) {
			t.Errorf("parseSize(%q) = %d, %v, want a usage error", in, n, err)
		}
	}
}

func TestFormatSizeReadsBack(t *testing.T) {
	for _, n := range []int64{0, 1, 1023, 1024, 5000, 65536, 1<<20 + 1, 3 << 30, 1 << 62, 1<<63 - 1} {
		text := formatSize(n)
		if got, err := parseSize(text); err != nil || got != n {
			t.Errorf("parseSize(formatSize(%d)) = parseSize(%q) = %d, %v", n, text, got, err)
		}
	}
}

func TestUnescapeOctal(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "plain": "plain", `a\040b`: "a b", `\134`: `\`, `\012`: "\n", `\377`: "\xff",
		`\`: `\`, `\04`: `\04`, `\999`: `\999`, `x\040`: "x ", `\055`: "-",
	} {
		if got := unescapeOctal(in); got != want {
			t.Errorf("unescapeOctal(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestParseDomain(t *testing.T) {
	got := parseDomain("device gpu\\0400\ncpu_pages 3\ndevice_pages 5\nfallback page cache\n")
	want := domainInfo{Owner: "device gpu 0", Pages: map[string]int64{"cpu": 3, "device": 5}, Notes: []string{"fallback page cache"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParseFences(t *testing.T) {
	rows := [][]string{
		{"gpu0", "7", "pending", "dmabuffs"},
		{`a\040b`, "18446744073709551615", "error", "-ENOENT", "sw_sync"},
		{"gpu0", "1", "signaled", "dmabuffs"},
		{"short"}, {"gpu0", "x", "pending", "d"},
	}
	want := []fenceInfo{
		{"frame", "write", "gpu0", 7, "pending", "dmabuffs"},
		{"frame", "write", "a b", 1<<64 - 1, "error -ENOENT", "sw_sync"},
		{"frame", "write", "gpu0", 1, "signaled", "dmabuffs"},
	}
	got := parseFences(rows, "frame", "write")
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if n := countPending(got); n != 1 {
		t.Errorf("countPending = %d, want 1", n)
	}
}

func TestParseAttachments(t *testing.T) {
	got := parseAttachments([][]string{
		{"cpu", "12", `my\040prog`, "rw"},
		{"device", "gpu0", "13", "sh", "DMA_BIDIRECTIONAL"},
		{"cpu", "12"},
	})
	want := []attachmentInfo{{"cpu", "", "12", "my prog", "rw"}, {"device", "gpu0", "13", "sh", "DMA_BIDIRECTIONAL"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestStatusError(t *testing.T) {
	for status, want := range map[string]error{
		"signaled": nil, "pending": nil,
		"error -ENOENT": syscall.ENOENT, "error -2": syscall.ENOENT, "error -ETIMEDOUT": syscall.ETIMEDOUT,
	} {
		if err := statusError("p", status); !errors.Is(err, want) || (err == nil) != (want == nil) {
			t.Errorf("statusError(%q) = %v, want %v", status, err, want)
		}
	}
	if err := statusError("p", "error -EWHAT"); err == nil {
		t.Error("an error of no known name was no error")
	}
}

func TestParseEvent(t *testing.T) {
	line := `{"time":"2026-01-02T03:04:05.000000006Z","event":"map","buffer":"a \"b\"","device":"gpu0","pid":42,"comm":"sh","big":18446744073709551615}`
	e, err := parseEvent(line)
	if err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC); e.Name != "map" || !e.Time.Equal(want) || e.Values["big"] != "18446744073709551615" {
		t.Errorf("parseEvent: %+v", e)
	}
	if got := e.call(); !strings.HasSuffix(got, ` [42 sh] map("a \"b\"", device=gpu0, big=18446744073709551615)`) {
		t.Errorf("call: %s", got)
	}
	if got := e.pretty(); !strings.HasSuffix(got, ` map          buffer="a \"b\"" device=gpu0 pid=42 comm=sh big=18446744073709551615`) {
		t.Errorf("pretty: %s", got)
	}
	for _, bad := range []string{"", "[]", "{", `{"time":"never","event":"x"}`, `{"a":`} {
		if _, err := parseEvent(bad); err == nil {
			t.Errorf("parseEvent(%q): no error", bad)
		}
	}
}

func TestFollowerWants(t *testing.T) {
	e := event{Name: "rename", Values: map[string]string{"buffer": "a", "to": "b", "pid": "7", "comm": "mv"}}
	for _, c := range []struct {
		f    follower
		want bool
	}{
		{follower{}, true},
		{follower{buffers: []string{"a"}}, true},
		{follower{buffers: []string{"b"}}, true},
		{follower{buffers: []string{"c"}}, false},
		{follower{processes: []string{"mv"}}, true},
		{follower{processes: []string{"7"}, kinds: []string{"open", "rename"}}, true},
		{follower{processes: []string{"8"}}, false},
		{follower{buffers: []string{"a"}, kinds: []string{"open"}}, false},
	} {
		if got := c.f.wants(e); got != c.want {
			t.Errorf("%+v wants = %v", c.f, got)
		}
	}
}

func TestReport(t *testing.T) {
	enoent := &fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOENT}
	for _, c := range []struct {
		err    error
		status int
		text   string
	}{
		{nil, 0, ""},
		{enoent, 1, "dmabuffs: open /x: no such file or directory\n"},
		{hint(enoent, "look in %s", "/y"), 1, "dmabuffs: open /x: no such file or directory\n  look in /y\n"},
		{usagef("no %d", 1), 2, "dmabuffs: no 1\n  see dmabuffs --help\n"},
		{exitError{124, errors.New("late")}, 124, "dmabuffs: late\n"},
		{exitError{status: 7}, 7, ""},
		{fmt.Errorf("run: %w", exitError{status: 7}), 7, ""},
		{errors.Join(enoent, usagef("no")), 1, "dmabuffs: open /x: no such file or directory\ndmabuffs: no\n  see dmabuffs --help\n"},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.ENOTCONN}, 1, "dmabuffs: open /x: transport endpoint is not connected\n  the daemon of this mount is gone: dmabuffs umount the mount point, then mount it again\n"},
	} {
		var out bytes.Buffer
		if got := report(&out, c.err); got != c.status || out.String() != c.text {
			t.Errorf("report(%v) = %d, %q; want %d, %q", c.err, got, out.String(), c.status, c.text)
		}
	}
	if hint(nil, "x") != nil {
		t.Error("a hint made an error of nil")
	}
}

// Every command says what it does, and each that lists has --json.
func TestCommands(t *testing.T) {
	listings := map[string]bool{
		"dmabuffs ls": true, "dmabuffs info": true, "dmabuffs device ls": true, "dmabuffs timeline ls": true, "dmabuffs fence ls": true,
		"dmabuffs events": true, "dmabuffs top": true, "dmabuffs trace": true, "dmabuffs doctor": true,
	}
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" && !cmd.Hidden {
			t.Errorf("%s: does not say what it does", cmd.CommandPath())
		}
		if listings[cmd.CommandPath()] {
			delete(listings, cmd.CommandPath())
			if cmd.Flags().Lookup("json") == nil {
				t.Errorf("%s: has no --json", cmd.CommandPath())
			}
		}
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(newRootCmd())
	for path := range listings {
		t.Errorf("%s: there is no such command", path)
	}
}

func TestPictureFrames(t *testing.T) {
	source := pictureFrames(mandelbrot(64, 48), "test")
	seen := map[string]uint64{}
	for no := range uint64(50) {
		frame := make([]byte, source.size)
		source.draw(frame, no)
		if other, ok := seen[string(frame[frameHeader:])]; ok {
			t.Errorf("frames %d and %d are the same picture", other, no)
		}
		seen[string(frame[frameHeader:])] = no
		if no == 7 {
			again := make([]byte, source.size)
			source.draw(again, no)
			if !bytes.Equal(frame, again) {
				t.Error("frame 7 drawn twice is not the same")
			}
		}
	}
}

func TestSoundFramesRefuseNonsense(t *testing.T) {
	header := "RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x40\x1f\x00\x00\x80\x3e\x00\x00\x02\x00\x10\x00"
	for name, data := range map[string]string{
		"empty":     "RIFF",
		"no WAVE":   "RIFF\x00\x00\x00\x00AVI ",
		"no data":   header,
		"too short": header + "data\x04\x00\x00\x00abcd",
		"no format": "RIFF\x00\x00\x00\x00WAVEdata\x04\x00\x00\x00abcd",
		"long lie":  header + "data\xff\xff\xff\xffabcd",
	} {
		if _, err := soundFrames([]byte(data), name); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	s, err := soundFrames([]byte(header+"LIST\x03\x00\x00\x00abc\x00data\x80\x02\x00\x00"+strings.Repeat("x", 640)), "good")
	if err != nil || s.size != frameHeader+640 {
		t.Fatalf("40 ms of 8000 Hz: %+v, %v", s, err)
	}
}

// What findPicture finds can be opened; where there is nothing, something is drawn.
func TestOpenFrames(t *testing.T) {
	s, err := openFrames("")
	if err != nil || s.size <= frameHeader || s.about == "" {
		t.Fatalf("openFrames: %+v, %v", s, err)
	}
	if got := largestPicture(filepath.Join(t.TempDir(), "nothing")); got != "" {
		t.Errorf("largestPicture of nothing = %q", got)
	}
}
