/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of cohabit.ko know of each other. */
#ifndef COHABIT_H
#define COHABIT_H

#include <linux/atomic.h>
#include <linux/compiler.h>
#include <linux/ftrace.h>
#include <linux/sched.h>
#include <linux/types.h>

#include "cohabit_abi.h"
#include "compat.h"

/* More arguments than this are not in registers (x86-64). */
#define COHABIT_REG_ARGS	6

/* Written by callbacks, without locks; args[] is of the caller's last call. */
struct cohabit_counter {
	atomic64_t hits;
	atomic64_t others;
	atomic64_t share_self;
	atomic64_t share_peer;
	atomic64_t unshare_peer;
	u32 nr_args;
	u64 args[COHABIT_REG_ARGS];
};

/* One of COHABIT_SLOTS of each kind. Under cohabit_lock, but for the counter. */
struct cohabit_slot {
	struct ftrace_ops ops;
	struct cohabit_counter counter;
	unsigned long ip;
	unsigned long target;	/* IPMODIFY: the body; DIRECT: the trampoline */
	unsigned int nr_args;	/* in registers */
	bool attached;
};

/* A function of the table in bodies.h, with the body of each IPMODIFY slot. */
struct cohabit_function {
	const char *name;
	unsigned int nr_args;
	void *body[COHABIT_SLOTS];
};

/* A kind of attacher. attach and detach return the errno of the kernel's call. */
struct cohabit_kind_ops {
	u32 flags;		/* COHABIT_F_... that it takes */
	struct cohabit_slot *slots;
	int (*attach)(unsigned int nr, const struct cohabit_function *func, u32 flags);
	int (*detach)(unsigned int nr);
};

extern const struct cohabit_kind_ops cohabit_plain_kind;
extern const struct cohabit_kind_ops cohabit_ipmodify_kind;
extern const struct cohabit_kind_ops cohabit_direct_kind;

/* tgid of the caller under test; -1: none yet. */
extern pid_t cohabit_caller;

int cohabit_lookup_init(void);
unsigned long cohabit_lookup(const char *name);

const struct cohabit_function *cohabit_find_function(const char *name);
void cohabit_wait_for_bodies(void);

static __always_inline bool cohabit_is_caller(void)
{
	return current->tgid == READ_ONCE(cohabit_caller);
}

#endif
