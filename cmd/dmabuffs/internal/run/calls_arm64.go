package run

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// Calls that this architecture does without: numbers that no call has.
const (
	sysOpen = ^uint32(0) - iota
	sysCreat
	sysStat
	sysLstat
	sysAccess
	sysReadlink

	sysFstatat = unix.SYS_FSTATAT
)
