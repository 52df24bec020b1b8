// SPDX-License-Identifier: GPL-2.0-only
/* Attachers that are kprobes (without and with a post_handler) and kretprobes. */
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "cohabit.h"

/*
 * Calls of a function under kretprobe that are on their way at a time; more
 * are missed. The kernel's own choice on one CPU can be a single one, too few
 * beside a held call.
 */
#define COHABIT_MAXACTIVE	16

struct probe {
	struct kprobe kp;
	struct cohabit_target *target;
};

struct retprobe {
	struct kretprobe rp;
	struct cohabit_target *target;
};

static struct cohabit_slot kprobe_slots[COHABIT_SLOTS];
static struct cohabit_slot kretprobe_slots[COHABIT_SLOTS];

/*
 * What the kernel has while a slot is attached, and the same as it wants it
 * registered. New ones for each attach: the kernel keeps state in them.
 */
static struct {
	struct probe *probes;
	struct kprobe **list;
} kprobes[COHABIT_SLOTS];

static struct {
	struct retprobe *probes;
	struct kretprobe **list;
} kretprobes[COHABIT_SLOTS];

static int notrace cohabit_kprobe_pre(struct kprobe *kp, struct pt_regs *regs)
{
	struct cohabit_target *target = container_of(kp, struct probe, kp)->target;

	if (cohabit_count(target))
		cohabit_record_args(target, regs_get_kernel_argument, regs);
	return 0;
}

/* Has nothing to do: that there is one makes the kernel use IPMODIFY. */
static void notrace cohabit_kprobe_post(struct kprobe *kp, struct pt_regs *regs,
					unsigned long flags)
{
}

static int notrace cohabit_kretprobe_entry(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct cohabit_target *target =
		container_of(cohabit_kretprobe_of(ri), struct retprobe, rp)->target;

	if (cohabit_count(target))
		cohabit_record_args(target, regs_get_kernel_argument, regs);
	return 0;
}

static int notrace cohabit_kretprobe_return(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct kretprobe *rp = cohabit_kretprobe_of(ri);

	/* NULL: it's being unregistered. */
	if (rp)
		cohabit_record_ret(container_of(rp, struct retprobe, rp)->target,
				   regs_return_value(regs));
	return 0;
}

static void kprobe_free(unsigned int nr)
{
	kvfree(kprobes[nr].list);
	kvfree(kprobes[nr].probes);
	kprobes[nr].list = NULL;
	kprobes[nr].probes = NULL;
}

static int kprobe_attach(struct cohabit_slot *slot, u32 flags)
{
	unsigned int nr = slot - kprobe_slots;
	struct probe *probes = kvcalloc(slot->nr, sizeof(*probes), GFP_KERNEL);
	struct kprobe **list = kvcalloc(slot->nr, sizeof(*list), GFP_KERNEL);
	unsigned int i;
	int ret = -ENOMEM;

	kprobes[nr].probes = probes;
	kprobes[nr].list = list;
	if (probes && list) {
		for (i = 0; i < slot->nr; i++) {
			probes[i].target = &slot->targets[i];
			probes[i].kp.addr = (kprobe_opcode_t *)slot->ips[i];
			probes[i].kp.pre_handler = cohabit_kprobe_pre;
			if (flags & COHABIT_F_POST)
				probes[i].kp.post_handler = cohabit_kprobe_post;
			list[i] = &probes[i].kp;
		}
		ret = register_kprobes(list, slot->nr);
	}
	if (ret)
		kprobe_free(nr);
	return ret;
}

static int kprobe_detach(struct cohabit_slot *slot)
{
	unsigned int nr = slot - kprobe_slots;

	unregister_kprobes(kprobes[nr].list, slot->nr);
	kprobe_free(nr);
	return 0;
}

static void kretprobe_free(unsigned int nr)
{
	kvfree(kretprobes[nr].list);
	kvfree(kretprobes[nr].probes);
	kretprobes[nr].list = NULL;
	kretprobes[nr].probes = NULL;
}

static int kretprobe_attach(struct cohabit_slot *slot, u32 flags)
{
	unsigned int nr = slot - kretprobe_slots;
	struct retprobe *probes = kvcalloc(slot->nr, sizeof(*probes), GFP_KERNEL);
	struct kretprobe **list = kvcalloc(slot->nr, sizeof(*list), GFP_KERNEL);
	unsigned int i;
	int ret = -ENOMEM;

	kretprobes[nr].probes = probes;
	kretprobes[nr].list = list;
	if (probes && list) {
		for (i = 0; i < slot->nr; i++) {
			probes[i].target = &slot->targets[i];
			probes[i].rp.kp.addr = (kprobe_opcode_t *)slot->ips[i];
			probes[i].rp.entry_handler = cohabit_kretprobe_entry;
			probes[i].rp.handler = cohabit_kretprobe_return;
			probes[i].rp.maxactive = COHABIT_MAXACTIVE;
			list[i] = &probes[i].rp;
		}
		ret = register_kretprobes(list, slot->nr);
	}
	if (ret)
		kretprobe_free(nr);
	return ret;
}

static int kretprobe_detach(struct cohabit_slot *slot)
{
	unsigned int nr = slot - kretprobe_slots;

	unregister_kretprobes(kretprobes[nr].list, slot->nr);
	kretprobe_free(nr);
	return 0;
}

const struct cohabit_kind_ops cohabit_kprobe_kind = {
	.flags = COHABIT_F_POST,
	.slots = kprobe_slots,
	.attach = kprobe_attach,
	.detach = kprobe_detach,
};

const struct cohabit_kind_ops cohabit_kretprobe_kind = {
	.slots = kretprobe_slots,
	.attach = kretprobe_attach,
	.detach = kretprobe_detach,
};
