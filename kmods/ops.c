// SPDX-License-Identifier: GPL-2.0-only
/* Attachers that are an ftrace_ops: plain ones, and IPMODIFY that redirects. */
#include <linux/string.h>

#include "cohabit.h"

static struct cohabit_slot plain_slots[COHABIT_SLOTS];
static struct cohabit_slot ipmodify_slots[COHABIT_SLOTS];

static __always_inline void count(struct cohabit_slot *slot,
				  struct cohabit_ftrace_regs *fregs)
{
	struct cohabit_counter *counter = &slot->counter;
	unsigned int i;

	if (!cohabit_is_caller()) {
		atomic64_inc(&counter->others);
		return;
	}
	if (cohabit_ops_has_args(&slot->ops)) {
		for (i = 0; i < slot->nr_args; i++)
			counter->args[i] = cohabit_argument(fregs, i);
		counter->nr_args = slot->nr_args;
	}
	atomic64_inc(&counter->hits);
}

/*
 * The callbacks call nothing that can be traced, so they can't recurse and
 * need no guard.
 */
static void notrace cohabit_ops_hit(unsigned long ip, unsigned long parent_ip,
				    struct ftrace_ops *ops,
				    struct cohabit_ftrace_regs *fregs)
{
	count(container_of(ops, struct cohabit_slot, ops), fregs);
}

static void notrace cohabit_ipmodify_hit(unsigned long ip, unsigned long parent_ip,
					 struct ftrace_ops *ops,
					 struct cohabit_ftrace_regs *fregs)
{
	struct cohabit_slot *slot = container_of(ops, struct cohabit_slot, ops);

	count(slot, fregs);
	cohabit_set_ip(fregs, slot->target);
}

/* An ops keeps state of its last registration: each one starts from zero. */
static int start(struct cohabit_slot *slot, ftrace_func_t func, unsigned long flags)
{
	int ret;

	memset(&slot->ops, 0, sizeof(slot->ops));
	slot->ops.func = func;
	slot->ops.flags = flags;
	ret = ftrace_set_filter_ip(&slot->ops, slot->ip, 0, 1);
	if (!ret)
		ret = register_ftrace_function(&slot->ops);
	if (ret)
		cohabit_free_filter(&slot->ops);
	return ret;
}

static int stop(struct cohabit_slot *slot)
{
	int ret = unregister_ftrace_function(&slot->ops);

	if (!ret)
		cohabit_free_filter(&slot->ops);
	return ret;
}

static int plain_attach(unsigned int nr, const struct cohabit_function *func, u32 flags)
{
	unsigned long ops_flags = COHABIT_OPS_FL_UNGUARDED;

	if (flags & COHABIT_F_SAVE_REGS)
		ops_flags |= FTRACE_OPS_FL_SAVE_REGS;
	return start(&plain_slots[nr], cohabit_ops_hit, ops_flags);
}

static int plain_detach(unsigned int nr)
{
	return stop(&plain_slots[nr]);
}

/* The flags of kernel/livepatch/patch.c:klp_patch_func(), without PERMANENT. */
static int ipmodify_attach(unsigned int nr, const struct cohabit_function *func, u32 flags)
{
	if (!func)
		return -ENXIO;
	ipmodify_slots[nr].target = (unsigned long)func->body[nr];
	return start(&ipmodify_slots[nr], cohabit_ipmodify_hit,
		     FTRACE_OPS_FL_DYNAMIC | FTRACE_OPS_FL_IPMODIFY | COHABIT_OPS_FL_KLP_REGS);
}

static int ipmodify_detach(unsigned int nr)
{
	return stop(&ipmodify_slots[nr]);
}

const struct cohabit_kind_ops cohabit_plain_kind = {
	.flags = COHABIT_F_SAVE_REGS,
	.slots = plain_slots,
	.attach = plain_attach,
	.detach = plain_detach,
};

const struct cohabit_kind_ops cohabit_ipmodify_kind = {
	.slots = ipmodify_slots,
	.attach = ipmodify_attach,
	.detach = ipmodify_detach,
};
