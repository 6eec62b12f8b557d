package exporter

// newCoherent makes the exporter `coherent`: processes and devices map the same pages,
// those of the memfd. Nothing is shot down, as there is nothing that could be stale;
// where passthrough is not to be had it is as `system` (Buffer.NoPassthrough).
func newCoherent(r *Registry) *builtin { return newBuiltin(r, "coherent", MapPassthrough) }

// CreateFromMemfd exports memory that somebody has already, as udmabuf does: the
// buffer and the memfds show the same bytes. It is a buffer of exporter `coherent`
// with a fixed size; its bytes do not count against the quota. Where the parts are
// not one whole file, processes map it through the page cache (MapCached), and what
// is stored directly into the memfd shows in their mappings after a shootdown.
//
// Errors as Adopt, and as Export.
func (r *Registry) CreateFromMemfd(parts ...Part) (*Buffer, error) {
	m, err := Adopt(parts...)
	if err != nil {
		return nil, err
	}
	b, err := r.adopt.export(&store{own: m}, m.Size())
	if err != nil {
		m.Close()
	}
	return b, err
}

// borrowed reports whether the memory is somebody else's, who stores into it unseen,
// while processes map the buffer through the page cache.
func (b *Buffer) borrowed() bool {
	if b.mapKind() != MapCached {
		return false
	}
	m := b.memory()
	return m != nil && m.Adopted()
}
