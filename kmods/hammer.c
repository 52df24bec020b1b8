// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hammers: kernel threads, one on each CPU, that call a function as fast as they
 * can and judge each call: which body ran, with which arguments, and how often.
 *
 * Each thread writes to its own struct thread and to nothing else, and takes no
 * lock and no memory while it calls. What is allowed changes under it: struct
 * hammer has the set and a generation, and each thread tells the generation that
 * its call is judged by before it makes the call.
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
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/stacktrace.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <linux/uaccess.h>

#include "cohabit.h"

/* Functions that are hammered at a time. */
#define HAMMERS		8

/* Calls between two looks at whether to stop, or to let others run. */
#define CALLS_AT_A_TIME	32

/* A deliberate fault happens once in so many calls. */
#define FAULT_EVERY	1000

/* Whoever else wants the CPU gets most of it. */
#define HAMMER_NICE	10

#define ALLOW_PATIENCE	(10 * HZ)

/* A text under test is shorter: see COMMAND_LINE_SIZE. */
#define TEXT_BYTES	4096
#define TEXT_PREFIX	"cohabit: "
#define STACK_ENTRIES	16

typedef u64 (*hot_t)(u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);

struct hammer;

struct thread {
	struct hammer *hammer;
	struct task_struct *task;
	struct file *file;			/* READ: its own */
	struct cohabit_hammered seen;
	u64 ran;				/* CALL: counted by the bodies themselves */
	u64 generation;				/* what the call under way is judged by */
	u64 left;				/* in this generation: tags that others came after */
	u32 last;				/* and the last tag, 0: none yet */
	bool stalled;
	size_t original_len;			/* READ: the first text that is no replacement's */
	char original[TEXT_BYTES];
	char text[TEXT_BYTES];
} ____cacheline_aligned_in_smp;

struct hammer {
	char func[COHABIT_NAME_LEN];
	u32 how;
	u32 fault;
	hot_t hot;				/* CALL: its module is held */
	refcount_t users;
	bool stopped;
	unsigned int nr;

	/* Written by COHABIT_IOC_ALLOW, first the one and then the other. */
	u64 allowed ____cacheline_aligned_in_smp;
	u64 generation;

	struct thread threads[];
};

/* Changed under hammers_lock; window.c reads them under RCU. */
static struct hammer __rcu *hammers[HAMMERS];
static DEFINE_MUTEX(hammers_lock);

/* What a call showed: a tag (0: none), what is wrong with it, or NOTHING_WRONG. */
struct shown {
	u32 tag;
	u32 wrong;
	u64 result;
};

#define NOTHING_WRONG	COHABIT_WRONGS

/* cohabit_funcs.ko; only ever asked for by its name. */
u64 cohabit_hot(u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);

/* Remembers the first wrong call of a thread, and where the thread was. */
static noinline void remember_first(struct thread *thread, const struct shown *shown)
{
	struct cohabit_hammered *seen = &thread->seen;
	unsigned long entries[STACK_ENTRIES];
	unsigned int nr, i;
	size_t len = 0;

	seen->first_ns = ktime_get_ns();
	seen->first_kind = shown->wrong;
	seen->first_call = seen->calls + 1;
	seen->first_result = shown->result;
	seen->first_cpu = raw_smp_processor_id();
	nr = stack_trace_save(entries, ARRAY_SIZE(entries), 1);
	for (i = 0; i < nr; i++)
		len += scnprintf(seen->first_stack + len, sizeof(seen->first_stack) - len,
				 "%pS\n", (void *)entries[i]);
}

/* Is the call under way one in which a deliberate fault happens? */
static __always_inline bool fault_is_due(const struct thread *thread, u32 fault)
{
	return thread->hammer->fault == fault && thread->seen.calls % FAULT_EVERY == FAULT_EVERY - 1;
}

static bool was_wrong_before(const struct cohabit_hammered *seen)
{
	unsigned int i;

	for (i = 0; i < COHABIT_WRONGS; i++)
		if (seen->wrong[i])
			return true;
	return false;
}

/* Has the thread seen @tag in this generation, and then another one? */
static __always_inline bool came_back(struct thread *thread, u32 tag)
{
	bool back;

	if (tag == thread->last)
		return false;
	back = thread->left & BIT_ULL(tag);
	if (thread->last)
		thread->left |= BIT_ULL(thread->last);
	thread->last = tag;
	return back;
}

/* Judges a call by the set of tags that was allowed when it began, and counts it. */
static __always_inline void count(struct thread *thread, struct shown *shown, u64 allowed)
{
	struct cohabit_hammered *seen = &thread->seen;

	if (shown->tag && came_back(thread, shown->tag) && shown->wrong == NOTHING_WRONG &&
	    allowed & BIT_ULL(COHABIT_ALLOW_MONOTONIC))
		shown->wrong = COHABIT_WRONG_BACK;
	if (shown->tag && !(allowed & BIT_ULL(shown->tag)) &&
	    (shown->wrong == NOTHING_WRONG || shown->wrong == COHABIT_WRONG_BACK))
		shown->wrong = COHABIT_WRONG_BODY;
	if (unlikely(shown->wrong != NOTHING_WRONG)) {
		if (!was_wrong_before(seen))
			remember_first(thread, shown);
		WRITE_ONCE(seen->wrong[shown->wrong], seen->wrong[shown->wrong] + 1);
	}
	if (shown->tag && !fault_is_due(thread, COHABIT_FAULT_COUNTER))
		WRITE_ONCE(seen->bodies[shown->tag], seen->bodies[shown->tag] + 1);
	/* Last: a call that is counted is over. */
	smp_store_release(&seen->calls, seen->calls + 1);
}

/* Another body of ours, whose tag is not allowed. NULL: all are. */
static hot_t faulty_body(u64 allowed)
{
	const struct cohabit_function *function = cohabit_find_function("cohabit_hot", NULL);
	unsigned int slot = COHABIT_SLOTS;

	while (slot--)
		if (!(allowed & BIT_ULL(COHABIT_TAG_IPMODIFY + slot)))
			return function->body[slot];
	return NULL;
}

/* One call of cohabit_hot, with other arguments each time. */
static __always_inline void call_it(struct thread *thread, struct shown *shown, u64 allowed)
{
	u64 a1 = (thread->seen.calls + 1) * 0x9e3779b97f4a7c15ULL;
	u64 a2 = a1 ^ a1 >> 29, a3 = ~a1, a4 = a1 << 7 | 3, a5 = a2 + 0x123456789abcdefULL;
	u32 sum = 2 * a1 + 3 * a2 + 4 * a3 + 5 * a4 + 6 * a5;
	hot_t hot = thread->hammer->hot;
	u64 before = READ_ONCE(thread->ran);
	u64 ran;

	if (unlikely(fault_is_due(thread, COHABIT_FAULT_BODY)))
		hot = faulty_body(allowed) ?: hot;
	shown->result = hot((u64)(unsigned long)&thread->ran, a1, a2, a3, a4, a5);
	ran = READ_ONCE(thread->ran) - before;

	shown->tag = shown->result >> 32;
	shown->wrong = NOTHING_WRONG;
	if (unlikely(!ran)) {
		shown->wrong = COHABIT_WRONG_NONE;
		shown->tag = 0;
	} else if (unlikely(!shown->tag || shown->tag >= COHABIT_ALLOW_MONOTONIC)) {
		shown->wrong = COHABIT_WRONG_RESULT;
		shown->tag = 0;
	} else if (unlikely(ran != 1)) {
		shown->wrong = COHABIT_WRONG_SEVERAL;
	} else if (unlikely((u32)shown->result != sum)) {
		shown->wrong = COHABIT_WRONG_ARGS;
	}
}

/* The tag behind the name of a body that writes text, 0: there is none. */
static u32 tag_of_name(const char *name, size_t len)
{
	size_t livepatch = strlen("livepatch-"), ipmodify = strlen("ipmodify-");

	if (len == livepatch + 1 && !memcmp(name, "livepatch-", livepatch) &&
	    name[livepatch] >= 'a' && name[livepatch] < 'a' + COHABIT_LIVEPATCHES)
		return COHABIT_TAG_LIVEPATCH + name[livepatch] - 'a';
	if (len == ipmodify + 1 && !memcmp(name, "ipmodify-", ipmodify) &&
	    name[ipmodify] >= '0' && name[ipmodify] < '0' + COHABIT_SLOTS)
		return COHABIT_TAG_IPMODIFY + name[ipmodify] - '0';
	return 0;
}

/* The tag behind "cohabit: <body>\n" at @text; @rest gets what follows it. */
static u32 tag_of_line(const char *text, size_t len, const char **rest)
{
	size_t prefix = strlen(TEXT_PREFIX);
	const char *end;

	if (len < prefix || memcmp(text, TEXT_PREFIX, prefix))
		return 0;
	end = memchr(text, '\n', len);
	if (!end)
		return 0;
	*rest = end + 1;
	return tag_of_name(text + prefix, end - text - prefix);
}

static bool is_original(const struct thread *thread, const char *text, size_t len)
{
	return len == thread->original_len && !memcmp(text, thread->original, len);
}

/*
 * Which body wrote the @len bytes of thread->text. The original's text is known only
 * by what it is not, so the first of a thread counts, and any other one is wrong.
 */
static void judge_text(struct thread *thread, size_t len, struct shown *shown)
{
	const char *text = thread->text, *rest = text + len;
	size_t left;

	shown->tag = tag_of_line(text, len, &rest);
	if (!shown->tag && memcmp(text, TEXT_PREFIX, min(len, strlen(TEXT_PREFIX)))) {
		if (!thread->original_len && strnstr(text, "\n" TEXT_PREFIX, len)) {
			shown->tag = COHABIT_TAG_ORIGINAL;
			shown->wrong = COHABIT_WRONG_SEVERAL;
			return;
		}
		if (!thread->original_len) {
			memcpy(thread->original, text, len);
			thread->original_len = len;
		}
		if (len >= thread->original_len && is_original(thread, text, thread->original_len)) {
			shown->tag = COHABIT_TAG_ORIGINAL;
			rest = text + thread->original_len;
		}
	}
	left = text + len - rest;
	if (!shown->tag) {
		shown->wrong = COHABIT_WRONG_RESULT;
	} else if (left) {
		if (tag_of_line(rest, left, &rest) || is_original(thread, rest, left)) {
			shown->wrong = COHABIT_WRONG_SEVERAL;
		} else {
			shown->wrong = COHABIT_WRONG_RESULT;
			shown->tag = 0;
		}
	}
}

/* One read of the file, as a program would do it. */
static void read_it(struct thread *thread, struct shown *shown, u64 allowed)
{
	loff_t pos = 0;
	ssize_t len;

	len = kernel_read(thread->file, thread->text, sizeof(thread->text), &pos);
	if (unlikely(fault_is_due(thread, COHABIT_FAULT_BODY)))
		len = scnprintf(thread->text, sizeof(thread->text), TEXT_PREFIX "ipmodify-%u\n",
				allowed & BIT_ULL(COHABIT_TAG_IPMODIFY + 7) ? 6 : 7);
	shown->tag = 0;
	shown->wrong = NOTHING_WRONG;
	if (len > 0)
		judge_text(thread, len, shown);
	else
		shown->wrong = len ? COHABIT_WRONG_RESULT : COHABIT_WRONG_NONE;
	shown->result = (u64)shown->tag << 32 | (u32)len;
}

static __always_inline void one_call(struct thread *thread, u32 how)
{
	/* The set is at least as new as the generation. */
	u64 generation = smp_load_acquire(&thread->hammer->generation);
	u64 allowed = READ_ONCE(thread->hammer->allowed);
	struct shown shown;

	if (generation != thread->generation) {
		thread->left = 0;
		thread->last = 0;
		/* The calls before are over. */
		smp_store_release(&thread->generation, generation);
	}
	if (how == COHABIT_HAMMER_CALL)
		call_it(thread, &shown, allowed);
	else
		read_it(thread, &shown, allowed);
	count(thread, &shown, allowed);
}

/* What a deliberately stalled thread does. */
static void wait_for_stop(void)
{
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (kthread_should_stop())
			break;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
}

static int run(void *data)
{
	struct thread *thread = data;
	u32 how = thread->hammer->how;
	unsigned int i;

	if (thread->stalled)
		wait_for_stop();
	while (!kthread_should_stop()) {
		if (how == COHABIT_HAMMER_CALL)
			for (i = 0; i < CALLS_AT_A_TIME; i++)
				one_call(thread, COHABIT_HAMMER_CALL);
		else
			for (i = 0; i < CALLS_AT_A_TIME; i++)
				one_call(thread, COHABIT_HAMMER_READ);
		/* Nothing is under way here: RCU tasks and livepatches need not wait for us. */
		cond_resched_tasks_rcu_qs();
		cohabit_let_livepatch();
	}
	return 0;
}

static void put_hammer(struct hammer *hammer)
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
static void stop_hammer(struct hammer *hammer)
{
	unsigned int i;

	WRITE_ONCE(hammer->stopped, true);
	for (i = 0; i < hammer->nr; i++)
		if (hammer->threads[i].task)
			kthread_stop(hammer->threads[i].task);
}

static int make_thread(struct thread *thread, unsigned int cpu, const char *path)
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
	task = kthread_create_on_node(run, thread, cpu_to_node(cpu), "cohabit/%u", cpu);
	if (IS_ERR(task))
		return PTR_ERR(task);
	kthread_bind(task, cpu);
	set_user_nice(task, HAMMER_NICE);
	thread->task = task;
	return 0;
}

/* Makes @hammer's threads, none of which runs yet. Nobody takes CPUs away meanwhile. */
static int make_threads(struct hammer *hammer, unsigned int room, const char *path)
{
	unsigned int cpu;
	int ret;

	for_each_online_cpu(cpu) {
		struct thread *thread = &hammer->threads[hammer->nr];

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
static struct hammer *find_hammer(const char *func, unsigned int *place)
{
	struct hammer *hammer;
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
	struct hammer *hammer;
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
static bool all_have_begun(struct hammer *hammer, u64 generation)
{
	unsigned int i;

	for (i = 0; i < hammer->nr; i++)
		if (!hammer->threads[i].stalled &&
		    smp_load_acquire(&hammer->threads[i].generation) < generation)
			return false;
	return true;
}

/* Polled, as the threads are to do nothing but call. Without any lock. */
static int wait_for_all(struct hammer *hammer, u64 generation)
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
	struct hammer *hammer;
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
	struct hammer *all[HAMMERS] = {};
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
	struct hammer *hammer;

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
