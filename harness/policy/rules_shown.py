# SPDX-License-Identifier: GPL-2.0-only
"""Rules about what is seen: records, calls, and what coming and going leaves."""

from __future__ import annotations

import errno

from .rule import (
    ARM64,
    ARM64_DIRECT,
    ARM64_ENTRY,
    FTRACE,
    KLP,
    X86,
    Rule,
)

# --- the record -------------------------------------------------------------------------------

RECORD_COUNTS_OPS = Rule(
    "record-counts-ops",
    FTRACE + "__ftrace_hash_rec_update, t_show",
    "A record shows how many ftrace_ops trace its function.",
    ("ops+ops/*", "livepatch+ops/*"),
)
REGS_ARE_SHOWN = Rule(
    "regs-are-shown",
    FTRACE + "__ftrace_hash_rec_update (FTRACE_FL_REGS)",
    "R is there while an ops asks for all registers.",
    ("ops-regs/alone/*", "kprobe/alone/*"),
    arches=X86,
    differs="arm64 cannot save all registers since 6.2 (commit 26299b3f6ba2), so there is no R.",
)
IPMODIFY_IS_SHOWN = Rule(
    "ipmodify-is-shown",
    FTRACE + "__ftrace_hash_update_ipmodify (FTRACE_FL_IPMODIFY)",
    "I is there while an IPMODIFY ops is on the function, and no longer.",
    ("livepatch/alone/*", "ipmodify/alone/*"),
)
DIRECT_IS_SHOWN = Rule(
    "direct-is-shown",
    FTRACE + "__ftrace_hash_rec_update (FTRACE_FL_DIRECT), t_show",
    "D and the target are there while a direct call is on the function, and no longer.",
    ("direct/alone/*", "fentry/alone/*"),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
MODIFIED_IS_SHOWN = Rule(
    "modified-is-shown",
    FTRACE + "ftrace_check_record (FTRACE_FL_MODIFIED)",
    "M is set by IPMODIFY ops and direct calls.",
    ("livepatch/alone/*", "direct/alone/*"),
    since=(6, 4),
)
MODIFIED_STAYS = Rule(
    "modified-stays",
    FTRACE + "ftrace_check_record (FTRACE_NOCLEAR_FLAGS)",
    "M is never cleared.",
    ("livepatch+ops/attach:ab/detach:ab", "direct+ops/attach:ab/detach:ab"),
    since=(6, 4),
)
MODIFIED_WHEN_REWRITTEN = Rule(
    "modified-when-rewritten",
    FTRACE + "ftrace_check_record",
    "M is set only when the call site is rewritten: not by the third user of a function.",
    ("livepatch/as-third", "ipmodify/as-third"),
    since=(6, 4),
    differs="A call site of x86-64 is rewritten when the trampoline of its only user comes or "
    "goes, one of arm64 when the pointer to that user before the function does. Both "
    "are so for the second user and not for the third; without CALL_OPS arm64 has "
    "neither, so already the second sets no M.",
)
CALL_OPS_IS_SHOWN = Rule(
    "call-ops-is-shown",
    FTRACE + "__ftrace_hash_rec_update (FTRACE_FL_CALL_OPS), t_show; arch/arm64/kernel/ftrace.c: "
    "ftrace_rec_update_ops",
    "O and the only user's ops and callback are there while a function has one user.",
    ("ops/alone*", "direct/alone*", "ops+ops/*", "livepatch+ops/*"),
    since=(6, 3),
    arches=ARM64,
    needs="call_ops",
    differs="On arm64 a pointer before the function tells ftrace_caller whose callback to call "
    "(CONFIG_DYNAMIC_FTRACE_WITH_CALL_OPS); x86-64 makes a trampoline for each user instead. An "
    "ops with RECURSION or RCU would get no O, but no attacher has these flags.",
)
FILTER_CHANGE_KEEPS_REGS = Rule(
    "filter-change-keeps-regs",
    FTRACE + "test_rec_ops_needs_regs, ftrace_hash_move",
    "A function that leaves an ops which stays registered for others keeps R.",
    ("kprobe/filter-change", "kretprobe/filter-change"),
    arches=X86,
    differs="arm64 has no R, and no other flag is kept so.",
)
OFF_IS_OFF = Rule(
    "off-is-off",
    FTRACE + "ftrace_shutdown_sysctl, ftrace_startup_enable",
    "While kernel.ftrace_enabled is 0 no call site calls anything; 1 brings all back.",
    ("ops/ftrace_enabled:*", "fentry/ftrace_enabled:*"),
    until=(7, 2),
    differs="On arm64 kprobes are no call sites and keep hitting.",
)
SAVE_REGS_NEEDS_SUPPORT = Rule(
    "save-regs-needs-support",
    FTRACE + "__register_ftrace_function",
    "SAVE_REGS is refused where the architecture cannot save them.",
    ("ops-regs/alone/*",),
    errno.EINVAL,
    arches=ARM64,
    needs="!saves_regs",
    since=(6, 2),
    differs="x86-64 always has CONFIG_DYNAMIC_FTRACE_WITH_REGS, arm64 not since 6.2 (commit "
    "26299b3f6ba2).",
)

# --- calls ------------------------------------------------------------------------------------

CALLS = Rule(
    "each-sees-each-call",
    "arch/x86/kernel/ftrace_64.S: ftrace_caller, ftrace_regs_caller; " + ARM64_ENTRY,
    "Every attacher sees each call once, with the caller's arguments, in any context.",
    ("ops/alone/*", "*/softirq", "*/held-call"),
)
IPMODIFY_CHOOSES_BODY = Rule(
    "ipmodify-chooses-body",
    "arch/x86/kernel/ftrace_64.S: ftrace_regs_caller; "
    + ARM64_ENTRY
    + "; "
    + KLP
    + "patch.c: klp_ftrace_handler",
    "The IPMODIFY ops of a function chooses the body, whoever else is on it.",
    ("livepatch/alone/*", "ipmodify/alone/*", "livepatch+fexit/*"),
)
EXIT_SEES_FINAL_RETURN = Rule(
    "exit-sees-final-return",
    "arch/x86/net/bpf_jit_comp.c: __arch_prepare_bpf_trampoline; "
    "arch/arm64/net/bpf_jit_comp.c: prepare_trampoline; kernel/kprobes.c",
    "Those at the exit see what the body that ran returned.",
    ("livepatch+fexit/*", "livepatch+kretprobe/*", "fexit+fmod_ret/*"),
    differs="A BPF trampoline of arm64 always calls what the stack says is next, also where it "
    "shares with nobody.",
)

# --- coming and going -------------------------------------------------------------------------

WELCOME = Rule(
    "welcome",
    FTRACE + "register_ftrace_function, register_ftrace_direct",
    "What no rule refuses is attached.",
    ("*/alone/*",),
)
DETACH_ALWAYS = Rule(
    "detach-always",
    FTRACE + "unregister_ftrace_function, unregister_ftrace_direct",
    "Whatever was attached can be detached, in any order.",
    ("*/alone/*",),
)
REFUSED_NO_TRACE = Rule(
    "refused-no-trace",
    FTRACE + "__ftrace_hash_update_ipmodify (rollback), register_ftrace_direct",
    "A refused attach leaves record, behaviour and later answers as they were, also on the "
    "functions that it was not refused on.",
    ("*/many/*-on:*", "livepatch+direct/*"),
)
MODULE_GOES = Rule(
    "module-goes",
    FTRACE + "ftrace_release_mod; " + KLP + "core.c: klp_module_going",
    "A module's records go with it, and whatever was on them can still be detached.",
    ("*/module-gone",),
)
MODULE_COMES = Rule(
    "module-comes",
    FTRACE + "ftrace_module_enable; " + KLP + "core.c: klp_module_coming",
    "A module that comes back is patched by the livepatches that are there.",
    ("livepatch/module-reload",),
)
