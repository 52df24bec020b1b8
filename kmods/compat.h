/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Everything that differs between the kernel releases and architectures these
 * modules are built for, and nothing else. Each #if names the release and the
 * reason. Tested range: 5.10 to 7.3 on x86-64, 6.12 to 7.3 on arm64.
 */
#ifndef COHABIT_COMPAT_H
#define COHABIT_COMPAT_H

#include <linux/ftrace.h>
#include <linux/irqflags.h>
#include <linux/kprobes.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/version.h>

#ifdef CONFIG_X86_KERNEL_IBT
#include <asm/cpufeature.h>
#include <asm/msr.h>
#endif

/*
 * A function that is called where its name says and nowhere else: not inlined,
 * not cloned, and nothing learnt from its body by its callers. noipa is gcc's;
 * clang has no inter-procedural cloning to switch off.
 */
#if __has_attribute(__noipa__)
#define cohabit_opaque	noinline __noclone __attribute__((__noipa__))
#else
#define cohabit_opaque	noinline
#endif

/* 5.13 brought __nocfi, for callers of functions whose CFI data may be gone. */
#ifndef __nocfi
#define __nocfi
#endif

/*
 * 5.11 (d19ad0775dcd): callbacks get struct ftrace_regs, before that struct
 * pt_regs, which is NULL unless the ops has SAVE_REGS.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
#define cohabit_ftrace_regs	pt_regs
#else
#define cohabit_ftrace_regs	ftrace_regs
#endif

/*
 * 5.11 (a25d036d939a) turned the meaning of the recursion flag round: up to
 * 5.10 a callback that guards itself says so, later it just doesn't ask for
 * the guard.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
#define COHABIT_OPS_FL_UNGUARDED	FTRACE_OPS_FL_RECURSION_SAFE
#else
#define COHABIT_OPS_FL_UNGUARDED	0
#endif

/*
 * 5.11 (2860cd8a2353): with DYNAMIC_FTRACE_WITH_ARGS livepatch gets by without
 * SAVE_REGS, and every callback sees the arguments. See klp_patch_func().
 */
#ifdef CONFIG_HAVE_DYNAMIC_FTRACE_WITH_ARGS
#define COHABIT_KLP_SAVE_REGS		0
#define COHABIT_OPS_FL_KLP_REGS		0
#else
#define COHABIT_KLP_SAVE_REGS		1
#define COHABIT_OPS_FL_KLP_REGS		FTRACE_OPS_FL_SAVE_REGS
#endif

/*
 * A busy kernel thread lets a livepatch's transition have it; called beside a
 * cond_resched(), which is all that it takes from 6.4 (e3ff7c609f39) to 6.15. Then
 * schedule() has it, where the thread could be frozen. Before, it must not be running
 * when the kernel looks, once a second.
 */
static inline void cohabit_let_livepatch(void)
{
#ifdef CONFIG_LIVEPATCH
	if (likely(!test_thread_flag(TIF_PATCH_PENDING)))
		return;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	schedule_timeout_idle(1);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
	set_current_state(TASK_IDLE | TASK_FREEZABLE);
	schedule_timeout(1);
#endif
#endif
}

/*
 * What register_ftrace_direct() adds where there is SAVE_REGS at all; arm64 has
 * none, and an ops that asks for it is refused for that alone.
 */
#ifdef CONFIG_DYNAMIC_FTRACE_WITH_REGS
#define COHABIT_OPS_FL_DIRECT_REGS	FTRACE_OPS_FL_SAVE_REGS
#else
#define COHABIT_OPS_FL_DIRECT_REGS	0
#endif

/* Does @ops's callback get the arguments of the traced function? */
static __always_inline bool cohabit_ops_has_args(const struct ftrace_ops *ops)
{
	return !COHABIT_KLP_SAVE_REGS || (ops->flags & FTRACE_OPS_FL_SAVE_REGS);
}

/*
 * 6.2 (94d095ffa0e1, 0ef86097f127) brought ftrace_regs_get_argument() and
 * renamed ftrace_instruction_pointer_set(); since 6.13 ftrace_regs is opaque.
 */
static __always_inline u64
cohabit_argument(struct cohabit_ftrace_regs *fregs, unsigned int n)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
	return regs_get_kernel_argument(fregs, n);
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
	return regs_get_kernel_argument(&fregs->regs, n);
#else
	return ftrace_regs_get_argument(fregs, n);
#endif
}

static __always_inline void
cohabit_set_ip(struct cohabit_ftrace_regs *fregs, unsigned long ip)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
	instruction_pointer_set(fregs, ip);
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 2, 0)
	ftrace_instruction_pointer_set(fregs, ip);
#else
	ftrace_regs_set_instruction_pointer(fregs, ip);
#endif
}

/*
 * Makes the functions at @ips the ones that @ops is for. 5.18 (4f554e955614)
 * brought ftrace_set_filter_ips().
 */
static inline int cohabit_set_filter(struct ftrace_ops *ops, unsigned long *ips, unsigned int nr)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 18, 0)
	unsigned int i;
	int ret = 0;

	for (i = 0; i < nr && !ret; i++)
		ret = ftrace_set_filter_ip(ops, ips[i], 0, !i);
	return ret;
#else
	return ftrace_set_filter_ips(ops, ips, nr, 0, 1);
#endif
}

/*
 * Frees what cohabit_set_filter() allocated for @ops. 6.2 (8be9fbd5345d, also
 * in later 6.1) exported ftrace_free_filter(); a filter that is reset to
 * nothing holds no memory either.
 */
static inline void cohabit_free_filter(struct ftrace_ops *ops)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
	ftrace_set_filter(ops, NULL, 0, 1);
#else
	ftrace_free_filter(ops);
#endif
}

/*
 * Direct trampolines need the kernel's support and an assembly part of ours.
 * 6.4 (2aa6ac03516d): arm64, too; on a kernel configured without them the calls
 * are there as well and say ENODEV themselves.
 */
#if defined(CONFIG_X86_64) && defined(CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS)
#define COHABIT_HAS_DIRECT	1
#elif defined(CONFIG_ARM64) && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)
#define COHABIT_HAS_DIRECT	1
#else
#define COHABIT_HAS_DIRECT	0
#endif

/* 5.16 (f64dd4627ec6): direct calls can be registered through an ops. */
#if COHABIT_HAS_DIRECT && LINUX_VERSION_CODE >= KERNEL_VERSION(5, 16, 0)
#define COHABIT_HAS_DIRECT_OPS	1
#else
#define COHABIT_HAS_DIRECT_OPS	0
#endif

/* 6.0 (53cd885bc5c3): a direct ops may agree to share with IPMODIFY. */
#if COHABIT_HAS_DIRECT && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 0, 0)
#define COHABIT_HAS_OPS_FUNC	1
#else
#define COHABIT_HAS_OPS_FUNC	0
#endif

/* In no release, but in a series (tests/series/share-ipmodify-v2). */
#ifdef FTRACE_OPS_FL_SHARE_IPMODIFY
#define COHABIT_OPS_FL_SHARE	FTRACE_OPS_FL_SHARE_IPMODIFY
#else
#define COHABIT_OPS_FL_SHARE	0
#endif

/*
 * 7.0 (956747efd82a): the callback is told the function it is asked about.
 * COHABIT_OPS_FUNC_IP() is no function's address where it isn't.
 */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 0, 0)
#define COHABIT_OPS_FUNC(name, ops, ip, cmd) \
	int name(struct ftrace_ops *ops, enum ftrace_ops_cmd cmd)
#define COHABIT_OPS_FUNC_IP(ip)	0UL
#else
#define COHABIT_OPS_FUNC(name, ops, ip, cmd) \
	int name(struct ftrace_ops *ops, unsigned long ip, enum ftrace_ops_cmd cmd)
#define COHABIT_OPS_FUNC_IP(ip)	(ip)
#endif

/*
 * cohabit_direct_register(), _exchange(), _unregister(): trampoline @addr on
 * the @nr functions at @ips, through @ops where the kernel takes one. What they
 * return is the kernel's; a failed registration leaves nothing behind.
 *
 * 5.16 (f64dd4627ec6) added the _multi calls, which take an ops; 6.4
 * (da8bdfbd4223) dropped the old ones, for a single function each, and gave
 * their names to the new.
 */
#if COHABIT_HAS_DIRECT
#if !COHABIT_HAS_DIRECT_OPS
static inline int cohabit_direct_register(struct ftrace_ops *ops, unsigned long *ips,
					  unsigned int nr, unsigned long addr)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < nr; i++) {
		ret = register_ftrace_direct(ips[i], addr);
		if (ret)
			break;
	}
	while (ret && i--)
		unregister_ftrace_direct(ips[i], addr);
	return ret;
}

static inline int cohabit_direct_exchange(struct ftrace_ops *ops, unsigned long *ips,
					  unsigned int nr, unsigned long old, unsigned long addr)
{
	unsigned int i;
	int ret = 0;

	for (i = 0; i < nr; i++) {
		ret = modify_ftrace_direct(ips[i], old, addr);
		if (ret)
			break;
	}
	while (ret && i--)
		modify_ftrace_direct(ips[i], addr, old);
	return ret;
}

static inline int cohabit_direct_unregister(struct ftrace_ops *ops, unsigned long *ips,
					    unsigned int nr, unsigned long addr)
{
	unsigned int i;
	int ret = 0, error;

	for (i = 0; i < nr; i++) {
		error = unregister_ftrace_direct(ips[i], addr);
		if (!ret)
			ret = error;
	}
	return ret;
}
#else
static inline int cohabit_direct_only_register(struct ftrace_ops *ops, unsigned long addr)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	return register_ftrace_direct_multi(ops, addr);
#else
	return register_ftrace_direct(ops, addr);
#endif
}

static inline int cohabit_direct_register(struct ftrace_ops *ops, unsigned long *ips,
					  unsigned int nr, unsigned long addr)
{
	int ret = cohabit_set_filter(ops, ips, nr);

	if (!ret)
		ret = cohabit_direct_only_register(ops, addr);
	if (ret)
		cohabit_free_filter(ops);
	return ret;
}

static inline int cohabit_direct_exchange(struct ftrace_ops *ops, unsigned long *ips,
					  unsigned int nr, unsigned long old, unsigned long addr)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	return modify_ftrace_direct_multi(ops, addr);
#else
	return modify_ftrace_direct(ops, addr);
#endif
}

static inline int cohabit_direct_unregister(struct ftrace_ops *ops, unsigned long *ips,
					    unsigned int nr, unsigned long addr)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
	int ret = unregister_ftrace_direct_multi(ops, addr);

	if (!ret)
		cohabit_free_filter(ops);
	return ret;
#else
	return unregister_ftrace_direct(ops, addr, true);
#endif
}
#endif
#endif /* COHABIT_HAS_DIRECT */

/*
 * 5.11 (d741bf41d7c7) took the probe out of a kretprobe's instance. NULL: it is
 * being unregistered.
 */
static __always_inline struct kretprobe *cohabit_kretprobe_of(struct kretprobe_instance *ri)
{
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
	return ri->rp;
#else
	return get_kretprobe(ri);
#endif
}

/* 5.18 (cad9931f64dc): fprobes. */
#if defined(CONFIG_FPROBE) && LINUX_VERSION_CODE >= KERNEL_VERSION(5, 18, 0)
#include <linux/fprobe.h>
#define COHABIT_HAS_FPROBE	1
#else
#define COHABIT_HAS_FPROBE	0
#endif

/*
 * COHABIT_FPROBE_ENTRY(), _EXIT(): the heads of an fprobe's handlers.
 * 6.4 (76d0de5729c0, also in later 6.1): the handlers get data of the call;
 * 6.4 (39d954200bf6): the entry handler says whether the exit handler is to run;
 * 6.5 (cb16330d1274): they get the return address;
 * 6.14 (46bc082388c5, 762abbc0d09f): ftrace_regs, before that pt_regs.
 */
#if COHABIT_HAS_FPROBE
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 1, 0)
#define COHABIT_FPROBE_ARGS(fp, ip, regs) \
	struct fprobe *fp, unsigned long ip, struct pt_regs *regs
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 5, 0)
#define COHABIT_FPROBE_ARGS(fp, ip, regs) \
	struct fprobe *fp, unsigned long ip, struct pt_regs *regs, void *data
#elif LINUX_VERSION_CODE < KERNEL_VERSION(6, 14, 0)
#define COHABIT_FPROBE_ARGS(fp, ip, regs) \
	struct fprobe *fp, unsigned long ip, unsigned long ret_ip, struct pt_regs *regs, void *data
#else
#define COHABIT_FPROBE_ARGS(fp, ip, regs) \
	struct fprobe *fp, unsigned long ip, unsigned long ret_ip, struct ftrace_regs *regs, \
	void *data
#endif

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 4, 0)
#define COHABIT_FPROBE_ENTRY(name, fp, ip, regs) \
	void notrace name(COHABIT_FPROBE_ARGS(fp, ip, regs))
#define COHABIT_FPROBE_GO_ON
#else
#define COHABIT_FPROBE_ENTRY(name, fp, ip, regs) \
	int notrace name(COHABIT_FPROBE_ARGS(fp, ip, regs))
#define COHABIT_FPROBE_GO_ON	0
#endif
#define COHABIT_FPROBE_EXIT(name, fp, ip, regs) \
	void notrace name(COHABIT_FPROBE_ARGS(fp, ip, regs))

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 14, 0)
#define cohabit_fprobe_argument	regs_get_kernel_argument
#define cohabit_fprobe_result	regs_return_value
#else
#define cohabit_fprobe_argument	ftrace_regs_get_argument
#define cohabit_fprobe_result	ftrace_regs_get_return_value
#endif

/*
 * How many calls under an exit handler can be on their way, at least. 6.4
 * (59a7a2985568, also in later 6.1) made it a field; since 6.14 (4346ba160409)
 * there is no limit.
 */
static inline void cohabit_fprobe_set_maxactive(struct fprobe *fp, unsigned int nr)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 1, 0) && \
	LINUX_VERSION_CODE < KERNEL_VERSION(6, 14, 0)
	fp->nr_maxactive = nr;
#endif
}
#endif /* COHABIT_HAS_FPROBE */

/*
 * Indirect branch tracking, 5.18: functions whose address the kernel never
 * takes lose their landing pad at boot, so calling one by its address faults.
 * Between these two, with interrupts off, this CPU doesn't look. 6.16 renamed
 * rdmsrl() and wrmsrl().
 */
struct cohabit_ibt {
	unsigned long flags;
	u64 cet;
};

#ifdef CONFIG_X86_KERNEL_IBT
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 16, 0)
#define cohabit_rdmsr	rdmsrl
#define cohabit_wrmsr	wrmsrl
#else
#define cohabit_rdmsr	rdmsrq
#define cohabit_wrmsr	wrmsrq
#endif

static inline void cohabit_ibt_off(struct cohabit_ibt *ibt)
{
	if (!boot_cpu_has(X86_FEATURE_IBT))
		return;
	local_irq_save(ibt->flags);
	cohabit_rdmsr(MSR_IA32_S_CET, ibt->cet);
	cohabit_wrmsr(MSR_IA32_S_CET, ibt->cet & ~CET_ENDBR_EN);
}

static inline void cohabit_ibt_restore(const struct cohabit_ibt *ibt)
{
	if (!boot_cpu_has(X86_FEATURE_IBT))
		return;
	cohabit_wrmsr(MSR_IA32_S_CET, ibt->cet);
	local_irq_restore(ibt->flags);
}
#else
static inline void cohabit_ibt_off(struct cohabit_ibt *ibt)
{
}

static inline void cohabit_ibt_restore(const struct cohabit_ibt *ibt)
{
}
#endif

#endif
