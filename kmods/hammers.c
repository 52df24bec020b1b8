// SPDX-License-Identifier: GPL-2.0-only
/*
 * All hammers of a function, one thread on each CPU: started, told what is right, read
 * and stopped. What is right changes while they call: they have a set and a
 * generation, and each thread tells the generation that its call is judged by before
 * it makes the call.
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/mutex.h>
#include <linux/overflow.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"
#include "hammer.h"

/* Functions that are hammered at a time. */
#define HAMMERS		8

/* Whoever else wants the CPU gets most of it. */
#define HAMMER_NICE	10

#define ALLOW_PATIENCE	(10 * HZ)

/* Changed under hammers_lock; window.c reads them under RCU. */
static struct cohabit_hammers __rcu *hammers[HAMMERS];
static DEFINE_MUTEX(hammers_lock);

/* cohabit_funcs.ko; only ever asked for by its name. */
u64 cohabit_hot(u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);

static void put_hammer(struct cohabit_hammers *hammer)
{
	unsigned int i;

	if (!refcount_dec_and_test(&hammer->users))
		return;
	for (i = 0; i < hammer->nr; i++)
		if (hammer->threads[i].file)
			filp_close(hammer->threads[i].file, NULL);
	if (hammer->hot)
		symbol_put_addr((void *)hammer->hot);
	kvfree(hammer);
}

/* Under hammers_lock. The counters stay until put_hammer(). */
static void stop_hammer(struct cohabit_hammers *hammer)
{
	unsigned int i;

	WRITE_ONCE(hammer->stopped, true);
	for (i = 0; i < hammer->nr; i++) {
		if (!hammer->threads[i].task)
			continue;
		kthread_stop(hammer->threads[i].task);
		put_task_struct(hammer->threads[i].task);
	}
}

static int make_thread(struct cohabit_hammer_thread *thread, unsigned int cpu, const char *path)
{
	struct task_struct *task;
	struct file *file;

	strscpy(thread->seen.func, thread->hammer->func, sizeof(thread->seen.func));
	thread->seen.cpu = cpu;
	if (thread->hammer->how == COHABIT_HAMMER_READ) {
		file = filp_open(path, O_RDONLY, 0);
		if (IS_ERR(file))
			return PTR_ERR(file);
		thread->file = file;
	}
	task = kthread_create_on_node(cohabit_hammer_run, thread, cpu_to_node(cpu), "cohabit/%u", cpu);
	if (IS_ERR(task))
		return PTR_ERR(task);
	kthread_bind(task, cpu);
	set_user_nice(task, HAMMER_NICE);
	/* It may die of what it calls. */
	get_task_struct(task);
	thread->task = task;
	return 0;
}

/* Makes @hammer's threads, none of which runs yet. Nobody takes CPUs away meanwhile. */
static int make_threads(struct cohabit_hammers *hammer, unsigned int room, const char *path)
{
	unsigned int cpu;
	int ret;

	for_each_online_cpu(cpu) {
		struct cohabit_hammer_thread *thread = &hammer->threads[hammer->nr];

		if (hammer->nr == room)
			break;
		thread->hammer = hammer;
		hammer->nr++;
		ret = make_thread(thread, cpu, path);
		if (ret)
			return ret;
	}
	if (hammer->fault == COHABIT_FAULT_STALL)
		hammer->threads[hammer->nr - 1].stalled = true;
	return 0;
}

/* The hammer of a function, and its place, NULL: there is none. Under hammers_lock. */
static struct cohabit_hammers *find_hammer(const char *func, unsigned int *place)
{
	struct cohabit_hammers *hammer;
	unsigned int i;

	for (i = 0; i < HAMMERS; i++) {
		hammer = rcu_dereference_protected(hammers[i], lockdep_is_held(&hammers_lock));
		if (func ? hammer && !strcmp(hammer->func, func) : !hammer)
			break;
	}
	*place = i;
	return i < HAMMERS ? hammer : NULL;
}

static int start_hammer(const struct cohabit_hammer *req)
{
	unsigned int place, room = num_online_cpus(), i;
	struct cohabit_hammers *hammer;
	int ret;

	if (find_hammer(req->func, &place))
		return -EALREADY;
	find_hammer(NULL, &place);
	if (place == HAMMERS)
		return -ENOSPC;
	hammer = kvzalloc(struct_size(hammer, threads, room), GFP_KERNEL);
	if (!hammer)
		return -ENOMEM;
	strscpy(hammer->func, req->func, sizeof(hammer->func));
	hammer->how = req->how;
	hammer->fault = req->fault;
	hammer->allowed = req->allowed;
	hammer->generation = 1;
	refcount_set(&hammer->users, 1);
	ret = 0;
	if (req->how == COHABIT_HAMMER_CALL) {
		hammer->hot = symbol_get(cohabit_hot);
		if (!hammer->hot)
			ret = -ESRCH;
	}
	if (!ret)
		ret = make_threads(hammer, room, req->path);
	if (ret) {
		stop_hammer(hammer);
		put_hammer(hammer);
		return ret;
	}
	__module_get(THIS_MODULE);
	rcu_assign_pointer(hammers[place], hammer);
	for (i = 0; i < hammer->nr; i++)
		wake_up_process(hammer->threads[i].task);
	return 0;
}

/* COHABIT_IOC_HAMMER */
long cohabit_ioctl_hammer(const void __user *arg)
{
	struct cohabit_hammer req;
	long ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (!memchr(req.func, 0, sizeof(req.func)) || !memchr(req.path, 0, sizeof(req.path)))
		return -ENAMETOOLONG;
	if (req.how > COHABIT_HAMMER_READ || req.fault > COHABIT_FAULT_STALL)
		return -EBADRQC;
	if (req.how == COHABIT_HAMMER_CALL && strcmp(req.func, "cohabit_hot"))
		return -ENXIO;
	mutex_lock(&hammers_lock);
	ret = start_hammer(&req);
	mutex_unlock(&hammers_lock);
	return ret;
}

/* Has each thread begun a call of this generation? */
static bool all_have_begun(struct cohabit_hammers *hammer, u64 generation)
{
	unsigned int i;

	for (i = 0; i < hammer->nr; i++)
		if (!hammer->threads[i].stalled &&
		    smp_load_acquire(&hammer->threads[i].generation) < generation)
			return false;
	return true;
}

/* Polled, as the threads are to do nothing but call. Without any lock. */
static int wait_for_all(struct cohabit_hammers *hammer, u64 generation)
{
	unsigned long deadline = jiffies + ALLOW_PATIENCE;

	while (!all_have_begun(hammer, generation)) {
		if (READ_ONCE(hammer->stopped))
			return -ESRCH;
		if (fatal_signal_pending(current))
			return -EINTR;
		if (time_after(jiffies, deadline))
			return -ETIMEDOUT;
		usleep_range(50, 200);
	}
	return 0;
}

/* COHABIT_IOC_ALLOW */
long cohabit_ioctl_allow(const void __user *arg)
{
	struct cohabit_allow req;
	struct cohabit_hammers *hammer;
	unsigned int place;
	u64 generation = 0;
	long ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	if (!memchr(req.func, 0, sizeof(req.func)))
		return -ENAMETOOLONG;
	mutex_lock(&hammers_lock);
	hammer = find_hammer(req.func, &place);
	if (hammer) {
		refcount_inc(&hammer->users);
		generation = hammer->generation + 1;
		WRITE_ONCE(hammer->allowed, req.allowed);
		smp_store_release(&hammer->generation, generation);
	}
	mutex_unlock(&hammers_lock);
	if (!hammer)
		return -ESRCH;
	ret = wait_for_all(hammer, generation);
	put_hammer(hammer);
	return ret;
}

static long read_hammers(struct cohabit_hammereds *req, void __user *arg)
{
	struct cohabit_hammered __user *to = u64_to_user_ptr(req->stats);
	struct cohabit_hammers *all[HAMMERS] = {};
	u32 room = req->nr;
	unsigned int i, j;
	long ret = 0;

	req->nr = 0;
	for (i = 0; i < HAMMERS; i++) {
		all[i] = rcu_dereference_protected(hammers[i], lockdep_is_held(&hammers_lock));
		req->nr += all[i] ? all[i]->nr : 0;
	}
	if (copy_to_user(arg, req, sizeof(*req)))
		return -EFAULT;
	if (req->nr > room)
		return -E2BIG;
	for (i = 0; i < HAMMERS && req->stop; i++)
		if (all[i])
			stop_hammer(all[i]);
	for (i = 0; i < HAMMERS; i++)
		for (j = 0; all[i] && j < all[i]->nr; j++)
			if (copy_to_user(to++, &all[i]->threads[j].seen, sizeof(*to)))
				ret = -EFAULT;
	if (!req->stop)
		return ret;
	for (i = 0; i < HAMMERS; i++)
		RCU_INIT_POINTER(hammers[i], NULL);
	synchronize_rcu();
	for (i = 0; i < HAMMERS; i++) {
		if (!all[i])
			continue;
		put_hammer(all[i]);
		module_put(THIS_MODULE);
	}
	return ret;
}

/* COHABIT_IOC_HAMMERED */
long cohabit_ioctl_hammered(void __user *arg)
{
	struct cohabit_hammereds req;
	long ret;

	if (copy_from_user(&req, arg, sizeof(req)))
		return -EFAULT;
	mutex_lock(&hammers_lock);
	ret = read_hammers(&req, arg);
	mutex_unlock(&hammers_lock);
	return ret;
}

/*
 * Gives how many calls each thread on another CPU than this one has made of @func, in
 * an order that stays; returns the number of threads, at most @room. Where RCU reads
 * and the CPU can't be changed.
 */
unsigned int cohabit_hammer_calls(const char *func, u64 *calls, unsigned int room)
{
	unsigned int i, j, nr = 0;
	struct cohabit_hammers *hammer;

	for (i = 0; i < HAMMERS; i++) {
		hammer = rcu_dereference(hammers[i]);
		if (!hammer || strcmp(hammer->func, func))
			continue;
		for (j = 0; j < hammer->nr && nr < room; j++)
			if (hammer->threads[j].seen.cpu != smp_processor_id())
				calls[nr++] = smp_load_acquire(&hammer->threads[j].seen.calls);
	}
	return nr;
}
