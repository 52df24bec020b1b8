/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of cohabit.ko know of each other. */
#ifndef COHABIT_H
#define COHABIT_H

#include <linux/atomic.h>
#include <linux/compiler.h>
#include <linux/ftrace.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/sched.h>
#include <linux/types.h>

#include "cohabit_abi.h"
#include "compat.h"

/* More arguments than this are not in registers. */
#ifdef CONFIG_ARM64
#define COHABIT_REG_ARGS	8
#else
#define COHABIT_REG_ARGS	6
#endif

/*
 * The address that ftrace knows a function by lies within so many bytes of the
 * symbol: at it, or behind a landing pad, or (arm64) behind the instruction
 * that keeps the return address. That of the next function is never as close:
 * x86-64 aligns functions to this, and on arm64 even the shortest has three
 * instructions.
 */
#define COHABIT_ENTRY_BYTES	16

/* Written by callbacks, without locks; args[] and ret are of the caller's last call. */
struct cohabit_seen {
	atomic64_t hits;
	atomic64_t others;
	atomic64_t share_self;
	atomic64_t share_peer;
	atomic64_t unshare_peer;
	atomic64_t through[COHABIT_ALTERNATES];	/* DIRECT */
	u64 missed;			/* of what the kernel missed: before the last reset */
	u64 args[COHABIT_REG_ARGS];
	u64 ret;
	u32 nr_args;
	u32 via;
	u32 has_ret;
};

/* One function of an attachment. */
struct cohabit_target {
	const struct cohabit_function *function;	/* NULL: not one of the table */
	unsigned int nr_args;				/* in registers */
	int lane;					/* -1: not a lane */
	struct cohabit_seen seen;
};

/*
 * One of COHABIT_SLOTS of each kind. All of it, and what its kind keeps for it, under
 * its lock, but for what was seen. Slots are independent of each other: attachers race
 * in the kernel and not here.
 */
struct cohabit_slot {
	struct mutex lock;
	struct ftrace_ops ops;		/* of the kinds that are one */
	unsigned long ips[COHABIT_MAX_FUNCS];
	struct cohabit_target *targets;	/* kept until the module goes: see cohabit_exit() */
	unsigned int nr;
	bool attached;
};

/* A function of the table in bodies.h, with the body of each IPMODIFY slot. */
struct cohabit_function {
	const char *name;
	const char *object;
	unsigned int nr_args;
	void *body[COHABIT_SLOTS];
};

/*
 * A kind of attacher. attach puts @slot on slot->nr functions, whose addresses
 * are in slot->ips; both return the errno of the kernel's call.
 */
struct cohabit_kind_ops {
	u32 flags;		/* COHABIT_F_... that it takes */
	struct cohabit_slot *slots;
	int (*attach)(struct cohabit_slot *slot, u32 flags);
	int (*detach)(struct cohabit_slot *slot);
	/* How many calls of target @index the kernel missed since attach; NULL: it can't. */
	u64 (*missed)(struct cohabit_slot *slot, unsigned int index);
};

#define COHABIT_KINDS	6

extern const struct cohabit_kind_ops cohabit_plain_kind;
extern const struct cohabit_kind_ops cohabit_ipmodify_kind;
extern const struct cohabit_kind_ops cohabit_direct_kind;
extern const struct cohabit_kind_ops cohabit_kprobe_kind;
extern const struct cohabit_kind_ops cohabit_kretprobe_kind;
extern const struct cohabit_kind_ops cohabit_fprobe_kind;
extern const struct cohabit_kind_ops *const cohabit_kinds[COHABIT_KINDS];

/* One request at a time, of those that have no lock of their own. */
extern struct mutex cohabit_lock;

/* tgid of the caller under test; -1: none yet. */
extern pid_t cohabit_caller;

int cohabit_direct_modify(unsigned int nr, unsigned int alternate);
void cohabit_direct_set_far(const unsigned long *tramps, struct module *owner);

int cohabit_lookup_init(void);
unsigned long cohabit_lookup(const char *name);

long cohabit_ioctl_site(void __user *arg);
long cohabit_keep_clear(void);
void cohabit_restore(void);
unsigned long cohabit_ask(const char *name, unsigned long address);
long cohabit_ioctl_text(void __user *arg);

long cohabit_ioctl_hammer(const void __user *arg);
long cohabit_ioctl_allow(const void __user *arg);
long cohabit_ioctl_hammered(void __user *arg);
unsigned int cohabit_hammer_calls(const char *func, u64 *calls, unsigned int room);
long cohabit_ioctl_window(const void __user *arg);
long cohabit_ioctl_windowed(void __user *arg);

const struct cohabit_function *cohabit_find_function(const char *name, int *lane);
void cohabit_wait_for_bodies(void);

long cohabit_ioctl_stats(void __user *arg);
long cohabit_ioctl_misuse(void __user *arg);

static __always_inline bool cohabit_is_caller(void)
{
	return current->tgid == READ_ONCE(cohabit_caller);
}

/*
 * The target that @ip is in. A call of anything else is an error of the
 * kernel's: it goes to the first target, which then has a hit too many.
 */
static __always_inline struct cohabit_target *
cohabit_target_at(struct cohabit_slot *slot, unsigned long ip)
{
	unsigned int i;

	for (i = 0; i < slot->nr; i++)
		if (ip - slot->ips[i] < COHABIT_ENTRY_BYTES)
			return &slot->targets[i];
	return slot->targets;
}

/* Counts a call of @target; false: it's none of the caller's. */
static __always_inline bool cohabit_count(struct cohabit_target *target)
{
	if (!cohabit_is_caller()) {
		atomic64_inc(&target->seen.others);
		return false;
	}
	atomic64_inc(&target->seen.hits);
	return true;
}

/* Records the arguments of a call; @argument(@from, n) is the one in place n. */
#define cohabit_record_args(target, argument, from)			\
do {									\
	struct cohabit_target *__target = (target);			\
	unsigned int __n;						\
									\
	for (__n = 0; __n < __target->nr_args; __n++)			\
		__target->seen.args[__n] = argument(from, __n);		\
	__target->seen.nr_args = __target->nr_args;			\
} while (0)

/* Records what the caller's call of @target returned. */
static __always_inline void cohabit_record_ret(struct cohabit_target *target, u64 ret)
{
	if (!cohabit_is_caller())
		return;
	target->seen.ret = ret;
	target->seen.has_ret = 1;
}

#endif
