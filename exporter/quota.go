package exporter

import (
	"fmt"
	"sync"
)

// Quota bounds the bytes (counted in whole pages) and the number of buffers of a mount.
type Quota struct {
	maxBytes, maxBuffers int64

	mu      sync.Mutex
	bytes   int64
	buffers int64
}

// NewQuota makes a quota of so many bytes and buffers; 0 is no limit.
func NewQuota(maxBytes, maxBuffers int64) *Quota {
	return &Quota{maxBytes: maxBytes, maxBuffers: maxBuffers}
}

// Reserve takes bytes, a whole number of pages. ENOSPC when they are not there.
func (q *Quota) Reserve(bytes int64) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if bytes < 0 {
		return ErrInvalid
	}
	if left := q.leftLocked(); bytes > left {
		return fmt.Errorf("%d bytes, %d left: %w", bytes, left, ErrQuota)
	}
	q.bytes += bytes
	return nil
}

// leftLocked is what Reserve could give. q.mu is held.
func (q *Quota) leftLocked() int64 {
	if q.maxBytes <= 0 {
		return 1<<63 - 1 - q.bytes
	}
	return q.maxBytes - q.bytes
}

// Release gives bytes back. It panics when more comes back than was taken.
func (q *Quota) Release(bytes int64) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.bytes -= bytes; q.bytes < 0 || bytes < 0 {
		panic("exporter: quota released twice")
	}
}

// Used is the number of bytes taken.
func (q *Quota) Used() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bytes
}

// Buffers is the number of buffers counted.
func (q *Quota) Buffers() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.buffers
}

// Max is what the quota was made with, bytes and buffers; 0 is no limit.
func (q *Quota) Max() (bytes, buffers int64) { return q.maxBytes, q.maxBuffers }

// addBuffer counts one more buffer: ENOSPC at the maximum.
func (q *Quota) addBuffer() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.maxBuffers > 0 && q.buffers >= q.maxBuffers {
		return fmt.Errorf("%d buffers: %w", q.buffers, ErrQuota)
	}
	q.buffers++
	return nil
}

func (q *Quota) dropBuffer() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.buffers--; q.buffers < 0 {
		panic("exporter: buffer released twice")
	}
}
