// SPDX-License-Identifier: GPL-2.0-only
/* What the attached slots have seen, for the agent. */
#include <linux/mutex.h>
#include <linux/string.h>
#include <linux/uaccess.h>

#include "cohabit.h"

#define PLACES	(COHABIT_KINDS * COHABIT_SLOTS)

static const struct cohabit_kind_ops *kind_at(unsigned int place)
{
	return cohabit_kinds[place / COHABIT_SLOTS];
}

static struct cohabit_slot *slot_at(unsigned int place)
{
	return &kind_at(place)->slots[place % COHABIT_SLOTS];
}

/* How many calls of a function the kernel has missed since attach. */
static u64 missed_at(unsigned int place, unsigned int index)
{
	return kind_at(place)->missed ? kind_at(place)->missed(slot_at(place), index) : 0;
}

/*
 * Forgets the calls that the slot at @place has seen; what its ops_func was asked is
 * counted on.
 */
static void reset(unsigned int place)
{
	struct cohabit_slot *slot = slot_at(place);
	struct cohabit_seen *seen;
	unsigned int i, j;

	for (i = 0; i < slot->nr; i++) {
		seen = &slot->targets[i].seen;
		atomic64_set(&seen->hits, 0);
		atomic64_set(&seen->others, 0);
		for (j = 0; j < COHABIT_ALTERNATES; j++)
			atomic64_set(&seen->through[j], 0);
		seen->missed = missed_at(place, i);
		memset(seen->args, 0, sizeof(seen->args));
		seen->ret = 0;
		seen->nr_args = 0;
		seen->via = 0;
		seen->has_ret = 0;
	}
}

static int put_stat(struct cohabit_stat __user *to, unsigned int place, u32 index)
{
	const struct cohabit_seen *seen = &slot_at(place)->targets[index].seen;
	struct cohabit_stat stat = {
		.kind = place / COHABIT_SLOTS,
		.slot = place % COHABIT_SLOTS,
		.index = index,
		.nr_args = seen->nr_args,
		.hits = atomic64_read(&seen->hits),
		.others = atomic64_read(&seen->others),
		.ret = seen->ret,
		.share_self = atomic64_read(&seen->share_self),
		.share_peer = atomic64_read(&seen->share_peer),
		.unshare_peer = atomic64_read(&seen->unshare_peer),
		.misses = missed_at(place, index) - seen->missed,
		.via = seen->via,
		.has_ret = seen->has_ret,
	};
	unsigned int i;

	for (i = 0; i < COHABIT_ALTERNATES; i++)
		stat.through[i] = atomic64_read(&seen->through[i]);
	memcpy(stat.args, seen->args, sizeof(seen->args));
	return copy_to_user(to, &stat, sizeof(stat)) ? -EFAULT : 0;
}

/*
 * Writes what the slot at @place has seen to @to, where there is room for @room
 * functions, if it is attached: for how many, which may be more than that.
 */
static int put_slot(struct cohabit_stat __user *to, u32 room, unsigned int place)
{
	struct cohabit_slot *slot = slot_at(place);
	unsigned int i;
	int ret = 0;

	mutex_lock(&slot->lock);
	if (slot->attached)
		ret = slot->nr;
	for (i = 0; i < ret && i < room; i++)
		if (put_stat(to + i, place, i)) {
			ret = -EFAULT;
			break;
		}
	mutex_unlock(&slot->lock);
	return ret;
}

/* COHABIT_IOC_STATS. What comes and goes meanwhile is in it or not. */
long cohabit_ioctl_stats(void __user *arg)
{
	struct cohabit_stat __user *to;
	struct cohabit_stats stats;
	unsigned int place;
	u32 room, nr = 0;
	int ret;

	if (copy_from_user(&stats, arg, sizeof(stats)))
		return -EFAULT;
	to = u64_to_user_ptr(stats.stats);
	room = stats.nr;
	for (place = 0; place < PLACES; place++) {
		ret = put_slot(to + min(nr, room), room - min(nr, room), place);
		if (ret < 0)
			return ret;
		nr += ret;
	}
	stats.nr = nr;
	if (copy_to_user(arg, &stats, sizeof(stats)))
		return -EFAULT;
	if (nr > room)
		return -E2BIG;
	for (place = 0; stats.reset && place < PLACES; place++) {
		mutex_lock(&slot_at(place)->lock);
		if (slot_at(place)->attached)
			reset(place);
		mutex_unlock(&slot_at(place)->lock);
	}
	return 0;
}
