package tests

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// docs/conformance.md says of every behaviour of the kernel what dmabuffs does; here it is compared with what is so.

// conformanceRow is a row of the page.
type conformanceRow struct {
	mounted, run, why string
}

func conformancePage(t *testing.T) map[int]conformanceRow {
	t.Helper()
	text, err := os.ReadFile(source("..", "docs", "conformance.md"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[int]conformanceRow{}
	row := regexp.MustCompile(`^\| B(\d+) \| (.*) \| (same|different|n/a) \| (same|different|n/a) \| (.*) \|$`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		if !strings.HasPrefix(line, "| B") {
			continue
		}
		m := row.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("a row that is none: %s", line)
		}
		n, _ := strconv.Atoi(m[1])
		if _, ok := out[n]; ok {
			t.Fatalf("B%02d twice", n)
		}
		if m[3]+m[4] != "samesame" && !strings.Contains(m[5], " ") {
			t.Errorf("B%02d is %s and %s without a reason", n, m[3], m[4])
		}
		out[n] = conformanceRow{m[3], m[4], m[5]}
	}
	return out
}

// conformanceProgram builds the program out of its two files.
func conformanceProgram(t *testing.T) string {
	t.Helper()
	return program(t, "conformance", func(out string) *exec.Cmd {
		args := []string{"-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", out}
		files, err := filepath.Glob(source("conformance", "*.c"))
		if err != nil || len(files) == 0 {
			t.Fatal("no sources", err)
		}
		return exec.Command("gcc", append(args, files...)...)
	})
}

// verdicts reads what the program prints: verdict and remark of each case.
func verdicts(t *testing.T, out string) (verdict, remark map[int]string) {
	t.Helper()
	verdict, remark = map[int]string{}, map[int]string{}
	for line := range strings.Lines(out) {
		no, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(strings.TrimPrefix(no, "B"))
		if err != nil {
			t.Fatalf("the program says %q", line)
		}
		verdict[n], remark[n], _ = strings.Cut(rest, ": ")
	}
	return verdict, remark
}

func TestConformance(t *testing.T) {
	page := conformancePage(t)
	const behaviours = 197
	for n := 1; n <= behaviours; n++ {
		if _, ok := page[n]; !ok {
			t.Errorf("B%02d is not in docs/conformance.md", n)
		}
	}
	if len(page) != behaviours {
		t.Errorf("docs/conformance.md has %d behaviours, of %d", len(page), behaviours)
	}
	mnt := mount(t)
	mounted := run(t, 3*patience, mnt, conformanceProgram(t), "mount", mnt)
	compareConformance(t, page, mounted, "mounted", func(r conformanceRow) string { return r.mounted })
	// As an ordinary user would: in a mount of its own.
	under := run(t, 3*patience, "/", buildBinary(t), "run", "--", conformanceProgram(t), "run")
	compareConformance(t, page, under, "under run", func(r conformanceRow) string { return r.run })
}

// compareConformance compares what the program found with a column of the page.
func compareConformance(t *testing.T, page map[int]conformanceRow, r result, column string, of func(conformanceRow) string) {
	t.Helper()
	if r.code != 0 {
		t.Errorf("%s: status %d: %s", column, r.code, r.err)
	}
	got, remark := verdicts(t, r.out)
	for n, row := range page {
		byProgram := strings.HasPrefix(row.why, "conformance")
		switch _, ran := got[n]; {
		case byProgram && !ran:
			t.Errorf("%s: B%02d: the page says that the program has it, and it does not", column, n)
		case !byProgram && ran:
			t.Errorf("%s: B%02d: the program has it (%s), and the page does not say so", column, n, got[n])
		case ran && got[n] != of(row):
			t.Errorf("%s: B%02d is %q (%s), and %q in docs/conformance.md", column, n, got[n], remark[n], of(row))
		}
	}
}

// What the program does not show, a test of some package does: it has to be there.
func TestConformanceNamesTests(t *testing.T) {
	named := regexp.MustCompile("`([a-z]+)` (Test[A-Za-z]+)")
	for n, row := range conformancePage(t) {
		m := named.FindStringSubmatch(row.why)
		if m == nil {
			if row.mounted == "same" && !strings.HasPrefix(row.why, "conformance") {
				t.Errorf("B%02d: shown by %q?", n, row.why)
			}
			continue
		}
		files, err := filepath.Glob(source("..", m[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found = found || strings.Contains(string(text), fmt.Sprintf("func %s(t *testing.T)", m[2]))
		}
		if !found {
			t.Errorf("B%02d: package %s has no %s", n, m[1], m[2])
		}
	}
}

// The same cases on this machine's own dma-bufs, where it has any.
func TestConformanceKernel(t *testing.T) {
	t.Parallel()
	r := run(t, 5*patience, "/", conformanceProgram(t), "kernel")
	if r.code != 0 {
		t.Errorf("status %d: %s", r.code, r.err)
	}
	got, remark := verdicts(t, r.out)
	if len(got) < 100 {
		t.Errorf("%d cases came to an answer", len(got))
	}
	for n, v := range got {
		switch v {
		case "same", "n/a":
		case "different": // kernels differ: this is to be read, not to be judged
			t.Logf("B%02d: %s", n, remark[n])
		default:
			t.Errorf("B%02d: %s: %s", n, v, remark[n])
		}
	}
}
