/*
 * fenceclient: loops and checks around fences that need a program of their own.
 *
 *	fenceclient edges MNT BUFFER TIMELINE N          edges of a point, a snapshot, a buffer and events, in one epoll
 *	fenceclient shared MNT BUFFER WTL RTL N THREADS  threads that poll one descriptor for different events
 *	fenceclient points MNT TIMELINE N                N points in one epoll, signaled one by one
 *	fenceclient syncs MNT BUFFER TIMELINE N FLAGS    DMA_BUF_IOCTL_SYNC START under a storm of signals
 *	fenceclient names MNT BUFFER DEVICE              DMA_BUF_SET_NAME_A and _B
 *	fenceclient info MNT TIMELINE                    SYNC_IOC_FILE_INFO and its array
 *	fenceclient import MNT BUFFER TIMELINE OTHERMNT  what IMPORT_SYNC_FILE takes for a descriptor
 *	fenceclient tables MNT BUFFER WTL RTL            descriptors of a thread with a table of its own
 *	fenceclient churn MNT BUFFER TIMELINE N          N imports of N points, none of them signaled
 *
 * It prints "ok" and what it counted. Exit status 1: something was not so, and stderr says in which line.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/sync_file.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SYNC_IOC_SET_DEADLINE
struct sync_set_deadline { uint64_t deadline_ns, pad; };
#define SYNC_IOC_SET_DEADLINE _IOW(SYNC_IOC_MAGIC, 5, struct sync_set_deadline)
#endif

/* struct dma_buf_{im,ex}port_sync_file, which older headers lack */
struct sync_file_arg { uint32_t flags; int32_t fd; };
#define IMPORT_SYNC_FILE _IOW('b', 3, struct sync_file_arg)
#define EXPORT_SYNC_FILE _IOWR('b', 2, struct sync_file_arg)

enum { STUCK = 60000 }; /* milliseconds */

static const char *mnt;

_Noreturn static void die_at(int line, const char *format, ...)
{
	va_list ap;
	va_start(ap, format);
	fprintf(stderr, "fenceclient: line %d: ", line);
	vfprintf(stderr, format, ap);
	fputc('\n', stderr);
	exit(1);
}

#define DIE(...) die_at(__LINE__, __VA_ARGS__)

/* the result of a call, or -errno */
static long R(long r) { return r < 0 ? -errno : r; }

static void eq_at(int line, const char *what, long got, long want)
{
	if (got != want)
		die_at(line, "%s: %ld (%s), not %ld (%s)", what, got, got < 0 ? strerrorname_np((int)-got) : "-", want,
		       want < 0 ? strerrorname_np((int)-want) : "-");
}

#define EQ(call, want) eq_at(__LINE__, #call, (long)(call), (long)(want))

static char *path(const char *format, ...)
{
	static _Thread_local char room[4][512];
	static _Thread_local int i;
	char *p = room[i = (i + 1) % 4];
	int n = snprintf(p, sizeof room[0], "%s/", mnt);
	va_list ap;
	va_start(ap, format);
	vsnprintf(p + n, sizeof room[0] - (size_t)n, format, ap);
	va_end(ap);
	return p;
}

static int must_open(const char *p, int flags)
{
	int fd = open(p, flags | O_CLOEXEC);
	if (fd < 0)
		DIE("%s: %s", p, strerror(errno));
	return fd;
}

static void put(int fd, const char *format, ...)
{
	char text[320];
	va_list ap;
	va_start(ap, format);
	int n = vsnprintf(text, sizeof text, format, ap);
	va_end(ap);
	long r;
	do
		r = write(fd, text, (size_t)n);
	while (r < 0 && errno == EINTR);
	if (r != n)
		DIE("writing %s: %s", text, strerror(errno));
}

static short ready(int fd, short events, int ms)
{
	struct pollfd p = { .fd = fd, .events = events };
	int r;
	do
		r = poll(&p, 1, ms);
	while (r < 0 && errno == EINTR);
	return r < 0 ? (short)-errno : p.revents;
}

static char *text_of(const char *p)
{
	static char text[4096];
	int fd = must_open(p, O_RDONLY);
	ssize_t n = read(fd, text, sizeof text - 1);
	if (n < 0)
		DIE("%s: %s", p, strerror(errno));
	text[n] = 0;
	close(fd);
	return text;
}

static void say_at(int line, const char *p, const char *want)
{
	char *got = text_of(p);
	if (strcmp(got, want))
		die_at(line, "%s is \"%s\", not \"%s\"", p, got, want);
}

#define SAYS(p, want) say_at(__LINE__, p, want)

static void watch(int ep, int fd, uint32_t events, uint32_t tag)
{
	struct epoll_event e = { .events = events, .data.u32 = tag };
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e) < 0)
		DIE("epoll_ctl: %s", strerror(errno));
}

/* A child that sets the timeline's value when it is asked to, at some moment around our going to sleep. */
struct signaler { int to; pid_t pid; };

static struct signaler signaler(const char *timeline, _Atomic long *signaling)
{
	int p[2];
	if (pipe(p) < 0)
		DIE("pipe: %s", strerror(errno));
	pid_t pid = fork();
	if (pid == 0) {
		struct itimerval off = { 0 };
		unsigned seed = 7;
		long v;
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setitimer(ITIMER_REAL, &off, NULL);
		close(p[1]);
		int fd = must_open(path("timelines/%s/value", timeline), O_WRONLY);
		while (read(p[0], &v, sizeof v) == sizeof v) {
			for (volatile int spin = rand_r(&seed) % 20000; spin > 0; spin--)
				;
			if (signaling)
				*signaling = v;
			put(fd, "%ld\n", v);
		}
		_exit(0);
	}
	close(p[0]);
	return (struct signaler){ p[1], pid };
}

static void signal_it(struct signaler s, long v)
{
	if (write(s.to, &v, sizeof v) != sizeof v)
		DIE("the signaler has ended");
}

static void end(struct signaler s)
{
	int status;
	close(s.to);
	while (waitpid(s.pid, &status, 0) < 0)
		if (errno != EINTR)
			DIE("waitpid: %s", strerror(errno));
	EQ(status, 0);
}

/* edges: in every round a fence is added; a point and a snapshot are opened; the signal is an edge of all of them. */
static int edges(char **arg)
{
	const char *buffer = arg[0], *tl = arg[1];
	long n = atol(arg[2]);
	enum { EVENTS = 1, BUF_IN = 2, BUF_OUT = 4, POINT = 8, SNAP = 16, ONCE = 32, LEVEL = 64, ALL = 127 };
	int ep = epoll_create1(EPOLL_CLOEXEC), add = must_open(path("state/%s/write_fences", buffer), O_WRONLY);
	int in = must_open(path("buffers/%s", buffer), O_RDONLY), out = must_open(path("buffers/%s", buffer), O_RDONLY);
	struct signaler s = signaler(tl, NULL);
	int events = must_open(path("events"), O_RDONLY | O_NONBLOCK);
	watch(ep, events, EPOLLIN | EPOLLET, EVENTS);
	watch(ep, in, EPOLLIN | EPOLLET, BUF_IN);
	watch(ep, out, EPOLLOUT | EPOLLET, BUF_OUT);
	long looks = 0;
	for (long r = 1; r <= n; r++) {
		put(add, "%s:%ld\n", tl, r);
		int point = must_open(path("timelines/%s/points/%ld", tl, r), O_RDONLY);
		int once = dup(point), snap = must_open(path("state/%s/write_fences", buffer), O_RDONLY);
		int level = must_open(path("timelines/%s/points/%ld", tl, r), O_RDONLY);
		watch(ep, point, EPOLLIN | EPOLLOUT | EPOLLET, POINT);
		watch(ep, snap, EPOLLIN | EPOLLET, SNAP);
		watch(ep, once, EPOLLIN | EPOLLONESHOT, ONCE);
		watch(ep, level, EPOLLIN | EPOLLPRI, LEVEL);
		/* What was ready before the signal is reported now, or never counted. */
		struct epoll_event e[8];
		char line[65536];
		for (int k, i = 0; i < 16 && (k = epoll_wait(ep, e, 8, 0)) != 0; i++) {
			while (read(events, line, sizeof line) > 0)
				;
			for (int j = 0; j < k; j++)
				if (e[j].data.u32 & (POINT | SNAP | ONCE | LEVEL))
					DIE("round %ld: file %#x is ready while its fence pends", r, e[j].data.u32);
		}
		EQ(ready(in, POLLIN, 0) | ready(out, POLLOUT, 0) | ready(point, POLLIN, 0) | ready(snap, POLLIN, 0), 0);
		signal_it(s, r);
		unsigned had = 0;
		while ((had & ALL) != ALL) {
			int k = epoll_wait(ep, e, 8, STUCK);
			if (k <= 0)
				DIE("round %ld: a wakeup is lost; there were %#x", r, had);
			looks++;
			for (int j = 0; j < k; j++) {
				unsigned tag = e[j].data.u32;
				if ((had & tag & (POINT | SNAP | ONCE)) || (e[j].events & ~(uint32_t)(EPOLLIN | EPOLLOUT)))
					DIE("round %ld: file %#x gives %#x, there were %#x", r, tag, e[j].events, had);
				had |= tag;
				if (tag == LEVEL) { /* it stays: enough of it */
					struct epoll_event none = { .events = 0, .data.u32 = LEVEL };
					EQ(epoll_ctl(ep, EPOLL_CTL_MOD, level, &none), 0);
				}
				if (tag == EVENTS) /* of the value that was set: read it all, or there is no next edge */
					while (read(events, line, sizeof line) > 0)
						;
			}
		}
		EQ(ready(point, POLLIN | POLLOUT, 0), POLLIN);
		struct epoll_event again = { .events = EPOLLIN, .data.u32 = LEVEL };
		EQ(epoll_ctl(ep, EPOLL_CTL_MOD, level, &again), 0);
		EQ(epoll_wait(ep, e, 8, 0) > 0, 1);
		close(point), close(once), close(snap), close(level);
	}
	end(s);
	printf("ok %ld\n", looks);
	return 0;
}

/* shared: threads poll one open file, for different events, by different calls. */
static struct {
	int fd;
	pthread_barrier_t begin, over;
	_Atomic long wrote, readd; /* rounds of which the write, the read fence is being signaled */
	long n;
	int threads;
} sh;

static void *sharer(void *p)
{
	int me = (int)(intptr_t)p;
	short want = me % 3 == 0 ? POLLIN : me % 3 == 1 ? POLLOUT : POLLIN | POLLOUT;
	int ep = -1;
	if (me % 4 == 3) {
		ep = epoll_create1(EPOLL_CLOEXEC);
		watch(ep, sh.fd, (uint32_t)want, 0);
	}
	for (long r = 1; r <= sh.n; r++) {
		pthread_barrier_wait(&sh.begin);
		short got;
		if (ep >= 0) {
			struct epoll_event e = { 0 };
			if (epoll_wait(ep, &e, 1, STUCK) != 1)
				DIE("round %ld, thread %d: epoll_wait: a wakeup is lost", r, me);
			got = (short)e.events;
		} else {
			got = ready(sh.fd, want, STUCK);
		}
		if (!got || (got & ~want))
			DIE("round %ld, thread %d: wanted %#x, got %#x", r, me, (unsigned)want, (unsigned)got);
		if (sh.wrote < r || ((got & POLLOUT) && sh.readd < r))
			DIE("round %ld, thread %d: woke to %#x while a fence was pending", r, me, (unsigned)got);
		pthread_barrier_wait(&sh.over);
	}
	return NULL;
}

static int shared(char **arg)
{
	const char *buffer = arg[0], *wtl = arg[1], *rtl = arg[2];
	sh.n = atol(arg[3]);
	sh.threads = atoi(arg[4]);
	sh.fd = must_open(path("buffers/%s", buffer), O_RDONLY);
	int w = must_open(path("state/%s/write_fences", buffer), O_WRONLY), r = must_open(path("state/%s/read_fences", buffer), O_WRONLY);
	int wv = must_open(path("timelines/%s/value", wtl), O_WRONLY), rv = must_open(path("timelines/%s/value", rtl), O_WRONLY);
	pthread_barrier_init(&sh.begin, NULL, (unsigned)sh.threads + 1);
	pthread_barrier_init(&sh.over, NULL, (unsigned)sh.threads + 1);
	pthread_t t;
	for (int i = 0; i < sh.threads; i++)
		if (pthread_create(&t, NULL, sharer, (void *)(intptr_t)i))
			DIE("pthread_create");
	unsigned seed = 3;
	for (long i = 1; i <= sh.n; i++) {
		put(w, "%s:%ld\n", wtl, i);
		put(r, "%s:%ld\n", rtl, i);
		pthread_barrier_wait(&sh.begin);
		if (i % 2)
			usleep(rand_r(&seed) % 300);
		/* the write fence first in two of three rounds */
		if (i % 3 == 0) {
			sh.readd = i;
			put(rv, "%ld\n", i);
		}
		sh.wrote = i;
		put(wv, "%ld\n", i);
		if (i % 5 == 0)
			usleep(rand_r(&seed) % 300);
		if (i % 3) {
			sh.readd = i;
			put(rv, "%ld\n", i);
		}
		pthread_barrier_wait(&sh.over);
	}
	puts("ok");
	return 0;
}

/* points: each in the same epoll, and each wakes when its turn comes and not before. */
static int points(char **arg)
{
	const char *tl = arg[0];
	long n = atol(arg[1]);
	struct rlimit l = { (rlim_t)n + 64, (rlim_t)n + 64 };
	if (setrlimit(RLIMIT_NOFILE, &l) < 0)
		DIE("setrlimit: %s", strerror(errno));
	int ep = epoll_create1(EPOLL_CLOEXEC), *fd = calloc((size_t)n + 1, sizeof *fd);
	for (long i = 1; i <= n; i++) {
		fd[i] = must_open(path("timelines/%s/points/%ld", tl, i), O_RDONLY);
		watch(ep, fd[i], EPOLLIN | EPOLLET, (uint32_t)i);
	}
	struct signaler s = signaler(tl, NULL);
	unsigned seed = 11;
	long looks = 0;
	for (long had = 0, v = 0; had < n;) {
		v += 1 + rand_r(&seed) % 7;
		if (v > n)
			v = n;
		signal_it(s, v);
		while (had < v) {
			struct epoll_event e[16];
			int k = epoll_wait(ep, e, 16, STUCK);
			if (k <= 0)
				DIE("of %ld points %ld woke us", v, had);
			looks++;
			for (int j = 0; j < k; j++, had++) {
				if (e[j].data.u32 > v || fd[e[j].data.u32] < 0 || e[j].events != EPOLLIN)
					DIE("point %u gives %#x at %ld", e[j].data.u32, e[j].events, v);
				close(fd[e[j].data.u32]);
				fd[e[j].data.u32] = -1;
			}
		}
	}
	end(s);
	printf("ok %ld\n", looks);
	return 0;
}

/* syncs: START returns only when the fence is being signaled, or with EINTR. */
static volatile sig_atomic_t alarms;
static void on_alarm(int sig) { (void)sig, alarms++; }

/* END does not wait for fences; with noncoherent memory it has bytes to move, which a signal may interrupt */
static void sync_end(int fd, uint64_t flags)
{
	struct dma_buf_sync stop = { DMA_BUF_SYNC_END | flags };
	long e, tries = 0;
	while ((e = R(ioctl(fd, DMA_BUF_IOCTL_SYNC, &stop))) == -EINTR && tries < 1000)
		tries++;
	EQ(e, 0);
}

static int syncs(char **arg)
{
	const char *buffer = arg[0], *tl = arg[1];
	long n = atol(arg[2]), interrupted = 0;
	uint64_t flags = (uint64_t)atol(arg[3]);
	_Atomic long *signaling = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd = must_open(path("buffers/%s", buffer), O_RDONLY);
	int add = must_open(path("state/%s/%s_fences", buffer, flags & DMA_BUF_SYNC_WRITE ? "read" : "write"), O_WRONLY);
	struct signaler s = signaler(tl, signaling);
	struct sigaction sa = { .sa_handler = on_alarm };
	struct itimerval t = { { 0, 700 }, { 0, 700 } };
	struct dma_buf_sync start = { DMA_BUF_SYNC_START | flags };
	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &t, NULL);
	for (long r = 1; r <= n; r++) {
		put(add, "%s:%ld\n", tl, r);
		sync_end(fd, flags);
		if (r % 16 == 0) { /* until a handler interrupts it, which it must */
			EQ(R(ioctl(fd, DMA_BUF_IOCTL_SYNC, &start)), -EINTR);
			interrupted++;
		}
		signal_it(s, r);
		long e;
		while ((e = R(ioctl(fd, DMA_BUF_IOCTL_SYNC, &start))) == -EINTR)
			interrupted++;
		EQ(e, 0);
		if (*signaling < r)
			DIE("round %ld: START is back while the fence pends", r);
		sync_end(fd, flags);
	}
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	end(s);
	printf("ok %ld\n", interrupted);
	return 0;
}

/* names */
static int names(char **arg)
{
	const char *buffer = arg[0], *device = arg[1];
	char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(pages + 2 * 4096, 4096, PROT_NONE);
	char *edge = pages + 2 * 4096; /* nothing from here on */
	static const char max[] = "0123456789abcdefghijklmnopqrstu", over[] = "0123456789abcdefghijklmnopqrstuv";
	const int request[] = { (int)DMA_BUF_SET_NAME_A, (int)DMA_BUF_SET_NAME_B };
	int fds[] = { must_open(path("buffers/%s", buffer), O_RDWR), must_open(path("buffers/%s", buffer), O_RDONLY),
		      must_open(path("devices/%s/buffers/%s", device, buffer), O_RDONLY) };
	char *shown = strdup(path("state/%s/name", buffer)), want[40];
	EQ(strlen(max), 31);
	SAYS(shown, "");
	for (int i = 0; i < 6; i++) {
		int fd = fds[i / 2];
		unsigned long cmd = (unsigned)request[i % 2];
		for (int len = 31; len >= 7; len--) { /* its NUL is the last byte that there is */
			char *name = edge - len - 1;
			memcpy(name, max, (size_t)len);
			name[len] = 0;
			name[0] = (char)('A' + i);
			EQ(R(ioctl(fd, cmd, name)), 0);
			snprintf(want, sizeof want, "%s\n", name);
			SAYS(shown, want);
		}
		for (int off = 0; off < 40; off++) { /* across two pages */
			char *name = pages + 4096 - off;
			memcpy(name, max, sizeof max);
			EQ(R(ioctl(fd, cmd, name)), 0);
			memcpy(name, over, sizeof over);
			EQ(R(ioctl(fd, cmd, name)), -EINVAL);
		}
		snprintf(want, sizeof want, "%s\n", max);
		for (int len = 8; len < 32; len++) { /* readable, but without a NUL */
			memset(edge - len, 'x', (size_t)len);
			EQ(R(ioctl(fd, cmd, edge - len)), -EFAULT);
		}
		memset(edge - 64, 'x', 64);
		EQ(R(ioctl(fd, cmd, edge - 32)), -EINVAL);
		EQ(R(ioctl(fd, cmd, edge)), -EFAULT);
		EQ(R(ioctl(fd, cmd, NULL)), -EFAULT);
		EQ(R(ioctl(fd, cmd, (char *)-4096L)), -EFAULT);
		SAYS(shown, want);
		EQ(R(ioctl(fd, cmd, "a/b:c\n\x01\xff")), 0);
		SAYS(shown, "a/b:c\\012\\001\\377\n");
		EQ(R(ioctl(fd, cmd, "")), 0);
		SAYS(shown, "\n");
	}
	puts("ok");
	return 0;
}

/* info */
static long file_info(int fd, uint32_t room, void *array, uint32_t flags, uint32_t pad, struct sync_file_info *out)
{
	struct sync_file_info i = { .flags = flags, .num_fences = room, .pad = pad, .sync_fence_info = (uintptr_t)array };
	long r = R(ioctl(fd, SYNC_IOC_FILE_INFO, &i));
	if (out)
		*out = i;
	return r;
}

static int info(char **arg)
{
	const char *tl = arg[0];
	enum { ONE = sizeof(struct sync_fence_info) };
	char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	mprotect(pages + 2 * 4096, 4096, PROT_NONE);
	char *edge = pages + 2 * 4096, *readable = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = must_open(path("timelines/%s/points/9", tl), O_RDONLY);
	struct sync_file_info got;
	EQ(file_info(fd, 0, NULL, 0, 0, &got), 0);
	EQ(got.num_fences, 1);
	EQ(got.status, 0);
	EQ(strnlen(got.name, sizeof got.name) < sizeof got.name && strncmp(got.name, "dmabuffs-", 9) == 0, 1);
	EQ(file_info(fd, 0, (void *)1, 0, 0, NULL), 0); /* without room nobody looks at the address */
	/* The array is written where it is, and not a byte more. */
	for (int at = 0; at <= 3 * ONE; at += 8) {
		char *p = pages + 4096 - at;
		memset(pages, 0x55, 2 * 4096);
		EQ(file_info(fd, 3, p, 0, 0, &got), 0);
		EQ(got.num_fences, 1);
		struct sync_fence_info *f = (struct sync_fence_info *)p;
		EQ(strcmp(f->driver_name, "dmabuffs") | strcmp(f->obj_name, tl), 0);
		EQ(f->status | (long)f->flags | (long)f->timestamp_ns, 0);
		for (char *q = pages; q < edge; q++)
			if ((q < p || q >= p + ONE) && *q != 0x55)
				DIE("FILE_INFO wrote %td bytes from its array, at %d", q - p, at);
	}
	/* Room for more than there is may lie where nothing is: only what is there counts. */
	EQ(file_info(fd, 100, edge - ONE, 0, 0, &got), 0);
	EQ(file_info(fd, 1u << 31, edge - ONE, 0, 0, &got), 0);
	EQ(got.num_fences, 1);
	/* EFAULT, and the order of errors. */
	EQ(file_info(fd, 1, edge - ONE + 1, 0, 0, &got), -EFAULT);
	EQ(got.num_fences | got.status << 8 | got.name[0] << 16, 1); /* as it was */
	EQ(file_info(fd, 1, edge, 0, 0, NULL), -EFAULT);
	EQ(file_info(fd, 1, NULL, 0, 0, NULL), -EFAULT);
	EQ(file_info(fd, 1, readable, 0, 0, NULL), -EFAULT);
	EQ(file_info(fd, 1, (char *)-4096L, 0, 0, NULL), -EFAULT);
	EQ(file_info(fd, 1, NULL, 1, 0, NULL), -EINVAL);
	EQ(file_info(fd, 1, NULL, 0, 1, NULL), -EINVAL);
	EQ(R(ioctl(fd, SYNC_IOC_FILE_INFO, edge)), -EFAULT);
	EQ(R(ioctl(fd, SYNC_IOC_FILE_INFO, readable)), -EFAULT); /* it writes back too */
	/* SET_DEADLINE */
	struct sync_set_deadline d = { .deadline_ns = 0 };
	EQ(R(ioctl(fd, SYNC_IOC_SET_DEADLINE, &d)), 0);
	d.deadline_ns = UINT64_MAX;
	EQ(R(ioctl(fd, SYNC_IOC_SET_DEADLINE, &d)), 0);
	d.pad = 1;
	EQ(R(ioctl(fd, SYNC_IOC_SET_DEADLINE, &d)), -EINVAL);
	EQ(R(ioctl(fd, SYNC_IOC_SET_DEADLINE, NULL)), -EFAULT);
	EQ(ready(fd, POLLIN, 0), 0); /* a deadline is a wish */
	/* MERGE, which needs `dmabuffs run` */
	struct sync_merge_data m = { .name = "both", .fd2 = fd, .fence = -7 };
	EQ(R(ioctl(fd, SYNC_IOC_MERGE, &m)), -EOPNOTSUPP);
	EQ(m.fence, -7);
	m.fd2 = 9999;
	EQ(R(ioctl(fd, SYNC_IOC_MERGE, &m)), -ENOENT);
	m.flags = 1;
	EQ(R(ioctl(fd, SYNC_IOC_MERGE, &m)), -EINVAL);
	EQ(R(ioctl(fd, SYNC_IOC_MERGE, NULL)), -EFAULT);
	puts("ok");
	return 0;
}

/* import */
static long import(int fd, int fence, uint32_t flags)
{
	struct sync_file_arg a = { flags, fence };
	return R(ioctl(fd, IMPORT_SYNC_FILE, &a));
}

static int import_what(char **arg)
{
	const char *buffer = arg[0], *tl = arg[1], *other = arg[2], *home = mnt;
	int fd = must_open(path("buffers/%s", buffer), O_RDONLY), p[2];
	int point = must_open(path("timelines/%s/points/3", tl), O_RDONLY);
	if (pipe2(p, O_CLOEXEC) < 0)
		DIE("pipe: %s", strerror(errno));
	int closed = dup(point);
	close(closed);
	mnt = other; /* there, inode numbers may well be the same */
	int theirs = must_open(path("timelines/%s/points/3", tl), O_RDONLY), snapshot = must_open(path("state/%s/write_fences", buffer), O_RDONLY);
	int buffer2 = must_open(path("buffers/%s", buffer), O_RDONLY);
	mnt = home;
	const struct { const char *what; int fd; } bad[] = {
		{ "-1", -1 }, { "the smallest", INT32_MIN }, { "the largest", INT32_MAX }, { "closed", closed }, { "AT_FDCWD", AT_FDCWD },
		{ "a pipe", p[0] }, { "an eventfd", eventfd(0, EFD_CLOEXEC) }, { "an epoll", epoll_create1(EPOLL_CLOEXEC) },
		{ "a device", must_open("/dev/null", O_RDONLY) }, { "a regular file", must_open("/proc/self/exe", O_RDONLY) },
		{ "a directory", must_open("/", O_RDONLY) }, { "the buffer", fd },
		{ "a point as O_PATH", must_open(path("timelines/%s/points/3", tl), O_PATH) },
		{ "a value", must_open(path("timelines/%s/value", tl), O_RDONLY) },
		{ "points", must_open(path("timelines/%s/points", tl), O_RDONLY) },
		{ "a snapshot for writing only", must_open(path("state/%s/write_fences", buffer), O_WRONLY) },
		{ "events", must_open(path("events"), O_RDONLY) }, { "metrics", must_open(path("metrics"), O_RDONLY) },
		{ "the root", must_open(path(""), O_RDONLY) }, { "another mount's point", theirs }, { "another mount's snapshot", snapshot },
	};
	for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
		for (uint32_t flags = 0; flags < 5; flags++) {
			long r = import(fd, bad[i].fd, flags);
			if (r != -EINVAL)
				DIE("IMPORT_SYNC_FILE of %s with flags %u: %ld (%s)", bad[i].what, flags, r, r < 0 ? strerrorname_np((int)-r) : "-");
		}
	static const uint32_t flags[] = { 0, 4, 5, 6, 7, 8, 0x80000000, 0xfffffffc, 0xffffffff };
	for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
		EQ(import(fd, point, flags[i]), -EINVAL);
		struct sync_file_arg a = { flags[i], -7 };
		EQ(R(ioctl(fd, EXPORT_SYNC_FILE, &a)), -EINVAL);
	}
	EQ(R(ioctl(fd, IMPORT_SYNC_FILE, NULL)), -EFAULT);
	EQ(R(ioctl(fd, EXPORT_SYNC_FILE, NULL)), -EFAULT);
	EQ(import(point, point, 1), -ENOTTY);
	EQ(import(buffer2, point, 1), -EINVAL);
	for (uint32_t f = 1; f <= 3; f++) {
		struct sync_file_arg a = { f, -7 };
		EQ(R(ioctl(fd, EXPORT_SYNC_FILE, &a)), -EOPNOTSUPP);
		EQ(a.fd, -7);
	}
	SAYS(path("state/%s/write_fences", buffer), "");
	SAYS(path("state/%s/read_fences", buffer), "");
	/* the same point by all the descriptors that are it */
	int high = fcntl(point, F_DUPFD_CLOEXEC, 700);
	EQ(import(fd, high, DMA_BUF_SYNC_READ), 0);
	char want[300];
	snprintf(want, sizeof want, "%s 3 pending dmabuffs\n", tl);
	SAYS(path("state/%s/read_fences", buffer), want);
	EQ(import(fd, must_open(path("timelines/%s/points/3", tl), O_RDONLY | O_NONBLOCK), DMA_BUF_SYNC_RW), 0);
	SAYS(path("state/%s/read_fences", buffer), "");
	SAYS(path("state/%s/write_fences", buffer), want);
	puts("ok");
	return 0;
}

/* tables: one number, which is two files */
static struct { int buffer, point, ready; const char *rtl; pthread_barrier_t b; } tab;

static void *own_table(void *unused)
{
	(void)unused;
	if (unshare(CLONE_FILES) < 0)
		DIE("unshare: %s", strerror(errno));
	int fd = must_open(path("timelines/%s/points/1", tab.rtl), O_RDONLY);
	if (dup2(fd, tab.point) < 0)
		DIE("dup2: %s", strerror(errno));
	pthread_barrier_wait(&tab.b);
	EQ(import(tab.buffer, tab.point, DMA_BUF_SYNC_READ), 0);
	return NULL;
}

static int tables(char **arg)
{
	const char *buffer = arg[0], *wtl = arg[1];
	char want[300];
	tab.rtl = arg[2];
	tab.buffer = must_open(path("buffers/%s", buffer), O_RDWR);
	tab.point = must_open(path("timelines/%s/points/1", wtl), O_RDONLY);
	pthread_barrier_init(&tab.b, NULL, 2);
	pthread_t t;
	if (pthread_create(&t, NULL, own_table, NULL))
		DIE("pthread_create");
	pthread_barrier_wait(&tab.b);
	EQ(import(tab.buffer, tab.point, DMA_BUF_SYNC_WRITE), 0);
	pthread_join(t, NULL);
	snprintf(want, sizeof want, "%s 1 pending dmabuffs\n", wtl);
	SAYS(path("state/%s/write_fences", buffer), want);
	snprintf(want, sizeof want, "%s 1 pending dmabuffs\n", tab.rtl);
	SAYS(path("state/%s/read_fences", buffer), want);
	puts("ok");
	return 0;
}

/* churn */
static int churn(char **arg)
{
	const char *buffer = arg[0], *tl = arg[1];
	long n = atol(arg[2]);
	int fd = must_open(path("buffers/%s", buffer), O_RDWR);
	for (long i = 1; i <= n; i++) {
		int point = must_open(path("timelines/%s/points/%ld", tl, i), O_RDONLY);
		EQ(import(fd, point, DMA_BUF_SYNC_READ), 0);
		close(point);
	}
	puts("ok");
	return 0;
}

static const struct { const char *name; int words; int (*run)(char **arg); } commands[] = {
	{ "edges", 3, edges }, { "shared", 5, shared }, { "points", 2, points }, { "syncs", 4, syncs }, { "names", 2, names },
	{ "info", 1, info }, { "import", 3, import_what }, { "tables", 3, tables }, { "churn", 3, churn },
};

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 2 && i < sizeof commands / sizeof *commands; i++)
		if (strcmp(commands[i].name, argv[1]) == 0 && argc == commands[i].words + 3) {
			mnt = argv[2];
			return commands[i].run(argv + 3);
		}
	fputs("fenceclient: wrong usage\n", stderr);
	return 2;
}
