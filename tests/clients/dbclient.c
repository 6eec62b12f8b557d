/*
 * dbclient: a process that uses a dmabuffs mount as a test tells it to.
 *
 *	dbclient                 commands from standard input, one a line
 *	dbclient CMD...          each argument is one command
 *
 * Every command is answered by one line: "ok", then what it gives, or "error ENAME".
 * Words are separated by blanks. Files and mappings have names that the test chooses;
 * numbers are decimal, or hexadecimal with 0x; bytes are hexadecimal.
 */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dma-buf.h>
#include <linux/sync_file.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef DMA_BUF_IOCTL_IMPORT_SYNC_FILE
struct dma_buf_export_sync_file { uint32_t flags; int32_t fd; };
struct dma_buf_import_sync_file { uint32_t flags; int32_t fd; };
#define DMA_BUF_IOCTL_EXPORT_SYNC_FILE _IOWR('b', 2, struct dma_buf_export_sync_file)
#define DMA_BUF_IOCTL_IMPORT_SYNC_FILE _IOW('b', 3, struct dma_buf_import_sync_file)
#endif

enum { PAGE = 4096, MAX_NAMED = 1024, MAX_WORDS = 24 };

struct named {
	char name[24];
	int fd;         /* -1: none */
	char *map;      /* NULL: none */
	size_t len;
};

static struct named named[MAX_NAMED];

static char **word;     /* of the command, word[0] is its name */
static int words;

/* answer, or fail with errno */
static void ok(void) { puts("ok"); }
static void fail_with(int e) { printf("error %s\n", strerrorname_np(e) ? strerrorname_np(e) : "?"); }
static void fail(void) { fail_with(errno); }
static void done(long r) { r < 0 ? fail() : ok(); }
static void number(long long r) { r < 0 ? fail() : (void)printf("ok %lld\n", r); }

static void usage(const char *why)
{
	fprintf(stderr, "dbclient: %s: %s\n", words > 0 ? word[0] : "?", why);
	exit(2);
}

static char *arg(int i)
{
	if (i >= words)
		usage("too few words");
	return word[i];
}

static uint64_t num(int i)
{
	char *end;
	const char *s = arg(i);
	errno = 0;
	uint64_t v = s[0] == '-' ? (uint64_t)strtoll(s, &end, 0) : strtoull(s, &end, 0);
	if (errno || *end || end == s)
		usage("no number");
	return v;
}

static struct named *find(const char *name)
{
	for (int i = 0; i < MAX_NAMED; i++)
		if (strcmp(named[i].name, name) == 0)
			return &named[i];
	return NULL;
}

static struct named *get(int i)
{
	struct named *n = find(arg(i));
	if (!n)
		usage("no such name");
	return n;
}

static int fd_of(int i)
{
	const char *s = arg(i);
	if (s[0] == '#')        /* the number itself */
		return atoi(s + 1);
	return get(i)->fd;
}

static struct named *make(int i)
{
	const char *name = arg(i);
	if (find(name))
		usage("name is taken");
	struct named *n = find("");
	if (!n || strlen(name) >= sizeof n->name)
		usage("name is too long, or one too many");
	strcpy(n->name, name);
	n->fd = -1;
	return n;
}

static void drop(struct named *n) { memset(n, 0, sizeof *n), n->fd = -1; }

static void keep_fd(int i, int fd)
{
	if (fd < 0) {
		fail();
		return;
	}
	make(i)->fd = fd;
	printf("ok %d\n", fd);
}

/* a load or store that may raise SIGBUS or SIGSEGV */
static sigjmp_buf fault_jump;
static volatile sig_atomic_t fault_armed, faulted, alarms;

static void on_fault(int sig)
{
	if (!fault_armed)
		_exit(128 + sig);
	faulted = sig;
	siglongjmp(fault_jump, 1);
}

static void on_alarm(int sig) { (void)sig, alarms++; }

#define GUARDED(access)                                                             \
	do {                                                                        \
		if (sigsetjmp(fault_jump, 1)) {                                     \
			fault_armed = 0;                                            \
			printf("error %s\n", faulted == SIGBUS ? "SIGBUS" : "SIGSEGV"); \
			return;                                                     \
		}                                                                   \
		fault_armed = 1;                                                    \
		access;                                                             \
		fault_armed = 0;                                                    \
	} while (0)

static int open_flags(const char *s)
{
	int flags = 0;
	char *copy = strdup(s), *save = NULL;
	for (char *f = strtok_r(copy, ",", &save); f; f = strtok_r(NULL, ",", &save)) {
		static const struct { const char *name; int flag; } all[] = {
			{ "r", O_RDONLY }, { "w", O_WRONLY }, { "rw", O_RDWR }, { "creat", O_CREAT }, { "excl", O_EXCL },
			{ "trunc", O_TRUNC }, { "append", O_APPEND }, { "nonblock", O_NONBLOCK }, { "path", O_PATH },
			{ "direct", O_DIRECT }, { "cloexec", O_CLOEXEC },
		};
		size_t i = 0;
		while (i < sizeof all / sizeof *all && strcmp(all[i].name, f))
			i++;
		if (i == sizeof all / sizeof *all)
			usage("unknown open flag");
		flags |= all[i].flag;
	}
	free(copy);
	return flags;
}

static void cmd_open(void) { keep_fd(1, open(arg(2), open_flags(arg(3)), 0644)); }
static void cmd_dup(void) { int fd = dup(fd_of(1)); keep_fd(2, fd); }

static void cmd_close(void)
{
	struct named *n = get(1);
	long r = close(n->fd);
	drop(n);
	done(r);
}

static int prot_of(const char *s)
{
	int prot = PROT_NONE;
	for (; *s; s++)
		prot |= *s == 'r' ? PROT_READ : *s == 'w' ? PROT_WRITE : *s == 'x' ? PROT_EXEC : 0;
	return prot;
}

/* map M FILE LENGTH OFFSET PROT [private] */
static void cmd_map(void)
{
	int flags = words > 6 && strcmp(word[6], "private") == 0 ? MAP_PRIVATE : MAP_SHARED;
	size_t len = num(3);
	char *p = mmap(NULL, len, prot_of(arg(5)), flags, fd_of(2), (off_t)num(4));
	if (p == MAP_FAILED) {
		fail();
		return;
	}
	struct named *n = make(1);
	n->map = p;
	n->len = len;
	ok();
}

static void cmd_unmap(void)
{
	struct named *n = get(1);
	long r = munmap(n->map, n->len);
	drop(n);
	done(r);
}

/* grow M LENGTH: mremap(2) */
static void cmd_mremap(void)
{
	struct named *n = get(1);
	char *p = mremap(n->map, n->len, num(2), MREMAP_MAYMOVE);
	if (p == MAP_FAILED) {
		fail();
		return;
	}
	n->map = p;
	n->len = num(2);
	ok();
}

static void cmd_set(void)       /* set M OFFSET VALUE: a store of 8 bytes */
{
	volatile uint64_t *p = (volatile uint64_t *)(get(1)->map + num(2));
	uint64_t v = num(3);
	GUARDED(*p = v);
	ok();
}

static void cmd_get(void)       /* get M OFFSET: a load of 8 bytes */
{
	volatile uint64_t *p = (volatile uint64_t *)(get(1)->map + num(2));
	uint64_t v;
	GUARDED(v = *p);
	printf("ok 0x%" PRIx64 "\n", v);
}

/* fill M OFFSET LENGTH VALUE: the same 8 bytes everywhere */
static void cmd_fill(void)
{
	char *p = get(1)->map + num(2);
	size_t n = num(3);
	uint64_t v = num(4);
	GUARDED(for (size_t i = 0; i + 8 <= n; i += 8) memcpy(p + i, &v, 8));
	ok();
}

/* check M OFFSET LENGTH VALUE: gives how many of the words are something else, and the first of them */
static void cmd_check(void)
{
	char *p = get(1)->map + num(2);
	size_t n = num(3), wrong = 0, first = 0;
	uint64_t v = num(4);
	GUARDED(for (size_t i = 0; i + 8 <= n; i += 8) {
		uint64_t w;
		memcpy(&w, p + i, 8);
		if (w != v && wrong++ == 0)
			first = i;
	});
	printf("ok %zu", wrong);
	if (wrong)
		printf(" at %zu", first);
	putchar('\n');
}

static void cmd_touch(void)     /* touch M OFFSET LENGTH: a load of each page */
{
	volatile char *p = get(1)->map + num(2);
	size_t n = num(3);
	GUARDED(for (size_t i = 0; i < n; i += PAGE) (void)p[i]);
	ok();
}

static void put_hex(const unsigned char *p, size_t n)
{
	fputs("ok ", stdout);
	for (size_t i = 0; i < n; i++)
		printf("%02x", p[i]);
	putchar('\n');
}

static size_t from_hex(const char *s, unsigned char **out)
{
	size_t n = strlen(s) / 2;
	unsigned char *p = malloc(n + 1);
	for (size_t i = 0; i < n; i++) {
		unsigned v;
		if (sscanf(s + 2 * i, "%2x", &v) != 1)
			usage("no hexadecimal bytes");
		p[i] = (unsigned char)v;
	}
	*out = p;
	return n;
}

static void cmd_read(void)      /* read FILE LENGTH: read(2) */
{
	size_t n = num(2);
	unsigned char *p = malloc(n + 1);
	ssize_t r = read(fd_of(1), p, n);
	r < 0 ? fail() : put_hex(p, (size_t)r);
	free(p);
}

static void cmd_text(void)      /* text FILE: the bytes of one pread(2) at 0, newlines as | */
{
	char p[65536];
	ssize_t r = pread(fd_of(1), p, sizeof p, 0);
	if (r < 0) {
		fail();
		return;
	}
	fputs("ok ", stdout);
	for (ssize_t i = 0; i < r; i++)
		putchar(p[i] == '\n' ? '|' : p[i]);
	putchar('\n');
}

static void cmd_pread(void)     /* pread FILE LENGTH OFFSET */
{
	size_t n = num(2);
	unsigned char *p = malloc(n + 1);
	ssize_t r = pread(fd_of(1), p, n, (off_t)num(3));
	r < 0 ? fail() : put_hex(p, (size_t)r);
	free(p);
}

static void cmd_pwrite(void)    /* pwrite FILE BYTES OFFSET */
{
	unsigned char *p;
	size_t n = from_hex(arg(2), &p);
	number(pwrite(fd_of(1), p, n, (off_t)num(3)));
	free(p);
}

static void cmd_write(void)     /* write FILE BYTES */
{
	unsigned char *p;
	size_t n = from_hex(arg(2), &p);
	number(write(fd_of(1), p, n));
	free(p);
}

static void cmd_say(void)       /* say FILE TEXT: write(2) of a line */
{
	char line[512];
	int n = snprintf(line, sizeof line, "%s\n", arg(2));
	number(write(fd_of(1), line, (size_t)n));
}

static void cmd_lseek(void)     /* lseek FILE OFFSET WHENCE */
{
	number(lseek(fd_of(1), (off_t)num(2), (int)num(3)));
}

static void cmd_ftruncate(void) { done(ftruncate(fd_of(1), (off_t)num(2))); }
static void cmd_fallocate(void) { done(fallocate(fd_of(1), (int)num(2), (off_t)num(3), (off_t)num(4))); }
static void cmd_fsync(void) { done(fsync(fd_of(1))); }
static void cmd_msync(void) { struct named *n = get(1); done(msync(n->map, n->len, MS_SYNC)); }

static void cmd_fstat(void)
{
	struct stat st;
	if (fstat(fd_of(1), &st) < 0) {
		fail();
		return;
	}
	printf("ok mode=%o size=%lld blocks=%lld ino=%llu nlink=%llu\n", st.st_mode, (long long)st.st_size,
	       (long long)st.st_blocks, (unsigned long long)st.st_ino, (unsigned long long)st.st_nlink);
}

static short poll_events(const char *s)
{
	static const struct { const char *name; short bit; } all[] = {
		{ "in", POLLIN }, { "out", POLLOUT }, { "pri", POLLPRI }, { "rdnorm", POLLRDNORM }, { "wrnorm", POLLWRNORM },
		{ "rdhup", POLLRDHUP }, { "none", 0 },
	};
	short ev = 0;
	char *copy = strdup(s), *save = NULL;
	for (char *f = strtok_r(copy, ",", &save); f; f = strtok_r(NULL, ",", &save)) {
		size_t i = 0;
		while (i < sizeof all / sizeof *all && strcmp(all[i].name, f))
			i++;
		if (i == sizeof all / sizeof *all)
			usage("unknown event");
		ev |= all[i].bit;
	}
	free(copy);
	return ev;
}

static void put_events(uint32_t ev)
{
	fputs("ok", stdout);
	if (ev & POLLIN)
		fputs(" in", stdout);
	if (ev & POLLOUT)
		fputs(" out", stdout);
	if (ev & POLLERR)
		fputs(" err", stdout);
	if (ev & POLLHUP)
		fputs(" hup", stdout);
	if (ev & ~(uint32_t)(POLLIN | POLLOUT | POLLERR | POLLHUP))
		printf(" other:%x", ev);
	putchar('\n');
}

static void cmd_poll(void)      /* poll FILE EVENTS MILLISECONDS */
{
	struct pollfd p = { .fd = fd_of(1), .events = poll_events(arg(2)) };
	if (poll(&p, 1, (int)num(3)) < 0)
		fail();
	else
		put_events((uint16_t)p.revents);
}

static void cmd_select(void)    /* select FILE rwe MILLISECONDS: gives the letters that are ready */
{
	int fd = fd_of(1);
	long ms = (long)num(3);
	fd_set sets[3];
	fd_set *use[3] = { NULL, NULL, NULL };
	const char *letters = "rwe";
	for (int i = 0; i < 3; i++)
		if (strchr(arg(2), letters[i])) {
			FD_ZERO(&sets[i]);
			FD_SET(fd, &sets[i]);
			use[i] = &sets[i];
		}
	struct timeval tv = { ms / 1000, ms % 1000 * 1000 };
	if (select(fd + 1, use[0], use[1], use[2], ms < 0 ? NULL : &tv) < 0) {
		fail();
		return;
	}
	fputs("ok ", stdout);
	for (int i = 0; i < 3; i++)
		if (use[i] && FD_ISSET(fd, use[i]))
			putchar(letters[i]);
	putchar('\n');
}

static void cmd_epoll(void) { keep_fd(1, epoll_create1(EPOLL_CLOEXEC)); }

static uint32_t epoll_events(const char *s)
{
	uint32_t ev = 0;
	char *copy = strdup(s), *save = NULL;
	for (char *f = strtok_r(copy, ",", &save); f; f = strtok_r(NULL, ",", &save))
		ev |= strcmp(f, "in") == 0 ? EPOLLIN : strcmp(f, "out") == 0 ? EPOLLOUT : strcmp(f, "et") == 0 ? (uint32_t)EPOLLET :
		      strcmp(f, "oneshot") == 0 ? (uint32_t)EPOLLONESHOT : 0;
	free(copy);
	return ev;
}

static void epctl(int op)
{
	struct epoll_event e = { .events = epoll_events(arg(3)), .data.fd = fd_of(2) };
	done(epoll_ctl(fd_of(1), op, e.data.fd, &e));
}

static void cmd_epadd(void) { epctl(EPOLL_CTL_ADD); }   /* epadd EPOLL FILE EVENTS */
static void cmd_epmod(void) { epctl(EPOLL_CTL_MOD); }

static void cmd_epwait(void)    /* epwait EPOLL MILLISECONDS */
{
	struct epoll_event e = { 0 };
	int n = epoll_wait(fd_of(1), &e, 1, (int)num(2));
	if (n < 0)
		fail();
	else
		put_events(n ? e.events : 0);
}

static void cmd_sync(void)      /* sync FILE FLAGS: DMA_BUF_IOCTL_SYNC */
{
	struct dma_buf_sync s = { .flags = num(2) };
	done(ioctl(fd_of(1), DMA_BUF_IOCTL_SYNC, &s));
}

/* ioctl FILE NUMBER [BYTES | @ADDRESS]: gives the result and the bytes then */
static void cmd_ioctl(void)
{
	unsigned char *p = NULL;
	if (words > 3 && word[3][0] == '@') {
		long r = ioctl(fd_of(1), num(2), (void *)(uintptr_t)strtoull(word[3] + 1, NULL, 0));
		done(r);
		return;
	}
	size_t n = words > 3 ? from_hex(word[3], &p) : 0;
	long r = ioctl(fd_of(1), num(2), p);
	r < 0 ? fail() : put_hex(p, n);
	free(p);
}

static void cmd_setname(void)   /* setname FILE a|b [NAME] */
{
	char name[64] = "";
	if (words > 3)
		strncpy(name, word[3], sizeof name - 1);
	done(ioctl(fd_of(1), arg(2)[0] == 'a' ? DMA_BUF_SET_NAME_A : DMA_BUF_SET_NAME_B, name));
}

static void cmd_import(void)    /* import FILE SYNCFILE FLAGS */
{
	struct dma_buf_import_sync_file s = { .flags = (uint32_t)num(3), .fd = fd_of(2) };
	done(ioctl(fd_of(1), DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &s));
}

static void cmd_export(void)    /* export FILE FLAGS */
{
	struct dma_buf_export_sync_file s = { .flags = (uint32_t)num(2), .fd = -1 };
	done(ioctl(fd_of(1), DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &s));
}

/* info FILE ROOM: SYNC_IOC_FILE_INFO: name status fences, then driver/timeline/status/timestamp of each */
static void cmd_info(void)
{
	struct sync_fence_info fences[64];
	memset(fences, 0, sizeof fences);
	struct sync_file_info i = { .num_fences = (uint32_t)num(2), .sync_fence_info = (uintptr_t)fences };
	if (i.num_fences > 64)
		usage("at most 64");
	uint32_t room = i.num_fences;
	if (ioctl(fd_of(1), SYNC_IOC_FILE_INFO, &i) < 0) {
		fail();
		return;
	}
	printf("ok %s %d %u", i.name[0] ? i.name : "-", i.status, i.num_fences);
	for (uint32_t k = 0; k < room && k < i.num_fences; k++)
		printf(" %s/%s/%d/%llu", fences[k].driver_name, fences[k].obj_name, fences[k].status,
		       (unsigned long long)fences[k].timestamp_ns);
	putchar('\n');
}

/* mincore M PAGE N: a bit for each page; pagemap M PAGE N: which of them this process has mapped */
static void cmd_mincore(void)
{
	unsigned char v[4096];
	size_t n = num(3);
	if (n > sizeof v)
		usage("too many pages");
	if (mincore(get(1)->map + num(2) * PAGE, n * PAGE, v) < 0) {
		fail();
		return;
	}
	fputs("ok ", stdout);
	for (size_t i = 0; i < n; i++)
		putchar(v[i] & 1 ? '1' : '0');
	putchar('\n');
}

static void cmd_pagemap(void)
{
	uint64_t v[4096];
	size_t n = num(3);
	if (n > sizeof v / sizeof *v)
		usage("too many pages");
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	off_t at = (off_t)((uintptr_t)(get(1)->map + num(2) * PAGE) / PAGE * 8);
	if (fd < 0 || pread(fd, v, n * 8, at) != (ssize_t)(n * 8)) {
		fail();
		return;
	}
	close(fd);
	fputs("ok ", stdout);
	for (size_t i = 0; i < n; i++)
		putchar(v[i] >> 63 ? '1' : '0');
	putchar('\n');
}

static void cmd_faults(void)    /* minor faults of this process so far */
{
	struct rusage u;
	getrusage(RUSAGE_SELF, &u);
	printf("ok %ld\n", u.ru_minflt + u.ru_majflt);
}

static void cmd_madvise(void)   /* madvise M ADVICE: of the whole mapping */
{
	struct named *n = get(1);
	done(madvise(n->map, n->len, (int)num(2)));
}

static int unix_socket(const char *path, struct sockaddr_un *a)
{
	memset(a, 0, sizeof *a);
	a->sun_family = AF_UNIX;
	if (strlen(path) >= sizeof a->sun_path)
		usage("path is too long");
	strcpy(a->sun_path, path);
	return socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
}

static void cmd_bind(void)      /* bind SOCKET PATH */
{
	struct sockaddr_un a;
	int fd = unix_socket(arg(2), &a);
	if (fd >= 0 && bind(fd, (struct sockaddr *)&a, sizeof a) < 0) {
		fail();
		return;
	}
	keep_fd(1, fd);
}

static void cmd_send(void)      /* send PATH FILE: SCM_RIGHTS */
{
	struct sockaddr_un a;
	int s = unix_socket(arg(1), &a), fd = fd_of(2);
	union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } c;
	memset(&c, 0, sizeof c);
	struct iovec iov = { "x", 1 };
	struct msghdr m = { .msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &iov, .msg_iovlen = 1,
			    .msg_control = c.buf, .msg_controllen = sizeof c.buf };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(h), &fd, sizeof fd);
	done(s < 0 ? -1 : sendmsg(s, &m, 0));
	close(s);
}

static void cmd_recv(void)      /* recv SOCKET FILE */
{
	union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } c;
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf };
	if (recvmsg(fd_of(1), &m, MSG_CMSG_CLOEXEC) < 0) {
		fail();
		return;
	}
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	if (!h || h->cmsg_type != SCM_RIGHTS) {
		fail_with(ENODATA);
		return;
	}
	int fd;
	memcpy(&fd, CMSG_DATA(h), sizeof fd);
	keep_fd(2, fd);
}

static void run(char *line);

static void cmd_fork(void)      /* fork COMMAND...: a child does it, and says the answer */
{
	char line[4096] = "";
	for (int i = 1; i < words; i++) {
		if (strlen(line) + strlen(word[i]) + 2 > sizeof line)
			usage("too long");
		strcat(strcat(line, i > 1 ? " " : ""), word[i]);
	}
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		run(line);
		fflush(stdout);
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, NULL, 0) < 0)
		fail();
}

static void cmd_hold(void)      /* hold: a child that has what we have, and does nothing; gives its pid */
{
	fflush(stdout);
	pid_t parent = getpid(), pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() == parent)
			for (;;)
				pause();
		_exit(1);
	}
	number(pid);
}

static void cmd_kill(void)      /* kill PID: and wait for its end */
{
	pid_t pid = (pid_t)num(1);
	if (kill(pid, SIGKILL) < 0 || waitpid(pid, NULL, 0) < 0)
		fail();
	else
		ok();
}

static void cmd_alarm(void)     /* alarm MILLISECONDS: one SIGALRM, and again every 50 ms, whose handler does nothing */
{
	long ms = (long)num(1);
	struct itimerval t = { { 0, ms ? 50000 : 0 }, { ms / 1000, ms % 1000 * 1000 } };
	done(setitimer(ITIMER_REAL, &t, NULL));
}

/* A thread that closes a file a little later. */
struct closing { int fd; long ms; };

static void *close_later(void *p)
{
	struct closing *c = p;
	struct timespec ts = { c->ms / 1000, c->ms % 1000 * 1000000 };
	nanosleep(&ts, NULL);
	close(c->fd);
	free(c);
	return NULL;
}

static void cmd_closing(void)   /* closing FILE MILLISECONDS: its name stays, for poll */
{
	struct closing *c = malloc(sizeof *c);
	*c = (struct closing){ fd_of(1), (long)num(2) };
	pthread_t t;
	int e = pthread_create(&t, NULL, close_later, c);
	if (e) {
		fail_with(e);
		return;
	}
	pthread_detach(t);
	ok();
}

/* Waiters: threads that each have the file open and poll(2) it. */
static struct { char path[512]; short events; int woken, failed; pthread_t *t; long n; } crowd;
static pthread_mutex_t crowd_mu = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t crowd_cond = PTHREAD_COND_INITIALIZER;
static int crowd_ready;

static void *waiter(void *unused)
{
	(void)unused;
	struct pollfd p = { .fd = open(crowd.path, O_RDONLY | O_CLOEXEC), .events = crowd.events };
	pthread_mutex_lock(&crowd_mu);
	crowd_ready++;
	pthread_cond_signal(&crowd_cond);
	pthread_mutex_unlock(&crowd_mu);
	int r = p.fd < 0 ? -1 : poll(&p, 1, 120000);
	pthread_mutex_lock(&crowd_mu);
	if (r == 1 && p.revents == crowd.events)
		crowd.woken++;
	else
		crowd.failed++;
	pthread_mutex_unlock(&crowd_mu);
	if (p.fd >= 0)
		close(p.fd);
	return NULL;
}

static void cmd_waiters(void)   /* waiters N PATH EVENTS */
{
	crowd.n = (long)num(1);
	snprintf(crowd.path, sizeof crowd.path, "%s", arg(2));
	crowd.events = poll_events(arg(3));
	crowd.woken = crowd.failed = crowd_ready = 0;
	crowd.t = calloc((size_t)crowd.n, sizeof *crowd.t);
	pthread_attr_t a;
	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 64 << 10);
	for (long i = 0; i < crowd.n; i++) {
		int e = pthread_create(&crowd.t[i], &a, waiter, NULL);
		if (e) {
			fail_with(e);
			return;
		}
	}
	pthread_mutex_lock(&crowd_mu);
	while (crowd_ready < crowd.n)
		pthread_cond_wait(&crowd_cond, &crowd_mu);
	pthread_mutex_unlock(&crowd_mu);
	ok();
}

static void cmd_woken(void)     /* woken: how many so far */
{
	pthread_mutex_lock(&crowd_mu);
	printf("ok %d %d\n", crowd.woken, crowd.failed);
	pthread_mutex_unlock(&crowd_mu);
}

static void cmd_join(void)      /* join: waits for all of them; gives woken and failed */
{
	for (long i = 0; i < crowd.n; i++)
		pthread_join(crowd.t[i], NULL);
	free(crowd.t);
	crowd.n = 0;
	printf("ok %d %d\n", crowd.woken, crowd.failed);
}

static void cmd_limit(void)     /* limit FILES: RLIMIT_NOFILE */
{
	struct rlimit l = { num(1), num(1) };
	done(setrlimit(RLIMIT_NOFILE, &l));
}

/* rounds FENCES BUFFER TIMELINE N EVENTS HOW: N times a fence is added to the buffer and a child signals it at some
   moment around our going to sleep. HOW we wait is poll, select, epoll, et or oneshot. Gives how often we were woken,
   how often we asked for it, and the child's status. */
static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, text, strlen(text)) < 0) {
		fprintf(stderr, "dbclient: %s: %s\n", path, strerror(errno));
		_exit(3);
	}
	close(fd);
}

static void cmd_rounds(void)
{
	char *fences = arg(1), *buffer = arg(2), *timeline = arg(3), *how = arg(6), text[320], value[512];
	long n = (long)num(4);
	short ev = poll_events(arg(5));
	int fd = open(buffer, O_RDONLY | O_CLOEXEC), to[2], ep = -1;
	if (fd < 0 || pipe(to) < 0) {
		fail();
		return;
	}
	const char *name = strrchr(timeline, '/') ? strrchr(timeline, '/') + 1 : timeline;
	snprintf(value, sizeof value, "%s/value", timeline);
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {         /* the signaler */
		char c;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(to[1]);
		int vfd = open(value, O_WRONLY | O_CLOEXEC);
		unsigned seed = 1;
		while (read(to[0], &c, 1) == 1) {
			/* before, while and after the waiter goes to sleep */
			for (volatile int spin = rand_r(&seed) % 20000; spin > 0; spin--)
				;
			if (write(vfd, "+1\n", 3) != 3)
				_exit(3);
		}
		_exit(0);
	}
	close(to[0]);
	if (strcmp(how, "epoll") == 0 || strcmp(how, "et") == 0 || strcmp(how, "oneshot") == 0) {
		ep = epoll_create1(EPOLL_CLOEXEC);
		struct epoll_event e = { .events = (uint32_t)ev };
		if (how[0] == 'e' && how[1] == 't')
			e.events |= (uint32_t)EPOLLET;
		if (how[0] == 'o')
			e.events |= (uint32_t)EPOLLONESHOT;
		if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0) {
			fail();
			return;
		}
		struct epoll_event got;
		epoll_wait(ep, &got, 1, 0);     /* what is ready before the first fence */
	}
	long woken = 0, looks = 0;
	for (long i = 1; i <= n; i++) {
		snprintf(text, sizeof text, "%.255s:%ld\n", name, i);
		write_text(fences, text);
		struct pollfd p = { .fd = fd, .events = ev };
		struct epoll_event e = { .events = (uint32_t)ev | (uint32_t)EPOLLONESHOT };
		if (how[0] == 'o')
			epoll_ctl(ep, EPOLL_CTL_MOD, fd, &e);
		if (poll(&p, 1, 0) != 0)
			break;          /* ready though the fence pends */
		if (write(to[1], "x", 1) != 1)
			break;
		if (ep >= 0) {
			/* A wakeup means "look again": wait until the events are there. */
			do {
				e.events = 0;
				looks++;
				if (epoll_wait(ep, &e, 1, 60000) != 1)
					goto out;
			} while (e.events != (uint32_t)ev);
		} else if (strcmp(how, "select") == 0) {
			fd_set r, w;
			struct timeval tv = { 60, 0 };
			FD_ZERO(&r);
			FD_ZERO(&w);
			if (ev & POLLIN)
				FD_SET(fd, &r);
			if (ev & POLLOUT)
				FD_SET(fd, &w);
			looks++;
			if (select(fd + 1, &r, &w, NULL, &tv) < 1)
				goto out;
		} else {
			looks++;
			if (poll(&p, 1, 60000) != 1 || (p.revents & ~ev) || !p.revents)
				goto out;
		}
		woken++;
	}
out:
	close(to[1]);
	int status = 0;
	waitpid(pid, &status, 0);
	close(fd);
	if (ep >= 0)
		close(ep);
	printf("ok %ld %ld %d\n", woken, looks, status);
}

static void cmd_sleep(void)     /* sleep MILLISECONDS */
{
	struct timespec ts = { (time_t)(num(1) / 1000), (long)(num(1) % 1000 * 1000000) };
	nanosleep(&ts, NULL);
	ok();
}

static void cmd_pid(void) { printf("ok %d\n", getpid()); }

static const struct { const char *name; void (*f)(void); } commands[] = {
	{ "open", cmd_open }, { "dup", cmd_dup }, { "close", cmd_close }, { "map", cmd_map }, { "unmap", cmd_unmap },
	{ "mremap", cmd_mremap }, { "set", cmd_set }, { "get", cmd_get }, { "fill", cmd_fill }, { "check", cmd_check },
	{ "touch", cmd_touch }, { "read", cmd_read }, { "text", cmd_text }, { "pread", cmd_pread }, { "pwrite", cmd_pwrite },
	{ "write", cmd_write }, { "say", cmd_say }, { "lseek", cmd_lseek }, { "ftruncate", cmd_ftruncate },
	{ "fallocate", cmd_fallocate }, { "fsync", cmd_fsync }, { "msync", cmd_msync }, { "fstat", cmd_fstat },
	{ "poll", cmd_poll }, { "select", cmd_select }, { "epoll", cmd_epoll }, { "epadd", cmd_epadd }, { "epmod", cmd_epmod },
	{ "epwait", cmd_epwait }, { "sync", cmd_sync }, { "ioctl", cmd_ioctl }, { "setname", cmd_setname },
	{ "import", cmd_import }, { "export", cmd_export }, { "info", cmd_info }, { "mincore", cmd_mincore },
	{ "pagemap", cmd_pagemap }, { "faults", cmd_faults }, { "madvise", cmd_madvise }, { "bind", cmd_bind },
	{ "send", cmd_send }, { "recv", cmd_recv }, { "fork", cmd_fork }, { "hold", cmd_hold }, { "kill", cmd_kill },
	{ "alarm", cmd_alarm }, { "closing", cmd_closing }, { "waiters", cmd_waiters }, { "woken", cmd_woken },
	{ "join", cmd_join }, { "limit", cmd_limit }, { "rounds", cmd_rounds }, { "sleep", cmd_sleep }, { "pid", cmd_pid },
};

static void run(char *line)
{
	char *w[MAX_WORDS], *save = NULL;
	int n = 0;
	for (char *s = strtok_r(line, " \n", &save); s && n < MAX_WORDS; s = strtok_r(NULL, " \n", &save))
		w[n++] = s;
	if (n == 0)
		return;
	word = w;
	words = n;
	for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
		if (strcmp(commands[i].name, w[0]) == 0) {
			commands[i].f();
			return;
		}
	usage("unknown command");
}

int main(int argc, char **argv)
{
	struct sigaction fault = { .sa_handler = on_fault, .sa_flags = SA_NODEFER }, alrm = { .sa_handler = on_alarm };
	sigaction(SIGBUS, &fault, NULL);
	sigaction(SIGSEGV, &fault, NULL);
	sigaction(SIGALRM, &alrm, NULL); /* without SA_RESTART */
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (int i = 0; i < MAX_NAMED; i++)
		named[i].fd = -1;
	for (int i = 1; i < argc; i++)
		run(argv[i]);
	if (argc > 1)
		return 0;
	char *line = NULL;
	size_t room = 0;
	for (;;) {
		errno = 0;
		if (getline(&line, &room, stdin) < 0) {
			if (errno == EINTR) {
				clearerr(stdin);
				continue;
			}
			return 0;
		}
		run(line);
	}
}
