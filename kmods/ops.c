// SPDX-License-Identifier: GPL-2.0-only
/* Attachers that are an ftrace_ops: plain ones, and IPMODIFY that redirects. */
#include <linux/string.h>

#include "cohabit.h"

static struct cohabit_slot plain_slots[COHABIT_SLOTS];
static struct cohabit_slot ipmodify_slots[COHABIT_SLOTS];

static __always_inline void count(struct cohabit_target *target, struct ftrace_ops *ops,
				  struct cohabit_ftrace_regs *fregs)
{
	if (cohabit_count(target) && cohabit_ops_has_args(ops))
		cohabit_record_args(target, cohabit_argument, fregs);
}

/*
 * The callbacks call nothing that can be traced, so they can't recurse and
 * need no guard.
 */
static void notrace cohabit_ops_hit(unsigned long ip, unsigned long parent_ip,
				    struct ftrace_ops *ops,
				    struct cohabit_ftrace_regs *fregs)
{
	struct cohabit_slot *slot = container_of(ops, struct cohabit_slot, ops);

	count(cohabit_target_at(slot, ip), ops, fregs);
}

static void notrace cohabit_ipmodify_hit(unsigned long ip, unsigned long parent_ip,
					 struct ftrace_ops *ops,
					 struct cohabit_ftrace_regs *fregs)
{
	struct cohabit_slot *slot = container_of(ops, struct cohabit_slot, ops);
	struct cohabit_target *target = cohabit_target_at(slot, ip);
	unsigned int nr = slot - ipmodify_slots;

	count(target, ops, fregs);
	cohabit_set_ip(fregs, (unsigned long)target->function->body[nr]);
}

/* An ops keeps state of its last registration: each one starts from zero. */
static int start(struct cohabit_slot *slot, ftrace_func_t func, unsigned long flags)
{
	int ret;

	memset(&slot->ops, 0, sizeof(slot->ops));
	slot->ops.func = func;
	slot->ops.flags = flags;
	ret = cohabit_set_filter(&slot->ops, slot->ips, slot->nr);
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

static int plain_attach(struct cohabit_slot *slot, u32 flags)
{
	unsigned long ops_flags = COHABIT_OPS_FL_UNGUARDED;

	if (flags & COHABIT_F_SAVE_REGS)
		ops_flags |= FTRACE_OPS_FL_SAVE_REGS;
	return start(slot, cohabit_ops_hit, ops_flags);
}

/* The flags of kernel/livepatch/patch.c:klp_patch_func(), without PERMANENT. */
static int ipmodify_attach(struct cohabit_slot *slot, u32 flags)
{
	unsigned int i;

	for (i = 0; i < slot->nr; i++)
		if (!slot->targets[i].function)
			return -ENXIO;
	return start(slot, cohabit_ipmodify_hit,
		     FTRACE_OPS_FL_DYNAMIC | FTRACE_OPS_FL_IPMODIFY | COHABIT_OPS_FL_KLP_REGS);
}

const struct cohabit_kind_ops cohabit_plain_kind = {
	.flags = COHABIT_F_SAVE_REGS,
	.slots = plain_slots,
	.attach = plain_attach,
	.detach = stop,
};

const struct cohabit_kind_ops cohabit_ipmodify_kind = {
	.slots = ipmodify_slots,
	.attach = ipmodify_attach,
	.detach = stop,
};
