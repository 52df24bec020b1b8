// SPDX-License-Identifier: GPL-2.0-only
/*
 * The time in which an instruction is half patched, made longer (x86-64): with the
 * breakpoint in place, and before the new first byte, the kernel tells perf of each
 * instruction that it patches (arch/x86/kernel/alternative.c), and so us, too. An
 * ops of our own and not a kprobe, which would share one ops with all others.
 */
#include <linux/delay.h>
#include <linux/kernel.h>
#include <linux/mutex.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"

#ifdef CONFIG_X86_64

#define MAX_DELAY_US	1000000
#define MAX_THREADS	64

static DEFINE_MUTEX(window_lock);
static bool window_is_on;

/* As it is while the window is on; the calls of window_hit() never overlap (text_mutex). */
static char window_func[COHABIT_NAME_LEN];
static unsigned long window_address;
static struct cohabit_windowed windowed;
static u64 calls_before[MAX_THREADS];
static u64 calls_after[MAX_THREADS];
static struct ftrace_ops window_ops;

/* Waits, and counts the calls that meanwhile began and ended on other CPUs. */
static void notrace wait_inside(void)
{
	unsigned int i, nr;
	u64 calls, inside = 0;

	preempt_disable_notrace();
	rcu_read_lock();
	nr = cohabit_hammer_calls(window_func, calls_before, MAX_THREADS);
	mdelay(windowed.delay_us / 1000);
	udelay(windowed.delay_us % 1000);
	nr = min(nr, cohabit_hammer_calls(window_func, calls_after, MAX_THREADS));
	rcu_read_unlock();
	preempt_enable_notrace();
	for (i = 0; i < nr; i++) {
		calls = calls_after[i] - calls_before[i];
		/* The first of them had begun before. */
		inside += calls ? calls - 1 : 0;
	}
	windowed.windows++;
	windowed.inside += inside;
	windowed.most = max(windowed.most, inside);
}

/* perf_event_text_poke() is called: its first argument is the instruction's address. */
static void notrace cohabit_window_hit(unsigned long ip, unsigned long parent_ip,
				       struct ftrace_ops *ops,
				       struct cohabit_ftrace_regs *fregs)
{
	unsigned long address = cohabit_argument(fregs, 0);

	windowed.pokes++;
	if (address - window_address >= COHABIT_ENTRY_BYTES)
		return;
	windowed.at_site++;
	if (windowed.delay_us)
		wait_inside();
}

static int window_on(const struct cohabit_window *req)
{
	unsigned long ip;
	int ret;

	if (window_is_on)
		return -EALREADY;
	window_address = cohabit_lookup(req->func);
	ip = cohabit_lookup("perf_event_text_poke");
	if (!window_address || !ip)
		return -ESRCH;
	strscpy(window_func, req->func, sizeof(window_func));
	memset(&windowed, 0, sizeof(windowed));
	windowed.delay_us = req->delay_us;
	memset(&window_ops, 0, sizeof(window_ops));
	window_ops.func = cohabit_window_hit;
	/* For the arguments, where they are not there without. */
	window_ops.flags = COHABIT_OPS_FL_UNGUARDED | COHABIT_OPS_FL_KLP_REGS;
	ret = cohabit_set_filter(&window_ops, &ip, 1);
	if (!ret)
		ret = register_ftrace_function(&window_ops);
	if (ret) {
		cohabit_free_filter(&window_ops);
		return ret;
	}
	window_is_on = true;
	__module_get(THIS_MODULE);
	return 0;
}

static int window_off(void)
{
	int ret;

	if (!window_is_on)
		return -ENOENT;
	ret = unregister_ftrace_function(&window_ops);
	if (ret)
		return ret;
	cohabit_free_filter(&window_ops);
	window_is_on = false;
	module_put(THIS_MODULE);
	return 0;
}

/* COHABIT_IOC_WINDOW */
long cohabit_ioctl_window(const void __user *arg)
{
	struct cohabit_window req;
	long ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (!memchr(req.func, 0, sizeof(req.func)))
		return -ENAMETOOLONG;
	if (req.delay_us > MAX_DELAY_US)
		return -EBADRQC;
	mutex_lock(&window_lock);
	ret = req.on ? window_on(&req) : window_off();
	mutex_unlock(&window_lock);
	return ret;
}

/* COHABIT_IOC_WINDOWED */
long cohabit_ioctl_windowed(void __user *arg)
{
	struct cohabit_windowed now;

	mutex_lock(&window_lock);
	now = windowed;
	mutex_unlock(&window_lock);
	return copy_to_user(arg, &now, sizeof(now)) ? -EFAULT : 0;
}

#else

/* arm64 patches one instruction at a time, in one write, and tells nobody. */
long cohabit_ioctl_window(const void __user *arg)
{
	return -EOPNOTSUPP;
}

long cohabit_ioctl_windowed(void __user *arg)
{
	return -EOPNOTSUPP;
}

#endif
