// SPDX-License-Identifier: GPL-2.0-only
/*
 * A livepatch of the functions named in its parameters. Included by the modules
 * that define COHABIT_KLP_BODY and COHABIT_KLP_TAG, so that different patches
 * can be loaded at a time.
 */
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/string.h>

#include "bodies.h"

static char *funcs = "";
module_param(funcs, charp, 0444);
MODULE_PARM_DESC(funcs, "functions to patch, separated by commas");

static char *lanes = "";
module_param(lanes, charp, 0444);
MODULE_PARM_DESC(lanes, "lanes to patch: a hexadecimal number, bit N for lane N");

static bool replace;
module_param(replace, bool, 0444);
MODULE_PARM_DESC(replace, "replace all livepatches that are there (default: stack)");

#define BODY(name, nr, object, kind)	\
	COHABIT_DEFINE_BODY(livepatch_, name, nr, kind, COHABIT_KLP_BODY, COHABIT_KLP_TAG)

COHABIT_FUNCTIONS(BODY)
BODY(lane, 6, cohabit_funcs, test)

#define FUNC_ENTRY(name, nr, object, kind)	\
	{ .old_name = #name, .new_func = livepatch_##name },
#define LANE_NAME(number)	COHABIT_LANE_PREFIX #number,

static const struct klp_func vmlinux_all[] = { COHABIT_VMLINUX_FUNCTIONS(FUNC_ENTRY) };
static const struct klp_func test_all[] = { COHABIT_TEST_FUNCTIONS(FUNC_ENTRY) };
static const char *const lane_names[COHABIT_LANES] = { COHABIT_ALL_LANES(LANE_NAME) };

/* What was asked for; the zeroed entry after the last ends each list. */
static struct klp_func vmlinux_funcs[ARRAY_SIZE(vmlinux_all) + 1];
static struct klp_func test_funcs[ARRAY_SIZE(test_all) + COHABIT_LANES + 1];
static struct klp_object objects[3];

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objects,
};

/* Copies function @name of @len characters from @all to @chosen, if it's there. */
static bool choose(const struct klp_func *all, size_t nr, struct klp_func *chosen,
		   const char *name, size_t len)
{
	struct klp_func *func = chosen;
	size_t i;

	for (i = 0; i < nr; i++) {
		if (strlen(all[i].old_name) != len || memcmp(all[i].old_name, name, len))
			continue;
		for (; func->old_name; func++)
			if (func->new_func == all[i].new_func)
				return false;
		func->old_name = all[i].old_name;
		func->new_func = all[i].new_func;
		return true;
	}
	return false;
}

static int __init choose_functions(void)
{
	const char *name = funcs;
	size_t len;

	while (*funcs) {
		len = strcspn(name, ",");
		if (!choose(vmlinux_all, ARRAY_SIZE(vmlinux_all), vmlinux_funcs, name, len) &&
		    !choose(test_all, ARRAY_SIZE(test_all), test_funcs, name, len)) {
			pr_err("unknown function, or one named twice: '%.*s'\n", (int)len, name);
			return -EINVAL;
		}
		if (!name[len])
			break;
		name += len + 1;
	}
	return 0;
}

static int __init choose_lanes(void)
{
	struct klp_func *func = test_funcs;
	size_t len = strlen(lanes);
	unsigned int lane, bits;
	char digit[2] = "";

	for (lane = 0; lane < 4 * len; lane++) {
		digit[0] = lanes[len - 1 - lane / 4];
		if (lane >= COHABIT_LANES || kstrtouint(digit, 16, &bits)) {
			pr_err("not a set of lanes: '%s'\n", lanes);
			return -EINVAL;
		}
		if (!(bits & 1 << lane % 4))
			continue;
		while (func->old_name)
			func++;
		func->old_name = lane_names[lane];
		func->new_func = livepatch_lane;
	}
	return 0;
}

static int __init livepatch_init(void)
{
	struct klp_object *object = objects;
	int ret = choose_functions();

	if (!ret)
		ret = choose_lanes();
	if (ret)
		return ret;

	if (vmlinux_funcs[0].old_name) {
		object->funcs = vmlinux_funcs;
		object++;
	}
	if (test_funcs[0].old_name) {
		object->name = "cohabit_funcs";
		object->funcs = test_funcs;
		object++;
	}
	if (object == objects) {
		pr_err("neither functions nor lanes\n");
		return -EINVAL;
	}
	patch.replace = replace;
	return klp_enable_patch(&patch);
}

static void __exit livepatch_exit(void)
{
}

module_init(livepatch_init);
module_exit(livepatch_exit);
MODULE_DESCRIPTION("Livepatch of the functions named in its parameters");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
