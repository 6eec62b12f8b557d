package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A daemon is this program once more, in a session of its own, with a pipe on which
// its parent waits. (Go cannot fork: its runtime has threads.)

// fate is what a daemon tells its parent: an empty one when the mount answers.
type fate struct {
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
	Usage bool   `json:"usage,omitempty"`
}

// startDaemon starts the daemon and returns when it serves, or with why it does not.
func (a *mountArgs) startDaemon() error {
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer read.Close()
	cmd, err := a.daemonCommand(write)
	if err != nil {
		write.Close()
		return err
	}
	err = cmd.Start()
	write.Close()
	if err != nil {
		return fmt.Errorf("starting the daemon: %w", err)
	}
	return hearDaemon(cmd, read)
}

func (a *mountArgs) daemonCommand(ready *os.File) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(self); err != nil {
		self = "/proc/self/exe" // replaced by a newer one meanwhile
	}
	// What this process inherited is not the daemon's: a lock or the writing end of
	// somebody's pipe would live as long as the mount. (ENOSYS before Linux 5.11.)
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) {
		return nil, fmt.Errorf("close_range: %w", err)
	}
	args := []string{"mount", "--ready-fd=3"}
	files := []*os.File{ready}
	if a.fuseFD > 0 {
		args = append(args, "--fuse-fd=4")
		files = append(files, os.NewFile(uintptr(a.fuseFD), "fuse"))
	}
	if a.options != "" {
		args = append(args, "--options="+a.options)
	}
	if a.debug {
		args = append(args, "--debug")
	}
	var out *os.File
	if a.logFile != "" {
		args = append(args, "--log="+a.logFile)
		if out, err = openLogFile(a.logFile); err != nil {
			return nil, err
		}
	}
	if a.dir != "" {
		args = append(args, "--", a.dir)
	}
	cmd := exec.Command(self, args...)
	cmd.Args[0] = "dmabuffs" // not by the helper's name
	cmd.Dir = "/"
	cmd.ExtraFiles = files
	if out != nil {
		cmd.Stdout, cmd.Stderr = out, out // the runtime's last words go there too
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// hearDaemon waits for the daemon's word, or its death.
func hearDaemon(cmd *exec.Cmd, r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	var f fate
	if json.Unmarshal(raw, &f) != nil {
		err := cmd.Wait()
		return fmt.Errorf("mount: the daemon ended before the mount answered (%v)", err)
	}
	if f.Error == "" {
		return cmd.Process.Release()
	}
	_ = cmd.Wait()
	err = errors.New(f.Error)
	if f.Usage {
		err = usageError{err}
	}
	if f.Hint != "" {
		err = hint(err, "%s", f.Hint)
	}
	return err
}

// tellParent sends the daemon's fate and lets the parent go.
func (a *mountArgs) tellParent(err error) {
	var f fate
	if err != nil {
		var usage usageError
		f = fate{Error: err.Error(), Hint: hintFor(err), Usage: errors.As(err, &usage)}
	}
	raw, _ := json.Marshal(f)
	_, _ = unix.Write(a.readyFD, raw) // a parent that is gone does not care
	unix.Close(a.readyFD)
	a.readyFD = 0
}

// openLog is where the log of a mount goes.
func (a *mountArgs) openLog(debug bool) (*slog.Logger, error) {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	switch {
	case a.logFile != "":
		f, err := openLogFile(a.logFile)
		if err != nil {
			return nil, err
		}
		return slog.New(slog.NewTextHandler(f, &slog.HandlerOptions{Level: level})), nil
	case a.readyFD > 0:
		w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "dmabuffs")
		if err != nil {
			return slog.New(slog.DiscardHandler), nil // no syslog here
		}
		return slog.New(slog.NewTextHandler(syslogWriter{w}, &slog.HandlerOptions{Level: level, ReplaceAttr: dropTime})), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level})), nil
}

func openLogFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
}

// dropTime: syslog has its own.
func dropTime(groups []string, a slog.Attr) slog.Attr {
	if a.Key == slog.TimeKey && len(groups) == 0 {
		return slog.Attr{}
	}
	return a
}

// syslogWriter gives each line the severity that it begins with.
type syslogWriter struct{ w *syslog.Writer }

func (s syslogWriter) Write(p []byte) (int, error) {
	line := strings.TrimRight(string(p), "\n")
	say := s.w.Info
	for prefix, f := range map[string]func(string) error{"level=DEBUG ": s.w.Debug, "level=INFO ": s.w.Info, "level=WARN ": s.w.Warning, "level=ERROR ": s.w.Err} {
		if rest, ok := strings.CutPrefix(line, prefix); ok {
			line, say = rest, f
		}
	}
	return len(p), say(line)
}
