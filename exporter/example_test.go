package exporter_test

import (
	"context"
	"fmt"

	"github.com/dmabuffs/dmabuffs/exporter"
)

// stripes is a third party's exporter, written outside of this module as it could be:
// its buffers have no memory, their pages are generated when somebody looks.
type stripes struct{ owner *exporter.Owner }

func (s stripes) Name() string           { return "stripes" }
func (s stripes) Owner() *exporter.Owner { return s.owner }

func (s stripes) Create(size int64) (*exporter.Buffer, error) {
	info := exporter.DefineInfo(s.owner)
	info.Ops, info.Size, info.Priv = &stripesOps, size, s
	return exporter.Export(info)
}

// page is page i: the letter of its number, all over.
func page(_ *exporter.Buffer, i int64) []byte {
	p := make([]byte, exporter.PageSize)
	for k := range p {
		p[k] = 'a' + byte(i%26)
	}
	return p
}

var stripesOps = exporter.Ops{
	MapDMABuf: func(_ context.Context, b *exporter.Buffer, _ exporter.Importer, dir exporter.Direction) (*exporter.SGTable, error) {
		if dir != exporter.ToDevice {
			return nil, exporter.ErrInvalid // nobody can store into it
		}
		return &exporter.SGTable{Dir: dir, Segments: []exporter.Segment{{Addr: 1 << 32, Len: b.Size()}}}, nil
	},
	UnmapDMABuf: func(*exporter.Buffer, exporter.Importer, *exporter.SGTable, exporter.Direction) {},
	Release:     func(b *exporter.Buffer) { fmt.Println("released", b.ExpName()) },
	KmapAtomic:  page,
	Kmap:        page,
	Mmap: func(_ *exporter.Buffer, v *exporter.VMA) error {
		if v.Write {
			return exporter.ErrInvalid
		}
		v.Kind = exporter.MapCached
		return nil
	},
}

func ExampleRegistry_Register() {
	registry := exporter.NewRegistry(exporter.Config{})
	if err := registry.Register(stripes{exporter.NewOwner("stripes")}); err != nil {
		fmt.Println(err)
		return
	}
	e, err := registry.Lookup("stripes")
	if err != nil {
		fmt.Println(err)
		return
	}
	b, err := e.Create(3 * exporter.PageSize)
	if err != nil {
		fmt.Println(err)
		return
	}
	p := make([]byte, 4)
	n, err := b.Fault(p, 2*exporter.PageSize-2, 0)
	fmt.Printf("%s %d %v\n", p[:n], n, err)
	fmt.Println(registry.Unregister("stripes"))
	b.Put()
	fmt.Println(registry.Unregister("stripes"))
	// Output:
	// bbcc 4 <nil>
	// stripes has 1 live buffers: exporter: in use: device or resource busy
	// released stripes
	// <nil>
}
