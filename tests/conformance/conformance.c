/*
 * conformance: the behaviours of a kernel dma-buf that a program can see, one by one.
 *
 *	conformance mount MNT [CASE...]     through the files of a mounted dmabuffs
 *	conformance run [CASE...]           through descriptors, under `dmabuffs run`
 *	conformance kernel [CASE...]        through descriptors of the kernel's udmabuf, heaps and sw_sync
 *
 * Prints one row a case, "B37 same", "B39 different: what came" or "B153 n/a: why". The numbers and what they stand
 * for are docs/conformance.md's. Each case runs in a process of its own, for at most 20 seconds. Exit status 0: every
 * case came to an answer, whichever it is; 1: some did not, "B15 broken: why"; 2: wrong usage.
 */
#include "conformance.h"

#include <stdarg.h>
#include <sys/epoll.h>

static struct test { int no; const char *text; void (*run)(void); } tests[256];
static int count;

#define CASE(no, text)                                                                            \
	static void case_##no(void);                                                              \
	__attribute__((constructor)) static void add_##no(void) { tests[count++] = (struct test){ no, text, case_##no }; } \
	static void case_##no(void)

/* the first thing that was different */
static char difference[512];

void differs(const char *format, ...)
{
	va_list ap;
	if (difference[0])
		return;
	va_start(ap, format);
	vsnprintf(difference, sizeof difference, format, ap);
	va_end(ap);
}

static void report(void)
{
	if (difference[0])
		printf("different: %s\n", difference);
	else
		puts("same");
	fflush(stdout);
}

_Noreturn void na(const char *why)
{
	printf("n/a: %s\n", why);
	fflush(stdout);
	_exit(0);
}

static const char *show(long v, char *room, size_t n)
{
	if (v < 0 && v > -4096 && strerrorname_np((int)-v))
		snprintf(room, n, "%s", strerrorname_np((int)-v));
	else
		snprintf(room, n, "%ld", v);
	return room;
}

static void eq(const char *what, long got, long want)
{
	char a[32], b[32];
	if (got != want)
		differs("%s: %s, not %s", what, show(got, a, sizeof a), show(want, b, sizeof b));
}

static void yes(const char *what, bool ok)
{
	if (!ok)
		differs("not so: %s", what);
}

/* calls, with their result or -errno */
static int d4(void) { return B->buffer(D4, O_RDWR); }
static long sync_(int fd, uint64_t flags) { struct dma_buf_sync s = { flags }; return R(ioctl(fd, DMA_BUF_IOCTL_SYNC, &s)); }
static long import(int fd, int fence, uint32_t flags) { struct sync_file_arg a = { flags, fence }; return R(ioctl(fd, IMPORT_SYNC_FILE, &a)); }
static long export(int fd, uint32_t flags) { struct sync_file_arg a = { flags, -1 }; long r = R(ioctl(fd, EXPORT_SYNC_FILE, &a)); return r < 0 ? r : a.fd; }
static long setname(int fd, unsigned long request, const char *name) { return R(ioctl(fd, request, name)); }

static long poll_(int fd, short events, int ms)
{
	struct pollfd p = { .fd = fd, .events = events };
	int r = poll(&p, 1, ms);
	return r < 0 ? -errno : r == 0 ? 0 : p.revents;
}

static long map_at(int fd, size_t len, int prot, int flags, uint64_t off, char **out)
{
	/* the system call: the C library refuses some offsets by itself */
	void *p = mmap(NULL, len, prot, flags, fd, (off_t)off);
	if (p == MAP_FAILED)
		return -errno;
	if (out)
		*out = p;
	else
		munmap(p, len);
	return 0;
}

static long map_(int fd, size_t len, uint64_t off) { return map_at(fd, len, PROT_READ | PROT_WRITE, MAP_SHARED, off, NULL); }

static char *mapped(int fd, size_t len, uint64_t off)
{
	char *p = NULL;
	long r = map_at(fd, len, PROT_READ | PROT_WRITE, MAP_SHARED, off, &p);
	eq("mmap", r, 0);
	if (r < 0) {
		report();
		_exit(0);
	}
	return p;
}

static long merge(int a, int b, const char *name, uint32_t flags, uint32_t pad)
{
	struct sync_merge_data m = { .fd2 = b, .flags = flags, .pad = pad };
	memcpy(m.name, name, strnlen(name, sizeof m.name));
	long r = R(ioctl(a, SYNC_IOC_MERGE, &m));
	return r < 0 ? r : m.fence;
}

/* a merged file, which the case cannot do without */
static int merged(int a, int b)
{
	long r = merge(a, b, "merged", 0, 0);
	if (r < 0) {
		eq("SYNC_IOC_MERGE", r, 0);
		report();
		_exit(0);
	}
	return (int)r;
}

static int exported(int fd, uint32_t flags)
{
	long r = export(fd, flags);
	if (r < 0) {
		eq("EXPORT_SYNC_FILE", r, 0);
		report();
		_exit(0);
	}
	return (int)r;
}

static struct sync_fence_info fences[64];

static long info(int fd, uint32_t room, struct sync_file_info *i)
{
	memset(i, 0, sizeof *i);
	memset(fences, 0, sizeof fences);
	i->num_fences = room;
	i->sync_fence_info = (uintptr_t)fences;
	return R(ioctl(fd, SYNC_IOC_FILE_INFO, i));
}

static long status_of(int fd)
{
	struct sync_file_info i;
	long r = info(fd, 64, &i);
	return r < 0 ? -1000 + r : i.status;
}

static long fences_of(int fd)
{
	struct sync_file_info i;
	long r = info(fd, 64, &i);
	return r < 0 ? r : (long)i.num_fences;
}

/* something that is to block, in a thread, until it is let go */
struct waiting { long (*call)(int, long); int fd; long arg; long result; pthread_t t; volatile bool done; };

static void *wait_in(void *p)
{
	struct waiting *w = p;
	w->result = w->call(w->fd, w->arg);
	w->done = true;
	return NULL;
}

static void blocks(struct waiting *w)
{
	if (pthread_create(&w->t, NULL, wait_in, w))
		differs("no thread");
	usleep(200000);
	if (w->done)
		differs("it does not block, but gives %ld", w->result);
}

static long joined(struct waiting *w)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	ts.tv_sec += 5;
	if (pthread_timedjoin_np(w->t, NULL, &ts)) {
		differs("it does not come back");
		report();
		_exit(0);
	}
	return w->result;
}

static long call_sync(int fd, long flags) { return sync_(fd, (uint64_t)flags); }
static long call_poll(int fd, long events) { return poll_(fd, (short)events, -1); }

static int fence(int tl, uint64_t v) { return B->fence(tl, v); }
enum { READ = DMA_BUF_SYNC_READ, WRITE = DMA_BUF_SYNC_WRITE, RW = DMA_BUF_SYNC_RW, END = DMA_BUF_SYNC_END, BOTH = POLLIN | POLLOUT };

/* bufinfo: the row of a buffer by its inode, its fence rows and devices, or the file */
static char *bufinfo(void)
{
	static char text[1 << 20];
	int fd = open(B->bufinfo, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		na("no bufinfo");
	size_t n = 0;
	ssize_t r;
	while ((r = read(fd, text + n, sizeof text - 1 - n)) > 0)
		n += (size_t)r;
	close(fd);
	text[n] = 0;
	return text;
}

struct row { bool found; unsigned long size; unsigned flags, mode; long count; char exp[64]; unsigned long ino; char name[64]; char rest[4096]; };

static struct row row_of(ino_t ino)
{
	struct row r = { 0 };
	char *text = bufinfo();
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		struct row n = { 0 };
		if (sscanf(line, "%lu\t%x\t%x\t%ld\t%63[^\t]\t%lu\t%63[^\n]", &n.size, &n.flags, &n.mode, &n.count, n.exp, &n.ino, n.name) >= 6) {
			if (r.found)
				break;
			if (n.ino == ino)
				r = n, r.found = true;
		} else if (r.found) {
			if (strncmp(line, "Total", 5) == 0 && strstr(line, "objects"))
				break;
			strcat(strcat(r.rest, line), "\n");
		}
	}
	return r;
}

static ino_t ino(int fd)
{
	struct stat st;
	eq("fstat", R(fstat(fd, &st)), 0);
	return st.st_ino;
}

static bool there(ino_t i) { return row_of(i).found; }

static bool gone(ino_t i)
{
	for (int tries = 0; tries < 100; tries++) {
		if (!there(i))
			return true;
		usleep(20000);
	}
	return false;
}

/* a line of fdinfo, or NULL */
static const char *fdinfo(int fd, const char *key)
{
	static char text[4096];
	char p[64];
	snprintf(p, sizeof p, "/proc/self/fdinfo/%d", fd);
	int f = open(p, O_RDONLY | O_CLOEXEC);
	ssize_t n = read(f, text, sizeof text - 1);
	close(f);
	text[n > 0 ? n : 0] = 0;
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
		if (strncmp(line, key, strlen(key)) == 0 && line[strlen(key)] == ':')
			return line + strlen(key) + 1 + (line[strlen(key) + 1] == '\t');
	return NULL;
}

/* references, by fdinfo or else by bufinfo; only differences mean something */
static long references(int fd)
{
	const char *c = fdinfo(fd, "count");
	return c ? atol(c) : row_of(ino(fd)).count;
}

/* the name that SET_NAME gave */
static const char *name(int fd)
{
	static char n[64];
	const char *s = fdinfo(fd, "name");
	if (s) {
		snprintf(n, sizeof n, "%s", s);
		return n;
	}
	struct row r = row_of(ino(fd));
	snprintf(n, sizeof n, "%s", r.name);
	return n;
}

/* --- 8.1 references ---------------------------------------------------- */

CASE(12, "size 0: lseek to the end gives 0, mmap EINVAL")
{
	int fd = B->buffer(0, O_RDWR);
	eq("lseek to the end", R(lseek(fd, 0, SEEK_END)), 0);
	eq("mmap", map_(fd, PAGE, 0), -EINVAL);
}

CASE(15, "dup, and close of the original: the buffer is alive")
{
	int fd = d4(), copy = dup(fd);
	mapped(fd, D4, 0)[5] = 42;
	ino_t i = ino(fd);
	B->unname(fd);
	close(fd);
	yes("it is in bufinfo", there(i));
	eq("the byte", mapped(copy, D4, 0)[5], 42);
}

CASE(16, "a mapping outlives every descriptor; the release comes once, after munmap")
{
	int fd = d4();
	char *p = mapped(fd, D4, 0);
	ino_t i = ino(fd);
	p[100] = 7;
	B->unname(fd);
	close(fd);
	eq("the byte", p[100], 7);
	p[8192] = 8;
	eq("a byte that is stored then", p[8192], 8);
	yes("it is in bufinfo", there(i));
	munmap(p, D4);
	yes("it is released after munmap", gone(i));
}

CASE(17, "passed by SCM_RIGHTS, the sender closes: works, with the same inode")
{
	int fd = d4(), pair[2];
	ino_t i = ino(fd);
	mapped(fd, D4, 0)[0] = 99;
	eq("socketpair", R(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)), 0);
	union { char buf[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } c;
	memset(&c, 0, sizeof c);
	struct iovec iov = { "x", 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = c.buf, .msg_controllen = sizeof c.buf };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET, h->cmsg_type = SCM_RIGHTS, h->cmsg_len = CMSG_LEN(sizeof fd);
	memcpy(CMSG_DATA(h), &fd, sizeof fd);
	eq("sendmsg", R(sendmsg(pair[0], &m, 0)), 1);
	close(fd);
	pid_t pid = fork();
	if (pid == 0) {
		char byte;
		int got;
		iov.iov_base = &byte;
		if (recvmsg(pair[1], &m, 0) < 0)
			_exit(1);
		memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof got);
		char *p = mmap(NULL, D4, PROT_READ | PROT_WRITE, MAP_SHARED, got, 0);
		_exit(p == MAP_FAILED || p[0] != 99 || ino(got) != i);
	}
	int st = 0;
	waitpid(pid, &st, 0);
	eq("the receiver's status", st, 0);
}

CASE(18, "another descriptor by another export: equal inode, one release")
{
	int fd = d4(), other = B->again(fd);
	yes("the inodes are equal", ino(fd) == ino(other));
	ino_t i = ino(fd);
	B->unname(fd);
	close(fd);
	yes("it is alive", there(i));
	close(other);
	yes("it is released", gone(i));
}

/* --- 8.2 the file ------------------------------------------------------ */

CASE(37, "lseek(0, SEEK_END) gives the size") { eq("lseek", R(lseek(d4(), 0, SEEK_END)), D4); }
CASE(38, "lseek(0, SEEK_SET) gives 0") { eq("lseek", R(lseek(d4(), 0, SEEK_SET)), 0); }
CASE(39, "lseek(0, SEEK_CUR): EINVAL") { eq("lseek", R(lseek(d4(), 0, SEEK_CUR)), -EINVAL); }

CASE(40, "lseek(1, SEEK_SET), lseek(-1, SEEK_END): EINVAL")
{
	int fd = d4();
	eq("lseek(1, SEEK_SET)", R(lseek(fd, 1, SEEK_SET)), -EINVAL);
	eq("lseek(-1, SEEK_END)", R(lseek(fd, -1, SEEK_END)), -EINVAL);
}

CASE(41, "lseek SEEK_DATA, SEEK_HOLE, whence 99: EINVAL")
{
	int fd = d4();
	eq("whence 99", R(lseek(fd, 0, 99)), -EINVAL);
	eq("SEEK_DATA", R(lseek(fd, 0, SEEK_DATA)), -EINVAL);
	eq("SEEK_HOLE", R(lseek(fd, 0, SEEK_HOLE)), -EINVAL);
}

CASE(42, "SEEK_END leaves the position at 0")
{
	int fd = d4();
	lseek(fd, 0, SEEK_END);
	const char *pos = fdinfo(fd, "pos");
	eq("pos", pos ? atol(pos) : -1, 0);
}

CASE(43, "read: EINVAL") { char c; eq("read", R(read(d4(), &c, 1)), -EINVAL); }
CASE(44, "write on a read-only buffer: EBADF") { eq("write", R(write(B->buffer(D4, O_RDONLY), "x", 1)), -EBADF); }
CASE(45, "write: EINVAL") { eq("write", R(write(d4(), "x", 1)), -EINVAL); }

CASE(46, "pread, pwrite: ESPIPE")
{
	char c;
	int fd = d4();
	eq("pread", R(pread(fd, &c, 1, 0)), -ESPIPE);
	eq("pwrite", R(pwrite(fd, "x", 1, 0)), -ESPIPE);
}

CASE(47, "ftruncate(0), fsync: EINVAL; fallocate: ENODEV")
{
	int fd = d4();
	eq("fsync", R(fsync(fd)), -EINVAL);
	eq("fallocate", R(fallocate(fd, 0, 0, PAGE)), -ENODEV);
	eq("ftruncate", R(ftruncate(fd, 0)), -EINVAL);
}

CASE(48, "fstat: the size, 512-byte blocks of it, mode 0600 without a file type")
{
	struct stat st;
	eq("fstat", R(fstat(d4(), &st)), 0);
	eq("st_size", st.st_size, D4);
	eq("st_blocks", st.st_blocks, D4 / 512);
	eq("permissions", st.st_mode & 07777, 0600);
	eq("file type", st.st_mode & S_IFMT, 0);
}

CASE(49, "two buffers have different inodes") { yes("the inodes differ", ino(d4()) != ino(d4())); }

CASE(50, "fstatfs: f_type is 0x444d4142")
{
	struct statfs s;
	eq("fstatfs", R(fstatfs(d4(), &s)), 0);
	eq("f_type", (long)s.f_type, 0x444d4142);
}

CASE(51, "the link in /proc/self/fd is /dmabuf: and the name")
{
	char p[64], link[256] = "";
	int fd = d4();
	snprintf(p, sizeof p, "/proc/self/fd/%d", fd);
	for (int named = 0; named < 2; named++) {
		ssize_t n = readlink(p, link, sizeof link - 1);
		link[n > 0 ? n : 0] = 0;
		if (strcmp(link, named ? "/dmabuf:abc" : "/dmabuf:")) {
			differs("it is a path, %s", strrchr(link, '/') ? "of a file" : link);
			return;
		}
		setname(fd, DMA_BUF_SET_NAME_B, "abc");
	}
}

CASE(52, "unknown ioctls: ENOTTY")
{
	char arg[64] = "";
	int fd = d4();
	static const unsigned long all[] = { 0x40086299, 0x40086204, 0xc0086200, 0x80086200, 0x400c6200, 0x6200, 0x40087500, 0xc0184800, 0x40045701 };
	for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
		char what[32];
		snprintf(what, sizeof what, "ioctl %#lx", all[i]);
		eq(what, R(ioctl(fd, all[i], arg)), -ENOTTY);
	}
}

/* --- 8.3 mmap ---------------------------------------------------------- */

CASE(53, "the whole buffer, twice: each sees the other's stores")
{
	int fd = d4();
	char *a = mapped(fd, D4, 0), *b = mapped(fd, D4, 0);
	for (int i = 0; i < D4; i += 1000)
		a[i] = (char)i, eq("a byte", b[i], (char)i);
	b[1] = 3;
	eq("a byte back", a[1], 3);
}

CASE(54, "the last page")
{
	int fd = d4();
	char *last = mapped(fd, PAGE, 3 * PAGE), *all = mapped(fd, D4, 0);
	last[0] = 5;
	eq("its byte", all[3 * PAGE], 5);
}

CASE(55, "two pages at the last one: EINVAL") { eq("mmap", map_(d4(), 2 * PAGE, 3 * PAGE), -EINVAL); }
CASE(56, "a page behind the end: EINVAL") { eq("mmap", map_(d4(), PAGE, D4), -EINVAL); }
CASE(57, "one byte more than the size: EINVAL") { eq("mmap", map_(d4(), D4 + 1, 0), -EINVAL); }
CASE(58, "one byte") { eq("mmap", map_(d4(), 1, 0), 0); }
CASE(59, "offset 1: EINVAL") { eq("mmap", map_(d4(), PAGE, 1), -EINVAL); }
CASE(60, "length 0: EINVAL") { eq("mmap", map_(d4(), 0, 0), -EINVAL); }

CASE(61, "two pages at the byte offset 2^64-4096: EOVERFLOW; at 2^40: EINVAL")
{
	int fd = d4();
	eq("at 2^64-4096", map_(fd, 2 * PAGE, -(uint64_t)PAGE), -EOVERFLOW);
	eq("at 2^40", map_(fd, 2 * PAGE, 1ull << 40), -EINVAL);
}

CASE(62, "a buffer of 4097 bytes has one page to map")
{
	int fd = B->buffer(4097, O_RDWR);
	eq("mmap of one page", map_(fd, PAGE, 0), 0);
	eq("mmap of two", map_(fd, 2 * PAGE, 0), -EINVAL);
}

CASE(63, "a read-only buffer: PROT_WRITE EACCES, PROT_READ works")
{
	int fd = B->buffer(D4, O_RDONLY);
	eq("PROT_WRITE", map_(fd, D4, 0), -EACCES);
	eq("PROT_READ", map_at(fd, D4, PROT_READ, MAP_SHARED, 0, NULL), 0);
}

CASE(64, "a write-only buffer: EACCES")
{
	int fd = B->buffer(D4, O_WRONLY);
	eq("PROT_READ", map_at(fd, D4, PROT_READ, MAP_SHARED, 0, NULL), -EACCES);
	eq("PROT_WRITE", map_at(fd, D4, PROT_WRITE, MAP_SHARED, 0, NULL), -EACCES);
}

CASE(69, "mremap of one page to two: EFAULT")
{
	char *p = mapped(d4(), PAGE, 0);
	eq("mremap", mremap(p, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED ? -errno : 0, -EFAULT);
}

CASE(70, "mmap of a closed descriptor: EBADF")
{
	int fd = d4();
	close(fd);
	eq("mmap", map_(fd, PAGE, 0), -EBADF);
}

static bool present(const char *p)
{
	uint64_t v = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pread(fd, &v, 8, (off_t)((uintptr_t)p / PAGE * 8)) != 8)
		na("no /proc/self/pagemap");
	close(fd);
	return v >> 63;
}

CASE(71, "an exporter that zaps PTEs: device's domain, then a touch: one new fault, coherent data")
{
	int fd = d4();
	char *p = mapped(fd, D4, 0);
	p[0] = 1;
	yes("a touched page is mapped", present(p));
	int v = B->attach(fd, "dev0");
	yes("it is mapped no more in the device's domain", !present(p));
	char c = 2;
	eq("the device's write", R(B->device_write(v, &c, 1, 1)), 1);
	close(v);
	eq("the CPU's byte", p[0], 1);
	eq("the device's byte", p[1], 2);
	yes("the page is mapped again", present(p));
}

/* --- 8.4 poll ---------------------------------------------------------- */

CASE(72, "no fence: IN and OUT") { eq("poll", poll_(d4(), BOTH, 0), BOTH); }

CASE(73, "a read fence pends: IN is ready, OUT is not")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), READ), 0);
	eq("poll IN", poll_(fd, POLLIN, 0), POLLIN);
	eq("poll OUT", poll_(fd, POLLOUT, 0), 0);
}

CASE(74, "a read fence pends: IN|OUT gives IN")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), READ), 0);
	eq("poll", poll_(fd, BOTH, 0), POLLIN);
}

CASE(75, "a write fence pends: neither")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	eq("poll IN", poll_(fd, POLLIN, 0), 0);
	eq("poll OUT", poll_(fd, POLLOUT, 0), 0);
}

CASE(76, "the write fence signals: both")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	B->inc(tl, 1);
	eq("poll", poll_(fd, BOTH, 0), BOTH);
}

CASE(77, "blocked in poll IN, the fence signals: IN")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	struct waiting w = { call_poll, fd, POLLIN, 0, 0, false };
	blocks(&w);
	B->inc(tl, 1);
	eq("poll", joined(&w), POLLIN);
}

CASE(78, "32 read fences of 32 timelines, in reverse: OUT after the last, IN throughout")
{
	int fd = d4(), tl[32];
	for (int i = 0; i < 32; i++) {
		tl[i] = B->timeline();
		eq("import", import(fd, fence(tl[i], 1), READ), 0);
	}
	for (int i = 31; i >= 0; i--) {
		eq("poll OUT before the last", poll_(fd, POLLOUT, 0), 0);
		eq("poll IN", poll_(fd, POLLIN, 0), POLLIN);
		B->inc(tl[i], 1);
	}
	eq("poll OUT", poll_(fd, POLLOUT, 0), POLLOUT);
}

CASE(79, "a fence that fails: both, and no POLLERR")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	B->end(tl);
	eq("poll", poll_(fd, BOTH, 5000), BOTH);
}

CASE(80, "POLLPRI alone: never") { eq("poll", poll_(d4(), POLLPRI, 50), 0); }
CASE(81, "events 0: never") { eq("poll", poll_(d4(), 0, 50), 0); }

CASE(82, "two threads in poll IN both wake")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	struct waiting a = { call_poll, fd, POLLIN, 0, 0, false }, b = a;
	blocks(&a);
	blocks(&b);
	B->inc(tl, 1);
	eq("the first", joined(&a), POLLIN);
	eq("the second", joined(&b), POLLIN);
}

CASE(83, "poll(OUT, 0) in vain: one reference more, until the fence signals")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	long before = references(fd);
	eq("poll", poll_(fd, POLLOUT, 0), 0);
	eq("references more", references(fd) - before, 1);
	eq("poll", poll_(fd, POLLOUT, 0), 0);
	eq("references more after another one", references(fd) - before, 1);
	B->inc(tl, 1);
	eq("references more after the signal", references(fd) - before, 0);
}

CASE(84, "and with every descriptor closed it is released only after the signal")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	eq("poll", poll_(fd, POLLOUT, 0), 0);
	ino_t i = ino(fd);
	B->unname(fd);
	close(fd);
	usleep(200000);
	yes("it is alive", there(i));
	B->inc(tl, 1);
	yes("it is released", gone(i));
}

CASE(87, "epoll edge-triggered on OUT, two read fences: an event after the second, none after the first")
{
	int fd = d4(), t1 = B->timeline(), t2 = B->timeline(), ep = epoll_create1(EPOLL_CLOEXEC);
	eq("import", import(fd, fence(t1, 1), READ), 0);
	eq("import", import(fd, fence(t2, 1), READ), 0);
	struct epoll_event e = { .events = EPOLLOUT | EPOLLET };
	eq("epoll_ctl", R(epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e)), 0);
	eq("events before", R(epoll_wait(ep, &e, 1, 50)), 0);
	B->inc(t1, 1);
	eq("events after the first", R(epoll_wait(ep, &e, 1, 200)), 0);
	B->inc(t2, 1);
	eq("events after the second", R(epoll_wait(ep, &e, 1, 5000)), 1);
	eq("its bits", e.events, EPOLLOUT);
}

/* --- 8.5 ioctls -------------------------------------------------------- */

CASE(88, "SYNC with flags 1, 2, 3, 5, 6, 7: 0")
{
	int fd = d4();
	for (uint64_t f = 1; f <= 7; f++)
		if (f != 4)
			eq("SYNC", sync_(fd, f), 0);
}

CASE(89, "SYNC with flags 0 and 4: EINVAL")
{
	int fd = d4();
	eq("flags 0", sync_(fd, 0), -EINVAL);
	eq("flags 4", sync_(fd, 4), -EINVAL);
}

CASE(90, "SYNC with any other bit: EINVAL")
{
	int fd = d4();
	for (int bit = 3; bit < 64; bit++)
		eq("SYNC", sync_(fd, 1ull << bit | 1), -EINVAL);
	eq("flags 0x11", sync_(fd, 0x11), -EINVAL);
}

CASE(91, "SYNC with a bad pointer: EFAULT") { eq("SYNC", R(ioctl(d4(), DMA_BUF_IOCTL_SYNC, (void *)8)), -EFAULT); }

static void start_waits(uint32_t as, long flags)
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), as), 0);
	struct waiting w = { call_sync, fd, flags, 0, 0, false };
	blocks(&w);
	B->inc(tl, 1);
	eq("SYNC START", joined(&w), 0);
}

CASE(92, "a write fence pends: START READ waits for it") { start_waits(WRITE, READ); }

CASE(93, "a read fence pends: START READ goes through at once")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), READ), 0);
	eq("SYNC START READ", sync_(fd, READ), 0);
}

CASE(94, "a read fence pends: START WRITE waits for it") { start_waits(READ, WRITE); }

CASE(95, "a write fence pends: END goes through at once")
{
	int fd = d4(), tl = B->timeline();
	eq("SYNC START", sync_(fd, RW), 0);
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	eq("SYNC END", sync_(fd, RW | END), 0);
}

static void nothing(int sig) { (void)sig; }

CASE(96, "START waits, a signal without SA_RESTART: EINTR")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	struct sigaction a = { .sa_handler = nothing };
	sigaction(SIGUSR1, &a, NULL);
	struct waiting w = { call_sync, fd, RW, 0, 0, false };
	blocks(&w);
	pthread_kill(w.t, SIGUSR1);
	eq("SYNC START", joined(&w), -EINTR);
}

CASE(99, "no fences: START, END") { int fd = d4(); eq("START", sync_(fd, RW), 0); eq("END", sync_(fd, RW | END), 0); }

CASE(100, "the write fence failed: START READ gives 0")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	B->end(tl);
	eq("SYNC START READ", sync_(fd, READ), 0);
}

CASE(101, "SET_NAME_A, SET_NAME_B: 0, and the name is shown")
{
	int fd = d4();
	eq("SET_NAME_A", setname(fd, DMA_BUF_SET_NAME_A, "x"), 0);
	yes("the name is x", strcmp(name(fd), "x") == 0);
	eq("SET_NAME_B", setname(fd, DMA_BUF_SET_NAME_B, "a longer name"), 0);
	yes("the name is the longer one", strcmp(name(fd), "a longer name") == 0);
}

CASE(102, "a name of 31 bytes: 0; of 32: EINVAL, and the old one stays")
{
	char n[40] = "";
	int fd = d4();
	memset(n, 'n', 31);
	eq("31", setname(fd, DMA_BUF_SET_NAME_B, n), 0);
	yes("the name is whole", strcmp(name(fd), n) == 0);
	memset(n, 'm', 32);
	eq("32", setname(fd, DMA_BUF_SET_NAME_B, n), -EINVAL);
	eq("32 by A", setname(fd, DMA_BUF_SET_NAME_A, n), -EINVAL);
	yes("the old name stays", name(fd)[0] == 'n');
}

CASE(103, "SET_NAME with a bad pointer: EFAULT, and the old name stays")
{
	int fd = d4();
	eq("SET_NAME", setname(fd, DMA_BUF_SET_NAME_B, "keep"), 0);
	eq("SET_NAME of 8", setname(fd, DMA_BUF_SET_NAME_B, (char *)8), -EFAULT);
	yes("the old name stays", strcmp(name(fd), "keep") == 0);
}

CASE(104, "SET_NAME while a device is attached: 0")
{
	int fd = d4();
	B->attach(fd, "dev0");
	eq("SET_NAME", setname(fd, DMA_BUF_SET_NAME_B, "busy"), 0);
}

CASE(105, "the empty name is a name")
{
	int fd = d4();
	eq("SET_NAME", setname(fd, DMA_BUF_SET_NAME_B, ""), 0);
	yes("the name is empty", strcmp(name(fd), "") == 0);
}

CASE(106, "EXPORT without fences: close-on-exec, POLLIN at once")
{
	int fd = d4();
	for (uint32_t f = 1; f <= 3; f++) {
		int s = exported(fd, f);
		eq("FD_CLOEXEC", fcntl(s, F_GETFD), FD_CLOEXEC);
		eq("poll", poll_(s, POLLIN, 0), POLLIN);
	}
}

CASE(107, "EXPORT with flags 0, 4, 8: EINVAL")
{
	int fd = d4();
	eq("flags 0", export(fd, 0), -EINVAL);
	eq("flags 4", export(fd, 4), -EINVAL);
	eq("flags 8", export(fd, 8), -EINVAL);
}

CASE(108, "a read fence pends: EXPORT READ is signaled, EXPORT WRITE is not")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), READ), 0);
	eq("READ", poll_(exported(fd, READ), POLLIN, 0), POLLIN);
	eq("WRITE", poll_(exported(fd, WRITE), POLLIN, 0), 0);
}

CASE(109, "EXPORT is a snapshot")
{
	int fd = d4(), t1 = B->timeline(), t2 = B->timeline();
	eq("import", import(fd, fence(t1, 1), WRITE), 0);
	int s = exported(fd, RW);
	eq("import", import(fd, fence(t2, 1), WRITE), 0);
	B->inc(t1, 1);
	eq("poll", poll_(s, POLLIN, 5000), POLLIN);
	eq("poll of the buffer", poll_(fd, POLLIN, 0), 0);
}

CASE(110, "two read fences: EXPORT WRITE has two, and is done after both")
{
	int fd = d4(), t1 = B->timeline(), t2 = B->timeline();
	eq("import", import(fd, fence(t1, 1), READ), 0);
	eq("import", import(fd, fence(t2, 1), READ), 0);
	int s = exported(fd, WRITE);
	eq("num_fences", fences_of(s), 2);
	B->inc(t1, 1);
	eq("poll after one", poll_(s, POLLIN, 0), 0);
	B->inc(t2, 1);
	eq("poll after both", poll_(s, POLLIN, 5000), POLLIN);
}

CASE(111, "IMPORT of -1, a pipe, a buffer: EINVAL")
{
	int fd = d4(), p[2];
	eq("pipe", R(pipe(p)), 0);
	eq("-1", import(fd, -1, READ), -EINVAL);
	eq("a pipe", import(fd, p[0], READ), -EINVAL);
	eq("a buffer", import(fd, d4(), READ), -EINVAL);
}

CASE(112, "IMPORT with flags 0, 4: EINVAL")
{
	int fd = d4(), f = fence(B->timeline(), 1);
	eq("flags 0", import(fd, f, 0), -EINVAL);
	eq("flags 4", import(fd, f, 4), -EINVAL);
}

/* how many rows of bufinfo say so */
static long rows(int fd, const char *what)
{
	long n = 0;
	struct row r = row_of(ino(fd));
	for (const char *p = r.rest; (p = strstr(p, what)); p++)
		n++;
	return n;
}

CASE(113, "IMPORT of a merged file of two timelines: two write fences")
{
	int fd = d4(), m = merged(fence(B->timeline(), 1), fence(B->timeline(), 1));
	eq("import", import(fd, m, WRITE), 0);
	eq("write fences", rows(fd, "\twrite fence:"), 2);
}

CASE(114, "IMPORT to read, then to write, of one fence: one write fence")
{
	int fd = d4(), f = fence(B->timeline(), 1);
	eq("import", import(fd, f, READ), 0);
	eq("import", import(fd, f, WRITE), 0);
	eq("write fences", rows(fd, "\twrite fence:"), 1);
	eq("read fences", rows(fd, "\tread fence:"), 0);
}

CASE(115, "IMPORT to write, then to read, of one fence: readers still wait")
{
	int fd = d4(), f = fence(B->timeline(), 1);
	eq("import", import(fd, f, WRITE), 0);
	eq("import", import(fd, f, READ), 0);
	eq("write fences", rows(fd, "\twrite fence:"), 1);
	eq("read fences", rows(fd, "\tread fence:"), 1);
	eq("poll IN", poll_(fd, POLLIN, 0), 0);
}

CASE(116, "a later fence of the same timeline replaces the earlier one")
{
	int fd = d4(), tl = B->timeline();
	eq("import", import(fd, fence(tl, 1), WRITE), 0);
	eq("import", import(fd, fence(tl, 2), WRITE), 0);
	eq("write fences", rows(fd, "\twrite fence:"), 1);
	B->inc(tl, 1);
	eq("poll after 1", poll_(fd, POLLIN, 0), 0);
	B->inc(tl, 1);
	eq("poll after 2", poll_(fd, POLLIN, 5000), POLLIN);
}

CASE(117, "a read fence survives another timeline's write fence")
{
	int fd = d4(), t1 = B->timeline(), t2 = B->timeline();
	eq("import", import(fd, fence(t1, 1), READ), 0);
	eq("import", import(fd, fence(t2, 1), WRITE), 0);
	B->inc(t2, 1);
	eq("poll OUT", poll_(fd, POLLOUT, 0), 0);
	eq("poll IN", poll_(fd, POLLIN, 0), POLLIN);
}

/* --- 8.6 sync files ---------------------------------------------------- */

CASE(128, "a fence of value 5: pending at 0 and 1, signaled at 5 and 15")
{
	int tl = B->timeline(), f = fence(tl, 5);
	eq("at 0", poll_(f, POLLIN, 0), 0);
	B->inc(tl, 1);
	eq("at 1", poll_(f, POLLIN, 0), 0);
	B->inc(tl, 4);
	eq("at 5", poll_(f, POLLIN, 0), POLLIN);
	B->inc(tl, 10);
	eq("at 15", poll_(f, POLLIN, 0), POLLIN);
}

CASE(129, "three of one timeline, merged: one fence, done at the last")
{
	int tl = B->timeline(), m = merged(merged(fence(tl, 1), fence(tl, 2)), fence(tl, 3));
	eq("num_fences", fences_of(m), 1);
	B->inc(tl, 2);
	eq("at 2", poll_(m, POLLIN, 0), 0);
	B->inc(tl, 1);
	eq("at 3", poll_(m, POLLIN, 0), POLLIN);
}

static long active(int fd)
{
	long n = 0, all = fences_of(fd);
	for (long i = 0; i < all; i++)
		n += fences[i].status == 0;
	return n;
}

CASE(130, "three timelines, merged: 3, 2, 1, 0 active")
{
	int tl[3], m = -1;
	for (int i = 0; i < 3; i++) {
		tl[i] = B->timeline();
		m = i ? merged(m, fence(tl[i], 1)) : fence(tl[i], 1);
	}
	for (int i = 0; i < 3; i++) {
		eq("active", active(m), 3 - i);
		B->inc(tl[i], 1);
	}
	eq("active", active(m), 0);
}

CASE(131, "merged with itself: one fence, signals with it")
{
	int tl = B->timeline(), f = fence(tl, 1), m = merged(f, f);
	eq("num_fences", fences_of(m), 1);
	eq("poll", poll_(m, POLLIN, 0), 0);
	B->inc(tl, 1);
	eq("poll", poll_(m, POLLIN, 5000), POLLIN);
}

CASE(132, "MERGE with -1, with a regular file: ENOENT")
{
	int f = fence(B->timeline(), 1);
	eq("-1", merge(f, -1, "m", 0, 0), -ENOENT);
	eq("a regular file", merge(f, open("/proc/self/exe", O_RDONLY), "m", 0, 0), -ENOENT);
}

CASE(133, "MERGE with flags or pad: EINVAL")
{
	int f = fence(B->timeline(), 1);
	eq("flags", merge(f, f, "m", 1, 0), -EINVAL);
	eq("pad", merge(f, f, "m", 0, 1), -EINVAL);
}

CASE(134, "MERGE with a name of 32 bytes: cut to 31")
{
	struct sync_file_info i;
	char n[33];
	memset(n, 'n', sizeof n);
	int tl = B->timeline();
	long m = merge(fence(tl, 1), fence(tl, 2), n, 0, 0);
	if (m < 0)
		eq("SYNC_IOC_MERGE", m, 0);
	else
		eq("FILE_INFO", info((int)m, 0, &i), 0), eq("its length", (long)strnlen(i.name, 32), 31);
}

CASE(135, "two that are signaled, merged: one fence, status 1, the later timestamp")
{
	int t1 = B->timeline(), t2 = B->timeline(), a = fence(t1, 1), b = fence(t2, 1);
	B->inc(t1, 1);
	usleep(1000);
	B->inc(t2, 1);
	int m = merged(a, b);
	fences_of(b);
	uint64_t later = fences[0].timestamp_ns;
	eq("num_fences", fences_of(m), 1);
	eq("status", fences[0].status, 1);
	yes("the later timestamp", fences[0].timestamp_ns == later);
}

CASE(136, "two that failed, merged: status 1")
{
	int t1 = B->timeline(), t2 = B->timeline(), a = fence(t1, 1), b = fence(t2, 1);
	B->end(t1);
	B->end(t2);
	eq("status", status_of(merged(a, b)), 1);
}

static int three(int *tl)
{
	int m = -1;
	for (int i = 0; i < 3; i++) {
		tl[i] = B->timeline();
		m = i ? merged(m, fence(tl[i], 1)) : fence(tl[i], 1);
	}
	return m;
}

CASE(137, "FILE_INFO of three with room for one: EINVAL")
{
	struct sync_file_info i;
	int tl[3];
	eq("FILE_INFO", info(three(tl), 1, &i), -EINVAL);
}

CASE(138, "FILE_INFO of three with room for ten: three")
{
	struct sync_file_info i;
	int tl[3];
	eq("FILE_INFO", info(three(tl), 10, &i), 0);
	eq("num_fences", i.num_fences, 3);
}

CASE(139, "FILE_INFO with flags or pad: EINVAL")
{
	int f = fence(B->timeline(), 1);
	struct sync_file_info i = { .flags = 1 };
	eq("flags", R(ioctl(f, SYNC_IOC_FILE_INFO, &i)), -EINVAL);
	i = (struct sync_file_info){ .pad = 1 };
	eq("pad", R(ioctl(f, SYNC_IOC_FILE_INFO, &i)), -EINVAL);
}

CASE(140, "the timestamp: 0 while pending, then the monotonic time of the INC")
{
	int tl = B->timeline(), f = fence(tl, 1);
	struct timespec a, b;
	eq("num_fences", fences_of(f), 1);
	eq("timestamp", (long)fences[0].timestamp_ns, 0);
	clock_gettime(CLOCK_MONOTONIC, &a);
	B->inc(tl, 1);
	clock_gettime(CLOCK_MONOTONIC, &b);
	fences_of(f);
	uint64_t from = (uint64_t)a.tv_sec * 1000000000u + (uint64_t)a.tv_nsec, to = (uint64_t)b.tv_sec * 1000000000u + (uint64_t)b.tv_nsec;
	yes("the timestamp is of the INC", fences[0].timestamp_ns >= from && fences[0].timestamp_ns <= to);
}

CASE(141, "the timeline is closed: POLLIN, status -ENOENT")
{
	int tl = B->timeline(), f = fence(tl, 1);
	B->end(tl);
	eq("poll", poll_(f, POLLIN, 5000), POLLIN);
	eq("status", status_of(f), -ENOENT);
}

CASE(142, "signaled, then the timeline is closed: status 1")
{
	int tl = B->timeline(), f = fence(tl, 1);
	B->inc(tl, 1);
	B->end(tl);
	eq("status", status_of(f), 1);
}

CASE(143, "a value that is passed: signaled at once, with a timestamp")
{
	int tl = B->timeline();
	B->inc(tl, 100);
	int f = fence(tl, 1);
	eq("poll", poll_(f, POLLIN, 0), POLLIN);
	eq("status", status_of(f), 1);
	yes("it has a timestamp", fences[0].timestamp_ns != 0);
}

CASE(144, "values are compared by 32 bits: 0x7fffffff is pending, 0x80000000 signaled at once")
{
	int tl = B->timeline();
	eq("0x7fffffff", poll_(fence(tl, 0x7fffffff), POLLIN, 0), 0);
	eq("0x80000000", poll_(fence(tl, 0x80000000), POLLIN, 0), POLLIN);
}

CASE(145, "a value twice, merged: one fence")
{
	int tl = B->timeline();
	eq("num_fences", fences_of(merged(fence(tl, 3), fence(tl, 3))), 1);
}

CASE(146, "INC 0xffffffff: everything pending is passed, the value wraps to -1")
{
	int tl = B->timeline(), f = fence(tl, 5);
	B->inc(tl, 0xffffffff);
	eq("poll", poll_(f, POLLIN, 0), POLLIN);
	eq("value 0, which lies ahead", poll_(fence(tl, 0), POLLIN, 0), 0);
}

CASE(147, "poll OUT of a sync file: never")
{
	int tl = B->timeline(), f = fence(tl, 1);
	eq("pending", poll_(f, POLLOUT, 0), 0);
	B->inc(tl, 1);
	eq("signaled", poll_(f, POLLOUT, 50), 0);
}

CASE(148, "a sync file: unknown ioctl ENOTTY, read EINVAL")
{
	char c[64] = "";
	int f = fence(B->timeline(), 1);
	eq("ioctl", R(ioctl(f, 0xc0303e02, c)), -ENOTTY);
	eq("read", R(read(f, c, 1)), -EINVAL);
}

CASE(149, "SET_DEADLINE 200, 100, 300; GET_DEADLINE gives 100")
{
	int tl = B->timeline(), f = fence(tl, 1);
	for (int i = 0; i < 3; i++) {
		struct set_deadline d = { (uint64_t[]){ 200, 100, 300 }[i], 0 };
		eq("SET_DEADLINE", R(ioctl(f, SET_DEADLINE, &d)), 0);
	}
	struct sw_deadline g = { 0 };
	eq("GET_DEADLINE", R(B->deadline(tl, f, &g)), 0);
	eq("the deadline", (long)g.deadline_ns, 100);
}

CASE(150, "GET_DEADLINE of a fence without: ENOENT; of a merged one: EINVAL")
{
	int tl = B->timeline();
	struct sw_deadline g = { 0 };
	eq("without", R(B->deadline(tl, fence(tl, 1), &g)), -ENOENT);
	int m = merged(fence(tl, 1), fence(B->timeline(), 1));
	g = (struct sw_deadline){ 0 };
	eq("merged", R(B->deadline(tl, m, &g)), -EINVAL);
}

CASE(151, "SET_DEADLINE with pad: EINVAL")
{
	struct set_deadline d = { 100, 1 };
	eq("SET_DEADLINE", R(ioctl(fence(B->timeline(), 1), SET_DEADLINE, &d)), -EINVAL);
}

CASE(152, "FILE_INFO: driver sw_sync, the timeline's name is the command's, sw_sync-COMMAND<context>-7")
{
	struct sync_file_info i;
	int f = fence(B->timeline(), 7);
	eq("FILE_INFO", info(f, 1, &i), 0);
	if (strcmp(fences[0].driver_name, "sw_sync"))
		differs("the driver is %s", fences[0].driver_name);
	if (strcmp(fences[0].obj_name, "conformance"))
		differs("the timeline is %s", fences[0].obj_name);
	if (strncmp(i.name, "sw_sync-conformance", 19) || strcmp(i.name + strlen(i.name) - 2, "-7"))
		differs("the name is %s", i.name);
}

/* --- 8.8 udmabuf, heaps ------------------------------------------------ */

static void node(void)
{
	if (strcmp(B->name, "mount") == 0)
		na("device nodes are what `dmabuffs run` is for");
}

static int good(size_t bytes) { return sealed_memfd(bytes, F_SEAL_SHRINK); }

static long create(int memfd, uint32_t flags, uint64_t off, uint64_t size) { return R(udmabuf(memfd, flags, off, size)); }

CASE(166, "UDMABUF_CREATE at offset 2048: EINVAL") { node(); eq("CREATE", create(good(D4), 0, 2048, PAGE), -EINVAL); }
CASE(167, "UDMABUF_CREATE of 2048 bytes: EINVAL") { node(); eq("CREATE", create(good(D4), 0, 0, 2048), -EINVAL); }

CASE(168, "UDMABUF_CREATE of a pipe: EBADFD")
{
	int p[2];
	node();
	eq("pipe", R(pipe(p)), 0);
	eq("CREATE", create(p[0], 0, 0, PAGE), -EBADFD);
}

CASE(169, "UDMABUF_CREATE of -1: EBADFD") { node(); eq("CREATE", create(-1, 0, 0, PAGE), -EBADFD); }
CASE(170, "UDMABUF_CREATE without F_SEAL_SHRINK: EINVAL") { node(); eq("CREATE", create(sealed_memfd(D4, 0), 0, 0, D4), -EINVAL); }
CASE(171, "UDMABUF_CREATE with F_SEAL_WRITE: EINVAL") { node(); eq("CREATE", create(sealed_memfd(D4, F_SEAL_SHRINK | F_SEAL_WRITE), 0, 0, D4), -EINVAL); }
CASE(172, "UDMABUF_CREATE with F_SEAL_FUTURE_WRITE: EINVAL") { node(); eq("CREATE", create(sealed_memfd(D4, F_SEAL_SHRINK | 0x10), 0, 0, D4), -EINVAL); }

CASE(173, "UDMABUF_CREATE of four pages: their size, and the same bytes both ways")
{
	node();
	int mem = good(D4), fd = (int)create(mem, 0, 0, D4);
	yes("a descriptor", fd >= 0);
	eq("size", R(lseek(fd, 0, SEEK_END)), D4);
	char *b = mapped(fd, D4, 0), *m = mapped(mem, D4, 0);
	b[4097] = 1, m[8193] = 2;
	eq("the memfd's byte", m[4097], 1);
	eq("the buffer's byte", b[8193], 2);
}

CASE(174, "UDMABUF_CREATE of size 0, a list of none: EINVAL")
{
	struct ud_list l = { 0, 0 };
	node();
	eq("CREATE", create(good(D4), 0, 0, 0), -EINVAL);
	eq("LIST", R(ioctl(udmabuf_node(), UD_CREATE_LIST, &l)), -EINVAL);
}

CASE(175, "UDMABUF_CREATE beyond the memfd: EINVAL") { node(); eq("CREATE", create(good(D4), 0, 0, 5 * PAGE), -EINVAL); }

static struct ud_list *list(uint32_t n)
{
	struct ud_list *l = calloc(1, sizeof *l + n * sizeof l->list[0]);
	l->count = n;
	return l;
}

CASE(176, "a list of 1025: EINVAL")
{
	node();
	struct ud_list *l = list(1025);
	int mem = good(D4);
	for (int i = 0; i < 1025; i++)
		l->list[i] = (struct ud_item){ (uint32_t)mem, 0, 0, PAGE };
	eq("LIST", R(ioctl(udmabuf_node(), UD_CREATE_LIST, l)), -EINVAL);
}

CASE(177, "UDMABUF_CREATE of 65 MiB: EINVAL") { node(); eq("CREATE", create(good(65 << 20), 0, 0, 65 << 20), -EINVAL); }

CASE(178, "flag 1: close-on-exec; unknown flags: no effect")
{
	node();
	int mem = good(D4);
	eq("FD_CLOEXEC of flag 1", fcntl((int)create(mem, 1, 0, D4), F_GETFD), FD_CLOEXEC);
	eq("FD_CLOEXEC of flags 0xfe", fcntl((int)create(mem, 0xfe, 0, D4), F_GETFD), 0);
}

CASE(179, "udmabuf: MAP_PRIVATE is EINVAL")
{
	node();
	int fd = (int)create(good(D4), 0, 0, D4);
	eq("mmap", map_at(fd, D4, PROT_READ, MAP_PRIVATE, 0, NULL), -EINVAL);
}

CASE(180, "udmabuf: END before the first START is EINVAL")
{
	node();
	int fd = (int)create(good(D4), 0, 0, D4);
	eq("END", sync_(fd, RW | END), -EINVAL);
	eq("START", sync_(fd, RW), 0);
	eq("END", sync_(fd, RW | END), 0);
}

CASE(181, "a list of four at four offsets: concatenated in their order")
{
	node();
	int mem = good(8 * PAGE);
	char *m = mapped(mem, 8 * PAGE, 0);
	for (int i = 0; i < 8; i++)
		m[i * PAGE] = (char)(i + 1);
	struct ud_list *l = list(4);
	for (int i = 0; i < 4; i++)
		l->list[i] = (struct ud_item){ (uint32_t)mem, 0, (uint64_t)(6 - 2 * i) * PAGE, PAGE };
	int fd = (int)R(ioctl(udmabuf_node(), UD_CREATE_LIST, l));
	yes("a descriptor", fd >= 0);
	char *b = mapped(fd, D4, 0);
	for (int i = 0; i < 4; i++)
		eq("a page", b[i * PAGE], 7 - 2 * i);
	b[0] = 77;
	eq("a byte back in the memfd", m[6 * PAGE], 77);
}

static struct heap_alloc last_alloc;

static long alloc(uint64_t len, uint32_t fd, uint32_t fd_flags, uint64_t heap_flags)
{
	int h = heap();
	last_alloc = (struct heap_alloc){ len, fd, fd_flags, heap_flags };
	long r = R(ioctl(h, HEAP_ALLOC, &last_alloc));
	close(h);
	return r < 0 ? r : (long)last_alloc.fd;
}

CASE(182, "heap: 1 byte gives a page of zeroes")
{
	node();
	int fd = (int)alloc(1, 0, O_RDWR | O_CLOEXEC, 0);
	yes("a descriptor", fd >= 0);
	eq("size", R(lseek(fd, 0, SEEK_END)), PAGE);
	char *p = mapped(fd, PAGE, 0);
	for (int i = 0; i < PAGE; i++)
		eq("a byte", p[i], 0);
}

CASE(183, "heap: length 0 is EINVAL") { node(); eq("ALLOC", alloc(0, 0, O_RDWR, 0), -EINVAL); }
CASE(184, "heap: fd 5 on the way in is EINVAL") { node(); eq("ALLOC", alloc(PAGE, 5, O_RDWR, 0), -EINVAL); }

CASE(185, "heap: other fd_flags are EINVAL")
{
	node();
	eq("O_NONBLOCK", alloc(PAGE, 0, O_RDWR | O_NONBLOCK, 0), -EINVAL);
	eq("all others", alloc(PAGE, 0, (uint32_t)~(O_RDWR | O_CLOEXEC), 0), -EINVAL);
}

CASE(186, "heap: heap_flags are EINVAL") { node(); eq("ALLOC", alloc(PAGE, 0, O_RDWR, 0x111111), -EINVAL); }

CASE(187, "heap: structs of 16 and of 48 bytes")
{
	node();
	unsigned char a[48];
	memset(a, 0xff, sizeof a);
	memset(a, 0, 24);
	((struct heap_alloc *)(void *)a)->len = PAGE;
	((struct heap_alloc *)(void *)a)->fd_flags = O_RDWR;
	eq("16", R(ioctl(heap(), 0xc0104800, a)), 0);
	((struct heap_alloc *)(void *)a)->fd = 0;
	eq("48", R(ioctl(heap(), 0xc0304800, a)), 0);
}

CASE(188, "heap: ioctl 'H', 1 is EINVAL") { char a[32] = ""; node(); eq("ioctl", R(ioctl(heap(), _IOWR('H', 1, struct heap_alloc), a)), -EINVAL); }
CASE(189, "heap: O_RDONLY, then PROT_WRITE: EACCES") { node(); eq("mmap", map_((int)alloc(D4, 0, O_RDONLY, 0), D4, 0), -EACCES); }

CASE(190, "heap: what was freed comes back as zeroes")
{
	node();
	for (int round = 0; round < 2; round++)
		for (int i = 0; i < 32; i++) {
			int fd = (int)alloc(D4, 0, O_RDWR, 0);
			char *p = mapped(fd, D4, 0);
			for (int at = 0; at < D4; at += 64)
				eq("a byte", p[at], 0);
			memset(p, 0x5a, D4);
			munmap(p, D4);
			close(fd);
		}
}

/* --- 8.9 introspection ------------------------------------------------- */

CASE(191, "fdinfo has size, count and exp_name, and no name")
{
	int fd = d4();
	const char *s = fdinfo(fd, "size");
	if (!s) {
		differs("no line size:");
		return;
	}
	eq("size", atol(s), D4);
	s = fdinfo(fd, "count");
	eq("count", s ? atol(s) : -1, 1);
	yes("exp_name", fdinfo(fd, "exp_name"));
	yes("no name", !fdinfo(fd, "name"));
}

CASE(192, "fdinfo's count: two dups and a mapping are three more")
{
	int fd = d4();
	dup(fd), dup(fd);
	mapped(fd, D4, 0);
	const char *s = fdinfo(fd, "count");
	if (!s)
		differs("no line count:");
	else
		eq("count", atol(s), 4);
}

#define HEAD "\nDma-buf Objects:\nsize    \tflags   \tmode    \tcount   \texp_name\tino     \tname\n"

CASE(193, "bufinfo without buffers: its five lines")
{
	char *text = bufinfo();
	if (!strstr(text, "Total 0 objects"))
		na("there are other buffers");
	yes("the five lines", strcmp(text, HEAD "\nTotal 0 objects, 0 bytes\n") == 0);
}

CASE(194, "bufinfo: the newest first, and the total")
{
	if (!strstr(bufinfo(), "Total 0 objects"))
		na("there are other buffers");
	ino_t old = ino(d4()), new = ino(B->buffer(2 * PAGE, O_RDWR));
	char *text = bufinfo(), a[16], b[16];
	snprintf(a, sizeof a, "\t%08lu\t", (unsigned long)old);
	snprintf(b, sizeof b, "\t%08lu\t", (unsigned long)new);
	yes("the header", strncmp(text, HEAD "00008192\t", strlen(HEAD) + 9) == 0);
	yes("both are there", strstr(text, a) && strstr(text, b));
	yes("the newest first", strstr(text, b) < strstr(text, a));
	yes("the total", strstr(text, "\nTotal 2 objects, 24576 bytes\n"));
}

CASE(195, "bufinfo's last column: <none>, then the name")
{
	int fd = d4();
	yes("<none>", strcmp(row_of(ino(fd)).name, "<none>") == 0);
	setname(fd, DMA_BUF_SET_NAME_B, "hello");
	struct row r = row_of(ino(fd));
	yes("hello", strcmp(r.name, "hello") == 0);
	eq("size", (long)r.size, D4);
	eq("mode", r.mode & 7, 7);
	eq("flags", r.flags & O_ACCMODE, O_RDWR);
}

CASE(196, "bufinfo: lines of write and read fences, unsignalled")
{
	int fd = d4(), t1 = B->timeline(), t2 = B->timeline();
	eq("import", import(fd, fence(t1, 1), WRITE), 0);
	eq("import", import(fd, fence(t2, 1), READ), 0);
	eq("write fences", rows(fd, "\twrite fence:"), 1);
	eq("read fences", rows(fd, "\tread fence:"), 1);
	eq("unsignalled", rows(fd, " unsignalled\n"), 2);
	B->inc(t1, 1);
	eq("unsignalled after a signal", rows(fd, " unsignalled\n"), 1);
}

CASE(197, "bufinfo: the attached devices")
{
	int fd = d4();
	B->attach(fd, "dev0");
	eq("rows of dev0", rows(fd, "\tdev0\n"), 1);
	eq("the sum", rows(fd, "Total 1 devices attached\n"), 1);
}

static bool one(const struct test *t)
{
	int out[2];
	char text[1024];
	size_t n = 0;
	ssize_t r;
	if (pipe(out) < 0)
		exit(2);
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		setpgid(0, 0);
		dup2(out[1], 1);
		close(out[0]);
		close(out[1]);
		alarm(20);
		atexit(report);
		t->run();
		exit(0);
	}
	close(out[1]);
	while (n < sizeof text - 1 && (r = read(out[0], text + n, sizeof text - 1 - n)) > 0)
		n += (size_t)r;
	text[n] = 0;
	close(out[0]);
	int status = 0;
	waitpid(pid, &status, 0);
	kill(-pid, SIGKILL);
	if (WIFSIGNALED(status))
		snprintf(text, sizeof text, "different: it ends by signal %d%s\n", WTERMSIG(status), WTERMSIG(status) == SIGALRM ? " (hangs)" : "");
	text[strcspn(text, "\n")] = 0;
	printf("B%02d %s\n", t->no, text[0] ? text : "broken: no answer");
	backend_clean();
	return strncmp(text, "same", 4) == 0 || strncmp(text, "different", 9) == 0 || strncmp(text, "n/a", 3) == 0;
}

static int by_number(const void *a, const void *b) { return ((const struct test *)a)->no - ((const struct test *)b)->no; }

int main(int argc, char **argv)
{
	backend_init(argc, argv);
	int first = strcmp(B->name, "mount") == 0 ? 3 : 2;
	bool broken = false;
	qsort(tests, (size_t)count, sizeof *tests, by_number);
	for (int i = 0; i < count; i++) {
		bool wanted = argc <= first;
		for (int k = first; k < argc; k++)
			if (atoi(argv[k] + (argv[k][0] == 'B')) == tests[i].no)
				wanted = true;
		if (wanted && getenv("CONFORMANCE_LIST"))
			printf("B%02d %s\n", tests[i].no, tests[i].text);
		else if (wanted && !one(&tests[i]))
			broken = true;
	}
	return broken;
}
