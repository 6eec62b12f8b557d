/*
 * dbpipe: one participant of a pipeline over one buffer, under fences.
 *
 *	dbpipe producer|device|consumer MNT BUFFER ROUNDS
 *
 * There are timelines producer, device and consumer, each owned by its participant, and a device gpu0. In round r
 *
 *	the producer waits until the buffer is writable (every fence done), stores pattern r, adds the fences device:r
 *	(write) and consumer:r (read), and signals producer:r;
 *	the device waits for producer:r, inverts the buffer through its DMA view, and signals device:r;
 *	the consumer waits for producer:r, then until the buffer is readable, checks it, and signals consumer:r.
 *
 * It says "ready" once it owns its timeline. Exit status: 0 all rounds done; 1 a byte was wrong; 2 a call failed that
 * must not; 3 stuck; 10 another participant has died.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/dma-buf.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STUCK = 60000 }; /* milliseconds */

static const char *mnt, *buffer;

static void die(int status, const char *what)
{
	if (status != 10)
		fprintf(stderr, "dbpipe: %s: %s\n", what, strerror(errno));
	exit(status);
}

/* the timeline, the fence or whoever was to signal it is gone */
static int gone(int e) { return e == ENOENT || e == EINVAL || e == ESTALE || e == ENODEV; }

static char *path(const char *format, const char *a, const char *b)
{
	static char p[4][512];
	static int i;
	i = (i + 1) % 4;
	int n = snprintf(p[i], sizeof p[i], "%s/", mnt);
	snprintf(p[i] + n, sizeof p[i] - (size_t)n, format, a, b);
	return p[i];
}

static int open_or_die(const char *p, int flags)
{
	int fd = open(p, flags | O_CLOEXEC);
	if (fd < 0)
		die(gone(errno) ? 10 : 2, p);
	return fd;
}

static void put(const char *p, const char *text)
{
	int fd = open_or_die(p, O_WRONLY);
	if (write(fd, text, strlen(text)) < 0)
		die(gone(errno) ? 10 : 2, p);
	close(fd);
}

static void wait_ready(int fd, short events, const char *what)
{
	struct pollfd p = { .fd = fd, .events = events };
	int n;
	do
		n = poll(&p, 1, STUCK);
	while (n < 0 && errno == EINTR);
	if (n != 1 || p.revents != events) {
		fprintf(stderr, "dbpipe: poll of %s gives %d, %#x\n", what, n, (unsigned)p.revents);
		exit(3);
	}
}

/* waits for a point; it must have been signaled without an error */
static void wait_point(const char *timeline, long r)
{
	char seqno[32], text[64];
	snprintf(seqno, sizeof seqno, "%ld", r);
	int fd = open_or_die(path("timelines/%s/points/%s", timeline, seqno), O_RDONLY);
	wait_ready(fd, POLLIN, timeline);
	ssize_t n = read(fd, text, sizeof text - 1);
	if (n < 0)
		die(2, timeline);
	text[n] = 0;
	if (strncmp(text, "error", 5) == 0)
		die(10, timeline);
	if (strcmp(text, "signaled\n")) {
		fprintf(stderr, "dbpipe: %s:%ld is %s", timeline, r, text);
		exit(2);
	}
	close(fd);
}

static void advance(const char *timeline, long r)
{
	char text[32];
	snprintf(text, sizeof text, "%ld\n", r);
	put(path("timelines/%s/value%s", timeline, ""), text);
}

static void add(const char *file, const char *timeline, long r)
{
	char text[64];
	snprintf(text, sizeof text, "%s:%ld\n", timeline, r);
	put(path("state/%s/%s", buffer, file), text);
}

static void bracket(int fd, uint64_t flags)
{
	struct dma_buf_sync s = { .flags = flags };
	int r;
	do
		r = ioctl(fd, DMA_BUF_IOCTL_SYNC, &s);
	while (r < 0 && (errno == EINTR || errno == EAGAIN));
	if (r < 0)
		die(2, "DMA_BUF_IOCTL_SYNC");
}

static uint64_t pattern(long r, size_t i) { return ((uint64_t)r << 40 | i) * 0x9e3779b97f4a7c15u; }

int main(int argc, char **argv)
{
	if (argc != 5)
		return 2;
	const char *role = argv[1];
	mnt = argv[2];
	buffer = argv[3];
	long rounds = atol(argv[4]);
	int owner = open_or_die(path("timelines/%s/owner%s", role, ""), O_WRONLY);
	int device = strcmp(role, "device") == 0, producer = strcmp(role, "producer") == 0;
	int fd = device ? -1 : open_or_die(path("buffers/%s%s", buffer, ""), O_RDWR);
	struct stat st;
	if (stat(path("buffers/%s%s", buffer, ""), &st) < 0)
		die(2, buffer);
	size_t words = (size_t)st.st_size / 8;
	uint64_t *map = NULL;
	if (!device) {
		map = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			die(2, "mmap");
	}
	puts("ready");
	fflush(stdout);
	for (long r = 1; r <= rounds; r++) {
		if (producer) {
			wait_ready(fd, POLLOUT, buffer);
			if (r > 1)
				wait_point("consumer", r - 1);
			bracket(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW);
			for (size_t i = 0; i < words; i++)
				map[i] = pattern(r, i);
			bracket(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW);
			add("write_fences", "device", r);
			add("read_fences", "consumer", r);
		} else if (device) {
			wait_point("producer", r);
			int v = open_or_die(path("devices/gpu0/buffers/%s%s", buffer, ""), O_RDWR);
			uint64_t *view = mmap(NULL, words * 8, PROT_READ | PROT_WRITE, MAP_SHARED, v, 0);
			if (view == MAP_FAILED)
				die(2, "mmap of the view");
			for (size_t i = 0; i < words; i++) {
				if (view[i] != pattern(r, i)) {
					fprintf(stderr, "dbpipe: round %ld: the device sees %#" PRIx64 " in word %zu\n", r, view[i], i);
					return 1;
				}
				view[i] = ~view[i];
			}
			munmap(view, words * 8);
			if (close(v) < 0)
				die(2, "close of the view");
		} else {
			wait_point("producer", r);
			wait_ready(fd, POLLIN, buffer);
			wait_point("device", r); /* done, but not because the device has died */
			bracket(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ);
			for (size_t i = 0; i < words; i++)
				if (map[i] != ~pattern(r, i)) {
					fprintf(stderr, "dbpipe: round %ld: the consumer sees %#" PRIx64 " in word %zu\n", r, map[i], i);
					return 1;
				}
			bracket(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
		}
		advance(role, r);
	}
	/* Own the timeline until the others had what they wait for. */
	if (!device && producer)
		wait_ready(fd, POLLOUT, buffer);
	else
		wait_point("consumer", rounds);
	close(owner);
	return 0;
}
