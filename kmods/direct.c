// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attachers that are a direct trampoline. The trampolines themselves are in
 * direct_<architecture>.S; each counts its call here and returns to the address
 * that ftrace left on the stack, so it can share a function with a livepatch.
 */
#include <linux/string.h>

#include "cohabit.h"

static struct cohabit_slot direct_slots[COHABIT_SLOTS];

#if COHABIT_HAS_DIRECT

#define COHABIT_TRAMPS(X)	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#define DECLARE_TRAMP(slot)	void cohabit_direct_tramp_##slot(void);
#define TRAMP(slot)		cohabit_direct_tramp_##slot,

COHABIT_TRAMPS(DECLARE_TRAMP)

static void (*const tramps[COHABIT_SLOTS])(void) = { COHABIT_TRAMPS(TRAMP) };

void cohabit_direct_hit(unsigned int nr, const unsigned long *args);

/* Called by trampoline @nr with the traced function's register arguments. */
void notrace cohabit_direct_hit(unsigned int nr, const unsigned long *args)
{
	struct cohabit_slot *slot = &direct_slots[nr];
	struct cohabit_counter *counter = &slot->counter;
	unsigned int i;

	if (!cohabit_is_caller()) {
		atomic64_inc(&counter->others);
		return;
	}
	for (i = 0; i < slot->nr_args; i++)
		counter->args[i] = args[i];
	counter->nr_args = slot->nr_args;
	atomic64_inc(&counter->hits);
}

#if COHABIT_HAS_OPS_FUNC
/* The trampolines can always share: nothing to change, whatever is asked. */
static COHABIT_OPS_FUNC(cohabit_direct_ops_func, ops, cmd)
{
	struct cohabit_slot *slot = container_of(ops, struct cohabit_slot, ops);
	struct cohabit_counter *counter = &slot->counter;

	switch (cmd) {
	case FTRACE_OPS_CMD_ENABLE_SHARE_IPMODIFY_SELF:
		atomic64_inc(&counter->share_self);
		break;
	case FTRACE_OPS_CMD_ENABLE_SHARE_IPMODIFY_PEER:
		atomic64_inc(&counter->share_peer);
		break;
	case FTRACE_OPS_CMD_DISABLE_SHARE_IPMODIFY_PEER:
		atomic64_inc(&counter->unshare_peer);
		break;
	}
	return 0;
}
#endif

static int direct_attach(unsigned int nr, const struct cohabit_function *func, u32 flags)
{
	struct cohabit_slot *slot = &direct_slots[nr];

	slot->target = (unsigned long)tramps[nr];
	memset(&slot->ops, 0, sizeof(slot->ops));
	if (flags & COHABIT_F_OPS_FUNC) {
#if COHABIT_HAS_OPS_FUNC
		slot->ops.ops_func = cohabit_direct_ops_func;
#else
		return -EOPNOTSUPP;
#endif
	}
	return cohabit_direct_register(&slot->ops, slot->ip, slot->target);
}

static int direct_detach(unsigned int nr)
{
	struct cohabit_slot *slot = &direct_slots[nr];

	return cohabit_direct_unregister(&slot->ops, slot->ip, slot->target);
}

#else /* !COHABIT_HAS_DIRECT */

static int direct_attach(unsigned int nr, const struct cohabit_function *func, u32 flags)
{
	return -EOPNOTSUPP;
}

static int direct_detach(unsigned int nr)
{
	return -EOPNOTSUPP;
}

#endif

const struct cohabit_kind_ops cohabit_direct_kind = {
	.flags = COHABIT_F_OPS_FUNC,
	.slots = direct_slots,
	.attach = direct_attach,
	.detach = direct_detach,
};
