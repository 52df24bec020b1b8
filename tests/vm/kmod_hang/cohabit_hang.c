// SPDX-License-Identifier: GPL-2.0-only
/* Loading this ends the kernel's work: every CPU spins with interrupts off. */
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/processor.h>
#include <linux/smp.h>

static noinline void cohabit_spin(void *unused)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
}

static int __init cohabit_hang_init(void)
{
	/* The others first: this one does not come back. */
	smp_call_function(cohabit_spin, NULL, 0);
	cohabit_spin(NULL);
	return 0;
}
module_init(cohabit_hang_init);

MODULE_DESCRIPTION("hangs every CPU");
MODULE_LICENSE("GPL");
