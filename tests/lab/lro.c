/* A device that merges segments, as ethtool's old flags tell of it: preloaded, the one named by NATGW_TEST_LRO does. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <linux/ethtool.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

int ioctl(int file, unsigned long request, ...)
{
	static int (*real)(int, unsigned long, ...);
	const char *merges = getenv("NATGW_TEST_LRO");
	struct ifreq *device;
	void *argument;
	va_list more;
	int result;

	va_start(more, request);
	argument = va_arg(more, void *);
	va_end(more);
	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "ioctl");
	result = real(file, request, argument);
	if (result == 0 && request == SIOCETHTOOL && merges) {
		struct ethtool_value *value;

		device = argument;
		value = (void *)device->ifr_data;
		if (value->cmd == ETHTOOL_GFLAGS && strcmp(device->ifr_name, merges) == 0)
			value->data |= ETH_FLAG_LRO;
	}
	return result;
}
