package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/dmabuffs/dmabuffs/fs"
)

// What a check found.
const (
	checkOK      = "ok"
	checkNote    = "note"    // works, less well or not for everybody
	checkMissing = "missing" // does not work
)

// finding is one row of doctor.
type finding struct {
	Check  string `json:"check"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Do     string `json:"do,omitempty"` // what to do about it
}

// diagnosis is all of doctor.
type diagnosis struct {
	MountPossible bool         `json:"mount_possible"`
	Kernel        string       `json:"kernel"`
	FUSE          *fs.Features `json:"fuse"` // null when the trial mount failed
	Checks        []finding    `json:"checks"`
}

func (d *diagnosis) add(check, status, do, detail string, args ...any) {
	if status == checkOK {
		do = ""
	}
	d.Checks = append(d.Checks, finding{check, status, fmt.Sprintf(detail, args...), do})
}

func newDoctorCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "doctor [MNT]",
		Short: "Check what a mount needs, and say what to do about what is missing",
		Long: `Check what a mount needs on this machine and for this user, by trying it: a trial mount
on a temporary directory, a user namespace, and so on. With MNT, that mount is looked at too.

Exit status: 0 when a mount is possible, 1 when it is not (or MNT is dead).`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			d := diagnose()
			broken := !d.MountPossible
			for _, dir := range args {
				broken = !d.checkMount(dir) || broken
			}
			if err := d.print(cmd.OutOrStdout(), asJSON); err != nil {
				return err
			}
			if broken {
				return exitError{status: exitFailed}
			}
			return nil
		},
	}
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (d *diagnosis) print(w io.Writer, asJSON bool) error {
	if asJSON {
		return printJSON(w, d)
	}
	rows := [][]string{{"CHECK", "STATUS", "FOUND"}}
	for _, f := range d.Checks {
		rows = append(rows, []string{f.Check, f.Status, f.Detail})
		if f.Do != "" {
			rows = append(rows, []string{"", "", "-> " + f.Do})
		}
	}
	if err := printTable(w, rows); err != nil {
		return err
	}
	verdict := "\nA mount is possible."
	if !d.MountPossible {
		verdict = "\nA mount is not possible."
	}
	_, err := fmt.Fprintln(w, verdict)
	return err
}

func diagnose() *diagnosis {
	d := &diagnosis{}
	d.checkKernel()
	d.checkDevice()
	d.checkFusermount()
	d.checkTrial()
	d.checkFeatures()
	d.checkPassthrough()
	d.checkWriteback()
	d.checkUserNamespaces()
	d.checkFiles()
	d.checkMemfd()
	d.checkSeccomp()
	d.checkHelper()
	d.checkLeftovers()
	return d
}

// realRoot reports whether this process is root of the machine, not of a namespace, and
// may do what root may.
func realRoot() bool {
	return inInitialUserNamespace() && hasCapSysAdmin()
}

func inInitialUserNamespace() bool {
	raw, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && slices.Equal(strings.Fields(string(raw)), []string{"0", "0", "4294967295"})
}

func hasCapSysAdmin() bool { return hasCap(unix.CAP_SYS_ADMIN) }

// hasCap is for the first 32 capabilities.
func hasCap(c uint) bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&h, &data[0]) == nil && data[0].Effective&(1<<c) != 0
}

// kernelVersion is what uname says, and its first two numbers.
func kernelVersion() (release string, major, minor int) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown", 0, 0
	}
	release = unix.ByteSliceToString(u.Release[:])
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor)
	return release, major, minor
}

func (d *diagnosis) checkKernel() {
	release, major, minor := kernelVersion()
	d.Kernel = release
	least := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case least(6, 9):
		d.add("kernel", checkOK, "", "Linux %s", release)
	case least(6, 6):
		d.add("kernel", checkNote, "Linux 6.9 has passthrough", "Linux %s: coherent buffers use the page cache", release)
	case least(5, 11):
		d.add("kernel", checkNote, "Linux 6.6 maps direct-I/O files, 6.9 has passthrough",
			"Linux %s: noncoherent buffers and DMA views cannot be mapped", release)
	default:
		d.add("kernel", checkNote, "use Linux 6.9 or newer", "Linux %s is older than what dmabuffs is tested on", release)
	}
}

const fuseDev = "/dev/fuse"

func (d *diagnosis) checkDevice() {
	fi, err := os.Stat(fuseDev)
	if err != nil {
		d.add(fuseDev, checkMissing, "as root: modprobe fuse; in a container: --device /dev/fuse", "%v", err)
		return
	}
	mode := fi.Mode().Perm()
	fd, err := unix.Open(fuseDev, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err != nil:
		d.add(fuseDev, checkMissing, "as root: chmod 0666 "+fuseDev, "mode %#o, not openable by uid %d: %v", mode, os.Geteuid(), err)
		return
	case mode&0o006 != 0o006:
		d.add(fuseDev, checkNote, "for ordinary users to mount, as root: chmod 0666 "+fuseDev, "openable by uid %d, but mode %#o shuts others out", os.Geteuid(), mode)
	default:
		d.add(fuseDev, checkOK, "", "mode %#o, openable by uid %d", mode, os.Geteuid())
	}
	unix.Close(fd)
}

func (d *diagnosis) checkFusermount() {
	const install = "install the package fuse3"
	path, err := fs.Fusermount()
	if err != nil {
		status := checkMissing
		if hasCapSysAdmin() {
			status = checkNote
		}
		d.add("fusermount3", status, install, "not found: ordinary users can mount only inside a user namespace")
		return
	}
	out, err := exec.Command(path, "-V").Output()
	if err != nil {
		d.add("fusermount3", checkMissing, install, "%s does not run: %v", path, err)
		return
	}
	version := strings.TrimSpace(string(out))
	fi, err := os.Stat(path)
	if err == nil && fi.Mode()&os.ModeSetuid == 0 {
		d.add("fusermount3", checkNote, "as root: chmod u+s "+path, "%s (%s) is not set-user-ID root: ordinary users cannot mount by it", path, version)
		return
	}
	if conf, err := os.ReadFile("/etc/fuse.conf"); !hasCapSysAdmin() && (err != nil || !slices.Contains(strings.Fields(withoutComments(string(conf))), "user_allow_other")) {
		d.add("fusermount3", checkNote, "for -o allow_other, as root: echo user_allow_other >> /etc/fuse.conf", "%s (%s); allow_other is for root only", path, version)
		return
	}
	d.add("fusermount3", checkOK, "", "%s (%s)", path, version)
}

func withoutComments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		b.WriteString(line + "\n")
	}
	return b.String()
}

func (d *diagnosis) checkTrial() {
	f, err := fs.Probe()
	if err != nil {
		d.add("trial mount", checkMissing, "mend what is missing here, or mount inside a user namespace: unshare -Urm", "%v", err)
		return
	}
	d.FUSE, d.MountPossible = f, true
	d.add("trial mount", checkOK, "", "by %s, FUSE %d.%d", f.MountedBy, f.Major, f.Minor)
}

func (d *diagnosis) checkFeatures() {
	if d.FUSE == nil {
		return
	}
	if !d.FUSE.DirectIOAllowMmap {
		d.add("FUSE mmap of direct I/O", checkMissing, "use Linux 6.6 or newer", "not in this kernel: noncoherent buffers and DMA views cannot be mapped")
	} else {
		d.add("FUSE mmap of direct I/O", checkOK, "", "noncoherent buffers and DMA views can be mapped")
	}
}

func (d *diagnosis) checkPassthrough() {
	const check = "passthrough"
	switch {
	case d.FUSE == nil:
	case !d.FUSE.Passthrough:
		d.add(check, checkNote, "use Linux 6.9 or newer, with CONFIG_FUSE_PASSTHROUGH", "not in this kernel: coherent buffers use the page cache")
	case !realRoot():
		d.add(check, checkNote, "mount as root (outside user namespaces)", "for root only: your coherent buffers will use the page cache")
	default:
		d.add(check, checkOK, "", "coherent buffers map their memory directly")
	}
}

func (d *diagnosis) checkWriteback() {
	const check = "write-back tuning"
	if !realRoot() {
		d.add(check, checkNote, "mount as root", "for root only: stores into mappings are throttled to about a quarter of memory speed")
		return
	}
	knobs, _ := filepath.Glob("/sys/class/bdi/*/max_ratio")
	if len(knobs) == 0 {
		d.add(check, checkNote, "mount sysfs on /sys", "/sys/class/bdi is not there")
		return
	}
	if err := unix.Access(knobs[0], unix.W_OK); err != nil {
		d.add(check, checkNote, "mount sysfs writable", "/sys/class/bdi is read-only: stores into mappings are throttled")
		return
	}
	if strict, _ := filepath.Glob("/sys/class/bdi/*/strict_limit"); len(strict) == 0 {
		d.add(check, checkNote, "use Linux 6.2 or newer", "this kernel has no strict_limit: stores into mappings are throttled")
		return
	}
	d.add(check, checkOK, "", "stores into mappings run at memory speed")
}

func (d *diagnosis) checkUserNamespaces() {
	const check = "user namespaces"
	cmd := exec.Command("/proc/self/exe", "version")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
	}
	err := cmd.Run()
	if err == nil {
		d.add(check, checkOK, "", "usable: unshare -Urm dmabuffs mount …")
		return
	}
	do := "as root: sysctl user.max_user_namespaces=10000"
	for _, s := range []struct{ file, bad, do string }{
		{"/proc/sys/kernel/unprivileged_userns_clone", "0", "as root: sysctl kernel.unprivileged_userns_clone=1"},
		{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0"},
	} {
		if raw, e := os.ReadFile(s.file); e == nil && strings.TrimSpace(string(raw)) == s.bad {
			do = s.do
		}
	}
	d.add(check, checkNote, do, "not usable (%v): ordinary users need fusermount3", err)
}

// fewFiles is when doctor speaks of the limit of open files.
const fewFiles = 65536

func (d *diagnosis) checkFiles() {
	const check = "open files"
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		d.add(check, checkNote, "", "%v", err)
		return
	}
	limit := r.Max
	if inInitialUserNamespace() && hasCap(unix.CAP_SYS_RESOURCE) {
		limit = max(limit, nrOpen()) // raised at mount
	}
	if limit < fewFiles {
		d.add(check, checkNote, "raise the hard limit: nofile in /etc/security/limits.conf, LimitNOFILE= in a unit", "hard limit %d: each buffer with bytes in it takes one", limit)
		return
	}
	d.add(check, checkOK, "", "up to %d (each buffer with bytes in it takes one)", limit)
}

func (d *diagnosis) checkMemfd() {
	fd, err := unix.MemfdCreate("dmabuffs-doctor", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		d.add("memfd", checkMissing, "allow memfd_create(2) here (a seccomp filter?)", "%v: buffers have no memory", err)
		d.MountPossible = false
		return
	}
	unix.Close(fd)
	d.add("memfd", checkOK, "", "buffers are backed by memfd_create(2)")
}

// checkSeccomp: `run` puts descriptors into its child with SECCOMP_ADDFD_FLAG_SEND (Linux 5.14).
func (d *diagnosis) checkSeccomp() {
	const check = "seccomp notification"
	raw, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	_, major, minor := kernelVersion()
	switch {
	case err != nil || !slices.Contains(strings.Fields(string(raw)), "user_notif"):
		d.add(check, checkNote, "use a kernel with CONFIG_SECCOMP_FILTER", "not in this kernel: dmabuffs run does not work")
	case major < 5 || major == 5 && minor < 14:
		d.add(check, checkNote, "use Linux 5.14 or newer", "too old here: dmabuffs run does not work")
	case seccompDenied():
		d.add(check, checkNote, "run outside this container, or allow seccomp(2)", "a filter forbids it: dmabuffs run does not work")
	default:
		d.add(check, checkOK, "", "dmabuffs run works")
	}
}

// seccompDenied asks with an operation that does not exist: the kernel says EINVAL, a
// filter in a container EPERM or ENOSYS.
func seccompDenied() bool {
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, ^uintptr(0), 0, 0)
	return errno == unix.EPERM || errno == unix.ENOSYS
}

func (d *diagnosis) checkHelper() {
	const check = "mount(8) helper"
	for _, dir := range []string{"/sbin", "/usr/sbin", "/sbin/fs.d", "/sbin/fs", "/usr/local/sbin"} {
		if p := filepath.Join(dir, "mount.fuse.dmabuffs"); unix.Access(p, unix.X_OK) == nil {
			d.add(check, checkOK, "", "%s: mount -t fuse.dmabuffs and fstab work", p)
			return
		}
	}
	d.add(check, checkNote, "as root: make install, or ln -s $(command -v dmabuffs) /sbin/mount.fuse.dmabuffs", "not installed: mount -t fuse.dmabuffs and fstab do not work")
}

func (d *diagnosis) checkLeftovers() {
	mounts, err := fs.Mounts()
	if err != nil {
		d.add("mounts", checkNote, "mount proc on /proc", "%v", err)
		return
	}
	alive := 0
	for _, m := range mounts {
		if m.Dead() {
			d.add("mounts", checkNote, "dmabuffs umount "+m.Dir, "%s is dead: its daemon is gone", m.Dir)
		} else {
			alive++
		}
	}
	if alive == len(mounts) {
		d.add("mounts", checkOK, "", "%d mounted, none dead", alive)
	}
}

// checkMount looks at one mount; false when it does not serve.
func (d *diagnosis) checkMount(dir string) bool {
	mounts, err := fs.Mounts()
	if err != nil {
		d.add(dir, checkMissing, "", "%v", err)
		return false
	}
	abs, err := filepath.Abs(dir)
	if real, e := filepath.EvalSymlinks(abs); e == nil {
		abs = real
	}
	i := slices.IndexFunc(mounts, func(m fs.MountInfo) bool { return m.Dir == abs })
	switch {
	case err != nil:
		d.add(dir, checkMissing, "", "%v", err)
		return false
	case i < 0:
		d.add(dir, checkMissing, "dmabuffs mount --daemon "+dir, "no dmabuffs is mounted there")
		return false
	case mounts[i].Dead():
		d.add(dir, checkMissing, "dmabuffs umount "+dir+", then mount it again", "dead: its daemon is gone")
		return false
	}
	m := mounts[i]
	d.add(dir, checkOK, "", "serves, %s", m.Options)
	ratio, err := readBDI(m, "max_ratio")
	strict, serr := readBDI(m, "strict_limit")
	if err := errors.Join(err, serr); err != nil {
		d.add(dir+" write-back", checkNote, "", "%v", err)
	} else if ratio != 100 || strict != 0 {
		d.add(dir+" write-back", checkNote, fmt.Sprintf("as root: cd /sys/class/bdi/%d:%d && echo 0 > strict_limit && echo 100 > max_ratio", m.Major, m.Minor),
			"max_ratio %d, strict_limit %d: stores into mappings are throttled", ratio, strict)
	} else {
		d.add(dir+" write-back", checkOK, "", "not throttled")
	}
	return true
}

func readBDI(m fs.MountInfo, file string) (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/sys/class/bdi/%d:%d/%s", m.Major, m.Minor, file))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(raw)))
}
