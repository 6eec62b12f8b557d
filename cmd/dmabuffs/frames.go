package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	_ "image/gif" // formats that frames are made from
	_ "image/jpeg"
	_ "image/png"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// frameSource makes the frames of the demo out of something real: a camera that
// moves over a picture, or the sound of a WAV file, 40 ms a frame.
type frameSource struct {
	about string
	size  int                           // bytes of a frame
	draw  func(frame []byte, no uint64) // fills all of frame
}

// Frames of a picture: 640 by 360 pixels of 4 bytes.
const frameWidth, frameHeight = 640, 360

// frameHeader is the frame's number, 8 bytes in front of every frame: no two are the same.
const frameHeader = 8

// openFrames makes a source of a file: PNG, JPEG, GIF or WAV. "" picks one that the machine has.
func openFrames(path string) (*frameSource, error) {
	if path == "" {
		path = findPicture()
	}
	if path == "" {
		return pictureFrames(mandelbrot(1024, 768), "a rendered Mandelbrot set (no picture found on this machine; --input FILE names one)"), nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if bytes.HasPrefix(data, []byte("RIFF")) {
		s, err := soundFrames(data, path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return s, nil
	}
	img, format, err := image.Decode(bytes.NewReader(data))
	if err != nil {
		return nil, hint(fmt.Errorf("%s: %w", path, err), "frames are made from PNG, JPEG, GIF or WAV")
	}
	b := img.Bounds()
	if b.Dx() < 2 || b.Dy() < 2 {
		return nil, fmt.Errorf("%s: a picture of %d by %d pixels is too small", path, b.Dx(), b.Dy())
	}
	rgba := image.NewRGBA(image.Rect(0, 0, b.Dx(), b.Dy()))
	draw.Draw(rgba, rgba.Bounds(), img, b.Min, draw.Src)
	return pictureFrames(rgba, fmt.Sprintf("%s (%s, %d by %d)", path, strings.ToUpper(format), b.Dx(), b.Dy())), nil
}

// pictureFrames pans and zooms over a picture, never twice the same way.
func pictureFrames(img *image.RGBA, about string) *frameSource {
	w, h := img.Bounds().Dx(), img.Bounds().Dy()
	xs := make([]int, frameWidth)
	return &frameSource{about: about, size: frameHeader + frameWidth*frameHeight*4, draw: func(frame []byte, no uint64) {
		binary.LittleEndian.PutUint64(frame, no)
		out, t := frame[frameHeader:], float64(no)
		zoom := 0.55 + 0.3*math.Sin(t/47)
		vw, vh := float64(w)*zoom, float64(h)*zoom
		x0 := (float64(w) - vw) * (0.5 + 0.5*math.Sin(t/31))
		y0 := (float64(h) - vh) * (0.5 + 0.5*math.Cos(t/23))
		for x := range xs {
			xs[x] = 4 * min(int(x0+vw*float64(x)/frameWidth), w-1)
		}
		for y := range frameHeight {
			line := img.Pix[min(int(y0+vh*float64(y)/frameHeight), h-1)*img.Stride:]
			to := out[y*frameWidth*4:]
			for x, from := range xs {
				copy(to[4*x:4*x+4], line[from:from+4])
			}
		}
	}}
}

// soundFrames cuts the samples of a WAV file into pieces of 40 ms, round and round.
func soundFrames(data []byte, path string) (*frameSource, error) {
	if len(data) < 12 || string(data[8:12]) != "WAVE" {
		return nil, errors.New("is RIFF, but no WAVE")
	}
	var rate, align uint32
	var samples []byte
	for rest := data[12:]; len(rest) >= 8; {
		id, n := string(rest[:4]), int64(binary.LittleEndian.Uint32(rest[4:]))
		body := rest[8:]
		n = min(n, int64(len(body)))
		switch {
		case id == "fmt " && n >= 16:
			rate, align = binary.LittleEndian.Uint32(body[4:]), uint32(binary.LittleEndian.Uint16(body[12:]))
		case id == "data":
			samples = body[:n]
		}
		rest = body[min(n+n&1, int64(len(body))):]
	}
	piece := int(rate/25) * int(align)
	if piece <= 0 || piece > 64<<20 || len(samples) < piece {
		return nil, errors.New("has no 40 ms of samples")
	}
	about := fmt.Sprintf("%s (WAV, %d Hz, %.1f s)", path, rate, float64(len(samples))/float64(rate*align))
	return &frameSource{about: about, size: frameHeader + piece, draw: func(frame []byte, no uint64) {
		binary.LittleEndian.PutUint64(frame, no)
		pieces := uint64(len(samples) / piece)
		copy(frame[frameHeader:], samples[int(no%pieces)*piece:])
	}}, nil
}

// mandelbrot renders the set with its outside in colours.
func mandelbrot(w, h int) *image.RGBA {
	img := image.NewRGBA(image.Rect(0, 0, w, h))
	for y := range h {
		for x := range w {
			c := complex(3.2*float64(x)/float64(w)-2.3, 2.4*float64(y)/float64(h)-1.2)
			z, n := c, 0
			for ; n < 255 && real(z)*real(z)+imag(z)*imag(z) < 4; n++ {
				z = z*z + c
			}
			img.SetRGBA(x, y, color.RGBA{uint8(n * 7), uint8(n * 3), uint8(255 - n), 255})
		}
	}
	return img
}

// findPicture looks for a picture of some size where machines have them; "" is none.
func findPicture() string {
	dirs := []string{"/usr/share/backgrounds", "/usr/share/wallpapers", "/usr/share/pixmaps", "/usr/share/doc"}
	if goroot, err := exec.Command("go", "env", "GOROOT").Output(); err == nil {
		dirs = append([]string{filepath.Join(strings.TrimSpace(string(goroot)), "src/image/testdata")}, dirs...)
	}
	for _, dir := range dirs {
		if path := largestPicture(dir); path != "" {
			return path
		}
	}
	return ""
}

// largestPicture finds the largest file under dir that decodes, looking at a bounded number of files.
func largestPicture(dir string) (best string) {
	var size int64
	left := 5000
	_ = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if left--; left < 0 {
			return fs.SkipAll
		}
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		switch strings.ToLower(filepath.Ext(path)) {
		case ".png", ".jpg", ".jpeg":
		default:
			return nil
		}
		info, err := e.Info()
		if err != nil || info.Size() < 4<<10 || info.Size() > 32<<20 || info.Size() <= size {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		if img, _, err := image.Decode(f); err == nil && img.Bounds().Dx() >= 64 && img.Bounds().Dy() >= 64 {
			best, size = path, info.Size()
		}
		return nil
	})
	return best
}
