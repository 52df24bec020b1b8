// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/cohabit: attach and detach ftrace users of each kind on a named function
 * and read what they saw. README.md has the errnos.
 */
#include <linux/fs.h>
#include <linux/minmax.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"

static DEFINE_MUTEX(cohabit_lock);

pid_t cohabit_caller = -1;

static const struct cohabit_kind_ops *const kinds[] = {
	[COHABIT_OPS] = &cohabit_plain_kind,
	[COHABIT_IPMODIFY] = &cohabit_ipmodify_kind,
	[COHABIT_DIRECT] = &cohabit_direct_kind,
};

static bool valid_slot(u32 kind, u32 slot)
{
	return kind < ARRAY_SIZE(kinds) && slot < COHABIT_SLOTS;
}

static void reset_counter(struct cohabit_counter *counter)
{
	atomic64_set(&counter->hits, 0);
	atomic64_set(&counter->others, 0);
	atomic64_set(&counter->share_self, 0);
	atomic64_set(&counter->share_peer, 0);
	atomic64_set(&counter->unshare_peer, 0);
	counter->nr_args = 0;
	memset(counter->args, 0, sizeof(counter->args));
}

/* An attached slot holds the module: what the kernel may call must stay. */
static int do_attach(const struct cohabit_attach *req)
{
	const struct cohabit_kind_ops *kind = kinds[req->kind];
	struct cohabit_slot *slot = &kind->slots[req->slot];
	const struct cohabit_function *func;
	int ret;

	if (req->flags & ~kind->flags || req->pad)
		return -EBADRQC;
	if (slot->attached)
		return -EALREADY;
	slot->ip = cohabit_lookup(req->func);
	if (!slot->ip)
		return -ESRCH;
	func = cohabit_find_function(req->func);
	slot->nr_args = func ? min_t(unsigned int, func->nr_args, COHABIT_REG_ARGS) :
			       COHABIT_REG_ARGS;
	reset_counter(&slot->counter);
	ret = kind->attach(req->slot, func, req->flags);
	if (ret)
		return ret;
	slot->attached = true;
	__module_get(THIS_MODULE);
	return 0;
}

static int do_detach(const struct cohabit_attach *req)
{
	const struct cohabit_kind_ops *kind = kinds[req->kind];
	struct cohabit_slot *slot = &kind->slots[req->slot];
	int ret;

	if (!slot->attached)
		return -ENOENT;
	ret = kind->detach(req->slot);
	if (ret)
		return ret;
	slot->attached = false;
	module_put(THIS_MODULE);
	return 0;
}

static long ioctl_attach(void __user *arg, int (*act)(const struct cohabit_attach *req))
{
	struct cohabit_attach req;
	int ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (!valid_slot(req.kind, req.slot))
		return -EBADSLT;
	if (!memchr(req.func, 0, sizeof(req.func)))
		return -ENAMETOOLONG;
	mutex_lock(&cohabit_lock);
	ret = act(&req);
	mutex_unlock(&cohabit_lock);
	return ret;
}

static long ioctl_stat(void __user *arg)
{
	struct cohabit_counter *counter;
	struct cohabit_stat stat;

	if (copy_from_user(&stat, arg, sizeof(stat)))
		return -EFAULT;
	if (!valid_slot(stat.kind, stat.slot))
		return -EBADSLT;
	counter = &kinds[stat.kind]->slots[stat.slot].counter;

	mutex_lock(&cohabit_lock);
	stat.nr_args = counter->nr_args;
	stat.hits = atomic64_read(&counter->hits);
	stat.others = atomic64_read(&counter->others);
	memset(stat.args, 0, sizeof(stat.args));
	memcpy(stat.args, counter->args, sizeof(counter->args));
	stat.share_self = atomic64_read(&counter->share_self);
	stat.share_peer = atomic64_read(&counter->share_peer);
	stat.unshare_peer = atomic64_read(&counter->unshare_peer);
	if (stat.reset)
		reset_counter(counter);
	mutex_unlock(&cohabit_lock);

	return copy_to_user(arg, &stat, sizeof(stat)) ? -EFAULT : 0;
}

static long ioctl_info(void __user *arg)
{
	const struct cohabit_info info = {
		.abi = COHABIT_ABI_VERSION,
		.has_direct = COHABIT_HAS_DIRECT,
		.has_ops_func = COHABIT_HAS_OPS_FUNC,
		.klp_save_regs = COHABIT_KLP_SAVE_REGS,
	};

	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long cohabit_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *p = (void __user *)arg;

	switch (cmd) {
	case COHABIT_IOC_INFO:
		return ioctl_info(p);
	case COHABIT_IOC_CALLER:
		WRITE_ONCE(cohabit_caller, current->tgid);
		return 0;
	case COHABIT_IOC_ATTACH:
		return ioctl_attach(p, do_attach);
	case COHABIT_IOC_DETACH:
		return ioctl_attach(p, do_detach);
	case COHABIT_IOC_STAT:
		return ioctl_stat(p);
	}
	return -ENOTTY;
}

static const struct file_operations cohabit_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = cohabit_ioctl,
};

static struct miscdevice cohabit_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "cohabit",
	.fops = &cohabit_fops,
	.mode = 0600,
};

static int __init cohabit_init(void)
{
	int ret = cohabit_lookup_init();

	if (ret)
		return ret;
	return misc_register(&cohabit_device);
}

/* No slot is attached here, but a task may still be on its way out of our code. */
static void __exit cohabit_exit(void)
{
	misc_deregister(&cohabit_device);
	cohabit_wait_for_bodies();
	synchronize_rcu_tasks();
}

module_init(cohabit_init);
module_exit(cohabit_exit);
MODULE_DESCRIPTION("Registers ftrace users on a named function");
MODULE_LICENSE("GPL");
