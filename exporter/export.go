package exporter

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/dmabuffs/dmabuffs/poll"
)

// Owner is the module that an exporter belongs to (struct module): while buffers of
// it live it cannot be unloaded.
type Owner struct {
	name string

	mu         sync.Mutex
	live       int64
	registered int       // exporters of it that are registered
	going      bool      // unloading, or unloaded
	registry   *Registry // where its buffers are listed; nil: nowhere
}

// NewOwner makes an owner. It is loaded: Export takes it.
func NewOwner(name string) *Owner { return &Owner{name: name} }

// Name is the module's name.
func (o *Owner) Name() string { return o.name }

// Live is the number of buffers that keep the owner loaded.
func (o *Owner) Live() int64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.live
}

// get counts one more buffer (try_module_get): ENOENT while unloading.
func (o *Owner) get() (*Registry, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.going {
		return nil, fmt.Errorf("%s: %w", o.name, ErrOwnerGone)
	}
	o.live++
	return o.registry, nil
}

// put is module_put.
func (o *Owner) put() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.live--; o.live < 0 {
		panic("exporter: owner put more often than got")
	}
}

// load ties the owner to a registry. EBUSY when it is another's.
func (o *Owner) load(r *Registry) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.registry != nil && o.registry != r || o.registry == nil && o.live > 0 {
		return fmt.Errorf("%s: %w", o.name, ErrBusy)
	}
	o.registry, o.going = r, false
	o.registered++
	return nil
}

// unload is delete_module: EBUSY with live buffers.
func (o *Owner) unload() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.live > 0 {
		return fmt.Errorf("%s has %d live buffers: %w", o.name, o.live, ErrBusy)
	}
	if o.registered--; o.registered == 0 {
		o.registry, o.going = nil, true
	}
	return nil
}

// Info is what Export needs to know (struct dma_buf_export_info).
type Info struct {
	ExpName string            // name of the exporter, for people
	Owner   *Owner            // kept loaded while the buffer lives; nil: nobody
	Ops     *Ops              // operations; kept, not copied
	Size    int64             // bytes; not checked against anything, 0 is legal
	Flags   int               // mode of the file: of it O_ACCMODE and O_NONBLOCK are kept
	Resv    *poll.Reservation // nil: the buffer brings its own
	Priv    any               // the exporter's own; must not be nil

	uncharged bool // the bytes are the caller's: not against the quota
}

// DefineInfo is DEFINE_DMA_BUF_EXPORT_INFO: the owner and its name are filled in,
// all else is zero. Flags 0 is O_RDONLY.
func DefineInfo(o *Owner) Info {
	info := Info{Owner: o}
	if o != nil {
		info.ExpName = o.name
	}
	return info
}

// lastID is the number of the newest buffer. 1 is the root directory's inode.
var lastID atomic.Uint64

func init() { lastID.Store(1) }

// Export makes a buffer with one reference (dma_buf_export). It checks as the
// header's time did:
//
//   - EINVAL without Priv or Ops; without MapDMABuf, UnmapDMABuf, Release, KmapAtomic,
//     Kmap or Mmap; with one of Pin and Unpin; with a negative size.
//   - ENOENT when the owner is unloading.
//   - ENOSPC over the quota of the registry that the owner is in.
//
// Nothing is left behind by an error.
func Export(info Info) (*Buffer, error) {
	if err := info.check(); err != nil {
		return nil, err
	}
	var reg *Registry
	if info.Owner != nil {
		var err error
		if reg, err = info.Owner.get(); err != nil {
			return nil, err
		}
	}
	b := &Buffer{
		ops:      info.Ops,
		expName:  info.ExpName,
		owner:    info.Owner,
		registry: reg,
		flags:    info.Flags & (syscall.O_ACCMODE | syscall.O_NONBLOCK),
		priv:     info.Priv,
		resv:     info.Resv,
	}
	if b.resv == nil {
		b.resv = &b.ownResv
	}
	b.size.Store(info.Size)
	b.refs.Store(1)
	if err := b.charge(info); err != nil {
		if info.Owner != nil {
			info.Owner.put()
		}
		return nil, err
	}
	b.id = lastID.Add(1)
	if reg != nil {
		reg.link(b)
	}
	return b, nil
}

func (i *Info) check() error {
	missing := func(what string) error { return fmt.Errorf("export %q without %s: %w", i.ExpName, what, ErrInvalid) }
	switch o := i.Ops; {
	case i.Priv == nil:
		return missing("priv")
	case o == nil:
		return missing("ops")
	case o.MapDMABuf == nil:
		return missing("map_dma_buf")
	case o.UnmapDMABuf == nil:
		return missing("unmap_dma_buf")
	case o.Release == nil:
		return missing("release")
	case o.KmapAtomic == nil:
		return missing("kmap_atomic")
	case o.Kmap == nil:
		return missing("kmap")
	case o.Mmap == nil:
		return missing("mmap")
	case (o.Pin == nil) != (o.Unpin == nil):
		return missing("both of pin and unpin")
	case i.Size < 0 || i.Size > MaxSize:
		return fmt.Errorf("export %q of %d bytes: %w", i.ExpName, i.Size, ErrInvalid)
	}
	return nil
}

// charge takes the buffer and its pages from the quota.
func (b *Buffer) charge(info Info) error {
	b.uncharged = info.uncharged
	q := b.quota()
	if q == nil {
		return nil
	}
	if err := q.addBuffer(); err != nil {
		return err
	}
	if b.uncharged {
		return nil
	}
	if err := q.Reserve(pages(info.Size) * PageSize); err != nil {
		q.dropBuffer()
		return err
	}
	return nil
}

func (b *Buffer) quota() *Quota {
	if b.registry == nil {
		return nil
	}
	return b.registry.cfg.Quota
}

// warn is the kernel's WARN: something that a caller did wrong and that can be gone over.
func (b *Buffer) warn(msg string, args ...any) {
	log := slog.Default()
	if b.registry != nil {
		log = b.registry.cfg.Log
	}
	log.Warn(msg, append(args, "buffer", b.id, "exporter", b.expName)...)
}
