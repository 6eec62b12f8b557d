package run

import (
	"encoding/json"
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// message goes between the stages, one packet each, with descriptors where needed.
type message struct {
	Error  string `json:",omitempty"`
	Hint   string `json:",omitempty"`
	Errno  int    `json:",omitempty"`
	Exited bool   `json:",omitempty"` // CMD has ended, with Status as the shell has it
	Status int    `json:",omitempty"`
	Signal int    `json:",omitempty"` // for CMD
}

// failure makes a message of an error.
func failure(err error) message {
	m := message{Error: err.Error()}
	var e syscall.Errno
	if errors.As(err, &e) {
		m.Errno = int(e)
	}
	var h *mountError
	if errors.As(err, &h) {
		m.Hint = h.hint
	}
	return m
}

// err is the error that a message brings, or nil.
func (m message) err() error {
	if m.Error == "" {
		return nil
	}
	return &mountError{&remoteError{m.Error, syscall.Errno(m.Errno)}, m.Hint}
}

func send(sock int, m message, fds ...int) error {
	p, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	return os.NewSyscallError("sendmsg", unix.Sendmsg(sock, p, oob, nil, unix.MSG_NOSIGNAL))
}

// receive waits for a message. EPIPE: the other end is gone.
func receive(sock int, m *message) (fds []int, err error) {
	p, oob := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4*4))
	var n, oobn int
	for {
		n, oobn, _, _, err = unix.Recvmsg(sock, p, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		return nil, os.NewSyscallError("recvmsg", err)
	case n == 0:
		return nil, os.NewSyscallError("recvmsg", unix.EPIPE)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		if got, err := unix.ParseUnixRights(&msgs[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, json.Unmarshal(p[:n], m)
}
