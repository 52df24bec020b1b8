// SPDX-License-Identifier: GPL-2.0-only
/*
 * Direct trampolines out of a BL's reach (arm64: 128 MB) of every function under
 * test: the same as those of cohabit.ko, in a module of its own that is loaded
 * while reserve.c keeps all nearer addresses.
 */
#include <linux/module.h>
#include <linux/rcupdate.h>

#include "cohabit.h"

#if COHABIT_HAS_DIRECT

#define COHABIT_TRAMPS(X)	\
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)	\
	X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define DECLARE_TRAMP(nr)	void cohabit_far_tramp_##nr(void);
#define TRAMP(nr)		(unsigned long)cohabit_far_tramp_##nr,

COHABIT_TRAMPS(DECLARE_TRAMP)

static unsigned long tramps[2 * COHABIT_SLOTS];

static int __init far_init(void)
{
	const unsigned long there[] = { COHABIT_TRAMPS(TRAMP) };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(tramps); i++)
		tramps[i] = there[i];
	cohabit_direct_set_far(tramps, THIS_MODULE);
	return 0;
}

/* No slot has one of them, but a task may still be on its way out. */
static void __exit far_exit(void)
{
	cohabit_direct_set_far(NULL, NULL);
	synchronize_rcu_tasks();
}

#else

static int __init far_init(void)
{
	return -EOPNOTSUPP;
}

static void __exit far_exit(void)
{
}

#endif

module_init(far_init);
module_exit(far_exit);
MODULE_DESCRIPTION("Direct trampolines that are far from the functions under test");
MODULE_LICENSE("GPL");
