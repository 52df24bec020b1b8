// SPDX-License-Identifier: GPL-2.0-only
/*
 * Keeps addresses clear (arm64): for as long as it lasts, nothing is allocated in
 * a BL's reach of the kernel's code or of our modules', so that a module that is
 * loaded meanwhile is far from all of them
 * (arch/arm64/mm/init.c:execmem_arch_setup()). Addresses only: no memory.
 */
#include <linux/gfp.h>
#include <linux/kernel.h>
#include <linux/numa.h>
#include <linux/sizes.h>
#include <linux/vmalloc.h>

#include "cohabit.h"

#ifdef CONFIG_ARM64

/* A BL's reach, and room for a module around the address that stands for it. */
#define REACH	(SZ_128M + SZ_4M)

#define MAX_AREAS	512

typedef struct vm_struct *(*get_area_t)(unsigned long size, unsigned long align,
					unsigned long shift, unsigned long flags,
					unsigned long start, unsigned long end, int node,
					gfp_t gfp, const void *caller);

static struct vm_struct *areas[MAX_AREAS];
static unsigned int nr_areas;

/* Takes what is free from @start to @end; the largest pieces first. */
static int __nocfi take(get_area_t get_area, unsigned long start, unsigned long end)
{
	unsigned long size = roundup_pow_of_two(end - start);
	struct vm_struct *area;

	while (size >= PAGE_SIZE) {
		if (nr_areas == MAX_AREAS)
			return -ENOSPC;
		area = get_area(size, PAGE_SIZE, PAGE_SHIFT, VM_ALLOC | VM_NO_GUARD, start, end,
				NUMA_NO_NODE, GFP_KERNEL | __GFP_NOWARN,
				__builtin_return_address(0));
		if (area)
			areas[nr_areas++] = area;
		else
			size /= 2;
	}
	return 0;
}

/* COHABIT_IOC_KEEP_CLEAR; under cohabit_lock. */
long cohabit_keep_clear(void)
{
	/* Not exported, and before 7.2 static; it is the one that needn't warn. */
	get_area_t get_area = (get_area_t)cohabit_lookup("__get_vm_area_node");
	const char *const borders[][2] = {
		{ "_stext", "_etext" },
		{ "cohabit_keep_clear", "cohabit_keep_clear" },
		{ "cohabit_f0", "cohabit_f0" },
	};
	unsigned long first, last;
	unsigned int i;
	int ret = 0;

	if (!get_area)
		return -EOPNOTSUPP;
	for (i = 0; i < ARRAY_SIZE(borders) && !ret; i++) {
		first = cohabit_lookup(borders[i][0]);
		last = cohabit_lookup(borders[i][1]);
		if (first && last)
			ret = take(get_area, ALIGN_DOWN(first - REACH, PAGE_SIZE),
				   ALIGN(last + REACH, PAGE_SIZE));
	}
	if (ret)
		cohabit_restore();
	return ret;
}

/* COHABIT_IOC_RESTORE; under cohabit_lock, or when nobody is there any more. */
void cohabit_restore(void)
{
	while (nr_areas)
		free_vm_area(areas[--nr_areas]);
}

#else

long cohabit_keep_clear(void)
{
	return -EOPNOTSUPP;
}

void cohabit_restore(void)
{
}

#endif
