/*
 * deny CALL[,CALL...] CMD ARGS: runs CMD where these are refused with EPERM, as a container's profile does:
 * seccomp (with every operation), fsopen, userns (clone and unshare of a user namespace).
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define REFUSE BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static void install(struct sock_filter *f, unsigned short n)
{
	struct sock_fprog prog = {n, f};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog)) {
		perror("deny");
		_exit(99);
	}
}

static void call(unsigned nr)
{
	struct sock_filter f[] = {LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), REFUSE, ALLOW};
	install(f, sizeof(f) / sizeof(*f));
}

static void flag(unsigned nr, unsigned bit)
{
	struct sock_filter f[] = {
		LOAD(nr), BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 3),
		LOAD(args[0]), BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, bit, 0, 1), REFUSE, ALLOW,
	};
	install(f, sizeof(f) / sizeof(*f));
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 99;
	for (char *what = strtok(argv[1], ","); what; what = strtok(NULL, ",")) {
		if (!strcmp(what, "seccomp")) {
			call(__NR_seccomp);
		} else if (!strcmp(what, "fsopen")) {
			call(__NR_fsopen);
		} else if (!strcmp(what, "userns")) {
			flag(__NR_clone, CLONE_NEWUSER);
			flag(__NR_unshare, CLONE_NEWUSER);
		} else {
			return 99;
		}
	}
	execvp(argv[2], argv + 2);
	perror(argv[2]);
	return 99;
}
