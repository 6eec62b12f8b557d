package main

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// The processes of the demo. Each gets what to do as numbers on its standard input,
// or (the producer) decides by itself, and reports on its standard output:
//
//	submit <frame>            the fences are on the buffer; it is being drawn
//	frame <frame> <sha256>    it was drawn, transformed or read
//
// A ring of buffers <prefix>-0 … is shared by all. For frame n, in buffer n mod ring,
// the producer waits until the buffer polls for writing (its fences are done), adds
// the fences of everybody who will work on it, submits, draws, signals its own. A
// device waits for the producer's point, changes the frame through its DMA view,
// signals its own. A consumer waits until the buffer polls for reading, which is
// until the write fences are done, reads, signals its own.

// patience is how long a process of the demo waits for another before it gives up.
const patience = 30 * time.Second

// transform is what the demo's device does with every byte.
func transform(p []byte) {
	for i := range p {
		p[i] ^= 0xff
	}
}

// ring is the buffers of the demo as one process has them mapped.
type ring struct {
	fds []int
	mem [][]byte
}

func openRing(mnt, prefix string, n int, write bool) (*ring, error) {
	r := &ring{}
	flags, prot := unix.O_RDONLY, unix.PROT_READ
	if write {
		flags, prot = unix.O_RDWR, unix.PROT_READ|unix.PROT_WRITE
	}
	for i := range n {
		path := filepath.Join(mnt, "buffers", fmt.Sprintf("%s-%d", prefix, i))
		fd, err := open(path, flags, 0)
		if err != nil {
			return nil, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("stat %s: %w", path, err)
		}
		mem, err := unix.Mmap(fd, 0, int(st.Size), prot, unix.MAP_SHARED)
		if err != nil {
			return nil, fmt.Errorf("mmap %s: %w", path, err)
		}
		r.fds, r.mem = append(r.fds, fd), append(r.mem, mem)
	}
	return r, nil
}

// timelineEnd is a process' own timeline: it owns it and signals its points.
type timelineEnd struct{ value string }

func ownTimeline(mnt, name string) (*timelineEnd, error) {
	dir := filepath.Join(mnt, "timelines", name)
	if _, err := open(filepath.Join(dir, "owner"), unix.O_RDONLY, 0); err != nil {
		return nil, err // the descriptor stays open as long as the process
	}
	return &timelineEnd{filepath.Join(dir, "value")}, nil
}

func (t *timelineEnd) signal(frame uint64) error {
	return writeText(t.value, strconv.FormatUint(pointOf(frame), 10)+"\n")
}

// pointOf is the point of a timeline that stands for a frame: points count from 1.
func pointOf(frame uint64) uint64 { return frame + 1 }

// streamFlags are what every process of the demo is told.
type streamFlags struct {
	mnt, name, prefix string
	ring              int
}

func (s *streamFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.mnt, "mnt", "", "")
	cmd.Flags().StringVar(&s.name, "name", "", "own timeline")
	cmd.Flags().StringVar(&s.prefix, "prefix", "frame", "")
	cmd.Flags().IntVar(&s.ring, "ring", 4, "")
}

func newDemoProducerCmd() *cobra.Command {
	var (
		s             streamFlags
		input         string
		frames        uint64
		writers       []string
		readers       []string
		ofTransformed bool
	)
	cmd := &cobra.Command{
		Use: "demo-producer", Hidden: true, Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := openFrames(input)
			if err != nil {
				return err
			}
			own, err := ownTimeline(s.mnt, s.name)
			if err != nil {
				return err
			}
			r, err := openRing(s.mnt, s.prefix, s.ring, true)
			if err != nil {
				return err
			}
			frame := make([]byte, source.size)
			for no := range frames {
				source.draw(frame, no)
				i := int(no % uint64(s.ring))
				if err := pollFile(r.fds[i], unix.POLLOUT, patience); err != nil {
					return fmt.Errorf("producer: frame %d: wait for the buffer: %w", no, err)
				}
				if err := bracket(r.fds[i], syncStart|syncWrite); err != nil {
					return err
				}
				state := filepath.Join(s.mnt, "state", fmt.Sprintf("%s-%d", s.prefix, i))
				for _, name := range readers {
					if err := writeText(filepath.Join(state, "read_fences"), fmt.Sprintf("%s:%d\n", name, pointOf(no))); err != nil {
						return err
					}
				}
				for _, name := range append([]string{s.name}, writers...) {
					if err := writeText(filepath.Join(state, "write_fences"), fmt.Sprintf("%s:%d\n", name, pointOf(no))); err != nil {
						return err
					}
				}
				fmt.Fprintf(os.Stdout, "submit %d\n", no)
				copy(r.mem[i], frame)
				if err := bracket(r.fds[i], syncEnd|syncWrite); err != nil {
					return err
				}
				if err := own.signal(no); err != nil {
					return err
				}
				if ofTransformed {
					transform(frame)
				}
				fmt.Fprintf(os.Stdout, "frame %d %x\n", no, sha256.Sum256(frame))
			}
			// Stay until the last frame was read: the fences are this process'.
			for _, fd := range r.fds {
				if err := pollFile(fd, unix.POLLOUT, patience); err != nil {
					return fmt.Errorf("producer: wait for the readers: %w", err)
				}
			}
			return nil
		},
	}
	s.add(cmd)
	cmd.Flags().StringVar(&input, "input", "", "")
	cmd.Flags().Uint64Var(&frames, "frames", 0, "")
	cmd.Flags().StringSliceVar(&writers, "writers", nil, "timelines of devices that change the frames")
	cmd.Flags().StringSliceVar(&readers, "readers", nil, "timelines of consumers")
	cmd.Flags().BoolVar(&ofTransformed, "transformed", false, "report the digests of what the device makes of the frames")
	return cmd
}

// eachFrame calls do for every number on the standard input.
func eachFrame(do func(no uint64) error) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		no, err := strconv.ParseUint(in.Text(), 10, 64)
		if err != nil {
			return err
		}
		if err := do(no); err != nil {
			return err
		}
	}
	return in.Err()
}

func newDemoConsumerCmd() *cobra.Command {
	var s streamFlags
	var frameSize int
	cmd := &cobra.Command{
		Use: "demo-consumer", Hidden: true, Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			own, err := ownTimeline(s.mnt, s.name)
			if err != nil {
				return err
			}
			r, err := openRing(s.mnt, s.prefix, s.ring, false)
			if err != nil {
				return err
			}
			return eachFrame(func(no uint64) error {
				i := int(no % uint64(s.ring))
				if err := pollFile(r.fds[i], unix.POLLIN, patience); err != nil {
					return fmt.Errorf("%s: frame %d: wait for it: %w", s.name, no, err)
				}
				if err := bracket(r.fds[i], syncStart|syncRead); err != nil {
					return err
				}
				sum := sha256.Sum256(r.mem[i][:frameSize])
				if err := bracket(r.fds[i], syncEnd|syncRead); err != nil {
					return err
				}
				if err := own.signal(no); err != nil {
					return err
				}
				fmt.Fprintf(os.Stdout, "frame %d %x\n", no, sum)
				return nil
			})
		},
	}
	s.add(cmd)
	cmd.Flags().IntVar(&frameSize, "frame-size", 0, "")
	return cmd
}

func newDemoDeviceCmd() *cobra.Command {
	var s streamFlags
	var device, after string
	var frameSize int
	cmd := &cobra.Command{
		Use: "demo-device", Hidden: true, Args: usageArgs(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			own, err := ownTimeline(s.mnt, s.name)
			if err != nil {
				return err
			}
			work := make([]byte, frameSize)
			return eachFrame(func(no uint64) error {
				point := filepath.Join(s.mnt, "timelines", after, "points", strconv.FormatUint(pointOf(no), 10))
				fd, err := open(point, unix.O_RDONLY, 0)
				if err != nil {
					return err
				}
				err = pollFile(fd, unix.POLLIN, patience)
				unix.Close(fd)
				if err != nil {
					return fmt.Errorf("device: frame %d: wait for its fence: %w", no, err)
				}
				view := filepath.Join(s.mnt, "devices", device, "buffers", fmt.Sprintf("%s-%d", s.prefix, no%uint64(s.ring)))
				if err := deviceWork(view, work); err != nil {
					return fmt.Errorf("device: frame %d: %w", no, err)
				}
				return own.signal(no)
			})
		},
	}
	s.add(cmd)
	cmd.Flags().StringVar(&device, "device", "", "")
	cmd.Flags().StringVar(&after, "after", "", "timeline to wait for")
	cmd.Flags().IntVar(&frameSize, "frame-size", 0, "")
	return cmd
}

// deviceWork is one piece of device work: the open begins it (the frame leaves the
// CPU's domain), the close ends it.
func deviceWork(view string, work []byte) error {
	fd, err := open(view, unix.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = whole(work, func(p []byte, off int64) (int, error) { return unix.Pread(fd, p, off) })
	if err == nil {
		transform(work)
		err = whole(work, func(p []byte, off int64) (int, error) { return unix.Pwrite(fd, p, off) })
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	return err
}

// whole reads or writes all of p.
func whole(p []byte, do func(p []byte, off int64) (int, error)) error {
	for off := 0; off < len(p); {
		n, err := do(p[off:], int64(off))
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return fmt.Errorf("ended after %d of %d bytes", off, len(p))
		default:
			off += n
		}
	}
	return nil
}
