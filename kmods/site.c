// SPDX-License-Identifier: GPL-2.0-only
/*
 * Call sites as they are patched: the bytes that are there, and on arm64 which
 * instruction it is and what lies where it leads. Read, not understood:
 * harness/ftrace/branch.py does that.
 */
#include <linux/bitops.h>
#include <linux/kernel.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"

/* COHABIT_IOC_TEXT */
long cohabit_ioctl_text(void __user *arg)
{
	struct cohabit_text text;
	unsigned long address;
	int ret;

	if (copy_from_user(&text, arg, sizeof(text)))
		return -EFAULT;
	if (!memchr(text.func, 0, sizeof(text.func)))
		return -ENAMETOOLONG;
	address = cohabit_lookup(text.func);
	if (address)
		address = cohabit_ask("ftrace_location", address);
	if (!address)
		return -ESRCH;
	ret = copy_from_kernel_nofault(text.bytes, (void *)(address - sizeof(text.bytes) / 2),
				       sizeof(text.bytes));
	if (ret)
		return ret;
	return copy_to_user(arg, &text, sizeof(text)) ? -EFAULT : 0;
}

#ifdef CONFIG_ARM64

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS
#define HAS_OPS	1
#else
#define HAS_OPS	0
#endif

/*
 * What ftrace_caller takes for the function's ops, see
 * arch/arm64/kernel/ftrace.c:ftrace_rec_set_ops().
 */
static int read_ops(struct cohabit_site *site)
{
	unsigned long literal = ALIGN_DOWN(site->address - 12, 8);
	int ret = copy_from_kernel_nofault(&site->ops, (void *)literal, sizeof(site->ops));

#ifdef CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS
	if (!ret)
		ret = copy_from_kernel_nofault(&site->direct_call,
					       (void *)(unsigned long)site->ops +
					       offsetof(struct ftrace_ops, direct_call),
					       sizeof(site->direct_call));
#endif
	return ret;
}

/* The instructions that a BL leads to: where that is too far, the way there. */
static int read_veneer(struct cohabit_site *site)
{
	u32 immediate = site->instruction & GENMASK(25, 0);
	unsigned long target;

	if (site->instruction >> 26 != 0x25)
		return 0;
	target = site->address + sign_extend64((u64)immediate << 2, 27);
	return copy_from_kernel_nofault(site->veneer, (void *)target, sizeof(site->veneer));
}

/* COHABIT_IOC_SITE; under cohabit_lock. */
long cohabit_ioctl_site(void __user *arg)
{
	struct cohabit_site site;
	int ret;

	if (copy_from_user(&site, arg, sizeof(site)))
		return -EFAULT;
	if (!memchr(site.func, 0, sizeof(site.func)))
		return -ENAMETOOLONG;
	memset((void *)&site + sizeof(site.func), 0, sizeof(site) - sizeof(site.func));
	site.address = cohabit_lookup(site.func);
	if (site.address)
		site.address = cohabit_ask("ftrace_location", site.address);
	if (!site.address)
		return -ESRCH;
	site.caller = cohabit_lookup("ftrace_caller");
	site.trampoline = cohabit_ask("ftrace_find_rec_direct", site.address);
	ret = copy_from_kernel_nofault(&site.instruction, (void *)(unsigned long)site.address,
				       sizeof(site.instruction));
	site.has_ops = HAS_OPS;
	if (!ret && HAS_OPS)
		ret = read_ops(&site);
	if (!ret)
		ret = read_veneer(&site);
	if (ret)
		return ret;
	return copy_to_user(arg, &site, sizeof(site)) ? -EFAULT : 0;
}

#else

long cohabit_ioctl_site(void __user *arg)
{
	return -EOPNOTSUPP;
}

#endif
