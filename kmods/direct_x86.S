/* SPDX-License-Identifier: GPL-2.0-only */
/* The direct trampolines of x86-64, two a slot. See direct.c. */
#include <linux/linkage.h>
#include <linux/version.h>
#include <asm/asm-offsets.h>
#include <asm/nospec-branch.h>

/* 5.18: landing pads for indirect branches. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 18, 0)
#define ENDBR
#endif

/*
 * 6.2: the call to a trampoline is patched in, so nobody counted it; its return
 * is counted.
 */
.macro ACCOUNT_CALL
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 2, 0)
	CALL_DEPTH_ACCOUNT
#endif
.endm

/*
 * Entered from the traced function's first instruction, or from ftrace's own
 * trampoline: the address on the stack is where to go on. The argument
 * registers lie on the stack in order, as cohabit_direct_hit() wants them; rax
 * is kept for functions with a variable number of arguments.
 */
.macro DIRECT_TRAMP nr:req
	ENDBR
	ACCOUNT_CALL
	pushq	%rbp
	movq	%rsp, %rbp
	subq	$(7 * 8), %rsp
	movq	%rdi, (0 * 8)(%rsp)
	movq	%rsi, (1 * 8)(%rsp)
	movq	%rdx, (2 * 8)(%rsp)
	movq	%rcx, (3 * 8)(%rsp)
	movq	%r8, (4 * 8)(%rsp)
	movq	%r9, (5 * 8)(%rsp)
	movq	%rax, (6 * 8)(%rsp)
	movl	$\nr, %edi
	movq	%rsp, %rsi
	call	cohabit_direct_hit
	movq	(0 * 8)(%rsp), %rdi
	movq	(1 * 8)(%rsp), %rsi
	movq	(2 * 8)(%rsp), %rdx
	movq	(3 * 8)(%rsp), %rcx
	movq	(4 * 8)(%rsp), %r8
	movq	(5 * 8)(%rsp), %r9
	movq	(6 * 8)(%rsp), %rax
	leave
	RET
.endm

/*
 * SYM_START and not SYM_FUNC_START: the latter brought its own ENDBR from 5.18
 * to 6.14 only.
 */
#define TRAMP(nr)						\
	SYM_START(cohabit_direct_tramp_##nr, SYM_L_GLOBAL, .balign 16) ; \
	DIRECT_TRAMP nr ;					\
	SYM_FUNC_END(cohabit_direct_tramp_##nr)

	.text
TRAMP(0)
TRAMP(1)
TRAMP(2)
TRAMP(3)
TRAMP(4)
TRAMP(5)
TRAMP(6)
TRAMP(7)
TRAMP(8)
TRAMP(9)
TRAMP(10)
TRAMP(11)
TRAMP(12)
TRAMP(13)
TRAMP(14)
TRAMP(15)
