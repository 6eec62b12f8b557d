package main

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
)

// bufferDetails is everything that state/<buffer>/ tells.
type bufferDetails struct {
	Path        string           `json:"path"`
	Name        string           `json:"name"`
	Size        int64            `json:"size"` // bytes
	Exporter    string           `json:"exporter"`
	Label       *string          `json:"label"` // DMA_BUF_SET_NAME's; null before the first
	Domain      domainInfo       `json:"domain"`
	Refcount    int64            `json:"refcount"`
	Vmappings   int64            `json:"vmapping_counter"`
	Attachments []attachmentInfo `json:"attachments"`
	Mappings    [][]string       `json:"mappings"` // rows of state/<buffer>/mappings
	SGTable     []segmentInfo    `json:"sg_table"`
	Fences      []fenceInfo      `json:"fences"`
	Stats       map[string]int64 `json:"stats"`

	statsText string
}

// attachmentInfo is a row of state/<buffer>/attachments.
type attachmentInfo struct {
	Kind    string `json:"kind"` // cpu or device
	Device  string `json:"device,omitempty"`
	PID     string `json:"pid"` // "-" or 0 where nobody is known
	Command string `json:"command"`
	Access  string `json:"access"` // r, w, rw, or a DMA direction
}

// segmentInfo is a row of state/<buffer>/sg_table.
type segmentInfo struct {
	Page    string `json:"page"`    // offset in pages
	Address string `json:"address"` // DMA address, hexadecimal
	Length  string `json:"length"`  // bytes
}

func readDetails(mnt, name string) (*bufferDetails, error) {
	b, err := readBuffer(mnt, name)
	if err != nil {
		return nil, err
	}
	d := &bufferDetails{
		Path: filepath.Join(mnt, "buffers", name), Name: name, Size: b.Size, Exporter: b.Exporter, Refcount: b.Refcount,
		Attachments: []attachmentInfo{}, SGTable: []segmentInfo{}, Fences: []fenceInfo{},
	}
	dir := filepath.Join(mnt, "state", name)
	if d.Domain, err = readDomain(dir); err != nil {
		return nil, err
	}
	if d.Vmappings, err = readInt(filepath.Join(dir, "vmapping_counter")); err != nil {
		return nil, err
	}
	label, err := readText(filepath.Join(dir, "name"))
	if err != nil {
		return nil, err
	}
	if label != "" {
		text := unescapeOctal(strings.TrimRight(label, "\n"))
		d.Label = &text
	}
	rows, err := readRows(filepath.Join(dir, "attachments"))
	if err != nil {
		return nil, err
	}
	d.Attachments = parseAttachments(rows)
	if d.Mappings, err = readRows(filepath.Join(dir, "mappings")); err != nil {
		return nil, err
	}
	segments, err := readRows(filepath.Join(dir, "sg_table"))
	if err != nil {
		return nil, err
	}
	for _, s := range segments {
		if len(s) >= 3 {
			d.SGTable = append(d.SGTable, segmentInfo{s[0], s[1], s[2]})
		}
	}
	for _, usage := range fenceUsages {
		fences, err := readFences(mnt, name, usage)
		if err != nil {
			return nil, err
		}
		d.Fences = append(d.Fences, fences...)
	}
	if d.statsText, err = readText(filepath.Join(dir, "stats")); err != nil {
		return nil, err
	}
	d.Stats, err = readStats(mnt, name)
	return d, err
}

// parseAttachments reads rows of "cpu PID COMM ACCESS" and "device NAME PID COMM DIRECTION".
func parseAttachments(rows [][]string) []attachmentInfo {
	out := []attachmentInfo{}
	for _, r := range rows {
		switch {
		case r[0] == "cpu" && len(r) >= 4:
			out = append(out, attachmentInfo{"cpu", "", r[1], unescapeOctal(r[2]), r[3]})
		case r[0] == "device" && len(r) >= 5:
			out = append(out, attachmentInfo{"device", unescapeOctal(r[1]), r[2], unescapeOctal(r[3]), r[4]})
		}
	}
	return out
}

func newInfoCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info PATH...",
		Short: "Show all that is known of a buffer",
		Long: `Show a buffer's size, exporter, domain, references, attachments, mappings, segments,
fences and counters: what MNT/state/BUFFER/ holds. PATH is the buffer under
buffers/, exporters/, devices/DEVICE/buffers/ or state/. The fields are those of the
files there, which docs/interface.md describes.`,
		Args: usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			all := []*bufferDetails{}
			for _, path := range args {
				mnt, name, err := bufferOf(path)
				if err != nil {
					return err
				}
				d, err := readDetails(mnt, name)
				if err != nil {
					return err
				}
				all = append(all, d)
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), all)
			}
			for i, d := range all {
				if i > 0 {
					fmt.Fprintln(cmd.OutOrStdout())
				}
				if err := d.print(cmd.OutOrStdout()); err != nil {
					return err
				}
			}
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (d *bufferDetails) print(w io.Writer) error {
	label := "<none>"
	if d.Label != nil {
		label = printable(*d.Label)
	}
	rows := [][]string{
		{"path", printable(d.Path)},
		{"size", fmt.Sprintf("%d bytes (%s)", d.Size, plural((d.Size+4095)/4096, "page"))},
		{"exporter", d.Exporter},
		{"name", label},
		{"domain", d.Domain.Owner + pagesText(d.Domain)},
		{"references", fmt.Sprint(d.Refcount)},
		{"vmaps", fmt.Sprint(d.Vmappings)},
	}
	for _, note := range d.Domain.Notes {
		rows = append(rows, []string{"note", note})
	}
	for _, a := range d.Attachments {
		what := "cpu"
		if a.Kind == "device" {
			what = "device " + printable(a.Device)
		}
		rows = append(rows, []string{"attached", fmt.Sprintf("%s, %s, by %s (pid %s)", what, a.Access, printable(a.Command), a.PID)})
	}
	for _, m := range d.Mappings {
		rows = append(rows, []string{"mapped", strings.Join(m, " ")})
	}
	for _, s := range d.SGTable {
		rows = append(rows, []string{"segment", fmt.Sprintf("page %s at %s, %s bytes", s.Page, s.Address, s.Length)})
	}
	for _, f := range d.Fences {
		rows = append(rows, []string{f.Usage + " fence", fmt.Sprintf("%s:%d %s (%s)", printable(f.Timeline), f.Seqno, f.Status, f.Driver)})
	}
	for line := range strings.Lines(d.statsText) {
		key, value, ok := cutLast(strings.TrimRight(line, "\n"))
		if ok {
			rows = append(rows, []string{key, value})
		}
	}
	return printTable(w, rows)
}

// pagesText is " (pages: 3 cpu, 5 device)" in the order of their names.
func pagesText(d domainInfo) string {
	if len(d.Pages) == 0 {
		return ""
	}
	var parts []string
	for _, key := range sortedKeys(d.Pages) {
		parts = append(parts, fmt.Sprintf("%s %d", key, d.Pages[key]))
	}
	return " (pages: " + strings.Join(parts, ", ") + ")"
}
