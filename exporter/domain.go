package exporter

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// domain is which pages are with the CPU and which with a device, and what happened to them.
type domain struct {
	mu       sync.Mutex
	cpu      bitmap         // pages that the CPU may have
	touched  bool           // somebody accessed the buffer
	working  []Importer     // devices at work, the newest last
	brackets map[string]int // open CPU brackets by caller
	token    chan struct{}  // made by the first transition
	stats    Stats          // its maps are made when needed
}

// Stats counts what happened to a buffer since it was exported.
type Stats struct {
	Shootdowns     uint64 // transitions that shot pages down
	PagesZapped    uint64 // pages that they took from the CPU
	BytesLaundered uint64 // bytes of dirty pages that came back from the CPU
	Faults         uint64 // answered by Fault
	PagesFaulted   uint64 // pages that they brought to the CPU
	Conflicts      uint64 // device work begun inside a CPU bracket, counted per bracket's holder
	Reads, Writes  uint64 // read(2), write(2)
	// FaultsBy is Faults by pid (0: nobody's, such as readahead), ConflictsBy is
	// Conflicts by the label of the bracket's holder (see WithCaller). Beyond
	// maxWho of them the others share the last key: ^uint32(0), and "others".
	FaultsBy    map[uint32]uint64
	ConflictsBy map[string]uint64
}

// maxWho bounds the maps of Stats.
const maxWho = 256

// bump counts who, in a map that does not grow without end.
func bump[K comparable](m *map[K]uint64, who, others K) {
	if *m == nil {
		*m = map[K]uint64{}
	}
	if _, ok := (*m)[who]; !ok && len(*m) >= maxWho {
		who = others
	}
	(*m)[who]++
}

// Stats is a copy of the counters.
func (b *Buffer) Stats() Stats {
	d := &b.dom
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stats
	s.FaultsBy = maps.Clone(s.FaultsBy)
	s.ConflictsBy = maps.Clone(s.ConflictsBy)
	return s
}

// SetMapping says who shoots the buffer's CPU pages down; nil: there is no CPU view.
func (b *Buffer) SetMapping(m Mapping) {
	if m == nil {
		b.mapping.Store(nil)
		return
	}
	b.mapping.Store(&m)
}

// Domain is the text of state/<buffer>/domain:
//
//	cpu | device <name> | none     whose the buffer is: a device's while it works on
//	                               it (of several the one that began last), nobody's
//	                               before the first access; blanks, newlines and
//	                               backslashes in the name are \ooo, octal
//	cpu_pages <n>                  pages that processes may have mapped or cached
//	device_pages <n>               pages that the device has, while it works
//
// What the CPU maps by passthrough is not seen: there all pages are where the buffer
// is. A third line says so when passthrough was not to be had: `fallback page cache`.
func (b *Buffer) Domain() string {
	n := pages(b.Size())
	kind := b.mapKind()
	d := &b.dom
	d.mu.Lock()
	defer d.mu.Unlock()
	cpu, device, first := d.cpu.count(), int64(0), "none"
	switch k := len(d.working); {
	case k > 0:
		first = "device " + oneField.Replace(d.working[k-1].Name())
		device = n - min(cpu, n)
	case d.touched:
		first = "cpu"
		if kind == MapPassthrough {
			cpu = n
		}
	}
	text := fmt.Sprintf("%s\ncpu_pages %d\ndevice_pages %d\n", first, cpu, device)
	if b.kind.Load() == fellBack {
		text += "fallback page cache\n"
	}
	return text
}

// oneField keeps a name one field of its row, as in /proc/mounts.
var oneField = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// Values of Buffer.kind besides 1 + MapKind.
const fellBack = 100

// mapKind is how processes map the buffer, as the exporter said at the first time of asking.
func (b *Buffer) mapKind() MapKind {
	switch k := b.kind.Load(); k {
	case 0:
	case fellBack:
		return MapCached
	default:
		return MapKind(k - 1)
	}
	v := VMA{Shared: true}
	if b.ops.Mmap(b, &v) != nil {
		return MapCached
	}
	b.kind.CompareAndSwap(0, int32(1+v.Kind))
	return v.Kind
}

// NoPassthrough says that processes map a passthrough buffer through the page cache
// after all. From then on it is kept coherent by shooting down, as any other, and
// Domain says so. Called before the first such mapping; a Fault says it too.
func (b *Buffer) NoPassthrough() {
	if b.mapKind() == MapPassthrough {
		b.kind.Store(fellBack)
	}
}

// PassthroughRefused reports whether NoPassthrough was called.
func (b *Buffer) PassthroughRefused() bool { return b.kind.Load() == fellBack }

// touch notes an access by the CPU.
func (d *domain) touch(n *uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.touched = true
	if n != nil {
		*n++
	}
}

// bring gives pages to the CPU.
func (d *domain) bring(first, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.touched = true
	d.cpu.set(first, n)
}

func (d *domain) fault(first, n int64, pid uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.touched = true
	d.cpu.set(first, n)
	d.stats.Faults++
	d.stats.PagesFaulted += uint64(n)
	bump(&d.stats.FaultsBy, pid, ^uint32(0))
}

func (d *domain) laundered(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.BytesLaundered += uint64(n)
}

// truncate forgets what lies behind n pages.
func (d *domain) truncate(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cpu.clear(n, 1<<62-n)
}

// take gives the CPU's pages as runs, and clears them.
func (d *domain) take() []Run {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cpu.take()
}

// look gives the CPU's pages as runs, and leaves them.
func (d *domain) look() []Run {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cpu.runs()
}

// enter puts a device to work, and counts whose open brackets it breaks into.
func (d *domain) conflicts() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for who := range d.brackets {
		d.stats.Conflicts++
		bump(&d.stats.ConflictsBy, who, "others")
	}
}

// enter makes the buffer the device's.
func (d *domain) enter(imp Importer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.working = slices.DeleteFunc(d.working, func(i Importer) bool { return i == imp })
	d.working = append(d.working, imp)
	d.touched = true
}

// leave ends a device's work: the buffer is the CPU's, or the next device's.
func (d *domain) leave(imp Importer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.working, imp); i >= 0 {
		d.working = slices.Delete(d.working, i, i+1)
	}
}

// begin and end count the brackets of a caller.
func (d *domain) begin(who string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.brackets == nil {
		d.brackets = map[string]int{}
	}
	d.brackets[who]++
	d.touched = true
}

func (d *domain) end(who string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := d.brackets[who]; n > 1 {
		d.brackets[who] = n - 1
	} else {
		delete(d.brackets, who)
	}
}

// turn waits for the buffer's transitions to be ours; done gives them on. EINTR when ctx ends.
func (b *Buffer) turn(ctx context.Context) (done func(), err error) {
	d := &b.dom
	d.mu.Lock()
	if d.token == nil {
		d.token = make(chan struct{}, 1)
	}
	token := d.token
	d.mu.Unlock()
	if ctx.Err() != nil {
		return nil, interrupted(ctx, "transition")
	}
	select {
	case token <- struct{}{}:
		return func() { <-token }, nil
	case <-ctx.Done():
		return nil, interrupted(ctx, "waiting for another transition")
	}
}

// Shootdown takes every page from the CPU: what it dirtied is laundered, and no
// process has a page mapped or cached any more when it returns
// (unmap_mapping_range over what was touched). EINTR: ctx ended; the pages count as the CPU's again.
// Exporters call it from their own SyncForDevice; never from Fault, Launder, Read or Write.
func (b *Buffer) Shootdown(ctx context.Context) error {
	done, err := b.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	return b.zap(ctx, b.dom.take())
}

// zap shoots down runs whose bits were taken. The caller has the turn.
func (b *Buffer) zap(ctx context.Context, runs []Run) error {
	if len(runs) == 0 {
		return nil
	}
	d := &b.dom
	m := b.mapping.Load()
	if m == nil {
		return nil
	}
	err := (*m).Shoot(ctx, runs, true)
	n := pages(b.Size())
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.cpu.setRuns(runs, n)
		return eintr(ctx, "shootdown", err)
	}
	d.stats.Shootdowns++
	d.stats.PagesZapped += uint64(total(runs))
	return nil
}

// launder has the CPU's dirty pages written back, and leaves the pages with it.
func (b *Buffer) launder(ctx context.Context) error {
	m := b.mapping.Load()
	if m == nil {
		return nil
	}
	if runs := b.dom.look(); len(runs) > 0 {
		return eintr(ctx, "write-back", (*m).Shoot(ctx, runs, false))
	}
	return nil
}
