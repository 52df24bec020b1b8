// SPDX-License-Identifier: GPL-2.0-only
/*
 * Symbol lookup. kallsyms_lookup_name() is not exported (since 5.7); a kprobe,
 * registered disabled so that nothing is patched, tells where it is.
 */
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/string.h>

#include "cohabit.h"

typedef unsigned long (*lookup_t)(const char *name);

static lookup_t lookup_name;
static lookup_t lookup_in_modules;

static unsigned long __nocfi ask(lookup_t lookup, const char *name)
{
	struct cohabit_ibt ibt;
	unsigned long addr;

	cohabit_ibt_off(&ibt);
	addr = lookup(name);
	cohabit_ibt_restore(&ibt);
	return addr;
}

int cohabit_lookup_init(void)
{
	struct kprobe probe = {
		.symbol_name = "kallsyms_lookup_name",
		.flags = KPROBE_FLAG_DISABLED,
	};
	int ret = register_kprobe(&probe);

	if (ret)
		return ret;
	lookup_name = (lookup_t)probe.addr;
	unregister_kprobe(&probe);
	lookup_in_modules = (lookup_t)ask(lookup_name, "module_kallsyms_lookup_name");
	return lookup_in_modules ? 0 : -ENOENT;
}

/*
 * Calls the kernel's function @name, which takes and gives an address and is not
 * exported; 0: there is no such function. It must not sleep.
 */
unsigned long __nocfi cohabit_ask(const char *name, unsigned long address)
{
	unsigned long (*function)(unsigned long) = (void *)ask(lookup_name, name);
	struct cohabit_ibt ibt;
	unsigned long result;

	if (!function)
		return 0;
	cohabit_ibt_off(&ibt);
	result = function(address);
	cohabit_ibt_restore(&ibt);
	return result;
}

/*
 * Returns the address of symbol @name, in vmlinux or a module, 0: none. Of
 * several it is the first that the kernel finds.
 *
 * A function of the table is looked for where it is: up to 6.1 the kernel goes
 * through all of vmlinux's symbols before it looks into a module, which takes
 * far too long for as many as an attachment can have.
 */
unsigned long cohabit_lookup(const char *name)
{
	const struct cohabit_function *func = cohabit_find_function(name, NULL);
	char qualified[COHABIT_NAME_LEN + 16];

	if (!func || !strcmp(func->object, "vmlinux"))
		return ask(lookup_name, name);
	snprintf(qualified, sizeof(qualified), "%s:%s", func->object, name);
	return ask(lookup_in_modules, qualified);
}
