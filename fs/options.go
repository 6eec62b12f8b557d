package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What Options' zero fields mean.
const (
	// DefaultExporter backs what is created in buffers/.
	DefaultExporter = "system"
	// DefaultNrBuffers is how many buffers a mount may hold.
	DefaultNrBuffers = 1 << 20
	// DefaultNrFences is how many pending fences a mount may hold.
	DefaultNrFences = 1 << 20
	// DefaultContiguous is the carve-out of the exporter contiguous, in bytes:
	// 64 MiB, or the mount's whole size where that is less.
	DefaultContiguous = 64 << 20
	// DefaultMode is the mode of the directories, as on tmpfs.
	DefaultMode = 0o1777
)

// The values of Options.Fault.
const (
	FaultAllow = "allow"
	FaultWait  = "wait"
)

// Options say how to mount. The zero value mounts something useful. Each field
// that is a mount option is named with it; ParseOptions reads them from a comma
// list, as mount(8) has it.
type Options struct {
	// FSName is what /proc/self/mountinfo and df show as the source: "dmabuffs"
	// when empty. Option fsname=NAME.
	FSName string
	// AllowOther lets every user in, not only the one who mounts. Option allow_other
	// (needs user_allow_other in /etc/fuse.conf where fusermount3 mounts).
	AllowOther bool
	// NoDefaultPermissions has the kernel not check modes: whoever gets in may do
	// everything. Not together with AllowOther. Option no_default_permissions.
	NoDefaultPermissions bool

	// ReadOnly mounts read-only. Option ro.
	ReadOnly bool
	// NoExec forbids running programs from the mount. Option noexec.
	NoExec bool
	// Suid honours set-user-ID bits (root only). Option suid.
	Suid bool
	// Dev honours device nodes, of which dmabuffs has none. Option dev.
	Dev bool
	// NoAtime, NoDirAtime and StrictAtime are mount(2)'s. Options noatime,
	// nodiratime, strictatime.
	NoAtime, NoDirAtime, StrictAtime bool
	// Sync and DirSync are mount(2)'s. Options sync, dirsync.
	Sync, DirSync bool

	// Exporter backs what is created in buffers/: "system" when empty. Option exporter=NAME.
	Exporter string
	// Size is the limit of all buffers together, in bytes, rounded up to pages. 0 is
	// half of the memory that this process may use (its control groups' limits count).
	// Option size=, in bytes, with k, m, g, t, or in per cent of that memory.
	Size int64
	// NrBuffers is the limit of buffers: 0 is DefaultNrBuffers. Option nr_buffers=,
	// with k, m, g.
	NrBuffers int64
	// NrFences is the limit of pending fences: 0 is DefaultNrFences. Option
	// nr_fences=, with k, m, g.
	NrFences int64
	// Contiguous is the size in bytes of the carve-out behind the exporter contiguous,
	// rounded up to pages: 0 is DefaultContiguous, negative is none. Option contiguous=,
	// as size=; contiguous=0 is none.
	Contiguous int64
	// Fault is what a CPU access to a page in a device's domain does: "allow" (or empty)
	// takes the page back at once, "wait" waits for the write fences first. Option fault=.
	Fault string
	// FenceTimeout has fences that are pending for so long signal with -ETIMEDOUT. 0 is
	// never. Option fence_timeout=, such as 10s or 1m30s.
	FenceTimeout time.Duration

	// UID and GID own the directories; 0 is who mounts, unless the option was given.
	// Options uid=, gid=, numbers.
	UID, GID uint32
	// Mode is the permissions of the directories that can be written to (the others
	// are without their write bits); 0 is DefaultMode. Option mode=, octal.
	Mode uint32

	// FuseFD, above 0, is an open /dev/fuse that somebody else has mounted already:
	// it is served, and nothing is mounted. The caller gives it away.
	FuseFD int
	// Debug logs every request. Option debug.
	Debug bool
	// Log takes what there is to say; nil says nothing.
	Log *slog.Logger

	uidSet, gidSet bool // UID 0 and GID 0 are meant
}

// OptionError is a mount option that was refused. It is an EINVAL.
type OptionError struct {
	Option  string // as it was given
	Reason  string
	Unknown bool // nobody knows an option of that name; mount(8) -s passes such over
}

// Error names the option.
func (e *OptionError) Error() string { return fmt.Sprintf("option %q: %s", e.Option, e.Reason) }

// Unwrap makes it an EINVAL.
func (e *OptionError) Unwrap() error { return syscall.EINVAL }

// flagOptions take no value.
var flagOptions = map[string]func(*Options){
	"allow_other":            func(o *Options) { o.AllowOther = true },
	"default_permissions":    func(o *Options) { o.NoDefaultPermissions = false },
	"no_default_permissions": func(o *Options) { o.NoDefaultPermissions = true },
	"debug":                  func(o *Options) { o.Debug = true },

	"ro":            func(o *Options) { o.ReadOnly = true },
	"rw":            func(o *Options) { o.ReadOnly = false },
	"exec":          func(o *Options) { o.NoExec = false },
	"noexec":        func(o *Options) { o.NoExec = true },
	"suid":          func(o *Options) { o.Suid = true },
	"nosuid":        func(o *Options) { o.Suid = false },
	"dev":           func(o *Options) { o.Dev = true },
	"nodev":         func(o *Options) { o.Dev = false },
	"atime":         func(o *Options) { o.NoAtime = false },
	"noatime":       func(o *Options) { o.NoAtime, o.StrictAtime = true, false },
	"diratime":      func(o *Options) { o.NoDirAtime = false },
	"nodiratime":    func(o *Options) { o.NoDirAtime = true },
	"relatime":      func(o *Options) { o.NoAtime, o.StrictAtime = false, false },
	"strictatime":   func(o *Options) { o.NoAtime, o.StrictAtime = false, true },
	"nostrictatime": func(o *Options) { o.StrictAtime = false },
	"sync":          func(o *Options) { o.Sync = true },
	"async":         func(o *Options) { o.Sync = false },
	"dirsync":       func(o *Options) { o.DirSync = true },
}

// ignoredOptions are what fstab and mount(8) say to each other, and flags that
// mean nothing here.
var ignoredOptions = map[string]bool{
	"defaults": true, "auto": true, "noauto": true, "_netdev": true, "nofail": true,
	"user": true, "nouser": true, "users": true, "nousers": true, "owner": true, "noowner": true,
	"group": true, "nogroup": true, "comment": true,
	"norelatime": true, "lazytime": true, "nolazytime": true, "iversion": true, "noiversion": true,
	"mand": true, "nomand": true, "silent": true, "loud": true,
}

// valueOptions take a value.
var valueOptions = map[string]func(o *Options, v string) error{
	"fsname":   func(o *Options, v string) error { return text(&o.FSName, v) },
	"exporter": func(o *Options, v string) error { return text(&o.Exporter, v) },
	"size":     func(o *Options, v string) error { return bytesAbove0(&o.Size, v) },
	"nr_buffers": func(o *Options, v string) error {
		return countAbove0(&o.NrBuffers, v)
	},
	"nr_fences": func(o *Options, v string) error {
		return countAbove0(&o.NrFences, v)
	},
	"contiguous": func(o *Options, v string) error {
		n, err := parseSize(v)
		if n == 0 {
			n = -1
		}
		o.Contiguous = n
		return err
	},
	"fault": func(o *Options, v string) error {
		o.Fault = v
		return checkFault(v)
	},
	"fence_timeout": func(o *Options, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return fmt.Errorf("want a duration, such as 10s, 1m30s or 0")
		}
		o.FenceTimeout = d
		return nil
	},
	"uid": func(o *Options, v string) error {
		o.uidSet = true
		return parseID(&o.UID, v)
	},
	"gid": func(o *Options, v string) error {
		o.gidSet = true
		return parseID(&o.GID, v)
	},
	"mode": func(o *Options, v string) error {
		m, err := strconv.ParseUint(v, 8, 32)
		if err != nil || m > 0o7777 || m == 0 {
			return fmt.Errorf("want octal permissions, 1 to 7777")
		}
		o.Mode = uint32(m)
		return nil
	},
}

// OptionNames lists the mount options that dmabuffs itself knows, without those
// that mount(2) has for every file system; a value follows where the name ends in "=".
func OptionNames() []string {
	return []string{
		"allow_other", "contiguous=", "debug", "default_permissions", "exporter=", "fault=",
		"fence_timeout=", "fsname=", "gid=", "mode=", "no_default_permissions", "nr_buffers=",
		"nr_fences=", "ro", "size=", "uid=",
	}
}

// ParseOptions reads a list of mount options, separated by commas; a backslash
// takes the meaning from the comma or backslash behind it. Of options that contradict
// each other the last one counts. What fstab(5) and mount(8) tell each other (defaults,
// noauto, _netdev, user, x-…) is passed over. Errors: *OptionError, an EINVAL, for
// an option that is unknown, lacks its value, or has a bad one.
func ParseOptions(list string) (Options, error) {
	var o Options
	items, err := splitOptions(list)
	if err != nil {
		return Options{}, err
	}
	for _, item := range items {
		if err := o.set(item); err != nil {
			return Options{}, err
		}
	}
	if err := o.validate(); err != nil {
		return Options{}, err
	}
	return o, nil
}

func (o *Options) set(item string) error {
	name, value, hasValue := strings.Cut(item, "=")
	lower := strings.ToLower(name)
	switch {
	case name == "" && !hasValue, ignoredOptions[name], strings.HasPrefix(lower, "x-"):
		return nil
	case flagOptions[name] != nil:
		if hasValue {
			return &OptionError{Option: item, Reason: "takes no value"}
		}
		flagOptions[name](o)
		return nil
	case valueOptions[name] != nil:
		if !hasValue || value == "" {
			return &OptionError{Option: item, Reason: "needs a value: " + name + "=…"}
		}
		if err := valueOptions[name](o, value); err != nil {
			return &OptionError{Option: item, Reason: err.Error()}
		}
		return nil
	case name == "remount":
		return &OptionError{Option: item, Reason: "not supported: unmount, then mount anew"}
	}
	return &OptionError{Option: item, Reason: "unknown", Unknown: true}
}

// splitOptions cuts at the commas that no backslash stands before.
func splitOptions(list string) ([]string, error) {
	if strings.ContainsAny(list, "\x00\n") {
		return nil, &OptionError{Option: list, Reason: "a NUL or a line break"}
	}
	var out []string
	var cur strings.Builder
	for i := 0; i < len(list); i++ {
		switch c := list[i]; {
		case c == '\\' && i+1 < len(list) && (list[i+1] == ',' || list[i+1] == '\\'):
			i++
			cur.WriteByte(list[i])
		case c == ',':
			out = append(out, cur.String())
			cur.Reset()
		default:
			cur.WriteByte(c)
		}
	}
	return append(out, cur.String()), nil
}

// escapeOption is splitOptions' other direction.
func escapeOption(s string) string {
	return strings.NewReplacer(`\`, `\\`, `,`, `\,`).Replace(s)
}

// validate checks what a Go program may have set as well. Errors: *OptionError.
func (o *Options) validate() error {
	bad := func(option, reason string) error { return &OptionError{Option: option, Reason: reason} }
	switch {
	case checkFault(o.Fault) != nil:
		return bad("fault="+o.Fault, checkFault(o.Fault).Error())
	case o.Size < 0:
		return bad(fmt.Sprintf("size=%d", o.Size), "negative")
	case o.NrBuffers < 0:
		return bad(fmt.Sprintf("nr_buffers=%d", o.NrBuffers), "negative")
	case o.NrFences < 0:
		return bad(fmt.Sprintf("nr_fences=%d", o.NrFences), "negative")
	case o.FenceTimeout < 0:
		return bad(fmt.Sprintf("fence_timeout=%v", o.FenceTimeout), "negative")
	case o.Mode > 0o7777:
		return bad(fmt.Sprintf("mode=%o", o.Mode), "want octal permissions, 1 to 7777")
	case o.AllowOther && o.NoDefaultPermissions:
		return bad("no_default_permissions", "not together with allow_other: everybody could do everything")
	case strings.ContainsAny(o.FSName, "\x00\n"):
		return bad("fsname="+o.FSName, "a NUL or a line break")
	}
	return nil
}

// fill puts the defaults in the places of what was left zero.
func (o *Options) fill() {
	if o.FSName == "" {
		o.FSName = "dmabuffs"
	}
	if o.Exporter == "" {
		o.Exporter = DefaultExporter
	}
	if o.Size == 0 {
		o.Size = usableMemory() / 2
	}
	o.Size = roundUpPage(o.Size)
	if o.NrBuffers == 0 {
		o.NrBuffers = DefaultNrBuffers
	}
	if o.NrFences == 0 {
		o.NrFences = DefaultNrFences
	}
	switch {
	case o.Contiguous == 0:
		o.Contiguous = min(DefaultContiguous, o.Size)
	case o.Contiguous < 0:
		o.Contiguous = 0
	}
	o.Contiguous = roundUpPage(o.Contiguous)
	if o.Fault == "" {
		o.Fault = FaultAllow
	}
	if o.UID == 0 && !o.uidSet {
		o.UID = uint32(os.Geteuid())
	}
	if o.GID == 0 && !o.gidSet {
		o.GID = uint32(os.Getegid())
	}
	if o.Mode == 0 {
		o.Mode = DefaultMode
	}
}

func roundUpPage(n int64) int64 {
	if n > math.MaxInt64-4095 {
		return math.MaxInt64 &^ 4095
	}
	return (n + 4095) &^ 4095
}

func checkFault(v string) error {
	switch v {
	case "", FaultAllow, FaultWait:
		return nil
	}
	return fmt.Errorf("want allow or wait")
}

func text(to *string, v string) error {
	*to = v
	return nil
}

func bytesAbove0(to *int64, v string) error {
	n, err := parseSize(v)
	if err == nil && n == 0 {
		err = fmt.Errorf("want more than 0")
	}
	*to = n
	return err
}

func countAbove0(to *int64, v string) error {
	n, err := parseNumber(v)
	if err == nil && n == 0 {
		err = fmt.Errorf("want more than 0")
	}
	*to = n
	return err
}

// parseID reads a user or group number; all ones means "nobody's" to the kernel.
func parseID(to *uint32, v string) error {
	n, err := strconv.ParseUint(v, 10, 32)
	if err != nil || n == math.MaxUint32 {
		return fmt.Errorf("want a number below 4294967295")
	}
	*to = uint32(n)
	return nil
}

// parseSize reads bytes, or per cent of memory.
func parseSize(v string) (int64, error) {
	pc, ok := strings.CutSuffix(v, "%")
	if !ok {
		return parseNumber(v)
	}
	n, err := strconv.ParseUint(pc, 10, 32)
	if err != nil || n > 100 {
		return 0, fmt.Errorf("want 1%% to 100%% of memory")
	}
	return roundUpPage(usableMemory() / 100 * int64(n)), nil
}

// parseNumber reads a decimal number with k, m, g, t, p or e behind it, as the
// kernel's memparse does. Only digits: ParseUint alone would take "+1".
func parseNumber(v string) (int64, error) {
	const want = "want a number, with k, m, g or t behind it"
	digits, shift := v, 0
	if i := len(v) - 1; i >= 0 {
		if s := strings.IndexByte("kmgtpe", v[i]|0x20); s >= 0 {
			digits, shift = v[:i], 10*(s+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	switch {
	case err != nil && strings.Trim(digits, "0123456789") == "" && digits != "":
		return 0, fmt.Errorf("larger than 2^63-1")
	case err != nil:
		return 0, errors.New(want)
	case n > math.MaxInt64>>shift:
		return 0, fmt.Errorf("larger than 2^63-1")
	}
	return int64(n << shift), nil
}
