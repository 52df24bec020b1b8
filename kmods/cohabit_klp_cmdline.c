// SPDX-License-Identifier: GPL-2.0-only
/* The classic: load it and read /proc/cmdline. */
#include <linux/livepatch.h>
#include <linux/module.h>

#include "bodies.h"

COHABIT_DEFINE_BODY(livepatch_, cmdline_proc_show, 2, text, "livepatch", 0)

static struct klp_func funcs[] = {
	{ .old_name = "cmdline_proc_show", .new_func = livepatch_cmdline_proc_show },
	{ }
};

static struct klp_object objects[] = {
	{ .funcs = funcs },
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objects,
};

static int __init livepatch_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit livepatch_exit(void)
{
}

module_init(livepatch_init);
module_exit(livepatch_exit);
MODULE_DESCRIPTION("Livepatch of cmdline_proc_show");
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
