package main

import (
	"errors"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// bufferInfo is a row of ls.
type bufferInfo struct {
	Name        string `json:"name"`
	Size        int64  `json:"size"` // bytes
	Exporter    string `json:"exporter"`
	Domain      string `json:"domain"` // none, cpu or "device NAME"
	Refcount    int64  `json:"refcount"`
	Attachments int    `json:"attachments"`
	Pending     int    `json:"fences_pending"`
}

// readBuffer reads what ls shows of a buffer from its directory in state/.
func readBuffer(mnt, name string) (b bufferInfo, err error) {
	dir := filepath.Join(mnt, "state", name)
	b.Name = name
	if b.Size, err = readInt(filepath.Join(dir, "size")); err != nil {
		return b, err
	}
	if b.Refcount, err = readInt(filepath.Join(dir, "refcount")); err != nil {
		return b, err
	}
	text, err := readText(filepath.Join(dir, "exporter_name"))
	if err != nil {
		return b, err
	}
	b.Exporter = unescapeOctal(strings.TrimRight(text, "\n"))
	domain, err := readDomain(dir)
	if err != nil {
		return b, err
	}
	b.Domain = domain.Owner
	attachments, err := readRows(filepath.Join(dir, "attachments"))
	if err != nil {
		return b, err
	}
	b.Attachments = len(attachments)
	for _, usage := range fenceUsages {
		fences, err := readFences(mnt, name, usage)
		if err != nil {
			return b, err
		}
		b.Pending += countPending(fences)
	}
	return b, nil
}

// domainInfo is state/<buffer>/domain: the owner, then pages in each domain, and remarks.
type domainInfo struct {
	Owner string           `json:"owner"`
	Pages map[string]int64 `json:"pages"` // cpu, device
	Notes []string         `json:"notes,omitempty"`
}

func readDomain(dir string) (domainInfo, error) {
	text, err := readText(filepath.Join(dir, "domain"))
	if err != nil {
		return domainInfo{}, err
	}
	return parseDomain(text), nil
}

func parseDomain(text string) domainInfo {
	d := domainInfo{Pages: map[string]int64{}}
	for i, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if i == 0 {
			d.Owner = unescapeOctal(line)
			continue
		}
		key, value, _ := cutLast(line)
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && key != "" {
			d.Pages[strings.TrimSuffix(key, "_pages")] = n
		} else {
			d.Notes = append(d.Notes, line)
		}
	}
	return d
}

// cutLast splits a row at its last blank.
func cutLast(row string) (before, last string, ok bool) {
	i := strings.LastIndexAny(row, " \t")
	if i < 0 {
		return "", row, false
	}
	return strings.TrimRight(row[:i], " \t"), row[i+1:], true
}

// readStats reads state/<buffer>/stats: rows of a name (several words where a
// counter is kept by process) and a number.
func readStats(mnt, name string) (map[string]int64, error) {
	text, err := readText(filepath.Join(mnt, "state", name, "stats"))
	if err != nil {
		return nil, err
	}
	stats := map[string]int64{}
	for line := range strings.Lines(text) {
		key, value, _ := cutLast(strings.TrimRight(line, "\n"))
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && key != "" {
			stats[key] = n
		}
	}
	return stats, nil
}

// fenceUsages are the two kinds of fences that have a file, by that file's first word.
var fenceUsages = []string{"write", "read"}

// fenceInfo is one row of write_fences or read_fences.
type fenceInfo struct {
	Buffer   string `json:"buffer"`
	Usage    string `json:"usage"` // write or read
	Timeline string `json:"timeline"`
	Seqno    uint64 `json:"seqno"`
	Status   string `json:"status"` // pending, signaled or "error -ERRNO"
	Driver   string `json:"driver"`
}

func readFences(mnt, name, usage string) ([]fenceInfo, error) {
	rows, err := readRows(filepath.Join(mnt, "state", name, usage+"_fences"))
	if errors.Is(err, syscall.EACCES) {
		return nil, nil // another user's buffer: its other files are as closed
	}
	if err != nil {
		return nil, err
	}
	return parseFences(rows, name, usage), nil
}

// parseFences reads rows of: timeline, seqno, status (two words for an error), driver.
func parseFences(rows [][]string, buffer, usage string) []fenceInfo {
	var out []fenceInfo
	for _, row := range rows {
		if len(row) < 3 {
			continue
		}
		seqno, err := strconv.ParseUint(row[1], 10, 64)
		if err != nil {
			continue
		}
		f := fenceInfo{Buffer: buffer, Usage: usage, Timeline: unescapeOctal(row[0]), Seqno: seqno}
		rest := row[2:]
		if rest[0] == "error" && len(rest) > 1 {
			f.Status, rest = rest[0]+" "+rest[1], rest[2:]
		} else {
			f.Status, rest = rest[0], rest[1:]
		}
		f.Driver = unescapeOctal(strings.Join(rest, " "))
		out = append(out, f)
	}
	return out
}

func countPending(fences []fenceInfo) (n int) {
	for _, f := range fences {
		if f.Status == "pending" {
			n++
		}
	}
	return n
}
