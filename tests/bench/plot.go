package main

import (
	"fmt"
	"math"
	"os"
	"strings"
)

// point is one measurement: a transition of a buffer of size bytes with dirty pages took us microseconds.
type point struct {
	size  int64
	dirty int
	us    float64
}

// plot draws cost against dirty pages, both logarithmic, one line a buffer size.
func plot(path string, points []point) error {
	const w, h, left, top, right, bottom = 640, 400, 70, 30, 20, 50
	minY, maxY, maxX := math.Inf(1), 0.0, 1.0
	for _, p := range points {
		minY, maxY, maxX = min(minY, p.us), max(maxY, p.us), max(maxX, float64(p.dirty))
	}
	minY, maxY = math.Pow(10, math.Floor(math.Log10(minY))), math.Pow(10, math.Ceil(math.Log10(maxY)))
	x := func(v float64) float64 { return left + (w-left-right)*math.Log(v)/math.Log(maxX) }
	y := func(v float64) float64 { return top + (h-top-bottom)*(1-math.Log(v/minY)/math.Log(maxY/minY)) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", w, h)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="white"/>`+"\n", w, h)
	for v := minY; v <= maxY; v *= 10 {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g µs</text>`+"\n", left, y(v), w-right, left-6, y(v)+4, v)
	}
	for v := 1.0; v <= maxX; v *= 4 {
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#ddd"/><text x="%.1f" y="%d" text-anchor="middle">%g</text>`+"\n", x(v), top, h-bottom, x(v), h-bottom+16, v)
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">dirty pages</text>`+"\n", (w+left-right)/2, h-12)
	fmt.Fprintf(&b, `<text x="%d" y="18">CPU to device: time of one SYNC START</text>`+"\n", left)
	lines := map[int64][]point{}
	var sizes []int64
	for _, p := range points {
		if lines[p.size] == nil {
			sizes = append(sizes, p.size)
		}
		lines[p.size] = append(lines[p.size], p)
	}
	for i, size := range sizes {
		color := []string{"#1f77b4", "#d62728", "#2ca02c"}[i%3]
		var d []string
		for _, p := range lines[size] {
			d = append(d, fmt.Sprintf("%.1f %.1f", x(float64(p.dirty)), y(p.us)))
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", x(float64(p.dirty)), y(p.us), color)
		}
		fmt.Fprintf(&b, `<path d="M%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(d, "L"), color)
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%d MiB buffer</text>`+"\n", left+12, top+18+16*i, color, size/mib)
	}
	b.WriteString("</svg>\n")
	return os.WriteFile(path, []byte(b.String()), 0644)
}
