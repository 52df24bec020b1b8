// SPDX-License-Identifier: GPL-2.0-only
/*
 * Calls that no user of ftrace should make. Each is undone here as far as the
 * kernel let it pass, so that nothing is left but what the kernel keeps.
 */
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"

static struct ftrace_ops misused;

static void notrace cohabit_misused_hit(unsigned long ip, unsigned long parent_ip,
					struct ftrace_ops *ops,
					struct cohabit_ftrace_regs *fregs)
{
}

static void renew(unsigned long flags)
{
	memset(&misused, 0, sizeof(misused));
	misused.flags = flags;
}

#if COHABIT_HAS_DIRECT_OPS

/* Any trampoline does, as none of these is called. */
void cohabit_direct_tramp_0(void);

static int misuse_direct(u32 what, unsigned long *ip)
{
	unsigned long tramp = (unsigned long)cohabit_direct_tramp_0;
	int ret;

	switch (what) {
	case COHABIT_MISUSE_DIRECT_UNREGISTER_UNKNOWN:
	case COHABIT_MISUSE_DIRECT_MODIFY_UNKNOWN:
		renew(0);
		/* Up to 6.3 the filter is looked into before anything is checked. */
		ret = cohabit_set_filter(&misused, ip, 1);
		if (ret)
			return ret;
		if (what == COHABIT_MISUSE_DIRECT_MODIFY_UNKNOWN)
			ret = cohabit_direct_exchange(&misused, ip, 1, tramp, tramp);
		else
			ret = cohabit_direct_unregister(&misused, ip, 1, tramp);
		cohabit_free_filter(&misused);
		return ret;
	case COHABIT_MISUSE_DIRECT_NO_FILTER:
		renew(0);
		return cohabit_direct_only_register(&misused, tramp);
	case COHABIT_MISUSE_DIRECT_REGISTER_TWICE:
		renew(0);
		ret = cohabit_direct_register(&misused, ip, 1, tramp);
		if (ret)
			return ret;
		ret = cohabit_direct_only_register(&misused, tramp);
		cohabit_direct_unregister(&misused, ip, 1, tramp);
		return ret;
	}
	return -EBADRQC;
}

#else

static int misuse_direct(u32 what, unsigned long *ip)
{
	return -EOPNOTSUPP;
}

#endif

static int ipmodify_no_filter(void)
{
	int ret;

	renew(FTRACE_OPS_FL_DYNAMIC | FTRACE_OPS_FL_IPMODIFY | COHABIT_OPS_FL_KLP_REGS);
	misused.func = cohabit_misused_hit;
	/* Makes it an ops with an empty filter, not one without any. */
	ftrace_set_filter(&misused, NULL, 0, 1);
	ret = register_ftrace_function(&misused);
	if (!ret)
		unregister_ftrace_function(&misused);
	return ret;
}

static int ipmodify_notrace(unsigned long *ip, char *name)
{
	int ret;

	renew(FTRACE_OPS_FL_DYNAMIC | FTRACE_OPS_FL_IPMODIFY | COHABIT_OPS_FL_KLP_REGS);
	misused.func = cohabit_misused_hit;
	ret = cohabit_set_filter(&misused, ip, 1);
	if (ret)
		return ret;
	ret = ftrace_set_notrace(&misused, name, strlen(name), 0);
	cohabit_free_filter(&misused);
	return ret;
}

/*
 * Not by way of register_ftrace_direct(): up to 6.12 that takes the flag away,
 * and from 7.0 on unregister_ftrace_direct() waits for itself then, as
 * cleanup_direct_functions_after_ipmodify() wants its mutex.
 */
static int ipmodify_and_direct(unsigned long *ip)
{
	int ret;

	renew(FTRACE_OPS_FL_IPMODIFY | FTRACE_OPS_FL_DIRECT | COHABIT_OPS_FL_DIRECT_REGS);
	misused.func = cohabit_misused_hit;
	ret = cohabit_set_filter(&misused, ip, 1);
	if (ret)
		return ret;
	ret = register_ftrace_function(&misused);
	if (!ret)
		unregister_ftrace_function(&misused);
	cohabit_free_filter(&misused);
	return ret;
}

static int ops_register_twice(unsigned long *ip)
{
	int ret;

	renew(COHABIT_OPS_FL_UNGUARDED);
	misused.func = cohabit_misused_hit;
	ret = cohabit_set_filter(&misused, ip, 1);
	if (ret)
		return ret;
	ret = register_ftrace_function(&misused);
	if (!ret) {
		ret = register_ftrace_function(&misused);
		unregister_ftrace_function(&misused);
	}
	cohabit_free_filter(&misused);
	return ret;
}

/* Not exported: what the kernel does itself when its records don't add up. */
static int __nocfi kill_ftrace(void)
{
	void (*ftrace_kill_all)(void) = (void *)cohabit_lookup("ftrace_kill");
	struct cohabit_ibt ibt;

	if (!ftrace_kill_all)
		return -ESRCH;
	cohabit_ibt_off(&ibt);
	ftrace_kill_all();
	cohabit_ibt_restore(&ibt);
	return 0;
}

/* COHABIT_IOC_MISUSE; under cohabit_lock. The errno that the misuse gave. */
long cohabit_ioctl_misuse(void __user *arg)
{
	struct cohabit_misuse req;
	unsigned long ip;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (req.pad)
		return -EBADRQC;
	if (!memchr(req.func, 0, sizeof(req.func)))
		return -ENAMETOOLONG;
	ip = cohabit_lookup(req.func);
	if (!ip)
		return -ESRCH;
	switch (req.what) {
	case COHABIT_MISUSE_IPMODIFY_NO_FILTER:
		return ipmodify_no_filter();
	case COHABIT_MISUSE_IPMODIFY_NOTRACE:
		return ipmodify_notrace(&ip, req.func);
	case COHABIT_MISUSE_OPS_REGISTER_TWICE:
		return ops_register_twice(&ip);
	case COHABIT_MISUSE_IPMODIFY_AND_DIRECT:
		return ipmodify_and_direct(&ip);
	case COHABIT_MISUSE_KILL_FTRACE:
		return kill_ftrace();
	default:
		return misuse_direct(req.what, &ip);
	}
}
