package fs

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version is what this program was built from: set by
// -ldflags "-X github.com/dmabuffs/dmabuffs/fs.Version=v1.2.3", and otherwise
// what the Go toolchain wrote into the program (see BuildVersion).
var Version = "dev"

// BuildVersion is Version where a release set it, else the module's version or
// the commit it was built from, else "dev".
func BuildVersion() string {
	if Version != "dev" {
		return Version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Version
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	commit, changed := "", ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value[:min(12, len(s.Value))]
		case "vcs.modified":
			if s.Value == "true" {
				changed = "+changes"
			}
		}
	}
	if commit == "" {
		return Version
	}
	return Version + "-" + commit + changed
}

// The version of the FUSE protocol that is spoken: FUSE_KERNEL_VERSION and
// FUSE_KERNEL_MINOR_VERSION of include/uapi/linux/fuse.h, as go-fuse answers INIT.
// What is newer (passthrough, …) is negotiated by flags.
const (
	fuseMajor = 7
	fuseMinor = 28
)

// versionText is the file version: one line.
func versionText() string {
	return fmt.Sprintf("dmabuffs %s (%s, FUSE protocol %d.%d)\n", BuildVersion(), runtime.Version(), fuseMajor, fuseMinor)
}
