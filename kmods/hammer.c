// SPDX-License-Identifier: GPL-2.0-only
/*
 * One hammer: a kernel thread that calls a function as fast as it can and judges
 * each call: which body ran, with which arguments, and how often. It writes to its
 * own struct and to nothing else, and takes no lock and no memory while it calls.
 */
#include <linux/bits.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/minmax.h>
#include <linux/processor.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/stacktrace.h>
#include <linux/string.h>
#include <linux/timekeeping.h>

#include "cohabit.h"
#include "hammer.h"

/* Calls between two looks at whether to stop, or to let others run. */
#define CALLS_AT_A_TIME	32

/* A deliberate fault happens once in so many calls. */
#define FAULT_EVERY	1000

#define TEXT_PREFIX	"cohabit: "
#define STACK_ENTRIES	16

/* What a call showed: a tag (0: none), what is wrong with it, or NOTHING_WRONG. */
struct shown {
	u32 tag;
	u32 wrong;
	u64 result;
};

#define NOTHING_WRONG	COHABIT_WRONGS

/* Remembers the first wrong call of a thread, and where the thread was. */
static noinline void remember_first(struct cohabit_hammer_thread *thread, const struct shown *shown)
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
static __always_inline bool fault_is_due(const struct cohabit_hammer_thread *thread, u32 fault)
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
static __always_inline bool came_back(struct cohabit_hammer_thread *thread, u32 tag)
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
static __always_inline void
count(struct cohabit_hammer_thread *thread, struct shown *shown, u64 allowed)
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
static cohabit_hot_t faulty_body(u64 allowed)
{
	const struct cohabit_function *function = cohabit_find_function("cohabit_hot", NULL);
	unsigned int slot = COHABIT_SLOTS;

	while (slot--)
		if (!(allowed & BIT_ULL(COHABIT_TAG_IPMODIFY + slot)))
			return function->body[slot];
	return NULL;
}

/* One call of cohabit_hot, with other arguments each time. */
static __always_inline void
call_it(struct cohabit_hammer_thread *thread, struct shown *shown, u64 allowed)
{
	u64 a1 = (thread->seen.calls + 1) * 0x9e3779b97f4a7c15ULL;
	u64 a2 = a1 ^ a1 >> 29, a3 = ~a1, a4 = a1 << 7 | 3, a5 = a2 + 0x123456789abcdefULL;
	u32 sum = 2 * a1 + 3 * a2 + 4 * a3 + 5 * a4 + 6 * a5;
	cohabit_hot_t hot = thread->hammer->hot;
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

static bool is_original(const struct cohabit_hammer_thread *thread, const char *text, size_t len)
{
	return len == thread->original_len && !memcmp(text, thread->original, len);
}

/*
 * Which body wrote the @len bytes of thread->text. The original's text is known only
 * by what it is not, so the first of a thread counts, and any other one is wrong.
 */
static void judge_text(struct cohabit_hammer_thread *thread, size_t len, struct shown *shown)
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
static void read_it(struct cohabit_hammer_thread *thread, struct shown *shown, u64 allowed)
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

static __always_inline void one_call(struct cohabit_hammer_thread *thread, u32 how)
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

/* What the thread of @data does until it is stopped. */
int cohabit_hammer_run(void *data)
{
	struct cohabit_hammer_thread *thread = data;
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
		/* Emulated CPUs that take turns end theirs here, and not after 0.1 s. */
		cpu_relax();
	}
	return 0;
}
