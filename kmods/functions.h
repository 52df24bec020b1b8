/* SPDX-License-Identifier: GPL-2.0-only */
/* What the parts of cohabit_funcs.ko know of each other. */
#ifndef COHABIT_FUNCTIONS_H
#define COHABIT_FUNCTIONS_H

#include <linux/types.h>

/* How a body behaves; the words of the table in bodies.h. */
enum cohabit_behaviour {
	COHABIT_test,
	COHABIT_sleep,
	COHABIT_hold,
	COHABIT_hot,
};

/* A test function, and how to call it by its address. */
struct cohabit_test_function {
	const char *name;
	void *address;
	u64 (*call)(void *address, const u64 *args);
	enum cohabit_behaviour behaviour;
};

const struct cohabit_test_function *cohabit_find_test_function(const char *name);

void cohabit_wait_for_release(u64 wait);
void cohabit_release(void);
u32 cohabit_held(void);

#endif
