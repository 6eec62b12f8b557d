package attach

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// Attachment is one stake in a buffer (struct dma_buf_attachment): a device's, or that
// of a process that has it open.
type Attachment struct {
	dmabuf *exporter.Buffer
	dev    *Device // nil: a process
	node   uint64

	// Priv is for whoever attached; package attach does not look at it.
	Priv any

	mu       sync.Mutex
	pid      uint32
	comm     string
	detached bool
}

var _ exporter.Importer = (*Attachment)(nil)

// lastNode numbers attachments.
var lastNode atomic.Uint64

// Attach gives a device a stake in a buffer (dma_buf_attach). EINVAL: a nil argument.
// ENODEV: the device was closed. Else what the exporter's attach op says, EBUSY (an
// *exporter.LimitError) where storage is out of the device's reach.
func Attach(b *exporter.Buffer, d *Device) (*Attachment, error) {
	if b == nil || d == nil {
		return nil, ErrInvalid
	}
	a := &Attachment{dmabuf: b, dev: d, node: lastNode.Add(1)}
	if err := d.add(a); err != nil {
		return nil, err
	}
	if err := b.Attach(a); err != nil {
		d.remove(a)
		return nil, err
	}
	return a, nil
}

// AttachCPU gives a process a stake in a buffer, for the list of attachments. It is
// never refused, and cannot map for DMA.
func AttachCPU(b *exporter.Buffer, pid uint32, comm string) *Attachment {
	a := &Attachment{dmabuf: b, node: lastNode.Add(1), pid: pid, comm: comm}
	b.AttachCPU(a)
	return a
}

// Detach gives the stake back (dma_buf_detach). It panics with a live mapping, and the second time.
func (a *Attachment) Detach() {
	if n, dir := a.dmabuf.MappedBy(a); n > 0 {
		panic(fmt.Sprintf("attach: detach of %s with %d live mappings (%v)", a.Name(), n, dir))
	}
	a.mu.Lock()
	twice := a.detached
	a.detached = true
	a.mu.Unlock()
	if twice {
		panic("attach: detached twice")
	}
	a.dmabuf.Detach(a)
	if a.dev != nil {
		a.dev.remove(a)
	}
}

// Dmabuf is the buffer.
func (a *Attachment) Dmabuf() *exporter.Buffer { return a.dmabuf }

// Dev is the device, nil for a process.
func (a *Attachment) Dev() *Device { return a.dev }

// Node is the attachment's number (its place in lists): unique, growing.
func (a *Attachment) Node() uint64 { return a.node }

// Name is the device's name, or cpu:<pid>. It implements exporter.Importer.
func (a *Attachment) Name() string {
	if a.dev != nil {
		return a.dev.name
	}
	pid, _ := a.Owner()
	return fmt.Sprintf("cpu:%d", pid)
}

// Limits is the device's; a process has none. It implements exporter.Importer.
func (a *Attachment) Limits() exporter.Limits {
	if a.dev != nil {
		return a.dev.Limits()
	}
	return exporter.Limits{}
}

// SetOwner says which process opened it: pid and command, both only shown.
func (a *Attachment) SetOwner(pid uint32, comm string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pid, a.comm = pid, comm
}

// Owner is the process that opened it, 0 and "" where nobody said.
func (a *Attachment) Owner() (pid uint32, comm string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pid, a.comm
}
