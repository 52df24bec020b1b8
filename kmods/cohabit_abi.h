/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the agent and the modules say to each other. harness/agent/abi.py is
 * the same in Python; tests/unit/test_abi.py compares the two.
 */
#ifndef COHABIT_ABI_H
#define COHABIT_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define COHABIT_ABI_VERSION	5
#define COHABIT_NAME_LEN	64
#define COHABIT_MAX_ARGS	10
#define COHABIT_SLOTS		8	/* of each kind */
#define COHABIT_MAX_FUNCS	128	/* of one attachment */
#define COHABIT_LANES		128	/* security_cohabit_000 to _127 */
#define COHABIT_LIVEPATCHES	4	/* cohabit_klp_a to _d */
#define COHABIT_FMOD_RETS	40
#define COHABIT_MAX_CALLS	1024	/* of one COHABIT_IOC_CALLS */
#define COHABIT_VENEER		4	/* instructions of one, at most */
#define COHABIT_ALTERNATES	4	/* trampolines of a slot of DIRECT: two, and two in cohabit_far.ko */
#define COHABIT_FAR_ALTERNATE	2	/* the first of those */
#define COHABIT_TAGS		64	/* tags that a hammer can tell: all of them are less */
#define COHABIT_TEXT_BYTES	32	/* of COHABIT_IOC_TEXT: half of them before the call site */
#define COHABIT_HAMMER_STACK	512	/* of the text of a stack */
#define COHABIT_ALLOW_MONOTONIC	63	/* the bit of struct cohabit_allow that is no tag */

/* The first argument of lane n is this + n, whoever calls it. */
#define COHABIT_LANE_ARG	0x1000

/*
 * Which body ran. A test function returns TAG << 32 | checksum of its
 * arguments; a patched function of vmlinux that returns an int returns
 * -(COHABIT_ERRNO_BASE + TAG); one that writes text writes
 * "cohabit: <body>\n", where <body> is the name behind each tag here.
 */
#define COHABIT_ERRNO_BASE	200
#define COHABIT_TAG_ORIGINAL	1	/* original */
#define COHABIT_TAG_LIVEPATCH	2	/* livepatch-<letter>: this + slot */
#define COHABIT_TAG_IPMODIFY	8	/* ipmodify-<slot>: this + slot */
#define COHABIT_TAG_FMOD_RET	16	/* fmod_ret-<slot>: this + slot */

enum cohabit_kind {
	COHABIT_KIND_OPS = 0,		/* plain ftrace_ops */
	COHABIT_KIND_IPMODIFY = 1,	/* ftrace_ops with IPMODIFY that redirects to a body of ours */
	COHABIT_KIND_DIRECT = 2,	/* direct trampoline */
	COHABIT_KIND_KPROBE = 3,
	COHABIT_KIND_KRETPROBE = 4,
	COHABIT_KIND_FPROBE = 5,
};

#define COHABIT_F_SAVE_REGS	(1u << 0)	/* OPS: FTRACE_OPS_FL_SAVE_REGS */
#define COHABIT_F_OPS_FUNC	(1u << 1)	/* DIRECT: an ops_func that agrees to share */
#define COHABIT_F_POST		(1u << 2)	/* KPROBE: a post_handler, too */
#define COHABIT_F_EXIT		(1u << 3)	/* FPROBE: an exit handler, too */
#define COHABIT_F_OPS_REFUSE	(1u << 4)	/* COHABIT_DIRECT: an ops_func that refuses to share: -EXDEV */
#define COHABIT_F_FAR		(1u << 5)	/* DIRECT: begins with alternate 2 */

/*
 * COHABIT_IOC_ATTACH: slot SLOT of KIND on NR functions, with one call of the
 * kernel where it has one; COHABIT_IOC_DETACH: looks at KIND and SLOT only. The
 * errno is the kernel's, as it is; a refused attach leaves nothing behind.
 */
struct cohabit_attach {
	__u32 kind;
	__u32 slot;
	__u32 flags;
	__u32 nr;
	__u64 names;	/* NR times char[COHABIT_NAME_LEN] */
};

/*
 * COHABIT_IOC_MODIFY: the attachment in slot SLOT of DIRECT goes over to its
 * first (0) or its other (1) trampoline, or to the first (2) or the other (3) of
 * those in cohabit_far.ko. The kernel's errno.
 */
struct cohabit_modify {
	__u32 slot;
	__u32 alternate;
};

/*
 * What slot SLOT of KIND has seen of one function. Where the kernel doesn't
 * tell which function it is about, and no lane is told by its first argument,
 * it is counted for the first one: DIRECT, and ops_func calls before 7.0.
 */
struct cohabit_stat {
	__u32 kind;
	__u32 slot;
	__u32 index;			/* in the names of COHABIT_IOC_ATTACH */
	__u32 nr_args;			/* how many of args[] are known (register arguments) */
	__u64 hits;			/* calls by the caller under test */
	__u64 others;			/* calls by anybody else */
	__u64 args[COHABIT_MAX_ARGS];	/* of the caller's last call */
	__u64 ret;			/* and what that returned, if HAS_RET */
	__u64 share_self;		/* ops_func calls, by command */
	__u64 share_peer;
	__u64 unshare_peer;
	__u64 misses;			/* calls that the kernel says it did not tell a KPROBE, KRETPROBE or FPROBE (that one: of all its functions, at index 0) */
	__u64 through[COHABIT_ALTERNATES];	/* DIRECT: calls (by anybody) through each of its trampolines */
	__u32 via;			/* DIRECT: N of cohabit_direct_tramp_N, or 16 + N of cohabit_far_tramp_N, of the last call */
	__u32 has_ret;
};

/*
 * COHABIT_IOC_STATS: each function of each attached slot, by kind, slot and
 * index. reset=1 clears it afterwards, but for the ops_func calls. E2BIG: no
 * room, NR is how much is wanted, and nothing was cleared.
 */
struct cohabit_stats {
	__u64 stats;	/* NR times struct cohabit_stat */
	__u32 nr;	/* in: room; out: how many there are */
	__u32 reset;
};

/* COHABIT_IOC_ADDRESS: where kallsyms says that FUNC is. ESRCH: nowhere. */
struct cohabit_address {
	char func[COHABIT_NAME_LEN];
	__u64 address;
};

/*
 * COHABIT_IOC_SITE (arm64): the call site of FUNC, and what its branch leads to. Every
 * address is 0 where there is none. ESRCH: no such function, or ftrace has none.
 */
struct cohabit_site {
	char func[COHABIT_NAME_LEN];
	__u64 address;		/* of the instruction that ftrace rewrites */
	__u64 caller;		/* ftrace_caller */
	__u64 trampoline;	/* of the direct call that is registered for FUNC */
	__u64 ops;		/* the ftrace_ops that is stored before FUNC */
	__u64 direct_call;	/* what that ops would have called directly */
	__u32 instruction;
	__u32 has_ops;		/* 1 this kernel stores one (CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS) */
	__u32 veneer[COHABIT_VENEER];	/* instructions that a BL leads to */
};

enum cohabit_misuse_what {
	COHABIT_MISUSE_DIRECT_UNREGISTER_UNKNOWN = 0,
	COHABIT_MISUSE_DIRECT_MODIFY_UNKNOWN	 = 1,
	COHABIT_MISUSE_DIRECT_REGISTER_TWICE	 = 2,
	COHABIT_MISUSE_DIRECT_NO_FILTER		 = 3,
	COHABIT_MISUSE_IPMODIFY_NO_FILTER	 = 4,
	COHABIT_MISUSE_IPMODIFY_NOTRACE		 = 5,
	COHABIT_MISUSE_OPS_REGISTER_TWICE	 = 6,
	COHABIT_MISUSE_IPMODIFY_AND_DIRECT	 = 7,
	COHABIT_MISUSE_KILL_FTRACE		 = 8,
};

/* COHABIT_IOC_MISUSE: makes a call that no user should make; the errno that it gave. */
struct cohabit_misuse {
	__u32 what;
	__u32 pad;
	char func[COHABIT_NAME_LEN];
};

/* COHABIT_IOC_INFO */
struct cohabit_info {
	__u32 abi;
	__u32 has_direct;	/* 1 register_ftrace_direct exists for modules on this kernel */
	__u32 has_ops_func;	/* 1 a direct ops can have an ops_func (6.0 and newer) */
	__u32 klp_save_regs;	/* 1 livepatch and IPMODIFY need SAVE_REGS here (no WITH_ARGS) */
	__u32 has_fprobe;	/* 1 there are fprobes (CONFIG_FPROBE, 5.18 and newer) */
	__u32 has_modify;	/* 1 there is COHABIT_IOC_MODIFY */
	__u32 kprobes_on_ftrace;	/* 1 a kprobe on a function's entry uses ftrace */
	__u32 pad;
};

enum cohabit_context {
	COHABIT_CONTEXT_PROCESS = 0,
	COHABIT_CONTEXT_SOFTIRQ = 1,	/* on top of the calling task: it is current */
};

/* A call of test function FUNC. */
struct cohabit_call {
	char func[COHABIT_NAME_LEN];
	__u64 args[COHABIT_MAX_ARGS];
	__u64 ret;
	__u32 context;
	__u32 pad;
};

/* COHABIT_IOC_CALLS: NR calls, one after the other. ESRCH: one is unknown, none was called. */
struct cohabit_calls {
	__u64 calls;	/* NR times struct cohabit_call */
	__u32 nr;
	__u32 pad;
};

/*
 * Hammers: one kernel thread on each online CPU calls a function over and over and
 * judges each call by what it showed. COHABIT_IOC_HAMMER starts them, for each
 * function once: EALREADY. They go on when the device is closed, and hold the
 * module; COHABIT_IOC_HAMMERED with STOP ends them.
 */
enum cohabit_hammer_how {
	COHABIT_HAMMER_CALL = 0,	/* cohabit_hot, by its address; PATH is empty */
	COHABIT_HAMMER_READ = 1,	/* what shows FUNC is the text of PATH: a file for each thread, read from its begin */
};

/* Hammers that are wrong, to be found out. */
enum cohabit_hammer_fault {
	COHABIT_FAULT_NONE = 0,
	COHABIT_FAULT_BODY = 1,		/* now and then they call another body, one that is not allowed */
	COHABIT_FAULT_COUNTER = 2,	/* now and then they forget to count what a call showed */
	COHABIT_FAULT_STALL = 3,	/* the one on the last CPU makes no call */
};

/*
 * What can be wrong with a call; of several it is the first in the order NONE,
 * RESULT, SEVERAL, ARGS, BODY, BACK.
 */
enum cohabit_wrong {
	COHABIT_WRONG_BODY = 0,		/* a body that is not allowed */
	COHABIT_WRONG_BACK = 1,		/* since the last COHABIT_IOC_ALLOW, with MONOTONIC, the thread saw this body, then another, now this */
	COHABIT_WRONG_ARGS = 2,		/* the body got other arguments: the checksum differs */
	COHABIT_WRONG_NONE = 3,		/* no body ran: its counter stood still, or there was nothing to read */
	COHABIT_WRONG_SEVERAL = 4,	/* more than one body ran */
	COHABIT_WRONG_RESULT = 5,	/* anything else: no tag, a text that no body writes, an errno */
};
#define COHABIT_WRONGS	6

/* COHABIT_IOC_HAMMER. ENXIO: CALL, and no such function is called like that. */
struct cohabit_hammer {
	char func[COHABIT_NAME_LEN];
	char path[COHABIT_NAME_LEN];
	__u64 allowed;		/* as in struct cohabit_allow */
	__u32 how;
	__u32 fault;
};

/*
 * COHABIT_IOC_ALLOW: from now on the bodies of these tags (bit N: tag N) are right
 * for FUNC. Returns when each of its threads has begun a call after that, and so has
 * ended each that is judged by what was allowed before; ETIMEDOUT if one has not
 * within 10 s. ESRCH: FUNC is not being hammered.
 */
struct cohabit_allow {
	char func[COHABIT_NAME_LEN];
	__u64 allowed;
};

/*
 * What one thread has seen. When it is not running: calls = the sum of bodies +
 * wrong[NONE] + wrong[RESULT], or a count was lost. first_...: of the first wrong
 * call, if there is one.
 */
struct cohabit_hammered {
	char func[COHABIT_NAME_LEN];
	__u32 cpu;
	__u32 first_kind;
	__u64 calls;
	__u64 bodies[COHABIT_TAGS];	/* by the tag that a call showed, wrong or not */
	__u64 wrong[COHABIT_WRONGS];
	__u64 first_call;		/* its number, from 1 on */
	__u64 first_ns;			/* of CLOCK_MONOTONIC */
	__u64 first_result;		/* CALL: what was returned; READ: tag << 32 | length or errno of the read (u32) */
	__u32 first_cpu;
	__u32 pad;
	char first_stack[COHABIT_HAMMER_STACK];	/* one function a line */
};

/*
 * COHABIT_IOC_HAMMERED: all threads, by function and CPU. stop=1 stops them first, and
 * they are gone afterwards. E2BIG: as COHABIT_IOC_STATS, and none was stopped.
 */
struct cohabit_hammereds {
	__u64 stats;	/* NR times struct cohabit_hammered */
	__u32 nr;	/* in: room; out: how many there are */
	__u32 stop;
};

/*
 * COHABIT_IOC_WINDOW (x86-64): ON: looks at each instruction that the kernel patches
 * while its breakpoint is in place; where that is FUNC's call site, waits DELAY_US
 * and counts the calls by hammers of FUNC on other CPUs meanwhile. Begins at zero.
 * EALREADY, ENOENT: it is on, off, already.
 */
struct cohabit_window {
	char func[COHABIT_NAME_LEN];
	__u32 delay_us;
	__u32 on;
};

/* COHABIT_IOC_WINDOWED: of the last window that was on. */
struct cohabit_windowed {
	__u64 pokes;		/* instructions patched, of anything */
	__u64 at_site;		/* of FUNC's call site */
	__u64 windows;		/* of those it waited in */
	__u64 inside;		/* calls that began and ended during the waits */
	__u64 most;		/* of one window */
	__u32 delay_us;
	__u32 pad;
};

/* COHABIT_IOC_TEXT: what stands around FUNC's call site now. ESRCH: it has none. */
struct cohabit_text {
	char func[COHABIT_NAME_LEN];
	__u8 bytes[COHABIT_TEXT_BYTES];	/* the second half begins at the address that ftrace knows */
};

/* On /dev/cohabit */
#define COHABIT_IOC_INFO	_IOR('c', 0x40, struct cohabit_info)
#define COHABIT_IOC_CALLER	_IO('c', 0x41)	/* the caller under test is my thread group */
#define COHABIT_IOC_ATTACH	_IOW('c', 0x42, struct cohabit_attach)
#define COHABIT_IOC_DETACH	_IOW('c', 0x43, struct cohabit_attach)
#define COHABIT_IOC_STATS	_IOWR('c', 0x44, struct cohabit_stats)
#define COHABIT_IOC_MODIFY	_IOW('c', 0x46, struct cohabit_modify)
#define COHABIT_IOC_ADDRESS	_IOWR('c', 0x47, struct cohabit_address)
#define COHABIT_IOC_SITE	_IOWR('c', 0x4a, struct cohabit_site)
#define COHABIT_IOC_KEEP_CLEAR	_IO('c', 0x4b)	/* (arm64) takes all free addresses in reach of ours and the kernel's code */
#define COHABIT_IOC_MISUSE	_IOW('c', 0x4c, struct cohabit_misuse)
#define COHABIT_IOC_RESTORE	_IO('c', 0x4d)	/* gives them back */
#define COHABIT_IOC_HAMMER	_IOW('c', 0x4e, struct cohabit_hammer)
#define COHABIT_IOC_ALLOW	_IOW('c', 0x4f, struct cohabit_allow)
#define COHABIT_IOC_HAMMERED	_IOWR('c', 0x50, struct cohabit_hammereds)
#define COHABIT_IOC_WINDOW	_IOW('c', 0x51, struct cohabit_window)
#define COHABIT_IOC_WINDOWED	_IOR('c', 0x52, struct cohabit_windowed)
#define COHABIT_IOC_TEXT	_IOWR('c', 0x53, struct cohabit_text)

/* On /dev/cohabit_funcs */
#define COHABIT_IOC_CALLS	_IOW('c', 0x45, struct cohabit_calls)
#define COHABIT_IOC_RELEASE	_IO('c', 0x48)	/* lets all calls of cohabit_hold go */
#define COHABIT_IOC_HELD	_IOR('c', 0x49, __u32)	/* how many wait in there */

#endif
