// SPDX-License-Identifier: GPL-2.0-only
/* What the attached slots have seen, for the agent. */
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"

/* Forgets the calls that @slot has seen; what its ops_func was asked is counted on. */
void cohabit_reset_seen(struct cohabit_slot *slot)
{
	struct cohabit_seen *seen;
	unsigned int i;

	for (i = 0; i < slot->nr; i++) {
		seen = &slot->targets[i].seen;
		atomic64_set(&seen->hits, 0);
		atomic64_set(&seen->others, 0);
		memset(seen->args, 0, sizeof(seen->args));
		seen->ret = 0;
		seen->nr_args = 0;
		seen->via = 0;
		seen->has_ret = 0;
	}
}

static int put_stat(struct cohabit_stat __user *to, u32 kind, u32 slot, u32 index)
{
	const struct cohabit_seen *seen = &cohabit_kinds[kind]->slots[slot].targets[index].seen;
	struct cohabit_stat stat = {
		.kind = kind,
		.slot = slot,
		.index = index,
		.nr_args = seen->nr_args,
		.hits = atomic64_read(&seen->hits),
		.others = atomic64_read(&seen->others),
		.ret = seen->ret,
		.share_self = atomic64_read(&seen->share_self),
		.share_peer = atomic64_read(&seen->share_peer),
		.unshare_peer = atomic64_read(&seen->unshare_peer),
		.via = seen->via,
		.has_ret = seen->has_ret,
	};

	memcpy(stat.args, seen->args, sizeof(seen->args));
	return copy_to_user(to, &stat, sizeof(stat)) ? -EFAULT : 0;
}

/* The attached slot at @place of all kinds' slots, NULL: not attached. */
static struct cohabit_slot *attached_slot(unsigned int place)
{
	struct cohabit_slot *slot = &cohabit_kinds[place / COHABIT_SLOTS]->slots[place % COHABIT_SLOTS];

	return slot->attached ? slot : NULL;
}

/* COHABIT_IOC_STATS; under cohabit_lock. */
long cohabit_ioctl_stats(void __user *arg)
{
	struct cohabit_stat __user *to;
	struct cohabit_stats stats;
	struct cohabit_slot *slot;
	unsigned int place, i;
	u32 room, nr = 0;

	if (copy_from_user(&stats, arg, sizeof(stats)))
		return -EFAULT;
	to = u64_to_user_ptr(stats.stats);
	room = stats.nr;
	for (place = 0; place < COHABIT_KINDS * COHABIT_SLOTS; place++) {
		slot = attached_slot(place);
		if (slot)
			nr += slot->nr;
	}
	stats.nr = nr;
	if (copy_to_user(arg, &stats, sizeof(stats)))
		return -EFAULT;
	if (nr > room)
		return -E2BIG;

	for (place = 0; place < COHABIT_KINDS * COHABIT_SLOTS; place++) {
		slot = attached_slot(place);
		for (i = 0; slot && i < slot->nr; i++)
			if (put_stat(to++, place / COHABIT_SLOTS, place % COHABIT_SLOTS, i))
				return -EFAULT;
	}
	for (place = 0; stats.reset && place < COHABIT_KINDS * COHABIT_SLOTS; place++) {
		slot = attached_slot(place);
		if (slot)
			cohabit_reset_seen(slot);
	}
	return 0;
}
