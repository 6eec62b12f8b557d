package fs

import (
	"errors"
	"math"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestParseOptions(t *testing.T) {
	mem := usableMemory()
	for list, want := range map[string]Options{
		"":                          {},
		",,":                        {},
		"rw":                        {},
		"fsname=pool":               {FSName: "pool"},
		`fsname=a\,b\\c`:            {FSName: `a,b\c`},
		"fsname=a=b":                {FSName: "a=b"},
		"allow_other":               {AllowOther: true},
		"default_permissions":       {},
		"no_default_permissions":    {NoDefaultPermissions: true},
		"ro":                        {ReadOnly: true},
		"ro,rw":                     {},
		"noexec":                    {NoExec: true},
		"noexec,exec":               {},
		"suid":                      {Suid: true},
		"suid,nosuid":               {},
		"dev":                       {Dev: true},
		"dev,nodev":                 {},
		"noatime":                   {NoAtime: true},
		"noatime,atime":             {},
		"noatime,relatime":          {},
		"nodiratime":                {NoDirAtime: true},
		"nodiratime,diratime":       {},
		"strictatime":               {StrictAtime: true},
		"strictatime,noatime":       {NoAtime: true},
		"strictatime,nostrictatime": {},
		"sync":                      {Sync: true},
		"sync,async":                {},
		"dirsync":                   {DirSync: true},
		"exporter=coherent":         {Exporter: "coherent"},
		"size=4096":                 {Size: 4096},
		"size=64m":                  {Size: 64 << 20},
		"size=64M":                  {Size: 64 << 20},
		"size=1g":                   {Size: 1 << 30},
		"size=3k":                   {Size: 3 << 10},
		"size=2T":                   {Size: 2 << 40},
		"size=7e":                   {Size: 7 << 60},
		"size=9223372036854775807":  {Size: math.MaxInt64},
		"size=50%":                  {Size: roundUpPage(mem / 100 * 50)},
		"size=1g,size=2g":           {Size: 2 << 30},
		"nr_buffers=7":              {NrBuffers: 7},
		"nr_buffers=2k":             {NrBuffers: 2048},
		"nr_fences=1m":              {NrFences: 1 << 20},
		"contiguous=16m":            {Contiguous: 16 << 20},
		"contiguous=0":              {Contiguous: -1},
		"fault=allow":               {Fault: "allow"},
		"fault=wait":                {Fault: "wait"},
		"fence_timeout=10s":         {FenceTimeout: 10 * time.Second},
		"fence_timeout=1m30s":       {FenceTimeout: 90 * time.Second},
		"fence_timeout=0":           {},
		"uid=0":                     {uidSet: true},
		"uid=1000,gid=1001":         {UID: 1000, GID: 1001, uidSet: true, gidSet: true},
		"mode=0755":                 {Mode: 0o755},
		"mode=1777":                 {Mode: 0o1777},
		"debug":                     {Debug: true},
		"defaults,noauto,auto,_netdev,nofail,user,users,nouser,owner,group,user=joe": {},
		"x-systemd.automount,x-gvfs-show=1,X-mount.mkdir,comment=hello":              {},
		"rw,nosuid,nodev,relatime,size=1m,exporter=system":                           {Size: 1 << 20, Exporter: "system"},
	} {
		got, err := ParseOptions(list)
		if err != nil {
			t.Errorf("%q: %v", list, err)
		} else if got != want {
			t.Errorf("%q:\n got %+v\nwant %+v", list, got, want)
		}
	}
}

func TestParseOptionsRefused(t *testing.T) {
	for _, tt := range []struct{ list, option, reason string }{
		{"bogus", "bogus", "unknown"},
		{"ro,bogus=1,size=1m", "bogus=1", "unknown"},
		{"Size=1m", "Size=1m", "unknown"},
		{"=1", "=1", "unknown"},
		{" ro", " ro", "unknown"},
		{"remount", "remount", "not supported"},
		{"ro=1", "ro=1", "no value"},
		{"allow_other=", "allow_other=", "no value"},
		{"size", "size", "needs a value"},
		{"size=", "size=", "needs a value"},
		{"fsname=", "fsname=", "needs a value"},
		{"size=0", "size=0", "more than 0"},
		{"size=0%", "size=0%", "more than 0"},
		{"size=101%", "size=101%", "per cent|100%"},
		{"size=-1", "size=-1", "number"},
		{"size=+1", "size=+1", "number"},
		{"size=0x10", "size=0x10", "number"},
		{"size=m", "size=m", "number"},
		{"size=1mm", "size=1mm", "number"},
		{"size=1.5g", "size=1.5g", "number"},
		{"size=1_000", "size=1_000", "number"},
		{"size=9223372036854775808", "size=9223372036854775808", "2^63-1"},
		{"size=99999999999999999999999", "size=99999999999999999999999", "2^63-1"},
		{"size=8e", "size=8e", "2^63-1"},
		{"nr_buffers=0", "nr_buffers=0", "more than 0"},
		{"nr_buffers=50%", "nr_buffers=50%", "number"},
		{"nr_fences=x", "nr_fences=x", "number"},
		{"contiguous=x", "contiguous=x", "number"},
		{"fault=maybe", "fault=maybe", "allow or wait"},
		{"fence_timeout=10", "fence_timeout=10", "duration"},
		{"fence_timeout=-1s", "fence_timeout=-1s", "duration"},
		{"uid=joe", "uid=joe", "number"},
		{"uid=-1", "uid=-1", "number"},
		{"gid=4294967295", "gid=4294967295", "number"},
		{"mode=8", "mode=8", "octal"},
		{"mode=0", "mode=0", "octal"},
		{"mode=17777", "mode=17777", "octal"},
		{"allow_other,no_default_permissions", "no_default_permissions", "not together"},
		{"fsname=a\nb", "fsname=a\nb", "line break"},
		{"fsname=a\x00b", "fsname=a\x00b", "NUL"},
	} {
		_, err := ParseOptions(tt.list)
		var oe *OptionError
		if !errors.As(err, &oe) {
			t.Errorf("%q: %v, want an OptionError", tt.list, err)
			continue
		}
		if oe.Option != tt.option {
			t.Errorf("%q: names %q, want %q", tt.list, oe.Option, tt.option)
		}
		if oe.Unknown != (tt.reason == "unknown") {
			t.Errorf("%q: Unknown is %v", tt.list, oe.Unknown)
		}
		found := false
		for _, r := range strings.Split(tt.reason, "|") {
			found = found || strings.Contains(oe.Reason, r)
		}
		if !found {
			t.Errorf("%q: reason %q, want something with %q", tt.list, oe.Reason, tt.reason)
		}
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%q: %v is no EINVAL", tt.list, err)
		}
	}
}

func TestOptionsValidate(t *testing.T) {
	for _, o := range []Options{
		{Size: -1}, {NrBuffers: -1}, {NrFences: -1}, {FenceTimeout: -1}, {Fault: "later"}, {Mode: 0o10000},
		{AllowOther: true, NoDefaultPermissions: true}, {FSName: "a\nb"},
	} {
		if err := o.validate(); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%+v: %v, want EINVAL", o, err)
		}
	}
}

func TestOptionsDefaults(t *testing.T) {
	var o Options
	o.fill()
	want := Options{
		FSName: "dmabuffs", Exporter: "system", Size: roundUpPage(usableMemory() / 2),
		NrBuffers: 1 << 20, NrFences: 1 << 20, Contiguous: 64 << 20, Fault: "allow",
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Mode: 0o1777,
	}
	if o != want {
		t.Errorf("got %+v\nwant %+v", o, want)
	}
	small := Options{Size: 5000}
	small.fill()
	if small.Size != 8192 || small.Contiguous != 8192 {
		t.Errorf("size %d, contiguous %d; want both 8192", small.Size, small.Contiguous)
	}
	none := Options{Contiguous: -1}
	none.fill()
	if none.Contiguous != 0 {
		t.Errorf("contiguous %d, want none", none.Contiguous)
	}
	root, err := ParseOptions("uid=0,gid=0")
	if err != nil {
		t.Fatal(err)
	}
	root.fill()
	if root.UID != 0 || root.GID != 0 {
		t.Errorf("uid=0,gid=0 became %d, %d", root.UID, root.GID)
	}
}

// Every option that is advertised is one that is parsed.
func TestOptionNames(t *testing.T) {
	for _, name := range OptionNames() {
		name, value := strings.CutSuffix(name, "=")
		switch {
		case value && valueOptions[name] == nil:
			t.Errorf("%s= is not parsed", name)
		case !value && flagOptions[name] == nil:
			t.Errorf("%s is not parsed", name)
		}
	}
	have := strings.Join(OptionNames(), " ")
	for name := range valueOptions {
		if !strings.Contains(have, name+"=") {
			t.Errorf("%s= is not listed", name)
		}
	}
}

func TestFusermountOptions(t *testing.T) {
	o, err := ParseOptions(`fsname=a\,b,ro,noexec,allow_other,noatime`)
	if err != nil {
		t.Fatal(err)
	}
	want := `fsname=a\,b,subtype=dmabuffs,default_permissions,allow_other,ro,nosuid,nodev,noexec,noatime`
	if got := o.fusermountOptions(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := o.mountFlags(), uintptr(syscall.MS_RDONLY|syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC|syscall.MS_NOATIME); got != want {
		t.Errorf("flags %#x, want %#x", got, want)
	}
}

// What parses is sound, and what is refused is named.
func FuzzParseOptions(f *testing.F) {
	for _, seed := range []string{
		"", "ro,allow_other,size=64m,nr_buffers=5,nr_fences=9", "size=50%,contiguous=0",
		`fsname=a\,b\\,uid=1,gid=2,mode=0755`, "fault=wait,fence_timeout=10s,exporter=coherent",
		"defaults,_netdev,x-systemd.automount", "size=9223372036854775807", "size=8e", "bogus=,,=", "\\", "a\\,", "mode=99999999999",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		o, err := ParseOptions(list)
		if err != nil {
			var oe *OptionError
			if !errors.As(err, &oe) {
				t.Fatalf("%q: %v is no OptionError", list, err)
			}
			return
		}
		if err := o.validate(); err != nil {
			t.Fatalf("%q parsed, but: %v", list, err)
		}
		o.fill()
		switch {
		case o.Size <= 0 || o.Size%4096 != 0, o.Contiguous < 0 || o.Contiguous%4096 != 0,
			o.NrBuffers <= 0, o.NrFences <= 0, o.FenceTimeout < 0, o.Mode == 0 || o.Mode > 0o7777, o.FSName == "", o.Exporter == "":
			t.Fatalf("%q: %+v", list, o)
		}
		if items, err := splitOptions("fsname=" + escapeOption(o.FSName)); err != nil || len(items) != 1 || items[0] != "fsname="+o.FSName {
			t.Fatalf("%q: name %q does not survive: %q, %v", list, o.FSName, items, err)
		}
	})
}
