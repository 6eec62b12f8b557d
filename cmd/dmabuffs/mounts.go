package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// unescapeOctal undoes octal escapes: the rows of state/ have them.
func unescapeOctal(s string) string { return fs.Unescape(s) }

// mountOf is the mount that a command works on: the one named, or the only one there is.
func mountOf(args []string) (string, error) {
	if len(args) > 0 {
		mnt, rel, err := locate(args[0])
		if err != nil {
			return "", err
		}
		if rel != "." {
			return "", usagef("%s: is inside the mount; the mount point is %s", args[0], mnt)
		}
		return mnt, nil
	}
	mounts, err := fs.Mounts()
	if err != nil {
		return "", err
	}
	var dirs []string
	for _, m := range mounts {
		if !slices.Contains(dirs, m.Dir) { // one may cover another
			dirs = append(dirs, m.Dir)
		}
	}
	switch len(dirs) {
	case 1:
		return dirs[0], nil
	case 0:
		return "", hint(errors.New("no dmabuffs is mounted"), "dmabuffs mount --daemon MNT makes one")
	}
	return "", usagef("which mount? there are %s", strings.Join(dirs, ", "))
}

// locate splits a path into the mount point that it is on and the rest; the last
// element need not exist. The rest of the mount point itself is ".".
func locate(path string) (mnt, rel string, err error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", "", err
	}
	real, err := filepath.EvalSymlinks(abs)
	if errors.Is(err, syscall.ENOENT) {
		dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return "", "", err
		}
		real = filepath.Join(dir, filepath.Base(abs))
	} else if err != nil {
		return "", "", err
	}
	mounts, err := fs.Mounts()
	if err != nil {
		return "", "", err
	}
	for dir := real; ; dir = filepath.Dir(dir) {
		if slices.ContainsFunc(mounts, func(m fs.MountInfo) bool { return m.Dir == dir }) || looksMounted(dir) {
			rel, err := filepath.Rel(dir, real)
			return dir, rel, err
		}
		if dir == "/" {
			return "", "", hint(fmt.Errorf("%s: is not on a dmabuffs", path), "findmnt -t fuse.dmabuffs lists the mounts")
		}
	}
}

// looksMounted knows the root of a dmabuffs that somebody else mounted for us, under
// whatever type: it is FUSE, and our root's files are there.
func looksMounted(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Type != unix.FUSE_SUPER_MAGIC {
		return false
	}
	for _, name := range []string{"bufinfo", "buffers", "exporters", "state"} {
		if unix.Access(filepath.Join(dir, name), unix.F_OK) != nil {
			return false
		}
	}
	return true
}

// bufferOf names the buffer that a path means: its CPU view, a device's view, or its
// directory (or a file) in state/.
func bufferOf(path string) (mnt, name string, err error) {
	mnt, rel, err := locate(path)
	if err != nil {
		return "", "", err
	}
	switch part := strings.Split(rel, "/"); {
	case len(part) == 2 && part[0] == "buffers",
		len(part) >= 2 && part[0] == "state":
		return mnt, part[1], nil
	case len(part) == 3 && part[0] == "exporters":
		return mnt, part[2], nil
	case len(part) == 4 && part[0] == "devices" && part[2] == "buffers":
		return mnt, part[3], nil
	}
	return "", "", usagef("%s: is no buffer; buffers are %s", path, filepath.Join(mnt, "buffers", "NAME"))
}

// entryOf checks that path is MNT/<dir>/<name>, which may not exist yet.
func entryOf(path, dir string) (mnt, name string, err error) {
	mnt, rel, err := locate(path)
	if err != nil {
		return "", "", err
	}
	part := strings.Split(rel, "/")
	if len(part) != 2 || part[0] != dir {
		return "", "", usagef("%s: give %s", path, filepath.Join(mnt, dir, "NAME"))
	}
	return mnt, part[1], nil
}
