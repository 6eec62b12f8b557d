package attach

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// Errors of this package. Each wraps the errno that a system call would give.
var (
	// ErrBusy: attachments hold the device as it is (EBUSY).
	ErrBusy = fmt.Errorf("attach: device has attachments: %w", syscall.EBUSY)
	// ErrGone: the device was closed (ENODEV).
	ErrGone = fmt.Errorf("attach: no such device any more: %w", syscall.ENODEV)
	// ErrInvalid: no buffer, or no device (EINVAL).
	ErrInvalid = fmt.Errorf("attach: invalid argument: %w", syscall.EINVAL)
	// ErrNumber: a limit that is no number (EINVAL).
	ErrNumber = fmt.Errorf("attach: not a number: %w", syscall.EINVAL)
	// ErrRange: a limit that no device has (ERANGE).
	ErrRange = fmt.Errorf("attach: out of range: %w", syscall.ERANGE)
	// ErrLimit: there is no limit of that name (ENOENT).
	ErrLimit = fmt.Errorf("attach: no such limit: %w", syscall.ENOENT)
)

// Device is somebody who does DMA (struct device), with its limits.
type Device struct {
	name string

	mu          sync.Mutex
	limits      exporter.Limits
	attachments []*Attachment
	closed      bool
}

// NewDevice makes a device that reaches 64 bits of address and has no other limits.
func NewDevice(name string) *Device {
	return &Device{name: name, limits: exporter.Limits{DMAMask: 64}}
}

// Name is the device's name.
func (d *Device) Name() string { return d.name }

// Limits is what the device reaches.
func (d *Device) Limits() exporter.Limits {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.limits
}

// limitNames are the limits in the order in which they are listed.
var limitNames = []string{"dma_mask", "max_segments", "max_segment_size", "segment_boundary"}

// LimitNames is the names that Limit and SetLimit know.
func LimitNames() []string { return slices.Clone(limitNames) }

// inRange reports whether a device can have the limit at v: see SetLimit.
func inRange(name string, v uint64) bool {
	switch name {
	case "dma_mask":
		return v >= 1 && v <= 64
	case "max_segments":
		return v < 1<<32
	case "max_segment_size":
		return v == 0 || v >= exporter.PageSize && v < 1<<63
	}
	mask := v&(v+1) == 0 && v >= exporter.PageSize-1
	return v == 0 || mask || bits.OnesCount64(v) == 1 && v >= exporter.PageSize
}

// limit is where a limit is kept: get and set.
func limit(l *exporter.Limits, name string) (get func() uint64, set func(uint64)) {
	var p *uint64
	switch name {
	case "dma_mask":
		return func() uint64 { return uint64(l.DMAMask) }, func(v uint64) { l.DMAMask = uint(v) }
	case "max_segments":
		p = &l.MaxSegments
	case "max_segment_size":
		p = &l.MaxSegmentSize
	case "segment_boundary":
		p = &l.SegmentBoundary
	default:
		return nil, nil
	}
	return func() uint64 { return *p }, func(v uint64) { *p = v }
}

// Limit is a limit by the name of its file, as it was set. ENOENT: no such limit.
func (d *Device) Limit(name string) (uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	get, _ := limit(&d.limits, name)
	if get == nil {
		return 0, fmt.Errorf("%q: %w", name, ErrLimit)
	}
	return get(), nil
}

// SetLimit sets a limit from text, decimal or hexadecimal with 0x, with white space
// around it (kstrtou64 without octal):
//
//	dma_mask           1 to 64 bits
//	max_segments       0 (no limit) to 2^32-1
//	max_segment_size   0 (no limit), or a page to 2^63-1 bytes
//	segment_boundary   0 (none), or a power of two of at least a page, or the mask below one
//
// The first that applies: ENOENT no such limit; EINVAL no number; ERANGE out of range;
// EBUSY the device has attachments. Nothing changes on error.
func (d *Device) SetLimit(name, value string) error {
	if !slices.Contains(limitNames, name) {
		return fmt.Errorf("%q: %w", name, ErrLimit)
	}
	v, err := parse(value)
	if err == nil && !inRange(name, v) {
		err = ErrRange
	}
	if err != nil {
		return fmt.Errorf("%s=%q: %w", name, value, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.attachments) > 0 {
		return fmt.Errorf("%s of %s: %w", name, d.name, ErrBusy)
	}
	_, set := limit(&d.limits, name)
	set(v)
	return nil
}

func parse(s string) (uint64, error) {
	s = strings.TrimSpace(s)
	digits, negative := strings.CutPrefix(s, "-")
	if !negative {
		digits = strings.TrimPrefix(s, "+")
	}
	base := 10
	if hex, ok := strings.CutPrefix(strings.ToLower(digits), "0x"); ok {
		digits, base = hex, 16
	}
	v, err := strconv.ParseUint(digits, base, 64)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && negative && v != 0:
		return 0, ErrRange
	case err != nil:
		return 0, ErrNumber
	}
	return v, nil
}

// Attachments is who is attached through the device, oldest first.
func (d *Device) Attachments() []*Attachment {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.attachments)
}

// Attached is the number of attachments.
func (d *Device) Attached() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.attachments)
}

// Close unregisters the device (rmdir): nobody can attach it any more. EBUSY with attachments.
func (d *Device) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := len(d.attachments); n > 0 {
		return fmt.Errorf("%s has %d: %w", d.name, n, ErrBusy)
	}
	d.closed = true
	return nil
}

// add puts an attachment on the list; from then on the limits stand.
func (d *Device) add(a *Attachment) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("%s: %w", d.name, ErrGone)
	}
	d.attachments = append(d.attachments, a)
	return nil
}

func (d *Device) remove(a *Attachment) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.attachments, a); i >= 0 {
		d.attachments = slices.Delete(d.attachments, i, i+1)
	}
}
