package exporter

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
)

// Exporter is what makes buffers of one kind.
type Exporter interface {
	// Name is unique in a registry, and a file name.
	Name() string
	// Owner is the module whose buffers Create exports; never nil.
	Owner() *Owner
	// Create exports a buffer of so many bytes; 0 is legal. The caller gets its one reference.
	Create(size int64) (*Buffer, error)
}

// Config is what a registry starts with. The zero value is of use.
type Config struct {
	Quota          *Quota       // nil: no limits
	ContiguousSize int64        // bytes of the carve-out of exporter `contiguous`; 0: it has no room
	Log            *slog.Logger // nil: discards
}

// Registry is the exporters of one mount, and the list of its buffers.
type Registry struct {
	cfg   Config
	phys  *physmem
	carve *carveout
	adopt *builtin // whose buffers CreateFromMemfd makes

	mu        sync.Mutex
	exporters map[string]Exporter
	byID      map[uint64]*Buffer
	newest    *Buffer
}

// NewRegistry makes a registry with the exporters system, coherent, noncoherent and contiguous.
func NewRegistry(cfg Config) *Registry {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	var most int64
	if cfg.Quota != nil {
		most, _ = cfg.Quota.Max()
	}
	r := &Registry{
		cfg:       cfg,
		phys:      newPhysmem(most),
		carve:     newCarveout(cfg.ContiguousSize),
		exporters: map[string]Exporter{},
		byID:      map[uint64]*Buffer{},
	}
	r.adopt = newCoherent(r)
	for _, e := range []Exporter{newSystem(r), r.adopt, newNoncoherent(r), newContiguous(r)} {
		if err := r.Register(e); err != nil {
			panic(err) // four names, four new owners
		}
	}
	return r
}

// Register makes an exporter known, and its owner's buffers listed here. EINVAL: no
// name or owner, or the name has a slash. EEXIST: the name is taken. EBUSY: the owner is
// with another registry, or has buffers already.
func (r *Registry) Register(e Exporter) error {
	if e == nil || e.Owner() == nil || !validName(e.Name()) {
		return fmt.Errorf("exporter: register: %w", ErrInvalid)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.exporters[e.Name()]; ok {
		return fmt.Errorf("%s: %w", e.Name(), ErrExists)
	}
	if err := e.Owner().load(r); err != nil {
		return err
	}
	r.exporters[e.Name()] = e
	return nil
}

func validName(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 255 {
		return false
	}
	return !slices.ContainsFunc([]byte(s), func(c byte) bool { return c == '/' || c == 0 })
}

// Unregister forgets an exporter, whose owner then is unloaded: Export for it gives
// ENOENT until it is registered again. ENOENT: unknown. EBUSY: buffers of it live.
func (r *Registry) Unregister(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.exporters[name]
	if !ok {
		return fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	if err := e.Owner().unload(); err != nil {
		return err
	}
	delete(r.exporters, name)
	return nil
}

// Lookup finds an exporter by name (ENOENT).
func (r *Registry) Lookup(name string) (Exporter, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e, ok := r.exporters[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, ErrUnknown)
	}
	return e, nil
}

// Names is the exporters' names, sorted.
func (r *Registry) Names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.exporters))
}

// Buffers is every live buffer, newest first. No references are taken: see Buffer.TryGet.
func (r *Registry) Buffers() []*Buffer {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*Buffer, 0, len(r.byID))
	for b := r.newest; b != nil; b = b.next {
		out = append(out, b)
	}
	return out
}

// Buffer finds a live buffer by its number, nil when there is none. No reference is taken.
func (r *Registry) Buffer(id uint64) *Buffer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byID[id]
}

// Len is the number of live buffers.
func (r *Registry) Len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.byID)
}

// Carveout is the size of the carve-out, what of it is free, and the longest free
// run, in bytes.
func (r *Registry) Carveout() (size, free, longest int64) {
	f, l := r.carve.free()
	return r.carve.size * PageSize, f * PageSize, l * PageSize
}

// link puts a new buffer at the head of the list, as the kernel does.
func (r *Registry) link(b *Buffer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.next = r.newest; b.next != nil {
		b.next.prev = b
	}
	r.newest = b
	r.byID[b.id] = b
}

func (r *Registry) unlink(b *Buffer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.byID, b.id)
	if b.next != nil {
		b.next.prev = b.prev
	}
	if b.prev != nil {
		b.prev.next = b.next
	} else {
		r.newest = b.next
	}
	b.prev, b.next = nil, nil
}
