// SPDX-License-Identifier: GPL-2.0-only
/* /dev/cohabit_funcs: calls test functions by pointer in the caller's context. */
#include <linux/bottom_half.h>
#include <linux/err.h>
#include <linux/fs.h>
#include <linux/interrupt.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit_abi.h"
#include "functions.h"

struct softirq_call {
	struct tasklet_struct tasklet;
	const struct cohabit_test_function *function;
	struct cohabit_call *call;
};

static void do_call(const struct cohabit_test_function *function, struct cohabit_call *call)
{
	call->ret = function->call(function->address, call->args);
}

static void run_in_softirq(struct tasklet_struct *tasklet)
{
	struct softirq_call *softirq = container_of(tasklet, struct softirq_call, tasklet);

	do_call(softirq->function, softirq->call);
}

/*
 * A tasklet that is scheduled while softirqs are off runs when they go on
 * again: on this CPU, on top of this task.
 */
static void call_in_softirq(const struct cohabit_test_function *function,
			    struct cohabit_call *call)
{
	struct softirq_call softirq = { .function = function, .call = call };

	tasklet_setup(&softirq.tasklet, run_in_softirq);
	local_bh_disable();
	tasklet_schedule(&softirq.tasklet);
	local_bh_enable();
	/* Waits for it. */
	tasklet_kill(&softirq.tasklet);
}

/* Softirqs can't wait; and cohabit_hot writes to where its first argument points. */
static bool may_run_there(const struct cohabit_test_function *function,
			  const struct cohabit_call *call)
{
	if (function->behaviour == COHABIT_hot && call->args[0])
		return false;
	switch (call->context) {
	case COHABIT_CONTEXT_PROCESS:
		return true;
	case COHABIT_CONTEXT_SOFTIRQ:
		return function->behaviour == COHABIT_test ||
		       function->behaviour == COHABIT_hot ||
		       (function->behaviour == COHABIT_hold && !call->args[0]);
	}
	return false;
}

static int do_calls(struct cohabit_call *calls, u32 nr)
{
	const struct cohabit_test_function **functions;
	u32 i;
	int ret = 0;

	functions = kvcalloc(nr, sizeof(*functions), GFP_KERNEL);
	if (!functions)
		return -ENOMEM;
	for (i = 0; i < nr && !ret; i++) {
		if (!memchr(calls[i].func, 0, sizeof(calls[i].func))) {
			ret = -ENAMETOOLONG;
			break;
		}
		functions[i] = cohabit_find_test_function(calls[i].func);
		if (!functions[i])
			ret = -ESRCH;
		else if (!may_run_there(functions[i], &calls[i]))
			ret = -EINVAL;
	}
	for (i = 0; i < nr && !ret; i++) {
		if (calls[i].context == COHABIT_CONTEXT_SOFTIRQ)
			call_in_softirq(functions[i], &calls[i]);
		else
			do_call(functions[i], &calls[i]);
	}
	kvfree(functions);
	return ret;
}

static long ioctl_calls(const void __user *arg)
{
	struct cohabit_call *calls;
	struct cohabit_calls req;
	void __user *user;
	size_t size;
	int ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (!req.nr || req.nr > COHABIT_MAX_CALLS)
		return -EINVAL;
	user = u64_to_user_ptr(req.calls);
	size = req.nr * sizeof(*calls);
	calls = vmemdup_user(user, size);
	if (IS_ERR(calls))
		return PTR_ERR(calls);
	ret = do_calls(calls, req.nr);
	if (!ret && copy_to_user(user, calls, size))
		ret = -EFAULT;
	kvfree(calls);
	return ret;
}

static long cohabit_funcs_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	void __user *p = (void __user *)arg;

	switch (cmd) {
	case COHABIT_IOC_CALLS:
		return ioctl_calls(p);
	case COHABIT_IOC_RELEASE:
		cohabit_release();
		return 0;
	case COHABIT_IOC_HELD:
		return put_user(cohabit_held(), (u32 __user *)p);
	}
	return -ENOTTY;
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
