# SPDX-License-Identifier: GPL-2.0-only
"""Rules about each kind of attacher."""

from __future__ import annotations

import errno

from .rule import (
    ARM64,
    ARM64_DIRECT,
    ARM64_ENTRY,
    ARM64_FPROBE,
    ARM64_LIVEPATCH,
    FTRACE,
    KLP,
    TRAMPOLINE,
    X86,
    Rule,
)

# --- livepatch --------------------------------------------------------------------------------

LIVEPATCHES_SHARE_OPS = Rule(
    "livepatches-share-ops",
    KLP + "patch.c: klp_patch_func",
    "All livepatches of a function use one ftrace_ops.",
    ("livepatch+livepatch/*", "livepatch/stack-of-four"),
    arm64=ARM64_LIVEPATCH,
)
NEWEST_LIVEPATCH_WINS = Rule(
    "newest-livepatch-wins",
    KLP + "patch.c: klp_ftrace_handler",
    "Of several livepatches of a function the newest that is enabled chooses the body.",
    ("livepatch+livepatch/*", "livepatch/stack-of-four"),
    arm64=ARM64_LIVEPATCH,
)
REPLACE_DISPLACES = Rule(
    "replace-displaces",
    KLP + "core.c: klp_add_nops, klp_unpatch_replaced_patches, klp_discard_nops",
    "A livepatch with replace takes the place of all others: what it does not patch itself goes "
    "back to the original.",
    ("livepatch/replace*",),
    arm64=ARM64_LIVEPATCH,
)
LIVEPATCH_SAYS_WHY = Rule(
    "livepatch-says-why",
    KLP + "patch.c: klp_patch_func",
    "A livepatch that ftrace refuses names function and errno in the log.",
    ("livepatch+ipmodify/attach:ba/*", "livepatch/many/*"),
    arm64=ARM64_LIVEPATCH,
)
ONE_TRANSITION = Rule(
    "one-transition",
    KLP + "core.c: __klp_enable_patch, __klp_disable_patch",
    "While a transition is pending no other livepatch comes or goes.",
    ("livepatch/pending/second-waits", "livepatch/pending/other-cannot-leave"),
    errno.EBUSY,
    arm64=ARM64_LIVEPATCH,
)
PENDING_TRANSITION = Rule(
    "pending-transition",
    KLP + "transition.c: klp_try_switch_task, klp_check_stack",
    "A transition does not end while a task is in a function that it patches.",
    ("livepatch/pending", "livepatch+*/held-call"),
    arm64=ARM64_LIVEPATCH,
)
TRANSITION_REVERSES = Rule(
    "transition-reverses",
    KLP + "core.c: enabled_store; transition.c: klp_reverse_transition",
    "A pending transition can be reversed.",
    ("livepatch/pending/reverse", "livepatch/pending/reverse-again"),
    arm64=ARM64_LIVEPATCH,
)
FORCE_ENDS_TRANSITION = Rule(
    "force-ends-transition",
    KLP + "transition.c: klp_force_transition; core.c: force_store",
    "Forcing ends the pending transition, and is refused where there is none.",
    ("livepatch/pending/force", "livepatch/force-nothing"),
    errno.EINVAL,
    arm64=ARM64_LIVEPATCH,
)
FORCED_STAYS = Rule(
    "forced-stays",
    KLP + "transition.c: klp_force_transition of 5.10; core.c: klp_free_patch_finish",
    "The module of a patch whose transition was forced is never unloaded.",
    ("livepatch/pending/force",),
    errno.EWOULDBLOCK,
    until=(5, 11),
    arches=X86,
    differs="arm64 has livepatches from 6.17 on only.",
)
DISABLED_IS_GONE = Rule(
    "disabled-is-gone",
    KLP + "core.c: klp_free_patch_start",
    "A disabled livepatch has no files any more, so it cannot be enabled again.",
    ("livepatch/disable-enable", "livepatch/replace-stack"),
    errno.ENOENT,
    arm64=ARM64_LIVEPATCH,
)
NO_CHANGE_IS_INVALID = Rule(
    "no-change-is-invalid",
    KLP + "core.c: enabled_store",
    "Writing to `enabled` what it has already is refused.",
    ("livepatch/enable-twice",),
    errno.EINVAL,
    arm64=ARM64_LIVEPATCH,
)

# --- BPF and direct calls ---------------------------------------------------------------------

BPF_SHARES_TRAMPOLINE = Rule(
    "bpf-shares-trampoline",
    TRAMPOLINE + "bpf_trampoline_lookup",
    "All BPF programs of a function share one trampoline, and so one ftrace_ops.",
    ("fentry+fexit/*", "fexit+fexit/*", "fentry/up-to-the-limit"),
    # Before, all direct calls shared one.
    since=(6, 0),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
FMOD_RET_TAKES_PLACE = Rule(
    "fmod_ret-takes-place",
    "arch/x86/net/bpf_jit_comp.c, arch/arm64/net/bpf_jit_comp.c: invoke_bpf_mod_ret",
    "A fmod_ret program that returns an error takes the function's place.",
    ("fmod_ret/alone/*", "livepatch+fmod_ret/*"),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
FMOD_RET_NEWEST_FIRST = Rule(
    "fmod_ret-newest-first",
    TRAMPOLINE + "__bpf_trampoline_link_prog; invoke_bpf_mod_ret",
    "fmod_ret programs run newest first, and the first error ends the row.",
    ("fmod_ret+fmod_ret/*",),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
ORIGINAL_IS_JUMPED_TO = Rule(
    "original-is-jumped-to",
    "include/linux/bpf.h: bpf_trampoline_use_jmp",
    "A trampoline that calls the function itself is jumped to.",
    ("fexit/alone/*", "fmod_ret/alone/*"),
    since=(6, 19),
    arches=X86,
    differs="arm64 has no CONFIG_DYNAMIC_FTRACE_WITH_JMP: a trampoline is always called, and "
    "returns past the function by itself.",
)
SHARED_IS_CALLED = Rule(
    "shared-is-called",
    TRAMPOLINE + "bpf_tramp_ftrace_ops_func, bpf_trampoline_update (BPF_TRAMP_F_ORIG_STACK)",
    "A trampoline that shares its function with an IPMODIFY ops is called, and takes the "
    "address to go on from the stack.",
    ("livepatch+fexit/*", "fexit+ipmodify/*"),
    since=(6, 19),
    arches=X86,
    differs="arm64 has no CONFIG_DYNAMIC_FTRACE_WITH_JMP: a trampoline is always called, and "
    "returns past the function by itself. It always goes on at the address on the "
    "stack, so nothing changes when it shares.",
)
SHARE_OUTLIVES_PROGRAMS = Rule(
    "share-outlives-programs",
    TRAMPOLINE + "bpf_trampoline_update, bpf_trampoline_put",
    "The share flag stays while anything still holds a trampoline without programs "
    "(docs/findings/stale-share.md).",
    ("fexit+ipmodify/held-call/program-leaves-first", "livepatch+fexit/last-program-leaves-first"),
    since=(7, 2),
    arches=X86,
    differs="The flag outlives programs on arm64 too, where all that it decides is not to be seen.",
)
PEER_TOLD = Rule(
    "peer-told",
    FTRACE + "cleanup_direct_functions_after_ipmodify",
    "A direct call is told when the IPMODIFY ops on its function leaves.",
    ("direct-share+*/modify", "*+direct-share/modify"),
    since=(6, 0),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
MODIFY_MOVES = Rule(
    "modify-moves",
    FTRACE + "modify_ftrace_direct",
    "A direct call can be pointed at another trampoline, whatever shares its function.",
    ("direct/modify", "direct-share+*/modify", "*+direct-share/modify"),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)
BRANCH_RANGE = Rule(
    "branch-range",
    "arch/arm64/kernel/ftrace.c: ftrace_find_callable_addr, ftrace_make_call; " + ARM64_ENTRY,
    "The only user of a function, if it is a direct call, is called by a BL to its trampoline "
    "within 128 MB; beyond, and beside other users, the BL goes to ftrace_caller, which goes on "
    "to the trampoline.",
    ("reach/*/far/alone*", "reach/*/modify*"),
    since=(6, 4),
    arches=ARM64,
    needs="direct_calls",
    differs="x86-64's CALL leads 2 GB far, where all code of the kernel and of modules is.",
)
DIRECT_SAVES_REGS = Rule(
    "direct-saves-regs",
    FTRACE + "register_ftrace_direct (MULTI_FLAGS)",
    "A direct call makes all registers saved, for whoever shares its function.",
    ("direct/alone/*", "fentry/alone/*"),
    arches=X86,
    differs="arm64 goes to a direct call from ftrace_caller, which saves arguments only "
    "(MULTI_FLAGS with SAVE_ARGS).",
)
BPF_HOLDS_MODULE = Rule(
    "bpf-holds-module",
    "kernel/bpf/syscall.c: bpf_tracing_prog_attach; kernel/bpf/trampoline.c: "
    "bpf_trampoline_module_get",
    "A module cannot be unloaded while a BPF program is on one of its functions.",
    ("fentry/module-gone", "fexit/module-gone"),
    errno.EWOULDBLOCK,
    since=(5, 11),
    arm64=ARM64_DIRECT,
    needs="direct_calls",
)

# --- kprobes, fprobes, tracers ----------------------------------------------------------------

KPROBES_SHARE_OPS = Rule(
    "kprobes-share-ops",
    "kernel/kprobes.c: kprobe_ftrace_ops, register_aggr_kprobe",
    "All kprobes of a function use one ftrace_ops, which is also that of all other functions.",
    ("kprobe+kprobe/*", "kprobe+kretprobe/*"),
    arches=X86,
    differs="arm64's kprobes are breakpoints: no ftrace_ops, so nothing for this rule to be about.",
)
KPROBE_POST_IS_IPMODIFY = Rule(
    "kprobe-post-is-ipmodify",
    "kernel/kprobes.c: arm_kprobe_ftrace",
    "A kprobe with a post_handler takes an IPMODIFY ops, one without does not.",
    ("kprobe-post/alone/*", "livepatch+kprobe-post/*"),
    arches=X86,
    differs="arm64's kprobes are breakpoints: no ftrace_ops, so nothing for this rule to be about.",
)
KPROBES_ARE_BREAKPOINTS = Rule(
    "kprobes-are-breakpoints",
    "kernel/kprobes.c: check_ftrace_location, arm_kprobe; arch/arm64/kernel/probes/kprobes.c: "
    "arch_arm_kprobe",
    "A kprobe or kretprobe is a breakpoint before the call site: ftrace knows nothing of it, and "
    "neither refuses it nor turns it off.",
    (
        "kprobe/alone*",
        "kprobe-post/alone*",
        "ipmodify+kprobe-post/*",
        "livepatch+kprobe-post/*",
        "kretprobe/ftrace_enabled:*",
        "misuse/kill-ftrace/kprobe",
    ),
    arches=ARM64,
    differs="x86-64 has CONFIG_KPROBES_ON_FTRACE: there a kprobe at a function's beginning is a "
    "user of ftrace, for a breakpoint in the call site could not be told from ftrace's own.",
)
FPROBES_SHARE_OPS = Rule(
    "fprobes-share-ops",
    "kernel/trace/fprobe.c: fprobe_ftrace_ops",
    "All fprobes without an exit handler use one ftrace_ops.",
    ("fprobe+fprobe/*", "fprobe+kprobe-multi/*"),
    since=(6, 14),
    arm64=ARM64_FPROBE,
)
GRAPH_SHARES_OPS = Rule(
    "graph-shares-ops",
    "kernel/trace/fgraph.c: graph_ops; kernel/trace/fprobe.c: fprobe_graph_ops",
    "The function graph tracer and all fprobes with an exit handler use one ftrace_ops.",
    ("fprobe-exit+function-graph/*", "fprobe-exit+fprobe-exit/*"),
    since=(6, 14),
    arm64=ARM64_FPROBE,
)
FPROBE_REGS = Rule(
    "fprobe-regs",
    "kernel/trace/fprobe.c: fprobe_init of 6.12",
    "An fprobe asks for all registers.",
    ("fprobe/alone/*", "fprobe-exit/alone/*", "kprobe-multi/alone/*"),
    since=(5, 18),
    until=(6, 13),
    arches=X86,
    differs="arm64 has fprobes from 6.14 on, when they no longer asked for registers.",
)
GRAPH_FOLLOWS_IP = Rule(
    "graph-follows-ip",
    "arch/x86/kernel/ftrace_64.S: ftrace_epilogue; kernel/trace/fgraph.c: function_graph_enter of "
    "5.10",
    "The function graph tracer sees what is called instead of the function: not the function "
    "itself, and nothing where a direct call is.",
    ("livepatch+function-graph/*", "fentry+function-graph/*"),
    until=(5, 15),
    arches=X86,
    differs="Not looked at for arm64: cohabit's oldest kernel there is 6.12.",
)
ONE_TRACER = Rule(
    "one-tracer",
    "kernel/trace/trace.c: tracing_set_tracer",
    "A tracing instance has one tracer: a new one takes the old one's place.",
    ("function-tracer+function-graph/*",),
)
