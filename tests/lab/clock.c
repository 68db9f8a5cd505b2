/* A wall clock that a test can step: preloaded, it adds to CLOCK_REALTIME the seconds that the file named by
   NATGW_TEST_CLOCK holds. CLOCK_BOOTTIME goes forward with it, as after a machine has slept. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long offset(void)
{
	const char *path = getenv("NATGW_TEST_CLOCK");
	FILE *file = path ? fopen(path, "r") : NULL;
	long seconds = 0;

	if (file) {
		if (fscanf(file, "%ld", &seconds) != 1)
			seconds = 0;
		fclose(file);
	}
	return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*real)(clockid_t, struct timespec *);
	int result;
	long seconds;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
	result = real(clock, now);
	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_BOOTTIME)) {
		seconds = offset();
		if (clock == CLOCK_REALTIME || seconds > 0)
			now->tv_sec += seconds;
	}
	return result;
}

int gettimeofday(struct timeval *now, void *zone)
{
	struct timespec precise;
	int result = clock_gettime(CLOCK_REALTIME, &precise);

	(void)zone;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return result;
}

time_t time(time_t *now)
{
	struct timespec precise;

	clock_gettime(CLOCK_REALTIME, &precise);
	if (now)
		*now = precise.tv_sec;
	return precise.tv_sec;
}
