// SPDX-License-Identifier: GPL-2.0-only
/*
 * Symbol lookup. kallsyms_lookup_name() is not exported (since 5.7); a kprobe,
 * registered disabled so that nothing is patched, tells where it is.
 */
#include <linux/kprobes.h>

#include "cohabit.h"

static unsigned long (*lookup_name)(const char *name);

int cohabit_lookup_init(void)
{
	struct kprobe probe = {
		.symbol_name = "kallsyms_lookup_name",
		.flags = KPROBE_FLAG_DISABLED,
	};
	int ret = register_kprobe(&probe);

	if (ret)
		return ret;
	lookup_name = (void *)probe.addr;
	unregister_kprobe(&probe);
	return 0;
}

/*
 * Returns the address of symbol @name, in vmlinux or a module, 0: none. Of
 * several it is the first that the kernel finds.
 */
unsigned long __nocfi cohabit_lookup(const char *name)
{
	struct cohabit_ibt ibt;
	unsigned long addr;

	cohabit_ibt_off(&ibt);
	addr = lookup_name(name);
	cohabit_ibt_restore(&ibt);
	return addr;
}
