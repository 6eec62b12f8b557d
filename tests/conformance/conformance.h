/* What the cases of conformance.c stand on: backends, checks, and the kernel's numbers. */
#ifndef CONFORMANCE_H
#define CONFORMANCE_H

#include <errno.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/sync_file.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, D4 = 4 * PAGE };

/* include/uapi/linux/dma-buf.h of Linux 6.0 and later */
struct sync_file_arg { uint32_t flags; int32_t fd; };
#define EXPORT_SYNC_FILE _IOWR('b', 2, struct sync_file_arg)
#define IMPORT_SYNC_FILE _IOW('b', 3, struct sync_file_arg)
/* drivers/dma-buf/sw_sync.c */
struct sw_create { uint32_t value; char name[32]; int32_t fence; };
struct sw_deadline { uint64_t deadline_ns; uint32_t pad; int32_t fence_fd; };
#define SW_CREATE_FENCE _IOWR('W', 0, struct sw_create)
#define SW_INC _IOW('W', 1, uint32_t)
#define SW_GET_DEADLINE _IOWR('W', 2, struct sw_deadline)
/* include/uapi/linux/sync_file.h of Linux 6.6 and later */
struct set_deadline { uint64_t deadline_ns, pad; };
#define SET_DEADLINE _IOW('>', 5, struct set_deadline)
/* include/uapi/linux/udmabuf.h, dma-heap.h */
struct ud_create { uint32_t memfd, flags; uint64_t offset, size; };
struct ud_item { uint32_t memfd, pad; uint64_t offset, size; };
struct ud_list { uint32_t flags, count; struct ud_item list[]; };
#define UD_CREATE _IOW('u', 0x42, struct ud_create)
#define UD_CREATE_LIST _IOW('u', 0x43, struct ud_list)
struct heap_alloc { uint64_t len; uint32_t fd, fd_flags; uint64_t heap_flags; };
#define HEAP_ALLOC _IOWR('H', 0, struct heap_alloc)

/* A backend makes buffers, timelines and fences. What it cannot, it says by na(). */
struct backend {
	const char *name;
	int (*buffer)(size_t bytes, int access);        /* a descriptor, O_RDONLY, O_WRONLY or O_RDWR */
	int (*again)(int fd);                           /* another descriptor by another open or export */
	void (*unname)(int fd);                         /* nothing but descriptors and mappings holds it now */
	int (*timeline)(void);                          /* a number for the next four; its value is 0 */
	int (*fence)(int timeline, uint64_t value);     /* a sync file */
	void (*inc)(int timeline, uint32_t n);
	void (*end)(int timeline);
	int (*deadline)(int timeline, int fence, struct sw_deadline *); /* GET_DEADLINE */
	const char *bufinfo;                            /* path */
	int (*attach)(int fd, const char *device);      /* a descriptor that keeps the device attached */
	int (*device_write)(int view, const void *p, size_t n, off_t at);
};

extern const struct backend mounted, descriptors;
extern const struct backend *B;

/* what the backend of descriptors opens */
int udmabuf(int memfd, uint32_t flags, uint64_t offset, uint64_t size);
int sealed_memfd(size_t bytes, unsigned seals);
int heap(void);
int udmabuf_node(void);
void backend_init(int argc, char **argv);
void backend_clean(void);

_Noreturn void na(const char *why);
void differs(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* the result of a call, or -errno */
#define R(call) __extension__({ long r_ = (long)(call); r_ < 0 ? -(long)errno : r_; })

#endif
