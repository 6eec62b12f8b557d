package run

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// Calls that newer architectures do without.
const (
	sysOpen     = unix.SYS_OPEN
	sysCreat    = unix.SYS_CREAT
	sysStat     = unix.SYS_STAT
	sysLstat    = unix.SYS_LSTAT
	sysAccess   = unix.SYS_ACCESS
	sysReadlink = unix.SYS_READLINK
	sysFstatat  = unix.SYS_NEWFSTATAT
)
