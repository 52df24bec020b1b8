/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The functions under test and what replaces them, for livepatches and for
 * IPMODIFY alike. harness/scenario/functions.py has the same table.
 */
#ifndef COHABIT_BODIES_H
#define COHABIT_BODIES_H

#include <linux/delay.h>
#include <linux/netlink.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/skbuff.h>
#include <linux/types.h>
#include <net/genetlink.h>

#include "cohabit_abi.h"
#include "compat.h"

/* X(name, number of arguments, object, how the body shows) */
#define COHABIT_VMLINUX_FUNCTIONS(X)				\
	X(cmdline_proc_show,	 2, vmlinux, text)		\
	X(version_proc_show,	 2, vmlinux, text)		\
	X(rtnl_getlink,		 3, vmlinux, errno)		\
	X(ctrl_getfamily,	 2, vmlinux, errno)		\
	X(security_task_getpgid, 1, vmlinux, errno)

#define COHABIT_TEST_FUNCTIONS(X)				\
	X(cohabit_f0,		 0, cohabit_funcs, test)	\
	X(cohabit_f1,		 1, cohabit_funcs, test)	\
	X(cohabit_f3,		 3, cohabit_funcs, test)	\
	X(cohabit_f6,		 6, cohabit_funcs, test)	\
	X(cohabit_f8,		 8, cohabit_funcs, test)	\
	X(cohabit_f10,		10, cohabit_funcs, test)	\
	X(cohabit_sleep,	 1, cohabit_funcs, sleep)	\
	X(cohabit_hold,		 1, cohabit_funcs, hold)	\
	X(cohabit_hot,		 6, cohabit_funcs, hot)

#define COHABIT_FUNCTIONS(X)					\
	COHABIT_VMLINUX_FUNCTIONS(X)				\
	COHABIT_TEST_FUNCTIONS(X)

/*
 * The lanes: as many functions of one kind, all alike, so that one body does
 * for all of them where they are replaced. BPF may replace the return value of
 * functions of this prefix: kernel/bpf/verifier.c:check_attach_modify_return().
 * X(number, as three digits)
 */
#define COHABIT_LANE_PREFIX	"security_cohabit_"
#define COHABIT_LANE_ARGS	6

#define COHABIT_TEN_LANES(X, tens)						\
	X(tens##0) X(tens##1) X(tens##2) X(tens##3) X(tens##4)			\
	X(tens##5) X(tens##6) X(tens##7) X(tens##8) X(tens##9)

#define COHABIT_ALL_LANES(X)							\
	COHABIT_TEN_LANES(X, 00) COHABIT_TEN_LANES(X, 01) COHABIT_TEN_LANES(X, 02) \
	COHABIT_TEN_LANES(X, 03) COHABIT_TEN_LANES(X, 04) COHABIT_TEN_LANES(X, 05) \
	COHABIT_TEN_LANES(X, 06) COHABIT_TEN_LANES(X, 07) COHABIT_TEN_LANES(X, 08) \
	COHABIT_TEN_LANES(X, 09) COHABIT_TEN_LANES(X, 10) COHABIT_TEN_LANES(X, 11) \
	X(120) X(121) X(122) X(123) X(124) X(125) X(126) X(127)

/* As fs/proc/cmdline.c, fs/proc/version.c ... declare them, 5.10 to 7.3. */
#define COHABIT_ARGS_cmdline_proc_show	struct seq_file *m, void *v
#define COHABIT_ARGS_version_proc_show	struct seq_file *m, void *v
#define COHABIT_ARGS_rtnl_getlink	\
	struct sk_buff *skb, struct nlmsghdr *nlh, struct netlink_ext_ack *extack
#define COHABIT_ARGS_ctrl_getfamily	struct sk_buff *skb, struct genl_info *info
#define COHABIT_ARGS_security_task_getpgid	struct task_struct *p
#define COHABIT_ARGS_cohabit_f0		void
#define COHABIT_ARGS_cohabit_f1		u64 a0
#define COHABIT_ARGS_cohabit_f3		u64 a0, u64 a1, u64 a2
#define COHABIT_ARGS_cohabit_f6		u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5
#define COHABIT_ARGS_cohabit_f8		\
	u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5, u64 a6, u64 a7
#define COHABIT_ARGS_cohabit_f10	\
	u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5, u64 a6, u64 a7, u64 a8, u64 a9
#define COHABIT_ARGS_cohabit_sleep	u64 a0
#define COHABIT_ARGS_cohabit_hold	u64 a0
#define COHABIT_ARGS_cohabit_hot	\
	u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5
#define COHABIT_ARGS_lane		u64 a0, u64 a1, u64 a2, u64 a3, u64 a4, u64 a5

#define COHABIT_RET_text		int
#define COHABIT_RET_errno		int
#define COHABIT_RET_test		u64
#define COHABIT_RET_sleep		u64
#define COHABIT_RET_hold		u64
#define COHABIT_RET_hot			u64

#define COHABIT_SUM_0	0ULL
#define COHABIT_SUM_1	(a0)
#define COHABIT_SUM_3	(a0 + 2 * a1 + 3 * a2)
#define COHABIT_SUM_6	(COHABIT_SUM_3 + 4 * a3 + 5 * a4 + 6 * a5)
#define COHABIT_SUM_8	(COHABIT_SUM_6 + 7 * a6 + 8 * a7)
#define COHABIT_SUM_10	(COHABIT_SUM_8 + 9 * a8 + 10 * a9)

#define COHABIT_RESULT(tag, sum)	((u64)(tag) << 32 | (u32)(sum))

/* The including file may have something to do around the sleep. */
#ifndef COHABIT_SLEEP
#define COHABIT_SLEEP(ms)	msleep_interruptible(ms)
#endif

/* Only the original waits. */
#ifndef COHABIT_HOLD
#define COHABIT_HOLD(wait)	do { } while (0)
#endif

#define COHABIT_BODY_text(nr, text, tag)			\
{								\
	seq_printf(m, "cohabit: %s\n", text);			\
	return 0;						\
}
#define COHABIT_BODY_errno(nr, text, tag)			\
{								\
	return -(COHABIT_ERRNO_BASE + (tag));			\
}
#define COHABIT_BODY_test(nr, text, tag)			\
{								\
	return COHABIT_RESULT(tag, COHABIT_SUM_##nr);		\
}
#define COHABIT_BODY_sleep(nr, text, tag)			\
{								\
	COHABIT_SLEEP(a0);					\
	return COHABIT_RESULT(tag, COHABIT_SUM_##nr);		\
}
#define COHABIT_BODY_hold(nr, text, tag)			\
{								\
	COHABIT_HOLD(a0);					\
	return COHABIT_RESULT(tag, COHABIT_SUM_##nr);		\
}

/* Counts itself where the caller says, and leaves that out of the sum. */
#define COHABIT_BODY_hot(nr, text, tag)				\
{								\
	if (a0)							\
		++*(u64 *)(unsigned long)a0;			\
	return COHABIT_RESULT(tag, COHABIT_SUM_##nr - a0);	\
}

/* Defines body <prefix><name>, which shows itself as @text or @tag. */
#define COHABIT_DEFINE_BODY(prefix, name, nr, kind, text, tag)	\
static cohabit_opaque COHABIT_RET_##kind			\
prefix##name(COHABIT_ARGS_##name)				\
COHABIT_BODY_##kind(nr, text, tag)

#endif
