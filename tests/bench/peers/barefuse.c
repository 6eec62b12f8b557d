// barefuse is the least that a FUSE file system can do: the peer that dmabuffs is
// measured against. One directory with one file "f" (4096 bytes of zeros); one
// thread; LOOKUP, GETATTR, OPEN, RELEASE, READ, WRITE and IOCTL are answered with
// as little work as there is, POLL with what the last WRITE left: a WRITE of "1"
// makes the file ready and sends NOTIFY_POLL, a WRITE of "0" makes it unready.
//
//	barefuse MNT     (root; ends when MNT is unmounted)
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int dev;
static char in[(1 << 20) + 4096];
static unsigned ready;
static uint64_t kh;

static void reply(uint64_t unique, int error, const void *p, size_t n)
{
	struct fuse_out_header h = {.len = sizeof(h) + n, .error = error, .unique = unique};
	struct iovec v[2] = {{&h, sizeof(h)}, {(void *)p, n}};

	if (writev(dev, v, n ? 2 : 1) < 0 && errno != ENOENT)
		perror("barefuse: reply");
}

static struct fuse_attr attr(uint64_t id)
{
	struct fuse_attr a = {.ino = id, .nlink = 1, .blksize = 4096};

	a.mode = id == 1 ? S_IFDIR | 0755 : S_IFREG | 0666;
	a.size = id == 1 ? 0 : 4096;
	return a;
}

static void handle(struct fuse_in_header *h, void *body)
{
	switch (h->opcode) {
	case FUSE_INIT: {
		struct fuse_init_out o = {.major = 7, .minor = 31, .max_write = 1 << 20, .max_background = 64,
			.flags = FUSE_BIG_WRITES | FUSE_ATOMIC_O_TRUNC};
		reply(h->unique, 0, &o, sizeof(o));
		break;
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out o = {.nodeid = 2, .entry_valid = 3600, .attr_valid = 3600, .attr = attr(2)};
		if (strcmp(body, "f"))
			reply(h->unique, -ENOENT, NULL, 0);
		else
			reply(h->unique, 0, &o, sizeof(o));
		break;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out o = {.attr_valid = 3600, .attr = attr(h->nodeid)};
		reply(h->unique, 0, &o, sizeof(o));
		break;
	}
	case FUSE_OPEN: {
		struct fuse_open_out o = {.fh = 1, .open_flags = FOPEN_DIRECT_IO | FOPEN_NOFLUSH};
		reply(h->unique, 0, &o, sizeof(o));
		break;
	}
	case FUSE_RELEASE:
	case FUSE_FLUSH:
	case FUSE_FSYNC:
		reply(h->unique, 0, NULL, 0);
		break;
	case FUSE_READ: {
		struct fuse_read_in *r = body;
		static char zero[1];
		reply(h->unique, 0, zero, r->offset == 0);
		break;
	}
	case FUSE_WRITE: {
		struct fuse_write_in *w = body;
		struct fuse_write_out o = {.size = w->size};
		char *data = (char *)(w + 1);

		reply(h->unique, 0, &o, sizeof(o));
		if (w->size && (*data == '0' || *data == '1')) {
			ready = *data == '1' ? POLLIN | POLLOUT : 0;
			if (ready && kh) {
				struct fuse_notify_poll_wakeup_out p = {.kh = kh};
				reply(0, FUSE_NOTIFY_POLL, &p, sizeof(p));
			}
		}
		break;
	}
	case FUSE_IOCTL: {
		struct fuse_ioctl_out o = {0};
		reply(h->unique, 0, &o, sizeof(o));
		break;
	}
	case FUSE_POLL: {
		struct fuse_poll_in *p = body;
		struct fuse_poll_out o = {.revents = ready & p->events};
		if (p->flags & FUSE_POLL_SCHEDULE_NOTIFY)
			kh = p->kh;
		reply(h->unique, 0, &o, sizeof(o));
		break;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	case FUSE_DESTROY:
		exit(0);
	default:
		reply(h->unique, -ENOSYS, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	char opts[128];

	if (argc != 2) {
		fprintf(stderr, "usage: barefuse MNT\n");
		return 2;
	}
	dev = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (dev < 0) {
		perror("barefuse: /dev/fuse");
		return 1;
	}
	snprintf(opts, sizeof(opts), "fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", dev);
	if (mount("barefuse", argv[1], "fuse.barefuse", MS_NOSUID | MS_NODEV, opts)) {
		perror("barefuse: mount");
		return 1;
	}
	for (;;) {
		ssize_t n = read(dev, in, sizeof(in));
		if (n < 0) {
			if (errno == EINTR || errno == ENOENT || errno == EAGAIN)
				continue;
			return errno == ENODEV ? 0 : 1;
		}
		handle((struct fuse_in_header *)in, in + sizeof(struct fuse_in_header));
	}
}
