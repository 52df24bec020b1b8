# SPDX-License-Identifier: GPL-2.0-only
"""The rules of the policy: what each says, where the kernel has it, and what would notice.

The model asks for a rule by its name (Profile.has) wherever it uses it, so that
``cohabit rules --survivors`` can take each away and see whether anything contradicts.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from harness.errno_names import ENOTSUPP

from .profile import Version

_FTRACE = "kernel/trace/ftrace.c: "
_TRAMPOLINE = "kernel/bpf/trampoline.c: "
_KLP = "kernel/livepatch/"


@dataclass(frozen=True)
class Rule:
    """``name``; ``source``: kernel file and functions; ``text``: what it says;
    ``scenarios``: globs of those that would notice if a kernel broke it; ``since`` and
    ``until``: first and last release that has it; ``arches``; ``errno``: what it gives."""

    name: str
    source: str
    text: str
    scenarios: tuple[str, ...]
    errno: int = 0
    since: Version = (5, 5)
    until: Version | None = None
    arches: tuple[str, ...] = ("x86-64", "arm64")


# --- who is refused ---------------------------------------------------------------------------

ONE_IPMODIFY = Rule(
    "one-ipmodify",
    _FTRACE + "__ftrace_hash_update_ipmodify",
    "A function has at most one ftrace_ops with IPMODIFY; its livepatches share one.",
    ("livepatch+ipmodify/*", "ipmodify+ipmodify/*", "*/many/ipmodify-on:*"),
    errno.EBUSY,
)
SELF_MUST_AGREE = Rule(
    "self-must-agree",
    _FTRACE + "__ftrace_hash_update_ipmodify (FTRACE_OPS_CMD_ENABLE_SHARE_IPMODIFY_SELF)",
    "A direct call comes to a function with an IPMODIFY ops only if it has an ops_func that "
    "agrees.",
    ("livepatch+direct/attach:ab/*", "direct+ipmodify/attach:ba/*", "direct-refuse+*/last"),
    errno.EBUSY,
    since=(6, 0),
)
PEER_MUST_AGREE = Rule(
    "peer-must-agree",
    _FTRACE + "prepare_direct_functions_for_ipmodify",
    "An IPMODIFY ops comes to a function with a direct call only if that one's ops_func agrees.",
    ("livepatch+direct/attach:ba/*", "direct+ipmodify/attach:ab/*", "direct-refuse+*/first"),
    errno.EBUSY,
    since=(6, 0),
)
REFUSAL_IS_VERBATIM = Rule(
    "refusal-is-verbatim",
    _FTRACE + "__ftrace_hash_update_ipmodify, prepare_direct_functions_for_ipmodify",
    "What an ops_func answers is what the attach gives.",
    ("direct-refuse+livepatch/*", "direct-refuse+ipmodify/*"),
    since=(6, 0),
)
PEERS_ASKED_AT_REGISTRATION = Rule(
    "peers-asked-at-registration",
    _FTRACE + "register_ftrace_function, ftrace_hash_move_and_update_ops",
    "Direct calls are asked when an IPMODIFY ops is registered, not when one that is registered "
    "gets another function (docs/findings/filter-skips-direct.md).",
    ("kprobe-post/second-skips-direct",),
    since=(6, 0),
    arches=("x86-64",),
)
ONE_DIRECT = Rule(
    "one-direct",
    _FTRACE + "register_ftrace_direct, update_ftrace_direct_add",
    "A function has at most one direct call; all BPF programs of it share one trampoline.",
    ("direct+direct/*", "direct+fentry/*", "direct+fexit/*", "*/many/direct-on:*"),
    errno.EBUSY,
    # Before, direct calls were IPMODIFY, and one-ipmodify says the same.
    since=(6, 0),
)
PERMANENT_NEEDS_ENABLED = Rule(
    "permanent-needs-enabled",
    _FTRACE + "__register_ftrace_function",
    "A PERMANENT ops is not registered while kernel.ftrace_enabled is 0.",
    ("livepatch/ftrace_enabled:attach-while-off",),
    errno.EBUSY,
    until=(7, 2),
)
PERMANENT_KEEPS_ENABLED = Rule(
    "permanent-keeps-enabled",
    _FTRACE + "ftrace_enable_sysctl, is_permanent_ops_registered",
    "kernel.ftrace_enabled cannot be set to 0 while a PERMANENT ops is registered.",
    ("livepatch/ftrace_enabled:off-on",),
    errno.EBUSY,
    until=(7, 2),
)
DISABLING_DEPRECATED = Rule(
    "disabling-deprecated",
    _FTRACE + "ftrace_enable_sysctl of 7.3",
    "kernel.ftrace_enabled cannot be set to 0 at all.",
    ("*/ftrace_enabled:*",),
    errno.EOPNOTSUPP,
    since=(7, 3),
)
DEAD = Rule(
    "dead-ftrace",
    _FTRACE + "ftrace_kill, ftrace_startup, ftrace_set_addr, ftrace_enable_sysctl",
    "Once ftrace has shut itself down, nothing is attached any more.",
    ("misuse/kill-ftrace", "misuse/kill-ftrace/kprobe"),
    errno.ENODEV,
)
NOT_MODIFIABLE = Rule(
    "fmod_ret-where",
    "kernel/bpf/verifier.c: check_attach_modify_return",
    "fmod_ret goes on error-injectable functions and on those called security_*.",
    ("fmod_ret/where-it-must-not-be",),
    errno.EINVAL,
)
TRAMPOLINE_ARGS = Rule(
    "trampoline-args",
    "arch/x86/net/bpf_jit_comp.c: arch_prepare_bpf_trampoline",
    "A BPF trampoline is not made for a function with more arguments than it can pass on.",
    ("fentry/alone/on:cohabit_f8", "fexit/alone/on:cohabit_f8"),
    ENOTSUPP,
    until=(6, 5),
)
TOO_MANY_PROGRAMS = Rule(
    "trampoline-links",
    _TRAMPOLINE + "__bpf_trampoline_link_prog (BPF_MAX_TRAMP_LINKS)",
    "A function takes so many BPF programs and no more.",
    ("fentry/up-to-the-limit",),
    errno.E2BIG,
)

# --- livepatch --------------------------------------------------------------------------------

LIVEPATCHES_SHARE_OPS = Rule(
    "livepatches-share-ops",
    _KLP + "patch.c: klp_patch_func",
    "All livepatches of a function use one ftrace_ops.",
    ("livepatch+livepatch/*", "livepatch/stack-of-four"),
)
NEWEST_LIVEPATCH_WINS = Rule(
    "newest-livepatch-wins",
    _KLP + "patch.c: klp_ftrace_handler",
    "Of several livepatches of a function the newest that is enabled chooses the body.",
    ("livepatch+livepatch/*", "livepatch/stack-of-four"),
)
REPLACE_DISPLACES = Rule(
    "replace-displaces",
    _KLP + "core.c: klp_add_nops, klp_unpatch_replaced_patches, klp_discard_nops",
    "A livepatch with replace takes the place of all others: what it does not patch itself goes "
    "back to the original.",
    ("livepatch/replace*",),
)
LIVEPATCH_SAYS_WHY = Rule(
    "livepatch-says-why",
    _KLP + "patch.c: klp_patch_func",
    "A livepatch that ftrace refuses names function and errno in the log.",
    ("livepatch+ipmodify/attach:ba/*", "livepatch/many/*"),
)
ONE_TRANSITION = Rule(
    "one-transition",
    _KLP + "core.c: __klp_enable_patch, __klp_disable_patch",
    "While a transition is pending no other livepatch comes or goes.",
    ("livepatch/pending/second-waits", "livepatch/pending/other-cannot-leave"),
    errno.EBUSY,
)
PENDING_TRANSITION = Rule(
    "pending-transition",
    _KLP + "transition.c: klp_try_switch_task, klp_check_stack",
    "A transition does not end while a task is in a function that it patches.",
    ("livepatch/pending", "livepatch+*/held-call"),
)
TRANSITION_REVERSES = Rule(
    "transition-reverses",
    _KLP + "core.c: enabled_store; transition.c: klp_reverse_transition",
    "A pending transition can be reversed.",
    ("livepatch/pending/reverse", "livepatch/pending/reverse-again"),
)
FORCE_ENDS_TRANSITION = Rule(
    "force-ends-transition",
    _KLP + "transition.c: klp_force_transition; core.c: force_store",
    "Forcing ends the pending transition, and is refused where there is none.",
    ("livepatch/pending/force", "livepatch/force-nothing"),
    errno.EINVAL,
)
FORCED_STAYS = Rule(
    "forced-stays",
    _KLP + "transition.c: klp_force_transition of 5.10; core.c: klp_free_patch_finish",
    "The module of a patch whose transition was forced is never unloaded.",
    ("livepatch/pending/force",),
    errno.EWOULDBLOCK,
    until=(5, 11),
)
DISABLED_IS_GONE = Rule(
    "disabled-is-gone",
    _KLP + "core.c: klp_free_patch_start",
    "A disabled livepatch has no files any more, so it cannot be enabled again.",
    ("livepatch/disable-enable", "livepatch/replace-stack"),
    errno.ENOENT,
)
NO_CHANGE_IS_INVALID = Rule(
    "no-change-is-invalid",
    _KLP + "core.c: enabled_store",
    "Writing to `enabled` what it has already is refused.",
    ("livepatch/enable-twice",),
    errno.EINVAL,
)

# --- BPF and direct calls ---------------------------------------------------------------------

BPF_SHARES_TRAMPOLINE = Rule(
    "bpf-shares-trampoline",
    _TRAMPOLINE + "bpf_trampoline_lookup",
    "All BPF programs of a function share one trampoline, and so one ftrace_ops.",
    ("fentry+fexit/*", "fexit+fexit/*", "fentry/up-to-the-limit"),
    # Before, all direct calls shared one.
    since=(6, 0),
)
FMOD_RET_TAKES_PLACE = Rule(
    "fmod_ret-takes-place",
    "arch/x86/net/bpf_jit_comp.c: invoke_bpf_mod_ret",
    "A fmod_ret program that returns an error takes the function's place.",
    ("fmod_ret/alone/*", "livepatch+fmod_ret/*"),
)
FMOD_RET_NEWEST_FIRST = Rule(
    "fmod_ret-newest-first",
    _TRAMPOLINE + "__bpf_trampoline_link_prog; invoke_bpf_mod_ret",
    "fmod_ret programs run newest first, and the first error ends the row.",
    ("fmod_ret+fmod_ret/*",),
)
ORIGINAL_IS_JUMPED_TO = Rule(
    "original-is-jumped-to",
    "include/linux/bpf.h: bpf_trampoline_use_jmp",
    "A trampoline that calls the function itself is jumped to.",
    ("fexit/alone/*", "fmod_ret/alone/*"),
    since=(6, 19),
    arches=("x86-64",),
)
SHARED_IS_CALLED = Rule(
    "shared-is-called",
    _TRAMPOLINE + "bpf_tramp_ftrace_ops_func, bpf_trampoline_update (BPF_TRAMP_F_ORIG_STACK)",
    "A trampoline that shares its function with an IPMODIFY ops is called, and takes the "
    "address to go on from the stack.",
    ("livepatch+fexit/*", "fexit+ipmodify/*"),
    since=(6, 19),
    arches=("x86-64",),
)
SHARE_OUTLIVES_PROGRAMS = Rule(
    "share-outlives-programs",
    _TRAMPOLINE + "bpf_trampoline_update, bpf_trampoline_put",
    "The share flag stays while anything still holds a trampoline without programs "
    "(docs/findings/stale-share.md).",
    ("fexit+ipmodify/held-call/program-leaves-first", "livepatch+fexit/last-program-leaves-first"),
    since=(7, 2),
    arches=("x86-64",),
)
PEER_TOLD = Rule(
    "peer-told",
    _FTRACE + "cleanup_direct_functions_after_ipmodify",
    "A direct call is told when the IPMODIFY ops on its function leaves.",
    ("direct-share+livepatch/modify", "livepatch+direct-share/modify"),
    since=(6, 0),
)
MODIFY_MOVES = Rule(
    "modify-moves",
    _FTRACE + "modify_ftrace_direct",
    "A direct call can be pointed at another trampoline, whatever shares its function.",
    ("direct/modify", "direct-share+livepatch/modify", "livepatch+direct-share/modify"),
)
DIRECT_SAVES_REGS = Rule(
    "direct-saves-regs",
    _FTRACE + "register_ftrace_direct (MULTI_FLAGS)",
    "A direct call makes all registers saved, for whoever shares its function.",
    ("direct/alone/*", "fentry/alone/*"),
    arches=("x86-64",),
)
BPF_HOLDS_MODULE = Rule(
    "bpf-holds-module",
    "kernel/bpf/syscall.c: bpf_tracing_prog_attach; kernel/bpf/trampoline.c: "
    "bpf_trampoline_module_get",
    "A module cannot be unloaded while a BPF program is on one of its functions.",
    ("fentry/module-gone", "fexit/module-gone"),
    errno.EWOULDBLOCK,
    since=(5, 11),
)

# --- kprobes, fprobes, tracers ----------------------------------------------------------------

KPROBES_SHARE_OPS = Rule(
    "kprobes-share-ops",
    "kernel/kprobes.c: kprobe_ftrace_ops, register_aggr_kprobe",
    "All kprobes of a function use one ftrace_ops, which is also that of all other functions.",
    ("kprobe+kprobe/*", "kprobe+kretprobe/*"),
    arches=("x86-64",),
)
KPROBE_POST_IS_IPMODIFY = Rule(
    "kprobe-post-is-ipmodify",
    "kernel/kprobes.c: arm_kprobe_ftrace",
    "A kprobe with a post_handler takes an IPMODIFY ops, one without does not.",
    ("kprobe-post/alone/*", "livepatch+kprobe-post/*"),
    arches=("x86-64",),
)
FPROBES_SHARE_OPS = Rule(
    "fprobes-share-ops",
    "kernel/trace/fprobe.c: fprobe_ftrace_ops",
    "All fprobes without an exit handler use one ftrace_ops.",
    ("fprobe+fprobe/*", "fprobe+kprobe-multi/*"),
    since=(6, 14),
)
GRAPH_SHARES_OPS = Rule(
    "graph-shares-ops",
    "kernel/trace/fgraph.c: graph_ops; kernel/trace/fprobe.c: fprobe_graph_ops",
    "The function graph tracer and all fprobes with an exit handler use one ftrace_ops.",
    ("fprobe-exit+function-graph/*", "fprobe-exit+fprobe-exit/*"),
    since=(6, 14),
)
FPROBE_REGS = Rule(
    "fprobe-regs",
    "kernel/trace/fprobe.c: fprobe_init of 6.12",
    "An fprobe asks for all registers.",
    ("fprobe/alone/*", "fprobe-exit/alone/*", "kprobe-multi/alone/*"),
    since=(5, 18),
    until=(6, 13),
)
GRAPH_FOLLOWS_IP = Rule(
    "graph-follows-ip",
    "arch/x86/kernel/ftrace_64.S: ftrace_epilogue; kernel/trace/fgraph.c: function_graph_enter of "
    "5.10",
    "The function graph tracer sees what is called instead of the function: not the function "
    "itself, and nothing where a direct call is.",
    ("livepatch+function-graph/*", "fentry+function-graph/*"),
    until=(5, 15),
    arches=("x86-64",),
)
ONE_TRACER = Rule(
    "one-tracer",
    "kernel/trace/trace.c: tracing_set_tracer",
    "A tracing instance has one tracer: a new one takes the old one's place.",
    ("function-tracer+function-graph/*",),
)

# --- the record -------------------------------------------------------------------------------

RECORD_COUNTS_OPS = Rule(
    "record-counts-ops",
    _FTRACE + "__ftrace_hash_rec_update, t_show",
    "A record shows how many ftrace_ops trace its function.",
    ("ops+ops/*", "livepatch+ops/*"),
)
REGS_ARE_SHOWN = Rule(
    "regs-are-shown",
    _FTRACE + "__ftrace_hash_rec_update (FTRACE_FL_REGS)",
    "R is there while an ops asks for all registers.",
    ("ops-regs/alone/*", "kprobe/alone/*"),
    arches=("x86-64",),
)
IPMODIFY_IS_SHOWN = Rule(
    "ipmodify-is-shown",
    _FTRACE + "__ftrace_hash_update_ipmodify (FTRACE_FL_IPMODIFY)",
    "I is there while an IPMODIFY ops is on the function, and no longer.",
    ("livepatch/alone/*", "ipmodify/alone/*"),
)
DIRECT_IS_SHOWN = Rule(
    "direct-is-shown",
    _FTRACE + "__ftrace_hash_rec_update (FTRACE_FL_DIRECT), t_show",
    "D and the target are there while a direct call is on the function, and no longer.",
    ("direct/alone/*", "fentry/alone/*"),
)
MODIFIED_IS_SHOWN = Rule(
    "modified-is-shown",
    _FTRACE + "ftrace_check_record (FTRACE_FL_MODIFIED)",
    "M is set by IPMODIFY ops and direct calls.",
    ("livepatch/alone/*", "direct/alone/*"),
    since=(6, 4),
)
MODIFIED_STAYS = Rule(
    "modified-stays",
    _FTRACE + "ftrace_check_record (FTRACE_NOCLEAR_FLAGS)",
    "M is never cleared.",
    ("livepatch+ops/attach:ab/detach:ab", "direct+ops/attach:ab/detach:ab"),
    since=(6, 4),
)
MODIFIED_WHEN_REWRITTEN = Rule(
    "modified-when-rewritten",
    _FTRACE + "ftrace_check_record",
    "M is set only when the call site is rewritten: not by the third user of a function.",
    ("livepatch/as-third",),
    since=(6, 4),
)
FILTER_CHANGE_KEEPS_REGS = Rule(
    "filter-change-keeps-regs",
    _FTRACE + "test_rec_ops_needs_regs, ftrace_hash_move",
    "A function that leaves an ops which stays registered for others keeps R.",
    ("kprobe/filter-change", "kretprobe/filter-change"),
    arches=("x86-64",),
)
OFF_IS_OFF = Rule(
    "off-is-off",
    _FTRACE + "ftrace_shutdown_sysctl, ftrace_startup_enable",
    "While kernel.ftrace_enabled is 0 no call site calls anything; 1 brings all back.",
    ("ops/ftrace_enabled:*", "fentry/ftrace_enabled:*"),
    until=(7, 2),
)
SAVE_REGS_NEEDS_SUPPORT = Rule(
    "save-regs-needs-support",
    _FTRACE + "__register_ftrace_function",
    "SAVE_REGS is refused where the architecture cannot save them.",
    ("ops-regs/alone/*",),
    errno.EINVAL,
    arches=("arm64",),
)

# --- calls ------------------------------------------------------------------------------------

CALLS = Rule(
    "each-sees-each-call",
    "arch/x86/kernel/ftrace_64.S: ftrace_caller, ftrace_regs_caller",
    "Every attacher sees each call once, with the caller's arguments, in any context.",
    ("ops/alone/*", "*/softirq", "*/held-call"),
)
IPMODIFY_CHOOSES_BODY = Rule(
    "ipmodify-chooses-body",
    "arch/x86/kernel/ftrace_64.S: ftrace_regs_caller; " + _KLP + "patch.c: klp_ftrace_handler",
    "The IPMODIFY ops of a function chooses the body, whoever else is on it.",
    ("livepatch/alone/*", "ipmodify/alone/*", "livepatch+fexit/*"),
)
EXIT_SEES_FINAL_RETURN = Rule(
    "exit-sees-final-return",
    "arch/x86/net/bpf_jit_comp.c: __arch_prepare_bpf_trampoline; kernel/kprobes.c",
    "Those at the exit see what the body that ran returned.",
    ("livepatch+fexit/*", "livepatch+kretprobe/*", "fexit+fmod_ret/*"),
)

# --- coming and going -------------------------------------------------------------------------

WELCOME = Rule(
    "welcome",
    _FTRACE + "register_ftrace_function, register_ftrace_direct",
    "What no rule refuses is attached.",
    ("*/alone/*",),
)
DETACH_ALWAYS = Rule(
    "detach-always",
    _FTRACE + "unregister_ftrace_function, unregister_ftrace_direct",
    "Whatever was attached can be detached, in any order.",
    ("*/alone/*",),
)
REFUSED_NO_TRACE = Rule(
    "refused-no-trace",
    _FTRACE + "__ftrace_hash_update_ipmodify (rollback), register_ftrace_direct",
    "A refused attach leaves record, behaviour and later answers as they were, also on the "
    "functions that it was not refused on.",
    ("*/many/*-on:*", "livepatch+direct/*"),
)
MODULE_GOES = Rule(
    "module-goes",
    _FTRACE + "ftrace_release_mod; " + _KLP + "core.c: klp_module_going",
    "A module's records go with it, and whatever was on them can still be detached.",
    ("*/module-gone",),
)
MODULE_COMES = Rule(
    "module-comes",
    _FTRACE + "ftrace_module_enable; " + _KLP + "core.c: klp_module_coming",
    "A module that comes back is patched by the livepatches that are there.",
    ("livepatch/module-reload",),
)

# --- what no user should do -------------------------------------------------------------------

UNKNOWN_DIRECT = Rule(
    "unknown-direct",
    _FTRACE + "check_direct_multi, unregister_ftrace_direct, modify_ftrace_direct",
    "A direct ops that is not registered can be neither modified nor unregistered.",
    ("misuse/direct-unregister-unknown", "misuse/direct-modify-unknown"),
    errno.EINVAL,
    since=(5, 16),
)
REGISTERED_ONCE = Rule(
    "registered-once",
    _FTRACE + "register_ftrace_direct",
    "A direct ops that is registered is not registered again.",
    ("misuse/direct-register-twice",),
    errno.EINVAL,
    since=(5, 16),
)
ENABLED_ONCE = Rule(
    "enabled-once",
    _FTRACE + "__register_ftrace_function",
    "An ops that is registered is not registered again, and the kernel warns.",
    ("misuse/ops-register-twice",),
    errno.EBUSY,
)
FILTER_NEEDED = Rule(
    "filter-needed",
    _FTRACE + "__ftrace_hash_update_ipmodify",
    "An IPMODIFY ops names its functions.",
    ("misuse/ipmodify-no-filter",),
    errno.EINVAL,
)
DIRECT_FILTER_NEEDED = Rule(
    "direct-filter-needed",
    _FTRACE + "register_ftrace_direct",
    "A direct ops names its functions.",
    ("misuse/direct-no-filter",),
    errno.EINVAL,
    since=(5, 16),
)
NO_NOTRACE = Rule(
    "no-notrace",
    _FTRACE + "ftrace_hash_move",
    "An IPMODIFY ops has no list of functions to leave out.",
    ("misuse/ipmodify-notrace",),
    errno.EINVAL,
)
IPMODIFY_OR_DIRECT = Rule(
    "ipmodify-or-direct",
    _FTRACE + "__ftrace_hash_update_ipmodify",
    "No ops is IPMODIFY and direct: the kernel warns, and lets it pass.",
    ("misuse/ipmodify-and-direct",),
    since=(6, 0),
)

#: Each misuse, the rule that answers it, what it gives, and of the report that the kernel
#: makes of it text in the title; then such text of others that may follow.
MISUSES: dict[str, tuple[Rule, int, tuple[str, ...]]] = {
    "direct-unregister-unknown": (UNKNOWN_DIRECT, errno.EINVAL, ()),
    "direct-modify-unknown": (UNKNOWN_DIRECT, errno.EINVAL, ()),
    "direct-register-twice": (REGISTERED_ONCE, errno.EINVAL, ()),
    "direct-no-filter": (DIRECT_FILTER_NEEDED, errno.EINVAL, ()),
    "ipmodify-no-filter": (FILTER_NEEDED, errno.EINVAL, ()),
    "ipmodify-notrace": (NO_NOTRACE, errno.EINVAL, ()),
    "ops-register-twice": (ENABLED_ONCE, errno.EBUSY, ("kernel/trace/ftrace.c",)),
    "ipmodify-and-direct": (
        IPMODIFY_OR_DIRECT,
        0,
        ("__ftrace_hash_update_ipmodify", "kernel/trace/ftrace.c"),
    ),
    "kill-ftrace": (DEAD, 0, ()),
}

#: All of them, by name.
RULES: dict[str, Rule] = {
    rule.name: rule for rule in list(globals().values()) if isinstance(rule, Rule)
}
