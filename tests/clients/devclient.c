/*
 * devclient: crowds of processes that use one buffer, as CPUs and as devices, and check every byte they depend on.
 *
 *	devclient alternate MNT BUFFER TURNS SEED [bracket]
 *	devclient model MNT BUFFER OPS SECONDS SEED [bracket] [fences]
 *	devclient copy FROM TO
 *
 * The buffer exists, and so do devices/d0 to devices/d3, and timelines/tl. "bracket" is for buffers of the exporter noncoherent: what the
 * CPU does through a mapping stands between DMA_BUF_IOCTL_SYNC START and END. Exit status 0: nothing was wrong;
 * 1: something was, and stderr has it; 3: a process hangs.
 *
 * copy: stops itself; then one write(2) of a page, straight out of a mapping of another file.
 *
 * alternate: two CPUs and two devices, each a process with mappings that stay in place, take turns in a random order.
 * Each looks at every page, and writes some.
 *
 * model: processes do random things to random pages at the same time, and are killed at random. A page's first and last
 * word hold who wrote it last and a number. Its lock, a robust mutex, is held by whoever reads or writes it; a page
 * whose holder was killed is unknown until it is written again. With "fences" the buffer has a pending write fence most
 * of the time.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dma-buf.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MAX_PAGES = 256, DEVICES = 4, WORKERS = 6, AT_ONCE = 4, HANG_SECONDS = 60 };

struct page {
	pthread_mutex_t mu;
	uint64_t want[2];       /* its first and its last word */
	bool known[2];
	char how[2][16];        /* what wrote them */
};

static struct shared {
	struct page page[MAX_PAGES];
	sem_t turn[4];
	uint64_t draw;
	uint64_t ops, bad, unknown, checks;
	uint64_t by[16];        /* ops of each kind */
	int stop;
} *S;

static const char *mnt, *buffer;
static int pages;
static bool bracket;
static char me[32];

static void die(const char *what)
{
	fprintf(stderr, "devclient: %s: %s: %s\n", me, what, strerror(errno));
	exit(1);
}

static uint64_t draw(uint64_t *x)       /* xorshift64* */
{
	*x ^= *x >> 12;
	*x ^= *x << 25;
	*x ^= *x >> 27;
	return *x * 0x2545f4914f6cdd1dull;
}

static int pick(uint64_t *x, int n) { return (int)((draw(x) >> 33) % (uint64_t)n); }

static void path_of(char *out, size_t room, int device)
{
	if (device < 0)
		snprintf(out, room, "%s/buffers/%s", mnt, buffer);
	else
		snprintf(out, room, "%s/devices/d%d/buffers/%s", mnt, device, buffer);
}

static int open_it(int device, int flags)
{
	char path[512];
	path_of(path, sizeof path, device);
	int fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		die(path);
	return fd;
}

static volatile uint64_t *map_it(int fd)
{
	void *p = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

static void sync_it(int fd, uint64_t flags)
{
	struct dma_buf_sync s = { .flags = flags };
	int r;
	while ((r = ioctl(fd, DMA_BUF_IOCTL_SYNC, &s)) < 0 && (errno == EINTR || errno == EAGAIN))
		;
	if (r < 0)
		die("DMA_BUF_IOCTL_SYNC");
}

#define START(fd, f) sync_it(fd, DMA_BUF_SYNC_START | (f))
#define END(fd, f) sync_it(fd, DMA_BUF_SYNC_END | (f))

static void io(int fd, bool out, void *p, size_t n, off_t off)
{
	ssize_t r = out ? pwrite(fd, p, n, off) : pread(fd, p, n, off);
	if (r != (ssize_t)n) {
		if (r >= 0)
			errno = EIO;
		die(out ? "pwrite" : "pread");
	}
}

static void check(const char *how, int page, int end, uint64_t got)
{
	struct page *g = &S->page[page];
	if (!g->known[end])
		return;
	__atomic_add_fetch(&S->checks, 1, __ATOMIC_RELAXED);
	if (got == g->want[end])
		return;
	if (__atomic_add_fetch(&S->bad, 1, __ATOMIC_RELAXED) > 20)
		return;
	fprintf(stderr, "devclient: %s: %s: page %d, %s word: 0x%" PRIx64 ", not 0x%" PRIx64 " of %s\n", me, how, page,
		end ? "last" : "first", got, g->want[end], g->how[end]);
}

static void wrote(const char *how, int page, int end, uint64_t v)
{
	struct page *g = &S->page[page];
	g->want[end] = v;
	g->known[end] = true;
	snprintf(g->how[end], sizeof g->how[end], "%s", how);
}

static void check_page(const char *how, int page, const volatile uint64_t *m)
{
	check(how, page, 0, m[0]);
	check(how, page, 1, m[WORDS - 1]);
}

static void write_page(const char *how, int page, volatile uint64_t *m, uint64_t v)
{
	m[0] = m[WORDS - 1] = v;
	wrote(how, page, 0, v);
	wrote(how, page, 1, v);
}

static void fill(uint64_t *p, int n, uint64_t v)
{
	for (int i = 0; i < n * WORDS; i++)
		p[i] = v;
}

/* alternate */

static void take_turns(int self, long turns)
{
	bool device = self >= 2;
	snprintf(me, sizeof me, "%s %d", device ? "device" : "cpu", self & 1);
	int fd = open_it(device ? self - 2 : -1, O_RDWR);
	volatile uint64_t *m = map_it(fd);
	uint64_t buf[WORDS];
	if (device)
		END(fd, DMA_BUF_SYNC_RW);       /* of what open(2) began */
	for (;;) {
		while (sem_wait(&S->turn[self]) < 0)
			;
		if (S->stop)
			break;
		bool by_call = pick(&S->draw, 3) == 0, dirty = pick(&S->draw, 4) > 0;
		if (device || (bracket && !by_call))
			START(fd, DMA_BUF_SYNC_RW);
		for (int p = 0; p < pages; p++) {
			if (by_call) {
				io(fd, false, buf, PAGE, (off_t)p * PAGE);
				check_page("read(2)", p, buf);
			} else {
				check_page("load", p, m + p * WORDS);
			}
		}
		for (int k = dirty ? 1 + pick(&S->draw, 4) : 0; k > 0; k--) {
			int p = pick(&S->draw, pages);
			uint64_t v = (uint64_t)(self + 1) << 56 | S->ops << 8 | (uint64_t)k;
			if (by_call) {
				fill(buf, 1, v);
				io(fd, true, buf, PAGE, (off_t)p * PAGE);
				write_page("write(2)", p, buf, v);
			} else {
				write_page("store", p, m + p * WORDS, v);
			}
		}
		if (device || (bracket && !by_call))
			END(fd, DMA_BUF_SYNC_RW);
		if (++S->ops == (uint64_t)turns)
			S->stop = 1;
		if (S->stop) {
			for (int i = 0; i < 4; i++)
				sem_post(&S->turn[i]);
		} else {
			sem_post(&S->turn[pick(&S->draw, 4)]);
		}
	}
	close(fd);
	exit(0);
}

/* model */

/* lock_page locks a page for whoever has the CPU view open as fd. What a killed holder stored before it could END its
   bracket may be in a CPU cache that nothing keeps coherent: it must be out of there before a device writes. */
static void lock_page(int p, int fd)
{
	struct page *g = &S->page[p];
	int e = pthread_mutex_lock(&g->mu);
	if (e == EOWNERDEAD) {
		g->known[0] = g->known[1] = false;
		__atomic_add_fetch(&S->unknown, 1, __ATOMIC_RELAXED);
		e = pthread_mutex_consistent(&g->mu);
		if (bracket) {
			START(fd, DMA_BUF_SYNC_RW);
			END(fd, DMA_BUF_SYNC_RW);
		}
	}
	if (e) {
		errno = e;
		die("pthread_mutex_lock");
	}
}

static void unlock_page(int p) { pthread_mutex_unlock(&S->page[p].mu); }

enum op { LOAD, STORE, READ, WRITE, READ_ODD, WRITE_ODD, SYNC, DEVICE_MAP, DEVICE_IO, DD_IN, DD_OUT, REOPEN, REOPEN_DEVICE, ADVISE, OPS };
static const char *const names[OPS] = { "load", "store", "read", "write", "read odd", "write odd", "sync", "device map", "device io",
					"dd in", "dd out", "reopen", "reopen device", "madvise" };
static const int weight[OPS] = { 20, 18, 10, 10, 8, 8, 4, 14, 6, 4, 4, 2, 2, 2 };

static struct worker {
	int slot, fd, dfd;
	volatile uint64_t *m, *d;
	uint64_t x, n;
} W;

static void open_cpu(void)
{
	W.fd = open_it(-1, O_RDWR);
	W.m = map_it(W.fd);
}

static void open_device(void)
{
	W.dfd = open_it(W.slot % DEVICES, O_RDWR);
	W.d = map_it(W.dfd);
	END(W.dfd, DMA_BUF_SYNC_RW);
}

/* reopen keeps the mapping without its descriptor for a moment, or the other way round */
static void reopen(int *fd, volatile uint64_t **m, void (*again)(void))
{
	if (pick(&W.x, 2)) {
		close(*fd);
		munmap((void *)*m, (size_t)pages * PAGE);
	} else {
		munmap((void *)*m, (size_t)pages * PAGE);
		close(*fd);
	}
	again();
}

static void pass(const char *how, bool device, int first, int n, bool store, uint64_t v)
{
	volatile uint64_t *m = device ? W.d : W.m;
	for (int p = first; p < first + n; p++) {
		check_page(how, p, m + p * WORDS);
		if (store)
			write_page(how, p, m + p * WORDS, v);
	}
}

/* in and out move whole pages by system calls */
static void in(const char *how, int fd, int first, int n)
{
	uint64_t buf[AT_ONCE * WORDS];
	io(fd, false, buf, (size_t)n * PAGE, (off_t)first * PAGE);
	for (int i = 0; i < n; i++)
		check_page(how, first + i, buf + i * WORDS);
}

static void out(const char *how, int fd, int first, int n, uint64_t v)
{
	uint64_t buf[AT_ONCE * WORDS];
	fill(buf, n, v);
	io(fd, true, buf, (size_t)n * PAGE, (off_t)first * PAGE);
	for (int i = 0; i < n; i++)
		write_page(how, first + i, buf + i * WORDS, v);
}

/* odd moves a range that begins and ends anywhere but inside of a word that is checked */
static void odd(const char *how, int fd, int first, int n, bool store, uint64_t v)
{
	uint64_t buf[AT_ONCE * WORDS];
	int from = pick(&W.x, 3) ? 8 + pick(&W.x, PAGE - 16) : 0;
	int to = n * PAGE - (pick(&W.x, 3) ? 8 + pick(&W.x, PAGE - 16) : 0);
	if (to <= from)
		to = n * PAGE;
	if (store)
		fill(buf, n, v);
	io(fd, store, (char *)buf + from, (size_t)(to - from), (off_t)first * PAGE + from);
	for (int i = 0; i < n; i++)
		for (int end = 0; end < 2; end++) {
			int at = i * PAGE + (end ? PAGE - 8 : 0);
			if (at < from || at + 8 > to)
				continue;
			if (store)
				wrote(how, first + i, end, v);
			else
				check(how, first + i, end, buf[at / 8]);
		}
}

static void step(void)
{
	int sum = 0, op = 0;
	for (int i = 0; i < OPS; i++)
		sum += weight[i];
	for (int r = pick(&W.x, sum); r >= weight[op]; op++)
		r -= weight[op];
	int n = 1 + pick(&W.x, AT_ONCE), first = pick(&W.x, pages - n + 1);
	uint64_t v = ++W.n;
	for (int p = first; p < first + n; p++)
		lock_page(p, W.fd);
	const char *how = names[op];
	bool store = pick(&W.x, 3) > 0;
	uint64_t rw = store ? DMA_BUF_SYNC_RW : DMA_BUF_SYNC_READ;
	bool bracketed = bracket || pick(&W.x, 16) == 0;
	int fd;
	switch (op) {
	case LOAD:
	case STORE:
		store = op == STORE;
		rw = store ? DMA_BUF_SYNC_RW : DMA_BUF_SYNC_READ;
		if (bracketed)
			START(W.fd, rw);
		pass(how, false, first, n, store, v);
		if (bracketed)
			END(W.fd, rw);
		break;
	case READ:
		in(how, W.fd, first, n);
		break;
	case WRITE:
		out(how, W.fd, first, n, v);
		break;
	case READ_ODD:
	case WRITE_ODD:
		odd(how, W.fd, first, n, op == WRITE_ODD, v);
		break;
	case SYNC:
		if (pick(&W.x, 2) ? msync((void *)(W.m + first * WORDS), (size_t)n * PAGE, MS_SYNC) : fsync(W.fd))
			die(how);
		break;
	case DEVICE_MAP:
		START(W.dfd, rw);
		pass(how, true, first, n, store, v);
		END(W.dfd, rw);
		break;
	case DEVICE_IO:
		START(W.dfd, rw);
		if (pick(&W.x, 2)) {
			odd(how, W.dfd, first, n, store, v);
		} else {
			in(how, W.dfd, first, n);
			if (store)
				out(how, W.dfd, first, n, v);
		}
		END(W.dfd, rw);
		break;
	case DD_IN:
		fd = open_it(pick(&W.x, DEVICES), O_RDONLY);
		in(how, fd, first, n);
		close(fd);
		break;
	case DD_OUT:
		fd = open_it(pick(&W.x, DEVICES), O_WRONLY);
		out(how, fd, first, n, v);
		close(fd);
		break;
	case REOPEN:
		reopen(&W.fd, &W.m, open_cpu);
		break;
	case REOPEN_DEVICE:
		reopen(&W.dfd, &W.d, open_device);
		break;
	case ADVISE:
		madvise((void *)W.m, (size_t)pages * PAGE, MADV_DONTNEED);
		madvise((void *)W.m, (size_t)pages * PAGE, pick(&W.x, 2) ? MADV_RANDOM : MADV_NORMAL);
		break;
	}
	for (int p = first + n - 1; p >= first; p--)
		unlock_page(p);
	__atomic_add_fetch(&S->by[op], 1, __ATOMIC_RELAXED);
	__atomic_add_fetch(&S->ops, 1, __ATOMIC_RELAXED);
}

static void work(int slot, uint64_t number, uint64_t seed)
{
	W = (struct worker){ .slot = slot, .x = seed * 0x9e3779b97f4a7c15ull ^ (number << 32 | 1), .n = number << 40 };
	snprintf(me, sizeof me, "worker %" PRIu64, number);
	for (int i = 0; i < 8; i++)
		draw(&W.x);
	open_cpu();
	open_device();
	while (!__atomic_load_n(&S->stop, __ATOMIC_RELAXED))
		step();
	exit(0);
}

/* the parent, which has nothing of the mount open */

static pid_t spawn(void (*f)(int, long), void (*g)(int, uint64_t, uint64_t), int slot, uint64_t number, uint64_t seed, long turns)
{
	pid_t parent = getpid(), pid = fork();
	if (pid < 0)
		die("fork");
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		if (f)
			f(slot, turns);
		g(slot, number, seed);
	}
	return pid;
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* reap waits for a process that is about to end. */
static int reap(pid_t pid)
{
	int status;
	for (double end = now() + HANG_SECONDS; now() < end;) {
		pid_t r = waitpid(pid, &status, WNOHANG);
		if (r == pid)
			return status;
		if (r < 0)
			die("waitpid");
		usleep(500);
	}
	char path[64], text[1024];
	for (int i = 0; i < 2; i++) {
		snprintf(path, sizeof path, "/proc/%d/%s", pid, i ? "stack" : "status");
		int fd = open(path, O_RDONLY), n = fd < 0 ? 0 : (int)read(fd, text, sizeof text);
		fprintf(stderr, "devclient: process %d hangs: %s:\n%.*s\n", pid, path, n > 0 ? n : 0, text);
	}
	exit(3);
}

static int ended_well(int status)
{
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 1;
	__atomic_add_fetch(&S->bad, 1, __ATOMIC_RELAXED);
	if (WIFSIGNALED(status))
		fprintf(stderr, "devclient: a process was ended by signal %d\n", WTERMSIG(status));
	return 0;
}

/* look compares every page, as CPU and as device, once all is quiet. */
static void look(int unused, long turns)
{
	(void)unused, (void)turns;
	strcpy(me, "the last look");
	int fd = open_it(-1, O_RDWR), dfd = open_it(0, O_RDONLY);
	volatile uint64_t *m = map_it(fd);
	uint64_t buf[WORDS];
	if (bracket)
		START(fd, DMA_BUF_SYNC_READ);
	for (int p = 0; p < pages; p++) {
		lock_page(p, fd);
		check_page("load", p, m + p * WORDS);
		io(fd, false, buf, PAGE, (off_t)p * PAGE);
		check_page("read(2)", p, buf);
		io(dfd, false, buf, PAGE, (off_t)p * PAGE);
		check_page("device", p, buf);
		unlock_page(p);
	}
	exit(0);
}

static int result(const char *unit, uint64_t kills, uint64_t seed)
{
	printf("%s %" PRIu64 " checks %" PRIu64 " bad %" PRIu64 " kills %" PRIu64 " unknown %" PRIu64 " seed %" PRIu64 "\n", unit, S->ops,
	       S->checks, S->bad, kills, S->unknown, seed);
	return S->bad ? 1 : 0;
}

/* say writes a line into a file of the mount, as echo does. */
static void say(const char *file, const char *line)
{
	char path[512];
	snprintf(path, sizeof path, "%s/%s", mnt, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, line, strlen(line)) < 0)
		die(path);
	close(fd);
}

static int model(uint64_t limit, double seconds, uint64_t seed, bool fences)
{
	pid_t pid[WORKERS];
	uint64_t number = 0, kills = 0, x = seed * 0xbf58476d1ce4e5b9ull | 1;
	for (int i = 0; i < WORKERS; i++)
		pid[i] = spawn(NULL, work, i, ++number, seed, 0);
	double end = now() + seconds, moved = now();
	uint64_t last = 0, fence = 0;
	char file[300], line[64];
	snprintf(file, sizeof file, "state/%s/write_fences", buffer);
	while (!S->bad && (limit ? S->ops < limit : now() < end)) {
		usleep((useconds_t)(2000 + pick(&x, 40000)));
		if (fences) {   /* the next is added before the last one signals, but once in a while */
			bool pause = pick(&x, 4) == 0;
			snprintf(line, sizeof line, "tl:%" PRIu64 "\n", fence + 1);
			if (!pause)
				say(file, line);
			snprintf(line, sizeof line, "%" PRIu64 "\n", fence);
			if (fence)
				say("timelines/tl/value", line);
			fence += !pause;
		}
		int i = pick(&x, WORKERS);
		kill(pid[i], SIGKILL);
		int status = reap(pid[i]);
		if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
			kills++;
		else
			ended_well(status);
		pid[i] = spawn(NULL, work, i, ++number, seed, 0);
		uint64_t ops = S->ops;
		if (ops != last) {
			last = ops;
			moved = now();
		} else if (now() - moved > HANG_SECONDS) {
			fprintf(stderr, "devclient: nobody gets any further\n");
			break;
		}
	}
	S->stop = 1;
	if (fence) {
		snprintf(line, sizeof line, "%" PRIu64 "\n", fence);
		say("timelines/tl/value", line);
	}
	for (int i = 0; i < WORKERS; i++)
		ended_well(reap(pid[i]));
	ended_well(reap(spawn(look, NULL, 0, 0, 0, 0)));
	for (int i = 0; i < OPS; i++)
		printf("%s %" PRIu64 ", ", names[i], S->by[i]);
	return result("ops", kills, seed);
}

static int alternate(long turns, uint64_t seed)
{
	pid_t pid[4];
	S->draw = seed * 0x9e3779b97f4a7c15ull | 1;
	for (int i = 0; i < 4; i++)
		sem_init(&S->turn[i], 1, 0);
	for (int i = 0; i < 4; i++)
		pid[i] = spawn(take_turns, NULL, i, 0, 0, turns);
	sem_post(&S->turn[0]);
	double moved = now();
	for (uint64_t last = 0; !S->stop;) {
		usleep(20000);
		uint64_t ops = S->ops;
		if (ops != last) {
			last = ops;
			moved = now();
		} else if (now() - moved > HANG_SECONDS) {
			fprintf(stderr, "devclient: nobody gets any further\n");
			exit(3);
		}
		for (int i = 0; i < 4; i++) {
			siginfo_t info = { 0 };
			if (waitid(P_PID, (id_t)pid[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid && !S->stop)
				exit(1);        /* it has said why */
		}
	}
	for (int i = 0; i < 4; i++)
		ended_well(reap(pid[i]));
	ended_well(reap(spawn(look, NULL, 0, 0, 0, 0)));
	return result("turns", 0, seed);
}

static int copy(const char *from, const char *to)
{
	int in = open(from, O_RDONLY | O_CLOEXEC), out = open(to, O_WRONLY | O_CLOEXEC);
	if (in < 0 || out < 0)
		die("open");
	void *p = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, in, 0);
	if (p == MAP_FAILED)
		die("mmap");
	raise(SIGSTOP);
	io(out, true, p, PAGE, 0);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 4 && strcmp(argv[1], "copy") == 0)
		return strcpy(me, "copy"), copy(argv[2], argv[3]);
	if (argc < 6)
		return fprintf(stderr, "devclient: too few arguments\n"), 2;
	strcpy(me, "parent");
	setvbuf(stderr, NULL, _IOLBF, 0);
	mnt = argv[2];
	buffer = argv[3];
	bool fences = false;
	for (int i = 6; i < argc; i++) {
		bracket |= strcmp(argv[i], "bracket") == 0;
		fences |= strcmp(argv[i], "fences") == 0;
	}
	S = mmap(NULL, sizeof *S, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (S == MAP_FAILED)
		die("mmap");
	char path[512];
	struct stat st;
	path_of(path, sizeof path, -1);
	if (stat(path, &st) < 0)
		die(path);
	pages = (int)(st.st_size / PAGE);
	if (pages < AT_ONCE || pages > MAX_PAGES)
		return fprintf(stderr, "devclient: %d pages\n", pages), 2;
	pthread_mutexattr_t a;
	pthread_mutexattr_init(&a);
	pthread_mutexattr_setpshared(&a, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&a, PTHREAD_MUTEX_ROBUST);
	for (int i = 0; i < pages; i++) {
		pthread_mutex_init(&S->page[i].mu, &a);
		S->page[i].known[0] = S->page[i].known[1] = true;       /* zeroes */
	}
	if (strcmp(argv[1], "alternate") == 0)
		return alternate(atol(argv[4]), strtoull(argv[5], NULL, 0));
	if (strcmp(argv[1], "model") == 0 && argc > 6)
		return model(strtoull(argv[4], NULL, 0), atof(argv[5]), strtoull(argv[6], NULL, 0), fences);
	return fprintf(stderr, "devclient: unknown command\n"), 2;
}
