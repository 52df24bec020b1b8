// SPDX-License-Identifier: GPL-2.0-only
/* Attachers that are kprobes (without and with a post_handler) and kretprobes. */
#include <linux/kprobes.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "cohabit.h"

/*
 * Calls of a function under kretprobe that are on their way at a time; more
 * are missed. The kernel's own choice on one CPU can be a single one, too few
 * beside a held call.
 */
#define COHABIT_MAXACTIVE	16

struct probe {
	union {
		struct kprobe kp;
		struct kretprobe rp;	/* begins with a kprobe */
	};
	struct cohabit_target *target;
};

/*
 * What the kernel has while a slot is attached, and the list of it that it
 * wants. New ones for each attach: the kernel keeps state in them.
 */
struct probes {
	struct probe *probe;
	union {
		struct kprobe **kprobes;
		struct kretprobe **kretprobes;
	};
};

static struct cohabit_slot kprobe_slots[COHABIT_SLOTS];
static struct cohabit_slot kretprobe_slots[COHABIT_SLOTS];
static struct probes kprobe_probes[COHABIT_SLOTS];
static struct probes kretprobe_probes[COHABIT_SLOTS];

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

/* A kretprobe_instance's probe, NULL: it is being unregistered. */
static __always_inline struct probe *probe_of(struct kretprobe_instance *ri)
{
	struct kretprobe *rp = cohabit_kretprobe_of(ri);

	return rp ? container_of(rp, struct probe, rp) : NULL;
}

static int notrace cohabit_kretprobe_entry(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct probe *probe = probe_of(ri);

	if (probe && cohabit_count(probe->target))
		cohabit_record_args(probe->target, regs_get_kernel_argument, regs);
	return 0;
}

static int notrace cohabit_kretprobe_return(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	struct probe *probe = probe_of(ri);

	if (probe)
		cohabit_record_ret(probe->target, regs_return_value(regs));
	return 0;
}

static void free_probes(struct probes *probes)
{
	kvfree(probes->kprobes);
	kvfree(probes->probe);
	probes->kprobes = NULL;
	probes->probe = NULL;
}

/* Makes a probe, not registered yet, for each function of @slot. */
static int make_probes(struct probes *probes, struct cohabit_slot *slot)
{
	unsigned int i;

	probes->probe = kvcalloc(slot->nr, sizeof(*probes->probe), GFP_KERNEL);
	probes->kprobes = kvcalloc(slot->nr, sizeof(*probes->kprobes), GFP_KERNEL);
	if (!probes->probe || !probes->kprobes) {
		free_probes(probes);
		return -ENOMEM;
	}
	for (i = 0; i < slot->nr; i++) {
		probes->probe[i].target = &slot->targets[i];
		probes->probe[i].kp.addr = (kprobe_opcode_t *)slot->ips[i];
		probes->kprobes[i] = &probes->probe[i].kp;
	}
	return 0;
}

/*
 * Does the kernel still have one of the @nr probes that it was to unregister?
 * It can fail to, and has no other way to say so than to clear the address
 * (kernel/kprobes.c:unregister_kprobes()). If it has the probe, it goes on
 * calling it; it may also never have had it (7.2: __register_kprobe() forgets
 * that arming failed).
 */
static bool kept_by_kernel(const struct probes *probes, unsigned int nr)
{
	const struct kprobe *kp;
	unsigned int i;

	for (i = 0; i < nr; i++) {
		kp = &probes->probe[i].kp;
		if (!kp->addr && (!list_empty(&kp->list) || kp->hlist.pprev != LIST_POISON2))
			return true;
	}
	return false;
}

/* Ends a registration that failed with @error. */
static int failed(struct probes *probes, unsigned int nr, int error)
{
	/* For the same reason what the kernel kept, and our code, must stay for good. */
	if (kept_by_kernel(probes, nr))
		__module_get(THIS_MODULE);
	else
		free_probes(probes);
	return error;
}

static int kprobe_attach(struct cohabit_slot *slot, u32 flags)
{
	struct probes *probes = &kprobe_probes[slot - kprobe_slots];
	int ret = make_probes(probes, slot);
	unsigned int i;

	if (ret)
		return ret;
	for (i = 0; i < slot->nr; i++) {
		probes->probe[i].kp.pre_handler = cohabit_kprobe_pre;
		if (flags & COHABIT_F_POST)
			probes->probe[i].kp.post_handler = cohabit_kprobe_post;
	}
	ret = register_kprobes(probes->kprobes, slot->nr);
	return ret ? failed(probes, slot->nr, ret) : 0;
}

static int kretprobe_attach(struct cohabit_slot *slot, u32 flags)
{
	struct probes *probes = &kretprobe_probes[slot - kretprobe_slots];
	int ret = make_probes(probes, slot);
	unsigned int i;

	if (ret)
		return ret;
	for (i = 0; i < slot->nr; i++) {
		probes->probe[i].rp.entry_handler = cohabit_kretprobe_entry;
		probes->probe[i].rp.handler = cohabit_kretprobe_return;
		probes->probe[i].rp.maxactive = COHABIT_MAXACTIVE;
	}
	ret = register_kretprobes(probes->kretprobes, slot->nr);
	return ret ? failed(probes, slot->nr, ret) : 0;
}

static int kprobe_detach(struct cohabit_slot *slot)
{
	struct probes *probes = &kprobe_probes[slot - kprobe_slots];

	/* What it failed to unregister once must not be unregistered again. */
	if (!kept_by_kernel(probes, slot->nr))
		unregister_kprobes(probes->kprobes, slot->nr);
	if (kept_by_kernel(probes, slot->nr))
		return -ENOTRECOVERABLE;
	free_probes(probes);
	return 0;
}

static int kretprobe_detach(struct cohabit_slot *slot)
{
	struct probes *probes = &kretprobe_probes[slot - kretprobe_slots];

	if (!kept_by_kernel(probes, slot->nr))
		unregister_kretprobes(probes->kretprobes, slot->nr);
	if (kept_by_kernel(probes, slot->nr))
		return -ENOTRECOVERABLE;
	free_probes(probes);
	return 0;
}

static u64 kprobe_missed(struct cohabit_slot *slot, unsigned int index)
{
	return READ_ONCE(kprobe_probes[slot - kprobe_slots].probe[index].kp.nmissed);
}

/* The second: there was no instance left for the call. */
static u64 kretprobe_missed(struct cohabit_slot *slot, unsigned int index)
{
	const struct probe *probe = &kretprobe_probes[slot - kretprobe_slots].probe[index];

	return READ_ONCE(probe->rp.kp.nmissed) + READ_ONCE(probe->rp.nmissed);
}

const struct cohabit_kind_ops cohabit_kprobe_kind = {
	.flags = COHABIT_F_POST,
	.slots = kprobe_slots,
	.attach = kprobe_attach,
	.detach = kprobe_detach,
	.missed = kprobe_missed,
};

const struct cohabit_kind_ops cohabit_kretprobe_kind = {
	.slots = kretprobe_slots,
	.attach = kretprobe_attach,
	.detach = kretprobe_detach,
	.missed = kretprobe_missed,
};
