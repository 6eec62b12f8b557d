// crowd N: N threads poll descriptor 3 for POLLIN. Writes CLOCK_MONOTONIC ns (8 bytes)
// when all have started, and again when the last has woken.
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static pthread_barrier_t started;

static void *wait_for_it(void *arg)
{
	struct pollfd p = {.fd = 3, .events = POLLIN};

	(void)arg;
	pthread_barrier_wait(&started);
	while (poll(&p, 1, 20000) < 0)
		;
	return NULL;
}

static void tell(void)
{
	struct timespec t;
	uint64_t ns;

	clock_gettime(CLOCK_MONOTONIC, &t);
	ns = t.tv_sec * 1000000000ull + t.tv_nsec;
	if (write(1, &ns, sizeof(ns)) != sizeof(ns))
		exit(1);
}

int main(int argc, char **argv)
{
	int n = argc > 1 ? atoi(argv[1]) : 1000;
	pthread_t *t = calloc(n, sizeof(*t));
	pthread_attr_t a;

	pthread_attr_init(&a);
	pthread_attr_setstacksize(&a, 65536);
	pthread_barrier_init(&started, NULL, n + 1);
	for (int i = 0; i < n; i++)
		if (pthread_create(&t[i], &a, wait_for_it, NULL)) {
			perror("crowd: pthread_create");
			return 1;
		}
	pthread_barrier_wait(&started);
	tell();
	for (int i = 0; i < n; i++)
		pthread_join(t[i], NULL);
	tell();
	return 0;
}
