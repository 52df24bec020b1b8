// SPDX-License-Identifier: GPL-2.0-only
/*
 * The bodies that IPMODIFY redirects to: one for each function and slot, so
 * that which one ran is told by the body itself and by nothing else.
 */
#include <linux/atomic.h>
#include <linux/kernel.h>
#include <linux/string.h>
#include <linux/wait.h>

/*
 * A body that sleeps may be all that is left of an attacher. The count keeps
 * its code in place; the few instructions around it never sleep of their own
 * will, so waiting for RCU tasks covers those.
 */
static atomic_t sleepers = ATOMIC_INIT(0);
static DECLARE_WAIT_QUEUE_HEAD(no_sleepers);

#define COHABIT_SLEEP(ms)				\
do {							\
	atomic_inc(&sleepers);				\
	msleep_interruptible(ms);			\
	if (atomic_dec_and_test(&sleepers))		\
		wake_up(&no_sleepers);			\
} while (0)

#include "bodies.h"
#include "cohabit.h"

#define SLOT_BODY(slot, name, nr, kind)						\
	COHABIT_DEFINE_BODY(cohabit_ipmodify_##slot##_, name, nr, kind,		\
			    "ipmodify-" #slot, COHABIT_TAG_IPMODIFY + slot)

#define BODIES(name, nr, object, kind)	\
	SLOT_BODY(0, name, nr, kind)	\
	SLOT_BODY(1, name, nr, kind)	\
	SLOT_BODY(2, name, nr, kind)	\
	SLOT_BODY(3, name, nr, kind)	\
	SLOT_BODY(4, name, nr, kind)	\
	SLOT_BODY(5, name, nr, kind)	\
	SLOT_BODY(6, name, nr, kind)	\
	SLOT_BODY(7, name, nr, kind)

COHABIT_FUNCTIONS(BODIES)
BODIES(lane, 6, cohabit_funcs, test)

#define ENTRY_OF(name, nr, object, kind)	\
	{ #name, #object, nr, {			\
		cohabit_ipmodify_0_##name,	\
		cohabit_ipmodify_1_##name,	\
		cohabit_ipmodify_2_##name,	\
		cohabit_ipmodify_3_##name,	\
		cohabit_ipmodify_4_##name,	\
		cohabit_ipmodify_5_##name,	\
		cohabit_ipmodify_6_##name,	\
		cohabit_ipmodify_7_##name,	\
	} }

#define ELEMENT_OF(name, nr, object, kind)	ENTRY_OF(name, nr, object, kind),

static const struct cohabit_function functions[] = {
	COHABIT_FUNCTIONS(ELEMENT_OF)
};

/* All lanes are the same but for their names. */
static const struct cohabit_function lanes = ENTRY_OF(lane, COHABIT_LANE_ARGS, cohabit_funcs, test);

/* The number of the lane that @name is the function of, -1: of none. */
static int lane_of(const char *name)
{
	size_t prefix = strlen(COHABIT_LANE_PREFIX);
	unsigned int lane;

	if (strncmp(name, COHABIT_LANE_PREFIX, prefix) || strlen(name) != prefix + 3 ||
	    kstrtouint(name + prefix, 10, &lane) || lane >= COHABIT_LANES)
		return -1;
	return lane;
}

/*
 * Returns the table's entry for @name, NULL: not a function of the table.
 * @lane, if not NULL, gets the number of the lane that it is, or -1.
 */
const struct cohabit_function *cohabit_find_function(const char *name, int *lane)
{
	int number = lane_of(name);
	unsigned int i;

	if (lane)
		*lane = number;
	if (number >= 0)
		return &lanes;
	for (i = 0; i < ARRAY_SIZE(functions); i++)
		if (!strcmp(functions[i].name, name))
			return &functions[i];
	return NULL;
}

/* Waits until no task sleeps in a body. */
void cohabit_wait_for_bodies(void)
{
	wait_event(no_sleepers, !atomic_read(&sleepers));
}
