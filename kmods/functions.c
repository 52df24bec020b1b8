// SPDX-License-Identifier: GPL-2.0-only
/* The functions to be traced and patched. */
#include <linux/export.h>
#include <linux/kernel.h>
#include <linux/string.h>

#include "functions.h"

#define COHABIT_HOLD(wait)	cohabit_wait_for_release(wait)

#include "bodies.h"

#define TEST_FUNCTION(name, nr, object, kind)				\
	cohabit_opaque u64 name(COHABIT_ARGS_##name);			\
	cohabit_opaque u64 name(COHABIT_ARGS_##name)			\
	COHABIT_BODY_##kind(nr, "original", COHABIT_TAG_ORIGINAL)

#define LANE(number)							\
	cohabit_opaque u64 security_cohabit_##number(COHABIT_ARGS_lane); \
	cohabit_opaque u64 security_cohabit_##number(COHABIT_ARGS_lane)	\
	COHABIT_BODY_test(6, "original", COHABIT_TAG_ORIGINAL)

COHABIT_TEST_FUNCTIONS(TEST_FUNCTION)
COHABIT_ALL_LANES(LANE)

/* For cohabit.ko's hammers, which hold this module by it. */
EXPORT_SYMBOL_GPL(cohabit_hot);

#define TYPE_0	void
#define TYPE_1	u64
#define TYPE_3	u64, u64, u64
#define TYPE_6	TYPE_3, TYPE_3
#define TYPE_8	TYPE_6, u64, u64
#define TYPE_10	TYPE_8, u64, u64

#define PASS_0
#define PASS_1	a[0]
#define PASS_3	a[0], a[1], a[2]
#define PASS_6	a[0], a[1], a[2], a[3], a[4], a[5]
#define PASS_8	a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
#define PASS_10	a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]

#define CALLER(nr)							\
static u64 call_##nr(void *address, const u64 *a)			\
{									\
	u64 (*function)(TYPE_##nr) = address;				\
									\
	return function(PASS_##nr);					\
}

CALLER(0)
CALLER(1)
CALLER(3)
CALLER(6)
CALLER(8)
CALLER(10)

#define FUNCTION_ENTRY(name, nr, object, kind)	{ #name, name, call_##nr, COHABIT_##kind },
#define LANE_ENTRY(number)	\
	{ COHABIT_LANE_PREFIX #number, security_cohabit_##number, call_6, COHABIT_test },

static const struct cohabit_test_function functions[] = {
	COHABIT_TEST_FUNCTIONS(FUNCTION_ENTRY)
	COHABIT_ALL_LANES(LANE_ENTRY)
};

/* Returns the test function @name, NULL: there is none. */
const struct cohabit_test_function *cohabit_find_test_function(const char *name)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(functions); i++)
		if (!strcmp(functions[i].name, name))
			return &functions[i];
	return NULL;
}
