/* The backends: files of a mount, and descriptors as the kernel (or `dmabuffs run`) gives them. */
#include "conformance.h"

#include <stdarg.h>

static const char *mnt;
static char prefix[32]; /* of all names we make */

static char *path(const char *format, ...)
{
	static char p[8][512];
	static int i;
	va_list ap;
	i = (i + 1) % 8;
	va_start(ap, format);
	int n = snprintf(p[i], sizeof p[i], "%s/", mnt);
	vsnprintf(p[i] + n, sizeof p[i] - (size_t)n, format, ap);
	va_end(ap);
	return p[i];
}

/* what a backend stands on: without it a case has no answer */
static void must(long r, const char *what)
{
	if (r < 0) {
		printf("broken: %s: %s\n", what, strerror(errno));
		fflush(stdout);
		_exit(0);
	}
}

static void put(const char *p, const char *text)
{
	int fd = open(p, O_WRONLY | O_CLOEXEC);
	must(fd, p);
	must(write(fd, text, strlen(text)), p);
	close(fd);
}

/* Mounted files. The name of each buffer is its inode's. */
static struct { ino_t ino; char name[64]; } names[64];
static int made;

static const char *name_of(int fd)
{
	struct stat st;
	must(fstat(fd, &st), "fstat");
	for (int i = 0; i < made; i++)
		if (names[i].ino == st.st_ino)
			return names[i].name;
	errno = ENOENT;
	must(-1, "a buffer with that inode");
	return NULL;
}

static int m_buffer(size_t bytes, int access)
{
	struct stat st;
	snprintf(names[made].name, sizeof names[made].name, "%s-%d", prefix, made);
	const char *p = path("buffers/%s", names[made].name);
	int fd = open(p, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	must(fd, p);
	must(ftruncate(fd, (off_t)bytes), "ftruncate of a new buffer");
	must(fstat(fd, &st), "fstat");
	names[made++].ino = st.st_ino;
	if (access == O_RDWR)
		return fd;
	close(fd);
	fd = open(p, access | O_CLOEXEC);
	must(fd, p);
	return fd;
}

static int m_again(int fd) { return open(path("buffers/%s", name_of(fd)), O_RDWR | O_CLOEXEC); }
static void m_unname(int fd) { must(unlink(path("buffers/%s", name_of(fd))), "unlink"); }

static int timelines;

static int m_timeline(void)
{
	must(mkdir(path("timelines/%s-%d", prefix, timelines), 0700), "mkdir of a timeline");
	return timelines++;
}

static int m_fence(int t, uint64_t value)
{
	const char *p = path("timelines/%s-%d/points/%llu", prefix, t, (unsigned long long)value);
	int fd = open(p, O_RDONLY | O_CLOEXEC);
	must(fd, p);
	return fd;
}

static void m_inc(int t, uint32_t n)
{
	char text[32];
	snprintf(text, sizeof text, "+%u\n", n);
	put(path("timelines/%s-%d/value", prefix, t), text);
}

static void m_end(int t) { must(rmdir(path("timelines/%s-%d", prefix, t)), "rmdir of a timeline"); }

static int m_deadline(int t, int fence, struct sw_deadline *d)
{
	int fd = open(path("timelines/%s-%d/value", prefix, t), O_RDWR | O_CLOEXEC);
	d->fence_fd = fence;
	int r = ioctl(fd, SW_GET_DEADLINE, d), e = errno;
	close(fd);
	errno = e;
	return r;
}

static int m_attach(int fd, const char *device)
{
	if (mkdir(path("devices/%s", device), 0700) < 0 && errno != EEXIST)
		must(-1, "mkdir of a device");
	const char *p = path("devices/%s/buffers/%s", device, name_of(fd));
	int v = open(p, O_RDWR | O_CLOEXEC);
	must(v, p);
	return v;
}

static int m_device_write(int view, const void *p, size_t n, off_t at) { return (int)pwrite(view, p, n, at); }

const struct backend mounted = {
	.name = "mount", .buffer = m_buffer, .again = m_again, .unname = m_unname, .timeline = m_timeline, .fence = m_fence,
	.inc = m_inc, .end = m_end, .deadline = m_deadline, .attach = m_attach, .device_write = m_device_write,
};

/* Descriptors. */
int udmabuf_node(void)
{
	int fd = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		na("no /dev/udmabuf");
	return fd;
}

int heap(void)
{
	int fd = open("/dev/dma_heap/system", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		na("no /dev/dma_heap/system");
	return fd;
}

int sealed_memfd(size_t bytes, unsigned seals)
{
	int fd = memfd_create("conformance", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	must(fd, "memfd_create");
	must(ftruncate(fd, (off_t)bytes), "ftruncate of a memfd");
	if (seals)
		must(fcntl(fd, F_ADD_SEALS, seals), "F_ADD_SEALS");
	return fd;
}

int udmabuf(int memfd, uint32_t flags, uint64_t offset, uint64_t size)
{
	int node = udmabuf_node();
	struct ud_create c = { .memfd = (uint32_t)memfd, .flags = flags, .offset = offset, .size = size };
	int r = ioctl(node, UD_CREATE, &c), e = errno;
	close(node);
	errno = e;
	return r;
}

/* udmabuf where there is one, and CONFORMANCE_EXPORTER does not ask for the heap */
static bool use_udmabuf;

static int d_buffer(size_t bytes, int access)
{
	if (bytes == 0)
		na("no exporter makes a buffer of size 0");
	if (bytes % PAGE)
		na("no exporter makes a buffer of a size that is no multiple of pages");
	if (access == O_RDWR && use_udmabuf) {
		int mem = sealed_memfd(bytes, F_SEAL_SHRINK), fd = udmabuf(mem, 1, 0, bytes);
		close(mem);
		must(fd, "UDMABUF_CREATE");
		return fd;
	}
	int h = heap();
	struct heap_alloc a = { .len = bytes, .fd_flags = (uint32_t)access | O_CLOEXEC };
	must(ioctl(h, HEAP_ALLOC, &a), "DMA_HEAP_IOCTL_ALLOC");
	close(h);
	return (int)a.fd;
}

static int d_again(int fd) { (void)fd; na("no exporter of this machine exports a buffer twice"); }
static void d_unname(int fd) { (void)fd; }

static int d_timeline(void)
{
	int fd = open("/sys/kernel/debug/sync/sw_sync", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		na("no sw_sync");
	return fd;
}

static int d_fence(int t, uint64_t value)
{
	struct sw_create c = { .value = (uint32_t)value, .name = "conformance" };
	must(ioctl(t, SW_CREATE_FENCE, &c), "SW_SYNC_IOC_CREATE_FENCE");
	return c.fence;
}

static void d_inc(int t, uint32_t n) { must(ioctl(t, SW_INC, &n), "SW_SYNC_IOC_INC"); }
static void d_end(int t) { close(t); }

static int d_deadline(int t, int fence, struct sw_deadline *d)
{
	d->fence_fd = fence;
	return ioctl(t, SW_GET_DEADLINE, d);
}

static int d_attach(int fd, const char *device)
{
	(void)fd, (void)device;
	na("no importer here that a program could attach");
}

const struct backend descriptors = {
	.name = "descriptors", .buffer = d_buffer, .again = d_again, .unname = d_unname, .timeline = d_timeline, .fence = d_fence,
	.inc = d_inc, .end = d_end, .deadline = d_deadline, .attach = d_attach,
};

static struct backend chosen;
const struct backend *B = &chosen;

void backend_init(int argc, char **argv)
{
	if (argc >= 3 && strcmp(argv[1], "mount") == 0) {
		static char bufinfo[512];
		chosen = mounted;
		mnt = argv[2];
		snprintf(bufinfo, sizeof bufinfo, "%s/bufinfo", mnt);
		chosen.bufinfo = bufinfo;
	} else if (argc >= 2 && (strcmp(argv[1], "run") == 0 || strcmp(argv[1], "kernel") == 0)) {
		chosen = descriptors;
		chosen.name = argv[1];
		const char *e = getenv("CONFORMANCE_EXPORTER");
		use_udmabuf = access("/dev/udmabuf", R_OK | W_OK) == 0 && (!e || strcmp(e, "heap"));
		chosen.bufinfo = "/sys/kernel/debug/dma_buf/bufinfo";
	} else {
		fprintf(stderr, "conformance mount MNT | run | kernel [CASE...]\n");
		exit(2);
	}
	snprintf(prefix, sizeof prefix, "conformance-%d", getpid());
}

/* after each case, by the parent: whatever names the child has left */
void backend_clean(void)
{
	if (strcmp(B->name, "mount"))
		return;
	for (int i = 0; i < 64; i++) {
		unlink(path("buffers/%s-%d", prefix, i));
		rmdir(path("timelines/%s-%d", prefix, i));
	}
	for (int tries = 0; tries < 100 && rmdir(path("devices/dev0")) < 0 && errno == EBUSY; tries++)
		usleep(20000);
}
