// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attachers that are a direct trampoline. The trampolines themselves are in
 * direct_<architecture>.S; each counts its call here and returns to the address
 * that ftrace left on the stack (arm64: in x30), so it can share a function with
 * a livepatch. Each slot has two, so that one can be exchanged for the other, and
 * two more where cohabit_far.ko is loaded (arm64).
 */
#include <linux/export.h>
#include <linux/mutex.h>
#include <linux/string.h>

#include "cohabit.h"

static struct cohabit_slot direct_slots[COHABIT_SLOTS];

#if COHABIT_HAS_DIRECT

#define COHABIT_TRAMPS(X)	\
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)	\
	X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define DECLARE_TRAMP(nr)	void cohabit_direct_tramp_##nr(void);
#define TRAMP(nr)		cohabit_direct_tramp_##nr,

COHABIT_TRAMPS(DECLARE_TRAMP)

/* The first of a slot is at its number, the other one at that + COHABIT_SLOTS. */
static void (*const tramps[2 * COHABIT_SLOTS])(void) = { COHABIT_TRAMPS(TRAMP) };

/* The same for those of cohabit_far.ko, NULL: it isn't loaded. Under far_lock. */
static DEFINE_MUTEX(far_lock);
static const unsigned long *far_tramps;
static struct module *far_owner;

/* The slots that hold cohabit_far.ko, from when they need it until they are free. */
static bool holds_far[COHABIT_SLOTS];

/* The address of the trampoline that each slot has now. */
static unsigned long current_tramp[COHABIT_SLOTS];

void cohabit_direct_hit(unsigned int tramp, const unsigned long *args);

/* A trampoline isn't told which function it was called from. */
static __always_inline struct cohabit_target *
called_target(struct cohabit_slot *slot, const unsigned long *args)
{
	unsigned int i;

	for (i = 0; i < slot->nr; i++)
		if (slot->targets[i].lane >= 0 &&
		    args[0] == COHABIT_LANE_ARG + (unsigned long)slot->targets[i].lane)
			return &slot->targets[i];
	return slot->targets;
}

#define direct_argument(args, n)	((args)[n])

/* Called by trampoline @tramp with the traced function's register arguments. */
void notrace cohabit_direct_hit(unsigned int tramp, const unsigned long *args)
{
	struct cohabit_slot *slot = &direct_slots[tramp % COHABIT_SLOTS];
	struct cohabit_target *target = called_target(slot, args);

	atomic64_inc(&target->seen.through[tramp / COHABIT_SLOTS]);
	if (!cohabit_count(target))
		return;
	cohabit_record_args(target, direct_argument, args);
	target->seen.via = tramp;
}
EXPORT_SYMBOL_GPL(cohabit_direct_hit);

/* For cohabit_far.ko, which comes with @tramps, or goes with NULL. */
void cohabit_direct_set_far(const unsigned long *tramps, struct module *owner)
{
	mutex_lock(&far_lock);
	far_tramps = tramps;
	far_owner = owner;
	mutex_unlock(&far_lock);
}
EXPORT_SYMBOL_GPL(cohabit_direct_set_far);

/* The address of a trampoline of slot @nr, 0: there is none of that kind. */
static unsigned long take_tramp(unsigned int nr, unsigned int alternate)
{
	unsigned long tramp = 0;

	if (alternate < COHABIT_FAR_ALTERNATE)
		return (unsigned long)tramps[nr + alternate * COHABIT_SLOTS];
	mutex_lock(&far_lock);
	if (far_tramps && (holds_far[nr] || try_module_get(far_owner))) {
		holds_far[nr] = true;
		tramp = far_tramps[nr + (alternate - COHABIT_FAR_ALTERNATE) * COHABIT_SLOTS];
	}
	mutex_unlock(&far_lock);
	return tramp;
}

/* While a slot holds the module, that doesn't go and far_owner doesn't change. */
static void drop_far(unsigned int nr)
{
	if (holds_far[nr])
		module_put(far_owner);
	holds_far[nr] = false;
}

#if COHABIT_HAS_OPS_FUNC
/* Whether the ops was asked to share each of its functions. */
static bool asked_about_all(struct cohabit_slot *slot)
{
	unsigned int i;

	for (i = 0; i < slot->nr; i++)
		if (!atomic64_read(&slot->targets[i].seen.share_peer))
			return false;
	return true;
}

/*
 * The trampolines can always share: nothing to change, whatever is asked. Where
 * a flag says so, it says it of all functions.
 */
static COHABIT_OPS_FUNC(cohabit_direct_ops_func, ops, ip, cmd)
{
	struct cohabit_slot *slot = container_of(ops, struct cohabit_slot, ops);
	struct cohabit_seen *seen = &cohabit_target_at(slot, COHABIT_OPS_FUNC_IP(ip))->seen;

	switch (cmd) {
	case FTRACE_OPS_CMD_ENABLE_SHARE_IPMODIFY_SELF:
		atomic64_inc(&seen->share_self);
		break;
	case FTRACE_OPS_CMD_ENABLE_SHARE_IPMODIFY_PEER:
		atomic64_inc(&seen->share_peer);
		if (asked_about_all(slot))
			ops->flags |= COHABIT_OPS_FL_SHARE;
		break;
	case FTRACE_OPS_CMD_DISABLE_SHARE_IPMODIFY_PEER:
		atomic64_inc(&seen->unshare_peer);
		break;
	}
	return 0;
}

/* An errno that nothing else on the way gives. */
static COHABIT_OPS_FUNC(cohabit_direct_ops_refuse, ops, ip, cmd)
{
	return cmd == FTRACE_OPS_CMD_DISABLE_SHARE_IPMODIFY_PEER ? 0 : -EXDEV;
}
#endif

static int direct_attach(struct cohabit_slot *slot, u32 flags)
{
	unsigned int nr = slot - direct_slots;
	int ret;

	memset(&slot->ops, 0, sizeof(slot->ops));
	if (flags & (COHABIT_F_OPS_FUNC | COHABIT_F_OPS_REFUSE)) {
#if COHABIT_HAS_OPS_FUNC
		slot->ops.ops_func = flags & COHABIT_F_OPS_FUNC ? cohabit_direct_ops_func :
								  cohabit_direct_ops_refuse;
#else
		return -EOPNOTSUPP;
#endif
	}
	current_tramp[nr] = take_tramp(nr, flags & COHABIT_F_FAR ? COHABIT_FAR_ALTERNATE : 0);
	if (!current_tramp[nr])
		return -EADDRNOTAVAIL;
	ret = cohabit_direct_register(&slot->ops, slot->ips, slot->nr, current_tramp[nr]);
	/* Such a kernel wants to hear that the trampoline shares, and to be asked again. */
	if (ret == -EAGAIN && COHABIT_OPS_FL_SHARE && flags & COHABIT_F_OPS_FUNC) {
		slot->ops.flags |= COHABIT_OPS_FL_SHARE;
		ret = cohabit_direct_register(&slot->ops, slot->ips, slot->nr, current_tramp[nr]);
	}
	if (ret)
		drop_far(nr);
	return ret;
}

static int direct_detach(struct cohabit_slot *slot)
{
	unsigned int nr = slot - direct_slots;
	int ret = cohabit_direct_unregister(&slot->ops, slot->ips, slot->nr, current_tramp[nr]);

	if (!ret)
		drop_far(nr);
	return ret;
}

static int direct_modify(struct cohabit_slot *slot, unsigned int alternate)
{
	unsigned int nr = slot - direct_slots;
	unsigned long tramp;
	int ret;

	if (!slot->attached)
		return -ENOENT;
	tramp = take_tramp(nr, alternate);
	if (!tramp)
		return -EADDRNOTAVAIL;
	ret = cohabit_direct_exchange(&slot->ops, slot->ips, slot->nr, current_tramp[nr], tramp);
	if (!ret)
		current_tramp[nr] = tramp;
	return ret;
}

/* Lets slot @nr go over to another of its trampolines. */
int cohabit_direct_modify(unsigned int nr, unsigned int alternate)
{
	struct cohabit_slot *slot = &direct_slots[nr];
	int ret;

	mutex_lock(&slot->lock);
	ret = direct_modify(slot, alternate);
	mutex_unlock(&slot->lock);
	return ret;
}

#else /* !COHABIT_HAS_DIRECT */

static int direct_attach(struct cohabit_slot *slot, u32 flags)
{
	return -EOPNOTSUPP;
}

static int direct_detach(struct cohabit_slot *slot)
{
	return -EOPNOTSUPP;
}

int cohabit_direct_modify(unsigned int nr, unsigned int alternate)
{
	return -EOPNOTSUPP;
}

#endif

const struct cohabit_kind_ops cohabit_direct_kind = {
	.flags = COHABIT_F_OPS_FUNC | COHABIT_F_OPS_REFUSE | COHABIT_F_FAR,
	.slots = direct_slots,
	.attach = direct_attach,
	.detach = direct_detach,
};
