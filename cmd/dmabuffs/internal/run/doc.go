// Package run runs a program that finds /dev/udmabuf, /dev/dma_heap and sw_sync
// where there are none: `dmabuffs run -- CMD`.
//
// # The processes
//
//	run         what the user started. It mounts a dmabuffs of its own, which is attached nowhere, serves it,
//	│           and passes signals on. It exits with CMD's status when the last process of CMD has ended
//	└ supervisor  answers the notifications. It reaps what CMD leaves behind
//	  └ exec      installs the filter on itself, hands the listener to the supervisor, and becomes CMD
//
// All but CMD are this program once more, under other names (argv[0], see stages):
// Go cannot fork. The order is the daemon before the supervisor before CMD, since
// with kernel.yama.ptrace_scope=1 only ancestors may look into a process' memory,
// and both have to. None of them is in another namespace than CMD; an ordinary
// user's mount(2) is made by one more process, in a user and mount namespace, that
// ends when it has passed the mount on (mount_linux.go).
//
// # A call
//
// The filter (filter_linux.go) lets everything pass but the system calls and request
// numbers that it names. Those stop the calling thread, and a worker of the
// supervisor receives a notification:
//
//	RECV                      the call: thread, number, arguments
//	look                      at the path, or at what the descriptor is (statx of /proc/TID/fd/N)
//	  not ours                CONTINUE: the kernel goes on as if nothing had been
//	check, then make it       by an ioctl on the mount's .control/ctl (fs/control.go), and open(2) what that made
//	ADDFD, or a value         the descriptor arrives with the answer
//
// Where the number of the descriptor goes into a struct, it is written there between ADDFD and the
// answer; that it can be written was tried before, so that EFAULT leaves no
// descriptor behind. What the number of a thread means is only certain while its
// notification lives: before each write to memory that is asked for (ID_VALID), and what was read
// comes to nothing if the answer finds nobody.
//
// # Threads
//
// Workers have threads of their own on which every signal is blocked: an ADDFD that
// carries the answer along and is interrupted gives the caller 0 instead of the
// descriptor, and Go's scheduler interrupts threads by SIGURG. One worker receives
// at a time, since the kernel would wake all of them for each call. A worker that a call
// keeps (a caller's memory may be backed by whom it likes) is replaced after a moment, by up to
// maxWorkers; what comes beyond waits in the kernel, on the caller's account.
package run
