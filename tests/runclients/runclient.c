/*
 * runclient: what a program under `dmabuffs run` may ask of /dev/udmabuf,
 * /dev/dma_heap, sw_sync and sync files, and what it has to get. It knows
 * nothing of dmabuffs: it would do the same on a kernel that has them all.
 *
 *	runclient SECTION...        "ok SECTION" a line, or what went wrong and exit 1
 *
 * Not under test here: what a buffer is once one has it (tests/conformance).
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/openat2.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

/* the kernel's headers, of which a machine may have old ones */
struct heap_alloc { uint64_t len; uint32_t fd, fd_flags; uint64_t heap_flags; };
#define HEAP_ALLOC _IOWR('H', 0, struct heap_alloc)
struct udmabuf_create { uint32_t memfd, flags; uint64_t offset, size; };
struct udmabuf_item { uint32_t memfd, pad; uint64_t offset, size; };
struct udmabuf_list { uint32_t flags, count; struct udmabuf_item list[]; };
#define UDMABUF_CREATE _IOW('u', 0x42, struct udmabuf_create)
#define UDMABUF_CREATE_LIST _IOW('u', 0x43, struct udmabuf_list)
struct dma_buf_sync { uint64_t flags; };
#define DMA_BUF_SYNC _IOW('b', 0, struct dma_buf_sync)
struct sync_file_arg { uint32_t flags; int32_t fd; };
#define EXPORT_SYNC_FILE _IOWR('b', 2, struct sync_file_arg)
#define IMPORT_SYNC_FILE _IOW('b', 3, struct sync_file_arg)
struct sync_merge { char name[32]; int32_t fd2, fence; uint32_t flags, pad; };
#define SYNC_MERGE _IOWR('>', 3, struct sync_merge)
struct fence_info { char obj_name[32], driver_name[32]; int32_t status; uint32_t flags; uint64_t ns; };
struct file_info { char name[32]; int32_t status; uint32_t flags, num_fences, pad; uint64_t fences; };
#define SYNC_FILE_INFO _IOWR('>', 4, struct file_info)
struct sw_fence { uint32_t value; char name[32]; int32_t fence; };
#define SW_CREATE_FENCE _IOWR('W', 0, struct sw_fence)
#define SW_INC _IOW('W', 1, uint32_t)
struct sw_deadline { uint64_t ns; uint32_t pad; int32_t fd; };
#define SW_GET_DEADLINE _IOWR('W', 2, struct sw_deadline)
struct sync_deadline { uint64_t ns, pad; };
#define SYNC_SET_DEADLINE _IOW('>', 5, struct sync_deadline)

enum { PAGE = 4096 };

#define SW_SYNC "/sys/kernel/debug/sync/sw_sync"
#define HEAP "/dev/dma_heap/system"

static const char *section = "?";

static void die(int line, const char *fmt, ...)
{
	va_list ap;
	fprintf(stderr, "runclient: %s, line %d: ", section, line);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	_exit(1);
}

#define WANT(cond) do { if (!(cond)) die(__LINE__, "not so: %s (errno %s)", #cond, strerrorname_np(errno)); } while (0)
#define OK(call) ({ long r_ = (long)(call); if (r_ < 0) die(__LINE__, "%s: %s", #call, strerrorname_np(errno)); r_; })
#define FAILS(err, call) do { \
	errno = 0; \
	long r_ = (long)(call); \
	if (r_ != -1 || errno != (err)) \
		die(__LINE__, "%s: %ld, %s; want %s", #call, r_, errno ? strerrorname_np(errno) : "no error", strerrorname_np(err)); \
} while (0)

static int open_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	int n = 0;
	WANT(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static bool cloexec(int fd) { return OK(fcntl(fd, F_GETFD)) & FD_CLOEXEC; }

static int memfd(size_t size, unsigned seals)
{
	int fd = OK(memfd_create("client", MFD_CLOEXEC | MFD_ALLOW_SEALING));
	OK(ftruncate(fd, size));
	if (seals)
		OK(fcntl(fd, F_ADD_SEALS, seals));
	return fd;
}

static int heap_alloc(uint64_t len, uint32_t fd_flags)
{
	int heap = OK(open(HEAP, O_RDONLY | O_CLOEXEC));
	struct heap_alloc a = {.len = len, .fd_flags = fd_flags};
	OK(ioctl(heap, HEAP_ALLOC, &a));
	close(heap);
	return a.fd;
}

static int sw_open(void) { return OK(open(SW_SYNC, O_RDWR | O_CLOEXEC)); }

static int sw_fence(int tl, uint32_t value)
{
	struct sw_fence f = {.value = value, .name = "client", .fence = -1};
	OK(ioctl(tl, SW_CREATE_FENCE, &f));
	return f.fence;
}

static void sw_inc(int tl, uint32_t by) { OK(ioctl(tl, SW_INC, &by)); }

static int readable(int fd, int ms)
{
	struct pollfd p = {.fd = fd, .events = POLLIN | POLLOUT};
	OK(poll(&p, 1, ms));
	return p.revents;
}

static int status(int fd)
{
	struct file_info i = {0};
	OK(ioctl(fd, SYNC_FILE_INFO, &i));
	return i.status;
}

static int merged(int a, int b, const char *name)
{
	struct sync_merge m = {.fd2 = b, .fence = -1};
	memcpy(m.name, name, strnlen(name, sizeof(m.name)));
	OK(ioctl(a, SYNC_MERGE, &m));
	return m.fence;
}

/* ---- paths ---- */

static const struct { const char *path; mode_t type; } there[] = {
	{"/dev/udmabuf", S_IFCHR},
	{"/dev/dma_heap", S_IFDIR},
	{"/dev/dma_heap/system", S_IFCHR},
	{"/dev/dma_heap/reserved", S_IFCHR},
	{"/sys/kernel/debug/sync", S_IFDIR},
	{"/sys/kernel/debug/sync/sw_sync", S_IFREG},
	{"/sys/kernel/debug/sync/info", S_IFREG},
	{"/sys/kernel/debug/dma_buf", S_IFDIR},
	{"/sys/kernel/debug/dma_buf/bufinfo", S_IFREG},
};

static void paths(void)
{
	struct stat st;
	struct statx stx;
	char buf[256];

	for (size_t i = 0; i < sizeof(there) / sizeof(*there); i++) {
		const char *p = there[i].path;
		bool dir = there[i].type == S_IFDIR, reg = there[i].type == S_IFREG;
		OK(stat(p, &st));
		WANT((st.st_mode & S_IFMT) == there[i].type);
		if (there[i].type == S_IFCHR)
			WANT(major(st.st_rdev) != 0);
		OK(lstat(p, &st));
		WANT((st.st_mode & S_IFMT) == there[i].type);
		OK(syscall(SYS_stat, p, &st));
		OK(syscall(SYS_lstat, p, &st));
		OK(syscall(SYS_newfstatat, AT_FDCWD, p, &st, 0));
		OK(statx(AT_FDCWD, p, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &stx));
		WANT((stx.stx_mode & S_IFMT) == there[i].type);
		OK(access(p, F_OK));
		OK(access(p, R_OK));
		OK(syscall(SYS_access, p, R_OK));
		OK(faccessat(AT_FDCWD, p, R_OK, 0));
		OK(faccessat(AT_FDCWD, p, R_OK, AT_EACCESS));
		if (!dir)
			FAILS(EACCES, access(p, X_OK));
		FAILS(EINVAL, access(p, 8));
		FAILS(EINVAL, readlink(p, buf, sizeof(buf)));
		FAILS(EINVAL, syscall(SYS_readlink, p, buf, sizeof(buf)));
		FAILS(ENODATA, getxattr(p, "system.posix_acl_access", buf, sizeof(buf)));
		WANT(listxattr(p, buf, sizeof(buf)) == 0);
		/* every way to open */
		int flags = O_RDONLY | (dir ? O_DIRECTORY : 0);
		close(OK(open(p, flags)));
		close(OK(syscall(SYS_open, p, flags)));
		struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_NO_SYMLINKS};
		int fd = OK(syscall(SYS_openat2, AT_FDCWD, p, &how, sizeof(how)));
		WANT(cloexec(fd));
		close(fd);
		FAILS(EINVAL, syscall(SYS_openat2, AT_FDCWD, p, &how, 8));
		FAILS(EFAULT, syscall(SYS_openat2, AT_FDCWD, p, (void *)8, sizeof(how)));
		fd = OK(open(p, flags | O_CLOEXEC));
		WANT(cloexec(fd));
		close(fd);
		fd = OK(open(p, flags));
		WANT(!cloexec(fd));
		close(fd);
		FAILS(EEXIST, open(p, O_RDONLY | O_CREAT | O_EXCL, 0600));
		if (!dir && !reg)
			close(OK(open(p, O_RDWR | O_NOCTTY | O_CLOEXEC)));
		if (dir) {
			FAILS(EISDIR, open(p, O_RDWR));
		} else {
			FAILS(ENOTDIR, open(p, O_RDONLY | O_DIRECTORY));
			snprintf(buf, sizeof(buf), "%s/", p);
			FAILS(ENOTDIR, open(buf, O_RDONLY));
			FAILS(ENOTDIR, stat(buf, &st));
			snprintf(buf, sizeof(buf), "%s/x", p);
			WANT(open(buf, O_RDONLY) < 0);
		}
		if (reg && strcmp(strrchr(p, '/'), "/sw_sync"))
			FAILS(EACCES, open(p, O_WRONLY));
		/* the same place by other names */
		snprintf(buf, sizeof(buf), "/.//proc/..%s", p);
		OK(stat(buf, &st));
		char up[256];
		strcpy(up, p);
		char *last = strrchr(up, '/');
		*last++ = 0;
		int at = open(up, O_PATH | O_DIRECTORY | O_CLOEXEC);
		if (at < 0 && errno == ENOENT)	/* a directory of ours cannot be O_PATH everywhere */
			at = OK(open(up, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
		if (at >= 0) {
			OK(fstatat(at, last, &st, 0));
			WANT((st.st_mode & S_IFMT) == there[i].type);
			close(OK(openat(at, last, flags)));
			OK(faccessat(at, last, R_OK, 0));
			close(at);
		}
	}
	OK(chdir("/dev"));
	close(OK(open("udmabuf", O_RDWR)));
	close(OK(open("./dma_heap/../udmabuf", O_RDWR)));
	close(OK(creat("/dev/udmabuf", 0600)));
	FAILS(ENOENT, open("/dev/dma_heap/none", O_RDWR));
	FAILS(ENOENT, open("/tmp/none/udmabuf", O_RDWR));
	FAILS(EFAULT, open((char *)8, O_RDONLY));
	char *longest = malloc(5000);
	memset(longest, 'a', 5000);
	longest[4999] = 0;
	FAILS(ENAMETOOLONG, open(longest, O_RDONLY));

	/* the path ends at the end of the memory */
	char *m = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WANT(m != MAP_FAILED);
	OK(munmap(m + PAGE, PAGE));
	const char name[] = "/dev/udmabuf";
	char *end = m + PAGE - sizeof(name);
	memcpy(end, name, sizeof(name));
	close(OK(open(end, O_RDWR)));
	memcpy(end + 1, name, sizeof(name) - 1); /* no NUL */
	FAILS(EFAULT, open(end + 1, O_RDWR));
	/* and goes on from one page to the next */
	m = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WANT(m != MAP_FAILED);
	for (int i = 1; i < (int)sizeof(name); i++) {
		strcpy(m + PAGE - i, name);
		close(OK(open(m + PAGE - i, O_RDWR)));
	}

	DIR *d = opendir("/dev/dma_heap");
	WANT(d);
	int found = 0;
	for (struct dirent *e; (e = readdir(d));) {
		if (e->d_name[0] == '.')
			continue;
		WANT(e->d_type == DT_CHR);
		WANT(!strcmp(e->d_name, "system") || !strcmp(e->d_name, "reserved"));
		int fd = OK(openat(dirfd(d), e->d_name, O_RDWR));
		struct heap_alloc a = {.len = 1, .fd_flags = O_RDWR};
		OK(ioctl(fd, HEAP_ALLOC, &a));
		close(a.fd);
		close(fd);
		found++;
	}
	closedir(d);
	WANT(found == 2);

	/* stat's answer does not fit */
	FAILS(EFAULT, syscall(SYS_stat, "/dev/udmabuf", (void *)8));
	FAILS(EFAULT, syscall(SYS_statx, AT_FDCWD, "/dev/udmabuf", 0, STATX_BASIC_STATS, (void *)8));

	/* a device without anything but ioctl */
	int u = OK(open("/dev/udmabuf", O_RDWR));
	FAILS(EINVAL, read(u, buf, 1));
	FAILS(EINVAL, write(u, buf, 1));
	FAILS(ENOTTY, ioctl(u, _IO('u', 1)));
	FAILS(ENOTTY, ioctl(u, HEAP_ALLOC, buf));
	close(u);
	int h = OK(open(HEAP, O_RDWR));
	FAILS(EINVAL, ioctl(h, _IO('H', 1)));
	close(h);
	/* the numbers are other drivers', too */
	FAILS(ENOTTY, ioctl(0, UDMABUF_CREATE, buf));
	FAILS(ENOTTY, ioctl(0, HEAP_ALLOC, buf));
	FAILS(EBADF, ioctl(-1, HEAP_ALLOC, buf));
	FAILS(EBADF, ioctl(999, EXPORT_SYNC_FILE, buf));
}

/* ---- dma-heap ---- */

static void heaps(void)
{
	static const char *names[] = {"/dev/dma_heap/system", "/dev/dma_heap/reserved"};
	for (int n = 0; n < 2; n++) {
		int heap = OK(open(names[n], O_RDONLY | O_CLOEXEC));
		int before = open_fds();
		struct heap_alloc a = {.len = 1, .fd_flags = O_RDWR | O_CLOEXEC};
		OK(ioctl(heap, HEAP_ALLOC, &a));
		WANT(cloexec(a.fd));
		struct stat st;
		OK(fstat(a.fd, &st));
		WANT(st.st_size == PAGE);
		WANT((OK(fcntl(a.fd, F_GETFL)) & O_ACCMODE) == O_RDWR);
		char *m = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd, 0);
		WANT(m != MAP_FAILED);
		for (int i = 0; i < PAGE; i++)
			WANT(m[i] == 0);
		struct dma_buf_sync s = {.flags = 3};
		OK(ioctl(a.fd, DMA_BUF_SYNC, &s));
		memset(m, 0x5a, PAGE);
		s.flags = 3 | 4;
		OK(ioctl(a.fd, DMA_BUF_SYNC, &s));
		close(a.fd);
		WANT(m[PAGE - 1] == 0x5a); /* a mapping outlives the descriptor */
		munmap(m, PAGE);

		/* what is refused, and changes nothing */
		static const struct heap_alloc bad[] = {
			{.len = 0, .fd_flags = O_RDWR},
			{.len = PAGE, .fd = 5, .fd_flags = O_RDWR},
			{.len = PAGE, .fd_flags = O_RDWR | O_NONBLOCK},
			{.len = PAGE, .fd_flags = ~(O_RDWR | O_CLOEXEC)},
			{.len = PAGE, .fd_flags = O_RDWR, .heap_flags = 1},
			{.len = PAGE, .fd_flags = O_RDWR, .heap_flags = 0x111111},
			{.len = ~0ull, .fd_flags = O_RDWR},
		};
		for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
			a = bad[i];
			FAILS(EINVAL, ioctl(heap, HEAP_ALLOC, &a));
			WANT(!memcmp(&a, &bad[i], sizeof(a)));
		}
		a = (struct heap_alloc){.len = 1ull << 62, .fd_flags = O_RDWR};
		FAILS(ENOMEM, ioctl(heap, HEAP_ALLOC, &a));
		a = (struct heap_alloc){.len = ~0ull - PAGE, .fd_flags = O_RDWR};
		FAILS(ENOMEM, ioctl(heap, HEAP_ALLOC, &a));
		FAILS(EFAULT, ioctl(heap, HEAP_ALLOC, (void *)8));
		/* the struct is written back, and cannot be */
		struct heap_alloc *ro = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		WANT(ro != MAP_FAILED);
		*ro = (struct heap_alloc){.len = PAGE, .fd_flags = O_RDWR};
		OK(mprotect(ro, PAGE, PROT_READ));
		FAILS(EFAULT, ioctl(heap, HEAP_ALLOC, ro));
		munmap(ro, PAGE);
		WANT(open_fds() == before);

		/* other sizes of the struct, other directions */
		struct { uint64_t len; uint32_t fd, fd_flags; } older = {.len = PAGE, .fd_flags = O_RDWR};
		OK(ioctl(heap, _IOWR('H', 0, older), &older));
		close(older.fd);
		struct { struct heap_alloc a; uint64_t garbage[3]; } newer = {.a = {.len = PAGE, .fd_flags = O_RDWR}, .garbage = {1, ~0ull, 3}};
		OK(ioctl(heap, _IOWR('H', 0, newer), &newer));
		WANT(newer.garbage[1] == ~0ull);
		close(newer.a.fd);
		char *shorter = mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		WANT(shorter != MAP_FAILED);
		OK(munmap(shorter + PAGE, 4 * PAGE));
		FAILS(EFAULT, ioctl(heap, _IOC(_IOC_READ | _IOC_WRITE, 'H', 0, 16380), shorter));
		a = (struct heap_alloc){.len = PAGE, .fd_flags = O_RDWR};
		FAILS(EINVAL, ioctl(heap, _IOR('H', 0, a), &a)); /* nothing is copied in: len is 0 */
		FAILS(EINVAL, ioctl(heap, _IO('H', 0)));
		a = (struct heap_alloc){.len = PAGE, .fd_flags = O_RDWR};
		FAILS(EINVAL, ioctl(heap, _IOWR('H', 1, a), &a));
		FAILS(EINVAL, ioctl(heap, UDMABUF_CREATE, &a));

		/* access modes */
		a = (struct heap_alloc){.len = PAGE, .fd_flags = O_RDONLY};
		OK(ioctl(heap, HEAP_ALLOC, &a));
		WANT(!cloexec(a.fd));
		FAILS(EACCES, (long)mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd, 0));
		m = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, a.fd, 0);
		WANT(m != MAP_FAILED && m[0] == 0);
		munmap(m, PAGE);
		close(a.fd);
		a = (struct heap_alloc){.len = PAGE, .fd_flags = O_WRONLY};
		OK(ioctl(heap, HEAP_ALLOC, &a));
		FAILS(EACCES, (long)mmap(NULL, PAGE, PROT_READ, MAP_SHARED, a.fd, 0));
		close(a.fd);

		/* 32 filled and freed; 32 again are zero */
		for (int round = 0; round < 2; round++) {
			int fds[32];
			for (int i = 0; i < 32; i++) {
				a = (struct heap_alloc){.len = 64 << 10, .fd_flags = O_RDWR};
				OK(ioctl(heap, HEAP_ALLOC, &a));
				fds[i] = a.fd;
				m = mmap(NULL, 64 << 10, PROT_READ | PROT_WRITE, MAP_SHARED, a.fd, 0);
				WANT(m != MAP_FAILED);
				for (int j = 0; j < 64 << 10; j += 512)
					WANT(m[j] == 0);
				memset(m, 0xff, 64 << 10);
				munmap(m, 64 << 10);
			}
			for (int i = 0; i < 32; i++)
				close(fds[i]);
		}
		close(heap);
		WANT(open_fds() == before - 1);
	}
}

/* ---- udmabuf ---- */

static int udmabuf = -1;

static int create(int fd, uint32_t flags, uint64_t offset, uint64_t size)
{
	struct udmabuf_create c = {.memfd = fd, .flags = flags, .offset = offset, .size = size};
	return ioctl(udmabuf, UDMABUF_CREATE, &c);
}

static int create_list(uint32_t flags, int n, const struct udmabuf_item *items)
{
	struct udmabuf_list *l = calloc(1, sizeof(*l) + n * sizeof(*items));
	l->flags = flags;
	l->count = n;
	memcpy(l->list, items, n * sizeof(*items));
	int r = ioctl(udmabuf, UDMABUF_CREATE_LIST, l), e = errno;
	free(l);
	errno = e;
	return r;
}

static void udmabufs(void)
{
	udmabuf = OK(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
	int good = memfd(4 * PAGE, F_SEAL_SHRINK);
	int before = open_fds();

	FAILS(EFAULT, ioctl(udmabuf, UDMABUF_CREATE, (void *)8));
	FAILS(EINVAL, create(good, 0, PAGE / 2, PAGE));
	FAILS(EINVAL, create(good, 0, 0, PAGE / 2));
	FAILS(EBADFD, create(0, 0, 0, PAGE));	/* stdin */
	FAILS(EBADFD, create(-1, 0, 0, PAGE));
	FAILS(EBADFD, create(999, 0, 0, PAGE));
	FAILS(EBADFD, create(udmabuf, 0, 0, PAGE));
	int p[2];
	OK(pipe2(p, O_CLOEXEC));
	FAILS(EBADFD, create(p[0], 0, 0, PAGE));
	close(p[0]);
	close(p[1]);
	int other = memfd(4 * PAGE, 0);
	FAILS(EINVAL, create(other, 0, 0, PAGE));
	close(other);
	other = OK(memfd_create("no seals at all", MFD_CLOEXEC));
	OK(ftruncate(other, 4 * PAGE));
	FAILS(EINVAL, create(other, 0, 0, PAGE));
	close(other);
	other = memfd(4 * PAGE, F_SEAL_SHRINK | F_SEAL_WRITE);
	FAILS(EINVAL, create(other, 0, 0, PAGE));
	close(other);
	other = memfd(4 * PAGE, F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE);
	FAILS(EINVAL, create(other, 0, 0, PAGE));
	close(other);
	other = memfd(4 * PAGE, F_SEAL_SHRINK | F_SEAL_GROW);
	close(OK(create(other, 0, 0, PAGE)));
	close(other);
	FAILS(EINVAL, create(good, 0, 0, 0));
	FAILS(EINVAL, create(good, 0, 0, 5 * PAGE));
	FAILS(EINVAL, create(good, 0, 4 * PAGE, PAGE));
	FAILS(EINVAL, create(good, 0, ~0ull << 12, PAGE));
	FAILS(EINVAL, create(good, 0, 0, ~0ull << 12));
	other = memfd(65 << 20, F_SEAL_SHRINK);
	FAILS(EINVAL, create(other, 0, 0, 65 << 20));
	close(OK(create(other, 0, 0, 64 << 20)));
	close(other);
	WANT(open_fds() == before);

	int fd = OK(create(good, 0, 0, 4 * PAGE));
	WANT(!cloexec(fd));
	close(fd);
	fd = OK(create(good, 0xfe, 0, 4 * PAGE));
	WANT(!cloexec(fd));
	close(fd);
	fd = OK(create(good, 1, 0, 4 * PAGE));
	WANT(cloexec(fd));
	struct stat st;
	OK(fstat(fd, &st));
	WANT(st.st_size == 4 * PAGE);

	/* the memfd is the memory: what is written between brackets is the other's */
	char *ours = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, good, 0);
	char *buf = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	WANT(ours != MAP_FAILED && buf != MAP_FAILED);
	for (int round = 1; round < 4; round++) {
		for (int i = 0; i < 4; i++)
			ours[i * PAGE + 7] = round * 10 + i;
		struct dma_buf_sync s = {.flags = 3};
		OK(ioctl(fd, DMA_BUF_SYNC, &s));
		for (int i = 0; i < 4; i++) {
			WANT(buf[i * PAGE + 7] == round * 10 + i);
			buf[i * PAGE + 8] = round + i;
		}
		s.flags = 3 | 4;
		OK(ioctl(fd, DMA_BUF_SYNC, &s));
		for (int i = 0; i < 4; i++)
			WANT(ours[i * PAGE + 8] == round + i);
	}
	munmap(buf, 4 * PAGE);
	close(fd);

	/* lists */
	struct udmabuf_item items[1025];
	for (int i = 0; i < 1025; i++)
		items[i] = (struct udmabuf_item){.memfd = good, .pad = 0xffffffff, .offset = i % 4 * PAGE, .size = PAGE};
	FAILS(EFAULT, ioctl(udmabuf, UDMABUF_CREATE_LIST, (void *)8));
	FAILS(EINVAL, create_list(0, 0, items));
	FAILS(EINVAL, create_list(0, 1025, items));
	fd = OK(create_list(0, 1024, items));
	OK(fstat(fd, &st));
	WANT(st.st_size == 1024 * PAGE);
	close(fd);
	int second = memfd(2 * PAGE, F_SEAL_SHRINK);
	OK(pwrite(second, "B", 1, PAGE));
	items[0] = (struct udmabuf_item){.memfd = good, .offset = 3 * PAGE, .size = PAGE};
	items[1] = (struct udmabuf_item){.memfd = second, .offset = PAGE, .size = PAGE};
	items[2] = (struct udmabuf_item){.memfd = good, .offset = 0, .size = 2 * PAGE};
	fd = OK(create_list(1, 3, items));
	WANT(cloexec(fd));
	buf = mmap(NULL, 4 * PAGE, PROT_READ, MAP_SHARED, fd, 0);
	WANT(buf != MAP_FAILED);
	WANT(buf[7] == ours[3 * PAGE + 7] && buf[PAGE] == 'B' && buf[2 * PAGE + 7] == ours[7] && buf[3 * PAGE + 7] == ours[PAGE + 7]);
	munmap(buf, 4 * PAGE);
	close(fd);
	/* of several wrong items the first counts */
	int unsealed = memfd(PAGE, 0);
	items[0] = (struct udmabuf_item){.memfd = unsealed, .size = PAGE};
	items[1] = (struct udmabuf_item){.memfd = -1, .size = PAGE};
	FAILS(EINVAL, create_list(0, 2, items));
	items[2] = items[0];
	FAILS(EBADFD, create_list(0, 2, items + 1));
	items[2] = (struct udmabuf_item){.memfd = 0, .size = PAGE};
	FAILS(EINVAL, create_list(0, 3, (struct udmabuf_item[]){items[0], items[2], items[1]}));
	FAILS(EBADFD, create_list(0, 3, (struct udmabuf_item[]){items[2], items[0], items[1]}));
	/* the total */
	int big = memfd(64 << 20, F_SEAL_SHRINK);
	items[0] = (struct udmabuf_item){.memfd = big, .size = 64 << 20};
	items[1] = (struct udmabuf_item){.memfd = good, .size = PAGE};
	FAILS(EINVAL, create_list(0, 2, items));
	close(big);
	close(unsealed);
	close(second);
	munmap(ours, 4 * PAGE);
	WANT(open_fds() == before);
	close(good);
	close(udmabuf);
}

/* ---- sw_sync and sync files ---- */

static void syncs(void)
{
	int before = open_fds();
	int a = sw_open(), b = sw_open();
	FAILS(ENOTTY, ioctl(a, _IO('W', 9)));
	FAILS(EFAULT, ioctl(a, SW_CREATE_FENCE, (void *)8));
	FAILS(EFAULT, ioctl(a, SW_INC, (void *)8));
	int f1 = sw_fence(a, 1), f2 = sw_fence(b, 2), f0 = sw_fence(a, 0), far = sw_fence(a, 0x80000000);
	WANT(cloexec(f1));
	WANT(status(f0) == 1 && status(far) == 1 && status(f1) == 0);
	WANT(readable(f0, 0) == POLLIN && readable(f1, 0) == 0);
	char c;
	FAILS(EINVAL, read(f1, &c, 1));
	FAILS(EBADF, write(f1, &c, 1));
	FAILS(ENOTTY, ioctl(f1, _IO('>', 1)));
	FAILS(ENOTTY, ioctl(f1, SW_INC, &c));

	/* names, arrays */
	struct fence_info fi[4];
	struct file_info i = {.num_fences = 4, .fences = (uintptr_t)fi};
	OK(ioctl(f1, SYNC_FILE_INFO, &i));
	WANT(i.num_fences == 1 && i.status == 0 && !strcmp(fi[0].driver_name, "sw_sync") && fi[0].ns == 0);
	char comm[16];
	OK(prctl(PR_GET_NAME, comm));
	WANT(!strcmp(fi[0].obj_name, comm));
	WANT(!strncmp(i.name, "sw_sync-", 8));

	int m = merged(f1, f2, "both");
	WANT(cloexec(m));
	i = (struct file_info){.num_fences = 4, .fences = (uintptr_t)fi};
	OK(ioctl(m, SYNC_FILE_INFO, &i));
	WANT(i.num_fences == 2 && !strcmp(i.name, "both"));
	i = (struct file_info){.num_fences = 1, .fences = (uintptr_t)fi};
	FAILS(EINVAL, ioctl(m, SYNC_FILE_INFO, &i));
	i = (struct file_info){.flags = 1};
	FAILS(EINVAL, ioctl(m, SYNC_FILE_INFO, &i));
	i = (struct file_info){.num_fences = 4, .fences = 8};
	FAILS(EFAULT, ioctl(m, SYNC_FILE_INFO, &i));
	close(merged(f1, f1, "itself"));
	sw_inc(a, 1);
	WANT(readable(f1, 1000) == POLLIN && readable(m, 0) == 0);
	i = (struct file_info){.num_fences = 1, .fences = (uintptr_t)fi};
	OK(ioctl(f1, SYNC_FILE_INFO, &i));
	WANT(i.status == 1 && fi[0].ns != 0);
	sw_inc(b, 2);
	WANT(readable(m, 5000) == POLLIN);

	/* what MERGE refuses */
	int held = open_fds();
	struct sync_merge g = {.fd2 = f2, .flags = 1};
	FAILS(EINVAL, ioctl(f1, SYNC_MERGE, &g));
	g = (struct sync_merge){.fd2 = f2, .pad = 1};
	FAILS(EINVAL, ioctl(f1, SYNC_MERGE, &g));
	static const int not[] = {-1, 0, 999};
	for (int n = 0; n < 3; n++) {
		g = (struct sync_merge){.fd2 = not[n]};
		FAILS(ENOENT, ioctl(f1, SYNC_MERGE, &g));
	}
	g = (struct sync_merge){.fd2 = a};
	FAILS(ENOENT, ioctl(f1, SYNC_MERGE, &g));
	FAILS(EFAULT, ioctl(f1, SYNC_MERGE, (void *)8));
	g = (struct sync_merge){.fd2 = f2, .flags = 1};
	FAILS(ENOTTY, ioctl(a, SYNC_MERGE, &g));
	FAILS(ENOTTY, ioctl(0, SYNC_MERGE, &g));
	FAILS(ENOTTY, ioctl(f1, SW_CREATE_FENCE, &(struct sw_fence){.value = 1}));
	struct sync_merge *ro = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WANT(ro != MAP_FAILED);
	*ro = (struct sync_merge){.fd2 = f2};
	OK(mprotect(ro, PAGE, PROT_READ));
	FAILS(EFAULT, ioctl(f1, SYNC_MERGE, ro));
	FAILS(EFAULT, ioctl(a, SW_CREATE_FENCE, ro));
	munmap(ro, PAGE);
	WANT(open_fds() == held);
	char longest[33];
	memset(longest, 'n', 32);
	longest[32] = 0;
	int l = merged(f1, f2, longest);
	i = (struct file_info){0};
	OK(ioctl(l, SYNC_FILE_INFO, &i));
	WANT(strlen(i.name) == 31);
	close(l);

	/* a pending point is one fence, however often it is asked for */
	int p1 = sw_fence(a, 9), p2 = sw_fence(a, 9);
	int same = merged(p1, p2, "same");
	i = (struct file_info){0};
	OK(ioctl(same, SYNC_FILE_INFO, &i));
	WANT(i.num_fences == 1);

	/* deadlines */
	struct sw_deadline d = {.fd = p1};
	FAILS(ENOENT, ioctl(a, SW_GET_DEADLINE, &d));
	struct sync_deadline sd = {.ns = 12345, .pad = 1};
	FAILS(EINVAL, ioctl(p1, SYNC_SET_DEADLINE, &sd));
	sd.pad = 0;
	OK(ioctl(p1, SYNC_SET_DEADLINE, &sd));
	sd.ns = 1234;
	OK(ioctl(p1, SYNC_SET_DEADLINE, &sd));
	d = (struct sw_deadline){.fd = p1};
	OK(ioctl(a, SW_GET_DEADLINE, &d));
	WANT(d.ns == 1234);
	d = (struct sw_deadline){.ns = 1, .fd = p1};
	FAILS(EINVAL, ioctl(a, SW_GET_DEADLINE, &d));
	d = (struct sw_deadline){.pad = 1, .fd = p1};
	FAILS(EINVAL, ioctl(a, SW_GET_DEADLINE, &d));
	d = (struct sw_deadline){.fd = 0};
	FAILS(EINVAL, ioctl(a, SW_GET_DEADLINE, &d));

	/* info lists what is pending */
	char text[4096];
	int info = OK(open("/sys/kernel/debug/sync/info", O_RDONLY | O_CLOEXEC));
	ssize_t n = OK(read(info, text, sizeof(text) - 1));
	text[n] = 0;
	WANT(strstr(text, "objs:\n--------------\n") == text && strstr(text, "  fence active: 9 / 1\n") && strstr(text, comm));
	close(info);

	/* the last close ends the timeline; a duplicate holds it */
	int dup_a = OK(dup(a));
	close(a);
	WANT(status(p1) == 0);
	close(dup_a);
	WANT(readable(p1, 5000) == POLLIN);
	WANT(status(p1) == -ENOENT && status(f1) == 1);
	int all[] = {b, f0, f1, f2, far, m, p1, p2, same};
	for (size_t k = 0; k < sizeof(all) / sizeof(*all); k++)
		close(all[k]);
	WANT(open_fds() == before);
}

/* ---- EXPORT_SYNC_FILE, IMPORT_SYNC_FILE ---- */

static void exports(void)
{
	int tl = sw_open(), buf = heap_alloc(PAGE, O_RDWR | O_CLOEXEC);
	int before = open_fds();
	struct sync_file_arg s = {.flags = 1, .fd = 77};
	OK(ioctl(buf, EXPORT_SYNC_FILE, &s));
	WANT(cloexec(s.fd) && status(s.fd) == 1 && readable(s.fd, 0) == POLLIN);
	close(s.fd);
	static const uint32_t bad[] = {0, 4, 8, 5, ~0u};
	for (int i = 0; i < 5; i++) {
		s = (struct sync_file_arg){.flags = bad[i], .fd = 77};
		FAILS(EINVAL, ioctl(buf, EXPORT_SYNC_FILE, &s));
		WANT(s.fd == 77);
		FAILS(ENOTTY, ioctl(0, EXPORT_SYNC_FILE, &s));
		FAILS(ENOTTY, ioctl(tl, EXPORT_SYNC_FILE, &s));
	}
	s.flags = 1;
	FAILS(ENOTTY, ioctl(tl, EXPORT_SYNC_FILE, &s));
	FAILS(EFAULT, ioctl(buf, EXPORT_SYNC_FILE, (void *)8));
	struct sync_file_arg *ro = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WANT(ro != MAP_FAILED);
	ro->flags = 1;
	OK(mprotect(ro, PAGE, PROT_READ));
	FAILS(EFAULT, ioctl(buf, EXPORT_SYNC_FILE, ro));
	munmap(ro, PAGE);
	WANT(open_fds() == before);

	/* a write fence goes in; readers' snapshot has it, and it alone counts for POLLIN */
	int w = sw_fence(tl, 1), r = sw_fence(tl, 2);
	s = (struct sync_file_arg){.flags = 2, .fd = w};
	OK(ioctl(buf, IMPORT_SYNC_FILE, &s));
	s = (struct sync_file_arg){.flags = 1, .fd = r};
	OK(ioctl(buf, IMPORT_SYNC_FILE, &s));
	s = (struct sync_file_arg){.flags = 1, .fd = tl};
	FAILS(EINVAL, ioctl(buf, IMPORT_SYNC_FILE, &s));
	s = (struct sync_file_arg){.flags = 1};
	OK(ioctl(buf, EXPORT_SYNC_FILE, &s));
	int read_after = s.fd;
	s = (struct sync_file_arg){.flags = 2};
	OK(ioctl(buf, EXPORT_SYNC_FILE, &s));
	int write_after = s.fd;
	WANT(status(read_after) == 0 && status(write_after) == 0 && readable(buf, 0) == 0);
	struct file_info i = {0};
	OK(ioctl(write_after, SYNC_FILE_INFO, &i));
	WANT(i.num_fences == 2);
	sw_inc(tl, 1);
	WANT(readable(read_after, 5000) == POLLIN && readable(write_after, 0) == 0);
	WANT(readable(buf, 5000) == POLLIN);
	sw_inc(tl, 1);
	WANT(readable(write_after, 5000) == POLLIN && readable(buf, 5000) == (POLLIN | POLLOUT));
	close(w), close(r), close(read_after), close(write_after);
	WANT(open_fds() == before);
	close(buf), close(tl);
}

/* ---- limits of the caller ---- */

static void limits(void)
{
	int heap = OK(open(HEAP, O_RDWR | O_CLOEXEC)), tl = sw_open(), buf = heap_alloc(PAGE, O_RDWR), f = sw_fence(tl, 1);
	udmabuf = OK(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
	int mem = memfd(PAGE, F_SEAL_SHRINK);
	struct rlimit l;
	OK(getrlimit(RLIMIT_NOFILE, &l));
	l.rlim_cur = open_fds() + 20;
	OK(setrlimit(RLIMIT_NOFILE, &l));
	int fds[64], n = 0;
	while (n < 64 && (fds[n] = dup(0)) >= 0)
		n++;
	WANT(n < 64);
	struct heap_alloc a = {.len = PAGE, .fd_flags = O_RDWR};
	FAILS(EMFILE, ioctl(heap, HEAP_ALLOC, &a));
	WANT(a.fd == 0);
	FAILS(EMFILE, create(mem, 0, 0, PAGE));
	struct sw_fence sf = {.value = 5};
	FAILS(EMFILE, ioctl(tl, SW_CREATE_FENCE, &sf));
	struct sync_merge m = {.fd2 = f};
	FAILS(EMFILE, ioctl(f, SYNC_MERGE, &m));
	struct sync_file_arg s = {.flags = 1};
	FAILS(EMFILE, ioctl(buf, EXPORT_SYNC_FILE, &s));
	FAILS(EMFILE, open("/dev/udmabuf", O_RDWR));
	FAILS(EMFILE, open(SW_SYNC, O_RDWR));
	while (n > 0)
		close(fds[--n]);
	a = (struct heap_alloc){.len = PAGE, .fd_flags = O_RDWR};
	OK(ioctl(heap, HEAP_ALLOC, &a));
	close(a.fd), close(heap), close(tl), close(buf), close(f), close(mem), close(udmabuf);
}

/* ---- threads, children ---- */

static void everything_once(void)
{
	int tl = sw_open(), f = sw_fence(tl, 1), g = merged(f, f, "");
	int buf = heap_alloc(3 * PAGE, O_RDWR | O_CLOEXEC);
	struct sync_file_arg s = {.flags = 3, .fd = g};
	OK(ioctl(buf, IMPORT_SYNC_FILE, &s));
	OK(ioctl(buf, EXPORT_SYNC_FILE, &s));
	WANT(status(s.fd) == 0);
	sw_inc(tl, 1);
	WANT(readable(s.fd, 10000) == POLLIN);
	int mem = memfd(PAGE, F_SEAL_SHRINK), u = OK(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
	struct udmabuf_create c = {.memfd = mem, .flags = 1, .size = PAGE};
	int ub = OK(ioctl(u, UDMABUF_CREATE, &c));
	WANT(ub > 2);
	struct stat st;
	OK(fstat(ub, &st));
	WANT(st.st_size == PAGE);
	close(tl), close(f), close(g), close(buf), close(s.fd), close(mem), close(u), close(ub);
}

static void *thread(void *own)
{
	if (own)
		OK(unshare(CLONE_FILES)); /* its descriptors are its own from here on */
	for (int i = 0; i < 20; i++)
		everything_once();
	return NULL;
}

static void threads(void)
{
	int before = open_fds();
	pthread_t t[8];
	for (long i = 0; i < 8; i++)
		WANT(!pthread_create(&t[i], NULL, thread, (void *)(i % 2)));
	for (int i = 0; i < 8; i++)
		pthread_join(t[i], NULL);
	WANT(open_fds() == before);
}

static void reap(int n)
{
	for (int i = 0; i < n; i++) {
		int st;
		OK(wait(&st));
		WANT(WIFEXITED(st) && WEXITSTATUS(st) == 0);
	}
}

static void children(void)
{
	for (int i = 0; i < 16; i++)
		if (OK(fork()) == 0) {
			if (fork() == 0) { /* an orphan soon */
				everything_once();
				_exit(0);
			}
			everything_once();
			_exit(0);
		}
	reap(16);
}

/* a thousand at once, each holding on to what it got */
static void bomb(void)
{
	int go[2];
	OK(pipe(go));
	for (int i = 0; i < 1000; i++)
		if (OK(fork()) == 0) {
			close(go[1]);
			int tl = open(SW_SYNC, O_RDWR), buf = -1;
			if (tl >= 0) {
				struct sw_fence f = {.value = 1};
				ioctl(tl, SW_CREATE_FENCE, &f);
			}
			int heap = open(HEAP, O_RDWR);
			struct heap_alloc a = {.len = PAGE, .fd_flags = O_RDWR};
			if (heap >= 0 && ioctl(heap, HEAP_ALLOC, &a) == 0)
				buf = a.fd;
			char c;
			while (read(go[0], &c, 1) < 0)
				;
			_exit(tl < 0 || buf < 0);
		}
	close(go[0]);
	usleep(100000);
	everything_once();
	close(go[1]);
	reap(1000);
	everything_once();
}

/* as many descriptors as the kernel lets us have */
static void many(void)
{
	struct rlimit l;
	OK(getrlimit(RLIMIT_NOFILE, &l));
	l.rlim_cur = l.rlim_max < 20000 ? l.rlim_max : 20000;
	OK(setrlimit(RLIMIT_NOFILE, &l));
	int tl = sw_open(), heap = OK(open(HEAP, O_RDWR | O_CLOEXEC));
	for (int i = 0;; i++) {
		struct sw_fence f = {.value = i + 1};
		struct heap_alloc a = {.len = PAGE, .fd_flags = O_RDWR};
		errno = 0;
		if (i % 2 ? ioctl(tl, SW_CREATE_FENCE, &f) : ioctl(heap, HEAP_ALLOC, &a))
			break;
	}
	WANT(errno == EMFILE || errno == ENOMEM);
	OK(close_range(3, ~0u, 0));
	everything_once();
}

/* ---- signals ---- */

static atomic_int ticks;
static void tick(int n) { (void)n; atomic_fetch_add(&ticks, 1); }

static void interrupted(void)
{
	struct sigaction sa = {.sa_handler = tick, .sa_flags = SA_RESTART};
	OK(sigaction(SIGALRM, &sa, NULL));
	int before = open_fds();
	struct itimerval it = {{0, 300}, {0, 300}};
	OK(setitimer(ITIMER_REAL, &it, NULL));
	udmabuf = OK(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
	int mem = memfd(PAGE, F_SEAL_SHRINK), tl = sw_open();
	for (int i = 0; i < 1500 || ticks < 20; i++) {
		int fd = OK(create(mem, 1, 0, PAGE));
		WANT(fd > 2);
		close(fd);
		fd = sw_fence(tl, i + 1);
		WANT(fd > 2);
		close(fd);
		close(OK(open("/dev/udmabuf", O_RDWR | O_CLOEXEC)));
	}
	it = (struct itimerval){0};
	OK(setitimer(ITIMER_REAL, &it, NULL));
	close(udmabuf), close(mem), close(tl);
	WANT(open_fds() == before);
}

/* how often UDMABUF_CREATE gives a descriptor: for who disturbs the supervisor meanwhile */
static void loop(void)
{
	udmabuf = OK(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
	int mem = memfd(PAGE, F_SEAL_SHRINK);
	struct timespec t0, t;
	clock_gettime(CLOCK_MONOTONIC, &t0);
	do {
		for (int i = 0; i < 200; i++) {
			int fd = OK(create(mem, 1, 0, PAGE));
			WANT(fd > 2);
			close(fd);
			fd = OK(open("/dev/udmabuf", O_RDWR | O_CLOEXEC));
			WANT(fd > 2);
			close(fd);
		}
		clock_gettime(CLOCK_MONOTONIC, &t);
	} while (t.tv_sec - t0.tv_sec < 2);
}

/* ---- memory that is not there: paths on pages that somebody has to bring first ---- */

static void *stuck_open(void *path)
{
	close(OK(open(path, O_RDWR | O_CLOEXEC)));
	return NULL;
}

static void stuck(void)
{
	enum { N = 8 };
	int uffd = OK(syscall(SYS_userfaultfd, O_CLOEXEC));
	struct uffdio_api api = {.api = UFFD_API};
	OK(ioctl(uffd, UFFDIO_API, &api));
	char *m = mmap(NULL, N * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	WANT(m != MAP_FAILED);
	struct uffdio_register r = {.range = {(uintptr_t)m, N * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
	OK(ioctl(uffd, UFFDIO_REGISTER, &r));
	pthread_t t[N];
	for (int i = 0; i < N; i++)
		WANT(!pthread_create(&t[i], NULL, stuck_open, m + i * PAGE));
	for (int i = 0; i < N; i++) { /* each of them has begun to be read, and waits */
		struct uffd_msg msg;
		WANT(read(uffd, &msg, sizeof(msg)) == sizeof(msg) && msg.event == UFFD_EVENT_PAGEFAULT);
	}
	everything_once(); /* and everybody else is served */
	static char page[PAGE] = "/dev/udmabuf";
	for (int i = 0; i < N; i++) {
		struct uffdio_copy c = {.dst = (uintptr_t)m + i * PAGE, .src = (uintptr_t)page, .len = PAGE};
		OK(ioctl(uffd, UFFDIO_COPY, &c));
		pthread_join(t[i], NULL);
	}
	close(uffd);
}

/* ---- other architectures of the same processor ---- */

static void arches(void)
{
#ifdef __x86_64__
	/* i386: getpid is 20; open of a path below 4 GiB is its own */
	long pid;
	__asm__ volatile("int $0x80" : "=a"(pid) : "a"(20L) : "memory", "r8", "r9", "r10", "r11");
	WANT(pid == getpid() || pid == -ENOSYS);
	char *low = mmap((void *)0x10000000, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	WANT(low != MAP_FAILED);
	strcpy(low, "/dev/null");
	long fd;
	__asm__ volatile("int $0x80" : "=a"(fd) : "a"(5L), "b"((long)low), "c"((long)O_RDWR), "d"(0L) : "memory", "r8", "r9", "r10", "r11");
	WANT(fd >= 0 || fd == -ENOSYS);
	/* x32: openat with its bit */
	errno = 0;
	long x32 = syscall(0x40000000 | SYS_openat, AT_FDCWD, "/dev/null", O_RDWR);
	WANT(x32 >= 0 || errno == ENOSYS);
#endif
}

/* ---- after the supervisor's death: told by a line on stdin ---- */

static void orphaned(void)
{
	int heap = OK(open(HEAP, O_RDWR | O_CLOEXEC));
	printf("waiting\n");
	fflush(stdout);
	char line[16];
	WANT(fgets(line, sizeof(line), stdin));
	struct heap_alloc a = {.len = PAGE, .fd_flags = O_RDWR};
	FAILS(ENOSYS, ioctl(heap, HEAP_ALLOC, &a));
	FAILS(ENOSYS, open("/dev/udmabuf", O_RDWR));
	FAILS(ENOSYS, open("/dev/null", O_RDWR));
	WANT(getppid() > 0); /* nothing else has changed */
}

static const struct { const char *name; void (*run)(void); } sections[] = {
	{"paths", paths}, {"heaps", heaps}, {"udmabufs", udmabufs}, {"syncs", syncs}, {"exports", exports},
	{"limits", limits}, {"threads", threads}, {"children", children}, {"bomb", bomb}, {"many", many},
	{"interrupted", interrupted}, {"loop", loop}, {"arches", arches}, {"orphaned", orphaned}, {"once", everything_once}, {"stuck", stuck},
};

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		section = argv[i];
		bool found = false;
		for (size_t k = 0; k < sizeof(sections) / sizeof(*sections); k++)
			if (!strcmp(sections[k].name, section)) {
				found = true;
				sections[k].run();
			}
		if (!found)
			die(__LINE__, "no such section");
		printf("ok %s\n", section);
		fflush(stdout);
	}
	return 0;
}
