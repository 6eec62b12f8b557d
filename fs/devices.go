package fs

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/dmabuffs/dmabuffs/attach"
)

// deviceDir is devices/: mkdir registers a device, rmdir unregisters it.
type deviceDir struct {
	fsys *fileSystem

	mu   sync.RWMutex
	m    map[string]*deviceNode
	last uint64
}

// deviceNode is one device: devices/<device>/.
type deviceNode struct {
	fsys *fileSystem
	no   uint64 // never reused
	dev  *attach.Device
	meta *meta
}

func newDeviceDir(fsys *fileSystem) *deviceDir {
	return &deviceDir{fsys: fsys, m: map[string]*deviceNode{}}
}

func (t *deviceDir) find(name string) *deviceNode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.m[name]
}

// all returns the devices, by name.
func (t *deviceDir) all() []*deviceNode {
	t.mu.RLock()
	defer t.mu.RUnlock()
	out := make([]*deviceNode, 0, len(t.m))
	for _, d := range t.m {
		out = append(out, d)
	}
	slices.SortFunc(out, func(a, b *deviceNode) int { return strings.Compare(a.dev.Name(), b.dev.Name()) })
	return out
}

// maxDevices bounds what mkdir can make.
const maxDevices = 4096

var devicesOps = &dirOps{
	lookup: func(d *dir, _ caller, name string) (node, error) {
		dev := d.fsys.devices.find(name)
		if dev == nil {
			return nil, syscall.ENOENT
		}
		return dev.dir(), nil
	},
	list: func(d *dir) []fuse.DirEntry {
		var out []fuse.DirEntry
		for _, dev := range d.fsys.devices.all() {
			out = append(out, fuse.DirEntry{Name: dev.dev.Name(), Mode: syscall.S_IFDIR})
		}
		return out
	},
	mkdir: func(d *dir, c caller, name string, mode uint32) (node, error) {
		t := d.fsys.devices
		t.mu.Lock()
		defer t.mu.Unlock()
		switch {
		case t.m[name] != nil:
			return nil, syscall.EEXIST
		case len(t.m) >= maxDevices:
			return nil, syscall.ENOSPC
		}
		t.last++
		dev := &deviceNode{fsys: d.fsys, no: t.last, dev: attach.NewDevice(name), meta: newMeta(mode, c.uid, c.gid)}
		t.m[name] = dev
		d.fsys.events.add("device", "device", name, "pid", c.pid)
		return dev.dir(), nil
	},
	rmdir: func(d *dir, c caller, name string) error {
		t := d.fsys.devices
		t.mu.Lock()
		defer t.mu.Unlock()
		dev := t.m[name]
		if dev == nil {
			return syscall.ENOENT
		}
		if err := dev.dev.Close(); err != nil {
			return err
		}
		delete(t.m, name)
		d.fsys.events.add("device_gone", "device", name, "pid", c.pid)
		return nil
	},
}

// dir is the node of devices/<device>/.
func (d *deviceNode) dir() node {
	return d.fsys.nodes.secondary(nodeKey{"device", d.no, 0}, func(id uint64) node {
		return &dir{ident: id, fsys: d.fsys, ops: deviceOps, obj: d, meta: d.meta}
	})
}

// The files of a device's directory, in the order of their numbers.
var deviceFiles = []string{"dma_mask", "max_segments", "max_segment_size", "segment_boundary", "attachments", "buffers/"}

var deviceOps = staticDir(deviceFiles, func(d *dir, name string) node {
	dev := d.obj.(*deviceNode)
	return d.fsys.nodes.secondary(nodeKey{"device/" + name, dev.no, 0}, func(id uint64) node {
		switch name {
		case "buffers":
			return &dir{ident: id, fsys: d.fsys, ops: deviceBuffersOps, obj: dev, meta: dev.meta}
		case "attachments":
			return &textNode{ident: id, fsys: d.fsys, own: dev.own(0444), show: dev.showAttachments}
		}
		return &textNode{
			ident: id, fsys: d.fsys, own: dev.own(0644),
			show: func() (string, error) {
				v, err := dev.dev.Limit(name)
				return fmt.Sprintf("%d\n", v), err
			},
			store: func(_ caller, text string) error {
				return dev.dev.SetLimit(name, strings.TrimSpace(text))
			},
		}
	})
})

// own makes a file belong to the device's owner; the directory's mode bounds its mode.
func (d *deviceNode) own(mode uint32) func(*fuse.Attr) {
	return func(a *fuse.Attr) {
		d.meta.attr(a)
		a.Mode = a.Mode&syscall.S_IFMT | a.Mode&mode&07777 | 0400&mode
	}
}

// showAttachments is one row an attachment: buffer, direction, pid, command.
func (d *deviceNode) showAttachments() (string, error) {
	var b strings.Builder
	for _, a := range d.dev.Attachments() {
		pid, comm := a.Owner()
		fmt.Fprintf(&b, "%s %s %d %s\n", escape(d.fsys.buffers.nameOf(a.Dmabuf().ID())), a.Direction(), processOf(pid), commOf(pid, comm))
	}
	return b.String(), nil
}

// deviceBuffersOps: devices/<device>/buffers/ shows every buffer, as that device sees it.
var deviceBuffersOps = &dirOps{
	volatile: true,
	lookup: func(d *dir, _ caller, name string) (node, error) {
		n := d.fsys.buffers.find(name)
		if n == nil {
			return nil, syscall.ENOENT
		}
		return d.obj.(*deviceNode).view(n), nil
	},
	list: func(d *dir) []fuse.DirEntry {
		names := d.fsys.buffers.all("")
		out := make([]fuse.DirEntry, 0, len(names))
		for _, name := range names {
			out = append(out, fuse.DirEntry{Name: name, Mode: syscall.S_IFREG})
		}
		return out
	},
}

// view is the node of devices/<device>/buffers/<buffer>.
func (d *deviceNode) view(n *bufferNode) node {
	return d.fsys.nodes.secondary(nodeKey{"dma", d.no, n.id()}, func(id uint64) node {
		return &dmaNode{ident: id, dev: d, buf: n}
	})
}
