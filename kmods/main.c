// SPDX-License-Identifier: GPL-2.0-only
/*
 * /dev/cohabit: attach and detach ftrace users of each kind on named functions
 * and read what they saw. README.md has the errnos.
 */
#include <linux/fs.h>
#include <linux/minmax.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"

DEFINE_MUTEX(cohabit_lock);

pid_t cohabit_caller = -1;

const struct cohabit_kind_ops *const cohabit_kinds[COHABIT_KINDS] = {
	[COHABIT_KIND_OPS] = &cohabit_plain_kind,
	[COHABIT_KIND_IPMODIFY] = &cohabit_ipmodify_kind,
	[COHABIT_KIND_DIRECT] = &cohabit_direct_kind,
	[COHABIT_KIND_KPROBE] = &cohabit_kprobe_kind,
	[COHABIT_KIND_KRETPROBE] = &cohabit_kretprobe_kind,
	[COHABIT_KIND_FPROBE] = &cohabit_fprobe_kind,
};

/* Makes the functions in @names the targets of @slot. */
static int set_targets(struct cohabit_slot *slot, const char (*names)[COHABIT_NAME_LEN], u32 nr)
{
	struct cohabit_target *target;
	unsigned int i, j;

	if (!slot->targets)
		slot->targets = kvcalloc(COHABIT_MAX_FUNCS, sizeof(*slot->targets), GFP_KERNEL);
	if (!slot->targets)
		return -ENOMEM;
	for (i = 0; i < nr; i++) {
		if (!memchr(names[i], 0, COHABIT_NAME_LEN))
			return -ENAMETOOLONG;
		slot->ips[i] = cohabit_lookup(names[i]);
		if (!slot->ips[i])
			return -ESRCH;
		for (j = 0; j < i; j++)
			if (slot->ips[j] == slot->ips[i])
				return -ENOTUNIQ;
		target = &slot->targets[i];
		memset(&target->seen, 0, sizeof(target->seen));
		target->function = cohabit_find_function(names[i], &target->lane);
		target->nr_args = COHABIT_REG_ARGS;
		if (target->function)
			target->nr_args = min_t(unsigned int, target->function->nr_args,
						COHABIT_REG_ARGS);
	}
	slot->nr = nr;
	return 0;
}

/* An attached slot holds the module: what the kernel may call must stay. */
static int attach(const struct cohabit_attach *req, const char (*names)[COHABIT_NAME_LEN])
{
	const struct cohabit_kind_ops *kind = cohabit_kinds[req->kind];
	struct cohabit_slot *slot = &kind->slots[req->slot];
	int ret;

	mutex_lock(&slot->lock);
	ret = slot->attached ? -EALREADY : set_targets(slot, names, req->nr);
	if (!ret)
		ret = kind->attach(slot, req->flags);
	if (!ret) {
		slot->attached = true;
		__module_get(THIS_MODULE);
	}
	mutex_unlock(&slot->lock);
	return ret;
}

static int detach(const struct cohabit_attach *req)
{
	const struct cohabit_kind_ops *kind = cohabit_kinds[req->kind];
	struct cohabit_slot *slot = &kind->slots[req->slot];
	int ret;

	mutex_lock(&slot->lock);
	ret = slot->attached ? kind->detach(slot) : -ENOENT;
	if (!ret) {
		slot->attached = false;
		module_put(THIS_MODULE);
	}
	mutex_unlock(&slot->lock);
	return ret;
}

static int get_request(struct cohabit_attach *req, const void __user *arg)
{
	if (copy_from_user(req, arg, sizeof(*req)))
		return -EFAULT;
	if (req->kind >= COHABIT_KINDS || req->slot >= COHABIT_SLOTS)
		return -EBADSLT;
	return 0;
}

static long ioctl_attach(void __user *arg)
{
	struct cohabit_attach req;
	char (*names)[COHABIT_NAME_LEN];
	int ret = get_request(&req, arg);

	if (ret)
		return ret;
	if (req.flags & ~cohabit_kinds[req.kind]->flags || !req.nr || req.nr > COHABIT_MAX_FUNCS)
		return -EBADRQC;
	names = memdup_user(u64_to_user_ptr(req.names), req.nr * sizeof(*names));
	if (IS_ERR(names))
		return PTR_ERR(names);
	ret = attach(&req, names);
	kfree(names);
	return ret;
}

static long ioctl_detach(void __user *arg)
{
	struct cohabit_attach req;
	int ret = get_request(&req, arg);

	return ret ?: detach(&req);
}

static long ioctl_modify(void __user *arg)
{
	struct cohabit_modify req;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (req.slot >= COHABIT_SLOTS)
		return -EBADSLT;
	if (req.alternate >= COHABIT_ALTERNATES)
		return -EBADRQC;
	return cohabit_direct_modify(req.slot, req.alternate);
}

static long ioctl_address(void __user *arg)
{
	struct cohabit_address address;

	if (copy_from_user(&address, arg, sizeof(address)))
		return -EFAULT;
	if (!memchr(address.func, 0, sizeof(address.func)))
		return -ENAMETOOLONG;
	address.address = cohabit_lookup(address.func);
	if (!address.address)
		return -ESRCH;
	return copy_to_user(arg, &address, sizeof(address)) ? -EFAULT : 0;
}

static long ioctl_info(void __user *arg)
{
	const struct cohabit_info info = {
		.abi = COHABIT_ABI_VERSION,
		.has_direct = COHABIT_HAS_DIRECT,
		.has_ops_func = COHABIT_HAS_OPS_FUNC,
		.klp_save_regs = COHABIT_KLP_SAVE_REGS,
		.has_fprobe = COHABIT_HAS_FPROBE,
		.has_modify = COHABIT_HAS_DIRECT,
		.kprobes_on_ftrace = IS_ENABLED(CONFIG_KPROBES_ON_FTRACE),
	};

	return copy_to_user(arg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long locked_ioctl(unsigned int cmd, void __user *arg)
{
	switch (cmd) {
	case COHABIT_IOC_SITE:
		return cohabit_ioctl_site(arg);
	case COHABIT_IOC_KEEP_CLEAR:
		return cohabit_keep_clear();
	case COHABIT_IOC_RESTORE:
		cohabit_restore();
		return 0;
	case COHABIT_IOC_MISUSE:
		return cohabit_ioctl_misuse(arg);
	}
	return -ENOTTY;
}

static long cohabit_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *p = (void __user *)arg;
	long ret;

	switch (cmd) {
	case COHABIT_IOC_INFO:
		return ioctl_info(p);
	case COHABIT_IOC_CALLER:
		WRITE_ONCE(cohabit_caller, current->tgid);
		return 0;
	case COHABIT_IOC_ATTACH:
		return ioctl_attach(p);
	case COHABIT_IOC_DETACH:
		return ioctl_detach(p);
	case COHABIT_IOC_STATS:
		return cohabit_ioctl_stats(p);
	case COHABIT_IOC_MODIFY:
		return ioctl_modify(p);
	case COHABIT_IOC_ADDRESS:
		return ioctl_address(p);
	case COHABIT_IOC_HAMMER:
		return cohabit_ioctl_hammer(p);
	case COHABIT_IOC_ALLOW:
		return cohabit_ioctl_allow(p);
	case COHABIT_IOC_HAMMERED:
		return cohabit_ioctl_hammered(p);
	case COHABIT_IOC_WINDOW:
		return cohabit_ioctl_window(p);
	case COHABIT_IOC_WINDOWED:
		return cohabit_ioctl_windowed(p);
	case COHABIT_IOC_TEXT:
		return cohabit_ioctl_text(p);
	}
	mutex_lock(&cohabit_lock);
	ret = locked_ioctl(cmd, p);
	mutex_unlock(&cohabit_lock);
	return ret;
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
	unsigned int kind, slot;

	if (ret)
		return ret;
	for (kind = 0; kind < COHABIT_KINDS; kind++)
		for (slot = 0; slot < COHABIT_SLOTS; slot++)
			mutex_init(&cohabit_kinds[kind]->slots[slot].lock);
	return misc_register(&cohabit_device);
}

/*
 * No slot is attached here, nothing is hammered and no window is on, as each of
 * these holds the module, but a task may still be on its way out of our code,
 * a trampoline for instance, and count.
 */
static void __exit cohabit_exit(void)
{
	unsigned int kind, slot;

	misc_deregister(&cohabit_device);
	cohabit_restore();
	cohabit_wait_for_bodies();
	synchronize_rcu_tasks();
	for (kind = 0; kind < COHABIT_KINDS; kind++)
		for (slot = 0; slot < COHABIT_SLOTS; slot++)
			kvfree(cohabit_kinds[kind]->slots[slot].targets);
}

module_init(cohabit_init);
module_exit(cohabit_exit);
MODULE_DESCRIPTION("Registers ftrace users on named functions");
MODULE_LICENSE("GPL");
