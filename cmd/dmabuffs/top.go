package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2" // not v1, whose init asks the terminal for its colours in every command
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newTopCmd() *cobra.Command {
	var (
		once, asJSON bool
		interval     time.Duration
	)
	cmd := &cobra.Command{
		Use:   "top [MNT]",
		Short: "Watch the busiest buffers",
		Long: `Show buffers by what happens to them: faults, reads, writes, shootdowns, pages that a
device took from CPUs and bytes laundered for it, a second, from state/*/stats. With
--once, --json or when the output is no terminal: one measurement over --interval.`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if interval < 10*time.Millisecond {
				return usagef("top: --interval %v: too short", interval)
			}
			mnt, err := mountOf(args)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			before, err := takeSample(mnt)
			if err != nil {
				return err
			}
			if once || asJSON || !isTerminal(out) {
				time.Sleep(interval)
				now, err := takeSample(mnt)
				if err != nil {
					return err
				}
				rows := now.since(before)
				if asJSON {
					return printJSON(out, rows)
				}
				return printTable(out, topTable(rows))
			}
			m := &topModel{mnt: mnt, interval: interval, last: before}
			if _, err := tea.NewProgram(m, tea.WithOutput(out)).Run(); err != nil {
				return err
			}
			return m.err
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "print one measurement and end")
	cmd.Flags().DurationVarP(&interval, "interval", "i", time.Second, "measure over `D`")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// sample is every buffer's counters at one moment.
type sample struct {
	at      time.Time
	buffers map[string]bufferInfo
	stats   map[string]map[string]int64
}

func takeSample(mnt string) (*sample, error) {
	names, err := readNames(filepath.Join(mnt, "buffers"))
	if err != nil {
		return nil, err
	}
	s := &sample{at: time.Now(), buffers: map[string]bufferInfo{}, stats: map[string]map[string]int64{}}
	for _, name := range names {
		b, err := readBuffer(mnt, name)
		if err == nil {
			s.stats[name], err = readStats(mnt, name)
		}
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s.buffers[name] = b
	}
	return s, nil
}

// topCounters are the counters shown, as state/<buffer>/stats names them, and their headings.
var topCounters = []struct{ key, heading string }{
	{"faults", "FAULTS/S"},
	{"reads", "READS/S"},
	{"writes", "WRITES/S"},
	{"shootdowns", "SHOOT/S"},
	{"pages_zapped", "ZAPPED/S"},
	{"bytes_laundered", "LAUNDERED/S"},
	{"conflicts", "CONFL/S"},
}

// topRow is one buffer's activity.
type topRow struct {
	bufferInfo
	Rates map[string]float64 `json:"rates"` // a second, by the counters' names
	sum   float64
}

// since works out the rates between two samples, busiest first, then by name.
func (s *sample) since(before *sample) []topRow {
	seconds := s.at.Sub(before.at).Seconds()
	rows := []topRow{}
	for name, b := range s.buffers {
		row := topRow{bufferInfo: b, Rates: map[string]float64{}}
		for _, c := range topCounters {
			rate := 0.0
			if d := s.stats[name][c.key] - before.stats[name][c.key]; d > 0 && seconds > 0 {
				rate = float64(d) / seconds
			}
			row.Rates[c.key] = rate
			if c.key == "bytes_laundered" {
				rate /= 4096 // weighs as its pages
			}
			row.sum += rate
		}
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b topRow) int {
		return cmp.Or(cmp.Compare(b.sum, a.sum), cmp.Compare(a.Name, b.Name))
	})
	return rows
}

func topTable(rows []topRow) [][]string {
	head := []string{"NAME", "SIZE", "DOMAIN", "REFS", "PENDING"}
	for _, c := range topCounters {
		head = append(head, c.heading)
	}
	table := [][]string{head}
	for _, r := range rows {
		row := []string{printable(r.Name), formatSize(r.Size), r.Domain, strconv.FormatInt(r.Refcount, 10), strconv.Itoa(r.Pending)}
		for _, c := range topCounters {
			row = append(row, strconv.FormatFloat(r.Rates[c.key], 'f', 0, 64))
		}
		table = append(table, row)
	}
	return table
}

// topModel is the screen: a table, measured anew every interval. q or Ctrl-C ends it.
type topModel struct {
	mnt      string
	interval time.Duration
	last     *sample
	rows     []topRow
	width    int
	height   int
	err      error
}

type tickMsg struct {
	sample *sample
	err    error
}

var _ tea.Model = (*topModel)(nil)

func (m *topModel) Init() tea.Cmd { return m.measure() }

// measure takes the next sample away from the screen's goroutine: the daemon may be slow.
func (m *topModel) measure() tea.Cmd {
	return tea.Tick(m.interval, func(time.Time) tea.Msg {
		s, err := takeSample(m.mnt)
		return tickMsg{s, err}
	})
}

func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		}
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tickMsg:
		if msg.err != nil {
			m.err = msg.err
			return m, tea.Quit
		}
		m.rows, m.last = msg.sample.since(m.last), msg.sample
		return m, m.measure()
	}
	return m, nil
}

func (m *topModel) View() tea.View {
	v := tea.NewView(m.text())
	v.AltScreen = true
	return v
}

func (m *topModel) text() string {
	var b strings.Builder
	var bytes int64
	for _, buf := range m.last.buffers {
		bytes += buf.Size
	}
	fmt.Fprintf(&b, "dmabuffs top  %s  %d buffers, %s bytes  every %v, q quits\n\n", m.mnt, len(m.last.buffers), formatSize(bytes), m.interval)
	if m.rows == nil {
		b.WriteString("measuring …\n")
		return b.String()
	}
	rows := m.rows
	if room := m.height - 4; room > 0 && len(rows) > room {
		rows = rows[:room]
	}
	var table strings.Builder
	_ = printTable(&table, topTable(rows))
	for line := range strings.Lines(table.String()) {
		line = strings.TrimRight(line, "\n")
		if runes := []rune(line); m.width > 0 && len(runes) > m.width {
			line = string(runes[:m.width])
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}
