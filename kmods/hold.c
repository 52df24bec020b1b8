// SPDX-License-Identifier: GPL-2.0-only
/* Calls that stay inside a test function until they are let go. */
#include <linux/atomic.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/wait.h>

#include "functions.h"

static atomic_t held = ATOMIC_INIT(0);
static unsigned int releases;
static DECLARE_WAIT_QUEUE_HEAD(released);

/*
 * Unless @wait is 0, waits for the next cohabit_release(), or until the task is
 * killed. No other signal ends it: a livepatch's transition wakes the tasks that
 * hold it up with a false one (kernel/livepatch/transition.c:klp_send_signals()),
 * and these are to hold it up.
 */
void cohabit_wait_for_release(u64 wait)
{
	unsigned int before = READ_ONCE(releases);

	if (!wait)
		return;
	atomic_inc(&held);
	wait_event_killable(released, READ_ONCE(releases) != before);
	atomic_dec(&held);
}

/* Lets all go that wait. */
void cohabit_release(void)
{
	WRITE_ONCE(releases, releases + 1);
	wake_up_all(&released);
}

/* How many wait. */
u32 cohabit_held(void)
{
	return atomic_read(&held);
}
