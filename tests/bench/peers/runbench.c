// runbench WHAT: one figure of a program, to be run with and without `dmabuffs run`.
//
//	getppid    ns of a system call that is nobody's
//	alloc      us of DMA_HEAP_IOCTL_ALLOC and the close
//	udmabuf    us of UDMABUF_CREATE of 4 pages and the close
//	export     us of DMA_BUF_IOCTL_EXPORT_SYNC_FILE and the close
//	heap, udmabufmap, memfd    GB/s of stores and loads through a mapping of 64 MiB
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SIZE (64ul << 20)

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static int check(int r, const char *what)
{
	if (r < 0) {
		perror(what);
		exit(1);
	}
	return r;
}

static int heap_alloc(int heap, uint64_t len)
{
	struct { uint64_t len; uint32_t fd, fd_flags; uint64_t heap_flags; } a = {len, 0, O_RDWR | O_CLOEXEC, 0};

	check(ioctl(heap, 0xC0184800, &a), "DMA_HEAP_IOCTL_ALLOC");
	return a.fd;
}

static int sealed(uint64_t len)
{
	int fd = check(memfd_create("runbench", MFD_ALLOW_SEALING), "memfd_create");

	check(ftruncate(fd, len), "ftruncate");
	check(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), "F_ADD_SEALS");
	return fd;
}

static int udmabuf_create(int dev, int memfd, uint64_t len)
{
	struct { uint32_t memfd, flags; uint64_t offset, size; } c = {memfd, 1, 0, len};

	return check(ioctl(dev, 0x40187542, &c), "UDMABUF_CREATE");
}

static void bandwidth(int fd)
{
	char *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	char *q = malloc(SIZE);
	double t;

	if (p == MAP_FAILED) {
		perror("mmap");
		exit(1);
	}
	memset(p, 1, SIZE);
	memset(q, 2, SIZE);
	t = now();
	for (int i = 0; i < 8; i++) {
		memcpy(p, q, SIZE);
		memcpy(q, p, SIZE);
	}
	printf("%f\n", 16 * SIZE / (now() - t) / 1e9);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	int n = 3000, fd, dev;
	double t;

	if (!strcmp(what, "getppid")) {
		n = 2000000;
		t = now();
		for (int i = 0; i < n; i++)
			syscall(SYS_getppid);
		printf("%f\n", (now() - t) / n * 1e9);
	} else if (!strcmp(what, "alloc")) {
		dev = check(open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC), "/dev/dma_heap/system");
		t = now();
		for (int i = 0; i < n; i++)
			close(heap_alloc(dev, 4096));
		printf("%f\n", (now() - t) / n * 1e6);
	} else if (!strcmp(what, "udmabuf")) {
		dev = check(open("/dev/udmabuf", O_RDWR | O_CLOEXEC), "/dev/udmabuf");
		fd = sealed(16384);
		t = now();
		for (int i = 0; i < n; i++)
			close(udmabuf_create(dev, fd, 16384));
		printf("%f\n", (now() - t) / n * 1e6);
	} else if (!strcmp(what, "export")) {
		fd = heap_alloc(check(open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC), "/dev/dma_heap/system"), 4096);
		t = now();
		for (int i = 0; i < n; i++) {
			struct { uint32_t flags; int32_t fd; } e = {3, -1};

			check(ioctl(fd, 0xC0086202, &e), "EXPORT_SYNC_FILE");
			close(e.fd);
		}
		printf("%f\n", (now() - t) / n * 1e6);
	} else if (!strcmp(what, "heap")) {
		bandwidth(heap_alloc(check(open("/dev/dma_heap/system", O_RDWR | O_CLOEXEC), "/dev/dma_heap/system"), SIZE));
	} else if (!strcmp(what, "udmabufmap")) {
		bandwidth(udmabuf_create(check(open("/dev/udmabuf", O_RDWR | O_CLOEXEC), "/dev/udmabuf"), sealed(SIZE), SIZE));
	} else if (!strcmp(what, "memfd")) {
		bandwidth(sealed(SIZE));
	} else {
		fprintf(stderr, "usage: runbench getppid|alloc|udmabuf|export|heap|udmabufmap|memfd\n");
		return 2;
	}
	return 0;
}
