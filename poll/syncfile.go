package poll

import "fmt"

// nameLen is the size of a sync file's name in bytes, without its NUL
// (struct sync_file_info).
const nameLen = 31

// SyncFile is a fence to be passed around and polled (struct sync_file). It
// does not change: fences added elsewhere later are not in it.
type SyncFile struct {
	name  string
	fence *Fence
}

// SyncInfo is what SYNC_IOC_FILE_INFO tells.
type SyncInfo struct {
	Name string // at most 31 bytes
	// Status is 1 if all fences are signaled without error, else the first
	// of their statuses that is not 1: 0 pending, or a negative errno. It is
	// what FILE_INFO answers when it fills in fences.
	Status int
	// Aggregate is the status of the fence they form: what FILE_INFO answers
	// to num_fences 0.
	Aggregate int
	Fences    []FenceInfo // at least one
}

// FenceInfo is one fence of it (struct sync_fence_info).
type FenceInfo struct {
	Timeline  string // obj_name
	Driver    string // driver_name
	Status    int    // 0 pending, 1 signaled, or a negative errno
	Timestamp uint64 // nanoseconds of CLOCK_MONOTONIC, 0 while pending
}

// NewSyncFile makes a sync file of f (sync_file_create). name is cut at 31
// bytes; an empty one is made up from the fence when asked for.
func NewSyncFile(name string, f *Fence) *SyncFile {
	return &SyncFile{name: cut(name), fence: f}
}

// Merge makes a sync file of what s and o wait for (SYNC_IOC_MERGE). Both stay
// as they are, and may be the same. The rules are those of the function Merge.
func (s *SyncFile) Merge(name string, o *SyncFile) *SyncFile {
	return NewSyncFile(name, Merge(s.fence, o.fence))
}

// Fence is the file's fence (sync_file_get_fence).
func (s *SyncFile) Fence() *Fence { return s.fence }

// Name is the name it was given, or driver-timelineCONTEXT-SEQNO of its fence,
// cut at 31 bytes (sync_file_get_name).
func (s *SyncFile) Name() string {
	if s.name != "" {
		return s.name
	}
	f := s.fence
	return cut(fmt.Sprintf("%s-%s%d-%d", f.driver, f.timeline, f.context, f.seqno))
}

func cut(name string) string { return name[:min(len(name), nameLen)] }

// Info is the state of the file and of each fence in it.
func (s *SyncFile) Info() SyncInfo {
	info := SyncInfo{Name: s.Name(), Status: 1, Aggregate: s.fence.Status()}
	for _, f := range Unwrap(s.fence) {
		fi := FenceInfo{Timeline: f.timeline, Driver: f.driver, Status: f.Status()}
		if fi.Status != 0 {
			fi.Timestamp = f.timestamp
		}
		if info.Status == 1 {
			info.Status = fi.Status
		}
		info.Fences = append(info.Fences, fi)
	}
	return info
}

// Ready is which of want are ready: In once the fence is signaled, with an
// error or without; never anything else.
func (s *SyncFile) Ready(want Events) Events {
	if want&In != 0 && s.fence.Signaled() {
		return In
	}
	return 0
}

// Watch has notify called, once and with no lock held, when the fence is
// signaled. Ask with Ready afterwards: on a signaled fence notify is not called.
// unwatch takes it away; a call under way may still arrive.
func (s *SyncFile) Watch(notify func()) (unwatch func()) {
	cb := NewCallback(func(*Fence) { notify() })
	if s.fence.AddCallback(cb) != nil {
		return func() {}
	}
	return func() { s.fence.RemoveCallback(cb) }
}
