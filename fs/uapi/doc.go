// Package uapi has the numbers and layouts of the ioctls that dma-bufs, sync
// files and their devices take, as in the kernel's headers, and those of our own
// control file. It is data only: constants, structs, and their bytes.
//
// Each struct has a Decode function, which takes at least its size in bytes and
// reports false for fewer, and an Encode method, which writes exactly its size
// and panics for less room. Integers are in the machine's byte order, offsets are
// those of x86-64 (the same on every 64-bit machine). Strings of fixed size end
// at their first NUL.
package uapi

import (
	"bytes"
	"encoding/binary"
)

var native = binary.NativeEndian

// Directions of an ioctl, include/uapi/asm-generic/ioctl.h: W is what the caller
// writes and the kernel copies in, R what it copies out.
const (
	dirNone = 0
	dirW    = 1
	dirR    = 2

	// SizeMax is the largest argument that a request number can tell, in bytes.
	SizeMax = 1<<14 - 1
)

// Number makes a request number (_IOC): direction, type letter, number, size in bytes.
func Number(dir, typ, nr, size uint32) uint32 { return dir<<30 | size<<16 | typ<<8 | nr }

// Size is the size in bytes that a request number tells.
func Size(cmd uint32) int { return int(cmd >> 16 & SizeMax) }

// Base is a request number without its size: direction, type and number.
func Base(cmd uint32) uint32 { return cmd &^ (SizeMax << 16) }

// text is a string of fixed size, up to its first NUL.
func text(p []byte) string {
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	return string(p)
}

// putText stores a string, cut so that a NUL ends it.
func putText(p []byte, s string) {
	clear(p)
	copy(p[:len(p)-1], s)
}
