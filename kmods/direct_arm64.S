/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The direct trampolines of arm64, two a slot; included by far_arm64.S, which makes
 * the same once more. See direct.c.
 */
#include <linux/linkage.h>
#include <linux/version.h>

#ifndef COHABIT_TRAMP
#define COHABIT_TRAMP(nr)	cohabit_direct_tramp_##nr
#define COHABIT_TRAMP_NUMBER(nr)	nr
#endif

/* As in compat.h. */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 4, 0)

/*
 * Entered by the traced function's BL, or by a BR X17 of ftrace's own
 * trampoline: x30 is where to go on in the traced function and x9 where that
 * returns to (arch/arm64/kernel/entry-ftrace.S). Live are x0 to x8, x18 and
 * x19 to x30; what is called here keeps all of these but x0 to x8 and x30.
 *
 * The hint is BTI C, which takes both ways in; assemblers for older processors
 * don't know it by name. Two frame records: the traced function has made none
 * yet, so its caller would be missing from stack traces. The argument registers
 * lie on the stack in order, as cohabit_direct_hit() wants them.
 */
.macro DIRECT_TRAMP nr:req
	hint	#34
	stp	x29, x9, [sp, #-16]!
	mov	x29, sp
	stp	x29, x30, [sp, #-96]!
	mov	x29, sp
	stp	x0, x1, [sp, #16]
	stp	x2, x3, [sp, #32]
	stp	x4, x5, [sp, #48]
	stp	x6, x7, [sp, #64]
	str	x8, [sp, #80]
	mov	w0, #(\nr)
	add	x1, sp, #16
	bl	cohabit_direct_hit
	ldp	x0, x1, [sp, #16]
	ldp	x2, x3, [sp, #32]
	ldp	x4, x5, [sp, #48]
	ldp	x6, x7, [sp, #64]
	ldr	x8, [sp, #80]
	ldp	x29, x10, [sp], #96
	ldp	x29, x30, [sp], #16
	ret	x10
.endm

/* SYM_START and not SYM_FUNC_START: the latter brings a landing pad of its own. */
#define TRAMP(nr)						\
	SYM_START(COHABIT_TRAMP(nr), SYM_L_GLOBAL, .balign 16) ;	\
	DIRECT_TRAMP COHABIT_TRAMP_NUMBER(nr) ;			\
	SYM_FUNC_END(COHABIT_TRAMP(nr))

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

#endif
