/* SPDX-License-Identifier: GPL-2.0-only */
/* What hammer.c, one thread that calls, and hammers.c, all of them, know of each other. */
#ifndef COHABIT_HAMMER_H
#define COHABIT_HAMMER_H

#include <linux/cache.h>
#include <linux/fs.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/types.h>

#include "cohabit_abi.h"

/* A text under test is shorter: see COMMAND_LINE_SIZE. */
#define COHABIT_HAMMER_TEXT	4096

typedef u64 (*cohabit_hot_t)(u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5);

struct cohabit_hammers;

/* One of them; only its own thread writes to it, once it runs. */
struct cohabit_hammer_thread {
	struct cohabit_hammers *hammer;
	struct task_struct *task;
	struct file *file;			/* READ: its own */
	struct cohabit_hammered seen;
	u64 ran;				/* CALL: counted by the bodies themselves */
	u64 generation;				/* what the call under way is judged by */
	u64 left;				/* in this generation: tags that others came after */
	u32 last;				/* and the last tag, 0: none yet */
	bool stalled;
	size_t original_len;			/* READ: the first text that is no replacement's */
	char original[COHABIT_HAMMER_TEXT];
	char text[COHABIT_HAMMER_TEXT];
} ____cacheline_aligned_in_smp;

/* The hammers of a function. */
struct cohabit_hammers {
	char func[COHABIT_NAME_LEN];
	u32 how;
	u32 fault;
	cohabit_hot_t hot;			/* CALL: its module is held */
	refcount_t users;
	bool stopped;
	unsigned int nr;

	/* Written by COHABIT_IOC_ALLOW, first the one and then the other. */
	u64 allowed ____cacheline_aligned_in_smp;
	u64 generation;

	struct cohabit_hammer_thread threads[];
};

int cohabit_hammer_run(void *data);

#endif
