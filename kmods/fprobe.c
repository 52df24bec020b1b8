// SPDX-License-Identifier: GPL-2.0-only
/* Attachers that are an fprobe: on entry, or on entry and exit. */
#include <linux/string.h>

#include "cohabit.h"

static struct cohabit_slot fprobe_slots[COHABIT_SLOTS];

#if COHABIT_HAS_FPROBE

/* Calls under an exit handler that are on their way at a time, besides one a function. */
#define COHABIT_MAXACTIVE	16

static struct fprobe fprobes[COHABIT_SLOTS];

static __always_inline struct cohabit_target *target_of(struct fprobe *fp, unsigned long ip)
{
	return cohabit_target_at(&fprobe_slots[fp - fprobes], ip);
}

static COHABIT_FPROBE_ENTRY(cohabit_fprobe_entry, fp, ip, regs)
{
	struct cohabit_target *target = target_of(fp, ip);

	if (cohabit_count(target))
		cohabit_record_args(target, cohabit_fprobe_argument, regs);
	return COHABIT_FPROBE_GO_ON;
}

static COHABIT_FPROBE_EXIT(cohabit_fprobe_exit, fp, ip, regs)
{
	cohabit_record_ret(target_of(fp, ip), cohabit_fprobe_result(regs));
}

/* The kernel keeps state in an fprobe: each registration starts from zero. */
static int fprobe_attach(struct cohabit_slot *slot, u32 flags)
{
	struct fprobe *fp = &fprobes[slot - fprobe_slots];

	memset(fp, 0, sizeof(*fp));
	fp->entry_handler = cohabit_fprobe_entry;
	if (flags & COHABIT_F_EXIT) {
		fp->exit_handler = cohabit_fprobe_exit;
		cohabit_fprobe_set_maxactive(fp, slot->nr + COHABIT_MAXACTIVE);
	}
	return register_fprobe_ips(fp, slot->ips, slot->nr);
}

static int fprobe_detach(struct cohabit_slot *slot)
{
	return unregister_fprobe(&fprobes[slot - fprobe_slots]);
}

/* The kernel counts for all functions together. */
static u64 fprobe_missed(struct cohabit_slot *slot, unsigned int index)
{
	return index ? 0 : READ_ONCE(fprobes[slot - fprobe_slots].nmissed);
}

#else /* !COHABIT_HAS_FPROBE */

static int fprobe_attach(struct cohabit_slot *slot, u32 flags)
{
	return -EOPNOTSUPP;
}

static int fprobe_detach(struct cohabit_slot *slot)
{
	return -EOPNOTSUPP;
}

static u64 fprobe_missed(struct cohabit_slot *slot, unsigned int index)
{
	return 0;
}

#endif

const struct cohabit_kind_ops cohabit_fprobe_kind = {
	.flags = COHABIT_F_EXIT,
	.slots = fprobe_slots,
	.attach = fprobe_attach,
	.detach = fprobe_detach,
	.missed = fprobe_missed,
};
