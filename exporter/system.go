package exporter

// newSystem makes the exporter `system`: the CPU's copy of a page is in the page cache
// of its file, the devices' in the memfd, and they are kept coherent by shooting the
// CPU's down.
func newSystem(r *Registry) *builtin { return newBuiltin(r, "system", MapCached) }
