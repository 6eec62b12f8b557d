// Command goclient is a Go program under `dmabuffs run`: its runtime makes system calls
// by itself, from any thread, and interrupts them by signals.
package main

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

const heapAlloc = 0xc0184800

func alloc(size uint64) (*os.File, error) {
	heap, err := os.OpenFile("/dev/dma_heap/system", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer heap.Close()
	a := struct {
		len         uint64
		fd, fdFlags uint32
		heapFlags   uint64
	}{len: size, fdFlags: syscall.O_RDWR | syscall.O_CLOEXEC}
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, heap.Fd(), heapAlloc, uintptr(unsafe.Pointer(&a))); e != 0 {
		return nil, e
	}
	return os.NewFile(uintptr(a.fd), "buffer"), nil
}

func client(n int) error {
	for range 100 {
		f, err := alloc(uint64(n+1) * 4096)
		if err != nil {
			return err
		}
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if fi.Size() != int64(n+1)*4096 {
			return fmt.Errorf("%d bytes, want %d pages", fi.Size(), n+1)
		}
		m, err := syscall.Mmap(int(f.Fd()), 0, int(fi.Size()), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
		if err != nil {
			return err
		}
		m[len(m)-1]++
		if err := syscall.Munmap(m); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if fi, err := os.Stat("/dev/udmabuf"); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		fmt.Fprintln(os.Stderr, "goclient:", fi, err)
		os.Exit(1)
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			if err := client(n); err != nil {
				fmt.Fprintln(os.Stderr, "goclient:", err)
				os.Exit(1)
			}
		})
	}
	wg.Wait()
	fmt.Println("ok")
}
