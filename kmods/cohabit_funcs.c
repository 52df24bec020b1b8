// SPDX-License-Identifier: GPL-2.0-only
/*
 * Functions to be traced and patched, and /dev/cohabit_funcs, which calls them
 * by pointer in the caller's context.
 */
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "bodies.h"

#define TEST_FUNCTION(name, nr, object, kind)				\
	cohabit_opaque u64 name(COHABIT_ARGS_##name);			\
	cohabit_opaque u64 name(COHABIT_ARGS_##name)			\
	COHABIT_BODY_##kind(nr, "original", COHABIT_TAG_ORIGINAL)

COHABIT_TEST_FUNCTIONS(TEST_FUNCTION)

#define PASS_0
#define PASS_1	a[0]
#define PASS_3	a[0], a[1], a[2]
#define PASS_6	a[0], a[1], a[2], a[3], a[4], a[5]
#define PASS_8	a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]

#define CALLER(name, nr, object, kind)					\
static u64 call_##name(const u64 *a)					\
{									\
	u64 (*volatile function)(COHABIT_ARGS_##name) = name;		\
									\
	return function(PASS_##nr);					\
}

COHABIT_TEST_FUNCTIONS(CALLER)

#define CALLER_ENTRY(name, nr, object, kind)	{ #name, call_##name },

static const struct {
	const char *name;
	u64 (*call)(const u64 *args);
} callers[] = {
	COHABIT_TEST_FUNCTIONS(CALLER_ENTRY)
};

static long cohabit_funcs_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *p = (void __user *)arg;
	struct cohabit_call call;
	unsigned int i;

	if (cmd != COHABIT_IOC_CALL)
		return -ENOTTY;
	if (copy_from_user(&call, p, sizeof(call)))
		return -EFAULT;
	for (i = 0; i < ARRAY_SIZE(callers); i++) {
		if (strncmp(callers[i].name, call.func, sizeof(call.func)))
			continue;
		call.ret = callers[i].call(call.args);
		return copy_to_user(p, &call, sizeof(call)) ? -EFAULT : 0;
	}
	return -ESRCH;
}

static const struct file_operations cohabit_funcs_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = cohabit_funcs_ioctl,
};

static struct miscdevice cohabit_funcs_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "cohabit_funcs",
	.fops = &cohabit_funcs_fops,
	.mode = 0600,
};

module_misc_device(cohabit_funcs_device);
MODULE_DESCRIPTION("Functions to be traced and patched");
MODULE_LICENSE("GPL");
