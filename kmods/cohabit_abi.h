/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the agent and the modules say to each other. harness/agent/abi.py is
 * the same in Python; tests/unit/test_abi.py compares the two.
 */
#ifndef COHABIT_ABI_H
#define COHABIT_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define COHABIT_ABI_VERSION	1
#define COHABIT_NAME_LEN	64
#define COHABIT_MAX_ARGS	8
#define COHABIT_SLOTS		8

/*
 * Which body ran. A test function returns TAG << 32 | checksum of its
 * arguments; a patched function of vmlinux that returns an int returns
 * -(COHABIT_ERRNO_BASE + TAG); one that writes text writes
 * "cohabit: <body>\n", where <body> is the name behind each tag here.
 */
#define COHABIT_ERRNO_BASE	200
#define COHABIT_TAG_ORIGINAL	1	/* original */
#define COHABIT_TAG_LIVEPATCH_A	2	/* livepatch-a */
#define COHABIT_TAG_LIVEPATCH_B	3	/* livepatch-b */
#define COHABIT_TAG_FMOD_RET_A	4	/* fmod_ret-a */
#define COHABIT_TAG_FMOD_RET_B	5	/* fmod_ret-b */
#define COHABIT_TAG_IPMODIFY	8	/* ipmodify-<slot>: this + slot */

enum cohabit_kind {
	COHABIT_OPS	 = 0,	/* plain ftrace_ops */
	COHABIT_IPMODIFY = 1,	/* ftrace_ops with IPMODIFY that redirects to a body of ours */
	COHABIT_DIRECT	 = 2,	/* direct trampoline */
};

#define COHABIT_F_SAVE_REGS	(1u << 0)	/* COHABIT_OPS: FTRACE_OPS_FL_SAVE_REGS */
#define COHABIT_F_OPS_FUNC	(1u << 1)	/* COHABIT_DIRECT: an ops_func that agrees to share */

/* COHABIT_IOC_ATTACH, COHABIT_IOC_DETACH: the errno of the kernel's call, as it is. */
struct cohabit_attach {
	__u32 kind;
	__u32 slot;
	__u32 flags;
	__u32 pad;
	char func[COHABIT_NAME_LEN];
};

/* COHABIT_IOC_STAT: what slot SLOT of KIND has seen. reset=1 clears it afterwards. */
struct cohabit_stat {
	__u32 kind;
	__u32 slot;
	__u32 reset;
	__u32 nr_args;			/* how many of args[] are known (register arguments) */
	__u64 hits;			/* calls by the caller under test */
	__u64 others;			/* calls by anybody else */
	__u64 args[COHABIT_MAX_ARGS];	/* of the caller's last call */
	__u64 share_self;		/* ops_func calls, by command */
	__u64 share_peer;
	__u64 unshare_peer;
};

/* COHABIT_IOC_INFO */
struct cohabit_info {
	__u32 abi;
	__u32 has_direct;	/* 1 register_ftrace_direct exists for modules on this kernel */
	__u32 has_ops_func;	/* 1 a direct ops can have an ops_func (6.0 and newer) */
	__u32 klp_save_regs;	/* 1 livepatch and IPMODIFY need SAVE_REGS here (no WITH_ARGS) */
};

/* On /dev/cohabit_funcs: calls test function FUNC in the caller's context. */
struct cohabit_call {
	char func[COHABIT_NAME_LEN];
	__u64 args[COHABIT_MAX_ARGS];
	__u64 ret;
};

#define COHABIT_IOC_INFO	_IOR('c', 0x40, struct cohabit_info)
#define COHABIT_IOC_CALLER	_IO('c', 0x41)	/* the caller under test is my thread group */
#define COHABIT_IOC_ATTACH	_IOW('c', 0x42, struct cohabit_attach)
#define COHABIT_IOC_DETACH	_IOW('c', 0x43, struct cohabit_attach)
#define COHABIT_IOC_STAT	_IOWR('c', 0x44, struct cohabit_stat)
#define COHABIT_IOC_CALL	_IOWR('c', 0x45, struct cohabit_call)

#endif
