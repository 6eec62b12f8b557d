package fs

import (
	"bytes"
	"runtime"
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// metrics is the file metrics: what the tables and counters say when it is read.
// Nothing is counted for its sake.
type metrics struct {
	fsys     *fileSystem
	registry *prometheus.Registry

	mu sync.Mutex
	// retired sums what buffers counted that are released, by exporter, so that
	// the totals never fall; retiring are those that are in it and in the registry.
	retired  map[string]*totals
	retiring map[uint64]bool
}

var _ prometheus.Collector = (*metrics)(nil)

// totals are one exporter's counters.
type totals struct{ shootdowns, zapped, laundered, faults, conflicts, reads, writes uint64 }

func (t *totals) add(s exporter.Stats) {
	t.shootdowns += s.Shootdowns
	t.zapped += s.PagesZapped
	t.laundered += s.BytesLaundered
	t.faults += s.Faults
	t.conflicts += s.Conflicts
	t.reads += s.Reads
	t.writes += s.Writes
}

func newMetrics(fsys *fileSystem) *metrics {
	m := &metrics{
		fsys:     fsys,
		registry: prometheus.NewRegistry(),
		retired:  map[string]*totals{},
		retiring: map[uint64]bool{},
	}
	m.registry.MustRegister(m, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// put gives back a buffer's last reference; what it counted stays in the totals.
func (m *metrics) put(b *exporter.Buffer) {
	id, exp, s := b.ID(), b.ExpName(), b.Stats()
	m.mu.Lock()
	t := m.retired[exp]
	if t == nil {
		t = &totals{}
		m.retired[exp] = t
	}
	t.add(s)
	m.retiring[id] = true
	m.mu.Unlock()
	b.Put()
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.retiring, id)
}

// byExporter sums up live and released buffers.
func (m *metrics) byExporter() (sums map[string]*totals, live []*exporter.Buffer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	sums = map[string]*totals{}
	for _, name := range m.fsys.registry.Names() {
		sums[name] = &totals{}
	}
	for name, t := range m.retired {
		s := *t
		sums[name] = &s
	}
	for _, b := range m.fsys.registry.Buffers() {
		if m.retiring[b.ID()] {
			continue
		}
		live = append(live, b)
		t := sums[b.ExpName()]
		if t == nil {
			t = &totals{}
			sums[b.ExpName()] = t
		}
		t.add(b.Stats())
	}
	return sums, live
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("dmabuffs_"+name, help, labels, nil)
}

var (
	descBuild    = desc("build_info", "What is running; always 1.", "version", "goversion")
	descStarted  = desc("start_time_seconds", "When the file system was mounted, seconds since the epoch.")
	descRequests = desc("requests_total", "FUSE requests taken from the kernel, by opcode.", "op")
	descErrors   = desc("request_errors_total", "FUSE requests of the hot kinds that were answered with an errno.")

	descBuffers   = desc("buffers", "Live buffers, by exporter.", "exporter")
	descBytes     = desc("buffer_bytes", "Sizes of live buffers, by exporter.", "exporter")
	descUsed      = desc("quota_used_bytes", "Bytes charged against the mount option size=.")
	descSize      = desc("quota_bytes", "The mount option size=.")
	descNrBuffers = desc("quota_buffers", "The mount option nr_buffers=.")
	descNrFences  = desc("quota_fences", "The mount option nr_fences=.")
	descNames     = desc("buffer_names", "Names in buffers/.")
	descHandles   = desc("handles", "Open files and directories.")
	descNodes     = desc("nodes", "Inodes that the kernel may name.")
	descStreams   = desc("event_streams", "Open files of events.")

	descDevices   = desc("devices", "Directories in devices/.")
	descAttached  = desc("attachments", "Attachments, by who attached: cpu (an open file of a buffer) or device (an open DMA view).", "kind")
	descMapped    = desc("dma_mappings", "Live DMA mappings.")
	descTimelines = desc("timelines", "Directories in timelines/.")
	descPending   = desc("fences_pending", "Fences of timelines that have not signaled.")

	descShootdowns = desc("shootdowns_total", "Shootdowns of CPU mappings.", "exporter")
	descZapped     = desc("zapped_pages_total", "Pages shot down, in pages of 4096 bytes.", "exporter")
	descLaundered  = desc("laundered_bytes_total", "Bytes that CPUs had written into mappings, written back.", "exporter")
	descFaults     = desc("faults_total", "Page faults (READs of the page cache) answered.", "exporter")
	descConflicts  = desc("conflicts_total", "Pieces of device work begun inside somebody's CPU access bracket.", "exporter")
	descReads      = desc("reads_total", "read(2)s of buffers, as far as they reach the daemon.", "exporter")
	descWrites     = desc("writes_total", "write(2)s of buffers, as far as they reach the daemon.", "exporter")
)

// Describe implements prometheus.Collector.
func (m *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descBuild, descStarted, descRequests, descErrors, descBuffers, descBytes, descUsed, descSize, descNrBuffers,
		descNrFences, descNames, descHandles, descNodes, descStreams, descDevices, descAttached, descMapped, descTimelines,
		descPending, descShootdowns, descZapped, descLaundered, descFaults, descConflicts, descReads, descWrites,
	} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(out chan<- prometheus.Metric) {
	fsys := m.fsys
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(descBuild, 1, BuildVersion(), runtime.Version())
	gauge(descStarted, float64(fsys.started.UnixNano())/1e9)
	if c := fsys.conn; c != nil {
		for op := range c.requests {
			if n := c.requests[op].Load(); n > 0 {
				counter(descRequests, n, opcodeName(op))
			}
		}
		counter(descErrors, c.errors.Load())
	}

	sums, live := m.byExporter()
	count, bytes := map[string]float64{}, map[string]float64{}
	var cpu, device, mapped float64
	for _, b := range live {
		count[b.ExpName()]++
		bytes[b.ExpName()] += float64(b.Size())
		mapped += float64(b.Mapped())
		for _, a := range attachmentsOf(b) {
			if a.Dev() == nil {
				cpu++
			} else {
				device++
			}
		}
	}
	for name, t := range sums {
		gauge(descBuffers, count[name], name)
		gauge(descBytes, bytes[name], name)
		counter(descShootdowns, t.shootdowns, name)
		counter(descZapped, t.zapped, name)
		counter(descLaundered, t.laundered, name)
		counter(descFaults, t.faults, name)
		counter(descConflicts, t.conflicts, name)
		counter(descReads, t.reads, name)
		counter(descWrites, t.writes, name)
	}
	gauge(descUsed, float64(fsys.quota.Used()))
	gauge(descSize, float64(fsys.opts.Size))
	gauge(descNrBuffers, float64(fsys.opts.NrBuffers))
	gauge(descNrFences, float64(fsys.opts.NrFences))
	gauge(descNames, float64(fsys.buffers.len()))
	gauge(descHandles, float64(fsys.handles.len()))
	gauge(descNodes, float64(fsys.nodes.len()))
	gauge(descStreams, float64(fsys.events.listening.Load()))

	gauge(descDevices, float64(len(fsys.devices.all())))
	gauge(descAttached, cpu, "cpu")
	gauge(descAttached, device, "device")
	gauge(descMapped, mapped)
	timelines, pending := fsys.timelines.count()
	gauge(descTimelines, float64(timelines))
	gauge(descPending, float64(pending))
}

// text is the file: Prometheus text format 0.0.4.
func (m *metrics) text() (string, error) {
	families, err := m.registry.Gather()
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	e := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := e.Encode(f); err != nil {
			return "", err
		}
	}
	return b.String(), nil
}

// opcodeNames of enum fuse_opcode, include/uapi/linux/fuse.h.
var opcodeNames = [...]string{
	1: "LOOKUP", 2: "FORGET", 3: "GETATTR", 4: "SETATTR", 5: "READLINK", 6: "SYMLINK", 8: "MKNOD", 9: "MKDIR",
	10: "UNLINK", 11: "RMDIR", 12: "RENAME", 13: "LINK", 14: "OPEN", 15: "READ", 16: "WRITE", 17: "STATFS",
	18: "RELEASE", 20: "FSYNC", 21: "SETXATTR", 22: "GETXATTR", 23: "LISTXATTR", 24: "REMOVEXATTR", 25: "FLUSH",
	26: "INIT", 27: "OPENDIR", 28: "READDIR", 29: "RELEASEDIR", 30: "FSYNCDIR", 31: "GETLK", 32: "SETLK",
	33: "SETLKW", 34: "ACCESS", 35: "CREATE", 36: "INTERRUPT", 37: "BMAP", 38: "DESTROY", 39: "IOCTL", 40: "POLL",
	41: "NOTIFY_REPLY", 42: "BATCH_FORGET", 43: "FALLOCATE", 44: "READDIRPLUS", 45: "RENAME2", 46: "LSEEK",
	47: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", 51: "TMPFILE", 52: "STATX",
}

func opcodeName(op int) string {
	if op < len(opcodeNames) && opcodeNames[op] != "" {
		return opcodeNames[op]
	}
	return "opcode_" + strconv.Itoa(op)
}
